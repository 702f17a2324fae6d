"""Noise within the cells of grids: its laws, and the bounds that they make."""

import dataclasses
import math

import pytest
import torch

from pofx.codecs.real import preprocess
from pofx.core.errors import Unsupported
from pofx.core.learner import Batch
from pofx.core.likelihood import LowerBound
from pofx.core.noise import RowNoise
from pofx.core.registry import family
from pofx.core.requests import Dequantised
from pofx.spaces import Image, Integer, Real, Table
from pofx.transforms.dequantise import Dequantise, TruncatedNormal, Variational

LAWS = ["uniform", "truncated-normal", "variational"]
DICE = Table((Integer("i", 0, 5), Integer("j", 0, 5)))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Given:
    """Noise that is known: the same numbers at every call."""

    def __init__(self, numbers):
        self.numbers = numbers

    def randn(self, *shape):
        return self.numbers

    rand = randn


def stirred(dim, seed=0):
    law = Variational(dim).double()
    for i, p in enumerate(law.parameters()):
        p.data += 0.1 * torch.randn(p.shape, generator=generator(seed + i), dtype=torch.float64)
    return law


def test_the_learned_law_is_the_density_of_its_draws():
    """log q(v | x) = log N(eps) - log |dv / deps|, by autograd; it starts as the uniform law."""
    law, x = stirred(3), torch.randn(4, 3, generator=generator(1), dtype=torch.float64)
    eps = torch.randn(4, 3, generator=generator(2), dtype=torch.float64)
    there = torch.ones(4, 3, dtype=torch.bool)
    _, log_q = law(x, there, Given(eps))
    normal = torch.distributions.Normal(0.0, 1.0)
    for i in range(4):
        one = slice(i, i + 1)
        slopes = torch.autograd.functional.jacobian(lambda e, at=one: law(x[at], there[at], Given(e))[0], eps[one])
        want = normal.log_prob(eps[i]).sum() - torch.linalg.slogdet(slopes[0, :, 0]).logabsdet
        assert torch.allclose(log_q[i], want, atol=1e-9)
    fresh, log_q = Variational(3).double()(x, there, Given(eps))
    assert torch.allclose(fresh, normal.cdf(eps) - 0.5)
    assert torch.allclose(log_q, torch.zeros(4, dtype=torch.float64), atol=1e-9)


def test_what_is_absent_has_no_part_in_the_learned_law():
    law, x = stirred(3), torch.randn(4, 3, generator=generator(1), dtype=torch.float64)
    x[:, 1] = math.nan
    eps = torch.randn(4, 3, generator=generator(2), dtype=torch.float64)
    there, other = ~x.isnan(), eps.clone()
    other[:, 1] += 1
    (v, log_q), (again, same) = law(x, there, Given(eps)), law(x, there, Given(other))
    assert torch.equal(v[:, ::2], again[:, ::2])
    assert torch.equal(log_q, same)
    slopes = torch.autograd.functional.jacobian(lambda e: law(x[:1], there[:1], Given(e))[0], eps[:1])[0, :, 0]
    kept = slopes[::2][:, ::2]
    want = torch.distributions.Normal(0.0, 1.0).log_prob(eps[0, ::2]).sum() - torch.linalg.slogdet(kept).logabsdet
    assert torch.allclose(log_q[0], want, atol=1e-9)


def test_the_truncated_normal_law():
    stats = pytest.importorskip("scipy.stats")
    u = torch.rand(500, 2, generator=generator(), dtype=torch.float64)
    there = torch.tensor([True, False]).expand(500, 2)
    v, log_q = TruncatedNormal()(torch.zeros(500, 2, dtype=torch.float64), there, Given(u))
    law = stats.truncnorm(-3, 3, scale=1 / 6)
    assert torch.allclose(v, torch.from_numpy(law.ppf(u.numpy())), atol=1e-9)
    assert torch.allclose(log_q, torch.from_numpy(law.logpdf(v[:, 0].numpy())), atol=1e-9)


