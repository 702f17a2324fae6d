"""Monotone rational-quadratic splines on [-B, B] with linear tails (Durkan et al. 2019, section 3.1).

Layout is *bins first*: all parameters of M independent scalars are [K, M], so that every operation runs
over contiguous M. The bin of each x is found and its parameters are picked by multiplying with 0/1 masks
and adding (exact, since all other terms are zero): on a CPU this is several times faster than gathers or
selects. The derivative is written out, for the same reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pofx.transforms.base import implicit

BOUND = 5.0  # B: outside it a spline is the identity
FLOOR = 1e-3  # of 2B: the smallest width and height of a bin
MOST_BINS = 500  # of which the smallest take half of 2B
SLOPE = math.log(1e3)  # inner slopes lie in (1e-3, 1e3)


@dataclass(frozen=True)
class Spline:
    """The spline as a map of single numbers; ``bins`` is K. See ``transforms.base.Scalar``."""

    bins: int = 8

    @property
    def count(self) -> int:
        """Numbers per scalar: widths, heights, slopes at the inner knots."""
        return 3 * self.bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slope = spline(x.flatten(), parameters.flatten(1))
        return z.view(x.shape), log_slope.view(x.shape)

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
            again, log_slope = self.forward(x, parameters)
            return again, log_slope.exp()

        return implicit(spline_inverse(z.flatten(), parameters.flatten(1)).view(z.shape), z, slopes)


def spline(x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """y and log dy/dx, each [M], of scalars x [M] under unconstrained parameters ``raw`` [3K - 1, M].

    ``raw`` = 0 is the identity.

    Example:
        >>> import torch
        >>> x = torch.tensor([-7.0, 0.3, 2.0])
        >>> y, log_slope = spline(x, torch.zeros(11, 3))  # 4 bins; zeros are the identity
        >>> torch.allclose(y, x), torch.allclose(log_slope, torch.zeros(3), atol=1e-6)
        (True, True)
    """
    y, log_slope = _Spline.apply(x, raw)
    return y, log_slope


@torch.no_grad()
def spline_inverse(y: Tensor, raw: Tensor) -> Tensor:
    """x [M] with spline(x) = y (Durkan et al. 2019, eq. 6-8; the root that does not cancel); no gradient."""
    widths, heights, slopes = knots(*shapes(raw))
    inner = y.clamp(-BOUND, BOUND)
    x0, y0, w, h, d0, d1 = _pick(_bins(inner, heights), widths, heights, slopes)
    s, dy = h / w, inner - y0
    bend = dy * (d0 + d1 - 2 * s)
    a = h * (s - d0) + bend
    b = h * d0 - bend
    c = -s * dy
    root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
    z = (2 * c / (-b - root)).clamp(0, 1)
    return torch.where(inner == y, x0 + z * w, y)


def shapes(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the bins in width and height [2, K, M] (softmax), and inner log slopes in units of SLOPE [K - 1, M]."""
    bins = (len(raw) + 1) // 3
    shares = raw[: 2 * bins].view(2, bins, -1).softmax(1)
    return shares, (raw[2 * bins :] / SLOPE).tanh()


