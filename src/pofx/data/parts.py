"""Data as every part of pofx sees them: a space, and three parts of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, singledispatch
from typing import Any

import torch
from torch import Tensor

from pofx.core.space import Ragged, Space
from pofx.core.spelling import abridged
from pofx.data.blocks import BlockRows
from pofx.data.ragged import RaggedRows
from pofx.spaces import Category, Column, Image, Integer, Label, Real, Table

UNREAD = (RaggedRows, BlockRows)  # rows that are read when asked for


@dataclass(frozen=True, repr=False)
class Part:
    """Rows of one split.

    x [N, *E] of the space's dtype, or rows that are read when asked for (of free length, or of a table beyond memory);
    c [N, *Ec] the contexts (None for p(x)), such rows, too; label [N] int64 the class of each row where the source has
    one (for probes and colours, never seen by training unless it is the context); weight [N]; rows [N] int64, the
    row's number in its source; before: what precedes each x, where rows are excerpts of something longer; of [N] int64,
    the same for rows of one file, where several are of one.
    """

    x: Any
    c: Any = None
    label: Tensor | None = None
    weight: Tensor | None = None
    rows: Tensor | None = None
    before: Any = None
    of: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def groups(self) -> Tensor | None:
        """The file or row of the source that each is of [N], where several are of one, as captions of an image and
        chunks of a sequence, and so depend on each other; None where each has its own."""
        own = self.rows if self.of is None else self.of
        return None if own is None or len(own.unique()) == len(own) else own

    def __repr__(self) -> str:
        """Such as "30 rows: x [30, 13], c [30]"."""

        def shape(v: Any) -> str:
            return str(list(v.shape)) if isinstance(v, Tensor) else "of any length"

        held = [f"{k} {shape(v)}" for k, v in vars(self).items() if v is not None]
        return f"{len(self):,} row{'s' * (len(self) != 1)}: {', '.join(held)}"

    def __getitem__(self, index: Tensor | slice) -> Part:
        """The rows at ``index``, in its order; what is not read yet is still not read."""

        def pick(v: Any) -> Any:
            return v.take(index) if isinstance(v, UNREAD) else None if v is None else v[index]

        return Part(**{k: pick(v) for k, v in vars(self).items()})

    def draw(self, most: int, seed: int) -> Part:
        """At most ``most`` of the rows in a random order, both by ``seed``: the head of a part may be of one class."""
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:most]]

    def read(self) -> Part:
        """The same with x, c and before as tensors."""
        x, c, before = (v[:] if isinstance(v, UNREAD) else v for v in (self.x, self.c, self.before))
        return dataclasses.replace(self, x=x, c=c, before=before)

    @property
    def beyond_memory(self) -> bool:
        """Are these rows of a table that is too large to be read at once?"""
        return isinstance(self.x, BlockRows) or isinstance(self.c, BlockRows)

    def in_memory(self) -> Part:
        """The same with tensors where it is of such a table: a few of its rows fit."""
        return self.read() if self.beyond_memory else self

    def cut(self, length: int) -> Part:
        """Data of free length up to their first ``length`` steps; what is not read yet is still not read."""
        x = self.x.cut(length) if isinstance(self.x, RaggedRows) else self.x[:, :length]
        return dataclasses.replace(self, x=x)


@dataclass(frozen=True, repr=False)
class Data:
    """A loaded source: what one x is, and which rows train, validate and test.

    The split is the same for every family: a permutation by ``seed`` unless the source brings its own
    test part. ``notes`` tells in sentences what was inferred, dropped or decided.

    Example:
        >>> import pofx
        >>> for column in pofx.load("two-moons", max_rows=300).describe():
        ...     print(column["column"], column["role"], column["type"])
        x1 x real
        x2 x real
        label for probes label
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
    dependent: tuple[str, ...] = ()  # real columns that others determine: a density can grow there without limit

    def __repr__(self) -> str:
        """What it holds and how it is split, then one line for each note; ``describe()`` tells of columns."""
        given = "" if self.context is None else f", given {self.context}"
        rows = ", ".join(f"{len(getattr(self, part)):,} {part}" for part in ("train", "valid", "test"))
        return "\n".join([f"{self.name}: {self.space}{given}; rows: {rows}", *(f"· {note}" for note in self.notes)])

    @cached_property
    def digest(self) -> dict[str, str]:
        """What these data are, in four short hashes (see ``data.digest``): a run remembers them."""
        from pofx.data.digest import of_data

        return of_data(self)

    def describe(self) -> list[dict[str, str]]:
        """One row per column (or one for images and labels): its name, role, type, values, share missing, note."""
        rows = []
        parts = (self.train, self.valid, self.test)
        for role, space, tensors in (
            ("x", self.space, [p.x for p in parts]),
            ("given", self.context, [p.c for p in parts if p.c is not None]),
        ):
            rows += [] if space is None else described(space, role, tensors)
        if self.labels is not None and not any(r["type"] == "label" for r in rows):
            rows.append(_entry("label", "for probes", "label", abridged(self.labels)))
        return rows


