"""Images as p(an image | what is left of it): its grey levels, a smaller copy, all but a hole, a noisy copy.

grey     colourisation               small    super-resolution
masked   in-painting                 noisy    denoising

Each takes data of images and gives the same rows, x as it was and its degraded copy as the context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pofx.core.errors import UsageError
from pofx.core.noise import RowNoise
from pofx.data.parts import Data, Part
from pofx.spaces import Image

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def grey(data: Data) -> Data:
    """Given its grey levels, of one channel. Raises UsageError for images that have no three channels.

    Example:
        >>> import pofx
        >>> grey(pofx.load("scenes", max_rows=100)).context
        Image(height=32, width=32, channels=1, levels=256)
    """
    space = _image(data)
    if space.channels != 3:
        raise UsageError(f"{data.name} has {space.channels} channels; grey is of three.", "Give images in colour.")
    weights = torch.tensor(LUMA)[:, None, None]
    context = dataclasses.replace(space, channels=1)
    return _given(data, context, lambda x, noise: (x * weights).sum(1, keepdim=True))


def small(data: Data, times: int = 2) -> Data:
    """Given the means of its squares of ``times`` x ``times`` pixels. Raises UsageError where there are none."""
    space = _image(data)
    if times < 2 or space.height % times or space.width % times:
        raise UsageError(
            f"{space.height}×{space.width} pixels are not made of squares of {times}.", "Give a divisor of 2 or more."
        )
    context = dataclasses.replace(space, height=space.height // times, width=space.width // times)
    return _given(data, context, lambda x, noise: F.avg_pool2d(x.float(), times))


def masked(data: Data, share: float = 0.5, seed: int = 0) -> Data:
    """Given all but a hole, whose sides are this share of the image's, at a place of each row's own.

    The context has one channel more, which tells the hole: 0 in it, the highest level elsewhere. What was in it is 0.

    Raises UsageError for a share that leaves no hole, or nothing else.
    """
    space = _image(data)
    sides = tuple(round(share * side) for side in (space.height, space.width))
    if not 0 < share < 1 or min(sides) < 1 or sides == (space.height, space.width):
        raise UsageError(f"A hole of {share:g} of each side leaves nothing to do.", "Give a share between 0 and 1.")
    top = space.levels - 1

    def seen(x: Tensor, noise: RowNoise) -> Tensor:
        inside = []
        for hole, side, axis in zip(sides, x.shape[2:], noise.rand(2).T, strict=True):
            at = (axis * (side - hole + 1)).long()[:, None]
            place = torch.arange(side)
            inside.append((place >= at) & (place < at + hole))
        whole = ~(inside[0][:, None, :, None] & inside[1][:, None, None])
        return torch.cat([x * whole, top * whole], 1)

    return _given(data, dataclasses.replace(space, channels=space.channels + 1), seen, seed)


def noisy(data: Data, scale: float = 0.2, seed: int = 0) -> Data:
    """Given a copy with normal noise of this share of the highest level on every pixel, rounded to levels.

    Raises UsageError for a scale that is no noise.
    """
    space = _image(data)
    if not scale > 0:
        raise UsageError(f"Noise of a scale of {scale:g} changes nothing.", "Give a number above 0.")
    size = scale * (space.levels - 1)
    return _given(data, space, lambda x, noise: x + size * noise.randn(space.dims).view(x.shape), seed)


def _image(data: Data) -> Image:
    if data.space.pixels is None:
        raise UsageError(f"{data.name} holds {data.space}, no images.", "Load images.")
    return Image(*data.space.pixels, data.space.symbols or 0)


def _given(data: Data, context: Image, seen: Callable[[Tensor, RowNoise], Tensor], seed: int = 0) -> Data:
    """The same rows given what is ``seen`` of them, as levels of the context; its noise is each row's own."""

    def part(p: Part) -> Part:
        rows = p.rows if p.rows is not None else torch.arange(len(p))
        c = seen(p.x, RowNoise(seed, lambda: rows))
        return dataclasses.replace(p, c=c.round().clamp(0, context.levels - 1).to(context.dtype))

    parts: dict[str, Any] = {name: part(getattr(data, name)) for name in ("train", "valid", "test")}
    return dataclasses.replace(data, context=context, **parts)
