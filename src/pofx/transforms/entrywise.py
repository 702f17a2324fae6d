"""Transforms of each entry by itself: the way from raw numbers to standardised ones, as parts of a chain.

An entry may be absent, NaN (where ``gaps`` says so): it stays so, and has no part in the log term, until ``Fill`` puts
noise in its place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pofx.core.likelihood import LowerBound
from pofx.nn.numbers import moments
from pofx.nn.tails import REACH, lengthen, shorten
from pofx.transforms.base import Noise, Step, Transform

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Logit(Transform):
    """z = logit(alpha + (1 - 2 alpha) x) of x in [0, 1] (Dinh et al. 2017, section 4.1; Papamakarios et al. 2017)."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        s = self.alpha + (1 - 2 * self.alpha) * x
        log_s, log_rest = s.log(), (-s).log1p()
        return Step(log_s - log_rest, (math.log(1 - 2 * self.alpha) - log_s - log_rest).sum(1))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        return (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha)


class Standardise(Transform):
    """z = (x - loc) / scale, in float64 for what is so: far from the origin float32 has no digits left.

    Args:
        loc, scale: until ``fit``.
        shared: ``fit`` takes one location and scale for all entries.
        gaps: entries may be absent.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, dim: int, loc: float = 0.0, scale: float = 1.0, *, shared: bool = False, gaps: bool = False
    ) -> None:
        super().__init__()
        self.shared, self.gaps = shared, gaps
        self.register_buffer("loc", torch.full((dim,), loc, dtype=torch.float64))
        self.register_buffer("scale", torch.full((dim,), scale, dtype=torch.float64))

    def fit(self, x: Tensor, weight: Tensor | None, extra: Tensor | float = 0.0) -> None:
        """The mean and standard deviation of rows x [N, d]; see ``moments``."""
        loc, scale = moments(x, weight, extra)
        if self.shared:
            loc, scale = loc.mean(), (scale.square() + (loc - loc.mean()).square()).mean().sqrt()
        self.loc.copy_(loc)
        self.scale.copy_(scale)

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        z = (x - self.loc.to(x.dtype)).div_(self.scale.to(x.dtype))
        return Step(z, summed(-self.scale.log(), x, self.gaps))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        return z * self.scale.to(z.dtype) + self.loc.to(z.dtype)


class Tails(Transform):
    """z = s(x) of ``nn.tails``: what lies beyond ``reach`` [d] comes nearer."""

    reach: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("reach", torch.full((dim,), REACH, dtype=torch.float64))

    def fit(self, x: Tensor, margin: Tensor | float = 0.0) -> None:
        """Tails begin beyond all rows x [N, d], and ``margin`` more, or REACH."""
        if len(x):
            self.reach.copy_((x.nan_to_num(nan=0.0).abs().amax(0) + margin).clamp(min=REACH))

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        z, log_slope = shorten(x, self.reach)
        return Step(z, log_slope.sum(1))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        return lengthen(z, self.reach)


class Fill(Transform):
    """Noise N(0, 1) where an entry is absent: a bound, since it says nothing of x (Jensen's inequality)."""

    kind = LowerBound

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        absent = x.isnan()
        e = torch.zeros_like(x) if noise is None else noise.randn(x.shape[1]).to(x)
        return Step(
            torch.where(absent, e, x),
            torch.where(absent, 0.5 * e.square() + HALF_LOG_2PI, 0.0).sum(1),
            kind=self.kind,
        )

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """z itself: which entries were absent, the codes of the columns tell."""
        return z


def summed(log_slope: Tensor, x: Tensor, gaps: bool) -> Tensor:
    """The sum [N] of log slopes [d] that all rows x [N, d] share, over what is there of each."""
    return (~x.isnan()).to(log_slope) @ log_slope if gaps else log_slope.sum().expand(len(x))
