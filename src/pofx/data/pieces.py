"""Tables beyond memory, to be evaluated: files in pieces, each of which can be read anywhere and by itself.

A piece is a row group of a Parquet file, or a whole file of another format. Its rows come in blocks of ``BLOCK``, as
``read_rows`` would read them, numbered as in their file.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from pofx.core.errors import EmptyData, MissingSource, PofxError, UnknownFormat
from pofx.core.space import Space
from pofx.data.columnar import DAMAGE
from pofx.data.folders import files_at, opened
from pofx.data.parts import Part
from pofx.data.raw import corrupt
from pofx.data.rows import names_used, read_rows, unused
from pofx.spaces import Integer, Real

BLOCK = 2**16  # rows that are in memory at once, of a piece that can be read in parts
PARQUET = (".parquet", ".pq")
TABLES = (*PARQUET, ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".arrow", ".feather")


@dataclass(frozen=True)
class Piece:
    """Rows of one file.

    Attributes:
        file: its path or address.
        number: which of the source's files it is.
        group: which row group of a Parquet file; None for all of the file.
        first: the number of its first row in the file.
        rows: how many there are; None where only reading the file tells.
    """

    file: str
    number: int
    group: int | None = None
    first: int = 0
    rows: int | None = None


def is_streamed(space: Space, context: Space | None, source: str, cluster: str | None = None) -> bool:
    """Is a source read in pieces: for a model of tables Parquet files, several files, and for a cluster any?"""
    if not all(s is None or (s.columns and s.parts is None) for s in (space, context)):
        return False
    if source.lower().endswith(PARQUET if cluster is None else TABLES):
        return True
    return os.path.isdir(source) or (glob.has_magic(source) and not os.path.exists(source))


def tables_at(source: str, notes: list[str]) -> list[str]:
    """The tables among the files of a path, a folder or a pattern. ``notes`` is told of the others."""
    files = files_at(source)
    found = [f for f in files if f.lower().endswith(TABLES)]
    if not found:
        raise MissingSource(f"No file of {source!r} is a table.", f"Give {', '.join(TABLES)} files.")
    if others := [f.rpartition("/")[2] for f in files if f not in found]:
        notes.append(f"Left aside, as no tables: {', '.join(others[:6])}{', …' * (len(others) > 6)}.")
    return found


def pieces_of(files: Sequence[str], space: Space, context: Space | None) -> list[Piece]:
    """All rows of the files in pieces, in order. Raises DataError for a file that cannot be one, or EmptyData."""
    numeric = {c.name for s in (space, context) if s is not None for c in s.columns if _is_number(c)}
    pieces: list[Piece] = []
    for number, name in enumerate(files):
        if not name.lower().endswith(TABLES):
            raise UnknownFormat(f"{name} is no table.", f"Give {', '.join(TABLES)} files.")
        if not name.lower().endswith(PARQUET):
            pieces.append(Piece(name, number))
            continue
        with _parquet(name) as file:
            meta, first = file.metadata, 0
            texts = {f.name.strip() for f in file.schema_arrow if "string" in str(f.type) or "binary" in str(f.type)}
            if texts & numeric:  # how numbers and dates are spelled is told from all of a column
                pieces += [Piece(name, number, rows=meta.num_rows)] if meta.num_rows else []
                continue
            for group in range(meta.num_row_groups):
                rows = meta.row_group(group).num_rows
                if rows:
                    pieces.append(Piece(name, number, group, first, rows))
                first += rows
    if not pieces:
        raise EmptyData(f"There are no rows in {len(files)} files, of which the first is {files[0]}.", "Give rows.")
    return pieces


def _is_number(column: object) -> bool:
    return isinstance(column, Real | Integer)


def blocks(
    piece: Piece,
    space: Space,
    context: Space | None,
    *,
    labels: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    notes: list[str],
) -> Iterator[Part]:
    """The rows of a piece in their order, at most ``BLOCK`` at a time; arguments and errors are those of ``read_rows``.

    Errors name the file as well.
    """
    try:
        how: Any = {"labels": labels, "options": options, "notes": notes}
        if piece.group is None:
            part = read_rows(space, context, piece.file, **how)
            for start in range(0, len(part), BLOCK):
                yield part[start : start + BLOCK]
            return
        first, used = piece.first, names_used(space, context, options or {})
        with _parquet(piece.file) as file:
            names = file.schema_arrow.names
            notes += unused([n.strip() for n in names], used)
            wanted = [n for n in names if n.strip() in used] or names
            try:
                for batch in file.iter_batches(BLOCK, row_groups=[piece.group], columns=wanted):
                    batch.validate(full=True)
                    yield read_rows(space, context, pa.table(batch), first=first, **how)
                    first += len(batch)
            except DAMAGE as e:
                raise corrupt(piece.file, "Parquet", e) from e
        if first - piece.first != piece.rows:
            what = f"row group {piece.group} has {first - piece.first} of {piece.rows} rows"
            raise corrupt(piece.file, "Parquet", what)
    except PofxError as e:
        if piece.file in e.problem:
            raise
        raise type(e)(f"{piece.file}: {e.problem}", e.remedy) from e


def _parquet(name: str) -> pa.parquet.ParquetFile:
    """Raises CorruptFile, or MissingSource where it is not there (on this machine)."""
    try:
        return pa.parquet.ParquetFile(opened(name))
    except FileNotFoundError as e:
        raise MissingSource(
            f"There is no file {name} on this machine.",
            "Give a path or address that all of the cluster's machines have.",
        ) from e
    except DAMAGE as e:
        raise corrupt(name, "Parquet", e) from e
