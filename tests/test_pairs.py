"""Pairs: columns, files side by side, captions of images, transcripts of sounds, episodes; and on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor

import pofx
from pofx.cli import main
from pofx.core.errors import BadValue, CorruptFile, EmptyData, MissingSource, UsageError, WrongShape
from pofx.data.actions import action_chunks
from pofx.data.audio import wav
from pofx.data.parts import Data, Part
from pofx.data.raw import IN_MEMORY
from pofx.data.rows import read_rows
from pofx.spaces import Label, Text


def episodes(lengths: list[int]) -> Data:
    """One column that is seen and one that acts: 100 e + t, and the negative of that."""
    rows = [(e, 100.5 * e + t + 0.25, -(100.5 * e + t) - 0.125) for e, n in enumerate(lengths) for t in range(n)]
    frame = {"episode": [r[0] for r in rows], "place": [r[1] for r in rows], "push": [r[2] for r in rows]}
    pandas = pytest.importorskip("pandas")
    return pofx.load(pandas.DataFrame(frame), sequence="episode", types={"place": "real", "push": "real"})


def test_a_chunk_sees_the_last_steps_the_first_one_repeated_before_the_beginning() -> None:
    data = episodes([5, 6, 7, 5, 6, 7, 5, 6, 7, 5])
    chunks = action_chunks(data, ["push"], 2, history=3)
    assert chunks.context is not None
    assert [c.name for c in chunks.context.columns] == ["place", "place.t-1", "place.t-2"]
    plain = action_chunks(data, ["push"], 2)
    for part, own in ((chunks.train, plain.train), (chunks.test, plain.test)):
        torch.testing.assert_close(part.x, own.x)
        torch.testing.assert_close(part.c[:, :1], own.c)
        start = (part.c[:, 0] - 0.25) % 100.5  # the step of the episode, which its value tells
        for k in (1, 2):
            torch.testing.assert_close(part.c[:, 0] - part.c[:, k], torch.minimum(start, torch.tensor(float(k))))
        assert part.rows is not None
        assert part.rows.tolist() == ((part.c[:, 0] - 0.25) // 100.5).long().tolist()
    with pytest.raises(UsageError, match="0 steps"):
        action_chunks(data, ["push"], 2, history=0)


def test_episodes_shorter_than_a_chunk_are_counted_and_none_left_is_an_error() -> None:
    data = episodes([3] + [8] * 12)
    chunks = action_chunks(data, ["push"], 5)
    assert any("1 sequence is shorter than a chunk of 5 steps" in note for note in chunks.notes)
    assert sum(len(getattr(chunks, p)) for p in ("train", "valid", "test")) == 12 * 4
    with pytest.raises(EmptyData, match="has 9 steps; its longest has 8"):
        action_chunks(data, ["push"], 9)


# -- made on the spot ----------------------------------------------------------------------------------------

ENGLISH = [f"{noun} number {i}" for i, noun in enumerate(["a dog", "two cats", "the man"] * 10)]
GERMAN = [f"{noun} Nummer {i}" for i, noun in enumerate(["ein Hund", "zwei Katzen", "der Mann"] * 10)]


def table(path: Path, suffix: str = ".csv") -> Path:
    """A table of 30 pairs of texts and how many stars each has."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"english": ENGLISH, "german": GERMAN, "stars": [i % 3 for i in range(30)]})
    place = path / f"pairs{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(place)
    elif suffix == ".jsonl":
        frame.to_json(place, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_csv(place, index=False, sep="\t" if suffix == ".tsv" else ",")
    return place


def pictures(folder: Path, n: int = 12, size: int = 4) -> Path:
    folder.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size), dtype=np.uint8)
        Pillow.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def sounds(folder: Path, n: int = 12, rate: int = 8000) -> Path:
    folder.mkdir()
    for i in range(n):
        level = np.random.default_rng(i).integers(-3000, 3000, 20 + i).astype(np.int16)
        (folder / f"s{i}.wav").write_bytes(wav(level, rate))
    return folder


