"""The commands behind ``pofx``: one dataclass of options and one function each."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module

# Command -> (module, function, its options). A module is imported when its command is called.
RUN = {
    "fit": ("fit", "fit", "Fit"),
    "resume": ("fit", "resume", "Resume"),
    "sample": ("sample", "sample", "Sample"),
    "log-prob": ("log_prob", "log_prob", "LogProb"),
    "predict": ("predict", "predict", "Predict"),
    "encode": ("log_prob", "encode", "Encode"),
    "compare": ("compare", "compare", "Compare"),
    "report": ("compare", "report", "Report"),
    "export": ("export", "export", "Export"),
    "families": ("show", "families", "Families"),
    "data": ("show", "data", "ShowData"),
}


def run(command: str, argv: list[str]) -> int:
    """Run one command; the exit code."""
    module, function, _ = RUN[command]
    found: int = getattr(import_module(f"pofx.commands.{module}"), function)(argv)
    return found


def options(command: str) -> set[str]:
    """The options of a command as they are typed; --options and --recipe of fit begin those of a family."""
    module, _, name = RUN[command]
    fields = dataclasses.fields(getattr(import_module(f"pofx.commands.{module}"), name))
    own = {f"--{f.name.replace('_', '-')}" for f in fields}
    return own | {"--options", "--recipe"} if command == "fit" else own


def elsewhere(text: str, command: str) -> str:
    """``text``, which may advise options, with a word on those that belong to other commands than this one.

    A reader of data does not know who asked for them: what it advises 'fit', 'log-prob' may not take.
    """
    named = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    owners = {o: [c for c in RUN if o in options(c)] for o in named}
    lacking = [f"{o} is an option of 'pofx {c[0]}'" for o, c in owners.items() if c and command not in c]
    return f"{text} ({'; '.join(lacking)}, not of 'pofx {command}'.)" if lacking else text
