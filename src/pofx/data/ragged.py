"""Rows of different length, end to end in one long array, and batches of them with fill after each end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pofx.core.errors import BadValue, WrongShape
from pofx.data.options import Options
from pofx.spaces import Audio, Sequence, Text

NDArray: TypeAlias = "np.ndarray[Any, Any]"
Fetch: TypeAlias = Callable[[], Any]  # a column, an Arrow or a NumPy array, when it is asked for

SHORT = 512  # entries of the longest row up to which one gather is faster than a copy per row


@dataclass(frozen=True)
class RaggedRows:
    """N rows, each a stretch of one array, which may be a file mapped into memory: nothing is copied until asked for.

    Raises WrongShape where a row does not lie within the array.

    Attributes:
        values: all rows' steps [T, ...], of any type that converts to ``dtype``.
        starts: where each row begins in ``values``, int64 [N]; rows may overlap, repeat and leave gaps.
        ends: where each stops (exclusive), int64 [N].
        fill: what stands after the end of the shorter rows of a batch.
        dtype: of the batches.
    """

    values: NDArray
    starts: NDArray
    ends: NDArray
    fill: float
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.starts.shape != self.ends.shape or self.starts.ndim != 1:
            raise WrongShape(
                f"Rows start at {list(self.starts.shape)} places and end at {list(self.ends.shape)}.",
                "Give one start and one end per row.",
            )
        wrong = (self.starts < 0) | (self.ends < self.starts) | (self.ends > len(self.values))
        if wrong.any():
            i = int(wrong.argmax())
            raise WrongShape(
                f"Row {i} goes from {self.starts[i]} to {self.ends[i]}; there are {len(self.values)} steps.",
                "Let rows start and end, in this order, within the array.",
            )

    @classmethod
    def joined(cls, values: NDArray, offsets: NDArray, fill: float, dtype: torch.dtype) -> RaggedRows:
        """Rows end to end: row i is values[offsets[i]:offsets[i + 1]], offsets [N + 1]."""
        offsets = np.asarray(offsets, np.int64)
        return cls(values, offsets[:-1], offsets[1:], fill, dtype)

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def lengths(self) -> Tensor:
        """Steps of each row, int64 [N]."""
        return torch.from_numpy(np.subtract(self.ends, self.starts, dtype=np.int64))

    def take(self, index: Tensor | slice) -> RaggedRows:
        """The rows at ``index``, in its order; their values stay where they are."""
        i = _plain(index)
        return RaggedRows(self.values, self.starts[i], self.ends[i], self.fill, self.dtype)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The n rows at ``index`` (integers [n], booleans [N] or a slice) as one batch [n, longest, ...]."""
        i = _plain(index)
        starts, ends = self.starts[i], self.ends[i]
        lengths = ends - starts
        longest = int(lengths.max(initial=0))
        out = torch.full((len(starts), longest, *self.values.shape[1:]), self.fill, dtype=self.dtype)
        into = out.numpy()
        if out.numel() > SHORT * len(out):
            for row, start, end in zip(into, starts.tolist(), ends.tolist(), strict=True):
                row[: end - start] = self.values[start:end]
        elif (lengths == longest).all():
            into[...] = self.values[starts[:, None] + np.arange(longest)]
        else:
            inside = np.arange(longest) < lengths[:, None]
            first = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
            into[inside] = self.values[first + np.arange(len(first))]
        return out

    def cut(self, length: int) -> RaggedRows:
        """Each row up to its first ``length`` steps."""
        return replace(self, ends=np.minimum(self.ends, self.starts + length))

    def runs(self) -> tuple[RaggedRows, Tensor]:
        """Rows that continue each other, joined; and the first of the rows in each [runs]."""
        first = np.flatnonzero(np.append(True, self.starts[1:] != self.ends[:-1]))
        last = np.append(first[1:], len(self)) - 1
        joined = RaggedRows(self.values, self.starts[first], self.ends[last], self.fill, self.dtype)
        return joined, torch.from_numpy(first)


def _plain(index: Tensor | slice) -> Any:
    return index.cpu().numpy() if isinstance(index, Tensor) else index


