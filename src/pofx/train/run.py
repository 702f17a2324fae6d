"""A run folder: everything about one fit, and nothing executable.

config.json          family, options, space, context, recipe, data (with their digest), budget, seed, versions
weights.safetensors  the weights to use: the best validated (or averaged, or last) ones
resume.safetensors   all that training needs to go on
log.jsonl            one line per entry: step, seconds, loss, validation
evaluation.json      what evaluation measured
samples/             what the model drew

Each of them carries a digest of its content (see ``train.checkpoint``). While a process trains in the folder, it holds
a lock on ``.lock``.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pofx
from pofx.core.errors import (
    CannotSave,
    CorruptCheckpoint,
    MissingSource,
    NoRun,
    OlderFormat,
    RunBusy,
    RunExists,
    UsageError,
)
from pofx.core.family import replace_config
from pofx.core.files import lock
from pofx.core.learner import Recipe
from pofx.core.model import Model
from pofx.core.nested import record
from pofx.core.options import Options
from pofx.core.registry import family
from pofx.core.space import from_json
from pofx.train.checkpoint import load_into, load_tree, read_lines, read_sealed, write_sealed
from pofx.train.memory import building

if TYPE_CHECKING:
    from pofx.data.parts import Data

FORMAT = 3  # of run folders; raised when a reader of the old one would misread the new
ENDS = ("finished", "stopped early")  # of training that came to its end
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}  # of file systems without them


@dataclass(repr=False)
class Run:
    """One fit: the model as it should be used, whose parameters ask for no gradient, and how it came about."""

    model: Model
    info: dict[str, Any]  # what config.json holds
    log: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None

    def __post_init__(self) -> None:
        self.model.requires_grad_(False)

    def __repr__(self) -> str:
        """One line; ``log`` and ``info`` have the details."""
        fitted = f"; fitted to {self.info['data']['name']}" if "name" in self.info["data"] else ""
        how = f": {self.status} after {self.steps:,} steps, {self.seconds:.1f} s" if self.log else ""
        return f"{self.model!r}{fitted}{how}" + ("" if self.path is None else f"; in {self.path}")

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
        "id": uuid.uuid4().hex,  # tells this run from another that comes into its place
        "pofx": pofx.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **record(model),
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "budget": budget,
        "training": training,
        "data": data,
    }


def about(data: Data) -> dict[str, Any]:
    """What config.json and comparison.json hold of the data."""
    return {
        "name": data.name,
        "source": data.source,
        "options": data.options,
        "split": data.split,
        "seed": data.seed,
        "notes": list(data.notes),
        "labels": None if data.labels is None else list(data.labels),
        "rows": {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)},
        "digest": data.digest,
    }


def build(info: dict[str, Any]) -> Model:
    """A fresh model of the family, options and spaces that config.json names. Raises OlderFormat or OutOfMemory."""
    cls = family(info["family"])
    try:
        named = tuples(info["options"])
        config = replace_config(cls.Config(), cls.Config.earlier(named) if issubclass(cls.Config, Options) else named)
    except UsageError as error:
        raise OlderFormat(f"pofx {info['pofx']} wrote this run: {error}", "Fit again, or use that pofx.") from error
    context = None if info["context"] is None else from_json(info["context"])
    with building(cls.name):
        model = cls(config, from_json(info["space"]), context)
    if (parts := record(model)["parts"]) != info["parts"]:
        raise OlderFormat(
            f"pofx {info['pofx']} wrote this run: its parts were {info['parts']}, and would be {parts} today.",
            "Fit again, or use that pofx.",
        )
    return model


def read_info(path: Path) -> dict[str, Any]:
    """config.json, checked. Raises NoRun, CorruptCheckpoint, OlderFormat or NewerFormat."""
    return read_sealed(path / "config.json", FORMAT)


def read_run(path: str | Path) -> Run:
    """Read a run folder: the model with its weights, ready to sample and evaluate.

    Raises NoRun, CorruptCheckpoint, OlderFormat or NewerFormat.

    Example:
        >>> import pofx, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fitted = pofx.fit(pofx.load("two-moons", max_rows=300), "gaussian", steps=1, out=f"{folder}/run")
        ...     read_run(f"{folder}/run").model.name
        'gaussian'
    """
    path = Path(path)
    info = read_info(path)
    if not (path / "weights.safetensors").exists():
        raise NoRun(
            f"{path} has no weights yet: its fit was ended before they were first saved.",
            f"Go on with it: pofx resume {path}",
        )
    model = build(info)
    load_into(model, load_tree(path / "weights.safetensors"), path / "weights.safetensors")
    model.eval()
    return Run(model, info, read_log(path), path)


def read_data(record: dict[str, Any], what: str, data: Data | None = None) -> Data:
    """The data that a run or a comparison was made with, read again (or given again), and still the same.

    Args:
        record: the content of config.json or comparison.json; what: names it in messages.

    Returns:
        The data. Raises DataChanged, MissingSource, or the source's own errors.
    """
    from pofx.data.digest import same_data
    from pofx.data.load import load
    from pofx.data.raw import IN_MEMORY

    about = record["data"]
    if data is None and about["source"] == IN_MEMORY:
        raise MissingSource(
            f"The data of {what} were given in memory, not in a file.",
            "Give them again in Python (data=DATA); 'pofx log-prob' and 'pofx encode' take a SOURCE of new rows.",
        )
    data = load(about["source"], **about["options"]) if data is None else data
    same_data(record, data, what)
    return data


def status(log: list[dict[str, Any]]) -> str:
    """How the training that wrote this log ended: finished, stopped early, diverged or unfinished."""
    return str(log[-1].get("status", "unfinished")) if log else "unfinished"


def standing(info: dict[str, Any], log: list[dict[str, Any]], path: Path) -> str | None:
    """How far training came, in a sentence, where it did not come to its end; None where it did."""
    how = status(log)
    if "budget" not in info or how in ENDS:  # a checkpoint of another library knows of no training
        return None
    step, seconds = (log[-1]["step"], log[-1]["seconds"]) if log else (0, 0.0)
    stage = f" (stage {log[-1]['stage']})" if log and "stage" in log[-1] else ""
    if how == "diverged":
        return f"Training diverged at step {step:,}{stage}: these weights are the last good ones."
    budget = next(f"{value:g} {unit}" for unit, value in info["budget"].items() if value is not None)
    reached = f"it stands at step {step:,}{stage}, after {seconds:.3g} s, of a budget of {budget}"
    return f"Training is {how}: {reached}. To go on: pofx resume {path}."


def ended(path: Path) -> bool:
    """Did the training in this folder come to its end?"""
    return status(read_log(path)) in ENDS


def read_evaluation(path: Path, log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What evaluation.json holds, where it is there and tells of the weights as they are: training did not go on."""
    if not (path / "evaluation.json").exists():
        return None
    found: dict[str, Any] = read_sealed(path / "evaluation.json")
    measured = (found["fit"]["status"], found["fit"]["steps"])
    return found if not log or measured == (status(log), log[-1]["step"]) else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of log.jsonl, none where there is none yet. Raises CorruptCheckpoint."""
    file = path / "log.jsonl"
    return read_lines(file) if file.exists() else []


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Inside, this process alone trains in the folder (which is made). Raises RunBusy or CannotSave."""
    file = path / ".lock"
    try:
        path.mkdir(parents=True, exist_ok=True)
        file.touch()
        held = lock(file)
        if held is None:
            raise RunBusy(
                f"Another process ({file.read_text() or 'just started'}) is training in {path}.",
                "Wait for it, stop it, or choose another folder (--out).",
            )
        file.write_text(f"pid {os.getpid()} on {platform.node()}")
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise CannotSave(
                f"Could not write {file}: {error.strerror}.",
                "Check the folder and its permissions, or write elsewhere.",
            ) from error
        held = None
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):  # the folder may be gone, or another's by now
                if os.path.samestat(os.fstat(held), os.stat(file)):
                    file.unlink()
            os.close(held)


