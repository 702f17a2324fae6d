"""Tails that a surprise does not cost the earth: normal as far as there is reason to think so, a power law beyond.

A normal curve that was fitted to ten rows says of the eleventh, a thousand standard deviations away, that it has
-500,000 nats. ``shorten`` leaves |v| <= reach as it is and maps what lies beyond by

    s(v) = sign(v) sqrt(reach^2 + 2 log(1 + reach (|v| - reach))),

which is smooth at the reach. If s(v) is standard normal, the density of v falls as |v|^-2 beyond it: a value 10^10
standard deviations away costs some 60 nats. The map is one to one, so with its slope every density stays proper and
exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

REACH = 5.0  # standard deviations: one normal value in two million lies beyond


def shorten(v: Tensor, reach: Tensor | float = REACH) -> tuple[Tensor, Tensor]:
    """s(v) and log ds/dv, shaped as v. NaN stays NaN, with a log slope of 0."""
    reach = torch.as_tensor(reach, dtype=v.dtype, device=v.device)
    beyond = (v.abs() - reach).clamp(min=0).nan_to_num(nan=0.0)
    stretch = torch.log1p(reach * beyond)
    size = (reach.square() + 2 * stretch).sqrt()
    log_slope = torch.where(beyond > 0, reach.log() - size.log() - stretch, 0.0)
    return torch.where(beyond > 0, v.sign() * size, v), log_slope


def lengthen(s: Tensor, reach: Tensor | float = REACH) -> Tensor:
    """The inverse of ``shorten``."""
    reach = torch.as_tensor(reach, dtype=s.dtype, device=s.device)
    beyond = ((s.square() - reach.square()) / 2).clamp(min=0).expm1() / reach
    return torch.where(s.abs() > reach, s.sign() * (reach + beyond), s)


def normal_log_prob(z: Tensor, reach: float = REACH) -> Tensor:
    """Log-density of the standard normal with these tails."""
    s, log_slope = shorten(z, reach)
    return log_slope - 0.5 * s.square() - 0.5 * math.log(2 * math.pi)
