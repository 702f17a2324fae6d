"""What one datum x is: its shape, its values, its base measure, and which values are allowed.

A space says nothing about any data set beyond what is needed to read, check and write values.

    space     one event                         dtype     measure
    Table     [D], one entry per column         float64   per column, see below
    Image     [C, H, W], 0 .. levels-1          uint8     counting
    Label     [], class index                   int64     counting

A table row is one float64 vector: a number for a real or integer column, the index of the value for a
category, NaN for a missing entry (allowed in nullable columns only).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from pofx.core.errors import BadValue, UsageError, WrongShape
from pofx.core.measure import Measure


@dataclass(frozen=True)
class Real:
    """A real column with a density in its raw unit; ``step`` makes it a grid of atoms.

    A column that repeats values has atoms, on which a continuous density grows without limit. Such a
    column is recorded at its stored resolution: values are ``origin + k * step`` for integer k, and it
    is measured by counting. ``low`` and ``high`` are the observed range (for display and for scale
    only: values outside are allowed).
    """

    name: str
    nullable: bool = False
    step: float | None = None
    origin: float = 0.0
    low: float | None = None
    high: float | None = None

    @property
    def measure(self) -> str:
        if self.step is not None:
            return "counting"
        return "atom+lebesgue" if self.nullable else "lebesgue"


@dataclass(frozen=True)
class Integer:
    """A column of integers, measured by counting on all of Z; ``low``, ``high``: the observed range.

    ``date`` is "d" or "s" where the integers count days or seconds since 1970-01-01.
    """

    name: str
    low: int
    high: int
    nullable: bool = False
    date: str | None = None

    step: ClassVar[float] = 1.0
    origin: ClassVar[float] = 0.0

    @property
    def measure(self) -> str:
        return "counting"


@dataclass(frozen=True)
class Category:
    """A column with a fixed set of values, stored as their indices; ``values`` are their spellings."""

    name: str
    values: tuple[str, ...]
    nullable: bool = False

    @property
    def measure(self) -> str:
        return "counting"


Column: TypeAlias = Real | Integer | Category


@dataclass(frozen=True)
class Table:
    """Rows of typed columns; one event is a float64 vector [D]."""

    columns: tuple[Column, ...]

    dtype: ClassVar[torch.dtype] = torch.float64

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (len(self.columns),)

    @cached_property
    def measure(self) -> Measure:
        return Measure.of([c.measure for c in self.columns])

    @property
    def dims(self) -> int:
        return len(self.columns)

    def __str__(self) -> str:
        kinds = [type(c).__name__.lower() for c in self.columns]
        return f"table of {len(kinds)} columns: " + ", ".join(
            f"{kinds.count(k)} {k}" for k in ("real", "integer", "category") if k in kinds
        )

    def check(self, x: Tensor) -> None:
        """Raise WrongShape or BadValue unless every row of x [..., D] is one of this space."""
        _check_shape(self, x)
        flat = x.reshape(-1, self.dims)
        # a finite sum: nothing is missing or infinite, which one cheap pass tells of most data
        missing = None if math.isfinite(flat.sum().item()) else torch.isnan(flat)
        if missing is not None and (infinite := torch.isinf(flat).any(0)).any():
            raise BadValue(
                f"Column {self.columns[int(infinite.nonzero()[0])].name!r} holds an infinite value.",
                "Mark it as missing or drop the row.",
            )
        for j, col in enumerate(self.columns):
            if missing is not None and not col.nullable and missing[:, j].any():
                row = int(missing[:, j].nonzero()[0])
                raise BadValue(
                    f"Column {col.name!r} is NaN (missing) in row {row}, but had no missing values when its type was set.",
                    f"Drop the row, or declare the column nullable: --types {col.name}=nullable.",
                )
            if isinstance(col, Real) and col.step is None:
                continue
            v = flat[:, j] if missing is None else flat[:, j][~missing[:, j]]
            if isinstance(col, Category):
                bad = v[(v != v.round()) | (v < 0) | (v >= len(col.values))]
                if len(bad):
                    raise BadValue(
                        f"Column {col.name!r} holds code {bad[0].item():g}; it has {len(col.values)} values (0 to {len(col.values) - 1}).",
                        "Encode rows with the table's own categories.",
                    )
            elif col.step is not None:
                k = (v - col.origin) / col.step
                bad = v[(k - k.round()).abs() > 1e-3]
                if len(bad):
                    raise BadValue(
                        f"Column {col.name!r} holds {bad[0].item():.10g}, which is not on its grid (step {col.step:g}).",
                        f"Round it, or declare the column continuous: --types {col.name}=real.",
                    )

    def to_json(self) -> dict[str, Any]:
        return {"space": "table", "columns": [{"type": type(c).__name__, **vars(c)} for c in self.columns]}


@dataclass(frozen=True)
class Image:
    """Images [C, H, W] of integer levels 0 .. levels-1 (levels at most 256)."""

    height: int
    width: int
    channels: int = 1
    levels: int = 256

    dtype: ClassVar[torch.dtype] = torch.uint8

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.channels, self.height, self.width)

    @property
    def dims(self) -> int:
        return self.channels * self.height * self.width

    @property
    def measure(self) -> Measure:
        return Measure.counting(self.dims)

    def __str__(self) -> str:
        return f"images {self.height}×{self.width}×{self.channels}, {self.levels} levels"

    def check(self, x: Tensor) -> None:
        _check_shape(self, x)
        if x.numel() and int(x.max()) >= self.levels:
            raise BadValue(
                f"A pixel has level {int(x.max())}; this space has levels 0 to {self.levels - 1}.",
                "Rescale the images.",
            )

    def to_json(self) -> dict[str, Any]:
        return {"space": "image", **vars(self)}


@dataclass(frozen=True)
class Label:
    """One of K classes; one event is an int64 scalar."""

    values: tuple[str, ...]

    dtype: ClassVar[torch.dtype] = torch.int64

    @property
    def event_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dims(self) -> int:
        return 1

    @property
    def measure(self) -> Measure:
        return Measure.counting(1)

    def __str__(self) -> str:
        return f"label of {len(self.values)} classes"

    def check(self, x: Tensor) -> None:
        _check_shape(self, x)
        if x.numel() and (int(x.min()) < 0 or int(x.max()) >= len(self.values)):
            raise BadValue(
                f"A label is {int(x.min())} to {int(x.max())}; the classes are 0 to {len(self.values) - 1}.",
                "Encode labels with the classes of the training data.",
            )

    def to_json(self) -> dict[str, Any]:
        return {"space": "label", "values": self.values}


Space: TypeAlias = Table | Image | Label


def from_json(data: dict[str, Any]) -> Space:
    """The inverse of ``to_json``. Raises UsageError on an unknown space."""
    body = {k: v for k, v in data.items() if k != "space"}
    if data["space"] == "image":
        return Image(**body)
    if data["space"] == "label":
        return Label(tuple(body["values"]))
    if data["space"] == "table":
        kinds: dict[str, Callable[..., Column]] = {"Real": Real, "Integer": Integer, "Category": Category}
        columns = []
        for entry in body["columns"]:
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k != "type"}
            columns.append(kinds[entry["type"]](**fields))
        return Table(tuple(columns))
    raise UsageError(f"Unknown space {data['space']!r}; known: table, image, label.", "Use a newer pofx.")


def bits_per_dim(nats: float, space: Space) -> float:
    """log p in nats per datum -> bits per dimension (positive is worse; a density may go below zero)."""
    return -nats / math.log(2) / space.dims


def perplexity(nats: float, space: Space) -> float:
    """exp of the mean surprise per dimension."""
    return math.exp(-nats / space.dims)


def _check_shape(space: Space, x: Tensor) -> None:
    if x.dtype != space.dtype:
        raise WrongShape(f"Data have dtype {x.dtype}; {space} takes {space.dtype}.", f"Convert: x.to({space.dtype}).")
    k = len(space.event_shape)
    got = tuple(x.shape[x.ndim - k :]) if x.ndim >= k else tuple(x.shape)
    if x.ndim < k or got != space.event_shape:
        raise WrongShape(
            f"Data have shape {tuple(x.shape)}; {space} takes [..., {', '.join(map(str, space.event_shape))}].",
            "Give one datum of this space per entry of the batch shape.",
        )
