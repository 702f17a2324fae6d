"""A model inside another: how an option names its family and options, and what config.json says of both.

nsf                       a family, with its own defaults
nsf:layers=3,hidden=64    and with options of its own
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from typing import Any

from pofx.core.errors import Unsupported, UsageError
from pofx.core.family import idle, replace_config
from pofx.core.model import Model
from pofx.core.registry import family
from pofx.core.space import Space


def spelled(text: str) -> tuple[str, dict[str, Any]]:
    """A name and its options. Raises UsageError.

    Example:
        >>> spelled("nsf:layers=3,kind=coupling")
        ('nsf', {'layers': 3, 'kind': 'coupling'})
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for entry in re.split(r",(?=\s*\w+\s*=)", rest) if rest else []:
        option, equals, value = (part.strip() for part in entry.partition("="))
        if not equals:
            raise UsageError(f"{entry!r} of {text!r} is no OPTION=VALUE.", "Write NAME:OPTION=VALUE,OPTION=VALUE.")
        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a word
            options[option] = value
    return name, options


def configured(cls: type[Model], space: Space, context: Space | None, options: dict[str, Any]) -> Any:
    """A Config of these options. Raises UsageError or Unsupported for what the family lacks or cannot use here."""
    config = replace_config(cls.Config(), options)
    if reason := cls.refuses(space, context, config):
        raise Unsupported(f"{cls.name} does not serve {space}: {reason}", "See 'pofx families'.")
    if unused := idle(cls, space, context, config):
        given = ", ".join(f"{k}={getattr(config, k)!r}" for k in unused)
        raise Unsupported(
            f"{given} changes nothing in a {cls.name} of this {space}.",
            f"Leave out {' and '.join(unused)}.",
        )
    return config


def nested(text: str, space: Space, context: Space | None = None) -> Model:
    """A fresh model that is a part of another, over ``space``. Raises UsageError or Unsupported, with its name."""
    name, options = spelled(text)
    cls = family(name)
    try:
        config = configured(cls, space, context, options)
    except (UsageError, Unsupported) as error:
        raise type(error)(f"{name} as a part ({text}): {error.problem}", error.remedy) from error
    return cls(config, space, context)


def record(model: Model) -> dict[str, Any]:
    """What config.json says of a model and, in it, of its parts: plain values."""
    about = {
        "family": model.name,
        "options": dataclasses.asdict(model.config),
        "space": model.space.to_json(),
        "context": None if model.context is None else model.context.to_json(),
        "parts": {name: record(part) for name, part in model.parts().items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain
