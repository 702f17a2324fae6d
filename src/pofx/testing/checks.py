"""The checks that every family must pass. Each is an identity or a bound with a known truth, not a snapshot."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import torch
from torch import Tensor

from pofx.core.abilities import Encodes, HasEnergy, HasNoisedScore, HasScore, can
from pofx.core.errors import BadValue, EmptyData, PofxError, UsageError, WrongShape
from pofx.core.likelihood import (
    Available,
    Estimate,
    Exact,
    LowerBound,
    Number,
    Unavailable,
    UpperBound,
    mc_se,
    mean,
    number,
)
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.noise import RowNoise, row_keys
from pofx.core.requests import ExactLikelihood, Request
from pofx.core.space import Space
from pofx.data.parts import Part
from pofx.data.synthetic import Gaussian
from pofx.testing.subject import (
    SLOW,
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
    log_prob,
    precise,
    refused,
    rule_error,
    same,
)
from pofx.train.loop import seeded


class CrystalBall(ExactLikelihood):
    """What no family answers."""


SEEDS = 8  # over which a likelihood that draws is averaged

# -- what a likelihood says of itself --------------------------------------------------------------


def requests(s: Subject, **numbers: int) -> list[Request]:
    """One of each class that the model answers, with these numbers where it has such fields (and not none of them).

    Annealing is short: what is asked here holds of any length.
    """
    numbers = {"temperatures": 3, "chains": 2, "warmup": 4, "fits": 2} | numbers
    found = [s.model.default_request(kind) for kind in s.model.own_estimators]
    return [dataclasses.replace(r, **{k: v for k, v in numbers.items() if getattr(r, k, 0) != 0}) for r in found]


@check
def kind_is_promised(s: Subject) -> None:
    """Every request gets the kind that it promises, under the space's measure, finite, of the batch's shape."""
    for request in requests(s, draws=2, steps=2):
        part = s.test[:8] if isinstance(request, SLOW) else s.test
        lik = s.log_prob(part, request=request)
        if request.may_lack and isinstance(lik, Unavailable):
            assert len(lik.reason) > 20, "an unavailable likelihood needs a reason"
            continue
        assert type(lik).__name__ == request.kind, f"{request} promises {request.kind}, not {type(lik).__name__}"
        assert type(lik) in s.cls.claims(), f"{type(lik).__name__} is not among the claims"
        if isinstance(lik, Unavailable):
            assert len(lik.reason) > 20, "an unavailable likelihood needs a reason"
            continue
        assert lik.measure == s.case.space.measure, f"measure {lik.measure} instead of {s.case.space.measure}"
        assert lik.nats.shape == (len(part),)
        assert not lik.nats.isnan().any(), "NaN among the likelihoods"
        assert lik.nats.isfinite().float().mean() > 0.99, "held-out data of probability zero"
        if isinstance(lik, Estimate):
            assert lik.caveat, "an estimate needs its caveat"
        if not isinstance(lik, Exact):
            assert lik.mc_se.shape == lik.nats.shape
            assert (lik.mc_se >= 0).all()
            if lik.draws == 0:
                assert (lik.mc_se == 0).all(), "noise without draws"


@check
def rows_are_independent(s: Subject) -> None:
    """A row has the same log p, noise and all, in whatever batch and order it stands, alone, and before a copy."""
    part = s.test[:32].read()
    first = {int(key): i for i, key in reversed([*enumerate(row_keys(part.x))])}  # copies have noise of their own
    every = part[torch.tensor(sorted(first.values()))]
    for request in requests(s, draws=2, steps=2):
        slow = isinstance(request, SLOW)
        part = every[:12] if slow else every
        order = torch.randperm(len(part), generator=generator(1))
        with precise(s.model, request) as model:
            whole = log_prob(model, part, request=request)
            if isinstance(whole, Unavailable):
                continue
            for rows in (order[:3],) if slow else (torch.cat([order, order[:3]]), order[:3], order[:1]):
                other = log_prob(model, part[rows], request=request)
                assert not isinstance(other, Unavailable)
                once = rows[: len(order)]
                gap = (other.nats[: len(once)] - whole.nats[once]).abs()
                off = gap > 1e-4 * (1 + whole.nats[once].abs())
                assert off.double().mean() < 0.05, (
                    f"rows change with their batch by up to {gap.max():.3g} nats ({request})"
                )


@check
def eval_is_deterministic(s: Subject) -> None:
    """Equal generators give equal numbers, whatever mode the module was left in; exact ones need none."""
    a = s.available(s.test[:50])
    s.model.train()
    b = s.available(s.test[:50])
    s.model.eval()
    assert torch.equal(a.nats, b.nats), "two calls with the same seed differ"
    if isinstance(a, Exact):
        c = s.available(s.test[:50], seed=99)
        assert torch.allclose(a.nats, c.nats, atol=1e-5), "an exact likelihood depends on the generator"


@check
def global_state_is_untouched(s: Subject) -> None:
    """Likelihoods and samples leave torch's global generator alone, and do not read it."""
    before = torch.random.get_rng_state()
    s.log_prob(s.test[:20])
    first = draw(s, 5, seed=0)
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state moved"
    with seeded(12345):
        again = draw(s, 5, seed=0)
    assert same(first, again), "samples depend on the global random state"


