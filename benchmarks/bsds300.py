"""Natural image patches: test log-likelihood of families on BSDS300 8x8 grey patches, in nats.

Preprocessing as in Papamakarios et al. 2017 (after Zoran & Weiss 2011): add U[0, 1), divide by 256,
subtract the patch's mean, drop the last pixel; the density is one on those 63 numbers.

    python benchmarks/bsds300.py --data DATA --family nsf --minutes 12

adds one record to benchmarks/results/bsds300.json (one per family and seed).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "bsds300.json"

# What each family is given, beside its defaults.
SETTINGS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "gaussian": ({}, {}),
    "gmm": ({}, {}),
    "realnvp": ({}, {}),
    "maf": ({"hidden": 512}, {"batch": 512}),
    "nsf": ({"hidden": 256}, {"batch": 512}),
    "tarflow": ({}, {}),
}


def load(folder: Path):
    """The three parts as one ``Data`` of 63 real columns; the noise has a fixed seed."""
    import numpy as np
    import torch

    from pofx.data.parts import Data, Part
    from pofx.spaces import Real, Table

    file = np.load(folder / "images" / "bsds300" / "bsds300_gray8x8_patches.npz", allow_pickle=False)
    rng = np.random.default_rng(0)

    def part(name: str) -> Part:
        x = file[name].reshape(-1, 64)
        x = (x + rng.random(x.shape)) / 256
        return Part(torch.from_numpy((x - x.mean(1, keepdims=True))[:, :-1]))

    space = Table(tuple(Real(f"pixel {i}") for i in range(63)))
    parts = {name: part(name) for name in ("train", "valid", "test")}
    return Data("bsds300", str(folder), space, **parts, split="the set's own: images are disjoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/bsds300")
    parser.add_argument("--family", choices=SETTINGS, required=True)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    import torch

    from pofx.train.fit import fit

    torch.set_num_threads(args.threads)
    options, recipe = SETTINGS[args.family]
    data = load(args.data)
    run = fit(data, args.family, seconds=args.minutes * 60, seed=args.seed, options=options, recipe=recipe)
    start = time.perf_counter()
    with torch.no_grad():
        lik = run.model.log_prob(data.test.x)
    nats = lik.nats.double()
    record = {
        "family": args.family,
        "seed": args.seed,
        "test_nats": round(nats.mean().item(), 3),
        "kind": type(lik).__name__,
        "data_se": round((nats.std() / len(nats) ** 0.5).item(), 3),
        "rows": len(nats),
        "fit_seconds": round(run.seconds, 1),
        "score_seconds": round(time.perf_counter() - start, 2),
        "steps": run.steps,
        "parameters": run.model.parameter_count(),
        "options": options,
        "recipe": recipe,
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": args.threads},
    }
    print(json.dumps(record))
    known = json.loads(args.out.read_text()) if args.out.exists() else []
    known = [r for r in known if (r["family"], r["seed"]) != (args.family, args.seed)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([*known, record], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
