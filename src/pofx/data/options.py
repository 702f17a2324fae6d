"""What a reader is told: what ``pofx.load`` was, and of new rows the space they must be of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pofx.core.space import Space
from pofx.spaces import Audio, Image, Text
from pofx.spaces import Sequence as Steps


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to read: the options of ``pofx.load`` by their names, each for the sources that it is about.

    Attributes:
        shape: of one datum in a flat or bit-packed array.
        resize: of images in a folder.
        kind: "table", "text", "audio" or "sequence", whatever a source looks like.
        max_rows: of a folder and of synthetic sources; all others are read whole.
        seed: of ``max_rows`` and of synthetic sources.
        arrays: of an archive, those that are the data, in this order; of sequences none means all of floats (of any
            numbers, where none are floats).
        label_array: of an archive, the one that holds each row's class; None for the first that can.
        label: the array of an archive of sounds that holds each one's class; None for the first that can.
        header: does the first line of delimited text hold names? None: told from the text.
        names: of all columns of delimited text.
        missing: the spellings that mean missing, besides empty fields, quoted or not; None: the usual ones, where they
            stand without quotes.
        formats: how columns are written, one of ``formats.FORMATS`` each.
        texts: columns to take as text whatever they look like.
        text: the column of a table, or key of JSON lines, that holds texts.
        separator: what stands between the documents of a file; ENDOFTEXT does without being named, where one stands
            in the first mebibyte.
        symbols: "characters", "bytes", or "auto": characters where there are few different ones.
        rate: samples per second to bring all sounds to; None for their own.
        law: "linear" or "mu".
        levels: of a sample; None for 65536 (linear) or 256 (mu).
        sequence: the column of a table whose value tells the sequences apart, or "rows": all rows are one.
        order: the column that puts the rows of a sequence in order; "rows" for that of the source; None for a column
            of time or steps, where one tells.
        chunk: steps that are cut out of sequences together: what orders them is no action.
        types, drop: of the columns of a step, as for tables.
        like: the space that new rows are to be of; it says columns and types, or rate, law and levels.
        known: the space that new images are to be of.
        columns: those that new rows must have; none while data are loaded.
        alone: a training file is read without its test twin.
        beside: names of columns or arrays that are wanted beside the data: contexts, targets, classes.
        paired: each row belongs to one of another source, or to values beside it: none is left out, cut or drawn.
        own_rate: sounds of another rate than ``like`` are refused, not resampled.
        decided: receives what the reader of delimited text told from the text itself.
        served: receives the names of options that say what to look for, once it was found.
    """

    shape: Sequence[int] | None = None
    resize: int | None = None
    kind: str | None = None
    max_rows: int | None = None
    seed: int = 0
    arrays: Sequence[str] = ()
    label_array: str | None = None
    label: str | None = None
    header: bool | None = None
    names: Sequence[str] | None = None
    missing: Sequence[str] | None = None
    formats: Mapping[str, str] = field(default_factory=dict)
    texts: Collection[str] = ()
    text: str | None = None
    separator: str | None = None
    symbols: str = "auto"
    rate: int | None = None
    law: str = "linear"
    levels: int | None = None
    sequence: str | None = None
    order: str | None = None
    chunk: int | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()
    like: Space | None = None
    known: Image | None = None
    columns: Collection[str] = ()
    alone: bool = False
    beside: Collection[str] = ()
    paired: bool = False
    own_rate: bool = False
    decided: dict[str, Any] = field(default_factory=dict)
    served: set[str] = field(default_factory=set)

    @property
    def documents(self) -> Text | None:
        """The space of new texts, where texts are wanted."""
        return self.like if isinstance(self.like, Text) else None

    @property
    def sounds(self) -> Audio | None:
        return self.like if isinstance(self.like, Audio) else None

    @property
    def steps(self) -> Steps | None:
        return self.like if isinstance(self.like, Steps) else None
