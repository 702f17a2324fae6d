"""What every map of numeric columns needs: location and scale, the points of a grid, how often values occur."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(x: Tensor, weight: Tensor | None = None, extra: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [*S] of what is not NaN in x [N, *S] under ``weight`` [N], in x's precision.

    ``extra`` is added to the variance. A constant leaves only rounding, and a column without a value nothing: any
    scale serves them, and theirs is 1.
    """
    w = (torch.ones(len(x)) if weight is None else weight).to(x).reshape(-1, *[1] * (x.ndim - 1)) * ~x.isnan()
    v, total = x.nan_to_num(nan=0.0), w.sum(0).clamp(min=torch.finfo(x.dtype).tiny)
    mean = (w * v).sum(0) / total
    std = ((w * (v - mean).square()).sum(0) / total + extra).sqrt()
    return mean, torch.where((std > 1e-12 * mean.abs()) & w.any(0), std, 1.0)


def on_grid(v: Tensor, step: Tensor, origin: Tensor) -> Tensor:
    """The points of the grids origin + step Z that are nearest to v; v itself where step is 0."""
    return torch.where(step > 0, origin + ((v - origin) / torch.where(step > 0, step, 1.0)).round() * step, v)


def shares(v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct values of v [N], their shares of the weight, and which of them each entry has [N]."""
    values, index = v.unique(return_inverse=True)
    share = torch.zeros(len(values), dtype=torch.float64, device=v.device).index_add_(0, index, weight.double())
    return values, share / share.sum(), index
