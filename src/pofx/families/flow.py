"""Normalising flows: p(y | h) = p(f(y; h)) |det df/dy| with f a chain of invertible transforms, and p a base density
(``transforms.bases``): a normal, Student's t, a mixture, or any model of reals.

    realnvp  affine coupling (Dinh, Sohl-Dickstein & Bengio 2017)
    maf      affine masked autoregressive (Papamakarios, Pavlakou & Murray 2017)
    iaf      the same layers the other way round (Kingma et al. 2016)

Chains over vectors may begin with a linear layer that starts as the whitening of the training data: a flow then sets
out from the full-covariance Gaussian, not from independent entries. Chains of convolutions do without.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from pofx.codecs.real import preprocess
from pofx.core.abilities import Ability, Encodes, FromLatents, HasScore
from pofx.core.errors import NotInverted, UsageError
from pofx.core.family import serving
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Available, Exact
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT
from pofx.core.requests import Dequantised, ExactLikelihood, Request, Sampler
from pofx.core.space import Space
from pofx.families.continuous import Continuous, ContinuousConfig
from pofx.nn.encoders import Encoded, vector
from pofx.spaces import Image
from pofx.transforms.base import Affine, Chain, Delta, Inverse, LuLinear, Scalar, Split, Transform
from pofx.transforms.bases import Base, BaseKind, OfModel
from pofx.transforms.bases import base as base_of
from pofx.transforms.coupling import Coupling
from pofx.transforms.masked import MaskedAutoregressive
from pofx.transforms.multiscale import ConvCoupling, Shape, checkerboard, halvings, multiscale

TOLD = 0.05  # the least shrinkage of a covariance that is told
ROWS_TO_START = 512  # of the training data, from which norms start
WATCHED = 8  # of the rows of a draw, which are taken back to their latents
MOST_SCALES = 3  # unless one asks for more
MOST_MISS = 0.1  # by which they may differ, of 1 + |z|
AT_FAULT = "Weights of the model are at fault: fit again, with a lower rate (recipe.lr) or fewer layers."


@dataclass(frozen=True)
class FlowConfig(ContinuousConfig):
    """Options of every flow.

    Attributes:
        layers: transforms in the chain.
        hidden: width of the nets.
        blocks: hidden layers of a masked net, residual blocks of a coupling net.
        base: the density that samples start from. "student" has learned degrees of freedom, for heavy tails;
            "mixture" learned normals, for modes that are far apart.
        components: of the mixture.
    """

    layers: int = 5
    hidden: int = 128
    blocks: int = 2
    base: BaseKind = "normal"
    components: int = 8


@dataclass(frozen=True)
class VectorFlowConfig(FlowConfig):
    """Options of flows of vectors.

    Attributes:
        linear_up_to: largest d that gets linear layers: the one that starts as a whitening, and those of ``nsf``.
    """

    linear_up_to: int = 1024

    ranges = {"linear_up_to": AMOUNT}


class Flow(Continuous, Encodes, FromLatents, HasScore):
    """What the flows share: a subclass gives ``layers()``.

    Args:
        base: a density on R^d in place of the one that ``config`` names: a model of reals. (One that has another
            interface than models have is a ``transforms.bases.Base``.)
    """

    estimators: ClassVar[tuple[type[Request], ...]] = (ExactLikelihood, Dequantised)
    maximises = True
    config: FlowConfig

    def __init__(
        self, config: FlowConfig, space: Space, context: Space | None = None, base: Base | Model | None = None
    ) -> None:
        super().__init__(config, space, context)
        self.whiten = LuLinear(self.dim) if self.whitens() else None
        self.flow = Chain([*([] if self.whiten is None else [self.whiten]), *self.layers()])
        own = base_of(config.base, self.dim, config.components) if base is None else base
        self.base: Base = OfModel(own, self.dim) if isinstance(own, Model) else own

    def layers(self) -> list[Transform]:
        """The chain after the whitening."""
        raise NotImplementedError

    def whitens(self) -> bool:
        """Does the chain begin with a linear layer?"""
        return isinstance(self.config, VectorFlowConfig) and self.dim <= self.config.linear_up_to

    def couplings(self, scalar: Scalar, scales: int = 1, half: Tensor | None = None, **size: Any) -> list[Transform]:
        """Couplings with alternating masks, ``half`` first; between scales half of the entries leave."""
        c, chain, size = self.config, list[Transform](), self._size | size
        half = halves(self.space, self.dim) if half is None else half
        for scale in range(scales):
            for k in range(c.layers // scales + (scale < c.layers % scales)):
                # a single entry is always transformed
                chain.append(Coupling((half == (k % 2 == 0)) | (len(half) == 1), scalar, **size))
            if scale + 1 < scales and len(half) > 1:
                chain.append(Split(half))
                half = torch.arange(int(half.sum())) % 2 == 0
        return chain

    def autoregressions(self, scalar: Scalar, dim: int, **size: int) -> list[Transform]:
        """Masked autoregressive layers, the order of the entries reversed from one to the next."""
        reverse, size = (i % 2 == 1 for i in range(self.config.layers)), self._size | size
        return [MaskedAutoregressive(dim, scalar, reverse=r, **size) for r in reverse]

    @classmethod
    def lacks(cls, ability: type[Ability], space: Space) -> str | None:
        if ability is FromLatents and preprocess(space).code_sizes:
            return "its categories and gaps have no latents. Drop those columns."
        return super().lacks(ability, space)

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
        if self.whiten is None:
            rows = slice(None, None, -(-len(x) // ROWS_TO_START))
            parts = self.split(x[rows], RowNoise.by_place(len(x[rows]), generator))
            e = None if c is None else self.encode_context(c[rows])
            self.flow.prepare(parts.y, vector(self.given_codes(parts.codes, e)))
        else:
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

    def density(self, y: Tensor, h: Encoded | None, request: Request, noise: RowNoise) -> Available:
        return Exact(self.log_density(y, h), Measure.lebesgue(self.dim))

    def draw(self, n: int, h: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        dtype = next(self.flow.parameters()).dtype
        z = self.base.sample(n, vector(h), generator).to(self.device, dtype)
        y = self.of_latents(z, h)
        self.watch(z, y, h)
        return y

    def watch(self, z: Tensor, y: Tensor, h: Encoded | None) -> None:
        """Raise NotInverted unless y = f^-1(z) [N, d] is finite, and f(y) = z for the first few rows.

        A layer that shrinks a direction to next to nothing has an inverse on paper, and none in so many digits.
        """
        self.check_finite(y)
        self.check_back(self.latents(y[:WATCHED], None if h is None else h[:WATCHED])[0], z[:WATCHED])

    def check_finite(self, y: Tensor) -> None:
        if bad := int((~y.isfinite().all(1)).sum()):
            raise NotInverted(f"{bad} of {len(y)} rows have no finite inverse.", AT_FAULT)

    def check_back(self, again: Tensor, z: Tensor) -> None:
        miss = ((again - z).abs() / (1 + z.abs())).amax().item()
        if not miss <= MOST_MISS:
            raise NotInverted(f"Rows come back from their inverse off by {miss:.2g} of 1 + |z|.", AT_FAULT)

    def objective(self, y: Tensor, h: Encoded | None, batch: Batch, generator: torch.Generator) -> Tensor:
        return -self.log_density(y, h)

    def rows_per_pass(self) -> int:
        """Convolutions hold some hundred numbers of each pixel: small batches stay in cache."""
        convolves = any(isinstance(t, ConvCoupling) for t in self.flow.transforms)
        return max(1, 2**18 // self.dim) if convolves else super().rows_per_pass()

    # -- what an invertible map gives ---------------------------------------------------------------------

    def rows_encode(self, x: Tensor, c: Encoded | None) -> Distribution:
        """z = f(y): a point, distributed as the base over the data if the flow fits. Discrete entries are taken at
        the midpoint of their cell, absent ones at zero."""
        parts = self.split(x)
        return Delta(self.latents(parts.y, self.given_codes(parts.codes, c))[0])

    @property
    def latent_dims(self) -> int:
        return self.dim

    def rows_from_latents(self, z: Tensor, c: Encoded | None) -> Tensor:
        none = torch.zeros(len(z), 0, dtype=torch.int64, device=z.device)
        return self.preprocess.join(none, self.of_latents(z.to(next(self.parameters()).dtype), c))

    def rows_score(self, x: Tensor, c: Encoded | None) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            parts = self.split(x)
            nats = self.log_density(parts.y, c) + parts.log_jacobian
            (score,) = torch.autograd.grad(nats.sum(), x)
        return score


@dataclass(frozen=True)
class Scales(FlowConfig):
    """Of flows whose chain has parts.

    Attributes:
        scales: parts of the chain; after each but the last, half of the entries that are left leave it for the base
            (Dinh et al. 2017, section 3.6), so that the next part works on fewer [default: 1; over images that are
            halved from part to part as many as their sides allow, at most 3].
    """

    scales: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.scales or 1) > self.layers:
            raise UsageError(
                f"{self.layers} layers make no {self.scales} scales.", "Give more layers, or fewer scales."
            )

    def image_scales(self, space: Space) -> int:
        """How many, over images."""
        assert space.pixels is not None
        return self.scales or max(1, min(MOST_SCALES, self.layers, halvings(*space.pixels[:2])))

    def refuses(self, space: Space) -> str | None:
        """Why images of this size have no such scales, or None."""
        assert space.pixels is not None
        most = max(1, halvings(*space.pixels[:2]))
        if (self.scales or 1) <= most:
            return None
        sides = "×".join(map(str, space.pixels[:2]))
        return f"{sides} pixels make at most {most} scales, not {self.scales}. Leave out scales, or lower them."


@dataclass(frozen=True)
class RealNvpConfig(VectorFlowConfig, Scales):
    """Options of ``realnvp``, beside those of every flow.

    Attributes:
        net: "auto" is conv for images with even sides of at least 16, else mlp.
    """

    layers: int = 8
    net: Literal["auto", "mlp", "conv"] = "auto"


class RealNvp(Flow):
    """Affine couplings with alternating masks: even and odd columns, a checkerboard over pixels.

    Over images the nets may be convolutional (section 3.6 of the paper): on each scale blocks of 2 x 2 pixels become
    channels, of which first those of a checkerboard and then those of a row of each block are transformed given the
    others. The nets of both see folded pixels (of the checkerboard, the paper's see the pixels themselves).
    """

    name = "realnvp"
    summary = "an invertible chain of affine coupling layers from a Gaussian"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Dinh, Sohl-Dickstein & Bengio 2017, Density estimation using Real NVP"
    known_failures = {
        "every parameter learns:small mixed": "one numeric column leaves a coupling layer no other part to look at"
    }
    Config = RealNvpConfig
    config: RealNvpConfig

    @classmethod
    def convolves(cls, space: Space, config: RealNvpConfig) -> bool:
        if config.net != "auto" or not space.pixels:
            return config.net == "conv"
        return min(space.pixels[:2]) >= 16 and halvings(*space.pixels[:2]) > 0

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if config.net == "conv" and not space.pixels:
            return "convolutions are for images. Leave net at auto."
        if reason := super().refuses(space, context, config):
            return reason
        return config.refuses(space) if cls.convolves(space, config) else None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if cls.convolves(space, config):
            yield "linear_up_to"

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        if not space.pixels or space.symbols != 2:  # a few cases tell
            return {}
        tiny, laws = cls.tiny(space), ("variational", "truncated-normal")
        convolutions = replace(tiny, net="conv", scales=None)
        return {"convolutions": convolutions} | {law: replace(tiny, dequantise=law) for law in laws}

    def whitens(self) -> bool:
        return super().whitens() and not self.convolves(self.space, self.config)

    def layers(self) -> list[Transform]:
        config, shape = self.config, self.space.pixels
        if shape is None or not self.convolves(self.space, config):
            return self.couplings(Affine(), config.scales or 1)

        def couple(shape: Shape, mask: Tensor) -> Transform:
            return ConvCoupling(shape, mask, Affine(), kernel=3, **self._size)

        def steps(shape: Shape, pixels: tuple[int, int], count: int) -> Iterable[Transform]:
            squares, rows = checkerboard(*pixels, shape[2] // math.prod(pixels)), torch.arange(shape[2]) < shape[2] // 2
            for k in range(count):
                half = squares if k < (count + 1) // 2 else rows
                yield couple(shape, (half == (k % 2 == 0)) | (shape[2] == 1))

        return multiscale(shape, config.layers, config.image_scales(self.space), steps, couple)


class Maf(Flow):
    """Affine autoregressive layers; the order of the entries is reversed between them."""

    name = "maf"
    summary = "an invertible chain of affine autoregressive layers to a Gaussian: fast density, slower samples"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Papamakarios, Pavlakou & Murray 2017, Masked Autoregressive Flow for Density Estimation"
    Config = VectorFlowConfig

    def layers(self) -> list[Transform]:
        return self.autoregressions(Affine(), self.dim)


class Iaf(Flow):
    """The layers of ``maf`` from latents to data: samples take one pass of each, a density goes entry by entry."""

    name = "iaf"
    summary = "an invertible chain of affine autoregressive layers from a Gaussian: fast samples, slower density"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016, Inverse Autoregressive Flow"
    Config = VectorFlowConfig

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, layers=1, hidden=32, blocks=1, codes_hidden=32)

    def layers(self) -> list[Transform]:
        return [Inverse(layer) for layer in self.autoregressions(Affine(), self.dim)]

    def density(self, y: Tensor, h: Encoded | None, request: Request, noise: RowNoise) -> Exact:
        """Here an inverse is solved, and watched."""
        z, log_det = self.latents(y, h)
        self.check_back(self.of_latents(z[:WATCHED], None if h is None else h[:WATCHED]), y[:WATCHED])
        return Exact(log_det + self.base.log_prob(z, vector(h)), Measure.lebesgue(self.dim))

    def watch(self, z: Tensor, y: Tensor, h: Encoded | None) -> None:
        self.check_finite(y)


@singledispatch
def halves(space: Space, dim: int) -> Tensor:
    """The entries [dim] bool that a coupling transforms first, the others second: every other one."""
    return torch.arange(dim) % 2 == 0


@halves.register
def _(space: Image, dim: int) -> Tensor:
    """A checkerboard over pixels."""
    i, j = torch.arange(space.height)[:, None], torch.arange(space.width)
    return ((i + j) % 2 == 0).expand(space.event_shape).flatten()
