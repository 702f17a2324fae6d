"""What pofx samples, pofx reads: every kind of data from the command line, with no option but the run's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import torch
from PIL import Image as Picture

from pofx.cli import main
from pofx.core.conditional import Conditional

soundfile = pytest.importorskip("soundfile")

TINY = ["--steps", "2", "--quiet", "--json", "--options.width", "16", "--options.layers", "1"]
GPT = ["gpt", *TINY, "--options.n-heads", "1", "--options.block", "32"]
RNN = ["rnn", *TINY, "--options.block", "32"]


def documents(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["to", "be\u2028", "or\x85", "not", "ça\x0c", "☃"]
    texts = [" ".join(rng.choice(words, rng.integers(2, 5))) for _ in range(60)]
    lines = (json.dumps({"id": i, "body": t}, ensure_ascii=False) + "\n" for i, t in enumerate(texts))
    (folder / "d.jsonl").write_text("".join(lines))
    return [str(folder / "d.jsonl"), *GPT, "--text", "body"]


def lines(folder: Path) -> list[str]:
    (folder / "d.txt").write_text("\n".join(f"line {i} of\u2028many" for i in range(60)))
    return [str(folder / "d.txt"), *GPT, "--separator", "\\n", "--kind", "text"]


def book(folder: Path) -> list[str]:
    (folder / "d.txt").write_text("".join(f"line {i}\n" for i in range(1500)))
    return [str(folder / "d.txt"), *GPT]


def diary(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    rows = [f"p{i // 5},{i % 5},{rng.normal():.3f},{rng.choice(['good', 'bad'])}\n" for i in rng.permutation(150)]
    (folder / "d.csv").write_text("person,visit,level,mood\n" + "".join(rows))
    return [str(folder / "d.csv"), *RNN, "--sequence", "person", "--order", "visit"]


def series(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    hours = np.datetime64("2020-01-01T00", "s") + 3600 * np.arange(900)
    rows = (f"{hour},{x:.4f}\n" for hour, x in zip(hours, rng.normal(size=900), strict=True))
    (folder / "d.csv").write_text("hour,v\n" + "".join(rows))
    return [str(folder / "d.csv"), *RNN, "--sequence", "rows"]


def strokes(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=rng.normal(size=(300, 2)), offsets=np.arange(0, 301, 10))
    return [str(folder / "d.npz"), *RNN]


def sounds(folder: Path) -> list[str]:
    (folder / "d").mkdir()
    for i in range(20):
        soundfile.write(str(folder / "d" / f"{i}.wav"), np.sin(np.arange(60 + i) / (3 + i)) / 2, 8000)
    return [str(folder / "d"), *RNN, "--law", "mu"]


def pictures(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    (folder / "d").mkdir()
    for i in range(20):
        Picture.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(folder / "d" / f"{i}.png")
    return [str(folder / "d"), "independent", "--quiet", "--json", "--resize", "4"]


def held(place: Path) -> int:
    """How many of six samples a file tells: a text or a sequence may have no length at all."""
    if place.suffix in (".txt", ".jsonl"):
        texts = [json.loads(line) for line in place.with_suffix(".jsonl").read_text().split("\n") if line]
        return sum(any(str(v).strip() for v in entry.values()) for entry in texts)
    if place.suffix in (".csv", ".tsv"):
        tab = pyarrow.csv.ParseOptions(delimiter="\t" if place.suffix == ".tsv" else ",")
        return len(pyarrow.csv.read_csv(place, parse_options=tab).column(0).unique())
    return held(place.with_suffix(".csv")) if place.suffix == ".parquet" else 6


@pytest.mark.parametrize(
    ("make", "places"),
    [
        (documents, ["s.jsonl", "s.txt"]),
        (lines, ["s.jsonl", "s.txt"]),
        (book, ["s.jsonl", "s.txt"]),
        (diary, ["s.csv", "s.parquet"]),
        (series, ["s.csv"]),
        (strokes, ["s.tsv"]),
        (sounds, ["s"]),
        (pictures, ["s", "s.npz"]),
    ],
)
def test_what_is_sampled_is_scored(make, places, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["fit", *make(tmp_path), "--out", run]) == 0
    length = ["--length", "20"] if make in (documents, lines, book) else []
    for place in places:
        assert main(["sample", run, "6", "--out", str(tmp_path / place), *length]) == 0
        capsys.readouterr()
        assert main(["log-prob", run, str(tmp_path / place), "--json"]) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)["rows"] == held(tmp_path / place)
    if make is diary:  # under the name that the data have
        assert pyarrow.csv.read_csv(tmp_path / "s.csv").column_names == ["person", "level", "mood"]


@pytest.mark.parametrize(
    ("make", "out", "says"),
    [
        (sounds, None, "Sounds need a place to be written. Say --out folder/, or for one --out sound.wav."),
        (sounds, "s.wav", "6 sounds do not go into one file"),
        (sounds, "s.mp3", "no place for sounds"),
        (pictures, None, "Images need a place to be written. Say --out folder/ or --out samples.npz."),
        (pictures, "s.png", "no place for images"),
        (pictures, "d", "is not an empty folder"),
        (lines, "s.csv", "no place for texts"),
        (diary, "s.npz", "does not say which format"),
    ],
)
def test_a_place_is_refused_before_anything_is_drawn(make, out, says, tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    assert main(["fit", *make(tmp_path), "--out", run]) == 0
    capsys.readouterr()
    monkeypatch.setattr(Conditional, "sample", None)
    args = [] if out is None else ["--out", str(tmp_path / out)]
    assert main(["sample", run, "6", *args]) in (2, 5)
    assert says in " ".join(capsys.readouterr().err.split())


def test_bytes_that_no_file_of_text_holds_are_counted(tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    assert main(["fit", *lines(tmp_path), "--symbols", "bytes", "--out", run]) == 0
    drawn = [*b"plain", -1, -1], [*b"caf\xe9 \xff!"], [*"café".encode(), -1, -1]
    monkeypatch.setattr(Conditional, "sample", lambda *_, **__: torch.tensor(drawn))
    capsys.readouterr()
    assert main(["sample", run, "3", "--out", str(tmp_path / "s.jsonl")]) == 0
    assert "1 of 3 texts hold bytes that are no UTF-8, written as �" in capsys.readouterr().err


def test_sequences_are_printed_as_a_table(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["fit", *diary(tmp_path), "--out", run]) == 0
    capsys.readouterr()
    assert main(["sample", run, "3"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "person,level,mood"
    assert {row.split(",")[0] for row in rows} == {"0", "1", "2"}


def test_a_family_of_sequences_says_how_a_table_becomes_them(tmp_path, capsys):
    source, *_ = diary(tmp_path)
    assert main(["fit", source, "rnn", "--out", str(tmp_path / "run"), "--quiet"]) == 4
    assert "--sequence COLUMN makes sequences" in " ".join(capsys.readouterr().err.split())
