"""A run folder: everything about one fit, and nothing executable.

config.json          family, options, space, context, recipe, data (with their digest), budget, seed, versions
weights.safetensors  the weights to use: the best validated (or averaged, or last) ones
resume.safetensors   all that training needs to go on
log.jsonl            one line per entry: step, seconds, loss, validation
scores.json          what evaluation measured
samples/             what the model drew
"""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pofx
from pofx.core.errors import CannotSave, CorruptCheckpoint, MissingSource, NewerFormat, NoRun, RunExists
from pofx.core.learner import Recipe
from pofx.core.model import Model
from pofx.core.registry import family
from pofx.core.space import from_json
from pofx.train.checkpoint import load_into, load_tree, read_json, save_tree, write_atomic, write_json

if TYPE_CHECKING:
    from pofx.data.base import Data

FORMAT = 1  # of run folders; raised when a reader of the old one would misread the new
ENDS = ("finished", "stopped early")  # of training that came to its end


@dataclass
class Run:
    """One fit: the model as it should be used, and how it came about."""

    model: Model
    info: dict[str, Any]  # what config.json holds
    log: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None

    @property
    def status(self) -> str:
        """How training ended: finished, stopped early, or unfinished (killed: see ``pofx resume``)."""
        return status(self.log)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the fit, validation included."""
        return float(self.log[-1]["seconds"]) if self.log else 0.0

    @property
    def steps(self) -> int:
        return int(self.log[-1]["step"]) if self.log else 0


def describe(
    model: Model, recipe: Recipe, seed: int, budget: dict[str, Any], data: dict[str, Any], training: dict[str, Any]
) -> dict[str, Any]:
    """The content of config.json."""
    import torch

    return {
        "format": FORMAT,
        "pofx": pofx.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "family": model.name,
        "options": dataclasses.asdict(model.config),
        "space": model.space.to_json(),
        "context": None if model.context is None else model.context.to_json(),
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "budget": budget,
        "training": training,
        "data": data,
    }


def build(info: dict[str, Any]) -> Model:
    """A fresh model of the family, options and spaces that config.json names."""
    cls = family(info["family"])
    config = cls.Config(**tuples(info["options"]))
    context = None if info["context"] is None else from_json(info["context"])
    return cls(config, from_json(info["space"]), context)


def recipe_of(info: dict[str, Any]) -> Recipe:
    return Recipe(**tuples(info["recipe"]))


def read_info(path: Path) -> dict[str, Any]:
    """config.json, checked. Raises NoRun, CorruptCheckpoint or NewerFormat."""
    info = read_json(path / "config.json")
    if not isinstance(info, dict) or "format" not in info:
        raise CorruptCheckpoint(f"{path / 'config.json'} is not a run's.", "Give the folder that 'pofx fit' made.")
    if info["format"] > FORMAT:
        raise NewerFormat(
            f"{path} has format {info['format']} (pofx {info['pofx']}); this pofx reads up to {FORMAT}.",
            "Upgrade: pip install -U pofx.",
        )
    return info


def read_run(path: str | Path) -> Run:
    """Read a run folder: the model with its weights, ready to sample and score.

    Raises NoRun, CorruptCheckpoint or NewerFormat.
    """
    path = Path(path)
    info = read_info(path)
    if not (path / "weights.safetensors").exists():
        raise NoRun(f"The fit in {path} is unfinished: it has no weights yet.", f"Go on with it: pofx resume {path}.")
    model = build(info)
    load_into(model, load_tree(path / "weights.safetensors"), path / "weights.safetensors")
    model.eval()
    return Run(model, info, read_log(path), path)


def read_data(record: dict[str, Any], what: str, data: Data | None = None) -> tuple[Data, str | None]:
    """The data that a run or a comparison was made with, read again (or given again), and still the same.

    Args:
        record: the content of config.json or comparison.json; what: names it in messages.

    Returns:
        The data, and a note where an older record does not tell what they were. Raises DataChanged, MissingSource,
        or the source's own errors.
    """
    from pofx.data.base import load
    from pofx.data.digest import same_data
    from pofx.data.raw import IN_MEMORY

    about = record["data"]
    if data is None and about["source"] == IN_MEMORY:
        raise MissingSource(
            f"The data of {what} were given in memory, not in a file.",
            "Give them again in Python (data=DATA); 'pofx log-prob' and 'pofx encode' take a SOURCE of new rows.",
        )
    data = load(about["source"], **about["options"]) if data is None else data
    return data, same_data(record, data, what)


def status(log: list[dict[str, Any]]) -> str:
    """How the training that wrote this log ended: finished, stopped early, diverged or unfinished."""
    return str(log[-1].get("status", "unfinished")) if log else "unfinished"


def standing(info: dict[str, Any], log: list[dict[str, Any]], path: Path) -> str | None:
    """How far training came, in a sentence, where it did not come to its end; None where it did."""
    how = status(log)
    if "budget" not in info or how in ENDS:  # a checkpoint of another library knows of no training
        return None
    step, seconds = (log[-1]["step"], log[-1]["seconds"]) if log else (0, 0.0)
    if how == "diverged":
        return f"Training diverged at step {step:,}: these weights are the last good ones."
    budget = next(f"{value:g} {unit}" for unit, value in info["budget"].items() if value is not None)
    reached = f"it stands at step {step:,}, after {seconds:.3g} s, of a budget of {budget}"
    return f"Training is {how}: {reached}. To go on: pofx resume {path}."


def ended(path: Path) -> bool:
    """Did the training in this folder come to its end?"""
    return status(read_log(path)) in ENDS


def read_scores(path: Path, log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What scores.json holds, where there is one and it tells of the weights as they are: training did not go on."""
    if not (path / "scores.json").exists():
        return None
    scores: dict[str, Any] = read_json(path / "scores.json")
    measured = (scores["fit"]["status"], scores["fit"]["steps"])
    return scores if not log or measured == (status(log), log[-1]["step"]) else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of log.jsonl; a last line that a kill cut short is left out."""
    file = path / "log.jsonl"
    entries = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def create(path: Path, info: dict[str, Any], overwrite: bool) -> None:
    """Start a run folder with its config.json. Raises RunExists rather than overwrite, or CannotSave."""
    if (path / "config.json").exists():
        if not overwrite:
            raise RunExists(f"{path} already holds a run.", "Choose another --out, or say --overwrite.")
        clear(path)
    write_json(path / "config.json", info)


def clear(path: Path) -> None:
    """Take a run, and what was measured of it, out of its folder. Raises CannotSave."""
    training = ("weights.safetensors", "resume.safetensors", "log.jsonl", "config.json")
    for old in (*training, "scores.json", "data_sample.npz", "samples/samples.npz"):
        remove(path / old)


def remove(file: Path) -> None:
    """Remove a file, if it is there. Raises CannotSave."""
    try:
        file.unlink(missing_ok=True)
    except NotADirectoryError:
        pass
    except OSError as error:
        raise CannotSave(f"Could not replace {file}: {error.strerror}.", "Choose another folder (--out).") from error


def write_weights(path: Path, state: dict[str, Any]) -> None:
    save_tree(path / "weights.safetensors", state)


def write_log(path: Path, log: list[dict[str, Any]]) -> None:
    write_atomic(path / "log.jsonl", "".join(json.dumps(e) + "\n" for e in log).encode())


def tuples(options: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples, options have no lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
