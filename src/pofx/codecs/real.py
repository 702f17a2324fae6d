"""Raw data <-> discrete codes and a standardised real vector, with the log-Jacobian and its kind.

A density on R^d serves a table or an image through this map x <-> (codes, y):

    column               code                               entry of y
    Category             its value, or missing              none
    Real                 none                               x
    Real, nullable       present, missing                   x, or noise where missing
    Integer or a step    value, one of 8 atoms, (missing)   x + step (u - 1/2), u ~ U[0, 1); noise at atoms
    pixel                none                               (x + u) / levels, then optionally its logit

An *atom* is a grid value so frequent that a density would have to spike there (Integer columns with many
zeros, say); its probability is the code's alone. Then y is standardised. With q the law of the noise
(uniform within a cell, N(0, 1) where an entry is absent), Jensen's inequality gives

    log P(x) >= log P(codes) + E_q [ log p(y | codes) + log |dy / dx| - log q ],

a lower bound (Theis et al. 2016, eq. 4-6; Uria et al. 2013), with equality where nothing is noisy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.core.likelihood import Exact, Kind, LowerBound
from pofx.core.space import Space
from pofx.nn.tails import REACH, lengthen, shorten
from pofx.spaces import Category, Image, Integer, Real, Reals, Table

ATOMS = 8  # at most so many per column
ATOM_DENSITY = 4.0  # in standardised units: ten times the peak of a normal curve
ATOM_SHARE = 0.005  # of the rows
ROWS_TO_SCALE = 16384  # images looked at to standardise pixels

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Parts:
    """One draw of (codes, y): codes [N, m] int64, y [N, d].

    ``log_jacobian`` [N] (float64) is log |dy / dx| - log q: what the log-density of y lacks to be that of x.
    """

    codes: Tensor
    y: Tensor
    log_jacobian: Tensor


class Preprocess(nn.Module):
    """Common part of both spaces; ``preprocess(space)`` constructs the right one.

    Attributes:
        dim: d, the length of y.
        code_sizes: the number of values of each of the m codes.
        uniform, normal: whether ``split`` uses uniform noise u, normal noise e.
    """

    loc: Tensor
    scale: Tensor
    dim: int
    code_sizes: tuple[int, ...]
    uniform: bool
    normal: bool

    @property
    def kind(self) -> Kind:
        """Exact if no noise enters, so that the likelihood of x is as exact as that of y; else LowerBound."""
        return LowerBound if self.uniform or self.normal else Exact

    def fit(self, x: Tensor, weight: Tensor | None, generator: torch.Generator) -> None:
        """Fill location, scale (and atoms) from training rows x [N, *E]."""
        raise NotImplementedError

    def split(self, x: Tensor, u: Tensor | None = None, e: Tensor | None = None) -> Parts:
        """x [N, *E] -> codes and y, with noise u, e [N, d] (uniform, normal).

        Without noise (None) a cell gives its midpoint and an absent entry gives zero: a deterministic point
        to encode, not a likelihood.
        """
        raise NotImplementedError

    def join(self, codes: Tensor, y: Tensor) -> Tensor:
        """The inverse of ``split``: x [N, *E] of the space's dtype. Grid values are rounded to their cell."""
        raise NotImplementedError


def preprocess(space: Space, *, logit: float = 0.0, shared_scale: bool = False) -> Preprocess:
    """The map of ``space`` (a Table or an Image), to be filled by ``fit`` or a state dict.

    Args:
        logit: for images, alpha > 0 maps v in [0, 1] to logit(alpha + (1 - 2 alpha) v) (Dinh et al. 2017,
            section 4.1; symmetric as in Papamakarios et al. 2017); 0 leaves it out.
        shared_scale: for images, one location and scale for all pixels, not one per pixel.
    """
    if isinstance(space, Image):
        return ImagePreprocess(space, logit, shared_scale)
    if isinstance(space, Reals):  # as real columns
        return TablePreprocess(Table(tuple(Real(str(i)) for i in range(space.dims))), space.shape)
    assert isinstance(space, Table)
    return TablePreprocess(space)


