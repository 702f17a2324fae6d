"""Few rows, impossible rows, sorted rows, columns that others determine: numbers that stay right where data are odd."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from pofx.commands.compare import _comparison_table
from pofx.core import likelihood as lk
from pofx.core import registry
from pofx.core.abilities import Encodes
from pofx.core.comparison import compare as difference
from pofx.core.comparison import student
from pofx.core.likelihood import Estimate, Exact, LowerBound, UpperBound
from pofx.core.measure import Measure
from pofx.data.load import load
from pofx.data.parts import Data, Part
from pofx.data.split import scarce
from pofx.evaluate import outlier, recommend, two_sample
from pofx.evaluate.compare import compare
from pofx.evaluate.dependent import share
from pofx.evaluate.latent import linear_probe
from pofx.evaluate.likelihood import Mean, summarise, verdicts
from pofx.evaluate.study import Settings, Study
from pofx.report.build import build
from pofx.spaces import Category, Image, Real, Table
from pofx.testing.wrong import Moments, Plain
from pofx.train.fit import fit
from pofx.train.run import read_run

ONE = Measure.counting(1)
WORDS = Table((Category("c", ("x", "y")),))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact(*nats: float) -> Exact:
    return Exact(torch.tensor(nats), ONE)


def of(kind: type, nats: list[float]) -> lk.Available:
    return lk.make(kind, torch.tensor(nats), ONE, torch.zeros(len(nats)), 0, "a caveat")


def mean_of(*nats: float, kind: type = Exact) -> Mean:
    lik = lk.make(kind, torch.tensor(nats), WORDS.measure, torch.full((len(nats),), 0.1), 0 if kind is Exact else 4)
    return summarise(lik, WORDS, torch.ones(len(nats)))


# -- impossible rows -----------------------------------------------------------------------------------


def test_an_impossible_row_decides_whatever_the_others_say():
    for rows in (1, 2, 50):
        good, bad = exact(*[-9.0] * rows), exact(*[-1.0] * (rows - 1), -math.inf)
        found = difference(good, bad)
        assert (found.verdict, found.nats, found.se, found.sign) == ("better", math.inf, None, 1)
        assert f"1 of {rows} rows impossible" in found.why
        assert difference(bad, good).verdict == "worse"
    both = difference(exact(-math.inf, -1.0), exact(-2.0, -math.inf))
    assert both.verdict == "undecided"
    assert both.se is None
    assert "both hold rows impossible, 1 and 1 of 2" in both.why


def test_a_bound_of_minus_infinity_says_nothing_of_the_truth():
    loose = of(LowerBound, [-1.0, -math.inf, -1.0])
    assert difference(exact(-2.0, -2.0, -2.0), loose).verdict == "undecided"
    # an upper bound of minus infinity does
    assert difference(exact(-2.0, -2.0, -2.0), of(UpperBound, [0.0, -math.inf, 0.0])).verdict == "better"


def test_a_row_of_weight_zero_does_not_count():
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    lost = Exact(torch.tensor([-1.0, -2.0, -3.0, -math.inf]), WORDS.measure)
    s = summarise(lost, WORDS, torch.ones(4), weight)
    assert s.nats == pytest.approx(-2.0)
    assert s.impossible == 0
    assert math.isfinite(s.se)
    assert difference(exact(-1, -2, -3, -math.inf), exact(-2, -3, -4, 0), weight=weight).verdict == "better"


def test_an_impossible_row_is_counted_in_text_and_json():
    s = mean_of(-1.0, -math.inf, -2.0)
    assert (s.nats, s.se, s.rate_se, s.impossible) == (-math.inf, None, None, 1)
    assert s.text == "= −∞ nats (1 of 3 rows impossible)"
    assert s.bits_text == "= ∞ bits/dim"
    plain = s.to_json()
    back = Mean.from_json(json.loads(json.dumps(plain, allow_nan=False)))
    assert (back.nats, back.se, back.impossible, back.text) == (s.nats, None, 1, s.text)
    assert mean_of(-math.inf, -1.0, kind=LowerBound).text == "≥ −∞ nats (1 of 2 rows without a bound)"


def test_what_holds_rows_impossible_is_not_recommended():
    means = {"a": mean_of(-0.1, -0.1, -math.inf), "b": mean_of(-3.0, -3.0, -3.1)}
    rows = [{"family": k, "status": "ok", "likelihood": s.to_json(rows=False)} for k, s in means.items()]
    found = recommend.recommend(rows, verdicts(means), ("likelihood",))
    assert found.family == "b"
    assert "1 of 3 rows impossible" in found.excluded["a"]
    alone = recommend.recommend(rows[:1], {}, ("likelihood",))
    assert alone.family is None
    assert "No family serves likelihood" in alone.text


class Bounded(Moments):
    """A Gaussian that holds impossible what is beyond one standard deviation in its first column."""

    name = "test-bounded"

    def rows_log_prob(self, x, c, budget, noise):
        return Exact(self.log_density(x).masked_fill(x[:, 0].abs() > self.root[0, 0], -math.inf), self.space.measure)


@pytest.mark.parametrize("alone", [False, True])
def test_impossible_rows_reach_table_report_and_json(alone, tmp_path, monkeypatch):
    monkeypatch.setitem(registry._REGISTERED, Bounded.name, Bounded)
    if alone:  # nothing else has a number, so there is no finite one to scale a plot by
        monkeypatch.setattr("pofx.evaluate.plan.MODELS", ())
    data = pairs_of_gaussians(0.5, ())
    found = compare(data, [Bounded.name], seconds=0.1, samples=50, needs=["likelihood"], out=tmp_path)
    record = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    row = found.rows[-1]
    assert row["family"] == Bounded.name
    assert re.fullmatch(r"= −∞ nats \(\d+ of 400 rows impossible\)", row["likelihood"]["text"])
    assert row["likelihood"]["se"] is None
    assert record["frontier"][-1]["best_for"] == []
    assert record["recommendation"]["family"] == (None if alone else "gaussian")
    assert "rows impossible" in record["recommendation"]["text"]
    cells = next(row for row in _comparison_table(found)[1] if row[0] == Bounded.name)
    assert "−∞" in cells[1]
    assert "impossible" in cells[1]
    page = build(tmp_path).read_text()
    assert "−∞" in page
    assert "rows impossible" in page
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))
    assert build(tmp_path / "runs" / Bounded.name).exists()


def test_impossible_validation_rows_leave_the_latest_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._REGISTERED, Bounded.name, Bounded)
    run = fit(pairs_of_gaussians(0.5, ()), Bounded, epochs=3, out=tmp_path / "run")
    assert run.log[-1]["valid"] is None
    assert read_run(tmp_path / "run").model.log_prob(torch.zeros(1, 2).double()).nats.isfinite().all()


# -- few rows ------------------------------------------------------------------------------------------


def test_one_row_and_two_decide_nothing():
    one = difference(exact(-1.0), exact(-1e6))
    assert (one.verdict, one.se, one.sign) == ("undecided", None, 0)
    assert "one row is unknown" in one.why
    two = difference(exact(-1.0, -1.0), exact(-5.0, -5.1))
    assert two.verdict == "undecided"
    assert "2 rows are too few" in two.why
    s = mean_of(-3.0)
    assert s.se is None
    assert s.text == "= -3.00 ± unknown nats"
    assert s.to_json()["se"] is None


def test_a_gap_that_dwarfs_every_spread_decides_on_four_rows():
    steady = [-1100.0, -1180.0, -1300.0, -1512.0]
    wild = [-2900.0, -4100.0, -7700.0, -50700.0]
    found = difference(exact(*steady), exact(*wild))
    assert abs(found.nats) < 2 * found.se  # the spread of the loser hides its loss
    assert found.verdict == "better"
    assert "all 4 rows agree" in found.why
    assert difference(exact(*wild), exact(*steady)).verdict == "worse"
    # one row on the other side, and the error counts again
    assert difference(exact(*steady), exact(*wild[:3], -1000.0)).verdict == "undecided"
    # a small gap beside the means' own spread is none
    assert difference(exact(*steady), exact(-1101.0, -1182.0, -1350.0, -3000.0)).verdict == "undecided"


def test_few_rows_are_wrong_as_rarely_as_many():
    """Of two models that are equally good on average, 4.6% of verdicts fall for either, whatever the number of rows."""
    for n in (3, 4, 6, 30):
        d = torch.randn(1200, n, generator=seeded(n), dtype=torch.float64)
        level = torch.randn(1200, n, generator=seeded(n + 100), dtype=torch.float64)
        decided = sum(
            difference(Exact(a + b, ONE), Exact(a, ONE)).verdict != "undecided" for a, b in zip(level, d, strict=True)
        )
        assert decided / 1200 == pytest.approx(0.0455, abs=0.02)


@pytest.mark.parametrize(("freedom", "limit"), [(1, 13.968), (2, 4.5265), (10, 2.2837), (1e6, 2.0)])
def test_quantiles_of_student_are_those_of_tables(freedom, limit):
    # 1 and 2: closed forms, tan(pi (1 - p)) of the tail p = Phi(-2), and 2 a / sqrt(2 (1 - a^2)) with a = 1 - 2 p
    assert student(2.0, freedom) == pytest.approx(limit, rel=2e-4)


def test_a_constant_difference_has_no_error_under_weights():
    weight = torch.tensor([1.0, 5.0, 2.0, 9.0])
    a = torch.tensor([-3.0, -1.0, -8.0, -2.5])
    found = difference(Exact(a, ONE), Exact(a - 0.25, ONE), weight=weight)
    assert found.se == pytest.approx(0, abs=1e-12)
    assert found.nats == pytest.approx(0.25)
    assert found.verdict == "better"
    # weights are repetitions: of many equal ones the error is that of the repeated rows
    n, g = 3000, seeded(1)
    a, b, w = torch.randn(n, generator=g), torch.randn(n, generator=g), torch.randint(1, 4, (n,), generator=g)
    weighted = difference(Exact(a, ONE), Exact(b, ONE), weight=w.double())
    whole = [a.repeat_interleave(w), b.repeat_interleave(w)]
    repeated = difference(*(Exact(v, ONE) for v in whole))
    assert weighted.nats == pytest.approx(repeated.nats, rel=1e-6)
    # by simulation: the spread of the weighted mean over fresh rows
    draws = torch.randn(2000, n, generator=g, dtype=torch.float64) * math.sqrt(2)
    spread = (draws * w).sum(1).div(w.sum()).std().item()
    assert weighted.se == pytest.approx(spread, rel=0.1)


def test_few_rows_in_order_do_not_make_an_area_certain():
    few = outlier.auroc(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert few.auroc == 1
    assert few.se > 0.15  # of two rows each, a third of all orders has no pair out of order or all of them
    many = outlier.auroc(torch.arange(500.0), torch.arange(500.0) + 1000)
    assert 0 < many.se < 0.005
    tied = outlier.auroc(torch.zeros(3), torch.zeros(3))
    assert tied.auroc == 0.5
    assert tied.se > 0.1


def test_of_two_upper_bounds_the_smaller_promises_more():
    nats = {"high": [-1.0] * 9 + [-1.1], "low": [-5.0] * 9 + [-5.1], "exact": [-9.0] * 9 + [-9.2]}
    kinds = {"high": UpperBound, "low": UpperBound, "exact": Exact}
    means = {k: mean_of(*v, kind=kinds[k]) for k, v in nats.items()}
    found = verdicts(means)
    assert found["high"]["low"]["verdict"] == "undecided"
    rows = [{"family": k, "status": "ok", "likelihood": s.to_json(rows=False)} for k, s in means.items()]
    assert recommend.recommend(rows[:2], found, ("likelihood",)).family == "low"
    assert recommend.recommend(rows, found, ("likelihood",)).family == "exact"
    estimate = rows[0] | {"family": "guess", "likelihood": mean_of(-0.5, -0.6, kind=Estimate).to_json(rows=False)}
    assert recommend.recommend([rows[1], estimate], {}, ("likelihood",)).tied == ("low", "guess")


def test_scarce_rows_draw_a_note():
    assert scarce(100, 10, 5) == []
    assert "4 training rows for 20 columns" in scarce(4, 10, 20)[0]
    assert "test part has 1 row:" in scarce(100, 1, 5)[0]
    data = load(torch.randn(8, 20, generator=seeded()).double().numpy())
    assert any("training rows for 20 columns" in note for note in data.notes)


def test_far_below_independent_columns_is_said():
    means = {"independent": mean_of(-30.0, -31.0), "wild": mean_of(-1.6e19, -1e18)}
    rows = [{"family": k, "status": "ok", "likelihood": s.to_json(rows=False)} for k, s in means.items()]
    text = recommend.recommend(rows, {}, ("likelihood",)).text
    assert "far below that of independent columns: wild by 8.5e+18 nats" in text
    assert means["wild"].text == "= -8.5e+18 ± 7.5e+18 nats"


# -- sorted rows ---------------------------------------------------------------------------------------


def shapes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Little images of eight classes, each a bar of its own with noise around it, in random order."""
    label = torch.arange(n) % 8
    bar = torch.zeros(n, 1, 4, 4, dtype=torch.uint8)
    bar[label < 4] += (torch.arange(4)[None, :, None] == label[label < 4][:, None, None]).byte()[:, None]
    bar[label > 3] += (torch.arange(4)[None, None] == label[label > 3][:, None, None] - 4).byte()[:, None]
    flips = (torch.rand(bar.shape, generator=seeded(seed)) < 0.1).byte()
    order = torch.randperm(n, generator=seeded(seed + 1))
    return (bar ^ flips)[order], label[order]


