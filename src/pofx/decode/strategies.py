"""Decoding: from a model that reads one symbol after the other to new symbols.

    name         what it writes
    stream       draws of p, or of what the processors make of it; or the likeliest symbol, each time
    beam         the best few sequences that a search of this width finds
    speculative  exactly what ``stream`` draws, in fewer passes of the model, with the help of a draft model

All see the model through ``Decoder`` alone. Symbols are int64 in 0 .. V-1; -1 stands for no symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pofx.core.errors import BadValue, UsageError, WrongShape
from pofx.decode.processors import UNCHANGED, Processor
from pofx.nn.heads import pick

MANY = 8  # rows, of which some may be left out once they have ended

Stop = Callable[[Tensor], Tensor]  # new symbols [N, t] -> which rows end here, bool [N]


class Decoder(Protocol):
    """A model that has read some symbols of N rows, with its cache. All rows have read equally many."""

    def logits(self) -> Tensor:
        """[N, V]: of the next symbol, given all symbols read."""
        ...

    def push(self, symbol: Tensor) -> None:
        """Read one more symbol [N] int64 of every row."""
        ...

    def extend(self, symbols: Tensor) -> Tensor:
        """Read symbols [N, k], k >= 1, in one pass; logits [N, k, V] after each of them."""
        ...

    def rewind(self, k: int) -> None:
        """Forget the last k >= 0 symbols of every row. The strategies read on before they ask for ``logits``."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Rows [N'] int64 of the present N become the new rows: repeated, dropped or exchanged."""
        ...


# ------------------------------------------------------------------------------- one symbol at a time


def stream(
    decoder: Decoder,
    most: int,
    generator: torch.Generator | None,
    *,
    processor: Processor = UNCHANGED,
    history: Tensor | None = None,
    end: int | None = None,
    stop: Stop | None = None,
    told: Tensor | None = None,
) -> Iterator[Tensor]:
    """New symbols as they are drawn: [N] int64 per step, -1 in rows that have ended.

    The symbol that ends a row is part of it. The last symbols are not read back into the decoder.

    Args:
        decoder: has read the prompt.
        most: new symbols per row at most; fewer where every row ends before.
        generator: the source of the draws; None takes the likeliest symbol instead.
        processor: changes the logits before the draw.
        history: the prompt [N, t] for the processor, -1 where a row has no symbol; nothing where None.
        end: the symbol that ends a row.
        stop: given the new symbols [N, t] so far, the rows bool [N] that end here, e.g. ``stop_strings``.
        told: of rows whose prompt goes on, its symbols [N, t], -1 where a row has no more: they stand for draws.

    Raises UsageError, WrongShape; BadValue where the model gives no distribution (NaN, all -inf).

    Example:
        >>> import torch
        >>> class Counts:  # after symbol s comes s + 1, in all likelihood
        ...     def __init__(self, last): self.last = last
        ...     def logits(self): return 5.0 * torch.eye(4)[(self.last + 1).clamp(max=3)]
        ...     def push(self, symbol): self.last = symbol
        >>> collect(stream(Counts(torch.tensor([0, 1])), 5, None, end=3))
        tensor([[ 1,  2,  3],
                [ 2,  3, -1]])
    """
    written = Written(decoder.logits(), most, history, end, stop, told)
    return _stream(decoder, most, generator, processor, written)


@torch.no_grad()
def _stream(
    decoder: Decoder, most: int, generator: torch.Generator | None, processor: Processor, written: Written
) -> Iterator[Tensor]:
    rows = None  # those that the decoder still holds, where these are fewer
    for left in range(most - 1, -1, -1):
        if rows is None:
            symbol = written.told(choose(processor(decoder.logits(), written.history), generator))
        else:
            symbol = torch.zeros_like(written.ended, dtype=torch.int64)
            symbol[rows] = choose(processor(decoder.logits(), written.history[rows]), generator)
            symbol = written.told(symbol)
        yield written.add(symbol)
        if left == 0 or written.ended.all():
            return
        # rows that have ended read on, unheard, until half have; where noise is drawn, for all rows, until the last
        held = len(written.ended) if rows is None else len(rows)
        if generator is None and held >= MANY and 2 * int((~written.ended).sum()) <= held:
            on = (~written.ended).nonzero()[:, 0]
            decoder.reorder(on if rows is None else torch.searchsorted(rows, on))
            rows = on
        decoder.push(symbol if rows is None else symbol[rows])


