"""The training loop's promises: budgets, exact resume, equal processes, no silent NaN, no half-written file."""

import dataclasses
import itertools
import json
import math
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from pofx.core.errors import (
    CannotSave,
    CorruptCheckpoint,
    Diverged,
    NewerFormat,
    NoRun,
    OlderFormat,
    RunExists,
    UsageError,
)
from pofx.core.files import write_atomic
from pofx.core.learner import Stepper
from pofx.core.registry import family
from pofx.data import chains, synthetic
from pofx.data.parts import Data, Part
from pofx.spaces import Image
from pofx.testing.wrong import Moments
from pofx.train import compiling
from pofx.train.checkpoint import load_tree, save_tree
from pofx.train.compiling import COUNT, FIRST, told
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


def test_seconds_bound_the_fit(data, monkeypatch):
    """By a clock that every look moves on by a hundredth of a second."""
    ticks = itertools.count()
    monkeypatch.setattr("pofx.train.loop.time", SimpleNamespace(perf_counter=lambda: next(ticks) / 100))
    run = fit(data, NoisyGaussian, seconds=1.0)
    assert 1.0 <= run.seconds < 1.1
    assert 10 < run.steps < 100
    assert run.status == "finished"


@pytest.mark.parametrize("budget", [{"seconds": 0}, {"steps": -3}, {"seconds": math.inf}, {"steps": 3, "epochs": 1}])
def test_impossible_budgets_are_named(data, budget):
    with pytest.raises(UsageError, match=next(iter(budget), "budget")):
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


def test_the_last_weights_are_kept_where_the_recipe_says_so(data):
    """Of the same fit, whose last weights are not its best ones."""
    how = {"steps": 200, "checks": 10}
    best, last = (
        fit(data, NoisyGaussian, recipe={"lr": 3.0, "schedule": "constant", "keep": keep}, **how)
        for keep in ("best", "last")
    )
    valid = [e["valid"] for e in last.log if e.get("valid") is not None]
    assert [e["valid"] for e in best.log if e.get("valid") is not None] == valid
    assert valid[-1] < max(valid) - 1e-3
    for run, number in ((best, max(valid)), (last, valid[-1])):
        assert float(run.model.log_prob(data.valid.x).nats.detach().mean()) == pytest.approx(number, abs=1e-4)


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
    """Cut off by force at some step after the first save, a resumed fit ends in the weights of an undisturbed one."""
    budget = {"steps": 3000, "recipe": {"ema": 0.99}, "seed": 3}
    undisturbed = fit(data, NoisyGaussian, **budget)
    saved = tmp_path / "run" / "resume.safetensors"
    code = (
        "import os, pathlib, signal, torch; torch.set_num_threads(1)\n"
        "from toys import NoisyGaussian, gaussian_data\nfrom pofx.core.learner import GradientLearner\n"
        "from pofx.train.fit import fit\nstep = GradientLearner.step\n"
        "def killed(self, batch, generator):\n"
        f"    if batch.step >= 1234 and pathlib.Path({str(saved)!r}).exists():\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, batch, generator)\n"
        "GradientLearner.step = killed\n"
        f"fit(gaussian_data(), NoisyGaussian, out={str(tmp_path / 'run')!r}, save_every=0.05, **{budget!r})"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=HERE, check=False)
    assert child.returncode == -signal.SIGKILL
    assert 0 < load_tree(saved)["state"]["step"] < 3000
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


def test_training_saved_by_an_older_version_is_named(data, tmp_path):
    """It held the state of one optimizer where a list is kept now; the weights are still read."""
    fit(data, NoisyGaussian, steps=5, out=tmp_path / "run")
    saved = tmp_path / "run" / "resume.safetensors"
    tree = load_tree(saved)
    (only,) = tree["learner"]["optimizer"]
    save_tree(saved, tree | {"learner": {"optimizer": only}})
    with pytest.raises(OlderFormat, match="one optimizer.*list of 1.*Fit again"):
        resume(tmp_path / "run", data=data)
    assert read_run(tmp_path / "run").steps == 5
    for states in ([], [{"state": {}}], [only | {"param_groups": []}]):
        save_tree(saved, tree | {"learner": {"optimizer": states}})
        with pytest.raises(CorruptCheckpoint, match="optimizers do not fit"):
            resume(tmp_path / "run", data=data)


