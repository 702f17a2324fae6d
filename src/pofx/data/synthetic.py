"""Sources whose density and entropy are known: what no model can beat, and what tests measure against.

Every source has a space, exact ``log_prob`` (nats, float64), ``sample``, and ``entropy`` in nats: of a
probability where the space counts, differential (in the columns' raw units) where it has a density.

    Markov          finite chain, as a table of categories or a one-row image
    Ising           h x w spins by enumeration of all 2^(hw) states
    Gaussian        any mean and covariance
    LinearGaussian  x = W z + m + noise, z ~ N(0, I): what a linear VAE or factor analysis can reach
    Mixture         of the plane densities Gaussian, Ring, Petal, Square; labelled by its part
    MixedTable      categories, an integer, a grid and a nullable real in one table

Those of data of free length are in ``data.chains``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.space import Space, join
from pofx.spaces import Category, Image, Integer, Real, Table


@runtime_checkable
class Source(Protocol):
    """A known distribution over ``space``."""

    @property
    def space(self) -> Space: ...

    @property
    def entropy(self) -> float:
        """-E[log p(x)] in nats."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent draws [n, *E] of ``space.dtype``."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) [N] float64 of x [N, *E]; -inf outside the support."""
        ...


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def discrete_entropy(p: Tensor) -> Tensor:
    """-sum p log p over the last dimension, with 0 log 0 = 0."""
    return -torch.xlogy(p, p).sum(-1)


def categorical(p: Tensor, generator: torch.Generator) -> Tensor:
    """One draw per row of p [N, K], by inverting the distribution function in float64."""
    cdf = p.cumsum(-1)
    u = torch.rand(len(p), 1, generator=generator, dtype=torch.float64) * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True).squeeze(-1).clamp_(max=p.shape[-1] - 1)


# ----------------------------------------------------------------------------------------- discrete


@dataclass(frozen=True, eq=False)
class Markov:
    """A stationary-rule chain: x_1 ~ start, x_t ~ transition[x_{t-1}], t = 2 .. length.

    One x is a table row of ``length`` categories, or with ``image`` a 1 x length image of K levels.
    """

    start: Tensor  # [K]
    transition: Tensor  # [K, K], rows sum to 1
    length: int
    image: bool = False

    @property
    def space(self) -> Space:
        levels = len(self.start)
        if self.image:
            return Image(height=1, width=self.length, channels=1, levels=levels)
        spellings = tuple(str(k) for k in range(levels))
        return Table(tuple(Category(f"t{t}", spellings) for t in range(1, self.length + 1)))

    @cached_property
    def entropy(self) -> float:
        # chain rule: H(x_1) + sum_t E[H(x_t | x_{t-1})]
        total, p = discrete_entropy(self.start), self.start
        for _ in range(self.length - 1):
            total = total + p @ discrete_entropy(self.transition)
            p = p @ self.transition
        return float(total)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        states = [categorical(self.start.expand(n, -1), generator)]
        for _ in range(self.length - 1):
            states.append(categorical(self.transition[states[-1]], generator))
        return torch.stack(states, -1).reshape(n, *self.space.event_shape).to(self.space.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        s = x.reshape(len(x), self.length).long()
        return self.start.log()[s[:, 0]] + self.transition.log()[s[:, :-1], s[:, 1:]].sum(-1)


@dataclass(frozen=True, eq=False)
class Ising:
    """p(s) = exp(coupling * sum_<ij> s_i s_j + field * sum_i s_i) / Z on a free h x w grid, s in {-1, +1}.

    One x is an image of 2 levels (0 is spin -1). Z is a sum over all states, so h * w is at most 20.
    """

    height: int = 3
    width: int = 3
    coupling: float = 0.5
    field: float = 0.1

    def __post_init__(self) -> None:
        if self.height * self.width > 20:
            raise UsageError(f"{self.height}×{self.width} spins have too many states to enumerate.", "Use at most 20.")

    @property
    def space(self) -> Image:
        return Image(self.height, self.width, channels=1, levels=2)

    @cached_property
    def states(self) -> Tensor:
        """All images [2^(hw), 1, h, w]."""
        sites = self.height * self.width
        bits = torch.arange(2**sites)[:, None] >> torch.arange(sites) & 1
        return bits.reshape(-1, 1, self.height, self.width).to(torch.uint8)

    @cached_property
    def log_z(self) -> float:
        return float(self.log_weight(self.states).logsumexp(0))

    @cached_property
    def entropy(self) -> float:
        return float(discrete_entropy(self.log_prob(self.states).exp()))

    def log_weight(self, x: Tensor) -> Tensor:
        s = 2 * x.double().squeeze(1) - 1
        bonds = (s[:, 1:] * s[:, :-1]).sum((1, 2)) + (s[:, :, 1:] * s[:, :, :-1]).sum((1, 2))
        return self.coupling * bonds + self.field * s.sum((1, 2))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        p = self.log_prob(self.states).exp()
        return self.states[torch.searchsorted(p.cumsum(0), _uniform(n, generator)).clamp_(max=len(p) - 1)]

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_weight(x) - self.log_z


# --------------------------------------------------------------------------------------- continuous


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance) over real columns x1 .. xD."""

    mean: Tensor  # [D]
    covariance: Tensor  # [D, D]

    @property
    def space(self) -> Table:
        return reals(len(self.mean))

    @cached_property
    def cholesky(self) -> Tensor:
        return torch.linalg.cholesky(self.covariance)

    @cached_property
    def entropy(self) -> float:
        return float(len(self.mean) / 2 * math.log(2 * math.pi * math.e) + self.cholesky.diagonal().log().sum())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + noise @ self.cholesky.T

    def log_prob(self, x: Tensor) -> Tensor:
        z = torch.linalg.solve_triangular(self.cholesky, (x.double() - self.mean).T, upper=False)
        constant = len(self.mean) / 2 * math.log(2 * math.pi) + self.cholesky.diagonal().log().sum()
        return -0.5 * z.square().sum(0) - constant


