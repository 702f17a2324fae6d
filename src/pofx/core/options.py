"""Options of families, recipes and requests: frozen dataclasses of plain values, checked where they are made."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Union

from pofx.core.errors import UsageError


@dataclass(frozen=True)
class Range:
    """Finite numbers from ``low`` to ``high``; ``above``, ``below``: without that end itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        return low and high and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        high = f"below {self.high:g}" if self.below else f"at most {self.high:g}"
        sides = [s for s, end in ((low, self.low), (high, self.high)) if math.isfinite(end)]
        return ", ".join(["a finite number", *sides] if len(sides) < 2 else sides)


def at_least(low: float, high: float = math.inf) -> Range:
    return Range(low, high)


COUNT = at_least(1)
AMOUNT = at_least(0)
POSITIVE = Range(0, above=True)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, below=True)


class Options:
    """Base of a frozen dataclass of options: values of another type, or out of range, raise UsageError by name.

    Whole numbers are 1 or more and others 0 or more, all of them finite, unless ``ranges`` of the class (or of one
    that it inherits from) says otherwise. A field's ``metadata`` may have a "remedy" for values that are not.

    ``unsaid`` has what was true before there was an option, where that is not its default: a run that names no value
    of it was made so.
    """

    ranges: ClassVar[dict[str, Range]] = {}
    unsaid: ClassVar[dict[str, Any]] = {}

    @classmethod
    def earlier(cls, named: dict[str, Any]) -> dict[str, Any]:
        """The options that a run ``named`` when it was saved, and what was true of those that there were not yet."""
        return {k: v for c in reversed(cls.__mro__) for k, v in vars(c).get("unsaid", {}).items()} | named

    def __post_init__(self) -> None:
        hints, options = _hints(type(self)), dataclasses.fields(self)  # type: ignore[arg-type]
        for f in options:
            limit = next((r[f.name] for c in type(self).__mro__ if f.name in (r := vars(c).get("ranges", {}))), None)
            default = f.default
            remedy = "" if default is dataclasses.MISSING or default is None else f"Leave it out for {default}."
            check(f.name, getattr(self, f.name), hints[f.name], limit, f.metadata.get("remedy", remedy))


_hints = cache(typing.get_type_hints)


def check(name: str, value: Any, kind: Any, limit: Range | None = None, remedy: str = "") -> None:
    """Raise UsageError unless ``value`` is of a type (int, float, bool, str, a Literal, a tuple, or one of several)
    and within its limit, by default COUNT of whole numbers and AMOUNT of others.

    Example:
        >>> check("draws", 8, int, at_least(2))
        >>> check("draws", 1, int, at_least(2))
        Traceback (most recent call last):
        ...
        pofx.core.errors.UsageError: draws is 1; it must be a finite number, 2 or more.
    """
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return
    [kind, *others] = [k for k in kinds if k is not type(None)]
    if others or kind is Any:
        return
    if typing.get_origin(kind) is Literal:
        known = typing.get_args(kind)
        if value not in known:
            raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}.", remedy)
    elif typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if not isinstance(value, tuple) or (parts[-1] is not Ellipsis and len(value) != len(parts)):
            raise UsageError(f"{name} is {value!r}; it must be a tuple of {len(parts)} values.", remedy)
        for v in value:
            check(name, v, parts[0], limit, remedy)
    elif kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | kind):
            raise UsageError(f"{name} is {value!r}; it must be {_KINDS[kind]}.", remedy)
        limit = limit or (COUNT if kind is int else AMOUNT)
        if value not in limit:
            raise UsageError(f"{name} is {value}; it must be {limit}.", remedy)
    elif kind in _KINDS and not isinstance(value, kind):
        raise UsageError(f"{name} is {value!r}; it must be {_KINDS[kind]}.", remedy)


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
