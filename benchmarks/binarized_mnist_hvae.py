"""Fixed binarized MNIST: the IWAE bound of ``hvae`` on the test part, in nats, and the rates of its groups.

    python benchmarks/binarized_mnist_hvae.py --data DATA --minutes 58 --threads 2 --seed 0
    python benchmarks/binarized_mnist_hvae.py --data DATA --quick                       (seconds, nothing is kept)

writes benchmarks/results/binarized_mnist_hvae.json. Data and split as in binarized_mnist_made.py; the weights with the
best validation bound are kept, and the test part is scored once. ``--no-window``: pixels independent given the latents
(results/binarized_mnist_hvae_no_window.json).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from binarized_mnist_made import load

RESULTS = Path(__file__).parent / "results"
OPTIONS: dict[str, Any] = {"groups": (1, 1, 2, 1), "latent": 4, "channels": 32, "window": 4, "warmup": 0.3}
RECIPE: dict[str, Any] = {
    "batch": 64, "lr": 4e-3, "optimizer": "muon", "schedule": "linear", "warmup": 100, "ema": 0.999, "skip": 20.0
}  # fmt: skip
QUICK: dict[str, Any] = {"groups": (1, 1), "latent": 1, "channels": 8, "window": 2, "warmup": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/binarized-mnist")
    parser.add_argument("--minutes", type=float, default=58.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--draws", type=int, default=100, help="of the IWAE bound")
    parser.add_argument("--test-rows", type=int, default=10000, help="score so many test rows, drawn by seed 0")
    parser.add_argument("--no-window", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="the file of the result")
    args = parser.parse_args()

    import torch

    from pofx.core.requests import Elbo, Iwae
    from pofx.evaluate.likelihood import mean_log_prob
    from pofx.train.fit import fit

    torch.set_num_threads(args.threads)
    data = load(args.data)
    options = QUICK if args.quick else OPTIONS
    options = options | {"window": 0} if args.no_window else options
    draws, rows = (16, 50) if args.quick else (args.draws, args.test_rows)
    run = fit(
        data, "hvae", seed=args.seed, options=options, recipe=RECIPE,
        progress=lambda entry: print(entry, flush=True) if "valid" in entry else None,
        **({"steps": 5, "valid_rows": 50} if args.quick else {"seconds": args.minutes * 60}),
    )  # fmt: skip
    started = time.perf_counter()
    test = data.test.draw(rows, 0)  # the file's rows are in order of their digit
    result = mean_log_prob(run.model, test, request=Iwae(draws))
    terms = run.model.given().bound_terms(test.x[:1000], request=Elbo(8))
    report = run.model.latent_report(test.x[:1000])
    record = {
        "family": "hvae",
        "bound": f"IWAE-{draws}",
        "test_nats": round(result.nats, 3),
        "kind": result.kind.__name__,
        "data_se": round(result.se, 3),
        "mc_se": round(result.mc_se, 4),
        "rows": result.n,
        "split": data.split,
        "seed": args.seed,
        "minutes": args.minutes,
        "terms": {name: round(float(term.nats.mean()), 3) for name, term in terms.items()},
        "collapsed": report.collapsed,
        "active": f"{report.active} of {len(report.kl)}",
        "fit_seconds": round(run.seconds, 1),
        "score_seconds": round(time.perf_counter() - started, 1),
        "steps": run.steps,
        "skipped": [entry.get("skipped") for entry in run.log],
        "valid": [entry.get("valid") for entry in run.log],
        "parameters": run.model.parameter_count(),
        "threads": args.threads,
        "options": options,
        "recipe": RECIPE,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(record))
    if not args.quick:
        out = args.out or RESULTS / f"binarized_mnist_hvae{'_no_window' if args.no_window else ''}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
