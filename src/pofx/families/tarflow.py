"""A flow of causal transformers over patches of an image, or groups of columns (Zhai et al. 2024).

    z_t = (x_t - mu_t(x_<t, h)) exp(-alpha_t(x_<t, h))

in every layer, with the order of the tokens reversed from one to the next: a masked autoregressive flow whose tokens
are vectors and whose nets attend. The density is exact, of dequantised pixels a bound; the paper's noise
augmentation and denoising, which make samples look better, change the density and have no part here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from pofx.codecs.real import preprocess
from pofx.core.family import serving
from pofx.core.learner import GradientLearner, Recipe
from pofx.core.options import AMOUNT
from pofx.core.space import Space
from pofx.families.flow import Flow, VectorFlowConfig
from pofx.nn.transformer import Shape
from pofx.spaces import Image
from pofx.transforms.base import Transform
from pofx.transforms.tokens import CausalAffine, CausalConv

LONGEST = 64  # tokens of a row of columns, unless the user says otherwise


@dataclass(frozen=True)
class TarFlowConfig(VectorFlowConfig):
    """Options of ``tarflow``, beside those of every flow, of which ``hidden`` is the width of the transformers and
    ``blocks`` the layers of each.

    Attributes:
        patch: side of a patch in pixels, 0 for 2 where that divides both sides into 16 patches or more, else 1; of
            other data the columns of a token, 0 for the fewest that make at most 64 tokens.
        n_heads: of each attention.
    """

    layers: int = 4
    blocks: int = 1
    patch: int = 0
    n_heads: int = 4

    ranges = {"patch": AMOUNT}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shape  # noqa: B018 - a width that heads do not share is an error of its own

    @property
    def shape(self) -> Shape:
        """Of each transformer."""
        return Shape(width=self.hidden, layers=self.blocks, n_heads=self.n_heads, positions="learned")


class TarFlow(Flow):
    name = "tarflow"
    summary = "an invertible chain of causal transformers over patches or columns to a Gaussian"
    taxonomy = "explicit density / tractable / normalising flow"
    paper = "Zhai et al. 2024, Normalizing Flows are Capable Generative Models"
    known_failures = {"every parameter learns:small mixed": "one numeric column is one token, with none before it"}
    Config = TarFlowConfig
    config: TarFlowConfig

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: TarFlowConfig) -> str | None:  # type: ignore[override]
        return super().refuses(space, context, config) or misfit(space, config.patch)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if space.pixels:  # they start with a convolution
            yield "linear_up_to"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, layers=2, hidden=16, blocks=1, n_heads=2, codes_hidden=32)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(
            batch=16 if space.pixels else 256, optimizer="muon", lr=4e-3, schedule="linear", warmup=20,
            betas=(0.9, 0.99), clip=1.0, ema=0.99,
        )  # fmt: skip

    def whitens(self) -> bool:
        return not self.space.pixels and super().whitens()

    def layers(self) -> list[Transform]:
        c, chain = self.config, list[Transform]([CausalConv(self.space.event_shape)] if self.space.pixels else [])
        for k in range(c.layers):
            chain.append(CausalAffine(self.dim, tokens(self.space, self.dim, c.patch, k), c.shape, context=self.width))
        return chain

    def learner(self, recipe: Recipe) -> GradientLearner:
        nets = [t.net for t in self.flow.transforms if isinstance(t, CausalAffine)]
        return GradientLearner(self, recipe, self._terms, [m for net in nets for m in net.matrices()])


@singledispatch
def tokens(space: Space, dim: int, patch: int, layer: int) -> Tensor:
    """Which entry of a row each entry of a token is [T, w], in the order that this layer goes through them.

    Odd layers go backwards.
    """
    size = patch or -(-dim // LONGEST)
    entries = torch.arange(-(-dim // size) * size).clamp(max=dim).view(-1, size)
    return entries.flip(0) if layer % 2 else entries


@tokens.register
def _(space: Image, dim: int, patch: int, layer: int) -> Tensor:
    """Squares of pixels with all their channels, in raster order.

    Odd layers' squares are shifted by half their side: what is one token here is several there, or its entries
    would never be seen from each other.
    """
    c, height, width = space.event_shape
    side = patch or (2 if height % 2 == width % 2 == 0 and height * width >= 64 else 1)
    image = torch.arange(dim).view(c, height, width)
    if layer % 2:
        image = image.roll((side // 2, side // 2), (1, 2))
    squares = image.view(c, height // side, side, width // side, side).permute(1, 3, 0, 2, 4).reshape(-1, c * side**2)
    return squares.flip(0) if layer % 2 else squares


@singledispatch
def misfit(space: Space, side: int) -> str | None:
    """Why a space is not made of such tokens."""
    dim = preprocess(space).dim
    return f"a token holds {side} of {dim} numbers. Choose fewer as patch." if side > dim else None


@misfit.register
def _(space: Image, side: int) -> str | None:
    if side and (space.height % side or space.width % side):
        return f"{space.height}×{space.width} pixels are not made of patches of {side}. Choose a divisor."
    return None
