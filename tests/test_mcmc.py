"""Chains: diagnostics, kernels on known posteriors, annealing, and the verdict that leaves with every draw."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata

from pofx.cli import main
from pofx.core.errors import UsageError, WrongShape
from pofx.core.noise import RowNoise
from pofx.core.registry import family
from pofx.core.requests import MalaChains
from pofx.core.verdict import NotMixed, Verdict
from pofx.evaluate.compare import compare
from pofx.mcmc import ais, chains, diagnostics
from pofx.mcmc.kernels import Gibbs, Hmc, Langevin, Mala
from pofx.report.build import build
from pofx.testing.checks_chains import CHAINS
from pofx.testing.posteriors import POSTERIORS, measure
from pofx.testing.wrong_chains import PLANTED
from pofx.train.fit import fit
from toys import ChainedGaussian, gaussian_data


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal_log_p(x: torch.Tensor) -> torch.Tensor:
    return -0.5 * x.square().sum(1)


# -- diagnostics -------------------------------------------------------------------------------------------


def slow_rhat(x):
    """Of chains [C, T], from the definitions of Vehtari et al. 2021."""
    half = x.shape[1] // 2
    halves = np.concatenate([x[:, :half], x[:, -half:]])

    def plain(z):
        n = z.shape[1]
        within, between = z.var(1, ddof=1).mean(), n * z.mean(1).var(ddof=1)
        return math.sqrt(((n - 1) / n * within + between / n) / within)

    return max(plain(slow_normalised(halves)), plain(slow_normalised(abs(halves - np.median(halves)))))


def slow_normalised(x):
    return norm.ppf((rankdata(x).reshape(x.shape) - 0.375) / (x.size + 0.25))


def slow_ess(x):
    """Of halves of chains [C, n]: the sum of autocorrelations, lag by lag, until a pair of them is not positive."""
    m, n = x.shape
    means = x.mean(1, keepdims=True)
    lagged = [np.mean([(row[: n - t] * row[t:]).sum() / n for row in x - means]) for t in range(n)]
    within = lagged[0] * n / (n - 1)
    total = within * (n - 1) / n + x.mean(1).var(ddof=1)
    rho = [1.0] + [1 - (within - v) / total for v in lagged[1:]]
    tau, before, t = -1.0, math.inf, 0
    while t < n - 4 and rho[t] + rho[t + 1] > 0:
        before = min(before, rho[t] + rho[t + 1])
        tau, t = tau + 2 * before, t + 2
    tau += max(rho[t], 0.0)
    return m * n / max(tau, 1 / math.log10(m * n))


def slow(x):
    half = x.shape[1] // 2

    def split(y):
        return np.concatenate([y[:, :half], y[:, -half:]])

    tails = [slow_ess(split((x <= np.quantile(x, p)).astype(float))) for p in (0.05, 0.95)]
    return slow_rhat(x), slow_ess(slow_normalised(split(x))), min(tails), slow_ess(split(x))


def draws(rho, c, t, seed=0):
    """Autoregressive chains [C, T, 2] float64."""
    x = torch.randn(c, t, 2, generator=gen(seed), dtype=torch.float64)
    for i in range(1, t):
        x[:, i] = rho * x[:, i - 1] + math.sqrt(1 - rho**2) * x[:, i]
    return x


SHAPES = {
    "independent": draws(0.0, 4, 100),
    "slow": draws(0.95, 4, 300),
    "alternating": draws(-0.9, 3, 101),
    "apart": draws(0.5, 4, 80) + torch.arange(4.0)[:, None, None],
    "heavy tails": draws(0.5, 4, 90).tan(),
    "ties": draws(0.7, 5, 60).round(),
    "repeated states": draws(0.5, 4, 40).repeat_interleave(3, 1),
    "short": draws(0.0, 4, 8),
}


def ours(x):
    return [f(x) for f in (diagnostics.rhat, diagnostics.ess_bulk, diagnostics.ess_tail, diagnostics.ess_mean)]


@pytest.mark.parametrize("name", SHAPES)
def test_diagnostics_are_those_of_the_definitions(name):
    x = SHAPES[name]
    for j in range(x.shape[2]):
        for found, truth in zip(ours(x), slow(x[:, :, j].numpy()), strict=True):
            assert float(found[j]) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_diagnostics_are_those_of_arviz(name):
    theirs = pytest.importorskip("arviz_stats.base").array_stats
    x = SHAPES[name]
    how = {"chain_axis": 0, "draw_axis": 1}
    truth = [
        theirs.rhat(x.numpy(), method="rank", **how),
        theirs.ess(x.numpy(), method="bulk", **how),
        theirs.ess(x.numpy(), method="tail", prob=(0.05, 0.95), **how),
        theirs.ess(x.numpy(), method="mean", **how),
    ]
    for found, value in zip(ours(x), truth, strict=True):
        assert found.numpy() == pytest.approx(value, rel=1e-6)


def test_effective_draws_are_those_of_an_autoregression():
    """S (1 - rho) / (1 + rho) for its mean."""
    x = draws(0.6, 16, 4000)
    assert diagnostics.ess_mean(x) == pytest.approx(64000 * 0.4 / 1.6, rel=0.1)


def test_what_cannot_be_told_is_no_number():
    few, broken = draws(0, 4, 3), draws(0, 4, 50)
    broken[1, 7, 0] = math.nan
    assert all(f.isnan().all() for f in ours(few))
    assert all(f.isnan().tolist() == [True, False] for f in ours(broken))
    assert not diagnostics.verdict(broken, 1.0, 0).mixed


def test_a_quantity_that_never_moves_says_nothing_and_chains_that_never_move_have_not_mixed():
    x = draws(0, 4, 800)
    still = torch.cat([x, torch.ones_like(x[:, :, :1])], 2)
    assert diagnostics.verdict(still, 0.9, 0) == diagnostics.verdict(x, 0.9, 0)
    assert diagnostics.verdict(x, 0.9, 0).mixed
    assert not diagnostics.verdict(torch.ones_like(x), 0.0, 0).mixed
    assert not diagnostics.verdict(x, 0.9, 3).mixed, "some diverged"


def test_a_verdict_is_the_worst_of_its_groups():
    good, bad = draws(0, 4, 800), draws(0.99, 4, 800, seed=1)
    both = diagnostics.verdict(torch.cat([good, bad]), None, 0, groups=2)
    assert both.ess_bulk == pytest.approx(diagnostics.verdict(bad, None, 0).ess_bulk)
    assert both.chains == 4
    assert not both.mixed


# -- kernels -------------------------------------------------------------------------------------------------

QUICK = ("gaussian by mala", "funnel", "ising")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in POSTERIORS])
def test_moments_of_known_posteriors(name):
    posterior = POSTERIORS[name]()
    chains, steps = (32, 200) if name in QUICK else (64, 300)
    found = measure(posterior, chains, steps, steps, seed=1)
    if posterior.mixes:
        assert found.off < 4, (found.mean, found.error, found.truth)
        assert found.verdict.rhat < 1.1, found.verdict
        assert found.verdict.ess_bulk > 200, found.verdict
    else:
        assert not found.verdict.mixed, found.verdict
        assert found.verdict.rhat > 1.1 or found.verdict.divergent > 100


@pytest.mark.parametrize(("kernel", "aim"), [(Mala(step_size=3.0), 0.574), (Hmc(step_size=1e-3, leapfrog=3), 0.8)])
def test_step_sizes_are_found_for_every_group(kernel, aim):
    """Targets of very different scales side by side: each gets its own, wherever it begins."""
    scale = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64).repeat_interleave(16)[:, None]
    start = torch.randn(48, 2, generator=gen(), dtype=torch.float64) * scale
    target = lambda x: -0.5 * (x / scale).square().sum(1)  # noqa: E731
    found = chains.run(kernel, target, start, 300, 300, 1, gen(1), groups=3, watched=300)
    spread = found.draws.unflatten(0, (3, 16)).std((1, 2)) / torch.tensor([[0.01], [1.0], [100.0]])
    assert spread.log().abs().max() < math.log(1.25), spread
    assert found.verdict.chains == 16
    assert abs(found.verdict.acceptance - aim) < 0.15, found.verdict


def test_langevin_without_rejection_is_as_wide_as_its_step_makes_it():
    """Its stationary variance is 1 / (1 - eps^2 / 4), and its verdict knows of no acceptance."""
    begun = torch.randn(400, 1, generator=gen(), dtype=torch.float64)
    found = chains.run(Langevin(step_size=1.0), normal_log_p, begun, 50, 50, 2, gen(1), watched=100)
    squares = found.draws[..., 0].square()
    error = squares.std() / diagnostics.ess_mean(squares).sqrt()
    assert abs(squares.mean() - 4 / 3) < 4 * error
    assert error < 0.03
    assert found.verdict.acceptance is None


def test_a_group_follows_from_its_row_alone():
    """With noise by rows what a row's chains do is the same beside any others."""
    scale = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)

    def of(rows):
        size = scale[rows].repeat_interleave(4)[:, None]
        begun = torch.ones(4 * len(rows), 2, dtype=torch.float64)
        noise = RowNoise(7, lambda: torch.tensor(rows) * 11 + 5)
        target = lambda x: -0.5 * (x / size).square().sum(1)  # noqa: E731
        return chains.run(Hmc(leapfrog=2), target, begun, 3, 20, 1, noise, groups=len(rows), watched=4).draws

    together, alone = of([0, 1, 2]), of([1])
    assert torch.allclose(together.unflatten(0, (3, 4))[1], alone, atol=1e-9)


