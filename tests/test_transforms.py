"""Transforms: inverses, Jacobians, oracles; preprocessing: round trips, bounds, Jacobians."""

import importlib
import math
import pkgutil
from dataclasses import replace

import pytest
import torch

import pofx.transforms
from pofx.codecs.columns import ATOMS
from pofx.codecs.real import preprocess
from pofx.core.likelihood import Estimate, Exact, LowerBound
from pofx.core.noise import RowNoise
from pofx.nn.mlp import Mlp
from pofx.spaces import Category, Image, Integer, Real, Table
from pofx.transforms.base import Affine, Chain, Delta, Inverse, LuLinear, Split, Step, Transform
from pofx.transforms.circular import CircularSpline, WithAngles
from pofx.transforms.continuous import Continuous
from pofx.transforms.coupling import Coupling
from pofx.transforms.dequantise import Dequantise
from pofx.transforms.entrywise import Fill, Logit, Standardise, Tails
from pofx.transforms.masked import MaskedAutoregressive
from pofx.transforms.multiscale import ActNorm, Conv1x1, ConvCoupling, Reorder, checkerboard, halvings, multiscale
from pofx.transforms.spline import BOUND, Spline, knots, shapes, spline, spline_inverse
from pofx.transforms.tokens import CausalAffine, CausalConv

D, WIDTH = 5, 3
SIZE = {"context": WIDTH, "hidden": 16, "blocks": 2}
MASK = torch.tensor([True, False, True, False, True])
AFFINE = Affine()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def close(a, b, atol=1e-9, rtol=1e-7, equal_nan=False):
    """As torch.testing.assert_close, which takes seconds to import."""
    assert a.shape == b.shape
    assert torch.allclose(a, b.to(a.dtype), atol=atol, rtol=rtol, equal_nan=equal_nan), (a - b).abs().max()


def scramble(module, seed=1, scale=0.3):
    """Random parameters: fresh nets are the identity, which would test nothing.

    Moderate ones: a spline between steep and flat knots can be flatter than 1e-8, and no inverse is exact there.
    """
    module.double()
    for i, p in enumerate(module.parameters()):
        p.data.copy_(scale * randn(*p.shape, seed=seed + i))
    return module


def jacobian(f, x):
    """dz/dx [d, d] of one row x [1, d]."""
    x = x.clone().requires_grad_()
    z = f(x)
    return torch.stack([torch.autograd.grad(z[0, i], x, retain_graph=True)[0][0] for i in range(z.shape[1])])


def latents(step):
    """All of them [N, d]: what left early, and the rest."""
    return step.z if step.out is None else torch.cat([step.out, step.z], 1)


