"""Data of x and what is given as pairs of both, for models of the joint p(x, c), and back.

joined    p(x | c) -> p(x, c): the space is a Pair, a what was modelled and b what was given
apart     rows of pairs -> rows of one part, alone or given the other
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from pofx.core.abilities import PartName
from pofx.core.errors import UsageError
from pofx.core.space import Space
from pofx.data.parts import Data, Part
from pofx.spaces import Pair


def joined(data: Data) -> Data:
    """The same rows as pairs, x first. Raises UsageError for data without a context.

    Example:
        >>> import pofx
        >>> digits = joined(pofx.load("digits", given="label"))
        >>> digits.space.parts[1].values[:3], digits.train.x.shape[1:], digits.context
        (('0', '1', '2'), torch.Size([65]), None)
    """
    if data.context is None:
        raise UsageError("Nothing is given, so there is nothing to model together.", "Say what: --given.")
    parts = {name: getattr(data, name).read() for name in ("train", "valid", "test")}
    a, b = (
        _as_long(space, [getattr(p, kind) for p in parts.values()])
        for space, kind in ((data.space, "x"), (data.context, "c"))
    )
    space = Pair(a, b)
    train, valid, test = (paired(space, p) for p in parts.values())
    options = data.options | {"joint": True}
    return dataclasses.replace(data, space=space, context=None, train=train, valid=valid, test=test, options=options)


def paired(space: Any, part: Part) -> Part:
    """Rows of a given b as pairs of the space. Raises WrongShape for data that are too long for it."""
    part = part.read()
    return dataclasses.replace(part, x=space.join(part.x, part.c), c=None, before=None)


def apart(space: Any, part: Part, name: PartName, given: bool = False) -> Part:
    """Rows of pairs as those of one part, with the other as their contexts where it is ``given``."""
    both: dict[str, Tensor] = dict(zip(("a", "b"), space.split(part.read().x), strict=True))
    own, (other,) = both.pop(name), both.values()
    return dataclasses.replace(part, x=own, c=other if given else None)


def given_the_other(data: Data, name: PartName) -> Data:
    """Data of pairs as p(one part | the other)."""
    pair: Any = data.space
    own, other = pair.parts if name == "a" else pair.parts[::-1]
    parts: Any = {n: apart(data.space, getattr(data, n), name, given=True) for n in ("train", "valid", "test")}
    return dataclasses.replace(data, space=own, context=other, **parts)


def _as_long(space: Space, rows: list[Tensor]) -> Space:
    """The space with room for the longest of these data."""
    longest = max(int(space.lengths(x).max()) if len(x) else 0 for x in rows)
    return space if space.fill is None or longest <= space.length else dataclasses.replace(space, length=longest)  # type: ignore[type-var]
