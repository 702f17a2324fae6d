"""Probabilities of classes: against sums by hand, scikit-learn's metrics and files that are read back."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.metrics import accuracy_score, log_loss

import pofx
from pofx.cli import main
from pofx.core.errors import Unsupported, UsageError
from pofx.core.likelihood import Estimate, Exact, LowerBound
from pofx.evaluate.predict import Prediction, predict
from pofx.families.discriminative import Classifier
from pofx.families.gmm import Gaussian
from pofx.spaces import Category, Label, Table
from pofx.testing.wrong import Counts, Plain, Small
from toys import PROMISES

X = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)


def chain(cls=Counts):
    """p(x | y) of two binary columns given two classes, from a few rows of each."""
    columns = tuple(Category(name, ("no", "yes")) for name in "ab")
    model = cls(Plain(), Table(columns), Label(("left", "right")))
    model.learn(torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 0, 1, 1]))
    return model


def test_a_model_given_labels_classifies_by_bayes_rule():
    model, counts = chain(), (30, 10)
    found = predict(model, X, counts=counts)
    joint = torch.stack([model.given(torch.tensor(k)).log_prob(X).nats.exp() * counts[k] for k in range(2)], 1)
    torch.testing.assert_close(found.probabilities, joint / joint.sum(1, keepdim=True))
    assert found.kind is Exact
    assert found.names[0] == "left"
    assert found.names == [("left", "right")[k] for k in joint.argmax(1)]


def test_gaussians_by_class_are_quadratic_discriminant_analysis():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1, 2], [300, 100, 100]))
    x = rng.normal(size=(500, 2)) * np.array([[1, 1], [2, 0.5], [1, 3]])[y] + np.array([[0, 0], [2, 1], [-2, 1]])[y]
    frame = {"a": x[:, 0], "b": x[:, 1], "y": np.array(["k0", "k1", "k2"])[y]}
    pd = pytest.importorskip("pandas")
    data = pofx.load(pd.DataFrame(frame), given="label", label="y")
    run = pofx.fit(data, "gaussian", options={"wishart_prior": 0.0})
    theirs = QuadraticDiscriminantAnalysis().fit(data.train.x, data.train.c)
    ours = pofx.predict(run, data.test.x)
    np.testing.assert_allclose(ours.probabilities, theirs.predict_proba(data.test.x), atol=0.02)
    assert ours.accuracy(data.test.c).accuracy == pytest.approx(theirs.score(data.test.x, data.test.c), abs=0.021)


def classifier():
    data = pofx.load("wine", target="label")
    torch.manual_seed(0)
    model = Classifier(Classifier.tiny(data.space), data.space, data.context)
    with torch.no_grad():
        model.mlp.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model.requires_grad_(False), data


def test_all_classes_at_once_are_each_by_itself():
    ours, data = classifier()
    joint = Gaussian(Gaussian.tiny(data.space), data.space, data.context)
    joint.prepare(data.train.x, data.train.c, None, torch.Generator().manual_seed(0))
    for model in (ours, joint):
        p = model.given(data.test.c)
        every = p.classes()
        assert isinstance(every, Exact)
        for k in range(3):
            one = p.log_prob(torch.full((len(data.test),), k))
            torch.testing.assert_close(every.nats[:, k], one.nats)
        assert p.classes().nats.shape == (len(data.test), 3)
        assert model.given(data.test.c[0]).classes().nats.shape == (3,)
    with pytest.raises(Unsupported, match="not a label"):
        chain().given(torch.tensor(0)).classes()


def test_accuracy_and_log_loss_are_scikit_learns():
    model, data = classifier()
    found = predict(model, data.test.c, counts=[5, 9, 2])
    p, y = found.probabilities.numpy(), data.test.x.numpy()
    np.testing.assert_allclose(p.sum(1), 1)
    accuracy = found.accuracy(data.test.x)
    assert accuracy.accuracy == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert accuracy.commonest == "class_1"
    assert accuracy.majority == pytest.approx((y == 1).mean())
    score = found.log_loss(data.test.x)
    assert -score.nats == pytest.approx(log_loss(y, p, labels=[0, 1, 2]))
    assert score.unit == "label"
    assert score.loss_text.startswith("= ")
    assert "nats/label, = " in score.loss_text
    assert score.loss_text.endswith(" bits/label")
    assert f"{-score.nats / math.log(2):.2f}" in score.loss_text


class Gap(Counts):
    """The chain, which holds (0, 0) impossible under both classes."""

    def rows_log_prob(self, x, c, request, noise):
        lik = super().rows_log_prob(x, c, request, noise)
        return Exact(torch.where((x == 0).all(1), -math.inf, lik.nats), lik.measure)


def test_a_row_that_is_impossible_under_every_class_has_no_probabilities():
    found = predict(chain(Gap), X, counts=[1, 1])
    assert found.label.tolist()[2] == -1
    assert found.names[2] is None
    assert found.probabilities[2].isnan().all()
    assert found.accuracy(torch.tensor([0, 1, 0])).accuracy == pytest.approx(2 / 3)
    assert found.log_loss(torch.tensor([0, 1, 0])).impossible == 1


class Bounded(Counts):
    """The chain as a lower bound."""

    estimators = (PROMISES["LowerBound"],)

    def rows_log_prob(self, x, c, request, noise):
        lik = super().rows_log_prob(x, c, request, noise)
        return LowerBound(lik.nats - 1, lik.measure, torch.zeros_like(lik.nats), 0)


def test_probabilities_made_of_bounds_are_estimates():
    found = predict(chain(Bounded), X, counts=[1, 1])
    assert found.kind is Estimate
    assert "a lower bound for each class" in found.caveat
    assert found.log_loss(torch.tensor([0, 1, 0])).loss_text.startswith("≈ ")


def test_what_cannot_be_predicted_is_named():
    with pytest.raises(UsageError, match="without the frequencies of its 2 classes"):
        predict(chain(), X)
    with pytest.raises(UsageError, match="2 classes.*Give a count for each"):
        predict(chain(), X, counts=[1, 2, 3])
    free = Counts(Plain(), chain().space)
    with pytest.raises(Unsupported, match="knows of no classes.*--target"):
        predict(free, X)
    assert issubclass(Counts, Small)


def test_columns_are_named_by_the_classes_even_where_one_is_called_class():
    found = Prediction(("row", "class"), torch.tensor([[0.5, 0.5]]).log(), Exact)
    assert list(found.columns()) == ["class_", "row", "class"]


# -- the command -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two bells by class in a CSV file, a classifier and a Gaussian of each class fitted to it."""
    place = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    side = rng.integers(2, size=300)
    x = rng.normal(size=(300, 2)) + 3 * side[:, None]
    lines = [f"{a:.9f},{b:.9f},{'xy'[k]}" for (a, b), k in zip(x, side, strict=True)]
    (place / "all.csv").write_text("\n".join(["a,b,side", *lines]) + "\n")
    (place / "bare.csv").write_text("\n".join(["b,a", *(f"{b:.9f},{a:.9f}" for a, b in x)]) + "\n")
    (place / "odd.csv").write_text("\n".join(["a,b,side", *lines[:5], "0.1,0.2,z"]) + "\n")
    fit = ["fit", str(place / "all.csv"), "--quiet"]
    assert main([*fit, "classifier", "--target", "side", "--steps", "60", "--out", str(place / "c")]) == 0
    assert main([*fit, "gaussian", "--given", "label", "--label", "side", "--out", str(place / "g")]) == 0
    return place


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_predictions_come_in_order_with_or_without_the_target(runs, capsys):
    for run in ("c", "g"):
        assert main(["predict", str(runs / run), str(runs / "all.csv"), "--out", str(runs / "p.csv")]) == 0
        told = capsys.readouterr().out
        assert main(["predict", str(runs / run), str(runs / "bare.csv"), "--out", str(runs / "p.parquet")]) == 0
        assert "accuracy" not in capsys.readouterr().out
        rows, table = read(runs / "p.csv"), pq.read_table(runs / "p.parquet")
        assert list(rows[0]) == table.column_names == ["row", "class", "x", "y"]
        assert [int(r["row"]) for r in rows] == table["row"].to_pylist() == list(range(300))
        np.testing.assert_allclose([float(r["x"]) for r in rows], table["x"], atol=1e-6)
        truth = [r["side"] for r in read(runs / "all.csv")]
        share = accuracy_score(truth, [r["class"] for r in rows])
        assert share > 0.95
        assert f"accuracy on 300 rows: {share:.1%} ± " in told
        assert "bits/label" in told
        assert "bits/dim" not in told
        assert all((r["class"] == "x") == (float(r["x"]) > 0.5) for r in rows)


