"""Any datum as a segment of a longer sequence: so many steps, each of which a net reads and emits.

    Text, Audio, Sequence   its symbols, levels or rows (``codecs.stepped``), and an end that has a probability
    Image                   its patches, row by row; with patches of one grey pixel a step is one softmax
    Label                   one symbol
    Table, Reals, Codes     one step of all its values, each given those before it in the step

``segment`` is open: a space of a third party's takes part by registering its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from pofx.codecs.stepped import stepped
from pofx.codecs.steps import Codec, Patches
from pofx.core.space import Ragged, Space
from pofx.nn.emission import Emission, StepHead, TokenHead
from pofx.nn.heads import Head, LevelLogistics
from pofx.nn.sites import FEW_LEVELS, Heads, heads_for, image_head, mixes, side_by_side
from pofx.spaces import Image, Label, Table


@dataclass(frozen=True)
class Segment:
    """Both ends of a net over the steps of a datum, by the options of a family.

    Attributes:
        steps: of the longest datum; shorter ones end, and are filled up.
        options: the names of those that mean something here.
        codec: config -> how data become steps.
        emission: config -> how a step enters and leaves the net.
    """

    steps: int
    options: tuple[str, ...]
    codec: Callable[[Any], Codec]
    emission: Callable[[Any], Emission]


@singledispatch
def segment(space: Space, config: Any) -> Segment | str:
    """How a datum of the space is gone through, by these options; or why it is not, in a sentence with the remedy."""
    if not space.columns:
        return f"{space} are not made of steps. Give images, labels, texts or columns."
    flat = Table(space.columns)
    inner = ("inner_width", "inner_layers") if space.dims > 1 else ()
    mixed = ("components",) if mixes(space, "auto") else ()
    return Segment(
        1, (*inner, *mixed), lambda o: One(space), lambda o: _step(heads_for(flat, components=o.components), o)
    )


@segment.register
def _(space: Ragged, config: Any) -> Segment | str:
    known = stepped(space)
    if known is None:
        return f"{space} have no order of steps. Give texts, sounds or sequences."
    if not space.has_eos:
        return "excerpts have no end of their own. Give whole documents: --separator."
    options = known.options(_plain(config))
    return Segment(space.length, options, lambda o: known.codec(_plain(o)), lambda o: known.emission(_plain(o), False))


@segment.register
def _(space: Label, config: Any) -> Segment | str:
    return Segment(1, (), lambda o: One(space), lambda o: TokenHead(len(space.values), o.width, has_eos=False))


@segment.register
def _(space: Image, config: Any) -> Segment | str:
    if config.patch and (space.height % config.patch or space.width % config.patch):
        return f"{space.height}×{space.width} pixels are not made of patches of {config.patch}. Choose a divisor."
    side = config.patch or max(p for p in (1, 2, 3, 4) if space.height % p == 0 and space.width % p == 0)
    whole = config.image_head == "diffusion"  # a step's values at once, with what a family makes of them
    symbols, errors = side * space.channels == 1 and not whole, space.levels > FEW_LEVELS and not whole
    sites = space.channels * side**2

    def emission(o: Any) -> Emission:
        if symbols:
            return TokenHead(space.levels, o.width, has_eos=False)
        head: Head = image_head("auto", space.levels, components=o.components, sites=(sites,))
        if errors:
            head = LevelLogistics(space.levels, o.components, (sites,), errors=True)
        return _step(Heads(side_by_side(sites), [head], [range(sites)]), o)

    options = ("patch", *(() if symbols else ("inner_width", "inner_layers")), *(("components",) if errors else ()))
    steps = space.height * space.width // side**2
    return Segment(steps, options, lambda o: Patches(space, side, symbols, errors=errors), emission)


class One(Codec):
    """A whole datum as one step: a symbol [N, 1], or all of its values [N, 1, D]."""

    aligned = False

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def encode(self, x: Tensor) -> Tensor:
        return x[:, None] if x.ndim == 1 else x.flatten(1)[:, None]

    def decode(self, u: Tensor) -> Tensor:
        return u[:, 0].to(self.space.dtype).reshape(len(u), *self.space.event_shape)


def _plain(o: Any) -> Any:
    """What ``stepped`` asks besides these options: symbols and levels as they are."""
    own = {name: getattr(o, name) for name in ("width", "components", "inner_width")}
    return SimpleNamespace(**own, vocabulary=0, tied=False, marginal=True, prediction=0)


def _step(heads: Heads, o: Any) -> StepHead:
    return StepHead(heads, o.width, hidden=o.inner_width, layers=o.inner_layers, has_eos=False)
