"""What all causal nets on images share: convolutions that look up and to the left, and walks that cache them.

Pixels are read row by row, the channels of a pixel one after the other. A net maps the values [N, C, H, W] to
the parameters [N, C P, H, W] of every value, P each, so that those of channel c at (h, w) depend on

    all channels of the pixels above and to the left,  and channels 0 .. c-1 of the pixel (h, w) itself.

Within a pixel, features are split into C equal groups: group c may see the input's channels before c, and
features of the groups 0 .. c (masks A and B of van den Oord, Kalchbrenner & Kavukcuoglu 2016).

A walk computes each feature once. What a convolution takes from the rows above is one product per row, for all
its pixels; what is left per pixel is a product with a few neighbours in its own row. Their features lie side by
side in memory, so that a layer costs one matrix product and an activation, whatever the size of the image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.mlp import zeroed

Shape = tuple[int, int, int]  # C, H, W


def groups(units: int, channels: int) -> Tensor:
    """The group [units] of every feature: equal shares in ascending order."""
    return torch.arange(units) * channels // units


class CausalConv(nn.Conv2d):
    """A convolution whose output (h, w) sees rows h-up .. h and columns w-left .. w+right.

    Args:
        inside: [outputs, inputs] 0/1, which inputs an output sees at its own pixel; pixels to the right in its
            own row are then hidden. None: the whole window is visible, which is causal where right = 0 or where
            the input was shifted before.
    """

    mask: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, up: int = 0, left: int = 0, right: int = 0, inside: Tensor | None = None
    ) -> None:
        super().__init__(inputs, outputs, (up + 1, left + 1 + right))
        self.up, self.left, self.right = up, left, right
        mask = torch.ones_like(self.weight)
        if inside is not None:
            mask[:, :, -1, left + 1 :] = 0
            mask[:, :, -1, left] = inside
        self.register_buffer("mask", None if bool(mask.all()) else mask, persistent=False)

    def masked(self) -> Tensor:
        """The weight [outputs, inputs, up + 1, left + 1 + right], zero where nothing may be seen."""
        return self.weight if self.mask is None else self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inputs, H, W] -> [N, outputs, H, W]"""
        if self.kernel_size != (1, 1):
            x = F.pad(x, (self.left, self.right, self.up, 0))
        return F.conv2d(x, self.masked(), self.bias)


def shifted_down(x: Tensor) -> Tensor:
    """Row h of the result is row h-1 of x [N, C, H, W]; the first one is zero."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


class PixelNet(nn.Module, ABC):
    """A causal net on images.

    Args:
        shape: (C, H, W).
        group_count: C where the channels of a pixel depend on each other by groups of features, 1 where the net
            gives the parameters of a whole pixel at once (from the pixels before it).
    """

    def __init__(self, shape: Shape, group_count: int) -> None:
        super().__init__()
        self.shape, self.group_count = shape, group_count

    def seen(self, outputs: Tensor) -> Tensor:
        """Which input channels (and a last one of ones) features of these groups see at their own pixel (mask A)."""
        inputs = torch.arange(self.shape[0]) if self.group_count > 1 else torch.zeros(self.shape[0])
        return torch.cat([inputs, torch.tensor([-1.0])]) < outputs[:, None]

    def image(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] beside a channel of ones, which tells the image from the zeros around it."""
        ones = x.new_ones(len(x), 1, *x.shape[2:])
        return torch.cat([x, ones], 1).contiguous(memory_format=torch.channels_last)

    @abstractmethod
    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """x [N, C, H, W] of order 1, h [N, context] -> parameters [N, C P, H, W] (or any number per pixel)."""

    @abstractmethod
    def walk(self, n: int, h: Tensor | None = None) -> PixelWalk:
        """Visit the values of n images in reading order, given h [n, context]."""


