"""What a check of the suite looks at: a tiny model of one family, trained on one case."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pofx.core.conditional import Conditional
from pofx.core.errors import PofxError
from pofx.core.likelihood import Available, Unavailable
from pofx.core.model import Model
from pofx.core.registry import register
from pofx.core.requests import Annealed, PerDatum, Request
from pofx.data.parts import Data, Part
from pofx.testing.oracles import Case
from pofx.train.fit import fit
from pofx.train.run import Run, read_run

STEPS = 400  # of gradient learners; whole-sweep learners stop by themselves
STEPS_OF_SEQUENCES = 200  # each goes through many positions
STEPS_BRIEF = 150  # of the many cases of one space given another, and of brief ones

SLOW = (Annealed, PerDatum)  # requests that go many ways or fits for each row: checks ask them of a few rows


@dataclass(eq=False)
class Subject:
    """A tiny model of one family, trained on one case; ``variant`` is one of its ``variants``, "" its ``tiny``."""

    cls: type[Model]
    case: Case
    seed: int = 0
    variant: str = ""

    @property
    def config(self) -> Any:
        space = self.case.space
        return self.cls.variants(space)[self.variant] if self.variant else self.cls.tiny(space)

    @property
    def model(self) -> Model:
        return self.fitted[0]

    @cached_property
    def fitted(self) -> tuple[Model, Run]:
        """The model, and what its run folder gives back."""
        register(self.cls)
        with tempfile.TemporaryDirectory() as place:
            return self.trained(self.case.data, out=Path(place) / "run"), read_run(Path(place) / "run")

    def trained(self, data: Data, out: Path | None = None, **changes: Any) -> Model:
        options = dataclasses.asdict(self.config)
        small = data.space.fill is not None
        steps, recipe = (STEPS_OF_SEQUENCES, {"batch": 32}) if small else (STEPS, {"batch": 200})
        limits: dict[str, Any] = {"steps": steps, "checks": 4, "valid_rows": 100 if small else 500}
        if self.case.given is not None or self.case.brief:
            limits, recipe = {"steps": STEPS_BRIEF, "checks": 2, "valid_rows": 100}, {"batch": 32, "warmup": 10}
            null = "context_dropout" in {*options} - {*self.cls.idle(self.case.space, self.case.context, self.config)}
            options |= {"context_dropout": 0.1} if null and self.case.given else {}
        limits |= changes
        return fit(data, self.cls, seed=self.seed, options=options, recipe=recipe, out=out, **limits).model

    def briefly(self, data: Data, steps: int = 20, checks: int = 1) -> Model:
        """A model trained on few rows for a few steps: enough where two are compared with each other."""
        few = dataclasses.replace(data, train=data.train[:250])
        return self.trained(few, steps=steps, checks=checks, valid_rows=20)

    @cached_property
    def test(self) -> Part:
        return self.case.data.test[:400]

    @property
    def contexts(self) -> list[Tensor | None]:
        """A few single contexts [*Ec], or [None] for p(x)."""
        context = self.case.context
        if context is None:
            return [None]
        if context.values:
            return [torch.tensor(k) for k in range(len(context.values))]
        assert self.test.c is not None
        return [self.test.c[i] for i in range(5)]

    def given(self, part: Part) -> Conditional:
        return self.model.given(part.c)

    def log_prob(self, part: Part, seed: int = 0, request: Request | None = None) -> Available | Unavailable:
        return log_prob(self.model, part, seed, request)

    def available(self, part: Part, seed: int = 0) -> Available:
        """A likelihood, or a skipped check where the family has none."""
        lik = self.log_prob(part, seed)
        if isinstance(lik, Unavailable):
            raise NotApplicable
        return lik


class NotApplicable(Exception):
    """The check says nothing about this family on this case."""


Check = Callable[[Subject], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_prob(model: Model, part: Part, seed: int = 0, request: Request | None = None) -> Available | Unavailable:
    with torch.no_grad():
        return model.given(part.c).log_prob(part.x, request=request, generator=generator(seed))


@contextmanager
def precise(model: Model, request: Request) -> Iterator[Model]:
    """The model; for slow requests a copy in float64, as chains amplify what float32 rounds by a batch's size."""
    if not isinstance(request, SLOW):
        yield model
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield copy.deepcopy(model).double()
    finally:
        torch.set_default_dtype(before)


