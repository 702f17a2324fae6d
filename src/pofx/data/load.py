"""``load``: data of any source."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pofx.core.errors import MissingSource, UsageError
from pofx.core.memory import enough
from pofx.core.space import Space
from pofx.core.spelling import abridged, listed, meant
from pofx.data import pairs
from pofx.data.actions import action_chunks, given_steps, long_enough
from pofx.data.archives import REALS, is_archive
from pofx.data.blocks import beyond
from pofx.data.columns import typed
from pofx.data.dependence import relations
from pofx.data.folders import FILE
from pofx.data.formats import FORMATS
from pofx.data.joint import joined
from pofx.data.options import Options
from pofx.data.parts import Data, Part
from pofx.data.ragged import RaggedRows, RawRagged
from pofx.data.raw import IN_MEMORY, Raw, RawTable
from pofx.data.read import read
from pofx.data.roles import Roles, no_column, roles_of
from pofx.data.split import pick, repeats, scarce, shares_of, split_by_place, split_rows
from pofx.spaces import Image

KINDS = (None, "table", "text", "audio", "sequence", REALS)

RECOGNISED = ("table", "label", "image")  # spaces whose data need no word for what they are
SYMBOLS = ("auto", "characters", "bytes")
CHUNKS = ("reals", "sequence")


@enough("Reading the data", "Give fewer rows or columns; a table can be read in blocks: --memory 1GB.")
def load(
    source: Any,
    *,
    target: str | None = None,
    given: Any = None,
    joint: bool = False,
    label: str | None = None,
    types: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    split: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    name: str | None = None,
    max_rows: int | None = None,
    header: bool | None = None,
    names: str | Sequence[str] | None = None,
    missing: Sequence[str] | None = None,
    formats: Mapping[str, str] | None = None,
    shape: Sequence[int] | None = None,
    resize: int | None = None,
    kind: str | None = None,
    text: str | None = None,
    separator: str | None = None,
    symbols: str = "auto",
    rate: int | None = None,
    law: str = "linear",
    levels: int | None = None,
    sequence: str | None = None,
    order: str | None = None,
    chunk: int | None = None,
    chunk_as: Literal["reals", "sequence"] = "reals",
    history: int = 1,
    arrays: Sequence[str] = (),
    label_array: str | None = None,
    memory: str | int | None = None,
) -> Data:
    """Load a table or images, infer what one x is, and split the rows.

    Args:
        source: a path (CSV, TSV, Parquet, Arrow, .npy, .npz, a folder of PNG and JPEG with sub-folders as
            labels, MNIST's IDX files; text and IDX also as .gz; or a pipe), many Parquet files as one table (their
            folder, a pattern, or an address of fsspec such as s3://bucket/*.parquet), a NumPy array (what a mask hides
            is missing), tensor, pandas or polars frame or series, pyarrow Table, or the name of a built-in set
            ("digits", "two-moons", ...).
        target: a column or "label": the space is then Label and all the rest is the context. A column of free text, or
            the caption of a folder's images (see ``given``): the space is then Text.
        given: the model is p(x | given). "label"; columns of a table ("a,b"), of a step of sequences, or of JSON lines;
            an array of an archive; a column of captions.csv, metadata.csv, captions.jsonl or metadata.jsonl in a folder
            of images or sounds, whose ``file_name`` names the files (or of LJSpeech's metadata.csv). Or another source,
            anything but a built-in name: its row i belongs to row i of the first; files of two folders to those of the
            same name, and files to the rows of a table, or lines of JSON, whose ``file_name`` names them. A column of
            free text, alone, is a context of Text; others are a Table; arrays of classes Labels. A name that is both a
            column and a file is the column.
        joint: model x and what is given together: the space is then a Pair of both, for models of p(x, given) and of
            each given the other.
        label: the column (or array of an archive of sounds) that holds each row's class, for probes and colours;
            a column stays in x.
        types: column -> category, integer, real, real:STEP, nullable, drop, or a sum (real+nullable);
            an infinity counts as missing where nullable is declared; text for free text that is given, or the target.
        drop: columns to leave out.
        split: shares of rows to train, validate and test by a permutation of ``seed``. A source's own test
            (or validation) part is kept.
        seed: of the split, of ``max_rows`` and of synthetic sources.
        name: what to call the data; else from the source.
        max_rows: use only so many rows, drawn at random.
        header: does the first line of a CSV file hold names? Told from its content, unless said.
        names: of all columns of a CSV file ("a,b,c" or a list), in place of those of a header.
        missing: the spellings in a CSV file that mean missing, besides empty fields; [""] for none. Unless said: NA,
            N/A, NaN, null, ? and a few more, where they stand without quotes.
        formats: how columns of a CSV file write numbers ("point": 1,234.5, "comma": 1.234,5) or dates ("dmy", "mdy",
            "ymd"), where that is not clear from all their values.
        shape: of one image where an array is flat or bit-packed, e.g. (28, 28).
        resize: crop the middle square of each image of a folder and scale it to so many pixels.
        kind: "table", "text", "audio" or "sequence", where a source could be several; "reals" for an array of real
            numbers of any shape.
        text: the column of a table, or key of JSON lines, that holds texts.
        separator: what stands between the documents of a text file, e.g. "\\n" where each line is one, as in a
            file that is paired with another source.
        symbols: what a text is made of: "characters", "bytes", or "auto".
        rate: samples per second that sounds are brought to.
        law: of the levels of sounds: "linear" (65536 of them) or "mu" (256).
        levels: how many levels a sample of sound has, in place of the law's number.
        sequence: the column of a table whose values tell sequences apart, or "rows": all rows are one.
        order: the column that puts the rows of a sequence in order, or "rows" for the order of the source; by itself
            a column of dates (or one named like a clock: "step", "time", ...) where they are not in its order.
        chunk: of sequences with ``given`` columns of a step: one datum is the other columns (but for what orders the
            steps) of so many steps, from a step that at least as many are left from, given those columns at that step.
        chunk_as: "reals", all numbers of a chunk at once (``diffusion-policy``, ``act``), or a "sequence" of its steps,
            one after the other (``gpt``).
        history: of ``chunk``: how many steps the context is, that one and those before it.
        arrays: of an archive of several arrays, the one that is the data ("x28" is also train_x28 and test_x28), or
            those that make up the columns of a table or a step of a sequence.
        label_array: of an archive, the array that holds each row's class.
        memory: the most that the rows of a table, and what is made of them, may take: "4GB" (None: what is free). A
            larger table is read in blocks, from a temporary file that its numbers are written to.

    Raises:
        UsageError: an option that cannot work. DataError: MissingSource (also of a caption's image), EmptyData,
        RaggedTable, CorruptFile, BadValue (also an empty text of a pair), WrongShape (also two sources of different
        numbers of rows), each naming the place in the source. OutOfMemory.

    Example:
        >>> import numpy as np, pofx
        >>> rows = np.random.default_rng(0).normal(size=(100, 2))
        >>> data = pofx.load(rows)
        >>> len(data.train), len(data.valid), len(data.test), str(data.space.measure)
        (80, 10, 10, 'lebesgue^2')
        >>> digits = pofx.load("digits", given="label")
        >>> digits.test.x.shape[1:], digits.context
        (torch.Size([1, 8, 8]), Label(values=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')))
    """
    called: dict[str, Any] = {k: v for k, v in locals().items() if k != "source"}
    if target is not None and given is not None:
        raise UsageError("With a target all the rest is given already.", "Give target or given, not both.")
    if joint and given is None:
        raise UsageError("Nothing is given, so there is nothing to model together.", "Say what is given, beside joint.")
    if max_rows is not None and max_rows < 3:
        raise UsageError(f"{max_rows} rows cannot be split.", "Give max_rows of at least 3, or none.")
    if unknown := [f for f in (formats or {}).values() if f not in FORMATS]:
        raise UsageError(f"There is no format {unknown[0]!r}.", f"Known: {', '.join(FORMATS)}.")
    if isinstance(given, str) and given == IN_MEMORY:
        raise MissingSource("What is given was given in memory, not in a file.", "Give the same data again.")
    if history != 1 and chunk is None:
        raise UsageError(f"A history of {history} steps goes with chunks.", "Say how long these are (chunk).")
    if chunk_as != "reals" and chunk is None:
        raise UsageError("There are no chunks that could be sequences.", "Say how long they are (chunk).")
    shares = shares_of(split)
    told_given, other = pairs.named(given)
    options = called | {
        "types": dict(types or {}),
        "drop": list(drop),
        "split": list(shares),
        "names": _names(names),
        "missing": None if missing is None else list(missing),
        "formats": dict(formats or {}),
        "shape": None if shape is None else list(shape),
        "arrays": list(arrays),
    }
    asked = (("kind", kind, KINDS), ("symbols", symbols, SYMBOLS), ("chunk_as", chunk_as, CHUNKS))
    for what, value, known in asked:
        if value not in known:
            raise UsageError(f"There is no {what} {value!r}.", f"Known: {', '.join(k for k in known if k)}.")
    if (arrays or label_array) and not is_archive(source):
        raise UsageError("Only a .npz file holds arrays by names.", "Leave arrays and label_array out.")
    how = reading(options, beside=[*_words(told_given), *(n for n in (target, label) if n)], paired=other is not None)
    if kind == REALS and other is not None and not pairs.is_array(source) and pairs.is_array(other):
        how = replace(how, kind=None)  # which is said of the other
    raw = read(source, how)
    notes = list[str]()
    columns = _given_columns(told_given, other is not None, raw)
    if columns is not None and other is not None:
        notes.append(f"{given!r} is a column and a file: the column is given (./{given} would be the file).")
        other = None
    second = None if other is None else pairs.second(raw, source, other, how, notes, kind == REALS)
    options["given"] = columns if other is None else _found_again(other) if _is_path(other) else IN_MEMORY
    _check_served(options, how, raw, second)
    decided = [h.decided for h in (how, *([second.how] if second else [])) if h.decided]
    options |= {k: v for d in decided for k, v in d.items() if all(e[k] == v for e in decided)}
    notes += raw.notes
    steps = not isinstance(raw, RawTable) and raw.space.name == "sequence"
    episodes = columns if steps and other is None and columns not in (None, ["label"]) else None
    if chunk is not None and not steps:
        raise UsageError(
            "Chunks are cut out of sequences, and these rows are none.",
            "Name the column that tells episodes apart: --sequence COLUMN.",
        )
    if chunk is not None and episodes is None:
        raise UsageError("A chunk follows from what is given at its first step.", "Name columns: --given COLUMN,....")
    typed_as = {c: t for c, t in options["types"].items() if t != pairs.TEXT}
    held = {*(raw.columns if isinstance(raw, RawTable) else ()), *raw.beside, *(second.columns if second else ())}
    if lost := [c for c, t in options["types"].items() if t == pairs.TEXT and c not in held]:
        raise no_column(lost[0], held, "types")
    if second is not None:
        drop = [*dict.fromkeys((*drop, *second.aside))]
        found = pairs.Apart(raw, None, second.side(options["types"], drop, notes), label, target, None)
        typed_as = {c: t for c, t in typed_as.items() if c not in second.columns}
        drop = [c for c in drop if c not in second.columns]
    else:
        ask = None if episodes else columns
        found = pairs.apart(raw, ask, target, label, options["types"], drop, how, notes)
    raw = found.raw
    options["text"] = found.text or text
    space: Space
    rows: Any
    if isinstance(raw, RawTable):
        large = beyond(raw.n, len({*raw.columns} - {*drop}), memory)
        notes += [large] if large else []
        space, rows = typed(raw, typed_as, drop, notes, in_file=large is not None)
    elif memory is not None:
        raise UsageError("Only tables are read in blocks, so memory means nothing.", "Leave it out.")
    elif not steps and not held >= {*typed_as, *drop}:
        raise UsageError("Only tables have columns, so types and drop mean nothing.", "Leave them out.")
    else:
        space, rows = raw.space, raw.rows if isinstance(raw, RawRagged) else torch.from_numpy(raw.x)
    roles = roles_of(space, rows, raw, found.label, found.target, found.columns)
    if found.c is not None:
        roles = replace(roles, context=found.c.space, take_c=found.c.take)
    if found.x is not None:
        roles = Roles(found.x.space, roles.space, found.x.take, roles.take_x, roles.labels, roles.code)
    chosen = pick(raw.n, max_rows, seed) if raw.numbers is None else None
    index = torch.arange(raw.n) if chosen is None else chosen
    if chunk is not None:
        index = long_enough(index, rows.lengths, chunk, notes)
    if raw.numbers is not None or chosen is not None:
        notes.append(f"{len(index)} rows were drawn at random from the source.")
    excerpts = isinstance(raw, RawRagged) and raw.before is not None
    indices, words = split_by_place(index, shares) if excerpts else split_rows(index, raw.part, shares, seed, raw.of)
    if raw.of is not None:
        notes.append(f"{raw.n} pairs of {len({*raw.of.tolist()})} files: those of one file stay in one part.")
    numbers, of = (None if v is None else torch.from_numpy(v) for v in (raw.numbers, raw.of))
    train, valid, test = (
        Part(
            x=roles.take_x(i),
            c=None if roles.take_c is None else roles.take_c(i),
            label=None if roles.code is None else roles.code[i],
            rows=i if numbers is None else numbers[i],
            before=raw.before.take(i) if isinstance(raw, RawRagged) and raw.before is not None else None,
            of=None if of is None else of[i],
        )
        for i in indices
    )
    if not isinstance(rows, RaggedRows) and found.x is None and raw.of is None:
        notes += repeats(rows, indices)
    columns_of = 0 if roles.space.values else len(roles.space.columns)
    notes += scarce(len(train), len(test), columns_of, "sequence" if steps else "row")
    dependent: tuple[str, ...] = ()
    table: Any = getattr(space, "step", space if isinstance(raw, RawTable) else None)
    if not roles.space.values and table is not None:
        # what is wholly given cannot collapse
        given_names = {*(episodes or ())} if roles.context is None else {c.name for c in roles.context.columns}
        values = rows.values if isinstance(rows, RaggedRows) else rows
        related = [r for r in relations(table, values) if not given_names.issuperset((r.column, *r.by))]
        dependent = tuple(r.column for r in related)
        if related:
            notes.append(
                f"{abridged([r.words for r in related], 12)}: a density can grow without limit there, so likelihoods "
                "measure how far a family has collapsed. Leave out what others determine: "
                f"--drop {listed(dependent)}."
            )
    is_path = _is_path(source)
    stem = _stem(source) if is_path else type(source).__name__.lower()
    data = Data(
        name=name or stem or str(source),
        source=_found_again(source) if is_path else IN_MEMORY,
        space=roles.space,
        train=train,
        valid=valid,
        test=test,
        context=roles.context,
        labels=roles.labels,
        split=words,
        seed=seed,
        notes=tuple(notes),
        dependent=dependent,
        options=options,
    )
    if episodes is not None and chunk is None:
        data = given_steps(data, episodes)
    elif episodes is not None and chunk is not None:
        data = action_chunks(
            data, [c.name for c in table.columns if c.name not in episodes], chunk, history, kind=chunk_as
        )
    return joined(data) if joint else data


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def _words(given: str | list[str] | None) -> list[str]:
    """The names that may be meant: those between commas, or the whole, which may hold a comma itself."""
    if given is None or isinstance(given, list):
        return given or []
    return [given, *(w.strip() for w in next(csv.reader([given], skipinitialspace=True), []))]


def _given_columns(given: str | list[str] | None, source: bool, raw: Raw) -> list[str] | None:
    """What is given by name; None where nothing is, or where ``given`` is a source and no such name.

    Raises UsageError for a name that data beside a table do not have.
    """
    step = () if isinstance(raw, RawTable) else getattr(raw.space, "step", raw.space).columns
    known = [*(raw.columns if isinstance(raw, RawTable) else (c.name for c in step)), *raw.beside]
    known += [raw.classes] if isinstance(raw, RawRagged) and raw.classes else []
    if given is None or (source and given not in known and not {*_words(given)[1:]} <= {*known}):
        return None
    names = _names(given, known) or []
    if isinstance(raw, RawTable):
        return names  # what they are is told when the table is taken apart
    if unknown := [name for name in names if name not in (*known, "label")]:
        there = [*dict.fromkeys(known)]
        remedy = (
            meant(unknown[0], there, f"There are: {abridged(there, 20)}.")
            if there
            else "Give 'label', or a file or folder of what is given."
        )
        raise UsageError(f"No column or array {unknown[0]!r} lies beside these {raw.space}, and no file.", remedy)
    return names


def _check_served(options: Mapping[str, Any], how: Options, raw: Raw, second: pairs.Second | None) -> None:
    """Raises UsageError for an option that says how to read what is not there."""
    raws = [raw] if second is None else [raw, second.raw]
    spaces = [r.space.name for r in raws if not isinstance(r, RawTable)]
    served = how.served if second is None else how.served | second.how.served
    if options["kind"] == REALS and REALS not in spaces:
        raise UsageError("Only arrays of numbers are read as reals; this source is none.", "Leave out kind.")
    if options["order"] is not None and "sequence" not in spaces:
        raise UsageError(
            "Only sequences of a table have steps to put in order.", "Name its sequences, or leave out order."
        )
    for what in ("text", "sequence") if second is not None else ():
        if options[what] is not None and what not in served:
            raise UsageError(f"Neither source has a column {options[what]!r} ({what}).", "Correct it, or leave it out.")
    told = [k for k in ("header", "names", "missing", "formats") if options[k] not in (None, {})]
    if told and not (how.decided or (second and second.how.decided)):
        raise UsageError(f"Only delimited text is read by {told[0]}; this source is none.", "Leave it out.")


def _stem(source: str | os.PathLike[str]) -> str:
    """What to call a file or folder: its name without suffixes; of a pattern its folder's."""
    parts = [p for p in Path(source).parts if not glob.has_magic(p)]
    return parts[-1].partition(".")[0] if parts else ""


def _found_again(source: str | os.PathLike[str]) -> str:
    """Where a later command finds a source: its path, the name of a built-in set, or nowhere for a pipe."""
    if not os.path.exists(source):
        pattern = glob.has_magic(str(source)) and "://" not in str(source)
        return os.path.abspath(source) if pattern else str(source)
    path = os.path.abspath(source)
    if path.startswith(("/dev/", "/proc/")):  # what this process alone calls so
        path = os.path.realpath(path)
    return path if os.path.isfile(path) or os.path.isdir(path) else IN_MEMORY


def reading(
    options: Mapping[str, Any],
    texts: Sequence[str] | None = None,
    known: Image | None = None,
    alone: bool = False,
    like: Space | None = None,
    context: Space | None = None,
    beside: Collection[str] = (),
    paired: bool = False,
) -> Options:
    """What ``load`` was told, as the readers of each kind of source take it; ``like``, ``context``: of new rows."""
    told = {f.name for f in fields(Options)} & options.keys()
    spaces = () if like is None else (like, context)
    if texts is None:
        texts = [c for c, t in options["types"].items() if "category" in t or t == pairs.TEXT]
        texts += [options["text"]] if options["text"] is not None else []
    texts = [*texts, *([FILE] if paired else [])]  # names of files stay as they are written
    label = next((options[k] for k in ("label_array", "label") if options.get(k) not in (None, "label")), None)
    how: dict[str, Any] = {k: options[k] for k in told if options[k] is not None} | {
        "texts": texts,
        "known": known,
        "alone": alone,
        "like": like,
        "label": label,
        "columns": [c.name for s in spaces if s is not None and not s.values for c in s.columns],
        "beside": beside,
        "paired": paired,
    }
    if like is not None and like.name not in RECOGNISED:
        how["kind"] = like.name if like.fill is not None else REALS
    return Options(**how | {"max_rows": None} if alone else how)


def _names(columns: str | Iterable[str] | None, known: Container[str] = ()) -> list[str] | None:
    """Names as a list; of a string those between its commas, unless it is a known name, or quotes stand around them."""
    if columns is None:
        return None
    if isinstance(columns, str):
        words = [columns] if columns in known else next(csv.reader([columns], skipinitialspace=True), [])
        names = [c.strip() for c in words]
    else:
        names = list(columns)
    if not all(names) or not names or len(set(names)) < len(names):
        raise UsageError(
            f"Columns {columns!r} are not distinct names.", "Write 'a,b', and '\"a, b\",c' for a, b and c."
        )
    return names
