"""What a folder of images or sounds says of each file: captions, transcripts, and other columns of a table in it.

captions.csv, metadata.csv        a table whose column ``file_name`` names the files, as from the table's own folder
captions.jsonl, metadata.jsonl    the same, one JSON object a line
metadata.csv without a header     id|text|normalised text, of sounds by the name of their file (LJSpeech)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pofx.core.errors import BadValue, MissingSource, WrongShape
from pofx.core.spelling import abridged
from pofx.data import delimited, text
from pofx.data.folders import FILE, composed, finder
from pofx.data.options import Options
from pofx.data.packed import unpacked
from pofx.data.ragged import NDArray, RawRagged
from pofx.data.raw import RawArray

SPOKEN = ("text", "normalized_text")  # of a table without a header, behind the name of the file


@dataclass(frozen=True)
class Captions:
    """The lines of one table: of each its file below the folder, where it stands, and a column [N] of everything else.

    ``by_name``: files may be named without folder and suffix.
    """

    path: Path
    files: list[str]
    places: list[str]
    columns: dict[str, pa.ChunkedArray]
    by_name: bool = False


def attach(raw: RawArray | RawRagged, folder: Path, files: Sequence[Path], how: Options) -> None:
    """Columns of the tables in a folder beside its other files, in the order of these; a file of several rows is there
    as often.

    Raises MissingSource for a row without its file, BadValue for a file without a row.
    """
    assert raw.files is not None
    tables = [_read(p, folder, how) for p in files]
    kind = raw.space.name if raw.space.name != "audio" else "sound"
    whole = {composed(file): [i] for i, file in enumerate(raw.files)}
    find = finder(raw.files)
    lines = [
        (place, name, find(name) if t.by_name else whole.get(composed(name), []))
        for t in tables
        for place, name in zip(t.places, t.files, strict=True)
    ]
    file_of = file_of_each(raw.files, lines, str(folder), tables[0].path.name, kind)
    order = one_for_each(raw, file_of)
    raw.places = [lines[i][0] for i in order]
    for name in dict.fromkeys(name for t in tables for name in t.columns):
        if lacking := [t for t in tables if name not in t.columns]:
            raise WrongShape(f"{lacking[0].path} has no column {name!r}; other tables of {folder} have.", "Add it.")
        raw.beside[name] = partial(_joined, [t.columns[name] for t in tables], pa.array(order), name, folder)


def file_of_each(
    files: Sequence[str], lines: Sequence[tuple[str, str, list[int]]], folder: str, table: str, kind: str
) -> NDArray:
    """The number of the file of each line [N], of lines that say where they stand, what they name, and which files
    that may be.

    Raises MissingSource for a line without its file, BadValue for a file without a line.
    """
    for place, name, found in lines:
        if not found:
            raise MissingSource(
                f"{place} is of {name!r}, and {folder} holds no such {kind}.", "Add the file, or remove the line."
            )
        if len(found) > 1:
            raise BadValue(
                f"{place} is of {name!r}, which may be {' or '.join(files[i] for i in found[:2])}.",
                "Write the whole name.",
            )
    file_of = np.array([found[0] for _, _, found in lines], np.int64)
    if len(without := np.setdiff1d(np.arange(len(files)), file_of)):
        raise BadValue(
            f"{len(without)} of {len(files)} files of {folder} have no line in {table}: "
            f"{abridged([files[i] for i in without], 3)}.",
            "Add their lines, or remove the files.",
        )
    return file_of


def one_for_each(raw: RawArray | RawRagged, file_of: NDArray) -> NDArray:
    """The lines [N] in the order of their files [N], each of ``raw`` now as often as lines are of it."""
    order = file_of.argsort(kind="stable")
    if len(order) > raw.n:
        raw.of = file_of[order]
        raw.repeat(raw.of)
    return order


def _joined(columns: list[Any], order: pa.Array, name: str, folder: Path) -> pa.ChunkedArray:
    """A column of several tables, one below the other, in an order. Raises BadValue where their types differ."""
    try:
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks]).take(order)
    except pa.ArrowException as e:
        raise BadValue(f"{name!r} is of several types in the tables of {folder}: {e}.", "Make them alike.") from e


def _read(path: Path, folder: Path, how: Options) -> Captions:
    """One such table. Raises WrongShape or CorruptFile, with the line, for what is none."""
    if path.suffix.lower() == ".jsonl":
        return _from_jsonl(path, folder)
    first = unpacked(path).decode(errors="replace").lstrip("\ufeff").partition("\n")[0]
    if "|" in first and FILE not in first:
        return _spoken(path)
    raw = delimited.from_csv(path, Options(missing=how.missing, texts=(*how.texts, FILE)))
    if FILE not in raw.columns:
        raise _no_file_name(str(path), list(raw.columns))
    columns = {name: pa.chunked_array(_plain(fetch())) for name, fetch in raw.columns.items()}
    files = columns.pop(FILE).cast(pa.string()).to_pylist()
    return _captions(path, folder, files, [f"{path}, row {i}," for i in range(1, raw.n + 1)], columns)


def _plain(column: Any) -> list[Any]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [pa.array(column)]


def _from_jsonl(path: Path, folder: Path) -> Captions:
    files, places, numbers, entries = list[Any](), list[str](), list[int](), list[dict[str, Any]]()
    for number, entry in text.json_lines(path):
        where = f"{path}, line {number},"
        if not isinstance(entry, dict) or FILE not in entry:
            raise _no_file_name(where, list(entry) if isinstance(entry, dict) else [text.kind_of(entry)])
        files.append(entry[FILE])
        places.append(where)
        numbers.append(number)
        entries.append(entry)
    columns = {name: fetch() for name, fetch in text.beside_lines(path, entries, numbers, FILE).items()}
    return _captions(path, folder, files, places, columns)


def _captions(path: Path, folder: Path, files: list[Any], places: list[str], columns: dict[str, Any]) -> Captions:
    for file, where in zip(files, places, strict=True):
        if not isinstance(file, str) or not file.strip():
            raise BadValue(f"{where} names no file: its {FILE!r} is {file!r}.", "Correct or remove the line.")
    below = path.relative_to(folder).parent
    return Captions(path, [(below / file.strip()).as_posix() for file in files], places, columns)


def _spoken(path: Path) -> Captions:
    """Lines of id|text or id|text|normalised text."""
    ids, texts, places = list[str](), list[list[str]](), list[str]()
    for number, line in enumerate(text.read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        name, *spoken = line.rstrip("\r").split("|")
        if not 1 <= len(spoken) <= len(SPOKEN) or (texts and len(spoken) != len(texts[0])):
            raise WrongShape(
                f"{path}, line {number} has {len(spoken) + 1} fields; id|text or id|text|normalised text have 2 or 3, "
                "all lines as many.",
                f"Correct the line, or write a table with a column {FILE!r}.",
            )
        ids.append(name.strip())
        texts.append(spoken)
        places.append(f"{path}, line {number},")
    columns = {name: pa.chunked_array([pa.array(t)]) for name, t in zip(SPOKEN, zip(*texts, strict=True), strict=False)}
    return Captions(path, ids, places, columns, by_name=True)


def _no_file_name(where: str, columns: list[str]) -> WrongShape:
    return WrongShape(
        f"{where} has no {FILE!r}; it has {abridged(columns, 12)}.", f"Name the file of each line in {FILE!r}."
    )
