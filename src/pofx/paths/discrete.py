"""Discrete paths from data to noise: sites are hidden one by one (absorbing), or replaced by any value (uniform).

Time is told by m, the share of a datum's sites that noise has reached, which goes from 0 (data) to 1 (noise). In
continuous time a bound does not depend on how fast m goes; in T steps it does, by the levels m_0 = 0 < ... < m_T = 1.

Absorbing (Austin et al. 2021; Sahoo et al. 2024; Shi et al. 2024). A value is hidden with probability m, and a net
gives the distribution of each hidden one given those seen. The bound of T steps is

    log p(x) >= sum_j (m_j - m_{j-1}) / m_j  E sum_{i hidden at m_j} log p(x_i | seen).

Of L sites each is hidden with probability m_j, beside k - 1 others; so the bound is a mean over masks of k sites:

    log p(x) >= L E_j E_k  mean_{i among k hidden} log p(x_i | the others),   k - 1 ~ Binomial(L - 1, m_j),

where j has probability m_j - m_{j-1}. Of many steps m is uniform on [0, 1], and k on 1 .. L: the bound is then the
mean, over all orders, of log p of revealing one site after the other (Hoogeboom et al. 2022).

Uniform (Austin et al. 2021; Schiff et al. 2024). A site is replaced by one of V values with probability m:
q(z | x) = (1 - m) [z = x] + m / V. A net gives pi(x) = p(x | z), from which a step back is
p(z_s | z) = sum_x q(z_s | z, x) pi(x) (Austin et al. 2021, eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pofx.nn.heads import pick, uniform

Levels = Literal["linear", "cosine"]
CURVE = 3  # m = u^3: what there is to gain is at little noise, the more the less likely a symbol is


def levels(name: Levels, steps: int) -> Tensor:
    """m_0 = 0, ..., m_T = 1 [steps + 1], float64: evenly, or slowly at the noise's end (Chang et al. 2022)."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return t if name == "linear" else (math.pi / 2 * t).sin()


# -- absorbing -----------------------------------------------------------------------------------------


def level_of(u: Tensor, grid: Tensor | None) -> Tensor:
    """m for u ~ U[0, 1): u itself in continuous time, else the next higher level, j with probability m_j - m_{j-1}."""
    return u if grid is None else grid[torch.searchsorted(grid, u, right=True)]


def hide(m: Tensor, free: Tensor, lots: Tensor, coins: Tensor) -> Tensor:
    """Which of the ``free`` sites [N, L] of each row are hidden: k of them by lot, k - 1 ~ Binomial(free - 1, m).

    Args:
        m: [N].
        lots, coins: [N, L], uniform on [0, 1); those of the k lowest lots are hidden.
    """
    each = (free.cumsum(1) > 1) & free  # all but the first: one trial for every other site
    k = 1 + ((coins < m[:, None]) & each).sum(1, keepdim=True)
    return free & (ranks(lots, free) < k)


def ranks(lots: Tensor, free: Tensor) -> Tensor:
    """The place [N, L] of each free site in its row's order, from 0 on; others come after."""
    return lots.masked_fill(~free, math.inf).argsort(dim=1, stable=True).argsort(dim=1)


def hidden_draw(
    log_p: Callable[[Tensor], Tensor], free: Tensor, u: Tensor, grid: Tensor | None, rand: Callable[[], Tensor]
) -> Tensor:
    """One draw [N] of the bound on log p of the free sites, for u ~ U[0, 1) [N]: their number times the mean of log p
    over those hidden.

    ``log_p`` gives that of all sites [N, L] when these [N, L] are hidden, ``rand`` uniform numbers [N, L] on [0, 1).
    """
    hidden = hide(level_of(u, grid), free, rand(), rand())
    total = torch.where(hidden, log_p(hidden), 0.0).sum(1, dtype=torch.float64)
    return free.sum(1) * total / hidden.sum(1).clamp(min=1)


def in_order(log_p: Callable[[Tensor], Tensor], free: Tensor, order: Tensor) -> Tensor:
    """log p [N] of the free sites when they are revealed one by one, those of low ``order`` [N, L] first: exact."""
    place = ranks(order, free)
    nats = torch.zeros(len(free), dtype=torch.float64, device=free.device)
    for k in range(int(free.sum(1).max())):
        each = log_p(free & (place >= k))
        nats = nats + torch.where(free & (place == k), each, 0.0).sum(1, dtype=torch.float64)
    return nats


