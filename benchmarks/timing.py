"""What the timing scripts share: interleaved rounds, and results as JSON lines that are kept in results/."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Results:
    """Prints each entry as a JSON line; ``save`` writes all to results/SCRIPT.json, unless the run was a quick one."""

    def __init__(self, quick: bool = False, **environment: Any) -> None:
        self.quick, self.entries = quick, []
        self.emit(what="environment", cores=os.cpu_count(), load=os.getloadavg()[0], quick=quick, **environment)

    def emit(self, **entry: Any) -> None:
        entry = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in entry.items()}
        self.entries.append(entry)
        print(json.dumps(entry), flush=True)

    def keep(self, key: str) -> None:
        """Entries of an earlier call come along where this one has none of the same ``key``."""
        done = {e[key] for e in self.entries if key in e}
        old = json.loads(self.path.read_text()) if self.path.exists() else []
        self.entries += [e for e in old if key in e and e[key] not in done]

    def save(self) -> None:
        if not self.quick:
            RESULTS.mkdir(exist_ok=True)
            self.path.write_text(json.dumps(self.entries, indent=1) + "\n")

    @property
    def path(self) -> Path:
        return RESULTS / f"{Path(sys.argv[0]).stem}.json"


def race(
    contestants: dict[str, Callable[[], object]], rounds: int, seconds: float = float("inf"), pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of every call, round by round, so that a slow moment of the machine hits all alike.

    Each is called once before. At least 3 rounds, then until ``seconds`` are over. With a ``pause``, each call
    comes after it and after an untimed one: threads of another library spin on for a while after its work.
    """
    for call in contestants.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > seconds:
            break
        for name, call in contestants.items():
            if pause:
                time.sleep(pause)
                call()
            t = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - t)
    return times


def middle(times: list[float]) -> tuple[float, float]:
    """The median, and the interquartile range over the median."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return median, (high - low) / median
