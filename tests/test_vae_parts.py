"""What a VAE is made of: posteriors, priors, free bits, pixels that see those before, heads of many sites."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical as Index
from torch.distributions import Independent, MixtureSameFamily, Normal

from pofx.core.learner import Batch
from pofx.core.requests import Elbo, Iwae
from pofx.families.posteriors import posterior
from pofx.families.vae import Vae, VaeConfig
from pofx.nn.heads import Bernoulli
from pofx.spaces import Image, Label
from pofx.testing.oracles import image_states

BINARY = Image(2, 2, 1, 2)
WIDE = Image(3, 4, 1, 2)
FLOWS = ["iaf:layers=2,hidden=8,told=3", "realnvp:layers=2,hidden=8,told=3"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: nn.Module) -> Any:
    """Away from the identity that it starts as."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(i)))
    return module


def model(space: Image = BINARY, context: Label | None = None, **options: Any) -> Any:
    torch.manual_seed(3)
    made = Vae(VaeConfig(**{"latent": 2, "hidden": 8, "warmup": 0.0} | options), space, context)
    return shaken(made)


def batch(space: Image, n: int = 12) -> Batch:
    x = (torch.rand(n, *space.event_shape, generator=seeded(5)) < 0.4).to(torch.uint8)
    return Batch(x, None, None, 0, n, 1.0, 3)