def captions(folder: Path, lines: list[str], name: str = "captions.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def captioned(folder: Path, n: int = 12) -> Path:
    rows = [f"{i}.png,picture {'ab'[i % 2] * (i + 1)},{i * 1.5},{'xy'[i % 2]}" for i in range(n)]
    return captions(pictures(folder, n), ["file_name,caption,age,kind", *rows])


def rows_of(part: Part) -> list[tuple[list[float], list[float]]]:
    """Each datum and its context as plain numbers, without fill."""
    part = part.read()

    def plain(row: Tensor) -> list[float]:
        flat = row.flatten().double()
        return flat[flat != (-1 if row.dtype == torch.int64 else torch.inf)].tolist()

    c = part.c if part.c is not None else torch.zeros(len(part))
    return [(plain(x), plain(y)) for x, y in zip(part.x, c, strict=True)]


def same_again(source: Any, data: Data, given: Any = None) -> None:
    """New rows are read as those of the parts were, and a later command finds the same data by what was recorded."""
    new = read_rows(data.space, data.context, source, labels=data.labels, options=data.options, notes=[], given=given)
    for part in (data.train, data.valid, data.test):
        assert rows_of(new[part.rows]) == rows_of(part)
    if data.source != IN_MEMORY and data.options["given"] != IN_MEMORY:
        assert pofx.load(data.source, **json.loads(json.dumps(data.options))).digest == data.digest


# -- two columns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_two_columns_of_text(tmp_path: Path, suffix: str) -> None:
    path = table(tmp_path, suffix)
    data = pofx.load(path, text="german", given="english")
    assert isinstance(data.context, Text)
    for part in (data.train, data.valid, data.test):
        read = part.read()
        assert [data.space.spell(x) for x in read.x] == [GERMAN[i] for i in part.rows]
        assert [data.context.spell(c) for c in read.c] == [ENGLISH[i] for i in part.rows]
    same_again(path, data)
    stars = pofx.load(path, text="german", given="stars")
    assert str(stars.context) == "table of 1 columns: 1 integer"
    assert stars.train.c.flatten().tolist() == [i % 3 for i in stars.train.rows.tolist()]
    same_again(path, stars)
    classes = pofx.load(path, text="german", target="stars")
    assert isinstance(classes.space, Label)
    same_again(path, classes)


def test_a_column_of_text_is_given_to_the_rest_or_the_target_of_it(tmp_path: Path) -> None:
    path = table(tmp_path)
    both = pofx.load(path, given="english", drop=["stars"])  # the rest is one text
    assert (both.space.name, both.context.name) == ("text", "text")
    same_again(path, both)
    rest = pofx.load(path, given="english", types={"english": "text"}, drop=["german"])
    assert (rest.space.name, rest.context.name) == ("table", "text")
    same_again(path, rest)
    other = pofx.load(path, target="english", types={"english": "text"}, drop=["german"])
    assert (other.space.name, other.context.name) == ("text", "table")
    same_again(path, other)
    category = pofx.load(path, text="german", given="english,stars", types={"english": "category"})
    assert str(category.context) == "table of 2 columns: 1 integer, 1 category"
    frame = pytest.importorskip("pandas").read_csv(path)
    assert (
        pofx.load(frame, text="german", given="english").digest
        == pofx.load(path, text="german", given="english").digest
    )


def test_texts_of_a_table_that_cannot_be(tmp_path: Path) -> None:
    path = table(tmp_path)
    with pytest.raises(UsageError, match=r"'english' is text, which stands by itself; 2 columns"):
        pofx.load(path, text="german", given="english,stars")
    with pytest.raises(UsageError, match=r"'english' is text, which no table holds"):
        pofx.load(path, types={"english": "text"})
    with pytest.raises(UsageError, match=r"no column 'englsh'"):
        pofx.load(path, types={"englsh": "text"})
    with pytest.raises(UsageError, match=r"'nothing' lies beside.* There are: english, stars"):
        pofx.load(path, text="german", given="nothing")
    lines = [json.dumps({"de": g, "en": e}) for g, e in zip(GERMAN, ENGLISH, strict=True)]
    (tmp_path / "empty.jsonl").write_text("\n".join([*lines, json.dumps({"de": "ein Haus", "en": " "})]))
    with pytest.raises(BadValue, match=r"empty.jsonl, line 31, 'en' is empty"):
        pofx.load(tmp_path / "empty.jsonl", text="de", given="en")
    with pytest.raises(BadValue, match=r"'en' of .*empty.jsonl, line 31, is empty"):
        pofx.load(tmp_path / "empty.jsonl", text="en", given="de")


# -- files side by side --------------------------------------------------------------------------------------


def side_by_side(folder: Path) -> tuple[Path, Path]:
    for name, lines in (("train.de", GERMAN), ("train.en", ENGLISH)):
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder / "train.de", folder / "train.en"


def test_two_files_row_by_row(tmp_path: Path) -> None:
    german, english = side_by_side(tmp_path)
    data = pofx.load(german, given=english, separator="\\n")
    assert data.options["given"] == str(english)
    for part in (data.train, data.test):
        read = part.read()
        assert [data.space.spell(x) for x in read.x] == [GERMAN[i] for i in part.rows]
        assert [data.context.spell(c) for c in read.c] == [ENGLISH[i] for i in part.rows]
    same_again(german, data, english)
    drawn = pofx.load(german, given=english, separator="\\n", max_rows=10)
    assert sum(len(p) for p in (drawn.train, drawn.valid, drawn.test)) == 10
    with pytest.raises(UsageError, match=r"source of its own.*--given"):
        read_rows(data.space, data.context, german, options=data.options)
    lines = pofx.load(german.rename(tmp_path / "a.txt"), given=english.rename(tmp_path / "b.txt"))
    assert [lines.space.spell(x) for x in lines.test.read().x] == [data.space.spell(x) for x in data.test.read().x]
    with pytest.raises(EmptyData, match=r"is one document.*--separator"):
        pofx.load(tmp_path / "a.txt", given=tmp_path / "b.txt", separator="|")


def test_the_digest_covers_what_is_given(tmp_path: Path) -> None:
    german, english = side_by_side(tmp_path)
    before = pofx.load(german, given=english, separator="\\n").digest
    english.write_text("\n".join([*ENGLISH[1:], ENGLISH[0]]) + "\n")
    after = pofx.load(german, given=english, separator="\\n").digest
    assert before["train"] != after["train"]


def test_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    german, english = side_by_side(tmp_path)
    english.write_text("\n".join(ENGLISH[:-1]) + "\n")
    with pytest.raises(WrongShape, match=r"train.de has 30 rows and .*train.en has 29"):
        pofx.load(german, given=english, separator="\\n")
    english.write_text("\n".join([*ENGLISH[:4], "", *ENGLISH[5:]]) + "\n")
    with pytest.raises(BadValue, match=r"train.en, document 5 is empty"):
        pofx.load(german, given=english, separator="\\n")
    with pytest.raises(UsageError, match=r"types and drop mean nothing"):
        pofx.load(german, given=german, separator="\\n", types={"a": "real"})
    with pytest.raises(UsageError, match=r"Neither source has a column 'caption' \(text\)"):
        pofx.load(german, given=german, separator="\\n", text="caption")
    with pytest.raises(MissingSource, match="in memory"):
        pofx.load(german, given=IN_MEMORY)


def test_two_folders_by_the_names_of_their_files(tmp_path: Path) -> None:
    small, large = pictures(tmp_path / "small"), pictures(tmp_path / "large", size=8)
    data = pofx.load(small, given=large)
    for part in (data.train, data.test):
        for i, x, c in zip(part.rows.tolist(), part.x, part.c, strict=True):
            assert x[0].tolist() == np.random.default_rng(i).integers(0, 256, (4, 4), dtype=np.uint8).tolist()
            assert c[0].tolist() == np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8).tolist()
    same_again(small, data, large)
    assert pofx.load(small, given=large, resize=2).context == pofx.load(small, resize=2).space
    (large / "3.png").unlink()
    with pytest.raises(MissingSource, match=r"1 of 12 files have no partner .*large: 3.png"):
        pofx.load(small, given=large)
    with pytest.raises(MissingSource, match=r"1 of 12 files have no partner .*large: 3.png"):
        pofx.load(large, given=small)


NAMES = [f"{i}.png" for i in range(12)]
BACKWARDS = NAMES[::-1]  # so that the order of lines is not that of the files


def named_lines(folder: Path, suffix: str, lines: list[tuple[str, str]]) -> Path:
    """A table or JSON lines that say a text of each of the named files."""
    path = folder / f"said{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps({"file_name": f, "text": t}) + "\n" for f, t in lines))
    else:
        path.write_text("file_name,text\n" + "".join(f"{f},{t}\n" for f, t in lines))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("spelt", ["{}", "shots/{}", "/data/shots/{}", "stem"])
