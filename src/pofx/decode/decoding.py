"""How symbols are drawn from a model where not as its distribution says: the strategies that ``Decoding`` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pofx.core.requests import Decoding
from pofx.decode.beam import beam
from pofx.decode.processors import Processor, processors
from pofx.decode.speculative import speculative
from pofx.decode.strategies import Decoder, stop_strings, stream


def processor_of(decoding: Decoding) -> Processor:
    names = ("temperature", "top_k", "top_p", "min_p", "typical")
    return processors(repetition=decoding.repetition_penalty, **{name: getattr(decoding, name) for name in names})


def until_stop(decoding: Decoding, text: str) -> str | None:
    """The text up to the end of the first stop string in it; None where there is none."""
    ends = [text.find(s) + len(s) for s in decoding.stop if s in text]
    return text[: min(ends)] if ends else None


def search(decoder: Decoder, most: int, decoding: Decoding, history: Tensor, end: int | None) -> Tensor:
    """The symbols [N, beams, t] of the best sequences, best first. Arguments as for ``decode.beam``."""
    assert decoding.beams is not None
    penalty = 1.0 if decoding.length_penalty is None else decoding.length_penalty
    how: Any = {
        "length_penalty": penalty,
        "hasty": decoding.hasty,
        "processor": processor_of(decoding),
        "history": history,
        "end": end,
    }
    return beam(decoder, most, decoding.beams, **how).symbols


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
    options: dict[str, Any] = {"processor": processor_of(decoding), "history": history, "end": end, "stop": stop}
    if draft is None:
        return stream(decoder, most, source, told=told, **options)
    return speculative(decoder, draft, most, source, k=decoding.draft_symbols or 4, **options)
