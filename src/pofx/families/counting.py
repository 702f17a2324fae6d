"""What the counting families share: cells, contexts, and one sweep that counts.

A datum is a tuple of cells with an exact density inside each (codecs/cells.py); tables count cells after
histories of earlier cells (nn/backoff.py). A context is one more symbol of the history, its last: every
class has a table of its own, smoothed towards the pooled one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pofx.codecs.cells import cells, sizes
from pofx.core.abilities import InBlocks
from pofx.core.learner import Batch, Local, Recipe, Runtime
from pofx.core.model import Model
from pofx.core.requests import ExactLikelihood, Request
from pofx.core.space import Space, free_length
from pofx.nn.backoff import Backoff
from pofx.spaces import Category

CONTEXTS = 10_000  # cells of the context that get a table of their own
MANY = 1000  # columns: of more, numbers of intervals are not tried in turn, which takes ten times as long
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


class Counting(Model, InBlocks):
    """What the three families share: cells, contexts, and the counting sweep.

    A weight counts as so many rows, after scaling to a mean of one.
    """

    estimators: ClassVar[tuple[type[Request], ...]] = (ExactLikelihood,)
    taxonomy = "explicit density / tractable / table of counts"

    base: Tensor
    site: Tensor

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.cells = cells(space, self.bins(config, space, context))
        self.given_cells = None if context is None else cells(context, _given_bins(config, context))
        self.contexts = contexts(config, context)
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
        if reason := free_length(space, context):
            return reason
        if not (space.columns or space.pixels):
            return f"it counts columns and pixels, and {space} have none. Fit another family."
        if context is not None and not context.columns:
            return f"a table cannot be indexed by {context}; condition on a label or on columns, or fit a classifier."
        if (count := cls.smallest(config, space, context)) > config.limit:
            spelled = f"{count:,}" if count < 10**15 else f"about 10^{math.log10(count):.0f}"
            return f"its table would hold {spelled} counts (limit {config.limit:,}); {cls.remedy}."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        if context is None or all(isinstance(c, Category) for c in getattr(context, "columns", ())):
            yield "given_bins"

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(epochs=1)

    def learner(self, recipe: Recipe) -> CountingLearner:
        return CountingLearner(self)

    def prepare(self, x: Any, c: Any, weight: Tensor | None, generator: torch.Generator) -> None:
        """Choose the cells: the number of intervals per number is that of the best leave-one-out likelihood."""
        weight = torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double().cpu()
        weight = weight * (len(x) / weight.sum())
        x, c, weight = (v.to(self.device) if isinstance(v, Tensor) else v for v in (x, c, weight))
        all_rows = Batch(x, c, weight, total=len(x))
        if self.given_cells is not None and c is not None:
            bins = _given_bins(self.config, self.context)
            self.given_cells.fit(c, weight, bins)
        target, targets = None, self.targets()
        if len(targets) > 1:
            index = torch.randperm(len(x), generator=generator)[:CHOICE_ROWS]
            some = Batch(x[index], None if c is None else c[index], weight[index], total=len(index))
            losses = []
            for t in targets:
                self.choose(some, t)
                losses.append(self.count(some, Local()).item())
            target = targets[losses.index(min(losses))]
        self.choose(all_rows, target)
        for table in self.tables():
            table.clear()

    def targets(self) -> list[int | None]:
        """The numbers of intervals to try for all numbers at once; None is the best for each column alone."""
        largest = self.bins(self.config, self.space, self.context)
        if self.space.dims > MANY or all(isinstance(c, Category) for c in self.space.columns):
            return [None]
        return [None, *(largest // 2**i for i in range(largest.bit_length() - 1))]

    def choose(self, batch: Batch, target: int | None) -> None:
        """Lay the cells with ``target`` intervals per number."""
        assert batch.weight is not None
        self.cells.fit(batch.x, batch.weight, target)
        self.base.copy_(self._base())

    def count(self, batch: Batch, runtime: Runtime) -> Tensor:
        """Fill the tables from ``batch`` and smooth them; the leave-one-out loss, nats per datum."""
        for table in self.tables():
            table.clear()
        total = self.base.new_zeros(2)
        for code, given, within, weight in self._chunks(batch, runtime):
            self.add(code, given, weight)
            total += torch.stack([(within * weight).sum(), weight.sum()])
        for table in self.tables():
            table.share(runtime)
        nats = self.smooth()
        within_all, rows = runtime.sum(total)
        return -(nats + within_all) / rows

    def tables(self) -> list[Backoff]:
        return [module for module in self.modules() if isinstance(module, Backoff)]

    def add(self, code: Tensor, given: Tensor, weight: Tensor) -> None:
        """Count cells [n, S] of contexts [n] and weights [n] in the tables."""
        raise NotImplementedError

    def smooth(self) -> Tensor:
        """Smooth the tables; the leave-one-out log-probability of all cells, nats."""
        raise NotImplementedError

    def _base(self) -> Tensor:
        """P(cell) before counting [S, K]: cells are laid as quantiles, so this is near the truth of numbers."""
        nominal = self.cells.nominal()
        return nominal / nominal.sum(1, keepdim=True)

    def _given(self, c: Tensor | None, n: int) -> Tensor:
        """The number of each row's context [n]."""
        if self.given_cells is None or c is None:
            return torch.zeros(n, dtype=torch.long, device=self.device)
        return join(self.given_cells.encode(c)[0], self.given_cells.sizes)

    def _chunks(self, batch: Batch, runtime: Runtime) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """A few rows at a time: cells [n, S], context [n], log-density within the cells [n], weight [n]."""
        weight = torch.ones(len(batch.x), dtype=torch.float64, device=self.device)
        if batch.weight is not None:
            weight = batch.weight.double() * (batch.total / runtime.sum(batch.weight.double().sum()))
        for i in range(0, len(batch.x), self.rows_per_pass()):
            part = slice(i, i + self.rows_per_pass())
            code, within = self.cells.encode(batch.x[part].to(self.device))
            given = self._given(None if batch.c is None else batch.c[part].to(self.device), len(code))
            yield code, given, within, weight[part]


def join(code: Tensor, radices: tuple[int, ...]) -> Tensor:
    """Digits [N, S], the first the most significant, -> numbers [N]."""
    out = torch.zeros_like(code[:, 0])
    for digit, radix in zip(code.unbind(1), radices, strict=True):
        out = out * radix + digit
    return out


def split(number: Tensor, radices: tuple[int, ...]) -> Tensor:
    """The inverse of ``join``."""
    return torch.stack(torch.unravel_index(number, radices), 1)


def contexts(config: Any, context: Space | None) -> int:
    return 1 if context is None else math.prod(sizes(context, _given_bins(config, context)))


def _given_bins(config: Any, context: Space | None) -> int:
    """Intervals of a number that is conditioned on: fewer, down to 2, where many columns are."""
    few = [b for b in range(2, config.given_bins + 1) if context and math.prod(sizes(context, b)) <= CONTEXTS]
    return max(few, default=min(2, config.given_bins))
