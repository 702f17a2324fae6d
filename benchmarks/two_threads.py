"""Steps in a few seconds on one thread, on two whatever happens, and on as many as pay, with and without a busy core.

usage: python benchmarks/two_threads.py [--quick] [--seconds 5]

Threads that wait for each other spin: where another program takes one of two cores, two can be a hundred times slower
than one. A fit with a budget in seconds therefore times both (train/threads.py). "busy" starts one endless loop for
each core but one; a machine that does other things, too, is never "quiet". Kept in benchmarks/results/two_threads.json.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import pofx
from pofx.data.parts import Data
from pofx.train import fit as loop
from pofx.train.threads import Threads
from timing import Results


class Always(Threads):
    """All threads for every step."""

    def run(self, step):
        return step()


@contextmanager
def busy(cores: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for process in loops:
            process.kill()
            process.wait()


def steps(data: Data, family: str, threads: int, chooser: type[Threads], seconds: float) -> int:
    torch.set_num_threads(threads)
    loop.Threads = chooser
    return pofx.fit(data, family, seconds=seconds, checks=1).steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one second each")
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    seconds = 1.0 if args.quick else args.seconds
    results = Results(args.quick, torch=torch.__version__, seconds=seconds)
    data = pofx.load(torch.randn(10_000, 16, generator=torch.Generator().manual_seed(0)).numpy())
    for others in (0, max(1, len(os.sched_getaffinity(0)) - 1)):
        with busy(others):
            for family in ("made", "realnvp"):
                one = steps(data, family, 1, Threads, seconds)
                two = steps(data, family, 2, Always, seconds)
                chosen = steps(data, family, 2, Threads, seconds)
                results.emit(what="busy" if others else "quiet", family=family, one=one, two=two, as_many_as_pay=chosen,
                             chosen_over_one=chosen / one)  # fmt: skip
    results.save()


main()
