"""A small gradient family with training noise, for tests of the loop itself, and rows of a mixed table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pofx.core.abilities import DrawsByChains
from pofx.core.learner import GradientLearner, Recipe
from pofx.core.likelihood import KINDS, Exact
from pofx.core.model import Model
from pofx.core.registry import register
from pofx.core.requests import ExactLikelihood, MalaChains, Request
from pofx.data import synthetic
from pofx.data.parts import Data, Part
from pofx.mcmc.chains import run
from pofx.mcmc.kernels import Mala
from pofx.spaces import Category, Integer, Real, Table


@dataclass(frozen=True)
class NoisyConfig:
    """blow_up: the step from which the loss is NaN (0: never)."""

    noise: float = 0.1
    blow_up: int = 0


# Of toys whose config says what kind their likelihood is.
PROMISES = {kind: type(kind, (Request,), {"name": kind, "kind": kind}) for kind in KINDS}


class NoisyGaussian(Model):
    """Independent Gaussians fitted by gradient to data with noise added in every step."""

    name, summary, taxonomy, paper = "noisy-gaussian", "a toy", "test", "none"
    estimators = (ExactLikelihood,)
    Config = NoisyConfig

    def __init__(self, config, space, context=None):
        super().__init__(config, space, context)
        self.mean = nn.Parameter(torch.randn(space.dims))
        self.log_scale = nn.Parameter(torch.zeros(space.dims))

    @classmethod
    def refuses(cls, space, context, config):
        return None if isinstance(space, Table) and all(isinstance(c, Real) for c in space.columns) else "reals only."

    @classmethod
    def tiny(cls, space):
        return NoisyConfig()

    @classmethod
    def recipe(cls, space):
        return Recipe(batch=64, lr=0.2)

    def nats(self, x):
        z = (x.float() - self.mean) * (-self.log_scale).exp()
        return (-0.5 * z.square() - self.log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    def learner(self, recipe):
        def objective(batch, generator):
            noise = self.config.noise * batch.randn(self.space.dims, generator=generator)
            loss = -self.nats(batch.x + noise)
            if self.config.blow_up and batch.step >= self.config.blow_up:
                loss = loss * math.nan
            return {"loss": loss}

        return GradientLearner(self, recipe, objective)

    def rows_log_prob(self, x, c, request, noise):
        return Exact(self.nats(x), self.space.measure)

    def rows_sample(self, n, c, sampler, generator):
        noise = torch.randn(n, self.space.dims, generator=generator)
        return (self.mean + self.log_scale.exp() * noise).double()


register(NoisyGaussian)


def gaussian_data(n: int = 1000, d: int = 3, weight: bool = False) -> Data:
    root = torch.eye(d, dtype=torch.float64) + 0.3
    source = synthetic.Gaussian(torch.linspace(-2, 2, d, dtype=torch.float64), root @ root.T)
    parts = []
    for seed, rows in ((1, n), (2, 200), (3, 500)):
        generator = torch.Generator().manual_seed(seed)
        x = source.sample(rows, generator)
        parts.append(Part(x, weight=torch.rand(rows, generator=generator) if weight else None))
    return Data("toy", "memory", source.space, *parts)


def mixed_rows(n: int, seed: int) -> tuple[Table, Tensor]:
    """A category (sometimes missing), an integer with a frequent value, a grid of halves; all dependent."""
    g = torch.Generator().manual_seed(seed)
    space = Table(
        (
            Category("kind", ("a", "b", "c"), nullable=True),
            Integer("count", 0, 30, nullable=True),
            Real("half", step=0.5, origin=0.25, low=-2.75, high=3.25),
        )
    )
    kind = torch.randint(0, 3, (n,), generator=g).double()
    count = (kind * 7 + torch.randint(0, 9, (n,), generator=g)).where(torch.rand(n, generator=g) < 0.5, 12.0)
    half = 0.25 + 0.5 * (torch.randn(n, generator=g).double() + kind).round().clamp(-6, 6)
    kind[torch.rand(n, generator=g) < 0.1] = math.nan
    count[torch.rand(n, generator=g) < 0.1] = math.nan
    return space, torch.stack([kind, count, half], 1)


class ChainedGaussian(NoisyGaussian, DrawsByChains):
    """The same, drawn by chains as if there were no other way."""

    name = "chained-gaussian"
    samplers = (MalaChains,)

    def default_sampler(self, kind=None):
        return MalaChains(chains=8, warmup=30, thin=1)

    def rows_chains(self, n, c, sampler, generator):
        start = 5 * torch.randn(sampler.chains, self.space.dims, generator=generator, dtype=torch.float64)
        each = -(-n // sampler.chains)
        found = run(Mala(), self.nats, start, each, sampler.warmup, sampler.thin, generator, watched=100)
        return found.rows(n), found.verdict

    def rows_sample(self, n, c, sampler, generator):
        return self.rows_chains(n, c, sampler, generator)[0]


register(ChainedGaussian)
