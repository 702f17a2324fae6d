"""Numbers and dates as people write them: recognised over all spellings of a column, never one by one.

A column is read as numbers or dates only if every spelling fits one format. Where several formats fit and they
disagree about the values, the column is ``Unclear``, and ``formats`` (a name of ``FORMATS`` for the column) decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array: TypeAlias = "pa.Array | pa.ChunkedArray"
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

NUMBERS = {"point": ("1,234.5", "."), "comma": ("1.234,5", ",")}  # what each is, and its decimal mark
DATES = {"dmy": "day, month, year", "mdy": "month, day, year", "ymd": "year, month, day"}
FORMATS = (*NUMBERS, *DATES)

EXACT = 2.0**53  # whole numbers up to here are exact in float64
# what every reader takes for a number, and no id looks like: no leading zero, no plus, at most 15 digits, no "1E5"
PLAIN = r"^-?(?:(?:(?:0|[1-9]\d*)\.\d*|\.\d+)(?:[eE][-+]?\d+)?|(?:0|[1-9]\d{0,14})(?:[eE][-+]\d+)?)$"

UNSIGNED = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"

BLANKS = r" \x{A0}\x{2009}\x{202F}"
CODES = (
    "USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|MXN|ZAR|KRW|TRY|RUB|UAH|ILS|SGD|HKD|kr|zł|Kč"
)
CURRENCY = rf"(?:[A-Z]{{0,3}}\p{{Sc}}|{CODES})"
NUMBER = (
    rf"^(?P<open>\(?)(?P<sign>[-+−]?)[{BLANKS}]?(?P<before>{CURRENCY}?)[{BLANKS}]?(?P<inner>[-+−]?)"
    rf"(?P<body>[.,]?\d(?:[\d.,'’{BLANKS}]*[\d.,])?|(?i:inf(?:inity)?))(?P<power>(?:[eE][-+]?\d+)?)"
    rf"[{BLANKS}]?(?P<after>(?:{CURRENCY}|%|‰)?)(?P<minus>-?)(?P<close>\)?)$"
)
GROUPS = {"": "", ",": ",", ".": r"\.", "'": "['’]", " ": f"[{BLANKS}]"}  # marks of thousands

TIME = r"(?P<h>\d{1,2}):(?P<m>\d{2})(?::(?P<s>\d{2}(?:[.,]\d+)?))?(?:\s?(?P<half>[AaPp])\.?[Mm]\.?)?"
ZONE = r"(?:\s?(?P<zone>Z|UTC|GMT|[-+]\d{2}(?::?\d{2})?))?"
DATE = rf"^(?P<a>\d{{1,4}})(?P<mark>[-/.])(?P<b>\d{{1,2}})(?P<mark2>[-/.])(?P<c>\d{{1,4}})(?:(?:T|,?\s+){TIME}{ZONE})?$"
PIVOT = 69  # years of two digits: from here on they are of the 20th century, as POSIX has it


@dataclass(frozen=True)
class Spelled:
    """Values [K] of K spellings; ``said``: how they are written, where it is not the plain way."""

    values: Floats
    date: str | None = None  # "d", "s" as of an Integer column
    format: str = ""  # by which more rows of the column are to be read
    said: str = ""
    note: str = ""
    code: str = ""  # a spelling that tells more than its number: the column holds codes


@dataclass(frozen=True)
class Unclear:
    """Several formats fit, with other values each."""

    formats: tuple[str, ...]
    example: str


def read(spellings: Sequence[str], decimal: str | None = None, format: str = "") -> Spelled | Unclear | None:
    """Numbers or dates of distinct spellings (none of them missing), or None where they are text.

    ``decimal`` is the mark that the rest of the source writes, if known; ``format`` one of FORMATS, if known.
    """
    if not spellings:
        return None
    column = pa.array(spellings, pa.string())
    if is_plain(column, "," if format == "comma" else decimal):
        return Spelled(_floats(column))
    return _dates(column, format) or _times(column) or _numbers(column, decimal, format)


def is_plain(column: Array, decimal: str | None = None) -> bool:
    """Is every spelling the plain one of a number, also in a source with this decimal mark?"""
    return _match(column, PLAIN) and (decimal != "," or not _match(column, r"^-?\d{1,3}(?:\.\d{3})*$"))


def strays(spellings: Sequence[str]) -> list[int]:
    """Which of them are no number, date or time in any format."""
    column = pa.array(spellings, pa.string())
    fits = [pc.match_substring_regex(column, pattern) for pattern in (NUMBER, DATE, rf"^{TIME}$")]
    return list(pc.indices_nonzero(pc.invert(pc.or_(pc.or_(*fits[:2]), fits[2]))).to_pylist())


def _floats(column: pa.Array) -> Floats:
    return np.array(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False))


def _match(column: Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(column, pattern)).as_py())


def _any(column: pa.Array, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(column, pattern)).as_py())


# ----------------------------------------------------------------------------------------------- numbers


def _code(column: pa.Array, body: pa.Array) -> str:
    """A spelling that is no mere number: leading zeros, "+49171", "1E5" among ids, more digits than float64 holds."""
    patterns = [r"^[-+]?0\d"]
    if not _any(column, r"^[-−]"):  # +1 beside -1 is a signed number
        patterns.append(rf"^\+[\d{BLANKS}]+$")
    if not _any(column, r"\.|[eE][-+]"):
        patterns.append(r"^\d+[eE]\d+$")
    for pattern in patterns:
        found = column.filter(pc.match_substring_regex(column, pattern))
        if len(found):
            return str(found[0])
    long = pc.indices_nonzero(pc.match_substring_regex(body, r"^\d{16,}$")).to_pylist()
    digits = ((str(column[k]), str(body[k])) for k in long)
    return next((s for s, d in digits if len(d) > 300 or int(float(d)) != int(d)), "")


def _numbers(column: pa.Array, decimal: str | None, format: str) -> Spelled | None:
    found = pc.extract_regex(column, NUMBER)
    if found.null_count:
        return None
    part = {name: found.field(name) for name in ("open", "sign", "before", "inner", "body", "power", "after", "minus")}
    if not pc.all(pc.equal(pc.equal(part["open"], "("), pc.equal(found.field("close"), ")"))).as_py():
        return None
    units = [*dict.fromkeys(pc.binary_join_element_wise(part["before"], part["after"], "|").unique().to_pylist())]
    named = [u for u in units if u != "|"]
    if len(named) > 1 or (len(units) > 1 and named[0][-1] in "%‰"):
        return None  # "$5" and "€5" are not of one kind, nor are "5%" and "0.05"
    fits = _marks(part["body"])
    if not fits:
        return None
    # "1.234" and "1,234" are both a thousand and a decimal: as declared, as in the rest of the source, or as usual
    wanted = NUMBERS[format][1] if format in NUMBERS else decimal or "."
    mark, group = next((f for f in fits if f[0] == wanted), fits[0])
    body = part["body"]
    if group:
        body = pc.replace_substring_regex(body, GROUPS[group], "")
    if mark == ",":
        body = pc.replace_substring(body, ",", ".")
    values = _floats(pc.binary_join_element_wise(body, part["power"], ""))
    signs = [pc.is_in(part[p], pa.array(["-", "−", "("])) for p in ("open", "sign", "inner", "minus")]
    count = np.sum([np.asarray(s) for s in signs], axis=0)
    if (count > 1).any():
        return None
    words = [
        "a decimal comma" if mark == "," and _any(part["body"], ",") else "",
        {"": "", " ": "blanks between thousands"}.get(group, f"{group!r} between thousands"),
        f"{named[0].strip('|')!r}" if named else "",
        "parentheses around negative numbers" if _any(column, r"^\(") else "",
        "a minus after the number" if _any(column, r"-$") else "",
    ]
    said = "written with " + ", ".join(w for w in words if w) if any(words) else ""
    if said and len(fits) > 1:
        said += f" (if not: --formats COLUMN={'point' if mark == ',' else 'comma'})"
    return Spelled(
        np.where(count == 1, -values, values),
        format=next(f for f, (_, m) in NUMBERS.items() if m == mark),
        said=said,
        code=_code(column, body),
    )


def _marks(body: pa.Array) -> list[tuple[str, str]]:
    """(decimal mark, mark of thousands) that all bodies may be written with."""
    if _match(body, r"^(?i:inf(?:inity)?)$|^\d*$"):
        return [(".", "")]
    fits = []
    for mark in (".", ","):
        for group, pattern in GROUPS.items():
            if group == mark:
                continue
            whole = rf"(?:[1-9]|\d{{2,3}})(?:{pattern}\d{{3}})+" if group else r"\d+"  # 0.545 is no thousand
            if group == ",":
                whole = r"(?:[1-9]|\d{2,3})(?:,\d{2,3})*,\d{3}"  # lakhs and crores, too
            if _match(body, rf"^(?i:inf(?:inity)?)$|^(?:\d+|{whole})(?:[{mark}]\d*)?$|^[{mark}]\d+$"):
                fits.append((mark, group))
                break  # a mark of thousands that no number needs is none
    return fits


# ------------------------------------------------------------------------------------------------- dates


def _integers(column: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Whole numbers of a group of a pattern, 0 where it is empty."""
    filled = pc.if_else(pc.equal(column, ""), "0", column)
    return np.array(pc.cast(filled, pa.int64()).to_numpy(zero_copy_only=False))


