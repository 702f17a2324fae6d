"""Bounds of models with latents from both sides: against linear Gaussian models, whose likelihood is known."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import pofx
from pofx.cli import main
from pofx.core.errors import Unsupported, UsageError, WrongShape
from pofx.core.likelihood import Estimate, LowerBound, UpperBound, cat, effective_draws, number, per_row
from pofx.core.requests import Ais, Elbo, HmcChains, Iwae, PerDatum, ReverseAis, ReverseAisOfChains
from pofx.data.parts import Part
from pofx.evaluate.inference import inference_gap
from pofx.evaluate.likelihood import weights_text
from pofx.evaluate.paths import bound_terms
from pofx.evaluate.sandwich import sandwich
from pofx.families.latent import Fitted, GaussianProposal, effective
from pofx.families.vae import Vae
from test_vae import PRECISION, TRUTH, B, S, W, pca, seeded

N = 12


@pytest.fixture(scope="module")
def model() -> Vae:
    """A linear Gaussian model whose encoder is wrong in place and scale."""
    return pca(0.4, 1.4).requires_grad_(False)


@pytest.fixture(scope="module")
def x() -> Tensor:
    z, e = torch.randn(N, 2, generator=seeded(1)), torch.randn(N, 3, generator=seeded(2))
    return (z @ W.T + B + S * e).double()


def test_elbo_iwae_ais_exact_and_reverse_ais_are_in_order(model: Vae) -> None:
    """For every point, beyond its error; and annealing has the truth within a tenth of a nat."""
    given = model.given()
    x, z = given.sample_joint(N, generator=seeded(3))
    truth = TRUTH.log_prob(x.float()).double()
    asked = (Elbo(64), Iwae(64), Ais(temperatures=60, chains=32))
    elbo, iwae, ais = (given.log_prob(x, request=r) for r in asked)
    above = given.reverse_ais(x, z, request=ReverseAis(temperatures=60, chains=32))
    assert isinstance(above, UpperBound)
    for lower, upper in ((elbo, iwae), (iwae, ais)):
        assert isinstance(lower, LowerBound)
        slack = 5 * (lower.mc_se.square() + upper.mc_se.square()).sqrt() + 0.02
        assert (lower.nats < upper.nats + slack).all()
    assert (ais.nats < truth + 5 * ais.mc_se + 0.02).all()
    assert (above.nats > truth - 5 * above.mc_se - 0.02).all()
    for side in (ais, above):
        error = float(side.mc_se.square().sum().sqrt()) / N
        assert abs(float((side.nats - truth).mean())) < 5 * error + 0.01
    assert float((above.nats - ais.nats).mean()) < 0.1
    assert float(elbo.nats.mean()) < float(truth.mean()) - 0.5  # there was something to gain


def test_more_temperatures_are_tighter(model: Vae, x: Tensor) -> None:
    wide = pca(2.0, 1.0).requires_grad_(False)  # whose encoder is far off
    truth = TRUTH.log_prob(x.float()).double()
    gaps = [float((truth - wide.log_prob(x, request=Ais(temperatures=t, chains=8)).nats).mean()) for t in (3, 60)]
    assert gaps[1] < 0.5 * gaps[0]
    assert gaps[1] > -0.1


def test_back_from_chains_carries_their_verdict(model: Vae, x: Tensor) -> None:
    lik = model.log_prob(x[:6], request=ReverseAisOfChains(temperatures=20, chains=16, warmup=100))
    assert isinstance(lik, Estimate)
    assert lik.caveat.startswith("the chains that it goes back from have ")
    assert "R-hat" in lik.caveat
    truth = TRUTH.log_prob(x[:6].float()).double()
    assert ((lik.nats - truth).abs() < 6 * lik.mc_se + 0.05).all()


def test_the_posterior_by_chains_is_the_posterior(model: Vae, x: Tensor) -> None:
    z, verdict = model.given().posterior_sample(x[:3], 160, sampler=HmcChains(chains=16, warmup=60, thin=2, leapfrog=4))
    assert z.shape == (160, 3, 2)
    assert verdict.rhat < 1.02, verdict
    mean = (x[:3].float() - B) @ W / S**2 / PRECISION
    error = 5 * (1 / PRECISION / 160).sqrt()  # so far apart that they are independent
    assert ((z.mean(0) - mean).abs() < error).all()
    assert ((z.var(0) * PRECISION).log().abs() < 0.6).all()


def test_a_row_has_its_number_in_any_batch(model: Vae, x: Tensor) -> None:
    """Chains, step sizes and noise are the row's own, up to a proposal that rounding decides otherwise."""
    for request in (Ais(temperatures=5, chains=4), PerDatum(8, fits=10)):
        whole = model.log_prob(x, request=request).nats
        alone = torch.cat([model.log_prob(x[i : i + 3], request=request).nats for i in range(0, N, 3)])
        assert ((whole - alone).abs() > 1e-4).sum() <= 1