def test_sorted_and_shuffled_validation_keep_the_same_weights():
    """Two classes have many training rows and improve for long, six have few, of which the noise is soon learned."""
    (x, label), valid, test = shapes(1600, 0), Part(*shapes(800, 2)), Part(*shapes(800, 4))
    train = Part(torch.cat([x[label < 2], x[label > 1][:24]]))
    kept = []
    for order in (torch.arange(800), valid.c.argsort(stable=True)):
        data = Data("bars", "memory", Image(4, 4, 1, 2), train, Part(valid.x[order]), Part(test.x))
        run = fit(data, "made", steps=80, checks=16, valid_rows=160, recipe={"lr": 0.02, "batch": 50})
        kept.append(run.model.log_prob(test.x).nats.double().detach())
    shuffled, ordered = kept
    assert abs(shuffled.mean() - ordered.mean()) < 0.3  # by the head, which holds the two classes alone: 0.6 and more


class Told(Moments, Encodes):
    """Its latents are the data, with noise."""

    def rows_encode(self, x, c):
        return torch.distributions.Normal(x.float(), 1.0)


def test_a_head_is_never_a_sample():
    """Feature maps, probes and measures see all of a sorted part, however few rows they take."""
    x = torch.arange(12_000.0, dtype=torch.float64)[:, None]
    part = Part(x, label=(x[:, 0] >= 6000).long())
    assert part.draw(100, 3).x.mean() == pytest.approx(6000, abs=1100)
    assert torch.equal(part.draw(100, 3).x, part.draw(100, 3).x)
    assert sorted(part.draw(20_000, 1).x[:, 0].tolist()) == x[:, 0].tolist()
    features = two_sample.Features(Table((Real("a"),)), part)
    assert features(x).mean().item() == pytest.approx(0, abs=0.1)
    model = Told(Plain(), Table((Real("a"), Real("b"))))
    wide = Part(torch.cat([x, torch.randn(12_000, 1, generator=seeded()).double()], 1), label=part.label)
    model.learn(wide.x, None)
    probe = linear_probe(model, wide, wide, two_sample.Features(model.space, wide), max_rows=200)
    assert probe.classes == 2
    assert probe.accuracy > 0.9
    # far more real rows than fake ones, sorted: the two come from one distribution all the same
    some = x[torch.randperm(len(x), generator=seeded())[:200]].float()
    assert two_sample.c2st(x.float(), some).p_value > 1e-3
    assert two_sample.mmd(x.float(), some).p_value > 1e-3
    assert two_sample.prdc(x.float(), some, cap=400).coverage > 0.8
    assert two_sample.memorisation(x.float(), some, some[:150], cap=2000).n_train == 2000


