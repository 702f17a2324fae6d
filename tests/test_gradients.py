"""Estimators of gradients against the exact gradient: by a sum over all states, by quadrature."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pofx.core.errors import UsageError
from pofx.core.learner import Batch
from pofx.families import gradients
from pofx.families.gradients import doubly, elbo, gumbel, gumbel_softmax, iwae, leave_one_out, log_derivative, vimco
from pofx.families.vae import Vae, VaeConfig
from pofx.spaces import Image

ROWS = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bias(each: Tensor, truth: Tensor) -> float:
    """How many standard errors the mean of gradients [N, P] is from the truth, at the worst of P."""
    return float(((each.mean(0) - truth).abs() / (each.std(0) / len(each) ** 0.5)).max())


def per_row(bound: Callable[[Tensor], Tensor], parameters: Tensor) -> Tensor:
    """Gradients [N, P] of the bound of each of N rows with parameters [P] of its own."""
    rows = parameters.expand(ROWS, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad(bound(rows).sum(), rows)
    return found


# -- two binary latents: all four states, all sixteen pairs of draws ----------------------------------------------

STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
LOG_JOINT = torch.tensor([-1.0, -3.5, -0.4, -2.0])  # log p(x, z) of each state
LOGITS = torch.tensor([0.4, -0.7])


def log_q(logits: Tensor, z: Tensor) -> Tensor:
    """[N, k] of logits [N, 2] and z [N, k, 2]."""
    return torch.distributions.Bernoulli(logits=logits[:, None], validate_args=False).log_prob(z).sum(-1)


def drawn(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """z [N, k, 2], its log joint and log q."""
    z = (torch.rand(len(logits), k, 2, generator=seeded()) < logits.detach().sigmoid()[:, None]).float()
    return z, LOG_JOINT[(z @ torch.tensor([2.0, 1.0])).long()], log_q(logits, z)


def exact(k: int, of: Callable[[Tensor], Tensor]) -> Tensor:
    """d/dlogits of E[bound of k log-weights], by enumeration of all states of all draws."""
    logits = LOGITS.clone().requires_grad_()
    q = log_q(logits[None], STATES[None])[0]
    tuples = torch.tensor(list(itertools.product(range(4), repeat=k)))
    value = (q[tuples].sum(1).exp() * of((LOG_JOINT - q)[tuples])).sum()
    (found,) = torch.autograd.grad(value, logits)
    return found


DISCRETE = {
    "log-derivative": (elbo, lambda f, q: log_derivative(f, q)),
    "leave-one-out": (elbo, leave_one_out),
    "vimco": (iwae, vimco),
}


def discrete(name: str, k: int = 3) -> Tensor:
    def bound(logits: Tensor) -> Tensor:
        _, joint, q = drawn(logits, k)
        return DISCRETE[name][1](joint - q, q)

    return per_row(bound, LOGITS)


@pytest.mark.parametrize("name", DISCRETE)
def test_log_derivatives_are_unbiased(name: str) -> None:
    assert bias(discrete(name), exact(3, DISCRETE[name][0])) < 4


def test_a_constant_adds_no_variance_where_there_is_a_baseline() -> None:
    """log p(x, z) of data of many sites is far from zero."""

    def spread(estimator: Callable[[Tensor, Tensor], Tensor], constant: float) -> float:
        def bound(logits: Tensor) -> Tensor:
            _, joint, q = drawn(logits, 3)
            return estimator(joint - q + constant, q)

        return float(per_row(bound, LOGITS).var(0).sum())

    for estimator in (leave_one_out, vimco):
        assert spread(estimator, -100.0) == pytest.approx(spread(estimator, 0.0), rel=1e-2)
    assert spread(log_derivative, -100.0) > 100 * spread(leave_one_out, -100.0)


def test_a_baseline_of_the_draw_itself_is_noticed() -> None:
    """The mean of all draws, this one among them, as the baseline: a factor of 1 - 1/k."""
    k = 3

    def bound(logits: Tensor) -> Tensor:
        _, joint, q = drawn(logits, k)
        f = joint - q
        return (f + (f - f.mean(1, keepdim=True)).detach() * (q - q.detach())).mean(1)

    assert bias(per_row(bound, LOGITS), exact(k, elbo)) > 5


def test_soft_categories_are_biased_and_less_so_when_colder() -> None:
    """Of f(z) = z_1^3, whose value between the states is no mean of theirs."""
    logits = torch.tensor([0.3, -0.3])
    p = logits.softmax(0)
    truth = p[0] * p[1]  # dp_1 / dlogit_1
    e = torch.randn(ROWS, 2, generator=seeded())

    def at(temperature: float) -> Tensor:
        return per_row(lambda rows: gumbel_softmax(rows, gumbel(e), temperature)[:, 0] ** 3, logits)[:, 0]

    hot, cold = at(1.0), at(0.1)
    assert abs(float(hot.mean() - truth)) > 5 * float(hot.std()) / ROWS**0.5
    assert abs(float(cold.mean() - truth)) < abs(float(hot.mean() - truth)) / 2
    assert cold.var() > hot.var()


def test_gumbel_noise_draws_categories_by_their_probabilities() -> None:
    g = gumbel(torch.randn(100_000, generator=seeded()))
    assert abs(float(g.mean()) - 0.57722) < 4 * 1.2825 / 100_000**0.5
    assert gumbel(torch.tensor([-9.0, 9.0])).isfinite().all()


# -- one Gaussian latent: two draws on a grid ---------------------------------------------------------------------

PARAMETERS = torch.tensor([0.5, -0.3])  # mean and log-scale of q


def log_joint(z: Tensor) -> Tensor:
    return -0.5 * (z + 0.3 * z**2 - 1).square() - 0.5 * z**2


def normal(mean: Tensor, log_scale: Tensor, z: Tensor) -> Tensor:
    return -0.5 * ((z - mean) / log_scale.exp()).square() - log_scale


def by_grid(of: Callable[[Tensor], Tensor], beta: float) -> Tensor:
    """d/dparameters of the expectation over two draws, by the trapezoidal rule over their noise."""
    parameters = PARAMETERS.double().requires_grad_()
    axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
    e = torch.cartesian_prod(axis, axis)
    mean, log_scale = parameters
    z = mean + log_scale.exp() * e
    density = (-0.5 * e.square().sum(1)).exp()
    log_w = (1 - beta) * log_joint(z) + beta * log_joint(z) - beta * normal(mean, log_scale, z)
    (found,) = torch.autograd.grad((density * of(log_w)).sum() / density.sum(), parameters)
    return found


def gaussian(name: str, beta: float) -> Tensor:
    e = torch.randn(ROWS, 2, 1, generator=seeded())

    def bound(rows: Tensor) -> Tensor:
        mean, log_scale = rows[:, None, :1], rows[:, None, 1:]
        z = mean + log_scale.exp() * e
        if name in ("reparameterised iwae", "reparameterised"):
            of = iwae if "iwae" in name else elbo
            return of((log_joint(z) - beta * normal(mean, log_scale, z))[..., 0])

        def still(z: Tensor) -> Tensor:
            return (log_joint(z) - beta * normal(mean.detach(), log_scale.detach(), z))[..., 0]

        return doubly(z, still, beta) if name == "doubly" else elbo(still(z))

    return per_row(bound, PARAMETERS)


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize(
    ("name", "of"), [("reparameterised", elbo), ("sticking", elbo), ("reparameterised iwae", iwae), ("doubly", iwae)]
)
def test_reparameterised_gradients_are_unbiased(name: str, of: Callable[[Tensor], Tensor], beta: float) -> None:
    assert bias(gaussian(name, beta), by_grid(of, beta).float()) < 4


def test_dropping_the_density_without_the_second_reparameterisation_is_noticed() -> None:
    """Sticking the landing is unbiased of the ELBO, not of the IWAE bound (Tucker et al. 2019, section 3)."""
    e = torch.randn(ROWS, 2, 1, generator=seeded())

    def bound(rows: Tensor) -> Tensor:
        mean, log_scale = rows[:, None, :1], rows[:, None, 1:]
        z = mean + log_scale.exp() * e
        return iwae((log_joint(z) - normal(mean.detach(), log_scale.detach(), z))[..., 0])

    assert bias(per_row(bound, PARAMETERS), by_grid(iwae, 1.0).float()) > 5


# -- the whole model: gradients of what the encoder says ----------------------------------------------------------

BINARY = Image(2, 2, 1, 2)


class Says(nn.Module):
    """An encoder that says the same of every row, each with a gradient of its own."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.rows = numbers.expand(ROWS, -1).clone().requires_grad_()

    def forward(self, y: Tensor, h: Tensor | None) -> Tensor:
        return self.rows