def fixed(make, seed=0):
    """What draws permutations or rotations, from a seed of its own."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        return make()


def lu(dim=D):
    return fixed(lambda: LuLinear(dim))


def of_images(shape, scales, scalar=AFFINE):
    """A chain with every layer of images."""

    def couple(shape, mask):
        return ConvCoupling(shape, mask, scalar, **SIZE)

    def steps(shape, pixels, count):
        yield from (ActNorm(shape), Conv1x1(shape))
        for k in range(count):
            yield couple(shape, checkerboard(*pixels, shape[2] // math.prod(pixels)) == (k % 2 == 0))

    return fixed(lambda: Chain(multiscale(shape, 2 * scales, scales, steps, couple)))


PIXELS = (2, 2, 3)
TRANSFORMS = {
    "affine coupling": lambda: Coupling(MASK, Affine(), **SIZE),
    "spline coupling": lambda: Coupling(MASK, Spline(6), **SIZE),
    "coupling of all": lambda: Coupling(torch.ones(D, dtype=torch.bool), Affine(), **SIZE),
    "affine autoregressive": lambda: MaskedAutoregressive(D, Affine(), **SIZE),
    "reversed": lambda: MaskedAutoregressive(D, Affine(), reverse=True, **SIZE),
    "spline autoregressive": lambda: MaskedAutoregressive(D, Spline(6), **SIZE),
    "inverse autoregressive": lambda: Inverse(MaskedAutoregressive(D, Affine(), **SIZE)),
    "lu": lu,
    "standardise": lambda: Standardise(D, 0.7, 2.5),
    "tails": lambda: Tails(D),
    "split": lambda: Split(MASK),
    "multi-scale": lambda: Chain([lu(), Split(MASK), Coupling(MASK[:3], Spline(4), **SIZE), Split(~MASK[:3])]),
    "chain": lambda: Chain([lu(), MaskedAutoregressive(D, Spline(4), **SIZE), Coupling(MASK, Affine(), **SIZE)]),
}
OF_IMAGES = {
    "reorder": (12, lambda: Reorder((2, 2, 3), (2, 0, 1))),
    "actnorm": (12, lambda: ActNorm(PIXELS)),
    "1 x 1 convolution": (12, lambda: fixed(lambda: Conv1x1(PIXELS))),
    "coupling of channels": (12, lambda: ConvCoupling(PIXELS, torch.arange(3) == 1, Affine(), kernel=3, **SIZE)),
    "splines of channels": (12, lambda: ConvCoupling(PIXELS, torch.arange(3) != 1, Spline(4), **SIZE)),
    "coupling of all channels": (12, lambda: ConvCoupling(PIXELS, torch.arange(3) < 3, Affine(), **SIZE)),
    "two scales": (16, lambda: of_images((4, 4, 1), 2)),
    "odd sides": (9, lambda: of_images((3, 3, 1), 1)),
    "a row of pixels": (8, lambda: of_images((1, 4, 2), 1)),
}
CIRCLE = {"context": WIDTH, "hidden": 16, "blocks": 2, "angles": True}


def with_angles():
    turned = [Coupling(torch.arange(2) == k, CircularSpline(5), **CIRCLE) for k in (0, 1)]
    told = {**SIZE, "context": WIDTH + 4}
    return WithAngles(D, [3, 1], turned, [MaskedAutoregressive(3, Spline(4), **told)])


TRANSFORMS["angles"] = with_angles
ALL = {name: (D, make) for name, make in TRANSFORMS.items()} | OF_IMAGES


@pytest.fixture(params=ALL, ids=ALL)
def transform(request):
    dim, make = ALL[request.param]
    made = scramble(make(), scale=0.3 if request.param in TRANSFORMS else 0.15)  # convolutions sum over more
    made.dim, made.spread = dim, 1.0 if request.param == "angles" else 2.0  # beyond 5 an angle is another number
    return made


def test_the_table_holds_every_transform():
    """Those of ``entrywise`` that it lacks, which take no numbers of any size or none without noise, are below; those
    of tokens and of a differential equation have files of their own, test_tarflow.py and test_ode.py."""
    known = {type(m) for _, make in ALL.values() for m in make().modules()} | {Dequantise, Fill, Logit, Solver}
    known |= {CausalAffine, CausalConv, Continuous}
    for module in pkgutil.iter_modules(pofx.transforms.__path__):
        importlib.import_module(f"pofx.transforms.{module.name}")
    assert [cls for cls in Transform.__subclasses__() if cls not in known] == []


def test_inverse_and_log_determinant(transform):
    x, h = transform.spread * randn(40, transform.dim), randn(40, WIDTH, seed=7)
    step = transform(x, h)
    assert transform.kind is step.kind is Exact
    close(transform.inverse(step.z, h, step.out), x, atol=1e-7, rtol=1e-7)
    for i in range(5):
        _, want = torch.linalg.slogdet(jacobian(lambda v, i=i: latents(transform(v, h[i : i + 1])), x[i : i + 1]))
        close(step.log_term[i], want, atol=1e-9, rtol=1e-9)


def turned_over(step):
    return replace(step, log_term=-step.log_term)


def of_one_pixel(step):
    return replace(step, log_term=step.log_term / 4)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("actnorm", turned_over), ("actnorm", of_one_pixel), ("1 x 1 convolution", of_one_pixel),
     ("coupling of channels", turned_over), ("inverse autoregressive", turned_over)],
)  # fmt: skip
def test_a_wrong_log_determinant_shows(name, wrong):
    """Not in a fresh layer, whose log-determinant is zero whatever its sign and number of pixels."""
    dim, make = ALL[name]
    for layer, passes in ((make().double(), True), (scramble(make(), scale=0.15), False)):
        layer.dim, layer.spread, forward = dim, 2.0, layer.forward
        layer.forward = lambda *given, forward=forward: wrong(forward(*given))
        if passes:
            test_inverse_and_log_determinant(layer)
        else:
            with pytest.raises(AssertionError):
                test_inverse_and_log_determinant(layer)


def test_inverse_in_single_precision(transform):
    for p in transform.parameters():
        p.data *= 0.3  # nothing as flat as could not be told apart in seven digits
    x, h = randn(40, transform.dim, dtype=torch.float32), randn(40, WIDTH, seed=7, dtype=torch.float32)
    step = transform.float()(x, h)
    close(transform.inverse(step.z, h, step.out), x, atol=1e-5, rtol=1e-5)


def test_inverse_is_differentiable(transform):
    """The gradient of x(z, h, parameters) is that of finite differences in a random direction of all of them."""
    for p in transform.parameters():
        p.data *= 0.5  # where a spline is nearly flat its inverse bends too much for finite differences
    step = transform(transform.spread * randn(6, transform.dim), h := randn(6, WIDTH, seed=7))
    inputs = [step.z.detach(), h, *([] if step.out is None else [step.out.detach()]), *transform.parameters()]
    weights, ways = randn(6, transform.dim, seed=3), [randn(*p.shape, seed=20 + i) for i, p in enumerate(inputs)]

    def value():
        return (weights * transform.inverse(*inputs[:2], inputs[2] if step.out is not None else None)).sum()

    for p in inputs:
        p.requires_grad_()
    grads = torch.autograd.grad(value(), inputs, allow_unused=True)
    got = sum((g * w).sum() for g, w in zip(grads, ways, strict=True) if g is not None)
    ends = []
    for eps in (1e-6, -1e-6):
        with torch.no_grad():
            for p, w in zip(inputs, ways, strict=True):
                p += eps * w
            ends.append(value())
            for p, w in zip(inputs, ways, strict=True):
                p -= eps * w
    close(got, (ends[0] - ends[1]) / 2e-6, atol=1e-5, rtol=1e-5)


def test_rows_do_not_see_each_other(transform):
    x, h = randn(6, transform.dim), randn(6, WIDTH, seed=7)
    step, alone = transform(x, h), transform(x[2:3], h[2:3])
    close(latents(step)[2:3], latents(alone))
    close(step.log_term[2:3], alone.log_term)


@pytest.mark.parametrize("reverse", [False, True])
def test_autoregressive_is_causal_and_its_cached_inverse_equals_the_naive_one(reverse):
    layer = scramble(MaskedAutoregressive(D, Spline(5), reverse=reverse, **SIZE))
    h, z = randn(30, WIDTH, seed=3), randn(30, D)
    order = layer.net.orders[0]
    x = torch.zeros_like(z)
    for i in order:  # the naive way: a whole pass per entry
        parameters = layer.net(x, h).view(30, D, -1)[:, i].T
        x[:, i] = spline_inverse(z[:, i], parameters)
    close(layer.inverse(z, h), x)
    in_order = jacobian(lambda v: layer(v, h[:1]).z, x[:1])[order][:, order]
    assert torch.equal(in_order, in_order.tril())
    assert (in_order.diagonal() > 0).all()


def test_fresh_layers_are_the_identity():
    x = randn(8, D, dtype=torch.float32)
    for make in (TRANSFORMS["affine coupling"], TRANSFORMS["spline autoregressive"]):
        step = make()(x, torch.zeros(8, WIDTH))
        close(step.z, x, atol=1e-5, rtol=1e-5)
        close(step.log_term, torch.zeros(8), atol=1e-5, rtol=0)


def test_whitening_start():
    x = randn(4000, D) @ randn(D, D, seed=2) + 3
    layer = lu().double()
    layer.whiten(x)
    z = layer(x).z
    close(z.mean(0), torch.zeros(D, dtype=torch.float64), atol=1e-6, rtol=0)
    close(z.T.cov(correction=0), torch.eye(D, dtype=torch.float64), atol=1e-2, rtol=0)
    singular = torch.stack([x[:, 0], x[:, 0], x[:, 1], 0 * x[:, 2], x[:, 3]], 1)
    layer.whiten(singular)
    assert all(p.isfinite().all() for p in layer.parameters())


PLANE = {
    "affine coupling": lambda size: Chain([Coupling(torch.arange(2) == k, Affine(), **size) for k in (0, 1)]),
    "spline coupling": lambda size: Chain([Coupling(torch.arange(2) == k, Spline(5), **size) for k in (0, 1)]),
    "autoregressive": lambda size: Chain([lu(2), MaskedAutoregressive(2, Spline(5), **size)]),
    "inverse autoregressive": lambda size: Chain([lu(2), Inverse(MaskedAutoregressive(2, Affine(), **size))]),
    "images": lambda size: of_images((1, 2, 1), 1),
    "splines of images": lambda size: of_images((1, 2, 1), 1, Spline(5)),
    "leaving early": lambda size: Chain([lu(2), Coupling(torch.arange(2) == 0, Affine(), **size), Split(MASK[:2])]),
    "tails": lambda size: Chain([lu(2), Tails(2)]),
}


@pytest.mark.parametrize("make", PLANE.values(), ids=PLANE)
def test_a_density_in_the_plane_integrates_to_one(make):
    """Given a context: by the midpoint rule over where a normal variable's image lies."""
    chain, h = scramble(make(SIZE), scale=0.15), randn(1, WIDTH, seed=9)
    side = torch.linspace(-12, 12, 241, dtype=torch.float64)
    x, cell = torch.cartesian_prod(side, side), (side[1] - side[0]).item() ** 2
    with torch.no_grad():
        step = chain(x, h.expand(len(x), -1))
    nats = step.log_term - 0.5 * latents(step).square().sum(1) - math.log(2 * math.pi)
    assert nats.exp().sum().item() * cell == pytest.approx(1, abs=1e-3)


