"""The grammar of the command line: options stand anywhere, and lists take commas and repeats.

A command's options are the fields of a dataclass, which ``tyro`` reads. Lists are told by their types:

    list[str]                    --drop a,b or --drop a --drop b; what holds a comma stands in quotes: --drop '"a,b",c'
    tuple[int, ...] and others   --shape 28,28 or --shape 28 28
    Annotated[str, COMMAS]       the same, as it is written
    UseAppendAction[list[str]]   texts, whose commas are their own: --stop . --stop ', and'
"""

from __future__ import annotations

import csv
import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from pofx.commands.hints import bare, hints, marks, spelled
from pofx.commands.terminal import Terminal
from pofx.core.errors import UsageError
from pofx.core.spelling import join, meant

Takes = Literal["nothing", "value", "names", "numbers", "texts"]  # what follows an option
COMMAS = "commas"  # a mark of a str that holds a list, which whoever gets it takes apart: its repeats are joined
HELP = ("-h", "--help")
LISTS = ConstructorRegistry()


def parse(kind: Any, argv: list[str], command: str) -> Any:
    """The options of ``kind`` that these arguments give; --help prints its page and exits."""
    if any(h in argv for h in HELP):
        from pofx.commands.usage import show

        show(Terminal(), kind, command)
        raise SystemExit(0)
    options, positional, unknown = arrange(kind, argv)
    if unknown:
        hint = meant(unknown[0], [name for name, _ in _takes(kind)], f"See 'pofx {command} --help'.")
        raise UsageError(f"'pofx {command}' has no option {unknown[0]!r}.", hint)
    places = [name.upper() for name, hint in hints(kind) if Positional in marks(hint)]
    needed = [f.name.upper() for f in dataclasses.fields(kind) if f.name.upper() in places and _has_no_default(f)]
    if missing := needed[len(positional) :]:
        raise UsageError(f"'pofx {command}' needs {' and '.join(missing)}.", f"See 'pofx {command} --help'.")
    if len(positional) > len(places):
        raise UsageError(
            f"'pofx {command}' takes {' '.join(places) or 'options only'}; there are {len(positional)} arguments: "
            f"{' '.join(positional)}.",
            "The values of a list stand together (a,b) or each after its own option.",
        )
    _one_of(kind, options, command)
    end = ["--"] if any(p.startswith("-") for p in positional) else []
    with LISTS:
        return tyro.cli(
            kind, args=[*options, *end, *positional], prog=f"pofx {command}", config=(tyro.conf.FlagCreatePairsOff,)
        )


def read(kind: Any, values: Sequence[tuple[str, str]], command: str) -> Any:
    """An instance of ``kind`` of these fields and their values as they are spelt, True and False among them."""
    with LISTS:
        args = [f"--{name}={value}" for name, value in values]
        return tyro.cli(kind, args=args, prog=command, config=(tyro.conf.FlagConversionOff,))


def arrange(kind: Any, argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """The options with their values behind =, each list in one; the other arguments; the options that ``kind`` lacks.

    Those are taken to have a value.
    """
    takes = dict(_takes(kind))
    options, positional, unknown = list[str](), list[str](), list[str]()
    lists: dict[str, list[str]] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--":
            positional, rest = positional + rest, []
            continue
        if not token.startswith("--"):
            (unknown if re.match("-[a-zA-Z]", token) else positional).append(token)
            continue
        name, equals, value = token.partition("=")
        how = takes.get(name := name.replace("_", "-"))
        if how is None:
            unknown.append(name)
        missing = not equals and (not rest or rest[0].startswith("--"))
        if missing and how not in (None, "nothing"):
            raise UsageError(f"{name} takes a value; none follows.", f"Write one that begins with --: {name}=VALUE.")
        if missing or how == "nothing":
            options.append(token)
            continue
        if not equals:
            value = rest.pop(0)
            while how == "numbers" and rest and _is_number(rest[0]):
                value += f",{rest.pop(0)}"
        if how in ("names", "numbers"):
            lists.setdefault(name, []).append(value)
        else:
            options.append(f"{name}={value}")
    return options + [f"{name}={','.join(values)}" for name, values in lists.items()], positional, unknown


def _one_of(kind: Any, options: list[str], command: str) -> None:
    """Raise UsageError for a value that is none of those that its option knows."""
    known = dict(_choices(kind))
    for name, _, value in (option.partition("=") for option in options):
        if (values := known.get(name.replace("_", "-"))) and value not in values:
            hint = meant(value, values, f"See 'pofx {command} --help'.")
            raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(values)}.", hint)


def _choices(kind: Any, prefix: str = "--") -> Iterator[tuple[str, list[str]]]:
    """The options that know their values, and these."""
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    for name, hint in hints(kind):
        plain = bare(hint)
        if dataclasses.is_dataclass(plain):
            yield from _choices(plain, f"{prefix}{name}.")
        elif typing.get_origin(plain) is Literal:
            yield prefix + spelled(name, defaults[name]), [str(v) for v in typing.get_args(plain)]


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_number(text: str) -> bool:
    try:
        return bool([float(part) for part in text.split(",")])
    except ValueError:
        return False


def _takes(kind: Any, prefix: str = "--") -> Iterator[tuple[str, Takes]]:
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    for name, hint in hints(kind):
        plain = bare(hint)
        if dataclasses.is_dataclass(plain):
            yield from _takes(plain, f"{prefix}{name}.")
        elif Positional not in marks(hint):
            yield prefix + spelled(name, defaults[name]), _kind_of_list(hint)


def _kind_of_list(hint: Any) -> Takes:
    plain = bare(hint)
    if plain is bool:
        return "nothing" if hint is bool else "value"  # one that may be None is spelt out
    if COMMAS in marks(hint):
        return "names"
    if typing.get_origin(plain) is list:
        return "texts" if UseAppendAction in marks(hint) else "names"
    return "numbers" if typing.get_origin(plain) is tuple else "value"


@LISTS.primitive_rule
def _names(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type != list[str] or UseAppendAction in info.markers:
        return None
    return _list("NAME,...", split, lambda values: isinstance(values, list), join)


@LISTS.primitive_rule
def _numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type_origin is not tuple:
        return None
    kind, *others = typing.get_args(info.type)
    count = None if Ellipsis in others else 1 + len(others)

    def read(text: str) -> tuple[Any, ...]:
        values = tuple(kind(part) for part in text.split(","))
        if count not in (None, len(values)):
            raise ValueError(f"{len(values)} numbers, not {count}")
        return values

    return _list("NUMBER,...", read, lambda values: isinstance(values, tuple), lambda v: ",".join(map(str, v)))


def _list(
    metavar: str, read: Callable[[str], Any], is_one: Callable[[Any], bool], write: Callable[[Any], str]
) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda tokens: read(tokens[0]),
        is_instance=is_one,
        str_from_instance=lambda values: [write(values)],
    )


def split(text: str) -> list[str]:
    """The values of 'a,b', of which one with a comma in it stands in quotes."""
    return next(csv.reader([text], skipinitialspace=True), None) or [""]
