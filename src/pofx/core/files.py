"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pofx.core.errors import CannotSave

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch name for a file or a folder, which takes the place of ``path`` at the end.

    If anything fails, it is gone and what stood at ``path`` still stands. What a killed process has left of its own
    attempts at ``path`` is removed first. Rights follow the umask.

    Raises CannotSave where the place cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path.parent, f".{path.name}.") as folder:
            yield folder / path.name
            os.replace(folder / path.name, path)
    except OSError as e:
        what = "Free some space" if e.errno in FULL else "Check the folder and its permissions"
        raise CannotSave(
            f"Could not write {path}: {e.strerror or e}.",
            f"{what}, or write elsewhere; what was there before still is.",
        ) from e


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder of this process, gone at the end. What a killed process has left under this prefix is removed first."""
    for old in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):  # who writes holds a lock on the folder
            if (held := lock(old)) is not None:
                shutil.rmtree(old, ignore_errors=True)
                os.close(held)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    held = None
    try:
        with suppress(OSError):  # a file system without locks: nothing is taken for left behind there
            held = lock(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def lock(path: Path) -> int | None:
    """Lock an existing file or folder until the descriptor is closed, at the end of the process at the latest.

    None where somebody else holds it. Raises OSError where the file system has no locks.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if not isinstance(error, BlockingIOError):
            raise
        return None
    return handle


def write_atomic(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new, flushed to disk. Raises CannotSave; the old file then still stands."""
    with replacing(path) as scratch, open(scratch, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: Any) -> None:
    write_atomic(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
