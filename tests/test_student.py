"""Students of few steps: what they learn from, how they draw, what of the model stays its teacher's."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from torch import Tensor

from pofx.core.errors import Unsupported, UsageError
from pofx.core.requests import Ddim, DpmSolver, FewStep, VariationalBound
from pofx.data.parts import Data, Part
from pofx.families.diffusion import Ddpm, FlowMatching
from pofx.families.student import REUSED
from pofx.paths.distill import along, consistency_loss, even_angles, leap
from pofx.paths.predict import eps_of, point
from pofx.paths.schedule import SCHEDULES, Chain
from pofx.spaces import Category, Image, Label, Real, Table
from pofx.train.fit import fit
from pofx.train.run import Run, read_run

PLANE = Table((Real("a"), Real("b")))
SMALL = {"hidden": 64, "blocks": 2, "student_share": 0.5}
every_student = pytest.mark.parametrize("student", ["consistency", "reflow"])


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ring(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Eight blobs on a circle [n, 2], and in which half each lies [n]."""
    g = gen(seed)
    k = torch.randint(8, (n,), generator=g)
    angle = 2 * math.pi * k / 8
    x = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(n, 2, generator=g)
    return x.double(), (k >= 4).long()


def ring_data(given: bool = False) -> Data:
    sets = [ring(n, seed) for seed, n in enumerate((6000, 300, 300))]
    parts = [Part(x, c if given else None) for x, c in sets]
    return Data("ring", "memory", PLANE, *parts, Label(("right", "left")) if given else None)


