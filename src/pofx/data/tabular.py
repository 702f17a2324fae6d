"""Tables: the type of a column from its values, and values to numbers and back.

    text, booleans                      Category (values sorted)
    text that spells numbers or dates   as those; codes such as 00501 stay text (see ``formats``)
    one or two distinct values          Category
    whole numbers (880.0 too)           Integer
    dates, timestamps                   Integer with ``date`` "d" or "s"
    other numbers                       Real; on a grid where values repeat (see ``resolution``)

Missing are: null, NaN, what a masked array masks, and empty text; a reader of text files makes null of the spellings
in ``MISSING``, and in other formats "NA" is a text like any other. Each type can be overridden by a spec:
``category``, ``integer``, ``real``, ``real:STEP``, ``nullable``, ``drop``, or a sum such as ``real+nullable``.
"""

from __future__ import annotations

import decimal
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pofx.core.errors import BadValue, UsageError
from pofx.core.spelling import listed
from pofx.data import formats
from pofx.data.formats import EXACT
from pofx.spaces import Category, Column, Integer, Real

Array: TypeAlias = "pa.ChunkedArray | np.ndarray[Any, Any]"
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

# what text files write for a missing value, unless they are told to be otherwise
MISSING = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "NULL", "Null", "null", "<NA>", "#N/A")
MOST_CATEGORIES = 1000  # of a text column, unless its type is declared
FEW_ROWS = 20  # up to here two distinct numbers do not make a category
IF_MISSING = "If that means missing, leave it empty (of a CSV file: --missing and its spelling)"
FAR = 10  # times the range of all others is how far a value stands off that may mean missing
LARGEST = 1e150  # squares and products of columns stay finite up to here, and above zero from its inverse on
SECONDS_PER_DAY = 86400
FIRST_SECOND, LAST_SECOND = -62135596800, 253402300799  # of the years 1 and 9999, since 1970
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second


@dataclass(frozen=True)
class Spec:
    """What the user said about a column; None where nothing was said."""

    kind: str | None = None  # category, integer, real, drop
    step: float | None = None
    nullable: bool = False

    @staticmethod
    def parse(name: str, text: str) -> Spec:
        """Raises UsageError on an unknown type."""
        spec = Spec()
        for word in text.replace(" ", "").split("+"):
            head, _, step = word.partition(":")
            if word == "nullable":
                spec = replace(spec, nullable=True)
            elif head == "real" and re.fullmatch(formats.UNSIGNED, step) and float(step) > 0:
                spec = replace(spec, kind="real", step=float(step))
            elif word in ("category", "integer", "real", "drop"):
                spec = replace(spec, kind=word)
            else:
                raise UsageError(
                    f"Column {name!r} cannot have the type {text!r}.",
                    "Types: category, integer, real, real:STEP, nullable, drop, a sum such as real+nullable, or text "
                    "(of one column that is given, or the target).",
                )
        return spec


@dataclass(frozen=True)
class Inferred:
    """A column's type and its N numbers (NaN is missing), or why it was left out (then both are None)."""

    column: Column | None
    values: Floats | None
    note: str = ""
    rounded: int = 0  # how many values were moved onto the column's grid
    code: str = ""  # a spelling for which text that could be numbers was taken for codes


def infer(name: str, array: Array, spec: Spec | None = None) -> Inferred:
    """The type of one column and its numbers.

    Raises BadValue, naming column and row (counted from 0), for infinities, for a column without any
    value, and for values that are not of the declared type.
    """
    spec = spec or Spec()
    if spec.kind == "drop":
        return Inferred(None, None)
    found = _plain(name, array)
    said = [found.note]
    read = formats.read(found.spellings) if isinstance(found, Spellings) and spec.kind != "category" else None
    if isinstance(found, Numbers):
        inferred = _numeric(name, found, spec)
    elif not isinstance(read, formats.Spelled):
        if spec.kind in ("integer", "real"):
            row, text = found.first_text()
            raise BadValue(
                f"Column {name!r} is declared {spec.kind}, but row {row} holds {text!r}.",
                f"Correct the row, or declare it a category: --types {name}=category.",
            )
        inferred = _category(name, found, spec)
    elif read.code and spec.kind not in ("integer", "real"):
        inferred = replace(_category(name, found, spec), code=read.code)
    else:
        inferred = _numeric(name, Numbers(found.of(read.values), date=read.date), spec)
        said += [read.said, read.note, _digits(found.rounded())]
    note = "; ".join(filter(None, said))
    if note and inferred.column is not None:
        inferred = replace(inferred, note=f"{inferred.note} Column {name!r}: {note}.".strip())
    return inferred


