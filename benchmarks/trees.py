"""What ``trees`` reaches on tables, and how fast it draws; every other family beside it.

    python benchmarks/trees.py DATA [--only adult|tables] [--seconds 30]

DATA is the folder of the data sets (tabular/mixed, tabular/debd and tabular/adbench in it). One JSON line each: adult
after 20 s on one thread and after 60 s on two (the mean over the test part, its standard error, when training ended by
itself, and the seconds of 10,000 draws), and the test means of all families after the same seconds on four tables.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch

import pofx
from pofx.core.errors import Unsupported
from pofx.core.likelihood import Unavailable
from pofx.core.registry import families, family
from timing import Results

TABLES = ("adult_train", "abalone", "california_housing", "german_credit")


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=("adult", "tables"))
    parser.add_argument("--seconds", type=float, default=30, help="of each fit on the four tables")
    args = parser.parse_args()
    place = args.data / "tabular" / "mixed"
    results = Results(args.only is not None or args.seconds < 30, torch=torch.__version__)
    if args.only != "tables":
        adult = pofx.load(place / "adult_train.csv.gz")
        for seconds, threads in ((20, 1), (60, 2)):
            torch.set_num_threads(threads)
            used = cpu()
            run = pofx.fit(adult, "trees", seconds=seconds, seed=0)
            used = cpu() - used
            nats = run.model.log_prob(adult.test.x).nats
            started = time.perf_counter()
            run.model.sample(10_000)
            results.emit(what="adult", threads=threads, seconds=seconds, trained=run.log[-1]["seconds"], cpu=used,
                         nats=float(nats.mean()), se=float(nats.std() / len(nats) ** 0.5), rows=len(nats),
                         drawing_10000=time.perf_counter() - started)  # fmt: skip
    torch.set_num_threads(1)
    for name in TABLES if args.only != "adult" else ():
        data = pofx.load(place / f"{name}.csv.gz")
        for other in families():
            cls = family(other)
            if cls.refuses(data.space, None, cls.Config()):
                continue
            try:
                run = pofx.fit(data, other, seconds=args.seconds, seed=0)
                lik = run.model.log_prob(data.test.x)
            except Unsupported as reason:
                results.emit(table=name, family=other, unsupported=str(reason))
                continue
            if isinstance(lik, Unavailable):
                continue
            results.emit(table=name, family=other, kind=type(lik).__name__, nats=float(lik.nats.mean()),
                         se=float(lik.nats.std() / len(lik.nats) ** 0.5), trained=run.log[-1]["seconds"])  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
