"""Held-out log-likelihood of every family on tables of numbers: cover, donors, http (ADBench) and protein (UCI).

    python benchmarks/tables.py DATA OUT [--seconds 60] [--only NAME ...]

DATA is the folder of the data sets (tabular in it), OUT one for comparisons; one that is there already is read. Each
table is compared as ``pofx compare TABLE --seconds 60 --cluster local`` does, one core for each family, on one split
(80/10/10, seed 0); the likelihood is that of at most 10,000 test rows. One JSON line for each family that has a
likelihood: nats with their standard error and kind. Families that refused or failed are told with the reason.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import pofx
from pofx.evaluate.compare import read_comparison
from timing import Results

TABLES = {
    "cover": "adbench/10_cover.npz",
    "donors": "adbench/11_donors.npz",
    "http": "adbench/16_http.npz",
    "protein": "uci_regression/protein-tertiary-structure.npz",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="of each fit")
    parser.add_argument("--only", nargs="*", choices=TABLES, default=list(TABLES))
    args = parser.parse_args()
    results = Results(args.seconds < 10 or len(args.only) < len(TABLES), seconds=args.seconds)
    for name in args.only:
        kept = args.out / name
        if not (kept / "comparison.json").exists():
            arrays = np.load(args.data / "tabular" / TABLES[name], allow_pickle=False)
            rows = arrays["X"] if "X" in arrays else arrays["data"]
            data = pofx.load(rows, name=name)
            pofx.compare(data, seconds=args.seconds, max_test=10_000, cluster="local", out=kept)
        for row in read_comparison(kept).rows:
            if row["status"] != "ok":
                results.emit(data=name, family=row["family"], status=row["status"], reason=row["reason"])
            elif row["likelihood"]["kind"] != "Unavailable":
                likelihood = {k: row["likelihood"][k] for k in ("kind", "nats", "se", "n")}
                results.emit(data=name, family=row["family"], **likelihood, trained=row["fit"]["seconds"])
    results.save()


if __name__ == "__main__":
    main()
