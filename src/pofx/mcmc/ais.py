"""Annealed importance sampling (Neal 2001): ratios of normalising constants, from either side.

With densities f_t = f(.; beta_t) on the way from f_0 to f_T, and T_t a kernel that leaves f_t as it is,

    x_0 ~ f_0 / Z_0,   x_t ~ T_t(. | x_t-1),   log w = sum_t  log f_t(x_t-1) - log f_t-1(x_t-1),   t = 1 ... T

has E[w] = Z_T / Z_0 (Neal 2001, eq. 3 to 11), so by Jensen E[log w] <= log Z_T / Z_0. From x ~ f_T / Z_T with falling
temperatures the same says E[w] = Z_0 / Z_T, hence -E[log w] >= log Z_T / Z_0: both together are a sandwich (Grosse et
al. 2015). It holds for any kernels and step sizes that are chosen before: ``tune`` chooses them on chains of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.mcmc.kernels import Kernel, LogDensity, Noise, with_step

LogPath: TypeAlias = Callable[[Tensor, float], Tensor]
"""log f(x; beta) [C] of x [C, D]."""
Kernels: TypeAlias = Kernel | Callable[[float], Kernel]
"""One kernel for all temperatures, or the kernel of each."""

STOPS, STEPS = 10, 20  # of ``tune``: temperatures at most, and steps at each
APART = 20  # temperatures between two of them, so that it costs no more than the annealing


@torch.no_grad()
def anneal(
    log_path: LogPath,
    betas: Tensor,
    kernel: Kernels,
    start: Tensor,
    noise: Noise,
    transitions: int = 1,
    groups: int = 1,
    steps: Tensor | None = None,
) -> Tensor:
    """log w [C] float64, one annealing of each chain from ``start`` [C, D], exact draws at betas[0].

    Args:
        betas: [T + 1], strictly rising from 0 to 1, or falling from 1 to 0.
        transitions: steps of the kernel at each temperature.
        groups: as of ``Kernel.start``.
        steps: step sizes at each temperature between [T - 1, groups], from ``tune``; without, the kernel's own.

    Raises UsageError where temperatures do not rise or fall, and for a kernel that does not leave a density as it is.
    """
    path = _temperatures(betas)
    x, value = start, log_path(start, path[0])
    total = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    for i, beta in enumerate(path[1:-1]):
        target, own = _at(log_path, beta), _of(kernel, beta)
        state = own.start(x, target, groups)
        total += state.log_p.double() - value.double()
        if steps is not None:
            state = with_step(state, steps[i])
        for _ in range(transitions):
            state = own.step(state, target, noise)
        x, value = state.x, state.log_p
    return total + log_path(x, path[-1]).double() - value.double()


@torch.no_grad()
def tune(log_path: LogPath, betas: Tensor, kernel: Kernels, start: Tensor, noise: Noise, groups: int = 1) -> Tensor:
    """Step sizes for ``anneal`` at each temperature between [T - 1, groups], learned on the way from ``start``.

    The chains of ``start`` [C, D] must be others than those that are annealed, lest these choose their own steps. The
    sizes of the same temperatures backwards are ``flip(0)``. Raises what ``anneal`` raises.
    """
    between = _temperatures(betas)[1:-1]
    last = max(0, len(between) - 1)
    ways = min(STOPS - 1, 1 + last // APART)
    stops = sorted({round(i * last / ways) for i in range(ways + 1)})
    x, learned = start, list[Tensor]()
    for stop in stops if between else []:
        target, own = _at(log_path, between[stop]), _of(kernel, between[stop])
        state = own.start(x, target, groups)
        if state.tuning is None:
            raise UsageError(f"{type(own).__name__} has no step size to learn.", "Anneal without steps.")
        if learned:
            state = with_step(state, learned[-1])
        for _ in range(STEPS):
            state = own.step(state, target, noise, adapt=True)
        x, tuned = state.x, state.tuning
        assert tuned is not None
        learned.append(tuned.size(adapt=False))
    if not learned:
        return torch.empty(0, groups, dtype=torch.float64)
    at = torch.tensor(stops)
    right = torch.searchsorted(at, torch.arange(len(between))).clamp(min=min(1, last))
    left = (right - 1).clamp(min=0)
    share = ((torch.arange(len(between)) - at[left]) / (at[right] - at[left]).clamp(min=1)).to(x.device)[:, None]
    sizes = torch.stack(learned).log()
    return (sizes[left] * (1 - share) + sizes[right] * share).exp()


def sigmoid_schedule(temperatures: int) -> Tensor:
    """Betas [temperatures + 1] from 0 to 1, a sigmoid's from -4 to 4: dense at both ends, where densities change most
    (Grosse et al. 2015; Wu et al. 2017)."""
    if temperatures < 1:
        raise UsageError(f"{temperatures} temperatures lead nowhere.", "Give 1 or more.")
    s = torch.sigmoid(torch.linspace(-4, 4, temperatures + 1, dtype=torch.float64))
    return (s - s[0]) / (s[-1] - s[0])


def _temperatures(betas: Tensor) -> list[float]:
    found = [float(b) for b in betas]
    ends = sorted({found[0], found[-1]}) if found else []
    rises, falls = (all((b > a) == up and a != b for a, b in pairwise(found)) for up in (True, False))
    if ends != [0.0, 1.0] or not (rises or falls):
        raise UsageError(
            f"Temperatures {', '.join(f'{b:g}' for b in found[:8])} neither rise from 0 to 1 nor fall from 1 to 0.",
            "See pofx.mcmc.ais.sigmoid_schedule.",
        )
    return found


def _at(log_path: LogPath, beta: float) -> LogDensity:
    return lambda x: log_path(x, beta)


def _of(kernel: Kernels, beta: float) -> Kernel:
    own = kernel if isinstance(kernel, Kernel) else kernel(beta)
    if not own.exact:
        raise UsageError(
            f"{type(own).__name__} rejects nothing, so it does not leave a density as it is.", "Anneal by Mala or Hmc."
        )
    return own
