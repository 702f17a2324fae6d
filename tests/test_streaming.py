"""Files of tables scored, and samples drawn, block by block: the same numbers in any blocks and on any engine."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pofx import cluster
from pofx.cli import main
from pofx.core.errors import BadValue, CorruptFile, UsageError
from pofx.core.likelihood import Exact, LowerBound
from pofx.data import pieces
from pofx.data.pieces import pieces_of, tables_at
from pofx.data.rows import read_rows
from pofx.evaluate import stream
from pofx.evaluate.likelihood import Tally
from pofx.evaluate.stream import Drawing, Evaluation, Stream, draw, in_order
from pofx.spaces import Real, Table
from pofx.train.run import read_run

SIZES = (300, 170, 230)  # rows of the files
ROWS = sum(SIZES)


def rows(n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    grid = np.round(rng.normal(size=n), 1)
    return {"a": rng.normal(size=n), "g": grid, "k": rng.integers(3, size=n), "c": rng.choice(list("pqr"), n)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs of an exact family and of one that draws, and a table in three files with small row groups."""
    root = tmp_path_factory.mktemp("streaming")
    (root / "table").mkdir()
    for k, n in enumerate(SIZES):
        table = pa.table(rows(n, k) | {"remark": np.arange(n)})
        pq.write_table(table, root / "table" / f"part-{k}.parquet", row_group_size=90)
    (root / "table" / "_SUCCESS").write_text("")
    source = root / "fit.parquet"
    pq.write_table(pa.table(rows(400, 9)), source)
    for family in ("made", "vae"):
        argv = ["fit", str(source), family, "--steps", "3", "--out", str(root / family), "--quiet"]
        assert main(argv) == 0
    return root


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(pieces, "BLOCK", 64)
    monkeypatch.setattr(stream, "DRAWN", 50)


def whole(place: Path) -> torch.Tensor:
    """All rows of the table at once [N, D]."""
    tables = [pq.read_table(place / "table" / f"part-{k}.parquet") for k in range(len(SIZES))]
    run = read_run(place / "made")
    return read_rows(run.model.space, None, pa.concat_tables(tables), notes=[]).x


