"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pofx.core.model import Model


class Average:
    """Exponential moving average of the parameters, with a short memory at the start."""

    def __init__(self, model: Model, decay: float) -> None:
        self.model, self.decay = model, decay
        self.tensors = {k: p.detach().clone() for k, p in model.named_parameters()}

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.tensors.values()), [p.detach() for p in self.model.parameters()], 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averaged weights inside, the trained ones after."""
        own = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        try:
            self._put(self.tensors)
            yield
        finally:
            self._put(own)

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for k, p in self.model.named_parameters():
                p.copy_(tensors[k])
