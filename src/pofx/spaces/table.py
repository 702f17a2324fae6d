"""Rows of typed columns: one event is a float64 vector, with a number or the index of a value per column."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from pofx.core.errors import BadValue
from pofx.core.measure import Measure
from pofx.core.space import Space, check_shape


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
class Table(Space):
    """Rows of typed columns; one event is a float64 vector [D].

    Example:
        >>> table = Table((Real("height"), Integer("children", 0, 9), Category("eyes", ("blue", "brown"))))
        >>> str(table.measure)
        'lebesgue × counting^2'
    """

    columns: tuple[Column, ...] = field()

    name: ClassVar[str] = "table"
    dtype: ClassVar[torch.dtype] = torch.float64
    whole: ClassVar[str] = "Give whole numbers up to 2^53, or declare the column a category."

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (len(self.columns),)

    @cached_property
    def measure(self) -> Measure:
        return Measure.of([c.measure for c in self.columns])

    def __str__(self) -> str:
        kinds = [type(c).__name__.lower() for c in self.columns]
        return f"table of {len(kinds)} columns: " + ", ".join(
            f"{kinds.count(k)} {k}" for k in ("real", "integer", "category") if k in kinds
        )

    def check(self, x: Tensor) -> None:
        """Raise WrongShape or BadValue unless every row of x [..., D] is one of this space."""
        check_shape(self, x)
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

    def spell(self, x: Tensor) -> str:
        """The cells of a row; nothing for a missing one."""

        def cell(column: Column, value: float) -> str:
            if math.isnan(value):
                return ""
            return column.values[int(value)] if isinstance(column, Category) else f"{value:.6g}"

        return ", ".join(map(cell, self.columns, x.tolist()))

    def to_json(self) -> dict[str, Any]:
        return {"space": self.name, "columns": [{"type": type(c).__name__, **vars(c)} for c in self.columns]}

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Table:
        kinds: dict[str, Callable[..., Column]] = {"Real": Real, "Integer": Integer, "Category": Category}
        columns = []
        for entry in found["columns"]:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k != "type"}
            columns.append(kinds[entry["type"]](**values))
        return cls(tuple(columns))

    def check_draws(self, x: Tensor) -> str | None:
        """NaN where a column is nullable alone, and nothing infinite."""
        bad = x.isinf() | (x.isnan() & ~torch.tensor([c.nullable for c in self.columns], device=x.device))
        if not bad.any():
            return None
        return f"a {x[bad][0].item()} in column {self.columns[int(bad.nonzero()[0, -1])].name!r}"
