"""Heads are exact and proper in raw data space: sums, integrals, samples, marginals; and the context encoders."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats

from pofx.core.errors import Unsupported, UsageError
from pofx.nn.encoders import encoder
from pofx.nn.heads import (
    AtomsAndLogistics,
    Categorical,
    Head,
    LevelLogistics,
    MissingOr,
    MixtureOfGaussians,
    log_logistic_cell,
)
from pofx.nn.sites import heads_for, image_head
from pofx.spaces import Category, Column, Image, Integer, Label, Real, Table

ROWS = 400
COLUMNS: tuple[Column, ...] = (
    Real("length"),
    Category("colour", ("red", "green", "blue")),
    Integer("count", 0, 90),
    Real("lost", nullable=True),
    Category("answer", ("no", "yes"), nullable=True),
    Real("price", step=0.1, origin=0.05, nullable=True),
    Integer("time", 10**9, 2 * 10**9),
    Category("grade", tuple("abcde")),
    Real("mass"),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(seed: int = 0) -> torch.Tensor:
    """Training rows of ``COLUMNS``: a count with many zeros, a column far from the origin, missing entries."""
    g = generator(seed)

    def integers(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (ROWS,), generator=g).double()

    def normal() -> torch.Tensor:
        return torch.randn(ROWS, generator=g, dtype=torch.float64)

    x = torch.stack(
        [
            1e6 + 1e-2 * normal(),
            integers(0, 3),
            torch.where(torch.rand(ROWS, generator=g) < 0.5, 0.0, integers(0, 90)),
            normal(),
            integers(0, 2),
            0.05 + 0.1 * integers(-20, 20),
            integers(10**9, 2 * 10**9),
            integers(0, 5),
            40 * normal().exp(),
        ],
        1,
    )
    for j in (3, 4, 5):
        x[torch.rand(ROWS, generator=g) < 0.2, j] = math.nan
    return x


def table_head(column: Column) -> Head:
    """The head of one column by itself."""
    head: Head
    if isinstance(column, Category):
        head = Categorical(len(column.values))
    elif column.step is not None:
        head = AtomsAndLogistics(column.step, column.origin, 8, 64)
    else:
        head = MixtureOfGaussians(8)
    return MissingOr(head) if column.nullable else head


def prepared(j: int) -> Head:
    head = table_head(COLUMNS[j])
    head.prepare(rows()[:, j])
    return head


def random_params(head: Head, seed: int = 1) -> torch.Tensor:
    return torch.randn(head.params, generator=generator(seed)) * 0.7


def support(j: int) -> torch.Tensor:
    """All values of a discrete column that carry more than a negligible mass."""
    column = COLUMNS[j]
    if isinstance(column, Category):
        values = torch.arange(len(column.values)).double()
    else:
        assert column.step is not None
        values = column.origin + column.step * torch.arange(-100_000, 100_000).double()
    return torch.cat([values, torch.tensor([math.nan])]) if column.nullable else values


@pytest.mark.parametrize("j", [1, 2, 4, 5, 7])
def test_discrete_heads_sum_to_one(j: int) -> None:
    head, x = prepared(j), support(j)
    log_p = head.log_prob(random_params(head).expand(len(x), -1), x)
    assert log_p.isfinite().all()
    assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_integers_far_from_the_origin_keep_their_digits() -> None:
    head = AtomsAndLogistics(1.0, 0.0, components=2)
    x = 2.0**40 + torch.arange(500).double() % 300  # float32 steps by 65536 here
    head.prepare(x)
    k = 2.0**40 + torch.arange(-20_000, 20_000).double()
    log_p = head.log_prob(random_params(head).expand(len(k), -1), k)
    assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-4)
    drawn = head.sample(random_params(head).expand(1000, -1), generator())
    assert torch.equal(drawn, drawn.round())
    assert len(drawn.unique()) > 100


@pytest.mark.parametrize("j", [0, 3, 8])
def test_real_heads_integrate_to_one(j: int) -> None:
    head, x = prepared(j), rows()[:, j]
    params = random_params(head).double()
    centre, spread = float(x.nanmean()), float((x - x.nanmean()).square().nanmean().sqrt())

    def density(v: float) -> float:
        return float(head.log_prob(params, torch.tensor(v, dtype=torch.float64)).exp())

    points = [centre + k * spread for k in (-3, -1, 0, 1, 3)]
    total, _ = integrate.quad(density, centre - 40 * spread, centre + 40 * spread, points=points, limit=400)
    if COLUMNS[j].nullable:
        total += density(math.nan)
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("kind", "levels"), [("bernoulli", 2), ("categorical", 5), ("logistic", 256), ("logistic", 3)])
def test_image_heads_sum_to_one(kind: str, levels: int) -> None:
    space = Image(2, 3, 2, levels)
    heads = heads_for(space, image=kind)  # type: ignore[arg-type]
    x = torch.randint(0, levels, (50, 2, 2, 3), generator=generator(), dtype=torch.uint8)
    heads.prepare(x)
    params = 3 * torch.randn(sum(heads.params), generator=generator(1))
    every = torch.stack([torch.full((2, 2, 3), level, dtype=torch.uint8) for level in range(levels)])
    total = heads.log_prob(params, every).double().exp().sum(0)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


def test_logistic_cell_against_scipy_deep_in_both_tails() -> None:
    z = torch.linspace(-700, 700, 2001, dtype=torch.float64)
    for width in (1e-6, 0.1, 3.0, 50.0):
        # in the left tail the difference of distribution functions is exact; the right tail is its mirror image
        left = -z.abs()
        high, low = stats.logistic.logcdf(left + width / 2), stats.logistic.logcdf(left - width / 2)
        truth = torch.from_numpy(high + torch.log(-torch.expm1(torch.from_numpy(low - high))).numpy())
        got = log_logistic_cell(z, torch.tensor(width, dtype=torch.float64))
        assert torch.allclose(got, truth, rtol=1e-9, atol=1e-7)
        single = log_logistic_cell(z.float(), torch.tensor(width))
        assert torch.allclose(single.double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("j", range(len(COLUMNS)))
def test_outliers_have_finite_values_and_gradients(j: int) -> None:
    head = prepared(j)
    column = COLUMNS[j]
    extreme = torch.tensor([0.0, 1.0]).double()
    if not isinstance(column, Category):
        extreme = column.origin + torch.tensor([1e7, -1e7]).double()
    for size in (0.0, 1.0, 50.0):
        params = (size * random_params(head)).expand(2, -1).clone().requires_grad_()
        log_p = head.log_prob(params, extreme)
        log_p.sum().backward()
        assert log_p.isfinite().all()
        assert params.grad is not None
        assert params.grad.isfinite().all()


def test_levels_start_at_the_marginal_of_their_site() -> None:
    """A constant site, one of two values, a smooth one: and no level is held impossible."""
    g = generator(3)
    n = 3000
    constant, smooth = torch.full((n,), 0), (128 + 30 * torch.randn(n, generator=g)).round().clamp(0, 255).long()
    two = torch.where(torch.rand(n, generator=g) < 0.3, 255, 17)
    x = torch.stack([constant, two, smooth], 1).to(torch.uint8)
    head = LevelLogistics(256, 8, (3,))
    head.prepare(x)
    nats = -head.log_prob(torch.zeros(3, head.params), x).mean(0)
    bell = math.log(30 * math.sqrt(2 * math.pi * math.e))
    entropy = torch.tensor([0.0, -0.3 * math.log(0.3) - 0.7 * math.log(0.7), bell])
    assert (nats - entropy < torch.tensor([0.05, 1.6, 0.6])).all()  # of log 256 = 5.5 at most
    assert (nats > entropy - 0.05).all()
    assert head.log_prob(torch.zeros(256, 3, head.params), torch.arange(256)[:, None].expand(-1, 3)).min() > -20
    weighted = LevelLogistics(256, 8, (3,))
    weighted.prepare(x, (x[:, 1] == 17).double())
    assert float(weighted.log_prob(torch.zeros(3, head.params), torch.tensor([0, 17, 128]))[1]) > -0.2


def test_levels_at_the_edges_have_finite_gradients() -> None:
    head = LevelLogistics(256, 3)
    params = (60 * torch.randn(256, head.params, generator=generator())).requires_grad_()
    log_p = head.log_prob(params, torch.arange(256))
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert params.grad is not None
    assert params.grad.isfinite().all()


@pytest.mark.parametrize("j", range(len(COLUMNS)))
def test_zero_parameters_give_the_marginal(j: int) -> None:
    """Shares of categories, atoms and missing entries; the bulk of a number's distribution."""
    head, x = prepared(j), rows()[:, j]
    zero = torch.zeros(head.params)
    missing = float(x.isnan().double().mean())
    if COLUMNS[j].nullable:
        assert float(head.log_prob(zero, torch.tensor(math.nan)).exp()) == pytest.approx(missing, abs=0.01)
    drawn = head.sample(zero.expand(4000, -1), generator())
    if isinstance(COLUMNS[j], Category):
        for k in range(len(COLUMNS[j].values)):  # type: ignore[union-attr]
            p = float(head.log_prob(zero, torch.tensor(float(k))).exp())
            assert p == pytest.approx(float((x == k).double().mean()), abs=0.01)
    else:
        assert float(drawn.nanmedian()) == pytest.approx(
            float(x.nanmedian()), abs=float((x - x.nanmean()).square().nanmean().sqrt())
        )
    if j == 2:
        assert float(head.log_prob(zero, torch.tensor(0.0)).exp()) == pytest.approx(
            float((x == 0).double().mean()), abs=0.02
        )


