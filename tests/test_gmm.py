"""Gaussian mixtures: EM against scikit-learn and a slow twin, and the identities that densities obey."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.mixture import GaussianMixture as Peer
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from pofx.core.errors import BadValue, Unsupported, UsageError
from pofx.core.learner import Batch
from pofx.core.likelihood import Exact, LowerBound
from pofx.core.requests import Dequantised
from pofx.families.gmm import Gaussian, GaussianConfig, GaussianMixture, Mixture, MixtureConfig
from pofx.families.mixture import em, kernels, sweep
from pofx.families.mixture import whitening as whitening
from pofx.spaces import Category, Image, Integer, Label, Real, Table

KINDS = ("full", "tied", "diag", "spherical")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reals(d: int, nullable: bool = False) -> Table:
    return Table(tuple(Real(f"x{j}", nullable=nullable) for j in range(d)))


def blobs(n: int, d: int, k: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    g = generator(seed)
    mean = spread * torch.randn(k, d, generator=g, dtype=torch.float64)
    root = torch.randn(k, d, d, generator=g, dtype=torch.float64) / math.sqrt(d) * 0.5 + 0.5 * torch.eye(d)
    label = torch.arange(n) % k
    noise = torch.randn(n, d, 1, generator=g, dtype=torch.float64)
    return mean[label] + (root[label] @ noise).squeeze(-1)


def start(kind: str, x: Tensor, k: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Equal weights, the first k rows as means, and the columns' variances times ``scale``."""
    d = x.shape[1]
    variance = x.var(0, unbiased=False) * scale
    if kind == "spherical":
        variance = variance.mean().expand(d)
    shapes = {"full": variance.diag().expand(k, d, d), "tied": variance.diag()}
    return torch.full((k,), 1 / k, dtype=torch.float64), x[:k].clone(), shapes.get(kind, variance.expand(k, d))


def model_at(
    kind: str, x: Tensor, k: int, *, scale: float = 1.0, space: Table | None = None, **options: Any
) -> Mixture:
    config = MixtureConfig(components=k, covariance=kind, **{"floor": 1e-8, "wishart_prior": 0.0, **options})  # type: ignore[arg-type]
    model = GaussianMixture(config, space or reals(x.shape[1]))
    model.measure(x)
    model.start_at(*start(kind, x[~x.isnan().any(1)], k, scale))
    return model


def run(model: Mixture, x: Tensor, steps: int, c: Tensor | None = None, weight: Tensor | None = None) -> list[Any]:
    """Steps of EM on one batch; what each returned."""
    learner = model.learner(model.recipe(model.space))
    return [learner.step(Batch(x, c, weight, total=len(x), step=t), generator(t)) for t in range(steps)]


def exact(model: Mixture, x: Tensor, c: Tensor | None = None) -> Tensor:
    lik = model.given(c).log_prob(x)
    assert isinstance(lik, Exact)
    return lik.nats


def peer(kind: str, x: Tensor, k: int, steps: int, scale: float = 1.0) -> Peer:
    weights, means, covariances = start(kind, x, k, scale)
    precision = {
        "full": lambda: covariances.inverse(),
        "tied": lambda: covariances.inverse(),
        "diag": lambda: 1 / covariances,
        "spherical": lambda: 1 / covariances[:, 0],
    }[kind]()
    model = Peer(
        k, covariance_type=kind, tol=0, reg_covar=0, max_iter=steps, weights_init=weights.numpy(),
        means_init=means.numpy(), precisions_init=precision.numpy(),
    )  # fmt: skip
    return model.fit(x.numpy())


# -- equality with others ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Best performing:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d", "k"), [(1, 2), (3, 4), (24, 4)])
def test_equals_scikit_learn(kind: str, d: int, k: int) -> None:
    """Same start, same steps, same mixture (d = 24, k = 4 takes the stacked kernel, d = 3 the quadratic one)."""
    x = blobs(1200, d, k)
    if kind == "spherical":  # ours is in units of each column
        x = x / x.std(0, unbiased=False)
    ours, theirs = model_at(kind, x, k, scale=4.0), peer(kind, x, k, 7, scale=4.0)
    losses = [float(out["loss"]) for out in run(ours, x, 7)]
    assert -losses[-1] == pytest.approx(theirs.lower_bound_, rel=1e-10)
    assert torch.allclose(ours.means, torch.from_numpy(theirs.means_), rtol=1e-8, atol=1e-8)
    covariances = ours.covariances[:, 0] if kind == "spherical" else ours.covariances
    assert torch.allclose(covariances, torch.from_numpy(theirs.covariances_), rtol=1e-7, atol=1e-9)
    assert torch.allclose(exact(ours, x), torch.from_numpy(theirs.score_samples(x.numpy())), rtol=1e-9, atol=1e-9)
    assert ours.parameter_count() == theirs._n_parameters()
    assert ours.bic(x) == pytest.approx(theirs.bic(x.numpy()), rel=1e-10)
    assert ours.aic(x) == pytest.approx(theirs.aic(x.numpy()), rel=1e-10)