@check
def gradients_are_for_those_who_ask(s: Subject) -> None:
    """Nats carry a gradient where x, c or a parameter asks for one, and of x the right one; else none."""
    part = s.test[:12].read()
    for request in (r for r in requests(s, draws=2, steps=2) if r.differentiable and not r.may_lack):

        def nats(model: Model, x: Tensor, c: Tensor | None, request: Request = request) -> Tensor:
            lik = model.given(c).log_prob(x, request=request, generator=generator(0))
            if isinstance(lik, Unavailable):
                raise NotApplicable
            return lik.nats

        assert not nats(s.model, part.x, part.c).requires_grad, f"a gradient that nobody asked for ({request})"
        asking = copy.deepcopy(s.model).requires_grad_()
        if any(True for _ in asking.parameters()):
            assert nats(asking, part.x, part.c).requires_grad, f"no gradient for parameters that ask ({request})"
        if part.c is not None and part.c.is_floating_point():
            c = part.c.clone().requires_grad_()
            assert nats(s.model, part.x, c).requires_grad, f"no gradient for a context that asks ({request})"
        gradient_of_x(s, part, request)


def gradient_of_x(s: Subject, part: Part, request: Request) -> None:
    """The gradient of x is the slope between neighbours, what is drawn being the same for both."""
    step = getattr(s.case.space, "step", s.case.space)
    if not step.columns or any("counting" in column.measure for column in step.columns):
        return
    x = part.x.clone().requires_grad_()
    inside = part.x.isfinite()  # neither missing nor after the end
    scale = part.x[inside].std()
    along = torch.where(inside, 1e-2 * scale * (1 - 2 * torch.rand(x.shape, generator=generator(2))).sign(), 0.0)

    def nats(x: Tensor) -> Tensor:
        c = None if part.c is None else s.model.encode_context(part.c)
        lik = s.model.rows_log_prob(x, c, request, RowNoise.by_place(len(x), generator(1)))
        assert not isinstance(lik, Unavailable)
        return lik.nats.double()

    values, got = nats(x), torch.zeros_like(x)
    if values.requires_grad:  # else no number moves with x, as the slopes then say, too
        (got,) = torch.autograd.grad(values.sum(), x)
    got = torch.where(inside, got * along, 0.0).flatten(1).sum(1)
    wide, narrow = ((nats(part.x + k * along) - nats(part.x - k * along)) / (2 * k) for k in (1, 0.3))
    smooth = (wide - narrow).abs() < 0.02 * (1e-2 + wide.abs())  # no edge of a bin, no kink between the neighbours
    off = smooth & ((got - narrow).abs() > 0.05 * (1e-2 + narrow.abs()))
    assert off.sum() <= 0.3 * smooth.sum(), f"{int(off.sum())} of {int(smooth.sum())} gradients by x are wrong"


