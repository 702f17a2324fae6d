"""What goes on after an interruption, and what may not: runs whose data changed, comparisons that were killed."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Picture

import pofx
from pofx.cli import main
from pofx.core.errors import DataChanged, Diverged, MissingSource, NoRun, OlderFormat, RunExists
from pofx.data.digest import digest
from pofx.evaluate import entrant
from pofx.evaluate.compare import assess, compare, read_comparison, resume_comparison, unreached
from pofx.families.gmm import Gaussian
from pofx.train.checkpoint import load_tree, write_sealed
from pofx.train.fit import fit, resume
from pofx.train.run import read_data, read_evaluation, read_log, read_run
from toys import NoisyGaussian, gaussian_data

# -- data that changed ---------------------------------------------------------------------------------------


def table(place: Path) -> Path:
    rng = np.random.default_rng(5)
    rows = zip(rng.normal(size=90), rng.normal(size=90), rng.choice(list("uvw"), 90), strict=True)
    lines = [f"{a:.5f},{b:.5f},{kind}" for a, b, kind in rows]
    (place / "t.csv").write_text("\n".join(["a,b,kind", *lines]) + "\n")
    return place / "t.csv"


def lines_of(path: Path, change) -> None:
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *change(lines)]) + "\n")


def edited(line: str) -> str:
    """Another value within the column's range."""
    return f"0.12345,{line.split(',', 1)[1]}"


def relabelled(line: str) -> str:
    return line[:-1] + ("v" if line[-1] == "u" else "u")


def parquet(place: Path) -> Path:
    rng = np.random.default_rng(6)
    pq.write_table(pa.table({"a": rng.normal(size=60), "n": rng.integers(50, size=60)}), place / "t.parquet")
    return place / "t.parquet"


def second_row_of(path: Path) -> None:
    columns = pq.read_table(path).to_pydict()
    columns["a"][1] = 0.25
    pq.write_table(pa.table(columns), path)


def pictures(place: Path) -> Path:
    rng = np.random.default_rng(7)
    (place / "p").mkdir()
    for k in range(20):
        Picture.fromarray(rng.integers(256, size=(6, 5), dtype=np.uint8)).save(place / "p" / f"{k:03}.png")
    return place / "p"


def one_pixel_of(path: Path) -> None:
    x = np.array(Picture.open(path / "004.png"))
    x[2, 2] ^= 1
    Picture.fromarray(x).save(path / "004.png")


def texts(place: Path) -> Path:
    rng = np.random.default_rng(8)
    (place / "t.jsonl").write_text(
        "".join(json.dumps({"text": " ".join(rng.choice(["so", "la", "mi"], 9))}) + "\n" for _ in range(40))
    )
    return place / "t.jsonl"


def sounds(place: Path) -> Path:
    import soundfile

    (place / "s").mkdir()
    for k in range(12):
        soundfile.write(place / "s" / f"{k:02}.wav", np.sin(np.arange(300 + k) / (3 + k)) * 0.4, 8000)
    return place / "s"


def one_sample_of(path: Path) -> None:
    import soundfile

    wave, rate = soundfile.read(path / "03.wav", dtype="int16")
    wave[100] += 1
    soundfile.write(path / "03.wav", wave, rate)


def series(place: Path) -> Path:
    rng = np.random.default_rng(9)
    lines = [f"{k // 5},{v:.5f}" for k, v in enumerate(rng.normal(size=100))]
    (place / "t.csv").write_text("\n".join(["who,v", *lines]) + "\n")
    return place / "t.csv"


