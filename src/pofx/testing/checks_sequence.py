"""The checks of data of free length, and of families that go through them step by step (``abilities.Continues``)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import pad

from pofx.core.abilities import Continues, can
from pofx.core.errors import BadValue, UsageError
from pofx.core.likelihood import Exact, LowerBound, Unavailable
from pofx.core.noise import row_keys
from pofx.core.requests import StepByStep
from pofx.core.space import join
from pofx.data.parts import Part
from pofx.testing.oracles import strings
from pofx.testing.subject import (
    NotApplicable,
    Subject,
    agree,
    check,
    coarse,
    coarsely,
    count,
    draw,
    every,
    generator,
    index_of,
    refused,
    rule_error,
)


def ragged(s: Subject, stepwise: bool = True, exact: bool = False) -> Any:
    """The space of the case; skips the check for data of one size, for families without steps, and for steps that do
    not sum to the likelihood itself where they must."""
    space = s.case.space
    if space.fill is None or (stepwise and not can(s.model, Continues)):
        raise NotApplicable
    if exact and s.model.default_request().kind != "Exact":
        raise NotApplicable
    return space


def log_probs(s: Subject, x: Tensor, c: Tensor | None, before: Tensor | None = None) -> Tensor:
    """log p of each step and the end [N, L + 1] of rows x [N, L, ...], given a context each."""
    with torch.no_grad():
        return s.model.given(c, before=before).log_probs(x).double()


def by_length(s: Subject, values: Tensor, cell: float, k: int, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mass of all beginnings of k steps of these values [K^k], and of all data of k steps."""
    x = strings(values, k)
    each = log_probs(s, x, every(c, len(x)))
    return each[:, :-1].sum(1).exp() * cell**k, each.sum(1).exp() * cell**k


