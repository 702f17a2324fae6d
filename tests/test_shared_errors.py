"""Errors that rows share, such as that of an estimated log Z: means keep them, differences cancel them."""

import dataclasses
import json
import math

import pytest
import torch

from pofx import information as info
from pofx.commands.log_prob import _columns as columns_of
from pofx.core import likelihood as lk
from pofx.core.comparison import compare
from pofx.core.errors import UsageError
from pofx.core.likelihood import Estimate, Exact, LowerBound, Number, UpperBound, make, mean, number
from pofx.core.measure import Measure
from pofx.data.parts import Part
from pofx.evaluate.likelihood import Mean, Tally, mean_log_prob, summarise, verdicts
from pofx.report import leaderboard
from pofx.spaces import Real, Table
from pofx.testing.wrong import Energy, Moments, Plain

PLANE = Table((Real("a"), Real("b")))
ONE = Measure.counting(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int, seed: int = 0) -> torch.Tensor:
    return (
        torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64) @ torch.tensor([[2.0, 0.5], [0.0, 1.0]]).double()
    )


def fitted(cls: type[Moments] = Energy, seed: int = 0) -> Moments:
    model = cls(Plain(), PLANE)
    model.learn(rows(500, seed), None)
    return model


def bound(nats: list[float], shared: dict[str, float], kind: type = UpperBound) -> lk.Available:
    return make(kind, torch.tensor(nats).double(), PLANE.measure, draws=4, caveat="c", shared=shared)


# -- an energy with a known log Z ------------------------------------------------------------------------


def test_the_error_of_an_estimated_log_z_is_calibrated_and_does_not_fall_with_rows():
    """log Z of the energy is known in closed form: log det of the Cholesky factor + log 2 pi."""
    model, truth, x = fitted(), fitted(Moments), rows(2000, 1)
    for n in (10, 2000):
        exact = truth.log_prob(x[:n]).nats.mean().item()
        found = [mean(number(model.log_prob(x[:n], generator=seeded(k)))) for k in range(200)]
        z = torch.tensor([(f.nats - exact) / f.shared_se for f in found])
        assert z.square().mean().sqrt() == pytest.approx(1, abs=0.15)
        assert found[0].shared_se == pytest.approx(0.016, abs=0.004)  # sqrt(1.05^4 - 1) / sqrt(400), of two dimensions
        assert found[0].kind is UpperBound


def test_rows_in_blocks_share_one_source(monkeypatch):
    model, x = fitted(), rows(300)
    monkeypatch.setattr(Energy, "rows_per_pass", lambda self: 7)
    whole = mean_log_prob(model, Part(x), generator=seeded(3))
    assert len(whole.shared) == 1
    assert whole.shared_se == pytest.approx(mean(number(model.log_prob(x[:5], generator=seeded(3)))).shared_se)


@pytest.mark.parametrize("shared", [True, False])
def test_verdicts_on_two_energies_are_calibrated(shared):
    """Of one estimate the difference has no error but of rows; of two estimates it spreads as it says."""
    model, other, x = fitted(), fitted(seed=1), rows(1000, 2)
    gap = (fitted(Moments).log_prob(x).nats - fitted(Moments, 1).log_prob(x).nats).mean().item()
    z = []
    for k in range(100):
        a = model.log_prob(x, generator=seeded(k))
        if shared:  # the same estimate, of which only the rows' energies differ
            b = dataclasses.replace(a, nats=a.nats + 0.1 * torch.randn(1000, generator=seeded(k + 500)))
            z.append(compare(a, b).nats / compare(a, b).se)
            assert compare(a, b).se == pytest.approx(0.1 / math.sqrt(1000), rel=0.1)
        else:
            b = other.log_prob(x, generator=seeded(k + 500))
            apart = mean(number(a) - number(b))
            assert len(apart.shared) == 2
            z.append((apart.nats - gap) / apart.shared_se)
            assert compare(a, b).se == pytest.approx(math.hypot(apart.se, apart.shared_se))
    assert torch.tensor(z).square().mean().sqrt() == pytest.approx(1, abs=0.2)


