"""Sources of known entropy; tables and images of every format; new rows; bad input by name."""

from __future__ import annotations

import gzip
import itertools
import math
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Pillow

import pofx
from pofx.core.errors import (
    BadValue,
    CannotSave,
    CorruptFile,
    EmptyData,
    MissingSource,
    RaggedTable,
    UnknownFormat,
    UsageError,
    WrongShape,
)
from pofx.core.noise import row_keys
from pofx.core.space import from_json
from pofx.data import synthetic
from pofx.data.parts import Data
from pofx.data.rows import encode_row, read_rows
from pofx.data.synthetic import SOURCES, Mixture
from pofx.data.tabular import resolution, snap
from pofx.data.write import write_columns, write_rows
from pofx.spaces import Category, Image, Integer, Label, Real, Table


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(data: Data) -> torch.Tensor:
    """x of all parts in the source's order."""
    parts = (data.train, data.valid, data.test)
    order = torch.cat([p.rows for p in parts]).argsort()
    return torch.cat([p.x for p in parts])[order]


# -- sources of known entropy -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_source_samples_have_its_entropy(name: str) -> None:
    source = SOURCES[name]()
    x = source.sample(20_000, generator(1))
    source.space.check(x)
    surprise = -source.log_prob(x)
    assert abs(surprise.mean() - source.entropy) <= 4.5 * surprise.std() / math.sqrt(len(x)) + 1e-9
    twice = [source.sample(50, generator(2)).double().nan_to_num(-99) for _ in range(2)]
    assert torch.equal(*twice)


def test_markov_and_ising_sum_to_one() -> None:
    chain = synthetic.markov(4)
    states = torch.tensor(list(itertools.product(range(3), repeat=4)), dtype=torch.float64)
    log_p = chain.log_prob(states)
    assert torch.isclose(log_p.exp().sum(), torch.tensor(1.0).double())
    assert math.isclose(-(log_p.exp() * log_p).sum(), chain.entropy)
    image = synthetic.markov(4, image=True)
    assert torch.equal(image.log_prob(states.to(torch.uint8).reshape(-1, 1, 1, 4)), log_p)
    ising = synthetic.Ising(4, 3, coupling=0.3)
    assert math.isclose(ising.log_prob(ising.states).exp().sum(), 1.0)
    # one spin: a Bernoulli
    spin = synthetic.Ising(1, 1, field=0.7)
    assert math.isclose(spin.log_prob(torch.ones(1, 1, 1, 1, dtype=torch.uint8)).exp(), 1 / (1 + math.exp(-1.4)))


@pytest.mark.parametrize("name", ["two-moons", "rings", "pinwheel", "checkerboard", "gaussian-mixture"])
def test_plane_densities_integrate_to_one(name: str) -> None:
    source = SOURCES[name]()
    assert isinstance(source, Mixture)
    # midpoints, so that the checkerboard's borders fall between points
    axis = (torch.arange(300, dtype=torch.float64) + 0.5) / 300 * 10 - 5
    grid = torch.cartesian_prod(axis, axis)
    assert math.isclose(source.log_prob(grid).exp().sum() * (10 / 300) ** 2, 1.0, abs_tol=1e-6)
    # p(x) = sum_k p(k) p(x | k)
    joint = torch.stack([source.log_prob_given(grid, torch.full((len(grid),), k)) for k in range(len(source.parts))])
    total = (joint + source.weights.log()[:, None]).logsumexp(0)
    assert torch.allclose(total.exp(), source.log_prob(grid).exp())


def test_linear_gaussian_posterior_is_bayes() -> None:
    source = synthetic.linear_gaussian()
    x = source.sample(5, generator())
    mean, cov = source.posterior(x)
    z = torch.randn(5, 2, generator=generator(3), dtype=torch.float64)
    noise = torch.distributions.Normal(z @ source.weight.T + source.mean, source.noise)
    prior = torch.distributions.Normal(0.0, 1.0)
    joint = noise.log_prob(x).sum(1) + prior.log_prob(z).sum(1)
    posterior = torch.distributions.MultivariateNormal(mean, cov).log_prob(z)
    assert torch.allclose(joint - posterior, source.log_prob(x))


