"""Delimited text (CSV, TSV, aligned columns) as a RawTable."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from pofx.core.errors import CorruptFile, EmptyData, RaggedTable
from pofx.data.raw import Options, RawTable, corrupt, table_of
from pofx.data.tabular import MISSING


def from_csv(path: Path, options: Options) -> RawTable:
    data = _text_bytes(path)
    head = data[: 1 << 16].decode(errors="replace")
    lines = [line for line in head.splitlines() if line.strip()][:50]
    if not lines:
        raise EmptyData(f"{path} is empty.", "Give a file with rows.")
    if "\0" in head:
        known = "CSV, Parquet, Arrow, .npy, .npz, images or IDX files"
        raise CorruptFile(f"{path} is neither text nor a format that pofx knows.", f"Give {known}.")
    whole = lines[:-1] if len(data) > 1 << 16 and len(lines) < 50 else lines
    delimiter = _delimiter(whole)
    if delimiter == " " and b'"' not in data:  # columns aligned by blanks
        data = b"\n".join(b" ".join(line.split()) for line in data.splitlines())
        whole = [" ".join(line.split()) for line in whole]
    cells = list(csv.reader(whole, delimiter=delimiter, skipinitialspace=True))
    header = _has_header(cells)
    names = [c.strip() for c in cells[0]] if header else [f"x{j + 1}" for j in range(len(cells[0]))]
    comma = delimiter != "," and _decimal_comma(cells[1:])
    missing = [*MISSING, *(" " + m for m in MISSING if m)]
    try:
        table = pa.csv.read_csv(
            pa.py_buffer(data),
            pa.csv.ReadOptions(column_names=names, skip_rows=0, skip_rows_after_names=int(header)),
            pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in data),
            pa.csv.ConvertOptions(
                null_values=missing,
                strings_can_be_null=True,
                column_types={n: pa.string() for n in options.texts if n in names},
                decimal_point="," if comma else ".",
            ),
        )
    except pa.ArrowInvalid as e:
        raise _ragged(path, data, delimiter, len(names)) or corrupt(path, "CSV", e) from e
    raw = table_of(table.column_names, table.column, table.num_rows, str(path))
    if not header:
        raw.notes.append(f"The first line holds values, so the columns were named x1 to x{len(names)}.")
    if delimiter != ",":
        spelled = {"\t": "tabs", " ": "blanks"}.get(delimiter, repr(delimiter))
        raw.notes.append(f"Fields are separated by {spelled}.")
    if comma:
        raw.notes.append("Numbers are written with a decimal comma.")
    return raw


def is_table(path: Path) -> bool:
    """Do the first lines of a text file have as many fields each, most of them numbers?"""
    if not path.name.lower().removesuffix(".gz").endswith(".txt"):
        return False
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
    rows = [[c for c in row if c.strip()] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
    cells = [c for row in rows[:-1] for c in row]
    return len(cells) > 0 and sum(map(_is_number, cells)) > len(cells) / 2


def _text_bytes(path: Path) -> bytes:
    """The file's bytes, unpacked, as UTF-8 (an Excel export in UTF-16 is converted)."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as e:
        raise corrupt(path, "gzip", e) from e
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as e:
            raise corrupt(path, "UTF-16", e) from e
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        data = data.lstrip(b"\r\n")
        if data[:1] == b"#":  # the header line of numpy.savetxt
            data = data[1:].lstrip(b" ")
        data[: data.find(b"\n") + 1 or len(data)].decode()
    except UnicodeDecodeError as e:
        raise CorruptFile(
            f"{path} is not UTF-8: byte {data[e.start]:#x} in its first line.",
            "Convert the file, for example: iconv -f latin1 -t utf-8 OLD > NEW.",
        ) from e
    return data


def _delimiter(lines: list[str]) -> str:
    """The separator that splits most lines alike; of several, the one that less often stands inside a field."""

    def alike(delimiter: str) -> float:
        rows = [line.strip() for line in lines] if delimiter == " " else lines
        counts = [len(row) for row in csv.reader(rows, delimiter=delimiter, skipinitialspace=True)]
        most = max(set(counts), key=counts.count)
        return counts.count(most) / len(counts) if most > 1 else 0.0

    best = max("\t;|, ", key=alike)  # the first of equals
    return best if alike(best) else ","


def _has_header(rows: list[list[str]]) -> bool:
    """A first line is a header unless the columns of numbers begin with numbers there.

    Numbers are names all the same where they count up (years; 0, 1, 2, ... of an unnamed frame) above
    values that do not.
    """
    names, below = [], []
    for first, *rest in zip(*rows, strict=False):
        present = [c.strip() for c in rest if c.strip() not in MISSING]
        if present and first.strip() not in MISSING and all(map(_is_number, [first, *present])):
            names.append(first.strip())
            below += present
    counting = (
        len(names) > 1 and all(n.isdigit() for n in names) and len({int(n) - j for j, n in enumerate(names)}) == 1
    )
    return not names or (counting and not all(b.isdigit() for b in below))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*", text) is not None


def _decimal_comma(rows: list[list[str]]) -> bool:
    cells = [c.strip() for row in rows for c in row]
    with_comma = sum(re.fullmatch(r"[-+]?\d+,\d+", c) is not None for c in cells)
    with_point = sum(re.fullmatch(r"[-+]?\d+\.\d+", c) is not None for c in cells)
    return with_comma > with_point


def _ragged(path: Path, data: bytes, delimiter: str, width: int) -> RaggedTable | None:
    """The first line of another width, by its number in the file."""
    reader = csv.reader(io.StringIO(data.decode(errors="replace"), newline=""), delimiter=delimiter)
    for row in reader:
        if row and len(row) != width:
            return RaggedTable(
                f"{path}, line {reader.line_num}: {len(row)} fields where the first line has {width}.",
                "Correct the line (a separator inside a field needs quotes around the field).",
            )
    return None