class TablePreprocess(Preprocess):
    step: Tensor
    origin: Tensor
    atoms: Tensor
    reach: Tensor

    def __init__(self, space: Table, shape: tuple[int, ...] = (-1,)) -> None:
        super().__init__()
        self.columns, self.shape = len(space.columns), shape
        numeric = [(j, c) for j, c in enumerate(space.columns) if not isinstance(c, Category)]
        self.category = [(j, len(c.values), c.nullable) for j, c in enumerate(space.columns) if isinstance(c, Category)]
        self.numeric = [j for j, _ in numeric]
        # a numeric column with a code: (its place in y, has atoms, nullable)
        self.coded = [(i, c.step is not None, c.nullable) for i, (_, c) in enumerate(numeric) if _has_code(c)]
        self.dim = len(numeric)
        self.code_sizes = (
            *(size + nullable for _, size, nullable in self.category),
            *(1 + ATOMS * grid + nullable for _, grid, nullable in self.coded),
        )
        self.uniform = any(c.step is not None for _, c in numeric)
        self.normal = bool(self.coded)
        f64: dict[str, Any] = {"dtype": torch.float64}
        # step 0: no grid
        self.register_buffer("step", torch.tensor([c.step or 0.0 for _, c in numeric], **f64), persistent=False)
        self.register_buffer("origin", torch.tensor([c.origin for _, c in numeric], **f64), persistent=False)
        self.register_buffer("loc", torch.zeros(self.dim, **f64))
        self.register_buffer("scale", torch.ones(self.dim, **f64))
        self.register_buffer("reach", torch.full((self.dim,), REACH, **f64))  # of the tails, in units of scale
        self.register_buffer("atoms", torch.full((self.dim, ATOMS), math.nan, **f64))  # NaN: unused

    def fit(self, x: Tensor, weight: Tensor | None, generator: torch.Generator) -> None:
        x = x.flatten(1)
        w = torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double()
        self.atoms.fill_(math.nan)
        for i, j in enumerate(self.numeric):
            keep = ~torch.isnan(x[:, j])
            v, wv = x[keep, j], w[keep]
            if len(v) == 0:
                continue  # every value is missing: the density here is of noise alone
            step = self.step[i].item()
            if step:
                found = find_atoms(v, wv, step)
                self.atoms[i, : len(found)] = found
                rest = ~torch.isin(v, found)
                if rest.any():  # else a new value would lie near the atoms
                    v, wv = v[rest], wv[rest]
            loc = (wv * v).sum() / wv.sum()
            var = (wv * (v - loc).square()).sum() / wv.sum() + step**2 / 12  # Var of U[0, step) is step^2 / 12
            self.loc[i] = loc
            # a constant column leaves only rounding: any scale serves it
            self.scale[i] = var.sqrt() if var.sqrt() > 1e-12 * loc.abs() else 1.0
            self.reach[i] = (((v - loc).abs().max() + step / 2) / self.scale[i]).clamp(min=REACH)

    def split(self, x: Tensor, u: Tensor | None = None, e: Tensor | None = None) -> Parts:
        x = x.flatten(1)
        v = x[:, self.numeric].double()
        absent = torch.isnan(v)
        codes = []
        for j, size, _ in self.category:
            codes.append(torch.nan_to_num(x[:, j], nan=size).long())
        for i, grid, nullable in self.coded:
            code = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            if grid:
                hit = (v[:, i, None] - self.atoms[i]).abs() < self.step[i] / 2
                code = hit.long().argmax(1) + 1
                code = torch.where(hit.any(1), code, 0)
                absent[:, i] |= hit.any(1)
            if nullable:
                code = torch.where(torch.isnan(v[:, i]), self.code_sizes[len(codes)] - 1, code)
            codes.append(code)
        if u is not None:
            v = v + self.step * (u - 0.5)
        y, log_slope = shorten((v - self.loc) / self.scale, self.reach)
        noise = torch.zeros_like(y) if e is None else e.double()
        y = torch.where(absent, noise, y)
        cell = torch.where(self.step > 0, self.step, 1.0)
        log_jacobian = torch.where(absent, 0.5 * noise.square() + HALF_LOG_2PI, (cell / self.scale).log() + log_slope)
        stacked = torch.stack(codes, 1) if codes else torch.zeros(len(x), 0, dtype=torch.int64, device=x.device)
        return Parts(stacked, y, log_jacobian.sum(1))

    def join(self, codes: Tensor, y: Tensor) -> Tensor:
        v = lengthen(y.double(), self.reach) * self.scale + self.loc
        k = ((v - self.origin) / torch.where(self.step > 0, self.step, 1.0)).round()
        v = torch.where(self.step > 0, self.origin + k * self.step, v)
        x = torch.empty(len(y), self.columns, dtype=torch.float64, device=y.device)
        for code, (j, size, _) in zip(codes.T, self.category, strict=False):
            x[:, j] = torch.where(code == size, math.nan, code.double())
        for code, size, (i, grid, nullable) in zip(
            codes.T[len(self.category) :], self.code_sizes[len(self.category) :], self.coded, strict=True
        ):
            if grid:
                atom = F.pad(self.atoms[i], (1, 1), value=math.nan)[code]  # codes 0 and missing: no atom
                v[:, i] = torch.where(torch.isnan(atom), v[:, i], atom)
            if nullable:
                v[:, i] = torch.where(code == size - 1, math.nan, v[:, i])
        x[:, self.numeric] = v
        return x.reshape(-1, *self.shape) if len(self.shape) > 1 else x


