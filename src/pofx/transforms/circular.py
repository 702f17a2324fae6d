"""Flows of angles (Rezende et al. 2020): maps of the circle to itself, and a chain of which some entries are angles.

An angle is a number in [-B, B), whose ends are one point. A spline keeps the ends where they are with a slope of 1 on
both sides, so it is smooth on the circle; a turn after it moves the point where that is so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.nn.tails import lengthen, normal_log_prob, shorten
from pofx.transforms.base import Chain, Noise, Step, Transform
from pofx.transforms.spline import BOUND, Spline


def wrap(x: Tensor) -> Tensor:
    """The number in [-B, B) that is the same angle."""
    return (x + BOUND).remainder(2 * BOUND) - BOUND


def turns(x: Tensor) -> Tensor:
    """Cosines and sines [N, 2 d] of angles x [N, d]: what a net sees of them."""
    angle = x * (math.pi / BOUND)
    return torch.cat([angle.cos(), angle.sin()], 1)


@dataclass(frozen=True)
class CircularSpline:
    """z = spline(x) + t on the circle; see ``transforms.base.Scalar`` (Rezende et al. 2020, section 2.1)."""

    bins: int = 8

    @property
    def count(self) -> int:
        """Those of the spline, and t."""
        return Spline(self.bins).count + 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slope = Spline(self.bins).forward(x, parameters[:-1])
        return wrap(z + parameters[-1]), log_slope

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        return Spline(self.bins).inverse(wrap(z - parameters[-1]), parameters[:-1])


class WithAngles(Transform):
    """p(angles, rest) = p(angles) p(rest | angles): one chain for the angles, and one for the rest that is told them.

    A uniform angle at the end of its chain becomes a normal variable with the tails of ``nn.tails``.

    Args:
        dim: d.
        where: which entries are angles, in [-B, B).
        circular: the chain of the angles, which maps [-B, B) to itself.
        rest: of the other entries; its context is h and the cosines and sines of the angles.
    """

    angles: Tensor
    others: Tensor

    def __init__(
        self, dim: int, where: Sequence[int], circular: Sequence[Transform], rest: Sequence[Transform]
    ) -> None:
        super().__init__()
        self.register_buffer("angles", torch.tensor(where), persistent=False)
        others = torch.tensor([i for i in range(dim) if i not in where], dtype=torch.int64)
        self.register_buffer("others", others, persistent=False)
        self.circular, self.rest = Chain(circular), Chain(rest)

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        a, r = x[:, self.angles], x[:, self.others]
        turned, rest = self.circular(a, h), self.rest(r, self._told(a, h))
        eps = torch.finfo(x.dtype).eps
        z = lengthen(torch.special.ndtri((0.5 + turned.z / (2 * BOUND)).clamp(eps, 1 - eps)))
        flat = -(normal_log_prob(z) + math.log(2 * BOUND)).sum(1)
        joined = x.index_copy(1, self.angles, z).index_copy(1, self.others, rest.z)
        return Step(joined, turned.log_term + flat + rest.log_term)

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        u = torch.special.ndtr(shorten(z[:, self.angles])[0])
        a = self.circular.inverse(wrap((2 * u - 1) * BOUND), h)
        r = self.rest.inverse(z[:, self.others], self._told(a, h))
        return z.index_copy(1, self.angles, a).index_copy(1, self.others, r)

    @staticmethod
    def _told(a: Tensor, h: Tensor | None) -> Tensor:
        return turns(a) if h is None else torch.cat([h, turns(a)], 1)
