"""Paths, samplers and path likelihoods against data whose best denoiser is known in closed form."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, permutations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pofx.core.errors import NotANumber, UsageError
from pofx.core.noise import RowNoise
from pofx.core.requests import SOLVERS
from pofx.nn.dit import Dit, DitLayer, places
from pofx.nn.encoders import Encoded
from pofx.nn.unet import Attention, UNet
from pofx.paths import samplers
from pofx.paths.gaussian import Gaussian
from pofx.paths.likelihood import ode, stratified, terms
from pofx.paths.objective import COUPLINGS, TIMES, WEIGHTINGS, path_loss
from pofx.paths.orders import STATED, order_of
from pofx.paths.predict import PREDICTIONS, Denoiser, eps_of, point
from pofx.paths.samplers import SAMPLERS, multistep, sample, step_of
from pofx.paths.schedule import SCHEDULES, Chain, Cosine, Exploding, Linear, LinearBeta, Schedule, karras

SMALLEST, LARGEST = 1e-3, 80.0
NAMES = [*SCHEDULES, "ddpm"]
OWN = {solver.name: solver(steps=8).own for solver in SOLVERS}
every_schedule = pytest.mark.parametrize("name", NAMES)


def bound(*of, **how):
    """One draw of the bound [N]: of all its terms."""
    return terms(*of, **how).sum(0)


def schedule(name: str) -> Schedule:
    return Chain(1000) if name == "ddpm" else SCHEDULES[name](SMALLEST, LARGEST)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


@dataclass
class GaussianData:
    """x ~ N(mean, cov): E[x | z] = mean + alpha cov (alpha^2 cov + sigma^2 I)^-1 (z - alpha mean)."""

    schedule: Schedule
    mean: Tensor
    cov: Tensor

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        p = point(self.schedule, t, z)
        values, vectors = torch.linalg.eigh(self.cov)
        gain = p.alpha * values / (p.alpha**2 * values + p.sigma**2)
        return self.mean + (((z - p.alpha * self.mean) @ vectors) * gain) @ vectors.T

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.distributions.MultivariateNormal(self.mean, self.cov).log_prob(x)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        return self.mean + normal(n, len(self.mean), seed=seed) @ torch.linalg.cholesky(self.cov).T


def gaussian(name: str = "cosine") -> GaussianData:
    """Correlated, and standardised as the ends of a path take it."""
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    return GaussianData(schedule(name), torch.zeros(2, dtype=torch.float64), cov)


# -- schedules --------------------------------------------------------------------------------------


@every_schedule
def test_derivatives_and_inverse(name: str) -> None:
    s = schedule(name)
    log_snr = torch.linspace(*s.ends, 41, dtype=torch.float64)[1:-1]
    t = s.time(log_snr)
    assert torch.allclose(s.log_snr(t), log_snr, atol=1e-7)
    assert (t[1:] < t[:-1]).all()
    t.requires_grad_()
    p = s(t)
    for value, slope in ((p.alpha, p.d_alpha), (p.sigma, p.d_sigma)):
        (auto,) = torch.autograd.grad((value + 0 * t).sum(), t, retain_graph=True)
        assert torch.allclose(auto, slope, rtol=1e-8, atol=1e-12)
    if name in ("cosine", "linear-beta", "trigonometric", "ddpm"):
        assert torch.allclose(p.alpha**2 + p.sigma**2, torch.ones_like(t), atol=1e-12)
    if name == "sub-vp":  # Song et al. 2021, eq. 29
        assert torch.allclose(p.alpha, LinearBeta()(t).alpha)
        assert torch.allclose(p.sigma, 1 - p.alpha**2, atol=1e-12)


@every_schedule
def test_times_reach_both_ends(name: str) -> None:
    s = schedule(name)
    grids = [s.grid(grid, 7) for grid in ("schedule", "log-snr", "karras")]
    for times in (*grids, s.levels(7), s.uniform(torch.linspace(0, 1, 8, dtype=torch.float64))):
        ratio = s(times).sigma / s(times).alpha
        assert len(times) == 8
        assert torch.allclose(ratio[[0, -1]], torch.tensor([s.largest, s.smallest], dtype=torch.float64))


def test_the_grids_are_even_in_what_they_say() -> None:
    s = Cosine()
    assert torch.equal(s.grid("schedule", 9), s.times(9))
    assert torch.allclose(s.log_snr(s.grid("log-snr", 9)).diff(), torch.tensor(s.range / 9, dtype=torch.float64))
    ratio = (-s.log_snr(s.grid("karras", 9)) / 2).exp()
    assert torch.allclose((ratio ** (1 / 7)).diff().diff(), torch.zeros(8).double(), atol=1e-9)
    # Karras et al. 2022, table 1, with N = 18
    paper = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert karras(80.0, 0.002, 17) == pytest.approx(paper)
    for name in NAMES:
        for grid in ("schedule", "log-snr", "karras"):
            assert schedule(name).grid(grid, 0).tolist() == pytest.approx(schedule(name).times(0).tolist())


def test_a_schedule_that_does_not_fall_is_named() -> None:
    for cls in {*SCHEDULES.values()}:
        for ends in ((2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, math.inf), (math.nan, 1.0), (-1.0, 1.0)):
            with pytest.raises(UsageError, match="cannot rise from .* to .*Give a smallest above 0"):
                cls(*ends)
    with pytest.raises(UsageError, match="chain of 20 steps"):
        Chain(20)
    s = Cosine()
    for times in (s.times(5).flip(0), torch.tensor([0.9, 0.5, 0.5])):
        with pytest.raises(UsageError, match="must fall; got"):
            sample("ddim", lambda z, t: z, s, times, normal(3, 1), gen())


def test_the_chain_of_the_paper() -> None:
    """1000 betas from 1e-4 to 0.02 (Ho et al. 2020, section 4); 4.0358e-5 is their product of 1 - beta."""
    chain, k = Chain(1000), torch.arange(1, 1001, dtype=torch.float64)
    kept = chain(k / 1000).alpha.square()
    betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
    assert torch.allclose(betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), atol=1e-12)
    assert kept[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert torch.equal(chain.times(1000), k.flip(0) / 1000)
    assert set((1000 * chain.times(50)).tolist()) <= set(k.tolist())
    drawn = (1000 * chain.uniform(torch.rand(200_000, generator=gen(), dtype=torch.float64))).round().long()
    assert drawn.unique().tolist() == list(range(1, 1001))
    assert drawn.bincount()[1:].float().std() < 20
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    assert torch.allclose(Chain(100_000)(t).alpha, LinearBeta()(t).alpha, atol=1e-3)


def test_a_step_down_the_chain_has_the_papers_posterior() -> None:
    """Mean and variance of q(x_(t-1) | x_t, x_0) in terms of betas (Ho et al. 2020, eq. 7)."""
    chain = Chain(1000)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)
    for t in (2, 10, 500, 1000):
        beta, now, before = betas[t - 1], kept[t - 1], kept[t - 2]
        times = torch.tensor([t, t - 1], dtype=torch.float64) / 1000

        def step(x: float, z: float, times: Tensor = times, seed: int = t) -> Tensor:
            state = torch.full((3,), z, dtype=torch.float64)
            return SAMPLERS["ancestral"](lambda v, _: torch.full_like(v, x), chain, times, state, gen(seed))

        noise, x_part, z_part = step(0, 0), step(1, 0) - step(0, 0), step(0, 1) - step(0, 0)
        assert torch.allclose(noise / normal(3, seed=t), ((1 - before) / (1 - now) * beta).sqrt())
        assert torch.allclose(x_part, before.sqrt() * beta / (1 - now))
        assert torch.allclose(z_part, (1 - beta).sqrt() * (1 - before) / (1 - now))


# -- predictions ------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_agree(name: str, kind: str) -> None:
    """One function, told in any kind, is one denoiser; an error of a prediction is one of eps by its weight."""
    x, eps, shift = (normal(30, 3, seed=k) for k in range(3))
    s, predicted = schedule(name), PREDICTIONS[kind]
    p = point(s, s.time(torch.linspace(-6, 8, 30, dtype=torch.float64)), x)
    z = p.alpha * x + p.sigma * eps
    targets = {
        "x0": x, "eps": eps, "score": (p.alpha * x - z) / p.sigma**2, "v": (p.alpha * eps - p.sigma * x) / p.scale,
        "velocity": p.d_alpha * x + p.d_sigma * eps,
    }  # fmt: skip
    assert torch.allclose(predicted.target(x, eps, p), targets[kind])
    assert torch.allclose(predicted.to_denoised(targets[kind], z, p), x, atol=1e-9)
    off = eps_of(predicted.to_denoised(targets[kind] + shift, z, p), z, p) - eps
    assert torch.allclose(off.square() * predicted.weight(p), shift.square(), atol=1e-8)


def test_a_network_alone_or_with_a_start_is_the_same_denoiser() -> None:
    """What the start leaves over, added to it, is what a network without one predicts."""
    s, found = schedule("cosine"), fitted(correlated(500, seed=1))
    z, t = correlated(20), torch.rand(20, generator=gen(3), dtype=torch.float64)
    for kind in PREDICTIONS.values():
        alone = Denoiser(lambda v, log_snr: v.sin() + log_snr[:, None], s, kind, None, torch.float64)
        p = point(s, t, z)
        left_over = alone.output(z, p) - Denoiser(lambda v, _: 0 * v, s, kind, found, torch.float64).output(z, p)
        both = Denoiser(lambda v, _, rest=left_over: rest, s, kind, found, torch.float64)
        assert torch.allclose(alone(z, t), both(z, t))


def fitted(x: Tensor) -> Gaussian:
    found = Gaussian(x[0].numel())
    found.fit(x.flatten(1))
    return found


def correlated(n: int, seed: int = 0) -> Tensor:
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [-0.5, 0.2, 0.03]], dtype=torch.float64)
    return normal(n, 3, seed=seed) @ mix.T + torch.tensor([1.0, -2.0, 0.5])


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_network_of_zeros_stands_for_the_gaussian(kind: str, diagonal: bool, monkeypatch) -> None:
    """Its bound has no noise and is that Gaussian's density, and so is its flow's."""
    if diagonal:
        monkeypatch.setattr("pofx.paths.gaussian.MOST_ROTATED", 2)
    s, x = schedule("cosine"), correlated(20)
    found = fitted(correlated(5000, seed=1))
    basis = torch.eye(3, dtype=torch.float64) if diagonal else found.factors[0]
    covariance = basis @ found.variance.diag() @ basis.T
    truth = torch.distributions.MultivariateNormal(found.mean, covariance).log_prob(x)
    zero = Denoiser(lambda z, log_snr: torch.zeros_like(z), s, PREDICTIONS[kind], found, torch.float64)
    drawn = bound(zero, found, s, x, torch.rand(20, generator=gen(1)).double(), normal(20, 3, seed=2))
    solved, se = ode(zero, found, s, x, 16, RowNoise.by_place(20, gen()))
    assert torch.allclose(drawn, truth, atol=1e-6)
    assert ((solved[0] - truth).abs() < 4 * se).all()
    assert se.max() < 0.02


def test_the_gaussian_of_the_data() -> None:
    x, s = correlated(200_000), schedule("linear")
    found = fitted(x)
    (basis,) = found.factors
    assert torch.allclose(basis @ found.variance.diag() @ basis.T, x.T.cov(), atol=1e-3)
    p = point(s, torch.tensor(0.3), x)
    eps = normal(len(x), 3, seed=5)
    z = p.alpha * x + p.sigma * eps
    # Wiener's filter is the linear regression of x on z
    design = torch.cat([z, torch.ones(len(z), 1)], 1)
    line = design @ torch.linalg.lstsq(design, x).solution
    assert (found.denoise(z, p) - line).abs().max() < 0.02
    # z and then x given z is x again; z alone has the density and the covariance of the noisy data
    again = found.posterior(z, normal(len(x), 3, seed=6), p)
    assert (again.T.cov() - x.T.cov()).abs().max() < 0.02
    alpha, sigma = p.alpha.item(), p.sigma.item()
    drawn = found.noisy(normal(len(x), 3, seed=7), alpha, sigma)
    assert (drawn.T.cov() - z.T.cov()).abs().max() < 0.02
    wide = torch.distributions.MultivariateNormal(z.mean(0), z.T.cov())
    assert torch.allclose(found.log_prob(z[:50], alpha, sigma), wide.log_prob(z[:50]), atol=0.02)


def test_large_images_turn_into_cosines(monkeypatch) -> None:
    """Channels that are one, and smooth rows: a few coordinates hold what there is; the map is a rotation."""
    monkeypatch.setattr("pofx.paths.gaussian.MOST_ROTATED", 10)
    smooth = normal(4000, 1, 6, 5).cumsum(2).cumsum(3)
    x = smooth * torch.tensor([1.0, -0.5]).double()[:, None, None] + 0.01 * normal(4000, 2, 6, 5, seed=2)
    found = Gaussian(2, 6, 5)
    found.fit(x)
    w = found.along(x)
    assert torch.allclose(w.square().sum(1), x.flatten(1).square().sum(1))
    assert torch.allclose(found.across(w, x), x)
    assert found.variance.topk(5).values.sum() > 0.8 * found.variance.sum()
    white = Gaussian(1, 60)
    white.fit(x.flatten(1)[:, None])
    assert found.log_prob(x).mean() > white.log_prob(x.flatten(1)[:, None]).mean() + 30


def test_the_gaussians_own_bound_in_steps_rises_to_its_density() -> None:
    s, x = schedule("cosine"), correlated(20)
    found = fitted(correlated(5000, seed=1))
    truth, u, eps = found.log_prob(x), torch.rand(20, generator=gen(1)).double(), normal(20, 3, seed=2)
    gaps = []
    for steps in (20, 200, 2000, 20_000):
        nats = bound(lambda z, t: found.denoise(z, point(s, t, z)), found, s, x, u, eps, steps=steps)
        gaps.append((truth - nats).mean().item())
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < gaps[-1] < 0.01


def test_few_rows_do_not_make_a_flat_gaussian() -> None:
    """Ten rows in twenty dimensions: no direction is held impossible."""
    found = fitted(normal(10, 20))
    assert found.variance.min() > 0.05


# -- samplers ---------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("name_of_sampler", list(SAMPLERS))
def test_samplers_reproduce_mean_and_covariance(name: str, name_of_sampler: str) -> None:
    n, s = 8_000, schedule(name)
    mean, cov = torch.tensor([0.5, -1.0]).double(), torch.tensor([[0.6, 0.3], [0.3, 0.4]]).double()
    data = GaussianData(s, mean, cov)
    times = s.times(400) if name == "ddpm" else s.levels(150)  # even in log SNR, the same for most schedules
    z = s(times[0]).scale * normal(n, 2, seed=3)
    x = sample(name_of_sampler, data, s, times, z, gen(4), **OWN[name_of_sampler]) / s(times[-1]).alpha
    off = {"ancestral": 0.05, "ddim": 0.05, "euler": 0.05, "predictor-corrector": 0.05, "annealed-langevin": 0.11}
    assert (x.mean(0) - mean).abs().max() < 0.04
    assert (x.T.cov() - cov).abs().max() < off.get(name_of_sampler, 0.04)


def test_a_sampler_takes_the_fields_of_its_request() -> None:
    """No field is lost on the way, and none is lacking."""
    assert {solver.name for solver in SOLVERS} == {*SAMPLERS}
    for solver in SOLVERS:
        function = SAMPLERS[solver.name]
        taken = set(inspect.signature(function).parameters) - set(getattr(function, "keywords", {}))
        assert taken == {"denoise", "schedule", "times", "z", "generator"} | {*solver(steps=3).own}


@pytest.mark.parametrize("sampler", STATED)
@pytest.mark.parametrize("name", [
    "linear", *(pytest.param(name, marks=pytest.mark.long) for name in SCHEDULES if name != "linear")
])  # fmt: skip
def test_order_of_convergence(name: str, sampler: str) -> None:
    order, errors = order_of(sampler, SCHEDULES[name](SMALLEST, LARGEST), counts=(48, 96, 192))
    assert order == pytest.approx(STATED[sampler][0], abs=0.15), errors


def started_low(denoise, schedule, times, z, generator):
    """The third-order sampler without the look into the middle of its first step."""
    z = SAMPLERS["ddim"](denoise, schedule, times[:2], z, generator)
    return multistep(denoise, schedule, times[1:], z, generator, order=3, noisy=False)


@pytest.mark.parametrize(
    "wrong",
    [
        partial(multistep, order=2, noisy=False),  # the branch of third order is missing
        started_low,
    ],
    ids=["third order missing", "start of first order"],
)
def test_a_wrong_order_is_noticed(wrong, monkeypatch) -> None:
    monkeypatch.setitem(SAMPLERS, "dpm++3m", wrong)
    order, _ = order_of("dpm++3m", Linear(), counts=(48, 96, 192))
    assert order < 2.5


def test_a_second_derivative_counted_half_is_noticed(monkeypatch) -> None:
    """As in a widespread third-order step, whose error is then of second order."""
    right = samplers.weights
    monkeypatch.setattr(samplers, "weights", lambda *a: (*right(*a)[:2], right(*a)[2] / 2))
    order, _ = order_of("dpm++3m", Linear(), counts=(48, 96, 192))
    assert order < 2.5


GRIDS = "schedule", "log-snr", "karras"
COUNTED = (1, 2, 3, 5, 8, 20)  # 3n - 1 among them: where a step of third order is left over


@pytest.mark.parametrize("steps", [
    *COUNTED, *(pytest.param(k, marks=pytest.mark.long) for k in range(1, 51) if k not in COUNTED)
])  # fmt: skip
@pytest.mark.parametrize("name_of_sampler", list(SAMPLERS))
def test_every_sampler_is_finite_in_any_number_of_steps(name_of_sampler: str, steps: int) -> None:
    """On every schedule, in the nets' precision and whatever they predict, down to the data; and near to them."""
    # a slope at a far end, or Langevin's step, leads astray where a step is all but the whole way
    coarse = name_of_sampler in ("heun", "karras", "restart", "predictor-corrector", "annealed-langevin")
    for k, name in enumerate(NAMES):
        s, kinds = schedule(name), list(PREDICTIONS.values())

        def denoise(z: Tensor, t: Tensor, s: Schedule = s, kinds: list = kinds) -> Tensor:
            """Each row by another prediction of a net that knows N(0.5, 0.25)."""
            p = point(s, t, z)
            x = 0.5 + 0.25 * p.alpha / (0.25 * p.alpha**2 + p.sigma**2) * (z - 0.5 * p.alpha)
            eps = eps_of(x, z, p)
            return torch.stack([kind.to_denoised(kind.target(x, eps, p), z, p)[k] for k, kind in enumerate(kinds)])

        times = s.grid(GRIDS[(k + steps) % 3], steps - 1)
        z = s(times[0]).scale.float() * normal(len(kinds), 4, seed=3).float()
        x = sample(name_of_sampler, denoise, s, times, z, gen(4), to_data=True, **OWN[name_of_sampler])
        assert x.isfinite().all(), name
        assert (coarse and steps < 8) or (x - 0.5).abs().max() < 5, name


