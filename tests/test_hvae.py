"""Identities of hierarchical VAEs: a linear hierarchy in closed form, the proposal by autograd, bounds by enumeration,
gradients that are left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import pofx
from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch, GradientLearner, Recipe, Skipping
from pofx.core.likelihood import LowerBound
from pofx.core.muon import Muon
from pofx.core.noise import RowNoise
from pofx.core.requests import Ais, Elbo, Iwae, PerDatum
from pofx.families.hvae import Hvae, HvaeConfig
from pofx.families.latent import Latent
from pofx.nn.hierarchy import Ladder
from pofx.spaces import Image, Label, Real, Table
from pofx.testing.oracles import image_states


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- a linear hierarchy: z1 ~ N(0, 1), z2 = A z1 + T e, x = W z2 + b + S e ------------------------------------------

W = torch.tensor([[1.2, 0.3], [-0.4, 0.9], [0.3, 1.2]])  # orthogonal columns: z2 has a diagonal posterior given z1
W[:, 1] -= W[:, 0] * (W[:, 0] @ W[:, 1]) / W[:, 0].square().sum()
A, B, T, S = torch.tensor([0.8, -1.1]), torch.tensor([0.5, -1.0, 0.2]), 0.7, 0.6
GRAM = W.square().sum(0)
MIDDLE = T**2 + S**2 / GRAM  # variance of W^+ (x - b) given z1, diagonal
ABOVE = (A.square() / MIDDLE).sum()  # precision that x adds about z1
TRUTH = MultivariateNormal(B, W @ (A[:, None] * A + T**2 * torch.eye(2)) @ W.T + S**2 * torch.eye(3))


class LinearLadder(Ladder):
    """The exact posterior as a ladder, its message about z1 moved by ``shift``."""

    def __init__(self, shift: float) -> None:
        super().__init__(3, 9, (1, 2), hidden=4, blocks=1, context=0)
        self.shift = shift
        with torch.no_grad():
            self.shares[0][0] = S**2 / GRAM / MIDDLE  # precisions of x and of the prior weigh what both say of z2

    def up(self, y: Tensor, h: Tensor | None) -> list[Tensor]:
        seen = (y.sinh() - B) @ W / GRAM  # the heads embed numbers by asinh
        top = ((seen / MIDDLE) @ A / ABOVE + self.shift) * ABOVE / (1 + ABOVE)
        first = torch.stack([top, (-0.5 * (1 + ABOVE).log()).expand_as(top)], 1)
        variance = S**2 / GRAM * T**2 / MIDDLE
        return [first, torch.cat([seen * T**2 / MIDDLE, (0.5 * variance.log()).expand_as(seen)], 1)]

    def absorb(self, g: int, state: Any, z: Tensor) -> Any:
        if g == 0:
            return torch.cat([z * A, torch.full((len(z), 2), math.log(T))], 1), None
        mean = z @ W.T + B
        return torch.stack([torch.zeros_like(mean), mean, torch.full_like(mean, math.log(S))], -1).flatten(1), None


def linear(shift: float = 0.0) -> Hvae:
    model = Hvae(HvaeConfig(sizes=(1, 2), components=1), Table(tuple(Real(name) for name in "abc")))
    model.net = LinearLadder(shift)
    return model.eval()


def bound(model: Hvae, x: Tensor, request: Any, seed: int = 0) -> LowerBound:
    with torch.no_grad():
        lik = model.log_prob(x, request=request, generator=seeded(seed))
    assert isinstance(lik, LowerBound)
    return lik


@pytest.fixture(scope="module")
def x() -> Tensor:
    return TRUTH.sample((300,)).double()


def test_the_exact_posterior_makes_every_bound_exact(x: Tensor) -> None:
    truth = TRUTH.log_prob(x.float())
    lik = bound(linear(), x, Iwae(4))
    torch.testing.assert_close(lik.nats.float(), truth, atol=1e-4, rtol=0)
    assert lik.mc_se.max() < 1e-4
    elbo = bound(linear(), x, Elbo(500))
    assert ((elbo.nats - truth).abs() < 5 * elbo.mc_se + 1e-4).float().mean() > 0.98


def test_the_gap_of_the_elbo_is_the_divergence_of_the_proposal(x: Tensor) -> None:
    lik, shift = bound(linear(0.5), x, Elbo(500)), 0.5 * ABOVE / (1 + ABOVE)
    scale = (1 + ABOVE).rsqrt()
    wrong = kl_divergence(Normal(shift, scale), Normal(torch.zeros(()), scale))  # z2 given z1 stays exact
    gap = (TRUTH.log_prob(x.float()) - lik.nats).mean()
    assert abs(float(gap - wrong)) < 4 * float(lik.mc_se.square().sum().sqrt()) / len(x)
    few, many = (bound(linear(0.5), x, Iwae(k)) for k in (2, 200))
    error = float(many.mc_se.square().sum().sqrt()) / len(x)
    assert lik.nats.mean() < few.nats.mean() < many.nats.mean() < TRUTH.log_prob(x.float()).mean() + 4 * error


def test_terms_are_the_rates_of_the_groups(x: Tensor) -> None:
    model, request = linear(), Elbo(400)
    terms = model.given().bound_terms(x, request=request, generator=seeded(0))
    assert list(terms) == ["z1", "z2", "reconstruction"]
    total = torch.stack([term.nats for term in terms.values()]).sum(0)
    torch.testing.assert_close(total, bound(model, x, request).nats)
    # in closed form, at the top: KL(p(z1 | x) || N(0, 1))
    seen = ((x.float() - B) @ W / GRAM / MIDDLE) @ A / (1 + ABOVE)
    q, prior = Normal(seen, (1 + ABOVE).rsqrt()), Normal(torch.zeros(()), torch.ones(()))
    torch.testing.assert_close(-terms["z1"].nats.float(), kl_divergence(q, prior), atol=1e-4, rtol=1e-4)
    report = model.latent_report(x.repeat(20, 1))
    assert report.rates[0] == pytest.approx(float(kl_divergence(q, prior).mean()), rel=1e-3)
    assert report.rates[1] == pytest.approx(-float(terms["z2"].nats.mean()), rel=0.05)
    assert report.collapsed == ()


def test_annealing_holds_the_truth_between_its_ends(x: Tensor) -> None:
    model, rows = linear(0.5), x[:8]
    truth, request = TRUTH.log_prob(rows.float()), Ais(temperatures=16, chains=16)
    below = bound(model, rows, request)
    assert ((truth - below.nats) > -5 * below.mc_se - 0.01).all()
    assert float((truth - below.nats).mean()) < 0.05
    with torch.no_grad():
        fitted = model.log_prob(rows, request=PerDatum(draws=400, fits=40), generator=seeded(0))
    gaps = [float((truth - lik.nats).mean()) for lik in (fitted, bound(model, rows, Elbo(400)))]
    assert -0.01 < gaps[0] < gaps[1] - 0.05  # a q of each row can take the shift back


class Deaf(LinearLadder):
    """Told nothing of z1."""

    def up(self, y: Tensor, h: Tensor | None) -> list[Tensor]:
        first, second = super().up(y, h)
        return [first * 0, second]


def test_the_report_names_a_group_that_collapsed(x: Tensor) -> None:
    model = linear()
    model.net = Deaf(0.0)
    report = model.latent_report(x)
    assert report.collapsed == (1,)
    assert report.active == 2
    assert report.rate == pytest.approx(sum(report.rates))


# -- the proposal, of any net ---------------------------------------------------------------------------------------

BINARY = Image(2, 2, 1, 2)
NETS: dict[str, dict[str, Any]] = {
    "ladder": {"net": "ladder", "sizes": (2, 3), "hidden": 16},
    "deep": {"net": "deep", "groups": (1, 2), "latent": 2, "channels": 8},
    "window": {"net": "deep", "groups": (2, 1), "latent": 1, "channels": 8, "window": 1},
}


def small(name: str, space: Any = BINARY, context: Any = None, **options: Any) -> Hvae:
    """With weights that are all at work: nets start with zeros."""
    torch.manual_seed(3)
    model = Hvae(HvaeConfig(**NETS[name] | options), space, context)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.4)
    return model.eval()


def binary(n: int = 12) -> Tensor:
    return (torch.rand(n, 1, 2, 2, generator=seeded(5)) < 0.4).to(torch.uint8)


@pytest.mark.parametrize("name", NETS)
def test_the_proposals_density_is_that_of_its_map(name: str) -> None:
    model, x = small(name), binary(3)
    model.requires_grad_(False)
    q = model.proposal(x, None)
    e = torch.randn(3, 2, model.latent_dims, generator=seeded(1))
    z, log_q = q(e)
    torch.testing.assert_close(q.inverse(z), e, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(q.log_prob(z), log_q, atol=1e-4, rtol=1e-4)
    jacobian = torch.autograd.functional.jacobian(lambda e: q(e)[0], e)  # [3, 2, L, 3, 2, L]
    for i in range(3):
        own = jacobian[i, 1, :, i, 1]
        base = Independent(Normal(torch.zeros_like(e[i, 1]), 1.0), 1).log_prob(e[i, 1])
        torch.testing.assert_close(log_q[i, 1], base - own.det().abs().log(), atol=1e-3, rtol=1e-3)
        assert not jacobian[i, 1, :, i, 0].any()
    encoded = model.rows_encode(x, None)
    drawn = encoded.rsample((4, 2))
    assert drawn.shape == (4, 2, 3, model.latent_dims)
    torch.testing.assert_close(encoded.log_prob(drawn)[1, 1], encoded.log_prob(drawn[1, 1]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoded.mean, q(torch.zeros_like(e))[0][:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_one_way_down_gives_the_weights_that_two_give(name: str) -> None:
    model, x, request = small(name), binary(), Iwae(6)
    with torch.no_grad():
        one, two = (
            cls._drawn_terms(model, model.proposal(x, None), x, None, request, RowNoise(1, lambda: torch.arange(12)))
            for cls in (Hvae, Latent)
        )
    torch.testing.assert_close(one[0], two[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one[1], two[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_bounds_sum_to_one_and_samples_follow_them(name: str) -> None:
    model, states = small(name), image_states(BINARY)
    few, many = (bound(model, states, Iwae(k)) for k in (8, 4000))
    assert float(few.nats.exp().sum()) < 1 + 4 * float((few.nats.exp() * few.mc_se).square().sum().sqrt())
    p = many.nats.exp()
    assert abs(float(p.sum()) - 1) < 4 * float((p * many.mc_se).square().sum().sqrt()) + 1e-3
    drawn = model.sample(20000, generator=seeded(3)).flatten(1) @ torch.tensor([8, 4, 2, 1], dtype=torch.uint8)
    observed = drawn.long().bincount(minlength=16)
    variance = 20000 * p + (20000 * p * many.mc_se).square()
    assert ((observed - 20000 * p).square() / variance).sum() < 50  # chi-squared of 15 degrees


@pytest.mark.parametrize("size", [(28, 28, 1), (17, 9, 3), (4, 4, 1), (1, 1, 1)])
@pytest.mark.parametrize("groups", [(1,), (1, 1, 2)])
def test_the_deep_net_takes_images_of_any_size(size: tuple[int, int, int], groups: tuple[int, ...]) -> None:
    space = Image(*size, 2)
    model = small("deep", space, groups=groups)
    x = torch.zeros(2, *space.event_shape, dtype=torch.uint8)
    assert model.rows_encode(x, None).rsample().shape == (2, model.latent_dims)
    assert model.sample(2).shape == x.shape
    assert model.net.sizes[0] == 2 or len(groups) == 1


def test_contexts_reach_prior_and_decoder() -> None:
    for name in NETS:
        model, c = small(name, context=Label(("a", "b"))), torch.arange(12) % 2
        a, b = (model.given(label).log_prob(binary(), generator=seeded(0)).nats for label in (c, 1 - c))
        assert not torch.allclose(a, b)
        assert model.given(c).sample(3).shape == (3, 12, 1, 2, 2)


# -- training -------------------------------------------------------------------------------------------------------


def batch(n: int = 12, **changes: Any) -> Batch:
    return replace(Batch(binary(n), None, None, 0, n, 1.0, 3), **changes)


def test_the_training_loss_is_the_bound_and_warms_up() -> None:
    model, many = small("ladder"), batch(2000)
    loss = model.objective(many, seeded(1))["loss"].detach()
    lik = bound(model, many.x, Elbo(8))
    error = math.sqrt(float(loss.var() + lik.nats.var()) / 2000)
    assert abs(float(loss.mean() + lik.nats.mean())) < 4 * error
    quarter = small("ladder", warmup=0.4).objective(batch(progress=0.1), seeded(1))
    whole = small("ladder").objective(batch(), seeded(1))
    reconstruction = whole["kl"] - whole["loss"]
    torch.testing.assert_close(quarter["loss"], 0.25 * quarter["kl"] - reconstruction)


def test_free_bits_cost_nothing() -> None:
    model = small("ladder", warmup=0.0)
    plain = model.objective(batch(), seeded(1))
    q = model.proposal(batch().x, None)
    noise = batch().randn(model.latent_dims, generator=seeded(1))
    rates = torch.stack([part.sum(1) for part in q.rates(noise[:, None])[:, 0].split(model.net.sizes, 1)], 1)
    torch.testing.assert_close(plain["kl"], rates.sum(1).detach())
    rates = rates.detach()
    free = float(rates.median())
    found = small("ladder", warmup=0.0, free_bits=free).objective(batch(), seeded(1))["loss"]
    torch.testing.assert_close(found - plain["loss"], (free - rates).clamp(min=0).sum(1))


def test_shares_of_a_batch_see_the_same_noise() -> None:
    model, whole = small("deep"), batch()
    parts = (replace(whole, x=whole.x[:5]), replace(whole, x=whole.x[5:], start=5))
    shares = torch.cat([model.objective(part, seeded(1))["loss"] for part in parts])
    torch.testing.assert_close(shares, model.objective(whole, seeded(1))["loss"], atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_training_raises_the_bound() -> None:
    torch.manual_seed(0)
    model = Hvae(HvaeConfig(**NETS["deep"], warmup=0.5), BINARY)
    x = torch.cat([torch.zeros(8, 1, 2, 2), torch.ones(8, 1, 2, 2)]).to(torch.uint8)
    model.prepare(x, None, None, seeded(0))
    learner = model.learner(Recipe(lr=1e-2, schedule="constant", skip=20.0))
    before = bound(model, x, Iwae(64)).nats.mean()
    for step in range(120):
        told = learner.step(Batch(x, None, None, 0, len(x), step / 120, step), seeded(step))
        assert told["skipped"] in (0, 1)
    assert before < -2.5  # four fair coins: 2.77
    assert bound(model, x, Iwae(64)).nats.mean() > -1.2  # two images: 0.69


def test_the_defaults_do_not_collapse() -> None:
    """After few steps on images every group is in use, and worth nats over pixels that know nothing of each other."""
    data = pofx.load("digits")
    alone = pofx.fit(data, "independent").model.log_prob(data.valid.read().x)
    model = pofx.fit(data, "hvae", steps=200, seed=0).model
    report = model.latent_report(data.valid.read().x)
    assert report.rate > 5
    assert report.collapsed == ()
    assert bound(model, data.valid.read().x, Elbo(4)).nats.mean() > alone.nats.mean() + 10


# -- steps that are left out ----------------------------------------------------------------------------------------


def descent(skip: float | None, clip: float | None = None) -> tuple[nn.Parameter, Any]:
    """Gradient steps of w on the loss x w, whose gradient's norm is |x|."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    recipe = Recipe(lr=1.0, optimizer="sgd", schedule="constant", skip=skip, clip=clip)
    learner = GradientLearner(layer, recipe, lambda b, g: {"loss": layer(b.x)[:, 0]})

    def step(size: float) -> dict[str, Tensor]:
        return learner.step(Batch(torch.full((2, 1), size), total=2), seeded(0))

    step.learner = learner  # type: ignore[attr-defined]
    return layer.weight, step


