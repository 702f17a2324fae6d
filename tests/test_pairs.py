"""Pairs: columns, files side by side, captions of images, transcripts of sounds, episodes; and on the command line."""

from __future__ import annotations

import pytest
import torch

import pofx
from pofx.core.errors import EmptyData, UsageError
from pofx.data.actions import action_chunks
from pofx.data.parts import Data


def episodes(lengths: list[int]) -> Data:
    """One column that is seen and one that acts: 100 e + t, and the negative of that."""
    rows = [(e, 100.5 * e + t + 0.25, -(100.5 * e + t) - 0.125) for e, n in enumerate(lengths) for t in range(n)]
    frame = {"episode": [r[0] for r in rows], "place": [r[1] for r in rows], "push": [r[2] for r in rows]}
    pandas = pytest.importorskip("pandas")
    return pofx.load(pandas.DataFrame(frame), sequence="episode", types={"place": "real", "push": "real"})


def test_a_chunk_sees_the_last_steps_the_first_one_repeated_before_the_beginning() -> None:
    data = episodes([5, 6, 7, 5, 6, 7, 5, 6, 7, 5])
    chunks = action_chunks(data, ["push"], 2, history=3)
    assert chunks.context is not None
    assert [c.name for c in chunks.context.columns] == ["place", "place.t-1", "place.t-2"]
    plain = action_chunks(data, ["push"], 2)
    for part, own in ((chunks.train, plain.train), (chunks.test, plain.test)):
        torch.testing.assert_close(part.x, own.x)
        torch.testing.assert_close(part.c[:, :1], own.c)
        start = (part.c[:, 0] - 0.25) % 100.5  # the step of the episode, which its value tells
        for k in (1, 2):
            torch.testing.assert_close(part.c[:, 0] - part.c[:, k], torch.minimum(start, torch.tensor(float(k))))
        assert part.rows is not None
        assert part.rows.tolist() == ((part.c[:, 0] - 0.25) // 100.5).long().tolist()
    with pytest.raises(UsageError, match="0 steps"):
        action_chunks(data, ["push"], 2, history=0)


def test_episodes_shorter_than_a_chunk_are_counted_and_none_left_is_an_error() -> None:
    data = episodes([3] + [8] * 12)
    chunks = action_chunks(data, ["push"], 5)
    assert any("1 sequence is shorter than a chunk of 5 steps" in note for note in chunks.notes)
    assert sum(len(getattr(chunks, p)) for p in ("train", "valid", "test")) == 12 * 4
    with pytest.raises(EmptyData, match="has 9 steps; its longest has 8"):
        action_chunks(data, ["push"], 9)
