"""The head of a Laplace distribution: a least absolute error as a density."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pofx.nn.heads import Standardised


class Laplace(Standardised):
    """A density on R: exp(-|y - mu| / b) / 2 b of y = (x - location) / scale, less log scale.

    Parameters are mu and log b.
    """

    def __init__(self, sites: tuple[int, ...] = ()) -> None:
        super().__init__(1, sites)
        self.params, self.features = 2, 1

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        mean, log_b = params.unbind(-1)
        error = (self.standardise(x, params.dtype) - mean).abs()
        return -error * (-log_b).exp() - log_b - math.log(2) - self.scale.log().to(params.dtype)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_b = params.unbind(-1)
        u = torch.rand(mean.shape, generator=generator, device=generator.device).to(mean).double() - 0.5
        y = mean.double() - log_b.exp().double() * u.sign() * torch.log1p(-(2 * u.abs()).clamp(max=1 - 2**-24))
        return y * self.scale + self.location

    def typical(self, params: Tensor) -> Tensor:
        return params[..., 0].double() * self.scale + self.location
