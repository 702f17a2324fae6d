"""Information measures against closed forms, exact sums, quadrature and each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    TransformedDistribution,
    Uniform,
    transforms,
)

from pofx import information as info
from pofx.core.errors import Incomparable, UsageError
from pofx.core.likelihood import (
    Estimate,
    Exact,
    Kind,
    Likelihood,
    LowerBound,
    Number,
    Unavailable,
    UpperBound,
    make,
)
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.requests import Request, Sampler
from pofx.spaces import Category, Label, Real, Table
from toys import PROMISES

LETTERS = Table((Category("a", ("x", "y", "z")), Category("b", ("0", "1"), nullable=True)))


class Known(Model):
    """A test model: one probability per value of a small table, given a label or not, of any claimed kind."""

    name = "known"
    estimators = tuple(PROMISES.values())

    @dataclass(frozen=True)
    class Config:
        seed: int = 0
        kind: str = "Exact"

    def __init__(self, seed: int = 0, kind: Kind = Exact, context: Label | None = None) -> None:
        super().__init__(self.Config(seed, kind.__name__), LETTERS, context)
        self.kind, groups = kind, 1 if context is None else len(context.values)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("p", torch.rand(groups, 9, generator=generator, dtype=torch.float64).softmax(1))

    @classmethod
    def refuses(cls, space, context, config):  # type: ignore[no-untyped-def]
        return None

    def answers(self, asked):  # type: ignore[no-untyped-def]
        return getattr(asked, "kind", self.config.kind) == self.config.kind

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        if self.kind is Unavailable:
            return Unavailable("it has no density")
        cell = (3 * x[:, 0] + x[:, 1].nan_to_num(2)).long()
        nats = self.p[torch.zeros_like(cell) if c is None else c, cell].log()
        if self.kind is Exact:
            return Exact(nats, self.space.measure)
        gap = {LowerBound: -0.25, UpperBound: 0.25, Estimate: 0.0}[self.kind]
        return make(self.kind, nats + gap, self.space.measure, torch.full_like(nats, 0.01), 16, "test")

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        p = self.p.expand(n, -1) if c is None else self.p[c]
        cell = torch.multinomial(p, 1, generator=generator).squeeze(1)
        second = (cell % 3).double()
        return torch.stack([(cell // 3).double(), torch.where(second == 2, math.nan, second)], 1)


def close(result: Number, truth: float | Tensor, tol: float = 1e-6) -> None:
    assert torch.allclose(result.nats.double(), torch.as_tensor(truth, dtype=torch.float64), atol=tol), result


def within(result: Number, truth: float, z: float = 4.0) -> None:
    assert 0 < result.mc_se.item() < 0.1
    assert abs(result.nats.item() - truth) < z * result.mc_se.item(), (result, truth)


def test_gaussians_are_closed_and_batched():
    p, q = Normal(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])), Normal(torch.tensor([1.0, 1.0]), 1.0)
    h = info.entropy(p)
    assert h.kind is Exact
    assert h.draws == 0
    close(h, 0.5 * torch.log(2 * math.pi * math.e * p.variance))
    close(info.kl(p, q), torch.tensor([0.5, 0.5 * (4 - 1 - math.log(4))]))
    close(info.reverse_kl(p, q), info.kl(q, p).nats)
    close(info.cross_entropy(p, q), info.entropy(p).nats + info.kl(p, q).nats)


def test_monte_carlo_meets_the_closed_form():
    # an affine transform hides the Gaussian from the closed forms
    hidden = TransformedDistribution(Normal(0.0, 1.0), [transforms.AffineTransform(1.0, 2.0)])
    seen, q = Normal(1.0, 2.0), Normal(0.0, 3.0)
    generator = torch.Generator().manual_seed(3)
    for result, truth in (
        (info.entropy(hidden, generator=generator), info.entropy(seen)),
        (info.cross_entropy(hidden, q, generator=generator), info.cross_entropy(seen, q)),
        (info.kl(hidden, q, draws=20000, generator=generator), info.kl(seen, q)),
    ):
        assert result.kind is Estimate
        assert result.note.startswith("Monte Carlo")
        within(result, truth.nats.item())


def test_monte_carlo_error_is_calibrated():
    hidden = TransformedDistribution(Normal(0.0, 1.0), [transforms.AffineTransform(0.0, 1.0)])
    truth = info.entropy(Normal(0.0, 1.0)).nats
    runs = [info.entropy(hidden, draws=100, generator=torch.Generator().manual_seed(s)) for s in range(400)]
    z = torch.stack([(r.nats - truth) / r.mc_se for r in runs])
    assert 0.85 < z.std() < 1.15


def test_discrete_distributions_are_summed():
    p, q = Binomial(6, torch.tensor(0.3)), Binomial(6, torch.tensor(0.6))
    x = torch.arange(7.0)
    truth = (p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x))).sum()
    close(info.kl(p, q), truth)
    m = torch.logaddexp(p.log_prob(x), q.log_prob(x)) - math.log(2)
    js = 0.5 * sum((d.log_prob(x).exp() * (d.log_prob(x) - m)).sum() for d in (p, q))
    result = info.jensen_shannon(p, q)
    assert result.kind is Exact
    assert result.note == "sum over 7 values"
    close(result, js.double())


def test_jensen_shannon_runs_from_zero_to_log_two():
    p = Categorical(torch.tensor([0.5, 0.5, 0.0, 0.0]))
    q = Categorical(torch.tensor([0.0, 0.0, 0.5, 0.5]))
    close(info.jensen_shannon(p, p), 0.0)
    close(info.jensen_shannon(p, q), math.log(2))
    # disjoint continuous supports: each draw lies outside the other's support
    close(info.jensen_shannon(Uniform(0.0, 1.0), Uniform(2.0, 3.0)), math.log(2))


def test_jensen_shannon_meets_quadrature():
    p, q = Normal(0.0, 1.0), Normal(2.0, 0.5)
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    a, b = (d.log_prob(grid.float()).double() for d in (p, q))
    m = torch.logaddexp(a, b) - math.log(2)
    truth = torch.trapezoid(0.5 * a.exp() * (a - m) + 0.5 * b.exp() * (b - m), grid).item()
    within(info.jensen_shannon(p, q, draws=20000), truth)


def test_kl_is_infinite_where_mass_is_missed():
    assert info.kl(Categorical(torch.tensor([0.5, 0.5])), Categorical(torch.tensor([1.0, 0.0]))).nats == math.inf
    hidden = TransformedDistribution(Normal(0.0, 1.0), [transforms.AffineTransform(0.0, 1.0)])
    result = info.kl(hidden, Uniform(-1.0, 1.0))
    assert result.nats == math.inf
    assert result.mc_se == 0
    # zero probability of p costs nothing
    close(info.kl(Categorical(torch.tensor([1.0, 0.0])), Categorical(torch.tensor([0.5, 0.5]))), math.log(2))


def test_mutual_information_of_a_binary_symmetric_channel():
    flip = 0.1
    channel = [Bernoulli(torch.tensor(flip)), Bernoulli(torch.tensor(1 - flip))]
    noise = -(flip * math.log(flip) + (1 - flip) * math.log(1 - flip))
    close(info.mutual_information(channel), math.log(2) - noise)
    one_sided = info.mutual_information(channel, torch.tensor([1.0, 0.0]))
    close(one_sided, 0.0)
    with pytest.raises(UsageError, match="sum to 1"):
        info.mutual_information(channel, torch.tensor([0.5, 0.6]))


def test_mutual_information_of_two_gaussians_is_a_kl():
    rho = 0.8
    joint = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]]))
    close(info.kl(joint, MultivariateNormal(torch.zeros(2), torch.eye(2))), -0.5 * math.log(1 - rho**2))


def test_models_are_summed_and_agree_with_categoricals():
    p, q = Known(1), Known(2)
    cp, cq = Categorical(p.p[0]), Categorical(q.p[0])
    for f in (info.kl, info.reverse_kl, info.cross_entropy, info.jensen_shannon):
        result = f(p, q)
        assert result.kind is Exact
        close(result, f(cp, cq).nats)
    close(info.entropy(p), cp.entropy())
    sampled = torch.stack([info.surprise(p, x).nats for x in p.sample(5)])
    assert torch.allclose(sampled, info.surprise(p, p.sample(5)).nats)


def test_conditionals_are_batched_and_make_a_channel():
    model = Known(4, context=Label(("u", "v", "w")))
    given = model.given(torch.arange(3))
    close(info.entropy(given), Categorical(model.p).entropy())
    weight = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    mixture = Categorical(weight @ model.p)
    truth = mixture.entropy() - weight @ Categorical(model.p).entropy()
    close(info.mutual_information(given, weight), truth)
    with pytest.raises(UsageError, match="one context per input"):
        info.mutual_information(model.given(torch.tensor(0)))


def test_kind_follows_the_bound():
    p, truth = Known(1), Known(2)
    h = info.cross_entropy(p, truth).nats
    upper = info.cross_entropy(p, Known(2, LowerBound))
    assert upper.kind is UpperBound
    close(upper, h + 0.25)
    assert upper.mc_se > 0
    assert info.cross_entropy(p, Known(2, UpperBound)).kind is LowerBound
    assert info.kl(p, Known(2, LowerBound)).kind is UpperBound
    # log p enters KL with a plus and log q with a minus
    assert info.kl(Known(1, LowerBound), truth).kind is LowerBound
    assert info.kl(Known(1, LowerBound), Known(2, LowerBound)).kind is Estimate
    assert info.entropy(Known(1, LowerBound)).kind is UpperBound
    assert info.jensen_shannon(p, Known(2, LowerBound)).kind is Estimate
    assert info.surprise(Known(1, LowerBound), p.sample(3)).kind is UpperBound
    none = info.kl(p, Known(2, Unavailable))
    assert none.kind is Unavailable
    assert "no density" in str(none)


def test_a_bound_is_sampled_not_summed():
    """The probabilities of a bound are not those of the model, so its expectation needs its own draws."""
    p = Known(1, LowerBound)
    result = info.entropy(p, draws=4000)
    assert result.draws == 4000
    within(result, Categorical(p.p[0]).entropy().item() + 0.25)


def test_directions_of_kl_differentiate():
    """Forward KL to a two-mode target has its minimum at the target's moments; reverse KL at a mode."""
    modes = Normal(torch.tensor([-2.0, 2.0]), torch.tensor([0.5, 0.5]))
    p = MixtureSameFamily(Categorical(torch.tensor([0.5, 0.5])), modes)
    found = {}
    for direction in (info.kl, info.reverse_kl):
        theta = torch.tensor([0.7, 0.0], requires_grad=True)
        optimizer = torch.optim.Adam([theta], 0.05)
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            optimizer.zero_grad()
            direction(p, Normal(theta[0], theta[1].exp()), draws=256, generator=generator).nats.backward()
            optimizer.step()
        found[direction] = theta.detach()
    cover, seek = found[info.kl], found[info.reverse_kl]
    assert abs(cover[0]) < 0.2
    assert abs(cover[1].exp() - math.sqrt(4.25)) < 0.2
    assert abs(seek[0] - 2) < 0.1
    assert abs(seek[1].exp() - 0.5) < 0.1