def stages(lot: Tensor, grid: Tensor) -> Tensor:
    """In which step back, 0 .. T - 1, each site [N, L] is revealed: it is hidden at m where its lot is below m."""
    return len(grid) - 1 - torch.searchsorted(grid, lot.double().clamp(max=1 - 2**-24), right=True)


def evenly(order: Tensor, free: Tensor, steps: int) -> Tensor:
    """The same of free sites in their order [N, L], equally many in each step; one in each of more steps than sites."""
    sizes = free.sum(1, keepdim=True)
    return ranks(order, free) * sizes.clamp(max=steps) // sizes.clamp(min=1)


def reveal(
    draw: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    values: Tensor,
    seen: Tensor,
    free: Tensor,
    stage: Tensor,
    *,
    surest: bool = False,
) -> Tensor:
    """Values [N, L] with the free ones drawn by their stage; a row costs nothing in stages where it reveals nothing.

    Args:
        draw: (values, seen, which rows) -> a draw of all sites, and its log p.
        surest: as many of each stage, but those first whose draws are the likeliest (Chang et al. 2022).
    """
    for k in stage[free].unique().tolist():
        now = free & (stage == k)
        [rows] = now.any(1).nonzero(as_tuple=True)
        if not len(rows):
            continue
        (drawn, log_p), now = draw(values[rows], seen[rows], rows), now[rows]
        if surest:
            left = free[rows] & ~seen[rows]
            now = left & (ranks(-log_p, left) < now.sum(1, keepdim=True))
        values = values.index_copy(0, rows, torch.where(now, drawn, values[rows]))
        seen = seen.index_copy(0, rows, seen[rows] | now)
    return values


# -- uniform -------------------------------------------------------------------------------------------


def replaced(x: Tensor, m: Tensor, size: int, coins: Tensor, values: Tensor) -> Tensor:
    """A draw of q(z | x) [N, L] of symbols x [N, L] at m [N]; coins, values [N, L] are uniform on [0, 1)."""
    other = (values * size).long().clamp(max=size - 1)
    return torch.where(coins < m[:, None], other, x)


def evidence(m: Tensor, size: int) -> Tensor:
    """log q(z | x = z) - log q(z | x != z): what a site's own noisy value says of it."""
    return torch.log1p((1 - m) * size / m)


def bayes(logits: Tensor, z: Tensor, m: Tensor) -> Tensor:
    """log p(x | z) [N, L, V], float64: logits [N, L, V] of what the other sites say, and what z [N, L] says itself."""
    size = logits.shape[-1]
    own = torch.nn.functional.one_hot(z.long(), size)
    return (logits.double() + own * evidence(m, size).view(-1, 1, 1)).log_softmax(-1)


def rate(log_pi: Tensor, x: Tensor, z: Tensor, m: Tensor) -> Tensor:
    """The integrand [N, L] over m in [0, 1] of the bound in continuous time.

    A path that is seen backwards jumps from z to y at rate rho(y) / (V (1 - m)), with rho(y) = q(y | x) / q(z | x)
    where x is known, and its mean over pi where it is not. The bound loses the divergence of the two jump processes
    (Campbell et al. 2022; Schiff et al. 2024):

        sum_{y != z} rho_pi(y) - rho_x(y) + rho_x(y) log(rho_x(y) / rho_pi(y)).

    Args:
        log_pi: [N, L, V]; x, z: [N, L]; m: [N], in (0, 1).
    """
    size = log_pi.shape[-1]
    pi, log_a = log_pi.exp(), -evidence(m, size).view(-1, 1, 1)
    a = log_a.exp()
    here = pi.gather(-1, z[..., None])  # p(x = z | z)
    rho = here * a + pi / a + (1 - here - pi)  # [N, L, V], of every y but z
    same, at_z = (x == z)[..., None], torch.nn.functional.one_hot(z, size).bool()
    at_x = torch.nn.functional.one_hot(x, size).bool()
    log_true = torch.where(same, log_a, torch.where(at_x, -log_a, torch.zeros_like(log_a)))
    true = log_true.exp()
    each = rho - true + true * (log_true - rho.log())
    return -each.masked_fill(at_z, 0.0).sum(-1) / (size * (1 - m[:, None]))


