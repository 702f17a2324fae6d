"""Windows over long data: what a net of limited context trains on, and how it reads what is longer than that."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.learner import TrainingSet

NDArray: TypeAlias = "np.ndarray[Any, Any]"

READ = 256  # rows that are read together
IN_MEMORY = 2**28  # bytes of steps beyond which they are kept in a file


def spans(targets: int, block: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows that predict targets 1 .. ``targets`` of a sequence of steps 0 .. ``targets``, each once.

    Yields (first input, first target, last target). Target t is predicted from inputs up to t - 1 in the window:
    the first window predicts all of its ``block`` targets, each further one its last ``stride``, after as much
    context as the block leaves. The sequence has thus a proper probability by the chain rule; a smaller stride
    gives more context and costs more windows.
    """
    last = min(block, targets)
    yield 0, 1, last
    while last < targets:
        first, last = last + 1, min(last + stride, targets)
        yield first - context(block, stride), first, last


def context(block: int, stride: int) -> int:
    """How many inputs stand before the first new target of a window that has moved on."""
    return block - stride + 1


def halves(length: int, block: int, shift: int) -> Iterator[tuple[int, int, int]]:
    """(first value, first new one, after the last) of windows over data of this length, for nets that look both ways.

    The first is as long as the block; further ones are about ``shift`` new values, given those before in the window.
    """
    yield 0, 0, min(length, block)
    for first in range(block, length, shift):
        yield first + shift - block, first, min(first + shift, length)


