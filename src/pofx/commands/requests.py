"""Flags of the command line for ``core.requests``: one for each field, with the words of the docstrings."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from docstring_parser import Docstring, parse
from tyro.conf import UseAppendAction, arg

from pofx.commands.hints import bare, hints
from pofx.commands.usage import Group
from pofx.core.errors import UsageError
from pofx.core.requests import ESTIMATORS, SAMPLERS
from pofx.core.spelling import meant

if TYPE_CHECKING:
    from pofx.core.model import Model
    from pofx.core.requests import Request, Sampler


def _flags(option: str, kinds: Sequence[Any], title: str) -> Any:
    """A group of options: ``--option NAME``, of one of these classes, and one for each field of theirs."""
    found = {name: hint for kind in kinds for name, hint in hints(kind)}
    about = "; ".join(
        f"{of} ({_listed(some)})" if of else _listed(some)
        for of, some in groupby(kinds, lambda kind: getattr(kind, "group", None))
    )
    lines = [title, "", "Attributes:", f"    {option}: {about} [default: the first that takes the options given]."]
    for name in found:
        said: dict[str, list[str]] = {}  # what it means, and of which classes, or of which group
        for kind in (k for k in kinds if name in k.__dataclass_fields__):
            owner, text = _said(kind, name)
            whose = said.setdefault(text, [])
            if (of := vars(owner).get("group", kind.name)) not in whose:
                whose.append(of)
        lines.append(f"    {name}: " + "; ".join(f"of {', '.join(of)}: {text}" for text, of in said.items()) + ".")
    fields = [(option, Annotated[str | None, arg(metavar="NAME")], dataclasses.field(default=None))]
    group: Any = dataclasses.make_dataclass(
        "Flags", [*fields, *map(_flag, found, found.values())], bases=(Group,), kw_only=True
    )
    group.__doc__ = "\n".join(lines)
    return group


@cache  # many fields are asked of the same classes
def _parsed(kind: type) -> Docstring:
    return parse(kind.__doc__ or "")


def _listed(kinds: Iterable[Any]) -> str:
    return "; ".join(f"{kind.name}: {_parsed(kind).short_description}".rstrip(".") for kind in kinds)


def _said(kind: type, name: str) -> tuple[type, str]:
    """What the docstring of the class, or of the one that it has the field from, says of it; and which that is."""
    every = ((c, p.description or "") for c in kind.__mro__ for p in _parsed(c).params if p.arg_name == name)
    owner, text = next(every)
    return owner, " ".join(text.split()).rstrip(".")


def _flag(name: str, hint: Any) -> tuple[str, Any, Any]:
    plain = bare(hint)
    if plain is bool:
        return name, bool, dataclasses.field(default=False)
    if typing.get_origin(plain) in (typing.Union, types.UnionType):
        plain = typing.get_args(plain)[0]  # of several types, the one that can be spelt stands first
    if typing.get_origin(plain) is tuple:
        return name, UseAppendAction[list[str]], dataclasses.field(default_factory=list)
    return name, (Path if plain is Any else plain) | None, dataclasses.field(default=None)  # a model by its run


Estimating = _flags("estimator", ESTIMATORS, "likelihood")
Sampling = _flags("sampler", SAMPLERS, "drawing")


def request_of(args: Any, model: Model) -> Request:
    """The estimator that the flags ask for, in the model's own numbers where they give none."""
    found: Request = _asked(args, Estimating, model.own_estimators, model.default_request, model.name)
    return found


def sampler_of(args: Any, model: Model) -> Sampler:
    from pofx.commands.model import read_model

    draft = None if args.draft is None else read_model(args.draft).model
    args = dataclasses.replace(args, draft=draft, stop=tuple(args.stop))
    found: Sampler = _asked(args, Sampling, model.own_samplers, model.default_sampler, model.name)
    return found


def _asked(args: Any, flags: Any, kinds: Sequence[Any], default: Callable[[Any], Any], whose: str) -> Any:
    option, *names = [f.name for f in dataclasses.fields(flags)]
    known, name = {kind.name: kind for kind in kinds}, getattr(args, option)
    if name is not None and name not in known:
        hint = meant(name, known, f"Leave out --{option}, or give one of these.")
        raise UsageError(f"{whose} has no {option} {name!r}, but {', '.join(known)}.", hint)
    given = {k: v for k in names if (v := getattr(args, k)) is not None and v is not False and v != ()}
    among = kinds if name is None else [known[name]]
    for kind in among:
        if given.keys() <= kind.__dataclass_fields__.keys():
            return dataclasses.replace(default(kind), **given)
    lacking = next(k for k in given if k not in among[0].__dataclass_fields__)
    flag = f"--{lacking.replace('_', '-')}"
    takers = [n for n, kind in known.items() if lacking in kind.__dataclass_fields__]
    raise UsageError(
        f"The {option} {among[0].name} of this {whose} takes no {flag}; it is of {', '.join(takers) or 'no other'}.",
        f"Give --{option} {takers[0]}, or leave out {flag}." if takers else f"Leave out {flag}.",
    )
