"""What the commands have in common: where data come from, how results are shown, progress."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.cells import cell_len
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.text import Text as Words
from tyro.conf import Positional, arg

from pofx.commands import COMMANDS, elsewhere
from pofx.commands.arguments import COMMAS
from pofx.commands.arguments import parse as parse
from pofx.commands.terminal import Column as Column
from pofx.commands.terminal import Terminal as Terminal
from pofx.commands.usage import Group
from pofx.core.errors import UsageError
from pofx.core.spelling import visible

if TYPE_CHECKING:
    from pofx.data.parts import Data


out = Terminal()
err = Terminal(stderr=True)


@dataclass(kw_only=True)
class Tables(Group):
    """tables"""

    types: Annotated[list[str], arg(metavar="COLUMN=TYPE,...")] = dataclasses.field(default_factory=list)
    """Column types in place of the inferred: real, real:0.01 (a grid), integer, category, text, nullable, drop."""
    drop: Annotated[list[str], arg(metavar="COLUMN,...")] = dataclasses.field(default_factory=list)
    """Columns to leave out; quotes stand around a name with a comma: '"a, b",c'."""
    memory: Annotated[str | None, arg(metavar="SIZE")] = None
    """The most that a table may take: --memory 4GB; a larger one is read in blocks [default: what is free]."""
    header: bool = False
    """The first line of a CSV file holds names, whatever it looks like."""
    no_header: bool = False
    """The first line of a CSV file holds values, whatever it looks like."""
    names: Annotated[str | None, COMMAS, arg(metavar="NAME,...")] = None
    """Names of all columns of a CSV file, 'a,b,c', in place of those of a header."""
    missing: Annotated[list[str] | None, arg(metavar="SPELLING,...")] = None
    """The spellings in a CSV file that mean missing, besides empty fields; '': none [default: NA, NaN, null, ? ...]."""
    formats: Annotated[list[str], arg(metavar="COLUMN=FORMAT,...")] = dataclasses.field(default_factory=list)
    """How columns of a CSV file are written, if unclear: point (1,234.5), comma (1.234,5), dmy, mdy or ymd (dates)."""
    arrays: list[str] = dataclasses.field(default_factory=list)
    """Of an archive of several arrays, the one that is the data, or those that make up columns: --arrays a,b."""
    label_array: str | None = None
    """Of an archive, the array that holds each row's class."""


@dataclass(kw_only=True)
class Images(Group):
    """images"""

    shape: tuple[int, ...] | None = None
    """Of one image, where an array holds them flat or bit-packed: --shape 28,28."""
    resize: int | None = None
    """Crop the middle square of each image of a folder and scale it to so many pixels."""


@dataclass(kw_only=True)
class Texts(Group):
    """texts"""

    text: Annotated[str | None, arg(metavar="COLUMN")] = None
    """The column of a table, or the key of JSON lines, that holds texts."""
    separator: Annotated[str | None, arg(metavar="TEXT")] = None
    """What stands between the documents of a text file: --separator '\\n' where each line is one, as in a file that is
    paired with another source."""
    symbols: Literal["auto", "characters", "bytes"] = "auto"
    """What texts are made of."""


@dataclass(kw_only=True)
class Sounds(Group):
    """sounds"""

    rate: int | None = None
    """Samples per second to bring all sounds to."""
    law: Literal["linear", "mu"] = "linear"
    """Levels of sounds: linear (16 bits) or mu-law (8 bits), unless --levels says how many."""
    levels: int | None = None
    """How many levels a sample of sound has."""


@dataclass(kw_only=True)
class Sequences(Group):
    """sequences"""

    sequence: Annotated[str | None, arg(metavar="COLUMN")] = None
    """The column of a table whose values tell sequences apart, or 'rows': all rows are one sequence."""
    order: Annotated[str | None, arg(metavar="COLUMN")] = None
    """The column that puts the rows of a sequence in order, or 'rows': as they stand [default: by a date or step]."""
    chunk: int | None = None
    """With --given columns of a step: the other columns of so many steps, given those at the first: a policy."""
    chunk_as: Literal["reals", "sequence"] = "reals"
    """Of --chunk: all of its numbers at once (diffusion-policy, act), or step by step (gpt)."""
    history: int = 1
    """Of --chunk: how many steps are seen, the first of the chunk and those before it."""


