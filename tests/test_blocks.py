"""Tables beyond memory: what is read in blocks is what would be read at once, and families learn the same from it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import pofx
from pofx.cli import main
from pofx.core import memory
from pofx.core.abilities import Rows
from pofx.core.errors import BadValue, CannotSave, CorruptFile, OutOfMemory, RaggedTable, UsageError
from pofx.data import blocks, columnar
from pofx.data.blocks import BlockRows, ColumnFile
from pofx.data.digest import digest
from pofx.evaluate.likelihood import mean_log_prob
from pofx.families.mixture import em
from pofx.families.mixture import whitening as mixture

N = 3000
LITTLE = 300_000  # bytes: too few for the table, enough for a column at a time


def columns(n: int = N) -> dict[str, pa.Array]:
    """Every type of column; some values are missing, one column follows from two others, some rows repeat."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=n), rng.gamma(2.0, size=n)
    days = np.datetime64("2020-01-01") + np.sort(rng.integers(0, 900, n))
    table = {
        "a": pa.array(a),
        "b": pa.array(b, mask=rng.random(n) < 0.1),
        "sum": pa.array(2 * a + np.where(rng.random(n) < 2, b, 0)),
        "count": pa.array(rng.poisson(3, n), mask=rng.random(n) < 0.02),
        "price": pa.array(np.round(rng.gamma(3.0, 20, n), 2)),
        "colour": pa.array(rng.choice(["red", "green", "blue"], n)),
        "yes": pa.array(rng.random(n) < 0.3),
        "day": pa.array(days),
    }
    rows = np.append(np.arange(n - 5), np.arange(5))
    return {name: column.take(pa.array(rows)) for name, column in table.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("blocks") / "big.parquet"
    pq.write_table(pa.table(columns()), path, row_group_size=500)
    return path


@pytest.fixture(scope="module")
def both(file):
    """The same table at once, and in blocks."""
    return pofx.load(file), pofx.load(file, memory=LITTLE)


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=-1e9), b.nan_to_num(nan=-1e9))


# -- reading ---------------------------------------------------------------------------------------------------


def test_in_blocks_as_at_once(both):
    whole, in_blocks = both
    assert not whole.train.beyond_memory
    assert in_blocks.train.beyond_memory
    assert in_blocks.space == whole.space
    assert in_blocks.split == whole.split
    assert in_blocks.dependent == whole.dependent == ("sum",)
    [note] = set(in_blocks.notes) - set(whole.notes)
    assert "3,000 rows of 8 columns" in note
    assert "in blocks from a temporary file" in note
    assert [n for n in in_blocks.notes if n != note] == [*whole.notes]
    assert in_blocks.describe() == whole.describe()
    assert in_blocks.digest == whole.digest, "a run may be resumed where memory is larger"
    for name in ("train", "valid", "test"):
        a, b = getattr(whole, name), getattr(in_blocks, name)
        assert torch.equal(a.rows, b.rows)
        assert equal(a.x, b.read().x)
        assert equal(a[10:20].x, b[10:20].read().x)


@pytest.mark.parametrize("how", [{"given": "a,colour"}, {"target": "colour"}, {"given": "label", "label": "yes"}])
def test_roles_in_blocks(file, how):
    whole, in_blocks = pofx.load(file, **how), pofx.load(file, memory=LITTLE, **how)
    assert (in_blocks.space, in_blocks.context, in_blocks.labels) == (whole.space, whole.context, whole.labels)
    assert digest(in_blocks.train) == digest(whole.train)
    assert equal(in_blocks.test.read().c, whole.test.c)


def test_a_part_of_the_rows_in_blocks(file):
    whole, in_blocks = (pofx.load(file, max_rows=2000, seed=3, **how) for how in ({}, {"memory": LITTLE}))
    assert len(in_blocks.train) == 1600
    assert in_blocks.digest == whole.digest


def test_rows_of_a_file():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10_000, 3))
    stored = ColumnFile(len(values))
    for column in values.T:
        stored.append(column)
    rows = BlockRows(stored, (0, 1, 2))
    protocol: Rows = rows
    assert len(protocol) == 10_000
    few, many = torch.tensor([9_999, 3, 3, 5_000]), torch.randperm(10_000)[:8000]
    for index in (few, many, slice(20, 5000), slice(9_990, None), slice(0, 0), torch.arange(10_000) % 7 == 0):
        assert np.array_equal(rows[index], values[index.numpy() if isinstance(index, torch.Tensor) else index])
    with pytest.raises(IndexError, match="Rows 3 to 10000 of 10000"):
        rows[torch.tensor([3, 10_000])]
    part = rows.of([2, 0]).take(many)
    assert np.array_equal(part[5:50], values[many[5:50].numpy()][:, [2, 0]])
    assert np.array_equal(part.take(slice(7, 9))[:], values[many[7:9].numpy()][:, [2, 0]])
    assert np.array_equal(part[:, 1], values[many.numpy(), 0])
    assert part.shape == (8000, 2)


