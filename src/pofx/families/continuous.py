"""The common part of families that model a density on R^d: flows, diffusion, flow matching.

    p(x | c) = P(codes | c) p(y | codes, c) |dy / dx|

``codecs.real`` splits a row into discrete codes and a real vector y; a masked autoregressive net
models the codes exactly; the family models y given a vector h that holds the codes and the context. The
kind is the join of the preprocessing's (exact only for complete real columns, else a lower bound) and the
family's own.
"""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pofx.codecs.real import Parts, preprocess
from pofx.core.abilities import Ability, HasNoisedScore, HasScore, ShowsWay
from pofx.core.errors import UsageError
from pofx.core.learner import Batch, GradientLearner, Recipe
from pofx.core.likelihood import Available, Exact, join, make, number
from pofx.core.measure import Measure
from pofx.core.noise import RowNoise
from pofx.core.options import Range, at_least
from pofx.core.requests import Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import Conditioned, ContextOptions
from pofx.nn.causal import MaskedMlp
from pofx.nn.encoders import Encoded, no_encoder, vector
from pofx.nn.sites import heads_for
from pofx.spaces import Category, Table
from pofx.transforms.base import Noise
from pofx.transforms.dequantise import LawName


@dataclass(frozen=True)
class ContinuousConfig(ContextOptions):
    """Options of every family on R^d; a family's own Config inherits them.

    Attributes:
        draws: Monte Carlo draws per datum of the preprocessing's noise, where it has any.
        logit: images go through logit(alpha + (1 - 2 alpha) x) for this alpha; 0: they do not.
        codes_hidden: width of the net of the discrete part of a table (two hidden layers).
        dequantise: the noise that spreads integers, grids and pixels over their cells: "uniform"; "truncated-normal"
            (Zheng et al. 2023); "variational", learned with the flow, for a tighter bound (Ho et al. 2019).
    """

    draws: int = 8
    logit: float = 0.0
    codes_hidden: int = 128
    dequantise: LawName = "uniform"

    ranges = {"draws": at_least(2), "logit": Range(0, 0.5, below=True)}


