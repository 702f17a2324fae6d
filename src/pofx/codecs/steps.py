"""A datum as a sequence of steps, which nets over sequences read and write.

    space      one step                                  codec
    Text       a symbol, or a subword of several         Plain, Subwords, PretrainedTokenizer
    Audio      a level, or the error of its prediction   Plain, Predicted
    Sequence   a row of a table                          Plain
    Image      the levels of a patch, or a colour        Patches, Palette (nn.palette)

Steps are [N, L] (symbols) or [N, L, d] (d values each), filled up after the end like the data themselves.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pofx.codecs.prediction import LinearPrediction, image_errors, image_restored
from pofx.core.errors import BadValue, UsageError
from pofx.core.likelihood import Exact, Kind, LowerBound
from pofx.core.space import Ragged
from pofx.nn.causal import site_order
from pofx.spaces import Audio, Image, Text
from pofx.spaces.text import filled_up

PatchOrder = Literal["raster", "column", "spiral", "reverse", "random"]

LEARNED = 2**23  # symbols of texts, of which subwords are learned

Span: TypeAlias = tuple[int, int]  # of a string's characters: the first, and the one after the last
Detokenizer: TypeAlias = Callable[[int | None], str]  # the next symbol (None: no more) -> the text that it completes


class Codec(nn.Module):
    """How data become steps, and steps data.

    Attributes:
        aligned: each unit of a datum is one step.
        apart: the steps of a datum are those of its parts, end to end.
        kind: of a datum's likelihood, given the exact one of its steps: Exact where each datum has one spelling.
        looked_at: how many training rows ``prepare`` is given at most.
    """

    aligned = True
    apart = False
    kind: Kind = Exact
    looked_at = 500

    def prepare(self, x: Tensor, generator: torch.Generator) -> None:
        """Learn what there is to learn from some training rows x [N, *E]."""

    def encode(self, x: Tensor) -> Tensor:
        """x [N, *E] -> steps [N, L, ...]."""
        raise NotImplementedError

    def decode(self, u: Tensor) -> Tensor:
        """The inverse, of the space's dtype."""
        raise NotImplementedError

    def decode_after(self, before: Tensor, u: Tensor) -> Tensor:
        """What steps u add to the data of the steps ``before``, which fill may follow: by themselves, ``decode``."""
        return self.decode(u)


class TextCodec(Protocol):
    """What a codec of texts knows besides: which characters a step stands for.

    ``json`` is the tokenizer.json of symbols that were learned; "" where they are those of the space.
    """

    @property
    def json(self) -> str: ...

    def spans(self, x: Tensor) -> list[list[Span]]:
        """Of each text of x [N, L], which characters of its spelling each step stands for, or is a part of."""
        ...

    def detokenizer(self, before: Sequence[int]) -> Detokenizer:
        """Spells symbols one by one, which follow these; a character is told when it is complete."""
        ...


class Predicted(Codec):
    """Sounds [N, L] as errors of their linear prediction, each a step of one value [N, L, 1]."""

    def __init__(self, space: Audio, order: int) -> None:
        super().__init__()
        self.space, self.prediction = space, LinearPrediction(order, space.levels)

    def prepare(self, x: Tensor, generator: torch.Generator) -> None:
        self.prediction.learn(x)

    def encode(self, x: Tensor) -> Tensor:
        e = self.prediction.errors(x)
        return torch.where(e < 0, math.inf, e.float())[..., None]

    def decode(self, u: Tensor) -> Tensor:
        return self.prediction.restored(torch.where(u.isinf(), -1, u)[..., 0].long())

    def decode_after(self, before: Tensor, u: Tensor) -> Tensor:
        size = (~before[..., 0].isinf()).sum(1, keepdim=True)
        line = torch.cat([before, u, torch.full_like(before, math.inf)], 1)
        order = line[..., 0].isinf().long().argsort(dim=1, stable=True)
        x = self.decode(line.gather(1, order[..., None]))
        return x.gather(1, size + torch.arange(u.shape[1], device=u.device))