def test_where_a_table_does_not_fit(monkeypatch):
    """The limit is what is free, or what is asked for."""
    assert blocks.beyond(1000, 10, "1MB") is None
    assert "of 10 columns" in blocks.beyond(1000, 10, "0.3MB")
    monkeypatch.setattr(blocks, "available", lambda: 300_000)
    assert "are free" in blocks.beyond(1000, 10, None)
    with pytest.raises(OutOfMemory, match="10,000 rows are too many: one column of them takes"):
        blocks.beyond(10_000, 10, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("200m", 2 * 10**8), ("77", 77), (12, 12), ("3kb", 3000)],
)
def test_amounts_of_memory(text, size):
    assert memory.parse(text) == size


@pytest.mark.parametrize("text", ["", "much", "4XB", "-1GB", "0", "GB"])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(UsageError, match="no amount of memory"):
        memory.parse(text)


def test_a_limit_on_address_space_counts(monkeypatch):
    import resource

    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 2**24, -1))
    assert memory.available() <= 2**24


def test_a_limit_of_a_container_counts_without_cached_files(tmp_path, monkeypatch):
    for name, text in {
        "memory.max": "9000",
        "memory.current": "8000",
        "memory.stat": "anon 5\ninactive_file 700",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "GROUPS", [(tmp_path, *memory.GROUPS[0][1:])])
    assert memory.available() == 1700
    (tmp_path / "memory.max").write_text("max")
    assert memory.available() > 10**6


def test_a_full_disk_is_named(file, monkeypatch):
    def full(self, values):
        raise OSError(28, "No space left on device")

    class Full:
        write = full

    monkeypatch.setattr(blocks.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(CannotSave, match="No space left on device.*TMPDIR"):
        pofx.load(file, memory=LITTLE)


def test_whitened_rows_are_made_once(monkeypatch):
    """EM reads them from a file in later sweeps, a weight of its own for each block."""
    weight, made = torch.rand(1000, dtype=torch.float64), []

    def make():
        made.append(0)
        for i in range(0, 1000, 300):
            z = torch.randn(2, len(weight[i : i + 300]))
            yield mixture.Rows(z, torch.zeros(z.shape[1], 0), weight[i : i + 300], None, torch.arange(2))

    spool = em.Spool(make)
    next(iter(spool))  # a pass that is broken off
    first, second, third = list(spool), list(spool), list(spool)
    assert len(made) == 2
    assert [len(r.weight) for r in third] == [300, 300, 300, 100]
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a.z, b.z)
        assert torch.equal(b.z, c.z)
        assert torch.equal(a.weight, c.weight)
    assert spool.end < 2 * (4 * 2000 + 8 * 1000)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(em.pickle, "dump", full)
    with pytest.raises(CannotSave, match="No space left on device.*TMPDIR"):
        list(em.Spool(make))


def test_text_that_does_not_fit_is_named_before_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,2.5\n" * 100)
    monkeypatch.setattr(pofx.data.read, "available", lambda: 500)
    with pytest.raises(OutOfMemory, match="t.csv is .* of text, .*Write it as Parquet"):
        pofx.load(tmp_path / "t.csv")


def test_memory_that_runs_out_is_named(file, monkeypatch):
    def read(*_, **__):
        raise pa.ArrowMemoryError("malloc failed")

    monkeypatch.setattr(pq.ParquetFile, "read", read)
    with pytest.raises(CorruptFile, match="malloc failed"):  # where a column has room, the file asks for too much
        pofx.load(file)
    monkeypatch.setattr(columnar, "available", lambda: 8 * N)
    with pytest.raises(OutOfMemory, match="Reading the data needs more memory than there is: .*in blocks"):
        pofx.load(file)


def test_only_tables_have_blocks():
    with pytest.raises(UsageError, match="Only tables are read in blocks"):
        pofx.load("digits", memory="4GB")


# -- many files ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same rows in three files, the tenth of them last, beside a file of another kind."""
    place, table = tmp_path_factory.mktemp("parts"), pa.table(columns())
    for k, (start, stop) in {1: (0, 700), 2: (700, 2500), 10: (2500, N)}.items():
        pq.write_table(table.slice(start, stop - start), place / f"part{k}.parquet")
    return place


def test_a_folder_and_a_pattern_are_one_table(folder, both):
    for source in (folder, f"{folder}/*.parquet", f"file://{folder}", f"file://{folder}/part*.parquet"):
        data = pofx.load(source, memory=LITTLE)
        assert data.digest == both[0].digest, source
        assert data.name == folder.name.partition(".")[0] or "://" in str(source)
    (folder / "notes.txt").write_text("not a table")
    (folder / "_temporary.parquet").write_text("what a writer left")
    assert any("1 of 4 files were left out" in note for note in pofx.load(f"{folder}/*").notes)


