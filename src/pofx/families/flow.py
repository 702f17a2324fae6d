"""Normalising flows: p(y | h) = N(f(y; h); 0, I) |det df/dy| with f a chain of invertible transforms, and N of the
tails in ``nn.tails``: no value is out of the question.

    realnvp  affine coupling (Dinh, Sohl-Dickstein & Bengio 2017)
    maf      affine masked autoregressive (Papamakarios, Pavlakou & Murray 2017)
    nsf      rational-quadratic splines, coupling or autoregressive (Durkan et al. 2019)

Every chain may begin with a linear layer that starts as the whitening of the training data: a flow then
sets out from the full-covariance Gaussian, not from independent entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from pofx.core.errors import Unsupported
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Exact, LowerBound
from pofx.core.measure import Measure
from pofx.core.model import Budget, Sampler, serving
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, at_least
from pofx.core.space import Space
from pofx.families.continuous import Continuous, ContinuousConfig
from pofx.nn.encoders import Encoded, vector
from pofx.nn.tails import lengthen, normal_log_prob
from pofx.spaces import Image
from pofx.transforms.base import Affine, Chain, Delta, LuLinear, Scalar, Transform
from pofx.transforms.coupling import Coupling
from pofx.transforms.masked import MaskedAutoregressive
from pofx.transforms.spline import MOST_BINS, Spline

TOLD = 0.05  # the least shrinkage of a covariance that is told


@dataclass(frozen=True)
class FlowConfig(ContinuousConfig):
    """Options of every flow.

    Attributes:
        layers: transforms in the chain.
        hidden: width of the nets.
        blocks: hidden layers of a masked net, residual blocks of a coupling net.
        linear_up_to: largest d that gets linear layers: the one that starts as a whitening, and those of ``nsf``.
    """

    layers: int = 5
    hidden: int = 128
    blocks: int = 2
    linear_up_to: int = 1024

    ranges = {"linear_up_to": AMOUNT}


class Flow(Continuous):
    """Base of the flows: a subclass gives ``layers()``."""

    claims = frozenset({Exact, LowerBound})
    latent = True
    has_score = True
    config: FlowConfig

    def __init__(self, config: FlowConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.uses_draws = self.preprocess.kind is not Exact  # type: ignore[misc]
        self.whiten = LuLinear(self.dim) if self.dim <= config.linear_up_to else None
        self.flow = Chain([*([] if self.whiten is None else [self.whiten]), *self.layers()])

    def layers(self) -> list[Transform]:
        """The chain after the whitening."""
        raise NotImplementedError

    def couplings(self, scalar: Scalar) -> list[Transform]:
        """Couplings with alternating masks."""
        c = self.config
        size = {"context": self.width, "hidden": c.hidden, "blocks": c.blocks}
        return [Coupling(mask, scalar, **size) for mask in masks(self.space, self.dim, c.layers)]

    def autoregressions(self, scalar: Scalar) -> list[MaskedAutoregressive]:
        """Masked autoregressive layers, the order of the entries reversed from one to the next."""
        c = self.config
        size = {"context": self.width, "hidden": c.hidden, "blocks": c.blocks}
        return [MaskedAutoregressive(self.dim, scalar, reverse=i % 2 == 1, **size) for i in range(c.layers)]

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        # in many dimensions, many steps on few rows: a layer's numbers stay in cache
        return Recipe(batch=max(32, min(256, 2**16 // math.prod(space.event_shape))), lr=1e-3, clip=10.0, ema=0.99)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, layers=2, hidden=32, blocks=1, codes_hidden=32)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        if self.whiten is not None:
            shrinkage = self.whiten.whiten(self.noisy_split(x, RowNoise.by_place(len(x), generator)).y)
            if shrinkage >= TOLD:
                self.remarks = [
                    f"{len(x):,} rows are few for {self.dim} columns: {self.name} starts from their covariance, shrunk "
                    f"by {shrinkage:.0%} towards independent columns."
                ]

    # -- hooks of Continuous ------------------------------------------------------------------------------

    def log_density(self, y: Tensor, h: Encoded | None) -> Tensor:
        """log p(y | h) [N] of y [N, d]."""
        z, log_det = self.flow(y, vector(h))
        return log_det + normal_log_prob(z).sum(1)

    def density(self, y: Tensor, h: Encoded | None, budget: Budget, noise: RowNoise) -> Exact:
        return Exact(self.log_density(y, h), Measure.lebesgue(self.dim))

    def draw(self, n: int, h: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.dim, generator=generator, device=generator.device).to(self.device)
        return self.flow.inverse(lengthen(z), vector(h))

    def objective(self, y: Tensor, h: Encoded | None, batch: Batch, generator: torch.Generator) -> Tensor:
        return -self.log_density(y, h)

    # -- what an invertible map gives ---------------------------------------------------------------------

    def rows_encode(self, x: Tensor, c: Encoded | None) -> Distribution:
        """z = f(y): a point, N(0, I) over the data if the flow fits. Discrete entries are taken at the
        midpoint of their cell, absent ones at zero."""
        parts = self.split(x)
        z, _ = self.flow(parts.y, vector(self.given_codes(parts.codes, c)))
        return Delta(z)

    def rows_score(self, x: Tensor, c: Encoded | None) -> Tensor:
        if self.preprocess.kind is not Exact:
            raise Unsupported(
                f"The score of {self.name} needs complete real columns; this space is {self.space}.",
                "Declare the columns real, or drop those that are not.",
            )
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self.split(x).y  # whose log-Jacobian is constant
            (score,) = torch.autograd.grad(self.log_density(y, c).sum(), x)
        return score


@dataclass(frozen=True)
class RealNvpConfig(FlowConfig):
    layers: int = 8


class RealNvp(Flow):
    """Affine couplings with alternating masks: even and odd columns, a checkerboard over pixels."""

    name = "realnvp"
    summary = "an invertible chain of affine coupling layers from a Gaussian"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Dinh, Sohl-Dickstein & Bengio 2017, Density estimation using Real NVP"
    known_failures = {
        "every parameter learns:small mixed": "one numeric column leaves a coupling layer no other part to look at"
    }
    Config = RealNvpConfig

    def layers(self) -> list[Transform]:
        return self.couplings(Affine())


@dataclass(frozen=True)
class MafConfig(FlowConfig):
    layers: int = 5


class Maf(Flow):
    """Affine autoregressive layers; the order of the entries is reversed between them."""

    name = "maf"
    summary = "an invertible chain of affine autoregressive layers to a Gaussian: fast density, slower samples"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Papamakarios, Pavlakou & Murray 2017, Masked Autoregressive Flow for Density Estimation"
    Config = MafConfig

    def layers(self) -> list[Transform]:
        return [*self.autoregressions(Affine())]


@dataclass(frozen=True)
class NsfConfig(FlowConfig):
    """Options of ``nsf``, beside those of every flow.

    Attributes:
        kind: "coupling" samples in one pass, "autoregressive" is the stronger density.
        bins: of each spline.
    """

    kind: Literal["coupling", "autoregressive"] = "autoregressive"
    bins: int = 8

    ranges = {"bins": at_least(1, MOST_BINS)}


class Nsf(Flow):
    """Rational-quadratic spline layers with a learned linear map before each."""

    name = "nsf"
    summary = "an invertible chain of monotone rational-quadratic splines to a Gaussian"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Durkan, Bekasov, Murray & Papamakarios 2019, Neural Spline Flows"
    Config = NsfConfig
    config: NsfConfig

    def layers(self) -> list[Transform]:
        scalar = Spline(self.config.bins)
        coupled = self.config.kind == "coupling"
        chain = self.couplings(scalar) if coupled else self.autoregressions(scalar)
        if self.dim > self.config.linear_up_to:
            return [*chain]
        return [t for layer in chain for t in (layer, LuLinear(self.dim))]

    def rows_per_pass(self) -> int:
        """A layer holds some arrays of all splines' parameters."""
        return max(1, min(super().rows_per_pass(), 2**23 // (self.dim * 3 * self.config.bins)))


def masks(space: Space, dim: int, count: int) -> list[Tensor]:
    """``count`` alternating masks [dim] of the entries to transform: every other column, a checkerboard over
    pixels. The single entry of dim = 1 always is."""
    parity = torch.arange(dim) % 2
    if isinstance(space, Image):
        i, j = torch.arange(space.height)[:, None], torch.arange(space.width)
        parity = ((i + j) % 2).expand(space.event_shape).flatten()
    if dim == 1:
        return [torch.ones(1, dtype=torch.bool)] * count
    return [parity == k % 2 for k in range(count)]