def test_a_table_that_names_files_is_paired_with_them_by_name(tmp_path: Path, suffix: str, spelt: str) -> None:
    folder = pictures(tmp_path / "shots")
    names = [Path(f).stem if spelt == "stem" else spelt.format(f) for f in BACKWARDS]
    path = named_lines(tmp_path, suffix, [(f, f"is {Path(f).stem}") for f in names])
    data = pofx.load(folder, given=path)
    assert isinstance(data.context, Text)
    for part in (data.train, data.valid, data.test):
        read = part.read()
        for x, c in zip(read.x, read.c, strict=True):
            i = int(data.context.spell(c).removeprefix("is "))
            assert torch.equal(x[0], torch.from_numpy(np.asarray(Pillow.open(folder / f"{i}.png"))))
    same_again(folder, data, path)
    assert not any("in order" in note for note in data.notes)
    other = pofx.load(path, given=folder, text="text")  # the other way round
    for part in (other.train, other.test):
        read = part.read()
        for x, c in zip(read.x, read.c, strict=True):
            i = int(other.space.spell(x).removeprefix("is "))
            assert torch.equal(c[0], torch.from_numpy(np.asarray(Pillow.open(folder / f"{i}.png"))))
    same_again(path, other, folder)


def test_columns_of_a_table_that_names_files(tmp_path: Path) -> None:
    folder, path = pictures(tmp_path / "shots"), tmp_path / "t.csv"
    path.write_text("file_name,age,kind\n" + "".join(f"{i}.png,{i * 1.5},{'xy'[i % 2]}\n" for i in range(11, -1, -1)))
    for drop in ([], ["file_name"]):
        data = pofx.load(folder, given=path, drop=drop)
        assert [c.name for c in data.context.columns] == ["age", "kind"]
        assert torch.equal(data.train.c[:, 0], data.train.rows * 1.5)
    same_again(folder, data, path)
    other = pofx.load(path, given=folder)
    assert [c.name for c in other.space.columns] == ["age", "kind"]
    for x, c in zip(other.train.x, other.train.c, strict=True):
        pixels = np.random.default_rng(int(x[0] / 1.5)).integers(0, 256, (4, 4), dtype=np.uint8)
        assert torch.equal(c[0], torch.from_numpy(pixels))
    same_again(path, other, folder)
    path.write_text("file_name\n" + "".join(f"{f}\n" for f in BACKWARDS))
    with pytest.raises(EmptyData, match=r"t.csv has no column beside 'file_name'"):
        pofx.load(folder, given=path)


@pytest.mark.parametrize(
    ("lines", "error", "match"),
    [
        ([*NAMES[:-1], "33.png"], MissingSource, r"said.csv, row 12, is of '33.png', and .*shots holds no such file"),
        ([*NAMES, "33.png"], MissingSource, r"row 13, is of '33.png'"),
        (NAMES[:-2], BadValue, r"2 of 12 files of .*shots have no line in .*said.csv: 10.png, 11.png"),
        ([*NAMES[:-1], ""], BadValue, r"row 12, names no file"),
        ([*NAMES[:-1], "elsewhere/33.png"], MissingSource, r"is of 'elsewhere/33.png'"),
    ],
)
def test_lines_and_files_that_do_not_fit(tmp_path: Path, lines: list[str], error: Any, match: str) -> None:
    folder = pictures(tmp_path / "shots")
    path = named_lines(tmp_path, ".csv", [(f, f"text {i}") for i, f in enumerate(lines)])
    with pytest.raises(error, match=match):
        pofx.load(folder, given=path)
    with pytest.raises(error, match=match):
        pofx.load(path, given=folder)


def test_a_name_that_two_files_have_is_asked_about(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    for sub in "ab":
        pictures(folder / sub, 2)
    path = named_lines(tmp_path, ".csv", [("0.png", "one"), ("1.png", "two")])
    with pytest.raises(BadValue, match=r"row 1, is of '0.png', which may be a/0.png or b/0.png"):
        pofx.load(folder, given=path)


def test_files_beside_what_names_none_are_paired_in_order_and_that_is_told(tmp_path: Path) -> None:
    folder, lines = pictures(tmp_path / "shots"), tmp_path / "said.txt"
    lines.write_text("".join(f"text {i}\n" for i in range(12)))
    data = pofx.load(folder, given=lines)
    assert "Paired in order: 0.png with row 1, 1.png with row 2, …." in data.notes
    notes = list[str]()
    read_rows(data.space, data.context, folder, options=data.options, notes=notes, given=lines)
    assert "Paired in order: 0.png with row 1, 1.png with row 2, …." in notes
    german, english = side_by_side(tmp_path)
    assert not any("in order" in note for note in pofx.load(german, given=english).notes)


def test_folders_of_texts_of_one_line_hold_no_line_end(tmp_path: Path) -> None:
    for name, lines, end in (("de", GERMAN, "\r\n"), ("en", ENGLISH, "\n")):
        (tmp_path / name).mkdir()
        for i, line in enumerate(lines):
            (tmp_path / name / f"{i}.txt").write_bytes((line + end).encode())
    data = pofx.load(tmp_path / "de", given=tmp_path / "en")
    for part in (data.train, data.valid, data.test):
        read = part.read()
        assert [data.space.spell(x) for x in read.x] == [GERMAN[i] for i in part.rows]
        assert [data.context.spell(c) for c in read.c] == [ENGLISH[i] for i in part.rows]
    assert data.notes.count("The line end at the end of 30 files is no part of their texts.") == 2
    same_again(tmp_path / "de", data, tmp_path / "en")
    (tmp_path / "de" / "0.txt").write_bytes(b"ein\r\n\n")  # one line end is taken, and no more
    (tmp_path / "de" / "1.txt").write_bytes(b"ein\r")
    rest = pofx.load(tmp_path / "de", given=tmp_path / "en", symbols="bytes")
    found = {rest.space.spell(x) for part in (rest.train, rest.valid, rest.test) for x in part.read().x}
    assert {"ein\r\n", "ein\r"} < found


def test_a_context_that_is_too_long_or_strange_is_found_in_its_file(tmp_path: Path) -> None:
    german, english = side_by_side(tmp_path)
    data = pofx.load(german, given=english, separator="\\n")
    for what, match in (
        ("the man" * 20, r"Context 3 of .*train.en is 140 long; those of this run are up to"),
        ("the MAN", r"train.en, document 3: The character 'M' at 4 is none of the"),
    ):
        english.write_text("\n".join([*ENGLISH[:2], what, *ENGLISH[3:]]) + "\n")
        with pytest.raises(BadValue, match=match):
            read_rows(data.space, data.context, german, options=data.options, given=english, notes=[])
    path = table(tmp_path)
    both = pofx.load(path, text="german", given="english")
    path.write_text(path.read_text().replace("der Mann Nummer 2", "der MANN Nummer 2"))
    with pytest.raises(BadValue, match=r"pairs.csv, row 3, 'german': The character 'A' at 5"):
        read_rows(both.space, both.context, path, options=both.options, notes=[])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (["a", 3.5, "b"], r"metadata.jsonl, line 2: 'caption' is a number; in line 1 it is a string"),
        ([None, ["a"], 1], r"metadata.jsonl, line 3: 'caption' is a number; in line 2 it is a list"),
        (["a", None, {"b": 1}], r"metadata.jsonl, line 3: 'caption' is an object; in line 1 it is a string"),
        (["a", "b\ud800", "c"], r"metadata.jsonl, line 2: 'caption' holds '.ud800', half of a character"),
        ([["a"], [1], ["b"]], r"metadata.jsonl: 'caption' makes up no column"),
    ],
)
def test_values_of_several_kinds_are_found_in_their_file(tmp_path: Path, values: list[Any], match: str) -> None:
    lines = [json.dumps({"file_name": f"{i}.png", "caption": v}) for i, v in enumerate(values)]
    folder = captions(pictures(tmp_path / "images", 3), lines, "metadata.jsonl")
    with pytest.raises(BadValue, match=match):
        pofx.load(folder, given="caption")