def test_mixed_table_sums_and_integrates_to_one() -> None:
    source = synthetic.MixedTable()
    cells = itertools.product(range(3), range(9), range(7), (0, 1, math.nan))
    rows = torch.tensor([(c, n, 1 + 0.25 * p, g, 0.0) for c, n, p, g in cells], dtype=torch.float64)
    size = torch.linspace(-10, 15, 2501, dtype=torch.float64)
    absent = rows.clone()
    absent[:, 4] = math.nan
    present = rows.repeat_interleave(len(size), 0)
    present[:, 4] = size.repeat(len(rows))
    total = source.log_prob(absent).exp().sum() + source.log_prob(present).exp().sum() * 0.01
    assert math.isclose(total, 1.0, abs_tol=1e-8)


# -- types of columns ---------------------------------------------------------------------------------


CSV = """name,age,weight,height,when,ok,constant,city
{rows}
"""


def people(n: int = 200) -> str:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(n):
        age = "NA" if i % 20 == 3 else f"{int(rng.integers(18, 80))}.0"
        weight = f"{rng.integers(500, 900) / 10:.1f}"
        city = ["Oslo", "Rome", "?", ' "Paris, F"'][int(rng.integers(4))].strip()
        date = f"2024-01-{1 + int(rng.integers(28)):02d}"
        lines.append(f"p{i},{age},{weight},{rng.normal()},{date},{str(bool(rng.integers(2))).lower()},7,{city}")
    return CSV.format(rows="\n".join(lines))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    path.write_text(people())
    return path


def test_types_are_inferred(table: Path) -> None:
    data = pofx.load(table)
    assert isinstance(data.space, Table)
    by_name = {c.name: c for c in data.space.columns}
    assert list(by_name) == ["age", "weight", "height", "when", "ok", "constant", "city"]  # names are left out
    assert by_name["age"] == Integer("age", by_name["age"].low, by_name["age"].high, nullable=True)
    weight, height = by_name["weight"], by_name["height"]
    assert isinstance(weight, Real)
    assert isinstance(height, Real)
    assert (weight.step, weight.origin, weight.measure) == (0.1, 0.0, "counting")
    assert (height.step, height.measure) == (None, "lebesgue")
    assert isinstance(by_name["when"], Integer)
    assert by_name["when"].date == "d"
    assert by_name["ok"] == Category("ok", ("false", "true"))
    assert by_name["constant"] == Category("constant", ("7",))
    assert by_name["city"] == Category("city", ("Oslo", "Paris, F", "Rome"), nullable=True)
    notes = " ".join(data.notes)
    for said in ("'name' was left out", "Constant: constant (7)", "weight (0.1)"):
        assert said in notes
    assert from_json(data.space.to_json()) == data.space
    for part in (data.train, data.valid, data.test):
        data.space.check(part.x)
    described = {row["column"]: row for row in data.describe()}
    assert described["age"]["missing"].startswith("10 (5.0%)")
    assert described["when"]["type"] == "date"
    assert described["when"]["values"].startswith("2024-01-01")


def test_types_are_overridden(table: Path) -> None:
    types = {
        "age": "category", "weight": "real", "height": "real:0.25", "constant": "integer", "ok": "nullable",
        "when": "drop", "name": "category",
    }  # fmt: skip
    data = pofx.load(table, types=types, drop=["city"])
    assert isinstance(data.space, Table)
    by_name = {c.name: c for c in data.space.columns}
    assert "when" not in by_name
    assert "city" not in by_name
    assert isinstance(by_name["age"], Category)
    assert "18.0" in by_name["age"].values
    assert by_name["weight"].measure == "lebesgue"
    assert isinstance(by_name["height"], Real)
    assert by_name["height"].step == 0.25
    assert by_name["constant"] == Integer("constant", 7, 7)
    assert by_name["ok"].nullable
    assert isinstance(by_name["name"], Category)
    assert len(by_name["name"].values) == 200
    data.space.check(data.train.x)
    for wrong in ({"age": "float"}, {"agee": "real"}, {"age": "real:0"}):
        with pytest.raises(UsageError):
            pofx.load(table, types=wrong)


