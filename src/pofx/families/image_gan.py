"""GANs of images alone, with the nets that made them work: dcgan, resnet-gan; and what stylegan shares with them.

All play one of the games of ``adversarial``. A critic may be shown its images through augmentations, whose probability
follows how far it has learned the data by heart (nn/augment.py): with a thousand images it else would soon know each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pofx.core.family import serving
from pofx.core.learner import Batch, Recipe
from pofx.core.options import Range
from pofx.core.space import Space
from pofx.families.adversarial import PENALTY, Adversarial, AdversarialOptions, projected
from pofx.nn.augment import Adaptive, Augment
from pofx.nn.dcgan import DcganCritic, DcganGenerator
from pofx.nn.resnet_gan import ResnetCritic, ResnetGenerator

SMALLEST = 3  # side of an image: below, a convolution of 3 x 3 pixels sees more padding than image


@dataclass(frozen=True)
class ImageGanOptions(AdversarialOptions):
    """What GANs of images can be told, too.

    Attributes:
        augment: the critic sees all images through augmentations, as often as it takes to keep it from learning the
            data by heart ("adaptive", Karras et al. 2020), or as they are ("none").
        flips: mirror images are among these: only right where data are as likely mirrored.
        overfit: mean sign of the critic on real images that adaptive augmentation keeps to; 1: all known by heart.
        overfit_images: in which the probability of augmentation goes from 0 to 1 at most.
    """

    loss: Literal["r3gan", "r1", "hinge", "wgan"] = "r1"
    augment: Literal["none", "adaptive"] = "none"
    flips: bool = False
    overfit: float = 0.6
    overfit_images: int = 100_000

    ranges = {"overfit": Range(0, 1, above=True, below=True)}


class ImageCritic(nn.Module):
    """y [N, C * H * W] (, h [N, known]) -> how real it looks [N], by a net of images [N, C, H, W].

    A context is projected onto the net's features, or is one more channel, a linear map of it.
    """

    def __init__(self, shape: tuple[int, int, int], known: int, projects: bool, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        c, height, width = self.shape = shape
        self.plane = nn.Linear(known, height * width) if known and not projects else None
        self.net = make((c + (self.plane is not None), height, width), 1 + known if projects else 1)

    def forward(self, y: Tensor, h: Tensor | None) -> Tensor:
        y = y.unflatten(1, self.shape)
        if self.plane is None:
            return projected(self.net(y), h)
        assert h is not None
        out: Tensor = self.net(torch.cat([y, self.plane(h).view(-1, 1, *self.shape[1:])], 1))[:, 0]
        return out


class ImageAdversarial(Adversarial):
    """Base of GANs of images, which write ``make_generator`` and ``critic_net``."""

    config: ImageGanOptions

    def __init__(self, config: ImageGanOptions, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.adaptive: Adaptive | None = None
        if config.augment == "adaptive":
            self.adaptive = Adaptive(
                self.shape, flips=config.flips, target=config.overfit, images=config.overfit_images
            )

    @abstractmethod
    def critic_net(self, shape: tuple[int, int, int], outputs: int) -> nn.Module:
        """Images [N, *shape] -> [N, outputs]."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        assert self.space.pixels is not None
        height, width, channels = self.space.pixels
        return channels, height, width

    def make_critic(self, known: int) -> nn.Module:
        c, height, width = self.shape
        seen = (self.config.pack * c, height, width)
        return ImageCritic(seen, known, self.config.conditioning == "projection", self.critic_net)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if not space.pixels:
            return f"it makes images, and {space} are none. Fit gan."
        if min(space.pixels[:2]) < SMALLEST:
            height, width = space.pixels[:2]
            return f"its convolutions need sides of {SMALLEST} pixels or more, these are {height}×{width}. Fit gan."
        return super().refuses(space, context, config)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if config.augment == "none":
            yield from ("flips", "overfit", "overfit_images")

    def augment(self, y: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        if self.adaptive is None:
            return y
        u = batch.rand(Augment.uniforms, generator=generator)
        out: Tensor = self.adaptive(y.unflatten(1, self.shape), u).flatten(1)
        return out

    def critic_terms(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        terms = super().critic_terms(batch, generator)
        if self.adaptive is not None:
            terms["augmented"] = self.adaptive.p.to(terms["loss"]).expand(len(batch.x))
        return terms

    def adapt(self, means: dict[str, Tensor], batch: Batch) -> None:
        if self.adaptive is not None and "sign_on_real" in means:
            self.adaptive.look(means["sign_on_real"], batch.total)


@dataclass(frozen=True)
class DcganConfig(ImageGanOptions):
    """Options of a DCGAN.

    Attributes:
        penalty: weight r of the gradient penalty, without which the critic has batch normalisation; None: 0 for r1, as
            in the paper, and hinge, 1 for r3gan, 10 for wgan.
        channels: of the nets at half the image's size; they double with each halving.
    """

    noise: int = 100
    channels: int = 32


class Dcgan(ImageAdversarial):
    name: ClassVar[str] = "dcgan"
    summary: ClassVar[str] = "a GAN of images with strided convolutions and batch normalisation; it has no density"
    paper: ClassVar[str] = "Radford et al. 2016"
    penalties: ClassVar[dict[str, float]] = PENALTY | {"r1": 0.0}
    Config = DcganConfig
    config: DcganConfig

    def make_generator(self, known: int) -> nn.Module:
        return DcganGenerator(self.config.noise, self.shape, channels=self.config.channels, context=known)

    def critic_net(self, shape: tuple[int, int, int], outputs: int) -> nn.Module:
        # a penalty is of each image's own gradient, and spectral normalisation takes the place of another
        norm = self.weight == 0 and self.config.loss != "hinge"
        return DcganCritic(shape, outputs, channels=self.config.channels, norm=norm)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, noise=8, channels=16, ema=0.98)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        return {"augmented": serving(cls, space, noise=8, channels=16, ema=0.98, augment="adaptive", penalty=0.1)}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=64, lr=2e-4, betas=(0.5, 0.999), schedule="constant", epochs=50)  # section 4


@dataclass(frozen=True)
class ResnetGanConfig(ImageGanOptions):
    """Options of a residual GAN.

    Attributes:
        channels: of the nets, at every size.
    """

    noise: int = 128
    loss: Literal["r3gan", "r1", "hinge", "wgan"] = "hinge"
    channels: int = 32


class ResnetGan(ImageAdversarial):
    name: ClassVar[str] = "resnet-gan"
    summary: ClassVar[str] = "a GAN of images with residual nets and spectral normalisation; it has no density"
    paper: ClassVar[str] = "Miyato et al. 2018; Gulrajani et al. 2017"
    Config = ResnetGanConfig
    config: ResnetGanConfig

    def make_generator(self, known: int) -> nn.Module:
        return ResnetGenerator(self.config.noise, self.shape, channels=self.config.channels, context=known)

    def critic_net(self, shape: tuple[int, int, int], outputs: int) -> nn.Module:
        return ResnetCritic(shape, outputs, channels=self.config.channels)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, noise=8, channels=8, ema=0.98)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=64, lr=2e-4, betas=(0.0, 0.9), schedule="linear", epochs=50)  # Miyato et al., table 1, C
