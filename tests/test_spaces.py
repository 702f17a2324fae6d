"""Spaces: what each knows of itself, that nothing else asks which one it is, and one that pofx does not know."""

import ast
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import pofx
from pofx.core import registry
from pofx.core.errors import BadValue, UsageError, WrongShape
from pofx.core.measure import Measure
from pofx.core.space import Space, from_json, join, register, take
from pofx.data.parts import Data, Part
from pofx.data.rows import read_rows
from pofx.data.write import check_place, write_rows
from pofx.nn.sites import heads_for
from pofx.report.build import build
from pofx.spaces import Audio, Category, Codes, Image, Integer, Label, Pair, Real, Reals, Sequence, Table, Text
from pofx.testing.conformance import check_family
from pofx.testing.oracles import Case
from pofx.train.run import read_run
from third_party_angles import Angles, VonMises

ROOT = Path(pofx.__file__).parent
MIXED = Table((Real("a"), Integer("b", 0, 5, True), Category("c", ("x", "y"), True)))
CLASSES = Label(("cat", "dog"))
NAN = math.nan

# space, its measure, one datum, one that it refuses, and how a person reads the datum
CASES = [
    (MIXED, "lebesgue × counting^2", [0.5, NAN, 1.0], [NAN, 1.0, 0.0], "0.5, , y"),
    (Image(1, 2, 1, 4), "counting^2", [[[0, 3]]], [[[0, 4]]], "0, 3"),
    (CLASSES, "counting", 1, 2, "dog"),
    (Reals((2, 2)), "lebesgue^4", [[0.5, 1.0], [2.0, -3.0]], [[0.5, 1.0], [NAN, 0.0]], "0.5, 1, 2, -3"),
    (Codes((2, 1), 1000), "counting^2", [[999], [0]], [[1000], [0]], "999, 0"),
    (Pair(CLASSES, Reals((2,))), "counting × lebesgue^2", [1.0, 0.5, -2.0], [0.5, 0.5, -2.0], "dog; 0.5, -2"),
    (Text("abc"), "counting", [0, 2, -1], [0, -1, 2], "ac"),
    (Audio(8000, 4, length=3), "counting", [0, 3, -1], [0, 4, -1], "0, 3, -1"),
    (Sequence(MIXED), "lebesgue* × counting*^2", [[0.5, 2.0, 0.0]], [[0.5, 2.5, 0.0]], "0.5, 2, x"),
    (Angles(2), "lebesgue^2", [0.0, -math.pi / 2], [0.0, 4.0], "0°, -90°"),
]  # fmt: skip
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name)


@EACH
def test_a_space_knows_itself(case):
    space, measure, datum, other, spelt = case
    assert from_json(json.loads(json.dumps(space.to_json()))) == space
    assert str(space.measure) == measure
    x = torch.tensor(datum, dtype=space.dtype)
    space.check(x[None])
    space.check(x)
    assert space.check_draws(x[None]) is None
    assert space.spell(x) == spelt
    with pytest.raises(BadValue):
        space.check(torch.tensor(other, dtype=space.dtype)[None])
    with pytest.raises(WrongShape):
        space.check(x[None].to(torch.float16))
    if space.event_shape:
        with pytest.raises(WrongShape):
            space.check(x.flatten()[0])
    assert torch.equal(take(space, np.array(datum, np.float64)).nan_to_num(9), x.nan_to_num(9))
    if not space.dtype.is_floating_point:
        with pytest.raises(BadValue, match="would change"):
            take(space, x + 0.5)


@EACH
def test_what_is_cached_is_no_part_of_a_space(case):
    space = case[0]
    assert space.columns == space.columns
    space.units(torch.tensor(case[2], dtype=space.dtype)[None])
    assert from_json(space.to_json()) == space
    assert hash(from_json(space.to_json())) == hash(space)


def test_units_are_what_a_rate_is_told_per():
    found = {space.name: space.units(torch.tensor(x, dtype=space.dtype)[None]).item() for space, _, x, *_ in CASES}
    assert found == {
        "table": 3, "image": 2, "label": 1, "reals": 4, "codes": 2, "pair": 3, "text": 2, "audio": 2, "sequence": 1,
        "angles": 2,
    }  # fmt: skip


@pytest.mark.parametrize("space", [Reals((2, 3)), Codes((2, 3), 5), CLASSES, Image(2, 2), MIXED], ids=str)
def test_data_of_one_size_are_one_step(space):
    assert space.lengths(torch.zeros(4, 5, *space.event_shape)).tolist() == [[1] * 5] * 4
    assert (space.length, space.has_eos, space.fill) == (1, False, None)


def test_columns_name_the_numbers_of_a_datum_in_their_order():
    assert [c.name for c in Reals((2, 2)).columns] == ["x0,0", "x0,1", "x1,0", "x1,1"]
    assert [len(c.values) for c in Codes((3,), 300).columns] == [300] * 3
    assert [c.name for c in Pair(CLASSES, Reals((1,))).columns] == ["a.label", "b.x0"]
    assert Pair(CLASSES, Image(2, 2)).columns == ()  # an image has pixels, not columns


