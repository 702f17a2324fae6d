"""A net over sequences that reads steps into its cache, and the decoder that it is where steps are symbols."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.nn.emission import TokenHead
from pofx.nn.encoders import Encoded, told
from pofx.nn.sequence import SequenceNet


class Reader:
    """A net that reads steps one after the other: each once, into its cache.

    A net of limited context reads what is longer in the windows of ``codecs.windows.spans``, as ``log_prob`` does: a
    window that is full moves on by ``stride``, and what it keeps is read again.

    Args:
        net: in eval mode.
        embed: steps [n, k, ...] and the number of the first -> inputs of the net [n, k, width].
        n: sequences.
        most: steps that will be read at most.
        stride: how far a full window moves; half of the longest unless said.
        given: the contexts, whose tokens the net attends to; None where there are none.
    """

    def __init__(
        self,
        net: SequenceNet,
        embed: Callable[[Tensor, int], Tensor],
        n: int,
        most: int,
        stride: int | None = None,
        given: Encoded | None = None,
    ) -> None:
        self.net, self.embed, self.n, self.given = net, embed, n, given
        self.of: Tensor | None = None  # the context of each sequence; None: its own
        self.block = min(most, net.longest or most)
        self.stride = stride or max(1, self.block // 2)
        self.past: list[Tensor] = []
        self.size = 0  # steps that are read
        self._begin(0)

    @torch.no_grad()
    def read(self, u: Tensor) -> Tensor:
        """The net's outputs [n, k, width] after each of these steps [n, k, ...]."""
        self.past.append(u)
        if (whole := self.size + u.shape[1]) <= self.start + self.block:
            first, self.size = self.size, whole
            return self._outputs(u, first)
        line, parts = self._line(), []
        while self.size < whole:
            first = self.size
            if self.size - self.start == self.block:
                self._begin(self.start + self.stride)
                first = self.start
            stop = min(whole, self.start + self.block)
            parts.append(self._outputs(line[:, first:stop], first)[:, self.size - first :])
            self.size = stop
        return torch.cat(parts, 1)

    @torch.no_grad()
    def rewind(self, k: int) -> None:
        """Forget the last k steps."""
        self.size -= k
        self.past = [self._line()[:, : self.size]]
        start = self.stride * -(-max(0, self.size - self.block) // self.stride)
        if start == self.start:
            self.cache.rewind(k)
        else:  # back into the window before
            self._begin(start)
            self._outputs(self.past[0][:, start:], start)

    def reorder(self, rows: Tensor) -> None:
        """Sequence ``rows[i]`` becomes sequence i."""
        self.cache.reorder(rows)
        self.past, self.n = [self._line()[rows]], len(rows)
        self.of = rows if self.of is None else self.of[rows]

    def _line(self) -> Tensor:
        """All steps that were given."""
        self.past = [torch.cat(self.past, 1)]
        return self.past[0]

    def _begin(self, start: int) -> None:
        """An empty window from this step on."""
        given = self.given if self.given is None or self.of is None else self.given[self.of]
        self.start, self.cache = start, self.net.cache(self.n, self.block, *told(given))

    def _outputs(self, u: Tensor, first: int) -> Tensor:
        x = self.embed(u, first)
        return self.cache.step(x[:, 0])[:, None] if x.shape[1] == 1 else self.cache.extend(x)


class NetDecoder(Reader):
    """``Decoder`` over a net and its symbols.

    Args:
        net, emission: in eval mode.
        prompt: [N, t], t >= 1, what is read first; -1 is the beginning.
        most: symbols that will be pushed at most, beyond the prompt.
        given: the contexts, whose vectors [N, width] are added to every input; None where there are none.
        stride: as of ``Reader``.
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
        self.emission = emission
        super().__init__(net, self._embed, len(prompt), prompt.shape[1] + most, stride, given)
        self.last: Tensor | None = self.read(prompt)[:, -1]  # the net's output [N, width] after the last symbol

    def logits(self) -> Tensor:
        if self.last is None:
            raise UsageError("The decoder has forgotten its last symbols.", "Push one before asking for logits.")
        return self.emission.logits(self.last)

    def push(self, symbol: Tensor) -> None:
        self.last = self.read(symbol[:, None])[:, -1]

    def extend(self, symbols: Tensor) -> Tensor:
        y = self.read(symbols)
        self.last = y[:, -1]
        return self.emission.logits(y)

    def rewind(self, k: int) -> None:
        if k:
            self.last = None  # the output before is not kept: strategies read on first
            super().rewind(k)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.last = None if self.last is None else self.last[rows]

    def _embed(self, symbols: Tensor, first: int) -> Tensor:
        x = self.emission.embed(symbols)
        if self.given is None:
            return x
        vector = self.given.vector
        return x + (vector if self.of is None else vector[self.of])[:, None]
