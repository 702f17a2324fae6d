"""Cells: every site of a datum as a finite index plus an exact density within the cell.

    log p(x) = log P(cells of x) + sum over sites of log p(x_s | its cell)

A site is a column, a pixel or a label. Categories and pixel levels are their own cells. A number falls
into one of a few intervals: uniform inside, and the first and the last one carry a tail (exponential
over R, geometric over a grid), so that the density is proper on the whole line and no value is
impossible. A missing entry is a cell of its own. Whatever counts cells is then a density over raw data.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from pofx.core.space import Space, column_of
from pofx.spaces import Category, Column, Image, Integer, Real

PSEUDO = 0.5  # Krichevsky-Trofimov


class Values(nn.Module):
    """A category: one cell per value, and one for missing where it is allowed."""

    def __init__(self, column: Category) -> None:
        super().__init__()
        self.size = _size(column, 0)

    def fit(self, v: Tensor, weight: Tensor, target: int | None) -> None:
        """There is nothing to choose."""

    @property
    def nominal(self) -> Tensor:
        return torch.ones(self.size, dtype=torch.float64)

    def encode(self, v: Tensor) -> tuple[Tensor, Tensor]:
        code = torch.where(torch.isnan(v), self.size - 1, v).long()
        return code, torch.zeros_like(v)

    def decode(self, code: Tensor, missing: Tensor, generator: torch.Generator) -> Tensor:
        return code.double().masked_fill(missing, math.nan)

    def coarse(self, radix: int, mass: Tensor) -> Tensor:
        """The frequent values keep a symbol each, the others share the last one."""
        rank = mass.argsort(descending=True, stable=True).argsort()
        return rank.clamp(max=radix - 1)


class Intervals(nn.Module):
    """A number: half-open intervals [edge_j, edge_j+1), of grid points where the column has a step.

    Edges are quantiles; on a grid a frequent value is an interval of its own. ``bins`` is the largest
    number of intervals; how many of them are in use is chosen on the training data.
    """

    edge: Tensor
    used: Tensor
    share: Tensor
    scale: Tensor
    nominal: Tensor

    def __init__(self, column: Real | Integer, bins: int) -> None:
        super().__init__()
        self.column = column
        self.grid = int(column.step is not None)  # also the distance from an end to the first point beyond it
        self.size = _size(column, bins)
        self.bins = self.size - column.nullable
        edge = torch.full((self.bins + 1,), math.inf, dtype=torch.float64)
        edge[:2] = torch.tensor([0.0, 1.0])
        self.register_buffer("edge", edge)
        self.register_buffer("used", torch.tensor(1))
        # what lies beyond the observed range: its share of the end cell, and its mean distance
        self.register_buffer("share", torch.full((2,), 0.25, dtype=torch.float64))
        self.register_buffer("scale", torch.full((2,), 1.0 + self.grid, dtype=torch.float64))
        nominal = torch.zeros(self.size, dtype=torch.float64)
        nominal[[0, *range(self.bins, self.size)]] = 1.0
        self.register_buffer("nominal", nominal, persistent=False)

    def to_line(self, v: Tensor) -> Tensor:
        """Raw values -> the line of the edges: themselves, or their number on the grid."""
        return v if self.column.step is None else ((v - self.column.origin) / self.column.step).round()

    def encode(self, v: Tensor) -> tuple[Tensor, Tensor]:
        missing = torch.isnan(v)
        u = self.to_line(v).masked_fill(missing, 0.0)
        last = self.used - 1
        j = (torch.searchsorted(self.edge, u, right=True) - 1).clamp(min=0).minimum(last)
        bottom, top = self.edge[0], self.edge[self.used]
        inside = 1 - self.share[0] * (j == 0) - self.share[1] * (j == last)
        within = inside.log() - (self.edge[j + 1] - self.edge[j]).log()
        within = torch.where(u < bottom, self._tail(0, bottom - u), within)
        within = torch.where(u >= top, self._tail(1, u - top + self.grid), within)
        return j.masked_fill(missing, self.size - 1), within.masked_fill(missing, 0.0)

    def _tail(self, side: int, distance: Tensor) -> Tensor:
        """log of share × p(distance): exponential with mean ``scale``, or geometric on 1, 2, ..."""
        share, scale = self.share[side], self.scale[side]
        if self.grid:
            return share.log() - scale.log() + (distance - 1) * torch.log1p(-1 / scale)
        return share.log() - scale.log() - distance / scale

    def decode(self, code: Tensor, missing: Tensor, generator: torch.Generator) -> Tensor:
        j = code.minimum(self.used - 1)
        # one uniform number decides between tails and inside, another where
        which, place = torch.rand(2, len(j), generator=generator, dtype=torch.float64, device=j.device)
        width = self.edge[j + 1] - self.edge[j]
        step = (place * width).floor() if self.grid else place * width
        u = self.edge[j] + step.minimum(width - 1 if self.grid else width)
        low, high = self.share[0] * (j == 0), self.share[1] * (j == self.used - 1)
        u = torch.where(which < low, self.edge[0] - self._tail_draw(0, place), u)
        u = torch.where(which >= 1 - high, self.edge[self.used] + self._tail_draw(1, place) - self.grid, u)
        raw = u if self.column.step is None else self.column.origin + u * self.column.step
        return raw.masked_fill(missing, math.nan)

    def _tail_draw(self, side: int, place: Tensor) -> Tensor:
        if self.grid:  # geometric by inversion
            return (torch.log1p(-place) / torch.log1p(-1 / self.scale[side])).floor() + 1
        return -torch.log1p(-place) * self.scale[side]

    def coarse(self, radix: int, mass: Tensor) -> Tensor:
        """Neighbouring cells share a symbol; missing keeps its own."""
        code = torch.arange(self.size, device=mass.device)
        symbol = code if self.size <= radix else code * (radix - self.column.nullable) // self.used
        return torch.where(code >= self.bins, min(self.size, radix) - 1, symbol.clamp(max=radix - 1))

    # -- choosing the edges ------------------------------------------------------------------------------

    def fit(self, v: Tensor, weight: Tensor, target: int | None) -> None:
        """Edges at the quantiles of values v [N] (NaN: missing) under ``weight`` [N], of mean one.

        ``target`` is the wanted number of quantile cells; None takes the number of the highest
        leave-one-out likelihood.
        """
        keep = ~torch.isnan(v) & (weight > 0)
        if not keep.any():
            return
        u, inverse = torch.unique(self.to_line(v[keep]), return_inverse=True)
        mass = torch.zeros_like(u).index_add_(0, inverse, weight[keep].double())
        if target is None:
            # up to one cell per value on a grid
            finest = mass.sum() / mass.min() if self.grid else torch.tensor(self.bins)
            wanted = {2**i for i in range(math.ceil(math.log2(max(finest.item(), 1.0))) + 1)} | {self.bins}
        else:
            wanted = {2**i for i in range(target.bit_length() - 1)} | {target}
        layouts = [(b, e) for b in sorted(wanted) if len(e := self._edges(u, mass, b)) <= self.bins + 1]
        if target is None:
            chosen, edge = max(layouts, key=lambda layout: self._leave_one_out(u, mass, layout[1]))
        else:
            chosen, edge = layouts[-1]
        self._lay(u, mass, edge, mass.sum() / chosen, weight[torch.isnan(v)].sum())

    def _lay(self, u: Tensor, mass: Tensor, edge: Tensor, frequent: Tensor, missing: Tensor) -> None:
        """Take ``edge``; values of mass ``frequent`` and more have a cell of their own."""
        n = len(edge) - 1
        self.edge.fill_(math.inf)
        self.edge[: n + 1] = edge
        self.used.fill_(n)
        cells = self._masses(u, mass, edge)
        own = (cells >= frequent) & (edge.diff() == 1) & bool(self.grid)
        rest = cells[~own].sum() / (~own).sum().clamp(min=1)  # quantiles: alike
        self.nominal.zero_()
        self.nominal[:n] = torch.where(own, cells, rest) + PSEUDO
        self.nominal[self.bins :] = missing + PSEUDO
        self.share.copy_(PSEUDO / (cells[[0, n - 1]] + 1))
        spread = (edge[-1] - edge[0]) / 20
        ends = torch.stack([_mean_excess(-u.flip(0), mass.flip(0)), _mean_excess(u, mass)])
        self.scale.copy_(torch.where(ends > 0, ends, spread) + self.grid)

    def _edges(self, u: Tensor, mass: Tensor, target: int) -> Tensor:
        """About ``target`` cells of equal mass over the sorted distinct values u [U]."""
        if not self.grid:  # a tie must not gather edges around it
            mass = mass.clamp(max=4 * mass.median().item())
        share = mass.sum() / target
        before = mass.cumsum(0) - mass
        if not self.grid:
            slot = torch.arange(1, target, dtype=u.dtype, device=u.device) * share
            inner = u[torch.searchsorted(before + mass, slot).clamp(max=len(u) - 1)]
            if u[0] == u[-1]:  # a constant: an interval of length one around it
                return torch.stack([u[0] - 0.5, u[0] + 0.5])
            # the largest value lies inside the last cell, and never alone in an interval of no length
            inner = inner[inner < u[-1]]
            end = torch.nextafter(u[-1:], torch.full_like(u[-1:], math.inf))
            return torch.unique(torch.cat([u[:1], inner, end]))
        own = mass >= share
        rest, slot = u[~own], ((before - torch.where(own, mass, 0.0).cumsum(0)) / share).floor()[~own]
        opens = rest[1:][slot[1:] != slot[:-1]]
        starts = torch.cat([u[:1], u[own], u[own] + 1, opens])
        return torch.unique(torch.cat([starts[starts <= u[-1]], u[-1:] + 1]))

    def _masses(self, u: Tensor, mass: Tensor, edge: Tensor) -> Tensor:
        cumulative = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
        return cumulative[torch.searchsorted(u, edge)].diff()

    def _leave_one_out(self, u: Tensor, mass: Tensor, edge: Tensor) -> float:
        """sum over data of log p(u_i | the others), for cells counted from PSEUDO.

        Of reals all equal values are left out together: else a tie would make a spike of any height.
        """
        j = torch.searchsorted(edge, u, right=True) - 1
        out = torch.ones_like(mass) if self.grid else mass
        held_out = (self._masses(u, mass, edge)[j] - out).clamp(min=0) + PSEUDO
        others = mass.sum() - out + PSEUDO * (len(edge) - 1)
        return float((mass * (held_out.log() - edge.diff().log()[j] - others.log())).sum())


def _mean_excess(u: Tensor, mass: Tensor) -> Tensor:
    """How far the values above the 90 % quantile lie above it, on average; zero where there are none."""
    q = u[torch.searchsorted(mass.cumsum(0), 0.9 * mass.sum()).clamp(max=len(u) - 1)]
    above = u > q
    return ((u - q) * mass)[above].sum() / mass[above].sum().clamp(min=1e-300)


def _size(column: Column, bins: int) -> int:
    """The cells of a column: never more intervals than there are grid points in its range."""
    if isinstance(column, Category):
        return len(column.values) + column.nullable
    if column.step is not None and column.low is not None and column.high is not None:
        bins = min(bins, round((column.high - column.low) / column.step) + 1)
    return max(bins, 1) + column.nullable


def sizes(space: Space, bins: int) -> tuple[int, ...]:
    """The number of cells of every site of ``space``, from its declaration alone."""
    if space.pixels:
        return (min(bins, space.symbols or bins),) * space.dims
    return tuple(_size(c, bins) for c in space.columns)


class TableCells(nn.Module):
    """The sites of a whole datum: columns of a space that has some (a table, a label, reals, codes, a pair of these).

    ``sizes[s]`` is the number of cells of site s, ``size`` the largest.
    """

    nothing: Tensor
    sites: Any  # a ModuleList of Values and Intervals

    def __init__(self, space: Space, bins: int) -> None:
        super().__init__()
        self.space, self.sizes = space, sizes(space, bins)
        self.columns: tuple[Column, ...] = space.columns
        self.sites = nn.ModuleList(Values(c) if isinstance(c, Category) else Intervals(c, bins) for c in self.columns)
        self.register_buffer("nothing", torch.empty(0), persistent=False)  # knows the device

    @property
    def size(self) -> int:
        return max(self.sizes)

    def fit(self, x: Any, weight: Tensor, target: int | None = None) -> None:
        """Choose the cells from data x [N, *E], a column at a time, with weights [N] of mean one."""
        for j, site in enumerate(self.sites):
            site.fit(column_of(x, j).to(weight.device).double(), weight, target)

    def nominal(self) -> Tensor:
        """About how much mass the cells were laid for [S, size]; zero for those that no datum falls into."""
        out = torch.zeros(len(self.sizes), self.size, dtype=torch.float64, device=self.nothing.device)
        for s, site in enumerate(self.sites):
            out[s, : site.size] = site.nominal
        return out

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, *E] -> cell indices int64 [N, S], and log p(x | its cells) [N]."""
        rows = x.double().reshape(-1, len(self.columns))
        pairs = [site.encode(v) for site, v in zip(self.sites, rows.unbind(1), strict=True)]
        return torch.stack([c for c, _ in pairs], 1), torch.stack([w for _, w in pairs]).sum(0)

    def decode(self, code: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x [N, *E] within the cells ``code`` [N, S]."""
        out = []
        for site, column, c in zip(self.sites, self.columns, code.unbind(1), strict=True):
            missing = c == site.size - 1 if column.nullable else torch.zeros_like(c, dtype=torch.bool)
            out.append(site.decode(c, missing, generator))
        return torch.stack(out, 1).to(self.space.dtype).reshape(-1, *self.space.event_shape)

    def coarse(self, radix: int, mass: Tensor) -> Tensor:
        """Cell -> one of at most ``radix`` symbols, int64 [S, size]; ``mass`` [S, size] of the cells."""
        out = torch.zeros(len(self.sizes), self.size, dtype=torch.long, device=mass.device)
        for s, site in enumerate(self.sites):
            out[s, : site.size] = site.coarse(radix, mass[s, : site.size])
        return out


class ImageCells(TableCells):
    """The pixels of an image in raster order, channels last; levels in ``size`` groups of neighbours."""

    space: Image
    first: Tensor

    def __init__(self, space: Image, bins: int) -> None:
        super().__init__(space, bins)
        # group j holds the levels from ceil(j L / B) on: those with floor(level B / L) = j
        first = [-(-j * space.levels // self.size) for j in range(self.size + 1)]
        self.register_buffer("first", torch.tensor(first), persistent=False)

    def fit(self, x: Any, weight: Tensor, target: int | None = None) -> None:
        """Levels are grouped without looking at the data."""

    def nominal(self) -> Tensor:
        return torch.ones(self.space.dims, self.size, dtype=torch.float64, device=self.first.device)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = x.permute(0, 2, 3, 1).reshape(len(x), -1).long()
        if self.size == self.space.levels:
            return code, torch.zeros(len(x), dtype=torch.float64, device=x.device)
        code = code * self.size // self.space.levels
        return code, -self.first.diff().double().log()[code].sum(1)

    def decode(self, code: Tensor, generator: torch.Generator) -> Tensor:
        width = self.first.diff()[code]
        place = torch.rand(code.shape, generator=generator, dtype=torch.float64, device=code.device)
        level = self.first[code] + (place * width).long().minimum(width - 1)
        c, h, w = self.space.event_shape
        return level.reshape(-1, h, w, c).permute(0, 3, 1, 2).to(self.space.dtype)

    def coarse(self, radix: int, mass: Tensor) -> Tensor:
        symbol = torch.arange(self.size, device=mass.device) * min(radix, self.size) // self.size
        return symbol.expand(self.space.dims, -1)


@singledispatch
def cells(space: Space, bins: int) -> TableCells:
    """The cells of ``space``, with at most ``bins`` intervals per number or groups of levels per pixel."""
    return TableCells(space, bins)


@cells.register
def _(space: Image, bins: int) -> TableCells:
    return ImageCells(space, bins)
