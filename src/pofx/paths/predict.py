"""What the network predicts, and how every prediction becomes one denoiser.

With z = alpha x + sigma eps, r = sqrt(alpha^2 + sigma^2), and ' for d/dt, a network may predict

    x0        x
    eps       eps
    score     grad_z log q(z | x) = -eps / sigma
    v         (alpha eps - sigma x) / r            Salimans & Ho 2022, section 4 and appendix D
    velocity  u = alpha' x + sigma' eps            Lipman et al. 2023, eq. 15

For the squared error the best prediction is each one's posterior mean, and all are affine in one another
given z: knowing one is knowing all. Samplers and likelihoods see only the denoiser E[x | z].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.paths.gaussian import Gaussian
from pofx.paths.schedule import Point, Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]
"""denoise(z [N, *E], t [] or [N]) -> E[x | z_t = z] [N, *E]"""

PREDICTIONS = ("eps", "x0", "v", "velocity", "score")


def target(kind: str, x: Tensor, eps: Tensor, p: Point) -> Tensor:
    """What the network is to predict for data x and noise eps [N, *E] at path points p [N, 1, ...].

    Example:
        >>> import torch
        >>> from pofx.paths.schedule import Linear
        >>> x, eps = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
        >>> p = point(Linear(), torch.tensor([0.5]), x)
        >>> target("velocity", x, eps, p)  # eps - x on the straight line
        tensor([[-3.]])
    """
    if kind == "x0":
        return x
    if kind == "eps":
        return eps
    if kind == "score":
        return -eps / p.sigma
    if kind == "v":
        return (p.alpha * eps - p.sigma * x) / p.scale
    if kind == "velocity":
        return p.d_alpha * x + p.d_sigma * eps
    raise ValueError(f"{kind!r} is none of {PREDICTIONS}")


def wiener(kind: str, z: Tensor, p: Point, gaussian: Gaussian) -> Tensor:
    """What to predict at z if the data were Gaussian: the linear part of every prediction."""
    eps = gaussian.eps(z, p)
    return target(kind, (z - p.sigma * eps) / p.alpha, eps, p)


def to_x0(kind: str, out: Tensor, z: Tensor, p: Point) -> Tensor:
    """The datum that a prediction ``out`` at z stands for.

    Example:
        >>> import torch
        >>> from pofx.paths.schedule import Cosine
        >>> x, eps = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
        >>> p = point(Cosine(), torch.tensor([0.5]), x)
        >>> z = p.alpha * x + p.sigma * eps
        >>> [round(to_x0(kind, target(kind, x, eps, p), z, p).item(), 4) for kind in PREDICTIONS]
        [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    if kind == "x0":
        return out
    if kind == "eps":
        return (z - p.sigma * out) / p.alpha
    if kind == "score":
        return (z + p.sigma**2 * out) / p.alpha
    if kind == "v":
        return (p.alpha * z / p.scale - p.sigma * out) / p.scale
    if kind == "velocity":
        return (p.sigma * out - p.d_sigma * z) / (p.d_alpha * p.sigma - p.alpha * p.d_sigma)
    raise ValueError(f"{kind!r} is none of {PREDICTIONS}")


def error_in_eps(kind: str, p: Point) -> Tensor:
    """The factor that turns an error of the prediction into an error of eps, shaped like p."""
    if kind == "x0":
        return p.alpha / p.sigma
    if kind == "eps":
        return torch.ones_like(p.alpha)
    if kind == "score":
        return p.sigma
    if kind == "v":
        return p.alpha / p.scale
    if kind == "velocity":
        return p.alpha / (p.alpha * p.d_sigma - p.d_alpha * p.sigma)
    raise ValueError(f"{kind!r} is none of {PREDICTIONS}")


def eps_of(x: Tensor, z: Tensor, p: Point) -> Tensor:
    """The noise that leads from x to z."""
    return (z - p.alpha * x) / p.sigma


def point(schedule: Schedule, t: Tensor, like: Tensor) -> Point:
    """The path at times t [] or [N], to be multiplied with ``like`` [N, *E] and of its dtype."""
    t = t.to(like.device, torch.float64).reshape(-1, *[1] * (like.ndim - 1))
    return Point(*(v.to(like.dtype) for v in schedule(t)))


@dataclass(frozen=True)
class Denoiser:
    """A network that predicts ``kind`` on a path, as a denoiser.

    The network is called as ``net(z / r, log_snr)`` with z / r [N, *E] of unit variance where the data
    have it, and log_snr [N]. It gives what the denoiser of ``gaussian`` leaves over (for N(0, I) that is c_skip
    of Karras et al. 2022, eq. 7): a network of zeros stands for that Gaussian, whatever it predicts. It runs in
    its own precision; the conversion runs in z's, which at small noise matters: there z and x differ by
    sigma / alpha only.
    """

    net: Callable[[Tensor, Tensor], Tensor]
    schedule: Schedule
    kind: str
    gaussian: Gaussian
    dtype: torch.dtype = torch.float32

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """E[x | z_t = z] [N, *E] for z [N, *E], t [] or [N]"""
        p = point(self.schedule, t, z)
        return to_x0(self.kind, self.prediction(z, p), z, p)

    def prediction(self, z: Tensor, p: Point) -> Tensor:
        """What the network predicts at z [N, *E], the Gaussian's part included."""
        log_snr = 2 * (p.alpha.log() - p.sigma.log()).flatten().expand(len(z))
        left_over = self.net((z / p.scale).to(self.dtype), log_snr.to(self.dtype))
        return wiener(self.kind, z, p, self.gaussian) + left_over.to(z.dtype)
