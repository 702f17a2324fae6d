"""The model of a folder, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pofx.core.errors import UsageError
from pofx.interop.diffusers import is_diffusers, read_diffusers
from pofx.interop.model import is_checkpoint
from pofx.interop.model import read_model as read_checkpoint
from pofx.train.run import Run, read_data, read_run

if TYPE_CHECKING:
    from pofx.core.abilities import PartName
    from pofx.core.space import Space
    from pofx.data.parts import Data, Part


def read_model(path: Path) -> Run:
    """A run; or a Hugging Face checkpoint or a folder of diffusers as if it were one, with neither data nor a log."""
    if is_diffusers(path):
        return read_diffusers(path)
    return read_checkpoint(path) if is_checkpoint(path) else read_run(path)


def new_rows(run: Run, source: str, context: Space | None, notes: list[str], given: str | None = None) -> Part:
    """Rows of a source, and their contexts, there or of ``given``, read with the run's own types.

    ``notes`` gets what is to be told.
    """
    from pofx.data.rows import read_rows

    about = run.info["data"]
    labels, options = about.get("labels"), about.get("options", {})
    return read_rows(run.model.space, context, source, labels=labels, options=options, notes=notes, given=given)


def own_rows(run: Run, path: Path, notes: list[str]) -> Part:
    """The test part of a run's own, unchanged data; ``notes`` gets what reading them has to tell. Raises UsageError."""
    return own_data(run, path, notes).test


def own_data(run: Run, path: Path, notes: list[str]) -> Data:
    """A run's own, unchanged data; as ``own_rows``."""
    if run.info["data"]["source"] is None:
        raise UsageError(f"{path} has no data of its own.", "Name a SOURCE.")
    data = read_data(run.info, str(path))
    notes += data.notes
    return data


def part_name(part: str) -> PartName:
    """Of which part of a pair --part speaks."""
    return "a" if part.startswith("a") else "b"