def test_predictions_go_to_standard_output_and_to_json(runs, capsys):
    assert main(["predict", str(runs / "c"), str(runs / "bare.csv")]) == 0
    assert capsys.readouterr().out.startswith("row,class,x,y\n0,")
    assert main(["predict", str(runs / "g"), "--json"]) == 0  # the run's own test rows
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 30 == len(found["predicted"])
    assert found["kind"] == "Exact"
    assert found["accuracy"]["accuracy"] > 0.9
    assert found["log_loss"]["log_loss"] == pytest.approx(-found["log_loss"]["nats"])


def test_labels_that_are_no_classes_are_told(runs, capsys):
    assert main(["predict", str(runs / "c"), str(runs / "odd.csv"), "--out", str(runs / "q.csv")]) == 0
    told = capsys.readouterr()
    assert "labels of the source are left aside" in " ".join(told.err.split())
    assert "'z' in row 5" in " ".join(told.err.split())
    assert "accuracy" not in told.out


def test_a_fit_of_labels_tells_accuracy_and_log_loss_per_label(runs, capsys):
    fit = ["fit", str(runs / "all.csv"), "classifier", "--target", "side", "--steps", "30", "--out", str(runs / "d")]
    assert main([*fit, "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "accuracy on 30 test rows: " in told
    assert "(always " in told
    assert "nats/label" in told
    assert "bits/label" in told
    assert "bits/dim" not in told
    assert main([*fit, "--overwrite", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.8 < found["accuracy"]["accuracy"] <= 1
    assert found["test"]["unit"] == "label"
    assert found["test"]["log_loss"] == -found["test"]["nats"]
    assert main(["log-prob", str(runs / "d"), str(runs / "all.csv")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("log-loss on 300 rows: = ")
    assert "bits/label" in told


def test_a_comparison_of_classifiers_tells_accuracy_and_bits_per_label(runs, capsys):
    source = str(runs / "all.csv")
    compare = ["compare", source, "--target", "side", "--families", "classifier", "--seconds", "0.5", "--quiet"]
    assert main([*compare, "--out", str(runs / "cmp")]) == 0
    row = next(
        r for r in json.loads((runs / "cmp" / "comparison.json").read_text())["rows"] if r["family"] == "classifier"
    )
    assert row["accuracy"]["accuracy"] > 0.8
    assert row["likelihood"]["bits_text"].endswith("bits/label")
    page = (runs / "cmp" / "report.html").read_text()
    assert "bits / label" in page
    assert "bits / dim" not in page
