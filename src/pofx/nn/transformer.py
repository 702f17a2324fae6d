"""The decoder-only transformer (Vaswani et al. 2017; Radford et al. 2019): attention to what came before.

    x <- x + Attention(norm(x));   x <- x + MLP(norm(x))         (pre-norm, once per layer)

The options span GPT-2 (learned positions, layer norm, GELU, biases), Llama (rotary positions, RMS norm, SwiGLU,
grouped queries) and Qwen (biases of queries, keys and values; or normed queries and keys); the defaults are
what trains fastest on small budgets: rotary positions, normed queries and keys, squared ReLU, no biases, and
layer norm, for which there is a kernel (on a CPU, RMS norm takes four times as long).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pofx.core.errors import UsageError
from pofx.core.options import AMOUNT, BELOW_ONE, POSITIVE, Options
from pofx.nn.emission import START
from pofx.nn.mlp import zeroed
from pofx.nn.sequence import Cache, SequenceNet

Norm = Literal["rms", "layer"]
Activation = Literal["relu2", "gelu", "swiglu"]
Positions = Literal["rotary", "learned"]
Bias = Literal["none", "qkv", "all"]
MANY = 8  # sequences, in a step
ROOM = 64  # inputs that a cache has room for at first
SMALL = 2**18  # numbers of a matrix that a step of many sequences keeps a turned copy of
Apply: TypeAlias = Callable[[Tensor], Tensor]
Triple: TypeAlias = tuple[Tensor, Tensor, Tensor]
Told: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
Memory: TypeAlias = tuple[Tensor, Tensor | None]
"""Tokens [N, L, memory] of a context that layers attend to, and which are a row's own [N, L]; None: all."""


@dataclass(frozen=True)
class Shape(Options):
    """Sizes and variants of a transformer.

    Attributes:
        width: of the residual stream.
        layers: of attention and MLP.
        n_heads: of each attention.
        head_dim: of one head, 0 for width / heads.
        n_kv_heads: heads of keys and values, each shared by several heads of queries (Ainslie et al. 2023); 0 for all.
        block: the longest input.
        positions: "rotary" (Su et al. 2021) or "learned".
        theta: the base of rotary positions.
        norm: "rms" (Zhang & Sennrich 2019) or "layer" (Ba et al. 2016).
        eps: what norms add to a variance.
        mlp: "relu2" (So et al. 2021), "gelu" (its tanh form) or "swiglu" (Shazeer 2020).
        hidden: width inside the MLP; 0 for 4 width (8/3 width for swiglu, which has three matrices).
        qk_norm: the same norm of each head's queries and keys (Henry et al. 2020), without a bias.
        bias: of all linear maps and layer norms, of queries, keys and values only, or of none.
        window: how many inputs back attention reaches, the own one included (Beltagy et al. 2020); 0 for all.
        dropout: of embeddings and of both branches, while training.
        recompute: keep only each layer's input for the way back and compute the rest again (Chen et al. 2016):
            a fraction of the memory for a third more arithmetic.
    """

    width: int = 128
    layers: int = 4
    n_heads: int = 4
    head_dim: int = 0
    n_kv_heads: int = 0
    block: int = 256
    positions: Positions = "rotary"
    theta: float = 10000.0
    norm: Norm = "layer"
    eps: float = 1e-6
    mlp: Activation = "relu2"
    hidden: int = 0
    qk_norm: bool = True
    bias: Bias = "none"
    window: int = 0
    dropout: float = 0.0
    recompute: bool = False

    ranges = {
        "head_dim": AMOUNT,
        "n_kv_heads": AMOUNT,
        "theta": POSITIVE,
        "eps": POSITIVE,
        "hidden": AMOUNT,
        "window": AMOUNT,
        "dropout": BELOW_ONE,
    }

    @property
    def each(self) -> int:
        """The width of one head."""
        return self.head_dim or self.width // self.n_heads

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def inner(self) -> int:
        """The width inside the MLP."""
        if self.hidden:
            return self.hidden
        return 8 * self.width // 3 if self.mlp == "swiglu" else 4 * self.width

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.head_dim and self.width % self.n_heads:
            raise UsageError(
                f"A width of {self.width} is not shared evenly by {self.n_heads} heads.", "Give a multiple."
            )
        if self.n_heads % self.groups:
            raise UsageError(
                f"{self.n_heads} heads cannot share {self.groups} heads of keys evenly.",
                "Give a divisor as n_kv_heads.",
            )
        if self.positions == "rotary" and self.each % 2:
            raise UsageError(
                f"Rotary positions need heads of even width, not {self.each}.", "Change width, heads or head_dim."
            )


