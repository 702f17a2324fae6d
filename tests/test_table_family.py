"""Counting families: they sum and integrate to one, count what a naive loop counts, and reach a known source."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pofx.codecs.cells import TableCells
from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch, Local
from pofx.core.likelihood import Exact
from pofx.core.space import Space
from pofx.data import synthetic
from pofx.families.counting import Counting
from pofx.families.table import Histogram, Independent, Markov
from pofx.nn.backoff import Backoff
from pofx.spaces import Category, Image, Integer, Label, Real, Table
from toys import mixed_rows

FAMILIES = [Independent, Markov, Histogram]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learn(
    cls: type[Counting],
    space: Space,
    x: Tensor,
    c: Tensor | None = None,
    context: Space | None = None,
    weight: Tensor | None = None,
    **options: object,
) -> Counting:
    model = cls(cls.Config(**options), space, context)
    model.prepare(x, c, weight, gen())
    learner = model.learner(cls.recipe(space))
    learner.step(Batch(x, c, weight, total=len(x)), gen())
    assert learner.finished
    return model


def nats(model: Counting, x: Tensor, c: Tensor | None = None) -> Tensor:
    lik = model.given(c).log_prob(x)
    assert isinstance(lik, Exact)
    return lik.nats


@pytest.mark.parametrize("cls", FAMILIES)
def test_sums_to_one_over_all_integers_and_missing_values(cls: type[Counting]) -> None:
    space, x = mixed_rows(1500, 0)
    model = learn(cls, space, x)
    grid = torch.arange(-150, 151).double()
    axes = [torch.tensor([0, 1, 2, math.nan]), torch.cat([grid, torch.tensor([math.nan])]), 0.25 + 0.5 * grid / 3]
    axes[2] = 0.25 + 0.5 * torch.arange(-60, 61)
    states = torch.cartesian_prod(*(a.double() for a in axes))
    assert nats(model, states).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("cls", FAMILIES)
def test_integrates_to_one_over_the_plane(cls: type[Counting]) -> None:
    moons = synthetic.two_moons(0.2)
    model = learn(cls, moons.space, moons.sample(2000, gen(1)))
    axes = [quadrature(model, j) for j in range(2)]
    points = torch.cartesian_prod(*(at for at, _ in axes))
    weight = torch.cartesian_prod(*(w for _, w in axes)).prod(1)
    assert (nats(model, points).exp() * weight).sum().item() == pytest.approx(1, abs=1e-3)


def quadrature(model: Counting, column: int) -> tuple[Tensor, Tensor]:
    """Midpoints and widths: the cells themselves, and a fine grid over the tails."""
    site = model.cells.get_submodule(f"sites.{column}")
    edge = site.get_buffer("edge")[: int(site.get_buffer("used")) + 1]
    fine = torch.linspace(0, 12, 241).double() * site.get_buffer("scale").max()
    edge = torch.cat([edge[0] - fine.flip(0)[:-1], edge, edge[-1] + fine[1:]])
    return (edge[1:] + edge[:-1]) / 2, edge.diff()


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize("context", [Label(("u", "v")), Table((Category("g", ("u", "v", "w")), Real("t")))])
def test_sums_to_one_in_every_context(cls: type[Counting], context: Space) -> None:
    chain = synthetic.markov(4)
    g = gen(2)
    x = chain.sample(800, g)
    label = torch.randint(0, 2, (800,), generator=g)
    c = (
        label
        if isinstance(context, Label)
        else torch.stack([label.double(), torch.randn(800, generator=g)], 1).double()
    )
    model = learn(cls, chain.space, x, c, context)
    states = torch.cartesian_prod(*[torch.arange(len(col.values)).double() for col in chain.space.columns])
    for one in c[:4]:
        total = nats(model, states, one.expand(len(states), *one.shape)).exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-9)


def test_an_untrained_model_is_already_a_distribution() -> None:
    space, _ = mixed_rows(1, 0)
    model = Markov(Markov.Config(), space)
    axis = torch.arange(-200, 201).double()
    states = torch.cartesian_prod(torch.tensor([0, 1, 2, math.nan]).double(), axis, 0.25 + 0.5 * axis[150:250])
    missing = torch.cartesian_prod(
        torch.tensor([0, 1, 2, math.nan]).double(), torch.tensor([math.nan]).double(), 0.25 + 0.5 * axis[150:250]
    )
    assert nats(model, torch.cat([states, missing])).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_markov_counts_are_naive_counts_and_smooth_as_the_formula_says() -> None:
    """The slow twin: dictionaries of counts, and MacKay and Peto's predictive probability by hand."""
    g = gen(3)
    space = Table(tuple(Category(f"c{j}", ("0", "1", "2")) for j in range(4)))
    x = torch.randint(0, 3, (200, 4), generator=g).double()
    weight = torch.rand(200, generator=g).double() + 0.5
    model = learn(Markov, space, x, weight=weight, order=2)
    w = (weight / weight.mean()).tolist()
    rows = x.long().tolist()

    def count(site: int, history: tuple[int, ...], value: int | None) -> float:
        """Weight of the rows whose sites before ``site`` end in ``history`` (nearest first)."""
        return sum(
            v
            for row, v in zip(rows, w, strict=True)
            if all(row[site - 1 - k] == h for k, h in enumerate(history)) and value in (None, row[site])
        )

    m = model.get_submodule("backoff").concentration
    for probe in ([0, 1, 2, 0], [2, 2, 1, 1]):
        expected = 0.0
        for site in range(4):
            p = 1 / 3
            for order in range(3):
                # a site before the first one counts as symbol 0 and tells nothing
                history = tuple(probe[site - 1 - k] for k in range(min(order, site)))
                p = (count(site, history, probe[site]) + m[order, site].item() * p) / (
                    count(site, history, None) + m[order, site].item()
                )
            expected += math.log(p)
        assert nats(model, torch.tensor([probe]).double()).item() == pytest.approx(expected, abs=1e-10)