def collect(steps: Iterable[Tensor]) -> Tensor:
    """All symbols [N, t] of a stream of [N]."""
    return torch.stack(list(steps), 1)


def stop_strings(text: Callable[[list[int]], str], strings: Sequence[str]) -> Stop:
    """Ends a row when its new text holds one of ``strings``, also where it straddles symbols.

    Args:
        text: symbols to text.

    Example:
        >>> import torch
        >>> stop = stop_strings(lambda symbols: "".join("ab."[s] for s in symbols), ["b."])
        >>> stop(torch.tensor([[0, 1, 2], [1, 0, 2]]))
        tensor([ True, False])
    """
    if not strings or not all(strings):
        raise UsageError(f"A stop string needs at least one character; got {list(strings)}.", "Leave out empty ones.")

    def stop(new: Tensor) -> Tensor:
        texts = [text([s for s in row if s >= 0]) for row in new.tolist()]
        return torch.tensor([any(s in t for s in strings) for t in texts], device=new.device)

    return stop


# ------------------------------------------------------------------------------- what strategies share


class Written:
    """The symbols of N rows so far, and which rows have ended."""

    def __init__(
        self,
        logits: Tensor,
        most: int,
        history: Tensor | None,
        end: int | None,
        stop: Stop | None = None,
        told: Tensor | None = None,
    ) -> None:
        n, size = logits.shape
        if most < 1:
            raise UsageError(f"Cannot write {most} new symbols.", "Ask for 1 or more.")
        if end is not None and not 0 <= end < size:
            raise UsageError(f"The end symbol {end} is not in 0 .. {size - 1}.", "Give a symbol of the model, or None.")
        if history is None:
            history = torch.empty(n, 0, dtype=torch.int64, device=logits.device)
        if history.ndim != 2 or len(history) != n or history.dtype != torch.int64:
            raise WrongShape(
                f"The history is {history.dtype} {tuple(history.shape)}; the decoder has {n} rows.",
                f"Give int64 [{n}, t], or leave it out.",
            )
        self.ended = torch.zeros(n, dtype=torch.bool, device=logits.device)
        self._line, self._size, self._prompt = history, history.shape[1], history.shape[1]
        self._end, self._stop, self._told = end, stop, history[:, :0] if told is None else told

    @property
    def history(self) -> Tensor:
        """[N, t], -1 after the end of a row."""
        return self._line[:, : self._size]

    def told(self, symbol: Tensor) -> Tensor:
        """The next symbol [N]: the one drawn, or, where the prompt goes on, its own."""
        place = self._size - self._prompt
        if place >= self._told.shape[1]:
            return symbol
        own = self._told[:, place]
        return torch.where(own >= 0, own, symbol)

    def add(self, symbol: Tensor) -> Tensor:
        """Note one symbol [N] of every row; the same with -1 in rows that had ended before."""
        symbol = symbol.masked_fill(self.ended, -1)
        if self._size == self._line.shape[1]:  # twice the room: a stream may be of any length
            self._line = torch.nn.functional.pad(self._line, (0, max(self._size, 64)), value=-1)
        self._line[:, self._size], self._size = symbol, self._size + 1
        if self._end is not None:
            self.ended = self.ended | (symbol == self._end)
        if self._stop is not None:
            new, k = self.history[:, self._prompt :].clone(), self._told.shape[1]
            new[:, :k].masked_fill_(self._told[:, : new.shape[1]] >= 0, -1)
            self.ended = self.ended | self._stop(new if self._end is None else new.masked_fill(new == self._end, -1))
        return symbol


def choose(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """A symbol [N] drawn from logits [N, V], or the likeliest where there is no generator.

    Raises BadValue where a row of logits is no distribution.
    """
    proper(logits)
    return logits.argmax(-1) if generator is None else pick(logits, generator)


def proper(logits: Tensor) -> None:
    """Raises BadValue where a row of logits [..., V] is no distribution."""
    if not logits.amax(-1).isfinite().all():  # NaN and +inf come through a maximum, all -inf too
        raise BadValue(
            "The logits of the next symbol are NaN, infinite, or leave no symbol.",
            "Look at the model's training, and at what its processors cut.",
        )
