"""The command line: what an option says arrives, and a report of one fit is as whole as a comparison's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pofx.cli import main
from pofx.commands.compare import noise_matters


@pytest.fixture
def two_bells(tmp_path):
    """A CSV of two columns with a class, and rows far from it."""
    rng = np.random.default_rng(0)
    side = rng.integers(2, size=400)
    near = rng.normal(size=(400, 2)) + 4 * side[:, None]

    def write(name, header, rows):
        (tmp_path / name).write_text("\n".join([header, *rows]) + "\n")
        return str(tmp_path / name)

    source = write("near.csv", "a,b,side", [f"{a:.9f},{b:.9f},{'xy'[k]}" for (a, b), k in zip(near, side, strict=True)])
    far = write("far.csv", "a,b,side", [f"{a:.9f},{b:.9f},x" for a, b in rng.normal(size=(50, 2)) - 30])
    return source, far, tmp_path


def test_compare_takes_outliers_a_class_and_options_of_families(two_bells, capsys):
    source, far, place = two_bells
    args = ["compare", source, "--families", "gmm", "--seconds", "1", "--samples", "100", "--json"]
    extra = ["--label", "side", "--outliers", far, "--anomaly", "y", "--max-test", "30"]
    option = ["--option", "gmm.components=3", "--option", "gmm.covariance=diag", "--out", str(place / "c")]
    assert main([*args, *extra, *option]) == 0
    found = json.loads(capsys.readouterr().out)
    row = next(r for r in found["rows"] if r["family"] == "gmm")
    assert (row["config"]["components"], row["config"]["covariance"]) == (3, "diag")
    assert row["likelihood"]["n"] <= 30
    text = json.dumps(row["outliers"])
    assert "far" in text
    assert "class 'y'" in text


@pytest.mark.parametrize(
    ("entry", "says"), [("gmm", "FAMILY.NAME=VALUE"), ("gmm.colour=3", "has no option"), ("gmmm.components=3", "gmm")]
)
def test_a_misspelt_option_of_a_family_is_named(two_bells, capsys, entry, says):
    source, _, place = two_bells
    assert main(["compare", source, "--option", entry, "--out", str(place / "c")]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (place / "c").exists()


def test_the_report_of_one_fit_evaluates_it(two_bells, capsys):
    source, _, place = two_bells
    run = place / "run"
    assert main(["fit", source, "gaussian", "--out", str(run), "--quiet"]) == 0
    assert main(["report", str(run), "--json"]) == 0
    scores = json.loads((run / "scores.json").read_text())
    assert scores["likelihood"]["kind"] == "Exact"
    assert scores["quality"]["c2st"]["accuracy"] is not None
    page = (run / "report.html").read_text()
    assert f"{scores['likelihood']['nats']:.2f}".lstrip("-") in page
    assert "pairs" in page.lower()


def test_a_report_without_its_data_says_so(two_bells, capsys):
    source, _, place = two_bells
    run = place / "run"
    assert main(["fit", source, "gaussian", "--out", str(run), "--quiet"]) == 0
    (place / "near.csv").unlink()
    assert main(["report", str(run)]) == 0
    assert "not evaluated" in capsys.readouterr().err
    assert (run / "report.html").exists()


def test_the_terminal_leaves_out_only_a_small_monte_carlo_error():
    assert noise_matters({"mc_se": 0.05, "se": 0.1})
    assert not noise_matters({"mc_se": 0.02, "se": 0.1})
    assert not noise_matters({"mc_se": None, "se": None})


def test_what_became_of_compiling_is_told(two_bells, capsys):
    source, _, place = two_bells
    run, told = place / "run", "eager steps kept; only families with one objective can be compiled"
    assert main(["fit", source, "gaussian", "--out", str(run), "--compile", "auto", "--quiet"]) == 0
    assert f"torch.compile: {told}" in " ".join(capsys.readouterr().out.split())
    (place / "near.csv").unlink()
    assert main(["report", str(run)]) == 0
    assert told in (run / "report.html").read_text()
