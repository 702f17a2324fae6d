"""Score matching against a mixture of Gaussians, whose score and denoiser are known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pofx.nn.mlp import Mlp
from pofx.paths import matching
from pofx.paths.objective import TIMES, WEIGHTINGS, path_loss
from pofx.paths.predict import PREDICTIONS, Denoiser, point
from pofx.paths.schedule import Chain

CENTRES = torch.tensor([[1.5, 0.5], [-1.0, -1.0], [0.0, 1.5]], dtype=torch.float64)
WIDTH = 0.6


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int, seed: int = 0) -> Tensor:
    g = gen(seed)
    which = torch.randint(len(CENTRES), (n,), generator=g)
    return CENTRES[which] + WIDTH * torch.randn(n, 2, generator=g, dtype=torch.float64)


def log_p(x: Tensor, noise: float = 0.0) -> Tensor:
    """Of the mixture with noise added, up to a constant."""
    return (-(x[:, None] - CENTRES).square().sum(2) / (2 * (WIDTH**2 + noise**2))).logsumexp(1)


def gradient(x: Tensor, noise: float = 0.0) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_p(x, noise).sum(), x)[0]


def of_the_noised(x: Tensor) -> Tensor:
    """grad log p of x plus noise of 0.3, differentiable in x: means of pulls to the centres."""
    total = WIDTH**2 + 0.09
    pull = CENTRES - x[:, None]
    return ((-pull.square().sum(2) / (2 * total)).softmax(1)[..., None] * pull).sum(1) / total


def test_directions_along_the_axes_make_the_sliced_objective_exact() -> None:
    """v = sqrt(d) e_i: the means over i of (v's)^2 and v' ds/dx v are |s|^2 and the trace."""
    x, mix = draw(20), torch.tensor([[0.3, 1.0], [-0.7, 0.2]], dtype=torch.float64)

    def score(x: Tensor) -> Tensor:
        return (x @ mix).sin() * x

    axes = 2**0.5 * torch.eye(2, dtype=torch.float64)[:, None].expand(2, 20, 2)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: score(v[None])[0], row) for row in x])
    truth = score(x).square().sum(1) / 2 + jacobian.diagonal(dim1=1, dim2=2).sum(1)
    assert torch.allclose(matching.exact(score, x), truth)
    for reduced in (True, False):
        assert torch.allclose(matching.sliced(score, x, axes, reduced=reduced), truth)


def test_sliced_is_unbiased() -> None:
    x = draw(4)[:, None].expand(4, 20_000, 2).reshape(-1, 2)
    v = torch.randn(1, len(x), 2, generator=gen(1), dtype=torch.float64)
    truth = matching.exact(of_the_noised, x[::20_000])
    for reduced in (True, False):
        drawn = matching.sliced(of_the_noised, x, v, reduced=reduced).view(4, -1)
        assert ((drawn.mean(1) - truth).abs() < 5 * drawn.std(1) / 20_000**0.5).all()


def test_the_exact_objective_is_fishers_divergence_less_a_constant() -> None:
    """E[exact(s)] = E|s - grad log p|^2 / 2 - E|grad log p|^2 / 2, by integration by parts."""
    x = draw(200_000)
    for scale in (1.0, 0.5):
        score = lambda x, scale=scale: scale * of_the_noised(x)  # noqa: E731
        truth = gradient(x)
        want = (score(x) - truth).square().sum(1) / 2 - truth.square().sum(1) / 2
        assert matching.exact(score, x).mean().item() == pytest.approx(want.mean().item(), abs=0.03)


def test_images_are_scored_as_their_numbers() -> None:
    x, e = torch.randn(5, 1, 2, 3, generator=gen()), torch.randn(5, 1, 2, 3, generator=gen(1))
    mix, flat = torch.randn(6, 6, generator=gen(2)), (5, 6)
    vector, image = (lambda x: (x @ mix).tanh()), (lambda x: (x.view(-1, 6) @ mix).tanh().view_as(x))
    assert torch.allclose(matching.exact(image, x), matching.exact(vector, x.view(flat)))
    v = torch.randn(2, *x.shape, generator=gen(3))
    assert torch.allclose(matching.sliced(image, x, v), matching.sliced(vector, x.view(flat), v.view(2, *flat)))
    noised = matching.denoising(vector, x.view(flat), e.view(flat), torch.full((5, 1), 0.3))
    assert torch.allclose(matching.denoising(image, x, e, 0.3), noised)


NOISE = 0.3


@pytest.mark.parametrize("objective", ["exact", "sliced", "reduced", "denoising"])
def test_all_objectives_reach_the_same_score(objective: str) -> None:
    data, g = draw(20_000).float(), gen(3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Mlp(2, 2, hidden=32, blocks=1)
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    steps = 400
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - k / steps)
        x = data[torch.randint(len(data), (512,), generator=g)]
        e = torch.randn(x.shape, generator=g)
        if objective == "exact":
            loss = matching.exact(net, x)
        elif objective == "denoising":
            loss = matching.denoising(net, x, e, NOISE)
        else:
            loss = matching.sliced(net, x, e[None], reduced=objective == "reduced")
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    noise = NOISE if objective == "denoising" else 0.0
    test = draw(4000, seed=9)
    truth = gradient(test, noise)
    with torch.no_grad():
        miss = (net(test.float()) - truth).square().sum() / truth.square().sum()
    assert miss < 0.08, miss  # a Gaussian leaves 0.6


def test_tweedies_denoiser_is_the_conditional_mean() -> None:
    """Denoising is least where its gradient vanishes, which is so at the score of the noised data alone."""
    n, sigma = 400_000, 0.3
    x, e = draw(n), torch.randn(n, 2, generator=gen(5), dtype=torch.float64)
    z = x + sigma * e
    # Bayes' rule: a centre by its weight, x given it and z by shrinking
    weight = (-(z[:, None] - CENTRES).square().sum(2) / (2 * (WIDTH**2 + sigma**2))).softmax(1)
    shrunk = CENTRES + WIDTH**2 / (WIDTH**2 + sigma**2) * (z[:, None] - CENTRES)
    mean = (weight[..., None] * shrunk).sum(1)
    assert torch.allclose(z + sigma**2 * gradient(z, sigma), mean)
    off = torch.tensor([0.02, -0.01], dtype=torch.float64)
    at, beside = (
        matching.denoising(lambda z, k=k: gradient(z, sigma) + k * off * z.cos(), x, e, sigma) for k in (0, 1)
    )
    rise = (off * z.cos()).square().sum(1) / 2  # all of it: no term of first order
    gap = beside - at - rise
    assert abs(gap.mean()) < 4 * gap.std() / n**0.5


def test_the_loss_of_ddpm_is_denoising_score_matching() -> None:
    """Draw by draw: |eps_hat - eps|^2 = 2 sigma^2 denoising for s = -eps_hat / sigma at z = alpha x + sigma eps."""
    schedule, x, eps = Chain(1000), draw(50), torch.randn(50, 2, generator=gen(1), dtype=torch.float64)
    net = lambda z, log_snr: (z.flip(1) + log_snr[:, None]).tanh()  # noqa: E731
    u = torch.rand(50, generator=gen(2), dtype=torch.float64)
    denoiser = Denoiser(net, schedule, PREDICTIONS["eps"], None, torch.float64)
    loss = path_loss(denoiser, x, [eps, -eps], u, TIMES["uniform"], WEIGHTINGS["simple"])
    p = point(schedule, TIMES["uniform"](schedule, u)[0], x)
    log_snr = 2 * (p.alpha / p.sigma).log().flatten()
    both = [
        2 * p.sigma.flatten() ** 2
        * matching.denoising(lambda z: -net(z, log_snr) / p.sigma, p.alpha * x, sign * eps, p.sigma)
        for sign in (1, -1)
    ]  # fmt: skip
    assert torch.allclose(loss, (both[0] + both[1]) / 2 / 2, rtol=1e-9, atol=1e-12)
