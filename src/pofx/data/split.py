"""Which rows train, validate and test; rows that are drawn; rows that occur twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pofx.core.comparison import FEWEST
from pofx.core.errors import EmptyData, UsageError
from pofx.core.noise import row_keys
from pofx.data.blocks import BLOCK

TRAIN, VALID, TEST = 0, 1, 2  # parts that a source may bring


def shares_of(split: Sequence[float]) -> tuple[float, float, float]:
    if len(split) != 3 or min(split) <= 0 or abs(sum(split) - 1) > 1e-6:
        raise UsageError(
            f"A split of {tuple(split)} is not three shares above 0 that sum to 1.", "For example (0.8, 0.1, 0.1)."
        )
    train, valid, test = map(float, split)
    return train, valid, test


def pick(n: int, most: int | None, seed: int) -> Tensor | None:
    """``most`` of n row numbers, drawn by ``seed``, in order; None where all n are wanted."""
    if most is None or n <= most:
        return None
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most].sort().values


def split_rows(
    index: Tensor, part: Any, shares: tuple[float, float, float], seed: int, of: Any = None
) -> tuple[list[Tensor], str]:
    """Row numbers of train, valid and test, each in the source's order, and how they came about in words.

    Rows that are ``of`` [N] the same stay in one part.
    """
    if of is not None:
        mine, parts = of[index.numpy()], None if part is None else part[index.numpy()]
        found, words = split_rows(torch.from_numpy(np.unique(mine, return_index=True)[1]), parts, shares, seed)
        return [index[torch.from_numpy(np.isin(mine, mine[rows.numpy()]))] for rows in found], words
    generator = torch.Generator().manual_seed(seed)
    if part is None:
        pools = [index, index[:0], index[:0]]
    else:
        where = torch.from_numpy(part)[index]
        pools = [index[where == p] for p in (TRAIN, VALID, TEST)]
    own = [p for p in (VALID, TEST) if len(pools[p])]
    lacking = [p for p in (VALID, TEST) if not len(pools[p])]
    pool = pools[TRAIN]
    if len(pool) < 1 + len(lacking):
        raise EmptyData(f"{len(pool)} rows to split into {1 + len(lacking)} parts.", "Give at least 3 rows.")
    mass = shares[TRAIN] + sum(shares[p] for p in lacking)
    shuffled = pool[torch.randperm(len(pool), generator=generator)]
    for p in lacking:
        most = len(shuffled) - 1 - (len(lacking) - 1 if p == lacking[0] else 0)
        count = min(max(1, round(len(pool) * shares[p] / mass)), most)
        pools[p], shuffled = shuffled[:count], shuffled[count:]
    pools[TRAIN] = shuffled
    if not own:
        words = f"random {'/'.join(f'{100 * s:g}' for s in shares)} split by seed {seed}"
    else:
        names = ["", "validation", "test"]
        words = f"the source's own {' and '.join(names[p] for p in own)} part{'s' * (len(own) > 1)}"
        if lacking:
            words += f"; {names[lacking[0]]} rows drawn from its training part by seed {seed}"
    return [p.sort().values for p in pools], words


def split_by_place(index: Tensor, shares: tuple[float, float, float]) -> tuple[list[Tensor], str]:
    """Excerpts of a long text or series in their order: the first train, the last test."""
    n = len(index)
    if n < 3:
        raise EmptyData(
            f"The source makes {n} excerpt{'s' * (n > 1)}, too few to split into 3 parts.",
            "Give more of it. If something is given with each line or sound of it, name that, too: --given.",
        )
    first = min(max(1, round(n * shares[TRAIN])), n - 2)
    second = min(max(first + 1, round(n * (shares[TRAIN] + shares[VALID]))), n - 1)
    train, valid, test = (f"{100 * share:g}%" for share in shares)
    words = f"the first {train} train, the next {valid} validate, the last {test} test"
    return [index[:first], index[first:second], index[second:]], words


def repeats(x: Any, indices: list[Tensor]) -> list[str]:
    """A note where whole rows of x occur more than once, and how many test rows also occur in training."""
    keys = torch.empty(len(x), dtype=torch.int64)  # at once: pieces kept between the blocks would scatter the memory
    for i in range(0, len(x), BLOCK):
        keys[i : i + BLOCK] = row_keys(x[i : i + BLOCK])
    used = torch.cat([keys[i] for i in indices]).numpy()
    used.sort()  # in place: memory may have room for little more
    repeats = int((used[1:] == used[:-1]).sum())
    if not repeats:
        return []
    train, _, test = (keys[i] for i in indices)
    leaked = int(torch.isin(test, train).sum())
    note = f"{repeats} of {len(used)} rows repeat an earlier row"
    return [f"{note}; {leaked} of {len(test)} test rows also occur in training."]


def scarce(train: int, test: int, columns: int, what: str = "row") -> list[str]:
    """Notes where a table has fewer training rows than columns, and where test rows are too few to decide anything.

    ``what`` is what the rows are called.
    """
    notes = []
    if train <= columns:
        notes.append(
            f"{train} training {what}{'s' * (train != 1)} for {columns} columns: they do not tell how columns depend "
            "on each other, and a family that fits that all the same may be far off on other rows. "
            f"Give more {what}s, or --drop columns."
        )
    if test < FEWEST:
        notes.append(
            f"The test part has {test} {what}{'s' * (test != 1)}: no error of a mean can be told, so nothing is "
            "decided between families."
        )
    return notes
