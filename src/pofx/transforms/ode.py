"""Ordinary differential equations dz/dt = f(t, z) of many rows, and the change of the log-density along them.

    d log p(z(t)) / dt = -tr df/dz        (Chen et al. 2018, theorem 1)

Each row has times of its own, so what it gets does not depend on its batch. A solver has two errors: that of the way
z(t), and that of the integral of the trace along it. The way costs one pass of f a stage and is held so close, by the
pair of orders 5 and 4 of Dormand & Prince 1980, that its error is far below the other. The trace costs as many
backward passes as there are dimensions or probes: it is taken at few places, which are drawn such that the integral is
unbiased (Siegel & O'Brien 1985). Its error is then one of chance: two draws of each panel tell it, and a mean over rows
has less of it, as it would not of the error of a rule whose places are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pofx.core.errors import NotConverged
from pofx.core.likelihood import Estimate
from pofx.core.measure import Measure
from pofx.core.noise import RowNoise
from pofx.core.requests import OdeLikelihood
from pofx.transforms.base import Noise

Field = Callable[[Tensor, Tensor], Tensor]
"""f(t [N], z [N, *E]) -> dz/dt [N, *E]"""

CLOSE = 1e-5  # the largest local error of the way, in each entry, relative to 1 + |z|
HALVINGS = 8  # of a step whose error is larger, at most
DOUBLINGS = 8  # of the steps of rows whose error is above the tolerance, at most
VARIANCE = 3 / 7 - (3 / 5) ** 2  # of u^2, u the cube root of a uniform number

# Dormand & Prince 1980, table 2: RK5(4)7M; the last row of STAGES is the solution of order 5, which goes on
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
BETWEEN = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # order 5 less order 4


def wide(per_row: Tensor, like: Tensor) -> Tensor:
    """A number of each row [N], to be multiplied with ``like`` [N, *E]."""
    return per_row.reshape(-1, *[1] * (like.ndim - 1))


def dormand_prince(field: Field, t: Tensor, h: Tensor, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step: z(t + h), the slope there, and the embedded pair's error of z [N, *E]; ``slope`` is f(t, z)."""
    slopes, step, ahead = [slope], wide(h, z).to(z), z
    for time, weights in zip(TIMES, STAGES, strict=True):
        ahead = z + step * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
        slopes.append(field(t + time * h, ahead))
    return ahead, slopes[-1], step * sum(w * k for w, k in zip(BETWEEN, slopes, strict=True) if w)


def travel(field: Field, start: Tensor, end: Tensor, z: Tensor, slope: Tensor | None = None) -> Tensor:
    """z at the times ``end`` [N] of what is z [N, *E] at ``start`` [N]; ``slope`` is f(start, z), where it is known.

    Steps of a row are halved until the error of each is at most ``CLOSE``.
    Raises NotConverged where 2^HALVINGS are not enough, or f is no number.
    """
    first = field(start, z) if slope is None else slope
    found, done = z, torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for halving in range(HALVINGS + 1):
        h = (end - start) / 2**halving
        at, k, worst = z, first, torch.zeros(len(z), dtype=torch.float64, device=z.device)
        for i in range(2**halving):
            at, k, error = dormand_prince(field, start + i * h, h, at, k)
            relative = (error.detach() / (1 + at.detach().abs())).abs().flatten(1).amax(1)
            worst = torch.maximum(worst, relative.double())
        found = torch.where(wide(done, z), found, at)
        done = done | (worst <= CLOSE)
        if done.all():
            return found
    raise NotConverged(
        f"The differential equation is not solved in {2**HALVINGS} steps between two of its times: of {len(z)} rows "
        f"{int((~done).sum())} have a local error up to {worst[~done].max():.2g}, above {CLOSE:g}.",
        "The network changes too fast there: fit it again with a lower learning rate.",
    )


def divergence(field: Field, t: Tensor, z: Tensor, probe: Tensor | None, graph: bool) -> tuple[Tensor, Tensor]:
    """f(t, z) [N, *E] and the trace of df/dz: exact [1, N], or along each probe [K, N] (Hutchinson 1990).

    Args:
        probe: random signs [K, N, *E]; None for the exact trace, at the cost of d backward passes.
        graph: both carry a gradient.
    """
    if probe is None:
        d = z[0].numel()
        along = torch.eye(d).to(z).reshape(d, 1, *z.shape[1:]).expand(d, *z.shape)
    else:
        along = probe
    with torch.enable_grad():
        at = z if graph and z.requires_grad else z.detach().requires_grad_()
        v = field(t, at)
        parts = torch.stack(
            [
                (torch.autograd.grad(v, at, e, retain_graph=True, create_graph=graph)[0] * e).flatten(1).sum(1)
                for e in along
            ]
        )
    return v if graph else v.detach(), parts.sum(0, keepdim=True) if probe is None else parts


class Change(NamedTuple):
    """What a solution ends in.

    Attributes:
        z: at the end [N, *E].
        trace: the integral of the trace of df/dz, along each probe [K, N]; exact [1, N].
        se: standard error [N] that the places leave of its mean over probes.
    """

    z: Tensor
    trace: Tensor
    se: Tensor


