"""Latent diffusion: an autoencoder, and a path from noise to its latents as their prior (Rombach et al. 2022).

    p(x | c) = integral of p(z | c) p(x | z, c) dz

Of the prior only a bound is known, that of its path, L(z, c) <= log p(z | c) in expectation over the path's own draws.
It stands under an expectation in

    log p(x | c) >= E_q[ log p(x | z, c) + log p(z | c) ] + H(q) >= E_q[ log p(x | z, c) + L(z, c) ] + H(q)

(Vahdat et al. 2021, eq. 1, there as cross entropy), so that the sum is a bound, too; the log of a mean of such weights
would be none, and is not offered. H is the entropy of the encoder's q(z | x, c) = N(mean, diag scale^2).

Two stages: the autoencoder, whose latents are held to N(0, I) by a weak term,

    loss = -E_q log p(x | z) + beta KL(q(z | x) || N(0, I)),        0 < beta < 1,

then the path, on latents that the trained encoder draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from pofx.core.abilities import Encodes, FromLatents, HasBoundTerms
from pofx.core.errors import Unsupported
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe, Stage, TrainingSet
from pofx.core.likelihood import Estimate, Exact, Likelihood, LowerBound, Number
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, POSITIVE, Range, at_least
from pofx.core.requests import SOLVERS, Direct, Elbo, FewStep, Request, Sampler, VariationalBound
from pofx.core.space import Space, free_length
from pofx.families.conditioned import Conditioned, Known, NetOptions, own_vector, part
from pofx.nn.encoders import no_encoder
from pofx.nn.grid import grid_nets
from pofx.nn.sites import ImageKind, heads_for, mixes, no_decoder
from pofx.spaces import Reals

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
PASS = 2**21  # numbers of decoder output that one pass may hold


@dataclass(frozen=True)
class LatentDiffusionConfig(NetOptions):
    """Options of latent diffusion.

    Attributes:
        net: of the autoencoder; "auto" is conv for images with sides of at least 16, else mlp.
        blocks: residual blocks, of the MLPs or at the size of the grid of latents.
        channels: of the conv nets at half the image's size, doubled at a quarter.
        down: how many times an image is halved on the way to its grid of latents.
        latent: numbers of one vector of that grid; in mlp nets of all of z.
        beta: weight of KL(q(z | x) || N(0, I)) while the autoencoder is trained: less keeps more of the data.
        image: the head of image levels.
        components: of the mixture in the heads of real columns and of logistic levels.
        prior: the family of p(z | c): a path, such as "vdm", "edm" or "flow-matching", with options of its own as
            "vdm:channels=64"; or one with an exact density.
        prior_share: of the budget, at its end, in which the prior is fitted, by its own recipe.
        draws: of z in the bound that log_prob returns, for each of which the path's bound is drawn by itself.
    """

    blocks: int = 2
    down: int = 2
    latent: int = 4
    beta: float = 0.1
    image: ImageKind = "auto"
    components: int = 2
    prior: str = "vdm"
    prior_share: float = 0.6
    draws: int = 16

    ranges = {
        "blocks": AMOUNT,
        "down": at_least(0, 16),
        "beta": POSITIVE,
        "draws": at_least(2),
        "prior_share": Range(0, 1, above=True, below=True),
    }


class LatentDiffusion(Conditioned, Encodes, FromLatents, HasBoundTerms):
    name: ClassVar[str] = "latent-diffusion"
    summary: ClassVar[str] = "a decoder of latents, which a diffusion path draws"
    taxonomy: ClassVar[str] = "explicit density / approximate / variational"
    paper: ClassVar[str] = "Rombach, Blattmann, Lorenz, Esser & Ommer 2022; Vahdat, Kreis & Kautz 2021"
    estimators: ClassVar[tuple[type[Request], ...]] = (Elbo,)
    samplers: ClassVar[tuple[type[Sampler], ...]] = (FewStep, *SOLVERS, Direct)  # those that the prior answers
    in_terms = Elbo
    Config = LatentDiffusionConfig
    config: LatentDiffusionConfig
    fitted: Tensor  # is the prior?

    def __init__(self, config: LatentDiffusionConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.heads = heads_for(space, image=config.image, components=config.components)
        shape, params = config.conv_shape(space), self.heads.params
        self.conv = shape is not None
        self.encoder, self.decoder, places = grid_nets(
            shape, sum(self.heads.features), params[0] if shape else sum(params), (2 * config.latent, config.latent), 1,
            down=config.down, channels=config.channels, hidden=config.hidden, blocks=config.blocks, context=self.known,
        )  # fmt: skip
        self.grid = grid = (config.latent, *places) if shape else (config.latent,)
        self.prior = part(config.prior, Reals(grid), context, config)
        if self.prior.default_request().kind not in ("Exact", "LowerBound"):
            raise Unsupported(
                f"prior={config.prior}: {self.prior.name} has no bound of its density, which this one needs.",
                "Name a path, such as vdm, or a flow.",
            )
        self.register_buffer("fitted", torch.tensor(False))

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: LatentDiffusionConfig) -> str | None:
        if reason := free_length(space, context) or no_encoder(context):
            return reason
        return no_decoder(space) or config.refuses(space)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        yield "hidden" if config.conv_shape(space) else "channels"
        if not config.conv_shape(space):
            yield "down"
        if not space.pixels:
            yield "image"
        if not mixes(space, config.image):
            yield "components"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(
            cls, space, hidden=64, blocks=1, channels=8, latent=2, draws=4, prior_share=0.4, beta=0.5,
            prior="vdm:hidden=32,blocks=1,sample_steps=20,ode_steps=4",
        )  # fmt: skip

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=64, lr=2e-3, warmup=20, ema=0.998, epochs=50)

    # -- training -------------------------------------------------------------------------------------------

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        self.heads.prepare(x, weight)

    def learner(self, recipe: Recipe) -> Learner:
        trained = nn.ModuleList(m for m in self.children() if m is not self.prior)
        return GradientLearner(trained, recipe, self.objective)

    def stages(self, recipe: Recipe) -> list[Stage]:
        own, share = self.prior.recipe(self.prior.space), self.config.prior_share
        return [
            Stage("autoencoder", recipe, partial(self.learner, recipe), 1 - share, validate=self._lowered),
            Stage("prior", own, partial(self.prior.learner, own), share, self._latents, self._latents_log_prob),
        ]

    def objective(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        h = self.batch_vector(batch, generator)
        mean, log_scale = self.posterior(batch.x, h)
        z = mean + log_scale.exp() * batch.randn(math.prod(self.grid), generator=generator)
        reconstruction, kl = self.heads.log_prob(self.decoded(z, h), batch.x).sum(-1), divergence(mean, log_scale)
        return {"loss": self.config.beta * kl - reconstruction, "kl": kl.detach()}

    def _lowered(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        """Minus what the first stage lowers; the bound itself, with its full KL, would stop it early."""
        terms = self.given(c).bound_terms(x, request=self.quick_request(), generator=generator)
        nats = terms["reconstruction"].nats + self.config.beta * terms["prior"].nats
        caveat = "what is told of x by its latents, less beta KL: what the stage raises, and no likelihood"
        return Estimate(nats, self.space.measure, torch.zeros_like(nats), 0, caveat)

    def _latents(self, x: Any, c: Any, generator: torch.Generator) -> Latents:
        """Latents of the training rows x [N, *E] given c, from which the prior starts."""
        latents = Latents(*(v.unflatten(1, self.grid) for v in self.posteriors(x, c)))
        self.prior.prepare(latents.z, c, None, generator)
        self.remarks = [*self.remarks, *(f"The prior: {remark}" for remark in self.prior.remarks)]
        self.fitted.fill_(True)
        return latents

    def _latents_log_prob(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        """Of one latent of each row of x [N, *E]."""
        z = drawn(*self.posteriors(x, c), generator).unflatten(1, self.grid)
        return self.prior.given(c).log_prob(z, request=self.prior.quick_request(), generator=generator)

    # -- encoder and decoder ----------------------------------------------------------------------------------

    def posterior(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-scale [N, L] of q(z | x, c) = N(mean, diag scale^2), for x [N, *E] and h [N, W]."""
        y = self.heads.embed(x)
        y = y.unflatten(1, self.space.event_shape) if self.conv else y
        mean, log_scale = self.encoder(y, h).chunk(2, 1)
        return mean.flatten(1), log_scale.flatten(1).clamp(-7, 4)

    def decoded(self, z: Tensor, h: Tensor | None) -> Tensor:
        """Parameters of the heads [N, P] for z [N, L] and h [N, W]."""
        params = self.decoder(z.unflatten(1, self.grid), h)
        if not self.conv:
            return params
        return params.unflatten(1, (self.space.event_shape[0], -1)).permute(0, 1, 3, 4, 2).flatten(1)

    @torch.no_grad()
    def posteriors(self, x: Any, c: Any) -> tuple[Tensor, Tensor]:
        """Mean and scale [N, L] of q(z | x, c) for any number of rows x [N, *E] given c [N, *Ec]."""
        size = self.rows_per_pass()
        blocks = [slice(i, i + size) for i in range(0, len(x), size)]
        found = [self.given(None if c is None else c[b]).encode(x[b]) for b in blocks]
        return torch.cat([q.mean for q in found]), torch.cat([q.stddev for q in found])

    # -- the contract ---------------------------------------------------------------------------------------

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        return asked in self.prior.own_samplers if issubclass(asked, Sampler) else super().answers(asked)

    def default_sampler(self, kind: type[Sampler] | None = None) -> Sampler:
        return self.prior.default_sampler(kind)

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Known:  # type: ignore[override]
        return Known(super().encode_context(c, dropped), self.prior.encode_context(c, dropped))

    def null_context(self, n: int) -> Known:  # type: ignore[override]
        return Known(super().null_context(n), self.prior.null_context(n))

    def rows_per_pass(self) -> int:
        return max(1, min(super().rows_per_pass(), self.prior.rows_per_pass(), PASS // sum(self.heads.params)))

    def quick_request(self) -> Request:
        return Elbo(draws=2)

    def _terms_of(self, x: Tensor, c: Known | None, draws: int, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """log p(x | z, c), and what the prior's bound and the entropy of q add to it, of every draw: [N, k] each.

        Before there is a prior, N(0, I) is in its place.
        """
        h = own_vector(c)
        mean, log_scale = self.posterior(x, h)
        entropy = (log_scale + 0.5 + HALF_LOG_2PI).sum(1).double()
        path = VariationalBound in self.prior.own_estimators
        asked: Request = VariationalBound(draws=2) if path else self.prior.default_request()
        n, reconstruction, rest = len(x), [], []
        eps, forked = noise.randn(draws, mean.shape[1]).to(mean).transpose(0, 1), noise.forked(draws)
        at_once = max(1, self.rows_per_pass() // max(1, n))  # draws
        for start in range(0, draws, at_once):
            z = mean + log_scale.exp() * eps[start : start + at_once]
            row, z = torch.arange(n, device=x.device).repeat(len(z)), z.flatten(0, 1)
            params = self.decoded(z, None if h is None else h[row])
            reconstruction.append(self.heads.log_prob(params, x[row]).sum(-1, dtype=torch.float64))
            if not self.fitted:
                rest.append(-divergence(mean, log_scale).double()[row])
                continue
            own = forked.of(slice(start * n, start * n + len(row)))
            lik = self.prior.rows_log_prob(z.double().unflatten(1, self.grid), c and c.part[row], asked, own)
            assert isinstance(lik, Exact | LowerBound)
            rest.append(lik.nats.double() + entropy[row])
        return torch.cat(reconstruction).view(draws, n).T, torch.cat(rest).view(draws, n).T

    def rows_log_prob(self, x: Tensor, c: Known | None, request: Any, noise: RowNoise) -> Likelihood:
        reconstruction, rest = self._terms_of(x, c, request.draws, noise)
        nats, se = _mean(reconstruction + rest)
        return LowerBound(nats, self.space.measure, se, request.draws)

    def rows_bound_terms(self, x: Tensor, c: Known | None, request: Any, noise: RowNoise) -> dict[str, Number[Tensor]]:
        reconstruction, rest = self._terms_of(x, c, request.draws, noise)
        found = {"prior": _mean(rest), "reconstruction": _mean(reconstruction)}
        return {name: Number(Estimate, nats, se, se, draws=request.draws) for name, (nats, se) in found.items()}

    def rows_sample(self, n: int, c: Known | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        if self.fitted:
            z = self.prior.rows_sample(n, c and c.part, sampler, generator).flatten(1).float()
        else:
            z = torch.randn(n, math.prod(self.grid), generator=generator, device=generator.device)
        return self.heads.sample(self.decoded(z.to(self.device), own_vector(c)), generator)

    def rows_encode(self, x: Tensor, c: Known | None) -> Distribution:
        mean, log_scale = self.posterior(x, own_vector(c))
        return Independent(Normal(mean, log_scale.exp()), 1)

    @property
    def latent_dims(self) -> int:
        return math.prod(self.grid)

    def rows_from_latents(self, z: Tensor, c: Known | None) -> Tensor:
        return self.heads.typical(self.decoded(z, own_vector(c)))


@dataclass(eq=False)
class Latents(TrainingSet):
    """A training set of latents z of rows: draws from q(z | x, c), new ones in every epoch. mean, scale: [N, *grid]."""

    mean: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.z[index]

    def set_epoch(self, number: int) -> None:
        self.z = drawn(self.mean, self.scale, torch.Generator().manual_seed(number))


def drawn(mean: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each N(mean, diag scale^2), float64, by a generator on any device."""
    return (mean + scale * torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)).double()


def divergence(mean: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(mean, diag scale^2) || N(0, I)) [N] (Kingma & Welling 2014, appendix B)."""
    return (0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale).sum(1)


def _mean(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of k draws [N, k], and its standard error [N]."""
    return draws.mean(1), draws.std(1) / math.sqrt(draws.shape[1])
