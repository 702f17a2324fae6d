"""Latent diffusion: the bound against a Gaussian whose likelihood is known, both stages, samplers of the path."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import pofx
from pofx.core.errors import Unsupported, UsageError
from pofx.core.likelihood import LowerBound
from pofx.core.requests import Ancestral, Direct, DpmSolver, Elbo, Iwae
from pofx.data.parts import Data, Part
from pofx.families.latent_diffusion import LatentDiffusion, LatentDiffusionConfig
from pofx.families.path import PathModel
from pofx.nn.unet import UNet
from pofx.spaces import Image, Label, Real, Table


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- x = W z + b + s e with z ~ N(M, C): the likelihood and the posterior are known ---------------------------------

W = torch.tensor([[1.2, 0.3], [-0.4, 0.9], [0.3, 1.2]], dtype=torch.float64)
B, S = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64), 0.6
Z = torch.randn(4000, 2, generator=seeded(0)).double() @ torch.tensor([[1.5, 0.4], [0.0, 0.7]]).double() + 0.5
M, C = Z.mean(0), Z.T.cov()
TRUTH = MultivariateNormal(W @ M + B, W @ C @ W.T + S**2 * torch.eye(3, dtype=torch.float64))
PRECISION = C.inverse() + W.T @ W / S**2


class Decoder(nn.Module):
    """Mean W z + b and scale s, as the parameters (log-weight, mean, log-scale) of one Gaussian per column."""

    def forward(self, z: Tensor, h: Tensor | None) -> Tensor:
        mean = (z.double() @ W.T + B).float()
        return torch.stack([torch.zeros_like(mean), mean, torch.full_like(mean, math.log(S))], -1).flatten(1)


def posterior_mean(x: Tensor) -> Tensor:
    return (C.inverse() @ M + (x - B) @ W / S**2) @ PRECISION.inverse()


SHIFT, WIDTH = 0.2, 1.5 * PRECISION.diagonal().rsqrt()


class Encoder(nn.Module):
    """The posterior's mean, moved; its scale in each dimension given the other, wider."""

    def forward(self, y: Tensor, h: Tensor | None) -> Tensor:
        mean = posterior_mean(y.double().sinh()).float() + SHIFT  # the heads embed numbers by asinh
        return torch.cat([mean, WIDTH.log().float().expand_as(mean)], 1)


@pytest.fixture(scope="module")
def gaussian() -> LatentDiffusion:
    """Its path starts from the Gaussian of the latents that it has seen, to which an untrained net adds nothing."""
    config = LatentDiffusionConfig(latent=2, components=1, prior="vdm:hidden=8,blocks=1")
    model = LatentDiffusion(config, Table(tuple(Real(name) for name in "abc")))
    model.encoder, model.decoder = Encoder(), Decoder()
    model.prior.prepare(Z, None, None, seeded(0))
    model.fitted.fill_(True)
    return model.eval().requires_grad_(False)


def test_the_bound_is_the_likelihood_less_the_divergence_of_the_encoder(gaussian: LatentDiffusion) -> None:
    x = TRUTH.mean + torch.randn(300, 3, generator=seeded(1)).double() @ TRUTH.scale_tril.T
    lik = gaussian.log_prob(x, request=Elbo(draws=32))
    assert isinstance(lik, LowerBound)
    exact = MultivariateNormal(posterior_mean(x), precision_matrix=PRECISION)
    q = MultivariateNormal(posterior_mean(x) + SHIFT, torch.diag(WIDTH.square()))
    divergence = float(kl_divergence(q, exact).mean())
    gap = TRUTH.log_prob(x) - lik.nats
    error = float(lik.mc_se.square().sum().sqrt()) / len(x)
    assert error < 0.03
    # the path ends at noise of a thousandth, whose cost is seen in the fourth digit
    assert float(gap.mean()) == pytest.approx(divergence, abs=4 * error + 2e-3)
    assert divergence > 0.2


def test_samples_are_those_of_the_gaussian(gaussian: LatentDiffusion) -> None:
    x = gaussian.sample(4000, generator=seeded(2), sampler=DpmSolver(10))
    error = (TRUTH.covariance_matrix.diagonal() / 4000).sqrt()
    assert bool(((x.mean(0) - TRUTH.mean).abs() < 4 * error).all())
    torch.testing.assert_close(x.T.cov(), TRUTH.covariance_matrix, atol=0.25, rtol=0.1)


def test_terms_add_up(gaussian: LatentDiffusion) -> None:
    x = Z[:20] @ W.T + B
    terms = gaussian.given().bound_terms(x, generator=seeded(3))
    whole = gaussian.log_prob(x, request=Elbo, generator=seeded(3))
    torch.testing.assert_close(terms["prior"].nats + terms["reconstruction"].nats, whole.nats)


