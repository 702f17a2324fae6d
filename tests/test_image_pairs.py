"""Images given words, labels and other images: scenes and their captions, degraded copies, maps, Bayes' rule."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from sklearn.datasets import load_digits
from torch import Tensor

import pofx
from pofx.core.errors import BadValue, UsageError
from pofx.core.likelihood import Estimate, Exact, LowerBound
from pofx.core.registry import family
from pofx.data import degrade
from pofx.data import scenes as source
from pofx.data.parts import Data, Part
from pofx.data.rows import read_rows
from pofx.data.scenes import COLOURS, PLACES, SIZES, SPACE, Fact, caption, facts
from pofx.evaluate.paths import SCALES, guided
from pofx.evaluate.predict import Prediction, predict
from pofx.families.image_gpt import turned
from pofx.nn.dit import Dit
from pofx.nn.encoders import Encoded, beside, channels_beside, encoder
from pofx.nn.unet import Attention, UNet
from pofx.report.paths import grid
from pofx.spaces import Image, Label


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- scenes -------------------------------------------------------------------------------------------------------


@cache
def scenes() -> Data:
    return pofx.load("scenes", given="text", max_rows=400)


def scans() -> dict[bytes, set[int]]:
    """The digits that each scan of scikit-learn's is (once in a while two scans are equal)."""
    found: dict[bytes, set[int]] = {}
    for image, label in zip(*load_digits(return_X_y=True), strict=True):
        found.setdefault(image.astype(np.uint8).tobytes(), set()).add(int(label))
    return found


def small_scans(part: Part) -> list[tuple[Fact, bytes]]:
    """Every small digit of some scenes by its fact, and the scan [8, 8] of levels 0 to 16 that its ink is."""
    part, found = part.read(), []
    for image, row in zip(part.x, part.c, strict=True):
        for fact in facts(scenes().context.spell(row)):
            top, left = (at + 2 for at in PLACES[fact.place])
            cell = image[:, top : top + 8, left : left + 8].float()
            brightest = max(range(3), key=lambda k: COLOURS[fact.colour][k])
            ink = (cell[brightest] / COLOURS[fact.colour][brightest] * 16).round()
            if fact.size == "small":
                found.append((fact, ink.numpy().astype(np.uint8).tobytes()))
    return found


def test_captions_tell_what_is_there() -> None:
    """Each fact by its pixels, of which nothing here but the palette and the places is the source's own."""
    part, side = scenes().test.read(), max(SIZES.values())
    for image, row in zip(part.x, part.c, strict=True):
        there = {f.place: f for f in facts(scenes().context.spell(row))}
        for place, (top, left) in PLACES.items():
            # neighbours meet at corners of two pixels, which are left aside
            cell = image[:, top + 2 : top + side - 2, left + 2 : left + side - 2].float()
            assert bool(cell.any()) == (place in there)
            if place not in there:
                continue
            fact, strongest = there[place], cell.flatten(1)[:, cell.sum(0).argmax()]
            near = {
                c: float((strongest / strongest.max() - torch.tensor(v) / max(v)).norm()) for c, v in COLOURS.items()
            }
            assert min(near, key=near.__getitem__) == fact.colour
            middle = image[:, top + 2 : top + side - 2, left : left + side].sum(0)
            edge = torch.cat(
                [image[:, top, left + 2 : left + side - 2], image[:, top + side - 1, left + 2 : left + side - 2]]
            )
            assert middle.any()
            assert bool(edge.any()) <= (fact.size == "large")


def test_digits_are_real_and_those_of_test_scenes_unseen() -> None:
    known, data = scans(), scenes()
    parts = [small_scans(p) for p in (data.train, data.valid, data.test)]
    for fact, ink in itertools.chain(*parts):
        assert int(fact.digit) in known[ink]
    train, valid, test = ({ink for _, ink in part} for part in parts)
    assert not train & test
    assert not train & valid
    assert len(test) > 20


def test_scenes_follow_from_the_seed() -> None:
    again, other = (pofx.load("scenes", given="text", max_rows=400, seed=s) for s in (0, 1))
    assert torch.equal(again.test.x, scenes().test.x)
    assert not torch.equal(other.test.x, scenes().test.x)
    assert scenes().space == SPACE


