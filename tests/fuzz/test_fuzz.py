"""A short run of the fuzzers, each in a process of its own, and their sandbox."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import readers
import sandbox

HERE = Path(__file__).parent
FORMATS = [*readers.FORMATS]


def findings(only: list[str], count: int) -> str:
    command = [sys.executable, str(HERE / "fuzz.py"), "--only", ",".join(only), "--count", str(count), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("part", range(4))
def test_damaged_files_are_named_or_read(part):
    found = findings(FORMATS[part::4], 10)
    assert not found, found


@pytest.mark.parametrize("family", ["gmm", "vae"])
def test_damaged_runs_are_named_or_right(family):
    found = findings([family], 16)
    assert not found, found


def test_the_sandbox_tells_what_happened():
    def hang():
        while True:
            pass

    def eat():
        return str(len(bytearray(3 << 30)))

    done = sandbox.trial(lambda: "done")
    assert (done.kind, done.text) == ("right", "done")
    assert sandbox.trial(lambda: os.kill(os.getpid(), signal.SIGKILL)).text == "SIGKILL"
    assert sandbox.trial(hang, seconds=0.2).kind == "hang"
    assert sandbox.trial(eat).kind == "memory"
    assert sandbox.trial(lambda: str(1 / 0)).kind == "traceback"
