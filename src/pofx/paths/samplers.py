"""Samplers: from noise to data along given times, each a function of one denoiser.

    name        order  noise   what it is
    ancestral   1      yes     the posterior q(z_s | z_t, x) at the denoised x (Ho et al. 2020, eq. 6-7)
    ddim        1      no      Song, Meng & Ermon 2021, eq. 12 with eta = 0
    euler       1      no      the same step: on the linear path it is Euler's, in flow matching's words
    heun        2      no      trapezoids of dz = x d(alpha) + eps d(sigma) (Karras et al. 2022, algorithm 1)
    dpm++       2      no      DPM-Solver++(2M): the denoiser extrapolated in log SNR (Lu et al. 2022b)
    sde         2      yes     SDE-DPM-Solver++(2M), its stochastic twin (same paper)

The deterministic ones solve the probability flow ODE of the path, dz = E[x|z] d(alpha) + E[eps|z] d(sigma);
the noisy ones the reverse-time SDE (Song et al. 2021). ``ancestral`` is the first-order exponential
integrator of that SDE, ``ddim`` of that ODE: one function serves four names.

All share one signature, that of ``sample`` without name and callback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from pofx.paths.predict import Denoise, eps_of
from pofx.paths.schedule import Point, Schedule

Solver = Callable[[Denoise, Schedule, Tensor, Tensor, torch.Generator], Tensor]
Callback = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]
"""callback(step, t [], z [N, *E], denoised [N, *E]): what it returns, if anything, takes the denoised one's place."""


def sample(
    name: str,
    denoise: Denoise,
    schedule: Schedule,
    times: Tensor,
    z: Tensor,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> Tensor:
    """From z [N, *E] at times[0] to z at times[-1].

    Args:
        name: of the sampler.
        denoise: z [N, *E], t [] -> E[x | z].
        times: [steps + 1], falling.
        callback: sees every denoising, for previews, and may change it, for guidance; ``step`` is t's place in times.
    """

    def watched(z: Tensor, t: Tensor) -> Tensor:
        x = denoise(z, t)
        changed = None if callback is None else callback(int((times > t).sum()), t, z, x)
        return x if changed is None else changed

    return SAMPLERS[name](watched, schedule, times, z, generator)


def exponential(
    denoise: Denoise,
    schedule: Schedule,
    times: Tensor,
    z: Tensor,
    generator: torch.Generator,
    *,
    order: int,
    noisy: bool,
) -> Tensor:
    """Exponential integrator in half log SNR: exact but for how the denoised x moves within a step.

    With h the step in log(alpha / sigma), e^(-h) = (alpha_t sigma_s) / (sigma_t alpha_s) (Lu et al. 2022b):

        ODE   z_s = sigma_s/sigma_t z_t        + alpha_s (1 - e^-h)  x
        SDE   z_s = sigma_s/sigma_t e^-h z_t   + alpha_s (1 - e^-2h) x + sigma_s sqrt(1 - e^-2h) noise

    x is the denoised z_t (order 1) or extrapolated from the last two to the middle of the step (order 2).
    The last step, where h is largest, is of order 1.
    """
    points, half = _points(schedule, times, z), schedule.log_snr(times) / 2
    last = None
    for i in range(len(times) - 1):
        t, s, h = points[i], points[i + 1], half[i + 1] - half[i]
        x = step = denoise(z, times[i])
        if order == 2 and last is not None and i < len(times) - 2:
            ratio = h / (half[i] - half[i - 1])
            step = x + (ratio / 2).to(z.dtype) * (x - last)
        last = x
        shrink = s.sigma / t.sigma
        if noisy:
            gone = -torch.expm1(-2 * h).to(z.dtype)  # 1 - e^-2h
            z = shrink * torch.exp(-h).to(z.dtype) * z + s.alpha * gone * step
            noise = torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype)
            z = z + s.sigma * gone.sqrt() * noise.to(z.device)
        else:
            z = shrink * z + s.alpha * -torch.expm1(-h).to(z.dtype) * step
    return z


def heun(denoise: Denoise, schedule: Schedule, times: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """Heun's method on dz = x d(alpha) + eps d(sigma), where no derivative of the schedule is needed.

    On the linear path these are Heun steps in t, on the exploding path in sigma (Karras et al. 2022). Two
    denoisings a step; ``generator`` is not drawn from.

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
    points = _points(schedule, times, z)
    for i, (t, s) in enumerate(pairwise(points)):
        x = denoise(z, times[i])
        eps = eps_of(x, z, t)
        ahead = s.alpha * x + s.sigma * eps
        x_ahead = denoise(ahead, times[i + 1])
        eps_ahead = eps_of(x_ahead, ahead, s)
        z = z + (s.alpha - t.alpha) * (x + x_ahead) / 2 + (s.sigma - t.sigma) * (eps + eps_ahead) / 2
    return z


SAMPLERS: dict[str, Solver] = {
    "ancestral": partial(exponential, order=1, noisy=True),
    "ddim": partial(exponential, order=1, noisy=False),
    "euler": partial(exponential, order=1, noisy=False),
    "heun": heun,
    "dpm++": partial(exponential, order=2, noisy=False),
    "sde": partial(exponential, order=2, noisy=True),
}


def _points(schedule: Schedule, times: Tensor, z: Tensor) -> list[Point]:
    """The path at every time, as scalars of z's dtype and device."""
    p = schedule(times)
    return [Point(*(v[i].to(z) for v in p)) for i in range(len(times))]
