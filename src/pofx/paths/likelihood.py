"""Two likelihoods of a path, each a function of one denoiser: a variational bound and the flow's ODE.

Both see the path only through the log SNR lambda = 2 log(alpha / sigma), so the numbers of all schedules
and predictions are comparable. s stands for sigmoid(lambda) = alpha^2 / (alpha^2 + sigma^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pofx.core.noise import RowNoise
from pofx.paths.gaussian import Gaussian
from pofx.paths.predict import Denoise, point
from pofx.paths.schedule import Schedule
from pofx.transforms.base import Noise
from pofx.transforms.ode import Field, divergence, follow, wide

FAR = 1e150  # for an open end: log_ndtr has no gradient at infinity


def terms(
    denoise: Denoise,
    gaussian: Gaussian,
    schedule: Schedule,
    x: Tensor,
    u: Tensor,
    eps: Tensor,
    *,
    steps: int | None = None,
) -> Tensor:
    """One draw of the variational lower bound on log p(x) in its three terms [3, N], unbiased for u ~ U[0, 1) and
    eps ~ N(0, I): -KL(q(z_1 | x) | p(z_1)), what is lost along the path, and E log p(x | z_0).

    The model is p(z_1), which is what the ``gaussian`` N(m, C) becomes there, the learned path down to z_0, and a
    last Gaussian p(x | z_0), the posterior of N(m, C). In continuous time (Kingma et al. 2021, section 5)

        log p(x) >= E log p(x|z_0) - KL(q(z_1|x) | p(z_1)) - 1/2 int E|eps - eps_hat|^2 d lambda.

    For N(m, C)'s own (Wiener) denoiser the three terms add up to log N(x; m, C) exactly: its path is the true
    posterior. We take that one's as a control variate under the same noise:

        log p(x) >= log N(x; m, C) + 1/2 int E[|eps - eps_wiener|^2 - |eps - eps_hat|^2] d lambda,

    so that only what the network knows beyond the Gaussian is left to chance (cf. Kong et al. 2023): the terms of both
    ends are in closed form.

    Args:
        gaussian: of the data, as good as it may be: it moves the model's ends and the noise of the number.
        x: [N, *E] standardised; float64 for full precision.
        u: [N] float64, picks the noise level; eps: the noise [N, *E].
        steps: T, the looser bound of the ancestral sampler in T steps, those of ``schedule.levels`` (Kingma et al.
            2021, section 4; Ho et al. 2020, eq. 5, whose L_(T-1) to L_1 are the second term); None for continuous time.
    """
    lam = schedule.ends[0] + u.to(x.device) * schedule.range
    if steps is None:
        prior, last = gaussian.ends(x, torch.tensor(schedule.ends, dtype=torch.float64, device=x.device))
        path, weight = gaussian.log_prob(x) - prior - last, lam.exp() * schedule.range
    else:
        grid = schedule.log_snr(schedule.levels(steps)).to(x.device)
        length, drop = grid.diff(), grid.exp().diff()  # of every step, in lambda and in SNR
        prior, last = gaussian.ends(x, grid[[0, -1]])
        path = -gaussian.error(x, grid[:-1], drop)
        step = (torch.searchsorted(grid, lam, right=True) - 1).clamp(0, len(drop) - 1)
        lam, weight = grid[step], (drop / length)[step] * schedule.range
    t = schedule.time(lam)
    p = point(schedule, t, x)
    z = p.alpha * x + p.sigma * eps
    wiener, learned = gaussian.denoise(z, p), denoise(z, t)
    # a^2 - b^2 as (a - b) (a + b): the two denoisers agree to many digits where there is little noise
    gain = ((learned - wiener) * (2 * x - wiener - learned)).flatten(1).sum(1)
    return torch.stack([prior, path + (weight / 2).to(x.dtype) * gain, last])


def decoded(denoise: Denoise, schedule: Schedule, x: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """One draw [N] of E log P(x | z_0), the end of a bound of cells (Ho et al. 2020, eq. 13).

    P(x | z_0) is the mass from ``low`` to ``high`` [N, d] of N(E[x | z_0], 1 - s), s at the data's end of the path: of
    the chain of Ho et al. 2020 the variance is beta_1, on all paths that of x given z_0 for x ~ N(0, 1).

    Args:
        x: [N, *E], the centres of the cells; eps: the noise [N, *E].
    """
    t = schedule.time(torch.tensor(schedule.ends[1], dtype=torch.float64))
    p = point(schedule, t, x)
    mean = denoise(p.alpha * x + p.sigma * eps, t).flatten(1)
    return log_mass(*((edge.to(x) - mean) / angles(schedule.ends[1])[1] for edge in (low, high))).sum(1)


def log_mass(a: Tensor, b: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) of a < b, in the tail where it is lower: the other one's mass is too near 1 to tell apart.

    Example:
        >>> a, b = torch.tensor([[-1.0, 40.0], [math.inf, 41.0]]).double()
        >>> [round(v, 4) for v in log_mass(a, b).tolist()]
        [-0.1728, -804.6084]
    """
    a, b = a.clamp(-FAR, FAR), b.clamp(-FAR, FAR)
    a, b = torch.where(a + b > 0, -b, a), torch.where(a + b > 0, -a, b)
    lower, upper = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    return upper + (-torch.expm1(lower - upper)).log()


