"""Flows of images: glow, and realnvp by convolutions."""

import dataclasses

import pytest
import torch

from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch
from pofx.core.likelihood import LowerBound
from pofx.core.registry import family
from pofx.spaces import Image, Label, Real, Table
from pofx.transforms.multiscale import ActNorm, ConvCoupling

SPACE, LABEL = Image(8, 8, 1, 16), Label(("bright", "dark"))
NETS = [("glow", {}), ("realnvp", {"net": "conv"})]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramps(n, seed=0):
    """Images that grow brighter from left to right, or darker, and which."""
    g = generator(seed)
    c, slope = torch.randint(0, 2, (n,), generator=g), torch.rand(n, 1, 1, 1, generator=g) + 1
    x = 8 + (1 - 2 * c).view(-1, 1, 1, 1) * slope * (torch.arange(8) - 3.5) / 1.2
    x = x.expand(-1, 1, 8, 8) + torch.randn(n, 1, 8, 8, generator=g)
    return x.round().clamp(0, 15).to(torch.uint8), c


def build(name, given=False, steps=0, space=SPACE, **options):
    cls = family(name)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = cls(cls.Config(layers=6, hidden=16, blocks=1, **options), space, LABEL if given else None)
    x, c = ramps(512)
    model.prepare(x, c if given else None, None, generator())
    learner, g = model.learner(dataclasses.replace(cls.recipe(space), lr=3e-3)), generator(1)
    for i in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=g)
        learner.step(Batch(x[rows], c[rows] if given else None, None, 0, 64, i / steps, i), g)
    return model


def shapes(model):
    return [t.shape for t in model.flow.transforms if isinstance(t, ConvCoupling)]


@pytest.mark.parametrize(("name", "options"), NETS)
def test_scales_halve_sides(name, options):
    """6 layers on 3 scales of 4 x 4 x 4, 2 x 2 x 8 and 1 x 1 x 16, after the first two one coupling of what leaves."""
    model = build(name, **options)
    assert shapes(model) == [*[(4, 4, 4)] * 3, *[(2, 2, 8)] * 3, *[(1, 1, 16)] * 2]
    assert model.flow.leaving == 32 + 16
    assert shapes(build(name, scales=1, **options)) == [(4, 4, 4)] * 6


@pytest.mark.parametrize(("name", "options"), NETS)
def test_training_given_a_label(name, options):
    """The bound rises, a label is worth nats, samples are of it, and rows do not see each other."""
    x, c = ramps(100, seed=5)
    start, model = build(name, True, **options), build(name, True, 60, **options)
    with torch.no_grad():
        before = start.given(c).log_prob(x).nats.mean()
        lik, other = (model.given(k).log_prob(x) for k in (c, 1 - c))
        alone = model.given(c[:1]).log_prob(x[:1])
    assert isinstance(lik, LowerBound)
    assert lik.nats.mean() > before + 2
    assert lik.nats.mean() > other.nats.mean() + 2
    assert torch.allclose(alone.nats, lik.nats[:1], atol=1e-3)
    drawn = model.given(torch.tensor([0, 1])).sample(20, generator=generator(3)).float()
    rise = (drawn[..., 4:] - drawn[..., :4]).mean((0, 2, 3, 4))
    assert rise[0] > 1
    assert rise[1] < -1


@pytest.mark.parametrize(("name", "options"), NETS)
def test_encoding_inverts_sampling(name, options):
    model = build(name, steps=5, **options).double()
    z = torch.randn(10, 64, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(model.latents(model.of_latents(z, None), None)[0], z, atol=1e-6)


def test_norms_start_where_the_data_are():
    model, seen = build("glow"), []
    for t in model.flow.transforms:
        if isinstance(t, ActNorm):
            t.register_forward_hook(lambda m, _, step: seen.append(step.z.reshape(-1, m.channels)))
    x, _ = ramps(512)
    with torch.no_grad():
        model.log_prob(x)
    assert all((z.std(0) - 1).abs().max() < 0.2 for z in seen[:6])


def test_sides_that_cannot_be_halved():
    for name, options in NETS:
        cls = family(name)
        for space, scales in ((Image(28, 28), 3), (Image(7, 8), 2)):
            with pytest.raises(Unsupported, match=f"at most . scales, not {scales}. Leave out scales"):
                cls(cls.Config(scales=scales, **options), space)
        assert [s[2] for s in shapes(cls(cls.Config(layers=1, hidden=8, **options), Image(3, 3, 1, 2)))] == [9]
    with pytest.raises(Unsupported, match="Fit realnvp or nsf"):
        family("glow")(family("glow").Config(), Table((Real("a"),)))
    with pytest.raises(UsageError, match="2 layers make no 3 scales"):
        family("glow").Config(layers=2, scales=3)


def test_realnvp_convolves_large_images():
    cls = family("realnvp")
    assert not cls.convolves(Image(8, 8), cls.Config())
    assert cls.convolves(Image(16, 28), cls.Config())
    assert not cls.convolves(Image(17, 28), cls.Config())
    with pytest.raises(Unsupported, match="Leave net at auto"):
        cls(cls.Config(net="conv"), Table((Real("a"),)))
