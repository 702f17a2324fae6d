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