def test_names_in_either_form_of_unicode_are_the_same(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"  # as Linux keeps them, and as some disks of macOS do
    small, large = pictures(tmp_path / "small"), pictures(tmp_path / "large", size=8)
    (small / "3.png").rename(small / f"{composed}.png")
    (large / "3.png").rename(large / f"{apart}.png")
    data = pofx.load(small, given=large)
    for x, c, i in zip(data.train.x, data.train.c, data.train.rows.tolist(), strict=True):
        seed = 3 if i == 11 else i if i < 3 else i + 1
        assert np.array_equal(x[0], np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8))
        assert np.array_equal(c[0], np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8))
    lines = [(f.replace("3.png", f"{composed}.png") if f == "3.png" else f, f"text {f}") for f in BACKWARDS]
    assert pofx.load(large, given=named_lines(tmp_path, ".csv", lines)).context.name == "text"
    captions(large, ["file_name,caption", *(",".join(line) for line in lines)])
    assert pofx.load(large, given="caption").context.name == "text"


def test_arrays_and_frames_beside_arrays(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    images, blurred = (rng.integers(0, 256, (30, s, s), dtype=np.uint8) for s in (4, 2))
    data = pofx.load(images, given=blurred)
    assert torch.equal(data.test.c[:, 0], torch.from_numpy(blurred)[data.test.rows])
    classes = pofx.load(images, given=np.array(["b", "a", "b"] * 10))
    assert classes.context == Label(("a", "b"))
    assert [classes.context.values[k] for k in classes.test.c] == [["b", "a", "b"][i % 3] for i in classes.test.rows]
    assert isinstance(pofx.load(images, given=np.array(ENGLISH)).context, Text)
    frame = pandas.DataFrame({"age": rng.normal(size=30), "sex": ["m", "f"] * 15})
    mixed = pofx.load(torch.from_numpy(images), given=frame, types={"sex": "category"}, drop=["age"])
    assert str(mixed.context) == "table of 1 columns: 1 category"
    same_again(images, pofx.load(images, given=frame), frame)
    with pytest.raises(WrongShape, match=r"the ndarray has 30 rows and the DataFrame has 29"):
        pofx.load(images, given=frame[:29])


def test_a_classifier_of_texts_and_texts_given_reals(tmp_path: Path) -> None:
    path, place = table(tmp_path), tmp_path / "classes"
    tiny = ["--steps", 1, "--quiet", "--out"]
    assert run("fit", path, "classifier", "--text", "english", "--target", "stars", *tiny, place) == 0
    assert run("predict", place, path, "--out", tmp_path / "predicted.csv") == 0
    german, _ = side_by_side(tmp_path)
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(30, 3, 2)))
    data = pofx.load(german, given=tmp_path / "v.npy", kind="reals", separator="\\n")
    assert (data.space.name, str(data.context)) == ("text", "reals 3×2")
    same_again(german, data, tmp_path / "v.npy")


def test_a_name_that_is_a_column_and_a_file_is_the_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path)
    (tmp_path / "stars").write_text("1\n" * 30)
    monkeypatch.chdir(tmp_path)
    data = pofx.load(path, text="german", given="stars")
    assert any("a column and a file" in note for note in data.notes)
    assert data.options["given"] == ["stars"]


# -- captions ------------------------------------------------------------------------------------------------


def test_a_folder_of_images_with_captions(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "images")
    data = pofx.load(folder, given="caption")
    assert data.context is not None
    files = sorted((p for p in folder.iterdir() if p.suffix == ".png"), key=lambda p: int(p.stem))
    for i, x, c in zip(data.train.rows.tolist(), data.train.x, data.train.read().c, strict=True):
        assert np.array_equal(x[0], np.asarray(Pillow.open(files[i])))
        assert data.context.spell(c) == f"picture {'ab'[i % 2] * (i + 1)}"
    same_again(folder, data)
    assert str(pofx.load(folder, given="age,kind").context) == "table of 2 columns: 1 real, 1 category"
    same_again(folder, pofx.load(folder, given="age,kind"))
    text = pofx.load(folder, target="caption")
    assert (text.space, text.context) == (data.context, data.space)
    assert rows_of(text.test) == [(c, x) for x, c in rows_of(data.test)]
    same_again(folder, text)
    assert pofx.load(folder, target="kind").space == Label(("x", "y"))
    assert pofx.load(folder, label="kind").labels == ("x", "y")
    assert not any("left out" in note for note in data.notes)


