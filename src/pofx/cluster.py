"""More than one machine, on Ray (the extra ``pofx[ray]``): where work runs, and how it is reached."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from pofx.core.errors import UsageError

# what the machines of a cluster print on the terminal, even without logs, while what they tell of is put right
TOLD = "A worker died or was killed|task will be retried|killed due to memory pressure|marked dead|cannot be scheduled"
ANSWER, HEALTH = 5.0, 20.0  # seconds in which a port has to open, and a cluster behind it to say that it is one


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to ``address`` inside the block.

    Args:
        address: 'local' for the cores of this machine that the process may use, or that of a cluster as Ray takes it
            ('auto', 'host:6379', 'ray://host:10001'). A connection that the caller has made already is used as it is,
            and left.

    Raises UsageError where Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", TOLD)  # read when Ray is imported
    try:
        import ray
    except ImportError as error:
        raise UsageError("--cluster needs Ray, which is not installed.", "pip install 'pofx[ray]'.") from error
    if ray.is_initialized():
        yield ray
        return
    local = address == "local"
    if not local:
        _answers(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU keeps what it sees
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
    place: AbstractContextManager[dict[str, Any]] = _own_place() if local else nullcontext({})
    with place as how:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **how)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise _silent(address, error) from error
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _own_place() -> Iterator[dict[str, Any]]:
    """How Ray starts on this machine: on the cores that this process may use, and in a folder that goes at the end.

    Not where Ray puts it unless told, which may be another user's; its path is short, since those of sockets are.
    """
    from joblib import cpu_count  # knows of affinity and of the limits of containers

    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pofx-", dir=short, ignore_cleanup_errors=True) as folder:
        yield {
            "num_cpus": cpu_count(),
            "include_dashboard": False,
            "_temp_dir": folder,
            # What they do is what is waited for; at Ray's 15, a busy machine all but stops them.
            "_system_config": {"worker_niceness": 0},
        }


def _answers(address: str) -> None:
    """Is a cluster there? Raises UsageError within seconds, where ``ray.init`` tries for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
        except (OSError, OverflowError) as error:
            raise _silent(address, error) from error
    if address.startswith("ray://"):  # its client waits for no more than half a minute
        return
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    there = os.environ | {"RAY_ADDRESS": address}
    try:
        done = subprocess.run(check, env=there, capture_output=True, text=True, timeout=HEALTH)
    except subprocess.TimeoutExpired as error:
        raise _silent(address, "nothing that listens there is a Ray cluster") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["its health check failed"]
        raise _silent(address, said[-1].rpartition("Error: ")[2])


def _silent(address: str, why: object) -> UsageError:
    return UsageError(
        f"No cluster answers at {address!r}: {str(why).rstrip('.')}.",
        "Give 'local', or the address that 'ray start' printed.",
    )
