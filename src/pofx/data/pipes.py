"""Pipes, which give their content once: read once and whole into a temporary file."""

from __future__ import annotations

import os
import select
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pofx.core.errors import MissingSource, PofxError, UsageError
from pofx.data.packed import CHUNK, MOST_UNPACKED

WAIT = 2.0  # seconds in which somebody has to open a pipe for writing


@contextmanager
def copied(pipe: Path) -> Iterator[Path]:
    """A file with all that comes through a pipe; errors name the pipe.

    Raises MissingSource where nobody writes to it, UsageError for more than MOST_UNPACKED bytes. What is mapped from
    the file outlives it.
    """
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / pipe.name
        _copy(pipe, copy)
        try:
            yield copy
        except PofxError as e:
            here, there = str(copy), str(pipe)
            raise type(e)(e.problem.replace(here, there), e.remedy.replace(here, there)) from e


def _copy(pipe: Path, to: Path) -> None:
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # else it waits for a writer, if need be for ever
    with os.fdopen(handle, "rb", buffering=0) as source, to.open("wb") as file:
        select.select([handle], [], [], WAIT)
        chunk = source.read(CHUNK)  # None: somebody has opened it, and has not written yet
        if chunk == b"":
            raise MissingSource(f"{pipe} is a pipe that nobody writes to.", "Give a file, or start the writer first.")
        os.set_blocking(handle, True)
        while chunk != b"":
            file.write(chunk or b"")
            if file.tell() > MOST_UNPACKED:
                raise UsageError(
                    f"More than {MOST_UNPACKED} bytes came through {pipe}.", "Write them to a file, and give that."
                )
            chunk = source.read(CHUNK)