def test_a_score_function_gradient_is_never_half_there():
    rate = torch.tensor(3.0, requires_grad=True)
    assert not info.entropy(Poisson(rate)).nats.requires_grad


def test_draws_are_seeded_and_leave_the_global_state():
    p, q = Poisson(3.0), Poisson(4.0)
    before = torch.get_rng_state()
    a = info.jensen_shannon(p, q, generator=torch.Generator().manual_seed(1))
    b = info.jensen_shannon(p, q, generator=torch.Generator().manual_seed(1))
    c = info.jensen_shannon(p, q, generator=torch.Generator().manual_seed(2))
    assert a.nats == b.nats != c.nats
    assert torch.equal(before, torch.get_rng_state())


def test_different_measures_are_refused():
    class Plane(Known):
        def __init__(self) -> None:
            super().__init__()
            self.space = Table((Real("a"), Real("b")))

    with pytest.raises(Incomparable, match="Measures differ"):
        info.kl(Known(1), Plane())
    with pytest.raises(UsageError, match="at least 2"):
        info.entropy(Poisson(3.0), draws=1)


def test_units_and_text():
    h = info.entropy(Bernoulli(torch.tensor(0.5)))
    assert h.bits == pytest.approx(1.0)
    assert str(h) == "= 0.693147 nats (closed form)"
    assert str(info.entropy(Independent(Normal(torch.zeros(2), 1.0), 1))).startswith("= 2.83788")
    assert str(info.entropy(Poisson(3.0))).startswith("≈ 1.9")


class Shaken(Known):
    """A bound that is off by 0.5 times a standard normal number."""

    name = "shaken"

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        off = 0.5 * noise.randn().double()
        return make(LowerBound, off - math.log(9), self.space.measure, torch.full_like(off, 0.5), 8)


def test_noise_of_a_bound_is_in_the_error() -> None:
    """Over seeds: values that are drawn often are told apart, so 400 draws have 400 noises."""
    seeds = [torch.Generator().manual_seed(k) for k in range(40)]
    found = [info.cross_entropy(Known(1, LowerBound), Shaken(2, LowerBound), draws=400, generator=g) for g in seeds]
    spread = torch.stack([f.nats for f in found]).std()
    said = torch.stack([f.mc_se for f in found]).square().mean().sqrt()
    assert 0.7 < spread / said < 1.4
    assert said == pytest.approx(0.5 / 400**0.5, rel=0.3)
