"""A family of a third party, in one file: independent Laplace distributions, fitted by gradient."""

from dataclasses import dataclass

import torch
from torch import nn

from pofx.core.learner import GradientLearner, Recipe
from pofx.core.likelihood import Exact
from pofx.core.model import Model
from pofx.core.options import POSITIVE, Options
from pofx.core.requests import ExactLikelihood
from pofx.spaces import Real, Table


@dataclass(frozen=True)
class LaplaceConfig(Options):
    """Options of ``laplace``.

    Attributes:
        narrowest: the least scale, in standard deviations of a column.
    """

    narrowest: float = 1e-3

    ranges = {"narrowest": POSITIVE}


class Laplace(Model):
    """log p(x) = - sum_i |x_i - m_i| / b_i - log(2 b_i)"""

    name = "laplace"
    summary = "independent Laplace distributions, one per column"
    taxonomy = "explicit density / tractable / product of marginals"
    paper = "Laplace 1774"
    estimators = (ExactLikelihood,)
    Config = LaplaceConfig

    def __init__(self, config, space, context=None):
        super().__init__(config, space, context)
        self.middle = nn.Parameter(torch.zeros(space.dims))
        self.log_scale = nn.Parameter(torch.zeros(space.dims))
        # of the training data: what is stored with the model and not trained is a buffer
        self.register_buffer("location", torch.zeros(space.dims, dtype=torch.float64))
        self.register_buffer("unit", torch.ones(space.dims, dtype=torch.float64))

    @classmethod
    def refuses(cls, space, context, config):
        if context is not None:
            return "it takes no context. Fit a gmm."
        columns = space.columns if isinstance(space, Table) else ()
        if not columns or any(not isinstance(c, Real) or c.measure != "lebesgue" for c in columns):
            return "it models complete real columns. Fit a made or gmm."
        return None

    @classmethod
    def tiny(cls, space):
        return LaplaceConfig()

    @classmethod
    def recipe(cls, space):
        return Recipe(batch=256, lr=0.02, epochs=20)

    def prepare(self, x, c, weight, generator):
        self.location.copy_(x.mean(0))
        self.unit.copy_(x.std(0).clamp(min=1e-12))

    def nats(self, x):
        y = (x - self.location) / self.unit
        scale = self.log_scale.exp() + self.config.narrowest
        return (-(y - self.middle).abs() / scale - (2 * scale).log() - self.unit.log()).sum(-1)

    def learner(self, recipe):
        return GradientLearner(self, recipe, lambda batch, generator: {"loss": -self.nats(batch.x)})

    def rows_log_prob(self, x, c, request, noise):
        return Exact(self.nats(x), self.space.measure)

    def rows_sample(self, n, c, sampler, generator):
        u = torch.rand(n, self.space.dims, generator=generator, dtype=torch.float64) - 0.5
        scale = self.log_scale.exp() + self.config.narrowest
        y = self.middle - scale * u.sign() * torch.log1p(-2 * u.abs())
        return y * self.unit + self.location
