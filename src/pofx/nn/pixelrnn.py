"""PixelRNN (van den Oord, Kalchbrenner & Kavukcuoglu 2016, section 3): LSTMs along rows or along diagonals."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.pixel import (
    CachedConv,
    CausalConv,
    Features,
    PixelWalk,
    Pointwise,
    RowBuffer,
    groups,
    shifted_down,
)


class LstmLayer(nn.Module):
    """y + 1x1(LSTM(y)); a subclass has ``lstm``.

    Gates are [input, forget, output, candidate], p features each, of a product with y and (V h) with the context,
    and of one with the states before.
    """

    def __init__(self, inner: int, channels: int, context: int, left: int) -> None:
        super().__init__()
        own, wide = groups(inner, channels), groups(2 * inner, channels)
        self.inner = inner
        self.input = CausalConv(2 * inner, 4 * inner, 0, left, inside=wide <= own.repeat(4)[:, None])
        self.widen = CausalConv(inner, 2 * inner, inside=own <= wide[:, None])
        self.context = nn.Linear(context, 4 * inner, bias=False) if context else None

    def forward(self, y: Tensor, x: Tensor, h: Tensor | None) -> Tensor:
        shift = 0.0 if self.context is None else self.context(h)[:, :, None, None]
        return y + self.widen(self.lstm(y, x, shift))

    def lstm(self, y: Tensor, x: Tensor, shift: Tensor | float) -> Tensor:
        """States [N, p, H, W] of maps y [N, 2 p, H, W] and the image x itself; ``shift`` is added to the gates."""
        raise NotImplementedError


def cell_step(z: Tensor, cell: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Gates and the former cell -> state, cell."""
    i, f, o, g = z.chunk(4, dim)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


class RowLstm(LstmLayer):
    """Row after row: the gates see the input at the pixel and to its left, and 3 states of the row above.

    Far pixels of the rows above, outside a triangle that widens by one per row, are seen only through the input
    and the layers before.
    """

    def __init__(self, inner: int, channels: int, context: int) -> None:
        super().__init__(inner, channels, context, left=1)
        self.state = nn.Conv1d(inner, 4 * inner, 3, padding=1, bias=False)

    def lstm(self, y: Tensor, x: Tensor, shift: Tensor | float) -> Tensor:
        z = self.input(y) + shift
        state = cell = z.new_zeros(len(z), self.inner, z.shape[3])
        states = []
        for row in z.unbind(2):
            state, cell = cell_step(row + self.state(state), cell, 1)
            states.append(state)
        return torch.stack(states, 2)

    def walk(self, walk: PixelWalk, h: Tensor | None) -> RowLstmWalk:
        return RowLstmWalk(self, walk, h)


class DiagonalLstm(LstmLayer):
    """Both diagonals: the gates see the input at the pixel, and the states beside it and above it.

    One LSTM comes from the left, one from the right; the latter's states are moved down by a row before they are
    added, so that pixels to the right stay unseen. As features of a pixel do not know its own value, the latter also
    reads the image: without it, as in the paper, the ends of the rows above stay unseen. Rows are skewed (row i
    moved right by i) so that a column holds a diagonal, all of whose states are one step.
    """

    def __init__(self, inner: int, channels: int, context: int) -> None:
        super().__init__(inner, channels, context, left=0)
        self.input_right = CausalConv(2 * inner + channels + 1, 4 * inner)
        # per direction: from the states beside and above
        self.state = nn.Parameter(torch.randn(2, 2 * inner, 4 * inner) / (2 * inner) ** 0.5)

    def lstm(self, y: Tensor, x: Tensor, shift: Tensor | float) -> Tensor:
        left = self.input(y) + shift
        right = (self.input_right(torch.cat([y, x], 1)) + shift).flip(3)
        n, _, height, width = y.shape
        z = skew(torch.stack([left, right])).permute(4, 0, 1, 3, 2)  # [diagonals, 2, N, H, 4 p]
        state = cell = z.new_zeros(2, n, height, self.inner)
        states = []
        for diagonal in z.unbind(0):
            # outside the image all gates are zero, and with them cell and state
            before = torch.cat([state, F.pad(state, (0, 0, 1, 0))[:, :, :-1]], 3)
            gates = torch.baddbmm(diagonal.flatten(1, 2), before.flatten(1, 2), self.state)
            state, cell = cell_step(gates.view_as(diagonal), cell, 3)
            states.append(state)
        left, right = unskew(torch.stack(states, 4).permute(0, 1, 3, 2, 4), width)
        return left + shifted_down(right.flip(3))

    def walk(self, walk: PixelWalk, h: Tensor | None) -> DiagonalLstmWalk:
        return DiagonalLstmWalk(self, walk, h)


