"""Masked autoregressive layers (Papamakarios et al. 2017, eq. 3-5).

    z_i = g(x_i; net_i(x_1, ..., x_{i-1}, h))

The density costs one pass of a MADE. Sampling visits the entries in order; every hidden unit is computed
once, when all it depends on is known, so that all d steps together cost about one pass too. Gradients of a sample
follow from the implicit function theorem, with one more pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pofx.nn.causal import MaskedMlp, site_order
from pofx.transforms.base import Noise, Scalar, Step, Transform, implicit


class MaskedAutoregressive(Transform):
    """z_i = scalar(x_i; net_i(x_<i, h)), "before" in the order of the entries or in the reverse of it.

    Args:
        dim: d.
        scalar: the monotone map g.
        context: width of h; 0 for none.
        hidden, blocks: width and number of the hidden layers.
        reverse: entry i sees those after it, instead of those before.

    Example:
        >>> import torch
        >>> from pofx.transforms.spline import Spline
        >>> layer = MaskedAutoregressive(3, Spline(bins=4), context=0, hidden=8, blocks=1)
        >>> x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(layer.inverse(layer(x).z), x, atol=1e-5)
        True
    """

    def __init__(
        self, dim: int, scalar: Scalar, *, context: int, hidden: int, blocks: int, reverse: bool = False
    ) -> None:
        super().__init__()
        self.scalar = scalar
        order = site_order("reverse" if reverse else "raster", dim)
        self.net = MaskedMlp(
            [1] * dim,
            [scalar.count] * dim,
            [hidden] * blocks,
            context=context,
            orders=[order],
            residual=True,
            direct=False,
        )

    def _features_first(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """z and log dz/dx of each entry, [d, N]."""
        n, d = x.shape
        parameters = self.net.features_first(x, h).view(d, self.scalar.count, n).transpose(0, 1)
        return self.scalar.forward(x.T.contiguous(), parameters)

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        z, log_slope = self._features_first(x, h)
        return Step(z.T, log_slope.sum(0))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
            again, log_slope = self._features_first(x, h)
            return again.T, log_slope.exp().T

        return implicit(self._solved(z, h), z, slopes)

    @torch.no_grad()
    def _solved(self, z: Tensor, h: Tensor | None) -> Tensor:
        walk = self.net.walk(len(z), h)
        entries = list(z.T.contiguous())
        for i in walk.order:
            entries[i] = self.scalar.inverse(entries[i], walk.params_first())
            walk.push_first(entries[i])
        return torch.stack(entries).T