def test_same_table_from_every_format(table: Path, tmp_path: Path) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    want = pofx.load(table)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "c.csv").write_bytes(table.read_text().encode("utf-16"))
    frame = pandas.read_csv(table, parse_dates=["when"], na_values="?")
    frame.to_parquet(tmp_path / "d.parquet")
    frame.to_feather(tmp_path / "e.feather")
    sources = [tmp_path / n for n in ("a.csv.gz", "b.csv", "c.csv", "d.parquet", "e.feather")]
    sources += [
        frame,
        polars.read_csv(table, null_values=["NA", "?"], try_parse_dates=True),
        pa.Table.from_pandas(frame),
    ]
    for source in sources:
        got = pofx.load(source)
        assert got.space == want.space, source
        assert torch.equal(got.train.x.nan_to_num(-1e9), want.train.x.nan_to_num(-1e9))


@pytest.mark.parametrize("delimiter", [";", "\t", "|", " "])
def test_delimiters_and_headerless(tmp_path: Path, delimiter: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 3))
    path = tmp_path / "x.csv"
    path.write_text("\n".join(delimiter.join(f"{v:.17g}" for v in row) for row in x))
    data = pofx.load(path)
    assert [c.name for c in data.space.columns] == ["x1", "x2", "x3"]
    assert np.array_equal(rows_of(data).numpy(), x)
    if delimiter == " ":
        np.savetxt(path, x, header="a b c", fmt="%25.17g")
        assert np.array_equal(rows_of(pofx.load(path)).numpy(), x)
        path.write_text("country,2010,2011\n" + "\n".join(f"{'AB'[i % 2]},{a},{b}" for i, (a, b, _) in enumerate(x)))
        assert [c.name for c in pofx.load(path).space.columns] == ["country", "2010", "2011"]
    if delimiter == ";":
        path.write_text("\n".join(";".join(f"{v:.17g}".replace(".", ",") for v in r) for r in x))
        assert np.array_equal(rows_of(pofx.load(path)).numpy(), x)
        path.write_text("a;b;c;\n" + "\n".join(";".join(f"{v:.17g}".replace(".", ",") for v in r) + ";" for r in x))
        data = pofx.load(path)
        assert [c.name for c in data.space.columns] == ["a", "b", "c"]
        assert np.array_equal(rows_of(data).numpy(), x)


def test_resolution() -> None:
    def grid(values: np.ndarray, rounding: float = 2.0**-52) -> tuple[float, float]:
        return resolution(*np.unique(values, return_counts=True), rounding)

    rng = np.random.default_rng(0)
    k = rng.integers(-500, 500, 2000)
    assert grid(k / 100) == (0.01, 0.0)
    assert grid((k / 1000).astype(np.float32).astype(np.float64)) == (0.001, 0.0)
    # integers shifted and scaled: found again, whatever the factor
    for a in (math.pi, 1e-7 / 3, 12345.678912345):
        step, origin = grid((k - 3.3) * a)
        assert math.isclose(step, a, rel_tol=1e-9)
        assert np.allclose(snap((k - 3.3) * a, step, origin), (k - 3.3) * a, rtol=1e-12)
    # thirds among tenths
    step, _ = grid(np.concatenate([k / 10, k[:40] / 3]))
    assert math.isclose(step, 1 / 30, rel_tol=1e-9)
    # a stray or two do not decide
    assert grid(np.append(k.repeat(2), 14.66666667)) == (1.0, 0.0)
    # no grid at all: distinct values stay apart and hardly move
    logs = np.log1p(np.abs(k))
    step, origin = grid(logs)
    assert len(np.unique(snap(logs, step, origin))) == len(np.unique(logs))
    assert np.abs(snap(logs, step, origin) - logs).max() <= 1e-4 * np.ptp(logs)