def test_ddim_is_the_papers_for_any_eta() -> None:
    """Song, Meng & Ermon 2021, eq. 12 and 16, in their alpha, which is ours squared."""
    s, data, eta = Cosine(), gaussian(), 0.7
    times, z = s.levels(3)[:2], normal(6, 2)
    (now, to), x = s(times).alpha ** 2, data(z, times[0])
    deviation = eta * ((1 - to) / (1 - now) * (1 - now / to)).sqrt()
    noise = torch.randn(6, 2, generator=gen(1), dtype=torch.float64)
    eps = (z - now.sqrt() * x) / (1 - now).sqrt()
    by_hand = to.sqrt() * x + (1 - to - deviation**2).sqrt() * eps + deviation * noise
    assert torch.allclose(SAMPLERS["ddim"](data, s, times, z, gen(1), eta=eta), by_hand)


def test_the_adaptive_sampler_keeps_its_tolerance() -> None:
    data, s, seen = gaussian(), Cosine(), []
    exact = SAMPLERS["dpm++3m"](data, s, s.levels(2000), normal(20, 2), gen())

    def counted(z: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return data(z, t)

    errors, passes = [], []
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        x = SAMPLERS["adaptive"](counted, s, s.levels(2), normal(20, 2), gen(), tolerance=tolerance)
        errors.append((x - exact).abs().max().item())
        passes.append(len(seen))
        seen.clear()
    assert errors == sorted(errors, reverse=True)
    assert passes == sorted(passes)
    assert errors[-1] < 1e-4
    assert passes[-1] < 400
    with pytest.raises(NotANumber, match="no longer numbers"):
        SAMPLERS["adaptive"](lambda z, t: z * math.nan, s, s.levels(2), normal(20, 2), gen(), tolerance=0.1)
    with pytest.raises(UsageError, match="rounded to less.*Raise it"):
        SAMPLERS["adaptive"](data, s, s.levels(2), normal(20, 2), gen(), tolerance=1e-30)


def test_churn_is_the_papers() -> None:
    """Karras et al. 2022, algorithm 2, in sigma."""
    s, data = Exploding(0.002, 80.0), gaussian("exploding")
    data.schedule = s
    times, z, g = s.grid("karras", 17), 80 * normal(10, 2), gen(5)
    by_hand, levels = z, [*karras(80.0, 0.002, 17)]

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - data(x, s.time(-2 * torch.tensor(sigma, dtype=torch.float64).log()))) / sigma

    for sigma, to in pairwise(levels):
        gamma = min(20 / 18, 2**0.5 - 1) if 0.1 <= sigma <= 50 else 0.0
        hat = sigma * (1 + gamma)
        if gamma:
            noise = torch.randn(10, 2, generator=g, dtype=torch.float64)
            by_hand = by_hand + (hat**2 - sigma**2) ** 0.5 * 1.01 * noise
        d = slope(by_hand, hat)
        ahead = by_hand + (to - hat) * d
        by_hand = by_hand + (to - hat) * (d + slope(ahead, to)) / 2
    own = {"churn": 20.0, "churn_from": 50.0, "churn_to": 0.1, "inflation": 1.01}
    assert torch.allclose(SAMPLERS["karras"](data, s, times, z, gen(5), **own), by_hand, atol=1e-9)
    calm, trapezoids = (SAMPLERS[name](data, s, times, z, gen()) for name in ("karras", "heun"))
    assert torch.allclose(calm, trapezoids, atol=1e-12)
    assert (
        SAMPLERS["karras"](data, s, times, z, gen(), churn=40.0, churn_from=90.0).isfinite().all()
    )  # none above the path


