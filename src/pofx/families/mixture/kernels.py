"""Kernels of the E step: log-weights of all components on a block of rows, and the statistics of its residuals.

With y_j = C_j^-1 (z - mu_j) the residual of component j, a kernel returns the log-weights
log pi_j - log |C_j| - y_j'y_j / 2 + const and, for posteriors r, the sums of r, r y and r y y'. Full covariances
have two: linear in the features [1, z, vech(zz')], 4 K p flops a row with p about d^2 / 2, or by the residuals
themselves, 4 K d^2 flops a row and no features to lay out. Blocks and features stay in cache, features first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pofx.families.mixture.frame import Components, Local

PRECISE32 = 1e4  # largest precision in whitened coordinates that features in float32 can carry
CACHE = 2**18  # numbers that a block may hold: 2 MiB of float64


class Kernel:
    """``logits(z [o, b])`` -> [K, b], then ``add(r [K, b])`` for the same block; ``moments()`` at the end."""

    block: int

    def logits(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def add(self, r: Tensor) -> None:
        raise NotImplementedError

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """sum r [K], sum r y [K, o], sum r y y' ([K, o, o] full; [o, o] over all components, tied; [K, o])."""
        raise NotImplementedError


class _Linear(Kernel):
    """Log-weights that are linear in features phi [p, b], the first of which is 1."""

    def __init__(self, local: Local, weights: Tensor, dtype: torch.dtype, values: int) -> None:
        k, p = weights.shape
        self.local, self.weights, self.dtype = local, weights.to(dtype), dtype
        self.block = _block(p + 2 * k + values)
        self.phi = torch.ones(p, self.block, dtype=dtype, device=weights.device)
        self.out = torch.empty(k, self.block, dtype=dtype, device=weights.device)
        self.sums = torch.zeros(p, k, dtype=torch.float64, device=weights.device)

    def features(self, z: Tensor, phi: Tensor) -> None:
        """Fill phi [p, b] below its first row."""
        raise NotImplementedError

    def logits(self, z: Tensor) -> Tensor:
        self.now = self.phi[:, : z.shape[1]]
        self.features(z, self.now)
        return torch.mm(self.weights, self.now, out=self.out[:, : z.shape[1]])

    def add(self, r: Tensor) -> None:
        # a product with its right side laid out by rows runs at up to four times the speed of phi r'
        _accumulate(self.sums, self.now, r.T.contiguous())


class _Quadratic(_Linear):
    """Full covariances by phi = [1, z, vech(zz')]; p = (d + 1)(d + 2) / 2."""

    def __init__(self, local: Local, dtype: torch.dtype, values: int) -> None:
        precision = local.inverse.mT @ local.inverse
        h = (precision @ local.mean[..., None]).squeeze(-1)
        self.i, self.j = torch.triu_indices(*precision.shape[1:], device=h.device)
        quadratic = precision[:, self.i, self.j] * torch.where(self.i == self.j, -0.5, -1.0)
        constant = local.constant - 0.5 * (local.mean * h).sum(1)
        super().__init__(local, torch.cat([constant[:, None], h, quadratic], 1), dtype, values)

    def features(self, z: Tensor, phi: Tensor) -> None:
        d = len(z)
        phi[1 : d + 1] = z
        at, z = d + 1, phi[1 : d + 1]
        for j in range(d):
            torch.mul(z[j:], z[j], out=phi[at : at + d - j])
            at += d - j

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        k, d = self.local.mean.shape
        second = self.sums.new_empty(k, d, d)
        second[:, self.i, self.j] = second[:, self.j, self.i] = self.sums[d + 1 :].T
        return _residual_moments(self.local, self.sums[0], self.sums[1 : d + 1].T, second)


class _Diagonal(_Linear):
    """Diagonal covariances by phi = [1, z, z^2]."""

    def __init__(self, local: Local, dtype: torch.dtype, values: int) -> None:
        precision = local.inverse.square()
        h = precision * local.mean
        constant = local.constant - 0.5 * (local.mean * h).sum(1)
        super().__init__(local, torch.cat([constant[:, None], h, -0.5 * precision], 1), dtype, values)

    def features(self, z: Tensor, phi: Tensor) -> None:
        d = len(z)
        phi[1 : d + 1] = z
        torch.mul(phi[1 : d + 1], phi[1 : d + 1], out=phi[d + 1 :])

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        mean, inverse = self.local.mean, self.local.inverse
        n, first, second = self.sums.T.split([1, mean.shape[1], mean.shape[1]], 1)
        second = second - 2 * mean * first + n * mean.square()
        return n.squeeze(1), (first - n * mean) * inverse, second * inverse.square()


