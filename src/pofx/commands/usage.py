"""The page of ``pofx COMMAND --help``: the options in groups, each beginning with what holds without it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from docstring_parser import Docstring, parse, parse_from_object
from tyro.conf import Positional, UseAppendAction

from pofx.commands.hints import bare, hints, marks, spelled
from pofx.commands.terminal import Terminal, fold

INDENT, TEXT, WIDEST = 2, 26, 110  # cells before an option, before its words, and of a line


class Group:
    """Base of a dataclass of options that stand together on a page, under the docstring's first line."""


def show(out: Terminal, kind: Any, command: str) -> None:
    """Print the page of a command whose options are the fields of this dataclass."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for _, title, option, words in sorted(_entries(kind), key=lambda entry: entry[0]):
        groups.setdefault(title, []).append((option, words))
    arguments = [option for option, _ in groups.get("arguments", [])]
    about = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(kind.__doc__))
    lines = [f"usage: {' '.join(['pofx', command, *arguments, '[OPTIONS]'])}", "", *about.split("\n"), ""]
    lines.append("Options may stand anywhere. In [brackets]: what holds without the option.")
    width = min(out.width, WIDEST)
    for title, entries in groups.items():
        lines += ["", f"{title}:"]
        for option, words in entries:
            lines += _entry(option, words, width)
    for line in lines:
        for piece in fold(line, width):
            out.print(piece)


def _entries(kind: Any, prefix: str = "--", title: str = "") -> Iterator[tuple[tuple[int, int], str, str, str]]:
    """Of each option where its group and itself stand, the group's title, how it is written, and its words."""
    words = {p.arg_name: p.description or "" for c in reversed(kind.__mro__[:-1]) for p in _documented(c).params}
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name, hint in hints(kind):
        field, plain = fields[name], bare(hint)
        if dataclasses.is_dataclass(plain):  # the options of a family, before those of every fit
            yield from _entries(plain, f"{prefix}{name}.", field.metadata["title"])
            continue
        default = None if field.default is dataclasses.MISSING else field.default
        told = _with_default(words.get(name, ""), default)
        option = f"{prefix}{spelled(name, default)} {_metavar(hint)}".rstrip()
        if Positional in marks(hint):
            yield (0, 0), "arguments", _metavar(hint), told
        elif title:
            yield (1, 0), title, option, told
        else:
            at = next(k for k, c in enumerate(kind.__mro__) if name in vars(c).get("__annotations__", {}))
            owner = kind.__mro__[at]
            if Group in owner.__bases__:
                yield (3 + at, 0), _title(owner), option, told
            else:  # a command's own before those that it inherits
                yield (2, at), "options", option, told


def _documented(cls: type) -> Docstring:
    """What the docstrings of a class and of its fields say; one that was made while we run has no source."""
    written = getattr(sys.modules[cls.__module__], cls.__name__, None) is cls
    return parse_from_object(cls) if written else parse(cls.__doc__ or "")


def _title(group: type) -> str:
    return (inspect.getdoc(group) or "").partition("\n")[0].rstrip(".")


def _with_default(words: str, default: Any) -> str:
    """[What holds without the option], then what it is."""
    words = " ".join(words.split())
    told = re.search(r" ?\[default: (.*?)\](?=[.,:;]|$)", words)
    if told:
        return f"[{told[1]}] {words[: told.start()]}{words[told.end() :]}"
    if default in (None, "", ()) or default is False:
        return words
    return f"[{','.join(map(str, default)) if isinstance(default, tuple) else default}] {words}"


def _metavar(hint: Any) -> str:
    """What stands for the value of an option."""
    named = [m for m in (getattr(mark, "metavar", None) for mark in marks(hint)) if m is not None]
    plain = bare(hint)
    if named:
        return str(named[0])
    if plain is bool:
        return ""
    if typing.get_origin(plain) is Literal:
        return "|".join(map(str, typing.get_args(plain)))
    if UseAppendAction in marks(hint):
        return "TEXT"
    if typing.get_origin(plain) in (list, tuple):
        return f"{_metavar(typing.get_args(plain)[0])},..."
    return {int: "N", float: "NUMBER", Path: "PATH"}.get(plain, "NAME")


def _entry(option: str, words: str, width: int) -> list[str]:
    """An option and its words beside it, or below where the option is long."""
    folded = fold(words, width - TEXT)
    begin = " " * INDENT + option
    beside = len(begin) + INDENT <= TEXT
    texts = [line.lstrip(" ") for line in folded]
    first = [f"{begin:{TEXT}}{texts[0]}"] if beside else [begin, " " * TEXT + texts[0]]
    return [*first, *(" " * TEXT + text for text in texts[1:])]