def test_a_restart_goes_back_to_where_it_is_asked() -> None:
    s, data, seen = Exploding(), gaussian("exploding"), []
    own = {"restarts": 2, "restart_from": 0.6, "restart_to": 0.12, "restart_steps": 3}
    sample(
        "restart", data, s, s.grid("karras", 9), 80 * normal(4, 2), gen(), lambda step, t, z, x: seen.append(t), **own
    )
    noise = (-s.log_snr(torch.stack(seen)) / 2).exp()
    up = [(a, b) for a, b in pairwise(noise.tolist()) if b > a * (1 + 1e-9)]
    stop = next(ratio for ratio in karras(80.0, 1e-3, 9) if ratio <= 0.12)
    assert up == [(pytest.approx(stop), pytest.approx(0.6))] * 2
    assert len(seen) == 2 * 9 + 2 * 2 * 3
    for wrong in ({"restart_from": 100.0}, {"restart_to": 1e-4}):
        with pytest.raises(UsageError, match="not within the path's, 80 to 0.001"):
            sample("restart", data, s, s.times(5), normal(4, 2), gen(), **{**own, **wrong})


def test_predictors_and_correctors_are_the_papers() -> None:
    """Song et al. 2021: algorithms 2 and 4 in sigma, 3 and 5 in beta."""
    for name in ("exploding", "ddpm"):
        data, s = gaussian(name), schedule(name)
        times, g, r = s.times(900)[:2], gen(2), 0.16
        z = s(times[0]).scale * normal(50, 2)
        beta = 1 - (s(times).alpha[0] / s(times).alpha[1]).item() ** 2  # 0 where the variance explodes

        def gradient(x: Tensor, t: Tensor, data: GaussianData = data, s: Schedule = s) -> Tensor:
            return (s(t).alpha * data(x, t) - x) / s(t).sigma ** 2

        noise = torch.randn(50, 2, generator=g, dtype=torch.float64)
        if name == "ddpm":
            by_hand = (2 - (1 - beta) ** 0.5) * z + beta * gradient(z, times[0]) + beta**0.5 * noise
        else:
            rise = -(s(times).sigma ** 2).diff()
            by_hand = z + rise * gradient(z, times[0]) + rise.sqrt() * noise
        for _ in range(2):
            noise, slope = torch.randn(50, 2, generator=g, dtype=torch.float64), gradient(by_hand, times[1])
            eps = 2 * (1 - beta) * (r * noise.norm(dim=1).mean() / slope.norm(dim=1).mean()) ** 2
            by_hand = by_hand + eps * slope + (2 * eps).sqrt() * noise
        drawn = SAMPLERS["predictor-corrector"](data, s, times, z, gen(2), corrector_steps=2, corrector_snr=r)
        assert torch.allclose(drawn, by_hand)