class _Tied(_Linear):
    """One covariance: phi = [1, y, y'y] with y = C^-1 z, so that only C^-1 z and sum y y' cost d^2 a row."""

    def __init__(self, local: Local, dtype: torch.dtype, values: int) -> None:
        self.centre = local.mean @ local.inverse.mT
        constant = local.constant - 0.5 * self.centre.square().sum(1)
        half = torch.full_like(constant, -0.5)
        super().__init__(local, torch.cat([constant[:, None], self.centre, half[:, None]], 1), dtype, values)
        self.inverse = local.inverse.to(dtype)
        self.gram = torch.zeros_like(local.inverse)

    def features(self, z: Tensor, phi: Tensor) -> None:
        y = torch.mm(self.inverse, z.to(self.dtype), out=phi[1:-1])
        torch.sum(y.square(), 0, out=phi[-1])

    def add(self, r: Tensor) -> None:
        super().add(r)
        y = self.now[1:-1]
        self.gram += (y * r.sum(0)) @ y.T

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        n, first = self.sums[0], self.sums[1:-1].T
        cross = first.T @ self.centre
        second = self.gram - cross - cross.T + (self.centre * n[:, None]).T @ self.centre
        return n, first - n[:, None] * self.centre, second


class _Stacked(Kernel):
    """Full covariances by stacking components: y = C^-1 z - C^-1 mu of all of them, then (r z~) z~', z~ = [z; 1]."""

    def __init__(self, local: Local, dtype: torch.dtype, values: int) -> None:
        k, d = local.mean.shape
        self.local = local
        shift = local.inverse @ local.mean[..., None]
        self.affine = torch.cat([local.inverse, -shift], 2).reshape(k * d, d + 1).to(dtype)
        self.constant = local.constant[:, None].to(dtype)
        self.block = _block(2 * k * (d + 1) + values, 2 * d)
        self.sums = local.mean.new_zeros(k * (d + 1), d + 1)
        self._allocate(self.block)

    def _allocate(self, b: int) -> None:
        k, d = self.local.mean.shape
        self.z = self.affine.new_ones(d + 1, b)
        self.y, self.weighted = self.affine.new_empty(k, d, b), self.affine.new_empty(k, d + 1, b)

    def logits(self, z: Tensor) -> Tensor:
        if z.shape[1] != self.z.shape[1]:
            self._allocate(z.shape[1])
        self.z[:-1] = z
        torch.mm(self.affine, self.z, out=self.y.view(-1, z.shape[1]))
        return self.y.square_().sum(1).mul_(-0.5).add_(self.constant)

    def add(self, r: Tensor) -> None:
        torch.mul(r[:, None], self.z, out=self.weighted)
        _accumulate(self.sums, self.weighted.flatten(0, 1), self.z.T.contiguous())

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        sums = self.sums.view(len(self.local.mean), *self.z.shape[:1], -1)
        return _residual_moments(self.local, sums[:, -1, -1], sums[:, -1, :-1], sums[:, :-1, :-1])


def _residual_moments(local: Local, n: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of z [K], [K, d], [K, d, d] -> those of the residuals y = inverse (z - mean)."""
    mean, inverse, count = local.mean, local.inverse, n[:, None]
    cross = first[:, :, None] * mean[:, None, :]
    second = second - cross - cross.mT + count[:, :, None] * mean[:, :, None] * mean[:, None, :]
    first = (inverse @ (first - count * mean)[..., None]).squeeze(-1)
    return n, first, inverse @ second @ inverse.mT


def _accumulate(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums += a b, in float64 whatever a and b are."""
    if a.dtype == sums.dtype:
        sums.addmm_(a, b)
    else:
        sums += a @ b


def kernel_for(components: Components, local: Local, dtype: torch.dtype) -> Kernel:
    """The cheapest kernel that loses no digits."""
    k, d = local.mean.shape
    values = components.table.shape[1]
    if dtype == torch.float32 and d and float(local.inverse.square().sum(-1).max()) > PRECISE32:
        dtype = torch.float64
    if components.kind == "tied":
        return _Tied(local, dtype, values)
    if components.kind in ("diag", "spherical"):
        return _Diagonal(local, dtype, values)
    # a row costs 4 K d^2 flops and few numbers moved, against 2 K d^2 and d^2 numbers moved: measured
    return _Stacked(local, dtype, values) if 4 * k < d else _Quadratic(local, dtype, values)


def _block(numbers: int, least: int = 0) -> int:
    """Rows of a block, each holding so many numbers."""
    return max(least, 256, min(8192, CACHE // max(numbers, 1) // 64 * 64))
