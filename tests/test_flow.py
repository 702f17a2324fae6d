"""Flows and their base: integrals, bounds, equivariance, codes, scores, encoders."""

import dataclasses
import math

import pytest
import torch

from pofx.core.errors import NotInverted, Unsupported, UsageError
from pofx.core.learner import Batch
from pofx.core.likelihood import Exact, LowerBound
from pofx.core.registry import family
from pofx.core.requests import Dequantised
from pofx.spaces import Category, Image, Integer, Label, Real, Table

NAMES = ["realnvp", "maf", "iaf", "nsf"]
KINDS = [
    ("realnvp", {}),
    ("maf", {}),
    ("iaf", {"layers": 2}),
    ("nsf", {"kind": "autoregressive"}),
    ("nsf", {"kind": "coupling"}),
    ("realnvp", {"scales": 2}),
    ("maf", {"base": "student"}),
    ("realnvp", {"base": "mixture", "components": 3}),
]
PLANE = Table((Real("a"), Real("b")))
SIDE = torch.linspace(-9, 9, 301, dtype=torch.float64)
GRID, CELL = torch.cartesian_prod(SIDE, SIDE), 0.06**2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def build(name, space, x, c=None, context=None, steps=0, **options):
    """A tiny model, its parameters stirred so that no layer is the identity, then trained a little."""
    cls = family(name)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = cls(dataclasses.replace(cls.tiny(space), **options), space, context)
    model.prepare(x, c, None, generator())
    for i, p in enumerate(model.flow.parameters()):
        p.data += 0.05 * randn(*p.shape, seed=i).float()
    learner, g = model.learner(cls.recipe(space)), generator(1)
    for i in range(steps):
        rows = torch.randint(0, len(x), (256,), generator=g)
        batch = Batch(x[rows], None if c is None else c[rows], None, 0, 256, i / steps, i)
        learner.step(batch, g)
    return model


def curve(n, seed=0):
    x = randn(n, 2, seed=seed)
    x[:, 1] = 0.5 * x[:, 0] ** 2 + 0.3 * x[:, 1]
    return x


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_density_integrates_to_one(name, options):
    model = build(name, PLANE, curve(2000), steps=30, **options)
    with torch.no_grad():
        lik = model.log_prob(GRID)
    assert isinstance(lik, Exact)
    assert lik.nats.exp().sum().item() * CELL == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_conditional_density_integrates_to_one(name):
    x, c = curve(1000), torch.arange(1000) % 2
    x[c == 1] = 0.5 * x[c == 1].flip(1)
    model = build(name, PLANE, x, c, Label(("a", "b")), steps=20)
    for k in (0, 1):
        with torch.no_grad():
            lik = model.given(torch.tensor(k)).log_prob(GRID)
        assert lik.nats.exp().sum().item() * CELL == pytest.approx(1, abs=1e-3)


def test_iaf_is_maf_the_other_way_round():
    """Samples of one are the latents of the other, one pass of the same nets."""
    iaf, maf = (build(name, PLANE, curve(200), layers=2, linear_up_to=0).double() for name in ("iaf", "maf"))
    iaf.flow.load_state_dict({k.replace("net.", "transform.net.", 1): v for k, v in maf.flow.state_dict().items()})
    x = randn(20, 2)
    with torch.no_grad():
        y = x
        for layer in reversed(iaf.flow.transforms):
            y = layer.inverse(y)
        want = maf.flow.transforms[0](maf.flow.transforms[1](x).z).z
        assert torch.equal(y, want)
        assert torch.allclose(iaf.flow(y).z, x, atol=1e-9)


TORUS = Table((Real("phi"), Real("psi")))


