"""What families share whose nets are told a context by an encoder (``nn.encoders``), and a model inside them, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pofx.codecs.steps import Subwords
from pofx.core.errors import UsageError
from pofx.core.learner import Batch
from pofx.core.model import Model
from pofx.core.nested import nested, spelled
from pofx.core.options import AMOUNT, BELOW_ONE, Options, at_least
from pofx.core.space import Space
from pofx.nn.conv import ConvDecoder, ConvEncoder
from pofx.nn.encoders import Encoded, Encoder, encoder, options_of
from pofx.nn.mlp import Mlp
from pofx.nn.perturb import UNIFORMS, perturbation


@dataclass(frozen=True)
class ContextOptions(Options):
    """What every such family can be told of its context.

    Attributes:
        context_dropout: share of training rows whose context is left out, so that the model knows p(x | no context).
        context_width: of a context's vector, and of the tokens of one of free length; 0 for 64, and for the width of a
            net over sequences where that is more.
        context_layers: of attention in the encoder of a context of free length.
        context_vocabulary: of subwords learned from contexts that are texts (byte-pair encoding); 0 for their
            characters or bytes.
        context_augment: how much training changes the contexts, where these are sounds: their speed, tone, loudness and
            noise, and what is silent in them; 1 is much, 2 the most, 0 none.
    """

    context_dropout: float = 0.0
    context_width: int = 0
    context_layers: int = 2
    context_vocabulary: int = 0
    context_augment: float = 0.0

    ranges = {
        "context_dropout": BELOW_ONE,
        "context_width": AMOUNT,
        "context_layers": AMOUNT,
        "context_vocabulary": AMOUNT,
        "context_augment": at_least(0, 2),
    }
    unsaid = {"context_width": 64}

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.context_vocabulary < 256:
            raise UsageError(
                f"context_vocabulary is {self.context_vocabulary}; each of 256 bytes has a subword of its own.",
                "Give 256 or more, or 0 for symbols.",
            )


@dataclass(frozen=True)
class NetOptions(ContextOptions):
    """What a family of two nets, from data to a vector and from a vector to data, can be told of both.

    Attributes:
        net: "auto" is conv for images with sides of at least 16, else mlp.
        hidden: width of the MLPs, or of the linear layers of the conv nets.
        blocks: residual blocks, of the MLPs or per level of the conv nets.
        channels: of the conv nets at half the image's size.
    """

    net: Literal["auto", "mlp", "conv"] = "auto"
    hidden: int = 256
    blocks: int = 1
    channels: int = 16

    def refuses(self, space: Space) -> str | None:
        return "net=conv is for images. Use net=mlp." if self.net == "conv" and not space.pixels else None

    def conv_shape(self, space: Space) -> tuple[int, int, int] | None:
        """(C, H, W) where the nets are convolutional."""
        if not space.pixels or self.net == "mlp" or (self.net == "auto" and min(space.pixels[:2]) < 16):
            return None
        return space.pixels[2], *space.pixels[:2]

    def analysis(self, shape: tuple[int, ...], outputs: int, context: int) -> nn.Module:
        """From data of ``shape``, (C, H, W) or [features], and a context's vector to ``outputs`` numbers."""
        size = {"hidden": self.hidden, "blocks": self.blocks, "context": context}
        if len(shape) == 3:
            return ConvEncoder(shape, outputs, channels=self.channels, **size)
        return Mlp(shape[0], outputs, **size)

    def synthesis(self, inputs: int, shape: tuple[int, ...]) -> nn.Module:
        """From ``inputs`` numbers to data of ``shape``, (C, H, W) or [features]."""
        size = {"hidden": self.hidden, "blocks": self.blocks}
        if len(shape) == 3:
            return ConvDecoder(inputs, shape, channels=self.channels, **size)
        return Mlp(inputs, shape[0], **size)


def context_encoder(config: ContextOptions, context: Space | None, width: int = 64) -> Encoder | None:
    """The encoder of a context, with a null context where training leaves contexts out."""
    if context is None:
        return None
    also: dict[str, Any] = {name: getattr(config, f"context_{name}") for name in options_of(context)}
    if "dropout" in also:  # the net's own
        also["dropout"] = getattr(config, "dropout", 0.0)
    if size := also.pop("vocabulary", 0):
        also["subwords"] = Subwords(context, size)  # type: ignore[arg-type]
    made = encoder(context, config.context_width or width, **also)
    if config.context_dropout:
        made.learn_null()
    return made


