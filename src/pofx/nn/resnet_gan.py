"""The nets of a residual GAN (Gulrajani et al. 2017, appendix F; Miyato et al. 2018, table 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.conv import pyramid
from pofx.nn.mlp import at_least_single, zeroed


class Norm(nn.Module):
    """Batch normalisation of x [N, width, H, W]; a context h [N, context] moves its scales and shifts (Dumoulin et al.
    2017)."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.film = zeroed(nn.Linear(context, 2 * width)) if context else None

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        y: Tensor = self.norm(x)
        if self.film is None:
            return y
        assert h is not None
        scale, shift = self.film(h)[:, :, None, None].chunk(2, 1)
        return y * (1 + scale) + shift


class Up(nn.Module):
    """x [N, width, H, W] (, h) -> [N, width, *size], twice as large: two convolutions beside a plain path."""

    def __init__(self, width: int, context: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm(width, context) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.plain, self.size = nn.Conv2d(width, width, 1), size

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        y = self.convs[0](self._larger(F.relu(self.norms[0](x, h))))
        return self.convs[1](F.relu(self.norms[1](y, h))) + self._larger(self.plain(x))

    def _larger(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2)[..., : self.size[0], : self.size[1]]


class ResnetGenerator(nn.Module):
    """z [N, noise] (, h [N, context]) -> [N, C * H * W].

    Args:
        noise: width of z.
        shape: (C, H, W) of the result.
        channels: at every size.
        context: width of h, which moves the normalisations; 0 for none.
    """

    def __init__(self, noise: int, shape: tuple[int, int, int], *, channels: int, context: int) -> None:
        super().__init__()
        c, h, w = shape
        self.sizes = pyramid(h, w)[::-1]
        self.first = nn.Linear(noise, channels * math.prod(self.sizes[0]))
        self.blocks = nn.ModuleList(Up(channels, context, size) for size in self.sizes[1:])
        self.norm, self.last = Norm(channels, context), nn.Conv2d(channels, c, 3, padding=1)

    def forward(self, z: Tensor, h: Tensor | None) -> Tensor:
        y = self.first(z).unflatten(1, (-1, *self.sizes[0])).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            y = block(y, h)
        return at_least_single(self.last(F.relu(self.norm(y, h))).flatten(1))


class Down(nn.Module):
    """x [N, inputs, H, W] -> [N, outputs, H, W], half the size (rounded up) where ``halves``."""

    def __init__(self, inputs: int, outputs: int, *, first: bool = False, halves: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.plain = nn.Conv2d(inputs, outputs, 1) if halves or inputs != outputs else nn.Identity()
        self.first, self.halves = first, halves  # the first sees an image, which is not rectified

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[1](F.relu(self.convs[0](x if self.first else F.relu(x))))
        if not self.halves:
            return y + self.plain(x)
        return F.avg_pool2d(y + self.plain(x), 2, ceil_mode=True)  # the plain path commutes with pooling


class ResnetCritic(nn.Module):
    """y [N, C, H, W] -> [N, outputs]: at most two halvings, two blocks at that size, a sum over pixels.

    Args:
        shape: (C, H, W).
        outputs: width of the result.
        channels: at every size.
    """

    def __init__(self, shape: tuple[int, int, int], outputs: int, *, channels: int) -> None:
        super().__init__()
        halvings = min(2, len(pyramid(*shape[1:])) - 1)
        self.blocks = nn.Sequential(
            *(
                Down(channels if k else shape[0], channels, first=k == 0, halves=k < halvings)
                for k in range(halvings + 2)
            )
        )
        self.last = nn.Linear(channels, outputs)

    def forward(self, y: Tensor) -> Tensor:
        f = F.relu(self.blocks(y.contiguous(memory_format=torch.channels_last)))
        return at_least_single(self.last(f.sum((2, 3))))
