"""Autoregressive models of anything with an order: a net over sequences between two ends (``nn.emission``).

    log p(x) = sum_t log p(u_t | u_0, ..., u_{t-1}) + log p(end | u_0, ..., u_T)

for the steps u_1, u_2, ... that a datum is made of (``codecs.steps``): symbols or subwords of a text, levels of a
sound, rows of a sequence, patches of an image. u_0 is the beginning: row i of the net's output is the
distribution of step i + 1, so nothing is left unscored. A sampler keeps the net's cache: a step costs the arithmetic
of one step.

Here is what all of them share; those over data of free length are built on ``continuing``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pofx.codecs.steps import Codec
from pofx.core.model import Model
from pofx.core.space import Space
from pofx.decode.net import Reader
from pofx.nn.emission import Emission
from pofx.nn.encoders import encoder
from pofx.nn.sequence import SequenceNet

LOOK = 500  # training rows that are looked at before training


class Stepwise(Model):
    """Base of families over sequences of steps; a subclass makes the codec, the emission and the net."""

    taxonomy = "explicit density / tractable / autoregressive"
    config: Any

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.codec: Codec = self.make_codec()
        self.emission: Emission = self.make_emission()
        self.net: SequenceNet = self.build(config)
        self.context_encoder = None if context is None else encoder(context)
        self.given_in = (
            None if self.context_encoder is None else nn.Linear(self.context_encoder.width, config.width, bias=False)
        )

    @abstractmethod
    def make_codec(self) -> Codec:
        """How data become steps."""

    @abstractmethod
    def make_emission(self) -> Emission:
        """How a step enters and leaves the net."""

    @abstractmethod
    def build(self, config: Any) -> SequenceNet:
        """The net between."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Of the longest piece of training."""

    @property
    def has_eos(self) -> bool:
        """Has the end of a datum a probability?"""
        return False

    def prepare(self, x: Any, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        some = x[torch.randperm(len(x), generator=generator)[:LOOK]]
        self.codec.prepare(some, generator)
        u = self.codec.encode(some)
        self.emission.prepare(u[~self.emission.filled(u)], ends=len(u) if self.has_eos else 0)
        if self.context_encoder is not None:
            self.context_encoder.prepare(c, weight)

    def encoded(self, c: Tensor | None) -> Tensor | None:
        """The context as what is added to the net's inputs [N, width]."""
        return None if self.context_encoder is None or self.given_in is None else self.given_in(self.context_encoder(c))

    def embed(self, u: Tensor, h: Tensor | None, first: int = 0) -> Tensor:
        """Steps [N, L, ...], from number ``first`` on, and contexts h [N, width], or [N, steps, width] where each step
        has its own, -> the net's inputs [N, L, width]."""
        e = self.emission.embed(u)
        if h is None:
            return e
        return e + (h[:, None] if h.ndim == 2 else h[:, first : first + u.shape[1]])

    def reader(self, n: int, h: Tensor | None, most: int, stride: int | None = None) -> Reader:
        """Reads n sequences of at most so many steps, given h."""
        return Reader(self.net, lambda u, first: self.embed(u, h, first), n, most, stride)

    def rows_per_pass(self) -> int:
        """About 2^24 numbers of the widest layer."""
        return max(1, min(1024, 2**24 // (8 * self.config.width * self.steps)))

    def rows_per_draw(self) -> int:
        """A step of many rows costs little more than one of few: the cache alone is a limit."""
        return 512
