"""Paths, samplers and path likelihoods against data whose best denoiser is known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pofx.core.noise import RowNoise
from pofx.nn.unet import UNet
from pofx.paths.gaussian import Gaussian
from pofx.paths.likelihood import bound, ode, stratified
from pofx.paths.predict import PREDICTIONS, Denoiser, eps_of, error_in_eps, point, target, to_x0, wiener
from pofx.paths.samplers import SAMPLERS
from pofx.paths.schedule import SCHEDULES, Cosine, Linear, Schedule

SMALLEST, LARGEST = 1e-3, 80.0
ENDS = {"smallest": SMALLEST, "largest": LARGEST}
every_schedule = pytest.mark.parametrize("name", list(SCHEDULES))


def schedule(name: str) -> Schedule:
    return SCHEDULES[name](SMALLEST, LARGEST)


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
    log_snr = torch.linspace(-2 * math.log(LARGEST), -2 * math.log(SMALLEST), 40, dtype=torch.float64)
    t = s.time(log_snr)
    assert torch.allclose(s.log_snr(t), log_snr, atol=1e-7)
    assert (t[1:] < t[:-1]).all()
    t.requires_grad_()
    p = s(t)
    for value, slope in ((p.alpha, p.d_alpha), (p.sigma, p.d_sigma)):
        (auto,) = torch.autograd.grad((value + 0 * t).sum(), t, retain_graph=True)
        assert torch.allclose(auto, slope, rtol=1e-8, atol=1e-12)
    if name in ("cosine", "linear-beta"):
        assert torch.allclose(p.alpha**2 + p.sigma**2, torch.ones_like(t), atol=1e-12)


@every_schedule
def test_times_reach_both_ends(name: str) -> None:
    s = schedule(name)
    times = s.times(7, **ENDS)
    ratio = s(times).sigma / s(times).alpha
    assert len(times) == 8
    assert torch.allclose(ratio[[0, -1]], torch.tensor([LARGEST, SMALLEST], dtype=torch.float64))


# -- predictions ------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_agree(name: str, kind: str) -> None:
    x, eps, shift = (normal(30, 3, seed=k) for k in range(3))
    s = schedule(name)
    p = point(s, s.time(torch.linspace(-6, 8, 30, dtype=torch.float64)), x)
    z = p.alpha * x + p.sigma * eps
    assert torch.allclose(to_x0(kind, target(kind, x, eps, p), z, p), x, atol=1e-9)
    # a prediction that is off by ``shift`` is off in eps by error_in_eps times that
    off = to_x0(kind, target(kind, x, eps, p) + shift, z, p)
    assert torch.allclose((eps_of(off, z, p) - eps).abs(), (error_in_eps(kind, p) * shift).abs(), atol=1e-8)
    assert torch.allclose(to_x0(kind, wiener(kind, z, p, Gaussian(3)), z, p), p.alpha * z / p.scale**2, atol=1e-9)


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
    zero = Denoiser(lambda z, log_snr: torch.zeros_like(z), s, kind, found, torch.float64)
    drawn = bound(zero, found, s, x, torch.rand(20, generator=gen(1)).double(), normal(20, 3, seed=2), **ENDS)
    solved, _ = ode(zero, found, s, x, steps=64, **ENDS)
    assert torch.allclose(drawn, truth, atol=1e-6)
    assert torch.allclose(solved, truth, atol=0.02)


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
        nats = bound(lambda z, t: found.denoise(z, point(s, t, z)), found, s, x, u, eps, steps=steps, **ENDS)
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
    n, s = 20_000, schedule(name)
    mean, cov = torch.tensor([0.5, -1.0]).double(), torch.tensor([[0.6, 0.3], [0.3, 0.4]]).double()
    data = GaussianData(s, mean, cov)
    # even in log SNR, where every schedule takes the same steps
    ends = -2 * math.log(LARGEST), -2 * math.log(SMALLEST)
    times = s.time(torch.linspace(*ends, 151, dtype=torch.float64))
    z = s(times[0]).scale * normal(n, 2, seed=3)
    x = SAMPLERS[name_of_sampler](data, s, times, z, gen(4)) / s(times[-1]).alpha
    first_order = name_of_sampler in ("ancestral", "ddim", "euler")
    assert (x.mean(0) - mean).abs().max() < 0.02
    assert (x.T.cov() - cov).abs().max() < (0.05 if first_order else 0.02)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm++", 2)])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_order_of_convergence(name: str, sampler: str, order: int) -> None:
    """The error against the exact flow of a Gaussian, regressed on the number of steps."""
    data = gaussian(name)
    s = data.schedule
    # steps even in log SNR on a range where all resolve it: orders are asymptotic
    first, last = s.time(torch.tensor([-3.0, 3.0], dtype=torch.float64))
    begin = normal(50, 2)
    values, vectors = torch.linalg.eigh(data.cov)

    def spread(t: Tensor) -> Tensor:
        p = s(t)
        return (p.alpha**2 * values + p.sigma**2).sqrt()

    # the flow keeps (z - alpha mean) / standard deviation along every eigenvector
    z = s(first).alpha * data.mean + (begin * spread(first)) @ vectors.T
    exact = s(last).alpha * data.mean + (begin * spread(last)) @ vectors.T
    counts = [16, 32, 64, 128]
    errors = []
    for steps in counts:
        times = s.time(torch.linspace(-3.0, 3.0, steps + 1, dtype=torch.float64))
        errors.append((SAMPLERS[sampler](data, s, times, z, gen()) - exact).square().mean().sqrt().item())
    logs = torch.tensor([[math.log(k), math.log(e)] for k, e in zip(counts, errors, strict=True)])
    slope = torch.linalg.lstsq(torch.stack([logs[:, 0], torch.ones(4)], 1), logs[:, 1:]).solution[0].item()
    assert -slope == pytest.approx(order, abs=0.25), errors


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


# -- likelihoods ------------------------------------------------------------------------------------


def run_bound(
    data: GaussianData, x: Tensor, draws: int, seed: int = 0, steps: int | None = None
) -> tuple[Tensor, Tensor]:
    g, gaussian_of = gen(seed), Gaussian(2)  # not of the data: the noise of the number is what is tested

    def draw(u: Tensor) -> Tensor:
        eps = torch.randn(x.shape, generator=g, dtype=torch.float64)
        return bound(data, gaussian_of, data.schedule, x, u, eps, steps=steps, **ENDS)

    return stratified(draw, draws, RowNoise.by_place(len(x), g))


@every_schedule
def test_ode_gives_the_gaussian_density(name: str) -> None:
    data = gaussian(name)
    x = data.sample(50)
    nats, se = ode(data, Gaussian(2), data.schedule, x, steps=32, **ENDS)
    assert (nats - data.log_prob(x)).abs().max() < 1e-3
    assert (se == 0).all()


def test_hutchinson_is_unbiased_and_says_its_error() -> None:
    data = gaussian()
    x = data.sample(1).expand(2000, 2)
    exact, _ = ode(data, Gaussian(2), data.schedule, x[:1], steps=8, **ENDS)
    probe = 2 * torch.randint(0, 2, (4, *x.shape), generator=gen(1)).to(x) - 1
    nats, se = ode(data, Gaussian(2), data.schedule, x, steps=8, probe=probe, **ENDS)
    spread = nats.std()
    assert spread > 0.05
    assert abs(nats.mean() - exact) < 4 * spread / 2000**0.5
    assert se.square().mean().sqrt().item() == pytest.approx(spread.item(), rel=0.1)


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


def test_bound_is_the_same_on_all_paths() -> None:
    """With the same noise levels and noise it depends on the path through the log SNR alone."""
    x, u, eps = normal(40, 2), torch.rand(40, generator=gen(1)).double(), normal(40, 2, seed=2)
    values = [bound(gaussian(n), Gaussian(2), schedule(n), x, u, eps, **ENDS) for n in SCHEDULES]
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
    log_snr, h = torch.tensor([-3.0, 0.0, 5.0]), normal(3, 5).float()
    assert torch.equal(net(x, log_snr, h), torch.zeros_like(x))  # it starts at zero
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=gen()))
    y = net(x, log_snr, h)
    assert y.shape == x.shape
    for k in range(3):  # rows are independent
        assert torch.allclose(net(x[k : k + 1], log_snr[k : k + 1], h[k : k + 1]), y[k : k + 1], atol=1e-5)
    assert not torch.allclose(net(x, log_snr + 1, h), y)
    assert not torch.allclose(net(x, log_snr, h + 1), y)