def test_tables_of_parts_and_sub_folders_name_files_as_they_lie(tmp_path: Path) -> None:
    for part, n in (("train", 8), ("test", 4)):
        pictures(tmp_path / part, n)
        lines = [json.dumps({"file_name": f"{i}.png", "caption": f"{part} {i}"}) for i in range(n)]
        captions(tmp_path / part, lines, "metadata.jsonl")
    data = pofx.load(tmp_path, given="caption")
    assert {data.context.spell(c) for c in data.test.read().c} == {f"test {i}" for i in range(4)}
    assert "own test part" in data.split


def test_sounds_with_transcripts(tmp_path: Path) -> None:
    folder = captions(
        sounds(tmp_path / "wavs").parent, [f's{i}|the "{i}|the "{i} spelt' for i in range(12)], "metadata.csv"
    )
    data = pofx.load(folder, given="normalized_text", levels=16)
    assert (data.space.name, data.context.name) == ("audio", "text")
    assert [data.context.spell(c) for c in data.test.read().c] == [f'the "{i} spelt' for i in data.test.rows]
    same_again(folder, data)
    text = pofx.load(folder, target="text", levels=16)
    assert (text.space.name, text.context.name) == ("text", "audio")
    same_again(folder, text)
    captions(folder, ["s0|one", "s1|two|three|four"], "metadata.csv")
    with pytest.raises(WrongShape, match=r"metadata.csv, line 2 has 4 fields"):
        pofx.load(folder, given="text")


@pytest.mark.parametrize("spelt", ["s{}", "s{}.wav", "wavs/s{}", "wavs/s{}.wav", "corpus/wavs/s{}.wav"])
def test_transcripts_without_a_header_name_files_in_any_way(tmp_path: Path, spelt: str) -> None:
    sounds(tmp_path / "wavs")
    lines = [f"{spelt.format(i)}|say {i}" for i in range(11, -1, -1)]
    data = pofx.load(captions(tmp_path, lines, "metadata.csv"), given="text", levels=16)
    for part in (data.train, data.test):
        read = part.read()
        for x, c in zip(read.x, read.c, strict=True):  # the sound s3.wav has 23 samples
            assert data.context.spell(c) == f"say {int(data.space.lengths(x[None])) - 20}"
    captions(tmp_path, [*lines[:-1], "other/s0|say 0"], "metadata.csv")
    with pytest.raises(MissingSource, match=r"line 12, is of 'other/s0', and .* holds no such sound"):
        pofx.load(tmp_path, given="text", levels=16)


def test_a_caption_of_several_lines_does_not_shift_the_rows_that_errors_name(tmp_path: Path) -> None:
    folder = captions(
        pictures(tmp_path / "images", 3), ["file_name,caption", '0.png,"a', "b", 'c"', "1.png,d", "9.png,e"]
    )
    with pytest.raises(MissingSource, match=r"captions.csv, row 3, is of '9.png'"):
        pofx.load(folder, given="caption")


def test_names_of_tables_in_capitals_are_read_by_their_kind(tmp_path: Path) -> None:
    lines = [json.dumps({"file_name": f, "caption": f"is {f}"}) for f in NAMES]
    assert (
        pofx.load(captions(pictures(tmp_path / "a"), lines, "METADATA.JSONL"), given="caption").context.name == "text"
    )
    lines = ["file_name,caption", *(f"{f},is {f}" for f in NAMES)]
    assert pofx.load(captions(pictures(tmp_path / "b"), lines, "Captions.CSV"), given="caption").context.name == "text"


@pytest.mark.parametrize(
    ("name", "lines", "error", "match"),
    [
        ("captions.csv", ["file_name,caption", "0.png,a", "9.png,b"], MissingSource, r"row 2, is of '9.png'"),
        ("captions.csv", ["file_name,caption", "0.png,a"], BadValue, r"2 of 3 files .* 1.png, 2.png"),
        ("captions.csv", ["file_name,caption", "0.png,a", "0.png,b"], BadValue, r"2 of 3 files .* 1.png, 2.png"),
        ("captions.csv", ["file,caption", "0.png,a"], WrongShape, r"no 'file_name'; it has file, caption"),
        (
            "captions.csv",
            ["file_name,caption", "0.png,a", "1.png,", "2.png,c"],
            BadValue,
            r"row 2, 'caption' is empty",
        ),
        ("metadata.jsonl", ['{"file_name": "0.png", "caption"'], CorruptFile, r"line 1 is not JSON"),
        ("metadata.jsonl", ['{"caption": "a"}'], WrongShape, r"line 1, has no 'file_name'; it has caption"),
        ("metadata.jsonl", ['{"file_name": 3, "caption": "a"}'], BadValue, r"line 1, names no file"),
    ],
)
def test_captions_that_do_not_fit(tmp_path: Path, name: str, lines: list[str], error: Any, match: str) -> None:
    folder = captions(pictures(tmp_path / "images", 3), lines, name)
    with pytest.raises(error, match=match):
        pofx.load(folder, given="caption")
    assert pofx.load(folder).context is None  # nobody asked


@pytest.mark.parametrize("way", ["in the folder", "beside it", "target", "of texts", "of lines"])
def test_several_captions_of_an_image_are_as_many_pairs_of_one_part(tmp_path: Path, way: str) -> None:
    """Twelve images, of which image i has 1 + i % 3 captions, their lines in any order."""
    folder = pictures(tmp_path / "images")
    told = [(i, f"image {i} told {'again ' * k}once") for k in range(3) for i in range(12) if k <= i % 3]
    lines = ["file_name,caption", *(f"{i}.png,{text}" for i, text in told)]
    table = captions(folder if way in ("in the folder", "target") else tmp_path, lines) / "captions.csv"
    (tmp_path / "lines.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{i}.png", "text": text}) + "\n" for i, text in told)
    )
    source, asked = {
        "in the folder": (folder, {"given": "caption"}),
        "beside it": (folder, {"given": str(table)}),
        "target": (folder, {"target": "caption"}),
        "of texts": (table, {"text": "caption", "given": str(folder)}),
        "of lines": (tmp_path / "lines.jsonl", {"text": "text", "given": str(folder)}),
    }[way]
    data = pofx.load(source, **asked)
    images = {tuple(np.asarray(Pillow.open(folder / f"{i}.png")).flatten().tolist()): i for i in range(12)}
    found, parts = list[tuple[int, str]](), list[set[int]]()
    for part in (data.train, data.valid, data.test):
        read = part.read()
        x, c, space = (read.x, read.c, data.context) if data.space.pixels else (read.c, read.x, data.space)
        assert isinstance(space, Text)
        here = [(images[tuple(a.flatten().tolist())], space.spell(b)) for a, b in zip(x, c, strict=True)]
        found += here
        parts.append({i for i, _ in here})
        assert part.of is not None
        assert len({*zip(part.of.tolist(), (i for i, _ in here), strict=True)}) == len(parts[-1])
        assert (part.groups is None) == (len(parts[-1]) == len(part))
    assert sorted(found) == sorted(told)
    assert sum(map(len, parts)) == 12  # no image is in two
    assert "24 pairs of 12 files: those of one file stay in one part." in data.notes
    same_again(source, data, asked["given"] if os.path.exists(asked.get("given", "")) else None)
    few = pofx.load(source, **asked, max_rows=10)
    assert len({*few.train.of.tolist()} & {*few.test.of.tolist()}) == 0