def every(c: Tensor | None, n: int) -> Tensor | None:
    """One context [*Ec] for each of n rows, or None."""
    return None if c is None else c.expand(n, *c.shape)


def refused(kind: type[PofxError], call: Callable[[], Any], taken: str) -> None:
    """Raises AssertionError, that it was ``taken``, where the call does not raise this error."""
    try:
        call()
    except kind:
        return
    raise AssertionError(taken)


def draw(s: Subject, n: int, seed: int) -> Tensor:
    """n samples [n, *E], each given the context of a test row where there is one."""
    c = None if s.test.c is None else s.test.c[torch.arange(n) % len(s.test.c)]
    if c is None:
        return s.model.sample(n, generator=generator(seed))
    return s.model.given(c).sample(1, generator=generator(seed))[0]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.double().nan_to_num(nan=-1e9), b.double().nan_to_num(nan=-1e9))


# -- frequencies and sums


def coarse(x: Tensor, reach: float = 4.0, cells: int = 10) -> Tensor:
    """Which of 10 x 10 cells each x [N, 2] is in; what is beyond counts to the outermost ones."""
    k = ((x + reach) / (2 * reach) * cells).floor().clamp(0, cells - 1).long()
    return k[:, 0] * cells + k[:, 1]


def count(index: Tensor, size: int) -> Tensor:
    return torch.bincount(index, minlength=size).double()


def index_of(values: Tensor, x: Tensor) -> Tensor:
    """The row of ``values`` [K, ...] that each x [N, ...] is; raises where it is none."""
    a, b = (t[:, None].flatten(1).double().nan_to_num(nan=-1e6) for t in (values, x))
    distance = torch.cdist(b, a, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distance.min(1).values < 1e-6).all(), "a sample lies outside the enumerated values"
    return distance.argmin(1)


def agree(observed: Tensor, expected: Tensor, rough: Tensor, what: str, least: float = 8.0) -> None:
    """Counts are those expected, by Pearson's statistic with all cells of fewer than ``least`` pooled into one.

    ``rough`` is the error of the expected counts themselves; its square widens each cell's variance.
    """
    rare = expected < least
    o, e, r = (torch.cat([t[~rare], t[rare].sum()[None]]) for t in (observed, expected, rough))
    keep = e > 1e-9
    assert float(o[~keep].sum()) == 0, "samples where the density is zero"
    statistic, freedom = float(((o - e) ** 2 / (e + r**2))[keep].sum()), max(1, int(keep.sum()) - 1)
    z = (statistic - freedom) / math.sqrt(2 * freedom)
    assert z < 6, f"{what} disagree with what is stated (chi-squared {statistic:.0f} on {freedom} cells)"


def thinned(mass: Tensor) -> Tensor:
    """The mass of a grid by the midpoint rule on every second point of each axis."""
    n = math.isqrt(len(mass))
    out = torch.zeros(n, n, dtype=torch.float64)
    out[::2, ::2] = 4 * mass.reshape(n, n)[::2, ::2]
    return out.flatten()


def coarsely(grid: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """The mass in each cell of ``coarse``, and the rule's own error there, as in ``rule_error``."""
    groups, none = coarse(grid), torch.zeros(100, dtype=torch.float64)
    fine = none.index_add(0, groups, mass)
    return fine, (fine - none.index_add(0, groups, thinned(mass))).abs()


def rule_error(mass: Tensor) -> float:
    """How far a midpoint rule may be off: its difference to the rule on every second point of each axis.

    Next to nothing for a smooth density; for one with jumps (a histogram) about their size.
    """
    return abs(float(mass.sum() - thinned(mass).sum()))