@check
def mc_error_is_calibrated(s: Subject) -> None:
    """The spread over seeds is what the errors say: of rows, and of their mean, which moves by all that they share."""
    part = s.test[:40]
    first = s.available(part)
    if isinstance(first, Exact) or first.draws == 0:
        raise NotApplicable
    runs = [number(s.available(part, seed=100 + k)) for k in range(24)]
    fixed = set.intersection(*(set(r.shared) for r in runs))  # a source that no seed moves
    runs = [dataclasses.replace(r, shared={k: v for k, v in r.shared.items() if k not in fixed}) for r in runs]
    for what, found in (("rows", runs), ("their mean", [mean(r) for r in runs])):
        spread = torch.stack([torch.as_tensor(r.nats) for r in found]).var(0).mean().sqrt()
        said = torch.stack([torch.as_tensor(r.mc_se**2 + r.shared_se**2) for r in found]).mean().sqrt()  # type: ignore[operator]
        ratio = float(spread / said.clamp(min=1e-12))
        assert 0.5 < ratio < 2.0 or spread < 1e-4, f"spread of {what} is {ratio:.2f} times the stated error"


@check
def shared_errors_stay(s: Subject) -> None:
    """What rows share is the same however many there are, stands in their mean in full, and cancels in a difference."""
    few, many = (number(s.available(s.test[torch.arange(n) % 5])) for n in (5, 80))
    if not few.shared:
        raise NotApplicable
    assert set(few.shared) == set(many.shared), "rows and more rows name other sources"
    ratio = mean(many).shared_se / mean(few).shared_se
    assert 0.5 < ratio < 2.0, f"16 times as many rows have {ratio:.2f} times the shared error"
    assert mean(few - few).shared_se == 0, "what both share does not cancel"


# -- the truth -------------------------------------------------------------------------------------


def enumerated(s: Subject) -> tuple[Tensor, float]:
    """All states, or a grid, and the measure of each, or a skipped check."""
    if s.case.states is not None:
        return s.case.states(), 1.0
    if s.case.grid is None:
        raise NotApplicable
    return s.case.grid()


@check
def sums_to_one(s: Subject) -> None:
    """exp(log p) sums over all states, or integrates over the plane, to 1 (a lower bound: to at most 1)."""
    x, cell = enumerated(s)
    states = s.case.states
    exact = isinstance(s.available(s.test[:2]), Exact)
    if states is None and not exact:  # noise, not the rule, limits how well a noisy number can be integrated
        n = math.isqrt(len(x))
        x, cell = x.reshape(n, n, 2)[::3, ::3].reshape(-1, 2), 9 * cell
    request = requests(s, draws=64 if states is not None else 8)[0]
    for c in s.contexts:
        part = Part(x, every(c, len(x)))
        lik = s.log_prob(part, request=request)
        assert not isinstance(lik, Unavailable)
        mass = lik.nats.double().exp() * cell
        total = float(mass.sum())
        slack = 1e-5 if states is not None else 1e-3 + rule_error(mass)
        if isinstance(lik, LowerBound):
            again = s.log_prob(part, seed=1, request=request)
            assert isinstance(again, LowerBound)
            least, noise = least_log_sum(lik.nats.double(), again, math.log(cell))
            assert least < slack + 4 * noise, f"a lower bound sums to {math.exp(least):.6f}"
            continue
        # mean of exp of a noisy number is above exp of its mean, by half its variance
        slack += 4 * float((mass * mc_se(lik)).square().sum().sqrt()) + float((mass * mc_se(lik).square()).sum())
        slack += 4 * float(sum((mass * move).sum().abs() for move in number(lik).shared.values()))
        if isinstance(lik, Exact):
            assert abs(total - 1) < slack, f"probabilities sum to {total:.6f}"
        elif isinstance(lik, UpperBound):
            assert total > 1 - slack, f"an upper bound sums to {total:.6f}"
        else:
            least = 0.0 if getattr(request, "draws", 0) else 0.9 - slack  # of log p with noise drawn, which bounds it
            assert least < total < 1.1 + slack, f"the estimate sums to {total:.6f}"


