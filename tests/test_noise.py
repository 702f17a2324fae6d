"""Noise that belongs to rows: uniform, normal, independent, and the same wherever a row stands."""

import math

import pytest
import torch
from scipy import stats

from pofx.core.likelihood import LowerBound, compare, noise_of_mean
from pofx.core.model import Budget
from pofx.core.noise import RowNoise, row_keys
from pofx.core.registry import family
from pofx.core.space import Category, Image, Integer, Label, Real, Table, Text
from pofx.data.base import Part
from pofx.evaluate.likelihood import Score, score


def noise(n=2000, seed=0):
    """Of rows that are as alike as rows can be: successive numbers."""
    return RowNoise(seed, lambda: row_keys(torch.arange(n)[:, None]))


def fitted(name, space, x, c=None, context=None, **options):
    torch.manual_seed(0)
    cls = family(name)
    model = cls(cls.Config(**options), space, context)
    model.prepare(x, c, None, torch.Generator().manual_seed(0))
    with torch.no_grad():  # nets start at zero, where much of the noise has no effect
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return model


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# -- the numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("along_rows", [False, True])
@pytest.mark.parametrize(
    ("draw", "law"),
    [(RowNoise.rand, "uniform"), (RowNoise.rand_double, "uniform"), (RowNoise.randn, "norm")],
    ids=["uniform", "uniform double", "normal"],
)
def test_their_law_is_as_said(draw, law, along_rows):
    """Kolmogorov and Smirnov's test, over the numbers of a row and over rows."""
    x = draw(noise(), 200)
    x = (x.T if along_rows else x).flatten().double().numpy()
    assert stats.kstest(x, law).pvalue > 1e-3


def test_uniform_numbers_stay_below_one_and_normal_ones_finite():
    u, z = noise().rand(2000), noise().randn(2000)
    assert u.min() >= 0
    assert u.max() < 1
    assert noise().rand_double(500).max() < 1
    assert z.isfinite().all()
    assert 4.5 < z.abs().max() < 6


@pytest.mark.parametrize("other", ["next number", "next row", "next draw", "next seed"])
def test_numbers_are_independent(other):
    """Counts of pairs in a grid of cells are even (chi-squared)."""
    source = noise()
    a = source.rand(400)
    b = {
        "next number": lambda: a.roll(1, 1),
        "next row": lambda: a.roll(1, 0),
        "next draw": lambda: source.rand(400),
        "next seed": lambda: noise(seed=1).rand(400),
    }[other]()
    cell = ((a * 32).long() * 32 + (b * 32).long()).flatten()
    counts = torch.bincount(cell, minlength=1024).double()
    mean = counts.mean()
    z = ((counts - mean).square().sum() / mean - 1023) / math.sqrt(2 * 1023)
    assert abs(z) < 5


@pytest.mark.parametrize("size", [1, 2, 5])
def test_many_draws_at_once_are_the_same_as_one_by_one(size):
    for draw in (RowNoise.rand, RowNoise.rand_double, RowNoise.randn):
        one = noise(7)
        assert torch.equal(torch.stack([draw(one, size) for _ in range(4)], 1), draw(noise(7), 4, size))


def test_a_row_has_its_own_stream_in_any_batch():
    keys = row_keys(torch.arange(5000)[:, None])
    order = torch.randperm(5000, generator=seeded(1))
    whole = RowNoise(3, lambda: keys).randn(65)
    assert torch.equal(RowNoise(3, lambda: keys[order]).randn(65), whole[order])
    assert torch.equal(RowNoise(3, lambda: keys[17:18]).randn(65), whole[17:18])
    assert not torch.equal(RowNoise(4, lambda: keys).randn(65), whole)


# -- keys ---------------------------------------------------------------------------------------------------


