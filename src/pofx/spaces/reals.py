"""Arrays of real numbers: latents, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pofx.core.errors import BadValue
from pofx.core.measure import Measure
from pofx.core.space import Space, check_shape


@dataclass(frozen=True)
class Reals(Space):
    """Real numbers of one shape, under Lebesgue measure.

    Example:
        >>> latents = Reals((16,))
        >>> latents.dims, str(latents.measure)
        (16, 'lebesgue^16')
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

    def check(self, x: Tensor) -> None:
        check_shape(self, x)
        if not x.isfinite().all():
            raise BadValue(f"A value is {x[~x.isfinite()][0].item()}; {self} are finite.", "Drop or mend such rows.")

    def check_draws(self, x: Tensor) -> str | None:
        return None if x.isfinite().all() else f"{x[~x.isfinite()][0].item()}"

    def __str__(self) -> str:
        return f"reals {'×'.join(map(str, self.shape))}"
