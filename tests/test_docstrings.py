"""Every example in a docstring of pofx runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import pofx

MODULES = [m.name for m in pkgutil.walk_packages(pofx.__path__, "pofx.")]


@pytest.mark.usefixtures("ours_alone")
@pytest.mark.parametrize("name", ["pofx", *MODULES])
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert failed == 0
