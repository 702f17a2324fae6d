"""Every example of README, CONTRIBUTING and docs/ runs, and prints what stands below it.

A page's blocks run in order, in one namespace and in a folder that holds small files by the names that the pages use.
Of a shell block the lines that call pofx run, in this process; other lines must call a tool that is known here. A block
after ``<!-- not run: WHY -->`` is read but not run. Budgets in seconds are cut: what an example shows has to hold after
a step, too; those in steps are kept.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import soundfile
from docutils.utils.math.latex2mathml import tex2mathml
from PIL import Image

from pofx.cli import COMMANDS, main
from pofx.core import registry
from pofx.core.registry import BUILT_IN

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import generate  # noqa: E402, docs/ is no package
import results  # noqa: E402

WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PAGES = {str(p.relative_to(ROOT)): p.read_text() for p in WRITTEN if p.parent.name != "families"}
FAMILIES = {name: generate.family_page(name, (DOCS / "families" / f"{name}.md").read_text()) for name in BUILT_IN}
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n+)?^```(?P<kind>python|sh|output)\n(?P<code>.*?)^```", re.S | re.M
)
OTHER_TOOLS = {"make", "pip", "python", "git", "ray", "torchrun", "tensorboard"}
WHY = {"network", "cluster", "set-up", "long"}
BUILT_IN_SETS = {"two-moons", "digits", "ising"}
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


# ---------------------------------------------------------------------------------- the files of examples


def materials(place: Path) -> None:
    """Small files of every kind, by the names that the pages use."""
    rng = np.random.default_rng(0)
    for name, n in (("your.csv", 300), ("new.csv", 20)):
        age = rng.integers(18, 90, n)
        income = np.exp(rng.normal(7, 0.5, n)) + 20 * age
        sex = rng.choice(["f", "m"], n)
        buys = np.where(rng.random(n) < income / 6000, "yes", "no")
        height = [f"{h:.4f}" if rng.random() > 0.1 else "" for h in rng.normal(170, 10, n)]
        rows = zip(age, (f"{i:.4f}" for i in income), sex, height, buys, strict=True)
        (place / name).write_text(
            "age,income,sex,height,buys\n" + "\n".join(",".join(map(str, r)) for r in rows) + "\n"
        )
    table = pyarrow.csv.read_csv(place / "your.csv")
    pyarrow.parquet.write_table(table, place / "your.parquet")
    for k in range(2):
        (place / "parts").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, place / "parts" / f"{k}.parquet")
    words = ["once", "upon", "a", "time", "there", "was", "a", "model", "that", "knew", "how", "likely", "it", "was"]
    for name, n in (("book.txt", 2000), ("new.txt", 200)):
        (place / name).write_text(" ".join(rng.choice(words, n)) + "\n")
    for folder in ("photos/cats", "photos/dogs", "new-photos"):
        (place / folder).mkdir(parents=True)
        for k in range(12):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / folder / f"{k}.png")
    (place / "recordings").mkdir()
    for k in range(6):
        wave = 0.3 * np.sin(np.arange(800) * (0.05 + 0.01 * k)) + 0.01 * rng.normal(size=800)
        soundfile.write(place / "recordings" / f"{k}.wav", wave, 8000, subtype="PCM_16")
    np.savez(place / "rolls.npz", roll=rng.integers(0, 256, (240, 11), dtype=np.uint8), offsets=np.arange(0, 241, 20))
    np.save(place / "images.npy", rng.integers(0, 256, (60, 8, 8), dtype=np.uint8))
    steps = [f"{k},{t},{v:.4f}" for k in range(15) for t, v in enumerate(rng.normal(size=10).cumsum())]
    (place / "walks.csv").write_text("walk,t,value\n" + "\n".join(steps) + "\n")


# --------------------------------------------------------------------------------------------- running


def short(argv: list[str]) -> list[str]:
    """A command with next to no budget: one step of a fit, few families and rows of a comparison."""
    command, seconds = argv[0], "--seconds" in argv
    if seconds:
        at = argv.index("--seconds")
        argv = [*argv[:at], *(["--seconds", "0.2"] if command == "compare" else ["--steps", "2"]), *argv[at + 2 :]]
    elif command == "fit" and not {"--steps", "--epochs", "--help"} & {*argv}:
        argv = [*argv, "--steps", "2"]
    if command == "fit" and argv[1] in BUILT_IN_SETS:
        argv = [*argv, "--max-rows", "300"]
    if command == "compare":
        argv = [*argv, "--samples", "100", "--max-test", "50"]
        argv += [] if "--families" in argv else ["--families", "independent"]
    return argv


def shell(code: str) -> None:
    """The lines of a block that call pofx."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        tool = Path(words[0]).name
        assert tool in {"pofx", *OTHER_TOOLS}, f"{line!r} calls a tool that this test does not know"
        if tool == "pofx":
            assert main(short(words[1:])) == 0, line


