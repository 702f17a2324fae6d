"""A comparison of 8 families in one process, on two Ray workers, and there with a worker killed in the middle.

usage: python benchmarks/cluster.py [SOURCE] [--steps N] [--quick]

One core for each family on both sides and a budget in steps, so that all numbers must agree to the bit; times include
the start of Ray and of its workers. Prints one JSON object a line and writes all to benchmarks/results/cluster.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pofx
from pofx.evaluate.compare import Comparison
from timing import Results

FAMILIES = ["nsf", "maf", "realnvp", "vae", "window-mlp", "made"]  # and the two baselines
WORKERS = 2


def figures(found: Comparison) -> list[Any]:
    """The table without times: status, likelihoods with their errors, two-sample tests, outliers, verdicts."""
    kept = ("family", "status", "reason", "quality", "outliers", "latents", "config")
    numbers = ("nats", "se", "mc_se", "n", "text", "bits_text")
    rows = [[row.get(k) for k in kept] + [row["likelihood"][k] for k in numbers] for row in found.rows]
    return [rows, found.verdicts]


def timed(data: pofx.Data, **how: Any) -> tuple[Comparison, float]:
    started = time.perf_counter()
    found = pofx.compare(data, FAMILIES, cores=1, **how)
    return found, time.perf_counter() - started


def workers() -> dict[int, str]:
    """The processes below this one that run a task now, with their titles."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:  # it has ended meanwhile
                continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return {pid: title for pid, title in titles.items() if title.startswith("ray::_task") and ours(pid)}


def kill_one(after: float, killed: list[int]) -> None:
    time.sleep(after)
    while not (found := workers()):
        time.sleep(0.1)
    killed.append(min(found))
    os.kill(killed[0], signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="mixed-table")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    steps = 50 if args.quick else args.steps
    results = Results(args.quick, source=Path(args.source).name, steps=steps, families=len(FAMILIES) + 2)
    data = pofx.load(args.source)
    here, alone = timed(data, steps=steps)
    results.emit(what="one process", seconds=alone, **here.record["times"])
    there, together = timed(data, steps=steps, cluster="local")
    results.emit(
        what=f"{WORKERS} Ray workers",
        seconds=together,
        ratio=together / alone,
        same_table=figures(here) == figures(there),
        **there.record["times"],
    )
    killed: list[int] = []
    thread = threading.Thread(target=kill_one, args=(together / 2, killed), daemon=True)
    thread.start()
    again, longer = timed(data, steps=steps, cluster="local")
    results.emit(
        what="a worker killed in the middle",
        seconds=longer,
        killed=len(killed),
        rows_lost=len(here.rows) - len(again.rows),
        same_table=figures(here) == figures(again),
    )
    results.save()


if __name__ == "__main__":
    main()
