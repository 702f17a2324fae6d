"""Schedules: the Gaussian path q(z_t | x) = N(alpha_t x, sigma_t^2 I) from data (t = 0) to noise (t = 1).

Every family of this kind (diffusion, score SDE, flow matching) takes one such path. Its signal-to-noise
ratio, through log SNR = 2 log(alpha / sigma), is all of it that a likelihood sees; divided by
sqrt(alpha^2 + sigma^2) all paths are one path, run through at different speeds (Kingma et al. 2021,
"Variational Diffusion Models", section 5.1).

    ddpm          variance preserving   Ho et al. 2020: a chain of T steps (section 4)
    cosine-chain  variance preserving   Nichol & Dhariwal 2021: another one, of the alphas of "cosine"
    linear-beta   variance preserving   its limit of many steps (Song et al. 2021, appendix C), their VP
    sub-vp        sigma = 1 - alpha^2   the same alpha with less noise (Song et al. 2021, eq. 12), their sub-VP
    cosine        variance preserving   Nichol & Dhariwal 2021 (eq. 17)
    exploding     alpha = 1             Song & Ermon 2019; Song et al. 2021 (appendix C), their VE
    linear        straight lines        Lipman et al. 2023 (eq. 20-23, with time running from data to noise)
    trigonometric variance preserving   Albergo & Vanden-Eijnden 2023 (eq. 5): a quarter of a circle at even speed
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pofx.core.errors import UsageError

RHO = 7  # of Karras et al. 2022


class Point(NamedTuple):
    """The path at some times: alpha, sigma and their derivatives in t, each shaped like t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviation sqrt(alpha^2 + sigma^2) of z_t where the data have unit variance."""
        return torch.hypot(self.alpha, self.sigma)


class Schedule(ABC):
    """alpha falls, sigma rises in t, so that the log SNR falls strictly. Give times as float64.

    Args:
        smallest, largest: sigma / alpha at both ends of what is made of the path, the data's and the noise's.

    Raises UsageError where the noise does not rise.
    """

    def __init__(self, smallest: float = 1e-3, largest: float = 80.0) -> None:
        if not 0 < smallest < largest < math.inf:
            raise UsageError(
                f"The noise cannot rise from {smallest:g} to {largest:g}.",
                "Give a smallest above 0, and a largest above it.",
            )
        self.smallest, self.largest = smallest, largest
        self.ends = -2 * math.log(largest), -2 * math.log(smallest)  # the log SNR at the noise's and the data's end
        self.range = self.ends[1] - self.ends[0]

    @abstractmethod
    def __call__(self, t: Tensor) -> Point:
        """The path at times t in [0, 1], of any shape."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The time at which the log SNR has the given value: the inverse of ``log_snr``."""

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log(alpha_t / sigma_t)"""
        p = self(t)
        return 2 * (p.alpha.log() - p.sigma.log())

    def uniform(self, u: Tensor) -> Tensor:
        """Times even between both ends, the noise's at u = 0 and the data's at u = 1."""
        first, last = self.time(torch.tensor(self.ends, dtype=torch.float64)).tolist()
        return first + u * (last - first)

    def times(self, steps: int) -> Tensor:
        """A sampler's times [steps + 1], from noise to data, even in t as the schedule means them."""
        return self.uniform(torch.linspace(0, 1, steps + 1, dtype=torch.float64))

    def grid(self, name: str, steps: int) -> Tensor:
        """The times [steps + 1] of a sampler, from noise to data: those of ``times``, or by name even in the log SNR
        ("log-snr") or as ``karras`` has them ("karras")."""
        if name == "schedule":
            return self.times(steps)
        if name == "log-snr":
            return self.time(torch.linspace(*self.ends, steps + 1, dtype=torch.float64))
        return self.time(-2 * torch.tensor(karras(self.largest, self.smallest, steps), dtype=torch.float64).log())

    def levels(self, steps: int) -> Tensor:
        """The times [steps + 1] of a bound in that many steps, from noise to data, even in the log SNR."""
        return self.time(torch.linspace(*self.ends, steps + 1, dtype=torch.float64))


def karras(largest: float, smallest: float, steps: int) -> list[float]:
    """Noise levels [steps + 1] whose root of order ``RHO`` falls evenly (Karras et al. 2022, eq. 5).

    Example:
        >>> [round(level, 4) for level in karras(80.0, 0.002, 17)[:2]], round(karras(80.0, 0.002, 17)[-1], 4)
        ([80.0, 57.586], 0.002)
    """
    high, low = largest ** (1 / RHO), smallest ** (1 / RHO)
    return [(high + i / max(steps, 1) * (low - high)) ** RHO for i in range(steps + 1)]


