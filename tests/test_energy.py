"""Energies: log Z against sums and quadrature, its shared error, what is learned in the plane, the chains' buffer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pofx
from pofx.cli import main
from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Estimate, LowerBound, Unavailable, UpperBound, mean, number
from pofx.core.noise import RowNoise
from pofx.core.requests import (
    DequantisedPartitionAis,
    DequantisedReversePartitionAis,
    ExactLikelihood,
    PartitionAis,
    ReversePartitionAis,
)
from pofx.data.parts import Data, Part
from pofx.evaluate.sandwich import sandwich
from pofx.families.ebm import Ebm, EbmConfig
from pofx.families.jem import Jem, JemConfig
from pofx.families.latent import log_mean_exp
from pofx.families.rbm import Rbm, RbmConfig
from pofx.mcmc.ais import anneal, sigmoid_schedule
from pofx.spaces import Category, Image, Label, Real, Reals, Table
from pofx.testing.conformance import Subject, run_check
from pofx.testing.oracles import cases, image_states, plane, table_states

PLANE = Table((Real("a"), Real("b")))
BITS = Image(3, 3, 1, 2)
AB = Label(("a", "b"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- an RBM, whose log Z is a sum over states ---------------------------------------------------------------------


def rbm(space=BITS, hidden: int = 6, context=None, scale: float = 0.7, **options) -> Rbm:
    """Random weights, and frequencies that are not those of the weights."""
    model = Rbm(RbmConfig(hidden=hidden, warmup=100, **options), space, context)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=seeded(p.numel())))
        model.rate.copy_(0.5 * torch.randn(model.rate.shape, generator=seeded(3)))
    return model.requires_grad_(False).eval()


MIXED = Table((Category("k", ("u", "v", "w")), Category("m", ("u", "v")), Category("n", ("u", "v", "w", "x"))))


@pytest.mark.parametrize(("space", "hidden"), [(BITS, 4), (BITS, 12), (MIXED, 3), (MIXED, 9)], ids=str)
def test_an_rbm_sums_to_one_by_either_layer(space, hidden) -> None:
    model = rbm(space, hidden)
    states = image_states(space) if space.pixels else table_states(space)
    assert model.summed == ("hidden" if hidden < 5 else "visible")
    assert float(model.log_prob(states).nats.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_the_free_energy_is_the_sum_over_hidden_units() -> None:
    """log sum_h exp(b'v + a'h + v'Wh) term by term, of one hidden state after the other."""
    model, v = rbm(hidden=3), image_states(BITS)[::37]
    h = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    y = v.flatten(1).float()
    joint = (y @ model.visible)[:, None] + h @ model.hidden + y @ model.weight @ h.T
    torch.testing.assert_close(-model.given().energy(v).float(), joint.logsumexp(1), atol=1e-4, rtol=1e-5)
    p = (joint.softmax(1)[:, :, None] * h).sum(1)
    torch.testing.assert_close(model.given().encode(v).mean, p, atol=1e-5, rtol=1e-4)


def test_gibbs_sweeps_keep_the_distribution() -> None:
    """The transition matrix of a sweep, by its frequencies from exact draws, moves no probability."""
    model, states = rbm(MIXED, 3), table_states(MIXED)
    p = model.log_prob(states).nats.exp()
    drawn = states[torch.multinomial(p, 20000, replacement=True, generator=seeded())]
    y = model.sweep(model.states(drawn, None)[0], None, RowNoise.by_place(len(drawn), seeded(1)))
    after = torch.cdist(model.rows(y), states).argmin(1).bincount(minlength=len(states))
    expected = 20000 * p
    assert ((after - expected).square() / expected).sum() < len(states) + 5 * math.sqrt(2 * len(states))


@pytest.mark.parametrize("kind", [PartitionAis, ReversePartitionAis])
def test_log_z_of_an_rbm_by_annealing_is_that_of_enumeration(kind) -> None:
    """Within 0.1 nat and within its error, which is that of the spread over seeds."""
    model, x, seeds = rbm(), image_states(BITS)[:5], 8 if kind is PartitionAis else 3
    exact = model.log_prob(x, request=ExactLikelihood()).nats
    gaps, said = [], []
    for seed in range(seeds):
        lik = model.log_prob(x, request=kind(temperatures=100, chains=48), generator=seeded(seed))
        if isinstance(lik, Unavailable):
            continue
        gap = number(lik).nats - exact
        assert gap.std() < 1e-6  # one log Z for all rows
        gaps.append(float(gap.mean()))
        said.append(float(number(lik).shared_se[0]))
    assert len(gaps) > 0.7 * seeds
    assert max(map(abs, gaps)) < 0.1
    z = torch.tensor(gaps) / torch.tensor(said)
    assert abs(float(z.mean())) * math.sqrt(len(z)) < 4
    assert 0.4 < float(z.square().mean().sqrt()) < 1.9


def test_annealing_of_few_chains_is_without_bias_and_says_its_error() -> None:
    """Forward and back from exact draws, 12 chains each: E[w] is the ratio, and the mean square of what they say is
    the variance. Their own errors are as noisy as those of any 12 numbers: (log Z - truth) / se is wider than normal.
    """
    model, states, groups, chains = rbm(scale=1.0), image_states(BITS), 250, 12
    p, noise = model.log_prob(states).nats.exp(), RowNoise(5, lambda: torch.arange(groups))
    ratio = float(model.log_z(None, 1) - model.log_z_known(None))
    exact = states[torch.multinomial(p, groups * chains, replacement=True, generator=seeded(3))]
    rising, kernels = sigmoid_schedule(30), model.kernels(None, None, chains)
    for start, betas, truth in (
        (model.known_draws(chains, noise), rising, ratio),
        (model.states(exact, None)[0], rising.flip(0), -ratio),
    ):
        log_w = anneal(lambda y, beta: model.log_path(y, None, beta), betas, kernels, start, noise, 1, groups)
        w = (log_w - truth).exp()
        assert abs(float(w.mean()) - 1) < 4 * float(w.std()) / math.sqrt(len(w))
        log_mean, se = log_mean_exp(log_w.view(groups, chains))
        assert float(log_mean.std() / se.square().mean().sqrt()) == pytest.approx(1, abs=0.2)
        assert 1 < float(((log_mean - truth) / se).square().mean().sqrt()) < 1.5


def test_rows_share_log_z_and_a_mean_keeps_its_error() -> None:
    """The same estimate for 5 rows and for all, in whatever blocks; averaged away, its error would be a lie."""
    model, states = rbm(), image_states(BITS)
    few, many = (
        mean(number(model.log_prob(x, request=PartitionAis(), generator=seeded(1)))) for x in (states[:5], states)
    )
    assert few.shared == pytest.approx(many.shared)
    assert len(few.shared) == 1
    assert many.shared_se > 0
    assert mean(number(model.log_prob(states, request=PartitionAis(), generator=seeded(1)))).mc_se == 0
    other = mean(number(model.log_prob(states[:5], request=PartitionAis(), generator=seeded(2))))
    assert not few.shared.keys() & other.shared.keys()
    with torch.no_grad():
        model.weight.mul_(1.01)
    again = mean(number(model.log_prob(states[:5], request=PartitionAis(), generator=seeded(1))))
    assert not few.shared.keys() & again.shared.keys()  # of other weights, and not remembered of these


class Annealing(Rbm):
    """Never exact, so that the suite looks at what annealing says."""

    def answers(self, asked) -> bool:
        return asked is PartitionAis


class AveragedAway(Annealing):
    """Wrong: as if each row had an annealing of its own, whose errors a mean over rows averages away."""

    def partition(self, h, n, request, noise):
        found = super().partition(h, n, request, noise)
        return replace(found, se=sum(move.abs() for move in found.shared.values()), shared={})


@pytest.mark.parametrize(("cls", "outcome"), [(Annealing, "passed"), (AveragedAway, "failed")])
def test_the_suite_catches_an_error_of_log_z_that_is_averaged_away(cls, outcome) -> None:
    subject = Subject(cls, next(c for c in cases() if c.name == "binary image"))
    model = cls(RbmConfig(hidden=6, temperatures=20), BITS).requires_grad_(False).eval()
    model.load_state_dict(rbm().state_dict())
    subject.__dict__["fitted"] = (model, None)
    assert run_check(subject, "mc error is calibrated").outcome == outcome


def test_an_energy_lies_between_the_two_sides_of_its_log_z() -> None:
    """The number by enumeration is between, and a sandwich of all rows has the error of one log Z each side."""
    model, part = rbm(), Part(image_states(BITS)[::13])
    exact = float(model.log_prob(part.x, request=ExactLikelihood()).nats.mean())
    both = sandwich(model, part, request=PartitionAis(temperatures=100, chains=48))
    assert (both.lower.kind, both.upper.kind, both.gap.kind) == (LowerBound, UpperBound, UpperBound)
    assert both.simulated is None
    below, above = (side.shared_se for side in (both.lower, both.upper))
    assert both.lower.nats - 4 * below < exact < both.upper.nats + 4 * above
    assert both.gap.nats < 0.2
    assert both.gap.shared_se == pytest.approx(math.hypot(below, above))


def test_the_sandwich_of_few_of_many_rows_says_so(tmp_path, capsys) -> None:
    data = Data("bits", "memory", BITS, *[Part(image_states(BITS)[:240])] * 3)
    pofx.fit(data, "rbm", steps=20, options={"hidden": 4, "warmup": 100}, out=tmp_path / "run")
    np.save(tmp_path / "rows.npy", image_states(BITS)[:240, 0].numpy())
    asked = ["log-prob", str(tmp_path / "run"), str(tmp_path / "rows.npy"), "--estimator", "sandwich"]
    assert main([*asked, "--temperatures", "5"]) == 0
    told = capsys.readouterr()
    assert "200 of the 240 rows" in " ".join(told.err.split())
    assert "on 200 rows, from below: ≥" in told.out
    assert main([*asked, "--temperatures", "5", "--max-rows", "9", "--out", str(tmp_path / "o.csv")]) == 0
    assert "240 rows" not in capsys.readouterr().err
    rows = [int(line.split(",")[0]) for line in (tmp_path / "o.csv").read_text().splitlines()[1:]]
    assert len(rows) == 9
    assert rows == sorted(rows)
    assert main([*asked, "--max-rows", "0"]) != 0
    assert "0 rows" in capsys.readouterr().err
    assert main([*asked[:3], "--max-rows", "5"]) != 0
    assert "goes with --estimator sandwich" in capsys.readouterr().err


def test_a_large_rbm_has_bounds_and_no_exact_number() -> None:
    model = Rbm(RbmConfig(hidden=30), Image(6, 6, 1, 2))
    assert ExactLikelihood not in model.own_estimators
    assert model.own_estimators[0] is PartitionAis


def test_chains_that_have_not_mixed_give_no_lower_bound() -> None:
    """Two far modes: all visible units on, or all off."""
    model = Rbm(RbmConfig(hidden=4, warmup=20), Image(4, 4, 1, 2)).requires_grad_(False)
    model.weight.fill_(4.0)
    model.visible.fill_(-8.0)
    model.hidden.fill_(-32.0)
    lik = model.log_prob(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), request=ReversePartitionAis())
    assert isinstance(lik, Unavailable)
    assert "not mixed" in lik.reason


def test_given_a_context_each_has_its_own_log_z() -> None:
    model, states = rbm(context=AB), image_states(BITS)
    c = torch.arange(len(states)) % 2
    for k in (0, 1):
        assert float(model.given(torch.tensor(k)).log_prob(states).nats.exp().sum()) == pytest.approx(1, abs=1e-5)
    lik = number(model.given(c).log_prob(states, request=PartitionAis()))
    assert len(lik.shared) == 2
    assert sum(v != 0 for v in lik.shared.values()).tolist() == [1] * len(states)  # type: ignore[union-attr]
    gap = lik.nats - model.given(c).log_prob(states).nats
    for k in (0, 1):
        assert float(gap[c == k].std()) < 1e-6
        assert float(gap[c == k].mean().abs()) < 5 * float(lik.shared_se[c == k].mean())


def test_where_each_row_has_its_own_context_errors_are_its_own() -> None:
    model = rbm(context=Reals((2,)))
    x = image_states(BITS)[:120]
    c = torch.randn(120, 2, generator=seeded(), dtype=torch.float64)
    lik = model.given(c).log_prob(x, request=PartitionAis(temperatures=60, chains=32))
    assert not lik.shared
    z = (lik.nats - model.given(c).log_prob(x, request=ExactLikelihood()).nats) / lik.mc_se
    assert z.square().mean().sqrt() == pytest.approx(1, abs=0.35)


def test_pcd_learns_a_known_rbm() -> None:
    """From its own draws the likelihood comes near the truth's, which it cannot beat."""
    truth, states = rbm(scale=1.0), image_states(BITS)
    p = truth.log_prob(states).nats.exp()
    x = states[torch.multinomial(p, 4000, replacement=True, generator=seeded(5))]
    torch.manual_seed(0)
    model = Rbm(RbmConfig(hidden=6, buffer=256), BITS)
    model.prepare(x, None, None, seeded())
    learner = model.learner(Recipe(lr=3e-2, schedule="linear"))
    for i in range(150):
        learner.step(Batch(x[torch.randint(4000, (128,), generator=seeded(i))], total=128, progress=i / 150), seeded(i))
    with torch.no_grad():
        gap = float((p * (truth.log_prob(states).nats - model.log_prob(states).nats)).sum())
    assert 0 < gap < 0.25


# -- energies of the plane ----------------------------------------------------------------------------------------


def tilted(space=PLANE, context=None, cls: type = Ebm, **options):
    """Random nets with some relief."""
    torch.manual_seed(1)
    config = (EbmConfig if cls is Ebm else JemConfig)(hidden=16, blocks=1, warmup=150, **options)
    model = cls(config, space, context)
    with torch.no_grad():
        model.net.last.weight.mul_(6.0)
    x = torch.randn(200, *space.event_shape, generator=seeded(), dtype=torch.float64)
    if space.pixels:
        x = torch.randint(space.symbols, (200, *space.event_shape), generator=seeded()).to(torch.uint8)
    model.prepare(x, None, None, seeded())
    return model.requires_grad_(False).eval(), x


def quadrature(model, c: Tensor | None = None) -> float:
    """log Z in raw units by the midpoint rule."""
    grid, cell = plane(9.0, 181)
    p = model.given() if c is None else model.given(c)
    return float((-p.energy(grid)).double().logsumexp(0) + math.log(cell))


@pytest.mark.parametrize("kind", [PartitionAis, ReversePartitionAis])
def test_log_z_in_the_plane_is_that_of_quadrature(kind) -> None:
    model, x = tilted()
    truth, z, seeds = quadrature(model), [], 6 if kind is PartitionAis else 2
    for seed in range(seeds):
        lik = number(model.log_prob(x[:3], request=kind(temperatures=30), generator=seeded(seed)))
        if lik.available:
            z.append(float((-(lik.nats + model.given().energy(x[:3])) - truth)[0] / lik.shared_se[0]))
    assert len(z) > 0.6 * seeds
    assert torch.tensor(z).abs().max() < 4.5
    assert torch.tensor(z).square().mean().sqrt() < 1.8


def test_the_gradient_of_log_p_has_that_of_log_z() -> None:
    """By the parameters, against the gradient of the quadrature."""
    model, x = tilted()
    model.requires_grad_()
    lik = model.log_prob(x[:20], request=PartitionAis(temperatures=50, chains=400))
    got = torch.autograd.grad(lik.nats.mean(), model.net.last.weight)[0].flatten()
    grid, _ = plane(9.0, 121)
    log_f = model.log_f(grid, None)
    log_z = log_f.logsumexp(0)
    want = torch.autograd.grad(model.log_f(x[:20], None).mean() - log_z, model.net.last.weight)[0].flatten()
    assert float((got - want).norm() / want.norm()) < 0.15


def test_the_score_is_the_slope_of_the_energy() -> None:
    model, x = tilted()
    model = model.double()
    score = model.given().score(x[:30])
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = 1e-4
        slope = (model.given().energy(x[:30] - step) - model.given().energy(x[:30] + step)) / 2e-4
        torch.testing.assert_close(score[:, j], slope, atol=1e-3, rtol=1e-3)


def test_levels_have_an_estimate_and_a_lower_bound() -> None:
    model, x = tilted(Image(2, 2, 1, 4))
    assert model.own_estimators == (DequantisedPartitionAis, DequantisedReversePartitionAis)
    lik = model.log_prob(x[:8], request=DequantisedPartitionAis(temperatures=20, draws=4))
    assert isinstance(lik, Estimate)
    assert "cells" in lik.caveat
    assert len(lik.shared) == 1
    assert (lik.mc_se > 0).all()
    back = model.log_prob(x[:8], request=DequantisedReversePartitionAis(temperatures=20, draws=4))
    assert isinstance(back, LowerBound | Unavailable)


def test_a_bound_on_levels_sums_to_at_most_one() -> None:
    model, _ = tilted(Image(2, 2, 1, 3))
    states = image_states(model.space)
    lik = model.log_prob(states, request=DequantisedPartitionAis(temperatures=100, chains=64, draws=16))
    assert 0.5 < float(lik.nats.exp().sum()) < 1.05


def test_what_has_no_gradient_is_refused_by_name() -> None:
    for space in (MIXED, Table((Real("a"), Category("k", ("u", "v")))), Table((Real("a", nullable=True),))):
        with pytest.raises(Unsupported, match="no gradient"):
            Ebm(EbmConfig(), space)
    with pytest.raises(Unsupported, match="binary"):
        Rbm(RbmConfig(), PLANE)
    with pytest.raises(Unsupported, match="--given"):
        Jem(JemConfig(), PLANE)


# -- what is learned ------------------------------------------------------------------------------------------------


def distance(model, source, generator: torch.Generator) -> float:
    """KL(source || model), by draws of the source and the quadrature's log Z."""
    x = source.sample(4000, generator)
    return float((source.log_prob(x) + model.given().energy(x) + quadrature(model)).mean())


@pytest.mark.parametrize("objective", ["pcd", "cd", "nce", "score-matching", "sliced", "denoising"])
@pytest.mark.long
def test_energies_of_the_plane_are_recovered(objective) -> None:
    source = pofx.data.synthetic.equal(
        [pofx.data.synthetic.blob(1.2, 0.5, 0.5), pofx.data.synthetic.blob(-1.0, -0.8, 0.6)]
    )
    x = source.sample(4000, seeded())
    torch.manual_seed(0)
    chains = {"steps": 10, "step_size": 0.3} if objective in ("pcd", "cd") else {}
    model = Ebm(EbmConfig(objective=objective, hidden=48, blocks=1, **chains), PLANE)
    model.prepare(x, None, None, seeded())
    learner = model.learner(Recipe(lr=4e-3, schedule="linear"))
    for i in range(400):
        learner.step(Batch(x[torch.randint(4000, (200,), generator=seeded(i))], total=200, progress=i / 400), seeded(i))
    assert distance(model.requires_grad_(False), source, seeded(9)) < 0.2


# -- the learner -----------------------------------------------------------------------------------------------------


def learner_of(**options):
    torch.manual_seed(0)
    model = Ebm(EbmConfig(hidden=8, blocks=1, steps=2, buffer=40, **options), PLANE, AB)
    x, c = torch.randn(64, 2, generator=seeded(), dtype=torch.float64), torch.arange(64) % 2
    model.prepare(x, c, None, seeded())
    return model, model.learner(Recipe(batch=16)), x, c


def steps(learner, x, c, first: int, last: int) -> None:
    for i in range(first, last):
        rows = torch.arange(16) + 16 * (i % 4)
        learner.step(Batch(x[rows], c[rows], total=16, step=i), seeded(i))


def test_a_learner_that_resumes_goes_on_to_the_bit() -> None:
    model, one, x, c = learner_of()
    steps(one, x, c, 0, 4)
    weights, state = {k: v.clone() for k, v in model.state_dict().items()}, one.state_dict()
    kept = {k: v.clone() for k, v in state["buffer"].items()}
    state = {
        "optimizer": [
            torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, s)
            for s in state["optimizer"]
        ],
        "buffer": kept,
    }
    steps(one, x, c, 4, 7)
    other, two, *_ = learner_of()
    other.load_state_dict(weights)
    two.load_state_dict(state)
    steps(two, x, c, 4, 7)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_buffer_fills_up_and_keeps_contexts_beside_states() -> None:
    _, learner, x, c = learner_of(restart=0.0)
    steps(learner, x, c, 0, 1)
    first = {k: v.clone() for k, v in learner.buffer.items()}
    assert first["y"].shape == (16, 2)
    steps(learner, x, c, 1, 3)
    assert learner.buffer["y"].shape == (48, 2)
    before = learner.buffer["y"].clone()
    steps(learner, x, c, 3, 4)
    assert learner.buffer["y"].shape == (48, 2)
    assert int((learner.buffer["y"] != before).any(1).sum()) == 16
    assert torch.equal(learner.buffer["c"][:16], first["c"])


def test_chains_have_no_shares_of_a_batch() -> None:
    model, *_ = learner_of()
    with pytest.raises(UsageError, match="accumulate"):
        model.learner(Recipe(accumulate=2))


# -- JEM ---------------------------------------------------------------------------------------------------------


def test_the_parts_of_jem_agree() -> None:
    """p(y | x) = p(x, y) / p(x), with joint and marginal energies; log Z by quadrature of both."""
    model, x = tilted(context=AB, cls=Jem)
    joint = torch.stack([-model.given(torch.tensor(k)).energy(x[:9]) for k in (0, 1)], 1)
    marginal = -model.given(null=True).energy(x[:9])
    torch.testing.assert_close(joint.logsumexp(1), marginal, atol=1e-5, rtol=1e-5)
    told = model.given(null=True).classify(x[:9]).nats
    torch.testing.assert_close(told, joint - marginal[:, None], atol=1e-5, rtol=1e-5)
    prediction = pofx.predict(model, x[:9])
    torch.testing.assert_close(prediction.nats, told)
    for k in (0, 1):
        lik = number(model.given(torch.tensor(k)).log_prob(x[:3]))
        off = -(lik.nats + model.given(torch.tensor(k)).energy(x[:3])) - quadrature(model, torch.tensor(k))
        assert float(off.abs().max()) < 5 * float(lik.shared_se[0])


def test_jem_without_its_generative_part_is_a_classifier() -> None:
    model, x = tilted(context=AB, cls=Jem, generative=0.0)
    h = torch.arange(8) % 2
    y = model.states(x[:8], None)[0]
    loss = model.contrast(y, h, y, h)["loss"]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model.logits(y), h, reduction="none"))
