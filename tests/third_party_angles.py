"""A space of one's own in one file: directions on a circle, and a family that knows them.

Each function of pofx below has a default; a space adds its case where the default is not right for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from markupsafe import Markup
from torch import Tensor, nn

from pofx.core.errors import BadValue
from pofx.core.learner import GradientLearner, Recipe
from pofx.core.likelihood import Exact
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.options import Options
from pofx.core.requests import ExactLikelihood
from pofx.core.space import Space, check_shape, register
from pofx.data.parts import Part, described
from pofx.data.raw import RawTable
from pofx.data.rows import new_rows
from pofx.data.write import write_columns, write_rows
from pofx.evaluate.outlier import corrupt
from pofx.evaluate.two_sample import features
from pofx.report.exhibits import Sheet, exhibit


@dataclass(frozen=True)
class Angles(Space):
    """Directions in radians, from -pi (included) to pi; one event is float64 [count]."""

    count: int

    name: ClassVar[str] = "angles"
    dtype: ClassVar[torch.dtype] = torch.float64
    unit: ClassVar[str] = "angle"

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.count,)

    @property
    def measure(self) -> Measure:
        return Measure.lebesgue(self.count)

    def __str__(self) -> str:
        return f"{self.count} angles"

    def check(self, x: Tensor) -> None:
        check_shape(self, x)
        if not ((x >= -math.pi) & (x < math.pi)).all():  # nor is NaN an angle
            raise BadValue("An angle is not from -pi to pi.", "Take it modulo a full turn.")

    def spell(self, x: Tensor) -> str:
        return ", ".join(f"{degrees:.0f}°" for degrees in x.rad2deg().tolist())


register(Angles)  # known by its name in run folders; an entry point in the group "pofx.spaces" does so everywhere


# -- what other rooms do for this space --------------------------------------------------------------------


@described.register
def _(space: Angles, role: str, rows: Any) -> list[dict[str, str]]:
    """Data.describe(): a line for each angle."""
    every = torch.cat([torch.polar(torch.ones_like(part), part) for part in rows])
    entry = {"role": role, "type": "angle", "missing": "", "note": ""}
    means = every.mean(0).angle().rad2deg().tolist()
    return [entry | {"column": f"angle{j + 1}", "values": f"around {v:.0f}°"} for j, v in enumerate(means)]


@write_rows.register
def _(space: Angles, x: Any, to: Any, context: Any = None, c: Any = None, *, options: Any = None) -> None:
    """A table of degrees."""
    x = x if isinstance(x, Tensor) else torch.cat([*x])
    write_columns(to, {f"angle{j + 1}": v.rad2deg() for j, v in enumerate(x.unbind(1))})


@new_rows.register
def _(space: Angles, raw: Any, told: Any) -> Tensor:
    """New rows from such a table."""
    assert isinstance(raw, RawTable)
    columns = [torch.tensor(raw.columns[f"angle{j + 1}"]().to_pylist()) for j in range(space.count)]
    return torch.stack(columns, 1).double().deg2rad()


class CosineSine:
    """What two-sample tests look at: 359 degrees lie beside 1."""

    description = "cosine and sine of each angle"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([x.cos(), x.sin()], 1)


@features.register
def _(space: Angles, x: Tensor, seed: int) -> CosineSine:
    return CosineSine()


@corrupt.register
def _(space: Angles, part: Part, generator: torch.Generator) -> tuple[Part, str]:
    """Outliers that every model should tell from data."""
    turn = 2 * math.pi * torch.rand(len(part), 1, generator=generator, dtype=torch.float64)
    return Part((part.x + turn + math.pi).remainder(2 * math.pi) - math.pi), "test angles turned at random"


@exhibit.register
def _(space: Angles, data: Any, samples: Any, context: Any) -> dict[str, list[Sheet]]:
    """The report: points on circles, data first."""

    def sheet(name: str, rows: Any, caption: str, is_data: bool = False) -> Sheet:
        points = torch.from_numpy(rows["x"][:300]).flatten().tolist()
        dots = "".join(f'<circle cx="{math.cos(v):.3f}" cy="{-math.sin(v):.3f}" r=".02"/>' for v in points)
        svg = f'<svg viewBox="-1.1 -1.1 2.2 2.2" role="img" aria-label="{caption} of {name}">{dots}</svg>'
        return Sheet(name, "", caption, is_data, Markup(svg))

    shown = [sheet("data", data, "held-out angles", True)] if "x" in data else []
    return {"sheets": shown + [sheet(name, rows, "samples") for name, rows in samples.items() if "x" in rows]}


# -- a family that knows the space --------------------------------------------------------------------------


@dataclass(frozen=True)
class VonMisesConfig(Options):
    """It has no options."""


class VonMises(Model):
    """log p(x) = sum_i k_i cos(x_i - m_i) - log(2 pi I0(k_i))"""

    name = "von-mises"
    summary = "independent von Mises distributions of angles"
    taxonomy = "explicit density / tractable / product of marginals"
    paper = "von Mises 1918"
    estimators = (ExactLikelihood,)
    Config = VonMisesConfig

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.middle = nn.Parameter(torch.zeros(space.dims, dtype=torch.float64))
        self.log_narrow = nn.Parameter(torch.zeros(space.dims, dtype=torch.float64))

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        return None if space.name == "angles" and context is None else "it models angles alone. Fit a gmm."

    @classmethod
    def tiny(cls, space: Space) -> VonMisesConfig:
        return VonMisesConfig()

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=256, lr=0.05, epochs=50)

    def prepare(self, x: Tensor, c: Any, weight: Any, generator: torch.Generator) -> None:
        self.middle.data.copy_(torch.polar(torch.ones_like(x), x).mean(0).angle())

    def learner(self, recipe: Recipe) -> GradientLearner:
        return GradientLearner(self, recipe, lambda batch, generator: {"loss": -self.nats(batch.x)})

    def nats(self, x: Tensor) -> Tensor:
        narrow = self.log_narrow.exp()
        log_i0 = torch.special.i0e(narrow).log() + narrow
        return (narrow * (x - self.middle).cos() - math.log(2 * math.pi) - log_i0).sum(-1)

    def rows_log_prob(self, x: Tensor, c: Any, request: Any, noise: Any) -> Exact:
        return Exact(self.nats(x), self.space.measure)

    def rows_sample(self, n: int, c: Any, sampler: Any, generator: torch.Generator) -> Tensor:
        """By rejection: of uniform angles, those below the density."""
        x = torch.full((n, self.space.dims), math.nan, dtype=torch.float64)
        while x.isnan().any():
            u = 2 * math.pi * torch.rand(x.shape, generator=generator, dtype=torch.float64) - math.pi
            height = self.log_narrow.exp() * ((u - self.middle).cos() - 1)
            x = torch.where(x.isnan() & (torch.rand(x.shape, generator=generator).log() < height), u, x)
        return x
