"""Texts of paths: the likeliest of a distribution over blank and symbols in each frame (Graves et al. 2006).

A path has blank (0) or a symbol (number + 1) in each frame; its text is the path without repeats, then without blanks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def collapsed(path: Tensor, frames: Tensor) -> Tensor:
    """The texts [N, L] of paths [N, T], of which the first ``frames`` [N] count; -1 after the end."""
    before = torch.nn.functional.pad(path, (1, 0))[:, :-1]
    kept = (path > 0) & (path != before) & (torch.arange(path.shape[1], device=path.device) < frames[:, None])
    order, count = (~kept).long().argsort(dim=1, stable=True), kept.sum(1)
    texts = (path - 1).gather(1, order)[:, : int(count.max()) if len(count) else 0]
    return texts.masked_fill(torch.arange(texts.shape[1], device=path.device) >= count[:, None], -1)


def prefix_search(log_p: Tensor, beams: int) -> list[list[int]]:
    """Texts that a search of bounded width finds likely, best first, at most ``beams`` (Hannun et al. 2014, alg. 1).

    After each frame it keeps the ``beams`` prefixes whose paths so far, those that end in a blank and those that end in
    the last symbol, are likeliest together. With beams enough for all prefixes it sums all paths of every text.

    Args:
        log_p: log p of blank and of each symbol in each frame [T, 1 + symbols], float64.
    """
    none = log_p.new_full((1,), -torch.inf)
    prefixes: list[tuple[int, ...]] = [()]
    blank, symbol = log_p.new_zeros(1), none  # log p of paths to each prefix, by what is in the last frame
    for now in log_p:
        total, places = torch.logaddexp(blank, symbol), {p: i for i, p in enumerate(prefixes)}
        last = torch.tensor([p[-1] if p else -1 for p in prefixes], device=log_p.device)
        again = torch.where(last >= 0, symbol + now[1 + last], -torch.inf)  # the same symbol goes on
        longer = total[:, None] + now[1:]  # [beams, symbols]
        ended = (last >= 0).nonzero()[:, 0]
        longer[ended, last[ended]] = blank[ended] + now[1 + last[ended]]  # after a blank it is one more
        for i, p in enumerate(prefixes):  # what makes a prefix that is kept of a shorter one is no other
            if p and (j := places.get(p[:-1])) is not None:
                again[i] = torch.logaddexp(again[i], longer[j, p[-1]])
                longer[j, p[-1]] = -torch.inf
        blank, symbol = torch.cat([total + now[0], none.expand(longer.numel())]), torch.cat([again, longer.flatten()])
        kept = torch.logaddexp(blank, symbol)
        best = [i for i in kept.topk(min(beams, len(kept))).indices.tolist() if kept[i] > -torch.inf]
        n, size = len(prefixes), longer.shape[1]
        prefixes = [prefixes[i] if i < n else (*prefixes[(i - n) // size], (i - n) % size) for i in best]
        blank, symbol = blank[best], symbol[best]
    return [list(p) for p in prefixes]
