"""Runs chains: a warm-up in which the kernel adapts, then states that count, and the verdict on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.verdict import Verdict
from pofx.mcmc.diagnostics import verdict
from pofx.mcmc.kernels import Kernel, LogDensity, Noise, State

WATCHED = 500  # states of each chain that a verdict sees, at least: R-hat of independent halves of e effective draws
# is about 1 + 1 / (2 e), and within its limit from e = 50 on only
SEEN = 32  # quantities, at most: coordinates, or as many projections of more
WINDOWS = (0.15, 0.4, 0.9)  # of the warm-up: where scales are learned; what is behind the last is for the step size


@dataclass(frozen=True)
class Chains:
    """What C chains gave.

    Attributes:
        draws: states [C, T, D], T of each chain.
        log_p: of these, up to the target's constant [C, T].
        verdict: on all states behind the warm-up, also those between draws: the worst of all groups.
        final: where the chains stand, to go on from.
    """

    draws: Tensor
    log_p: Tensor
    verdict: Verdict
    final: State

    def rows(self, n: int) -> Tensor:
        """The first n draws [n, D], one of each chain by turns."""
        return self.draws.transpose(0, 1).flatten(0, 1)[:n]


@torch.no_grad()
def run(
    kernel: Kernel,
    log_p: LogDensity,
    start: Tensor,
    draws: int,
    warmup: int,
    thin: int,
    noise: Noise,
    watch: Callable[[Tensor], Tensor] | None = None,
    groups: int = 1,
    watched: int = WATCHED,
) -> Chains:
    """Chains from ``start`` [C, D]: ``draws`` states of each, so many steps apart.

    Chains that start far apart say more of their mixing than those that start together.

    Args:
        warmup: steps before the first state that counts, in which the kernel adapts.
        thin: steps between two draws; more where these would be fewer than ``watched`` steps in all.
        watch: x [C, D] -> [C, W], what the verdict looks at beside log p [default: coordinates, or as many projections
            by lot, of which the seed is fixed].
        groups: so many targets, of C / groups chains each; ``log_p`` knows which chain is of which.
        watched: the fewest states that the verdict is of.

    Raises UsageError for fewer than two chains of a target, for counts below 1, and where a chain starts outside.
    """
    for name, count, least in (("draws", draws, 1), ("warmup", warmup, 0), ("thin", thin, 1), ("watched", watched, 4)):
        if count < least:
            raise UsageError(f"{name} is {count}; it must be {least} or more.")
    state = kernel.start(start, log_p, groups)
    if len(start) < 2 * groups:
        raise UsageError("One chain agrees with none.", "Run two or more for each target.")
    ends = {round(share * warmup) for share in WINDOWS}
    for i in range(1, warmup + 1):
        state = kernel.step(state, log_p, noise, adapt=True)
        if i in ends and state.tuning is not None:
            state = replace(state, tuning=state.tuning.rescaled())
    thin = max(thin, -(-watched // draws))
    of = projections(start) if watch is None else watch
    x, values, seen = list[Tensor](), list[Tensor](), list[Tensor]()
    accepted, divergent = torch.zeros((), dtype=torch.float64), 0
    for i in range(1, thin * draws + 1):
        state = kernel.step(state, log_p, noise)
        seen.append(torch.cat([of(state.x).reshape(len(start), -1).double(), state.log_p.double()[:, None]], 1))
        accepted += state.accepted.double().mean().cpu()
        divergent += int(state.divergent.sum())
        if i % thin == 0:
            x.append(state.x)
            values.append(state.log_p)
    acceptance = float(accepted) / len(seen) if kernel.rejects else None
    found = verdict(torch.stack(seen, 1), acceptance, divergent, groups)
    return Chains(torch.stack(x, 1), torch.stack(values, 1), found, state)


def projections(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Of x [C, D] the coordinates, or of many as many projections as can be watched."""
    if x.shape[1] <= SEEN:
        return lambda x: x
    lot = torch.Generator().manual_seed(0)
    basis = torch.randn(x.shape[1], SEEN, generator=lot, dtype=torch.float64).to(x.device)
    return lambda x: x.double() @ basis