def test_scenes_both_ways_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    captions, alone = pofx.load("scenes", target="text", max_rows=400), pofx.load("scenes", max_rows=400)
    assert (captions.space, captions.context) == (scenes().context, SPACE)
    assert torch.equal(captions.test.read().x, scenes().test.read().c)
    assert torch.equal(captions.test.c, scenes().test.x)
    assert alone.context is None
    assert torch.equal(alone.test.x, scenes().test.x)
    monkeypatch.setattr(source, "ROWS", 30)
    words = replace(scenes().context, length=120)
    new = read_rows(SPACE, words, "scenes", options={"given": ["text"]}).read()
    again = read_rows(words, SPACE, "scenes", options={"target": "text"}).read()
    assert len(new) == 30
    assert torch.equal(new.x, again.c)
    assert torch.equal(new.c, again.x)
    with pytest.raises(UsageError, match="'words' lies beside"):
        pofx.load("scenes", given="words")


def test_facts_and_captions_are_inverse() -> None:
    every = [Fact(s, c, d, p) for s in SIZES for c in COLOURS for d in "07" for p in PLACES]
    for i, fact in enumerate(every):
        some = {f.place: f for f in (fact, every[(7 * i + 3) % len(every)], every[(11 * i + 5) % len(every)])}
        text = caption(list(some.values()))
        assert set(facts(text)) == set(some.values())
    for wrong in ("", "a red 3 at the top left", "a large red 3 at the top left.", "a large red 33 at the top left"):
        with pytest.raises(BadValue, match="no caption"):
            facts(wrong)


# -- degraded copies ----------------------------------------------------------------------------------------------


def colour(n: int = 40) -> Data:
    x = torch.randint(256, (n, 3, 8, 12), generator=gen(), dtype=torch.uint8)
    parts = {k: Part(x[i::3], rows=torch.arange(n)[i::3]) for i, k in enumerate(("train", "valid", "test"))}
    return Data("noise", "<memory>", Image(8, 12, 3, 256), **parts)


def test_grey_is_the_luma_of_pillow() -> None:
    data = degrade.grey(colour())
    assert data.context == Image(8, 12, 1, 256)
    for x, c in zip(data.test.x, data.test.c, strict=True):
        luma = np.asarray(Picture.fromarray(x.permute(1, 2, 0).numpy()).convert("L")).astype(int)
        assert abs(luma - c[0].numpy()).max() <= 1  # which rounds down


def test_small_is_the_mean_of_squares() -> None:
    data = degrade.small(colour(), 4)
    assert data.context == Image(2, 3, 3, 256)
    assert np.array_equal(data.test.c, np.rint(data.test.x.numpy().reshape(-1, 3, 2, 4, 3, 4).mean((3, 5))))


def test_a_hole_is_told_and_the_rest_is_kept() -> None:
    data = degrade.masked(colour(90), 0.5, seed=3)
    x, c = data.train.x, data.train.c
    assert data.context == Image(8, 12, 4, 256)
    whole = c[:, 3:] == 255
    assert torch.equal(c[:, :3], torch.where(whole, x, 0))
    for row in ~whole[:, 0]:
        assert int(row.sum()) == 4 * 6  # one rectangle of half of each side
        assert (int(row.any(1).sum()), int(row.any(0).sum())) == (4, 6)
    assert len({tuple(row.flatten().tolist()) for row in whole}) > 10
    some = dataclasses.replace(colour(90), train=colour(90).train[torch.tensor([4, 2])])
    assert torch.equal(degrade.masked(some, 0.5, seed=3).train.c, c[[4, 2]])  # whatever the rows beside


def test_noise_has_its_size() -> None:
    grey = torch.full((60, 1, 16, 16), 128, dtype=torch.uint8)
    data = degrade.noisy(Data("flat", "<memory>", Image(16, 16), *[Part(grey)] * 3), 0.1, seed=1)
    off = data.test.c.double() - 128
    assert abs(float(off.std()) / 25.5 - 1) < 4 / math.sqrt(2 * off.numel())
    assert abs(float(off.mean())) < 4 * 25.5 / math.sqrt(off.numel())
    assert not torch.equal(data.test.c[0], data.test.c[1])


