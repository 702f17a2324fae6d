"""Contexts as nets take them: one encoder per space, found by ``encoder``; a third party's space registers its own.

A net takes the vector by addition or FiLM (Perez et al. 2018), and the tokens, where it attends to them, by
cross-attention (Vaswani et al. 2017, section 3.2.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import singledispatch
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.core.errors import Unsupported
from pofx.core.space import Ragged, Space
from pofx.nn.sites import heads_for
from pofx.nn.transformer import Layer, Memory, Shape, rotations
from pofx.spaces import Audio, Image, Label, Reals, Sequence, Table, Text

MOST_TOKENS = 256  # of a context of free length: longer ones are read in steps of several symbols or samples


@dataclass(frozen=True)
class Encoded:
    """N contexts as nets take them; rows are taken by ``[index]``.

    Attributes:
        vector: [N, w].
        tokens: [N, L, t], where a context has parts: cells of an image, steps of a text.
        mask: [N, L], which of the tokens are the row's own; None where all are.
        raw: the contexts themselves [N, *Ec], where a second net has to encode them, too.
    """

    vector: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    raw: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vector)

    def __getitem__(self, index: Any) -> Encoded:
        return self._each(lambda t: t[index])

    def to(self, *args: Any) -> Encoded:
        return self._each(lambda t: t.to(*args))

    @staticmethod
    def cat(parts: Iterable[Encoded]) -> Encoded:
        """Rows one after the other, of contexts of one batch: with as many tokens each."""
        first, *rest = parts
        return first._each(lambda *t: torch.cat(t), *rest)

    def _each(self, of: Callable[..., Tensor], *others: Encoded) -> Encoded:
        """What is there of each part, of all of these."""
        columns = {f.name: [getattr(e, f.name) for e in (self, *others)] for f in fields(self)}
        return Encoded(**{name: of(*column) for name, column in columns.items() if column[0] is not None})


def vector(e: Encoded | None) -> Tensor | None:
    return None if e is None else e.vector


def told(e: Encoded | None) -> tuple[()] | tuple[Memory]:
    """The last argument of a net that attends to tokens, where there are any."""
    return () if e is None or e.tokens is None else ((e.tokens, e.mask),)


class Encoder(nn.Module):
    """Contexts c [N, *Ec] in raw units -> ``Encoded``; each row's follows from the row alone.

    Args:
        width, memory: of vectors and of tokens, 0 where a subclass gives none; it writes ``encode``.
    """

    absent: nn.Parameter | None

    def __init__(self, width: int, memory: int = 0) -> None:
        super().__init__()
        self.width, self.memory = width, memory
        self.register_parameter("absent", None)

    def encode(self, c: Tensor) -> Encoded:
        raise NotImplementedError

    def prepare(self, c: Tensor | None, weight: Tensor | None = None) -> None:
        """Look at the training contexts once: scales, where there are any."""

    def learn_null(self) -> None:
        """Have a null context, which stands for none."""
        self.absent = nn.Parameter(torch.randn(self.width + self.memory))

    def forward(self, c: Tensor, dropped: Tensor | None = None) -> Encoded:
        """Rows c [N, *Ec], those ``dropped`` [N] in training as the null context."""
        e = self.encode(c)
        if dropped is None:
            return e
        null = self.null(len(c))
        hidden, (tokens, mask) = torch.where(dropped[:, None], null.vector, e.vector), (e.tokens, e.mask)
        if tokens is not None and null.tokens is not None:  # which is one token
            tokens = torch.where(dropped[:, None, None], null.tokens, tokens)
            own = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
            first = torch.arange(tokens.shape[1], device=tokens.device) == 0
            mask = torch.where(dropped[:, None], first, own)
        return Encoded(hidden, tokens, mask)

    def null(self, n: int) -> Encoded:
        """n null contexts. Raises Unsupported where none was learned."""
        if self.absent is None:
            raise Unsupported(
                "No context was dropped in training, so p(x | no context) is unknown.",
                "Fit with --options.context-dropout above 0, such as 0.1.",
            )
        each, token = self.absent.expand(n, -1).split((self.width, self.memory), 1)
        return Encoded(each, token[:, None], token.new_ones(n, 1, dtype=torch.bool)) if self.memory else Encoded(each)


@singledispatch
def encoder(space: Space, width: int = 64) -> Encoder:
    """The encoder of a context space, of vectors of a width. Raises Unsupported where there is none."""
    raise Unsupported(f"There is no encoder for contexts of {space}.", "Condition on labels, columns or images.")


def no_encoder(context: Space | None) -> str | None:
    """Why a net cannot be told contexts of this space, or None."""
    known = context is None or encoder.dispatch(type(context)) is not encoder.dispatch(object)
    return None if known else f"it has no encoder for contexts of {context}. Condition on labels, columns or images."


class LabelEncoder(Encoder):
    """A learned vector per class."""

    def __init__(self, space: Label, width: int = 64) -> None:
        super().__init__(width)
        self.embedding = nn.Embedding(len(space.values), width)

    def encode(self, c: Tensor) -> Encoded:
        return Encoded(self.embedding(c))


class TableEncoder(Encoder):
    """Every column (of reals: every number) embedded as its head does, then one linear map.

    Heads standardise, write categories one-hot, and mark what is missing.
    """

    def __init__(self, space: Table | Reals, width: int = 64) -> None:
        super().__init__(width)
        self.heads = heads_for(space, components=1)
        self.linear = nn.Linear(sum(self.heads.features), width)

    def encode(self, c: Tensor) -> Encoded:
        return Encoded(self.linear(self.heads.embed(c).to(self.linear.weight.dtype)))

    def prepare(self, c: Tensor | None, weight: Tensor | None = None) -> None:
        assert c is not None
        self.heads.prepare(c, weight)


class ImageEncoder(Encoder):
    """A small ConvNet: a 3x3 convolution, then strided ones until at most 4x4 cells are left, the tokens.

    The vector is a linear map of their means over the four quarters.
    """

    def __init__(self, space: Image, width: int = 64, channels: int = 32) -> None:
        halvings = max(1, math.ceil(math.log2(max(space.height, space.width) / 4)))
        sizes = [min(channels * 2**i, 4 * channels) for i in range(halvings + 1)]
        super().__init__(width, sizes[-1])
        self.levels = space.levels
        layers: list[nn.Module] = [nn.Conv2d(space.channels, sizes[0], 3, padding=1)]
        for a, b in pairwise(sizes):
            layers += [nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, b, 3, stride=2, padding=1)]
        layers += [nn.GroupNorm(8, sizes[-1]), nn.SiLU()]
        self.convs = nn.Sequential(*layers)
        cells = (-(-side // 2**halvings) for side in (space.height, space.width))
        self.place = nn.Parameter(torch.zeros(sizes[-1], *cells))
        self.pool, self.linear = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), nn.Linear(4 * sizes[-1], width)

    def encode(self, c: Tensor) -> Encoded:
        cells = self.convs(c.to(self.linear.weight.dtype) * (2 / (self.levels - 1)) - 1) + self.place
        return Encoded(self.linear(self.pool(cells)), cells.flatten(2).mT)


class StepsEncoder(Encoder):
    """Steps of free length: a convolution makes one token of ``stride`` steps, then a transformer looks at all of them.

    A learned token before the first is there even where a row is empty. The vector is the tokens' mean under attention
    of learned queries. What stands after the end of a row is seen by none. A subclass embeds the steps.
    """

    def __init__(self, space: Ragged, width: int, features: int, layers: int = 2) -> None:
        super().__init__(width, width)
        self.space = space
        self.stride = -(-max(1, space.length) // MOST_TOKENS)
        self.conv = nn.Conv1d(features, width, 3 if self.stride == 1 else 2 * self.stride, self.stride)
        self.begin = nn.Parameter(torch.randn(width))
        n_heads = max(h for h in range(1, 1 + max(1, width // 16)) if width % (2 * h) == 0)
        self.shape = Shape(width=width, layers=layers, n_heads=n_heads, hidden=2 * width)
        self.layers = nn.ModuleList(Layer(self.shape) for _ in range(layers))
        self.norm, self.query = nn.LayerNorm(width), nn.Linear(width, n_heads)
        self.linear = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))

    embed: Any  # steps [N, L, ...] -> [N, L, features]

    def encode(self, c: Tensor) -> Encoded:
        lengths, (taps,) = self.space.lengths(c), self.conv.kernel_size
        inside = torch.arange(c.shape[1], device=c.device) < lengths[:, None]
        some = c.masked_fill(~inside.view(*inside.shape, *[1] * (c.ndim - 2)), 0)  # any step, in the place of fill
        x = self.embed(some).to(self.begin.dtype) * inside[..., None]
        before, count = (taps - self.stride) // 2, max(1, -(-c.shape[1] // self.stride))
        after = (count - 1) * self.stride + taps - before - c.shape[1]
        x = torch.cat([self.begin.expand(len(c), 1, -1), self.conv(F.pad(x.mT, (before, after))).mT], 1)
        here = torch.arange(1 + count, device=c.device) <= (-(-lengths // self.stride))[:, None]
        rotation = rotations(replace(self.shape, block=1 + count)).to(x)[:, :, None]
        for layer in self.layers:
            x = layer(x, rotation, here[:, None, None])
        x = self.norm(x)
        weight = self.query(x).masked_fill(~here[..., None], -math.inf).softmax(1)
        pooled = (weight[..., None] * x.unflatten(2, (weight.shape[2], -1))).sum(1).flatten(1)
        return Encoded(self.linear(pooled), x, here)


class TextEncoder(StepsEncoder):
    """A learned vector per symbol."""

    def __init__(self, space: Text, width: int = 64) -> None:
        super().__init__(space, width, width)
        self.embed = nn.Embedding(space.symbols, width)


class AudioEncoder(StepsEncoder):
    """Levels as numbers from -1 to 1."""

    space: Audio

    def __init__(self, space: Audio, width: int = 64) -> None:
        super().__init__(space, width, 1)

    def embed(self, c: Tensor) -> Tensor:
        return c[..., None] * (2 / (self.space.levels - 1)) - 1


class SequenceEncoder(StepsEncoder):
    """Steps as their heads embed them."""

    def __init__(self, space: Sequence, width: int = 64) -> None:
        heads = heads_for(space.step, components=1)
        super().__init__(space, width, sum(heads.features))
        self.heads = heads

    def embed(self, c: Tensor) -> Tensor:
        return self.heads.embed(c)

    def prepare(self, c: Tensor | None, weight: Tensor | None = None) -> None:
        assert c is not None
        c = c[:]  # rows of any length are read
        self.heads.prepare(c[c[..., 0] != self.space.fill])


class StepwiseEncoder(Encoder):
    """Steps of a sequence of rows as their heads embed them, each for itself: the tokens. There is no vector."""

    def __init__(self, space: Any) -> None:
        heads = heads_for(space.step, components=1)
        super().__init__(0, sum(heads.features))
        self.space, self.heads = space, heads

    def encode(self, c: Tensor) -> Encoded:
        inside = c[..., 0] != self.space.fill
        tokens = self.heads.embed(torch.where(inside[..., None], c, 0)).to(torch.get_default_dtype())
        return Encoded(tokens.new_zeros(len(c), 0), tokens, inside)

    def prepare(self, c: Tensor | None, weight: Tensor | None = None) -> None:
        assert c is not None
        c = c[:]  # rows of any length are read
        self.heads.prepare(c[c[..., 0] != self.space.fill])


for space, cls in (
    (Label, LabelEncoder), (Table, TableEncoder), (Reals, TableEncoder), (Image, ImageEncoder), (Text, TextEncoder),
    (Audio, AudioEncoder), (Sequence, SequenceEncoder),
):  # fmt: skip
    encoder.register(space, cls)
