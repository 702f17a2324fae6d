"""Identities of the VAE: bounds against a known truth, closed forms against draws, the errors that it states."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from pofx.core.errors import UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import LowerBound, mean, number
from pofx.core.requests import Elbo, Iwae
from pofx.families.latent import log_mean_exp
from pofx.families.priors import MixturePrior
from pofx.families.vae import Vae, VaeConfig
from pofx.nn.conv import ConvDecoder, ConvEncoder, pyramid
from pofx.spaces import Image, Label, Real, Table
from pofx.testing.oracles import image_states


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- probabilistic PCA: x = W z + b + s e, whose likelihood and posterior are known ---------------------------------

W = torch.tensor([[1.2, 0.3], [-0.4, 0.9], [0.3, 1.2]])  # orthogonal columns, so that the posterior is diagonal
W[:, 1] -= W[:, 0] * (W[:, 0] @ W[:, 1]) / W[:, 0].square().sum()
B, S = torch.tensor([0.5, -1.0, 0.2]), 0.6
PRECISION = 1 + W.square().sum(0) / S**2  # of p(z | x), Tipping & Bishop 1999, eq. 12
TRUTH = MultivariateNormal(B, W @ W.T + S**2 * torch.eye(3))


class Decoder(nn.Module):
    """Mean W z + b and scale s, as the parameters (log-weight, mean, log-scale) of one Gaussian per column."""

    def forward(self, z: Tensor) -> Tensor:
        mean = z @ W.T + B
        return torch.stack([torch.zeros_like(mean), mean, torch.full_like(mean, math.log(S))], -1).flatten(1)


class Encoder(nn.Module):
    """The exact posterior, its mean moved by ``shift`` and its scale multiplied by ``factor``."""

    def __init__(self, shift: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.shift, self.factor = shift, factor

    def forward(self, y: Tensor, h: Tensor | None) -> Tensor:
        mean = (y.sinh() - B) @ W / S**2 / PRECISION + self.shift  # the heads embed numbers by asinh
        log_scale = (-0.5 * PRECISION.log() + math.log(self.factor)).expand_as(mean)
        return torch.cat([mean, log_scale], 1)


def pca(shift: float = 0.0, factor: float = 1.0) -> Vae:
    table = Table(tuple(Real(name) for name in "abc"))
    model = Vae(VaeConfig(latent=2, components=1), table)
    model.encoder, model.decoder = Encoder(shift, factor), Decoder()
    return model.eval()


def bound(model: Vae, x: Tensor, estimator: str, draws: int, seed: int = 0) -> LowerBound:
    with torch.no_grad():
        lik = model.log_prob(x, request=(Elbo if estimator == "elbo" else Iwae)(draws), generator=seeded(seed))
    assert isinstance(lik, LowerBound)
    assert lik.draws == draws
    return lik


@pytest.fixture(scope="module")
def x() -> Tensor:
    z, e = torch.randn(400, 2, generator=seeded(1)), torch.randn(400, 3, generator=seeded(2))
    return (z @ W.T + B + S * e).double()


def test_the_exact_posterior_makes_every_bound_exact(x: Tensor) -> None:
    truth = TRUTH.log_prob(x.float())
    iwae, elbo = bound(pca(), x, "iwae", 2), bound(pca(), x, "elbo", 2000)
    # log w is the same number for every z
    torch.testing.assert_close(iwae.nats.float(), truth, atol=1e-4, rtol=0)
    assert iwae.mc_se.max() < 1e-4
    assert ((elbo.nats - truth).abs() < 5 * elbo.mc_se + 1e-4).float().mean() > 0.99


def test_the_gap_of_the_elbo_is_the_divergence_of_the_encoder(x: Tensor) -> None:
    lik = bound(pca(0.3, 1.5), x, "elbo", 4000)
    wrong = Independent(Normal(torch.tensor([0.3, 0.3]), 1.5 * PRECISION.rsqrt()), 1)
    exact = Independent(Normal(torch.zeros(2), PRECISION.rsqrt()), 1)
    gap = TRUTH.log_prob(x.float()) - lik.nats
    divergence = torch.distributions.kl_divergence(wrong, exact)
    error = float(lik.mc_se.square().sum().sqrt()) / len(x)
    assert abs(float(gap.mean() - divergence)) < 4 * error


def test_iwae_bounds_rise_with_draws_and_stay_below_the_truth(x: Tensor) -> None:
    model, truth = pca(0.4, 1.3), TRUTH.log_prob(x.float()).double()
    means, errors = [], []
    for draws in (2, 8, 32, 128, 512):
        runs = [bound(model, x, "iwae", draws, seed) for seed in range(4)]
        means.append(float(torch.stack([r.nats for r in runs]).mean()))
        errors.append(float(torch.stack([r.mc_se for r in runs]).square().sum().sqrt()) / (4 * len(x)))
    for k in range(4):
        assert means[k + 1] > means[k] - 4 * (errors[k] + errors[k + 1])
    assert means[0] < means[2] < means[4]
    assert means[-1] < float(truth.mean()) + 4 * errors[-1]
    assert float(truth.mean()) - means[-1] < 0.02


@pytest.mark.parametrize(("estimator", "draws"), [("elbo", 16), ("iwae", 16), ("iwae", 64)])
def test_the_stated_error_is_the_spread_over_seeds(x: Tensor, estimator: str, draws: int) -> None:
    model = pca(0.4, 1.4)
    runs = [bound(model, x, estimator, draws, seed) for seed in range(60)]
    spread = torch.stack([r.nats for r in runs]).var(0).mean().sqrt()
    said = torch.stack([r.mc_se for r in runs]).square().mean().sqrt()
    assert 0.85 < float(spread / said) < 1.15


# -- the mathematics inside --------------------------------------------------------------------------------------


def test_log_mean_exp_and_its_jackknife() -> None:
    log_w = 3 * torch.randn(5, 12, dtype=torch.float64, generator=seeded(0)) - 700
    nats, se = log_mean_exp(log_w)
    k = log_w.shape[1]
    torch.testing.assert_close(nats, log_w.logsumexp(1) - math.log(k))
    left_out = torch.stack([log_w[:, torch.arange(k) != i].logsumexp(1) for i in range(k)], 1)
    torch.testing.assert_close(se, ((k - 1) / k * (left_out - left_out.mean(1, keepdim=True)).square().sum(1)).sqrt())
    nats, se = log_mean_exp(torch.full((2, 4), -math.inf, dtype=torch.float64))
    assert (nats == -math.inf).all()
    assert (se == 0).all()


def test_the_mixture_prior_is_the_mixture() -> None:
    torch.manual_seed(0)
    prior = MixturePrior(3, 5)
    with torch.no_grad():
        prior.log_scale.normal_()
        prior.logits.normal_()
    parts = Normal(prior.mean, prior.log_scale.exp())
    weights = Categorical(logits=prior.logits)
    z = 2 * torch.randn(7, 4, 3)
    whole = MixtureSameFamily(weights, Independent(parts, 1))
    torch.testing.assert_close(prior.log_prob(z), whole.log_prob(z), atol=1e-4, rtol=1e-4)
    marginal = MixtureSameFamily(Categorical(logits=prior.logits.expand(3, 5)), Normal(parts.mean.T, parts.stddev.T))
    torch.testing.assert_close(prior.log_marginals(z), marginal.log_prob(z), atol=1e-4, rtol=1e-4)
    drawn = prior.sample(20000, seeded(1))
    torch.testing.assert_close(drawn.mean(0), whole.mean, atol=0.15, rtol=0)


def test_a_single_standard_component_is_the_standard_normal() -> None:
    mixture = MixturePrior(4, 3)
    with torch.no_grad():
        mixture.mean.zero_()
    z = torch.randn(6, 4, generator=seeded(0))
    torch.testing.assert_close(mixture.log_prob(z), Independent(Normal(torch.zeros(4), torch.ones(4)), 1).log_prob(z))


# -- training objectives -----------------------------------------------------------------------------------------

BINARY = Image(2, 2, 1, 2)


def batch(n: int = 12, **changes: object) -> Batch:
    x = (torch.rand(n, 1, 2, 2, generator=seeded(5)) < 0.4).to(torch.uint8)
    return replace(Batch(x, None, None, 0, n, 1.0, 3), **changes)


def small(**options: object) -> Vae:
    torch.manual_seed(3)
    model = Vae(VaeConfig(latent=2, hidden=16, **options), BINARY)  # type: ignore[arg-type]
    nn.init.normal_(model.decoder.last.weight)  # an untrained decoder ignores z
    return model


def test_the_loss_is_affine_in_beta_and_warms_up() -> None:
    terms = [small(beta=b).objective(batch(), seeded(1)) for b in (0.0, 1.0, 2.5)]
    torch.testing.assert_close(terms[2]["loss"], terms[0]["loss"] + 2.5 * terms[1]["kl"])
    warm = small(warmup=0.5).objective(batch(progress=0.25), seeded(1))
    torch.testing.assert_close(warm["loss"], terms[0]["loss"] + 0.5 * terms[1]["kl"])


def test_the_training_losses_are_the_bounds() -> None:
    x, draws = batch(2000).x, 4
    for objective in ("elbo", "iwae"):
        model = small(objective=objective, train_draws=draws)
        loss = model.objective(batch(2000), seeded(1))["loss"].detach().mean()
        lik = bound(model, x, objective, draws, seed=2)
        error = math.sqrt(2) * mean(number(lik)).mc_se  # of training's draws, of ours
        assert abs(float(loss + lik.nats.mean())) < 4 * error


def test_one_draw_of_iwae_is_an_elbo_and_refused() -> None:
    with pytest.raises(UsageError, match="is the ELBO"):
        small(objective="iwae")


def test_shares_of_a_batch_see_the_same_noise() -> None:
    model, whole = small(train_draws=3), batch()
    left = replace(whole, x=whole.x[:5])
    right = replace(whole, x=whole.x[5:], start=5)
    shares = torch.cat([model.objective(part, seeded(1))["loss"] for part in (left, right)])
    torch.testing.assert_close(shares, model.objective(whole, seeded(1))["loss"])


# -- a sum over all states ----------------------------------------------------------------------------------------


def test_bounds_sum_to_at_most_one_and_reach_it() -> None:
    model, states = small(), image_states(BINARY)
    few, many = (bound(model, states, "iwae", k) for k in (8, 20000))
    assert float(few.nats.exp().sum()) < 1 + 4 * float((few.nats.exp() * few.mc_se).square().sum().sqrt())
    error = float((many.nats.exp() * many.mc_se).square().sum().sqrt())
    assert abs(float(many.nats.exp().sum()) - 1) < 4 * error + 1e-4
    elbo = bound(model, states, "elbo", 20000)
    assert float(elbo.nats.exp().sum()) < 1


def test_samples_follow_the_bound_of_many_draws() -> None:
    model, states = small(), image_states(BINARY)
    p = bound(model, states, "iwae", 20000).nats.exp()
    drawn = model.sample(20000, generator=seeded(3)).flatten(1) @ torch.tensor([8, 4, 2, 1], dtype=torch.uint8)
    observed = drawn.long().bincount(minlength=16)
    assert ((observed - 20000 * p).square() / (20000 * p)).sum() < 50  # chi-squared of 15 degrees


# -- reports, contexts, nets --------------------------------------------------------------------------------------


def test_the_latent_report_tells_used_from_collapsed(x: Tensor) -> None:
    report = pca().latent_report(x)
    assert report.active == 2
    assert report.rate == pytest.approx(float(report.kl.sum()), rel=1e-4)
    # the posterior of an aggregate that matches the prior: rate = E KL in closed form
    expected = 0.5 * (PRECISION.log() + 1 / PRECISION - 1) + 0.5 * ((x.float() - B) @ W / S**2 / PRECISION).square()
    torch.testing.assert_close(report.kl, expected.mean(0), atol=1e-4, rtol=1e-4)

    class Collapsed(Encoder):
        def forward(self, y: Tensor, h: Tensor | None) -> Tensor:
            return super().forward(y, h) * torch.tensor([1.0, 0.0, 1.0, 0.0])

    model = pca()
    model.encoder = Collapsed()
    report = model.latent_report(x)
    assert report.active == 1
    assert float(report.kl[1]) == pytest.approx(0, abs=1e-6)


def test_the_report_under_a_mixture_prior_agrees_with_the_closed_form(x: Tensor) -> None:
    model = pca()
    closed = model.latent_report(x)
    model.config = replace(model.config, prior="mixture:components=2")
    model.prior = MixturePrior(2, 2)
    nn.init.zeros_(model.prior.mean)
    drawn = model.latent_report(x.repeat(50, 1), generator=seeded(0))
    torch.testing.assert_close(drawn.kl, closed.kl, atol=0.03, rtol=0)
    assert drawn.rate == pytest.approx(closed.rate, abs=0.03)


def test_context_reaches_encoder_and_decoder() -> None:
    torch.manual_seed(0)
    model = Vae(VaeConfig(latent=2, hidden=16), BINARY, Label(("a", "b")))
    nn.init.normal_(model.decoder.last.weight)
    x, c = batch(8).x, torch.arange(8) % 2
    q = [model.given(label).encode(x).mean for label in (c, 1 - c)]
    assert not torch.allclose(*q)
    a, b = (model.given(label).log_prob(x, generator=seeded(0)) for label in (c, 1 - c))
    assert not torch.allclose(a.nats, b.nats)
    assert model.given(c).sample(3).shape == (3, 8, 1, 2, 2)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 17), (2, 9, 5), (1, 4, 4), (1, 1, 30)])
def test_conv_nets_take_any_size(shape: tuple[int, int, int]) -> None:
    encoder = ConvEncoder(shape, 6, channels=4, hidden=8, context=3)
    decoder = ConvDecoder(5, shape, channels=4, hidden=8)
    assert encoder(torch.randn(2, *shape), torch.randn(2, 3)).shape == (2, 6)
    assert decoder(torch.randn(2, 5)).shape == (2, *shape)
    assert max(pyramid(*shape[1:])[-1]) <= 7


def test_a_conv_vae_has_a_parameter_per_head_in_the_heads_order() -> None:
    torch.manual_seed(0)
    space = Image(16, 18, 2, 8)
    model = Vae(VaeConfig(latent=2, channels=4, hidden=8), space)
    assert model.conv
    z = torch.randn(3, 1, 2)
    params = model.decode(z, None).view(3, 2, 16, 18, 8)
    torch.testing.assert_close(params.permute(0, 1, 4, 2, 3).flatten(1, 2), model.decoder(z[:, 0]))


def test_training_raises_the_bound() -> None:
    torch.manual_seed(0)
    model = Vae(VaeConfig(latent=2, hidden=32, warmup=0.0), BINARY)
    x = torch.cat([torch.zeros(100, 1, 2, 2), torch.ones(100, 1, 2, 2)]).to(torch.uint8)
    model.prepare(x, None, None, seeded(0))
    learner = model.learner(Recipe(lr=5e-3, schedule="constant"))
    before = bound(model, x, "iwae", 64).nats.mean()
    for step in range(300):
        learner.step(Batch(x, None, None, 0, len(x), step / 300, step), seeded(step))
    after = bound(model, x, "iwae", 64).nats.mean()
    assert before < -2.5  # four fair coins: 2.77
    assert after > -1.0  # two images: 0.69
