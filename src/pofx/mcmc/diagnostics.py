"""Have chains mixed? Rank-normalised split R-hat and effective sample sizes (Vehtari et al. 2021).

All functions take x [C, T, *W], T states of each of C chains of any number of quantities, and answer [*W] in float64.
All states count, those too that repeat because a proposal was rejected: draws without them have another distribution.
Where fewer than 4 states, or a value that is no number, leave nothing to say, the answer is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pofx.core.verdict import Verdict

TAILS = (0.05, 0.95)  # the quantiles whose effective sample sizes are those of the tails
FEWEST = 4  # states of a chain: two of each half


def rhat(x: Tensor) -> Tensor:
    """The larger R-hat of rank-normalised values and of folded ones: 1 where the chains agree (section 4)."""

    def both(x: Tensor) -> Tensor:
        halves = split(x)
        folded = (halves - median(halves)).abs()
        return torch.fmax(
            _rhat(rank_normalised(halves)), _rhat(rank_normalised(folded))
        )  # NaN where all are equally far

    return _each(both, x)


def ess_bulk(x: Tensor) -> Tensor:
    """Effective sample size for the middle of the distribution: that of rank-normalised values (section 4)."""
    return _each(lambda x: _ess(rank_normalised(split(x))), x)


def ess_tail(x: Tensor) -> Tensor:
    """The smaller effective sample size of those of the 5% and of the 95% quantile (section 4)."""
    return torch.minimum(*(ess_quantile(x, p) for p in TAILS))


def ess_quantile(x: Tensor, p: float) -> Tensor:
    """Effective sample size for the quantile p: that of the indicator of all below it (section 4)."""
    return _each(lambda x: _ess(split((x <= quantile(x, p)).double())), x)


def ess_mean(x: Tensor) -> Tensor:
    """Effective sample size for the mean, whose variance is that of the mean of so many independent draws."""
    return _each(lambda x: _ess(split(x)), x)


def verdict(x: Tensor, acceptance: float | None, divergent: int, groups: int = 1) -> Verdict:
    """The worst of all quantities x [C, T, W] over the chains of each group.

    A quantity that is the same in all states, as a pixel that is always off, has nothing to mix; where nothing moves at
    all there is no verdict but NaN, which is not mixed.
    """
    x = x.unflatten(0, (groups, -1)).movedim(0, 2).flatten(2)  # [C / groups, T, groups W]
    moves = (x != x[:1, :1]).flatten(0, 1).any(0)
    x = x[:, :, moves] if moves.any() else x[:, :, :1]

    def least(values: Tensor) -> float:
        return float(values.min())  # NaN where one is

    return Verdict(
        -least(-rhat(x)), least(ess_bulk(x)), least(ess_tail(x)), acceptance, len(x), x.shape[1], divergent
    )  # fmt: skip


# -- parts, of x [C, T, W] in float64 -------------------------------------------------------------------------


def split(x: Tensor) -> Tensor:
    """The halves of each chain as chains [2 C, T // 2, W], without the middle of an odd number of states."""
    half = x.shape[1] // 2
    return torch.cat([x[:, :half], x[:, -half:]])


def median(x: Tensor) -> Tensor:
    """Of all states of all chains [W]: between two by their mean, from which both are equally far to the last bit."""
    values, n = x.flatten(0, 1).sort(0).values, x.shape[0] * x.shape[1]
    return (values[(n - 1) // 2] + values[n // 2]) / 2


def quantile(x: Tensor, p: float) -> Tensor:
    """Of all states of all chains [W], linear between two."""
    values = x.flatten(0, 1).sort(0).values
    place = p * (len(values) - 1)
    low = math.floor(place)
    return torch.lerp(values[low], values[min(low + 1, len(values) - 1)], place - low)


def rank_normalised(x: Tensor) -> Tensor:
    """Phi^-1((r - 3/8) / (S + 1/4)) of the ranks r among all S states, ties at their mean rank (eq. 14)."""
    values = x.flatten(0, 1).T.contiguous()  # [W, S]
    ordered = values.sort(1).values
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    rank = (below + upto + 1).double() / 2
    return torch.special.ndtri((rank - 3 / 8) / (values.shape[1] + 1 / 4)).T.reshape(x.shape)


def _rhat(x: Tensor) -> Tensor:
    """sqrt(var+ / W) (eq. 1 to 4)."""
    n = x.shape[1]
    within, between = x.var(1).mean(0), n * x.mean(1).var(0)
    return ((between / within + n - 1) / n).sqrt()


def _ess(x: Tensor) -> Tensor:
    """S / tau with tau = 1 + 2 sum_t rho_t (eq. 10 to 13), cut where Geyer's pairs end.

    Sums of neighbours P_k = rho_2k + rho_2k+1 are positive and fall for a reversible chain (Geyer 1992): the sum goes
    on up to the first that is not positive, each no larger than the one before, and takes one more rho.
    """
    m, n = x.shape[:2]
    centred = x - x.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, 2 * n, dim=1).abs().square()
    covariance = torch.fft.irfft(spectrum, 2 * n, dim=1)[:, :n] / n  # [m, n, W]
    within = covariance[:, 0].mean(0) * n / (n - 1)
    total = within * (n - 1) / n + x.mean(1).var(0)
    rho = 1 - (within - covariance.mean(0)) / total  # [n, W]
    rho[0] = 1
    last = max(0, (n - 3) // 2)  # the last pair that is looked at: those of the longest lags are of few products
    pairs = rho[: 2 * last + 2].unflatten(0, (last + 1, 2)).sum(1)
    ends = torch.cat([pairs[:-1] <= 0, torch.ones_like(pairs[:1], dtype=torch.bool)]).int().argmax(0)  # [W]
    inside = torch.arange(last + 1, device=x.device)[:, None] < ends
    falling = pairs.cummin(0).values.where(inside, 0.0)
    more = rho[: 2 * last + 2 : 2].gather(0, ends[None])[0].clamp(min=0)
    tau = (2 * falling.sum(0) + more - 1).clamp(min=1 / math.log10(m * n))  # of a chain that swings, not below
    constant = x.amax((0, 1)) - x.amin((0, 1)) < 1e-15
    return (m * n / tau).where(~constant, m * n)


def _each(of: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``of`` every quantity in float64, NaN where there is nothing to say."""
    flat = x.double().reshape(*x.shape[:2], -1)
    known = flat.isfinite().flatten(0, 1).all(0)
    found = torch.full((flat.shape[2],), math.nan, dtype=torch.float64, device=x.device)
    if x.shape[1] >= FEWEST and known.any():
        found[known] = of(flat[:, :, known])
    return found.reshape(x.shape[2:])
