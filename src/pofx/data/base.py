"""Data as every part of pofx sees them: a space, and three parts of rows; ``load`` makes them of any source."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from pofx.core.errors import BadValue, EmptyData, UsageError, WrongShape
from pofx.core.space import Audio, Category, Column, Image, Integer, Label, Ragged, Real, Space, Table, Text
from pofx.core.space import Sequence as Steps
from pofx.data.ragged import RaggedRows, RawRagged

if TYPE_CHECKING:
    from pofx.data.read import Options as ReadOptions
    from pofx.data.read import Raw, RawTable

TRAIN, VALID, TEST = 0, 1, 2  # parts that a source may bring
MOST_CLASSES = 1000
KINDS = (None, "table", "text", "audio", "sequence")
SYMBOLS = ("auto", "characters", "bytes")


@dataclass(frozen=True)
class Part:
    """Rows of one split.

    x [N, *E] of the space's dtype, or rows of free length that are read when asked for; c [N, *Ec] the contexts
    (None for p(x)); label [N] int64 the class of each row where the source has one (for probes and colours,
    never seen by training unless it is the context); weight [N]; rows [N] int64, the row's number in its
    source; before: what precedes each x, where rows are excerpts of something longer.
    """

    x: Any
    c: Tensor | None = None
    label: Tensor | None = None
    weight: Tensor | None = None
    rows: Tensor | None = None
    before: Any = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Part:
        """The rows at ``index``, in its order; rows of free length are still not read."""

        def pick(v: Any) -> Any:
            return v.take(index) if isinstance(v, RaggedRows) else None if v is None else v[index]

        return Part(**{k: pick(v) for k, v in vars(self).items()})

    def read(self) -> Part:
        """The same with x and before as tensors."""
        x, before = (v[:] if isinstance(v, RaggedRows) else v for v in (self.x, self.before))
        return dataclasses.replace(self, x=x, before=before)

    def cut(self, length: int) -> Part:
        """Data of free length up to their first ``length`` steps; what is not read yet is still not read."""
        x = self.x.cut(length) if isinstance(self.x, RaggedRows) else self.x[:, :length]
        return dataclasses.replace(self, x=x)


@dataclass(frozen=True)
class Data:
    """A loaded source: what one x is, and which rows train, validate and test.

    The split is the same for every family: a permutation by ``seed`` unless the source brings its own
    test part. ``notes`` tells in sentences what was inferred, dropped or decided.
    """

    name: str
    source: str
    space: Space
    train: Part
    valid: Part
    test: Part
    context: Space | None = None
    labels: tuple[str, ...] | None = None  # the classes that Part.label indexes
    split: str = ""  # how the parts were made, in words
    seed: int = 0
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # what load() was called with, to read new rows alike

    def describe(self) -> list[dict[str, str]]:
        """One row per column (or one for images and labels): its name, role, type, values, share missing, note."""
        rows = []
        parts = (self.train, self.valid, self.test)
        for role, space, tensors in (
            ("x", self.space, [p.x for p in parts]),
            ("given", self.context, [p.c for p in parts if p.c is not None]),
        ):
            if isinstance(space, Table):
                for j, column in enumerate(space.columns):
                    rows.append(_describe(role, column, torch.cat([t[:, j] for t in tensors])))
            elif isinstance(space, Image):
                size = f"{space.height}×{space.width}×{space.channels}"
                rows.append(_entry("image", role, f"image {size}", f"{space.levels} levels"))
            elif isinstance(space, Label):
                rows.append(_entry("label", role, "label", _listed(space.values)))
            elif isinstance(space, Ragged):
                rows.append(_describe_ragged(role, space, tensors))
        if self.labels is not None and not any(r["type"] == "label" for r in rows):
            rows.append(_entry("label", "for probes", "label", _listed(self.labels)))
        return rows


def _entry(name: str, role: str, kind: str, values: str, missing: str = "", note: str = "") -> dict[str, str]:
    return {"column": name, "role": role, "type": kind, "values": values, "missing": missing, "note": note}


def _describe(role: str, col: Column, values: Tensor) -> dict[str, str]:
    from pofx.data.tabular import show

    absent = int(values.isnan().sum())
    missing = f"{absent} ({absent / len(values):.1%})" if absent else ("allowed" if col.nullable else "")
    if isinstance(col, Category):
        kind = "binary" if len(col.values) == 2 else "category"
        return _entry(col.name, role, kind, _listed(col.values), missing, "constant" if len(col.values) == 1 else "")
    present = values[~values.isnan()]
    low, high = (show(col, float(v)) for v in (present.min(), present.max()))
    kind, note = ("integer" if isinstance(col, Integer) else "real"), ""
    if isinstance(col, Integer) and col.date:
        kind = "date" if col.date == "d" else "time"
        note = f"counted in {'days' if col.date == 'd' else 'seconds'}"
    if isinstance(col, Real) and col.step is not None:
        note = f"counted in steps of {col.step:.6g}"
    return _entry(col.name, role, kind, f"{low} to {high}", missing, note)


def _describe_ragged(role: str, space: Ragged, rows: Sequence[Any]) -> dict[str, str]:
    lengths = torch.cat([r.lengths if isinstance(r, RaggedRows) else space.lengths(r) for r in rows])
    kind = type(space).__name__.lower()
    values = repr(space.alphabet).strip("'") if isinstance(space, Text) and space.alphabet else str(space)
    values = values if len(values) <= 60 else f"{values[:57]}…"
    return _entry(kind, role, kind, values, "", f"{int(lengths.min())} to {int(lengths.max())} long")


def _listed(values: Sequence[str], most: int = 6) -> str:
    if len(values) <= most:
        return ", ".join(values)
    return f"{', '.join(values[: most - 1])}, … ({len(values)})"


# ---------------------------------------------------------------------------------------------- load


def load(
    source: Any,
    *,
    target: str | None = None,
    given: str | Sequence[str] | None = None,
    label: str | None = None,
    types: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    split: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    name: str | None = None,
    max_rows: int | None = None,
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
    arrays: Sequence[str] = (),
) -> Data:
    """Load a table or images, infer what one x is, and split the rows.

    Args:
        source: a path (CSV, TSV, Parquet, Arrow, .npy, .npz, a folder of PNG and JPEG with sub-folders as
            labels, MNIST's IDX files; text and IDX also as .gz), a NumPy array, tensor, pandas or polars
            frame, pyarrow Table, or the name of a built-in set ("digits", "two-moons", ...).
        target: a column or "label": the space is then Label and all the rest is the context.
        given: "label" or columns ("a,b"), or the array of an archive of sounds that holds their classes: the
            model is p(x | given).
        label: the column (or array of an archive of sounds) that holds each row's class, for probes and colours;
            a column stays in x.
        types: column -> category, integer, real, real:STEP, nullable, drop, or a sum (real+nullable);
            an infinity counts as missing where nullable is declared.
        drop: columns to leave out.
        split: shares of rows to train, validate and test by a permutation of ``seed``. A source's own test
            (or validation) part is kept.
        seed: of the split, of ``max_rows`` and of synthetic sources.
        name: what to call the data; else from the source.
        max_rows: use only so many rows, drawn at random.
        shape: of one image where an array is flat or bit-packed, e.g. (28, 28).
        resize: crop the middle square of each image of a folder and scale it to so many pixels.
        kind: "table", "text", "audio" or "sequence", where a source could be several.
        text: the column of a table, or key of JSON lines, that holds texts.
        separator: what stands between the documents of a text file, e.g. "\\n" where each line is one.
        symbols: what a text is made of: "characters", "bytes", or "auto".
        rate: samples per second that sounds are brought to; law, levels: "linear" (65536 levels) or "mu" (256).
        sequence: the column of a table whose values tell sequences apart, or "rows": all rows are one.
        arrays: of an archive of sequences, those that make up a step.

    Raises:
        UsageError: an option that cannot work. DataError: MissingSource, EmptyData, RaggedTable,
        CorruptFile, BadValue, WrongShape, each naming the place in the source.
    """
    from pofx.data.read import IN_MEMORY, RawTable, read

    if target is not None and given is not None:
        raise UsageError("With a target all the rest is given already.", "Give target or given, not both.")
    if max_rows is not None and max_rows < 3:
        raise UsageError(f"{max_rows} rows cannot be split.", "Give max_rows of at least 3, or none.")
    shares, columns = _shares(split), _names(given)
    options: dict[str, Any] = {
        "target": target,
        "given": columns,
        "label": label,
        "types": dict(types or {}),
        "drop": list(drop),
        "split": list(shares),
        "seed": seed,
        "name": name,
        "max_rows": max_rows,
        "shape": None if shape is None else list(shape),
        "resize": resize,
        "kind": kind,
        "text": text,
        "separator": separator,
        "symbols": symbols,
        "rate": rate,
        "law": law,
        "levels": levels,
        "sequence": sequence,
        "arrays": list(arrays),
    }
    for what, value, known in (("kind", kind, KINDS), ("symbols", symbols, SYMBOLS)):
        if value not in known:
            raise UsageError(f"There is no {what} {value!r}.", f"Known: {', '.join(k for k in known if k)}.")
    texts = [c for c, t in options["types"].items() if "category" in t]
    raw = read(source, _reading(options, texts))
    notes = list(raw.notes)
    space: Space
    rows: Any
    if isinstance(raw, RawTable):
        space, rows = _typed(raw, options["types"], options["drop"], notes)
    elif (options["types"] or drop) and not isinstance(raw.space, Steps):
        raise UsageError("Only tables have columns, so types and drop mean nothing.", "Leave them out.")
    else:
        space, rows = raw.space, raw.rows if isinstance(raw, RawRagged) else torch.from_numpy(raw.x)
    roles = _roles(space, rows, raw, label, target, columns)
    chosen = pick(raw.n, max_rows, seed) if raw.numbers is None else None
    index = torch.arange(raw.n) if chosen is None else chosen
    if raw.numbers is not None or chosen is not None:
        notes.append(f"{len(index)} rows were drawn at random from the source.")
    excerpts = isinstance(raw, RawRagged) and raw.before is not None
    indices, words = _split_by_place(index, shares) if excerpts else _split(index, raw.part, shares, seed)
    numbers = torch.arange(raw.n) if raw.numbers is None else torch.from_numpy(raw.numbers)
    train, valid, test = (
        Part(
            x=roles.take_x(i),
            c=None if roles.take_c is None else roles.take_c(i),
            label=None if roles.code is None else roles.code[i],
            rows=numbers[i],
            before=raw.before.take(i) if isinstance(raw, RawRagged) and raw.before is not None else None,
        )
        for i in indices
    )
    if isinstance(rows, Tensor):
        notes += _repeats(rows, indices)
    is_path = isinstance(source, str | os.PathLike)
    stem = Path(source).name.partition(".")[0] if is_path else type(source).__name__.lower()
    return Data(
        name=name or stem or str(source),
        source=IN_MEMORY if not is_path else os.path.abspath(source) if os.path.exists(source) else str(source),
        space=roles.space,
        train=train,
        valid=valid,
        test=test,
        context=roles.context,
        labels=roles.labels,
        split=words,
        seed=seed,
        notes=tuple(notes),
        options=options,
    )


def _reading(
    options: Mapping[str, Any],
    texts: Sequence[str],
    known: Image | None = None,
    alone: bool = False,
    like: Space | None = None,
) -> ReadOptions:
    """What ``load`` was told, as the readers of each kind of source take it; ``like``: the space of new rows."""
    from pofx.data import audio, sequences, text
    from pofx.data.read import Options

    get = options.get
    shape, kind = get("shape"), get("kind")
    if isinstance(like, Ragged):
        kind = type(like).__name__.lower()
    return Options(
        texts, None if shape is None else tuple(shape), get("resize"), known, alone,
        None if alone else get("max_rows"), get("seed", 0), kind,
        text.Reading(get("symbols", "auto"), get("separator"), get("text"), like if isinstance(like, Text) else None),
        audio.Reading(
            get("rate"), get("law", "linear"), get("levels"), _classes_of_sounds(options),
            like if isinstance(like, Audio) else None,
        ),
        sequences.Reading(
            get("sequence"), tuple(get("arrays", ())), get("types", {}), tuple(get("drop", ())),
            like if isinstance(like, Steps) else None,
        ),
    )  # fmt: skip


def _classes_of_sounds(options: Mapping[str, Any]) -> str | None:
    """The array of an archive that is wanted for labels: it may be named as the label, or as what is given."""
    named = [options.get("label"), *(options.get("given") or ())]
    return next((name for name in named if name not in (None, "label")), None)


def _names(columns: str | Iterable[str] | None) -> list[str] | None:
    if columns is None:
        return None
    names = [c.strip() for c in columns.split(",")] if isinstance(columns, str) else list(columns)
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"Columns {columns!r} are not distinct names.", "Write given='a,b'.")
    return names


def _shares(split: Sequence[float]) -> tuple[float, float, float]:
    if len(split) != 3 or min(split) <= 0 or abs(sum(split) - 1) > 1e-6:
        raise UsageError(
            f"A split of {tuple(split)} is not three shares above 0 that sum to 1.", "For example (0.8, 0.1, 0.1)."
        )
    train, valid, test = map(float, split)
    return train, valid, test


def pick(n: int, most: int | None, seed: int) -> Tensor | None:
    """``most`` of n row numbers, drawn by ``seed``, in order; None where all n are wanted."""
    if most is None or n <= most:
        return None
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most].sort().values


def _no_column(name: str, known: Iterable[str], what: str) -> UsageError:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Columns: {listed}."
    return UsageError(f"There is no column {name!r} ({what}).", hint)


def _typed(raw: RawTable, types: Mapping[str, str], drop: Sequence[str], notes: list[str]) -> tuple[Table, Tensor]:
    """The types of all columns that stay, and all rows [N, D]."""
    from pofx.data.tabular import Spec, encode, infer

    for what, named in (("types", types), ("drop", drop)):
        for name in named:
            if name not in raw.columns:
                raise _no_column(name, raw.columns, what)
    specs = {c: Spec.parse(c, t) for c, t in types.items()}
    wanted = [c for c in raw.columns if c not in drop and not (c in specs and specs[c].kind == "drop")]
    x = torch.empty(raw.n, len(wanted), dtype=torch.float64)
    rows = x.numpy()
    columns: list[Column] = []
    rounded: dict[str, int] = {}
    for name in wanted:
        array = raw.columns[name]()
        if name in raw.types and name not in specs:
            column = raw.types[name]
            rows[:, len(columns)] = encode(column, array)
        else:
            found = infer(name, array, specs.get(name))
            if found.note:
                notes.append(found.note)
            if found.column is None:
                continue
            column = found.column
            if found.rounded:
                rounded[name] = found.rounded
            rows[:, len(columns)] = found.values
        if isinstance(column, Integer) and column.date and raw.n > 2 and (x[:, len(columns)].diff() >= 0).all():
            notes.append(f"Rows are in order of {name!r}, yet split at random: test rows have neighbours in training.")
        columns.append(column)
    if not columns:
        raise EmptyData("No column is left.", "Drop fewer columns, or declare types for those that were left out.")
    grids = [c for c in columns if isinstance(c, Real) and c.step is not None and c.name not in {*specs, *raw.types}]
    for title, items in (
        ("Constant", [f"{c.name} ({c.values[0]})" for c in columns if isinstance(c, Category) and len(c.values) == 1]),
        (
            "Values repeat, so these are counted at their stored resolution, not given a density",
            [f"{c.name} ({c.step:.6g})" for c in grids],
        ),
        (
            "On no common grid, so values were rounded to a resolution (change it with --types COLUMN=real:STEP)",
            [f"{count} of {name}" for name, count in rounded.items()],
        ),
    ):
        if items:
            notes.append(f"{title}: {_listed(items, 12)}.")
    return Table(tuple(columns)), x[:, : len(columns)]


# ---------------------------------------------------------------------------------------------- roles


Take: TypeAlias = Callable[[Tensor], Any]  # row numbers [n] -> those rows [n, *E]


@dataclass(frozen=True)
class _Roles:
    """What is modelled and what is given: spaces, and how to take rows of each."""

    space: Space
    context: Space | None
    take_x: Take
    take_c: Take | None
    labels: tuple[str, ...] | None
    code: Tensor | None  # [N] the class of each row


def _roles(space: Space, x: Any, raw: Raw, label: str | None, target: str | None, given: list[str] | None) -> _Roles:
    names = [c.name for c in space.columns] if isinstance(space, Table) else []
    if isinstance(raw, RawRagged) and raw.classes is not None:  # an array of classes by its own name
        label = None if label == raw.classes else label
        given = ["label"] if given == [raw.classes] else given
    column = target if target not in (None, "label") else label  # the column that holds the classes
    if column is None and raw.label is None and target == "label" and "label" in names:
        column = "label"
    labels: tuple[str, ...] | None = None
    code: Tensor | None = None
    if column is not None:
        if column not in names:
            raise _no_column(column, names, "label" if column == label else "target")
        assert isinstance(space, Table)
        labels, code = _classes(space.columns[names.index(column)], x[:, names.index(column)])
    elif raw.label is not None:
        labels, code = _factor(raw.label)
    if labels is None and (target == "label" or (given == ["label"] and "label" not in names)):
        raise UsageError("The source has no labels.", "Name the column that holds them: label=COLUMN.")

    take = x.take if isinstance(x, RaggedRows) else x.__getitem__

    def rest(without: Container[str | None]) -> tuple[Space, Take]:
        if not isinstance(space, Table):
            return space, take
        return _columns(space, x, [n for n in names if n not in without])

    if target is not None:
        assert labels is not None
        assert code is not None
        context, take_c = rest([column])
        return _Roles(Label(labels), context, code.__getitem__, take_c, labels, code)
    if given == ["label"] and labels is not None and code is not None:
        kept, take_x = rest([column])
        return _Roles(kept, Label(labels), take_x, code.__getitem__, labels, code)
    if given is not None:
        if not isinstance(space, Table):
            raise UsageError(f"Only tables have columns to be given ({', '.join(given)}).", "Give 'label'.")
        for name in given:
            if name not in names:
                raise _no_column(name, names, "given")
        context, take_c = _columns(space, x, given)
        kept, take_x = rest(given)
        return _Roles(kept, context, take_x, take_c, labels, code)
    return _Roles(space, None, take, None, labels, code)


def _columns(space: Table, x: Tensor, names: list[str]) -> tuple[Table, Take]:
    """The sub-table of ``names``, and how to take its rows."""
    if not names:
        raise UsageError("No column is left to model.", "Give fewer columns.")
    by_name = {c.name: j for j, c in enumerate(space.columns)}
    index = torch.tensor([by_name[n] for n in names])
    sub = Table(tuple(space.columns[j] for j in index.tolist()))
    return sub, lambda i: x[i[:, None], index]


def _classes(column: Column, values: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """The classes that a column holds and each row's class [N]; missing is a class of its own."""
    from pofx.data.tabular import spell

    if isinstance(column, Category):
        labels, code = list(column.values), values.nan_to_num(len(column.values)).long()
    else:
        distinct = values[~values.isnan()].unique()
        if (isinstance(column, Real) and column.step is None) or len(distinct) > MOST_CLASSES:
            raise UsageError(
                f"Column {column.name!r} holds numbers ({len(distinct)} distinct), not classes.",
                f"Choose another column, or declare it: --types {column.name}=category.",
            )
        labels = [spell(float(v)) for v in distinct]
        code = torch.where(values.isnan(), len(labels), torch.searchsorted(distinct, values.contiguous()))
    if values.isnan().any():
        labels.append("(missing)")
    return tuple(labels), code


def _factor(label: Any) -> tuple[tuple[str, ...], Tensor]:
    """Class names (or numbers) [N] as sorted spellings and codes."""
    import numpy as np

    distinct, code = np.unique(label, return_inverse=True)
    return tuple(str(v) for v in distinct.tolist()), torch.from_numpy(code.reshape(-1).astype(np.int64))


# ---------------------------------------------------------------------------------------------- split


def _split(index: Tensor, part: Any, shares: tuple[float, float, float], seed: int) -> tuple[list[Tensor], str]:
    """Row numbers of train, valid and test, each in the source's order, and how they came about in words."""
    generator = torch.Generator().manual_seed(seed)
    if part is None:
        pools = [index, index[:0], index[:0]]
    else:
        where = torch.from_numpy(part)[index]
        pools = [index[where == p] for p in (TRAIN, VALID, TEST)]
    own = [p for p in (VALID, TEST) if len(pools[p])]
    lacking = [p for p in (VALID, TEST) if not len(pools[p])]
    pool = pools[TRAIN]
    if len(pool) < 1 + len(lacking):
        raise EmptyData(f"{len(pool)} rows to split into {1 + len(lacking)} parts.", "Give at least 3 rows.")
    mass = shares[TRAIN] + sum(shares[p] for p in lacking)
    shuffled = pool[torch.randperm(len(pool), generator=generator)]
    for p in lacking:
        most = len(shuffled) - 1 - (len(lacking) - 1 if p == lacking[0] else 0)
        count = min(max(1, round(len(pool) * shares[p] / mass)), most)
        pools[p], shuffled = shuffled[:count], shuffled[count:]
    pools[TRAIN] = shuffled
    if not own:
        words = f"random {'/'.join(f'{100 * s:g}' for s in shares)} split by seed {seed}"
    else:
        names = ["", "validation", "test"]
        words = f"the source's own {' and '.join(names[p] for p in own)} part{'s' * (len(own) > 1)}"
        if lacking:
            words += f"; {names[lacking[0]]} rows drawn from its training part by seed {seed}"
    return [p.sort().values for p in pools], words


def _split_by_place(index: Tensor, shares: tuple[float, float, float]) -> tuple[list[Tensor], str]:
    """Excerpts of a long text or series in their order: the first train, the last test."""
    n = len(index)
    if n < 3:
        raise EmptyData(f"The source makes {n} excerpts, too few to split into 3 parts.", "Give more of it.")
    first = min(max(1, round(n * shares[TRAIN])), n - 2)
    second = min(max(first + 1, round(n * (shares[TRAIN] + shares[VALID]))), n - 1)
    train, valid, test = (f"{100 * share:g}%" for share in shares)
    words = f"the first {train} train, the next {valid} validate, the last {test} test"
    return [index[:first], index[first:second], index[second:]], words


def _repeats(x: Tensor, indices: list[Tensor]) -> list[str]:
    """A note where whole rows occur more than once, and how many test rows also occur in training."""
    keys = row_keys(x)
    train, _, test = (keys[i] for i in indices)
    used = torch.cat([keys[i] for i in indices])
    repeats = len(used) - len(used.unique())
    if not repeats:
        return []
    leaked = int(torch.isin(test, train).sum())
    note = f"{repeats} of {len(used)} rows repeat an earlier row"
    return [f"{note}; {leaked} of {len(test)} test rows also occur in training."]


def row_keys(x: Tensor) -> Tensor:
    """A 64-bit hash of each row [N]: equal rows have equal keys, others almost surely not."""
    flat = x.reshape(len(x), -1)
    flat = flat + 0.0 if flat.is_floating_point() else torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8))
    words = math.prod(flat.shape[1:]) * flat.element_size() // 8
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(2**62, (2, words), generator=generator) * 2 + 1
    keys = []
    for rows in flat.split(max(1, 2**22 // words)):
        h = rows.contiguous().view(torch.int64) * odd[0]
        h = (h ^ (h >> 32)) * odd[1]
        keys.append((h ^ (h >> 29)).sum(1))
    return torch.cat(keys)


# ---------------------------------------------------------------------------------------- new rows


def read_rows(
    space: Space,
    context: Space | None,
    source: Any,
    *,
    labels: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Part:
    """All rows of ``source`` in its order, as rows of a known space (and context).

    Args:
        source: anything that ``load`` takes; columns beyond those of the space are left aside.
        labels: the classes of the data that the model was fitted to, to read ``Part.label`` by.
        options: what ``load`` was called with then.

    Raises:
        WrongShape: a column is missing, or images are of another size. BadValue: a value that the space
        does not have (an unknown category or label, a missing entry), naming column, value and row.
    """
    from pofx.data.read import RawTable, read

    options = options or {}
    spaces = [s for s in (space, context) if s is not None]
    texts = [c.name for s in spaces if isinstance(s, Table) for c in s.columns if isinstance(c, Category)]
    known = next((s for s in spaces if isinstance(s, Image)), None)
    raw = read(source, _reading(options, texts, known=known, alone=True, like=space))
    label = raw.label
    if isinstance(raw, RawTable):
        names = (options.get("target"), options.get("label"), "label")
        label = next((raw.columns[n]() for n in names if n and n in raw.columns), label)

    def rows(s: Space) -> Any:
        if isinstance(s, Ragged):
            if not isinstance(raw, RawRagged) or type(raw.space) is not type(s):
                raise WrongShape(f"The source holds no {type(s).__name__.lower()}; expected {s}.", "Give such data.")
            return raw.rows
        if isinstance(s, Image):
            return _new_images(s, raw)
        if isinstance(s, Table):
            return _new_table(s, raw)
        if label is None:
            raise WrongShape("The source has no labels.", "Add a column 'label', or sort images into folders by class.")
        return _new_labels(s.values, label)

    x = rows(space)
    c = None if context is None else rows(context)
    code = x if isinstance(space, Label) else c if isinstance(context, Label) else None
    if code is None and labels is not None and label is not None:
        try:
            code = _new_labels(labels, label)
        except BadValue:  # another data set's classes: these labels are only for probes
            code = None
    before = raw.before if isinstance(raw, RawRagged) else None
    return Part(x, c, code, rows=torch.arange(len(x)), before=before)


def _held(raw: Raw) -> str:
    from pofx.data.read import RawTable

    return f"a table of {len(raw.columns)} columns" if isinstance(raw, RawTable) else str(raw.space)


def _new_images(space: Image, raw: Raw) -> Tensor:
    from pofx.data.image import RawImages

    if not isinstance(raw, RawImages):
        raise WrongShape(f"The source holds {_held(raw)}; expected {space}.", "Give images.")
    return torch.from_numpy(raw.x)


def _new_table(space: Table, raw: Raw) -> Tensor:
    from pofx.data.read import RawTable
    from pofx.data.tabular import encode_rows

    if not isinstance(raw, RawTable):
        raise WrongShape(f"The source holds {_held(raw)}; expected a {space}.", "Give a table.")
    for col in space.columns:
        if col.name not in raw.columns:
            near = difflib.get_close_matches(col.name, raw.columns, n=1, cutoff=0.6)
            found = f"The nearest is {near[0]!r}." if near else f"Its columns: {', '.join([*raw.columns][:20])}."
            raise WrongShape(f"The source has no column {col.name!r}.", f"{found} Rename or add it.")
    return torch.from_numpy(encode_rows(space.columns, lambda name: raw.columns[name](), raw.n))


def _new_labels(values: Sequence[str], label: Any) -> Tensor:
    from pofx.data.tabular import encode

    missing = "(missing)" in values  # a class of its own, see _classes
    column = Category("label", tuple(v for v in values if v != "(missing)"), nullable=missing)
    return torch.from_numpy(encode(column, label)).nan_to_num(len(column.values)).long()


def encode_row(space: Table, values: Mapping[str, str]) -> Tensor:
    """One row [D] of a table from spelled values, as on a command line; nullable columns may be left out.

    Raises UsageError for an unknown or lacking column, BadValue for a value the column cannot hold.
    """
    import pyarrow as pa

    from pofx.data.tabular import encode

    names = [c.name for c in space.columns]
    for name in values:
        if name not in names:
            raise _no_column(name, names, "given")
    row = []
    for col in space.columns:
        if col.name not in values and not col.nullable:
            raise UsageError(f"Column {col.name!r} is lacking.", f"Give all of: {', '.join(names)}.")
        array = pa.chunked_array([pa.array([values.get(col.name)], pa.string())])
        if isinstance(col, Integer) and col.date and col.name in values:
            array = _date(col.name, values[col.name])
        row.append(float(encode(col, array)[0]))
    return torch.tensor(row, dtype=torch.float64)


def _date(name: str, spelling: str) -> Any:
    import datetime

    import pyarrow as pa

    try:
        return pa.chunked_array([pa.array([datetime.datetime.fromisoformat(spelling)])])
    except ValueError as e:
        raise BadValue(
            f"Column {name!r} takes a date, not {spelling!r}.", "Write 2024-12-31 or 2024-12-31T23:59."
        ) from e