class Plain(Codec):
    """Symbols, levels or rows as they are; ``single``: numbers [N, L] become steps of one value [N, L, 1]."""

    apart = True
    json = ""

    def __init__(self, space: Ragged, single: bool = False) -> None:
        super().__init__()
        self.space, self.single = space, single

    def encode(self, x: Tensor) -> Tensor:
        if not self.single:
            return x
        return torch.where(x == self.space.fill, math.inf, x.float())[..., None]

    def decode(self, u: Tensor) -> Tensor:
        if not self.single:
            return u
        return torch.where(u.isinf(), self.space.fill, u)[..., 0].long()

    def spans(self, x: Tensor) -> list[list[Span]]:
        if self.space.alphabet:
            return [[(i, i + 1) for i in range(n)] for n in self.space.lengths(x).tolist()]
        return [_of_bytes(row[row >= 0].tolist()) for row in x]

    def detokenizer(self, before: Sequence[int]) -> Detokenizer:
        if alphabet := self.space.alphabet:
            return lambda symbol: "" if symbol is None else alphabet[symbol]
        reader = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda symbol: reader.decode(b"", True) if symbol is None else reader.decode(bytes([symbol]))


def _of_bytes(numbers: list[int]) -> list[Span]:
    """Which character of the decoded text each byte is a part of."""
    reader = codecs.getincrementaldecoder("utf-8")("replace")
    told = [len(reader.decode(bytes([b]))) for b in numbers]
    told.append(len(reader.decode(b"", True)))
    ends = list(accumulate(told))
    # a byte that completes nothing belongs to what is completed next
    spans: list[Span] = []
    for i, (start, end) in enumerate(pairwise([0, *ends[:-1]])):
        later = end if end > start else next((e for e in ends[i + 1 :] if e > start), start)
        spans.append((start, later))
    return spans


