"""Mistakes planted in pofx's chains, which the checks of ``testing.checks_chains`` must catch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pofx.core.verdict import Verdict
from pofx.mcmc import ais, diagnostics
from pofx.testing.wrong_numbers import Planted

_verdict, _anneal = diagnostics.verdict, ais.anneal


def all_taken(probability: Tensor, u: Tensor) -> Tensor:
    """Every proposal is accepted."""
    return torch.ones_like(u, dtype=torch.bool)


def of_accepted_only(x: Tensor, acceptance: float | None, divergent: int, groups: int = 1) -> Verdict:
    """Of the states that proposals were accepted for, of all chains one after the other: one that is stuck has none."""
    moved = torch.cat([torch.ones_like(x[:, :1, 0], dtype=torch.bool), (x[:, 1:] != x[:, :-1]).any(2)], 1)
    kept = x[moved]
    return _verdict(kept[: len(kept) // len(x) * len(x)].unflatten(0, (len(x), -1)), acceptance, divergent, groups)


def without_the_last(log_path: ais.LogPath, betas: Tensor, *args: Any, **how: Any) -> Tensor:
    """The weights lack the last temperature."""
    last, before = float(betas[-1]), float(betas[-2])
    return _anneal(lambda x, beta: log_path(x, before if beta == last else beta), betas, *args, **how)


def without_the_first(log_path: ais.LogPath, betas: Tensor, *args: Any, **how: Any) -> Tensor:
    """The weights lack the first temperature."""
    first, after = float(betas[0]), float(betas[1])
    return _anneal(lambda x, beta: log_path(x, after if beta == first else beta), betas, *args, **how)


_ANNEALS = frozenset({"annealing gives the ratio of the constants, between its bounds"})
PLANTED = (
    Planted("no acceptance step", "pofx.mcmc.kernels.Trajectories.taken", staticmethod(all_taken),
            frozenset({"a step of any size keeps the distribution", "a chain that is stuck is told"})),
    Planted("R-hat of accepted draws", "pofx.mcmc.chains.verdict", of_accepted_only,
            frozenset({"a chain that is stuck is told"})),
    Planted("the last temperature is missing", "pofx.mcmc.ais.anneal", without_the_last, _ANNEALS),
    Planted("the first temperature is missing", "pofx.mcmc.ais.anneal", without_the_first, _ANNEALS),
)  # fmt: skip
