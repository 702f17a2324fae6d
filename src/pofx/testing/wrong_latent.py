"""Deliberately wrong autoencoders, and the small right one that they start from (see ``testing.wrong``)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from pofx.core.learner import Batch, GradientLearner, Recipe
from pofx.core.likelihood import Likelihood, LowerBound
from pofx.core.noise import RowNoise
from pofx.core.requests import Iwae
from pofx.core.space import Space
from pofx.testing.wrong import Importance, mistake


class Autoencoder(Importance):
    """The linear decoder of ``Importance`` with a linear encoder, both trained on the ELBO in steps."""

    name = "right autoencoder"
    estimators = (Iwae,)
    rows = 0  # of the training data

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        del self.noise
        self.log_noise = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.decoder = nn.Parameter(torch.tensor([[0.3], [0.1]], dtype=torch.float64))
        self.encoder = nn.Parameter(torch.tensor([[0.1], [0.1]], dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=32, lr=0.03, epochs=30)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        self.rows = len(x)
        self.mean.copy_(x.mean(0))
        self.weight.copy_(x.std(0)[:, None])  # the units of what the nets see and make

    def learner(self, recipe: Recipe) -> GradientLearner:  # type: ignore[override]
        return GradientLearner(self, recipe, self.objective)

    def rows_encode(self, x: Tensor, c: Tensor | None) -> Distribution:
        y = (x - self.mean) / self.weight[:, 0]
        mean = y @ self.encoder
        return Independent(Normal(mean, self.log_scale.exp().expand_as(mean)), 1)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) of z [*K, N, 1]."""
        y = (x - self.mean) / self.weight[:, 0]
        log_p = Normal(self.shift + z @ self.decoder.T, self.log_noise.exp()).log_prob(y)
        return (log_p - self.weight[:, 0].log()).sum(-1)

    def objective(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        q = self.rows_encode(batch.x, None)
        z = q.mean + q.stddev * batch.randn(1, generator=generator)
        kl = 0.5 * (q.mean.square() + q.variance - 1 - q.variance.log()).sum(1)
        return {"loss": self.price(batch) * kl - self.log_likelihood(batch.x, z)}

    def price(self, batch: Batch) -> float:
        """Weight of the divergence."""
        return 1.0

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Any, noise: RowNoise) -> Likelihood:
        q = self.rows_encode(x, c)
        q = Independent(Normal(q.mean, 1.6 * q.stddev), 1)  # wider than the posterior: weights that differ
        z = q.mean + q.stddev * noise.randn(request.draws, 1).double().transpose(0, 1)
        return self.bound(self.log_likelihood(x, z) + self.log_prior(z) - q.log_prob(z))

    def bound(self, log_w: Tensor) -> Likelihood:
        """Of log-weights [k, N], with the error by the delta method."""
        k, top = len(log_w), log_w.amax(0)
        w = (log_w - top).exp()
        return LowerBound(w.mean(0).log() + top, self.space.measure, w.std(0) / w.mean(0) / math.sqrt(k), k)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Any, generator: torch.Generator) -> Tensor:
        z, e = (torch.randn(n, d, generator=generator, dtype=torch.float64) for d in (1, 2))
        y = self.shift + z @ self.decoder.T + self.log_noise.exp() * e
        return self.mean + y * self.weight[:, 0]


def rounded(q: Distribution) -> Distribution:
    return Independent(Normal(q.mean.round(), q.stddev), 1)


mistake(  # as if there were one divergence for all the data; there is one for each row
    Autoencoder, "KL scaled by the batch over the data", "training helps",
    price=lambda self, batch: len(batch.x) / self.rows,
)  # fmt: skip
mistake(  # latents are codes, and what passes them backwards is the derivative of a step: zero
    Autoencoder, "codes without a straight-through gradient", "every parameter learns",
    rows_encode=lambda self, x, c: rounded(Autoencoder.rows_encode(self, x, c)),
)  # fmt: skip
mistake(  # a mean of logarithms in place of the logarithm of a mean: the ELBO
    Autoencoder, "IWAE averaged outside the logarithm", "more draws are tighter",
    bound=lambda self, log_w: LowerBound(
        log_w.mean(0), self.space.measure, log_w.std(0) / math.sqrt(len(log_w)), len(log_w)
    ),
)  # fmt: skip
