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


def bound(
    denoise: Denoise,
    gaussian: Gaussian,
    schedule: Schedule,
    x: Tensor,
    u: Tensor,
    eps: Tensor,
    *,
    steps: int | None = None,
) -> Tensor:
    """One draw [N] of the variational lower bound on log p(x), unbiased for u ~ U[0, 1) and eps ~ N(0, I).

    The model is p(z_1), which is what the ``gaussian`` N(m, C) becomes there, the learned path down to z_0, and a
    last Gaussian p(x | z_0), the posterior of N(m, C). In continuous time (Kingma et al. 2021, section 5)

        log p(x) >= E log p(x|z_0) - KL(q(z_1|x) | p(z_1)) - 1/2 int E|eps - eps_hat|^2 d lambda.

    For N(m, C)'s own (Wiener) denoiser the three terms add up to log N(x; m, C) exactly: its path is the true
    posterior. We take that one's as a control variate under the same noise:

        log p(x) >= log N(x; m, C) + 1/2 int E[|eps - eps_wiener|^2 - |eps - eps_hat|^2] d lambda,

    so that only what the network knows beyond the Gaussian is left to chance (cf. Kong et al. 2023).

    Args:
        gaussian: of the data, as good as it may be: it moves the model's ends and the noise of the number.
        x: [N, *E] standardised; float64 for full precision.
        u: [N] float64, picks the noise level; eps: the noise [N, *E].
        steps: T, the looser bound of the ancestral sampler in T steps, those of ``schedule.levels`` (Kingma et al.
            2021, section 4; Ho et al. 2020, eq. 5); None for continuous time.
    """
    first, last = schedule.ends
    lam = first + u.to(x.device) * (last - first)
    if steps is None:
        nats, weight = gaussian.log_prob(x), lam.exp() * (last - first)
    else:
        grid = schedule.log_snr(schedule.levels(steps)).to(x.device)
        length, drop = grid.diff(), grid.exp().diff()  # of every step, in lambda and in SNR
        nats = gaussian.ends(x, grid[[0, -1]]) - gaussian.error(x, grid[:-1], drop)
        step = (torch.searchsorted(grid, lam, right=True) - 1).clamp(0, len(drop) - 1)
        lam, weight = grid[step], (drop / length)[step] * (last - first)
    t = schedule.time(lam)
    p = point(schedule, t, x)
    z = p.alpha * x + p.sigma * eps
    wiener, learned = gaussian.denoise(z, p), denoise(z, t)
    # a^2 - b^2 as (a - b) (a + b): the two denoisers agree to many digits where there is little noise
    gain = ((learned - wiener) * (2 * x - wiener - learned)).flatten(1).sum(1)
    return nats + (weight / 2).to(x.dtype) * gain


def stratified(draw: Callable[[Tensor], Tensor], draws: int, noise: RowNoise) -> tuple[Tensor, Tensor]:
    """Mean [N] of draw(u) [N] over u ~ U[0, 1)^N, two draws from each of ``draws`` / 2 strata, and its error.

    Two draws of one stratum are independent and alike, so half their squared difference is an unbiased
    variance. An odd number of draws is rounded up.
    """
    strata = (draws + 1) // 2
    mean, square = torch.zeros(()), torch.zeros(())
    for k in range(strata):
        a, b = (draw((k + noise.rand_double()) / strata) for _ in range(2))
        mean, square = mean + (a + b) / (2 * strata), square + ((a - b) / (2 * strata)) ** 2
    return mean, square.sqrt()


def ode(
    denoise: Denoise,
    gaussian: Gaussian,
    schedule: Schedule,
    x: Tensor,
    *,
    steps: int,
    probe: Tensor | None = None,
    graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """log-density of the probability flow ODE at x (Song et al. 2021, section 4.3), an estimate.

    On the circle alpha = cos(phi), sigma = sin(phi), where all paths look alike, the flow is
    dz/d(phi) = cos(phi) eps_hat - sin(phi) x_hat and the log-density falls along it by its divergence. It
    is solved by the classical Runge-Kutta method of order 4 in the log SNR, from the schedule's smallest noise, where
    z = x is taken, to its largest, where z has the density of the noisy ``gaussian``.

    Args:
        x: [N, *E] standardised.
        steps: of the solver, four denoisings each.
        probe: random signs [probes, N, *E] for Hutchinson's estimate of the divergence, the same along a whole path
            (Grathwohl et al. 2019); None takes the exact trace, at the cost of d backward passes.
        graph: the nats are to carry a gradient, which goes through all passes of the solver.

    Returns:
        nats [N] and the standard error [N] that the probes leave: zero for the exact trace, NaN (unknown)
        for one probe.
    """
    n, d = len(x), x[0].numel()
    along = torch.eye(d).to(x).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape) if probe is None else probe

    def slope(lam: float, z: Tensor) -> tuple[Tensor, Tensor]:
        """dz/d(lambda) [N, *E] and the divergence's part along every probe [probes or d, N]."""
        t = schedule.time(torch.tensor(lam, dtype=torch.float64))
        scale = schedule(t).scale.to(z)
        cos, sin = math.sqrt(1 / (1 + math.exp(-lam))), math.sqrt(1 / (1 + math.exp(lam)))
        with torch.enable_grad():
            z = z if graph and z.requires_grad else z.detach().requires_grad_()
            x_hat = denoise(scale * z, t)
            eps_hat = (z - cos * x_hat) / sin
            v = (sin * x_hat - cos * eps_hat) * (sin * cos / 2)  # d(phi)/d(lambda) = -sin cos / 2
            parts = [torch.autograd.grad(v, z, e, retain_graph=True, create_graph=graph)[0] * e for e in along]
        return v if graph else v.detach(), torch.stack(parts).flatten(2).sum(2)

    end, start = schedule.ends
    h = (end - start) / steps
    z, trace = x, x.new_zeros(len(along), n)
    for i in range(steps):
        lam = start + i * h
        k1, d1 = slope(lam, z)
        k2, d2 = slope(lam + h / 2, z + h / 2 * k1)
        k3, d3 = slope(lam + h / 2, z + h / 2 * k2)
        k4, d4 = slope(lam + h, z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        trace = trace + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    base = gaussian.log_prob(z, math.sqrt(1 / (1 + math.exp(-end))), math.sqrt(1 / (1 + math.exp(end))))
    if probe is None:
        return base + trace.sum(0), torch.zeros_like(base)
    probes = len(probe)
    se = trace.std(0) / math.sqrt(probes) if probes > 1 else torch.full_like(base, math.nan)
    return base + trace.mean(0), se
