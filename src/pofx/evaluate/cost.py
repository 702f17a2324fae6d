"""What things cost: time under a limit, throughput, peak memory."""

from __future__ import annotations

import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

FIRST_BLOCK = 8  # rows of the first block, which tells how slow a row is
GROWTH = 8  # how much larger each block is than the one before


@dataclass(frozen=True)
class Grown(Generic[T]):
    """The blocks that fitted into the time limit."""

    parts: list[T]
    rows: int
    seconds: float
    rows_per_second: float  # of the fastest block: start-up costs are left out


def grow(
    step: Callable[[int, int], T], rows: int, seconds: float | None = None, *, one: float | None = None
) -> Grown[T]:
    """Call ``step(start, size)`` over ``rows`` rows in growing blocks, as far as the time allows.

    The time of a block is predicted by the line through the last two. Before there are two, half of the
    first one's time is taken to be start-up, or three quarters of ``one``: samplers that go step by step
    draw eight rows in little more time than one. Block sizes depend on the clock only in the last block, so
    that rows scored under one seed agree between runs. The first block always runs.

    Args:
        step: does the rows start .. start + size - 1.
        rows: how many there are.
        seconds: the time limit; None for all rows.
        one: seconds that a block of one row takes, where that is known.
    """
    begun, start, size, rate = time.perf_counter(), 0, min(FIRST_BLOCK, rows), 0.0
    parts: list[T] = []
    known = [] if one is None else [(0, 0.75 * one), (1, one)]
    if one is not None and seconds is not None:
        size = min(size, max(1, _affordable(known[0], known[1], seconds)))
    while size > 0:
        before = time.perf_counter()
        parts.append(step(start, size))
        took = max(time.perf_counter() - before, 1e-9)
        known = [known[-1] if known and known[-1][0] < size else (0, took / 2), (size, took)]
        start, rate, wanted = start + size, max(rate, size / took), min(GROWTH * size, rows - start - size)
        if seconds is None:
            size = wanted
        else:
            affordable = _affordable(known[0], known[1], seconds - (time.perf_counter() - begun))
            size = min(wanted, affordable) if affordable >= min(FIRST_BLOCK, wanted) else 0
    return Grown(parts, start, time.perf_counter() - begun, rate)


def _affordable(a: tuple[int, float], b: tuple[int, float], seconds: float) -> int:
    """The size of the block that takes ``seconds``, by the line through two points (size, time)."""
    slope = max((b[1] - a[1]) / (b[0] - a[0]), 1e-9)
    return int(max(0.0, seconds - max(0.0, b[1] - slope * b[0])) / slope)


def latency(call: Callable[[], object], seconds: float = 1.0, repeats: int = 5) -> float:
    """Median seconds of one call; fewer repeats where they would take longer than ``seconds``."""
    times: list[float] = []
    while len(times) < repeats and sum(times) < seconds:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    # the first call pays for warming up
    return statistics.median(times[1:] or times)


@dataclass
class Peak:
    """Peak resident memory of this process in bytes, with what it held before; ``method`` says how it was read."""

    bytes: int = 0
    before: int = 0
    method: str = ""
    device_bytes: int | None = field(default=None)  # peak of torch's allocator, on a GPU


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Measure the block's peak memory. The result is filled in when the block ends."""
    peak, gpu = Peak(), device.startswith(("cuda", "gpu")) and torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    resettable = _reset_high_water()
    peak.before = _status("VmRSS") or _highest_ever()
    try:
        yield peak
    finally:
        high = _status("VmHWM") if resettable else None
        peak.bytes = _highest_ever() if high is None else high
        peak.method = (
            "peak resident memory of the whole process since it started (getrusage)"
            if high is None
            else "peak resident memory of the process during the fit (VmHWM)"
        )
        if gpu:
            peak.device_bytes = torch.cuda.max_memory_allocated()


def _reset_high_water() -> bool:
    """Linux: writing 5 to clear_refs sets VmHWM back to the present size (proc(5))."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int | None:
    """A size in bytes from /proc/self/status."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")]
    return found[0] if found else None


def _highest_ever() -> int:
    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
