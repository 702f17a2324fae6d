"""Schedules: the Gaussian path q(z_t | x) = N(alpha_t x, sigma_t^2 I) from data (t = 0) to noise (t = 1).

Every family of this kind (diffusion, score SDE, flow matching) takes one such path. Its signal-to-noise
ratio, through log SNR = 2 log(alpha / sigma), is all of it that a likelihood sees; divided by
sqrt(alpha^2 + sigma^2) all paths are one path, run through at different speeds (Kingma et al. 2021,
"Variational Diffusion Models", section 5.1).

    linear-beta   variance preserving   Ho et al. 2020 in the continuous time of Song et al. 2021 (appendix C)
    cosine        variance preserving   Nichol & Dhariwal 2021 (eq. 17)
    exploding     alpha = 1             Song & Ermon 2019; Song et al. 2021 (appendix C)
    linear        straight lines        Lipman et al. 2023 (eq. 20-23, with time running from data to noise)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus


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
    """alpha falls, sigma rises in t, so that the log SNR falls strictly. Give times as float64."""

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

    def times(self, steps: int, smallest: float, largest: float) -> Tensor:
        """A sampler's times [steps + 1], from noise to data, uniform in t as the schedule means them.

        ``largest`` and ``smallest`` are the values of sigma / alpha at both ends.
        """
        ends = torch.tensor([largest, smallest], dtype=torch.float64)
        first, last = self.time(-2 * ends.log()).tolist()
        return torch.linspace(first, last, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class LinearBeta(Schedule):
    """Variance preserving with rate beta(t) = beta0 + (beta1 - beta0) t: alpha^2 = exp(-integral of beta).

    Example:
        >>> import torch
        >>> p = LinearBeta()(torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> (p.alpha**2 + p.sigma**2).round(decimals=12).tolist()
        [1.0, 1.0]
    """

    beta0: float = 0.1
    beta1: float = 20.0

    def __call__(self, t: Tensor) -> Point:
        slope = self.beta1 - self.beta0
        beta, integral = self.beta0 + slope * t, self.beta0 * t + slope * t**2 / 2
        alpha, sigma = torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))
        return Point(alpha, sigma, -beta * alpha / 2, beta * alpha**2 / (2 * sigma))

    def time(self, log_snr: Tensor) -> Tensor:
        integral, slope = softplus(-log_snr), self.beta1 - self.beta0  # alpha^2 = sigmoid(log SNR)
        return 2 * integral / (self.beta0 + torch.sqrt(self.beta0**2 + 2 * slope * integral))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Variance preserving with alpha = cos(a(t)) / cos(a(0)), the angle a(t) = pi/2 (t + s) / (1 + s)."""

    offset: float = 0.008

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


@dataclass(frozen=True)
class Exploding(Schedule):
    """alpha = 1, sigma geometric from ``smallest`` to ``largest``."""

    smallest: float
    largest: float

    def __call__(self, t: Tensor) -> Point:
        rate = math.log(self.largest / self.smallest)
        sigma = self.smallest * torch.exp(rate * t)
        return Point(torch.ones_like(t), sigma, torch.zeros_like(t), rate * sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2 - math.log(self.smallest)) / math.log(self.largest / self.smallest)


@dataclass(frozen=True)
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


SCHEDULES: dict[str, Callable[[float, float], Schedule]] = {
    "linear-beta": lambda smallest, largest: LinearBeta(),
    "cosine": lambda smallest, largest: Cosine(),
    "exploding": Exploding,
    "linear": lambda smallest, largest: Linear(),
}
"""Name -> schedule, given the smallest and the largest sigma / alpha that it is to reach."""