def follow(
    field: Field,
    start: float,
    end: float,
    z: Tensor,
    steps: int,
    noise: Noise,
    probe: Tensor | None = None,
    graph: bool = False,
) -> Change:
    """From z [N, *E] at time ``start`` to ``end``, in ``steps`` panels of equal length.

    In a panel from m - r to m + r, with u = U^(1/3) of a uniform U, the random rule

        r (2 g(m) + [g(m + u r) - 2 g(m) + g(m - u r)] / (3 u^2))

    is unbiased for the integral of g, and exact for polynomials of degree 3 (Siegel & O'Brien 1985): its
    error falls with the power 4.5 of the number of panels. Each panel draws u twice. To leading order what a draw adds
    is linear in u^2, by the slope between both draws, and u^2 has the variance 3/7 - (3/5)^2: so both tell the error.
    """
    n, width = len(z), (end - start) / steps
    now = torch.full((n,), start, dtype=torch.float64, device=z.device)
    radius, slope, trace, variance = width / 2, None, z.new_zeros(()), now.new_zeros(n)
    for panel in range(steps):
        middle = start + (panel + 0.5) * width
        u = (1 - noise.rand(2).double()).to(z.device).pow(1 / 3)
        near, far = u.amin(1), u.amax(1)
        seen = []
        for place in (-far, -near, torch.zeros_like(near), near, far):
            then = middle + radius * place
            z, now = travel(field, now, then, z, slope), then
            slope, part = divergence(field, now, z, probe, graph)
            seen.append(part)
        wider, narrower = ((seen[i] - 2 * seen[2] + seen[4 - i]) / (3 * u**2) for i, u in ((0, far), (1, near)))
        trace = trace + radius * (2 * seen[2] + (wider + narrower) / 2)
        bend = ((wider - narrower).mean(0) / (far**2 - near**2)).detach()
        variance = variance + (radius * bend) ** 2 * VARIANCE / 2
    return Change(travel(field, now, torch.full_like(now, end), z, slope), trace, variance.sqrt())


def probes(k: int, z: Tensor, noise: Noise) -> Tensor | None:
    """k random signs for each entry of z [N, *E], the same along a whole solution: [k, N, *E]; none for k = 0."""
    if not k:
        return None
    signs = 1 - 2 * (noise.rand(k, z[0].numel()) < 0.5).to(z)
    return signs.transpose(0, 1).reshape(k, *z.shape)


Solve = Callable[[int, Noise], tuple[Tensor, Tensor]]
"""(steps, noise) -> log-densities along each probe [K, N] (K = 1 for the exact trace), and the solver's error [N]"""


def estimate(solve: Solve, request: OdeLikelihood, noise: RowNoise, dim: int, what: str) -> Estimate:
    """The answer to the request by what solves the equation; ``what`` it is, the caveat says first.

    Rows whose error of the solver is above the request's tolerance are solved again in twice as many steps.
    Raises NotConverged where 2^DOUBLINGS times as many are not enough.
    """
    own = (noise.rand_double() * 2**53).long()  # streams of each row's own, however often other rows are solved
    steps = request.steps
    parts, error = solve(steps, RowNoise(steps, lambda: own))
    if request.tolerance is not None:
        for _ in range(DOUBLINGS):
            rough = error.detach() > request.tolerance
            if not rough.any():
                break
            steps *= 2
            finer, finer_error = solve(steps, RowNoise(steps, lambda: own))
            parts, error = torch.where(rough, finer, parts), torch.where(rough, finer_error, error)
        if (worst := error.max().item()) > request.tolerance:
            raise NotConverged(
                f"In {steps} steps the error of the ODE's solver is still up to {worst:.2g} nats, above the tolerance "
                f"of {request.tolerance:g}.",
                "Ask for a larger tolerance.",
            )
    draws, se = 4 * request.steps, error  # of places
    if k := request.probes:
        draws, spread = k, parts.std(0) / k**0.5 if k > 1 else torch.full_like(error, torch.nan)
        se = torch.hypot(error, spread.to(error))
    steps_told = f"{request.steps} steps" + ("" if request.tolerance is None else " or more")
    trace = f"Hutchinson's divergence, {k} probes a solution" if k else "exact divergence"
    caveat = f"{what}, {steps_told}, {trace}; the error is that of the solver" + (" and the probes" if k else "")
    return Estimate(parts.mean(0), Measure.lebesgue(dim), se.detach(), draws, caveat)


def sketch(
    field: Field, start: float, end: float, z: Tensor, steps: int, noise: Noise | None, probe: Tensor | None
) -> tuple[Tensor, Tensor]:
    """z [N, *E] at the end and the integral of the trace [N], with a gradient, at the cost that training can bear.

    The integral is that of ``follow`` with one draw a panel, unbiased for the way that is gone, by the midpoint method
    from place to place. Without noise the places are fixed, u = 1, which makes it the rule of Simpson.
    """
    width = (end - start) / steps
    now, radius, trace = (
        torch.full((len(z),), start, dtype=torch.float64, device=z.device),
        width / 2,
        z.new_zeros(len(z)),
    )
    slope = field(now, z)

    def move(z: Tensor, slope: Tensor, then: Tensor) -> Tensor:
        h = then - now
        return z + wide(h, z).to(z) * field(now + h / 2, z + wide(h / 2, z).to(z) * slope)

    for panel in range(steps):
        u = torch.ones_like(now) if noise is None else (1 - noise.rand().double()).pow(1 / 3)
        seen = []
        for place in (-u, torch.zeros_like(u), u):
            then = start + (panel + 0.5) * width + radius * place
            z, now = move(z, slope, then), then
            slope, part = divergence(field, now, z, probe, graph=torch.is_grad_enabled())
            seen.append(part.mean(0))
        bend = (seen[0] - 2 * seen[1] + seen[2]) / (3 * u**2).to(z)
        trace = trace + radius * (2 * seen[1] + bend)
    return move(z, slope, torch.full_like(now, end)), trace
