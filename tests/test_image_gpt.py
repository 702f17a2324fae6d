"""A transformer over patches: orders, scans, causality, and a cache that changes nothing."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from pofx.codecs.steps import Patches, PatchOrder, patch_order
from pofx.core.errors import Unsupported, UsageError
from pofx.families.image_gpt import SCANS, ImageGpt, ImageGptConfig, turned
from pofx.spaces import Image, Label

TINY = {"width": 16, "layers": 2, "n_heads": 2, "inner_width": 16, "components": 3}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(space: Image, n: int = 3) -> torch.Tensor:
    return torch.randint(space.levels, (n, *space.event_shape), generator=seeded()).to(torch.uint8)


def model(space: Image, context=None, **options) -> ImageGpt:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = ImageGpt(ImageGptConfig(**TINY | options), space, context)
        for p in made.parameters():  # nothing starts as nothing
            torch.nn.init.normal_(p, std=0.3)
    return made.eval()


@pytest.mark.parametrize("name", get_args(PatchOrder))
@pytest.mark.parametrize("size", [(3, 5), (4, 4), (1, 6)])
def test_orders_visit_every_place_once(name, size):
    assert sorted(patch_order(name, *size, 0)) == list(range(math.prod(size)))


def test_a_spiral_winds_inwards():
    assert patch_order("spiral", 3, 3, 0) == [0, 1, 2, 5, 8, 7, 6, 3, 4]


@pytest.mark.parametrize("order", get_args(PatchOrder))
def test_patches_come_back_as_the_image(order):
    space = Image(6, 4, 3, 256)
    x, codec = images(space), Patches(space, 2, order=order)
    assert torch.equal(codec.decode(codec.encode(x)), x)


@pytest.mark.parametrize("scan", range(SCANS))
def test_turning_is_undone(scan):
    x = images(Image(4, 4, 2, 9))
    assert torch.equal(turned(turned(x, scan), scan, back=True), x)
    others = [turned(x, k) for k in range(SCANS) if k != scan]
    assert not any(torch.equal(turned(x, scan), other) for other in others)


@pytest.mark.parametrize(
    ("patch", "channels", "order"), [(1, 1, "raster"), (2, 1, "spiral"), (2, 3, "random"), (4, 1, "column")]
)
def test_a_level_depends_on_those_before_it_only(patch, channels, order):
    """Change one level of one patch: what was scored before it stays the same to the bit, what comes after moves."""
    space = Image(8, 8, channels, 5)
    m, x = model(space, patch=patch, order=order), images(space, 1)
    u = m.codec.encode(x)

    def scores(steps: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([m.emission.beginning(1), steps[:, :-1]], 1)
        with torch.no_grad():
            return m.emission.log_prob(m.net(m.embed(inputs, None)), steps)[0]

    t = u.shape[1] // 2
    other = u.clone()
    other[:, t] = (other[:, t] + 1) % space.levels
    before, after = scores(u), scores(other)
    assert torch.equal(before[:t], after[:t])
    assert (before[t:] != after[t:]).any()


@pytest.mark.parametrize(
    "options",
    [{"patch": 1}, {"patch": 2, "scans": 4}, {"patch": 4, "order": "random"}, {"patch": 2, "orders": 3, "scans": 2}],
)
def test_the_cache_changes_no_sample(options):
    """Against the net run from the beginning for every step, with the same generator."""
    space = Image(8, 8, 1, 3)
    m = model(space, **options)
    fast = m.sample(5, generator=seeded(3))
    generator, out = seeded(3), torch.empty(5, 1, 8, 8, dtype=torch.uint8)
    which = torch.randint(m.members, (5,), generator=generator)
    h, steps = m._toward(None, which), m.emission.beginning(5)
    with torch.no_grad():
        for _ in range(m.steps):
            y = m.net(m.embed(steps, h))[:, -1]
            steps = torch.cat([steps, m.emission.sample(y, generator)[:, None].to(steps.dtype)], 1)
    for i, member in enumerate(which.tolist()):
        order, scan = divmod(member, m.config.scans)
        u = torch.empty_like(steps[i : i + 1, 1:])
        u[:, m.ways[order]] = steps[i : i + 1, 1:]
        out[i] = turned(m.codec.decode(u), scan, back=True)
    assert torch.equal(fast, out)


def test_scans_and_orders_are_a_mixture():
    space = Image(4, 4, 1, 2)
    m, x = model(space, patch=2, scans=4, orders=3), images(space, 4)
    with torch.no_grad():
        whole = m.log_prob(x).nats
        each = torch.stack([m._by(k, x, None) for k in range(12)])
    assert torch.allclose(whole, each.logsumexp(0) - math.log(12))
    assert each.std(0).min() > 0.01


def test_every_order_is_a_model_that_knows_its_places():
    """Each sums to one; without the places two orders would score patches turned about alike."""
    m = model(Image(2, 2, 1, 3), patch=1, orders=4)
    states = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 1, 2, 2).to(torch.uint8)
    with torch.no_grad():
        each = torch.stack([m._by(k, states, None) for k in range(4)])
        assert (each.exp().sum(1) - 1).abs().max() < 1e-5
        m.scan.weight.fill_(0.0)
        for k in range(1, 4):
            moved = torch.empty_like(states)
            moved.view(-1, 4)[:, m.ways[k]] = states.view(-1, 4)  # the same steps one after the other
            assert not torch.allclose(m._by(0, states, None), m._by(k, moved, None), atol=1e-3)
            m.places.data.zero_()
            assert torch.allclose(m._by(0, states, None), m._by(k, moved, None), atol=1e-5)
            torch.nn.init.normal_(m.places)


def test_samples_of_orders_have_the_probabilities_that_are_scored():
    m, n = model(Image(2, 2, 1, 2), patch=1, orders=3, scans=2), 6000
    states = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 1, 2, 2).to(torch.uint8)
    with torch.no_grad():
        p = m.log_prob(states).nats.exp()
    x = m.sample(n, generator=seeded(5)).flatten(1).long()
    found = (x * torch.tensor([8, 4, 2, 1])).sum(1).bincount(minlength=16) / n
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-3).all()


def test_labels_move_the_samples():
    space, context = Image(4, 4, 1, 2), Label(("a", "b"))
    m, x = model(space, context, patch=2), images(Image(4, 4, 1, 2), 2)
    a, b = (m.given(torch.tensor(k)).log_prob(x[:, None]).nats for k in (0, 1))
    assert not torch.allclose(a, b)
    assert m.given(torch.tensor([0, 1])).sample(3, generator=seeded()).shape == (3, 2, 1, 4, 4)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"patch": 3}, "divisor"), ({"order": "zigzag"}, "zigzag"), ({"scans": 9}, "scans is 9"),
     ({"orders": 0}, "orders"), ({"n_heads": 3}, "heads"),
     ({"head": "bernoulli"}, "Bernoulli")],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, word):
    with pytest.raises((Unsupported, UsageError), match=word):
        ImageGpt(ImageGptConfig(**TINY | options), Image(8, 8, 1, 5))


@pytest.mark.parametrize("options", [{"patch": 1}, {"patch": 2}, {"patch": 1, "palette": 2}, {"patch": 2, "orders": 2}])
def test_an_image_is_completed_from_its_upper_rows(options):
    """What is known stays; the rest has the frequencies of p(rest | known) in the first order, by enumeration."""
    space, n = Image(2, 2, 1, 3), 6000
    m, x = model(space, **options), torch.tensor([[[[2, 0], [0, 0]]]], dtype=torch.uint8)
    if "palette" in options:
        m.codec.prepare(images(space, 20), seeded())
    known = torch.tensor([[[[True, True], [False, False]]]])
    drawn = m.given().complete(x.expand(n, -1, -1, -1), known.expand(n, -1, -1, -1), generator=seeded())
    assert (drawn[:, 0, 0] == torch.tensor([2, 0])).all()
    states = torch.tensor([[[[2, 0], [a, b]]] for a in range(3) for b in range(3)], dtype=torch.uint8)
    with torch.no_grad():
        expected = m._by(0, states, None).softmax(0)
    found = torch.bincount((3 * drawn[:, 0, 1, 0] + drawn[:, 0, 1, 1]).long(), minlength=9) / n
    assert (found - expected).abs().max() < 4.5 * 0.5 / n**0.5


@pytest.mark.parametrize(
    "options",
    [{"patch": 2}, {"patch": 4, "predict": "yes"}, {"patch": 1, "order": "random"}, {"palette": 7, "order": "spiral"}],
)
def test_what_is_known_stays(options):
    space = Image(4, 4, 3, 20)
    m, x = model(space, **options), images(space, 6)
    if "palette" in options:
        m.codec.prepare(x, seeded())
    for rows in range(5):  # some inside a patch
        known = torch.zeros_like(x, dtype=torch.bool)
        known[:, :, :rows] = True
        drawn = m.given().complete(x, known, generator=seeded())
        assert torch.equal(drawn[known], x[known])
        assert rows == 4 or not torch.equal(drawn, x)


@pytest.mark.parametrize(
    ("options", "place", "word"),
    [({"predict": "yes"}, (slice(None), slice(None), 1), "upper rows"), ({"palette": 4}, (slice(None), 0), "channels")],
)
def test_what_cannot_be_known_alone_is_named(options, place, word):
    space = Image(4, 4, 3, 20)
    m, x = model(space, **options), images(space, 2)
    known = torch.zeros_like(x, dtype=torch.bool)
    known[place] = True
    with pytest.raises(UsageError, match=word):
        m.given().complete(x, known, generator=seeded())


def test_labels_move_the_completions():
    space, context = Image(4, 4, 1, 2), Label(("a", "b"))
    m, x = model(space, context, patch=2), images(space, 1)
    opposite = torch.tensor([[1.0], [-1.0]])
    m.context_encoder.embedding.weight.data = opposite.expand(2, m.context_encoder.width).clone()
    known = torch.zeros(600, 2, *space.event_shape, dtype=torch.bool)  # more rows than are drawn at once
    drawn = m.given(torch.tensor([0, 1])).complete(x.expand(known.shape), known, generator=seeded())
    plain = m.given(torch.tensor([0, 1])).sample(600, generator=seeded(1))
    completed, sampled = (t.float().mean(0).flatten(1) for t in (drawn, plain))  # of each label, each pixel's frequency
    error = (2 * 0.25 / 600) ** 0.5  # at most, of a difference of two
    assert (completed[0] - completed[1]).abs().max() > 5 * error
    assert (completed - sampled).abs().max() < 4.5 * error  # nothing is known: a sample as any other
