"""A transformer over patches: orders, scans, causality, and a cache that changes nothing."""

from __future__ import annotations

import math

import pytest
import torch

from pofx.core.errors import Unsupported
from pofx.core.space import Image, Label
from pofx.families.image_gpt import SCANS, ImageGpt, ImageGptConfig, turned
from pofx.nn.steps import ORDERS, Patches, patch_order

TINY = {"width": 16, "layers": 2, "heads": 2, "inner_width": 16, "components": 3}


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


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("size", [(3, 5), (4, 4), (1, 6)])
def test_orders_visit_every_place_once(name, size):
    assert sorted(patch_order(name, *size, 0)) == list(range(math.prod(size)))


def test_a_spiral_winds_inwards():
    assert patch_order("spiral", 3, 3, 0) == [0, 1, 2, 5, 8, 7, 6, 3, 4]


@pytest.mark.parametrize("order", ORDERS)
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
            return m.emission.log_prob(m.net(m._embed(inputs, None)), steps)[0]

    t = u.shape[1] // 2
    other = u.clone()
    other[:, t] = (other[:, t] + 1) % space.levels
    before, after = scores(u), scores(other)
    assert torch.equal(before[:t], after[:t])
    assert (before[t:] != after[t:]).any()


@pytest.mark.parametrize("options", [{"patch": 1}, {"patch": 2, "scans": 4}, {"patch": 4, "order": "random"}])
def test_the_cache_changes_no_sample(options):
    """Against the net run from the beginning for every step, with the same generator."""
    space = Image(8, 8, 1, 3)
    m = model(space, **options)
    fast = m.sample(5, generator=seeded(3))
    generator, out = seeded(3), torch.empty(5, 1, 8, 8, dtype=torch.uint8)
    which = torch.randint(m.config.scans, (5,), generator=generator)
    for scan in which.unique().tolist():
        rows = (which == scan).nonzero()[:, 0]
        h, steps = m._toward(None, len(rows), scan), m.emission.beginning(len(rows))
        with torch.no_grad():
            for _ in range(m.codec.fixed):
                y = m.net(m._embed(steps, h))[:, -1]
                steps = torch.cat([steps, m.emission.sample(y, generator)[:, None].to(steps.dtype)], 1)
        out[rows] = turned(m.codec.decode(steps[:, 1:]), scan, back=True)
    assert torch.equal(fast, out)


def test_scans_are_a_mixture():
    space = Image(4, 4, 1, 2)
    m, x = model(space, patch=2, scans=8), images(Image(4, 4, 1, 2), 4)
    with torch.no_grad():
        whole = m.log_prob(x).nats
        each = torch.stack([m._scanned(x, None, k) for k in range(8)])
    assert torch.allclose(whole, each.logsumexp(0) - math.log(8))
    assert each.std(0).min() > 0.01


def test_labels_move_the_samples():
    space, context = Image(4, 4, 1, 2), Label(("a", "b"))
    m, x = model(space, context, patch=2), images(Image(4, 4, 1, 2), 2)
    a, b = (m.given(torch.tensor(k)).log_prob(x[:, None]).nats for k in (0, 1))
    assert not torch.allclose(a, b)
    assert m.given(torch.tensor([0, 1])).sample(3, generator=seeded()).shape == (3, 2, 1, 4, 4)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"patch": 3}, "divisor"), ({"order": "zigzag"}, "zigzag"), ({"scans": 9}, "scans=9"), ({"heads": 3}, "heads"),
     ({"head": "bernoulli"}, "Bernoulli")],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, word):
    with pytest.raises(Unsupported, match=word):
        ImageGpt(ImageGptConfig(**TINY | options), Image(8, 8, 1, 5))
