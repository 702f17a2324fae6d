"""The nets of StyleGAN: noise is mapped to styles, which modulate the convolutions that make an image of a constant.

    generator   z -> w = f(z),   x = g(w_1 .. w_L, noise)      (Karras et al. 2019, section 2; 2020, section 2)

All weights are N(0, 1) and scaled when they are used, so that all learn at one rate (Karras et al. 2018, section 4.1).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.conv import pyramid
from pofx.nn.mlp import at_least_single

EPSILON = 1e-8
GROUP = 4  # images of a batch whose spread the critic sees


def leaky(x: Tensor) -> Tensor:
    """Leaky rectification that keeps the size of what goes in."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def normalised(z: Tensor) -> Tensor:
    """z [N, D] at a mean square of 1."""
    return z * (z.square().mean(1, keepdim=True) + EPSILON).rsqrt()


def doubled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Twice as large, by the filter 1 3 3 1, then cut to ``size``."""
    return F.interpolate(x, scale_factor=2, mode="bilinear")[..., : size[0], : size[1]]


class Linear(nn.Module):
    """x [N, inputs] -> [N, outputs]; ``rate``: its share of the learning rate."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias: nn.Parameter | None = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, None if self.bias is None else self.bias * self.rate)


class Conv(nn.Module):
    """x [N, inputs, H, W] -> [N, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[2] // 2)


class Modulated(nn.Module):
    """x [N, inputs, H, W], w [N, style] -> [N, outputs, H, W]: a convolution whose weights each image's style scales.

        w'_oik = s_i w_oik,   w''_oik = w'_oik / sqrt(sum_ik w'_oik^2 + eps)        (Karras et al. 2020, eq. 1, 3)

    Scaling what goes in by s and what comes out by the root is the same, and one convolution for all images.
    """

    def __init__(self, inputs: int, outputs: int, style: int, kernel: int = 3, *, demodulate: bool = True) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, kernel, bias=False)
        self.affine, self.demodulate = Linear(style, inputs, bias=1.0), demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        s = self.affine(w)
        y: Tensor = self.conv(x * s[:, :, None, None])
        if not self.demodulate:
            return y
        square = (self.conv.weight * self.conv.scale).square().sum((2, 3))
        return y * (s.square() @ square.T + EPSILON).rsqrt()[:, :, None, None]


class Layer(nn.Module):
    """A modulated convolution, noise of each pixel at a learned strength, a bias, and rectification."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.conv = Modulated(inputs, outputs, style)
        self.strength, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        y = self.conv(x, w) + self.bias[:, None, None]
        return leaky(y if noise is None else y + self.strength * noise)


class Mapping(nn.Module):
    """z [N, noise] (, h [N, context]) -> w [N, style], by layers that learn at a hundredth of the rate."""

    def __init__(self, noise: int, style: int, layers: int, context: int) -> None:
        super().__init__()
        self.context = Linear(context, style) if context else None
        widths = [noise + (style if context else 0), *[style] * layers]
        self.layers = nn.ModuleList(Linear(widths[k], widths[k + 1], rate=0.01) for k in range(layers))

    def forward(self, z: Tensor, h: Tensor | None) -> Tensor:
        y = normalised(z)
        if self.context is not None:
            assert h is not None
            y = torch.cat([y, normalised(self.context(h))], 1)
        for layer in self.layers:
            y = leaky(layer(y))
        return y


class Synthesis(nn.Module):
    """Styles w [N, layers, style] (, noise [N, noises]) -> [N, C * H * W]; without noise, as its mean has it.

    A learned constant goes through a layer; each doubling is followed by two. The image is the sum of what each size
    adds to it (Karras et al. 2020, section 4.1), by a convolution of single pixels that has the style of the layer
    before it.

    Args:
        shape: (C, H, W) of the result.
        style: width of w.
        channels: at full size; they double with each halving, up to ``widest``.

    Attributes:
        layers: how many styles an image has, of coarse features first.
        noises: numbers of noise that an image takes.
    """

    def __init__(self, shape: tuple[int, int, int], style: int, *, channels: int, widest: int) -> None:
        super().__init__()
        c, h, w = shape
        self.sizes = pyramid(h, w)[::-1]
        widths = [min(channels * 2**level, widest) for level in reversed(range(len(self.sizes)))]
        self.constant = nn.Parameter(torch.randn(widths[0], *self.sizes[0]))
        ins, outs = [widths[0]], [widths[0]]
        for before, after in pairwise(widths):
            ins, outs = [*ins, before, after], [*outs, after, after]
        self.convs = nn.ModuleList(Layer(a, b, style) for a, b in zip(ins, outs, strict=True))
        self.colours = nn.ModuleList(Modulated(width, c, style, 1, demodulate=False) for width in widths)
        self.bias = nn.Parameter(torch.zeros(c))
        self.layers = len(self.convs)
        self.areas = [self.sizes[(k + 1) // 2] for k in range(self.layers)]  # height and width at each layer
        self.noises = sum(math.prod(area) for area in self.areas)

    def forward(self, w: Tensor, noise: Tensor | None = None) -> Tensor:
        spots: list[Tensor | None] = [None] * self.layers
        if noise is not None:
            parts = noise.split([math.prod(area) for area in self.areas], 1)
            spots = [part.view(-1, 1, *area) for part, area in zip(parts, self.areas, strict=True)]
        x = self.constant.expand(len(w), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        image: Tensor | None = None
        for k, layer in enumerate(self.convs):
            if k % 2:  # the first of its size
                x = doubled(x, self.areas[k])
            x = layer(x, w[:, k], spots[k])
            if k % 2 == 0:
                colour = self.colours[k // 2](x, w[:, k])
                image = colour if image is None else doubled(image, self.areas[k]) + colour
        assert image is not None
        return at_least_single((image + self.bias[:, None, None]).flatten(1))


class StyleGenerator(nn.Module):
    """z [N, noise] or [N, noise + synthesis.noises] (, h [N, context]) -> [N, C * H * W]."""

    def __init__(self, mapping: Mapping, synthesis: Synthesis, noise: int) -> None:
        super().__init__()
        self.mapping, self.synthesis, self.noise = mapping, synthesis, noise

    def forward(self, z: Tensor, h: Tensor | None) -> Tensor:
        w, pixels = self.mapping(z[:, : self.noise], h), z[:, self.noise :]
        out: Tensor = self.synthesis(self.repeated(w), pixels if pixels.shape[1] else None)
        return out

    def repeated(self, w: Tensor) -> Tensor:
        """One style [N, style] at all layers [N, layers, style]."""
        return w[:, None].expand(-1, self.synthesis.layers, -1)


class Halving(nn.Module):
    """x [N, inputs, H, W] -> [N, outputs, H/2, W/2] rounded up: two convolutions beside a plain path."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = Conv(inputs, inputs), Conv(inputs, outputs)
        self.plain = Conv(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = halved(leaky(self.first(x)))
        return (leaky(self.second(y)) + self.plain(halved(x))) / math.sqrt(2)


def halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True)


class StyleCritic(nn.Module):
    """y [N, C, H, W] -> [N, outputs]: residual halvings (Karras et al. 2020, section 4.1).

    The last convolution sees how far images of a group differ (Karras et al. 2018, section 3).

    Args:
        shape: (C, H, W).
        outputs: width of the result.
        channels: at full size; they double with each halving, up to ``widest``.
    """

    def __init__(self, shape: tuple[int, int, int], outputs: int, *, channels: int, widest: int) -> None:
        super().__init__()
        c, h, w = shape
        sizes = pyramid(h, w)
        widths = [min(channels * 2**level, widest) for level in range(len(sizes))]
        self.first = Conv(c, widths[0], 1)
        self.blocks = nn.Sequential(*(Halving(a, b) for a, b in pairwise(widths)))
        last = widths[-1]
        self.conv, self.hidden = Conv(last + 1, last), Linear(last * math.prod(sizes[-1]), last)
        self.last = Linear(last, outputs)

    def forward(self, y: Tensor) -> Tensor:
        y = self.blocks(leaky(self.first(y.contiguous(memory_format=torch.channels_last))))
        return at_least_single(self.last(leaky(self.hidden(leaky(self.conv(with_spread(y))).flatten(1)))))


def with_spread(y: Tensor) -> Tensor:
    """y [N, C, H, W] with one more channel: the standard deviation of the features over a group of the batch's images,
    averaged over all features and pixels."""
    group = next(g for g in range(GROUP, 0, -1) if len(y) % g == 0)
    parts = y.reshape(group, -1, *y.shape[1:])
    square = (parts - parts.mean(0)).square().mean(0)  # torch.var over the first of several dimensions is slow
    spread = (square + EPSILON).sqrt().mean((1, 2, 3)).repeat(group)
    return torch.cat([y, spread[:, None, None, None].expand(-1, 1, *y.shape[2:])], 1)
