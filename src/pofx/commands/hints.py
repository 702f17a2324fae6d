"""What the annotations of a command's dataclass say of its options."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Annotated, Any


def hints(kind: Any) -> Iterator[tuple[str, Any]]:
    """The name and the type, with all that it is annotated with, of each field."""
    found = typing.get_type_hints(kind, include_extras=True)
    return ((f.name, found[f.name]) for f in dataclasses.fields(kind))


def marks(hint: Any) -> tuple[Any, ...]:
    """What a type is annotated with."""
    return hint.__metadata__ if typing.get_origin(hint) is Annotated else ()


def bare(hint: Any) -> Any:
    """A type without annotations, and without None beside it."""
    if typing.get_origin(hint) is Annotated:
        return bare(hint.__origin__)
    some = [h for h in typing.get_args(hint) if h is not type(None)]
    return some[0] if type(None) in typing.get_args(hint) and len(some) == 1 else hint


def spelled(name: str, default: Any) -> str:
    """A field as an option, without its prefix: what is True unless said otherwise has the option that says so."""
    return ("no-" if default is True else "") + name.replace("_", "-")
