"""Spaces of data of free length, and how each is gone through step by step.

``stepped`` is open: a space of a third party's takes part by registering its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from pofx.codecs.steps import Codec, Plain, Predicted, Subwords
from pofx.nn.emission import Emission, StepHead, TokenHead
from pofx.nn.heads import Head, LevelLogistics
from pofx.nn.sites import Heads, heads_for, image_head, side_by_side
from pofx.spaces import Audio, Sequence, Text


@dataclass(frozen=True)
class Stepped:
    """Both ends of a net over the steps of a space, by the options of a family (``families.continuing.StepOptions``).

    Attributes:
        options: the names of those that mean something here.
        codec: config -> how data become steps.
        emission: config, whether embeddings start small -> how a step enters and leaves the net.
    """

    options: tuple[str, ...]
    codec: Callable[[Any], Codec]
    emission: Callable[[Any, bool], Emission]


@singledispatch
def stepped(space: Any) -> Stepped | None:
    """How data of this space are gone through; None where they have no order of steps."""
    return None


@stepped.register
def _(space: Text) -> Stepped:
    def codec(config: Any) -> Codec:
        return Subwords(space, config.vocabulary) if config.vocabulary else Plain(space)

    def emission(config: Any, small: bool) -> Emission:
        options = {"tied": config.tied, "marginal": config.marginal, "small": small}
        return TokenHead(config.vocabulary or space.symbols, config.width, has_eos=space.has_eos, **options)

    return Stepped(("vocabulary", "tied", "marginal"), codec, emission)


@stepped.register
def _(space: Audio) -> Stepped:
    def codec(config: Any) -> Codec:
        return Predicted(space, config.prediction) if config.prediction else Plain(space, single=True)

    def emission(config: Any, small: bool) -> Emission:
        if config.prediction:
            head: Head = LevelLogistics(space.levels, config.components, (1,), errors=True)
        else:
            head = image_head("auto", space.levels, components=config.components, sites=(1,))
        return StepHead(Heads(side_by_side(1), [head], [[0]]), config.width, has_eos=space.has_eos)

    return Stepped(("components", "prediction"), codec, emission)


@stepped.register
def _(space: Sequence) -> Stepped:
    def emission(config: Any, small: bool) -> Emission:
        heads = heads_for(space.step, components=config.components)
        return StepHead(heads, config.width, hidden=config.inner_width, has_eos=space.has_eos)

    return Stepped(("components", "inner_width"), lambda config: Plain(space), emission)
