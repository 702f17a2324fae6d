"""What data may do to a terminal: nothing. Control characters are spelt out, and a path is no markup."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from pofx.cli import main
from pofx.commands import shared
from pofx.commands.compare import _RANKS, _column
from pofx.commands.shared import _State
from pofx.commands.terminal import Column, fold
from pofx.core.spelling import visible

CLIPBOARD = "\x1b]52;c;cm0=\x07"  # OSC 52 writes the clipboard
COLUMNS = [_column(name) for name in _RANKS if name != "accuracy"]  # of the recorded comparison


@pytest.fixture(autouse=True)
def _width_is_asked_for():
    """What COLUMNS said when the consoles were made (xdist sets it) does not count."""
    with pytest.MonkeyPatch.context() as patch:
        for console in (shared.out, shared.err):
            patch.setattr(console, "_width", None)
        yield


@pytest.fixture
def rows(tmp_path):
    """A table whose names and values would steer a screen."""
    path = tmp_path / "evil\x1b[2J.csv"
    lines = [f"{i % 13},\x9b31m{'xy'[i % 2]}{CLIPBOARD}" for i in range(60)]
    path.write_text("\n".join(["\x1b[1mcol\x1b]0;TITLE\x07,b", *lines]) + "\n")
    return str(path)


def steering(text):
    return [c for c in text if c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160)]


def test_names_and_values_are_spelt_out(rows, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["data", rows]) == 0
    assert main(["fit", rows, "gmm", "--steps", "3", "--out", run]) == 0
    other = tmp_path / "other.csv"
    other.write_text("\n".join(Path(rows).read_text().split("\n")[:3]) + f"\n1,new{CLIPBOARD}\n")
    assert main(["log-prob", run, str(other)]) == 3
    assert main(["data", f"no{CLIPBOARD}where.csv"]) == 3
    assert main(["compare", rows, "--families", "independent", "--seconds", "1", "--out", str(tmp_path / "c")]) == 0
    told = capsys.readouterr()
    assert steering(told.out + told.err) == []
    assert "\\x1b]52;c;cm0=" in "".join(told.out.split())  # over several lines of a cell
    assert "\\x1b]52;c;cm0=\\x07" in told.err


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_samples_steer_no_screen_but_stay_as_they_are_in_a_pipe(rows, tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    assert main(["fit", rows, "histogram", "--out", run, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["sample", run, "3"]) == 0
    piped = capsys.readouterr().out
    assert CLIPBOARD in piped
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["sample", run, "3"]) == 0
    assert screen.getvalue() == visible(piped)


@pytest.mark.parametrize("name", ["run[v2]", "run[/x]", "[bold]", "run[red]x[/red]"])
def test_a_path_is_no_markup(rows, tmp_path, capsys, name):
    out = str(tmp_path / name)
    assert main(["fit", rows, "independent", "--out", out, "--quiet"]) == 0
    assert main(["report", out, "--quiet"]) == 0
    told = capsys.readouterr().out.replace("\n", "")  # a long path may break
    assert told.count(name) == 2


def test_every_word_goes_through_the_terminal():
    """Both consoles are of the kind that spells out."""
    assert isinstance(shared.out, shared.Terminal)
    assert isinstance(shared.err, shared.Terminal)
    line = shared.Terminal().render_str("[b]\x1b[2J\u202e[/b]")
    assert line.plain == "[b]\\x1b[2J\\u202e[/b]"


# -- widths -------------------------------------------------------------------------------------------------------

WIDTHS = (60, 80, 200)
PHRASE = re.compile(r"(?:[=≥≤≈] )?[-−]?[\d∞][\d.,]*[kMGT%]?(?: ± [\d.]+)?(?: nats| bits/\w+| ms| s\b| MiB)?")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A table, a run and a comparison of it, and a run over texts."""
    place = tmp_path_factory.mktemp("recorded")
    rng = np.random.default_rng(0)
    rows = [
        f"{x:.4f},{k},{c},{'ab'[int(x > -500)]}"
        for x, k, c in zip(
            rng.normal(-500, 100, 200), rng.integers(0, 60, 200), rng.choice(["red", "blue or grey"], 200), strict=True
        )
    ]
    (place / "t.csv").write_text("\n".join(["height,count of things,colour,label", *rows]) + "\n")
    (place / "t.txt").write_text("\n".join(["to be or not to be"] * 40) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["fit", "t.csv", "gmm", "--steps", "5", "--out", "run", "--quiet"]) == 0
        tiny = ["--options.width", "8", "--options.layers", "1", "--options.n-heads", "1", "--options.block", "16"]
        words = ["fit", "t.txt", "gpt", "--steps", "1", *tiny, "--separator", "\\n", "--out", "words", "--quiet"]
        small = ["--families", "gmm", "--samples", "40", "--max-test", "20", "--seconds", "0.2"]
        assert main(["compare", "t.csv", *small, "--out", "all", "--quiet"]) == 0
        assert main(words) == 0
    return place


def shown(argv):
    """Of a command; a comparison that is recorded is shown as it was at its end."""
    if argv != ["compare"]:
        assert main(argv) == 0
        return
    from pofx.commands.compare import Compare
    from pofx.commands.compare import show as show_comparison
    from pofx.evaluate.compare import read_comparison

    show_comparison(read_comparison("all"), Path("all/report.html"), Compare(source="t.csv"))


