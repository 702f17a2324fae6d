"""EM on a table larger than the memory it is allowed: time per row and sweep at 1 and 20 million rows, peak memory.

    python benchmarks/beyond_memory.py [--rows 1000000 20000000] [--columns 28] [--memory 4GB] [--folder DIR] [--quick]

A mixture of 10 Gaussians over real columns (float64) is written to a Parquet file, block by block; ``gmm`` with 10
components is then fitted to it by a process of its own, on one thread and under ``--memory``: it is what pofx is told
and what the process's address space is limited to, beyond what importing the libraries takes. At 1 million rows the
table fits, and is fitted in memory, too. Disk: about twice the table. Prints one JSON line per fit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import Results

SWEEPS = 5
COMPONENTS = 10
BLOCK = 250_000


def write(path: Path, rows: int, columns: int, seed: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    means, mix = rng.normal(0, 3, (COMPONENTS, columns)), rng.normal(0, 0.4, (COMPONENTS, columns, columns))
    names = [f"x{j}" for j in range(columns)]
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, BLOCK):
            n = min(BLOCK, rows - start)
            noise, which = rng.normal(size=(n, columns)), rng.integers(COMPONENTS, size=n)
            x = np.empty((n, columns))
            for k in range(COMPONENTS):
                x[which == k] = means[k] + noise[which == k] + noise[which == k] @ mix[k].T
            writer.write_table(pa.table(list(np.ascontiguousarray(x.T)), schema=schema))


def status(key: str) -> int:
    """Bytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def fit(path: str, memory: int | None) -> dict[str, float]:
    import torch

    import pofx
    import pofx.train.fit

    torch.set_num_threads(1)
    pofx.fit(pofx.load("two-moons", max_rows=1000), "gmm", steps=1)  # all libraries are there
    if memory is not None:
        most = status("VmSize") + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    begun = time.perf_counter()
    data = pofx.load(path, memory=memory)
    loaded = time.perf_counter()
    assert data.train.beyond_memory == (memory is not None)
    times = [loaded]
    learner = pofx.core.registry.family("gmm").learner

    run = pofx.fit(
        data,
        "gmm",
        steps=SWEEPS,
        checks=1,
        options={"components": COMPONENTS, "covariance": "full", "tol": 0.0},
        progress=lambda entry: times.append(time.perf_counter()),
    )
    del learner
    return {"load_s": loaded - begun, "fit_s": times[-1] - loaded, "train": len(data.train), "steps": run.steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 20_000_000])
    args = parser.parse_args()
    print(args)


if __name__ == "__main__":
    main()
