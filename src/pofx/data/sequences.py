"""Sequences of steps: archives of trajectories, strokes and piano rolls; tables that say which rows belong together.

A step is a row of a table, whose column types are inferred over all steps of all sequences, as a table's are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from pofx.core.errors import BadValue, EmptyData, UsageError, WrongShape
from pofx.data.columns import typed
from pofx.data.folders import by_part
from pofx.data.options import Options
from pofx.data.ragged import NDArray, RaggedRows, RawRagged
from pofx.data.raw import RawTable
from pofx.data.tabular import encode_rows
from pofx.spaces import Category, Sequence, Table

ROWS = "rows"  # the whole table is one sequence, or: in the order of the table's rows
NUMBER = "sequence"  # the column that numbers sampled sequences, unless the data's own has a name
CLOCKS = ("time", "timestamp", "datetime", "date", "day", "t", "step", "timestep", "time_step", "tick", "frame")
STARTS, ENDS = "offsets", ("episode_ends", "ends")  # arrays that say where sequences begin, or end
LABELS = ("y", "label", "labels", "target", "targets")
PENS = ("dx", "dy", "pen")
KEYS = 88  # of a piano, the first of which is note 21 of MIDI

Columns: TypeAlias = "dict[str, Callable[[], Any]]"


# ---------------------------------------------------------------------------------------------- archives


def is_sequences(arrays: Mapping[str, NDArray]) -> bool:
    """Do arrays hold steps of sequences, end to end?"""
    return not {STARTS, *ENDS}.isdisjoint(by_part(arrays))


def from_arrays(arrays: Mapping[str, NDArray], name: str, how: Options) -> RawRagged:
    """Arrays of steps [T, ...], with ``offsets`` [N + 1] or ``episode_ends`` [N] that cut them into sequences.

    With train, valid or test before or after their names, arrays are parts. Their numbers become columns: ``state`` of
    5 becomes state1 to state5; ``roll`` of packed bits becomes the 88 keys of a piano, key21 to key108; ``strokes`` of
    3 become dx, dy and pen. ``y`` or ``label`` [N] are the classes of the sequences.

    Raises WrongShape (bounds that fit no array), UsageError (no such array), EmptyData.
    """
    if how.order not in (None, ROWS):
        raise UsageError(f"Steps of {name} are in the order of the arrays, not of {how.order!r}.", "Leave out order.")
    keys = by_part(arrays)
    bound = next((b for b in (STARTS, *ENDS) if b in keys), None)
    if bound is None:
        raise WrongShape(f"{name} does not say where sequences end.", "Add offsets [N + 1] or episode_ends [N].")
    parts = sorted(keys[bound], key=lambda p: -1 if p is None else p)
    if None in parts and len(parts) > 1:
        raise WrongShape(f"{name} has {', '.join(keys[bound].values())}: some are of a part, some of none.")
    offsets = {p: _offsets(arrays[key], key, bound, name) for p, key in keys[bound].items()}
    whole = {k: by for k, by in keys.items() if set(by) == set(parts) and k != bound}
    steps = {
        k: [arrays[by[p]] for p in parts]
        for k, by in whole.items()
        if all(arrays[by[p]].ndim and len(arrays[by[p]]) >= offsets[p][-1] for p in parts)
    }
    notes: list[str] = []
    chosen = _chosen(steps, how, name, notes)
    # what lies before, between and after the sequences of parts belongs to none
    ends = np.concatenate([offsets[p][1:] for p in parts])
    starts = np.concatenate([offsets[p][:-1] for p in parts])
    before = np.cumsum([0, *(len(a) for a in steps[chosen[0]])])[:-1].repeat([len(offsets[p]) - 1 for p in parts])
    joined = {k: np.concatenate(steps[k]) for k in chosen}
    if len(chosen) == 1 and _packed(chosen[0], joined[chosen[0]]):
        # bits are known to be binary, and stay bytes
        table = Table(tuple(Category(key, ("0", "1")) for key in _names(chosen[0], joined[chosen[0]])))
        if how.types or how.drop:
            raise UsageError("Keys of a piano roll have no other types, and none is left out.", "Leave types and drop.")
        if how.steps is not None and how.steps.step != table:
            raise WrongShape(f"{name} holds steps of a {table}; expected {how.steps}.", "Give sequences of that kind.")
        values = np.unpackbits(joined[chosen[0]], axis=1, count=KEYS)
    else:
        columns = _columns(joined, [str(c) for c in arrays.get("columns", ())])
        table, values = _table(columns, len(joined[chosen[0]]), how, name, notes)
    raw = _raw(table, values, starts + before, ends + before, name)
    raw.part = None if parts == [None] else np.repeat(np.array(parts), [len(offsets[p]) - 1 for p in parts])
    label = how.label_array or next((k for k in whole if k in LABELS), None)
    if how.label_array is not None and how.label_array not in whole:
        raise UsageError(f"{name} has no array {how.label_array!r} of labels.", f"There are: {', '.join(whole)}.")
    if label is not None and sum(len(arrays[whole[label][p]]) for p in parts) == len(ends):
        raw.label = np.concatenate([arrays[whole[label][p]] for p in parts])
    raw.notes = notes
    return raw.without_empty("sequences of no steps were left out.", how)


def _offsets(array: NDArray, key: str, bound: str, name: str) -> NDArray:
    """[N + 1]: where sequences begin, and where the last one ends."""
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise WrongShape(f"{name}: {key} is {list(array.shape)} of {array.dtype}.", "Give whole numbers [N].")
    offsets = array.astype(np.int64) if bound == STARTS else np.concatenate([[0], array]).astype(np.int64)
    if offsets[0] < 0 or (np.diff(offsets) < 0).any():
        raise WrongShape(f"{name}: {key} does not rise.", "Give where each sequence begins or ends, in order.")
    return offsets


def _chosen(steps: Mapping[str, list[NDArray]], how: Options, name: str, notes: list[str]) -> list[str]:
    """The arrays that a step is made of."""
    shown = ", ".join(f"{k} {list(a[0].shape)} {a[0].dtype}" for k, a in steps.items()) or "none"
    can = {k: {x.dtype.kind for x in a} for k, a in steps.items() if len({x.shape[1:] for x in a}) == 1}
    if missing := [k for k in how.arrays if k not in can]:
        raise UsageError(f"{name} has no array {missing[0]!r} of steps.", f"There are: {shown}.")
    known = {c.name for c in how.steps.step.columns} if how.steps else set()
    chosen = list(how.arrays) or [k for k in can if not known.isdisjoint(_names(k, steps[k][0]))]
    chosen = chosen or [k for k in can if can[k] == {"f"}] or [k for k in can if can[k] <= {"i", "u", "b"}]
    lengths = {k: [len(x) for x in steps[k]] for k in chosen}
    if not chosen or any(v != lengths[chosen[0]] for v in lengths.values()):
        raise WrongShape(f"{name} has these arrays as long as its sequences: {shown}.", "Name some of one length.")
    if others := [k for k in steps if k not in chosen]:
        notes.append(f"Steps are made of {', '.join(chosen)}; arrays not used: {', '.join(others)}.")
    return chosen


def _packed(name: str, array: NDArray) -> bool:
    return name in ("roll", "rolls") and array.dtype == np.uint8 and array.shape[1:] == ((KEYS + 7) // 8,)


def _names(name: str, array: NDArray) -> list[str]:
    """Of the columns that an array [T, ...] becomes."""
    if _packed(name, array):
        return [f"key{21 + k}" for k in range(KEYS)]
    size = int(np.prod(array.shape[1:], dtype=np.int64))
    if name == "strokes" and size == len(PENS):
        return [*PENS]
    return [name] if size == 1 else [f"{name}{j + 1}" for j in range(size)]


def _columns(arrays: Mapping[str, NDArray], given: list[str]) -> Columns:
    bits = {k: np.unpackbits(a, axis=1, count=KEYS) if _packed(k, a) else a for k, a in arrays.items()}
    names = [n for k, a in arrays.items() for n in _names(k, a)]
    fetches = [partial(np.ascontiguousarray, column) for a in bits.values() for column in a.reshape(len(a), -1).T]
    return dict(zip(given if len(given) == len(names) else names, fetches, strict=True))


# ------------------------------------------------------------------------------------------------ tables


def from_table(raw: RawTable, how: Options, name: str = "the table") -> RawRagged:
    """Rows of a table as steps: those of one value of a column are a sequence, or all rows are, in their order in time.

    What orders the rows, and a column of dates (of chunks: any clock that is not given) that only go up within each
    sequence, is left out unless its type is declared. Raises UsageError (no such column), BadValue (a row that belongs
    to no sequence, or has no time).
    """
    columns: Columns = dict(raw.columns)
    apart = _apart(columns, how, name)
    codes = np.zeros(raw.n, np.int64) if apart == ROWS else _codes(apart, columns.pop(apart)())
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    ends = np.append(starts[1:], raw.n)
    notes = list(raw.notes)
    if (np.diff(order) < 0).any():
        notes.append(f"Rows of one {apart!r} do not follow each other everywhere: they were brought together.")
    clocks = {c: found for c in columns if (found := _clock(c, columns[c](), how)) is not None}
    if (by := _ordering(columns, clocks, how, order, starts, notes)) is not None:
        order = np.lexsort((clocks[by].times, codes))
    if how.steps is None:
        for column in [c for c in clocks if c not in how.types and c not in how.drop]:
            steps = clocks[column].steps(order, starts)
            tells = clocks[column].date or (how.chunk is not None and column not in how.beside)
            if column == how.order or (tells and len(steps) > 0 and bool((steps >= 0).all())):
                columns.pop(column)
                notes.append(
                    f"{column!r} only goes up within sequences: it was left out (keep it: --types {column}=integer)."
                )
    table, values = _table(columns, raw.n, how, name, notes, raw)
    out = _raw(table, values[order], starts, ends, name)
    first = order[starts]
    out.part, out.label = (None if a is None else a[first] for a in (raw.part, raw.label))
    out.notes = notes
    return out


def _apart(columns: Columns, how: Options, name: str) -> str:
    """The column that tells sequences apart, or "rows"."""
    if how.sequence in columns:
        return how.sequence
    if how.steps is not None and number_of(how.steps) in columns:  # as sampled sequences are written
        return number_of(how.steps)
    if how.sequence == ROWS:
        return ROWS
    known = ", ".join([*columns][:20])
    raise UsageError(
        f"There is no column {how.sequence!r} that tells the sequences of {name} apart."
        if how.sequence
        else f"Nothing tells the sequences of {name} apart.",
        f"Name a column (of {known}), or 'rows' for one long sequence."
        if how.steps is None
        else f"Add it to the columns ({known}), or number the sequences in a column {number_of(how.steps)!r}.",
    )


def number_of(space: Sequence) -> str:
    """The column that numbers sequences where their own has no name."""
    name = NUMBER
    while name in {c.name for c in space.step.columns}:
        name += "_"
    return name


def _codes(name: str, array: Any) -> NDArray:
    """Each row's sequence, counted in the order in which sequences appear."""
    column = pa.chunked_array([pa.array(array, from_pandas=True)]) if isinstance(array, np.ndarray) else array
    if pa.types.is_floating(column.type):
        column = pa.chunked_array([pa.array(column.to_numpy(), from_pandas=True)])  # NaN is missing
    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise BadValue(f"Column {name!r} is missing in row {row}, which so belongs to no sequence.", "Correct the row.")
    _, first, codes = np.unique(column.to_numpy(), return_index=True, return_inverse=True)
    return first.argsort().argsort()[codes]