@dataclass(kw_only=True)
class Source:
    """What a source that may be of files says about each row that was read of it."""

    label: NDArray | None = None  # [N] class names or numbers
    part: NDArray | None = None  # [N] TRAIN, VALID or TEST where the source brings its own split
    numbers: NDArray | None = None  # [N] number in the source, where only some were read
    notes: list[str] = field(default_factory=list)
    files: list[str] | None = None  # [N] below the folder that was read
    places: list[str] | None = None  # [N] where what is beside each row stands
    of: NDArray | None = None  # [N] the same for rows of one file, where several are of one
    beside: dict[str, Fetch] = field(default_factory=dict)  # columns and arrays [N, ...] that the source has beside x

    def about(self, index: NDArray) -> None:
        """Lets what is said be of the rows at ``index``."""

        def listed(of: list[str] | None) -> list[str] | None:
            return None if of is None else [of[i] for i in index]

        self.label, self.part, self.numbers = (
            None if a is None else a[index] for a in (self.label, self.part, self.numbers)
        )
        self.files, self.places = listed(self.files), listed(self.places)
        self.beside = {name: partial(_taken, fetch, index) for name, fetch in self.beside.items()}


def _taken(fetch: Fetch, index: NDArray) -> Any:
    column = fetch()
    return column[index] if isinstance(column, np.ndarray) else column.take(index)


@dataclass
class RawRagged(Source):
    """Data of free length as read, and what the source says about each row."""

    space: Text | Audio | Sequence
    rows: RaggedRows
    before: RaggedRows | None = field(default=None, kw_only=True)  # what precedes each row, of excerpts
    classes: str | None = field(default=None, kw_only=True)  # what the source calls the label, if one of several arrays

    @property
    def n(self) -> int:
        return len(self.rows)

    def repeat(self, index: NDArray) -> None:
        """Row index[i] becomes row i: each is there as often as it is named."""
        self.rows = self.rows.take(torch.from_numpy(index))
        self.about(index)

    def without_empty(self, said: str, options: Options) -> RawRagged:
        """Itself without rows of no steps; where there are any, a note says how many, and what is ``said`` of them.

        Raises BadValue where rows are paired: what belongs to an empty one would be left alone.
        """
        empty = self.rows.lengths == 0
        if empty.any() and options.paired:
            row = int(empty.int().argmax())
            what = f"row {row}" if self.files is None else self.files[row]
            raise BadValue(f"{what} has no step, yet something belongs to it.", "Remove it with what belongs to it.")
        if empty.any():
            self.notes.append(f"{int(empty.sum())} {said}")
            self.repeat((~empty).nonzero()[:, 0].numpy())
        return self


# steps of an excerpt of a long sound (two seconds at a usual rate), or of a long series
EXCERPTS = {"audio": 2 * 8000, "sequence": 256}
FEW = 10  # rows; fewer cannot be split into parts as they are


def cut_up(
    rows: RaggedRows, size: int, before: int, newline: int | None = None
) -> tuple[RaggedRows, RaggedRows, NDArray]:
    """Rows in excerpts of up to ``size`` steps, up to ``before`` steps in front of each, and which row each is of [n].

    An excerpt ends behind the last ``newline`` in its second half, where there is one.
    """
    cuts: list[tuple[int, int, int]] = []
    for number, (place, end) in enumerate(zip(rows.starts.tolist(), rows.ends.tolist(), strict=True)):
        while place < end:
            stop = min(place + size, end)
            if newline is not None and stop < end:
                lines = np.flatnonzero(rows.values[place:stop] == newline)
                stop = place + int(lines[-1]) + 1 if len(lines) and lines[-1] >= size // 2 else stop
            cuts.append((number, place, stop))
            place = stop
    of, first, last = np.array(cuts, np.int64).T
    front = replace(rows, starts=np.maximum(first - before, rows.starts[of]), ends=first)
    return replace(rows, starts=first, ends=last), front, of


def excerpts(raw: RawRagged, options: Options) -> RawRagged:
    """A few long rows cut into excerpts of EXCERPTS steps, each with as many before it; many rows as they are.

    New rows of a known space stay as they are where those of that space have an end.
    """
    rows, space, like = raw.rows, raw.space, options.sounds or options.steps
    size = EXCERPTS[space.name]
    if (like is not None and like.has_eos) or len(rows) >= FEW or raw.part is not None or options.paired:
        return raw
    cut, before, number = cut_up(rows, size, size)
    label = None if raw.label is None else raw.label[number]
    notes = [*raw.notes, f"{len(rows)} of them: cut into {len(cut)} excerpts of up to {size} steps in their order."]
    space = replace(space, has_eos=False, length=int(cut.lengths.max()))
    return RawRagged(space, cut, label=label, notes=notes, before=before, classes=raw.classes)
