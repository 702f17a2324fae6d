"""What the commands have in common: where data come from, how results are shown, progress."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text as Words
from tyro.conf import Positional, arg

from pofx.commands import RUN, elsewhere
from pofx.core.errors import UsageError
from pofx.core.spelling import visible

if TYPE_CHECKING:
    from pofx.data.base import Data


class Terminal(Console):
    """Words as they are: brackets are no markup, and what would steer the screen is spelt out."""

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, highlight=False, **how)

    def render_str(self, text: str, **how: Any) -> Words:
        return super().render_str(visible(text), **how)


out = Terminal()
err = Terminal(stderr=True)


@dataclass(kw_only=True)
class Source:
    """Where data come from and how they are read."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """CSV/TSV, Parquet, Arrow, .npy/.npz, text, sound, a folder of images, texts or sounds, IDX, or a built-in name.

    Many Parquet files are one table: their folder, a pattern, or an address such as 's3://bucket/*.parquet'.
    """
    given: str | None = None
    """Condition on this: 'label', columns 'a,b', or an array of classes of sounds. The model is p(x | given)."""
    label: str | None = None
    """The column, or array beside sounds, that holds the class (for probes and colours; a column stays in x)."""
    target: str | None = None
    """Model this column (or 'label') given all the rest: a classifier's task."""
    types: Annotated[list[str], arg(metavar="COLUMN=TYPE")] = dataclasses.field(default_factory=list)
    """Column types to use instead of the inferred: real, real:0.01 (a grid), integer, category, nullable, drop."""
    drop: list[str] = dataclasses.field(default_factory=list)
    """Columns to leave out."""
    split_seed: int = 0
    """Seed of the split into training, validation and test rows."""
    max_rows: int | None = None
    """Use only so many rows, drawn at random."""
    header: bool = False
    """The first line of a CSV file holds names, whatever it looks like."""
    no_header: bool = False
    """The first line of a CSV file holds values, whatever it looks like."""
    names: str | None = None
    """Names of all columns of a CSV file, 'a,b,c', in place of those of a header."""
    missing: list[str] | None = None
    """The spellings in a CSV file that mean missing, besides empty fields ['': none; default: NA, NaN, null, ? ...]."""
    formats: Annotated[list[str], arg(metavar="COLUMN=FORMAT")] = dataclasses.field(default_factory=list)
    """How columns of a CSV file are written, if unclear: point (1,234.5), comma (1.234,5), dmy, mdy or ymd (dates)."""
    shape: tuple[int, ...] | None = None
    """Of one image, where an array holds them flat or bit-packed: --shape 28 28."""
    resize: int | None = None
    """Crop the middle square of each image of a folder and scale it to so many pixels."""
    kind: Literal["table", "text", "audio", "sequence"] | None = None
    """Read the source as this [default: by its content]."""
    text: str | None = None
    """The column of a table, or the key of JSON lines, that holds texts."""
    separator: str | None = None
    """What stands between the documents of a text file: --separator '\\n' where each line is one."""
    symbols: Literal["auto", "characters", "bytes"] = "auto"
    """What texts are made of."""
    rate: int | None = None
    """Samples per second to bring all sounds to."""
    law: Literal["linear", "mu"] = "linear"
    """Levels of sounds: linear (16 bits) or mu-law (8 bits), unless --levels says how many."""
    levels: int | None = None
    """How many levels a sample of sound has."""
    sequence: str | None = None
    """The column of a table whose values tell sequences apart, or 'rows': all rows are one sequence."""
    order: str | None = None
    """The column that puts the rows of a sequence in order, or 'rows': as they stand [default: by a date or step]."""
    arrays: Annotated[list[str], tyro.conf.UseAppendAction, arg(metavar="NAME")] = dataclasses.field(
        default_factory=list
    )
    """Of an archive of several arrays, the one that is the data, or those that make up columns: --arrays a,b."""
    label_array: str | None = None
    """Of an archive, the array that holds each row's class."""
    memory: str | None = None
    """The most that a table may take: --memory 4GB; a larger one is read in blocks [default: what is free]."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares that train, validate and test; long texts are split by place, in this order."""


@dataclass(kw_only=True)
class Output:
    """How results are shown."""

    json: bool = False
    """Print one JSON object on standard output."""
    quiet: bool = False
    """No progress on standard error."""


