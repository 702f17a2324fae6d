"""Gaussian and Gaussian mixture, fitted by EM to tables, images and labels, with or without a context.

A mixture of K components, each a Gaussian over the real coordinates times a categorical for every discrete
column (mixture/joint.py says which is which), models the *joint* vector of context and datum:

    p(x | c) = p(c, x) / p(c) = sum_j pi_j p_j(c) p_j(x | c) / sum_j pi_j p_j(c),

exact, as are marginals (of coordinates with the tails of ``nn.tails``, which begin beyond all training rows, five
standard deviations away or more): conditioning reweights the components and conditions each Gaussian. EM raises the
joint likelihood p(c, x). With a Label (or categories in the context's table) there is one mixture per class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, OneHotCategorical

from pofx.codecs.joint import SUMMED, Block, Joint, class_sizes, rows_at
from pofx.core.abilities import Ability, Encodes, HasScore, InBlocks
from pofx.core.errors import BadValue
from pofx.core.learner import Recipe
from pofx.core.likelihood import Exact, Likelihood, LowerBound
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.options import Options, at_least
from pofx.core.requests import Dequantised, ExactLikelihood, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families.mixture import em, sweep
from pofx.families.mixture.whitening import Components, Covariance, Rows, Whitening
from pofx.nn.tails import REACH, lengthen, shorten
from pofx.transforms.base import pseudo_rows

LARGEST_COVARIANCE = 2**24  # numbers in all covariances of a model: 128 MiB
MOST_CLASSES = 64  # made by the categories of a context
START_ROWS = 20_000  # k-means looks at so many rows, or at 100 a component
TOLD = 0.05  # the least share of a prior in a covariance that is told


@dataclass(frozen=True)
class MixtureOptions(Options):
    """What both families take. Prior strengths are numbers of pseudo-rows; at 0 the fit is maximum likelihood."""

    covariance: Literal["auto", "full", "tied", "diag", "spherical"] = "auto"
    """auto: full where it is affordable, else diag. Spherical: one variance, in units of each column's own."""
    floor: float = 1e-6
    """least variance in any direction, relative to the data's own in that direction"""
    smoothing: float = 1.0
    """of the categorical columns, towards the frequencies of the whole data"""
    normal_prior: float = 0.0
    """of means, at the mean of the data"""
    wishart_prior: float | None = None
    """of covariances, at that of the data over K^(2/d) (Fraley, Raftery 2007); None: by the rows N, with q = K d / N
    d min(1, max(q, 25 q^2)), so that few rows in many dimensions leave no direction without variance"""
    tol: float = 1e-5
    """EM stops when a sweep gains less than this, in nats per datum"""
    dtype: Literal["float64", "float32"] = "float64"
    """of the arithmetic on rows; float32 is up to twice as fast, and right to about 4 digits"""

    draws: ClassVar[int] = 8  # of dequantisation

    ranges = {"floor": at_least(1e-8, 1), "smoothing": at_least(1e-6)}


@dataclass(frozen=True)
class GaussianConfig(MixtureOptions):
    """Options of ``gaussian``."""

    components: ClassVar[int] = 1
    restarts: ClassVar[int] = 1
    dirichlet_prior: ClassVar[float] = 0.0
    per_class: ClassVar[bool] = True


@dataclass(frozen=True)
class MixtureConfig(MixtureOptions):
    """Options of ``gmm``."""

    components: int = 10
    """per class"""
    restarts: int = 1
    """k-means++ starts; with several, the best after ten sweeps over a sample of rows goes on"""
    dirichlet_prior: float = 0.0
    """of the components' weights"""
    per_class: bool = True
    """one mixture for each class of the context; False: one for all, in which the class is a discrete column"""


Config: TypeAlias = GaussianConfig | MixtureConfig


