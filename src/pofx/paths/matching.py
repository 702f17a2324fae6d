"""Score matching: how a net learns the score s(x) = grad log p(x) of data whose density nobody knows.

The squared distance of scores, E|s(x) - grad log p(x)|^2 / 2, asks for what is sought. Three objectives have the same
minimum, and differ in what they cost and in their noise:

    exact       |s|^2 / 2 + tr(ds/dx)                 Hyvarinen 2005, theorem 1: a backward pass for each dimension
    sliced      E_v[ (v's)^2 / 2 + v' ds/dx v ]       Song et al. 2019, eq. 7: a backward pass for each direction v
      reduced   |s|^2 / 2 + E_v[ v' ds/dx v ]         eq. 8: no noise in its first term, which has a closed form
    denoising   |s(x + sigma e) + e / sigma|^2 / 2    Vincent 2011, eq. 11: no derivative, but the score is that of the
                                                      data with noise sigma e added, e ~ N(0, I)

The first ones are E|s - grad log p|^2 / 2 itself less a constant, the Fisher information E|grad log p|^2 / 2; the last
is so for the noised data plus a constant. Paths learn by the last, at all noise levels at once: with z = alpha x +
sigma e and s = -eps_hat / sigma it is |eps_hat - e|^2 / (2 sigma^2), "simple" of paths/objective.py but for the factor.

Each objective is a function of one score, and its terms [N] carry a gradient to the weights of the net behind it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""score(x [N, *E]) -> grad log p [N, *E], each row of its own x alone"""


def exact(score: Score, x: Tensor) -> Tensor:
    """|s|^2 / 2 + tr(ds/dx) [N] at x [N, *E], in as many backward passes as E has dimensions.

    Example:
        >>> import torch
        >>> exact(lambda x: -x, torch.tensor([[3.0, 4.0]])).detach()  # of N(0, I): |x|^2 / 2 - 2
        tensor([10.5000])
    """
    s, x = _traced(score, x)
    d = x[0].numel()
    axes = torch.eye(d).to(x).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
    return _square(s) + _curvature(s, x, axes).sum(0)


def sliced(score: Score, x: Tensor, directions: Tensor, *, reduced: bool = True) -> Tensor:
    """The mean over directions of (v's)^2 / 2 + v' ds/dx v [N] at x [N, *E].

    Args:
        directions: v [M, N, *E], drawn with E[vv'] = I: normal, or random signs, which have less variance.
        reduced: E_v[(v's)^2] = |s|^2 takes the place of its draws.
    """
    s, x = _traced(score, x)
    first = _square(s) if reduced else (s * directions).flatten(2).sum(2).square().mean(0) / 2
    return first + _curvature(s, x, directions).mean(0)


def denoising(score: Score, x: Tensor, e: Tensor, sigma: Tensor | float) -> Tensor:
    """|s(x + sigma e) + e / sigma|^2 / 2 [N] for x, e [N, *E] and sigma, a number or [N, 1, ...].

    The minimum is the score of x + sigma e. E[x | x + sigma e] = x + sigma e + sigma^2 s (Tweedie's formula).
    """
    return _square(score(x + sigma * e) + e / sigma)


def _traced(score: Score, x: Tensor) -> tuple[Tensor, Tensor]:
    """The score and the x that it is to be derived by."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return score(x), x


def _square(s: Tensor) -> Tensor:
    return s.square().flatten(1).sum(1) / 2


def _curvature(s: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """v' ds/dx v [M, N] along directions v [M, N, *E]."""
    rows = [torch.autograd.grad(s, x, v, create_graph=True)[0] * v for v in directions]
    return torch.stack(rows).flatten(2).sum(2)