def run(page: str) -> None:
    """All blocks of a page, in order; what is printed must be what stands in the block of output that follows."""
    names, printed = sys.modules["page"].__dict__, ""
    for match in BLOCK.finditer(page):
        kind, code, why = match["kind"], match["code"], match["why"]
        if why is not None:
            assert why.split(":")[0] in WHY, f"'{why}' is no reason that this test knows"
            continue
        if kind == "output":
            assert doctest.OutputChecker().check_output(code, printed, SAME), f"said:\n{code}\nprinted:\n{printed}"
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if kind == "sh":
                shell(code)
            else:
                code = re.sub(r"(pofx\.compare\(.*)seconds=\d+", r"\1seconds=0.2, max_test=20", code)
                code = re.sub(r"\bseconds=\d+(?!\.)\b", "seconds=0.2", code)
                line = page[: match.start("code")].count("\n")
                exec(compile("\n" * line + code, "page", "exec", dont_inherit=True), names)
        printed = out.getvalue()


@pytest.fixture
def place(tmp_path, monkeypatch):
    materials(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setitem(sys.modules, "page", ModuleType("page"))  # where its classes say that they are from
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))  # a page's family is its own
    return tmp_path


@pytest.mark.parametrize("name", [n for n, text in PAGES.items() if BLOCK.search(text)])
def test_examples_run(name, place):
    run(PAGES[name])


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_command_on_a_page_of_a_family_runs(name, place):
    run(FAMILIES[name])


# ------------------------------------------------------------------------------------ what pages say


def test_every_family_has_its_mathematics():
    for name in BUILT_IN:
        maths = (DOCS / "families" / f"{name}.md").read_text()
        assert "$" in maths, name
        assert not maths.startswith("#"), "the heading is generated"


def test_every_formula_can_be_drawn():
    """By what draws them, which knows a part of LaTeX."""
    formula = re.compile(r"\$\$(.+?)\$\$|(?<!\$)\$([^$\n]+?)\$(?!\$)", re.S)
    for page in sorted(DOCS.rglob("*.md")):
        for whole, inside in formula.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
            assert tex2mathml((whole or inside).strip()), page


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_is_explained(name):
    rows = re.findall(r"^\| `(\w+)` \| `[^|]*` \| [^|]* \| (.*) \|$", FAMILIES[name], re.M)
    assert rows
    assert [option for option, meaning in rows if not meaning] == []


def test_every_family_has_a_small_figure_with_a_caption():
    pictures = {name: DOCS / "_static" / "families" / f"{name}.png" for name in BUILT_IN}
    assert [n for n, p in pictures.items() if not p.exists() or n not in generate.CAPTIONS] == []
    sizes = [p.stat().st_size for p in pictures.values()]
    assert max(sizes) < 40_000
    assert sum(sizes) < 1_000_000


def test_figures_are_those_of_the_result_files():
    page = results.page().replace("\N{NO-BREAK SPACE}", " ")
    files = [*(ROOT / "benchmarks" / "results").glob("*.json")]
    assert [f.stem for f in files if f"## {f.stem}\n" not in page] == []
    for record in (ROOT / "benchmarks" / "results" / "records").glob("*.json"):
        assert json.loads(record.read_text())["test"]["text"] in page, record


def test_every_command_named_exists():
    command = r"(?:^|`)(?:\.venv/bin/)?pofx ([a-z][a-z-]*)"
    named = {c for text in PAGES.values() for c in re.findall(command, text, re.M)}
    assert named - {*COMMANDS} == set()


def test_every_target_of_make_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {t for text in PAGES.values() for t in re.findall(r"(?:^|`)make ([a-z]+)", text, re.M)}
    assert named - targets == set()


def test_links_between_pages_lead_somewhere():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#:]+\.(?:md|png|cff|py))(?:#[^)]*)?\)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name} -> {target}"
