"""Deliberately wrong models: each breaks the contract in one known way, and the suite must catch it.

They start from small right models (a Gaussian by moments, the same as an energy whose log Z all rows share, a chain of
categories by counting, a probabilistic PCA bounded by importance sampling, a model that holds another and fits it in a
stage, one that answers by an average of what it steps), which pass every check.
``WRONG`` lists each mistake, a right model with something in place of its own, with the checks that are meant to
notice it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional

from pofx.core.abilities import Encodes, HasEnergy, HasNoisedScore, HasScore
from pofx.core.learner import Batch, Local, Recipe, RowDataset, Runtime, Stage
from pofx.core.likelihood import Estimate, Exact, Likelihood, LowerBound, UpperBound, make
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.noise import RowNoise, row_keys
from pofx.core.requests import Drawn, Elbo, ExactLikelihood, Request, Sampler
from pofx.core.space import Space
from pofx.spaces import Category


@dataclass(frozen=True)
class Plain:
    """No options."""


class OneSweep:
    """A learner that hands the whole training set to ``model.learn`` once."""

    sweep: ClassVar[Literal["dataset"]] = "dataset"

    def __init__(self, model: Any) -> None:
        self.model, self.finished = model, False
        self.runtime: Runtime = Local()

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        self.model.learn(batch.x, batch.c)
        self.finished = True
        return {"loss": torch.zeros(())}

    def state_dict(self) -> dict[str, Any]:
        return {"finished": self.finished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.finished = state["finished"]


class Small(Model):
    """What the small models share."""

    summary, taxonomy, paper = "a reference for the suite's own tests", "test", "none"
    estimators: ClassVar[tuple[type[Request], ...]] = (ExactLikelihood,)
    Config = Plain

    @classmethod
    def tiny(cls, space: Space) -> Plain:
        return Plain()

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(epochs=1)

    def learner(self, recipe: Recipe) -> OneSweep:  # type: ignore[override]
        return OneSweep(self)


class Moments(Small, HasEnergy, HasScore, HasNoisedScore):
    """N(mean, covariance) by moments, on tables of real columns."""

    name = "right gaussian"
    mean: Tensor  # [D]
    root: Tensor  # [D, D], Cholesky factor of the covariance

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        real = bool(space.columns) and all(c.measure == "lebesgue" for c in space.columns)
        return None if real and context is None else "it takes real columns only."

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        d = space.dims
        self.register_buffer("mean", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("root", torch.eye(d, dtype=torch.float64))

    def learn(self, x: Tensor, c: Tensor | None) -> None:
        self.mean.copy_(x.mean(0))
        self.root.copy_(torch.linalg.cholesky(x.T.cov()))

    def log_density(self, x: Tensor) -> Tensor:
        z = torch.linalg.solve_triangular(self.root, (x - self.mean).T, upper=False)
        constant = self.root.diagonal().log().sum() + len(self.mean) / 2 * math.log(2 * math.pi)
        return -0.5 * z.square().sum(0) - constant

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        return Exact(self.log_density(x), self.space.measure)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + noise @ self.root.T

    def rows_energy(self, x: Tensor, c: Tensor | None) -> Tensor:
        return -self.log_density(x)

    def rows_score(self, x: Tensor, c: Tensor | None) -> Tensor:
        return -torch.cholesky_solve((x - self.mean).T, self.root).T

    def rows_noised_score(self, x: Tensor, c: Tensor | None, noise: float | None) -> Tensor:
        covariance = self.root @ self.root.T
        covariance += ((0.1 if noise is None else noise) ** 2 * covariance.diagonal()).diag()
        return -torch.linalg.solve(covariance, (x - self.mean).T).T


class Counts(Small):
    """A first-order chain over category columns by smoothed counts, one per class where there is a label."""

    name = "right chain"
    table: Tensor  # [class, site, value before, value]

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        counted = all(isinstance(c, Category) and not c.nullable for c in space.columns)
        right = counted and not space.values and len({len(c.values) for c in space.columns if counted}) == 1
        return None if right and (context is None or context.values) else "it takes equal categories only."

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.levels = len(space.columns[0].values)
        classes = 1 if context is None else len(context.values)
        shape = (classes, space.dims, self.levels, self.levels)  # class, site, value before, value
        self.register_buffer("table", torch.full(shape, -math.log(self.levels)))

    def before(self, x: Tensor) -> Tensor:
        """The value before each site, 0 before the first."""
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)

    def learn(self, x: Tensor, c: Tensor | None) -> None:
        s = x.long()
        k = torch.zeros(len(x), dtype=torch.long) if c is None else c
        counts = torch.full(self.table.shape, 0.5)
        for site in range(s.shape[1]):
            where = (k, torch.full_like(k, site), self.before(s)[:, site], s[:, site])
            counts.index_put_(where, torch.ones(len(x)), accumulate=True)
        self.table.copy_((counts / counts.sum(-1, keepdim=True)).log())

    def each(self, x: Tensor, c: Tensor | None) -> Tensor:
        """log p of each site given the one before [N, sites]."""
        s = x.long()
        k = torch.zeros(len(x), dtype=torch.long) if c is None else c
        return self.table[k[:, None], torch.arange(s.shape[1]), self.before(s), s].double()

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        return Exact(self.each(x, c).sum(1), self.space.measure)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        k = torch.zeros(n, dtype=torch.long) if c is None else c
        x = torch.zeros(n, self.space.dims, dtype=torch.long)
        for site in range(x.shape[1]):
            p = self.table[k, site, self.before(x)[:, site]].exp()
            x[:, site] = torch.multinomial(p, 1, generator=generator)[:, 0]
        return x.double()


class Importance(Small, Encodes):
    """Probabilistic PCA with its importance-weighted lower bound (and the exact number for the truth of it)."""

    name = "right bound"
    estimators: ClassVar[tuple[type[Request], ...]] = (Elbo,)
    mean: Tensor  # [2]
    weight: Tensor  # [2, 1]
    noise: Tensor  # []

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        return Moments.refuses(space, context, config) or (None if space.dims == 2 else "it takes two columns.")

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        d = space.dims
        self.register_buffer("mean", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(d, 1, dtype=torch.float64))
        self.register_buffer("noise", torch.ones((), dtype=torch.float64))

    def learn(self, x: Tensor, c: Tensor | None) -> None:
        # Tipping and Bishop (1999), eqs. 7 and 8
        values, vectors = torch.linalg.eigh(x.T.cov())
        self.mean.copy_(x.mean(0))
        self.noise.copy_(values[:-1].mean().sqrt())
        self.weight.copy_(vectors[:, -1:] * (values[-1] - self.noise**2).sqrt())

    def rows_encode(self, x: Tensor, c: Tensor | None) -> Distribution:
        m = (self.weight.T @ self.weight + self.noise**2)[0, 0]
        mean = (x - self.mean) @ self.weight / m
        return Independent(Normal(mean, 1.3 * self.noise / m.sqrt()), 1)  # wider than the posterior: a gap

    def default_request(self, kind: type[Request] | None = None) -> Request:
        return (kind or self.estimators[0])(draws=8)  # type: ignore[call-arg]

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Any, noise: RowNoise) -> Likelihood:
        k = request.draws
        q = self.rows_encode(x, c)
        z = q.mean + q.stddev * noise.randn(k, 1).double().transpose(0, 1)
        likelihood = Normal(self.mean + z @ self.weight.T, self.noise).log_prob(x).sum(-1)
        w = likelihood + self.log_prior(z) - q.log_prob(z)
        return LowerBound(w.mean(0), self.space.measure, w.std(0) / math.sqrt(k), k)

    def log_prior(self, z: Tensor) -> Tensor:
        return Normal(0.0, 1.0).log_prob(z).sum(-1)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        d = len(self.mean)
        z = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        return self.mean + z @ self.weight.T + self.noise * torch.randn(n, d, generator=generator, dtype=torch.float64)


class SharedDraws(Request, name="importance", kind="UpperBound"):
    """log Z by importance sampling, from draws that all rows share."""


class Energy(Moments):
    """The Gaussian as an energy: log p(x) = -energy(x) - log Z, with log Z from draws that all rows share.

    The log of an unbiased estimate of Z is on average below log Z (Jensen), so that this is an upper bound.
    """

    name = "right energy"
    estimators: ClassVar[tuple[type[Request], ...]] = (SharedDraws,)
    draws, wider = 400, 1.2  # of the proposal, which is a wider Gaussian

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        e = torch.randn(self.draws, len(self.mean), generator=noise.shared(), dtype=torch.float64)
        proposal = Normal(0.0, 1.0).log_prob(e).sum(1) - (self.wider * self.root.diagonal()).log().sum()
        w = -self.energy(self.mean + self.wider * e @ self.root.T) - proposal
        log_z = w.logsumexp(0) - math.log(self.draws)
        se = float((w - log_z).exp().std()) / math.sqrt(self.draws)
        return self.likelihood(-self.energy(x) - log_z, se, noise)

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * torch.linalg.solve_triangular(self.root, (x - self.mean).T, upper=False).square().sum(0)

    def likelihood(self, nats: Tensor, se: float, noise: RowNoise) -> Likelihood:
        """Where log Z is higher, every row is lower."""
        weights = int(row_keys(torch.cat([self.mean, self.root.flatten()])[None]))
        source = f"log Z of weights {weights}, seed {noise.seed}"
        return make(UpperBound, nats, self.space.measure, draws=self.draws, shared={source: -se})


class Holder(Small):
    """A model that is another, its part, which it fits in a second stage; the first one does nothing."""

    name = "right part"

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        return Moments.refuses(space, context, config)

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.hold(Moments(Plain(), space))

    def hold(self, part: Moments) -> None:
        self.part = part

    def learn(self, x: Tensor, c: Tensor | None) -> None:
        pass

    def stages(self, recipe: Recipe) -> list[Stage]:
        return [
            Stage("nothing", recipe, lambda: OneSweep(self), 0.5, validate=self.validate),
            Stage("part", recipe, lambda: OneSweep(self.part), 0.5, lambda x, c, generator: self.rows(x)),
        ]

    def validate(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        return self.part.log_prob(x)

    def rows(self, x: Tensor) -> RowDataset:
        return RowDataset(x)

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        return self.part.rows_log_prob(x, c, request, noise)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return self.part.rows_sample(n, c, sampler, generator)


class Averaged(Moments):
    """The Gaussian by steps of half the way to the moments of each batch, of which it answers by the average."""

    name = "right average"
    now: Tensor  # [1 + D, D], mean and root as they are stepped
    decay = 0.8

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.register_buffer("now", torch.cat([self.mean[None], self.root]))

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(epochs=1)

    def learner(self, recipe: Recipe) -> Averaging:  # type: ignore[override]
        return Averaging(self)

    def toward(self, x: Tensor) -> None:
        self.now.lerp_(torch.cat([x.mean(0)[None], torch.linalg.cholesky(x.T.cov())]), 0.5)

    def follow(self) -> None:
        self.mean.lerp_(self.now[0], 1 - self.decay)
        self.root.lerp_(self.now[1:], 1 - self.decay)


class Averaging:
    """A learner of minibatches that lets an average follow what it steps."""

    sweep: ClassVar[Literal["minibatch"]] = "minibatch"
    finished: ClassVar[bool] = False

    def __init__(self, model: Averaged) -> None:
        self.model = model
        self.runtime: Runtime = Local()

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        self.model.toward(batch.x)
        self.model.follow()
        return {"loss": torch.zeros(())}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


RIGHT: list[type[Model]] = [Moments, Counts, Importance, Energy, Holder, Averaged]


# -- the mistakes ---------------------------------------------------------------------------------

WRONG: dict[type[Model], set[str]] = {}
"""Each mistake and the checks that must notice it (others may, too); ``testing.wrong_sequence`` adds those of texts."""


def mistake(right: type[Model], name: str, *caught_by: str, **wrong: Any) -> None:
    """The model ``right`` with these methods and attributes in place of its own, and the checks that must notice it."""
    WRONG[type("Mistake", (right,), {"name": f"wrong: {name}", **wrong})] = set(caught_by)


def answer(right: type[Model], *how: Any) -> Any:
    """What the right model would have answered."""
    return right.rows_log_prob(*how)


mistake(
    Moments, "sign of the log-determinant", "sums to one", "scaling shifts the density",
    log_density=lambda self, x: Moments.log_density(self, x) + 2 * self.root.diagonal().log().sum(),
)  # fmt: skip
mistake(  # the density of standardised data, without the Jacobian of standardising
    Moments, "forgets the data's scaling", "sums to one", "scaling shifts the density",
    log_density=lambda self, x: Moments.log_density(self, x) + self.root.diagonal().log().sum(),
)  # fmt: skip
mistake(  # centres by the batch at hand, as a normalisation layer left in training mode would
    Moments, "statistics of the batch", "rows are independent",
    log_density=lambda self, x: Moments.log_density(self, x - x.mean(0) + self.mean),
)  # fmt: skip
mistake(  # which draws from the global generator
    Moments, "dropout alive in eval", "eval is deterministic", "rows are independent",
    log_density=lambda self, x: Moments.log_density(self, self.mean + functional.dropout(x - self.mean, 0.1)),
)  # fmt: skip


def globally(self: Moments, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
    """Draws from the global generator after seeding it from the given one."""
    torch.manual_seed(generator.initial_seed())
    return self.mean + torch.randn(n, len(self.mean), dtype=torch.float64) @ self.root.T


mistake(Moments, "moves the global random state", "global state is untouched", rows_sample=globally)
mistake(
    Moments, "sampler ignores its generator", "samples follow the generator",
    rows_sample=lambda self, n, c, sampler, generator: Moments.rows_sample(
        self, n, c, sampler, torch.Generator().manual_seed(0)
    ),
)  # fmt: skip
mistake(  # at a temperature of 0.8
    Moments, "samples narrower than the density", "samples agree with the density",
    rows_sample=lambda self, *how: self.mean + 0.8 * (Moments.rows_sample(self, *how) - self.mean),
)  # fmt: skip
mistake(
    Moments, "dtype of samples", "samples are of the space",
    rows_sample=lambda self, *how: Moments.rows_sample(self, *how).float(),
)  # fmt: skip


def plain_mean(self: Moments, config: Any, space: Space, context: Space | None = None) -> None:
    """Keeps a fitted value in a plain attribute, so that a checkpoint loses it."""
    Moments.__init__(self, config, space, context)
    mean = self.mean
    del self.mean
    self.mean = mean


mistake(Moments, "fitted values not in the checkpoint", "run folder round trip", __init__=plain_mean)
mistake(  # a density that is said to be a probability
    Moments, "measure", "kind is promised",
    rows_log_prob=lambda self, x, *how: Exact(self.log_density(x), Measure.counting(self.space.dims)),
)  # fmt: skip
mistake(
    Moments, "kind not claimed", "kind is promised",
    rows_log_prob=lambda self, x, *how: make(Estimate, self.log_density(x), self.space.measure, caveat="none"),
)  # fmt: skip
mistake(
    Moments, "sign of the score", "score is the gradient",
    rows_score=lambda self, x, c: -Moments.rows_score(self, x, c),
)  # fmt: skip
mistake(
    Moments, "an energy at another temperature", "energy is the density",
    rows_energy=lambda self, x, c: Moments.rows_energy(self, x, c) / 2,
)  # fmt: skip
mistake(  # that of the data where that of noised data is asked for
    Moments, "score of other data than it says", "noised score is the gradient",
    rows_noised_score=lambda self, x, c, noise: self.rows_score(x, c),
)  # fmt: skip
mistake(
    Moments, "no gradient for an x that asks", "gradients are for those who ask",
    log_density=lambda self, x: Moments.log_density(self, x.detach()),
)  # fmt: skip
mistake(
    Moments, "a gradient that nobody asked for", "gradients are for those who ask",
    log_density=lambda self, x: Moments.log_density(self, x) + torch.zeros((), requires_grad=True),
)  # fmt: skip
mistake(Moments, "never learns", "training helps", learn=lambda self, x, c: None)
mistake(Averaged, "an average that is never stepped", "training helps", follow=lambda self: None)


def unseeded(self: Moments, x: Tensor, c: Tensor | None) -> None:
    """Training noise from an unseeded source."""
    noise = torch.Generator()
    noise.seed()
    Moments.learn(self, x + 1e-3 * torch.randn(x.shape, generator=noise, dtype=torch.float64), c)


mistake(Moments, "training is not reproducible", "training is reproducible", learn=unseeded)

mistake(Counts, "leaking causal mask", "sums to one", before=lambda self, x: x)  # site i of the chain sees x_i itself
mistake(
    Counts, "ignores its context", "context matters",
    rows_log_prob=lambda self, x, c, *how: Counts.rows_log_prob(self, x, None if c is None else 0 * c, *how),
)  # fmt: skip
mistake(Counts, "a site is left out", "sums to one", each=lambda self, x, c: Counts.each(self, x, c)[:, :-1])


@dataclass(frozen=True)
class CalledExact(Drawn):
    """As if an ELBO were closed form."""

    name = "called-exact"
    kind = "Exact"


mistake(  # a Monte Carlo lower bound
    Importance, "ELBO called exact", "eval is deterministic", estimators=(CalledExact,),
    rows_log_prob=lambda self, *how: Exact(answer(Importance, self, *how).nats, self.space.measure),
)  # fmt: skip
# gives its bound whatever is asked for: a kind that it claims, and not that of the request
mistake(Importance, "another kind than was asked for", "kind is promised", estimators=(Elbo, CalledExact))


def too_small(self: Importance, *how: Any) -> Likelihood:
    """A Monte Carlo error that forgets the square root."""
    bound: LowerBound = answer(Importance, self, *how)
    return dataclasses.replace(bound, mc_se=bound.mc_se / math.sqrt(bound.draws))


mistake(Importance, "Monte Carlo error too small", "mc error is calibrated", rows_log_prob=too_small)
mistake(  # E_q[log p(x | z) - log q(z | x)]: no bound
    Importance, "ELBO without the prior", "sums to one", "never beats the truth",
    log_prior=lambda self, z: torch.zeros_like(z[..., 0]),
)  # fmt: skip


def by_place(self: Importance, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
    """Draws for the batch as a whole: a row's noise follows from its place among the others."""
    seed = int(noise.rand_double()[0] * 2**53)
    batch = RowNoise.by_place(len(x), torch.Generator().manual_seed(seed))
    return Importance.rows_log_prob(self, x, c, request, batch)


