"""Kernels of the E step: log-weights of all components on a block of rows, and the statistics of its residuals.

With e_j = C_j^-1 (z - mu_j) the residual of component j, a kernel gives the log-weights
log pi_j - log |C_j| - e_j'e_j / 2 + const of a block and, for posteriors r, adds up the expectations of r, r e and
r e e' (Dempster, Laird, Rubin 1977), where missing entries are marginalised (Ghahramani, Jordan 1994).

Full covariances have two kernels for rows of one pattern: linear in the features [1, z, vech(zz')], p of them,
about d^2 / 2, for 4 K p flops a row; or by the residuals themselves, for 4 K d^2 flops a row and no features to lay
out. Blocks and features stay in cache, features first.

For the rows A of C_j that belong to the observed coordinates, A' = U R (QR) gives the factor R' of the marginal
covariance and an orthonormal U. With y the residual of the observed part, E[e | y] = U y and Cov[e | y] = I - U U'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pofx.families.mixture.whitening import LOG_2PI, Components, Local, Rows, Whitening, marginalise, triangular_inverse

PRECISE32 = 1e4  # largest precision in whitened coordinates that features in float32 can carry; residuals: squared
CACHE = 2**21  # numbers that a block may hold: 16 MiB of float64, measured from 2 to 64, on one thread and two

Moments = tuple[Tensor, Tensor, Tensor]
"""sum r [K], sum r e [K, d], sum r e e': [K, d, d] (full), [d, d] over all components (tied), [K, d] (else)."""


def kernel_for(components: Components, rows: Rows, whitening: Whitening) -> Kernel:
    """The cheapest kernel that loses no digits."""
    if rows.patterns is not None:
        return _Scattered(components, rows, whitening)
    local = None if whitening.pooled is None else marginalise(components, rows, whitening)
    inverse = components.deviation()[:, rows.observed].reciprocal() if local is None else local.inverse
    d, dtype = inverse.shape[-1], rows.z.dtype
    # a row costs 4 K d^2 flops and few numbers moved, against 2 K d^2 and d^2 numbers moved: measured
    stacked = components.kind == "full" and 4 * len(components.mean) < d
    if dtype == torch.float32 and d:
        precision = float(inverse.square().sum(-1).max())
        if precision > (PRECISE32**2 if stacked else PRECISE32):
            dtype = torch.float64
    if local is None:
        return _Diagonal(components, rows, whitening, inverse, dtype)
    return (_Stacked if stacked else _Tied if components.kind == "tied" else _Quadratic)(local, rows, dtype)


class Kernel:
    """Log-weights of one slice of the rows after another, and the statistics under posteriors r [K, b] of each."""

    block: int  # rows that a slice may hold
    dtype: torch.dtype

    def logits(self, piece: slice) -> Tensor:
        """[K, b]; may be overwritten by the caller."""
        raise NotImplementedError

    def add(self, r: Tensor) -> None:
        """Of the slice that ``logits`` was last called with."""
        raise NotImplementedError

    def moments(self) -> Moments:
        raise NotImplementedError


class _Linear(Kernel):
    """Log-weights that are linear in features phi [p, b], the first of which is 1."""

    def __init__(self, rows: Rows, weights: Tensor, dtype: torch.dtype) -> None:
        k, p = weights.shape
        self.rows, self.weights, self.dtype = rows, weights.to(dtype), dtype
        self.block = min(_block(p + 2 * k), max(1, rows.z.shape[1]))
        self.phi = torch.empty(p, self.block, dtype=dtype, device=weights.device)
        self.phi[0] = 1.0
        self.out = torch.empty(k, self.block, dtype=dtype, device=weights.device)
        self.sums = torch.zeros(p, k, dtype=torch.float64, device=weights.device)

    def features(self, piece: slice, phi: Tensor) -> None:
        """Fill phi [p, b] below its first row."""
        raise NotImplementedError

    def logits(self, piece: slice) -> Tensor:
        b = piece.stop - piece.start
        self.now = self.phi[:, :b]
        self.features(piece, self.now)
        return torch.mm(self.weights, self.now, out=self.out[:, :b])

    def add(self, r: Tensor) -> None:
        _accumulate(self.sums, self.now, r.T)


