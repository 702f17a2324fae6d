"""What adversarial families share: a generator G(z, c) of data against a critic D(x, c) that tells them from real ones.

With zeta(a) = log(1 + e^a), x_i and G(z_i) the same row of a batch, one option says which game they play:

    r1     max_D E[-zeta(-D(x))] + E[-zeta(D(G(z)))] - (r/2) E|grad_x D(x)|^2     max_G E[-zeta(-D(G(z)))]
           (non-saturating: Goodfellow et al. 2014, section 3; Mescheder et al. 2018, eq. 9)
    r3gan  max_D E[-zeta(D(G(z)) - D(x))] - (r/2) E|grad_x D(x)|^2 - (r/2) E|grad_G D(G(z))|^2
           max_G E[-zeta(D(x) - D(G(z)))]   (relativistic: Huang et al. 2024, eq. 2 and section 2.2)
    hinge  max_D E[min(0, D(x) - 1)] + E[min(0, -D(G(z)) - 1)]     max_G E[D(G(z))],  D with spectral normalisation
           (Lim & Ye 2017, section 2; Miyato et al. 2018, eq. 8, 16 and 17)
    wgan   max_D E[D(x)] - E[D(G(z))] - r E(|grad D(u)| - 1)^2,  u between x and G(z)     max_G E[D(G(z))]
           (Gulrajani et al. 2017, eq. 3)

The critic sees only values that data can take: levels, grids, categories and missing entries are made
discrete on the way out of the generator, and their gradient passes straight through (Bengio et al. 2013).
"""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.codecs.columns import Columns
from pofx.codecs.relaxed import relaxed
from pofx.core.abilities import FromLatents, Inverts
from pofx.core.errors import UsageError
from pofx.core.learner import Batch, Learner, Local, Recipe, Runtime, Stage, Stepper, TrainingSet
from pofx.core.likelihood import Likelihood, Unavailable
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.options import BELOW_ONE, POSITIVE
from pofx.core.requests import NoLikelihood, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import ContextOptions, as_told, context_encoder, dropped, idle_of_contexts
from pofx.nn.encoders import Encoded, no_encoder, vector
from pofx.nn.spectral import spectral

PENALTY = {"r1": 1.0, "r3gan": 1.0, "hinge": 0.0, "wgan": 10.0}
COLLAPSED, PATIENCE = 0.1, 200  # less than this share of the data's spread, for so many steps
STARTS = 4  # of an inversion
CRITIC_STEPS = {"r1": 1, "r3gan": 1, "hinge": 1, "wgan": 3}


@dataclass(frozen=True)
class AdversarialOptions(ContextOptions):
    """What every such family can be told.

    Attributes:
        noise: dimensions of z.
        loss: the game: "r3gan" (relativistic; the default where modes apart must all be found), "r1" (non-saturating),
            "hinge" (with spectral normalisation) or "wgan". Image nets default to the game of their own papers.
        penalty: weight r of the gradient penalty (of hinge: of that of r1); None: 1 for r1 and r3gan, 10 for wgan, 0
            for hinge.
        critic_steps: of the critic per step of the generator, on the same rows with fresh noise;
            None: 1, or 3 for wgan.
        pack: rows that the critic judges together, so that it sees how much they vary (Lin et al. 2018); of a process's
            own share of a batch.
        conditioning: how the critic is told a context: "projection", an inner product with features of x (Miyato &
            Koyama 2018, eq. 3), or "input", beside x.
        modes: most components of the mixture by which a real or integer column is normalised (Xu et al. 2019, section
            4.2); 1: it is standardised only.
        temperature: of the Gumbel-softmax that carries the gradient of categories and binary pixels (Jang et al.
            2017).
        ema: decay of the averaged generator, which then samples (Karras et al. 2018); 0: none.
    """

    noise: int = 32
    loss: Literal["r3gan", "r1", "hinge", "wgan"] = "r3gan"
    penalty: float | None = None
    critic_steps: int | None = None
    pack: int = 1
    conditioning: Literal["projection", "input"] = "projection"
    modes: int = 10
    temperature: float = 0.7
    ema: float = 0.998

    ranges = {"temperature": POSITIVE, "ema": BELOW_ONE}