def test_keys_tell_rows_apart_and_know_equal_ones():
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0, -1.0, 0.5, math.nan], dtype=torch.float64)] * 4)
    assert len(row_keys(x).unique()) == len(x)
    assert torch.equal(
        row_keys(torch.tensor([[0.0], [math.nan]]).double()), row_keys(torch.tensor([[-0.0], [-math.nan]]).double())
    )
    images = torch.randint(0, 2, (400, 1, 3, 3), generator=seeded(0)).to(torch.uint8)
    assert len(row_keys(images).unique()) == len(images.flatten(1).unique(dim=0))


def test_keys_do_not_know_how_long_a_batch_is():
    short, long = torch.tensor([[4, 7, -1]]), torch.tensor([[4, 7, -1, -1, -1]])
    assert torch.equal(row_keys(short, -1), row_keys(long, -1))
    assert row_keys(torch.tensor([[4, 7, 0]]), -1) != row_keys(short, -1)


def test_a_context_is_part_of_the_key():
    x = torch.randn(6, 2, generator=seeded(0), dtype=torch.float64)
    plane = Table((Real("a"), Real("b")))
    c = torch.tensor([0, 1, 0, 1, 0, 1])
    model = fitted("nsf", plane, x, c, Label(("l", "r")), layers=1, hidden=8)
    left, right = (
        model.given(torch.zeros(6, dtype=torch.int64)).keys(x),
        model.given(torch.ones(6, dtype=torch.int64)).keys(x),
    )
    assert (left != right).all()
    assert torch.equal(model.given(torch.tensor([0, 1])).keys(x.view(3, 2, 2)).flatten()[::2], left[::2])


# -- likelihoods --------------------------------------------------------------------------------------------

MIXED = Table((Integer("n", 0, 30), Real("v", nullable=True), Category("k", ("a", "b", "c"))))


def mixed(n, seed=0):
    g = seeded(seed)
    count = torch.randint(0, 30, (n, 1), generator=g).double()
    value = torch.where(torch.rand(n, 1, generator=g) < 0.2, math.nan, torch.randn(n, 1, generator=g)).double()
    return torch.cat([count, value, torch.randint(0, 3, (n, 1), generator=g).double()], 1)


def images(n, seed=0):
    return torch.randint(0, 4, (n, 1, 9, 9), generator=seeded(seed)).to(torch.uint8)


NOISY = [
    ("vae", "iwae"), ("vae", "elbo"), ("ddpm", "vlb"), ("ddpm", "ode"), ("flow-matching", "ode"), ("nsf", None),
    ("gmm", None),
]  # fmt: skip


@pytest.mark.parametrize("space", [MIXED, Image(9, 9, 1, 4)], ids=["table", "image"])
@pytest.mark.parametrize(("name", "estimator"), NOISY)
def test_the_number_of_a_row_does_not_depend_on_its_place(name, estimator, space, monkeypatch):
    x = mixed(12) if space is MIXED else images(12)
    options = {"components": 2} if name == "gmm" else {"hidden": 8}
    if estimator == "ode":
        options |= {"ode_steps": 2, "net": "mlp"}
    model = fitted(name, space, x, **options)
    budget = Budget(estimator=estimator, draws=3)
    whole = model.log_prob(x, budget=budget, generator=seeded(7))
    order = torch.randperm(12, generator=seeded(1))

    def close(lik, rows):
        assert torch.allclose(lik.nats.double(), whole.nats[rows].double(), rtol=1e-5, atol=1e-4)
        assert torch.allclose(lik.mc_se.double(), whole.mc_se[rows].double(), rtol=1e-3, atol=1e-3)

    close(model.log_prob(x[order], budget=budget, generator=seeded(7)), order)
    close(model.log_prob(x[7:8], budget=budget, generator=seeded(7)), slice(7, 8))
    close(model.log_prob(x.view(2, 6, *x.shape[1:]), budget=budget, generator=seeded(7)), torch.arange(12).view(2, 6))
    monkeypatch.setattr(model, "rows_per_pass", lambda: 3)
    close(model.log_prob(x, budget=budget, generator=seeded(7)), slice(None))
    other = model.log_prob(x, budget=budget, generator=seeded(8))
    assert (other.nats != whole.nats).double().mean() > 0.5