def test_independent_is_the_product_of_smoothed_frequencies() -> None:
    space, x = mixed_rows(3000, 4)
    model = learn(Independent, space, x)
    alone = [learn(Independent, Table((column,)), x[:, j : j + 1]) for j, column in enumerate(space.columns)]
    product = sum(nats(one, x[:50, j : j + 1]) for j, one in enumerate(alone))
    assert torch.allclose(nats(model, x[:50]), product)


def test_histogram_of_seen_and_unseen_cells() -> None:
    space = Table((Category("a", ("0", "1", "2")), Category("b", ("0", "1", "2"))))
    x = torch.tensor([[0, 0]] * 60 + [[1, 1]] * 40).double()
    model = learn(Histogram, space, x)
    p = nats(model, torch.cartesian_prod(torch.arange(3), torch.arange(3)).double()).exp().reshape(3, 3)
    assert p.sum().item() == pytest.approx(1)
    assert p[0, 0].item() == pytest.approx(0.6, abs=0.02)
    assert (p > 0).all()
    assert p[0, 1] > p[2, 1] > p[2, 2]  # towards the product of the marginals


def test_leave_one_out_is_what_leaving_one_out_gives() -> None:
    """concentrate() returns the sum over data of log P under the counts without that datum."""
    g = gen(5)
    history, symbol = torch.randint(0, 3, (40,), generator=g), torch.randint(0, 4, (40,), generator=g)
    zero, base = torch.zeros(40, dtype=torch.long), torch.full((40,), 0.25, dtype=torch.float64)

    def table(keep: Tensor) -> Backoff:
        t = Backoff(1, (3,), 4)
        t.add(zero[keep], history[keep], symbol[keep], torch.ones(len(keep), dtype=torch.float64))
        t.share(Local())
        return t

    full = table(torch.arange(40))
    score = full.concentrate(lambda group, s: base[: len(s)])
    total = 0.0
    for i in range(40):
        without = table(torch.cat([torch.arange(i), torch.arange(i + 1, 40)]))
        without.concentration.copy_(full.concentration)
        one = torch.tensor([i])
        total += without.prob(zero[one], history[one], symbol[one], base[one]).log().item()
    assert score.item() == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("image", [False, True])