def distinct_texts(name: str, array: Array) -> int:
    """How many different texts a column holds; 0 where its values are numbers or dates, or spell them."""
    found = _plain(name, array)
    if not isinstance(found, Spellings) or isinstance(formats.read(found.spellings), formats.Spelled):
        return 0
    return len(found.spellings)


# ------------------------------------------------------------------------------ plain numbers and text


@dataclass(frozen=True)
class Spellings:
    """Codes [N] into spellings; -1 is missing."""

    codes: np.ndarray[Any, Any]
    spellings: list[str]
    note: str = ""

    def of(self, values: Floats) -> Floats:
        """What each row's spelling stands for [N], NaN where missing."""
        return np.append(values, math.nan)[self.codes]

    def sorted(self) -> Spellings:
        """The same with its spellings in order."""
        order = sorted(range(len(self.spellings)), key=lambda k: _natural(self.spellings[k]))
        return Spellings(np.append(np.argsort(order), -1)[self.codes], [self.spellings[k] for k in order])

    def rounded(self) -> int:
        """How many rows hold a whole number that float64 does not have."""
        odd = [k for k, s in enumerate(self.spellings) if re.fullmatch(r"-?\d{16,300}", s) and int(s) != float(s)]
        return int(np.isin(self.codes, odd).sum())

    def first_text(self) -> tuple[int, str]:
        """The first row whose spelling is no number or date in any format, else whose spelling is not plain."""
        odd = formats.strays(self.spellings)
        odd = odd or [k for k, s in enumerate(self.spellings) if _number(s) is None]
        row = int(np.isin(self.codes, odd).argmax())
        return row, self.spellings[self.codes[row]]


@dataclass(frozen=True)
class Numbers:
    """Values [N], NaN where missing; ``rounding`` is the relative error of their stored form."""

    values: Floats
    rounding: float = 2.0**-52
    date: str | None = None
    note: str = ""


def _number(text: str) -> float | None:
    """The number that is spelled the plain way; a code such as 007 is none."""
    return float(text) if re.match(formats.PLAIN, text) else None