@pytest.mark.parametrize("j", [1, 2, 4, 7])
def test_discrete_samples_have_their_probabilities(j: int) -> None:
    head, n = prepared(j), 20_000
    params = random_params(head, 3)
    drawn = head.sample(params.expand(n, -1), generator(5))
    values, counts = drawn.nan_to_num(nan=-99).unique(return_counts=True)
    p = head.log_prob(params, torch.where(values == -99, math.nan, values)).double().exp()
    often = p * n > 20
    z = (counts[often] - n * p[often]) / (n * p * (1 - p))[often].sqrt()
    assert float(z.abs().max()) < 5
    assert float(z.square().mean()) < 2


def test_real_samples_have_their_density() -> None:
    head, n = prepared(8), 4000
    params = random_params(head, 3)
    drawn = head.sample(params.expand(n, -1), generator(5)).sort().values
    grid = torch.linspace(float(drawn[0]) - 2000, float(drawn[-1]) + 2000, 200_001, dtype=torch.float64)
    cdf = (head.log_prob(params.double(), grid).exp() * (grid[1] - grid[0])).cumsum(0)
    at = cdf[torch.searchsorted(grid, drawn).clamp(max=len(grid) - 1)]
    distance = (at - (torch.arange(n) + 0.5) / n).abs().max()
    assert float(distance) < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at 0.1%


