"""Shares and ranks with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.core.errors import UsageError


@dataclass(frozen=True)
class Auroc:
    """P(an outlier is more surprising than an inlier), ties counted half; ``se`` by DeLong et al. (1988)."""

    auroc: float
    se: float
    n_in: int
    n_out: int


def auroc(inliers: Tensor, outliers: Tensor, groups: tuple[Tensor | None, Tensor | None] = (None, None)) -> Auroc:
    """Area under the ROC curve of values [M] and [N]; higher ones should mean outliers.

    The standard error is DeLong's: the placements V10 of outliers among inliers and V01 of inliers among
    outliers are U-statistics' components, whose variances add (DeLong, DeLong & Clarke-Pearson, 1988). Where all of
    them are equal, as of few rows that are all in order, it would be 0: then it is that of a share of the fewer rows.
    ``groups``: [M] and [N], the same for rows that depend on each other, which then count as one.

    Example:
        >>> import torch
        >>> auroc(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0])).auroc  # 5 of 6 pairs in order
        0.833...
    """
    if min(len(inliers), len(outliers)) < 2:
        raise UsageError(
            f"{len(inliers)} inliers and {len(outliers)} outliers: an AUROC with its error needs 2 of each."
        )
    v10, v01 = _placement(outliers, inliers), 1 - _placement(inliers, outliers)
    area = float(v10.mean())
    se = math.hypot(error_of_mean(v01, groups[0]), error_of_mean(v10, groups[1]))
    fewest = min(independent(inliers, groups[0]), independent(outliers, groups[1]))
    return Auroc(area, se or share_error(area, fewest), len(inliers), len(outliers))


def numbered(group: Tensor) -> Tensor:
    """Groups [N] by numbers that leave none out."""
    return group.cpu().unique(return_inverse=True)[1]


def independent(rows: Tensor, group: Tensor | None) -> int:
    """How many of the rows [N] do not depend on each other: the groups [N] that there are, or all."""
    return len(rows) if group is None else len(group.unique())


def error_of_mean(each: Tensor, group: Tensor | None = None) -> float:
    """Standard error of the mean of numbers [N]; of those that depend on each other, that of the choice of groups [N].

    Raises UsageError where all are of one group.
    """
    k, off = independent(each, group), each.double() - each.double().mean()
    if k < 2:
        raise UsageError("All rows depend on each other, so there is no error.", "Give rows of two groups or more.")
    if group is not None:
        off = torch.zeros(k).double().index_add_(0, numbered(group), off)
    return math.sqrt(float(off.square().sum()) * k / (k - 1)) / len(each)


def share_error(share: float, n: int) -> float:
    """Standard error of a share of n, with two successes and two failures added (Agresti & Coull, 1998).

    Unlike the plain one it is not 0 where all n agree.

    Example:
        >>> round(share_error(0.0, 30), 3)  # none of 30 is no proof of none at all
        0.04
    """
    p = (share * n + 2) / (n + 4)
    return math.sqrt(p * (1 - p) / (n + 4))


def _placement(x: Tensor, among: Tensor) -> Tensor:
    """For each x: the share of ``among`` below it, ties half."""
    ordered = among.sort().values
    below = torch.searchsorted(ordered, x.contiguous(), right=False)
    not_above = torch.searchsorted(ordered, x.contiguous(), right=True)
    return (below + not_above).double() / (2 * len(ordered))