def test_langevin_steps_are_the_papers() -> None:
    """Song & Ermon 2020, algorithm 1, and its choice of epsilon (technique 4) at its own 232 levels."""
    s, data = Exploding(0.01, 50.0), gaussian("exploding")
    data.schedule = s
    times, z, g, epsilon = s.times(4), 50 * normal(30, 2), gen(3), 6.2e-6
    by_hand = z
    for t in times:
        step = epsilon * s(t).sigma ** 2 / 0.01**2
        for _ in range(3):
            noise = torch.randn(30, 2, generator=g, dtype=torch.float64)
            by_hand = by_hand + step * (data(by_hand, t) - by_hand) / s(t).sigma ** 2 + (2 * step).sqrt() * noise
    own = {"langevin_steps": 3, "langevin_step": epsilon / 0.01**2}
    assert torch.allclose(SAMPLERS["annealed-langevin"](data, s, times, z, gen(3), **own), by_hand)
    assert step_of((50 / 0.01) ** (1 / 231), 5) == pytest.approx(6.2e-6 / 0.01**2, abs=1e-3)


def test_ddim_is_euler_on_the_straight_path() -> None:
    s, data = Linear(), gaussian("linear")
    times = torch.linspace(0.9, 0.1, 6, dtype=torch.float64)
    z = normal(10, 2)
    by_hand = z
    for t, u in pairwise(times):
        x = data(by_hand, t)
        velocity = (by_hand - (1 - t) * x) / t - x
        by_hand = by_hand + (u - t) * velocity
    assert torch.allclose(SAMPLERS["euler"](data, s, times, z, gen()), by_hand)


