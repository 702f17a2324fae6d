"""Beam search: the best few sequences that a breadth-first search of bounded width finds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.decode.processors import UNCHANGED, Processor
from pofx.decode.strategies import Decoder, Written, proper


class Beams(NamedTuple):
    """The best sequences, best first.

    Attributes:
        symbols: [N, beams, t] int64, -1 after the end.
        values: [N, beams]: log p of the new symbols in nats / (their number ** length_penalty); -inf where
            there are fewer sequences than beams.
    """

    symbols: Tensor
    values: Tensor


@torch.no_grad()
def beam(
    decoder: Decoder,
    most: int,
    beams: int,
    *,
    length_penalty: float = 1.0,
    hasty: bool = False,
    processor: Processor = UNCHANGED,
    history: Tensor | None = None,
    end: int | None = None,
) -> Beams:
    """The ``beams`` best sequences of at most ``most`` new symbols (Lowerre 1976; Wu et al. 2016).

    At each length the best 2 * beams continuations are looked at: those of the first ``beams`` that end
    are finished, the best ``beams`` that do not go on. The search stops when no sequence that goes on can
    still beat the worst finished one, so that with beams enough for all sequences it is exhaustive. It is
    transformers' beam search with ``early_stopping="never"``, or, where it is ``hasty``, ``False``. Each row's search
    is its own: one that is over leaves the decoder, and the others go on.

    Args:
        decoder: has read the prompt of N rows; afterwards it holds ``beams`` rows for each whose search went on.
        most, history, end: as for ``stream``.
        beams: the width of the search.
        length_penalty: log-probabilities are divided by (number of symbols) ** this; 0 ranks by probability alone,
            which prefers short sequences, higher values prefer longer ones.
        hasty: a search is over once no sequence that goes on is better than the worst finished one as it stands.
        processor: changes the log-probabilities; they are not renormalised afterwards.
    """
    if beams < 1:
        raise UsageError(f"Cannot search with {beams} beams.", "Ask for 1 or more.")
    if not math.isfinite(length_penalty):
        raise UsageError(f"A length penalty of {length_penalty} ranks nothing.", "Use 1 for the mean per symbol.")
    logits = decoder.logits()
    (n, size), device = logits.shape, logits.device
    prompt = Written(logits, most, history, end).history
    past = prompt.repeat_interleave(beams, 0).unflatten(0, (n, beams))  # [N, beams, t]
    left = torch.arange(n, device=device)  # rows whose search is not over
    decoder.reorder(torch.arange(n, device=device).repeat_interleave(beams))
    going = torch.full((n, beams), -math.inf, device=device, dtype=logits.dtype)
    going[:, 0] = 0  # all beams are alike at first: one of them counts
    room = min(most, 64)
    symbols = torch.full((n, beams, room), -1, device=device)
    values = torch.full_like(going, -math.inf)
    for length in range(1, most + 1):
        if length > room:
            symbols = torch.nn.functional.pad(symbols, (0, min(room, most - room)), value=-1)
            room = symbols.shape[-1]
        proper(logits := decoder.logits())
        log_p = processor(logits.log_softmax(-1), past.flatten(0, 1)).unflatten(0, (len(left), beams))
        total, index = (going[..., None] + log_p).flatten(1).topk(min(2 * beams, beams * size))
        parent, symbol = index // size, index % size
        longer = torch.cat([_rows(past, parent), symbol[..., None]], -1)
        ends = torch.full_like(symbol, length == most, dtype=torch.bool)
        if end is not None:
            ends = ends | (symbol == end)

        finished = torch.where(ends, total / length**length_penalty, -math.inf)[:, :beams]
        new = torch.nn.functional.pad(longer[:, :beams, prompt.shape[1] :], (0, room - length), value=-1)
        values[left], best = torch.cat([values[left], finished], 1).topk(beams)
        symbols[left] = _rows(torch.cat([symbols[left], new], 1), best)

        going, on = total.masked_fill(ends, -math.inf).topk(beams)
        # log-probabilities only fall, and the most that length can help is its own share of the value
        bound = going[:, 0] / (most if length_penalty > 0 and not hasty else length) ** length_penalty
        more = bound > values[left, -1]
        if not more.any():
            break
        past, parent, symbol = _rows(longer, on)[more], parent.gather(1, on)[more], symbol.gather(1, on)[more]
        first, left, going = torch.arange(len(left), device=device)[more, None] * beams, left[more], going[more]
        decoder.reorder((first + parent).flatten())
        decoder.push(symbol.flatten())
    symbols = symbols.masked_fill(values[..., None] == -math.inf, -1)
    return Beams(symbols[..., : int((symbols >= 0).sum(-1).max())], values)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x [N, K, t] at index [N, J]: [N, J, t]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
