"""How long after the Enter key the first output and the prompt come: ``pofx data`` and ``pofx fit ... gmm``.

usage: python benchmarks/first_output.py [--quick]

Fresh processes on a table of 500 rows, a pipe at the other end, warm file cache, in turn with ``import torch`` and an
import of torch and pandas (which pyarrow imports where it is installed): what the same machine takes without pofx.
Medians; one JSON object a line, kept in benchmarks/results/first_output.json.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from timing import Results, middle

REPEATS = 3 if "--quick" in sys.argv else 11
# compiled modules are kept, as wherever pofx is installed
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def seconds(*arguments: str) -> tuple[float, float]:
    """From the start of a Python to its first byte of output, and to its end."""
    started = time.perf_counter()
    command, quiet = [sys.executable, *arguments], subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - started
        process.stdout.read()
    assert process.returncode == 0, arguments
    return first, time.perf_counter() - started


def main() -> None:
    results = Results("--quick" in sys.argv, repeats=REPEATS)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        table = Path(place, "small.csv")
        rows = zip(rng.normal(size=(500, 4)), rng.choice([*"xyz"], 500), strict=True)
        table.write_text("a,b,c,d,kind\n" + "".join(",".join(f"{v:.4f}" for v in x) + f",{k}\n" for x, k in rows))
        run = ["fit", str(table), "gmm", "--out", f"{place}/run", "--overwrite"]
        commands = {
            "import torch": ["-c", "import torch; print(flush=True)"],
            "import torch, pandas": ["-c", "import torch, pandas; print(flush=True)"],
            "pofx data": ["-m", "pofx.cli", "data", str(table)],
            "pofx fit gmm": ["-m", "pofx.cli", *run],
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(REPEATS + 1):
            for name, command in commands.items():
                took = seconds(*command)
                if turn > 0:
                    times[name].append(took)
    floor = middle([first for first, _ in times["import torch"]])[0]
    for name, taken in times.items():
        first, spread = middle([t for t, _ in taken])
        end = middle([t for _, t in taken])[0]
        results.emit(what=name, first_output=first, spread=spread, end=end, beyond_torch=first - floor)
    results.save()


main()
