"""Images in bits per dimension: a flow beside ``image-gpt`` in equal time, on 32x32 colour tiles and 28x28 digits.

    python benchmarks/tarflow.py DATA --data-set tiles --family tarflow --minutes 30 [--threads 2] [--quick]

adds one record to benchmarks/results/tarflow.json (one per set, family, options and seed). DATA is the folder that
holds images/. ``image-gpt`` is exact; a flow's number is a bound, of the density of dequantised levels. The tiles of
training and test come from different images; 5% of the training tiles validate.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "tarflow.json"
SETS = {
    "tiles": ("images/bsds300/bsds300_color32_tiles.npz", {}),
    "digits": ("images/binarized-mnist/binarized_mnist_fixed.npz", {"shape": (28, 28)}),
}
# What each family is given, beside its defaults.
SETTINGS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "image-gpt": ({"patch": 2, "width": 128, "layers": 4, "n_heads": 4}, {"batch": 16, "lr": 4e-3, "ema": 0.999}),
    "tarflow": ({}, {"ema": 0.999}),
    "realnvp": ({}, {}),
    "glow": ({}, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--data-set", choices=SETS, default="tiles")
    parser.add_argument("--family", choices=SETTINGS, default="tarflow")
    parser.add_argument("--options", default="{}", help="JSON, in place of the family's own settings")
    parser.add_argument("--recipe", default="{}", help="JSON, likewise")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="20 steps and 100 test images; the record is not kept")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)

    import torch

    import pofx

    torch.set_num_threads(args.threads)
    path, how = SETS[args.data_set]
    options, recipe = (own | json.loads(given) for own, given in zip(
        SETTINGS[args.family], (args.options, args.recipe), strict=True
    ))  # fmt: skip
    data = pofx.load(args.data / path, **how)
    budget = {"steps": 20} if args.quick else {"seconds": 60 * args.minutes}
    run = pofx.fit(data, args.family, seed=args.seed, options=options, recipe=recipe, **budget)
    with torch.no_grad():
        lik = run.model.log_prob(data.test.x[: 100 if args.quick else None])
    bits = -lik.nats.double() / (math.prod(data.space.event_shape) * math.log(2))
    record = {
        "set": args.data_set,
        "family": args.family,
        "seed": args.seed,
        "kind": type(lik).__name__,
        "bits_per_dim": round(bits.mean().item(), 4),
        "data_se": round((bits.std() / len(bits) ** 0.5).item(), 4),
        "rows": len(bits),
        "fit_seconds": round(run.seconds, 1),
        "steps": run.steps,
        "parameters": run.model.parameter_count(),
        "options": options,
        "recipe": recipe,
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": args.threads},
    }
    print(json.dumps(record))
    if args.quick:
        return
    same = ("set", "family", "seed", "options")
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    known = [r for r in known if any(r[k] != record[k] for k in same)]
    RESULTS.write_text(json.dumps([*known, record], indent=1) + "\n")


if __name__ == "__main__":
    main()