def test_a_pair_splits_into_its_parts():
    pair = Pair(Image(1, 2, 1, 4), MIXED)
    a = torch.tensor([[[[0, 3]]], [[[1, 2]]]], dtype=torch.uint8)
    b = torch.tensor([[0.5, NAN, 1.0], [1.0, 2.0, NAN]], dtype=torch.float64)
    x = pair.join(a, b)
    pair.check(x)
    back = pair.split(x)
    assert torch.equal(back[0], a)
    assert back[0].dtype == torch.uint8
    assert torch.equal(back[1].nan_to_num(9), b.nan_to_num(9))
    assert pair.measure == Measure((("counting", 2), ("lebesgue", 1), ("counting", 2)))
    for wrong, words in (([0.5, 0, 0, 0, 0], "whole"), ([4, 0, 0, 0, 0], "level 4"), ([256, 0, 0, 0, 0], "whole")):
        with pytest.raises(BadValue, match=words):
            pair.check(torch.tensor([wrong], dtype=torch.float64))
    texts = Pair(CLASSES, Text("ab", True, 3))
    assert texts.join(torch.tensor([1, 0]), torch.tensor([[0], [-1]])).tolist() == [[1, 0, -1, -1], [0, -1, -1, -1]]
    with pytest.raises(BadValue, match="goes on after its end"):
        texts.check(torch.tensor([[1, -1, 0, -1]], dtype=torch.float64))
    with pytest.raises(WrongShape, match="4 long"):
        texts.join(torch.tensor([1]), torch.zeros(1, 4, dtype=torch.int64))


def test_labels_and_texts_have_spellings():
    assert take(CLASSES, ["dog", "cat"]).tolist() == [1, 0]
    assert take(Text("ab"), "ba").tolist() == [1, 0]
    assert take(Pair(CLASSES, Reals((1,))), {"a.label": "dog", "b.x0": "0.5"}).tolist() == [1.0, 0.5]
    with pytest.raises(BadValue, match="no class 'cow'"):
        take(CLASSES, ["cow"])


def test_shorter_batches_are_filled_up():
    assert join(Text("ab"), [torch.tensor([[0, 1]]), torch.tensor([[1]])]).tolist() == [[0, 1], [1, -1]]
    assert join(Codes((1,), 2), [torch.tensor([[0]]), torch.tensor([[1]])]).tolist() == [[0], [1]]


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("case", CASES[3:6], ids=lambda case: case[0].name)
def test_what_has_columns_is_a_table_or_an_array_on_disk(case, suffix, tmp_path):
    space, _, datum, *_ = case
    x = torch.tensor([datum, datum], dtype=space.dtype)
    write_rows(space, x, tmp_path / f"x{suffix}")
    assert torch.equal(read_rows(space, None, tmp_path / f"x{suffix}").x, x)
    with pytest.raises(UsageError, match="which format"):
        check_place(space, 2, tmp_path / "x.png")


def test_arrays_of_any_shape_load_as_reals(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3, 2))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(50) % 2)
    data = pofx.load(tmp_path / "x.npy", kind="reals")
    assert data.space == Reals((3, 2))
    assert torch.equal(data.test.x, torch.from_numpy(x)[data.test.rows])
    assert pofx.load(tmp_path / "x.npz", kind="reals", given="label").context == Label(("0", "1"))
    for source in ("digits", "iris"):
        with pytest.raises(UsageError, match="Only arrays"):
            pofx.load(source, kind="reals")


@pytest.mark.parametrize("family", ["independent", "markov", "made", "window-mlp", "trees"])
@pytest.mark.parametrize("space", [Codes((2, 2), 3), Pair(CLASSES, Codes((1,), 4))], ids=lambda s: s.name)
def test_families_of_columns_serve_codes_and_pairs(family, space):
    """Their probabilities sum to one over all data, and draws are data."""
    sizes = [len(c.values) for c in space.columns]
    every = torch.tensor(list(itertools.product(*map(range, sizes)))).to(space.dtype).reshape(-1, *space.event_shape)
    part = Part(every[torch.randint(len(every), (200,), generator=torch.Generator().manual_seed(0))])
    model = pofx.fit(Data("codes", "<memory>", space, part, part, part), family, steps=2).model
    assert model.log_prob(every).nats.double().exp().sum().item() == pytest.approx(1, abs=1e-4)
    space.check(model.sample(20))