COMMANDS = {
    "data": ["data", "t.csv"],
    "families": ["families"],
    "fit": ["fit", "t.csv", "gmm", "--steps", "3", "--out", "again", "--overwrite"],
    "log-prob": ["log-prob", "run"],
    "log-prob of texts": ["log-prob", "words", "--show"],
    "encode": ["encode", "run"],
    "compare": ["compare"],
    "report": ["report", "run"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_lines_fit_and_numbers_stay_whole(name, recorded, capsys, monkeypatch):
    """What a pipe gets in whole lines, a terminal gets in lines that fit, each number with its symbol and error."""
    monkeypatch.chdir(recorded)
    monkeypatch.setenv("TERM", "xterm")
    capsys.readouterr()
    shown(COMMANDS[name])
    piped = capsys.readouterr().out
    assert steering(piped) == []
    assert not re.search(r"[…│╭─━]", piped)
    assert not re.search("\\S\u00a0", piped)
    for width in WIDTHS:
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, Screen())
        monkeypatch.setenv("COLUMNS", str(width))
        shown(COMMANDS[name])
        screen, told = sys.stdout.getvalue(), sys.stderr.getvalue()
        monkeypatch.undo()
        monkeypatch.chdir(recorded)
        monkeypatch.setenv("TERM", "xterm")
        lines = screen.split("\n") + re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", told).split("\n")
        assert max(map(len, lines)) <= width
        if name != "families":  # whose symbols stand alone
            assert not [line for line in lines if re.search(r"[=≥≤≈±]$|^\s*±", line.rstrip())]
        if name != "fit":  # whose seconds differ
            assert set(PHRASE.findall(screen)) - set(PHRASE.findall(piped)) <= set(), width


def test_a_row_is_a_line_in_a_pipe(recorded, capsys, monkeypatch):
    """Of all columns, two spaces between them and none within: what splits lines there gets every cell."""
    monkeypatch.chdir(recorded)
    monkeypatch.setenv("COLUMNS", "40")
    capsys.readouterr()
    shown(["compare"])
    lines = capsys.readouterr().out.split("\n")
    names = [column.name for column in COLUMNS]
    assert re.split(r" {2,}", lines[0]) == names
    table = [re.split(r" {2,}", line.strip()) for line in lines[1:5]]
    assert [row[0] for row in table if len(row) == len(names)] == [row[0] for row in table]
    assert {row[0] for row in table} == {"gmm", "independent", "gaussian", "gzip"}


def test_columns_that_do_not_fit_are_named(recorded, monkeypatch):
    """In the order of what matters least; a narrower screen has no column that a wider one lacks."""
    monkeypatch.chdir(recorded)
    monkeypatch.setenv("TERM", "xterm")
    before: set[str] = {column.name for column in COLUMNS}
    for width in (200, 120, 100, 80, 60, 40):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", screen := Screen())
        shown(["compare"])
        text = " ".join(screen.getvalue().split())
        left = re.search(r"· no room here for (.*?): the report and --json have them", text)
        gone = set(left[1].split(", ")) if left else set()
        kept = {column.name for column in COLUMNS} - gone
        assert kept <= before
        assert {"family", "log p(x), nats"} <= kept
        before = kept
    assert before == {"family", "log p(x), nats"} | ({"samples/s"} & before)


def test_what_has_no_number_says_why_below_the_table(recorded, monkeypatch):
    """A sentence in a cell would take the room of every other column."""
    monkeypatch.chdir(recorded)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    shown(["compare"])
    heading, *lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).split("\n")
    assert re.split(r" {2,}", heading)[:2] == ["family", "log p(x), nats"]
    assert "samples/s" in heading
    assert re.split(r" {2,}", next(line for line in lines if line.startswith("gzip ")))[1] == "—"
    assert "gzip: — (gzip codes exact values, and columns with a density have no finite code.)" in " ".join(
        line.strip() for line in lines
    )


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        (
            "log p(x) on 40 rows: = -3.21 ± 0.04 nats (mc 0.001)",
            36,
            ["log p(x) on 40 rows:", "= -3.21 ± 0.04 nats (mc 0.001)"],
        ),
        ("so ≥ -1.5 ± 0.1 nats", 16, ["so", "≥ -1.5 ± 0.1 nats"]),
        ("in 1.33M samples/s or so", 20, ["in 1.33M samples/s", "or so"]),
        ("  a: one two three", 12, ["  a: one two", "    three"]),
        ("· a note of some length", 12, ["· a note of", "  some", "  length"]),
        ("a/very/long/path/that/stands/whole is it", 12, ["a/very/long/path/that/stands/whole", "is it"]),
        ("= −∞ nats and more", 12, ["= −∞ nats", "and more"]),
        ("", 12, [""]),
    ],
)
def test_folding(text, width, lines):
    assert fold(text, width) == lines


def test_a_screen_too_narrow_for_a_table_gets_a_stack(monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    columns = [Column("name"), Column("value", right=True), Column("rest", 1)]
    shared.Terminal(file=screen).table(columns, [("the first of two rows", "= -3.21 ± 0.04", "x")], "--json has it")
    assert screen.getvalue().split("\n") == [
        "the first of two rows",
        "  value: = -3.21 ± 0.04",
        "· no room here for rest:",
        "  --json has it",
        "",
    ]


def test_progress_shows_whole_numbers_or_none(monkeypatch):
    task = Progress(disable=True, console=shared.Terminal(file=io.StringIO()))
    fields = {"stage": "prior", "valid": "valid = -12.137 nats", "step": "step 1234567"}
    number = task.add_task("[3/24] gated-pixelcnn: sample quality", **fields)
    for room in range(1, 90):
        text = _State(room).render(task.tasks[number]).plain
        assert len(text) <= max(room, 37)
        assert "-12.137 nats" in text or "12" not in text
        assert "step 1234567" in text or "step" not in text