@pytest.mark.parametrize(("objective", "draws"), [("elbo", 2), ("iwae", 2)])
def test_a_vae_of_categories_has_the_gradient_by_enumeration(objective: str, draws: int) -> None:
    torch.manual_seed(1)
    options = {"latent": 1, "hidden": 8, "posterior": "categorical:values=3", "warmup": 0.0, "beta": 0.7}
    model: Any = Vae(VaeConfig(**options, objective=objective, train_draws=draws), BINARY)  # type: ignore[arg-type]
    nn.init.normal_(model.decoder.last.weight)
    nn.init.normal_(model.prior.logits)
    numbers = torch.tensor([0.2, -0.5, 0.6])
    model.encoder = Says(numbers)
    x = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)[None]
    loss = model.objective(Batch(x.expand(ROWS, -1, -1, -1), total=ROWS, progress=1.0), seeded())["loss"]
    (each,) = torch.autograd.grad(loss.sum(), model.encoder.rows)

    logits = numbers.clone().requires_grad_()
    q, z = logits.log_softmax(0), torch.eye(3)
    with torch.no_grad():
        likelihood, prior = (t[0] for t in model.log_terms(x, z[None], None))
    pairs = torch.tensor(list(itertools.product(range(3), repeat=draws)))
    log_w = likelihood - 0.7 * (q - prior)
    value = (q[pairs].sum(1).exp() * (elbo if objective == "elbo" else iwae)(log_w[pairs])).sum()
    (truth,) = torch.autograd.grad(-value, logits)
    assert bias(each, truth) < 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gradient": "vimco"}, "none of objective=elbo with posterior=gaussian"),
        ({"gradient": "leave-one-out", "posterior": "categorical"}, "train_draws=1 leaves no draw"),
        ({"gradient": "sticking", "posterior": "iaf"}, "posterior=iaf"),
        ({"prior": "vamp", "posterior": "iaf"}, "prior=vamp"),
        ({"prior": "normal", "posterior": "categorical", "train_draws": 2}, "no prior of"),
        ({"posterior": "nothing"}, "no posterior 'nothing'"),
        ({"latent": 0}, "latent is 0; it must be a finite number, 1 or more"),
        ({"free_bits": 0.1, "objective": "iwae", "train_draws": 2}, "no divergence"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Vae(VaeConfig(**options), BINARY)  # type: ignore[arg-type]


def test_the_usual_gradient_fits_its_objective_and_posterior() -> None:
    for objective, name in itertools.product(("elbo", "iwae"), ("gaussian", "iaf", "categorical")):
        gradients.check(gradients.usual(objective, name), objective, name, draws=2)
