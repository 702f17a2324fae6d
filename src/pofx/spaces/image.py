"""Images of integer levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pofx.core.errors import BadValue
from pofx.core.measure import Measure
from pofx.core.space import Space, check_shape


@dataclass(frozen=True)
class Image(Space):
    """Images [C, H, W] of integer levels 0 .. levels-1 (levels at most 256).

    Example:
        >>> digits = Image(28, 28, 1, 256)
        >>> digits.event_shape, digits.dims, str(digits.measure)
        ((1, 28, 28), 784, 'counting^784')
    """

    height: int
    width: int
    channels: int = 1
    levels: int = 256

    name: ClassVar[str] = "image"
    dtype: ClassVar[torch.dtype] = torch.uint8

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.channels, self.height, self.width)

    @property
    def symbols(self) -> int:  # type: ignore[override]
        return self.levels

    @property
    def pixels(self) -> tuple[int, int, int]:  # type: ignore[override]
        return (self.height, self.width, self.channels)

    @property
    def measure(self) -> Measure:
        return Measure.counting(self.dims)

    def __str__(self) -> str:
        return f"images {self.height}×{self.width}×{self.channels}, {self.levels} levels"

    def check(self, x: Tensor) -> None:
        check_shape(self, x)
        if x.numel() and int(x.max()) >= self.levels:
            raise BadValue(
                f"A pixel has level {int(x.max())}; this space has levels 0 to {self.levels - 1}.",
                "Rescale the images.",
            )

    @property
    def whole(self) -> str:  # type: ignore[override]
        top = self.levels - 1
        return f"Give whole levels from 0 to {top}: (x * {top}).round() where x is from 0 to 1."
