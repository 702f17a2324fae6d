"""Boosted trees in a chain: exact by enumeration, the same trees as scikit-learn's, and the same on every thread."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch
from pofx.core.likelihood import Exact
from pofx.core.space import Space
from pofx.data import synthetic
from pofx.families.table import Independent
from pofx.families.trees import Trees, TreesConfig
from pofx.nn.atoms import Atoms, Counts
from pofx.nn.trees import SHARED, Column, grow
from pofx.spaces import Category, Image, Integer, Label, Real, Table, Text
from pofx.train.checkpoint import load_into, load_tree, save_tree
from pofx.train.fit import fit
from toys import mixed_rows

QUICK = {"leaves": 6, "shrinkage": 0.3, "patience": 2}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learn(
    space: Space,
    x: object,
    c: Tensor | None = None,
    context: Space | None = None,
    steps: int = 10**6,
    **options: object,
) -> Trees:
    model = Trees(TreesConfig(**(QUICK | options)), space, context)
    model.prepare(x, c, None, gen())
    learner = model.learner(Trees.recipe(space))
    while not learner.finished and steps:
        learner.step(Batch(x, c, total=len(x)), gen())
        steps -= 1
    return model.eval()


def nats(model: Trees, x: Tensor, c: Tensor | None = None) -> Tensor:
    lik = model.given(c).log_prob(x)
    assert isinstance(lik, Exact)
    return lik.nats


def states(reach: int = 70) -> Tensor:
    """All rows of ``mixed_rows``, tails included."""
    axes = [
        torch.tensor([0, 1, 2, math.nan]),
        torch.cat([torch.arange(-reach, reach + 1), torch.tensor([math.nan])]),
        0.25 + 0.5 * torch.arange(-25, 26),
    ]
    return torch.cartesian_prod(*(a.double() for a in axes))


@pytest.fixture(scope="module")
def fitted() -> tuple[Trees, Tensor]:
    space, x = mixed_rows(1500, 0)
    return learn(space, x, patience=1), x


# -- exactness ------------------------------------------------------------------------------------------------


def test_sums_to_one_over_categories_integers_grids_and_missing_values(fitted: tuple[Trees, Tensor]) -> None:
    model, _ = fitted
    assert sum(len(s.column.root) for s in model.sites) > 20
    assert nats(model, states()).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_an_untrained_model_is_already_a_distribution() -> None:
    space, _ = mixed_rows(1, 0)
    assert nats(Trees(TreesConfig(), space), states()).exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("context", [Label(("u", "v")), Table((Category("g", ("u", "v"), nullable=True), Real("t")))])
def test_sums_to_one_in_every_context_and_differs_between_them(context: Space) -> None:
    g = gen(2)
    label = torch.randint(0, 2, (1500,), generator=g)
    x = torch.stack([(label + torch.randint(0, 2, (1500,), generator=g)), torch.randint(0, 3, (1500,), generator=g)], 1)
    space = Table((Category("a", ("0", "1", "2")), Category("b", ("0", "1", "2"))))
    columns = torch.stack([label.double(), torch.randn(1500, generator=g)], 1).double()
    c = label if isinstance(context, Label) else columns
    model = learn(space, x.double(), c, context)
    rows = torch.cartesian_prod(torch.arange(3).double(), torch.arange(3).double())
    first = [nats(model, rows, one.expand(len(rows), *one.shape)).exp() for one in (c[label == 0][0], c[label == 1][0])]
    for p in first:
        assert p.sum().item() == pytest.approx(1, abs=1e-9)
    truth = torch.tensor([0.5, 0.5, 0.0]).repeat_interleave(3) / 3
    assert (first[0] - truth).abs().max() < 0.04
    assert (first[1] - truth.flip(0)).abs().max() < 0.04


def test_draws_agree_with_the_density(fitted: tuple[Trees, Tensor]) -> None:
    model, x = fitted
    drawn = model.sample(10_000, generator=gen(3))
    model.space.check(drawn)
    mean, entropy = nats(model, drawn).mean().item(), -(lambda p: (p.exp() * p).sum())(nats(model, states())).item()
    assert mean == pytest.approx(-entropy, abs=0.05)
    assert abs((drawn[:, 1] == 12).double().mean() - (x[:, 1] == 12).double().mean()) < 0.03
    assert abs(drawn[:, 0].isnan().double().mean() - 0.1) < 0.02


def test_a_label_given_columns_is_a_classifier() -> None:
    x = torch.randn(2000, 2, generator=gen(4)).double()
    label = (x[:, 0] * x[:, 1] > 0).long()
    model = learn(Label(("no", "yes")), label, x, Table((Real("a"), Real("b"))))
    p = torch.stack([nats(model, torch.full((2000,), k), x) for k in range(2)], 1).exp()
    assert torch.allclose(p.sum(1), torch.ones(2000).double(), atol=1e-9)
    assert (p.argmax(1) == label).double().mean() > 0.95


# -- the trees ------------------------------------------------------------------------------------------------


def test_the_trees_are_those_of_scikit_learn() -> None:
    """Twenty rounds from constant odds are HistGradientBoostingClassifier's, evaluated by our arrays."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(0)
    told = rng.integers(0, [3, 200, 40, 2], (3000, 4)).astype(np.uint8)
    y = (rng.random(3000) < 1 / (1 + np.exp(-(told[:, 0] - 1.0) * (told[:, 1] / 100.0 - 1)))).astype(float)
    theirs = HistGradientBoostingClassifier(
        max_iter=20, max_leaf_nodes=12, min_samples_leaf=20, l2_regularization=1.0, early_stopping=False
    ).fit(told, y)
    rows = torch.from_numpy(np.asfortranarray(told))
    odds = torch.full((3000,), math.log(y.mean() / (1 - y.mean())), dtype=torch.float64)
    column, start = Column(), odds.clone()
    column.split(torch.ones(2))
    for _ in range(20):
        p = odds.sigmoid()
        tree, values = grow(rows, [3, 200, 40, 2], p - torch.from_numpy(y), p * (1 - p), 12, 20, 0.1)
        assert tree is not None
        column.add(0, [tree])
        odds += values
    ours = start + column.boost(0, rows)
    assert torch.equal(ours - start, odds - start) or torch.allclose(ours, odds, atol=1e-12)
    assert np.abs(ours.sigmoid().numpy() - theirs.predict_proba(told)[:, 1]).max() < 1e-3


