"""The decoder of a net over sequences that reads and writes symbols."""

from __future__ import annotations

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.nn.emission import TokenHead
from pofx.nn.encoders import Encoded, told
from pofx.nn.sequence import SequenceNet


class NetDecoder:
    """``Decoder`` over a net and its symbols: each symbol is read once, into the net's cache.

    A net of limited context reads what is longer in the windows of ``nn.windows.spans``, which also score: a window
    that is full moves on by ``stride``, and what it keeps is read again.

    Args:
        net, emission: in eval mode.
        prompt: [N, t], t >= 1, what is read first; -1 is the beginning.
        most: symbols that will be pushed at most, beyond the prompt.
        given: the contexts, whose vectors [N, width] are added to every input; None where there are none.
        stride: how far a full window moves; half of the longest unless said.
    """

    def __init__(
        self,
        net: SequenceNet,
        emission: TokenHead,
        prompt: Tensor,
        most: int,
        given: Encoded | None = None,
        stride: int | None = None,
    ) -> None:
        if prompt.shape[1] == 0:
            raise UsageError("A prompt without symbols gives no distribution of the next.", "Begin with -1.")
        self.net, self.emission, self.given = net, emission, given
        whole = prompt.shape[1] + most
        self.block = min(whole, net.longest or whole)
        self.stride = stride or max(1, self.block // 2)
        self.cache = net.cache(len(prompt), self.block, *told(given))
        self.past, self.start, self.size = prompt[:, :0], 0, 0  # read so far: ``size``; the window is from ``start`` on
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
        if not k:
            return
        self.last = None  # the output before is not kept: strategies read on first
        self.past, self.size = self.past[:, : self.past.shape[1] - k], self.size - k
        start = self.stride * -(-max(0, self.size - self.block) // self.stride)
        if start == self.start:
            self.cache.rewind(k)
        else:  # back into the window before
            self._begin(start)
            self._outputs(self.past[:, start:])

    def reorder(self, rows: Tensor) -> None:
        self.cache.reorder(rows)
        self.past = self.past[rows]
        self.last = None if self.last is None else self.last[rows]
        self.given = None if self.given is None else self.given[rows]

    @torch.no_grad()
    def _read(self, symbols: Tensor) -> Tensor:
        """The net's outputs [N, k, width] after each of these symbols [N, k]."""
        self.past, parts = torch.cat([self.past, symbols], 1), []
        while self.size < self.past.shape[1]:
            first = self.size
            if self.size - self.start == self.block:
                self._begin(self.start + self.stride)
                first = self.start
            stop = min(self.past.shape[1], self.start + self.block)
            parts.append(self._outputs(self.past[:, first:stop])[:, self.size - first :])
            self.size = stop
        y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        self.last = y[:, -1]
        return y

    def _begin(self, start: int) -> None:
        """An empty window from this symbol on."""
        self.start, self.cache = start, self.net.cache(len(self.past), self.block, *told(self.given))

    @torch.no_grad()
    def _outputs(self, symbols: Tensor) -> Tensor:
        x = self.emission.embed(symbols)
        x = x if self.given is None else x + self.given.vector[:, None]
        return self.cache.step(x[:, 0])[:, None] if x.shape[1] == 1 else self.cache.extend(x)
