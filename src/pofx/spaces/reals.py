"""Real numbers of one shape: latents, embeddings, images as reals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from pofx.core.errors import BadValue
from pofx.core.measure import Measure
from pofx.core.space import Space, check_shape
from pofx.spaces.table import Real


@dataclass(frozen=True)
class Reals(Space):
    """Real numbers of one shape; one event is float64 [*shape], with a density on all of it.

    Example:
        >>> latents = Reals((2, 8))
        >>> latents.event_shape, str(latents.measure), latents.columns[0].name
        ((2, 8), 'lebesgue^16', 'x0,0')
    """

    shape: tuple[int, ...]

    name: ClassVar[str] = "reals"
    dtype: ClassVar[torch.dtype] = torch.float64

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def measure(self) -> Measure:
        return Measure.lebesgue(self.dims)

    @cached_property
    def columns(self) -> tuple[Real, ...]:  # type: ignore[override]
        return tuple(Real(f"x{place(index)}") for index in product(*map(range, self.shape)))

    def __str__(self) -> str:
        return f"reals {'×'.join(map(str, self.shape))}"

    def check(self, x: Tensor) -> None:
        check_shape(self, x)
        if problem := self.check_draws(x):
            raise BadValue(f"A datum holds {problem}; reals are finite.", "Drop the datum, or make it a table's row.")

    def check_draws(self, x: Tensor) -> str | None:
        bad = x[~x.isfinite()]
        return f"a {bad[0].item()}" if len(bad) else None


def place(index: tuple[int, ...]) -> str:
    """The place of a number within a datum, as names of columns say it."""
    return ",".join(map(str, index))