class Transformer(SequenceNet):
    """Inputs [N, L, width] -> outputs [N, L, width], for L up to ``block`` (that of the shape, unless given).

    Where ``memory`` is not 0, every layer attends to tokens of that width as well, those of a context; with ``prefix``
    these stand before the inputs instead, as further ones, which have no outputs.
    """

    layers: Sequence[Layer]  # a ModuleList
    rotation: Tensor | None

    def __init__(self, shape: Shape, block: int | None = None, memory: int = 0, prefix: bool = False) -> None:
        super().__init__()
        shape = shape if block is None else dataclasses.replace(shape, block=block)
        self.shape, self.width = shape, shape.width
        self.reach = self.longest = shape.block
        self.position = nn.Parameter(START * torch.randn(shape.block, shape.width)) if learned(shape) else None
        self.prefix = nn.Linear(memory, shape.width, bias=False) if prefix else None
        self.layers = nn.ModuleList(Layer(shape, 0 if prefix else memory) for _ in range(shape.layers))  # type: ignore[assignment]
        self.norm = norm(shape, shape.width)
        self.register_buffer("rotation", None if learned(shape) else rotations(shape), persistent=False)

    def forward(self, x: Tensor, memory: Memory | None = None, inside: Tensor | None = None) -> Tensor:
        """Where it is told which inputs are ``inside`` [N or 1, L], each output sees all of these; else none that is
        later."""
        length = x.shape[1]
        if length > self.shape.block:
            raise UsageError(f"{length} inputs are longer than the block of {self.shape.block}.", "Give fewer at once.")
        x, own = self.enter(x, 0), None
        if self.prefix is not None and memory is not None:
            first, own = self.first(memory)
            x, memory = torch.cat([first, x], 1), None
        rotation = self.turns(length - x.shape[1], x.shape[1])
        mask = self.mask(0, x.shape[1], x.device, own) if inside is None else inside[:, None, None]
        for layer in self.layers:
            if self.shape.recompute and self.training:
                x = checkpoint(layer, x, rotation, mask, memory, use_reentrant=False)
            else:
                x = layer(x, rotation, mask, memory)
        return self.norm(x[:, x.shape[1] - length :])

    def cache(self, n: int, length: int, memory: Memory | None = None) -> Cache:
        length = min(length, self.shape.block)
        if self.prefix is None or memory is None:
            return TransformerCache(self, n, length, memory)
        first, own = self.first(memory)
        return TransformerCache(self, n, first.shape[1] + length, first=(first, own))

    def first(self, memory: Memory) -> Memory:
        """Tokens of a context as inputs [N, M, width] that stand before others, those of short ones last, and which
        are a row's own [N, M]: what is to be seen of them depends on how far back they are, and not on others."""
        assert self.prefix is not None
        tokens, own = memory
        x = dropped(self, self.prefix(tokens))
        if own is None or bool(own.all()):
            return x, None
        order = own.long().argsort(dim=1, stable=True)
        return x.gather(1, order[..., None].expand_as(x)), own.gather(1, order)

    def enter(self, x: Tensor, first: int) -> Tensor:
        """Inputs at positions first, first + 1, ... as the residual stream."""
        x = x if self.position is None else x + self.position[first : first + x.shape[1]]
        return dropped(self, x)

    def turns(self, first: int, length: int) -> Tensor | None:
        """Cosines and sines [2, length, 1, each] of these positions, for rotary ones; a context's are below 0."""
        if self.rotation is None or first >= 0:
            return None if self.rotation is None else self.rotation[:, first : first + length, None]
        table = self.rotation
        if -first >= table.shape[1]:
            table = rotations(dataclasses.replace(self.shape, block=1 - 2 * first)).to(table)
        i = torch.arange(first, first + length, device=table.device)
        cosines, sines = table[:, i.abs(), None]
        return torch.stack([cosines, sines * i.sign()[:, None, None]])

    def mask(self, first: int, length: int, device: torch.device, own: Tensor | None = None) -> Tensor | None:
        """Which of the inputs 0 .. first + length - 1 those from ``first`` on see: [length, first + length], or, where
        only some of the first inputs are a row's ``own`` [N, M], [N, 1, length, first + length].

        None is all that are not later, in a pass from the beginning.
        """
        window = self.shape.window
        if first == 0 and own is None and (not window or window >= length):
            return None
        i = torch.arange(first, first + length, device=device)[:, None]
        j = torch.arange(first + length, device=device)
        seen = (j <= i) & (j > i - window) if window else j <= i
        if own is None:
            return seen
        known = F.pad(own, (0, first + length - own.shape[1]), value=True)[:, None, None]
        return seen & (known | (i == j))  # what is not a row's own sees itself, and is seen by none


