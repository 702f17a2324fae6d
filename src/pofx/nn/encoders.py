"""Contexts as nets take them: one encoder per space, found by ``encoder``; a third party's space registers its own.

A net takes the vector by addition or FiLM (Perez et al. 2018), the tokens, where it attends to them, by
cross-attention (Vaswani et al. 2017, section 3.2.3), and an image's own pixels, where it models images, as channels
beside those of its input (Saharia et al. 2022, Palette, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass, fields, replace
from functools import singledispatch
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.core.errors import Unsupported
from pofx.core.space import Ragged, Space
from pofx.nn.mel import fft_size, frame_sizes, log_mel, mel_filters
from pofx.nn.sites import heads_for
from pofx.nn.transformer import Layer, Memory, Shape, rotations
from pofx.spaces import Audio, Image, Label, Reals, Sequence, Table, Text

MOST_TOKENS = 256  # of a context of free length: longer ones are read in steps of several symbols or samples
BYTES_OF_SUBWORD = 3  # that a text has at least, or nearly so
MOST_FRAMES = 512  # tokens of a sound: frames of 20 ms, or longer where the longest sound has more
FEW_FRAMES = 32  # of the longest sound: each is a token, of 10 ms
BANDS = 64  # of what is heard of a sound
LOOK = 500  # training contexts that are looked at before training


@dataclass(frozen=True)
class Encoded:
    """N contexts as nets take them; rows are taken by ``[index]``.

    Attributes:
        vector: [N, w].
        tokens: [N, L, t], where a context has parts: cells of an image, steps of a text.
        mask: [N, L], which of the tokens are the row's own; None where all are.
        map: [N, C, H, W], an image's own pixels from -1 to 1.
        raw: the contexts themselves [N, *Ec], where a second net has to encode them, too.
    """

    vector: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    map: Tensor | None = None
    raw: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vector)

    def __getitem__(self, index: Any) -> Encoded:
        return self._each(lambda t: t[index])

    def to(self, *args: Any) -> Encoded:
        return self._each(lambda t: t.to(*args))

    @staticmethod
    def cat(parts: Iterable[Encoded]) -> Encoded:
        """Rows one after the other; where they have tokens, as many as the longest."""
        first, *rest = [*parts]
        sizes = {0 if e.tokens is None else e.tokens.shape[1] for e in (first, *rest)}
        if len(sizes) > 1:
            first, *rest = (e._up_to(max(sizes)) for e in (first, *rest))
        return first._each(lambda *t: torch.cat(t), *rest)

    def _up_to(self, most: int) -> Encoded:
        """With so many tokens, of which those that are added are no row's own."""
        if self.tokens is None:
            return self
        more = most - self.tokens.shape[1]
        own = torch.ones_like(self.tokens[..., 0], dtype=torch.bool) if self.mask is None else self.mask
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=F.pad(own, (0, more)))

    def _each(self, of: Callable[..., Tensor], *others: Encoded) -> Encoded:
        """What is there of each part, of all of these."""
        columns = {f.name: [getattr(e, f.name) for e in (self, *others)] for f in fields(self)}
        return Encoded(**{name: of(*column) for name, column in columns.items() if column[0] is not None})


def vector(e: Encoded | None) -> Tensor | None:
    return None if e is None else e.vector


def told(e: Encoded | None) -> tuple[()] | tuple[Memory]:
    """The last argument of a net that attends to tokens, where there are any."""
    return () if e is None or e.tokens is None else ((e.tokens, e.mask),)


def beside(map: Tensor, size: Several[int]) -> Tensor:
    """Maps [N, C, H, W] as channels [N, C', h, w] beside images of a size (h, w), each cell of what lies at its place.

    Of a map that is k times as large on both sides, the k x k pixels of a cell become channels, so that none is lost;
    any other is resized (by area where it shrinks, linearly where it grows).
    """
    height, width = map.shape[2:]
    if (height, width) == tuple(size):
        return map
    if k := _times((height, width), size):
        return F.pixel_unshuffle(map, k)
    if height > size[0] or width > size[1]:
        return F.interpolate(map, tuple(size), mode="area")
    return F.interpolate(map, tuple(size), mode="bilinear")


