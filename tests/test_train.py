"""The training loop's promises: budgets, exact resume, equal processes, no silent NaN, no half-written file."""

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from pofx.core.errors import (
    CannotSave,
    CorruptCheckpoint,
    Diverged,
    NewerFormat,
    NoRun,
    RunExists,
    UsageError,
)
from pofx.data import synthetic
from pofx.testing.wrong import Moments
from pofx.train.checkpoint import load_tree, save_tree, write_atomic
from pofx.train.fit import fit, resume
from pofx.train.run import read_run
from toys import NoisyGaussian, gaussian_data

HERE = os.path.dirname(__file__)


def weights(run):
    return torch.cat([p.flatten() for p in run.model.state_dict().values()])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return gaussian_data()


def test_steps_and_epochs_are_the_same_budget(data):
    per_epoch = len(data.train) // 64
    a, b = fit(data, NoisyGaussian, epochs=2), fit(data, NoisyGaussian, steps=2 * per_epoch)
    assert a.steps == b.steps == 2 * per_epoch
    assert torch.equal(weights(a), weights(b))


def test_seconds_bound_the_fit(data):
    started = time.perf_counter()
    run = fit(data, NoisyGaussian, seconds=1.0)
    assert 0.9 < run.seconds < 4.0
    assert time.perf_counter() - started < 15
    assert run.status == "finished"


@pytest.mark.parametrize("budget", [{"seconds": 0}, {"steps": -3}, {"seconds": math.inf}, {"steps": 3, "epochs": 1}])
def test_impossible_budgets_are_named(data, budget):
    with pytest.raises(UsageError, match="budget"):
        fit(data, NoisyGaussian, **budget)


def test_unknown_options_are_named(data):
    with pytest.raises(UsageError, match="'nois'.*noise"):
        fit(data, NoisyGaussian, steps=1, options={"nois": 1})
    with pytest.raises(UsageError, match="'learning_rate'"):
        fit(data, NoisyGaussian, steps=1, recipe={"learning_rate": 1})


def test_training_finds_the_gaussian(data):
    run = fit(data, NoisyGaussian, steps=600, options={"noise": 0.0}, recipe={"ema": 0.99})
    assert torch.allclose(run.model.mean, data.train.x.mean(0).float(), atol=0.15)
    numbers = [e["valid"] for e in run.log if e.get("valid") is not None]
    assert numbers[-1] > numbers[0]
    assert {e["kind"] for e in run.log if "kind" in e} == {"Exact"}


def test_best_weights_are_kept_and_patience_stops(data):
    """With a learning rate that ruins the fit after a while, the run still carries its best weights."""
    run = fit(data, NoisyGaussian, steps=2000, recipe={"lr": 3.0, "schedule": "constant"}, checks=50, patience=5)
    assert run.status == "stopped early"
    best = max(e["valid"] for e in run.log)
    now = float(run.model.log_prob(data.valid.x).nats.detach().mean())
    assert now == pytest.approx(best, abs=1e-4)
    assert run.steps < 2000


def test_divergence_is_named_and_keeps_the_last_good_weights(data, tmp_path):
    with pytest.raises(Diverged, match="step 30.*last good weights"):
        fit(data, NoisyGaussian, steps=100, options={"blow_up": 30}, out=tmp_path / "run", checks=10)
    run = read_run(tmp_path / "run")
    assert run.status == "diverged"
    assert weights(run).isfinite().all()
    assert run.model.log_prob(data.valid.x).nats.isfinite().all()