def test_two_processes_compute_what_one_does(tmp_path):
    """Equal within rounding, with noise in every step and weighted rows; they part before they end."""
    data = gaussian_data(weight=True)
    one = fit(data, NoisyGaussian, steps=40, out=tmp_path / "one")
    code = (
        "import torch.distributed\nfrom toys import NoisyGaussian, gaussian_data\nfrom pofx.train import fit as train\n"
        "in_process = train._in_process\n"
        "def parted(*what):\n    in_process(*what)\n    assert not torch.distributed.is_initialized()\n"
        "train._in_process = parted\n"
        "if __name__ == '__main__':\n"
        "    data = gaussian_data(weight=True)\n"
        f"    train.fit(data, NoisyGaussian, steps=40, processes=2, out={str(tmp_path / 'two')!r})"
    )
    (tmp_path / "two.py").write_text(code)
    env = os.environ | {"PYTHONPATH": os.pathsep.join((HERE, os.environ.get("PYTHONPATH", "")))}
    subprocess.run([sys.executable, str(tmp_path / "two.py")], check=True, env=env)
    two = read_run(tmp_path / "two")
    assert torch.allclose(weights(one), weights(two), atol=1e-5)
    assert not torch.equal(weights(one), weights(fit(data, NoisyGaussian, steps=40, seed=1)))


