"""A process of its own for each trial, so that a crash, a hang or a leak of memory is an outcome like any other.

The parent has imported everything and only forks: a trial costs milliseconds. It must not have used pyarrow or
torch before, whose threads would not survive the fork.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from pofx.core.errors import PofxError

MEMORY = 2 << 30  # bytes that a trial may take beyond what the parent has
SECONDS = 10.0


@dataclass(frozen=True)
class Outcome:
    """``kind``: right (what the trial returned is in ``text``), named (a PofxError), or a finding:
    traceback, signal, hang, memory."""

    kind: str
    text: str = ""
    seconds: float = 0.0
    peak: int = 0  # bytes of memory

    @property
    def fine(self) -> bool:
        return self.kind in ("right", "named")


def trial(work: Callable[[], str], seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Run ``work`` in a fork. It fails where it raises anything but a PofxError with a remedy, or takes too much."""
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reading)
        _work(work, writing, memory)
    os.close(writing)
    content, hung = _read(reading, started + seconds)
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    taken, peak = time.monotonic() - started, usage.ru_maxrss << 10
    if hung:
        return Outcome("hang", f"not done after {seconds:g} s", taken, peak)
    if os.WIFSIGNALED(status):
        return Outcome("signal", signal.Signals(os.WTERMSIG(status)).name, taken, peak)
    kind, _, text = content.decode(errors="replace").partition("\n")
    return Outcome(kind or f"exit {os.waitstatus_to_exitcode(status)}", text, taken, peak)


def _work(work: Callable[[], str], writing: int, memory: int) -> None:
    """In the child: never returns."""
    kind, text = "traceback", ""
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        with open("/proc/self/statm") as file:
            own = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")  # data and stack of the parent
        resource.setrlimit(resource.RLIMIT_DATA, (own + memory,) * 2)
        try:
            kind, text = "right", work()
        except PofxError as error:
            kind = "named" if error.remedy or "\n" not in str(error) else "traceback"
            text = f"{type(error).__name__}: {error}"
        except MemoryError:
            kind, text = "memory", traceback.format_exc()
        except BaseException:
            text = traceback.format_exc()
    finally:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(f"{kind}\n{text}".encode(errors="replace"))
        sys.stdout.flush()
        os._exit(0)


def _read(pipe: int, deadline: float) -> tuple[bytes, bool]:
    """All that the child writes until it closes its end; whether the deadline came first."""
    content = b""
    with os.fdopen(pipe, "rb", buffering=0) as file:
        while True:
            ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return content, True
            piece = file.read(1 << 16)
            if not piece:
                return content, False
            content += piece
