"""Predictions from what came before, in whole numbers: data and their errors are the same thing, written otherwise.

    e_t = (x_t - p(x_0, ..., x_{t-1}) + middle) mod levels

maps data one to one onto errors, so that a probability of errors is one of data, exactly. Errors are smaller than
what they are errors of: a net that models them starts where lossless codecs are (FLAC predicts sound by a few linear
coefficients, PNG and JPEG-LS a pixel by its neighbours), and learns what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHIFT = 14  # bits behind the point of a coefficient: sums of products are exact, forwards and backwards


class LinearPrediction(nn.Module):
    """A sample of sound by the ones before it (Makhoul 1975; Robinson 1994, "Shorten"), one filter for all sounds.

    Args:
        order: how many samples before; levels: of a sample, silence in the middle.
    """

    coefficients: Tensor

    def __init__(self, order: int, levels: int) -> None:
        super().__init__()
        self.order, self.levels, self.middle = order, levels, levels // 2
        self.register_buffer("coefficients", torch.zeros(order, dtype=torch.int64))  # of the latest sample first

    def learn(self, x: Tensor) -> None:
        """Least squares over sounds x [N, L] (-1 after the end), with a little ridge."""
        v = self._amplitude(x).double()
        lags = torch.stack([v, *(self._back(v, k) for k in range(1, self.order + 1))]).flatten(1)
        gram = lags @ lags.T
        past = gram[1:, 1:] + 1e-6 * gram[0, 0] * torch.eye(self.order, dtype=gram.dtype, device=gram.device)
        if gram[0, 0] > 0:
            self.coefficients.copy_((torch.linalg.solve(past, gram[1:, 0]) * 2**SHIFT).round().long())

    def errors(self, x: Tensor) -> Tensor:
        """Levels x [N, L] -> errors of the same shape; -1 stays -1."""
        v = self._amplitude(x)
        past = sum((a * self._back(v, k) for k, a in enumerate(self.coefficients.tolist(), 1)), torch.zeros_like(v))
        return torch.where(x < 0, x, (v - rounded(past) + self.middle) % self.levels)

    def restored(self, e: Tensor) -> Tensor:
        """The inverse, sample by sample."""
        v = torch.zeros(e.shape[0], self.order + e.shape[1], dtype=torch.int64, device=e.device)
        latest_last = self.coefficients.flip(0)
        for t in range(e.shape[1]):
            past = (v[:, t : t + self.order] * latest_last).sum(1)
            level = (e[:, t] - self.middle + rounded(past) + self.middle) % self.levels
            v[:, self.order + t] = torch.where(e[:, t] < 0, 0, level - self.middle)
        return torch.where(e < 0, e, v[:, self.order :] + self.middle)

    def _amplitude(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, 0, x - self.middle)

    @staticmethod
    def _back(v: Tensor, k: int) -> Tensor:
        """v [N, L] of k samples before."""
        return nn.functional.pad(v, (k, 0))[:, : v.shape[1]]


def rounded(sums: Tensor) -> Tensor:
    return (sums + 2 ** (SHIFT - 1)) >> SHIFT


def image_errors(x: Tensor, levels: int) -> Tensor:
    """Levels x [N, C, H, W] -> errors of the same shape, int64 (see ``predicted``)."""
    x = x.long()
    left = nn.functional.pad(x, (1, 0))[..., :-1]
    up = nn.functional.pad(x, (0, 0, 1, 0))[..., :-1, :]
    corner = nn.functional.pad(x, (1, 0, 1, 0))[..., :-1, :-1]
    left[..., 0] = up[..., 0]  # the first column has nothing to its left
    corner[..., 0] = up[..., 0]
    up[..., 0, :] = left[..., 0, :]  # and the first row nothing above
    corner[..., 0, :] = left[..., 0, :]
    left[..., 0, 0] = up[..., 0, 0] = corner[..., 0, 0] = levels // 2
    return (x - predicted(x, left, up, corner, levels) + levels // 2) % levels


def image_restored(e: Tensor, levels: int) -> Tensor:
    """The inverse of ``image_errors``, pixel by pixel."""
    n, channels, height, width = e.shape
    x, e = torch.zeros_like(e, dtype=torch.int64), e.long()
    for i in range(height):
        for j in range(width):
            left = x[:, :, i, j - 1] if j else x[:, :, i - 1, j]
            up = x[:, :, i - 1, j] if i else left
            corner = x[:, :, i - 1, j - 1] if i and j else (up if i else left)
            if not (i or j):
                left = up = corner = torch.full((n, channels), levels // 2, device=e.device)
            for c in range(channels):
                p = predicted(x[:, : c + 1, i, j], left[:, : c + 1], up[:, : c + 1], corner[:, : c + 1], levels)[:, c]
                x[:, c, i, j] = (e[:, c, i, j] - levels // 2 + p) % levels
    return x


def predicted(x: Tensor, left: Tensor, up: Tensor, corner: Tensor, levels: int) -> Tensor:
    """Predictions [N, C, ...] of levels x: the median of left, up and left + up - corner (Weinberger et al. 2000).

    A further channel of a pixel is taken to err as the one before it did.
    """
    low, high = torch.minimum(left, up), torch.maximum(left, up)
    median = (left + up - corner).maximum(low).minimum(high)
    before = nn.functional.pad((x - median)[:, :-1].transpose(0, 1), (0,) * (2 * (x.ndim - 1)) + (1, 0)).transpose(0, 1)
    return (median + before).clamp(0, levels - 1)