def test_markov_reaches_the_entropy_of_a_chain_and_never_beats_it(image: bool) -> None:
    chain = synthetic.markov(6, image=image)
    x = chain.sample(40_000, gen(6))
    test = chain.sample(20_000, gen(7))
    model = learn(Markov, chain.space, x)
    gap = chain.log_prob(test) - nats(model, test)
    assert -3 * gap.std().item() / len(gap) ** 0.5 < gap.mean().item() < 0.01
    # and nothing that ignores the order of the sites does as well
    assert nats(learn(Independent, chain.space, x), test).mean() < nats(model, test).mean() - 0.1


def test_shared_tables_learn_a_stationary_mesh_from_few_images() -> None:
    chain = synthetic.Markov(torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.2, 0.8]]), 40, image=True)
    x, test = chain.sample(30, gen(8)), chain.sample(500, gen(9))
    shared, single = (learn(Markov, chain.space, x, shared=s) for s in (True, False))
    assert nats(shared, test).mean() > nats(single, test).mean() + 1
    assert shared.parameter_count() == 2
    with pytest.raises(Unsupported, match="cannot share"):
        Markov(Markov.Config(shared=True), synthetic.markov(3).space)


def test_the_mesh_of_pixels() -> None:
    """An image whose pixel is the exclusive or of its left and upper neighbours needs order 2 exactly."""
    g = gen(10)
    x = torch.randint(0, 2, (4000, 1, 4, 4), generator=g, dtype=torch.uint8)
    for i, j in itertools.product(range(1, 4), range(1, 4)):
        x[:, 0, i, j] = x[:, 0, i, j - 1] ^ x[:, 0, i - 1, j]
    space = Image(4, 4, 1, 2)
    two, one = learn(Markov, space, x[:3000], order=2), learn(Markov, space, x[:3000], order=1)
    free = 7 * math.log(2)  # first row and first column
    assert -nats(two, x[3000:]).mean().item() == pytest.approx(free, abs=0.05)
    assert -nats(one, x[3000:]).mean().item() == pytest.approx(16 * math.log(2), abs=0.05)
    assert -nats(two, two.sample(500, generator=gen(1))).mean().item() == pytest.approx(free, abs=0.2)


def test_channels_are_seen_in_order() -> None:
    g = gen(11)
    grey = torch.randint(0, 4, (3000, 1, 2, 3), generator=g, dtype=torch.uint8)
    model = learn(Markov, Image(2, 3, 3, 4), grey.expand(-1, 3, -1, -1).contiguous())
    assert -nats(model, grey[:500].expand(-1, 3, -1, -1)).mean().item() == pytest.approx(6 * math.log(4), abs=0.1)


def test_classes_have_their_own_tables_smoothed_towards_the_pooled_one() -> None:
    g = gen(12)
    space, names = Table((Category("x", ("no", "yes")),)), tuple(f"class {k}" for k in range(60))
    label = torch.arange(60).repeat(6)

    def yes(p: Tensor) -> Tensor:
        """P(yes | class) after six rows of each class, drawn with the classes' p."""
        x = (torch.rand(360, generator=g) < p[label]).double()
        model = learn(Independent, space, x[:, None], label, Label(names))
        return nats(model, torch.ones(60, 1).double(), torch.arange(60)).exp()

    alike = yes(torch.full((60,), 0.8))
    assert (alike - 0.8).abs().mean() < 0.1  # six rows alone could not tell: the classes pool
    apart = yes((torch.arange(60) % 2).float())
    assert apart[::2].max() < 0.1
    assert apart[1::2].min() > 0.9


def test_a_label_given_columns_is_bayes() -> None:
    blobs = synthetic.equal([synthetic.blob(2, 0, 0.5), synthetic.blob(-2, 0, 0.5)])
    c, label = blobs.sample_labelled(3000, gen(13))
    model = learn(Histogram, Label(("left", "right")), label, c, blobs.space)
    assert nats(model, label[:1000], c[:1000]).exp().mean() > 0.9