def hidden_units(width: int, channels: int) -> int:
    """The width, rounded up to a multiple of the channels: groups are equal."""
    return -(-width // channels) * channels


class OutputLayers(nn.ModuleList):
    """ReLU, 1x1, ReLU, 1x1, the last one zero at the start: two masked layers from features to parameters."""

    def __init__(self, hidden: int, outputs: int, channels: int) -> None:
        own, last = groups(hidden, channels), groups(outputs, channels)
        first = CausalConv(hidden, hidden, inside=own <= own[:, None])
        final = zeroed(CausalConv(hidden, outputs, inside=own <= last[:, None]))
        super().__init__([first, final])

    def forward(self, y: Tensor) -> Tensor:
        for layer in self:
            y = layer(F.relu(y))
        return y


# ---------------------------------------------------------------------------------------------- walking


class RowBuffer:
    """The last rows of a map, as far down as the walk has come.

    Attributes:
        data: [N, rows, left + W + right, C], the current row last, zeros outside the image.
        pixels: per column and group of channels, the current row's pixel as a view [N, C / groups].
    """

    def __init__(
        self, like: Tensor, n: int, width: int, channels: int, rows: int = 1, left: int = 0, right: int = 0, *,
        parts: int = 1,
    ) -> None:  # fmt: skip
        self.data = like.new_zeros(n, rows, left + width + right, channels)
        self.width, self.left = width, left
        self.row = self.data[:, -1, left : left + width]  # [N, W, C]
        self.pixels = [p.chunk(parts, 1) for p in self.row.unbind(1)]

    def taps(self, left: int) -> list[Tensor]:
        """Per column, the pixel and ``left`` ones before it in its row, side by side: views [N, (left + 1) C]."""
        n, rows, columns, channels = self.data.shape
        flat, start = self.data.view(n, -1), (rows - 1) * columns + self.left - left
        return [flat[:, (start + w) * channels :][:, : (left + 1) * channels] for w in range(self.width)]

    def above(self, up: int, left: int, right: int, current: bool = False) -> Tensor:
        """The ``up`` rows above (and the current one), with a margin: [N, C, up (+ 1), left + W + right]."""
        end = self.data.shape[1] - (not current)
        window = self.data[:, end - up - current : end, self.left - left : self.left + self.width + right]
        return window.permute(0, 3, 1, 2)

    def next_row(self) -> None:
        """Go down by one row; what the current row held is then to be written anew, from left to right."""
        if self.data.shape[1] > 1:
            self.data[:, :-1] = self.data[:, 1:].clone()


class CachedConv:
    """A causal convolution on a ``RowBuffer``: ``start_row`` takes in the rows above, ``pixel`` the pixel's own row.

    Args:
        parts: C, groups of outputs that are computed one after the other.
        order: [outputs], the convolution's outputs in the order in which ``pixel`` gives them.
        shift: [N, outputs] or None, added to every pixel (the context).
    """

    def __init__(
        self,
        conv: CausalConv,
        band: RowBuffer,
        *,
        parts: int = 1,
        order: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        order = torch.arange(conv.out_channels) if order is None else order
        weight, n = conv.masked()[order], len(band.data)
        assert conv.bias is not None
        bias = conv.bias[order]
        self.conv, self.band = conv, band
        self.rows = weight[:, :, :-1].contiguous(memory_format=torch.channels_last)
        self.shift = bias.expand(n, -1)[:, None] if shift is None else (bias + shift[:, order])[:, None]
        self.part = self.shift.repeat(1, band.width, 1)  # [N, W, outputs]
        now = weight[:, :, -1, : conv.left + 1].permute(2, 1, 0).flatten(0, 1)  # [(left + 1) inputs, outputs]
        self.now = [w.contiguous() for w in now.chunk(parts, 1)]
        self.parts = [p.chunk(parts, 1) for p in self.part.unbind(1)]
        self.taps = band.taps(conv.left)

    def start_row(self, extra: Tensor | None = None) -> None:
        """Take in the rows above the current one, and what else [N, W, outputs] is to be added to its pixels."""
        if self.conv.up:
            above = self.band.above(self.conv.up, self.conv.left, self.conv.right)
            torch.add(F.conv2d(above, self.rows)[:, :, 0].mT, self.shift, out=self.part)
            if extra is not None:
                self.part += extra
        elif extra is not None:
            torch.add(extra, self.shift, out=self.part)

    def pixel(self, w: int, c: int = 0) -> Tensor:
        """The outputs of group c at column w: [N, outputs / parts]."""
        return torch.addmm(self.parts[w][c], self.taps[w], self.now[c])


class RowConv:
    """A convolution that may see its whole current row (the map was shifted down before): row after row."""

    def __init__(self, conv: CausalConv, n: int, width: int) -> None:
        self.conv, self.band = (
            conv,
            RowBuffer(conv.weight, n, width, conv.in_channels, conv.up + 1, conv.left, conv.right),
        )

    def __call__(self, row: Tensor) -> Tensor:
        """The next row [N, W, inputs] -> [N, W, outputs]"""
        conv, band = self.conv, self.band
        band.next_row()
        band.row.copy_(row)
        return F.conv2d(band.above(conv.up, conv.left, conv.right, current=True), conv.weight, conv.bias)[:, :, 0].mT


class Pointwise:
    """A 1x1 convolution of single pixels, outputs by groups."""

    def __init__(self, conv: CausalConv, parts: int = 1) -> None:
        assert conv.bias is not None
        self.weights = [w.T.contiguous() for w in conv.masked()[:, :, 0, 0].chunk(parts, 0)]
        self.biases = conv.bias.chunk(parts)

    def __call__(self, x: Tensor, c: int = 0) -> Tensor:
        """x [N, inputs], its groups up to c known -> group c [N, outputs / parts]."""
        return torch.addmm(self.biases[c], x, self.weights[c])


class Features:
    """The features [N, C] of one pixel that are computed group by group: ``all`` of them, and views of ``parts``."""

    def __init__(self, like: Tensor, n: int, channels: int, parts: int = 1) -> None:
        self.all = like.new_zeros(n, channels)
        self.parts = self.all.chunk(parts, 1)

    def relu(self, x: Tensor, c: int = 0) -> Tensor:
        """Take in group c after a ReLU; gives ``all``."""
        torch.clamp_min(x, 0, out=self.parts[c])
        return self.all


class OutputWalk:
    """The two layers of ``OutputLayers``."""

    def __init__(self, layers: OutputLayers, n: int, parts: int) -> None:
        first, final = layers
        assert isinstance(first, CausalConv)
        assert isinstance(final, CausalConv)
        self.layers = [Pointwise(first, parts), Pointwise(final, parts)]
        self.active = [Features(first.weight, n, layer.in_channels, parts) for layer in (first, final)]

    def __call__(self, y: Tensor, c: int) -> Tensor:
        for layer, active in zip(self.layers, self.active, strict=True):
            y = layer(active.relu(y, c), c)
        return y


class PixelWalk(ABC):
    """One pass of a net over n images, value after value in reading order, the channels of a pixel together.

    walk = net.walk(n, h)
    for site in walk.order:              # site = (c H + h) W + w
        params = walk.params()           # [n, P], given the values so far
        walk.push(embed(draw(params)))   # [n, 1]

    A subclass sets ``first``, which reads the image, ``layers``, each with ``pixel(y, w, c)`` from features [N, p] of
    group c at column w to the next ones, and ``out``, from the last ones to parameters.
    """

    first: CachedConv
    layers: Iterable[Any]
    out: Callable[[Tensor, int], Tensor]

    @torch.no_grad()
    def __init__(self, net: PixelNet, n: int, up: int, reach: int) -> None:
        channels, height, width = net.shape
        self.net, self.n, self.width, self.parts = net, n, width, net.group_count
        self.like = next(net.parameters())
        self.order = [c * height * width + p for p in range(height * width) for c in range(channels)]
        self.rank = 0
        self.x = RowBuffer(self.like, n, width, channels + 1, up + 1, reach, reach)
        self.x.row[:, :, -1] = 1

    @abstractmethod
    def start_row(self) -> None:
        """Compute all that a row takes from the rows above it."""

    def row_above(self, conv: CausalConv) -> Tensor:
        """A convolution of the image shifted down, at the current row: [N, W, outputs]."""
        above = self.x.above(conv.up + 1, conv.left, conv.right)
        return F.conv2d(above, conv.weight, conv.bias)[:, :, 0].mT

    def pixel(self, w: int, c: int) -> Tensor:
        """Parameters [N, P] of channel c at column w (where there is one group, of the whole pixel, and c is 0)."""
        y = self.first.pixel(w, c)
        for layer in self.layers:
            y = layer.pixel(y, w, c)
        return self.out(y, c)

    @torch.no_grad()
    def params(self) -> Tensor:
        """The parameters [n, P] of the next value (or, where there is one group, of its whole pixel)."""
        pixel, c = divmod(self.rank, self.net.shape[0])
        if c == 0 and pixel % self.width == 0:
            if pixel:
                self.x.next_row()
            self.start_row()
        if c == 0 or self.parts > 1:
            self.given = self.pixel(pixel % self.width, c)
        return self.given

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Take that value, embedded [n, 1], and go on to the next."""
        pixel, c = divmod(self.rank, self.net.shape[0])
        self.x.row[:, pixel % self.width, c] = features[:, 0]
        self.rank += 1


# ------------------------------------------------------------------------------------- residual layers


class ResidualNet(PixelNet):
    """A k x k convolution with mask A, residual layers, two 1x1 layers: both nets of van den Oord, Kalchbrenner &
    Kavukcuoglu 2016 (table 1).

    Args:
        params: per value.
        layer: makes one, given p (half the features of the residual stream), C and the width of the context. It maps
            y [N, 2 p, H, W], the image and h to the next y, and has a ``walk``.
        hidden: features of the residual stream; layers: how many; kernel: k, odd.
    """

    def __init__(
        self, shape: Shape, params: int, layer: Callable[[int, int, int], nn.Module], *, hidden: int, layers: int,
        kernel: int, context: int = 0,
    ) -> None:  # fmt: skip
        channels = shape[0]
        super().__init__(shape, channels)
        inner, reach = hidden_units(hidden // 2, channels), kernel // 2
        own = groups(2 * inner, channels)
        self.first = CausalConv(channels + 1, 2 * inner, reach, reach, reach, inside=self.seen(own))
        self.layers = nn.ModuleList(layer(inner, channels, context) for _ in range(layers))
        self.out = OutputLayers(2 * inner, channels * params, channels)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        x = self.image(x)
        y = self.first(x)
        for layer in self.layers:
            y = layer(y, x, h)
        return self.out(y)

    def walk(self, n: int, h: Tensor | None = None) -> PixelWalk:
        return ResidualWalk(self, n, h)


class ResidualWalk(PixelWalk):
    @torch.no_grad()
    def __init__(self, net: ResidualNet, n: int, h: Tensor | None) -> None:
        super().__init__(net, n, net.first.up, net.first.left)
        self.first = CachedConv(net.first, self.x, parts=self.parts)
        self.layers = [layer.walk(self, h) for layer in net.layers]  # type: ignore[operator]
        self.out = OutputWalk(net.out, n, self.parts)

    def start_row(self) -> None:
        for part in (self.first, *self.layers):
            part.start_row()
