"""What readers give: columns, arrays or rows of any length as read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from pofx.core.errors import BadValue, CorruptFile, EmptyData
from pofx.core.space import Space
from pofx.data.ragged import Fetch, NDArray, RawRagged, Source
from pofx.data.tabular import Array
from pofx.spaces import Column

IN_MEMORY = "<memory>"


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
    files: None = None  # rows of a table come from no files of their own
    places: None = None
    of: NDArray | None = None  # [N] the same for rows that name one file, where several do
    beside: dict[str, Fetch] = field(default_factory=dict)  # arrays [N, ...] of the source that are none of its columns


@dataclass
class RawArray(Source):
    """Data of one size as read: x [N, *E] of the space's dtype, and what the source says about each."""

    x: NDArray
    space: Space

    @property
    def n(self) -> int:
        return len(self.x)

    def repeat(self, index: NDArray) -> None:
        """Row index[i] becomes row i: each is there as often as it is named."""
        self.x = self.x[index]
        self.about(index)


Raw: TypeAlias = RawTable | RawArray | RawRagged


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
