"""Chains over images: pixels folded into channels, layers that look at neighbours, channels that leave from scale to
scale (Dinh et al. 2017, section 3.6; Kingma & Dhariwal 2018, figure 2).

Rows are images laid out as [H, W, C], flattened: then a layer of pixels is one matrix product, and convolutions find
their channels last. All but the couplings treat every pixel alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.conv import ConvNet
from pofx.nn.numbers import moments
from pofx.transforms.base import LuLinear, Noise, Scalar, Split, Step, Transform

Shape = tuple[int, int, int]  # H, W, C


class Reorder(Transform):
    """The entries of x, seen as an array of ``shape``, with its axes in the order ``axes``: volume stays.

    Example:
        >>> import torch
        >>> squeeze = Reorder((1, 2, 2, 2, 1), (0, 2, 1, 3, 4))  # 2 x 4 pixels to 1 x 2 of 4 channels
        >>> squeeze(torch.arange(8.0)[None]).z
        tensor([[0., 1., 4., 5., 2., 3., 6., 7.]])
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.axes = shape, axes

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        z = x.reshape(-1, *self.shape).permute(0, *(1 + a for a in self.axes))
        return Step(z.flatten(1), x.new_zeros(len(x)))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return z.reshape(-1, *(self.shape[a] for a in self.axes)).permute(0, *(1 + b for b in back)).flatten(1)


class ActNorm(Transform):
    """z = (x + b) exp(s) with b and s of each channel; ``prepare`` starts them so that z has mean 0 and variance 1 over
    the rows and pixels it is shown (Kingma & Dhariwal 2018, section 3.1)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.pixels, self.channels = math.prod(shape[:2]), shape[2]
        self.bias = nn.Parameter(torch.zeros(self.channels))
        self.log_scale = nn.Parameter(torch.zeros(self.channels))

    @torch.no_grad()
    def prepare(self, x: Tensor, h: Tensor | None = None) -> None:
        mean, std = moments(x.reshape(-1, self.channels))
        self.bias.copy_(-mean)
        self.log_scale.copy_(-std.log())

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        z = (x.reshape(-1, self.channels) + self.bias) * self.log_scale.exp()
        return Step(z.view(len(x), -1), self.pixels * self.log_scale.sum().expand(len(x)))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        x = z.reshape(-1, self.channels) * (-self.log_scale).exp() - self.bias
        return x.view(len(z), -1)


class Conv1x1(Transform):
    """The same ``LuLinear`` at every pixel, which starts as a rotation of the channels (Kingma & Dhariwal 2018,
    section 3.2)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.pixels, self.channels = math.prod(shape[:2]), shape[2]
        self.linear = LuLinear(self.channels)
        self.linear.rotate()

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        z = F.linear(x.reshape(-1, self.channels), self.linear.matrix(), self.linear.bias)
        return Step(z.view(len(x), -1), self.pixels * self.linear.packed.diagonal().sum().expand(len(x)))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        return self.linear.inverse(z.reshape(-1, self.channels)).reshape(len(z), -1)


class ConvCoupling(Transform):
    """z_A = x_A, z_B = scalar(x_B; net(x_A, h)) with A and B channels, and a convolutional net.

    Args:
        shape: (H, W, C).
        mask: [C] bool, True for the channels B that are transformed. Channels A may be none.
        scalar: the monotone map of each entry.
        context: width of h; 0 for none.
        hidden, blocks, kernel: of ``nn.conv.ConvNet``.

    Example:
        >>> import torch
        >>> from pofx.transforms.base import Affine
        >>> layer = ConvCoupling((2, 2, 3), torch.arange(3) > 0, Affine(), context=0, hidden=8, blocks=1)
        >>> x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
        >>> z = layer(x).z
        >>> torch.equal(z[:, ::3], x[:, ::3]), torch.allclose(layer.inverse(z), x, atol=1e-6)
        (True, True)
    """

    changed: Tensor
    given: Tensor

    def __init__(
        self, shape: Shape, mask: Tensor, scalar: Scalar, *, context: int, hidden: int, blocks: int, kernel: int = 1
    ) -> None:
        super().__init__()
        self.shape, self.scalar = shape, scalar
        self.register_buffer("changed", mask.nonzero()[:, 0], persistent=False)
        self.register_buffer("given", (~mask).nonzero()[:, 0], persistent=False)
        inputs, outputs = max(1, len(self.given)), scalar.count * len(self.changed)
        self.net = ConvNet(inputs, outputs, hidden=hidden, blocks=blocks, kernel=kernel, context=context)

    def parameters_given(self, x: Tensor, h: Tensor | None) -> Tensor:
        """The scalar's parameters [count, N, H, W, C_B] from the channels A of x [N, H, W, C]."""
        seen = x[..., self.given] if len(self.given) else x.new_zeros(*x.shape[:3], 1)
        found = self.net(seen.permute(0, 3, 1, 2), h).unflatten(1, (self.scalar.count, -1))
        return found.permute(1, 0, 3, 4, 2)

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        x = x.reshape(-1, *self.shape)
        z, log_slope = self.scalar.forward(x[..., self.changed], self.parameters_given(x, h))
        return Step(x.index_copy(3, self.changed, z).flatten(1), log_slope.flatten(1).sum(1))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        z = z.reshape(-1, *self.shape)
        x = self.scalar.inverse(z[..., self.changed], self.parameters_given(z, h))
        return z.index_copy(3, self.changed, x).flatten(1)


def halvings(height: int, width: int) -> int:
    """How often both sides can be halved."""
    both = math.gcd(height, width)
    return (both & -both).bit_length() - 1


def block(side: int) -> int:
    """The side of the blocks of pixels that are folded into channels: 2 of even sides, else the least divisor."""
    return next((k for k in range(2, side + 1) if side % k == 0), 1)


def checkerboard(height: int, width: int, channels: int) -> Tensor:
    """Of the channels that a block of height x width pixels becomes, those of every other pixel [C] bool."""
    i, j = torch.arange(height)[:, None], torch.arange(width)
    return ((i + j) % 2 == 0).flatten().repeat_interleave(channels)


def multiscale(
    shape: Shape,
    layers: int,
    scales: int,
    steps: Callable[[Shape, tuple[int, int], int], Iterable[Transform]],
    prior: Callable[[Shape, Tensor], Transform],
) -> list[Transform]:
    """A chain over images of ``shape``, which come as [C, H, W].

    On each scale: blocks of pixels become channels, layers follow, and, but on the last scale, half of the channels
    leave. What leaves is N(mu, sigma^2) given what stays (Kingma & Dhariwal 2018, appendix): that is a standard normal
    after one more affine coupling, ``prior``.

    Args:
        layers: of all scales.
        steps: gives the layers of a scale, of images (H, W, C) whose channels are blocks of (a, b) pixels: how many.
        prior: gives the coupling of the channels [C] bool that leave, given the others.
    """
    h, w, c = shape
    chain: list[Transform] = [Reorder((c, h, w), (1, 2, 0))]
    for scale in range(scales):
        a, b = block(h), block(w)
        chain.append(Reorder((h // a, a, w // b, b, c), (0, 2, 1, 3, 4)))
        h, w, c = h // a, w // b, a * b * c
        chain += steps((h, w, c), (a, b), layers // scales + (scale < layers % scales))
        if scale + 1 < scales:
            stays = torch.arange(c) < (c + 1) // 2
            chain += [prior((h, w, c), ~stays), Split(stays.repeat(h * w))]
            c = int(stays.sum())
    return chain
