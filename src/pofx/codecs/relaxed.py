"""Raw data <-> numbers that a net puts out with a gradient: what a generator makes and a critic judges.

Levels, grids, categories and missing entries are made discrete on the way out, as data are, and their gradient passes
straight through (Bengio et al. 2013); choices are drawn by the Gumbel-softmax (Jang et al. 2017; Maddison et al. 2017).
"""

from __future__ import annotations

from abc import abstractmethod
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.codecs.columns import Columns, as_event
from pofx.core.space import Space
from pofx.nn.numbers import on_grid
from pofx.spaces import Image
from pofx.transforms.entrywise import Standardise


class Relaxed(nn.Module):
    """The map of one space.

    Attributes:
        size: numbers of a row as the critic sees it, and of the generator's output.
        uniforms: random numbers that making one row discrete takes.
    """

    size: int
    uniforms: int

    def prepare(self, x: Tensor, weight: Tensor | None) -> None:
        """Look at the training rows once: scales, where there are any."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Real rows [N, *E] as the critic sees them [N, size]."""

    @abstractmethod
    def emit(self, raw: Tensor, u: Tensor) -> Tensor:
        """Outputs of the generator's net [N, size] -> what the critic sees; u [N, uniforms] in (0, 1)."""

    @abstractmethod
    def rows(self, y: Tensor) -> Tensor:
        """The inverse of ``encode``."""


class RelaxedLevels(Relaxed):
    """Levels 0 .. n-1 as numbers in [-1, 1], flat; the generator's outputs go through tanh onto them.

    Two levels are a choice, not a rounded number: the output is its log-odds, drawn by the binary case of the
    Gumbel-softmax (Maddison et al. 2017, appendix B). A deterministic threshold would soon be stuck on one side.
    """

    def __init__(self, space: Image, temperature: float) -> None:
        super().__init__()
        self.space, self.top, self.temperature = space, space.levels - 1, temperature
        self.size, self.uniforms = space.dims, space.dims if space.levels == 2 else 0

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(torch.get_default_dtype()) * (2 / self.top) - 1

    def emit(self, raw: Tensor, u: Tensor) -> Tensor:
        if self.uniforms:
            raw = (raw + u.clamp(1e-7, 1 - 1e-7).logit()) / (2 * self.temperature)  # tanh(r / 2) = 2 sigma(r) - 1
        y = raw.tanh()
        return straight_through(((y + 1) * (self.top / 2)).round() * (2 / self.top) - 1, y)

    def rows(self, y: Tensor) -> Tensor:
        return as_event(self.space, ((y + 1) * (self.top / 2)).round())


class RelaxedColumns(Relaxed):
    """A row as standardised numbers, then one-hot choices: of each category, and missing or not of each number."""

    slot: Tensor

    def __init__(self, space: Space, temperature: float) -> None:
        super().__init__()
        self.space, self.temperature, self.columns = space, temperature, Columns(space, atoms=False)
        sizes = [code.size for code in self.columns.codes]
        slot = torch.arange(max(sizes, default=1)) < torch.tensor(sizes).view(-1, 1)
        self.register_buffer("slot", slot, persistent=False)
        # of the numbers that may be missing: the place of the choice, and of the number
        self.nullable = [(k, code.real) for k, code in enumerate(self.columns.codes) if code.real >= 0]
        self.numbers, self.uniforms = len(self.columns.reals), sum(sizes)
        self.size = self.numbers + self.uniforms
        self.standard = Standardise(self.numbers)

    def prepare(self, x: Tensor, weight: Tensor | None) -> None:
        self.standard.fit(self.columns.split(x)[0], weight)

    def encode(self, x: Tensor) -> Tensor:
        v, codes = self.columns.split(x)
        y, chosen = self.standard(v).z.nan_to_num(nan=0.0), F.one_hot(codes, self.slot.shape[1])[:, self.slot]
        return torch.cat([y, chosen], 1).to(torch.get_default_dtype())

    def emit(self, raw: Tensor, u: Tensor) -> Tensor:
        y, logits = raw.split([self.numbers, self.uniforms], 1)
        gumbel = -(-u.clamp(1e-7, 1 - 1e-7).log()).log()
        soft = self._padded((logits + gumbel) / self.temperature).softmax(-1)
        chosen = straight_through(F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft), soft)
        loc, scale = self.standard.loc, self.standard.scale
        grid = on_grid(y.double(), self.columns.step / scale, (self.columns.origin - loc) / scale)
        y = straight_through(grid.to(y.dtype), y)
        for choice, number in self.nullable:
            present = torch.ones_like(y)
            present[:, number] = chosen[:, choice, 0]
            y = y * present
        return torch.cat([y, chosen[:, self.slot]], 1)

    def rows(self, y: Tensor) -> Tensor:
        v, chosen = y.split([self.numbers, self.uniforms], 1)
        codes = self._padded(chosen).argmax(-1)
        return as_event(self.space, self.columns.join(self.standard.inverse(v.double()), codes))

    def _padded(self, choices: Tensor) -> Tensor:
        """[N, uniforms] as [N, choices, widest]."""
        padded = choices.new_full((len(choices), *self.slot.shape), -torch.inf)
        padded[:, self.slot] = choices
        return padded


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """``value`` forwards, the gradient of ``gradient`` backwards."""
    return value.detach() + (gradient - gradient.detach())


@singledispatch
def relaxed(space: Space, temperature: float) -> Relaxed:
    """The map of ``space``, which has columns unless it has a map of its own."""
    return RelaxedColumns(space, temperature)


@relaxed.register
def _(space: Image, temperature: float) -> Relaxed:
    return RelaxedLevels(space, temperature)
