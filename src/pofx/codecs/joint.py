"""The joint vector of context and datum that a mixture models: (c, x) <-> real coordinates y and codes.

Coordinates and codes are those of ``codecs.columns``, the context's first (but a label's before them). A grid is
dequantised, y + step (u - 1/2) with u ~ U[0, 1); NaN entries are marginalised exactly, so an atom or a missing entry
costs no bound: its probability is its code's. With ``per_class`` the categories of the context (or the label that is
modelled) become one code, the class, which is the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pofx.codecs.columns import ATOMS, Columns, as_event
from pofx.core.space import Space, column_of
from pofx.spaces import Category

SUMMED = 8192  # rows that are summed at a time
NUMBERS = 2**22  # in a block of rows

Block: TypeAlias = "tuple[Tensor, Tensor, Tensor | None]"


@dataclass(frozen=True)
class Code:
    """A discrete column of the joint vector."""

    size: int
    given: bool  # part of the context
    atoms: int = -1  # the row of its part's atoms, its values from 1 on


def class_sizes(space: Space, context: Space | None) -> tuple[int, ...]:
    """The sizes of the discrete columns that make a class; their product is the number of classes."""
    if space.values:
        return (len(space.values),)
    columns = () if context is None else context.columns
    return tuple(len(c.values) + c.nullable for c in columns if isinstance(c, Category))


class Joint(nn.Module):
    """The layout of one space and context; the atoms are its only fitted part.

    Attributes:
        dim, given_dim: real coordinates in all, and how many of them (the first) are the context's.
        codes: discrete columns; offset [m]: where the values of each start among the ``values`` of all.
        groups: classes; 1 without.
    """

    offset: Tensor

    def __init__(self, space: Space, context: Space | None, per_class: bool) -> None:
        super().__init__()
        self.space = space
        self.context, self.datum = Columns(context), Columns(space)
        sizes = class_sizes(space, context) if per_class else ()
        self.groups = math.prod(sizes)
        self.merged = () if space.values else sizes  # of the context's categories, which are one code then
        given = [Code(c.size, True, c.atoms) for c in self.context.codes[len(self.merged) :]]
        given = [Code(self.groups, True), *given] if self.merged else given
        own = [Code(c.size, False, c.atoms) for c in self.datum.codes]
        self.codes = own + given if space.values else given + own
        self.given_codes = [i for i, code in enumerate(self.codes) if code.given]
        self.given_dim = len(self.context.reals)
        self.dim, self.values = self.given_dim + len(self.datum.reals), sum(code.size for code in self.codes)
        offset = torch.tensor([0, *(code.size for code in self.codes)]).cumsum(0)[:-1]
        self.register_buffer("offset", offset, persistent=False)

    @property
    def step(self) -> Tensor:
        """Of each coordinate's grid [d], 0 where there is none."""
        return torch.cat([self.context.step, self.datum.step])

    def fit(self, x: Any, c: Any, weight: Tensor) -> Tensor:
        """Find the atoms; base [values]: smoothed frequencies of every code, the unused slots of atoms at 0."""
        if c is not None:
            self.context.fit(partial(column_of, c), weight)
        self.datum.fit(partial(column_of, x), weight)
        counts = weight.new_zeros(self.values)
        for at in self.slices(len(x)) if self.codes else ():
            _, codes = self.split(x[at], None if c is None else c[at])
            counts.index_add_(0, codes.flatten(), weight[at].repeat_interleave(codes.shape[1]))
        return self.frequencies(counts)

    def frequencies(self, counts: Tensor) -> Tensor:
        """Probabilities of the values of every code, with one pseudo-row for each value in use."""
        used = torch.ones_like(counts)
        for start, code in zip(self.offset.tolist(), self.codes, strict=True):
            if code.atoms >= 0:
                atoms = (self.context if code.given else self.datum).atoms[code.atoms]
                used[start + 1 : start + 1 + ATOMS] = (~atoms.isnan()).to(used.dtype)
        smoothed = (counts + 1) * used
        return torch.cat([p / p.sum() for p in smoothed.split([c.size for c in self.codes])] or [smoothed])

    def slices(self, n: int) -> Iterator[slice]:
        """n rows in blocks, which are whole numbers of those that a whitening sums over."""
        size = SUMMED * max(1, NUMBERS // (SUMMED * (self.dim + len(self.codes))))
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
        y, codes = self.datum.split(x)
        if c is not None:
            given_y, given = self._given(c)
            y, codes = torch.cat([given_y, y], 1), torch.cat([codes, given] if self.space.values else [given, codes], 1)
        return y, codes + self.offset

    def split_given(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The context's part of ``split``."""
        y, codes = self._given(c)
        return y, codes + self.offset[self.given_codes]

    def _given(self, c: Tensor) -> tuple[Tensor, Tensor]:
        y, codes = self.context.split(c)
        if not self.merged:
            return y, codes
        label = torch.zeros_like(codes[:, :1])
        for size, code in zip(self.merged, codes.T, strict=False):
            label = label * size + code[:, None]
        return y, torch.cat([label, codes[:, len(self.merged) :]], 1)

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
        return self.context.complete and self.datum.complete

    def join(self, y: Tensor, codes: Tensor) -> Tensor:
        """The datum x [N, *E] of y [N, d] and the codes' values [N, m] (those of the context are not read)."""
        own = codes[:, [i for i, code in enumerate(self.codes) if not code.given]]
        return as_event(self.space, self.datum.join(y[:, self.given_dim :], own))


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
