"""Autoregressive models of anything with an order: a net over sequences between two ends (``nn.emission``).

    log p(x) = sum_t log p(u_t | u_0, ..., u_{t-1}) + log p(end | u_0, ..., u_T)

for the steps u_1, u_2, ... that a datum is made of (``codecs.steps``): symbols or subwords of a text, levels of a
sound, rows of a sequence, patches of an image. u_0 is the beginning: row i of the net's output is the
distribution of step i + 1, so none is left out. A sampler keeps the net's cache: a step costs the arithmetic
of one step.

Here is what all of them share; those over data of free length are built on ``continuing``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pofx.codecs.steps import Codec
from pofx.core.space import Space
from pofx.decode.net import Reader
from pofx.families.conditioned import Conditioned
from pofx.nn.emission import Emission
from pofx.nn.encoders import Encoded, told
from pofx.nn.sequence import SequenceNet
from pofx.nn.transformer import Transformer


class Stepwise(Conditioned):
    """Base of families over sequences of steps; a subclass makes the codec, the emission and the net."""

    taxonomy = "explicit density / tractable / autoregressive"
    config: Any

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context, width=max(64, config.width))
        self.codec: Codec = self.make_codec()
        self.emission: Emission = self.make_emission()
        self.net: SequenceNet = self.build(config)
        self.given_in = None if context is None else nn.Linear(self.known, config.width, bias=False)

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
        super().prepare(x, c, weight, generator)
        some = x[torch.randperm(len(x), generator=generator)[: self.codec.looked_at]]
        self.codec.prepare(some, generator)
        u = self.codec.encode(some)
        self.emission.prepare(u[~self.emission.filled(u)], ends=len(u) if self.has_eos else 0)

    @property
    def attends(self) -> bool:
        return isinstance(self.net, Transformer)

    def matrices(self) -> list[Tensor]:
        """What Muon is for: the weights between hidden layers, of the encoder of contexts, too."""
        return self.net.matrices() + ([] if self.context_encoder is None else self.context_encoder.matrices())

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Encoded:
        """With the contexts themselves, which a draft encodes, too."""
        return replace(super().encode_context(c, dropped), raw=c)

    def _needed(self, e: Encoded) -> Encoded:
        """With vectors of the net's own width."""
        assert self.given_in is not None
        return replace(super()._needed(e), vector=self.given_in(e.vector))

    def embed(self, u: Tensor, h: Encoded | None, first: int = 0) -> Tensor:
        """Steps [N, L, ...], from number ``first`` on, and contexts whose vectors are [N, width], or [N, steps, width]
        where each step has its own, -> the net's inputs [N, L, width]."""
        e = self.emission.embed(u)
        if h is None:
            return e
        return e + (h.vector[:, None] if h.vector.ndim == 2 else h.vector[:, first : first + u.shape[1]])

    def outputs(self, u: Tensor, h: Encoded | None) -> Tensor:
        """The net's outputs [N, L, width] for steps u [N, L, ...] and contexts h."""
        return self.net(self.embed(u, h), *told(h))

    def reader(self, n: int, h: Encoded | None, most: int, stride: int | None = None) -> Reader:
        """Reads n sequences of at most so many steps, given h."""
        return Reader(self.net, lambda u, first: self.embed(u, h, first), n, most, stride, h)

    def rows_per_pass(self) -> int:
        """About 2^24 numbers of the widest layer."""
        return max(1, min(1024, 2**24 // (8 * self.config.width * self.steps)))

    def rows_per_draw(self) -> int:
        """A step of many rows costs little more than one of few: the cache alone is a limit."""
        return 512
