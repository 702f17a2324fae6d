"""Comparisons on a Ray cluster: the numbers of one process, workers that die, families of one's own, interruptions."""

from __future__ import annotations

import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import pofx
from pofx.cli import main
from pofx.core.errors import UsageError
from pofx.core.registry import _REGISTERED, register
from pofx.evaluate import engine
from pofx.evaluate.compare import compare, read_comparison, unreached
from pofx.train.run import read_run
from toys import NoisyConfig, NoisyGaussian, gaussian_data

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray", "mortal")]

SMALL = {"steps": 30, "cores": 1, "samples": 60, "max_test": 100}


@dataclass(frozen=True)
class MortalConfig(NoisyConfig):
    """mark: a file with the processes that have died so far, of ``deaths`` in all."""

    mark: str = ""
    deaths: int = 1


class Mortal(NoisyGaussian):
    """Kills the process that trains it, in the middle of the fit."""

    name = "test-mortal"
    Config = MortalConfig

    def nats(self, x):
        mark = Path(self.config.mark)
        dead = mark.read_text().split() if mark.exists() else []
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 12 and len(dead) < self.config.deaths:
            mark.write_text(" ".join([*dead, str(os.getpid())]))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().nats(x)


@pytest.fixture(scope="module")
def bell():
    return gaussian_data(300, d=2)


@pytest.fixture(scope="module")
def mortal():
    register(Mortal)
    yield
    del _REGISTERED[Mortal.name]


def numbers(found):
    """All that does not tell of times and places, and the verdicts."""
    kept = ("status", "reason", "config", "quality", "outliers", "latents", "abilities")
    timed = {"seconds", "rows_per_second"}
    rows = [
        {k: row.get(k) for k in kept}
        | {"likelihood": {k: v for k, v in row.get("likelihood", {}).items() if k not in timed}}
        | {"steps": row.get("fit", {}).get("steps")}
        for row in found.rows
    ]
    return rows, found.verdicts


def test_a_cluster_gives_the_numbers_of_one_process(bell, tmp_path):
    """To the bit: likelihoods, verdicts, quality; and every run folder is here, whole."""
    asked = SMALL | {"options": {"made": {"hidden": 8}, "noisy-gaussian": {"blow_up": 5}}}
    families = ["gmm", "made", "noisy-gaussian", "gpt"]
    there = compare(bell, families, cluster="local", out=tmp_path / "there", **asked)
    here = compare(bell, families, out=tmp_path / "here", **asked)
    assert numbers(there) == numbers(here)
    states = {row["family"]: row["status"] for row in there.rows}
    assert states == {"independent": "ok", "gaussian": "ok", "gmm": "ok", "made": "ok",
                      "noisy-gaussian": "failed", "gpt": "refused"}  # fmt: skip
    assert there.record["settings"]["cores"] == here.record["settings"]["cores"] == 1
    for name in ("gmm", "made"):
        ours, theirs = (read_run(tmp_path / side / "runs" / name).model.state_dict() for side in ("there", "here"))
        assert all((ours[key] == theirs[key]).all() for key in theirs)
        assert {f.name for f in (tmp_path / "there/runs" / name).iterdir()} == {
            f.name for f in (tmp_path / "here/runs" / name).iterdir()
        }
        assert not list((tmp_path / "there/runs").rglob(".*")), "nothing half done is left"
    assert there.runs["made"].path == tmp_path / "there/runs/made"


def test_a_worker_that_dies_in_a_fit_is_tried_again(bell, tmp_path):
    """A family of this process alone, too; in memory, too."""
    asked = SMALL | {"options": {"test-mortal": {"mark": str(tmp_path / "mark")}}}
    there = compare(bell, ["test-mortal"], cluster="local", **asked)
    assert int((tmp_path / "mark").read_text()) != os.getpid()
    assert not list(Path(tempfile.gettempdir()).glob("pofx-test-mortal-*")), "what the dead one left is gone"
    here = compare(bell, ["test-mortal"], **asked)  # it has died already
    assert numbers(there) == numbers(here)
    assert there.path is None
    assert there.runs["test-mortal"].path is None
    assert there.runs["test-mortal"].model.mean.tolist() == here.runs["test-mortal"].model.mean.tolist()


def test_what_kills_every_worker_is_a_row_with_its_reason(bell, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "RETRIES", 1)
    asked = SMALL | {"options": {"test-mortal": {"mark": str(tmp_path / "mark"), "deaths": 100}}}
    found = compare(bell, ["test-mortal"], cluster="local", out=tmp_path / "c", **asked)
    row = next(r for r in found.rows if r["family"] == "test-mortal")
    assert row["status"] == "failed"
    assert "its worker died, 2 times" in row["reason"]
    assert [r["status"] for r in found.rows] == ["ok", "ok", "failed"]


def test_an_interrupted_comparison_goes_on_anywhere(bell, tmp_path):
    """What has ended is kept, here goes on what began there, with the cores that it began with."""
    asked = {k: v for k, v in SMALL.items() if k != "cores"} | {"out": tmp_path}

    def ctrl_c(entry):
        if entry["stage"] == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(bell, ["gmm", "made"], cluster="local", progress=ctrl_c, **asked)
    torso = read_comparison(tmp_path).record
    assert len(torso["rows"]) == 1
    assert len(unreached(torso)) == 3
    found = compare(bell, ["gmm", "made"], **asked)
    assert [r for r in found.rows if r["family"] == torso["rows"][0]["family"]] == torso["rows"]
    assert {r["status"] for r in found.rows} == {"ok"}
    assert found.record["settings"]["cores"] == 1


def test_the_command_goes_on_on_a_cluster(bell, tmp_path):
    table = tmp_path / "bell.csv"
    np.savetxt(table, bell.train.x, delimiter=",", header="a,b", comments="")

    def ctrl_c(entry):
        if entry["stage"] == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(table, ["gmm"], progress=ctrl_c, out=tmp_path / "c", **SMALL)
    assert unreached(read_comparison(tmp_path / "c").record)
    assert main(["resume", str(tmp_path / "c"), "--cluster", "local", "--quiet"]) == 0
    assert {row["status"] for row in read_comparison(tmp_path / "c").rows} == {"ok"}


def test_what_a_cluster_cannot_give_is_said(bell, monkeypatch):
    with pytest.raises(UsageError, match="5000 cores, and no node .* has more than"):
        compare(bell, [], cluster="local", cores=5000)
    with pytest.raises(UsageError, match="no GPU"):
        compare(bell, [], cluster="local", device="cuda")
    monkeypatch.setattr(pofx, "__version__", "0.0.1")
    with pytest.raises(UsageError, match="Use one version"):
        compare(bell, [], cluster="local", **SMALL)


def test_losers_are_dropped_on_a_cluster_as_in_one_process(bell, tmp_path):
    """A run goes to and fro between rounds, by its files."""
    asked = SMALL | {"halving": True, "steps": 40, "options": {"made": {"hidden": 4}}}
    there = compare(bell, ["made", "noisy-gaussian"], cluster="local", out=tmp_path, **asked)
    here = compare(bell, ["made", "noisy-gaussian"], **asked)
    status = [{row["family"]: row["status"] for row in found.rows} for found in (there, here)]
    assert status[0] == status[1]
    assert there.verdicts == here.verdicts
    assert "dropped" in status[0].values()
    steps = {row["family"]: row["fit"]["steps"] for row in there.rows}
    assert steps == {row["family"]: row["fit"]["steps"] for row in here.rows}
