"""Quantised autoencoders: a prior over grids of codes z, and a decoder p(x | z).

    p(x | c) = sum_z p(z | c) p(x | z, c)

is a sum over K^G grids. The encoder gives one of them, z = q(x, c), and as no term is negative,

    log p(x | c) >= log p(q(x, c) | c) + log p(x | q(x, c), c),

a bound without noise, both terms of which are exact (van den Oord et al. 2017, section 3.1). The decoder is a head per
column or pixel (nn/heads.py), proper in raw data space; the prior is another family over the codes.

Two stages: encoder, codes and decoder, every code being taken for equally likely (their eq. 3),

    loss = -log p(x | e) + commitment |z - sg(e)|^2,

where e are the vectors of the codes and sg stops a gradient; then the prior, on the codes of the training data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pofx.core.abilities import Encodes, FromLatents, HasBoundTerms
from pofx.core.conditional import evaluating
from pofx.core.errors import Unsupported, UsageError
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe, Stage, TrainingSet
from pofx.core.likelihood import Exact, Likelihood, LowerBound, Number
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, BELOW_ONE, POSITIVE, Range, at_least
from pofx.core.requests import OneCode, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import Conditioned, Known, NetOptions, own_vector, part
from pofx.nn.encoders import no_encoder
from pofx.nn.grid import grid_nets
from pofx.nn.quantize import Codebook, Levels
from pofx.nn.sites import ImageKind, heads_for, mixes, no_decoder
from pofx.spaces import Codes

PASS = 2**22  # numbers of decoder output, or distances to codes, that one pass may hold
PER_GROUP, MOST_GROUPS = 8, 8  # columns of a code, and codes, unless said: each costs the bound its nats
STARTED = 1024  # training rows whose vectors a codebook starts from, and whose codes the prior is prepared by


@dataclass(frozen=True)
class VqVaeConfig(NetOptions):
    """Options of a quantised autoencoder.

    Attributes:
        net: "auto" is conv for images with sides of at least 16, else mlp.
        blocks: residual blocks, of the MLPs or at the size of the grid of codes.
        channels: of the conv nets at half the image's size, doubled at a quarter.
        down: how many times an image is halved on the way to its grid of codes.
        groups: codes of a datum that is no image, or of an image in mlp nets; 0: one for
            every 8 columns or pixels, from 1 to 8.
        codes: how many different ones there are, each a vector of a codebook.
        dim: numbers of such a vector.
        levels: instead, finite scalar quantisation: each number of a vector is one of so many levels, as 8 6 5, and the
            codes are all their combinations (Mentzer et al. 2024).
        commitment: weight of the squared distance of the encoder's vectors from their codes, in nats.
        decay: of the moving averages that a codebook's vectors follow, per step.
        dead: codes that are used less than this share of the mean code are moved to where vectors are; 0: none are.
        image: the head of image levels.
        components: of the mixture in the heads of real columns and of logistic levels.
        prior: the family of the prior over the codes, with an exact probability, such as "image-gpt", with options of
            its own as "image-gpt:width=128,layers=4".
        prior_share: of the budget, at its end, in which the prior is fitted, by its own recipe.
    """

    blocks: int = 2
    down: int = 2
    groups: int = 0
    codes: int = 256
    dim: int = 16
    levels: tuple[int, ...] = ()
    commitment: float = 0.25
    decay: float = 0.99
    dead: float = 0.1
    image: ImageKind = "auto"
    components: int = 2
    prior: str = "image-gpt"
    prior_share: float = 0.5

    ranges = {
        "blocks": AMOUNT,
        "down": at_least(0, 16),
        "groups": AMOUNT,
        "codes": at_least(2),
        "levels": at_least(2),
        "commitment": POSITIVE,
        "decay": BELOW_ONE,
        "dead": BELOW_ONE,
        "prior_share": Range(0, 1, above=True, below=True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.prod(self.levels) >= 2**31:
            raise UsageError(f"levels={self.levels} make {math.prod(self.levels):,} codes.", "Give fewer.")


class VqVae(Conditioned, Encodes, FromLatents, HasBoundTerms):
    name: ClassVar[str] = "vqvae"
    summary: ClassVar[str] = "a decoder of grids of codes, an encoder that chooses them, and a prior over the codes"
    taxonomy: ClassVar[str] = "explicit density / approximate / variational"
    paper: ClassVar[str] = "van den Oord, Vinyals & Kavukcuoglu 2017; Mentzer et al. 2024"
    estimators: ClassVar[tuple[type[Request], ...]] = (OneCode,)
    in_terms = OneCode
    Config = VqVaeConfig
    config: VqVaeConfig
    fitted: Tensor  # is the prior?

    def __init__(self, config: VqVaeConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.heads = heads_for(space, image=config.image, components=config.components)
        self.quantizer: Codebook | Levels = (
            Levels(config.levels) if config.levels else Codebook(config.codes, config.dim, config.decay, config.dead)
        )
        shape, params, dim = config.conv_shape(space), self.heads.params, self.quantizer.dim
        self.conv = shape is not None
        self.encoder, self.decoder, grid = grid_nets(
            shape, sum(self.heads.features), params[0] if shape else sum(params), (dim, dim),
            config.groups or min(max(1, space.dims // PER_GROUP), MOST_GROUPS),
            down=config.down, channels=config.channels, hidden=config.hidden, blocks=config.blocks, context=self.known,
        )  # fmt: skip
        self.prior = self._made_prior(Codes(grid, self.quantizer.size))
        self.exact = next(kind for kind in self.prior.own_estimators if kind.kind == "Exact")
        self.register_buffer("fitted", torch.tensor(False))

    def _made_prior(self, space: Codes) -> Model:
        config, context = self.config, self.context
        made = part(config.prior, space, context, config)
        if not any(kind.kind == "Exact" for kind in made.own_estimators):
            raise Unsupported(
                f"prior={config.prior}: {made.name} has no exact probability of codes, which the bound needs.",
                "Name image-gpt, made or window-mlp.",
            )
        return made

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: VqVaeConfig) -> str | None:
        if reason := free_length(space, context) or no_encoder(context):
            return reason
        return no_decoder(space) or config.refuses(space)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        yield from ("hidden", "groups") if config.conv_shape(space) else ("channels", "down")
        yield from ("codes", "dim", "commitment", "decay", "dead") if config.levels else ()
        if not space.pixels:
            yield "image"
        if not mixes(space, config.image):
            yield "components"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(
            cls, space, hidden=64, blocks=1, channels=8, groups=2, codes=8, dim=4, decay=0.9,
            prior="made:hidden=32,layers=1", prior_share=0.3,
        )  # fmt: skip

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        if not space.pixels or space.symbols != 2:  # a few cases tell
            return {}
        tiny = cls.tiny(space)
        return {"finite scalar quantisation": replace(tiny, levels=(3, 2), codes=256, dim=16, decay=0.99)}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=64, lr=2e-3, warmup=20, epochs=50)

    # -- training -------------------------------------------------------------------------------------------

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        self.heads.prepare(x, weight)
        some = torch.randperm(len(x), generator=generator)[:STARTED].to(x.device)
        with torch.no_grad(), evaluating(self):
            h = None if c is None else self.encode_context(c[some]).own.vector
            self.quantizer.prepare(self.encoded(x[some], h), generator)

    def learner(self, recipe: Recipe) -> Learner:
        return VqLearner(self, recipe)

    def stages(self, recipe: Recipe) -> list[Stage]:
        own, share = self.prior.recipe(self.prior.space), self.config.prior_share
        return [
            Stage("autoencoder", recipe, partial(self.learner, recipe), 1 - share),
            Stage("prior", own, partial(self.prior.learner, own), share, self._codes_of_training, self._codes_log_prob),
        ]

    def _codes_of_training(self, x: Any, c: Any, generator: torch.Generator) -> TrainingSet:
        found = CodesOf(self, x, c)
        some = torch.randperm(len(x), generator=generator)[:STARTED]
        self.prior.prepare(found[some], None if c is None else c[some], None, generator)
        self.remarks = [*self.remarks, *(f"The prior: {remark}" for remark in self.prior.remarks)]
        self.fitted.fill_(True)
        return found

    def _codes_log_prob(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        return self.prior.given(c).log_prob(self.codes(x, c), request=self.exact, generator=generator)

    def objective(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        h = self.batch_vector(batch, generator)
        vectors, _, distance = self.quantizer.straight(self.encoded(batch.x, h))
        nats = self.heads.log_prob(self.decoded(vectors, h), batch.x).sum(-1)
        return {"loss": self.config.commitment * distance - nats, "distance": distance.detach()}

    # -- the parts: encoder, codes, decoder -------------------------------------------------------------------

    def encoded(self, x: Tensor, h: Tensor | None) -> Tensor:
        """The encoder's vectors [N, G, D], before they are quantised, of x [N, *E] given h [N, W]."""
        y = self.heads.embed(x)
        if not self.conv:
            return self.encoder(y, h).unflatten(1, (-1, self.quantizer.dim))
        return self.encoder(y.unflatten(1, self.space.event_shape), h).flatten(2).mT

    def decoded(self, vectors: Tensor, h: Tensor | None) -> Tensor:
        """Parameters of the heads [N, P] for vectors [N, G, D] and h [N, W]."""
        if not self.conv:
            return self.decoder(vectors.flatten(1), h)
        params = self.decoder(vectors.mT.unflatten(2, self.prior.space.event_shape), h)
        return params.unflatten(1, (self.space.event_shape[0], -1)).permute(0, 1, 3, 4, 2).flatten(1)

    def _codes(self, x: Tensor, h: Tensor | None) -> Tensor:
        """[N, *grid]"""
        return self.quantizer.codes(self.encoded(x, h)).view(len(x), *self.prior.space.event_shape)

    def _vectors(self, z: Tensor) -> Tensor:
        return self.quantizer.vectors(z.flatten(1))

    @torch.no_grad()
    def codes(self, x: Any, c: Any = None) -> Tensor:
        """The codes z = q(x, c) int64 [N, *grid] of any number of rows x [N, *E] given c [N, *Ec]."""
        size, found = self.rows_per_pass(), []
        with evaluating(self):
            for i in range(0, len(x), size):
                some = x[i : i + size].to(self.device)
                h = None if c is None else self.encode_context(c[i : i + size].to(self.device)).own.vector
                found.append(self._codes(some, h))
        return torch.cat(found)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, c: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws from p(x | q(x, c), c) [N, *E]: what the codes of rows x keep of them."""
        with evaluating(self):
            h = None if c is None else self.encode_context(c).own.vector
            params = self.decoded(self._vectors(self._codes(x, h)), h)
            return self.heads.sample(params, generator or torch.Generator(self.device).manual_seed(0))

    def usage(self, x: Any, c: Any = None) -> Tensor:
        """How often each of the K codes stands in those of rows x [N, *E] given c: shares [K]."""
        count = self.codes(x, c).flatten().bincount(minlength=self.quantizer.size)
        return count / count.sum()

    # -- the contract ---------------------------------------------------------------------------------------

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Known:  # type: ignore[override]
        own = super().encode_context(c, dropped)
        return Known(own, self.prior.encode_context(c, dropped))

    def null_context(self, n: int) -> Known:  # type: ignore[override]
        return Known(super().null_context(n), self.prior.null_context(n))

    def rows_per_pass(self) -> int:
        widest = max(sum(self.heads.params), self.prior.space.dims * self.quantizer.size)
        return max(1, min(super().rows_per_pass(), self.prior.rows_per_pass(), PASS // widest))

    def _terms_of(self, x: Tensor, c: Known | None, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """log p(z | c) and log p(x | z, c) [N], z = q(x, c)."""
        h = own_vector(c)
        z = self._codes(x, h)
        nats = self.heads.log_prob(self.decoded(self._vectors(z), h), x).sum(-1, dtype=torch.float64)
        if not self.fitted:  # all codes are equally likely
            return torch.full_like(nats, -z[0].numel() * math.log(self.quantizer.size)), nats
        lik = self.prior.rows_log_prob(z, c and c.part, self.prior.default_request(self.exact), noise)
        assert isinstance(lik, Exact)
        return lik.nats.double(), nats

    def rows_log_prob(self, x: Tensor, c: Known | None, request: Request, noise: RowNoise) -> Likelihood:
        prior, nats = self._terms_of(x, c, noise)
        return LowerBound(prior + nats, self.space.measure, torch.zeros_like(nats), 0)

    def rows_bound_terms(self, x: Tensor, c: Known | None, request: Any, noise: RowNoise) -> dict[str, Number[Tensor]]:
        found = dict(zip(("prior", "reconstruction"), self._terms_of(x, c, noise), strict=True))
        return {k: Number(Exact, v, torch.zeros_like(v), torch.zeros_like(v)) for k, v in found.items()}

    def rows_sample(self, n: int, c: Known | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        if self.fitted:
            z = self.prior.rows_sample(n, c and c.part, self.prior.default_sampler(), generator)
        else:
            size = (n, *self.prior.space.event_shape)
            z = torch.randint(self.quantizer.size, size, generator=generator, device=generator.device)
        return self.heads.sample(self.decoded(self._vectors(z.to(self.device)), own_vector(c)), generator)

    def rows_encode(self, x: Tensor, c: Known | None) -> Distribution:
        """All mass on the vectors of the codes of each row, [N, G D]."""
        return Point(self._vectors(self._codes(x, own_vector(c))).flatten(1))

    @property
    def latent_dims(self) -> int:
        return self.prior.space.dims * self.quantizer.dim

    def rows_from_latents(self, z: Tensor, c: Known | None) -> Tensor:
        vectors = z.unflatten(1, (-1, self.quantizer.dim))  # between codes, too: the decoder is continuous
        return self.heads.typical(self.decoded(vectors, own_vector(c)))


class CodesOf(TrainingSet):
    """The codes of rows x given c, each found when it is first asked for: a short fit does not see them all."""

    def __init__(self, model: VqVae, x: Any, c: Any) -> None:
        self.model, self.x, self.c = model, x, c
        self.z = torch.full((len(x), *model.prior.space.event_shape), -1)

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: Tensor) -> Tensor:
        new = index[self.z[index].flatten(1)[:, 0] < 0]
        if len(new):
            self.z[new] = self.model.codes(self.x[new], None if self.c is None else self.c[new]).to(self.z.device)
        return self.z[index]


class Point(Distribution):
    """All mass on one vector [N, L]: what an encoder without noise knows of its latents."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(self, value: Tensor) -> None:
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=False)
        self.value = value

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.value)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log of the mass: 0 there, -inf elsewhere."""
        return torch.where((value == self.value).all(-1), 0.0, -math.inf)


class VqLearner(GradientLearner):
    """Descent, and a codebook that follows."""

    def __init__(self, model: VqVae, recipe: Recipe) -> None:
        trained = nn.ModuleList(m for m in model.children() if m is not model.prior)
        super().__init__(trained, recipe, model.objective)
        self.model = model

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        found = super().step(batch, generator)
        book = self.model.quantizer
        if not isinstance(book, Codebook):
            return found
        with torch.no_grad(), evaluating(self.model):
            h = None if batch.c is None else self.model.encode_context(batch.c).own.vector
            z = self.model.encoded(batch.x, h)
        used = book.follow(z, max(batch.total, len(z)), batch.start, self.runtime.sum, generator)
        return found | {"codes_used": used}
