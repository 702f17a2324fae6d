"""Rows that a model has not seen yet, read as rows of its own space."""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pofx.core.errors import BadValue, UsageError, WrongShape
from pofx.core.space import Ragged, Space, take
from pofx.core.spelling import abridged, meant
from pofx.data.actions import chunks, long_enough, steps_apart
from pofx.data.archives import REALS
from pofx.data.folders import FILE
from pofx.data.joint import paired
from pofx.data.load import reading
from pofx.data.options import Options
from pofx.data.pairs import called, partners, values_of
from pofx.data.parts import Part
from pofx.data.ragged import RaggedRows, RawRagged
from pofx.data.raw import Raw, RawArray, RawTable
from pofx.data.read import PARQUET, read
from pofx.data.roles import no_column
from pofx.data.sequences import ROWS, from_table
from pofx.data.tabular import MISSING, encode, encode_rows
from pofx.data.text import from_column
from pofx.spaces import Category, Integer, Label, Real, Table
from pofx.spaces import Sequence as Steps

TABLES = (*PARQUET, ".csv", ".tsv", ".arrow", ".feather", ".npy", ".npz")  # whose suffix says that they are no text


def read_rows(
    space: Space,
    context: Space | None,
    source: Any,
    *,
    labels: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    notes: list[str] | None = None,
    first: int = 0,
    given: Any = None,
) -> Part:
    """All rows of ``source`` in its order, as rows of a known space (and context).

    Args:
        source: anything that ``load`` takes; columns beyond those of the space are left aside.
        labels: the classes of the data that the model was fitted to, to read ``Part.label`` by.
        options: what ``load`` was called with then.
        notes: gets what reading changed, in sentences; without it, values that were rounded draw a warning.
        first: the number of the first row, where the source is a part of a larger one.
        given: another source, of their contexts: row i of it is that of row i, or the row of the file's name, as
            ``load`` pairs them.

    Raises:
        WrongShape: a column is missing, images are of another size, there are more rows than contexts. BadValue: a
        value that the space does not have (an unknown category or label, a missing entry), naming column, value and
        row. UsageError: contexts come from a source of their own, which is not given.
    """
    if space.parts is not None and (options or {}).get("joint"):  # pairs are read as what they were made of
        a, b = space.parts
        known: Any = {"labels": labels, "options": options, "notes": notes, "first": first, "given": given}
        return paired(space, read_rows(a, b, source, **known))
    options = options or {}
    names = options.get("given")
    if given is not None:
        return _of_two(space, context, source, given, options, notes)
    if context is not None and isinstance(names, str):
        raise UsageError(
            "What is given came from a source of its own.", "Name that of these rows, too: given (--given)."
        )
    if context is not None and (options.get("chunk") or space.name == context.name == "sequence"):
        return _of_episodes(space, context, source, options, notes)
    # what is read as x, or as what a target is told from, and what lies beside it
    target = options.get("target") if context is not None else None
    swapped = context is not None and (bool(space.values) or (space.alphabet is not None and target is not None))
    main, other = (context, space) if swapped and context is not None else (space, context)
    names = [target] if swapped and target is not None else names if context is not None else None
    names = _listed(names)
    asked = [name for name in (*names, options.get("target"), options.get("label")) if name is not None]
    names = [name for name in names if name != "label"]
    how = _how(main, other, options, beside=asked)
    raw = read(source, how)
    columns = raw.beside | (raw.columns if isinstance(raw, RawTable) else {})
    label = raw.label
    if isinstance(raw, RawTable):
        raw.notes += unused(raw.columns, [*names_used(space, context, options), *names])
    if not isinstance(raw, RawRagged) or raw.classes not in (*names, *_labels(options)):
        classes = names if other is not None and other.values else []
        label = next((columns[n]() for n in (*_labels(options), *classes) if n in columns), label)

    told = Told(label, notes, first)
    c: Any = None
    x: Any = new_rows(main, raw, told)
    if other is not None:
        own = isinstance(raw, RawTable) and other.alphabet is None and raw.columns.keys() >= {*names}
        lacking = [name for name in names if name not in columns]
        if lacking and not other.values and not (isinstance(raw, RawTable) and other.columns):
            raise _lacks(lacking[0], columns, f"{called(source)} ({_held(raw)})", other)
        if names and not other.values and columns.keys() >= {*names} and not own:
            c = new_rows(other, values_of(names, raw, {}, _how(other, None, options), like=other), told)
        else:
            c = new_rows(other, raw, told)
    if context is not None and other is context:
        check_lengths(context, c, called(source), raw.files)
    x, c = (c, x) if swapped else (x, c)
    code = x if space.values else c if context is not None and context.values else None
    if code is None and labels is not None and label is not None:
        try:
            code = _new_labels(labels, label, first)
        except BadValue as error:  # another data set's classes
            raw.notes.append(f"The labels of the source are left aside. {error.problem}")
    if notes is not None:
        notes += raw.notes
    before = raw.before if isinstance(raw, RawRagged) else None
    return Part(x, c, code, rows=torch.arange(first, first + len(x)), before=before, of=_of(raw))


