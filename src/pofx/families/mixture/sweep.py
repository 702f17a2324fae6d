"""Sweeps over rows: the E step, densities, posteriors, gradients, and conditioning.

A component is N(z; mu_j, C_j C_j') times a categorical for each discrete column. The E step returns, for
residuals e = C_j^-1 (z - mu_j), the expectations of N_j = sum r, sum r e and sum r e e' (Dempster, Laird, Rubin
1977): the M step then multiplies C_j by a matrix near I.

Missing coordinates are marginalised by pattern (Ghahramani, Jordan 1994). For the rows A of C_j that belong to
observed coordinates, A' = U R (QR) gives the factor R' of the marginal covariance and an orthonormal U, and
with y the residual of the observed part, E[e | y] = U y and Cov[e | y] = I - U U'. The same identity conditions
a sample: e + U (y - U'e).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pofx.families.mixture.frame import Components, Covariance, Frame, Local, Rows, localise
from pofx.families.mixture.kernels import Kernel, kernel_for

CLAMP = -80.0  # on log-weights relative to the largest: e^-80 is below rounding, denormals cost 200 times as much


class _Values:
    """One-hot codes of a block, [V, b]."""

    def __init__(self, table: Tensor, kernel: Kernel, dtype: torch.dtype) -> None:
        self.table = table.to(dtype)
        self.hot = torch.zeros(table.shape[1], kernel.block, dtype=dtype, device=table.device)

    def of(self, codes: Tensor) -> Tensor:
        hot = self.hot[:, : len(codes)]
        return hot.zero_().scatter_(0, codes.T, 1.0)


def _posteriors(
    rows: Rows, kernel: Kernel, table: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor | None]]:
    """Per block: its place, unnormalised posteriors [K, b] and their sums [b], log-densities [b], one-hot codes."""
    values: _Values | None = None
    for i in range(0, rows.z.shape[1], kernel.block):
        piece = slice(i, min(i + kernel.block, rows.z.shape[1]))
        weights, hot = kernel.logits(rows.z[:, piece]), None
        if rows.codes.shape[1]:
            values = values or _Values(table, kernel, weights.dtype)
            hot = values.of(rows.codes[piece])
            weights.addmm_(values.table, hot)
        top = weights.amax(0)
        weights.sub_(top).clamp_(min=CLAMP).exp_()
        total = weights.sum(0)
        yield piece, weights, total, top.add_(total.log()), hot


def log_density(components: Components, rows: list[Rows], frame: Frame) -> Tensor:
    """log p of the observed entries of every row [N], raw units, float64."""
    out = components.mean.new_empty(sum(r.z.shape[1] for r in rows))
    for part in rows:
        kernel = kernel_for(components, localise(components, part, frame), part.z.dtype)
        log_p = out if part.index is None else out.new_empty(len(part.index))
        for piece, _, _, block, _ in _posteriors(part, kernel, components.table):
            log_p[piece] = block
        if part.index is not None:
            out[part.index] = log_p
    return out


def posterior(components: Components, rows: list[Rows], frame: Frame) -> Tensor:
    """p(component | observed entries) [N, K] float64."""
    out = components.mean.new_empty(sum(r.z.shape[1] for r in rows), len(components.mean))
    for part in rows:
        kernel = kernel_for(components, localise(components, part, frame), part.z.dtype)
        for piece, weights, total, _, _ in _posteriors(part, kernel, components.table):
            out[piece if part.index is None else part.index[piece]] = (weights / total).T.to(out.dtype)
    return out


@dataclass(frozen=True)
class Stats:
    """Expected sufficient statistics; those of all processes add up."""

    total: Tensor  # [3]: log-likelihood, weight, rows
    n: Tensor  # [K]
    first: Tensor  # [K, d], of residuals e = C_j^-1 (z - mu_j)
    second: Tensor  # shaped as the squared factor: [K, d, d], [d, d], [K, d], [K]
    counts: Tensor  # [K, V]

    def summed(self, over: Callable[[Tensor], Tensor]) -> Stats:
        parts = list(vars(self).values())
        flat = over(torch.cat([p.flatten() for p in parts])).split([p.numel() for p in parts])
        return Stats(*(f.view_as(p) for f, p in zip(flat, parts, strict=True)))


def expect(components: Components, rows: list[Rows], frame: Frame) -> Stats:
    """The E step over all ``rows``."""
    like = components.mean
    k, d = like.shape
    shape = {"full": (k, d, d), "tied": (d, d)}.get(components.kind, (k, d))
    total, n, first, second = like.new_zeros(3), like.new_zeros(k), like.new_zeros(k, d), like.new_zeros(shape)
    counts = torch.zeros_like(components.table)
    for part in rows:
        local = localise(components, part, frame)
        kernel = kernel_for(components, local, part.z.dtype)
        for piece, r, sums, log_p, hot in _posteriors(part, kernel, components.table):
            if part.weight is None:
                total[0] += log_p.sum(dtype=torch.float64)
                r.div_(sums)
            else:
                w = part.weight[piece]
                total[0] += (w * log_p).sum(dtype=torch.float64)
                total[1] += w.sum(dtype=torch.float64)
                r.mul_(w / sums)
            if hot is not None:
                counts += r @ hot.T
            kernel.add(r)
        total[2] += part.z.shape[1]
        moments = _lift(components.kind, part, local, d, *kernel.moments())
        for held, new in zip((n, first, second), moments, strict=True):
            held += new
    if rows[0].weight is None:
        total[1] = total[2]
    if components.kind == "spherical":
        second = second.sum(1)
    return Stats(total, n, first, second, counts)


def gradient(components: Components, rows: list[Rows], frame: Frame) -> Tensor:
    """grad log p with respect to raw y [N, d], 0 where missing: -sum_j r_j Sigma_j^-1 (y - mu_j)."""
    n, d = sum(r.z.shape[1] for r in rows), components.mean.shape[1]
    out = components.mean.new_zeros(n, d)
    for part in rows:
        local, r = localise(components, part, frame), posterior(components, [replace(part, index=None)], frame)
        slope = torch.zeros_like(part.z, dtype=out.dtype)
        for j, mean in enumerate(local.mean):
            inverse = local.inverse[j] if components.kind != "tied" else local.inverse
            e = part.z.double() - mean[:, None]
            if part.colour is None:
                slope -= r[:, j] * inverse.square()[:, None] * e
            else:
                slope -= r[:, j] * (inverse.T @ (inverse @ e))
        if part.colour is not None:
            slope = torch.linalg.solve_triangular(part.colour.T, slope, upper=True)
        index = torch.arange(n, device=out.device) if part.index is None else part.index
        out[index[:, None], part.observed] = slope.T / frame.scale[part.observed]
    return out


def condition(components: Components, rows: list[Rows], frame: Frame, e: Tensor, label: Tensor) -> Tensor:
    """Residuals e [N, d] ~ N(0, I) of component label [N], given the observed entries: e + U (y - U'e)."""
    out = e.clone()
    for part in rows:
        local = localise(components, part, frame)
        index = torch.arange(len(e), device=e.device) if part.index is None else part.index
        for j in label[index].unique().tolist():
            mine = (label[index] == j).nonzero().squeeze(1)
            z, at = part.z[:, mine].T.double() - local.mean[j], index[mine]
            if local.span is None and part.colour is None:
                out[at[:, None], part.observed] = z * local.inverse[j]
                continue
            tied = components.kind == "tied"
            y = z @ (local.inverse if tied else local.inverse[j]).T
            if local.span is None:  # everything is observed
                out[at] = y
                continue
            u = local.span if tied else local.span[j]
            out[at] = e[at] + (y - e[at] @ u) @ u.T
    return out


def place(components: Components, e: Tensor, j: int) -> Tensor:
    """Whitened z [n, d] = mu_j + C_j e."""
    if components.kind in ("full", "tied"):
        factor = components.factor if components.kind == "tied" else components.factor[j]
        return components.mean[j] + e @ factor.T
    return components.mean[j] + e * components.deviation()[j]


def _lift(
    kind: Covariance, rows: Rows, local: Local, d: int, n: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of observed residuals y -> expected moments of whole residuals e: U y, and I - U U' besides."""
    if rows.complete:
        return n, first, second
    if local.span is not None:
        u = local.span
        rest = torch.eye(u.shape[-2], dtype=u.dtype, device=u.device) - u @ u.mT
        if kind == "tied":
            return n, first @ u.T, u @ second @ u.T + n.sum() * rest
        return n, (u @ first[..., None]).squeeze(-1), u @ second @ u.mT + n[:, None, None] * rest
    mean = first.new_zeros(len(n), d)
    square = n[:, None].repeat(1, d)
    mean[:, rows.observed], square[:, rows.observed] = first, second
    return n, mean, square