# ------------------------------------------------------------------------------------------- layers of images


def test_norms_start_from_the_data():
    """Each where it stands in the chain, so that what leaves it has mean 0 and variance 1 in each channel."""
    chain = of_images((4, 4, 2), 2).double()
    x, h, seen = 3 * randn(300, 32) @ randn(32, 32, seed=5) + 7, randn(300, WIDTH, seed=1), []
    for m in chain.modules():
        if isinstance(m, ActNorm):
            m.register_forward_hook(lambda module, _, step: seen.append(step.z.reshape(-1, module.channels)))
    chain.prepare(x, h)
    seen.clear()
    chain(x, h)
    assert [z.shape[1] for z in seen] == [8, 16]
    for z in seen:
        close(z.mean(0), torch.zeros(z.shape[1]), atol=1e-9)
        close(z.std(0, correction=0), torch.ones(z.shape[1]), atol=1e-9)


def test_a_1x1_convolution_is_a_convolution_and_starts_as_a_rotation():
    layer = fixed(lambda: Conv1x1((3, 4, 5))).double()
    w = layer.linear.matrix()
    close(w @ w.T, torch.eye(5), atol=1e-6)
    scramble(layer)
    x, w = randn(6, 3, 4, 5), layer.linear.matrix()
    want = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), w[:, :, None, None], layer.linear.bias)
    step = layer(x.flatten(1))
    close(step.z, want.permute(0, 2, 3, 1).flatten(1))
    close(step.log_term, 12 * torch.linalg.slogdet(w).logabsdet.expand(6))


