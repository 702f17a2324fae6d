"""What one datum x is: its shape, its values, its base measure, and which values are allowed.

A space says nothing about any data set beyond what is needed to read, check and write values. Each is one file of
``pofx.spaces``; a third party's is known by ``register`` or an entry point in the group ``pofx.spaces``.

    space     one event                          dtype     measure
    Table     [D], one entry per column          float64   per column, see below
    Image     [C, H, W], 0 .. levels-1           uint8     counting
    Label     [], class index                    int64     counting
    Reals     any shape                          float64   Lebesgue
    Codes     any shape, 0 .. size-1             int64     counting
    Pair      [Da + Db], both flattened          float64   that of both
    Text      [L], numbers of symbols            int64     counting
    Audio     [L], levels 0 .. levels-1          int64     counting
    Sequence  [L, D], each step a table's row    float64   that of a step, again and again

A table row is one float64 vector: a number for a real or integer column, the index of the value for a
category, NaN for a missing entry (allowed in nullable columns only).

The length L of a text, a sound or a sequence is free: ``event_shape`` has -1 there. A batch is as long as
its longest datum, and ``fill`` (-1, or infinity among reals) stands after the end of shorter ones. The end
belongs to the datum where ``has_eos`` is true: the probability of a document includes that it stops where it
does. Else the data are excerpts of something longer, and their lengths are given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from pofx.core.errors import BadValue, UsageError, WrongShape
from pofx.core.measure import Measure


class Space(ABC):
    """What one x is: a frozen dataclass that derives from this, with all that a space knows of itself.

    Other rooms ask what a space knows, never which it is: ``if space.pixels``. What they do for each space is an open
    function (``functools.singledispatch``), to which the file of a new space adds its case where the default is not
    right:

        data.parts.described                            lines of ``describe``      one line
        data.rows.new_rows                              rows of it that are new    columns by name, or an array
        data.write.check_place, write_rows              files                      CSV of columns, or .npy
        evaluate.two_sample.features, outlier.corrupt   sample quality, outliers   columns, each for itself
        evaluate.pairs.judged                           draws beside the truth     columns, each for itself
        evaluate.baselines.compression                  codes to beat              gzip of CSV, or of the bytes
        report.exhibits.exhibit                         samples beside data        columns compared, or data spelt
        report.pairs.pieces                             one datum to look at       columns spelt, or the datum
        nn.sites.heads_for, nn.encoders.encoder         what nets give and take    a head for each column
        codecs.cells.cells                              what is counted            columns

    Attributes:
        name: by which a run folder says which space it is.
        unit: what a rate is told per.
        whole: what to do about values that ``dtype`` cannot hold.
        values: the classes by name, where x is one of a few.
        columns: what each number of a flattened x is (``spaces.table.Column``), where the space says so.
        symbols: every number of x is one of 0 .. symbols - 1.
        pixels: height, width and channels of an image.
        alphabet: the characters of a string ("" for bytes); None where x is none.
        fill: what stands after the end of a datum of free length; None where all are of one size.
        length: of the longest known datum, in steps; 1 where all are of one size.
        has_eos: the end belongs to the datum.
        parts: the two spaces that x holds a datum of each of; None where x is one datum.
    """

    name: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    unit: ClassVar[str] = "dim"
    whole: ClassVar[str] = "Give whole numbers."
    values: tuple[str, ...] = ()
    columns: tuple[Any, ...] = ()
    symbols: int | None = None
    pixels: tuple[int, int, int] | None = None
    alphabet: str | None = None
    fill: ClassVar[float | None] = None
    length: int = 1
    has_eos: bool = False
    parts: tuple[Space, Space] | None = None

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """*E, with -1 for a free length."""

    @property
    @abstractmethod
    def measure(self) -> Measure: ...

    @property
    def dims(self) -> int:
        """How many numbers one datum is."""
        return math.prod(self.event_shape)

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Raises WrongShape or BadValue unless every datum of x [..., *E] is one of this space."""

    def check_draws(self, x: Tensor) -> str | None:
        """What no draw of x [n, *E] may be and one is, in words; None where all may be."""
        return None

    @property
    def classes(self) -> int | None:
        """How many values x may have, where each has a name."""
        return len(self.values) or None

    def lengths(self, x: Tensor) -> Tensor:
        """How many steps each datum of x [..., *E] has, int64 [...]; one where all are of one size."""
        return torch.ones(x.shape[: x.ndim - len(self.event_shape)], dtype=torch.int64, device=x.device)

    def units(self, x: Tensor) -> Tensor:
        """How many ``unit``s each datum of x [N, *E] has, float64 [N]."""
        return torch.full((len(x),), float(self.dims), dtype=torch.float64)

    def spell(self, x: Tensor) -> str:
        """One datum [*E] as a person reads it."""
        return ", ".join(f"{v:.6g}" for v in x.flatten().tolist())

    def parse(self, spellings: list[str]) -> Tensor | None:
        """Data [N, *E] by their spellings; None where the space knows none."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which ``from_json`` makes the space again."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {"space": self.name} | {k: v.to_json() if isinstance(v, Space) else v for k, v in found.items()}

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Self:
        return cls(**found)


class Ragged(Space):
    """What spaces of data of free length share; the first axis of an event is the free one."""

    fill: ClassVar[float]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (-1,)

    @property
    def dims(self) -> int:
        return self.length

    @property
    def measure(self) -> Measure:
        """A string is one point of a countable set, however it is cut into symbols."""
        return Measure.counting(1)

    def lengths(self, x: Tensor) -> Tensor:
        """How long each datum of x [..., *E] is, int64 [...]."""
        inside = x != self.fill
        return (inside if len(self.event_shape) == 1 else inside[..., 0]).sum(-1)

    def units(self, x: Tensor) -> Tensor:
        return self.lengths(x).double()

    def check(self, x: Tensor) -> None:
        """``fill`` stands after the end only, and in all of a step."""
        check_shape(self, x)
        if self.symbols and x.numel() and (int(x.min()) < -1 or int(x.max()) >= self.symbols):
            worst, top = x.min() if x.min() < -1 else x.max(), self.symbols - 1
            raise BadValue(
                f"A value is {worst}; {self} take 0 to {top}, and -1 after the end.",
                "Encode the data as this space does.",
            )
        inside = x != self.fill
        if len(self.event_shape) > 1:
            if (inside.any(-1) & ~inside.all(-1)).any():
                raise BadValue(f"A step is {self.fill:g} in part.", "Fill up whole steps, after the end.")
            inside = inside.all(-1)
        if (inside[..., 1:] & ~inside[..., :-1]).any():
            raise BadValue(f"A datum goes on after its end ({self.fill:g}).", "Fill up after the end only.")


NAMES = ("table", "image", "label", "reals", "codes", "pair", "text", "audio", "sequence")
BUILT_IN = {name: f"pofx.spaces.{name}:{name.capitalize()}" for name in NAMES}
_REGISTERED: dict[str, type[Space]] = {}


def register(cls: type[Space]) -> None:
    """Make a space known by its name in this process, as an entry point would for every process.

    Raises UsageError where another space has that name.
    """
    if cls.name in BUILT_IN or _REGISTERED.setdefault(cls.name, cls) is not cls:
        raise UsageError(f"A space {cls.name!r} exists already.", "Give yours another name.")


def from_json(data: dict[str, Any]) -> Space:
    """The inverse of ``to_json``. Raises UsageError on an unknown space."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict) and "space" in value:
            return from_json(value)
        return tuple(value) if isinstance(value, list) else value

    name, found = data["space"], {k: plain(v) for k, v in data.items() if k != "space"}
    if name in _REGISTERED:
        return _REGISTERED[name].of_json(found)
    known = {point.name: point.value for point in entry_points(group="pofx.spaces")} | BUILT_IN
    if name not in known:
        raise UsageError(f"Unknown space {name!r}; known: {', '.join(known)}.", "Use a newer pofx.")
    cls: type[Space] = EntryPoint(name, known[name], "pofx.spaces").load()
    return cls.of_json(found)


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
    if isinstance(x, Mapping) or hasattr(x, "columns") or hasattr(x, "column_names"):  # known by name, not by place
        read: Callable[[Space, Any], Tensor] = import_module(FRAMES).of_names
        return read(space, x)
    if (strings := _strings(x)) and (read_from := space.parse(strings)) is not None:
        return read_from[0] if isinstance(x, str) else read_from
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
            space.whole,
        )
    return out


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


