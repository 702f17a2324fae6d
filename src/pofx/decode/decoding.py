"""How symbols are drawn from a model where not as its distribution says: the options of every strategy together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.model import Model
from pofx.decode.beam import beam
from pofx.decode.processors import Processor, processors
from pofx.decode.speculative import speculative
from pofx.decode.strategies import Decoder, stop_strings, stream


@dataclass(frozen=True)
class Decoding:
    """What changes the distribution, ends a text early, or searches instead of drawing (``Sampler.decoding``).

    Attributes:
        temperature, top_k, top_p, min_p, typical, repetition: see ``decode.processors``; None leaves it out.
        greedy: the likeliest symbol, each time.
        beams: the best sequences that a beam search of this width finds: ``sample(n)`` gives the n best.
        length_penalty: of beams: their log p is divided by (number of symbols) ** this; 1 unless said.
        stop: a text ends after the first of these strings.
        draft: a smaller model of the same symbols, which writes ahead: what is drawn stays the same in distribution.
        draft_symbols: how many it writes ahead; 4 unless said.

    Raises UsageError for values that cannot be, and for options that have no effect beside others.

    Example:
        >>> Decoding(temperature=0.8, top_p=0.95).processor.processors
        (Temperature(value=0.8), TopP(mass=0.95))
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None
    repetition: float | None = None
    greedy: bool = False
    beams: int | None = None
    length_penalty: float | None = None
    stop: tuple[str, ...] = ()
    draft: Model | None = None
    draft_symbols: int | None = None

    def __post_init__(self) -> None:
        if self.beams is not None and self.beams < 1:
            raise UsageError(f"Cannot search with {self.beams} beams.", "Ask for 1 or more.")
        if self.draft_symbols is not None and self.draft_symbols < 1:
            raise UsageError(f"Cannot draft {self.draft_symbols} symbols a round.", "Draft 1 or more.")
        if not all(self.stop):
            raise UsageError(f"A stop string needs at least one character; got {list(self.stop)}.", "Leave it out.")
        searches = {"greedy": self.greedy, "beams": self.beams is not None}
        for way in (name for name, chosen in searches.items() if chosen):
            idle = [k for k in ("temperature", "top_k", "top_p", "min_p", "typical") if getattr(self, k) is not None]
            if idle:
                raise UsageError(f"{way} takes the likeliest, which {', '.join(idle)} cannot change.", "Leave one out.")
        for one, other in (("beams", "greedy"), ("beams", "stop"), ("beams", "draft")):
            if getattr(self, one) and getattr(self, other):
                raise UsageError(f"{one} and {other} do not go together.", f"Leave out {one} or {other}.")
        for option, needs in (("length_penalty", "beams"), ("draft_symbols", "draft")):
            if getattr(self, option) is not None and getattr(self, needs) is None:
                raise UsageError(f"{option}={getattr(self, option)} has no effect without {needs}.", "Leave it out.")
        _ = self.processor  # checks the values

    @cached_property
    def processor(self) -> Processor:
        return processors(
            repetition=self.repetition,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical=self.typical,
        )

    def until_stop(self, text: str) -> str | None:
        """The text up to the end of the first stop string in it; None where there is none."""
        ends = [text.find(s) + len(s) for s in self.stop if s in text]
        return text[: min(ends)] if ends else None


def search(decoder: Decoder, most: int, decoding: Decoding, history: Tensor, end: int | None) -> Tensor:
    """The symbols [N, beams, t] of the best sequences, best first. Arguments as for ``decode.beam``."""
    assert decoding.beams is not None
    penalty = 1.0 if decoding.length_penalty is None else decoding.length_penalty
    return beam(
        decoder, most, decoding.beams, length_penalty=penalty, processor=decoding.processor, history=history, end=end
    ).symbols


def drawn(
    decoder: Decoder,
    draft: Decoder | None,
    most: int,
    decoding: Decoding,
    generator: torch.Generator,
    history: Tensor,
    told: Tensor,
    end: int | None,
    text: Callable[[list[int]], str],
) -> Iterator[Tensor]:
    """Symbols [N] one after the other, by the model and, where there is one, its draft. Arguments as for
    ``decode.stream``; ``text`` spells symbols."""
    stop = None
    if decoding.stop:
        inner, reach = stop_strings(text, decoding.stop), 4 * max(map(len, decoding.stop)) + 1
        # reach in symbols: each has a byte or more, and a character at most four
        stop = lambda new: inner(new[:, -reach:])  # noqa: E731
    source = None if decoding.greedy else generator
    options: dict[str, Any] = {"processor": decoding.processor, "history": history, "end": end, "stop": stop}
    if draft is None:
        return stream(decoder, most, source, told=told, **options)
    return speculative(decoder, draft, most, source, k=decoding.draft_symbols or 4, **options)
