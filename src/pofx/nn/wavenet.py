"""WaveNet: stacks of dilated causal convolutions with gated units.

    z_l   = tanh(a) (1 + tanh(b)),   [a b] = bias_l + sum_j x_l[t - j d_l] filter_l,j,   d_l = 1, 2, 4, ..., 1, 2, ...
    x_l+1 = x_l + z_l residual_l
    y     = relu(leave(relu(bias + sum_l z_l skip_l)))

(van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio"; 1 + tanh(b) is 2 sigmoid(2b), so one tanh
serves both halves of a gate; residual and skip connections have no biases of their own, which those of the next
filters and of the sum stand for.) A family's head is the last of the paper's two 1x1 convolutions after the sum.

With local conditioning (section 2.5 there), bias_l at step t is bias_l + y[t // every] local_l, for a row y of each
``every`` steps: the paper's upsampling by repetition.

A pass goes through the layers block of rows by block: what lies between two convolutions stays in the processor's
cache, and is computed again on the way back. Step by step, each layer keeps the inputs that its filter reaches back
to (Le Paine et al. 2016, "Fast Wavenet Generation Algorithm").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pofx.core.errors import Unsupported, UsageError
from pofx.nn.sequence import Cache, SequenceNet

BLOCK = 2**17  # numbers in a block of gates per thread: a CPU core's own cache holds the few arrays in use
FEW = 8  # inputs up to which single steps are faster than a pass


class WaveNet(SequenceNet):
    """Inputs [N, L, width] -> outputs [N, L, width], causal in L.

    Args:
        width: of inputs and outputs.
        layers: of one stack; their dilations are 1, 2, 4, ..., 2^(layers - 1).
        stacks: how often these dilations repeat.
        residual: channels of the convolutions.
        skip: channels of the sum over all layers.
        kernel: taps of a filter.
        local: numbers that each ``every`` steps are told, such as a frame of a spectrum its samples; 0: none.

    An output depends on 1 + stacks (kernel - 1) (2^layers - 1) inputs.
    """

    reach: int

    def __init__(
        self, width: int, layers: int = 10, stacks: int = 3, residual: int = 32, skip: int = 128, kernel: int = 2,
        local: int = 0, every: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(width, layers, stacks, residual, skip, kernel - 1) < 1:
            raise UsageError(
                f"A wavenet of width {width} with {stacks} stacks of {layers} layers, {residual} residual and {skip} "
                f"skip channels and a kernel of {kernel} is impossible.",
                "Give 1 or more of each, and a kernel of 2 or more.",
            )
        self.width, self.kernel, self.every = width, kernel, every
        self.dilations = [2**i for _ in range(stacks) for i in range(layers)]
        self.reach = 1 + (kernel - 1) * sum(self.dilations)
        depth = len(self.dilations)
        self.enter = nn.Linear(width, residual)
        self.filter = nn.Parameter(torch.empty(depth, kernel * residual, 2 * residual))  # the earliest tap first
        self.bias = nn.Parameter(torch.zeros(depth, 2 * residual))
        self.residual = nn.Parameter(torch.empty(depth - 1, residual, residual))  # nothing follows the last
        self.skip = nn.Parameter(torch.empty(depth, residual, skip))
        self.skip_bias = nn.Parameter(torch.zeros(skip))
        self.leave = nn.Linear(skip, width)
        self.local = nn.Parameter(torch.randn(depth, local, 2 * residual) / math.sqrt(2 * local)) if local else None
        with torch.no_grad():
            for weight, inputs in ((self.filter, kernel), (self.residual, 1), (self.skip, depth)):
                weight.uniform_(-1, 1).div_(math.sqrt(inputs * residual))
            # as with tanh(a) sigmoid(b)
            for halved in (self.filter[:, :, residual:], self.residual, self.skip):
                halved.div_(2)

    def forward(self, x: Tensor, local: Tensor | None = None) -> Tensor:
        """``local`` [N, ceil(L / every) or more, numbers]."""
        n, length, _ = x.shape
        # steps before sequences: one step back is n rows back, for all sequences alike
        h = self.enter(x).transpose(0, 1).reshape(length * n, -1).to(self.filter.dtype)
        with torch.autocast(h.device.type, enabled=False):  # the layers keep the precision of their weights
            shifts = [d * n for d in self.dilations]
            bias, which = self.biases(local).flatten(1, 2), _Which(n, None if local is None else self.every)
            total: Tensor = _Layers.apply(h, self.filter, bias, self.residual, self.skip, shifts, which)
        return self.out(total).view(length, n, self.width).transpose(0, 1)

    def out(self, total: Tensor) -> Tensor:
        """The skip connections' sum [..., skip], yet without its bias, as the output [..., width]."""
        return F.relu(self.leave(F.relu(total + self.skip_bias)))

    def biases(self, local: Tensor | None) -> Tensor:
        """Of the gates of every layer [depth, F, N, 2C], for each row of ``local`` [N, F, numbers]; one for all without
        it."""
        if self.local is None or local is None:
            return self.bias[:, None, None]
        y = local.transpose(0, 1).flatten(0, 1).to(self.local.dtype).expand(len(self.local), -1, -1)
        return torch.baddbmm(self.bias[:, None], y, self.local).unflatten(1, (-1, len(local)))

    def cache(self, n: int, length: int, local: Tensor | None = None) -> Cache:
        return Rings(self, n, local)