def turned(n, seed=0):
    """Angles in degrees about the seam, the second near the first; a number that is the first one's sine."""
    phi = 60 * randn(n, seed=seed)
    psi = (phi + 20 * randn(n, seed=seed + 1)).remainder(360)
    return torch.stack([phi.remainder(360), psi, (phi * math.pi / 180).sin() + 0.2 * randn(n, seed=seed + 2)], 1)


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_a_density_on_the_torus(kind):
    """It integrates to one, is alike at both sides of each seam, and the same a period away."""
    x = turned(1000)[:, :2]
    model = build("nsf", TORUS, x, steps=60, kind=kind, circular=("phi=360", "psi=360")).double()
    side = torch.arange(0, 360, 3, dtype=torch.float64) + 1.5
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        nats = model.log_prob(grid).nats
        assert nats.exp().sum().item() * 9 == pytest.approx(1, abs=1e-3)
        assert torch.allclose(model.log_prob(grid - 720).nats, nats)
        edge = torch.stack([torch.full((50,), 1e-9).double(), 360 * torch.rand(50).double()], 1)
        for order in ([0, 1], [1, 0]):
            one, other = (model.log_prob((edge * sign)[:, order]).nats for sign in (1, torch.tensor([-1.0, 1.0])))
            assert torch.allclose(one, other, atol=1e-3)
        z = model.given().encode(x).mean
        assert torch.allclose(model.preprocess.join(torch.zeros(len(x), 0), model.of_latents(z, None)), x, atol=1e-4)
    drawn, p = model.sample(4000, generator=generator(2)), nats.exp() * 9
    assert ((drawn >= 0) & (drawn < 360)).all()
    for f in (lambda v: (v[:, 0] * math.pi / 180).cos(), lambda v: ((v[:, 0] - v[:, 1]) * math.pi / 180).cos()):
        assert (f(drawn).mean() - (p * f(grid)).sum()).abs() < 4 * f(drawn).std() / 4000**0.5 + 1e-3


def test_a_number_given_an_angle():
    space = Table((Real("phi"), Real("height")))
    model = build("nsf", space, turned(2000)[:, [0, 2]], steps=100, circular=("phi=360",))
    side, up = torch.arange(0, 360, 3, dtype=torch.float64) + 1.5, torch.linspace(-4, 4, 201, dtype=torch.float64)
    with torch.no_grad():
        p = model.log_prob(torch.cartesian_prod(side, up)).nats.exp().view(120, 201) * 0.04
    assert p.sum().item() * 3 == pytest.approx(1, abs=1e-3)
    mean = (p * up).sum(1) / p.sum(1)
    near = (side < 60) | (side > 300)
    assert (mean - (side * math.pi / 180).sin())[near].abs().max() < 0.25


def test_circular_names_real_columns():
    nsf = family("nsf")
    space = Table((Real("phi"), Integer("hour", 0, 23), Real("gap", nullable=True)))
    for spelled, said in (("chi", "columns are phi, hour, gap"), ("phi=x", "no positive number"), ("hour=24", "hour")):
        with pytest.raises(UsageError, match=said):
            nsf(nsf.Config(circular=(spelled,)), space)
    with pytest.raises(UsageError, match="no complete real column"):
        nsf(nsf.Config(circular=("gap",)), space)
    with pytest.raises(Unsupported, match="Leave base at normal"):
        nsf(nsf.Config(circular=("phi",), base="student"), space)
    assert nsf(nsf.Config(circular=("phi",)), space).turning == {0: (0, 2 * math.pi)}


def test_an_inverse_that_fails_is_an_error():
    """NaN, or latents that do not come back, whatever the samples look like."""
    integers = Table((Integer("i", 0, 9),)), torch.arange(10, dtype=torch.float64)[:, None]
    for broken in (build("maf", PLANE, curve(200)), build("maf", *integers)):
        with torch.no_grad():
            broken.whiten.bias[0] = math.nan
        with pytest.raises(NotInverted, match="no finite inverse"):
            broken.sample(5)
    model = build("realnvp", PLANE, curve(200))
    model.sample(5)
    inverse = model.flow.inverse
    model.flow.inverse = lambda z, h=None, out=None: 1.5 * inverse(z, h, out)
    with pytest.raises(NotInverted, match=r"off by .* above 0.1"):
        model.sample(5)


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_samples_have_the_density(name, options):
    """E over samples of any f equals its integral under the density; f = second moments."""
    model = build(name, PLANE, curve(2000), steps=60, **options)
    with torch.no_grad():
        p = model.log_prob(GRID).nats.exp() * CELL
    x = model.sample(20000, generator=generator(5)).clamp(-9, 9)
    for f in (lambda v: v[:, 0], lambda v: v[:, 1], lambda v: v[:, 0] * v[:, 1], lambda v: v[:, 1].square()):
        want, got = (p * f(GRID)).sum(), f(x)
        assert (got.mean() - want).abs() < 4 * got.std() / 20000**0.5 + 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_training_beats_the_gaussian_start(name):
    x, test = curve(4000), curve(1000, seed=9)
    start, trained = build(name, PLANE, x), build(name, PLANE, x, steps=200, layers=3)
    entropy = 2 * 0.5 * math.log(2 * math.pi * math.e) + math.log(0.3)
    with torch.no_grad():
        before, after = (m.log_prob(test).nats.mean().item() for m in (start, trained))
    assert before + 0.1 < after < -entropy + 0.15  # 0.15: three standard errors of the mean