def test_a_large_gap_decides_only_beyond_the_shared_error():
    nats = [-1.0 - 0.001 * k for k in range(200)]
    sure, unsure = (make(LowerBound, torch.tensor(nats).double(), ONE, shared={"log Z": s}) for s in (0.1, 5.0))
    worse = make(UpperBound, torch.tensor(nats).double() - 4.0, ONE)
    assert compare(sure, worse).verdict == "better"
    assert compare(unsure, worse).verdict == "undecided"
    assert compare(unsure, worse).se == pytest.approx(5.0, rel=1e-3)


# -- arithmetic ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "total", "difference"),
    [
        (Exact, Exact, Exact, Exact),
        (Exact, LowerBound, LowerBound, UpperBound),
        (LowerBound, LowerBound, LowerBound, Estimate),
        (LowerBound, UpperBound, Estimate, LowerBound),
        (UpperBound, Exact, UpperBound, UpperBound),
        (Estimate, Exact, Estimate, Estimate),
        (lk.Unavailable, Exact, lk.Unavailable, lk.Unavailable),
    ],
)
def test_numbers_join_their_kinds(a, b, total, difference):
    x, y = Number(a, -3.0, 0.3, 0.1), Number(b, -1.0, 0.4, 0.2)
    assert (x + y).kind is total
    assert (x - y).kind is difference
    assert ((x - y).nats, (x + y).nats, (x * 2).nats, (-x).nats) == (-2.0, -4.0, -6.0, 3.0)
    assert (x - y).se == pytest.approx(0.5)
    assert (x * -2).se == pytest.approx(0.6)
    assert (x + dataclasses.replace(y, se=None)).se is None


def test_shared_errors_add_by_source_and_sign():
    x = Number(UpperBound, 0.0, 0.0, shared={"u": 0.3, "v": 0.4})
    y = Number(UpperBound, 0.0, 0.0, shared={"v": 0.4, "w": 1.2})
    assert x.shared_se == pytest.approx(0.5)
    assert (x - y).shared_se == pytest.approx(math.hypot(0.3, 1.2))
    assert (x + y).shared_se == pytest.approx(math.hypot(0.3, 0.8, 1.2))
    assert (x - x).error == 0


def test_means_weigh_rows_and_keep_what_they_share():
    by_class = {"log Z of class 0": torch.tensor([0.2, 0.2, 0.0]), "log Z of class 1": torch.tensor([0.0, 0.0, 0.6])}
    lik = make(UpperBound, torch.tensor([-1.0, -2.0, -6.0]), ONE, shared=by_class)
    found = mean(number(lik))
    assert list(found.shared.values()) == pytest.approx([0.4 / 3, 0.2])
    weighted = mean(number(lik), torch.tensor([1.0, 1.0, 2.0]))
    assert list(weighted.shared.values()) == pytest.approx([0.1, 0.3])
    per_unit = mean(number(lik), size=torch.tensor([2.0, 2.0, 2.0]))
    assert per_unit.shared_se == pytest.approx(found.shared_se / 2)
    assert per_unit.se == pytest.approx(found.se / 2)


def test_shapes_and_parts_carry_what_rows_share():
    first, second = bound([-1.0, -2.0], {"u": 0.5}), bound([-3.0], {"v": 0.25})
    both = lk.cat([first, second])
    assert {k: v.tolist() for k, v in both.shared.items()} == {"u": [0.5, 0.5, 0.0], "v": [0.0, 0.0, 0.25]}
    assert lk.per_row(lambda t: t[2:], both).shared["v"].tolist() == [0.25]
    beside = lk.stack([first, first])
    assert beside.shared["u"].shape == beside.nats.shape == (2, 2)
    with pytest.raises(UsageError, match="exact"):
        make(Exact, torch.zeros(2), ONE, shared={"u": 0.1})


# -- where it is told ------------------------------------------------------------------------------------


