"""Differential equations of densities: the way, the divergence along it, and errors that are as large as they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pofx.core.comparison import interval
from pofx.core.errors import NotConverged, Unsupported, UsageError
from pofx.core.likelihood import Estimate
from pofx.core.measure import Measure
from pofx.core.noise import RowNoise
from pofx.core.registry import family
from pofx.core.requests import Iwae, OdeLikelihood, VariationalBound
from pofx.paths.gaussian import Gaussian
from pofx.paths.likelihood import angles, ode, ode_sample
from pofx.paths.predict import point
from pofx.paths.schedule import SCHEDULES, Chain
from pofx.spaces import Real, Table
from pofx.transforms import ode as solver
from pofx.transforms.continuous import Continuous
from pofx.transforms.ode import divergence, estimate, follow, probes, travel

PLANE = Table((Real("a"), Real("b")))
NAMES = [*SCHEDULES, "ddpm"]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def noise(n: int, seed: int = 0) -> RowNoise:
    return RowNoise.by_place(n, gen(seed))


def known(d: int = 2) -> Gaussian:
    """Correlated: its variances are far from 1 and from one another."""
    found = Gaussian(d)
    found.factors[0].copy_(torch.linalg.qr(normal(d, d, seed=7))[0])
    found.variance.copy_(torch.linspace(0.2, 1.8, d))
    return found


def path(name: str):
    return Chain(1000) if name == "ddpm" else SCHEDULES[name](1e-3, 80.0)


def denoiser(found: Gaussian, schedule):
    return lambda z, t: found.denoise(z, point(schedule, t, z))


def spiral(t: Tensor, z: Tensor) -> Tensor:
    """Turns, and shrinks at a rate 1 + t: z(1) = e^(-3/2) times z(0) turned by 2."""
    turned = torch.stack([-z[:, 1], z[:, 0]], 1)
    return 2 * turned - (1 + t)[:, None] * z


# -- the way ------------------------------------------------------------------------------------------------


def test_dormand_prince_is_of_order_5_and_knows_its_error() -> None:
    z, errors, told = normal(1, 2), [], []
    for count in (8, 16, 32):
        at, t, h = z, torch.zeros(1).double(), torch.full((1,), 1 / count).double()
        slope, total = spiral(t, at), 0.0
        for i in range(count):
            at, slope, error = solver.dormand_prince(spiral, t + i * h, h, at, slope)
            assert torch.allclose(slope, spiral(t + (i + 1) * h, at))  # the last stage is the first of the next step
            total += error.norm().item()
        angle = torch.tensor(2.0).double()
        turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        errors.append((at - math.exp(-1.5) * z @ turn.T).norm().item())
        told.append(total)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(5, abs=0.4)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(5, abs=0.4)
    assert all(error < said for error, said in zip(errors, told, strict=True))


def test_a_way_is_gone_closely_and_does_not_depend_on_other_rows() -> None:
    z = torch.cat([normal(3, 2), 50 * normal(1, 2, seed=1)])
    start, end = torch.zeros(4).double(), torch.tensor([1.0, 0.5, 0.2, 1.0]).double()

    def stiff(t: Tensor, z: Tensor) -> Tensor:
        return spiral(t, z) - z**3 / 50

    together = travel(stiff, start, end, z)
    alone = torch.cat([travel(stiff, start[i : i + 1], end[i : i + 1], z[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, rtol=1e-12)
    assert torch.allclose(travel(stiff, end, start, together), z, atol=1e-3)
    assert torch.allclose(
        travel(spiral, start, end, z).norm(dim=1), z.norm(dim=1) * (-end - end**2 / 2).exp(), rtol=1e-5
    )


def test_what_does_not_converge_is_an_error_by_name() -> None:
    one = torch.ones(2).double()
    with pytest.raises(NotConverged, match="of 2 rows 2 have a local error up to"):
        travel(lambda t, z: 1e6 * (3e5 * t)[:, None].sin() * z, 0 * one, one, normal(2, 2))
    with pytest.raises(NotConverged, match="up to nan"):
        travel(lambda t, z: z * math.nan, 0 * one, one, normal(2, 2))

    def solve(steps: int, noise: RowNoise) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 2).double(), one

    with pytest.raises(NotConverged, match="above the tolerance of 0.5. Ask for a larger"):
        estimate(solve, OdeLikelihood(2, tolerance=0.5), noise(2), 2, "a flow")


# -- the divergence along it ----------------------------------------------------------------------------------


def test_the_trace_is_exact_or_along_probes() -> None:
    a, z, t = normal(3, 3, seed=2), normal(5, 3), torch.zeros(5).double()
    v, exact = divergence(lambda t, z: (z @ a.T).sin(), t, z, None, graph=False)
    jacobian = (z @ a.T).cos()[:, :, None] * a
    assert torch.allclose(exact[0], jacobian.diagonal(dim1=1, dim2=2).sum(1))
    signs = probes(6, z, noise(5))
    assert signs is not None
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    _, along = divergence(lambda t, z: (z @ a.T).sin(), t, z, signs, graph=False)
    assert torch.allclose(along, torch.einsum("kni,nij,knj->kn", signs, jacobian, signs))
    assert torch.allclose(v, (z @ a.T).sin())


def test_the_integral_is_unbiased_and_its_error_is_what_it_says() -> None:
    """Of a trace that is far from a polynomial: 1,500 solutions of one equation, with places of their own each."""
    n = 1500
    change = follow(lambda t, z: (5 * t).cos()[:, None].exp() * z, 0.0, 1.0, torch.ones(n, 1).double(), 2, noise(n))
    grid = (torch.arange(100_000).double() + 0.5) / 100_000
    error = change.trace[0] - (5 * grid).cos().exp().mean()
    assert error.std() > 1e-3
    assert abs(error.mean()) < 4 * error.std() / n**0.5
    assert change.se.square().mean().sqrt().item() == pytest.approx(error.square().mean().sqrt().item(), rel=0.15)
    assert torch.allclose(change.z[:, 0].log(), error * 0 + (5 * grid).cos().exp().mean(), atol=1e-4)
    cubic = follow(lambda t, z: (4 * t**3 - t)[:, None] * z, 0.0, 1.0, torch.ones(9, 1).double(), 1, noise(9))
    assert torch.allclose(cubic.trace, torch.tensor(0.5).double(), atol=1e-10)


def test_the_error_falls_with_the_power_of_four_and_a_half() -> None:
    rms = []
    for steps in (2, 4, 8):
        change = follow(
            lambda t, z: (5 * t).cos()[:, None].exp() * z, 0.0, 1.0, torch.ones(400, 1).double(), steps, noise(400)
        )
        grid = (torch.arange(100_000).double() + 0.5) / 100_000
        rms.append((change.trace[0] - (5 * grid).cos().exp().mean()).square().mean().sqrt().item())
    assert math.log2(rms[0] / rms[2]) / 2 == pytest.approx(4.5, abs=0.6)


# -- the density of the probability flow -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_its_interval_covers_the_density_of_the_datum(name: str) -> None:
    """Without noise: the truth is the density of the data, not of the data at the smallest noise."""
    schedule, found, n = path(name), known(), 400
    x = normal(n, 2) * found.variance.sqrt() @ found.factors[0].T
    nats, se = ode(denoiser(found, schedule), found, schedule, x, 6, noise(n))
    error = nats[0] - found.log_prob(x)
    covered = (error.abs() < 1.96 * se).double().mean()
    assert 0.9 < covered < 0.99
    assert se.square().mean().sqrt().item() == pytest.approx(error.square().mean().sqrt().item(), rel=0.25)


def test_probes_and_solver_add_up_and_few_probes_widen_the_interval() -> None:
    schedule, found, n = path("cosine"), known(5), 300
    x = normal(n, 5) * found.variance.sqrt() @ found.factors[0].T
    truth = found.log_prob(x)
    for count in (8, 20):
        probe = probes(count, x, noise(n, 1))

        def solve(steps: int, places: RowNoise, probe: Tensor | None = probe) -> tuple[Tensor, Tensor]:
            return ode(denoiser(found, schedule), found, schedule, x, steps, places, probe)

        lik = estimate(solve, OdeLikelihood(5, count), noise(n, 2), 5, "flow")
        assert lik.draws == count
        low, high = interval(lik)
        assert 0.91 < ((low <= truth) & (truth <= high)).double().mean() < 0.985
        error = lik.nats - truth
        assert lik.mc_se.square().mean().sqrt().item() == pytest.approx(error.square().mean().sqrt().item(), rel=0.15)


def test_a_tolerance_is_kept_by_the_rows_that_need_it() -> None:
    schedule, found, n = path("cosine"), known(), 12
    x = normal(n, 2) * found.variance.sqrt() @ found.factors[0].T

    def solve(steps: int, places: RowNoise) -> tuple[Tensor, Tensor]:
        return ode(denoiser(found, schedule), found, schedule, x, steps, places)

    rough, close = (estimate(solve, OdeLikelihood(4, tolerance=t), noise(n), 2, "flow") for t in (None, 2e-3))
    assert rough.mc_se.max() > 2e-3 >= close.mc_se.max()
    kept = rough.mc_se <= 2e-3
    assert torch.equal(rough.nats[kept], close.nats[kept])
    assert ((close.nats - found.log_prob(x)).abs() < 8e-3).all()


@pytest.mark.parametrize("name", ["cosine", "ddpm"])
def test_a_draw_and_its_density_come_of_one_solution(name: str) -> None:
    schedule, found, n = path(name), known(), 300
    z = found.noisy(normal(n, 2), *angles(schedule.ends[0]))
    x, nats, se = ode_sample(denoiser(found, schedule), found, schedule, z, 8, noise(n))
    # the flow of a Gaussian keeps the coordinates in standard deviations
    assert torch.allclose(found.along(x) / found.variance.sqrt(), normal(n, 2), atol=2e-3)
    error = nats[0] - found.log_prob(x)
    assert 0.9 < (error.abs() < 1.96 * se).double().mean() <= 0.99
    assert error.abs().max() < 0.02


# -- models ---------------------------------------------------------------------------------------------------


def build(name: str, x: Tensor, **options):
    cls = family(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(cls.Config(hidden=16, blocks=1, **options), PLANE)
        for p in model.parameters():
            p.data += 0.1 * torch.randn(p.shape)
    model.prepare(x, None, None, gen())
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", ["vdm", "cnf", "maf", "gaussian"])
def test_samples_with_their_density(name: str) -> None:
    x = 3 * normal(200, 2) + 1
    if name == "gaussian":
        model = family(name)(family(name).Config(), PLANE)
        model.prepare(x, None, None, gen())
        model.learner(model.recipe(PLANE))
    else:
        model = build(name, x)
    asked = OdeLikelihood if OdeLikelihood in model.own_estimators else None
    drawn, lik = model.given().sample_with_log_prob(20, request=asked, generator=gen(1))
    again = model.log_prob(drawn, request=asked, generator=gen(2))
    assert drawn.shape == (20, 2)
    assert type(lik) is type(again)
    slack = 4 * (lik.mc_se + again.mc_se) + 1e-4 if isinstance(lik, Estimate) else 1e-6
    assert ((lik.nats - again.nats).abs() <= slack).all()


def test_the_bounds_terms_add_up_and_the_ends_are_in_closed_form() -> None:
    x = 3 * normal(200, 2) + 1
    model = build("vdm", x, largest=2.0)
    for steps in (None, 20):
        request = VariationalBound(draws=8, steps=steps)
        terms = model.given().bound_terms(x[:30], request=request, generator=gen(1))
        whole = model.log_prob(x[:30], request=request, generator=gen(1))
        assert list(terms) == ["prior", "path", "reconstruction"]
        assert torch.allclose(sum(t.nats for t in terms.values()), whole.nats)
        assert torch.allclose(terms["path"].mc_se, whole.mc_se)
        assert (terms["prior"].mc_se < 1e-12).all()
    y, g, s = model.split(x[:30]).y.double(), model.gaussian, 1 / (1 + 2.0**2)
    axes, mean = g.factors[0], g.mean
    noised = torch.distributions.MultivariateNormal(mean * s**0.5, axes @ (s * g.variance + 1 - s).diag() @ axes.T)
    given = torch.distributions.MultivariateNormal(y * s**0.5, (1 - s) * torch.eye(2).double())
    assert torch.allclose(terms["prior"].nats, -torch.distributions.kl_divergence(given, noised), atol=1e-6)
    with pytest.raises(UsageError, match="Ask for VariationalBound"):
        model.given().bound_terms(x, request=OdeLikelihood)
    with pytest.raises(Unsupported, match="has no bound in terms"):
        build("maf", x).given().bound_terms(x)
    with pytest.raises(UsageError, match="does not answer Iwae"):
        model.given().bound_terms(x, request=Iwae)


# -- cnf -------------------------------------------------------------------------------------------------------


def velocity(dim: int, exact_up_to: int, recompute: bool = False, steps: int = 6) -> Continuous:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = Continuous(dim, 0, 16, 1, steps, exact_up_to, recompute)
        for p in found.parameters():
            p.data += 0.15 * torch.randn(p.shape)
    return found.double()


def test_the_log_term_is_the_log_determinant_of_autograd() -> None:
    flow, x = velocity(3, 8), normal(4, 3)
    step = flow(x)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: flow(v[None]).z[0], row) for row in x])
    assert step.kind is Estimate
    assert step.log_term.abs().min() > 0.01
    assert torch.allclose(step.log_term, jacobian.slogdet().logabsdet, atol=2e-3)
    assert torch.allclose(flow.moved(flow.inverse(x), None, 0.0, 1.0), x, atol=1e-5)
    assert torch.allclose(flow.moved(x, None, 0.0, 1.0), step.z, atol=5e-3)


def test_the_log_term_with_noise_is_unbiased() -> None:
    """Places and probes drawn: on average the term without noise."""
    probed, exact, x = velocity(3, 0, steps=2), velocity(3, 8, steps=40), normal(1, 3)
    many = probed(x.expand(4000, 3), None, noise(4000)).log_term
    assert many.std() > 0.01
    assert abs(many.mean() - exact(x).log_term) < 4 * many.std() / 4000**0.5 + 2e-3


def test_gradients_are_the_same_whether_activations_are_kept_or_not() -> None:
    x, found = normal(5, 2), []
    for recompute in (False, True):
        flow = velocity(2, 8, recompute, steps=2)
        step = flow(x, None, noise(5))
        (step.log_term.sum() + step.z.square().sum()).backward()
        found.append([p.grad for p in flow.parameters()])
    for kept, again in zip(*found, strict=True):
        assert torch.allclose(kept, again)
    flow, one = velocity(2, 8, steps=2), next(velocity(2, 8).parameters())
    with torch.no_grad():  # and they are the slope
        p = next(flow.parameters())
        values = []
        for shift in (1e-5, -1e-5):
            p[0, 0] = one[0, 0] + shift
            step = flow(x, None, noise(5))
            values.append((step.log_term.sum() + step.z.square().sum()).item())
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(found[0][0][0, 0].item(), rel=1e-4)


def test_its_density_integrates_to_one_and_says_so_little_is_left() -> None:
    model = build("cnf", 2 * normal(300, 2))
    side = torch.linspace(-16, 16, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    lik = model.log_prob(grid)
    assert lik.measure == Measure.lebesgue(2)
    assert type(lik) is Estimate
    assert (lik.nats.exp().sum() * (side[1] - side[0]) ** 2).item() == pytest.approx(1, abs=2e-3)
    assert lik.mc_se.square().mean().sqrt() < 0.01
