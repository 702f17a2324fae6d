"""One encoder per context space: raw c -> one vector that any family can be conditioned on."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from pofx.core.errors import Unsupported
from pofx.core.space import Space
from pofx.nn.sites import heads_for
from pofx.spaces import Image, Label, Table


class Encoder(nn.Module):
    """c [N, *Ec] in raw units -> [N, width]."""

    width: int

    def forward(self, c: Tensor) -> Tensor:
        raise NotImplementedError

    def prepare(self, c: Tensor | None, weight: Tensor | None = None) -> None:
        """Look at the training contexts once: scales, where there are any."""


class LabelEncoder(Encoder):
    """A learned vector per class."""

    def __init__(self, space: Label, width: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(len(space.values), width)

    def forward(self, c: Tensor) -> Tensor:
        return self.embedding(c)


class TableEncoder(Encoder):
    """Every column embedded as its head does (standardised, one-hot, missing marked), then one linear map."""

    def __init__(self, space: Table, width: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads_for(space, components=1)
        self.linear = nn.Linear(sum(self.heads.features), width)

    def forward(self, c: Tensor) -> Tensor:
        return self.linear(self.heads.embed(c).to(self.linear.weight.dtype))

    def prepare(self, c: Tensor | None, weight: Tensor | None = None) -> None:
        assert c is not None
        self.heads.prepare(c, weight)


class ImageEncoder(Encoder):
    """A small ConvNet: a 3x3 convolution, then strided ones until at most 4x4 cells are left, then a linear map."""

    def __init__(self, space: Image, width: int, channels: int = 32) -> None:
        super().__init__()
        self.width, self.levels = width, space.levels
        halvings = max(1, math.ceil(math.log2(max(space.height, space.width) / 4)))
        sizes = [min(channels * 2**i, 4 * channels) for i in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(space.channels, sizes[0], 3, padding=1)]
        for a, b in pairwise(sizes):
            layers += [nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, b, 3, stride=2, padding=1)]
        layers += [nn.GroupNorm(8, sizes[-1]), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        self.convs = nn.Sequential(*layers)
        self.linear = nn.Linear(4 * sizes[-1], width)

    def forward(self, c: Tensor) -> Tensor:
        return self.linear(self.convs(c.to(self.linear.weight.dtype) * (2 / (self.levels - 1)) - 1))


def encoder(space: Space, width: int = 64) -> Encoder:
    """The encoder of a context space. Raises Unsupported for a space without one."""
    if isinstance(space, Label):
        return LabelEncoder(space, width)
    if isinstance(space, Table):
        return TableEncoder(space, width)
    if isinstance(space, Image):
        return ImageEncoder(space, width)
    raise Unsupported(f"There is no encoder for contexts of {space}.", "Condition on labels, columns or images.")
