"""Samplers: from noise to data along given times, each a function of one denoiser.

name                 order  noise  what it is
ddim                 1      none   Song, Meng & Ermon 2021, eq. 12; some noise for eta above 0
euler                1      none   the same step: on the linear path it is Euler's, in flow matching's words
ancestral            1      yes    eta = 1: the posterior q(z_s | z_t, x) at the denoised x (Ho et al. 2020, eq. 6-7)
dpm++                2      none   DPM-Solver++(2M): the denoiser extrapolated in log SNR (Lu et al. 2022b)
dpm++3m              3      none   DPM-Solver++(3M)
sde                  2      yes    SDE-DPM-Solver++(2M), the stochastic twin of dpm++ (same paper)
heun                 2      none   trapezoids of dz = x d(alpha) + eps d(sigma) (Karras et al. 2022, algorithm 1)
karras               2      churn  the same after fresh noise (Karras et al. 2022, algorithm 2)
restart              2      some   the same, and part of the way again from fresh noise (Xu et al. 2023, algorithm 1)
adaptive             3      none   an embedded pair of exponential Runge-Kutta methods with a tolerance
predictor-corrector  1      yes    reverse diffusion and Langevin steps (Song et al. 2021, algorithms 2-5)
annealed-langevin    -      yes    Langevin steps at one noise level after the other (Song & Ermon 2020, algorithm 1)

The order is that of the error in the length of steps, as ``benchmarks/order.py`` measures it: of noisy ones in the
moments (weak order), where a corrector leaves an error of its own that fewer steps do not change.

The deterministic ones solve the probability flow ODE of the path, dz = E[x|z] d(alpha) + E[eps|z] d(sigma);
the noisy ones the reverse-time SDE (Song et al. 2021). All share one signature, that of ``sample`` without name and
callback; keywords of their own are the fields of their requests (``core.requests``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pofx.core.errors import NotANumber, UsageError
from pofx.paths.predict import Denoise
from pofx.paths.schedule import Schedule, karras

Solver = Callable[..., Tensor]
Callback = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]
"""callback(step, t [], z [N, *E], denoised [N, *E]): what it returns, if anything, takes the denoised one's place."""

LEAP = 2.0  # how much longer than the last a step may be for the denoised to be extrapolated over it
LEAST = 1e-6  # step of ``adaptive`` in half log SNR


def sample(
    name: str,
    denoise: Denoise,
    schedule: Schedule,
    times: Tensor,
    z: Tensor,
    generator: torch.Generator,
    callback: Callback | None = None,
    *,
    to_data: bool = False,
    **own: Any,
) -> Tensor:
    """From z [N, *E] at times[0] to z at times[-1], or on to the data.

    Args:
        name: of the sampler.
        denoise: z [N, *E], t [] -> E[x | z].
        times: [steps + 1] on the CPU, falling.
        callback: sees every denoising, for previews, and may change it, for guidance; ``step`` is t's place in times.
        to_data: give the denoised z at times[-1], the step of every sampler of first order to where there is no noise.
        own: what this sampler alone takes.
    """
    if not (times.diff() < 0).all():
        raise UsageError(f"The times of a sampler must fall; got {times.tolist()}.", "Give them from noise to data.")

    def watched(z: Tensor, t: Tensor) -> Tensor:
        x = denoise(z, t)
        changed = None if callback is None else callback(int((times > t).sum()), t, z, x)
        return x if changed is None else changed

    z = SAMPLERS[name](watched, schedule, times, z, generator, **own)
    return watched(z, times[-1]) if to_data else z


