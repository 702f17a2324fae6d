"""Imports run one way: core <- spaces <- nn <- codecs <- families; the rest meets families by the registry."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pofx

ROOT = Path(pofx.__file__).parent
TOP = {"__main__", "cli", "commands", "web", "interop"}
MAY = {
    "core": set(),
    "spaces": {"core"},
    "information": {"core", "spaces"},
    "cluster": {"core"},
    "nn": {"core", "spaces"},
    "codecs": {"core", "spaces", "nn", "transforms"},
    "transforms": {"core", "spaces", "nn"},
    "decode": {"core", "nn"},
    "paths": {"core", "nn", "transforms"},
    "mcmc": {"core", "nn", "transforms"},
    "families": {"core", "spaces", "nn", "codecs", "transforms", "paths", "mcmc", "decode"},
    "data": {"core", "spaces"},
    "train": {"core", "spaces", "data"},
    "evaluate": {"core", "spaces", "data", "train", "information", "cluster"},
    "uses": {"core", "spaces", "data", "train", "evaluate"},
    "report": {"core", "spaces", "data", "train", "evaluate"},
    "testing": {"core", "spaces", "mcmc", "data", "train", "evaluate"},
}


NAMES = {p: ".".join(("pofx", *p.relative_to(ROOT).with_suffix("").parts)) for p in sorted(ROOT.rglob("*.py"))}
FILES = {name.removesuffix(".__init__"): p for p, name in NAMES.items() if name != "pofx.__init__"}


def imported(path):
    """The files of pofx that a file imports, at the top or inside functions, for types alone too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            while name and name not in FILES:
                name = name.rpartition(".")[0]
            if name:
                yield name


@pytest.mark.parametrize("path", FILES.values(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if package in TOP or package == "__init__":
        return
    wrong = {name.split(".")[1] for name in imported(path)} - MAY[package] - {package}
    assert not wrong, f"{path.relative_to(ROOT)} must not import {wrong}"


def test_imports_have_no_circle():
    """Files can be put in an order in which each imports only those before it."""
    order = TopologicalSorter({name: set(imported(path)) - {name} for name, path in FILES.items()})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


HEAVY = {"torch._dynamo", "torch._inductor", "sympy", "lightning_fabric", "sklearn", "scipy", "matplotlib", "ray"}


def test_first_answers_wait_for_nothing_that_they_do_not_use(tmp_path):
    """Looking at a table and fitting a mixture import no compiler, no plots: each takes as long as all the rest."""
    table, run = tmp_path / "small.csv", tmp_path / "run"
    table.write_text("a,kind\n" + "".join(f"{i * i % 97 / 10},{'xy'[i % 3 % 2]}\n" for i in range(200)))
    words = [["data", str(table)], ["fit", str(table), "gmm", "--steps", "2", "--out", str(run)]]
    code = f"import sys; from pofx.cli import main; assert not any(map(main, {words})); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split("\n")[-2].split())
