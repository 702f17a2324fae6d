"""Autoregressive models: a causal net, a head per site, an order.

    log p(x | c) = sum_t log p(x_{o(t)} | x_{o(1)}, ..., x_{o(t-1)}, c)

    made        one masked MLP over all sites (Germain et al. 2015)
    window-mlp  one MLP shared by all sites, over a window of the sites before (as Bengio et al. 2003)

Likelihoods are exact on every space: categories, integers, grids, reals and missing entries of a table
(``nn.heads`` has a head per column type), and levels of an image.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pofx.core.abilities import Completes
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe
from pofx.core.likelihood import Exact
from pofx.core.noise import RowNoise
from pofx.core.options import at_least
from pofx.core.requests import ExactLikelihood, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import Conditioned, ContextOptions
from pofx.nn.causal import MaskedMlp, WindowNet, site_order
from pofx.nn.encoders import Encoded, no_encoder, vector
from pofx.nn.sites import Heads, ImageKind, Steps, has_heads, heads_for, mixes

Order = Literal["raster", "reverse", "random"]
MOST_ORDERS = at_least(1, 1024)
SEED = at_least(0, 2**31)  # of NumPy's RandomState, which shuffles
MOST_DIRECT = 2**22  # direct connections of a masked net: more would outweigh the rest of it


@dataclass(frozen=True)
class AutoregressiveConfig(ContextOptions):
    """Options of every autoregressive family.

    Attributes:
        head: of image levels: bernoulli, categorical, logistic (a mixture of discretised logistics), or
            auto, by the number of levels.
        components: of each mixture (of Gaussians for reals, of logistics for grids and levels).
        atoms: the most frequent values that an integer or step column may have as point atoms.
    """

    head: ImageKind = "auto"
    components: int = 8
    atoms: int = 64


class Autoregressive(Conditioned, Completes):
    """Base of the families here; a subclass builds ``net`` and has ``params`` and ``walk``."""

    taxonomy = "explicit density / tractable / autoregressive"
    estimators = (ExactLikelihood,)
    orders: int = 1
    config: Any

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.heads = self.choose_heads(config, space)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        if not has_heads(space):
            return f"there is no head for {space}."
        if space.values:
            return "a label is a single value. Fit a classifier, or independent."
        if config.head == "bernoulli" and space.pixels and space.symbols != 2:
            return f"a Bernoulli head holds 2 levels, not {space.symbols}. Leave out head."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if not space.pixels:
            yield "head"
        if not mixes(space, config.head):
            yield "components"
        if all(getattr(c, "step", None) is None for c in space.columns):
            yield "atoms"

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        self.heads.prepare(x, weight)

    def learner(self, recipe: Recipe) -> Learner:
        def objective(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            e = self.batch_context(batch, generator)
            # the orders take turns: over a few batches this is the mean of their losses
            return {"loss": -self._log_prob(batch.x, vector(e), batch.step % self.orders)}

        return GradientLearner(self, recipe, objective)

    @classmethod
    def choose_heads(cls, config: Any, space: Space) -> Heads:
        return heads_for(space, image=config.head, components=config.components, slots=config.atoms)

    # -- what a family writes ---------------------------------------------------------------------------

    @abstractmethod
    def params(self, features: Tensor, h: Tensor | None, order: int) -> Tensor:
        """Embedded rows [N, sum(features)] -> parameters of all sites [N, sum(params)], causal in the order."""

    @abstractmethod
    def walk(self, n: int, h: Tensor | None, order: int) -> Steps:
        """The same, site after site."""

    # -- the contract ---------------------------------------------------------------------------------------

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Exact:
        h = vector(c)
        # arrays above 32 MiB cost more in page faults than in arithmetic
        size = max(1, 2**22 // self.width_per_row())
        parts = []
        for i in range(0, len(x), size):
            given = None if h is None else h[i : i + size]
            parts.append(torch.stack([self._log_prob(x[i : i + size], given, k) for k in range(self.orders)]))
        # several orders are an exact mixture of as many models, with equal weights
        return Exact(torch.cat(parts, 1).logsumexp(0) - math.log(self.orders), self.space.measure)

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        h = vector(c)
        values = torch.empty(n, self.heads.sites, dtype=torch.float64, device=self.device)
        which = torch.randint(self.orders, (n,), generator=generator, device=generator.device).to(self.device)
        for k in which.unique().tolist():
            rows = (which == k).nonzero()[:, 0]
            walk = self.walk(len(rows), None if h is None else h[rows], k)
            values[rows] = self.heads.visit(walk, values[rows], generator)
        return self.heads.event(values)

    def rows_complete(self, x: Tensor, known: Tensor, c: Encoded | None, generator: torch.Generator) -> Tensor:
        values, walk = self.heads.values(x).double(), self.walk(len(x), vector(c), 0)
        return self.heads.event(self.heads.visit(walk, values, generator, known.reshape(len(x), -1)))

    def width_per_row(self) -> int:
        """Numbers in the largest array that a pass holds per row."""
        return sum(self.heads.params)

    def _log_prob(self, x: Tensor, h: Tensor | None, order: int) -> Tensor:
        features = self.heads.embed(x)
        return self.heads.log_prob(self.params(features, h, order), x).sum(-1, dtype=torch.float64)


def space_orders(space: Space, name: str, count: int, seed: int) -> list[list[int]]:
    """``count`` orders of the sites: the named one, then (beside a raster of pixels) other scans, then random ones.

    A scan reads an image pixel by pixel, all channels of a pixel together, by rows or by columns, from any
    corner: as natural as the raster, and together they look at an edge from all sides.
    """
    sites = math.prod(space.event_shape)
    if not space.pixels or name == "random":
        orders = [site_order(name, sites, seed)]
    else:
        grid = torch.arange(sites).reshape(space.event_shape)
        turned = [g.flip(axes) for g in (grid, grid.mT) for axes in ([], [1, 2], [1], [2])]
        scans = [g.permute(1, 2, 0).flatten().tolist() for g in turned]
        orders = scans if name == "raster" else [scans[0][::-1]]
    return orders[:count] + [site_order("random", sites, seed + k) for k in range(len(orders), count)]


# ----------------------------------------------------------------------------------------------- made


@dataclass(frozen=True)
class MadeConfig(AutoregressiveConfig):
    """Options of ``made``.

    Attributes:
        hidden: width of the hidden layers.
        layers: how many of them; all but the first are residual.
        order: the first order: raster (columns from left to right), reverse or random.
        orders: how many orders share the weights; their mixture is exact. Beside "raster", an image's next
            seven are its other scans (by columns, from other corners); all further ones are random.
        order_seed: of the random orders.
    """

    hidden: int = 512
    layers: int = 2
    order: Order = "raster"
    orders: int = 1
    order_seed: int = 0

    ranges = {"orders": MOST_ORDERS, "order_seed": SEED}


class Made(Autoregressive):
    name = "made"
    summary = "a masked net predicts each value from those before it"
    paper = "Germain, Gregor, Murray & Larochelle 2015, MADE"
    Config = MadeConfig
    config: MadeConfig

    def __init__(self, config: MadeConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.orders = config.orders
        features, params = self.heads.features, self.heads.params
        self.net = MaskedMlp(
            features,
            params,
            (config.hidden,) * config.layers,
            context=self.known,
            orders=space_orders(space, config.order, config.orders, config.order_seed),
            residual=True,
            direct=sum(features) * sum(params) <= MOST_DIRECT,
        )

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if config.order != "random" and config.orders == 1:
            yield "order_seed"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, hidden=64, layers=2, components=4, atoms=16, orders=2)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=128, lr=2e-3, weight_decay=1e-2, ema=0.999)

    def params(self, features: Tensor, h: Tensor | None, order: int) -> Tensor:
        return self.net(features, h, order)

    def walk(self, n: int, h: Tensor | None, order: int) -> Steps:
        return self.net.walk(n, h, order)


# ----------------------------------------------------------------------------------------- window-mlp


@dataclass(frozen=True)
class WindowMlpConfig(AutoregressiveConfig):
    """Options of ``window-mlp``.

    Attributes:
        window: columns before it that a column sees.
        radius: of the half disc of pixels above and to the left that a pixel sees.
        hidden: width of the shared MLP.
        layers: its hidden layers, all but the first residual.
        embedding: width of an embedded column value.
    """

    window: int = 16
    radius: int = 5
    hidden: int = 128
    layers: int = 3
    embedding: int = 16

    ranges = {"radius": at_least(1, 64)}


class WindowMlp(Autoregressive):
    name = "window-mlp"
    summary = "one net, shared by all sites, predicts each value from a window of those before it"
    paper = "Bengio, Ducharme, Vincent & Jauvin 2003, A neural probabilistic language model"
    Config = WindowMlpConfig
    config: WindowMlpConfig

    def __init__(self, config: WindowMlpConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        if space.pixels:
            window, embedding = image_window(space, config.radius), None
        else:
            window, embedding = column_window(self.heads.sites, config.window), config.embedding
        self.net = WindowNet(
            self.heads.features,
            self.heads.params,
            space_orders(space, "raster", 1, 0)[0],
            window,
            hidden=config.hidden,
            layers=config.layers,
            embedding=embedding,
            context=self.known,
        )

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        yield from ("window", "embedding") if space.pixels else ("radius",)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, hidden=64, layers=2, components=4, atoms=16, radius=3)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=32 if space.pixels else 128, lr=2e-3, weight_decay=1e-2, ema=0.999)

    def params(self, features: Tensor, h: Tensor | None, order: int) -> Tensor:
        return self.net(features, h)

    def walk(self, n: int, h: Tensor | None, order: int) -> Steps:
        return self.net.walk(n, h)

    def width_per_row(self) -> int:
        return max(super().width_per_row(), self.heads.sites * max(self.config.hidden, self.net.first.in_features))


def column_window(sites: int, size: int) -> Tensor:
    """The ``size`` columns before each column [sites, k], ``sites`` where there is none."""
    before = torch.arange(sites)[:, None] - torch.arange(1, max(1, min(size, sites - 1)) + 1)
    return before.masked_fill(before < 0, sites)


def image_window(space: Space, radius: int) -> Tensor:
    """The causal half disc of each level [C H W, k]: pixels above or to the left, and its own pixel's earlier channels.

    Channels are counted from the level's own, so that the shared net meets like things in like places.
    """
    (channels, height, width), r = space.event_shape, radius
    inside = [(a, b) for a in range(-r, 1) for b in range(-r, r + 1) if (a < 0 or b < 0) and a * a + b * b <= r * r]
    offsets = [(a, b, j) for a, b in inside for j in range(channels)] + [(0, 0, -j) for j in range(1, channels)]
    dh, dw, dc = torch.tensor(offsets).T[:, None]
    c, h, w = (i.reshape(-1, 1) for i in torch.meshgrid(*map(torch.arange, space.event_shape), indexing="ij"))
    h, w = h + dh, w + dw
    known = (h >= 0) & (w >= 0) & (w < width) & ~((dh == 0) & (dw == 0) & (c + dc < 0))
    return torch.where(known, ((c + dc) % channels * height + h) * width + w, space.dims)
