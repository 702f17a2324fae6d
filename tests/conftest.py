"""Tests that use the shared data sets skip, with the reason, where they are absent (POFX_DATA names the folder)."""

import hashlib
import os
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--quick-share", type=int, default=1, help="run one in so many of the quick tests, others for each random order"
    )


def pytest_collection_modifyitems(config, items):
    every, order = config.getoption("--quick-share"), config.getoption("random_order_seed")

    def chosen(item):
        digest = hashlib.sha256(f"{order} {item.nodeid}".encode()).digest()
        return item.get_closest_marker("long") is not None or digest[0] % every == 0

    if every > 1:
        left = [item for item in items if not chosen(item)]
        items[:] = [item for item in items if chosen(item)]
        config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="module", autouse=True)
def seeded_module():
    """What a module's fixtures draw does not follow from what ran before them in this process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded(seeded_module):
    """What a test draws does not follow from what ran before it in this process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    folder = Path(os.environ.get("POFX_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data sets at {folder} (set POFX_DATA)")
    return folder


@pytest.fixture(scope="session")
def ray():
    """The one local cluster of the suite, of two workers, held open: all that asks for ``cluster="local"`` finds it.

    Tests that use it are marked ``cluster``: they run in a process of their own (see the Makefile), since two clusters
    at a time beside two busy test processes are more than a small machine carries.
    """
    pytest.importorskip("ray", reason="the extra pofx[ray] is not installed")
    from pofx.cluster import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "2")
        with connected("local") as module:
            yield module


@pytest.fixture
def ours_alone(monkeypatch):
    """The families of pofx alone: what other tests of the same process have registered is not known."""
    monkeypatch.setattr("pofx.core.registry._REGISTERED", {})


def pytest_make_parametrize_id(val, argname):
    """Bytes are named by their argument and number: packed ones can hold the time at which they were made."""
    return argname if isinstance(val, bytes) else None