def free_length(space: Space, context: Space | None = None) -> str | None:
    """Why a family of data (and contexts) of one size refuses these spaces, or None."""
    for s, what in ((space, "data"), (context, "contexts")):
        if s is not None and s.fill is not None:
            return f"it takes {what} of one size, and these are of any length."
    return None


def join(space: Space, parts: list[Tensor]) -> Tensor:
    """Batches [n, *E] one after the other, the shorter ones filled up to the longest."""
    if space.fill is not None:
        longest, k = max(p.shape[1] for p in parts), len(space.event_shape)
        short = ((0, 0) * (k - 1) + (0, longest - p.shape[1]) for p in parts)
        parts = [torch.nn.functional.pad(p, pad, value=space.fill) for p, pad in zip(parts, short, strict=True)]
    return torch.cat(parts)


def filled_up(space: Space, x: Tensor) -> Tensor:
    """Data x [*S, *E] of free length, all as long as the space's ``length``; those of one size as they are.

    Raises WrongShape for a datum that is longer.
    """
    if space.fill is None:
        return x
    axis = x.ndim - len(space.event_shape)
    longest = int(space.lengths(x).max()) if x.numel() else 0
    if longest > space.length:
        raise WrongShape(
            f"A datum is {longest} long; here are {space}.", "Cut it, or make the space with a larger length."
        )
    x = x.narrow(axis, 0, min(x.shape[axis], space.length))
    return torch.nn.functional.pad(
        x, (0, 0) * (x.ndim - axis - 1) + (0, space.length - x.shape[axis]), value=space.fill
    )


def column_of(x: Any, j: int) -> Tensor:
    """Number j of each datum of x [N, *E], flattened; what is no tensor (rows beyond memory) is [N, D] already."""
    column: Tensor = x.reshape(len(x), -1)[:, j] if isinstance(x, Tensor) else x[:, j]
    return column


def check_shape(space: Space, x: Tensor) -> None:
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