class Layer(nn.Module):
    """Attention, then that to a context's tokens of width ``memory`` (0: none), then an MLP.

    Each is on the norm of the residual stream and added to it.
    """

    def __init__(self, shape: Shape, memory: int = 0) -> None:
        super().__init__()
        self.shape = shape
        queries, keys, full = shape.n_heads * shape.each, shape.groups * shape.each, shape.bias == "all"
        self.norm1, self.norm2 = norm(shape, shape.width), norm(shape, shape.width)
        self.qkv = nn.Linear(shape.width, queries + 2 * keys, bias=shape.bias != "none")
        self.q_norm = nn.Parameter(torch.ones(shape.each)) if shape.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(shape.each)) if shape.qk_norm else None
        # each branch starts as nothing: the stream passes through
        self.out = zeroed(nn.Linear(queries, shape.width, bias=full))
        self.up = nn.Linear(shape.width, shape.inner * (2 if shape.mlp == "swiglu" else 1), bias=full)
        self.down = zeroed(nn.Linear(shape.inner, shape.width, bias=full))
        self.cross = CrossAttention(shape.width, memory, shape.n_heads, shape.each) if memory else None
        for linear in (self.qkv, self.up):
            nn.init.normal_(linear.weight, std=shape.width**-0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, rotation: Tensor | None, mask: Tensor | None, memory: Memory | None = None) -> Tensor:
        told = None if self.cross is None or memory is None else self.cross.remember(memory)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(self.shape, q, k.transpose(1, 2), v.transpose(1, 2), mask)

        return block(self, x, rotation, attend, told)


class CrossAttention(nn.Module):
    """Attention of x [N, L, width] to tokens [N, M, memory] of a context; it starts as nothing."""

    def __init__(self, width: int, memory: int, n_heads: int, each: int) -> None:
        super().__init__()
        self.each, self.norm = each, nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, n_heads * each, bias=False)
        self.told = nn.Linear(memory, 2 * n_heads * each, bias=False)
        self.out = zeroed(nn.Linear(n_heads * each, width, bias=False))

    def remember(self, memory: Memory) -> Told:
        """Keys and values [N, heads, M, each] of the tokens, and which of them are seen [N, 1, 1, M]."""
        tokens, mask = memory
        k, v = self.told(tokens).unflatten(-1, (2, -1, self.each)).permute(2, 0, 3, 1, 4)
        return k, v, None if mask is None else mask[:, None, None]

    def forward(self, x: Tensor, told: Told) -> Tensor:
        k, v, mask = told  # of as many contexts as there are rows, or of fewer, each that of rows in a row
        q = self.query(self.norm(x)).view(len(k), -1, k.shape[1], self.each).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
        return self.out(y.reshape(*x.shape[:-1], -1))


