"""Identities of the recurrent state-space model: bounds below a linear Gaussian truth, ends, actions, predictions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

import pofx
from pofx.core.errors import UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import LowerBound
from pofx.core.requests import Elbo, Iwae
from pofx.data.actions import action_chunks, given_steps
from pofx.data.parts import Data, Part
from pofx.families.rssm import LIMIT, Rssm, RssmConfig
from pofx.spaces import Integer, Real, Sequence, Table

EXCERPTS = Sequence(Table((Real("a"), Real("b"))), False, 6)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- a linear Gaussian state-space model: z_t = A z_{t-1} + Q e, x_t = C z_t + R e -----------------------------------

A = torch.tensor([[0.8, 0.4], [-0.3, 0.7]])
C, Q, R = torch.tensor([1.3, 0.7]), torch.tensor([0.9, 0.6]), torch.tensor([0.5, 0.8])
PRECISION = Q**-2 + (C / R) ** 2  # of p(z_t | z_{t-1}, x_t)


def raw(log_scale: Tensor) -> Tensor:
    return LIMIT * (log_scale / LIMIT).atanh()


class Cell(nn.Module):
    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        return z


class Prior(nn.Module):
    def __init__(self, turn: Tensor) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h @ self.turn.T, raw(Q.log()).expand_as(h)], -1)


class Filter(nn.Module):
    """p(z_t | z_{t-1}, x_t), or moved."""

    def __init__(self, turn: Tensor, shift: float = 0.0) -> None:
        super().__init__()
        self.turn, self.shift = turn, shift

    def forward(self, u: Tensor) -> Tensor:
        h, x = u.chunk(2, -1)
        mean = (h @ self.turn.T / Q**2 + C * x / R**2) / PRECISION + self.shift
        return torch.cat([mean, raw(-0.5 * PRECISION.log()).expand_as(mean)], -1)


class Emission(nn.Module):
    begin = torch.zeros(2)

    def embed(self, u: Tensor) -> Tensor:
        return u.nan_to_num(posinf=0.0).float()

    def beginning(self, n: int) -> Tensor:
        return torch.full((n, 1, 2), math.inf, dtype=torch.float64)

    def filled(self, u: Tensor) -> Tensor:
        return u[..., 0].isinf()

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        return Normal(C * y, R).log_prob(u.nan_to_num(posinf=0.0)).sum(-1)


class Latents(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return u[..., 2:]


def linear(turn: Tensor = A, shift: float = 0.0) -> Rssm:
    model = Rssm(RssmConfig(latent=2, width=2), EXCERPTS)
    model.enter, model.cell, model.prior = nn.Identity(), Cell(), Prior(turn)
    model.posterior, model.decoder, model.emission = Filter(turn, shift), Latents(), Emission()
    return model.eval()


def truth(turn: Tensor, steps: int) -> MultivariateNormal:
    """The joint density of x_1 ... x_T: x = C z + R e, z = sum over s <= t of A^(t - s) Q e_s."""
    turn = turn.double()
    ways = torch.zeros(2 * steps, 2 * steps, dtype=torch.float64)
    for t in range(steps):
        for s in range(t + 1):
            ways[2 * t : 2 * t + 2, 2 * s : 2 * s + 2] = torch.linalg.matrix_power(turn, t - s) @ Q.double().diag()
    ways = C.double().repeat(steps)[:, None] * ways
    noise = (R.double() ** 2).repeat(steps).diag()
    return MultivariateNormal(torch.zeros(2 * steps, dtype=torch.float64), ways @ ways.T + noise)


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Half of them of six steps, half of three."""
    rows = torch.randn(64, 12, generator=seeded(1), dtype=torch.float64)
    rows = (rows @ torch.linalg.cholesky(truth(A, 6).covariance_matrix).T).view(64, 6, 2)
    rows[32:, 3:] = math.inf
    return rows


def exact(turn: Tensor, x: Tensor) -> Tensor:
    return torch.cat([truth(turn, 6).log_prob(x[:32].flatten(1)), truth(turn, 3).log_prob(x[32:, :3].flatten(1))])