def test_the_error_of_one_process_is_told_not_that_others_lost_it(tmp_path):
    (tmp_path / "two.py").write_text(
        "from toys import NoisyGaussian, gaussian_data\nfrom pofx.train.fit import fit\n"
        "from pofx.train.loop import Loop\nrun = Loop.run\n"
        "def failing(self, *what):\n    assert self.fabric.global_rank == 0, 'the second fails'\n"
        "    return run(self, *what)\n"
        "Loop.run = failing\n"
        "if __name__ == '__main__':\n    fit(gaussian_data(), NoisyGaussian, steps=40, processes=2)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join((HERE, os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run([sys.executable, str(tmp_path / "two.py")], env=env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("AssertionError: the second fails")


def test_torchrun_on_two_nodes_computes_what_one_process_does(tmp_path):
    """Two launchers stand for two machines. The first process alone writes; another number than theirs is named."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "fit.py").write_text(
        "import os, sys\n"
        "from toys import NoisyGaussian, gaussian_data\nfrom pofx.core.errors import UsageError\n"
        "from pofx.train.fit import fit\n"
        "place = sys.argv[1] + os.environ['RANK']\n"
        "try:\n    fit(gaussian_data(100), NoisyGaussian, steps=1, processes=3)\n"
        "except UsageError as error:\n    print(error)\n"
        "run = fit(gaussian_data(weight=True), NoisyGaussian, steps=5, out=place)\n"
        "print(run.model.mean.tolist())\n"
    )
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "pofx"]
    where = ["--rdzv-endpoint", f"127.0.0.1:{port}", str(tmp_path / "fit.py"), str(tmp_path / "run")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join((HERE, os.environ.get("PYTHONPATH", "")))}
    start = [sys.executable, "-m", "torch.distributed.run", *nodes, *where]
    launchers = [subprocess.Popen(start, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].splitlines() for process in launchers]
    assert [process.returncode for process in launchers] == [0, 0]
    assert printed[0] == printed[1]
    assert printed[0][0].startswith("torchrun has started 2 processes; 3 were asked for.")
    assert (tmp_path / "run0" / "weights.safetensors").exists()
    assert not (tmp_path / "run1").exists()
    one = fit(gaussian_data(weight=True), NoisyGaussian, steps=5)
    assert torch.allclose(weights(one), weights(read_run(tmp_path / "run0")), atol=1e-6)


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
        with pytest.raises(CannotSave, match="Could not write .*x.bin.*Free some space"):
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


# ------------------------------------------------------------------------------------------------- precision


def images(space, sizes=(200, 20, 20)):
    draws = (torch.randint(space.levels, (n, *space.event_shape), generator=seeded(n)) for n in sizes)
    return Data("images", "memory", space, *(Part(x.to(space.dtype)) for x in draws))


def texts():
    source = chains.strings()
    return Data("texts", "memory", source.space, *(Part(source.sample(n, seeded(n))) for n in (300, 20, 20)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("gpt", {"optimizer": "muon"}),
        ("gpt", {"optimizer": "adam"}),
        ("wavenet", {}),
        ("rnn", {}),
        ("image-gpt", {"optimizer": "muon"}),
        ("pixelcnn++", {}),
        ("vae", {}),
        ("gan", {}),
    ],
)
def test_bfloat16_is_of_the_nets_passes_alone(name, recipe, tmp_path, monkeypatch):
    """Near the losses of float32 but not on them; gradients, weights, losses and scores are no shorter than float32."""
    cls, dtypes = family(name), set()
    if name == "gan":
        data = gaussian_data()
    else:
        data = texts() if name in ("gpt", "wavenet", "rnn") else images(Image(4, 4, 3, 256))
    add = Stepper.add

    def watched(self, terms, batch, runtime):
        dtypes.update(t.dtype for t in terms.values())
        assert not torch.is_autocast_enabled("cpu")
        return add(self, terms, batch, runtime)

    monkeypatch.setattr(Stepper, "add", watched)
    known = {"options": vars(cls.tiny(data.space)), "steps": 4, "checks": 1, "recipe": {"warmup": 0} | recipe}
    plain = fit(data, name, **known)
    short = fit(data, name, **known, precision="bf16-mixed", out=tmp_path / "run")
    losses = [run.log[-1]["loss"] for run in (plain, short)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert not torch.equal(weights(plain), weights(short))
    assert dtypes <= {torch.float32, torch.float64}
    assert {p.dtype for p in short.model.parameters()} == {torch.float32}
    if name == "gan":
        return
    nats = short.model.log_prob(data.test.x).nats
    assert nats.dtype == torch.float64
    assert nats.isfinite().all()
    assert torch.equal(nats, read_run(tmp_path / "run").model.log_prob(data.test.x).nats)


@pytest.mark.parametrize("given", [{"precision": "16-mixed"}, {"compile": "always"}])
def test_what_is_not_offered_is_named(data, given):
    ((key, value),) = given.items()
    with pytest.raises(UsageError, match=f"{key}='{value}' is not offered.*Give"):
        fit(data, NoisyGaussian, steps=1, **given)


# ------------------------------------------------------------------------------------------------- compiling


@pytest.fixture
def quick(monkeypatch):
    """Any budget is long enough, and graphs are traced but not turned into C++, which would take a minute."""
    compiler = torch.compile
    monkeypatch.setattr(compiling, "LEAST", 0.0)
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="eager"))


def clocked(monkeypatch, eager, compiled):
    """Steps seem to take so many seconds each: the clock is read before and after each of them."""
    steps = [eager] * (FIRST + COUNT) + [compiled] * (FIRST + COUNT)
    passing = itertools.chain(*((0.0, s) for s in steps), itertools.repeat(0.0))
    times = itertools.accumulate(passing)
    monkeypatch.setattr(compiling, "perf_counter", lambda: next(times))


@pytest.mark.parametrize("name", ["gpt", "toy"])
def test_compiled_steps_are_the_same_training(name, data, tmp_path, quick, monkeypatch):
    if name == "gpt":
        data, cls = texts(), family("gpt")
    else:
        cls = NoisyGaussian
    clocked(monkeypatch, 0.02, 0.01)
    known = {"steps": 32, "checks": 16, "valid_rows": 8, "options": vars(cls.tiny(data.space))}
    plain, auto = fit(data, cls, **known), fit(data, cls, **known, compile="auto", out=tmp_path / "run")
    assert "compiled steps kept" in told(auto.log)
    assert [e["loss"] for e in auto.log] == pytest.approx([e["loss"] for e in plain.log], abs=1e-4)
    assert list(auto.model.state_dict()) == list(plain.model.state_dict())
    kept = load_tree(tmp_path / "run" / "resume.safetensors")
    assert list(kept["weights"]) == list(plain.model.state_dict())
    assert told(read_run(tmp_path / "run").log) == told(auto.log)
    assert told(plain.log) == ""


def test_a_compiled_fit_resumes(data, tmp_path, quick, monkeypatch):
    """Cut off while compiled steps are taken, it goes on with a trial of its own."""
    known = {"steps": 60, "compile": "auto", "save_every": 0.0, "checks": 3}

    class Cut(Exception):
        pass

    def cut(entry):
        if entry["step"] == 40 and "valid" in entry:
            raise Cut

    clocked(monkeypatch, 0.02, 0.01)
    with pytest.raises(Cut):
        fit(data, NoisyGaussian, **known, out=tmp_path / "run", progress=cut)
    assert load_tree(tmp_path / "run" / "resume.safetensors")["state"]["step"] == 40
    clocked(monkeypatch, 0.02, 0.01)
    resumed = resume(tmp_path / "run", data=data)
    assert resumed.steps == 60
    assert torch.allclose(weights(resumed), weights(fit(data, NoisyGaussian, steps=60)), atol=1e-4)


@pytest.mark.parametrize(("eager", "compiled"), [(0.02, 0.01), (0.01, 0.02)])
def test_the_faster_steps_are_kept(data, monkeypatch, eager, compiled):
    calls = []

    def compiler(objective):
        def wrapped(*args):
            calls.append(1)
            return objective(*args)

        return wrapped

    monkeypatch.setattr(compiling, "LEAST", 0.0)
    monkeypatch.setattr(torch, "compile", compiler)
    clocked(monkeypatch, eager, compiled)
    run = fit(data, NoisyGaussian, steps=40, compile="auto", checks=4)
    (found,) = [e["compile"] for e in run.log if "compile" in e]
    kept = "compiled" if compiled < eager else "eager"
    assert found == pytest.approx({"kept": kept, "eager": 1e3 * eager, "compiled": 1e3 * compiled,
                                   "seconds": 0.0, "why": ""})  # fmt: skip
    figures = f"eager {1e3 * eager:.2f} ms/step, compiled {1e3 * compiled:.2f} ms/step, 0.0 s spent compiling"
    assert told(run.log) == f"{kept} steps kept; {figures}"
    assert len(calls) == (40 - FIRST - COUNT if kept == "compiled" else FIRST + COUNT)


@pytest.mark.parametrize("when", ["at once", "in a step", "in the step back"])
def test_a_compiler_that_fails_is_done_without(data, monkeypatch, when):
    def compiler(objective):
        if when == "at once":
            raise RuntimeError("no C++ compiler\nlong story")

        def broken(batch, generator):
            torch.rand(3, generator=generator)  # draws that the repeated step must not feel
            if when == "in a step":
                raise RuntimeError("no C++ compiler")
            terms = objective(batch, generator)
            terms["loss"].register_hook(lambda g: (_ for _ in ()).throw(RuntimeError("no C++ compiler")))
            return terms

        return broken

    monkeypatch.setattr(compiling, "LEAST", 0.0)
    monkeypatch.setattr(torch, "compile", compiler)
    run = fit(data, NoisyGaussian, steps=30, compile="auto")
    assert told(run.log).startswith("eager steps kept; compiling failed (RuntimeError: no C++ compiler); eager ")
    assert torch.equal(weights(run), weights(fit(data, NoisyGaussian, steps=30)))


@pytest.mark.parametrize(
    ("model", "budget", "why"),
    [
        (NoisyGaussian, {"steps": 20}, "tried with 240 s or more"),
        (NoisyGaussian, {"steps": 5}, "the fit ended before"),
        (NoisyGaussian, {"seconds": 1.0}, "^eager steps kept; [01] s were left"),
        (Moments, {"epochs": 1}, "only families with one objective"),
    ],
)
def test_why_nothing_was_compiled_is_said(data, monkeypatch, model, budget, why):
    monkeypatch.setattr(torch, "compile", None)
    run = fit(data, model, **budget, compile="auto")
    assert re.search(why, told(run.log))


def test_an_error_of_the_step_itself_is_not_the_compilers(data, monkeypatch):
    monkeypatch.setattr(compiling, "LEAST", 0.0)
    monkeypatch.setattr(torch, "compile", lambda objective: objective)
    with pytest.raises(Diverged, match="step 20"):
        fit(data, NoisyGaussian, steps=30, options={"blow_up": 20}, compile="auto")