class _Quadratic(_Linear):
    """Full covariances by phi = [1, z, vech(zz')]; p = (d + 1)(d + 2) / 2."""

    def __init__(self, local: Local, rows: Rows, dtype: torch.dtype) -> None:
        self.local = local
        precision = local.inverse.mT @ local.inverse
        h = (precision @ local.mean[..., None]).squeeze(-1)
        self.i, self.j = torch.triu_indices(*precision.shape[1:], device=h.device)
        quadratic = precision[:, self.i, self.j] * torch.where(self.i == self.j, -0.5, -1.0)
        constant = local.constant - 0.5 * (local.mean * h).sum(1)
        super().__init__(rows, torch.cat([constant[:, None], h, quadratic], 1), dtype)

    def features(self, piece: slice, phi: Tensor) -> None:
        d = len(self.rows.z)
        z, at = phi[1 : d + 1], d + 1
        z.copy_(self.rows.z[:, piece])
        for j in range(d):
            torch.mul(z[j:], z[j], out=phi[at : at + d - j])
            at += d - j

    def moments(self) -> Moments:
        k, d = self.local.mean.shape
        second = self.sums.new_empty(k, d, d)
        second[:, self.i, self.j] = second[:, self.j, self.i] = self.sums[d + 1 :].T
        n, first, mean, inverse = self.sums[0], self.sums[1 : d + 1].T, self.local.mean, self.local.inverse
        cross, count = first[:, :, None] * mean[:, None, :], n[:, None]
        second = second - cross - cross.mT + count[:, :, None] * mean[:, :, None] * mean[:, None, :]
        first = (inverse @ (first - count * mean)[..., None]).squeeze(-1)
        return _unfold(self.local, n, first, inverse @ second @ inverse.mT)


class _Stacked(Kernel):
    """Full covariances by stacking components: y~ = [C^-1 (z - mu); 1] of all of them, then (r y~) y~'."""

    def __init__(self, local: Local, rows: Rows, dtype: torch.dtype) -> None:
        k, d = local.mean.shape
        self.local, self.rows, self.dtype = local, rows, dtype
        affine = local.inverse.new_zeros(k, d + 1, d + 1)
        affine[:, :d, :d], affine[:, d, d] = local.inverse, 1.0
        affine[:, :d, d:] = -local.inverse @ local.mean[..., None]
        self.affine = affine.flatten(0, 1).to(dtype)
        self.constant = (local.constant[:, None] + 0.5).to(dtype)  # 0.5: the 1 of y~ is squared too
        self.block = max(_block(2 * k * (d + 1)), 2 * d)
        self.sums = torch.zeros_like(affine)
        self._allocate(self.block)

    def _allocate(self, b: int) -> None:
        k, d = self.local.mean.shape
        self.z = self.affine.new_ones(d + 1, b)
        self.y, self.scratch = self.affine.new_empty(k, d + 1, b), self.affine.new_empty(k, d + 1, b)

    def logits(self, piece: slice) -> Tensor:
        b = piece.stop - piece.start
        if b != self.z.shape[1]:
            self._allocate(b)
        self.z[:-1] = self.rows.z[:, piece]
        torch.mm(self.affine, self.z, out=self.y.view(-1, b))
        return torch.mul(self.y, self.y, out=self.scratch).sum(1).mul_(-0.5).add_(self.constant)

    def add(self, r: Tensor) -> None:
        self.sums += torch.mul(r[:, None], self.y, out=self.scratch) @ self.y.mT

    def moments(self) -> Moments:
        d = self.local.mean.shape[1]
        return _unfold(self.local, self.sums[:, d, d], self.sums[:, :d, d], self.sums[:, :d, :d])


def _unfold(local: Local, n: Tensor, first: Tensor, second: Tensor) -> Moments:
    """Moments of the residuals y [K], [K, o], [K, o, o] (tied: [o, o]) -> those of the whole ones e: U y, and I - U U'
    besides."""
    if local.span is None:
        return n, first, second
    u = local.span
    mass = n.sum() if u.ndim == 2 else n[:, None, None]
    return n, (u @ first[..., None]).squeeze(-1), u @ second @ u.mT + mass * (_eye(u) - u @ u.mT)


class _Tied(_Linear):
    """One covariance: phi = [1, y, y'y] with y = C^-1 z, so that only C^-1 z and sum y y' cost d^2 a row."""

    def __init__(self, local: Local, rows: Rows, dtype: torch.dtype) -> None:
        self.local, self.centre = local, local.mean @ local.inverse.mT
        constant = local.constant - 0.5 * self.centre.square().sum(1)
        half = torch.full_like(constant, -0.5)
        super().__init__(rows, torch.cat([constant[:, None], self.centre, half[:, None]], 1), dtype)
        self.inverse = local.inverse.to(dtype)
        self.gram = torch.zeros_like(local.inverse)

    def features(self, piece: slice, phi: Tensor) -> None:
        y = torch.mm(self.inverse, self.rows.z[:, piece].to(self.dtype), out=phi[1:-1])
        torch.sum(y.square(), 0, out=phi[-1])

    def add(self, r: Tensor) -> None:
        super().add(r)
        y = self.now[1:-1]
        self.gram += (y * r.sum(0)) @ y.T

    def moments(self) -> Moments:
        n, first = self.sums[0], self.sums[1:-1].T
        cross = first.T @ self.centre
        second = self.gram - cross - cross.T + (self.centre * n[:, None]).T @ self.centre
        return _unfold(self.local, n, first - n[:, None] * self.centre, second)


