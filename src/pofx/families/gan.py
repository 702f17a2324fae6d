"""Generative adversarial networks of plain nets: MLPs for columns and small images, else small convolutional ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.codecs.relaxed import Relaxed, RelaxedColumns
from pofx.core.errors import Unsupported
from pofx.core.family import serving
from pofx.core.learner import Batch, Recipe
from pofx.core.space import Space
from pofx.families.adversarial import Adversarial, AdversarialOptions, projected
from pofx.families.conditioned import NetOptions
from pofx.nn.encoders import Encoded
from pofx.nn.mlp import Mlp
from pofx.spaces import Category

OVERRULED = 30.0  # what the logit of a value that is asked for gets, beside Gumbel noise of 20 at most


@dataclass(frozen=True)
class GanConfig(AdversarialOptions, NetOptions):
    """Options of a GAN: its game, and its nets.

    Attributes:
        asks: the generator is told the value of one category of the row that it makes; in training rare values are
            asked for, and shown by rows of data, more often than they occur (Xu et al. 2019, section 4.3).
    """

    hidden: int = 128
    channels: int = 32
    asks: bool = False


class Asking(nn.Module):
    """Training by sampling: which category of a row is asked for, and which of its values (Xu et al. 2019, 4.3).

    What is asked is told as the codec's one-hot choices of all categories [N, width], zero but for one of them.
    The generator's own choice there is overruled, where the paper has a penalty on what differs.
    """

    counts: Tensor
    starts: Tensor

    def __init__(self, codec: Relaxed) -> None:
        super().__init__()
        assert isinstance(codec, RelaxedColumns)
        self.columns = codec.columns
        sizes = [code.size for code in codec.columns.codes if code.real < 0]
        self.width, self.first = sum(sizes), codec.size - sum(code.size for code in codec.columns.codes)
        self.register_buffer("counts", torch.zeros(len(sizes), max(sizes), dtype=torch.float64))
        self.register_buffer("starts", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)

    def values(self, x: Tensor) -> Tensor:
        """Of every category of rows x [N, *E] the value [N, categories]; a missing one is the last."""
        return self.columns.split(x)[1][:, : len(self.counts)]

    def prepare(self, x: Tensor, weight: Tensor | None) -> None:
        mass = torch.ones(len(x)) if weight is None else weight
        for count, value in zip(self.counts, self.values(x).unbind(1), strict=True):
            count.copy_(torch.bincount(value, mass.to(count), minlength=len(count)))

    def told(self, column: Tensor, value: Tensor) -> Tensor:
        """One-hot choices [N, width] of these categories and values [N]."""
        return F.one_hot(self.starts[column] + value, self.width).to(torch.get_default_dtype())

    def rows(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Which of a batch's rows x [B, *E] a step takes in their place, and what is asked; u [B, 2] in [0, 1).

        A category evenly, then a row by its value's log-frequency over its frequency.
        """
        values = self.values(x)
        column = (u[:, 0] * len(self.counts)).long()
        weight = ((1 + self.counts).log() / self.counts.clamp(min=1)).gather(1, values.T)
        edges = weight.cumsum(1)[column]
        row = torch.searchsorted(edges, u[:, 1:].double() * edges[:, -1:], right=True)[:, 0].clamp(max=len(x) - 1)
        return row, self.told(column, values[row, column])

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """What is asked of n rows of a sample [n, width]: values as often as they occur."""
        device = self.counts.device
        column = torch.randint(len(self.counts), (n,), generator=generator, device=generator.device).to(device)
        u = torch.rand(n, 1, generator=generator, device=generator.device).to(self.counts)
        edges = self.counts.cumsum(1)[column]
        value = torch.searchsorted(edges, u * edges[:, -1:], right=True)[:, 0].clamp(max=self.counts.shape[1] - 1)
        return self.told(column, value)


