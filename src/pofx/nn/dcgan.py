"""The nets of DCGAN (Radford et al. 2016): strided convolutions, batch normalisation, no hidden linear layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.conv import pyramid
from pofx.nn.mlp import at_least_single


class DcganGenerator(nn.Module):
    """z [N, noise] (, h [N, context]) -> [N, C * H * W]: noise as a small image of many channels, doubled and doubled.

    Args:
        noise: width of z.
        shape: (C, H, W) of the result.
        channels: at half the image's size; they double with each halving.
        context: width of h; 0 for none.
    """

    def __init__(self, noise: int, shape: tuple[int, int, int], *, channels: int, context: int) -> None:
        super().__init__()
        c, h, w = shape
        self.sizes = pyramid(h, w)[::-1]
        levels = max(1, len(self.sizes) - 1)
        widths = [channels * 2**level for level in reversed(range(levels))]
        self.first = nn.Linear(noise + context, widths[0] * math.prod(self.sizes[0]), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        ends = [*widths[1:], c]
        if len(self.sizes) > 1:
            self.up = nn.ModuleList(
                nn.ConvTranspose2d(a, b, 4, 2, 1, bias=b is ends[-1]) for a, b in zip(widths, ends, strict=True)
            )
        else:  # an image that is not halved is made at its own size
            self.up = nn.ModuleList([nn.Conv2d(widths[0], c, 3, padding=1)])
        drawn(self)

    def forward(self, z: Tensor, h: Tensor | None) -> Tensor:
        y = self.first(z if h is None else torch.cat([z, h], 1)).unflatten(1, (-1, *self.sizes[0]))
        y = y.contiguous(memory_format=torch.channels_last)
        for (height, width), norm, up in zip(self.sizes[1:] or self.sizes, self.norms, self.up, strict=True):
            y = up(F.relu(norm(y)))[..., :height, :width]
        return at_least_single(y.flatten(1))


class DcganCritic(nn.Module):
    """y [N, C, H, W] -> [N, outputs]: the generator's mirror, with leaky units.

    Args:
        shape: (C, H, W).
        outputs: width of the result.
        channels: at half the image's size; they double with each halving.
        norm: with batch normalisation (not after the first convolution, as in the paper), which lets images see the
            others of their batch: without it for penalties on each one's gradient (Gulrajani et al. 2017, section 4).
    """

    def __init__(self, shape: tuple[int, int, int], outputs: int, *, channels: int, norm: bool) -> None:
        super().__init__()
        c, h, w = shape
        sizes = pyramid(h, w)
        self.halves = len(sizes) > 1
        levels = max(1, len(sizes) - 1)
        widths = [c, *(channels * 2**level for level in range(levels))]
        kernel, stride = (4, 2) if self.halves else (3, 1)
        self.down = nn.ModuleList(nn.Conv2d(widths[k], widths[k + 1], kernel, stride, 1) for k in range(levels))
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width) if norm and k else nn.Identity() for k, width in enumerate(widths[1:])
        )
        self.last = nn.Linear(widths[-1] * math.prod(sizes[-1]), outputs)
        drawn(self)

    def forward(self, y: Tensor) -> Tensor:
        y = y.contiguous(memory_format=torch.channels_last)
        for down, norm in zip(self.down, self.norms, strict=True):
            if self.halves:
                y = F.pad(y, (0, y.shape[3] % 2, 0, y.shape[2] % 2))  # halved rounding up
            y = F.leaky_relu(norm(down(y)), 0.2)
        return at_least_single(self.last(y.flatten(1)))


def drawn(net: nn.Module) -> None:
    """Weights ~ N(0, 0.02^2), scales of batch normalisation ~ N(1, 0.02^2) (Radford et al. 2016, section 4)."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