def test_what_leaves_is_normal_given_what_stays():
    """The coupling before ``Split`` is the density N(mu, sigma^2) of what leaves, mu and sigma of the rest."""
    shape, leaves = (2, 2, 4), torch.arange(4) > 1
    layer = scramble(ConvCoupling(shape, leaves, Affine(), **SIZE))
    x, h = randn(5, 16), randn(5, WIDTH, seed=2)
    step = Chain([layer, Split((~leaves).repeat(4))])(x, h)
    raw, shift = layer.parameters_given(x.view(5, *shape), h)
    s = 4 * (raw / 4).tanh()
    law = torch.distributions.Normal(-shift * (-s).exp(), (-s).exp())
    want = law.log_prob(x.view(5, *shape)[..., 2:]).flatten(1).sum(1)
    standard = torch.distributions.Normal(0.0, 1.0)
    close(step.log_term + standard.log_prob(step.out).sum(1), want)


def test_the_board_of_folded_pixels_is_that_of_the_image():
    i, j = torch.arange(4)[:, None], torch.arange(6)
    board = ((i + j) % 2 == 0).expand(3, 4, 6)
    squeeze = Chain(multiscale((4, 6, 3), 0, 1, lambda *_: [], lambda *_: None))
    folded = squeeze(board.reshape(1, -1).double()).z.reshape(-1, 12).bool()
    assert torch.equal(folded, checkerboard(2, 2, 3).expand(6, 12))


