"""Sweeps over rows: the E step, densities, posteriors, gradients, and conditioning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pofx.families.mixture.kernels import CACHE, Kernel, kernel_for
from pofx.families.mixture.whitening import Components, Rows, Whitening, marginalise

CLAMP = -80.0  # on log-weights relative to the largest: e^-80 is below rounding, denormals cost 200 times as much


def _posteriors(
    rows: Rows, kernel: Kernel, table: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor | None]]:
    """Per block: its place, unnormalised posteriors [K, b] and their sums [b], log-densities [b], one-hot codes."""
    block, values = kernel.block, rows.codes.shape[1] > 0
    if values:
        block = max(16, min(block, CACHE // table.shape[1]))
        table = table.to(kernel.dtype)
        hot = torch.empty(table.shape[1], block, dtype=kernel.dtype, device=table.device)
    for i in range(0, rows.z.shape[1], block):
        piece = slice(i, min(i + block, rows.z.shape[1]))
        weights, codes = kernel.logits(piece), None
        if values:
            codes = hot[:, : piece.stop - i].zero_().scatter_(0, rows.codes[piece].T, 1.0)
            weights.addmm_(table, codes)
        top = weights.amax(0)
        weights.sub_(top).clamp_(min=CLAMP).exp_()
        total = weights.sum(0)
        yield piece, weights, total, top.add_(total.log()), codes


def log_density(components: Components, rows: list[Rows], whitening: Whitening) -> Tensor:
    """log p of the observed entries of every row [N], raw units, float64."""
    out = components.mean.new_empty(sum(r.z.shape[1] for r in rows))
    for part in rows:
        kernel = kernel_for(components, part, whitening)
        for piece, _, _, log_p, _ in _posteriors(part, kernel, components.table):
            out[piece if part.index is None else part.index[piece]] = log_p.to(out.dtype)
    return out


def posterior(components: Components, rows: list[Rows], whitening: Whitening) -> Tensor:
    """p(component | observed entries) [N, K] float64."""
    out = components.mean.new_empty(sum(r.z.shape[1] for r in rows), len(components.mean))
    for part in rows:
        kernel = kernel_for(components, part, whitening)
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


def e_step(components: Components, rows: Iterable[Rows], whitening: Whitening) -> Stats:
    """The E step over all ``rows``, which are gone through once."""
    like = components.mean
    k, d = like.shape
    shape = {"full": (k, d, d), "tied": (d, d)}.get(components.kind, (k, d))
    total, n, first, second = like.new_zeros(3), like.new_zeros(k), like.new_zeros(k, d), like.new_zeros(shape)
    counts = torch.zeros_like(components.table)
    for part in rows:
        kernel = kernel_for(components, part, whitening)
        for piece, r, sums, log_p, hot in _posteriors(part, kernel, components.table):
            if part.weight is None:
                total[0] += log_p.sum(dtype=torch.float64)
                total[1] += len(log_p)
                r.mul_(sums.reciprocal_())
            else:
                w = part.weight[piece]
                total[0] += (w * log_p).sum(dtype=torch.float64)
                total[1] += w.sum(dtype=torch.float64)
                r.mul_(w / sums)
            if hot is not None:
                counts += r @ hot.T
            kernel.add(r)
        total[2] += part.z.shape[1]
        for held, new in zip((n, first, second), kernel.moments(), strict=True):
            held += new
    if components.kind == "spherical":
        second = second.sum(1)
    return Stats(total, n, first, second, counts)


def gradient(components: Components, rows: list[Rows], whitening: Whitening) -> Tensor:
    """grad log p with respect to raw y [N, d], 0 where missing: -sum_j r_j Sigma_j^-1 (y - mu_j).

    Of rows by pattern (not scattered).
    """
    n, d = sum(r.z.shape[1] for r in rows), components.mean.shape[1]
    out = components.mean.new_zeros(n, d)
    for part in rows:
        r = posterior(components, [replace(part, index=None)], whitening)
        slope, z = torch.zeros_like(part.z, dtype=out.dtype), part.z.double()
        if whitening.pooled is None:
            for j, mean in enumerate(components.mean[:, part.observed]):
                variance = components.deviation()[j, part.observed].square()
                slope -= r[:, j] * (z - mean[:, None]) / variance[:, None]
            slope = slope if part.mask is None else slope * part.mask
        else:
            local = marginalise(components, part, whitening)
            for j, mean in enumerate(local.mean):
                inverse = local.inverse if components.kind == "tied" else local.inverse[j]
                slope -= r[:, j] * (inverse.T @ (inverse @ (z - mean[:, None])))
            assert part.cholesky is not None
            slope = torch.linalg.solve_triangular(part.cholesky.T, slope, upper=True)
        index = torch.arange(n, device=out.device) if part.index is None else part.index
        out[index[:, None], part.observed] = slope.T / whitening.scale[part.observed]
    return out


def condition(components: Components, rows: list[Rows], whitening: Whitening, e: Tensor, label: Tensor) -> Tensor:
    """Residuals e [N, d] ~ N(0, I) of component label [N], given the observed entries: e + U (y - U'e).

    Of rows by pattern (not scattered).
    """
    out = e.clone()
    for part in rows:
        index = torch.arange(len(e), device=e.device) if part.index is None else part.index
        mine, o = label[index], part.observed
        if whitening.pooled is None:
            y = (part.z.T.double() - components.mean[mine][:, o]) / components.deviation()[mine][:, o]
            seen = torch.ones_like(y) if part.mask is None else part.mask.T
            out[index[:, None], o] = torch.where(seen > 0, y, e[index][:, o])
            continue
        local = marginalise(components, part, whitening)
        for j in mine.unique().tolist():
            here = (mine == j).nonzero().squeeze(1)
            at, z = index[here], part.z[:, here].T.double() - local.mean[j]
            y = z @ (local.inverse if components.kind == "tied" else local.inverse[j]).T
            if local.span is None:  # everything is observed
                out[at] = y
            else:
                u = local.span if components.kind == "tied" else local.span[j]
                out[at] += (y - e[at] @ u) @ u.T
    return out


def place(components: Components, e: Tensor, j: int) -> Tensor:
    """Whitened z [n, d] = mu_j + C_j e."""
    if components.kind in ("full", "tied"):
        factor = components.factor if components.kind == "tied" else components.factor[j]
        return components.mean[j] + e @ factor.T
    return components.mean[j] + e * components.deviation()[j]