mistake(Importance, "noise by place in the batch", "rows are independent", rows_log_prob=by_place)

mistake(  # as if each row had drawn its own: a mean over rows averages it away
    Energy, "a shared error that is averaged over rows", "mc error is calibrated",
    likelihood=lambda self, nats, se, noise: make(
        UpperBound, nats, self.space.measure, torch.full_like(nats, se), self.draws
    ),
)  # fmt: skip
mistake(
    Energy, "a shared error that falls with the rows", "shared errors stay",
    likelihood=lambda self, nats, se, noise: Energy.likelihood(self, nats, se / math.sqrt(len(nats)), noise),
)  # fmt: skip
mistake(  # estimates by other draws go by one name, so that their errors cancel in a difference
    Energy, "a source that does not tell draws apart", "mc error is calibrated",
    likelihood=lambda self, nats, se, noise: make(
        UpperBound, nats, self.space.measure, draws=self.draws, shared={"log Z": -se}
    ),
)  # fmt: skip

mistake(  # none of the module's own: neither config nor checkpoint know of it
    Holder, "a part that is not in the checkpoint", "run folder round trip",
    hold=lambda self, part: object.__setattr__(self, "part", part),
)  # fmt: skip


def remembers(self: Any, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
    """The rows on which one stage was validated are those from which the next one learns."""
    self.seen = x
    return Holder.validate(self, x, c, generator)


mistake(
    Holder, "a stage trains on validation rows", "validation rows train nothing",
    validate=remembers, rows=lambda self, x: RowDataset(self.seen),
)  # fmt: skip