def bound(model: Rssm, x: Tensor, request: Elbo | Iwae, seed: int = 0) -> LowerBound:
    with torch.no_grad():
        lik = model.log_prob(x, request=request, generator=seeded(seed))
    assert isinstance(lik, LowerBound)
    return lik


def test_steps_without_a_memory_have_an_exact_bound(x: Tensor) -> None:
    none = torch.zeros(2, 2)
    for request in (Iwae(2), Elbo(2000)):
        lik = bound(linear(none), x, request)
        error = (lik.nats - exact(none, x)).abs()
        assert (error < 5 * lik.mc_se + 1e-4).float().mean() > 0.98
    assert bound(linear(none), x, Iwae(2)).mc_se.max() < 1e-4


def test_bounds_rise_with_draws_to_the_density_of_a_linear_gaussian_model(x: Tensor) -> None:
    known, found = exact(A, x), []
    for request in (Elbo(256), Iwae(4), Iwae(64), Iwae(2048)):
        lik = bound(linear(), x, request)
        found.append(float(lik.nats.mean()))
        assert found[-1] < float(known.mean()) + 4 * float(lik.mc_se.square().mean().sqrt()) / 8
    assert found[0] < found[1] < found[2]
    assert float(known.mean()) - found[0] > 0.05
    assert float(known.mean()) - found[3] < 0.03


def test_a_posterior_that_is_moved_loses_its_divergence(x: Tensor) -> None:
    """Without a memory the gap is the sum over steps of KL(q || p(z_t | x_t)) = shift^2 precision / 2."""
    none = torch.zeros(2, 2)
    lik = bound(linear(none, 0.5), x, Elbo(4000))
    lengths = EXCERPTS.lengths(x)
    gap = exact(none, x) - lik.nats
    error = float(lik.mc_se.square().mean().sqrt()) / 8
    assert abs(float((gap - 0.125 * PRECISION.sum() * lengths).mean())) < 4 * error


# -- ends, pieces, what is trained ----------------------------------------------------------------------------------

WHOLE = Sequence(Table((Real("a"), Integer("k", 0, 3))), True, 7)


def rows(n: int, seed: int) -> Tensor:
    """A number that goes up by 1 with noise, and its rank; from 2 to 7 steps."""
    g = seeded(seed)
    a = torch.arange(7) + 0.3 * torch.randn(n, 7, generator=g)
    x = torch.stack([a, torch.arange(7).clamp(max=3).expand(n, -1).float()], -1).double()
    x[torch.arange(7) >= torch.randint(2, 8, (n, 1), generator=g)] = math.inf
    return x


def small(**options: object) -> Rssm:
    torch.manual_seed(0)
    model = Rssm(
        RssmConfig(**{"latent": 3, "width": 16, "inner_width": 16, "components": 2, "warmup": 0.0, **options}), WHOLE
    )
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.2)
    model.prepare(rows(200, 0), None, None, seeded(0))
    return model.eval()


class OfPrior(nn.Module):
    def __init__(self, prior: nn.Module, width: int) -> None:
        super().__init__()
        self.prior, self.width = prior, width

    def forward(self, u: Tensor) -> Tensor:
        return self.prior(u[..., : self.width])  # type: ignore[no-any-return]


def test_without_a_stochastic_path_the_bound_is_the_emission() -> None:
    model, x = small(autoregressive=True), rows(20, 1)
    with torch.no_grad():
        model.enter[0].weight[:, :3] = 0
        model.decoder[0].first.weight[:, 16:] = 0
    model.posterior = OfPrior(model.prior, 16)
    lik = bound(model, x, Iwae(2))
    expected = []
    with torch.no_grad():
        for row in x:
            h, total = model.emission.begin[None], 0.0
            line = [
                model.emission.beginning(1)[0, 0],
                *row[: int(EXCERPTS.lengths(row[None]))],
                torch.full((2,), math.inf),
            ]
            for before, now in itertools.pairwise(line):
                told = model.emission.embed(before.view(1, 1, 2))[:, 0]
                h = model.cell(model.enter(torch.cat([torch.zeros(1, 3), told], 1)), h)
                y = model.decoder(torch.cat([h, torch.zeros(1, 3)], 1))
                logit, over = model.stop(h)[0, 0] + model.base, bool(now.isinf().all())
                total += float(nn.functional.logsigmoid(logit if over else -logit))
                total += 0.0 if over else float(model.emission.log_prob(y[:, None], now.view(1, 1, 2)))
            expected.append(total)
    torch.testing.assert_close(lik.nats, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=1e-5)
    assert lik.mc_se.max() < 1e-4


