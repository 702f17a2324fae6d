"""Nets of latents in groups, z_1 at the top: one drawn after the other on the way down, each told by what was drawn
above it, and (of the proposal) by features of the datum that were made on the way up.

``Ladder`` is of vectors (Sønderby et al. 2016), ``Deep`` of images at several resolutions (Child 2021).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.mlp import Mlp, at_least_single, zeroed

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LIMITS = -7.0, 4.0  # of log-scales


@dataclass(frozen=True)
class Normals:
    """Independent normals, mean and log-scale [M, D] each."""

    mean: Tensor
    log_scale: Tensor

    def at(self, eps: Tensor) -> Tensor:
        """The draws [M, D] that standard normal noise [M, D] stands for."""
        return self.mean + self.log_scale.exp() * eps

    def noise(self, z: Tensor) -> Tensor:
        """The inverse of ``at``."""
        return (z - self.mean) * (-self.log_scale).exp()

    def log_prob(self, z: Tensor) -> Tensor:
        """Of z [M, D]: [M]."""
        return self._log_probs(z).sum(1) - z.shape[1] * HALF_LOG_2PI

    def log_ratio(self, other: Normals, z: Tensor) -> Tensor:
        """log self(z) - log other(z) [M], of z [M, D]: dimensions that both agree on cancel before they are summed."""
        return (self._log_probs(z) - other._log_probs(z)).sum(1)

    def divergence(self, other: Normals) -> Tensor:
        """KL(self || other) [M]."""
        return self.divergences(other).sum(1)

    def divergences(self, other: Normals) -> Tensor:
        """That of every dimension [M, D]."""
        ratio = self.log_scale - other.log_scale
        shift = (self.mean - other.mean) * (-other.log_scale).exp()
        return 0.5 * (shift.square() + (2 * ratio).exp() - 1) - ratio

    def _log_probs(self, z: Tensor) -> Tensor:
        return -0.5 * self.noise(z).square() - self.log_scale


class Groups(nn.Module, ABC):
    """All nets of a hierarchy. The state of the way down is the net's own; it has M = N k rows, k of each datum.

    Attributes:
        sizes: dimensions of each group of latents, from the top.
        widest: numbers of the largest layer of one row.
    """

    sizes: tuple[int, ...]
    widest: int
    ends: ClassVar[tuple[str, ...]]  # how the names of the first and the last layers begin

    @abstractmethod
    def up(self, y: Tensor, h: Tensor | None) -> list[Tensor]:
        """What data y [N, ...], given a context's vector h [N, W], tell each group: [N, ...] of each."""

    @abstractmethod
    def start(self, n: int, h: Tensor | None) -> Any:
        """The state of n rows before any group, given h [n, W]."""

    @abstractmethod
    def prior(self, g: int, state: Any) -> tuple[Normals, Any]:
        """p(z_g | z_<g, c), and the state that goes on."""

    @abstractmethod
    def posterior(self, g: int, state: Any, told: Tensor, prior: Normals) -> Normals:
        """q(z_g | z_<g, x, c), told [N, ...] of each datum by ``up``, given the state before ``prior``."""

    @abstractmethod
    def absorb(self, g: int, state: Any, z: Tensor) -> Any:
        """The state that knows z_g [M, D], too."""

    @abstractmethod
    def out(self, state: Any) -> Tensor:
        """The decoder's output [M, ...]."""

    def matrices(self) -> list[Tensor]:
        """Matrices and kernels that Muon may take: those at the ends are Adam's."""
        return [p for name, p in self.named_parameters() if p.ndim in (2, 4) and not name.startswith(self.ends)]


