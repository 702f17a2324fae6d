"""Joint models of pairs: one net for p(a, b), p(a), p(b), p(a | b) and p(b | a), in either order."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

import pofx
from pofx.cli import main
from pofx.core.errors import Unsupported, UsageError, WrongShape
from pofx.core.likelihood import Exact, LowerBound
from pofx.core.requests import ByChainRule, VariationalBound
from pofx.data.joint import apart, joined
from pofx.data.parts import Data, Part
from pofx.data.write import write_rows
from pofx.families.joint_gpt import JointGpt, JointGptConfig
from pofx.paths.head import DiffusionHead
from pofx.spaces import Audio, Category, Codes, Image, Integer, Label, Pair, Real, Reals, Sequence, Table, Text
from pofx.testing.oracles import SmallPairs
from pofx.testing.subject import agree, count, generator, index_of

SMALL = {"width": 16, "layers": 1, "n_heads": 2, "inner_width": 16}
SOURCE = SmallPairs()
PAIRS = SOURCE.space
TEXTS, IMAGES = PAIRS.split(SOURCE.states.reshape(15, 16, 7))
TEXTS, IMAGES = TEXTS[:, 0], IMAGES[0]


def small_data() -> Data:
    train, valid, test = (Part(SOURCE.sample(n, generator(n))) for n in (1000, 50, 200))
    return Data("pairs", "memory", PAIRS, train, valid, test)


@pytest.fixture(scope="module")
def model():
    recipe = {"batch": 64}
    return pofx.fit(small_data(), "joint-gpt", seed=0, steps=120, checks=1, options=SMALL, recipe=recipe).model


@pytest.fixture(scope="module")
def bounded():
    options = SMALL | {"image_head": "diffusion", "draws": 64, "sample_steps": 8}
    return pofx.fit(small_data(), "joint-gpt", seed=0, steps=30, checks=1, options=options, recipe={"batch": 64}).model


def each_given(model, part):
    """log p of every value of one part given every value of the other [15, 16]."""
    own, other = (TEXTS, IMAGES) if part == "a" else (IMAGES, TEXTS)
    nats = model.part_model(part, given=True).given(other).log_prob(own[:, None].expand(-1, len(other), *own.shape[1:]))
    assert isinstance(nats, Exact)
    return nats.nats if part == "a" else nats.nats.T


# -- one net, five distributions ---------------------------------------------------------------------------


def test_all_of_them_sum_to_one(model):
    alone = [model.part_model(part).log_prob(own).nats for part, own in (("a", TEXTS), ("b", IMAGES))]
    assert [float(p.exp().sum()) for p in alone] == pytest.approx([1, 1], abs=1e-5)
    assert torch.allclose(each_given(model, "a").exp().sum(0), torch.ones(16, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(each_given(model, "b").exp().sum(1), torch.ones(15, dtype=torch.float64), atol=1e-5)
    for request in (None, ByChainRule("a"), ByChainRule("b")):
        assert float(model.log_prob(SOURCE.states, request=request).nats.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_the_joint_is_the_product_in_either_order_and_the_model_tosses_which(model):
    orders = [model.log_prob(SOURCE.states, request=ByChainRule(part)).nats.reshape(15, 16) for part in ("a", "b")]
    product = model.part_model("a").log_prob(TEXTS).nats[:, None] + each_given(model, "b")
    assert torch.allclose(orders[0], product, atol=1e-5)
    assert torch.allclose(orders[1], model.part_model("b").log_prob(IMAGES).nats + each_given(model, "a"), atol=1e-5)
    mixed = model.log_prob(SOURCE.states)
    assert type(mixed) is Exact
    assert torch.allclose(mixed.nats.exp().reshape(15, 16), (orders[0].exp() + orders[1].exp()) / 2, atol=1e-9)
    assert not torch.allclose(orders[0], orders[1], atol=1e-3)  # nothing but the data makes them agree


def test_training_brings_the_two_orders_together(model):
    """KL from one order to the other, over all pairs: less than to what either would be without the dependence."""
    ab, ba = (model.log_prob(SOURCE.states, request=ByChainRule(part)).nats for part in ("a", "b"))
    table = ab.exp().reshape(15, 16)
    apart = (table.sum(1, keepdim=True) * table.sum(0)).log().flatten()
    assert float((ab.exp() * (ab - ba)).sum()) < 0.5 * float((ab.exp() * (ab - apart)).sum())


@pytest.mark.parametrize("part", ["a", "b"])
def test_draws_of_a_part_are_from_its_density(model, part):
    own, other, rest = (
        (TEXTS, IMAGES, each_given(model, "a").T) if part == "a" else (IMAGES, TEXTS, each_given(model, "b"))
    )
    alone = model.part_model(part)
    drawn = alone.sample(3000, generator=generator(1))
    expected = 3000 * alone.log_prob(own).nats.exp()
    agree(count(index_of(own, drawn), len(own)), expected, torch.zeros(len(own)), "draws")
    drawn = model.part_model(part, given=True).given(other[5]).sample(3000, generator=generator(2))
    agree(count(index_of(own, drawn), len(own)), 3000 * rest[5].exp(), torch.zeros(len(own)), "draws given")


def test_a_number_depends_on_no_other_row_and_on_no_padding(model):
    label = model.part_model("b", given=True)
    short = Text("ab", True, 3).parse(["a"])
    one = label.given(short).log_prob(IMAGES[:1]).nats
    padded = torch.tensor([[0, -1, -1], [0, 1, 1]])
    many = label.given(padded).log_prob(IMAGES[[0, 3]]).nats
    assert float(one[0]) == pytest.approx(float(many[0]), abs=1e-5)
    beyond = torch.tensor([[0, -1, -1, -1, -1]])  # fill beyond the longest
    assert torch.allclose(label.given(beyond).log_prob(IMAGES[:1]).nats, one, atol=1e-6)


def test_a_text_beyond_the_longest_is_refused_by_name(model):
    long = torch.tensor([[0, 1, 1, 0]])
    with pytest.raises(WrongShape, match="4 long.*up to 3 long"):
        model.part_model("a").log_prob(long)
    with pytest.raises(WrongShape, match="4 long.*up to 3 long"):
        PAIRS.join(long, IMAGES[:1])


OTHERS = {
    "text, text": (Text("ab", True, 3), Text("", True, 2)),
    "label, table": (Label(("x", "y", "z")), Table((Real("r"), Integer("n", 0, 5), Category("c", ("u", "v"), True)))),
    "sequence, reals": (Sequence(Table((Real("p"), Real("q"))), True, 4), Reals((2, 2))),
    "sound, codes": (Audio(100, 8, "linear", True, 5), Codes((2, 2), 3)),
    "grey image, colour": (Image(4, 4, 1, 256), Image(2, 2, 3, 4)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_two_spaces(name):
    """Nothing is trained: what is drawn is of the space, and every chain rule holds."""
    space = Pair(*OTHERS[name])
    torch.manual_seed(0)
    model = JointGpt(JointGptConfig(width=16, layers=1, n_heads=2, inner_width=16), space)
    torch.nn.init.normal_(model.net.layers[0].out.weight, std=0.5)  # attention starts as nothing
    x = model.sample(6, generator=generator(0))
    space.check(x)
    a, b = space.split(x)
    with torch.no_grad():
        for first, one, then, other in (("a", a, "b", b), ("b", b, "a", a)):
            alone = model.part_model(first).log_prob(one).nats
            rest = model.part_model(then, given=True).given(one).log_prob(other).nats
            both = model.log_prob(x, request=ByChainRule(first)).nats
            assert torch.allclose(both, alone + rest, atol=1e-4), name
    space.parts[1].check(model.part_model("b", given=True).given(a).sample(1)[0])


# -- images by diffusion -------------------------------------------------------------------------------------


def test_with_a_diffusion_head_texts_stay_exact_and_images_have_a_bound(bounded):
    text, image = bounded.part_model("a"), bounded.part_model("b", given=True)
    assert float(text.log_prob(TEXTS).nats.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(each_given(bounded, "a").exp().sum(0), torch.ones(16, dtype=torch.float64), atol=1e-5)
    given = image.given(TEXTS[3]).log_prob(IMAGES)
    assert type(given) is LowerBound
    assert float(given.nats.exp().sum()) < 1
    both = bounded.log_prob(SOURCE.states)
    assert type(both) is LowerBound
    assert float(both.nats.exp().sum()) < 1
    PAIRS.check(bounded.sample(20, generator=generator(0)))
    with pytest.raises(UsageError, match="VariationalBound"):
        bounded.log_prob(SOURCE.states, request=ByChainRule("a"))


def test_the_bound_of_a_pair_is_the_mean_of_those_of_its_orders(bounded):
    rows = torch.tensor([5, 77, 200])
    x = SOURCE.states[rows]
    a, b = PAIRS.split(x)
    request = VariationalBound(draws=100)
    texts = [bounded.part_model("a").log_prob(a).nats, bounded.part_model("a", given=True).given(b).log_prob(a).nats]
    images = [bounded.part_model("b", given=True).given(a), bounded.part_model("b").given()]
    parts = [p.log_prob(b, request=request) for p in images]
    expected = (sum(texts) + sum(p.nats for p in parts)) / 2
    got = bounded.log_prob(x, request=request)
    error = sum(p.mc_se.square() for p in (*parts, got)).sqrt()
    assert ((got.nats - expected).abs() < 5 * error).all()


def test_an_untrained_diffusion_head_is_the_gaussian_of_the_steps():
    """Its bound is then E log N(u + v) over the cell, which quadrature knows."""
    head = DiffusionHead(1, 4, 8, hidden=8, blocks=1, steps=5)
    levels = torch.tensor([[0.0], [1.0], [1.0], [3.0]])
    head.prepare(levels, 0)
    v = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 - 0.5
    mean, variance = float(levels.mean()), float(levels.double().var(unbiased=False)) + 1 / 12
    expected = [
        float((-0.5 * ((u + v - mean) ** 2 / variance + math.log(2 * math.pi * variance))).mean()) for u in range(4)
    ]

    class Middle:
        """Noise in the middle of cells, in turn."""

        def rand(self, *shape):
            return (v + 0.5).reshape(2000, *shape).float()

        def randn(self, *shape):
            return torch.zeros(2000, *shape)

    at = torch.rand(2000, generator=generator(0), dtype=torch.float64)
    for u in range(4):
        found = head.bound(torch.zeros(2000, 1, 8), torch.full((2000, 1, 1), float(u)), at, Middle())
        assert float(found.detach().mean()) == pytest.approx(expected[u], abs=1e-3)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "context", "options", "words"),
    [
        (Text("ab"), None, {}, "--joint"),
        (PAIRS, Label(("x", "y")), {}, "beside the pair"),
        (Pair(Text("ab", False, 8), Label(("x", "y"))), None, {}, "no end of their own"),
        (PAIRS, None, {"patch": 3}, "patches of 3"),
        (Pair(Text("ab", True, 8), Label(("x", "y"))), None, {"image_head": "diffusion"}, "with an image"),
        (Pair(PAIRS, Label(("x", "y"))), None, {}, "not made of steps"),
    ],
)
def test_what_it_cannot_serve_is_told(space, context, options, words):
    with pytest.raises(Unsupported, match=words):
        JointGpt(JointGptConfig(**options), space, context)


def test_other_models_have_no_parts():
    digits = pofx.load("digits")
    with pytest.raises(Unsupported, match="no parts of pairs"):
        pofx.fit(digits, "independent").model.part_model("a")


# -- data and commands ---------------------------------------------------------------------------------------


def test_pairs_of_data_come_apart_again():
    data = pofx.load("digits", given="label")
    both = joined(data)
    assert both.space == Pair(data.space, data.context)
    assert both.context is None
    back = apart(both.space, both.test, "b", given=True)
    assert torch.equal(back.x, data.test.c)
    assert torch.equal(back.c, data.test.x)
    assert apart(both.space, both.test, "a").c is None
    assert pofx.load("digits", given="label", joint=True).digest == both.digest
    with pytest.raises(UsageError, match="Nothing is given"):
        pofx.load("digits", joint=True)
    with pytest.raises(UsageError, match="Nothing is given"):
        joined(pofx.load("digits"))


def test_a_longer_text_of_another_part_has_room():
    text = Text("ab", True, 2)
    rows = [Part(torch.zeros(3, dtype=torch.int64), text.parse(["a", "ab", s])) for s in ("a", "b", "aaba")]
    both = joined(Data("texts", "memory", Label(("x",)), *rows, context=text))
    assert both.space.parts[1].length == 4
    assert both.test.x[2].tolist() == [0, 0, 0, 1, 0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("joint") / "run"
    options = [x for k, v in SMALL.items() for x in (f"--options.{k.replace('_', '-')}", str(v))]
    assert main(["fit", "digits", "joint-gpt", "--given", "label", "--joint", "--steps", "2", "--quiet",
                 "--out", str(place), *options]) == 0  # fmt: skip
    return place


def told(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_log_prob_of_the_parts_adds_up(run, capsys):
    def nats(*flags):
        return told(capsys, "log-prob", str(run), *flags)["nats"]

    for first, then in (("a", "b-given-a"), ("b", "a-given-b")):
        both = nats("--estimator", "chain-rule", "--first", first)
        assert both == pytest.approx(nats("--part", first) + nats("--part", then), abs=1e-3)


def test_sample_draws_the_part_that_is_not_given(run, capsys, tmp_path):
    told(capsys, "sample", str(run), "2", "--given", "3", "--out", str(tmp_path / "x.npz"))
    import numpy as np

    assert np.load(tmp_path / "x.npz")["x"].shape[:3] == (2, 8, 8)
    assert main(["sample", str(run), "3", "--part", "b"]) == 0
    assert len(capsys.readouterr().out.split()) == 4  # a head, three labels
    assert main(["sample", str(run), "2"]) == 0
    assert capsys.readouterr().out.count(";") == 2
    assert main(["sample", str(run), "2", "--given", "thirteen"]) != 0
    assert "neither part" in capsys.readouterr().err


def test_a_part_is_judged_given_the_other(run, capsys):
    """By the likelihoods that log-prob tells of the same pairs."""
    for part, metric in (("b-given-a", "accuracy"), ("a-given-b", "told from real")):
        found = told(capsys, "judge", str(run), "--part", part, "--pairs", "10000", "--draws", "1")
        assert metric in found["metrics"]
        assert found["likelihood"]["nats"] == pytest.approx(told(capsys, "log-prob", str(run), "--part", part)["nats"])
    assert main(["judge", str(run)]) != 0
    assert "--part a-given-b" in capsys.readouterr().err
    assert main(["judge", str(run), "--part", "a-given-b", "--pairs", "0"]) != 0
    assert "Give --pairs of 1 or more" in capsys.readouterr().err


def test_new_rows_are_pairs_too(run, tmp_path, capsys):
    """Images in folders by class."""
    data = pofx.load("digits", given="label")
    few = data.test[:5]
    write_rows(data.space, few.x, tmp_path / "new", data.context, few.c)
    found = told(capsys, "log-prob", str(run), str(tmp_path / "new"))
    assert found["rows"] == 5
    model = pofx.train.run.read_run(run).model
    assert found["nats"] == pytest.approx(float(model.log_prob(joined(data).test.x[:5]).nats.mean()), abs=1e-4)


def test_a_run_of_texts_is_drawn_given_an_image_in_python(tmp_path):
    """The text part is drawn whole, not streamed, also where a single one is asked for."""
    data = dataclasses.replace(small_data(), name="pairs")
    fitted = pofx.fit(data, "joint-gpt", steps=2, options=SMALL, out=tmp_path / "run")
    again = pofx.train.run.read_run(tmp_path / "run").model
    x = SOURCE.states[:9]
    assert torch.equal(again.log_prob(x).nats, fitted.model.log_prob(x).nats)
    assert main(["sample", str(tmp_path / "run"), "1", "--part", "a"]) == 0
    assert main(["sample", str(tmp_path / "run"), "2", "--given", "ab", "--out", str(tmp_path / "x.npz")]) == 0