@dataclass(kw_only=True)
class Source(Tables, Images, Texts, Sounds, Sequences):
    """Where data come from and how they are read."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """CSV/TSV, Parquet, Arrow, .npy/.npz, text, sound, a folder of images, texts or sounds, IDX, or a built-in name.

    Many Parquet files are one table: their folder, a pattern, or an address such as 's3://bucket/*.parquet'.
    """
    given: Annotated[str | None, COMMAS, arg(metavar="COLUMN,...|SOURCE")] = None
    """Condition on this: the model is p(x | given). 'label'; columns 'a,b' of a table, of JSON lines, of a step, or of
    captions.csv or metadata.jsonl in a folder; an array beside x; or another SOURCE, row by row (files by names)."""
    joint: bool = False
    """Model x and what is given together, as pairs: p(x, given), for families that know each given the other."""
    label: Annotated[str | None, arg(metavar="COLUMN")] = None
    """The column, or array beside sounds, that holds the class (for probes and colours; a column stays in x)."""
    target: Annotated[str | None, arg(metavar="COLUMN")] = None
    """Model this column (or 'label') given all the rest: a classifier's task; of text or captions: p(text | rest)."""
    kind: Literal["table", "text", "audio", "sequence", "reals"] | None = None
    """Read the source as this [default: by its content]."""
    max_rows: int | None = None
    """Use only so many rows, drawn at random."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares that train, validate and test; long texts are split by place, in this order."""
    split_seed: int = 0
    """Seed of the split into training, validation and test rows."""


GIVEN_ALONE = "--given says where the contexts of a SOURCE are, and there is none."


@dataclass(kw_only=True)
class Given(Group):
    """Rows that may have their contexts in a source of their own."""

    given: Annotated[str | None, arg(metavar="SOURCE")] = None
    """Where the contexts of the SOURCE's rows are, row by row (files by their names) [default: in SOURCE]."""


@dataclass(kw_only=True)
class Output(Group):
    """output"""

    json: bool = False
    """Print one JSON object on standard output."""
    quiet: bool = False
    """No progress on standard error."""


def load_source(args: Source) -> Data:
    from pofx.data.load import load

    if args.header and args.no_header:
        raise UsageError("The first line holds names or it does not.", "Give --header or --no-header.")
    how = {f.name: getattr(args, f.name) for f in dataclasses.fields(Source)}
    how["header"] = True if args.header else False if how.pop("no_header") else None
    how["types"] = _pairs(args.types, "types", "TYPE", "age=integer") or None
    how["formats"] = _pairs(args.formats, "formats", "FORMAT", "when=dmy") or None
    return load(seed=how.pop("split_seed"), **how)


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
    command = next(c for c, (_, name, _) in COMMANDS.items() if name == type(args).__name__)
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
        err.print(f"· {words}")
    return {"status": status(log), "steps": log[-1]["step"] if log else 0} if "budget" in info else {}


class _State(ProgressColumn):
    """How a task stands, in as many of its words as there is room for: a number is whole or not there."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def render(self, task: Task) -> Words:
        words = [visible(task.description), *(task.fields[name] for name in ("stage", "valid", "step"))]
        words.append(str(timedelta(seconds=int(task.elapsed or 0))))
        while len(words) > 1 and cell_len("  ".join(filter(None, words))) > self.room:
            words.pop()
        return Words("  ".join(filter(None, words)))


BAR = 24  # cells of a progress bar, where there is room for one


@contextmanager
def progress(args: Output, title: str) -> Iterator[Any]:
    """A line on standard error with the current validation number and its kind, the step, the time, and a bar."""
    if args.quiet or args.json:
        yield None
        return
    bars = [BarColumn(BAR)] if err.width >= 4 * BAR else []
    columns = (_State(err.width - len(bars) * (BAR + 1)), *bars)
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task: TaskID = bar.add_task(title, total=1.0, stage="", valid="", step="")

        def report(entry: dict[str, Any]) -> None:
            if "note" in entry:
                err.print(f"· {entry['note']}")
                return
            if "stage" in entry:
                bar.update(task, stage=entry["stage"])
            if (number := entry.get("valid", entry.get("stage_valid"))) is not None:
                bar.update(task, valid=f"valid {entry['symbol']} {number:.3f} nats")
            if "title" in entry:
                bar.update(task, description=entry["title"])
            done = 1.0 if "status" in entry else entry.get("progress")
            bar.update(task, completed=done, step=f"step {entry['step']}" if "step" in entry else "")

        yield report
