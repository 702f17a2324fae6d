"""Sequences: archives of trajectories, strokes and piano rolls, tables with a column that tells sequences apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import pofx
from pofx.core.errors import BadValue, EmptyData, UsageError, WrongShape
from pofx.data import sequences
from pofx.data.options import Options
from pofx.data.ragged import RawRagged
from pofx.data.raw import RawTable
from pofx.data.read import read
from pofx.data.rows import read_rows
from pofx.data.sequences import from_arrays, from_table
from pofx.data.split import TEST, TRAIN, VALID
from pofx.data.write import write_rows
from pofx.spaces import Category, Integer, Real, Sequence, Table

rng = np.random.default_rng(0)


def steps_of(raw: RawRagged) -> list[np.ndarray]:
    """Each sequence [L, D], after a check of the whole."""
    batch = raw.rows[:]
    raw.space.check(batch)
    assert isinstance(raw.space, Sequence)
    assert raw.space.length == int(raw.rows.lengths.max()) == batch.shape[1]
    return [x[:n].numpy() for x, n in zip(batch, raw.rows.lengths.tolist(), strict=True)]


# -- archives -----------------------------------------------------------------------------------------


def test_piano_rolls() -> None:
    rolls, arrays = {}, {}
    for part, offsets in (("train", [0, 3, 3, 10]), ("valid", [0, 4]), ("test", [1, 3])):
        rolls[part] = rng.integers(0, 2, (10, 88)).astype(np.uint8)
        arrays |= {f"{part}_roll": np.packbits(rolls[part], axis=1), f"{part}_offsets": np.array(offsets)}
    assert sequences.is_sequences(arrays)
    assert not sequences.is_sequences({"x": rolls["train"]})
    raw = from_arrays(arrays, "a.npz", Options())
    assert raw.part is not None
    assert raw.part.tolist() == [TRAIN, TRAIN, VALID, TEST]
    assert [c.name for c in raw.space.step.columns] == [f"key{k}" for k in range(21, 109)]
    assert all(c == Category(c.name, ("0", "1")) for c in raw.space.step.columns)
    assert raw.rows.values.dtype == np.uint8  # eight times smaller than rows of numbers
    train, valid, test = (rolls[p] for p in ("train", "valid", "test"))
    for got, want in zip(steps_of(raw), (train[:3], train[3:], valid[:4], test[1:3]), strict=True):
        assert np.array_equal(got, want)
    assert raw.notes == ["1 sequences of no steps were left out."]
    assert from_arrays(arrays, "a.npz", Options(like=raw.space)).space == raw.space
    with pytest.raises(UsageError, match="no other types"):
        from_arrays(arrays, "a.npz", Options(drop=["key21"]))


def test_strokes() -> None:
    strokes = np.concatenate([rng.integers(-99, 99, (60, 2)), rng.integers(0, 2, (60, 1))], 1).astype(np.int16)
    raw = from_arrays({"train_strokes": strokes, "train_offsets": np.array([0, 25, 60])}, "a.npz", Options())
    dx, dy, pen = raw.space.step.columns
    assert isinstance(dx, Integer)
    assert isinstance(dy, Integer)
    assert pen == Category("pen", ("0", "1"))
    assert np.array_equal(np.concatenate(steps_of(raw)), strokes)
    assert raw.part is not None
    assert raw.part.tolist() == [TRAIN, TRAIN]


def test_episodes() -> None:
    arrays = {
        "action": rng.normal(size=(50, 2)).astype(np.float32), "state": np.round(rng.normal(size=(50, 3)), 1),
        "points": rng.normal(size=(50, 2, 2)), "reward": rng.normal(size=50), "frames": np.zeros((50, 4, 4), np.uint8),
        "episode_ends": np.array([20, 50]), "label": np.array(["won", "lost"]), "version": np.array(3),
    }  # fmt: skip
    raw = from_arrays(arrays, "a.npz", Options())
    names = ["action1", "action2", "state1", "state2", "state3", "points1", "points2", "points3", "points4", "reward"]
    assert [c.name for c in raw.space.step.columns] == names
    assert raw.space.step.columns[0].measure == "lebesgue"
    state = raw.space.step.columns[2]
    assert isinstance(state, Real)
    assert state.step == 0.1
    assert raw.label is not None
    assert raw.label.tolist() == ["won", "lost"]
    assert any("arrays not used: frames" in n for n in raw.notes)
    first, second = steps_of(raw)
    assert np.array_equal(np.concatenate([first, second])[:, 5:9], arrays["points"].reshape(50, 4))
    assert len(first) == 20

    some = from_arrays(arrays, "a.npz", Options(arrays=("state", "action"), types={"state1": "real"}, drop=["state3"]))
    assert [c.name for c in some.space.step.columns] == ["state1", "state2", "action1", "action2"]
    assert some.space.step.columns[0].measure == "lebesgue"
    again = from_arrays(arrays, "a.npz", Options(like=some.space))
    assert again.space == some.space
    assert torch.equal(again.rows[:], some.rows[:])
    with pytest.raises(UsageError, match="no array 'statee' of steps"):
        from_arrays(arrays, "a.npz", Options(arrays=("statee",)))
    with pytest.raises(WrongShape, match="no column 'state1'"):
        from_arrays({k: a for k, a in arrays.items() if k != "state"}, "a.npz", Options(like=some.space))


def test_plain_arrays_and_their_columns() -> None:
    x = rng.normal(size=(30, 2))
    named = {"x": x, "offsets": np.array([0, 10, 30]), "columns": np.array(["u", "v"])}
    raw = from_arrays(named, "a.npz", Options())
    assert [c.name for c in raw.space.step.columns] == ["u", "v"]
    assert np.array_equal(np.concatenate(steps_of(raw)), x)
    assert from_arrays(named, "a.npz", Options(like=raw.space)).space == raw.space
    raw = from_arrays({"x": x[:, 0], "ends": np.array([10, 30])}, "a.npz", Options())
    assert raw.rows[:].shape == (2, 20, 1)
    # what lies before the first sequence or after the last one belongs to none
    raw = from_arrays({"x": x, "offsets": np.array([5, 10, 12])}, "a.npz", Options())
    assert np.array_equal(np.concatenate(steps_of(raw)), x[5:12])


def test_archives_that_do_not_fit() -> None:
    x = rng.normal(size=(30, 2))
    for arrays, said in (
        ({"x": x}, "does not say where sequences end"),
        ({"x": x, "offsets": np.array([0, 31])}, "arrays as long as its sequences: none"),
        ({"x": x, "offsets": np.array([0, 20, 10])}, "offsets does not rise"),
        ({"x": x, "offsets": np.array([0.0, 20.0])}, r"offsets is \[2\] of float64"),
        ({"x": x, "offsets": np.array([0, 30]), "test_offsets": np.array([0, 30])}, "some are of a part, some of none"),
        ({"x": x, "y": x[:25], "offsets": np.array([0, 20])}, r"x \[30, 2\] float64, y \[25, 2\] float64"),
    ):
        with pytest.raises(WrongShape, match=said):
            from_arrays(arrays, "a.npz", Options())
    with pytest.raises(EmptyData, match="no sequence of any length"):
        from_arrays({"x": x, "offsets": np.array([0, 0])}, "a.npz", Options())
    with pytest.raises(BadValue, match="infinite"):
        from_arrays({"x": np.where(x > 1, np.inf, x), "offsets": np.array([0, 30])}, "a.npz", Options())


# -- tables ---------------------------------------------------------------------------------------------


def table(**columns: object) -> RawTable:
    raw = read(pa.table(columns), Options())
    assert isinstance(raw, RawTable)
    return raw


def test_rows_of_one_value_are_a_sequence(tmp_path: Path) -> None:
    episode = ["b"] * 12 + ["a"] * 18 + ["c"]
    v, k = rng.normal(size=31), rng.integers(0, 9, 31)
    raw = from_table(table(episode=episode, v=v, k=k), Options(sequence="episode"))
    assert [c.name for c in raw.space.step.columns] == ["v", "k"]
    assert isinstance(raw.space.step.columns[1], Integer)
    assert raw.rows.lengths.tolist() == [12, 18, 1]  # in the order in which they appear
    assert np.array_equal(np.concatenate(steps_of(raw)), np.stack([v, k], 1))
    assert raw.notes == []

    # rows in any order, from a file; numbers as names of sequences
    path = tmp_path / "t.csv"
    path.write_text("id,v\n" + "\n".join(f"{i % 2},{x}" for i, x in enumerate(v)))
    mixed = read(path, Options())
    assert isinstance(mixed, RawTable)
    raw = from_table(mixed, Options(sequence="id"), "t.csv")
    even, odd = steps_of(raw)
    assert np.array_equal(even[:, 0], v[::2])
    assert np.array_equal(odd[:, 0], v[1::2])
    assert any("brought together" in n for n in raw.notes)

    like = from_table(table(w=v, v=-v, s=episode), Options(sequence="s", like=raw.space))
    assert like.space.step == raw.space.step
    assert np.array_equal(np.concatenate(steps_of(like))[:, 0], -v)
    with pytest.raises(WrongShape, match="no column 'v'"):
        from_table(table(w=v, s=episode), Options(sequence="s", like=raw.space))


def test_a_time_series_is_one_sequence() -> None:
    hours = np.datetime64("2024-01-01T00") + np.arange(50)
    v = np.where(np.arange(50) == 7, math.nan, rng.normal(size=50))
    source = table(date=pa.array(hours.astype("datetime64[s]")), v=pa.array(v, from_pandas=True))
    raw = from_table(source, Options(sequence="rows"))
    assert raw.n == 1
    (got,) = steps_of(raw)
    assert np.array_equal(got[:, 0], v, equal_nan=True)
    assert raw.space.step.columns[0].nullable
    assert any("'date' only goes up" in n for n in raw.notes)
    kept = from_table(source, Options(sequence="rows", types={"date": "integer"}))
    assert [c.name for c in kept.space.step.columns] == ["date", "v"]
    # dates that say more than the order stay
    shuffled = table(date=pa.array(rng.permutation(hours).astype("datetime64[s]")), v=v + 0)
    kept = from_table(shuffled, Options(sequence="rows", order="rows"))
    assert "date" in [c.name for c in kept.space.step.columns]
    # within each sequence from the beginning
    twice = table(date=pa.array(np.tile(hours[:25], 2).astype("datetime64[s]")), v=v, s=[0] * 25 + [1] * 25)
    assert [c.name for c in from_table(twice, Options(sequence="s")).space.step.columns] == ["v"]


def shuffled(clock: object, **options: object) -> tuple[RawRagged, np.ndarray]:
    """Three sequences of eight steps whose rows stand in any order, and their values in the order of time."""
    draw = np.random.default_rng(1)
    v = draw.normal(size=24)
    mixed = draw.permutation(24)
    source = table(**{"who": np.array(list("abc")).repeat(8)[mixed], "v": v[mixed], **clock(mixed)})  # type: ignore
    raw = from_table(source, Options(sequence="who", **options))  # type: ignore[arg-type]
    first = mixed[:1]  # sequences are in the order in which they appear
    for row in mixed:
        if row // 8 not in first // 8:
            first = np.append(first, row)
    return raw, np.concatenate([v[row // 8 * 8 :][:8] for row in first])


@pytest.mark.parametrize("unit", ["D", "s", "ns"])
def test_steps_are_put_in_the_order_of_time(unit: str) -> None:
    def dates(rows: np.ndarray) -> dict[str, object]:
        day = pa.array((np.datetime64("2021-05-01", unit) + rows % 8 * 3), pa.date32() if unit == "D" else None)
        return {"when": day, "born": pa.array(np.datetime64("1990-01-01", "D") - rows // 8)}

    raw, want = shuffled(dates)
    assert np.array_equal(np.concatenate(steps_of(raw))[:, -1], want)
    assert any("Rows were put in the order of 'when' within each sequence" in n for n in raw.notes)
    assert "when" not in [c.name for c in raw.space.step.columns]
    raw, want = shuffled(dates, order="rows", types={"when": "drop", "born": "drop"})
    assert not np.array_equal(np.concatenate(steps_of(raw))[:, -1], want)
    assert not any("were put in the order" in n for n in raw.notes)


@pytest.mark.parametrize("name", ["step", "Time", "t"])
def test_steps_are_put_in_the_order_of_their_numbers(name: str) -> None:
    raw, want = shuffled(lambda rows: {name: rows % 8})
    columns = [c.name for c in raw.space.step.columns]
    assert np.array_equal(np.concatenate(steps_of(raw))[:, columns.index("v")], want)
    assert name in columns  # a number may say more than the order


def test_only_what_tells_the_order_orders() -> None:
    # numbers that repeat within a sequence are no clock; neither are numbers of another name
    for clock in (lambda rows: {"time": rows % 8 // 2}, lambda rows: {"weight": rows % 8}):
        raw, want = shuffled(clock)
        columns = [c.name for c in raw.space.step.columns]
        assert not np.array_equal(np.concatenate(steps_of(raw))[:, columns.index("v")], want)
        assert not any("were put in the order" in n for n in raw.notes)
    raw, want = shuffled(lambda rows: {"weight": rows % 8}, order="weight")
    assert [c.name for c in raw.space.step.columns] == ["v"]
    assert np.array_equal(np.concatenate(steps_of(raw))[:, 0], want)
    # of two clocks that disagree none is chosen
    raw, _ = shuffled(lambda rows: {"step": rows % 8, "tick": -rows})
    assert any("'step' and 'tick' go up and down" in n and "--order COLUMN" in n for n in raw.notes)
    with pytest.raises(UsageError, match="'kind' does not hold a date or a number in every row"):
        shuffled(lambda rows: {"kind": np.array(["x", "y"])[rows % 2]}, order="kind")
    with pytest.raises(UsageError, match="no column 'day' to put rows in order. Columns: v, weight"):
        shuffled(lambda rows: {"weight": rows}, order="day")
    with pytest.raises(UsageError, match="in the order of the arrays"):
        from_arrays({"x": np.zeros(3), "offsets": np.array([0, 3])}, "a.npz", Options(order="x"))
    with pytest.raises(UsageError, match="Only sequences of a table have steps to put in order"):
        pofx.load("iris", order="species")


@pytest.mark.parametrize("sequence", ["who", None])
def test_sampled_sequences_are_read_back(tmp_path: Path, sequence: str | None) -> None:
    """With the options of the data alone, and as they are: few or many, long or short."""
    kind = np.array(list("ab"))[rng.integers(0, 2, 5000)]
    source = table(who=np.arange(5000) // 5, step=np.tile(np.arange(5), 1000), v=rng.normal(size=5000), kind=kind)
    space = from_table(source, Options(sequence="who", order="step")).space
    options = {"sequence": sequence, "order": "step"}
    for lengths in ([3, 1, 300], [2] * 20):
        x = torch.full((len(lengths), max(lengths), 2), math.inf, dtype=torch.float64)
        for row, length in zip(x, lengths, strict=True):
            row[:length] = torch.from_numpy(np.stack([rng.normal(size=length), rng.integers(0, 2, length)], 1))
        for suffix in (".csv", ".parquet"):
            write_rows(space, x, tmp_path / f"s{suffix}", options=options)
            assert pofx.load(tmp_path / f"s{suffix}", sequence=sequence or "sequence", types={"kind": "category"})
            back = read_rows(space, None, tmp_path / f"s{suffix}", options=options)
            assert torch.equal(back.x[:], x)
    # a step that has such a column itself
    named = Sequence(Table((Real("sequence"), Real("v"))), True, 300)
    write_rows(named, x, tmp_path / "s.csv")
    assert torch.equal(read_rows(named, None, tmp_path / "s.csv").x[:], x)
    (tmp_path / "s.csv").write_text("v,kind\n1.5,a\n")
    with pytest.raises(UsageError, match="Add it to the columns|number the sequences in a column 'sequence'"):
        read_rows(space, None, tmp_path / "s.csv", options=options)


def test_tables_that_do_not_fit() -> None:
    source = table(episode=[1, 1, None], v=[1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match="Nothing tells the sequences of t apart. Name a column .of episode, v."):
        from_table(source, Options(), "t")
    with pytest.raises(UsageError, match="no column 'episod'"):
        from_table(source, Options(sequence="episod"))
    with pytest.raises(BadValue, match="'episode' is missing in row 2"):
        from_table(source, Options(sequence="episode"))
    with pytest.raises(BadValue, match="'e' is missing in row 1"):
        from_table(table(e=[1.5, math.nan], v=[1.0, 2.0]), Options(sequence="e"))
    with pytest.raises(EmptyData, match="no column but the one"):
        from_table(table(e=[1, 1]), Options(sequence="e"))
