"""One of K classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from pofx.core.errors import BadValue
from pofx.core.measure import Measure
from pofx.core.space import Space, check_shape
from pofx.spaces.table import Category, Column


@dataclass(frozen=True)
class Label(Space):
    """One of K classes; one event is an int64 scalar.

    Example:
        >>> Label(("cat", "dog")).dims
        1
    """

    values: tuple[str, ...] = field()

    name: ClassVar[str] = "label"
    dtype: ClassVar[torch.dtype] = torch.int64
    unit: ClassVar[str] = "label"

    @cached_property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        """A label is a table of one category."""
        return (Category("label", self.values),)

    @property
    def symbols(self) -> int:  # type: ignore[override]
        return len(self.values)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def measure(self) -> Measure:
        return Measure.counting(1)

    def __str__(self) -> str:
        return f"label of {len(self.values)} classes"

    def spell(self, x: Tensor) -> str:
        return self.values[int(x)]

    def parse(self, spellings: list[str]) -> Tensor:
        """Classes by their names, as one batch [N]. Raises BadValue for a name that is none of them."""
        number = {value: k for k, value in enumerate(self.values)}
        if unknown := [s for s in spellings if s not in number]:
            known = ", ".join(self.values[:20]) + (", …" if len(self.values) > 20 else "")
            raise BadValue(f"There is no class {unknown[0]!r}.", f"Classes: {known}.")
        return torch.tensor([number[s] for s in spellings])

    def check(self, x: Tensor) -> None:
        check_shape(self, x)
        if x.numel() and (int(x.min()) < 0 or int(x.max()) >= len(self.values)):
            raise BadValue(
                f"A label is {int(x.min())} to {int(x.max())}; the classes are 0 to {len(self.values) - 1}.",
                "Encode labels with the classes of the training data.",
            )