def test_zero_inflated_column_is_counted() -> None:
    x = np.random.default_rng(0).normal(size=(500, 2))
    x[::3, 0] = 0.0
    data = pofx.load(x)
    assert [c.measure for c in data.space.columns] == ["counting", "lebesgue"]
    assert np.abs(rows_of(data)[:, 0].numpy() - x[:, 0]).max() < 1e-4


def test_missing_values_in_arrays() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    x[5, 1] = math.nan
    data = pofx.load(x)
    assert [c.nullable for c in data.space.columns] == [False, True]
    assert data.space.measure.parts == (("lebesgue", 1), ("atom+lebesgue", 1))
    x[7, 0] = math.inf
    with pytest.raises(BadValue, match=r"'x1' is infinite .* row 7"):
        pofx.load(x)
    assert pofx.load(x, types={"x1": "nullable"}).space.columns[0].nullable


def test_row_counter_is_left_out_and_time_order_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    days = np.arange("2020-01-01", "2020-04-10", dtype="datetime64[D]")
    rng = np.random.default_rng(0)
    path.write_text("No,day,v\n" + "\n".join(f"{i},{d},{rng.normal()}" for i, d in enumerate(days, 1)))
    data = pofx.load(path)
    assert [c.name for c in data.space.columns] == ["day", "v"]
    assert any("only counts the rows" in n for n in data.notes)
    assert any("in order of 'day'" in n for n in data.notes)


# -- roles and splits -----------------------------------------------------------------------------------


def test_given_label_and_target(table: Path) -> None:
    plain = pofx.load(table, label="city")
    assert plain.labels == ("Oslo", "Paris, F", "Rome", "(missing)")
    assert "city" in [c.name for c in plain.space.columns]
    given = pofx.load(table, given="age, ok")
    assert isinstance(given.context, Table)
    assert [c.name for c in given.context.columns] == ["age", "ok"]
    assert "age" not in [c.name for c in given.space.columns]
    assert torch.equal(given.train.rows, plain.train.rows)  # the split depends on the seed alone
    by_label = pofx.load(table, given="label", label="ok")
    assert by_label.context == Label(("false", "true"))
    assert "ok" not in [c.name for c in by_label.space.columns]
    classify = pofx.load(table, target="ok")
    assert classify.space == Label(("false", "true"))
    assert isinstance(classify.context, Table)
    assert torch.equal(classify.train.x, by_label.train.c)
    assert torch.equal(classify.train.c.nan_to_num(), by_label.train.x.nan_to_num())
    for wrong in ({"given": "nope"}, {"label": "nope"}, {"target": "height"}, {"target": "label"}, {"given": "label"}):
        with pytest.raises(UsageError):
            pofx.load(table, **wrong)
    with pytest.raises(UsageError, match="not both"):
        pofx.load(table, target="ok", given="age")


def test_splits_are_deterministic_and_disjoint() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 2))
    a, b, c = pofx.load(x), pofx.load(torch.from_numpy(x)), pofx.load(x, seed=1)
    assert (len(a.train), len(a.valid), len(a.test)) == (800, 100, 100)
    assert torch.equal(a.train.rows, b.train.rows)
    assert not torch.equal(a.train.rows, c.train.rows)
    assert torch.equal(torch.cat([a.train.rows, a.valid.rows, a.test.rows]).sort().values, torch.arange(1000))
    assert np.array_equal(rows_of(a).numpy(), x)
    few = pofx.load(x, max_rows=100)
    assert (len(few.train), len(few.valid), len(few.test)) == (80, 10, 10)
    assert np.array_equal(few.train.x.numpy(), x[few.train.rows])
    assert (len(pofx.load(x[:3]).train), len(pofx.load(x[:3]).test)) == (1, 1)
    with pytest.raises(EmptyData):
        pofx.load(x[:2])
    with pytest.raises(UsageError):
        pofx.load(x, split=(0.9, 0.2, 0.1))