@pytest.mark.parametrize(
    ("of", "wrong"),
    [
        (lambda d: degrade.grey(degrade.grey(pofx.load("scenes", max_rows=30))), None),
        (lambda d: degrade.grey(pofx.load("digits")), "1 channels"),
        (lambda d: degrade.small(d, 5), "not made of squares"),
        (lambda d: degrade.small(d, 1), "not made of squares"),
        (lambda d: degrade.masked(d, 0.0), "A hole of 0"),
        (lambda d: degrade.masked(d, 1.0), "A hole of 1"),
        (lambda d: degrade.noisy(d, 0.0), "changes nothing"),
        (lambda d: degrade.noisy(pofx.load("iris")), "no images"),
    ],
)
def test_what_cannot_be_degraded_is_named(of, wrong) -> None:
    if wrong is None:
        assert of(colour()).context.channels == 1
        return
    with pytest.raises(UsageError, match=wrong):
        of(colour())


# -- maps ---------------------------------------------------------------------------------------------------------


def test_no_pixel_of_a_larger_map_is_lost() -> None:
    map = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    assert torch.equal(beside(map, (8, 12)), map)
    found = beside(map, (4, 6))
    assert found.shape[1] == channels_beside((3, 8, 12), (4, 6)) == 12
    for i, j in itertools.product(range(4), range(6)):  # each cell holds what lies at its place
        square = map[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1)
        assert torch.equal(found[:, :, i, j].sort(1).values, square.sort(1).values)
    plane = torch.arange(6.0)[:, None] + 10 * torch.arange(4.0)
    for size in ((12, 8), (9, 6), (5, 3)):
        assert beside(plane[None, None], size).shape == (1, channels_beside((1, 6, 4), size), *size)
        assert (beside(plane[None, None], size).diff(dim=2) >= -1e-5).all()  # neither turned nor mirrored
        assert (beside(plane[None, None], size).diff(dim=3) >= -1e-5).all()


@pytest.mark.parametrize("side", [8, 16, 4])
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_nets_see_a_map_at_its_own_place(kind: str, side: int) -> None:
    """Where an output pixel's gradient by the map is largest, there the pixel is."""
    shown = channels_beside((1, side, side), (8, 8))
    net: torch.nn.Module = UNet(2, 16, 1, 1, shown=shown) if kind == "unet" else Dit((2, 8, 8), 32, 2, 2, shown=shown)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=gen()))
    map, z = (
        torch.randn(1, 1, side, side, generator=gen(), requires_grad=True),
        torch.randn(1, 2, 8, 8, generator=gen()),
    )
    y = net(z, torch.zeros(1), Encoded(torch.zeros(1, 0), map=map))
    for i, j in ((0, 0), (2, 5), (7, 3)):
        (grad,) = torch.autograd.grad(y[0, :, i, j].square().sum(), map, retain_graph=True)
        largest = np.unravel_index(int(grad.abs().argmax()), (side, side))
        assert np.abs((np.array(largest) + 0.5) / side - (np.array([i, j]) + 0.5) / 8).max() <= 2.5 / 8


def test_what_is_asked_of_words_depends_on_the_place() -> None:
    """On a map that is the same everywhere, attention alone tells places apart, and only where there are words."""
    layer = Attention(16, memory=8)
    for p in layer.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=gen())
    x, words = torch.ones(1, 16, 3, 4), (torch.randn(1, 5, 8, generator=gen()), None)
    assert torch.allclose(*layer(x)[..., :2].unbind(3), atol=1e-6)
    rows = layer(x, words).flatten(2)[0].T
    assert torch.pdist(rows.detach()).min() > 1e-4


def test_the_null_map_stands_for_no_image() -> None:
    enc = encoder(Image(8, 8, 3, 256), 16)
    enc.learn_null()
    c = torch.randint(256, (5, 3, 8, 8), generator=gen(), dtype=torch.uint8)
    dropped = torch.tensor([True, False, True, False, False])
    e, null = enc(c, dropped), enc.null(5)
    assert torch.equal(e.map[~dropped], c[~dropped].float() * (2 / 255) - 1)
    assert torch.equal(e.map[dropped], null.map[dropped])
    assert (null.map == null.map[:, :, :1, :1]).all()  # one colour, which is learned
    e.map.sum().backward()
    assert enc.absent.grad[-3:].eq(2 * 64).all()


