"""Autoregressive families: causality, sums, cached sampling against the naive one, orders, the truth as a limit."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch
from pofx.core.likelihood import Exact
from pofx.core.model import Model
from pofx.core.space import Space
from pofx.data import synthetic
from pofx.families.autoregressive import (
    Autoregressive,
    Made,
    MadeConfig,
    WindowMlp,
    WindowMlpConfig,
    column_window,
    image_window,
    space_orders,
)
from pofx.nn.causal import MaskedMlp, site_order
from pofx.spaces import Category, Column, Image, Integer, Label, Real, Table

MIXED: tuple[Column, ...] = (
    Category("kind", ("a", "b", "c"), nullable=True),
    Integer("count", 0, 20),
    Real("size", nullable=True),
    Category("flag", ("no", "yes")),
    Real("price", step=0.5),
    Real("mass"),
)
LABEL = Label(("x", "y"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(space: Space, n: int, seed: int = 0) -> Tensor:
    g = generator(seed)
    if isinstance(space, Image):
        return torch.randint(0, space.levels, (n, *space.event_shape), generator=g, dtype=torch.uint8)
    assert isinstance(space, Table)
    columns = []
    for c in space.columns:
        size = len(c.values) if isinstance(c, Category) else 21
        v = torch.randint(0, size, (n,), generator=g).double()
        v = v if isinstance(c, Category) else v + torch.randn(n, generator=g) if c.step is None else v * c.step
        v[(torch.rand(n, generator=g) < 0.2) & c.nullable] = math.nan
        columns.append(v)
    return torch.stack(columns, 1)


def scrambled(
    cls: type[Autoregressive], space: Space, context: Space | None = None, c: Tensor | None = None, **options: object
) -> Autoregressive:
    """An untrained model with parameters far from zero, so that every path carries a signal."""
    config = cls.Config(**(vars(cls.tiny(space)) | options))
    model = cls(config, space, context)
    model.prepare(rows(space, 100), c, None, generator())
    g = generator(7)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return model.eval()


FAMILIES: list[tuple[type[Autoregressive], dict[str, object]]] = [
    (Made, {"orders": 3, "order": "random"}),
    (Made, {"orders": 1, "order": "reverse", "layers": 3, "hidden": 7}),
    (WindowMlp, {"window": 3, "radius": 2}),
]
SPACES: list[Space] = [Table(MIXED), Image(3, 4, 1, 2), Image(2, 3, 3, 4), Image(2, 2, 2, 256)]


# ------------------------------------------------------------------------------------------ structure


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize(("cls", "options"), FAMILIES, ids=str)
def test_causal_by_jacobian_and_nothing_lost(
    cls: type[Autoregressive], options: dict[str, object], space: Space
) -> None:
    """Parameters of a site depend on exactly the sites before it (of a window: on those of them in it)."""
    model = scrambled(cls, space, LABEL, torch.zeros(100, dtype=torch.int64), **options)
    features = model.heads.embed(rows(space, 3))
    h = torch.randn(3, model.known, generator=generator(1))
    starts_in, starts_out = np.cumsum([0, *model.heads.features]), np.cumsum([0, *model.heads.params])
    for order in range(model.orders):

        def summed(f: Tensor, order: int = order) -> Tensor:
            return model.params(f, h, order).sum(0)

        jacobian = torch.autograd.functional.jacobian(summed, features).abs().amax(1)
        visited = model.walk(1, h[:1], order).order
        rank = {site: t for t, site in enumerate(visited)}
        for i, j in product(range(model.heads.sites), repeat=2):
            block = jacobian[starts_out[i] : starts_out[i + 1], starts_in[j] : starts_in[j + 1]]
            if rank[j] >= rank[i]:
                assert float(block.abs().max()) == 0, f"site {i} sees site {j}"
            elif not isinstance(model, WindowMlp) or j in model.net.window[i].tolist():
                assert float(block.abs().max()) > 0, f"site {i} does not see site {j}"


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize(("cls", "options"), FAMILIES, ids=str)
def test_walk_gives_the_parameters_of_one_pass(
    cls: type[Autoregressive], options: dict[str, object], space: Space
) -> None:
    """Cached equals naive, with and without a context."""
    x = rows(space, 5)
    for context in (None, LABEL):
        c = None if context is None else torch.tensor([0, 1, 0, 1, 1])
        many = None if context is None else torch.zeros(100, dtype=torch.int64)
        model = scrambled(cls, space, context, many, **options)
        h = None if c is None else model.encode_context(c).vector
        features = model.heads.embed(x)
        each = features.split(model.heads.features, 1)
        for order in range(model.orders):
            naive = model.params(features, h, order).split(model.heads.params, 1)
            walk = model.walk(len(x), h, order)
            assert sorted(walk.order) == list(range(model.heads.sites))
            for site in walk.order:
                assert torch.allclose(walk.params(), naive[site], rtol=1e-4, atol=1e-4)
                walk.push(each[site])


def test_masks_at_awkward_sizes() -> None:
    """Fewer hidden units than sites, layers of unequal width, one site, no direct connections: cached = naive."""
    for features, hidden, context, direct in [
        ((1,) * 20, (7, 9, 30), 2, True),
        ((2, 3), (4,), 0, False),
        ((3,), (4, 4), 0, True),
        ((3,), (4, 4), 2, True),
    ]:
        params = [k % 3 + 1 for k in range(len(features))]
        net = MaskedMlp(features, params, hidden, context=context, direct=direct)
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):
                p.copy_(torch.randn(p.shape, generator=generator(i)))
        x = torch.randn(4, sum(features), generator=generator(50))
        h = torch.randn(4, context, generator=generator(51)) if context else None
        naive = net(x, h)
        assert torch.allclose(net.features_first(x, h), naive.T, rtol=1e-4, atol=1e-4)
        walk = net.walk(4, h)
        for site in walk.order:
            assert torch.allclose(walk.params(), naive.split(params, 1)[site], rtol=1e-4, atol=1e-4)
            walk.push(x.split(features, 1)[site])


def test_masks_follow_the_order_and_the_dtype() -> None:
    net = MaskedMlp((1, 1, 1), (1, 1, 1), (8,), orders=[[0, 1, 2], [2, 0, 1]])
    first = [m.clone() for m in net.masks(0)]
    assert not torch.equal(net.masks(1)[0], first[0])
    assert all(torch.equal(a, b) for a, b in zip(net.masks(0), first, strict=True))
    assert net.double().masks(0)[0].dtype == torch.float64
    assert net(torch.zeros(2, 3).double()).dtype == torch.float64


def test_no_mask_of_connections_that_are_not_there() -> None:
    """It would hold sum(features) sum(params) numbers: of 2,000 columns, as many as 23 GB of them."""
    net = MaskedMlp((1,) * 50, (24,) * 50, (8,), direct=False)
    assert sum(m.numel() for m in net.masks()) == 8 * 50 + 50 * 24 * 8
    wide = Table(tuple(Real(f"x{i}") for i in range(1200)))
    model = Made(MadeConfig(hidden=16), wide)
    x = torch.randn(3, 1200, generator=generator(), dtype=torch.float64)
    assert model.log_prob(x).nats.isfinite().all()
    assert sum(m.numel() for m in model.net.masks()) < 1_000_000


def test_orders() -> None:
    assert site_order("raster", 4) == [0, 1, 2, 3]
    assert site_order("reverse", 4) == [3, 2, 1, 0]
    # a saved model is rebuilt from its seed: this stream may never change
    assert site_order("random", 6, seed=3) == [3, 5, 4, 1, 0, 2]
    # pixels in reading order, the channels of a pixel together: sites are c * 6 + h * 3 + w here
    image = Image(2, 3, 2)
    assert space_orders(image, "raster", 1, 0) == [[0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]]
    assert space_orders(image, "reverse", 1, 0) == [[11, 5, 10, 4, 9, 3, 8, 2, 7, 1, 6, 0]]
    many = space_orders(image, "raster", 10, 0)
    assert many[4] == [0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11]  # by columns
    assert len(set(map(tuple, many))) == 10
    assert all(sorted(order) == list(range(12)) for order in many)
    assert space_orders(Table(MIXED), "raster", 2, 5) == [list(range(6)), site_order("random", 6, 6)]


def test_windows_by_hand() -> None:
    assert column_window(4, 2).tolist() == [[4, 4], [0, 4], [1, 0], [2, 1]]
    space = Image(5, 4, 3)
    [order] = space_orders(space, "raster", 1, 0)
    rank = {site: t for t, site in enumerate(order)}
    window = image_window(space, 2)
    for site in range(space.dims):
        h, w = divmod(site % 20, 4)
        near = {
            c * 20 + a * 4 + b
            for c, a, b in product(range(3), range(5), range(4))
            if (a - h) ** 2 + (b - w) ** 2 <= 4 and rank[c * 20 + a * 4 + b] < rank[site]
        }
        seen = [j for j in window[site].tolist() if j < space.dims]
        assert len(seen) == len(set(seen))
        assert set(seen) == near


# ---------------------------------------------------------------------------------------- probability


@pytest.mark.parametrize(("cls", "options"), FAMILIES, ids=str)
def test_binary_images_sum_to_one(cls: type[Autoregressive], options: dict[str, object]) -> None:
    model = scrambled(cls, Image(3, 3, 1, 2), **options)
    states = torch.tensor(list(product((0, 1), repeat=9)), dtype=torch.uint8).reshape(-1, 1, 3, 3)
    lik = model.log_prob(states)
    assert isinstance(lik, Exact)
    assert float(lik.nats.detach().exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("cls", "options"), FAMILIES, ids=str)
def test_mixed_table_sums_and_integrates_to_one(cls: type[Autoregressive], options: dict[str, object]) -> None:
    """Summed over a nullable category and all integers, integrated over a nullable real."""
    columns = (Category("k", ("a", "b"), nullable=True), Integer("n", 0, 3), Real("r", nullable=True))
    model = scrambled(cls, Table(columns), **options)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.2)  # bounded scales, so that the grid below holds all the mass
    real = torch.linspace(-100, 120, 401, dtype=torch.float64)
    integers = torch.arange(-70, 80, dtype=torch.float64)
    missing = torch.tensor([math.nan], dtype=torch.float64)
    kinds = torch.tensor([0.0, 1.0, math.nan], dtype=torch.float64)
    with torch.no_grad():
        total = model.log_prob(torch.cartesian_prod(kinds, integers, missing)).nats.exp().sum()  # type: ignore[union-attr]
        for kind in kinds:
            x = torch.cartesian_prod(kind[None], integers, real)
            total += model.log_prob(x).nats.exp().sum() * (real[1] - real[0])  # type: ignore[union-attr]
    assert float(total) == pytest.approx(1, abs=1e-3)


def test_several_orders_are_their_mixture() -> None:
    model = scrambled(Made, Image(2, 3, 1, 2), orders=3, order="random")
    states = torch.tensor(list(product((0, 1), repeat=6)), dtype=torch.uint8).reshape(-1, 1, 2, 3)
    each = torch.stack([model._log_prob(states, None, k).exp() for k in range(3)])
    assert not torch.allclose(each[0], each[1], atol=1e-3)
    assert torch.allclose(each.sum(1), torch.ones(3).double(), atol=1e-5)
    p = model.log_prob(states).nats.exp()  # type: ignore[union-attr]
    assert torch.allclose(p, each.mean(0), rtol=1e-6)
    drawn = model.sample(20_000, generator=generator(3)).flatten(1).long()
    index = (drawn * 2 ** torch.arange(5, -1, -1)).sum(1)
    z = (torch.bincount(index, minlength=64) - 20_000 * p) / (20_000 * p * (1 - p)).sqrt()
    assert float(z.square().mean()) < 1.6


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize(("cls", "options"), FAMILIES, ids=str)
def test_saved_weights_are_the_whole_model(cls: type[Autoregressive], options: dict[str, object], space: Space) -> None:
    a = scrambled(cls, space, **options)
    b = cls(a.config, space)
    b.load_state_dict(a.state_dict())
    x = rows(space, 10)
    assert torch.equal(a.log_prob(x).nats, b.log_prob(x).nats)  # type: ignore[union-attr]
    assert torch.equal(
        a.sample(4, generator=generator(1)).nan_to_num(nan=-1), b.sample(4, generator=generator(1)).nan_to_num(nan=-1)
    )


# -------------------------------------------------------------------------------------------- training


def train(model: Model, x: Tensor, c: Tensor | None, steps: int) -> None:
    """A few steps of plain minibatch training."""
    model.prepare(x, c, None, generator())
    learner, g = model.learner(model.recipe(model.space)), generator(1)
    for step in range(steps):
        pick = torch.randint(0, len(x), (128,), generator=g)
        batch = Batch(x[pick], None if c is None else c[pick], None, 0, 128, step / steps, step)
        learner.step(batch, g)


def independent(x: Tensor) -> float:
    """Mean log-likelihood of rows of codes under their own column frequencies: no independent model is better."""
    return sum(
        float(torch.special.xlogy(p := x[:, j].unique(return_counts=True)[1] / len(x), p).sum())
        for j in range(x.shape[1])
    )


@pytest.mark.parametrize("cls", [Made, WindowMlp])
def test_training_comes_near_the_entropy_and_not_below(cls: type[Autoregressive]) -> None:
    source = synthetic.markov(6)
    x, test = source.sample(6000, generator(1)), source.sample(4000, generator(2))
    torch.manual_seed(0)
    model = cls(cls.tiny(source.space), source.space)
    train(model, x, None, 300)
    nats = model.log_prob(test).nats  # type: ignore[union-attr]
    gap = source.log_prob(test) - nats
    assert float(gap.mean()) > -3 * float(gap.std()) / math.sqrt(len(test))
    assert float(gap.mean()) < 0.1
    assert float(nats.mean()) > independent(test) + 0.2


@pytest.mark.parametrize("cls", [Made, WindowMlp])
def test_training_on_a_mixed_table(cls: type[Autoregressive]) -> None:
    source = synthetic.MixedTable()
    x, test = source.sample(4000, generator(1)), source.sample(1000, generator(2))
    torch.manual_seed(0)
    model = cls(cls.tiny(source.space), source.space)
    model.prepare(x, None, None, generator())
    start = float(model.log_prob(test).nats.mean())  # type: ignore[union-attr]
    train(model, x, None, 300)
    gap = source.log_prob(test) - model.log_prob(test).nats  # type: ignore[union-attr]
    assert float(gap.mean()) > -3 * float(gap.std()) / math.sqrt(len(test))
    assert float((source.log_prob(test)).mean() - gap.mean()) > start + 0.2


def test_refusals_say_what_to_do() -> None:
    for options, word in [({"orders": 0}, "orders"), ({"order": "spiral"}, "spiral"), ({"hidden": 0}, "hidden")]:
        with pytest.raises(UsageError, match=word):
            Made(MadeConfig(**options), Image(2, 2))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="radius"):
        WindowMlp(WindowMlpConfig(radius=0), Image(2, 2))
    with pytest.raises(Unsupported, match="classifier"):
        Made(MadeConfig(), LABEL)
    with pytest.raises(Unsupported, match="256"):
        Made(MadeConfig(head="bernoulli"), Image(2, 2))


@pytest.mark.parametrize("family", ["made", "window-mlp", "gated-pixelcnn"])
def test_an_image_is_completed_from_its_upper_rows(family):
    """What is known stays; the rest has the frequencies of p(rest | known), by enumeration."""
    from pofx.core.registry import family as find
    from pofx.spaces import Image

    space, cls = Image(2, 2, 1, 2), find(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(cls.tiny(space), space)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.7)
    if model.orders > 1:
        model.orders = 1
    x = torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
    known = torch.tensor([[[[True, True], [False, False]]]])
    n = 4000
    drawn = model.given().complete(x.expand(n, -1, -1, -1), known.expand(n, -1, -1, -1), generator=torch.Generator())
    assert (drawn[:, 0, 0] == torch.tensor([1, 0])).all()
    states = torch.tensor([[[[1, 0], [a, b]]] for a in (0, 1) for b in (0, 1)], dtype=torch.uint8)
    expected = model.log_prob(states).nats.softmax(0)
    found = torch.bincount((2 * drawn[:, 0, 1, 0] + drawn[:, 0, 1, 1]).long(), minlength=4) / n
    assert (found - expected).abs().max() < 4 * 0.5 / n**0.5


def test_what_is_known_needs_its_shape():
    from pofx.core.errors import WrongShape
    from pofx.core.registry import family as find
    from pofx.spaces import Image

    cls, space = find("made"), Image(2, 2, 1, 2)
    model = cls(cls.tiny(space), space)
    with pytest.raises(WrongShape, match="one boolean"):
        model.given().complete(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, 4, dtype=torch.bool))
