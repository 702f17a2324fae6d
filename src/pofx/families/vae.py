"""Variational autoencoders: a prior p(z), a decoder p(x | z) and an encoder q(z | x) that makes it trainable.

    p(x | c) = E_{z ~ p(z)} [ p(x | z, c) ]

has no closed form. With importance weights w_i = p(x, z_i | c) / q(z_i | x, c), z_i ~ q(z | x, c),

    ELBO = E[ log w ] <= E[ log (w_1 + ... + w_k) / k ] = IWAE-k <= log p(x | c)

(Kingma & Welling 2014, eq. 3; Burda et al. 2016, eq. 8 and theorem 1). The decoder is a head per column or
pixel (nn/heads.py), proper in raw data space, so a bound is in the data's own measure for mixed tables too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from pofx.core.abilities import Encodes, HasBoundTerms
from pofx.core.errors import UsageError
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe, Stage
from pofx.core.likelihood import Estimate, Likelihood, LowerBound, Number
from pofx.core.model import serving
from pofx.core.nested import spelled
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, BELOW_ONE, SHARE, at_least
from pofx.core.requests import Elbo, Iwae, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import Conditioned, NetOptions
from pofx.families.priors import HALF_LOG_2PI, PRIORS, Codes, FamilyPrior, draw, prior
from pofx.nn.encoders import Encoded, no_encoder, vector
from pofx.nn.mlp import Mlp
from pofx.nn.sites import ImageKind, has_heads, heads_for, mixes

PASS = 2**21  # numbers of decoder output that one pass may hold
STARTED = 4096  # draws of N(0, I) that a prior which is trained with the rest starts from


@dataclass(frozen=True)
class VaeConfig(NetOptions):
    """Options of a VAE.

    Attributes:
        latent: dimensions of z.
        image: the head of image levels.
        components: of the mixture in the heads of real columns and of logistic levels; 1 is a plain
            Gaussian or logistic.
        prior: p(z): "normal", N(0, I); "mixture", a learned mixture of Gaussians ("mixture:components=20"); or a family
            with an exact density of real vectors, such as "nsf", with options of its own as "nsf:layers=3,hidden=64".
        prior_share: of the budget, at its end, in which such a family is fitted, by its own recipe, to codes drawn from
            the trained encoder, N(0, I) having stood in for it; 0: it is trained with the rest.
        objective: what training raises: the ELBO, or the IWAE bound of ``train_draws`` draws.
        train_draws: draws of z per datum in a training step.
        beta: weight of log q(z | x) - log p(z) in training (Higgins et al. 2017, eq. 4; 1 is the bound).
        warmup: share of the budget over which that weight rises from 0 (Sønderby et al. 2016).
        draws: of the bounds that log_prob returns.
    """

    latent: int = 16
    image: ImageKind = "auto"
    components: int = 2
    prior: str = "normal"
    prior_share: float = 0.0
    objective: Literal["elbo", "iwae"] = "elbo"
    train_draws: int = 1
    beta: float = 1.0
    warmup: float = 0.1
    draws: int = 64

    ranges = {"blocks": AMOUNT, "prior_share": BELOW_ONE, "warmup": SHARE, "draws": at_least(2)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "iwae" and self.train_draws < 2:
            raise UsageError(
                f"The IWAE bound of train_draws={self.train_draws} is the ELBO.", "Give 2 or more, or objective=elbo."
            )
        if self.prior_share and spelled(self.prior)[0] in PRIORS:
            raise UsageError(f"prior={self.prior} has no stage of its own.", "Leave out prior_share, or name a family.")


@dataclass(frozen=True)
class LatentReport:
    """What the latent dimensions are used for, over a set of rows.

    Attributes:
        variance: [L], of the posterior mean over the rows, Var_x(E_q[z_d | x]).
        active: how many dimensions have a variance above 0.01 (Burda et al. 2016, section 5.2).
        kl: [L], mean over the rows of KL(q(z_d | x) || p(z_d)) in nats; near 0: that dimension collapsed.
        rate: mean over the rows of KL(q(z | x) || p(z)) in nats: what z tells of x, at most.
    """

    variance: Tensor
    active: int
    kl: Tensor
    rate: float


class Vae(Conditioned, Encodes, HasBoundTerms):
    name: ClassVar[str] = "vae"
    summary: ClassVar[str] = "a decoder of latent vectors, trained with an encoder that proposes them"
    taxonomy: ClassVar[str] = "explicit density / approximate / variational"
    paper: ClassVar[str] = "Kingma & Welling 2014; Burda et al. 2016"
    estimators: ClassVar[tuple[type[Request], ...]] = (Iwae, Elbo)
    in_terms = Elbo
    Config = VaeConfig
    config: VaeConfig

    def __init__(self, config: VaeConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.heads = heads_for(space, image=config.image, components=config.components)
        shape, params = config.conv_shape(space), self.heads.params
        self.conv = shape is not None
        self.encoder = config.analysis(shape or (sum(self.heads.features),), 2 * config.latent, self.known)
        if isinstance(self.encoder, Mlp):
            # it starts at zero, where q(z | x) would not depend on x: a saddle of the objective
            self.encoder.last.reset_parameters()
        made = (shape[0] * params[0], *shape[1:]) if shape else (sum(params),)
        self.decoder = config.synthesis(config.latent + self.known, made)
        self.prior = prior(config.prior, config.latent, config.prior_share > 0)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: VaeConfig) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        if not has_heads(space):
            return f"there is no head for {space}."
        if space.values:
            return "a label has no latent structure. Fit a classifier or a histogram."
        return config.refuses(space)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if not config.conv_shape(space):
            yield "channels"
        if not space.pixels:
            yield "image"
        if not mixes(space, config.image):
            yield "components"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, latent=4, hidden=64, channels=8, warmup=0.2, draws=32)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        if not space.pixels or space.symbols != 2:  # a few cases tell
            return {}
        tiny, flow = cls.tiny(space), "realnvp:layers=2,hidden=16,blocks=1"
        return {
            "flow as prior": replace(tiny, prior=flow),
            "flow as prior, after": replace(tiny, prior=flow, prior_share=0.3),
        }

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=128, lr=2e-3, warmup=100, ema=0.999, epochs=50)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        self.heads.prepare(x, weight)
        if isinstance(self.prior, FamilyPrior) and self.prior.fitted:
            self._prepare_prior(
                torch.randn(STARTED, self.config.latent, generator=generator).to(self.device), generator
            )

    def learner(self, recipe: Recipe) -> Learner:
        trained = nn.ModuleList(m for m in self.children() if m is not self.prior) if self.config.prior_share else self
        return GradientLearner(trained, recipe, self.objective)

    def stages(self, recipe: Recipe) -> list[Stage]:
        share = self.config.prior_share
        if not (share and isinstance(self.prior, FamilyPrior)):
            return super().stages(recipe)
        model = self.prior.model
        own = model.recipe(model.space)
        return [
            Stage("autoencoder", recipe, partial(self.learner, recipe), 1 - share),
            Stage("prior", own, partial(model.learner, own), share, self.codes, self.codes_log_prob, given=False),
        ]

    def codes(self, x: Any, c: Any, generator: torch.Generator) -> Codes:
        """Codes of the training rows x [N, *E] given c, from which the prior starts."""
        assert isinstance(self.prior, FamilyPrior)
        codes = Codes(*self.posteriors(x, c))
        self._prepare_prior(codes.z, generator)
        self.prior.fitted.fill_(True)
        return codes

    def codes_log_prob(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        """log p(z) of one code of each row of x [N, *E]."""
        assert isinstance(self.prior, FamilyPrior)
        return self.prior.model.log_prob(draw(*self.posteriors(x, c), generator).double(), generator=generator)

    def _prepare_prior(self, z: Tensor, generator: torch.Generator) -> None:
        assert isinstance(self.prior, FamilyPrior)
        self.prior.model.prepare(z.double(), None, None, generator)
        self.remarks = [*self.remarks, *(f"The prior: {remark}" for remark in self.prior.model.remarks)]

    # -- the triple: encoder, decoder, prior --------------------------------------------------------------

    def posterior(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-scale [N, L] of q(z | x, c) = N(mean, diag scale^2), for x [N, *E] and h [N, W]."""
        y = self.heads.embed(x)
        y = y.unflatten(1, self.space.event_shape) if self.conv else y
        mean, log_scale = self.encoder(y, h).chunk(2, 1)
        return mean, log_scale.clamp(-7, 4)

    def decode(self, z: Tensor, h: Tensor | None) -> Tensor:
        """Parameters of the heads [N, k, P] for z [N, k, L] and h [N, W]."""
        u = z if h is None else torch.cat([z, h[:, None].expand(-1, z.shape[1], -1)], -1)
        params = self.decoder(u.flatten(0, 1))
        if self.conv:
            channels = self.space.event_shape[0]
            params = params.unflatten(1, (channels, -1)).permute(0, 1, 3, 4, 2).reshape(len(params), -1)
        return params.unflatten(0, z.shape[:2])

    def terms(self, x: Tensor, h: Tensor | None, mean: Tensor, log_scale: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z, c) and log q(z | x, c) - log p(z), both [N, k], at z = mean + scale eps, eps [N, k, L]."""
        z = mean[:, None] + log_scale.exp()[:, None] * eps
        reconstruction = self.heads.log_prob(self.decode(z, h), x[:, None]).sum(-1)
        log_q = -0.5 * eps.square().sum(-1) - log_scale.sum(-1)[:, None] - eps.shape[-1] * HALF_LOG_2PI
        return reconstruction, log_q - self.prior.log_prob(z)

    def objective(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        h = vector(self.batch_context(batch, generator))
        mean, log_scale = self.posterior(batch.x, h)
        eps = batch.randn(config.train_draws, config.latent, generator=generator)
        reconstruction, log_ratio = self.terms(batch.x, h, mean, log_scale, eps)
        beta = config.beta * (min(1.0, batch.progress / config.warmup) if config.warmup else 1.0)
        if config.objective == "iwae":
            bound = (reconstruction - beta * log_ratio).logsumexp(1) - math.log(config.train_draws)
            return {"loss": -bound, "kl": log_ratio.mean(1).detach()}
        exact = self.prior.divergence(mean, log_scale)
        kl = log_ratio.mean(1) if exact is None else exact.sum(1)
        return {"loss": beta * kl - reconstruction.mean(1), "kl": kl.detach()}

    # -- the contract ---------------------------------------------------------------------------------------

    def rows_per_pass(self) -> int:
        return max(1, min(super().rows_per_pass(), self.codes_per_pass))

    @property
    def codes_per_pass(self) -> int:
        return min(PASS // sum(self.heads.params), self.prior.rows_per_pass)

    def quick_request(self) -> Request:
        return Iwae(draws=8)

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise) -> Likelihood:
        reconstruction, log_ratio = self._drawn_terms(x, c, request, noise)
        log_w, k = reconstruction - log_ratio, request.draws
        nats, se = _mean(log_w) if isinstance(request, Elbo) else log_mean_exp(log_w)
        return LowerBound(nats, self.space.measure, se, k)

    def rows_bound_terms(
        self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise
    ) -> dict[str, Number[Tensor]]:
        reconstruction, log_ratio = self._drawn_terms(x, c, request, noise)
        found = {"prior": _mean(-log_ratio), "reconstruction": _mean(reconstruction)}
        return {name: Number(Estimate, nats, se, se, draws=request.draws) for name, (nats, se) in found.items()}

    def _drawn_terms(self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """``terms`` of every draw [N, k] float64; of the ELBO the second is the exact KL where that is known."""
        n, k, h = len(x), request.draws, vector(c)
        mean, log_scale = self.posterior(x, h)
        kl = self.prior.divergence(mean, log_scale) if isinstance(request, Elbo) else None
        found = torch.empty(2, n, k, dtype=torch.float64, device=x.device)
        block = max(1, self.codes_per_pass // n)
        for i in range(0, k, block):
            m = min(block, k - i)
            eps = noise.randn(m, self.config.latent).to(mean)
            reconstruction, log_ratio = self.terms(x, h, mean, log_scale, eps)
            found[0, :, i : i + m] = reconstruction
            found[1, :, i : i + m] = log_ratio if kl is None else kl.sum(1, keepdim=True)
        return found[0], found[1]

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        z = self.prior.sample(n, generator).to(self.device)
        return self.heads.sample(self.decode(z[:, None], vector(c))[:, 0], generator)

    def rows_encode(self, x: Tensor, c: Encoded | None) -> Distribution:
        mean, log_scale = self.posterior(x, vector(c))
        return Independent(Normal(mean, log_scale.exp()), 1)

    @torch.no_grad()
    def latent_report(
        self, x: Tensor, c: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> LatentReport:
        """How much each latent dimension is used on rows x [N, *E] given c [N, *Ec].

        With the standard normal prior everything is in closed form; with another the KL figures are means over one
        draw per row, from ``generator`` (seed 0 where none is given), and those of a family's dimensions estimates.
        """
        mean, scale = self.posteriors(x, c)
        exact = self.prior.divergence(mean, scale.log())
        if exact is not None:
            kl = exact.mean(0)
            rate = float(kl.sum())
        else:
            z = draw(mean, scale, generator or torch.Generator(self.device).manual_seed(0))
            log_q = Normal(mean, scale).log_prob(z)
            kl = (log_q - self.prior.log_marginals(z)).mean(0)
            rate = float((log_q.sum(1) - self.prior.log_prob(z)).mean())
        variance = mean.var(0)
        return LatentReport(variance, int((variance > 0.01).sum()), kl, rate)

    @torch.no_grad()
    def posteriors(self, x: Any, c: Any) -> tuple[Tensor, Tensor]:
        """Mean and scale [N, L] of q(z | x, c) for any number of rows x [N, *E] given c [N, *Ec]."""
        size = self.rows_per_pass()
        blocks = [slice(i, i + size) for i in range(0, len(x), size)]
        codes = [self.given(None if c is None else c[b]).encode(x[b]) for b in blocks]
        return torch.cat([q.mean for q in codes]), torch.cat([q.stddev for q in codes])


def _mean(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of k draws [N, k], and its standard error [N]."""
    return draws.mean(1), draws.std(1) / math.sqrt(draws.shape[1])


def log_mean_exp(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight [N] and its standard error, from log-weights [N, k].

    The error is the jackknife's (Efron & Stein 1981: not too small on average). Where one weight dominates,
    the delta method says 1 whatever the spread; leaving that weight out shows it.
    """
    k = log_w.shape[1]
    total = log_w.logsumexp(1, keepdim=True)
    # log sum of all weights but one; for the largest by itself, as 1 - share would cancel
    share = (log_w - total.clamp(min=torch.finfo(total.dtype).min)).exp()
    rest = total + torch.log1p(-share.clamp(max=1 - 1e-12))
    top = log_w.argmax(1, keepdim=True)
    rest.scatter_(1, top, log_w.scatter(1, top, -math.inf).logsumexp(1, keepdim=True))
    variance = (k - 1) / k * (rest - rest.mean(1, keepdim=True)).square().sum(1)
    return total[:, 0] - math.log(k), variance.nan_to_num(0.0).sqrt()  # all weights zero: no spread
