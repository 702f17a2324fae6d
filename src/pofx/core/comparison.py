"""Is one likelihood better than another on the same data? What their kinds and errors allow one to say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pofx.core.errors import Incomparable
from pofx.core.likelihood import (
    Available,
    Estimate,
    Exact,
    Likelihood,
    LowerBound,
    Number,
    Unavailable,
    UpperBound,
    mean,
    number,
    per_row,
)

Verdict: TypeAlias = Literal["better", "worse", "undecided"]


NORMAL_95 = 1.959964  # standard errors, of a normal, of an interval that covers in 95% of cases
FEWEST = 3  # rows of which a mean difference has an error worth the name


@dataclass(frozen=True)
class Comparison:
    """Mean paired difference of two likelihoods on the same data, and what it allows one to say.

    Attributes:
        verdict: of a against b.
        nats: mean of a - b per datum; infinite where one of them holds a datum impossible, NaN where there is none.
        se: its standard error, of data, of Monte Carlo draws and of what the rows share; None where the data do not
            tell it (one datum, an infinite mean).
        sign: 1 or -1 where the difference is beyond its error (see ``compare``), else 0; of the numbers as they
            stand, whatever their kinds allow one to conclude.
        why: in words.
    """

    verdict: Verdict
    nats: float
    se: float | None
    sign: int
    why: str


def compare(
    a: Likelihood, b: Likelihood, *, z: float = 2.0, weight: Tensor | None = None, group: Tensor | None = None
) -> Comparison:
    """Is ``a`` better than ``b`` on these data (same rows, in the same order; ``weight`` [N] weighs them)?

    Where rows depend on each other, ``group`` [N] numbers what is independent, and counts in place of rows below.

    ``better`` only where the difference is exact or a lower bound (of a lower limit of a and an upper limit of b), and
    its mean is beyond its error. An estimate decides nothing. Beyond its error is

    - an infinite difference: b holds impossible (log p = -inf) what a does not, on one datum or more;
    - of three rows or more, a mean of more than t standard errors: the quantile of Student's t (a degree of freedom
      less than there are rows) that is exceeded as rarely as ``z`` by a normal one;
    - of three rows or more that all agree, a smallest difference of more than the same t times (1 nat + the standard
      deviation of the rows of the steadier model + the error of what rows share): however far the other one's rows
      spread, which is what makes the error of the mean large, no row comes near to changing the sign.

    What rows share (see ``core.likelihood``) counts in full, however many they are, and cancels where both share it.
    Of one or two rows there is no error to compare with. Raises Incomparable when the measures differ.

    Example:
        >>> import torch
        >>> from pofx.core.measure import Measure
        >>> rows = torch.linspace(-1, 1, 100)
        >>> flow = Exact(rows - 3.2, Measure.lebesgue(2))
        >>> elbo = LowerBound(rows - 3.5, Measure.lebesgue(2), torch.zeros(100), draws=0)
        >>> compare(flow, elbo).verdict  # what the bound hides may be more than 0.3 nats
        'undecided'
        >>> compare(flow, Exact(rows - 3.5, Measure.lebesgue(2))).verdict
        'better'
    """
    if isinstance(a, Unavailable) or isinstance(b, Unavailable):
        return Comparison("undecided", math.nan, None, 0, "there is no likelihood to compare")
    if a.measure != b.measure:
        raise Incomparable(
            f"Measures differ: {a.measure} against {b.measure}.",
            "Fit both models on one loaded data set, so that both model the same space.",
        )
    if a.nats.shape != b.nats.shape:
        raise Incomparable(f"{tuple(a.nats.shape)} data against {tuple(b.nats.shape)}.", "Take the same rows.")
    w = torch.ones(a.nats.numel(), dtype=torch.float64) if weight is None else weight.double().cpu()
    ours, theirs = (number(per_row(lambda t: t.detach().double().cpu().flatten()[w > 0], lik)) for lik in (a, b))
    some = None if group is None else group.cpu()[w > 0]
    kind, (nats, se, sign, why) = (ours - theirs).kind, _difference(ours, theirs, z, w[w > 0], some)
    if isinstance(a, Estimate) or isinstance(b, Estimate):
        return Comparison("undecided", nats, se, sign, "an estimate bounds nothing on either side")
    if kind is Estimate:
        return Comparison("undecided", nats, se, sign, "two bounds on the same side do not order the likelihoods")
    if kind in (Exact, LowerBound) and sign > 0:
        return Comparison("better", nats, se, sign, f"lower limit above upper limit: {why}")
    if kind in (Exact, UpperBound) and sign < 0:
        return Comparison("worse", nats, se, sign, f"upper limit below lower limit: {why}")
    return Comparison("undecided", nats, se, sign, "the gap of the bound may explain the difference" if sign else why)


def _difference(
    a: Number[Tensor], b: Number[Tensor], z: float, w: Tensor, group: Tensor | None
) -> tuple[float, float | None, int, str]:
    """Mean of a - b [N], its standard error, its sign where it is beyond that error (else 0), and why."""
    n, lost = len(w), [int((v.nats == -math.inf).sum()) for v in (a, b)]
    if all(lost):
        return math.nan, None, 0, f"both hold rows impossible, {lost[0]} and {lost[1]} of {n}"
    if any(lost):
        sign = -1 if lost[0] else 1
        return sign * math.inf, None, sign, f"{max(lost)} of {n} rows impossible under the other"
    found = mean(a - b, w, group=group)  # the errors of draws are in the spread between rows, which they widen
    if not math.isfinite(found.nats):
        return math.nan, None, 0, "a density that is infinite orders nothing"
    of = w if group is None else torch.zeros(len(w)).to(w).index_add(0, torch.unique(group, return_inverse=True)[1], w)
    k, one, several = int((of > 0).sum()), *(("row", "rows") if group is None else ("group", "groups of rows"))
    if k == 1:
        return found.nats, None, 0, f"the error of a difference on one {one} is unknown"
    se = found.error
    assert se is not None
    if k < FEWEST:
        return found.nats, se, 0, f"{k} {several} are too few to tell the error of their difference"
    counting = (of.sum() ** 2 / of.square().sum()).item()  # rows: all where all weigh the same (Kish, 1965)
    sign, limit = (found.nats > 0) - (found.nats < 0), student(z, max(1.0, counting - 1))
    if abs(found.nats) > limit * se:
        return found.nats, se, sign, f"the difference is more than {limit:.3g} standard errors"
    steadier = min(a.nats.std().item(), b.nats.std().item())
    if (sign * (a.nats - b.nats)).min().item() > limit * (1 + steadier + found.shared_se):
        return found.nats, se, sign, f"all {n} rows agree, by more than {limit:.3g} times the steadier one's spread"
    return found.nats, se, 0, f"difference within {limit:.3g} standard errors"


def interval(lik: Available, z: float = NORMAL_95) -> tuple[Tensor, Tensor]:
    """The limits of log p of each datum, shaped like ``nats``, by the error of its draws: z standard errors each way.

    Of few draws it is wider, as Student's t has it. Of a bound these are the limits of the bound. What rows share is
    counted.

    Example:
        >>> import torch
        >>> from pofx.core.measure import Measure
        >>> told = Estimate(torch.tensor([-3.0]), Measure.lebesgue(2), torch.tensor([0.1]), 4, "four probes")
        >>> [round(limit.item(), 3) for limit in interval(told)]  # 3.18 standard errors
        [-3.318, -2.682]
    """
    rows = number(lik)
    limit = student(z, rows.draws - 1) if rows.draws > 1 else z
    error = limit * torch.as_tensor(rows.error)
    return rows.nats - error, rows.nats + error


def student(z: float, freedom: float) -> float:
    """The quantile of Student's t, of so many degrees of freedom, that is exceeded as rarely as z by a normal one."""
    from scipy.special import ndtr, stdtrit

    return -float(stdtrit(freedom, ndtr(-z)))
