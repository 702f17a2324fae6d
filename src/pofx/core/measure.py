"""The base measure of a likelihood: what a density is a density *of*.

Two numbers may be compared only under one measure. A probability (counting measure) and a
density (Lebesgue measure) are different quantities even when both are printed in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Measure:
    """A product of one-dimensional base measures, run-length coded: ``(("counting", 784),)``.

    Parts: ``counting`` (a probability), ``lebesgue`` (a density in the column's raw unit) and
    ``atom+lebesgue`` (a nullable real: missing is an atom, the rest has a density). A star marks a measure
    that is taken once for every step of a sequence, however many it has: ``lebesgue*``.

    Example:
        >>> mixed = Measure.of(["counting", "counting", "lebesgue"])
        >>> print(mixed, "of", mixed.dims, "columns; discrete:", mixed.discrete)
        counting^2 × lebesgue of 3 columns; discrete: False
    """

    parts: tuple[tuple[str, int], ...]

    @staticmethod
    def counting(dims: int = 1) -> Measure:
        return Measure((("counting", dims),)) if dims else Measure(())

    @staticmethod
    def lebesgue(dims: int = 1) -> Measure:
        return Measure((("lebesgue", dims),)) if dims else Measure(())

    @staticmethod
    def of(parts: list[str]) -> Measure:
        """The product over ``parts`` in order."""
        return Measure(tuple((name, len(list(run))) for name, run in groupby(parts)))

    @property
    def dims(self) -> int:
        return sum(count for _, count in self.parts)

    @property
    def discrete(self) -> bool:
        """True if every part counts, so that nats are bits of a code and never below zero."""
        return all(name.rstrip("*") == "counting" for name, _ in self.parts)

    def __str__(self) -> str:
        return " × ".join(name if n == 1 else f"{name}^{n}" for name, n in self.parts) or "one point"