@pytest.mark.parametrize("name", ["flow-matching", "vdm", "image-gpt"])
def test_pixels_of_a_context_change_the_likelihood_and_nulls_do_not(name: str) -> None:
    """Encoders alone would leave 4 x 4 cells; the map of a row takes no part in what is given to another."""
    cls, options = family(name), {"image-gpt": {"width": 32, "layers": 1, "n_heads": 2}}
    model = cls(
        cls.Config(context_dropout=0.5, **options.get(name, {"channels": 8, "blocks": 1, "draws": 2})),
        Image(8, 8, 1, 4),
        Image(8, 8, 1, 4),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=gen()))
    x, c = (torch.randint(4, (3, 1, 8, 8), generator=gen(k), dtype=torch.uint8) for k in (0, 1))
    other = c.clone()
    other[0, 0, 5, 5] = (c[0, 0, 5, 5] + 2) % 4
    a, b = (model.given(some).log_prob(x, generator=gen()).nats for some in (c, other))
    assert (a[0] - b[0]).abs() > 1e-4
    assert torch.equal(a[1:], b[1:])
    without = [model.given(null=True).log_prob(x, generator=gen()).nats for _ in range(2)]
    assert torch.equal(*without)
    assert model.given(c).encoded()[0].map.shape == (3, 1, 8, 8)


@pytest.mark.parametrize("options", [{}, {"scans": 8}, {"scans": 4, "orders": 2}, {"patch": 1, "order": "spiral"}])
def test_image_gpt_sees_the_patch_at_the_place_of_each_step(options) -> None:
    """With the mean of the patch as its convolution, what a step sees of x given x is the mean of its own values."""
    space, cls = Image(8, 8, 1, 16), family("image-gpt")
    config = cls.Config(width=32, layers=1, n_heads=2, predict="no", head="logistic", **options)
    model = cls(config, space, space)
    side = model.side
    weight = torch.zeros_like(model.near.weight)
    weight[:, :, side : 2 * side, side : 2 * side] = 1 / side**2
    model.near.weight.data, model.near.bias.data = weight, torch.zeros(32)
    x = torch.randint(16, (2 * model.members, 1, 8, 8), generator=gen(), dtype=torch.uint8)
    members = torch.arange(2 * model.members) % model.members
    seen = model._beside(model.encode_context(x), members, model.near)
    for row, member in enumerate(members.tolist()):
        order, scan = divmod(member, config.scans)
        u = model.codec.encode(turned(x[row : row + 1], scan))[0, model.ways[order]].float()
        mean = u.reshape(model.steps, -1).mean(1) * (2 / 15) - 1
        assert torch.allclose(seen[row], mean[:, None].expand(-1, 32), atol=1e-5)


# -- guidance and Bayes' rule -----------------------------------------------------------------------------------------


def test_guided_draws_of_words_and_images() -> None:
    cls, texts = family("flow-matching"), scenes().test.read()
    small = {"context_dropout": 0.1, "net": "mlp", "hidden": 16, "blocks": 1, "draws": 2}
    for rows, context in ((texts, scenes().context), (degrade.small(scenes(), 4).test, Image(8, 8, 3, 256))):
        model = cls(cls.Config(**small), SPACE, context)
        found, drawn = guided(model, rows[:3], gen, 1e-6, 10.0)
        assert found["names"] == ([context.spell(c) for c in texts.c[:3]] if context.alphabet else [])
        assert torch.equal(drawn.x[:3], rows.x[:3])
        assert len(drawn.x) == len(drawn.c) == 3 * (1 + len(SCALES))
        for nats, p in (("given", model.given(rows.c[:3])), ("none", model.given(null=True))):
            assert torch.allclose(torch.tensor(found[nats]).double(), p.log_prob(rows.x[:3], generator=gen()).nats)
        shown = grid(
            SPACE, context, "a family", json.loads(json.dumps(found)), {"x": drawn.x.numpy(), "c": drawn.c.numpy()}
        )
        first = [] if context.alphabet else ["given"]
        assert [label for label, _ in shown.strips] == [*first, "truth", "any", "as trained", "scale 2", "scale 4"]
        assert shown.contexts == found["names"]
        assert [a for a, _ in shown.nats] == [f"≥ {v:.0f}" for v in found["given"]]