def test_density_shifts_with_the_unit() -> None:
    x = rows()[:, 8]
    a, b = table_head(Real("mass")), table_head(Real("mass"))
    a.prepare(x)
    b.prepare(1000 * x)
    params = random_params(a).expand(ROWS, -1)
    shift = a.log_prob(params, x) - b.log_prob(params, 1000 * x)
    assert torch.allclose(shift, torch.full_like(shift, math.log(1000)), atol=1e-4)


def test_whole_space_equals_its_columns() -> None:
    """The grouped heads against one head per column, the slow twin."""
    space, x = Table(COLUMNS), rows()
    space.check(x)
    heads = heads_for(space)
    heads.prepare(x)
    params = torch.randn(ROWS, sum(heads.params), generator=generator(2))
    log_p, embedded = heads.log_prob(params, x), heads.embed(x)
    first, at = 0, 0
    for j, column in enumerate(COLUMNS):
        alone, view = table_head(column), heads.site(j)
        alone.prepare(x[:, j])
        own = params[:, first : first + view.params]
        first += view.params
        assert torch.allclose(view.log_prob(own, x[:, j]), log_p[:, j], atol=1e-4)
        assert torch.equal(view.embed(x[:, j]), embedded[:, at : at + view.features])
        assert torch.equal(torch.isnan(view.sample(own, generator())), torch.isnan(view.sample(own, generator())))
        at += view.features
        if alone.params == view.params:  # categories of like size may carry padding
            assert torch.allclose(alone.log_prob(own, x[:, j]), log_p[:, j], atol=1e-4)
    assert (first, at) == (params.shape[1], embedded.shape[1])
    drawn = heads.sample(params, generator())
    space.check(drawn)
    more = heads.log_prob(params.expand(3, -1, -1), x)
    assert more.shape == (3, ROWS, len(COLUMNS))


