"""Strings over an alphabet, or of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from pofx.core.errors import BadValue
from pofx.core.space import Ragged


@dataclass(frozen=True)
class Text(Ragged):
    """Strings over an alphabet, or strings of bytes; one event is int64 [L], -1 after the end.

    Attributes:
        alphabet: its characters in order; "" for the 256 bytes (of UTF-8, where the data are text).
        has_eos: a datum is a whole document; else an excerpt, of known length.
        length: of the longest known datum, in symbols: what a sample may be long at most, or is as an excerpt.
    """

    alphabet: str = ""
    has_eos: bool = True
    length: int = 1024

    name: ClassVar[str] = "text"
    dtype: ClassVar[torch.dtype] = torch.int64
    fill: ClassVar[float] = -1
    unit: ClassVar[str] = "byte"

    @property
    def symbols(self) -> int:  # type: ignore[override]
        return len(self.alphabet) or 256

    @cached_property
    def _bytes(self) -> Tensor:
        """UTF-8 bytes of each symbol, and 0 for fill (index -1)."""
        sizes = [len(c.encode()) for c in self.alphabet] or [1] * 256
        return torch.tensor([*sizes, 0])

    def units(self, x: Tensor) -> Tensor:
        return self._bytes.to(x.device)[x].sum(-1).double()

    def spell(self, x: Tensor) -> str:
        """One datum [L] as a string (bytes that are no UTF-8 become �)."""
        inside = x[x >= 0].tolist()
        if not self.alphabet:
            return bytes(inside).decode(errors="replace")
        return "".join(map(self.alphabet.__getitem__, inside))

    def after_first(self, x: Tensor, strings: tuple[str, ...]) -> int:
        """How many symbols of one datum [L] there are up to the end of the first of these strings; all without one."""
        inside = x[x >= 0].tolist()
        if self.alphabet:
            text = "".join(map(self.alphabet.__getitem__, inside))
            ends = [text.find(s) + len(s) for s in strings if s in text]
        else:  # bytes as they are, whether or not they are UTF-8
            data, wanted = bytes(inside), [s.encode() for s in strings]
            ends = [data.find(s) + len(s) for s in wanted if s in data]
        return min(ends, default=len(inside))

    def parse(self, texts: list[str]) -> Tensor:
        """Strings as one batch [N, L]. Raises BadValue for a character that the alphabet does not have."""
        rows = [self._numbers(text) for text in texts]
        out = torch.full((len(rows), max((len(r) for r in rows), default=0)), -1)
        for row, numbers in zip(out, rows, strict=True):
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return out

    def _numbers(self, text: str) -> list[int]:
        if not self.alphabet:
            return list(text.encode())
        try:
            return [self._number[c] for c in text]
        except KeyError as error:
            raise unknown_character(self, error.args[0], text.index(error.args[0])) from None

    @cached_property
    def _number(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.alphabet)}

    def __str__(self) -> str:
        over = f"{len(self.alphabet)} characters" if self.alphabet else "bytes"
        return f"{'texts' if self.has_eos else 'excerpts of text'} over {over}, up to {self.length} long"


def unknown_character(space: Text, character: str, place: int) -> BadValue:
    return BadValue(
        f"The character {character!r} at {place} is none of the {len(space.alphabet)} of these texts.",
        "Leave it out, or load and fit the texts as bytes: --symbols bytes.",
    )
