"""What an error or a note advises exists: options, arguments and commands that messages name are looked up."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import pofx
from pofx.cli import main
from pofx.commands import COMMANDS, elsewhere, options
from pofx.core.learner import Recipe
from pofx.core.registry import families, family

ROOT = Path(pofx.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*(?:\.[a-z][\w-]*)?")


def spelled(node: ast.AST) -> str:
    """The text of a string in the source; what is filled in when it runs is a blank sheet."""
    if isinstance(node, ast.JoinedStr):
        return "".join(spelled(v) if isinstance(v, ast.Constant) else "\0" for v in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def strings(tree: ast.AST) -> Iterator[str]:
    pieces = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    return (spelled(n) for n in ast.walk(tree) if id(n) not in pieces)


def own(option: str) -> bool:
    """Is it an option of some command, or of some family or recipe behind ``fit``?"""
    head, _, field = option.partition(".")
    if field:
        holders = {"--options": [family(n).Config for n in families()], "--recipe": [Recipe]}.get(head, [])
        names = {f.name.replace("_", "-") for holder in holders for f in dataclasses.fields(holder)}
        return field.removeprefix("no-") in names
    return option in {"--help", "--version"} or any(option in options(command) for command in COMMANDS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_options_that_the_source_names_exist(path):
    for text in strings(ast.parse(path.read_text())):
        assert [o for o in OPTION.findall(text) if not own(o)] == [], text
        assert [c for c in re.findall(r"'pofx ([a-z-]+)", text) if c not in COMMANDS] == [], text


def arguments() -> set[str]:
    """The names of all arguments and fields that someone may pass from outside, and of columns in examples."""
    names = {"age"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                names |= {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
            if isinstance(node, ast.ClassDef):
                names |= {
                    b.target.id for b in node.body if isinstance(b, ast.AnnAssign) and isinstance(b.target, ast.Name)
                }
    return names


def test_arguments_that_remedies_name_exist():
    known, found = arguments(), []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and len(node.exc.args) > 1:
                remedy = " ".join(strings(node.exc.args[1]))
                found += [name for name in re.findall(r"\b([a-z_]+)=(?!=)", remedy) if name not in known]
    assert found == []


def test_the_options_of_commands_are_those_that_they_take(capsys):
    """The list by which remedies are judged is that of the command line itself."""
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        printed = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
        taken = {o for o in options(command) if o.removeprefix("--").replace("-", "_") not in POSITIONAL}
        taken -= {"--options", "--recipe"}  # of a family, once it is named
        assert taken <= printed, command


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelt_option_draws_options_of_that_command(command, capsys):
    for option in sorted(options(command) - {f"--{name}" for name in POSITIONAL}):
        assert main([command, "somewhere", "gmm", f"{option}x", "3"]) == 2
        said = capsys.readouterr().err
        assert f"{option}x" in said
        advised = set(OPTION.findall(said)) - {f"{option}x", "--help"}
        assert {o.partition(".")[0] for o in advised} <= options(command), said


POSITIONAL = ("source", "family", "run", "n", "folder", "what", "environment")


def test_an_option_of_another_command_is_said_to_be_one():
    text = "Name it: --text COLUMN."
    assert elsewhere(text, "fit") == text
    assert elsewhere(text, "log-prob") == f"{text} (--text is an option of 'pofx fit', not of 'pofx log-prob'.)"
    assert elsewhere("Give --nothing of ours.", "log-prob") == "Give --nothing of ours."
    assert elsewhere("Lower --recipe.lr.", "fit") == "Lower --recipe.lr."
    assert "'pofx fit'" in elsewhere("Lower --recipe.lr.", "resume")


def table(place: Path, text: str) -> str:
    (place / "new.csv").write_text(text)
    return str(place / "new.csv")


def image(place: Path, size: tuple[int, int]) -> str:
    (place / "new").mkdir()
    Picture.fromarray(np.zeros(size, np.uint8)).save(place / "new" / "a.png")
    return str(place / "new")


def lines(place: Path, entry: dict[str, str]) -> str:
    (place / "new.jsonl").write_text(json.dumps(entry) + "\n")
    return str(place / "new.jsonl")


def numbers(place: Path, array: np.ndarray) -> str:
    np.save(place / "new.npy", array)
    return str(place / "new.npy")


MISTAKES = {
    "a number in another spelling": ("table", lambda p: table(p, "a,b,c\n1.5,many,x\n")),
    "an infinity": ("table", lambda p: table(p, "a,b,c\ninf,3,x\n")),
    "a missing cell": ("table", lambda p: table(p, "a,b,c\n,3,x\n")),
    "another class": ("table", lambda p: table(p, "a,b,c\n1.5,3,q\n")),
    "no such column": ("table", lambda p: table(p, "a,b\n1.5,3\n")),
    "rows of another length": ("table", lambda p: table(p, "a,b,c\n1.5,3\n1.5,3,x\n1.5,3,x,y\n")),
    "images for a table": ("table", lambda p: image(p, (6, 6))),
    "an array for a table": ("table", lambda p: numbers(p, np.zeros((3, 4, 5)))),
    "no file": ("table", lambda p: str(p / "nowhere.csv")),
    "a single image": ("images", lambda p: image(p, (6, 6)) + "/a.png"),
    "a table for images": ("images", lambda p: table(p, "a,b,c\n1.5,3,x\n")),
    "flat images": ("images", lambda p: numbers(p, np.zeros((3, 30), np.uint8))),
    "texts of another key": ("texts", lambda p: lines(p, {"body": "to be"})),
    "another letter": ("texts", lambda p: lines(p, {"text": "to bé"})),
    "images for texts": ("texts", lambda p: image(p, (6, 6))),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind of data."""
    place, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    rows = [
        f"{a:.4f},{b},{c}"
        for a, b, c in zip(rng.normal(size=60), rng.integers(9, size=60), rng.choice(list("xyz"), 60), strict=True)
    ]
    (place / "t.csv").write_text("\n".join(["a,b,c", *rows]) + "\n")
    (place / "p").mkdir()
    for k in range(12):
        Picture.fromarray(rng.integers(256, size=(6, 5), dtype=np.uint8)).save(place / "p" / f"{k}.png")
    (place / "t.jsonl").write_text("".join(json.dumps({"text": "to be or not"}) + "\n" for _ in range(30)))
    tiny = ["--options.width", "8", "--options.layers", "1", "--options.n-heads", "1", "--options.block", "16"]
    for name, source, how in (
        ("table", "t.csv", ["independent"]),
        ("images", "p", ["independent"]),
        ("texts", "t.jsonl", ["gpt", "--steps", "1", *tiny]),
    ):
        assert main(["fit", str(place / source), *how, "--out", str(place / name), "--quiet"]) == 0
    return place


@pytest.mark.parametrize("command", ["log-prob", "sample --complete"])
@pytest.mark.parametrize("name", MISTAKES)
def test_new_rows_draw_no_advice_that_cannot_be_followed(runs, tmp_path, capsys, name, command):
    kind, make = MISTAKES[name]
    command, *option = command.split()
    capsys.readouterr()
    assert main([command, str(runs / kind), *option, make(tmp_path)]) not in (0, 1)
    said = " ".join(capsys.readouterr().err.split())
    for advised in set(OPTION.findall(said)) - options(command):
        assert f"{advised} is an option of 'pofx " in said, said
