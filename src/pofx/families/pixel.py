"""Autoregressive models of images: a causal net reads pixels row by row, the channels of a pixel in turn.

    log p(x | c) = sum_{h, w} sum_k log p(x_{k,h,w} | pixels above and to the left, channels before k, c)

    pixelcnn        masked convolutions (van den Oord, Kalchbrenner & Kavukcuoglu 2016)
    gated-pixelcnn  a vertical and a horizontal stack, gated: no blind spot (van den Oord et al. 2016)
    pixelcnn++      two shifted streams of gated resnets, a joint mixture of a pixel's channels (Salimans et al. 2017)
    pixelrnn        LSTMs along rows or diagonals (van den Oord, Kalchbrenner & Kavukcuoglu 2016)

Likelihoods are exact. Every value has a head of ``nn.heads`` whose zero is the training data's marginal at that
place, and the nets start at zero. Sampling computes every feature once (``nn.pixel``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.family import serving
from pofx.core.learner import Recipe
from pofx.core.options import at_least
from pofx.core.space import Space
from pofx.families.autoregressive import Autoregressive
from pofx.families.conditioned import ContextOptions, unused
from pofx.nn.heads import LevelLogistics
from pofx.nn.pixel import PixelNet, ResidualNet, Shape
from pofx.nn.pixelcnn import GatedPixelCnn, PixelCnnBlock
from pofx.nn.pixelplus import ColourMixture, ColourWalk, PixelCnnPlus
from pofx.nn.pixelrnn import DiagonalLstm, RowLstm
from pofx.nn.sites import Heads, ImageKind, Steps, heads_for, mixes


@dataclass(frozen=True)
class PixelConfig(ContextOptions):
    """Options of every family here.

    Attributes:
        head: of a level: bernoulli, categorical, logistic (a mixture of discretised logistics), or auto, by the
            number of levels.
        components: of that mixture.
        hidden: features of the net's maps (rounded up to a multiple of the image's channels).
        layers: blocks of the net.
    """

    head: ImageKind = "auto"
    components: int = 8
    hidden: int = 32
    layers: int = 5


class Pixel(Autoregressive):
    """Base of the families here; a subclass builds ``net``."""

    net: PixelNet
    config: PixelConfig

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        channels, height, width = space.event_shape
        self.net = self.build((channels, height, width), self.heads.params[0])

    @abstractmethod
    def build(self, shape: Shape, params: int) -> PixelNet:
        """The net of images of a shape (C, H, W), with so many parameters per value."""

    def sizes(self, *more: str) -> dict[str, int]:
        """Those options of the net that all of them have, and more."""
        return {k: getattr(self.config, k) for k in ("hidden", "layers", *more)} | {"context": self.known}

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if not space.pixels:
            return "it models images. Fit made or window-mlp."
        return super().refuses(space, context, config)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from unused(context)
        if not mixes(space, config.head):
            yield "components"

    @classmethod
    def choose_heads(cls, config: Any, space: Space) -> Heads:
        return heads_for(space, image=config.head, components=config.components)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, hidden=8, layers=1, components=4)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=16, lr=4e-3, weight_decay=1e-2, ema=0.998, warmup=100)

    def params(self, features: Tensor, h: Tensor | None, order: int) -> Tensor:
        maps = self.net(features.unflatten(1, self.net.shape), h)  # [N, C P, H, W]
        return maps.unflatten(1, (self.net.shape[0], -1)).permute(0, 1, 3, 4, 2).flatten(1)

    def walk(self, n: int, h: Tensor | None, order: int) -> Steps:
        return self.net.walk(n, h)

    def width_per_row(self) -> int:
        _, height, width = self.net.shape
        return max(super().width_per_row(), 4 * height * width * self.config.hidden)

    def rows_per_pass(self) -> int:
        """As many rows as a walk's cached rows of features have room for in 2^27 numbers."""
        cached = 12 * self.net.shape[2] * self.config.hidden * self.config.layers
        return max(1, min(super().rows_per_pass(), 2**27 // cached))


# ---------------------------------------------------------------------------------------------- the nets


@dataclass(frozen=True)
class PixelCnnConfig(PixelConfig):
    """Options of ``pixelcnn``: those of ``PixelConfig``, and

    Attributes:
        kernel: side of the first convolution's window, odd.
    """

    kernel: int = 7

    ranges = {"kernel": at_least(3, 127)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise UsageError(f"kernel is {self.kernel}; it must be odd.", "Leave it out for 7.")


class PixelCnnFamily(Pixel):
    name = "pixelcnn"
    summary = "masked convolutions predict each pixel from those above and to the left"
    paper = "van den Oord, Kalchbrenner & Kavukcuoglu 2016, Pixel recurrent neural networks"
    Config = PixelCnnConfig
    config: PixelCnnConfig

    def build(self, shape: Shape, params: int) -> PixelNet:
        return ResidualNet(shape, params, PixelCnnBlock, **self.sizes("kernel"))


@dataclass(frozen=True)
class GatedPixelCnnConfig(PixelCnnConfig):
    """Options of ``gated-pixelcnn``: those of ``pixelcnn``."""

    hidden: int = 16  # small and cheap: best for minutes on a CPU; given hours, take 64 and more
    layers: int = 4


class GatedPixelCnnFamily(Pixel):
    name = "gated-pixelcnn"
    summary = "gated convolutions over all rows above and over the row to the left predict each pixel"
    paper = "van den Oord et al. 2016, Conditional image generation with PixelCNN decoders"
    Config = GatedPixelCnnConfig
    config: GatedPixelCnnConfig

    def build(self, shape: Shape, params: int) -> PixelNet:
        return GatedPixelCnn(shape, params, **self.sizes("kernel"))


@dataclass(frozen=True)
class PixelRnnConfig(PixelCnnConfig):
    """Options of ``pixelrnn``: those of ``pixelcnn``, and

    Attributes:
        kind: row-lstm (its context is a triangle above each pixel) or diagonal-bilstm (all pixels before).
    """

    kind: Literal["row-lstm", "diagonal-bilstm"] = "diagonal-bilstm"
    layers: int = 2


class PixelRnnFamily(Pixel):
    name = "pixelrnn"
    summary = "LSTMs along the rows or diagonals of an image predict each pixel from those before"
    paper = "van den Oord, Kalchbrenner & Kavukcuoglu 2016, Pixel recurrent neural networks"
    Config = PixelRnnConfig
    config: PixelRnnConfig

    def build(self, shape: Shape, params: int) -> PixelNet:
        layer = RowLstm if self.config.kind == "row-lstm" else DiagonalLstm
        return ResidualNet(shape, params, layer, **self.sizes("kernel"))


# ------------------------------------------------------------------------------------------- pixelcnn++


@dataclass(frozen=True)
class PixelCnnPlusConfig(PixelConfig):
    """Options of ``pixelcnn++``: those of ``PixelConfig``; as many ``layers`` come down again as go up."""

    layers: int = 2


class PixelCnnPlusFamily(Pixel):
    """All at full resolution: see ``nn.pixelplus``. Several channels are a joint mixture of discretised logistics."""

    name = "pixelcnn++"
    summary = "gated resnets above and to the left give a mixture of logistics for all channels of a pixel"
    paper = "Salimans, Karpathy, Chen & Kingma 2017, PixelCNN++"
    Config = PixelCnnPlusConfig
    config: PixelCnnPlusConfig

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if space.pixels and space.pixels[-1] > 1 and config.head not in ("auto", "logistic"):
            return f"a {config.head} head cannot join several channels here. Leave out head, or fit pixelcnn."
        return super().refuses(space, context, config)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        joint = space.pixels is not None and space.pixels[-1] > 1  # always a mixture
        yield from (name for name in super().idle(space, context, config) if not (joint and name == "components"))

    @classmethod
    def choose_heads(cls, config: Any, space: Space) -> Heads:
        kind: ImageKind = "logistic" if space.pixels and space.pixels[-1] > 1 else config.head
        return heads_for(space, image=kind, components=config.components)

    def build(self, shape: Shape, params: int) -> PixelNet:
        self.colours = ColourMixture(shape[0], self.config.components) if shape[0] > 1 else None
        outputs = params if self.colours is None else self.colours.outputs
        return PixelCnnPlus(shape, outputs, **self.sizes())

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        if self.colours is not None:
            # the channels of a pixel share the weights of their mixture
            own = self.levels().log_weight.view(self.net.shape[0], -1, self.config.components)
            own.copy_(own.mean(0).log_softmax(-1).expand_as(own))

    def levels(self) -> LevelLogistics:
        [head] = self.heads.groups
        assert isinstance(head, LevelLogistics)
        return head

    def params(self, features: Tensor, h: Tensor | None, order: int) -> Tensor:
        if self.colours is None:
            return super().params(features, h, order)
        channels, height, width = self.net.shape
        places = height * width
        raw = self.net(features.unflatten(1, self.net.shape), h).flatten(2).mT  # [N, H W, outputs]
        heads = [self.levels().site(slice(c * places, (c + 1) * places)) for c in range(channels)]
        each = self.colours.all(raw, features.unflatten(1, (channels, places)).mT, heads)
        return torch.stack(each, 1).flatten(1)

    def walk(self, n: int, h: Tensor | None, order: int) -> Steps:
        walk = self.net.walk(n, h)
        return walk if self.colours is None else ColourWalk(walk, self.colours, self.levels())
