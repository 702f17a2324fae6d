"""What things cost: time under a limit, throughput, speed over length, peak memory."""

from __future__ import annotations

import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

FIRST_BLOCK = 8  # rows of the first block, which tells how slow a row is
GROWTH = 8  # how much larger each block is than the one before
SHORTEST, REPEATS = 8, 5  # steps of the first draw of a speed curve (up to twice as many); draws of each length


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
    that rows evaluated under one seed agree between runs. The first block always runs.

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


@dataclass(frozen=True)
class Speed:
    """How fast data of free length are drawn.

    Attributes:
        rows: drawn at once.
        length: steps of the longest of them.
        seconds: of one draw.
        steps_per_second: ``rows * length / seconds``, those counted that a row idles after its end: flat where a
            step costs the same wherever it stands.
    """

    rows: int
    length: int
    seconds: float
    steps_per_second: float


def speed_curve(
    draw: Callable[[int, int], int], longest: int, seconds: float, batches: Sequence[int] = (1, 16)
) -> list[Speed]:
    """Time draws of growing length, each about twice the last, up to ``longest`` or as far as the time allows.

    The next draw is expected to take as many times the last one's time (two to four) as that took of the one
    before. The shortest length always runs. Of repeated draws the median counts, without the first, which pays for
    warming up.

    Args:
        draw: draws so many rows of a length at most; how many steps the longest of them has.
        longest: the most steps that a datum has.
        seconds: the time limit, in equal shares for ``batches``.
        batches: rows drawn at once.

    Returns:
        Batch after batch, lengths ascending; shorter ones than asked for where data end before.
    """
    lengths = [longest]
    while lengths[0] >= 2 * SHORTEST:
        lengths.insert(0, lengths[0] // 2)
    share = seconds / len(batches)
    return [s for rows in batches for s in _speeds(partial(draw, rows), rows, lengths, share)]


def _speeds(draw: Callable[[int], int], rows: int, lengths: Sequence[int], seconds: float) -> list[Speed]:
    found: list[Speed] = []
    begun, took, growth = time.perf_counter(), 0.0, 2.0
    for length in lengths:
        if growth * took > seconds - (time.perf_counter() - begun):
            break
        draws: list[tuple[int, float]] = []  # steps, seconds
        while not draws or (len(draws) < REPEATS and sum(t for _, t in draws) + draws[-1][1] < 0.05 * seconds):
            before = time.perf_counter()
            drawn = draw(length)
            draws.append((drawn, max(time.perf_counter() - before, 1e-9)))
        some = draws[1:] or draws
        last, took = took, statistics.median(t for _, t in some)
        growth = min(max(took / last, 2.0), 4.0) if last else 2.0
        steps, each = int(statistics.median(n for n, _ in some)), statistics.median(n / t for n, t in some)
        if steps > (found[-1].length if found else 0):
            found.append(Speed(rows, steps, steps / each, rows * each))
        if max(n for n, _ in draws) < length:  # all ended by themselves: a higher limit changes nothing
            break
    return found


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