def knots(shares: Tensor, log_slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widths [K, M] and heights [K, M], each of sum 2B, and slopes [K + 1, M]: 1 at the ends, to join the tails."""
    widths, heights = 2 * BOUND * (FLOOR + (1 - FLOOR * shares.shape[1]) * shares)
    return widths, heights, F.pad(SLOPE * log_slopes, (0, 0, 1, 1)).exp()


def _bins(v: Tensor, lengths: Tensor) -> Tensor:
    """Which knots lie at or left of v [M]: 0/1 masks [K + 1, M], from all ones down to all zeros."""
    left = torch.empty(len(lengths) + 1, *v.shape, dtype=v.dtype, device=v.device)
    left[0], left[-1] = 1, 0
    knot = torch.full_like(v, -BOUND)
    for k in range(1, len(lengths)):
        torch.ge(v, knot.add_(lengths[k - 1]), out=left[k])
    return left


def _pick(left: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
    """Of the bin that holds each scalar: its left knot (x0, y0), width, height and slopes at both ends, each [M]."""
    scratch = torch.empty_like(widths)  # one for all: a fresh one each time costs more than the product

    def total(mask: Tensor, of_bins: Tensor) -> Tensor:
        return torch.mul(mask, of_bins, out=scratch).sum(0)

    right, here = left[1:], left[:-1] - left[1:]
    x0, y0 = total(right, widths) - BOUND, total(right, heights) - BOUND
    return x0, y0, total(here, widths), total(here, heights), total(here, slopes[:-1]), total(here, slopes[1:])


class _Spline(torch.autograd.Function):
    """Durkan et al. 2019, eq. 4-5, with z in [0, 1] the place in the bin and q = z (1 - z)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shares, log_slopes = shapes(raw)
        widths, heights, slopes = knots(shares, log_slopes)
        inner = x.clamp(-BOUND, BOUND)
        left = _bins(inner, widths)
        x0, y0, w, h, d0, d1 = _pick(left, widths, heights, slopes)
        inside = torch.eq(inner, x).to(x.dtype)
        s, z = h / w, ((inner - x0) / w).clamp_(0, 1)
        q = z * (1 - z)
        numerator = s * z * z + d0 * q
        denominator = s + (d0 + d1 - 2 * s) * q
        curve = d1 * z * z + 2 * s * q + d0 * (1 - z).square()
        y = y0 + h * (numerator / denominator)
        log_slope = (curve * (s / denominator).square()).log()
        ctx.save_for_backward(shares, log_slopes, slopes, left, inside, w, h, d0, d1, z)
        return y * inside + x * (1 - inside), log_slope * inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor, g_log: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        shares, log_slopes, slopes, left, inside, w, h, d0, d1, z = ctx.saved_tensors
        s, q = h / w, z * (1 - z)
        bend = d0 + d1 - 2 * s
        denominator = s + bend * q
        ratio = (s * z * z + d0 * q) / denominator
        curve = d1 * z * z + 2 * s * q + d0 * (1 - z).square()
        # y = y0 + h numerator / denominator;  log_slope = 2 log s + log curve - 2 log denominator
        gy, gl = g_out * inside, g_log * inside
        g_num = gy * h / denominator
        g_den = -(g_num * ratio + 2 * gl / denominator)
        g_curve = gl / curve
        g_s = 2 * gl / s + g_num * z * z + g_den * (1 - 2 * q) + g_curve * 2 * q
        g_d0 = (g_num + g_den) * q + g_curve * (1 - z).square()
        g_d1 = g_den * q + g_curve * z * z
        g_q = g_num * d0 + g_den * bend + g_curve * 2 * s
        g_z = 2 * (g_num * s * z + g_curve * (d1 * z - d0 * (1 - z))) + g_q * (1 - 2 * z)
        g_x = g_z / w
        g_w, g_h = -(g_s * s + g_z * z) / w, gy * ratio + g_s / w
        # the left knot is the sum of the bins to the left; width, height and slopes are of the bin itself
        bins = len(left) - 1
        right, here = left[1:], left[:-1] - left[1:]
        g_raw = torch.empty(3 * bins - 1, len(z), dtype=z.dtype, device=z.device)
        for g, share, of_bin, of_knot in zip(
            g_raw[: 2 * bins].view(2, bins, -1), shares, (g_w, g_h), (-g_x, gy), strict=True
        ):
            torch.mul(here, of_bin, out=g).addcmul_(right, of_knot)
            g.sub_((g * share).sum(0)).mul_(share).mul_(2 * BOUND * (1 - FLOOR * bins))  # through the softmax
        g_slopes = torch.mul(here[1:], g_d0, out=g_raw[2 * bins :]).addcmul_(here[:-1], g_d1)
        g_slopes.mul_(slopes[1:-1]).mul_(1 - log_slopes.square())
        return torch.addcmul(g_x, g_out, 1 - inside), g_raw