class Patches(Codec):
    """An image [C, H, W] as its patches of size x size pixels, each with all of its channels, in an order.

    With ``symbols`` a step is the level of one pixel of one channel; with ``errors`` levels are those of a prediction.
    """

    aligned = False
    order: Tensor
    back: Tensor

    def __init__(
        self,
        space: Image,
        size: int,
        symbols: bool = False,
        order: str = "raster",
        order_seed: int = 0,
        errors: bool = False,
    ) -> None:
        super().__init__()
        self.errors = errors
        places = torch.tensor(patch_order(order, space.height // size, space.width // size, order_seed))
        self.register_buffer("order", places, persistent=False)
        self.register_buffer("back", places.argsort(), persistent=False)
        self.space, self.size, self.symbols = space, size, symbols
        self.each = space.channels * size * size

    def encode(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, patches, size size C], pixel by pixel."""
        u = self._split(image_errors(x, self.space.levels) if self.errors else x)
        return u.long() if self.symbols else u.float()

    def known(self, known: Tensor) -> Tensor:
        """Which values of the steps are known [N, patches, ...], where these pixels [N, C, H, W] are.

        Raises UsageError where an error is to be known whose prediction is not.
        """
        if self.errors:
            before = known.long()
            for axis in (1, 2, 3):
                before = before.cummin(axis).values
            if not torch.equal(before.bool(), known):
                raise UsageError(
                    "A pixel cannot be known without those it is predicted from: all to its left and above.",
                    "Give upper rows, or fit without prediction: --options.predict no.",
                )
        return self._split(known)

    def _split(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, patches, size size C], or [N, patches] where a step is a symbol."""
        p, (n, c, h, w) = self.size, x.shape
        u = x.reshape(n, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, self.each)[:, self.order]
        return u[..., 0] if self.symbols else u

    def decode(self, u: Tensor) -> Tensor:
        p, (c, h, w) = self.size, self.space.event_shape
        x = u[:, self.back].reshape(len(u), h // p, w // p, p, p, c).permute(0, 5, 1, 3, 2, 4)
        x = x.reshape(len(u), c, h, w)
        x = image_restored(x, self.space.levels) if self.errors else x
        return x if self.space.levels > 256 else x.to(self.space.dtype)  # codes are more than a byte holds


def patch_order(name: str, height: int, width: int, seed: int) -> list[int]:
    """The numbers of height x width places (counted by rows) in the order of that name."""
    rows = np.arange(height * width).reshape(height, width)
    if name == "spiral":
        found, rest = [], rows
        while rest.size:  # the first row, then what is left, turned so that its next side is the first row
            found += rest[0].tolist()
            rest = np.rot90(rest[1:])
        return found
    if name == "column":
        return rows.T.flatten().tolist()
    return site_order(name, height * width, seed)


def byte_spelling() -> list[str]:
    """The character that stands for each of the 256 bytes in a byte-level vocabulary (Radford et al. 2019)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in visible else next(others)) for b in range(256)]


SPELLING = byte_spelling()


def _escaped(piece: str) -> bool:
    """Is it one byte that is no UTF-8 (as "surrogateescape" spells it)?"""
    return len(piece) == 1 and "\udc80" <= piece <= "\udcff"


class Subwords(Codec):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), learned from the training texts.

    A string has many spellings in subwords; the encoder gives one of them, so its likelihood bounds that of
    the string from below. Bytes that are no UTF-8 are spelled one by one, so that no two strings share a spelling.

    Args:
        space: of texts.
        size: of the vocabulary.
    """

    aligned = False
    kind = LowerBound
    learned: Tensor

    def __init__(self, space: Text, size: int) -> None:
        super().__init__()
        self.space, self.size = space, size
        self.looked_at = max(self.looked_at, LEARNED // max(1, space.length))
        self._made: Any = None  # the tokenizer, once it is used
        self._spanned: dict[str, Any] = {}  # texts whose spans were asked for last: they are tokenised once
        self.register_buffer("learned", torch.zeros(0, dtype=torch.uint8))  # the tokenizer's JSON

    def prepare(self, x: Tensor, generator: torch.Generator) -> None:
        self.learn([self.space.spell(row) for row in x])

    def learn(self, texts: list[str]) -> None:
        """Train the tokenizer on texts."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        known = bytes_of.pre_tokenize_str(self.space.alphabet)  # no token for a byte that these texts cannot hold
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        initial = sorted({c for piece, _ in known for c in piece}) or pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=self.size, initial_alphabet=initial, show_progress=False)
        made.train_from_iterator(texts, trainer)
        self.take(made.to_str())

    def take(self, json: str) -> None:
        """Use a tokenizer.json."""
        self.learned = torch.frombuffer(bytearray(json.encode()), dtype=torch.uint8).clone()
        self._made, self._spanned = None, {}

    @property
    def json(self) -> str:
        """The tokenizer.json."""
        return bytes(self.learned.tolist()).decode()

    @property
    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        if self._made is None:
            self._made = Tokenizer.from_str(self.json)
        return self._made

    def encode(self, x: Tensor) -> Tensor:
        return filled_up(self._tokens(x)).to(x.device)

    def _tokens(self, x: Tensor) -> list[list[int]]:
        if self.space.alphabet:
            return [e.ids for e in self._read([self.space.spell(row) for row in x])]
        tokenizer, spelled = (
            self.tokenizer,
            [bytes(row[row >= 0].tolist()).decode(errors="surrogateescape") for row in x],
        )
        rows_of_pieces = [[p for p in re.split("([\udc80-\udcff])", text) if p] for text in spelled]
        whole = [p for pieces in rows_of_pieces for p in pieces if not _escaped(p)]
        found = iter(self._read(whole))

        def ids(piece: str) -> list[int]:
            return [tokenizer.token_to_id(SPELLING[ord(piece) & 255])] if _escaped(piece) else next(found).ids

        return [[k for piece in pieces for k in ids(piece)] for pieces in rows_of_pieces]

    def decode(self, u: Tensor) -> Tensor:
        """Subwords -> symbols. Nothing is left of numbers without a subword (where the texts had few), nor of bytes
        that make up no character of the alphabet."""
        tokenizer, byte = self.tokenizer, {c: k for k, c in enumerate(SPELLING)}
        words = [[tokenizer.id_to_token(k) or "" for k in row[row >= 0].tolist()] for row in u]
        spelled = [bytes(byte[c] for word in row for c in word) for row in words]
        if self.space.alphabet:
            known = set(self.space.alphabet)
            texts = ["".join(c for c in s.decode(errors="ignore") if c in known) for s in spelled]
            return self.space.parse(texts).to(u.device)
        return filled_up([list(s) for s in spelled]).to(u.device)

    def spans(self, x: Tensor) -> list[list[Span]]:
        texts = [self.space.spell(row) for row in x]
        found = self._read(texts)
        self._spanned = dict(zip(texts, found, strict=True))
        return [list(e.offsets) for e in found]

    def detokenizer(self, before: Sequence[int]) -> Detokenizer:
        tokenizer, byte = self.tokenizer, {c: b for b, c in enumerate(SPELLING)}
        reader = codecs.getincrementaldecoder("utf-8")("replace")

        def spell(symbol: int | None) -> str:
            word = "" if symbol is None else tokenizer.id_to_token(symbol) or ""  # some numbers stand for no subword
            return self._known(reader.decode(bytes(byte[c] for c in word), symbol is None))

        return spell

    def _known(self, text: str) -> str:
        """The text without what the space's alphabet does not have: parts of a character spell none of it."""
        return text if not self.space.alphabet else "".join(c for c in text if c in self.space.alphabet)

    def _read(self, texts: list[str]) -> list[Any]:
        """The tokenizer's encodings of texts."""
        if self._spanned.keys() >= set(texts):
            return [self._spanned[text] for text in texts]
        found: list[Any] = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return found


class PretrainedTokenizer(Subwords):
    """Subwords of another project's tokenizer. It may lose something of a text, which is then an error."""

    def _tokens(self, x: Tensor) -> list[list[int]]:
        return [e.ids for e in self._read([self.space.spell(row) for row in x])]

    def decode(self, u: Tensor) -> Tensor:
        found: list[str] = self.tokenizer.decode_batch([row[row >= 0].tolist() for row in u])
        return self.space.parse([self._known(t) for t in found]).to(u.device)

    def decode_after(self, before: Tensor, u: Tensor) -> Tensor:
        """What goes on: some tokenizers drop a space at the beginning of a text, and only there."""
        rows = [[r[r >= 0].tolist() for r in t] for t in (before, u)]
        return self.space.parse(["".join(map(self.detokenizer(b), new)) for b, new in zip(*rows, strict=True)]).to(
            u.device
        )

    def detokenizer(self, before: Sequence[int]) -> Detokenizer:
        from tokenizers.decoders import DecodeStream

        tokenizer, stream = self.tokenizer, DecodeStream(list(before), skip_special_tokens=True)
        return lambda symbol: "" if symbol is None else stream.step(tokenizer, symbol) or ""

    def _read(self, texts: list[str]) -> list[Any]:
        found = super()._read(texts)
        back = self.tokenizer.decode_batch([e.ids for e in found], skip_special_tokens=False)
        for text, again in zip(texts, back, strict=True):
            if again != text:
                i = next((i for i, (a, b) in enumerate(zip(text, again, strict=False)) if a != b), len(again))
                raise BadValue(
                    f"The tokenizer loses something of a text: {text[i : i + 20]!r} comes back as "
                    f"{again[i : i + 20]!r}, so its probability would be that of another text.",
                    "Give a text that it keeps, or use a model with a byte-level tokenizer.",
                )
        return found