def least_log_sum(first: Tensor, again: Available, log_cell: float) -> tuple[float, float]:
    """What the log of the sum of exp(b) is at least, for b told twice with noise, and the error of that.

    exp of a noisy number is too large on average, by more the heavier the noise's tails; but of any q that the noise
    does not know, log sum exp b >= sum q (b - log q), which is linear in b: q is from the ``first`` time, b from the
    other. It is tight at q ~ exp(b).
    """
    log_q = first.log_softmax(0)
    q, rows = log_q.exp(), number(again)
    noise = float((q * mc_se(again)).square().sum().sqrt() + sum((q * m).sum().abs() for m in rows.shared.values()))
    return float((q * (again.nats.double() + log_cell - log_q)).nan_to_num(0.0).sum()), noise


@check
def never_beats_the_truth(s: Subject) -> None:
    """On average over held-out data, no exact likelihood and no lower bound exceeds the source's own."""
    above, kind = above_the_truth(s)
    assert above.error is not None
    slack = 0.05 if kind is Estimate else 0.0
    assert above.nats < 3 * above.error + slack, f"above the source's entropy: {above}"


def above_the_truth(s: Subject) -> tuple[Number[float], type[Available]]:
    """The mean of log p(x) - log p*(x) over held-out rows, and the kind of the likelihood."""
    lik, test = s.available(s.case.data.test), s.case.data.test
    if isinstance(lik, UpperBound):
        raise NotApplicable
    return mean(dataclasses.replace(number(lik), nats=lik.nats.double() - s.case.truth(test))), type(lik)


def mean_nats(model: Model, part: Part) -> float:
    """Mean log-likelihood, over several seeds where it draws."""
    means: list[float] = []
    for seed in range(SEEDS):
        lik = log_prob(model, part, seed)
        if isinstance(lik, Unavailable):
            raise NotApplicable
        means.append(float(lik.nats.double().mean()))
        if not number(lik).draws:
            break
    return sum(means) / len(means)


def initial(s: Subject) -> Model:
    """The model as it was before training."""
    with seeded(s.seed):
        return s.cls(s.config, s.case.space, s.case.context)


@check
def training_helps(s: Subject) -> None:
    """The trained model is better on held-out data than the prepared, untrained one, or already near the truth."""
    fresh, train = initial(s), s.case.data.train
    fresh.prepare(train.x, train.c, train.weight, generator(s.seed))
    after, before = (mean_nats(model, s.test) for model in (s.model, fresh))
    short = float(s.case.truth(s.test).mean()) - after
    assert after - before > 0.02 or short < 0.1, (
        f"training gained {after - before:.3f} nats and is {short:.3f} below the truth"
    )


@check
def scaling_shifts_the_density(s: Subject) -> None:
    """Data times a have log-density lower by D log a: the model accounts for its own scaling."""
    space, factor = s.case.space, 1024.0  # a power of two: scaled data are the same to the last bit
    step = getattr(space, "step", space)
    request = requests(s, draws=256)[0]  # other rows draw other noise
    if not continuous(step) or s.case.context is not None or request.kind == "Unavailable":
        raise NotApplicable
    data = s.case.data
    parts = {
        k: dataclasses.replace(getattr(data, k), x=getattr(data, k).x * factor) for k in ("train", "valid", "test")
    }
    one, other = (s.briefly(d, steps=60) for d in (data, dataclasses.replace(data, **parts)))
    lik, scaled = log_prob(one, s.test, request=request), log_prob(other, Part(s.test.x * factor), request=request)
    assert not isinstance(lik, Unavailable)
    assert not isinstance(scaled, Unavailable)
    numbers = s.test.x.isfinite().flatten(1).sum(1)  # of each datum
    shift = float(((lik.nats - scaled.nats) / numbers).double().median())
    expected = math.log(factor)
    assert abs(shift - expected) < 0.15 / step.dims, (
        f"scaling by {factor:g} shifted the nats by {shift:.3f} per number, not {expected:.3f}"
    )


@check
def context_matters(s: Subject) -> None:
    """On held-out data the right contexts are worth more than contexts of other rows."""
    if s.case.context is None:
        raise NotApplicable
    assert s.test.c is not None
    gain = mean_nats(s.model, s.test) - mean_nats(s.model, Part(s.test.x, s.test.c.roll(1, 0)))
    assert gain > 0.05, f"the right context is worth only {gain:.3f} nats"


# -- samples ---------------------------------------------------------------------------------------


