"""Sequences of steps, each a row of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from pofx.core.measure import Measure
from pofx.core.space import Ragged
from pofx.spaces.table import Table


@dataclass(frozen=True)
class Sequence(Ragged):
    """Sequences of steps, each a row of a table: trajectories, time series, piano rolls.

    One event is float64 [L, D], infinity after the end.

    Attributes:
        step: what one step is.
        has_eos: a datum is a whole sequence; else an excerpt, of known length.
        length: of the longest known datum, in steps.
    """

    step: Table
    has_eos: bool = True
    length: int = 256

    name: ClassVar[str] = "sequence"
    dtype: ClassVar[torch.dtype] = torch.float64
    fill: ClassVar[float] = math.inf
    unit: ClassVar[str] = "step"

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (-1, self.step.dims)

    @property
    def dims(self) -> int:
        return self.length * self.step.dims

    @cached_property
    def measure(self) -> Measure:
        """A datum of n steps has the measure of a step n times over."""
        return Measure(tuple((f"{name}*", count) for name, count in self.step.measure.parts))

    def __str__(self) -> str:
        what = "sequences" if self.has_eos else "excerpts of sequences"
        return f"{what} of up to {self.length} steps, each a {self.step}"

    def spell(self, x: Tensor) -> str:
        """A line for each step."""
        return "\n".join(self.step.spell(row) for row in x[x[:, 0] != self.fill])

    def check(self, x: Tensor) -> None:
        super().check(x)
        inside = x.flatten(0, -2)
        self.step.check(inside[inside[:, 0] != math.inf])

    def check_draws(self, x: Tensor) -> str | None:
        return self.step.check_draws(x[(x != self.fill).any(-1)])