CHANGES = {
    "rows in another order": (table, {}, lambda p: lines_of(p, lambda rows: rows[::-1])),
    "a cell edited": (table, {}, lambda p: lines_of(p, lambda rows: [edited(rows[0]), *rows[1:]])),
    "a row appended": (table, {}, lambda p: lines_of(p, lambda rows: [*rows, rows[0]])),
    "a row lost": (table, {}, lambda p: lines_of(p, lambda rows: rows[:-1])),
    "classes renamed": (table, {}, lambda p: p.write_text(p.read_text().replace("w\n", "z\n"))),
    "another label": (
        table, {"given": "kind"}, lambda p: lines_of(p, lambda rows: [relabelled(rows[0]), *rows[1:]])
    ),
    "a column renamed": (table, {}, lambda p: p.write_text(p.read_text().replace("a,b,", "a,c,"))),
    "Parquet: a value": (parquet, {}, second_row_of),
    "images: a pixel": (pictures, {}, one_pixel_of),
    "images: one more": (pictures, {}, lambda p: shutil.copy(p / "004.png", p / "0041.png")),
    "images: another order": (pictures, {}, lambda p: (p / "019.png").rename(p / "0001.png")),
    "texts: a word": (texts, {}, lambda p: p.write_text(p.read_text().replace("so", "la", 1))),
    "texts: letters exchanged": (texts, {}, lambda p: p.write_text(p.read_text().replace("s", "p"))),
    "sounds: a sample": (sounds, {}, one_sample_of),
    "sounds: one less": (sounds, {}, lambda p: (p / "05.wav").unlink()),
    "sequences: a step": (
        series, {"kind": "sequence", "sequence": "who"},
        lambda p: lines_of(p, lambda rows: [f"{rows[0].split(',')[0]},0.12345", *rows[1:]]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_of_the_rows_is_noticed(name, tmp_path):
    make, options, change = CHANGES[name]
    source = make(tmp_path)
    data = pofx.load(source, **options)
    record = {"pofx": pofx.__version__, "data": {"source": str(source), "options": data.options, "digest": data.digest}}
    assert read_data(record, "the run").digest == data.digest
    change(source)
    with pytest.raises(DataChanged, match="the run"):
        read_data(record, "the run")


def test_rows_stand_for_themselves_whatever_holds_them(tmp_path):
    """The same values from another file format and another compression are the same data."""
    source = parquet(tmp_path)
    before = pofx.load(source).digest
    pq.write_table(pq.read_table(source), source, compression="gzip")
    assert pofx.load(source).digest == before
    frame = pq.read_table(source)
    assert pofx.load(frame).digest == before
    assert pofx.load("two-moons", max_rows=50).digest == pofx.load("two-moons", max_rows=50).digest
    assert pofx.load("two-moons", max_rows=50).digest != pofx.load("two-moons", max_rows=50, seed=1).digest


def test_a_digest_has_every_field_of_a_part():
    part = dataclasses.replace(gaussian_data(20, weight=True).train, c=torch.arange(20), label=torch.arange(20) % 2)
    part = dataclasses.replace(part, rows=torch.arange(20))
    whole = digest(part)
    for field in ("x", "c", "label", "weight", "rows"):
        changed = getattr(part, field).clone()
        changed[7] += 1
        assert digest(dataclasses.replace(part, **{field: changed})) != whole, field
        assert digest(dataclasses.replace(part, **{field: None})) != whole, field
    assert digest(part[torch.arange(20)]) == whole


def test_long_rows_are_hashed_in_pieces(monkeypatch):
    from pofx.data import digest as module

    part = gaussian_data(50).train
    whole = digest(part)
    monkeypatch.setattr(module, "CHUNK", 100)
    assert digest(part) == whole


@pytest.fixture
def run_of_table(tmp_path):
    source = table(tmp_path)
    assert main(["fit", str(source), "gmm", "--steps", "3", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    return source, tmp_path / "run"


def test_the_message_says_which_part_changed(run_of_table, capsys):
    source, run = run_of_table
    row = int(pofx.load(source).test.rows[0])
    lines_of(source, lambda rows: [edited(r) if k == row else r for k, r in enumerate(rows)])
    capsys.readouterr()
    assert main(["log-prob", str(run)]) == 3
    printed = " ".join(capsys.readouterr().err.split())
    assert "DataChanged" in printed
    assert "changed: test rows; as before: training rows, validation rows" in printed
    assert "pofx log-prob RUN FILE" in printed


def test_commands_refuse_changed_data_and_take_new_rows(run_of_table, capsys, tmp_path):
    source, run = run_of_table
    before = source.read_text()
    lines_of(source, lambda rows: rows[45:] + rows[:45])
    capsys.readouterr()
    for command in ("log-prob", "encode", "resume"):
        assert main([command, str(run)]) == 3, command
        said = capsys.readouterr()
        assert "DataChanged" in said.err, command
        assert "=" not in said.out
    assert main(["report", str(run)]) == 0
    assert "has changed since" in " ".join(capsys.readouterr().err.split())
    assert "has changed since" in (run / "report.html").read_text()
    assert not (run / "evaluation.json").exists()
    assert main(["log-prob", str(run), str(source)]) == 0
    assert "on 90 rows" in capsys.readouterr().out
    source.write_text(before)
    assert main(["log-prob", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    assert "has changed since" not in (run / "report.html").read_text()


def test_data_in_memory_are_checked_when_they_are_given_again(tmp_path):
    data, other = gaussian_data(300), gaussian_data(301)
    fit(data, Gaussian, out=tmp_path / "run")
    resume(tmp_path / "run", data=gaussian_data(300))
    assess(tmp_path / "run", gaussian_data(300), seconds=1)
    for again in (resume, partial(assess, seconds=1)):
        with pytest.raises(DataChanged, match="training rows"):
            again(tmp_path / "run", data=other)


def test_data_that_are_nowhere_cannot_be_read_again(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(60, 2))
    fit(pofx.load(x), Gaussian, out=tmp_path / "run")
    with pytest.raises(MissingSource, match="in memory"):
        resume(tmp_path / "run")
    assert main(["log-prob", str(tmp_path / "run")]) == 3
    assert "SOURCE of new rows" in capsys.readouterr().err


# -- comparisons that go on ----------------------------------------------------------------------------------

FAMILIES = ["gmm", "made"]
ORDER = ["independent", "gaussian", "gmm", "made"]  # the two baselines are always compared
SMALL = {"seconds": 0.4, "samples": 60, "max_test": 100, "options": {"made": {"hidden": 8}}}


class Killed(BaseException):
    """As abrupt as a signal: nothing that catches errors holds it up."""


def killer(family: str, stage: str, step: int | None = None):
    def watch(entry):
        if entry["family"] == family and entry["stage"] == stage and (step is None or entry.get("step", -1) >= step):
            raise Killed

    return watch


def cut_off(data, out, family, stage="fitting", step=None, **changes):
    with pytest.raises(Killed):
        compare(data, FAMILIES, out=out, progress=killer(family, stage, step), **SMALL | changes)


@pytest.fixture(scope="module")
def bell():
    return gaussian_data(300, d=2)


def test_finished_families_are_kept_and_the_others_follow(bell, tmp_path):
    out = tmp_path / "c"
    cut_off(bell, out, "gmm")
    torso = read_comparison(out).record
    assert unreached(torso) == FAMILIES
    told = []
    found = compare(bell, FAMILIES, out=out, progress=told.append, **SMALL)
    assert {e["family"] for e in told if e["stage"] == "kept"} == {"independent", "gaussian"}
    assert {e["family"] for e in told if e["stage"] == "fitting"} == set(FAMILIES)
    kept = {r["family"]: r for r in found.rows}
    assert [kept[r["family"]] for r in torso["rows"]] == torso["rows"], "their figures stay to the digit"
    assert found.record["settings"] == torso["settings"]
    whole = compare(bell, [], **SMALL | {"options": None})
    ours, theirs = (c.verdicts["gaussian"]["independent"] for c in (found, whole))
    assert ours["verdict"] == theirs["verdict"] == "better"
    assert ours["nats"] == pytest.approx(theirs["nats"], abs=1e-5), "paired over the rows that were kept in a file"
    assert found.verdicts["gmm"].keys() == {"independent", "gaussian", "made"}
    assert found.record.keys() == whole.record.keys()


def test_a_fit_that_was_cut_off_is_resumed_inside(bell, tmp_path, monkeypatch):
    monkeypatch.setattr(entrant, "fit", partial(fit, save_every=0.0))
    out = tmp_path / "c"
    cut_off(bell, out, "made", step=3, seconds=2.0)
    reached = load_tree(out / "runs" / "made" / "resume.safetensors")["state"]["step"]
    assert reached >= 2
    steps = []
    found = compare(
        bell, FAMILIES, out=out, **SMALL | {"seconds": 2.0},
        progress=lambda e: steps.append(e["step"]) if e["family"] == "made" and "step" in e else None,
    )  # fmt: skip
    assert min(steps) >= reached  # a validation may be due before the first step
    row = next(r for r in found.rows if r["family"] == "made")
    assert row["status"] == "ok"
    assert row["fit"]["steps"] == read_log(out / "runs" / "made")[-1]["step"]


def test_a_fit_that_was_over_is_not_made_again(bell, tmp_path):
    out = tmp_path / "c"
    cut_off(bell, out, "made", "likelihood")
    weights = (out / "runs" / "made" / "weights.safetensors").read_bytes()
    found = resume_comparison(out, bell)
    assert (out / "runs" / "made" / "weights.safetensors").read_bytes() == weights
    row = next(r for r in found.rows if r["family"] == "made")
    assert "unavailable" in row["fit"]["memory"], "nothing was fitted here whose memory could be measured"
    assert row["likelihood"]["n"] == 100
    assert "made" in "".join(map(str, found.table()))
    assert pofx.read_run(out / "runs" / "made").steps == row["fit"]["steps"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"seconds": 0.5}, "seconds 0.4, not 0.5"), ({"seed": 1}, "seed 0, not 1"), ({"samples": 61}, "samples 60"),
     ({"needs": ["latents"]}, "needs"), ({"families": ["made", "vae"]}, "families.*gmm.*vae"),
     ({"options": {"made": {"hidden": 9}}}, "options"), ({"outliers": torch.zeros(5, 2)}, "outliers None")],
)  # fmt: skip
def test_another_question_is_refused_by_name(bell, tmp_path, changes, says):
    out = tmp_path / "c"
    cut_off(bell, out, "gaussian")
    before = (out / "comparison.json").read_bytes()
    asked = {"families": FAMILIES, **SMALL, **changes}
    with pytest.raises(RunExists, match=says):
        compare(bell, out=out, **asked)
    assert (out / "comparison.json").read_bytes() == before


def test_other_data_are_refused_by_name(bell, tmp_path):
    out = tmp_path / "c"
    cut_off(bell, out, "gaussian")
    with pytest.raises(RunExists, match="changed: training rows"):
        compare(gaussian_data(299, d=2), FAMILIES, out=out, **SMALL)
    with pytest.raises(DataChanged, match="training rows"):
        resume_comparison(out, gaussian_data(299, d=2))


def test_other_outliers_are_refused(bell, tmp_path):
    out, far = tmp_path / "c", gaussian_data(100, d=2)
    cut_off(bell, out, "gaussian", outliers=far)
    near = dataclasses.replace(far, test=dataclasses.replace(far.test, x=far.test.x + 1))
    with pytest.raises(RunExists, match="outlier rows"):
        compare(bell, FAMILIES, out=out, outliers=near, **SMALL)
    assert len(compare(bell, FAMILIES, out=out, outliers=far, **SMALL).rows) == 4


def test_a_complete_comparison_is_left_as_it_is(bell, tmp_path):
    out = tmp_path / "c"
    found = compare(bell, [], out=out, **SMALL | {"options": None})
    before = (out / "comparison.json").read_bytes()
    with pytest.raises(RunExists, match="all of its 2 families"):
        compare(bell, [], out=out, **SMALL | {"options": None})
    assert resume_comparison(out, bell).record == found.record
    assert (out / "comparison.json").read_bytes() == before


def test_to_begin_anew_takes_nothing_from_before(bell, tmp_path):
    """Fits that an older comparison left are no part of the new one, wherever that is interrupted."""
    out, asked = tmp_path / "c", SMALL | {"options": None}
    compare(bell, ["gmm"], out=out, **asked)
    with pytest.raises(Killed):
        compare(bell, ["gmm"], out=out, overwrite=True, progress=killer("gaussian", "fitting"), **asked | {"seed": 1})
    assert not (out / "runs" / "gmm" / "config.json").exists()
    compare(bell, ["gmm"], out=out, **asked | {"seed": 1})
    assert {read_run(out / "runs" / name).info["seed"] for name in ORDER[:3]} == {1}


def test_fits_of_ones_own_beside_a_comparison_stay(bell, tmp_path):
    """Where a comparison is written into a folder that has runs already, only those of its families go."""
    run = fit(bell, Gaussian, out=tmp_path / "runs" / "mine")
    compare(bell, [], out=tmp_path, **SMALL | {"options": None})
    again = read_run(tmp_path / "runs" / "mine")
    assert all(torch.equal(v, run.model.state_dict()[k]) for k, v in again.model.state_dict().items())


def test_a_comparison_of_an_older_version_cannot_go_on(bell, tmp_path):
    cut_off(bell, tmp_path / "c", "gmm")
    record = read_comparison(tmp_path / "c").record
    for older in (1, 2):  # 2: before its keys were renamed
        write_sealed(tmp_path / "c" / "comparison.json", record | {"format": older})
        with pytest.raises(OlderFormat, match=f"comparison.json has format {older} .*; this pofx reads 3"):
            read_comparison(tmp_path / "c")
        with pytest.raises(OlderFormat, match=f"format {older}"):
            resume_comparison(tmp_path / "c", bell)
    with pytest.raises(RunExists, match="already holds a comparison, which cannot go on"):
        compare(bell, FAMILIES, out=tmp_path / "c", **SMALL)


@pytest.mark.parametrize(("at", "done"), [("independent", 0), ("gmm", 2)])
def test_commands_go_on_with_a_comparison(tmp_path, capsys, monkeypatch, at, done):
    source, out = table(tmp_path), tmp_path / "c"
    small = ["--seconds", "0.4", "--samples", "60", "--quiet"]
    asked = ["compare", str(source), "--families", "gmm", "--out", str(out), *small]

    def interrupted(self, *rest):
        if self.name == at:
            raise KeyboardInterrupt
        return run(self, *rest)

    run = entrant.Entrant.run
    with monkeypatch.context() as patch:
        patch.setattr(entrant.Entrant, "run", interrupted)
        assert main(asked) == 130
    assert f"pofx resume {out}" in " ".join(capsys.readouterr().err.split())
    assert main(["report", str(out)]) == 0
    assert f"not reached: {', '.join(ORDER[done:3])};" in " ".join(capsys.readouterr().err.split())
    page = (out / "report.html").read_text()
    assert f"{done} of 3 families" in page
    assert f"Not reached: {', '.join(ORDER[done:3])}" in page
    capsys.readouterr()
    assert main([*asked, "--seed", "1"]) == 5
    assert "seed 0, not 1" in capsys.readouterr().err
    assert main(["resume", str(out), "--quiet"]) == 0
    assert "gmm" in capsys.readouterr().out
    assert "3 of 3 families" in (out / "report.html").read_text()
    assert "Not reached" not in (out / "report.html").read_text()
    assert main(asked) == 5
    assert "all of its 3 families" in capsys.readouterr().err


def test_a_comparison_whose_data_changed_does_not_go_on(tmp_path, capsys):
    source, out = table(tmp_path), tmp_path / "c"
    with pytest.raises(Killed):
        compare(source, [], out=out, seconds=0.2, samples=50, progress=killer("gaussian", "fitting"))
    lines_of(source, lambda rows: rows[::-1])
    assert main(["resume", str(out)]) == 3
    assert "DataChanged" in capsys.readouterr().err


# -- unfinished runs -----------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path):
    """A run of a table that was cut off after some validations."""
    source, seen = table(tmp_path), []

    def watch(entry):
        seen.append(entry)
        if sum("valid" in e for e in seen) == 3:
            raise Killed

    with pytest.raises(Killed):
        fit(source, "made", steps=40, options={"hidden": 8}, out=tmp_path / "run", save_every=0.0, progress=watch)
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["log-prob", "sample", "report"])
def test_commands_say_how_far_an_unfinished_run_came(unfinished, capsys, command):
    step = read_log(unfinished)[-1]["step"]
    assert 0 < step < 40
    more = ["--out", str(unfinished.parent / "drawn.csv")] if command == "sample" else []
    assert main([command, str(unfinished), "--json", *more]) == 0
    said = capsys.readouterr()
    assert f"it stands at step {step}," in said.err
    assert "of a budget of 40 steps" in said.err
    assert f"pofx resume {unfinished}" in said.err
    found = json.loads(said.out)
    assert found["steps"] == step
    assert found["status"] not in ("finished", "stopped early")
    if command == "report":
        assert f"after {step} steps" in (unfinished / "report.html").read_text()


def test_a_finished_run_says_nothing_of_it(run_of_table, capsys):
    _, run = run_of_table
    capsys.readouterr()
    assert main(["log-prob", str(run), "--json"]) == 0
    said = capsys.readouterr()
    assert "stands at" not in said.err
    assert json.loads(said.out)["status"] == "finished"


def test_figures_of_weights_that_trained_on_are_measured_again(unfinished, capsys):
    assert main(["report", str(unfinished)]) == 0
    before = json.loads((unfinished / "evaluation.json").read_text())
    assert main(["resume", str(unfinished), "--quiet"]) == 0
    assert read_evaluation(unfinished, read_log(unfinished)) is None
    assert main(["report", str(unfinished)]) == 0
    after = json.loads((unfinished / "evaluation.json").read_text())
    assert before["fit"]["status"] != after["fit"]["status"] == "finished"
    assert after["fit"]["steps"] == 40


@pytest.mark.parametrize("command", ["log-prob", "sample", "encode"])
def test_a_fit_without_weights_is_to_be_resumed(unfinished, capsys, command):
    (unfinished / "weights.safetensors").unlink()
    with pytest.raises(NoRun, match="pofx resume"):
        read_run(unfinished)
    assert main([command, str(unfinished)]) == 5
    assert f"pofx resume {unfinished}" in " ".join(capsys.readouterr().err.split())


# -- notes of reading, and remedies --------------------------------------------------------------------------


def test_log_prob_tells_what_reading_changed(tmp_path, capsys):
    rng = np.random.default_rng(3)
    grid = [f"{v:.1f},{k}" for v, k in zip(rng.normal(size=80), rng.integers(4, size=80), strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["v,k", *grid]) + "\n")
    run = str(tmp_path / "run")
    assert main(["fit", str(tmp_path / "t.csv"), "independent", "--out", run, "--quiet"]) == 0
    (tmp_path / "new.csv").write_text("k;v;remark\n1;0.34;x\n2;0.5;y\n")
    capsys.readouterr()
    assert main(["log-prob", run, str(tmp_path / "new.csv")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "Fields are separated by" in told
    assert "Columns not used: remark" in told
    assert "1 of 2 values were rounded to its resolution 0.1" in told
    assert "Warning" not in told
    assert main(["log-prob", run, str(tmp_path / "new.csv"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 3


def test_log_prob_tells_of_sounds_what_fit_would(tmp_path, capsys):
    import soundfile

    source = sounds(tmp_path)
    run = str(tmp_path / "run")
    tiny = ["--options.width", "8", "--options.layers", "1", "--options.block", "32"]
    assert main(["fit", str(source), "rnn", "--steps", "1", "--law", "mu", "--out", run, "--quiet", *tiny]) == 0
    (tmp_path / "new").mkdir()
    wave = np.sin(np.arange(640) / 5)[:, None] * [0.3, 0.1]
    soundfile.write(tmp_path / "new" / "a.wav", wave, 16000)
    capsys.readouterr()
    assert main(["log-prob", run, str(tmp_path / "new")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "mixed to one" in told
    assert "1 of 1 sounds were resampled to 8000 Hz" in told


class Broken(Gaussian):
    """A family without gradients whose numbers go wrong."""

    def learner(self, recipe):
        found = super().learner(recipe)
        found.step = lambda batch, generator: {"loss": torch.tensor(math.nan)}
        return found


def test_against_divergence_only_what_the_family_has_is_advised(bell):
    with pytest.raises(Diverged, match="extreme values") as found:
        fit(bell, Broken, steps=2)
    assert "--recipe" not in str(found.value)
    with pytest.raises(Diverged, match="Lower --recipe.lr or --recipe.clip"):
        fit(bell, NoisyGaussian, steps=5, options={"blow_up": 2})
    with pytest.raises(Diverged, match="Lower --recipe.lr, or look"):
        fit(bell, NoisyGaussian, steps=5, options={"blow_up": 2}, recipe={"clip": None})
