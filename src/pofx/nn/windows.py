"""Windows over long data: what a net of limited context trains on, and how it scores what is longer than that."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

IN_MEMORY = 2**28  # bytes of steps beyond which they are kept in a file


def spans(targets: int, block: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows that score targets 1 .. ``targets`` of a sequence of steps 0 .. ``targets``, each once.

    Yields (first input, first target, last target). Target t is scored with inputs up to t - 1 in the window:
    the first window scores all of its ``block`` targets, each further one its last ``stride``, after as much
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


class Windows:
    """Training pieces [B, 1 + block, ...] of long sequences of steps: an input before, then ``block`` targets.

    Sequences lie end to end in one array, ``fill`` before and after each: the end of one is the beginning of the
    next, and an empty one leaves two in a row. The first window of a sequence starts
    with it; the further ones follow end to end, shifted by ``turn`` so that no epoch cuts as the one before. One more
    than a sequence needs lets them reach its end under every shift; the last may lie in the next sequence, whose
    it is then.

    Args:
        sequences: gives steps [L, ...] of one sequence after the other.
        owners: the training row of each.
        fill: what stands between them; pad: what follows the last end.
    """

    def __init__(self, sequences: Iterator[Tensor], owners: Tensor, fill: float, pad: float, block: int) -> None:
        self.block, parts, lengths = block, [], []
        for u in sequences:
            separator = u.new_full((1, *u.shape[1:]), fill)
            parts.append(compact(torch.cat([separator, u])))
            lengths.append(len(u) + 1)
        tail = parts[0].new_full((2 * block + 1, *parts[0].shape[1:]), pad)
        tail[0] = fill
        self.steps = on_disk_if_large([*parts, tail])
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

    def turn(self, number: int) -> None:
        self.shift = number % self.block


def compact(u: Tensor) -> Tensor:
    """Symbols in as few bytes as they need; negative ones stay as they are."""
    if u.is_floating_point():
        return u.float() if u.shape[-1] == 1 else u
    top = int(u.max()) if u.numel() else 0
    return u.to(torch.int16 if top < 2**15 else torch.int32)


def on_disk_if_large(parts: list[Tensor]) -> np.ndarray:
    """The parts end to end, in memory or in a temporary file that is gone with the array."""
    dtype = max((p.dtype for p in parts), key=lambda d: d.itemsize)
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    if np.prod(shape) * dtype.itemsize <= IN_MEMORY:
        return torch.cat([p.to(dtype) for p in parts]).numpy()
    with tempfile.TemporaryFile() as file:  # the mapping outlives the handle
        out = np.memmap(file, dtype=str(dtype).removeprefix("torch."), shape=shape)
    place = 0
    for part in parts:
        out[place : place + len(part)] = part.to(dtype).numpy()
        place += len(part)
    return out


class Whole:
    """Training pieces of short sequences: each whole between two fills, then ``pad`` up to the longest.

    Args:
        rows: the training data, indexed by tensors.
        encode: rows -> steps [B, L, ...], the shorter ones filled up by ``fill``.
    """

    def __init__(self, rows: Tensor, encode: Callable[[Tensor], Tensor], fill: float, pad: float) -> None:
        self.rows, self.encode, self.fill, self.pad = rows, encode, fill, pad

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        u = self.encode(self.rows[index])
        fill = u.new_full((len(u), 1, *u.shape[2:]), self.fill)
        line = torch.cat([fill, u, fill], 1)
        line[:, 2:].masked_fill_(line[:, 1:-1] == self.fill, self.pad)  # what follows the end
        return line

    def owner(self, index: Tensor) -> Tensor:
        return index

    def turn(self, number: int) -> None:
        """A datum is one piece, always the same."""
