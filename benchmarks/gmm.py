"""Gaussian mixtures against scikit-learn: time of an EM iteration and of scoring, at equal log-likelihood.

    python benchmarks/gmm.py [--quick] [--rounds N] [--only full-100000-16-10,...]

Both start from the same parameters on the same data and take the same steps: scikit-learn's own E step and M
step (without its checks and its closing sweep) against one ``step`` of our learner; ``score_samples`` against
``log_prob`` (with its checks). Rounds interleave, so that a slow moment of the machine hits all alike; figures
are medians, ``iqr`` is the interquartile range over the median. Prints one JSON object a line and writes all to
benchmarks/results/gmm.json. Covariance floors: scikit-learn's reg_covar is 0 where likelihoods are compared for
equality, and in races 1e-10 (float64) and 1e-6 (float32); ours binds nowhere here.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
import warnings
from typing import Any

THREADS = 2
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(THREADS)

import numpy as np
import sklearn
import torch
from sklearn.mixture import GaussianMixture as Peer

from pofx.core.learner import Batch
from pofx.families.gmm import GaussianMixture, MixtureConfig
from pofx.spaces import Real, Table
from timing import Results, middle, race

# covariance, rows, columns, components, E and M steps before log-likelihoods are compared
GRID = [
    ("full", 100_000, 2, 10, 5),
    ("full", 100_000, 16, 10, 5),
    ("full", 100_000, 16, 50, 3),
    ("full", 100_000, 64, 10, 3),
    ("full", 100_000, 64, 50, 2),
    ("diag", 100_000, 16, 10, 5),
    ("diag", 100_000, 64, 50, 3),
    ("full", 1_000_000, 16, 10, 2),
    ("diag", 1_000_000, 16, 50, 2),
]
QUICK = [("full", 20_000, 2, 10, 3), ("full", 20_000, 16, 10, 3), ("diag", 20_000, 16, 10, 3)]


def data(n: int, d: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a mixture of k unequal Gaussians, and k of the rows to start from."""
    g = np.random.default_rng(seed)
    mean = g.normal(size=(k, d)) * 6 / np.sqrt(max(d, 2))
    root = g.normal(size=(k, d, d)) / np.sqrt(d) * 0.5 + np.eye(d) * 0.5
    label, x = g.integers(k, size=n), np.empty((n, d))
    for j in range(k):
        mine = label == j
        x[mine] = mean[j] + g.normal(size=(mine.sum(), d)) @ root[j].T
    return x, x[g.choice(n, k, replace=False)]


class ScikitLearn:
    """With no floor it fails on a component that starves, hence a small one in races; equality is tested without."""

    def __init__(
        self, x: np.ndarray, start: np.ndarray, variance: np.ndarray, kind: str, dtype: str, floor: float = 0.0
    ) -> None:
        k = len(start)
        self.x = x.astype(dtype)
        precision = {"full": np.tile(np.diag(1 / variance), (k, 1, 1)), "diag": np.tile(1 / variance, (k, 1))}[kind]
        self.model = Peer(
            k,
            covariance_type=kind,
            reg_covar=floor,
            weights_init=np.full(k, 1 / k, dtype),
            means_init=start.astype(dtype),
            precisions_init=precision.astype(dtype),
        )
        self.model._initialize_parameters(self.x, np.random.RandomState(0), xp=np)

    def step(self) -> float:
        log_lik, log_r = self.model._e_step(self.x)
        self.model._m_step(self.x, log_r)
        return float(log_lik)

    def score(self) -> None:
        self.model.score_samples(self.x)


class Pofx:
    def __init__(self, x: np.ndarray, start: np.ndarray, variance: np.ndarray, kind: str, dtype: str) -> None:
        k, d = start.shape
        self.x = torch.from_numpy(x)
        config = MixtureConfig(covariance=kind, components=k, dtype=dtype, floor=1e-8, wishart_prior=0.0)  # type: ignore[arg-type]
        self.model = GaussianMixture(config, Table(tuple(Real(f"x{j}") for j in range(d))))
        self.model.measure(self.x)
        v = torch.from_numpy(variance)
        covariances = v.diag().expand(k, d, d) if kind == "full" else v.expand(k, d)
        self.model.start_at(torch.full((k,), 1 / k, dtype=torch.float64), torch.from_numpy(start), covariances)
        self.learner = self.model.learner(self.model.recipe(self.model.space))
        self.batch, self.generator = Batch(self.x, total=len(x)), torch.Generator().manual_seed(0)

    def step(self) -> float:
        return -float(self.learner.step(self.batch, self.generator)["loss"])

    def score(self) -> None:
        self.model.log_prob(self.x)


