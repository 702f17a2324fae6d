"""Variational autoencoders: a prior p(z), a decoder p(x | z) and an encoder q(z | x) that makes it trainable.

    p(x | c) = E_{z ~ p(z)} [ p(x | z, c) ]

has no closed form; latent.py has the bounds on it, gradients.py the gradients of these, posteriors.py and priors.py
what q(z | x) and p(z) may be. The decoder is a head per column or pixel (nn/heads.py), proper in raw data space, so a
bound is in the data's own measure for mixed tables too (Kingma & Welling 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pofx.core.errors import UsageError
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe, Stage
from pofx.core.likelihood import Likelihood
from pofx.core.nested import spelled
from pofx.core.options import AMOUNT, BELOW_ONE, POSITIVE, SHARE, at_least
from pofx.core.requests import Elbo, Iwae, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families import gradients
from pofx.families.conditioned import NetOptions
from pofx.families.gradients import Gradient
from pofx.families.latent import Latent
from pofx.families.posteriors import LatentSet, draw, posterior
from pofx.families.priors import PRIORS, FamilyPrior, VampPrior, fits, prior
from pofx.nn.encoders import Encoded, no_encoder, vector
from pofx.nn.local import LocalPixels
from pofx.nn.mlp import Mlp
from pofx.nn.sites import ImageKind, heads_for, mixes, no_decoder

PASS = 2**21  # numbers of decoder output that one pass may hold
STARTED = 4096  # draws of N(0, I) that a prior which is trained with the rest starts from


@dataclass(frozen=True)
class VaeConfig(NetOptions):
    """Options of a VAE.

    Attributes:
        latent: dimensions of z, or how many categories it has.
        image: the head of image levels.
        components: of the mixture in the heads of real columns and of logistic levels; 1 is a plain
            Gaussian or logistic.
        window: of a convolutional decoder: how far a pixel also sees those before it (Gulrajani et al. 2017; Chen et
            al. 2017); 0: given z, pixels are independent.
        posterior: q(z | x): "gaussian"; a flow, "iaf" (Kingma et al. 2016) or "realnvp", with options of its own as
            "iaf:layers=4,hidden=256"; or "categorical:values=8", one-hot vectors.
        prior: p(z): "auto", N(0, I) or independent categories; "normal"; "mixture", a learned mixture of Gaussians
            ("mixture:components=20"); "vamp", of the encoder's posteriors of pseudo-inputs (Tomczak & Welling 2018);
            "independent", categories; or a family with an exact density of what z is, as "nsf" or "maf", with options
            of its own as "nsf:layers=3,hidden=64", or "made" for categories.
        prior_share: of the budget, at its end, in which such a family is fitted, by its own recipe, to latents drawn
            from the trained encoder, the simplest prior having stood in for it; 0: it is trained with the rest.
        objective: what training raises: the ELBO, or the IWAE bound of ``train_draws`` draws.
        train_draws: draws of z per datum in a training step.
        gradient: how the gradient of that is estimated (see families/gradients.py); auto: "reparameterised", of the
            IWAE bound with a Gaussian posterior "doubly" (Tucker et al. 2019); of categories "leave-one-out", of the
            IWAE bound "vimco" (Mnih & Rezende 2016).
        temperature: of the soft categories by which "gumbel-softmax" trains (Jang et al. 2017).
        beta: weight of log q(z | x) - log p(z) in training (Higgins et al. 2017, eq. 4; 1 is the bound).
        free_bits: nats of each dimension of z that cost nothing, on average over a batch (Kingma et al. 2016, eq. 15);
            where the divergence has no closed form, latent times as many of all together.
        warmup: share of the budget over which beta rises from 0 (Sønderby et al. 2016).
        draws: of the bounds that log_prob returns.
    """

    latent: int = 16
    image: ImageKind = "auto"
    components: int = 2
    window: int = 0
    posterior: str = "gaussian"
    prior: str = "auto"
    prior_share: float = 0.0
    objective: Literal["elbo", "iwae"] = "elbo"
    train_draws: int = 1
    gradient: Gradient = "auto"
    temperature: float = 0.5
    beta: float = 1.0
    free_bits: float = 0.0
    warmup: float = 0.1
    draws: int = 64

    ranges = {
        "blocks": AMOUNT, "window": AMOUNT, "prior_share": BELOW_ONE, "temperature": POSITIVE, "warmup": SHARE,
        "draws": at_least(2),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "iwae" and self.train_draws < 2:
            raise UsageError(
                f"The IWAE bound of train_draws={self.train_draws} is the ELBO.", "Give 2 or more, or objective=elbo."
            )
        if self.objective == "iwae" and self.free_bits:
            raise UsageError(f"free_bits={self.free_bits} of the IWAE bound: it has no divergence.", "Leave it out.")
        if self.prior_share and spelled(self.prior)[0] in PRIORS:
            raise UsageError(f"prior={self.prior} has no stage of its own.", "Leave out prior_share, or name a family.")
        fits(self.prior, self.posterior)
        gradients.check(self.estimator, self.objective, spelled(self.posterior)[0], self.train_draws)
        if self.estimator == "gumbel-softmax" and spelled(self.prior)[0] not in PRIORS:
            raise UsageError(
                f"gradient=gumbel-softmax with prior={self.prior}: soft categories have no density there.",
                "Use prior=independent, or gradient=leave-one-out.",
            )

    @property
    def estimator(self) -> Gradient:
        """Of the gradient, "auto" resolved."""
        return gradients.usual(self.objective, spelled(self.posterior)[0]) if self.gradient == "auto" else self.gradient


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


class Vae(Latent):
    name: ClassVar[str] = "vae"
    summary: ClassVar[str] = "a decoder of latent vectors, trained with an encoder that proposes them"
    taxonomy: ClassVar[str] = "explicit density / approximate / variational"
    paper: ClassVar[str] = "Kingma & Welling 2014; Burda et al. 2016"
    Config = VaeConfig
    config: VaeConfig

    def __init__(self, config: VaeConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.heads = heads_for(space, image=config.image, components=config.components)
        self.posterior = posterior(config.posterior, config.latent)
        shape, params = config.conv_shape(space), self.heads.params
        self.conv = shape is not None
        self.encoder = config.analysis(shape or (sum(self.heads.features),), self.posterior.outputs, self.known)
        if isinstance(self.encoder, Mlp):
            # it starts at zero, where q(z | x) would not depend on x: a saddle of the objective
            self.encoder.last.reset_parameters()
        self.local: LocalPixels | None = None
        made: tuple[int, ...] = (shape[0] * params[0], *shape[1:]) if shape else (sum(params),)
        if shape and config.window:
            made = (config.channels, *shape[1:])
            self.local = LocalPixels(shape[0], made[0], params[0], config.window)
        self.decoder = config.synthesis(self.posterior.width + self.known, made)
        self.prior = prior(config.prior, self.posterior, config.prior_share > 0, self.vamp)

    def vamp(self, components: int) -> VampPrior:
        return VampPrior(components, sum(self.heads.features), self.known, self.encode_features)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: VaeConfig) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        return no_decoder(space) or config.refuses(space)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if not config.conv_shape(space):
            yield from ("channels", "window")
        if not space.pixels:
            yield "image"
        if not mixes(space, config.image):
            yield "components"
        if config.estimator != "gumbel-softmax":
            yield "temperature"

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
            "flow as posterior": replace(tiny, posterior="iaf:layers=2,hidden=16,told=4"),
            "categories": replace(tiny, posterior="categorical:values=3", objective="iwae", train_draws=4),
        }

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=128, lr=2e-3, warmup=100, ema=0.999, epochs=50)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        self.heads.prepare(x, weight)
        if isinstance(self.prior, FamilyPrior) and self.prior.fitted:
            self._prepare_prior(self.prior.start.sample(STARTED, generator).to(self.device), generator)
        if isinstance(self.prior, VampPrior):
            some = torch.randint(len(x), (STARTED,), generator=generator, device=generator.device)
            self.prior.prepare(self.heads.embed(x[some.to(x.device)]), generator)

    def learner(self, recipe: Recipe) -> Learner:
        trained = nn.ModuleList(m for m in self.children() if m is not self.prior) if self.config.prior_share else self
        learner = GradientLearner(trained, recipe, lambda b, g: self.objective(b, g, learner.runtime.sum))
        return learner

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

    def codes(self, x: Any, c: Any, generator: torch.Generator) -> LatentSet:
        """Latents of the training rows x [N, *E] given c, from which the prior starts."""
        assert isinstance(self.prior, FamilyPrior)
        latents = LatentSet(self.posterior, self.encoded(x, c))
        self._prepare_prior(self.posterior.latents(latents.values), generator)
        self.prior.fitted.fill_(True)
        return latents

    def codes_log_prob(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        """log p(z) of one z of each row of x [N, *E]."""
        assert isinstance(self.prior, FamilyPrior)
        z = draw(self.posterior, self.encoded(x, c), generator)
        return self.prior.model.log_prob(self.posterior.values(z), generator=generator)

    def _prepare_prior(self, z: Tensor, generator: torch.Generator) -> None:
        assert isinstance(self.prior, FamilyPrior)
        self.prior.model.prepare(self.posterior.values(z), None, None, generator)
        self.remarks = [*self.remarks, *(f"The prior: {remark}" for remark in self.prior.model.remarks)]

    # -- the triple: encoder, decoder, prior --------------------------------------------------------------

    def encode_features(self, y: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-scale [N, L] of a Gaussian q, from what the encoder reads, y [N, features] and h [N, W]."""
        q: Any = self.posterior.propose(self._read(y, h))
        return q.mean, q.log_scale

    def _read(self, y: Tensor, h: Tensor | None) -> Tensor:
        return self.encoder(y.unflatten(1, self.space.event_shape) if self.conv else y, h)  # type: ignore[no-any-return]

    def decode(self, z: Tensor, h: Tensor | None) -> Tensor:
        """What the decoder makes of z [N, k, L] and h [N, W]: parameters of the heads [N, k, P], or features of pixels
        [N, k, F, H, W] where these see each other."""
        u = z if h is None else torch.cat([z, h[:, None].expand(-1, z.shape[1], -1)], -1)
        params = self.decoder(u.flatten(0, 1))
        if self.conv and self.local is None:
            channels = self.space.event_shape[0]
            params = params.unflatten(1, (channels, -1)).permute(0, 1, 3, 4, 2).reshape(len(params), -1)
        return params.unflatten(0, z.shape[:2])  # type: ignore[no-any-return]

    def reconstruction(self, x: Tensor, z: Tensor, h: Tensor | None) -> Tensor:
        """log p(x | z, c) [N, k] of x [N, *E], z [N, k, L] and h [N, W]."""
        params = self.decode(z, h)
        if self.local is not None:
            params = self.local(self.heads.embed(x).unflatten(1, self.space.event_shape), params)
        return self.heads.log_prob(params, x[:, None]).sum(-1)

    def objective(
        self, batch: Batch, generator: torch.Generator, everyone: Callable[[Tensor], Tensor] = lambda t: t
    ) -> dict[str, Tensor]:
        """``everyone`` gives the sum over processes."""
        config, way = self.config, self.config.estimator
        beta = config.beta * (min(1.0, batch.progress / config.warmup) if config.warmup else 1.0)
        c = self.batch_context(batch, generator)
        q = self.proposal(batch.x, c)
        e = batch.randn(config.train_draws, self.latent_dims, generator=generator)
        z, log_q = (q.relaxed(e, config.temperature), e) if way == "gumbel-softmax" else q(e)

        def terms(z: Tensor) -> tuple[Tensor, Tensor]:
            """log p(x | z, c) and log q(z | x, c) - log p(z), both [N, k]."""
            likelihood, log_prior = self.log_terms(batch.x, z, c)
            return likelihood, (self.posterior.still(q, z) if way in gradients.STILL else log_q) - log_prior

        if config.objective == "iwae":
            kl = log_q

            def log_w(z: Tensor) -> Tensor:
                nonlocal kl
                likelihood, kl = terms(z)
                return likelihood - beta * kl

            if way == "doubly":
                bound = gradients.doubly(z, log_w, beta)
            else:
                bound = gradients.vimco(log_w(z), log_q) if way == "vimco" else gradients.iwae(log_w(z))
            return {"loss": -bound, "kl": kl.detach().mean(1)}

        exact = None if way in gradients.STILL else self.posterior.divergence(q, self.prior)
        if exact is None:
            f, ratio = terms(z)
            kl = ratio.mean(1, keepdim=True)
            price, free = self._price(kl, batch, everyone)
            f, cost = f - beta * price * ratio, (free * (1 - price)).sum()
        else:
            f, kl = self.reconstruction(batch.x, z, vector(c)), exact
            price, free = self._price(kl, batch, everyone)
            cost = (price * kl + free * (1 - price)).sum(1)
        bound = gradients.leave_one_out(f, log_q) if way == "leave-one-out" else gradients.elbo(f)
        return {"loss": beta * cost - bound, "kl": kl.detach().sum(1)}

    def _price(self, kl: Tensor, batch: Batch, everyone: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
        """1 where a part of z costs its divergence, of kl [N, parts], and 0 where it costs but the second number."""
        free = self.config.free_bits * self.config.latent / kl.shape[1]
        if not free:
            return kl.new_ones(1), 0.0
        weight = kl.new_ones(len(kl)) if batch.weight is None else batch.weight.to(kl)
        mean = everyone(weight @ kl.detach()) / everyone(weight.sum())
        return (mean > free).to(kl), free

    # -- the contract ---------------------------------------------------------------------------------------

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        return not self.posterior.discrete or issubclass(asked, Iwae | Elbo | Sampler)

    @property
    def codes_per_pass(self) -> int:
        numbers = sum(self.heads.params) * (1 if self.local is None else self.config.channels)
        return max(1, min(PASS // numbers, self.prior.rows_per_pass))

    @property
    def latent_dims(self) -> int:
        return self.posterior.width

    def log_terms(self, x: Tensor, z: Tensor, c: Encoded | None) -> tuple[Tensor, Tensor]:
        return self.reconstruction(x, z, vector(c)), self.prior.log_prob(z)

    def proposal(self, x: Tensor, c: Encoded | None) -> Any:
        return self.posterior.propose(self._read(self.heads.embed(x), vector(c)))

    def divergence(self, q: Any, c: Encoded | None) -> Tensor | None:
        exact = self.posterior.divergence(q, self.prior)
        return None if exact is None else exact.sum(1)

    def rows_sample_joint(self, n: int, c: Encoded | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = self.prior.sample(n, generator).to(self.device)
        made = self.decode(z[:, None], vector(c))[:, 0]
        if self.local is None:
            return self.heads.sample(made, generator), z
        return self.local.sample(made, self.heads, generator), z

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return self.rows_sample_joint(n, c, generator)[0]

    def rows_encode(self, x: Tensor, c: Encoded | None) -> Distribution:
        return self.posterior.distribution(self.proposal(x, c))

    def rows_from_latents(self, z: Tensor, c: Encoded | None) -> Tensor:
        made = self.decode(z[:, None], vector(c))[:, 0]
        if self.local is None:
            return self.heads.typical(made)
        # pixels that see those before have no mean at hand: one draw, the same for the same latents
        return self.local.sample(made, self.heads, torch.Generator(made.device).manual_seed(0))

    @torch.no_grad()
    def latent_report(
        self, x: Tensor, c: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> LatentReport:
        """How much each latent dimension is used on rows x [N, *E] given c [N, *Ec].

        With the standard normal prior everything is in closed form; with another the KL figures are means over one
        draw per row, from ``generator`` (seed 0 where none is given), and those of a family's dimensions estimates.
        """
        out = self.encoded(x, c)
        q = self.posterior.propose(out)
        told = self.posterior.distribution(q)
        exact = self.posterior.divergence(q, self.prior)
        if exact is not None:
            kl, rate = exact.mean(0), float(exact.sum(1).mean())
        else:
            e = torch.randn(
                len(out), 1, self.latent_dims, generator=generator or torch.Generator(out.device).manual_seed(0)
            )
            z, log_q = (t[:, 0] for t in q(e))
            kl = (self.posterior.log_marginals(q, z) - self.prior.log_marginals(z)).mean(0)
            rate = float((log_q - self.prior.log_prob(z)).mean())
        variance = told.mean.var(0).view(self.config.latent, -1).sum(1)
        return LatentReport(variance, int((variance > 0.01).sum()), kl, rate)

    @torch.no_grad()
    def encoded(self, x: Any, c: Any) -> Tensor:
        """The encoder's numbers [N, outputs] of any number of rows x [N, *E] given c [N, *Ec]."""
        size, found = self.rows_per_pass(), []
        for i in range(0, len(x), size):
            told = None if c is None else vector(self.encode_context(c[i : i + size].to(self.device)))
            found.append(self._read(self.heads.embed(x[i : i + size].to(self.device)), told))
        return torch.cat(found)
