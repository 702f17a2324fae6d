"""Kernels of Markov chains: one step of many chains side by side, towards a density known up to a constant.

name       leaves the density  step size        what it is
langevin   nearly              given            x + (eps^2 / 2) grad log p(x) + eps xi: Euler's step of the diffusion
mala       exactly             learned, 0.574   the same, accepted or rejected (Roberts & Tweedie 1996)
hmc        exactly             learned, 0.8     leapfrog steps of Hamilton's equations (Neal 2011, figure 2)
gibbs      exactly             -                a sweep that the caller writes

Chains [C, D] may be of several targets at once: ``groups`` of C / groups neighbours each, such as the posteriors of
many rows. A group has its own step sizes and, with ``RowNoise``, its own noise: what a row gets follows from no other.

While it adapts, a kernel raises or lowers the step size to a target acceptance by dual averaging (Hoffman & Gelman
2014, section 3.2.1), and learns the scale of each coordinate. Both are held afterwards: only then are states draws.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from pofx.core.errors import UsageError, WrongShape
from pofx.core.noise import RowNoise
from pofx.core.options import POSITIVE, Options, Range

LogDensity: TypeAlias = Callable[[Tensor], Tensor]
"""log p [C] of x [C, D], up to a constant, by operations that have a gradient."""
Noise: TypeAlias = torch.Generator | RowNoise
"""Where random numbers come from: one stream for all chains, or one for each group."""

GAMMA, OFFSET, KAPPA = 0.05, 10.0, 0.75  # of dual averaging (Hoffman & Gelman 2014, section 3.2.1)
UNEVEN = 4.0  # step sizes are eps (1 + 1 / UNEVEN) u^(1 / UNEVEN), u uniform: eps on average, seldom much shorter
RAN_AWAY = 1000.0  # nats that a trajectory loses, from which on it diverges (Stan's limit)
DOUBT = 5.0  # draws that an estimated scale must outweigh


@dataclass(frozen=True)
class Tuning:
    """Of each group: what a step is long, and what has been learned of it.

    Attributes:
        log_step: log of the step size while it adapts [G].
        averaged: its average, which is used when it adapts no more [G].
        error: the weighted mean of how far acceptance fell short [G].
        centre: what dual averaging shrinks ``log_step`` to [G].
        steps: since when.
        scale: of each coordinate [G, D].
        moments: sums of the states and of their squares since the scale was learned last, [2, G, D].
        seen: states of each group in them.
        careful: is the mean acceptance harmonic? Then one chain that is stuck pulls it to zero, and steps are cut until
            it moves (Hoffman et al. 2021): so until scales are learned first.
    """

    log_step: Tensor
    averaged: Tensor
    error: Tensor
    centre: Tensor
    steps: int
    scale: Tensor
    moments: Tensor
    seen: int = 0
    careful: bool = False

    @classmethod
    def fresh(cls, step: Tensor, scale: Tensor, careful: bool = False) -> Tuning:
        """From step sizes [G] and scales [G, D]."""
        log_step = step.double().log()
        ahead = log_step + math.log(10)  # larger steps are tried first: they are the cheaper ones
        error, moments = torch.zeros_like(log_step), scale.new_zeros(2, *scale.shape)
        return cls(log_step, log_step, error, ahead, 0, scale, moments, careful=careful)

    def size(self, adapt: bool) -> Tensor:
        """Step sizes [G]."""
        return (self.log_step if adapt else self.averaged).exp()

    def learned(self, x: Tensor, accepted: Tensor, target: float) -> Tuning:
        """After a step of x [C, D] that was accepted with probabilities [C] (eq. 6)."""
        groups, m = len(self.scale), self.steps + 1
        a = accepted.double().view(groups, -1)
        short = target - (1 / (1 / a).mean(1) if self.careful else a.mean(1))
        error = self.error + (short - self.error) / (m + OFFSET)
        log_step = self.centre - m**0.5 / GAMMA * error
        averaged = self.averaged + m**-KAPPA * (log_step - self.averaged)
        each = x.unflatten(0, (groups, -1)).to(self.moments)
        moments = self.moments + torch.stack([each.sum(1), each.square().sum(1)])
        return replace(
            self, log_step=log_step, averaged=averaged, error=error, steps=m, moments=moments,
            seen=self.seen + each.shape[1],
        )  # fmt: skip

    def rescaled(self) -> Tuning:
        """With the scales of what was seen, a little towards 1; the step size is then learned anew."""
        n = self.seen
        if n < 2:
            return self
        mean, square = self.moments / n
        variance = (square - mean.square()).clamp(min=0) * n / (n - 1)
        scale = ((n * variance + DOUBT * 1e-3) / (n + DOUBT)).sqrt()
        return Tuning.fresh(torch.full_like(self.averaged, 0.5), scale)


@dataclass(frozen=True)
class State:
    """Where C chains are.

    Attributes:
        x: [C, D].
        log_p: of x, up to the target's constant [C].
        grad: of log_p by x [C, D]; None where the kernel asks for none.
        accepted: the probability with which the last proposal was accepted [C].
        divergent: did the last trajectory lose its energy [C]?
        groups: of chains, each with its own target.
        tuning: what has been learned; None where nothing is.
    """

    x: Tensor
    log_p: Tensor
    grad: Tensor | None
    accepted: Tensor
    divergent: Tensor
    groups: int
    tuning: Tuning | None = None


@dataclass(frozen=True)
class Kernel(Options, ABC):
    """Base: moves chains so that their distribution comes nearer to the target's, and stays there.

    Attributes:
        exact: leaves the target as it is.
        rejects: proposals, some of them.
    """

    exact: ClassVar[bool] = True
    rejects: ClassVar[bool] = True

    def start(self, x: Tensor, log_p: LogDensity, groups: int = 1) -> State:
        """Chains at x [C, D] of so many targets. Raises UsageError where x has no density."""
        if x.ndim != 2 or len(x) < 1:
            raise WrongShape(f"The chains start at a tensor of shape {tuple(x.shape)}.", "Give [C, D]: a row for each.")
        if groups < 1 or len(x) % groups:
            raise UsageError(f"{len(x)} chains make no {groups} groups of one size.", "Give as many for each.")
        value, grad, tuning = self.begin(x, log_p, groups)
        if not value.isfinite().all():
            bad = int((~value.isfinite()).nonzero()[0, 0])
            raise UsageError(f"Chain {bad} starts where log p is {value[bad].item()}.", "Start where it is finite.")
        return State(x, value, grad, torch.ones_like(value), torch.zeros_like(value, dtype=torch.bool), groups, tuning)

    @abstractmethod
    def begin(self, x: Tensor, log_p: LogDensity, groups: int) -> tuple[Tensor, Tensor | None, Tuning | None]:
        """log p [C], its gradient and what there is to learn."""

    @abstractmethod
    def step(self, state: State, log_p: LogDensity, noise: Noise, adapt: bool = False) -> State:
        """One step of every chain; where it adapts, the kernel learns from it."""


@dataclass(frozen=True)
class Langevin(Kernel):
    """Steps up the gradient with noise, none rejected: near the target for small steps only.

    Attributes:
        step_size: standard deviation of a step's noise.
    """

    step_size: float = 0.1

    exact, rejects = False, False
    ranges = {"step_size": POSITIVE}

    def begin(self, x: Tensor, log_p: LogDensity, groups: int) -> tuple[Tensor, Tensor | None, Tuning | None]:
        return *value_and_grad(log_p, x), None

    def step(self, state: State, log_p: LogDensity, noise: Noise, adapt: bool = False) -> State:
        assert state.grad is not None
        eps = self.step_size
        x = state.x + 0.5 * eps**2 * state.grad + eps * normal(state.x, noise, state.groups)
        value, grad = value_and_grad(log_p, x)
        return replace(state, x=x, log_p=value, grad=grad)


@dataclass(frozen=True)
class Trajectories(Kernel):
    """Base of kernels that accept or reject the end of a trajectory of Hamilton's equations.

    H(x, p) = -log p(x) + |p|^2 / 2, p ~ N(0, I), is conserved but for the error of leapfrog steps (Neal 2011, eq. 2.28
    to 2.30), which keep volume and can be run backwards: the end is accepted with probability min(1, exp(H_0 - H_1)).
    Momenta are in units of each coordinate's scale, which is a diagonal mass. Step sizes are uneven, from step to step
    and chain to chain, lest a trajectory be a whole turn of its orbit (section 3.2); short ones now and then lead a
    chain out of where all that are right elsewhere are rejected.

    Attributes:
        step_size: of the first step, from which adaptation goes on.
        target: acceptance that adaptation aims at: higher where curvature differs much from place to place.
    """

    step_size: float = 0.1
    target: float = 0.8

    ranges = {"step_size": POSITIVE, "target": Range(0, 1, above=True, below=True)}

    @property
    @abstractmethod
    def length(self) -> int:
        """Leapfrog steps of a trajectory."""

    def begin(self, x: Tensor, log_p: LogDensity, groups: int) -> tuple[Tensor, Tensor | None, Tuning | None]:
        size = torch.full((groups,), self.step_size, dtype=torch.float64, device=x.device)
        return *value_and_grad(log_p, x), Tuning.fresh(size, torch.ones(groups, x.shape[1]).to(x), careful=True)

    def step(self, state: State, log_p: LogDensity, noise: Noise, adapt: bool = False) -> State:
        assert state.grad is not None
        assert state.tuning is not None
        tuning, x, grad, groups = state.tuning, state.x, state.grad, state.groups
        size = (tuning.size(adapt)[:, None].to(x) * tuning.scale).repeat_interleave(len(x) // groups, 0)
        size = size * (1 + 1 / UNEVEN) * uniform(x, noise, groups)[:, None] ** (1 / UNEVEN)
        p = normal(x, noise, groups)
        before = state.log_p - 0.5 * p.square().sum(1)
        p = p + 0.5 * size * grad
        for i in range(self.length):
            x = x + size * p
            value, grad = value_and_grad(log_p, x)
            p = p + (1.0 if i + 1 < self.length else 0.5) * size * grad
        gained = value - 0.5 * p.square().sum(1) - before
        probability = gained.clamp(max=0).exp().nan_to_num(0.0)
        taken = self.taken(probability, uniform(x, noise, groups))
        x, grad = torch.where(taken[:, None], x, state.x), torch.where(taken[:, None], grad, state.grad)
        if adapt:
            tuning = tuning.learned(x, probability, self.target)
        value = torch.where(taken, value, state.log_p)
        return State(x, value, grad, probability, ~(gained > -RAN_AWAY), groups, tuning)

    @staticmethod
    def taken(probability: Tensor, u: Tensor) -> Tensor:
        """Which proposals are accepted [C] (Metropolis et al. 1953)."""
        return u < probability


@dataclass(frozen=True)
class Mala(Trajectories):
    """Langevin's steps, each accepted or rejected (Roberts & Tweedie 1996): trajectories of one leapfrog step, as Neal
    2011, section 5.2 shows. Its best acceptance in many dimensions is 0.574 (Roberts & Rosenthal 1998)."""

    target: float = 0.574

    @property
    def length(self) -> int:
        return 1


@dataclass(frozen=True)
class Hmc(Trajectories):
    """Hamiltonian Monte Carlo (Neal 2011), with the step size and the target acceptance of Hoffman & Gelman 2014.

    Attributes:
        leapfrog: steps of each trajectory.
    """

    leapfrog: int = 10

    @property
    def length(self) -> int:
        return self.leapfrog


@dataclass(frozen=True)
class Gibbs(Kernel):
    """A sweep that draws all coordinates given others, by turns (Geman & Geman 1984).

    Attributes:
        sweep: x [C, D], noise -> x after a sweep, which leaves the target as it is.
    """

    sweep: Callable[[Tensor, Any], Tensor]

    rejects = False

    def begin(self, x: Tensor, log_p: LogDensity, groups: int) -> tuple[Tensor, Tensor | None, Tuning | None]:
        return log_p(x), None, None

    def step(self, state: State, log_p: LogDensity, noise: Noise, adapt: bool = False) -> State:
        x = self.sweep(state.x, noise)
        return replace(state, x=x, log_p=log_p(x))


def with_step(state: State, size: Tensor) -> State:
    """The same chains with step sizes [groups], of a kernel that has some."""
    assert state.tuning is not None
    return replace(state, tuning=Tuning.fresh(size, state.tuning.scale))


def value_and_grad(log_p: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p [C] of x [C, D] and its gradient by x [C, D], whether or not gradients are on."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = log_p(x)
        [grad] = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad


def normal(x: Tensor, noise: Noise, groups: int = 1) -> Tensor:
    """Standard normal numbers shaped like x [C, D]."""
    if isinstance(noise, RowNoise):
        return noise.randn(len(x) // groups, x.shape[1]).reshape(x.shape).to(x)
    return torch.randn(x.shape, generator=noise, device=noise.device, dtype=x.dtype).to(x.device)


def uniform(x: Tensor, noise: Noise, groups: int = 1) -> Tensor:
    """Uniform numbers [C] in [0, 1), of the dtype of x [C, D]."""
    if isinstance(noise, RowNoise):
        return noise.rand(len(x) // groups).reshape(len(x)).to(x)
    return torch.rand(len(x), generator=noise, device=noise.device, dtype=x.dtype).to(x.device)