def test_captions_that_are_not_there(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "images")
    with pytest.raises(UsageError, match=r"'title' lies beside .* There are: caption, age, kind"):
        pofx.load(folder, given="title")
    with pytest.raises(UsageError, match=r"'caption' lies beside .* a file or folder of what is given"):
        pofx.load(pictures(tmp_path / "bare"), given="caption")


def test_columns_under_another_name_are_named(tmp_path: Path) -> None:
    folder, bare = captioned(tmp_path / "images"), pictures(tmp_path / "bare")
    for asked, name in (
        ({"target": "captio"}, "caption"),
        ({"given": "CAPTION"}, "caption"),
        ({"label": "kin"}, "kind"),
    ):
        with pytest.raises(UsageError, match=rf"Did you mean {name}\?"):
            pofx.load(folder, **asked)
    with pytest.raises(UsageError, match=r"no column 'xyz' \(target\). Columns: caption, age, kind\."):
        pofx.load(folder, target="xyz")
    with pytest.raises(UsageError, match=r"no column 'xyz' \(target\). The source has no columns: leave it out\."):
        pofx.load(bare, target="xyz")
    other = captions(pictures(tmp_path / "other"), ["file_name,title", *(f"{i}.png,picture a" for i in range(12))])
    for asked in ({"target": "caption"}, {"given": "caption"}):
        data = pofx.load(folder, **asked)
        with pytest.raises(WrongShape, match=r"other \(images .* has no column 'caption'; .* Its columns: title\."):
            read_rows(data.space, data.context, other, options=data.options, notes=[])
        with pytest.raises(WrongShape, match=r"bare \(images .* has no column 'caption'; expected .* Add it\."):
            read_rows(data.space, data.context, bare, options=data.options, notes=[])


def test_a_text_is_never_its_own_context_for_lack_of_another(tmp_path: Path) -> None:
    data = pofx.load(table(tmp_path, ".jsonl"), text="german", given="english")
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps({"german": g, "English": "a dog"}) + "\n" for g in GERMAN))
    with pytest.raises(WrongShape, match=r"new.jsonl .* has no column 'english'; .* Did you mean English\?"):
        read_rows(data.space, data.context, path, options=data.options, notes=[])


# -- archives ------------------------------------------------------------------------------------------------


