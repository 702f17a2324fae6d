"""Posteriors whose moments are known from elsewhere: a closed form, enumeration or quadrature.

``POSTERIORS`` makes each by name. ``measure`` draws from one by a kernel that suits it, and says how far its moments
are from the truth, in standard errors, and what the chains' own verdict is. Two are beyond the kernel that is given for
them (``mixes`` is False): there it is the verdict that must be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pofx.core.verdict import Verdict
from pofx.mcmc.chains import run
from pofx.mcmc.diagnostics import ess_mean
from pofx.mcmc.kernels import Gibbs, Hmc, Kernel, LogDensity, Mala, Noise, uniform

LOG_2PI = math.log(2 * math.pi)
EULER = 0.5772156649015329


@dataclass(frozen=True)
class Posterior:
    """A density known up to a constant, and moments of it.

    Attributes:
        log_p: [C, D] -> [C].
        dims: D.
        of: x [..., D] -> what has the moments [..., W].
        truth: their means [W].
        kernel: that draws from it.
        mixes: is that to be expected?
        start: x of so many chains [C, D], spread wide.
    """

    log_p: LogDensity
    dims: int
    of: Callable[[Tensor], Tensor]
    truth: Tensor
    kernel: Kernel
    mixes: bool = True
    start: Callable[[int, torch.Generator], Tensor] | None = None


@dataclass(frozen=True)
class Measured:
    """What chains found.

    Attributes:
        mean: of each moment [W].
        error: its standard error, by effective sample sizes [W].
        truth: [W].
        verdict: that of the chains, on the moments' functions too.
        ess: the smallest effective sample size of a moment.
    """

    mean: Tensor
    error: Tensor
    truth: Tensor
    verdict: Verdict
    ess: float

    @property
    def off(self) -> float:
        """The largest difference from the truth, in standard errors."""
        return float(((self.mean - self.truth) / self.error).abs().max())


def measure(p: Posterior, chains: int, warmup: int, draws: int, seed: int) -> Measured:
    """``draws`` states of each chain behind its warm-up, none left out."""
    noise = torch.Generator().manual_seed(seed)
    begun = 2 * torch.randn(chains, p.dims, generator=noise, dtype=torch.float64)
    begun = begun if p.start is None else p.start(chains, noise)
    found = run(
        p.kernel, p.log_p, begun, draws, warmup, 1, noise, watch=lambda x: torch.cat([x, p.of(x)], 1), watched=draws
    )
    values = p.of(found.draws)  # [C, T, W]
    ess = ess_mean(values)
    error = values.flatten(0, 1).std(0) / ess.sqrt()
    return Measured(values.mean((0, 1)), error, p.truth, found.verdict, float(ess.min()))


def moments(x: Tensor) -> Tensor:
    """First and second ones of each coordinate."""
    return torch.cat([x, x.square()], -1)


def gaussian(kernel: Kernel, dims: int, narrow: float) -> Posterior:
    """Scales from ``narrow`` to 1 in a random rotation, which no diagonal mass can undo."""
    lot = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(dims, dims, generator=lot, dtype=torch.float64))[0]
    variance = torch.logspace(2 * math.log10(narrow), 0, dims, dtype=torch.float64)
    precision, covariance = axes / variance @ axes.T, axes * variance @ axes.T
    truth = torch.cat([torch.zeros(dims).double(), covariance.diagonal()])
    return Posterior(lambda x: -0.5 * (x @ precision * x).sum(1), dims, moments, truth, kernel)


def banana() -> Posterior:
    """x_1 ~ N(0, 2^2), x_2 ~ N(x_1^2 / 4, 1): a parabola's neighbourhood (Haario et al. 1999)."""

    def log_p(x: Tensor) -> Tensor:
        return -0.5 * (x[:, 0] / 2).square() - 0.5 * (x[:, 1] - x[:, 0].square() / 4).square()

    truth = torch.tensor([0.0, 1.0, 4.0, 4.0], dtype=torch.float64)  # E x_2^2 = 1 + E x_1^4 / 16
    return Posterior(log_p, 2, moments, truth, Hmc(leapfrog=15, target=0.99))


