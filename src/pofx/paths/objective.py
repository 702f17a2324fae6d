"""What a path's network learns from: at which times, from which pairs of data and noise, and what an error weighs.

E w(t) |eps_hat(z_t, t) - eps|^2,    z_t = alpha x + sigma eps,    t = times(u), u uniform,    (x, eps) coupled

    times        the log SNR lambda at a random time
    log-snr      is uniform                                        Kingma et al. 2021
    uniform      is that of a uniform t                            Ho et al. 2020; Lipman et al. 2023
    log-normal   is normal: of log(sigma / alpha), mean -1.2 - log 0.5 and deviation 1.2, as Karras et al. 2022
                 (table 1) have it for data of deviation 0.5
    cosine       is that of the cosine schedule, tan of a uniform angle     Nichol & Dhariwal 2021

    weighting    w
    likelihood   |d lambda / du|: that of the variational bound, whatever the times     Kingma et al. 2021, eq. 17
    simple       1                                                 Ho et al. 2020, eq. 14
    edm          1 + (sigma / alpha)^2: flat in what Karras et al. 2022 (eq. 8) predict
    flat         the prediction's own: it is plain least squares

    coupling     eps for x
    independent  any
    optimal      the one that makes the sum of |x - eps|^2 over the minibatch least     Tong et al. 2024, section 3.2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pofx.paths.predict import Denoiser, Prediction, point
from pofx.paths.schedule import Point, Schedule

Times = Callable[[Schedule, Tensor], tuple[Tensor, Tensor]]
"""times(schedule, u [N]) -> t [N] and its pace |d lambda / du| [N] over the range of lambda."""
Weighting = Callable[[Prediction, Point, Tensor], Tensor]
"""weighting(prediction, p, pace) -> what the prediction's squared error is multiplied with, shaped like p."""
Coupling = Callable[[Tensor, Tensor], Tensor]
"""coupling(x, eps [N, *E]) -> the rows of eps in another order."""

MEAN, DEVIATION = -1.2 - math.log(0.5), 1.2


def even_in_log_snr(schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
    return schedule.time(schedule.ends[0] + u * schedule.range), torch.ones_like(u)


def even_in_time(schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
    t, ends = schedule.uniform(u), schedule.uniform(u.new_tensor([0.0, 1.0]))
    p = schedule(t)
    slope = 2 * (p.d_alpha / p.alpha - p.d_sigma / p.sigma)
    return t, slope * (ends[1] - ends[0]) / schedule.range


def log_normal(schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
    ends = (u.new_tensor([schedule.largest, schedule.smallest]).log() - MEAN) / DEVIATION
    high, low = torch.special.ndtr(ends)
    normal = torch.special.ndtri(high + u * (low - high))
    pace = 2 * DEVIATION * (high - low) * math.sqrt(2 * math.pi) * (normal.square() / 2).exp()
    return schedule.time(-2 * (MEAN + DEVIATION * normal)), pace / schedule.range


def cosine(schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
    first, last = math.atan(schedule.largest), math.atan(schedule.smallest)
    angle = first + u * (last - first)
    return schedule.time(-2 * angle.tan().log()), 4 / (2 * angle).sin() * (first - last) / schedule.range


def optimal(x: Tensor, eps: Tensor) -> Tensor:
    """|x - eps|^2 summed over rows is least where the sum of their products is largest."""
    from scipy.optimize import linear_sum_assignment  # half a second to import

    products = x.detach().flatten(1) @ eps.flatten(1).T
    for dim in (1, 0):  # the same order is best, and found sooner
        products -= products.max(dim, keepdim=True).values
    _, partner = linear_sum_assignment(products.cpu().numpy(), maximize=True)
    return eps[torch.from_numpy(partner).to(eps.device)]


TIMES = {"log-snr": even_in_log_snr, "uniform": even_in_time, "log-normal": log_normal, "cosine": cosine}
WEIGHTINGS: dict[str, Weighting] = {
    "likelihood": lambda kind, p, pace: pace / kind.weight(p),
    "simple": lambda kind, p, pace: 1 / kind.weight(p),
    "edm": lambda kind, p, pace: (p.scale / p.alpha).square() / kind.weight(p),
    "flat": lambda kind, p, pace: torch.ones_like(p.alpha),
}
COUPLINGS: dict[str, Coupling] = {"independent": lambda x, eps: eps, "optimal": optimal}


def both_signs(x: Tensor, eps: Tensor, coupling: Coupling) -> list[Tensor]:
    """Noises of x [N, *E] of which the sum is near zero: eps and -eps, coupled.

    Where there is little noise the network sees nearly the same twice, and what is no signal in its gradient cancels.
    """
    return [coupling(x, eps), coupling(x, -eps)]


def path_loss(
    denoiser: Denoiser, x: Tensor, noises: Sequence[Tensor], u: Tensor, times: Times, weighting: Weighting
) -> Tensor:
    """Weighted squared error of the denoiser's network, the mean over the dimensions and the noises, [N].

    Args:
        x: data [N, *E].
        noises: those of each datum, [N, *E] each.
        u: [N] float64 in [0, 1), picks the times.
    """
    kind, (t, pace) = denoiser.prediction, times(denoiser.schedule, u)
    p = point(denoiser.schedule, t, x)
    weight = weighting(kind, p, pace.to(x).view_as(p.alpha))
    losses = []
    for noise in noises:
        miss = denoiser.output(p.alpha * x + p.sigma * noise, p) - kind.target(x, noise, p)
        losses.append((weight * miss.square()).flatten(1).mean(1))
    return torch.stack(losses).mean(0)