def test_the_error_of_a_classifier_test_is_calibrated():
    """Over pairs of samples: the spread of the accuracy is at most what is stated, and p-values are not too small."""
    found = []
    for seed in range(60):
        a, b = torch.randn(2, 40, 2, generator=seeded(seed))
        found.append(two_sample.c2st(a, b, classifier="logistic", seed=seed))
    accuracy = torch.tensor([f.accuracy for f in found])
    stated = torch.tensor([f.se for f in found]).mean()
    assert 0.55 < accuracy.std() / stated < 1.15  # one that took folds for independent would stand at 1.3
    assert sum(f.p_value < 0.05 for f in found) <= 6  # of 60; the chance is below 1 in 20 where 5% are


# -- comparisons of next to nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(1, 1, 1), (3, 1, 2), (8, 1, 1)])
def test_tiny_tables_are_compared_and_reported(rows, tmp_path):
    parts = [Part(torch.randn(n, 2, generator=seeded(k)).double()) for k, n in enumerate(rows)]
    data = Data("tiny", "memory", Table((Real("a"), Real("b"))), *parts)
    compare(data, ["gmm"] if rows[0] > 1 else ["vae"], seconds=0.1, samples=20, out=tmp_path, needs=["likelihood"])
    text = (tmp_path / "comparison.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    for row in record["rows"]:
        assert row["status"] in ("ok", "refused")
        if rows[2] == 1:
            assert row["likelihood"]["se"] is None
    assert build(tmp_path).exists()
    assert build(tmp_path / "runs" / "gaussian").exists()


def test_one_image_is_compared(tmp_path):
    x = torch.randint(0, 2, (3, 1, 4, 4), generator=seeded()).to(torch.uint8)
    data = Data("one", "memory", Image(4, 4, 1, 2), *(Part(x[i : i + 1]) for i in range(3)))
    found = compare(data, ["markov", "made"], seconds=0.1, samples=20, out=tmp_path)
    assert {r["status"] for r in found.rows} <= {"ok", "refused"}
    assert "± unknown" in found.recommendation
    assert build(tmp_path).exists()


# -- columns that others determine -------------------------------------------------------------------------


def pairs_of_gaussians(rho: float, dependent: tuple[str, ...]) -> Data:
    z = torch.randn(1500, 2, generator=seeded(), dtype=torch.float64)
    x = torch.stack([z[:, 0], 3 * (rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1])], 1)
    space = Table((Real("a"), Real("b")))
    return Data("pair", "memory", space, Part(x[:1000]), Part(x[1000:1100]), Part(x[1100:]), dependent=dependent)


