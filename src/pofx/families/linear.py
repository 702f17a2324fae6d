"""Latent vectors that make data by a linear map: probabilistic PCA and factor analysis, in closed form but for the fit.

    z ~ N(0, I),   y | z ~ N(W z + m, Psi),   hence   y ~ N(m, C),  C = W W' + Psi
    z | y ~ N(M^-1 W' Psi^-1 (y - m), M^-1),   M = I + W' Psi^-1 W

(Tipping & Bishop 1999, eq. 3 to 8). ppca has Psi = s^2 I, one noise for all columns in their own units; factor-analysis
has a noise of each column. y = (c, x) holds the context too: given c, z is N(a, V) by the same rule over the columns of
c alone, and p(x | c) = N(m_x + W_x a, W_x V W_x' + Psi_x). EM raises the likelihood of y. None of it takes d^3
steps: C^-1 = Psi^-1 - Psi^-1 W M^-1 W' Psi^-1 and |C| = |M| |Psi| (Woodbury).

What only bounds p(x) elsewhere (the evidence bound, annealing from either side) is answered here, too, from the prior
as the proposal, beside the truth: the families are oracles of those estimators.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal

from pofx.codecs.columns import Columns, as_event, columns_of
from pofx.core.abilities import Ability, Encodes, FromLatents, HasScore
from pofx.core.learner import Batch, Learner, Local, Recipe, Runtime
from pofx.core.likelihood import Exact, Likelihood, LowerBound, make
from pofx.core.noise import RowNoise
from pofx.core.options import POSITIVE, Options
from pofx.core.requests import (
    Ais,
    Dequantised,
    Elbo,
    ExactLikelihood,
    Iwae,
    PerDatum,
    Request,
    ReverseAis,
    Sampler,
)  # fmt: skip
from pofx.core.space import Space, free_length
from pofx.families.latent import LatentModel, Proposal, log_normal
from pofx.families.priors import HALF_LOG_2PI
from pofx.spaces import Category

MOST = 4096  # columns, of which there is a covariance
ITERATIONS = 20  # of EM in a step: once the covariance is known, they cost nothing by the row
LEAST = 1e-9  # a column's noise, of its variance


@dataclass(frozen=True)
class LinearConfig(Options):
    """Options of ``ppca`` and ``factor-analysis``.

    Attributes:
        latent: dimensions of z, fewer than there are columns [default: 2, or 1 of 2 columns].
        tol: EM stops when 20 iterations gain less than this, in nats per datum.
    """

    latent: int | None = None
    tol: float = 1e-6

    draws: ClassVar[int] = 64  # of bounds
    ranges = {"tol": POSITIVE}


@dataclass(frozen=True, eq=False)
class LinearProposal(Proposal):
    """N(mean, root root'); mean [N, L], root [L, L] with zeros above its diagonal."""

    mean: Tensor
    root: Tensor

    def __call__(self, e: Tensor) -> tuple[Tensor, Tensor]:
        e = e.to(self.mean)
        return self.mean[:, None] + e @ self.root.T, log_normal(e) - self.root.diagonal().log().sum()

    def inverse(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.root, (z - self.mean[:, None]).mT, upper=False).mT


class Linear(LatentModel, HasScore):
    """What both share. Buffers: mean [d], loading W [d, L], noise: the diagonal of Psi [d], those of c first."""

    estimators: ClassVar[tuple[type[Request], ...]] = (
        ExactLikelihood, Dequantised, Elbo, Iwae, PerDatum, Ais, ReverseAis,
    )  # fmt: skip
    Config = LinearConfig
    config: LinearConfig

    mean: Tensor
    loading: Tensor
    noise: Tensor

    def __init__(self, config: LinearConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.own, self.told = (Columns(s, atoms=False) for s in (space, context))
        self.k = len(self.told.reals)  # columns of y that are the context's
        d, start = self.k + len(self.own.reals), torch.zeros((), dtype=torch.float64)
        self.register_buffer("mean", start.expand(d).clone())
        self.register_buffer("loading", start.expand(d, config.latent or min(2, d - 1)).clone())
        self.register_buffer("noise", start.expand(d) + 1)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: LinearConfig) -> str | None:
        if reason := free_length(space, context):
            return reason
        for s in (space, context):
            columns = columns_of(s)
            if s is not None and (s.values or not columns or any(isinstance(c, Category) for c in columns)):
                return f"it models numbers, and {s} have others or none. Fit a gmm."
            if any(c.nullable for c in columns):
                return "it takes complete rows. Drop those with missing values, or fit a gaussian."
        d = len(columns_of(space)) + len(columns_of(context))
        if d > MOST:
            return (
                f"the covariance of {d:,} columns is too large (limit {MOST:,}); fit a gaussian with covariance=diag."
            )
        if d == 1:
            return "a single column has nothing in common with others. Fit a gaussian."
        if (config.latent or 1) >= d:
            return f"latent={config.latent} of {d} columns leaves no noise; give {d - 1} or less, or fit a gaussian."
        return None

    @classmethod
    def lacks(cls, ability: type[Ability], space: Space) -> str | None:
        if Columns(space).step.any() and ability not in (Encodes, FromLatents):
            return "its values are on a grid, between which the density is. Declare the columns real."
        return None

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        return (asked is Dequantised) == bool(self.own.step.any()) if issubclass(asked, Request) else True

    @classmethod
    def tiny(cls, space: Space) -> LinearConfig:
        return LinearConfig(latent=max(1, min(3, space.dims - 1)))

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(epochs=200)

    def quick_request(self) -> Request:
        return self.default_request()

    def parameter_count(self) -> int:
        """Means, loadings but for their rotation, and noise."""
        d, q = self.loading.shape
        return d + d * q - q * (q - 1) // 2 + self.noises(d)

    # -- how the two differ -----------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def noises(d: int) -> int:
        """How many numbers the noise of d columns has."""

    @staticmethod
    @abstractmethod
    def shared(noise: Tensor) -> Tensor:
        """The noise [d] of residual variances [d]."""

    # -- fitting ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        """Start from the columns' means and variances, half of these in directions by lot."""
        y = self.joined(x, c)
        w = torch.ones(len(y), dtype=torch.float64, device=y.device) if weight is None else weight.to(y)
        w = w / w.sum()
        self.mean.copy_(w @ y)
        variance = (w @ (y - self.mean).square()).clamp(min=1e-12)
        lot = torch.randn(self.loading.shape, generator=generator, dtype=torch.float64, device=generator.device)
        self.loading.copy_(lot.to(y) * (variance[:, None] / 2 / lot.shape[1]).sqrt())
        self.noise.copy_(self.shared(variance / 2))

    def learner(self, recipe: Recipe) -> Learner:
        return LinearEm(self)

    def joined(self, x: Tensor, c: Tensor | None) -> Tensor:
        """y [N, d], of grids the middles of their cells."""
        y = self.own.split(x)[0]
        return y if c is None else torch.cat([self.told.split(c)[0], y], 1)

    def improve(self, covariance: Tensor) -> None:
        """EM for y of this covariance S (Rubin & Thayer 1982, eq. 3 to 5; of ppca Tipping & Bishop 1999, eq. 29, 30).

        With B = M^-1 W' Psi^-1:  W <- S B' (M^-1 + B S B')^-1,  Psi <- diag(S - W B S), W being the new one.
        """
        w, psi = self.loading, self.noise
        scaled, root = capacitance(w, psi)
        inverse = torch.cholesky_inverse(root)
        b = inverse @ scaled.T
        cross = covariance @ b.T
        new = torch.linalg.solve(inverse + b @ cross, cross.T).T
        residual = covariance.diagonal() - (new * cross).sum(1)
        self.loading.copy_(new)
        self.noise.copy_(self.shared(torch.maximum(residual, (LEAST * covariance.diagonal()).clamp(min=1e-12))))

    # -- the densities ------------------------------------------------------------------------------------------

    def given_context(self, c: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
        """p(z | c): its mean [N, L] and the root of its covariance [L, L]."""
        k, w = self.k, self.loading
        if c is None or not k:
            return w.new_zeros(n, w.shape[1]), torch.eye(w.shape[1]).to(w)
        return posterior(w[:k], self.noise[:k], self.told.split(c)[0] - self.mean[:k])

    def log_density(self, y: Tensor, c: Tensor | None) -> Tensor:
        """log p(y | c) [N] of the numbers y [N, D] of x."""
        return self.marginal(len(y), c).log_prob(y)

    def marginal(self, n: int, c: Tensor | None) -> LowRankMultivariateNormal:
        w, (mean, root) = self.loading[self.k :], self.given_context(c, n)
        center = self.mean[self.k :] + mean @ w.T
        return LowRankMultivariateNormal(center, w @ root, self.noise[self.k :], validate_args=False)

    def rows_log_prob(self, x: Tensor, c: Any, request: Any, noise: RowNoise) -> Likelihood:
        measure = self.space.measure
        if isinstance(request, ExactLikelihood):
            return Exact(self.log_density(self.own.split(x)[0], c), measure)
        if isinstance(request, Dequantised):
            y, step = self.own.split(x)[0], self.own.step
            u = noise.rand_double(request.draws, y.shape[1]) - 0.5
            cells = (y[:, None] + step * u).transpose(0, 1)
            every = self.marginal(len(y), c).log_prob(cells) + step[step > 0].log().sum()
            return make(
                LowerBound, every.mean(0), measure, every.std(0) / math.sqrt(request.draws), request.draws
            )  # fmt: skip
        if isinstance(request, ReverseAis):
            mean, root = self.posterior(x, c)
            e = noise.randn(request.chains, self.latent_dims).to(mean)
            return self.rows_reverse_ais(x, mean[:, None] + e @ root.T, c, request, noise)
        return super().rows_log_prob(x, c, request, noise)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return self.rows_sample_joint(n, c, generator)[0]

    def rows_score(self, x: Tensor, c: Tensor | None) -> Tensor:
        p = self.marginal(len(x), c)
        scaled = (self.own.split(x)[0] - p.mean) / self.noise[self.k :]
        w = p.cov_factor[0]
        _, capacity = capacitance(w, self.noise[self.k :])
        solved = torch.cholesky_solve((scaled @ w).T, capacity).T
        return (solved @ w.T / self.noise[self.k :] - scaled).reshape(x.shape)

    def posterior(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """p(z | x, c): its mean [N, L] and the root of its covariance [L, L]."""
        return posterior(self.loading, self.noise, self.joined(x, c) - self.mean)

    def rows_encode(self, x: Tensor, c: Tensor | None) -> Distribution:
        mean, root = self.posterior(x, c)
        return MultivariateNormal(mean, scale_tril=root.expand(len(mean), -1, -1), validate_args=False)

    def rows_from_latents(self, z: Tensor, c: Tensor | None) -> Tensor:
        y = self.mean[self.k :] + z.to(self.loading) @ self.loading[self.k :].T
        return as_event(self.space, self.own.join(y, torch.empty(len(z), 0, dtype=torch.int64)))

    # -- the triple, with the prior as the proposal -------------------------------------------------------------

    @property
    def latent_dims(self) -> int:
        return self.loading.shape[1]

    @property
    def codes_per_pass(self) -> int:
        return 2**21 // len(self.mean)

    def proposal(self, x: Tensor, c: Any) -> Proposal:
        return LinearProposal(*self.given_context(c, len(x)))

    def log_terms(self, x: Tensor, z: Tensor, c: Any) -> tuple[Tensor, Tensor]:
        k, z = self.k, z.to(self.loading)
        off = self.own.split(x)[0][:, None] - self.mean[k:] - z @ self.loading[k:].T
        psi = self.noise[k:]
        likelihood = -0.5 * (off.square() / psi).sum(-1) - 0.5 * psi.log().sum() - len(psi) * HALF_LOG_2PI
        return likelihood, log_normal_of(z, *self.given_context(c, len(x)))

    def rows_sample_joint(self, n: int, c: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device).to(self.device)

        k, (mean, root) = self.k, self.given_context(c, n)
        z = mean + normal(n, self.latent_dims) @ root.T
        y = self.mean[k:] + z @ self.loading[k:].T + self.noise[k:].sqrt() * normal(n, len(self.mean) - k)
        return as_event(self.space, self.own.join(y, torch.empty(n, 0, dtype=torch.int64))), z


def capacitance(w: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """Psi^-1 W [d, L], and the root of M = I + W' Psi^-1 W [L, L]."""
    scaled = w / psi[:, None]
    return scaled, torch.linalg.cholesky(torch.eye(w.shape[1]).to(w) + w.T @ scaled)


def posterior(w: Tensor, psi: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [N, L] and root [L, L] of z given y - m = off [N, d] (Tipping & Bishop 1999, eq. 7, 8)."""
    scaled, root = capacitance(w, psi)
    covariance = torch.cholesky_inverse(root)
    return off @ scaled @ covariance, torch.linalg.cholesky(covariance)


def log_normal_of(z: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """log N(z; mean, root root') [N, K] of z [N, K, L]."""
    return log_normal(LinearProposal(mean, root).inverse(z)) - root.diagonal().log().sum()


class Ppca(Linear):
    name = "ppca"
    summary = "a linear map of a few latent numbers, and equal noise on all columns; exact"
    taxonomy = "explicit density / tractable / linear Gaussian"
    paper = "Tipping & Bishop 1999"

    @staticmethod
    def noises(d: int) -> int:
        return 1

    @staticmethod
    def shared(noise: Tensor) -> Tensor:
        return noise.mean().expand_as(noise)


class FactorAnalysis(Linear):
    name = "factor-analysis"
    summary = "a linear map of a few latent numbers, and noise of its own on each column; exact"
    taxonomy = "explicit density / tractable / linear Gaussian"
    paper = "Rubin & Thayer 1982"

    @staticmethod
    def noises(d: int) -> int:
        return d

    @staticmethod
    def shared(noise: Tensor) -> Tensor:
        return noise


@dataclass
class LinearEm:
    """EM on the covariance of all rows, which is all that it needs of them; summed over processes."""

    model: Linear
    runtime: Runtime = field(default_factory=Local)
    finished: bool = False
    objective: float | None = None  # nats per datum before the last step
    covariance: Tensor | None = None
    sweep: Literal["dataset"] = "dataset"

    @torch.no_grad()
    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """ "loss" is minus the log-likelihood per datum of context and datum before the step."""
        model = self.model
        if self.covariance is None:
            self.covariance = self._moments(batch)
        model.mean.copy_(self.covariance[-1])
        s = self.covariance[:-1]
        scaled, root = capacitance(model.loading, model.noise)
        explained = torch.cholesky_solve(scaled.T @ s @ scaled, root).diagonal().sum()
        trace = (s.diagonal() / model.noise).sum() - explained
        log_det = 2 * root.diagonal().log().sum() + model.noise.log().sum()
        loss = len(s) * HALF_LOG_2PI + 0.5 * (log_det + trace)
        for _ in range(ITERATIONS):
            model.improve(s)
        gain = math.inf if self.objective is None else -float(loss) - self.objective
        self.finished, self.objective = gain < model.config.tol, -float(loss)
        return {"loss": loss}

    def _moments(self, batch: Batch) -> Tensor:
        """The covariance of y, that of noise in the cells of grids with it, and below it the mean: [d + 1, d]."""
        model = self.model
        y = model.joined(batch.x, batch.c)
        w = torch.ones(len(y), dtype=torch.float64, device=y.device) if batch.weight is None else batch.weight.to(y)
        total = self.runtime.sum(w.sum())
        mean = self.runtime.sum(w @ y) / total
        off = (y - mean) * w.sqrt()[:, None]
        s = self.runtime.sum(off.T @ off) / total + torch.diag(torch.cat([model.told.step, model.own.step]) ** 2 / 12)
        return torch.cat([s, mean[None]])

    def state_dict(self) -> dict[str, Any]:
        return {"finished": self.finished, "objective": self.objective}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.finished, self.objective = state["finished"], state["objective"]
