"""Tests that use the shared data sets skip, with the reason, where they are absent (POFX_DATA names the folder)."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data():
    folder = Path(os.environ.get("POFX_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data sets at {folder} (set POFX_DATA)")
    return folder


def pytest_make_parametrize_id(val, argname):
    """Bytes are named by their argument and number: packed ones can hold the time at which they were made."""
    return argname if isinstance(val, bytes) else None
