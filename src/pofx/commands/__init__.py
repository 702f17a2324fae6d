"""The commands behind ``pofx``: one dataclass of options and one function each."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from typing import Any

# Command -> (module, its options, what it does). The function has the command's name. A module is imported when its
# command is called: this one is light.
COMMANDS = {
    "fit": ("fit", "Fit", "fit one family to data; leaves a run folder"),
    "sample": ("sample", "Sample", "draw samples from a run"),
    "log-prob": ("log_prob", "LogProb", "log p(x) of rows in nats, with its kind"),
    "predict": ("predict", "Predict", "probabilities of the classes of rows"),
    "judge": ("judge", "Judge", "draws of p(x | given) beside the truth, by the metrics of the task"),
    "encode": ("log_prob", "Encode", "latents of rows"),
    "latents": ("latents", "Latents", "what is in a latent space: ways, traversals, attributes, groups"),
    "rollout": ("rollout", "Rollout", "play a run's actions in an environment of gymnasium"),
    "compare": ("compare", "Compare", "fit every family that serves, at equal time, and say which to take"),
    "report": ("compare", "Report", "write a run's or a comparison's report as one HTML file"),
    "export": ("export", "Export", "write a model for transformers, torch.export or diffusers"),
    "families": ("show", "Families", "the families, what each claims, and its options"),
    "data": ("show", "ShowData", "what a source holds: types, missing values, splits"),
    "resume": ("fit", "Resume", "continue a fit or a comparison that was interrupted"),
}


def run(command: str, argv: list[str]) -> int:
    """Run one command; the exit code."""
    module, *_ = COMMANDS[command]
    found: int = getattr(import_module(f"pofx.commands.{module}"), command.replace("-", "_"))(argv)
    return found


def kind(command: str) -> Any:
    """The dataclass of a command's options, as far as they are known without its arguments."""
    module, name, _ = COMMANDS[command]
    return getattr(import_module(f"pofx.commands.{module}"), name)


def options(command: str) -> set[str]:
    """The options of a command as they are typed; --options and --recipe of fit begin those of a family."""
    own = {f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(kind(command))}
    return own | {"--options", "--recipe"} if command == "fit" else own


def elsewhere(text: str, command: str) -> str:
    """``text``, which may advise options, with a word on those that belong to other commands than this one.

    A reader of data does not know who asked for them: what it advises 'fit', 'log-prob' may not take.
    """
    named = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    owners = {o: [c for c in COMMANDS if o in options(c)] for o in named}
    lacking = [f"{o} is an option of 'pofx {c[0]}'" for o, c in owners.items() if c and command not in c]
    return f"{text} ({'; '.join(lacking)}, not of 'pofx {command}'.)" if lacking else text
