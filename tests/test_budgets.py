"""Budgets of a comparison in every unit, what it says it will take and what it took, and losers dropped early."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch

from pofx.core.errors import EmptyData, RunExists, UsageError
from pofx.core.likelihood import Exact, LowerBound
from pofx.core.measure import Measure
from pofx.evaluate.compare import compare, read_comparison, resume_comparison, unreached
from pofx.evaluate.likelihood import Mean, summarise, unavailable
from pofx.evaluate.plan import duration, shared
from pofx.evaluate.race import losers
from pofx.evaluate.study import Settings
from pofx.report.build import build
from pofx.train.fit import fit, resume
from toys import NoisyGaussian, gaussian_data

SMALL = {"cores": 1, "samples": 40, "max_test": 200}


@pytest.fixture(scope="module")
def bell():
    return gaussian_data(300, d=2)


# -- budgets -------------------------------------------------------------------------------------------------


def test_a_fit_in_two_parts_is_that_in_one(bell, tmp_path):
    whole = fit(bell, NoisyGaussian, steps=40, out=tmp_path / "whole")
    part = fit(bell, NoisyGaussian, steps=40, out=tmp_path / "parts", until=0.25)
    assert (part.steps, part.status) == (10, "unfinished")
    assert resume(tmp_path / "parts", data=bell, until=0.25).steps == 10, "it is there already"
    assert resume(tmp_path / "parts", data=bell, until=0.5).steps == 20
    found = resume(tmp_path / "parts", data=bell)
    assert (found.steps, found.status) == (40, "finished")
    ours, theirs = found.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(UsageError, match="run folder"):
        fit(bell, NoisyGaussian, steps=40, until=0.5)
    with pytest.raises(UsageError, match="until is 0"):
        fit(bell, NoisyGaussian, steps=40, out=tmp_path / "never", until=0.0)


def test_a_budget_in_steps_gives_the_same_numbers_again(bell):
    """Every test row is scored, and nothing depends on the clock."""
    first, second = (compare(bell, ["noisy-gaussian"], steps=20, **SMALL) for _ in range(2))
    assert first.verdicts == second.verdicts
    for one, other in zip(first.rows, second.rows, strict=True):
        assert one["likelihood"]["nats"] == other["likelihood"]["nats"]
        assert one["likelihood"]["n"] == 200
        assert one["quality"] == other["quality"]
    assert {r["family"]: r["fit"]["steps"] for r in first.rows}["noisy-gaussian"] == 20
    assert "All had 20 steps to fit" in compare(bell, [], steps=20, needs=["likelihood"], **SMALL).recommendation
    assert (first.record["settings"]["steps"], first.record["settings"]["seconds"]) == (20, None)


@pytest.mark.parametrize(("minutes", "fits", "workers", "seconds"), [
    (10, 8, 1, 60),  # 75 s each, of which evaluation has a quarter of the fit's
    (10, 8, 2, 120),
    (10, 9, 4, 160),  # three waves of 200 s
    (1, 4, 1, 10),  # 15 s each, 5 of which are the evaluation's
])  # fmt: skip
def test_minutes_are_shared(minutes, fits, workers, seconds):
    assert shared(minutes, fits, workers) == pytest.approx(seconds, abs=0.01)
    settings = Settings(shared(minutes, fits, workers))
    assert math.ceil(fits / workers) * (settings.seconds + settings.limit) == pytest.approx(60 * minutes, abs=1)


def test_too_few_minutes_say_what_is_enough():
    with pytest.raises(UsageError, match=r"0.5 minutes are too short for 8 families, 1 at a time") as error:
        shared(0.5, 8, 1)
    enough = float(re.search(r"Give ([\d.]+) or more", str(error.value))[1])
    assert shared(enough, 8, 1) >= 1
    with pytest.raises(UsageError):
        shared(enough - 0.1, 8, 1)


def test_it_says_before_it_starts_how_long_it_takes(bell):
    told = []
    compare(bell, ["noisy-gaussian", "gpt"], seconds=0.2, progress=told.append, **SMALL)
    first = next(e for e in told if "note" in e)
    assert first is told[0]
    assert first["note"] == (
        "3 families serve these data, 1 at a time: each has 0.2 s to fit and up to 5 s to evaluate, "
        "so all take 16 s at most"
    )
    assert "8 families serve these data, 2 at a time" in (said := duration(Settings(60.0), 8, 2))
    assert "60 s to fit and up to 15 s to evaluate, so all take 5 minutes at most" in said
    assert "1,000 steps" in duration(Settings(None, steps=1000), 8, 2)
    ended = [e["note"] for e in told if e["stage"] == "done"]
    assert [line.split(":")[0] for line in ended] == ["independent", "gaussian", "noisy-gaussian"]


def test_one_unit_of_budget(bell):
    with pytest.raises(UsageError, match=r"seconds=1 and minutes=2.*one of seconds, minutes, steps"):
        compare(bell, seconds=1, minutes=2)
    for wrong in ({"minutes": -1.0}, {"steps": 0}, {"seconds": math.inf}, {"cores": 0}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
            compare(bell, **wrong)


def test_where_the_time_went_adds_up(bell):
    found = compare(bell, ["noisy-gaussian"], seconds=0.3, **SMALL)
    times = found.record["times"]
    rows = {r["family"]: r for r in found.rows}
    for row in rows.values():
        assert row["times"]["fitting"] == pytest.approx(row["fit"]["seconds"], abs=0.01)
        assert row["times"]["evaluating"] == pytest.approx(row["evaluation_seconds"], abs=0.01)
        assert row["times"]["else"] >= 0
    parts = sum(times[key] for key in ("fitting", "evaluating", "else", "preparing"))
    assert times["wall"] * 0.8 <= parts <= times["wall"] * 1.01, "one after the other: by the clock, it is their sum"
    assert re.fullmatch(r"fitting .* s, evaluating .* s \(\d+%\), else .* s; .* s by the clock", found.times)


# -- losers --------------------------------------------------------------------------------------------------


def of(kind: type, mean: float, spread: float = 1.0, n: int = 400) -> Mean:
    measure = Measure.lebesgue(1)
    nats = mean + spread * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lik = Exact(nats, measure) if kind is Exact else LowerBound(nats, measure, torch.zeros(n), 0)
    return summarise(lik, gaussian_data(3, d=1).space, torch.ones(n))


def test_the_clearly_worse_half_is_dropped():
    exact = {name: of(Exact, -k) for k, name in enumerate("abcde")}
    assert set(losers(exact, list("abcde"), None)) == {"d", "e"}
    assert set(losers(exact, list("ad"), None)) == {"d"}, "what has ended its fit has nothing to lose"
    assert "than a by 3.0" in losers(exact, ["d"], None)["d"]
    assert losers({"a": of(Exact, 0.0), "b": of(Exact, 0.0)}, ["a", "b"], None) == {}, "nothing tells them apart"
    assert set(losers({"a": of(Exact, 0.0), "b": of(Exact, -1.0)}, ["a", "b"], None)) == {"b"}
    assert losers({"a": of(Exact, 0.0)}, ["a"], None) == {}


def test_a_bound_and_what_has_no_likelihood_are_not_dropped():
    """A bound far below an exact number may be loose; beside a generator without a density there is no verdict."""
    field = {
        "a": of(Exact, 0.0),
        "bound": of(LowerBound, -50.0),
        "gan": unavailable("no density", gaussian_data(3).space),
    }
    assert losers(field, list(field), None) == {}
    assert losers({"gan": field["gan"]}, ["gan"], None) == {}


SLOW = {"made": {"hidden": 4}}


def halved(data, out, **more):
    """``independent``, ``gaussian`` and ``gmm`` end at once, well ahead of a net after some steps."""
    asked = {"steps": 40, "halving": True, "options": SLOW, **SMALL, **more}
    return compare(data, ["gmm", "made"], out=out, **asked)


def test_a_loser_has_a_row_with_its_shorter_budget(bell, tmp_path):
    found = halved(bell, tmp_path / "c")
    row = next(r for r in found.rows if r["family"] == "made")
    assert row["status"] == "dropped"
    assert re.match(
        r"after [\d.e-]+ s, clearly worse on 200 validation rows than \d of 3 other families", row["reason"]
    )
    assert row["fit"]["steps"] == 10
    assert "likelihood" not in row
    assert "made" not in found.verdicts
    assert {r["family"] for r in found.rows if r["status"] == "ok"} == {"independent", "gaussian", "gmm"}
    assert "Dropped before the budget was spent, and not judged: made after" in found.recommendation
    page = build(tmp_path / "c").read_text()
    assert "was dropped" in page
    assert "<b>dropped</b>: after" in page
    assert resume(tmp_path / "c/runs/made", data=bell).steps == 40, "its run goes on by itself"
    alone = compare(bell, ["gmm", "made"], steps=40, options=SLOW, **SMALL)
    ours, theirs = ({r["family"]: r for r in c.rows}["gmm"]["likelihood"]["nats"] for c in (found, alone))
    assert ours == theirs, "who is not dropped has the numbers of a comparison without"


def test_an_interrupted_halving_goes_on(bell, tmp_path):
    """From the round that it was in: who was dropped stays dropped, and nobody is judged twice."""

    def killer(entry):
        if entry["family"] == "gmm" and entry["stage"] == "likelihood":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halved(bell, tmp_path / "c", progress=killer)
    torso = read_comparison(tmp_path / "c").record
    assert torso["rounds"] == 2
    assert unreached(torso) == ["gmm"]
    found, whole = resume_comparison(tmp_path / "c", bell), halved(bell, None)
    status = [{r["family"]: r["status"] for r in c.rows} for c in (found, whole)]
    assert status[0] == status[1]
    assert found.verdicts["gmm"]["gaussian"]["nats"] == pytest.approx(
        whole.verdicts["gmm"]["gaussian"]["nats"], abs=1e-6
    )
    with pytest.raises(RunExists, match="halving True, not False"):
        halved(bell, tmp_path / "c", halving=False)


def test_halving_needs_validation_rows(bell):
    none = dataclasses.replace(bell, valid=bell.valid[:0])
    with pytest.raises(EmptyData, match="validation part"):
        halved(none, None)


def test_torchrun_starts_no_comparison(bell, monkeypatch):
    """Each of its processes would run all of it, into one folder."""
    world = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 1, "TORCHELASTIC_RUN_ID": "x"}
    for name, value in world.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UsageError, match="processes of one fit"):
        compare(bell, ["gmm"], steps=1)
