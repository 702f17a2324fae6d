"""Evaluation against closed forms, slow twins and scikit-learn; comparisons of small families of known worth."""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pofx.core import registry
from pofx.core.abilities import Encodes
from pofx.core.comparison import compare as compare_rows
from pofx.core.errors import EmptyData, RunExists, UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Estimate, Exact, Likelihood, LowerBound, Unavailable, make
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.registry import family
from pofx.core.requests import ExactLikelihood, Request, Sampler, StepByStep
from pofx.data.parts import Data, Part
from pofx.data.ragged import RaggedRows
from pofx.evaluate import baselines, cost, latent, likelihood, outlier, ranking, recommend, two_sample
from pofx.evaluate.compare import compare, read_comparison
from pofx.evaluate.likelihood import Mean, mean_log_prob, summarise, verdicts
from pofx.evaluate.study import Settings, Study, _quality, _sample, shown
from pofx.spaces import Category, Image, Integer, Label, Real, Table, Text
from toys import PROMISES

PLANE = Table((Real("a"), Real("b")))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(n: int, seed: int = 0, rho: float = 0.8) -> Tensor:
    x = torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)
    return torch.stack([x[:, 0], rho * x[:, 0] + math.sqrt(1 - rho**2) * x[:, 1]], 1)


class Clock:
    """Time that passes only where something sleeps, on however busy a machine."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(cost, "time", fake)
    monkeypatch.setattr(Bell, "sleep", fake.sleep)
    return fake


# -- families of known worth -------------------------------------------------------------------------


class Counted:
    """A learner with nothing left to learn after one sweep."""

    sweep = "dataset"
    runtime = None
    finished = False

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        self.finished = True
        return {"loss": torch.zeros(())}

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


class Bell(Model, Encodes):
    """A full Gaussian over reals, by moments; its likelihood can be made a bound, an estimate, or nothing."""

    name = "test-bell"
    summary = "a Gaussian"
    taxonomy = "test"
    paper = ""
    estimators = tuple(PROMISES.values())
    sleep = staticmethod(time.sleep)

    @dataclass(frozen=True)
    class Config:
        kind: str = "Exact"
        gap: float = 0.0  # nats by which a bound is loose
        delay: float = 0.0  # seconds per row of a density
        fails: str = ""

    @classmethod
    def refuses(cls, space, context, config):  # type: ignore[no-untyped-def]
        return None if isinstance(space, Table) and context is None else "it takes tables only."

    @classmethod
    def recipe(cls, space):  # type: ignore[no-untyped-def]
        return Recipe()

    def __init__(self, config, space, context=None):  # type: ignore[no-untyped-def]
        super().__init__(config, space, context)
        d = len(space.columns)
        self.register_buffer("mean", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("chol", torch.eye(d, dtype=torch.float64))

    def prepare(self, x, c, weight, generator):  # type: ignore[no-untyped-def]
        if self.config.fails == "fit":
            raise ZeroDivisionError("by design")
        self.mean.copy_(x.mean(0))
        self.chol.copy_(torch.linalg.cholesky(torch.cov(x.T)))

    def answers(self, asked):  # type: ignore[no-untyped-def]
        return getattr(asked, "kind", self.config.kind) == self.config.kind

    def learner(self, recipe):  # type: ignore[no-untyped-def]
        return Counted()

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        if self.config.kind == "Unavailable":
            return Unavailable("it has no density by design")
        self.sleep(self.config.delay * len(x))
        nats = torch.distributions.MultivariateNormal(self.mean, scale_tril=self.chol).log_prob(x)
        if self.config.kind == "Exact":
            return Exact(nats, self.space.measure)
        off = 0.1 * noise.randn() - self.config.gap
        kind = {"LowerBound": LowerBound, "Estimate": Estimate}[self.config.kind]
        return make(kind, nats + off, self.space.measure, torch.full_like(nats, 0.1), 8, "by design")

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        if self.config.fails == "sample":
            raise ZeroDivisionError("by design")
        z = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + z @ self.chol.T

    def rows_encode(self, x: Tensor, c: Tensor | None) -> Independent:
        z = torch.linalg.solve_triangular(self.chol, (x - self.mean).T, upper=False).T
        return Independent(Normal(z, torch.ones_like(z)), 1)


class Marginals(Bell):
    """The Gaussian that forgets all correlation: worse by half the log-determinant of the correlation."""

    name = "test-marginals"

    @classmethod
    def lacks(cls, ability, space):  # type: ignore[no-untyped-def]
        return "it forgets them by design."

    def prepare(self, x, c, weight, generator):  # type: ignore[no-untyped-def]
        self.mean.copy_(x.mean(0))
        self.chol.copy_(x.std(0).diag())


class Loose(Bell):
    name = "test-loose"

    @dataclass(frozen=True)
    class Config(Bell.Config):
        kind: str = "LowerBound"
        gap: float = 2.0


class Silent(Bell):
    name = "test-silent"

    @dataclass(frozen=True)
    class Config(Bell.Config):
        kind: str = "Unavailable"


class Broken(Bell):
    name = "test-broken"

    @dataclass(frozen=True)
    class Config(Bell.Config):
        fails: str = "fit"


class Guess(Model):
    """p(label | x): a logistic function of the first column, with no training."""

    name = "test-guess"
    summary = taxonomy = paper = ""
    estimators = (ExactLikelihood,)

    @dataclass(frozen=True)
    class Config:
        slope: float = 4.0

    @classmethod
    def refuses(cls, space, context, config):  # type: ignore[no-untyped-def]
        return None if isinstance(space, Label) else "it predicts labels only."

    recipe = Bell.recipe
    learner = Bell.learner

    def logits(self, c: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(c)), self.config.slope * c[:, 0].float()], 1).log_softmax(1)

    def rows_log_prob(self, x: Tensor, c: Tensor, request: Request, noise: RowNoise) -> Likelihood:
        return Exact(self.logits(c).gather(1, x[:, None]).squeeze(1), self.space.measure)

    def rows_sample(self, n: int, c: Tensor, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return torch.multinomial(self.logits(c).exp(), 1, generator=generator).squeeze(1)


@pytest.fixture(scope="module", autouse=True)
def _families() -> Iterator[None]:
    for cls in (Bell, Marginals, Loose, Silent, Broken, Guess):
        registry.register(cls)
    yield
    for cls in (Bell, Marginals, Loose, Silent, Broken, Guess):
        del registry._REGISTERED[cls.name]


@pytest.fixture(scope="module")
def plane() -> Data:
    rows = correlated(2600)
    label = (rows.sum(1) > 0).long()
    cut = [Part(rows[s], label=label[s]) for s in (slice(0, 1500), slice(1500, 1600), slice(1600, 2600))]
    return Data("plane", "memory", PLANE, *cut, labels=("low", "high"), split="in order")


def bell(data: Data, **options: object) -> Bell:
    model = Bell(Bell.Config(**options), data.space)  # type: ignore[arg-type]
    model.prepare(data.train.x, None, None, seeded())
    return model


# -- likelihood ----------------------------------------------------------------------------------------


def test_a_score_is_the_mean_with_its_error(plane):
    model = bell(plane)
    s = mean_log_prob(model, plane.test)
    nats = model.log_prob(plane.test.x).nats
    assert s.kind is Exact
    assert s.nats == pytest.approx(float(nats.mean()))
    assert s.se == pytest.approx(float(nats.std() / 1000**0.5))
    assert s.mc_se == 0
    assert s.n == 1000
    assert s.bits_per_dim == pytest.approx(-float(nats.mean()) / math.log(2) / 2)
    assert s.text.startswith("= -2.")
    assert "mc" not in s.text


def test_a_bound_says_so_and_its_bits_point_the_other_way(plane):
    s = mean_log_prob(bell(plane, kind="LowerBound"), plane.test)
    assert s.text.startswith("≥ ")
    assert s.bits_text.startswith("≤ ")
    assert s.mc_se == pytest.approx(0.1 / 1000**0.5)
    assert s.draws == 8
    assert s.text.endswith(" nats")  # beside an error of 0.05 that of the draws is nothing
    silent = mean_log_prob(bell(plane, kind="Unavailable"), plane.test)
    assert silent.text == "— (it has no density by design)"
    assert math.isnan(silent.nats)


def test_text_of_a_score():
    nats = torch.tensor([-85.53, -85.11])
    space = Image(28, 28)
    s = summarise(LowerBound(nats, space.measure, torch.tensor([0.12, 0.12]), 8), space, torch.full((2,), 784.0))
    assert s.text == "≥ -85.32 ± 0.21 nats (mc 0.085)"
    assert s.bits_text == "≤ 0.15700 ± 0.00039 bits/dim"


def test_weights_are_repetitions(plane):
    weight = torch.randint(1, 4, (200,), generator=seeded())
    rows, model = plane.test[:200], bell(plane)
    weighted = mean_log_prob(model, Part(rows.x, weight=weight.double()))
    repeated = mean_log_prob(model, Part(rows.x.repeat_interleave(weight, 0)))
    assert weighted.nats == pytest.approx(repeated.nats)
    other = Marginals(Marginals.Config(), PLANE)
    other.prepare(plane.train.x, None, None, seeded())
    both = {"a": weighted, "b": mean_log_prob(other, Part(rows.x, weight=weight.double()))}
    pair = verdicts(both, weight.double())["a"]["b"]
    assert pair["nats"] == pytest.approx(both["a"].nats - both["b"].nats)
    assert verdicts(both)["a"]["b"]["nats"] != pytest.approx(pair["nats"])


@pytest.mark.parametrize("kind", ["Exact", "LowerBound", "Estimate", "Unavailable"])
def test_means_survive_json(plane, kind):
    s = mean_log_prob(bell(plane, kind=kind), plane.test[:50])
    back = Mean.from_json(json.loads(json.dumps(s.to_json(), allow_nan=False)))
    assert (back.kind, back.n, back.draws, back.measure, back.note) == (s.kind, s.n, s.draws, s.measure, s.note)
    assert back.text == s.text
    if s.rows is not None:
        assert torch.allclose(back.rows.nats, s.rows.nats)
        assert type(back.rows) is type(s.rows)


def test_an_impossible_row_stays_impossible_in_json():
    s = summarise(Exact(torch.tensor([-1.0, -math.inf]), PLANE.measure), PLANE, torch.full((2,), 2.0))
    back = Mean.from_json(json.loads(json.dumps(s.to_json(), allow_nan=False)))
    assert back.nats == -math.inf
    assert back.rows.nats[1] == -math.inf


def test_a_slow_model_takes_the_first_rows(plane, clock):
    whole = mean_log_prob(bell(plane), plane.test)
    part = mean_log_prob(bell(plane, delay=0.002), plane.test, seconds=0.3)
    assert 100 < part.n <= 150
    assert torch.equal(part.rows.nats, whole.rows.nats[: part.n])
    assert part.seconds <= 0.3
    assert part.rows_per_second == pytest.approx(500)
    # what both have scored decides
    assert verdicts({"a": whole, "b": part})["a"]["b"]["n"] == part.n


def test_verdicts_are_antisymmetric_and_respect_kinds(plane):
    marginals = Marginals(Marginals.Config(), PLANE)
    marginals.prepare(plane.train.x, None, None, seeded())
    means = {
        "bell": mean_log_prob(bell(plane), plane.test),
        "marginals": mean_log_prob(marginals, plane.test),
        "bound": mean_log_prob(bell(plane, kind="LowerBound", gap=3.0), plane.test),
        "estimate": mean_log_prob(bell(plane, kind="Estimate"), plane.test),
    }
    table = verdicts(means)
    assert table["bell"]["marginals"]["verdict"] == "better"
    assert table["marginals"]["bell"]["verdict"] == "worse"
    assert table["bell"]["marginals"]["nats"] == pytest.approx(-0.5 * math.log(1 - 0.8**2), abs=0.1)
    # the loose bound may hide a better model; an estimate decides nothing
    assert table["marginals"]["bound"]["verdict"] == "undecided"
    assert all(pair["verdict"] == "undecided" for pair in table["estimate"].values())
    flip = {"better": "worse", "worse": "better", "undecided": "undecided"}
    for a in table:
        for b in table[a]:
            assert table[b][a]["verdict"] == flip[table[a][b]["verdict"]]


def test_nothing_to_score(plane):
    with pytest.raises(EmptyData):
        mean_log_prob(bell(plane), plane.test[:0])


# -- cost ----------------------------------------------------------------------------------------------


def test_blocks_cover_all_rows_once(clock):
    grown = cost.grow(lambda start, size: list(range(start, start + size)), 1000)
    assert [k for part in grown.parts for k in part] == list(range(1000))
    assert grown.rows == 1000
    limited = cost.grow(lambda start, size: clock.sleep(0.001 * size), 10**6, 0.2)
    assert 190 < limited.rows <= 200
    assert limited.rows_per_second == pytest.approx(1000)


def test_blocks_expect_start_up_costs(clock):
    """A sampler that takes 20 ms however many it draws is not taken for one that takes 20 ms for each."""
    grown = cost.grow(lambda start, size: clock.sleep(0.02), 4000, 0.5, one=0.02)
    assert grown.rows == 4000
    # and one that is slower in every row stops within its time, but for the first block
    slow = cost.grow(lambda start, size: clock.sleep(0.3 * size), 4000, 1.0, one=0.3)
    assert slow.rows == 8
    never = cost.grow(lambda start, size: clock.sleep(9.0 * size), 4000, 1.0, one=9.0)
    assert never.rows == 1


def test_speed_over_length(clock):
    """Where a step costs the same everywhere the curve is flat; where it costs more the later, it falls so."""

    def drawn(cost_of):
        def draw(rows, length):
            clock.sleep(cost_of(rows, length))
            return length

        return draw

    flat = cost.speed_curve(drawn(lambda rows, length: 1e-3 * length), 1000, 10.0)
    assert [s.length for s in flat] == [15, 31, 62, 125, 250, 500, 1000] * 2
    assert [s.rows for s in flat] == [1] * 7 + [16] * 7
    for s in flat:
        assert s.steps_per_second == pytest.approx(1000 * s.rows)
        assert s.seconds == pytest.approx(s.length / 1000)
    rising = cost.speed_curve(drawn(lambda rows, length: 1e-5 * length**2), 1000, 100.0, batches=(4,))
    assert [s.steps_per_second for s in rising] == pytest.approx([4e5 / s.length for s in rising])
    assert rising[-1].length == 1000


@pytest.mark.parametrize("power", [1, 2])
def test_speed_over_length_keeps_its_time(clock, power):
    def draw(rows, length):
        clock.sleep(0.001 * (length / 8) ** power)
        return length

    found, limit = cost.speed_curve(draw, 10**6, 2.0), 2.0
    assert clock.now <= limit
    assert clock.now > 0.1 * limit
    lengths = [s.length for s in found if s.rows == 1]
    assert len(lengths) > 3
    assert all(a < b < 10**5 for a, b in itertools.pairwise(lengths))
    before = clock.now
    slow = cost.speed_curve(lambda rows, length: (clock.sleep(9.0), length)[1], 1000, 1.0)
    assert [s.rows for s in slow] == [1, 16]  # the shortest of each, once
    assert clock.now - before == pytest.approx(18.0)


def test_draws_that_end_by_themselves_end_the_curve(clock):
    def draw(rows, length):
        clock.sleep(1e-3 * min(length, 100))
        return min(length, 100)

    found = cost.speed_curve(draw, 1000, 10.0, batches=(2,))
    assert [s.length for s in found] == [15, 31, 62, 100]
    assert [s.steps_per_second for s in found] == pytest.approx([2000] * 4)
    assert cost.speed_curve(lambda rows, length: 0, 1000, 10.0) == []  # nothing but empty data


class Letters(Bell):
    """Excerpts drawn letter by letter, ``delay`` seconds for each, however many rows at once."""

    name = "test-letters"
    samplers = (StepByStep,)

    def __init__(self, config, space, context=None):  # type: ignore[no-untyped-def]
        Model.__init__(self, config, space, context)

    @classmethod
    def refuses(cls, space, context, config):  # type: ignore[no-untyped-def]
        return None if isinstance(space, Text) else "it takes texts only."

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        length = sampler.length or self.space.length
        self.sleep(self.config.delay * length)
        return torch.randint(3, (n, length), generator=generator)


def test_long_data_are_sampled_as_far_as_time_allows(clock):
    space = Text("abc", has_eos=False, length=800)
    x = torch.randint(3, (60, 800), generator=seeded())
    settings = Settings(seconds=10.0, samples=200)
    study = Study.prepare(Data("abc", "memory", space, Part(x[:30]), Part(x[30:40]), Part(x[40:])), settings)
    for delay, whole in ((1e-5, True), (1e-2, False)):
        begun = clock.now
        figures, fake = _sample(study, Letters(Letters.Config(delay=delay), space), 3.0)
        assert clock.now - begun < 3.0 + 1.0  # and what the curve may take
        assert all(s["steps_per_second"] == pytest.approx(s["rows"] / delay) for s in figures["speed"])
        assert figures["cut"] == (None if whole else 60)  # a fifth of the time
        assert fake.x.shape[1] == (800 if whole else 60)
        assert len(fake) == figures["n"] > 8
    quality = _quality(study, fake, 60)
    assert quality["n"] == 20
    # letters at random are just like letters at random, where both are as long
    assert quality["c2st"]["accuracy"] - 0.5 < 4 * quality["c2st"]["se"]


def test_what_a_report_keeps_of_long_data():
    values = np.arange(10**6) % 3
    rows = RaggedRows.joined(values, np.linspace(0, 10**6, 6).astype(int), -1, torch.int64)
    kept = shown(Part(rows), Text("abc", length=200_000))
    assert kept.x.shape == (4, 200_000)
    huge = shown(Part(RaggedRows.joined(values, [0, 10**6], -1, torch.int64)), Text("abc", length=10**6))
    assert huge.x.shape == (1, 2**19)  # 4 MiB
    assert torch.equal(huge.x[0], torch.from_numpy(values[: 2**19]))
    many = shown(Part(torch.zeros(2000, 5, dtype=torch.int64)), Text("abc", length=5))
    assert many.x.shape == (1000, 5)


def test_peak_memory_sees_what_came_and_went():
    """In a fresh process: here, an earlier test's freed pages could be used again without growing."""
    code = (
        "import torch; from pofx.evaluate import cost\n"
        "with cost.peak_memory() as peak: torch.ones(25_000_000)\n"
        "assert peak.bytes - peak.before > 80e6, peak\n"
        "assert 'VmHWM' in peak.method or 'getrusage' in peak.method, peak"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- features ------------------------------------------------------------------------------------------


def test_table_features_standardise_flag_and_spread():
    many = Category("many", tuple(str(k) for k in range(40)))
    space = Table((Real("r", nullable=True), Integer("i", 0, 9), Category("c", ("x", "y", "z")), many))
    g = seeded()
    x = torch.stack(
        [
            5 + 3 * torch.randn(500, generator=g, dtype=torch.float64),
            torch.randint(0, 10, (500,), generator=g).double(),
            torch.randint(0, 3, (500,), generator=g).double(),
            torch.randint(0, 40, (500,), generator=g).double(),
        ],
        1,
    )
    x[::10, 0] = math.nan
    features = two_sample.Features(space, Part(x))
    f = features(x)
    assert f.shape == (500, 1 + 1 + 1 + 3 + two_sample.ONE_HOT)
    assert f.isfinite().all()
    assert torch.equal(f[:, 1], x[:, 0].isnan().float())
    present = f[~x[:, 0].isnan(), 0]
    assert float(present.mean()) == pytest.approx(0, abs=1e-5)
    assert float(present.std()) == pytest.approx(1, abs=1e-3)
    places = f[:, 3:6].argmax(1)
    assert all(len(places[x[:, 2] == k].unique()) == 1 for k in range(3))
    assert len(places.unique()) == 3
    # every row has one value of the category of many, the rare ones sharing the last place
    assert torch.equal(f[:, 6:].sum(1), torch.ones(500))
    assert float(f[:, -1].mean()) > float(f[:, 6:-1].mean())
    assert features.description == "2 standardised numbers, 2 one-hot categories, 1 flags of missing values"


def test_pixel_features_keep_distances_to_the_mean():
    space = Image(6, 7, 3, 16)
    x = torch.randint(0, 16, (300, 3, 6, 7), generator=seeded()).to(torch.uint8)
    f = two_sample.Features(space, Part(x))(x)
    assert f.shape == (300, two_sample.COMPONENTS + 1)
    flat = x.flatten(1).float() / 15
    assert torch.allclose(f.square().sum(1), (flat - flat.mean(0)).square().sum(1), rtol=1e-3)


def test_contexts_join_the_features():
    x, c = correlated(50), torch.arange(50) % 2
    f = two_sample.Features(PLANE, Part(x, c), Label(("u", "v")))(x, c)
    assert f.shape == (50, 4)
    assert torch.equal(f[:, 3], c.float())


# -- two-sample tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classifier", ["logistic", "mlp", "boosting"])
def test_c2st_between_chance_and_bayes(classifier):
    a, b = (torch.randn(1000, 3, generator=seeded(s)) for s in (1, 2))
    same = two_sample.c2st(a, b, classifier=classifier)
    assert abs(same.accuracy - 0.5) < 4 * same.se
    assert same.p_value > 1e-3
    b[:, 0] += 2  # the best classifier is right with probability Phi(1)
    shifted = two_sample.c2st(a, b, classifier=classifier)
    assert 0.79 < shifted.accuracy < 0.8413 + 3 * shifted.se
    assert shifted.p_value < 1e-10


def test_c2st_cannot_tell_draws_that_equal_the_truth_of_their_context():
    """Each row and its double: one in training tells against the other, so both are left out together."""
    a = torch.randn(200, 3, generator=seeded(3))
    assert two_sample.c2st(a, a).accuracy < 0.3
    same = two_sample.c2st(a, a, paired=True)
    assert same.accuracy == 0.5
    shifted = a + torch.tensor([2.0, 0, 0])
    assert 0.75 < two_sample.c2st(a, shifted, paired=True).accuracy < 0.92  # Phi(1) = 0.84
    assert two_sample.c2st(a, shifted[:60], paired=True).n == 60


def test_c2st_on_few_rows_and_mistakes():
    a = torch.randn(30, 2, generator=seeded())
    assert two_sample.c2st(a, a + 3).accuracy > 0.9
    assert two_sample.c2st(a, a + 3).n == 30
    assert 0 < two_sample.share_error(1.0, 20) < 0.1
    with pytest.raises(UsageError, match="at least 10"):
        two_sample.c2st(a[:5], a)
    with pytest.raises(UsageError, match="no classifier"):
        two_sample.c2st(a, a, classifier="oracle")  # type: ignore[arg-type]


def test_mmd_meets_its_double_loop():
    a, b = torch.randn(20, 2, generator=seeded(1)), torch.randn(20, 2, generator=seeded(2)) + 0.5
    found = two_sample.mmd(a, b)

    def k(x: Tensor, y: Tensor) -> float:
        return math.exp(-float((x - y).square().sum()) / (2 * found.bandwidth**2))

    n = 20
    within = sum(k(s[i], s[j]) for s in (a, b) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    across = 2 * sum(k(x, y) for x in a for y in b) / n**2
    assert found.mmd2 == pytest.approx(within - across, abs=1e-6)
    pooled = torch.cat([a, b])
    assert found.bandwidth == pytest.approx(float(torch.pdist(pooled).median()), rel=1e-5)


def test_the_frechet_distance_is_that_of_two_gaussians():
    """By scipy's square root of a matrix, which need not be symmetric."""
    g = seeded(0)
    a, b = torch.randn(300, 4, generator=g), 2 + torch.randn(200, 4, generator=g) @ torch.randn(4, 4, generator=g)
    found = two_sample.frechet(a, b)
    c, d = np.cov(a.double().numpy().T), np.cov(b.double().numpy().T)
    want = np.square(a.double().numpy().mean(0) - b.double().numpy().mean(0)).sum()
    want += np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)
    assert found.distance == pytest.approx(want, rel=1e-5)
    assert two_sample.frechet(b, a).distance == pytest.approx(want, rel=1e-5)
    assert (found.n_real, found.n_fake) == (300, 200)
    assert two_sample.frechet(a, a).distance == pytest.approx(0, abs=1e-6)
    with pytest.raises(UsageError, match="at least 40"):
        two_sample.frechet(a[:30], b)


def test_the_error_of_a_frechet_distance_is_how_much_it_varies():
    clouds = [(torch.randn(2, 200, 3, generator=seeded(s))) for s in range(60)]
    found = [two_sample.frechet(a, 1.5 + b[:150]) for a, b in clouds]
    spread = torch.tensor([f.distance for f in found]).std().item()
    assert np.mean([f.se for f in found]) == pytest.approx(spread, rel=0.25)


def test_mmd_p_values_are_uniform_under_the_null_and_small_off_it():
    null = [
        two_sample.mmd(*torch.randn(2, 60, 2, generator=seeded(s)), permutations=99, generator=seeded(s)).p_value
        for s in range(100)
    ]
    assert 0.4 < np.mean(null) < 0.6
    assert 0.01 <= np.mean(np.array(null) <= 0.1) < 0.2
    x, y = torch.randn(2, 300, 2, generator=seeded())
    assert two_sample.mmd(x, y * 1.5).p_value < 0.01
    assert abs(two_sample.mmd(x, y).mmd2) < 4 * two_sample.mmd(x, y).null_se


def clustered(seed: int, k: int = 40) -> tuple[Tensor, Tensor]:
    """Rows [5 k, 3] of k clusters far apart, and which each is of, in a random order."""
    g = seeded(seed)
    rows = (torch.randn(k, 1, 3, generator=g) + 0.2 * torch.randn(k, 5, 3, generator=g)).flatten(0, 1)
    order = torch.randperm(5 * k, generator=g)
    return rows[order], torch.arange(k).repeat_interleave(5)[order]


@pytest.mark.parametrize(
    ("figure", "of"),
    [
        ("distance", lambda a, b, groups: two_sample.frechet(a, b + 1.5, groups=groups)),
        ("auroc", lambda a, b, groups: outlier.auroc(a[:, 0], b[:, 0] + 1, groups)),
    ],
)
def test_errors_of_rows_that_depend_on_each_other_are_how_much_figures_vary(figure, of):
    found, alone = [], []
    for s in range(60):
        (a, g), (b, h) = clustered(s), clustered(1000 + s)
        found.append(of(a, b, (g, h)))
        alone.append(of(a, b, (None, None)).se)
    spread = np.std([getattr(f, figure) for f in found])
    assert np.mean([f.se for f in found]) == pytest.approx(spread, rel=0.25)
    assert np.mean(alone) < 0.65 * spread


def test_the_error_of_a_mean_of_groups_is_that_of_their_means():
    x, g = clustered(0)
    means = torch.stack([x[g == i, 0].mean() for i in range(40)]).double()
    assert ranking.error_of_mean(x[:, 0], g) == pytest.approx(float(means.std()) / math.sqrt(40), rel=1e-5)
    with pytest.raises(UsageError, match="depend on each other"):
        ranking.error_of_mean(x[:, 0], torch.zeros(200))
    real, fake = (x, g), clustered(1)
    ours, theirs = (two_sample.prdc(real[0], fake[0] + 1, groups=of) for of in ((g, fake[1]), (None, None)))
    assert all(a > 1.5 * b for a, b in zip(ours.se, theirs.se, strict=True))


@pytest.mark.parametrize("paired", [False, True])
def test_p_values_of_rows_that_depend_on_each_other_are_uniform_under_the_null(paired):
    """Clusters of each side of their own; or a context of each cluster, of which each side draws another centre."""
    told, free = [], []
    for s in range(60):
        (a, g), (b, h) = clustered(s, 20), clustered(1000 + s, 20)
        if paired:
            ours, theirs = 0.6 * torch.randn(2, 20, 3, generator=seeded(2000 + s))
            a, b, h = a + ours[g], a + theirs[g] + 0.2 * torch.randn(a.shape, generator=seeded(3000 + s)), g
            a = a + 0.2 * torch.randn(a.shape, generator=seeded(4000 + s))
        for groups, into in (((g, h), told), ((None, None), free)):
            mmd = two_sample.mmd(a, b, paired=paired, groups=groups, permutations=49, generator=seeded(s))
            c2st = two_sample.c2st(a, b, paired=paired, groups=groups, classifier="logistic")
            into.append((mmd.p_value, c2st.p_value))
    small, wrong = (np.mean(np.array(p) <= 0.1, axis=0) for p in (told, free))
    assert (small < 0.2).all()
    assert wrong[0] > 0.25
    assert (wrong > 2 * small).all()
    assert 0.4 < np.mean(told, axis=0)[0] < 0.6


def test_a_distance_is_one_of_all_rows_not_of_a_batch():
    """Samples that are right in their first batch only: what looks at one batch finds nothing."""
    real, fake, batch = torch.randn(800, 2, generator=seeded(0)), torch.randn(800, 2, generator=seeded(1)), 100
    fake[batch:] += 3
    table = Table((Real("x"), Real("y")))
    part = Part(fake.double())
    see = two_sample.Features(table, Part(real.double()))
    for whole in (see.of(part), torch.cat([see(rows.read().x) for rows in (part[:batch], part[batch:])])):
        seen = see(real.double())
        assert two_sample.mmd(seen, whole).p_value < 0.02
        assert two_sample.c2st(seen, whole, classifier="logistic").accuracy > 0.8  # Bayes: (1 + 7 / 8) / 2
        assert two_sample.prdc(seen, whole).coverage < 0.6
        first = whole[:batch]
        assert two_sample.mmd(seen, first).p_value > 0.02
        assert two_sample.c2st(seen, first, classifier="logistic").accuracy < 0.65


def test_prdc_meets_its_definition():
    real, fake = torch.randn(90, 3, generator=seeded(1)), 0.7 * torch.randn(70, 3, generator=seeded(2)) + 0.3
    found = two_sample.prdc(real, fake, k=4)
    d = torch.cdist(real, fake, compute_mode="donot_use_mm_for_euclid_dist")

    def radius(x: Tensor) -> Tensor:
        own = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
        return own.sort(1).values[:, 3]

    inside = d <= radius(real)[:, None]
    assert found.precision == pytest.approx(float(inside.any(0).float().mean()))
    assert found.recall == pytest.approx(float((d <= radius(fake)).any(1).float().mean()))
    assert found.density == pytest.approx(float(inside.float().sum(0).mean() / 4))
    assert found.coverage == pytest.approx(float(inside.any(1).float().mean()))


def test_prdc_extremes():
    x = torch.randn(50, 2, generator=seeded())
    same, apart = two_sample.prdc(x, x), two_sample.prdc(x, x + 100)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    # equal rows of discrete data lie in balls of radius 0
    ones = torch.ones(20, 2)
    assert two_sample.prdc(ones, ones).precision == 1
    with pytest.raises(UsageError, match="more than 5"):
        two_sample.prdc(x[:5], x)


def test_memorisation_tells_copies_from_fresh_rows():
    train, fresh, other = (torch.randn(n, 4, generator=seeded(s)) for s, n in enumerate((2000, 300, 300)))
    honest = two_sample.memorisation(train, fresh, other)
    assert abs(honest.auroc - 0.5) < 4 * honest.se
    assert honest.copies == 0
    copied = two_sample.memorisation(train, fresh, train[:300])
    assert copied.auroc == 1
    assert copied.copies == 1
    assert copied.ratio == 0
    near = two_sample.memorisation(train, fresh, train[:300] + 0.05)
    assert near.auroc > 0.9
    assert near.ratio < 0.5
    far = two_sample.memorisation(train, fresh, other + 3)
    assert far.auroc < 0.2


def test_nearest_is_exact_far_from_the_origin():
    x, y = (torch.randn(n, 5, generator=seeded(n)) + 300 for n in (200, 500))
    truth = torch.cdist(x.double(), y.double()).amin(1).float()
    assert torch.allclose(two_sample.nearest(x, y), truth, rtol=1e-3)
    assert torch.equal(two_sample.nearest(y[:10], y), torch.zeros(10))


# -- outliers ------------------------------------------------------------------------------------------


def test_auroc_meets_scikit_learn_with_ties():
    from sklearn.metrics import roc_auc_score

    g = seeded()
    a, b = torch.randint(0, 8, (300,), generator=g).double(), torch.randint(2, 10, (200,), generator=g).double()
    found = outlier.auroc(a, b)
    y = np.r_[np.zeros(300), np.ones(200)]
    assert found.auroc == pytest.approx(roc_auc_score(y, torch.cat([a, b]).numpy()))


def test_delong_error_is_calibrated():
    runs = [
        outlier.auroc(torch.randn(80, generator=seeded(s)), torch.randn(50, generator=seeded(10_000 + s)) + 1)
        for s in range(500)
    ]
    truth = 0.5 * math.erfc(-0.5)  # Phi(1 / sqrt 2)
    areas = torch.tensor([r.auroc for r in runs])
    assert float(areas.mean()) == pytest.approx(truth, abs=0.01)
    assert float(areas.std()) == pytest.approx(np.mean([r.se for r in runs]), rel=0.1)
    with pytest.raises(UsageError, match="2 of each"):
        outlier.auroc(areas[:1], areas)


def test_corrupted_rows_keep_their_marginals(plane):
    rows, words = outlier.corrupt(PLANE, plane.test, seeded())
    assert torch.equal(rows.x.sort(0).values, plane.test.x.sort(0).values)
    assert abs(float(torch.corrcoef(rows.x.T)[0, 1])) < 0.12
    assert "column" in words
    space = Image(9, 10, 3)
    x = torch.randint(0, 256, (20, 3, 9, 10), generator=seeded()).to(torch.uint8)
    moved = outlier.corrupt(space, Part(x), seeded())[0].x
    assert torch.equal(moved.flatten(2).sort(2).values, x.flatten(2).sort(2).values)
    assert not torch.equal(moved, x)
    # what no block covers stays
    assert torch.equal(moved[..., 8:, :], x[..., 8:, :])
    # blocks move whole: each 2 x 2 block of the result is one of the image
    image, block = x[0, 0, :8, :8], moved[0, 0, 2:4, 2:4]
    found = [torch.equal(block, image[i : i + 2, j : j + 2]) for i in range(0, 8, 2) for j in range(0, 8, 2)]
    assert any(found)


def test_detection_needs_correlation(plane):
    rows, words = outlier.corrupt(PLANE, plane.test, seeded())
    knows = bell(plane)
    ignores = Marginals(Marginals.Config(), PLANE)
    ignores.prepare(plane.train.x, None, None, seeded())
    good = outlier.detect(knows, mean_log_prob(knows, plane.test), rows, words)
    chance = outlier.detect(ignores, mean_log_prob(ignores, plane.test), rows, words)
    assert good.auroc > 0.62
    assert good.bits_out > good.bits_in
    assert good.kind == "Exact"
    assert abs(chance.auroc - 0.5) < 4 * chance.se
    silent = bell(plane, kind="Unavailable")
    reason = outlier.detect(silent, mean_log_prob(silent, plane.test), rows, words)
    assert reason == Unavailable("it has no density by design")


# -- latents -------------------------------------------------------------------------------------------


def test_linear_probe(plane):
    raw = two_sample.Features(PLANE, plane.train)
    found = latent.linear_probe(bell(plane), plane.train, plane.test, raw)
    assert isinstance(found, latent.Probe)
    assert found.accuracy > 0.97  # the class is a linear function of the latent
    assert abs(found.raw_accuracy - found.accuracy) < 0.02
    assert 0.4 < found.majority < 0.6
    assert (found.dims, found.classes, found.n_train, found.n_test) == (2, 2, 1500, 1000)
    unlabelled = Part(plane.train.x)
    assert isinstance(latent.linear_probe(bell(plane), unlabelled, plane.test, raw), Unavailable)
    assert isinstance(
        latent.linear_probe(Marginals(Marginals.Config(), PLANE), plane.train, plane.test, raw), Unavailable
    )
    assert isinstance(latent.usage(bell(plane), plane.test), Unavailable)


# -- baselines -----------------------------------------------------------------------------------------


def test_gzip_counts_its_bytes():
    space = Table((Category("c", ("red", "green"), nullable=True), Integer("i", 0, 99), Real("g", step=0.1)))
    x = torch.tensor([[0, 7, 0.1 * 3], [1, 12, 2.0], [math.nan, 99, -0.5]], dtype=torch.float64)
    text = baselines.csv_text(space, x)
    assert text == "red,7,0.3\ngreen,12,2\n,99,-0.5\n"
    s = baselines.gzip_code(space, x)
    assert s.kind is LowerBound
    assert s.nats == pytest.approx(-8 * math.log(2) * len(gzip.compress(text.encode(), 9, mtime=0)) / 3)
    assert s.text.startswith("≥")
    assert not baselines.gzip_code(PLANE, x[:, :2]).available


@pytest.mark.parametrize(("channels", "levels"), [(1, 256), (3, 256), (1, 2), (2, 16), (3, 2)])
def test_png_is_lossless(channels, levels):
    from PIL import Image as Pillow

    space = Image(9, 11, channels, levels)
    x = torch.randint(0, levels, (4, channels, 9, 11), generator=seeded()).to(torch.uint8)
    content = baselines.png_bytes(space, x[0])
    back = np.array(Pillow.open(io.BytesIO(content))).astype(np.uint8)
    rgb = channels == 3 and levels > 2
    truth = x[0].permute(1, 2, 0).numpy() if rgb else np.concatenate(list(x[0].numpy()), 1)
    assert np.array_equal(back, truth)
    s = baselines.png_code(space, x)
    assert s.n == 4
    # random pixels cannot be coded in less than their entropy
    assert s.nats < -space.dims * math.log(levels)
    assert set(baselines.compression(space, Part(x))) == {"gzip", "png"}


# -- comparison ----------------------------------------------------------------------------------------

ALL = ["test-bell", "test-marginals", "test-loose", "test-silent", "test-broken", "test-guess"]


@pytest.fixture(scope="module")
def comparison(plane, tmp_path_factory):
    told: list[dict] = []
    out = tmp_path_factory.mktemp("compare") / "plane"
    other = Data("far", "memory", PLANE, *(Part(correlated(n) + 6) for n in (10, 10, 50)))
    result = compare(
        plane,
        ALL,
        seconds=0.5,
        out=out,
        samples=300,
        outliers=other,
        needs=["likelihood", "latents"],
        progress=told.append,
    )
    return result, out, told


def test_every_family_has_a_row(comparison):
    result, _, _ = comparison
    rows = {r["family"]: r for r in result.rows}
    assert set(rows) == {"independent", "gaussian", *ALL}
    assert rows["test-bell"]["status"] == "ok"
    assert (rows["test-broken"]["status"], rows["test-broken"]["reason"]) == ("failed", "ZeroDivisionError: by design")
    assert (rows["test-guess"]["status"], rows["test-guess"]["reason"]) == ("refused", "it predicts labels only.")
    nats = [r["likelihood"]["nats"] for r in result.rows if r["status"] == "ok" and r["likelihood"]["nats"] is not None]
    assert nats == sorted(nats, reverse=True)
    assert {r["likelihood"]["measure"] for r in result.rows if r["status"] == "ok"} == {"lebesgue^2"}


def test_the_figures_of_a_known_family(comparison):
    result, _, _ = comparison
    row = next(r for r in result.rows if r["family"] == "test-bell")
    entropy = math.log(2 * math.pi * math.e) + 0.5 * math.log(1 - 0.8**2)
    assert abs(row["likelihood"]["nats"] + entropy) < 4 * row["likelihood"]["se"]
    quality = row["quality"]
    assert abs(quality["c2st"]["accuracy"] - 0.5) < 5 * quality["c2st"]["se"]
    assert quality["mmd"]["p_value"] > 0.005
    assert quality["prdc"]["coverage"] > 0.85
    assert abs(quality["memorisation"]["auroc"] - 0.5) < 5 * quality["memorisation"]["se"]
    assert row["latents"]["probe"]["accuracy"] > 0.95
    shuffled, far = row["outliers"]
    assert shuffled["auroc"] > 0.62
    assert far["outliers"] == "rows of far"
    assert far["auroc"] > 0.95
    assert row["sampling"]["n"] == 300
    assert row["sampling"]["latency"] > 0
    assert row["fit"]["memory"]["bytes"] > 50e6
    told = {"latents": True, "score": False, "conditional": False, "missing_values": True}
    assert row["abilities"].items() >= told.items()


def test_a_family_without_density_says_why(comparison):
    result, _, _ = comparison
    row = next(r for r in result.rows if r["family"] == "test-silent")
    assert row["likelihood"]["text"] == "— (it has no density by design)"
    assert row["outliers"][0]["unavailable"] == "it has no density by design"
    assert row["quality"]["c2st"]["accuracy"] < 0.6
    assert "test-silent" not in result.verdicts


def test_verdicts_and_frontier_of_a_comparison(comparison):
    result, _, _ = comparison
    assert result.verdicts["test-bell"]["test-marginals"]["verdict"] == "better"
    assert result.verdicts["test-marginals"]["test-loose"]["verdict"] == "undecided"
    points = {p["family"]: p for p in result.record["frontier"]}
    assert "test-silent" in points
    assert points["test-silent"]["best_for"] == []
    best = max((p for p in points.values() if p["nats"] is not None), key=lambda p: p["nats"])
    assert "samples_per_second" in best["best_for"]


def test_the_folder_holds_all_that_a_report_needs(comparison):
    result, out, _ = comparison
    text = (out / "comparison.json").read_text()
    assert json.loads(text) == result.record | {"digest": json.loads(text)["digest"]}
    assert "NaN" not in text
    again = read_comparison(out)
    assert again.table() == result.table()
    assert {len(cells) for cells in again.table()} == {15}
    assert repr(again).startswith("family ")
    assert repr(again).endswith(again.recommendation)
    means = json.loads((out / "runs/test-bell/evaluation.json").read_text())
    assert len(Mean.from_json(means["likelihood"]).rows.nats) == means["likelihood"]["n"] == 1000
    drawn = np.load(out / "runs/test-bell/samples/samples.npz", allow_pickle=False)
    assert drawn["x"].shape == (300, 2)
    shown = np.load(out / "data_sample.npz", allow_pickle=False)
    assert shown["x"].shape == (1000, 2)
    assert shown["label"].shape == (1000,)
    assert set(result.record["baselines"]) == {"gzip"}
    assert result.record["data"]["columns"][0]["column"] == "a"
    assert 0.4 < result.record["reference"]["c2st"]["accuracy"] < 0.6


def test_progress_names_family_and_stage(comparison):
    _, _, told = comparison
    stages = [e["stage"] for e in told if e["family"] == "test-bell"]
    order = list(dict.fromkeys(stages))
    assert order == ["fitting", "likelihood", "sampling", "sample quality", "latents", "outliers", "done"]
    assert any(e["title"] == "[3/8] test-bell: fitting" and "step" in e for e in told)


def test_the_recommendation_of_a_comparison(comparison):
    result, _, _ = comparison
    advice = result.record["recommendation"]
    assert "test-marginals" in advice["excluded"]
    assert "test-silent" in advice["excluded"]
    assert "test-bell" in (advice["family"] or advice["tied"])
    assert "0.5 s to fit" in result.recommendation


def test_comparisons_agree_between_runs(plane):
    """Timings differ, figures do not."""

    def figures() -> list[object]:
        r = compare(plane, ["test-loose"], seconds=0.2, samples=100, max_test=100, seed=3)
        row = next(row for row in r.rows if row["family"] == "test-loose")
        assert r.path is None
        return [row["likelihood"]["nats"], row["quality"], [d["auroc"] for d in row["outliers"]]]

    assert figures() == figures()


def test_labels_as_the_space_and_classes_as_outliers(plane):
    label = Label(("low", "high"))
    parts = [Part(p.label, p.x, p.label) for p in (plane.train, plane.valid, plane.test)]
    data = Data("labels", "memory", label, *parts, context=PLANE, labels=label.values)
    result = compare(data, ["test-guess", "test-bell"], seconds=0.2, samples=50, max_test=300)
    row = next(r for r in result.rows if r["family"] == "test-guess")
    assert row["accuracy"]["accuracy"] > 0.75
    assert row["accuracy"]["majority"] < 0.6
    assert "unavailable" in row["quality"]
    assert result.record["baselines"] == {}
    by_class = compare(plane, ["test-bell"], seconds=0.2, samples=50, anomaly="high")
    found = next(r for r in by_class.rows if r["family"] == "test-bell")["outliers"]
    assert found[1]["outliers"] == "test rows of class 'high'"
    assert found[1]["n_in"] + found[1]["n_out"] == 1000


def test_conditional_models_are_judged_jointly_with_their_context(plane):
    label = Label(("low", "high"))
    parts = [Part(p.x, p.label, p.label) for p in (plane.train, plane.valid, plane.test)]
    data = Data("given", "memory", PLANE, *parts, context=label, labels=label.values)
    result = compare(data, ["test-bell"], seconds=0.3, samples=200)
    found = next(r for r in result.rows if r["family"] == "gaussian")
    assert found["quality"]["features"] == "2 standardised numbers; given one-hot labels"
    assert found["quality"]["n"] == 200
    assert found["likelihood"]["n"] == 1000
    assert "refused" in result.table()[-2][1]


def test_a_failing_sampler_spares_the_rest(plane):
    result = compare(plane, ["test-bell"], seconds=0.2, samples=50, options={"test-bell": {"fails": "sample"}})
    row = next(r for r in result.rows if r["family"] == "test-bell")
    assert row["sampling"] == {"unavailable": "ZeroDivisionError: by design"}
    assert row["quality"] == {"unavailable": "There are no samples."}
    assert row["likelihood"]["kind"] == "Exact"
    assert len(result.table()) == 5


def test_mistakes_are_named_before_anything_runs(plane, tmp_path):
    for wrong, match in (
        ({"needs": ["world-peace"]}, "Known needs"),
        ({"seconds": 0}, "seconds is 0"),
        ({"families": ["test-bel"]}, "no family"),
        ({"families": ["test-bell"], "options": {"made": {}}}, "not compared"),
        ({"anomaly": "middle"}, "no class"),
        ({"samples": 1}, "samples is 1"),
        ({"outliers": Data("x", "m", Table((Real("z"),)), *[Part(torch.zeros(3, 1).double())] * 3)}, "same space"),
    ):
        with pytest.raises(UsageError, match=match):
            compare(plane, **wrong)
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(RunExists):
        compare(plane, ["test-bell"], out=tmp_path)
    empty = Data("e", "m", PLANE, plane.train, plane.valid, plane.test[:0])
    with pytest.raises(EmptyData, match="test part"):
        compare(empty)


# -- recommendation ------------------------------------------------------------------------------------


def row(name: str, kind: str = "Exact", nats: float = -1.0, **more: object) -> dict:
    lik = {"kind": kind, "nats": nats, "text": f"{kind} {nats}", "rows_per_second": 100.0, "note": "no density"}
    base = {
        "family": name,
        "status": "ok",
        "likelihood": lik,
        "sampling": {"rows_per_second": more.pop("speed", 100.0), "latency": 0.01},
        "quality": {"c2st": {"accuracy": more.pop("c2st", 0.6), "se": 0.01}},
        "latents": {"probe": {"unavailable": "no labels"}},
        "outliers": [],
        "fit": {"seconds": 1.0, "parameters": more.pop("size", 1000)},
        "abilities": {"latents": more.pop("latents", True), "conditional": True, "missing_values": False},
    }
    return base | more


def pairs(rows: list[dict]) -> dict:
    return {
        a["family"]: {
            b["family"]: {"sign": int(d > 0.2) - int(d < -0.2)}
            for b in rows
            if b is not a and (d := a["likelihood"]["nats"] - b["likelihood"]["nats"]) is not None
        }
        for a in rows
    }


def advise(rows: list[dict], *needs: str) -> recommend.Recommendation:
    return recommend.recommend(rows, pairs(rows), needs)


def test_needs_exclude_and_rank():
    rows = [row("a", nats=-1, speed=10), row("b", nats=-2, speed=500), row("v", "LowerBound", -0.5, speed=5)]
    assert advise(rows, "likelihood").family == "v"
    exact = advise(rows, "exact-likelihood")
    assert exact.family == "a"
    assert "no exact number" in exact.excluded["v"]
    assert advise(rows, "fast-sampling").family == "b"
    both = advise(rows, "exact-likelihood", "fast-sampling")
    assert both.family is None
    assert both.tied == ("a", "b")
    assert both.sentences[0].startswith("Undecided")
    assert advise(rows, "missing-values").sentences[0] == "No family serves missing-values."


def test_samples_cut_short_are_not_compared():
    cut = {"rows_per_second": 1e6, "latency": 0.01, "cut": 70}
    rows = [row("a", speed=10), row("b", c2st=0.5, sampling=cut)]
    fast = advise(rows, "fast-sampling")
    assert fast.family == "a"
    assert "only the first 70 steps" in fast.excluded["b"]
    assert advise(rows, "sample-quality").tied == ("a", "b")
    assert advise([row("a", sampling=cut), rows[1]], "sample-quality").family == "b"


def test_figures_within_their_errors_decide_nothing():
    rows = [row("a", nats=-1.0, c2st=0.60), row("b", nats=-1.1, c2st=0.61), row("c", nats=-3, c2st=0.9)]
    assert advise(rows, "likelihood").tied == ("a", "b")
    assert advise(rows, "sample-quality").tied == ("a", "b")
    assert advise(rows, "small").tied == ("a", "b", "c")


def test_an_estimate_promises_nothing_but_is_mentioned():
    rows = [row("a", nats=-2), row("ode", "Estimate", -1)]
    found = advise(rows, "likelihood")
    assert found.family == "a"
    assert any("ode may be better" in s for s in found.sentences)


def test_the_floor_is_recommended_only_alone():
    rows = [row("independent", nats=-5, speed=1e6), row("a", nats=-1, speed=10)]
    assert advise(rows, "fast-sampling").family == "a"
    assert advise(rows[:1], "fast-sampling").family == "independent"


def test_no_needs_no_rows_unknown_needs():
    assert "likelihood: a" in advise([row("a"), row("b", nats=-9)]).text
    assert advise([], "latents").sentences == ("Nothing could be fitted, so there is nothing to recommend.",)
    with pytest.raises(UsageError, match="exact-likelihood, likelihood"):
        recommend.check(["speed"])


def test_amounts():
    assert [recommend.amount(v) for v in (0.314, 12, 1234, 3.4e6, 2e9)] == ["0.314", "12", "1.23k", "3.4M", "2G"]


def test_numbers_as_json():
    """Every number that leaves for JSON is finite, a string, or null."""
    assert [likelihood.encode(v) for v in (math.nan, math.inf, -math.inf, 1.5)] == [None, "inf", "-inf", 1.5]
    assert math.isnan(likelihood.decode(None))


# -- rows that depend on each other ------------------------------------------------------------------------


def levels_in_episodes(episodes: int, steps: int, seed: int) -> Part:
    """Chunks of episodes that each stay near a level of their own."""
    g = seeded(seed)
    level = torch.randn(episodes, generator=g, dtype=torch.float64).repeat_interleave(steps)
    x = level[:, None] + 0.01 * torch.randn(episodes * steps, 1, generator=g, dtype=torch.float64)
    return Part(x, rows=torch.arange(episodes).repeat_interleave(steps))


def test_the_error_of_chunks_is_that_of_the_choice_of_their_sequences():
    """How much means vary between test sets of 12 episodes, each of 20 chunks that say the same."""
    gaussian = family("gaussian")(family("gaussian").Config(), Table((Real("a"),)))
    parts = [levels_in_episodes(12, 20, s) for s in range(150)]
    found = [mean_log_prob(gaussian, part) for part in parts]
    spread = float(np.std([m.nats for m in found]))
    assert np.sqrt(np.mean([m.se**2 for m in found])) == pytest.approx(spread, rel=0.2)
    alone = mean_log_prob(gaussian, dataclasses.replace(parts[0], rows=torch.arange(240)))
    assert alone.nats == found[0].nats
    assert alone.se < found[0].se / 3
    order = torch.randperm(240, generator=seeded(9))
    assert mean_log_prob(gaussian, parts[0][order]).se == pytest.approx(found[0].se)
    assert mean_log_prob(gaussian, levels_in_episodes(1, 20, 0)).se is None


def test_a_difference_on_chunks_counts_their_sequences():
    a, b = torch.randn(2, 8, generator=seeded(1), dtype=torch.float64)
    ours, theirs = (Exact(v.repeat_interleave(30), Measure.lebesgue(1)) for v in (a + 0.9, b))
    group = torch.arange(8).repeat_interleave(30)
    alone = compare_rows(Exact(a + 0.9, Measure.lebesgue(1)), Exact(b, Measure.lebesgue(1)))
    found = compare_rows(ours, theirs, group=group)
    assert (found.verdict, found.sign) == (alone.verdict, alone.sign)
    assert found.se == pytest.approx(alone.se)
    assert compare_rows(ours, theirs).verdict == "better"  # as if 240 rows had been seen
    assert "2 groups of rows are too few" in compare_rows(ours, theirs, group=group // 4).why
