"""Noise that belongs to rows: uniform, normal, independent, and the same wherever a row stands."""

import math

import pytest
import torch
from scipy import stats

from pofx.core.likelihood import LowerBound, make, mean, number
from pofx.core.measure import Measure
from pofx.core.noise import Copies, RowNoise, row_keys
from pofx.core.registry import family
from pofx.core.requests import Dequantised, Elbo, Iwae, OdeLikelihood, VariationalBound
from pofx.data.parts import Part
from pofx.evaluate.likelihood import mean_log_prob
from pofx.spaces import Category, Image, Integer, Label, Real, Table


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


def test_forked_streams_are_rows_of_their_own():
    """Normal within and over the forks, unlike each other and the row's own, and the same for fewer rows or at once."""
    whole = noise(500)
    first, forks = whole.randn(20), whole.forked(4)
    z = forks.randn(50).view(4, 500, 50)
    assert stats.kstest(z.flatten().double().numpy(), "norm").pvalue > 1e-3
    streams = torch.cat([z[..., :20], first[None], whole.randn(20)[None]]).double().flatten(1)
    alike = torch.corrcoef(streams).fill_diagonal_(0).abs()
    assert float(alike.max()) < 5 / 10_000**0.5
    few = noise(7)
    few.randn(20)
    assert torch.equal(few.forked(4).randn(50).view(4, 7, 50), z[:, :7])
    assert torch.equal(whole.forked(2).of(slice(500, 1000)).randn(3), forked_again(500)[500:])


def forked_again(n):
    """The same forks, asked for at once."""
    again = noise(n)
    again.randn(20)
    again.forked(4)
    again.randn(20)
    return again.forked(2).randn(3)


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
    """Equal data under other contexts have other noise, and the same under the same."""
    x = mixed(6)
    c = torch.tensor([0, 1, 0, 1, 0, 1])
    model = fitted("vae", MIXED, x, c, Label(("l", "r")), hidden=8)
    again = torch.cat([x[:1], x[:1], x[1:2]])

    def keys(c):
        given = model.given(torch.tensor(c))
        return given._keys(Copies(), again, given.c)

    assert keys([0, 1, 1])[0] != keys([0, 1, 1])[1]
    assert torch.equal(keys([0, 1, 1])[[0, 2]], keys([0, 0, 1])[[0, 2]])


def test_copies_are_told_apart_in_any_blocks():
    """The k-th copy of a row has the k-th noise, wherever calls end; single rows keep their keys."""
    x = torch.randint(0, 5, (200, 1), generator=seeded(0)).double()
    keys, copies = row_keys(x), Copies()
    whole = Copies().apart(keys)
    assert len(whole.unique()) == 200
    for value in keys.unique():
        assert whole[keys == value][0] == value
    assert torch.equal(torch.cat([copies.apart(k) for k in keys.split(7)]), whole)
    order = torch.randperm(200, generator=seeded(1))
    assert torch.equal(Copies().apart(keys[order]).sort().values, whole.sort().values)


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
    ("vae", Iwae(3)), ("vae", Elbo(3)), ("vdm", VariationalBound(3)), ("flow-matching", OdeLikelihood(2, 1, 3)),
    ("nsf", Dequantised(3)), ("gmm", Dequantised(3)),
    pytest.param("vdm", OdeLikelihood(2, 1, 3), marks=pytest.mark.long),
]  # fmt: skip


@pytest.mark.parametrize("space", [MIXED, Image(9, 9, 1, 4)], ids=["table", "image"])
@pytest.mark.parametrize(("name", "asked"), NOISY)
def test_the_number_of_a_row_does_not_depend_on_its_place(name, asked, space, monkeypatch):
    x = mixed(6) if space is MIXED else images(6)
    options = {"components": 2} if name == "gmm" else {"hidden": 8}
    if isinstance(asked, OdeLikelihood):
        options |= {"net": "mlp"}
    model = fitted(name, space, x, **options)
    whole = model.log_prob(x, request=asked, generator=seeded(7))
    order = torch.randperm(6, generator=seeded(1))

    def close(lik, rows):
        assert torch.allclose(lik.nats.double(), whole.nats[rows].double(), rtol=1e-5, atol=1e-4)
        assert torch.allclose(lik.mc_se.double(), whole.mc_se[rows].double(), rtol=1e-3, atol=1e-3)

    close(model.log_prob(x[order], request=asked, generator=seeded(7)), order)
    close(model.log_prob(x[4:5], request=asked, generator=seeded(7)), slice(4, 5))
    close(model.log_prob(x.view(2, 3, *x.shape[1:]), request=asked, generator=seeded(7)), torch.arange(6).view(2, 3))
    monkeypatch.setattr(model, "rows_per_pass", lambda: 2)
    close(model.log_prob(x, request=asked, generator=seeded(7)), slice(None))
    other = model.log_prob(x, request=asked, generator=seeded(8))
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
    found = mean_log_prob(model, Part(x), generator=seeded(5))
    assert torch.allclose(found.rows.nats, direct.nats, atol=1e-4)
    order = torch.randperm(60, generator=seeded(2))
    again = mean_log_prob(model, Part(x)[order], generator=seeded(5))
    assert torch.allclose(again.rows.nats, direct.nats[order], atol=1e-4)


# -- rows that are equal ------------------------------------------------------------------------------------


def test_copies_have_noise_of_their_own():
    """Calibrated over seeds: 12 different rows, each in many copies, err as 300 rows do."""
    rows = mixed(12, seed=3)
    x = rows.repeat(25, 1)
    model = fitted("vae", MIXED, rows, hidden=8)
    asked = Iwae(draws=4)
    found = [mean_log_prob(model, Part(x), request=asked, generator=seeded(k)) for k in range(60)]
    spread = torch.tensor([f.nats for f in found]).std()
    said = torch.tensor([f.mc_se for f in found]).square().mean().sqrt()
    assert 0.7 < spread / said < 1.4
    shuffled = Part(x)[torch.randperm(300, generator=seeded(1))]
    again = mean_log_prob(model, shuffled, request=asked, generator=seeded(0))
    assert torch.allclose(again.rows.nats.sort().values, found[0].rows.nats.sort().values, atol=1e-4)


def test_weights_of_the_noise_of_a_mean():
    se, weight = torch.tensor([0.3, 0.3, 0.4]), torch.tensor([1.0, 2.0, 5.0])
    rows = number(make(LowerBound, torch.zeros(3), Measure.counting(1), se, 4))
    assert mean(rows, weight).mc_se == pytest.approx(math.hypot(0.3 / 8, 0.6 / 8, 2 / 8))
    assert mean(rows).mc_se == pytest.approx(math.hypot(0.1, 0.1, 0.4 / 3))
