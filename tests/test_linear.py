"""ppca and factor-analysis against scikit-learn, SciPy, and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA, FactorAnalysis

import pofx
from pofx.core.errors import Unsupported
from pofx.core.likelihood import Exact, LowerBound, UpperBound
from pofx.core.requests import Ais, Elbo, Iwae, ReverseAis
from pofx.data.parts import Data, Part
from pofx.families.linear import FactorAnalysis as Factors
from pofx.families.linear import Linear, LinearConfig, Ppca
from pofx.spaces import Category, Integer, Real, Reals, Table

D, Q = 6, 2
TABLE = Table(tuple(Real(name) for name in "abcdef"))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Columns of unequal noise, far from zero."""
    g = np.random.default_rng(0)
    z, noise = g.normal(size=(900, Q)), g.normal(size=(900, D)) * np.array([0.3, 0.5, 0.7, 0.4, 0.6, 1.0])
    return np.asarray(z @ g.normal(size=(Q, D)) + noise + 3)


def fitted(name: str, rows: np.ndarray, **options: object) -> Linear:
    x = torch.tensor(rows)
    data = Data("rows", "memory", TABLE, Part(x[:600]), Part(x[600:700]), Part(x[700:]), None)
    model = pofx.fit(data, name, options={"latent": Q, "tol": 1e-10, **options}).model
    assert isinstance(model, Linear)
    return model


@pytest.fixture(scope="module")
def ppca(rows: np.ndarray) -> Linear:
    return fitted("ppca", rows)


def test_ppca_is_the_maximum_of_the_likelihood(ppca: Linear, rows: np.ndarray) -> None:
    """scikit-learn has it in closed form, of the covariance over n - 1 rows instead of n (Tipping & Bishop 1999)."""
    pca = PCA(Q).fit(rows[:600])
    covariance = pca.get_covariance() * 599 / 600
    truth = multivariate_normal(rows[:600].mean(0), covariance).logpdf(rows[700:])
    np.testing.assert_allclose(ppca.log_prob(torch.tensor(rows[700:])).nats.numpy(), truth, atol=1e-4)
    assert float(ppca.log_prob(torch.tensor(rows[700:])).nats.mean()) == pytest.approx(pca.score(rows[700:]), abs=2e-3)
    variance = np.linalg.eigvalsh(covariance)[0]
    assert float(ppca.noise[0]) == pytest.approx(variance, rel=1e-5)


def test_factor_analysis_scores_as_scikit_learn_s(rows: np.ndarray) -> None:
    theirs = FactorAnalysis(Q, tol=1e-9, max_iter=10_000, svd_method="lapack").fit(rows[:600])
    ours = fitted("factor-analysis", rows).log_prob(torch.tensor(rows[700:]))
    np.testing.assert_allclose(ours.nats.numpy(), theirs.score_samples(rows[700:]), atol=2e-3)


@pytest.mark.parametrize("cls", [Ppca, Factors])
def test_em_is_monotone(cls: type[Linear], rows: np.ndarray) -> None:
    model, x = cls(LinearConfig(latent=Q), TABLE), torch.tensor(rows)
    model.prepare(x, None, None, torch.Generator().manual_seed(0))
    covariance = torch.cov(x.T, correction=0)
    found = []
    for _ in range(30):
        found.append(float(model.log_prob(x).nats.mean()))
        model.improve(covariance)
    assert (np.diff(found) > -1e-10).all()


def test_posterior_and_score(ppca: Linear, rows: np.ndarray) -> None:
    x = torch.tensor(rows[:5])
    w, psi, off = ppca.loading, torch.diag(ppca.noise), x - ppca.mean
    marginal = w @ w.T + psi
    q = ppca.given().encode(x)
    torch.testing.assert_close(q.mean, off @ torch.linalg.solve(marginal, w))  # of the joint Gaussian of z and x
    assert isinstance(q, torch.distributions.MultivariateNormal)
    torch.testing.assert_close(
        q.covariance_matrix[0], torch.eye(Q) - w.T @ torch.linalg.solve(marginal, w), check_dtype=False
    )
    torch.testing.assert_close(ppca.given().score(x), -torch.linalg.solve(marginal, off.T).T)