def test_the_splits_without_trees_are_the_masses() -> None:
    mass = torch.tensor([1.0, 5.0, 0.25, 90.0, 2.0, 2.0, 7.0], dtype=torch.float64)
    column = Column()
    column.split(mass)
    told = torch.zeros(7, 1, dtype=torch.uint8)
    place, p = column.walk(told, torch.arange(7))
    assert place.tolist() == list(range(7))
    assert torch.allclose(p.exp(), mass / mass.sum(), rtol=1e-4)
    depth = [sum(k in column.reach(level, torch.arange(7))[0] for level in range(column.levels)) for k in range(7)]
    assert depth[3] <= 2  # what is frequent is near the root
    drawn, own = column.walk(torch.zeros(20_000, 1, dtype=torch.uint8), None, gen())
    assert torch.allclose(drawn.bincount(minlength=7) / 20_000, (mass / mass.sum()).float(), atol=0.01)
    assert torch.equal(own, p[drawn])


def test_rows_are_scored_the_same_in_any_batch(fitted: tuple[Trees, Tensor]) -> None:
    model, x = fitted
    whole = nats(model, x)
    order = torch.randperm(1500, generator=gen(5))
    assert torch.equal(nats(model, x[order]), whole[order])
    assert torch.equal(torch.cat([nats(model, r) for r in x.split(97)]), whole)


