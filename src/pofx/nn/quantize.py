"""Quantisers: vectors [N, G, D] that a net gives, and the codes [N, G] that stand for them.

``Codebook``  the nearest of K vectors, which follow what they stand for (van den Oord et al. 2017)
``Levels``    each number of a vector rounded to one of a few levels (Mentzer et al. 2024)

Codes have no gradient. ``straight`` hands what a decoder is to be told of them on as if nothing had been rounded, so
that the encoder gets the decoder's gradient (the straight-through estimator, Bengio et al. 2013).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Quantizer(nn.Module, ABC):
    """Attributes:
    size: K, how many codes there are.
    dim: D, numbers of a vector.
    """

    size: int
    dim: int

    def prepare(self, z: Tensor, generator: torch.Generator) -> None:
        """Start from vectors z [N, G, D] of training rows."""

    @abstractmethod
    def codes(self, z: Tensor) -> Tensor:
        """The codes [N, G], int64, of vectors z [N, G, D]."""

    @abstractmethod
    def vectors(self, codes: Tensor) -> Tensor:
        """The vectors [..., D] that codes [...] stand for."""

    @abstractmethod
    def straight(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors of the codes of z [N, G, D], with the gradient of z itself [N, G, D]; the codes [N, G]; how far z
        is from what it should commit itself to [N], the squared distance."""


class Codebook(Quantizer):
    """The nearest of K vectors, each the moving average of the vectors of its code.

    Vectors have length sqrt(D) (Yu et al. 2022): by themselves an encoder that is to stay near its codes would shrink.

    Args:
        size: K.
        dim: D.
        decay: of the moving averages (van den Oord et al. 2017, eq. 6 to 8).
        dead: a code of which fewer stand than this share of a code's mean is replaced by a vector of the batch.
    """

    book: Tensor  # [K, D]
    count: Tensor  # [K], the moving average of how many vectors of a batch have the code
    total: Tensor  # [K, D], and of their sum

    def __init__(self, size: int, dim: int, decay: float, dead: float) -> None:
        super().__init__()
        self.size, self.dim, self.decay, self.dead = size, dim, decay, dead
        self.register_buffer("book", F.normalize(torch.randn(size, dim), dim=1) * math.sqrt(dim))
        self.register_buffer("count", torch.ones(size))
        self.register_buffer("total", self.book.clone())

    def prepare(self, z: Tensor, generator: torch.Generator) -> None:
        z = self._long(z).flatten(0, 1)
        chosen = torch.randint(len(z), (self.size,), generator=generator, device=generator.device).to(z.device)
        self.book.copy_(z[chosen])
        self.total.copy_(z[chosen])

    def codes(self, z: Tensor) -> Tensor:
        z = self._long(z)
        # |z - e|^2 less |z|^2, which is the same for all e
        return (0.5 * self.book.square().sum(1) - z @ self.book.T).argmin(-1)

    def vectors(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.book)

    def straight(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self._long(z)
        codes = self.codes(z)
        vectors = self.vectors(codes)
        return z + (vectors - z).detach(), codes, (z - vectors).square().sum((1, 2))

    @torch.no_grad()
    def follow(
        self, z: Tensor, total: int, start: int, sum_of: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> Tensor:
        """Move all vectors towards what they stood for: z [B, G, D], rows ``start`` on of a batch of so many in all.

        ``sum_of`` adds tensors up over the processes that have the others, which draw the same from ``generator``.
        The share of codes that are not dead.
        """
        groups, z = z.shape[1], self._long(z).flatten(0, 1)
        codes = self.codes(z)
        counts = torch.zeros_like(self.count).index_add_(0, codes, torch.ones_like(codes, dtype=z.dtype))
        sums = torch.zeros_like(self.total).index_add_(0, codes, z)
        self.count.lerp_(sum_of(counts), 1 - self.decay)
        self.total.lerp_(sum_of(sums), 1 - self.decay)
        mean = self.count.mean()
        # as many draws each time, so that what else the generator gives does not depend on how many are dead
        place = torch.randint(total * groups, (self.size,), generator=generator, device=generator.device)
        dead = (self.count < self.dead * mean).nonzero()[:, 0]
        if len(dead):
            place = place[: len(dead)].to(z.device) - start * groups
            own = (place >= 0) & (place < len(z))
            new = sum_of(torch.where(own[:, None], z[place.clamp(0, len(z) - 1)], 0.0))
            self.total[dead], self.count[dead] = new * mean, mean
        self.book.copy_(self.total / self.count[:, None].clamp_min(1e-6))
        return mean.new_tensor(1 - len(dead) / self.size)

    def _long(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1) * math.sqrt(self.dim)


class Levels(Quantizer):
    """Each of D numbers one of L_d levels, even over [-1, 1]: K = L_1 ... L_D codes, none of them learned.

    Mentzer et al. 2024, section 3.1: z is bounded by a tanh that reaches all levels, and rounded. Of an even number of
    levels z = 0 is moved by half a step, so that it is no edge between two.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.size, self.dim = math.prod(levels), len(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = [math.prod(levels[:d]) for d in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def codes(self, z: Tensor) -> Tensor:
        return (self._bounded(z).round().long() * self.basis).sum(-1)

    def vectors(self, codes: Tensor) -> Tensor:
        return self._scaled(codes[..., None] // self.basis % self.levels)

    def straight(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self._bounded(z)
        return self._scaled(y + (y.round() - y).detach()), self.codes(z), z.new_zeros(len(z))

    def _bounded(self, z: Tensor) -> Tensor:
        """In steps: what lies between -1/2 and L - 1/2 is rounded to a level from 0 to L - 1."""
        reach = 0.5 * self.levels - 1e-3
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return 0.5 * (self.levels - 1) + reach * (z + torch.atanh(offset / reach)).tanh()

    def _scaled(self, y: Tensor) -> Tensor:
        return 2 * y / (self.levels - 1) - 1
