"""Columns <-> real coordinates and discrete codes: the pieces that the maps of all nets for vectors share.

    column                 code                               coordinate
    Category, Label        its value, or missing              none
    Real                   (present, missing)                 x; NaN where missing
    Integer or a step      value, one of 8 atoms, (missing)   x; NaN at atoms and where missing
    pixel                  none                               x

An *atom* is a grid value so frequent that a density would have to spike there (Integer columns with many zeros, say);
its probability is the code's alone. Codes of categories come first, then those of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.core.space import Space
from pofx.nn.numbers import on_grid, shares
from pofx.spaces import Category, Column, Integer

ATOMS = 8  # at most so many per column
ATOM_DENSITY = 4.0  # in standardised units: ten times the peak of a normal curve
ATOM_SHARE = 0.005  # of the rows


def columns_of(space: Space | None) -> Sequence[Column]:
    """What each number of a flattened event is."""
    if space is None:
        return ()
    return (Integer("level", 0, (space.symbols or 1) - 1),) * space.dims if space.pixels else space.columns


@dataclass(frozen=True)
class Code:
    """A discrete column: the values of column ``column``, or the state of coordinate ``real``."""

    size: int
    column: int
    real: int = -1
    atoms: int = -1  # its row among the atoms
    nullable: bool = False  # its last value says that the entry is missing


class Columns(nn.Module):
    """The coordinates and codes of a space; its atoms are the only fitted part.

    Attributes:
        reals: columns of the coordinates; step, origin: of their grids, float64 [d], step 0 where there is none.
        codes: the discrete columns.
        atoms: [grids, ATOMS], NaN where a slot is unused.
    """

    step: Tensor
    origin: Tensor
    atoms: Tensor

    def __init__(self, space: Space | None, atoms: bool = True) -> None:
        super().__init__()
        columns = list(enumerate(columns_of(space)))
        atoms = atoms and space is not None and not space.pixels  # levels are dense: none of them is an atom
        self.columns = len(columns)
        numbers = [(j, c) for j, c in columns if not isinstance(c, Category)]
        self.reals = [j for j, _ in numbers]
        self.codes = [
            Code(len(c.values) + c.nullable, j, nullable=c.nullable) for j, c in columns if isinstance(c, Category)
        ]
        grids = 0
        for i, (j, c) in enumerate(numbers):
            grid = atoms and c.step is not None
            if grid or c.nullable:
                self.codes.append(Code(1 + ATOMS * grid + c.nullable, j, i, grids if grid else -1, c.nullable))
                grids += grid
        f64: dict[str, Any] = {"dtype": torch.float64}
        steps, origins = [c.step or 0.0 for _, c in numbers], [c.origin if c.step else 0.0 for _, c in numbers]
        self.register_buffer("step", torch.tensor(steps, **f64), persistent=False)
        self.register_buffer("origin", torch.tensor(origins, **f64), persistent=False)
        self.register_buffer("atoms", torch.full((grids, ATOMS), math.nan, **f64))

    @property
    def complete(self) -> bool:
        """Whether no coordinate can be absent."""
        return bool(self.atoms.isnan().all()) and not any(c.nullable and c.real >= 0 for c in self.codes)

    def flat(self, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Events x [N, *E] as rows [N, columns]."""
        return x.to(self.step.device, dtype).reshape(len(x), -1)

    def fit(self, column: Callable[[int], Tensor], weight: Tensor) -> None:
        """Find the atoms; ``column(j)`` [N] are the values of column j, of ``weight`` [N]."""
        self.atoms.fill_(math.nan)
        for code in self.codes:
            if code.atoms >= 0:
                v = column(code.column).to(self.step)
                keep = ~v.isnan()
                if keep.any():
                    found = find_atoms(v[keep], weight.to(v)[keep], float(self.step[code.real]))
                    self.atoms[code.atoms, : len(found)] = found

    def split(self, x: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """x [N, *E] -> coordinates y [N, d], NaN where absent, and codes [N, m] int64.

        y may share memory with x: do not write to it.
        """
        raw = self.flat(x, dtype)
        y = raw if len(self.reals) == self.columns else raw[:, self.reals]
        codes = torch.empty(len(raw), len(self.codes), dtype=torch.int64, device=raw.device)
        for k, code in enumerate(self.codes):
            v = raw[:, code.column]
            value = v.nan_to_num(nan=code.size - 1).long() if code.real < 0 else torch.zeros_like(codes[:, k])
            if code.atoms >= 0:
                hit = (v[:, None] - self.atoms[code.atoms]).abs() < self.step[code.real] / 2
                at = hit.any(1)
                value = torch.where(at, hit.long().argmax(1) + 1, 0)
                y = y.clone() if y is raw else y
                y[at, code.real] = math.nan
            if code.nullable and code.real >= 0:
                value = torch.where(v.isnan(), code.size - 1, value)
            codes[:, k] = value
        return y, codes

    def join(self, y: Tensor, codes: Tensor) -> Tensor:
        """Rows [N, columns] of coordinates y [N, d], which grids round, and codes [N, m]."""
        y = on_grid(y.double(), self.step, self.origin)
        x = torch.empty(len(y), self.columns, dtype=torch.float64, device=y.device)
        x[:, self.reals] = y
        for code, value in zip(self.codes, codes.T, strict=True):
            v = value.double() if code.real < 0 else x[:, code.column]
            if code.atoms >= 0:
                atom = F.pad(self.atoms[code.atoms], (1, 1), value=math.nan)[
                    value
                ]  # neither value nor missing: no atom
                v = torch.where(atom.isnan(), v, atom)
            x[:, code.column] = torch.where(value == code.size - 1, math.nan, v) if code.nullable else v
        return x


def find_atoms(v: Tensor, weight: Tensor, step: float) -> Tensor:
    """The at most ATOMS values of grid column v [N] on which a standardised density would spike."""
    values, share, _ = shares(v, weight)
    mean = (share * values).sum()
    spread = ((share * (values - mean).square()).sum() + step**2 / 12).sqrt()
    top = share.topk(min(ATOMS, len(share)))
    spiky = (top.values * spread / step > ATOM_DENSITY) & (top.values >= ATOM_SHARE)
    return values[top.indices[spiky]]


def as_event(space: Space, flat: Tensor) -> Tensor:
    """Flat rows [N, D] as events [N, *E] of the space's dtype."""
    if space.pixels:  # mass beyond the first and last level goes to them: a bound stays below the sampled probability
        flat = flat.clamp(0, (space.symbols or 1) - 1)
    return flat.to(space.dtype).reshape(-1, *space.event_shape)