def log_prob(capsys, *argv: str) -> dict:
    capsys.readouterr()
    assert main(["log-prob", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# -- scores in one process -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["table", "table/*.parquet"])
def test_scores_of_files_are_those_of_all_rows_at_once(place, tmp_path, capsys, small_blocks, source):
    x = whole(place)
    nats = read_run(place / "made").model.log_prob(x).nats.double().detach().numpy()
    found = log_prob(capsys, str(place / "made"), str(place / source), "--out", str(tmp_path / "s.parquet"))
    written = pq.read_table(tmp_path / "s.parquet").to_pydict()
    assert written["row"] == [*range(ROWS)]
    np.testing.assert_allclose(written["log_prob"], nats, rtol=1e-5)
    assert set(written["kind"]) == {"Exact"}
    assert found["rows"] == ROWS
    assert found["text"] == f"= {nats.mean():.3f} ± {nats.std(ddof=1) / math.sqrt(ROWS):.3f} nats"


def test_files_come_in_the_order_in_which_they_are_loaded(tmp_path):
    for k in (10, 9, 1):
        pq.write_table(pa.table({"a": [k + 0.25]}), tmp_path / f"part-{k}.parquet")
    loaded = read_rows(Table((Real("a"),)), None, str(tmp_path)).x.flatten().tolist()
    assert [f"part-{v:.0f}.parquet" for v in loaded] == [f.rpartition("/")[2] for f in tables_at(str(tmp_path), [])]
    assert loaded == [1.25, 9.25, 10.25]


def test_a_folder_gets_a_file_of_scores_for_each(place, tmp_path, capsys):
    log_prob(capsys, str(place / "made"), str(place / "table"), "--out", str(tmp_path / "all.csv"))
    log_prob(capsys, str(place / "made"), str(place / "table"), "--out", str(tmp_path / "parts"))
    parts = [pq.read_table(tmp_path / "parts" / f"part-{k}.parquet") for k in range(len(SIZES))]
    assert [p["row"].to_pylist() for p in parts] == [[*range(n)] for n in SIZES]
    together = pa.concat_tables(parts)["log_prob"].to_pylist()
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert [float(line.split(",")[1]) for line in lines[1:]] == together
    assert main(["log-prob", str(place / "made"), str(place / "table"), "--out", str(tmp_path / "parts")]) == 5


def test_equal_rows_of_other_blocks_have_noise_of_their_own(place, tmp_path):
    """And a source of one block has the noise that it has in Python."""
    model, row = read_run(place / "vae").model, pa.table({k: v[:1] for k, v in rows(1, 5).items()})
    pq.write_table(pa.concat_tables([row] * 6), tmp_path / "t.parquet", row_group_size=2)
    found = pieces_of([str(tmp_path / "t.parquet")], model.space, None)
    evaluation = Evaluation(model, None, 7, None, {})
    nats = torch.cat([lik.nats for _, lik in Stream(evaluation, found)])
    assert len(nats.unique()) == 6
    generator = torch.Generator().manual_seed(7)
    x = read_rows(model.space, None, pa.concat_tables([row] * 2), notes=[]).x
    assert torch.equal(model.log_prob(x, generator=generator).nats, nats[:2])


def test_blocks_are_read_when_they_are_wanted(place, monkeypatch):
    """What was scored is forgotten, and what comes later not read yet: memory does not grow with the files."""
    seen = []
    monkeypatch.setattr(stream, "blocks", lambda piece, *a, **k: seen.append(piece) or pieces.blocks(piece, *a, **k))
    model, notes = read_run(place / "made").model, []
    found = pieces_of(tables_at(str(place / "table"), notes), model.space, None)
    for done, _ in enumerate(Stream(Evaluation(model, None, 0, None, {}), found), 1):
        assert len(seen) == done
    assert done == len(found) == 4 + 2 + 3
    assert notes == []


@pytest.mark.parametrize("kind", [Exact, LowerBound])
def test_mean_and_errors_of_blocks_are_those_of_all_rows(kind):
    """Also where the spread is small beside the mean, which a sum of squares would lose."""
    rng = np.random.default_rng(0)
    nats, noise = torch.from_numpy(1e8 + rng.normal(size=1000)), torch.from_numpy(rng.random(1000))
    space = Table((Real("a"), Real("b")))
    tally = Tally(space)
    for part in torch.arange(1000).split([1, 299, 600, 100]):
        extra = () if kind is Exact else (noise[part], 5)
        tally.add(kind(nats[part], space.measure, *extra))
    score = tally.mean()
    assert score.nats == pytest.approx(nats.mean().item(), rel=1e-15)
    assert score.se == pytest.approx(nats.std().item() / math.sqrt(1000), rel=1e-6)
    assert score.rate_se == pytest.approx(score.se / 2)
    assert score.mc_se == pytest.approx(0 if kind is Exact else noise.square().sum().sqrt().item() / 1000)
    tally.add(kind(torch.tensor([-math.inf, 0.0]), space.measure, *(() if kind is Exact else (noise[:2], 5))))
    assert (tally.mean().nats, tally.mean().se, tally.mean().impossible) == (-math.inf, None, 1)


def test_notes_are_told_once_and_add_up(place, tmp_path, capsys, small_blocks):
    table = pa.table(rows(200, 3))
    off = table.set_column(1, "g", pa.array(np.where(np.arange(200) % 2 == 0, 0.13, 0.1)))
    pq.write_table(off.append_column("remark", table["a"]), tmp_path / "t.parquet")
    (tmp_path / "folder").mkdir()
    (tmp_path / "t.parquet").rename(tmp_path / "folder" / "t.parquet")
    (tmp_path / "folder" / "README.md").write_text("what this is")
    notes = log_prob(capsys, str(place / "made"), str(tmp_path / "folder"))["notes"]
    assert len(notes) == 3
    assert "README.md" in notes[0]
    assert notes[1] == "Columns not used: remark."
    assert "100 of 200 values were rounded" in notes[2]
    assert "0.13 in row 0" in notes[2]


def test_numbers_that_are_spelled_are_read_by_all_of_their_column(place, tmp_path, capsys, small_blocks):
    """In the first row groups alone 1,234 is a thousand and more; the last row says that it is not."""
    values, table = np.append(1.234 + np.arange(149) % 7, 2.5), rows(150, 4)
    spelled = [f"{v:.4g}".replace(".", ",") for v in values]
    pq.write_table(pa.table(table | {"a": spelled}), tmp_path / "spelled.parquet", row_group_size=50)
    pq.write_table(pa.table(table | {"a": values}), tmp_path / "plain.parquet", row_group_size=150)
    one, other = (log_prob(capsys, str(place / "made"), str(tmp_path / f"{n}.parquet")) for n in ("spelled", "plain"))
    assert one["nats"] == other["nats"]


def damaged(place: Path, folder: Path) -> None:
    """The table again, with an unknown value in row 201 of its last file, and one in row 5 of a later one."""
    folder.mkdir()
    for k, n in enumerate((*SIZES, 20)):
        table = rows(n, k)
        if k >= 2:
            table["c"][201 if k == 2 else 5] = "z"
        pq.write_table(pa.table(table), folder / f"part-{k}.parquet", row_group_size=90)


def test_a_damaged_row_is_named_by_its_file_and_number(place, tmp_path, capsys, small_blocks):
    damaged(place, tmp_path / "t")
    (tmp_path / "s.csv").write_text("as it was")
    assert main(["log-prob", str(place / "made"), str(tmp_path / "t"), "--out", str(tmp_path / "s.csv")]) == 3
    told = capsys.readouterr().err
    assert "part-2.parquet: Column 'c' holds 'z' in row 201" in told
    assert (tmp_path / "s.csv").read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.csv", "t"]


def test_a_damaged_page_is_named(place, tmp_path):
    data = bytearray((place / "table" / "part-1.parquet").read_bytes())
    data[4:100] = b"\xff" * 96  # the header of the first page
    (tmp_path / "t.parquet").write_bytes(data)
    model = read_run(place / "made").model
    found = pieces_of([str(tmp_path / "t.parquet")], model.space, None)
    with pytest.raises(CorruptFile, match=r"t\.parquet cannot be read as Parquet"):
        list(Stream(Evaluation(model, None, 0, None, {}), found))


def test_an_interrupted_stream_leaves_nothing(place, tmp_path, monkeypatch):
    scored = Evaluation.__call__

    def interrupted(self, piece):
        if piece.number:
            raise KeyboardInterrupt
        return scored(self, piece)

    monkeypatch.setattr(Evaluation, "__call__", interrupted)
    assert main(["log-prob", str(place / "made"), str(place / "table"), "--out", str(tmp_path / "s.parquet")]) == 130
    assert [*tmp_path.iterdir()] == []


# -- samples -------------------------------------------------------------------------------------------------


def test_a_sample_of_one_block_is_that_of_python(place, tmp_path):
    model = read_run(place / "made").model
    assert main(["sample", str(place / "made"), "40", "--seed", "3", "--out", str(tmp_path / "x.parquet")]) == 0
    x = model.sample(40, generator=torch.Generator().manual_seed(3))
    back = read_rows(model.space, None, tmp_path / "x.parquet").x
    assert torch.allclose(back, x, rtol=0, atol=1e-12)  # decimals come back as the nearest double


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_a_long_sample_is_written_block_by_block(place, tmp_path, small_blocks, suffix):
    model, out = read_run(place / "made").model, tmp_path / f"x{suffix}"
    assert main(["sample", str(place / "made"), "120", "--out", str(out)]) == 0
    parts = [x for x, _ in draw(Drawing(model.given(), None, 0), 120)]
    assert [len(p) for p in parts] == [50, 50, 20]
    assert torch.allclose(read_rows(model.space, None, out).x, torch.cat(parts), rtol=0, atol=1e-12)
    assert not torch.equal(parts[0], parts[1])


# -- on a cluster --------------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.parametrize("family", ["made", "vae"])
def test_a_cluster_writes_what_one_process_does(place, tmp_path, ray, family, capfd):
    commands = (["log-prob", str(place / family), str(place / "table")], ["sample", str(place / family), "150"])
    for name, argv in zip(("log-probs", "draws"), commands, strict=True):
        told = []
        for engine in ([], ["--cluster", "local"]):
            out = str(tmp_path / f"{name}{len(engine)}.parquet")
            capfd.readouterr()
            assert main([*argv, "--out", out, *engine]) == 0
            printed = capfd.readouterr()
            told.append((printed.out, len(printed.err.splitlines())))
        assert told[0] == told[1]
        assert (tmp_path / f"{name}0.parquet").read_bytes() == (tmp_path / f"{name}2.parquet").read_bytes()


@pytest.mark.cluster
def test_a_damaged_row_is_named_by_a_cluster_too(place, tmp_path, ray, capsys):
    damaged(place, tmp_path / "t")
    argv = ["log-prob", str(place / "made"), str(tmp_path / "t"), "--out", str(tmp_path / "s"), "--cluster", "local"]
    assert main(argv) == 3
    assert "part-2.parquet: Column 'c' holds 'z' in row 201" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


@pytest.mark.cluster
def test_the_job_of_a_worker_that_dies_is_done_again(tmp_path, ray):
    def square(job: int) -> int:
        if job == 3 and not (tmp_path / "dead").exists():
            (tmp_path / "dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job**2

    assert [*in_order(square, range(8), "local")] == [k**2 for k in range(8)]
    assert (tmp_path / "dead").exists()


@pytest.mark.cluster
def test_errors_of_the_project_pass_between_processes_as_they_are(ray):
    def fails(job: int) -> int:
        raise BadValue("the problem", "the remedy")

    with pytest.raises(BadValue) as caught:
        list(in_order(fails, [1], "local"))
    assert (caught.value.problem, caught.value.remedy) == ("the problem", "the remedy")


@pytest.mark.cluster
def test_a_reader_that_stops_has_begun_few_of_many_jobs(tmp_path, ray):
    def touch(job: int) -> int:
        (tmp_path / str(job)).touch()
        return job

    answers = in_order(touch, range(50), "local")
    assert next(answers) == 0
    answers.close()
    assert {int(p.name) for p in tmp_path.iterdir()} <= set(range(2 * stream.AHEAD))  # of two workers


# -- where there is no cluster -------------------------------------------------------------------------------


@pytest.fixture
def not_connected(monkeypatch):
    """As if nobody had connected to Ray yet."""
    module = pytest.importorskip("ray", reason="the extra pofx[ray] is not installed")
    monkeypatch.setattr(module, "is_initialized", lambda: False)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'pofx\[ray\]'"), cluster.connected("local"):
        pass


def test_an_address_where_nothing_listens_is_named(not_connected):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        for there in (address, f"ray://{address}"):
            with pytest.raises(UsageError, match=f"No cluster answers at '{there}'.*ray start"):
                cluster.connected(there).__enter__()


def test_an_address_where_something_else_listens_is_named(not_connected, monkeypatch):
    monkeypatch.setattr(cluster, "HEALTH", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UsageError, match="nothing that listens there is a Ray cluster"):
            cluster.connected(f"127.0.0.1:{other.getsockname()[1]}").__enter__()


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["log-prob", "RUN"], "without a SOURCE"), (["log-prob", "RUN", "digits"], "digits is none")],
)
def test_what_a_cluster_does_not_score_is_named(place, capsys, argv, says):
    argv = [str(place / "made") if a == "RUN" else a for a in argv]
    assert main([*argv, "--cluster", "local"]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