class TransformerCache:
    """Keys and values of all inputs so far, in tensors with room for more: few steps move or copy them.

    Args:
        net: in eval mode.
        n: sequences.
        length: inputs at most, the first ones among them.
        memory: what layers attend to.
        first: inputs [n, M, width] that stand before all others, and which are a row's own [n, M].
    """

    def __init__(
        self, net: Transformer, n: int, length: int, memory: Memory | None = None, first: Memory | None = None
    ) -> None:
        shape, like = net.shape, net.layers[0].qkv.weight
        self.net, self.size, self.length = net, 0, length
        size = (n, shape.groups, min(length, ROOM), shape.each)
        self.kept = [(like.new_zeros(size), like.new_zeros(size)) for _ in range(shape.layers)]
        self.lean, self.norm = [DecodeWeights(layer, n) for layer in net.layers], lean_norm(net.norm)
        # the context's keys and values are made once
        self.told = [None if memory is None or l.cross is None else l.cross.remember(memory) for l in net.layers]
        self.contexts = n
        self.of = torch.arange(n, device=like.device)  # the context of each sequence
        self.begin, self.own = 0, None
        if first is not None:
            x, self.own = first
            self.begin = x.shape[1]
            self._read(x, 0, self._grow(self.begin))

    def step(self, x: Tensor) -> Tensor:
        """One input: no mask, since it sees all that is kept."""
        net, t = self.net, self._grow(1) - 1
        x = x if net.position is None else x + net.position[t - self.begin]
        turns, seen = net.turns(t - self.begin, 1), min(net.shape.window or self.size, self.size)
        start = self.size - seen
        rotation = None if turns is None else turns[:, 0]
        mask = None if self.own is None else net.mask(t, 1, x.device, self.own)

        def attend(kept: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = kept
            keys.select(2, t).copy_(k)
            values.select(2, t).copy_(v)
            return decode_attention(q, keys.narrow(2, start, seen), values.narrow(2, start, seen), mask)

        for layer, kept, told in zip(self.lean, self.kept, self.told, strict=True):
            x = block(layer, x, rotation, partial(attend, kept), told)
        return self.norm(x)

    def extend(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            return self.step(x[:, 0])[:, None]
        size = self._grow(x.shape[1])
        first = size - x.shape[1]
        return self.net.norm(self._read(self.net.enter(x, first - self.begin), first, size))

    def _read(self, x: Tensor, first: int, size: int) -> Tensor:
        """Inputs x from number ``first`` on through all layers; there are ``size`` then."""
        net = self.net
        rotation = net.turns(first - self.begin, x.shape[1])
        mask = net.mask(first, x.shape[1], x.device, self.own)

        def attend(kept: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = kept
            keys[:, :, first:size], values[:, :, first:size] = k.transpose(1, 2), v.transpose(1, 2)
            return attention(net.shape, q, keys[:, :, :size], values[:, :, :size], mask)

        for layer, kept, told in zip(net.layers, self.kept, self.told, strict=True):
            x = block(layer, x, rotation, partial(attend, kept), told)
        return x

    def _grow(self, k: int) -> int:
        """Room for k more inputs; how many there are then."""
        if self.size + k > self.length:
            raise UsageError(
                f"{self.size + k} inputs are more than the {self.length} of this cache.", "Begin a longer one."
            )
        self.size += k
        room = self.kept[0][0].shape[2]
        if self.size > room:
            more = min(self.length, max(2 * room, self.size)) - room
            self.kept = [(F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more))) for keys, values in self.kept]
        return self.size

    def reorder(self, rows: Tensor) -> None:
        self.kept = [(keys[rows], values[rows]) for keys, values in self.kept]
        self.own = None if self.own is None else self.own[rows]
        # rows of one context share its keys and values, as long as all contexts have equally many in a row
        of, self.of, count = torch.unique_consecutive(self.of[rows], return_inverse=True, return_counts=True)
        if bool((count != count[0]).any()):
            of, self.of = of[self.of], torch.arange(len(rows), device=rows.device)
        if not torch.equal(of, torch.arange(self.contexts, device=of.device)):
            self.told = [m and (m[0][of], m[1][of], None if m[2] is None else m[2][of]) for m in self.told]
        self.contexts = len(of)

    def rewind(self, k: int) -> None:
        if not 0 <= k <= (size := self.size - self.begin):
            raise UsageError(f"{k} of {size} inputs cannot be forgotten.", "Give at most as many as there are.")
        self.size -= k


# -- parts ---------------------------------------------------------------------------------------------


class DecodeWeights:
    """A layer as the steps of n sequences run it: the same parts with the weights at hand.

    A module looks up each weight by name, which takes as long as a small product with it.
    """

    def __init__(self, layer: Layer, n: int) -> None:
        self.training = False
        self.shape, self.q_norm, self.k_norm, self.cross = layer.shape, layer.q_norm, layer.k_norm, layer.cross
        self.norm1, self.norm2 = lean_norm(layer.norm1), lean_norm(layer.norm2)
        self.qkv, self.out, self.up, self.down = (
            lean_linear(part, n) for part in (layer.qkv, layer.out, layer.up, layer.down)
        )


def lean_linear(linear: nn.Linear, n: int) -> Apply:
    """linear(x) for n rows x: of many rows, the two ways that take about half the time of PyTorch's own."""
    weight, bias = linear.weight, linear.bias
    if n < MANY:
        return lambda x: F.linear(x, weight, bias)
    if weight.numel() <= SMALL:
        turned = weight.T.contiguous()
        return (lambda x: torch.mm(x, turned)) if bias is None else (lambda x: torch.addmm(bias, x, turned))
    if bias is None:
        return lambda x: torch.mm(weight, x.T).T
    column = bias[:, None]
    return lambda x: torch.addmm(column, weight, x.T).T


def lean_norm(norm: nn.Module) -> Apply:
    if isinstance(norm, nn.RMSNorm):
        shape, weight, eps = norm.normalized_shape, norm.weight, norm.eps
        return lambda x: torch.rms_norm(x, shape, weight, eps)
    assert isinstance(norm, nn.LayerNorm)
    size, gain, bias, least = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, size, gain, bias, least)


