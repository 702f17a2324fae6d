"""What a comparison takes beside its fits: loading, preparing, evaluating, saving, of each family.

usage: python benchmarks/overhead.py [SOURCE ...] [--seconds S] [--quick]

Every family that serves the data, on one core. Prints one JSON object a line; ``share`` is everything but training over
the budget of a fit. Writes all to benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import pofx
from timing import Results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=["mixed-table", "digits"])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    seconds = 3.0 if args.quick else args.seconds
    results = Results(args.quick, seconds=seconds)
    for source in args.sources:
        with TemporaryDirectory() as folder:
            found = pofx.compare(source, seconds=seconds, cores=1, out=folder)
        name = Path(source).name
        for row in found.rows:
            if row["status"] == "ok":
                spent = row["times"]
                share = (spent["evaluating"] + spent["else"]) / seconds
                scored = {"test_rows": row["likelihood"]["n"], "samples": row["sampling"].get("n")}
                results.emit(source=name, family=row["family"], share=share, **spent, **scored)
        results.emit(source=name, family="all", **found.record["times"])
    results.save()


if __name__ == "__main__":
    main()
