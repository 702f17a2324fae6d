"""Grids of codes: what a quantised autoencoder gives, tokens of one number, images of many levels."""

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
from pofx.spaces.reals import place
from pofx.spaces.table import Category


@dataclass(frozen=True)
class Codes(Space):
    """Codes 0 .. size-1, as many as one likes, in one shape; one event is int64 [*shape].

    Example:
        >>> grid = Codes((4, 4), 1024)
        >>> grid.event_shape, grid.dims, str(grid.measure)
        ((4, 4), 16, 'counting^16')
    """

    shape: tuple[int, ...]
    size: int

    name: ClassVar[str] = "codes"
    dtype: ClassVar[torch.dtype] = torch.int64
    unit: ClassVar[str] = "code"

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def measure(self) -> Measure:
        return Measure.counting(self.dims)

    @property
    def symbols(self) -> int:  # type: ignore[override]
        return self.size

    @cached_property
    def columns(self) -> tuple[Category, ...]:  # type: ignore[override]
        spelt = tuple(map(str, range(self.size)))
        return tuple(Category(f"x{place(index)}", spelt) for index in product(*map(range, self.shape)))

    def __str__(self) -> str:
        return f"codes {'×'.join(map(str, self.shape))}, each one of {self.size}"

    def check(self, x: Tensor) -> None:
        check_shape(self, x)
        if x.numel() and (int(x.min()) < 0 or int(x.max()) >= self.size):
            worst = int(x.min()) if int(x.min()) < 0 else int(x.max())
            raise BadValue(f"A code is {worst}; this space has codes 0 to {self.size - 1}.", "Encode the data alike.")