def preserving(rate: Tensor, integral: Tensor) -> Point:
    """The variance-preserving path with alpha^2 = exp(-integral), the integral of beta growing at this rate."""
    alpha, sigma = torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))
    return Point(alpha, sigma, -rate * alpha / 2, rate * alpha**2 / (2 * sigma))


class Chain(Schedule):
    """T steps x_t = sqrt(1 - beta_t) x_(t-1) + sqrt(beta_t) noise, step k at time k / T (Ho et al. 2020, eq. 2).

    beta_t rises linearly from 1e-4 to 0.02 where T is 1000, else by 1000 / T as much, so that the ends stay. Between
    its steps log alpha^2 is linear. Its ends are its first and its last step.

    Args:
        steps: T.
        betas: others [T].

    Example:
        >>> import torch
        >>> chain = Chain(1000)
        >>> round(chain(torch.tensor(0.001, dtype=torch.float64)).alpha.item() ** 2, 12)  # 1 - beta_1
        0.9999
        >>> round(chain.largest, 1)
        157.4
    """

    def __init__(self, steps: int, betas: Tensor | None = None) -> None:
        if steps <= 20 and betas is None:  # 0.02 x 1000 / T would be all that there is
            raise UsageError(f"A chain of {steps} steps has no betas: one of 1000 / T x 0.02 is below 1.", "Give more.")
        self.steps = steps
        usual = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
        self.betas = usual if betas is None else betas.double()
        self.lost = -torch.log1p(-self.betas)  # of log alpha^2, in each step
        self.integral = torch.cat([self.lost.new_zeros(1), self.lost.cumsum(0)])
        first, last = self.integral[[1, -1]].expm1().sqrt().tolist()
        super().__init__(first, last)

    def __call__(self, t: Tensor) -> Point:
        place = t * self.steps
        i = place.long().clamp(0, self.steps - 1)
        lost = self.lost.to(t.device)[i]
        return preserving(self.steps * lost, self.integral.to(t.device)[i] + lost * (place - i))

    def time(self, log_snr: Tensor) -> Tensor:
        integral, grid = softplus(-log_snr), self.integral.to(log_snr.device)
        i = (torch.searchsorted(grid, integral) - 1).clamp(0, self.steps - 1)
        return (i + (integral - grid[i]) / self.lost.to(integral.device)[i]) / self.steps

    def step(self, log_snr: Tensor) -> Tensor:
        """The place of the step with this log SNR, counted from 0."""
        return self.time(log_snr) * self.steps - 1

    def uniform(self, u: Tensor) -> Tensor:
        """One of the T steps, each for as much of u."""
        return 1 - (u * self.steps).long().clamp_max(self.steps - 1) / self.steps

    def times(self, steps: int) -> Tensor:
        """All T steps, or fewer, evenly left out (Nichol & Dhariwal 2021, section 4)."""
        return torch.linspace(self.steps, 1, min(steps, self.steps - 1) + 1, dtype=torch.float64).round() / self.steps

    levels = times


def cosine_chain(steps: int) -> Chain:
    """The chain whose alpha^2 are those of ``Cosine``, no beta above 0.999 (Nichol & Dhariwal 2021, eq. 17).

    Example:
        >>> round(cosine_chain(100).betas[-1].item(), 4)
        0.999
    """
    offset = Cosine.offset
    angles = math.pi / 2 * (torch.linspace(0, 1, steps + 1, dtype=torch.float64) + offset) / (1 + offset)
    kept = angles.cos().square()
    return Chain(steps, (1 - kept[1:] / kept[:-1]).clamp_max(0.999))


