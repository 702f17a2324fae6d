"""The bound whose end is the mass of each level's cell, against quadrature and sums over all images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pofx.codecs.real import preprocess
from pofx.core.family import idle
from pofx.core.likelihood import LowerBound
from pofx.core.noise import RowNoise
from pofx.core.registry import family
from pofx.core.requests import DpmSolver, OdeLikelihood, VariationalBound
from pofx.families.path import PathModel
from pofx.paths.gaussian import Gaussian
from pofx.paths.likelihood import decoded, log_mass, stratified, terms
from pofx.paths.predict import point
from pofx.paths.schedule import Chain
from pofx.spaces import Image, Real, Table

PAIR = Image(1, 2, 1, 3)  # two pixels of three levels


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(space: Image) -> Tensor:
    """All of them."""
    levels = torch.arange(space.levels, dtype=space.dtype)
    return torch.cartesian_prod(*[levels] * space.dims).view(-1, *space.event_shape)


def untrained(name: str, space: Image, x: Tensor, **options: object) -> PathModel:
    cls = family(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(cls.Config(hidden=32, blocks=1, **options), space)
    model.prepare(x, None, None, gen())
    return model.requires_grad_(False).eval()


def test_log_mass_is_that_of_the_interval() -> None:
    a = torch.linspace(-6, 6, 40, dtype=torch.float64)
    normal = Normal(torch.zeros((), dtype=torch.float64), 1.0)
    assert torch.allclose(log_mass(a, a + 0.7).exp(), normal.cdf(a + 0.7) - normal.cdf(a), atol=1e-14, rtol=1e-6)
    # far out: Phi(-t) is phi(t) / t (1 - 1/t^2 + 3/t^4 - ...)
    t = torch.tensor([60.0, 1e4], dtype=torch.float64)
    far = normal.log_prob(t) - t.log() + torch.log1p(-(t**-2) + 3 * t**-4)
    assert torch.allclose(log_mass(t, t + 1), far, rtol=1e-9)
    assert torch.equal(log_mass(t, t + 1), log_mass(-t - 1, -t))
    ends = torch.tensor([-math.inf, 3.0], dtype=torch.float64), torch.tensor([3.0, math.inf], dtype=torch.float64)
    mean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log_mass(ends[0] - mean, ends[1] - mean).sum().backward()
    assert mean.grad is not None
    left = torch.stack([normal.cdf(torch.tensor(3.0).double()), normal.cdf(torch.tensor(-3.0).double())])
    assert torch.allclose(mean.grad, normal.log_prob(torch.tensor(3.0).double()).exp() * torch.tensor([-1, 1]) / left)


@pytest.mark.parametrize("logit", [0.0, 0.05])
def test_cells_share_all_mass_among_the_levels(logit: float) -> None:
    space = Image(1, 1, 1, 5)
    found, x = preprocess(space, logit=logit), images(space)
    found.fit(x, None, gen())
    low, high = found.edges(x)
    assert low[0] == -math.inf
    assert high[-1] == math.inf
    assert torch.equal(low[1:], high[:-1])
    centre = found.split(x).y
    assert ((low < centre) & (centre < high)).all()
    for mean in (-30.0, -1.0, 0.2, 8.0):
        assert log_mass((low - mean) / 0.3, (high - mean) / 0.3).exp().sum().item() == pytest.approx(1, abs=1e-12)


LEVELS = torch.tensor([-1.2, 0.0, 1.2], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
BETAS = torch.tensor([0.15, 0.8], dtype=torch.float64)
GRID = torch.linspace(-9, 9, 1801, dtype=torch.float64)


def denoised(z: Tensor, kept: float) -> Tensor:
    """E[x | z] where x is one of ``LEVELS`` and z = sqrt(kept) x + sqrt(1 - kept) eps."""
    logits = SHARES.log() - (z[..., None] - kept**0.5 * LEVELS) ** 2 / (2 * (1 - kept))
    return logits.softmax(-1) @ LEVELS


def test_the_bound_is_the_papers_and_below_the_chain_s_probability() -> None:
    """Ho et al. 2020, eq. 5 and 13, in betas, of a chain of two steps and one pixel: integrals are sums on a grid."""
    chain, step = Chain(2, BETAS), (GRID[1] - GRID[0]).item()
    first, last = (1 - BETAS).cumprod(0).tolist()
    low = torch.tensor([-math.inf, -0.6, 0.6], dtype=torch.float64)
    high = torch.tensor([-0.6, 0.6, math.inf], dtype=torch.float64)
    masses = torch.distributions.Normal(denoised(GRID, first), BETAS[0].sqrt())  # N(mu(x_1), beta_1)
    mass = torch.stack([masses.cdf(b) - masses.cdf(a) for a, b in zip(low, high, strict=True)])  # of x given x_1
    # q(x_1 | x_2, x_0), eq. 6 and 7
    width = math.sqrt((1 - first) / (1 - last) * BETAS[1])
    of_x, of_z = first**0.5 * BETAS[1] / (1 - last), (1 - BETAS[1]).sqrt() * (1 - first) / (1 - last)
    back = Normal(of_x * denoised(GRID, last) + of_z * GRID, width)  # p(x_1 | x_2)
    start = Normal(0.0, 1.0).log_prob(GRID).exp()
    x_1 = (back.log_prob(GRID[:, None]).exp() * start).sum(1) * step
    truth = (mass @ x_1 * step).log()
    assert truth.exp().sum().item() == pytest.approx(1, abs=1e-6)
    whole = []
    for x, of in zip(LEVELS, mass, strict=True):
        near, far = Normal(first**0.5 * x, (1 - first) ** 0.5), Normal(last**0.5 * x, (1 - last) ** 0.5)
        missed = kl_divergence(Normal(of_x * x + of_z * GRID, width), back)
        path = (far.log_prob(GRID).exp() * missed).sum() * step
        end = (near.log_prob(GRID).exp() * of.log()).sum() * step
        whole.append(torch.stack([-kl_divergence(far, Normal(0.0, 1.0)), -path, end]))
    papers = torch.stack(whole, 1)
    assert (papers.sum(0) < truth).all()
    assert (papers.sum(0) > truth - 3).all()  # 80% of the signal's variance goes in one step

    # ours: many draws of each level
    x = LEVELS.repeat_interleave(20000)[:, None]
    edges = tuple(e.repeat_interleave(20000)[:, None] for e in (low, high))
    g = gen(1)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        kept = chain(t.reshape(-1)[:1]).alpha.item() ** 2  # one level is asked for at a time
        return denoised(z[:, 0], kept)[:, None]

    def draw(u: Tensor) -> Tensor:
        eps = torch.randn(x.shape, generator=g, dtype=torch.float64)
        prior, path, _ = terms(denoise, Gaussian(1), chain, x, u, eps, steps=2)
        return torch.stack([prior, path, decoded(denoise, chain, x, eps, *edges)])

    nats, se = stratified(draw, 4, RowNoise.by_place(len(x), g))
    found, error = nats.view(3, 3, -1).mean(2), se.view(3, 3, -1).square().sum(2).sqrt() / 20000
    assert ((found - papers).abs() <= 4 * error + 1e-9).all()


@pytest.mark.parametrize("name", ["ddpm", "vdm"])
def test_the_bounds_of_all_images_sum_to_at_most_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of the model whose denoiser is E[x | z], so that little is missing in continuous time; two pixels agree."""
    x = images(PAIR)
    share = torch.tensor([9, 1, 1, 1, 9, 1, 1, 1, 9]) / 33
    model = untrained(name, PAIR, x, decoder="cells")
    centres = model.split(x).y.double()

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        p = point(model.schedule, t, z)
        square = (z[:, None] - p.alpha[:, None] * centres).square().sum(2) / (2 * p.sigma**2)
        return (share.to(z).log() - square).softmax(1) @ centres.to(z)

    monkeypatch.setattr(model, "denoiser", lambda h: denoise)
    rows = x.repeat_interleave(4000, 0)
    for steps in (None, 1000):
        request = VariationalBound(draws=8, steps=steps)
        found = model.log_prob(rows, request=request, generator=gen(3))
        assert isinstance(found, LowerBound)
        parts = model.given().bound_terms(rows, request=request, generator=gen(3))
        assert list(parts) == ["prior", "path", "reconstruction"]
        assert torch.allclose(torch.stack([n.nats for n in parts.values()]).sum(0), found.nats)
        nats, error = found.nats.view(9, -1).mean(1), found.mc_se.view(9, -1).square().sum(1).sqrt() / 4000
        assert (nats < share.log() + 4 * error).all()
        off = (nats.exp() * error).square().sum().sqrt().item()
        assert off < 0.08
        assert 0.8 - 3 * off < nats.exp().sum().item() < 1 + 3 * off


