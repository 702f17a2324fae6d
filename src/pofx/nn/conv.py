"""Small residual convolutional nets between images [C, H, W] of any size and vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.mlp import at_least_single, zeroed


def pyramid(height: int, width: int) -> list[tuple[int, int]]:
    """The sizes of an image as it is halved (rounding up) until no side is above 7, the full size first."""
    sizes = [(height, width)]
    while max(sizes[-1]) > 7:
        h, w = sizes[-1]
        sizes.append((math.ceil(h / 2), math.ceil(w / 2)))
    return sizes


class Residual(nn.Module):
    """x + conv(act(conv(act(x)))) (He et al. 2016, pre-activation), the identity at the start (Zhang et al. 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class ConvEncoder(nn.Module):
    """x [N, C, H, W] (, h [N, context]) -> [N, outputs].

    Strided convolutions halve the image level by level while the channels double; the last level is
    flattened, joined with the context and read by two linear layers.

    Args:
        shape: (C, H, W).
        outputs: width of the result.
        channels: at the first level below full size.
        blocks: residual blocks per level.
        hidden: width of the last hidden layer.
        context: width of h; 0 for none.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        *,
        channels: int = 32,
        blocks: int = 1,
        hidden: int = 256,
        context: int = 0,
    ) -> None:
        super().__init__()
        c, h, w = shape
        sizes = pyramid(h, w)
        # a small image is not halved: one convolution at its own size stands in for the first level
        levels = max(1, len(sizes) - 1)
        layers: list[nn.Module] = []
        for level in range(levels):
            width = channels * 2**level
            stride = 2 if len(sizes) > 1 else 1
            layers += [*([nn.SiLU()] if level else []), nn.Conv2d(c, width, 3, stride, padding=1)]
            layers += [Residual(width) for _ in range(blocks)]
            c = width
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Flatten())
        self.hidden = nn.Linear(c * math.prod(sizes[-1]) + context, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        y = self.layers(x.contiguous(memory_format=torch.channels_last))
        y = y if h is None else torch.cat([y, h], 1)
        return at_least_single(self.last(F.silu(self.hidden(y))))


class ConvDecoder(nn.Module):
    """z [N, inputs] -> [N, C, H, W]: the mirror of ``ConvEncoder``.

    A level is doubled by a convolution to four times the channels and a shuffle of those into space
    (sub-pixel convolution, Shi et al. 2016, eq. 4), then cut to the size it mirrors, so odd sizes work too.

    Args:
        inputs: width of z (join a context to it).
        shape: (C, H, W) of the result.
        channels, blocks, hidden: as in the encoder.
    """

    def __init__(
        self, inputs: int, shape: tuple[int, int, int], *, channels: int = 32, blocks: int = 1, hidden: int = 256
    ) -> None:
        super().__init__()
        c, h, w = shape
        self.sizes = pyramid(h, w)[::-1]
        levels = max(1, len(self.sizes) - 1)
        widths = [channels * 2**level for level in reversed(range(levels))]
        self.first = nn.Sequential(
            nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, widths[0] * math.prod(self.sizes[0]))
        )
        self.blocks = nn.ModuleList(nn.Sequential(*(Residual(width) for _ in range(blocks))) for width in widths)
        scale = 4 if len(self.sizes) > 1 else 1
        self.up = nn.ModuleList(
            nn.Conv2d(width, scale * after, 3, padding=1) for width, after in zip(widths, [*widths[1:], c], strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        y = self.first(z).unflatten(1, (-1, *self.sizes[0])).contiguous(memory_format=torch.channels_last)
        for level, (blocks, up) in enumerate(zip(self.blocks, self.up, strict=True)):
            y = up(F.silu(blocks(y)))
            if len(self.sizes) > 1:
                h, w = self.sizes[level + 1]
                y = F.pixel_shuffle(y, 2)[..., :h, :w]
        return at_least_single(y)


class ConvNet(nn.Module):
    """x [N, inputs, H, W] (, h [N, context]) -> [N, outputs, H, W], zero at the start.

    A convolution, residual blocks x + W2 act(film(W1 act(x), h)) and a convolution, both of 3 x 3 pixels.

    Args:
        inputs, outputs: channels of x and of the result.
        hidden: channels of the blocks.
        blocks: their number.
        kernel: side of W1; W2 is of single pixels.
        context: width of h, which scales and shifts the blocks' features (Perez et al. 2018); 0 for none.
    """

    def __init__(
        self, inputs: int, outputs: int, *, hidden: int = 128, blocks: int = 1, kernel: int = 1, context: int = 0
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(_Film(hidden, kernel, context) for _ in range(blocks))
        self.last = zeroed(nn.Conv2d(hidden, outputs, 3, padding=1))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x, h)
        return at_least_single(self.last(F.relu(x)))


class _Film(nn.Module):
    def __init__(self, width: int, kernel: int, context: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(width, width, kernel, padding=kernel // 2), nn.Conv2d(width, width, 1)
        self.film = nn.Linear(context, 2 * width) if context else None
        nn.init.normal_(self.down.weight, std=0.1 / math.sqrt(width))  # blocks start near the identity

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        y = self.up(F.relu(x))
        if self.film is not None:
            assert h is not None
            scale, shift = self.film(h)[:, :, None, None].chunk(2, 1)
            y = y * (1 + scale) + shift
        return x + self.down(F.relu(y))
