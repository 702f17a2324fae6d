"""EM on a table larger than the memory it is allowed: time per row and sweep at 1 and 20 million rows, peak memory.

    python benchmarks/beyond_memory.py [--rows 1000000 20000000] [--columns 28] [--memory 4] [--folder DIR] [--quick]

A mixture of 10 Gaussians over real columns (float64) is written to a Parquet file, block by block, and ``gmm`` with 10
full components is fitted to it for some sweeps on one thread, by a process whose address space is limited to
``--memory`` GB (libraries included). A million rows fit into it and are fitted in memory; with a second, smaller
``--memory``, they are fitted in blocks, too. Disk: three times the table. Prints one JSON line per fit; times of sweeps
are CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import Results

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


def fit(path: str, memory: int, count: int) -> dict[str, float | bool]:
    """Load and fit in this process, whose address space is at most ``memory``."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    import pofx
    from pofx.families.mixture.em import EmLearner

    sweeps, step = [], EmLearner.step

    def timed(*args: Any) -> Any:
        begun = time.process_time()
        out = step(*args)
        sweeps.append(time.process_time() - begun)
        return out

    EmLearner.step = timed
    begun = time.perf_counter()
    data = pofx.load(path)
    loaded = time.perf_counter()
    run = pofx.fit(
        data, "gmm", steps=count, checks=1, options={"components": COMPONENTS, "covariance": "full", "tol": 0.0}
    )
    n = len(data.train)
    return {
        "in_blocks": data.train.beyond_memory,
        "train_rows": n,
        "columns": data.space.dims,
        "load_s": loaded - begun,
        "fit_s": time.perf_counter() - loaded,
        "sweep_cpu_us_per_row": 1e6 * statistics.median(sweeps[1:]) / n,
        "first_sweep_cpu_us_per_row": 1e6 * sweeps[0] / n,
        "valid_nats": run.log[-1]["valid"],
        "peak_resident_gb": status("VmHWM") / 1e9,
        "peak_address_space_gb": status("VmPeak") / 1e9,
        "limit_gb": memory / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 20_000_000])
    parser.add_argument("--columns", type=int, default=28)
    parser.add_argument("--memory", type=float, nargs="+", default=[4.0], help="GB")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: a temporary one)")
    parser.add_argument("--sweeps", type=int, default=5, help="at least 2: the first is not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="do not keep the results")
    parser.add_argument("--fit", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        print(json.dumps(fit(args.fit, int(args.memory[0] * 1e9), args.sweeps)))
        return
    results = Results(args.quick, seed=args.seed, threads=1, components=COMPONENTS)
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        environment["TMPDIR"] = folder
        for rows in args.rows:
            file = Path(folder) / f"{rows}.parquet"
            write(file, rows, args.columns, args.seed)
            for memory in args.memory:
                command = [sys.executable, __file__, "--fit", str(file), "--memory", str(memory)]
                command += ["--sweeps", str(args.sweeps)]
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, env=os.environ | environment, text=True
                )
                results.emit(rows=rows, file_gb=file.stat().st_size / 1e9, **json.loads(done.stdout))
            file.unlink()
    results.save()


if __name__ == "__main__":
    main()