def test_a_q_for_each_datum_reaches_the_best_of_its_family(model: Vae, x: Tensor) -> None:
    """The posterior is a diagonal Gaussian, so q* is the posterior and its ELBO the truth, from either start."""
    truth = TRUTH.log_prob(x.float()).double()
    for start in ("encoder", "normal"):
        lik = model.log_prob(x, request=PerDatum(64, start=start))  # type: ignore[arg-type]
        assert isinstance(lik, LowerBound)
        gap = truth - lik.nats
        assert (gap > -5 * lik.mc_se - 1e-3).all()
        assert float(gap.mean()) < 0.03
    none = model.log_prob(x, request=PerDatum(2000, fits=1, start="encoder")).nats
    assert float((truth - none).mean()) > 0.5


def test_the_gap_of_an_encoder_is_all_of_amortisation_where_its_family_holds_the_posterior(
    model: Vae, x: Tensor
) -> None:
    found = inference_gap(model, Part(x), fits=150, truth=Ais(temperatures=30))
    whole = found.log_p.nats - found.elbo.nats
    assert found.approximation.nats + found.amortisation.nats == pytest.approx(whole, abs=1e-6)
    assert found.approximation.mc_se is not None
    assert abs(found.approximation.nats) < 5 * found.approximation.mc_se + 0.03
    q, p = (Normal(torch.full((2,), m), f * PRECISION.rsqrt()) for m, f in ((0.4, 1.4), (0.0, 1.0)))
    assert found.amortisation.mc_se is not None
    divergence = float(kl_divergence(q, p).sum())
    assert abs(found.amortisation.nats - divergence) < 5 * found.amortisation.mc_se + 0.05
    assert json.loads(json.dumps(found.to_json()))["rows"] == N


def test_effective_draws_are_kish_s() -> None:
    log_w = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -50.0, -50.0, -50.0], [0.0, 0.0, -50.0, -50.0]]) - 700
    torch.testing.assert_close(effective(log_w.double()), torch.tensor([4.0, 1.0, 2.0], dtype=torch.float64))


def test_effective_draws_travel_and_few_are_told(model: Vae, x: Tensor) -> None:
    good, poor = (pca(shift, 1.0).log_prob(x, request=Iwae(64)) for shift in (0.0, 3.0))
    assert effective_draws(good).min() > 60
    both = cat([per_row(lambda t: t[:2], good), per_row(lambda t: t[:2], poor)])
    assert torch.equal(effective_draws(both), torch.cat([effective_draws(good)[:2], effective_draws(poor)[:2]]))
    assert weights_text(good) == ""
    assert "effective draws of 64" in weights_text(poor)
    assert effective_draws(model.log_prob(x, request=Elbo(8))) is None


def test_a_fitted_proposal_is_a_density_and_its_inverse() -> None:
    mean, log_scale = torch.randn(2, 5, 3, generator=seeded(0))
    q = Fitted(GaussianProposal(mean, log_scale), *torch.randn(2, 5, 3, generator=seeded(1)))
    e = torch.randn(5, 7, 3, generator=seeded(2))
    z, log_q = q(e)
    torch.testing.assert_close(q.inverse(z), e, atol=1e-4, rtol=1e-4)
    scale = (q.log_scale + log_scale).exp()
    truth = Normal((mean + log_scale.exp() * q.shift)[:, None], scale[:, None]).log_prob(z).sum(-1)
    torch.testing.assert_close(log_q, truth, atol=1e-3, rtol=1e-4)