def test_an_address_of_fsspec(file, both):
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://there/big.parquet", "wb") as there:
        there.write(file.read_bytes())
    data = pofx.load("memory://there/big.parquet", memory=LITTLE)
    assert data.digest == both[0].digest
    assert (data.name, data.source) == ("big", "memory://there/big.parquet")
    with pytest.raises(pofx.core.errors.MissingSource, match="no file memory://nowhere"):
        pofx.load("memory://nowhere/*.parquet")
    with pytest.raises(pofx.core.errors.MissingSource, match="cannot be opened: Protocol not known: nix"):
        pofx.load("nix://there/big.parquet")


def test_files_that_make_no_table(tmp_path):
    pq.write_table(pa.table({"a": [1, 2], "b": [1, 2]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1, 2], "c": [1, 2]}), tmp_path / "2.parquet")
    with pytest.raises(RaggedTable, match="2.parquet has the columns a, c; .*1.parquet has a, b"):
        pofx.load(tmp_path)
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), tmp_path / "2.parquet")
    with pytest.raises(BadValue, match="Column 'b' is of int64, string in the files of"):
        pofx.load(tmp_path)


# -- learning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["independent", "markov", "histogram"])
def test_counting_is_the_same(file, family):
    """Counts add up to the same tables, so that the numbers are the same to the last bit."""
    how = {"drop": ["sum", "day", "price"]} if family == "histogram" else {}
    data = [pofx.load(file, **how, **m) for m in ({}, {"memory": LITTLE * 4 // 5})]
    assert [d.train.beyond_memory for d in data] == [False, True]
    fits = [pofx.fit(d, family) for d in data]
    for (name, a), b in zip(fits[0].model.state_dict().items(), fits[1].model.state_dict().values(), strict=True):
        assert equal(a.double(), b.double()), name


def test_trees_are_the_same(file):
    data = [pofx.load(file, **m) for m in ({}, {"memory": LITTLE * 4 // 5})]
    assert [d.train.beyond_memory for d in data] == [False, True]
    fits = [pofx.fit(d, "trees", steps=8) for d in data]
    for (name, a), b in zip(fits[0].model.state_dict().items(), fits[1].model.state_dict().values(), strict=True):
        assert equal(a.double(), b.double()), name


@pytest.mark.parametrize("how", [{}, {"drop": ["colour", "yes", "b", "count"]}, {"given": "a,colour"}])
@pytest.mark.parametrize("family", ["gaussian", "gmm"])
def test_em_agrees_to_rounding(file, family, how):
    options = {"components": 3} if family == "gmm" else {}
    data = [pofx.load(file, **how, **m) for m in ({}, {"memory": LITTLE * 4 // 5})]
    assert [d.train.beyond_memory for d in data] == [False, True]
    fits = [pofx.fit(d, family, steps=4, options=options) for d in data]
    for (name, a), b in zip(fits[0].model.state_dict().items(), fits[1].model.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8, equal_nan=True), name
    a, b = (mean_log_prob(run.model, d.test) for run, d in zip(fits, data, strict=True))
    assert a.nats == pytest.approx(b.nats, rel=1e-9)


def test_a_net_looks_at_a_sample_and_trains_on_all_rows(file, monkeypatch):
    monkeypatch.setattr(pofx.train.fit, "LOOK", 800)
    run = pofx.fit(pofx.load(file, memory=LITTLE), "made", steps=3)
    [note] = [n for n in run.info["data"]["notes"] if "drawn by seed" in n]
    assert "made took its scales and start from 100 of the 2,400 training rows, drawn by seed 0" in note
    monkeypatch.undo()
    whole, in_blocks = (pofx.fit(pofx.load(file, **m), "made", steps=3) for m in ({}, {"memory": LITTLE}))
    assert in_blocks.log[-1]["valid"] == pytest.approx(whole.log[-1]["valid"], abs=0.05)


def test_processes_do_not_share_blocks(file):
    with pytest.raises(UsageError, match="by one process, not by 2"):
        pofx.fit(pofx.load(file, memory=LITTLE), "gmm", processes=2)
    with pytest.raises(UsageError, match="stay in the process"):
        pickle.dumps(pofx.load(file, memory=LITTLE).train)


def test_commands_work_on_blocks(file, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", str(file), "gmm", "--memory", "300KB", "--steps", "2", "--out", str(run), "--json"]) == 0
    fitted = json.loads(capsys.readouterr().out)
    assert main(["log-prob", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nats"] == pytest.approx(fitted["test"]["nats"])
    assert main(["resume", str(run), "--quiet"]) == 0
    assert main(["encode", str(run), "--json"]) == 0
    capsys.readouterr()
    assert main(["data", str(file), "--memory", "300KB"]) == 0
    shown = capsys.readouterr()
    assert "colour" in shown.out
    assert "in blocks" in " ".join((shown.out + shown.err).split())
    assert main(["report", str(run), "--quiet"]) == 0
    assert (run / "report.html").exists()