class Continuous(Conditioned):
    """Base of the families on R^d. A subclass gives ``density``, ``draw`` and ``objective``.

    Its ``__init__`` calls ours first, then builds nets of the sizes ``self.dim`` (d, the length of y) and
    ``self.width`` (of h; 0 where h is None). Set ``shared_scale`` for images whose pixels are
    standardised by one location and scale, and ``maximises`` where the objective is a likelihood.
    """

    shared_scale: ClassVar[bool] = False
    maximises: ClassVar[bool] = False  # is its objective minus the log-density of y?

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.preprocess = preprocess(
            space, logit=config.logit, shared_scale=self.shared_scale, dequantise=config.dequantise
        )
        sizes = self.preprocess.code_sizes
        self.codes = Codes(sizes, config.codes_hidden, self.known) if sizes else None
        self.dim = self.preprocess.dim
        self.width = self.known + (self.codes.features if self.codes is not None else 0)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        if not (space.columns or space.pixels) or space.values:
            return "it models a density on R^d. Fit a classifier for labels."
        if not space.pixels and all(isinstance(c, Category) for c in space.columns):
            return "no column is numeric, so there is no density to model. Fit made, independent or gmm."
        if config.dequantise == "variational" and not cls.maximises:
            return "noise is learned by a likelihood, which is not what it is trained on. Leave dequantise at uniform."
        return None

    @classmethod
    def lacks(cls, ability: type[Ability], space: Space) -> str | None:
        if ability in (HasScore, HasNoisedScore, ShowsWay) and space.measure != Measure.lebesgue(space.dims):
            return "it needs complete real columns. Declare the columns real, or drop those that are not."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if not space.pixels:
            yield "logit"
        if not (space.columns or space.pixels):
            return
        pre = preprocess(space)
        if not pre.code_sizes:
            yield "codes_hidden"
        if pre.kind is Exact:
            yield "draws"
        if pre.cells is None:
            yield "dequantise"

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        self.preprocess.fit(x, weight, generator)
        if self.codes is not None:
            self.codes.heads.prepare(self.preprocess.split(x).codes.double(), weight)

    def learner(self, recipe: Recipe) -> GradientLearner:
        return GradientLearner(self, recipe, self._terms)

    # -- what a family writes ---------------------------------------------------------------------------

    @abstractmethod
    def density(self, y: Tensor, h: Encoded | None, request: Request, noise: RowNoise) -> Available:
        """log p(y | h) of y [N, d] (float32, standardised) given h, its vector [N, width], or None; nats [N].

        Its measure is of no account. Where preprocessing is noisy this is called once per draw of the
        noise (``request.draws`` in all), and the spread between calls gives the Monte Carlo error.
        """

    @abstractmethod
    def draw(self, n: int, h: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """n draws of y [n, d], row i given h[i]."""

    @abstractmethod
    def objective(self, y: Tensor, h: Encoded | None, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss [B] of y [B, d] given h; noise from ``batch.randn`` and ``batch.rand`` only."""

    # -- the contract ---------------------------------------------------------------------------------------

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise) -> Available:
        k = getattr(request, "draws", 0)
        if (self.preprocess.kind is Exact) != (k == 0):
            need = "needs no draws" if k else "needs draws of the noise that dequantises it"
            raise UsageError(f"{self.space} {need}; draws is {k}.", f"Give {0 if k else '2 or more'}.")
        if k == 0:
            return self._one_draw(self.split(x), c, request, noise)
        each = [number(self._one_draw(self.spread(x, noise), c, request, noise)) for _ in range(k)]
        total, error = reduce(operator.add, each) * (1 / k), torch.stack([d.nats for d in each]).std(0) / math.sqrt(k)
        kind = join(self.preprocess.kind, total.kind)
        return make(kind, total.nats, self.space.measure, error, k, total.note, total.shared)

    def split(self, x: Tensor, noise: Noise | None = None) -> Parts:
        """``preprocess.split`` with y of the nets' dtype."""
        parts = self.preprocess.split(x, noise)
        return replace(parts, y=parts.y.to(next(self.parameters()).dtype))

    def spread(self, x: Tensor, noise: Noise) -> Parts:
        """``split`` for a density, whatever the net learns from: grids are spread over their cells."""
        return self.split(x, noise)

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        codes = torch.zeros(n, 0, dtype=torch.int64, device=self.device)
        if self.codes is not None:
            codes = self.codes.sample(n, vector(c), generator)
        y = self.draw(n, self.given_codes(codes, c), sampler, generator)
        return self.preprocess.join(codes, y)

    def in_raw(self, lik: Available, y: Tensor) -> tuple[Tensor, Available]:
        """Rows x [N, *E] that y [N, *] of complete real columns stands for, and their likelihood by that of y."""
        y = y.flatten(1)
        x = self.preprocess.join(torch.zeros(len(y), 0, dtype=torch.int64, device=y.device), y)
        return x, replace(lik, nats=lik.nats.double() + self.split(x).log_jacobian, measure=self.space.measure)

    def _one_draw(self, parts: Parts, e: Encoded | None, request: Request, noise: RowNoise) -> Available:
        """The likelihood of rows split with one draw of the noise."""
        lik = self.density(parts.y, self.given_codes(parts.codes, e), request, noise)
        nats = lik.nats.double() + parts.log_jacobian
        if self.codes is not None:
            nats = nats + self.codes.log_prob(parts.codes, vector(e))
        return replace(lik, nats=nats, measure=self.space.measure)

    def _terms(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The joint loss: the codes' negative log-likelihood plus the family's objective."""
        e, parts = self.batch_context(batch, generator), self.split(batch.x, BatchNoise(batch, generator))
        loss = self.objective(parts.y, self.given_codes(parts.codes, e), batch, generator)
        if self.preprocess.learns:
            loss = loss - parts.log_jacobian
        if self.codes is None:
            return {"loss": loss}
        codes = -self.codes.log_prob(parts.codes, vector(e))
        return {"loss": loss + codes, "codes": codes}

    def given_codes(self, codes: Tensor, e: Encoded | None) -> Encoded | None:
        """h: the encoded context, its vector [N, width] after the embedded codes."""
        if self.codes is None:
            return e
        embedded = self.codes.embed(codes)
        return Encoded(embedded) if e is None else replace(e, vector=torch.cat([embedded, e.vector], 1))


@dataclass(frozen=True)
class BatchNoise:
    """The noise of a training batch, from one generator for all processes."""

    batch: Batch
    generator: torch.Generator

    def rand(self, *shape: int) -> Tensor:
        return self.batch.rand(*shape, generator=self.generator)

    def randn(self, *shape: int) -> Tensor:
        return self.batch.randn(*shape, generator=self.generator)


class Codes(nn.Module):
    """P(codes | e), exact: a masked autoregressive net over the codes with a softmax per code.

    codes [N, m] int64 with values below ``sizes``; e [N, context] or None.

    Attributes:
        features: width of ``embed``.
    """

    def __init__(self, sizes: tuple[int, ...], hidden: int, context: int) -> None:
        super().__init__()
        columns = tuple(Category(f"code {i}", tuple(map(str, range(size)))) for i, size in enumerate(sizes))
        self.heads = heads_for(Table(columns))
        self.features = sum(self.heads.features)
        self.net = MaskedMlp(self.heads.features, self.heads.params, (hidden, hidden), context=context, residual=True)

    def embed(self, codes: Tensor) -> Tensor:
        """One-hot, [N, features]."""
        return self.heads.embed(codes)

    def log_prob(self, codes: Tensor, e: Tensor | None) -> Tensor:
        return self.heads.log_prob(self.net(self.embed(codes), e), codes).sum(-1)

    def sample(self, n: int, e: Tensor | None, generator: torch.Generator) -> Tensor:
        codes = torch.empty(n, self.heads.sites, dtype=torch.int64, device=self.net.out.weight.device)
        return self.heads.visit(self.net.walk(n, e), codes, generator)
