"""A transformer over an image, patch by patch, and inside a patch pixel by pixel.

    log p(x) = sum_t sum_i log p(x_{t,i} | x_{t,<i}, x_{<t})

over patches t in the order of a scan and the levels i of a patch. With patches of one pixel this is Image GPT
(Chen et al. 2020) on raw levels: attention sees every pixel, and a step is one softmax. With larger patches
attention goes over far fewer steps, and a masked MLP (Germain et al. 2015), given the net's output, predicts the
levels inside: the same likelihood for a fraction of the arithmetic.

With a palette, as in that paper, a pixel is one of its colours, which k-means finds (``nn.palette``). The likelihood is
still that of the image itself, exactly: log p(palette's colours) - log(number of colours that each stands for).

A grid of codes, as a quantised autoencoder gives, is an image of one channel whose levels have no order: each of its
steps is one softmax.

Several scans (rows or columns first, from any corner) and several orders of patches may share one net: each is a
model of its own, and their mixture is as exact as each of them (Uria, Murray & Larochelle 2014).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pofx.codecs.palette import CUBE, Palette
from pofx.codecs.steps import Patches, PatchOrder
from pofx.core.abilities import Completes
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe
from pofx.core.likelihood import Exact
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, at_least
from pofx.core.requests import Direct, ExactLikelihood, Request, Sampler
from pofx.core.space import Space
from pofx.families.autoregressive import MOST_ORDERS, SEED
from pofx.families.conditioned import ContextOptions, idle_of_contexts
from pofx.families.stepwise import Stepwise
from pofx.nn.causal import site_order
from pofx.nn.emission import Emission, Given, StepHead, TokenHead
from pofx.nn.encoders import Encoded, beside, channels_beside, no_encoder
from pofx.nn.heads import Head, LevelLogistics
from pofx.nn.sequence import SequenceNet
from pofx.nn.sites import FEW_LEVELS, Heads, ImageKind, image_head, side_by_side
from pofx.nn.transformer import Positions, Shape, Transformer
from pofx.spaces import Codes, Image

SCANS = 8  # a square image can be turned and mirrored in so many ways; another one in half as many


@dataclass(frozen=True)
class ImageGptConfig(ContextOptions, Shape):
    """Options of ``image-gpt``, beside those of its transformer (whose block is the number of patches).

    Attributes:
        patch: side of a patch in pixels; 1 for pixels, 0 for the largest of 4, 3, 2, 1 that divides both sides.
        order: of the patches: raster, column, spiral (inwards), reverse or random.
        orders: how many orders share the net: the named one, then random ones; their mixture is exact.
        order_seed: of the random orders.
        scans: how many mirrored and turned images share the net, each in every order; their mixture is exact.
        palette: colours that a pixel is reduced to, one step each; the likelihood, of the raw levels and exact, pays
            for what is lost. 0 for raw levels.
        head: of levels: bernoulli, categorical, logistic (a mixture of discretised logistics), or auto.
        predict: model the errors of a prediction from the neighbours: "yes", "no", or "auto": with many levels.
        components: of each mixture.
        inner_width: of the masked MLP inside a patch.
        inner_layers: hidden layers of that MLP.
    """

    positions: Positions = "learned"
    patch: int = 0
    order: PatchOrder = "raster"
    orders: int = 1
    order_seed: int = 0
    scans: int = 1
    palette: int = 0
    head: ImageKind = "auto"
    predict: Literal["auto", "yes", "no"] = "auto"
    components: int = 8
    inner_width: int = 256
    inner_layers: int = 2

    ranges = {
        "patch": AMOUNT,
        "orders": MOST_ORDERS,
        "order_seed": SEED,
        "scans": at_least(1, SCANS),
        "palette": AMOUNT,
    }


class ImageGpt(Stepwise, Completes):
    name = "image-gpt"
    summary = "a transformer goes through an image patch by patch, a masked net through the pixels inside"
    paper = "Chen, Radford, Child, Wu, Jun, Luan & Sutskever 2020, Generative pretraining from pixels"
    estimators = (ExactLikelihood,)
    samplers = (Direct,)
    Config = ImageGptConfig
    config: ImageGptConfig
    codec: Patches
    ways: Tensor  # [orders, steps]: numbers of steps, as the codec counts them

    def __init__(self, config: ImageGptConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        steps = self.steps
        each = [range(steps), *(site_order("random", steps, config.order_seed + k) for k in range(1, config.orders))]
        self.register_buffer("ways", torch.tensor([list(way) for way in each]), persistent=False)
        self.members = config.scans * config.orders
        self.scan = nn.Embedding(self.members, config.width) if self.members > 1 else None
        # with orders, a step must be told which place it comes from, and which one is next
        self.places = nn.Parameter(0.02 * torch.randn(2, steps, config.width)) if config.orders > 1 else None
        # of an image that is given, a step sees the patch at its own place and those around it
        shown = channels_beside(self.picture, self.image.event_shape[1:]) if space.pixels else 0
        self.near = nn.Conv2d(shown, config.width, 3 * self.side, self.side, self.side) if shown else None

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: ImageGptConfig) -> str | None:
        image = as_image(space)
        if image is None:
            return "it goes through images, and grids of codes."
        if reason := no_encoder(context):
            return reason
        if config.head == "bernoulli" and image.levels != 2:
            return f"a Bernoulli head holds 2 levels, not {image.levels}. Leave out head."
        if not space.pixels and (
            config.patch > 1 or config.palette or config.predict == "yes" or config.head not in ("auto", "categorical")
        ):
            return "a code's step is one softmax. Leave out patch, palette, predict and head."
        side = config.patch or 1
        if image.height % side or image.width % side:
            return f"{image.height}×{image.width} pixels are not made of patches of {side}. Choose a divisor."
        most = SCANS if image.height == image.width else SCANS // 2
        if config.scans > most:
            return f"scans={config.scans} is impossible. Give 1 to {most}."
        return cls._wrong_palette(image, config)

    @classmethod
    def _wrong_palette(cls, space: Image, config: ImageGptConfig) -> str | None:
        colours = space.levels**space.channels
        if not config.palette:
            return None
        if colours > CUBE:
            return f"a palette parts at most {CUBE} colours, not {colours}. Leave out palette."
        if not 2 <= config.palette <= colours:
            return f"palette={config.palette} is impossible. Give 2 to {colours}, the number of colours, or 0."
        if config.patch > 1 or config.predict == "yes" or config.head not in ("auto", "categorical"):
            return "a palette's step is one pixel and one softmax. Leave out patch, predict and head."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from idle_of_contexts(context)
        yield "block"  # the number of patches
        if config.orders == 1 and config.order != "random":
            yield "order_seed"
        grey = config.patch == 1 and space.event_shape[0] == 1 and config.head != "logistic"
        one = config.palette or not space.pixels or grey
        if one:
            yield from ("components", "inner_width", "inner_layers")

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, width=32, layers=2, n_heads=2, components=4, inner_width=32, scans=2)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(
            batch=32, optimizer="muon", lr=5e-3, schedule="linear", warmup=20,
            weight_decay=0.1, betas=(0.9, 0.99), clip=1.0, ema=0.99,
        )  # fmt: skip

    # -- the parts ------------------------------------------------------------------------------------------

    @property
    def looks(self) -> bool:
        return self.near is not None

    @property
    def image(self) -> Image:
        """What it goes through: ``space``, or as which that is taken."""
        found = as_image(self.space)
        assert found is not None
        return found

    def prepare(self, x: Any, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(self._as_image(x), c, weight, generator)

    @property
    def side(self) -> int:
        """Of a patch, in pixels."""
        height, width = self.image.height, self.image.width
        if self.config.palette or not self.space.pixels:
            return 1
        return self.config.patch or max(p for p in (1, 2, 3, 4) if height % p == 0 and width % p == 0)

    @property
    def predicts(self) -> bool:
        """Errors are data written otherwise, so any order of patches and any scan goes through them as well."""
        predict = "no" if self.config.palette or not self.space.pixels else self.config.predict
        return self.image.levels > FEW_LEVELS if predict == "auto" else predict == "yes"

    @property
    def one_level(self) -> bool:
        return self.side == 1 and self.image.channels == 1 and self.config.head in ("auto", "categorical")

    def make_codec(self) -> Patches:
        order, seed = self.config.order, self.config.order_seed
        if self.config.palette:
            return Palette(self.image, self.config.palette, order, seed)
        return Patches(self.image, self.side, self.one_level, order, seed, self.predicts)

    def make_emission(self) -> Emission:
        config, space = self.config, self.image
        if config.palette:
            return TokenHead(config.palette, config.width, has_eos=False)
        if self.one_level:
            return TokenHead(space.levels, config.width, has_eos=False)
        sites = space.channels * self.side**2
        if self.predicts and config.head in ("auto", "logistic"):
            head: Head = LevelLogistics(space.levels, config.components, (sites,), errors=True)
        else:
            head = image_head(config.head, space.levels, components=config.components, sites=(sites,))
        heads = Heads(side_by_side(sites), [head], [range(sites)])
        return StepHead(heads, config.width, hidden=config.inner_width, layers=config.inner_layers, has_eos=False)

    def build(self, config: ImageGptConfig) -> SequenceNet:
        return Transformer(config, self.steps, self.memory)

    @property
    def steps(self) -> int:
        return len(self.codec.order)

    # -- scans and orders: members of a mixture -----------------------------------------------------------

    def learner(self, recipe: Recipe) -> Learner:
        def objective(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            # the members take turns: over a few batches this is the mean of their losses
            return {"loss": -self._by(batch.step % self.members, batch.x, self.batch_context(batch, generator))}

        return GradientLearner(self, recipe, objective, self.matrices())

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Exact:
        each = torch.stack([self._by(k, x, c) for k in range(self.members)])
        return Exact(each.logsumexp(0) - math.log(self.members), self.space.measure)

    def _by(self, member: int, x: Tensor, h: Encoded | None) -> Tensor:
        """log p [N] by one member: of images x turned by its scan, in its order."""
        order, scan = divmod(member, self.config.scans)
        u = self.codec.encode(turned(self._as_image(x), scan))[:, self.ways[order]]
        inputs = torch.cat([self.emission.beginning(len(u)), u[:, :-1]], 1)
        y = self.outputs(inputs, self._toward(h, torch.full((len(x),), member, device=x.device)))
        log_p = self.emission.log_prob(y, u)
        if isinstance(self.codec, Palette):  # uniform on the cell of each pixel
            log_p = log_p - self.codec.log_volume(u)
        return log_p.sum(1, dtype=torch.float64)

    def _toward(self, h: Encoded | None, members: Tensor) -> Encoded | None:
        """The contexts h with what tells of the members [N] in their vectors: [N, width], or [N, steps, width]."""
        own = None if h is None else h.vector
        if self.scan is not None:
            own = self.scan(members) if own is None else own + self.scan(members)
        if own is None:
            return h
        if self.places is not None:
            way = self.ways[members // self.config.scans]
            came = nn.functional.pad(self.places[0][way[:, :-1]], (0, 0, 1, 0))
            own = own[:, None] + came + self.places[1][way]
        if self.near is not None:
            assert h is not None
            own = (own if own.ndim == 3 else own[:, None]) + self._beside(h, members, self.near)
        return Encoded(own) if h is None else replace(h, vector=own)

    def _beside(self, h: Encoded, members: Tensor, near: nn.Module) -> Tensor:
        """What is given at the place of each step and around it [N, steps, width], as each member goes through it."""
        assert h.map is not None
        seen = beside(h.map, self.image.event_shape[1:])
        out = seen.new_empty(len(members), self.steps, self.config.width)
        for member in members.unique().tolist():
            order, scan = divmod(member, self.config.scans)
            rows = (members == member).nonzero()[:, 0]
            steps = near(turned(seen[rows], scan)).flatten(2).mT[:, self.codec.order]
            out = out.index_copy(0, rows, steps[:, self.ways[order]])
        return out

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        which = torch.randint(self.members, (n,), generator=generator, device=generator.device).to(self.device)
        u = self._drawn(which, c, generator)
        out = torch.empty(n, *self.image.event_shape, dtype=self.space.dtype, device=self.device)
        for member in which.unique().tolist():
            order, scan = divmod(member, self.config.scans)
            rows = (which == member).nonzero()[:, 0]
            out[rows] = turned(self._image(u[rows][:, self.ways[order].argsort()], generator), scan, back=True)
        return out.reshape(n, *self.space.event_shape)

    def rows_complete(self, x: Tensor, known: Tensor, c: Encoded | None, generator: torch.Generator) -> Tensor:
        first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        given = self.codec.encode(self._as_image(x)), self.codec.known(self._as_image(known))
        drawn = self._image(self._drawn(first, c, generator, given), generator)
        return torch.where(known, x, drawn.reshape(x.shape))

    def _as_image(self, x: Tensor) -> Tensor:
        """[N, *E] -> [N, C, H, W]"""
        return x.reshape(len(x), *self.image.event_shape)

    @torch.inference_mode()
    def _drawn(
        self, members: Tensor, h: Encoded | None, generator: torch.Generator, given: Given | None = None
    ) -> Tensor:
        """Steps [N, L, ...] by these members [N], each in its own order, with what is given of them [N, L, ...]."""
        reader = self.reader(len(members), self._toward(h, members), self.steps)
        step, steps = self.emission.beginning(len(members)), []
        for t in range(self.steps):
            some = None if given is None else (given[0][:, t], given[1][:, t])
            step = self.emission.complete(reader.read(step)[:, -1], some, generator)[:, None]
            steps.append(step)
        return torch.cat(steps, 1)

    def _image(self, u: Tensor, generator: torch.Generator) -> Tensor:
        image = self.codec.draw(u, generator) if isinstance(self.codec, Palette) else self.codec.decode(u)
        return image.to(self.space.dtype)


@singledispatch
def as_image(space: Any) -> Image | None:
    """As which image a datum of the space is gone through; None where it is not."""
    return None


@as_image.register
def _(space: Image) -> Image:
    return space


@as_image.register
def _(space: Codes) -> Image:
    """Of one channel, in one row unless they stand in a grid."""
    height, width = space.shape if len(space.shape) == 2 else (1, space.dims)
    return Image(height, width, 1, space.size)


def turned(x: Tensor, scan: int, back: bool = False) -> Tensor:
    """Images [N, C, H, W] mirrored left to right (bit 1 of scan), up to down (bit 2), along the diagonal (bit 4)."""
    flips = [axis for bit, axis in ((1, 3), (2, 2)) if scan & bit]
    if scan & 4 and back:
        return x.mT.flip(flips) if flips else x.mT
    x = x.flip(flips) if flips else x
    return x.mT if scan & 4 else x