def test_a_grid_pays_its_step_and_its_noise():
    step, origin = torch.tensor([0.5, 0.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    x = torch.tensor([[1.5, 0.3]], dtype=torch.float64)
    for law in LAWS:
        cells = Dequantise(step, origin, law=law).double()
        done = cells(x, noise=RowNoise.by_place(1, generator()))
        assert 0 < (done.z[0, 0] - 1.5).abs() <= 0.25
        assert done.z[0, 1] == 0.3
        assert torch.equal(cells.inverse(done.z), x)
        assert torch.equal(cells(x).z, x)
        assert done.kind is LowerBound
        if law == "uniform":
            assert done.log_term.item() == pytest.approx(math.log(0.5))


def dice(n, seed=0):
    """Two dice of which the second shows what the first does, or one more, as often."""
    g = generator(seed)
    i = torch.randint(0, 6, (n,), generator=g)
    return torch.stack([i, (i + torch.randint(0, 2, (n,), generator=g)) % 6], 1).double()


def build(name, space, x, steps=0, **options):
    cls = family(name)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = cls(dataclasses.replace(cls.tiny(space), **options), space)
    model.prepare(x, None, None, generator())
    learner, g = model.learner(dataclasses.replace(cls.recipe(space), lr=3e-3)), generator(1)
    for i in range(steps):
        rows = torch.randint(0, len(x), (128,), generator=g)
        learner.step(Batch(x[rows], None, None, 0, 128, i / steps, i), g)
    return model


def test_a_learned_law_makes_a_tighter_bound():
    """Of the same flow, trained as long; both are below the probability of a cell, which sums to one at most."""
    x, cells = dice(4000), torch.cartesian_prod(*2 * [torch.arange(-6, 12, dtype=torch.float64)])
    nats = {}
    for law in ("uniform", "variational"):
        model = build("maf", DICE, x, 150, dequantise=law)
        with torch.no_grad():
            lik = model.log_prob(dice(500, 1), generator=generator(2))
            every = model.log_prob(cells, request=Dequantised(draws=32), generator=generator(3))
        assert isinstance(lik, LowerBound)
        assert every.nats.exp().sum() < 1 + 1e-2
        nats[law] = lik.nats.mean().item()
    assert nats["uniform"] + 0.05 < nats["variational"] < -math.log(12) + 0.05


@pytest.mark.parametrize("law", LAWS[1:])
def test_images_and_grids_train_and_sample(law):
    image = Image(2, 3, 1, 4)
    pixels = torch.randint(0, 4, (200, 1, 2, 3), generator=generator(), dtype=torch.uint8)
    table = Table((Real("r", nullable=True), Real("s", step=0.1), Integer("i", 0, 50, nullable=True)))
    x = torch.randn(200, 3, generator=generator(), dtype=torch.float64)
    x[:, 1], x[:, 2] = 0.1 * (10 * x[:, 1]).round(), (9 * x[:, 2]).round().abs()
    x[::4, 0], x[::5, 2] = math.nan, math.nan
    for space, rows, options in ((image, pixels, {"logit": 0.05}), (table, x, {})):
        model = build("realnvp", space, rows, 3, dequantise=law, **options)
        with torch.no_grad():
            assert model.log_prob(rows[:20]).nats.isfinite().all()
        space.check(model.sample(5))
        if law == "variational":
            assert model.preprocess.learns
            assert all(p.grad is not None for p in model.preprocess.parameters())


def test_paths_take_a_law_that_is_not_learned():
    x = dice(300)
    model = build("vdm", DICE, x, 2, dequantise="truncated-normal")
    with torch.no_grad():
        lik = model.log_prob(x[:20])
    assert isinstance(lik, LowerBound)
    assert lik.nats.isfinite().all()
    with pytest.raises(Unsupported, match="Leave dequantise at uniform"):
        build("vdm", DICE, x, dequantise="variational")
    reals = Table((Real("a"), Real("b")))
    assert "dequantise" in list(family("maf").idle(reals, None, family("maf").Config()))
    assert not preprocess(DICE).learns