def test_repeated_rows_are_told() -> None:
    x = np.random.default_rng(0).normal(size=(100, 3))
    x[50:60] = x[:10]
    data = pofx.load(x)
    assert any(n.startswith("10 of 100 rows repeat") for n in data.notes)
    keys = row_keys(torch.from_numpy(x))
    assert len(keys.unique()) == 90
    images = torch.randint(0, 2, (300, 1, 3, 3), generator=generator(), dtype=torch.uint8)
    assert len(row_keys(images).unique()) == len(images.flatten(1).unique(dim=0))


# -- built-in sets and arrays -----------------------------------------------------------------------


def test_built_in_sets() -> None:
    digits = pofx.load("digits", given="label")
    assert digits.space == Image(8, 8, 1, 17)
    assert digits.context == Label(tuple("0123456789"))
    assert len(digits.train) + len(digits.valid) + len(digits.test) == 1797
    assert pofx.load("breast_cancer").labels == ("benign", "malignant")
    mixed = pofx.load("mixed-table", max_rows=500)
    assert mixed.space == synthetic.MixedTable().space
    mixed.space.check(mixed.train.x)
    moons = pofx.load("two-moons", given="label")
    assert moons.context == Label(("part 0", "part 1"))
    with pytest.raises(MissingSource, match="two-moons"):
        pofx.load("two-moon")
    with pytest.raises(UsageError, match="Cannot load"):
        pofx.load(3.0)


def test_npz_keys(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 5, 4, 3), dtype=np.uint8), rng.integers(0, 3, 40)
    np.savez(tmp_path / "a.npz", x_train=x[:30], y_train=y[:30, None], x_test=x[30:], y_test=y[30:, None])
    data = pofx.load(tmp_path / "a.npz")
    assert data.space == Image(5, 4, 3, 256)
    assert data.labels == ("0", "1", "2")
    assert (data.test.rows >= 30).all()
    assert len(data.test) == 10
    assert torch.equal(data.test.x, torch.from_numpy(x[30:]).permute(0, 3, 1, 2))
    assert torch.equal(data.test.label, torch.from_numpy(y[30:]))
    np.savez(tmp_path / "b.npz", X=rng.normal(size=(60, 3)), y=rng.normal(size=60))
    assert [c.name for c in pofx.load(tmp_path / "b.npz").space.columns] == ["x1", "x2", "x3", "y"]
    bits = rng.integers(0, 2, (50, 11), dtype=np.uint8)
    packed = np.packbits(bits, axis=1)
    np.savez(tmp_path / "c.npz", train=packed[:30], valid=packed[30:40], test=packed[40:], num_vars=11)
    data = pofx.load(tmp_path / "c.npz")
    assert data.space == Table(tuple(Category(f"x{j}", ("0", "1")) for j in range(1, 12)))
    assert np.array_equal(rows_of(data).numpy(), bits)
    flat = pofx.load(np.packbits(bits[:, :9], axis=1), shape=(3, 3))
    assert flat.space == Image(3, 3, 1, 2)
    assert np.array_equal(rows_of(flat).numpy().reshape(-1, 9), bits[:, :9])
    np.savez(tmp_path / "d.npz", state=np.zeros((4, 2)), action=np.zeros((4, 2)))
    with pytest.raises(WrongShape, match=r"state \[4, 2\] float64, action \[4, 2\] float64"):
        pofx.load(tmp_path / "d.npz")
    with zipfile.ZipFile(tmp_path / "sheet.xlsx", "w") as archive:
        archive.writestr("sheet.xml", "<xml/>")
    with pytest.raises(UnknownFormat, match="zip archive.*Unpack"):
        pofx.load(tmp_path / "sheet.xlsx")
    np.savez(tmp_path / "e.npz", x=np.array([{}], dtype=object))
    with pytest.raises(BadValue, match="Python objects"):
        pofx.load(tmp_path / "e.npz")


