"""Coupling layers: one part of the entries is transformed given the other (Dinh et al. 2017, eq. 7-9).

    z_A = x_A,    z_B = g(x_B; net(x_A, h))

g is affine (RealNVP) or a rational-quadratic spline (Durkan et al. 2019). Both directions cost one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pofx.nn.mlp import Mlp
from pofx.transforms.base import Noise, Scalar, Step, Transform
from pofx.transforms.circular import turns


class Coupling(Transform):
    """z_A = x_A, z_B = scalar(x_B; net(x_A, h)).

    Args:
        mask: [d] bool, True for the entries B that are transformed. Entries A may be none (d = 1): then the
            parameters depend on h alone.
        scalar: the monotone map g.
        context: width of h; 0 for none.
        hidden, blocks: size of the residual net.
        angles: the net sees cosines and sines of A.

    Example:
        >>> import torch
        >>> from pofx.transforms.base import Affine
        >>> layer = Coupling(torch.tensor([False, True]), Affine(), context=0, hidden=8, blocks=1)
        >>> x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
        >>> z = layer(x).z
        >>> torch.equal(z[:, 0], x[:, 0]), torch.allclose(layer.inverse(z), x, atol=1e-6)
        (True, True)
    """

    changed: Tensor
    given: Tensor

    def __init__(
        self, mask: Tensor, scalar: Scalar, *, context: int, hidden: int, blocks: int, angles: bool = False
    ) -> None:
        super().__init__()
        self.scalar, self.angles = scalar, angles
        self.register_buffer("changed", mask.nonzero()[:, 0], persistent=False)
        self.register_buffer("given", (~mask).nonzero()[:, 0], persistent=False)
        inputs, outputs = max(1, len(self.given)) * (1 + angles), scalar.count * len(self.changed)
        self.net = Mlp(inputs, outputs, hidden=hidden, blocks=blocks, context=context)

    def parameters_given(self, x: Tensor, h: Tensor | None) -> Tensor:
        """The scalar's parameters [count, d_B, N] from the entries A of x."""
        seen = x.T[self.given].T if len(self.given) else torch.zeros(len(x), 1, dtype=x.dtype, device=x.device)
        seen = turns(seen) if self.angles else seen
        return self.net.features_first(seen, h).view(self.scalar.count, len(self.changed), len(x))

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        z, log_slope = self.scalar.forward(x.T[self.changed], self.parameters_given(x, h))
        return Step(x.T.index_copy(0, self.changed, z).T, log_slope.sum(0))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        x = self.scalar.inverse(z.T[self.changed], self.parameters_given(z, h))
        return z.T.index_copy(0, self.changed, x).T