def block(
    layer: Layer | DecodeWeights,
    x: Tensor,
    rotation: Tensor | None,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    told: Told | None = None,
) -> Tensor:
    """The layer on inputs [..., width]; ``attend`` maps ``heads`` to what each takes of others [..., heads each], and
    ``told`` is what ``CrossAttention.remember`` has of a context."""
    x = x + dropped(layer, layer.out(attend(*heads(layer, x, rotation))))
    if layer.cross is not None and told is not None:
        x = x + dropped(layer, layer.cross(x, told))
    return x + dropped(layer, mlp(layer, x))


def dropped(part: Transformer | Layer | DecodeWeights, x: Tensor) -> Tensor:
    return F.dropout(x, part.shape.dropout, part.training) if part.shape.dropout else x


def attention(shape: Shape, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Of queries [N, L, heads, each] to keys and values [N, groups, T, each]: [N, L, heads each]. No mask: causal."""
    many = shape.groups < shape.n_heads
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, mask, is_causal=mask is None, enable_gqa=many)
    return y.transpose(1, 2).flatten(2)


def heads(layer: Layer | DecodeWeights, x: Tensor, rotation: Tensor | None) -> Triple:
    """Queries [..., heads, each], keys and values [..., groups, each] of inputs [..., width]."""
    shape = layer.shape
    both = layer.qkv(layer.norm1(x))
    both = both.view(*both.shape[:-1], -1, shape.each)
    q, k, v = both.split_with_sizes((shape.n_heads, shape.groups, shape.groups), -2)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = normed(q, layer.q_norm, shape), normed(k, layer.k_norm, shape)
    if rotation is not None:
        q, k = turn(q, rotation), turn(k, rotation)
    return q, k, v


def mlp(layer: Layer | DecodeWeights, x: Tensor) -> Tensor:
    y: Tensor = layer.up(layer.norm2(x))
    if layer.shape.mlp == "relu2":
        y = SquaredRelu.apply(y)
    elif layer.shape.mlp == "gelu":
        y = F.gelu(y, approximate="tanh")
    else:
        gate, y = y.chunk(2, -1)
        y = F.silu(gate) * y
    return layer.down(y)


def learned(shape: Shape) -> bool:
    return shape.positions == "learned"


def norm(shape: Shape, width: int) -> nn.Module:
    if shape.norm == "layer":
        return nn.LayerNorm(width, shape.eps, bias=shape.bias == "all")
    return nn.RMSNorm(width, shape.eps)


def decode_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of one query per head [n, heads, each] to keys and values [n, groups, t, each]: [n, heads each].

    Where there is a mask [n, 1, 1, t], to those alone where it is true.

    Of many sequences, two products and a softmax take half the time of the fused kernel, which is made for many
    queries; of few, starting them costs more.
    """
    n, groups, _, each = k.shape
    if n < MANY:
        many = groups < q.shape[1]
        return F.scaled_dot_product_attention(q[:, :, None].contiguous(), k, v, mask, enable_gqa=many).reshape(n, -1)
    logits = (q.reshape(n, groups, -1, each) * each**-0.5) @ k.mT
    logits = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    return (logits.softmax(-1) @ v).reshape(n, -1)


def normed(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """Each head's vectors [..., each], normed."""
    if shape.norm == "layer":
        return F.layer_norm(x, (shape.each,), weight, None, shape.eps)
    return F.rms_norm(x, (shape.each,), weight, shape.eps)


class SquaredRelu(torch.autograd.Function):
    """max(0, x)^2, with a backward pass of one product: the chain of two operations takes more than twice as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return (g * y).mul_(2)


def rotations(shape: Shape) -> Tensor:
    """Cosines and sines [2, block, each] of position times frequency (Su et al. 2021, eq. 34)."""
    frequency = shape.theta ** (-torch.arange(0, shape.each, 2, dtype=torch.float64) / shape.each)
    angle = torch.arange(shape.block, dtype=torch.float64)[:, None] * frequency
    sign = torch.cat([-torch.ones(len(frequency)), torch.ones(len(frequency))])
    return torch.stack([angle.cos().repeat(1, 2), angle.sin().repeat(1, 2) * sign]).float()


def turn(x: Tensor, rotation: Tensor) -> Tensor:
    """Each pair (i, i + each/2) of x [..., L, heads, each] turned by its position's angles.

    The signs of the sines are those of the rotation matrix, so that one roll serves both halves.
    """
    return x * rotation[0] + x.roll(x.shape[-1] // 2, -1) * rotation[1]
