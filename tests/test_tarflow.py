"""Causal transformers and convolutions as transforms: Jacobians; inverses one token at a time, and at once."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from pofx.core.errors import Unsupported, UsageError
from pofx.core.registry import family
from pofx.families.tarflow import TarFlow, tokens
from pofx.nn.transformer import Shape
from pofx.spaces import Image, Real, Reals, Table
from pofx.transforms.tokens import CausalAffine, CausalConv

SHAPE = Shape(width=16, layers=2, n_heads=2, positions="learned")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stirred(transform, scale=0.5):
    """Parameters off zero: no layer is the identity."""
    for i, p in enumerate(transform.parameters()):
        p.data = p.data.double() + scale * randn(*p.shape, seed=i) / max(1, p.shape[-1]) ** 0.5
    return transform.double()


def filled(count, size):
    """Tokens of a space whose last one is not full."""
    return tokens(Reals((count * size - 1,)), count * size - 1, size, 1)


LAYERS = {
    "columns": lambda: (CausalAffine(6, tokens(Reals((6,)), 6, 2, 0), SHAPE, context=0), 6, 0),
    "backwards": lambda: (CausalAffine(6, tokens(Reals((6,)), 6, 2, 1), SHAPE, context=3), 6, 3),
    "filled up": lambda: (CausalAffine(7, filled(4, 2), SHAPE, context=0), 7, 0),
    "one token": lambda: (CausalAffine(3, tokens(Reals((3,)), 3, 4, 0), SHAPE, context=2), 3, 2),
    "patches": lambda: (CausalAffine(32, tokens(Image(4, 4, 2, 9), 32, 2, 0), SHAPE, context=0), 32, 0),
    "shifted patches": lambda: (CausalAffine(16, tokens(Image(4, 4, 1, 9), 16, 2, 1), SHAPE, context=2), 16, 2),
    "convolution": lambda: (CausalConv((2, 5, 3)), 30, 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_log_determinant_is_that_of_the_jacobian(name):
    layer, dim, context = LAYERS[name]()
    stirred(layer)
    x, h = randn(3, dim), randn(3, context, seed=1) if context else None
    step = layer(x, h)
    for i in range(3):
        own = None if h is None else h[i : i + 1]
        j = jacobian(lambda v, own=own: layer(v[None], own).z[0], x[i])
        assert torch.linalg.slogdet(j)[1].item() == pytest.approx(step.log_term[i].item(), abs=1e-9)
    assert step.log_term.std() > 0.01 or name == "convolution"


@pytest.mark.parametrize("name", LAYERS)
def test_inverse_and_its_gradient(name):
    layer, dim, context = LAYERS[name]()
    stirred(layer)
    x, h = randn(4, dim), randn(4, context, seed=1) if context else None
    z = layer(x, h).z.detach().requires_grad_()
    back = layer.inverse(z, h)
    assert torch.allclose(back, x, atol=1e-8)
    g = randn(4, dim, seed=2)
    (found,) = torch.autograd.grad(back, z, g)
    for i in range(4):
        own = None if h is None else h[i : i + 1]
        j = jacobian(lambda v, own=own: layer(v[None], own).z[0], x[i])
        assert torch.allclose(found[i], torch.linalg.solve(j.T, g[i]), atol=1e-7)


@pytest.mark.parametrize("n", [1, 9])
def test_a_window_of_any_size_solves_what_one_token_at_a_time_does(n):
    layer = stirred(CausalAffine(48, tokens(Image(8, 6, 1, 9), 48, 2, 1), SHAPE, context=3))
    z, h = randn(n, 48), randn(n, 3, seed=1)
    one = layer.inverse(z, h, window=1)
    assert torch.allclose(layer(one, h).z, z, atol=1e-9)
    for window in (2, 5, 12, 100):
        assert torch.allclose(layer.inverse(z, h, window=window), one, atol=1e-9), window


def test_a_window_solves_maps_whose_first_guesses_are_thrown_far():
    layer = CausalAffine(16, tokens(Reals((16,)), 16, 1, 0), SHAPE, context=0)
    stirred(layer, scale=3.0)
    z = 0.1 * randn(3, 16)
    one, all_at_once = (layer.inverse(z, window=w) for w in (1, 16))
    assert one.isfinite().all()
    assert torch.allclose(all_at_once, one, rtol=1e-6, atol=1e-6)


def test_single_precision_inverts_to_1e_5():
    layer = stirred(CausalAffine(48, tokens(Image(8, 6, 1, 9), 48, 2, 0), SHAPE, context=0)).float()
    x = randn(20, 48).float()
    for window in (1, 12):
        assert (layer.inverse(layer(x).z, window=window) - x).abs().max() < 1e-5


def test_a_token_sees_only_those_before_it():
    layer = stirred(CausalAffine(12, tokens(Reals((12,)), 12, 3, 1), SHAPE, context=0))
    j = jacobian(lambda v: layer(v[None]).z[0], randn(12))
    blocks = torch.ones(3, 3)
    earlier = torch.kron(
        torch.ones(4, 4).tril(-1), blocks
    ).bool()  # than those it sees, since this layer goes backwards
    own = torch.kron(torch.eye(4), blocks).bool()
    assert not j[earlier].any()
    assert j[~earlier & ~own].all()
    assert torch.equal(j[own] != 0, torch.eye(12).bool()[own])  # of its own entries, each sees itself alone


@pytest.mark.parametrize("layer", [0, 1])
def test_tokens_hold_every_entry_once(layer):
    for space, dim, patch in ((Image(6, 4, 3, 9), 72, 2), (Image(8, 8, 1, 9), 64, 0), (Reals((65,)), 65, 0)):
        flat = tokens(space, dim, patch, layer).flatten()
        assert flat[flat < dim].sort().values.tolist() == list(range(dim))
        assert len(flat) - dim < tokens(space, dim, patch, layer).shape[1]


def test_a_convolution_starts_as_the_best_linear_prediction():
    """Data of a causal autoregression: what is left of each pixel is white, with the variance of its innovation."""
    e = randn(400, 1, 12, 12)
    x = torch.zeros_like(e)
    for i in range(12):
        for j in range(12):
            up, left = (x[:, :, i - 1, j] if i else 0), (x[:, :, i, j - 1] if j else 0)
            x[:, :, i, j] = 0.5 * up + 0.4 * left + 0.3 * e[:, :, i, j]
    conv = CausalConv((1, 12, 12)).double()
    conv.prepare(x.flatten(1))
    step = conv(x.flatten(1))
    inside = step.z.view(400, 12, 12)[:, 3:, 3:-3]
    assert (inside - e[:, 0, 3:, 3:-3]).abs().mean() < 0.05
    assert step.log_term[0].item() == pytest.approx(-144 * math.log(0.3), abs=3)


def test_a_plane_integrates_to_one():
    space = Table((Real("a"), Real("b")))
    model = TarFlow(TarFlow.tiny(space), space)
    model.prepare(randn(500, 2), None, None, torch.Generator())
    stirred(model, scale=0.05)
    side = torch.linspace(-9, 9, 121, dtype=torch.float64)
    with torch.no_grad():
        total = model.log_prob(torch.cartesian_prod(side, side)).nats.exp().sum() * 0.15**2
    assert total.item() == pytest.approx(1, abs=1e-3)


def test_refusals():
    cls, image = family("tarflow"), Image(6, 4, 1, 9)
    with pytest.raises(Unsupported, match="6×4 pixels are not made of patches of 3. Choose a divisor"):
        cls(cls.Config(patch=3), image)
    with pytest.raises(UsageError, match="128 is not shared evenly by 5 heads"):
        cls.Config(n_heads=5)
    with pytest.raises(Unsupported, match="a token holds 3 of 2 numbers"):
        cls(cls.Config(patch=3), Table((Real("a"), Real("b"))))