def test_what_stands_after_an_end_changes_nothing() -> None:
    model, x = small(), rows(12, 2)
    longer = torch.cat([x, torch.full((12, 5, 2), math.inf, dtype=torch.float64)], 1)
    for request in (Iwae(3), Elbo(3)):
        whole = bound(model, x, request).nats
        torch.testing.assert_close(bound(model, longer, request).nats, whole, atol=1e-4, rtol=1e-5)
        alone = torch.cat([bound(model, x[i : i + 1], request).nats for i in range(12)])
        torch.testing.assert_close(alone, whole, atol=1e-4, rtol=1e-5)


def test_training_lowers_minus_the_elbo() -> None:
    model, x = small(), rows(40, 3)
    with torch.no_grad():
        losses = torch.stack(
            [model.objective(Batch(x, total=40), seeded(seed))["loss"].double() for seed in range(100)]
        )
    lik = bound(model, x, Elbo(400))
    error = float((losses.var(0) / 100 + (lik.mc_se / 7) ** 2).mean().sqrt()) / 40**0.5
    assert abs(float(losses.mean() + lik.nats.mean() / 7)) < 4 * error


def test_pieces_of_long_data_are_weighed_as_their_whole() -> None:
    """Of a model whose steps do not depend on each other, pieces have the mean loss of wholes."""
    model, x = small(block=4), rows(60, 4)
    x[:] = rows(1000, 5)[EXCERPTS.lengths(rows(1000, 5)) == 7][:60]
    with torch.no_grad():
        for p in (
            model.enter[0].weight,
            model.enter[0].bias,
            model.emission.begin,
            model.begun,
            *model.cell.parameters(),
        ):
            p.zero_()
        g = seeded(0)
        pieces = [model.objective(Batch(x, total=60), g)["loss"] for _ in range(60)]
        each = torch.stack(pieces).double().mean(0) * 4
    assert torch.isfinite(each).all()
    whole = -bound(model, x, Elbo(200)).nats
    # of 8 targets in windows of 4, the middle ones are met more often than both ends: the mean is near, not equal
    assert abs(float(each.mean() / whole.mean()) - 1) < 0.35