class Way:
    """A callback that keeps z [N, *E] of each time, rescaled to alpha^2 + sigma^2 = 1, as all schedules look alike.

    Of several at one time, as trapezoids and Langevin steps have them, the last counts.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.seen: dict[float, Tensor] = {}

    def __call__(self, step: int, t: Tensor, z: Tensor, denoised: Tensor) -> None:
        self.seen[t.item()] = z / self.schedule(t).scale.item()


class Level(NamedTuple):
    """The path at one time, as plain numbers: a step costs the denoiser and a few products."""

    t: Tensor
    alpha: float
    sigma: float

    @property
    def half(self) -> float:
        """Half the log SNR; without end where there is no noise."""
        return math.log(self.alpha / self.sigma) if self.sigma else math.inf

    @property
    def ratio(self) -> float:
        """Noise in standard deviations of the data."""
        return self.sigma / self.alpha

    def eps(self, z: Tensor, x: Tensor) -> Tensor:
        """The noise that leads from x to z."""
        return (z - self.alpha * x) / self.sigma


def levels_of(schedule: Schedule, times: Tensor) -> list[Level]:
    p = schedule(times)
    return list(map(Level, times, p.alpha.tolist(), p.sigma.tolist()))


def levels_at(schedule: Schedule, ratios: list[float]) -> list[Level]:
    """Those of given noise, in standard deviations of the data."""
    return levels_of(schedule, schedule.time(-2 * torch.tensor(ratios, dtype=torch.float64).log()))


def normal(z: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise shaped like z."""
    return torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype).to(z.device)


# -- one step from the level t to the level s -------------------------------------------------------------------


def ddim_step(x: Tensor, z: Tensor, t: Level, s: Level) -> Tensor:
    """Along the line through x and z: exact where the denoised x stays."""
    return s.alpha * x + s.sigma * t.eps(z, x)


def heun_step(denoise: Denoise, z: Tensor, t: Level, s: Level) -> Tensor:
    """A trapezoid of dz = x d(alpha) + eps d(sigma), in which no derivative of the schedule is needed.

    On the linear path it is one in t, on the exploding path in sigma.
    """
    x = denoise(z, t.t)
    eps = t.eps(z, x)
    ahead = s.alpha * x + s.sigma * eps
    x_ahead = denoise(ahead, s.t)
    eps_ahead = s.eps(ahead, x_ahead)
    return z + (s.alpha - t.alpha) / 2 * (x + x_ahead) + (s.sigma - t.sigma) / 2 * (eps + eps_ahead)


def weights(h: float, rate: int = 1) -> tuple[float, float, float]:
    """Integrals of rate e^(-rate (h - r)) r^k / k! over r from 0 to h, for k = 0, 1, 2.

    By parts, each is h^k / k! less the one before over the rate.
    """
    first = -math.expm1(-rate * h)
    second = h - first / rate
    return first, second, h**2 / 2 - second / rate


# -- whole ways ---------------------------------------------------------------------------------------------------


def ddim(
    denoise: Denoise, schedule: Schedule, times: Tensor, z: Tensor, generator: torch.Generator, *, eta: float = 0.0
) -> Tensor:
    """z_s = alpha_s x + sqrt(sigma_s^2 - c^2) eps + c noise, c = eta sigma_s sqrt(1 - SNR_t / SNR_s).

    Song, Meng & Ermon 2021, eq. 12 and 16. With eta = 1 it is the posterior of each step.
    """
    for t, s in pairwise(levels_of(schedule, times)):
        x = denoise(z, t.t)
        c = eta * s.sigma * math.sqrt(-math.expm1(2 * (t.half - s.half)))
        z = s.alpha * x + math.sqrt(s.sigma**2 - c**2) * t.eps(z, x)
        if c:
            z = z + c * normal(z, generator)
    return z


