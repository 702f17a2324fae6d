"""Imports run one way: core <- nn, transforms <- paths, mcmc <- families; the rest meets families by registry."""

import ast
from pathlib import Path

import pytest

import pofx

ROOT = Path(pofx.__file__).parent
TOP = {"cli", "commands", "web", "interop"}
MAY = {
    "core": set(),
    "information": {"core"},
    "cluster": {"core"},
    "nn": {"core"},
    "decode": {"core", "nn"},
    "transforms": {"core", "nn"},
    "paths": {"core", "nn", "transforms"},
    "mcmc": {"core", "nn", "transforms"},
    "families": {"core", "nn", "transforms", "paths", "mcmc", "decode"},
    "data": {"core"},
    "train": {"core", "data"},
    "evaluate": {"core", "data", "train", "information", "cluster"},
    "uses": {"core", "data", "train", "evaluate"},
    "report": {"core", "data", "train", "evaluate"},
    "testing": {"core", "data", "train", "evaluate"},
}


def imported(path):
    """The pofx packages that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "pofx" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if package in TOP or package == "__init__":
        return
    wrong = set(imported(path)) - MAY[package] - {package}
    assert not wrong, f"{path.relative_to(ROOT)} must not import {wrong}"