def test_given_a_context_it_is_the_conditional_of_the_joint(rows: np.ndarray) -> None:
    x, c = torch.tensor(rows[:, 2:]), torch.tensor(rows[:, :2])
    space, context = Table(TABLE.columns[2:]), Table(TABLE.columns[:2])
    data = Data(
        "rows", "memory", space, *(Part(x[s], c[s]) for s in (slice(600), slice(600, 700), slice(700, 900))), context
    )
    model = pofx.fit(data, "factor-analysis", options={"latent": Q, "tol": 1e-10}).model
    assert isinstance(model, Linear)
    joint = (model.loading @ model.loading.T + torch.diag(model.noise)).numpy()
    mean = model.mean.numpy()
    truth = multivariate_normal(mean, joint).logpdf(rows[:9]) - multivariate_normal(mean[:2], joint[:2, :2]).logpdf(
        rows[:9, :2]
    )
    np.testing.assert_allclose(model.given(c[:9]).log_prob(x[:9]).nats.numpy(), truth, atol=1e-8)
    drawn = model.given(c[:1]).sample(20_000, generator=torch.Generator().manual_seed(0))[:, 0]
    slope = joint[2:, :2] @ np.linalg.inv(joint[:2, :2])
    spread = joint[2:, 2:] - slope @ joint[:2, 2:]
    expected = mean[2:] + slope @ (rows[0, :2] - mean[:2])
    assert (np.abs(drawn.mean(0).numpy() - expected) < 5 * np.sqrt(np.diag(spread) / 20_000)).all()
    np.testing.assert_allclose(np.cov(drawn.numpy().T), spread, atol=5 * spread.max() * np.sqrt(2 / 20_000))


def test_bounds_stand_in_order_beside_the_truth(ppca: Linear, rows: np.ndarray) -> None:
    x = torch.tensor(rows[700:720])
    exact = ppca.log_prob(x)
    assert isinstance(exact, Exact)
    asked = (Elbo(64), Iwae(64), Ais(temperatures=100, chains=32))
    elbo, iwae, ais = (ppca.log_prob(x, request=r) for r in asked)
    above = ppca.log_prob(x, request=ReverseAis(temperatures=100, chains=32))
    assert isinstance(ais, LowerBound)
    assert isinstance(above, UpperBound)
    for lower, upper in ((elbo, iwae), (iwae, ais)):
        slack = 5 * (lower.mc_se.square() + upper.mc_se.square()).sqrt() + 0.02
        assert (lower.nats < upper.nats + slack).all()
    assert (ais.nats < exact.nats + 5 * ais.mc_se + 0.02).all()
    assert (above.nats > exact.nats - 5 * above.mc_se - 0.02).all()
    assert float((above.nats - ais.nats).mean()) < 0.1 + 3 * float((above.mc_se**2 + ais.mc_se**2).sum().sqrt()) / 20


def test_grids_get_a_bound_and_other_spaces_a_reason() -> None:
    counts = Table((Integer("a", 0, 9), Integer("b", 0, 9)))
    x = torch.randint(10, (300, 2), generator=torch.Generator().manual_seed(0)).double()
    data = Data("counts", "memory", counts, Part(x[:200]), Part(x[200:250]), Part(x[250:]), None)
    lik = pofx.fit(data, "ppca", options={"latent": 1}).model.log_prob(x[:20])
    assert isinstance(lik, LowerBound)
    assert lik.nats.mean() < 2 * np.log(0.1) + 0.1  # the entropy of the source
    with pytest.raises(Unsupported, match="models numbers"):
        Ppca(LinearConfig(latent=1), Table((Real("a"), Category("k", ("u", "v")))))
    with pytest.raises(Unsupported, match="complete rows"):
        Ppca(LinearConfig(latent=1), Table((Real("a"), Real("b", nullable=True))))
    with pytest.raises(Unsupported, match="latent=2 of 2 columns leaves no noise"):
        Factors(LinearConfig(latent=2), Reals((2,)))