def test_no_noise_spreads_what_cells_decode_but_for_the_ode() -> None:
    x = images(PAIR)
    model = untrained("vdm", PAIR, x, decoder="cells")
    assert torch.equal(model.split(x, RowNoise.by_place(len(x), gen())).y, model.split(x).y)
    spread = model.spread(x, RowNoise.by_place(len(x), gen())).y
    assert not torch.equal(spread, model.split(x).y)
    assert torch.equal(model.preprocess.join(torch.zeros(len(x), 0).long(), spread), x)
    first, second = (model.log_prob(x, request=OdeLikelihood(2, 0, 2), generator=gen(k)) for k in (0, 1))
    assert (first.nats != second.nats).all()


@pytest.mark.parametrize("start", ["gaussian", "none"])
def test_what_is_drawn_is_denoised_last(start: str) -> None:
    x = images(PAIR)
    model = untrained("vdm", PAIR, x, decoder="cells", start=start)
    seen: list[tuple[Tensor, Tensor]] = []
    y = model.draw(5, None, DpmSolver(4), gen(), lambda step, t, z, denoised: seen.append((t, denoised)))
    assert len(seen) == 4
    assert torch.equal(seen[-1][1].flatten(1), y)
    assert model.schedule.log_snr(seen[-1][0]).item() == pytest.approx(model.schedule.ends[1])


def test_a_decoder_is_of_images() -> None:
    plane = Table((Real("a"), Real("b")))
    for name, decoder in (("vdm", "cells"), ("ddpm", "density")):
        cls = family(name)
        assert idle(cls, plane, None, cls.Config(decoder=decoder)) == ["decoder"]
        assert "decoder" not in idle(cls, PAIR, None, cls.Config(decoder=decoder))