def test_arrays_of_an_archive(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "a.npz"
    arrays = {"image": rng.integers(0, 256, (30, 4, 4), dtype=np.uint8), "text": np.array(ENGLISH)}
    arrays |= {"kind": np.arange(30) % 3, "half": arrays["image"][:, ::2, ::2], "place": rng.normal(size=(30, 2))}
    np.savez(path, **arrays)
    found = {}
    for name in ("text", "kind", "half", "place"):
        found[name] = data = pofx.load(path, arrays=["image"], given=name)
        same_again(path, data)
    assert {k: str(d.context) for k, d in found.items()} == {
        "text": f"texts over {len(set(''.join(ENGLISH)))} characters, up to {max(map(len, ENGLISH))} long",
        "kind": "label of 3 classes", "half": "images 2×2×1, 256 levels", "place": "table of 2 columns: 2 real",
    }  # fmt: skip
    assert torch.equal(found["half"].test.c[:, 0], torch.from_numpy(arrays["half"])[found["half"].test.rows])
    with pytest.raises(UsageError, match=r"'wide' lies beside .* There are: text, kind, half, place"):
        pofx.load(path, arrays=["image"], given="wide")
    np.savez(path, audio=np.zeros(300, np.int16), offsets=np.arange(0, 301, 10), sample_rate=8000,
             said=np.array(ENGLISH), digit=np.arange(30) % 3)  # fmt: skip
    said = pofx.load(path, given="said", levels=16)
    assert isinstance(said.context, Text)
    same_again(path, said)
    assert pofx.load(path, given="digit", levels=16).context == Label(("0", "1", "2"))


# -- episodes ------------------------------------------------------------------------------------------------


def archive_of_episodes(path: Path, shortest: int = 3) -> tuple[Path, list[int]]:
    lengths, rng = [shortest, 9, 7, 8, 6, 9, 9, 5, 7, 8, 9, 9], np.random.default_rng(0)
    arrays = {"state": rng.normal(size=(sum(lengths), 2)), "action": rng.normal(size=(sum(lengths), 2))}
    np.savez(path / "demos.npz", **arrays, episode_ends=np.cumsum(lengths))
    return path / "demos.npz", lengths


def test_chunks_of_actions_from_an_archive(tmp_path: Path) -> None:
    long, _ = archive_of_episodes(tmp_path, 4)
    by_hand = action_chunks(pofx.load(long), ["action1", "action2"], 4, history=2)
    assert rows_of(pofx.load(long, given="state1,state2", chunk=4, history=2).test) == rows_of(by_hand.test)
    path, lengths = archive_of_episodes(tmp_path)
    data = pofx.load(path, given="state1,state2", chunk=4, history=2)
    assert any("1 sequence is shorter than a chunk of 4 steps" in note for note in data.notes)
    new = read_rows(data.space, data.context, path, options=data.options, notes=[])
    assert len(new) == sum(max(0, n - 3) for n in lengths)
    assert rows_of(new[torch.isin(new.rows, data.test.rows)]) == rows_of(data.test)
    assert pofx.load(data.source, **data.options).digest == data.digest
    whole = pofx.load(path, given="state1,state2")
    assert [c.name for c in whole.space.step.columns] == ["action1", "action2"]
    same_again(path, whole)


def episodes_in_a_table(path: Path, **columns: object) -> Path:
    """8 episodes of 12 steps: a clock, what is seen, what is done."""
    rng, rows = np.random.default_rng(0), [(e, t) for e in range(8) for t in range(12)]
    table = {"episode": [e for e, _ in rows], "step": [t for _, t in rows], "x": rng.normal(size=96)}
    table |= {"push": rng.normal(size=96)} | columns
    pa_csv.write_csv(pa.table(table), path / "episodes.csv")
    return path / "episodes.csv"


def test_a_clock_is_no_action(tmp_path: Path) -> None:
    path = episodes_in_a_table(tmp_path)
    for order in (None, "step"):
        data = pofx.load(path, sequence="episode", order=order, given="x", chunk=4)
        assert data.space.event_shape == (4, 1)
        assert [c.name for c in data.context.columns] == ["x"]
        assert any("'step' only goes up within sequences: it was left out" in note for note in data.notes)
        new = read_rows(data.space, data.context, path, options=data.options)
        assert rows_of(new[torch.isin(new.rows, data.test.rows)]) == rows_of(data.test)
    seen = pofx.load(path, sequence="episode", given="x,step", chunk=4)
    assert [c.name for c in seen.context.columns] == ["step", "x"]
    assert seen.space.event_shape == (4, 1)


def test_a_chunk_is_a_sequence_where_that_is_said(tmp_path: Path) -> None:
    path = episodes_in_a_table(tmp_path, push=np.arange(96) % 5)
    data = pofx.load(path, sequence="episode", given="x", chunk=4, chunk_as="sequence", history=2)
    by_hand = action_chunks(pofx.load(path, sequence="episode", drop=["step"]), ["push"], 4, 2, kind="sequence")
    assert (data.space, data.context) == (by_hand.space, by_hand.context)
    assert rows_of(data.test) == rows_of(by_hand.test)
    new = read_rows(data.space, data.context, path, options=data.options)
    assert rows_of(new[torch.isin(new.rows, data.test.rows)]) == rows_of(data.test)


@pytest.mark.parametrize(
    ("push", "said", "types"),
    [
        (np.arange(96) % 5, "'push' is counted in steps of 1.*--drop push.*--types push=real", {"push": "real"}),
        (np.round(np.random.default_rng(1).normal(size=96), 1), "counted in steps of 0.1", {"push": "real"}),
        (np.where(np.arange(96) == 7, np.nan, np.random.default_rng(1).normal(size=96)), "is missing in some", None),
        (np.array(["left", "right", "on", "on"])[np.arange(96) % 4], "one of 3 categories, and no number", None),
    ],
)
def test_an_action_that_is_no_real_number_is_named(
    tmp_path: Path, push: Any, said: str, types: dict[str, str] | None
) -> None:
    path = episodes_in_a_table(tmp_path, push=push)
    with pytest.raises(UsageError, match=said):
        pofx.load(path, sequence="episode", given="x", chunk=4)
    if types is not None:  # the remedy works
        assert pofx.load(path, sequence="episode", given="x", chunk=4, types=types).space.event_shape == (4, 1)
    with pytest.raises(UsageError, match="A chunk of 0 steps"):
        pofx.load(path, sequence="episode", given="x", chunk=0)
    with pytest.raises(UsageError, match="these rows are none.*--sequence COLUMN"):
        pofx.load(path, given="x", chunk=4)


def test_chunks_that_cannot_be(tmp_path: Path) -> None:
    path, _ = archive_of_episodes(tmp_path)
    with pytest.raises(EmptyData, match=r"No sequence has 20 steps; the longest has 9"):
        pofx.load(path, given="state1,state2", chunk=20)
    with pytest.raises(UsageError, match=r"follows from what is given at its first step.*--given"):
        pofx.load(path, chunk=4)
    with pytest.raises(UsageError, match=r"A history of 2 steps goes with chunks"):
        pofx.load(path, given="state1,state2", history=2)
    with pytest.raises(UsageError, match=r"'state3' lies beside"):
        pofx.load(path, given="state3", chunk=4)
    data = pofx.load(path, given="state1,state2", chunk=4)
    np.savez(tmp_path / "other.npz", state=np.zeros((9, 2)), action=np.zeros((9, 3)), episode_ends=[9])
    with pytest.raises(WrongShape, match=r"sequences of 3 columns beside state1, state2; expected 2"):
        read_rows(data.space, data.context, tmp_path / "other.npz", options=data.options)


# -- the command line ----------------------------------------------------------------------------------------

TINY = ["--steps", "1", "--quiet", "--options.width", "16", "--options.layers", "1", "--options.n-heads", "2"]


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def failed(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """What a command that ends in one of our errors says."""
    capsys.readouterr()
    assert run(*words) in (2, 3)
    return capsys.readouterr().err


def test_text_given_text_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    german, english = side_by_side(tmp_path)
    place, out = tmp_path / "run", tmp_path / "drawn.jsonl"
    assert run("fit", german, "gpt", "--given", english, "--separator", "\\n", "--out", place, *TINY) == 0
    assert run("resume", place, "--quiet") == 0
    assert run("log-prob", place, german, "--given", english, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 30
    assert run("sample", place, 2, "--given", "a dog number 3", "--given", "the man", "--out", out) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["given"] for line in lines] == ["a dog number 3"] * 2 + ["the man"] * 2
    assert run("sample", place, 1, "--given", english, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["samples"] == 30
    (tmp_path / "two.csv").write_text("a,b\nx,y\n")
    for words, match in (
        (["sample", place, "--given", "a DOG"], "'D' at 2 is none of the"),
        (["sample", place, "--given", "a dog number 3" * 9], "is 126 long; those of this run are up to"),
        (["sample", place, "--given", ""], "empty text"),
        (["sample", place], "Say which: --given"),
        (["sample", place, "--given", tmp_path / "two.csv"], "has 2 columns: a, b"),
        (["sample", place, "--given", pictures(tmp_path / "images")], "images holds no text"),
        (["sample", place, "--given", pictures(tmp_path / "more") / "1.png"], "1.png is binary"),
        (["sample", place, "--given", "a", "--given", "t", "--prompt", "d", "--prompt", "e"], "2 contexts and 2 prom"),
        (["log-prob", place, german], "source of its own"),
        (["log-prob", place, "--given", english], "there is none"),
    ):
        assert match in failed(capsys, *words), words


def test_pictures_given_captions_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, place, out = captioned(tmp_path / "images"), tmp_path / "run", tmp_path / "drawn"
    assert run("fit", folder, "image-gpt", "--given", "caption", "--out", place, *TINY) == 0
    assert run("sample", place, 3, "--given", "picture a", "--given", "picture b", "--out", out) == 0
    drawn = pofx.load(out, given="caption")  # as it was written
    assert sorted(drawn.context.spell(c) for p in (drawn.train, drawn.valid, drawn.test) for c in p.read().c) == [
        *["picture a"] * 3, *["picture b"] * 3,
    ]  # fmt: skip
    assert run("log-prob", place, out, "--json") == 0
    assert run("sample", place, 1, "--given", "picture a", "--out", tmp_path / "one.npz") == 0
    assert np.load(tmp_path / "one.npz")["caption"].tolist() == ["picture a"]
    capsys.readouterr()
    assert run("data", folder, "--given", "caption", "--json") == 0
    assert json.loads(capsys.readouterr().out)["given"]["space"] == "text"


def test_pictures_given_a_table_that_names_them_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, place = pictures(tmp_path / "shots"), tmp_path / "run"
    path = named_lines(tmp_path, ".csv", [(f, f"is {f}") for f in BACKWARDS])
    assert run("fit", folder, "image-gpt", "--given", path, "--out", place, *TINY) == 0
    assert run("resume", place, "--quiet") == 0
    for lines in (path, named_lines(tmp_path, ".jsonl", [(f, f"is {f}") for f in NAMES])):
        capsys.readouterr()
        assert run("log-prob", place, folder, "--given", lines) == 0
        assert "in order" not in capsys.readouterr().err
    assert run("sample", place, 1, "--given", path, "--out", tmp_path / "drawn") == 0
    assert (tmp_path / "drawn" / "metadata.csv").read_text().splitlines()[1] == "00000.png,is 11.png"
    small = named_lines(tmp_path, ".csv", [(f, f"is {f}") for f in NAMES[:-1]])
    assert "have no line in" in failed(capsys, "log-prob", place, folder, "--given", small)


def test_texts_given_pictures_and_sounds_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, place = captioned(tmp_path / "images"), tmp_path / "run"
    assert run("fit", folder, "gpt", "--target", "caption", "--out", place, *TINY) == 0
    assert run("sample", place, 2, "--given", folder, "--out", tmp_path / "a.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["given"] for line in lines] == [f"{folder}/{i}.png" for i in range(12) for _ in range(2)]
    assert run("sample", place, 1, "--given", folder / "3.png") == 0
    wide = pictures(tmp_path / "wide", 1, 8) / "0.png"
    assert "is 8×8 pixels (width×height); this space takes 4×4" in failed(capsys, "sample", place, "--given", wide)
    assert "there is no 'a dog'" in failed(capsys, "sample", place, "--given", "a dog")
    heard = captions(sounds(tmp_path / "wavs"), ["file_name,text", *(f"s{i}.wav,say {i}" for i in range(12))])
    spoken = tmp_path / "spoken"
    assert run("fit", heard, "gpt", "--target", "text", "--levels", 16, "--out", spoken, *TINY) == 0
    assert run("sample", spoken, 1, "--given", heard / "s3.wav") == 0
    fast = sounds(tmp_path / "fast", 1, 16000) / "s0.wav"
    said = failed(capsys, "sample", spoken, "--given", fast)
    assert "16000 samples per second; this space takes 8000" in said
    assert "ffmpeg" in said


def test_tables_and_labels_from_files_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, place = tmp_path / "t.csv", tmp_path / "run"
    path.write_text("a,b,c\n" + "".join(f"{i * 0.37:.2f},{'xy'[i % 2]},{(i * 7) % 11}\n" for i in range(40)))
    assert run("fit", path, "made", "--given", "b", "--steps", 1, "--quiet", "--out", place) == 0
    (tmp_path / "which.csv").write_text("b\nx\ny\nx\n")
    assert run("sample", place, 2, "--given", tmp_path / "which.csv", "--out", tmp_path / "drawn.csv") == 0
    drawn = (tmp_path / "drawn.csv").read_text().splitlines()
    assert drawn[0] == "a,c,b"
    assert [line.rpartition(",")[2] for line in drawn[1:]] == ["x", "x", "y", "y", "x", "x"]
    assert run("log-prob", place, tmp_path / "drawn.csv", "--json") == 0
    digits = tmp_path / "digits"
    assert run("fit", "digits", "independent", "--given", "label", "--steps", 1, "--quiet", "--out", digits) == 0
    assert run("sample", digits, 1, "--given", "3", "--given", "5", "--out", tmp_path / "some") == 0
    assert (tmp_path / "some" / "metadata.csv").read_text() == "file_name,label\n00000.png,3\n00001.png,5\n"
    assert "There is no class '11'" in failed(capsys, "sample", digits, "--given", "11")


def test_a_policy_on_the_command_line(tmp_path: Path) -> None:
    path, _ = archive_of_episodes(tmp_path)
    place = tmp_path / "run"
    tiny = ["--steps", "1", "--quiet", "--options.width", "16", "--options.n-heads", "2"]
    assert run("fit", path, "act", "--given", "state1,state2", "--chunk", 4, "--history", 2, "--out", place, *tiny) == 0
    assert run("log-prob", place, path, "--json") == 0
    assert run("resume", place, "--quiet") == 0
    seen = "state1=0,state2=0,state1.t-1=1,state2.t-1=1"
    assert run("sample", place, 2, "--given", seen, "--out", tmp_path / "actions.npy") == 0
    assert np.load(tmp_path / "actions.npy").shape == (2, 4, 2)


def test_pairs_are_compared(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "images", 24)
    words = ["--given", "caption", "--families", "image-gpt,made", "--steps", 1, "--samples", 8, "--quiet"]
    assert run("compare", folder, *words, "--out", tmp_path / "compared") == 0
    assert (tmp_path / "compared" / "report.html").exists()