def test_rows_that_depend_on_each_other_count_once_in_sandwiches_and_terms(model: Vae, x: Tensor) -> None:
    rows, how = torch.arange(len(x)) // 4, Ais(temperatures=3, chains=2)
    alone, both = (sandwich(model, part, request=how, simulate=0) for part in (Part(x), Part(x, rows=rows)))
    gap = number(both.upper.rows) - number(both.lower.rows)
    fours = gap.nats.double().unfold(0, 4, 4).mean(1)
    assert both.gap.nats == pytest.approx(alone.gap.nats)
    assert both.gap.se == pytest.approx(float(fours.std() / len(fours) ** 0.5), rel=1e-5)
    assert both.gap.se != pytest.approx(alone.gap.se, rel=1e-3)
    one = bound_terms(model, Part(x, rows=torch.zeros(len(x), dtype=torch.int64)), torch.Generator(), 60)
    assert one["se"] is None
    assert {term["se"] for term in one["terms"].values()} == {None}


def test_both_sides_and_those_of_simulated_rows(model: Vae, x: Tensor) -> None:
    both = sandwich(model, Part(x), request=Ais(temperatures=10, chains=8), simulate=20)
    assert both.lower.kind is LowerBound
    assert both.upper.kind is Estimate
    assert both.gap.kind is Estimate
    assert both.simulated is not None
    assert both.simulated.gap.kind is UpperBound
    assert both.simulated.gap.se is not None
    assert -5 * both.simulated.gap.se < both.simulated.gap.nats < 0.2 + 3 * both.simulated.gap.se
    told = json.loads(json.dumps(both.to_json()))
    assert told["upper"]["kind"] == "Estimate"
    assert told["simulated"]["upper"]["kind"] == "UpperBound"
    assert len(told["lower"]["rows"]["nats"]) == N


def test_a_model_without_two_sides_is_named(x: Tensor) -> None:
    data = pofx.load("two-moons", max_rows=60)
    gaussian = pofx.fit(data, "gaussian", steps=1).model
    with pytest.raises(Unsupported, match="has no two sides"):
        sandwich(gaussian, data.test)
    with pytest.raises(Unsupported, match="has no joint density of data and latents"):
        gaussian.given().sample_joint(3)
    with pytest.raises(Unsupported, match=r"no q\(z \| x\)"):
        inference_gap(gaussian, data.test)


def test_bad_input_is_named(model: Vae, x: Tensor) -> None:
    with pytest.raises(UsageError, match="temperatures is 1"):
        Ais(temperatures=1)
    with pytest.raises(UsageError, match="chains is 1"):
        Ais(chains=1)
    with pytest.raises(UsageError, match="latent"):
        dataclasses.replace(model.config, latent=0)
    with pytest.raises(WrongShape, match="z has shape"):
        model.given().log_joint(x, torch.zeros(N - 1, 2))
    with pytest.raises(UsageError, match="0 draws"):
        model.given().posterior_sample(x, 0)


def test_the_joint_density_is_that_of_the_model(model: Vae) -> None:
    x, z = model.given().sample_joint(N, generator=seeded(5))
    prior = Normal(0.0, 1.0).log_prob(z).sum(1)
    likelihood = Normal(z @ W.T + B, S).log_prob(x.float()).sum(1)
    torch.testing.assert_close(model.given().log_joint(x, z), prior + likelihood, atol=1e-3, rtol=1e-4)
    drawn, codes = model.given().sample_joint(4000, generator=seeded(6))
    residual = drawn.float() - codes @ W.T - B
    assert abs(float(residual.std()) / S - 1) < 5 / math.sqrt(2 * residual.numel())
    assert (codes.mean(0).abs() < 5 / math.sqrt(4000)).all()


def test_the_command_line_tells_both_sides(tmp_path, capsys) -> None:
    run, table = tmp_path / "run", tmp_path / "rows.csv"
    pofx.fit(pofx.load("two-moons", max_rows=100), "ppca", options={"latent": 1}, out=run)
    asked = ["log-prob", str(run), "--estimator", "sandwich", "--temperatures", "5", "--simulate", "10"]
    assert main([*asked, "--out", str(table), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["lower"]["kind"] == "LowerBound"
    assert told["upper"]["kind"] == "UpperBound"
    assert told["simulated"]["lower"]["n"] == 10
    header = table.read_text().splitlines()[0]
    assert "lower_log_prob" in header
    assert "upper_kind" in header
    assert main(asked) == 0
    assert "from above: ≤" in capsys.readouterr().out
    assert main(["log-prob", str(run), "--simulate", "3"]) != 0
    assert "--simulate goes with --estimator sandwich" in capsys.readouterr().err