def test_image_arrays() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    for array in (x, x.transpose(0, 3, 1, 2), x / 255, x.astype(np.int64)):
        data = pofx.load(array)
        assert data.space == Image(6, 5, 3, 256)
        assert torch.equal(rows_of(data), torch.from_numpy(x).permute(0, 3, 1, 2))
    assert pofx.load(x[..., 0] > 99).space == Image(6, 5, 1, 2)
    assert pofx.load((x[..., 0] > 99) * np.uint8(255)).space == Image(6, 5, 1, 2)
    for bad in (x[..., 0] / 7, x[..., 0].astype(int) * 2, x[..., 0] * np.nan, x[..., 0].astype(int) - 1):
        with pytest.raises(BadValue):
            pofx.load(bad)
    with pytest.raises(WrongShape):
        pofx.load(np.zeros((3, 7, 7, 7)))


# -- images in files -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (6, 5), dtype=np.uint8)
            Pillow.fromarray(pixels).save(tmp_path / "pets" / label / f"{i}.png")
    return tmp_path / "pets"


def test_image_folder(folder: Path) -> None:
    data = pofx.load(folder)
    assert data.space == Image(6, 5, 1, 256)
    assert data.labels == ("cat", "dog")
    third = Pillow.open(folder / "cat" / "2.png")  # natural order: 2 before 10
    assert np.array_equal(rows_of(data)[2, 0].numpy(), np.asarray(third))
    Pillow.fromarray(np.zeros((6, 5, 3), np.uint8)).save(folder / "dog" / "colour.jpg")
    data = pofx.load(folder, max_rows=20)
    assert len(data.train) + len(data.valid) + len(data.test) == 20
    data = pofx.load(folder)
    assert data.space == Image(6, 5, 3, 256)
    assert any("read as RGB" in n for n in data.notes)
    Pillow.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "dog" / "large.png")
    with pytest.raises(WrongShape, match=r"large.png is 9×9 .* 5×6"):
        pofx.load(folder)
    assert pofx.load(folder, resize=4).space == Image(4, 4, 3, 256)


def test_image_folder_with_official_parts(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    root.mkdir()
    folder.rename(root / "train")
    (root / "test" / "cat").mkdir(parents=True)
    Pillow.fromarray(np.zeros((6, 5), np.uint8)).save(root / "test" / "cat" / "0.png")
    data = pofx.load(root)
    assert data.labels == ("cat", "dog")
    assert len(data.test) == 1
    assert not data.test.x.any()
    assert "own test part" in data.split


def test_corrupt_images_are_named(folder: Path) -> None:
    whole = (folder / "dog" / "3.png").read_bytes()
    for broken in (whole[: len(whole) // 2], b"no image", b""):
        (folder / "dog" / "3.png").write_bytes(broken)
        with pytest.raises(CorruptFile, match=r"3\.png"):
            pofx.load(folder)
    Pillow.fromarray(np.zeros((6, 5), np.uint16)).save(folder / "dog" / "3.png")
    with pytest.raises(BadValue, match="8 bits"):
        pofx.load(folder)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def test_idx_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (30, 4, 4)), rng.integers(0, 256, (10, 4, 4))
    for stem, x in (("train", train), ("t10k", test)):
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx(x[:, 0, 0] % 3))
    for source in (tmp_path, tmp_path / "train-images-idx3-ubyte.gz"):
        data = pofx.load(source)
        assert data.space == Image(4, 4, 1, 256)
        assert np.array_equal(data.test.x[:, 0].numpy(), test)
        assert np.array_equal(data.test.label.numpy(), test[:, 0, 0] % 3)
        assert len(data.train) + len(data.valid) == 30
    alone = read_rows(data.space, None, tmp_path / "train-images-idx3-ubyte.gz", labels=data.labels)
    assert np.array_equal(alone.x[:, 0].numpy(), train)
    assert np.array_equal(alone.label.numpy(), train[:, 0, 0] % 3)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(test))[:-20])
    with pytest.raises(CorruptFile, match="t10k"):
        pofx.load(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(test)[:-20]))
    with pytest.raises(CorruptFile, match="header says 160"):
        pofx.load(tmp_path)