def test_ancestral_steps_are_the_posterior() -> None:
    """One step has the mean and variance of q(z_s | z_t, x) (Ho et al. 2020, eq. 7)."""
    s, n = Cosine(), 100_000
    times = torch.tensor([0.6, 0.4], dtype=torch.float64)
    x, z = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    drawn = SAMPLERS["ancestral"](lambda v, t: x.expand_as(v), s, times, z.expand(n, 1), gen())
    (a_t, a_s), (v_t, v_s) = s(times).alpha, s(times).sigma ** 2
    step = a_t / a_s
    beta = v_t - step**2 * v_s
    mean = step * v_s / v_t * z + a_s * beta / v_t * x
    assert drawn.mean().item() == pytest.approx(mean.item(), abs=5e-3)
    assert drawn.var().item() == pytest.approx((v_s * beta / v_t).item(), rel=0.02)


def test_a_callback_sees_every_denoising_and_may_guide() -> None:
    """Guided by the score of p(y | z), samples of N(0, 1) become those of its posterior (Dhariwal & Nichol 2021)."""
    s, n, y, spread = Cosine(), 20_000, 1.5, 0.5  # y = x + spread noise
    data = GaussianData(s, torch.zeros(1).double(), torch.eye(1).double())
    times, seen = s.levels(60), []

    def guide(step: int, t: Tensor, z: Tensor, denoised: Tensor) -> Tensor:
        seen.append((step, t.item()))
        p = s(t)
        left = p.sigma**2 / (p.alpha**2 + p.sigma**2)  # variance of x given z
        slope = p.alpha / (p.alpha**2 + p.sigma**2) * (y - denoised) / (left + spread**2)
        return denoised + p.sigma**2 / p.alpha * slope

    for name in ("sde", "heun"):
        x = sample(name, data, s, times, s(times[0]).scale * normal(n, 1, seed=3), gen(4), guide)
        assert x.mean().item() == pytest.approx(y / (1 + spread**2), abs=0.02)
        assert x.var().item() == pytest.approx(spread**2 / (1 + spread**2), abs=0.02)
    firsts, both = seen[:60], seen[60:]
    assert firsts == [(i, t) for i, t in enumerate(times[:-1].tolist())]
    assert both == [place for pair in pairwise(enumerate(times.tolist())) for place in pair]
    watched = []
    z = normal(5, 1)
    unchanged = sample("dpm++", data, s, times, z, gen(), lambda *what: watched.append(what))
    assert torch.equal(unchanged, SAMPLERS["dpm++"](data, s, times, z, gen()))
    assert len(watched) == 60


