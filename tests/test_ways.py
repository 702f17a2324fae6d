"""What a comparison and its page show of models that go from noise to data, against closed forms and slow twins."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pofx.core.errors import Unsupported, UsageError
from pofx.core.model import Model
from pofx.core.registry import family
from pofx.core.requests import DpmSolver, Elbo, FewStep
from pofx.core.space import Space
from pofx.data.parts import Data, Part
from pofx.evaluate import paths as measured
from pofx.evaluate.compare import compare
from pofx.evaluate.likelihood import mean_log_prob
from pofx.evaluate.two_sample import C2st
from pofx.report import paths, plots
from pofx.report.build import build
from pofx.spaces import Image, Label, Real, Table
from pofx.train.run import read_run

PLANE = Table((Real("a"), Real("b")))
DIGITS, CLASSES = Image(4, 4, 1, 4), Label(("one", "two", "<three>"))


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def of(name: str, x: Tensor, space: Space = PLANE, context: Space | None = None, **options: object) -> Model:
    """A model as it is before its first step: a path of the Gaussian that fits x."""
    cls = family(name)
    model = cls(cls.Config(**options), space, context)
    c = None if context is None else torch.arange(len(x)) % len(context.values)
    model.prepare(x, c, None, gen())
    return model.requires_grad_(False).eval()


# -- what is measured ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["exploding", "linear"])
def test_ways_of_a_gaussian_only_stretch(schedule: str) -> None:
    """Along the probability flow of N(m, C) each axis of z / sqrt(a^2 + s^2) is as wide as its noise and data are."""
    x = normal(400, 2) @ torch.tensor([[2.0, 1.5], [0.0, 0.4]]).double() + 3
    model = of("vdm", x, schedule=schedule, sample_steps=100)
    found = model.given().trajectories(50, generator=gen(1))
    assert found.shape[1:] == (50, 2)
    y = torch.stack([model.split(frame).y.double() for frame in found])
    axes, variance = model.gaussian.factors[0], model.gaussian.variance
    p = model.schedule(model.schedule.grid("schedule", 100))
    width = ((variance * p.alpha[:, None] ** 2 + p.sigma[:, None] ** 2).sqrt() / p.scale[:, None])[: len(y) - 1]
    along = (y[:-1] - (p.alpha / p.scale)[: len(y) - 1, None, None] * model.gaussian.mean) @ axes
    assert torch.allclose(along, width[:, None] * (along[0] / width[0]), atol=0.02)
    assert torch.equal(found[-1], model.sample(50, generator=gen(1)))


def test_ways_have_the_shape_of_their_contexts() -> None:
    x = normal(90, 2)
    model = of("flow-matching", x, context=CLASSES, sample_steps=6)
    found = model.given([[0, 1], [0, 2]]).trajectories(3, generator=gen())
    assert found.shape[1:] == (3, 2, 2, 2)
    with pytest.raises(UsageError, match="1 or more"):
        model.given([0]).trajectories(0)
    with pytest.raises(Unsupported, match=r"vdm goes no way .* needs complete real columns"):
        of("vdm", torch.zeros(20, 1, 4, 4, dtype=torch.uint8) + torch.arange(4).byte(), DIGITS).given().trajectories(1)


def test_ways_of_a_model_with_a_student_are_its_teachers() -> None:
    model = of("vdm", normal(60, 2), student="consistency", sample_steps=8)
    model.begun.fill_(True)
    assert isinstance(model.default_sampler(), FewStep)
    found = model.given().trajectories(5, generator=gen(2))
    assert torch.equal(found[-1], model.sample(5, generator=gen(2), sampler=DpmSolver))
    assert len(found) > 5


def test_the_terms_of_an_elbo() -> None:
    x = normal(40, 2)
    model = of("vae", x, latent=3, hidden=16)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=gen(3))
    found = model.given().bound_terms(x, generator=gen(1))
    whole = model.log_prob(x, request=Elbo, generator=gen(1))
    assert torch.allclose(found["prior"].nats + found["reconstruction"].nats, whole.nats)
    q = model.given().encode(x).base_dist
    assert torch.allclose(found["prior"].nats, -kl_divergence(q, Normal(0.0, 1.0)).sum(1).double(), atol=1e-5)
    assert torch.allclose(found["reconstruction"].mc_se, whole.mc_se)
    with pytest.raises(UsageError, match="Ask for Elbo"):
        model.given().bound_terms(x, request=model.default_request())


def test_the_terms_are_those_of_the_likelihood() -> None:
    x = normal(200, 2)
    model = of("vdm", x, draws=4)
    part = Part(x[:70])
    found = measured.bound_terms(model, part, gen(5), 60.0)
    lik = mean_log_prob(model, part, generator=gen(5))
    assert (found["n"], found["request"]) == (70, "vlb")
    assert found["nats"] == pytest.approx(lik.nats)
    assert found["se"] == pytest.approx(lik.se)
    assert sum(t["nats"] for t in found["terms"].values()) == pytest.approx(lik.nats)
    assert found["terms"]["path"]["mc_se"] == pytest.approx(lik.mc_se)


def test_equally_many_draws_in_each_number_of_steps() -> None:
    def against(features: Tensor) -> C2st:
        return C2st(float(features.mean()), 0.5, 1.0, len(features), "boosting", 3)

    def run(seconds: float) -> list[tuple[int, int, float]]:
        draw = lambda steps, n: torch.full((n, 1), float(steps))  # noqa: E731
        found = measured.quality_by_steps(draw, against, 12, 1.0, 10.0, seconds)
        return [(p.steps, p.n, p.accuracy) for p in found]

    assert run(900 * 30.0) == [(k, 200, k) for k in (1, 2, 5, 10, 12)]
    assert run(100 * 30.0 + 50) == [(k, 100, k) for k in (1, 2, 5, 10, 12)]
    assert run(40 * 30.0) == [(k, 41, k) for k in (1, 5, 10, 12)]  # one number more would leave too few draws
    assert run(40 * 23.0 + 30) == [(k, 40, k) for k in (1, 10, 12)]
    assert run(40 * 18.0 + 40) == [(k, 40, k) for k in (1, 2, 5, 10)]  # not to 12
    assert run(60.0) == [(1, 50, 1)]
    assert run(40.0) == []


# -- the page --------------------------------------------------------------------------------------------------


def moons() -> Data:
    angle = math.pi * torch.rand(700, generator=gen(4), dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * normal(700, 2)
    return Data("arc", "memory", PLANE, Part(x[:400]), Part(x[400:450]), Part(x[450:]))


def digits() -> Data:
    c = torch.arange(300) % 3
    x = (torch.rand(300, 1, 4, 4, generator=gen(5)) * 2).long() + (c == 1)[:, None, None, None] * 2
    parts = [Part(x[s].to(torch.uint8), c[s]) for s in (slice(0, 200), slice(200, 220), slice(220, 300))]
    return Data("squares", "memory", DIGITS, *parts, context=CLASSES)


@pytest.fixture(scope="module")
def arcs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arcs")
    small = {"hidden": 32, "blocks": 1, "draws": 4}
    options = {"vdm": small | {"sample_steps": 5}, "vae": {"hidden": 16, "draws": 8}}
    options["masked-diffusion"] = {"inner_width": 32, "sample_steps": 2}
    compare(moons(), list(options), seconds=0.3, samples=40, max_test=40, out=folder, options=options)
    return folder


def test_a_comparison_measures_what_is_on_the_way(arcs: Path) -> None:
    rows = {r["family"]: r for r in json.loads((arcs / "comparison.json").read_text())["rows"]}
    assert [p["steps"] for p in rows["vdm"]["steps"]["points"]] == [1, 2, 5]
    assert [p["steps"] for p in rows["masked-diffusion"]["steps"]["points"]] == [1, 2]
    assert rows["vdm"]["steps"]["sampler"] == "dpm++"
    assert all(p["seconds"] > 0 and p["n"] >= 40 for p in rows["vdm"]["steps"]["points"])
    assert list(rows["vdm"]["terms"]["terms"]) == ["prior", "path", "reconstruction"]
    assert rows["vae"]["terms"]["request"] == "elbo"
    assert rows["vdm"]["trajectories"] == {"n": measured.TRAJECTORIES}
    for name in ("gaussian", "independent"):
        assert not {"steps", "terms", "trajectories", "guided"} & set(rows[name])
    with np.load(arcs / "runs" / "vdm" / "samples" / "trajectories.npz") as kept:
        assert kept["x"].shape[0] == measured.TRAJECTORIES
        assert kept["x"].shape[2:] == (2,)


def test_the_page_shows_the_way(arcs: Path, tmp_path: Path) -> None:
    page = build(arcs, tmp_path / "page.html").read_text()
    assert page.count("data against data") == 2
    assert 'aria-label="Ways from noise to draws of vdm"' in page
    assert "What the bounds are made of" in page
    row = next(r for r in json.loads((arcs / "comparison.json").read_text())["rows"] if r["family"] == "vdm")
    assert f"{row['terms']['terms']['path']['nats']:.1f}"[:4].replace("-", "−") in page
    one = build(arcs / "runs" / "vdm", tmp_path / "one.html").read_text()
    assert "From noise to data" in one


def test_the_page_reads_folders_without_any_of_it(arcs: Path, tmp_path: Path) -> None:
    shutil.copytree(arcs, tmp_path / "old")
    for path in (tmp_path / "old").rglob("trajectories.npz"):
        path.unlink()
    record = json.loads((arcs / "comparison.json").read_text())
    rows = [{k: v for k, v in r.items() if k not in ("steps", "terms")} for r in record["rows"]]
    assert paths.parts(PLANE, None, rows, {"vdm": tmp_path / "old" / "samples.npz"}, {}) == {
        "steps": None, "bounds": None, "guided": [], "ways": [],
    }  # fmt: skip
    failed = [{"family": "vdm", "steps": {"unavailable": "why"}, "terms": {"unavailable": "why"}}]
    assert paths.over_steps(failed) is None
    assert paths.bounds(failed) is None


def test_guided_draws_stand_by_class_and_scale(tmp_path: Path) -> None:
    options = {"flow-matching": {"context_dropout": 0.2, "net": "mlp", "hidden": 32, "sample_steps": 4}}
    options["vdm"] = {"net": "mlp", "hidden": 32, "sample_steps": 4}
    compare(digits(), list(options), seconds=0.4, samples=40, max_test=40, out=tmp_path, options=options)
    rows = {r["family"]: r for r in json.loads((tmp_path / "comparison.json").read_text())["rows"]}
    about = rows["flow-matching"]["guided"]
    assert about["scales"] == list(measured.SCALES)
    assert about["names"] == list(digits().context.values)
    assert "No context was dropped in training" in rows["vdm"]["guided"]["unavailable"]
    model = read_run(tmp_path / "runs" / "flow-matching").model
    with np.load(tmp_path / "runs" / "flow-matching" / "samples" / "guided.npz") as kept:
        x, c = torch.from_numpy(kept["x"]), torch.from_numpy(kept["c"])
    assert c.tolist() == [0, 1, 2] * (1 + len(measured.SCALES))
    assert about["kind"] == "LowerBound"
    for nats, p in (("given", model.given(c[:3])), ("none", model.given(null=True))):
        assert torch.allclose(torch.tensor(about[nats]).double(), p.log_prob(x[:3], generator=gen(13)).nats)
    for k, scale in enumerate(measured.SCALES):
        for guidance in (scale, None) if scale == 1 else (scale,):
            sampler = DpmSolver(measured.GUIDED_STEPS, guidance=guidance)
            again = model.given(c[:3]).sample(1, generator=gen(13), sampler=sampler)[0]
            assert torch.equal(again, x[3 * k + 3 : 3 * k + 6])
    page = build(tmp_path).read_text()
    assert page.count('alt="flow-matching: as trained"') == 1
    assert 'title="&lt;three&gt;"' in page
    assert page.count('alt="flow-matching: any"') == page.count('alt="flow-matching: truth"') == 1


def test_descents_are_named_lines() -> None:
    lines = {"near <b>": [(1, 0.9, 0.1), (10, 0.5, 0.1)], "one": [(1, 0.9, 0.1)]}
    svg = plots.descents(lines, (0.5, 0.02), ("steps", "told"), title="a <title>")
    assert svg is not None
    assert ">near &lt;b&gt;<" in svg
    assert ">one<" not in svg
    assert plots.descents({"one": [(1, 0.9, 0.1)]}, (0.5, 0.02), ("steps", "told"), title="") is None


def test_ways_are_drawn_from_first_to_last() -> None:
    ways = np.array([[[0.0, 0.0], [1.0, 1.0], [2.0, 4.0]]])
    svg = plots.ways(ways, np.array([[0.0, 4.0]]), "ways")
    assert '<path class="from" d="M3.0 97.0h0"/>' in svg
    assert '<path class="model" d="M97.0 3.0h0"/>' in svg
    assert 'd="M3.0 97.0L50.0 73.5L97.0 3.0"' in svg
