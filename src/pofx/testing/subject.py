"""What a check of the suite looks at: a tiny model of one family, trained on one case."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pofx.core.likelihood import Available, Unavailable
from pofx.core.model import Conditional, Model
from pofx.core.registry import register
from pofx.core.requests import Request
from pofx.data.parts import Data, Part
from pofx.testing.oracles import Case
from pofx.train.fit import fit
from pofx.train.run import Run, read_run

STEPS = 400  # of gradient learners; whole-sweep learners stop by themselves
STEPS_OF_SEQUENCES = 200  # each goes through many positions
STEPS_GIVEN = 100  # of the many cases of one space given another


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
        if self.case.given is not None:
            limits, recipe = {"steps": STEPS_GIVEN, "checks": 2, "valid_rows": 100}, {"batch": 32}
            options |= {"context_dropout": 0.1} if "context_dropout" in options else {}
        limits |= changes
        return fit(data, self.cls, seed=self.seed, options=options, recipe=recipe, out=out, **limits).model

    @cached_property
    def again(self) -> Model:
        """A second fit with the same seed."""
        return self.trained(self.case.data)

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
        with torch.no_grad():
            return self.given(part).log_prob(part.x, request=request, generator=generator(seed))

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
    k = ((x + reach) / (2 * reach) * cells).floor().clamp(0, cells - 1).long()
    return k[:, 0] * cells + k[:, 1]


def chi_squared(observed: Tensor, expected: Tensor, rough: Tensor, least: float = 8.0) -> tuple[float, int]:
    """Pearson's statistic with all cells of fewer than ``least`` expected counts pooled into one.

    ``rough`` is the error of the expected counts themselves; its square widens each cell's variance.
    """
    rare = expected < least
    o, e, r = (torch.cat([t[~rare], t[rare].sum()[None]]) for t in (observed, expected, rough))
    keep = e > 1e-9
    assert float(o[~keep].sum()) == 0, "samples where the density is zero"
    return float(((o - e) ** 2 / (e + r**2))[keep].sum()), max(1, int(keep.sum()) - 1)


def rule_error(mass: Tensor) -> float:
    """How far a midpoint rule may be off: its difference to the rule on every second point of each axis.

    Next to nothing for a smooth density; for one with jumps (a histogram) about their size.
    """
    n = math.isqrt(len(mass))
    return abs(float(mass.sum() - 4 * mass.reshape(n, n)[::2, ::2].sum()))