@check
def samples_are_of_the_space(s: Subject) -> None:
    """Shapes [n, *C, *E], the space's dtype and values, for any n, zero included."""
    event = s.case.space.event_shape

    def is_batch(x: Tensor, *shape: int) -> bool:
        """Of that shape and events; -1 in an event is any length."""
        return len(x.shape) == len(shape) + len(event) and all(
            want in (-1, got) for got, want in zip(x.shape, (*shape, *event), strict=True)
        )

    if s.case.context is None:
        x = s.model.sample(7, generator=generator(0))
        assert is_batch(x, 7)
        assert is_batch(s.model.sample(0), 0)
    else:
        assert s.test.c is not None
        c = s.test.c[:6].reshape(2, 3, *s.case.context.event_shape)
        x = s.model.given(c).sample(7, generator=generator(0))
        assert is_batch(x, 7, 2, 3)
        lik = s.model.given(c).log_prob(x, generator=generator(0))
        if not isinstance(lik, Unavailable):
            assert lik.nats.shape == (7, 2, 3)
    assert x.dtype == s.case.space.dtype
    s.case.space.check(x)


@check
def samples_follow_the_generator(s: Subject) -> None:
    """Same generator, same samples; another seed, others."""
    assert same(draw(s, 400, seed=5), draw(s, 400, seed=5)), "equal generators gave different samples"
    assert not same(draw(s, 400, seed=5), draw(s, 400, seed=6)), "different generators gave equal samples"


@check
def samples_agree_with_the_density(s: Subject) -> None:
    """Frequencies of samples are the probabilities that the model states (chi-squared over pooled cells)."""
    if s.model.default_request().kind != "Exact" or (s.case.context is not None and not s.case.context.values):
        raise NotApplicable
    n, (x, cell) = 4000, enumerated(s)
    for c in s.contexts:
        lik = s.available(Part(x, every(c, len(x))))
        drawn = s.model.given(c).sample(n, generator=generator(11)).reshape(n, *s.case.space.event_shape)
        mass = n * lik.nats.double().exp() * cell
        if s.case.states is not None:
            agree(count(index_of(x, drawn), len(x)), mass, torch.zeros_like(mass), "samples")
        else:  # in coarse cells, the tails outside the grid left out (they are negligible)
            agree(count(coarse(drawn), 100), *coarsely(x, mass), "samples")


def continuous(space: Space) -> bool:
    """Has every number of a datum a density?"""
    return bool(space.columns) and all(c.measure == "lebesgue" for c in space.columns)


def features(space: Space, x: Tensor) -> Tensor:
    """What is compared between samples and data, float64 [N, D]; of free length: means of steps, and how many."""
    if space.fill is None:
        return x.reshape(len(x), -1).double()
    here = torch.arange(x.shape[1]) < space.lengths(x)[:, None]
    steps = x.reshape(*x.shape[:2], -1).double()
    if not space.has_eos:  # whose lengths are given, and others in samples
        return steps[:, 0]
    means = torch.where(here[..., None], steps, math.nan).nanmean(1)
    return torch.cat([space.lengths(x)[:, None].double(), means], 1)


@check
def samples_resemble_the_data(s: Subject) -> None:
    """Means and spreads of every dimension are those of the data, within a tiny model's reach."""
    n = 2000
    test = s.case.data.test[:n]
    with torch.no_grad():
        drawn = s.model.sample(n, generator=generator(3)) if test.c is None else s.model.given(test.c).sample(1)[0]
    a, b = (features(s.case.space, t) for t in (drawn, test.x))
    lost_a, lost_b = a.isnan().double().mean(0), b.isnan().double().mean(0)
    assert (lost_a - lost_b).abs().max() < 0.12, "other dimensions are missing than in the data"
    mean_a, mean_b = a.nanmean(0), b.nanmean(0)
    spread_b = (b - mean_b).square().nanmean(0).sqrt().clamp(min=1e-6)
    spread_a = (a - mean_a).square().nanmean(0).sqrt()
    off = ((mean_a - mean_b) / spread_b).abs().max()
    assert off < 0.5, f"a mean is off by {off:.2f} standard deviations"
    ratio = (spread_a / spread_b).clamp(min=1e-6).log().abs().max().exp()
    assert ratio < 2.0, f"a spread is off by a factor of {ratio:.2f}"


