"""The cases of the conformance suite: small sources whose truth is known, with everything that can be summed."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pofx.core.space import Space
from pofx.data import chains, synthetic
from pofx.data.parts import Data, Part
from pofx.data.ragged import RaggedRows
from pofx.data.synthetic import Mixture, Source
from pofx.spaces import Audio, Category, Image, Integer, Label, Pair, Real, Reals, Table, Text


@dataclass(frozen=True, eq=False)
class Case:
    """A source, what is conditioned on, and how to sum or integrate over its space.

    ``states`` enumerates a finite space [M, *E]; ``grid`` covers all but a negligible part of a plane
    [M, 2], each point standing for ``cell`` units of area; both are None where neither is possible.

    Of data of free length, ``steps`` does this for a single step: its values [K, ...] and the measure of each,
    and data up to ``depth`` steps long are summed over.

    Cases of two mixtures are many: families are trained on them for a moment, and pass the checks about contexts alone;
    on ``brief`` cases, which differ from another one by their space, for a moment, too, and those about spaces alone.
    """

    name: str
    source: Source
    given_label: bool = False  # p(x | label): the source is a Mixture
    label_given: bool = False  # p(label | x): what a classifier models
    states: Callable[[], Tensor] | None = None
    grid: Callable[[], tuple[Tensor, float]] | None = None
    steps: Callable[[], tuple[Tensor, float]] | None = None
    depth: int = 0
    brief: bool = False
    given: Mixture | None = None  # p(x | c): x and c are of the same part of two mixtures

    @property
    def space(self) -> Space:
        return self.labels if self.label_given else self.source.space

    @property
    def context(self) -> Space | None:
        if self.label_given:
            return self.source.space
        if self.given is not None:
            return self.given.space
        return self.labels if self.given_label else None

    @property
    def labels(self) -> Label:
        return Label(tuple(f"part {k}" for k in range(len(self.mixture.parts))))

    @property
    def mixture(self) -> Mixture:
        assert isinstance(self.source, Mixture)
        return self.source

    def draw(self, n: int, seed: int) -> Part:
        generator = torch.Generator().manual_seed(seed)
        if not (self.given_label or self.label_given or self.given):
            return Part(self.source.sample(n, generator))
        x, label = self.mixture.sample_labelled(n, generator)
        if self.given is not None:
            return Part(x, self.given.sample_given(label, generator), label)
        return Part(label, x, label) if self.label_given else Part(x, label, label)

    def truth(self, part: Part) -> Tensor:
        """The source's own log p(x | c) [N] in nats."""
        if part.c is None:
            return self.source.log_prob(part.x)
        if self.given_label:
            return self.mixture.log_prob_given(part.x, part.c)
        if self.given is not None:
            numbers = range(len(self.given.parts))
            each = [self.mixture.weights[k].log() + self.given.parts[k].log_prob(part.c) for k in numbers]
            posterior = torch.stack(each).log_softmax(0)
            return (posterior + torch.stack([p.log_prob(part.x) for p in self.mixture.parts])).logsumexp(0)
        joint = self.mixture.weights.log()[part.x] + self.mixture.log_prob_given(part.c, part.x)
        return joint - self.mixture.log_prob(part.c)

    @cached_property
    def data(self) -> Data:
        train, valid, test = self.draw(4000, 1), self.draw(500, 2), self.draw(2000, 3)
        if self.space.fill is not None and self.space.symbols:  # which a loaded source reads when asked for
            train, valid = (dataclasses.replace(p, x=unread(self.space, p.x)) for p in (train, valid))
        return Data(self.name, self.name, self.space, train, valid, test, self.context)


def unread(space: Space, x: Tensor) -> RaggedRows:
    """Symbols [N, L] end to end, with a gap after each row: none goes on from the one before."""
    lengths = space.lengths(x).numpy()
    gapped = torch.nn.functional.pad(x, (0, 1), value=-1)
    inside = torch.arange(gapped.shape[1]) <= torch.from_numpy(lengths)[:, None]
    ends = (lengths + 1).cumsum()
    return RaggedRows(gapped[inside].numpy(), ends - lengths - 1, ends - 1, -1, torch.int64)


def strings(values: Tensor, length: int) -> Tensor:
    """All sequences of that many steps [K^length, length, ...] of steps [K, ...]."""
    index = torch.tensor(list(itertools.product(range(len(values)), repeat=length)), dtype=torch.int64)
    return values[index.reshape(len(values) ** length, length)]


