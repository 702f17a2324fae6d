"""The model of a folder, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

from pofx.interop.model import is_checkpoint
from pofx.interop.model import read_model as read_checkpoint
from pofx.train.run import Run, read_run


def read_model(path: Path) -> Run:
    """A run, or a Hugging Face checkpoint as if it were one: it has a model and neither data nor a log."""
    return read_checkpoint(path) if is_checkpoint(path) else read_run(path)