def test_a_poisoned_batch_is_left_out_and_counted() -> None:
    w, step = descent(10.0)
    for _ in range(30):
        assert step(1.0)["skipped"] == 0
    before = w.item()
    told = step(1e6)
    assert w.item() == before
    assert told["skipped"] == 1
    assert told["grad_norm"] == pytest.approx(1e6)
    assert step(1.0)["skipped"] == 0
    assert w.item() == pytest.approx(before - 1)


def test_no_run_is_stuck_where_gradients_stay_large() -> None:
    w, step = descent(10.0)
    for _ in range(120):
        step(1.0)
    before, taken = w.item(), []
    for k in range(200):
        at = w.item()
        step(1e3)
        taken.append(at - w.item())
        if k == Skipping.PATIENCE:  # after so many in a row a step is taken, cut to the limit
            assert before - w.item() == pytest.approx(10.0)
    assert not any(taken[: Skipping.PATIENCE])
    longest = max(len(row) for row in "".join("01"[t > 0] for t in taken).split("1"))
    assert longest == Skipping.PATIENCE
    assert taken[-50:] == pytest.approx([1e3] * 50)  # the limit has followed: whole steps again


def test_a_resumed_run_leaves_out_the_same_steps() -> None:
    sizes = [1.0 + 0.1 * (k % 7) for k in range(25)] + [1e4] * 14 + [2.0] * 5
    w, step = descent(5.0)
    for size in sizes[:30]:
        step(size)
    other, again = descent(5.0)
    other.data.copy_(w.data)
    again.learner.load_state_dict(step.learner.state_dict())
    for size in sizes[30:]:
        assert step(size)["skipped"] == again(size)["skipped"]
    assert w.item() == other.item()


def test_muon_takes_kernels_as_matrices() -> None:
    kernel = nn.Parameter(torch.randn(4, 3, 3, 3, generator=seeded(0)))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(4, 27, generator=seeded(1))
    for p in (kernel, matrix):
        p.grad = gradient.view(p.shape).clone()
        Muon([p], lr=0.1).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


# -- options ----------------------------------------------------------------------------------------------------------


def test_bad_options_are_named() -> None:
    with pytest.raises(UsageError, match="latent is 0"):
        HvaeConfig(latent=0)
    with pytest.raises(UsageError, match="groups is 0"):
        HvaeConfig(groups=(1, 0))
    with pytest.raises(UsageError, match="skip is 1"):
        Recipe(skip=1.0)
    with pytest.raises(Unsupported, match="net=deep is for images"):
        Hvae(HvaeConfig(net="deep"), Table((Real("a"), Real("b"))))
