"""Random numbers that belong to rows: what a row gets follows from a seed and the row, not from its batch.

A likelihood that draws (a bound, an estimate) is then the same number for a row wherever it stands: in any order,
in batches of any size, alone or among others. A row is its values and its context; of rows that are equal to the last
bit the first, the second and so on are told apart (``Copies``), so that the errors of all rows are independent.

The numbers are a hash of the seed, the row and the place in the row's own stream, by SplitMix64's finaliser with the
constants of Stafford's variant 13 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
Training has no use for this: it draws from a generator, batch by batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as int64; odd, so that its multiples are all different
BLOCK = 2**17  # words that are hashed at once: they stay in cache


class RowNoise:
    """One stream of random numbers for each of N rows.

    A call takes the next numbers of every stream, [N, *shape], on the rows' device. Many draws at once,
    ``randn(k, d)``, are the same numbers as k times ``randn(d)``.

    Args:
        seed: of all streams.
        keys: gives what the rows are told apart by, int64 [N] (see ``row_keys``); called where noise is drawn at all.
    """

    def __init__(self, seed: int, keys: Callable[[], Tensor]) -> None:
        self.seed, self._keys = seed, keys
        self._used = 0  # words of every stream

    @classmethod
    def by_place(cls, n: int, generator: torch.Generator) -> RowNoise:
        """Noise of n rows that are told apart by their places."""
        return cls(seed_of(generator), lambda: torch.arange(n, device=generator.device))

    def of(self, rows: slice) -> RowNoise:
        """The streams of some of the rows, from where they are; those of all rows stay there."""
        part = RowNoise(self.seed, self._keys)
        part._streams, part._used = self._streams[rows], self._used
        return part

    def forked(self, k: int) -> RowNoise:
        """k new streams of each row [k * N], all rows' first ones first; that of a row itself goes on after them."""
        places = torch.arange(self._used, self._used + k, device=self._streams.device)
        self._used += k
        fork = RowNoise(self.seed, self._keys)
        fork._streams = _mix(_mix(self._streams ^ _mix((places[:, None] + 1) * GOLDEN)) + GOLDEN).flatten()
        return fork

    def shared(self) -> torch.Generator:
        """A generator that follows from the seed alone: of draws that all rows share, whatever their batch."""
        return torch.Generator().manual_seed(self.seed)

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), float32 with 24 random bits."""
        return self._draw(shape, 2, torch.float32, _uniform)

    def rand_double(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), float64 with 53 random bits."""
        return self._draw(shape, 1, torch.float64, _uniform_double)

    def randn(self, *shape: int) -> Tensor:
        """Standard normal, float32."""
        return self._draw(shape, 2, torch.float32, _normal)

    @cached_property
    def _streams(self) -> Tensor:
        """The start of each row's stream [N]."""
        keys = self._keys()
        seed = torch.tensor(self.seed, device=keys.device)
        return _mix(keys ^ _mix(seed * GOLDEN))

    def _draw(
        self, shape: tuple[int, ...], per_word: int, dtype: torch.dtype, write: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        """``write(words, out)`` turns words [n, k, w] into numbers [n, k, per_word * w]; a draw takes whole words."""
        size, draws = (shape[-1] if shape else 1), math.prod(shape[:-1])
        width = -(-size // per_word)
        places = torch.arange(self._used, self._used + draws * width, device=self._streams.device)
        self._used += len(places)
        salts = _mix((places + 1) * GOLDEN)
        out = torch.empty(len(self._streams), draws, per_word * width, dtype=dtype, device=salts.device)
        rows = max(1, BLOCK // max(1, len(salts)))
        for block, streams in zip(torch.split(out, rows), torch.split(self._streams, rows), strict=True):
            write(_mix(streams[:, None] ^ salts).view(len(block), draws, width), block)
        return out[..., :size].reshape(len(out), *shape)


class Copies:
    """Tells equal rows apart, over all that are evaluated together: the k-th copy of a row has noise of its own."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}  # key -> how often

    def apart(self, keys: Tensor) -> Tensor:
        """Keys [N] that differ where ``keys`` do, and between copies; the first copy of a row keeps its own."""
        values, which, counts = torch.unique(keys, return_inverse=True, return_counts=True)
        order = which.argsort(stable=True)
        starts = (counts.cumsum(0) - counts)[which[order]]
        number = torch.empty_like(which)
        number[order] = torch.arange(len(keys), device=keys.device) - starts
        before = [self._seen.get(v, 0) for v in values.tolist()]
        self._seen.update(zip(values.tolist(), (torch.tensor(before) + counts.cpu()).tolist(), strict=True))
        return keys + (number + torch.tensor(before, device=keys.device)[which]) * GOLDEN


def given_or_fresh(generator: torch.Generator | None, device: torch.device | str = "cpu") -> torch.Generator:
    """The caller's generator, or a fresh one of seed 0: the global random state is never touched."""
    return torch.Generator(device).manual_seed(0) if generator is None else generator


def seed_of(generator: torch.Generator) -> int:
    """The generator's next seed: another one at every call."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def row_keys(x: Tensor, fill: float | None = None) -> Tensor:
    """A 64-bit hash of each row of x [N, *E]: equal rows have equal keys, others almost surely not.

    ``fill`` is what stands after the end of rows of free length: it is no part of them.
    """
    flat = x.reshape(len(x), -1)
    inside = None if fill is None else flat != fill
    if flat.is_floating_point():  # one zero and one NaN, whatever their bits
        flat = torch.where(flat.isnan(), math.nan, flat.double() + 0.0)
    else:
        flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] * flat.element_size() % 8 // flat.element_size()))
    words = flat.contiguous().view(torch.int64)
    salts = _mix(torch.arange(1, words.shape[1] + 1, device=x.device) * GOLDEN)
    keys, rows = [], max(1, BLOCK // max(1, len(salts)))
    for start in range(0, len(words), rows):
        hashed = _mix(words[start : start + rows] ^ salts)
        keys.append(hashed.sum(1) if inside is None else (hashed * inside[start : start + rows]).sum(1))
    return torch.cat(keys) if keys else words.new_zeros(0)


def _mix(z: Tensor) -> Tensor:
    """A bijection of int64 that looks random, in place. ``>>`` copies the sign, which the masks take away."""
    z.bitwise_xor_((z >> 30).bitwise_and_(2**34 - 1)).mul_(0xBF58476D1CE4E5B9 - 2**64)
    z.bitwise_xor_((z >> 27).bitwise_and_(2**37 - 1)).mul_(0x94D049BB133111EB - 2**64)
    return z.bitwise_xor_((z >> 31).bitwise_and_(2**33 - 1))


def _uniform(words: Tensor, out: Tensor) -> None:
    """Both halves of each word, as signed 24-bit numbers."""
    out.copy_(words.view(torch.int32).bitwise_right_shift_(8)).mul_(2**-24).add_(0.5)


def _uniform_double(words: Tensor, out: Tensor) -> None:
    out.copy_(words.bitwise_right_shift_(11)).mul_(2**-53).add_(0.5)


def _normal(words: Tensor, out: Tensor) -> None:
    """Box & Muller 1958: a radius from one half of each word (as a number in (0, 1]), an angle from the other."""
    halves = words.view(torch.int32).bitwise_right_shift_(8).view(*words.shape, 2)
    radius = halves[..., 0].float().mul_(-(2**-24)).add_(0.5).log_().mul_(-2).sqrt_()
    angle = halves[..., 1].float().mul_(2 * math.pi * 2**-24)
    first, second = out.chunk(2, -1)
    torch.mul(radius, angle.cos(), out=first)
    torch.mul(radius, angle.sin_(), out=second)
