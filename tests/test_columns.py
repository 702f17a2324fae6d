"""Columns of frames, Parquet, Arrow and NumPy: no value changes unseen, and what cannot be read is named."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import pofx
from pofx.core.errors import BadValue, CorruptFile, PofxError, UsageError, WrongShape
from pofx.data.parts import Data
from pofx.data.rows import read_rows
from pofx.data.tabular import show
from pofx.spaces import Category, Integer, Real

N = 60


def values_of(data: Data, name: str) -> list[Any]:
    """A column's values in the source's order: text, whole numbers, floats, dates; None where missing."""
    parts = (data.train, data.valid, data.test)
    order = torch.cat([p.rows for p in parts]).argsort()
    names = [c.name for c in data.space.columns]
    column = data.space.columns[names.index(name)]
    raw = torch.cat([p.x for p in parts])[order, names.index(name)].tolist()

    def value(v: float) -> Any:
        if math.isnan(v):
            return None
        if isinstance(column, Category):
            return column.values[int(v)]
        if isinstance(column, Integer) and column.date:
            return np.datetime64(int(v), "D" if column.date == "d" else "s")
        return int(v) if isinstance(column, Integer) else v

    return [value(v) for v in raw]


def column_of(values: Any, **options: Any) -> tuple[Data, Any]:
    """Arrow values beside a column of noise, and the type that they got."""
    array = values if isinstance(values, pa.Array) else pa.array(values)
    noise = np.random.default_rng(0).normal(size=len(array))
    data = pofx.load(pa.table({"c": array, "noise": noise}), **options)
    return data, data.space.columns[0]


def random_column(rng: np.random.Generator) -> tuple[str, pa.Array, list[Any]]:
    """A kind of column, its Arrow values, and what must come back."""
    kind = rng.choice(["real", "small", "wide", "text", "yes", "day", "moment", "cents", "uint64"])
    absent = rng.random(N) < rng.choice([0, 0.2])
    if kind == "real":
        v: list[Any] = (rng.normal(size=N) * 10.0 ** rng.integers(-100, 100)).tolist()
        back = v
    elif kind == "small":
        v = rng.integers(-(2**53), 2**53, N).tolist()
        back = v
    elif kind in ("wide", "uint64"):
        v = [int(a) * 2**31 + int(b) for a, b in rng.integers(2**23, 2**31, (N, 2))]
        v[0] = 2**53 + 1 if kind == "wide" else 2**64 - 1
        back = [str(i) for i in v]
    elif kind == "text":
        v = rng.choice(["NA", "null", "nan", "None", " padded", "padded", "?", "-", "007", "1e5", "é"], N).tolist()
        back = v
    elif kind == "yes":
        v = (rng.random(N) < 0.5).tolist()
        back = [str(b).lower() for b in v]
    elif kind == "day":
        v = [dt.date.fromordinal(int(d)) for d in rng.integers(1, dt.date.max.toordinal() + 1, N)]
        back = [np.datetime64(d, "D") for d in v]
    elif kind == "moment":
        v = [dt.datetime(1, 1, 1) + dt.timedelta(seconds=int(s)) for s in rng.integers(1, 315537897599, N)]
        back = [np.datetime64(d, "s") for d in v]
    else:
        v = [decimal.Decimal(int(c)) / 100 for c in rng.integers(10**6, 10**13, N)]
        back = [float(c) for c in v]
    types = {"wide": pa.int64(), "uint64": pa.uint64(), "cents": pa.decimal128(18, 2), "moment": pa.timestamp("us")}
    masked = [None if a else x for a, x in zip(absent, v, strict=True)]
    return (
        str(kind),
        pa.array(masked, types.get(str(kind))),
        [None if m is None else b for m, b in zip(masked, back, strict=True)],
    )


@pytest.mark.parametrize("seed", range(8))
def test_random_tables_come_back_unchanged(tmp_path: Path, seed: int) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    rng = np.random.default_rng(seed)
    columns = {f"{j} {k}": (a, want) for j, (k, a, want) in enumerate(random_column(rng) for _ in range(6))}
    table = pa.table({k: a for k, (a, _) in columns.items()})
    pq.write_table(table, tmp_path / "t.parquet")
    sources: list[Any] = [tmp_path / "t.parquet", table, polars.from_arrow(table)]
    sources.append(table.to_pandas(types_mapper=pandas.ArrowDtype))
    for source in sources:
        data = pofx.load(source)
        assert [c.name for c in data.space.columns] == [*columns], data.notes
        for name, (_, want) in columns.items():
            assert values_of(data, name) == want, (name, type(source))


# -- whole numbers and decimals -----------------------------------------------------------------------


def test_wide_whole_numbers_are_never_rounded() -> None:
    pandas = pytest.importorskip("pandas")
    big = [3**45 + k for k in range(N)]
    for source in (
        pandas.DataFrame({"c": [None, *big[1:]]}, dtype=object),
        pa.table({"c": [None, *map(str, big[1:])]}),
    ):
        assert values_of(pofx.load(source), "c") == [None, *map(str, big[1:])]
    whole = [decimal.Decimal(k) for k in big]
    assert values_of(column_of(pa.array(whole, pa.decimal128(30, 2)))[0], "c") == [*map(str, big)]
    ids = pa.array([2**53 + 1 + 2 * k for k in range(N)])
    with pytest.raises(BadValue, match=r"declared integer, but row 1 holds .*up to 2\^53"):
        column_of(ids, types={"c": "integer"})
    data, column = column_of(ids, types={"c": "real"})
    assert isinstance(column, Real)
    assert any(f"{N} values have more digits than float64 keeps" in n for n in data.notes)
    # new rows of a column of whole numbers
    data, column = column_of([k % 7 for k in range(N)])
    with pytest.raises(BadValue, match="row 1; whole numbers are exact"):
        read_rows(data.space, None, pa.table({"c": [1, 2**60 + 1], "noise": [0.1, 0.2]}))


def test_decimals_say_what_float64_cannot_hold() -> None:
    thirds = [decimal.Decimal(k) / 3 for k in range(1, N + 1)]  # 28 digits
    data, column = column_of(thirds)
    assert isinstance(column, Real)
    held = sum(decimal.Decimal(float(d)).quantize(t) == t for t, d in ((t, t) for t in thirds))
    assert any(f"{N - held} values have more digits" in n for n in data.notes)
    assert values_of(data, "c") == [float(t) for t in thirds]
    data, _ = column_of([decimal.Decimal(k) / 4 for k in range(N)])
    assert not any("digits" in n for n in data.notes)


def test_half_floats_keep_their_values() -> None:
    rng = np.random.default_rng(0)
    for values in (
        rng.uniform(1, 2, 3000),
        rng.normal(size=3000),
        np.where(rng.random(3000) < 0.3, 0, rng.normal(size=3000)),
    ):
        half = values.astype(np.float16)
        for stored in (half, half.astype(np.float32)):
            data = pofx.load(stored)
            (column,) = data.space.columns
            assert column.step is not None
            assert math.log2(column.step).is_integer()
            assert values_of(data, "x1") == half.astype(float).tolist()
    brain = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert values_of(pofx.load(brain), "x2") == brain[:, 1].tolist()
    assert isinstance(pofx.load(np.round(rng.normal(size=3000), 1).astype(np.float16)).space.columns[0], Real)


# -- dates and times ----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_moments_of_every_unit(unit: str) -> None:
    at = [np.datetime64("1969-12-31T23:59:58") + np.timedelta64(37 * k, "m") for k in range(N)]
    data, column = column_of(pa.array(np.array(at).astype(f"M8[{unit}]")))
    assert isinstance(column, Integer)
    assert column.date == "s"
    assert values_of(data, "c") == at
    if unit != "s":
        late = pa.array(np.array(at).astype(f"M8[{unit}]") + np.timedelta64(1, unit))
        data, _ = column_of(late)
        assert values_of(data, "c") == at
        assert any("fractions of a second were cut off" in n for n in data.notes)


def test_dates_of_all_years_zones_and_formats() -> None:
    far = [dt.date(1, 1, 1), dt.date(1066, 10, 14), dt.date(9999, 12, 31)] * 20
    for kind in (pa.date32(), pa.date64(), pa.timestamp("ms")):
        data, column = column_of(pa.array(far, pa.date32()).cast(kind))
        assert (column.date, column.low) == ("d", -719162)
        assert values_of(data, "c") == [np.datetime64(d) for d in far]
        assert data.describe()[0]["values"] == "0001-01-01 to 9999-12-31"
    assert show(Integer("c", 0, 1, date="d"), 2_932_897) == "10000-01-01"  # what a model may sample
    zoned = pa.array([dt.datetime(2024, 7, 1, 12, k) for k in range(N)]).cast(pa.timestamp("us", "Asia/Tokyo"))
    data, _ = column_of(zoned)
    assert values_of(data, "c")[0] == np.datetime64("2024-07-01T12:00:00")  # Arrow's instants are of UTC
    assert any("times of Asia/Tokyo became UTC" in n for n in data.notes)
    years = [569002320000] + [0] * (N - 1)
    with pytest.raises(BadValue, match=r"'c' holds the date 20000-\d\d-.* in row 0; dates are of the years 1 to 9999"):
        column_of(pa.array(years, pa.timestamp("s")))
    days = np.array(["2024-02-29", "NaT", "1582-10-15"] * 20, "M8[D]")
    assert values_of(pofx.load(days), "x1")[:3] == [np.datetime64("2024-02-29"), None, np.datetime64("1582-10-15")]


def test_times_and_durations_are_seconds() -> None:
    nanos = [1, 10**9 + 500_000_000, *range(2, N)]
    data, _ = column_of(pa.array(nanos, pa.time64("ns")))
    assert values_of(data, "c")[:2] == [1e-9, 1.5]
    assert any("seconds since midnight" in n for n in data.notes)
    data, _ = column_of(pa.array([None, *(1500 * k for k in range(1, N))], pa.duration("ms")))
    assert values_of(data, "c")[:3] == [None, 1.5, 3.0]
    assert any("durations became seconds" in n for n in data.notes)


# -- frames, arrays, tensors --------------------------------------------------------------------------


def test_pandas_kinds_are_read() -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    x = rng.normal(size=N)

    def load(c: Any) -> Data:
        return pofx.load(pandas.DataFrame({"c": c, "x": x}))

    binned = pandas.qcut(x, 4)
    assert values_of(load(binned), "c") == [str(v) for v in binned]
    assert values_of(load(pandas.Categorical([5, 7, 9] * 20, [9, 7, 5, 1], ordered=True)), "c") == [5, 7, 9] * 20
    mixed = ["NA", None, float("nan"), pandas.NA, "x", "null"] * 10
    assert values_of(load(mixed), "c") == ["NA", None, None, None, "x", "null"] * 10
    assert values_of(load(pandas.array([1, None, 3, 9] * 15, "Int64")), "c") == [1, None, 3, 9] * 15
    assert values_of(load(pandas.arrays.SparseArray(np.where(x > 1, x, 0))), "x") == x.tolist()
    data = pofx.load(pandas.Series(x, name="only"))
    assert values_of(data, "only") == x.tolist()
    indexed = pandas.DataFrame({"x": x}, index=pandas.Index([f"r{k}" for k in range(N)], name="who"))
    assert any("index ('who') was left out" in n for n in pofx.load(indexed).notes)
    assert not any("index" in n for n in pofx.load(pandas.DataFrame({"x": x})[5:]).notes)
    assert [c.name for c in pofx.load(pandas.DataFrame({("a", 1): x, 2: x**2})).space.columns] == ["('a', 1)", "2"]


def test_polars_and_arrow_kinds_are_read() -> None:
    polars = pytest.importorskip("polars")
    x = np.random.default_rng(0).normal(size=N)
    assert values_of(pofx.load(polars.Series("v", x)), "v") == x.tolist()
    assert values_of(pofx.load(polars.DataFrame({"v": x}).lazy()), "v") == x.tolist()
    table = pa.table({"v": x, "s": ["a", "NA", "b"] * 20})
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=7))
    assert values_of(pofx.load(reader), "s") == ["a", "NA", "b"] * 20
    holes = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2] * 20), pa.array(["a", None, "b"]))
    assert values_of(column_of(holes)[0], "c") == ["a", None, "b"] * 20
    data, column = column_of(["", "a", "b"] * 20)
    assert column.nullable
    assert any("20 empty texts were taken for missing" in n for n in data.notes)


def test_masks_are_missing() -> None:
    x = np.random.default_rng(0).normal(size=(N, 2))
    masked = np.ma.masked_greater(x, 1)
    assert values_of(pofx.load(masked), "x1") == [None if v > 1 else v for v in x[:, 0]]
    whole = np.ma.masked_equal(np.c_[np.arange(N) % 5, np.arange(N) % 7], 3)
    assert values_of(pofx.load(whole), "x2") == [None if k % 7 == 3 else k % 7 for k in range(N)]
    with pytest.raises(BadValue, match=r"masked pixels.*filled"):
        pofx.load(np.ma.masked_equal(np.arange(320).reshape(20, 4, 4) % 256, 9))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: pa.table({"c": [[1, 2]] * N}), BadValue, "'c' holds list<"),
        (lambda: pa.table({"c": [{"a": 1}] * N}), BadValue, "'c' holds struct<"),
        (lambda: pa.table({"c": pa.array([b"0123456789abcdef"] * N, pa.uuid())}), BadValue, "'c' holds extension<"),
        (lambda: pa.table({"c": [b"a", b"\xff"] * 30}), BadValue, "not UTF-8 in row 1"),
        (lambda: pa.table({"c": pa.array([None] * N, pa.decimal128(9, -2**30))}), BadValue, "'c' holds decimal128"),
        (lambda: np.array(["a\ud800", "b"] * 30), BadValue, "not Unicode in row 0"),
        (lambda: np.zeros(N, [("c", float, (2,))]), BadValue, r"'c' holds float64 \[2\]"),
        (lambda: np.array([1, "a"] * 30, object), BadValue, "holds object values"),
        (lambda: np.ones((N, 2), complex), BadValue, "holds complex128"),
        (lambda: torch.eye(9).to_sparse(), BadValue, "sparse_coo float32"),
        (lambda: torch.ones(9, 2, dtype=torch.cfloat).conj(), BadValue, "complex64"),
        (lambda: torch.ones(9, 2, device="meta"), BadValue, "meta"),
        (lambda: {"a": [1.0]}, UsageError, "Cannot load a dict"),
        (lambda: [[1.0]], UsageError, "Cannot load a list"),
    ],
)  # fmt: skip
def test_what_is_no_column_is_named(make: Any, error: type[PofxError], said: str) -> None:
    with pytest.raises(error, match=said):
        pofx.load(make())


@pytest.mark.parametrize("kind", ["mixed", "period", "interval", "complex", "twice", "object"])
def test_what_frames_hold_beside_columns_is_named(kind: str) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = {
        "mixed": lambda: pandas.DataFrame({"c": [1, "a", 2.5] * 20}),
        "period": lambda: pandas.DataFrame({"c": pandas.period_range("2020-01", periods=N, freq="M")}),
        "interval": lambda: pandas.DataFrame({"c": pandas.interval_range(0, N)}),
        "complex": lambda: pandas.DataFrame({"c": np.ones(N, complex)}),
        "twice": lambda: pandas.DataFrame(np.ones((N, 2)), columns=["c", "c"]),
        "object": lambda: polars.DataFrame({"c": polars.Series([object() for _ in range(N)], dtype=polars.Object)}),
    }[kind]()
    with pytest.raises(BadValue, match="'c'"):
        pofx.load(frame)


# -- sizes of numbers ---------------------------------------------------------------------------------


def test_numbers_that_overflow_are_named() -> None:
    x = np.random.default_rng(0).normal(size=(200, 2))
    x[17, 1] = -1.79e308
    with pytest.raises(BadValue, match=r"'x2' holds -1.79e\+308 in row 17; numbers go up to 1e\+150.*--missing"):
        pofx.load(x)
    x[17, 1] = 0
    for scale in (1e160, 1e-160, 1e-320):
        with pytest.raises(BadValue, match="'x1' holds"):
            pofx.load(x * [scale, 1])
    data = pofx.load(np.c_[x[:, 0] * 1e140, x[:, 1] * 1e-140, np.where(x[:, 0] > 0, 5e-324, x[:, 1])])
    assert values_of(data, "x1") == (x[:, 0] * 1e140).tolist()
    assert values_of(data, "x2") == (x[:, 1] * 1e-140).tolist()
    with pytest.raises(BadValue, match="row 1; numbers go up to"):
        read_rows(data.space, None, np.array([[0, 0, 0], [1e200, 0, 0]]))
    x[::9, 0] = np.finfo(np.float32).max
    with pytest.raises(BadValue, match=r"3.40282e\+38, so far apart.*means missing"):
        pofx.load(x)


def test_far_values_are_told() -> None:
    rng = np.random.default_rng(0)
    usual = rng.integers(0, 40, 300)

    def notes(column: Any) -> str:
        return " ".join(n for n in pofx.load(np.c_[column, rng.normal(size=300)]).notes if "far from" in n)

    assert notes(usual) == ""
    assert "-9999 in 30 rows, far from all others (0 to 39)" in notes(np.where(np.arange(300) % 10, usual, -9999))
    assert "-999 in 1 row, " in notes(np.r_[-999, usual[1:]])
    assert notes(np.r_[-1234, usual[1:]]) == ""  # once, and nothing that means missing by custom
    both = np.where(np.arange(300) % 10, np.where(np.arange(300) % 7, usual, 99999), -9999)
    assert "-9999 in 30 rows and 99999 in 38 rows, far" in notes(both)
    assert notes(np.exp(2 * rng.normal(size=300))) == ""
    for_ever = pa.table(
        {"until": [dt.date(9999, 12, 31) if k % 3 else dt.date(2024, 1, 1 + k % 28) for k in range(60)]}
    )
    assert any("9999-12-31 in 40 rows" in n for n in pofx.load(for_ever).notes)


# -- columns that others determine --------------------------------------------------------------------


def test_columns_that_others_determine() -> None:
    rng = np.random.default_rng(0)
    a, b, c, d = rng.normal(size=(4, 500))
    for columns, dependent, words in (
        ((a, b, a), ("x3",), "x3 equals x1"),
        ((a, b, 2.5 * a - 4), ("x3",), "x3 = 2.5 x1 - 4"),
        ((a, b, c, a - b + c), ("x4",), "x4 = x1 - x2 + x3"),
        ((a + b, a, b), ("x3",), "x3 = x1 - x2"),
        ((a, -a, b, a + b), ("x2", "x4"), "x2 = -x1"),
        ((np.tan(a), b, np.tan(a) + b), ("x3",), "x3 = x1 + x2"),  # heavy tails do not hide b
        (np.round((a, b, a + b), 6), ("x3",), "x3 = x1 + x2"),
        ((a, b, c, d, a + b + c + d, d + 1e-3 * a), ("x5", "x6"), "x5 = x1 + x2 + x3 + x4"),
        ((np.rint(9 * a), b, 0.1 * np.rint(9 * a) + b), ("x3",), "x3 = 0.1 x1 + x2"),
        ((np.where(b > 1, np.nan, a), c, np.where(b > 1, np.nan, a)), ("x3",), "x3 equals x1"),
    ):
        data = pofx.load(np.stack([*columns], 1))
        assert data.dependent == dependent, words
        assert any(words in n and f"--drop {dependent[0]}" in n for n in data.notes)
    for columns in (
        (a, b, a + b + 0.01 * c),
        (a, b),
        (np.rint(9 * a), np.rint(9 * a)),
        (1e6 * np.tan(a), 1e6 * np.tan(a) + 1e6 * c),
    ):
        assert pofx.load(np.stack(columns, 1)).dependent == ()


def test_dependence_where_columns_are_many_or_given() -> None:
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(40, 200))  # any 40 columns span all others, which says nothing
    assert pofx.load(wide).dependent == ()
    wide[:, 150] = -3 * wide[:, 20]
    data = pofx.load(wide)
    assert data.dependent == ("x151",)
    assert any("x151 = -3 x21" in n for n in data.notes)
    a, b = rng.normal(size=(2, 300))
    x = np.c_[a, a, b]
    assert pofx.load(x, given="x1,x2").dependent == ()
    assert pofx.load(x, given="x1").dependent == ("x2",)


# -- damaged files ------------------------------------------------------------------------------------


def test_damaged_columns_never_end_the_process(tmp_path: Path) -> None:
    words = [f"word{k % 7}" for k in range(N)]
    table = pa.table({"kolumn": words, "d": pa.array(words).dictionary_encode(), "x": np.arange(N) / 7})

    def packed(new: Any) -> bytes:
        out = io.BytesIO()
        with new(out, table.schema) as writer:
            writer.write_table(table)
        return out.getvalue()

    offsets = np.cumsum([0] + [5] * N).astype("<i4").tobytes()
    wrong = np.cumsum([0] + [5] * N).astype("<i4")
    wrong[9] = 2**31 - 5
    indices = np.array([k % 7 for k in range(N)], "<i4")
    lost = indices.copy()
    lost[3] = 2**30
    for name, plain in (("file", packed(pa.ipc.new_file)), ("stream", packed(pa.ipc.new_stream))):
        (tmp_path / f"{name}-0.arrow").write_bytes(plain.replace(offsets, wrong.tobytes()))
        (tmp_path / f"{name}-1.arrow").write_bytes(plain.replace(indices.tobytes(), lost.tobytes()))
        (tmp_path / f"{name}-2.arrow").write_bytes(plain.replace(b"kolumn", b"kol\xff\xfen"))
        (tmp_path / f"{name}-3.arrow").write_bytes(plain.replace(b"word3", b"wo\xff\xff3"))
        (tmp_path / f"{name}-4.arrow").write_bytes(plain[: len(plain) // 2])
    pq.write_table(table, tmp_path / "p.parquet", compression="none", use_dictionary=False)
    plain = (tmp_path / "p.parquet").read_bytes()
    (tmp_path / "p.parquet").write_bytes(plain.replace(b"word3", b"wo\xff\xff3"))
    (tmp_path / "v1.feather").write_bytes(b"FEA1" + bytes(40) + b"FEA1")
    code = (
        "import pathlib, sys, pofx\n"
        "for p in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: pofx.load(p); print(p.name)\n"
        "    except pofx.PofxError as e: print(p.name, type(e).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    assert all(line.endswith(" CorruptFile") for line in lines), lines


def test_corrupt_tables_are_corrupt_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"a": rng.normal(size=N), "s": [f"w{k % 5}" for k in range(N)]})
    pq.write_table(table, tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for cut in (5, len(whole) // 2, len(whole) - 5):
        (tmp_path / "b.parquet").write_bytes(whole[:cut])
        with pytest.raises(CorruptFile, match="Parquet"):
            pofx.load(tmp_path / "b.parquet")
    assert isinstance(pofx.load(tmp_path / "a.parquet").space.columns[0], Real)
    # wherever the footer says 60 (as 120, in the zigzag of its integers), it says 2^45
    size = struct.unpack("<I", whole[-8:-4])[0]
    footer, many = whole[-8 - size : -8], bytes([128] * 6 + [16])
    errors = []
    for at in [i for i, byte in enumerate(footer) if byte == 2 * N]:
        wrong = footer[:at] + many + footer[at + 1 :]
        (tmp_path / "b.parquet").write_bytes(whole[: -8 - size] + wrong + struct.pack("<I", len(wrong)) + b"PAR1")
        try:
            pofx.load(tmp_path / "b.parquet")
        except CorruptFile as e:
            errors.append(str(e))
    assert any("tells of 35184372088832 rows and holds 60" in e for e in errors)
    with pytest.raises(WrongShape, match="no column 's'"):
        read_rows(pofx.load(table).space, None, pa.table({"a": [0.1]}))
