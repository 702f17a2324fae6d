"""The joint vector of context and datum that a mixture models: (c, x) <-> real coordinates y and codes.

    column                 code                               entry of y
    Category, Label        its value, or missing              none
    Real                   (present, missing)                 x; NaN where missing
    Integer or a step      value, one of 8 atoms, (missing)   x + step (u - 1/2), u ~ U[0, 1); NaN at atoms
    pixel                  none                               x + u - 1/2

NaN entries are marginalised exactly, so an atom or a missing entry costs no bound: its probability is its
code's. Contexts come first in y. With ``per_class`` the categories of the context (or the label that is
modelled) become one code, the class, which is the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.codecs.columns import ATOMS, find_atoms
from pofx.core.space import Space
from pofx.spaces import Category, Image, Label, Table

SUMMED = 8192  # rows that are summed at a time
NUMBERS = 2**22  # in a block of rows

Block: TypeAlias = "tuple[Tensor, Tensor, Tensor | None]"


@dataclass(frozen=True)
class Code:
    """One discrete column: raw columns and their sizes (several: a class), or the state of coordinate ``real``."""

    size: int
    given: bool  # part of the context
    columns: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    real: int = -1
    grid: bool = False
    nullable: bool = False


def class_sizes(space: Space, context: Space | None) -> tuple[int, ...]:
    """The sizes of the discrete columns that make a class; their product is the number of classes."""
    if isinstance(space, Label):
        return (len(space.values),)
    if isinstance(context, Label):
        return (len(context.values),)
    if isinstance(context, Table):
        return tuple(len(c.values) + c.nullable for c in context.columns if isinstance(c, Category))
    return ()


class Joint(nn.Module):
    """The layout of one space and context; the atoms are its only fitted part.

    Attributes:
        dim, given_dim: real coordinates in all, and how many of them (the first) are the context's.
        codes: discrete columns; offset [m]: where the values of each start among the ``values`` of all.
        groups: classes; 1 without.
    """

    step: Tensor
    origin: Tensor
    atoms: Tensor
    offset: Tensor

    def __init__(self, space: Space, context: Space | None, per_class: bool) -> None:
        super().__init__()
        self.space, self.context = space, context
        self.real: list[int] = []  # raw columns of the coordinates
        codes: list[Code] = []
        steps: list[float] = []
        origins: list[float] = []
        start = 0
        for part, given in ((context, True), (space, False)):
            if isinstance(part, Image):
                self.real += range(start, start + part.dims)
                steps, origins = steps + [1.0] * part.dims, origins + [0.0] * part.dims
            elif isinstance(part, Label):
                codes.append(Code(len(part.values), given, (start,), (len(part.values),)))
            elif isinstance(part, Table):
                for j, column in enumerate(part.columns):
                    if isinstance(column, Category):
                        size = len(column.values) + column.nullable
                        codes.append(Code(size, given, (start + j,), (size,), nullable=column.nullable))
                        continue
                    grid = column.step is not None
                    if grid or column.nullable:
                        size = 1 + ATOMS * grid + column.nullable
                        codes.append(Code(size, given, real=len(steps), grid=grid, nullable=column.nullable))
                    self.real.append(start + j)
                    steps.append(column.step or 0.0)
                    origins.append(column.origin if column.step is not None else 0.0)
            if given:
                self.given_dim, self.width = len(steps), 0 if part is None else part.dims
                start = self.width
        self.groups = math.prod(class_sizes(space, context)) if per_class else 1
        self.codes = _with_class(codes, class_sizes(space, context), space) if per_class else codes
        self.given_codes = [i for i, code in enumerate(self.codes) if code.given]
        self.dim, self.values = len(steps), sum(code.size for code in self.codes)
        offset = torch.tensor([0, *(code.size for code in self.codes)]).cumsum(0)[:-1]
        gridded = [code.real for code in self.codes if code.grid]
        f64: dict[str, Any] = {"dtype": torch.float64}
        self.register_buffer("step", torch.tensor(steps, **f64), persistent=False)
        self.register_buffer("origin", torch.tensor(origins, **f64), persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("atoms", torch.full((len(gridded), ATOMS), math.nan, **f64))  # NaN: unused
        self.place = {i: row for row, i in enumerate(gridded)}  # of a coordinate among the atoms

    def fit(self, x: Any, c: Any, weight: Tensor) -> Tensor:
        """Find the atoms; base [values]: smoothed frequencies of every code, the unused slots of atoms at 0."""
        self.atoms.fill_(math.nan)
        for i, row in self.place.items():
            j = self.real[i]
            v = (c[:, j] if j < self.width else x[:, j - self.width]).to(self.step)
            keep = ~v.isnan()
            if keep.any():
                found = find_atoms(v[keep], weight[keep], float(self.step[i]))
                self.atoms[row, : len(found)] = found
        counts, every = weight.new_zeros(self.values), range(len(self.codes))
        for at in self.slices(len(x)) if self.codes else ():
            codes = self._codes(self._raw(x[at], None if c is None else c[at]), every)
            counts.index_add_(0, codes.flatten(), weight[at].repeat_interleave(codes.shape[1]))
        return self.frequencies(counts)

    def frequencies(self, counts: Tensor) -> Tensor:
        """Probabilities of the values of every code, with one pseudo-row for each value in use."""
        used = torch.ones_like(counts)
        for i, code in enumerate(self.codes):
            if code.grid:
                at = int(self.offset[i]) + 1
                used[at : at + ATOMS] = (~self.atoms[self.place[code.real]].isnan()).to(used.dtype)
        smoothed = (counts + 1) * used
        return torch.cat([p / p.sum() for p in smoothed.split([c.size for c in self.codes])] or [smoothed])

    def slices(self, n: int) -> Iterator[slice]:
        """n rows in blocks, which are whole numbers of those that a whitening sums over."""
        size = SUMMED * max(1, NUMBERS // (SUMMED * (len(self.real) + len(self.codes))))
        return (slice(i, min(i + size, n)) for i in range(0, n, size))

    def blocks(self, x: Any, c: Any, weight: Tensor, noise: torch.Generator) -> Iterable[Block]:
        """The rows in blocks that can be gone over several times; those of tensors are kept. Takes a pass of noise."""
        if isinstance(x, Tensor) and (c is None or isinstance(c, Tensor)):
            return list(Blocks(self, x, c, weight, noise).once(noise))
        found = Blocks(self, x, c, weight, noise.clone_state())
        for at in self.slices(len(x)):
            torch.rand(at.stop - at.start, len(self.grid()), generator=noise, device=noise.device)
        return found

    def split(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """y [N, d] with NaN where absent, at the middle of grid cells, and codes [N, m] as places in ``values``."""
        raw = self._raw(x, c)
        return self._reals(raw, self.dim), self._codes(raw, range(len(self.codes)))

    def split_given(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The context's part of ``split``."""
        raw = self._flat(c)
        return self._reals(raw, self.given_dim), self._codes(raw, self.given_codes)

    def grid(self, given: bool = True) -> Tensor:
        """The coordinates on a grid, those of the context included or not."""
        grid = self.step.nonzero().squeeze(1)
        return grid if given else grid[grid >= self.given_dim]

    def dequantise(self, y: Tensor, grid: Tensor, u: Tensor) -> Tensor:
        """y + step (u - 1/2) at the coordinates ``grid``, for u [N, len(grid)] in [0, 1)."""
        y = y.clone()
        y[:, grid] += self.step[grid] * (u - 0.5)
        return y

    @property
    def complete(self) -> bool:
        """Whether no entry of y can be absent."""
        return bool(self.atoms.isnan().all()) and not any(code.nullable and code.real >= 0 for code in self.codes)

    def join(self, y: Tensor, codes: Tensor) -> Tensor:
        """The datum x [N, *E] of y [N, d] and the codes' values [N, m] (those of the context are not read)."""
        if isinstance(self.space, Label):
            return codes[:, 0 if self.groups > 1 else -1]
        cell = torch.where(self.step > 0, self.step, 1.0)
        y = torch.where(self.step > 0, self.origin + ((y - self.origin) / cell).round() * cell, y)
        if isinstance(self.space, Image):
            x = y[:, self.given_dim :].clamp(0, self.space.levels - 1).to(torch.uint8)
            return x.reshape(-1, *self.space.event_shape)
        x = y.new_empty(len(y), self.space.dims)
        x[:, [j - self.width for j in self.real[self.given_dim :]]] = y[:, self.given_dim :]
        for i, code in enumerate(self.codes):
            if code.given:
                continue
            value, at = codes[:, i], (code.columns[0] if code.real < 0 else self.real[code.real]) - self.width
            v = value.double() if code.real < 0 else x[:, at]
            if code.grid:
                atom = F.pad(self.atoms[self.place[code.real]], (1, 1), value=math.nan)[value]
                v = torch.where(atom.isnan(), v, atom)
            x[:, at] = torch.where(value == code.size - 1, math.nan, v) if code.nullable else v
        return x

    def _flat(self, part: Tensor) -> Tensor:
        return part.to(self.step).reshape(len(part), -1)

    def _raw(self, x: Tensor, c: Tensor | None) -> Tensor:
        flat = self._flat(x)
        return flat if c is None else torch.cat([self._flat(c), flat], 1)

    def _reals(self, raw: Tensor, d: int) -> Tensor:
        """The first d coordinates; ``raw`` itself where that is all (it is never written to)."""
        columns = self.real[:d]
        y = raw if columns == list(range(raw.shape[1])) else raw[:, columns]
        for i, row in self.place.items():
            if i < d:
                hit = self._hit(raw, i, row).any(1)
                y = y.clone() if y is raw else y
                y[hit, i] = math.nan
        return y

    def _hit(self, raw: Tensor, i: int, row: int) -> Tensor:
        """Which atom the grid coordinate i is at [N, ATOMS]."""
        return (raw[:, self.real[i], None] - self.atoms[row]).abs() < self.step[i] / 2

    def _codes(self, raw: Tensor, which: range | list[int]) -> Tensor:
        codes = torch.zeros(len(raw), len(which), dtype=torch.int64, device=raw.device)
        for at, i in enumerate(which):
            code = self.codes[i]
            value = codes[:, at]
            if code.real < 0:
                for j, size in zip(code.columns, code.sizes, strict=True):
                    value.mul_(size).add_(raw[:, j].nan_to_num(nan=size - 1).long())
            else:
                if code.grid:
                    hit = self._hit(raw, code.real, self.place[code.real])
                    value.copy_(torch.where(hit.any(1), hit.long().argmax(1) + 1, 0))
                if code.nullable:
                    value[raw[:, self.real[code.real]].isnan()] = code.size - 1
            value += self.offset[i]
        return codes


