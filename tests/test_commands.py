"""The command line: what an option says arrives, and a report of one fit is as whole as a comparison's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pofx.cli import main


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
    scores = json.loads((run / "evaluation.json").read_text())
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


@pytest.fixture
def pictures(tmp_path):
    """An .npz of images of 4 x 6 pixels of two levels, and a run fitted to it."""
    x = np.random.default_rng(0).integers(2, size=(40, 4, 6), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", x=x)
    source, run = str(tmp_path / "pictures.npz"), str(tmp_path / "run")
    assert main(["fit", source, "made", "--steps", "3", "--out", run, "--quiet"]) == 0
    return source, run, x


@pytest.mark.parametrize(("share", "kept"), [([], 2), (["--known", "0.8"], 3), (["--known", "0"], 0)])
def test_images_are_completed_below_their_upper_rows(pictures, tmp_path, share, kept):
    source, run, x = pictures
    out = tmp_path / "completed.npz"
    assert main(["sample", run, "3", "--complete", source, "--rows", "5", *share, "--out", str(out)]) == 0
    drawn = np.load(out)["x"].reshape(5, 3, 4, 6)  # those of one image together
    assert (drawn[:, :, :kept] == x[:5, None, :kept]).all()
    assert (drawn[:, 0, kept:] != drawn[:, 1, kept:]).any()


def test_nothing_is_left_to_complete_where_all_is_known(pictures, tmp_path):
    source, run, x = pictures
    assert main(["sample", run, "1", "--complete", source, "--known", "1", "--out", str(tmp_path / "folder")]) == 0
    assert len(list((tmp_path / "folder").glob("*.png"))) == 40
    again = tmp_path / "again.npz"
    assert main(["sample", run, "1", "--complete", str(tmp_path / "folder"), "--known", "1", "--out", str(again)]) == 0
    assert (np.load(again)["x"] == x).all()


def test_rows_of_a_table_are_completed_behind_their_first_columns(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [f"{'pq'[a]},{b},{'xyz'[c]}" for a, b, c in zip(*rng.integers((2, 5, 3), size=(60, 3)).T, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c", *rows]) + "\n")
    source, run = str(tmp_path / "t.csv"), str(tmp_path / "run")
    assert main(["fit", source, "made", "--steps", "3", "--out", run, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["sample", run, "2", "--complete", source, "--known", "0.67", "--rows", "20"]) == 0
    drawn = capsys.readouterr().out.split()[1:]
    assert [r.rsplit(",", 1)[0] for r in drawn] == [r.rsplit(",", 1)[0] for r in rows[:20] for _ in range(2)]
    assert {r.rsplit(",", 1)[1] for r in drawn} == set("xyz")


@pytest.mark.parametrize(
    ("extra", "says"),
    [(["--complete", "SOURCE", "--known", "1.5"], "--known 1.5"), (["--known", "0.5"], "--complete SOURCE"),
     (["--complete", "SOURCE", "--steps", "3"], "takes no --steps"),
     (["--complete", "SOURCE", "--rows", "0"], "Cannot complete 0")],
)  # fmt: skip
def test_completions_that_cannot_be_are_named(pictures, tmp_path, capsys, extra, says):
    source, run, _ = pictures
    extra = [source if e == "SOURCE" else e for e in extra]
    assert main(["sample", run, "2", *extra, "--out", str(tmp_path / "o.npz")]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o.npz").exists()


def test_a_family_that_draws_all_at_once_completes_nothing(pictures, tmp_path, capsys):
    source, run, _ = pictures
    run += "-vae"
    assert main(["fit", source, "vae", "--steps", "1", "--out", run, "--quiet"]) == 0
    assert main(["sample", run, "2", "--complete", source, "--out", str(tmp_path / "o.npz")]) != 0
    assert "draws a datum all at once" in " ".join(capsys.readouterr().err.split())


def test_what_became_of_compiling_is_told(two_bells, capsys):
    source, _, place = two_bells
    run, told = place / "run", "eager steps kept; only families with one objective can be compiled"
    assert main(["fit", source, "gaussian", "--out", str(run), "--compile", "auto", "--quiet"]) == 0
    assert f"torch.compile: {told}" in " ".join(capsys.readouterr().out.split())
    (place / "near.csv").unlink()
    assert main(["report", str(run)]) == 0
    assert told in (run / "report.html").read_text()
