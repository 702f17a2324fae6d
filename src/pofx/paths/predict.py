"""What the network predicts, and how every prediction becomes one denoiser.

With z = alpha x + sigma eps, r = sqrt(alpha^2 + sigma^2), and ' for d/dt, a network may predict

    x0        x
    eps       eps
    score     grad_z log q(z | x) = -eps / sigma
    v         (alpha eps - sigma x) / r            Salimans & Ho 2022, section 4 and appendix D; of opposite sign, and
                                                   where alpha = 1, what Karras et al. 2022 (eq. 7) predict
    velocity  u = alpha' x + sigma' eps            Lipman et al. 2023, eq. 15

Each is a mixture a x + b eps. For the squared error the best prediction is its posterior mean, and given z all are
affine in one another: knowing one is knowing all. Samplers and likelihoods see only the denoiser E[x | z].
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


@dataclass(frozen=True)
class Prediction:
    """One kind of prediction. x, eps, z [N, *E]; path points p [N, 1, ...].

    Args:
        mixture: a and b of the prediction a x + b eps at p.

    Example:
        >>> import torch
        >>> from pofx.paths.schedule import Linear
        >>> x, eps = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
        >>> p = point(Linear(), torch.tensor([0.5]), x)
        >>> PREDICTIONS["velocity"].target(x, eps, p)  # eps - x on the straight line
        tensor([[-3.]])
        >>> z = p.alpha * x + p.sigma * eps
        >>> [kind.to_denoised(kind.target(x, eps, p), z, p).item() for kind in PREDICTIONS.values()]
        [2.0, 2.0, 2.0, 2.0, 2.0]
    """

    mixture: Callable[[Point], tuple[Tensor | float, Tensor | float]]

    def target(self, x: Tensor, eps: Tensor, p: Point) -> Tensor:
        """What the network is to predict for data x and noise eps."""
        a, b = self.mixture(p)
        return a * x + b * eps

    def to_denoised(self, output: Tensor, z: Tensor, p: Point) -> Tensor:
        """The datum that a prediction at z stands for."""
        a, b = self.mixture(p)
        return (p.sigma * output - b * z) / (a * p.sigma - b * p.alpha)

    def weight(self, p: Point) -> Tensor:
        """Its natural weighting, shaped like p: the squared error of eps counts so much in its own squared error."""
        a, b = self.mixture(p)
        return (b - a * p.sigma / p.alpha).square()


PREDICTIONS = {
    "eps": Prediction(lambda p: (0.0, 1.0)),
    "x0": Prediction(lambda p: (1.0, 0.0)),
    "v": Prediction(lambda p: (-p.sigma / p.scale, p.alpha / p.scale)),
    "velocity": Prediction(lambda p: (p.d_alpha, p.d_sigma)),
    "score": Prediction(lambda p: (0.0, -1 / p.sigma)),
}


def eps_of(x: Tensor, z: Tensor, p: Point) -> Tensor:
    """The noise that leads from x to z."""
    return (z - p.alpha * x) / p.sigma


def point(schedule: Schedule, t: Tensor, like: Tensor) -> Point:
    """The path at times t [] or [N], to be multiplied with ``like`` [N, *E] and of its dtype."""
    t = t.to(like.device, torch.float64).reshape(-1, *[1] * (like.ndim - 1))
    return Point(*(v.to(like.dtype) for v in schedule(t)))


@dataclass(frozen=True)
class Denoiser:
    """A network that predicts on a path, as a denoiser.

    The network is called as ``net(z / r, log_snr)`` with z / r [N, *E] of unit variance where the data have it, and
    log_snr [N], or [1] where all rows share it. It runs in its own precision; the conversion runs in z's, which at
    small noise matters: there z and x differ by sigma / alpha only.

    Args:
        start: the network gives what the denoiser of this Gaussian leaves over (of N(0, I) that is c_skip of Karras et
            al. 2022, eq. 7): a network of zeros stands for it, whatever it predicts. None: the network gives all.
    """

    net: Callable[[Tensor, Tensor], Tensor]
    schedule: Schedule
    prediction: Prediction
    start: Gaussian | None = None
    dtype: torch.dtype = torch.float32

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """E[x | z_t = z] [N, *E] for z [N, *E], t [] or [N]"""
        p = point(self.schedule, t, z)
        return self.prediction.to_denoised(self.output(z, p), z, p)

    def output(self, z: Tensor, p: Point) -> Tensor:
        """The prediction at z [N, *E], the start's part included."""
        log_snr = 2 * (p.alpha.log() - p.sigma.log()).flatten()
        out = self.net((z / p.scale).to(self.dtype), log_snr.to(self.dtype)).to(z.dtype)
        if self.start is None:
            return out
        eps = self.start.eps(z, p)
        return out + self.prediction.target((z - p.sigma * eps) / p.alpha, eps, p)