def create(path: Path, info: dict[str, Any], overwrite: bool) -> None:
    """Start a run folder with its config.json. Raises RunExists rather than overwrite, or CannotSave."""
    if (path / "config.json").exists():
        if not overwrite:
            raise RunExists(f"{path} already holds a run.", "Choose another --out, or say --overwrite.")
        clear(path)
    write_sealed(path / "config.json", info)


def clear(path: Path) -> None:
    """Take a run, and what was measured of it, out of its folder. Raises CannotSave."""
    measured = ("evaluation.json", "data_sample.npz", "samples/samples.npz", "report.html")
    for old in ("weights.safetensors", "resume.safetensors", "log.jsonl", *measured, "config.json"):
        remove(path / old)


def remove(file: Path) -> None:
    """Remove a file, if it is there. Raises CannotSave."""
    try:
        file.unlink(missing_ok=True)
    except NotADirectoryError:
        pass
    except OSError as error:
        raise CannotSave(
            f"Could not remove {file}: {error.strerror}.", "Check its permissions, or choose another --out."
        ) from error


def keep(path: Path, info: dict[str, Any]) -> None:
    """Before a save: a folder that was deleted is made again, and one that holds another run by now is left alone.

    Raises RunBusy or CannotSave.
    """
    try:
        there = read_info(path)["id"]
    except (NoRun, CorruptCheckpoint):
        write_sealed(path / "config.json", info)
        return
    if there != info["id"]:
        raise RunBusy(
            f"{path} was overwritten: it holds another run than the one that is trained here, which cannot be saved.",
            "Fit again with another --out.",
        )


def tuples(options: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples, options have no lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
