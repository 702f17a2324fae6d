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
from torch.nn import functional as F

BOUND = 5.0  # B: outside it a spline is the identity
LOG_RATIO = math.log(1e3)  # knots' slopes stay in (1e-3, 1e3), and so do ratios of bin widths


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
        return spline_inverse(z.flatten(), parameters.flatten(1)).view(z.shape)


def knots(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unconstrained [3K - 1, M] -> widths [K, M], heights [K, M] (each sums to 2B), slopes [K + 1, M] at the knots.

    ``raw`` = 0 is the identity. The outer knots have slope 1, to join the tails.
    """
    bins = (len(raw) + 1) // 3
    w, h, s = raw.split((bins, bins, bins - 1))
    widths = soft_clip(w, LOG_RATIO / 2).softmax(0) * (2 * BOUND)
    heights = soft_clip(h, LOG_RATIO / 2).softmax(0) * (2 * BOUND)
    slopes = F.pad(soft_clip(s, LOG_RATIO), (0, 0, 1, 1)).exp()
    return widths, heights, slopes


def soft_clip(x: Tensor, limit: float) -> Tensor:
    """x -> (-limit, limit), monotone, with slope 1 at zero."""
    return x / (1 + (x / limit).abs())


def spline(x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """y and log dy/dx, each [M], of scalars x [M] under parameters ``raw`` [3K - 1, M]."""
    y, log_slope = _Spline.apply(x, *knots(raw))
    return y, log_slope


def spline_inverse(y: Tensor, raw: Tensor) -> Tensor:
    """x [M] with spline(x) = y (Durkan et al. 2019, eq. 6-8; the root that does not cancel)."""
    widths, heights, slopes = knots(raw)
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
    x0, y0 = torch.full_like(widths[0], -BOUND), torch.full_like(widths[0], -BOUND)
    w, h, d0, d1 = (torch.zeros_like(x0) for _ in range(4))
    for k in range(len(widths)):
        x0.addcmul_(left[k + 1], widths[k])
        y0.addcmul_(left[k + 1], heights[k])
        here = left[k] - left[k + 1]
        w.addcmul_(here, widths[k])
        h.addcmul_(here, heights[k])
        d0.addcmul_(here, slopes[k])
        d1.addcmul_(here, slopes[k + 1])
    return x0, y0, w, h, d0, d1


class _Spline(torch.autograd.Function):
    """Durkan et al. 2019, eq. 4-5, with z in [0, 1] the place in the bin and q = z (1 - z)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
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
        ctx.save_for_backward(left, inside, w, h, d0, d1, z)
        # outside, y - inner is zero at both ends and x goes through
        return y + (x - inner), log_slope * inside

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_out: Tensor, g_log: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        left, inside, w, h, d0, d1, z = ctx.saved_tensors
        s, q = h / w, z * (1 - z)
        bend = d0 + d1 - 2 * s
        denominator = s + bend * q
        ratio = (s * z * z + d0 * q) / denominator
        curve = d1 * z * z + 2 * s * q + d0 * (1 - z).square()
        gy, gl = g_out * inside, g_log * inside
        # y = y0 + h * numerator / denominator;  log_slope = 2 log s + log curve - 2 log denominator
        g_num = gy * h / denominator
        g_den = -(g_num * ratio + 2 * gl / denominator)
        g_curve = gl / curve
        g_s = 2 * gl / s + g_num * z * z + g_den * (1 - 2 * q) + g_curve * 2 * q
        g_d0 = (g_num + g_den) * q + g_curve * (1 - z).square()
        g_d1 = g_den * q + g_curve * z * z
        g_q = g_num * d0 + g_den * bend + g_curve * 2 * s
        g_z = 2 * (g_num * s * z + g_curve * (d1 * z - d0 * (1 - z))) + g_q * (1 - 2 * z)
        g_x = g_z / w
        g_h = gy * ratio + g_s / w
        g_w = -(g_s * s + g_z * z) / w
        # x0 and y0 are sums of the lengths of the bins to the left; the rest belongs to the bin itself
        right, here = left[1:], left[:-1] - left[1:]
        g_widths = torch.addcmul(here * g_w, right, -g_x)
        g_heights = torch.addcmul(here * g_h, right, gy)
        g_slopes = F.pad(here * g_d0, (0, 0, 0, 1))
        g_slopes[1:].addcmul_(here, g_d1)
        return g_x + g_out * (1 - inside), g_widths, g_heights, g_slopes