def table_states(space: Table, reach: int = 0) -> Tensor:
    """Every row [M, D] of a table of categories and integers (low - reach .. high + reach); NaN where nullable."""
    axes = []
    for col in space.columns:
        if isinstance(col, Category):
            axis = [float(k) for k in range(len(col.values))]
        else:
            assert col.step is not None
            assert col.low is not None
            assert col.high is not None
            first, last = round((col.low - col.origin) / col.step), round((col.high - col.origin) / col.step)
            axis = [col.origin + col.step * k for k in range(first - reach, last + reach + 1)]
        axes.append([*axis, math.nan] if col.nullable else axis)
    return torch.tensor(list(itertools.product(*axes)), dtype=torch.float64)


def image_states(space: Image) -> Tensor:
    """Every image [levels^D, C, H, W]."""
    pixels = itertools.product(range(space.levels), repeat=space.dims)
    return torch.tensor(list(pixels), dtype=torch.uint8).reshape(-1, *space.event_shape)


def plane(reach: float, points: int) -> tuple[Tensor, float]:
    """A midpoint grid over [-reach, reach]^2 and the area of one cell."""
    width = 2 * reach / points
    axis = -reach + width * (torch.arange(points, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(axis, axis), width**2


@dataclass(frozen=True, eq=False)
class SmallMixed:
    """Two dependent columns that can be enumerated: a nullable category and an integer on a short range."""

    @property
    def space(self) -> Table:
        return Table((Category("kind", ("a", "b"), nullable=True), Integer("count", 0, 7)))

    @cached_property
    def table(self) -> Tensor:
        """P(kind or missing, count) [3, 8]."""
        count = torch.arange(8, dtype=torch.float64)
        rows = [
            torch.softmax(-0.5 * (count - centre) ** 2 / width, 0) for centre, width in ((1, 0.7), (5, 1.0), (3, 4.0))
        ]
        return torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:, None] * torch.stack(rows)

    @property
    def entropy(self) -> float:
        return float(synthetic.discrete_entropy(self.table.flatten()))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        cell = synthetic.categorical(self.table.flatten().expand(n, -1), generator)
        kind = (cell // 8).double()
        return torch.stack([torch.where(kind == 2, math.nan, kind), (cell % 8).double()], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        inside = (x[:, 1] >= 0) & (x[:, 1] <= 7)
        cell = self.table.log()[x[:, 0].nan_to_num(2).long(), x[:, 1].clamp(0, 7).long()]
        return torch.where(inside, cell, -math.inf)


@dataclass(frozen=True, eq=False)
class NullableReals:
    """A correlated Gaussian pair whose second column is missing at random with probability 0.25."""

    missing: float = 0.25

    @property
    def space(self) -> Table:
        return Table((Real("x"), Real("y", nullable=True)))

    @cached_property
    def pair(self) -> synthetic.Gaussian:
        return synthetic.Gaussian(synthetic.tensor([1.0, -2.0]), synthetic.tensor([[1.0, 0.6], [0.6, 1.0]]))

    @property
    def entropy(self) -> float:
        alone = 0.5 * math.log(2 * math.pi * math.e)
        m = self.missing
        return -m * math.log(m) - (1 - m) * math.log(1 - m) + m * alone + (1 - m) * self.pair.entropy

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        x = self.pair.sample(n, generator)
        x[torch.rand(n, generator=generator) < self.missing, 1] = math.nan
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        alone = -0.5 * (x[:, 0] - 1.0) ** 2 - 0.5 * math.log(2 * math.pi)
        joint = self.pair.log_prob(x.nan_to_num(0.0))
        return torch.where(x[:, 1].isnan(), math.log(self.missing) + alone, math.log(1 - self.missing) + joint)


@dataclass(frozen=True, eq=False)
class SmallPairs:
    """Texts of up to three letters and images of four pixels, two levels each, whose 240 pairs have any probabilities:
    where a text begins with a certain letter, some images are far likelier."""

    @property
    def space(self) -> Pair:
        return Pair(Text("ab", True, 3), Image(2, 2, 1, 2))

    @cached_property
    def states(self) -> Tensor:
        """Every pair [240, 7]."""
        texts = [[*t, *[-1] * (3 - n)] for n in range(4) for t in itertools.product((0, 1), repeat=n)]
        images = image_states(Image(2, 2, 1, 2))
        every = torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(images)))
        return self.space.join(torch.tensor(texts)[every[:, 0]], images[every[:, 1]])

    @cached_property
    def table(self) -> Tensor:
        """P(text, image) [240], in the order of ``states``."""
        text, image = self.states[:, :3], self.states[:, 3:]
        length, light = (text >= 0).sum(1), image.sum(1)
        return torch.softmax(-0.6 * length + 0.8 * text[:, 0] * (light - 2) + 0.5 * text[:, 1] * image[:, 0], 0)

    @property
    def entropy(self) -> float:
        return float(synthetic.discrete_entropy(self.table))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.states[synthetic.categorical(self.table.expand(n, -1), generator)]

    def log_prob(self, x: Tensor) -> Tensor:
        return self.table.log()[(x[:, None] == self.states).all(2).long().argmax(1)]


class Points(synthetic.Gaussian):
    """Normal numbers that are no columns of a table."""

    @property
    def space(self) -> Reals:  # type: ignore[override]
        return Reals((len(self.mean),))


def two_speakers(space: Text | Audio) -> Mixture:
    """Short data of three values, of which one speaker prefers the first, the other the last."""
    share, stop = synthetic.tensor([0.75, 0.15, 0.1]), torch.full((3,), 0.25, dtype=torch.float64)
    speakers = (chains.Chain(space, torch.arange(3), p, p.expand(3, 3), stop) for p in (share, share.flip(0)))
    return synthetic.equal([*speakers])


def cases() -> list[Case]:
    """All cases; a family is checked on those that it does not refuse."""
    ising, pairs = synthetic.Ising(3, 3), SmallPairs()
    chain = synthetic.markov(5)
    grey = synthetic.markov(5, image=True)
    mixed = SmallMixed()
    blobs = synthetic.equal([synthetic.blob(1.5, 0.5, 0.4), synthetic.blob(-1.0, -1.0, 0.6), synthetic.blob(0, 2, 0.3)])
    two_chains = synthetic.equal(
        [synthetic.Markov(chain.start, t, 4) for t in (chain.transition, chain.transition.flip(1))]
    )
    letters, excerpts, levels, rows = chains.strings(), chains.excerpts(), chains.levels(), chains.rows()
    languages = synthetic.equal([letters, chains.strings(flip=True)])
    faces = synthetic.equal([synthetic.Ising(3, 3, 0.5, 0.3), synthetic.Ising(3, 3, -0.3, -0.5)])

    two_blobs, eye = synthetic.equal(blobs.parts[:2]), torch.eye(2, dtype=torch.float64)
    points = synthetic.equal([Points(centre * torch.ones(2, dtype=torch.float64), eye) for centre in (-2, 2)])
    here = chains.walk()
    there = dataclasses.replace(here, first=synthetic.Gaussian(-here.first.mean, here.first.covariance))
    slope = synthetic.tensor([[1.0, 0.0], [0.8, 0.6]])
    words, sounds = two_speakers(Text("abc", True, 6)), two_speakers(Audio(100, 3, "linear", True, 6))

    def wide() -> tuple[Tensor, float]:
        return plane(8.0, 321)

    return [
        Case("categories", chain, states=lambda: table_states(chain.space)),  # type: ignore[arg-type]
        Case("binary image", ising, states=lambda: ising.states),
        Case("grey image", grey, states=lambda: image_states(grey.space)),  # type: ignore[arg-type]
        Case("pairs", pairs, states=lambda: pairs.states),
        Case("two moons", synthetic.two_moons(0.2), grid=wide),
        Case("gaussian", synthetic.gaussian(4)),
        Case("small mixed", mixed, states=lambda: table_states(mixed.space, reach=40)),
        Case("nullable reals", NullableReals()),
        Case(
            "reals",
            Points(slope @ synthetic.tensor([0.5, -0.5]), slope @ slope.T),
            grid=lambda: plane(8.0, 161),
            brief=True,
        ),
        Case("mixed table", synthetic.MixedTable()),
        Case("blobs by label", blobs, given_label=True, grid=wide),
        Case("chains by label", two_chains, given_label=True, states=lambda: table_states(two_chains.space)),  # type: ignore[arg-type]
        Case("images by label", faces, given_label=True, states=lambda: image_states(faces.space)),  # type: ignore[arg-type]
        Case("label by table", blobs, label_given=True, states=lambda: torch.arange(3)),
        Case("label by image", faces, label_given=True, states=lambda: torch.arange(2)),
        Case("strings", letters, steps=lambda: (letters.values, 1.0), depth=4),
        Case("excerpts", excerpts, steps=lambda: (excerpts.values, 1.0), depth=6),
        Case("levels", levels, steps=lambda: (levels.values, 1.0), depth=2),
        Case("rows", rows, steps=lambda: (table_states(rows.space.step, reach=15), 1.0), depth=1),  # type: ignore[union-attr]
        Case("walk", chains.walk(), steps=lambda: plane(8.0, 120)),
        Case("strings by label", languages, given_label=True, steps=lambda: (letters.values, 1.0), depth=4),
        Case("table by table", two_blobs, given=two_blobs),
        Case("table by text", two_blobs, given=words),
        Case("image by image", faces, given=faces),
        Case("text by text", words, given=words),
        Case("text by image", words, given=faces),
        Case("text by audio", words, given=sounds),
        Case("sequence by reals", synthetic.equal([here, there]), given=points),
        Case("audio by text", sounds, given=words),
    ]
