"""What one datum x is: its shape, its values, its base measure, and which values are allowed.

A space says nothing about any data set beyond what is needed to read, check and write values.

    space     one event                          dtype     measure
    Table     [D], one entry per column          float64   per column, see below
    Image     [C, H, W], 0 .. levels-1           uint8     counting
    Label     [], class index                    int64     counting
    Text      [L], numbers of symbols            int64     counting
    Audio     [L], levels 0 .. levels-1          int64     counting
    Sequence  [L, D], each step a table's row    float64   that of a step, again and again

A table row is one float64 vector: a number for a real or integer column, the index of the value for a
category, NaN for a missing entry (allowed in nullable columns only).

The length L of a text, a sound or a sequence is free: ``event_shape`` has -1 there. A batch is as long as
its longest datum, and ``fill`` (-1, or infinity among reals) stands after the end of shorter ones. The end
belongs to the datum where ``ends`` is true: the probability of a document includes that it stops where it
does. Else the data are excerpts of something longer, and their lengths are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pofx.core.errors import BadValue, UsageError, WrongShape
from pofx.core.measure import Measure


@dataclass(frozen=True)
class Real:
    """A real column with a density in its raw unit; ``step`` makes it a grid of atoms.

    A column that repeats values has atoms, on which a continuous density grows without limit. Such a
    column is recorded at its stored resolution: values are ``origin + k * step`` for integer k, and it
    is measured by counting. ``low`` and ``high`` are the observed range (for display and for scale
    only: values outside are allowed).
    """

    name: str
    nullable: bool = False
    step: float | None = None
    origin: float = 0.0
    low: float | None = None
    high: float | None = None

    @property
    def measure(self) -> str:
        if self.step is not None:
            return "counting"
        return "atom+lebesgue" if self.nullable else "lebesgue"


@dataclass(frozen=True)
class Integer:
    """A column of integers, measured by counting on all of Z; ``low``, ``high``: the observed range.

    ``date`` is "d" or "s" where the integers count days or seconds since 1970-01-01.
    """

    name: str
    low: int
    high: int
    nullable: bool = False
    date: str | None = None

    step: ClassVar[float] = 1.0
    origin: ClassVar[float] = 0.0

    @property
    def measure(self) -> str:
        return "counting"


@dataclass(frozen=True)
class Category:
    """A column with a fixed set of values, stored as their indices; ``values`` are their spellings."""

    name: str
    values: tuple[str, ...]
    nullable: bool = False

    @property
    def measure(self) -> str:
        return "counting"


Column: TypeAlias = Real | Integer | Category


@dataclass(frozen=True)
class Table:
    """Rows of typed columns; one event is a float64 vector [D].

    Example:
        >>> table = Table((Real("height"), Integer("children", 0, 9), Category("eyes", ("blue", "brown"))))
        >>> str(table.measure)
        'lebesgue × counting^2'
    """

    columns: tuple[Column, ...]

    dtype: ClassVar[torch.dtype] = torch.float64

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (len(self.columns),)

    @cached_property
    def measure(self) -> Measure:
        return Measure.of([c.measure for c in self.columns])

    @property
    def dims(self) -> int:
        return len(self.columns)

    def __str__(self) -> str:
        kinds = [type(c).__name__.lower() for c in self.columns]
        return f"table of {len(kinds)} columns: " + ", ".join(
            f"{kinds.count(k)} {k}" for k in ("real", "integer", "category") if k in kinds
        )

    def check(self, x: Tensor) -> None:
        """Raise WrongShape or BadValue unless every row of x [..., D] is one of this space."""
        _check_shape(self, x)
        flat = x.reshape(-1, self.dims)
        # a finite sum: nothing is missing or infinite, which one cheap pass tells of most data
        missing = None if math.isfinite(flat.sum().item()) else torch.isnan(flat)
        if missing is not None and (infinite := torch.isinf(flat).any(0)).any():
            raise BadValue(
                f"Column {self.columns[int(infinite.nonzero()[0])].name!r} holds an infinite value.",
                "Mark it as missing or drop the row.",
            )
        for j, col in enumerate(self.columns):
            if missing is not None and not col.nullable and missing[:, j].any():
                row = int(missing[:, j].nonzero()[0])
                raise BadValue(
                    f"Column {col.name!r} is NaN (missing) in row {row}, but had no missing values when its type was set.",
                    f"Drop the row, or declare the column nullable: --types {col.name}=nullable.",
                )
            if isinstance(col, Real) and col.step is None:
                continue
            v = flat[:, j] if missing is None else flat[:, j][~missing[:, j]]
            if isinstance(col, Category):
                bad = v[(v != v.round()) | (v < 0) | (v >= len(col.values))]
                if len(bad):
                    raise BadValue(
                        f"Column {col.name!r} holds code {bad[0].item():g}; it has {len(col.values)} values (0 to {len(col.values) - 1}).",
                        "Encode rows with the table's own categories.",
                    )
            elif col.step is not None:
                k = (v - col.origin) / col.step
                bad = v[(k - k.round()).abs() > 1e-3]
                if len(bad):
                    raise BadValue(
                        f"Column {col.name!r} holds {bad[0].item():.10g}, which is not on its grid (step {col.step:g}).",
                        f"Round it, or declare the column continuous: --types {col.name}=real.",
                    )

    def to_json(self) -> dict[str, Any]:
        return {"space": "table", "columns": [{"type": type(c).__name__, **vars(c)} for c in self.columns]}


@dataclass(frozen=True)
class Image:
    """Images [C, H, W] of integer levels 0 .. levels-1 (levels at most 256).

    Example:
        >>> digits = Image(28, 28, 1, 256)
        >>> digits.event_shape, digits.dims, str(digits.measure)
        ((1, 28, 28), 784, 'counting^784')
    """

    height: int
    width: int
    channels: int = 1
    levels: int = 256

    dtype: ClassVar[torch.dtype] = torch.uint8

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.channels, self.height, self.width)

    @property
    def dims(self) -> int:
        return self.channels * self.height * self.width

    @property
    def measure(self) -> Measure:
        return Measure.counting(self.dims)

    def __str__(self) -> str:
        return f"images {self.height}×{self.width}×{self.channels}, {self.levels} levels"

    def check(self, x: Tensor) -> None:
        _check_shape(self, x)
        if x.numel() and int(x.max()) >= self.levels:
            raise BadValue(
                f"A pixel has level {int(x.max())}; this space has levels 0 to {self.levels - 1}.",
                "Rescale the images.",
            )

    def to_json(self) -> dict[str, Any]:
        return {"space": "image", **vars(self)}


@dataclass(frozen=True)
class Label:
    """One of K classes; one event is an int64 scalar.

    Example:
        >>> Label(("cat", "dog")).dims
        1
    """

    values: tuple[str, ...]

    dtype: ClassVar[torch.dtype] = torch.int64

    @property
    def event_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dims(self) -> int:
        return 1

    @property
    def measure(self) -> Measure:
        return Measure.counting(1)

    def __str__(self) -> str:
        return f"label of {len(self.values)} classes"

    def read(self, spellings: list[str]) -> Tensor:
        """Classes by their names, as one batch [N]. Raises BadValue for a name that is none of them."""
        number = {value: k for k, value in enumerate(self.values)}
        if unknown := [s for s in spellings if s not in number]:
            known = ", ".join(self.values[:20]) + (", …" if len(self.values) > 20 else "")
            raise BadValue(f"There is no class {unknown[0]!r}.", f"Classes: {known}.")
        return torch.tensor([number[s] for s in spellings])

    def check(self, x: Tensor) -> None:
        _check_shape(self, x)
        if x.numel() and (int(x.min()) < 0 or int(x.max()) >= len(self.values)):
            raise BadValue(
                f"A label is {int(x.min())} to {int(x.max())}; the classes are 0 to {len(self.values) - 1}.",
                "Encode labels with the classes of the training data.",
            )

    def to_json(self) -> dict[str, Any]:
        return {"space": "label", "values": self.values}


class Ragged:
    """What spaces of data of free length share; the first axis of an event is the free one."""

    ends: bool
    length: int
    fill: ClassVar[float]
    unit: ClassVar[str]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (-1,)

    def lengths(self, x: Tensor) -> Tensor:
        """How long each datum of x [..., *E] is, int64 [...]."""
        inside = x != self.fill
        return (inside if len(self.event_shape) == 1 else inside[..., 0]).sum(-1)

    def units(self, x: Tensor) -> Tensor:
        """How many ``unit``s each datum of x [..., *E] has [...]: what a rate is told per."""
        return self.lengths(x)

    def _check_ends(self, x: Tensor) -> None:
        """``fill`` stands after the end only, and in all of a step."""
        inside = x != self.fill
        if len(self.event_shape) > 1:
            if (inside.any(-1) & ~inside.all(-1)).any():
                raise BadValue(f"A step is {self.fill:g} in part.", "Fill up whole steps, after the end.")
            inside = inside.all(-1)
        if (inside[..., 1:] & ~inside[..., :-1]).any():
            raise BadValue(f"A datum goes on after its end ({self.fill:g}).", "Fill up after the end only.")


@dataclass(frozen=True)
class Text(Ragged):
    """Strings over an alphabet, or strings of bytes; one event is int64 [L], -1 after the end.

    Attributes:
        alphabet: its characters in order; "" for the 256 bytes (of UTF-8, where the data are text).
        ends: a datum is a whole document; else an excerpt, of known length.
        length: of the longest known datum, in symbols: what a sample may be long at most, or is as an excerpt.
    """

    alphabet: str = ""
    ends: bool = True
    length: int = 1024

    dtype: ClassVar[torch.dtype] = torch.int64
    fill: ClassVar[float] = -1
    unit: ClassVar[str] = "byte"

    @property
    def symbols(self) -> int:
        return len(self.alphabet) or 256

    @property
    def dims(self) -> int:
        return self.length

    @property
    def measure(self) -> Measure:
        return Measure.counting(1)  # a string is one point of a countable set, however it is cut into symbols

    @cached_property
    def _bytes(self) -> Tensor:
        """UTF-8 bytes of each symbol, and 0 for fill (index -1)."""
        sizes = [len(c.encode()) for c in self.alphabet] or [1] * 256
        return torch.tensor([*sizes, 0])

    def units(self, x: Tensor) -> Tensor:
        return self._bytes.to(x.device)[x].sum(-1)

    def spell(self, x: Tensor) -> str:
        """One datum [L] as a string (bytes that are no UTF-8 become �)."""
        inside = x[x >= 0].tolist()
        if not self.alphabet:
            return bytes(inside).decode(errors="replace")
        return "".join(map(self.alphabet.__getitem__, inside))

    def after_first(self, x: Tensor, strings: tuple[str, ...]) -> int:
        """How many symbols of one datum [L] there are up to the end of the first of these strings; all without one."""
        inside = x[x >= 0].tolist()
        if self.alphabet:
            text = "".join(map(self.alphabet.__getitem__, inside))
            ends = [text.find(s) + len(s) for s in strings if s in text]
        else:  # bytes as they are, whether or not they are UTF-8
            data, wanted = bytes(inside), [s.encode() for s in strings]
            ends = [data.find(s) + len(s) for s in wanted if s in data]
        return min(ends, default=len(inside))

    def read(self, texts: list[str]) -> Tensor:
        """Strings as one batch [N, L]. Raises BadValue for a character that the alphabet does not have."""
        rows = [self._numbers(text) for text in texts]
        out = torch.full((len(rows), max((len(r) for r in rows), default=0)), -1)
        for row, numbers in zip(out, rows, strict=True):
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return out

    def _numbers(self, text: str) -> list[int]:
        if not self.alphabet:
            return list(text.encode())
        try:
            return [self._number[c] for c in text]
        except KeyError as error:
            raise unknown_character(self, error.args[0], text.index(error.args[0])) from None

    @cached_property
    def _number(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.alphabet)}

    def __str__(self) -> str:
        over = f"{len(self.alphabet)} characters" if self.alphabet else "bytes"
        return f"{'texts' if self.ends else 'excerpts of text'} over {over}, up to {self.length} long"

    def check(self, x: Tensor) -> None:
        _check_shape(self, x)
        _check_symbols(self, x, self.symbols)
        self._check_ends(x)

    def to_json(self) -> dict[str, Any]:
        return {"space": "text", "alphabet": self.alphabet, "ends": self.ends, "length": self.length}


@dataclass(frozen=True)
class Audio(Ragged):
    """Sounds of one channel; one event is int64 [L], the level of each sample, -1 after the end.

    Attributes:
        rate: samples per second.
        levels: 65536 for 16-bit samples (level = sample + 32768), or fewer.
        law: how levels stand for amplitudes in [-1, 1]: "linear", or "mu" (companded, ITU-T G.711 with mu = levels - 1).
        ends: a datum is a whole recording; else an excerpt, of known length.
        length: of the longest known datum, in samples.
    """

    rate: int
    levels: int = 65536
    law: str = "linear"
    ends: bool = True
    length: int = 16000

    dtype: ClassVar[torch.dtype] = torch.int64
    fill: ClassVar[float] = -1
    unit: ClassVar[str] = "sample"

    @property
    def dims(self) -> int:
        return self.length

    @property
    def measure(self) -> Measure:
        return Measure.counting(1)

    def __str__(self) -> str:
        what = "sounds" if self.ends else "excerpts of sound"
        return f"{what} of {self.rate} Hz, {self.levels} {'mu-law ' if self.law == 'mu' else ''}levels, up to {self.length / self.rate:.3g} s"

    def check(self, x: Tensor) -> None:
        _check_shape(self, x)
        _check_symbols(self, x, self.levels)
        self._check_ends(x)

    def to_json(self) -> dict[str, Any]:
        return {"space": "audio", **vars(self)}


@dataclass(frozen=True)
class Sequence(Ragged):
    """Sequences of steps, each a row of a table: trajectories, time series, piano rolls.

    One event is float64 [L, D], infinity after the end.

    Attributes:
        step: what one step is.
        ends: a datum is a whole sequence; else an excerpt, of known length.
        length: of the longest known datum, in steps.
    """

    step: Table
    ends: bool = True
    length: int = 256

    dtype: ClassVar[torch.dtype] = torch.float64
    fill: ClassVar[float] = math.inf
    unit: ClassVar[str] = "step"

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (-1, self.step.dims)

    @property
    def dims(self) -> int:
        return self.length * self.step.dims

    @cached_property
    def measure(self) -> Measure:
        """A datum of n steps has the measure of a step n times over."""
        return Measure(tuple((f"{name}*", count) for name, count in self.step.measure.parts))

    def __str__(self) -> str:
        what = "sequences" if self.ends else "excerpts of sequences"
        return f"{what} of up to {self.length} steps, each a {self.step}"

    def check(self, x: Tensor) -> None:
        _check_shape(self, x)
        self._check_ends(x)
        inside = x.flatten(0, -2)
        self.step.check(inside[inside[:, 0] != math.inf])

    def to_json(self) -> dict[str, Any]:
        return {"space": "sequence", "step": self.step.to_json(), "ends": self.ends, "length": self.length}


Space: TypeAlias = Table | Image | Label | Text | Audio | Sequence


def from_json(data: dict[str, Any]) -> Space:
    """The inverse of ``to_json``. Raises UsageError on an unknown space."""
    body = {k: v for k, v in data.items() if k != "space"}
    if data["space"] == "image":
        return Image(**body)
    if data["space"] == "label":
        return Label(tuple(body["values"]))
    if data["space"] == "text":
        return Text(**body)
    if data["space"] == "audio":
        return Audio(**body)
    if data["space"] == "sequence":
        step = from_json(body.pop("step"))
        assert isinstance(step, Table)
        return Sequence(step, **body)
    if data["space"] == "table":
        kinds: dict[str, Callable[..., Column]] = {"Real": Real, "Integer": Integer, "Category": Category}
        columns = []
        for entry in body["columns"]:
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k != "type"}
            columns.append(kinds[entry["type"]](**fields))
        return Table(tuple(columns))
    raise UsageError(
        f"Unknown space {data['space']!r}; known: table, image, label, text, audio, sequence.", "Use a newer pofx."
    )


READ = "Give numbers; what has names, such as categories, goes in as a frame or a dictionary with the columns by name."
FRAMES = "pofx.data.rows"  # reads what has columns by name; met by its own name, as families are: core has no readers


def take(space: Space, x: Any) -> Tensor:
    """x as a tensor of the space's dtype [*S, *E].

    A tensor or array of any dtype, or nested lists, whose values it can hold; of texts and labels strings, too; of a
    table what has its columns by name, in any order and beside others, with categories as they are spelt: a pandas or
    polars frame, an Arrow table, a dictionary of columns, each [N, D], or a dictionary of one row's values [D].

    No value changes: raises BadValue for one that would, WrongShape where x is no array of numbers. (``space.check``
    then says whether they are data of this space.)
    """
    if _has_names(x):
        read: Callable[[Space, Any], Tensor] = import_module(FRAMES).of_names
        return read(space, x)
    if isinstance(space, Label | Text) and (strings := _strings(x)):
        return space.read(strings)[0] if isinstance(x, str) else space.read(strings)
    given: Tensor = x if isinstance(x, Tensor) else _from_array(space, x)
    if given.dtype == space.dtype:
        return given
    if given.is_complex():
        raise WrongShape(f"Data have dtype {given.dtype}; {space} takes {space.dtype}.", "Give real numbers.")
    out = given.to(space.dtype)
    changed = out.to(given.dtype) != given
    if out.is_floating_point():
        changed &= ~given.isnan()
    if changed.any():
        value = given[changed][0].item()
        raise BadValue(
            f"The value {value!r} of {given.dtype} would change as {space.dtype}, as which {space} are held.",
            _remedy(space),
        )
    return out


def _remedy(space: Space) -> str:
    if isinstance(space, Image):
        top = space.levels - 1
        return f"Give whole levels from 0 to {top}: (x * {top}).round() where x is from 0 to 1."
    if space.dtype.is_floating_point:
        return "Give whole numbers up to 2^53, or declare the column a category."
    return "Give whole numbers."


def _has_names(x: Any) -> bool:
    """Are its columns known by name, not by place?"""
    return isinstance(x, Mapping) or hasattr(x, "columns") or hasattr(x, "column_names")


def _strings(x: Any) -> list[str]:
    """A string, or a list, array or column of strings as a list; an empty one where x is anything else."""
    if isinstance(x, str):
        return [x]
    if isinstance(x, Tensor) or not isinstance(x, Iterable) or getattr(x, "ndim", 1) != 1:
        return []
    values = [*x]
    return [str(v) for v in values] if all(isinstance(v, str) for v in values) else []


def _from_array(space: Space, x: Any) -> Tensor:
    """A NumPy array, or what becomes one, with its own dtype."""
    if isinstance(x, np.ma.MaskedArray):
        x = np.ma.filled(x.astype(np.float64), math.nan)
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of several lengths, tensors with a gradient
        raise WrongShape(f"This {type(x).__name__} is no array: {error}.", "Give a tensor.") from error
    if array.dtype.kind not in "biufc" or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        raise WrongShape(f"Data have dtype {array.dtype}; {space} takes {space.dtype}.", READ)
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() >= 2**63:
        raise BadValue(f"The value {array.max()} is beyond int64.", "Declare the column a category.")
    kept = {"u": np.int64, "f": np.float64}.get(array.dtype.kind) if array.dtype != np.uint8 else None
    # torch knows neither all widths nor foreign byte orders and negative strides
    return torch.from_numpy(np.array(array, dtype=kept or array.dtype.newbyteorder("=")))


def unknown_character(space: Text, character: str, place: int) -> BadValue:
    return BadValue(
        f"The character {character!r} at {place} is none of the {len(space.alphabet)} of these texts.",
        "Leave it out, or load and fit the texts as bytes: --symbols bytes.",
    )


def free_length(space: Space, context: Space | None) -> str | None:
    """Why a family of data of one size refuses these spaces, or None."""
    for s in (space, context):
        if isinstance(s, Ragged):
            return "it takes data of one size, and these are of any length. Fit a gpt, rnn or wavenet."
    return None


def unit(space: Space) -> str:
    """What a rate of this space is told per: a dimension, a label, or the unit of data of free length."""
    return space.unit if isinstance(space, Ragged) else "label" if isinstance(space, Label) else "dim"


def units(space: Space, x: Tensor) -> Tensor:
    """How many units each datum of x [N, *E] has, float64 [N]."""
    if isinstance(space, Ragged):
        return space.units(x).double()
    return torch.full((len(x),), float(space.dims), dtype=torch.float64)


def join(space: Space, parts: list[Tensor]) -> Tensor:
    """Batches [n, *E] one after the other, the shorter ones filled up to the longest."""
    if isinstance(space, Ragged):
        longest, k = max(p.shape[1] for p in parts), len(space.event_shape)
        short = ((0, 0) * (k - 1) + (0, longest - p.shape[1]) for p in parts)
        parts = [torch.nn.functional.pad(p, pad, value=space.fill) for p, pad in zip(parts, short, strict=True)]
    return torch.cat(parts)


def _check_shape(space: Space, x: Tensor) -> None:
    if x.dtype != space.dtype:
        raise WrongShape(f"Data have dtype {x.dtype}; {space} takes {space.dtype}.", f"Convert: x.to({space.dtype}).")
    k = len(space.event_shape)
    got = tuple(x.shape[x.ndim - k :]) if x.ndim >= k else tuple(x.shape)
    if x.ndim < k or any(want >= 0 and size != want for size, want in zip(got, space.event_shape, strict=True)):
        wanted = ", ".join("L" if size < 0 else str(size) for size in space.event_shape)
        raise WrongShape(
            f"Data have shape {tuple(x.shape)}; {space} takes [..., {wanted}].",
            "Give one datum of this space per entry of the batch shape.",
        )


def _check_symbols(space: Text | Audio, x: Tensor, size: int) -> None:
    if x.numel() and (int(x.min()) < -1 or int(x.max()) >= size):
        raise BadValue(
            f"A value is {int(x.min()) if int(x.min()) < -1 else int(x.max())}; {space} take 0 to {size - 1}, and -1 after the end.",
            "Encode the data as this space does.",
        )