class Mixture(Model, InBlocks, HasScore):
    """What both families share. Buffers hold the parameters in whitened coordinates (mixture/whitening.py)."""

    estimators: ClassVar[tuple[type[Request], ...]] = (ExactLikelihood, Dequantised)

    training_rows: Tensor
    reach: Tensor
    location: Tensor
    scale: Tensor
    pooled: Tensor
    base: Tensor
    log_weight: Tensor
    mean: Tensor
    factor: Tensor
    table: Tensor

    def __init__(self, config: Config, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.joint = Joint(space, context, config.per_class)
        d, k = self.joint.dim, config.components * self.joint.groups
        self.kind = _covariance(config, d, k)
        whole = d if self.kind in ("full", "tied") else 0
        self.register_buffer("training_rows", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reach", torch.full((d,), REACH, dtype=torch.float64))  # of the tails, in scales
        self.register_buffer("location", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(d, dtype=torch.float64))
        self.register_buffer("pooled", torch.eye(whole, dtype=torch.float64))
        self.register_buffer("base", self.joint.frequencies(torch.zeros(self.joint.values, dtype=torch.float64)))
        for name, value in vars(em.initial(self.kind, k, d, self.prior())).items():
            if name != "kind":
                self.register_buffer(name, value)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Config) -> str | None:
        if reason := free_length(space, context):
            return reason
        if not (space.columns or space.pixels):
            return f"it models numbers and categories, and {space} have none it knows. Fit another family."
        if context is not None and not context.columns:
            return f"a mixture cannot be conditioned on {context}; condition on their label, or fit a classifier."
        if space.values and context is None:
            return "a label alone has no numbers; fit a histogram."
        classes = math.prod(class_sizes(space, context)) if config.per_class else 1
        if context is not None and not (space.values or context.values) and classes > MOST_CLASSES:
            other = "fit a gmm with per_class=False" if cls is Gaussian else "set per_class=False"
            return f"the categories of its context make {classes} classes (limit {MOST_CLASSES}); {other}."
        joint = Joint(space, context, config.per_class)
        d, k = joint.dim, config.components * joint.groups
        kind = _covariance(config, d, k)
        numbers = {"full": k * d * d, "tied": d * d}.get(kind, 0)
        if numbers > LARGEST_COVARIANCE:
            return (
                f"{kind} covariances of {d} dimensions and {k} components hold {numbers:,} numbers "
                f"(limit {LARGEST_COVARIANCE:,}); set covariance=diag."
            )
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        joint = Joint(space, context, config.per_class)
        if joint.dim == 0:
            yield from ("covariance", "floor", "normal_prior", "wishart_prior")
        if not joint.codes:
            yield "smoothing"
        if isinstance(config, MixtureConfig) and not class_sizes(space, context):
            yield "per_class"

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(epochs=200)

    def learner(self, recipe: Recipe) -> em.EmLearner:
        return em.EmLearner(self)

    def rows_per_pass(self) -> int:
        """Large passes: the sweep makes its own blocks."""
        return max(256, min(2**17, 2**22 // max(1, self.joint.dim)))

    def parameter_count(self) -> int:
        """Weights, means, covariances and probabilities, each less its constraints."""
        k, d = self.mean.shape
        covariances = {"full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2, "diag": k * d, "spherical": k}
        first = 1 if self.joint.groups > 1 else 0  # the class is in the weights
        sizes = [c.size for c in self.joint.codes]
        used = [int((p > 0).sum()) - 1 for p in self.base.split(sizes)] if sizes else []
        return k - 1 + k * d + (covariances[self.kind] if d else 0) + k * sum(used[first:])

    # -- parameters ---------------------------------------------------------------------------------------

    def components(self) -> Components:
        """The mixture in whitened coordinates."""
        return Components(self.kind, self.log_weight, self.mean, self.factor, self.table)

    def adopt(self, new: Components) -> None:
        """Take over the values of ``new``."""
        for name in ("log_weight", "mean", "factor", "table"):
            getattr(self, name).copy_(getattr(new, name))

    def whitening(self) -> Whitening:
        return Whitening(self.location, self.scale, self.pooled if self.kind in ("full", "tied") else None)

    def prior(self) -> em.Prior:
        o, wishart = self.config, self.config.wishart_prior
        if wishart is None:
            free = self.joint.dim if self.kind in ("full", "tied") else 1  # columns that share a covariance
            wishart = pseudo_rows(float(self.training_rows), free, o.components * self.joint.groups)
        return em.Prior(self.base, o.smoothing, o.floor, o.dirichlet_prior, o.normal_prior, wishart, self.joint.groups)

    @property
    def weights(self) -> Tensor:
        """pi [K]"""
        return self.log_weight.exp()

    @property
    def means(self) -> Tensor:
        """Means [K, d] of the real coordinates (the context's first) in raw units."""
        return self.whitening().raw(self.mean)

    @property
    def covariances(self) -> Tensor:
        """Covariances in raw units: [K, d, d] (full), [d, d] (tied), variances [K, d] (diag, spherical)."""
        if self.kind in ("diag", "spherical"):
            return (self.components().deviation() * self.scale).square()
        root = self.scale[:, None] * (self.pooled @ self.factor)
        return root @ root.mT

    def start_at(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Start EM from parameters in raw units, shaped as the properties of these names (after ``prepare``)."""
        whitening, v = self.whitening(), (means - self.location) / self.scale
        if whitening.pooled is None:
            deviation = covariances.sqrt() / self.scale
            factor = deviation if self.kind == "diag" else deviation.square().mean(1).sqrt()
        else:
            v = torch.linalg.solve_triangular(whitening.pooled, v.T, upper=False).T
            root = torch.linalg.cholesky(covariances / self.scale.outer(self.scale))
            factor = torch.linalg.solve_triangular(whitening.pooled, root, upper=False)
        self.adopt(Components(self.kind, weights.log(), v, factor, self.table))

    # -- training -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, x: Any, c: Any, weight: Tensor | None, generator: torch.Generator) -> None:
        """``measure``, then a k-means++ start from a sample of the rows (a single Gaussian needs none)."""
        blocks = self.measure(x, c, weight, generator)
        if self.config.components == 1:
            return
        size, index = max(START_ROWS, 100 * len(self.mean)), torch.arange(len(x))
        if len(x) > size:
            index = torch.randperm(len(x), generator=generator, device=generator.device)[:size].cpu()
        y, codes, w = rows_at(blocks, index)
        self.adopt(self._start(y, codes, w, generator))

    @torch.no_grad()
    def measure(
        self, x: Any, c: Any = None, weight: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Iterable[Block]:
        """Atoms, frequencies, location, scale and pooled covariance of the data into buffers.

        Returns the rows in blocks, as ``joint`` splits them. A generator is needed where there are grid columns to
        dequantise.
        """
        w = torch.ones(len(x), dtype=torch.float64, device=self.device) if weight is None else weight.double()
        w = w * (len(w) / w.sum())
        self.training_rows.fill_(len(x))
        self.base.copy_(self.joint.fit(x, c, w))
        assert generator is not None or not len(self.joint.grid())
        blocks = self.joint.blocks(x, c, w, torch.Generator() if generator is None else generator)
        for name, value in vars(Whitening.of(blocks, self.kind)).items():
            if value is not None:
                getattr(self, name).copy_(value)
        self.reach.fill_(REACH)
        for y, _, _ in blocks:
            for rows in y.split(SUMMED):
                v = ((rows - self.location) / self.scale).nan_to_num_().abs_()
                self.reach.copy_(torch.maximum(self.reach, v.amax(0)))
        self.remarks = self._remarks(len(x))
        return blocks

    def _remarks(self, n: int) -> list[str]:
        """That covariances are diagonal, where columns are many, or shrunk, where rows are few."""
        d, k, extra = self.joint.dim, len(self.mean), self.prior().wishart
        if self.config.covariance == "auto" and self.kind == "diag":
            return [f"{d:,} columns are many: the covariances of {self.name} are diagonal (covariance=full is not)."]
        if d == 0 or self.config.wishart_prior is not None or extra < TOLD * (extra + n / k):
            return []
        return [
            f"{n:,} rows are few for {d} columns{f' and {k} components' if k > 1 else ''}: every covariance of "
            f"{self.name} is shrunk as by {extra:.3g} more rows in which columns do not depend (wishart_prior)."
        ]

    def _shortened(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Raw y [N, c] of the first c coordinates with the tails of ``nn.tails``, and the log slopes [N or 1, c].

        The tails begin beyond all training rows, so that EM never meets them.
        """
        c = y.shape[1]
        location, scale = self.location[:c], self.scale[:c]
        reach = self.reach[:c]
        if c and len(y):
            low, high = y.amin(0), y.amax(0)  # in two passes, a third of the time of aminmax
            if bool((((low - location) / scale >= -reach) & ((high - location) / scale <= reach)).all()):
                return y, y.new_zeros(1, c)  # nearly always
        s, log_slope = shorten((y - location) / scale, reach)
        return torch.where(log_slope < 0, location + scale * s, y), log_slope

    def _start(self, y: Tensor, codes: Tensor, weight: Tensor, generator: torch.Generator) -> Components:
        whitening, prior, groups = self.whitening(), self.prior(), self.joint.groups
        v = ((y - whitening.location) / whitening.scale).nan_to_num()
        z = v if whitening.pooled is None else torch.linalg.solve_triangular(whitening.pooled, v.T, upper=False).T
        small = [i for i, code in enumerate(self.joint.codes) if code.size <= 64]
        hot = z.new_zeros(len(y), self.joint.values).scatter_(1, codes[:, small], 1.0)
        features = torch.cat([v, hot[:, hot.any(0)]], 1)
        k = self.config.components
        initial = em.initial(self.kind, k * groups, z.shape[1], prior)
        best, objective = initial, -math.inf
        for _ in range(self.config.restarts):
            label = torch.zeros(len(y), dtype=torch.int64, device=y.device)
            for g in range(groups):
                index = (codes[:, 0] == g if groups > 1 else label == 0).nonzero().squeeze(1)
                if len(index):
                    label[index] = g * k + em.k_means(features[index], k, weight[index], generator)
            start = em.from_partition(initial, z, codes, weight, label, prior)
            if self.config.restarts == 1:
                return start
            rows = whitening.rows(y, codes, weight, torch.float64)
            for _ in range(10):
                start = em.m_step(start, sweep.e_step(start, rows, whitening), prior)
            reached = float(sweep.e_step(start, rows, whitening).total[0] + em.log_prior(start, prior))
            if reached > objective:
                best, objective = start, reached
        return best

    # -- densities ----------------------------------------------------------------------------------------

    def rows(self, y: Tensor, codes: Tensor, weight: Tensor | None = None) -> list[Rows]:
        """Rows of ``joint.split``, grouped by pattern of missing entries, in whitened coordinates."""
        return self.whitening().rows(y, codes, weight, getattr(torch, self.config.dtype))

    def _log_density(self, y: Tensor, codes: Tensor) -> Tensor:
        """Of the context and the datum, in the datum's raw units: the context's slopes cancel in p(x | c)."""
        y, log_slope = self._shortened(y)
        log_p: Tensor = _Density.apply(y, codes, self)
        return log_p + log_slope[:, self.joint.given_dim :].sum(1)

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        return asked is not (ExactLikelihood if len(self.joint.grid(given=False)) else Dequantised)

    def quick_request(self) -> Request:
        return Dequantised(draws=2) if self.answers(Dequantised) else ExactLikelihood()

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        """Exact, but for grid columns: those are uniformly dequantised, a LowerBound (the mean over draws)."""
        y, codes = self.joint.split(x, c)
        given = 0.0 if c is None else self._log_density(*self.joint.split_given(c))
        grid = self.joint.grid(given=False)
        if not isinstance(request, Dequantised):
            return Exact(self._log_density(y, codes) - given, self.space.measure)
        draws = request.draws
        log_p = y.new_empty(draws, len(y))
        for k in range(draws):
            u = noise.rand(len(grid))
            log_p[k] = self._log_density(self.joint.dequantise(y, grid, u), codes)
        cells = torch.where(y[:, grid].isnan(), 0.0, self.joint.step[grid].log()).sum(1)
        se = log_p.std(0) / math.sqrt(draws)
        return LowerBound(log_p.mean(0) + cells - given, self.space.measure, se, draws)

    @classmethod
    def lacks(cls, ability: type[Ability], space: Space) -> str | None:
        if ability is HasScore and any(part == "counting" for part, _ in space.measure.parts):
            return "not every column is real. Declare the columns real, or drop those that are not."
        return None

    def rows_score(self, x: Tensor, c: Tensor | None) -> Tensor:
        """sum_j p(j | c, x) Sigma_j^-1 (mu_j - s(c, x)) through the tails s, its entries for x."""
        if x.isnan().any():
            raise BadValue("A row with missing values has no gradient.", "Drop it, or fill it in.")
        y, codes = self.joint.split(x, c)
        y, log_slope = self._shortened(y)
        rows = self.whitening().rows(y, codes, None, torch.float64, scatter=False)
        score = sweep.gradient(self.components(), rows, self.whitening()) * log_slope.exp()
        s = (y - self.location) / self.scale  # of log ds/dv the derivative is -(s + 1 / s) ds/dv
        score -= torch.where(log_slope < 0, log_slope.exp() * (s + 1 / s) / self.scale, 0.0)
        return score[:, self.joint.given_dim :].reshape(x.shape)

    @torch.no_grad()
    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """A component by its weight given c, then residuals e ~ N(0, I), conditioned on those of c."""
        components, whitening = self.components(), self.whitening()
        e = torch.randn(n, self.joint.dim, generator=generator, dtype=torch.float64, device=self.device)
        if c is None:
            label = torch.multinomial(self.weights, n, replacement=True, generator=generator) if n else e.new_empty(0)
        else:
            y, given = self.joint.split_given(c)
            rows = whitening.rows(self._shortened(y)[0], given, None, torch.float64, scatter=False)
            label = torch.multinomial(sweep.posterior(components, rows, whitening), 1, generator=generator).squeeze(1)
            e = sweep.condition(components, rows, whitening, e, label)
        codes = torch.zeros(n, len(self.joint.codes), dtype=torch.int64, device=self.device)
        z = torch.empty_like(e)
        for j in label.unique().tolist():
            mine = (label == j).nonzero().squeeze(1)
            z[mine] = sweep.place(components, e[mine], j)
            for i, code in enumerate(self.joint.codes):
                if not code.given:
                    p = self.table[j, int(self.joint.offset[i]) :][: code.size].exp()
                    codes[mine, i] = torch.multinomial(p, len(mine), replacement=True, generator=generator)
        v = lengthen((whitening.raw(z) - self.location) / self.scale, self.reach)
        return self.joint.join(self.location + self.scale * v, codes)

    # -- criteria -------------------------------------------------------------------------------------------

    def aic(self, x: Tensor, c: Tensor | None = None, weight: Tensor | None = None) -> float:
        """Akaike's -2 log L + 2 p over the rows x [N, *E], lower is better.

        L is p(x | c), a bound of it where the likelihood is one; p is ``parameter_count()``.
        """
        return -2 * self._total(x, c, weight)[0] + 2 * self.parameter_count()

    def bic(self, x: Tensor, c: Tensor | None = None, weight: Tensor | None = None) -> float:
        """Schwarz's -2 log L + p log N; see ``aic``. N is the sum of weights."""
        total, n = self._total(x, c, weight)
        return -2 * total + self.parameter_count() * math.log(n)

    def _total(self, x: Tensor, c: Tensor | None, weight: Tensor | None) -> tuple[float, float]:
        lik = self.given(c).log_prob(x)
        assert isinstance(lik, Exact | LowerBound)
        w = torch.ones_like(lik.nats) if weight is None else weight.to(lik.nats)
        return float(w @ lik.nats), float(w.sum())


class Gaussian(Mixture):
    """One Gaussian (with a class: one each), the maximum of the likelihood after one sweep."""

    name = "gaussian"
    summary = "one multivariate Gaussian (times independent categories); one per class"
    taxonomy = "explicit density / tractable / Gaussian"
    paper = "Ghahramani, Jordan 1994 (missing values)"
    known_failures = {
        f"training helps:{case}": "to measure the data's scale is to fit a Gaussian: training has nothing to add"
        for case in ("binary image", "grey image", "two moons")
    }
    Config = GaussianConfig

    @classmethod
    def tiny(cls, space: Space) -> GaussianConfig:
        return GaussianConfig()


class GaussianMixture(Mixture, Encodes):
    """K Gaussians times categoricals, by EM."""

    name = "gmm"
    summary = "a mixture of Gaussians times categories, by EM; missing values and contexts by exact marginals"
    taxonomy = "explicit density / tractable / mixture"
    paper = "Dempster, Laird, Rubin 1977"
    Config = MixtureConfig

    @classmethod
    def tiny(cls, space: Space) -> MixtureConfig:
        return MixtureConfig(components=8)

    def rows_encode(self, x: Tensor, c: Tensor | None) -> Distribution:
        """p(component | c, x), grid values taken at the middle of their cells."""
        y, codes = self.joint.split(x, c)
        rows = self.rows(self._shortened(y)[0], codes)
        return OneHotCategorical(probs=sweep.posterior(self.components(), rows, self.whitening()))


class _Density(torch.autograd.Function):
    """log p [N] of coordinates y [N, c] and their codes, whose gradient has a closed form: the sweep works in place."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, codes: Tensor, model: Mixture) -> Tensor:
        ctx.model = model
        ctx.save_for_backward(y, codes)
        return sweep.log_density(model.components(), model.rows(y, codes), model.whitening())

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None]:
        y, codes = ctx.saved_tensors
        whitening = ctx.model.whitening()
        rows = whitening.rows(y, codes, None, torch.float64, scatter=False)
        slope = sweep.gradient(ctx.model.components(), rows, whitening)[:, : y.shape[1]]
        return weight[:, None] * slope, None, None


def _covariance(config: Config, d: int, k: int) -> Covariance:
    """What "auto" means: full where an EM sweep costs seconds."""
    if config.covariance != "auto":
        return config.covariance
    most = LARGEST_COVARIANCE if config.components == 1 else 2**18
    return "full" if k * d * d <= most else "diag"
