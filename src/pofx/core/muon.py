"""Muon: momentum whose singular values are all made equal (Jordan et al. 2024), for the matrices inside a net.

An update is the momentum G = U S V^T replaced by about U V^T, which a few steps of Newton and Schulz reach by
products of matrices alone. Its scale is that of Adam's updates (Liu et al. 2025, eq. 4), so that one learning
rate serves both. Matrices of one shape are worked on together, in float32: on machines without bfloat16
arithmetic that is several times as fast as ``torch.optim.Muon``, whose numbers it reproduces.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5: steep at zero, which lifts small singular values fast
STEPS = 5


class Muon(torch.optim.Optimizer):
    """One optimizer over matrices [out, in], with Nesterov momentum and decoupled weight decay.

    Kernels of convolutions [out, in, ...] are matrices of what they are multiplied with: [out, in * ...].
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, alike in shapes.items():
                updates = orthogonal(torch.stack([self._momentum(p, group["momentum"]) for p in alike]).flatten(2))
                rate = group["lr"] * 0.2 * max(shape[0], shape[1:].numel()) ** 0.5
                for p, update in zip(alike, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.reshape(shape), alpha=-rate)

    def _momentum(self, p: Tensor, decay: float) -> Tensor:
        """Nesterov: the gradient, looked at from where the momentum is about to go."""
        assert p.grad is not None
        kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
        kept.lerp_(p.grad, 1 - decay)
        return p.grad.lerp(kept, decay)


def orthogonal(g: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T in g [n, out, in]: singular values between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    wide = g.shape[-2] <= g.shape[-1]
    x = g if wide else g.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT
