"""Discrete diffusion: its bounds against enumerated masks, orders and chains; its exact orders; what it draws."""

import itertools
import math

import pytest
import torch

from pofx.core.errors import Unsupported, UsageError
from pofx.core.likelihood import Exact, LowerBound
from pofx.core.requests import Ancestral, AnyOrder, InOrder, StepByStep, Unmasking, VariationalBound
from pofx.data.parts import Part
from pofx.evaluate.likelihood import mean_log_prob
from pofx.families.masked_diffusion import MaskedDiffusion, MaskedDiffusionConfig
from pofx.nn.heads import pick
from pofx.nn.masked import Masked
from pofx.paths.discrete import evidence, levels, rate, reverse, step_nats
from pofx.spaces import Category, Codes, Image, Label, Real, Table, Text
from pofx.testing.subject import agree, count, generator, index_of

SITES, SIZE = 3, 3
PAIR = Table((Category("c", ("a", "b")), Real("r", nullable=True)))
STATES = torch.tensor(list(itertools.product(range(SIZE), repeat=SITES)))


def small(**options):
    """A model over 3 codes of 3 values, whose net is at random."""
    torch.manual_seed(0)
    model = MaskedDiffusion(MaskedDiffusionConfig(inner_width=32, **options), Codes((SITES,), SIZE))
    torch.nn.init.normal_(model.net.net.last.weight, std=0.3)
    return model.eval().requires_grad_(False)


def given(model, x, seen):
    """log p of every site [N, L] of x given those seen [L]."""
    return model.net.log_prob(model.outputs(x, torch.tensor(seen).expand(x.shape), None), x).double()


def masks():
    return itertools.product((False, True), repeat=SITES)


def by_steps(model, x, grid):
    """The bound as Sahoo et al. 2024 write it (eq. 9), every mask by its probability."""
    total = torch.zeros(len(x), dtype=torch.float64)
    for s, m in itertools.pairwise(grid.tolist()):
        for hidden in masks():
            k = sum(hidden)
            p = m**k * (1 - m) ** (SITES - k)
            log_p = given(model, x, [not h for h in hidden])
            total += (m - s) / m * p * (log_p * torch.tensor(hidden)).sum(1)
    return total


def by_orders(model, x):
    """log p by every order [orders, N]."""
    found = []
    for order in itertools.permutations(range(SITES)):
        seen = [False] * SITES
        each = torch.zeros(len(x), dtype=torch.float64)
        for i in order:
            each += given(model, x, seen)[:, i]
            seen[i] = True
        found.append(each)
    return torch.stack(found)


def by_chain(model, x, grid):
    """log p of the sampler that goes back along the grid, every site revealed in one step or another."""
    drops = grid.diff().tolist()
    total = torch.zeros(len(x), dtype=torch.float64)
    for stage in itertools.product(range(len(drops)), repeat=SITES):  # 0: the last step
        log_p = torch.zeros(len(x), dtype=torch.float64)
        for j in set(stage):
            each = given(model, x, [k > j for k in stage])
            log_p += (each * torch.tensor([k == j for k in stage])).sum(1)
        total += math.prod(drops[j] for j in stage) * log_p.exp()
    return total.log()


@pytest.mark.parametrize("steps", [None, 1, 2, 5])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_is_that_of_the_paper(steps, schedule):
    """Drawn, it is the enumerated one: by masks in T steps, by orders in continuous time."""
    model = small(schedule=schedule)
    lik = model.log_prob(STATES, request=VariationalBound(draws=100, steps=steps))
    want = by_orders(model, STATES).mean(0) if steps is None else by_steps(model, STATES, levels(schedule, steps))
    assert isinstance(lik, LowerBound)
    off = (lik.nats - want) / lik.mc_se.clamp(min=1e-6)
    assert off.abs().max() < 4.5, off
    assert 0.6 < off.square().mean().sqrt() < 1.5 or steps == 1  # whose one mask leaves nothing to chance


def test_bounds_tighten_with_steps_and_stay_below_what_they_bound():
    """Each below its own sampler's log p; on states that the samplers draw, looser with fewer steps."""
    model = small()
    orders = by_orders(model, STATES)
    truth = orders.logsumexp(0) - math.log(len(orders))
    p = truth.exp()
    means = []
    for steps in (1, 2, 4, 16, 64):
        grid = levels("linear", steps)
        found = by_steps(model, STATES, grid)
        if steps <= 4:
            assert (found <= by_chain(model, STATES, grid) + 1e-9).all()
        means.append(float((p * found).sum()))
    assert means == sorted(means)
    limit = float((p * orders.mean(0)).sum())
    assert means[-1] <= limit < means[-1] + 0.02 * abs(limit)
    any_order = model.log_prob(STATES, request=AnyOrder(draws=200))
    assert (orders.mean(0) <= truth + 1e-9).all()
    assert (any_order.nats <= truth + 5 * any_order.mc_se + 1e-6).all()
    assert (any_order.nats - truth).abs().max() < 0.2


@pytest.mark.parametrize("order", ["raster", "reverse"])
def test_an_order_has_an_exact_likelihood(order):
    """It sums to one, and is the product that the order says."""
    model = small()
    lik = model.log_prob(STATES, request=InOrder(order))
    assert isinstance(lik, Exact)
    assert abs(float(lik.nats.exp().sum()) - 1) < 1e-6
    assert torch.allclose(lik.nats, by_orders(model, STATES)[0 if order == "raster" else -1], atol=1e-6)


def frequencies(model, sampler, log_p):
    n = 6000
    x = model.sample(n, sampler=sampler, generator=generator(3))
    agree(count(index_of(STATES.double(), x.double()), len(STATES)), n * log_p.exp(), torch.zeros(len(STATES)), "draws")


def test_samplers_draw_what_their_numbers_are_of():
    model = small()
    orders = by_orders(model, STATES)
    frequencies(model, Unmasking(order="raster"), model.log_prob(STATES, request=InOrder()).nats)
    frequencies(model, Unmasking(), orders.logsumexp(0) - math.log(len(orders)))
    for schedule in ("linear", "cosine"):
        frequencies(small(schedule=schedule), Ancestral(2), by_chain(model, STATES, levels(schedule, 2)))
    frequencies(model, Unmasking(steps=1), given(model, STATES, [False] * SITES).sum(1))


class Oracle(Masked):
    """The true conditionals of a joint distribution p [SIZE] * SITES: what a perfect net would answer."""

    size = SIZE

    def __init__(self, p):
        super().__init__()
        self.log_joint = p.log()

    def forward(self, values, seen, h=None, memory=None):
        fits = ((values[:, None] == STATES) | ~seen[:, None]).all(-1)  # [N, states]
        joint = torch.where(fits, self.log_joint, -math.inf)
        each = torch.nn.functional.one_hot(STATES, SIZE).bool()  # [states, L, V]
        return torch.where(each, joint[..., None, None], -math.inf).logsumexp(1)

    def log_prob(self, y, values):
        return y.log_softmax(-1).gather(-1, values.long()[..., None])[..., 0]

    def logits(self, y):
        return y

    def sample(self, y, generator):
        return pick(y, generator)


def perfect():
    p = torch.distributions.Dirichlet(torch.full((SIZE**SITES,), 0.5, dtype=torch.float64)).sample()
    model = small()
    model.net = Oracle(p)
    return model, p


def test_with_the_true_conditionals_nothing_is_lost():
    """Every order has the same likelihood, the source's, and the bound is as tight as it can be."""
    model, p = perfect()
    for request in (InOrder(), InOrder("reverse"), AnyOrder(draws=2)):
        assert torch.allclose(model.log_prob(STATES, request=request).nats, p.log(), atol=1e-5)
    lik = model.log_prob(STATES, request=VariationalBound(draws=100))
    assert ((lik.nats - p.log()).abs() < 4.5 * lik.mc_se).all()


def test_completion_looks_at_all_that_is_known():
    """The first and the last value known, the middle one is drawn from what both leave."""
    model, p = perfect()
    x, known = torch.tensor([1, 0, 2]).expand(3000, -1), torch.tensor([True, False, True]).expand(3000, -1)
    drawn = model.given().complete(x, known, generator=generator(1))
    assert torch.equal(drawn[:, [0, 2]], x[:, [0, 2]])
    want = p.reshape(SIZE, SIZE, SIZE)[1, :, 2]
    agree(count(drawn[:, 1], SIZE), 3000 * want / want.sum(), torch.zeros(SIZE), "completions")


# -- uniform noise -----------------------------------------------------------------------------------------


def posterior(prior, m):
    """log p(x | z) [V (z), 1, V] of one site with p(x) = prior."""
    at_z = torch.eye(len(prior), dtype=torch.float64)
    return (prior.log() + at_z * evidence(m, len(prior))).log_softmax(-1)[:, None]


def at(z, x, m, size):
    """q(z | x) at m."""
    return (1 - m) * (z == x).double() + m / size


NODES = torch.linspace(0, 1, 1001, dtype=torch.float64)  # of Simpson's rule
SIMPSON = torch.tensor([1.0] + [4.0, 2.0] * 499 + [4.0, 1.0], dtype=torch.float64) / 3000


def enumerated(log_pi_of, size, x, steps=None, schedule="linear"):
    """The bound of one site, every noisy value by its probability; in continuous time on a grid fine at the data."""
    if steps is None:
        m, weight = (NODES**3).clamp(1e-12, 1 - 1e-9), SIMPSON * 3 * NODES**2
        s = None
    else:
        s, m = (levels(schedule, steps)[k : steps + k] for k in (0, 1))
        weight = torch.ones(steps, dtype=torch.float64)
    total = 0.0
    for z in range(size):
        zs = torch.full((len(m), 1), z)
        xs, log_pi = torch.full_like(zs, x), log_pi_of(zs, m)
        nats = rate(log_pi, xs, zs, m) if s is None else step_nats(log_pi, xs, zs, s, m)
        total += float((weight * at(torch.tensor(z), torch.tensor(x), m, size) * nats[:, 0]).sum())
    return total


@pytest.mark.parametrize("steps", [1, 3, None])
def test_uniform_bounds_of_a_perfect_net_are_the_likelihood(steps):
    """One site, whose posterior is Bayes': the bound is log p(x) for any number of steps, and in continuous time."""
    prior = torch.tensor([0.6, 0.05, 0.3, 0.05], dtype=torch.float64)

    def bayes(z, m):
        own = torch.nn.functional.one_hot(z, 4) * evidence(m, 4).view(-1, 1, 1)
        return (prior.log() + own).log_softmax(-1)

    for x in range(4):
        assert enumerated(bayes, 4, x, steps, "cosine") == pytest.approx(float(prior[x].log()), abs=1e-4)


def test_errors_of_uniform_bounds_tell_how_far_they_are_off():
    """Two errors hold 95% of all cases, though draws at little noise are rare and heavy: evenly over m, with sites that
    are replaced by chance alone, they held 70%, and the noise was 13 to 17 times as large."""
    torch.manual_seed(1)
    model = MaskedDiffusion(MaskedDiffusionConfig(process="uniform", inner_width=16), Codes((1,), 3))
    torch.nn.init.normal_(model.net.net.last.weight, std=1.0)
    model.eval().requires_grad_(False)
    for x in range(3):
        truth = enumerated(lambda z, m: model.posterior(z, m, None), 3, x)
        lik = model.log_prob(torch.full((3000, 1), x), request=VariationalBound(draws=100))
        off = lik.nats - truth
        assert ((off.abs() < 2 * lik.mc_se).double().mean() - 0.95).abs() < 0.02
        assert off.square().mean().sqrt() < 0.08
        assert lik.mc_se.square().mean().item() == pytest.approx(off.square().mean().item(), rel=0.15)


def test_steps_back_from_uniform_noise_are_those_of_bayes_rule():
    """p(z_s | z) by summing the joint over x."""
    prior = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    s, m = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    v = torch.arange(3)
    to_s = at(v[:, None], v, s, 3)  # [z_s, x]
    on = at(v[:, None], v, 1 - (1 - m) / (1 - s), 3)  # [z, z_s]
    joint = on * (to_s @ prior)
    got = reverse(posterior(prior, m), v[:, None], s.expand(3), m.expand(3))[:, 0].exp()
    assert torch.allclose(got, joint / joint.sum(1, keepdim=True), atol=1e-10)


def test_uniform_bounds_tighten_and_hold():
    """In T steps below the enumerated chain of one site, whose net is wrong; many steps come near continuous time."""
    torch.manual_seed(1)
    model = MaskedDiffusion(MaskedDiffusionConfig(process="uniform", inner_width=16), Codes((1,), 3))
    torch.nn.init.normal_(model.net.net.last.weight, std=1.0)
    model.eval().requires_grad_(False)
    z = torch.arange(3)[:, None]
    net = lambda z, m: model.posterior(z, m, None)  # noqa: E731
    limit = [enumerated(net, 3, x) for x in range(3)]
    for steps in (1, 3):
        chain = torch.full((3,), 1 / 3, dtype=torch.float64)
        for j in range(steps, 0, -1):
            s, m = (levels("linear", steps)[k].expand(3) for k in (j - 1, j))
            chain = chain @ reverse(net(z, m), z, s, m)[:, 0].exp()
        bound = [enumerated(net, 3, x, steps) for x in range(3)]
        assert all(b <= float(p.log()) + 1e-9 for b, p in zip(bound, chain, strict=True))
        lik = model.log_prob(z, request=VariationalBound(draws=100, steps=steps))
        assert ((lik.nats - torch.tensor(bound).double()).abs() < 4.5 * lik.mc_se + 1e-5).all()
    x = model.sample(4000, sampler=Ancestral(3), generator=generator(2))
    agree(count(x[:, 0], 3), 4000 * chain, torch.zeros(3), "draws")
    assert [enumerated(net, 3, x, 3000) for x in range(3)] == pytest.approx(limit, abs=2e-3)
    lik = model.log_prob(z, request=VariationalBound(draws=100))
    assert ((lik.nats - torch.tensor(limit).double()).abs() < 4.5 * lik.mc_se).all()


# -- texts -------------------------------------------------------------------------------------------------


def strings(space, **options):
    torch.manual_seed(0)
    model = MaskedDiffusion(MaskedDiffusionConfig(width=16, layers=1, n_heads=2, **options), space)
    torch.nn.init.normal_(model.net.ends.out.weight, std=0.5)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("block", [2, 3, 8])
def test_strings_longer_than_the_block_sum_to_one(block):
    """In windows that move by half a block."""
    model = strings(Text("ab", has_eos=False, length=5), block=block)
    x = torch.tensor(list(itertools.product(range(2), repeat=5)))
    assert abs(float(model.log_prob(x, request=InOrder()).nats.exp().sum()) - 1) < 1e-5
    bounds = model.log_prob(x, request=AnyOrder(draws=16))
    assert float(bounds.nats.exp().sum()) < 1.02
    drawn = model.sample(3000, sampler=Unmasking(order="raster"), generator=generator(1))
    p = model.log_prob(x, request=InOrder()).nats.exp()
    agree(count(index_of(x.double(), drawn.double()), 32), 3000 * p, torch.zeros(32), "strings")


def test_lengths_have_a_distribution():
    """Of all lengths, beyond the block, too; documents sum to one with it."""
    space = Text("ab", has_eos=True, length=3)
    model = strings(space, block=4)
    rows = [[], [0], [1, 1], [0, 1, 0], [1, 1, 1]]
    x = torch.full((5, 3), -1)
    for row, symbols in zip(x, rows, strict=True):
        row[: len(symbols)] = torch.tensor(symbols, dtype=torch.int64)
    model.prepare(x, None, None, generator(0))
    log_p = model.lengths(torch.arange(200)).double()
    assert abs(float(log_p.exp().sum()) - 1) < 1e-5
    assert torch.allclose(log_p[:4].exp(), torch.tensor([1, 1, 1, 2]).double() / 5, atol=0.05)
    every = [torch.full((1, 1), -1)] + [torch.tensor(list(itertools.product(range(2), repeat=n))) for n in range(1, 5)]
    total = sum(float(model.log_prob(v, request=InOrder()).nats.exp().sum()) for v in every)
    assert total == pytest.approx(float(log_p[:5].exp().sum()), abs=1e-5)


def test_bits_are_counted_per_byte_of_utf8():
    """A bound on texts of characters of one to four bytes is told per byte of what they are on disk."""
    texts = ["é🙂a", "aaaa", "éé🙂🙂", "🙂"]
    model = strings(Text("aé🙂", has_eos=True, length=6), block=8)
    x = model.space.parse(texts)
    found = mean_log_prob(model, Part(x))
    nats = float(model.log_prob(x).nats.sum())
    assert found.n == 4
    assert found.bits_per_dim == pytest.approx(-nats / math.log(2) / sum(len(t.encode()) for t in texts), rel=1e-6)


def test_samplers_of_texts():
    model = strings(Text("abc", has_eos=False, length=9), block=4)
    for sampler in (Ancestral(3), Unmasking(steps=2), Unmasking(order="confidence"), StepByStep(7)):
        x = model.sample(20, sampler=sampler, generator=generator(0))
        assert x.shape == (20, 7 if isinstance(sampler, StepByStep) else 9)
        assert int(x.min()) >= 0
    cold = model.sample(50, sampler=Unmasking(order="raster", temperature=1e-4), generator=generator(0))
    assert (cold == cold[0]).all()
    known = torch.tensor([True, False, True] * 3).expand(20, -1)
    done = model.given().complete(x := model.sample(20, generator=generator(1)), known, generator=generator(2))
    assert torch.equal(done[known], x[known])
    assert not torch.equal(done, x)


# -- what it serves ----------------------------------------------------------------------------------------


def test_what_is_refused_says_why():
    for space, options, word in (
        (PAIR, {"process": "uniform"}, "Use process=absorbing"),
        (Text("ab", length=600), {}, "Give a larger"),
        (Text("ab", length=6), {"net": "mlp"}, "Leave net at auto"),
        (Image(4, 4, 1, 8), {"head": "bernoulli"}, "Leave out head"),
    ):
        with pytest.raises(Unsupported, match=word):
            MaskedDiffusion(MaskedDiffusionConfig(**options), space)
    noisy = MaskedDiffusion(MaskedDiffusionConfig(process="uniform"), Codes((2,), 3))
    with pytest.raises(UsageError, match="does not answer InOrder"):
        noisy.log_prob(torch.zeros(1, 2, dtype=torch.int64), request=InOrder)
    with pytest.raises(UsageError, match="temperature"):
        MaskedDiffusion(MaskedDiffusionConfig(), PAIR).sample(1, sampler=Unmasking(temperature=0.5))
    for own in ({"grid": "karras"}, {"guidance": 2.0}):
        with pytest.raises(UsageError, match="Leave out grid and guidance"):
            small().sample(1, sampler=Ancestral(4, **own))


@pytest.mark.parametrize("net", ["mlp", "transformer"])
@pytest.mark.parametrize("space", [Label(("a", "b", "c")), Image(2, 2, 1, 40), PAIR], ids=lambda s: s.name)
def test_an_untrained_net_is_the_product_of_the_marginals(net, space):
    """Nothing is known yet: every order, and every bound, gives the marginals that were looked at."""
    options = {"net": net} | ({"width": 16, "layers": 1, "n_heads": 2} if net == "transformer" else {})
    model = MaskedDiffusion(MaskedDiffusionConfig(components=4, **options), space)
    if space.pixels:
        x = torch.randint(0, 40, (50, 1, 2, 2), dtype=torch.uint8)
    elif space.values:
        x = torch.tensor([0, 0, 1, 2, 0, 0])
    else:
        x = torch.randn(50, 2, dtype=torch.float64)
        x[:, 0] = (x[:, 0] > 0.5).double()
        x[::3, 1] = math.nan
    model.prepare(x, None, None, generator(0))
    numbers = [
        model.log_prob(x, request=r).nats for r in (InOrder(), InOrder("reverse"), AnyOrder(2), VariationalBound(2, 1))
    ]
    for other in numbers[1:]:
        assert torch.allclose(other, numbers[0], atol=1e-4)
    if space.values:
        assert torch.allclose(numbers[0].exp()[:3], torch.tensor([4.5, 4.5, 1.5]).double() / 7.5, atol=1e-4)