def reverse(log_pi: Tensor, z: Tensor, s: Tensor, m: Tensor) -> Tensor:
    """log p(z_s | z) [N, L, V] of a step from m back to s [N]; at s = 0 it is ``log_pi``."""
    size = log_pi.shape[-1]
    at_z = torch.nn.functional.one_hot(z, size)
    s, m = s.view(-1, 1, 1), m.view(-1, 1, 1)
    kept = (1 - m) / (1 - s)
    # q(z_s | z, x) = q(z | z_s) q(z_s | x) / q(z | x)
    w = log_pi.exp() / ((1 - m) * at_z + m / size)
    back = (kept * at_z + (1 - kept) / size) * ((1 - s) * w + s / size * w.sum(-1, keepdim=True))
    return back.log()


def step_nats(log_pi: Tensor, x: Tensor, z: Tensor, s: Tensor, m: Tensor) -> Tensor:
    """-KL(q(z_s | z, x) | p(z_s | z)) [N, L] of one step from m back to s [N] (Austin et al. 2021, eq. 1)."""
    known = torch.nn.functional.one_hot(x, log_pi.shape[-1]).to(log_pi.dtype)
    q, p = reverse(known.log(), z, s, m), reverse(log_pi, z, s, m)
    return -torch.where(q.isinf(), 0.0, q.exp() * (q - p)).sum(-1)


def replaced_draw(
    posterior: Callable[[Tensor, Tensor], Tensor], x: Tensor, free: Tensor, u: Tensor, grid: Tensor | None, size: int,
    rand: Callable[[], Tensor],
) -> Tensor:  # fmt: skip
    """One draw [N] of the bound on log p of the free symbols of x [N, L], for u ~ U[0, 1) [N].

    Where there is little noise, the rare draws in which it reached a symbol weigh 1 / m. So in half of all draws one
    symbol by lot is replaced for certain; k replaced ones of L are then (1 + k / (L p)) / 2 times as likely, where p is
    the probability that one is, and the draw is divided by that.

    Args:
        posterior: of z [N, L] and m [N], log p(x | z) [N, L, V].
        rand: gives uniform numbers on [0, 1) [N, L].
    """
    if grid is None:
        u = u.clamp(1e-4, 1 - 1e-9)  # what m < 1e-12 holds of the integral is far below any error
        s, m, weight = None, u**CURVE, CURVE * u ** (CURVE - 1)
    else:
        j = (u * (len(grid) - 1)).long()
        s, m, weight = grid[j], grid[j + 1], torch.full_like(u, len(grid) - 1)
    count = free.sum(1, keepdim=True).clamp(min=1)
    lots = rand().masked_fill(~free, 1.0)
    # the least of all lots is below this in half of all draws, wherever it is
    forced = (ranks(lots, free) == 0) & (lots < 1 - 0.5 ** (1 / count))
    other = (x + 1 + (rand() * (size - 1)).long().clamp(max=size - 2)) % size
    z = torch.where(free, torch.where(forced, other, replaced(x, m, size, rand(), rand())), x)
    k, p = ((z != x) & free).sum(1), m * (size - 1) / size
    log_pi, x, z = posterior(z, m), x.clamp(min=0), z.clamp(min=0)
    each = rate(log_pi, x, z, m) if s is None else step_nats(log_pi, x, z, s, m)
    return weight * torch.where(free, each, 0.0).sum(1) * 2 / (1 + k / (count[:, 0] * p))


def go_back(
    posterior: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    free: Tensor,
    grid: Tensor,
    size: int,
    generator: torch.Generator,
) -> Tensor:
    """Symbols x [N, L] with the free ones drawn by steps back along the grid; meanwhile the others are as noisy.

    ``posterior`` is that of ``replaced_draw``; what is negative is no site.
    """
    n = len(x)

    def noised(m: Tensor) -> Tensor:
        a, b = (uniform(torch.empty(x.shape, device=x.device), generator) for _ in range(2))
        return torch.where(x >= 0, replaced(x, m.expand(n), size, a, b), x)

    z = noised(grid[-1])
    for s, m in zip(grid[:-1].flip(0), grid[1:].flip(0), strict=True):
        back = reverse(posterior(z, m.expand(n)), z.clamp(min=0), s.expand(n), m.expand(n))
        z = torch.where(free, pick(back, generator), noised(s))
    return z
