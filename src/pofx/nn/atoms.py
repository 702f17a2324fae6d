"""Values that repeat: what a column of categories, or a grid, is seen to hold again and again.

Weights of a survey, prices and rounded measurements take few of the values that their grid offers, and a new row takes
one of these more often than a smooth density would think. The predictive rule of the Pitman-Yor process (Pitman and
Yor 1997; as smoothing: Teh 2006) mixes what was counted with what a base says, in each cell j of the column:

    p(v | j) = ((c_v - d)+ + (a + d T_j) p_0(v | j)) / (n_j + a)

c_v counts the value v, n_j all rows of the cell and T_j its distinct values (of a count below d the rest of d is not
taken). It sums to one as p_0 does; discount d and strength a are those of the best leave-one-out likelihood.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DISCOUNTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
STRENGTHS = (0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4, 1e9)  # the last one: the base alone


class Atoms(nn.Module):
    """The counted values of one column, and the density of any value within its cell."""

    elastic = ("value", "mass", "start", "rest")  # what the data fix the sizes of

    value: Tensor  # [U] ascending, those that keep some mass
    mass: Tensor  # [U] c - d
    start: Tensor  # [K + 1] where each cell begins in ``value``
    rest: Tensor  # [K] the share of the base in each cell

    def __init__(self) -> None:
        super().__init__()
        for name in ("value", "mass", "rest"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        self.register_buffer("start", torch.empty(0, dtype=torch.int64))

    def fit(self, value: Tensor, weight: Tensor, cell: Tensor, base: Tensor, cells: int) -> None:
        """Count values [N] of ``weight`` [N] in their ``cell`` [N], of which the base gives the log-density [N]."""
        u, inverse = torch.unique(value, return_inverse=True)
        count = torch.zeros_like(u).index_add_(0, inverse, weight)
        first = torch.full_like(inverse[: len(u)], len(value)).scatter_reduce_(
            0, inverse, torch.arange(len(value), device=value.device), "amin"
        )
        j, p = cell[first], base[first].exp()
        total = torch.zeros(cells, dtype=torch.float64, device=u.device).index_add_(0, j, count)
        d, a = max(((d, a) for d in DISCOUNTS for a in STRENGTHS), key=lambda r: _leave_one_out(count, j, p, total, *r))
        taken = torch.zeros_like(total).index_add_(0, j, count.clamp(max=d))
        keep = count > d
        self.value, self.mass = u[keep], (count - d)[keep] / (total + a)[j[keep]]
        self.start = torch.searchsorted(j[keep], torch.arange(cells + 1, device=u.device))
        self.rest = (a + taken) / (total + a)

    def log_prob(self, value: Tensor, cell: Tensor, base: Tensor) -> Tensor:
        """log p(value | cell) [N], where ``base`` is the base's."""
        if not len(self.value):
            return base
        k = torch.searchsorted(self.value, value).clamp(max=len(self.value) - 1)
        own = torch.where(self.value[k] == value, self.mass[k], 0.0)
        return (own + self.rest[cell] * base.exp()).log()

    def draw(self, value: Tensor, cell: Tensor, generator: torch.Generator) -> Tensor:
        """Values [N] within their cells; ``value`` are draws of the base, kept with its share."""
        if not len(self.value):
            return value
        u = torch.rand(len(cell), generator=generator, dtype=torch.float64, device=cell.device)
        line = torch.cat([self.mass.new_zeros(1), self.mass.cumsum(0)])
        k = torch.searchsorted(line, line[self.start[cell]] + u, right=True) - 1
        return torch.where(u < 1 - self.rest[cell], self.value[k.minimum(self.start[cell + 1] - 1).clamp(min=0)], value)


def _leave_one_out(count: Tensor, j: Tensor, p: Tensor, total: Tensor, d: float, a: float) -> float:
    """sum over rows of log p(v | the other rows): the row's value loses one count, and a single one is gone."""
    taken = torch.zeros_like(total).index_add_(0, j, count.clamp(max=d))
    others = (count - 1).clamp(min=0)
    rest = a + taken[j] - count.clamp(max=d) + others.clamp(max=d)
    held_out = ((others - d).clamp(min=0) + rest * p) / (total[j] - 1 + a).clamp(min=1e-9)
    return float((count * held_out.clamp(min=1e-300).log()).sum())