def test_sides_are_halved_as_often_as_both_are_even():
    assert [halvings(*sides) for sides in ((28, 28), (32, 8), (3, 4), (1, 5))] == [2, 3, 0, 0]


# ------------------------------------------------------------------------------------------- chains and kinds


class Solver(Transform):
    """Its log term is estimated, with an error."""

    kind = Estimate

    def forward(self, x, h=None, noise=None):
        return Step(x, x.sum(1), kind=self.kind, se=x.new_full((len(x),), 3.0))

    def inverse(self, z, h=None, out=None):
        return z


def test_a_chain_joins_kinds_and_sums_terms_and_errors():
    step, origin = torch.tensor([0.5, 0.0, 0.0]).double(), torch.zeros(3).double()
    x = torch.tensor([[1.5, 0.3, math.nan]], dtype=torch.float64)
    bound = Chain([Standardise(3, 0.0, 2.0, gaps=True), Dequantise(step / 2, origin, gaps=True), Fill()])
    assert bound.kind is bound(x).kind is LowerBound
    assert bound(x).se is None
    noise = RowNoise.by_place(1, generator())
    done = bound(x, noise=noise)
    assert (done.z[0, 0] - 0.75).abs() <= 0.125
    assert done.z[0, 1] == 0.15
    # the cell is 1/4, two entries are halved, and what is absent adds minus the log-density of its noise
    filled = torch.distributions.Normal(0, 1).log_prob(done.z[0, 2])
    close(done.log_term, math.log(0.25) - 2 * math.log(2) - filled[None])
    assert bound.inverse(done.z)[0, :2].tolist() == x[0, :2].tolist()
    both = Chain(
        [bound, Solver(), Solver(), Split(torch.tensor([True, False, True])), Split(torch.tensor([False, True]))]
    )
    assert both.kind is both(x).kind is Estimate
    assert both(x).se.item() == pytest.approx(18**0.5)
    assert both.leaving == 2
    z = torch.tensor([[1.0, 2.0, 3.0]]).double()
    step = Chain(list(both.transforms)[1:])(z)
    assert (step.z.tolist(), step.out.tolist(), step.log_term.tolist()) == ([[3.0]], [[2.0, 1.0]], [12.0])
    assert Chain(list(both.transforms)[1:]).inverse(step.z, None, step.out).tolist() == z.tolist()


def test_logit():
    x = torch.rand(20, 3, generator=generator(), dtype=torch.float64)
    step = Logit(0.05)(x)
    close(Logit(0.05).inverse(step.z), x)
    close(step.log_term[0], jacobian(lambda v: Logit(0.05)(v).z, x[:1]).diagonal().log().sum())


# ------------------------------------------------------------------------------------------- splines