# -- what is learned from ---------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("times", TIMES)
def test_the_pace_of_the_times_undoes_them(name: str, times: str) -> None:
    """It is the derivative of the log SNR in u, whose mean over an even log SNR it so restores."""
    s, u = schedule(name), torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    _, pace = TIMES[times](s, u)
    if name == "ddpm" and times == "uniform":  # of so many steps
        u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        assert TIMES[times](s, u)[1].mean().item() == pytest.approx(1, abs=0.1)
        return
    ahead, behind = (s.log_snr(TIMES[times](s, u + d)[0]) for d in (1e-6, -1e-6))
    assert torch.allclose(
        (ahead - behind) / 2e-6, pace * (s.ends[1] - s.ends[0]), rtol=1e-2 if name == "ddpm" else 1e-5
    )
    edges = s.log_snr(TIMES[times](s, torch.tensor([0, 1 - 1e-12], dtype=torch.float64))[0])
    assert torch.allclose(edges, torch.tensor(s.ends, dtype=torch.float64), atol=0.01)


def test_times_are_distributed_as_named() -> None:
    s, u = Cosine(), torch.rand(100_000, generator=gen(), dtype=torch.float64)
    ratios = {name: (-s.log_snr(times(s, u)[0]) / 2) for name, times in TIMES.items()}  # log(sigma / alpha)
    normal_of = torch.distributions.Normal(-1.2 - math.log(0.5), 1.2)
    for level in (-3.0, -1.0, 0.0, 1.0):
        at = torch.tensor(level, dtype=torch.float64)
        share = {name: (ratio < at).double().mean().item() for name, ratio in ratios.items()}
        assert share["log-normal"] == pytest.approx(normal_of.cdf(at).item(), abs=0.01)
        assert share["cosine"] == pytest.approx(2 / math.pi * math.atan(math.exp(level)), abs=0.02)
        assert share["uniform"] == pytest.approx(s.time(-2 * at).item(), abs=0.01)
        assert share["log-snr"] == pytest.approx((level - math.log(1e-3)) / math.log(8e4), abs=0.01)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_weightings_are_of_the_error_in_eps(kind: str, weighting: str) -> None:
    """The loss is what the denoiser misses, in eps, times the weight as the papers give it."""
    s, x, eps = Linear(), normal(50, 3), normal(50, 3, seed=1)
    denoiser = Denoiser(lambda z, _: z.cos(), s, PREDICTIONS[kind], None, torch.float64)
    u = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    t, pace = TIMES["cosine"](s, u)
    p = point(s, t, x)
    missed = []
    for noise in (eps, -eps):
        z = p.alpha * x + p.sigma * noise
        of_eps = (eps_of(denoiser(z, t), z, p) - noise).square().mean(1)
        ratio = (p.sigma / p.alpha).flatten().square()
        own = PREDICTIONS[kind].target(x, noise, p) - z.div(p.scale).cos()
        weighted = {"likelihood": pace * of_eps, "simple": of_eps, "edm": (1 + ratio) * of_eps}
        missed.append(weighted.get(weighting, own.square().mean(1)))
    loss = path_loss(denoiser, x, [eps, -eps], u, TIMES["cosine"], WEIGHTINGS[weighting])
    assert torch.allclose(loss, (missed[0] + missed[1]) / 2)


