"""Fits of several stages and models inside models: shares of one budget, exact resume, files, the true bound."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pofx.cli import main
from pofx.core.errors import OlderFormat, Unsupported, UsageError
from pofx.core.learner import RowDataset, Stage
from pofx.core.likelihood import Exact
from pofx.core.nested import nested, spelled
from pofx.core.requests import Elbo, Iwae
from pofx.data import synthetic
from pofx.data.parts import Data, Part
from pofx.families.flow import RealNvp
from pofx.families.posteriors import Gaussian, LatentSet
from pofx.families.vae import Vae, VaeConfig
from pofx.spaces import Real, Reals, Table
from pofx.testing.wrong import Holder
from pofx.train.checkpoint import load_tree, write_sealed
from pofx.train.fit import fit, resume
from pofx.train.run import read_info, read_run, standing
from pofx.train.stages import Limit, State, overall
from toys import NoisyGaussian, gaussian_data

HERE = os.path.dirname(__file__)
FLOW = "realnvp:layers=2,hidden=16,blocks=1"
SMALL = {"latent": 2, "hidden": 16, "draws": 8}
AFTER = SMALL | {"prior": FLOW, "prior_share": 0.25}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return gaussian_data()


def weights(run):
    return torch.cat([p.flatten().double() for p in run.model.state_dict().values()]).nan_to_num(-99.0)


def untimed(log):
    return [{k: v for k, v in e.items() if k != "seconds"} for e in log]


class Thirds(NoisyGaussian):
    """Its mean, its scale, then both, each in a third of the budget, with batches of several sizes."""

    name = "thirds"

    def stages(self, recipe):
        def stage(name, batch, trained):
            return Stage(name, dataclasses.replace(recipe, batch=batch), lambda: self.of(trained, recipe), 1 / 3)

        return [stage("mean", 50, [0]), stage("scale", 100, [1]), stage("both", 200, [0, 1])]

    def of(self, trained, recipe):
        learner = self.learner(recipe)
        chosen = [[self.mean, self.log_scale][i] for i in trained]
        learner.stepper = dataclasses.replace(learner.stepper, parameters=chosen)
        return learner


# -- shares of one budget ---------------------------------------------------------------------------------------------


def ends(run):
    """The last step of each stage."""
    return [[e["step"] for e in run.log if e["stage"] == name][-1] for name in ("mean", "scale", "both")]


def test_stages_share_a_budget_in_steps_and_epochs(data):
    assert len(data.train) == 1000
    assert ends(fit(data, Thirds, steps=30)) == [10, 20, 30]
    assert ends(fit(data, Thirds, steps=3)) == [1, 2, 3]
    # two epochs each, of as many steps as the stage's own batches need
    assert ends(fit(data, Thirds, epochs=6)) == [40, 60, 70]


def test_stages_share_a_budget_in_seconds(data, monkeypatch):
    """By a clock that every look moves on by a thousandth of a second."""
    ticks = itertools.count()
    monkeypatch.setattr("pofx.train.loop.time", SimpleNamespace(perf_counter=lambda: next(ticks) / 1000))
    run = fit(data, Thirds, seconds=0.9, checks=1)
    times = [[e["seconds"] for e in run.log if e["stage"] == name][-1] for name in ("mean", "scale", "both")]
    for time, due in zip(times, (0.3, 0.6, 0.9), strict=True):
        assert due <= time < due + 0.02


def test_what_a_stage_leaves_of_its_share_the_next_has():
    stages = [Stage("a", None, None, 0.5), Stage("b", None, None, 0.25), Stage("c", None, None, 0.25)]
    early = State(step=10, stage=1, begun=10)
    assert Limit(steps=100).progress(dataclasses.replace(early, step=75), stages, 1) == 1
    assert Limit(steps=100).progress(dataclasses.replace(early, step=42), stages, 1) == pytest.approx(32 / 65)
    assert overall(early, stages, 0.5) == 0.625
    late = State(step=3, seconds=9.0, stage=1, begun=2, begun_at=8.0)
    assert Limit(seconds=10.0).progress(late, stages, 1) >= 1  # the first took all; one step is taken all the same
    assert Limit(seconds=10.0).left(dataclasses.replace(late, stage=2), stages, 1, 5.0) == 1.0


def test_each_stage_moves_its_own_weights_from_the_best_of_the_one_before(data):
    start = fit(data, NoisyGaussian, steps=1, recipe={"lr": 1e-12})
    run = fit(data, Thirds, steps=60, until=1.0)
    assert not torch.allclose(run.model.mean, start.model.mean, atol=0.1)
    one = fit(data, Thirds, steps=2_000, recipe={"lr": 0.02})
    assert torch.allclose(one.model.mean, data.train.x.mean(0).float(), atol=0.1)


def test_impossible_stages_and_budgets_are_named(data):
    with pytest.raises(UsageError, match="2 step.*mean and scale and both"):
        fit(data, Thirds, steps=2)
    target = NoisyGaussian(NoisyGaussian.Config(), data.space)
    with pytest.raises(Unsupported, match="stages mean and scale and both"):
        fit(data, Thirds, steps=30, target=target, target_weight=0.1)

    class Twice(Thirds):
        def stages(self, recipe):
            return super().stages(recipe)[:2]

    with pytest.raises(UsageError, match="mean 0.333333, scale 0.333333"):
        fit(data, Twice, steps=30)


def test_patience_ends_a_stage_not_the_fit(data):
    run = fit(data, Thirds, steps=3000, recipe={"lr": 3.0, "schedule": "constant"}, checks=100, patience=3)
    assert {e["stage"] for e in run.log} == {"mean", "scale", "both"}
    assert run.steps < 3000


# -- what a run folder holds, and exact resume ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def after(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("stages") / "run"
    return fit(data, "vae", steps=40, options=AFTER, checks=8, out=path, seed=3)


def test_a_run_folder_tells_stages_and_parts(after, data):
    info, read = read_info(after.path), read_run(after.path)
    part = info["parts"]["prior.model"]
    assert (part["family"], part["space"]) == ("realnvp", {"space": "reals", "shape": [2]})
    assert part["options"]["layers"] == 2
    assert part["options"]["linear_up_to"] == 1024  # a default, which a later version may change
    stages = [e["stage"] for e in read.log]
    assert stages == sorted(stages)
    assert [e["step"] for e in read.log if e["stage"] == "autoencoder"][-1] == 30
    # the prior is validated by its exact density of codes, the whole by its bound, the last number of which counts
    assert {e["kind"] for e in read.log if "stage_valid" in e} == {"Exact"}
    assert all(("valid" in e) != ("stage_valid" in e) for e in read.log)
    assert read.log[-1].keys() >= {"valid", "status"}
    assert read.model.prior.fitted
    x = data.test.x[:50]
    for a, b in ((after.model, read.model), (after.model.prior.model, read.model.prior.model)):
        z = x if a is after.model else a.sample(50)
        assert torch.equal(a.log_prob(z).nats, b.log_prob(z).nats)
    with torch.no_grad():
        assert float(read.model.given().log_prob(data.valid.x, request=Iwae(draws=8)).nats.mean()) == pytest.approx(
            read.log[-1]["valid"], abs=0.2
        )


def test_parts_of_another_version_are_named(after, tmp_path):
    info = read_info(after.path)
    info["parts"]["prior.model"]["options"]["linear_up_to"] = 512
    for name in ("weights.safetensors", "log.jsonl"):
        (tmp_path / name).write_bytes((after.path / name).read_bytes())
    write_sealed(tmp_path / "config.json", info)
    with pytest.raises(OlderFormat, match="its parts were"):
        read_run(tmp_path)


@pytest.mark.parametrize("until", [0.4, 0.75, 0.9])
def test_a_fit_goes_on_in_any_stage(after, data, tmp_path, until):
    """In the first, at the border, in the second: the same bits, and the same log."""
    path = tmp_path / "run"
    part = fit(data, "vae", steps=40, options=AFTER, checks=8, out=path, seed=3, until=until)
    assert part.status == "unfinished"
    assert load_tree(path / "resume.safetensors")["state"]["stage"] == int(until >= 0.75)
    assert ("stage prior" if until >= 0.75 else "stage autoencoder") in standing(part.info, part.log, path)
    assert part.model.log_prob(data.test.x[:20]).nats.isfinite().all()  # whatever is there is a model
    assert bool(part.model.prior.fitted) == (until >= 0.75)
    done = resume(path, data=data)
    assert torch.equal(weights(done), weights(after))
    assert untimed(done.log) == untimed(after.log)
    again = resume(path, data=data)
    assert untimed(again.log) == untimed(after.log)


@pytest.mark.parametrize("step", [17, 35])
def test_a_fit_killed_in_any_stage_resumes_to_the_same_bits(after, data, tmp_path, step):
    code = (
        "import os, signal, torch; torch.set_num_threads(1)\n"
        "from toys import gaussian_data\nfrom pofx.train.loop import Loop\nfrom pofx.train.fit import fit\n"
        "guard = Loop._guard\n"
        "def killed(self, terms):\n"
        f"    if self.state.step == {step}:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    guard(self, terms)\n"
        "Loop._guard = killed\n"
        f"fit(gaussian_data(), 'vae', steps=40, options={AFTER!r}, checks=8, out={str(tmp_path / 'run')!r}, seed=3,"
        " save_every=0.001)"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=HERE, check=False)
    assert child.returncode == -signal.SIGKILL
    assert load_tree(tmp_path / "run" / "resume.safetensors")["state"]["step"] == step
    done = resume(tmp_path / "run", data=data)
    assert torch.equal(weights(done), weights(after))
    assert untimed(done.log) == untimed(after.log)


def test_two_processes_compute_what_one_does_in_every_stage(tmp_path):
    one = fit(gaussian_data(), "vae", steps=12, options=AFTER, out=tmp_path / "one")
    code = (
        "from toys import gaussian_data\nfrom pofx.train.fit import fit\n"
        "if __name__ == '__main__':\n"
        f"    fit(gaussian_data(), 'vae', steps=12, options={AFTER!r}, processes=2, out={str(tmp_path / 'two')!r})"
    )
    (tmp_path / "two.py").write_text(code)
    env = os.environ | {"PYTHONPATH": os.pathsep.join((HERE, os.environ.get("PYTHONPATH", "")))}
    subprocess.run([sys.executable, str(tmp_path / "two.py")], check=True, env=env)
    assert torch.allclose(weights(one), weights(read_run(tmp_path / "two")), atol=1e-4)


def test_a_later_stage_may_sweep_over_its_whole_training_set(data):
    """Moments of rows that the stage makes: the second half, doubled."""

    class Second(Holder):
        def rows(self, x):
            return Halves(x)

    class Halves(RowDataset):
        def __len__(self):
            return len(self.x) // 2

        def __getitem__(self, index):
            return 2 * self.x[self.owner(index)]

        def owner(self, index):
            return index + len(self.x) // 2

    model = fit(data, Second, steps=2).model
    assert torch.allclose(model.part.mean, 2 * data.train.x[500:].mean(0))


# -- parts ------------------------------------------------------------------------------------------------------------


def test_a_part_is_spelt_in_one_option():
    assert spelled("nsf") == ("nsf", {})
    assert spelled("nsf:layers=3, kind=coupling,x=1.5,y=True,z=(1, 2)") == (
        "nsf", {"layers": 3, "kind": "coupling", "x": 1.5, "y": True, "z": (1, 2)},
    )  # fmt: skip
    assert nested("nsf:layers=3", Reals((2,))).config.layers == 3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prior": "nfs"}, UsageError, "'nfs'. Did you mean nsf"),
        ({"prior": "nsf:layer=3"}, UsageError, "nsf as a part.*'layer'.*layers"),
        ({"prior": "nsf:layers=0"}, UsageError, "layers is 0"),
        ({"prior": "nsf:layers"}, UsageError, "no OPTION=VALUE"),
        ({"prior": "nsf:draws=3"}, Unsupported, "nsf as a part.*draws=3 changes nothing"),
        ({"prior": "pixelcnn"}, Unsupported, "pixelcnn as a part.*models images"),
        ({"prior": "ddpm"}, Unsupported, "no exact density"),
        ({"prior": "mixture:component=3"}, UsageError, "'component'.*components"),
        ({"prior": "normal:x=3"}, UsageError, "'x'"),
        ({"prior": "mixture", "prior_share": 0.3}, UsageError, "no stage of its own"),
        ({"prior_share": 0.3}, UsageError, "no stage of its own"),
    ],
)
def test_impossible_parts_are_named(data, options, error, words):
    with pytest.raises(error, match=words):
        fit(data, "vae", steps=1, options=options)


def test_parts_count_in_the_whole():
    torch.manual_seed(0)
    table = Table((Real("a"), Real("b")))
    plain, whole = (Vae(VaeConfig(latent=2, hidden=16, prior=p), table) for p in ("normal", FLOW))
    (part,) = whole.parts().values()
    assert isinstance(part, RealNvp)
    assert part.parts() == {}
    assert whole.parameter_count() == plain.parameter_count() + part.parameter_count()


# -- the prior of a vae -----------------------------------------------------------------------------------------------


def test_the_density_of_a_family_as_prior_is_one(after):
    """Summed over a grid; its samples have its moments; the density of each dimension is roughly its own."""
    prior = after.model.prior
    axis = torch.linspace(-9, 9, 361)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = prior.log_prob(z).double().exp() * 0.05**2
        assert float(p.sum()) == pytest.approx(1, abs=0.01)
        drawn, mean = prior.sample(20_000, torch.Generator().manual_seed(0)), (p[:, None] * z).sum(0)
        assert torch.allclose(drawn.mean(0).double(), mean, atol=0.05)
        marginal = p.view(361, 361).sum(1) / 0.05
        told = prior.log_marginals(torch.stack([axis, axis], 1))[:, 0].exp()
    assert float((marginal - told).abs().sum() * 0.05) < 0.2


def test_until_it_is_fitted_the_standard_normal_stands_in(data):
    torch.manual_seed(0)
    model, plain = (Vae(VaeConfig(**o), data.space) for o in (AFTER, SMALL))
    z = torch.randn(7, 3, 2)
    assert torch.equal(model.prior.log_prob(z), plain.prior.log_prob(z))
    assert torch.equal(*(m.prior.divergence(z[:, 0], z[:, 1]) for m in (model, plain)))
    assert torch.equal(*(m.prior.sample(5, torch.Generator().manual_seed(1)) for m in (model, plain)))


def test_elbo_and_iwae_with_a_flow_prior_are_bounds(after, data):
    """By an importance sample of the prior itself, with no encoder: log E_p(z)[p(x | z)]."""
    model, x = after.model, data.test.x[:40]
    with torch.no_grad():
        z = model.prior.sample(40_000, torch.Generator().manual_seed(2))
        log_p = model.heads.log_prob(model.decode(z[None], None), x[:, None]).sum(-1)
        truth = log_p.double().logsumexp(1) - math.log(len(z))
        elbo, iwae = (model.log_prob(x, request=kind(draws=256)) for kind in (Elbo, Iwae))
    assert (elbo.nats < truth + 4 * elbo.mc_se + 0.05).all()
    gap = (truth - iwae.nats).mean()
    assert abs(float(gap)) < 4 * float(iwae.mc_se.mean()) + 0.05


def test_codes_are_drawn_anew_in_every_epoch():
    codes = LatentSet(Gaussian(2), torch.cat([torch.zeros(500, 2), torch.full((500, 2), math.log(3.0))], 1))
    first = codes[torch.arange(500)]
    codes.set_epoch(1)
    second = codes[torch.arange(500)]
    assert abs(float(torch.cat([first, second]).std()) - 3) < 0.2
    assert not torch.equal(first, second)
    codes.set_epoch(0)
    assert torch.equal(first, codes[torch.arange(500)])


def test_a_prior_fitted_after_raises_the_bound_of_the_same_autoencoder():
    """Two far blobs in one dimension: their codes are no standard normal."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 2, generator=generator, dtype=torch.float64) * 0.1
    x[::2] += 3
    space = Table((Real("a"), Real("b")))
    rows = Data("blobs", "blobs", space, *(Part(x[i::3]) for i in range(3)))
    options = SMALL | {"prior": "nsf:layers=2,hidden=16,blocks=1,bins=4", "prior_share": 0.3, "components": 1}
    run = fit(rows, "vae", steps=700, options=options, recipe={"ema": 0.9}, checks=4)
    before = [e["valid"] for e in run.log if e["stage"] == "autoencoder"][-1]
    assert run.log[-1]["valid"] > before + 0.02


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_fits_resumes_and_tells(tmp_path, capsys):
    table, run = tmp_path / "t.csv", tmp_path / "run"
    x = synthetic.gaussian(2).sample(300, torch.Generator().manual_seed(0))
    table.write_text("a,b\n" + "".join(f"{a:.9f},{b:.9f}\n" for a, b in x.tolist()))
    words = ["fit", str(table), "vae", "--options.latent", "2", "--options.hidden", "16", "--steps", "12"]
    more = ["--options.prior", FLOW, "--options.prior-share", "0.25", "--out", str(run), "--json"]
    assert main([*words, *more]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "finished"
    assert told["parameters"] == read_run(run).model.parameter_count()
    assert main(["resume", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["nats"] == told["test"]["nats"]
    assert main(["log-prob", str(run), str(table), "--json"]) == 0
    assert main(["sample", str(run), "3", "--quiet"]) == 0
    assert main([*words, "--options.prior", "realnvp:layer=2", "--out", str(tmp_path / "other")]) == 2
    assert "realnvp as a part" in capsys.readouterr().err
    assert not Path(tmp_path / "other").exists()


def test_a_prior_trained_with_the_rest_is_one_stage(data):
    run = fit(data, "vae", steps=30, options=SMALL | {"prior": FLOW}, checks=3)
    assert all("stage" not in e for e in run.log)
    model = run.model.prior.model
    assert isinstance(model.log_prob(torch.zeros(1, 2)), Exact)
