"""Identities of the model of action chunks: its head, bounds against a quadrature, two styles, ensembles of chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import pofx
from pofx.core.errors import UsageError, WrongShape
from pofx.core.likelihood import LowerBound
from pofx.core.requests import Ais, Elbo, Iwae
from pofx.data.parts import Data, Part
from pofx.families.act import Act, ActConfig, ensemble
from pofx.nn.laplace import Laplace
from pofx.spaces import Integer, Real, Reals, Table, Text


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- the head -------------------------------------------------------------------------------------------------------


def test_the_laplace_head_is_scipys() -> None:
    head = Laplace((2,))
    head.prepare(torch.randn(100, 2, generator=seeded(0), dtype=torch.float64) * 3 + 1)
    params = torch.tensor([[0.3, -0.4], [-1.2, 0.7]], dtype=torch.float64)
    known = stats.laplace(
        (params[:, 0] * head.scale + head.location).numpy(), (params[:, 1].exp() * head.scale).numpy()
    )
    x = torch.randn(50, 2, generator=seeded(1), dtype=torch.float64) * 4
    np.testing.assert_allclose(head.log_prob(params, x).numpy(), known.logpdf(x.numpy()), rtol=1e-10)
    draws = head.sample(params.expand(20_000, 2, 2), seeded(2)).numpy()
    for j in range(2):
        own = stats.laplace(known.kwds.get("loc", known.args[0])[j], known.args[1][j])
        assert stats.kstest(draws[:, j], own.cdf).pvalue > 1e-3
    np.testing.assert_allclose(head.typical(params).numpy(), known.median())


# -- bounds -----------------------------------------------------------------------------------------------------------


def small(**options: object) -> Act:
    torch.manual_seed(0)
    model = Act(ActConfig(**{"latent": 1, "width": 16, "layers": 1, "n_heads": 2, **options}), Reals((3, 2)))
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def bound(model: Act, x: Tensor, request: Iwae | Elbo | Ais) -> LowerBound:
    with torch.no_grad():
        lik = model.log_prob(x, request=request, generator=seeded(0))
    assert isinstance(lik, LowerBound)
    return lik


@pytest.mark.parametrize("head", ["laplace", "gaussian"])
def test_bounds_are_below_a_quadrature_over_z(head: str) -> None:
    model, x = small(head=head), torch.randn(16, 3, 2, generator=seeded(1), dtype=torch.float64)
    z = torch.linspace(-8, 8, 1601)
    with torch.no_grad():
        decoded = model.decode(z[None, :, None], None)
        log_p = model.heads.log_prob(decoded.double(), x[:, None]).sum(-1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).double()
    known = (log_p + prior).logsumexp(1) + math.log(0.01)
    elbo = bound(model, x, Elbo(400))
    with torch.no_grad():  # weights of draws of the prior are bounded, and so their errors what they say
        model.propose.weight.zero_()
        model.propose.bias.zero_()
    iwae = bound(model, x, Iwae(4000))
    assert ((iwae.nats - known).abs() < 5 * iwae.mc_se + 2e-3).all()
    assert float((elbo.nats - known).mean()) < 4 * float(elbo.mc_se.square().mean().sqrt()) / 4
    assert float((iwae.nats - elbo.nats).mean()) > 0


def test_a_decoder_that_does_not_listen_has_an_exact_bound() -> None:
    model, x = small(latent=3), torch.randn(8, 3, 2, generator=seeded(2), dtype=torch.float64)
    with torch.no_grad():
        for p in (model.z_in.weight, model.propose.weight, model.propose.bias):
            p.zero_()
        mean, log_b = model.decode(torch.zeros(1, 1, 3), None).view(6, 2).double().unbind(-1)
    known = stats.laplace.logpdf(x.flatten(1).numpy(), mean.numpy(), log_b.exp().numpy()).sum(1)
    for request in (Iwae(2), Elbo(2)):
        lik = bound(model, x, request)
        np.testing.assert_allclose(lik.nats.numpy(), known, atol=1e-4)
        assert lik.mc_se.max() < 1e-4


# -- two styles -------------------------------------------------------------------------------------------------------


def turns(n: int, seed: int) -> Part:
    """From a place c go around an obstacle, left or right by lot: actions [4, 2]."""
    g = seeded(seed)
    c = torch.randn(n, 1, generator=g, dtype=torch.float64)
    side = torch.randint(0, 2, (n, 1), generator=g) * 2.0 - 1
    arc = torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    x = torch.stack([side * arc, c + torch.arange(4)], -1)
    return Part(x + 0.1 * torch.randn(n, 4, 2, generator=g, dtype=torch.float64), c)


@pytest.fixture(scope="module")
def policy() -> Act:
    data = Data("turns", "memory", Reals((4, 2)), turns(2000, 1), turns(100, 2), turns(200, 3), Table((Real("c"),)))
    options = {"latent": 2, "width": 32, "layers": 1, "n_heads": 2}
    recipe = {"batch": 64, "lr": 3e-3, "warmup": 20, "ema": 0.98}
    run = pofx.fit(data, "act", steps=400, checks=1, seed=0, options=options, recipe=recipe)
    assert isinstance(run.model, Act)
    return run.model


def test_a_policy_knows_both_ways_and_keeps_to_one(policy: Act) -> None:
    test = turns(200, 3)
    drawn = policy.given(test.c).sample(4, generator=seeded(0))
    side = drawn[..., 0].sign()
    whole = side.sum(-1).abs() == 4
    assert whole.double().mean() > 0.9  # all four actions on one side
    assert 0.25 < (side[..., 0] > 0).double().mean() < 0.75
    assert float((drawn[..., 1] - test.c - torch.arange(4)).abs().mean()) < 0.4
    lik = policy.given(test.c).log_prob(test.x, generator=seeded(0))
    # the best that independent Laplace numbers could say without a style: |a| is 1 or 2 around 0
    blind = sum(2 * (-1 - math.log(2 * b)) for b in (1.0, 2.0)) + 4 * (0.5 - math.log(2 * 0.1 * math.e))
    assert float(lik.nats.mean()) > blind


def test_latents_go_back_and_forth(policy: Act) -> None:
    test = turns(100, 4)
    z = policy.given(test.c).encode(test.x).mean
    again = policy.given(test.c).from_latents(z)
    assert (again[..., 0].sign() == test.x[..., 0].sign()).double().mean() > 0.95


# -- ensembles ------------------------------------------------------------------------------------------------------


def test_an_ensemble_weighs_what_was_asked_for_earlier_most() -> None:
    chunks, decay = torch.randn(7, 3, 2, generator=seeded(0), dtype=torch.float64), 0.3
    found = ensemble(chunks, decay)
    for t in range(7):
        each = [(s, chunks[s, t - s]) for s in range(7) if 0 <= t - s < 3]
        weights = [math.exp(-decay * i) for i in range(len(each))]
        mean = sum(w * a for w, (_, a) in zip(weights, each, strict=True)) / sum(weights)
        torch.testing.assert_close(found[t], mean)
    torch.testing.assert_close(ensemble(chunks, 200.0)[5], chunks[3, 2])  # the oldest alone


def test_bad_input_is_told_by_name() -> None:
    for options in ({"latent": 0}, {"width": 30, "n_heads": 4}, {"draws": 1}, {"beta": -1.0}):
        with pytest.raises(UsageError):
            ActConfig(**options)
    with pytest.raises(WrongShape):
        ensemble(torch.zeros(3, 2))
    with pytest.raises(UsageError, match="decay"):
        ensemble(torch.zeros(3, 2, 1), -1.0)
    for space in (Table((Integer("n", 0, 4),)), Text("ab", True, 4), Reals((2000, 1))):
        assert Act.refuses(space, None, ActConfig())