# -- persistence -----------------------------------------------------------------------------------


@check
def run_folder_round_trip(s: Subject) -> None:
    """A saved and read model, and each of its parts, has the same options, nats and samples; options survive JSON."""
    model, read = s.fitted
    assert read.model.config == model.config
    assert json.loads(json.dumps(read.info["options"])) == json.loads(json.dumps(dataclasses.asdict(model.config)))
    equally(model, read.model, s.test[:30], "model")
    parts = read.model.parts()
    assert model.parts().keys() == parts.keys() == read.info["parts"].keys()
    for name, part in model.parts().items():
        assert parts[name].config == part.config
        if part.context is None:
            equally(part, parts[name], Part(part.sample(30, generator=generator(1))), name)


def equally(model: Model, read: Model, part: Part, name: str) -> None:
    """Both have the same nats of these rows, and the same samples given their contexts."""
    a, b = (log_prob(one, part) for one in (model, read))
    if not isinstance(a, Unavailable) and not isinstance(b, Unavailable):
        assert torch.equal(a.nats, b.nats), f"a reloaded {name} has other likelihoods"
    n = 30 if part.c is None else 2  # of each context
    drawn, again = (one.given(part.c).sample(n, generator=generator(1)) for one in (model, read))
    assert same(drawn, again), f"a reloaded {name} samples differently"


@check
def validation_rows_train_nothing(s: Subject) -> None:
    """Where nothing is chosen by validation, other validation rows leave every weight as it is."""
    data = s.case.data
    one, two = (s.briefly(d).state_dict() for d in (data, dataclasses.replace(data, valid=data.test[:50])))
    for name, value in one.items():
        assert same(value, two[name]), f"{name} depends on the validation rows"


@check
def training_is_reproducible(s: Subject) -> None:
    """The same seed gives the same weights, the ones chosen by validation."""
    one, two = (s.briefly(s.case.data, checks=4).state_dict() for _ in range(2))
    for (name, a), b in zip(one.items(), two.values(), strict=True):
        assert same(a, b), f"{name} differs between two fits of one seed"


@check
def every_parameter_learns(s: Subject) -> None:
    """No parameter tensor is left as it was initialised."""
    for (name, a), b in zip(initial(s).named_parameters(), s.model.parameters(), strict=True):
        assert a.numel() == 0 or not torch.equal(a, b), f"{name} never changed"


# -- optional abilities ----------------------------------------------------------------------------


@check
def encoding_has_its_shape(s: Subject) -> None:
    """encode(x) is a distribution with one batch entry per row, or a named error."""
    part = s.test[:10]
    if not can(s.model, Encodes):
        message = "encode answers, but the family does not say that it Encodes"
        return refused(PofxError, lambda: s.given(part).encode(part.x), message)
    with torch.no_grad():
        q = s.given(part).encode(part.x)
    assert q.batch_shape == (10,)
    assert q.mean.isfinite().all()


@check
def score_is_the_gradient(s: Subject) -> None:
    """score(x) = grad_x log p(x), by autograd through log_prob or by central differences."""
    if not can(s.model, HasScore) or s.case.space.measure != Measure.lebesgue(s.case.space.dims):
        raise NotApplicable
    part = s.test[:20]
    if not isinstance(s.available(part), Exact):
        raise NotApplicable
    got = s.given(part).score(part.x)
    model = copy.deepcopy(s.model).double()
    scale = s.case.data.train.x.std(0)
    for j in range(part.x.shape[1]):
        step = torch.zeros_like(part.x)
        step[:, j] = 1e-2 * scale[j]
        up, down = (model.given(part.c).log_prob(part.x + k * step) for k in (1, -1))
        assert isinstance(up, Exact)
        assert isinstance(down, Exact)
        slope = (up.nats - down.nats).double() / (2 * step[:, j])
        gap = ((slope - got[:, j]) * scale[j]).abs()
        tolerance = 0.05 * (1 + (slope * scale[j]).abs())
        assert (gap < tolerance).double().mean() >= 0.85, f"score is off by up to {gap.max():.3g} in dimension {j}"


