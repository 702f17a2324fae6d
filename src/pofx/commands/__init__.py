"""The commands behind ``pofx``: one dataclass of options and one function each."""

from __future__ import annotations

from importlib import import_module

# Command -> (module, function). A module is imported when its command is called.
RUN = {
    "fit": ("fit", "fit"),
    "resume": ("fit", "resume"),
    "sample": ("sample", "sample"),
    "log-prob": ("score", "log_prob"),
    "encode": ("score", "encode"),
    "compare": ("compare", "compare"),
    "report": ("compare", "report"),
    "export": ("export", "export"),
    "families": ("show", "families"),
    "data": ("show", "data"),
}


def run(command: str, argv: list[str]) -> int:
    """Run one command; the exit code."""
    module, function = RUN[command]
    found: int = getattr(import_module(f"pofx.commands.{module}"), function)(argv)
    return found