def _dates(column: pa.Array, format: str) -> Spelled | Unclear | None:
    found = pc.extract_regex(column, DATE)
    if found.null_count or not pc.all(pc.equal(found.field("mark"), found.field("mark2"))).as_py():
        return None
    part = {name: _integers(found.field(name)) for name in "abc"}
    size = {name: {*pc.binary_length(found.field(name)).unique().to_pylist()} for name in "abc"}
    days: dict[str, Floats] = {}
    for order in DATES:
        year = "abc"[order.index("y")]
        if size[year] not in ({4}, {2}) or any(size[n] - {1, 2} for n in "abc" if n != year):
            continue
        years, months, numbers = (part["abc"[order.index(x)]] for x in "ymd")
        if (valid := _days(years, months, numbers, two=size[year] == {2})) is not None:
            days[order] = valid
    if size["a"] != {4} and found.field("mark")[0].as_py() == "." and "dmy" in days:
        days = {"dmy": days["dmy"]}  # dots stand between day, month and year alone
    if format in days and size["a"] != {4}:
        days = {format: days[format]}
    if not days or (format in DATES and format not in days and "ymd" not in days):
        return None
    first = next(iter(days.values()))
    if any(not np.array_equal(first, d) for d in days.values()):
        return Unclear(tuple(days), str(column[0]))
    order = next(iter(days))
    said = "" if order == "ymd" and size["a"] == {4} else f"dates of {DATES[order]} ({column[0]})"
    seconds = _clock(found)
    if seconds is None:
        return None
    note = ""
    zones = pc.unique(found.field("zone")).to_pylist()
    if zones != [""]:
        if "" in zones:
            return None
        note = "" if {*zones} <= {"Z", "UTC", "GMT"} else "times were brought to UTC"
        seconds = seconds - np.array([_offset(z) for z in found.field("zone").to_pylist()])
    if not seconds.any():
        return Spelled(first, "d", order, said)
    whole = np.floor(first * 86400 + seconds)
    if (whole != first * 86400 + seconds).any():
        note = "; ".join(filter(None, [note, "fractions of a second were cut off"]))
    return Spelled(whole, "s", order, said, note)


