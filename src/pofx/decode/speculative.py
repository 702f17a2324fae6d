"""Speculative sampling: a small model drafts, the large one reads many symbols in one pass and corrects.

(Leviathan, Kalman & Matias 2023; Chen et al. 2023.) Exact: the symbols are distributed as if the target
model had drawn each of them itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.decode.processors import UNCHANGED, Processor
from pofx.decode.strategies import Decoder, Stop, Written, choose
from pofx.nn.heads import uniform


@dataclass
class Tally:
    """What the draft was worth. Counts rows that had not ended, whatever the other rows of the batch did.

    Attributes:
        passes: of the target model.
        symbols: that the rows advanced by, in all passes.
        tested, accepted: drafted symbols up to the first that is refused, and those not refused.
    """

    passes: int = 0
    symbols: int = 0
    tested: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """The share of drafted symbols accepted: the mean of 1 - TV(target, draft); NaN before any."""
        return self.accepted / self.tested if self.tested else float("nan")


def speculative(
    target: Decoder,
    draft: Decoder,
    most: int,
    generator: torch.Generator | None,
    *,
    k: int = 4,
    processor: Processor = UNCHANGED,
    history: Tensor | None = None,
    end: int | None = None,
    stop: Stop | None = None,
    tally: Tally | None = None,
) -> Iterator[Tensor]:
    """The new symbols that ``stream(target, ...)`` would draw (in distribution; the same ones without generator).

    Each round the draft writes k symbols and the target reads them in one pass. A symbol x drawn from q is
    accepted with probability min(1, p(x) / q(x)); instead of the first refused one stands a draw of
    max(0, p - q), normalised; after k accepted ones, a draw of p. A round ends for all rows with the first
    row that refuses. Whether a row gets a symbol at some place in a round thus hangs on earlier places
    alone, and every symbol that it gets is one of p.

    Args:
        target, draft: have read the same prompt. Afterwards they have read symbols that were not yielded.
        most, generator, history, end, stop: as for ``stream``.
        k: symbols drafted a round.
        processor: changes the logits of both: the draws are those of the processed target.
        tally: is counted up, for the acceptance rate.
    """
    if k < 1:
        raise UsageError(f"Cannot draft {k} symbols a round.", "Draft 1 or more, or use sample without a draft.")
    p, q = target.logits(), draft.logits()
    if p.shape != q.shape:
        raise UsageError(
            f"The target has {len(p)} rows of {p.shape[1]} symbols, the draft {len(q)} of {q.shape[1]}.",
            "Use a draft over the same symbols that has read the same prompts.",
        )
    written = Written(p, most, history, end, stop)
    return _rounds(target, draft, most, generator, k, processor, written, tally or Tally())


@torch.no_grad()
def _rounds(
    target: Decoder,
    draft: Decoder,
    most: int,
    generator: torch.Generator | None,
    k: int,
    processor: Processor,
    written: Written,
    tally: Tally,
) -> Iterator[Tensor]:
    unread: Tensor | None = None  # [N, 1]: the last symbol, which the target has yet to read
    behind: Tensor | None = None  # [N, 1 or 2]: what the draft has yet to read
    left = most
    while True:
        live, past = ~written.ended, [written.history]
        xs: list[Tensor] = []
        qs: list[Tensor] = []
        drafted = min(k, left - 1)  # the target adds one
        for i in range(drafted):
            if i > 0:
                draft.push(xs[-1])
            logits = draft.logits() if i > 0 or behind is None else draft.extend(behind)[:, -1]
            qs.append(processor(logits, past[-1]))
            xs.append(choose(qs[-1], generator))
            past.append(torch.cat([past[-1], xs[-1][:, None]], 1))
        ps = [processor(logits, seen) for logits, seen in zip(_read(target, unread, xs), past, strict=True)]
        tests = [_accepted(p, q, x, generator) for p, q, x in zip(ps[:-1], qs, xs, strict=True)]
        passed = torch.stack([*tests, torch.zeros_like(live)]).cumprod(0).sum(0)[live]  # [live rows], 0 .. drafted
        common = int(passed.min())
        tally.passes += 1
        tally.accepted += int(passed.sum())
        tally.tested += int((passed + 1).clamp(max=drafted).sum())

        if common == drafted:
            last = choose(ps[common], generator)
        else:  # rows that pass this test too keep their drafted symbol
            last = torch.where(tests[common], xs[common], _corrected(ps[common], qs[common], generator))
        for symbol in (*xs[:common], last):
            told = written.add(symbol)
            tally.symbols += int((told >= 0).sum())
            yield told
            left -= 1
            if left == 0 or written.ended.all():
                return

        target.rewind(drafted - common)
        unread = behind = last[:, None]
        if common == drafted:
            behind = torch.stack([xs[-1], last], 1)  # the draft has not read its last symbol
        else:
            draft.rewind(drafted - 1 - common)


def _read(target: Decoder, unread: Tensor | None, xs: list[Tensor]) -> list[Tensor]:
    """The target's logits [N, V] before each of the drafted symbols xs and after the last: one pass."""
    before = [] if unread is not None else [target.logits()]
    symbols = [*([] if unread is None else [unread[:, 0]]), *xs]
    return [*before, *(target.extend(torch.stack(symbols, 1)).unbind(1) if symbols else ())]


def _accepted(p: Tensor, q: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Whether x [N], drawn from logits q [N, V], passes for a draw from logits p: bool [N]."""
    if generator is None:
        return x == choose(p, None)
    p_x, q_x = (v.softmax(-1, dtype=torch.float32).gather(-1, x[:, None])[:, 0] for v in (p, q))
    return uniform(p_x, generator) * q_x < p_x


def _corrected(p: Tensor, q: Tensor, generator: torch.Generator | None) -> Tensor:
    """A draw [N] of max(0, p - q), normalised, for logits p and q [N, V]: what the draft gives too rarely."""
    if generator is None:
        return choose(p, None)
    p, q = (v.softmax(-1, dtype=torch.float32) for v in (p, q))
    rest = (p - q).clamp(min=0)
    some = rest.sum(-1, keepdim=True) > 0  # else p = q up to rounding
    return choose(torch.where(some, rest, p).log(), generator)
