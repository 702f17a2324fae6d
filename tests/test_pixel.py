"""Autoregressive nets on images: causality and reach, cached walks against one pass, sums, contexts."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from pofx.core.errors import Unsupported, UsageError
from pofx.core.registry import family
from pofx.core.space import Space
from pofx.families.pixel import Pixel, PixelCnnPlusFamily
from pofx.nn.pixel import CausalConv
from pofx.spaces import Category, Image, Label, Real, Table

LABEL = Label(("x", "y"))
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("pixelcnn", {}),
    ("gated-pixelcnn", {"kernel": 3, "layers": 3}),
    ("pixelcnn++", {"hidden": 12}),
    ("pixelrnn", {"kind": "row-lstm"}),
    ("pixelrnn", {"kind": "diagonal-bilstm", "kernel": 3}),
]
SPACES = [Image(3, 4, 1, 2), Image(4, 3, 3, 4), Image(3, 3, 3, 256), Image(1, 5, 1, 5), Image(4, 1, 2, 2)]
BLIND = {"pixelcnn", "row-lstm"}  # as the paper says; the others see all that was before
each_family = pytest.mark.parametrize(("name", "options"), FAMILIES, ids=str)
each_space = pytest.mark.parametrize("space", SPACES, ids=str)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(space: Image, n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, space.levels, (n, *space.event_shape), generator=generator(seed), dtype=torch.uint8)


def scrambled(
    name: str, options: dict[str, Any], space: Image, context: Space | None = None, c: Tensor | None = None
) -> Pixel:
    """An untrained model with parameters far from their start, so that every path carries a signal."""
    cls = family(name)
    wide = {"hidden": 24}  # of fewer ReLUs all may be dead at a place
    model = cls(cls.Config(**(vars(cls.tiny(space)) | wide | options)), space, context)
    assert isinstance(model, Pixel)
    model.prepare(rows(space, 100), c, None, generator())
    g = generator(7)
    with torch.no_grad():
        for p in model.parameters():
            fan = max(1, p[0].numel())
            p.copy_(torch.randn(p.shape, generator=g) * 1.5 / fan**0.5)
    return model.eval()


def naive_sample(model: Pixel, n: int, c: Tensor | None, g: torch.Generator) -> Tensor:
    """The whole net anew for every value."""
    torch.randint(1, (n,), generator=g)  # the base draws each row's order, here the only one
    x = torch.zeros(n, *model.space.event_shape, dtype=torch.uint8)
    h = None if c is None else model.encode_context(c).vector
    for site in model.net.walk(1, None if h is None else h[:1]).order:
        params = model.params(model.heads.embed(x), h, 0).split(model.heads.params, 1)
        x.view(n, -1)[:, site] = model.heads.site(site).sample(params[site], g).to(torch.uint8)
    return x


@each_space
@each_family
def test_causal_by_jacobian(name: str, options: dict[str, Any], space: Image) -> None:
    """Parameters of a value depend on values before it only, and (where the family says so) on all of them."""
    model = scrambled(name, options, space, LABEL, torch.zeros(100, dtype=torch.int64))
    sites, each = space.dims, model.heads.params[0]
    h = torch.randn(8, model.known, generator=generator(1))
    features = torch.rand(8, sites, generator=generator(2)) * 2 - 1

    def summed(f: Tensor) -> Tensor:
        return model.params(f, h, 0).sum(0)

    jacobian = torch.autograd.functional.jacobian(summed, features).abs().amax(1).view(sites, each, sites).amax(1)
    order = model.walk(1, h[:1], 0).order
    assert order[: space.channels] == [c * space.height * space.width for c in range(space.channels)]
    rank = {site: t for t, site in enumerate(order)}
    for i, j in product(range(sites), repeat=2):
        if rank[j] >= rank[i]:
            assert float(jacobian[i, j]) == 0, f"site {i} sees site {j}"
        elif not BLIND & {name, options.get("kind")}:
            assert float(jacobian[i, j]) > 0, f"site {i} does not see site {j}"


@each_space
@each_family
def test_walk_gives_the_parameters_of_one_pass(name: str, options: dict[str, Any], space: Image) -> None:
    x, c = rows(space, 5), torch.tensor([0, 1, 0, 1, 1])
    # log-likelihoods of earlier channels are among the parameters, of order 1000 here
    tolerance = 1e-3 if name == "pixelcnn++" and space.channels > 1 else 1e-5
    for context in (None, LABEL):
        model = scrambled(name, {"layers": 2} | options, space, context, None if context is None else c[:1].expand(100))
        h = None if context is None else model.encode_context(c).vector
        features = model.heads.embed(x)
        with torch.no_grad():
            once = model.params(features, h, 0).split(model.heads.params, 1)
        walk = model.walk(5, h, 0)
        assert sorted(walk.order) == list(range(space.dims))
        for site in walk.order:
            assert torch.allclose(walk.params(), once[site], rtol=tolerance, atol=tolerance)
            walk.push(features[:, site : site + 1])


@each_family
def test_same_noise_gives_the_same_sample(name: str, options: dict[str, Any]) -> None:
    for space in (Image(4, 5, 1, 2), Image(3, 4, 3, 256)):
        c = torch.tensor([0, 1, 0, 1, 1, 0])
        model = scrambled(name, options, space, LABEL, c[:1].expand(100))
        with torch.no_grad():
            naive = naive_sample(model, 6, c, generator(3))
        assert torch.equal(model.given(c).sample(1, generator=generator(3))[0], naive)


@each_family
def test_binary_images_sum_to_one(name: str, options: dict[str, Any]) -> None:
    for shape in ((3, 3, 1), (2, 2, 2)):
        space = Image(*shape, levels=2)
        model = scrambled(name, options, space)
        states = torch.tensor(list(product((0, 1), repeat=space.dims)), dtype=torch.uint8)
        with torch.no_grad():
            nats = model.log_prob(states.reshape(-1, *space.event_shape)).nats  # type: ignore[union-attr]
        assert float(nats.exp().sum()) == pytest.approx(1, abs=1e-5)


@each_family
def test_a_wrong_mask_is_found(name: str, options: dict[str, Any]) -> None:
    """A first convolution that sees its own pixel: probabilities no longer sum to 1."""
    space = Image(2, 3, 1, 2)
    model = scrambled(name, options, space)
    masked = [m for m in model.net.modules() if isinstance(m, CausalConv) and m.mask is not None]
    masked[0].mask = None
    states = torch.tensor(list(product((0, 1), repeat=space.dims)), dtype=torch.uint8)
    with torch.no_grad():
        nats = model.log_prob(states.reshape(-1, *space.event_shape)).nats  # type: ignore[union-attr]
    assert abs(float(nats.exp().sum()) - 1) > 1e-3


def test_colours_are_one_mixture() -> None:
    """The product of the conditionals of a pixel's channels is Salimans et al.'s mixture, written out."""
    space = Image(1, 1, 3, 256)
    model = scrambled("pixelcnn++", {"components": 4}, space)
    assert isinstance(model, PixelCnnPlusFamily)
    x = model.sample(300, generator=generator(4))
    y = x.flatten(1).float() / 127.5 - 1
    with torch.no_grad():
        raw = model.net(y.reshape(-1, 3, 1, 1)).flatten(1)
        logits, each, slopes = raw.split([4, 24, 12], 1)
        weight = (logits + model.levels().log_weight[0]).log_softmax(1)
        total = weight.clone()
        for c, slope in enumerate([slopes[:, :0], slopes[:, :4], slopes[:, 4:]]):
            head = model.levels().site(c)
            mean, scale = each.view(-1, 3, 2, 4)[:, c].unbind(1)
            linear = (slope.view(len(x), c, 4).tanh() * y[:, :c, None]).sum(1)
            mean = head.mean + head.log_scale.exp() * mean + linear
            log_s = (head.log_scale + scale).clamp(-7, 7)
            low, high = (((y[:, c, None] + k / 255 - mean) / log_s.exp()).double() for k in (-1, 1))
            level = x[:, c].flatten()[:, None]
            low, high = low.masked_fill(level == 0, -math.inf), high.masked_fill(level == 255, math.inf)
            p = (high / 2).tanh() / 2 - (low / 2).tanh() / 2
            total = total + p.clamp_min(1e-12).log()
        nats = model.log_prob(x).nats  # type: ignore[union-attr]
    known = nats > -20  # differences of tanh have no digits far out
    assert int(known.sum()) > 100
    assert torch.allclose(nats[known], total.logsumexp(1)[known], atol=1e-2)


@each_family
def test_starts_at_the_marginal(name: str, options: dict[str, Any]) -> None:
    space = Image(3, 3, 1, 4)
    cls = family(name)
    model = cls(cls.tiny(space), space)
    x = (torch.rand(4000, 1, 3, 3, generator=generator()) ** 2 * 4).to(torch.uint8)
    model.prepare(x, None, None, generator())
    share = torch.stack([(x == k).double().mean(0) for k in range(4)])
    marginal = sum(float(share[k].log()[x[0] == k].sum()) for k in range(4))
    with torch.no_grad():
        nats = model.log_prob(x[:1]).nats  # type: ignore[union-attr]
    assert float(nats) == pytest.approx(marginal, abs=0.01)


@each_family
def test_a_table_is_a_context(name: str, options: dict[str, Any]) -> None:
    space, table = Image(3, 3, 1, 2), Table((Real("r"), Category("k", ("a", "b"))))
    c = torch.stack([torch.randn(100, generator=generator()).double(), torch.arange(100).double() % 2], 1)
    model = scrambled(name, options, space, table, c)
    x = rows(space, 6)
    a, b = (model.given(given).log_prob(x).nats for given in (c[:6], c[6:12]))  # type: ignore[union-attr]
    assert bool(((a - b).abs() > 1e-3).all())
    assert model.given(c[:3]).sample(2, generator=generator()).shape == (2, 3, 1, 3, 3)


def test_refusals_say_what_to_do() -> None:
    for name, options, word in [
        ("pixelcnn", {"kernel": 4}, "odd"),
        ("gated-pixelcnn", {"layers": 0}, "layers"),
        ("pixelcnn", {"head": "bernoulli"}, "head"),
    ]:
        cls = family(name)
        with pytest.raises((Unsupported, UsageError), match=word):
            cls(cls.Config(**options), Image(4, 4))
        with pytest.raises(Unsupported, match="made"):
            cls(cls.Config(), Table((Real("x"),)))