def compare(results: Results, kind: str, n: int, d: int, k: int, steps: int, rounds: int, seconds: float) -> None:
    x, start = data(n, d, k)
    runs: dict[str, Any] = {}
    for dtype, floor in (("float64", 1e-10), ("float32", 1e-6)):
        runs[f"sklearn {dtype}"] = ScikitLearn(x, start, x.var(0), kind, dtype, floor)
        runs[f"pofx {dtype}"] = Pofx(x, start, x.var(0), kind, dtype)
    case = {"covariance": kind, "n": n, "d": d, "k": k}
    log_lik = {name: [run.step() for _ in range(steps)][-1] for name, run in runs.items()}
    exact = log_lik["sklearn float64"]
    for what, call in (("EM iteration", "step"), ("score", "score")):
        times = race({name: getattr(run, call) for name, run in runs.items()}, rounds, seconds, pause=0.3)
        for name, each in times.items():
            (ms, iqr), (peer, _) = middle(each), middle(times[f"sklearn {name.split()[1]}"])
            entry = {"ms": ms * 1e3, "iqr": iqr, "rounds": len(each), "ratio": peer / ms}
            if call == "step":
                entry |= {"log_lik": log_lik[name], "difference": abs(log_lik[name] / exact - 1)}
            results.emit(what=what, who=name, **case, **entry)


def agree(results: Results, name: str, x: np.ndarray, start: np.ndarray, steps: int = 10) -> None:
    """Relative difference of the log-likelihood from scikit-learn's after the same steps, in float64."""
    a, b = (make(x, start, x.var(0), "full", "float64") for make in (ScikitLearn, Pofx))
    p, q = ([run.step() for _ in range(steps)][-1] for run in (a, b))
    results.emit(what="agreement", data=name, n=len(x), d=x.shape[1], k=len(start), steps=steps, sklearn=p, pofx=q,
         difference=abs(q / p - 1))  # fmt: skip


def hard_cases(results: Results) -> None:
    x, start = data(20_000, 8, 5, seed=3)
    agree(results, "as it is", x, start)
    agree(results, "mean 1e6, deviation 1", x / x.std(0) + 1e6, start / x.std(0) + 1e6)
    g = np.random.default_rng(4)
    rotation = np.linalg.qr(g.normal(size=(8, 8)))[0]
    squash = rotation * np.logspace(0, -4, 8) @ rotation.T  # variances from 1 to 1e-8 along hidden axes
    agree(results, "condition number 1e8", x @ squash, start @ squash)


def million(results: Results) -> None:
    """The whole fit of one million rows to convergence or 100 sweeps, start included."""
    x, _ = data(1_000_000, 16, 50)
    t = time.perf_counter()
    model = GaussianMixture(MixtureConfig(components=50), Table(tuple(Real(f"x{j}") for j in range(16))))
    rows, generator = torch.from_numpy(x), torch.Generator().manual_seed(0)
    model.prepare(rows, None, None, generator)
    learner, sweeps = model.learner(model.recipe(model.space)), 0
    batch = Batch(rows, total=len(rows))
    while not learner.finished and sweeps < 100:
        loss, sweeps = float(learner.step(batch, generator)["loss"]), sweeps + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    results.emit(what="fit", n=1_000_000, d=16, k=50, seconds=time.perf_counter() - t, sweeps=sweeps, log_lik=-loss,
         converged=learner.finished, peak_GB=peak)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=20.0, help="per race, after three rounds")
    parser.add_argument("--only", default="", help="comma list of covariance-n-d-k, agreement, million")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(THREADS)
    wanted = set(filter(None, options.only.split(",")))
    results = Results(
        options.quick or bool(wanted), torch=torch.__version__, sklearn=sklearn.__version__, numpy=np.__version__,
        threads=torch.get_num_threads(), cpu=torch.backends.cpu.get_cpu_capability(),
    )  # fmt: skip
    if not options.quick and (not wanted or "million" in wanted):
        million(results)  # first, while the peak of memory is its own
    if not wanted or "agreement" in wanted:
        hard_cases(results)
    for kind, n, d, k, steps in QUICK if options.quick else GRID:
        if not wanted or f"{kind}-{n}-{d}-{k}" in wanted:
            compare(results, kind, n, d, k, steps, options.rounds, options.seconds)
    results.save()


if __name__ == "__main__":
    main()