def multistep(
    denoise: Denoise,
    schedule: Schedule,
    times: Tensor,
    z: Tensor,
    generator: torch.Generator,
    *,
    order: int,
    noisy: bool,
) -> Tensor:
    """DPM-Solver++: exact but for how the denoised x moves within a step, which is extrapolated from those before.

    With h the step in half log SNR, e^(-h) = (alpha_t sigma_s) / (sigma_t alpha_s), and r the way along it (Lu et al.
    2022b, eq. 8 and section 4.4):

        ODE   z_s = sigma_s/sigma_t z_t        + alpha_s int   e^-(h - r)  x(r) dr
        SDE   z_s = sigma_s/sigma_t e^-h z_t   + alpha_s int 2 e^-2(h - r) x(r) dr + sigma_s sqrt(1 - e^-2h) noise

    Of order 2, x(r) is the extrapolated x in the middle of the step (algorithm 2); of order 3, the parabola through the
    last three. An order is as good as its worst step, but for one in which it may be lower by 1:

    - The last step, where most is at stake, is of one order less, and of order 1 if it leaps: if it is more than twice
      as long as the one before, extrapolation over it is none.
    - Order 3 starts with a step of order 2 by another look in its middle, unless there are less than three.
    """
    levels, rate = levels_of(schedule, times), 2 if noisy else 1
    steps, past = len(levels) - 1, list[tuple[float, Tensor]]()
    for i, (t, s) in enumerate(pairwise(levels)):
        h, x = s.half - t.half, denoise(z, t.t)
        past = [(t.half, x), *past[: order - 1]]
        known = min(len(past), order - 1 if i == steps - 1 else order)
        if known > 1 and h > LEAP * (past[0][0] - past[1][0]):
            known = 1
        first, second, third = weights(h, rate)
        if known == 1:
            moved = first * x
            if order == 3 and i == 0 and steps > 2:
                (middle,) = levels_at(schedule, [math.exp(-t.half - h / 2)])
                moved = first * denoise(ddim_step(x, z, t, middle), middle.t)
        else:
            (l0, x0), (l1, x1) = past[:2]
            slope = (x0 - x1) / (l0 - l1)
            if known == 2:
                moved = first * (x + h / 2 * slope)
            else:
                l2, x2 = past[2]
                bend = (slope - (x1 - x2) / (l1 - l2)) / (l0 - l2)  # half the second derivative
                moved = first * x + second * (slope + (l0 - l1) * bend) + third * 2 * bend
        z = s.sigma / t.sigma * (math.exp(-h) if noisy else 1) * z + s.alpha * moved
        if noisy:
            z = z + s.sigma * math.sqrt(first) * normal(z, generator)
    return z


