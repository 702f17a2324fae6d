"""README and CONTRIBUTING tell the same story as the code: tree, families, symbols (examples: ``test_docs``)."""

import re
from pathlib import Path

import pytest

import pofx
from pofx.core.registry import BUILT_IN, family

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_source_file_is_in_the_tree():
    tree = CONTRIBUTING[CONTRIBUTING.index("src/pofx/\n") :]
    tree = tree[: tree.index("```")]
    missing = [
        str(p.relative_to(ROOT))
        for p in (ROOT / "src" / "pofx").rglob("*.py")
        if p.stem not in ("__init__", "__main__") and not re.search(rf"\b{p.stem}\b", tree)
    ]
    assert not missing


def test_every_family_is_named():
    assert [name for name in BUILT_IN if name not in README] == []


def test_the_table_of_kinds_agrees_with_the_claims():
    """A family named in a row of the table of kinds claims that kind."""
    for line in README.splitlines():
        row = re.match(r"\| `.` \| `(\w+)`.*\| (.*) \|", line)
        for name in BUILT_IN if row else ():
            if re.search(rf"(?<![\w-]){name}(?![\w-])", row[2]):
                assert row[1] in {k.__name__ for k in family(name).claims()}, (name, row[1])


@pytest.mark.parametrize("name", sorted(pofx._PUBLIC))
def test_public_names_exist(name):
    assert getattr(pofx, name) is not None


def test_the_guide_to_conditions_has_every_line_for_a_pair():
    lines = re.findall(r"^\| (.*? \\\| .*?|both .*?) \| (`pofx fit .*?`)", README, re.M)
    assert len(lines) >= 10
    guide = (ROOT / "docs" / "howto" / "conditional.md").read_text()
    assert [pair for pair, line in lines if f"| {pair} | {line} |" not in guide] == []