def student(dof: float = 5.0) -> Posterior:
    """Student's t in three dimensions, of five degrees of freedom."""

    def log_p(x: Tensor) -> Tensor:
        return -0.5 * (dof + 3) * torch.log1p(x.square().sum(1) / dof)

    def of(x: Tensor) -> Tensor:
        # also the share beyond the 97.5% quantile, 2.571 for five degrees of freedom
        return torch.cat([x, x.square(), (x.abs() > 2.5705818366147395).double()], -1)

    spread = torch.tensor([0.0, dof / (dof - 2), 0.05], dtype=torch.float64)
    return Posterior(log_p, 3, of, spread.repeat_interleave(3), Hmc(leapfrog=10))


def mixture(apart: float) -> Posterior:
    """0.3 N(-m, I) + 0.7 N(m, I) in the plane, m as far from 0 as said along the first axis."""

    def log_p(x: Tensor) -> Tensor:
        left, right = (-0.5 * (x - torch.tensor([m, 0.0]).to(x)).square().sum(1) for m in (-apart, apart))
        return torch.logaddexp(math.log(0.3) + left, math.log(0.7) + right)

    def start(chains: int, noise: torch.Generator) -> Tensor:
        return 2 * apart * torch.randn(chains, 2, generator=noise, dtype=torch.float64)

    truth = torch.tensor([0.4 * apart, 0.0, 1 + apart**2, 1.0], dtype=torch.float64)
    return Posterior(log_p, 2, moments, truth, Hmc(leapfrog=10), mixes=apart < 4, start=start)


def funnel(centred: bool) -> Posterior:
    """v ~ N(0, 3^2), x_1 ... x_9 ~ N(0, e^v) (Neal 2003, section 8).

    As it stands its neck is too narrow for the step size of its mouth; by v = 3 z_0, x = e^(v / 2) z it is N(0, I).
    """

    def log_p(x: Tensor) -> Tensor:
        if not centred:
            return -0.5 * x.square().sum(1)
        return -0.5 * (x[:, 0] / 3).square() - 0.5 * (x[:, 1:].square() * (-x[:, :1]).exp() + x[:, :1]).sum(1)

    def of(x: Tensor) -> Tensor:
        v, z = (x[..., :1], x[..., 1:2]) if centred else (3 * x[..., :1], x[..., 1:2] * (1.5 * x[..., :1]).exp())
        return torch.cat([v, v.square(), z.abs().log()], -1)

    truth = torch.tensor([0.0, 9.0, -(EULER + math.log(2)) / 2], dtype=torch.float64)  # E log |z| of z ~ N(0, 1)
    return Posterior(log_p, 10, of, truth, Hmc(leapfrog=10), mixes=not centred)


def schools() -> Posterior:
    """Effects of coaching in eight schools (Rubin 1981), with mu ~ N(0, 5^2) and tau ~ half-Cauchy(5), as in Gelman et
    al. 2013, section 5.5; the truth by quadrature over mu and log tau, given which the effects are Gaussian.

    States are mu, log tau and (theta_j - mu) / tau.
    """
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
    s2 = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64).square()

    def prior(mu: Tensor, log_tau: Tensor) -> Tensor:
        return -0.5 * (mu / 5).square() - torch.log1p((2 * log_tau).exp() / 25) + log_tau

    def log_p(x: Tensor) -> Tensor:
        mu, log_tau, eta = x[:, 0], x[:, 1], x[:, 2:]
        theta = mu[:, None] + log_tau.exp()[:, None] * eta
        return prior(mu, log_tau) - 0.5 * eta.square().sum(1) - 0.5 * ((y - theta).square() / s2).sum(1)

    def of(x: Tensor) -> Tensor:
        mu, log_tau = x[..., :1], x[..., 1:2]
        return torch.cat([mu, log_tau, mu + log_tau.exp() * x[..., 2:]], -1)

    mu, log_tau = torch.meshgrid(
        torch.linspace(-30, 40, 701, dtype=torch.float64), torch.linspace(-12, 6, 1801, dtype=torch.float64),
        indexing="ij",
    )  # fmt: skip
    tau2 = (2 * log_tau).exp()[..., None]
    log_w = prior(mu, log_tau) - 0.5 * ((y - mu[..., None]).square() / (s2 + tau2) + (s2 + tau2).log()).sum(-1)
    w = log_w.flatten().softmax(0)
    theta = (mu[..., None] * s2 + y * tau2) / (s2 + tau2)
    every = torch.cat([mu[..., None], log_tau[..., None], theta], -1).flatten(0, 1)
    return Posterior(log_p, 10, of, w @ every, Hmc(leapfrog=10, target=0.99))