def test_any_number_of_threads_grows_and_adds_the_same_trees() -> None:
    told = torch.randint(0, 200, (16, 2**16), generator=gen(5), dtype=torch.uint8).T
    assert told.numel() >= SHARED
    y = (told[:, 0].double() * told[:, 1] / 200**2 > torch.rand(len(told), generator=gen(6))).double()
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            tree, values = grow(told, [200] * 16, 0.5 - y, y * 0 + 0.25, 8, 20, 0.1)
            column = Column()
            column.split(torch.ones(2))
            column.add(0, [tree] * 9)
            found.append((tree.node, tree.value, values, column.boost(0, told)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert torch.equal(found[0][3], 9 * found[0][2])


def test_a_training_that_is_saved_and_read_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    space, x = mixed_rows(1500, 0)
    batch = Batch(x, total=len(x))

    def begun() -> tuple[Trees, object]:
        model = Trees(TreesConfig(shrinkage=0.2), space)
        model.prepare(x, None, None, gen())
        return model, model.learner(Trees.recipe(space))

    model, learner = begun()
    for step in range(24):
        if step == 15:
            assert any(e.pending for e in learner.ensembles)
            save_tree(tmp_path / "state", {"model": model.state_dict(), "learner": learner.state_dict()})
        learner.step(batch, gen())
    again, other = begun()
    tree = load_tree(tmp_path / "state")
    load_into(again, tree["model"], tmp_path / "state")
    other.load_state_dict(tree["learner"])
    for _ in range(15, 24):
        loss = other.step(batch, gen())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert loss["loss"].item() == pytest.approx(learner.loss, abs=1e-12)
    assert torch.equal(nats(again, x), nats(model, x))


def test_the_best_validated_trees_are_kept_though_more_were_grown(tmp_path: Path) -> None:
    """The loop puts back weights of another size than those at the end."""
    _, x = mixed_rows(600, 0)
    run = fit(x.numpy(), "trees", steps=24, checks=6, out=tmp_path / "run", options={"leaves": 30, "smallest": 2})
    best = max(e["valid"] for e in run.log)
    from pofx.data.load import load

    data = load(x.numpy())
    assert nats(run.model, data.valid.x).mean().item() == pytest.approx(best, abs=1e-9)


# -- values that repeat ---------------------------------------------------------------------------------------


def test_values_that_repeat_sum_to_one_and_are_drawn_as_often_as_they_are_likely() -> None:
    value = torch.tensor([3, 3, 3, 8, 8, 20, 21, 40])
    group = (value >= 20).long()
    base = torch.where(group == 0, 1 / 20, 1 / 30).double().log()
    atoms = Atoms()
    atoms.fit(Counts(value, torch.ones(8).double(), group, 2, base))
    every = torch.arange(-5, 60)
    for j, (low, high) in enumerate([(0, 20), (20, 50)]):
        inside = ((every >= low) & (every < high)).double() / (high - low)
        p = atoms.log_prob(every, torch.full_like(every, j), inside.log()).exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-7)
        assert (p[inside > 0] > 0).all()
    drawn = atoms.draw(torch.full((5000,), -1), torch.zeros(5000).long(), gen())
    assert set(drawn.tolist()) <= {-1, 3, 8}
    p = atoms.log_prob(torch.tensor([3]), torch.tensor([0]), torch.tensor([-math.inf]).double()).exp()
    assert (drawn == 3).double().mean().item() == pytest.approx(p.item(), abs=0.02)


def test_the_rule_is_that_of_the_other_rows() -> None:
    """Leave-one-out by formula is leave-one-out by leaving out."""
    value = torch.tensor([3, 3, 3, 8, 8, 20, 21])
    group, base = torch.zeros(7).long(), torch.full((7,), 1 / 50).double().log()
    for d, a in ((0.25, 1.0), (1.0, 3.0), (0.0, 10.0)):
        counts = Counts(value, torch.ones(7).double(), group, 1, base)
        ours = counts.held_out(d, a)[counts.inverse].exp()
        for i in range(7):
            others = value[torch.arange(7) != i].tolist()
            rest = a + sum(min(others.count(v), d) for v in set(others))
            own = max(others.count(int(value[i])) - d, 0)
            assert ours[i].item() == pytest.approx((own + rest / 50) / (6 + a), rel=1e-6)


def test_survey_weights_that_repeat_are_found_again() -> None:
    """Half of the rows take one of 200 values among a million: a smooth density pays for it, the truth does not."""
    g = gen(6)

    few = torch.randint(0, 10**6, (200,), generator=g)

    def draw(n: int) -> Tensor:
        free = torch.randint(0, 10**6, (n,), generator=g)
        return (
            few[torch.randint(0, 200, (n,), generator=g)]
            .where(torch.rand(n, generator=g) < 0.5, free)
            .double()[:, None]
        )

    space = Table((Integer("weight", 0, 10**6 - 1),))
    train, test = draw(4000), draw(2000)
    truth = (0.5 / 10**6 + 0.5 / 200 * torch.isin(test[:, 0], few.double()).double()).log().mean().item()
    ours = nats(learn(space, train), test).mean().item()
    assert truth - 0.4 < ours < truth
    plain = Independent(Independent.Config(), space)
    plain.prepare(train, None, None, gen())
    assert ours > plain.log_prob(test).nats.mean().item() + 2


def test_values_that_go_with_an_earlier_column_are_found_with_it() -> None:
    """Each of 4 kinds has 500 values of its own among a million, in no order: later rows of the kind take these."""
    g = gen(14)
    few = torch.randint(0, 10**6, (4, 500), generator=g)

    def draw(n: int) -> Tensor:
        kind = torch.randint(0, 4, (n,), generator=g)
        return torch.stack([kind, few[kind, torch.randint(0, 500, (n,), generator=g)]], 1).double()

    space = Table((Category("kind", tuple("abcd")), Integer("weight", 0, 10**6 - 1)))
    train, test = draw(8000), draw(2000)
    model = learn(space, train)
    truth = -math.log(2000)
    assert truth - 0.7 < nats(model, test).mean().item() < truth  # any value of any kind: log 4 less
    drawn = model.sample(2000, generator=g)
    assert (drawn[:, 1:].long() == few[drawn[:, 0].long()]).any(1).double().mean() > 0.75


# -- odd tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 15, 60])
def test_few_rows_constant_and_missing_columns(n: int) -> None:
    space = Table((Real("a"), Integer("one", 1, 1), Real("none", nullable=True), Category("c", ("x", "y"))))
    g = gen(8)
    x = torch.stack(
        [torch.randn(n, generator=g), torch.ones(n), torch.full((n,), math.nan), (torch.arange(n) % 2).float()], 1
    ).double()
    model = learn(space, x)
    assert nats(model, x).isfinite().all()
    far = torch.tensor([[1e6, 1.0, 3.0, 1.0]], dtype=torch.float64)
    assert nats(model, far).isfinite().all()
    space.check(model.sample(50, generator=gen()))


def test_no_worse_than_independent_columns_where_there_is_nothing_to_learn() -> None:
    x = torch.randint(0, 5, (500, 6), generator=gen(9)).double()
    space = Table(tuple(Category(f"c{k}", tuple("abcde")) for k in range(6)))
    test = torch.randint(0, 5, (2000, 6), generator=gen(10)).double()
    assert nats(learn(space, x), test).mean().item() > -6 * math.log(5) - 0.1


def test_a_category_of_many_levels_is_modelled_and_looked_at() -> None:
    g = gen(11)
    many = torch.randint(0, 600, (6000,), generator=g)
    x = torch.stack([many, many % 2], 1).double()
    space = Table((Category("many", tuple(str(k) for k in range(600))), Category("odd", ("0", "1"))))
    model = learn(space, x)
    rows = torch.cartesian_prod(torch.arange(600).double(), torch.arange(2).double())
    assert nats(model, rows).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_completing_keeps_what_is_known_and_follows_it() -> None:
    chain = synthetic.markov(4)
    x = chain.sample(4000, gen(12))
    model = learn(chain.space, x)
    part, known = x[:2000].clone(), torch.tensor([True, True, False, False])[: x.shape[1]].expand(2000, -1)
    done = model.given().complete(part, known, generator=gen(13))
    assert torch.equal(done[known], part[known])
    k = len(chain.transition)
    both = (done[:, 1] * k + done[:, 2]).long().bincount(minlength=k * k).reshape(k, k).double()
    assert torch.allclose(both / both.sum(1, keepdim=True), chain.transition, atol=0.1)


class Lazy:
    """Rows that are made when they are asked for."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.most = x, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: object) -> Tensor:
        part = self.x[index]
        self.most = max(self.most, len(part))
        return part


def test_more_rows_than_the_limit_are_drawn_and_told() -> None:
    space, x = mixed_rows(3000, 0)
    lazy = Lazy(x)
    model = learn(space, lazy, rows=500)
    assert lazy.most <= 500
    assert "500 of the 3,000" in model.remarks[0]
    same = learn(space, x, rows=500)
    assert torch.equal(nats(model, x[:50]), nats(same, x[:50]))


@pytest.mark.parametrize("space", [Image(2, 2, 1, 2), Text(("a", "b"))])
def test_what_is_no_table_is_refused_with_a_remedy(space: Space) -> None:
    with pytest.raises(Unsupported, match="Fit a|These do: "):
        Trees(TreesConfig(), space)


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="held_out"):
        TreesConfig(held_out=1.0)
    with pytest.raises(UsageError, match="shrinkage"):
        TreesConfig(shrinkage=0.0)


def test_draws_lie_on_a_fine_grid_to_the_last_digit() -> None:
    """Numbers on the grid are beyond what float32 holds."""
    step = 1e-6
    v = (torch.randn(400, 1, generator=gen(), dtype=torch.float64) / step).round() * step
    model = learn(Table((Real("v", step=step),)), v, steps=4)
    place = model.sample(2000, generator=gen(1)) / step
    assert (place - place.round()).abs().max() < 1e-8
    assert torch.isfinite(model.log_prob(place * step).nats).all()