class LinearBeta(Schedule):
    """Variance preserving with rate beta(t) = beta0 + (beta1 - beta0) t: alpha^2 = exp(-integral of beta).

    Example:
        >>> import torch
        >>> p = LinearBeta()(torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> (p.alpha**2 + p.sigma**2).round(decimals=12).tolist()
        [1.0, 1.0]
    """

    beta0, beta1 = 0.1, 20.0

    def integral(self, t: Tensor) -> Tensor:
        """Of beta, from 0 to t: -2 log alpha."""
        return self.beta0 * t + (self.beta1 - self.beta0) * t**2 / 2

    def inverse(self, integral: Tensor) -> Tensor:
        """The time at which the integral has the given value."""
        slope = self.beta1 - self.beta0
        return 2 * integral / (self.beta0 + torch.sqrt(self.beta0**2 + 2 * slope * integral))

    def __call__(self, t: Tensor) -> Point:
        return preserving(self.beta0 + (self.beta1 - self.beta0) * t, self.integral(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return self.inverse(softplus(-log_snr))  # alpha^2 = sigmoid(log SNR)


class SubPreserving(LinearBeta):
    """alpha of the variance-preserving path, sigma = 1 - alpha^2: its variance is nowhere larger.

    Example:
        >>> import torch
        >>> p = SubPreserving()(torch.tensor([0.2, 1.0], dtype=torch.float64))
        >>> (p.alpha**2 + p.sigma).tolist()
        [1.0, 1.0]
    """

    def __call__(self, t: Tensor) -> Point:
        alpha, _, d_alpha, _ = super().__call__(t)
        sigma = -torch.expm1(-self.integral(t))
        return Point(alpha, sigma, d_alpha, -2 * alpha * d_alpha)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.inverse(2 * torch.asinh(torch.exp(-log_snr / 2) / 2))  # sigma / alpha = 2 sinh(integral / 2)


class Cosine(Schedule):
    """Variance preserving with alpha = cos(a(t)) / cos(a(0)), the angle a(t) = pi/2 (t + s) / (1 + s)."""

    offset = 0.008

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    def __call__(self, t: Tensor) -> Point:
        a0, rate = self._start, math.pi / 2 / (1 + self.offset)
        a = a0 + rate * t
        alpha = torch.cos(a) / math.cos(a0)
        # 1 - alpha^2 without cancellation: cos^2 a0 - cos^2 a = sin(a - a0) sin(a + a0)
        sigma = torch.sqrt(torch.sin(a - a0) * torch.sin(a + a0)) / math.cos(a0)
        d_alpha = -rate * torch.sin(a) / math.cos(a0)
        return Point(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        cos2 = math.cos(self._start) ** 2
        signal, noise = torch.sigmoid(log_snr) * cos2, torch.sigmoid(-log_snr) * cos2  # cos^2 a; cos^2 a0 - cos^2 a
        a = torch.atan2(torch.sqrt(1 - cos2 + noise), torch.sqrt(signal))
        return a * (2 / math.pi) * (1 + self.offset) - self.offset


class Exploding(Schedule):
    """alpha = 1, sigma geometric from ``smallest`` to ``largest``."""

    def __call__(self, t: Tensor) -> Point:
        rate = math.log(self.largest / self.smallest)
        sigma = self.smallest * torch.exp(rate * t)
        return Point(torch.ones_like(t), sigma, torch.zeros_like(t), rate * sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2 - math.log(self.smallest)) / math.log(self.largest / self.smallest)


class Linear(Schedule):
    """alpha = 1 - t, sigma = t: each datum moves on a straight line to its noise.

    Example:
        >>> import torch
        >>> p = Linear()(torch.tensor(0.25, dtype=torch.float64))
        >>> p.alpha.item(), p.sigma.item()
        (0.75, 0.25)
    """

    def __call__(self, t: Tensor) -> Point:
        one = torch.ones_like(t)
        return Point(1 - t, t, -one, one)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


class Trigonometric(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): a path of the stochastic interpolants.

    Example:
        >>> import torch
        >>> p = Trigonometric()(torch.tensor(1 / 3, dtype=torch.float64))
        >>> round(p.alpha.item() ** 2, 12), round(p.sigma.item() ** 2, 12)
        (0.75, 0.25)
    """

    def __call__(self, t: Tensor) -> Point:
        alpha, sigma = torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)
        return Point(alpha, sigma, -math.pi / 2 * sigma, math.pi / 2 * alpha)

    def time(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-log_snr / 2))


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": Cosine,
    "linear-beta": LinearBeta,
    "sub-vp": SubPreserving,
    "exploding": Exploding,
    "linear": Linear,
    "trigonometric": Trigonometric,
}
"""Name -> schedule, given the smallest and the largest sigma / alpha; a ``Chain`` has ends of its own."""

CHAINS: dict[str, Callable[[int], Chain]] = {"ddpm": Chain, "cosine-chain": cosine_chain}
"""Name -> chain of so many steps."""