def _of(raw: Raw) -> Tensor | None:
    return None if raw.of is None else torch.from_numpy(raw.of)


def _how(space: Space, other: Space | None, options: Mapping[str, Any], **more: Any) -> Options:
    """How data of a known space are read, with another one's columns beside."""
    spaces = [s for s in (space, other) if s is not None]
    texts = [c.name for s in spaces if not s.values for c in s.columns if isinstance(c, Category)]
    if any(s.alphabet is not None for s in spaces):
        texts += [name for name in (*_listed(options.get("given")), options.get("target")) if name is not None]
    known: Any = next((s for s in spaces if s.pixels), None)
    return reading(options, texts, known=known, alone=True, like=space, context=other, **more)


def _listed(names: Any) -> list[str]:
    return list(names) if isinstance(names, list | tuple) else []


def _of_two(
    space: Space, context: Space | None, source: Any, given: Any, options: Mapping[str, Any], notes: list[str] | None
) -> Part:
    """Rows of one source, and their contexts of another."""
    if context is None:
        raise UsageError("This run models p(x) and takes no contexts.", "Leave out --given.")
    how = _lines(_how(space, None, options, paired=True), space)
    raw = read(source, replace(how, kind=None) if how.text is not None and _is_table(source) else how)
    c, theirs = read_contexts(context, given, options, notes)
    told = list[str]()
    index = partners(raw, theirs, called(source), called(given), told)
    x = new_rows(space, raw, Told(raw.label, notes, 0))
    if notes is not None:
        notes += [*raw.notes, *told]
    if index is not None:
        c = c.take(index) if isinstance(c, RaggedRows) else c[index]
    return Part(x, c, rows=torch.arange(len(x)), of=_of(raw))


def read_contexts(
    context: Space, given: Any, options: Mapping[str, Any], notes: list[str] | None = None
) -> tuple[Any, Raw]:
    """All rows of a source as contexts, and what was read; ``options`` as in ``read_rows``.

    A text file is one context a line, unless lines end within contexts or the run has a separator of its own. An image
    or sound by itself is one, as is an array of one, and a table of steps that tells no sequences apart.

    Raises as ``read_rows``; WrongShape for a sound of another rate, unless sounds were brought to one rate from the
    first; BadValue for a context that is longer than any that the run has seen.
    """
    names = _listed(options.get("given"))
    how = _how(context, None, {**options, "text": None}, paired=True)
    file = isinstance(given, str | os.PathLike) and not _is_table(given)
    kind = how.kind if file or how.kind == REALS else None
    how = replace(_lines(how, context), kind=kind, sequence=None, own_rate=options.get("rate") is None)
    how = replace(how, text=names[0] if len(names) == 1 else options.get("text")) if _is_lines(given) else how
    raw = read(given, how)
    label = raw.label
    if isinstance(raw, RawTable):
        own = {c.name for c in context.columns}
        columns = {name: fetch for name, fetch in raw.columns.items() if name != FILE or name in own} or raw.columns
        name = next((n for n in (*names, "label", options.get("text")) if n in columns), next(iter(columns)))
        if context.alphabet is not None:
            if len(columns) > 1 and name not in (*names, options.get("text")):
                raise WrongShape(f"{called(given)} has {len(columns)} columns: {abridged([*columns], 12)}.",
                                 f"Name that of the texts {(names or ['text'])[0]!r}.")  # fmt: skip
            files = raw.columns.get(FILE)
            places = [f"{called(given)}, row {i}," for i in range(1, raw.n + 1)]
            raw = from_column(str(name), columns[str(name)](), how, places=places)
            raw.beside = {} if files is None else {FILE: files}
        elif context.name == "sequence":
            apart = options.get("sequence")
            raw = from_table(raw, replace(how, sequence=apart if apart in columns else ROWS), called(given))
        label = columns[str(name)]() if label is None and context.values else label
    if isinstance(raw, RawArray) and raw.x.shape == context.event_shape:
        raw.x = raw.x[None]
    c = new_rows(context, raw, Told(label, notes, 0))
    check_lengths(context, c, called(given), raw.files)
    if notes is not None:
        notes += raw.notes
    return c, raw