def test_a_frequent_value_is_an_atom_and_tails_are_proper() -> None:
    g = gen(14)
    gain = (torch.rand(2000, generator=g).log() / math.log(0.99)).floor().clamp(max=400)
    x = torch.where(torch.rand(2000, generator=g) < 0.3, gain, 0.0).double()
    model = learn(Independent, Table((Integer("gain", 0, 400),)), x[:, None])
    p = nats(model, torch.arange(-4000, 8000).double()[:, None]).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p[4000].item() == pytest.approx((x == 0).double().mean().item(), abs=0.01)
    assert 0 < p[:4000].sum() < 0.01
    assert 0 < p[4401:].sum() < 0.02


def test_bins_follow_the_sample_size() -> None:
    def used(n: int) -> int:
        x = torch.randn(n, 1, generator=gen(15)).double()
        return int((learn(Independent, Table((Real("x"),)), x).base > 0).sum())

    assert used(100) < used(1000) < used(20_000)


def test_ties_make_no_spike() -> None:
    """Values clipped at the top share the last interval instead of one of no length."""
    x = torch.randn(1000, 1, generator=gen(16)).double().clamp(max=1.0)
    model = learn(Independent, Table((Real("x"),)), x)
    assert nats(model, torch.tensor([[1.0]]).double()).item() < 3
    constant = learn(Independent, Table((Real("x"),)), torch.full((50, 1), 7.5).double())
    assert nats(constant, torch.tensor([[7.5]]).double()).isfinite().all()


@pytest.mark.parametrize("cls", FAMILIES)
def test_samples_have_the_stated_frequencies(cls: type[Counting]) -> None:
    space, x = mixed_rows(1500, 17)
    model = learn(cls, space, x)
    drawn = model.sample(20_000, generator=gen(18))
    space.check(drawn)
    states, counts = torch.unique(drawn.nan_to_num(nan=-99.0), dim=0, return_counts=True)
    frequent = counts > 100
    stated = nats(model, torch.where(states == -99, math.nan, states)[frequent]).exp()
    z = (counts[frequent] / 20_000 - stated) / (stated / 20_000).sqrt()
    assert z.abs().max() < 5


@pytest.mark.parametrize("cls", FAMILIES)
def test_a_fresh_model_takes_the_state(cls: type[Counting]) -> None:
    space, x = mixed_rows(800, 19)
    model = learn(cls, space, x)
    fresh = cls(model.config, space)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(nats(fresh, x[:40]), nats(model, x[:40]))
    again = fresh.sample(30, generator=gen(1))
    assert torch.equal(again.nan_to_num(nan=-1), model.sample(30, generator=gen(1)).nan_to_num(nan=-1))
    assert fresh.parameter_count() == model.parameter_count()


def test_shares_of_several_processes_add_up() -> None:
    """Counts summed over two halves are the counts of the whole."""
    space, x = mixed_rows(600, 20)
    whole = learn(Markov, space, x)
    halves = [Markov(Markov.Config(), space) for _ in range(2)]
    for half in halves:
        half.prepare(x, None, None, gen())

    class Sum(Local):
        """Adds what the other process would send: its own contribution, computed without a sum."""

        def __init__(self, others: list[Tensor]) -> None:
            self.others = others

        def sum(self, tensor: Tensor) -> Tensor:
            return tensor + self.others.pop(0)

    class Record(Local):
        def __init__(self) -> None:
            self.sent: list[Tensor] = []

        def sum(self, tensor: Tensor) -> Tensor:
            self.sent.append(tensor.clone())
            return tensor

    record = Record()
    halves[1].count(Batch(x[300:], start=300, total=600), record)
    loss = halves[0].count(Batch(x[:300], total=600), Sum(record.sent))
    assert torch.allclose(nats(halves[0], x), nats(whole, x), atol=1e-12)
    assert loss.item() == pytest.approx(whole.count(Batch(x, total=600), Local()).item())