def test_a_generator_gives_new_noise_at_every_call():
    model, x = fitted("vae", MIXED, mixed(20), hidden=8), mixed(20)
    g = seeded(1)
    first, second = (model.log_prob(x, generator=g).nats for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, model.log_prob(x, generator=seeded(1)).nats)


def test_blocks_of_an_evaluation_change_no_row(monkeypatch):
    """However the rows of a part are cut, each gets the number that ``log_prob`` gives it."""
    from pofx.evaluate import likelihood

    model, x = fitted("vae", MIXED, mixed(60), hidden=8), mixed(60)
    direct = model.log_prob(x, generator=seeded(5))
    real = likelihood.grow

    def cut(block, n, seconds):
        return real(lambda start, size: likelihood.cat([block(i, 1) for i in range(start, start + size)]), n, seconds)

    monkeypatch.setattr(likelihood, "grow", cut)
    found = score(model, Part(x), generator=seeded(5))
    assert torch.allclose(found.rows.nats, direct.nats, atol=1e-4)
    order = torch.randperm(60, generator=seeded(2))
    again = score(model, Part(x)[order], generator=seeded(5))
    assert torch.allclose(again.rows.nats, direct.nats[order], atol=1e-4)


def test_texts_of_any_length_keep_their_keys():
    """A batch is as long as its longest text."""
    space = Text("ab", length=8)
    model = family("rnn")(family("rnn").tiny(space), space)
    x = torch.tensor([[0, 1, -1, -1], [0, 1, 1, 0]])
    assert torch.equal(model.given().keys(x)[:1], model.given().keys(x[:1, :2]))


# -- rows that are equal ------------------------------------------------------------------------------------


def test_the_error_of_a_mean_counts_the_noise_of_copies_once():
    """Calibrated over seeds: 12 different rows, each in many copies."""
    rows = mixed(12, seed=3)
    x = rows.repeat(25, 1)
    model = fitted("vae", MIXED, rows, hidden=8)
    budget = Budget(draws=4)
    found = [score(model, Part(x), budget=budget, generator=seeded(k)) for k in range(60)]
    spread = torch.tensor([f.nats for f in found]).std()
    said = torch.tensor([f.mc_se for f in found]).square().mean().sqrt()
    assert 0.7 < spread / said < 1.4
    assert all(f.se > 0.9 * f.mc_se for f in found)
    alone = noise_of_mean(found[0].rows.mc_se)
    assert said > 3 * alone
    again = Score.from_json(found[0].to_json())
    assert torch.equal(again.keys, found[0].keys)
    assert noise_of_mean(again.rows.mc_se, again.keys) == pytest.approx(found[0].mc_se, rel=1e-2)


def test_weights_and_copies_together():
    se = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    lik = LowerBound(torch.zeros(3, dtype=torch.float64), MIXED.measure, se, 8)
    weight, keys = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), torch.tensor([5, 5, 9])
    assert noise_of_mean(lik.mc_se, keys, weight) == pytest.approx(math.hypot(0.3 * 3 / 8, 0.4 * 5 / 8))
    assert noise_of_mean(lik.mc_se, None, weight) == pytest.approx(math.hypot(0.3 / 8, 0.6 / 8, 2 / 8))


def test_copies_make_no_verdict():
    """One noisy row in 100 copies: as unsure as the one row is."""
    n = 100
    a = LowerBound(torch.full((n,), 0.5), MIXED.measure, torch.full((n,), 0.4), 8)
    b = LowerBound(torch.linspace(-0.01, 0.01, n), MIXED.measure, torch.zeros(n), 0)
    plain, known = compare(a, b), compare(a, b, keys=torch.zeros(n, dtype=torch.int64))
    assert plain.se < 0.01
    assert known.se == pytest.approx(0.4, rel=0.02)
