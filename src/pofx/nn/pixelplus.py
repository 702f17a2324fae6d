"""PixelCNN++ (Salimans, Karpathy, Chen & Kingma 2017): two shifted streams and a joint mixture per pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.heads import LevelLogistics
from pofx.nn.mlp import zeroed
from pofx.nn.pixel import (
    CachedConv,
    CausalConv,
    PixelNet,
    PixelWalk,
    Pointwise,
    RowBuffer,
    RowConv,
    Shape,
    shifted_down,
)


class PixelCnnPlus(PixelNet):
    """A stream u of all rows above and a stream l of those, and of the row to the left, both gated resnets.

    Layers go up and down again with short-cuts between mirrored ones, as in the paper's figure 2, but all at full
    resolution: the paper halves images of 32x32 twice in between, which cheapens training and needs a walk per
    resolution. Weights are not normalised, and there is no dropout. One pass gives all numbers of a pixel, from
    the pixels before it alone: its channels depend on each other by ``ColourMixture``.

    Args:
        outputs: numbers per pixel.
        hidden: features of each stream; layers: gated resnets on the way up, and as many on the way down.
    """

    def __init__(self, shape: Shape, outputs: int, *, hidden: int, layers: int, context: int = 0) -> None:
        super().__init__(shape, 1)
        inputs, alike = shape[0] + 1, torch.zeros(hidden)
        self.down = CausalConv(inputs, hidden, 1, 1, 1)  # on the image shifted down
        self.right = CausalConv(inputs, hidden, 1, 1, 1, inside=self.seen(alike))

        def stream(sides: int, right: int) -> nn.ModuleList:
            return nn.ModuleList(GatedResnet(hidden, right, sides, context) for _ in range(layers))

        self.u_up, self.l_up, self.u_down, self.l_down = stream(0, 1), stream(1, 0), stream(1, 1), stream(2, 0)
        self.out = zeroed(CausalConv(hidden, outputs))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """x [N, C, H, W], h [N, context] -> [N, outputs, H, W]"""
        x = self.image(x)
        us, ls = [self.down(shifted_down(x))], [self.right(x)]
        for u_layer, l_layer in zip(self.u_up, self.l_up, strict=True):
            us.append(u_layer(us[-1], [], h))
            ls.append(l_layer(ls[-1], [us[-1]], h))
        u, l = us.pop(), ls.pop()
        for u_layer, l_layer in zip(self.u_down, self.l_down, strict=True):
            u = u_layer(u, [us.pop()], h)
            l = l_layer(l, [u, ls.pop()], h)
        return self.out(F.elu(l))

    def walk(self, n: int, h: Tensor | None = None) -> PixelWalk:
        return PixelCnnPlusWalk(self, n, h)


class GatedResnet(nn.Module):
    """x + a sigma(b), [a, b] = conv(celu(conv(celu(x)) + sum of 1x1(celu(sides)))) + V h, celu(x) = ELU([x, -x]).

    Windows are 2x3 for the stream of rows above, 2x2 (up and left) for the other one.
    """

    def __init__(self, hidden: int, right: int, sides: int, context: int) -> None:
        super().__init__()
        self.first = CausalConv(2 * hidden, hidden, 1, 1, right)
        self.sides = nn.ModuleList(nn.Conv2d(2 * hidden, hidden, 1, bias=False) for _ in range(sides))
        self.second = CausalConv(2 * hidden, 2 * hidden, 1, 1, right)
        self.context = nn.Linear(context, 2 * hidden, bias=False) if context else None
        with torch.no_grad():
            self.second.weight.mul_(0.1)  # the paper's init_scale: near the identity at first

    def forward(self, x: Tensor, sides: Sequence[Tensor], h: Tensor | None) -> Tensor:
        z = self.first(concat_elu(x))
        for layer, side in zip(self.sides, sides, strict=True):
            z = z + layer(concat_elu(side))
        z = self.second(concat_elu(z))
        if self.context is not None:
            z = z + self.context(h)[:, :, None, None]
        a, b = z.chunk(2, 1)
        return torch.addcmul(x, a, b.sigmoid())


def concat_elu(x: Tensor, dim: int = 1) -> Tensor:
    """ELU of x and of -x, side by side along a dimension."""
    return F.elu(torch.cat([x, -x], dim))


class PixelCnnPlusWalk(PixelWalk):
    @torch.no_grad()
    def __init__(self, net: PixelCnnPlus, n: int, h: Tensor | None) -> None:
        super().__init__(net, n, 2, 1)
        self.down, self.first = net.down, CachedConv(net.right, self.x)
        self.u_up, self.u_down = (
            [RowResnet(layer, self, h) for layer in layers]  # type: ignore[arg-type]
            for layers in (net.u_up, net.u_down)
        )
        self.l_up = [PixelResnet(layer, self, h) for layer in net.l_up]  # type: ignore[arg-type]
        # the short-cut into a layer on the way down is what its mirror image on the way up reads
        self.l_down = [
            PixelResnet(layer, self, h, mirror.read)  # type: ignore[arg-type]
            for layer, mirror in zip(net.l_down, reversed(self.l_up), strict=True)
        ]
        self.layers, out = (*self.l_up, *self.l_down), Pointwise(net.out)
        self.out = lambda y, c: out(F.elu(y))

    def start_row(self) -> None:
        self.first.start_row()
        us = [self.row_above(self.down)]
        for u_layer, l_layer in zip(self.u_up, self.l_up, strict=True):
            us.append(u_layer(us[-1]))
            l_layer.start_row(us[-1])
        u = us.pop()
        for u_layer, l_layer in zip(self.u_down, self.l_down, strict=True):
            u = u_layer(u, us.pop())
            l_layer.start_row(u)


class RowResnet:
    """A layer of the stream of rows above, row after row."""

    def __init__(self, layer: GatedResnet, walk: PixelWalk, h: Tensor | None) -> None:
        self.layer = layer
        self.first, self.second = (RowConv(conv, walk.n, walk.width) for conv in (layer.first, layer.second))
        self.shift = None if layer.context is None else layer.context(h)[:, None]

    def __call__(self, u: Tensor, *sides: Tensor) -> Tensor:
        """Rows [N, W, hidden] -> [N, W, hidden]"""
        z = self.first(concat_elu(u, -1))
        for side, a in zip(self.layer.sides, sides, strict=True):
            z = z + F.linear(concat_elu(a, -1), side.weight[:, :, 0, 0])  # type: ignore[index]
        z = self.second(concat_elu(z, -1))
        a, b = (z if self.shift is None else z + self.shift).chunk(2, -1)
        return torch.addcmul(u, a, b.sigmoid())


class PixelResnet:
    """A layer of the other stream, pixel by pixel.

    Attributes:
        read: the layer's input after its activation; short: the same of the layer's mirror image.
    """

    def __init__(self, layer: GatedResnet, walk: PixelWalk, h: Tensor | None, short: RowBuffer | None = None) -> None:
        hidden, n, width = layer.first.out_channels, walk.n, walk.width
        self.read, self.inner = (RowBuffer(walk.like, n, width, 2 * hidden, 2, 1) for _ in range(2))
        self.first = CachedConv(layer.first, self.read)
        self.second = CachedConv(layer.second, self.inner, shift=None if layer.context is None else layer.context(h))
        self.above, *rest = [side.weight[:, :, 0, 0] for side in layer.sides]  # type: ignore[index]
        self.short, self.short_weight = short, rest[0].T.contiguous() if rest else None

    def start_row(self, u: Tensor) -> None:
        """u [N, W, hidden]: the row of the stream above that this layer reads."""
        self.read.next_row()
        self.inner.next_row()
        self.first.start_row(F.linear(concat_elu(u, -1), self.above))
        self.second.start_row()

    def pixel(self, y: Tensor, w: int, c: int) -> Tensor:
        """y [N, hidden] -> [N, hidden]"""
        write_concat_elu(y, self.read.pixels[w][0])
        z = self.first.pixel(w)
        if self.short is not None and self.short_weight is not None:
            z.addmm_(self.short.pixels[w][0], self.short_weight)
        write_concat_elu(z, self.inner.pixels[w][0])
        a, b = self.second.pixel(w).chunk(2, 1)
        return torch.addcmul(y, a, b.sigmoid_())


def write_concat_elu(x: Tensor, out: Tensor) -> None:
    """``concat_elu`` of x [N, p] into a view [N, 2 p]."""
    torch.cat([x, -x], 1, out=out)
    F.elu_(out)


# ------------------------------------------------------------------------------------- channels of a pixel


class ColourMixture:
    """One mixture for all channels of a pixel, later ones linear in the earlier (Salimans et al. 2017, eq. 2 and 3).

        p(x_1, ..., x_C) = sum_m w_m prod_c P(x_c; mu_{m,c} + sum_{j<c} tanh(a_{m,c,j}) x_j, s_{m,c})

    As conditionals it is a mixture for each channel, with weights that earlier channels have tilted:

        p(x_c | x_1, ..., x_{c-1}) = sum_m w_m^c P_m(x_c),   w_m^c ~ w_m prod_{j<c} P_m(x_j)

    so that the head of each value, ``LevelLogistics``, gives its probability and samples it; the product of the
    conditionals is the joint mixture where the head's start weights are the same for all channels.

    Args:
        channels: C; components: M.
    """

    def __init__(self, channels: int, components: int) -> None:
        self.channels, self.components = channels, components
        self.outputs = components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def conditional(self, c: int, raw: Tensor, x: Tensor, heads: Sequence[LevelLogistics], tilt: Tensor) -> Tensor:
        """Parameters [..., 3 M] of channel c.

        Args:
            raw: [..., outputs] of the net.
            x: [..., C] values on -1 to 1, read up to channel c - 1.
            heads: of each channel at these places.
            tilt: [..., M], sum of log P_m of the channels before.
        """
        m, count = self.components, self.channels
        logits, each = raw[..., :m], raw[..., m : m + 2 * count * m].unflatten(-1, (count, 2, m))
        mean = each[..., c, 0, :]
        if c:
            first = m * (1 + 2 * count + c * (c - 1) // 2)
            slope = raw[..., first : first + c * m].unflatten(-1, (c, m)).tanh()
            # the head counts means in units of its component's scale
            mean = mean + (slope * x[..., :c, None]).sum(-2) * (-heads[c].log_scale).exp()
        return torch.cat([logits + tilt, mean, each[..., c, 1, :]], -1)

    def all(self, raw: Tensor, x: Tensor, heads: Sequence[LevelLogistics]) -> list[Tensor]:
        """Parameters [..., 3 M] of every channel, given all values x [..., C] on -1 to 1."""
        tilt, found = raw.new_zeros(()), []
        for c in range(self.channels):
            found.append(self.conditional(c, raw, x, heads, tilt))
            if c < self.channels - 1:
                tilt = tilt + self.log_prob(found[c], x[..., c], heads[c])
        return found

    def log_prob(self, params: Tensor, x: Tensor, head: LevelLogistics) -> Tensor:
        """log P_m [..., M] of a channel's value x [...] on -1 to 1."""
        return head.component_log_prob(params, ((x + 1) * ((head.levels - 1) / 2)).round())


class ColourWalk:
    """The walk of a net that gives ``ColourMixture.outputs`` per pixel, channel after channel.

    Args:
        head: of all values [C H W].
    """

    def __init__(self, walk: PixelWalk, mixture: ColourMixture, head: LevelLogistics) -> None:
        self.walk, self.mixture, self.head, self.order = walk, mixture, head, walk.order
        self.places = len(walk.order) // mixture.channels

    @torch.no_grad()
    def params(self) -> Tensor:
        """The parameters [n, 3 M] of the next value."""
        pixel, self.c = divmod(self.walk.rank, self.mixture.channels)
        raw = self.walk.params()
        if self.c == 0:
            self.heads = [self.head.site(c * self.places + pixel) for c in range(self.mixture.channels)]
            self.x, self.tilt = raw.new_zeros(len(raw), self.mixture.channels), raw.new_zeros(())
        self.given = self.mixture.conditional(self.c, raw, self.x, self.heads, self.tilt)
        return self.given

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Take that value, embedded [n, 1], and go on to the next."""
        value = features[:, 0]
        self.x[:, self.c] = value
        if self.c < self.mixture.channels - 1:
            self.tilt = self.tilt + self.mixture.log_prob(self.given, value, self.heads[self.c])
        self.walk.push(features)
