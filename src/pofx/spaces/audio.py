"""Sounds of one channel, as levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

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

    def __str__(self) -> str:
        what = "sounds" if self.has_eos else "excerpts of sound"
        return f"{what} of {self.rate} Hz, {self.levels} {'mu-law ' if self.law == 'mu' else ''}levels, up to {self.length / self.rate:.3g} s"