def test_few_draws_have_a_verdict_of_many_states():
    begun = torch.randn(8, 2, generator=gen(), dtype=torch.float64)
    found = chains.run(Mala(), normal_log_p, begun, 1, 10, 1, gen(1), watched=60)
    assert found.draws.shape == (8, 1, 2)
    assert found.verdict.draws == 60
    assert found.rows(3).tolist() == found.draws[:3, 0].tolist()
    many = torch.randn(4, 100, generator=gen(), dtype=torch.float64)
    assert chains.run(Mala(), normal_log_p, many, 1, 10, 1, gen(1), watched=20).verdict.draws == 20


@pytest.mark.parametrize(
    ("error", "says", "start", "how"),
    [
        (WrongShape, "Give \\[C, D\\]", torch.zeros(4), {}),
        (UsageError, "no 3 groups", torch.zeros(4, 1), {"groups": 3}),
        (UsageError, "agrees with none", torch.zeros(4, 1), {"groups": 4}),
        (UsageError, "draws is 0", torch.zeros(4, 1), {"draws": 0}),
        (UsageError, "starts where log p is nan", torch.tensor([[0.0], [math.nan]]), {}),
    ],
)
def test_chains_that_cannot_be_are_named(error, says, start, how):
    asked = {"draws": 3, "warmup": 2, "thin": 1, "noise": gen()} | how
    with pytest.raises(error, match=says):
        chains.run(Mala(), normal_log_p, start, **asked)