class Windows(TrainingSet):
    """Training pieces [B, 1 + block, ...] of long sequences of steps: an input before, then ``block`` targets.

    Sequences lie end to end in one array, ``fill`` before and after each: the end of one is the beginning of the
    next, and an empty one leaves two in a row. The first window of a sequence starts
    with it; the further ones follow end to end, shifted by ``turn`` so that no epoch cuts as the one before. One more
    than a sequence needs lets them reach its end under every shift; the last may lie in the next sequence, whose
    it is then.

    Args:
        sequences: gives each sequence as stretches of its steps [L, ...].
        owners: the training row of each.
        fill: what stands between them; pad: what follows the last end.
        dtype: that holds any step.
    """

    def __init__(
        self, sequences: Iterable[Iterable[Tensor]], owners: Tensor, fill: float, pad: float, dtype: torch.dtype,
        block: int,
    ) -> None:  # fmt: skip
        self.block, spool, lengths = block, Spool(dtype), []
        for stretches in sequences:
            before = len(spool)
            for k, u in enumerate(stretches):
                one = u.new_full((1, *u.shape[1:]), fill)
                spool.add(u if k else torch.cat([one, u]))
            lengths.append(len(spool) - before)
        spool.add(torch.cat([one, one.new_full((2 * block, *one.shape[1:]), pad)]))
        self.steps = spool.array()
        targets = torch.tensor(lengths)
        self.first = targets.cumsum(0) - targets
        # windows of each sequence: ceil(targets / block), or one more where they are shifted
        self.count = torch.where(targets > block, 1 + (targets - 1 + block - 1) // block, 1)
        self.end, self.owners, self.shift = self.count.cumsum(0), owners, 0
        self.targets = int(targets.sum())

    def __len__(self) -> int:
        return int(self.end[-1])

    def __getitem__(self, index: Tensor) -> Tensor:
        rows = self.steps[(self.start(index)[:, None] + torch.arange(self.block + 1)).numpy()]
        out = torch.from_numpy(rows)
        return out if out.is_floating_point() else out.long()

    def start(self, index: Tensor) -> Tensor:
        """Where windows begin in the array of all steps."""
        sequence = torch.searchsorted(self.end, index, right=True)
        k = index - (self.end - self.count)[sequence]
        return self.first[sequence] + (k * self.block - self.shift * (k > 0))

    def owner(self, index: Tensor) -> Tensor:
        """The training row in which windows begin."""
        return self.owners[torch.searchsorted(self.first, self.start(index), right=True) - 1]

    def set_epoch(self, number: int) -> None:
        self.shift = number % self.block


def windows_over(
    x: Any, steps: Callable[[Tensor], Tensor], fill: float, pad: float, dtype: torch.dtype, block: int, *,
    joined: bool = True, apart: bool = True,
) -> Windows:  # fmt: skip
    """Windows over training rows x.

    Args:
        steps: of some rows, end to end.
        joined: rows that continue each other, as excerpts do, are one sequence.
        apart: the steps of a row follow from the row alone, so that a few rows are read at a time.

    Raises UsageError where there are fewer steps than one block.
    """
    runs, owners = (x, torch.arange(len(x))) if not joined or isinstance(x, Tensor) else x.runs()
    bounds = [*owners.tolist(), len(x)]

    def stretches(i: int) -> Iterator[Tensor]:
        own = range(bounds[i], bounds[i + 1], READ)
        parts = (x[j : min(j + READ, bounds[i + 1])] for j in own) if apart else [runs[i : i + 1]]
        yield from map(steps, parts)

    windows = Windows(map(stretches, range(len(runs))), owners, fill, pad, dtype, block)
    if windows.targets < block:
        raise UsageError(
            f"All training data together have {windows.targets} steps, fewer than one block of {block}.",
            "Give more data, or a smaller block: --options.block.",
        )
    return windows


def whole(
    x: Any, encode: Callable[[Tensor], Tensor], filled: Callable[[Tensor], Tensor], fill: float, pad: float, block: int
) -> Whole | None:
    """Training rows x whole, where the steps of each and its end are fewer than a block; else None."""
    sizes = list[Tensor]()
    for i in range(0, len(x), READ):
        sizes.append((~filled(encode(x[i : i + READ]))).sum(1))
        if int(sizes[-1].max()) >= block:
            return None
    return Whole(x, encode, fill, pad, torch.cat(sizes))


class Spool:
    """Arrays end to end, in memory; where they grow large, in a temporary file that is gone with the last of them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))
        self.parts: list[NDArray] = []
        self.file: IO[bytes] | None = None
        self.steps = 0

    def __len__(self) -> int:
        return self.steps

    def add(self, u: Tensor) -> None:
        part = u.numpy().astype(self.dtype)
        self.shape, self.steps = part.shape[1:], self.steps + len(part)
        if self.file is not None:
            part.tofile(self.file)
            return
        self.parts.append(part)
        if self.steps * math.prod(self.shape) * self.dtype.itemsize > IN_MEMORY:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 - the mapping outlives the handle
            for part in self.parts:
                part.tofile(self.file)
            self.parts = []

    def array(self) -> NDArray:
        if self.file is None:
            return np.concatenate(self.parts)
        self.file.flush()
        return np.memmap(self.file, self.dtype, "r+", shape=(self.steps, *self.shape))


class Whole(TrainingSet):
    """Training pieces of short sequences: each whole between two fills, then ``pad`` up to the longest of its batch.

    Those of a batch are of nearly one length: little is spent on ``pad``. They are drawn so: of every ``POOL`` batches
    of shuffled pieces those are made that sorting by length gives, and all batches are shuffled. Where all are short,
    up to ``FEW`` steps, little can be saved, and they are only shuffled: batches of one length each tell less well how
    often data end.

    Args:
        rows: the training data, indexed by tensors.
        encode: rows -> steps [B, L, ...], the shorter ones filled up by ``fill``.
        sizes: steps of each row [N].
    """

    POOL, FEW = 32, 32

    def __init__(
        self, rows: Any, encode: Callable[[Tensor], Tensor], fill: float, pad: float, sizes: Tensor
    ) -> None:  # fmt: skip
        self.rows, self.encode, self.fill, self.pad, self.sizes = rows, encode, fill, pad, sizes

    def __len__(self) -> int:
        return len(self.rows)

    def order(self, batch: int, shuffle: torch.Generator) -> Tensor:
        pieces = super().order(batch, shuffle)
        if int(self.sizes.max()) <= self.FEW:
            return pieces
        whole = len(pieces) // batch * batch
        pools = pieces[:whole].split(batch * self.POOL)
        batches = torch.cat([pool[self.sizes[pool].argsort(stable=True)] for pool in pools]).view(-1, batch)
        return torch.cat([batches[torch.randperm(len(batches), generator=shuffle)].flatten(), pieces[whole:]])

    def __getitem__(self, index: Tensor) -> Tensor:
        u = self.encode(self.rows[index])
        inside = (u if u.ndim == 2 else u[..., 0]) != self.fill
        u = u[:, : max(1, int(inside.sum(1).max()))]
        fill = u.new_full((len(u), 1, *u.shape[2:]), self.fill)
        line = torch.cat([fill, u, fill], 1)
        line[:, 2:].masked_fill_(line[:, 1:-1] == self.fill, self.pad)  # what follows the end
        return line
