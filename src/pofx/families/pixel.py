"""Autoregressive models of images: a causal net reads pixels row by row, the channels of a pixel in turn.

    log p(x | c) = sum_{h, w} sum_k log p(x_{k,h,w} | pixels above and to the left, channels before k, c)

    pixelcnn        masked convolutions (van den Oord, Kalchbrenner & Kavukcuoglu 2016)
    gated-pixelcnn  a vertical and a horizontal stack, gated: no blind spot (van den Oord et al. 2016)

Likelihoods are exact. Every value has a head of ``nn.heads`` whose zero is the training data's marginal at that
place, and the nets start at zero. Sampling computes every feature once (``nn.pixel``).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pofx.core.learner import Recipe
from pofx.core.space import Image, Space
from pofx.families.autoregressive import Autoregressive, Steps
from pofx.nn.heads import Heads, ImageKind, heads_for
from pofx.nn.pixel import PixelNet, Shape
from pofx.nn.pixelcnn import GatedPixelCnn, PixelCnn


@dataclass(frozen=True)
class PixelConfig:
    """Options of every family here.

    Attributes:
        head: of a level: bernoulli, categorical, logistic (a mixture of discretised logistics), or auto, by the
            number of levels.
        components: of that mixture.
        hidden: features of the net's maps (rounded up to a multiple of the image's channels).
        layers: blocks of the net.
        kernel: side of the first convolution's window, odd.
    """

    head: ImageKind = "auto"
    components: int = 8
    hidden: int = 64
    layers: int = 6
    kernel: int = 7


class Pixel(Autoregressive):
    """Base of the families here; a subclass builds ``net``."""

    counts = ("components", "hidden", "layers")
    net: PixelNet
    config: PixelConfig

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        assert isinstance(space, Image)
        self.net = self.build(config, (space.channels, space.height, space.width), self.heads.params[0], self.width)

    @classmethod
    @abstractmethod
    def build(cls, config: Any, shape: Shape, params: int, context: int) -> PixelNet:
        """The net of images of a shape (C, H, W), with so many parameters per value and width of context."""

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if not isinstance(space, Image):
            return "it models images. Fit made or window-mlp."
        if config.kernel < 3 or config.kernel % 2 == 0:
            return f"kernel={config.kernel} is no odd number of 3 or more. Leave out kernel."
        return super().refuses(space, context, config)

    @classmethod
    def choose_heads(cls, config: Any, space: Space) -> Heads:
        return heads_for(space, image=config.head, components=config.components)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return cls.Config(hidden=16, layers=1, kernel=5, components=4)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=32, lr=2e-3, weight_decay=1e-2, ema=0.998, warmup=100)

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


# --------------------------------------------------------------------------------------------- pixelcnn


@dataclass(frozen=True)
class PixelCnnConfig(PixelConfig):
    """Options of ``pixelcnn``: those of ``PixelConfig``."""


class PixelCnnFamily(Pixel):
    name = "pixelcnn"
    summary = "masked convolutions predict each pixel from those above and to the left"
    paper = "van den Oord, Kalchbrenner & Kavukcuoglu 2016, Pixel recurrent neural networks"
    Config = PixelCnnConfig

    @classmethod
    def build(cls, config: Any, shape: Shape, params: int, context: int) -> PixelNet:
        return PixelCnn(
            shape, params, hidden=config.hidden, layers=config.layers, kernel=config.kernel, context=context
        )


# --------------------------------------------------------------------------------------- gated-pixelcnn


@dataclass(frozen=True)
class GatedPixelCnnConfig(PixelConfig):
    """Options of ``gated-pixelcnn``: those of ``PixelConfig``."""


class GatedPixelCnnFamily(Pixel):
    name = "gated-pixelcnn"
    summary = "gated convolutions over all rows above and over the row to the left predict each pixel"
    paper = "van den Oord et al. 2016, Conditional image generation with PixelCNN decoders"
    Config = GatedPixelCnnConfig

    @classmethod
    def build(cls, config: Any, shape: Shape, params: int, context: int) -> PixelNet:
        return GatedPixelCnn(
            shape, params, hidden=config.hidden, layers=config.layers, kernel=config.kernel, context=context
        )