@pytest.mark.parametrize(("option", "value"), [("step_size", 0.0), ("leapfrog", 0), ("target", 1.0)])
def test_options_of_kernels_are_checked(option, value):
    with pytest.raises(UsageError, match=option):
        Hmc(**{option: value})


# -- annealing -----------------------------------------------------------------------------------------------


def between(x, beta):
    """From N(0, I) to exp(-2 |x - 1|^2) in the plane: log Z_1 / Z_0 = log(1 / 4)."""
    return -0.5 * ((1 - beta) * x.square() + 4 * beta * (x - 1).square()).sum(1)


def test_annealing_closes_in_from_both_sides():
    truth, gaps = math.log(0.25), []
    begun = torch.randn(600, 2, generator=gen(), dtype=torch.float64)
    for temperatures in (5, 40):
        betas = ais.sigmoid_schedule(temperatures)
        steps = ais.tune(between, betas, Hmc(leapfrog=3), begun[:64] * 1.0, gen(1))
        assert steps.shape == (temperatures - 1, 1)
        fresh = torch.randn(600, 2, generator=gen(2), dtype=torch.float64)
        low = ais.anneal(between, betas, Hmc(leapfrog=3), fresh, gen(3), steps=steps)
        exact = 1 + 0.5 * fresh
        high = -ais.anneal(between, betas.flip(0), Hmc(leapfrog=3), exact, gen(4), steps=steps.flip(0))
        assert low.mean() <= truth <= high.mean()
        gaps.append(float(high.mean() - low.mean()))
    assert gaps[1] < 0.35 * gaps[0], gaps
    assert gaps[1] < 0.5


def test_annealing_by_gibbs_counts_the_states_of_a_lattice():
    """log Z of an Ising model, from the uniform distribution, by sweeps of each temperature."""
    ising = POSTERIORS["ising"]()
    every = (torch.arange(2**16)[:, None] >> torch.arange(16) & 1).double() * 2 - 1
    truth = float(ising.log_p(every).logsumexp(0)) - 16 * math.log(2)

    def at(beta):
        from pofx.testing import posteriors

        return posteriors.ising(coupling=0.3 * beta).kernel

    begun = torch.randint(2, (200, 16), generator=gen()).double() * 2 - 1
    log_w = ais.anneal(lambda x, beta: beta * ising.log_p(x), ais.sigmoid_schedule(12), at, begun, gen(1))
    w = (log_w - truth).exp()
    assert abs(w.mean() - 1) < 4 * w.std() / math.sqrt(200)
    assert w.std() / math.sqrt(200) < 0.1


