"""Values that repeat: what a column of categories, or a grid, is seen to hold again and again.

Weights of a survey, prices and rounded measurements take few of the values that their grid offers, and a new row takes
one of these more often than a smooth density would think. The predictive rule of the Pitman-Yor process (Pitman and
Yor 1997; nested, as smoothing: Teh 2006) mixes what was counted with what a base says, in each cell j of the column:

    p(v | j) = ((c_v - d)+ + (a + d T_j) p_0(v | j)) / (n_j + a)

c_v counts the value v, n_j all rows of the cell and T_j its distinct values (of a count below d the rest of d is not
taken). It sums to one as p_0 does; discount d and strength a are those of the best leave-one-out likelihood. The same
rule again, with this p as its base and counts of the rows alone that agree in one earlier column, tells values that
go with a kind of row: the weight of a survey with age and sex, all values of a row that stands in the table twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DISCOUNTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
STRENGTHS = (0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4, 1e9)  # the last one: the base alone
RULES = [(d, a) for d in DISCOUNTS for a in STRENGTHS]
FEW = [(d, a) for d in (0.25, 0.9) for a in (1.0, 10.0, 100.0)]  # by which columns to agree in are compared
KEYS = 16  # groups of the column to agree in
PAYS = 0.01  # nats per row that a rule has to gain
TRIED = 32  # columns to agree in, the nearest ones
SOME = 50_000  # rows on which they are compared


class Atoms(nn.Module):
    """Counted values in groups of rows, and the density of any value within its group."""

    elastic = ("value", "group", "mass", "start", "rest")

    value: Tensor  # int64 [U], those that keep some mass, ascending in each group
    group: Tensor  # int64 [U] ascending
    mass: Tensor  # [U] (c - d) / (n + a)
    start: Tensor  # int64 [G + 1] where each group begins
    rest: Tensor  # [G] the share of the base

    def __init__(self) -> None:
        super().__init__()
        for name in self.elastic:
            kind = torch.float64 if name in ("mass", "rest") else torch.int64
            self.register_buffer(name, torch.empty(0, dtype=kind))

    def fit(self, counts: Counts) -> None:
        """By the rule of the best leave-one-out likelihood."""
        d, a = max(RULES, key=lambda rule: float((counts.count * counts.held_out(*rule)).sum()))
        keep, n = counts.count > d, counts.total + a
        self.value, self.group = counts.value[keep], counts.group[keep]
        self.mass = (counts.count - d)[keep] / n[self.group]
        self.start = torch.searchsorted(self.group, torch.arange(len(n) + 1, device=n.device))
        self.rest = (a + counts.taken(d)) / n

    def log_prob(self, value: Tensor, group: Tensor, base: Tensor) -> Tensor:
        """log p(value | group) [N], where ``base`` is the base's."""
        k = self._find(value, group)
        own = torch.where((self.value[k] == value) & (self.group[k] == group), self.mass[k], 0.0) if len(k) else 0.0
        return (own + self.rest[group] * base.exp()).log()

    def _find(self, value: Tensor, group: Tensor) -> Tensor:
        """Where each pair would stand [N]; [0] where there is none."""
        if not len(self.value):
            return self.value
        low, high = int(self.value.min()), int(self.value.max())
        line = self.group * (high - low + 1) + self.value - low
        at = torch.searchsorted(line, group * (high - low + 1) + value.clamp(low, high) - low)
        return at.clamp(max=len(line) - 1)

    def draw(self, value: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
        """Values [N] of their groups; ``value`` are draws of the base, kept with its share."""
        if not len(self.value):
            return value
        u = torch.rand(len(group), generator=generator, dtype=torch.float64, device=group.device)
        line = torch.cat([self.mass.new_zeros(1), self.mass.cumsum(0)])
        k = torch.searchsorted(line, line[self.start[group]] + u, right=True) - 1
        own = self.value[k.minimum(self.start[group + 1] - 1).clamp(min=0)]
        return torch.where(u < 1 - self.rest[group], own, value)


class Counts:
    """How often each value stands in each group: values [N] of ``weight`` [N], of which the base says ``base`` [N]."""

    def __init__(self, value: Tensor, weight: Tensor, group: Tensor, groups: int, base: Tensor) -> None:
        low, span = value.min(), value.max() - value.min() + 1
        code, self.inverse = torch.unique(group * span + value - low, return_inverse=True)
        self.value, self.group = code % span + low, code // span
        self.count = torch.zeros_like(code, dtype=torch.float64).index_add_(0, self.inverse, weight)
        self.base = torch.empty_like(self.count).index_copy_(0, self.inverse, base.exp())  # one for all of a value
        self.total = self._per_group(self.count, groups)

    def _per_group(self, amount: Tensor, groups: int) -> Tensor:
        return torch.zeros(groups, dtype=torch.float64, device=amount.device).index_add_(0, self.group, amount)

    def taken(self, d: float) -> Tensor:
        """d T [G]"""
        return self._per_group(self.count.clamp(max=d), len(self.total))

    def held_out(self, d: float, a: float) -> Tensor:
        """log p of a row's value given the other rows [U]: the value loses one count, and a single one is gone."""
        others = (self.count - 1).clamp(min=0)
        rest = a + self.taken(d)[self.group] - self.count.clamp(max=d) + others.clamp(max=d)
        p = ((others - d).clamp(min=0) + rest * self.base) / (self.total[self.group] - 1 + a).clamp(min=1e-9)
        return p.clamp(min=1e-300).log()

    def best(self, rules: list[tuple[float, float]]) -> tuple[float, Tensor]:
        """The mean of log p of a row given the others, by the best of these rules, and that of each row [N]."""
        found = [self.held_out(*rule) for rule in rules]
        means = [float((self.count * f).sum() / self.count.sum()) for f in found]
        k = means.index(max(means))
        return means[k], found[k][self.inverse]


class Repeats(nn.Module):
    """The values of a grid within the cells of a column: as all rows have them, then those that agree in a column."""

    agree: Tensor  # the byte of what is told that rows agree in; -1 where that tells nothing
    key: Tensor  # [256] the group of each of its bytes

    def __init__(self) -> None:
        super().__init__()
        self.all, self.alike = Atoms(), Atoms()
        self.register_buffer("agree", torch.tensor(-1))
        self.register_buffer("key", torch.zeros(256, dtype=torch.int64))

    def fit(self, value: Tensor, weight: Tensor, cell: Tensor, cells: int, base: Tensor, told: Tensor) -> None:
        """Count values [N] in their ``cell`` [N]; ``told`` uint8 [N, F] are the bytes of earlier columns."""
        counts = Counts(value, weight, cell, cells, base)
        self.all.fit(counts)
        mean, held_out = counts.best(RULES)
        if mean < float((weight * base).sum() / weight.sum()) + PAYS:
            return
        some = slice(None, None, -(-len(value) // SOME))

        def alike(column: int, part: slice) -> Counts:
            group = cell[part] * KEYS + groups(told[:, column])[told[part, column].long()]
            return Counts(value[part], weight[part], group, cells * KEYS, held_out[part])

        tried = range(max(0, told.shape[1] - TRIED), told.shape[1])
        gains = {c: alike(c, some).best(FEW)[0] for c in tried}
        chosen = max(gains, key=lambda c: gains[c], default=-1)
        if chosen >= 0 and gains[chosen] > float((weight * held_out)[some].sum() / weight[some].sum()) + PAYS:
            self.agree.fill_(chosen)
            self.key.copy_(groups(told[:, chosen]))
            self.alike.fit(alike(chosen, slice(None)))

    def log_prob(self, value: Tensor, cell: Tensor, base: Tensor, told: Tensor) -> Tensor:
        """log p(value | cell, what is told) [N], where ``base`` is that of the cell alone."""
        if len(self.all.rest):
            base = self.all.log_prob(value, cell, base)
        if len(self.alike.rest):
            base = self.alike.log_prob(value, self._group(cell, told), base)
        return base

    def draw(self, value: Tensor, cell: Tensor, told: Tensor, generator: torch.Generator) -> Tensor:
        """Values [N] within their cells; ``value`` are draws of the base."""
        if len(self.all.rest):
            value = self.all.draw(value, cell, generator)
        if len(self.alike.rest):
            value = self.alike.draw(value, self._group(cell, told), generator)
        return value

    def _group(self, cell: Tensor, told: Tensor) -> Tensor:
        return cell * KEYS + self.key[told[:, int(self.agree)].long()]


def groups(byte: Tensor) -> Tensor:
    """Byte -> one of KEYS groups of about the same number of rows [256]."""
    below = byte.long().bincount(minlength=256).cumsum(0)
    used = below.diff(prepend=below.new_zeros(1)) > 0
    if used.sum() <= KEYS:
        return (used.long().cumsum(0) - 1).clamp(min=0)
    return ((below - 1) * KEYS // len(byte)).clamp(0, KEYS - 1)


def shares(code: Tensor, weight: Tensor, size: int) -> Tensor:
    """P(category) [K] as counted, and evenly for those not seen: categories repeat as values of a grid do."""
    even, every = weight.new_full((size,), 1 / size).log(), torch.arange(size, device=code.device)
    atoms = Atoms()
    atoms.fit(Counts(code, weight, torch.zeros_like(code), 1, even[:1].expand(len(code))))
    return atoms.log_prob(every, torch.zeros_like(every), even).exp()