def test_free_nats_leave_the_prior_alone() -> None:
    model = small(free_nats=1e4)
    model.objective(Batch(rows(10, 6), total=10), seeded(0))["loss"].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.prior.parameters())
    assert model.posterior.last.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "word"), [({"latent": 0}, "latent"), ({"block": 1}, "block"), ({"draws": 1}, "draws")]
)
def test_bad_options_are_told_by_name(options: dict[str, int], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        RssmConfig(**options)


# -- actions --------------------------------------------------------------------------------------------------------


def pushed(n: int, seed: int) -> Tensor:
    """A place that moves by the action of the step before: steps (place, action); from 6 to 10 of them."""
    g = seeded(seed)
    action = torch.randn(n, 10, generator=g, dtype=torch.float64)
    place = (action.cumsum(1) - action) + 0.1 * torch.randn(n, 10, generator=g, dtype=torch.float64)
    x = torch.stack([place, action], -1)
    x[torch.arange(10) >= torch.randint(6, 11, (n, 1), generator=g)] = math.inf
    return x


@pytest.fixture(scope="module")
def data() -> Data:
    space = Sequence(Table((Real("place"), Real("push"))), True, 10)
    return Data("pushed", "memory", space, *(Part(pushed(n, n)) for n in (600, 50, 100)))


@pytest.fixture(scope="module")
def world(data: Data) -> Rssm:
    options = {"latent": 4, "width": 32, "components": 1, "inner_width": 16, "draws": 8}
    run = pofx.fit(
        given_steps(data, ["push"]), "rssm", steps=300, checks=1, seed=0, options=options, recipe={"batch": 32}
    )
    assert isinstance(run.model, Rssm)
    return run.model


def test_a_world_model_follows_the_actions_that_are_given(world: Rssm, data: Data) -> None:
    test = given_steps(data, ["push"]).test
    right, wrong = (world.given(c).log_prob(test.x, generator=seeded(0)).nats for c in (test.c, _other(test.c)))
    assert float(right.mean()) > float(wrong.mean()) + 3
    drawn = world.given(test.c).sample(1, generator=seeded(1))[0]
    lengths = world.space.lengths(drawn)
    assert ((lengths - world.space.lengths(test.x)).abs() <= 1).float().mean() > 0.7  # it ends where they end
    both = (torch.arange(5)[None] < lengths[:, None]).expand(100, 5)
    moved = torch.corrcoef(torch.stack([drawn[:, :5, 0][both], test.x[:, :5, 0][both]]))
    assert float(moved[0, 1]) > 0.8


def _other(c: Tensor) -> Tensor:
    """The actions of another row, with each row's own end."""
    turned = c.roll(1, 0)
    return torch.where(c.isinf(), c, torch.where(turned.isinf(), 0.0, turned))


def test_later_actions_change_no_earlier_step(world: Rssm, data: Data) -> None:
    test = given_steps(data, ["push"]).test[:20]
    other = torch.where(test.c.isinf() | (torch.arange(10)[:, None] < 4), test.c, test.c + 2)
    a, b = (world.predict(test.x[:, :2], c, length=4, generator=seeded(2)) for c in (test.c, other))
    torch.testing.assert_close(a[:, :3], b[:, :3])  # steps 3, 4 and 5 of all: they know of actions 1 to 4
    assert not torch.allclose(a[:, 3], b[:, 3])


def test_predictions_go_on_from_their_beginnings(world: Rssm, data: Data) -> None:
    test = given_steps(data, ["push"]).test
    start = test.x[:, :4].clone()
    drawn = torch.stack([world.predict(start, test.c, length=1, generator=seeded(seed))[:, 0, 0] for seed in range(8)])
    off = torch.where(drawn.isinf(), math.nan, drawn).nanmean(0) - test.x[:, 4, 0]
    without = test.x[:, 4, 0] - test.x[:, 4, 0].mean()
    assert float(off.square().mean()) < 0.5 * float(without.square().mean())
    with pytest.raises(UsageError, match="one length"):
        world.predict(test.x, test.c)


def test_columns_of_steps_come_apart(data: Data) -> None:
    apart = given_steps(data, ["push"])
    assert apart.context is not None
    torch.testing.assert_close(torch.cat([apart.test.x, apart.test.c], -1), data.test.x)
    assert [c.name for c in apart.space.step.columns] == ["place"]
    chunks = action_chunks(data, ["push"], 3)
    assert chunks.space.event_shape == (3, 1)
    assert len(chunks.test) == int((data.space.lengths(data.test.x) - 2).sum())
    torch.testing.assert_close(chunks.test.x[1], data.test.x[0, 1:4, 1:])
    torch.testing.assert_close(chunks.test.c[1], data.test.x[0, 1, :1])
    for bad in (["nothing"], [], ["push", "place"]):
        with pytest.raises(UsageError):
            given_steps(data, bad)
    with pytest.raises(UsageError, match="0 steps"):
        action_chunks(data, ["push"], 0)


def test_a_step_of_its_recipe_moves_every_net() -> None:
    model = small(autoregressive=True)
    learner = model.learner(Recipe(batch=16))
    before = {name: p.clone() for name, p in model.named_parameters()}
    learner.step(Batch(rows(16, 8), total=16, progress=0.5, step=50), seeded(0))
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == [], still
