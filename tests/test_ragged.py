"""Rows of different length in one array: batches, selections, arrays in files, rows that do not fit."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pofx.core.errors import WrongShape
from pofx.data.ragged import SHORT, RaggedRows


def rows_of(mean: int, event: tuple[int, ...] = (), n: int = 30) -> tuple[RaggedRows, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], rng.integers(0, 2 * mean, n).cumsum()])
    values = rng.integers(0, 60_000, (offsets[-1], *event)).astype(np.uint16)
    return RaggedRows.joined(values, offsets, -1, torch.int64), [values[a:b] for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize(("mean", "event"), [(6, ()), (6, (3,)), (SHORT, ()), (SHORT // 4, (2, 5))])
def test_batches_hold_rows_and_fill(mean: int, event: tuple[int, ...]) -> None:
    rows, plain = rows_of(mean, event)
    assert rows.lengths.tolist() == [len(p) for p in plain]
    for index in (torch.tensor([4, 0, 4, 29, -1]), slice(3, 17), torch.arange(30) % 3 == 0, torch.tensor([7])):
        chosen = torch.arange(30)[index].tolist()
        batch = rows[index]
        assert batch.dtype == torch.int64
        assert batch.shape == (len(chosen), max(len(plain[i]) for i in chosen), *event)
        for got, i in zip(batch, chosen, strict=True):
            assert np.array_equal(got[: len(plain[i])].numpy(), plain[i])
            assert (got[len(plain[i]) :] == -1).all()
        later = rows.take(index)
        assert later.values is rows.values
        assert len(later) == len(chosen)
        assert torch.equal(later[:], batch)
        assert torch.equal(later.lengths, rows.lengths[index])
        cut = later.cut(mean)
        assert torch.equal(cut[:], batch[:, :mean])
        assert torch.equal(cut.lengths, rows.lengths[index].clamp(max=mean))


def test_excerpts_may_overlap_and_reals_are_filled_with_infinity() -> None:
    values = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    starts = np.array([0, 5, 5, 44])
    rows = RaggedRows(values, starts, starts + 6, math.inf, torch.float64)
    assert np.array_equal(rows[torch.tensor([1, 3])].numpy(), values[[[*range(5, 11)], [*range(44, 50)]]])
    rows = RaggedRows(values, starts, starts + np.array([6, 2, 0, 6]), math.inf, torch.float64)
    assert rows[:].isinf().all(-1).sum(-1).tolist() == [0, 4, 6, 0]
    assert rows[torch.tensor([2])].shape == (1, 0, 2)
    assert rows[:0].shape == (0, 0, 2)


def test_an_array_in_a_file(tmp_path: Path) -> None:
    rows, _ = rows_of(200)
    np.save(tmp_path / "x.npy", rows.values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    again = RaggedRows(mapped, rows.starts, rows.ends, -1, torch.int64)
    index = torch.tensor([3, 9])
    assert torch.equal(again.take(index)[:], rows[index])


def test_rows_outside_the_array_are_an_error() -> None:
    values = np.arange(10)
    with pytest.raises(WrongShape, match=r"Row 1 goes from 4 to 11; there are 10 steps"):
        RaggedRows.joined(values, np.array([0, 4, 11]), -1, torch.int64)
    with pytest.raises(WrongShape, match=r"Row 0 goes from 3 to 2"):
        RaggedRows(values, np.array([3]), np.array([2]), -1, torch.int64)
    with pytest.raises(WrongShape, match=r"one start and one end"):
        RaggedRows(values, np.array([3]), np.array([4, 5]), -1, torch.int64)