@pytest.mark.filterwarnings("ignore:Best performing:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("case", ["far", "ill-conditioned"])
def test_hard_data_lose_no_digits(case: str) -> None:
    """Log-likelihoods equal scikit-learn's to 1e-6 at mean 1e6 and deviation 1, and at condition number 1e8."""
    x = blobs(2000, 6, 3, seed=1)
    x = x / x.std(0)
    if case == "far":
        x = x + 1e6
    else:
        q = torch.linalg.qr(torch.randn(6, 6, generator=generator(2), dtype=torch.float64)).Q
        x = x @ (q * torch.logspace(0, -4, 6, dtype=torch.float64)) @ q.T
    ours, theirs = model_at("full", x, 3), peer("full", x, 3, 10)
    assert -float(run(ours, x, 10)[-1]["loss"]) == pytest.approx(theirs.lower_bound_, rel=1e-6)
    assert float(exact(ours, x).mean()) == pytest.approx(theirs.score(x.numpy()), rel=1e-6)


def slow_step(pi: Tensor, mu: Tensor, sigma: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """EM as on paper: one row after another, by conditional expectations (Ghahramani, Jordan 1994)."""
    k, d = mu.shape
    n, first, second = torch.zeros(k).double(), torch.zeros(k, d).double(), torch.zeros(k, d, d).double()
    log_lik = 0.0
    for row, w in zip(x, weight, strict=True):
        o = (~row.isnan()).nonzero().squeeze(1)
        log_p, filled, rest = pi.log(), [], []
        for j in range(k):
            gain = sigma[j][:, o] @ torch.linalg.inv(sigma[j][o][:, o])
            if len(o):
                density = MultivariateNormal(mu[j][o], sigma[j][o][:, o], validate_args=False).log_prob(row[o])
                log_p = log_p + density * torch.eye(k, dtype=torch.float64)[j]
            filled.append(mu[j] + gain @ (row[o] - mu[j][o]))
            rest.append(sigma[j] - gain @ sigma[j][o])
        log_lik += float(w * log_p.logsumexp(0))
        for j, r in enumerate(w * log_p.softmax(0)):
            n[j] += r
            first[j] += r * filled[j]
            second[j] += r * (filled[j].outer(filled[j]) + rest[j])
    mean = first / n[:, None]
    return n / n.sum(), mean, second / n[:, None, None] - mean[:, :, None] * mean[:, None, :], log_lik / float(n.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scattered", [0, 4, 1000])  # all patterns apart, some together, all together
def test_equals_the_slow_twin_with_missing_values_and_weights(
    kind: str, scattered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whitening, "SCATTERED", scattered)
    x = blobs(80, 3, 2, spread=1.5)
    x = x / x.std(0, unbiased=False)
    x[torch.rand(80, 3, generator=generator(1)) < 0.3] = math.nan
    x[:5] = blobs(5, 3, 1)  # whole rows to start from
    x[7] = math.nan
    weight = torch.rand(80, generator=generator(2), dtype=torch.float64)
    model = model_at(kind, x, 2, space=reals(3, nullable=True))
    model.scale.fill_(1.0)  # so that "spherical" means the same in both
    model.start_at(*start(kind, x[:5], 2))
    pi, mu = model.weights, model.means
    full = {"full": lambda s: s, "tied": lambda s: s.expand(2, 3, 3)}.get(kind, torch.diag_embed)
    new_pi, new_mu, scatter, log_lik = slow_step(pi, mu, full(model.covariances), x, weight)
    out = run(model, x, 1, weight=weight)[0]
    masks = 3 * math.log(0.5)  # of three columns, equal and even in all components at the start
    assert -float(out["loss"]) == pytest.approx(log_lik + masks, rel=1e-10)
    assert torch.allclose(model.means, new_mu, atol=1e-9)
    assert torch.allclose(model.weights, new_pi, atol=1e-9)
    want = {
        "full": scatter,
        "tied": (new_pi[:, None, None] * scatter).sum(0),
        "diag": scatter.diagonal(dim1=1, dim2=2),
        "spherical": scatter.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(2, 3),
    }[kind]
    assert torch.allclose(model.covariances, want, atol=1e-9)


def test_kernels_agree() -> None:
    """The quadratic and the stacked kernel are one function, over several blocks, in both precisions."""
    x = blobs(3000, 5, 3)
    model = model_at("full", x, 3)
    run(model, x, 2)
    coordinates, components = model.whitening(), model.components()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        (rows,) = coordinates.rows(x, torch.zeros(len(x), 0, dtype=torch.int64), None, dtype)
        local = whitening.marginalise(components, rows, coordinates)
        out = []
        for kernel in (kernels._Quadratic(local, rows, dtype), kernels._Stacked(local, rows, dtype)):
            kernel.block = 256
            blocks = list(sweep._posteriors(rows, kernel, components.table))
            assert len(blocks) == 12
            kernel.add(blocks[-1][1])
            out.append((blocks[-1][3], *kernel.moments()))
        for a, b in zip(*out, strict=True):
            assert torch.allclose(a.double(), b.double(), atol=tolerance * float(b.abs().max()))


def test_float32_is_near() -> None:
    x = blobs(2000, 4, 3)
    a, b = (model_at("full", x, 3, dtype=dtype) for dtype in ("float64", "float32"))
    assert float(run(b, x, 8)[-1]["loss"]) == pytest.approx(float(run(a, x, 8)[-1]["loss"]), rel=1e-4)


# -- what EM promises ------------------------------------------------------------------------------------------


def mixed(n: int, seed: int = 0) -> tuple[Table, Tensor]:
    """Two reals (one with missing entries), an integer with an atom at 0, a nullable category."""
    g = generator(seed)
    label = torch.arange(n) % 2
    x = torch.randn(n, 4, generator=g, dtype=torch.float64) + 3 * label[:, None]
    x[torch.rand(n, generator=g) < 0.2, 1] = math.nan
    x[:, 2] = torch.where(torch.rand(n, generator=g) < 0.4, 0.0, (20 * x[:, 2]).round())
    x[:, 3] = torch.where(torch.rand(n, generator=g) < 0.1, math.nan, (label + (x[:, 3] > 2)).double())
    columns = (Real("a"), Real("b", nullable=True), Integer("n", -200, 200), Category("k", ("u", "v", "w"), True))
    return Table(columns), x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("priors", [{}, {"normal_prior": 0.5, "wishart_prior": 9.0, "dirichlet_prior": 2.0}])
def test_likelihood_never_falls(kind: str, priors: dict[str, float]) -> None:
    """log p(data | theta) + log p(theta) rises in every step: missing values, categories, priors, floors."""
    space, x = mixed(600)
    config = MixtureConfig(components=4, covariance=kind, tol=0.0, floor=1e-2, **priors)  # type: ignore[arg-type]
    model = GaussianMixture(config, space)
    model.prepare(x, None, None, generator())
    outs = run(model, x, 40)
    heights = torch.tensor([float(o["log_prior"] - o["loss"]) for o in outs])
    assert all(float(o["revived"]) == 0 for o in outs)
    assert (heights.diff() > -1e-10).all()
    assert heights[-1] > heights[0] + 0.02


def test_weights_are_repeats() -> None:
    x = blobs(300, 2, 3)
    repeats = torch.randint(1, 4, (300,), generator=generator())
    again = x.repeat_interleave(repeats, 0)
    a, b = model_at("full", x, 3), model_at("full", x, 3)
    run(a, x, 5, weight=repeats.double())
    run(b, again, 5)
    assert torch.allclose(a.means, b.means, atol=1e-10)
    assert torch.allclose(a.covariances, b.covariances, atol=1e-10)
    assert torch.allclose(a.weights, b.weights, atol=1e-12)


def test_affine_maps_shift_the_nats() -> None:
    """A fit to A x + b is the image of the fit to x: log-densities fall by log |A|. So it is from k-means++ on."""
    x = blobs(900, 3, 3)
    a = torch.randn(3, 3, generator=generator(5), dtype=torch.float64)
    first = model_at("full", x, 3)
    image = model_at("full", x @ a.T + 100, 3)
    weights, means, covariances = start("full", x, 3)
    image.start_at(weights, means @ a.T + 100, a @ covariances @ a.T)
    run(first, x, 12)
    run(image, x @ a.T + 100, 12)
    assert torch.allclose(exact(image, x @ a.T + 100), exact(first, x) - a.slogdet().logabsdet, atol=1e-8)
    scaled, plain = (GaussianMixture(MixtureConfig(components=3, wishart_prior=0.0), reals(3)) for _ in range(2))
    for model, data in ((plain, x), (scaled, 4096 * x)):
        model.prepare(data, None, None, generator())
        run(model, data, 5)
    assert torch.allclose(exact(scaled, 4096 * x), exact(plain, x) - 3 * math.log(4096), atol=1e-9)


@pytest.mark.parametrize("restarts", [1, 3])
def test_parameters_are_recovered(restarts: int) -> None:
    mean = torch.tensor([[0.0, 0.0], [6.0, 1.0], [1.0, 7.0], [-5.0, 4.0]], dtype=torch.float64)
    share = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    label = torch.multinomial(share, 8000, replacement=True, generator=generator(3))
    x = mean[label] + torch.randn(8000, 2, generator=generator(4), dtype=torch.float64) * torch.tensor([1.0, 0.5])
    model = GaussianMixture(MixtureConfig(components=4, restarts=restarts), reals(2))
    model.prepare(x, None, None, generator())
    learner, steps = model.learner(model.recipe(model.space)), 0
    while not learner.finished:
        learner.step(Batch(x, total=len(x)), generator())
        steps += 1
    assert steps < 50
    order = model.weights.argsort()
    assert torch.allclose(model.weights[order], share, atol=0.02)
    assert torch.allclose(model.means[order], mean, atol=0.12)
    truth = torch.tensor([1.0, 0.25], dtype=torch.float64).diag().expand(4, 2, 2)
    assert torch.allclose(model.covariances, truth, atol=0.15)


def test_a_gaussian_is_done_at_once() -> None:
    x = blobs(500, 4, 2)
    model = Gaussian(GaussianConfig(wishart_prior=0.0), reals(4))
    model.prepare(x, None, None, generator())
    learner = model.learner(model.recipe(model.space))
    learner.step(Batch(x, total=len(x)), generator())
    assert learner.finished
    want = MultivariateNormal(x.mean(0), x.T.cov(correction=0)).log_prob(x)
    assert torch.allclose(exact(model, x), want, atol=1e-10)
    assert model.parameter_count() == 4 + 10


def test_map_of_a_gaussian_in_closed_form() -> None:
    """Sigma = (N S + kappa N / (kappa + N) m m' + w P) / (N + w + 1), P of S less a little correlation, m = 0."""
    x = blobs(200, 2, 1)
    model = Gaussian(GaussianConfig(wishart_prior=50.0, normal_prior=3.0), reals(2))
    model.prepare(x, None, None, generator())
    run(model, x, 1)
    own = x.T.cov(correction=0)
    pooled = torch.lerp(own.diagonal().diag(), own, 200 / 202)
    assert torch.allclose(model.covariances[0], (200 * own + 50 * pooled) / 251, atol=1e-10)
    mixture = model_at("full", x, 2, wishart_prior=50.0)
    run(mixture, x, 30)
    floor = 50 / 2 / (200 + 50)  # w / K^(2/d) over all rows: the least that the prior allows
    whitened = mixture.factor @ mixture.factor.mT
    assert (torch.linalg.eigvalsh(whitened) > floor).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2])
def test_map_is_the_mode_that_a_search_finds(kind: str, k: int) -> None:
    """Of log-likelihood plus the log-densities of the docstring's priors, over means, Cholesky factors and weights."""
    x, d = blobs(40, 2, 2, seed=8, spread=2.0), 2
    kappa, w, a, s = 4.0, 7.0, 2.0, k ** (-2 / d)
    # of a fresh model the coordinates are the raw ones
    config = MixtureConfig(
        components=k, covariance=kind, floor=1e-8, tol=0.0, normal_prior=kappa, wishart_prior=w, dirichlet_prior=a
    )  # type: ignore[arg-type]
    model = GaussianMixture(config, reals(d))
    model.start_at(*start(kind, x, k))
    run(model, x, 400)

    def unpacked(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [k], means [k, d], Cholesky factors: one for each component, or a single one."""
        weight, mean = torch.cat([p[: k - 1], p.new_zeros(1)]).softmax(0), p[k - 1 :][: k * d].view(k, d)
        rest = p[k - 1 + k * d :]
        if kind in ("full", "tied"):
            lower, diagonal = rest.view(-1, 3)[:, 0], rest.view(-1, 3)[:, 1:].exp()
            return weight, mean, diagonal.diag_embed() + F.pad(lower[:, None, None], (0, 1, 1, 0))
        return weight, mean, rest.view(k, -1).exp().expand(k, d).diag_embed()

    def loss(p: Tensor) -> Tensor:
        weight, mean, factor = unpacked(p)
        each = MultivariateNormal(mean, scale_tril=factor.expand(k, d, d), validate_args=False)
        log_lik = (each.log_prob(x[:, None]) + weight.log()).logsumexp(1).sum()
        means = MultivariateNormal(torch.zeros_like(mean), scale_tril=factor / math.sqrt(kappa)).log_prob(mean).sum()
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum()
        trace = torch.linalg.inv(factor).square().sum()
        return -(log_lik + a * weight.log().sum() + means - w / 2 * log_det - w * s / 2 * trace)

    def slope(p: np.ndarray) -> tuple[float, np.ndarray]:
        t = torch.tensor(p, requires_grad=True)
        value = loss(t)
        return float(value.detach()), torch.autograd.grad(value, t)[0].numpy()

    size = {"full": 3 * k, "tied": 3, "diag": k * d, "spherical": k}[kind]
    first = np.concatenate([np.zeros(k - 1), x[:k].flatten().numpy(), np.zeros(size)])
    found = optimize.minimize(slope, first, jac=True, method="BFGS", options={"gtol": 1e-9})
    weight, mean, factor = unpacked(torch.tensor(found.x))
    assert torch.allclose(model.weights, weight, atol=1e-5)
    assert torch.allclose(model.means, mean, atol=1e-5)
    own = model.covariances if kind in ("full", "tied") else model.covariances.diag_embed()
    assert torch.allclose(own, (factor @ factor.mT).view_as(own), atol=1e-5)


def test_fewer_rows_than_columns() -> None:
    """By default no direction is without variance: unseen rows are about as likely as those of the fit."""
    rows = blobs(220, 40, 1)
    x, test = rows[:20], rows[20:]
    for kind in ("full", "tied"):
        model = GaussianMixture(MixtureConfig(components=2, covariance=kind), reals(40))  # type: ignore[arg-type]
        model.prepare(x, None, None, generator())
        run(model, x, 5)
        independent = MultivariateNormal(x.mean(0), x.var(0, correction=0).diag())
        assert exact(model, test).mean() > independent.log_prob(test).mean() - 15


def test_dead_components_come_back() -> None:
    x = blobs(400, 2, 2)
    model = model_at("full", x, 3)
    weights, means, covariances = start("full", x, 3)
    means[2] = 1e4
    model.start_at(weights, means, covariances)
    outs = run(model, x, 20)
    assert float(outs[0]["revived"]) == 1
    assert sum(float(o["revived"]) for o in outs) == 1
    assert (model.weights > 1e-3).all()
    assert float(outs[-1]["loss"]) < float(outs[1]["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_singular_data_stay_finite(kind: str) -> None:
    """A repeated column, a constant one, and more components than distinct rows: floored, at every scale."""
    x = blobs(200, 2, 2)
    x = torch.cat([x, x[:, :1], torch.full((200, 1), 7.0, dtype=torch.float64)], 1)
    nats = []
    for scale in (1.0, 2.0**30):
        model = GaussianMixture(MixtureConfig(components=3, covariance=kind), reals(4))  # type: ignore[arg-type]
        data = x * torch.tensor([scale, scale, scale, 1.0])
        model.prepare(data, None, None, generator())
        run(model, data, 10)
        nats.append(exact(model, data))
        assert nats[-1].isfinite().all()
    assert torch.allclose(nats[0] - nats[1], torch.tensor(3 * 30 * math.log(2), dtype=torch.float64), atol=1e-3)
    few = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64).repeat(5, 1)
    model = GaussianMixture(MixtureConfig(components=4, covariance=kind), reals(2))  # type: ignore[arg-type]
    model.prepare(few, None, None, generator())
    run(model, few, 5)
    assert exact(model, few).isfinite().all()


def test_resume_is_bit_for_bit() -> None:
    space, x = mixed(300)
    models = [GaussianMixture(MixtureConfig(components=3, wishart_prior=0.0), space) for _ in range(2)]
    for model in models:
        model.prepare(x, None, None, generator())
    straight = run(models[0], x, 6)
    learner = models[1].learner(models[1].recipe(space))
    for t in range(3):
        learner.step(Batch(x, total=len(x), step=t), generator(t))
    weights, state = models[1].state_dict(), learner.state_dict()
    fresh = GaussianMixture(MixtureConfig(components=3, wishart_prior=0.0), space)
    fresh.load_state_dict(weights)
    resumed = fresh.learner(fresh.recipe(space))
    resumed.load_state_dict(state)
    outs = [resumed.step(Batch(x.clone(), total=len(x), step=t), generator(t)) for t in range(3, 6)]
    assert torch.equal(outs[-1]["loss"], straight[-1]["loss"])
    for a, b in zip(models[0].state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_shares_add_up() -> None:
    """The statistics of two processes, each with half of the rows and of the noise, sum to those of one."""
    space, x = mixed(400)
    model = GaussianMixture(MixtureConfig(components=3), space)
    model.prepare(x, None, None, generator())
    learners = [em.EmLearner(model, seed=5) for _ in range(3)]
    batches = [Batch(x, total=400), Batch(x[:150], start=0, total=400), Batch(x[150:], start=150, total=400)]
    found = []
    for learner, batch in zip(learners, batches, strict=True):
        found.append(sweep.e_step(model.components(), learner._rows(batch), model.whitening()))
    for whole, a, b in zip(*(vars(f).values() for f in found), strict=True):
        assert torch.allclose(whole, a + b, atol=1e-8)


# -- densities -------------------------------------------------------------------------------------------------


def fitted(space: Table, x: Tensor, k: int = 3, steps: int = 15, **options: Any) -> Mixture:
    model = GaussianMixture(MixtureConfig(components=k, **options), space)
    model.prepare(x, None, None, generator())
    run(model, x, steps)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_densities_integrate_to_one(kind: str) -> None:
    x = blobs(300, 2, 3)
    line = torch.linspace(-40, 40, 8001, dtype=torch.float64)[:, None]
    one = fitted(reals(1), x[:, :1], covariance=kind)
    assert float(exact(one, line).exp().sum() * 0.01) == pytest.approx(1, abs=1e-6)
    side = torch.linspace(-20, 20, 501, dtype=torch.float64)
    two = fitted(reals(2), x, covariance=kind)
    assert float(exact(two, torch.cartesian_prod(side, side)).exp().sum() * 0.08**2) == pytest.approx(1, abs=1e-4)


def test_a_missing_entry_is_marginalised() -> None:
    """log p of a row with gaps = log of the mixture's marginal, and the masks' probabilities."""
    x = blobs(500, 4, 3)
    x[torch.rand(x.shape, generator=generator(1)) < 0.15] = math.nan
    model = fitted(reals(4, nullable=True), x, covariance="full")
    masks = model.table.exp().view(3, 4, 2)
    pi, mu, sigma = model.weights, model.means, model.covariances
    for row in x[:40]:
        o = (~row.isnan()).nonzero().squeeze(1)
        log_p = pi.log()
        for i in range(4):
            log_p = log_p + masks[:, i, int(row[i].isnan())].log()
        if len(o):
            marginal = [MultivariateNormal(mu[j][o], sigma[j][o][:, o]).log_prob(row[o]) for j in range(3)]
            log_p = log_p + torch.stack(marginal)
        assert float(exact(model, row[None])) == pytest.approx(float(log_p.logsumexp(0)), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conditional_is_a_ratio_of_joints(kind: str) -> None:
    """p(x | c) = p(c, x) / p(c), integrates to one, and its samples have its moments; c may have gaps."""
    joint = blobs(800, 3, 3)
    c, x = joint[:, :2].clone(), joint[:, 2:].clone()
    c[torch.rand(c.shape, generator=generator(1)) < 0.1] = math.nan
    options = MixtureConfig(components=3, covariance=kind)  # type: ignore[arg-type]
    model = GaussianMixture(options, reals(1), reals(2, nullable=True))
    model.prepare(x, c, None, generator())
    run(model, x, 15, c)
    both = GaussianMixture(options, Table((*reals(2, nullable=True).columns, Real("y"))))
    both.load_state_dict(model.state_dict())
    one = GaussianMixture(options, reals(2, nullable=True))
    own = ("location", "scale", "reach", "pooled", "mean", "factor")
    state = {k: v for k, v in model.state_dict().items() if k not in own}
    one.load_state_dict(state, strict=False)
    for name in ("location", "scale"):
        getattr(one, name).copy_(getattr(model, name)[:2])
    root = model.pooled[:2, :2] if kind in ("full", "tied") else model.pooled
    one.pooled.copy_(root)  # lower factors: the leading block is the marginal's
    one.mean.copy_(model.mean[:, :2])
    one.factor.copy_(model.factor if kind == "spherical" else model.factor[..., :2, :2] if kind in ("full", "tied")
                     else model.factor[:, :2])  # fmt: skip
    ratio = exact(both, torch.cat([c, x], 1)) - exact(one, c)
    assert torch.allclose(exact(model, x, c), ratio, atol=1e-8)

    line = torch.linspace(-30, 30, 6001, dtype=torch.float64)[:, None]
    for given in (c[0], torch.tensor([math.nan, 1.0], dtype=torch.float64), c[:1].mean(0) * math.nan):
        p = exact(model, line, given.expand(6001, 2)).exp()
        assert float(p.sum() * 0.01) == pytest.approx(1, abs=1e-6)
        drawn = model.given(given).sample(20_000, generator=generator(3))[:, 0]
        mean = float((p * line[:, 0]).sum() * 0.01)
        spread = math.sqrt(float((p * (line[:, 0] - mean) ** 2).sum() * 0.01))
        assert float(drawn.mean()) == pytest.approx(mean, abs=5 * spread / math.sqrt(20_000))
        assert float(drawn.std()) == pytest.approx(spread, rel=0.05)


def test_one_mixture_per_class() -> None:
    """Given a label, a gaussian is one Gaussian per class; an unseen class has the data's own; so for categories."""
    x, c = blobs(600, 2, 3), torch.arange(600) % 3
    model = Gaussian(GaussianConfig(wishart_prior=0.0), reals(2), Label(("a", "b", "c", "never seen")))
    model.prepare(x, c, None, generator())
    run(model, x, 1, c)
    for k in range(3):
        mine = x[c == k]
        want = MultivariateNormal(mine.mean(0), mine.T.cov(correction=0)).log_prob(x)
        assert torch.allclose(exact(model, x, torch.full((600,), k)), want, atol=1e-8)
    own = x.T.cov(correction=0)
    pooled = torch.lerp(own.diagonal().diag(), own, 600 / 602)
    unseen = MultivariateNormal(x.mean(0), pooled).log_prob(x)
    assert torch.allclose(exact(model, x, torch.full((600,), 3)), unseen, atol=1e-8)
    drawn = model.given(torch.tensor([0, 2])).sample(2000, generator=generator())
    assert torch.allclose(drawn.mean(0), torch.stack([x[c == k].mean(0) for k in (0, 2)]), atol=0.15)

    columns = Table((Category("p", ("0", "1")), Category("q", ("0", "1", "2"), nullable=True)))
    codes = torch.stack([torch.arange(600) % 2, torch.arange(600) % 3], 1).double()
    codes[::7, 1] = math.nan
    table = Gaussian(GaussianConfig(wishart_prior=0.0), reals(2), columns)
    table.prepare(x, codes, None, generator())
    run(table, x, 1, codes)
    mine = x[(codes[:, 0] == 1) & codes[:, 1].isnan()]
    want = MultivariateNormal(mine.mean(0), mine.T.cov(correction=0)).log_prob(x)
    assert torch.allclose(exact(table, x, torch.tensor([1, math.nan]).double().expand(600, 2)), want, atol=1e-8)


def test_a_label_given_columns_is_discriminant_analysis() -> None:
    """p(label | c) by Bayes' rule over one Gaussian per class, as scikit-learn's QDA has it."""
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

    c = blobs(600, 2, 3, spread=1.0)
    label = torch.arange(600) % 3
    model = Gaussian(GaussianConfig(wishart_prior=0.0), Label(("a", "b", "c")), reals(2))
    model.prepare(label, c, None, generator())
    run(model, label, 1, c)
    ours = torch.stack([exact(model, torch.full((600,), k), c) for k in range(3)], 1).exp()
    assert torch.allclose(ours.sum(1), torch.ones(600, dtype=torch.float64), atol=1e-12)
    theirs = QuadraticDiscriminantAnalysis().fit(c.numpy(), label.numpy()).predict_proba(c.numpy())
    assert np.abs(ours.numpy() - theirs).max() < 0.01  # it divides by n - 1
    drawn = model.given(c[:1].expand(4000, 2)).sample(1, generator=generator())[0]
    frequency = drawn.bincount(minlength=3) / 4000
    assert torch.allclose(frequency.double(), ours[0], atol=0.04)


def test_grid_columns_are_bounded_from_below() -> None:
    """On integers, before the tails: E[nats] is at most the log of the Gaussian's mass on the cell."""
    g = generator()
    x = (torch.randn(4000, 1, generator=g, dtype=torch.float64) * 3 + 10).round()
    model = Gaussian(GaussianConfig(), Table((Integer("n", 0, 30),)))
    model.prepare(x, None, None, generator())
    run(model, x, 1)
    cells = torch.arange(-4, 25, dtype=torch.float64)[:, None]
    lik = model.log_prob(cells, request=Dequantised(draws=400), generator=generator())
    assert isinstance(lik, LowerBound)
    assert lik.draws == 400
    mean, deviation = float(model.means), float(model.covariances.sqrt())
    mass = np.diff(stats.norm.cdf(np.arange(-4.5, 25), mean, deviation))
    value = model.table.exp()[0, 0]  # the code "a value, no atom"
    gap = torch.from_numpy(np.log(mass)) + value.log() - lik.nats
    assert (gap > -4 * lik.mc_se).all()
    assert float(gap[cells[:, 0] == 10]) < 0.01
    assert float(lik.nats.exp().sum()) < 1

    x = (20 * x).round()
    x[::2] = 0.0
    spiky = Gaussian(GaussianConfig(), Table((Integer("n", 0, 600),)))
    spiky.prepare(x, None, None, generator())
    run(spiky, x, 2)
    assert float(spiky.log_prob(torch.zeros(1, 1).double()).nats.exp()) == pytest.approx(0.5, abs=0.01)
    drawn = spiky.sample(4000, generator=generator())
    assert float((drawn == 0).double().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(drawn[drawn != 0].mean()) == pytest.approx(float(x[x != 0].mean()), abs=6)


def test_mixed_samples_resemble_their_data() -> None:
    space, x = mixed(4000)
    model = fitted(space, x, k=4, steps=40)
    drawn = model.sample(8000, generator=generator(7))
    space.check(drawn)
    assert torch.allclose(drawn.isnan().double().mean(0), x.isnan().double().mean(0), atol=0.03)
    for j in range(4):
        a, b = drawn[~drawn[:, j].isnan(), j], x[~x[:, j].isnan(), j]
        assert float(a.mean()) == pytest.approx(float(b.mean()), abs=0.1 * float(b.std()))
        assert float(a.std()) == pytest.approx(float(b.std()), rel=0.1)
    assert float((drawn[:, 2] == 0).double().mean()) == pytest.approx(float((x[:, 2] == 0).double().mean()), abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_the_gradient(kind: str) -> None:
    joint = blobs(300, 3, 3)
    c, x = joint[:, :1], joint[:, 1:]
    model = GaussianMixture(MixtureConfig(components=3, covariance=kind), reals(2), reals(1))  # type: ignore[arg-type]
    model.prepare(x, c, None, generator())
    run(model, x, 10, c)
    got, step = model.given(c[:20]).score(x[:20]), 1e-5
    for j in range(2):
        shift = step * torch.eye(2, dtype=torch.float64)[j]
        slope = (exact(model, x[:20] + shift, c[:20]) - exact(model, x[:20] - shift, c[:20])) / (2 * step)
        assert torch.allclose(got[:, j], slope, atol=1e-6)
    gaps = GaussianMixture(MixtureConfig(), reals(2, nullable=True))
    with pytest.raises(BadValue, match="missing"):
        gaps.given().score(torch.full((1, 2), math.nan, dtype=torch.float64))
    with pytest.raises(Unsupported):
        GaussianMixture(MixtureConfig(), Table((Category("k", ("a", "b")),))).given().score(torch.zeros(1, 1).double())


def test_encode_is_bayes_rule() -> None:
    x = blobs(400, 2, 3)
    model = fitted(reals(2), x)
    parts = [MultivariateNormal(m, s).log_prob(x) for m, s in zip(model.means, model.covariances, strict=True)]
    want = (torch.stack(parts, 1) + model.weights.log()).softmax(1)
    q = model.given().encode(x)
    assert q.batch_shape == (400,)
    assert torch.allclose(q.mean, want, atol=1e-10)


def test_images() -> None:
    """Pixels are dequantised; a full covariance too large for memory is refused with the numbers."""
    g = generator()
    space = Image(4, 4, 1, 8)
    x = torch.randint(0, 8, (500, 1, 4, 4), generator=g, dtype=torch.uint8) // (1 + torch.arange(500) % 2).view(
        -1, 1, 1, 1
    )
    x = x.to(torch.uint8)
    for kind in ("tied", "diag", "full"):
        model = GaussianMixture(MixtureConfig(components=2, covariance=kind), space)  # type: ignore[arg-type]
        model.prepare(x, None, None, generator())
        run(model, x, 10)
        lik = model.log_prob(x, generator=generator())
        assert isinstance(lik, LowerBound)
        assert lik.draws == 8
        assert float(lik.nats.mean()) > -16 * math.log(8)
        drawn = model.sample(50, generator=generator())
        space.check(drawn)
    large = Image(32, 32, 3)
    assert "94,371,840" in (GaussianMixture.refuses(large, None, MixtureConfig(covariance="full")) or "")
    assert GaussianMixture.refuses(large, None, MixtureConfig()) is None
    assert Gaussian.refuses(large, None, GaussianConfig()) is None


def test_what_is_refused() -> None:
    many = Table(tuple(Category(f"k{j}", tuple("abcdef")) for j in range(3)))
    assert "216 classes" in (Gaussian.refuses(reals(1), many, GaussianConfig()) or "")
    assert GaussianMixture.refuses(reals(1), many, MixtureConfig(per_class=False)) is None
    assert GaussianMixture.refuses(reals(1), Image(2, 2), MixtureConfig()) is not None
    for bad in ({"components": 0}, {"floor": 0.0}, {"wishart_prior": -1.0}, {"smoothing": 0.0}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            MixtureConfig(**bad)  # type: ignore[arg-type]


def test_a_shared_mixture_of_categories_conditions() -> None:
    """per_class=False: the context's categories are discrete columns of one mixture."""
    g = generator()
    c = torch.randint(0, 3, (900, 1), generator=g).double()
    x = 4 * c + torch.randn(900, 1, generator=g, dtype=torch.float64)
    model = GaussianMixture(
        MixtureConfig(components=3, per_class=False), reals(1), Table((Category("k", tuple("abc")),))
    )
    model.prepare(x, c, None, generator())
    run(model, x, 60, c)
    for k in range(3):
        drawn = model.given(torch.tensor([float(k)], dtype=torch.float64)).sample(3000, generator=generator(1))
        assert float(drawn.mean()) == pytest.approx(4 * k, abs=0.2)


def test_k_means_finds_separated_clusters() -> None:
    x = blobs(500, 2, 5, spread=60.0)
    label = em.k_means(x, 5, torch.ones(500, dtype=torch.float64), generator())
    truth = torch.arange(500) % 5
    assert len({(int(a), int(b)) for a, b in zip(label, truth, strict=True)}) == 5