@dataclass(frozen=True)
class Clock:
    """A column that may tell the order of rows: its values [T] as they sort, and whether they are dates."""

    times: NDArray
    date: bool

    def steps(self, order: NDArray, starts: NDArray) -> NDArray:
        """From each row of a sequence to the next."""
        inside = np.ones(len(order) - 1, bool)
        inside[starts[1:] - 1] = False
        return np.diff(self.times[order])[inside]


def _clock(name: str, array: Any, how: Options) -> Clock | None:
    """A column of dates, or of numbers that is named like a clock or by ``how.order``, of which no value is missing."""
    if isinstance(array, np.ndarray):
        date, number, values = array.dtype.kind == "M", array.dtype.kind in "iuf", array
    else:
        kind = array.type
        date = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if array.null_count or not (date or number):
            return None
        values = array.to_numpy()
    if not date and not (number and (name == how.order or name.lower() in CLOCKS)):
        return None
    if date:
        return None if np.isnat(values).any() else Clock(values.astype(np.int64), True)
    times = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    return None if np.isnan(times).any() else Clock(times, False)


def _ordering(
    columns: Columns, clocks: Mapping[str, Clock], how: Options, order: NDArray, starts: NDArray, notes: list[str]
) -> str | None:
    """The column by which rows have to be put in order, or None where they are, or nothing tells. Raises UsageError."""
    if how.order == ROWS:
        return None
    if how.order is not None:
        if how.order in clocks:
            return how.order
        if how.order in columns:
            problem = f"Column {how.order!r} does not hold a date or a number in every row: it puts none in order."
            raise UsageError(problem, "Choose a column of times or steps, or 'rows' for the order of the source.")
        if how.steps is None:
            raise UsageError(
                f"There is no column {how.order!r} to put rows in order.", f"Columns: {', '.join([*columns][:20])}."
            )
        return None  # as in what is sampled: steps in their order, without times
    found = {c: clock.steps(order, starts) for c, clock in clocks.items()}
    # a date that never changes within a sequence orders nothing; numbers that repeat there may be anything
    moving = {c: s for c, s in found.items() if s.any() and (clocks[c].date or _distinct(clocks[c], order, starts))}
    if not moving or any((s >= 0).all() for s in moving.values()):
        return None
    names = " and ".join(map(repr, moving))
    if len(moving) > 1:
        choose = "" if how.steps else " (choose one: --order COLUMN)"
        notes.append(f"{names} go up and down within sequences: rows stay in the source's order{choose}.")
        return None
    keep = "" if how.steps else " (to keep the source's: --order rows)"
    notes.append(f"Rows were put in the order of {names} within each sequence{keep}.")
    return next(iter(moving))


