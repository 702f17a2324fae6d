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
from pofx.decode.strategies import Decoder, Stop, stop_strings


def processor_of(decoding: Decoding) -> Processor:
    names = ("temperature", "top_k", "top_p", "min_p", "typical")
    return processors(repetition=decoding.repetition_penalty, **{name: getattr(decoding, name) for name in names})


def source(decoding: Decoding, generator: torch.Generator) -> torch.Generator | None:
    """Of the draws; None where there are none."""
    return None if decoding.greedy else generator


def past(decoding: Decoding, line: list[Tensor]) -> Tensor:
    """The symbols [N, t] that the processor sees; put together only where it looks at them."""
    return line[0] if decoding.repetition_penalty is None else torch.cat(line, 1)


def until_stop(decoding: Decoding, text: str) -> str | None:
    """The text up to the end of the first stop string in it; None where there is none."""
    ends = [text.find(s) + len(s) for s in decoding.stop if s in text]
    return text[: min(ends)] if ends else None


def stops(decoding: Decoding, text: Callable[[list[int]], str]) -> Stop | None:
    """Which rows end with a stop string; ``text`` spells symbols. None where there is none."""
    if not decoding.stop:
        return None
    inner = stop_strings(text, decoding.stop)
    reach = 4 * max(map(len, decoding.stop)) + 1  # symbols: each has a byte or more, and a character at most four
    return lambda new: inner(new[:, -reach:])


def search(decoder: Decoder, most: int, decoding: Decoding, history: Tensor, end: int | None) -> Tensor:
    """The symbols [N, beams, t] of the best sequences, best first. Arguments as for ``decode.beam``."""
    assert decoding.beams is not None
    penalty = 1.0 if decoding.length_penalty is None else decoding.length_penalty
    how: Any = {"length_penalty": penalty, "processor": processor_of(decoding), "history": history, "end": end}
    return beam(decoder, most, decoding.beams, **how).symbols


def drafted(
    target: Decoder,
    draft: Decoder,
    most: int,
    decoding: Decoding,
    generator: torch.Generator,
    history: Tensor,
    end: int | None,
    stop: Stop | None,
) -> Iterator[Tensor]:
    """Symbols [N] one after the other. Arguments as for ``decode.speculative``."""
    return speculative(
        target,
        draft,
        most,
        source(decoding, generator),
        k=decoding.draft_symbols or 4,
        processor=processor_of(decoding),
        history=history,
        end=end,
        stop=stop,
    )