# -- writing and reading back -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".arrow"])
def test_table_round_trip(table: Path, tmp_path: Path, suffix: str) -> None:
    for data in (pofx.load(table), pofx.load("mixed-table", max_rows=300)):
        path = tmp_path / f"rows{suffix}"
        write_rows(data.space, data.train.x, path)
        back = read_rows(data.space, None, path)
        assert torch.equal(back.x.nan_to_num(-1e9), data.train.x.nan_to_num(-1e9))
    given = pofx.load(table, given="label", label="ok")
    write_rows(given.space, given.test.x, path, given.context, given.test.c)
    back = read_rows(given.space, given.context, path)
    assert torch.equal(back.c, given.test.c)


def test_csv_is_plain(tmp_path: Path) -> None:
    space = Table(
        (
            Category("a", ("x", "y z"), nullable=True),
            Integer("n", 0, 9),
            Integer("d", 0, 9, date="d"),
            Real("g", step=0.1),
            Integer("t", 0, 9, date="s"),
        )
    )
    x = torch.tensor([[0, 3, 365, 3 * 0.1, 60], [math.nan, 4, 0, -7 * 0.1, 0]], dtype=torch.float64)
    write_rows(space, x, tmp_path / "x.csv")
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[:2] == ["a,n,d,g,t", "x,3,1971-01-01,0.3,1970-01-01 00:01:00"]
    assert lines[2] == ",4,1970-01-01,-0.7,1970-01-01 00:00:00"


def test_images_round_trip(tmp_path: Path) -> None:
    digits = pofx.load("digits", given="label")
    part = digits.test
    for place in (tmp_path / "png", tmp_path / "x.npz"):
        write_rows(digits.space, part.x, place, digits.context, part.c)
        back = read_rows(digits.space, digits.context, place)
        key = lambda p: (p.x.flatten(1).double() @ torch.linspace(1, 2, 64).double()).sort().values  # noqa: E731
        assert torch.allclose(key(back), key(part))
        assert torch.equal(back.c.sort().values, part.c.sort().values)
    with pytest.raises(CannotSave, match="not an empty folder"):
        write_rows(digits.space, part.x, tmp_path / "png")
    with pytest.raises(WrongShape):
        read_rows(Image(7, 8, 1, 17), None, tmp_path / "x.npz")


def test_scores_keep_the_order(tmp_path: Path) -> None:
    columns = {"row": torch.tensor([2, 0, 1]), "log_prob": torch.tensor([-1.5, -2.0, 0.25]), "kind": ["Exact"] * 3}
    write_columns(tmp_path / "s.parquet", columns)
    assert pq.read_table(tmp_path / "s.parquet").to_pydict()["row"] == [2, 0, 1]
    write_columns(tmp_path / "s.csv", columns)
    assert (tmp_path / "s.csv").read_text() == "row,log_prob,kind\n2,-1.5,Exact\n0,-2,Exact\n1,0.25,Exact\n"
    with pytest.raises(UsageError, match="which format"):
        write_columns(tmp_path / "s.txt", columns)
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotSave):
        write_columns(tmp_path / "file" / "s.csv", columns)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "s.csv", "s.parquet"]  # nothing half-written