class _Diagonal(_Linear):
    """Diagonal covariances by phi = [1, z, z^2], or by [1, m, m z, m z^2] with m the mask: patterns do not matter."""

    def __init__(
        self, components: Components, rows: Rows, whitening: Whitening, inverse: Tensor, dtype: torch.dtype
    ) -> None:
        self.mean, self.inverse, precision = components.mean[:, rows.observed], inverse, inverse.square()
        h = precision * self.mean
        each = (inverse / whitening.scale[rows.observed]).log() - 0.5 * (LOG_2PI + self.mean * h)
        constant = components.log_weight[:, None]
        constant = constant + each.sum(1, True) if rows.mask is None else torch.cat([constant, each], 1)
        super().__init__(rows, torch.cat([constant, h, -0.5 * precision], 1), dtype)

    def features(self, piece: slice, phi: Tensor) -> None:
        d, p = len(self.rows.z), len(phi)
        if self.rows.mask is not None:
            phi[1 : d + 1] = self.rows.mask[:, piece]
        z = phi[p - 2 * d : p - d].copy_(self.rows.z[:, piece])
        torch.mul(z, z, out=phi[p - d :])

    def moments(self) -> Moments:
        d, mean, masked = self.mean.shape[1], self.mean, self.rows.mask is not None
        n, *mask, first, second = self.sums.T.split([1, *[d] * (3 if masked else 2)], 1)
        seen = mask[0] if mask else n
        second = second - 2 * mean * first + seen * mean.square()
        missing = n - seen  # of variance 1 each
        return n.squeeze(1), (first - seen * mean) * self.inverse, second * self.inverse.square() + missing


class _Scattered(Kernel):
    """Full and tied covariances on many patterns of missing entries with few rows each: batches of small matrices.

    The covariance of v, its missing rows and columns replaced by the identity's, has a Cholesky factor L whose
    residuals y = L^-1 m (v - mu) are those of the marginal, and 0 where missing; U' = L^-1 m C, m the mask.
    """

    dtype = torch.float64

    def __init__(self, components: Components, rows: Rows, whitening: Whitening) -> None:
        assert whitening.pooled is not None
        self.rows, self.tied, self.log_weight = rows, components.kind == "tied", components.log_weight
        root = whitening.pooled @ components.factor
        self.root = root[None] if self.tied else root  # [K or 1, d, d]
        self.covariance = self.root @ self.root.mT
        self.mean = components.mean @ whitening.pooled.T
        self.each = -0.5 * LOG_2PI - whitening.scale.log()
        k, d = self.mean.shape
        self.block = max(16, min(1024, 2 * CACHE // (k * max(d, 1) ** 2)))
        self.n, self.first = self.mean.new_zeros(k), self.mean.new_zeros(k, d)
        self.second = torch.zeros_like(root)

    def logits(self, piece: slice) -> Tensor:
        rows = self.rows
        assert rows.patterns is not None
        assert rows.pattern is not None
        at = rows.pattern[piece]
        self.at, mask = at - at[0], rows.patterns[at[0] : at[-1] + 1]  # [P, d]
        m = mask[:, None, :, None]
        factor = torch.linalg.cholesky(m * self.covariance * m.mT + torch.diag_embed(1 - mask)[:, None])
        inverse = triangular_inverse(factor)  # [P, K or 1, d, d]
        self.spans = inverse @ (m * self.root)
        delta = (rows.z[:, piece].T[:, None] - self.mean) * mask[self.at][:, None]  # [b, K, d]
        self.y = self._rowwise(inverse.mT, delta)
        log_det = inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1) + (mask @ self.each)[:, None]  # [P, K or 1]
        return (self.log_weight + log_det[self.at] - 0.5 * self.y.square().sum(-1)).T.contiguous()

    def _rowwise(self, matrices: Tensor, vectors: Tensor) -> Tensor:
        """vectors [b, K, d] times the matrices [P, K or 1, d, d] of their rows' patterns."""
        if self.tied:
            return vectors @ matrices[self.at, 0]
        return (vectors[:, :, None] @ matrices[self.at]).squeeze(2)

    def add(self, r: Tensor) -> None:
        e, w = self._rowwise(self.spans, self.y), r.T  # [b, K, d], [b, K]
        count = w.new_zeros(len(self.spans), w.shape[1]).index_add_(0, self.at, w)  # [P, K]
        self.n += w.sum(0)
        self.first += (w[..., None] * e).sum(0)
        uu = self.spans.mT @ self.spans  # [P, K or 1, d, d]
        if self.tied:
            flat = e.flatten(0, 1)
            self.second += (w.reshape(-1, 1) * flat).T @ flat - (count.sum(1)[:, None, None] * uu[:, 0]).sum(0)
        else:
            self.second += torch.einsum("bk,bki,bkj->kij", w, e, e) - (count[..., None, None] * uu).sum(0)

    def moments(self) -> Moments:
        n = self.n.sum() if self.tied else self.n[:, None, None]
        return self.n, self.first, self.second + n * _eye(self.second)


def _accumulate(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums += a b, in float64 whatever a and b are."""
    if a.dtype == sums.dtype:
        sums.addmm_(a, b)
    else:
        sums += (b.T @ a.T).T  # the order that float32 is fast in


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-2], dtype=like.dtype, device=like.device)


def _block(numbers: int) -> int:
    """Rows of a block, each holding so many numbers."""
    return max(256, CACHE // max(numbers, 1) // 64 * 64)
