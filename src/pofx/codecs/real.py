"""Raw data <-> discrete codes and a standardised real vector, with what the density of the vector lacks, and its kind.

A density on R^d serves a table, an image or any reals through this map x <-> (codes, y): codes and coordinates are
those of ``codecs.columns``, and the coordinates go through a chain of transforms of single entries,

    table, reals   x + step v on a grid -> standardised -> tails -> noise e where absent
    image          level + v (-> to [0, 1] -> logit) -> standardised

With q the law of the noise (of v within a cell, see ``transforms.dequantise``; N(0, 1) where an entry is absent),
Jensen's inequality gives

    log P(x) >= log P(codes) + E_q [ log p(y | codes) + log |dy / dx| - log q ],

a lower bound (Theis et al. 2016, eq. 4-6; Uria et al. 2013), with equality where nothing is noisy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn

from pofx.codecs.columns import Columns, as_event
from pofx.core.errors import Unsupported
from pofx.core.likelihood import Kind
from pofx.core.noise import RowNoise
from pofx.core.space import Space
from pofx.transforms.base import Chain, Noise, Transform
from pofx.transforms.dequantise import Dequantise, LawName
from pofx.transforms.entrywise import Fill, Logit, Standardise, Tails

ROWS_TO_SCALE = 16384  # images looked at to standardise pixels


@dataclass(frozen=True)
class Parts:
    """One draw of (codes, y): codes [N, m] int64, y [N, d].

    ``log_jacobian`` [N] (float64) is log |dy / dx| - log q: what the log-density of y lacks to be that of x.
    """

    codes: Tensor
    y: Tensor
    log_jacobian: Tensor


class Preprocess(nn.Module):
    """The map of one space, to be filled by ``fit`` or a state dict.

    Attributes:
        dim: d, the length of y.
        code_sizes: the number of values of each of the m codes.
        kind: Exact if no noise enters, so that the likelihood of x is as exact as that of y; else LowerBound.
        cells: spreads grids over their cells, where there are any.
    """

    def __init__(self, space: Space, logit: float, shared_scale: bool, dequantise: LawName) -> None:
        super().__init__()
        self.space, self.columns = space, Columns(space)
        self.dim, self.code_sizes = len(self.columns.reals), tuple(c.size for c in self.columns.codes)
        pixels, top = bool(space.pixels), space.symbols or 0
        self.dtype = torch.float32 if pixels else torch.float64
        gaps = any(c.real >= 0 for c in self.columns.codes)
        grids = self.columns.step, self.columns.origin
        self.cells = Dequantise(*grids, gaps=gaps, law=dequantise) if self.columns.step.any() else None
        squash = [Standardise(self.dim, -0.5, top), Logit(logit)] if pixels and logit else []
        self.standard = Standardise(self.dim, shared=shared_scale and pixels, gaps=gaps)
        self.tails = None if pixels else Tails(self.dim)
        self.before = Chain([*([] if self.cells is None else [self.cells]), *squash])  # what the scale is that of
        after: list[Transform] = [self.standard, *([] if self.tails is None else [self.tails]), *[Fill()] * gaps]
        self.chain = Chain([self.before, *after])
        self.logit = bool(squash)

    @property
    def kind(self) -> Kind:
        return self.chain.kind

    @property
    def learns(self) -> bool:
        """Does ``log_jacobian`` have parameters?"""
        return any(True for _ in self.parameters())

    @property
    def scale(self) -> Tensor:
        """Of each entry of y, in raw units [d]."""
        return self.standard.scale

    @torch.no_grad()
    def fit(self, x: Tensor, weight: Tensor | None, generator: torch.Generator) -> None:
        """Fill location, scale (and atoms, and where tails begin) from training rows x [N, *E]."""
        if self.space.pixels:
            rows = slice(None, None, -(-len(x) // ROWS_TO_SCALE))
            x, weight = x[rows], None if weight is None else weight[rows]
        flat = self.columns.flat(x, self.dtype)
        self.columns.fit(lambda j: flat[:, j], flat.new_ones(len(x)) if weight is None else weight)
        v, _ = self.columns.split(x, self.dtype)
        # where all values are atoms: else a new value would lie far from them
        v = torch.where(v.isnan().all(0), flat[:, self.columns.reals], v)
        step = self.columns.step
        if self.cells is not None:
            self.cells.fit(v, weight)
        if self.logit:  # a curve: the variance within a cell is not known
            extra: Tensor | float = (0.1 / (self.space.symbols or 1)) ** 2
            v = self.before(v, noise=RowNoise.by_place(len(v), generator)).z
        else:
            extra = (step.square() / 12).to(v.dtype)  # Var of U[0, step)
        self.standard.fit(v, weight, extra)
        if self.tails is not None:
            self.tails.fit(self.standard(v).z, step / 2 / self.scale)

    def split(self, x: Tensor, noise: Noise | None = None) -> Parts:
        """x [N, *E] -> codes and y, under one draw of the noise.

        Without noise a cell gives its midpoint and an absent entry gives zero: a deterministic point to encode, not
        a likelihood.
        """
        v, codes = self.columns.split(x, self.dtype)
        step = self.chain(v, noise=noise)
        return Parts(codes, step.z, step.log_term.double())

    def edges(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where in y the cells of pixels x [N, *E] begin and end, float64 [N, d]: the outermost are open-ended."""
        v, half = self.columns.flat(x), self.columns.step / 2
        low, high = self.chain(v - half).z, self.chain(v + half).z
        return low.masked_fill(v == 0, -math.inf), high.masked_fill(v + 1 == self.space.symbols, math.inf)

    def values(self, y: Tensor) -> Tensor:
        """The numbers that y [N, d] stands for in raw units, before grids round them: smooth in y."""
        for transform in reversed([*self.before.transforms, *self.chain.transforms[1:]]):
            y = y if isinstance(transform, Dequantise) else transform.inverse(y)  # type: ignore[operator]
        return y

    def join(self, codes: Tensor, y: Tensor) -> Tensor:
        """The inverse of ``split``: x [N, *E] of the space's dtype. Grid values are rounded to their cell."""
        return as_event(self.space, self.columns.join(self.chain.inverse(y.to(self.dtype)), codes))


@singledispatch
def preprocess(
    space: Space, *, logit: float = 0.0, shared_scale: bool = False, dequantise: LawName = "uniform"
) -> Preprocess:
    """The map of ``space``. Raises Unsupported where the space says neither its columns nor its pixels.

    Args:
        logit: for images, alpha > 0 maps v in [0, 1] to logit(alpha + (1 - 2 alpha) v) (Dinh et al. 2017,
            section 4.1; symmetric as in Papamakarios et al. 2017); 0 leaves it out.
        shared_scale: for images, one location and scale for all pixels, not one per pixel.
        dequantise: the law of the noise within the cells of grids.
    """
    if not (space.columns or space.pixels):
        raise Unsupported(f"{space} are no vectors of numbers.", "Register their map with pofx.codecs.real.preprocess.")
    return Preprocess(space, logit, shared_scale, dequantise)
