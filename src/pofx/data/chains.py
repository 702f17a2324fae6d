"""Sources of data of free length whose density and entropy are known, as those of ``data.synthetic``.

Chain   steps of a finite set, each by the one before: texts, sounds, sequences of rows
Walk    vectors of reals that move by Gaussian steps: sequences
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pofx.data.synthetic import Gaussian, categorical, discrete_entropy, reals, tensor
from pofx.spaces import Audio, Category, Integer, Sequence, Table, Text


@dataclass(frozen=True, eq=False)
class Chain:
    """x_1 ~ start, x_t ~ transition[x_{t-1}]; after x_t the datum ends with probability stop[x_t].

    At ``space.length`` it ends for certain. Of excerpts (no ``space.has_eos``) every length from 1 to
    ``space.length`` is as likely, and given.

    Attributes:
        values: how each of the K states is written, [K, ...] of the space's dtype.
        start: [K]; transition: [K, K], rows sum to 1; stop: [K].
    """

    space: Text | Audio | Sequence
    values: Tensor
    start: Tensor
    transition: Tensor
    stop: Tensor

    @cached_property
    def entropy(self) -> float:
        """-E[log p(x)] in nats, of excerpts given their lengths."""
        move, end = discrete_entropy(self.transition), discrete_entropy(torch.stack([self.stop, 1 - self.stop], -1))
        total, alive = discrete_entropy(self.start), self.start
        for t in range(1, self.space.length):
            if self.space.has_eos:
                total = total + alive @ (end + (1 - self.stop) * move)
                alive = (alive * (1 - self.stop)) @ self.transition
            else:
                total = total + (1 - t / self.space.length) * (alive @ move)
                alive = alive @ self.transition
        return float(total)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        state = categorical(self.start.expand(n, -1), generator)
        goal = torch.randint(1, self.space.length + 1, (n,), generator=generator)
        states, over = [state], torch.zeros(n, dtype=torch.bool)
        for t in range(1, self.space.length):
            over = over | (chance(self.stop[state], generator) if self.space.has_eos else goal <= t)
            if over.all():
                break
            state = categorical(self.transition[state], generator)
            states.append(torch.where(over, -1, state))
        s = torch.stack(states, 1)
        ended = (s < 0).view(*s.shape, *[1] * (self.values.ndim - 1))  # as steps [N, L, ...] of values [K, ...]
        return torch.where(ended, self.space.fill, self.values[s]).to(self.space.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        s, size = self.states(x), self.space.lengths(x)
        here = torch.arange(s.shape[1]) < size[:, None]
        moves = self.transition.log()[s[:, :-1], s[:, 1:]]
        if self.space.has_eos:
            moves = moves + (1 - self.stop).log()[s[:, :-1]]
        nats = self.start.log()[s[:, 0]] + moves.masked_fill(~here[:, 1:], 0.0).sum(1)
        if self.space.has_eos:
            last = s.gather(1, (size[:, None] - 1).clamp(min=0))[:, 0]
            nats = nats + torch.where(size < self.space.length, self.stop.log()[last], 0.0)
        return nats.masked_fill((size == 0) | (size > self.space.length), -torch.inf)

    def states(self, x: Tensor) -> Tensor:
        """The state of each step of x [N, L, ...], 0 after the end."""
        steps, known = (t.double().nan_to_num(nan=-1e6) for t in (x[:, :, None], self.values))
        same = steps == known
        return (same if same.ndim == 3 else same.all(-1)).long().argmax(-1)


@dataclass(frozen=True, eq=False)
class Walk:
    """x_1 ~ first, x_t = decay x_{t-1} + step, in D dimensions; each datum ends after a step with probability ``stop``.

    At ``length`` it ends for certain.
    """

    first: Gaussian
    step: Gaussian
    decay: float = 0.8
    stop: float = 0.3
    length: int = 8

    @property
    def space(self) -> Sequence:
        return Sequence(reals(len(self.first.mean)), True, self.length)

    @cached_property
    def entropy(self) -> float:
        end = float(discrete_entropy(tensor([self.stop, 1 - self.stop])))
        alive = [(1 - self.stop) ** t for t in range(self.length - 1)]  # that step t + 1 exists
        return self.first.entropy + sum(p * (end + (1 - self.stop) * self.step.entropy) for p in alive)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        x, over = [self.first.sample(n, generator)], torch.zeros(n, dtype=torch.bool)
        out = [x[0]]
        for _ in range(1, self.length):
            over = over | chance(torch.full((n,), self.stop), generator)
            x.append(self.decay * x[-1] + self.step.sample(n, generator))
            out.append(torch.where(over[:, None], torch.inf, x[-1]))
        return torch.stack(out, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        size = self.space.lengths(x)
        v = x.masked_fill(x.isinf(), 0.0)
        moves = self.step.log_prob((v[:, 1:] - self.decay * v[:, :-1]).flatten(0, 1)).view(len(x), -1)
        here = torch.arange(1, x.shape[1]) < size[:, None]
        on, end = tensor(1 - self.stop).log(), tensor(self.stop).log()
        nats = self.first.log_prob(v[:, 0]) + (moves + on).masked_fill(~here, 0.0).sum(1)
        nats = nats + torch.where(size < self.length, end, 0.0)
        return nats.masked_fill((size == 0) | (size > self.length), -torch.inf)


def chance(p: Tensor, generator: torch.Generator) -> Tensor:
    """True with probability p [N]."""
    return torch.rand(len(p), generator=generator, dtype=torch.float64) < p


# ---------------------------------------------------------------------------------------- by name


def strings(flip: bool = False) -> Chain:
    """Short documents of three letters: after "b" every second one ends. ``flip`` reverses the rows of the rule."""
    transition = tensor([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])
    start, stop = tensor([0.5, 0.3, 0.2]), tensor([0.15, 0.5, 0.3])
    if flip:
        transition, start = transition.flip(1), start.flip(0)
    return Chain(Text("abc", True, 12), torch.arange(3), start, transition, stop)


def excerpts() -> Chain:
    """Excerpts of 1 to 10 letters "a" and "b" that like to alternate."""
    return Chain(
        Text("ab", False, 10), torch.arange(2), tensor([0.7, 0.3]), tensor([[0.2, 0.8], [0.9, 0.1]]), tensor([0.0, 0.0])
    )


def levels(count: int = 8, length: int = 40) -> Chain:
    """Sounds that move between neighbouring levels, many of them longer than a small net's context of 32."""
    k = torch.arange(count, dtype=torch.float64)
    transition = torch.softmax(-1.5 * (k[:, None] - k).abs(), 1)
    stop = torch.full((count,), 0.02, dtype=torch.float64)
    return Chain(Audio(100, count, "linear", True, length), k.long(), torch.softmax(-0.5 * k, 0), transition, stop)


def rows() -> Chain:
    """Sequences of a category (sometimes missing) and a small integer, which follow each other."""
    space = Sequence(Table((Category("kind", ("a", "b"), nullable=True), Integer("count", 0, 3))), True, 8)
    kinds = tensor([0.0, 1.0, torch.nan])
    values = torch.cartesian_prod(kinds, torch.arange(4, dtype=torch.float64))
    k = torch.arange(len(values), dtype=torch.float64)
    transition = torch.softmax(-0.4 * ((5 * k[:, None] + 2) % 12 - k).abs(), 1)
    stop = torch.where(values[:, 0].isnan(), 0.5, 0.2)
    return Chain(space, values, torch.softmax(-0.2 * k, 0), transition, stop)


def walk() -> Walk:
    """A correlated pair that wanders."""
    first = Gaussian(tensor([1.0, -0.5]), tensor([[1.0, 0.5], [0.5, 0.6]]))
    step = Gaussian(tensor([0.1, 0.2]), tensor([[0.3, -0.15], [-0.15, 0.25]]))
    return Walk(first, step)