def check_lengths(context: Space, c: Any, where: str | None = None, files: Sequence[str] | None = None) -> None:
    """Raise BadValue for a context (of rows, or of a batch [N, L, ...]) longer than the longest that is known.

    It is named by its number from 1, by ``where`` it is from and by its file [N], as far as these are told.
    """
    if context.fill is None:
        return
    lengths = c.lengths if isinstance(c, RaggedRows) else context.lengths(c)
    if len(lengths) and int(lengths.max()) > context.length:
        row = int(lengths.argmax())
        place = (f" of {where}" if where else "") + (f" ({files[row]})" if files else "")
        raise BadValue(
            f"Context {row + 1}{place} is {int(lengths[row])} long; those of this run are up to {context.length}.",
            "Shorten it, or fit with contexts as long.",
        )


def _lines(how: Options, space: Space) -> Options:
    """Where texts are wanted that have no line ends, each line is one."""
    if space.alphabet and "\n" not in space.alphabet and how.separator is None:
        return replace(how, separator="\\n")
    return how


def _is_table(source: Any) -> bool:
    return isinstance(source, str | os.PathLike) and str(source).lower().removesuffix(".gz").endswith(TABLES)


def _is_lines(source: Any) -> bool:
    return isinstance(source, str | os.PathLike) and str(source).lower().endswith((".jsonl", ".ndjson"))


