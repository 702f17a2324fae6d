"""A flow in continuous time: z(1) = z(0) + int_0^1 f(z(t), t; h) dt, with any net as f (Chen et al. 2018).

log p(z(0)) = log p(z(1)) + int_0^1 tr df/dz dt        (Grathwohl et al. 2019, eq. 4)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pofx.core.likelihood import Estimate
from pofx.nn.mlp import Mlp
from pofx.transforms.base import Noise, Step, Transform
from pofx.transforms.ode import Field, probes, sketch, travel


class Continuous(Transform):
    """The flow along a net's velocity, which starts at zero: the identity.

    Its log term is that of ``transforms.ode.sketch``, unbiased but for the way's few steps; what a likelihood reports
    follows ``field`` closely.

    Args:
        dim, context: widths of z and h.
        hidden, blocks: of the net.
        steps: panels of the sketch.
        exact_up_to: dimensions up to which the divergence is exact; beyond, one random probe a solution.
        recompute: keep no activation of the net for the gradient, but compute it again: less memory, more time.
    """

    kind = Estimate

    def __init__(
        self, dim: int, context: int, hidden: int, blocks: int, steps: int, exact_up_to: int, recompute: bool = False
    ) -> None:
        super().__init__()
        self.net = Mlp(dim, dim, hidden=hidden, blocks=blocks, context=3 + context)
        self.steps, self.probed, self.recompute = steps, dim > exact_up_to, recompute

    def field(self, h: Tensor | None) -> Field:
        dtype = self.net.first.weight.dtype

        def velocity(t: Tensor, z: Tensor) -> Tensor:
            wave = torch.stack([t, (math.pi * t).sin(), (math.pi * t).cos()], 1).to(dtype)
            condition = wave if h is None else torch.cat([wave, h], 1)
            if self.recompute and torch.is_grad_enabled():
                return checkpoint(self.net, z.to(dtype), condition, use_reentrant=False).to(z)
            return self.net(z.to(dtype), condition).to(z)

        return velocity

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        probe = None if noise is None or not self.probed else probes(1, x, noise)
        z, trace = sketch(self.field(h), 0.0, 1.0, x, self.steps, noise, probe)
        return Step(z, trace, kind=Estimate)

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        return self.moved(z, h, 1.0, 0.0)

    def moved(self, z: Tensor, h: Tensor | None, start: float, end: float) -> Tensor:
        """z at time ``end`` of what it is at ``start``, solved closely."""
        first, last = (torch.full((len(z),), t, dtype=torch.float64, device=z.device) for t in (start, end))
        return travel(self.field(h), first, last, z.double()).to(z)