def test_data_of_latents_are_the_means_of_the_decoder(gaussian: LatentDiffusion) -> None:
    x = gaussian.given().from_latents(Z[:20].float())
    torch.testing.assert_close(x, Z[:20] @ W.T + B, atol=1e-4, rtol=1e-4)


def test_the_log_of_a_mean_is_not_offered(gaussian: LatentDiffusion) -> None:
    """It would be no bound: a path's bound stands for log p(z) under an expectation only."""
    with pytest.raises(UsageError, match="does not answer Iwae, but Elbo"):
        gaussian.log_prob(Z[:2] @ W.T, request=Iwae(draws=4))


# -- both stages ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> tuple[LatentDiffusion, Data]:
    """Images of 16 x 16 pixels as light as their label says and a number besides, through a grid of 4 x 4 latents."""
    light = torch.rand(300, generator=seeded(1))
    label = (light > 0.5).long()
    x = (torch.rand(300, 1, 16, 16, generator=seeded(0)) < light[:, None, None, None]).to(torch.uint8)
    parts = [Part(x[a:b], label[a:b]) for a, b in ((0, 200), (200, 250), (250, 300))]
    data = Data("kinds", "memory", Image(16, 16, 1, 2), *parts, Label(("dark", "light")))
    options = {
        "channels": 8, "blocks": 1, "latent": 2, "context_dropout": 0.2, "prior_share": 0.5,
        "prior": "vdm:channels=8,blocks=1",
    }  # fmt: skip
    recipe = {"batch": 32, "lr": 1e-2}
    run = pofx.fit(data, "latent-diffusion", steps=80, checks=2, seed=0, options=options, recipe=recipe)
    assert isinstance(run.model, LatentDiffusion)
    return run.model, data


def test_the_path_has_a_u_net_over_the_grid(fitted: tuple[LatentDiffusion, Data]) -> None:
    prior = fitted[0].prior
    assert isinstance(prior, PathModel)
    assert isinstance(prior.net, UNet)
    assert prior.space.event_shape == (2, 4, 4)
    assert fitted[0].fitted


def test_samples_obey_label_sampler_and_guidance(fitted: tuple[LatentDiffusion, Data]) -> None:
    model, c = fitted[0], torch.arange(40) % 2
    for sampler in (None, Ancestral(8), DpmSolver(6, guidance=1.5)):
        x = model.given(c).sample(1, generator=seeded(0), sampler=sampler)[0].float().flatten(1).mean(1)
        assert float(x[c == 1].mean()) > 0.6 > 0.4 > float(x[c == 0].mean())
    assert model.default_sampler() == model.prior.default_sampler()
    assert model.given(null=True).sample(3, sampler=DpmSolver(4)).shape == (3, 1, 16, 16)
    with pytest.raises(UsageError, match="does not answer Direct"):
        model.given(c).sample(1, sampler=Direct)


def test_until_there_is_a_prior_a_normal_stands_in(fitted: tuple[LatentDiffusion, Data]) -> None:
    model, part = fitted[0], fitted[1].test
    model.fitted.fill_(False)
    try:
        terms = model.given(part.c).bound_terms(part.x, request=Elbo(draws=8))
    finally:
        model.fitted.fill_(True)
    q = model.given(part.c).encode(part.x)
    normal = Independent(Normal(torch.zeros_like(q.mean), 1.0), 1)
    torch.testing.assert_close(-terms["prior"].nats, kl_divergence(q, normal).double(), atol=1e-3, rtol=1e-4)


def test_a_prior_with_an_exact_density_serves_too() -> None:
    space = Table((Real("a"), Real("b")))
    model = LatentDiffusion(LatentDiffusionConfig(latent=2, hidden=16, prior="gaussian"), space)
    assert isinstance(model.default_sampler(), Direct)
    model.fitted.fill_(True)
    x = torch.randn(5, 2, generator=seeded(0)).double()
    assert isinstance(model.log_prob(x), LowerBound)
    assert model.sample(3).shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"latent": 0}, "latent is 0"),
        ({"prior_share": 1.0}, "prior_share is 1"),
        ({"beta": 0.0}, "beta is 0"),
        ({"draws": 1}, "draws is 1"),
        ({"prior": "gan"}, "no bound of its density"),
        ({"prior": "cnf"}, "no bound of its density"),
        ({"prior": "vdm:nets=unet"}, "Unknown option 'nets'"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises((UsageError, Unsupported), match=says):
        LatentDiffusion(LatentDiffusionConfig(**options), Image(4, 4, 1, 2))  # type: ignore[arg-type]
