"""Normalising flows: p(y | h) = p(f(y; h)) |det df/dy| with f a chain of invertible transforms, and p a base density
(``transforms.bases``): a normal, Student's t, a mixture, or any model of reals.

    realnvp  affine coupling (Dinh, Sohl-Dickstein & Bengio 2017)
    maf      affine masked autoregressive (Papamakarios, Pavlakou & Murray 2017)
    nsf      rational-quadratic splines, coupling or autoregressive (Durkan et al. 2019)

Every chain may begin with a linear layer that starts as the whitening of the training data: a flow then
sets out from the full-covariance Gaussian, not from independent entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from pofx.core.abilities import Encodes, HasScore
from pofx.core.errors import UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Exact
from pofx.core.measure import Measure
from pofx.core.model import Model, serving
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, at_least
from pofx.core.requests import Dequantised, ExactLikelihood, Request, Sampler
from pofx.core.space import Space
from pofx.families.continuous import Continuous, ContinuousConfig
from pofx.nn.encoders import Encoded, vector
from pofx.spaces import Image
from pofx.transforms.base import Affine, Chain, Delta, LuLinear, Scalar, Split, Transform
from pofx.transforms.bases import Base, BaseKind, OfModel
from pofx.transforms.bases import base as base_of
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
        base: the density that samples start from. "student" has learned degrees of freedom, for heavy tails;
            "mixture" learned normals, for modes that are far apart.
        components: of the mixture.
    """

    layers: int = 5
    hidden: int = 128
    blocks: int = 2
    linear_up_to: int = 1024
    base: BaseKind = "normal"
    components: int = 8

    ranges = {"linear_up_to": AMOUNT}


