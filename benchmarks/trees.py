"""What ``trees`` reaches on tables, and how fast it draws; every other family beside it.

    python benchmarks/trees.py DATA OUT [--seconds 30]

DATA is the folder of the data sets (tabular/mixed in it), OUT one for comparisons; one that is there already is read.
One JSON line each: adult after 20 s on one thread and after 60 s on two (the mean over the test part, its standard
error, when training ended by itself, and the seconds of 10,000 draws); then four tables, each compared as
``pofx compare TABLE --seconds 30 --cluster local`` does, one core for each family.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch

import pofx
from pofx.evaluate.compare import read_comparison
from timing import Results

TABLES = ("adult_train", "abalone", "california_housing", "german_credit")


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=30, help="of each fit on the four tables")
    args = parser.parse_args()
    place = args.data / "tabular" / "mixed"
    results = Results(args.seconds < 30, torch=torch.__version__)
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
                     kind="Exact", nats=float(nats.mean()), se=float(nats.std() / len(nats) ** 0.5), rows=len(nats),
                     drawing_10000=time.perf_counter() - started)  # fmt: skip
    for name in TABLES:
        kept = args.out / name
        if not (kept / "comparison.json").exists():
            source = place / f"{name}.csv.gz"
            pofx.compare(pofx.load(source), seconds=args.seconds, cluster="local", out=kept)
        for row in read_comparison(kept).rows:
            if row["status"] == "ok" and (likelihood := row["likelihood"])["nats"] is not None:
                results.emit(data=name, family=row["family"], **{k: likelihood[k] for k in ("kind", "nats", "se", "n")},
                             trained=row["fit"]["seconds"], evaluating=row["times"]["evaluating"])  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
