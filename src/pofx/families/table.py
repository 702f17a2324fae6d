"""Counting families: histogram, independent, markov. Smoothed tables of counts over cells.

A datum is a tuple of cells with an exact density inside each (nn/cells.py); the tables count cells after
histories of earlier cells (nn/backoff.py). A context is one more symbol of the history, its last: every
class has a table of its own, smoothed towards the pooled one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.learner import Batch, Local, Recipe, Runtime
from pofx.core.likelihood import Exact, Kind
from pofx.core.model import Budget, Model, Sampler
from pofx.core.space import Category, Image, Space, Table
from pofx.nn.backoff import Backoff
from pofx.nn.cells import cells, sizes

CHOICE_ROWS = 100_000  # rows on which the number of intervals is chosen


@dataclass
class CountingLearner:
    """One sweep over the training set, after which nothing is left to learn."""

    model: Counting
    runtime: Runtime = field(default_factory=Local)
    finished: bool = False
    sweep: Literal["minibatch", "dataset"] = "dataset"

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Count; "loss" is the leave-one-out negative log-likelihood in nats per datum."""
        loss = self.model.count(batch, self.runtime)
        self.finished = True
        return {"loss": loss}

    def state_dict(self) -> dict[str, Any]:
        return {"finished": self.finished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.finished = state["finished"]


class Counting(Model):
    """What the three families share: cells, contexts, and the counting sweep.

    A weight counts as so many rows, after scaling to a mean of one.
    """

    claims: ClassVar[frozenset[Kind]] = frozenset({Exact})
    taxonomy = "explicit density / tractable / table of counts"

    base: Tensor
    site: Tensor

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.cells = cells(space, self.bins(config, space, context))
        self.given_cells = None if context is None else cells(context, config.given_bins)
        self.contexts = _contexts(config, context)
        self.register_buffer("site", torch.arange(len(self.cells.sizes)), persistent=False)
        self.register_buffer("base", self._base())

    @classmethod
    def bins(cls, config: Any, space: Space, context: Space | None) -> int:
        """The largest number of intervals of a number, or of groups of levels of a pixel."""
        return int(config.bins)

    @classmethod
    def smallest(cls, config: Any, space: Space, context: Space | None) -> int:
        """The counts of the largest table, made as small as the family may make it."""
        raise NotImplementedError

    remedy: ClassVar[str]  # where that is too large

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if isinstance(context, Image):
            return "a table cannot be indexed by images; condition on a label or on columns, or fit a classifier."
        if (count := cls.smallest(config, space, context)) > config.limit:
            spelled = f"{count:,}" if count < 10**15 else f"about 10^{math.log10(count):.0f}"
            return f"its table would hold {spelled} counts (limit {config.limit:,}); {cls.remedy}."
        return None

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(epochs=1)

    def learner(self, recipe: Recipe) -> CountingLearner:
        return CountingLearner(self)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        """Choose the cells: the number of intervals per number is that of the best leave-one-out likelihood."""
        weight = torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double().cpu()
        weight = weight * (len(x) / weight.sum())
        all_rows = _rows(x, c, weight, torch.arange(len(x)), self.device)
        if self.given_cells is not None and all_rows.c is not None:
            self.given_cells.fit(all_rows.c, weight.to(self.device), self.config.given_bins)
        target, targets = None, self.targets()
        if len(targets) > 1:
            some = _rows(x, c, weight, torch.randperm(len(x), generator=generator)[:CHOICE_ROWS], self.device)
            losses = []
            for t in targets:
                self.choose(some, t)
                losses.append(self.count(some, Local()).item())
            target = targets[losses.index(min(losses))]
        self.choose(all_rows, target)
        for module in self.modules():
            if isinstance(module, Backoff):
                module.clear()

    def targets(self) -> list[int | None]:
        """The numbers of intervals to try for all numbers at once; None is the best for each column alone."""
        largest = self.bins(self.config, self.space, self.context)
        if not isinstance(self.space, Table) or all(isinstance(c, Category) for c in self.space.columns):
            return [None]
        return [None, *(largest // 2**i for i in range(largest.bit_length() - 1))]

    def choose(self, batch: Batch, target: int | None) -> None:
        """Lay the cells with ``target`` intervals per number."""
        assert batch.weight is not None
        self.cells.fit(batch.x, batch.weight, target)
        self.base.copy_(self._base())

    def count(self, batch: Batch, runtime: Runtime) -> Tensor:
        """Fill the tables from ``batch`` and smooth them; the leave-one-out loss, nats per datum."""
        raise NotImplementedError

    def _base(self) -> Tensor:
        """P(cell) before counting [S, K]: cells are laid as quantiles, so this is near the truth of numbers."""
        nominal = self.cells.nominal()
        return nominal / nominal.sum(1, keepdim=True)

    def _given(self, c: Tensor | None, n: int) -> Tensor:
        """The number of each row's context [n]."""
        if self.given_cells is None or c is None:
            return torch.zeros(n, dtype=torch.long, device=self.device)
        return _join(self.given_cells.encode(c)[0], self.given_cells.sizes)

    def _chunks(self, batch: Batch, runtime: Runtime) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """A few rows at a time: cells [n, S], context [n], log-density within the cells [n], weight [n]."""
        weight = torch.ones(len(batch.x), dtype=torch.float64, device=self.device)
        if batch.weight is not None:
            weight = batch.weight.double() * (batch.total / runtime.sum(batch.weight.double().sum()))
        for i in range(0, len(batch.x), self.rows_per_pass()):
            part = slice(i, i + self.rows_per_pass())
            code, within = self.cells.encode(batch.x[part])
            yield code, self._given(None if batch.c is None else batch.c[part], len(code)), within, weight[part]


class Chain(Counting):
    """Sites one after another, each given a few earlier ones."""

    symbol: Tensor
    parents: Tensor
    group: Tensor

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        order, self.radix, shared = self.history(config, space, context)
        count = len(self.cells.sizes)
        group = self.site % space.channels if shared and isinstance(space, Image) else self.site
        self.register_buffer("group", group.clone(), persistent=False)
        parents = torch.tensor(_parents(space, count, order), dtype=torch.long).reshape(count, order)
        self.register_buffer("parents", parents, persistent=False)
        # the symbol by which a later site tells a cell from others [S, K]
        self.register_buffer("symbol", self.cells.coarse(self.radix, self.base).contiguous())
        radices = (self.radix,) * order + ((self.contexts,) if context is not None else ())
        self.backoff = Backoff(int(group.max()) + 1, radices, self.cells.size)

    @classmethod
    def history(cls, config: Any, space: Space, context: Space | None) -> tuple[int, int, bool]:
        """(order, symbols by which an earlier site is told apart, one table for all pixels?)."""
        raise NotImplementedError

    def choose(self, batch: Batch, target: int | None) -> None:
        super().choose(batch, target)
        if isinstance(self.space, Image):
            return  # neighbouring levels share a symbol, whatever the data
        marginal = Backoff(len(self.cells.sizes), (), self.cells.size).to(self.device)
        for code, _, _, weight in self._chunks(batch, Local()):
            marginal.add(self.site, torch.zeros_like(code), code, weight.unsqueeze(1))
        self.symbol.copy_(self.cells.coarse(self.radix, marginal.orders()[0][0][:, 0]))

    def count(self, batch: Batch, runtime: Runtime) -> Tensor:
        self.backoff.clear()
        total = self.base.new_zeros(2)
        for code, given, within, weight in self._chunks(batch, runtime):
            self.backoff.add(self.group, self._history(code, given), code, weight.unsqueeze(1))
            total += torch.stack([(within * weight).sum(), weight.sum()])
        self.backoff.share(runtime)
        score = self.backoff.concentrate(lambda group, symbol: self.base[group, symbol])
        within_all, rows = runtime.sum(total)
        return -(score + within_all) / rows

    def _history(self, code: Tensor, given: Tensor) -> Tensor:
        """The number of the history [N, S] of every site; a parent outside the datum counts as symbol 0."""
        symbol = self.symbol.T.gather(0, code)
        symbol = torch.cat([symbol, torch.zeros_like(symbol[:, :1])], 1)
        history = given.unsqueeze(1).expand_as(code)
        for parent in self.parents.flip(1).unbind(1):
            history = history * self.radix + symbol[:, parent]
        return history

    def rows_log_prob(self, x: Tensor, c: Tensor | None, budget: Budget, generator: torch.Generator) -> Exact:
        code, within = self.cells.encode(x)
        history = self._history(code, self._given(c, len(x)))
        p = self.backoff.prob(self.group, history, code, self.base[self.site, code])
        return Exact(within + p.log().sum(1), self.space.measure)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        given, parents, groups = self._given(c, n), self.parents.flip(1).tolist(), self.group.tolist()
        code = torch.zeros(len(groups), n, dtype=torch.long, device=self.device)
        symbol = torch.zeros(len(groups) + 1, n, dtype=torch.long, device=self.device)
        for s, group in enumerate(groups):
            history = given
            for parent in parents[s]:
                history = history * self.radix + symbol[parent]
            code[s] = self.backoff.draw(group, history, self.base[s], generator)
            symbol[s] = self.symbol[s, code[s]]
        return self.cells.decode(code.T, generator)

    def parameter_count(self) -> int:
        """Free probabilities after all histories of full length."""
        told = [*(self.symbol.max(1).values + 1).tolist(), 1]
        free = ((self.base > 0).sum(1) - 1).tolist()
        tables = [f * math.prod(told[p] for p in row) for f, row in zip(free, self.parents.tolist(), strict=True)]
        groups = self.group.tolist()
        return self.contexts * sum(max(t for t, g in zip(tables, groups, strict=True) if g == k) for k in set(groups))


@dataclass(frozen=True)
class IndependentConfig:
    """Options of ``independent``.

    Attributes:
        bins: largest number of intervals of a number (fewer where leave-one-out prefers), or groups of
            levels of a pixel.
        given_bins: intervals of a number that is conditioned on.
        limit: largest number of counts in one table (8 bytes each).
    """

    bins: int = 256
    given_bins: int = 4
    limit: int = 10_000_000

    def __post_init__(self) -> None:
        _at_least(self, bins=1, given_bins=1, limit=1)


class Independent(Chain):
    """The product of the marginals of all columns or pixels: what every other family has to beat."""

    name = "independent"
    summary = "the product of the marginals: a histogram per column or pixel, as if they did not depend"
    paper = "MacKay and Peto 1995 (the smoothing)"
    remedy = "lower bins, or condition on fewer values"
    known_failures = dict.fromkeys(
        ("training helps:two moons", "training helps:gaussian", "training helps:nullable reals"),
        "the cells laid before training are quantiles, which hold equal counts: counting adds nothing",
    )
    Config = IndependentConfig

    @classmethod
    def tiny(cls, space: Space) -> IndependentConfig:
        return IndependentConfig(bins=16)

    def targets(self) -> list[int | None]:
        return [None]  # the columns do not meet

    @classmethod
    def smallest(cls, config: IndependentConfig, space: Space, context: Space | None) -> int:
        return _width(config, space, context)

    @classmethod
    def history(cls, config: IndependentConfig, space: Space, context: Space | None) -> tuple[int, int, bool]:
        return 0, 1, False


@dataclass(frozen=True)
class MarkovConfig:
    """Options of ``markov``.

    Attributes:
        order: how many earlier columns or pixels one looks at.
        bins: largest number of intervals of a number (fewer where leave-one-out prefers), or groups of
            levels of a pixel.
        history: largest number of symbols by which an earlier column or pixel is told apart; lowered
            where the table would exceed ``limit``.
        shared: one table for all pixels of a channel, instead of one for each pixel.
        given_bins: intervals of a number that is conditioned on.
        limit: largest number of counts in one table (8 bytes each).
    """

    order: int = 1
    bins: int = 256
    history: int = 16
    shared: bool = False
    given_bins: int = 4
    limit: int = 10_000_000

    def __post_init__(self) -> None:
        _at_least(self, order=1, bins=1, history=2, given_bins=1, limit=1)


class Markov(Chain):
    """A chain over columns, each given the ``order`` columns before it; over pixels, a mesh.

    A pixel sees its nearest predecessors in raster order (Abend, Harley and Kanal 1965): the earlier
    channels of itself, then the left, upper, upper left and upper right neighbours, and so on.
    """

    name = "markov"
    summary = "each column or pixel given those just before it: transition counts, smoothed to shorter histories"
    paper = "Shannon 1948, A mathematical theory of communication; MacKay and Peto 1995 (the smoothing)"
    remedy = "lower order or bins, or condition on fewer values"
    Config = MarkovConfig

    @classmethod
    def tiny(cls, space: Space) -> MarkovConfig:
        return MarkovConfig(bins=16, history=8)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: MarkovConfig) -> str | None:
        if config.shared and not isinstance(space, Image):
            return "columns cannot share one table of transitions as pixels can; leave out shared."
        return super().refuses(space, context, config)

    @classmethod
    def smallest(cls, config: MarkovConfig, space: Space, context: Space | None) -> int:
        return _width(config, space, context, config.shared) * 2**config.order

    @classmethod
    def history(cls, config: MarkovConfig, space: Space, context: Space | None) -> tuple[int, int, bool]:
        room = config.limit / _width(config, space, context, config.shared)
        fits = int(room ** (1 / config.order) + 1e-9)
        return config.order, min(config.history, fits, max(sizes(space, config.bins))), config.shared


@dataclass(frozen=True)
class HistogramConfig:
    """Options of ``histogram``.

    Attributes:
        bins: largest number of intervals of a number (fewer where the table would exceed ``limit``, or
            where leave-one-out prefers), or groups of levels of a pixel.
        given_bins: intervals of a number that is conditioned on.
        limit: largest number of counts in the table (8 bytes each).
    """

    bins: int = 256
    given_bins: int = 4
    limit: int = 4_000_000

    def __post_init__(self) -> None:
        _at_least(self, bins=2, given_bins=1, limit=1)


class Histogram(Counting):
    """One table over the joint cells of all columns or pixels, smoothed towards the product of marginals."""

    name = "histogram"
    summary = "one joint table of counts over all columns or pixels, smoothed towards independence"
    paper = "Pearson 1895; MacKay and Peto 1995 (the smoothing)"
    remedy = "use independent or markov"
    Config = HistogramConfig

    def __init__(self, config: HistogramConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.marginal = Backoff(len(self.cells.sizes), (), self.cells.size)
        radices = (self.contexts,) if context is not None else ()
        self.joint = Backoff(1, radices, math.prod(self.cells.sizes))

    @classmethod
    def tiny(cls, space: Space) -> HistogramConfig:
        return HistogramConfig(bins=16, limit=100_000)

    @classmethod
    def smallest(cls, config: HistogramConfig, space: Space, context: Space | None) -> int:
        return math.prod(sizes(space, 2)) * _contexts(config, context)

    @classmethod
    def bins(cls, config: HistogramConfig, space: Space, context: Space | None) -> int:
        """As many as fit: the table grows with their number."""
        room = config.limit // _contexts(config, context)
        return max(b for b in range(2, config.bins + 1) if b == 2 or math.prod(sizes(space, b)) <= room)

    def count(self, batch: Batch, runtime: Runtime) -> Tensor:
        self.marginal.clear()
        self.joint.clear()
        zero = self.site.new_zeros(1)
        total = self.base.new_zeros(2)
        for code, given, within, weight in self._chunks(batch, runtime):
            self.marginal.add(self.site, zero, code, weight.unsqueeze(1))
            self.joint.add(zero, given, _join(code, self.cells.sizes), weight)
            total += torch.stack([(within * weight).sum(), weight.sum()])
        self.marginal.share(runtime)
        self.joint.share(runtime)
        self.marginal.concentrate(lambda site, symbol: self.base[site, symbol])
        score = self.joint.concentrate(lambda _, symbol: self._product(_split(symbol, self.cells.sizes), drop=1.0))
        within_all, rows = runtime.sum(total)
        return -(score + within_all) / rows

    def _product(self, code: Tensor, drop: float = 0.0) -> Tensor:
        """The product of the marginals [N] of cells [N, S]."""
        p = self.marginal.prob(self.site, torch.zeros_like(code), code, self.base[self.site, code], drop)
        return p.log().sum(1).exp()

    def rows_log_prob(self, x: Tensor, c: Tensor | None, budget: Budget, generator: torch.Generator) -> Exact:
        code, within = self.cells.encode(x)
        joint, zero = _join(code, self.cells.sizes), torch.zeros(len(x), dtype=torch.long, device=code.device)
        p = self.joint.prob(zero, self._given(c, len(x)), joint, self._product(code))
        return Exact(within + p.log(), self.space.measure)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        count, total, m = self.marginal.orders()[0]
        marginal = (count[:, 0] + m.unsqueeze(1) * self.base) / (total + m.unsqueeze(1))
        product = self.base.new_ones(1)
        for p, size in zip(marginal, self.cells.sizes, strict=True):
            product = (product.unsqueeze(1) * p[:size]).flatten()
        joint = self.joint.draw(0, self._given(c, n), product, generator)
        return self.cells.decode(_split(joint, self.cells.sizes), generator)

    def parameter_count(self) -> int:
        """Free probabilities of the joint table."""
        return self.contexts * (math.prod((self.base > 0).sum(1).tolist()) - 1)


def _rows(x: Tensor, c: Tensor | None, weight: Tensor, index: Tensor, device: torch.device) -> Batch:
    return Batch(
        x[index].to(device), None if c is None else c[index].to(device), weight[index].to(device), total=len(index)
    )


def _join(code: Tensor, radices: tuple[int, ...]) -> Tensor:
    """Digits [N, S], the first the most significant, -> numbers [N]."""
    out = torch.zeros_like(code[:, 0])
    for digit, radix in zip(code.unbind(1), radices, strict=True):
        out = out * radix + digit
    return out


def _split(number: Tensor, radices: tuple[int, ...]) -> Tensor:
    """The inverse of ``_join``."""
    digits = []
    for radix in reversed(radices):
        digits.append(number % radix)
        number = number // radix
    return torch.stack(digits[::-1], 1)


def _contexts(config: Any, context: Space | None) -> int:
    return 1 if context is None else math.prod(sizes(context, config.given_bins))


def _width(config: Any, space: Space, context: Space | None, shared: bool = False) -> int:
    """Counts per symbol of history: groups × symbols × contexts."""
    of = sizes(space, config.bins)
    groups = space.channels if shared and isinstance(space, Image) else len(of)
    return groups * max(of) * _contexts(config, context)


def _parents(space: Space, sites: int, order: int) -> list[list[int]]:
    """The sites that each site looks at, the nearest first; ``sites`` stands for one outside the datum."""
    if not isinstance(space, Image):
        return [[s - k if s >= k else sites for k in range(1, order + 1)] for s in range(sites)]
    reach = range(-order, order + 1)
    past = sorted(
        ((-i, j) for i in range(order + 1) for j in reach if (-i, j) < (0, 0)),
        key=lambda o: (o[0] ** 2 + o[1] ** 2, o[1] > 0, -o[0]),
    )
    channels, out = space.channels, []
    for s in range(sites):
        (row, column), channel = divmod(s // channels, space.width), s % channels
        near = [s - k for k in range(1, channel + 1)]
        for i, j in past:
            inside = row + i >= 0 and 0 <= column + j < space.width
            near.append(((row + i) * space.width + column + j) * channels + channel if inside else sites)
        out.append(near[:order])
    return out


def _at_least(config: Any, **limits: int) -> None:
    for name, limit in limits.items():
        if (value := getattr(config, name)) < limit:
            raise UsageError(f"{name} is {value}; it must be at least {limit}.", f"Set {name} to {limit} or more.")
