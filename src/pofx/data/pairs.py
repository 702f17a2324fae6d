"""Pairs: what belongs to each row of x, in columns or arrays of its source or in a source of its own."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pofx.core.errors import BadValue, EmptyData, MissingSource, UsageError, WrongShape
from pofx.core.space import Space
from pofx.core.spelling import abridged
from pofx.data import archives, text
from pofx.data.captions import file_of_each, one_for_each
from pofx.data.columns import typed
from pofx.data.folders import FILE, composed, finder
from pofx.data.options import Options
from pofx.data.ragged import Fetch, NDArray, RawRagged
from pofx.data.raw import Raw, RawTable
from pofx.data.read import read
from pofx.data.tabular import FEW_ROWS, distinct_texts
from pofx.spaces import Label

TEXT = "text"  # the type of a column of free text
WORDS = ("text", "caption", "captions", "transcript", "transcription", "sentence", "description", "prompt",
         "normalized_text")  # fmt: skip  # names of columns that are texts, however often a text occurs


@dataclass(frozen=True)
class Side:
    """One side of pairs: its space, and how to take its rows by the numbers [n] of those of x."""

    space: Space
    take: Callable[[Tensor], Any]


def named(given: Any) -> tuple[str | list[str] | None, Any]:
    """What may be names of columns, and what may be another source: of a string, perhaps both."""
    if given is None:
        return None, None
    if isinstance(given, str):
        return given, given if given != "label" and is_source(given) else None
    if isinstance(given, Sequence) and all(isinstance(name, str) for name in given):
        return list(given), None
    return None, given


def is_source(given: str) -> bool:
    """Does a string lead to files?"""
    return os.path.exists(given) or "://" in given or (glob.has_magic(given) and bool(glob.glob(given)))


def is_text(name: str, column: Any, declared: str | None) -> bool:
    """Does a column hold texts? So declared, named, or if most of its values are distinct and no numbers or dates."""
    if declared is not None:
        return declared == TEXT
    if getattr(column, "ndim", 1) != 1:
        return False
    return name.lower() in WORDS or distinct_texts(name, column) > len(column) / 2


def values_of(names: Sequence[str], raw: Raw, types: Mapping[str, str], how: Options, like: Space | None = None) -> Raw:
    """Columns or arrays beside the rows of ``raw`` as a source of their own: a text, an array, or a table.

    ``like`` is the space that they are known to be of. Raises UsageError for a text among several columns.
    """
    columns: dict[str, Fetch] = raw.beside | (raw.columns if isinstance(raw, RawTable) else {})
    arrays = {name: columns[name]() for name in names}
    if like is None:
        texts = [name for name, a in arrays.items() if is_text(name, a, types.get(name))]
    else:
        texts = [name for name in names if like.alphabet is not None]
    if texts and len(names) > 1:
        raise UsageError(
            f"Column {texts[0]!r} is text, which stands by itself; {len(names)} columns are named.",
            f"Name it alone, or declare it a category: --types {texts[0]}=category.",
        )
    if texts:
        return text.from_column(names[0], arrays[names[0]], replace(how, paired=True), places=raw.places)
    first = arrays[names[0]]
    if len(names) == 1 and isinstance(first, np.ndarray) and (first.ndim > 2 or how.kind == archives.REALS):
        return archives.from_array(first, names[0], how)
    if any(isinstance(a, np.ndarray) and a.ndim > 1 for a in arrays.values()):
        return archives.side_by_side([*arrays.values()], list(names), "what is given")
    return RawTable({name: columns[name] for name in names}, raw.n)


def side(
    raw: Raw, types: Mapping[str, str], drop: Sequence[str], notes: list[str], index: Tensor | None = None
) -> Side:
    """The rows of a source as one side of pairs: row ``index[i]`` belongs to row i of x (None: row i)."""
    notes += raw.notes
    space: Space
    rows: Any
    if isinstance(raw, RawTable):
        space, rows = typed(raw, types, drop, notes)
    else:
        space, rows = raw.space, raw.rows if isinstance(raw, RawRagged) else torch.from_numpy(raw.x)
    take = rows.take if isinstance(raw, RawRagged) else rows.__getitem__
    return Side(space, take if index is None else lambda i: take(index[i]))


def labels_of(given: Any) -> Side | None:
    """An array [N] of classes as such; None for what is none."""
    array = given.numpy(force=True) if isinstance(given, Tensor) else given
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "biuUS":
        return None
    if not archives.is_classes(array):
        return None
    values, codes = np.unique(array.astype(str) if array.dtype.kind == "S" else array, return_inverse=True)
    return Side(Label(tuple(str(v) for v in values.tolist())), torch.from_numpy(codes.astype(np.int64)).__getitem__)


def partners(raw: Raw, other: Raw, where: str, there: str, notes: list[str]) -> Tensor | None:
    """Which row of ``other`` belongs to each row of ``raw`` [N]: by the names of files, else in order.

    Files are paired with those of another folder, or with the lines of a table or of JSON that name them; where several
    lines name a file, it is in as many pairs, and ``raw`` is changed to have as many rows. None: row i to row i.
    Raises MissingSource for a file or line without its partner, BadValue for a file whose name does not tell it,
    WrongShape where there are more rows of one than of the other.
    """
    if names_files(raw, other):
        assert not isinstance(raw, RawTable)
        return torch.from_numpy(one_for_each(raw, _named(raw, other, where, there)))
    if names_files(other, raw):
        file_of = _named(other, raw, there, where)
        raw.of = file_of if len(file_of) > other.n else None
        return torch.from_numpy(file_of)
    if raw.files is None or other.files is None:
        if raw.n == other.n:
            files = raw.files or other.files
            if files is not None and raw.n > 1:
                notes.append(f"Paired in order: {files[0]} with row 1, {files[1]} with row 2{', …' * (raw.n > 2)}.")
            return None
        raise WrongShape(
            f"{where} has {raw.n} rows and {there} has {other.n}: they are no pairs.",
            "Give as many of both, in the same order.",
        )
    mine, others = _stems(raw.files, where), _stems(other.files, there)
    for have, lack, place in ((mine, others, there), (others, mine, where)):
        if alone := [file for stem, (_, file) in have.items() if stem not in lack]:
            raise MissingSource(
                f"{len(alone)} of {len(have)} files have no partner of that name in {place}: {abridged(alone, 3)}.",
                "Add those files, or remove these.",
            )
    return torch.tensor([others[stem][0] for stem in mine])


def names_files(raw: Raw, other: Raw) -> bool:
    """Is ``raw`` of files, and does each row of ``other`` name one?"""
    return raw.files is not None and other.files is None and _file_names(other) is not None


def _file_names(raw: Raw) -> Fetch | None:
    """The column or key that names a file for each row."""
    return (raw.columns if isinstance(raw, RawTable) else raw.beside).get(FILE, raw.beside.get(FILE))


def _named(raw: Raw, other: Raw, where: str, there: str) -> NDArray:
    """The file of ``raw`` that each row of ``other`` names [N]. Raises as ``file_of_each``."""
    fetch = _file_names(other)
    assert raw.files is not None
    assert fetch is not None
    column = fetch()
    names = column.to_pylist() if hasattr(column, "to_pylist") else column.tolist()
    places = other.places or [f"{there}, row {i}," for i in range(1, other.n + 1)]
    find = finder(raw.files)
    lines = list[tuple[str, str, list[int]]]()
    for name, place in zip(names, places, strict=True):
        if name is None or not str(name).strip():
            raise BadValue(f"{place} names no file: its {FILE!r} is empty.", "Correct or remove the line.")
        lines.append((place, str(name).strip(), find(str(name).strip())))
    return file_of_each(raw.files, lines, where, there, "file")


def _stems(files: Sequence[str], where: str) -> dict[str, tuple[int, str]]:
    """Number and name of each file, by its path without suffix."""
    found: dict[str, tuple[int, str]] = {}
    for i, file in enumerate(files):
        stem = str(PurePosixPath(composed(file)).with_suffix(""))
        if stem in found:
            raise BadValue(f"{where} holds {found[stem][1]} and {file}: which one is meant?", "Remove one of them.")
        found[stem] = i, file
    return found


@dataclass(frozen=True)
class Second:
    """Another source, of what belongs to each row of x: row ``index[i]`` to row i (None: i); ``classes``: as labels.

    ``aside``: the columns, of either, that only said which rows belong together.
    """

    raw: Raw
    how: Options
    index: Tensor | None
    classes: Side | None = None
    aside: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        return [*self.raw.columns] if isinstance(self.raw, RawTable) else []

    def side(self, types: Mapping[str, str], drop: Sequence[str], notes: list[str]) -> Side:
        """Its rows as a context; a table of one column of text is texts. Raises as ``apart``."""
        if self.classes is not None:
            return self.classes
        kept = [c for c in self.columns if c not in drop]
        own = {c: t for c, t in types.items() if c in kept}
        texts = [c for c in kept if own.get(c) == TEXT]
        raw = values_of(kept, self.raw, own, self.how) if len(kept) == 1 or texts else self.raw
        return side(raw, own, [c for c in drop if c in self.columns and raw is self.raw], notes, self.index)


def second(raw: Raw, source: Any, other: Any, how: Options, notes: list[str], reals: bool = False) -> Second:
    """Another source, read as the first was, as far as that means something for it, and paired with it.

    ``reals``: an array is one of reals.

    Raises as ``partners`` and the readers, and EmptyData where both are one document, for lack of a separator.
    """
    kind = archives.REALS if reals and is_array(other) else None
    own = replace(
        how, kind=kind, arrays=(), label_array=None, label=None, beside=(), paired=True, decided={}, served=set()
    )
    found = read(other, own)
    index = partners(raw, found, called(source), called(other), notes)
    table = found if names_files(raw, found) else raw if names_files(found, raw) else None
    aside = (FILE,) if isinstance(table, RawTable) else ()
    if isinstance(table, RawTable) and not table.columns.keys() - {FILE}:
        raise EmptyData(f"{called(other if table is found else source)} has no column beside {FILE!r}.",
                        "Add what belongs to each file.")  # fmt: skip
    one = [s for s, r in ((source, raw), (other, found)) if isinstance(r, RawRagged) and r.space.alphabet is not None]
    if raw.n == 1 and one:
        raise EmptyData(f"{one[0]} is one document.", "Say what stands between documents: --separator '\\n'.")
    return Second(found, own, index, labels_of(other), aside)


def called(source: Any) -> str:
    """A source in a message."""
    return str(source) if isinstance(source, str | os.PathLike) else f"the {type(source).__name__}"


def is_array(source: Any) -> bool:
    if isinstance(source, str | os.PathLike):
        return str(source).endswith((".npy", ".npz"))
    return isinstance(source, np.ndarray | Tensor)


@dataclass(frozen=True)
class Apart:
    """A source without what is modelled or given as a side of its own, and the roles that are left for its columns.

    ``x``, ``c``: such a side, where there is one; ``label``, ``target``, ``columns``: as ``roles_of`` takes them;
    ``text``: the column that is left of a table, where that is a text.
    """

    raw: Raw
    x: Side | None
    c: Side | None
    label: str | None
    target: str | None
    columns: list[str] | None
    text: str | None = None


def apart(
    raw: Raw,
    columns: list[str] | None,
    target: str | None,
    label: str | None,
    types: Mapping[str, str],
    drop: Sequence[str],
    how: Options,
    notes: list[str],
) -> Apart:
    """What of the named columns and arrays is a side of its own: texts, and what lies beside data that are no table.

    Raises UsageError for columns that cannot be so given, BadValue for empty texts.
    """

    def beside(names: list[str]) -> Side:
        return side(values_of(names, raw, types, how), types, (), notes)

    x = c = None
    if isinstance(raw, RawTable):
        name = target or (columns[0] if columns and len(columns) == 1 else None)
        if name in raw.beside or (name in raw.columns and _is_text_of_table(str(name), raw, types)):
            found = beside([str(name)])
            x, c = (found, None) if name == target else (None, found)
            raw = replace(raw, columns={k: fetch for k, fetch in raw.columns.items() if k != name})
            target = columns = None
        left = [name for name in raw.columns if name not in drop]
        if (x or c) and len(left) == 1 and _is_text_of_table(left[0], raw, types):
            fetch = raw.columns[left[0]]
            whole = replace(how, paired=True)
            raw = text.from_column(left[0], fetch(), whole, raw.label, raw.part)
            return Apart(raw, x, c, label, target, columns, left[0])
        if texts := [name for name in left if types.get(name) == TEXT]:
            raise UsageError(
                f"Column {texts[0]!r} is text, which no table holds.",
                f"Name it by itself (--given {texts[0]}, --target {texts[0]} or --text {texts[0]}), or --drop it.",
            )
        return Apart(raw, x, c, label, target, columns)
    arrays, unlabelled = raw.beside, label is None
    own = raw.classes if isinstance(raw, RawRagged) else None  # the classes of sounds, which are read as such
    if columns == [own] and own in arrays and is_text(str(own), arrays[str(own)](), types.get(str(own))):
        raw.label = own = None
    if label in arrays and label not in (None, own):
        raw.label, label = classes_of(label, arrays[label](), types), None
    if target in arrays and target is not None:
        if is_text(target, arrays[target](), types.get(target)):
            x, target = beside([target]), None
        else:
            raw.label, target = classes_of(target, arrays[target](), types), "label"
        if others := [name for name in arrays if name not in how.beside]:
            notes.append(f"Given is {raw.space}; not used: {', '.join(others[:12])}.")
    if columns == ["label"] and raw.label is None and "label" in arrays:
        raw.label = classes_of("label", arrays["label"](), types)
    if columns is not None and columns not in (["label"], [own]) and arrays.keys() >= {*columns}:
        first = arrays[columns[0]]()
        single = len(columns) == 1 and isinstance(first, np.ndarray) and first.ndim == 1
        if single and types.get(columns[0]) in (None, "category") and archives.is_classes(first):
            if unlabelled:
                raw.label, columns = first, ["label"]
        else:
            c, columns = beside(columns), None
    return Apart(raw, x, c, label, target, columns)


def _is_text_of_table(name: str, raw: RawTable, types: Mapping[str, str]) -> bool:
    """Is a column of a table text: declared so, or one that as a category would be left out or as long as the table?"""
    if name in types or name in raw.types:
        return types.get(name) == TEXT
    return raw.n > FEW_ROWS and distinct_texts(name, raw.columns[name]()) > raw.n / 2


def classes_of(name: str, column: Any, types: Mapping[str, str]) -> Any:
    """A column's values as classes [N], missing ones as a class of their own. Raises UsageError for what is none."""
    if isinstance(column, np.ndarray):
        values = column
    else:
        plain = column.to_pylist()
        some = all(v is not None for v in plain)
        values = np.array(plain if some else ["(missing)" if v is None else str(v) for v in plain])
    if types.get(name) != "category" and not archives.is_classes(values):
        raise UsageError(
            f"{name!r} holds {len(np.unique(values))} values in {len(values)} rows: no classes.",
            f"Choose another, or declare it: --types {name}=category.",
        )
    return values