class Flow(Continuous, Encodes, HasScore):
    """What the flows share: a subclass gives ``layers()``.

    Args:
        base: a density on R^d in place of the one that ``config`` names: a model of reals. (One that has another
            interface than models have is a ``transforms.bases.Base``.)
    """

    estimators = (ExactLikelihood, Dequantised)
    config: FlowConfig

    def __init__(
        self, config: FlowConfig, space: Space, context: Space | None = None, base: Base | Model | None = None
    ) -> None:
        super().__init__(config, space, context)
        self.whiten = LuLinear(self.dim) if self.dim <= config.linear_up_to else None
        self.flow = Chain([*([] if self.whiten is None else [self.whiten]), *self.layers()])
        own = base_of(config.base, self.dim, config.components) if base is None else base
        self.base: Base = OfModel(own, self.dim) if isinstance(own, Model) else own

    def layers(self) -> list[Transform]:
        """The chain after the whitening."""
        raise NotImplementedError

    def couplings(self, scalar: Scalar, scales: int = 1) -> list[Transform]:
        """Couplings with alternating masks; between scales half of the entries leave."""
        c, chain, half = self.config, list[Transform](), halves(self.space, self.dim)
        for scale in range(scales):
            for k in range(c.layers // scales + (scale < c.layers % scales)):
                # a single entry is always transformed
                chain.append(Coupling((half == (k % 2 == 0)) | (len(half) == 1), scalar, **self._size))
            if scale + 1 < scales and len(half) > 1:
                chain.append(Split(half))
                half = torch.arange(int(half.sum())) % 2 == 0
        return chain

    def autoregressions(self, scalar: Scalar) -> list[MaskedAutoregressive]:
        """Masked autoregressive layers, the order of the entries reversed from one to the next."""
        reverse = (i % 2 == 1 for i in range(self.config.layers))
        return [MaskedAutoregressive(self.dim, scalar, reverse=r, **self._size) for r in reverse]

    @property
    def _size(self) -> dict[str, int]:
        return {"context": self.width, "hidden": self.config.hidden, "blocks": self.config.blocks}

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if config.base != "mixture":
            yield "components"

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
            shrinkage = self.whiten.whiten(self.split(x, RowNoise.by_place(len(x), generator)).y)
            if shrinkage >= TOLD:
                self.remarks = [
                    f"{len(x):,} rows are few for {self.dim} columns: {self.name} starts from their covariance, shrunk "
                    f"by {shrinkage:.0%} towards independent columns."
                ]

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        return asked is not (Dequantised if self.preprocess.kind is Exact else ExactLikelihood)

    # -- hooks of Continuous ------------------------------------------------------------------------------

    def latents(self, y: Tensor, h: Encoded | None) -> tuple[Tensor, Tensor]:
        """z [N, d] of y [N, d], what left the chain early first, and log |det dz/dy| [N]."""
        step = self.flow(y, vector(h))
        return step.z if step.out is None else torch.cat([step.out, step.z], 1), step.log_term

    def of_latents(self, z: Tensor, h: Encoded | None) -> Tensor:
        """The y of z, differentiable in z, h and the parameters."""
        out, z = z.split([self.flow.leaving, self.dim - self.flow.leaving], 1)
        return self.flow.inverse(z, vector(h), out)

    def log_density(self, y: Tensor, h: Encoded | None) -> Tensor:
        """log p(y | h) [N] of y [N, d]."""
        z, log_det = self.latents(y, h)
        return log_det + self.base.log_prob(z, vector(h))

    def density(self, y: Tensor, h: Encoded | None, request: Request, noise: RowNoise) -> Exact:
        return Exact(self.log_density(y, h), Measure.lebesgue(self.dim))

    def draw(self, n: int, h: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        dtype = next(self.flow.parameters()).dtype
        return self.of_latents(self.base.sample(n, vector(h), generator).to(self.device, dtype), h)

    def objective(self, y: Tensor, h: Encoded | None, batch: Batch, generator: torch.Generator) -> Tensor:
        return -self.log_density(y, h)

    # -- what an invertible map gives ---------------------------------------------------------------------

    def rows_encode(self, x: Tensor, c: Encoded | None) -> Distribution:
        """z = f(y): a point, distributed as the base over the data if the flow fits. Discrete entries are taken at
        the midpoint of their cell, absent ones at zero."""
        parts = self.split(x)
        return Delta(self.latents(parts.y, self.given_codes(parts.codes, c))[0])

    def rows_score(self, x: Tensor, c: Encoded | None) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            parts = self.split(x)
            nats = self.log_density(parts.y, c) + parts.log_jacobian
            (score,) = torch.autograd.grad(nats.sum(), x)
        return score


@dataclass(frozen=True)
class RealNvpConfig(FlowConfig):
    """Options of ``realnvp``, beside those of every flow.

    Attributes:
        scales: parts of the chain; after each but the last, half of the entries that are left leave it for the base
            (Dinh et al. 2017, section 3.6), so that the next part works on fewer.
    """

    layers: int = 8
    scales: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales > self.layers:
            raise UsageError(
                f"{self.layers} layers make no {self.scales} scales.", "Give more layers, or fewer scales."
            )


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
    config: RealNvpConfig

    def layers(self) -> list[Transform]:
        return self.couplings(Affine(), self.config.scales)


class Maf(Flow):
    """Affine autoregressive layers; the order of the entries is reversed between them."""

    name = "maf"
    summary = "an invertible chain of affine autoregressive layers to a Gaussian: fast density, slower samples"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Papamakarios, Pavlakou & Murray 2017, Masked Autoregressive Flow for Density Estimation"
    Config = FlowConfig

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


@singledispatch
def halves(space: Space, dim: int) -> Tensor:
    """The entries [dim] bool that a coupling transforms first, the others second: every other one."""
    return torch.arange(dim) % 2 == 0


@halves.register
def _(space: Image, dim: int) -> Tensor:
    """A checkerboard over pixels."""
    i, j = torch.arange(space.height)[:, None], torch.arange(space.width)
    return ((i + j) % 2 == 0).expand(space.event_shape).flatten()