def test_weights_count_as_repeated_rows() -> None:
    space, x = Table(COLUMNS), rows()
    weight = torch.randint(1, 4, (ROWS,), generator=generator(3)).float()
    a, b = heads_for(space), heads_for(space)
    a.prepare(x, weight)
    b.prepare(x.repeat_interleave(weight.long(), 0))
    params = torch.zeros(1, sum(a.params))
    assert torch.allclose(a.log_prob(params, x), b.log_prob(params, x), atol=2e-3)


def test_state_dict_restores_what_prepare_saw() -> None:
    space, x = Table(COLUMNS), rows()
    a, b = heads_for(space), heads_for(space)
    a.prepare(x)
    b.load_state_dict(a.state_dict())
    params = torch.randn(ROWS, sum(a.params), generator=generator())
    assert torch.equal(a.log_prob(params, x), b.log_prob(params, x))


def test_columns_without_spread_or_without_values() -> None:
    space = Table((Real("r", nullable=True), Integer("i", 7, 7), Real("s", step=0.5, nullable=True), Real("t")))
    x = torch.tensor([[math.nan, 7.0, math.nan, 3.0]]).double().expand(20, -1)
    heads = heads_for(space)
    heads.prepare(x)
    zero = torch.zeros(1, sum(heads.params))
    log_p = heads.log_prob(zero, x[:1])
    assert log_p.isfinite().all()
    assert float(log_p[0, 1].exp()) > 0.9
    space.check(heads.sample(zero, generator()))


def test_wrong_image_heads_are_named() -> None:
    with pytest.raises(UsageError, match="256"):
        image_head("bernoulli", 256)
    with pytest.raises(UsageError, match="poisson"):
        image_head("poisson", 256)  # type: ignore[arg-type]


def test_encoders_take_raw_contexts() -> None:
    space, x = Table(COLUMNS), rows()
    e = encoder(space)
    e.prepare(x)
    assert e(x).vector.shape == (ROWS, e.width)
    assert e(x).vector.isfinite().all()
    assert float(e(x).vector.detach().std(0).max()) < 10, "columns far from the origin are standardised"
    label = encoder(Label(("a", "b")), width=8)
    assert label(torch.tensor([0, 1, 1])).vector.shape == (3, 8)
    for image in (Image(28, 28), Image(5, 3, 3), Image(1, 7, 1, 2), Image(64, 48, 3)):
        net = encoder(image)
        c = torch.randint(0, image.levels, (2, *image.event_shape), generator=generator(), dtype=torch.uint8)
        assert net(c).vector.shape == (2, net.width)
    with pytest.raises(Unsupported):
        encoder("a string")  # type: ignore[arg-type]
