"""What readers give: columns, images or rows of any length as read, and what a reader is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from pofx.core.errors import BadValue, CorruptFile, EmptyData
from pofx.core.space import Column, Image
from pofx.data import audio, sequences, text
from pofx.data.image import NDArray, RawImages
from pofx.data.ragged import RawRagged
from pofx.data.tabular import Array

IN_MEMORY = "<memory>"
SECONDS, RATE, STEPS = 2, 8000, 256  # of an excerpt of a long sound, at a usual rate; steps of one of a long series

Fetch: TypeAlias = Callable[[], Array]


@dataclass
class RawTable:
    """Columns as read, each fetched when asked for, and what the source says about each row."""

    columns: dict[str, Fetch]
    n: int
    label: NDArray | None = None  # [N] class names or numbers that are no column
    part: NDArray | None = None  # [N] TRAIN, VALID or TEST where the source brings its own split
    notes: list[str] = field(default_factory=list)
    types: dict[str, Column] = field(default_factory=dict)  # of columns whose type is known, not inferred
    numbers: None = None  # rows are never picked while reading


Raw: TypeAlias = RawTable | RawImages | RawRagged


@dataclass(frozen=True)
class Delimited:
    """How text of delimited fields is read; ``decided`` receives what the reader told from the text itself.

    Attributes:
        header: does the first line hold names? None: told from the text.
        names: of all columns.
        missing: the spellings that mean missing, besides empty fields, quoted or not; None: the usual ones, where they
            stand without quotes.
        formats: how columns are written, one of ``formats.FORMATS`` each.
        columns: those that new rows must have; none while data are loaded.
    """

    header: bool | None = None
    names: Sequence[str] | None = None
    missing: Sequence[str] | None = None
    formats: Mapping[str, str] = field(default_factory=dict)
    columns: Collection[str] = ()
    decided: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How to read: what ``pofx.load`` was told, and for new rows the space they must be of."""

    texts: Collection[str] = ()  # columns of a CSV file to take as text whatever they look like
    shape: tuple[int, ...] | None = None  # of one datum in a flat or bit-packed array
    resize: int | None = None
    known: Image | None = None  # new images must be of this space
    alone: bool = False  # a training file is read without its test twin
    max_rows: int | None = None  # of a folder; all other sources are read whole
    seed: int = 0  # of max_rows and of synthetic sources
    kind: str | None = None  # "table", "text", "audio" or "sequence", whatever a source looks like
    arrays: Collection[str] = ()  # of an archive, those that are the data
    label_array: str | None = None  # of an archive, the one that holds each row's class
    delimited: Delimited = field(default_factory=Delimited)
    text: text.Reading = field(default_factory=text.Reading)
    audio: audio.Reading = field(default_factory=audio.Reading)
    steps: sequences.Reading = field(default_factory=sequences.Reading)


def table_of(names: Iterable[str], column: Callable[[int], Array], rows: int, where: str) -> RawTable:
    names = [n.strip() for n in names]
    if not names:
        raise EmptyData(f"{where} has no columns.", "Give a table with columns.")
    if twice := sorted((n, count) for n, count in Counter(names).items() if count > 1 and n):
        raise BadValue(f"{where} has {twice[0][1]} columns named {twice[0][0]!r}.", "Rename all but one.")
    if not rows:
        raise EmptyData(f"{where} has columns ({', '.join(names[:5])}) but no rows.", "Give rows.")
    notes: list[str] = []
    columns: dict[str, Fetch] = {}
    for j, name in enumerate(names):
        # a separator at the end of every line makes a column without name and values
        if not name and getattr(column(j), "null_count", 0) == rows:
            notes.append(f"Column {j + 1} was left out: it has neither a name nor a value.")
            continue
        if not name:
            free = (f"column{j + 1}" + "_" * k for k in range(len(names) + 1))
            name = next(n for n in free if n not in names)
            notes.append(f"Column {j + 1} has no name: it is called {name!r} here.")
        columns[name] = partial(column, j)
    return RawTable(columns, rows, notes=notes)


def corrupt(path: Path | str, kind: str, why: object) -> CorruptFile:
    return CorruptFile(f"{path} cannot be read as {kind}: {why}.".replace("..", "."), "Fetch or write the file again.")