def energy(a: Tensor, b: Tensor) -> float:
    """The energy distance of two samples (Szekely & Rizzo 2013)."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


@cache
def taught(name: str, student: str) -> Run:
    options = SMALL | {"student": student}
    return fit(ring_data(), name, steps=600, checks=4, valid_rows=60, options=options, recipe={"ema": 0.99})


# -- the mathematics --------------------------------------------------------------------------------------------------


class Spread:
    """The flow of N(0, 0.7^2): it keeps z / its standard deviation, and so does the datum at its end."""

    def __init__(self, schedule) -> None:
        self.schedule, self.variance = schedule, 0.49

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        p = point(self.schedule, t, z)
        return p.alpha * self.variance / (p.alpha**2 * self.variance + p.sigma**2) * z

    def end(self, z: Tensor, t: Tensor) -> Tensor:
        p, last = point(self.schedule, t, z), self.schedule.smallest**2
        return z * ((self.variance + last) / (p.alpha**2 * self.variance + p.sigma**2)).sqrt()


@pytest.mark.parametrize("name", [*SCHEDULES, "ddpm"])
def test_the_end_of_the_flow_is_consistent(name: str) -> None:
    """Its loss falls with the fourth power of the hop or faster: Heun's step is of order 2. A denoiser's does not."""
    schedule = Chain(1000) if name == "ddpm" else SCHEDULES[name](0.01, 50.0)
    data, u = Spread(schedule), torch.rand(400, generator=gen(), dtype=torch.float64)
    x, eps = (torch.randn(400, 1, generator=gen(k), dtype=torch.float64) for k in (1, 2))
    losses = [consistency_loss(data.end, data, schedule, 0.7 * x, eps, u, hops).mean() for hops in (50, 100)]
    assert losses[1] < losses[0] / 8
    assert losses[1] < 1e-4
    assert consistency_loss(data, data, schedule, 0.7 * x, eps, u, 100).mean() > 10 * losses[1]


def test_the_last_target_is_the_datum_itself() -> None:
    schedule = SCHEDULES["cosine"](0.01, 50.0)
    x, eps = (torch.randn(9, 3, generator=gen(k), dtype=torch.float64) for k in (1, 2))
    u = torch.full((9,), 0.95, dtype=torch.float64)  # less than a hop from the end
    t = even_angles(schedule, 100)[95]
    z = point(schedule, t, x).alpha * x + point(schedule, t, x).sigma * eps
    seen: list[Tensor] = []

    def student(z: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    loss = consistency_loss(student, lambda z, t: x, schedule, x, eps, u, 10)  # the teacher knows the datum
    # from x + r eps by slopes eps to x + smallest eps
    scale = (1 + (point(schedule, t, x).alpha / point(schedule, t, x).sigma) ** 2)[0, 0]
    assert torch.allclose(loss, scale * (0.01 * eps).square().mean(1), rtol=1e-6)
    assert torch.allclose(eps_of(x, z, point(schedule, t, x)), eps)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_exact_student_draws_from_the_data(steps: int) -> None:
    schedule = SCHEDULES["cosine"](0.01, 50.0)
    data, times = Spread(schedule), even_angles(SCHEDULES["cosine"](0.01, 50.0), steps)
    z = torch.randn(40_000, 1, generator=gen(), dtype=torch.float64) * schedule(times[0]).scale
    x = leap(data.end, schedule, times, z, gen(1))
    assert x.std().item() == pytest.approx(0.7, abs=0.01)


def test_straight_paths_need_one_step() -> None:
    """Noise and datum that are joined by straight lines: where z knows both, any number of steps ends alike."""
    schedule = SCHEDULES["linear"]()
    e = torch.randn(50, 2, generator=gen(), dtype=torch.float64)

    def coupled(z: Tensor, t: Tensor) -> Tensor:
        """x = 3 + e / 2, so z = alpha (3 + e / 2) + sigma e."""
        p = point(schedule, t, z)
        return 3 + (z - 3 * p.alpha) / (p.alpha / 2 + p.sigma) / 2

    ends = []
    for steps in (1, 2, 10):
        times = even_angles(schedule, steps)
        p = schedule(times[0])
        ends.append(along(coupled, schedule, times, p.alpha * (3 + e / 2) + p.sigma * e, gen()))
    assert torch.allclose(ends[0], 3 + e / 2, atol=0.02)
    assert torch.allclose(ends[0], ends[1], atol=0.01)
    assert torch.allclose(ends[0], ends[2], atol=0.01)


# -- as a stage of a fit ----------------------------------------------------------------------------------------------


@every_student
@pytest.mark.parametrize("name", ["flow-matching", pytest.param("vdm", marks=pytest.mark.long)])
def test_two_steps_of_a_student_are_nearer_to_the_data_than_two_of_its_teacher(name: str, student: str) -> None:
    model, (x, _) = taught(name, student).model, ring(3000, 9)
    for steps in (1, 2):
        few = energy(model.sample(3000, sampler=FewStep(steps=steps), generator=gen()), x)
        assert few < 0.3 * energy(model.sample(3000, sampler=Ddim(steps=steps), generator=gen()), x)
    many = energy(model.sample(3000, sampler=DpmSolver(steps=30), generator=gen()), x)
    assert few < 2.5 * many


def test_reflow_straightens_paths() -> None:
    """What is seen from the noise is nearer to where its path ends (Liu et al. 2023, section 2.2)."""
    model = taught("flow-matching", "reflow").model
    z, times = model.from_noise(1000, gen(3)), even_angles(model.schedule, 30)
    turned = {}
    for who, net in (("teacher", model.net), ("student", model.student)):
        denoise = model.denoiser(None, net)
        with torch.no_grad():
            turned[who] = (along(denoise, model.schedule, times, z, gen()) - denoise(z, times[0])).square().mean()
    assert turned["student"] < 0.1 * turned["teacher"]


@every_student
def test_a_teacher_stays_as_it_is(student: str) -> None:
    """Its weights are those of a fit of its own share; likelihoods and other samplers are by them."""
    run = fit(ring_data(), "vdm", steps=20, options=SMALL | {"student": student, "hidden": 16}, recipe={"ema": 0.9})
    alone = fit(ring_data(), "vdm", steps=10, options={"hidden": 16, "blocks": 2}, recipe={"ema": 0.9})
    # the rate of learning falls over a share as over a whole budget
    own, other = run.model.net.state_dict(), alone.model.net.state_dict()
    assert all(torch.equal(own[k], other[k]) for k in own)
    x = ring(50, 7)[0]
    bounds = [m.log_prob(x, request=VariationalBound(draws=2)).nats for m in (run.model, alone.model)]
    assert torch.equal(*bounds)
    assert torch.equal(*(m.sample(9, sampler=Ddim(steps=3), generator=gen()) for m in (run.model, alone.model)))
    assert torch.equal(*(m.given().noised_score(x) for m in (run.model, alone.model)))
    assert run.model.default_sampler() == FewStep(steps=2)
    assert alone.model.default_sampler() == DpmSolver(steps=alone.model.config.sample_steps)
    stages = [e["stage"] for e in run.log]
    assert stages[0] == "teacher"
    assert stages[-1] == "student"
    assert run.log[-1]["valid"] is not None


@every_student
def test_the_averaged_weights_of_a_student_are_kept(student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the recipe's average of its own steps, beginning at its teacher's averaged weights."""
    seen: list[dict[str, Tensor]] = []

    def remember(self, step: int) -> None:
        own(self, step)
        seen.append({k: p.detach().clone() for k, p in self.model.student.named_parameters()})

    from pofx.train.average import Average

    own = Average.update
    monkeypatch.setattr(Average, "update", remember)
    options = SMALL | {"student": student, "hidden": 16}
    model = fit(ring_data(), "vdm", steps=16, checks=1, options=options, recipe={"ema": 0.9}).model
    first = model.net.state_dict()
    for name, kept in model.student.state_dict().items():
        average = first[name]
        for k, weights in enumerate(w[name] for w in seen[8:]):
            average = torch.lerp(average, weights, 1 - min(0.9, (1 + k) / (10 + k)))
        assert torch.allclose(kept, average, atol=1e-6), name
        assert not torch.equal(kept, seen[-1][name])


