"""How a likelihood is asked for, and how samples are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pofx.core.options import Options


@dataclass(frozen=True)
class Budget(Options):
    """What one likelihood may cost.

    ``estimator`` is one of the model's ``estimators`` (the first is the default), ``draws`` the Monte
    Carlo draws per datum, ``steps`` the solver steps, ``stride`` how far the window of a net of limited context
    moves over a long datum; None leaves the family's own default. A family raises UsageError for a field
    that it cannot use.

    Example:
        >>> Budget(estimator="iwae", draws=500)
        Budget(estimator='iwae', draws=500, steps=None, stride=None)
    """

    estimator: str | None = None
    draws: int | None = None
    steps: int | None = None
    stride: int | None = None


@dataclass(frozen=True)
class Sampler(Options):
    """How to sample: ``name`` is one of the model's ``samplers`` (the first is the default).

    ``steps`` are the solver's; ``length`` is the most (or, of excerpts, the exact) length of what is drawn.
    ``decoding`` are options of a symbol-by-symbol sampler that change the distribution (``decode.Decoding``).

    Example:
        >>> Sampler(name="heun", steps=20).steps
        20
    """

    name: str | None = None
    steps: int | None = None
    length: int | None = None
    decoding: Any = None
