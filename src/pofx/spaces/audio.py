"""Sounds of one channel, as levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pofx.core.space import Ragged


@dataclass(frozen=True)
class Audio(Ragged):
    """Sounds of one channel; one event is int64 [L], the level of each sample, -1 after the end.

    Attributes:
        rate: samples per second.
        levels: 65536 for 16-bit samples (level = sample + 32768), or fewer.
        law: how levels stand for amplitudes in [-1, 1]: "linear", or "mu" (companded, ITU-T G.711 with mu = levels - 1).
        has_eos: a datum is a whole recording; else an excerpt, of known length.
        length: of the longest known datum, in samples.
    """

    rate: int
    levels: int = 65536
    law: str = "linear"
    has_eos: bool = True
    length: int = 16000

    name: ClassVar[str] = "audio"
    dtype: ClassVar[torch.dtype] = torch.int64
    fill: ClassVar[float] = -1
    unit: ClassVar[str] = "sample"

    @property
    def symbols(self) -> int:  # type: ignore[override]
        return self.levels

    def amplitudes(self, x: Tensor) -> Tensor:
        """Levels x [..., L] as amplitudes in [-1, 1], float64; 0 after the end."""
        if self.law == "mu":
            a = x.double() * (2 / (self.levels - 1)) - 1
            a = a.sign() * torch.expm1(a.abs() * math.log(self.levels)) / (self.levels - 1)
        else:
            a = x.double() * (2 / self.levels) - 1
        return a.masked_fill(x < 0, 0.0)

    def levels_of(self, amplitude: Tensor) -> Tensor:
        """The nearest levels, int64 [..., L], of amplitudes; what is beyond [-1, 1] is clipped.

        Linear: the nearest to (1 + a) levels / 2, so that a 16-bit sample s, which is s / 32768, has the level s + 32768.
        Mu: sign(a) log(1 + mu |a|) / log(1 + mu), as the nearest of ``levels`` in [-1, 1], mu = levels - 1 (ITU-T G.711).
        """
        a = amplitude.double().clamp(-1, 1)
        if self.law == "mu":
            a = a.sign() * torch.log1p((self.levels - 1) * a.abs()) / math.log(self.levels)
            level = (a + 1) * ((self.levels - 1) / 2)
        else:
            level = (a + 1) * (self.levels / 2)
        return level.round().clamp(0, self.levels - 1).long()

    def __str__(self) -> str:
        what = "sounds" if self.has_eos else "excerpts of sound"
        return f"{what} of {self.rate} Hz, {self.levels} {'mu-law ' if self.law == 'mu' else ''}levels, up to {self.length / self.rate:.3g} s"
