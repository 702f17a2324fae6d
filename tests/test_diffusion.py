"""Diffusion and flow matching as families: training, kinds, samplers, dequantisation, images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Estimate, LowerBound
from pofx.core.registry import family
from pofx.core.requests import (
    SOLVERS,
    Ancestral,
    AnnealedLangevin,
    DpmSolver,
    Heun,
    OdeLikelihood,
    PredictorCorrector,
    Restart,
    Solver,
    VariationalBound,
)
from pofx.core.space import Space
from pofx.families.diffusion import Ddpm, FlowMatching
from pofx.families.path import PathConfig, PathModel
from pofx.paths.objective import TIMES, WEIGHTINGS
from pofx.paths.predict import PREDICTIONS, point
from pofx.paths.schedule import karras
from pofx.spaces import Category, Image, Integer, Label, Real, Table

PRESETS = ("ddpm", "vdm", "flow-matching")
PLANE = Table((Real("a"), Real("b")))
every_preset = pytest.mark.parametrize("name", PRESETS)
every_start = pytest.mark.parametrize("name", PRESETS[1:])  # those that start from the Gaussian of the data


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(
    name: str, space: Space, x: Tensor, context: Space | None = None, c: Tensor | None = None, **options
) -> PathModel:
    cls = family(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(cls.Config(**options), space, context)
    model.prepare(x, c, None, gen())
    return model


def train(
    model: PathModel, x: Tensor, steps: int, c: Tensor | None = None, lr: float = 5e-3, batch: int = 256
) -> list[float]:
    learner, g, losses = model.learner(Recipe(lr=lr, clip=1.0)), gen(1), []
    model.train()
    for k in range(steps):
        rows = torch.randint(len(x), (batch,), generator=g)
        terms = learner.step(Batch(x[rows], None if c is None else c[rows], None, 0, batch, k / steps, k), g)
        losses.append(terms["loss"].item())
    model.eval()
    return losses


def moons(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles blurred by 0.3 [n, 2], in a unit of 10, and which one [n]."""
    g = gen(seed)
    side = torch.randint(2, (n,), generator=g)
    angle = math.pi * torch.rand(n, generator=g, dtype=torch.float64)
    sign = 1.0 - 2.0 * side
    x = torch.stack([angle.cos() * sign + 0.5 * side, angle.sin() * sign + 0.25 * side], 1)
    return 10 * (x + 0.3 * torch.randn(n, 2, generator=g, dtype=torch.float64)), side