def test_disk_full(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    from pofx.core.files import replacing

    with pytest.raises(CannotSave, match="No space left"), replacing(tmp_path / "x.csv"), open("/dev/full", "w") as f:
        f.write("x" * 100_000)
    assert not list(tmp_path.iterdir())


def test_new_rows_by_name(table: Path, tmp_path: Path) -> None:
    data = pofx.load(table, drop=["name"])
    new = tmp_path / "new.csv"
    good = "height,weight,age,city,ok,constant,when,extra\n"
    good += "0.5,61.0,,Rome,true,7,2025-02-01,1\n-1,50.5,33,,false,7,2024-01-01,2\n"
    new.write_text(good)
    part = read_rows(data.space, None, new)
    assert part.x.shape == (2, 7)
    assert part.rows.tolist() == [0, 1]
    assert part.x[:, 2].tolist() == [0.5, -1.0]
    for old, bad, error, said in (
        ("Rome", "Roma", BadValue, "'city' holds 'Roma' in row 0"),
        ("61.0", "heavy", BadValue, "'weight' holds 'heavy' in row 0"),
        ("61.0", "", BadValue, "'weight' is missing in row 0"),
        ("61.0", "inf", BadValue, "'weight' is infinite"),
        ("33", "33.5", BadValue, "'age' holds 33.5 in row 1"),
        ("true", "maybe", BadValue, "'ok' holds 'maybe'"),
        ("2025-02-01", "soon", BadValue, "'when' holds 'soon'"),
        ("weight", "wieght", WrongShape, "no column 'weight'.*Did you mean wieght"),
    ):
        new.write_text(good.replace(old, bad))
        with pytest.raises(error, match=said):
            read_rows(data.space, None, new)
    new.write_text(good.replace("61.0", "61.04"))
    with pytest.warns(UserWarning, match="1 of 2 values were rounded to its resolution 0.1"):
        assert read_rows(data.space, None, new).x[0, 1] == 61.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = read_rows(data.space, None, table)
    assert torch.equal(again.x.nan_to_num(-1), rows_of(data).nan_to_num(-1))
    with pytest.raises(WrongShape, match="table"):
        read_rows(data.space, None, np.zeros((2, 4, 4)))


def test_one_row_from_spelling(table: Path) -> None:
    context = pofx.load(table, given="city,when,weight").context
    row = encode_row(context, {"when": "2024-01-02", "weight": "60.5"})
    assert row.tolist()[1:] == [19724.0, 60.5]
    assert math.isnan(row[0])
    with pytest.raises(UsageError, match="lacking"):
        encode_row(context, {"city": "Rome"})
    with pytest.raises(UsageError, match="no column 'cty'"):
        encode_row(context, {"cty": "Rome"})
    with pytest.raises(BadValue, match="'Roma'"):
        encode_row(context, {"city": "Roma", "when": "2024-01-02", "weight": "60.5"})


# -- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"", EmptyData, "is empty"),
        (b"\n\n", EmptyData, "is empty"),
        (b"a,b\n", EmptyData, "no rows"),
        (b"a,b\n1,2\n3,4,5\n6,7\n", RaggedTable, "line 3: 3 fields where the first line has 2"),
        (b'a,b\n"x\ny",2\n3\n', RaggedTable, "line 4: 1 fields"),
        (b"a,b\n1,\n2,?\n3,NA\n", BadValue, "'b' has no value.*--drop b"),
        (b"a,b\n1,2\n2,inf\n3,4\n", BadValue, "'b' is infinite .inf. in row 1"),
        (b"a,a\n1,2\n", BadValue, "2 columns named 'a'"),
        (b"a,b\n1,x\n2,\xe9\n", BadValue, "bytes that are not UTF-8 in line 3"),
        (b"a,\xe9\n1,2\n", CorruptFile, "not UTF-8"),
        (b"a,b\n1,\0\0\0\n", CorruptFile, "neither text"),
        (gzip.compress(b"a,b\n1,2\n" * 1000)[:-30], CorruptFile, "gzip"),
        (b"PAR1 and then nothing", CorruptFile, "Parquet"),
        (b"ARROW1 and then nothing", CorruptFile, "Arrow"),
        (b"\x93NUMPY and then nothing", CorruptFile, "NumPy"),
        (b"PK\x03\x04 and then nothing", CorruptFile, "NumPy"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, error: type[Exception], said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(error, match=said):
        pofx.load(path)


def test_truncated_parquet_and_strange_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": np.arange(5000.0) ** 0.5}), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CorruptFile, match=r"x\.parquet"):
        pofx.load(path)
    with pytest.raises(BadValue, match=r"'b' holds list.*--drop b"):
        pofx.load(pa.table({"a": [1.0, 2.0, 3.0], "b": [[1], [2], [3]]}))
    big = pofx.load(pa.table({"id": [2**60 + i for i in range(200)], "a": np.arange(200.0) ** 0.5}))
    assert [c.name for c in big.space.columns] == ["a"]  # float64 would merge neighbouring identifiers
    with pytest.raises(MissingSource, match=r"people\.csv|no file"):
        pofx.load(tmp_path / "nothing.csv")