def stratified(draw: Callable[[Tensor], Tensor], draws: int, noise: RowNoise) -> tuple[Tensor, Tensor]:
    """Mean [*, N] of draw(u) [*, N] over u ~ U[0, 1)^N, two draws from each of ``draws`` / 2 strata, and its error.

    Two draws of one stratum are independent and alike, so half their squared difference is an unbiased
    variance. An odd number of draws is rounded up.
    """
    strata = (draws + 1) // 2
    mean, square = torch.zeros(()), torch.zeros(())
    for k in range(strata):
        a, b = (draw((k + noise.rand_double()) / strata) for _ in range(2))
        mean, square = mean + (a + b) / (2 * strata), square + ((a - b) / (2 * strata)) ** 2
    return mean, square.sqrt()


def flow(denoise: Denoise, schedule: Schedule) -> Field:
    """The probability flow (Song et al. 2021, section 4.3), with the log SNR lambda [N] as time.

    On the circle alpha = cos(phi), sigma = sin(phi), where all paths look alike, it is
    dz/d(phi) = cos(phi) eps_hat - sin(phi) x_hat, and d(phi)/d(lambda) = -sin(phi) cos(phi) / 2.
    """

    def slope(lam: Tensor, z: Tensor) -> Tensor:
        t = schedule.time(lam)
        scale, cos, sin = (wide(v, z).to(z) for v in (schedule(t).scale, lam.sigmoid().sqrt(), (-lam).sigmoid().sqrt()))
        x_hat = denoise(scale * z, t)
        eps_hat = (z - cos * x_hat) / sin
        return (sin * x_hat - cos * eps_hat) * (sin * cos / 2)

    return slope


def ode(
    denoise: Denoise,
    gaussian: Gaussian,
    schedule: Schedule,
    x: Tensor,
    steps: int,
    noise: Noise,
    probe: Tensor | None = None,
    graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """log-density of the probability flow at x, an estimate.

    The flow leads from the datum, without any noise, to the schedule's largest, where z has the density of the noisy
    ``gaussian``. What is before the schedule's smallest noise is one step (``_first``), the rest ``transforms.ode``.

    Args:
        x: [N, *E] standardised.
        steps: panels of the solver.
        noise: draws where the divergence is taken.
        probe: random signs [K, N, *E] for Hutchinson's estimate of the divergence, the same along a whole path
            (Grathwohl et al. 2019); None takes the exact trace, at the cost of d backward passes.
        graph: the nats are to carry a gradient, which goes through all passes of the solver.

    Returns:
        nats [K, N] along each probe (K = 1 for the exact trace), and the standard error [N] that the solver leaves.
    """
    field, (end, start) = flow(denoise, schedule), schedule.ends
    here = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
    rough, before = divergence(field, here, x, probe, graph)
    slope, trace = divergence(field, here, x - rough, probe, graph)
    z = x - slope
    rest = follow(field, start, end, z, steps, noise, probe, graph)
    base = gaussian.log_prob(rest.z, *angles(end))
    return base + rest.trace - trace, torch.hypot(rest.se, _first(here, z, slope, rough, trace - before))


def ode_sample(
    denoise: Denoise,
    gaussian: Gaussian,
    schedule: Schedule,
    z: Tensor,
    steps: int,
    noise: Noise,
    probe: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The datum that z [N, *E] at the largest noise flows to, and its log-density, in one solution.

    Returns:
        x [N, *E], and nats [K, N] and their error [N] as ``ode`` gives them, of which this is the way back.
    """
    field, (start, end) = flow(denoise, schedule), schedule.ends
    rest = follow(field, start, end, z, steps, noise, probe)
    here = torch.full((len(z),), end, dtype=torch.float64, device=z.device)
    slope, trace = divergence(field, here, rest.z, probe, False)
    x = rest.z + slope
    rough, before = divergence(field, here, x, probe, False)
    base = gaussian.log_prob(z, *angles(start))
    return x, base - rest.trace - trace, torch.hypot(rest.se, _first(here, rest.z, slope, rough, trace - before))


def angles(log_snr: float) -> tuple[float, float]:
    """alpha and sigma there, on the circle."""
    return math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))


def _first(log_snr: Tensor, z: Tensor, slope: Tensor, rough: Tensor, turn: Tensor) -> Tensor:
    """The error in nats [N] of the flow's first step, from the datum to the smallest noise.

    The slope in lambda falls as sigma^2 = e^-lambda there, so that its integral from lambda on is the slope itself: the
    step of Euler's method in sigma^2, backward from z, as its own ``slope`` and divergence are taken. The forward step,
    with those (``rough``) at the datum, errs to the other side (of a Gaussian, three times as much): the gap between
    both, as the gradient of the log-density turns it into nats, bounds the error.
    """
    sin = wide((-log_snr).sigmoid().sqrt(), z).to(z)
    eps_hat = sin * z - 2 / sin * slope  # the slope is (sin x_hat - cos eps_hat) sin cos / 2
    moved = (eps_hat / sin * (slope - rough)).flatten(1).sum(1)
    return (moved.abs() + turn.mean(0).abs()).detach().double()