class Generator(nn.Module):
    """z [N, noise] (, h [N, known]) -> raw outputs [N, outputs]; of h the last ``asking.width`` numbers ask."""

    def __init__(self, config: GanConfig, space: Space, known: int, outputs: int, asking: Asking | None) -> None:
        super().__init__()
        self.first, self.width = (0, 0) if asking is None else (asking.first, asking.width)
        self.net = config.synthesis(config.noise + known + self.width, config.conv_shape(space) or (outputs,))
        if isinstance(self.net, Mlp):
            self.net.last.reset_parameters()  # at zero, all samples would be one

    def forward(self, z: Tensor, h: Tensor | None) -> Tensor:
        raw: Tensor = self.net(z if h is None else torch.cat([z, h], 1)).flatten(1)
        if self.width:
            assert h is not None
            raw = raw + F.pad(OVERRULED * h[:, -self.width :], (self.first, raw.shape[1] - self.first - self.width))
        return raw


class Critic(nn.Module):
    """y [N, features] (, h [N, known]) -> how real it looks [N]."""

    def __init__(self, config: GanConfig, space: Space, known: int, features: int) -> None:
        super().__init__()
        shape = config.conv_shape(space)
        self.shape = (features,) if shape is None else (config.pack * shape[0], *shape[1:])
        self.projects = config.conditioning == "projection"
        self.net = config.analysis(self.shape, *((1 + known, 0) if self.projects else (1, known)))

    def forward(self, y: Tensor, h: Tensor | None) -> Tensor:
        y = y.unflatten(1, self.shape)
        return projected(self.net(y), h) if self.projects else self.net(y, h)[:, 0]


class Gan(Adversarial):
    name: ClassVar[str] = "gan"
    summary: ClassVar[str] = "a net that turns noise into data, trained against a critic; it has no density"
    paper: ClassVar[str] = "Goodfellow et al. 2014; Mescheder et al. 2018; Huang et al. 2024"
    Config = GanConfig
    config: GanConfig

    def __init__(self, config: GanConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.asking = self._asking()

    def _asking(self) -> Asking | None:
        return Asking(self.codec) if self.config.asks else None

    def make_generator(self, known: int) -> nn.Module:
        return Generator(self.config, self.space, known, self.codec.size, self._asking())

    def make_critic(self, known: int) -> nn.Module:
        asking = self._asking()
        known += 0 if asking is None else asking.width
        return Critic(self.config, self.space, known, self.config.pack * self.codec.size)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        if self.asking is not None:
            self.asking.prepare(x, weight)

    def dealt(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor | None, Tensor | None]:
        if self.asking is None:
            return super().dealt(batch, generator)
        row, asked = self.asking.rows(batch.x, batch.rand(2, generator=generator))
        taken = (None if t is None else t[row] for t in (batch.x, batch.c, batch.weight))
        x, c, weight = taken
        batch, own, h = super().dealt(replace(batch, x=x, c=c, weight=weight), generator)
        return batch, joined(own, asked), joined(h, asked)

    def wanted(self, h: Tensor | None, n: int, generator: torch.Generator) -> Tensor | None:
        return h if self.asking is None else joined(h, self.asking.draw(n, generator))

    def wanted_of(self, h: Tensor | None, x: Tensor) -> Tensor | None:
        if self.asking is None:
            return h
        first = self.asking.values(x)[:, 0]
        return joined(h, self.asking.told(torch.zeros_like(first), first))

    def rows_from_latents(self, z: Tensor, c: Encoded | None) -> Tensor:
        if self.asking is not None:
            raise Unsupported(
                "With asks a row is made of its noise and of a value that is asked for.", "Fit without asks."
            )
        return super().rows_from_latents(z, c)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: GanConfig) -> str | None:
        if reason := super().refuses(space, context, config) or config.refuses(space):
            return reason
        if config.asks and not (space.columns and any(isinstance(column, Category) for column in space.columns)):
            return "asks is for tables with categories. Leave it out."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if not config.conv_shape(space):
            yield "channels"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, noise=8, hidden=64, channels=16, modes=3, ema=0.98)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        tiny = cls.tiny(space)
        if space.pixels and space.symbols == 2:  # a few cases tell
            return {"wgan, packed": replace(tiny, loss="wgan", pack=2)}  # resnet-gan has the hinge game
        kinds = {isinstance(column, Category) for column in space.columns or ()}
        return {"asks": replace(tiny, asks=True)} if len(kinds) == 2 else {}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=64, lr=1e-3, betas=(0.0, 0.99), epochs=50)


def joined(h: Tensor | None, asked: Tensor) -> Tensor:
    return asked if h is None else torch.cat([h, asked], 1)
