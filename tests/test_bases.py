"""Bases of flows: densities that integrate to one, draws that have them, tails, modes, models as bases."""

import dataclasses
import math

import pytest
import torch

from pofx.core.errors import UsageError
from pofx.core.learner import Batch
from pofx.core.registry import family
from pofx.families.flow import Maf, RealNvp
from pofx.families.nsf import Nsf
from pofx.spaces import Image, Real, Reals, Table
from pofx.testing.conformance import check_family
from pofx.transforms.bases import MixtureBase, NormalBase, OfModel, StudentBase

LINE = torch.cat(
    [-(torch.logspace(-6, 10, 40001, dtype=torch.float64).flip(0)), torch.logspace(-6, 10, 40001).double()]
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def stirred(base, seed=0):
    for i, p in enumerate(base.parameters()):
        p.data += 0.4 * torch.randn(p.shape, generator=generator(seed + i))
    return base.double()


def a_model(dim=1, scale=3.0, stir=0.1):
    """A flow of reals, far from the identity."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = Maf(Maf.tiny(Reals((dim,))), Reals((dim,)))
    model.prepare(scale * torch.randn(200, dim, generator=generator()).double() + 1, None, None, generator())
    for i, p in enumerate(model.flow.parameters()):
        p.data += stir * torch.randn(p.shape, generator=generator(i))
    return model


BASES = {
    "normal": lambda d: NormalBase(d).double(),
    "student": lambda d: stirred(StudentBase(d)),
    "mixture": lambda d: stirred(MixtureBase(d, 3)),
    "model": lambda d: OfModel(a_model(d).double(), d),
}


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_a_base_integrates_to_one(make):
    """Over a line that goes out to 10^10, its points ever farther apart: power laws end late."""
    with torch.no_grad():
        p = make(1).log_prob(LINE[:, None], None).exp()
    assert ((p[1:] + p[:-1]) / 2 * LINE.diff()).sum().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_draws_have_the_density(make):
    """Each entry's distribution function at its draws is uniform (Kolmogorov and Smirnov)."""
    base = make(1)
    with torch.no_grad():
        z = base.sample(4000, None, generator(1)).double()[:, 0].sort().values
        p = base.log_prob(LINE[:, None], None).exp()
    distribution = torch.cat([p.new_zeros(1), ((p[1:] + p[:-1]) / 2 * LINE.diff()).cumsum(0)])
    at = distribution[torch.searchsorted(LINE, z).clamp(max=len(LINE) - 1)]
    assert (at - (torch.arange(4000) + 0.5) / 4000).abs().max() < 1.95 / 4000**0.5


def test_student_is_the_distribution_of_that_name():
    base = stirred(StudentBase(3))
    z = 5 * torch.randn(50, 3, generator=generator(), dtype=torch.float64)
    want = torch.distributions.StudentT(base.freedom).log_prob(z).sum(1)
    torch.testing.assert_close(base.log_prob(z), want)
    assert StudentBase(2).log_prob(torch.full((1, 2), 1e30)).isfinite().all()


@pytest.mark.parametrize(("cls", "options"), [(Maf, {"base": "student"}), (Nsf, {}), (RealNvp, {"scales": 2})])
def test_samples_have_gradients(cls, options):
    """d sample / d parameters, those of the base included, against finite differences with the same noise."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = cls(dataclasses.replace(cls.tiny(Reals((3,))), **options), Reals((3,))).double()
    for i, p in enumerate(model.parameters()):
        p.data += 0.1 * torch.randn(p.shape, generator=generator(i), dtype=torch.float64)

    def value():
        return model.draw(20, None, None, generator(3)).sin().sum()

    parameters = list(model.parameters())
    got = torch.autograd.grad(value(), parameters, allow_unused=True)
    ways = [torch.randn(p.shape, generator=generator(50 + i), dtype=torch.float64) for i, p in enumerate(parameters)]
    slope = sum((g * w).sum() for g, w in zip(got, ways, strict=True) if g is not None)
    ends = []
    with torch.no_grad():
        for eps in (1e-6, -1e-6):
            for p, w in zip(parameters, ways, strict=True):
                p += eps * w
            ends.append(value())
            for p, w in zip(parameters, ways, strict=True):
                p -= eps * w
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, atol=1e-4, rtol=1e-4)


def fitted(x, steps=200, model=None, **options):
    space = Table((Real("a"), Real("b")))
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        config = dataclasses.replace(RealNvp.tiny(space), layers=2, **options)
        flow = RealNvp(config, space, base=model)
    flow.prepare(x, None, None, generator())
    learner, g = flow.learner(RealNvp.recipe(space)), generator(1)
    for i in range(steps):
        learner.step(Batch(x[torch.randint(0, len(x), (256,), generator=g)], None, None, 0, 256, i / steps, i), g)
    return flow


def test_a_student_base_fits_heavy_tails_better():
    """Two dependent entries with tails as of 2 degrees of freedom."""
    g = generator(4)
    uniform, angle = torch.rand(2, 8000, 2, generator=g, dtype=torch.float64)
    t = (2 * (uniform**-1 - 1)).sqrt() * (2 * math.pi * angle).cos()
    x = t @ torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
    normal, student = (
        fitted(x[:3000], steps=80, base=base).log_prob(x[3000:]).nats.detach() for base in ("normal", "student")
    )
    gain = student - normal
    assert gain.mean() > 0.05
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5
    truth = torch.distributions.StudentT(torch.tensor(2.0, dtype=torch.float64)).log_prob(t[3000:]).sum(1)
    assert student.mean() < truth.mean() + 4 * (student.detach() - truth).std() / len(truth) ** 0.5


def test_a_mixture_base_fits_far_modes_better():
    g = generator(4)
    x = 0.1 * torch.randn(6000, 2, generator=g, dtype=torch.float64)
    x += 2 * torch.randint(0, 3, (6000, 2), generator=g)
    normal, mixture = (
        fitted(x[:3000], base=base, components=9).log_prob(x[3000:]).nats.mean() for base in ("normal", "mixture")
    )
    assert mixture > normal + 0.1


def test_a_model_is_a_base_and_learns_with_the_flow():
    x = torch.randn(1000, 2, generator=generator(), dtype=torch.float64)
    base = a_model(2, scale=0.7, stir=0.03)  # of a wider one the flow's tails would make power laws
    before = [p.clone() for p in base.parameters()]
    flow = fitted(x, steps=3, model=base)
    assert any(not torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))
    side = torch.linspace(-12, 12, 241, dtype=torch.float64)
    with torch.no_grad():
        total = flow.log_prob(torch.cartesian_prod(side, side)).nats.exp().sum() * 0.1**2
    assert total.item() == pytest.approx(1, abs=5e-3)
    assert flow.sample(5, generator=generator()).shape == (5, 2)


def test_what_is_no_base():
    with pytest.raises(UsageError, match=r"no density in 3 dimensions. Give a p\(x\) over Reals"):
        OfModel(a_model(2), 3)
    diffusion = family("ddpm")
    model = diffusion(diffusion.tiny(Reals((2,))), Reals((2,)))
    with pytest.raises(UsageError, match="not exact"):
        OfModel(model, 2).log_prob(torch.zeros(1, 2))
    with pytest.raises(UsageError, match="2 layers make no 3 scales"):
        dataclasses.replace(RealNvp.tiny(Image(2, 2)), scales=3)


class StudentMaf(Maf):
    name = "maf-student"

    @classmethod
    def tiny(cls, space):
        return dataclasses.replace(super().tiny(space), base="student")


class MixtureRealNvp(RealNvp):
    name = "realnvp-mixture"

    @classmethod
    def tiny(cls, space):
        return dataclasses.replace(super().tiny(space), base="mixture", components=3)


class MultiScaleRealNvp(RealNvp):
    name = "realnvp-scales"

    @classmethod
    def tiny(cls, space):
        return dataclasses.replace(super().tiny(space), layers=4, scales=2)

    @classmethod
    def variants(cls, space):
        return {}  # those of realnvp are seen with it


@pytest.mark.parametrize(
    ("cls", "case"),
    [
        (StudentMaf, "gaussian"),
        (StudentMaf, "blobs by label"),
        (MixtureRealNvp, "two moons"),
        (MultiScaleRealNvp, "binary image"),
    ],
)
def test_bases_and_scales_pass_the_suite(cls, case):
    check_family(cls, [case])
