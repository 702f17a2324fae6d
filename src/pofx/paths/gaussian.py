"""The Gaussian that a path's network starts from: its denoiser, densities and variational bound in closed form.

For data N(m, C), C = V diag(lambda) V' with V orthonormal, noised to z = alpha x + sigma eps, everything falls apart
into the coordinates w = V'(z - alpha m), which are independent with variances v = alpha^2 lambda + sigma^2:

    E[eps | z] = V (sigma / v) w,    E[x | z] = (z - sigma E[eps | z]) / alpha    (Wiener's filter)

Where there is much noise, the denoiser of any data is nearly that of its Gaussian (Wang & Vastola 2024), so a
network need only learn what is left over.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pofx.paths.schedule import Point

LOG_2PI = math.log(2 * math.pi)
MOST_ROTATED = 1024  # dimensions up to which all covariances are kept: as many squared numbers
LEAST_VARIANCE = 1e-6


class Gaussian(nn.Module):
    """N(m, C) over y [N, *E], E of ``shape`` or flat; N(0, I) until it is fitted.

    V is any rotation up to ``MOST_ROTATED`` dimensions. For larger images [C, H, W] it is a rotation of the channels
    and cosines along both sides, in which natural images are nearly uncorrelated (Ahmed, Natarajan & Rao 1974);
    else there is none. ``factors`` are the matrices whose Kronecker product V is, over ``sizes``.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        dim = math.prod(shape)
        factors: list[Tensor] = []
        if dim <= MOST_ROTATED:
            shape, factors = (dim,), [torch.eye(dim, dtype=torch.float64)]
        elif len(shape) == 3:
            factors = [torch.eye(shape[0], dtype=torch.float64), cosines(shape[1]), cosines(shape[2])]
        self.sizes = shape
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(dim, dtype=torch.float64))
        for i, f in enumerate(factors):
            self.register_buffer(f"factor{i}", f)
        self.count = len(factors)

    @property
    def factors(self) -> list[Tensor]:
        return [getattr(self, f"factor{i}") for i in range(self.count)]

    def fit(self, y: Tensor, weight: Tensor | None = None) -> None:
        """Moments of rows y [N, *E]. Covariances are shrunk by D / (N + D): few rows do not determine them."""
        y = y.flatten(1).double()
        n = len(y)
        w = (torch.ones(n) if weight is None else weight).to(y)
        w = w / w.sum()
        self.mean.copy_(w @ y)
        y = (y - self.mean) * w.sqrt()[:, None]
        if self.count:  # the first factor is free: the axes along which its size is uncorrelated
            columns = y.view(n, self.sizes[0], -1).movedim(1, 2).reshape(-1, self.sizes[0])
            covariance, d = columns.T @ columns, self.sizes[0]
            diagonal = covariance.diagonal().diag()
            variance, basis = torch.linalg.eigh(covariance + d / (n + d) * (diagonal - covariance))
            self.factors[0].copy_(basis)
        if self.count != 1:
            variance = self.along(y).square().sum(0)
        self.variance.copy_(variance.clamp_min(LEAST_VARIANCE))

    def along(self, y: Tensor) -> Tensor:
        """Coordinates [N, D] of displacements y [N, *E] along the axes."""
        w = y.reshape(len(y), *self.sizes)
        for i, f in enumerate(self.factors, 1):
            w = (w.movedim(i, -1) @ f.to(w)).movedim(-1, i)
        return w.flatten(1)

    def across(self, w: Tensor, like: Tensor) -> Tensor:
        """The displacement shaped ``like`` [N, *E] that has coordinates w [N, D]."""
        y = w.reshape(len(w), *self.sizes)
        for i, f in enumerate(self.factors, 1):
            y = (y.movedim(i, -1) @ f.to(y).T).movedim(-1, i)
        return y.reshape(like.shape)

    def centred(self, z: Tensor, alpha: Tensor | float) -> Tensor:
        """Coordinates [N, D] of z - alpha m."""
        return self.along(z - alpha * self.mean.to(z).view(z.shape[1:]))

    def eps(self, z: Tensor, p: Point) -> Tensor:
        """E[eps | z] [N, *E] for z [N, *E] at path points p [N, 1, ...]"""
        alpha, sigma = p.alpha.flatten(1), p.sigma.flatten(1)
        v = alpha**2 * self.variance.to(z) + sigma**2
        return self.across(sigma / v * self.centred(z, p.alpha), z)

    def denoise(self, z: Tensor, p: Point) -> Tensor:
        """E[x | z] [N, *E]"""
        return (z - p.sigma * self.eps(z, p)) / p.alpha

    def gain(self, u: Tensor, p: Point) -> Tensor:
        """The Jacobian of ``denoise`` in z times u [N, *E]: alpha / sigma^2 times the covariance of x given z."""
        alpha, variance = p.alpha.flatten(1), self.variance.to(u)
        return self.across(alpha * variance / (alpha**2 * variance + p.sigma.flatten(1) ** 2) * self.along(u), u)

    def log_prob(self, z: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """log-density [N] of z = alpha x + sigma eps; of x itself as it stands."""
        v = alpha**2 * self.variance.to(z) + sigma**2
        return -(LOG_2PI + v.log() + self.centred(z, alpha).square() / v).sum(1) / 2

    def noisy(self, e: Tensor, alpha: float, sigma: float) -> Tensor:
        """Standard normal e [N, *E] -> a draw of z = alpha x + sigma eps."""
        v = alpha**2 * self.variance.to(e) + sigma**2
        return alpha * self.mean.to(e).view(e.shape[1:]) + self.across(v.sqrt() * e.flatten(1), e)

    def posterior(self, z: Tensor, e: Tensor, p: Point) -> Tensor:
        """Standard normal e [N, *E] -> a draw of x given z: at E[x | z], with variance lambda sigma^2 / v."""
        alpha, sigma, variance = p.alpha.flatten(1), p.sigma.flatten(1), self.variance.to(z)
        width = (variance / (alpha**2 * variance + sigma**2)).sqrt() * sigma
        return self.denoise(z, p) + self.across(width * e.flatten(1), e)

    # -- the terms of the variational bound of this Gaussian, s = sigmoid(log SNR) ------------------------------

    def ends(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """-KL(q(z_1 | x) | p(z_1)) and E log p(x | z_0) [2, N] for the log SNR [2] of z_1 and z_0."""
        square, lam = self.centred(x, 1.0).square(), self.variance.to(x)
        (s1, s0), (log_n1, log_n0) = torch.sigmoid(log_snr), -softplus(log_snr)  # log_n = log(1 - s)
        n1, n0 = log_n1.exp(), log_n0.exp()
        v1, v0 = s1 * lam + n1, s0 * lam + n0
        prior = (n1 + s1 * square) / v1 - 1 + v1.log() - log_n1
        last = LOG_2PI + lam.log() + log_n0 - v0.log() + n0 * square / (lam * v0) + s0 * lam / v0
        return -torch.stack([prior, last]).sum(2) / 2

    def error(self, x: Tensor, log_snr: Tensor, drop: Tensor) -> Tensor:
        """Sum over noise levels [T] of drop / 2 times E|x - E[x | z]|^2, [N]"""
        s, n = torch.sigmoid(log_snr)[:, None], torch.sigmoid(-log_snr)[:, None]
        v = s * self.variance.to(x) + n
        of_square = (drop[:, None] * (n / v) ** 2).sum(0)
        constant = (drop[:, None] * s * n * (self.variance.to(x) / v) ** 2).sum()
        return (self.centred(x, 1.0).square() @ of_square + constant) / 2


def cosines(n: int) -> Tensor:
    """The orthonormal discrete cosine transform (type II), one frequency a column [n, n]."""
    place, frequency = torch.arange(n, dtype=torch.float64)[:, None] + 0.5, torch.arange(n, dtype=torch.float64)
    scale = (2 - (frequency == 0).double()).sqrt() / math.sqrt(n)
    return scale * (math.pi / n * place * frequency).cos()