@dataclass(frozen=True)
class _Which:
    """Which bias each row has, where the rows of n sequences lie side by side and each ``every`` steps have their own;
    None: all have the one."""

    n: int
    every: int | None

    def __call__(self, rows: slice, device: torch.device) -> Tensor | None:
        if self.every is None:
            return None
        row = torch.arange(rows.start, rows.stop, device=device)
        return row // (self.n * self.every) * self.n + row % self.n


def _chosen(bias: Tensor, which: Tensor | None) -> Tensor:
    """Those of bias [B, 2C] that are meant: [1 or r, 2C]."""
    return bias if which is None else bias.index_select(0, which)


class _Layers(torch.autograd.Function):
    """x [R, C] -> the skip connections' sum [R, S]; the tap before a row's own is ``shifts[l]`` rows back.

    filter [depth, kernel C, 2C], bias [depth, B, 2C], residual [depth - 1, C, C], skip [depth, C, S]. Only the layers'
    inputs are kept for the way back: to compute the gates again costs no more than to fetch them from memory.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, filter: Tensor, bias: Tensor, residual: Tensor, skip: Tensor, shifts: list[int],
        which: _Which,
    ) -> Tensor:  # fmt: skip
        total, inputs = x.new_zeros(len(x), skip.shape[2]), []
        for l, shift in enumerate(shifts):
            if any(ctx.needs_input_grad):
                inputs.append(x)
            above = torch.empty_like(x)
            for rows in _blocks(x):
                z = _gate(x, rows, shift, filter[l], _chosen(bias[l], which(rows, x.device)))[1]
                total[rows].addmm_(z, skip[l])
                if l < len(residual):
                    torch.addmm(x[rows], z, residual[l], out=above[rows])
            x = above
        ctx.save_for_backward(filter, bias, residual, skip, *inputs)
        ctx.shifts, ctx.which = shifts, which
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        filter, bias, residual, skip, *inputs = ctx.saved_tensors
        d_filter, d_bias, d_residual, d_skip = (torch.zeros_like(w) for w in (filter, bias, residual, skip))
        d_x, c = torch.zeros_like(inputs[0]), skip.shape[1]
        for l, shift in reversed([*enumerate(ctx.shifts)]):
            x = inputs[l]
            # from the first block to the last: a block adds to its own rows of d_x and to earlier ones, which are done
            for rows in _blocks(x):
                own = ctx.which(rows, x.device)
                g, z = _gate(x, rows, shift, filter[l], _chosen(bias[l], own))
                d_skip[l].addmm_(z.t(), d_total[rows])
                d_z = d_total[rows] @ skip[l].t()
                if l < len(residual):
                    d_residual[l].addmm_(z.t(), d_x[rows])
                    d_z.addmm_(d_x[rows], residual[l].t())
                d_g = torch.empty_like(g)
                torch.addcmul(d_z, d_z, g[:, c:], out=d_g[:, :c])
                torch.mul(d_z, g[:, :c], out=d_g[:, c:])
                torch.ops.aten.tanh_backward.grad_input(d_g, g, grad_input=d_g)
                if own is None:
                    d_bias[l] += d_g.sum(0)
                else:
                    d_bias[l].index_add_(0, own, d_g)
                for tap, now, past in _taps(filter[l], rows, shift):
                    d_filter[l, tap].addmm_(x[past].t(), d_g[now])
                    d_x[past].addmm_(d_g[now], filter[l, tap].t())
        return d_x, d_filter, d_bias, d_residual, d_skip, None, None


def _blocks(x: Tensor) -> Iterator[slice]:
    """The rows of x [R, C] piece by piece on a CPU; all at once elsewhere."""
    numbers = BLOCK * torch.get_num_threads() if x.device.type == "cpu" else 2 * x.numel()
    size = max(1, numbers // (2 * x.shape[1]))
    return (slice(i, min(i + size, len(x))) for i in range(0, len(x), size))


def _gate(x: Tensor, rows: slice, shift: int, filter: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """[tanh(a) tanh(b)] [r, 2C] and z [r, C] at these r rows of x [R, C]; bias [1 or r, 2C]."""
    (own, _, _), *earlier = _taps(filter, rows, shift)
    g = torch.addmm(bias, x[rows], filter[own])
    for tap, now, past in earlier:
        g[now].addmm_(x[past], filter[tap])
    a, b = g.tanh_().chunk(2, dim=1)
    return g, torch.addcmul(a, a, b)


def _taps(filter: Tensor, rows: slice, shift: int) -> Iterator[tuple[slice, slice, slice]]:
    """Each tap from the rows' own to the earliest: its weights in filter [kernel C, 2C]; which of ``rows``, counted
    from their first, have a row so far back (the last ones); and where these rows are."""
    c = filter.shape[1] // 2
    for j in range(len(filter) // c):
        first = max(rows.start, j * shift)
        if first < rows.stop:
            end = len(filter) - j * c
            yield slice(end - c, end), slice(first - rows.start, None), slice(first - j * shift, rows.stop - j * shift)


class Rings:
    """The inputs that the filters of n sequences reach back to: a ring of (kernel - 1) dilation steps per layer.

    The earlier taps of all layers are known before a step, and their products are one batched product; so are the skip
    connections after it. In between, a layer is four operations on tensors that stay where they are.
    """

    def __init__(self, net: WaveNet, n: int, local: Tensor | None = None) -> None:
        self.net, self.t, self.every = net, 0, None if local is None else net.every
        with torch.no_grad():
            self.bias = net.biases(local)  # [depth, F, n or 1, 2C]
            taps = net.filter.unflatten(1, (net.kernel, -1))
            self.own, self.earlier = [*taps[:, -1]], [w.contiguous() for w in taps[:, :-1].unbind(1)]
            self.skip = net.skip.flatten(0, 1)
        dilation = torch.tensor(net.dilations, device=net.skip.device)
        self.size = (net.kernel - 1) * dilation
        self.first = self.size.cumsum(0) - self.size
        # steps back to the earlier taps, as in ``earlier``; the place of the earliest of all is free for the new input
        self.back = [j * dilation for j in range(net.kernel - 1, 0, -1)]
        self.ring = net.skip.new_zeros(net.reach - 1, n, net.skip.shape[1])
        self._allocate(n)

    def _allocate(self, n: int) -> None:
        """Where the numbers of one step go."""
        depth, c, _ = self.net.skip.shape
        new = self.net.skip.new_empty
        self.x, self.g, self.z = new(depth, n, c), new(depth, n, 2 * c), new(n, depth * c)
        a, b = self.g.split(c, dim=2)
        residual, above = [*self.net.residual.detach(), None], [*self.x[1:], None]
        self.layers = [*zip(self.x, self.g, a, b, self.z.split(c, dim=1), self.own, residual, above, strict=True)]

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        net = self.net
        places = [self.first + torch.remainder(self.t - back, self.size) for back in self.back]
        bias = self.bias[:, 0 if self.every is None else self.t // self.every]
        torch.baddbmm(bias, self.ring.index_select(0, places[0]), self.earlier[0], out=self.g)
        for place, weight in zip(places[1:], self.earlier[1:], strict=True):
            self.g.baddbmm_(self.ring.index_select(0, place), weight)
        self.x[0] = net.enter(x)
        for below, g, a, b, z, own, residual, above in self.layers:
            g.addmm_(below, own).tanh_()
            torch.addcmul(a, a, b, out=z)
            if above is not None:
                torch.addmm(below, z, residual, out=above)
        self.ring.index_copy_(0, places[0], self.x)
        self.t += 1
        return net.out(self.z @ self.skip)

    @torch.no_grad()
    def extend(self, x: Tensor) -> Tensor:
        net, (n, k, _) = self.net, x.shape
        if k <= FEW:
            return torch.stack([self.step(x[:, i]) for i in range(k)], 1)
        h = net.enter(x).transpose(0, 1).reshape(k * n, -1)
        total = h.new_zeros(k * n, net.skip.shape[2])
        own = _Which(n, self.every)(slice(self.t * n, (self.t + k) * n), h.device)
        for l, (ring, dilation) in enumerate(zip(self.ring.split(self.size.tolist()), net.dilations, strict=True)):
            line = torch.cat([ring.roll(-self.t % len(ring), 0).flatten(0, 1), h])
            bias = _chosen(self.bias[l].flatten(0, 1), own)
            _, z = _gate(line, slice(len(line) - len(h), len(line)), n * dilation, net.filter[l], bias)
            ring.copy_(line[-ring[..., 0].numel() :].view_as(ring).roll((self.t + k) % len(ring), 0))
            total.addmm_(z, net.skip[l])
            if l < len(net.residual):
                h = torch.addmm(h, z, net.residual[l])
        self.t += k
        return net.out(total).view(k, n, -1).transpose(0, 1)

    def reorder(self, rows: Tensor) -> None:
        self.ring = self.ring.index_select(1, rows)
        if self.every is not None:
            self.bias = self.bias.index_select(2, rows)
        if len(rows) != len(self.z):
            self._allocate(len(rows))

    def rewind(self, k: int) -> None:
        raise Unsupported("A wavenet keeps no more inputs than its filters reach back to.", "Use a gpt to go back.")