class Collapsed(UserWarning):
    """A generator makes nearly the same row from all noise."""


class Told(nn.Module):
    """A net with an encoder of contexts of its own.

    Attributes:
        known: width of the vector of a context; 0 where there is none.
    """

    net: nn.Module

    def __init__(self, config: AdversarialOptions, context: Space | None) -> None:
        super().__init__()
        self.context_encoder = context_encoder(config, context)
        self.known = 0 if self.context_encoder is None else self.context_encoder.width

    def told(self, c: Tensor | None, dropped: Tensor | None = None) -> Tensor | None:
        """Contexts c [N, *Ec] as it takes them [N, known], those ``dropped`` [N] as none."""
        return None if self.context_encoder is None or c is None else self.context_encoder(c, dropped).vector

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Of a generator z [N, noises], of a critic what it sees [N, pack * size]; h [N, known] or None."""
        out: Tensor = self.net(x, h)
        return out


class Adversarial(Model, FromLatents, Inverts):
    """Base of these families, which write ``make_generator`` and ``make_critic``.

    Attributes:
        codec: raw data <-> what the critic sees, ``codec.size`` numbers a row; ``emit`` squashes the generator's raw
            outputs (of levels by tanh).
    """

    taxonomy: ClassVar[str] = "implicit density / direct / adversarial"
    estimators: ClassVar[tuple[type[Request], ...]] = (NoLikelihood,)
    penalties: ClassVar[dict[str, float]] = PENALTY  # the weight of each game's penalty where none is given
    config: AdversarialOptions

    def __init__(self, config: AdversarialOptions, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.codec = relaxed(space, config.temperature, config.modes)
        self.generator, self.critic = Told(config, context), Told(config, context)
        self.generator.net = self.make_generator(self.generator.known)
        self.critic.net = self.make_critic(self.critic.known)
        if config.loss in ("r3gan", "wgan"):  # only differences of what the critic says count: no constant would learn
            self.critic.net.get_submodule("net.last").register_parameter("bias", None)
        if config.loss == "hinge":
            spectral(self.critic.net)
        self.average = copy.deepcopy(self.generator).requires_grad_(False) if config.ema else None

    # -- what a family writes ----------------------------------------------------------------------------------

    @abstractmethod
    def make_generator(self, known: int) -> nn.Module:
        """z [N, noises], h [N, known] (None where there is no context) -> raw outputs [N, codec.size]."""

    @abstractmethod
    def make_critic(self, known: int) -> nn.Module:
        """y [N, pack * codec.size], h [N, known] or None -> how real it looks [N]; its last layer is ``net.last``."""

    @property
    def noises(self) -> int:
        """Standard normal numbers that the generator takes for a row."""
        return self.config.noise

    def dealt(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor | None, Tensor | None]:
        """The training rows of a step, and their contexts [B, known] for generator and critic."""
        batch = as_told(self.config, self.context, batch, generator)
        drop = dropped(self.config, batch, generator)
        return batch, self.generator.told(batch.c, drop), self.critic.told(batch.c, drop)

    def wanted(self, h: Tensor | None, n: int, generator: torch.Generator) -> Tensor | None:
        """What the generator is told of n rows to be drawn, given contexts h [n, known]."""
        return h

    def wanted_of(self, h: Tensor | None, x: Tensor) -> Tensor | None:
        """The same of rows x [N, *E] that there are."""
        return h

    def augment(self, y: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Rows y [B, size], real or generated, as the critic is shown them in both games; noise by ``batch.rand``."""
        return y

    def penalty_weight(self, batch: Batch) -> float:
        """r of the gradient penalty in this step."""
        return self.weight

    @property
    def weight(self) -> float:
        """r of the gradient penalty."""
        return self.penalties[self.config.loss] if self.config.penalty is None else self.config.penalty

    def extra_terms(self, batch: Batch, h: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Further terms [B] of the generator's loss by name, which are added to it and logged; h: its contexts."""
        return {}

    def adapt(self, means: dict[str, Tensor], batch: Batch) -> None:
        """Look at the means of ``critic_terms`` after a step of the critic, of ``generator_terms`` after one of the
        generator."""

    # -- the contract ------------------------------------------------------------------------------------------

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        if not (space.columns or space.pixels):
            return f"it makes columns and pixels, and {space} have none. Fit another family."
        return "a label needs no generator. Fit a classifier or a histogram." if space.values else None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from idle_of_contexts(context)
        if context is None:
            yield "conditioning"
        columns = Columns(space, atoms=False)
        if space.pixels or not columns.reals:
            yield "modes"
        drawn = columns.codes or (columns.reals and config.modes > 1)
        if space.symbols != 2 if space.pixels else not drawn:
            yield "temperature"

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        self.codec.prepare(x, weight)
        for net in (self.generator, self.critic, self.average):
            if net is not None and net.context_encoder is not None:
                net.context_encoder.prepare(c, weight)

    def stages(self, recipe: Recipe) -> list[Stage]:
        """One, whose batches are full: both nets look at a batch as a whole. Fewer rows than the recipe's own batch are
        one batch, and a remark says so; a batch that was asked for and cannot be filled is refused."""

        def filled(x: Any, c: Any, generator: torch.Generator) -> TrainingSet:
            if len(x) < recipe.batch != self.recipe(self.space).batch:
                raise UsageError(
                    f"{len(x):,} training rows are fewer than a batch of {recipe.batch:,}.",
                    f"Give --recipe.batch {len(x)} or less, or leave it out.",
                )
            if len(x) < recipe.batch:
                self.remarks = [
                    *self.remarks,
                    f"A batch is all {len(x):,} training rows, not {recipe.batch:,} of them.",
                ]
            return self.training_set(x)

        return [Stage("model", recipe, partial(self.learner, recipe), training_set=filled)]

    def learner(self, recipe: Recipe) -> Learner:
        return AdversarialLearner(self, recipe)

    def parameter_count(self) -> int:
        """Of generator and critic; the average is no further freedom."""
        return sum(p.numel() for net in (self.generator, self.critic) for p in net.parameters())

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Likelihood:
        return Unavailable(
            "a GAN has no density: its generator turns noise into data and cannot be inverted. Judge it by "
            "its samples (two-sample test, precision and recall), or fit a vae, nsf or vdm for a likelihood."
        )

    @property
    def sampling(self) -> Told:
        """The net that samples."""
        return self.generator if self.average is None else self.average

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Encoded:
        assert self.sampling.context_encoder is not None
        return replace(self.sampling.context_encoder(c, dropped), tokens=None, mask=None)

    def null_context(self, n: int) -> Encoded:
        assert self.sampling.context_encoder is not None
        return replace(self.sampling.context_encoder.null(n), tokens=None, mask=None)

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.noises, generator=generator, device=generator.device).to(self.device)
        u = torch.rand(n, self.codec.uniforms, generator=generator, device=generator.device).to(self.device)
        h = self.wanted(vector(c), n, generator)
        return self.codec.rows(self.codec.emit(self.sampling(z, h), u))

    def rows_invert(self, x: Tensor, c: Encoded | None, steps: int, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """By Adam on z from ``STARTS`` draws of it, whose best is kept (Lipton & Tripathi 2017)."""
        h, y = (None if t is None else t.repeat_interleave(STARTS, 0) for t in (vector(c), self.codec.encode(x)))
        assert y is not None
        h = self.wanted_of(h, x.repeat_interleave(STARTS, 0))
        even = torch.full((len(y), self.codec.uniforms), 0.5, device=self.device)  # of choices the likeliest
        z = noise.randn(STARTS, self.noises).flatten(0, 1).to(self.device).requires_grad_()
        least, best = torch.full((len(y),), torch.inf, device=self.device), z.detach().clone()
        descent = torch.optim.Adam([z], 0.1)
        for _ in range(steps):
            with torch.enable_grad():
                square = (self.codec.emit(self.sampling(z, h), even) - y).square().mean(1)
                (z.grad,) = torch.autograd.grad(square.sum(), z)
            better = square < least
            least, best = torch.where(better, square, least), torch.where(better[:, None], z, best)
            descent.step()
        least, start = least.detach().view(-1, STARTS).min(1)
        return best.detach().view(len(x), STARTS, -1)[torch.arange(len(x)), start], least.sqrt()

    @property
    def latent_dims(self) -> int:
        return self.noises

    def rows_from_latents(self, z: Tensor, c: Encoded | None) -> Tensor:
        even = torch.full((len(z), self.codec.uniforms), 0.5, device=self.device)  # of choices the likeliest
        return self.codec.rows(self.codec.emit(self.sampling(z, vector(c)), even))

    # -- the games ---------------------------------------------------------------------------------------------

    def fake(self, batch: Batch, h: Tensor | None, generator: torch.Generator) -> Tensor:
        """Generated rows [B, size], one per row of the batch, given contexts h [B, known]."""
        z = batch.randn(self.noises, generator=generator)
        u = batch.rand(self.codec.uniforms, generator=generator)
        return self.codec.emit(self.generator(z, h), u)

    def shown(self, y: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Rows y [B, size] as the critic is shown them [B, pack * size]: each with those that follow it."""
        y = self.augment(y, batch, generator)
        return y if self.config.pack == 1 else torch.cat([y.roll(-k, 0) for k in range(self.config.pack)], 1)

    def critic_terms(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The critic's loss [B], its penalty, and what it says of real and generated rows."""
        loss, weight = self.config.loss, self.penalty_weight(batch)
        batch, own, h = self.dealt(batch, generator)
        with torch.no_grad():
            made = self.fake(batch, own, generator)
            x = self.codec.encode(batch.x)
            real, fake = self.shown(x, batch, generator), self.shown(made, batch, generator)
        real.requires_grad_(weight > 0 and loss != "wgan")
        fake.requires_grad_(weight > 0 and loss == "r3gan")
        on_real, on_fake = self.critic(real, h), self.critic(fake, h)
        penalty = torch.zeros_like(on_real)
        if weight and loss == "wgan":
            t = batch.rand(1, generator=generator)
            between = (t * real + (1 - t) * fake).requires_grad_()
            length = (slope(self.critic(between, h), between) + 1e-12).sqrt()  # a root has no derivative at 0
            penalty = weight * (length - 1).square()
        elif weight:
            penalty = 0.5 * weight * slope(on_real, real)
        if loss == "r1":
            value = F.softplus(-on_real) + F.softplus(on_fake)
        elif loss == "r3gan":
            value = F.softplus(on_fake - on_real)
            penalty = penalty + 0.5 * weight * slope(on_fake, fake) if weight else penalty
        elif loss == "hinge":
            value = (1 - on_real).relu() + (1 + on_fake).relu()
        else:
            value = on_fake - on_real
        told = {
            "penalty": penalty, "on_real": on_real, "on_fake": on_fake, "sign_on_real": on_real.sign(),
            "spread_real": spread(x), "spread_fake": spread(made),
        }  # fmt: skip
        return {"loss": value + penalty} | {k: v.detach() for k, v in told.items()}

    def generator_terms(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The generator's loss [B], and its further terms."""
        batch, own, h = self.dealt(batch, generator)
        on_fake = self.critic(self.shown(self.fake(batch, own, generator), batch, generator), h)
        if self.config.loss == "r1":
            value = F.softplus(-on_fake)
        elif self.config.loss == "r3gan":
            value = F.softplus(self.critic(self.shown(self.codec.encode(batch.x), batch, generator), h) - on_fake)
        else:
            value = -on_fake
        extra = self.extra_terms(batch, own, generator)
        return {"loss": sum(extra.values(), start=value)} | {k: v.detach() for k, v in extra.items()}


class AdversarialLearner:
    """Alternating descent: some steps of the critic, then one of the generator."""

    sweep: ClassVar[Literal["minibatch"]] = "minibatch"
    finished: ClassVar[bool] = False

    def __init__(self, model: Adversarial, recipe: Recipe) -> None:
        self.model = model
        if recipe.accumulate > 1:
            raise UsageError("A GAN alternates between its nets and takes whole batches.", "Leave out accumulate.")
        self.critic = Stepper(list(model.critic.parameters()), recipe)
        self.generator = Stepper(list(model.generator.parameters()), recipe)
        self.critic_steps = model.config.critic_steps or CRITIC_STEPS[model.config.loss]
        self.runtime: Runtime = Local()
        self.alike = 0  # steps since the generated rows last varied

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        model = self.model
        for _ in range(self.critic_steps):
            with self.runtime.autocast():
                terms = model.critic_terms(batch, generator)
            judged = self.critic.update(terms, batch, self.runtime)
            model.adapt(judged, batch)
        model.critic.requires_grad_(False)  # the gradient passes through the critic, not into it
        with self.runtime.autocast():
            terms = model.generator_terms(batch, generator)
        made = self.generator.update(terms, batch, self.runtime)
        model.adapt(made, batch)
        model.critic.requires_grad_(True)
        if model.average is not None:
            decay = min(model.config.ema, (1 + batch.step) / (10 + batch.step))
            with torch.no_grad():
                now: list[Tensor] = list(model.generator.parameters())
                mean: list[Tensor] = list(model.average.parameters())
                torch._foreach_lerp_(mean, now, 1 - decay)
                for own, other in zip(model.average.buffers(), model.generator.buffers(), strict=True):
                    own.copy_(other)
        varied = float(judged["spread_fake"]) >= COLLAPSED * float(judged["spread_real"])
        self.alike = 0 if varied else self.alike + 1
        if self.alike == PATIENCE:
            warnings.warn(
                f"The generator of this {model.name} has collapsed: for {PATIENCE} steps its rows have been less than "
                f"{COLLAPSED:.0%} as far from each other as data are. Raise penalty or pack, or lower --recipe.lr.",
                Collapsed,
                stacklevel=2,
            )
        norms = {"critic_norm": judged.pop("grad_norm"), "generator_norm": made.pop("grad_norm")}
        worst = torch.maximum(*norms.values())  # NaN if either is
        return judged | made | norms | {"critic_loss": judged["loss"], "grad_norm": worst}

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "generator": self.generator.state_dict(), "alike": self.alike}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.generator.load_state_dict(state["generator"])
        self.alike = state["alike"]


def slope(logit: Tensor, y: Tensor) -> Tensor:
    """|d logit_i / d y_i|^2 of every row [N], itself differentiable, for logit [N] computed from y [N, F]."""
    (gradient,) = torch.autograd.grad(logit.sum(), y, create_graph=True)
    return gradient.square().sum(1)


def spread(y: Tensor) -> Tensor:
    """How far each row of y [N, F] is from the next one of the batch [N]."""
    return (y - y.roll(-1, 0)).norm(dim=1)


def projected(out: Tensor, h: Tensor | None) -> Tensor:
    """D(x, c) = psi(x) + <phi(x), h(c)> [N] of a net's outputs (psi, phi) [N, 1 + known] and h [N, known]; without a
    context psi (Miyato & Koyama 2018, eq. 3), the product over the root of its size."""
    return out[:, 0] if h is None else out[:, 0] + (out[:, 1:] * h).sum(1) * h.shape[1] ** -0.5
