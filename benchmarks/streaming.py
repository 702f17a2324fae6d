"""A folder of Parquet files scored, and samples drawn, in memory that does not grow; the same numbers on a cluster.

    python benchmarks/streaming.py [--rows 1000000 5000000] [--family gmm] [--columns 8] [--seed 0] [--no-cluster]

Each figure is of one ``pofx log-prob RUN FOLDER --out FILE`` or ``pofx sample RUN N --out FILE``: seconds of wall
clock, and the most memory that one process of it ever held (VmHWM, libraries included), of the command itself and of
the largest of its workers. ``same`` says whether the file is equal to that of one process, bit for bit. In the line
``killed`` a worker was killed (SIGKILL) while it scored or drew. Prints JSON, one object a line. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PER_FILE, PER_GROUP = 250_000, 125_000  # rows


def write(folder: Path, rows: int, columns: int, seed: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    mix = np.random.default_rng(seed).normal(size=(4, columns, columns))
    for k, start in enumerate(range(0, rows, PER_FILE)):
        rng = np.random.default_rng((seed, k))
        x = rng.normal(size=(min(PER_FILE, rows - start), columns))
        x = np.einsum("nd,nde->ne", x, mix[rng.integers(4, size=len(x))])
        pq.write_table(
            pa.table({f"x{j}": x[:, j] for j in range(columns)}),
            folder / f"part-{k:03}.parquet",
            row_group_size=PER_GROUP,
        )


def peak(pid: int) -> float:
    """Of a process in GB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def workers(root: int) -> list[int]:
    """Ray's workers among the descendants of a process that are at work."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().split(b"\0")[0]
            except (OSError, ValueError):
                continue
    found = []
    for pid, name in names.items():
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root and name.startswith(b"ray::") and b"_answer" in name:
            found.append(pid)
    return found


def run(argv: list[str], kill: bool = False) -> dict[str, object]:
    """One command, watched."""
    started, own, others, killed = time.perf_counter(), 0.0, 0.0, False
    process = subprocess.Popen(
        [sys.executable, "-m", "pofx.cli", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    seen = 0
    while process.poll() is None:
        own = max(own, peak(process.pid))
        at_work = workers(process.pid)
        others = max([others, *map(peak, at_work)])
        seen += bool(at_work)
        if kill and not killed and seen > 10:
            os.kill(at_work[0], signal.SIGKILL)
            killed = True
        time.sleep(0.2)
    printed = b"".join(process.communicate()).decode()
    if process.returncode:
        raise SystemExit(printed)
    found: dict[str, object] = {
        "printed_lines": len(printed.splitlines()),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gb": round(own, 3),
    }
    if "--cluster" in argv:
        found |= {"peak_gb_of_a_worker": round(others, 3)}
    return found | ({"killed": killed} if kill else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--family", default="gmm")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cluster", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write(root / "fit", 20_000, args.columns, args.seed)
        model = str(root / "run")
        run(["fit", str(root / "fit" / "part-000.parquet"), args.family, "--steps", "20", "--out", model, "--quiet"])
        for rows in args.rows:
            write(root / str(rows), rows, args.columns, args.seed)
            score = ["log-prob", model, str(root / str(rows)), "--out"]
            draw = ["sample", model, str(rows), "--out"]
            for what, argv in (("log-prob", score), ("sample", draw)):
                one = root / "one.parquet"
                about = {"what": what, "family": args.family, "rows": rows, "columns": args.columns, "seed": args.seed}
                print(json.dumps(about | {"engine": "one process"} | run([*argv, str(one)])), flush=True)
                for kill in (False, True) if args.cluster else ():
                    other = root / "other.parquet"
                    figures = run([*argv, str(other), "--cluster", "local"], kill)
                    same = one.read_bytes() == other.read_bytes()
                    print(json.dumps(about | {"engine": "cluster: local"} | figures | {"same": same}), flush=True)


if __name__ == "__main__":
    main()
