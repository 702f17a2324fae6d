"""StyleGAN: noise becomes a style, and styles say at each size of the image what its convolutions look for.

    w = f(z),   x = g(w_1 .. w_L, noise)                                  (Karras et al. 2019, section 2)
    truncation  w' = m + t (w - m),  m = E f(z)                           (2019, appendix B)
    mixing      w_1 .. w_k of one z, w_(k+1) .. w_L of another            (2019, section 3.1)
    path length E (|J^T y| - a)^2,  J = dg/dw, y ~ N(0, I) over the pixels, a the running mean of |J^T y|
                                                                          (2020, section 3.2, eq. 4)

Gradient penalties and path lengths are taken every few steps only, and count as often more (2020, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pofx.core.errors import UsageError
from pofx.core.family import serving
from pofx.core.learner import Batch, Recipe
from pofx.core.options import AMOUNT, SHARE
from pofx.core.requests import Direct, Sampler, Styled
from pofx.core.space import Space
from pofx.families.adversarial import PENALTY, Told
from pofx.families.image_gan import ImageAdversarial, ImageGanOptions
from pofx.nn.encoders import Encoded, vector
from pofx.nn.stylegan import Mapping, StyleCritic, StyleGenerator, Synthesis

CENTRE = 2048  # draws of noise whose mean style is the centre of truncation
MEMORY = 0.99  # decay of the mean path length


@dataclass(frozen=True)
class StyleGanConfig(ImageGanOptions):
    """Options of a StyleGAN.

    Attributes:
        penalty: weight r of the gradient penalty; None: 0.1 for r1 and r3gan, 10 for wgan.
        penalty_every: steps between two gradient penalties.
        style: dimensions of w.
        mapping: layers of the net that maps noise to styles.
        channels: of the nets at full size; they double with each halving, up to ``widest``.
        widest: the most channels.
        mixing: share of training images with two styles.
        path_weight: of the path lengths' variance; 0: none.
        path_every: steps between two looks at path lengths.
    """

    noise: int = 64
    penalty_every: int = 8
    style: int = 64
    mapping: int = 4
    channels: int = 16
    widest: int = 128
    mixing: float = 0.5
    path_weight: float = 2.0
    path_every: int = 8

    ranges = {"mixing": SHARE, "path_weight": AMOUNT}


class StyleGan(ImageAdversarial):
    name: ClassVar[str] = "stylegan"
    summary: ClassVar[str] = (
        "a GAN of images whose features have styles of their own, coarse and fine; it has no density"
    )
    paper: ClassVar[str] = "Karras et al. 2019; 2020"
    samplers: ClassVar[tuple[type[Sampler], ...]] = (Direct, Styled)
    penalties: ClassVar[dict[str, float]] = PENALTY | {"r1": 0.1, "r3gan": 0.1}
    Config = StyleGanConfig
    config: StyleGanConfig
    path_mean: Tensor

    def __init__(self, config: StyleGanConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.register_buffer("path_mean", torch.zeros(()))

    def make_generator(self, known: int) -> nn.Module:
        c = self.config
        mapping = Mapping(c.noise, c.style, c.mapping, known)
        return StyleGenerator(mapping, Synthesis(self.shape, c.style, channels=c.channels, widest=c.widest), c.noise)

    def critic_net(self, shape: tuple[int, int, int], outputs: int) -> nn.Module:
        return StyleCritic(shape, outputs, channels=self.config.channels, widest=self.config.widest)

    @property
    def noises(self) -> int:
        return self.config.noise + styled(self.generator).synthesis.noises

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if config.loss == "hinge":
            return "its weights are scaled where they are used, not normalised. Use loss r1, r3gan or wgan."
        return super().refuses(space, context, config)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if config.penalty == 0:
            yield "penalty_every"
        if config.path_weight == 0:
            yield "path_every"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, noise=8, style=16, mapping=2, channels=8, ema=0.98)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=32, lr=2e-3, betas=(0.0, 0.99), schedule="constant", epochs=50)

    # -- training ----------------------------------------------------------------------------------------------

    def penalty_weight(self, batch: Batch) -> float:
        every = self.config.penalty_every
        return 0.0 if batch.step % every else every * super().penalty_weight(batch)

    def fake(self, batch: Batch, h: Tensor | None, generator: torch.Generator) -> Tensor:
        return self.made(self.styles(batch, h, generator), batch, generator)

    def styles(self, batch: Batch, h: Tensor | None, generator: torch.Generator) -> Tensor:
        """w [B, layers, style], of some images (their share: ``mixing``) that of two draws of noise."""
        net = styled(self.generator)
        layers = net.synthesis.layers
        w: Tensor = net.repeated(net.mapping(batch.randn(self.config.noise, generator=generator), h))
        if self.config.mixing and layers > 1:
            other = net.repeated(net.mapping(batch.randn(self.config.noise, generator=generator), h))
            mixed, place = batch.rand(2, generator=generator).unbind(1)
            start = torch.where(mixed < self.config.mixing, 1 + (place * (layers - 1)).floor(), layers)
            w = torch.where((torch.arange(layers, device=w.device) < start[:, None])[..., None], w, other)
        return w

    def made(self, w: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Images [B, size] as the critic sees them, of styles w [B, layers, style]."""
        synthesis = styled(self.generator).synthesis
        raw = synthesis(w, batch.randn(synthesis.noises, generator=generator))
        return self.codec.emit(raw, batch.rand(self.codec.uniforms, generator=generator))

    def generator_terms(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        terms, every = super().generator_terms(batch, generator), self.config.path_every
        if self.config.path_weight == 0 or batch.step % every:
            return terms
        w = self.styles(batch, self.generator.told(batch.c), generator)
        image = self.made(w, batch, generator)
        y = batch.randn(image.shape[1], generator=generator) / math.sqrt(math.prod(self.shape[1:]))
        (slope,) = torch.autograd.grad((image * y).sum(), w, create_graph=True)  # J^T y of each layer's style
        length = slope.square().sum(2).mean(1).sqrt()
        if self.path_mean > 0:  # before the first lengths there is nothing to compare with
            loss = terms["loss"] + every * self.config.path_weight * (length - self.path_mean).square()
            terms = terms | {"loss": loss}
        return terms | {"path_length": length.detach()}

    def adapt(self, means: dict[str, Tensor], batch: Batch) -> None:
        super().adapt(means, batch)
        if (length := means.get("path_length")) is not None:
            self.path_mean.lerp_(length, 1 - MEMORY if self.path_mean > 0 else 1.0)

    # -- drawing -----------------------------------------------------------------------------------------------

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        if not isinstance(sampler, Styled):
            return super().rows_sample(n, c, sampler, generator)
        h, layers = vector(c), styled(self.sampling).synthesis.layers
        w = self.draw_styles(n, h, generator)
        if (start := sampler.crossover) is not None:
            if start >= layers:
                remedy = f"Give 1 to {layers - 1}." if layers > 1 else "Leave it out."
                raise UsageError(f"crossover is {start}; this {self.name} has styles at {layers} layers.", remedy)
            w = torch.cat([w[:, :start], self.draw_styles(n, h, generator)[:, start:]], 1)
        return self.render(self.truncate(w, h, sampler.truncation), generator)

    @torch.no_grad()
    def draw_styles(self, n: int, h: Tensor | None, generator: torch.Generator) -> Tensor:
        """Styles w [n, layers, style] of fresh noise, one of all layers, given h [n, known]."""
        net, z = styled(self.sampling), torch.randn(n, self.config.noise, generator=generator, device=generator.device)
        return net.repeated(net.mapping(z.to(self.device), h))

    @torch.no_grad()
    def truncate(self, w: Tensor, h: Tensor | None, truncation: float) -> Tensor:
        """Styles w [N, layers, style] drawn in to the mean style of their contexts h [N, known]: less varied, more
        typical images (Karras et al. 2019, appendix B)."""
        if truncation == 1:
            return w
        net, fixed = styled(self.sampling), torch.Generator().manual_seed(0)
        z = torch.randn(CENTRE, self.config.noise, generator=fixed).to(self.device)
        if h is None:
            mean = net.mapping(z, None).mean(0)
        else:
            contexts, which = h.unique(dim=0, return_inverse=True)
            mean = torch.stack([net.mapping(z, one.expand(CENTRE, -1)).mean(0) for one in contexts])[which][:, None]
        return mean + truncation * (w - mean)

    @torch.no_grad()
    def render(self, w: Tensor, generator: torch.Generator) -> Tensor:
        """Images [N, C, H, W] of styles w [N, layers, style]."""
        synthesis = styled(self.sampling).synthesis
        noise = torch.randn(len(w), synthesis.noises, generator=generator, device=generator.device).to(self.device)
        u = torch.rand(len(w), self.codec.uniforms, generator=generator, device=generator.device).to(self.device)
        return self.codec.rows(self.codec.emit(synthesis(w, noise), u))


def styled(net: Told) -> StyleGenerator:
    """The generator's net by its own type."""
    assert isinstance(net.net, StyleGenerator)
    return net.net