def heun(denoise: Denoise, schedule: Schedule, times: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """Two denoisings a step; ``generator`` is not drawn from.

    Example:
        >>> import torch
        >>> from pofx.paths.schedule import Linear
        >>> schedule = Linear()
        >>> times = schedule.times(10)
        >>> z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
        >>> x = heun(lambda z, t: torch.full_like(z, 3.0), schedule, times, z, torch.Generator())
        >>> bool((x - 3).abs().max() < 0.01)  # all data lie at 3
        True
    """
    for t, s in pairwise(levels_of(schedule, times)):
        z = heun_step(denoise, z, t, s)
    return z


def karras_heun(
    denoise: Denoise,
    schedule: Schedule,
    times: Tensor,
    z: Tensor,
    generator: torch.Generator,
    *,
    churn: float = 0.0,
    churn_from: float = math.inf,
    churn_to: float = 0.0,
    inflation: float = 1.0,
) -> Tensor:
    """Karras et al. 2022, algorithm 2: noise rises by the factor 1 + gamma first, then falls to the next level.

    gamma = min(churn / N, sqrt(2) - 1) where the noise is from ``churn_from`` to ``churn_to``, of N levels; never above
    the noise that the path ends with.
    """
    levels = levels_of(schedule, times)
    gamma = min(churn / len(levels), math.sqrt(2) - 1)
    risen = [
        min(t.ratio * (1 + gamma), schedule.largest) if churn_to <= t.ratio <= churn_from else t.ratio for t in levels
    ]
    for (t, s), ratio, hat in zip(pairwise(levels), risen, levels_at(schedule, risen), strict=False):
        if ratio > t.ratio:
            z = renoise(z, t, hat, inflation * normal(z, generator))
            t = hat
        z = heun_step(denoise, z, t, s)
    return z


def renoise(z: Tensor, s: Level, t: Level, noise: Tensor) -> Tensor:
    """Back from s to the noisier t, by fresh noise."""
    return t.alpha / s.alpha * z + t.alpha * math.sqrt(t.ratio**2 - s.ratio**2) * noise


def restart(
    denoise: Denoise,
    schedule: Schedule,
    times: Tensor,
    z: Tensor,
    generator: torch.Generator,
    *,
    restarts: int,
    restart_from: float,
    restart_to: float,
    restart_steps: int,
) -> Tensor:
    """Xu et al. 2023, algorithm 1, with one interval: errors so far are forgotten in the noise that is added."""
    if not (schedule.smallest <= restart_to and restart_from <= schedule.largest):
        raise UsageError(
            f"A restart from noise {restart_from:g} to {restart_to:g} is not within the path's, "
            f"{schedule.largest:g} to {schedule.smallest:g}.",
            "Give restart_from and restart_to within.",
        )
    again = restarts
    for t, s in pairwise(levels_of(schedule, times)):
        z = heun_step(denoise, z, t, s)
        if again and s.ratio <= restart_to * (1 + 1e-9):  # where the path ends there
            way = levels_at(schedule, karras(restart_from, s.ratio, restart_steps))
            for _ in range(again):
                z = renoise(z, s, way[0], normal(z, generator))
                for a, b in pairwise(way):
                    z = heun_step(denoise, z, a, b)
            again = 0
    return z


def adaptive(
    denoise: Denoise, schedule: Schedule, times: Tensor, z: Tensor, generator: torch.Generator, *, tolerance: float
) -> Tensor:
    """Steps as long as the error of ``pair`` stays within the tolerance; all rows take the same, as the worst needs.

    Each step between two of the times is divided where that is not enough (the controller of Lu et al. 2022a, appendix
    C: the error of second order is of third in the step).

    Raises NotANumber where the denoiser gives none, UsageError where rounding alone is more than the tolerance.
    """
    h = math.inf
    for t, end in pairwise(levels_of(schedule, times)):
        while t is not end:
            parts = math.ceil((end.half - t.half) / h) or 1
            h = (end.half - t.half) / parts
            first, second, s = levels_at(schedule, [t.ratio * math.exp(-h * part) for part in (1 / 3, 2 / 3, 1)])
            ahead, error = pair(denoise, z, t, first, second, end if parts == 1 else s)
            worst = error.flatten(1).square().mean(1).sqrt().max().item() / math.hypot(s.alpha, s.sigma)
            if not math.isfinite(worst):
                raise NotANumber("What is denoised is no number.", "The weights of the model are no longer numbers.")
            if worst <= tolerance:
                z, t = ahead, end if parts == 1 else s
            elif h < LEAST:
                raise UsageError(f"tolerance is {tolerance:g}: numbers of {z.dtype} are rounded to less.", "Raise it.")
            h *= min(5.0, max(0.2, 0.9 * (tolerance / max(worst, 1e-30)) ** (1 / 3)))
    return z


def pair(denoise: Denoise, z: Tensor, t: Level, a: Level, b: Level, s: Level) -> tuple[Tensor, Tensor]:
    """A step of third order from t to s, and how one of second order differs; a and b are at thirds of the way.

    Exponential Runge-Kutta methods on what ``multistep`` integrates: the denoised x is extended over the step by a line
    through its values at t and b, or at t and a (DPM-Solver-3 of Lu et al. 2022a, algorithm 2, for the denoised datum).
    """
    h, half = s.half - t.half, t.half
    x = denoise(z, t.t)
    bend_a = (denoise(ddim_step(x, z, t, a), a.t) - x) / (a.half - half)
    first, second, _ = weights(b.half - half)
    at_b = b.sigma / t.sigma * z + b.alpha * (first * x + second * bend_a)
    bend_b = (denoise(at_b, b.t) - x) / (b.half - half)
    first, second, _ = weights(h)
    ahead = s.sigma / t.sigma * z + s.alpha * (first * x + second * bend_b)
    return ahead, s.alpha * second * (bend_b - bend_a)


def predictor_corrector(
    denoise: Denoise,
    schedule: Schedule,
    times: Tensor,
    z: Tensor,
    generator: torch.Generator,
    *,
    corrector_steps: int,
    corrector_snr: float,
) -> Tensor:
    """Song et al. 2021, algorithms 2 and 3 (one formula: keep is 1 where alpha is), each step followed by 4 or 5.

    A corrector's step is never longer than the one that leads to the denoised datum, on average.
    """

    def gradient(z: Tensor, t: Level) -> Tensor:
        return (t.alpha * denoise(z, t.t) - z) / t.sigma**2

    def length(v: Tensor) -> Tensor:
        return v.flatten(1).norm(dim=1).mean()

    for t, s in pairwise(levels_of(schedule, times)):
        keep = t.alpha / s.alpha
        variance = t.sigma**2 - (keep * s.sigma) ** 2
        z = (2 - keep) * z + variance * gradient(z, t) + math.sqrt(variance) * normal(z, generator)
        for _ in range(corrector_steps):
            g, noise = gradient(z, s), normal(z, generator)
            eps = (2 * keep**2 * (corrector_snr * length(noise) / length(g)) ** 2).clamp_max(s.sigma**2)
            z = z + eps * g + (2 * eps).sqrt() * noise
    return z


def annealed_langevin(
    denoise: Denoise,
    schedule: Schedule,
    times: Tensor,
    z: Tensor,
    generator: torch.Generator,
    *,
    langevin_steps: int,
    langevin_step: float | None = None,
) -> Tensor:
    """Song & Ermon 2020, algorithm 1, of y = z / alpha: a step is epsilon sigma_i^2 / sigma_L^2 at the level i.

    y moves by step (x - y) + sqrt(2 step) (sigma / alpha) noise, x the denoised; (x - y) / (sigma / alpha)^2 is the
    gradient of the log-density. From one level to the next it stays. (In the form of 2019 a step is of half the size.)
    """
    levels = levels_of(schedule, times)
    y = z / levels[0].alpha
    for before, t in pairwise([levels[0], *levels]):
        step = langevin_step or step_of(before.ratio / t.ratio, langevin_steps)
        for _ in range(langevin_steps):
            x = denoise(t.alpha * y, t.t)
            y = y + step * (x - y) + math.sqrt(2 * step) * t.ratio * normal(z, generator)
    return t.alpha * y


@cache
def step_of(fall: float, steps: int) -> float:
    """The Langevin step for which so many leave the least of the noise of the level before (Song & Ermon 2020, eq. 8).

    After them the variance over that of the level, which ``fall`` squared was at first, is
    (1 - step)^(2 steps) (fall^2 - c) + c with c = 1 / (1 - step / 2), at best 1.

    Example:
        >>> step_of(5000 ** (1 / 231), 5)  # 232 levels from 50 to 0.01; the paper has 6.2e-6 / 0.01^2
        0.062
    """
    step = torch.arange(1, 1001, dtype=torch.float64) / 1000
    c = 1 / (1 - step / 2)
    return step[((1 - step) ** (2 * steps) * (fall**2 - c) + c).argmin()].item()


SAMPLERS: dict[str, Solver] = {
    "ancestral": partial(ddim, eta=1.0),
    "ddim": ddim,
    "euler": partial(ddim, eta=0.0),
    "heun": heun,
    "dpm++": partial(multistep, order=2, noisy=False),
    "dpm++3m": partial(multistep, order=3, noisy=False),
    "sde": partial(multistep, order=2, noisy=True),
    "adaptive": adaptive,
    "karras": karras_heun,
    "restart": restart,
    "predictor-corrector": predictor_corrector,
    "annealed-langevin": annealed_langevin,
}