@pytest.mark.parametrize("name", NAMES)
def test_scale_equivariance(name):
    """Data times a: nats shift by -D log a, exactly what the change of unit says."""
    x, a = curve(500), 1000.0
    one, other = build(name, PLANE, x), build(name, PLANE, a * x + 7)
    with torch.no_grad():
        shift = other.log_prob(a * x + 7).nats - one.log_prob(x).nats
    assert torch.allclose(shift, torch.full_like(shift, -2 * math.log(a)), atol=1e-3)


def test_dequantised_bound_sums_to_at_most_one():
    """Over all of a small integer plane with an atom, a missing value and a category."""
    space = Table((Integer("i", 0, 6, nullable=True), Integer("j", 0, 40), Category("k", ("a", "b"))))
    n, g = 3000, generator()
    x = torch.stack(
        [
            torch.randint(0, 7, (n,), generator=g).double(),
            torch.randint(0, 41, (n,), generator=g).double(),
            torch.randint(0, 2, (n,), generator=g).double(),
        ],
        1,
    )
    x[::3, 1] = 40.0  # an atom
    x[::5, 0] = math.nan
    model = build("maf", space, x, steps=100)
    assert not model.preprocess.columns.atoms[1].isnan().all()
    i = torch.tensor([*range(-4, 12), math.nan], dtype=torch.float64)
    rows = torch.cartesian_prod(i, torch.arange(-30, 72, dtype=torch.float64), torch.arange(2, dtype=torch.float64))
    with torch.no_grad():
        lik = model.log_prob(rows, request=Dequantised(draws=16), generator=generator(3))
    assert isinstance(lik, LowerBound)
    assert lik.draws == 16
    total = lik.nats.exp().sum().item()
    assert 0.6 < total < 1 + 1e-3
    assert lik.measure.discrete


def test_the_bound_of_a_missing_value_is_below_the_marginal():
    """A missing entry is filled with noise. Integrating it out instead gives the model's exact marginal."""
    x = randn(4000, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=torch.float64)
    x[torch.rand(4000, generator=generator(1)) < 0.3, 1] = math.nan
    model = build("realnvp", Table((Real("a"), Real("b", nullable=True))), x, steps=100)
    rows = randn(40, 2, seed=4)
    rows[:, 1] = math.nan
    with torch.no_grad():
        lik = model.log_prob(rows, request=Dequantised(draws=64), generator=generator(2))
        parts, spot = model.split(rows), torch.linspace(-8, 8, 401)
        y = torch.stack([parts.y[:, :1].expand(-1, 401), spot.expand(40, -1)], -1).flatten(0, 1)
        h = model.given_codes(parts.codes, None)[torch.arange(40).repeat_interleave(401)]
        joint = model.log_density(y, h).view(40, 401)
        marginal = (joint.logsumexp(1) + math.log(0.04)).double() - model.preprocess.scale[0].log()
        marginal += model.codes.log_prob(parts.codes, None)
    assert isinstance(lik, LowerBound)
    assert (lik.nats < marginal + 4 * lik.mc_se + 1e-3).all()
    truth = -0.5 * rows[:, 0].square() - 0.5 * math.log(2 * math.pi) + math.log(0.3)
    assert (marginal.mean() - truth.mean()).abs() < 0.1
    assert (truth.mean() - lik.nats.mean()).abs() < 0.3