class LinearGaussian(Gaussian):
    """x = W z + mean + noise * eps with z ~ N(0, I_L): marginally N(mean, W W' + noise^2 I).

    Probabilistic PCA (Tipping and Bishop 1999), where every quantity of a latent-variable model is known.
    """

    def __init__(self, weight: Tensor, mean: Tensor, noise: float) -> None:
        """weight [D, L], mean [D]"""
        super().__init__(mean, weight @ weight.T + noise**2 * torch.eye(len(mean), dtype=torch.float64))
        self.weight, self.noise = weight, noise

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [N, L] and covariance [L, L] of p(z | x): M^-1 W'(x - mean), noise^2 M^-1, M = W'W + noise^2 I."""
        m = self.weight.T @ self.weight + self.noise**2 * torch.eye(self.weight.shape[1], dtype=torch.float64)
        inverse = torch.linalg.inv(m)
        return (x - self.mean) @ self.weight @ inverse, self.noise**2 * inverse


class Plane:
    """What has two real columns."""

    @property
    def space(self) -> Table:
        return reals(2)


@dataclass(frozen=True, eq=False)
class Ring(Plane):
    """A circle of ``radius`` about the origin, blurred by N(0, scale^2 I): the radius is Rice distributed."""

    radius: float
    scale: float

    @cached_property
    def entropy(self) -> float:
        return plane_entropy(self)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        angle = 2 * math.pi * _uniform(n, generator)
        circle = self.radius * torch.stack([angle.cos(), angle.sin()], -1)
        return circle + self.scale * torch.randn(n, 2, generator=generator, dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        # averaging the Gaussian over the circle: exp(-(r^2 + R^2) / 2s^2) I_0(r R / s^2) / 2 pi s^2
        r, var = x.double().norm(dim=-1), self.scale**2
        bessel = torch.special.i0e(r * self.radius / var).log()
        return bessel - (r - self.radius).square() / (2 * var) - math.log(2 * math.pi * var)


@dataclass(frozen=True, eq=False)
class Petal(Plane):
    """One arm of a pinwheel: N((1, 0), diag(radial^2, tangential^2)) turned by ``angle`` + ``twist`` * |x|.

    A turn by an angle that depends on the radius alone preserves area, so density and entropy are the
    Gaussian's own.
    """

    angle: float
    twist: float = 1.5
    radial: float = 0.3
    tangential: float = 0.08

    @property
    def straight(self) -> Gaussian:
        return Gaussian(tensor([1.0, 0.0]), torch.diag(tensor([self.radial**2, self.tangential**2])))

    @property
    def entropy(self) -> float:
        return self.straight.entropy

    def turn(self, x: Tensor, sign: int) -> Tensor:
        phi = sign * (self.angle + self.twist * x.norm(dim=-1))
        a, b = x.unbind(-1)
        return torch.stack([a * phi.cos() - b * phi.sin(), a * phi.sin() + b * phi.cos()], -1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.turn(self.straight.sample(n, generator), +1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.straight.log_prob(self.turn(x.double(), -1))


@dataclass(frozen=True, eq=False)
class Square(Plane):
    """Uniform on [left, left + side) x [bottom, bottom + side)."""

    left: float
    bottom: float
    side: float

    @property
    def entropy(self) -> float:
        return 2 * math.log(self.side)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return tensor([self.left, self.bottom]) + self.side * u

    def log_prob(self, x: Tensor) -> Tensor:
        u = (x.double() - tensor([self.left, self.bottom])) / self.side
        inside = ((u >= 0) & (u < 1)).all(-1)
        return torch.where(inside, tensor(-self.entropy), -math.inf)


@dataclass(frozen=True, eq=False)
class Mixture:
    """sum_k weights[k] parts[k]; a draw's label is its part.

    The entropy is the quadrature of -p log p over the plane unless ``exact_entropy`` is known (parts on
    disjoint supports: H(weights) + sum of weighted entropies).
    """

    weights: Tensor  # [K]
    parts: tuple[Source, ...]
    exact_entropy: float | None = None

    @property
    def space(self) -> Space:
        return self.parts[0].space

    @cached_property
    def entropy(self) -> float:
        return plane_entropy(self) if self.exact_entropy is None else self.exact_entropy

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.sample_labelled(n, generator)[0]

    def sample_labelled(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws [n, *E] and their labels [n] int64."""
        label = categorical(self.weights.expand(n, -1), generator)
        return self.sample_given(label, generator), label

    def sample_given(self, label: Tensor, generator: torch.Generator) -> Tensor:
        """A draw [n, *E] of the part of each label [n]."""
        drawn = [part.sample(int((label == k).sum()), generator) for k, part in enumerate(self.parts)]
        return join(self.space, drawn)[label.argsort(stable=True).argsort()]

    def log_prob(self, x: Tensor) -> Tensor:
        total = torch.full((len(x),), -math.inf, dtype=torch.float64)
        for w, part in zip(self.weights, self.parts, strict=True):
            total = torch.logaddexp(total, w.log() + part.log_prob(x))
        return total

    def log_prob_given(self, x: Tensor, label: Tensor) -> Tensor:
        """log p(x | label) [N] of x [N, *E] and labels [N]."""
        out = torch.empty(len(x), dtype=torch.float64)
        for k, part in enumerate(self.parts):
            out[label == k] = part.log_prob(x[label == k])
        return out


