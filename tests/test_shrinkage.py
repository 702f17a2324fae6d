"""Few rows for their columns: densities stay near that of independent columns, and say what they did about it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

import pofx
from pofx.core.likelihood import Exact, Unavailable
from pofx.core.registry import BUILT_IN, family
from pofx.core.space import Space
from pofx.data.parts import Data, Part
from pofx.families.gmm import GaussianMixture, MixtureConfig
from pofx.nn.tails import REACH, lengthen, normal_log_prob, shorten
from pofx.spaces import Audio, Category, Image, Integer, Label, Real, Table, Text
from pofx.transforms.base import pseudo_rows

FAMILIES = ("gaussian", "gmm", "realnvp", "maf", "nsf", "vae", "made", "vdm", "flow-matching")


def columns(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Columns of strangers' tables: all scales, heavy tails, sums and near copies of others, nearly constant ones."""
    common, out = rng.normal(size=(n, 2)), [rng.normal(size=n)]
    for _ in range(d - 1):
        own, kind = rng.normal(size=n), rng.integers(7)
        choices = (
            lambda own=own: own * 10.0 ** rng.integers(-4, 7),
            lambda own=own: np.exp(3 * own + 5),
            lambda: rng.standard_cauchy(n),
            lambda: out[-1] + out[0],
            lambda own=own: common[:, rng.integers(2)] + 1e-4 * own,
            lambda own=own: np.where(rng.random(n) < 0.9, 7.0, 7 + 1e3 * own),
            lambda own=own: np.round(np.exp(own + 3)),
        )
        out.append(choices[kind]())
    return np.stack(out, 1)


def table(seed: int) -> Data:
    """6 to 20 rows to fit, a fifth of them to validate; 40 unseen ones to score."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(6, 21)), int(rng.integers(2, 41))
    whole = pofx.load(columns(rng, n + 40, d), seed=seed)
    x = torch.cat([part.read().x for part in (whole.train, whole.valid, whole.test)])
    valid = max(1, n // 5)
    return Data("few", "memory", whole.space, Part(x[valid:n]), Part(x[:valid]), Part(x[n:]))


def held_out(data: Data, name: str) -> float:
    cls = family(name)
    options = vars(cls.tiny(data.space)) if name != "gmm" else {}
    budget = {} if name in ("independent", "gaussian", "gmm") else {"steps": 30, "checks": 2}
    run = pofx.fit(data, name, options=options, **budget)
    nats = run.model.log_prob(data.test.read().x).nats.detach().double()
    assert not nats.isnan().any()
    return float(nats.mean())


@pytest.fixture(scope="module")
def tables() -> list[tuple[Data, float]]:
    return [(data, held_out(data, "independent")) for data in map(table, range(8))]


@pytest.mark.parametrize("name", FAMILIES)
def test_never_a_thousand_nats_below_independent_columns(name: str, tables: list[tuple[Data, float]]) -> None:
    for data, independent in tables if name in ("gaussian", "gmm") else tables[:3]:
        assert held_out(data, name) > independent - 1000


@pytest.mark.parametrize("name", ["gaussian", "gmm", "maf"])
def test_what_few_rows_change_is_told(name: str) -> None:
    rng = np.random.default_rng(0)
    for rows, told in ((12, True), (3000, False)):
        data = pofx.load(rng.normal(size=(rows, 5)))
        run = pofx.fit(data, name, steps=1)
        notes = [note for note in run.info["data"]["notes"] if "rows are few" in note]
        assert (len(notes) == 1) is told
        assert notes == run.model.remarks


def test_diagonal_covariances_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pofx.families.gmm.LARGEST_COVARIANCE", 99)
    run = pofx.fit(pofx.load(np.random.default_rng(0).normal(size=(500, 10))), "gaussian")
    assert "diagonal" in run.model.remarks[0]


def test_many_rows_speak_for_themselves() -> None:
    """The prior of few rows is gone by 25 rows a parameter of a column: a covariance is the data's own."""
    assert pseudo_rows(10, 8) == 8
    assert pseudo_rows(5000, 20) == pytest.approx(20 * 20 / 5000)
    weights = [pseudo_rows(n, 30) / n for n in range(1, 5000)]
    assert all(a >= b for a, b in pairwise(weights))
    x = np.random.default_rng(3).normal(size=(6000, 20)) @ np.random.default_rng(4).normal(size=(20, 20))
    data = pofx.load(x)
    train, test = (part.read().x for part in (data.train, data.test))
    want = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov(correction=0)).log_prob(test).mean()
    got = pofx.fit(data, "gaussian").model.log_prob(test)
    assert isinstance(got, Exact)
    assert float(got.nats.mean()) == pytest.approx(float(want), abs=1e-3)


# -- the tails ------------------------------------------------------------------------------------------------


