"""The README tells the same story as the code: its tree, its commands, its example, its symbols."""

import re
from pathlib import Path

import pytest

import pofx
from pofx.cli import COMMANDS
from pofx.core.registry import BUILT_IN, family

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_source_file_is_in_the_tree():
    tree = README[README.index("src/pofx/\n") :]
    tree = tree[: tree.index("```")]
    missing = [
        str(p.relative_to(ROOT))
        for p in (ROOT / "src" / "pofx").rglob("*.py")
        if p.stem != "__init__" and not re.search(rf"\b{p.stem}\b", tree)
    ]
    assert not missing


def test_every_command_of_the_readme_exists():
    shell = "".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    used = set(re.findall(r"^(?:\S*/)?pofx ([a-z][a-z-]*)", shell, re.M))
    assert used
    assert used - set(COMMANDS) == set()


def test_every_family_is_named():
    assert [name for name in BUILT_IN if name not in README] == []


def test_the_table_of_kinds_agrees_with_the_claims():
    """A family named in a row of the table of kinds claims that kind."""
    for line in README.splitlines():
        row = re.match(r"\| `.` \| `(\w+)`.*\| (.*) \|", line)
        for name in BUILT_IN if row else ():
            if re.search(rf"(?<![\w-]){name}(?![\w-])", row[2]):
                assert row[1] in {k.__name__ for k in family(name).claims}, (name, row[1])


@pytest.mark.parametrize("name", sorted(pofx._PUBLIC))
def test_public_names_exist(name):
    assert getattr(pofx, name) is not None


def test_the_python_example_runs(tmp_path, monkeypatch):
    block = re.search(r"```python\n(import pofx\n.*?)```", README, re.S)[1]
    monkeypatch.chdir(tmp_path)
    exec(block.replace("seconds=20", "seconds=0.5"), {})


def test_figures_are_those_of_the_result_files():
    """Every number in the README's table of figures stands in a file of benchmarks/results."""
    table = README[README.index("## Figures") : README.index("## Where things are")]
    results = "".join(p.read_text() for p in (ROOT / "benchmarks" / "results").rglob("*.json"))
    for number in re.findall(r"\*\*-?(\d+\.\d+)\*\*", table):
        assert number in results, number