def _distinct(clock: Clock, order: NDArray, starts: NDArray) -> bool:
    """Does no value occur twice in a sequence?"""
    number = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    times = clock.times[order]
    return bool(Clock(times, False).steps(np.lexsort((times, number)), starts).all())


# ------------------------------------------------------------------------------------------- both


def _table(
    columns: Columns, n: int, how: Options, name: str, notes: list[str], source: RawTable | None = None
) -> tuple[Table, NDArray]:
    """What a step is, and all steps [T, D]: of inferred types, or of those of a known space."""
    if how.steps is not None:
        known = how.steps.step
        if absent := [c.name for c in known.columns if c.name not in columns]:
            raise WrongShape(
                f"{name} has no column {absent[0]!r}; expected {how.steps}.", "Give sequences of that kind."
            )
        return known, encode_rows(known.columns, lambda c: columns[c](), n, notes.append)
    if not columns:
        raise EmptyData(f"{name} has no column but the one that tells sequences apart.", "Give a column of values.")
    types = {} if source is None else source.types
    wanted = {c: t for c, t in how.types.items() if c in columns or not how.paired}  # of a pair: or of the other's
    drop = [c for c in how.drop if c in columns or not how.paired]
    table, x = typed(RawTable(columns, n, types=types), wanted, drop, notes)
    return table, x.numpy()


def _raw(table: Table, values: NDArray, starts: NDArray, ends: NDArray, name: str) -> RawRagged:
    rows = RaggedRows(values, starts, ends, np.inf, torch.float64)
    if not len(rows) or not int(rows.lengths.max()):
        raise EmptyData(f"{name} holds no sequence of any length.", "Give sequences with steps.")
    return RawRagged(Sequence(table, True, int(rows.lengths.max())), rows)
