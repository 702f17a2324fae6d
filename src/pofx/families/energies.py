"""Energies of real vectors: f(y) = exp(g(y)) N(y; 0, I), a Gaussian tilted by a net (Xie et al. 2016, eq. 1).

y is the standardised vector of ``codecs.real``, of which log p has the log-Jacobian in raw units. A net of silu grows
linearly at most, so the tilted Gaussian can always be normalised. Annealing goes from the Gaussian to it by beta g.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pofx.codecs.real import preprocess
from pofx.core.abilities import Ability, HasScore
from pofx.core.likelihood import Exact
from pofx.core.measure import Measure
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, POSITIVE, at_least
from pofx.core.requests import (
    DequantisedPartitionAis,
    DequantisedReversePartitionAis,
    HmcChains,
    LangevinChains,
    MalaChains,
    PartitionAis,
    Request,
    ReversePartitionAis,
    Sampler,
)
from pofx.core.space import Space, free_length
from pofx.families.conditioned import NetOptions
from pofx.families.contrastive import ContrastiveOptions
from pofx.families.energy import EnergyBased
from pofx.families.priors import HALF_LOG_2PI
from pofx.mcmc.ais import Kernels
from pofx.mcmc.kernels import Hmc, Langevin, Mala, value_and_grad

FAR = 20.0  # standard deviations of the data, where a chain has run away


@dataclass(frozen=True)
class EnergyOptions(ContrastiveOptions, NetOptions):
    """Options of every energy of real vectors.

    Attributes:
        step_size: of Langevin's steps in training, in standard deviations of the data.
        magnitude: weight of g^2, of data and of chains, in training by chains (Du & Mordatch 2019, section 3.4).
        draws: of the noise within cells of discrete data, that log_prob takes.
    """

    step_size: float = 0.1
    magnitude: float = 0.01
    draws: int = 8

    ranges = {"step_size": POSITIVE, "magnitude": AMOUNT, "draws": at_least(2)}


class Tilted(EnergyBased, HasScore):
    """Base: a subclass gives ``tilt``, and what it learns by."""

    estimators: ClassVar[tuple[type[Request], ...]] = (
        PartitionAis, ReversePartitionAis, DequantisedPartitionAis, DequantisedReversePartitionAis,
    )  # fmt: skip
    samplers: ClassVar[tuple[type[Sampler], ...]] = (MalaChains, HmcChains, LangevinChains)
    config: Any

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.preprocess = preprocess(space, shared_scale=True)
        self.shape = config.conv_shape(space) or (self.preprocess.dim,)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if reason := free_length(space):
            return reason
        if space.values or not (space.columns or space.pixels):
            return "its chains need the gradient of a density on R^d. Fit a classifier for labels."
        if preprocess(space).code_sizes:
            return (
                "categories, whole numbers and missing values have no gradient for its chains. Fit rbm where all "
                "columns have few values, else vae or made."
            )
        return config.refuses(space)  # type: ignore[no-any-return]

    @classmethod
    def lacks(cls, ability: type[Ability], space: Space) -> str | None:
        if ability is HasScore and space.measure != Measure.lebesgue(space.dims):
            return "it needs complete real columns. Declare the columns real, or drop those that are not."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if not config.conv_shape(space):
            yield "channels"
        if (space.columns or space.pixels) and preprocess(space).kind is Exact:
            yield "draws"

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        self.preprocess.fit(x, weight, generator)

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        exact = self.preprocess.kind is Exact
        return not issubclass(asked, Request) or exact == (asked in (PartitionAis, ReversePartitionAis))

    # -- the density --------------------------------------------------------------------------------------

    @abstractmethod
    def tilt(self, y: Tensor, h: Any) -> Tensor:
        """g(y | h) [C] of y [C, d]."""

    def states(self, x: Tensor, noise: Any) -> tuple[Tensor, Tensor]:
        parts = self.preprocess.split(x, noise)
        return parts.y.to(next(self.parameters()).dtype), parts.log_jacobian

    def rows(self, y: Tensor) -> Tensor:
        return self.preprocess.join(torch.zeros(len(y), 0, dtype=torch.int64, device=y.device), y)

    def log_path(self, y: Tensor, h: Any, beta: float) -> Tensor:
        known = -0.5 * y.square().sum(1) - y.shape[1] * HALF_LOG_2PI
        return known + beta * self.tilt(y, h) if beta else known

    def log_z_known(self, h: Any) -> float:
        return 0.0

    def known_draws(self, chains: int, noise: RowNoise) -> Tensor:
        return noise.randn(chains, self.preprocess.dim).flatten(0, 1).to(next(self.parameters()).dtype)

    def kernels(self, sampler: Sampler | None, h: Any, each: int) -> Kernels:
        if isinstance(sampler, LangevinChains):
            return Langevin(sampler.step_size)
        return Hmc(leapfrog=sampler.leapfrog) if isinstance(sampler, HmcChains) else Mala()

    def rows_score(self, x: Tensor, c: Any) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            [score] = torch.autograd.grad(self.log_f(x, c).sum(), x)
        return score

    # -- training by chains -------------------------------------------------------------------------------

    def at_data(self, x: Tensor, noise: RowNoise) -> Tensor:
        return self.states(x, noise)[0]

    def afresh(self, noise: RowNoise) -> Tensor:
        return self.known_draws(1, noise)

    def moved(self, y: Tensor, h: Any, noise: RowNoise) -> Tensor:
        eps, xi = self.config.step_size, noise.randn(self.config.steps, y.shape[1]).to(y)
        for e in xi.unbind(1):
            _, slope = value_and_grad(lambda y: self.log_path(y, h, 1.0), y)
            y = y + 0.5 * eps**2 * slope + eps * e
        away = ~(y.abs() < FAR).all(1, keepdim=True)  # its steps were too long there
        return torch.where(away, self.afresh(noise), y)

    def contrast(self, data: Tensor, h: Any, y: Tensor, given: Any) -> dict[str, Tensor]:
        # the Gaussian has nothing to learn
        real, drawn = self.tilt(data, h), self.tilt(y, given)
        return {
            "loss": drawn - real + self.config.magnitude * (drawn.square() + real.square()),
            "gap": (real - drawn).detach(),
        }
