"""What models that go from noise to data in steps show besides: quality over steps, terms of bounds, guided draws."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pofx.core.abilities import HasBoundTerms, ability_of
from pofx.core.errors import Unsupported
from pofx.core.likelihood import Estimate, Number, mean
from pofx.core.model import Model
from pofx.core.requests import Solver
from pofx.core.space import Space
from pofx.data.parts import Part
from pofx.evaluate.cost import grow
from pofx.evaluate.two_sample import Mmd
from pofx.spaces import Real

MOST_DRAWS, FEWEST_DRAWS = 300, 40  # of each number of steps
TERM_ROWS = 500
SCALES = (0.0, 1.0, 2.0, 4.0)  # of guidance: without the class, as trained, and beyond
MOST_CLASSES = 10
TRAJECTORIES = 60


# -- quality over steps --------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtSteps:
    """Draws in so many steps, against real rows.

    Attributes:
        n: draws.
        seconds: of each, many at a time.
        mmd2: as of ``two_sample.mmd``, with one bandwidth for all numbers of steps.
        null_se: its standard deviation where draws are as data are.
    """

    steps: int
    n: int
    seconds: float
    mmd2: float
    null_se: float


def ladder(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... below ``most``, and ``most``.

    Example:
        >>> ladder(25), ladder(1)
        ([1, 2, 5, 10, 20, 25], [1])
    """
    return [k for e in range(len(str(most))) for k in (10**e, 2 * 10**e, 5 * 10**e) if k < most] + [most]


def quality_by_steps(
    draw: Callable[[int, int, int], Tensor],
    against: Callable[[Tensor], Mmd],
    steps: list[int],
    one: float,
    seconds: float,
) -> list[AtSteps]:
    """Draws in each of ``steps``, rising, as far as the time allows: what is not spent on one is left to the next.

    Args:
        draw: steps, start, size -> the features [size, F] of the draws start .. start + size - 1.
        against: compares features of draws with real ones.
        one: seconds of a single step of a single draw, about.
        seconds: for all together. Where they allow fewer than ``FEWEST_DRAWS``, the curve ends.
    """
    found: list[AtSteps] = []
    begun = time.perf_counter()
    for place, k in enumerate(steps):
        share = (seconds - (time.perf_counter() - begun)) / (len(steps) - place)
        if share < k * one:
            break
        grown = grow(lambda start, size, k=k: draw(k, start, size), MOST_DRAWS, share, one=k * one)  # type: ignore[misc]
        if grown.rows < FEWEST_DRAWS:
            break
        found.append(at_steps(k, torch.cat(grown.parts), 1 / grown.rows_per_second, against))
    return found


def at_steps(steps: int, features: Tensor, seconds: float, against: Callable[[Tensor], Mmd]) -> AtSteps:
    compared = against(features[:MOST_DRAWS])
    return AtSteps(steps, min(len(features), MOST_DRAWS), seconds, compared.mmd2, compared.null_se)


# -- terms of a bound ----------------------------------------------------------------------------------


def bound_terms(model: Model, part: Part, generator: torch.Generator, seconds: float) -> dict[str, Any]:
    """The means of the terms of the model's bound over the first rows of a part, as many as the time allows.

    At most ``TERM_ROWS``, so that where there is time they are those of other models, too.

    Returns:
        request (its name), n, nats (of all together) and its se, and per term: nats, se (of the choice of rows and of
        draws), mc_se (of draws alone).
    """
    asked = model.default_request(ability_of(model, HasBoundTerms).in_terms)
    state = generator.get_state()

    def block(start: int, size: int) -> dict[str, Number[Tensor]]:
        rows = part[start : start + size].read()
        generator.set_state(state)  # the numbers of rows depend on no block
        return model.given(rows.c).bound_terms(rows.x, request=asked, generator=generator)

    found = grow(block, min(len(part), TERM_ROWS), seconds).parts
    names = list(found[0])

    def of(name: str) -> Number[Tensor]:
        nats, errors = (torch.cat([getattr(terms[name], key) for terms in found]).cpu() for key in ("nats", "mc_se"))
        return Number(Estimate, nats, errors, errors)

    rows = {name: of(name) for name in names}
    n = len(rows[names[0]].nats)
    weight = None if part.weight is None else part.weight[:n]
    together = sum((rows[name].nats for name in names[1:]), rows[names[0]].nats)
    whole = mean(Number(Estimate, together), weight)
    means = {name: mean(number, weight) for name, number in rows.items()}
    terms = {name: {"nats": m.nats, "se": m.se, "mc_se": m.mc_se} for name, m in means.items()}
    return {"request": asked.name, "n": n, "nats": whole.nats, "se": whole.se, "terms": terms}


# -- guided draws --------------------------------------------------------------------------------------


def guides(model: Model) -> bool:
    """Are there images of classes that classifier-free guidance could sharpen?"""
    context = model.context
    return bool(model.space.pixels and context is not None and context.values) and _solver(model) is not None


def _solver(model: Model) -> type[Solver] | None:
    return next((kind for kind in model.own_samplers if issubclass(kind, Solver)), None)


def guided(model: Model, seed: Callable[[], torch.Generator], rate: float, seconds: float) -> tuple[list[int], Part]:
    """One draw of each class at each of ``SCALES``, from the same noise: the classes, and rows scale by scale.

    Args:
        seed: makes the same generator each time.
        rate: draws per second without guidance, which takes two passes for one.
        seconds: that they may take: of more classes the first.

    Raises Unsupported where the model does not know p(x | no context), or there is no time for a single class.
    """
    kind, context = _solver(model), model.context
    assert kind is not None
    assert context is not None
    model.given(null=True).encoded()  # raises where none was dropped in training
    classes = min(len(context.values), MOST_CLASSES, int(seconds * rate / (2 * len(SCALES))))
    if not classes:
        raise Unsupported("Guided samples would take too long.", "Give more time.")
    c = torch.arange(classes)
    sampler = model.default_sampler(kind)
    rows = [
        model.given(c).sample(1, generator=seed(), sampler=replace(sampler, guidance=scale))[0].cpu()  # type: ignore[call-arg]
        for scale in SCALES
    ]
    return c.tolist(), Part(torch.cat(rows), c.repeat(len(SCALES)))


# -- trajectories --------------------------------------------------------------------------------------


def planar(space: Space) -> bool:
    """Is a datum a point of the plane?"""
    return len(space.columns) == 2 and all(isinstance(c, Real) and not c.nullable for c in space.columns)


def trajectories(model: Model, c: Tensor | None, generator: torch.Generator, rate: float, seconds: float) -> Part:
    """The ways of some draws from noise to data: rows [n, K, 2], given c [M, *Ec] where there are contexts."""
    n = min(TRAJECTORIES, math.floor(seconds * rate), TRAJECTORIES if c is None else len(c))
    if n < 1:
        raise Unsupported("Trajectories would take too long.", "Give more time.")
    if c is None:
        return Part(model.given().trajectories(n, generator=generator).transpose(0, 1).cpu())
    return Part(model.given(c[:n]).trajectories(1, generator=generator)[:, 0].transpose(0, 1).cpu(), c[:n])