@check
def energy_is_the_density(s: Subject) -> None:
    """log p(x | c) + energy(x) is one number for all x, log Z, but for the errors of rows; score(x) its gradient."""
    if not can(s.model, HasEnergy) or getattr(s.model.default_request(), "draws", False):
        raise NotApplicable
    x = s.test.x[:100]
    for c in s.contexts[:2]:
        p = s.model.given(every(c, len(x)))
        lik = p.log_prob(x, generator=generator(0))
        assert not isinstance(lik, Unavailable)
        log_z = -(lik.nats + p.energy(x))
        off = (log_z - log_z.median()).abs() > 1e-4 * (1 + lik.nats.abs()) + 6 * mc_se(lik)
        assert not off.any(), f"log Z is another number for {int(off.sum())} of {len(x)} rows"
        if can(s.model, HasScore):
            step = 1e-3 * s.case.data.train.x.std(0) * torch.randn(x.shape, generator=generator(1), dtype=x.dtype)
            doubled = copy.deepcopy(s.model).double().given(every(c, len(x)))
            rise = doubled.energy(x - step) - doubled.energy(x + step)
            told = 2 * (p.score(x) * step).flatten(1).sum(1)
            near = (rise - told).abs() < 0.05 * (told.abs() + told.abs().mean())
            assert near.double().mean() > 0.9, "the score is not the slope of the energy"


@check
def noised_score_is_the_gradient(s: Subject) -> None:
    """noised_score(x) = grad_x log p_noise(x), on data from a Gaussian, which plus noise is a Gaussian."""
    source = s.case.source
    if not can(s.model, HasNoisedScore) or not isinstance(source, Gaussian):
        raise NotApplicable
    scale, x = s.case.data.train.x.std(0), s.test.x
    for noise in (0.2, 1.0):
        got = s.model.given().noised_score(x, noise) * scale
        covariance = source.covariance + (noise * scale).square().diag()
        want = -torch.linalg.solve(covariance, (x - source.mean).T).T * scale
        gap = float((got - want).square().mean().sqrt() / want.square().mean().sqrt())
        assert gap < 0.15, f"the score at noise {noise:g} is off by {gap:.0%}"


# -- bad input -------------------------------------------------------------------------------------


@check
def bad_input_is_named(s: Subject) -> None:
    """NaN, infinity, wrong shape, wrong dtype, out of range, empty, unknown options: an error with a name."""
    good = s.test[:4]
    p = s.given(good)
    x = good.x

    def refuses(bad: Tensor, kind: type[PofxError]) -> None:
        message = f"log_prob took {bad.dtype} {tuple(bad.shape)} without {kind.__name__}"
        refused(kind, lambda: p.log_prob(bad), message)

    space = s.case.space
    if not space.dtype.is_floating_point:
        refuses(x.double() + 0.5, BadValue)
    if space.event_shape and space.event_shape[-1] > 0:
        refuses(x[..., :-1], WrongShape)
    refuses(x.to(torch.complex64), WrongShape)
    if s.case.context is None:
        refuses(x[:0], EmptyData)
    if space.dtype.is_floating_point and space.fill is None:
        refuses(x * math.inf, BadValue)
        if not space.columns or not all(c.nullable for c in space.columns):
            refuses(x * math.nan, BadValue)
    if space.fill is not None:
        short = torch.full_like(x[:, :1], space.fill)
        refuses(torch.cat([short, x], 1), BadValue)
        if space.dtype.is_floating_point:
            refuses(torch.cat([x[:, :1], -short, x[:, 1:]], 1), BadValue)
    if space.symbols and space.symbols <= torch.iinfo(space.dtype).max:
        inside = x != (-1 if space.fill is None else space.fill)
        refuses(torch.where(inside, space.symbols, x), BadValue)
        if space.dtype.is_signed:
            refuses(torch.where(inside, -2, x), BadValue)
    for wrong in (
        lambda: p.log_prob(x, request=CrystalBall),
        lambda: p.sample(-1),
        lambda: s.model.given(None if s.case.context is not None else torch.tensor(0)),
    ):
        refused(UsageError, wrong, "a nonsensical request was taken")
