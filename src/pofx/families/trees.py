"""trees: the columns of a table one after the other, each by boosted trees that look at those before it.

    log p(x | c) = sum_s log P(k_s | c, k_1 .. k_s-1) + log p(x_s | k_s)

k_s is the cell of column s: a category, a frequent value, an interval of a number, or "missing" (codecs/cells.py). Its
probability is a path of binary splits, each decided by a boosted ensemble of regression trees (nn/trees.py). Inside a
cell the density is that of codecs/cells.py, mixed with the values that repeat (nn/atoms.py). All three sum to one in
closed form, so the likelihood is exact.

The chain is that of Bengio and Bengio 2000, the ensembles are those of Friedman 2001 on histograms (Ke et al. 2017).
BaltoBot in UnmaskingTrees (McCarter 2025) and XGenBoost (2026, arXiv 2603.06904) model a conditional by a balanced tree
of boosted classifiers, too, one for each of its nodes; here the nodes of a level share one, which is told the node.
Each ensemble grows until rows held out of its training stop gaining.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pofx.codecs.cells import Intervals, TableCells
from pofx.core.abilities import Completes, InBlocks
from pofx.core.family import serving
from pofx.core.learner import Batch, Local, Recipe, Runtime
from pofx.core.likelihood import Exact
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.options import Options, Range
from pofx.core.requests import ExactLikelihood, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.nn.atoms import Repeats, shares
from pofx.nn.trees import BYTES, Column, Tree, grow
from pofx.spaces import Category

ROUNDS = 8  # trees of one step: rows are laid out for the grower once in a step
LEAST = 1e-6  # nats per datum that a tree has to gain: of what is certain, odds could grow for ever
BLOCK = 2**17  # rows that are told in bytes at once


@dataclass(frozen=True)
class TreesConfig(Options):
    """Options of ``trees``.

    Attributes:
        bins: largest number of intervals of a number (fewer where leave-one-out prefers).
        leaves: largest number of leaves of a tree (of few rows fewer: they hold 4 times ``smallest`` on average).
        smallest: training rows of a leaf.
        shrinkage: by which a tree's step is shortened.
        held_out: share of the training rows that decide how many trees an ensemble has.
        patience: trees without gain on these rows, after which an ensemble is finished.
        rows: largest number of training rows; of more, so many are drawn.
    """

    bins: int = 256
    leaves: int = 16
    smallest: int = 20
    shrinkage: float = 0.1
    held_out: float = 0.1
    patience: int = 10
    rows: int = 1_000_000

    ranges = {"shrinkage": Range(0, 1, above=True), "held_out": Range(0, 0.5, above=True)}


class Site(nn.Module):
    """What one column is to the chain: its cells in order, as bytes that later columns see, and its trees."""

    place: Tensor  # [K] of each cell in the order of the splits
    code: Tensor  # [K] the cell at each place
    byte: Tensor  # [K] what later columns are told of each cell

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("place", torch.arange(size))
        self.register_buffer("code", torch.arange(size))
        self.register_buffer("byte", torch.zeros(size, dtype=torch.uint8))
        self.repeats, self.column = Repeats(), Column()

    def lay(self, cells: Any, mass: Tensor) -> None:
        """Cells of no ``mass`` [K] are left out; numbers stay in order, of categories the frequent ones come first."""
        self.byte.copy_(cells.coarse(BYTES, mass))
        order = cells.coarse(cells.size, mass).argsort()
        used = order[mass[order] > 0]
        self.code[: len(used)] = used
        self.place[used] = torch.arange(len(used), device=used.device)
        self.column.split(mass[used])


@dataclass
class Ensemble:
    """The training of one level of one column."""

    column: int
    level: int
    best: float | None = None  # loss of the held-out rows with the trees that the column has; None: not begun
    pending: list[Tree] = field(default_factory=list)  # grown since
    done: bool = False
    odds: Tensor | None = None  # of the rows that pass the level, with all trees


class TreesLearner:
    """Ensembles in turn, a few trees at a time, each until its held-out rows stop gaining."""

    sweep: ClassVar[Literal["dataset"]] = "dataset"

    def __init__(self, model: Trees) -> None:
        self.model, self.runtime = model, Local()  # type: Trees, Runtime
        self.ensembles = [
            Ensemble(s, level) for s, site in enumerate(model.sites) for level in range(site.column.levels)
        ]
        self.turn, self.loss = 0, 0.0
        self.rows: Told | None = None

    @property
    def finished(self) -> bool:
        return all(e.done for e in self.ensembles)

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """A few trees of one ensemble; "loss" is that of the rows held out of trees (not of counts), nats a row."""
        if self.rows is None:
            self.rows = self.model.gather(batch, self.runtime)
            if not self.turn:
                self.loss = self.rows.loss(self.model)
        while not self.finished:
            ensemble = self.ensembles[self.turn % len(self.ensembles)]
            self.turn += 1
            if not ensemble.done:
                self.loss -= self.grow(ensemble, self.rows)
                break
        return {"loss": torch.tensor(self.loss, dtype=torch.float64)}

    def grow(self, e: Ensemble, data: Told) -> float:
        """Add trees that pay to the model; what the held-out rows gain by them, nats per datum."""
        o, before = self.model.config, self.model.given_sites + e.column
        column = self.model.sites[e.column].column
        rows, here = column.reach(e.level, data.place[e.column])
        right = (data.place[e.column][rows] >= column.middle[here]).double()
        cut = int(torch.searchsorted(rows, data.held_out))  # the rows before are held out
        seen, told = (
            column.tell(e.level, data.told[: before + 1, rows[part]].T, here[part])
            for part in (slice(0, cut), slice(cut, None))
        )
        if e.odds is None:
            boost = [column.boost(e.level, h) + sum(t(h) for t in e.pending) for h in (seen, told)]
            e.odds = column.odds[here] + torch.cat(boost)
        sign, weight, odds = 1 - 2 * right[:cut], data.weight[rows], e.odds

        def loss() -> float:
            return float((softplus(sign * odds[:cut]) * weight[:cut]).sum())

        start = e.best = loss() if e.best is None else e.best
        bins = [*data.bins[:before], int(told[:, -1].max()) + 1 if len(told) else 1]
        leaves = max(2, min(o.leaves, len(told) // (4 * o.smallest)))
        for _ in range(ROUNDS):
            p, w = odds[cut:].sigmoid(), weight[cut:]
            tree, values = grow(told, bins, (p - right[cut:]) * w, p * (1 - p) * w, leaves, o.smallest, o.shrinkage)
            if tree is None or len(e.pending) == o.patience:
                e.done = True
                break
            e.pending.append(tree)
            odds[:cut] += tree(seen)
            odds[cut:] += values
            if (now := loss()) < e.best - LEAST * data.held_mass:
                e.best = now
                column.add(e.level, e.pending)
                e.pending = []
        if e.done:
            e.odds, e.pending = None, []
        return (start - e.best) / data.held_mass

    def state_dict(self) -> dict[str, Any]:
        return {
            "turn": self.turn,
            "loss": self.loss,
            "ensembles": [
                {"best": e.best, "done": e.done, "pending": [[t.node, t.value, t.depth] for t in e.pending]}
                for e in self.ensembles
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.turn, self.loss = state["turn"], state["loss"]
        for e, kept in zip(self.ensembles, state["ensembles"], strict=True):
            e.best, e.done, e.pending = kept["best"], kept["done"], [Tree(*t) for t in kept["pending"]]


@dataclass
class Told:
    """The training rows in bytes, those that are held out before the others."""

    told: Tensor  # uint8 [F, N]
    place: Tensor  # int32 [S, N]
    within: Tensor  # [N]
    weight: Tensor  # [N]
    held_out: int
    bins: list[int] = field(init=False)
    held_mass: float = field(init=False)

    def __post_init__(self) -> None:
        self.bins = [int(b) + 1 for b in self.told.amax(1)]
        self.held_mass = max(float(self.weight[: self.held_out].sum()), 1e-12)

    def loss(self, model: Trees) -> float:
        """Of the held-out rows, nats per datum."""
        part = slice(0, self.held_out)
        nats = self.within[part] + model.walks(self.told[:, part].T.contiguous(), self.place[:, part].T.long())
        return -float((nats * self.weight[part]).sum()) / self.held_mass


class Trees(Model, InBlocks, Completes):
    """The columns of a table in a chain of boosted trees."""

    name = "trees"
    summary = "each column given those before it: binary splits of its values, decided by gradient-boosted trees"
    taxonomy = "explicit density / tractable / autoregressive"
    paper = "Friedman 2001 (boosted trees); Bengio and Bengio 2000 (the chain); McCarter 2025, Unmasking Trees"
    estimators: ClassVar[tuple[type[Request], ...]] = (ExactLikelihood,)
    Config = TreesConfig
    config: TreesConfig
    sites: Any  # a ModuleList of Site

    def __init__(self, config: TreesConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.cells = TableCells(space, config.bins)
        self.given_cells = None if context is None else TableCells(context, BYTES - 1)
        self.given_sites = 0 if self.given_cells is None else len(self.given_cells.sizes)
        self.sites = nn.ModuleList(Site(size) for size in self.cells.sizes)
        given = (0, 0) if self.given_cells is None else (self.given_sites, self.given_cells.size)
        self.register_buffer("given_byte", torch.zeros(given, dtype=torch.uint8))
        self.drawn: Tensor | None = None  # the numbers of the rows that are trained on, where these are not all
        self.shuffle = 0
        for site, cells in zip(self.sites, self.cells.sites, strict=True):
            site.lay(cells, cells.nominal)

    given_byte: Tensor

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: TreesConfig) -> str | None:
        if reason := free_length(space, context):
            return reason
        if not space.columns:
            return "trees look at columns of a table. Fit a made or pixelcnn."
        if context is not None and not context.columns:
            return "trees look at columns of a table; condition on a label or on columns, or fit a classifier."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: TreesConfig) -> Iterable[str]:
        if all(isinstance(c, Category) for c in getattr(space, "columns", ())):
            yield "bins"

    @classmethod
    def tiny(cls, space: Space) -> TreesConfig:
        options: TreesConfig = serving(cls, space, bins=32, leaves=6, shrinkage=0.3, patience=2)
        return options

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(epochs=1_000_000)  # steps: training ends by itself

    def learner(self, recipe: Recipe) -> TreesLearner:
        return TreesLearner(self)

    # -- what the data decide -------------------------------------------------------------------------------

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        """Lay the cells, count the values that repeat, and order the splits."""
        self.shuffle = int(torch.randint(2**62, (1,), generator=generator))
        if len(x) > self.config.rows:
            self.drawn = torch.randperm(len(x), generator=generator)[: self.config.rows].sort().values
            self.remarks.append(
                f"trees learn from {self.config.rows:,} of the {len(x):,} training rows, drawn by the seed "
                "(rows: how many)."
            )
        part = slice(None) if self.drawn is None else self.drawn
        weight = torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double().cpu()
        weight = _of_mean_one(weight[part]).to(self.device)
        x, c = x[part].to(self.device), None if c is None else c[part].to(self.device)
        if self.given_cells is not None and c is not None:
            self.given_cells.fit(c, weight)
            code, _ = self.given_cells.encode(c)
            mass = weight.new_zeros(self.given_byte.shape).scatter_add_(1, code.T, weight.expand_as(code.T))
            self.given_byte.copy_(self.given_cells.coarse(BYTES, mass))
        self.cells.fit(x, weight)
        told = self.blank(len(x), c)
        for (s, before), v in zip(self.known(), _columns(x), strict=True):
            site, cells = self.sites[s], self.cells.sites[s]
            code, base = cells.encode(v)
            if isinstance(cells, Intervals):
                seen = ~v.isnan()
                if cells.grid and seen.any():
                    line = cells.to_line(v[seen]).long()
                    site.repeats.fit(line, weight[seen], code[seen], cells.size, base[seen], told[seen, :before])
                nominal = cells.nominal / cells.nominal[cells.nominal > 0].mean()
                mass = nominal.index_add(0, code, weight)  # about one row more in each cell
            else:
                mass = shares(code, weight, cells.size)
            site.lay(cells, mass)
            told[:, before] = site.byte[code]

    def gather(self, batch: Batch, runtime: Runtime) -> Told:
        """The training rows, of all processes: each tells its own, and all grow the same trees."""
        every = torch.arange(batch.total) if self.drawn is None else self.drawn
        every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(self.shuffle))]
        held_out = int(len(every) * self.config.held_out)
        every = torch.cat([part.sort().values for part in every.tensor_split([held_out])])
        mine = ((every >= batch.start) & (every < batch.start + len(batch.x))).nonzero()[:, 0]
        told = torch.zeros(self.given_sites + len(self.sites), len(every), dtype=torch.uint8)
        place = torch.zeros(len(self.sites), len(every), dtype=torch.int32)
        within, weight = torch.zeros(2, len(every), dtype=torch.float64)
        for at in mine.split(BLOCK):
            index = every[at] - batch.start
            h, p, w = self.encode(batch.x[index], None if batch.c is None else batch.c[index])
            told[:, at], place[:, at], within[at] = h.T.cpu(), p.T.int().cpu(), w.cpu()
            weight[at] = 1.0 if batch.weight is None else batch.weight[index].double().cpu()
        told, place, within, weight = (runtime.sum(t.to(self.device)) for t in (told, place, within, weight))
        return Told(told, place, within, _of_mean_one(weight), held_out)

    # -- the chain ------------------------------------------------------------------------------------------

    def encode(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What trees are told of x [N, *E] and c [N, F], the places of x [N, S], log p(x | its cells) [N]."""
        told, place = self.blank(len(x), c), []
        within = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for (s, before), v in zip(self.known(), _columns(x), strict=True):
            site, cells = self.sites[s], self.cells.sites[s]
            code, inside = cells.encode(v)
            if isinstance(cells, Intervals) and cells.grid:
                line = cells.to_line(v).nan_to_num().long()
                inside = torch.where(v.isnan(), inside, site.repeats.log_prob(line, code, inside, told))
            within += inside
            place.append(site.place[code])
            told[:, before] = site.byte[code]
        return told, torch.stack(place, 1), within

    def blank(self, n: int, c: Tensor | None) -> Tensor:
        """What is told before any column is known [n, F]."""
        told = torch.zeros(n, self.given_sites + len(self.sites), dtype=torch.uint8, device=self.device)
        if self.given_cells is not None and c is not None:
            code, _ = self.given_cells.encode(c)
            told[:, : self.given_sites] = self.given_byte.gather(1, code.T).T
        return told

    def walks(self, told: Tensor, place: Tensor) -> Tensor:
        """sum_s log P(k_s | what is told before) [N] of places [N, S]."""
        nats = torch.zeros(len(told), dtype=torch.float64, device=told.device)
        for s, before in self.known():
            nats += self.sites[s].column.walk(told[:, : before + 1], place[:, s])[1]
        return nats

    def known(self) -> Iterator[tuple[int, int]]:
        """Each column, and how many bytes are told before it."""
        return ((s, self.given_sites + s) for s in range(len(self.sites)))

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Exact:
        told, place, within = self.encode(x, c)
        return Exact(within + self.walks(told, place), self.space.measure)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return self._draw(self.blank(n, c), None, None, generator)

    def rows_complete(self, x: Tensor, known: Tensor, c: Tensor | None, generator: torch.Generator) -> Tensor:
        return self._draw(self.blank(len(x), c), x, known, generator)

    def _draw(self, told: Tensor, x: Tensor | None, known: Tensor | None, generator: torch.Generator) -> Tensor:
        """All rows of ``told`` [N, F] column after column, but what is ``known`` of x."""
        out = []
        for s, before in self.known():
            site, cells = self.sites[s], self.cells.sites[s]
            place, _ = site.column.walk(told[:, : before + 1], None, generator)
            code = site.code[place]
            missing = code == cells.size - 1 if self.cells.columns[s].nullable else torch.zeros_like(code).bool()
            v = cells.decode(code, missing, generator)
            if isinstance(cells, Intervals) and cells.grid:
                line = site.repeats.draw(cells.to_line(v).nan_to_num().long(), code, told, generator)
                v = (cells.column.origin + line.double() * cells.column.step).masked_fill(missing, torch.nan)
            if x is not None and known is not None:
                v = torch.where(_columns(known)[s], _columns(x)[s], v)
                code = cells.encode(v)[0]
            told[:, before] = site.byte[code]
            out.append(v)
        return torch.stack(out, 1).to(self.space.dtype).reshape(-1, *self.space.event_shape)

    def parameter_count(self) -> int:
        """Splits and leaves, and the values that repeat."""
        columns, repeats = [s.column for s in self.sites], [s.repeats for s in self.sites]
        leaves = sum(int((c.value != 0).sum()) for c in columns)
        return leaves + sum(len(c.odds) for c in columns) + sum(len(r.all.mass) + len(r.alike.mass) for r in repeats)


def _columns(x: Tensor) -> tuple[Tensor, ...]:
    """x [N, S], or [N] of labels, as the values of each column."""
    wide = x if x.dtype == torch.bool else x.double()
    return wide.reshape(len(x), -1).unbind(1)


def _of_mean_one(weight: Tensor) -> Tensor:
    return weight * (len(weight) / weight.sum())