def binary() -> tuple[Image, Tensor]:
    """Images of two pixels by two, and all there are."""
    return Image(2, 2, 1, 2), torch.tensor(list(itertools.product([0, 1], repeat=4)), dtype=torch.uint8).view(
        16, 1, 2, 2
    )


def known_model(name: str, **options):
    cls, (space, _) = family(name), binary()
    model = cls(cls.Config(**options), space, Label(("a", "b", "c")))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=gen()))
    return model.eval()


def test_bayes_rule_by_enumeration() -> None:
    """p(y | x) and p(x) from the table of p(x, y), each of whose columns sums to the frequency of its class."""
    model, (_, every), counts = known_model("image-gpt", width=32, layers=1, n_heads=2), binary(), (5.0, 2.0, 1.0)
    found = predict(model, every, counts=counts)
    joint = torch.stack([model.given(torch.tensor(k)).log_prob(every).nats.exp() * counts[k] / 8 for k in range(3)], 1)
    assert torch.allclose(joint.sum(0), torch.tensor(counts).double() / 8, atol=1e-6)
    assert torch.allclose(found.probabilities, joint / joint.sum(1, keepdim=True), atol=1e-7)
    assert found.kind is type(found.evidence) is Exact
    assert torch.allclose(found.evidence.nats.exp(), joint.sum(1), atol=1e-7)
    assert found.evidence.nats.exp().sum() == pytest.approx(1.0, abs=1e-6)


def test_bayes_rule_of_bounds_is_an_estimate_and_says_so() -> None:
    model, (_, every) = known_model("vae", hidden=16, net="mlp"), binary()
    found = predict(model, every, counts=(1, 1, 2), generator=gen())
    assert found.kind is Estimate
    assert "a lower bound" in found.caveat
    lik = [model.given(torch.tensor(k)).log_prob(every, generator=gen()) for k in range(3)]
    assert all(type(each) is LowerBound for each in lik)
    prior = torch.tensor([0.25, 0.25, 0.5]).double().log()
    joint = torch.stack([each.nats for each in lik], 1) + prior
    assert torch.allclose(found.evidence.nats, joint.logsumexp(1))
    assert type(found.evidence) is Estimate  # the bound's noise is no longer zero in the mean
    assert (found.evidence.mc_se <= torch.stack([each.mc_se for each in lik], 1).amax(1) + 1e-12).all()
    assert predict(known_model("image-gpt", width=32, layers=1, n_heads=2), every, counts=(1, 1, 1)).caveat == ""


def test_calibration_is_the_mean_gap_of_bins() -> None:
    p = torch.tensor([[0.95, 0.05], [0.05, 0.95], [0.92, 0.08], [0.62, 0.38], [0.28, 0.72], [0.31, 0.69]])
    label = torch.tensor([0, 1, 1, 0, 1, 0])
    found = Prediction(("a", "b"), p.double().log(), Exact).calibration(label)
    # 0.9 to 1: two of three right; 0.6 to 0.7: one of two; 0.7 to 0.8: right
    gaps = [(3, (0.95 + 0.95 + 0.92) / 3 - 2 / 3), (2, (0.62 + 0.69) / 2 - 0.5), (1, 1 - 0.72)]
    assert found.error == pytest.approx(sum(n * g for n, g in gaps) / 6, abs=1e-6)
    assert [(r.n, r.right) for r in found.rows] == [(2, 0.5), (1, 1.0), (3, pytest.approx(2 / 3))]
    rng = np.random.default_rng(0)
    p1 = torch.from_numpy(rng.uniform(size=20_000))
    drawn = torch.from_numpy((rng.uniform(size=20_000) < p1.numpy()).astype(np.int64))
    assert Prediction(("a", "b"), torch.stack([1 - p1, p1], 1).log(), Exact).calibration(drawn).error < 0.015
