"""Delimited text as people export it: no value, row or column changes unless a note or an error says so."""

from __future__ import annotations

import csv
import datetime as dt
import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import pofx
from pofx.cli import main
from pofx.core.errors import BadValue, CorruptFile, EmptyData, RaggedTable, UnknownFormat, UsageError
from pofx.data import formats
from pofx.data.rows import encode_row, read_rows
from pofx.data.write import write_rows
from pofx.spaces import Category, Integer, Real, Table

N = 40
WALK = [f"{170 + 10 * np.sin(1.7 * k):.4f}" for k in range(N)]  # a plain column of distinct decimals


def write(path: Path, lines: list[str], head: str = "a,b", ends: str = "\n") -> Path:
    path.write_text(ends.join([head, *lines]) + ends, newline="")
    return path


def beside(path: Path, cells: list[str], head: str = "a,b") -> Path:
    """A file of the cells and a plain column, with quotes where the cells need them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(cells, WALK, strict=True))
    return write(path, text.getvalue().splitlines(), head)


def loaded(source: object, **options: object) -> tuple[dict, np.ndarray, str]:
    """Columns by name, all rows in the order of the source, and the notes as one text."""
    data = pofx.load(source, **options)  # type: ignore[arg-type]
    assert isinstance(data.space, Table)
    parts = (data.train, data.valid, data.test)
    order = np.concatenate([p.rows.numpy() for p in parts]).argsort()
    rows = np.concatenate([p.x.numpy() for p in parts])[order]
    return {c.name: c for c in data.space.columns}, rows, " ".join(data.notes)


# -- numbers and codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cells",
    [
        ["0042", "1337", "0815"],
        ["+33145", "+4420", "+151"],
        ["1_024", "2_048", "4_096"],
        ["7E4", "3E11", "908"],
        ["90071992547409931", "90071992547409932", "12"],
        ["007.50", "12.25", "3"],
        ["0x10", "0xFF", "0x7"],
        ["012 345", "678 901", "234 567"],
    ],
    ids=lambda cells: cells[0],
)
@pytest.mark.parametrize("kind", ["csv", "parquet", "array"])
def test_codes_stay_as_they_are_spelt(tmp_path: Path, cells: list[str], kind: str) -> None:
    column = [cells[k % 3] for k in range(N)]
    source: object = beside(tmp_path / "x.csv", column)
    if kind == "parquet":
        source = pa.table({"a": column, "b": [float(w) for w in WALK]})
    if kind == "array":
        source = np.array([column, WALK]).T
    columns, rows, notes = loaded(source)
    a = next(iter(columns.values()))
    assert isinstance(a, Category)
    assert {*a.values} == {*cells}
    assert [a.values[int(k)] for k in rows[:, 0]] == column
    assert "_" in cells[0] or "x" in cells[0] or "Codes by their spelling" in notes


def test_a_code_far_below_makes_its_column_one_of_codes(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "".join(f"{k % 5 + 1},{k}.5\n" for k in range(200_000)) + "04,1\n")
    columns, _, _ = loaded(path)
    assert columns["a"] == Category("a", ("1", "2", "3", "4", "5", "04"))
    path.write_text(path.read_text().replace("04,1", "2.5,1"))  # a fraction there is a number like the others
    assert isinstance(loaded(path)[0]["a"], Real)


def test_codes_are_numbers_where_declared(tmp_path: Path) -> None:
    path = beside(tmp_path / "x.csv", [f"{k % 7:03}" for k in range(N)])
    columns, rows, _ = loaded(path, types={"a": "integer"})
    assert columns["a"] == Integer("a", 0, 6)
    assert rows[:, 0].tolist() == [k % 7 for k in range(N)]


def test_another_spelling_of_a_code_is_another_code() -> None:
    space = Table((Category("zip", ("1050", "01050")),))
    assert encode_row(space, {"zip": "01050"}).tolist() == [1.0]
    assert encode_row(space, {"zip": "1050.0"}).tolist() == [0.0]
    with pytest.raises(BadValue, match="'001050'"):
        encode_row(space, {"zip": "001050"})


def spelled(value: float, group: str, mark: str, before: str = "", after: str = "") -> str:
    plain = f"{abs(value):,.2f}".replace(",", "\0").replace(".", mark).replace("\0", group)
    return f"{'-' if value < 0 else ''}{before}{plain}{after}"


VALUES = [round((-1) ** k * 1.37**k + 0.01 * k, 2) for k in range(N)]


@pytest.mark.parametrize(
    ("group", "mark", "before", "after", "said"),
    [
        (",", ".", "", "", "',' between thousands"),
        (".", ",", "", "", "a decimal comma, '.' between thousands"),
        ("\u202f", ",", "", " €", "blanks between thousands, '€'"),
        ("\xa0", ".", "", "", "blanks between thousands"),
        ("'", ".", "CHF ", "", "'CHF'"),
        (",", ".", "£", "", "'£'"),
        ("", ",", "", "%", "a decimal comma, '%'"),
        ("", ".", "", " %", "'%'"),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_numbers_as_people_write_them(
    tmp_path: Path, delimiter: str, group: str, mark: str, before: str, after: str, said: str
) -> None:
    text = io.StringIO()
    cells = [[spelled(v, group, mark, before, after), f"w{k % 3}"] for k, v in enumerate(VALUES)]
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([["price", "kind"], *cells])
    (tmp_path / "x.csv").write_text(text.getvalue())
    columns, rows, notes = loaded(tmp_path / "x.csv")
    assert isinstance(columns["price"], Real)
    assert np.array_equal(rows[:, 0], VALUES)
    assert said in notes
    assert "price" in notes


def test_negative_numbers_of_accountants(tmp_path: Path) -> None:
    cells = [f"({-v:,.2f})" if v < 0 else f"{v:,.2f}" for v in VALUES]
    assert np.array_equal(loaded(beside(tmp_path / "x.csv", cells))[1][:, 0], VALUES)
    cells = [f"{-v:.2f}-" if v < 0 else f"{v:.2f}" for v in VALUES]
    assert np.array_equal(loaded(beside(tmp_path / "x.csv", cells))[1][:, 0], VALUES)


@pytest.mark.parametrize(
    "cells", [["$1.50", "€2.50"], ["5%", "0.5"], ["1.5", "2,75"], ["1.2.3", "4.5.6"], ["1-5", "2-9"]]
)
def test_what_does_not_fit_one_format_stays_text(tmp_path: Path, cells: list[str]) -> None:
    columns, _, _ = loaded(beside(tmp_path / "x.csv", [cells[k % 2] for k in range(N)]))
    assert isinstance(columns["a"], Category)


def test_thousand_or_decimal_is_told_from_the_rest_and_said(tmp_path: Path) -> None:
    cells = [f"{k % 9 + 1},{100 + 7 * k}" for k in range(N)]
    thousands = [float(c.replace(",", "")) for c in cells]
    path = beside(tmp_path / "x.csv", cells)
    _columns, rows, notes = loaded(path)
    assert rows[:, 0].tolist() == thousands
    assert "--formats COLUMN=comma" in notes
    assert np.allclose(loaded(path, formats={"a": "comma"})[1][:, 0] * 1000, thousands)
    # where other numbers show a decimal comma, so are these
    path = write(tmp_path / "y.csv", [f"{c};{k},5" for k, c in enumerate(cells)], "a;b")
    assert np.allclose(loaded(path)[1][:, 0] * 1000, thousands)
    path = write(tmp_path / "z.csv", [f"{c.replace(',', '.')};{k},5" for k, c in enumerate(cells)], "a;b")
    assert loaded(path)[1][:, 0].tolist() == thousands


# -- dates ------------------------------------------------------------------------------------------------

DAYS = [dt.date(2019, 11, 20) + dt.timedelta(days=17 * k) for k in range(N)]


@pytest.mark.parametrize(
    "form", ["%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%Y/%m/%d", "%Y-%m-%d", "%m/%d/%y", "%d.%m.%y"]
)
def test_dates_in_any_order(tmp_path: Path, form: str) -> None:
    columns, rows, notes = loaded(beside(tmp_path / "x.csv", [d.strftime(form) for d in DAYS]))
    assert columns["a"].date == "d"
    assert rows[:, 0].tolist() == [(d - dt.date(1970, 1, 1)).days for d in DAYS]
    assert ("Dates of" in notes) == (form[1] != "Y")


@pytest.mark.parametrize(
    "form", ["%d.%m.%Y %H:%M", "%m/%d/%Y %I:%M %p", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S+00:00"]
)
def test_times_of_dates(tmp_path: Path, form: str) -> None:
    moments = [dt.datetime(d.year, d.month, d.day, k % 24, k) for k, d in enumerate(DAYS)]
    columns, rows, _ = loaded(beside(tmp_path / "x.csv", [m.strftime(form) for m in moments]))
    assert columns["a"].date == "s"
    assert rows[:, 0].tolist() == [(m - dt.datetime(1970, 1, 1)).total_seconds() for m in moments]


def test_unclear_dates_are_named_and_can_be_declared(tmp_path: Path) -> None:
    days = [dt.date(2021, 1 + k % 11, 1 + k % 12) for k in range(N)]
    path = beside(tmp_path / "x.csv", [d.strftime("%m/%d/%Y") for d in days])
    columns, _, notes = loaded(path)
    assert isinstance(columns["a"], Category)
    assert "--formats a=dmy" in notes
    assert "--formats a=mdy" in notes
    data = pofx.load(path, formats={"a": "mdy"})
    want = [(d - dt.date(1970, 1, 1)).days for d in days]
    assert loaded(path, formats={"a": "mdy"})[1][:, 0].tolist() == want
    (tmp_path / "new.csv").write_text("a,b\n02/03/2021,171.5\n")  # new rows are read alike
    assert read_rows(data.space, None, tmp_path / "new.csv", options=data.options).x[0, 0] == 18661  # 3 February
    with pytest.raises(BadValue, match="'13/13/2021'"):
        pofx.load(beside(tmp_path / "x.csv", ["13/13/2021"] * N), formats={"a": "dmy"})
    with pytest.raises(BadValue, match="'b' is not written as 'dmy'"):
        pofx.load(path, formats={"b": "dmy"})
    for wrong in ({"a": "ydm"}, {"z": "dmy"}):
        with pytest.raises(UsageError):
            pofx.load(path, formats=wrong)


def test_new_rows_are_read_by_the_order_that_was_found(tmp_path: Path) -> None:
    data = pofx.load(beside(tmp_path / "x.csv", [d.strftime("%d/%m/%Y") for d in DAYS]))
    for spelling in ("05/02/2020", "2020-02-05"):
        (tmp_path / "new.csv").write_text(f"a,b\n{spelling},170.5\n")
        assert read_rows(data.space, None, tmp_path / "new.csv", options=data.options).x[0, 0] == 18297


def test_what_is_sampled_from_a_decimal_comma_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [f"{k}.{100 + k},{k % 10}5;{k % 4}" for k in range(1, N)], "a;b")
    data = pofx.load(path)
    write_rows(data.space, data.train.x[:1], tmp_path / "s.csv")
    back = read_rows(data.space, None, tmp_path / "s.csv", options=data.options)
    assert back.x.tolist() == data.train.x[:1].tolist()


def test_formats_over_distinct_spellings() -> None:
    for text, value in (
        ("12.5", 12.5),
        ("-3e-7", -3e-7),
        ("−4", -4.0),
        ("1,23,456", 123456.0),
        (".5", 0.5),
        ("7.", 7.0),
    ):
        read = formats.read([text])
        assert isinstance(read, formats.Spelled)
        assert read.values.tolist() == [value]
    for text in ("2021-02-29", "25:61", "1.2.3.4", "12 3", "1,2,3", "--5", "(5", "ten"):
        assert formats.read([text]) is None


# -- missing ----------------------------------------------------------------------------------------------


def test_what_was_taken_for_missing_is_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.csv", [f"{['NULL', 'x', 'y', ''][k % 4]},{w if k % 5 else 'n/a'}" for k, w in enumerate(WALK)]
    )
    columns, rows, notes = loaded(path)
    assert columns["a"] == Category("a", ("x", "y"), nullable=True)
    assert np.isnan(rows).sum(0).tolist() == [20, 8]
    assert "'NULL' (10 in a)" in notes
    assert "'n/a' (8 in b)" in notes
    assert "--missing ''" in notes


def test_missing_is_what_the_user_says(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [f"{['NA', 'x', '', '-1'][k % 4]},{w}" for k, w in enumerate(WALK)])
    assert loaded(path, missing=[""])[0]["a"] == Category("a", ("-1", "NA", "x"), nullable=True)
    columns, _, notes = loaded(path, missing=["-1", "x"])
    assert columns["a"] == Category("a", ("NA",), nullable=True)
    assert "'-1' (10 in a)" in notes
    path = write(tmp_path / "y.csv", [f"{w if k % 4 else '-99'},{k}.5" for k, w in enumerate(WALK)])
    assert np.isnan(loaded(path, missing=["-99"])[1][:, 0]).sum() == 10


def test_quotes_keep_the_string(tmp_path: Path) -> None:
    cells = ['"null"', "null", '"x"', '""']
    path = write(tmp_path / "x.csv", [f"{cells[k % 4]},{w}" for k, w in enumerate(WALK)])
    columns, rows, notes = loaded(path)
    assert columns["a"] == Category("a", ("null", "x"), nullable=True)
    assert np.isnan(rows[:, 0]).sum() == 20
    assert "'null' (10 in a)" in notes
    # a file that quotes everything: among numbers a quoted spelling is missing
    path = write(tmp_path / "y.csv", [f'"{w if k % 4 else "NaN"}","u{k % 2}"' for k, w in enumerate(WALK)])
    columns, rows, notes = loaded(path)
    assert isinstance(columns["a"], Real)
    assert "'NaN' (10 in a)" in notes


def test_null_of_parquet_is_its_own_thing() -> None:
    column = [["NA", "?", None, "null"][k % 4] for k in range(N)]
    columns, rows, _ = loaded(pa.table({"a": column, "b": [float(w) for w in WALK]}))
    assert columns["a"] == Category("a", ("?", "NA", "null"), nullable=True)
    assert np.isnan(rows[:, 0]).sum() == 10


def test_categories_that_look_missing_come_back(tmp_path: Path) -> None:
    space = Table((Category("a", ("NA", "?", "x"), nullable=True), Real("b")))
    rows = torch.tensor([[0, 0.5], [1, 1.5], [2, 2.5], [np.nan, 3.5]], dtype=torch.float64)
    for suffix in (".csv", ".tsv"):
        write_rows(space, rows, tmp_path / f"s{suffix}")
        assert torch.equal(read_rows(space, None, tmp_path / f"s{suffix}").x.nan_to_num(-1), rows.nan_to_num(-1))


# -- rows, headers and names --------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("head", ["x", "4.25"])
def test_an_empty_line_of_one_column_is_a_row(tmp_path: Path, ends: str, head: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(ends.join([head, "", *WALK[:20], "", ""]) + ends, newline="")
    _columns, rows, notes = loaded(path)
    assert len(rows) == 23 + (head != "x")
    assert np.isnan(rows).sum() == 3
    assert "3 empty lines are rows" in notes


@pytest.mark.parametrize(
    ("head", "cells"),
    [
        ("given name", ["Ann Marie", "Jean Luc", "Mary Jo"]),
        ("street", ["7 High Street", "12 Low Road", "9 End"]),
        ("who", ["Curie, Marie", "Bohr, Niels", "Noether, Emmy"]),
        ("said", ["yes, well, no", "never", "so; it, is"]),
        ("when it was", ["2020-01-01 at noon", "2020-01-02 at ten", "soon"]),
    ],
)
def test_one_column_whose_fields_hold_separators(tmp_path: Path, head: str, cells: list[str]) -> None:
    columns, rows, _ = loaded(write(tmp_path / "x.csv", [cells[k % 3] for k in range(N)], head))
    assert len(rows) == N
    assert [*columns] == [head]
    assert {*columns[head].values} == {*cells}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_rows_of_words_are_told_from_names(tmp_path: Path, delimiter: str) -> None:
    words = random.Random(0)
    rows = [[words.choice(["oak", "elm"]), words.choice(["wet", "dry", "ice"]), words.choice("pq")] for _ in range(N)]
    path = tmp_path / "x.csv"
    lines = [delimiter.join(r) for r in rows]
    path.write_text("\n".join(lines))
    columns, got, notes = loaded(path)
    assert [*columns] == ["x1", "x2", "x3"]
    assert len(got) == N
    assert "--names" in notes
    assert "--header" in notes
    columns, got, _ = loaded(write(path, lines, delimiter.join(["tree", "weather", "letter"])))
    assert [*columns] == ["tree", "weather", "letter"]
    assert len(got) == N


def test_a_header_that_could_be_a_row_is_said_and_can_be_declared(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [f"v{k},u{k}" for k in range(N - 1)], "word,other")
    columns, rows, notes = loaded(path)
    assert [*columns] == ["word", "other"]
    assert "--no-header" in notes
    columns, rows, _ = loaded(path, header=False)
    assert len(rows) == N
    columns, rows, _ = loaded(path, header=False, names="p,q")
    assert [*columns] == ["p", "q"]
    assert "word" in columns["p"].values
    path = write(tmp_path / "y.csv", [f"{k % 5},{k % 3}" for k in range(N)], "7,8")
    assert len(loaded(path)[1]) == N + 1
    columns, rows, _ = loaded(path, header=True)
    assert [*columns] == ["7", "8"]
    with pytest.raises(UsageError, match="3 names were given for the 2 columns"):
        pofx.load(path, names=["a", "b", "c"])
    with pytest.raises(EmptyData, match="--no-header"):
        pofx.load(write(tmp_path / "z.csv", [], "oak,wet,p"))


def test_new_rows_of_a_file_without_header(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("\n".join(f"{'st'[k % 2]},{'uvw'[k % 3]}" for k in range(N)))
    data = pofx.load(path)
    new = tmp_path / "new.csv"
    for text in ("t,w\n", "x1,x2\nt,w\n", "x2,x1\nw,t\n"):
        new.write_text(text)
        assert read_rows(data.space, None, new, options=data.options).x.tolist() == [[1.0, 2.0]]


def test_names_that_are_missing_or_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [f"{w},{k % 3},{k % 5}" for k, w in enumerate(WALK)], "a,,column2")
    columns, rows, notes = loaded(path)
    assert [*columns] == ["a", "column2_", "column2"]
    assert rows[:, 2].tolist() == [k % 5 for k in range(N)]
    assert "Column 2 has no name" in notes
    path = write(tmp_path / "y.csv", [f"{w},{k % 3}" for k, w in enumerate(WALK)], "a,a")
    with pytest.raises(BadValue, match="2 columns named 'a'.*--names"):
        pofx.load(path)
    assert [*loaded(path, names=["p", "q"])[0]] == ["p", "q"]
    # R writes no name over the names of rows; others end every line but the first with a separator
    path = write(tmp_path / "z.csv", [f"r{k},{w},{k % 3}" for k, w in enumerate(WALK)])
    assert [*loaded(path, types={"column1": "category"})[0]] == ["column1", "a", "b"]
    path = write(tmp_path / "z.txt", [f'"{k}" {w} "u {k % 3}"' for k, w in enumerate(WALK)], '"a" "b"')
    assert [*loaded(path)[0]] == ["a", "b"]
    path = write(tmp_path / "z.csv", [f"{w},{k % 3}," for k, w in enumerate(WALK)])
    assert [*loaded(path)[0]] == ["a", "b"]


def test_what_stands_above_the_table(tmp_path: Path) -> None:
    body = [f"{w};{k % 3}" for k, w in enumerate(WALK)]
    for above, head, names in (
        ("sep=;\n", "a;b", ["a", "b"]),
        ("\r\n\n", "a;b", ["a", "b"]),
        ("# by hand\n# in May; or June\n", "a;b", ["a", "b"]),
        ("", "# a;b", ["a", "b"]),
        ("", "#a;b", ["#a", "b"]),
    ):
        columns, rows, notes = loaded(write(tmp_path / "x.csv", body, above + head))
        assert [*columns] == names
        assert len(rows) == N
        assert ("comments" in notes) == above.startswith("#")
    with pytest.raises(RaggedTable, match=r"line 3: 2 fields where the first line has 1.*above the table"):
        pofx.load(write(tmp_path / "x.csv", body, "\nList of May"))


def test_a_first_line_of_any_length(tmp_path: Path) -> None:
    names = [f"gene{k:09}" for k in range(9000)]
    path = write(
        tmp_path / "x.csv", [",".join(str((k + j) % 13) for j in range(9000)) for k in range(25)], ",".join(names)
    )
    columns, rows, _ = loaded(path)
    assert [*columns] == names
    assert rows[3, :5].tolist() == [3, 4, 5, 6, 7]


def test_cells_stand_as_written(tmp_path: Path) -> None:
    cells = ['a "b" c', "x, y", "two\nlines", "semi;colon"]
    columns, _rows, _ = loaded(beside(tmp_path / "x.csv", [cells[k % 4] for k in range(N)]))
    assert {*columns["a"].values} == {*cells}
    path = write(tmp_path / "y.csv", [f'{w}, "x, y{k % 2}", z' for k, w in enumerate(WALK)], "a, b, c")
    assert loaded(path)[0]["b"] == Category("b", ("x, y0", "x, y1"))
    path = write(tmp_path / "z.csv", [f'"k{k % 2}" more,{w}' for k, w in enumerate(WALK)])
    assert f"{N} fields go on behind their closing quote" in loaded(path)[2]


@pytest.mark.parametrize("row", [0, 17, N - 1])
@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_quote_that_never_closes(tmp_path: Path, row: int, quoted: bool, columns: int) -> None:
    lines = []
    for k, w in enumerate(WALK):
        cell = f'"w{k % 3}"' if quoted else f"w{k % 3}"
        cell = f'"{cell.strip(chr(34))}' if k == row else cell
        lines.append(f"{w},{cell}" if columns == 2 else cell)
    path = write(tmp_path / "x.csv", lines, "\na,b" if columns == 2 else "\nb")
    with pytest.raises(RaggedTable, match=f"line {row + 3}: a quote opens a field"):
        pofx.load(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [f"{w},é" for w in WALK])
    for encoding in ("utf-16", "utf-16-le", "latin-1"):
        (tmp_path / "y.csv").write_bytes(path.read_text().encode(encoding))
        if encoding == "utf-16":
            assert loaded(tmp_path / "y.csv")[0]["b"].values == ("é",)
        else:
            with pytest.raises((CorruptFile, BadValue), match="line [12]"):
                pofx.load(tmp_path / "y.csv")


def zipped(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return data.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"a": 1}, {"a": 2}]', "JSON.*read_json"),
        (b'{\n  "rows": [1, 2]\n}', "JSON"),
        (b"<?xml version='1.0'?><a/>", "XML.*read_xml"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"SQLite format 3\0....", "SQLite"),
        (b"\x89HDF\r\n\x1a\n....", "HDF5"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel.*read_excel"),
        (b"\x80\x05\x95....", "pickle"),
        (b"BZh91AY....", "bzip2.*Unpack"),
        (b"\xfd7zXZ\0....", "xz.*Unpack"),
        (b"\x28\xb5\x2f\xfd....", "Zstandard.*Unpack"),
        (b"7z\xbc\xaf\x27\x1c....", "7z.*Unpack"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "Excel.*read_excel"),
        (zipped("mimetype", "content.xml"), "OpenDocument"),
        (zipped("a.csv", "b.csv"), "zip.*Unpack"),
        (zipped("model/data.pkl"), "PyTorch"),
    ],
    ids=range(16),
)
def test_formats_that_no_reader_is_for(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(content)
    with pytest.raises(UnknownFormat, match=said):
        pofx.load(path)


# -- the command line -----------------------------------------------------------------------------------------


def test_a_column_name_with_a_comma(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.csv", [f"{w},{k % 5},{k % 2}" for k, w in enumerate(WALK)], '"height, m",n,"a=b"')
    assert [c.name for c in pofx.load(path, given="height, m").context.columns] == ["height, m"]
    assert [c.name for c in pofx.load(path, given='"height, m",n').context.columns] == ["height, m", "n"]
    assert [c.name for c in pofx.load(path, given="n,a=b").context.columns] == ["n", "a=b"]
    assert main(["data", str(path), "--drop", '"height, m"', "--types", "a=b=category"]) == 0
    run = str(tmp_path / "run")
    assert main(["fit", str(path), "gaussian", "--given", "height, m", "--out", run, "--quiet"]) == 0
    assert main(["sample", run, "2", "--given", "height, m=171.5"]) == 0
    run = str(tmp_path / "run2")
    assert (
        main(["fit", str(path), "independent", "--given", '"height, m",n', "--out", run, "--quiet", "--steps", "2"])
        == 0
    )
    assert main(["sample", run, "2", "--given", '"height, m=171.5",n=3']) == 0
    assert "no column" not in capsys.readouterr().err


def test_options_of_delimited_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "x.csv", [f"{['NA', 'x'][k % 2]},0{k % 9 + 1}/05/2022,{w}" for k, w in enumerate(WALK)], "u,v,w"
    )
    told = ["--missing", "", "--no-header", "--names", "a,b,c"]
    assert main(["data", str(path), *told]) == 0
    shown = capsys.readouterr().out
    assert "NA, u, x" in shown
    assert main(["data", str(path), "--formats", "v=dmy"]) == 0
    assert "2022-05-01 to 2022-05-09" in capsys.readouterr().out
    assert main(["data", str(path), "--header", "--no-header"]) == 2
    assert main(["data", str(path), "--formats", "v"]) == 2
    for option in (["--names", "a,b"], ["--missing", "NA"], ["--formats", "a=dmy"], ["--no-header"]):
        assert main(["data", "digits", *option]) == 2  # what has no delimited text takes none of them
        assert option[0].lstrip("-").replace("no-", "") in capsys.readouterr().err


def test_a_zero_before_the_mark_is_no_thousand(tmp_path):
    """In a source with decimal commas "2.500" may be a thousand, but no "0.500" is."""
    lines = [f"{k}.{100 + k},50 €;0.{500 + k}" for k in range(1, 10)]
    path = tmp_path / "t.csv"
    path.write_text("price;share\n" + "\n".join(lines * 3))
    data = pofx.load(path)
    x = torch.cat([p.x for p in (data.train, data.valid, data.test)])
    assert x[:, 0].max() == 9109.5
    assert x[:, 1].max() == 0.509


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_empty_lines_between_rows_are_counted(tmp_path, end):
    path = tmp_path / "t.csv"
    path.write_bytes(end.join(["a,b", *(["1,2.5", "", "2,3.5", "", "", "3,4.5"] * 5), "", ""]).encode())
    data = pofx.load(path)
    assert sum(map(len, (data.train, data.valid, data.test))) == 15
    assert "15 empty lines hold no row." in data.notes


def test_a_word_among_numbers_is_told(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("v,w\n" + "".join(f"{k % 7}.5,{k}\n" for k in range(40)) + "n/m,3\n")
    notes = " ".join(pofx.load(path).notes)
    assert "Column 'v' is text (numbers or dates, but 'n/m' in row 40)" in notes
    assert "--missing 'n/m'" in notes
