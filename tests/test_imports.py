"""Imports run one way: core <- nn, transforms <- paths, mcmc <- families; the rest meets families by registry."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pofx

ROOT = Path(pofx.__file__).parent
TOP = {"__main__", "cli", "commands", "web", "interop"}
MAY = {
    "core": set(),
    "information": {"core"},
    "cluster": {"core"},
    "nn": {"core"},
    "decode": {"core", "nn"},
    "transforms": {"core", "nn"},
    "paths": {"core", "nn", "transforms"},
    "mcmc": {"core", "nn", "transforms"},
    "families": {"core", "nn", "transforms", "paths", "mcmc", "decode"},
    "data": {"core"},
    "train": {"core", "data"},
    "evaluate": {"core", "data", "train", "information", "cluster"},
    "uses": {"core", "data", "train", "evaluate"},
    "report": {"core", "data", "train", "evaluate"},
    "testing": {"core", "data", "train", "evaluate"},
}


def imported(path):
    """The pofx packages that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "pofx" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if package in TOP or package == "__init__":
        return
    wrong = set(imported(path)) - MAY[package] - {package}
    assert not wrong, f"{path.relative_to(ROOT)} must not import {wrong}"


HEAVY = {"torch._dynamo", "torch._inductor", "sympy", "lightning_fabric", "sklearn", "scipy", "matplotlib", "ray"}


def test_first_answers_wait_for_nothing_that_they_do_not_use(tmp_path):
    """Looking at a table and fitting a mixture import no compiler, no plots: each takes as long as all the rest."""
    table, run = tmp_path / "small.csv", tmp_path / "run"
    table.write_text("a,kind\n" + "".join(f"{i * i % 97 / 10},{'xy'[i % 3 % 2]}\n" for i in range(200)))
    words = [["data", str(table)], ["fit", str(table), "gmm", "--steps", "2", "--out", str(run)]]
    code = f"import sys; from pofx.cli import main; assert not any(map(main, {words})); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split("\n")[-2].split())