def test_spline_is_monotone_continuous_and_linear_outside():
    raw = 2 * randn(3 * 8 - 1, 1).expand(-1, 20001).contiguous()
    x = torch.linspace(-BOUND - 1, BOUND + 1, 20001, dtype=torch.float64).requires_grad_()
    y, log_slope = spline(x, raw)
    (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    close(slope.log(), log_slope)
    x, y = x.detach(), y.detach()
    assert (y.diff() > 0).all()
    trapezoid = 0.5 * (slope[1:] + slope[:-1]) * x.diff()  # a jump would add to y but not to this integral
    close(y[0] + trapezoid.cumsum(0), y[1:], atol=1e-3, rtol=0)
    outside = x.abs() > BOUND
    assert torch.equal(y[outside], x[outside])
    assert not log_slope[outside].any()


def slow_spline(x, raw):
    """The textbook way, with gathers, differentiated by autograd."""
    widths, heights, slopes = knots(*shapes(raw))
    left = torch.cat([torch.full_like(widths[:1], -BOUND), widths.cumsum(0) - BOUND])
    low = torch.cat([torch.full_like(heights[:1], -BOUND), heights.cumsum(0) - BOUND])
    k = ((x.detach() >= left).sum(0) - 1).clamp(0, len(widths) - 1)[None]
    w, h, x0, y0, d0, d1 = (v.gather(0, k)[0] for v in (widths, heights, left, low, slopes[:-1], slopes[1:]))
    s, z = h / w, (x - x0) / w
    denominator = s + (d0 + d1 - 2 * s) * z * (1 - z)
    y = y0 + h * (s * z**2 + d0 * z * (1 - z)) / denominator
    slope = s**2 * (d1 * z**2 + 2 * s * z * (1 - z) + d0 * (1 - z) ** 2) / denominator**2
    inside = x.abs() <= BOUND
    return torch.where(inside, y, x), torch.where(inside, slope.log(), 0)


def test_spline_equals_its_slow_twin_gradient_included():
    x, raw = (3 * randn(300)).requires_grad_(), (2 * randn(3 * 6 - 1, 300)).requires_grad_()
    gy, gl = randn(300, seed=5), randn(300, seed=6)
    results = []
    for f in (spline, slow_spline):
        y, log_slope = f(x, raw)
        results.append((y, log_slope, *torch.autograd.grad((gy * y + gl * log_slope).sum(), (x, raw))))
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs)


def test_spline_in_single_precision():
    """Extreme parameters and knots themselves: finite, invertible to single precision."""
    raw = 30 * randn(3 * 8 - 1, 5000, dtype=torch.float32)
    widths, _, _ = knots(*shapes(raw))
    ends = torch.cat([torch.full((1, 5000), -BOUND), widths.cumsum(0) - BOUND])
    for x in (3 * randn(5000, dtype=torch.float32), *ends, torch.full((5000,), 1e30)):
        x = x.clone().requires_grad_()
        y, log_slope = spline(x, raw)
        (y.sum() + log_slope.sum()).backward()
        assert y.isfinite().all()
        assert log_slope.isfinite().all()
        assert x.grad.isfinite().all()
    assert spline_inverse(x.detach(), raw).isfinite().all()
    x, raw = 3 * randn(5000, dtype=torch.float32), raw / 30
    y, log_slope = spline(x, raw)
    error = (spline_inverse(y, raw) - x) * log_slope.exp()  # where y is flat, many x round to it
    assert error.abs().max() < 1e-5
    assert spline(torch.tensor([math.nan]), raw[:, :1])[0].isnan().all()


def test_spline_equals_zuko():
    transforms = pytest.importorskip("zuko").transforms
    raw, x = 0.5 * randn(3 * 6 - 1, 200), 3 * randn(200)
    widths, heights, slopes = knots(*shapes(raw))

    def unclip(log, limit):  # zuko squashes its logits as v / (1 + |v / limit|)
        return log / (1 - (log / limit).abs())

    limit = -math.log(1e-3)
    w, h = (unclip(v.log() - v.log().mean(0), limit / 2).T for v in (widths, heights))
    theirs = transforms.MonotonicRQSTransform(w, h, unclip(slopes[1:-1].log(), limit).T, bound=BOUND)
    y, log_slope = spline(x, raw)
    want, want_log_slope = theirs.call_and_ladj(x)
    close(y, want, atol=1e-9, rtol=1e-9)
    close(log_slope, want_log_slope, atol=1e-8, rtol=1e-8)


# ------------------------------------------------------------------------------------------- preprocessing