def test_text_tells_it_and_widens_the_error():
    lik = bound([-1.0, -2.0, -3.0, -4.0], {"log Z": 3.0, "another": 4.0})
    assert repr(lik) == "≤ -2.5 ± 5.0 nats (4 rows; shared 5)"
    found = summarise(lik, PLANE, torch.full((4,), 2.0))
    assert found.text == "≤ -2.5 ± 5.0 nats (shared 5)"
    # hypot(sqrt(5 / 12), 5) nats over two dimensions, in bits
    assert found.bits_text == "≥ 1.8 ± 3.6 bits/dim"


def test_json_and_verdicts_carry_it():
    lik = bound([-1.0, -2.0, -3.0, -4.0], {"log Z": -3.0})
    found = summarise(lik, PLANE, torch.full((4,), 2.0))
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["shared"] == {"log Z": -3.0}
    assert plain["shared_se"] == 3.0
    assert plain["error"] == pytest.approx(math.hypot(found.se, 3.0))
    back = Mean.from_json(plain)
    assert back.shared == found.shared
    assert torch.equal(back.rows.shared["log Z"], lik.shared["log Z"])
    other = summarise(bound([-9.0, -9.1, -9.2, -9.3], {"log Z of another": 3.0}), PLANE, torch.full((4,), 2.0))
    pair = verdicts({"a": back, "b": other})["a"]["b"]
    assert pair["se"] > math.hypot(3.0, 3.0)
    same = verdicts({"a": back, "b": summarise(bound([-9.0, -9.1, -9.2, -9.3], {"log Z": -3.0}), PLANE, torch.ones(4))})
    assert same["a"]["b"]["se"] < 1


def test_rows_in_blocks_have_the_mean_of_all_at_once():
    tally, parts = Tally(PLANE), [bound([-1.0, -2.0, -4.0], {"u": 0.5}), bound([-3.0], {"u": 0.5, "v": 2.0})]
    for part in parts:
        tally.add(part)
    once = mean(number(lk.cat(parts)))
    assert tally.mean().shared == pytest.approx(once.shared) == {"u": 0.5, "v": 0.5}
    assert (tally.mean().nats, tally.mean().se) == pytest.approx((once.nats, once.se))


def test_a_leaderboard_shows_it():
    found = summarise(bound([-1.0, -2.0, -3.0, -4.0], {"log Z": 3.0}), PLANE, torch.full((4,), 2.0))
    cell = leaderboard.likelihood({"likelihood": found.to_json(rows=False)}, 4)
    assert cell.text == "≤ −2.5 ± 3.1"
    assert cell.small == "shared 3"
    assert "All rows share the error of log Z." in cell.why


def test_information_carries_it():
    """Cross-entropies keep it with a turned sign, a divergence of two densities of one estimate has none of it."""
    model, exact = fitted(), fitted(Moments)
    crossed = info.cross_entropy(exact, model, draws=4000, generator=seeded(1))
    assert crossed.kind is LowerBound
    assert crossed.shared_se == pytest.approx(0.016, abs=0.004)
    assert "(shared 0.01" in str(crossed)
    truth = info.entropy(exact, draws=4000, generator=seeded(1)).nats
    assert abs(crossed.nats - truth) < 4 * math.hypot(crossed.se, crossed.shared_se)

    class SameDraws(Energy):
        """Whatever the seed, log Z is one estimate."""

        def rows_log_prob(self, x, c, budget, noise):
            noise.seed = 5
            return super().rows_log_prob(x, c, budget, noise)

    same = fitted(SameDraws)
    assert info.kl(same, same, draws=100).shared_se == 0
    assert info.jensen_shannon(same, same, draws=100).shared_se == pytest.approx(0, abs=1e-6)
    apart = info.jensen_shannon(same, fitted(SameDraws, 1), draws=2000, generator=seeded(2))
    assert 0 < apart.shared_se < 0.016  # each part of it by how well its draws are told apart


def test_written_rows_have_a_column_of_it():
    written = columns_of(torch.arange(2), bound([-1.0, -2.0], {"u": 3.0, "v": -4.0}))
    assert written["shared_se"].tolist() == [5.0, 5.0]
    assert "shared_se" not in columns_of(torch.arange(2), make(LowerBound, torch.zeros(2), ONE))