def class_counts(data: Data) -> list[int] | None:
    """How many training rows each class has, where labels are modelled or given; else None."""
    for space, code in ((data.space, data.train.x), (data.context, data.train.c)):
        if space is not None and space.values and isinstance(code, Tensor):
            return [int(n) for n in torch.bincount(code, minlength=len(space.values))]
    return None


@singledispatch
def described(space: Space, role: str, rows: Sequence[Any]) -> list[dict[str, str]]:
    """What ``Data.describe`` says of x, or of the context (the role), given its rows in each part.

    An open function: a space with more to tell than one line adds its own case.
    """
    return [_entry(space.name, role, space.name, str(space))]


@described.register
def _(space: Table, role: str, rows: Sequence[Any]) -> list[dict[str, str]]:
    return [_describe(role, c, torch.cat([t[:, j] for t in rows])) for j, c in enumerate(space.columns)]


@described.register
def _(space: Image, role: str, rows: Sequence[Any]) -> list[dict[str, str]]:
    size = f"{space.height}×{space.width}×{space.channels}"
    return [_entry("image", role, f"image {size}", f"{space.levels} levels")]


@described.register
def _(space: Label, role: str, rows: Sequence[Any]) -> list[dict[str, str]]:
    return [_entry("label", role, "label", abridged(space.values))]


@described.register
def _(space: Ragged, role: str, rows: Sequence[Any]) -> list[dict[str, str]]:
    lengths = torch.cat([r.lengths if isinstance(r, RaggedRows) else space.lengths(r) for r in rows])
    values = repr(space.alphabet).strip("'") if space.alphabet else str(space)
    values = values if len(values) <= 60 else f"{values[:57]}…"
    return [_entry(space.name, role, space.name, values, "", f"{int(lengths.min())} to {int(lengths.max())} long")]


def _entry(name: str, role: str, kind: str, values: str, missing: str = "", note: str = "") -> dict[str, str]:
    return {"column": name, "role": role, "type": kind, "values": values, "missing": missing, "note": note}


def _describe(role: str, col: Column, values: Tensor) -> dict[str, str]:
    from pofx.data.tabular import show

    absent = int(values.isnan().sum())
    missing = f"{absent} ({absent / len(values):.1%})" if absent else ("allowed" if col.nullable else "")
    if isinstance(col, Category):
        kind = "binary" if len(col.values) == 2 else "category"
        return _entry(col.name, role, kind, abridged(col.values), missing, "constant" if len(col.values) == 1 else "")
    present = values[~values.isnan()]
    low, high = (show(col, float(v)) for v in (present.min(), present.max()))
    kind, note = ("integer" if isinstance(col, Integer) else "real"), ""
    if isinstance(col, Integer) and col.date:
        kind = "date" if col.date == "d" else "time"
        note = f"counted in {'days' if col.date == 'd' else 'seconds'}"
    if isinstance(col, Real) and col.step is not None:
        note = f"counted in steps of {col.step:.6g}"
    return _entry(col.name, role, kind, f"{low} to {high}", missing, note)
