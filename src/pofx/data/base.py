"""Data as every part of pofx sees them: a space, and three parts of rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pofx.core.space import Space


@dataclass(frozen=True)
class Part:
    """Rows of one split.

    x [N, *E] of the space's dtype; c [N, *Ec] the contexts (None for p(x)); label [N] int64 the class of
    each row where the source has one (for probes and colours, never seen by training unless it is the
    context); weight [N]; rows [N] int64, the row's number in its source.
    """

    x: Tensor
    c: Tensor | None = None
    label: Tensor | None = None
    weight: Tensor | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Part:
        """The rows at ``index``, in its order."""
        pick = {k: None if v is None else v[index] for k, v in vars(self).items()}
        return Part(**pick)


@dataclass(frozen=True)
class Data:
    """A loaded source: what one x is, and which rows train, validate and test.

    The split is the same for every family: a permutation by ``seed`` unless the source brings its own
    test part. ``notes`` tells in sentences what was inferred, dropped or decided.
    """

    name: str
    source: str
    space: Space
    train: Part
    valid: Part
    test: Part
    context: Space | None = None
    labels: tuple[str, ...] | None = None  # the classes that Part.label indexes
    split: str = ""  # how the parts were made, in words
    seed: int = 0
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # what load() was called with, to read new rows alike
