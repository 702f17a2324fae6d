"""What data may do to a terminal: nothing. Control characters are spelt out, and a path is no markup."""

import io
import sys
from pathlib import Path

import pytest

from pofx.cli import main
from pofx.commands import shared
from pofx.core.spelling import visible

CLIPBOARD = "\x1b]52;c;cm0=\x07"  # OSC 52 writes the clipboard


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