def _of_episodes(
    space: Space, context: Space, source: Any, options: Mapping[str, Any], notes: list[str] | None
) -> Part:
    """Sequences whose steps come apart: into those that are modelled and given, or into chunks of actions."""
    length, history = options.get("chunk"), options.get("history") or 1
    if length is None:
        step = Table((*space.step.columns, *context.step.columns))  # type: ignore[attr-defined]
        own = len(space.step.columns)  # type: ignore[attr-defined]
    else:
        given = context.columns[: len(context.columns) // history]
        plain = read(source, reading(options, [], alone=True))
        names = (
            [c.name for c in getattr(plain.space, "step", Table(())).columns] if isinstance(plain, RawRagged) else []
        )
        acts = [name for name in names if name not in {c.name for c in given}]
        known = space.step.columns if space.name == "sequence" else tuple(map(Real, acts))  # type: ignore[attr-defined]
        expected = len(known) if space.name == "sequence" else space.event_shape[1]
        if len(acts) != expected:
            raise WrongShape(
                f"{called(source)} has sequences of {len(acts)} columns beside {', '.join(c.name for c in given)}; "
                f"expected {expected}.", "Give such sequences.",
            )  # fmt: skip
        step, own = Table((*known, *given)), len(acts)
    like = Steps(step, True, space.length)
    raw = read(source, _how(like, None, options))
    whole = Part(new_rows(like, raw, Told(None, notes, 0)), rows=torch.arange(raw.n))
    if notes is not None:
        notes += raw.notes
    mine, theirs = torch.arange(own), torch.arange(own, len(step.columns))
    if length is None:
        return steps_apart(whole, mine, theirs)
    kept = long_enough(torch.arange(len(whole)), whole.x.lengths, length, [] if notes is None else notes)
    whole = whole[kept]
    return chunks(like, whole, mine, theirs, length, history)


def names_used(space: Space, context: Space | None, options: Mapping[str, Any]) -> list[str]:
    """The columns of a table that rows of the space and context are made of, and those that may hold a label."""
    return [*_labels(options), *(c.name for s in (space, context) if s and not s.values for c in s.columns)]


def _labels(options: Mapping[str, Any]) -> list[str]:
    """The columns that may hold a label: the first that is there does."""
    return [name for name in (options.get("target"), options.get("label"), "label") if name]


def unused(columns: Iterable[str], used: Collection[str]) -> list[str]:
    """A note on the columns that are left aside, where there are any."""
    others = [c for c in columns if c not in used]
    return [f"Columns not used: {', '.join(others[:12])}{', …' * (len(others) > 12)}."] if others else []


def of_names(space: Space, rows: Any) -> Tensor:
    """Rows [N, *E] of what has its columns by name, or the row [D] of a dictionary of values; see ``space.take``.

    Of a label the column "label", or the only one. Raises as ``read_rows`` and ``encode_row`` do.
    """
    if isinstance(rows, Mapping):
        columns = {k: v for k, v in rows.items() if isinstance(v, Iterable) and not isinstance(v, str)}
        if not columns:
            if not space.columns:
                raise WrongShape(f"A dictionary of values is the row of a table; expected {space}.", "Give an array.")
            return encode_row(space, {str(k): str(v) for k, v in rows.items() if v is not None})
        if len(columns) < len(rows):
            single = next(k for k in rows if k not in columns)
            raise WrongShape(f"Column {single!r} is a single value beside others of many.", "Give one for each row.")
        rows = _arrow(columns)
    names = getattr(rows, "column_names", None) or [str(c) for c in rows.columns]
    alone = names[0] if space.values and len(names) == 1 else None
    x: Tensor = read_rows(space, None, rows, options={"label": alone}).x
    return x


def _arrow(columns: Mapping[str, Any]) -> Any:
    """Columns of equal length, of lists or arrays, as an Arrow table."""
    try:
        plain = {str(k): v.numpy(force=True) if isinstance(v, Tensor) else v for k, v in columns.items()}
        return pa.table({k: pa.array(v, from_pandas=True) for k, v in plain.items()})
    except (pa.ArrowException, TypeError, ValueError) as e:
        raise WrongShape(f"The columns make up no table: {e}.", "Give lists or arrays of equal length.") from e


def _lacks(name: str, columns: Iterable[str], where: str, space: Space) -> WrongShape:
    """What is said of a source that does not have the column of a space beside its rows."""
    there = [*columns]
    found = f"{meant(name, there, f'Its columns: {abridged(there, 20)}.')} Rename or add it." if there else "Add it."
    return WrongShape(f"{where} has no column {name!r}; expected {space}.", found)


def _held(raw: Raw) -> str:
    return f"a table of {len(raw.columns)} columns" if isinstance(raw, RawTable) else str(raw.space)


@dataclass(frozen=True)
class Told:
    """What reading new rows goes by: each row's class, where the source has one; the others as in ``read_rows``."""

    label: Any
    notes: list[str] | None
    first: int


@singledispatch
def new_rows(space: Space, raw: Raw, told: Told) -> Any:
    """What was read as rows [N, *E] of ``space``: an array as it stands, or columns by the names of its own.

    An open function: a space whose data are otherwise adds its own case. Raises WrongShape and BadValue.
    """
    if isinstance(raw, RawArray) and raw.x.shape[1:] == space.event_shape:
        return take(space, raw.x)
    if isinstance(raw, RawTable) and space.columns:
        return _of_columns(space, raw, told)
    raise WrongShape(f"The source holds {_held(raw)}; expected {space}.", "Give such data.")


@new_rows.register
def _(space: Ragged, raw: Raw, told: Told) -> Any:
    if not isinstance(raw, RawRagged) or raw.space.name != space.name:
        raise WrongShape(f"The source holds {_held(raw)}; expected {space}.", "Give such data.")
    return raw.rows


@new_rows.register
def _(space: Label, raw: Raw, told: Told) -> Tensor:
    if told.label is None:
        raise WrongShape("The source has no labels.", "Add a column 'label', or sort images into folders by class.")
    return _new_labels(space.values, told.label, told.first)


def _of_columns(space: Space, raw: RawTable, told: Told) -> Tensor:
    for col in space.columns:
        if col.name not in raw.columns:
            found = meant(col.name, raw.columns, f"Its columns: {abridged([*raw.columns], 20)}.")
            raise WrongShape(f"The source has no column {col.name!r}.", f"{found} Rename or add it.")
    tell = warnings.warn if told.notes is None else told.notes.append
    rows = encode_rows(space.columns, lambda name: raw.columns[name](), raw.n, tell, told.first)
    return torch.from_numpy(rows).to(space.dtype).reshape(-1, *space.event_shape)


def _new_labels(values: Sequence[str], label: Any, first: int) -> Tensor:
    missing = "(missing)" in values  # a class of its own, see _classes
    column = Category("label", tuple(v for v in values if v != "(missing)"), nullable=missing)
    return torch.from_numpy(encode(column, label, first=first)).nan_to_num(len(column.values)).long()


def encode_row(space: Space, values: Mapping[str, str]) -> Tensor:
    """One datum [*E] of a space of columns from spelled values, as on a command line; nullable columns may be left out.

    Raises UsageError for an unknown or lacking column, BadValue for a value the column cannot hold.
    """
    names = [c.name for c in space.columns]
    for name in values:
        if name not in names:
            raise no_column(name, names, "given")
    row = []
    for col in space.columns:
        if col.name not in values and not col.nullable:
            raise UsageError(f"Column {col.name!r} is lacking.", f"Give all of: {', '.join(names)}.")
        value = values.get(col.name)
        if value in MISSING and not (isinstance(col, Category) and value in col.values):
            value = None
        array = pa.chunked_array([pa.array([value], pa.string())])
        if isinstance(col, Integer) and col.date and value is not None:
            array = _date(col.name, value)
        row.append(float(encode(col, array)[0]))
    return torch.tensor(row, dtype=torch.float64).to(space.dtype).reshape(space.event_shape)


def _date(name: str, spelling: str) -> Any:
    try:
        return pa.chunked_array([pa.array([datetime.datetime.fromisoformat(spelling)])])
    except ValueError as e:
        raise BadValue(
            f"Column {name!r} takes a date, not {spelling!r}.", "Write 2024-12-31 or 2024-12-31T23:59."
        ) from e