def moons_log_prob(x: Tensor) -> Tensor:
    """By quadrature over the angle."""
    angle = math.pi * (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    arcs = [torch.stack([angle.cos() * s + 0.5 * k, angle.sin() * s + 0.25 * k], 1) for k, s in ((0, 1.0), (1, -1.0))]
    centres, width = 10 * torch.cat(arcs), 3.0
    square = (x[:, None] - centres).square().sum(-1) / (2 * width**2)
    return torch.logsumexp(-square, 1) - math.log(len(centres)) - math.log(2 * math.pi * width**2)


@cache
def trained(name: str) -> PathModel:
    x, _ = moons(8000)
    model = build(name, PLANE, x, hidden=64, blocks=2, sample_steps=30)
    train(model, x, 500)
    return model


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """No test moves torch's global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state())


# -- what is learned --------------------------------------------------------------------------------


@every_preset
def test_bound_and_ode_near_the_truth_and_the_bound_below_it(name: str) -> None:
    model, (x, _) = trained(name), moons(1000, seed=7)
    with torch.no_grad():
        lower = model.log_prob(x)
        solved = model.log_prob(x[:200], request=OdeLikelihood)
    assert type(lower) is LowerBound
    assert type(solved) is Estimate
    assert f"smallest noise {model.schedule.smallest:g}" in solved.caveat
    truth = moons_log_prob(x)
    error = lower.mc_se.square().sum().sqrt() / len(x)
    gap = (lower.nats - truth).mean()
    gaussian = build("vdm", PLANE, moons(8000)[0]).log_prob(x).nats.mean()
    assert -0.12 < gap < 3 * error
    assert gap > 0.5 * (gaussian - truth.mean())  # most of what a Gaussian misses is learned
    assert abs((solved.nats - truth[:200]).mean()) < 0.15


@pytest.mark.parametrize(("name", "sampler"), [
    *(("vdm", s) for s in SOLVERS), *((n, s) for n in ("ddpm", "flow-matching") for s in (DpmSolver, Heun, Restart)),
])  # fmt: skip
def test_samples_are_likely_under_the_truth(name: str, sampler: type[Solver]) -> None:
    """Means and spreads agree, and the cross-entropy of the samples is near the entropy of the source."""
    model, (x, _) = trained(name), moons(2000, seed=7)
    drawn = model.sample(2000, sampler=sampler, generator=gen(3))
    assert (drawn.mean(0) - x.mean(0)).abs().max() < 0.6
    assert (drawn.std(0) / x.std(0) - 1).abs().max() < 0.12
    assert abs(moons_log_prob(drawn).mean() - moons_log_prob(x).mean()) < 0.25


def test_more_steps_sample_otherwise_and_the_generator_decides() -> None:
    model = trained("vdm")
    few, many = (model.sample(50, sampler=DpmSolver(steps=k), generator=gen(1)) for k in (3, 40))
    assert not torch.equal(few, many)
    assert torch.equal(many, model.sample(50, sampler=DpmSolver(steps=40), generator=gen(1)))


@every_preset
def test_noised_score_points_uphill(name: str) -> None:
    """At little noise it is near the score of the data, by central differences of their closed form."""
    model, (x, _) = trained(name), moons(200, seed=9)
    got = model.given().noised_score(x)
    assert torch.equal(got, model.given().noised_score(x, 0.1))
    slopes = []
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = 1e-3
        slopes.append((moons_log_prob(x + step) - moons_log_prob(x - step)) / 2e-3)
    want = torch.stack(slopes, 1)
    assert torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.85


@every_start
@pytest.mark.parametrize("noise", [0.05, 0.7, 5.0])
def test_noised_score_of_a_gaussian_is_in_closed_form(name: str, noise: float) -> None:
    """A net of zeros stands for the data's fitted Gaussian: its score plus noise is known, in raw units."""
    root = torch.tensor([[30.0, 0.0], [-8.0, 4.0]], dtype=torch.float64)
    x = torch.randn(4000, 2, generator=gen(1), dtype=torch.float64) @ root.T + 7.0
    model = build(name, PLANE, x)
    covariance = x.T.cov(correction=0) + (noise * x.std(0, correction=0)).square().diag()
    want = -torch.linalg.solve(covariance, (x[:50] - x.mean(0)).T).T
    got = model.given().noised_score(x[:50], noise)
    assert torch.allclose(got * x.std(0), want * x.std(0), rtol=0.01, atol=0.01)


def test_context_is_used() -> None:
    x, side = moons(6000)
    model = build("vdm", PLANE, x, Label(("upper", "lower")), side, hidden=64, blocks=1)
    train(model, x, 300, side)
    test, which = moons(500, seed=5)
    with torch.no_grad():
        right, wrong = (model.given(c).log_prob(test).nats.mean() for c in (which, 1 - which))
        drawn = model.given(torch.tensor([0, 1])).sample(500)
    assert right > wrong + 1
    assert drawn[:, 0, 1].mean() > drawn[:, 1, 1].mean() + 5


# -- what every configuration keeps --------------------------------------------------------------------


SCHEDULES_OF_PATHS = ("cosine", "ddpm", "linear-beta", "sub-vp", "exploding", "linear", "trigonometric")
PREDICTED, WEIGHTED = ("v", "eps", "x0", "velocity", "score"), ("likelihood", "simple", "edm", "flat")


# each pair of choices is in the quick tier
@pytest.mark.parametrize(("schedule", "predict", "weighting"), [
    pytest.param(s, p, w, marks=() if (i + j + k) % 4 == 0 else pytest.mark.long)
    for (i, s), (j, p), (k, w) in product(*map(enumerate, (SCHEDULES_OF_PATHS, PREDICTED, WEIGHTED)))
])  # fmt: skip
def test_every_combination_starts_as_the_gaussian_and_trains(schedule: str, predict: str, weighting: str) -> None:
    x, _ = moons(400)
    model = build("vdm", PLANE, x, schedule=schedule, predict=predict, weighting=weighting, hidden=16, blocks=1)
    covariance = x.T.cov(correction=0)
    shrunk = torch.lerp(covariance, covariance.diagonal().diag(), 2 / 402)
    normal = torch.distributions.MultivariateNormal(x.mean(0), shrunk).log_prob(x)
    with torch.no_grad():
        start = model.log_prob(x)
    assert torch.allclose(start.nats, normal, atol=1e-3)
    assert start.mc_se.max() < 1e-3
    losses = train(model, x, 3, batch=64)
    assert all(map(math.isfinite, losses))
    with torch.no_grad():
        assert model.log_prob(x).nats.isfinite().all()


def test_vlb_training_lowers_minus_the_bound() -> None:
    """bound = its terms at both ends - half the range of the log SNR x d x loss."""
    x, _ = moons(64)
    ends = {"smallest": 0.05, "largest": 20.0}
    model = build("vdm", PLANE, x, hidden=16, blocks=1, **ends)
    train(model, x, 30, batch=64)
    batch = Batch(x, total=len(x))
    with torch.no_grad():
        loss = torch.stack([model._terms(batch, gen(k))["loss"].mean() for k in range(300)]).mean()
        lower = model.log_prob(x, request=VariationalBound(draws=300), generator=gen(999)).nats.mean()
    parts, ratios = model.split(x), torch.tensor([ends["largest"], ends["smallest"]]).double()
    known = (model.gaussian.ends(parts.y.double(), -2 * ratios.log()).sum(0) + parts.log_jacobian).mean()
    half_range = math.log(ends["largest"] / ends["smallest"])
    assert lower.item() == pytest.approx((known - half_range * model.dim * loss).item(), abs=0.15)


@every_preset
def test_mixed_table_is_a_bound_with_an_error_that_holds(name: str) -> None:
    g = gen(2)
    space = Table((Real("a", nullable=True), Integer("n", 0, 9), Category("k", ("u", "v"))))
    a = torch.where(torch.rand(3000, generator=g) < 0.2, math.nan, torch.randn(3000, generator=g)).double()
    x = torch.stack([a, torch.randint(10, (3000,), generator=g), torch.randint(2, (3000,), generator=g)], 1).double()
    model = build(name, space, x, hidden=32, blocks=1, codes_hidden=16)
    train(model, x, 60)
    with torch.no_grad():
        runs = [model.log_prob(x[:60], request=VariationalBound(draws=8), generator=gen(k)) for k in range(40)]
    assert type(runs[0]) is LowerBound
    assert runs[0].draws == 8
    spread = torch.stack([r.nats for r in runs]).var(0).mean()
    said = torch.stack([r.mc_se for r in runs]).square().mean()
    assert (spread / said).item() == pytest.approx(1, abs=0.25)
    drawn = model.sample(40)
    space.check(drawn)


def test_ddpm_is_the_papers() -> None:
    """Ho, Jain & Abbeel 2020: 1000 linear betas, eps, the simple loss, no start, all steps down again."""
    model = build("ddpm", PLANE, moons(500)[0], hidden=16, blocks=1)
    y, eps, batch = torch.randn(64, 2, generator=gen(1)), None, Batch(torch.zeros(64, 2), total=64)
    loss = model.objective(y, None, batch, gen(5))  # of a net that says zero: the mean square of the noise itself
    eps = batch.randn(2, generator=gen(5))
    assert torch.allclose(loss, eps.square().mean(1))
    assert (model.gaussian.variance == 1).all()
    drawn, (x, _) = model.sample(100, generator=gen(3)), moons(500)  # untrained: what is denoised is clipped
    margin = 0.06 * x.std(0)
    assert (drawn > x.min(0).values - margin).all()
    assert (drawn < x.max(0).values + margin).all()
    assert model.denoiser(None).start is None
    assert model.default_sampler() == Ancestral(1000)
    seen: list[float] = []
    model.draw(3, None, model.default_sampler(), gen(2), lambda step, t, z, denoised: seen.append(1000 * t.item()))
    assert seen == pytest.approx(list(range(1000, 0, -1)))
    # the last step, from x_1, has no noise: what is denoised there
    last = model.draw(3, None, model.default_sampler(), gen(2), lambda step, t, z, x: x if t > 0.0011 else 0 * x + 1)
    assert (last == 1).all()


def test_ncsn_learns_by_denoising() -> None:
    """Song & Ermon 2020: its loss is eq. 6 of 2019 with the weight sigma^2, of the net divided by sigma."""
    model, y, batch = build("ncsn", PLANE, moons(500)[0], hidden=16, blocks=1), torch.randn(64, 2, generator=gen(1)), 64
    train(model, moons(500)[0], 3)
    asked, noise = Batch(torch.zeros(batch, 2), total=batch), Batch(torch.zeros(batch, 2), total=batch)
    loss = model.objective(y, None, asked, gen(5))
    g = gen(5)
    eps = noise.randn(2, generator=g)
    u = (torch.arange(64) + torch.rand((), generator=g, dtype=torch.float64)) / 64
    sigma = (200.0 * (0.04 / 200.0) ** u)[:, None].float()  # uniform in the logarithm
    matching = torch.zeros(64)
    for e in (eps, -eps):
        noisy = y + sigma * e
        with torch.no_grad():
            gradient = -model.net(noisy / (1 + sigma**2).sqrt(), -2 * sigma.log()[:, 0], None) / sigma
        matching += (sigma**2 * (gradient + (noisy - y) / sigma**2).square()).mean(1) / 2
    assert torch.allclose(loss, matching, atol=1e-4)
    assert model.default_sampler() == AnnealedLangevin(232)
    seen: list[float] = []
    model.draw(3, None, model.default_sampler(), gen(2), lambda step, t, z, x: seen.append(model.schedule.log_snr(t)))
    levels = (-torch.stack(seen) / 2).exp()
    assert len(levels) == 232 * 5 + 1
    assert torch.allclose(levels[:-1:5], 200.0 * (0.04 / 200.0) ** (torch.arange(232).double() / 231))


def test_edm_is_the_papers() -> None:
    """Karras et al. 2022, table 1, in its own units, where the data deviate by 0.5; 18 steps of Heun are 35 passes."""
    model = build("edm", PLANE, moons(500)[0], hidden=16, blocks=1)
    train(model, moons(500)[0], 3)
    width, z = 0.5, torch.randn(40, 2, generator=gen(), dtype=torch.float64)
    sigma = torch.logspace(math.log10(0.002), math.log10(80), 40, dtype=torch.float64)[:, None]
    skip = width**2 / (sigma**2 + width**2)
    out = sigma * width / (width**2 + sigma**2).sqrt()
    seen = z * sigma / (width**2 + sigma**2).sqrt()
    with torch.no_grad():
        found = -model.net(seen.float(), (-2 * (sigma / width).log())[:, 0].float(), None).double()
        t = model.schedule.time(-2 * (sigma / width).log()[:, 0])
        denoised = width * model.denoiser(None)(z * sigma / width, t)
    assert torch.allclose(denoised, skip * z * sigma + out * found, atol=1e-6)
    weight = (sigma**2 + width**2) / (sigma * width) ** 2  # lambda, and lambda c_out^2 = 1
    assert torch.allclose(weight * out**2, torch.ones_like(weight))
    p = point(model.schedule, t, z)
    ours = WEIGHTINGS["edm"](PREDICTIONS["v"], p, p.alpha) / PREDICTIONS["v"].weight(p).reciprocal() / p.sigma**2
    assert torch.allclose(ours, weight * width**2)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = (width * (-model.schedule.log_snr(TIMES["log-normal"](model.schedule, u)[0]) / 2).exp()).log()
    assert (drawn.mean().item(), drawn.std().item()) == (pytest.approx(-1.2, abs=0.01), pytest.approx(1.2, abs=0.01))
    passes: list[float] = []
    model.draw(3, None, model.default_sampler(), gen(2), lambda step, t, z, x: passes.append(model.schedule.log_snr(t)))
    assert len(passes) == 35
    levels = width * (-torch.stack([*passes[:-1:2], passes[-1]]) / 2).exp()
    assert torch.allclose(levels, torch.tensor(karras(80.0, 0.002, 17), dtype=torch.float64))


@pytest.mark.parametrize("sde", ["linear-beta", "sub-vp", "exploding"])
def test_score_sde_diffuses_as_its_sde(sde: str) -> None:
    """f and g of the paper (eq. 9, 11 and 12) give the variances of the path: d sigma^2 = (2 f sigma^2 + g^2) dt."""
    model = build("score-sde", PLANE, moons(200)[0], schedule=sde, hidden=16, blocks=1)
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    p, beta = model.schedule(t), 0.1 + 19.9 * t
    kept = torch.exp(-(0.1 * t + 19.9 * t**2 / 2))
    drift = torch.zeros_like(t) if sde == "exploding" else -beta / 2
    if sde == "exploding":
        square = 2 * p.sigma**2 * math.log(model.schedule.largest / model.schedule.smallest)
    else:
        square = beta * (1 - kept**2 if sde == "sub-vp" else 1)
    assert torch.allclose(p.d_alpha, drift * p.alpha)
    assert torch.allclose(2 * p.sigma * p.d_sigma, 2 * drift * p.sigma**2 + square)
    assert model.default_sampler() == PredictorCorrector(1000)
    assert model.config.weighting == "simple"


@pytest.mark.parametrize("name", ["edm", *(pytest.param(n, marks=pytest.mark.long) for n in ("ncsn", "score-sde"))])
def test_the_presets_of_papers_sample_what_they_learned(name: str) -> None:
    model, (x, _) = trained(name), moons(2000, seed=7)
    drawn = model.sample(2000, generator=gen(3))
    assert (drawn.mean(0) - x.mean(0)).abs().max() < 0.6
    assert (drawn.std(0) / x.std(0) - 1).abs().max() < 0.12
    assert abs(moons_log_prob(drawn).mean() - moons_log_prob(x).mean()) < 0.25
    with torch.no_grad():
        solved, truth = model.log_prob(x[:200], request=OdeLikelihood), moons_log_prob(x[:200])
    assert abs((solved.nats - truth).mean()) < 0.15


def test_a_start_is_an_option_of_every_preset() -> None:
    """Without one a net of zeros stands for what it says: nothing moves; the Gaussian is nearer to the data."""
    x, _ = moons(400)
    with_start, without = (build("flow-matching", PLANE, x, start=s, hidden=16, blocks=1) for s in ("gaussian", "none"))
    z, t = torch.randn(20, 2, generator=gen(), dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    assert torch.allclose(without.denoiser(None)(z, t), z)
    assert not torch.allclose(with_start.denoiser(None)(z, t), z, atol=0.1)
    with torch.no_grad():
        assert with_start.log_prob(x).nats.mean() > without.log_prob(x).nats.mean()


def test_optimal_coupling_makes_straighter_paths() -> None:
    """What is seen from the noise is nearer to where its path ends (Tong et al. 2024, section 3.2)."""
    x, _ = moons(4000)
    turns = {}
    for coupling in ("independent", "optimal"):
        model = build("flow-matching", PLANE, x, coupling=coupling, start="none", hidden=64, blocks=1)
        train(model, x, 150)
        seen: list[Tensor] = []
        end = model.draw(500, None, Heun(steps=20), gen(3), lambda *at, s=seen: s.append(at[-1]))
        turns[coupling] = (end - seen[0]).square().mean()
    assert turns["optimal"] < 0.5 * turns["independent"]
    with pytest.raises(Unsupported, match="coupling=independent"):
        model.given().noised_score(x)
    with pytest.raises(Unsupported, match="Leave coupling at independent"):
        build("flow-matching", PLANE, x, Label(("a", "b")), coupling="optimal")


# -- images -------------------------------------------------------------------------------------------


@every_start
def test_unet_learns_images(name: str) -> None:
    """Stripes, horizontal or vertical: the bound rises above the Gaussian's and stays a bound."""
    space, g = Image(8, 8, 1, 4), gen(4)
    phase, upright = torch.randint(4, (600,), generator=g), torch.randint(2, (600,), generator=g)
    ramp = (torch.arange(8) + phase[:, None]) % 4
    rows = ramp[:, :, None].expand(-1, 8, 8)
    x = torch.where(upright[:, None, None] == 1, rows, rows.mT)[:, None].to(torch.uint8)
    model = build(name, space, x, channels=16, blocks=1)
    assert model.shape == (1, 8, 8)
    with torch.no_grad():
        before = model.log_prob(x[:50], request=VariationalBound(draws=4)).nats.mean()
    train(model, x, 60, batch=16, lr=3e-3)
    with torch.no_grad():
        after = model.log_prob(x[:50], request=VariationalBound(draws=16))
        solved = model.log_prob(x[:4], request=OdeLikelihood(steps=2, probes=1, draws=2))
    assert type(solved) is Estimate
    assert after.nats.mean() > before + 1.5
    assert after.nats.mean() < -math.log(8)  # eight images, all as likely
    assert model.sample(3, sampler=DpmSolver(steps=4)).shape == (3, 1, 8, 8)


# -- refusals -----------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused_by_name() -> None:
    x, _ = moons(50)
    with pytest.raises(Unsupported, match="net=unet is for images"):
        Ddpm(PathConfig(net="unet"), PLANE)
    with pytest.raises(UsageError, match="cannot rise"):
        FlowMatching(FlowMatching.Config(smallest=2.0, largest=1.0), PLANE)
    model = build("vdm", PLANE, x)
    with pytest.raises(UsageError, match="needs no draws; draws is 4. Give 0"):
        model.log_prob(x, request=OdeLikelihood(steps=4, draws=4))
    grid = Table((Integer("n", 0, 9),))
    counts = torch.arange(10, dtype=torch.float64)[:, None].repeat(5, 1)
    with pytest.raises(Unsupported, match="complete real columns"):
        build("vdm", grid, counts).given().noised_score(counts)
    with pytest.raises(Unsupported, match="has no score .*noised_score"):
        model.given().score(x)
    with pytest.raises(UsageError, match="noise from 0.001 to 80, not 1e-06"):
        model.given().noised_score(x, 1e-6)
