"""Fixed binarized MNIST: the IWAE-500 bound of ``vae`` on the test part, in nats.

    python benchmarks/binarized_mnist_vae.py --data DATA --minutes 24 --seed 0

writes benchmarks/results/binarized_mnist_vae.json. Data and split as in binarized_mnist_made.py; the weights
with the best validation bound are kept, and the test part is scored once.
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

RESULTS = Path(__file__).parent / "results" / "binarized_mnist_vae.json"
OPTIONS: dict[str, Any] = {"latent": 32, "channels": 16}
RECIPE: dict[str, Any] = {"batch": 128, "lr": 2e-3, "ema": 0.999}
DRAWS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/binarized-mnist")
    parser.add_argument("--minutes", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--test-rows", type=int, default=10000, help="score the first so many test rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    import torch

    from pofx.core.requests import Iwae
    from pofx.evaluate.likelihood import mean_log_prob
    from pofx.train.fit import fit

    torch.set_num_threads(args.threads)
    data = load(args.data)
    run = fit(
        data, "vae", seconds=args.minutes * 60, seed=args.seed, options=OPTIONS, recipe=RECIPE,
        progress=lambda entry: print(entry, flush=True) if "valid" in entry else None,
    )  # fmt: skip
    started = time.perf_counter()
    result = mean_log_prob(run.model, data.test[: args.test_rows], request=Iwae(DRAWS))
    record = {
        "family": "vae",
        "bound": f"IWAE-{DRAWS}",
        "test_nats": round(result.nats, 3),
        "kind": result.kind.__name__,
        "data_se": round(result.se, 3),
        "mc_se": round(result.mc_se, 4),
        "rows": result.n,
        "split": data.split,
        "seed": args.seed,
        "minutes": args.minutes,
        "fit_seconds": round(run.seconds, 1),
        "score_seconds": round(time.perf_counter() - started, 1),
        "steps": run.steps,
        "parameters": run.model.parameter_count(),
        "threads": args.threads,
        "options": OPTIONS,
        "recipe": RECIPE,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
