"""Minibatch optimal transport: our coupling of data and noise beside those of POT and torchcfm, where they are.

    python benchmarks/coupling.py [--quick] [--minutes 1] [--threads 2]

One JSON line per figure. All couple the same rows, in interleaved rounds; times are medians, costs are means of
|x - eps|^2. POT's is the exact plan and each row's partner in it; torchcfm draws pairs from that plan with replacement.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pofx.paths.objective import COUPLINGS
from timing import Results, middle, race

Coupled = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def ours(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    return x, COUPLINGS["optimal"](x, eps)


def peers() -> dict[str, Coupled]:
    if importlib.util.find_spec("ot") is None:
        return {}
    import ot

    def plan(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        even = np.full(len(x), 1 / len(x))
        found = ot.emd(even, even, (torch.cdist(x, eps) ** 2).numpy().astype(np.float64))
        return x, eps[torch.from_numpy(found.argmax(1))]

    found: dict[str, Coupled] = {"POT emd": plan}
    package = importlib.util.find_spec("torchcfm")
    if package is not None and package.submodule_search_locations:
        # alone: the package itself asks for libraries of images
        file = Path(package.submodule_search_locations[0]) / "optimal_transport.py"
        spec = importlib.util.spec_from_file_location("torchcfm_optimal_transport", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found["torchcfm"] = module.OTPlanSampler("exact").sample_plan
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, results not kept")
    parser.add_argument("--minutes", type=float, default=1.0, help="about, for all")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    contestants = {"pofx": ours, **peers()}
    results = Results(args.quick, torch=torch.__version__, threads=args.threads)
    for missing in {"POT emd", "torchcfm"} - contestants.keys():
        results.emit(what="skipped", who=missing, why="not installed")
    sizes = [(64, 784), (256, 2), (256, 63)] + ([] if args.quick else [(256, 784), (1024, 63)])
    for batch, dim in sizes:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, dim, generator=generator).sign() + 0.3 * torch.randn(batch, dim, generator=generator)
        eps = torch.randn(batch, dim, generator=generator)
        calls = {name: partial(coupled, x, eps) for name, coupled in contestants.items()}
        times = race(calls, 5 if args.quick else 200, seconds=60 * args.minutes / len(sizes))
        mine = middle(times["pofx"])[0]
        for name, taken in times.items():
            seconds, iqr = middle(taken)
            a, b = contestants[name](x, eps)
            cost = (a - b).square().sum(1).mean().item()
            results.emit(
                what="coupling", who=name, batch=batch, dim=dim, ms=1000 * seconds, iqr=iqr, cost=cost,
                times_ours=seconds / mine,
            )  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