def test_a_weight_is_so_many_rows() -> None:
    g = gen(21)
    space = Table((Category("a", ("0", "1", "2")), Category("b", ("0", "1"))))
    x = torch.stack([torch.randint(0, 3, (4000,), generator=g), torch.randint(0, 2, (4000,), generator=g)], 1).double()
    weight = torch.randint(1, 4, (4000,), generator=g).double()
    probe = torch.cartesian_prod(torch.arange(3), torch.arange(2)).double()
    for cls in FAMILIES:
        scaled = learn(cls, space, x, weight=weight * 1000)
        assert torch.allclose(nats(learn(cls, space, x, weight=weight), probe), nats(scaled, probe))
        repeated = nats(learn(cls, space, x.repeat_interleave(weight.long(), 0)), probe)
        assert (nats(scaled, probe) - repeated).abs().max() < 0.02


def test_refusals_name_the_count_and_the_remedy() -> None:
    wide = Table(tuple(Real(f"x{j}") for j in range(40)))
    reason = Histogram.refuses(wide, None, Histogram.Config())
    assert reason is not None
    assert f"{2**40:,}" in reason
    assert "independent or markov" in reason
    assert "about 10^236" in str(Histogram.refuses(Image(28, 28), None, Histogram.Config()))
    many = Table(tuple(Category(f"c{j}", tuple("abcdefgh")) for j in range(8)))
    assert f"{8**8 * 3 * 2 * 8:,}" in str(Markov.refuses(Table(many.columns[:3]), many, Markov.Config()))
    assert "images" in str(Markov.refuses(many, Image(2, 2), Markov.Config()))
    with pytest.raises(Unsupported, match="limit"):
        Histogram(Histogram.Config(), wide)
    with pytest.raises(UsageError, match="order is 0"):
        Markov.Config(order=0)


def test_tables_shrink_until_they_fit() -> None:
    config = Markov.Config(order=2, limit=200_000)
    model = Markov(config, Image(8, 8, 1, 256))
    assert model.get_submodule("backoff").get_buffer("count2").numel() <= config.limit
    small = Histogram(Histogram.Config(limit=1000), Table(tuple(Real(f"x{j}") for j in range(3))))
    assert small.cells.sizes == (10, 10, 10)


def test_many_columns_to_condition_on_are_told_apart_more_coarsely() -> None:
    label, g = Label(("a", "b")), gen(24)
    c = torch.randn(400, 11, generator=g).double()
    columns = Table(tuple(Real(f"c{j}") for j in range(11)))
    model = learn(Histogram, label, (c[:, 0] > 0).long(), c, columns)
    assert model.given_cells is not None
    assert model.given_cells.sizes == (2,) * 11
    thirty = Table(tuple(Real(f"c{j}") for j in range(30)))
    assert f"{2**30 * 2:,}" in str(Histogram.refuses(label, thirty, Histogram.Config()))


def test_grouped_levels_spread_their_mass() -> None:
    space = Image(1, 2, 1, 10)
    x = torch.randint(0, 10, (500, 1, 1, 2), generator=gen(22), dtype=torch.uint8)
    model = learn(Independent, space, x, bins=4)
    states = torch.cartesian_prod(torch.arange(10), torch.arange(10)).to(torch.uint8).reshape(-1, 1, 1, 2)
    assert nats(model, states).exp().sum().item() == pytest.approx(1)
    space.check(model.sample(200, generator=gen(1)))
    assert set(model.sample(500, generator=gen(1)).flatten().tolist()) == set(range(10))


def test_neighbouring_cells_share_a_symbol_and_missing_keeps_its_own() -> None:
    space = Table((Integer("i", 0, 99, nullable=True), Category("k", tuple("abcdef"))))
    x = torch.stack([torch.arange(600) % 100, torch.arange(600) % 6], 1).double()
    table = TableCells(space, 100)
    table.fit(x, torch.ones(600).double(), 100)
    mass = torch.rand(2, table.size, generator=gen(23), dtype=torch.float64)
    symbol = table.coarse(4, mass)
    numbers, missing = symbol[0, :100], symbol[0, 100]
    assert (numbers.diff() >= 0).all()
    assert missing == 3
    assert set(numbers.tolist()) == {0, 1, 2}
    top = mass[1, :6].argsort(descending=True)
    assert symbol[1, top].tolist() == [0, 1, 2, 3, 3, 3]