def _days(year: Any, month: Any, day: Any, two: bool) -> Floats | None:
    """Days since 1970 of dates of the calendar, or None if one is none."""
    if two:
        year = np.where(year < PIVOT, 2000 + year, 1900 + year)
    if ((year < 1) | (month < 1) | (month > 12) | (day < 1) | (day > 31)).any():
        return None
    months = (year - 1970).astype("M8[Y]").astype("M8[M]") + (month - 1)
    days = months.astype("M8[D]") + (day - 1)
    if (days.astype("M8[M]") != months).any():
        return None
    return np.array(days.astype(np.int64), np.float64)


def _clock(found: pa.StructArray) -> Floats | None:
    """Seconds since midnight of the groups of TIME, or None if one is no time of day."""
    hours, minutes = _integers(found.field("h")), _integers(found.field("m"))
    text = pc.replace_substring(found.field("s"), ",", ".")
    seconds = _floats(pc.if_else(pc.equal(text, ""), "0", text))
    half = pc.utf8_lower(found.field("half"))
    of_day, after_noon = (np.asarray(pc.equal(half, h)) for h in ("", "p"))
    if (~of_day & ((hours < 1) | (hours > 12))).any():
        return None
    hours = np.where(of_day, hours, hours % 12 + 12 * after_noon)
    if ((hours > 23) | (minutes > 59) | (seconds >= 60)).any():
        return None
    return np.array(3600.0 * hours + 60 * minutes + seconds)


def _offset(zone: str) -> float:
    digits = re.sub(r"\D", "", zone).ljust(4, "0")
    return (-1 if zone[0] == "-" else 1) * (3600.0 * int(digits[:2]) + 60 * int(digits[2:]))


def _times(column: pa.Array) -> Spelled | None:
    found = pc.extract_regex(column, rf"^{TIME}$")
    seconds = None if found.null_count else _clock(found)
    return None if seconds is None else Spelled(seconds, note="times of day became seconds since midnight")
