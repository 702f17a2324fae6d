"""``glow``: a multi-scale flow of images (Kingma & Dhariwal 2018).

On each scale blocks of 2 x 2 pixels become channels, and a step is repeated (section 3):

    actnorm              z = (x + b) exp(s) of each channel, which starts with variance 1
    1 x 1 convolution    z = W x at each pixel, W by its LU factors, a rotation at the start
    affine coupling      half of the channels given the others, by a small convolutional net

Then half of the channels leave, distributed as N(mu, sigma^2) given those that stay. A context scales and shifts the
features of all nets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pofx.core.family import serving
from pofx.core.learner import Recipe
from pofx.core.requests import Dequantised
from pofx.core.space import Space
from pofx.families.flow import Flow, Scales
from pofx.transforms.base import Affine, Transform
from pofx.transforms.multiscale import ActNorm, Conv1x1, ConvCoupling, Shape, multiscale


@dataclass(frozen=True)
class GlowConfig(Scales):
    """Options of ``glow``, beside those of every flow.

    Attributes:
        layers: steps of all scales together.
        hidden: channels of the nets.
        blocks: of 1 x 1 convolutions between the 3 x 3 convolutions of a net.
    """

    layers: int = 24
    hidden: int = 128
    blocks: int = 1


class Glow(Flow):
    """Actnorm, 1 x 1 convolution and affine coupling, on images that are halved from scale to scale."""

    name = "glow"
    summary = "an invertible chain of 1 × 1 convolutions and couplings over images, halved from scale to scale"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Kingma & Dhariwal 2018, Glow: Generative Flow with Invertible 1x1 Convolutions"
    estimators = (Dequantised,)  # pixels are levels
    Config = GlowConfig
    config: GlowConfig

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if not space.pixels:
            return "it convolves images. Fit realnvp or nsf."
        return super().refuses(space, context, config) or config.refuses(space)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, layers=1, hidden=16)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=32, lr=3e-3, warmup=50, clip=10.0, ema=0.99)

    def layers(self) -> list[Transform]:
        def couple(shape: Shape, mask: Tensor) -> Transform:
            return ConvCoupling(shape, mask, Affine(), **self._size)

        def steps(shape: Shape, pixels: tuple[int, int], count: int) -> Iterable[Transform]:
            half = torch.arange(shape[2]) >= shape[2] // 2  # of a single channel all
            for _ in range(count):
                yield from (ActNorm(shape), Conv1x1(shape), couple(shape, half))

        assert self.space.pixels is not None
        return multiscale(self.space.pixels, self.config.layers, self.config.image_scales(self.space), steps, couple)
