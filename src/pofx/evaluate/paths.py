"""What models that go from noise to data in steps show besides: quality over steps, terms of bounds, guided draws."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pofx.core.abilities import HasBoundTerms, ability_of
from pofx.core.errors import Unsupported
from pofx.core.likelihood import Estimate, Number, mean, number
from pofx.core.model import Model
from pofx.core.requests import DpmSolver
from pofx.core.space import Space
from pofx.data.parts import Part
from pofx.evaluate.cost import grow
from pofx.evaluate.two_sample import C2st
from pofx.spaces import Real

MOST_DRAWS, FEWEST_DRAWS = 200, 40  # of each number of steps
TERM_ROWS = 500
SCALES = (0.0, 1.0, 2.0, 4.0)  # of guidance: without the context, as trained, and beyond
MOST_CONTEXTS, GUIDED_STEPS = 10, 20
TRAJECTORIES = 60


# -- quality over steps --------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtSteps:
    """Draws in so many steps, against real rows.

    Attributes:
        n: draws.
        seconds: of each, many at a time.
        accuracy, se: of telling them from data, as of ``two_sample.c2st``.
    """

    steps: int
    n: int
    seconds: float
    accuracy: float
    se: float


def ladder(most: int, rungs: tuple[int, ...] = (1, 2, 5)) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... below ``most``, and ``most``.

    Example:
        >>> ladder(25), ladder(25, (1,)), ladder(1)
        ([1, 2, 5, 10, 20, 25], [1, 10, 25], [1])
    """
    return [k for e in range(len(str(most))) for k in (r * 10**e for r in rungs) if k < most] + [most]


def quality_by_steps(
    draw: Callable[[int, int], Tensor],
    against: Callable[[Tensor], C2st],
    most: int,
    each: float,
    test: float,
    seconds: float,
) -> list[AtSteps]:
    """Equally many draws in each number of steps of ``ladder(most)``, as far up as the time allows.

    Equally many, since a classifier that sees more rows tells more of them apart.

    Args:
        draw: steps, n -> the features [n, F] of n draws.
        against: compares features of draws with real ones.
        each: seconds of one step of one draw, about; test: of comparing ``MOST_DRAWS``.
        seconds: for all together. Where they allow fewer than ``FEWEST_DRAWS`` of each, there are fewer numbers of
            steps, and if need be the largest are left out.
    """

    def draws(steps: list[int]) -> int:
        return min(MOST_DRAWS, int((seconds - test * len(steps)) / (each * sum(steps))))

    ladders = [ladder(most), ladder(most, (1, 5)), ladder(most, (1,))]
    steps = next((some for some in ladders if draws(some) >= FEWEST_DRAWS), ladders[0])
    while steps and draws(steps) < FEWEST_DRAWS:
        steps.pop()
    found = []
    for k in steps:
        draw(k, 1)  # pays for warming up
        begun = time.perf_counter()
        features = draw(k, draws(steps))
        found.append(at_steps(k, features, (time.perf_counter() - begun) / len(features), against))
    return found


def at_steps(steps: int, features: Tensor, seconds: float, against: Callable[[Tensor], C2st]) -> AtSteps:
    compared = against(features)
    return AtSteps(steps, len(features), seconds, compared.accuracy, compared.se)


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
    weight, group = (None if v is None else v[:n] for v in (part.weight, part.groups))
    together = sum((rows[name].nats for name in names[1:]), rows[names[0]].nats)
    whole = mean(Number(Estimate, together), weight, group=group)
    means = {name: mean(number, weight, group=group) for name, number in rows.items()}
    terms = {name: {"nats": m.nats, "se": m.se, "mc_se": m.mc_se} for name, m in means.items()}
    return {"request": asked.name, "n": n, "nats": whole.nats, "se": whole.se, "terms": terms}


# -- guided draws --------------------------------------------------------------------------------------


def guides(model: Model) -> bool:
    """Are there images given something, that classifier-free guidance could sharpen?"""
    return bool(model.space.pixels and model.context is not None) and DpmSolver in model.own_samplers


def guided(
    model: Model, rows: Part, seed: Callable[[], torch.Generator], each: float, seconds: float
) -> tuple[dict[str, Any], Part]:
    """One draw for each of some contexts at each of ``SCALES``, by dpm++ from the same noise, beside the truth.

    Args:
        rows: held-out ones, of which the first of each class, or of the first ones of any other context, are shown.
        seed: makes the same generator each time.
        each: seconds of one step of one draw without guidance, which takes two passes for one.
        seconds: that they may take: of more contexts the first.

    Returns:
        The scales, the contexts in words ("names"; none of what is no words), log p of the true images given their
        context ("given") and given none ("none"), and their "kind"; and the images: the true ones, then those of one
        scale after the other.

    Raises Unsupported where the model does not know p(x | no context), or there is no time for a single context.
    """
    context, asked = model.context, model.default_request()
    assert context is not None
    model.given(null=True).encoded()  # raises where none was dropped in training
    passes = 2 * len(SCALES) * GUIDED_STEPS + 2 * getattr(asked, "draws", 1)
    shown = rows[_of_each(context, rows.c)[: min(MOST_CONTEXTS, int(seconds / (each * passes)))]].read()
    if not len(shown):
        raise Unsupported("Guided samples would take too long.", "Give more time.")
    assert shown.c is not None
    drawn = []
    for scale in SCALES:
        sampler = DpmSolver(GUIDED_STEPS, guidance=scale)
        drawn.append(model.given(shown.c).sample(1, generator=seed(), sampler=sampler)[0].cpu())
    both = [
        p.log_prob(shown.x, request=asked, generator=seed()) for p in (model.given(shown.c), model.given(null=True))
    ]
    given, none = (number(lik).nats.tolist() for lik in both)
    found = {"scales": SCALES, "names": words(context, shown.c), "given": given, "none": none}
    c = shown.c.repeat(1 + len(SCALES), *[1] * (shown.c.ndim - 1))
    return found | {"kind": type(both[0]).__name__}, Part(torch.cat([shown.x, *drawn]), c)


def _of_each(context: Space, c: Any) -> Tensor:
    """The first row of each class; of any other context the first rows."""
    if not context.values:
        return torch.arange(len(c))
    return torch.tensor(
        [int((c == k).nonzero()[0]) for k in range(len(context.values)) if (c == k).any()], dtype=torch.int64
    )


def words(space: Space, rows: Tensor) -> list[str]:
    """Data [N, *E] of classes, or of symbols that have a spelling, as strings; none of any other."""
    if space.values:
        return [space.values[k] for k in rows.tolist()]
    return [space.spell(row) for row in rows] if space.alphabet is not None else []  # type: ignore[attr-defined]


# -- trajectories --------------------------------------------------------------------------------------


def planar(space: Space) -> bool:
    """Is a datum a point of the plane?"""
    return len(space.columns) == 2 and all(isinstance(c, Real) and not c.nullable for c in space.columns)


def trajectories(model: Model, c: Tensor | None, generator: torch.Generator) -> Part:
    """The ways of some draws from noise to data: rows [n, K, 2], given c [M, *Ec] where there are contexts."""
    n = min(TRAJECTORIES, TRAJECTORIES if c is None else len(c))
    if c is None:
        return Part(model.given().trajectories(n, generator=generator).transpose(0, 1).cpu())
    return Part(model.given(c[:n]).trajectories(1, generator=generator)[:, 0].transpose(0, 1).cpu(), c[:n])
