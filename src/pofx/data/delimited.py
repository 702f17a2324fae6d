"""Delimited text (CSV, TSV, aligned columns) as a RawTable.

What a file does not say is told from its first lines: the separator, whether there is a header, the decimal mark. Every
such decision that could be wrong is told in a note, with the option that says otherwise (``options.Options``).
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pofx.core.errors import BadValue, CorruptFile, EmptyData, RaggedTable, UsageError
from pofx.core.spelling import abridged
from pofx.data import formats
from pofx.data.options import Options
from pofx.data.packed import unpacked
from pofx.data.raw import RawTable, corrupt, table_of
from pofx.data.roles import no_column
from pofx.data.tabular import MISSING, Array

SAMPLE = 1 << 16  # characters of the first lines from which the layout of a file is told, but at least LINES of them
LINES = 20
ALONE = "\x1f"  # the separator of a file of one column: one that text does not hold
BREAKS = re.compile(rb"\r\n?|\n")
EMPTY = re.compile(rb"(?>\r\n|\n|\r)(?=[\r\n])")
QUOTED = re.compile(b'"(?:' + b"|".join(re.escape(m.encode()) for m in MISSING if m) + b')"')


@dataclass
class Layout:
    """How the fields of a file are told apart: its bytes, what was found in front, and its first rows."""

    data: bytes
    delimiter: str
    rows: list[list[str]]  # of the beginning
    above: int = 0  # lines that were taken away in front of the data
    blank: int = 0  # of these, the empty ones

    @property
    def width(self) -> int:
        return len(self.rows[0])


def from_csv(path: Path, how: Options) -> RawTable:
    notes = list[str]()
    layout = _layout(path, how, notes)
    header = _is_header(layout.rows, how, notes)
    names = _names(path, layout, header, how, notes)
    if unknown := [c for c in how.formats if c not in names and not how.columns]:
        raise no_column(unknown[0], names, "formats")
    if layout.delimiter == ALONE and not header and layout.blank:  # rows like any other
        layout.data = b"\n" * layout.blank + layout.data
        layout.above -= layout.blank
    strings, quoted = _fields(path, layout, len(names), header, how, notes)
    if layout.delimiter == ALONE and (empty := pc.sum(pc.equal(strings.column(0), "")).as_py()):
        notes.append(f"{empty} empty lines are rows, whose only value is missing.")
    if header and not strings.num_rows and how.header is None:
        raise EmptyData(
            f"{path} has columns ({', '.join(names[:5])}) but no rows.", "Give rows, or --no-header if that is one."
        )
    decimal = _decimal(layout.rows[header:], layout.delimiter)
    columns, found = _columns(strings, quoted, names, decimal, how)
    raw = table_of(names, columns.__getitem__, strings.num_rows, str(path))
    how.decided.update(header=header, formats=dict(how.formats) | found.formats)
    raw.notes = notes + raw.notes + found.notes()
    return raw


def is_table(path: Path) -> bool:
    """Do the first lines of a text file have as many fields each, most of them numbers?"""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(1 << 14)
    except (EOFError, OSError, zlib.error):
        return False  # whoever reads it as text says what is wrong with it
    code = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    lines = [line for line in head.decode(code, errors="replace").splitlines() if line.strip()][1:50]
    if not lines:
        return False
    delimiter = _delimiter(lines)
    rows = [[c for c in row if c.strip()] for row in _split(lines, delimiter)]
    cells = [c for row in rows[:-1] for c in row]
    return len(cells) > 0 and sum(map(_is_number, cells)) > len(cells) / 2


# ------------------------------------------------------------------------------------ bytes and their layout


def _text_bytes(path: Path) -> bytes:
    """The file's bytes, unpacked, as UTF-8 (an Excel export in UTF-16 is converted)."""
    data = unpacked(path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as e:
            raise corrupt(path, "UTF-16", e) from e
    return data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\x1a")  # DOS ended files with the latter


def _layout(path: Path, how: Options, notes: list[str]) -> Layout:
    """Blank lines, ``sep=;`` and comments in front are taken away; the separator is told from the lines below."""
    whole = _text_bytes(path)
    if b"\0" in whole:
        known = "CSV, Parquet, Arrow, .npy, .npz, images or IDX files"
        line = _line(whole, whole.index(b"\0"))
        raise CorruptFile(
            f"{path} is neither text nor a format that pofx knows (line {line} holds a zero byte).", f"Give {known}."
        )
    data = whole.lstrip(b"\r\n")
    if not data.strip():
        raise EmptyData(f"{path} is empty.", "Give a file with rows.")
    above = blank = _line(whole, len(whole) - len(data)) - 1
    declared = re.match(rb'"?sep=(.)"?(?:\r\n?|\n)', data, re.IGNORECASE)  # Excel's own first line
    if declared:
        data, above = data[declared.end() :], above + 1
    comments = []
    while data.startswith(b"#"):
        end = BREAKS.search(data)
        comments.append(data[: end.start()] if end else data)
        data = data[end.end() :] if end else b""
    try:
        head = comments[-1].decode() if comments else ""
        first = BREAKS.search(data)
        data[: first.start() if first else len(data)].decode()
    except UnicodeDecodeError as e:
        raise CorruptFile(
            f"{path} is not UTF-8: byte {e.object[e.start]:#x} in its first line.",
            "Convert the file, for example: iconv -f latin1 -t utf-8 OLD > NEW.",
        ) from e
    lines = _first_lines(data)
    delimiter = declared[1].decode() if declared else _delimiter(lines or [head])
    if comments and _heads(head, lines, delimiter):
        bare = re.sub(r"^#+\s+", "", head)
        data = b"\n".join([bare.encode(), data])
        lines = [bare, *lines]
        comments.pop()
    if comments:
        above += len(comments)
        notes.append(f"{len(comments)} lines at the top were left aside as comments: they begin with '#'.")
    if not lines:
        raise EmptyData(f"{path} holds comments alone.", "Give a file with rows.")
    if delimiter == " ":  # columns aligned by blanks; those inside quotes stay
        data = b"\n".join(re.sub(rb'("[^"]*")|[ \t]+', lambda m: m[1] or b" ", x.strip()) for x in BREAKS.split(data))
        lines = _first_lines(data)
    elif delimiter != ALONE and (b'%b "' % delimiter.encode()) in data:  # a blank before a quote hides the quote
        pattern = rb'("(?:[^"]|"")*")|(?<=%b) +(?=")' % re.escape(delimiter.encode())
        data = re.sub(pattern, lambda m: m[1] or b"", data)
        lines = _first_lines(data)
    if delimiter != ",":
        spelled = {"\t": "tabs", " ": "blanks"}.get(delimiter, repr(delimiter))
        if delimiter != ALONE:
            notes.append(f"Fields are separated by {spelled}.")
        elif any(re.search("[,;|\t]", line) for line in lines[1:] if '"' not in line):
            notes.append("Each line was read as one field, since the lines do not split into as many as the first.")
    rows = _split(lines, delimiter)
    if len(rows) > 2 and sum(map(len, lines)) > SAMPLE:
        rows.pop()  # the sample may end inside a quoted field
    return Layout(data, delimiter, rows, above, blank)


def _split(lines: list[str], delimiter: str) -> list[list[str]]:
    """The fields of each row, however long they are."""
    limit = csv.field_size_limit(1 << 30)
    try:
        return list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    finally:
        csv.field_size_limit(limit)


def _line(data: bytes, position: int) -> int:
    return len(BREAKS.findall(data, 0, position)) + 1


def _first_lines(data: bytes) -> list[str]:
    """Lines that are not empty, whole ones as far as quotes allow."""
    lines, size = list[str](), 0
    with io.TextIOWrapper(io.BytesIO(data), "utf-8", "replace") as text:
        for line in text:
            if line.strip():
                lines.append(line.rstrip("\n"))
                size += len(line)
            if size > SAMPLE and len(lines) >= LINES:
                break
    return lines


def _heads(line: str, lines: list[str], delimiter: str) -> bool:
    """Is the comment above ``lines`` their header, as numpy.savetxt writes it?"""
    if not lines:
        return False
    rows = _split([re.sub(r"^#+\s+", "", line), *lines], delimiter)
    return len(rows[0]) == len(rows[1]) and _votes(rows)[0] > 0 and not (len(rows) > 2 and _votes(rows[1:])[0] > 0)


def _delimiter(lines: list[str]) -> str:
    """The separator that splits most lines alike, the first line too; of several, the one that less often stands
    inside a field. Blanks separate columns of numbers alone, since text holds blanks."""

    def split(delimiter: str) -> list[list[str]]:
        rows = [" ".join(line.split()) for line in lines] if delimiter == " " else lines
        return _split(rows, delimiter)

    def alike(delimiter: str) -> float:
        rows = splits[delimiter]
        counts = [len(row) for row in rows]
        most = max(set(counts), key=counts.count)
        if most < 2 or (counts[0] == 1 and len(lines) > 1):
            return 0.0
        cells = [c for row in rows[1:] or rows for c in row]
        named = counts[0] in (most, most - 1)  # R leaves names of rows without a name of their own
        if delimiter == " " and (not named or 2 * sum(map(_is_number, cells)) <= len(cells)):
            return 0.0
        return counts.count(most) / len(counts)

    splits = {delimiter: split(delimiter) for delimiter in "\t;|, "}
    shares = {delimiter: alike(delimiter) for delimiter in splits}
    best = max(shares, key=shares.__getitem__)  # the first of equals
    if shares[best]:
        return best
    # below a first line of one field: a title over a table, to be named, or fields that hold separators
    for delimiter in "\t;|,":
        rows = splits[delimiter][1:]
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            halves = all(re.fullmatch(r"[-\d.]+,\d+", line.strip()) for line in lines[1:])  # decimal commas
            phrases = len(rows[0]) == 2 and not any(map(_is_number, itertools.chain(*rows)))  # Doe, John
            if not halves and not phrases:
                return delimiter
    return ALONE


# ------------------------------------------------------------------------------------------ header and names


def _is_header(rows: list[list[str]], how: Options, notes: list[str]) -> bool:
    if {*how.columns} <= {c.strip() for c in rows[0]} and how.columns:
        return True
    if how.header is not None:
        return how.header
    names, values = _votes(rows)
    if names >= values and not (names and not values):
        notes.append("The first line was taken for the names of the columns (--no-header: it holds values).")
    return names >= values


def _votes(rows: list[list[str]]) -> tuple[int, int]:
    """How many columns say that the first line holds names, and how many that it holds values.

    Text above numbers is a name, a number above numbers a value, unless such numbers count up (years; 0, 1, 2, ... of
    an unnamed frame) above values that do not. Only without numbers do the words decide: one that recurs in its own
    column, or twice in the first line, is a value; one that does not where others do is a name.
    """
    names, values, counted, below = 0, 0, list[str](), list[str]()
    repeated = recurring = 0
    for first, *rest in zip(*rows, strict=False):
        first, present = first.strip(), [c.strip() for c in rest if c.strip() not in MISSING]
        if not present or first in MISSING:
            continue
        kinds = {_kind(c) for c in present[:100]}
        if kinds <= {"number"} or kinds <= {"date"}:
            if _kind(first) == next(iter(kinds)):
                values += 1
                counted.append(first)
                below += present
            else:
                names += 1
        elif first in present:
            recurring += 1
        elif sum(n for n in Counter(present).values() if n > 1) > len(present) / 2:
            repeated += 1
    counting = len(counted) > 1 and all(n.isdigit() for n in counted)
    if counting and len({int(n) - j for j, n in enumerate(counted)}) == 1 and not all(b.isdigit() for b in below):
        return names + values, 0
    if names or values:
        return names, values
    words = [c.strip() for c in rows[0] if c.strip()]
    return repeated, recurring + (len(words) - len({*words}))


def _kind(text: str) -> str:
    if re.fullmatch(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?|\d{1,2}:\d{2}(:\d{2})?", text.strip()):
        return "date"
    return "number" if _is_number(text) else ""


def _is_number(text: str) -> bool:
    """Numbers with signs of money or per cent and with any mark of thousands, too."""
    text = re.sub(r"^[-+−(]?\s?[$€£¥₹]?\s?|\s?[%‰$€£¥₹]?\)?$", "", text.strip())
    return re.fullmatch(r"[-+]?(\d[\d.,'’\s]*|[.,]\d+)([eE][-+]?\d+)?", text) is not None


def _names(path: Path, layout: Layout, header: bool, how: Options, notes: list[str]) -> list[str]:
    width = layout.width
    names = [c.strip() for c in layout.rows[0]] if header else [f"x{j + 1}" for j in range(width)]
    below = {len(row) for row in layout.rows[1:]}
    if header and below == {width + 1}:
        if all(not row[-1].strip() for row in layout.rows[1:]):
            names.append("")  # a separator at the end of every line but the first
        elif width > 1:
            names.insert(0, "")  # names of rows, which R leaves without a name of their own
    if how.names is not None and not (header and {*how.columns} <= {*names} and how.columns):
        if len(how.names) != len(names):
            raise UsageError(
                f"{len(how.names)} names were given for the {len(names)} columns of {path}.", "Name every column."
            )
        return list(how.names)
    if not header and how.header is None:
        notes.append(
            f"The first line holds values, so the columns were named {' to '.join(names[:: max(1, width - 1)])} "
            "(--names a,b,... names them; "
            "--header: it holds names)."
        )
    if twice := sorted((n, count) for n, count in Counter(names).items() if count > 1 and n):
        raise BadValue(
            f"{path} has {twice[0][1]} columns named {twice[0][0]!r}.",
            "Rename all but one, name all columns by --names a,b,..., or give --no-header if the first line is a row.",
        )
    return names


# ---------------------------------------------------------------------------------------- fields and columns


def _fields(
    path: Path, layout: Layout, width: int, header: bool, how: Options, notes: list[str]
) -> tuple[pa.Table, pa.Table | None]:
    """All fields as they are spelled; and again with the missing ones null, where some that could be are quoted."""
    data, delimiter = layout.data, layout.delimiter
    quotes = b'"' in data
    if quotes and (odd := _check_quotes(path, layout)):
        notes.append(f"{odd} fields go on behind their closing quote; they were read without it.")
    doubled = width > 1 and not quotes and any(pair in data for pair in (b"\n\n", b"\n\r", b"\r\r"))
    if doubled and (empty := len(EMPTY.findall(data.rstrip(b"\r\n")))):
        notes.append(f"{empty} empty line{'s hold' if empty > 1 else ' holds'} no row.")
    names = [str(j) for j in range(width)]
    first = BREAKS.search(data)
    row = first.end() if first else len(data)

    def parse(null: Sequence[str]) -> pa.Table:
        return pa.csv.read_csv(
            pa.py_buffer(data),
            pa.csv.ReadOptions(
                column_names=names,
                skip_rows_after_names=int(header),
                block_size=min(max(1 << 20, len(data) // 64, 4 * row), (1 << 31) - 1),
            ),
            pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=quotes, ignore_empty_lines=width > 1),
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=null,
                strings_can_be_null=bool(null),
                quoted_strings_can_be_null=False,
            ),
        )

    try:
        strings = parse([])
        quoted = quotes and how.missing is None and QUOTED.search(data) is not None
        return strings, parse([*MISSING, *(" " + m for m in MISSING)]) if quoted else None
    except pa.ArrowInvalid as e:
        raise _not_utf8(path, data) or _ragged(path, layout, width) or corrupt(path, "CSV", e) from e


@dataclass
class Found:
    """What was found in the columns, for notes and to read more rows alike."""

    formats: dict[str, str]
    missing: dict[str, list[str]]  # a spelling -> how often it stands in which columns
    written: dict[str, list[str]]  # a format in words -> columns
    other: list[str]

    def notes(self) -> list[str]:
        notes = [f"{words[0].upper()}{words[1:]}: {abridged(columns, 12)}." for words, columns in self.written.items()]
        if self.missing:
            counts = [f"{word!r} ({abridged(places, 12)})" for word, places in self.missing.items()]
            notes.append(f"Taken for missing: {'; '.join(counts)}; --missing '' keeps all but empty fields as text.")
        return notes + self.other


def _columns(
    strings: pa.Table, quoted: pa.Table | None, names: list[str], decimal: str | None, how: Options
) -> tuple[list[Array], Found]:
    """Numbers, dates, or text with null where missing."""
    missing = MISSING if how.missing is None else ("", *how.missing)
    sentinels = any(re.match(formats.PLAIN, m) for m in missing)
    found, columns = Found({}, {}, {}, []), list[Array]()
    for j, name in enumerate(names):
        cells = pc.utf8_trim_whitespace(strings.column(j))
        if cells.nbytes < 1 << 30:  # one chunk, since each costs the compilation of a pattern
            cells = pa.chunked_array([cells.combine_chunks()])
        format = how.formats.get(name, "")
        if how.columns and decimal and format in formats.NUMBERS:
            format = ""  # new rows may have another decimal mark than the first ones (those that pofx wrote do)
        mark = formats.NUMBERS[format][1] if format in formats.NUMBERS else decimal
        plain = name not in how.texts and not sentinels and (format not in formats.DATES or len(how.columns) > 0)
        if plain and formats.is_plain(cells, mark):
            columns.append(pc.cast(cells, pa.float64()))
            continue
        gone = pc.is_in(cells, pa.array(missing))
        if quoted is not None:
            kept = pc.and_(gone, pc.and_(pc.is_valid(quoted.column(j)), pc.not_equal(cells, "")))
            if pc.any(kept).as_py() and not _all_numbers(cells.filter(pc.invert(gone))):
                gone = pc.and_(gone, pc.invert(kept))  # among numbers, a quoted "NA" is missing all the same
        for entry in cells.filter(gone).value_counts().to_pylist():
            if entry["values"]:
                found.missing.setdefault(entry["values"], []).append(f"{entry['counts']} in {name}")
        cells = pc.if_else(gone, None, cells)
        columns.append(cells if name in how.texts else _typed(name, cells, mark, format, how, found))
    return columns, found


def _all_numbers(cells: pa.ChunkedArray) -> bool:
    """Does no field hold a letter, and every one a digit?"""
    return len(cells) > 0 and bool(pc.all(pc.match_substring_regex(cells, r"^\PL*\d\PL*$")).as_py())


def _typed(name: str, cells: pa.ChunkedArray, decimal: str | None, format: str, how: Options, found: Found) -> Array:
    """Numbers and dates where all that is there spells them in one format, else the text as it is."""
    present = cells.drop_null()
    if len(present) and format not in formats.DATES and formats.is_plain(present, decimal):
        return pc.cast(cells, pa.float64())
    codes = cells.dictionary_encode().unify_dictionaries()
    spellings = codes.chunk(0).dictionary if codes.num_chunks else pa.array([], pa.string())
    read = formats.read(spellings.to_pylist(), decimal, format)
    if isinstance(read, formats.Unclear):
        known = " or ".join(f"{formats.DATES[f]} (--formats {name}={f})" for f in read.formats)
        found.other.append(f"Column {name!r} stays text: dates such as {read.example!r} may be {known}.")
    fits = isinstance(read, formats.Spelled) and (read.date is not None) == (format in formats.DATES)
    if format and not how.columns and not fits:
        odd = formats.strays(spellings.to_pylist())
        example = spellings[odd[0] if odd else 0].as_py()
        raise BadValue(
            f"Column {name!r} is not written as {format!r} throughout: it holds {example!r}.",
            f"Correct it, or take it for missing: --missing {example!r}.",
        )
    if not isinstance(read, formats.Spelled) or read.code:
        return cells
    if read.said:
        found.written.setdefault(read.said, []).append(name)
    if read.said or format:
        found.formats[name] = read.format
    if read.note:
        found.other.append(f"Column {name!r}: {read.note}.")
    values = np.append(read.values, np.nan)
    index = np.concatenate([np.asarray(pc.fill_null(c.indices, len(spellings))) for c in codes.chunks])
    rows = values[index]
    if read.date is None:
        return rows
    moments = np.nan_to_num(rows).astype(np.int64).astype("M8[D]" if read.date == "d" else "M8[s]")
    return pa.chunked_array([pa.array(moments, mask=np.isnan(rows))])


def _decimal(rows: list[list[str]], delimiter: str) -> str | None:
    """The decimal mark of a file, where some number shows which: 1,5 does, 1,234 does not."""
    cells = [c.strip() for row in rows for c in row]
    comma = sum(re.fullmatch(r"[-+]?(0,\d+|\d{4,},\d+|[\d.]+,(\d{1,2}|\d{4,}))\D*", c) is not None for c in cells)
    point = sum(re.fullmatch(r"[-+]?(0?\.\d+|\d{4,}\.\d+|[\d,]+\.(\d{1,2}|\d{4,}))\D*", c) is not None for c in cells)
    if comma != point:
        return "," if comma > point else "."
    separated = any(re.search(r"\d,\d", c) for c in cells)
    return "," if delimiter == ";" and separated else None if separated or delimiter != "," else "."


# ------------------------------------------------------------------------------------------------ bad files


def _check_quotes(path: Path, layout: Layout) -> int:
    """How many quoted fields go on behind their closing quote. Raises RaggedTable where none closes a field."""
    mark = re.escape(layout.delimiter.encode())
    field = rb'(?:"(?:[^"]|"")*+"(?=%b|[\r\n]|\Z)|(?!")[^%b\r\n]*+)' % (mark, mark)
    rows = re.compile(rb"(?:%b(?:%b|\r\n?|\n|\Z))*+" % (field, mark))
    data, first = layout.data, layout.data.index(b'"')
    last = BREAKS.search(data, data.rindex(b'"'))
    size = last.end() if last else len(data)  # up to the last line with quotes
    begin = max(data.rfind(b"\n", 0, first), data.rfind(b"\r", 0, first)) + 1
    end = rows.match(data, begin, size).end()  # type: ignore[union-attr]
    odd = 0
    while end < size:
        stop = BREAKS.search(data, end)
        line = len(data) if stop is None else stop.start()
        if data.find(b'"', end + 1, line) < 0:
            raise RaggedTable(
                f"{path}, line {_line(data, end) + layout.above}: a quote opens a field and never closes it "
                f"({data[end : end + 30].splitlines()[0].decode(errors='replace')}).",
                'Close it before the separator, or write a quote inside a field as "".',
            )
        odd += 1
        after = data.find(layout.delimiter.encode(), data.find(b'"', end + 1), line)
        end = rows.match(data, line if after < 0 else after + 1, size).end()  # type: ignore[union-attr]
    return odd


def _not_utf8(path: Path, data: bytes) -> BadValue | None:
    try:
        data.decode()
    except UnicodeDecodeError as e:
        return BadValue(
            f"{path} holds bytes that are not UTF-8 in line {_line(data, e.start)}: {data[e.start : e.start + 1]!r}.",
            "Convert the file, for example: iconv -f latin1 -t utf-8 OLD > NEW.",
        )
    return None


def _ragged(path: Path, layout: Layout, width: int) -> RaggedTable | None:
    """The first line of another width, by its number in the file."""
    text = io.StringIO(layout.data.decode(errors="replace"), newline="")
    reader: Any = csv.reader(text, delimiter=layout.delimiter)
    limit = csv.field_size_limit(1 << 30)
    try:
        row = next((row for row in reader if row and len(row) != width), None)
    finally:
        csv.field_size_limit(limit)
    if row is None:
        return None
    return RaggedTable(
        f"{path}, line {reader.line_num + layout.above}: {len(row)} fields where the first line has {width}.",
        "Correct the line (a separator inside a field needs quotes around the field)."
        + (" Remove lines that stand above the table." if width == 1 else ""),
    )