# -- posteriors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", FLOWS)
def test_the_density_of_a_flow_is_that_of_its_noise_over_the_jacobian(text: str) -> None:
    torch.manual_seed(0)
    q = shaken(posterior(text, 3)).propose(torch.randn(4, 9, generator=seeded()))
    e = torch.randn(4, 2, 3, generator=seeded(1))
    z, log_q = q(e)
    torch.testing.assert_close(q.inverse(z), e, atol=1e-4, rtol=1e-4)
    for n, k in ((0, 0), (3, 1)):
        whole = torch.autograd.functional.jacobian(
            lambda v, n=n, k=k: q(e.index_put((torch.tensor(n), torch.tensor(k)), v))[0][n, k], e[n, k]
        )
        expected = Normal(0.0, 1.0).log_prob(e[n, k]).sum() - torch.linalg.slogdet(whole).logabsdet
        torch.testing.assert_close(log_q[n, k], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", FLOWS)
def test_what_encode_gives_of_a_flow_integrates_to_one(text: str) -> None:
    torch.manual_seed(0)
    made = shaken(posterior(text, 2))
    told = made.distribution(made.propose(torch.randn(1, 7, generator=seeded(2))))
    axis = torch.linspace(-12, 12, 401)
    grid = torch.cartesian_prod(axis, axis)[:, None]
    with torch.no_grad():
        p = told.log_prob(grid)[:, 0].exp() * 0.06**2
        assert float(p.sum()) == pytest.approx(1, abs=0.02)
        middle, spread = (p[:, None] * grid[:, 0]).sum(0), told.rsample((500,)).std(0)[0]
        assert float(((told.mean[0] - middle).abs() / spread).max()) < 4 / 64**0.5


@pytest.mark.parametrize(
    "options", [{"posterior": FLOWS[0]}, {"posterior": "categorical:values=3"}, {"prior": "vamp:components=3"}], ids=str
)
def test_bounds_of_every_posterior_sum_to_one_over_all_images(options: dict[str, Any]) -> None:
    """E[mean weight] = p(x), whatever q is; and the ELBO lies below."""
    draws: dict[str, Any] = {"train_draws": 2} if "categorical" in str(options) else {}
    made, states = model(**options, **draws).eval(), image_states(BINARY)
    with torch.no_grad():
        made.encoder.last.bias[2:4] += 1.5  # wide, so that no weight is large
        iwae, elbo = (made.log_prob(states, request=kind(3000), generator=seeded()) for kind in (Iwae, Elbo))
    p, error = iwae.nats.exp(), iwae.nats.exp() * iwae.mc_se
    assert abs(float(p.sum()) - 1) < 4 * float(error.square().sum().sqrt()) + 1e-3
    assert float(elbo.nats.exp().sum()) < 1
    drawn = made.sample(4000, generator=seeded(3)).flatten(1) @ torch.tensor([8, 4, 2, 1], dtype=torch.uint8)
    miss = drawn.long().bincount(minlength=16) - 4000 * p
    assert (miss.square() / (4000 * p + (4000 * error).square())).sum() < 50  # chi-squared of 16 degrees


# -- priors -------------------------------------------------------------------------------------------------------


def test_the_vamp_prior_is_the_mixture_of_the_encoders_posteriors() -> None:
    made = model(prior="vamp:components=5")
    mean, log_scale = made.encode_features(made.prior.pseudo, None)
    parts = Independent(Normal(mean, log_scale.exp()), 1)
    z = torch.randn(7, 3, 2, generator=seeded())
    expected = MixtureSameFamily(Index(logits=torch.zeros(5)), parts).log_prob(z)
    torch.testing.assert_close(made.prior.log_prob(z), expected, atol=1e-4, rtol=1e-4)
    loss = made.objective(batch(BINARY), seeded())["loss"].sum()
    grads = torch.autograd.grad(loss, [made.prior.pseudo, made.encoder.last.weight])
    assert all(float(g.abs().sum()) > 0 for g in grads)


def test_pseudo_inputs_start_as_training_rows() -> None:
    made, x = model(prior="vamp:components=5"), batch(BINARY).x
    made.prepare(x, None, None, seeded())
    rows = {tuple(row) for row in x.flatten(1).tolist()}
    assert all(tuple(int(v) for v in row) in rows for row in made.prior.pseudo.tolist())


def test_the_divergence_of_categories_is_the_mean_over_their_draws() -> None:
    made = model(posterior="categorical:values=3", train_draws=2).eval()
    x = batch(BINARY, 3).x
    with torch.no_grad():
        q = made.proposal(x, None)
        exact = made.divergence(q, None)
        z, log_q = q(torch.randn(3, 20_000, 6, generator=seeded()))
        drawn = log_q - made.prior.log_prob(z)
    assert exact is not None
    assert ((drawn.mean(1) - exact).abs() < 4 * drawn.std(1) / 20_000**0.5).all()


@pytest.mark.parametrize(
    ("prior", "options"),
    [("maf:layers=1,hidden=8", {}), ("made:hidden=8", {"posterior": "categorical", "train_draws": 2})],
)
def test_an_autoregressive_prior_is_trained_with_the_rest(prior: str, options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    made: Any = Vae(VaeConfig(latent=2, hidden=8, prior=prior, **options), BINARY)
    made.prepare(batch(BINARY).x, None, None, seeded())
    loss = made.objective(batch(BINARY), seeded())["loss"].sum()
    weights = [p for p in made.prior.model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, weights, allow_unused=True)
    assert sum(float(g.abs().sum()) for g in grads if g is not None) > 0
    assert made.latent_report(batch(BINARY).x).kl.shape == (2,)


# -- free bits ----------------------------------------------------------------------------------------------------


def test_free_bits_cost_nothing_below_and_the_divergence_above() -> None:
    """A dimension of N(0, 1) + small costs its free bits and has no gradient, another costs its divergence."""
    made, free = model(free_bits=0.5), 0.5

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.numbers = nn.Parameter(torch.tensor([0.1, 2.0, 0.0, 0.0]))

        def forward(self, y: Tensor, h: Tensor | None) -> Tensor:
            return self.numbers.expand(len(y), -1)

    made.encoder = Two()
    nn.init.zeros_(made.decoder.last.weight)  # so that the encoder's gradient is that of the divergence alone
    terms = made.objective(batch(BINARY), seeded())
    plain = model()
    plain.encoder, plain.decoder = made.encoder, made.decoder
    without = plain.objective(batch(BINARY), seeded())
    below, above = 0.5 * 0.1**2, 0.5 * 2.0**2
    torch.testing.assert_close(terms["loss"] - without["loss"], torch.full((12,), free - below))
    (slope,) = torch.autograd.grad(terms["loss"].mean(), made.encoder.numbers)
    torch.testing.assert_close(slope, torch.tensor([0.0, 2.0, 0.0, 0.0]), atol=1e-5, rtol=1e-5)
    assert above > free > below


# -- pixels -------------------------------------------------------------------------------------------------------


def windowed() -> Any:
    return model(WIDE, net="conv", channels=2, window=2, latent=1).eval()


def test_given_z_images_whose_pixels_see_each_other_sum_to_one() -> None:
    made = windowed()
    states = image_states(WIDE)
    z = torch.randn(1, 1, 1, generator=seeded()).expand(len(states), 1, 1)
    with torch.no_grad():
        p = made.reconstruction(states, z, None).double().exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-4)


def test_pixels_are_drawn_as_they_are_scored() -> None:
    made, states = windowed(), image_states(WIDE)
    z = torch.zeros(1, 1, 1)
    with torch.no_grad():
        p = made.reconstruction(states, z.expand(len(states), 1, 1), None)[:, 0].exp()
        u = made.decode(z, None)[:, 0].expand(4000, -1, -1, -1)
        assert made.local is not None
        drawn = made.local.sample(u, made.heads, seeded(1))
    share, pixel = drawn.flatten(1).double().mean(0), (p[:, None] * states.flatten(1)).sum(0)
    assert ((share - pixel).abs() < 4.5 * (pixel * (1 - pixel) / 4000).sqrt()).all()
    both = (drawn[:, 0, 0, 0] & drawn[:, 0, 0, 1]).double().mean()
    expected = float(p[(states[:, 0, 0, 0] & states[:, 0, 0, 1]).bool()].sum())
    assert abs(float(both) - expected) < 4.5 * (expected * (1 - expected) / 4000) ** 0.5


def test_a_pixel_sees_those_before_it_within_the_window_only() -> None:
    made, u = windowed().local, torch.zeros(1, 1, 2, 6, 7)
    assert made is not None
    y = torch.randn(1, 1, 6, 7, generator=seeded(), requires_grad=True)
    params = made(y, u).view(6, 7)
    (seen,) = torch.autograd.grad(params[3, 3], y)
    rows, columns = seen[0, 0].nonzero(as_tuple=True)
    expected = [(i, j) for i in (1, 2) for j in range(1, 6)] + [(3, 1), (3, 2)]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_the_logarithms_of_a_bernoulli_are_exact_in_both_tails() -> None:
    head, logit = Bernoulli((5,)), torch.tensor([-200.0, -20.0, 0.3, 20.0, 200.0])
    for x in (0, 1):
        p = head.log_prob(logit[:, None], torch.full((5,), x, dtype=torch.uint8))
        expected = -torch.nn.functional.softplus((1 - 2 * x) * logit.double())
        torch.testing.assert_close(p.double(), expected, rtol=1e-5, atol=1e-30)


def test_a_vae_with_everything_is_told_a_context() -> None:
    made = model(WIDE, Label(("a", "b")), net="conv", channels=2, window=2, prior="vamp:components=3").eval()
    x = batch(WIDE, 8).x
    with torch.no_grad():
        a, b = (made.given(torch.full((8,), c)).log_prob(x, generator=seeded()) for c in (0, 1))
    assert not torch.allclose(a.nats, b.nats)
    assert made.given(torch.tensor([0, 1])).sample(3, generator=seeded()).shape == (3, 2, 1, 3, 4)
