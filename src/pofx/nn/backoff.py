"""Tables of counts after histories, each smoothed towards the next shorter history.

    P_0(x) = (n(x) + m_0 base(x)) / (n + m_0)
    P_j(x | h_1..h_j) = (n(h_1..h_j, x) + m_j P_{j-1}(x | h_1..h_{j-1})) / (n(h_1..h_j) + m_j)

This is the predictive probability under a Dirichlet prior of concentration m_j whose mean is the lower
order (MacKay and Peto 1995, "A hierarchical Dirichlet language model"). The concentrations maximise the
leave-one-out likelihood times a weak prior, a logistic density of log m_j, which decides where few data do.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn

from pofx.core.learner import Runtime

CONCENTRATIONS = 2.0 ** torch.arange(-6, 17, dtype=torch.float64)


class Backoff(nn.Module):
    """Tables of counts [groups, histories, symbols] for histories of length 0, 1, ..., len(radices).

    A history h_1, h_2, ... is the number h = h_1 + r_1 (h_2 + r_2 (h_3 + ...)), so that its first j
    symbols are h modulo r_1 ... r_j. Arguments of the methods broadcast.
    """

    concentration: Tensor

    def __init__(self, groups: int, radices: tuple[int, ...], symbols: int) -> None:
        super().__init__()
        self.symbols = symbols
        self.widths = tuple(accumulate(radices, mul, initial=1))
        for j, width in enumerate(self.widths):
            self.register_buffer(f"count{j}", torch.zeros(groups, width, symbols, dtype=torch.float64))
            self.register_buffer(f"total{j}", torch.zeros(groups, width, dtype=torch.float64))
        self.register_buffer("concentration", torch.ones(len(self.widths), groups, dtype=torch.float64))

    def orders(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(counts, totals, concentrations [groups]) by length of history."""
        return [
            (self.get_buffer(f"count{j}"), self.get_buffer(f"total{j}"), m) for j, m in enumerate(self.concentration)
        ]

    def clear(self) -> None:
        """Forget all counts: the base measure is left."""
        for buffer in self.buffers():
            buffer.zero_()
        self.concentration.fill_(1.0)

    def add(self, group: Tensor, history: Tensor, symbol: Tensor, weight: Tensor) -> None:
        """Count at the longest history; ``share`` sums up to the shorter ones."""
        index = ((group * self.widths[-1] + history) * self.symbols + symbol).flatten()
        self.orders()[-1][0].view(-1).scatter_add_(0, index, weight.expand_as(symbol).flatten())

    def share(self, runtime: Runtime) -> None:
        """Sum over the processes; the count of a history is the sum over its continuations."""
        longer = runtime.sum(self.orders()[-1][0])
        for count, total, _ in reversed(self.orders()):
            groups, width, symbols = count.shape
            longer = longer.view(groups, -1, width, symbols).sum(1)
            count.copy_(longer)
            total.copy_(longer.sum(2))

    def prob(
        self, group: Tensor, history: Tensor, symbol: Tensor, base: Tensor, drop: float = 0.0, length: int | None = None
    ) -> Tensor:
        """P(symbol | history), given base(symbol).

        ``drop=1`` leaves one datum of this symbol and history out; ``length`` uses shorter histories.
        """
        p = base
        for count, total, m in self.orders()[: None if length is None else length + 1]:
            row, m = group * count.shape[1] + self._first(history, count.shape[1]), m[group]
            # flat look-ups: several times as fast as indexing by three tensors
            n, of = count.take(row * self.symbols + symbol), total.take(row)
            p = ((n - drop).clamp_(min=0) + m * p) / ((of - drop).clamp_(min=0) + m)
        return p

    def _first(self, history: Tensor, width: int) -> Tensor:
        """The number of the first symbols of ``history``, of which there are ``width``."""
        if width == 1:
            return torch.zeros_like(history)
        return history if width == self.widths[-1] else history % width

    def concentrate(self, base: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Set the concentrations, one order after another, by their leave-one-out likelihood.

        ``base(group, symbol)`` leaves the datum out as well. Returns the leave-one-out log-likelihood
        of the longest histories, summed over all data, in nats.
        """
        nats = self.concentration.new_zeros(())
        for j, (count, total, concentration) in enumerate(self.orders()):
            group, history, symbol = count.nonzero(as_tuple=True)
            n, others = count[group, history, symbol], (total[group, history] - 1).clamp(min=0)
            lower = base(group, symbol)
            lower = self.prob(group, history, symbol, lower, drop=1.0, length=j - 1) if j else lower
            found = []
            for m in CONCENTRATIONS.tolist():
                p = ((n - 1).clamp(min=0) + m * lower) / (others + m)
                found.append(n.new_zeros(len(count)).index_add_(0, group, n * p.log()))
            m, table = CONCENTRATIONS.to(n.device), torch.stack(found)
            best = (table + (m / (1 + m) ** 2).log().unsqueeze(1)).argmax(0)
            concentration.copy_(m[best])
            nats = table.gather(0, best.unsqueeze(0)).sum()
        return nats

    def lines(self, base: Tensor) -> Tensor:
        """Distribution functions after all histories [groups, histories × symbols], given base [groups, symbols].

        They stand end to end and form one rising sequence per group: history h rises from h to h + 1.
        """
        p = base.unsqueeze(1)
        for count, total, concentration in self.orders():
            m = concentration.unsqueeze(1)
            lower = p.repeat(1, count.shape[1] // p.shape[1], 1)
            p = (count + m.unsqueeze(2) * lower) / (total + m).unsqueeze(2)
        cdf = p.cumsum_(2)
        cdf = cdf.div_(cdf[:, :, -1:].clone())
        return (cdf + torch.arange(cdf.shape[1], device=cdf.device).unsqueeze(1)).flatten(1)

    def draw(self, line: Tensor, history: Tensor, generator: torch.Generator) -> Tensor:
        """One symbol after each history [..., N], by inversion of ``line`` [..., histories × symbols]."""
        u = torch.rand(history.shape, generator=generator, dtype=line.dtype, device=line.device)
        u = u * (1 - 1e-9)  # h + u must not round up to h + 1
        return torch.searchsorted(line, history + u, right=True) - history * self.symbols