def channels_beside(picture: Several[int] | None, size: Several[int]) -> int:
    """C' of ``beside``, for maps (C, H, W); 0 where there are none."""
    return 0 if picture is None else picture[0] * max(1, _times(picture[1:], size)) ** 2


def _times(sides: Several[int], size: Several[int]) -> int:
    """How many times as large both sides are; 0 where that is no whole number."""
    k = sides[0] // size[0]
    return k if (k * size[0], k * size[1]) == tuple(sides) else 0


class Encoder(nn.Module):
    """Contexts c [N, *Ec] in raw units -> ``Encoded``; each row's follows from the row alone.

    Args:
        width, memory: of vectors and of tokens, 0 where a subclass gives none; it writes ``encode``.
        picture: (C, H, W) of maps, None where it gives none.

    Attributes:
        options: what its ``__init__`` may be told besides, each an option context_NAME of a family
            (``families.conditioned.ContextOptions``), but for "dropout", which is that of the family's own net.
        has_tokens: it gives some.
    """

    options: ClassVar[tuple[str, ...]] = ()
    has_tokens: ClassVar[bool] = False
    absent: nn.Parameter | None

    def __init__(self, width: int, memory: int = 0, picture: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.width, self.memory, self.picture = width, memory, picture
        self.register_parameter("absent", None)

    def encode(self, c: Tensor) -> Encoded:
        raise NotImplementedError

    def prepare(self, c: Tensor | None, weight: Tensor | None = None) -> None:
        """Look at the training contexts once: scales, where there are any."""

    def matrices(self) -> list[Tensor]:
        """The weights between hidden layers: what Muon is for."""
        return []

    def learn_null(self) -> None:
        """Have a null context, which stands for none."""
        self.absent = nn.Parameter(torch.randn(self.width + self.memory + self.shades))

    @property
    def shades(self) -> int:
        """Channels of maps."""
        return 0 if self.picture is None else self.picture[0]

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
        seen = e.map
        if seen is not None and null.map is not None:
            seen = torch.where(dropped[:, None, None, None], null.map, seen)
        return Encoded(hidden, tokens, mask, seen)

    def null(self, n: int) -> Encoded:
        """n null contexts. Raises Unsupported where none was learned."""
        if self.absent is None:
            raise Unsupported(
                "No context was dropped in training, so p(x | no context) is unknown.",
                "Fit with --options.context-dropout above 0, such as 0.1.",
            )
        each, token, shade = self.absent.expand(n, -1).split((self.width, self.memory, self.shades), 1)
        e = Encoded(each, token[:, None], token.new_ones(n, 1, dtype=torch.bool)) if self.memory else Encoded(each)
        return e if self.picture is None else replace(e, map=shade[..., None, None].expand(-1, *self.picture))


@singledispatch
def encoder(space: Space, width: int = 64, **options: Any) -> Encoder:
    """The encoder of a context space, of vectors of a width, and of the ``options`` of its class.

    Raises Unsupported where there is none.
    """
    raise Unsupported(f"There is no encoder for contexts of {space}.", "Condition on labels, columns or images.")


def no_encoder(context: Space | None) -> str | None:
    """Why a net cannot be told contexts of this space, or None."""
    known = context is None or encoder.dispatch(type(context)) is not encoder.dispatch(object)
    return None if known else f"it has no encoder for contexts of {context}. Condition on labels, columns or images."


def options_of(context: Space) -> tuple[str, ...]:
    """The options of the encoder of such contexts."""
    found: tuple[str, ...] = getattr(encoder.dispatch(type(context)), "options", ())
    return found


def has_tokens(context: Space | None) -> bool:
    """Do contexts of this space have parts that a net can attend to?"""
    return context is not None and getattr(encoder.dispatch(type(context)), "has_tokens", False)


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

    The vector is a linear map of their means over the four quarters. The pixels themselves are the map.
    """

    has_tokens = True

    def __init__(self, space: Image, width: int = 64, channels: int = 32) -> None:
        halvings = max(1, math.ceil(math.log2(max(space.height, space.width) / 4)))
        sizes = [min(channels * 2**i, 4 * channels) for i in range(halvings + 1)]
        super().__init__(width, sizes[-1], (space.channels, space.height, space.width))
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
        pixels = c.to(self.linear.weight.dtype) * (2 / (self.levels - 1)) - 1
        cells = self.convs(pixels) + self.place
        return Encoded(self.linear(self.pool(cells)), cells.flatten(2).mT, map=pixels)


class StepsEncoder(Encoder):
    """Steps of free length: a convolution makes one token of ``stride`` steps, then a transformer looks at all of them.

    A learned token before the first is there even where a row is empty. The vector is the tokens' mean under attention
    of learned queries. What stands after the end of a row is seen by none. A subclass embeds the steps.

    Args:
        space: of the steps.
        width: of tokens and vector.
        features: of an embedded step.
        layers: of the transformer; with none, a token knows its neighbours alone.
        dropout: of tokens and of the layers' branches, while training.
        length: of the longest datum, in steps.
        stride: steps of one token [default: as few as leave ``MOST_TOKENS``].
    """

    options: ClassVar[tuple[str, ...]] = ("layers", "dropout")
    has_tokens = True

    def __init__(
        self,
        space: Ragged,
        width: int,
        features: int,
        layers: int = 2,
        dropout: float = 0.0,
        length: int | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__(width, width)
        self.space = space
        self.stride = stride or -(-max(1, space.length if length is None else length) // MOST_TOKENS)
        self.conv = nn.Conv1d(features, width, 3 if self.stride == 1 else 2 * self.stride, self.stride)
        self.begin = nn.Parameter(torch.randn(width))
        most = max(1, min(4, width // 16), width // 32)
        n_heads = max((h for h in range(1, 1 + most) if width % (2 * h) == 0), default=1)
        self.shape = Shape(width=width, layers=max(1, layers), n_heads=n_heads, hidden=2 * width, dropout=dropout)
        self.layers = nn.ModuleList(Layer(self.shape) for _ in range(layers))
        self.norm, self.query = nn.LayerNorm(width), nn.Linear(width, n_heads)
        self.linear = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))

    embed: Any  # steps [N, L, ...] -> [N, L, features]

    def matrices(self) -> list[Tensor]:
        return [m.weight for m in self.layers.modules() if isinstance(m, nn.Linear)]

    def read(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The steps' features [N, L, features], 0 after the end, and how many steps each row has [N]."""
        lengths = self.space.lengths(c)
        inside = torch.arange(c.shape[1], device=c.device) < lengths[:, None]
        some = c.masked_fill(~inside.view(*inside.shape, *[1] * (c.ndim - 2)), 0)  # any step, in the place of fill
        return self.embed(some).to(self.begin.dtype) * inside[..., None], lengths

    def encode(self, c: Tensor) -> Encoded:
        longest = max(1, int(self.space.lengths(c).max())) if len(c) else 1
        (x, lengths), (taps,) = self.read(c[:, :longest]), self.conv.kernel_size
        before, count = (taps - self.stride) // 2, self.tokens(longest)
        after = (count - 1) * self.stride + taps - before - x.shape[1]
        x = torch.cat([self.begin.expand(len(c), 1, -1), self.conv(F.pad(x.mT, (before, after))).mT], 1)
        here = torch.arange(1 + count, device=c.device) <= (-(-lengths // self.stride))[:, None]
        x = F.dropout(x, self.shape.dropout, self.training)
        rotation = rotations(replace(self.shape, block=1 + count)).to(x)[:, :, None]
        for layer in self.layers:
            x = layer(x, rotation, here[:, None, None])
        x = self.norm(x)
        weight = self.query(x).masked_fill(~here[..., None], -math.inf).softmax(1)
        pooled = (weight[..., None] * x.unflatten(2, (weight.shape[2], -1))).sum(1).flatten(1)
        rest = self.tokens(c.shape[1]) - count  # of fill alone: as many tokens in all parts of a batch
        return Encoded(self.linear(pooled), F.pad(x, (0, 0, 0, rest)), F.pad(here, (0, rest)))

    def tokens(self, steps: int) -> int:
        """How many there are of so many steps, without the one before the first."""
        return max(1, -(-steps // self.stride))


class TextEncoder(StepsEncoder):
    """A learned vector per symbol, or per subword of ``subwords`` (``codecs.steps.Subwords``), which it learns."""

    options = (*StepsEncoder.options, "vocabulary")

    def __init__(self, space: Text, width: int = 64, subwords: Any = None, **options: Any) -> None:
        length = space.length if subwords is None else space.length // BYTES_OF_SUBWORD
        super().__init__(space, width, width, length=length, **options)
        self.subwords = subwords
        self.embed = nn.Embedding(space.symbols if subwords is None else subwords.size, width)

    def encode(self, c: Tensor) -> Encoded:
        return super().encode(c if self.subwords is None else self.subwords.encode(c))

    def prepare(self, c: Tensor | None, weight: Tensor | None = None) -> None:
        if self.subwords is not None:
            assert c is not None
            some = torch.randperm(len(c), generator=torch.Generator().manual_seed(0))
            self.subwords.learn([self.space.spell(row) for row in c[some[: self.subwords.looked_at]]])


class AudioEncoder(StepsEncoder):
    """Frames of 10 ms, each as the log of its power in ``BANDS`` bands (``nn.mel``), standardised; then a convolution
    before the one that makes tokens, of which the longest sound has ``MOST_FRAMES`` at most.

    Each band is told twice: as it is, and less its mean over the sound, which a microphone and a voice add.
    """

    space: Audio
    filters: Tensor
    location: Tensor
    scale: Tensor

    def __init__(self, space: Audio, width: int = 64, **options: Any) -> None:
        self.hop = frame_sizes(space.rate)[1]
        longest = self.frames(space.length)
        stride = max(1 + (longest > FEW_FRAMES), -(-longest // MOST_FRAMES))
        super().__init__(space, width, width, stride=stride, **options)
        self.first = nn.Conv1d(2 * BANDS, width, 3, padding=1)
        filters = mel_filters(space.rate, fft_size(space.rate, BANDS), BANDS)
        self.register_buffer("filters", filters.to(self.begin.dtype), persistent=False)
        self.register_buffer("location", torch.zeros(2 * BANDS))
        self.register_buffer("scale", torch.ones(2 * BANDS))

    def frames(self, samples: Any) -> Any:
        return -(-samples // self.hop)

    def tokens(self, steps: int) -> int:
        return super().tokens(self.frames(steps))

    def heard(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel spectra [N, F, 2 BANDS] of sounds, and which frames are the sound's own [N, F]."""
        with torch.autocast(c.device.type, enabled=False):  # a logarithm of few bits would tell little
            mel = log_mel(self.space.amplitudes(c).to(self.filters), self.space.rate, BANDS, self.filters)
        lengths = self.frames(self.space.lengths(c))
        inside = torch.arange(mel.shape[1], device=c.device) < lengths[:, None]
        mean = (mel * inside[..., None]).sum(1, keepdim=True) / lengths.clamp(min=1)[:, None, None]
        return torch.cat([mel, mel - mean], 2), inside

    def read(self, c: Tensor) -> tuple[Tensor, Tensor]:
        mel, inside = self.heard(c)
        x = (mel - self.location) / self.scale * inside[..., None]
        return F.gelu(self.first(x.mT)).mT * inside[..., None], inside.sum(1)

    def prepare(self, c: Tensor | None, weight: Tensor | None = None) -> None:
        assert c is not None
        some = torch.randperm(len(c), generator=torch.Generator().manual_seed(0))[:LOOK]
        mel, inside = self.heard(c[some])
        if bool(inside.any()):
            self.location.copy_(mel[inside].mean(0))
            self.scale.copy_(mel[inside].std(0, correction=0).clamp(min=0.1))


class SequenceEncoder(StepsEncoder):
    """Steps as their heads embed them."""

    def __init__(self, space: Sequence, width: int = 64, **options: Any) -> None:
        heads = heads_for(space.step, components=1)
        super().__init__(space, width, sum(heads.features), **options)
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
