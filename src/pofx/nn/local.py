"""A decoder of images whose pixels see those before them, nearby (Gulrajani et al. 2017; Chen et al. 2017, section 3).

    p(x | z) = prod_i p(x_i | x_j: j before i and within the window; z)

A latent vector need not spell out what neighbours tell of each other: strokes, textures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.mlp import at_least_single, zeroed
from pofx.nn.sites import Heads


class LocalPixels(nn.Module):
    """Parameters of the heads from an image and from features u(z) of every pixel.

    y = conv(x) + u with a kernel of the pixels before, then 1 x 1 layers: y + W2 act(W1 act(y)), W3 act(y). As there is
    one such convolution, a drawn pixel costs one product with the pixels in its window. Channels of one pixel do not
    see each other.

    Args:
        channels: C of the image.
        features: F, of each pixel.
        params: P, numbers of one head.
        window: how far a pixel sees up, left and, in the rows above, right.
    """

    mask: Tensor

    def __init__(self, channels: int, features: int, params: int, window: int) -> None:
        super().__init__()
        self.channels, self.window = channels, window
        self.conv = nn.Conv2d(channels + 1, features, (window + 1, 2 * window + 1))
        mask = torch.ones(window + 1, 2 * window + 1)
        mask[-1, window:] = 0
        self.register_buffer("mask", mask, persistent=False)
        self.up, self.down = nn.Conv2d(features, features, 1), zeroed(nn.Conv2d(features, features, 1))
        self.last = nn.Conv2d(features, channels * params, 1)

    def forward(self, y: Tensor, u: Tensor) -> Tensor:
        """y [N, C, H, W] as nets see it, u [N, k, F, H, W] -> [N, k, C * H * W * P], in the order of the sites."""
        seen = F.conv2d(self._padded(y), self.conv.weight * self.mask, self.conv.bias)
        params = self._each((seen[:, None] + u).flatten(0, 1).contiguous(memory_format=torch.channels_last))
        params = params.unflatten(1, (self.channels, -1)).permute(0, 1, 3, 4, 2)
        return at_least_single(params.reshape(*u.shape[:2], -1))

    @torch.no_grad()
    def sample(self, u: Tensor, heads: Heads, generator: torch.Generator) -> Tensor:
        """Images [n, *E] of u [n, F, H, W], pixel by pixel."""
        n, _, height, width = u.shape
        seen = self._padded(u.new_zeros(n, self.channels, height, width))
        values = torch.zeros(n, self.channels, height, width, dtype=torch.float64, device=u.device)
        weight, w = (self.conv.weight * self.mask).flatten(1), self.window
        for i in range(height):
            for j in range(width):
                near = seen[:, :, i : i + w + 1, j : j + 2 * w + 1].flatten(1)
                y = F.linear(near, weight, self.conv.bias) + u[:, :, i, j]
                params = self._each(y[:, :, None, None]).view(n, self.channels, -1)
                for c in range(self.channels):
                    head = heads.site((c * height + i) * width + j)
                    values[:, c, i, j] = head.sample(params[:, c], generator)
                    seen[:, c, i + w, j + w] = head.embed(values[:, c, i, j])[:, 0]
        return heads.event(values.flatten(1))

    def _padded(self, y: Tensor) -> Tensor:
        """With a channel of ones that tells the image from what surrounds it."""
        w = self.window
        return F.pad(torch.cat([y, torch.ones_like(y[:, :1])], 1), (w, w, w, 0))

    def _each(self, y: Tensor) -> Tensor:
        y = y + self.down(F.silu(self.up(F.silu(y))))
        return self.last(F.silu(y))  # type: ignore[no-any-return]