def idle_of_contexts(context: Space | None) -> Iterable[str]:
    """The options of ``ContextOptions`` that mean nothing for contexts of this space."""
    used = set[str]()
    if context is not None:
        used = {"dropout", "width", *options_of(context)} | ({"augment"} if perturbation(context) else set())
    yield from (f.name for f in fields(ContextOptions) if f.name.removeprefix("context_") not in used)


def as_told(config: ContextOptions, context: Space | None, batch: Batch, generator: torch.Generator) -> Batch:
    """A training batch with the contexts that nets are told: changed a little, where they are."""
    change = perturbation(context)
    if change is None or not config.context_augment:
        return batch
    return replace(batch, c=change(batch.c, batch.rand(UNIFORMS, generator=generator), config.context_augment))


def dropped(config: ContextOptions, batch: Batch, generator: torch.Generator) -> Tensor | None:
    """Which rows of a training batch are told no context [B]; None where all are."""
    if batch.c is None or not config.context_dropout:
        return None
    return batch.rand(generator=generator) < config.context_dropout


def part(text: str, space: Space, context: Space | None, config: ContextOptions) -> Model:
    """The model inside another that ``text`` names, of p(z | c): it learns of contexts as the other does.

    What the text says itself of contexts stays. Raises UsageError or Unsupported.
    """
    _, said = spelled(text)
    for f in fields(ContextOptions) if context is not None else ():
        if (value := getattr(config, f.name)) != f.default and f.name not in said:
            text += f"{',' if ':' in text else ':'}{f.name}={value}"
    return nested(text, space, context)


@dataclass(frozen=True)
class Known:
    """Contexts as a family's own nets take them, and as the model inside it does; rows are taken by ``[index]``."""

    own: Encoded
    part: Any

    def __getitem__(self, index: Any) -> Known:
        return Known(self.own[index], self.part[index])

    @staticmethod
    def cat(parts: Iterable[Known]) -> Known:
        own, inner = zip(*((known.own, known.part) for known in parts), strict=True)
        return Known(Encoded.cat(own), torch.cat(inner) if isinstance(inner[0], Tensor) else inner[0].cat(inner))


def own_vector(known: Known | None) -> Tensor | None:
    """[N, W], of the contexts that a family's own nets are told."""
    return None if known is None else known.own.vector


class Conditioned(Model):
    """Base of these families: their hooks take contexts as ``Encoded``.

    Its ``__init__`` calls ours first, then builds nets for a vector of ``known`` numbers (0 without a context) and,
    where it ``attends``, tokens of ``memory``, and where it ``looks``, a ``picture``.
    """

    def __init__(self, config: Any, space: Space, context: Space | None = None, *, width: int = 64) -> None:
        super().__init__(config, space, context)
        self.context_encoder = context_encoder(config, context, width)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from idle_of_contexts(context)

    @property
    def attends(self) -> bool:
        """Does a net attend to the tokens of a context?"""
        return False

    @property
    def looks(self) -> bool:
        """Does a net see the map of a context beside what it models?"""
        return False

    @property
    def known(self) -> int:
        """The width of a context's vector."""
        return 0 if self.context_encoder is None else self.context_encoder.width

    @property
    def memory(self) -> int:
        """The width of a context's tokens, 0 where it has none."""
        return 0 if self.context_encoder is None else self.context_encoder.memory

    @property
    def picture(self) -> tuple[int, int, int] | None:
        """(C, H, W) of a context's map, None where it has none."""
        return None if self.context_encoder is None else self.context_encoder.picture

    def prepare(self, x: Any, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        if self.context_encoder is not None:
            self.context_encoder.prepare(c, weight)

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Encoded:
        assert self.context_encoder is not None
        return self._needed(self.context_encoder(c, dropped))

    def null_context(self, n: int) -> Encoded:
        assert self.context_encoder is not None
        return self._needed(self.context_encoder.null(n))

    def batch_context(self, batch: Batch, generator: torch.Generator) -> Encoded | None:
        """The contexts of a training batch, some left out."""
        batch = as_told(self.config, self.context, batch, generator)
        return None if batch.c is None else self.encode_context(batch.c, dropped(self.config, batch, generator))

    def batch_vector(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """The vectors of the contexts of a training batch alone, some left out."""
        if batch.c is None or self.context_encoder is None:
            return None
        batch = as_told(self.config, self.context, batch, generator)
        return self.context_encoder(batch.c, dropped(self.config, batch, generator)).vector

    def _needed(self, e: Encoded) -> Encoded:
        e = e if self.attends else replace(e, tokens=None, mask=None)
        return e if self.looks else replace(e, map=None)
