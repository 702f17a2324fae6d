"""More than one machine, on Ray (the extra ``pofx[ray]``): where work runs, and how it is reached."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pofx.core.errors import UsageError


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to ``address`` inside the block.

    Args:
        address: 'local' for the cores of this machine, or that of a cluster as Ray takes it ('auto',
            'ray://host:10001'). A connection that the caller has made already is used as it is, and left.

    Raises UsageError where Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")  # news of dead workers would go to standard output
    try:
        import ray
    except ImportError as error:
        raise UsageError("--cluster needs Ray, which is not installed.", "pip install 'pofx[ray]'.") from error
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU keeps what it sees
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"No cluster answers at {address!r}: {error}", "Give 'local', or the address that 'ray start' printed."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
