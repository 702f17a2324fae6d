"""Few-step students: what a net learns from a path's denoiser, its teacher, to leap where that one takes many steps.

Both follow the teacher's probability flow, along which each noise leads to one datum. The angle phi = atan(sigma /
alpha) measures the way: from nearly pi / 2, noise, to nearly 0, data, as z / sqrt(alpha^2 + sigma^2) turns on a circle.

    consistency   the student gives the datum at the end of the flow from any of its points: that which it gives a
                  little further along, which the teacher finds             Song et al. 2023, section 4, algorithm 2
    reflow        noise and the datum it leads to are pairs; a path that joins them by straight lines, of which no two
                  cross, is nearly straight                                 Liu, Gong & Liu 2023, section 2.2
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from pofx.paths.predict import Denoise, eps_of, point
from pofx.paths.samplers import SAMPLERS
from pofx.paths.schedule import Schedule


def at_angles(schedule: Schedule, u: Tensor) -> Tensor:
    """The times at which the angle is that share u of the way from noise to data, float64."""
    first, last = math.atan(schedule.largest), math.atan(schedule.smallest)
    return schedule.time(-2 * (first + u * (last - first)).tan().log())


def even_angles(schedule: Schedule, steps: int) -> Tensor:
    """Times [steps + 1] from noise to data, even in the angle."""
    return at_angles(schedule, torch.linspace(0, 1, steps + 1, dtype=torch.float64))


def consistency_loss(
    student: Denoise, teacher: Denoise, schedule: Schedule, x: Tensor, eps: Tensor, u: Tensor, hops: float
) -> Tensor:
    """The mean square over dimensions [N] of f(z_t, t) - f(z_s, s), f the student, which is not derived at z_s.

    It is divided by sigma^2 / (alpha^2 + sigma^2) at t: as an error of v, which is as large at all noise levels.

    z_t = alpha x + sigma eps, and z_s is where the teacher's flow, by a step of Heun's method, leads from there. At the
    end of the path the datum is there to be taken: f(z_s, s) is z_s / alpha_s (Song et al. 2023, eq. 5). The target is
    of the student as it is, without an average of its own (Song & Dhariwal 2024, section 3.2).

    Args:
        x, eps: [N, *E], data and standard normal noise.
        u: [N] float64 in [0, 1), the share of the way from noise to data where t is.
        hops: of the whole way, s is one ahead of t.
    """
    u = u.to(x.device)
    t, s = at_angles(schedule, u), at_angles(schedule, (u + 1 / hops).clamp_max(1))
    p, q = point(schedule, t, x), point(schedule, s, x)
    z = p.alpha * x + p.sigma * eps
    with torch.no_grad():
        # in z / alpha the flow is d(z / alpha) = eps d(sigma / alpha) (Karras et al. 2022, eq. 1)
        y, step = z / p.alpha, q.sigma / q.alpha - p.sigma / p.alpha
        slope = eps_of(teacher(z, t), z, p)
        ahead = q.alpha * (y + step * slope)
        slope = (slope + eps_of(teacher(ahead, s), ahead, q)) / 2
        end = y + step * slope
        target = torch.where((u + 1 / hops < 1).view_as(p.alpha), student(q.alpha * end, s), end)
    miss = (student(z, t) - target) * (p.scale / p.sigma)
    return miss.square().flatten(1).mean(1)


def leap(denoise: Denoise, schedule: Schedule, times: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """From noise z at times[0] to data, by a student of consistency (Song et al. 2023, algorithm 1).

    Each leap goes to the end; what it finds is noised anew to the next time. The last time is the end itself.
    """
    for t, s in pairwise(times):
        z = denoise(z, t)
        p = point(schedule, s, z)
        if s > times[-1]:
            noise = torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype)
            z = p.alpha * z + p.sigma * noise.to(z.device)
    return z


def along(denoise: Denoise, schedule: Schedule, times: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """From noise z at times[0] to data, along paths that are nearly straight: by steps of ``ddim``."""
    return SAMPLERS["ddim"](denoise, schedule, times, z, generator) / schedule(times[-1]).alpha.item()


STUDENTS = {"consistency": leap, "reflow": along}
"""Name of a student -> how it draws."""
