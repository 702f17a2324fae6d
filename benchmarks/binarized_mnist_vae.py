"""Fixed binarized MNIST: the IWAE bound of ``vae`` on the test part, in nats.

    python benchmarks/binarized_mnist_vae.py --data DATA [--preset NAME] [--minutes M] [--seed 0] [--quick]

writes benchmarks/results/binarized_mnist_vae.json, or ..._NAME.json of another preset than elbo. Data and split as in
binarized_mnist_made.py; the weights with the best validation bound are kept, and the test part is scored once.

    elbo    pixels independent given z, trained by the ELBO
    iwae    the same net trained by the IWAE bound of 5 draws with doubly reparameterised gradients
    vamp    the same by the ELBO, with a VampPrior
    iaf     the same by the ELBO, with an inverse autoregressive flow as posterior and a masked one as prior
    local   iaf, and pixels that see those before them within a window of 4

Each preset has its minutes, rows and draws of the test score; ``--quick`` takes seconds and keeps nothing.
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
NET: dict[str, Any] = {"latent": 32, "channels": 16}
FLOWS: dict[str, Any] = {"posterior": "iaf:layers=2,hidden=256,told=64", "prior": "maf:layers=4,hidden=128,blocks=2"}
RECIPE: dict[str, Any] = {"batch": 128, "lr": 2e-3, "ema": 0.999}
PRESETS: dict[str, dict[str, Any]] = {  # minutes of training; rows and draws of the test score
    "elbo": {"options": NET, "minutes": 24.0, "rows": 10000, "draws": 500},
    "iwae": {
        "options": NET | {"objective": "iwae", "train_draws": 5}, "minutes": 58.0, "rows": 10000, "draws": 500,
    },
    "vamp": {"options": NET | {"prior": "vamp:components=128"}, "minutes": 58.0, "rows": 1000, "draws": 1000},
    "iaf": {"options": NET | FLOWS, "minutes": 58.0, "rows": 1000, "draws": 1000},
    "local": {"options": NET | FLOWS | {"window": 4}, "minutes": 58.0, "rows": 1000, "draws": 1000},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/binarized-mnist")
    parser.add_argument("--preset", choices=PRESETS, default="elbo")
    parser.add_argument("--minutes", type=float, help="of training [default: the preset's]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--test-rows", type=int, help="score so many test rows, drawn by seed 0 [default: the preset's]"
    )
    parser.add_argument("--quick", action="store_true", help="20 seconds of training, 50 rows by 50 draws; not kept")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    name = "" if args.preset == "elbo" else f"_{args.preset}"
    out = args.out or RESULTS.with_name(f"{RESULTS.stem}{name}.json")
    minutes = 1 / 3 if args.quick else args.minutes or preset["minutes"]
    rows, draws = (50, 50) if args.quick else (args.test_rows or preset["rows"], preset["draws"])

    import torch

    from pofx.core.requests import Iwae
    from pofx.evaluate.likelihood import mean_log_prob
    from pofx.train.fit import fit

    torch.set_num_threads(args.threads)
    data = load(args.data)
    run = fit(
        data, "vae", seconds=minutes * 60, seed=args.seed, options=preset["options"], recipe=RECIPE,
        progress=lambda entry: print(entry, flush=True) if "valid" in entry else None,
    )  # fmt: skip
    started = time.perf_counter()
    result = mean_log_prob(run.model, data.test.draw(rows, 0), request=Iwae(draws))
    record = {
        "family": "vae",
        "preset": args.preset,
        "bound": f"IWAE-{draws}",
        "test_nats": round(result.nats, 3),
        "kind": result.kind.__name__,
        "data_se": round(result.se, 3),
        "mc_se": round(result.mc_se, 4),
        "rows": result.n,
        "split": data.split,
        "seed": args.seed,
        "minutes": minutes,
        "fit_seconds": round(run.seconds, 1),
        "score_seconds": round(time.perf_counter() - started, 1),
        "steps": run.steps,
        "parameters": run.model.parameter_count(),
        "threads": args.threads,
        "options": preset["options"],
        "recipe": RECIPE,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(record))
    if not args.quick:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
