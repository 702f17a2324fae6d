"""The order of convergence of a sampler of a path, measured where the truth is known.

Without noise, on a mixture of two normals on the line: the probability flow keeps the order of its points, so each
stays at its quantile, which bisection finds. With noise (the weak order), by the variance of draws of a normal: there a
sampler is linear in all noise that it draws, so that its factors, and with them the variance, are known without chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.special import ndtr

from pofx.paths.predict import Denoise, point
from pofx.paths.samplers import SAMPLERS
from pofx.paths.schedule import Point, Schedule

ENDS = -3.0, 3.0  # log SNR between which all that varies does: orders are those of short steps
COUNTS = (48, 96, 192, 384)
WEIGHTS, MEANS, DEVIATIONS = (torch.tensor(v, dtype=torch.float64) for v in ((0.3, 0.7), (-1.2, 0.6), (0.5, 0.4)))
VARIANCE = 0.3  # of the normal

# sampler -> its order, and its own options where that is defined: none that leave an error which no step makes smaller
STATED: dict[str, tuple[int, Callable[[int], dict[str, Any]]]] = {
    "ddim": (1, lambda steps: {"eta": 0.5}),
    "euler": (1, lambda steps: {}),
    "ancestral": (1, lambda steps: {}),
    "dpm++": (2, lambda steps: {}),
    "dpm++3m": (3, lambda steps: {}),
    "sde": (2, lambda steps: {}),
    "heun": (2, lambda steps: {}),
    "karras": (2, lambda steps: {"churn": 3.0}),
    "restart": (2, lambda steps: {
        "restarts": 2, "restart_from": 1.5, "restart_to": math.exp(-0.75), "restart_steps": steps // 4,
    }),
    "adaptive": (3, lambda steps: {"tolerance": math.inf}),  # in just the given steps
    "predictor-corrector": (1, lambda steps: {"corrector_steps": 0, "corrector_snr": 0.16}),
}  # fmt: skip
NOISY = {"ddim", "ancestral", "sde", "karras", "restart", "predictor-corrector"}


def order_of(
    name: str, schedule: Schedule, grid: str = "log-snr", counts: Sequence[int] = COUNTS
) -> tuple[float, dict[int, float]]:
    """How fast the error of a sampler falls with the number of its steps, and the errors by that number.

    Args:
        grid: steps even in the log SNR ("log-snr") or in the time of the schedule ("schedule").
        counts: numbers of steps, multiples of 4.
    """
    error = _moments if name in NOISY else _points
    errors = {steps: error(name, schedule, _times(schedule, grid, steps), steps) for steps in counts}
    logs = torch.tensor([[math.log(k), math.log(e)] for k, e in errors.items()], dtype=torch.float64)
    line = torch.stack([logs[:, 0], torch.ones(len(logs))], 1)
    return -torch.linalg.lstsq(line, logs[:, 1:]).solution[0].item(), errors


def _times(schedule: Schedule, grid: str, steps: int) -> Tensor:
    if grid == "log-snr":
        return schedule.time(torch.linspace(*ENDS, steps + 1, dtype=torch.float64))
    first, last = schedule.time(torch.tensor(ENDS, dtype=torch.float64)).tolist()
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def _points(name: str, schedule: Schedule, times: Tensor, steps: int) -> float:
    """Root mean square distance of 49 points from where their quantiles are at the end."""
    quantiles = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)[:, None]
    start, end = (quantile(quantiles, point(schedule, t, quantiles)) for t in times[[0, -1]])
    own = STATED[name][1](steps)
    z = SAMPLERS[name](mixture(schedule), schedule, times, start, torch.Generator(), **own)
    return (z - end).square().mean().sqrt().item()


def mixture(schedule: Schedule) -> Denoise:
    """E[x | z] where x is of the mixture of two normals."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        p = point(schedule, t, z)
        spread = p.alpha**2 * DEVIATIONS**2 + p.sigma**2
        off = z - p.alpha * MEANS
        share = (WEIGHTS.log() - spread.log() / 2 - off.square() / (2 * spread)).softmax(-1)
        return (share * (MEANS + p.alpha * DEVIATIONS**2 / spread * off)).sum(-1, keepdim=True)

    return denoise


def quantile(q: Tensor, p: Point) -> Tensor:
    """z [N, 1] below which there is the share q of the noisy mixture."""
    low, high = torch.full_like(q, -20.0), torch.full_like(q, 20.0)
    for _ in range(60):
        z = (low + high) / 2
        above = (WEIGHTS * ndtr((z - p.alpha * MEANS) / (p.alpha**2 * DEVIATIONS**2 + p.sigma**2).sqrt())).sum(1) > q[
            :, 0
        ]
        low, high = torch.where(above[:, None], low, z), torch.where(above[:, None], z, high)
    return (low + high) / 2


def _moments(name: str, schedule: Schedule, times: Tensor, steps: int) -> float:
    """What the variance at the end is off, where x ~ N(0, VARIANCE)."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        p = point(schedule, t, z)
        return p.alpha * VARIANCE / (p.alpha**2 * VARIANCE + p.sigma**2) * z

    start, end = ((p.alpha**2 * VARIANCE + p.sigma**2).item() for p in map(schedule, times[[0, -1]]))
    own, z = STATED[name][1](steps), torch.zeros(4 * steps + 1, 1, dtype=torch.float64)
    z[0] = math.sqrt(start)
    with UnitNoise():
        z = SAMPLERS[name](denoise, schedule, times, z, torch.Generator(), **own)
    return abs(z.square().sum().item() - end)


class UnitNoise(TorchFunctionMode):
    """The k-th draw of normal noise is 1 in row k, else 0: row k of what comes out is its factor, row 0 the start's."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.randn:
            return func(*args, **(kwargs or {}))
        self.draws += 1
        noise = torch.zeros(*args, dtype=torch.float64)
        noise[self.draws] = 1.0
        return noise