@pytest.mark.parametrize("rho", [0.0, 0.9, 1 - 1e-9])
def test_the_share_of_a_column_is_its_conditional_density(rho):
    data = pairs_of_gaussians(rho, ("b",))
    model = fit(data, Moments, epochs=1).model
    found = share(model, data.test, "b", 3.0, seeded())
    cov = (model.root @ model.root.T).numpy()
    variance = cov[1, 1] - cov[0, 1] ** 2 / cov[0, 0]
    x = data.test.x[:32]
    mean = model.mean[1] + cov[0, 1] / cov[0, 0] * (x[:, 0] - model.mean[0])
    truth = torch.distributions.Normal(mean, math.sqrt(variance)).log_prob(x[:, 1])
    assert found.nats == pytest.approx(float(truth.mean()), abs=0.02)
    assert found.n == 32


def test_no_family_is_recommended_for_a_density_without_limit(tmp_path):
    data = pairs_of_gaussians(1 - 1e-9, ("b",))
    found = compare(data, ["gmm"], seconds=0.2, samples=50, needs=["likelihood", "fast-sampling"], out=tmp_path)
    advice = found.record["recommendation"]
    assert advice["family"] is None
    assert advice["sentences"][0].startswith("No family can be recommended for likelihood")
    assert advice["sentences"][1].endswith("--drop b")
    assert any("gmm" in s and "'b' given all other columns gives" in s for s in advice["sentences"])
    page = build(tmp_path).read_text()
    assert "grow without limit" in page
    assert "Other columns determine b, which given them adds" in page
    plain = recommend.recommend(found.rows, found.verdicts, (), dependent=("b",))
    assert "likelihood: No family" in plain.text
    other = recommend.recommend(found.rows, found.verdicts, ("fast-sampling",), dependent=("b",))
    assert other.sentences[0].startswith(("Take", "Undecided"))


def test_a_study_draws_its_rows_from_all_of_a_sorted_part():
    x = torch.arange(3000.0, dtype=torch.float64)[:, None]
    part = Part(x, label=(x[:, 0] >= 1500).long())
    data = Data("sorted", "memory", Table((Real("a"),)), part, part, part, labels=("low", "high"))
    study = Study.prepare(data, Settings(max_test=100, samples=10))
    for rows in (study.test, study.train[:100], *(rows for _, rows in study.outliers)):
        assert rows.x.mean() == pytest.approx(1500, abs=450)
