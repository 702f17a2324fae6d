"""Rows that a model has not seen yet, read as rows of its own space."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pofx.core.errors import BadValue, UsageError, WrongShape
from pofx.core.space import Ragged, Space, take
from pofx.core.spelling import abridged, meant
from pofx.data.joint import paired
from pofx.data.load import reading
from pofx.data.parts import Part
from pofx.data.ragged import RawRagged
from pofx.data.raw import Raw, RawArray, RawTable
from pofx.data.read import read
from pofx.data.roles import no_column
from pofx.data.tabular import MISSING, encode, encode_rows
from pofx.spaces import Category, Integer, Label


def read_rows(
    space: Space,
    context: Space | None,
    source: Any,
    *,
    labels: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    notes: list[str] | None = None,
    first: int = 0,
) -> Part:
    """All rows of ``source`` in its order, as rows of a known space (and context).

    Args:
        source: anything that ``load`` takes; columns beyond those of the space are left aside.
        labels: the classes of the data that the model was fitted to, to read ``Part.label`` by.
        options: what ``load`` was called with then.
        notes: gets what reading changed, in sentences; without it, values that were rounded draw a warning.
        first: the number of the first row, where the source is a part of a larger one.

    Raises:
        WrongShape: a column is missing, or images are of another size. BadValue: a value that the space
        does not have (an unknown category or label, a missing entry), naming column, value and row.
    """
    if space.parts is not None and (options or {}).get("joint"):  # pairs are read as what they were made of
        own, other = space.parts
        return paired(space, read_rows(own, other, source, labels=labels, options=options, notes=notes, first=first))
    options = options or {}
    spaces = [s for s in (space, context) if s is not None]
    texts = [c.name for s in spaces if not s.values for c in s.columns if isinstance(c, Category)]
    known: Any = next((s for s in spaces if s.pixels), None)
    raw = read(source, reading(options, texts, known=known, alone=True, like=space, context=context))
    label = raw.label
    if isinstance(raw, RawTable):
        used = names_used(space, context, options)
        raw.notes += unused(raw.columns, used)
        label = next((raw.columns[n]() for n in _labels(options) if n in raw.columns), label)

    told = Told(label, notes, first)
    x = new_rows(space, raw, told)
    c = None if context is None else new_rows(context, raw, told)
    code = x if space.values else c if context is not None and context.values else None
    if code is None and labels is not None and label is not None:
        try:
            code = _new_labels(labels, label, first)
        except BadValue as error:  # another data set's classes
            raw.notes.append(f"The labels of the source are left aside. {error.problem}")
    if notes is not None:
        notes += raw.notes
    before = raw.before if isinstance(raw, RawRagged) else None
    return Part(x, c, code, rows=torch.arange(first, first + len(x)), before=before)


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
        raise WrongShape(f"The source holds no {space.name}; expected {space}.", "Give such data.")
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
