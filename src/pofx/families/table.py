"""Counting families: independent, markov, histogram. Smoothed tables of counts over cells (see counting.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pofx.codecs.cells import sizes
from pofx.core.learner import Batch, Local
from pofx.core.likelihood import Exact
from pofx.core.noise import RowNoise
from pofx.core.options import Options, at_least
from pofx.core.requests import Request, Sampler
from pofx.core.space import Space
from pofx.families.counting import Counting, contexts, join, split
from pofx.nn.backoff import Backoff


class Chain(Counting):
    """StepHead one after another, each given a few earlier ones."""

    symbol: Tensor
    parents: Tensor
    group: Tensor

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        order, self.radix, shared = self.history(config, space, context)
        count = len(self.cells.sizes)
        group = self.site % space.pixels[-1] if shared and space.pixels else self.site
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
        if self.space.pixels:
            return  # neighbouring levels share a symbol, whatever the data
        marginal = Backoff(len(self.cells.sizes), (), self.cells.size).to(self.device)
        for code, _, _, weight in self._chunks(batch, Local()):
            marginal.add(self.site, torch.zeros_like(code), code, weight.unsqueeze(1))
        self.symbol.copy_(self.cells.coarse(self.radix, marginal.orders()[0][0][:, 0]))

    def add(self, code: Tensor, given: Tensor, weight: Tensor) -> None:
        self.backoff.add(self.group, self._history(code, given), code, weight.unsqueeze(1))

    def smooth(self) -> Tensor:
        return self.backoff.concentrate(lambda group, symbol: self.base[group, symbol])

    def _history(self, code: Tensor, given: Tensor) -> Tensor:
        """The number of the history [N, S] of every site; a parent outside the datum counts as symbol 0."""
        symbol = self.symbol.T.gather(0, code)
        symbol = torch.cat([symbol, torch.zeros_like(symbol[:, :1])], 1)
        history = given.unsqueeze(1).expand_as(code)
        for parent in self.parents.flip(1).unbind(1):
            history = history * self.radix + symbol[:, parent]
        return history

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Exact:
        code, within = self.cells.encode(x)
        history = self._history(code, self._given(c, len(x)))
        p = self.backoff.prob(self.group, history, code, self.base[self.site, code])
        return Exact(within + p.log().sum(1), self.space.measure)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        given, sites = self._given(c, n), len(self.site)
        # the sites of a group share their base
        lines = self.backoff.lines(self.base[: int(self.group.max()) + 1])
        if not self.parents.numel():  # no site waits for another
            code = self.backoff.draw(lines, given.expand(sites, n).contiguous(), generator)
            return self.cells.decode(code.T, generator)
        code = torch.zeros(sites, n, dtype=torch.long, device=self.device)
        symbol = torch.zeros(sites + 1, n, dtype=torch.long, device=self.device)
        for s, (group, parents) in enumerate(zip(self.group.tolist(), self.parents.flip(1).tolist(), strict=True)):
            history = given
            for parent in parents:
                history = history * self.radix + symbol[parent]
            code[s] = self.backoff.draw(lines[group], history, generator)
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
class CountingOptions(Options):
    """What all three families take."""

    bins: int = 256
    """largest number of intervals of a number (fewer where leave-one-out prefers, or where the tables of markov and
    histogram would exceed ``limit``), or groups of levels of a pixel"""
    given_bins: int = 4
    """largest number of intervals of a number that is conditioned on"""
    limit: int = 10_000_000
    """largest number of counts in one table (8 bytes each)"""


@dataclass(frozen=True)
class IndependentConfig(CountingOptions):
    """Options of ``independent``."""


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
        return _width(config, space, context, config.bins)

    @classmethod
    def history(cls, config: IndependentConfig, space: Space, context: Space | None) -> tuple[int, int, bool]:
        return 0, 1, False


@dataclass(frozen=True)
class MarkovConfig(CountingOptions):
    """Options of ``markov``."""

    order: int = 1
    """how many earlier columns or pixels one looks at"""
    history: int = 16
    """largest number of symbols by which an earlier column or pixel is told apart; lowered where the table would exceed
    ``limit``"""
    shared: bool = False
    """one table for all pixels of a channel, instead of one for each pixel"""

    ranges = {"order": at_least(1, 64), "history": at_least(2)}


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
        if config.shared and not space.pixels:
            return "columns cannot share one table of transitions as pixels can; leave out shared."
        return super().refuses(space, context, config)

    @classmethod
    def smallest(cls, config: MarkovConfig, space: Space, context: Space | None) -> int:
        return cls._width(config, space, context, config.bins if space.pixels else 2) * 2**config.order

    @classmethod
    def bins(cls, config: MarkovConfig, space: Space, context: Space | None) -> int:
        """Fewer where a table has so many columns that they leave no room for two symbols of history."""
        bins, symbols = config.bins, 2
        while not space.pixels and bins > 2:
            if cls._width(config, space, context, bins) * symbols**config.order <= config.limit:
                break
            bins, symbols = max(2, bins // 2), config.history
        return bins

    @classmethod
    def history(cls, config: MarkovConfig, space: Space, context: Space | None) -> tuple[int, int, bool]:
        bins = cls.bins(config, space, context)
        room = config.limit / cls._width(config, space, context, bins)
        fits = int(room ** (1 / config.order) + 1e-9)
        return config.order, min(config.history, fits, max(sizes(space, bins))), config.shared

    @classmethod
    def _width(cls, config: MarkovConfig, space: Space, context: Space | None, bins: int) -> int:
        return _width(config, space, context, bins, config.shared)


@dataclass(frozen=True)
class HistogramConfig(CountingOptions):
    """Options of ``histogram``."""

    limit: int = 4_000_000
    """largest number of counts in the table (8 bytes each)"""

    ranges = {"bins": at_least(2)}


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
        return math.prod(sizes(space, 2)) * contexts(config, context)

    @classmethod
    def bins(cls, config: HistogramConfig, space: Space, context: Space | None) -> int:
        """As many as fit: the table grows with their number."""
        room = config.limit // contexts(config, context)
        return max(b for b in range(2, config.bins + 1) if b == 2 or math.prod(sizes(space, b)) <= room)

    def add(self, code: Tensor, given: Tensor, weight: Tensor) -> None:
        zero = self.site.new_zeros(1)
        self.marginal.add(self.site, zero, code, weight.unsqueeze(1))
        self.joint.add(zero, given, join(code, self.cells.sizes), weight)

    def smooth(self) -> Tensor:
        self.marginal.concentrate(lambda site, symbol: self.base[site, symbol])
        return self.joint.concentrate(lambda _, symbol: self._product(split(symbol, self.cells.sizes), drop=1.0))

    def _product(self, code: Tensor, drop: float = 0.0) -> Tensor:
        """The product of the marginals [N] of cells [N, S]."""
        p = self.marginal.prob(self.site, torch.zeros_like(code), code, self.base[self.site, code], drop)
        return p.log().sum(1).exp()

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Exact:
        code, within = self.cells.encode(x)
        joint, zero = join(code, self.cells.sizes), torch.zeros(len(x), dtype=torch.long, device=code.device)
        p = self.joint.prob(zero, self._given(c, len(x)), joint, self._product(code))
        return Exact(within + p.log(), self.space.measure)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        count, total, m = self.marginal.orders()[0]
        marginal = (count[:, 0] + m.unsqueeze(1) * self.base) / (total + m.unsqueeze(1))
        product = self.base.new_ones(1)
        for p, size in zip(marginal, self.cells.sizes, strict=True):
            product = (product.unsqueeze(1) * p[:size]).flatten()
        joint = self.joint.draw(self.joint.lines(product.unsqueeze(0))[0], self._given(c, n), generator)
        return self.cells.decode(split(joint, self.cells.sizes), generator)

    def parameter_count(self) -> int:
        """Free probabilities of the joint table."""
        return self.contexts * (math.prod((self.base > 0).sum(1).tolist()) - 1)


def _width(config: Any, space: Space, context: Space | None, bins: int, shared: bool = False) -> int:
    """Counts per symbol of history: groups × symbols × contexts."""
    of = sizes(space, bins)
    groups = space.pixels[-1] if shared and space.pixels else len(of)
    return groups * max(of) * contexts(config, context)


def _parents(space: Space, sites: int, order: int) -> list[list[int]]:
    """The sites that each site looks at, the nearest first; ``sites`` stands for one outside the datum."""
    if not space.pixels:
        return [[s - k if s >= k else sites for k in range(1, order + 1)] for s in range(sites)]
    reach = range(-order, order + 1)
    past = sorted(
        ((-i, j) for i in range(order + 1) for j in reach if (-i, j) < (0, 0)),
        key=lambda o: (o[0] ** 2 + o[1] ** 2, o[1] > 0, -o[0]),
    )
    (_, width, channels), out = space.pixels, []
    for s in range(sites):
        (row, column), channel = divmod(s // channels, width), s % channels
        near = [s - k for k in range(1, channel + 1)]
        for i, j in past:
            inside = row + i >= 0 and 0 <= column + j < width
            near.append(((row + i) * width + column + j) * channels + channel if inside else sites)
        out.append(near[:order])
    return out
