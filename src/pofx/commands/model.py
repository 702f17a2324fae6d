"""The model of a folder, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pofx.interop.model import is_checkpoint
from pofx.interop.model import read_model as read_checkpoint
from pofx.train.run import Run, read_run

if TYPE_CHECKING:
    from pofx.core.space import Space
    from pofx.data.parts import Part


def read_model(path: Path) -> Run:
    """A run, or a Hugging Face checkpoint as if it were one: it has a model and neither data nor a log."""
    return read_checkpoint(path) if is_checkpoint(path) else read_run(path)


def new_rows(run: Run, source: str, context: Space | None, notes: list[str]) -> Part:
    """Rows of a source, and their contexts, read with the run's own types; ``notes`` gets what is to be told."""
    from pofx.data.rows import read_rows

    about = run.info["data"]
    labels, options = about.get("labels"), about.get("options", {})
    return read_rows(run.model.space, context, source, labels=labels, options=options, notes=notes)
