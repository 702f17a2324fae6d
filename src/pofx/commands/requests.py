"""Flags of the command line for ``core.requests``: one for each field, with the words of the docstrings."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from docstring_parser import parse_from_object
from tyro.conf import UseAppendAction, arg

from pofx.commands.hints import bare
from pofx.commands.usage import Group
from pofx.core.errors import UsageError
from pofx.core.requests import ESTIMATORS, SAMPLERS

if TYPE_CHECKING:
    from pofx.core.model import Model
    from pofx.core.requests import Request, Sampler

A = TypeVar("A")

OWN = " [default: the model's own]"


def _flags(option: str, kinds: Sequence[Any], title: str) -> Any:
    """A group of options: ``--option NAME``, of one of these classes, and one for each field of theirs."""
    hints = {name: hint for kind in kinds for name, hint in _fields(kind).items()}
    about = "; ".join(f"{kind.name}: {_about(kind)}" for kind in kinds)
    words = [f"{option}: {about} [default: the first of the model's that takes the options given]."]
    for name in hints:
        said: dict[str, list[str]] = {}  # what the field means, and of which classes
        for kind in (k for k in kinds if name in _fields(k)):
            said.setdefault(_said(kind, name), []).append(kind.name)
        several = len(said) > 1
        each = [_of(text.replace(OWN, "") if several else text, ", ".join(names)) for text, names in said.items()]
        words.append(f"{name}: {'; '.join(each)}{OWN * several}.")
    fields = [(option, Annotated[str | None, arg(metavar="NAME")], dataclasses.field(default=None))]
    fields += map(_flag, hints, hints.values())
    group: Any = dataclasses.make_dataclass("Flags", fields, bases=(Group,), kw_only=True)
    group.__doc__ = "\n".join([title, "", "Attributes:", *(f"    {line}" for line in words)])
    return group


def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _about(kind: type) -> str:
    """The first line of a docstring, without its paper."""
    return re.sub(r" \([^()]*\d{4}[^()]*\)", "", parse_from_object(kind).short_description or "").rstrip(".")


def _said(kind: type, name: str) -> str:
    """What the docstring of the class, or of the one that it has the field from, says of it."""
    every = (p.description or "" for c in kind.__mro__ for p in parse_from_object(c).params if p.arg_name == name)
    return " ".join(next(every).split()).rstrip(".")


def _of(text: str, names: str) -> str:
    """The text with the names in brackets before its default."""
    told, default, value = text.partition(" [default: ")
    return f"{told} ({names}){default}{value}"


def _flag(name: str, hint: Any) -> tuple[str, Any, Any]:
    plain = bare(hint)
    if plain is bool:
        return name, bool, dataclasses.field(default=False)
    if typing.get_origin(plain) is tuple:
        return name, UseAppendAction[list[str]], dataclasses.field(default_factory=list)
    return name, (Path if plain is Any else plain) | None, dataclasses.field(default=None)  # a model by its run


Estimating = _flags("estimator", ESTIMATORS, "likelihood")
Sampling = _flags("sampler", SAMPLERS, "drawing")


def request_of(args: Any, model: Model) -> Request:
    """The estimator that the flags ask for, in the model's own numbers where they give none."""
    return _asked(args, Estimating, model.own_estimators, model.default_request, model.name)


def sampler_of(args: Any, model: Model) -> Sampler:
    from pofx.commands.model import read_model

    draft = None if args.draft is None else read_model(args.draft).model
    made = dataclasses.replace(args, draft=draft, stop=tuple(args.stop))
    return _asked(made, Sampling, model.own_samplers, model.default_sampler, model.name)


def _asked(args: Any, flags: Any, kinds: Sequence[type[A]], default: Callable[[type[A]], A], whose: str) -> A:
    option, *names = [f.name for f in dataclasses.fields(flags)]
    known, name = {kind.name: kind for kind in kinds}, getattr(args, option)  # type: ignore[attr-defined]
    if name is not None and name not in known:
        raise UsageError(f"{whose} has no {option} {name!r}, but {', '.join(known)}.")
    given = {k: v for k in names if (v := getattr(args, k)) is not None and v is not False and v != ()}
    among = kinds if name is None else [known[name]]
    for kind in among:
        if given.keys() <= _fields(kind).keys():
            return dataclasses.replace(default(kind), **given)  # type: ignore[type-var]
    lacking = next(k for k in given if k not in _fields(among[0]))
    flag = f"--{lacking.replace('_', '-')}"
    holders = [n for n, kind in known.items() if lacking in _fields(kind)]
    if not holders:
        raise UsageError(f"No {option} of this {whose} ({', '.join(known)}) takes {flag}.", f"Leave out {flag}.")
    raise UsageError(
        f"The {option} {name or next(iter(known))} of {whose} takes no {flag}; {', '.join(holders)} would.",
        f"Give --{option} {holders[0]}, or leave out {flag}.",
    )