def test_a_mixture_of_reals_is_that_of_its_columns():
    """A shape changes no density: the same numbers in a row score the same."""
    x = torch.randn(300, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = Table(tuple(Real(f"x{j}") for j in range(4)))
    models = []
    for space, rows in ((Reals((2, 2)), x), (flat, x.flatten(1))):
        data = Data("reals", "<memory>", space, Part(rows), Part(rows), Part(rows))
        models.append(pofx.fit(data, "gaussian", steps=5).model)
    assert torch.allclose(models[0].log_prob(x).nats, models[1].log_prob(x.flatten(1)).nats, atol=1e-9)
    assert models[0].given().score(x).shape == x.shape


# --------------------------------------------------------------------------------- a space that pofx does not know


@pytest.fixture
def angles(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    registry.register(VonMises)
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(600, 2, generator=generator, dtype=torch.float64) + torch.tensor([3.0, 0.0])
    x = (x + math.pi).remainder(2 * math.pi) - math.pi
    return Data("angles", "<memory>", Angles(2), Part(x[:400]), Part(x[400:500]), Part(x[500:]))


def test_a_third_party_space_is_fitted_scored_drawn_and_shown(angles, tmp_path):
    run = pofx.fit(angles, "von-mises", steps=100, out=tmp_path / "run")
    again = read_run(tmp_path / "run").model
    assert again.space == Angles(2)
    assert torch.equal(again.log_prob(angles.test.x).nats, run.model.log_prob(angles.test.x).nats)
    fine = torch.linspace(-math.pi, math.pi, 201, dtype=torch.float64)[:-1]
    grid = torch.cartesian_prod(fine, fine)
    assert again.log_prob(grid).nats.exp().mean().item() * (2 * math.pi) ** 2 == pytest.approx(1, abs=1e-6)
    assert [row["values"] for row in angles.describe()] == ["around 172°", "around 0°"]
    compared = pofx.compare(angles, ["von-mises"], steps=100, samples=200, max_test=100, out=tmp_path / "all")
    row = compared.record["rows"][0]
    assert row["quality"]["features"] == "cosine and sine of each angle"
    assert row["quality"]["c2st"]["accuracy"] < 0.65
    assert row["outliers"][0]["outliers"] == "test angles turned at random"
    assert row["outliers"][0]["auroc"] > 0.9
    page = build(tmp_path / "all").read_text()
    assert page.count('viewBox="-1.1 -1.1 2.2 2.2"') == 2  # data and samples


class Winds:
    """Two von Mises angles, drawn and evaluated by SciPy."""

    space = Angles(2)
    parts = (scipy.stats.vonmises(4.0, 3.0), scipy.stats.vonmises(1.5, -1.0))
    entropy = sum(float(p.entropy()) for p in parts)

    def sample(self, n, generator):
        rng = np.random.default_rng(generator.initial_seed())
        drawn = [torch.from_numpy(p.rvs(n, random_state=rng)) for p in self.parts]
        return (torch.stack(drawn, 1) + math.pi).remainder(2 * math.pi) - math.pi

    def log_prob(self, x):
        return sum(torch.from_numpy(p.logpdf(v.numpy())) for p, v in zip(self.parts, x.unbind(1), strict=True))


def test_a_third_party_space_and_family_pass_the_suite(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    fine = (torch.arange(120, dtype=torch.float64) + 0.5) * 2 * math.pi / 120 - math.pi
    winds = Case("winds", Winds(), grid=lambda: (torch.cartesian_prod(fine, fine), (2 * math.pi / 120) ** 2))
    results = check_family(VonMises, ["winds"], more=[winds])
    assert sum(r.outcome == "passed" for r in results) > 15


def test_a_third_party_space_is_written_and_read(angles, tmp_path):
    write_rows(angles.space, angles.test.x, tmp_path / "angles.csv")
    assert torch.allclose(read_rows(angles.space, None, tmp_path / "angles.csv").x, angles.test.x, atol=1e-12)


def test_a_name_belongs_to_one_space():
    class Another(Angles):
        pass

    register(Angles)  # again: it is there
    with pytest.raises(UsageError, match="exists already"):
        register(Another)


def test_what_has_no_head_is_refused_by_name():
    with pytest.raises(pofx.PofxError, match="no head for 2 angles"):
        heads_for(Angles(2))


# --------------------------------------------------------------------------------------- which space is it?

LIMIT = 8  # questions which space one is, outside of spaces/ and of open functions


def questions(path):
    """The lines of a file with an ``isinstance`` on a space, or a pattern, that are in no case of an open function."""
    spaces = {c.__name__ for c in subclasses(Space)} | {"Space"}
    tree, names = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pofx.spaces", "pofx.core.space")):
            names |= {a.asname or a.name: a.name for a in node.names if a.name in spaces}
        if isinstance(node, ast.ClassDef) and node.name in spaces:
            names[node.name] = node.name

    def visit(node):
        decorators = map(ast.unparse, getattr(node, "decorator_list", ()))
        if any("singledispatch" in d or d.endswith(".register") for d in decorators):
            return
        asked = []
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            asked = [node.args[1]]
        if isinstance(node, ast.MatchClass):
            asked = [node.cls]
        if any(isinstance(n, ast.Name) and n.id in names for a in asked for n in ast.walk(a)):
            yield node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return [*visit(tree)]


def subclasses(cls):
    return {c for child in cls.__subclasses__() for c in (child, *subclasses(child))}


def test_other_rooms_ask_what_a_space_knows_not_which_it_is():
    files = [p for p in sorted(ROOT.rglob("*.py")) if p.relative_to(ROOT).parts[0] != "spaces"]
    found = [f"{p.relative_to(ROOT)}:{line}" for p in files for line in questions(p)]
    assert len(found) <= LIMIT, "\n".join(found)
