"""What a reader is told: what ``pofx.load`` was, and of new rows the space they must be of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pofx.data import audio, sequences, text
from pofx.spaces import Image


@dataclass(frozen=True)
class Delimited:
    """How text of delimited fields is read; ``decided`` receives what the reader told from the text itself.

    Attributes:
        header: does the first line hold names? None: told from the text.
        names: of all columns.
        missing: the spellings that mean missing, besides empty fields, quoted or not; None: the usual ones, where they
            stand without quotes.
        formats: how columns are written, one of ``formats.FORMATS`` each.
        columns: those that new rows must have; none while data are loaded.
    """

    header: bool | None = None
    names: Sequence[str] | None = None
    missing: Sequence[str] | None = None
    formats: Mapping[str, str] = field(default_factory=dict)
    columns: Collection[str] = ()
    decided: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How to read: what ``pofx.load`` was told, and for new rows the space they must be of."""

    texts: Collection[str] = ()  # columns of a CSV file to take as text whatever they look like
    shape: tuple[int, ...] | None = None  # of one datum in a flat or bit-packed array
    resize: int | None = None
    known: Image | None = None  # new images must be of this space
    alone: bool = False  # a training file is read without its test twin
    max_rows: int | None = None  # of a folder; all other sources are read whole
    seed: int = 0  # of max_rows and of synthetic sources
    kind: str | None = None  # "table", "text", "audio" or "sequence", whatever a source looks like
    arrays: Collection[str] = ()  # of an archive, those that are the data
    label_array: str | None = None  # of an archive, the one that holds each row's class
    delimited: Delimited = field(default_factory=Delimited)
    text: text.Reading = field(default_factory=text.Reading)
    audio: audio.Reading = field(default_factory=audio.Reading)
    steps: sequences.Reading = field(default_factory=sequences.Reading)