def test_monte_carlo_error_is_calibrated():
    space = Table((Integer("i", 0, 20),))
    x = torch.randint(0, 21, (1000, 1), generator=generator()).double()
    model = build("nsf", space, x, steps=50)
    with torch.no_grad():
        runs = [model.log_prob(x[:200], generator=generator(s)) for s in range(30)]
    spread = torch.stack([r.nats for r in runs]).std(0).square().mean().sqrt()
    said = torch.stack([r.mc_se for r in runs]).square().mean().sqrt()
    assert said / spread == pytest.approx(1, abs=0.15)
    assert runs[0].draws == model.config.draws


@pytest.mark.parametrize("name", NAMES)
def test_images_codes_and_contexts(name):
    """Every kind of space and context goes through: train, score, sample, encode."""
    g = generator()
    image, label = Image(4, 4, 1, 256), Label(("a", "b", "c"))
    pixels = torch.randint(0, 256, (300, 1, 4, 4), generator=g, dtype=torch.uint8)
    c = torch.randint(0, 3, (300,), generator=g)
    model = build(name, image, pixels, c, label, steps=3, logit=0.05)
    given = model.given(c[:20])
    with torch.no_grad():
        lik = given.log_prob(pixels[:20])
        assert isinstance(lik, LowerBound)
        assert lik.nats.shape == (20,)
        assert given.encode(pixels[:20]).mean.shape == (20, 16)
    image.check(given.sample(2))
    table = Table((Category("k", ("x", "y")), Real("r", nullable=True)))
    x = torch.stack([torch.randint(0, 2, (300,), generator=g).double(), randn(300)], 1)
    x[::4, 1] = math.nan
    context = Table((Real("u"), Category("v", ("p", "q"))))
    c = torch.stack([randn(300, seed=3), torch.randint(0, 2, (300,), generator=g).double()], 1)
    model = build(name, table, x, c, context, steps=3)
    drawn = model.given(c).sample(1)
    table.check(drawn)
    assert drawn.shape == (1, 300, 2)


def test_codes_alone_are_learned_exactly():
    """A flow of two dependent categories beside a real column: P(codes) must find the joint table."""
    n, g = 4000, generator()
    a = (torch.rand(n, generator=g) < 0.3).double()
    b = torch.where(torch.rand(n, generator=g) < 0.9, a, 1 - a)
    x = torch.stack([a, b, randn(n)], 1)
    space = Table((Category("a", ("0", "1")), Category("b", ("0", "1")), Real("r")))
    model = build("maf", space, x, steps=200)
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    with torch.no_grad():
        p = model.codes.log_prob(codes, None).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(p, torch.tensor([0.63, 0.07, 0.03, 0.27]), atol=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_gradient(name):
    model = build(name, PLANE, curve(500), steps=20).double()
    x = curve(6, seed=3)
    x[0] *= 30  # where tails bend what is standardised
    score, eps = model.given().score(x), 1e-5
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = eps
        with torch.no_grad():
            slope = (model.log_prob(x + step).nats - model.log_prob(x - step).nats) / (2 * eps)
        assert torch.allclose(score[:, j], slope, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_encode_inverts_sampling(name, options):
    model = build(name, PLANE, curve(500), steps=20, **options).double()
    z = randn(50, 2)
    with torch.no_grad():
        x = model.preprocess.join(torch.zeros(50, 0), model.of_latents(z, None))
        assert torch.allclose(model.given().encode(x).mean, z, atol=1e-5)


def test_refusals():
    flow = family("maf")
    all_category = Table((Category("a", ("0", "1")),))
    with pytest.raises(Unsupported, match="made, independent or gmm"):
        flow(flow.Config(), all_category)
    with pytest.raises(Unsupported, match="classifier"):
        flow(flow.Config(), Label(("a", "b")))
    with pytest.raises(UsageError, match="logit"):
        dataclasses.replace(flow.Config(), logit=0.5)
    exact = build("maf", PLANE, curve(100))
    with pytest.raises(UsageError, match="does not answer Dequantised"):
        exact.log_prob(curve(5), request=Dequantised(draws=4))
    integers = Table((Integer("i", 0, 9),))
    model = build("maf", integers, torch.arange(10, dtype=torch.float64)[:, None])
    with pytest.raises(Unsupported, match="complete real columns"):
        model.given().score(torch.ones(1, 1, dtype=torch.float64))
    with pytest.raises(Unsupported, match="no score of noised data. Ask for score"):
        exact.given().noised_score(torch.ones(1, 1, dtype=torch.float64))
