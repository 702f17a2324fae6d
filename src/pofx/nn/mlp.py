"""A residual multilayer perceptron that can be told a context."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

L = TypeVar("L", bound=nn.Module)


def zeroed(layer: L) -> L:
    """The layer, starting as the zero map."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def at_least_single(x: Tensor) -> Tensor:
    """x in float32, if autocast made it shorter: losses, which are sums, need more digits than nets do."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Mlp(nn.Module):
    """x [N, inputs] (, h [N, context]) -> [N, outputs].

    Pre-activation residual blocks x + W2 act(W1 act(x) + condition) (He et al. 2016); the context enters
    every block by addition. The output layer starts at zero, so that a flow starts at the identity and a
    denoiser at its skip connection.

    Args:
        inputs, outputs: widths of x and of the result.
        hidden: width of the residual stream.
        blocks: number of residual blocks, two linear layers each.
        context: width of h; 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int = 128, blocks: int = 2, context: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.context = nn.Linear(context, hidden) if context else None
        self.blocks = nn.ModuleList(_Block(hidden, bool(context)) for _ in range(blocks))
        self.last = zeroed(nn.Linear(hidden, outputs))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        return at_least_single(self.last(self._trunk(x, h)))

    def features_first(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """The same as [outputs, N]: the matrix product writes it so at no cost, a transposition would."""
        return torch.addmm(self.last.bias[:, None], self.last.weight, self._trunk(x, h).T)

    def _trunk(self, x: Tensor, h: Tensor | None) -> Tensor:
        condition: Tensor | None = None
        if self.context is not None:
            assert h is not None
            condition = self.context(h)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, condition)
        return F.silu(x)


class _Block(nn.Module):
    def __init__(self, hidden: int, conditioned: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.condition = nn.Linear(hidden, hidden) if conditioned else None
        nn.init.normal_(self.down.weight, std=0.1 / math.sqrt(hidden))  # blocks start near the identity

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        y = self.up(F.silu(x))
        if self.condition is not None:
            assert condition is not None
            y = y + self.condition(F.silu(condition))
        return x + self.down(F.silu(y))
