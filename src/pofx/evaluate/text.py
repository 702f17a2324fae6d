"""Rates of texts per character, byte, symbol and word, and where in a text a model is how much surprised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pofx.core.abilities import Continues, Decodes, ability_of
from pofx.core.errors import Unsupported
from pofx.core.likelihood import KINDS, SYMBOL, flip
from pofx.core.model import Model
from pofx.core.requests import Request, Windowed
from pofx.evaluate.likelihood import Mean


@dataclass(frozen=True)
class Rates:
    """log p of texts, told per each of their units.

    A unit is a character, a byte of UTF-8, a word (what stands between white space), or a symbol: what the model
    predicts at a time, the end of a text included where texts end. The rates are of one number: the same texts
    under the same model, so that (bits per byte) (bytes) = (bits per character) (characters) = ...

    Attributes:
        kind: of log p; of a lower bound, the rates below are upper bounds.
        nats: log p of all texts together.
        characters, bytes, symbols, words: of all texts.
        symbol: what one is: "character", "byte" or "subword"; ends: the end of each text is one more.
        block, stride: symbols that the model sees at a time, and by which that window moves; None without limit.
    """

    kind: str
    nats: float
    characters: int
    bytes: int
    symbols: int
    words: int
    symbol: str
    has_eos: bool
    block: int | None = None
    stride: int | None = None

    @property
    def nats_per_character(self) -> float:
        return -self.nats / self.characters

    @property
    def bits_per_character(self) -> float:
        return self.nats_per_character / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        return -self.nats / math.log(2) / self.bytes

    @property
    def perplexity_per_symbol(self) -> float:
        """exp of the mean surprise; infinite beyond 1e308."""
        return _exp(-self.nats / self.symbols)

    @property
    def perplexity_per_word(self) -> float:
        """exp of the surprise per word, that of white space and ends included; infinite beyond 1e308."""
        return _exp(-self.nats / max(1, self.words))

    @property
    def text(self) -> str:
        """One line for each rate."""
        sign = SYMBOL[flip(KINDS[self.kind])]
        predicted = f"{self.symbols:,}{' with ends' * self.has_eos}"
        lines = [
            (f"{self.nats_per_character:.4f} nats/char", f"{self.characters:,} characters"),
            (f"{self.bits_per_character:.4f} bits/char", ""),
            (f"{self.bits_per_byte:.4f} bits/byte", f"{self.bytes:,} bytes"),
            (f"{_short(self.perplexity_per_symbol)} perplexity per {self.symbol}", predicted),
            (f"{_short(self.perplexity_per_word)} perplexity per word", f"{self.words:,} words"),
        ]
        return "\n".join(f"{sign} {rate}" + (f"  ({count})" if count else "") for rate, count in lines)

    @property
    def window_text(self) -> str:
        """How much the model saw."""
        if self.block is None:
            return f"Each {self.symbol} is given all before it."
        return f"Each {self.symbol} is given those before it in a window of {self.block}, which moves by {self.stride}."

    def to_json(self) -> dict[str, Any]:
        names = ("nats_per_character", "bits_per_character", "bits_per_byte")
        return vars(self) | {k: getattr(self, k) for k in (*names, "perplexity_per_symbol", "perplexity_per_word")}


class Counts:
    """What the texts that are evaluated are made of, counted while they are at hand (``mean_log_prob``'s ``watch``).

    Attributes:
        characters, symbols, words: of all texts; an end is one more symbol.
        bytes: of each text [m], block by block.

    Raises Unsupported where the data are no texts, or the model does not go through them symbol by symbol.
    """

    def __init__(self, model: Model) -> None:
        self.space, self.bytes = model.space, list[Tensor]()
        if self.space.alphabet is None:
            raise Unsupported(f"{self.space} have no characters.", "Give texts.")
        self.decoder = ability_of(model, Decodes)
        self.characters = self.symbols = self.words = 0

    def add(self, x: Tensor) -> None:
        """The next texts [m, L]."""
        texts = [self.space.spell(row) for row in x]
        self.characters += sum(map(len, texts))
        self.words += sum(len(t.split()) for t in texts)
        self.bytes.append(self.space.units(x))
        self.symbols += sum(map(len, self.decoder.rows_spans(x))) + len(x) * self.space.has_eos


def rates(model: Model, counts: Counts, found: Mean, request: Request | None = None) -> Rates:
    """The rates of texts, symbol by symbol, from their likelihood under the model.

    Args:
        counts: of the texts.
        found: of the same texts, with their likelihoods.
        request: that of ``found``; None for the model's own.
    """
    if found.rows is None:
        raise Unsupported(f"{model.name} has no likelihood: {found.note}")
    nats, request = float(found.rows.nats.sum(dtype=torch.float64)), request or model.default_request()
    stride, block = request.stride if isinstance(request, Windowed) else None, ability_of(model, Continues).window
    each = (counts.characters, int(torch.cat(counts.bytes).sum()), counts.symbols, counts.words)
    return Rates(found.kind.__name__, nats, *each, symbol_of(model), model.space.has_eos, block, stride)


def symbol_of(model: Model) -> str:
    """What the model predicts at a time."""
    if getattr(model.config, "vocabulary", 0):
        return "subword"
    return "character" if model.space.alphabet else "byte"


# -- where -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A stretch of a text and its surprise.

    Attributes:
        text: of one symbol, or of several where one is only a part of a character; "" for the end.
        bits: -log2 p given all before it, summed over the symbols.
        symbols: how many.
    """

    text: str
    bits: float
    symbols: int = 1


def marks(
    model: Model, x: Tensor, c: Tensor | None = None, before: Tensor | None = None, request: Request | None = None
) -> list[Mark]:
    """The stretches of one text x [L], given c [*Ec] and what is before it [K]; the last is its end, where it has one.

    Their texts together are the text, their bits together its surprise -log2 p.
    """
    space = model.space
    if space.alphabet is None:
        raise Unsupported(f"{space} have no characters.", "Mark texts.")
    row, spelt = x[None], space.spell(x)
    spans = ability_of(model, Decodes).rows_spans(row)[0]
    with torch.no_grad():
        given = model.given(None if c is None else c[None], before=None if before is None else before[None])
        bits = (-given.log_probs(row, request=request)[0].double() / math.log(2)).tolist()
    found: list[Mark] = []
    told = 0  # characters
    for (_, end), each in zip(spans, bits, strict=False):
        if end <= told and found:  # a further part of the same character
            last = found[-1]
            found[-1] = Mark(last.text, last.bits + each, last.symbols + 1)
        else:
            found.append(Mark(spelt[told:end], each))
            told = max(told, end)
    if told < len(spelt) and found:
        found[-1] = Mark(found[-1].text + spelt[told:], found[-1].bits, found[-1].symbols)
    return [*found, Mark("", bits[len(spans)])] if space.has_eos else found


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 709 else math.inf


def _short(value: float) -> str:
    return f"{value:.4g}" if value < 1e6 else f"{value:.3e}"
