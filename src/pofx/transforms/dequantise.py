"""Noise that spreads a point of a grid over its cell, and what the bound on its probability owes to it.

    log P(x) >= E_q(v | x) [ log p(x + step v) + log step - log q(v | x) ],   v in [-1/2, 1/2]

with one law q for all entries (Theis et al. 2016, eq. 4-6; Zheng et al. 2023, section 3.2), or one that is learned with
p, so that the bound is tighter (Ho et al. 2019, eq. 4-5).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from pofx.core.likelihood import LowerBound
from pofx.nn.numbers import on_grid
from pofx.transforms.base import Affine, Noise, Step, Transform
from pofx.transforms.coupling import Coupling
from pofx.transforms.entrywise import HALF_LOG_2PI, Standardise, summed

LawName = Literal["uniform", "variational", "truncated-normal"]
REACH = 3.0  # standard deviations from the middle of a cell to its edge, under the truncated normal law
LAYERS, HIDDEN = 4, 64  # of the learned law


class Uniform(nn.Module):
    """v ~ U[-1/2, 1/2). A law gives v [N, d] of x [N, d] and log q(v | x) [N] of those entries that are ``there``."""

    def forward(self, x: Tensor, there: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return noise.rand(x.shape[1]).to(x) - 0.5, x.new_zeros(len(x))


class TruncatedNormal(nn.Module):
    """v ~ N(0, s^2) on [-1/2, 1/2], which ends REACH standard deviations from the middle."""

    def forward(self, x: Tensor, there: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        inside = math.erf(REACH / math.sqrt(2))
        e = math.sqrt(2) * ((2 * noise.rand(x.shape[1]).to(x).double() - 1) * inside).erfinv()
        log_q = math.log(2 * REACH / inside) - HALF_LOG_2PI - 0.5 * e.square()
        return (e / (2 * REACH)).to(x), (log_q * there).sum(1).to(x)


class Variational(nn.Module):
    """v = Phi(e) - 1/2 with e = g(eps; x), eps ~ N(0, I), g affine couplings that are told x: at the start uniform.

    What is not there has no part in what the couplings see, nor in log q.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.standard = Standardise(dim, gaps=True)
        every = torch.arange(dim)
        self.couplings: list[Coupling] = nn.ModuleList(  # type: ignore[assignment]
            Coupling((every % 2 == k % 2) | (dim == 1), Affine(), context=dim, hidden=HIDDEN, blocks=1)
            for k in range(LAYERS)
        )

    def forward(self, x: Tensor, there: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        dtype = self.couplings[0].net.last.weight.dtype
        known, keep = self.standard(x).z.nan_to_num(nan=0.0).to(dtype), there.T.to(dtype)
        start = e = noise.randn(x.shape[1]).to(known).T * keep
        log_slope = e.new_zeros(len(x))
        for layer in self.couplings:
            moved, slopes = layer.scalar.forward(e[layer.changed], layer.parameters_given(e.T, known))
            here = keep[layer.changed]
            e = e.index_copy(0, layer.changed, moved * here)
            log_slope = log_slope + (slopes * here).sum(0)
        # log q = log N(eps) - log |de/deps| - log N(e), as dv/de = N(e)
        log_q = 0.5 * (e.square() - start.square()).sum(0) - log_slope
        return (torch.special.ndtr(e) - 0.5).T.to(x), log_q.to(x)


class Dequantise(Transform):
    """z = x + step v, v ~ q(v | x): a density on cells for a probability on a grid.

    Args:
        step, origin: of the grids, float64 [d]; step 0 leaves an entry as it is.
        gaps: entries may be absent.
        law: q, by its name.
    """

    kind = LowerBound
    step: Tensor
    origin: Tensor

    def __init__(self, step: Tensor, origin: Tensor, *, gaps: bool = False, law: LawName = "uniform") -> None:
        super().__init__()
        self.gaps = gaps
        self.register_buffer("step", step, persistent=False)
        self.register_buffer("origin", origin, persistent=False)
        one = {"uniform": Uniform, "truncated-normal": TruncatedNormal}
        self.law: nn.Module = one[law]() if law in one else Variational(len(step))

    def fit(self, x: Tensor, weight: Tensor | None) -> None:
        """Look at rows x [N, d] of the training data."""
        if isinstance(self.law, Variational):
            self.law.standard.fit(x, weight, (self.step.square() / 12).to(x.dtype))

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        log_term = summed(torch.where(self.step > 0, self.step, 1.0).log(), x, self.gaps)
        if noise is None:
            return Step(x, log_term, kind=self.kind)
        v, log_q = self.law(x, (self.step > 0) & ~x.isnan(), noise)
        return Step(x + v * self.step.to(x.dtype), log_term - log_q, kind=self.kind)

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """To the nearest points of the grids, whose gradient is zero."""
        return on_grid(z, self.step.to(z.dtype), self.origin.to(z.dtype))
