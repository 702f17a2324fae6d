"""The sites of a whole space, each with its head (``nn.heads``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pofx.core.errors import Unsupported, UsageError
from pofx.core.space import Space
from pofx.nn.heads import AtomsAndLogistics, Bernoulli, Categorical, Head, LevelLogistics, MissingOr, MixtureOfGaussians
from pofx.spaces import Category, Image, Integer, Real, Table

ImageKind = Literal["auto", "bernoulli", "categorical", "logistic"]

FEW_LEVELS = 16  # up to here "auto" gives every level its own logit


def image_head(kind: ImageKind, levels: int, *, components: int = 8, sites: tuple[int, ...] = ()) -> Head:
    """The head of image levels 0 .. levels-1 by name. Raises UsageError where it cannot hold them."""
    if kind == "auto":
        kind = "bernoulli" if levels == 2 else "categorical" if levels <= FEW_LEVELS else "logistic"
    if kind == "bernoulli":
        if levels != 2:
            raise UsageError(f"A Bernoulli head holds 2 levels, not {levels}.", "Use categorical or logistic.")
        return Bernoulli(sites)
    if kind == "categorical":
        return Categorical(torch.full(sites, levels).tolist(), ordered=True)
    if kind == "logistic":
        return LevelLogistics(levels, components, sites)
    raise UsageError(f"There is no image head {kind!r}.", "Use auto, bernoulli, categorical or logistic.")


def mixes(space: Space, kind: ImageKind) -> bool:
    """Has any site of columns or an image a mixture as its head?"""
    if space.pixels:
        return kind == "logistic" or (kind == "auto" and (space.symbols or 0) > FEW_LEVELS)
    return any(not isinstance(c, Category) for c in space.columns)


class Steps(Protocol):
    """A visit of the sites in order: see ``nn.causal.IncrementalSampler``."""

    order: list[int]

    def params(self) -> Tensor: ...
    def push(self, features: Tensor) -> None: ...


class Heads(nn.Module):
    """The heads of all sites of a space, grouped by type; net inputs and outputs stand in site order.

    Attributes:
        params, features: per site, the numbers of net output and of net input.
    """

    back: Tensor

    def __init__(self, space: Space, heads: Sequence[Head], places: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.space = space
        self.groups = nn.ModuleList(heads)
        self.places = [list(p) for p in places]
        self.sites = sum(map(len, self.places))
        self.home = {i: (g, j) for g, place in enumerate(self.places) for j, i in enumerate(place)}
        self.params = tuple(self._group(self.home[i][0]).params for i in range(self.sites))
        self.features = tuple(self._group(self.home[i][0]).features for i in range(self.sites))
        first = [0, *torch.tensor(self.params).cumsum(0).tolist()]
        for g, place in enumerate(self.places):
            index = torch.cat([torch.arange(first[i], first[i + 1]) for i in place])
            self.register_buffer(f"index{g}", index, persistent=False)
        order = torch.tensor([i for place in self.places for i in place])
        self.register_buffer("back", order.argsort(), persistent=False)

    def values(self, x: Tensor) -> Tensor:
        """x [..., *E] -> [..., sites]"""
        k = len(self.space.event_shape)
        return x.reshape(*x.shape[: x.ndim - k], -1)

    def event(self, values: Tensor) -> Tensor:
        """The inverse of ``values``, of the space's dtype."""
        return values.to(self.space.dtype).reshape(*values.shape[:-1], *self.space.event_shape)

    def embed(self, x: Tensor) -> Tensor:
        """x [..., *E] -> net input [..., sum(features)]."""
        v = self.values(x)
        if len(self.places) == 1:
            return self._group(0).embed(v).flatten(-2)
        parts: list[Tensor] = [torch.empty(0)] * self.sites
        for g, place in enumerate(self.places):
            for i, part in zip(place, self._group(g).embed(v[..., place]).unbind(-2), strict=True):
                parts[i] = part
        return torch.cat(parts, -1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p of every site [..., sites], given params [..., sum(params)] that broadcast with x [..., *E]."""
        v = self.values(x)
        if len(self.places) == 1:
            return self._group(0).log_prob(params.unflatten(-1, (self.sites, -1)), v)
        parts = [self._group(g).log_prob(self._own(params, g), v[..., place]) for g, place in enumerate(self.places)]
        return torch.cat(parts, -1)[..., self.back]

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Independent draws of all sites [..., *E], given params [..., sum(params)]."""
        parts = [self._group(g).sample(self._own(params, g), generator) for g in range(len(self.places))]
        return self.event(torch.cat(parts, -1)[..., self.back])

    def typical(self, params: Tensor) -> Tensor:
        """What stands for the distributions of all sites [..., *E]: means of numbers, likeliest symbols."""
        parts = [self._group(g).typical(self._own(params, g)) for g in range(len(self.places))]
        return self.event(torch.cat(parts, -1)[..., self.back])

    def visit(
        self,
        walk: Steps,
        values: Tensor,
        generator: torch.Generator,
        known: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Values [N, sites] with those that are not known drawn, each given all before it in the walk's order."""
        values = values.clone()
        for i in walk.order:
            head = self.site(i)
            params = walk.params() if temperature == 1 else head.tempered(walk.params(), temperature)
            drawn = head.sample(params, generator).to(values.dtype)
            values[:, i] = drawn if known is None else torch.where(known[:, i], values[:, i], drawn)
            walk.push(head.embed(values[:, i]))
        return values

    def site(self, i: int) -> Head:
        """The head of site i alone."""
        g, j = self.home[i]
        return self._group(g).site(j)

    def prepare(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Fill all buffers from training rows x [N, *E]."""
        v = self.values(x)
        for g, place in enumerate(self.places):
            self._group(g).prepare(v[:, place], weight)

    def _group(self, g: int) -> Head:
        head = self.groups[g]
        assert isinstance(head, Head)
        return head

    def _own(self, params: Tensor, g: int) -> Tensor:
        own = params if len(self.places) == 1 else params[..., getattr(self, f"index{g}")]
        return own.unflatten(-1, (len(self.places[g]), -1))


def side_by_side(sites: int) -> Table:
    """The space of values that have no other shape than their number: what heads of levels in a step are over."""
    return Table(tuple(Real(f"value{i}") for i in range(sites)))


@singledispatch
def heads_for(space: Space, *, image: ImageKind = "auto", components: int = 8, slots: int = 64) -> Heads:
    """Heads for every site of ``space``, in the order of its flattened event: one for each of its columns.

    An open function: a space without columns adds its own case. Raises Unsupported where there is none.

    Args:
        image: the head of image levels; "auto" chooses by their number.
        components: of each mixture.
        slots: the most atoms of an integer or step column.
    """
    if not space.columns:
        raise Unsupported(f"There is no head for {space}.", "Register one with pofx.nn.sites.heads_for.")
    groups: dict[tuple[str, bool, int], list[int]] = {}
    for j, column in enumerate(space.columns):
        # categories of like size share a head: at most half of its logits are padding
        size = (len(column.values) - 1).bit_length() if isinstance(column, Category) else 0
        kind = "category" if isinstance(column, Category) else "real" if column.step is None else "grid"
        groups.setdefault((kind, column.nullable, size), []).append(j)
    heads: list[Head] = []
    for (_, nullable, _), place in groups.items():
        columns = [space.columns[j] for j in place]
        head: Head
        if categories := [c for c in columns if isinstance(c, Category)]:
            head = Categorical([len(c.values) for c in categories])
        elif grids := [c for c in columns if isinstance(c, Integer | Real) and c.step is not None]:
            head = AtomsAndLogistics([c.step or 0.0 for c in grids], [c.origin for c in grids], components, slots)
        else:
            head = MixtureOfGaussians(components, (len(columns),))
        heads.append(MissingOr(head) if nullable else head)
    return Heads(space, heads, list(groups.values()))


def has_heads(space: Space) -> bool:
    """Does ``heads_for`` know this space, by its columns or by a case of its own?"""
    return bool(space.columns) or heads_for.dispatch(type(space)) is not heads_for.dispatch(object)


def no_decoder(space: Space) -> str | None:
    """Why latents cannot be decoded into the space, a head for each site (a sentence), or None."""
    if not has_heads(space):
        return f"there is no head for {space}."
    if space.values:
        return "a label has no latent structure. Fit a classifier or a histogram."
    return None


@heads_for.register
def _(space: Image, *, image: ImageKind = "auto", components: int = 8, slots: int = 64) -> Heads:
    sites = space.dims
    return Heads(space, [image_head(image, space.levels, components=components, sites=(sites,))], [range(sites)])
