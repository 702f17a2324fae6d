"""Hierarchical VAEs: latents in groups, each drawn given those above it, and a proposal that goes the same way down.

    p(x | c) = E [ p(x | z, c) ], p(z | c) = prod_l p(z_l | z_<l, c),   q(z | x, c) = prod_l q(z_l | z_<l, x, c)

with z_1 at the top. All factors over latents are normals, so of the ELBO

    E_q [ log p(x | z, c) ] - sum_l E_q [ KL(q(z_l | z_<l, x, c) || p(z_l | z_<l, c)) ]

(Sønderby et al. 2016; Child 2021, section 2) every term under the second sum has a closed form given the draws above:
the rate of that group. Importance weights p(x, z) / q(z | x) are those of the flat vector z. The decoder is a head per
column or pixel (nn/heads.py), proper in raw data space; the nets are in nn/hierarchy.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe
from pofx.core.likelihood import Estimate, Number
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, SHARE, at_least
from pofx.core.requests import Elbo, Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import ContextOptions
from pofx.families.latent import Latent, Proposal, log_normal
from pofx.nn.encoders import Encoded, no_encoder, vector
from pofx.nn.hierarchy import Deep, Groups, Ladder, Normals, repeated
from pofx.nn.local import LocalPixels
from pofx.nn.sites import ImageKind, has_heads, heads_for, mixes

PASS = 2**21  # numbers of the largest layer that one pass may hold
ACTIVE = 0.01  # nats: a dimension that tells less has collapsed onto its prior

Pick = Callable[[int, Normals], Tensor]
"""Chooses z_g [M, D] of group g, given its proposal or, where no datum is given, its prior."""


@dataclass(frozen=True)
class Level:
    """A group on one way down, of M rows: p(z_g | z_<g, c), what z_g was drawn from, and z_g [M, D]."""

    prior: Normals
    q: Normals
    z: Tensor


@dataclass(frozen=True)
class HvaeConfig(ContextOptions):
    """Options of a hierarchical VAE.

    Attributes:
        net: "deep", residual blocks at several resolutions of an image; "ladder", MLPs between vectors; "auto" is deep
            for images with sides of at least 16.
        sizes: dimensions of each group of the ladder, from the top.
        hidden: width of the ladder's MLPs.
        groups: how many the deep net has at each resolution, of which the first is a single place, the last half the
            image's, and each twice as fine as the one before.
        latent: dimensions at each place in a group of the deep net.
        channels: of the deep net at its finest resolution, doubled from one to the next coarser up to fourfold.
        blocks: residual blocks of each MLP, or at each resolution of the deep net on its way up.
        window: of the deep net: how far a pixel also sees those before it, so that latents need not tell what
            neighbours do (Gulrajani et al. 2017; Chen et al. 2017); 0: pixels are independent given z.
        image: the head of image levels.
        components: of the mixture in the heads of real columns and of logistic levels; 1 is a plain
            Gaussian or logistic.
        free_bits: nats of each group that cost a row nothing in training (Kingma et al. 2016, eq. 15, of each row).
        warmup: share of the budget over which the weight of all rates rises from 0 to 1 (Sønderby et al. 2016).
        draws: of the bounds that log_prob returns.
    """

    net: Literal["auto", "ladder", "deep"] = "auto"
    sizes: tuple[int, ...] = (8, 16)
    hidden: int = 256
    groups: tuple[int, ...] = (1, 2, 3, 2)
    latent: int = 8
    channels: int = 32
    blocks: int = 1
    window: int = 0
    image: ImageKind = "auto"
    components: int = 2
    free_bits: float = 0.0
    warmup: float = 0.1
    draws: int = 64

    ranges = {"warmup": SHARE, "draws": at_least(2), "window": AMOUNT}

    def deep(self, space: Space) -> bool:
        large = space.pixels is not None and min(space.pixels[:2]) >= 16
        return self.net == "deep" or (self.net == "auto" and large)


@dataclass(frozen=True)
class GroupReport:
    """What the groups of latents are used for, over a set of rows.

    Attributes:
        kl: [L], mean over the rows of KL(q(z_d | z_<l, x) || p(z_d | z_<l)) in nats of every dimension, at a draw of
            the groups above; near 0: that dimension collapsed.
        active: how many dimensions have more than 0.01 nats.
        rates: of each group, from the top: the sum of ``kl`` over its dimensions.
        collapsed: the numbers of the groups without an active dimension, counted from 1 at the top.
        rate: the sum of all: what z tells of x, at most.
    """

    kl: Tensor
    active: int
    rates: tuple[float, ...]
    collapsed: tuple[int, ...]
    rate: float


class Hvae(Latent):
    name: ClassVar[str] = "hvae"
    summary: ClassVar[str] = "a decoder of latents in groups, each drawn given those above it"
    taxonomy: ClassVar[str] = "explicit density / approximate / variational"
    paper: ClassVar[str] = "Sønderby et al. 2016; Child 2021"
    Config = HvaeConfig
    config: HvaeConfig

    def __init__(self, config: HvaeConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.heads = heads_for(space, image=config.image, components=config.components)
        params = self.heads.params
        self.deep = config.deep(space)
        size: dict[str, int] = {"blocks": config.blocks, "context": self.known}
        self.net: Groups
        self.local: LocalPixels | None = None
        if self.deep:
            made = space.event_shape[0] * params[0]
            if config.window:
                made = config.channels
                self.local = LocalPixels(space.event_shape[0], made, params[0], config.window)
            size |= {"latent": config.latent, "channels": config.channels}
            self.net = Deep(space.event_shape, made, config.groups, **size)
        else:
            size |= {"hidden": config.hidden}
            self.net = Ladder(sum(self.heads.features), sum(params), config.sizes, **size)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: HvaeConfig) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        if not has_heads(space):
            return f"there is no head for {space}."
        if space.values:
            return "a label has no latent structure. Fit a classifier or a histogram."
        return "net=deep is for images. Use net=ladder." if config.net == "deep" and not space.pixels else None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        yield from ("sizes", "hidden") if config.deep(space) else ("groups", "latent", "channels", "window")
        if not space.pixels:
            yield "image"
        if not mixes(space, config.image):
            yield "components"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, sizes=(2, 4), hidden=64, groups=(1, 1), latent=2, channels=8, warmup=0.2, draws=32)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        if not space.pixels or space.symbols != 2:  # a few cases tell
            return {}
        return {"deep": cls.Config(net="deep", groups=(1, 1), latent=1, channels=8, window=2, warmup=0.2, draws=8)}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=128, lr=2e-3, warmup=100, ema=0.999, skip=20.0, epochs=50)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        self.heads.prepare(x, weight)

    def learner(self, recipe: Recipe) -> Learner:
        return GradientLearner(self, recipe, self.objective, self.net.matrices())

    # -- up and down -----------------------------------------------------------------------------------------

    def seen(self, x: Tensor) -> Tensor:
        """x [N, *E] as the nets see it: [N, features], or [N, C, H, W]."""
        y = self.heads.embed(x)
        return y.unflatten(1, self.space.event_shape) if self.deep else y

    def down(self, m: int, h: Tensor | None, pick: Pick, told: list[Tensor] | None = None) -> tuple[Any, list[Level]]:
        """The state at the bottom, of m rows given contexts h [N, W], and all groups on the way there.

        ``told`` is what data tell each group (``Groups.up``); None: latents are drawn from their priors.
        """
        state, levels = self.net.start(m, None if h is None else repeated(h, m)), list[Level]()
        for g in range(len(self.net.sizes)):
            prior, after = self.net.prior(g, state)
            q = prior if told is None else self.net.posterior(g, state, told[g], prior)
            levels.append(Level(prior, q, pick(g, q)))
            state = self.net.absorb(g, after, levels[-1].z)
        return state, levels

    def decode(self, state: Any, y: Tensor | None = None) -> Tensor:
        """Parameters of the heads [M, P]; y [N, ...] as ``seen``, of which a window shows the pixels before each."""
        made = self.net.out(state)
        if self.local is not None:
            assert y is not None
            return self.local(y, made.unflatten(0, (len(y), -1))).flatten(0, 1)  # type: ignore[no-any-return]
        if self.deep:
            channels = self.space.event_shape[0]
            made = made.unflatten(1, (channels, -1)).permute(0, 1, 3, 4, 2).flatten(1)
        return made

    def objective(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        config, h = self.config, vector(self.batch_context(batch, generator))
        noise = batch.randn(self.latent_dims, generator=generator).split(self.net.sizes, 1)
        y = self.seen(batch.x)
        state, levels = self.down(len(y), h, lambda g, q: q.at(noise[g]), self.net.up(y, h))
        reconstruction = self.heads.log_prob(self.decode(state, y), batch.x).sum(-1)
        rates = torch.stack([level.q.divergence(level.prior) for level in levels], 1)
        beta = min(1.0, batch.progress / config.warmup) if config.warmup else 1.0
        loss = beta * rates.clamp(min=config.free_bits).sum(1) - reconstruction
        return {"loss": loss, "kl": rates.sum(1).detach()}

    # -- the contract ---------------------------------------------------------------------------------------

    @property
    def latent_dims(self) -> int:
        return sum(self.net.sizes)

    @property
    def codes_per_pass(self) -> int:
        return max(1, PASS // max(self.net.widest, self.latent_dims))

    def rows_bound_terms(
        self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise
    ) -> dict[str, Number[Tensor]]:
        """Of each group minus its rate, from the top, and the reconstruction."""
        reconstruction, rates = self._drawn_rates(self.proposal(x, c), x, request, noise)
        found = {f"z{g + 1}": _mean(-rate) for g, rate in enumerate(rates)} | {"reconstruction": _mean(reconstruction)}
        return {name: Number(Estimate, nats, se, se, draws=request.draws) for name, (nats, se) in found.items()}

    def _drawn_terms(self, q: Proposal, x: Tensor, c: Any, request: Any, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """In one way down for both, where the base takes one for the proposal and one for the joint density."""
        if not isinstance(q, TopDown):
            return super()._drawn_terms(q, x, c, request, noise)
        reconstruction, rates = self._drawn_rates(q, x, request, noise)
        return reconstruction, rates.sum(0)

    def _drawn_rates(self, q: TopDown, x: Tensor, request: Any, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """log p(x | z, c) of every draw [N, k], and log q - log p of each group [G, N, k] (float64): of the ELBO the
        KL of its two normals instead."""
        n, k, sizes, y = len(x), request.draws, self.net.sizes, self.seen(x)
        reconstruction = torch.empty(n, k, dtype=torch.float64, device=x.device)
        rates = torch.empty(len(sizes), n, k, dtype=torch.float64, device=x.device)
        block, exact = max(1, self.codes_per_pass // n), isinstance(request, Elbo)
        for i in range(0, k, block):
            m, own = min(block, k - i), slice(i, i + block)
            e = noise.randn(m, self.latent_dims).to(y).flatten(0, 1).split(sizes, 1)
            state, levels = self.down(n * m, q.h, partial(_at, e), q.told)
            for g, level in enumerate(levels):
                rate = level.q.divergence(level.prior) if exact else level.q.log_ratio(level.prior, level.z)
                rates[g, :, own] = rate.unflatten(0, (n, m))
            params = self.decode(state, y).unflatten(0, (n, m))
            reconstruction[:, own] = self.heads.log_prob(params, x[:, None]).sum(-1)
        return reconstruction, rates

    def log_terms(self, x: Tensor, z: Tensor, c: Encoded | None) -> tuple[Tensor, Tensor]:
        n, k, parts = *z.shape[:2], z.flatten(0, 1).split(self.net.sizes, 1)
        state, levels = self.down(n * k, vector(c), lambda g, prior: parts[g])
        params = self.decode(state, self.seen(x)).unflatten(0, (n, k))
        log_prior = torch.stack([level.prior.log_prob(level.z) for level in levels]).sum(0)
        return self.heads.log_prob(params, x[:, None]).sum(-1), log_prior.unflatten(0, (n, k))

    def rows_sample_joint(self, n: int, c: Encoded | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def drawn(g: int, prior: Normals) -> Tensor:
            e = torch.randn(prior.mean.shape, generator=generator, device=generator.device)
            return prior.at(e.to(prior.mean))

        state, levels = self.down(n, vector(c), drawn)
        return self._draw(state, generator), torch.cat([level.z for level in levels], 1)

    def _draw(self, state: Any, generator: torch.Generator) -> Tensor:
        """A draw of x [M, *E] given each row of the state."""
        if self.local is None:
            return self.heads.sample(self.decode(state), generator)
        return self.local.sample(self.net.out(state), self.heads, generator)

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return self.rows_sample_joint(n, c, generator)[0]

    def rows_from_latents(self, z: Tensor, c: Encoded | None) -> Tensor:
        parts = z.split(self.net.sizes, 1)
        state = self.down(len(z), vector(c), lambda g, prior: parts[g])[0]
        if self.local is None:
            return self.heads.typical(self.decode(state))
        # pixels that see those before have no mean at hand: one draw, the same for the same latents
        return self._draw(state, torch.Generator(z.device).manual_seed(0))

    def proposal(self, x: Tensor, c: Encoded | None) -> TopDown:
        h = vector(c)
        return TopDown(self, self.net.up(self.seen(x), h), h, len(x))

    def rows_encode(self, x: Tensor, c: Encoded | None) -> Distribution:
        return Posterior(self.proposal(x, c))

    @torch.no_grad()
    def latent_report(
        self, x: Tensor, c: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> GroupReport:
        """How much each group and each of its dimensions is used on rows x [N, *E] given c [N, *Ec].

        Means over one draw per row, from ``generator`` (seed 0 where none is given).
        """
        generator = generator or torch.Generator(self.device).manual_seed(0)
        size, total = self.rows_per_pass(), torch.zeros(self.latent_dims, dtype=torch.float64, device=self.device)
        for i in range(0, len(x), size):
            q = self.given(None if c is None else c[i : i + size]).encode(x[i : i + size])
            assert isinstance(q, Posterior)
            noise = torch.randn(len(x[i : i + size]), self.latent_dims, generator=generator, device=self.device)
            total += q.proposal.rates(noise[:, None]).sum((0, 1))
        kl = total / len(x)
        rates = [part.sum().item() for part in kl.split(self.net.sizes)]
        collapsed = [g + 1 for g, part in enumerate(kl.split(self.net.sizes)) if part.max() < ACTIVE]
        return GroupReport(kl, int((kl > ACTIVE).sum()), tuple(rates), tuple(collapsed), sum(rates))


class TopDown(Proposal):
    """q(z | x, c) of N rows over the flat z [L]: normal in each group given the groups above it, not as a whole.

    Args:
        told: what the rows tell each group.
        h: [N, W], of their contexts.
    """

    def __init__(self, model: Hvae, told: list[Tensor], h: Tensor | None, n: int) -> None:
        self.model, self.told, self.h, self.n = model, told, h, n

    def __call__(self, e: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.levels(e, partial(_at, self._parts(e)))
        log_scale = torch.stack([level.q.log_scale.sum(1) for level in levels]).sum(0).unflatten(0, e.shape[:2])
        return torch.cat([level.z for level in levels], 1).unflatten(0, e.shape[:2]), log_normal(e) - log_scale

    def inverse(self, z: Tensor) -> Tensor:
        return torch.cat([level.q.noise(level.z) for level in self._through(z)], 1).unflatten(0, z.shape[:2])

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z | x, c) [N, K] of z [N, K, L]."""
        return torch.stack([level.q.log_prob(level.z) for level in self._through(z)]).sum(0).unflatten(0, z.shape[:2])

    def rates(self, e: Tensor) -> Tensor:
        """KL of every dimension given the groups above [N, K, L], at the draws that noise [N, K, L] stands for."""
        levels = self.levels(e, partial(_at, self._parts(e)))
        return torch.cat([level.q.divergences(level.prior) for level in levels], 1).unflatten(0, e.shape[:2])

    def levels(self, rows: Tensor, pick: Pick) -> list[Level]:
        """All groups on the way down, of as many draws as rows [N, K, L] has."""
        return self.model.down(self.n * rows.shape[1], self.h, pick, self.told)[1]

    def _through(self, z: Tensor) -> list[Level]:
        parts = self._parts(z)
        return self.levels(z, lambda g, q: parts[g])

    def _parts(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.flatten(0, 1).split(self.model.net.sizes, 1)


class Posterior(Distribution):
    """A proposal of N rows as a distribution of batch shape [N] and event shape [L].

    ``mean`` is what the means of all groups lead to, each given those above it.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, proposal: TopDown) -> None:
        self.proposal = proposal
        super().__init__(torch.Size([proposal.n]), torch.Size([proposal.model.latent_dims]), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """[*sample_shape, N, L]"""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, device=self.proposal.model.device)
        return self.proposal(_rows(noise))[0].transpose(0, 1).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Of z [..., N, L]: [..., N]."""
        return self.proposal.log_prob(_rows(value)).T.reshape(value.shape[:-1])

    @property
    def mean(self) -> Tensor:
        still = torch.zeros(*self._batch_shape, 1, *self._event_shape, device=self.proposal.model.device)
        return self.proposal(still)[0][:, 0]


def _rows(z: Tensor) -> Tensor:
    """z [..., N, L] as [N, K, L]."""
    return z.reshape(-1, *z.shape[-2:]).transpose(0, 1)


def _at(noise: tuple[Tensor, ...], g: int, q: Normals) -> Tensor:
    """The draw of group g that its noise [M, D] stands for."""
    return q.at(noise[g].to(q.mean))


def _mean(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of k draws [N, k], and its standard error [N]."""
    return draws.mean(1), draws.std(1) / math.sqrt(draws.shape[1])
