"""PixelCNN and Gated PixelCNN (van den Oord et al. 2016): see ``nn.pixel`` for causality and for walks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.pixel import (
    CachedConv,
    CausalConv,
    Features,
    OutputLayers,
    OutputWalk,
    PixelNet,
    PixelWalk,
    Pointwise,
    RowBuffer,
    RowConv,
    Shape,
    groups,
    hidden_units,
    shifted_down,
)


class PixelCnnBlock(nn.Module):
    """y + 1x1(ReLU(3x3(ReLU(1x1(ReLU(y)))) + V h)), with mask B (van den Oord et al. 2016, section 3.4 and figure 5).

    Pixels to the right in the rows above stay partly unseen: the paper's blind spot.
    """

    def __init__(self, inner: int, channels: int, context: int) -> None:
        super().__init__()
        hidden = 2 * inner
        wide, own = groups(hidden, channels), groups(inner, channels)
        self.narrow = CausalConv(hidden, inner, inside=wide <= own[:, None])
        self.conv = CausalConv(inner, inner, 1, 1, 1, inside=own <= own[:, None])
        self.widen = CausalConv(inner, hidden, inside=own <= wide[:, None])
        self.context = nn.Linear(context, inner, bias=False) if context else None

    def forward(self, y: Tensor, x: Tensor, h: Tensor | None) -> Tensor:
        z = self.conv(F.relu(self.narrow(F.relu(y))))
        if self.context is not None:
            z = z + self.context(h)[:, :, None, None]
        return y + self.widen(F.relu(z))

    def walk(self, walk: PixelWalk, h: Tensor | None) -> PixelCnnBlockWalk:
        return PixelCnnBlockWalk(self, walk, h)


class PixelCnnBlockWalk:
    def __init__(self, block: PixelCnnBlock, walk: PixelWalk, h: Tensor | None) -> None:
        hidden, inner, parts = block.narrow.in_channels, block.narrow.out_channels, walk.parts
        self.narrow, self.widen = Pointwise(block.narrow, parts), Pointwise(block.widen, parts)
        self.active, self.inner = (Features(walk.like, walk.n, width, parts) for width in (hidden, inner))
        self.band = RowBuffer(walk.like, walk.n, walk.width, inner, 2, 1, 1, parts=parts)
        shift = None if block.context is None else block.context(h)
        self.conv = CachedConv(block.conv, self.band, parts=parts, shift=shift)

    def start_row(self) -> None:
        self.band.next_row()
        self.conv.start_row()

    def pixel(self, y: Tensor, w: int, c: int) -> Tensor:
        torch.clamp_min(self.narrow(self.active.relu(y, c), c), 0, out=self.band.pixels[w][c])
        z = self.inner.relu(self.conv.pixel(w, c), c)
        return self.widen(z, c).add_(y)


# ------------------------------------------------------------------------------------------------ gated


class GatedPixelCnn(PixelNet):
    """Two stacks (van den Oord et al. 2016, Conditional image generation with PixelCNN decoders, figure 2).

    The vertical stack sees all rows above; the horizontal one sees its own row to the left, and the vertical
    stack at its own pixel: together all pixels before, without a blind spot. Both are gated,
    tanh(W_f * x + V_f h) sigma(W_g * x + V_g h), and the horizontal one is residual.

    Args:
        hidden: features of each stack; layers: gated layers; kernel: k of the first convolutions (odd).
    """

    def __init__(self, shape: Shape, params: int, *, hidden: int, layers: int, kernel: int, context: int = 0) -> None:
        channels = shape[0]
        super().__init__(shape, channels)
        hidden, reach = hidden_units(hidden, channels), kernel // 2
        own = groups(hidden, channels)
        self.down = CausalConv(channels + 1, hidden, reach - 1, reach, reach)  # on the image shifted down
        self.right = CausalConv(channels + 1, hidden, 0, reach, inside=self.seen(own))
        self.layers = nn.ModuleList(GatedLayer(hidden, channels, context, k == layers - 1) for k in range(layers))
        self.out = OutputLayers(hidden, channels * params, channels)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        x = self.image(x)
        v, y = self.down(shifted_down(x)), self.right(x)
        for layer in self.layers:
            v, y = layer(v, y, h)
        return self.out(y)

    def walk(self, n: int, h: Tensor | None = None) -> PixelWalk:
        return GatedPixelCnnWalk(self, n, h)


class GatedLayer(nn.Module):
    """One gated layer of both stacks; of the vertical stack the last one has nothing to hand on."""

    def __init__(self, hidden: int, channels: int, context: int, last: bool) -> None:
        super().__init__()
        own = groups(hidden, channels)
        both = torch.cat([own, own])  # filters and gates
        self.last = last
        self.vertical = CausalConv(hidden, 2 * hidden, 1, 1, 1)
        self.link = CausalConv(2 * hidden, 2 * hidden)
        self.horizontal = CausalConv(hidden, 2 * hidden, 0, 1, inside=own <= both[:, None])
        self.mix = CausalConv(hidden, hidden, inside=own <= own[:, None])
        self.context = nn.Linear(context, (2 if last else 4) * hidden, bias=False) if context else None

    def forward(self, v: Tensor, y: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        above = self.vertical(v)
        z = self.horizontal(y) + self.link(above)
        if self.context is not None:
            given = self.context(h)[:, :, None, None]
            z = z + given[:, : z.shape[1]]
            above = above if self.last else above + given[:, z.shape[1] :]
        return v if self.last else gated(above), y + self.mix(gated(z))


def gated(z: Tensor, dim: int = 1, out: Tensor | None = None) -> Tensor:
    """tanh(f) sigma(g) of z = [-2 f, g] along a dimension: tanh is a sigmoid too, so that one call does both halves.

    A call on each half would read with gaps, which costs several times as much.
    """
    f, g = z.sigmoid().chunk(2, dim)
    return torch.addcmul(g, f, g, value=-2, out=out)


class GatedPixelCnnWalk(PixelWalk):
    @torch.no_grad()
    def __init__(self, net: GatedPixelCnn, n: int, h: Tensor | None) -> None:
        reach = net.right.left
        super().__init__(net, n, reach, reach)
        self.down, self.first = net.down, CachedConv(net.right, self.x, parts=self.parts)
        self.layers = [GatedLayerWalk(layer, self, h) for layer in net.layers]  # type: ignore[arg-type]
        self.out = OutputWalk(net.out, n, self.parts)

    def start_row(self) -> None:
        v = self.row_above(self.down)
        for layer in self.layers:
            v = layer.start_row(v)


class GatedLayerWalk:
    def __init__(self, layer: GatedLayer, walk: PixelWalk, h: Tensor | None) -> None:
        hidden, n, width, parts = layer.mix.in_channels, walk.n, walk.width, walk.parts
        # filters and gates of a group side by side
        order = torch.arange(2 * hidden).view(2, parts, -1).transpose(0, 1).flatten()
        given = None if layer.context is None else layer.context(h)
        self.layer = layer
        self.vertical = RowConv(layer.vertical, n, width)
        self.y = RowBuffer(walk.like, n, width, hidden, 1, 1, parts=parts)
        self.horizontal = CachedConv(
            layer.horizontal, self.y, parts=parts, order=order, shift=None if given is None else given[:, : 2 * hidden]
        )
        self.below = None if given is None or layer.last else given[:, 2 * hidden :]
        assert layer.link.bias is not None
        self.link, self.link_bias = layer.link.weight[order, :, 0, 0], layer.link.bias[order]
        self.gated = Features(walk.like, n, hidden, parts)
        self.mix = Pointwise(layer.mix, parts)

    def start_row(self, v: Tensor) -> Tensor:
        """A row of the vertical stack [N, W, hidden] -> that of the next layer."""
        above = self.vertical(v)
        self.horizontal.start_row(F.linear(above, self.link, self.link_bias))
        if self.below is not None:
            above = above + self.below[:, None]
        return v if self.layer.last else gated(above, -1)

    def pixel(self, y: Tensor, w: int, c: int) -> Tensor:
        """Group c [N, hidden / parts] of the horizontal stack at column w -> that of the next layer."""
        self.y.pixels[w][c].copy_(y)
        gated(self.horizontal.pixel(w, c), out=self.gated.parts[c])
        return self.mix(self.gated.all, c).add_(y)
