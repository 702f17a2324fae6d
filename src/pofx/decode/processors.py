"""Processors of the next symbol's logits: what is changed or cut before a symbol is drawn.

    name          what it does to p(next symbol)
    Temperature   p^(1/T), renormalised (Ackley, Hinton & Sejnowski 1985)
    TopK          only the k likeliest (Fan, Lewis & Dauphin 2018)
    TopP          only the smallest set of likeliest symbols that holds the mass (nucleus: Holtzman et al. 2020)
    MinP          only symbols at least this share as likely as the likeliest (Nguyen et al. 2024)
    Typical       only those whose surprise is nearest to the entropy, up to the mass (Meister et al. 2023)
    Repetition    symbols of the history made less likely (Keskar et al. 2019)

Each is a function ``(logits [N, V], history [N, t] int64) -> logits [N, V]``; a cut symbol gets -inf. In the
history -1 stands for no symbol: padding at the left, or what a row that has ended no longer writes. Given
the same logits, the results equal those of the classes of the same purpose in Hugging Face's transformers,
ties included: what is drawn here can be compared with what is drawn there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pofx.core.options import POSITIVE, SHARE, Options, Range

Processor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Temperature(Options):
    """Logits divided by ``value`` > 0: below 1 sharper, above 1 flatter.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
        >>> Temperature(0.5)(logits, torch.empty(1, 0, dtype=torch.int64)).softmax(-1)
        tensor([[0.9074, 0.0741, 0.0185]])
    """

    value: float = field(metadata={"remedy": "Use greedy decoding for the likeliest symbol, or leave it out."})

    ranges = {"value": POSITIVE}

    def __call__(self, logits: Tensor, history: Tensor) -> Tensor:
        return logits / self.value


@dataclass(frozen=True)
class TopK(Options):
    """The ``k`` likeliest symbols, and those exactly as likely as the k-th; all of them where k > V.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
        >>> TopK(2)(logits, torch.empty(1, 0, dtype=torch.int64)).softmax(-1)
        tensor([[0.7778, 0.2222, 0.0000]])
    """

    k: int = field(metadata={"remedy": "Leave it out to keep all symbols."})

    def __call__(self, logits: Tensor, history: Tensor) -> Tensor:
        least = logits.topk(min(self.k, logits.shape[-1])).values[..., -1:]
        return logits.masked_fill(logits < least, -math.inf)


@dataclass(frozen=True)
class TopP(Options):
    """The likeliest symbols that together hold at least ``mass`` in (0, 1]; never none.

    The mass left out is summed from the unlikely end, where floating point keeps its digits. At 1 only
    symbols go whose probability underflows to zero.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
        >>> TopP(0.6)(logits, torch.empty(1, 0, dtype=torch.int64)).softmax(-1)
        tensor([[1., 0., 0.]])
    """

    mass: float = field(metadata={"remedy": "Use greedy decoding, or leave it out to keep all symbols."})

    ranges = {"mass": Range(0, 1, above=True)}

    def __call__(self, logits: Tensor, history: Tensor) -> Tensor:
        ordered, order = logits.sort(-1)
        out = ordered.softmax(-1).cumsum(-1) <= 1 - self.mass
        out[..., -1] = False
        return logits.masked_fill(out.scatter(-1, order, out), -math.inf)


@dataclass(frozen=True)
class MinP(Options):
    """Symbols of at least ``share`` in [0, 1] of the likeliest symbol's probability.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
        >>> MinP(0.2)(logits, torch.empty(1, 0, dtype=torch.int64)).softmax(-1)  # 0.2 of 0.7 is 0.14
        tensor([[0.7778, 0.2222, 0.0000]])
    """

    share: float = field(metadata={"remedy": "Leave it out to keep all symbols."})

    ranges = {"share": SHARE}

    def __call__(self, logits: Tensor, history: Tensor) -> Tensor:
        p = logits.softmax(-1)
        return logits.masked_fill(p < self.share * p.amax(-1, keepdim=True), -math.inf)


@dataclass(frozen=True)
class Typical(Options):
    """Symbols in the order of |surprise - entropy| until they hold ``mass`` in (0, 1): the likeliest may go.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()  # entropy 1.28 nats; surprises 0.92, 1.20, 1.61, 2.30
        >>> Typical(0.25)(logits, torch.empty(1, 0, dtype=torch.int64)).softmax(-1)
        tensor([[0., 1., 0., 0.]])
    """

    mass: float = field(metadata={"remedy": "Leave it out to keep all symbols."})

    ranges = {"mass": Range(0, 1, above=True, below=True)}

    def __call__(self, logits: Tensor, history: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        entropy = -(log_p * log_p.exp()).nansum(-1, keepdim=True)  # a cut symbol: 0 log 0 = 0
        distance, order = (-log_p - entropy).abs().sort(-1)
        mass = logits.gather(-1, order).softmax(-1).cumsum(-1)
        last = (mass < self.mass).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        out = distance > distance.gather(-1, last)
        return logits.masked_fill(out.scatter(-1, order, out), -math.inf)


@dataclass(frozen=True)
class Repetition(Options):
    """Logits of symbols in the history divided by ``penalty`` > 0 where positive, else multiplied by it.

    Unlike the others it depends on where the logits have their zero, which a softmax does not see. Symbols
    outside 0 .. V-1 in the history are passed over.

    Example:
        >>> import torch
        >>> Repetition(2.0)(torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[0, 1]]))
        tensor([[ 0.5000, -2.0000,  0.5000]])
    """

    penalty: float = field(metadata={"remedy": "Use 1.2 against repetition, or 1 for none."})

    ranges = {"penalty": POSITIVE}

    def __call__(self, logits: Tensor, history: Tensor) -> Tensor:
        n, size = logits.shape
        place = torch.where((history >= 0) & (history < size), history, size)
        seen = torch.zeros(n, size + 1, dtype=torch.bool, device=logits.device)
        seen = seen.scatter(1, place, torch.ones_like(place, dtype=torch.bool))[:, :size]
        return torch.where(seen, torch.where(logits < 0, logits * self.penalty, logits / self.penalty), logits)


@dataclass(frozen=True)
class Compose:
    """The processors one after the other; without any, the logits as they are."""

    processors: tuple[Processor, ...] = ()

    def __call__(self, logits: Tensor, history: Tensor) -> Tensor:
        for processor in self.processors:
            logits = processor(logits, history)
        return logits


def compose(*processors: Processor) -> Compose:
    """``compose(f, g)`` does f first."""
    return Compose(processors)


UNCHANGED = compose()


def processors(
    *,
    repetition: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical: float | None = None,
) -> Compose:
    """Those that are named, in the order in which transformers' ``generate`` applies them.

    Raises UsageError for a value that cannot be.

    Example:
        >>> processors(temperature=0.8, top_k=40).processors
        (Temperature(value=0.8), TopK(k=40))
    """
    named: dict[Any, float | None] = {
        Repetition: repetition, Temperature: temperature, TopK: top_k, TopP: top_p, MinP: min_p, Typical: typical,
    }  # fmt: skip
    return compose(*(kind(value) for kind, value in named.items() if value is not None))
