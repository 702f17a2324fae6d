"""Tables beyond memory: a temporary file that holds the numbers of all columns, and rows that are read when asked for.

A block of rows, or a single column, fits into memory where the table does not. So a table is read column by column
(which Parquet is made for), each column's type is inferred from all its values as always, and its numbers are written
to a file once. Whoever learns by sweeps asks for blocks of rows ``x[i:j]``, whoever needs all values of a column (for
quantiles) for ``x[:, j]``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pofx.core.errors import CannotSave, OutOfMemory, UsageError
from pofx.core.memory import available, gigabytes, parse

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Index: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

COPIES = 4  # of a table in memory: all rows, their parts, and what a family makes of them
WORKING = 10  # columns of numbers, while the type of one is inferred
SPARSE = 32  # rows between two that are wanted, from which on they are fetched one by one
BLOCK = 2**13  # rows that are looked at in one go


def beyond(rows: int, columns: int, memory: str | int | None) -> str | None:
    """Why a table does not fit comfortably into ``memory`` (None: what is free), or None where it does.

    Raises OutOfMemory where not even a column fits, UsageError for no amount.
    """
    limit, size = available() if memory is None else parse(memory), 8 * rows * columns
    if COPIES * size <= limit:
        return None
    known = f"{gigabytes(limit)} that are {'free' if memory is None else 'allowed'}"
    if WORKING * 8 * rows > limit:
        raise OutOfMemory(
            f"{rows:,} rows are too many: one column of them takes {gigabytes(WORKING * 8 * rows)}, of the {known}.",
            "Give a part of the rows, or more memory.",
        )
    return (
        f"{rows:,} rows of {columns} columns are {gigabytes(size)}, with the copies that a fit takes more than the "
        f"{known}: they are read in blocks from a temporary file in {tempfile.gettempdir()}."
    )


class ColumnFile:
    """Columns of N numbers one after the other in a file without a name, which goes when nobody uses it any more."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (open as long as the rows are used)

    def append(self, values: Floats) -> None:
        """One more column [N]. Raises CannotSave."""
        left = np.ascontiguousarray(values, np.float64).data.cast("B")
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            raise CannotSave(
                f"Could not write a column of {gigabytes(8 * self.rows)} to {tempfile.gettempdir()}: {error.strerror}.",
                "Make room there, or name another folder by the environment variable TMPDIR.",
            ) from error

    def __reduce__(self) -> Any:
        raise UsageError("Rows that are read in blocks stay in the process that read them.", "Work in one process.")

    def read(self, column: int, start: int, out: Floats) -> Floats:
        """Values of a column from ``start`` on, as many as ``out`` holds; plain reads take no address space."""
        left, place = out.data.cast("B"), 8 * (column * self.rows + start)
        while left:
            count = os.preadv(self.file.fileno(), [left], place)
            left, place = left[count:], place + count
        return out

    def fetch(self, column: int, index: Index) -> Floats:
        """Single values [n] of a column, which alone is mapped into memory meanwhile."""
        mapped = np.memmap(self.file, np.float64, "r", 8 * column * self.rows, (self.rows,))
        return np.asarray(mapped[index])


@dataclass(frozen=True, eq=False)
class BlockRows:
    """Rows [N, D] of columns in a file, float64: what a tensor is to data that fit into memory.

    ``x[i:j]`` and ``x[numbers]`` read rows, ``x[:, j]`` reads one column; ``take`` and ``of`` read nothing.

    Attributes:
        file: where the values are.
        columns: which of its columns, in order.
        index: which of its rows, in order; None for all.
    """

    file: ColumnFile
    columns: tuple[int, ...]
    index: Index | None = None

    def __len__(self) -> int:
        return self.file.rows if self.index is None else len(self.index)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), len(self.columns)

    def take(self, index: Any) -> BlockRows:
        """The rows at ``index``, in its order."""
        return replace(self, index=self._places(index))

    def of(self, columns: Sequence[int]) -> BlockRows:
        """The same rows of some columns."""
        return replace(self, columns=tuple(self.columns[j] for j in columns))

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, tuple):
            return torch.from_numpy(self._column(*index))
        where = self._places(index)
        out = np.empty((len(self.columns), len(where)))  # columns lie together, as they do in the file
        first, last = (int(where.min()), int(where.max()) + 1) if len(where) else (0, 0)
        if last - first > SPARSE * len(where):
            for into, j in zip(out, self.columns, strict=True):
                into[:] = self.file.fetch(j, where)
        else:
            where, span = where - first, np.empty(last - first)
            for into, j in zip(out, self.columns, strict=True):
                np.take(self.file.read(j, first, span), where, out=into, mode="clip")
        rows = torch.from_numpy(out).T
        return rows if isinstance(index, slice) else rows.contiguous()

    def _column(self, rows: slice, column: int) -> Floats:
        values = self.file.read(self.columns[column], 0, np.empty(self.file.rows))
        return values[rows] if self.index is None else values[self.index[rows]]

    def _places(self, index: Any) -> Index:
        """Numbers in the file of the rows at ``index``: numbers or booleans, or a slice."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)), dtype=np.int64)
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index
        if self.index is not None:
            return self.index[index]
        if len(index) and not 0 <= index.min() <= index.max() < self.file.rows:
            raise IndexError(f"Rows {index.min()} to {index.max()} of {self.file.rows}.")
        return index