def skew(x: Tensor) -> Tensor:
    """Row i moved right by i: [..., H, W] -> [..., H, W + H - 1], zeros elsewhere."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, height)).flatten(-2)[..., :-height].unflatten(-1, (height, width + height - 1))


def unskew(x: Tensor, width: int) -> Tensor:
    """The inverse of ``skew``: [..., H, W + H - 1] -> [..., H, W]."""
    height = x.shape[-2]
    return F.pad(x.flatten(-2), (0, height)).unflatten(-1, (height, width + height))[..., :width]


# ---------------------------------------------------------------------------------------------- walking


class LstmLayerWalk:
    """What both kinds share: the input's row, the row of states, and what a group of features does at a pixel."""

    def __init__(self, layer: LstmLayer, walk: PixelWalk, h: Tensor | None, left: int, right: int) -> None:
        n, width, parts = walk.n, walk.width, walk.parts
        # the gates of a group side by side
        self.order = torch.arange(4 * layer.inner).view(4, parts, -1).transpose(0, 1).flatten()
        self.given = None if layer.context is None else layer.context(h)
        self.y = RowBuffer(walk.like, n, width, 2 * layer.inner, 1, left, parts=parts)
        self.state = RowBuffer(walk.like, n, width, layer.inner, 1, 1, right, parts=parts)
        self.input = CachedConv(layer.input, self.y, parts=parts, order=self.order, shift=self.given)
        self.widen = Pointwise(layer.widen, parts)


def step_in_place(z: Tensor, cell: Tensor, out: Tensor) -> None:
    """``cell_step`` of gates z [N, 4 q]: the cell [N, q] is overwritten, the state goes to ``out``."""
    q = cell.shape[1]
    i, f, o = z[:, : 3 * q].sigmoid_().chunk(3, 1)
    cell.mul_(f).addcmul_(i, z[:, 3 * q :].tanh_())
    torch.mul(o, cell.tanh(), out=out)


class RowLstmWalk(LstmLayerWalk):
    def __init__(self, layer: RowLstm, walk: PixelWalk, h: Tensor | None) -> None:
        super().__init__(layer, walk, h, 1, 1)
        self.weight = layer.state.weight[self.order]
        self.cells = [[torch.zeros_like(p) for p in pixel] for pixel in self.state.pixels]

    def start_row(self) -> None:
        # the states and cells of the row above still stand where those of this row will be
        self.input.start_row(F.conv1d(self.state.data[:, 0].mT, self.weight).mT)

    def pixel(self, y: Tensor, w: int, c: int) -> Tensor:
        self.y.pixels[w][c].copy_(y)
        step_in_place(self.input.pixel(w, c), self.cells[w][c], self.state.pixels[w][c])
        return self.widen(self.state.row[:, w], c).add_(y)


class DiagonalLstmWalk(LstmLayerWalk):
    def __init__(self, layer: DiagonalLstm, walk: PixelWalk, h: Tensor | None) -> None:
        super().__init__(layer, walk, h, 0, 0)
        beside, above = layer.state[0][:, self.order].chunk(2)
        self.beside = [b.contiguous() for b in beside.chunk(walk.parts, 1)]
        self.above = above
        self.left = self.state.data[:, 0, :-1].unbind(1)  # per column, the state of the pixel before
        self.cells = [torch.zeros_like(p) for p in self.state.pixels[0]]
        self.layer, self.x, self.first_row = layer, walk.x, True
        bias = layer.input_right.bias
        assert bias is not None
        self.shift = (bias if self.given is None else bias + self.given).expand(walk.n, -1)[:, None]
        self.right = torch.zeros_like(self.state.row)  # the other LSTM's states of the row above
        self.both = Features(walk.like, walk.n, layer.inner, walk.parts)
        self.moved = [r.chunk(walk.parts, 1) for r in self.right.unbind(1)]

    def start_row(self) -> None:
        if not self.first_row:
            self.from_the_right()
        self.input.start_row(self.state.row @ self.above)
        for cell in self.cells:
            cell.zero_()
        self.first_row = False

    def from_the_right(self) -> None:
        """The other LSTM over the row just completed."""
        beside, above = self.layer.state[1].chunk(2)
        inputs = torch.cat([self.y.row, self.x.above(1, 0, 0)[:, :, 0].mT], 2)
        z = F.linear(inputs, self.layer.input_right.weight[:, :, 0, 0]) + self.right @ above + self.shift
        state = cell = torch.zeros_like(self.right[:, 0])
        for w in reversed(range(self.right.shape[1])):
            state, cell = cell_step(torch.addmm(z[:, w], state, beside), cell, 1)
            self.right[:, w] = state

    def pixel(self, y: Tensor, w: int, c: int) -> Tensor:
        self.y.pixels[w][c].copy_(y)
        z = self.input.pixel(w, c).addmm_(self.left[w], self.beside[c])
        step_in_place(z, self.cells[c], self.state.pixels[w][c])
        torch.add(self.state.pixels[w][c], self.moved[w][c], out=self.both.parts[c])
        return self.widen(self.both.all, c).add_(y)
