"""One million rows x 20 columns of Parquet: seconds to load, and the most memory the process ever held.

    python benchmarks/load_parquet.py [--rows 1000000] [--columns 20] [--seed 0]

Half of the columns are real, a quarter integers, a quarter categories; some values are missing. The file
is written by this process and loaded by a fresh one, whose VmHWM (or ru_maxrss) is its peak. Prints one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write(path: Path, rows: int, columns: int, seed: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    table = {}
    for j in range(columns):
        if j % 4 < 2:
            missing = rng.random(rows) < (0.05 if j % 8 == 0 else 0.0)
            table[f"real{j}"] = pa.array(rng.normal(size=rows), mask=missing)
        elif j % 4 == 2:
            table[f"integer{j}"] = pa.array(rng.poisson(20, rows))
        else:
            table[f"category{j}"] = pa.array(np.array(["red", "green", "blue", "grey"])[rng.integers(4, size=rows)])
    pq.write_table(pa.table(table), path)


def load(path: str) -> dict[str, float]:
    started = time.perf_counter()
    import pofx

    imported = time.perf_counter()
    data = pofx.load(path)
    seconds = time.perf_counter() - imported
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    rows = len(data.train) + len(data.valid) + len(data.test)
    return {
        "rows": rows,
        "columns": data.space.dims,
        "import_s": imported - started,
        "load_s": seconds,
        "peak_gb": peak / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--load", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "big.parquet"
        write(file, args.rows, args.columns, args.seed)
        line = subprocess.run(
            [sys.executable, __file__, "--load", str(file)], check=True, capture_output=True, text=True
        ).stdout
        print(json.dumps({"seed": args.seed, "file_mb": file.stat().st_size / 1e6} | json.loads(line)))


if __name__ == "__main__":
    main()
