"""Transforms z = f(x; h, noise) with what the density of z lacks to be that of x, and chains of them.

    log p(x) >= E_noise [ log p(z, out) + log_term ],   with equality where a transform is exact

The one rule covers invertible maps (the log term is log |det dz/dx|), dequantisation and filled gaps (noise makes a
bound, Nielsen et al. 2020, table 1) and latents that are factored out (Dinh et al. 2017, section 3.6).

Shapes: x, z [N, d]; h [N, width] a context or None; log terms [N]. In memory z is *features first* (the transpose of
a contiguous [d, N]), so that what happens to each entry runs over contiguous rows; the matrix products before and
after take either layout at no cost.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pofx.core.likelihood import Exact, Kind, join

SHRINKAGE = 1e-4


def pseudo_rows(n: float, d: int, components: int = 1) -> float:
    """Rows of the prior, in which columns do not depend, that n rows of d columns need to fix their covariance.

    With q = components d / n parameters a row (up to a constant): d min(1, max(q, 25 q^2)). As many as d where rows
    are fewer than 5 d a component: they leave directions without variance. Many rows speak for themselves.
    """
    q = components * d / max(1.0, n)
    return d * min(1.0, max(q, (5 * q) ** 2))


class Noise(Protocol):
    """Where the random numbers of N rows come from: each call gives the next ones, [N, *shape]."""

    def rand(self, *shape: int) -> Tensor: ...

    def randn(self, *shape: int) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """What a transform makes of N rows.

    Attributes:
        z: what goes on along the chain [N, d'].
        log_term: what the log-density of z and ``out`` lacks to be that of x, nats [N].
        out: latents that leave the chain here [N, k], if any.
        kind: what a log-density through this step is worth.
        se: standard error of the log term [N], where it is estimated.
    """

    z: Tensor
    log_term: Tensor
    out: Tensor | None = None
    kind: Kind = Exact
    se: Tensor | None = None


class Transform(nn.Module):
    """z = f(x; h, noise).

    Attributes:
        kind: what a log-density through it is worth: Exact, a bound, or an Estimate.
        leaving: how many entries leave the chain here.
    """

    kind: Kind = Exact
    leaving: int = 0

    @abstractmethod
    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        """Without noise, a transform that takes any maps to the middle: a point to encode, not a likelihood."""

    @abstractmethod
    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The x that z (and what left, ``out`` [N, leaving]) is of; differentiable in z, h and the parameters."""

    def prepare(self, x: Tensor, h: Tensor | None = None) -> None:
        """Look at rows of the training data, as they come to this place of a chain, once before training."""


class Chain(Transform):
    """f = f_T . ... . f_1: log terms add, kinds join, what leaves is put side by side, errors add in quadrature.

    Example:
        >>> import torch
        >>> x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        >>> chain = Chain([LuLinear(3), LuLinear(3)])
        >>> step = chain(x)
        >>> torch.allclose(chain.inverse(step.z), x, atol=1e-6), step.log_term.shape
        (True, torch.Size([5]))
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)
        for t in transforms:
            self.kind = join(self.kind, t.kind)
        self.leaving = sum(t.leaving for t in transforms)

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        total = torch.zeros(len(x), dtype=x.dtype if x.is_floating_point() else torch.float64, device=x.device)
        kind: Kind = Exact
        outs, variance = [], None
        for transform in self.transforms:
            step = transform(x, h, noise)
            x, total, kind = step.z, total + step.log_term, join(kind, step.kind)
            if step.out is not None:
                outs.append(step.out)
            if step.se is not None:
                variance = step.se.square() + (0.0 if variance is None else variance)
        return Step(x, total, torch.cat(outs, 1) if outs else None, kind, None if variance is None else variance.sqrt())

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        ends = [0, *accumulate(t.leaving for t in self.transforms)]
        for transform, start, end in zip(reversed(self.transforms), ends[-2::-1], ends[::-1], strict=False):
            z = transform.inverse(z, h, out[:, start:end] if out is not None and end > start else None)  # type: ignore[operator]
        return z

    @torch.no_grad()
    def prepare(self, x: Tensor, h: Tensor | None = None) -> None:
        for transform in self.transforms:
            transform.prepare(x, h)  # type: ignore[operator]
            x = transform(x, h).z


class Inverse(Transform):
    """f^-1 in place of f: what was the fast direction is the slow one.

    Example:
        >>> import torch
        >>> x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        >>> linear = LuLinear(3)
        >>> torch.equal(Inverse(linear).inverse(x), linear(x).z)
        True
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        z = self.transform.inverse(x, h)
        return Step(z, -self.transform(z, h).log_term)

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        x: Tensor = self.transform(z, h).z
        return x


class Split(Transform):
    """Factors entries out: those of ``keep`` [d] bool go on, the others leave the chain (Dinh et al. 2017, eq. 14-16).

    Example:
        >>> import torch
        >>> step = Split(torch.tensor([True, False, True]))(torch.tensor([[1.0, 2.0, 3.0]]))
        >>> step.z, step.out
        (tensor([[1., 3.]]), tensor([[2.]]))
    """

    kept: Tensor
    gone: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", keep.nonzero()[:, 0], persistent=False)
        self.register_buffer("gone", (~keep).nonzero()[:, 0], persistent=False)
        self.leaving = len(self.gone)

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        return Step(x.T[self.kept].T, x.new_zeros(len(x)), x.T[self.gone].T)

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        assert out is not None
        return torch.cat([z.T, out.T])[torch.cat([self.kept, self.gone]).argsort()].T


def implicit(x: Tensor, z: Tensor, f: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The solution x of f(x) = z, found without gradient, with the gradient of the implicit function theorem.

    With J = df/dx a gradient g of x is J^-T g of z, and that times -df/dparameters of what f depends on. J is
    triangular in some order of the entries: of k equations on the diagonal one more is solved by each round.

    Args:
        x: [N, d] or [*M], the solution.
        z: alike.
        f: gives f(x) and J's diagonal, alike. Where J is diagonal, the first round is the last.
    """
    if not torch.is_grad_enabled():
        return x
    rest = z - f(x)[0]  # zero, up to rounding, but it depends on all that x does
    if not rest.requires_grad:
        return x

    def solve(g: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            value, slope = f(at)
        v = g / slope.detach()
        for _ in range(x.shape[-1]):
            (seen,) = torch.autograd.grad(value, at, v, retain_graph=True)
            miss = g - seen
            if not (miss.abs() > 8 * torch.finfo(g.dtype).eps * g.abs().max()).any():
                break
            v = v + miss / slope.detach()
        return v

    rest.register_hook(solve)
    return x + (rest - rest.detach())


class Scalar(Protocol):
    """A monotone map of single numbers, whose ``count`` parameters per number a net gives.

    Stateless. x, z [*M] and parameters [count, *M]; parameters of zero are the identity.
    """

    @property
    def count(self) -> int: ...

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """z and log dz/dx, each [*M]."""
        ...

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        """Differentiable in both."""
        ...


@dataclass(frozen=True)
class Affine:
    """z = x exp(s) + t with s = limit * tanh(./limit): no single layer can blow up (Dinh et al. 2017, section 4.1).

    Example:
        >>> import torch
        >>> x, parameters = torch.tensor([1.0, -2.0]), torch.zeros(2, 2)
        >>> Affine().forward(x, parameters)
        (tensor([ 1., -2.]), tensor([0., 0.]))
    """

    limit: float = 4.0
    count: ClassVar[int] = 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raw, t = parameters
        s = self.limit * (raw / self.limit).tanh()
        return torch.addcmul(t, x, s.exp()), s

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        raw, t = parameters
        return (z - t) / (raw / self.limit).tanh().mul(self.limit).exp()


class LuLinear(Transform):
    """z = L U P x + b: a random fixed permutation P, learned L (unit lower) and U (upper triangular).

    The log-determinant is the sum of the logs of U's diagonal, which is positive (Kingma & Dhariwal 2018,
    eq. 10-11; Durkan et al. 2019, section 3.2). Starts at L = U = I.

    Example:
        >>> import torch
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]])
        >>> linear = LuLinear(2)
        >>> shrinkage = linear.whiten(x)
        >>> z = linear(x).z
        >>> bool((z.T.cov() - torch.eye(2)).abs().max() < 0.05)
        True
    """

    permutation: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("permutation", torch.randperm(dim))
        # below the diagonal L, above it U, on it the logarithm of U's diagonal
        self.packed = nn.Parameter(torch.zeros(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U [d, d]."""
        one = torch.ones_like(self.bias).diag()
        return self.packed.tril(-1) + one, self.packed.triu(1) + self.packed.diagonal().exp().diag()

    def matrix(self) -> Tensor:
        """L U P [d, d]."""
        lower, upper = self.factors()
        return (lower @ upper)[:, self.permutation.argsort()]

    @torch.no_grad()
    def rotate(self) -> None:
        """Start as a random orthogonal matrix, whose LU factors have a positive diagonal."""
        dim = len(self.bias)
        # Q = P L' U' by pivoting, so that Q^T = U'^T L'^T P^T, and U'^T = L diag(U')
        p, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q)
        size = upper.diagonal().abs()
        sign = upper.diagonal().sign()[:, None]  # of a row, which is as good a rotation with another one
        left, right = sign * (upper / upper.diagonal()[:, None]).T * sign.T, size[:, None] * lower.T
        self.permutation.copy_(p.argmax(0))
        self.packed.copy_(left.tril(-1) + right.triu(1) + size.log().diag())

    def whiten(self, x: Tensor) -> float:
        """Start as the map that gives x [N, d] mean 0 and covariance I: a Cholesky factor's inverse.

        Returns how far the covariance was shrunk towards its diagonal.
        """
        x = x[:, self.permutation].double()
        loc = x.mean(0)
        cov = (x - loc).T @ (x - loc) / len(x)
        # shrunk towards the diagonal, a little at the least: a singular covariance has no inverse
        extra = pseudo_rows(len(x), x.shape[1])
        shrinkage = max(SHRINKAGE, extra / (len(x) + extra))
        cov = (1 - shrinkage) * cov + shrinkage * cov.diagonal().clamp_min(SHRINKAGE).diag()
        white = torch.linalg.inv(torch.linalg.cholesky(cov))
        scale = white.diagonal()
        with torch.no_grad():
            self.packed.copy_((white / scale).tril(-1) + scale.log().diag())  # L = W diag(W)^-1, U = diag(W)
            self.bias.copy_(-white @ loc)
        return shrinkage

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        lower, upper = self.factors()
        z = torch.addmm(self.bias[:, None], lower, upper @ x.T[self.permutation])
        return Step(z.T, self.packed.diagonal().sum().expand(len(x)))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        lower, upper = self.factors()
        y = torch.linalg.solve_triangular(lower, z.T - self.bias[:, None], upper=False, unitriangular=True)
        y = torch.linalg.solve_triangular(upper, y, upper=True)
        return y[self.permutation.argsort()].T


class Delta(Distribution):
    """All mass on one point: the encoder q(z | x) of an invertible model, where z = f(x).

    ``log_prob`` is under counting measure on that point: 0 there, -inf elsewhere.

    Args:
        value: [*batch, *event].
        event_dim: the number of event dimensions.

    Example:
        >>> import torch
        >>> Delta(torch.tensor([[1.0, 2.0]])).log_prob(torch.tensor([[1.0, 2.0]]))
        tensor([0.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, value: Tensor, event_dim: int = 1) -> None:
        self.value = value
        split = value.ndim - event_dim
        super().__init__(value.shape[:split], value.shape[split:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def mode(self) -> Tensor:
        return self.value

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.value)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        same = (value == self.value).flatten(value.ndim - len(self.event_shape)).all(-1)
        return torch.where(same, 0.0, -torch.inf)

    def entropy(self) -> Tensor:
        return torch.zeros(self.batch_shape, device=self.value.device)
