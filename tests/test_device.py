"""Where a fit computes: chosen by what the machine has, recorded, and another one where a run goes on elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pofx
from pofx.cli import main
from pofx.core.errors import UsageError
from pofx.evaluate.compare import compare, read_comparison, resume_comparison
from pofx.train import run as folder
from pofx.train.checkpoint import read_sealed, write_sealed
from pofx.train.device import choose


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many CUDA devices, and perhaps mps."""

    def build(cuda: int, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return build


@pytest.mark.parametrize(
    ("cuda", "mps", "asked", "processes", "found"),
    [
        (0, False, "auto", 1, "cpu"),
        (0, True, "auto", 1, "cpu"),  # it lacks float64
        (0, True, "mps", 1, "mps"),
        (1, False, "auto", 1, "cuda"),
        (1, False, "auto", 2, "cpu"),
        (2, False, "auto", 2, "cuda"),
        (2, False, "cpu", 1, "cpu"),
    ],
)
def test_what_is_chosen(machine, cuda, mps, asked, processes, found):
    machine(cuda, mps)
    assert choose(asked, processes) == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("tpu", "device='tpu' is not offered. Give auto, cpu, cuda or mps."),
        ("cuda", "device='cuda', but torch finds none here. Give auto or cpu."),
        ("mps", "device='mps', but torch finds none here. Give auto or cpu."),
    ],
)
def test_what_is_not_there_is_said(machine, tmp_path, capsys, asked, said):
    machine(0)
    x = np.random.default_rng(0).normal(size=(60, 2))
    for call in (pofx.fit, compare):
        with pytest.raises(UsageError) as told:
            call(x, *(["gaussian"] if call is pofx.fit else []), device=asked)
        assert str(told.value) == said
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    for argv in (["fit", str(tmp_path / "x.csv"), "gaussian"], ["compare", str(tmp_path / "x.csv")]):
        assert main([*argv, "--device", asked, "--out", str(tmp_path / "out"), "--quiet"]) == 2
        assert said in capsys.readouterr().err


def test_a_run_says_where_it_was_and_goes_on_elsewhere(machine, tmp_path):
    machine(0)
    x = pofx.load(np.random.default_rng(0).normal(size=(60, 2)))
    run = pofx.fit(x, "independent", steps=1, out=tmp_path)
    info = folder.read_info(tmp_path)
    assert (info["training"]["device"], info["device"]) == ("auto", "cpu")
    write_sealed(tmp_path / "config.json", info | {"device": "cuda"})  # as another machine would have left it
    assert pofx.resume(tmp_path, data=x).steps == run.steps
    assert folder.read_info(tmp_path)["device"] == "cpu"
    there = info | {"training": info["training"] | {"device": "cuda"}}
    write_sealed(tmp_path / "config.json", there)
    with pytest.raises(UsageError, match="torch finds none here"):
        pofx.resume(tmp_path, data=x)
    assert pofx.resume(tmp_path, data=x, device="cpu").steps == run.steps


def test_a_comparison_goes_on_elsewhere(machine, tmp_path):
    machine(0)
    x = pofx.load(np.random.default_rng(0).normal(size=(60, 2)))
    found = compare(x, ["histogram"], seconds=0.1, samples=20, out=tmp_path)
    assert (found.record["plan"]["device"], found.record["settings"]["device"]) == ("auto", "cpu")
    assert {row["fit"]["device"] for row in found.rows} == {"cpu"}
    path = tmp_path / "comparison.json"
    record = read_sealed(path)
    record["rows"] = [row for row in record["rows"] if row["family"] != "histogram"]
    record["plan"]["device"] = "cuda"
    write_sealed(path, record)
    with pytest.raises(UsageError, match="torch finds none here"):
        resume_comparison(tmp_path, x)
    resume_comparison(tmp_path, x, device="cpu")
    assert "histogram" in {row["family"] for row in read_comparison(tmp_path).rows}


def test_resume_takes_a_device(tmp_path, capsys):
    source = Path(tmp_path / "x.csv")
    np.savetxt(source, np.random.default_rng(0).normal(size=(60, 2)), delimiter=",")
    assert main(["fit", str(source), "independent", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert main(["resume", str(tmp_path / "run"), "--device", "cpu", "--quiet"]) == 0
    assert main(["resume", str(tmp_path / "run"), "--device", "tpu", "--quiet"]) == 2
    assert "Give auto, cpu, cuda or mps." in capsys.readouterr().err
