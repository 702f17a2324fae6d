"""Fixed binarized MNIST: exact test log-likelihood of ``made``, in nats (Germain et al. 2015: -86.64 to -88.40).

    python benchmarks/binarized_mnist_made.py --data DATA --minutes 14 --seed 0

writes benchmarks/results/binarized_mnist_made.json. The data are the fixed binarization of Salakhutdinov &
Murray 2008 as distributed by Larochelle, with its own split; the weights with the best validation number are
kept, and the test part is scored once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "binarized_mnist_made.json"
OPTIONS: dict[str, Any] = {"hidden": 6000, "layers": 1, "orders": 4}
RECIPE: dict[str, Any] = {"batch": 200, "lr": 1e-3, "weight_decay": 5e-2, "ema": 0.999, "warmup": 200}


def load(folder: Path):
    """The three parts as one ``Data`` of binary images."""
    import numpy as np
    import torch

    from pofx.data.parts import Data, Part
    from pofx.spaces import Image

    path = folder / "images" / "binarized-mnist" / "binarized_mnist_fixed.npz"
    file = np.load(path, allow_pickle=False)

    def part(name: str) -> Part:
        bits = np.unpackbits(file[name], axis=1)[:, :784]
        return Part(torch.from_numpy(bits.reshape(-1, 1, 28, 28).copy()))

    parts = {name: part(name) for name in ("train", "valid", "test")}
    return Data("binarized mnist", str(path), Image(28, 28, 1, 2), **parts, split="the set's own: 50000, 10000, 10000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/binarized-mnist")
    parser.add_argument("--minutes", type=float, default=28.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    import torch

    from pofx.train.fit import fit

    torch.set_num_threads(args.threads)
    data = load(args.data)
    start = time.perf_counter()
    run = fit(
        data, "made", seconds=args.minutes * 60, seed=args.seed, options=OPTIONS, recipe=RECIPE,
        valid_rows=len(data.valid), progress=lambda entry: print(entry, flush=True) if "valid" in entry else None,
    )  # fmt: skip
    fitted = time.perf_counter()
    with torch.no_grad():
        lik = run.model.log_prob(data.test.x)
    nats = lik.nats.double()
    record = {
        "family": "made",
        "seed": args.seed,
        "test_nats": round(nats.mean().item(), 3),
        "kind": type(lik).__name__,
        "data_se": round((nats.std() / len(nats) ** 0.5).item(), 3),
        "rows": len(nats),
        "valid_nats": round(max(entry["valid"] for entry in run.log if entry.get("valid") is not None), 3),
        "split": data.split,
        "fit_seconds": round(fitted - start, 1),
        "score_seconds": round(time.perf_counter() - fitted, 1),
        "steps": run.steps,
        "parameters": run.model.parameter_count(),
        "options": OPTIONS,
        "recipe": RECIPE,
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": args.threads},
    }
    print(json.dumps(record))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
