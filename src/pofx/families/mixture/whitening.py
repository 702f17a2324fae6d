"""Mixtures in whitened coordinates, and their marginals over the observed coordinates of a row.

Mixtures are closed under affine maps, so data are centred and whitened by their pooled covariance (full,
tied) or their standard deviations (diag, spherical) before anything is squared: data far from the origin or
badly scaled lose no digits, and a floor on variances has a meaning.

Shapes: K components, d coordinates, o observed ones, n rows of one pattern of missing entries, m discrete
columns, V values of all of those together. Parameters are float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pofx.codecs.joint import SUMMED

Covariance: TypeAlias = Literal["full", "tied", "diag", "spherical"]

LOG_ZERO = -1e30  # log-probability of the impossible: finite, so that 0 * LOG_ZERO is 0 in a matrix product
LOG_2PI = math.log(2 * math.pi)
SCATTERED = 64  # patterns of missing entries with fewer rows go together
DEGENERATE = 1e-10  # least variance of a whitened direction, relative to standardised columns


@dataclass(frozen=True)
class Components:
    """The parameters, in whitened coordinates.

    factor: lower Cholesky factors [K, d, d] (full), one [d, d] (tied); standard deviations [K, d] (diag),
    [K] (spherical). table [K, V]: log-probabilities of the discrete columns' values, side by side.
    """

    kind: Covariance
    log_weight: Tensor  # [K]
    mean: Tensor  # [K, d]
    factor: Tensor
    table: Tensor

    def deviation(self) -> Tensor:
        """Standard deviations [K, d] of a diagonal or spherical mixture."""
        return self.factor if self.kind == "diag" else self.factor[:, None].expand_as(self.mean)


@dataclass(frozen=True)
class Rows:
    """Rows whose missing entries are handled together.

    Whole rows, and those of one pattern of missing entries, are whitened in the coordinates ``observed``. Where
    entries are missing, diagonal mixtures take a ``mask``, and patterns with few rows go together as
    ``scattered``; both hold standardised v with 0 where missing, in all d coordinates.
    """

    z: Tensor  # [o, n]
    codes: Tensor  # [n, m] int64, places in the table's V values
    weight: Tensor | None  # [n]
    index: Tensor | None  # [n] places in the source; None: all rows in order
    observed: Tensor  # [o]
    cholesky: Tensor | None = None  # [o, o] lower: v = cholesky z; None where z is v
    log_jacobian: float = 0.0  # log |dz / dy|, y raw
    mask: Tensor | None = None  # [o, n]: 1 where observed, of a diagonal mixture
    patterns: Tensor | None = None  # [P, d]: 1 where observed, of scattered rows
    pattern: Tensor | None = None  # [n], rising: which of the patterns


@dataclass(frozen=True)
class Whitening:
    """Raw coordinates y <-> standardised v = (y - location) / scale <-> whitened z = pooled^-1 v."""

    location: Tensor  # [d]
    scale: Tensor  # [d]
    pooled: Tensor | None  # [d, d], lower Cholesky factor of the data's correlation; None for diag and spherical

    @staticmethod
    def of(data: Iterable[tuple[Tensor, Tensor, Tensor | None]], kind: Covariance) -> Whitening:
        """The whitening of data in blocks of (y [n, d] with NaN where missing, ..., weight [n]), gone over twice."""

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for y, _, w in data:
                w = y.new_ones(len(y)) if w is None else w
                yield from zip(y.split(SUMMED), w.split(SUMMED), strict=True)

        y, _ = next(blocks())
        n, d = 0, y.shape[1]
        count, total = y.new_zeros(d), y.new_zeros(d)
        for yb, wb in blocks():
            n += len(yb)
            count += wb @ yb.isnan().logical_not_().double()
            total += wb @ yb.nan_to_num()
        count.clamp_(min=1e-300)
        whole = kind in ("full", "tied")
        location, gram = total / count, y.new_zeros((d, d) if whole else d)
        for yb, wb in blocks():
            v = (yb - location).nan_to_num_()
            if whole:
                gram.addmm_((v * wb[:, None]).T, v)
            else:
                gram += wb @ v.square()
        scale = ((gram.diagonal() if whole else gram) / count).sqrt()
        scale = torch.where(scale > 1e-14 * location.abs(), scale, 1.0)  # of a constant column: its unit
        if not whole:
            return Whitening(location, scale, None)
        # positive semi-definite with missing entries, too
        correlation = gram / (scale * count.sqrt()).outer(scale * count.sqrt())
        correlation *= n / (n + d)  # as d more rows without correlation: few rows do not determine it
        correlation.diagonal().fill_(1.0)
        return Whitening(location, scale, _regular_cholesky(correlation))

    def rows(
        self, y: Tensor, codes: Tensor, weight: Tensor | None, dtype: torch.dtype, scatter: bool = True
    ) -> list[Rows]:
        """Raw y [N, c] of the first c coordinates (NaN: missing) by pattern of missing entries.

        ``scatter``: patterns of few rows may go together.
        """
        if math.isfinite(y.sum().item()):  # nothing is missing, as one cheap pass tells
            return [self._whiten(y, codes, weight, None, torch.arange(y.shape[1], device=y.device), dtype)]
        missing = y.isnan()
        if self.pooled is None:
            v = ((y - self.location[: y.shape[1]]) / self.scale[: y.shape[1]]).nan_to_num_()
            w = None if weight is None else weight.to(dtype)
            every = torch.arange(y.shape[1], device=y.device)
            return [Rows(v.T.to(dtype), codes, w, None, every, mask=(~missing).T.to(dtype))]
        pattern = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        for j in missing.any(0).nonzero().squeeze(1).tolist():
            pattern = torch.unique(2 * pattern + missing[:, j], return_inverse=True)[1]
        groups = pattern.argsort(stable=True).split(pattern.bincount().tolist())
        small = [g for g in groups if scatter and len(g) < SCATTERED]
        out = [
            self._whiten(y, codes, weight, g, (~missing[g[0]]).nonzero().squeeze(1), dtype)
            for g in groups
            if not (scatter and len(g) < SCATTERED)
        ]
        return out + ([self._scatter(y, codes, weight, small)] if small else [])

    def _whiten(
        self, y: Tensor, codes: Tensor, weight: Tensor | None, index: Tensor | None, o: Tensor, dtype: torch.dtype
    ) -> Rows:
        if index is not None:
            y, codes, weight = y[index], codes[index], None if weight is None else weight[index]
        if len(o) < y.shape[1]:
            y = y[:, o]
        cholesky, log_jacobian = None, -self.scale[o].log().sum()
        z = torch.empty(len(o), len(y), dtype=dtype, device=y.device)
        if self.pooled is not None:
            cholesky = self.pooled if len(o) == len(self.scale) else torch.linalg.qr(self.pooled[o].mT).R.mT
            whiten = triangular_inverse(cholesky)
            log_jacobian += whiten.diagonal().abs().log().sum()
            whiten = whiten / self.scale[o]
        for i in range(0, len(y), 2048):
            v = y[i : i + 2048] - self.location[o]
            z[:, i : i + 2048] = whiten @ v.T if self.pooled is not None else (v / self.scale[o]).T
        w = None if weight is None else weight.to(dtype)
        return Rows(z, codes, w, index, o, cholesky, float(log_jacobian))

    def _scatter(self, y: Tensor, codes: Tensor, weight: Tensor | None, groups: list[Tensor]) -> Rows:
        index, (c, d) = torch.cat(groups), (y.shape[1], len(self.scale))
        z = y.new_zeros(d, len(index))
        z[:c] = ((y[index] - self.location[:c]) / self.scale[:c]).nan_to_num_().T
        patterns = y.new_zeros(len(groups), d)
        patterns[:, :c] = (~y[torch.stack([g[0] for g in groups])].isnan()).double()
        sizes = torch.tensor([len(g) for g in groups], device=y.device)
        return Rows(
            z,
            codes[index],
            None if weight is None else weight[index],
            index,
            torch.arange(d, device=y.device),
            patterns=patterns,
            pattern=torch.arange(len(groups), device=y.device).repeat_interleave(sizes),
        )

    def raw(self, z: Tensor) -> Tensor:
        """Whitened z [n, d] -> y [n, d]."""
        return self.location + self.scale * (z if self.pooled is None else z @ self.pooled.mT)


@dataclass(frozen=True)
class Local:
    """The components as whole rows or those of one pattern see them: residuals are y = inverse (z - mean)."""

    constant: Tensor  # [K]: log-weight and log-normalisation
    mean: Tensor  # [K, o]
    inverse: Tensor  # lower triangular [K, o, o] (full), [o, o] (tied)
    span: Tensor | None  # U with orthonormal columns [K, d, o] or [d, o]; None: complete


def marginalise(components: Components, rows: Rows, whitening: Whitening) -> Local:
    """Marginalise full or tied components to the observed coordinates of ``rows`` (not scattered)."""
    o, span = rows.observed, None
    if len(o) == len(whitening.scale):
        mean, inverse = components.mean, triangular_inverse(components.factor)
    else:
        assert whitening.pooled is not None
        assert rows.cholesky is not None
        span, r = torch.linalg.qr((whitening.pooled[o] @ components.factor).mT)
        inverse = triangular_inverse(r.mT) @ rows.cholesky
        mean = torch.linalg.solve_triangular(rows.cholesky, whitening.pooled[o] @ components.mean.T, upper=False).T
    log_det = inverse.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    constant = components.log_weight + log_det + (rows.log_jacobian - 0.5 * len(o) * LOG_2PI)
    return Local(constant, mean, inverse, span)


def _regular_cholesky(a: Tensor) -> Tensor:
    """Lower Cholesky factor of a correlation matrix, its eigenvalues raised to DEGENERATE where they are below."""
    factor, info = torch.linalg.cholesky_ex(a)
    if int(info) == 0 and (len(a) == 0 or float(factor.diagonal().min()) ** 2 > DEGENERATE * len(a)):
        return factor
    return cholesky_above(a, DEGENERATE)


def cholesky_above(a: Tensor, least: float) -> Tensor:
    """Lower L with L L' = a, the eigenvalues of a [..., d, d] raised to ``least`` where they are below.

    By QR, so that small eigenvalues beside large ones keep their digits.
    """
    values, vectors = torch.linalg.eigh(a)
    r = torch.linalg.qr((vectors * values.clamp(min=least).sqrt()[..., None, :]).mT).R.mT
    return r * r.diagonal(dim1=-2, dim2=-1).sgn()[..., None, :]


def triangular_inverse(lower: Tensor) -> Tensor:
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