def load_source(args: Source) -> Data:
    from pofx.data.base import load

    if args.header and args.no_header:
        raise UsageError("The first line holds names or it does not.", "Give --header or --no-header.")
    return load(
        args.source,
        given=args.given,
        label=args.label,
        target=args.target,
        types=_pairs(args.types, "types", "TYPE", "age=integer") or None,
        drop=tuple(args.drop),
        seed=args.split_seed,
        max_rows=args.max_rows,
        header=True if args.header else False if args.no_header else None,
        names=args.names,
        missing=args.missing,
        formats=_pairs(args.formats, "formats", "FORMAT", "when=dmy") or None,
        shape=args.shape,
        resize=args.resize,
        kind=args.kind,
        text=args.text,
        separator=args.separator,
        symbols=args.symbols,
        rate=args.rate,
        law=args.law,
        levels=args.levels,
        sequence=args.sequence,
        order=args.order,
        arrays=[name for names in args.arrays for name in names.split(",")],
        label_array=args.label_array,
        memory=args.memory,
        split=args.split,
    )


def _pairs(entries: list[str], option: str, what: str, example: str) -> dict[str, str]:
    """COLUMN=WORD by column, whose name may hold '=' itself."""
    pairs = {}
    for entry in entries:
        column, _, word = entry.rpartition("=")
        if not (column and word):
            raise UsageError(
                f"--{option} takes COLUMN={what}; {entry!r} is not.", f"For example: --{option} {example}."
            )
        pairs[column] = word
    return pairs


def parse(kind: Any, argv: list[str], command: str) -> Any:
    return tyro.cli(kind, args=argv, prog=f"pofx {command}", config=(tyro.conf.FlagCreatePairsOff,))


def positional(argv: list[str], index: int) -> str:
    """The ``index``-th argument that is neither an option nor an option's value."""
    flags = {"--overwrite", "--json", "--quiet", "--header", "--no-header", "--help", "-h"}
    found, skip = [], False
    for a in argv:
        if skip:
            skip = False
        elif a.startswith("-"):
            skip = "=" not in a and a not in flags
        else:
            found.append(a)
    if index >= len(found):
        raise UsageError("Which family? Usage: pofx fit SOURCE FAMILY.", "See 'pofx families'.")
    return found[index]


def print_json(value: Any) -> None:
    """One JSON object; numbers that are not finite become null, since JSON has none."""

    def clean(v: Any) -> Any:
        if isinstance(v, dict):
            return {str(k): clean(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [clean(x) for x in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    print(json.dumps(clean(value)))


def tell_notes(notes: Iterable[str], args: Output) -> list[str]:
    """Notes on standard error, unless they are not wanted there; the same for --json."""
    command = next(c for c, (*_, name) in RUN.items() if name == type(args).__name__)
    told = [elsewhere(note, command) for note in notes]
    if not args.quiet and not args.json:
        for note in told:
            err.print(f"· {note}")
    return told


def tell_standing(info: dict[str, Any], log: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """Say on standard error, whatever else is quiet, that a run is unfinished; how it stands, for --json."""
    from pofx.train.run import standing, status

    words = standing(info, log, path)
    if words is not None:
        err.print(f"· {words}", soft_wrap=True)
    return {"status": status(log), "steps": log[-1]["step"] if log else 0} if "budget" in info else {}


@contextmanager
def progress(args: Output, title: str) -> Iterator[Any]:
    """A bar on standard error with the step, the loss and the current validation number and its kind."""
    if args.quiet or args.json:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task: TaskID = bar.add_task(visible(title), total=1.0, status="")
        valid = ""

        def report(entry: dict[str, Any]) -> None:
            nonlocal valid
            if "note" in entry:
                err.print(f"· {entry['note']}")
                return
            if entry.get("valid") is not None:
                valid = f"valid {entry['symbol']} {entry['valid']:.3f} nats ({entry['kind']})"
            if "title" in entry:
                bar.update(task, description=visible(entry["title"]))
            done = 1.0 if "status" in entry else entry.get("progress")
            loss = f"step {entry['step']}" if "step" in entry else ""
            bar.update(task, completed=done, status=f"{loss} {valid}".strip())

        yield report
