"""Checks of pofx's own chains: they keep their distribution, say so when they have not, and anneal to the right number.

``CHAINS`` has them by name; ``testing.wrong_chains`` lists the mistakes that they catch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pofx.mcmc import ais, chains, diagnostics
from pofx.mcmc.kernels import Hmc, Kernel, Mala

CHAINS: dict[str, Callable[[], None]] = {}
FAR = 4.0  # standard errors, beyond which a number is wrong


def check(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(function: Callable[[], None]) -> Callable[[], None]:
        CHAINS[name] = function
        return function

    return add


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(chains: int, dims: int, seed: int) -> Tensor:
    """Standard normal [C, D] float64."""
    return torch.randn(chains, dims, generator=seeded(seed), dtype=torch.float64)


def near(draws: Tensor, truth: float) -> None:
    """Is the mean of draws [C, T] the truth, within their error?"""
    error = float(draws.std() / diagnostics.ess_mean(draws).sqrt())
    assert abs(float(draws.mean()) - truth) <= FAR * error, f"{draws.mean():.4f} ± {error:.4f}, not {truth:.4f}"


@check("a step of any size keeps the distribution")
def long_steps_keep_the_distribution() -> None:
    """Steps as long as the target is wide, of which many are rejected."""
    kernels: tuple[Kernel, ...] = (Mala(step_size=1.3), Hmc(step_size=1.4, leapfrog=2))
    for kernel in kernels:
        found = chains.run(
            kernel, lambda x: -0.5 * x.square().sum(1), start(400, 2, 0), 40, 0, 2, seeded(1), watched=80
        )
        for j in range(2):
            near(found.draws[:, :, j].square(), 1.0)


@check("a chain that is stuck is told")
def a_stuck_chain_is_told() -> None:
    """One of many starts in a spike of half the mass, out of which no proposal leads."""
    narrow = 1e-9

    def log_p(x: Tensor) -> Tensor:
        wide = -0.5 * x[:, 0].square()
        spike = -0.5 * ((x[:, 0] - 1) / narrow).square() - math.log(narrow)
        return torch.logaddexp(wide, spike)

    begun = torch.cat([torch.ones(1, 1, dtype=torch.float64), start(31, 1, 0).clamp(-2, 0)])
    found = chains.run(Mala(step_size=1.0), log_p, begun, 1, 0, 1, seeded(2), watched=1000)
    assert not found.verdict.mixed, found.verdict
    assert found.verdict.draws == 1000, "there were as many states"


@check("annealing gives the ratio of the constants, between its bounds")
def annealing_is_right() -> None:
    """From N(0, I) to an unnormalised N(m, s^2 I), in either direction."""
    dims, scale, mean, temperatures = 2, 0.5, 1.0, 5
    truth = dims * math.log(scale)

    def path(x: Tensor, beta: float) -> Tensor:
        return -0.5 * ((1 - beta) * x.square() + beta * ((x - mean) / scale).square()).sum(1)

    betas, kernel = ais.sigmoid_schedule(temperatures), Hmc(step_size=0.4, leapfrog=2)
    begun = start(4000, dims, 0)
    forward = ais.anneal(path, betas, kernel, begun, seeded(3))
    reverse = ais.anneal(path, betas.flip(0), kernel, mean + scale * begun, seeded(4))
    for log_w, ratio in ((forward, truth), (reverse, -truth)):
        w = (log_w - ratio).exp()
        assert abs(float(w.mean()) - 1) <= FAR * float(w.std() / len(w) ** 0.5), f"E[w] / Z is {w.mean():.3f}"
        error = float(log_w.std() / len(w) ** 0.5)
        assert float(log_w.mean()) <= ratio + FAR * error