def test_optimal_coupling_is_the_cheapest_order() -> None:
    x, eps = normal(6, 2), normal(6, 2, seed=1)
    coupled = COUPLINGS["optimal"](x, eps)
    costs = [(x - eps[list(order)]).square().sum().item() for order in permutations(range(6))]
    assert (x - coupled).square().sum().item() == pytest.approx(min(costs))
    assert sorted(coupled.tolist()) == sorted(eps.tolist())
    many, noise = 3 + normal(256, 2), normal(256, 2, seed=1)
    paid = (many - COUPLINGS["optimal"](many, noise)).square().sum(1).mean()
    assert paid < 18.5 < 20 < (many - noise).square().sum(1).mean()  # a shift by (3, 3) costs 18
    assert COUPLINGS["independent"](many, noise) is noise


# -- likelihoods ------------------------------------------------------------------------------------


def run_bound(
    data: GaussianData, x: Tensor, draws: int, seed: int = 0, steps: int | None = None
) -> tuple[Tensor, Tensor]:
    g, gaussian_of = gen(seed), Gaussian(2)  # not of the data: the noise of the number is what is tested

    def draw(u: Tensor) -> Tensor:
        eps = torch.randn(x.shape, generator=g, dtype=torch.float64)
        return bound(data, gaussian_of, data.schedule, x, u, eps, steps=steps)

    return stratified(draw, draws, RowNoise.by_place(len(x), g))


@every_schedule
def test_bound_is_tight_for_the_exact_denoiser(name: str) -> None:
    data = gaussian(name)
    x = data.sample(1000)
    nats, se = run_bound(data, x, draws=64)
    error = se.square().sum().sqrt() / len(x)
    assert error < 0.02
    assert abs((nats - data.log_prob(x)).mean()) < 4 * error + 2e-3


def test_bound_falls_short_by_what_the_denoiser_misses() -> None:
    """A denoiser of the wrong Gaussian is below the truth, and its bound equals that Gaussian's density."""
    data = gaussian()
    wrong = GaussianData(data.schedule, data.mean, torch.eye(2, dtype=torch.float64) * 1.5 - 0.5)
    x = data.sample(2000)
    nats, se = run_bound(wrong, x, draws=32)
    error = se.square().sum().sqrt() / len(x)
    assert (nats.mean() - data.log_prob(x).mean()) < -10 * error
    assert abs((nats - wrong.log_prob(x)).mean()) < 4 * error + 2e-3


def test_discrete_bound_rises_to_the_truth_with_its_steps() -> None:
    data = gaussian()
    x = data.sample(1000)
    truth = data.log_prob(x).mean()
    gaps = []
    for steps in (20, 100, 500, 2500):
        nats, se = run_bound(data, x, draws=256, steps=steps)
        gaps.append((truth - nats.mean()).item())
        assert gaps[-1] > -4 * (se.square().sum().sqrt() / len(x)).item()
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.06


def test_bound_of_the_chain_is_the_papers() -> None:
    """Ho et al. 2020, eq. 5, term by term in betas, for N(0, 0.49) and its own denoiser."""
    variance, x = 0.49, normal(6, 1)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    total = variance * kept + 1 - kept  # of x_t
    gain = variance * kept.sqrt() / total  # E[x_0 | x_t] = gain x_t
    square = x**2 * (1 - gain * kept.sqrt()) ** 2 + gain**2 * (1 - kept)  # E |x_0 - E[x_0 | x_t]|^2
    posterior = (1 - before) / (1 - kept) * betas
    between = (before * betas**2 / (1 - kept) ** 2 * square / (2 * posterior))[:, 1:].sum(1)
    far, near = kept[-1], kept[0]
    prior = ((1 - far + far * x**2) / total[-1] - 1 + (total[-1] / (1 - far)).log())[:, 0] / 2
    left = variance * (1 - near) / total[0]  # variance of x_0 given x_1
    last = -((2 * math.pi * left).log() + square[:, 0] / left) / 2
    found = Gaussian(1)
    found.variance.fill_(variance)
    chain = Chain(1000)
    data = GaussianData(chain, torch.zeros(1).double(), variance * torch.eye(1).double())
    nats = bound(data, found, chain, x, torch.rand(6, generator=gen()).double(), normal(6, 1, seed=2), steps=1000)
    assert torch.allclose(nats, last - prior - between, atol=1e-8)
    truth = torch.distributions.Normal(0, variance**0.5).log_prob(x)[:, 0]
    assert (nats < truth).all()
    assert (nats > truth - 0.6).all()