def test_a_student_that_has_not_begun_draws_nothing(tmp_path) -> None:
    """A run that is stopped in its teacher's stage has its teacher's samplers."""
    options = SMALL | {"student": "consistency", "hidden": 16}
    early, late = (
        fit(ring_data(), "vdm", steps=10, options=options, until=u, out=tmp_path / str(u)).model for u in (0.4, 0.8)
    )
    assert isinstance(early.default_sampler(), DpmSolver)
    with pytest.raises(UsageError, match="does not answer FewStep"):
        early.sample(1, sampler=FewStep)
    assert isinstance(late.default_sampler(), FewStep)


@every_student
def test_a_resumed_student_is_the_same(student: str, tmp_path) -> None:
    options = SMALL | {"student": student, "hidden": 16}
    whole = fit(ring_data(), "flow-matching", steps=16, options=options)
    from pofx.train.fit import resume

    fit(ring_data(), "flow-matching", steps=16, options=options, out=tmp_path / "run", until=0.8)
    again = resume(tmp_path / "run", data=ring_data())
    for k, v in whole.model.state_dict().items():
        assert torch.equal(v, again.model.state_dict()[k]), k
    read = read_run(tmp_path / "run").model
    assert torch.equal(*(m.sample(5, generator=gen()) for m in (read, whole.model)))


@every_student
def test_a_student_is_told_the_context_and_the_codes(student: str) -> None:
    """A label goes with the side, a category column with the half: pairs carry them, too."""
    x, half = ring(4000, 3)
    space = Table((Real("a"), Real("b"), Category("half", ("upper", "lower"))))
    rows, side = torch.cat([x, half[:, None].double()], 1), (x[:, 0] < 0).long()
    parts = [Part(rows[s], side[s]) for s in (slice(3000), slice(3000, 3500), slice(3500, None))]
    data = Data("mixed", "memory", space, *parts, Label(("right", "left")))
    options = SMALL | {"student": student}
    model = fit(data, "flow-matching", steps=300, checks=2, valid_rows=60, options=options).model
    drawn = model.given(torch.tensor([0, 1])).sample(500, generator=gen())
    right, left = drawn.unbind(1)
    assert right[:, 0].mean() > 0.6
    assert left[:, 0].mean() < -0.6
    upper = drawn[..., 2] == 0
    assert drawn[upper][:, 1].mean() > drawn[~upper][:, 1].mean() + 1


def test_pairs_are_used_again_and_made_anew() -> None:
    model = copy.deepcopy(taught("flow-matching", "reflow").model)  # its student begins anew
    x = ring(40, 3)[0]
    pairs = model._lessons(x, None, gen())
    assert len(pairs) == REUSED * pairs.count
    pairs.set_epoch(1)
    index = torch.arange(20)
    first, owners = pairs[index], pairs.owner(index)
    assert torch.equal(first, pairs[index + pairs.count])
    assert torch.equal(owners, pairs.owner(index + pairs.count))
    assert first.shape == (20, 4)
    pairs.set_epoch(2)
    assert not torch.equal(first, pairs[index])
    pairs.set_epoch(1)
    assert torch.equal(first, pairs[index])
    noise, y = first.split(2, 1)
    assert noise.std().item() == pytest.approx(1, abs=0.3)
    assert y.std().item() == pytest.approx(1, abs=0.3)


@every_student
def test_images_and_their_range(student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ddpm has no start: what its student says is kept within the range of the data."""
    monkeypatch.setattr("pofx.families.student.PAIRS", 8)
    space = Image(8, 8, 1, 4)
    x = torch.randint(4, (60, 1, 8, 8), generator=gen()).to(torch.uint8)
    data = Data("noise", "memory", space, Part(x[:40]), Part(x[40:50]), Part(x[50:]))
    options = {"student": student, "channels": 16, "blocks": 1, "predict": "v", "sample_steps": 5}
    model = fit(data, "ddpm", steps=4, checks=1, valid_rows=2, options=options, recipe={"batch": 8}).model
    drawn = model.sample(3, generator=gen())
    assert drawn.shape == (3, 1, 8, 8)
    space.check(drawn)


def test_what_cannot_work_is_refused_by_name() -> None:
    for predict in ("eps", "score"):
        with pytest.raises(Unsupported, match=f"predicts {predict}.*predict=v, or leave student at none"):
            Ddpm(Ddpm.Config(student="consistency", predict=predict), PLANE)
    with pytest.raises(UsageError, match="student_share is 1"):
        FlowMatching.Config(student="reflow", student_share=1.0)
    with pytest.raises(UsageError, match="steps is 0"):
        FewStep(steps=0)
    with pytest.raises(UsageError, match="does not answer FewStep"):
        FlowMatching(FlowMatching.Config(hidden=8), PLANE).sample(1, sampler=FewStep)
    with pytest.raises(Unsupported, match="student_share=0.3 changes nothing"):
        fit(ring_data(), "vdm", steps=1, options={"student_share": 0.3})