@dataclass(frozen=True)
class Blocks:
    """Rows x [N, *E] given c as blocks (y [n, d] dequantised, codes [n, m], weight [n]), the same on every pass.

    Nothing is kept between two blocks, so that x and c may be Rows beyond memory.
    """

    joint: Joint
    x: Any
    c: Any
    weight: Tensor | None
    noise: torch.Generator  # as it is before every pass

    def __iter__(self) -> Iterator[Block]:
        return self.once(self.noise.clone_state())

    def once(self, noise: torch.Generator) -> Iterator[Block]:
        grid = self.joint.grid()
        for at in self.joint.slices(len(self.x)):
            y, codes = self.joint.split(self.x[at], None if self.c is None else self.c[at])
            if len(grid):
                u = torch.rand(len(y), len(grid), generator=noise, device=noise.device)
                y = self.joint.dequantise(y, grid, u.to(y.device))
            yield y, codes, None if self.weight is None else self.weight[at]


def rows_at(blocks: Iterable[Block], index: Tensor) -> list[Tensor]:
    """y, codes and weight of the rows with the numbers ``index``, in its order."""
    order, start, found = index.argsort(), 0, []
    for block in blocks:
        stop = start + len(block[0])
        ends = torch.searchsorted(index[order], torch.tensor([start, stop])).tolist()
        found.append([t[index[order[slice(*ends)]] - start] for t in block if t is not None])
        start = stop
    return [torch.cat(parts)[order.argsort()] for parts in zip(*found, strict=True)]


def _with_class(codes: list[Code], sizes: tuple[int, ...], space: Space) -> list[Code]:
    """The label that is modelled, or else the categories of the context, as one code, the first."""
    if not sizes:
        return codes
    parts = codes[-1:] if isinstance(space, Label) else [c for c in codes if c.given and c.columns]
    whole = Code(math.prod(sizes), parts[0].given, tuple(j for c in parts for j in c.columns), sizes)
    return [whole, *(c for c in codes if c not in parts)]