@pytest.mark.parametrize("betas", [[], [0.0], [0.0, 0.5, 0.5, 1.0], [0.0, 0.7, 0.3, 1.0], [0.1, 1.0], [0.0, 2.0]])
def test_temperatures_that_do_not_rise_or_fall_are_named(betas):
    with pytest.raises(UsageError, match="neither rise from 0 to 1 nor fall"):
        ais.anneal(between, torch.tensor(betas), Mala(), torch.zeros(2, 2), gen())


def test_annealing_by_a_kernel_without_rejection_is_refused():
    with pytest.raises(UsageError, match="Langevin rejects nothing"):
        ais.anneal(between, ais.sigmoid_schedule(3), Langevin(), torch.zeros(2, 2), gen())
    with pytest.raises(UsageError, match="Gibbs has no step size"):
        ais.tune(between, ais.sigmoid_schedule(3), Gibbs(lambda x, noise: x), torch.zeros(2, 2), gen())


# -- mistakes that are caught --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
def test_the_chains_are_right(name):
    CHAINS[name]()


@pytest.mark.parametrize("mistake", PLANTED, ids=lambda m: m.name)
def test_planted_mistakes_are_caught(mistake):
    for name in mistake.caught_by:
        with mistake.planted(), pytest.raises(AssertionError):
            CHAINS[name]()


def test_every_check_catches_something():
    assert set(CHAINS) == set().union(*(m.caught_by for m in PLANTED))


# -- the verdict leaves with the draws -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("chained") / "run"
    fit(gaussian_data(), "chained-gaussian", steps=30, out=place)
    return place


def test_sample_tells_the_verdict(run, tmp_path, capsys):
    assert main(["sample", str(run), "40", "--out", str(tmp_path / "x.csv"), "--chains", "4", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)["chains"]
    assert told["mixed"] == (told["rhat"] <= 1.01 and min(told["ess_bulk"], told["ess_tail"]) >= 400)
    assert (told["chains"], told["draws"]) == (4, 100)
    assert f"chains: {told['text']}" in printed.err.replace("\n", " ")
    assert main(["sample", str(run), "3", "--warmup", "0", "--quiet"]) == 0, "printed draws have it, too"
    assert "chains: not mixed" in capsys.readouterr().err
    assert main(["sample", str(run), "3", "--json"]) == 2, "nothing of JSON is among printed rows"
    assert "--out FILE" in capsys.readouterr().err


def test_blocks_of_draws_have_the_worst_verdict(run, monkeypatch, capsys, tmp_path):
    from pofx.evaluate import stream
    from pofx.train.run import read_run

    monkeypatch.setattr(stream, "DRAWN", 8)
    assert main(["sample", str(run), "20", "--out", str(tmp_path / "x.csv"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["chains"]
    given = read_run(run).model.given()
    blocks = [verdict for _, verdict in stream.draw(stream.Drawing(given, None, 0), 20)]
    assert len(blocks) == 3
    assert told["rhat"] == max(v.rhat for v in blocks)
    assert told["ess_bulk"] == min(v.ess_bulk for v in blocks)


@pytest.mark.long
def test_a_comparison_and_its_report_tell_the_verdict(tmp_path, capsys):
    found = compare(
        gaussian_data(), ["chained-gaussian", "gaussian"], steps=20, samples=16, max_test=60, out=tmp_path / "c"
    )
    rows = {row["family"]: row["sampling"] for row in found.to_json()["rows"]}
    assert isinstance(rows["chained-gaussian"]["chains"]["mixed"], bool)
    assert "chains" not in rows["gaussian"]
    page = build(tmp_path / "c").read_text()
    assert "<h3>Markov chains</h3>" in page
    said = rows["chained-gaussian"]["chains"]
    assert f"{said['rhat']:.3f}" in page
    assert main(["report", str(tmp_path / "c")]) == 0


def test_python_is_warned_of_chains_that_have_not_mixed():
    model = family("chained-gaussian")(ChainedGaussian.Config(), gaussian_data().space)
    with pytest.warns(NotMixed, match="not mixed"):
        model.sample(4, generator=gen(), sampler=MalaChains(warmup=0, chains=2))
    x, verdict = model.given().sample_with_verdict(4, generator=gen(), sampler=MalaChains(chains=4, warmup=10))
    assert x.shape == (4, 3)
    assert isinstance(verdict, Verdict)
