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
from pofx.nn.sites import FEW_LEVELS, Heads, heads_for, image_head, mixes, side_by_side
from pofx.spaces import Audio, Sequence, Text


@dataclass(frozen=True)
class Stepped:
    """Both ends of a net over the steps of a space, by the options of a family (``families.continuing.StepOptions``).

    Attributes:
        options: config -> the names of those that mean something here.
        codec: config -> how data become steps.
        emission: config, whether embeddings start small -> how a step enters and leaves the net.
    """

    options: Callable[[Any], tuple[str, ...]]
    codec: Callable[[Any], Codec]
    emission: Callable[[Any, bool], Emission]


@singledispatch
def stepped(space: Any) -> Stepped | None:
    """How data of this space are gone through; None where they have no order of steps."""
    return None


@stepped.register
def _(space: Text) -> Stepped:
    return Stepped(
        lambda o: ("vocabulary", "tied", "marginal", "smoothing"),
        lambda o: Subwords(space, o.vocabulary) if o.vocabulary else Plain(space),
        lambda o, small: TokenHead(
            o.vocabulary or space.symbols, o.width, has_eos=space.has_eos, tied=o.tied, marginal=o.marginal, small=small
        ),
    )


@stepped.register
def _(space: Audio) -> Stepped:
    def emission(o: Any, small: bool) -> Emission:
        if o.prediction:
            head: Head = LevelLogistics(space.levels, o.components, (1,), errors=True)
        else:
            head = image_head("auto", space.levels, components=o.components, sites=(1,))
        return StepHead(Heads(side_by_side(1), [head], [[0]]), o.width, has_eos=space.has_eos)

    return Stepped(
        lambda o: ("prediction", "components") if o.prediction or space.levels > FEW_LEVELS else ("prediction",),
        lambda o: Predicted(space, o.prediction) if o.prediction else Plain(space, single=True),
        emission,
    )


@stepped.register
def _(space: Sequence) -> Stepped:
    used = {"components": mixes(space.step, "auto"), "inner_width": space.step.dims > 1}
    return Stepped(
        lambda o: tuple(name for name, means in used.items() if means),
        lambda o: Plain(space),
        lambda o, small: StepHead(
            heads_for(space.step, components=o.components), o.width, hidden=o.inner_width, has_eos=space.has_eos
        ),
    )