def some(s: Subject, n: int) -> tuple[Part, Tensor]:
    """The longest, the shortest and n - 2 more test rows, and the length of each."""
    space = ragged(s, stepwise=False)
    order = space.lengths(s.test.x).argsort(stable=True)
    part = s.test[torch.cat([order[-1:], order[:: max(1, len(order) // (n - 1))][: n - 1]])]
    return part, space.lengths(part.x)


def steps(s: Subject) -> tuple[Tensor, float]:
    """What a step may be [K, ...] and the measure of each value, or a skipped check."""
    if s.case.steps is None:
        raise NotApplicable
    return s.case.steps()


# -- sums ------------------------------------------------------------------------------------------


@check
def strings_sum_to_one(s: Subject) -> None:
    """P(all data of up to n steps) + P(all beginnings of n + 1 steps) = 1; of excerpts, P(all of n steps) = 1."""
    space = ragged(s)
    values, cell = steps(s)
    for c in s.contexts:
        kind = type(s.model.given(every(c, 1)).log_prob(strings(values[:1], 1)))
        masses = (by_length(s, values, cell, n, c) for n in range(s.case.depth + 2))
        totals = [(float(begun.sum()), float(ended.sum())) for begun, ended in masses]
        if space.has_eos:
            sums = [sum(ended for _, ended in totals[:-1]) + totals[-1][0]]
        else:
            sums = [begun for begun, _ in totals]
        slack = 1e-5 if cell == 1.0 else 2e-3
        for total in sums:
            if kind is Exact:
                assert abs(total - 1) < slack, f"probabilities of strings sum to {total:.6f}"
            elif kind is LowerBound:
                assert total < 1 + slack, f"a lower bound sums to {total:.6f} over strings"


@check
def every_step_sums_to_one(s: Subject) -> None:
    """At any place of any datum, the probabilities of what may stand there, the end included, sum to 1."""
    space = ragged(s, exact=True)
    values, cell = steps(s)
    part, sizes = some(s, 4 if cell == 1.0 else 2)
    for i, size in enumerate(sizes.tolist()):
        c = None if part.c is None else part.c[i]
        for k in sorted({0, size // 2, size - 1}):
            before = part.x[i, :k].expand(len(values), *part.x[i, :k].shape)
            each = log_probs(s, torch.cat([before, values[:, None].to(part.x)], 1), every(c, len(values)))
            mass = each[:, k].exp() * cell
            end = float(log_probs(s, before[:1], every(c, 1))[0, k].exp()) if space.has_eos else 0.0
            slack = 1e-5 if cell == 1.0 else 1e-3 + rule_error(mass)
            total = float(mass.sum()) + end
            assert abs(total - 1) < slack, f"the probabilities of step {k} of a datum of {size} sum to {total:.6f}"


@check
def log_probs_sum_to_log_prob(s: Subject) -> None:
    """One number per step and one for the end, zero beyond, which sum to the datum's."""
    space = ragged(s)
    part = s.case.data.test[:1100]  # more than fit into one pass
    lik = s.available(part)
    each = log_probs(s, part.x, part.c)
    gap = (each.sum(1) - lik.nats).abs() / (1 + lik.nats.abs())
    assert gap.max() < 1e-5, f"log_probs sum to what differs from log_prob by {gap.max():.3g}"
    if s.model.default_request().kind == "Exact":
        assert each.shape == (len(part), part.x.shape[1] + 1), f"{tuple(each.shape)} for x {tuple(part.x.shape)}"
        beyond = torch.arange(each.shape[1]) > space.lengths(part.x)[:, None]
        assert (each[beyond] == 0).all(), "what comes after the end has a probability"


@check
def ends_count(s: Subject) -> None:
    """To end is less than certain, where data have ends; else it costs nothing."""
    space = ragged(s, exact=True)
    x = s.test.x
    each = log_probs(s, x, s.test.c)
    last = each.gather(1, space.lengths(x)[:, None])[:, 0]
    if not space.has_eos:
        assert (last == 0).all(), "the end of an excerpt has a probability, but its length is given"
        return
    short = space.lengths(x) < space.length
    assert (last[short] < 0).all(), "an end costs nothing"
    assert float(last.exp().mean()) < 0.95, f"an end has a probability of {float(last.exp().mean()):.3f}"


# -- what a step may depend on ---------------------------------------------------------------------


@check
def later_steps_are_not_seen(s: Subject) -> None:
    """The numbers of steps before step i do not change at all with steps from i on; nor do their gradients exist."""
    space = ragged(s)
    part, sizes = some(s, 32)
    other = part.x[torch.arange(len(part)).roll(1)]
    for k in (1, 2, int(sizes.max()) // 2):
        keep = sizes > k
        changed = torch.where(like(torch.arange(part.x.shape[1]) >= k, part.x), other, part.x)
        # a datum that would end before its new steps stays as it is
        keep &= space.lengths(other) > k
        if not keep.any():
            continue
        c = None if part.c is None else part.c[keep].repeat_interleave(2, 0)
        rows = torch.stack([part.x, changed], 1)[keep].flatten(0, 1)
        a, b = log_probs(s, rows, c).unflatten(0, (-1, 2)).unbind(1)
        gap = float((a[:, :k] - b[:, :k]).abs().max())
        assert gap == 0, f"steps from {k} on change the numbers of steps before by up to {gap:.3g}"
    if part.x.is_floating_point():
        x = part.x[:1].clone().requires_grad_()
        k = int(sizes[0]) // 2
        numbers = s.given(part[:1]).log_probs(x)[:, :k].sum()
        (slope,) = torch.autograd.grad(numbers, x, allow_unused=True)
        if slope is not None:
            assert (slope[:, k:] == 0).all(), f"the numbers before step {k} have a gradient by later ones"


def like(flags: Tensor, x: Tensor) -> Tensor:
    """Flags [L] that broadcast with rows [N, L, ...]."""
    return flags.view(1, -1, *[1] * (x.ndim - 2))


@check
def padding_does_not_leak(s: Subject) -> None:
    """A row has one number, alone, beside longer ones, or with any amount of fill after it."""
    space = ragged(s, stepwise=False)
    part, _ = some(s, 12)
    first = {int(key): i for i, key in reversed([*enumerate(row_keys(part.x, space.fill))])}  # copies have other noise
    part = part[torch.tensor(sorted(first.values()))]
    sizes = space.lengths(part.x)
    whole = s.available(part).nats
    wide = torch.cat([part.x, torch.full_like(part.x[:, :1], space.fill).repeat_interleave(5, 1)], 1)
    padded = s.available(Part(wide, part.c)).nats
    for i, size in enumerate(sizes.tolist()):
        one = part[i : i + 1]
        alone = s.available(Part(one.x[:, :size], one.c)).nats[0]
        for other, how in ((alone, "alone"), (padded[i], "with more fill")):
            gap = float((other - whole[i]).abs() / (1 + whole[i].abs()))
            assert gap < 1e-5, f"a row of {size} steps differs by {gap:.3g} {how} than beside longer ones"


@check
def what_comes_before_splits_the_sum(s: Subject) -> None:
    """log p(ab) = log p(a...) + log p(b | before = a), for beginnings of any lengths side by side."""
    space = ragged(s, exact=True)
    part, sizes = some(s, 40)
    cut = (torch.rand(len(part), generator=generator(0)) * (sizes + 1)).long()
    pairs = [(x[:k], x[k:n]) for x, k, n in zip(part.x, cut.tolist(), sizes.tolist(), strict=True)]
    a, b = (join(space, [rows[None] for rows in side]) for side in zip(*pairs, strict=True))
    whole = log_probs(s, part.x, part.c)
    with torch.no_grad():
        after = s.model.given(part.c, before=a)
        rest, steps_of_rest = after.log_prob(b), after.log_probs(b).double()
    assert not isinstance(rest, Unavailable)
    begun = whole.masked_fill(torch.arange(whole.shape[1]) >= cut[:, None], 0.0).sum(1)
    gap = (begun + rest.nats - whole.sum(1)).abs() / (1 + whole.sum(1).abs())
    assert gap.max() < 1e-5, f"the sum over a beginning and what follows is off by {gap.max():.3g}"
    assert torch.allclose(steps_of_rest.sum(1), rest.nats.double(), atol=1e-4), "log_probs after a beginning do not sum"
    nothing = s.model.given(part.c, before=part.x[:, :0]).log_prob(part.x)
    assert not isinstance(nothing, Unavailable)
    assert torch.allclose(nothing.nats.double(), whole.sum(1), rtol=1e-5), "an empty beginning changes the number"


# -- samples ---------------------------------------------------------------------------------------


@check
def strings_are_drawn_as_stated(s: Subject) -> None:
    """Frequencies of samples' first steps are the probabilities that the model states (chi-squared)."""
    space = ragged(s, exact=True)
    values, cell = steps(s)
    n, depth = 4000, s.case.depth
    for c in s.contexts:
        drawn = s.model.given(c).sample(n, generator=generator(11))
        sizes = space.lengths(drawn)
        expected, rough, counts = [], [], []
        for k in range(depth + 1) if space.has_eos else ():
            mass = n * by_length(s, values, cell, k, c)[1]
            expected.append(mass)
            counts.append(count(strings_index(values, drawn[sizes == k][:, :k]), len(mass)))
            rough.append(torch.zeros_like(mass))
        longer = drawn[sizes > depth][:, : depth + 1]
        mass = n * by_length(s, values, cell, depth + 1, c)[0]
        if cell == 1.0:
            found, each, error = strings_index(values, longer), mass, torch.zeros_like(mass)
        else:
            found, (each, error) = coarse(longer[:, 0]), coarsely(values, mass)
        cells = torch.cat([*counts, count(found, len(each))]), torch.cat([*expected, each]), torch.cat([*rough, error])
        agree(*cells, "samples")


def strings_index(values: Tensor, x: Tensor) -> Tensor:
    """The row of ``strings(values, k)`` that each x [N, k, ...] is; raises where a step is none of the values."""
    place = len(values) ** torch.arange(x.shape[1] - 1, -1, -1)
    return (index_of(values, x.flatten(0, 1)).reshape(x.shape[:2]) * place).sum(1)


@check
def continuations_follow_what_is_before(s: Subject) -> None:
    """The first step drawn after given beginnings has its stated probabilities (chi-squared)."""
    space = ragged(s)
    values, cell = steps(s)
    if s.model.default_request().kind != "Exact" or cell != 1.0:
        raise NotApplicable
    long = s.test.x[space.lengths(s.test.x) > 3]
    before = torch.stack([long[0, :3], torch.where(like(torch.arange(3) < 1, long), long[1:2, :3], space.fill)[0]])
    c = None if s.test.c is None else s.test.c[:2]
    n = 2000
    drawn = s.model.given(c, before=before).sample(n, generator=generator(3), sampler=StepByStep(1))
    assert drawn.shape[:3] == (n, 2, 1), f"continuations of one step have shape {tuple(drawn.shape)}"
    for i in range(2):
        given = None if c is None else every(c[i], len(values))
        mass = log_probs(s, values[:, None], given, every(before[i], len(values)))[:, 0].exp()
        ended = space.lengths(drawn[:, i]) == 0
        counts = torch.cat([count(strings_index(values, drawn[~ended, i]), len(mass)), ended.sum()[None].double()])
        expected = n * torch.cat([mass, (1 - mass.sum()).clamp(min=0.0)[None]])
        agree(counts, expected, torch.zeros_like(expected), "continuations")


@check
def lengths_are_kept(s: Subject) -> None:
    """Excerpts are drawn of the length asked for; data with ends no longer than that."""
    space = ragged(s, stepwise=False)
    c = None if s.test.c is None else s.test.c[0]
    p = s.model.given(c)
    stepwise = StepByStep in s.model.own_samplers
    for asked, sampler in ((space.length, None), (3, StepByStep(3)))[: 1 + stepwise]:
        x = p.sample(50, generator=generator(0), sampler=sampler)
        sizes = space.lengths(x)
        assert int(sizes.max()) <= asked, f"a sample has {int(sizes.max())} steps instead of up to {asked}"
        assert space.has_eos or int(sizes.min()) == asked, f"an excerpt has {int(sizes.min())} steps instead of {asked}"
    for wrong in (0, -2):
        refused(UsageError, lambda n=wrong: p.sample(1, sampler=StepByStep(n)), f"a length of {wrong} was taken")  # type: ignore[misc]
    if can(s.model, Continues):
        beyond = pad(s.test.x[:1, :1], (0, 0) * (s.test.x.ndim - 2) + (1, 0), value=space.fill)
        given = every(c, 1)
        refused(
            BadValue, lambda: s.model.given(given, before=beyond), "a beginning that goes on after its end was taken"
        )


class Twins:
    """A cache, and beside it the whole net, which reads all inputs again for every step; ``gap``: between the two."""

    def __init__(self, net: Any, cache: Any, n: int, *told: Any) -> None:
        self.net, self.cache, self.told, self.gap = net, cache, told, 0.0
        self.x = torch.zeros(n, 0, net.width)

    def step(self, x: Tensor) -> Tensor:
        return self.extend(x[:, None])[:, 0]

    def extend(self, x: Tensor) -> Tensor:
        self.x = torch.cat([self.x, x], 1)
        fast, slow = self.cache.extend(x), self.net(self.x, *self.told)[:, -x.shape[1] :]
        self.gap = max(self.gap, float((fast - slow).abs().max() / (1 + slow.abs().max())))
        return slow


@check
def caches_change_no_sample(s: Subject) -> None:
    """While sampling, a net with a cache gives the numbers of one that reads everything again for each step."""
    ragged(s)
    net: Any = getattr(s.model, "net", None)
    if not hasattr(net, "cache"):
        raise NotApplicable
    cached, twins = net.cache, []

    def both(n: int, length: int, *told: Any) -> Twins:
        twins.append(Twins(net, cached(n, length, *told), n, *told))
        return twins[-1]

    with mock.patch.object(net, "cache", both):
        slow = draw(s, 40, seed=8)
    gap = max(t.gap for t in twins)
    assert gap < 1e-4, f"a cache changes the net's numbers by up to {gap:.3g} of their size"
    fast = draw(s, 40, seed=8)
    a, b = join(ragged(s), [fast, slow]).double().nan_to_num(nan=-1e6, posinf=-1e7).flatten(1).chunk(2)
    # a draw that falls on the border between two symbols may go either way
    differ = (~torch.isclose(a, b, rtol=1e-3, atol=1e-3)).any(1).sum()
    assert differ <= 2, f"{differ} of 40 samples change with the cache"