class Given:
    """Noise that is known."""

    def __init__(self, u):
        self.u = u

    def rand(self, *shape):
        assert self.u.shape[1:] == shape
        return self.u


MIXED = Table(
    (
        Real("real"),
        Real("nullable", nullable=True),
        Integer("integer", 0, 99, nullable=True),
        Category("category", ("a", "b"), nullable=True),
        Real("step", step=0.1, origin=0.05),
    )
)


def mixed_rows(n, seed=0):
    x = randn(n, 5, seed=seed)
    x[::7, 1] = math.nan
    x[:, 2] = (3 * x[:, 2]).round()
    x[::2, 2] = 50  # an atom
    x[::5, 2] = math.nan
    x[:, 3] = (x[:, 3] > 0).double()
    x[::4, 3] = math.nan
    x[:, 4] = 0.05 + 0.1 * (10 * x[:, 4]).round()
    return x


def test_table_round_trip():
    x = mixed_rows(1000)
    pre = preprocess(MIXED)
    pre.fit(x, None, generator())
    assert pre.code_sizes == (3, 2, 2 + ATOMS, 1 + ATOMS)
    assert pre.kind is LowerBound
    parts = pre.split(x, RowNoise.by_place(1000, generator(1)))
    back = pre.join(parts.codes, parts.y.float())
    MIXED.check(back)
    close(back, x, atol=1e-6, rtol=1e-6, equal_nan=True)
    close(parts.y.mean(0), torch.zeros(4, dtype=torch.float64), atol=0.1, rtol=0)
    close(parts.y.std(0), torch.ones(4, dtype=torch.float64), atol=0.1, rtol=0)
    atom = (x[:, 2] == 50).nonzero()[0, 0]
    assert parts.codes[atom, 2] == 1


def test_a_table_of_complete_reals_is_exact():
    pre = preprocess(Table((Real("a"), Real("b"))))
    x = torch.tensor([[1e9, 0.0], [1e9 + 1, 2.0], [1e9 + 2, 1.0]], dtype=torch.float64)
    pre.fit(x, torch.tensor([1.0, 2.0, 1.0]), generator())
    assert pre.kind is Exact
    assert pre.code_sizes == ()
    parts = pre.split(x)
    close(pre.join(parts.codes, parts.y), x)
    assert pre.standard.loc[0].item() == 1e9 + 1  # weighted
    close(parts.log_jacobian, -pre.scale.log().sum().expand(3))


@pytest.mark.parametrize("options", [{}, {"logit": 0.05}, {"shared_scale": True}], ids=str)
def test_image_round_trip_and_jacobian(options):
    space = Image(3, 4, 2, levels=5)
    x = torch.randint(0, 5, (500, 2, 3, 4), generator=generator(), dtype=torch.uint8)
    pre = preprocess(space, **options)
    pre.fit(x, None, generator())
    u = torch.rand(500, 24, generator=generator(1))
    parts = pre.split(x, Given(u))
    assert torch.equal(pre.join(parts.codes, parts.y), x)
    for i in range(3):  # y is elementwise in u, and |dx| = |du|
        want = jacobian(lambda v, i=i: pre.split(x[i : i + 1], Given(v)).y, u[i : i + 1]).diagonal().log().sum()
        close(parts.log_jacobian[i], want.double(), atol=1e-4, rtol=1e-5)


def test_delta():
    z = randn(4, 3)
    delta = Delta(z)
    assert delta.batch_shape == (4,)
    assert delta.event_shape == (3,)
    assert torch.equal(delta.mean, z)
    assert delta.sample((2,)).shape == (2, 4, 3)
    assert torch.equal(delta.rsample((2,))[1], z)
    assert delta.log_prob(z).tolist() == [0.0] * 4
    assert delta.log_prob(z + 1).tolist() == [-math.inf] * 4


def test_mlp_features_first_and_context():
    net = scramble(Mlp(4, 6, hidden=8, blocks=2, context=3))
    x, h = randn(7, 4), randn(7, 3, seed=1)
    y = net(x, h)
    assert y.shape == (7, 6)
    close(net.features_first(x, h), y.T)
    assert not torch.allclose(net(x, h + 1), y)
