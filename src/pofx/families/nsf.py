"""``nsf``: neural spline flows (Durkan et al. 2019), also of angles (Rezende et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pofx.codecs.real import Parts
from pofx.core.errors import UsageError
from pofx.core.options import at_least
from pofx.core.space import Space
from pofx.core.spelling import abridged
from pofx.families.flow import Flow, VectorFlowConfig, halves
from pofx.transforms.base import LuLinear, Noise, Transform
from pofx.transforms.circular import CircularSpline, WithAngles, wrap
from pofx.transforms.spline import BOUND, MOST_BINS, Spline


@dataclass(frozen=True)
class NsfConfig(VectorFlowConfig):
    """Options of ``nsf``, beside those of every flow.

    Attributes:
        kind: "coupling" samples in one pass, "autoregressive" is the stronger density.
        bins: of each spline.
        circular: real columns that are angles, as "name" (of a period of 2 pi) or "name=period": their density is one
            on a circle, alike on both sides of the seam, and for values that are whole periods apart.
    """

    kind: Literal["coupling", "autoregressive"] = "autoregressive"
    bins: int = 8
    circular: tuple[str, ...] = ()

    ranges = {"bins": at_least(1, MOST_BINS)}

    def periods(self, space: Space) -> dict[int, float]:
        """Which columns are angles, and their periods. Raises UsageError for one that cannot be."""
        names, found = [getattr(c, "name", "") for c in space.columns], {}
        for spelled in self.circular:
            name, _, period = (spelled, "", str(2 * math.pi)) if spelled in names else spelled.rpartition("=")
            if name not in names:
                raise UsageError(f"circular names {spelled!r}; columns are {abridged(names)}.", "Name one of them.")
            column = space.columns[names.index(name)]
            if column.measure != "lebesgue":
                raise UsageError(f"Column {name!r} is circular, but no complete real column.", "Leave it out.")
            try:
                found[names.index(name)] = float(period)
            except ValueError:
                found[names.index(name)] = math.nan
            if not 0 < found[names.index(name)] < math.inf:
                raise UsageError(f"The period of {spelled!r} is no positive number.", "Give one, such as angle=360.")
        return found


class Nsf(Flow):
    """Rational-quadratic spline layers with a learned linear map before each.

    Angles (``circular``) have a chain of their own, of couplings that turn them; the other entries are told them.
    """

    name = "nsf"
    summary = "an invertible chain of monotone rational-quadratic splines to a Gaussian"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Durkan, Bekasov, Murray & Papamakarios 2019, Neural Spline Flows"
    Config = NsfConfig
    config: NsfConfig

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if config.circular and config.base != "normal":
            return f"angles start from the circle, not from a {config.base}. Leave base at normal."
        return super().refuses(space, context, config)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if space.pixels:
            yield "circular"

    def whitens(self) -> bool:
        return super().whitens() and not self.config.circular

    def layers(self) -> list[Transform]:
        config, periods = self.config, self.config.periods(self.space)
        self.turning = {self.preprocess.columns.reals.index(j): (j, period) for j, period in periods.items()}
        if not self.turning:
            return self.splines(self.dim, halves(self.space, self.dim))
        angles, rest = len(self.turning), self.dim - len(self.turning)
        circular = self.couplings(CircularSpline(config.bins), half=torch.arange(angles) % 2 == 0, angles=True)
        others = self.splines(rest, torch.arange(rest) % 2 == 0, context=self.width + 2 * angles) if rest else []
        return [WithAngles(self.dim, [*self.turning], circular, others)]

    def splines(self, dim: int, half: Tensor, **size: int) -> list[Transform]:
        scalar, coupled = Spline(self.config.bins), self.config.kind == "coupling"
        chain = self.couplings(scalar, 1, half, **size) if coupled else self.autoregressions(scalar, dim, **size)
        return chain if dim > self.config.linear_up_to else [t for layer in chain for t in (layer, LuLinear(dim))]

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        for i, (j, period) in self.turning.items():  # from the last half period before all the data
            seam = (x.flatten(1)[:, j].min() / (period / 2)).floor() * (period / 2)
            self.preprocess.standard.loc[i] = seam + period / 2
            self.preprocess.standard.scale[i] = period / (2 * BOUND)

    def split(self, x: Tensor, noise: Noise | None = None) -> Parts:
        """With angles in [-B, B)."""
        if self.turning:
            x = x.flatten(1).clone()
            for i, (j, _) in self.turning.items():
                loc, scale = self.preprocess.standard.loc[i], self.preprocess.standard.scale[i]
                x[:, j] = loc + scale * wrap((x[:, j] - loc) / scale)
        return super().split(x, noise)

    def rows_per_pass(self) -> int:
        """A layer holds some arrays of all splines' parameters."""
        return max(1, min(super().rows_per_pass(), 2**23 // (self.dim * 3 * self.config.bins)))
