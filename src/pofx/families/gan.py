"""Generative adversarial networks: a generator G(z, c) of data against a critic D(x, c) that tells them from real ones.

    non-saturating with R1   max_D E[-softplus(-D(x))] + E[-softplus(D(G(z)))] - (r/2) E|grad_x D(x)|^2
                             max_G E[-softplus(-D(G(z)))]
                             (Goodfellow et al. 2014, section 3; Mescheder et al. 2018, eq. 9)
    WGAN-GP                  max_D E[D(x)] - E[D(G(z))] - r E(|grad D(u)| - 1)^2,  u between x and G(z)
                             max_G E[D(G(z))]   (Gulrajani et al. 2017, eq. 3)

The critic sees only values that data can take: levels, grids, categories and missing entries are made
discrete on the way out of the generator, and their gradient passes straight through (Bengio et al. 2013).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.codecs.columns import Columns
from pofx.codecs.relaxed import relaxed
from pofx.core.errors import UsageError
from pofx.core.learner import Batch, Learner, Local, Recipe, Runtime, Stepper
from pofx.core.likelihood import Likelihood, Unavailable
from pofx.core.model import Model, serving
from pofx.core.noise import RowNoise
from pofx.core.options import BELOW_ONE, POSITIVE
from pofx.core.requests import NoLikelihood, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import NetOptions, context_encoder, dropped
from pofx.nn.encoders import Encoded, no_encoder, vector
from pofx.nn.mlp import Mlp


@dataclass(frozen=True)
class GanConfig(NetOptions):
    """Options of a GAN.

    Attributes:
        noise: dimensions of z.
        loss: "r1" (non-saturating with R1) or "wgan" (WGAN-GP).
        penalty: weight r of the gradient penalty; None: 1 for r1, 10 for wgan.
        critic_steps: of the critic per step of the generator, on the same rows with fresh noise;
            None: 1 for r1, 3 for wgan.
        temperature: of the Gumbel-softmax that carries the gradient of categories and binary pixels (Jang et al.
            2017).
        ema: decay of the averaged generator, which then samples (Karras et al. 2018); 0: none.
    """

    noise: int = 32
    loss: Literal["r1", "wgan"] = "r1"
    penalty: float | None = None
    critic_steps: int | None = None
    hidden: int = 128
    channels: int = 32
    temperature: float = 0.7
    ema: float = 0.998

    ranges = {"temperature": POSITIVE, "ema": BELOW_ONE}


class Told(nn.Module):
    """A net with an encoder of contexts of its own."""

    def __init__(self, config: GanConfig, context: Space | None) -> None:
        super().__init__()
        self.context_encoder = context_encoder(config, context)
        self.known = 0 if self.context_encoder is None else self.context_encoder.width

    def told(self, c: Tensor | None, dropped: Tensor | None) -> Tensor | None:
        """Contexts c [N, *Ec] as it takes them [N, known], those ``dropped`` [N] as none."""
        return None if self.context_encoder is None or c is None else self.context_encoder(c, dropped).vector


class Generator(Told):
    """z [N, noise] (, h [N, known]) -> raw outputs [N, outputs]."""

    def __init__(self, config: GanConfig, space: Space, context: Space | None, outputs: int) -> None:
        super().__init__(config, context)
        self.net = config.synthesis(config.noise + self.known, config.conv_shape(space) or (outputs,))
        if isinstance(self.net, Mlp):
            self.net.last.reset_parameters()  # at zero, all samples would be one

    def forward(self, z: Tensor, h: Tensor | None) -> Tensor:
        return self.net(z if h is None else torch.cat([z, h], 1)).flatten(1)


class Critic(Told):
    """y [N, features] (, h [N, known]) -> how real it looks [N]."""

    def __init__(self, config: GanConfig, space: Space, context: Space | None, features: int) -> None:
        super().__init__(config, context)
        self.shape = config.conv_shape(space) or (features,)
        self.net = config.analysis(self.shape, 1, self.known)

    def forward(self, y: Tensor, h: Tensor | None) -> Tensor:
        return self.net(y.unflatten(1, self.shape), h)[:, 0]


class Gan(Model):
    name: ClassVar[str] = "gan"
    summary: ClassVar[str] = "a net that turns noise into data, trained against a critic; it has no density"
    taxonomy: ClassVar[str] = "implicit density / direct / adversarial"
    paper: ClassVar[str] = "Goodfellow et al. 2014; Mescheder et al. 2018; Gulrajani et al. 2017"
    estimators: ClassVar[tuple[type[Request], ...]] = (NoLikelihood,)
    Config = GanConfig
    config: GanConfig

    def __init__(self, config: GanConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.codec = relaxed(space, config.temperature)
        self.generator = Generator(config, space, context, self.codec.size)
        self.critic = Critic(config, space, context, self.codec.size)
        self.average = copy.deepcopy(self.generator).requires_grad_(False) if config.ema else None

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: GanConfig) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        if not (space.columns or space.pixels):
            return f"it makes columns and pixels, and {space} have none. Fit another family."
        if space.values:
            return "a label needs no generator. Fit a classifier or a histogram."
        return config.refuses(space)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        if context is None:
            yield "context_dropout"
        if not config.conv_shape(space):
            yield "channels"
        if not (space.pixels and space.symbols == 2) and not Columns(space, atoms=False).codes:
            yield "temperature"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, noise=8, hidden=64, channels=16, ema=0.98)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=64, lr=1e-3, betas=(0.0, 0.99), epochs=50)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        self.codec.prepare(x, weight)
        for net in (self.generator, self.critic, self.average):
            if net is not None and net.context_encoder is not None:
                net.context_encoder.prepare(c, weight)

    def learner(self, recipe: Recipe) -> Learner:
        return GanLearner(self, recipe)

    def parameter_count(self) -> int:
        """Of generator and critic; the average is no further freedom."""
        return sum(p.numel() for net in (self.generator, self.critic) for p in net.parameters())

    # -- the two losses ---------------------------------------------------------------------------------------

    def fake(self, batch: Batch, generator: torch.Generator, drop: Tensor | None = None) -> Tensor:
        """Generated rows as the critic sees them [B, features], one per row of the batch and given its context."""
        z = batch.randn(self.config.noise, generator=generator)
        u = batch.rand(self.codec.uniforms, generator=generator)
        return self.codec.emit(self.generator(z, self.generator.told(batch.c, drop)), u)

    def critic_terms(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        real, drop = self.codec.encode(batch.x), dropped(self.config, batch, generator)
        h = self.critic.told(batch.c, drop)
        with torch.no_grad():
            fake = self.fake(batch, generator, drop)
        weight = self.config.penalty
        if self.config.loss == "r1":
            logit = self.critic(real.requires_grad_(), h)
            penalty = 0.5 * (1.0 if weight is None else weight) * slope(logit, real)
            loss = F.softplus(-logit) + F.softplus(self.critic(fake, h))
        else:
            t = batch.rand(1, generator=generator)
            between = (t * real + (1 - t) * fake).requires_grad_()
            length = (slope(self.critic(between, h), between) + 1e-12).sqrt()  # a root has no derivative at 0
            penalty = (10.0 if weight is None else weight) * (length - 1).square()
            loss = self.critic(fake, h) - self.critic(real, h)
        return {"loss": loss + penalty, "penalty": penalty.detach()}

    def generator_terms(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        drop = dropped(self.config, batch, generator)
        logit = self.critic(self.fake(batch, generator, drop), self.critic.told(batch.c, drop))
        return {"loss": F.softplus(-logit) if self.config.loss == "r1" else -logit}

    # -- the contract -----------------------------------------------------------------------------------------

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Likelihood:
        return Unavailable(
            "a GAN has no density: its generator turns noise into data and cannot be inverted. Judge it by its "
            "samples (two-sample test, precision and recall), or fit a vae, nsf or vdm for a likelihood."
        )

    @property
    def sampling(self) -> Generator:
        """The net that samples."""
        return self.generator if self.average is None else self.average

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Encoded:
        assert self.sampling.context_encoder is not None
        return replace(self.sampling.context_encoder(c, dropped), tokens=None, mask=None)

    def null_context(self, n: int) -> Encoded:
        assert self.sampling.context_encoder is not None
        return replace(self.sampling.context_encoder.null(n), tokens=None, mask=None)

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.config.noise, generator=generator, device=generator.device).to(self.device)
        u = torch.rand(n, self.codec.uniforms, generator=generator, device=generator.device).to(self.device)
        return self.codec.rows(self.codec.emit(self.sampling(z, vector(c)), u))


class GanLearner:
    """Alternating descent: some steps of the critic, then one of the generator."""

    sweep: ClassVar[Literal["minibatch"]] = "minibatch"
    finished: ClassVar[bool] = False

    def __init__(self, model: Gan, recipe: Recipe) -> None:
        self.model = model
        if recipe.accumulate > 1:
            raise UsageError("A GAN alternates between its nets and takes whole batches.", "Leave out accumulate.")
        self.critic = Stepper(list(model.critic.parameters()), recipe)
        self.generator = Stepper(list(model.generator.parameters()), recipe)
        self.critic_steps = model.config.critic_steps or (1 if model.config.loss == "r1" else 3)
        self.runtime: Runtime = Local()

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        model = self.model
        for _ in range(self.critic_steps):
            with self.runtime.autocast():
                terms = model.critic_terms(batch, generator)
            judged = self.critic.update(terms, batch, self.runtime)
        model.critic.requires_grad_(False)  # the gradient passes through the critic, not into it
        with self.runtime.autocast():
            terms = model.generator_terms(batch, generator)
        made = self.generator.update(terms, batch, self.runtime)
        model.critic.requires_grad_(True)
        if model.average is not None:
            decay = min(model.config.ema, (1 + batch.step) / (10 + batch.step))
            with torch.no_grad():
                now: list[Tensor] = list(model.generator.parameters())
                mean: list[Tensor] = list(model.average.parameters())
                torch._foreach_lerp_(mean, now, 1 - decay)
        return {
            "loss": made["loss"],
            "critic_loss": judged["loss"],
            "penalty": judged["penalty"],
            "grad_norm": torch.maximum(made["grad_norm"], judged["grad_norm"]),  # NaN if either is
        }

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "generator": self.generator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.generator.load_state_dict(state["generator"])


def slope(logit: Tensor, y: Tensor) -> Tensor:
    """|d logit_i / d y_i|^2 of every row [N], itself differentiable, for logit [N] computed from y [N, F]."""
    (gradient,) = torch.autograd.grad(logit.sum(), y, create_graph=True)
    return gradient.square().sum(1)