def _plain(name: str, array: Array, first: int = 0) -> Spellings | Numbers:
    """Any Arrow or NumPy column as numbers or as text. Raises BadValue for lists, objects and the like."""
    if isinstance(array, np.ndarray):
        kind, mask = array.dtype.kind, np.ma.getmaskarray(array) if np.ma.isMaskedArray(array) else None
        if kind not in "fbiuUSMm" or array.ndim != 1:
            raise _no_plain(name, array.dtype if array.ndim == 1 else f"{array.dtype} {list(array.shape[1:])}")
        if kind == "f":
            return _stored(array.filled(math.nan) if isinstance(array, np.ma.MaskedArray) else array)
        array = _arrow(name, np.asarray(array), mask)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    of, kind = pa.types, array.type
    if _is_text(kind):
        return _text(name, array, first)
    if of.is_boolean(kind):
        return _text(name, array.cast(pa.string()), first)
    if of.is_integer(kind):
        low, high = pc.min_max(array).as_py().values()
        if low is not None and max(abs(low), abs(high)) > EXACT:
            return _text(name, array.cast(pa.string()), first)  # identifiers: float64 would merge neighbours
        return Numbers(_floats(array.cast(pa.float64())))
    if of.is_floating(kind):
        return Numbers(_floats(array.cast(pa.float64())), _rounding(kind.bit_width // 8))
    if of.is_decimal(kind):
        return _decimals(name, array)
    if of.is_date(kind) or of.is_timestamp(kind):
        return _dates(name, array, first)
    if of.is_time(kind):
        return Numbers(_in_seconds(*_ticks(array)), note="times of day became seconds since midnight")
    if of.is_duration(kind):
        return Numbers(_in_seconds(*_ticks(array)), note="durations became seconds")
    if of.is_null(kind):
        return Numbers(np.full(len(array), math.nan))
    raise _no_plain(name, kind)


def _no_plain(name: str, kind: object) -> BadValue:
    return BadValue(
        f"Column {name!r} holds {kind} values.", f"Make plain columns of it, or leave it out: --drop {listed([name])}."
    )


def _stored(array: np.ndarray[Any, Any]) -> Numbers:
    """Floats of any width; those wider than float64 are rounded to it."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is named as such
        values = array.astype(np.float64)
    rounded = int((values != array).sum() - np.isnan(values).sum()) if array.dtype.itemsize > 8 else 0
    return Numbers(values, _rounding(array.dtype.itemsize), note=_digits(rounded))


def _digits(rounded: int) -> str:
    return f"{rounded} values have more digits than float64 keeps, and were rounded to its 53 bits" if rounded else ""


def _arrow(name: str, array: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None) -> pa.ChunkedArray:
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind in "Mm" and (unit := np.datetime_data(array.dtype)[0]) not in ("D", *TICKS):
        # Arrow has no such unit; a column that has to do with fractions of a nanosecond is cut to whole ones
        array = array.astype(f"{array.dtype.kind}8[{'ns' if unit in ('ps', 'fs', 'as') else 's'}]")
    if array.dtype.kind == "m" and np.datetime_data(array.dtype)[0] == "D":
        array = array.astype("m8[s]")
    try:
        return pa.chunked_array([pa.array(array, mask=mask)])
    except UnicodeError:
        row = next(i for i, v in enumerate(array) if not _is_unicode(v))
        raise BadValue(f"Column {name!r} holds text that is not Unicode in row {row}.", "Correct the row.") from None


def _is_unicode(value: str) -> bool:
    try:
        str(value).encode()
    except UnicodeError:
        return False
    return True


def _decimals(name: str, array: pa.ChunkedArray) -> Numbers | Spellings:
    """Decimals as the nearest float64; whole ones that it would merge with their neighbours are identifiers."""
    if abs(array.type.scale) > {32: 9, 64: 18, 128: 38, 256: 76}[array.type.bit_width]:
        raise _no_plain(name, array.type)
    digits = array.cast(pa.string())
    values = _floats(digits.cast(pa.float64()))  # Arrow's own cast is not to the nearest
    if (np.abs(values) > EXACT).any() and not pc.any(pc.match_substring_regex(digits, r"\.\d*[1-9]")).as_py():
        return _text(name, pc.replace_substring_regex(digits, r"\.0*$", ""))
    long = np.flatnonzero(np.abs(values) * 10.0**array.type.scale >= 1e15).tolist()
    with decimal.localcontext(prec=200):
        pairs = [(decimal.Decimal(float(values[i])), array[i].as_py()) for i in long]
        rounded = sum(held.quantize(value) != value for held, value in pairs)
    return Numbers(values, note=_digits(rounded))


def _rounding(width: int) -> float:
    return {2: 2.0**-11, 4: 2.0**-24}.get(width, 2.0**-52)


def _is_text(kind: pa.DataType) -> bool:
    # bytes are what older writers of Parquet make of any text; ``_text`` names the row of those that are not UTF-8
    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def _floats(array: pa.ChunkedArray) -> Floats:
    return cast(Floats, array.to_numpy())


def _text(name: str, array: pa.ChunkedArray, first: int = 0) -> Spellings:
    array = array.dictionary_encode().unify_dictionaries()
    raw: list[Any] = array.chunk(0).dictionary.to_pylist() if array.num_chunks else []
    chunks = [np.asarray(pc.fill_null(c.indices, len(raw)), dtype=np.int64) for c in array.chunks]
    codes = np.concatenate(chunks) if chunks else np.empty(0, np.int64)
    for k, value in enumerate(raw):
        if isinstance(value, bytes):
            try:
                raw[k] = value.decode()
            except UnicodeDecodeError:
                row = first + int((codes == k).argmax())
                raise BadValue(
                    f"Column {name!r} holds bytes that are not UTF-8 in row {row}: {value!r}.",
                    "Convert the file, for example: iconv -f latin1 -t utf-8 OLD > NEW.",
                ) from None
    spellings = [v for v in raw if v]
    index = {s: k for k, s in enumerate(spellings)}
    recode = np.array([*(index.get(v, -1) for v in raw), -1])
    empty = int((codes == raw.index("")).sum()) if "" in raw else 0
    return Spellings(recode[codes], spellings, f"{empty} empty texts were taken for missing" if empty else "")


def _natural(spelling: str) -> tuple[int, float, str]:
    """Numbers by size, then text by alphabet."""
    number = _number(spelling)
    return (1, 0.0, spelling) if number is None else (0, number, spelling)


def _ticks(array: pa.ChunkedArray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """Moments or durations [N] in whole units since 1970 (or midnight), where missing [N], and units per second."""
    kind, missing = array.type, array.is_null().to_numpy()
    unit = "s" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    whole = array.cast(pa.int32()) if kind.bit_width == 32 else array
    counts = pc.fill_null(whole.cast(pa.int64()), 0).to_numpy()
    return counts * SECONDS_PER_DAY if pa.types.is_date32(kind) else counts, missing, TICKS[unit]


def _in_seconds(counts: np.ndarray[Any, Any], missing: np.ndarray[Any, Any], per_second: int) -> Floats:
    seconds, rest = np.divmod(counts, per_second)
    return np.where(missing, math.nan, seconds + rest / per_second)


def _dates(name: str, array: pa.ChunkedArray, first: int = 0) -> Numbers:
    """Whole days since 1970 if no value has a time of day, else seconds (UTC), cut to whole ones."""
    counts, missing, per_second = _ticks(array)
    seconds, rest = np.divmod(counts, per_second)
    beyond = ~missing & ((seconds < FIRST_SECOND) | (seconds > LAST_SECOND))
    if beyond.any():
        row = int(beyond.argmax())
        raise BadValue(
            f"Column {name!r} holds the date {np.datetime64(int(seconds[row]), 's')} in row {first + row}; dates are "
            "of the years 1 to 9999.",
            f"Correct the row, or leave the column out: --drop {listed([name])}.",
        )
    notes = ["fractions of a second were cut off"] if rest.any() else []
    zone = getattr(array.type, "tz", None)
    if zone not in (None, "UTC", "+00:00"):
        notes.append(f"times of {zone} became UTC")
    days, clock = np.divmod(seconds, SECONDS_PER_DAY)
    date, values = ("s", seconds) if clock.any() else ("d", days)
    return Numbers(np.where(missing, math.nan, values.astype(np.float64)), date=date, note=", ".join(notes))


# ---------------------------------------------------------------------------------------- types


def _category(name: str, text: Spellings, spec: Spec) -> Inferred:
    text = text.sorted()
    n, distinct = len(text.codes), len(text.spellings)
    missing = bool((text.codes < 0).any())
    if not distinct:
        raise _all_missing(name)
    if spec.kind != "category" and (distinct > MOST_CATEGORIES or (n > 100 and distinct > n / 2)):
        note = f"Column {name!r} was left out: text with {distinct} distinct values in {n} rows"
        strays = _strays(text)
        return Inferred(None, None, note + (f" ({strays}" if strays else f"; keep it with --types {name}=category."))
    note = f"Column {name!r} is text ({strays}" if spec.kind is None and (strays := _strays(text)) else ""
    column = Category(name, tuple(text.spellings), nullable=missing or spec.nullable)
    values = np.where(text.codes < 0, math.nan, text.codes.astype(np.float64))
    return Inferred(column, values, note)


def _strays(text: Spellings) -> str:
    """What keeps a text column from being numbers or dates, where that is little, and what to do about it."""
    odd = formats.strays(text.spellings)
    if not 0 < len(odd) <= max(3, len(text.spellings) // 100) or len(text.spellings) < 3 * len(odd):
        return ""
    row, word = text.first_text()
    remedy = f"leave those fields empty, or say so of a CSV file: --missing {word!r}."
    return f"numbers or dates, but {word!r} in row {row}); if that means missing, {remedy}"


def _all_missing(name: str) -> BadValue:
    return BadValue(f"Column {name!r} has no value in any row.", f"Leave it out: --drop {listed([name])}.")


def _numeric(name: str, found: Numbers, spec: Spec) -> Inferred:
    v = found.values
    if np.isinf(v).any():
        if not spec.nullable:
            row = int(np.isinf(v).argmax())
            raise BadValue(
                f"Column {name!r} is infinite ({v[row]}) in row {row}.",
                f"Correct or remove the row, or take infinities for missing: --types {name}=nullable.",
            )
        v = np.where(np.isinf(v), math.nan, v)
    missing = np.isnan(v)
    present = v[~missing]
    if not len(present):
        raise _all_missing(name)
    distinct, counts = np.unique(present, return_counts=True)
    if spec.kind != "category":
        _check_size(name, v, distinct)
    nullable = bool(missing.any()) or spec.nullable
    whole = bool((distinct == np.rint(distinct)).all() and np.abs(distinct).max() <= EXACT)
    kind = spec.kind
    if kind is None and found.date is None:
        if len(present) > FEW_ROWS and len(distinct) <= 2:
            kind = "category"
        elif whole and not nullable and len(v) > FEW_ROWS and (np.diff(v) == 1).all():
            note = f"Column {name!r} was left out: it only counts the rows; keep it with --types {name}=integer."
            return Inferred(None, None, note)
    if kind is None:
        kind = "integer" if whole else "real"
    if kind == "category":
        codes = np.where(missing, math.nan, np.searchsorted(distinct, v).astype(np.float64))
        return Inferred(Category(name, tuple(map(spell, distinct)), nullable), codes)
    if kind == "integer":
        if not whole:
            row = int((~missing & ((v != np.rint(v)) | (np.abs(v) > EXACT))).argmax())
            limit = "" if abs(v[row]) <= EXACT else " (whole numbers are exact up to 2^53)"
            raise BadValue(
                f"Column {name!r} is declared integer, but row {row} holds {v[row]:.10g}{limit}.",
                f"Declare it real: --types {name}=real.",
            )
        out = Inferred(Integer(name, int(distinct[0]), int(distinct[-1]), nullable, found.date), v)
    else:
        out = _real(name, replace(found, values=v), spec, distinct, counts, nullable)
    return replace(out, note=" ".join(filter(None, [out.note, _far(out.column, distinct, counts)])))


def _far(column: Column | None, distinct: Floats, counts: np.ndarray[Any, Any]) -> str:
    """Up to two values at either end that stand far off all others, as one does that means missing, in words."""
    ends = sorted(itertools.product(range(3), repeat=2), key=sum)[1:]
    for low, high in (e for e in ends if len(distinct) - sum(e) >= 2):
        rest = distinct[low : len(distinct) - high]
        far = FAR * (rest[-1] - rest[0])
        below, above = distinct[:low], distinct[len(distinct) - high :]
        if (low and rest[0] - below[-1] <= far) or (high and above[0] - rest[-1] <= far):
            continue
        odd = [*zip(below, counts[:low], strict=True), *zip(above, counts[len(distinct) - high :], strict=True)]
        if column is not None and all(n > 1 or re.fullmatch(r"-?9+", spell(v)) or abs(v) > 1e20 for v, n in odd):
            listed = " and ".join(f"{show(column, v)} in {n} row{'s' if n > 1 else ''}" for v, n in odd)
            return (
                f"Column {column.name!r} holds {listed}, far from all others ({show(column, rest[0])} to "
                f"{show(column, rest[-1])}). {IF_MISSING}."
            )
    return ""


def _check_size(name: str, v: Floats, distinct: Floats) -> None:
    """Raise BadValue where numbers would overflow, or all vanish, when they are squared; ``distinct`` is sorted."""
    top = max(abs(float(distinct[0])), abs(float(distinct[-1])))
    if top > LARGEST:
        row = int((np.abs(v) > LARGEST).argmax())
        raise BadValue(
            f"Column {name!r} holds {v[row]:.6g} in row {row}; numbers go up to {LARGEST:g}.",
            f"{IF_MISSING}; else divide the column, or leave it out: --drop {listed([name])}.",
        )
    if 0 < top < 1 / LARGEST:
        raise BadValue(
            f"Column {name!r} holds nothing larger than {top:.6g}; numbers begin at {1 / LARGEST:g}.",
            f"Multiply the column, or leave it out: --drop {listed([name])}.",
        )


def _real(
    name: str, found: Numbers, spec: Spec, distinct: Floats, counts: np.ndarray[Any, Any], nullable: bool
) -> Inferred:
    v, n = found.values, int(counts.sum())
    low, high = float(distinct[0]), float(distinct[-1])
    repeated = int(counts[counts > 1].sum())
    if spec.step is not None:
        snapped = snap(v, spec.step, 0.0)
        moved = float(np.nanmax(np.abs(snapped - v)))
        note = f"Column {name!r} was rounded to its declared step {spec.step:g} (by at most {moved:.3g})."
        return Inferred(Real(name, nullable, spec.step, 0.0, low, high), snapped, note)
    # an atom is a value that recurs: a few chance pairs in a small table are none
    atoms = repeated > max(2, 0.05 * n) or counts.max() > max(2, 0.01 * n)
    if not atoms or spec.kind == "real":
        note = f"{repeated / n:.0%} of the values of column {name!r} repeat, yet it is declared continuous: "
        note += "a density can grow there without limit, so likelihoods may mislead."
        return Inferred(Real(name, nullable, low=low, high=high), v, note if atoms else "")
    step, origin = resolution(distinct, counts, found.rounding)
    snapped = snap(v, step, origin)
    if 2 * len(np.unique(snapped[~np.isnan(v)])) < len(distinct):
        raise BadValue(
            f"Column {name!r} holds {low:.6g} to {high:.6g}, so far apart that at its resolution ({step:.3g}) most "
            "values would be one.",
            f"{IF_MISSING}; else leave the column out: --drop {listed([name])}.",
        )
    moved = int((np.abs(snapped - v) > 0.1 * step).sum())  # less is the error of a stored form such as float32
    return Inferred(Real(name, nullable, step, origin, low, high), snapped, rounded=moved)


def resolution(distinct: Floats, counts: np.ndarray[Any, Any], rounding: float) -> tuple[float, float]:
    """(step, origin) of the coarsest grid that holds all ``distinct`` (sorted) values, each ``counts`` times.

    A power of ten where the values are decimals (also decimals that went through float32), else an
    equal spacing from the smallest value (integers that were shifted and scaled), else the power of two that
    values of 16 bits are multiples of (exactly, whatever their magnitude), else a power of ten
    that is fine enough to keep distinct values apart and hardly to move them. Where a few strays (one
    value in a thousand) ask for a step a thousand times finer than all others do (a temperature of
    14.66666667 among whole degrees), the strays are to be rounded instead.
    """
    top, n = float(np.abs(distinct).max()), int(counts.sum())
    if np.array_equal(distinct.astype(np.float32), distinct):
        rounding = max(rounding, 2.0**-24)
    coarse: float | None = None  # the largest power of ten that holds all but a few strays
    for relative in sorted({rounding, 2.0**-24}):
        for k in range(13):
            scaled = distinct * 10.0**k
            if 2 * relative * top * 10.0**k > 0.05:
                break
            stray = np.abs(scaled - np.rint(scaled)) > 2 * relative * np.abs(scaled)
            if not stray.any():
                return (coarse if coarse is not None and 10.0**-k < 2e-3 * coarse else 10.0**-k), 0.0
            if coarse is None and 1000 * counts[stray].sum() <= n and 10 * stray.sum() <= len(distinct):
                coarse = 10.0**-k
    if coarse is not None:
        return coarse, 0.0
    noise = 16 * min(rounding, 2.0**-24) * top
    if (step := spacing(distinct, noise)) is not None:
        return step, float(distinct[0])
    if (step := binary(distinct)) is not None:
        return step, 0.0
    gaps = np.diff(distinct)
    fine = min(float(gaps[gaps > noise].min(initial=math.inf)) / 10, float(distinct[-1] - distinct[0]) / 1e4)
    return 10.0 ** math.floor(math.log10(max(fine, top * 2.0**-50))), 0.0


def binary(distinct: Floats, bits: int = 11) -> float | None:
    """The greatest power of two that all values are multiples of, if none has more significant bits than float16."""
    mantissa, exponent = np.frexp(np.abs(distinct[distinct != 0]))
    whole = np.ldexp(mantissa, bits)
    if (whole != np.rint(whole)).any():
        return None
    lowest = whole.astype(np.int64) & -whole.astype(np.int64)
    step = float(np.ldexp(lowest.astype(np.float64), exponent - bits).min())
    return step if float(np.abs(distinct).max()) / step < 2**44 else None


def spacing(distinct: Floats, noise: float) -> float | None:
    """The greatest g with all of ``distinct - distinct[0]`` multiples of g up to ``noise``, or None.

    Euclid's algorithm on the gaps, with remainders up to the noise taken for zero; g is then refined on
    multiples ever farther away.
    """
    gaps = np.diff(distinct)
    gaps = gaps[gaps > noise]
    if not len(gaps):
        return None
    while len(gaps) > 1:
        g = gaps.min()
        if g < 1e3 * noise:
            return None
        rest = np.abs(gaps - np.rint(gaps / g) * g)
        # a quotient of q carries q times the error of g
        gaps = np.append(rest[rest > noise * (2 + gaps / g)], g)
    step, far = float(gaps[0]), distinct[1:] - distinct[0]
    reach = 2.0
    while reach < 2 * far[-1] / step + 2:
        k = np.rint(far / step)
        near = k <= max(reach, k[0])
        step = float((k[near] @ far[near]) / (k[near] @ k[near]))
        reach *= 2
    k = np.rint(far / step)
    return step if (np.abs(far - k * step) <= 2 * noise + 1e-6 * step).all() and k[-1] < 2**40 else None


def snap(v: Floats, step: float, origin: float) -> Floats:
    """The nearest ``origin + k * step``; decimals come out as the nearest double of their decimal form."""
    if origin == 0 and step < 1 and abs(1 / step - round(1 / step)) < 1e-9 / step:
        inverse = float(round(1 / step))
        return cast(Floats, np.rint(v * inverse) / inverse)
    return cast(Floats, origin + np.rint((v - origin) / step) * step)


def spell(value: float) -> str:
    """A number as the name of a category: '3', '0.25'."""
    return str(int(value)) if float(value).is_integer() and abs(value) <= EXACT else repr(float(value))


# ---------------------------------------------------------------------------- known columns: read, write


Tell: TypeAlias = Callable[[str], object]


class Rounded(str):
    """What is told of values that were moved onto their column's grid; what is told of several blocks adds up."""

    def __new__(cls, column: str, step: float, moved: int, of: int, value: float, row: int) -> Rounded:
        """``moved`` of so many values; the first was ``value`` in ``row``."""
        said = super().__new__(
            cls,
            f"Column {column!r}: {moved} of {of} values were rounded to its resolution {step:.6g} "
            f"(the first: {value:.10g} in row {row}).",
        )
        said.column, said.parts = column, (column, step, moved, of, value, row)
        return said

    column: str
    parts: tuple[str, float, int, int, float, int]

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.parts

    def and_of(self, later: Rounded) -> Rounded:
        """What is told of this block and of a later one."""
        column, step, moved, of, value, row = self.parts
        return Rounded(column, step, moved + later.parts[2], of + later.parts[3], value, row)


def encode(column: Column, array: Array, tell: Tell = warnings.warn, first: int = 0) -> Floats:
    """Numbers [N] of new values of a known column, NaN where missing.

    Values of a grid column are rounded to the grid; ``tell`` is told (``Rounded``) where that moves them by more than
    a hundredth of a step. Raises BadValue, naming column, value and row, for what the column cannot hold. ``first`` is
    the number of the first row.
    """
    found = _plain(column.name, array, first)
    if isinstance(column, Category):
        values = _encode_category(column, found, first)
    else:
        values = _encode_number(column, found, tell, first)
    missing = np.isnan(values)
    if missing.any() and not column.nullable:
        row = int(missing.argmax())
        raise BadValue(
            f"Column {column.name!r} is missing in row {first + row}; it had no missing values when its type was set.",
            "Correct or remove the row.",
        )
    return values


def _encode_category(column: Category, found: Spellings | Numbers, first: int) -> Floats:
    if isinstance(found, Numbers):
        distinct, inverse = np.unique(found.values, return_inverse=True)
        codes = np.where(np.isnan(found.values), -1, inverse)
        found = Spellings(codes, [spell(v) for v in distinct if not math.isnan(v)])
    # "1", "1.0" and True, TRUE are the same value in files of different formats
    index = {s.lower(): k for k, s in enumerate(column.values) if s.lower() in ("true", "false")}
    numbers = [(_number(s), k) for k, s in enumerate(column.values)]
    index |= {spell(v): k for v, k in numbers if v is not None}
    index |= {s: k for k, s in enumerate(column.values)}

    def code(spelling: str) -> int:
        number = _number(spelling)
        forms = (spelling, spelling.lower(), "" if number is None else spell(number))
        return next((index[f] for f in forms if f in index), -2)

    recode = np.array([*map(code, found.spellings), -1])
    codes = recode[found.codes]
    if (codes == -2).any():
        row = int((codes == -2).argmax())
        shown = ", ".join(column.values[:8]) + (", ..." if len(column.values) > 8 else "")
        raise BadValue(
            f"Column {column.name!r} holds {found.spellings[found.codes[row]]!r} in row {first + row}, which is "
            f"none of its {len(column.values)} values ({shown}).",
            "Correct or remove the row, or load and fit again with it.",
        )
    return cast(Floats, np.where(codes < 0, math.nan, codes.astype(np.float64)))


def _encode_number(column: Real | Integer, found: Spellings | Numbers, tell: Tell, first: int) -> Floats:
    name = column.name
    if isinstance(found, Spellings):
        read = formats.read(found.spellings)
        if not isinstance(read, formats.Spelled) and found.spellings:
            row, text = found.first_text()
            kind = "a date" if isinstance(column, Integer) and column.date else "a number"
            raise BadValue(f"Column {name!r} holds {text!r} in row {first + row}; it takes {kind}.", "Correct the row.")
        none = Numbers(np.full(len(found.codes), math.nan))
        found = Numbers(found.of(read.values), date=read.date) if isinstance(read, formats.Spelled) else none
    v = found.values
    if np.isinf(v).any():
        row = int(np.isinf(v).argmax())
        raise BadValue(f"Column {name!r} is infinite ({v[row]}) in row {first + row}.", "Correct or remove the row.")
    if (np.abs(v) > LARGEST).any():
        row = int((np.abs(v) > LARGEST).argmax())
        raise BadValue(
            f"Column {name!r} holds {v[row]:.6g} in row {first + row}; numbers go up to {LARGEST:g}.",
            "Correct the row.",
        )
    if isinstance(column, Integer):
        if column.date and found.date is None and not np.isnan(v).all():
            raise BadValue(f"Column {name!r} holds plain numbers; it takes dates.", "Write dates as 2024-12-31.")
        if (np.abs(v) > EXACT).any():
            row = int((np.abs(v) > EXACT).argmax())
            raise BadValue(
                f"Column {name!r} holds {v[row]:.17g} in row {first + row}; whole numbers are exact up to 2^53.",
                "Correct the row.",
            )
        if column.date == "s" and found.date == "d":
            v = v * SECONDS_PER_DAY
        if column.date == "d" and found.date == "s":
            v = v / SECONDS_PER_DAY
        odd = ~np.isnan(v) & (v != np.rint(v))
        if odd.any():
            row = int(odd.argmax())
            value = "a time of day" if column.date else f"{v[row]:.10g}"
            raise BadValue(f"Column {name!r} holds {value} in row {first + row}; it takes whole numbers.", "Round it.")
        return v
    if column.step is None:
        return v
    snapped = snap(v, column.step, column.origin)
    moved = np.abs(snapped - v) > 0.01 * column.step
    if moved.any():
        row = int(moved.argmax())
        tell(Rounded(name, column.step, int(moved.sum()), len(v), float(v[row]), first + row))
    return snapped


def decode(column: Column, values: Floats) -> pa.Array:
    """Numbers [N] as Arrow values to write: spellings, whole numbers, dates, decimals; null where missing."""
    missing = np.isnan(values)
    filled = np.where(missing, 0, values)
    if isinstance(column, Category):
        indices = pa.array(filled.astype(np.int32), mask=missing)
        return pa.DictionaryArray.from_arrays(indices, pa.array(list(column.values), pa.string())).cast(pa.string())
    if isinstance(column, Integer):
        whole = pa.array(np.rint(filled).astype(np.int64), mask=missing)
        if column.date == "d":
            return whole.cast(pa.int32()).cast(pa.date32())
        return whole.cast(pa.timestamp("s")) if column.date == "s" else whole
    if column.step is not None:
        filled = snap(filled, column.step, column.origin)
    return pa.array(filled, mask=missing)


def show(column: Column, value: float) -> str:
    """One value as text, as it would be written."""
    if math.isnan(value):
        return ""
    if isinstance(column, Category):
        return column.values[int(value)]
    if isinstance(column, Integer):
        if column.date:
            return str(np.datetime64(int(value), "D" if column.date == "d" else "s")).replace("T", " ")
        return str(int(value))
    return f"{value:.6g}"


def encode_rows(
    columns: Sequence[Column], get: Callable[[str], Array], rows: int, tell: Tell = warnings.warn, first: int = 0
) -> Floats:
    """New rows [rows, D] of known columns; ``tell`` and ``first`` as in ``encode``."""
    out = np.empty((rows, len(columns)))
    for j, column in enumerate(columns):
        out[:, j] = encode(column, get(column.name), tell, first)
    return out
