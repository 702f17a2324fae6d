"""What starting costs: ``import pofx``, torch beside it, and ``pofx --help``. Prints one JSON object a line and writes
all to benchmarks/results/imports.json.

usage: python benchmarks/imports.py [--quick]

Fresh processes, warm file cache, medians; memory is the peak of resident pages (Linux).
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPEATS = 3 if "--quick" in sys.argv else 11
MEASURE = """
import time; t = time.perf_counter()
import {module}
print(time.perf_counter() - t)
line = next((l for l in open('/proc/self/status') if l.startswith('VmHWM')), 'VmHWM 0')
print(int(line.split()[1]) / 1024)
import sys; print(int('torch' in sys.modules))
"""


def importing(module: str) -> dict[str, float]:
    seconds, memory, torch = [], 0.0, 0
    for _ in range(REPEATS + 1):
        done = subprocess.run([sys.executable, "-c", MEASURE.format(module=module)], capture_output=True, text=True)
        first, second, third = done.stdout.split()
        seconds.append(float(first))
        memory, torch = float(second), int(third)
    return {"seconds": statistics.median(seconds[1:]), "peak_mib": memory, "imports_torch": torch}


def command(*arguments: str) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pofx.cli", *arguments], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


lines = [{"module": module} | importing(module) for module in ("pofx", "torch", "pofx.core.model")]
lines.append({"command": "pofx --help", "seconds": command("--help")})
lines = [{"bench": "imports", "repeats": REPEATS} | line for line in lines]
for line in lines:
    print(json.dumps(line))
(Path(__file__).parent / "results" / "imports.json").write_text(json.dumps(lines, indent=1) + "\n")
