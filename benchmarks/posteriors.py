"""Chains on posteriors that are known: are the moments within their errors, and does the verdict say what is so?

    python benchmarks/posteriors.py [--quick] [--seed 0]

One JSON line for each (``pofx.testing.posteriors``): the largest difference of a moment from the truth in standard
errors, the verdict, and effective draws per second. Then R-hat and effective sample sizes beside those of ArviZ, where
``arviz-stats`` is installed, on draws of many shapes: the largest relative difference.
"""

from __future__ import annotations

import argparse
import time

import torch

from pofx.mcmc import diagnostics
from pofx.testing.posteriors import POSTERIORS, measure
from timing import Results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few draws; results not kept")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(args.quick, seed=args.seed)
    for name, make in POSTERIORS.items():
        posterior, started = make(), time.perf_counter()
        found = measure(posterior, 64, 100 if args.quick else 500, 100 if args.quick else 1000, args.seed)
        seconds = time.perf_counter() - started
        told = {k: v for k, v in found.verdict.to_json().items() if k != "text"}
        results.emit(
            what="posterior", name=name, off=found.off, moments=len(found.truth), ess=found.ess,
            expected="mixed" if posterior.mixes else "not mixed", seconds=seconds, ess_per_second=found.ess / seconds,
            **told,
        )  # fmt: skip
    against_arviz(results, args.seed)
    results.save()


def against_arviz(results: Results, seed: int) -> None:
    try:
        from arviz_stats.base import array_stats
    except ModuleNotFoundError:
        results.emit(what="arviz", skipped="pip install arviz-stats")
        return
    worst, compared = dict.fromkeys(("rhat", "ess_bulk", "ess_tail", "ess_mean"), 0.0), 0
    for x in draws(seed):
        y = x.numpy()
        theirs = {
            "rhat": array_stats.rhat(y, chain_axis=0, draw_axis=1, method="rank"),
            "ess_bulk": array_stats.ess(y, chain_axis=0, draw_axis=1, method="bulk"),
            "ess_tail": array_stats.ess(y, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95)),
            "ess_mean": array_stats.ess(y, chain_axis=0, draw_axis=1, method="mean"),
        }
        compared += y.shape[2]
        for name, value in theirs.items():
            ours = getattr(diagnostics, name)(x)
            worst[name] = max(worst[name], float((ours / torch.as_tensor(value) - 1).abs().max()))
    results.emit(what="arviz", quantities=compared, **{f"{name}_differs": value for name, value in worst.items()})


def draws(seed: int) -> list[torch.Tensor]:
    """Autoregressive chains [C, T, 3] of many shapes and dependences; with ties, heavy tails, apart from each other."""
    lot = torch.Generator().manual_seed(seed)

    def chains(rho: float, c: int, t: int) -> torch.Tensor:
        x = torch.randn(c, t, 3, generator=lot, dtype=torch.float64)
        for i in range(1, t):
            x[:, i] = rho * x[:, i - 1] + (1 - rho**2) ** 0.5 * x[:, i]
        return x

    shapes = ((4, 1000), (2, 37), (8, 101), (16, 250), (4, 4), (4, 5), (4, 6), (4, 7), (3, 9))
    found = [chains(rho, c, t) for rho in (0.0, 0.5, 0.9, 0.99, -0.5, -0.95) for c, t in shapes]
    usual = chains(0.5, 4, 300)
    return [*found, usual.mul(3).exp(), usual.round(), (usual > 0).double(), usual.tan(), usual.abs(),
            usual + torch.arange(4.0)[:, None, None]]  # fmt: skip


if __name__ == "__main__":
    main()