def test_tails_are_a_proper_density_and_a_map_one_to_one() -> None:
    v = torch.cat([torch.linspace(-40, 40, 801, dtype=torch.float64), torch.tensor([1e3, -1e12], dtype=torch.float64)])
    s, log_slope = shorten(v)
    assert torch.equal(s[v.abs() <= REACH], v[v.abs() <= REACH])
    assert torch.allclose(lengthen(s), v, rtol=1e-9)
    slope = torch.autograd.functional.jacobian(lambda t: shorten(t)[0], v).diagonal()
    assert torch.allclose(slope.log(), log_slope, atol=1e-12)

    def density(z: float) -> float:
        return math.exp(float(normal_log_prob(torch.tensor(z, dtype=torch.float64))))

    middle = integrate.quad(density, -REACH, REACH, epsabs=1e-13)[0]
    tail = integrate.quad(density, REACH, math.inf, epsabs=1e-13)[0]
    assert middle + 2 * tail == pytest.approx(1, abs=1e-10)
    assert -80 < float(normal_log_prob(torch.tensor(1e12))) < -60


def test_a_mixture_with_tails_sums_to_one_and_knows_its_score() -> None:
    """In one dimension, beyond the reach too; the score is the derivative of the log-density."""
    x = torch.randn(30, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    model = GaussianMixture(MixtureConfig(components=2), Table((Real("x"),)))
    model.prepare(x, None, None, torch.Generator().manual_seed(0))

    def log_p(t: torch.Tensor) -> torch.Tensor:
        return model.log_prob(t[:, None]).nats

    def density(t: float) -> float:
        return float(log_p(torch.tensor([t], dtype=torch.float64)).exp())

    near = float(model.location + REACH * model.scale)
    edges = [-math.inf, -near, 0.0, near, math.inf]
    total = sum(integrate.quad(density, a, b, limit=200)[0] for a, b in pairwise(edges))
    assert total == pytest.approx(1, abs=1e-6)
    far = torch.tensor([-1e4, -30.0, -2.0, 1.0, 25.0, 1e3], dtype=torch.float64)
    step = 1e-5 * far.abs()
    slope = (log_p(far + step) - log_p(far - step)) / (2 * step)
    assert torch.allclose(model.given().score(far[:, None])[:, 0], slope, rtol=1e-5)


def test_a_column_of_one_value_has_a_scale() -> None:
    """The mean of ten times 0.1 is not 0.1: rounding is no spread."""
    x = torch.stack([torch.full((10,), 0.1, dtype=torch.float64), torch.arange(10, dtype=torch.float64).sqrt()], 1)
    data = Data("constant", "memory", Table((Real("a"), Real("b"))), Part(x), Part(x[:2]), Part(x[:2] + 1e-9))
    for name in ("maf", "gaussian", "made"):
        options = vars(family(name).tiny(data.space))
        model = pofx.fit(data, name, steps=5, options=options).model
        assert model.log_prob(data.test.read().x).nats.min() > -1000


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_least_of_data_ends_in_numbers(name: str) -> None:
    """One row, one image, one class, one text, one sound: finite numbers, or a named error."""
    cls, f64 = family(name), torch.float64
    plane, generator = Table((Real("a"), Real("b"))), torch.Generator().manual_seed(0)
    mixed = Table((Real("a", nullable=True), Integer("n", 0, 9), Category("k", ("u", "v"))))
    row, label = torch.randn(6, 2, generator=generator, dtype=f64), torch.zeros(6, dtype=torch.int64)
    least: list[tuple[Space, Space | None, torch.Tensor, torch.Tensor | None]] = [
        (plane, None, row[:1], None),
        (mixed, None, torch.tensor([[math.nan, 3, 1]], dtype=f64), None),
        (Image(8, 8, 1, 16), None, torch.randint(16, (1, 1, 8, 8), generator=generator).to(torch.uint8), None),
        (Image(1, 1, 1, 256), None, torch.full((3, 1, 1, 1), 7, dtype=torch.uint8), None),
        (plane, Label(("only",)), row, label),
        (Label(("only",)), plane, label, row),
        (Text("abc", True, 6), None, torch.tensor([[0, 1, 2, 0, -1, -1]]), None),
        (Audio(8000, 256, has_eos=True, length=50), None, torch.randint(256, (1, 50), generator=generator), None),
    ]
    for space, context, x, c in least:
        config = cls.tiny(space)
        if cls.refuses(space, context, config) is not None:
            continue
        parts = (Part(x, c), Part(x[:1], None if c is None else c[:1]), Part(x, c))
        data = Data("least", "memory", space, *parts, context=context)
        model = pofx.fit(data, name, steps=2, options=vars(config), checks=1).model
        lik = model.given(c).log_prob(x)
        assert isinstance(lik, Unavailable) or lik.nats.isfinite().all(), space
        space.check(model.given(None if c is None else c[0]).sample(2))