def plane_entropy(source: Source, reach: float = 5.0, points: int = 301) -> float:
    """-∫ p log p over [-reach, reach]^2 by the trapezoid rule, which converges faster than any power for
    a smooth density that vanishes at the border."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    log_p = source.log_prob(torch.cartesian_prod(axis, axis))
    cell = (2 * reach / (points - 1)) ** 2
    return float(-(log_p.exp() * log_p.clamp(min=-1e4)).sum() * cell)


def reals(d: int) -> Table:
    return Table(tuple(Real(f"x{j}") for j in range(1, d + 1)))


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


# -------------------------------------------------------------------------------------- mixed table


@dataclass(frozen=True, eq=False)
class MixedTable:
    """Every type of column at once, all dependent, with missing values in a category and in a real.

        colour  category of 3                    count  integer, Binomial(8, q[colour])
        price   grid of step 0.25, 1 + 0.25 Binomial(6, r[colour])
        grade   category, missing with probability 0.15, else "high" with odds exp(count - 4)
        size    real, missing with probability m[colour], else N(a[colour] + 0.5 count, s[colour]^2)

    The discrete part is one enumerated table of probabilities; given it, size is a nullable Gaussian.
    """

    space: Table = field(
        default=Table(
            (
                Category("colour", ("blue", "green", "red")),
                Integer("count", 0, 8),
                Real("price", step=0.25, origin=1.0, low=1.0, high=2.5),
                Category("grade", ("high", "low"), nullable=True),
                Real("size", nullable=True),
            )
        ),
        init=False,
    )

    @cached_property
    def cells(self) -> Tensor:
        """P(colour, count, price step, grade) [3, 9, 7, 3]; grade 2 is missing."""
        colour = tensor([0.5, 0.3, 0.2])
        count = _binomial(8, tensor([0.2, 0.5, 0.75]))  # [3, 9]
        price = _binomial(6, tensor([0.6, 0.3, 0.8]))  # [3, 7]
        high = torch.sigmoid(torch.arange(9, dtype=torch.float64) - 4)
        grade = torch.stack([0.85 * high, 0.85 * (1 - high), torch.full((9,), 0.15, dtype=torch.float64)], -1)
        return torch.einsum("c,cn,cp,ng->cnpg", colour, count, price, grade)

    missing = tensor([0.1, 0.4, 0.2])  # of size, given colour
    offset = tensor([0.0, 3.0, -2.0])
    scale = tensor([0.5, 0.3, 1.0])

    @cached_property
    def entropy(self) -> float:
        colour = self.cells.sum((1, 2, 3))
        atom = discrete_entropy(torch.stack([self.missing, 1 - self.missing], -1))
        gaussian = (2 * math.pi * math.e * self.scale.square()).log() / 2
        return float(discrete_entropy(self.cells.flatten()) + colour @ (atom + (1 - self.missing) * gaussian))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        cell = torch.searchsorted(self.cells.flatten().cumsum(0), _uniform(n, generator))
        colour, count, price, grade = torch.unravel_index(cell.clamp_(max=self.cells.numel() - 1), self.cells.shape)
        noise = torch.randn(n, generator=generator, dtype=torch.float64)
        size = self.offset[colour] + 0.5 * count + self.scale[colour] * noise
        size[_uniform(n, generator) < self.missing[colour]] = math.nan
        grade = torch.where(grade == 2, math.nan, grade.double())
        return torch.stack([colour.double(), count.double(), 1 + 0.25 * price, grade, size], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        colour, count, grade = x[:, 0].long(), x[:, 1].long(), x[:, 3].nan_to_num(2).long()
        price = ((x[:, 2] - 1) / 0.25).round().long()
        inside = (count >= 0) & (count <= 8) & (price >= 0) & (price <= 6)
        cell = self.cells.log()[colour, count.clamp(0, 8), price.clamp(0, 6), grade]
        z = (x[:, 4] - self.offset[colour] - 0.5 * count) / self.scale[colour]
        density = -0.5 * z.square() - self.scale[colour].log() - 0.5 * math.log(2 * math.pi)
        size = torch.where(x[:, 4].isnan(), self.missing[colour].log(), (1 - self.missing[colour]).log() + density)
        return torch.where(inside, cell + size, -math.inf)


def _binomial(n: int, p: Tensor) -> Tensor:
    """P(k) for k = 0 .. n [*, n + 1]."""
    k = torch.arange(n + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return (ways + k * p[..., None].log() + (n - k) * (1 - p[..., None]).log()).exp()


# ----------------------------------------------------------------------------------- by name


def equal(parts: Sequence[Source], exact_entropy: float | None = None) -> Mixture:
    return Mixture(torch.full((len(parts),), 1 / len(parts), dtype=torch.float64), tuple(parts), exact_entropy)


def blob(x: float, y: float, scale: float) -> Gaussian:
    return Gaussian(tensor([x, y]), scale**2 * torch.eye(2, dtype=torch.float64))


def two_moons(scale: float = 0.1) -> Mixture:
    """Two interleaved half circles, each a fine chain of Gaussians (so that the density is closed).

    Example:
        >>> import torch
        >>> moons = two_moons()
        >>> x = moons.sample(2000, torch.Generator().manual_seed(0))
        >>> abs(-moons.log_prob(x).mean() - moons.entropy).item() < 0.1  # what no model can beat
        True
    """
    angles = [math.pi * (i + 0.5) / 40 for i in range(40)]
    upper = equal([blob(math.cos(a) - 0.5, math.sin(a) - 0.25, scale) for a in angles])
    lower = equal([blob(0.5 - math.cos(a), 0.25 - math.sin(a), scale) for a in angles])
    return equal([upper, lower])


def rings() -> Mixture:
    return equal([Ring(radius, 0.1) for radius in (0.75, 1.75, 2.75)])


def pinwheel() -> Mixture:
    return equal([Petal(2 * math.pi * k / 5) for k in range(5)])


def checkerboard() -> Mixture:
    """Uniform on the 8 dark squares of a 4 x 4 board on [-2, 2]^2.

    Example:
        >>> board = checkerboard()
        >>> board.log_prob(tensor([[-1.5, -1.5], [-1.5, -0.5]])).tolist()  # a dark square, and a light one
        [-2.0794..., -inf]
    """
    dark = [Square(i - 2.0, j - 2.0, 1.0) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    return equal(dark, exact_entropy=math.log(8))


def gaussian_mixture() -> Mixture:
    """Eight Gaussians on a circle of radius 2."""
    turn = [2 * math.pi * k / 8 for k in range(8)]
    return equal([blob(2 * math.cos(a), 2 * math.sin(a), 0.2) for a in turn])


def gaussian(d: int = 4) -> Gaussian:
    """A correlated Gaussian away from the origin, its columns on different scales.

    Example:
        >>> import torch
        >>> source = gaussian(2)
        >>> x = source.sample(5000, torch.Generator().manual_seed(0))
        >>> abs(-source.log_prob(x).mean() - source.entropy).item() < 0.1
        True
    """
    scale = 2.0 ** torch.arange(d, dtype=torch.float64)
    distance = (torch.arange(d)[:, None] - torch.arange(d)).abs()
    return Gaussian(3 * scale, scale[:, None] * 0.6 ** distance.double() * scale)


def linear_gaussian(d: int = 6, latent: int = 2, noise: float = 0.5) -> LinearGaussian:
    weight = torch.randn(d, latent, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return LinearGaussian(weight, torch.linspace(-1, 1, d, dtype=torch.float64), noise)


def markov(length: int = 6, image: bool = False) -> Markov:
    """A sticky chain of three states."""
    transition = tensor([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])
    return Markov(tensor([0.5, 0.3, 0.2]), transition, length, image)


SOURCES: dict[str, Callable[[], Source]] = {
    "two-moons": two_moons,
    "rings": rings,
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
    "gaussian-mixture": gaussian_mixture,
    "gaussian": gaussian,
    "linear-gaussian": linear_gaussian,
    "markov": markov,
    "markov-image": lambda: markov(8, image=True),
    "ising": Ising,
    "mixed-table": MixedTable,
}
"""Built-in synthetic sets by the name that ``pofx.load`` takes."""
