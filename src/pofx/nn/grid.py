"""Convolutional nets between images [C, H, W] and grids of vectors [D, h, w], a fraction of their size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.conv import Residual
from pofx.nn.mlp import Mlp, at_least_single


def halved(height: int, width: int, times: int) -> list[tuple[int, int]]:
    """The sizes of an image as it is halved so many times, rounding up, the full size first."""
    return [(math.ceil(height / 2**k), math.ceil(width / 2**k)) for k in range(times + 1)]


class GridEncoder(nn.Module):
    """x [N, C, H, W] (, h [N, context]) -> [N, outputs, h, w].

    Convolutions of stride 2, then residual blocks at the grid's size, where the context is added.

    Args:
        channels: of x.
        outputs: of the grid's vectors.
        down: how many times the image is halved; 0: the grid is as large.
        width: channels at half the image's size, doubled at the next one.
        blocks: residual blocks.
        context: width of h; 0 for none.
    """

    def __init__(
        self, channels: int, outputs: int, *, down: int, width: int = 32, blocks: int = 2, context: int = 0
    ) -> None:
        super().__init__()
        widths = [width * min(2**k, 2) for k in range(max(1, down))]
        layers: list[nn.Module] = []
        for before, after in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2 if down else 1, padding=1), nn.SiLU()]
        self.down = nn.Sequential(*layers, nn.Conv2d(widths[-1], widths[-1], 3, padding=1))
        self.context = nn.Linear(context, widths[-1]) if context else None
        self.blocks = nn.Sequential(*(Residual(widths[-1]) for _ in range(blocks)))
        self.last = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        y = self.down(x.contiguous(memory_format=torch.channels_last))
        y = y if self.context is None else y + self.context(h)[:, :, None, None]
        return at_least_single(self.last(F.silu(self.blocks(y))))


class GridDecoder(nn.Module):
    """z [N, inputs, h, w] (, h [N, context]) -> [N, C, H, W]: the mirror of ``GridEncoder``.

    A level is doubled by a convolution to four times the channels and a shuffle of those into space (sub-pixel
    convolution, Shi et al. 2016, eq. 4), then cut to the size it mirrors.

    Args:
        inputs: of the grid's vectors.
        shape: (C, H, W) of the result.
        down, width, blocks, context: as in the encoder.
    """

    def __init__(
        self,
        inputs: int,
        shape: tuple[int, int, int],
        *,
        down: int,
        width: int = 32,
        blocks: int = 2,
        context: int = 0,
    ) -> None:
        super().__init__()
        c, height, w = shape
        self.sizes = halved(height, w, down)[::-1]
        widths = [width * min(2**k, 2) for k in reversed(range(max(1, down)))]
        self.first = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.context = nn.Linear(context, widths[0]) if context else None
        self.blocks = nn.Sequential(*(Residual(widths[0]) for _ in range(blocks)))
        scale = 4 if down else 1
        self.up = nn.ModuleList(
            nn.Conv2d(before, scale * after, 3, padding=1)
            for before, after in zip(widths, [*widths[1:], c], strict=True)
        )

    def forward(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        y = self.first(z.contiguous(memory_format=torch.channels_last))
        y = y if self.context is None else y + self.context(h)[:, :, None, None]
        y = self.blocks(y)
        for up, (height, width) in zip(self.up, self.sizes[1:] or self.sizes, strict=True):
            y = up(F.silu(y))
            y = F.pixel_shuffle(y, 2)[..., :height, :width] if len(self.sizes) > 1 else y
        return at_least_single(y)


def grid_nets(
    shape: tuple[int, int, int] | None,
    features: int,
    params: int,
    sizes: tuple[int, int],
    places: int,
    *,
    down: int,
    channels: int,
    hidden: int,
    blocks: int,
    context: int,
) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """An encoder to a grid of vectors, a decoder from one, and the grid's shape.

    Convolutional for images of shape (C, H, W), with ``params`` of the decoder for each channel and pixel; else MLPs
    from ``features`` to ``places`` vectors and from these to ``params``. ``sizes``: numbers of a vector of either.
    """
    made, taken = sizes
    if shape:
        size: dict[str, Any] = {"down": down, "width": channels, "blocks": blocks, "context": context}
        grid = halved(*shape[1:], down)[-1]
        return GridEncoder(shape[0], made, **size), GridDecoder(taken, (shape[0] * params, *shape[1:]), **size), grid
    wide: dict[str, Any] = {"hidden": hidden, "blocks": blocks, "context": context}
    encoder = Mlp(features, places * made, **wide)
    encoder.last.reset_parameters()  # at zero all data would have the same vectors: a saddle of the objective
    return encoder, Mlp(places * taken, params, **wide), (places,)
