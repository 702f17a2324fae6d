"""Masked autoregressive layers (Papamakarios et al. 2017, eq. 3-5).

    z_i = g(x_i; net_i(x_1, ..., x_{i-1}, h))

The density costs one pass of a MADE. Sampling visits the entries in order; every hidden unit is computed
once, when all it depends on is known, so that all d steps together cost about one pass too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pofx.nn.causal import MaskedMlp, site_order
from pofx.transforms.base import Scalar, Transform


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
        >>> z, log_det = layer(x)
        >>> torch.allclose(layer.inverse(z), x, atol=1e-5)
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

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        n, d = x.shape
        parameters = self.net.features_first(x, h).view(d, self.scalar.count, n).transpose(0, 1)
        z, log_slope = self.scalar.forward(x.T.contiguous(), parameters)
        return z.T, log_slope.sum(0)

    @torch.no_grad()
    def inverse(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        """Without gradient."""
        walk = self.net.walk(len(z), h)
        entries = list(z.T.contiguous())
        for i in walk.order:
            entries[i] = self.scalar.inverse(entries[i], walk.params_first())
            walk.push_first(entries[i])
        return torch.stack(entries).T
