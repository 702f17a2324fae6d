"""The decoder of a net over sequences that reads and writes symbols."""

from __future__ import annotations

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.nn.emission import Symbols
from pofx.nn.sequence import SequenceNet


class NetDecoder:
    """``Decoder`` over a net and its symbols: each symbol is read once, into the net's cache.

    Args:
        net, emission: in eval mode.
        prompt: [N, t], t >= 1, what is read first; -1 is the beginning.
        most: symbols that will be pushed at most, beyond the prompt.
        given: the context [N, width], added to every input; None where there is none.
    """

    def __init__(
        self, net: SequenceNet, emission: Symbols, prompt: Tensor, most: int, given: Tensor | None = None
    ) -> None:
        n, size = prompt.shape
        if size == 0:
            raise UsageError("A prompt without symbols gives no distribution of the next.", "Begin with -1.")
        self.emission, self.given = emission, given
        self.cache = net.cache(n, size + most)
        self.last: Tensor | None = None  # the net's output [N, width] after the last symbol
        self._read(prompt)

    def logits(self) -> Tensor:
        if self.last is None:
            raise UsageError("The decoder has forgotten its last symbols.", "Push one before asking for logits.")
        return self.emission.logits(self.last)

    def push(self, symbol: Tensor) -> None:
        self._read(symbol[:, None])

    def extend(self, symbols: Tensor) -> Tensor:
        return self.emission.logits(self._read(symbols))

    def rewind(self, k: int) -> None:
        if k:
            self.cache.rewind(k)
            self.last = None  # the output before is not kept: strategies read on first

    def reorder(self, rows: Tensor) -> None:
        self.cache.reorder(rows)
        self.last = None if self.last is None else self.last[rows]
        self.given = None if self.given is None else self.given[rows]

    @torch.no_grad()
    def _read(self, symbols: Tensor) -> Tensor:
        x = self.emission.embed(symbols)
        x = x if self.given is None else x + self.given[:, None]
        y = self.cache.step(x[:, 0])[:, None] if x.shape[1] == 1 else self.cache.extend(x)
        self.last = y[:, -1]
        return y