def test_the_global_generator_is_untouched(data):
    before = torch.random.get_rng_state()
    fit(data, NoisyGaussian, steps=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_stopped_run_resumes_to_the_same_bits(data, tmp_path):
    """Cut off by force at an arbitrary moment, a resumed fit ends in the weights of an undisturbed one."""
    budget = {"steps": 3000, "recipe": {"ema": 0.99}, "seed": 3}
    undisturbed = fit(data, NoisyGaussian, **budget)
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from toys import NoisyGaussian, gaussian_data\nfrom pofx.train.fit import fit\n"
        f"fit(gaussian_data(), NoisyGaussian, out={str(tmp_path / 'run')!r}, save_every=0.05, **{budget!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=HERE)
    saved = tmp_path / "run" / "resume.safetensors"
    while not saved.exists() and child.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert load_tree(saved)["state"]["step"] < 3000, "the fit ended before it was killed"
    resumed = resume(tmp_path / "run", data=data)
    assert resumed.steps == 3000
    assert torch.equal(weights(undisturbed), weights(resumed))
    assert torch.equal(weights(resumed), weights(read_run(tmp_path / "run")))
    plain = [{k: v for k, v in e.items() if k != "seconds"} for e in undisturbed.log]
    assert plain == [{k: v for k, v in e.items() if k != "seconds"} for e in resumed.log]


def test_a_fit_killed_before_its_first_checkpoint_starts_again(data, tmp_path):
    run = fit(data, NoisyGaussian, steps=50, out=tmp_path / "run")
    (tmp_path / "run" / "resume.safetensors").unlink()
    (tmp_path / "run" / "weights.safetensors").unlink()
    assert torch.equal(weights(resume(tmp_path / "run", data=data)), weights(run))


def test_two_processes_compute_what_one_does(tmp_path):
    """Equal within rounding, with noise in every step and weighted rows."""
    data = gaussian_data(weight=True)
    one = fit(data, NoisyGaussian, steps=40, out=tmp_path / "one")
    code = (
        "from toys import NoisyGaussian, gaussian_data\nfrom pofx.train.fit import fit\n"
        "if __name__ == '__main__':\n"
        f"    fit(gaussian_data(weight=True), NoisyGaussian, steps=40, processes=2, out={str(tmp_path / 'two')!r})"
    )
    (tmp_path / "two.py").write_text(code)
    env = os.environ | {"PYTHONPATH": HERE}
    subprocess.run([sys.executable, str(tmp_path / "two.py")], check=True, env=env, capture_output=True)
    two = read_run(tmp_path / "two")
    assert torch.allclose(weights(one), weights(two), atol=1e-5)
    assert not torch.equal(weights(one), weights(fit(data, NoisyGaussian, steps=40, seed=1)))


def test_fitting_needs_no_gradient_mode_of_the_caller(data):
    with torch.no_grad():
        run = fit(data, NoisyGaussian, steps=5)
        assert not torch.is_grad_enabled()
    assert torch.equal(weights(run), weights(fit(data, NoisyGaussian, steps=5)))


def test_whole_sweeps_stop_by_themselves(data):
    run = fit(data, Moments, epochs=10)
    assert run.steps == 1
    assert torch.allclose(run.model.mean, data.train.x.mean(0))


def test_combined_loss_pulls_towards_the_target(data):
    """MLE + lambda KL(p* || p): for a Gaussian mean the optimum is the weighted mean of data and target."""
    target = fit(data, Moments, epochs=1).model
    target.mean += 4.0
    joint = fit(data, NoisyGaussian, steps=1500, options={"noise": 0.0}, target=target, target_weight=1.0)
    middle = data.train.x.mean(0).float() + 2.0
    assert torch.allclose(joint.model.mean, middle, atol=0.3)


def test_target_of_another_space_is_refused(data):
    other = Moments(Moments.Config(), synthetic.gaussian(2).space)
    with pytest.raises(UsageError, match="target"):
        fit(data, NoisyGaussian, steps=1, target=other, target_weight=1.0)


def test_runs_are_not_overwritten(data, tmp_path):
    fit(data, NoisyGaussian, steps=2, out=tmp_path / "run")
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    with pytest.raises(RunExists, match="overwrite"):
        fit(data, NoisyGaussian, steps=3, out=tmp_path / "run")
    assert before == (tmp_path / "run" / "weights.safetensors").read_bytes()
    fit(data, NoisyGaussian, steps=3, out=tmp_path / "run", overwrite=True)
    assert read_run(tmp_path / "run").steps == 3


def test_damaged_runs_are_named(data, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(NoRun):
        read_run(path)
    fit(data, NoisyGaussian, steps=2, out=path)
    whole = (path / "weights.safetensors").read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        (path / "weights.safetensors").write_bytes(whole[:cut])
        with pytest.raises(CorruptCheckpoint, match="weights.safetensors"):
            read_run(path)
    (path / "weights.safetensors").write_bytes(whole)
    info = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(info | {"format": 99, "pofx": "9.0"}))
    with pytest.raises(NewerFormat, match="format 99 .pofx 9.0.*Upgrade"):
        read_run(path)
    (path / "config.json").write_text(json.dumps(info)[:-20])
    with pytest.raises(CorruptCheckpoint):
        read_run(path)


def test_unwritable_places_are_named(data, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CannotSave, match="Could not write"):
        fit(data, NoisyGaussian, steps=1, out=tmp_path / "file" / "run")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """With the file size limited (as a full disk would), the write fails by name and nothing is lost."""
    path = tmp_path / "x.bin"
    write_atomic(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CannotSave, match="5000 bytes"):
            write_atomic(path, b"n" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_trees_of_tensors_round_trip(tmp_path):
    shared = torch.arange(4.0)
    tree = {"a": [shared, shared[:2], {"b": None, 3: torch.tensor(2)}], "c": {0: 1.5, "d": "text"}, "e": []}
    save_tree(tmp_path / "t.safetensors", tree)
    back = load_tree(tmp_path / "t.safetensors")
    assert back["a"][1].tolist() == [0.0, 1.0]
    assert back["a"][2][3] == 2
    assert back["c"] == tree["c"]
    assert back["e"] == []


def test_sample_weights_reach_the_learner(data):
    heavy = data.train.x[:, 0] > data.train.x[:, 0].median()
    weighted = dataclasses.replace(data, train=dataclasses.replace(data.train, weight=heavy.float()))
    plain = dataclasses.replace(data, train=data.train[heavy])
    a = fit(weighted, NoisyGaussian, steps=800, options={"noise": 0.0}).model.mean
    b = fit(plain, NoisyGaussian, steps=800, options={"noise": 0.0}).model.mean
    assert torch.allclose(a, b, atol=0.3)