def repeated(t: Tensor, m: int) -> Tensor:
    """Each of N rows m / N times in a row: [m, ...]."""
    return t if len(t) == m else t.repeat_interleave(m // len(t), 0)


# -- vectors ------------------------------------------------------------------------------------------------------


class Ladder(Groups):
    """MLPs between vectors: z_1 ~ N(0, I), each further group and the data told by the one above (and the context).

    The proposal of a group is what the way up says of it, and a learned share, at first none, of the prior's mean and
    log-scale given the groups above. Where both are weighted by their precisions (Sønderby et al. 2016, section
    2.2), the prior holds the proposal back from the first step on, and groups collapse onto it more easily.

    Args:
        features, outputs: widths of the data as nets see them, and of the decoder's output.
        sizes: dimensions of each group, from the top.
        hidden, blocks: of the MLPs.
        context: width of h.
    """

    ends = ("says", "shares")
    ups: Any  # lists of modules
    says: Any
    downs: Any

    def __init__(
        self, features: int, outputs: int, sizes: tuple[int, ...], *, hidden: int, blocks: int, context: int
    ) -> None:
        super().__init__()
        self.sizes, self.widest = sizes, max(hidden, features, outputs)
        shape = {"hidden": hidden, "blocks": blocks}
        widths = [features] + [hidden] * (len(sizes) - 1)  # of what the steps up start from, from the bottom
        self.ups = nn.ModuleList(Mlp(width, hidden, context=context, **shape) for width in widths)
        self.says = nn.ModuleList(nn.Linear(hidden, 2 * size) for size in sizes)
        for net, says in zip(self.ups, self.says, strict=True):  # what is told must not fade on its way
            nn.init.kaiming_normal_(net.last.weight)
            nn.init.kaiming_normal_(says.weight)
        self.shares = nn.ParameterList(torch.zeros(2, size) for size in sizes[1:])
        below = [*(2 * size for size in sizes[1:]), outputs]
        self.downs = nn.ModuleList(Mlp(a + context, b, **shape) for a, b in zip(sizes, below, strict=True))

    def up(self, y: Tensor, h: Tensor | None) -> list[Tensor]:
        found = []
        for net, says in zip(self.ups, reversed(self.says), strict=True):
            y = net(y, h)
            found.append(says(F.silu(y)))
        return found[::-1]

    def start(self, n: int, h: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.says[0].weight.new_zeros(n, 2 * self.sizes[0]), h

    def prior(self, g: int, state: tuple[Tensor, Tensor | None]) -> tuple[Normals, tuple[Tensor, Tensor | None]]:
        mean, log_scale = state[0].chunk(2, 1)
        return Normals(mean, log_scale.clamp(*LIMITS)), state

    def posterior(self, g: int, state: Any, told: Tensor, prior: Normals) -> Normals:
        mean, log_scale = repeated(told, len(prior.mean)).chunk(2, 1)
        if g:  # there is nothing above the first
            of_mean, of_scale = self.shares[g - 1]
            mean, log_scale = mean + of_mean * prior.mean, log_scale + of_scale * prior.log_scale
        return Normals(mean, log_scale.clamp(*LIMITS))

    def absorb(self, g: int, state: tuple[Tensor, Tensor | None], z: Tensor) -> tuple[Tensor, Tensor | None]:
        h = state[1]
        return self.downs[g](z if h is None else torch.cat([z, h], 1)), h

    def out(self, state: tuple[Tensor, Tensor | None]) -> Tensor:
        return state[0]


# -- images -------------------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 pixels a side, fewer channels in the middle (Child 2021, figure 3; He et al. 2016)."""

    def __init__(self, inputs: int, middle: int, outputs: int, side: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, middle, 1)
        self.middle = nn.Conv2d(middle, middle, 3, padding=1) if side > 1 else nn.Conv2d(middle, middle, 1)
        self.last = nn.Conv2d(middle, outputs, 1)

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        y = self.first(F.silu(x))
        y = y if told is None else y + told
        return self.last(F.silu(self.middle(F.silu(y))))


class _Group(nn.Module):
    """One group of latents at one resolution: ``latent`` numbers at each place."""

    def __init__(self, width: int, latent: int, side: int, depth: int) -> None:
        super().__init__()
        middle = width // 2
        self.prior = Bottleneck(width, middle, 2 * latent + width, side)
        self.posterior = Bottleneck(width, middle, 2 * latent, side)
        self.told = nn.Conv2d(width, middle, 1)  # the rest of the posterior's first layer: once a datum, not a draw
        self.put = nn.Conv2d(latent, width, 1)
        self.block = Bottleneck(width, middle, width, side)
        zeroed(self.prior.last)
        zeroed(self.block.last)
        with torch.no_grad():
            self.put.weight /= math.sqrt(depth)  # the sum of many stays of one size


class Deep(Groups):
    """Residual bottleneck blocks from the image up to a single place and down again, latents at every resolution.

    The way down has a stream of features that every group adds to. The proposal is told relative to the prior,
    q = N(m + s d, (s e^r)^2) for the prior N(m, s^2) (Vahdat & Kautz 2020, section 3.2), so that its KL, of d and r
    alone, starts small at every depth. Where Child's blocks have two convolutions of 3 pixels, these have one.

    Args:
        shape: (C, H, W) of the data as nets see them.
        outputs: channels of the decoder's output at full size.
        groups: how many at each resolution, the first a single place, each further one twice as fine as the one before;
            the last at half the image's size.
        latent: numbers at each place in a group.
        channels: of the finest resolution, doubled from one to the next coarser, up to four times as many.
        blocks: residual blocks at each resolution on the way up.
        context: width of h.
    """

    ends = ("stem", "biases", "last")
    climbs: Any  # lists of modules
    pools: Any
    opens: Any
    groups: Any

    def __init__(
        self, shape: tuple[int, ...], outputs: int, groups: tuple[int, ...], *, latent: int, channels: int,
        blocks: int, context: int,
    ) -> None:  # fmt: skip
        super().__init__()
        c, height, width = shape
        self.pixels, self.latent = (height, width), latent
        places = [(math.ceil(height / 2), math.ceil(width / 2))]
        while len(places) < len(groups) - 1:
            places.append((math.ceil(places[-1][0] / 2), math.ceil(places[-1][1] / 2)))
        self.places = [(1, 1), *places[::-1]][-len(groups) :]  # of every resolution, from the top
        widths = [channels * min(4, 2**i) for i in reversed(range(len(groups)))]
        self.levels = [level for level, count in enumerate(groups) for _ in range(count)]  # of every group
        self.sizes = tuple(latent * math.prod(self.places[level]) for level in self.levels)
        layers = [w * math.prod(place) for w, place in zip(widths, self.places, strict=True)]
        self.widest = max(*layers, outputs * height * width)
        sides = [max(place) for place in self.places]
        self.stem = nn.Conv2d(c, channels, 5, stride=2, padding=2)
        self.climbs = nn.ModuleList(
            nn.ModuleList(_last_zero(Bottleneck(w, w // 2, w, side)) for _ in range(blocks))
            for w, side in zip(widths, sides, strict=True)
        )
        steps = list(zip(widths, widths[1:], self.places[1:], strict=False))  # from each resolution to the next finer
        self.pools = nn.ModuleList(
            nn.Conv2d(fine, coarse, 1 if i else place) for i, (coarse, fine, place) in enumerate(steps)
        )
        self.opens = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1) if i else nn.Linear(coarse, fine * math.prod(place))
            for i, (coarse, fine, place) in enumerate(steps)
        )
        self.biases = nn.ParameterList(torch.zeros(w, *place) for w, place in zip(widths, self.places, strict=True))
        nn.init.normal_(self.biases[0])
        self.context = nn.Linear(context, widths[0]) if context else None
        self.groups = nn.ModuleList(
            _Group(widths[level], latent, sides[level], len(self.levels)) for level in self.levels
        )
        self.last = zeroed(nn.Conv2d(channels, 4 * outputs, 1))

    def up(self, y: Tensor, h: Tensor | None) -> list[Tensor]:
        y = self.stem(y.contiguous(memory_format=torch.channels_last))
        features: list[Tensor] = []
        for level in reversed(range(len(self.places))):
            for block in self.climbs[level]:
                y = y + block(y)
            features.append(F.silu(y))
            if level:
                y = y if level == 1 else F.adaptive_avg_pool2d(y, self.places[level - 1])
                y = self.pools[level - 1](y)
        features.reverse()
        return [group.told(features[level]) for group, level in zip(self.groups, self.levels, strict=True)]

    def start(self, n: int, h: Tensor | None) -> tuple[int, Tensor]:
        state = self.biases[0].expand(n, -1, -1, -1)
        if self.context is not None:
            assert h is not None
            state = state + self.context(h)[:, :, None, None]
        return 0, state

    def prior(self, g: int, state: tuple[int, Tensor]) -> tuple[Normals, tuple[int, Tensor]]:
        level, x = state
        y = self.groups[g].prior(x)
        mean, log_scale, more = y.split([self.latent, self.latent, y.shape[1] - 2 * self.latent], 1)
        return Normals(_flat(mean), _flat(log_scale).clamp(*LIMITS)), (level, x + more)

    def posterior(self, g: int, state: tuple[int, Tensor], told: Tensor, prior: Normals) -> Normals:
        x = state[1]
        move, ratio = (_flat(t) for t in self.groups[g].posterior(x, repeated(told, len(x))).chunk(2, 1))
        log_scale = (prior.log_scale + ratio).clamp(*LIMITS)
        return Normals(prior.mean + prior.log_scale.exp() * move, log_scale)

    def absorb(self, g: int, state: tuple[int, Tensor], z: Tensor) -> tuple[int, Tensor]:
        (level, x), group = state, self.groups[g]
        z = z.unflatten(1, (self.latent, *self.places[level])).contiguous(memory_format=torch.channels_last)
        x = x + group.put(z)
        x = x + group.block(x)
        return self._open(level, self.levels[min(g + 1, len(self.levels) - 1)], x)

    def out(self, state: tuple[int, Tensor]) -> Tensor:
        y = F.pixel_shuffle(self.last(F.silu(state[1])), 2)
        return at_least_single(y[..., : self.pixels[0], : self.pixels[1]])

    def _open(self, level: int, finer: int, x: Tensor) -> tuple[int, Tensor]:
        """The state at the same or the next finer resolution: from a single place by a linear layer, else repeated."""
        if finer == level:
            return level, x
        if level == 0:
            x = self.opens[0](x.flatten(1)).unflatten(1, (-1, *self.places[1]))
            x = x.contiguous(memory_format=torch.channels_last)
        else:
            x = F.interpolate(self.opens[level](x), self.places[finer])
        return finer, x + self.biases[finer]


def _last_zero(block: Bottleneck) -> Bottleneck:
    """It adds nothing to its stream at the start."""
    zeroed(block.last)
    return block


def _flat(x: Tensor) -> Tensor:
    return at_least_single(x).flatten(1)