def test_bound_is_the_same_on_all_paths() -> None:
    """With the same noise levels and noise it depends on the path through the log SNR alone."""
    x, u, eps = normal(40, 2), torch.rand(40, generator=gen(1)).double(), normal(40, 2, seed=2)
    values = [bound(gaussian(n), Gaussian(2), schedule(n), x, u, eps) for n in SCHEDULES]
    for v in values[1:]:
        assert torch.allclose(v, values[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("draws", [2, 8])
def test_error_of_the_bound_is_calibrated(draws: int) -> None:
    data = gaussian()
    x = data.sample(200)
    runs = [run_bound(data, x, draws, seed=k) for k in range(60)]
    spread = torch.stack([r[0] for r in runs]).var(0).mean()
    said = torch.stack([r[1] for r in runs]).square().mean()
    assert (spread / said).item() == pytest.approx(1.0, abs=0.15)


# -- the U-Net ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 8, 8), (3, 32, 32), (1, 13, 9), (1, 1, 1)])
@pytest.mark.parametrize("patch", [1, 2])
def test_unet_takes_any_size(channels: int, height: int, width: int, patch: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(channels, hidden=16, levels=2, blocks=1, patch=patch, context=5)
    x = normal(3, channels, height, width).float()
    log_snr, h = torch.tensor([-3.0, 0.0, 5.0]), Encoded(normal(3, 5).float())
    assert torch.equal(net(x, log_snr, h), torch.zeros_like(x))  # it starts at zero
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=gen()))
    y = net(x, log_snr, h)
    assert y.shape == x.shape
    for k in range(3):  # rows are independent
        assert torch.allclose(net(x[k : k + 1], log_snr[k : k + 1], h[k : k + 1]), y[k : k + 1], atol=1e-5)
    assert not torch.allclose(net(x, log_snr + 1, h), y)
    assert not torch.allclose(net(x, log_snr, Encoded(h.vector + 1)), y)


def test_a_level_that_all_rows_share_is_embedded_once() -> None:
    """It gives what the net gives told of every row, with a context and without."""
    net, x = UNet(3, 16, 2, 1, 2, context=5, memory=4, attend=1), torch.randn(3, 3, 13, 9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        for h in (None, Encoded(torch.randn(3, 5), torch.randn(3, 3, 4))):
            level = torch.tensor([1.5])
            assert torch.allclose(net(x, level, h), net(x, level.expand(3), h), atol=1e-5)


def test_attentions_are_in_the_levels_asked_for() -> None:
    """One in the middle, and one for each block of the levels asked for: as many as on the way down plus one up."""
    counts = [sum(isinstance(m, Attention) for m in UNet(1, 16, 2, 1, attend=k).modules()) for k in range(3)]
    assert counts == [1, 1 + 3, 1 + 6]


# -- the transformer ----------------------------------------------------------------------------------


def dit(size: tuple[int, ...], patch: int, **options: int) -> Dit:
    net = Dit(size, 32, 2, patch, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net


@pytest.mark.parametrize(("size", "patch"), [((1, 8, 8), 1), ((3, 12, 8), 2), ((1, 13, 9), 4)])
def test_dit_takes_any_size(size: tuple[int, ...], patch: int) -> None:
    x, log_snr = torch.randn(3, *size), torch.tensor([-3.0, 0.0, 5.0])
    h = Encoded(torch.randn(3, 5), torch.randn(3, 2, 4))
    assert torch.equal(Dit(size, 32, 2, patch)(x, log_snr), torch.zeros_like(x))  # it starts at zero
    net = dit(size, patch, context=5, memory=4)
    y = net(x, log_snr, h)
    assert y.shape == x.shape
    for k in range(3):  # rows are independent, and one noise level serves all
        one = h[k : k + 1]
        assert torch.allclose(net(x[k : k + 1], log_snr[k : k + 1], one), y[k : k + 1], atol=1e-5)
    assert torch.allclose(net(x, torch.zeros(1)), net(x, torch.zeros(3)), atol=1e-6)
    for other in (Encoded(h.vector + 1, h.tokens), Encoded(h.vector, h.tokens.flip(2))):  # type: ignore[union-attr]
        assert not torch.allclose(net(x, log_snr, other), y)
    assert not torch.allclose(net(x, log_snr + 1, h), y)


def test_a_layer_of_dit_is_the_papers() -> None:
    """Against torch's own attention, given the layer's modulations."""
    torch.manual_seed(0)
    layer, attention = DitLayer(128), torch.nn.MultiheadAttention(128, 2, batch_first=True)
    layer.film.weight.data.normal_(std=0.05)
    attention.in_proj_weight.data, attention.in_proj_bias.data = layer.qkv.weight.data, layer.qkv.bias.data
    attention.out_proj.weight.data, attention.out_proj.bias.data = layer.out.weight.data, layer.out.bias.data
    x, emb = torch.randn(2, 5, 128), torch.randn(2, 1, 128)
    s1, b1, g1, s2, b2, g2 = layer.film(emb).chunk(6, -1)
    y = F.layer_norm(x, (128,)) * (1 + s1) + b1
    expected = x + g1 * attention(y, y, y)[0]
    y = F.layer_norm(expected, (128,)) * (1 + s2) + b2
    expected = expected + g2 * layer.down(F.gelu(layer.up(y), approximate="tanh"))
    assert torch.allclose(layer(x, emb), expected, atol=1e-5)
    fresh = DitLayer(128)
    assert torch.equal(fresh(x, emb), x)  # gates start at zero


def test_dit_knows_where_a_patch_is() -> None:
    """Without places a transformer gives for patches in another order the same in that order."""
    net, x = dit((1, 4, 4), 2), torch.randn(1, 1, 4, 4)
    assert not torch.allclose(net(x.roll(2, 3), torch.zeros(1)), net(x, torch.zeros(1)).roll(2, 3), atol=1e-3)
    assert len(places(4, 4, 32).unique(dim=0)) == 16