def logistic() -> Posterior:
    """Logistic regression with an intercept and one slope, N(0, 3^2) each, on thirty points; by quadrature."""
    lot = torch.Generator().manual_seed(1)
    t = torch.randn(30, generator=lot, dtype=torch.float64)
    y = (torch.rand(30, generator=lot, dtype=torch.float64) < torch.sigmoid(1.5 * t - 0.5)).double() * 2 - 1
    design = torch.stack([torch.ones_like(t), t])

    def log_p(x: Tensor) -> Tensor:
        return logsigmoid(y * (x @ design)).sum(1) - 0.5 * (x / 3).square().sum(1)

    side = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    truth = log_p(grid).softmax(0) @ moments(grid)
    return Posterior(log_p, 2, moments, truth, Mala())


def ising(side: int = 4, coupling: float = 0.3) -> Posterior:
    """Spins x = -1, 1 on a square lattice without boundary, log p(x) = J sum over neighbours x_i x_j; by enumeration.

    A sweep draws the black squares given the white ones and back.
    """
    place = torch.arange(side * side).view(side, side)
    black = (place // side + place % side) % 2 == 0

    def field(x: Tensor) -> Tensor:
        lattice = x.unflatten(-1, (side, side))
        return sum(lattice.roll(shift, axis) for shift in (1, -1) for axis in (-1, -2))  # type: ignore[return-value]

    def log_p(x: Tensor) -> Tensor:
        return 0.5 * coupling * (x * field(x).flatten(-2)).sum(-1)

    def sweep(x: Tensor, noise: Noise) -> Tensor:
        for colour in (black.flatten(), ~black.flatten()):
            u = uniform(x.new_empty(x.numel(), 1), noise).view_as(x)
            drawn = (u < torch.sigmoid(2 * coupling * field(x).flatten(-2))).to(x) * 2 - 1
            x = torch.where(colour, drawn, x)
        return x

    def of(x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        return torch.cat([mean, mean.abs(), mean.square(), log_p(x)[..., None]], -1)

    def start(chains: int, noise: torch.Generator) -> Tensor:
        return torch.randint(2, (chains, side * side), generator=noise).double() * 2 - 1

    bits = torch.arange(2 ** (side * side))[:, None] >> torch.arange(side * side) & 1
    every = bits.double() * 2 - 1
    truth = log_p(every).softmax(0) @ of(every)
    return Posterior(log_p, side * side, of, truth, Gibbs(sweep), start=start)


POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "gaussian": lambda: gaussian(Hmc(leapfrog=10), 10, 0.1),
    "gaussian by mala": lambda: gaussian(Mala(), 2, 0.5),
    "banana": banana,
    "student": student,
    "mixture": lambda: mixture(1.5),
    "mixture, far apart": lambda: mixture(10.0),
    "funnel": lambda: funnel(centred=False),
    "funnel, centred": lambda: funnel(centred=True),
    "eight schools": schools,
    "logistic regression": logistic,
    "ising": ising,
}