class ImagePreprocess(Preprocess):
    def __init__(self, space: Image, logit: float, shared_scale: bool) -> None:
        super().__init__()
        self.shape, self.levels, self.logit, self.shared_scale = space.event_shape, space.levels, logit, shared_scale
        self.dim = space.dims
        self.code_sizes, self.uniform, self.normal = (), True, False
        self.register_buffer("loc", torch.zeros(self.dim))
        self.register_buffer("scale", torch.ones(self.dim))

    def fit(self, x: Tensor, weight: Tensor | None, generator: torch.Generator) -> None:
        rows = slice(None, None, -(-len(x) // ROWS_TO_SCALE))
        u = torch.rand(len(x[rows]), self.dim, generator=generator, device=generator.device).to(x.device)
        v, _ = self._unit(x[rows], u)
        w = torch.ones(len(v), 1) if weight is None else weight[rows, None].float()
        w = w / w.sum()
        dims = (0, 1) if self.shared_scale else (0,)
        per_pixel = 1 / self.dim if self.shared_scale else 1.0
        loc = (w * v).sum(dims) * per_pixel
        self.loc.copy_(loc.expand(self.dim))
        scale = ((w * (v - loc).square()).sum(dims) * per_pixel).sqrt()
        # the noise within a cell has a deviation of 0.29 / levels: few images, or a single one, may show less
        self.scale.copy_(scale.clamp(min=0.1 / self.levels).expand(self.dim))

    def _unit(self, x: Tensor, u: Tensor | float) -> tuple[Tensor, Tensor]:
        """(x + u) / levels [N, d] and its logit where asked, with log |dv / dx| [N] (float64)."""
        v = (x.flatten(1).float() + u) / self.levels
        log_jacobian = torch.full((len(x),), -self.dim * math.log(self.levels), dtype=torch.float64, device=x.device)
        if self.logit:
            s = self.logit + (1 - 2 * self.logit) * v
            v = s.log() - (-s).log1p()
            log_jacobian += (math.log(1 - 2 * self.logit) - s.log() - (-s).log1p()).sum(1)
        return v, log_jacobian

    def split(self, x: Tensor, u: Tensor | None = None, e: Tensor | None = None) -> Parts:
        v, log_jacobian = self._unit(x, 0.5 if u is None else u)
        codes = torch.zeros(len(x), 0, dtype=torch.int64, device=x.device)
        return Parts(codes, (v - self.loc) / self.scale, log_jacobian - self.scale.double().log().sum())

    def join(self, codes: Tensor, y: Tensor) -> Tensor:
        v = y * self.scale + self.loc
        if self.logit:
            v = (v.sigmoid() - self.logit) / (1 - 2 * self.logit)
        # mass beyond the first and last cell goes to them, so the bound stays below the sampled probability
        return (v * self.levels).floor().clamp(0, self.levels - 1).to(torch.uint8).reshape(-1, *self.shape)


def _has_code(column: Real | Integer) -> bool:
    return column.nullable or column.step is not None


def find_atoms(v: Tensor, weight: Tensor, step: float) -> Tensor:
    """The at most ATOMS values of grid column v [N] on which a standardised density would spike."""
    values, index = v.unique(return_inverse=True)
    share = torch.zeros_like(values).index_add_(0, index, weight) / weight.sum()
    mean = (share * values).sum()
    spread = ((share * (values - mean).square()).sum() + step**2 / 12).sqrt()
    top = share.topk(min(ATOMS, len(share)))
    spiky = (top.values * spread / step > ATOM_DENSITY) & (top.values >= ATOM_SHARE)
    return values[top.indices[spiky]]
