"""Flows of images beside an autoregressive net: test bits per dimension on 32x32 tiles of BSDS300 and on MNIST.

    python benchmarks/image_flows.py --data DATA --set tiles --family glow --minutes 30
    python benchmarks/image_flows.py --data DATA --quick                   (every family and set for some steps)

adds one record to benchmarks/results/image_flows.json (one per set, family and seed). image-gpt is exact; flows are of
dequantised pixels, so theirs is a bound. ``se`` is the standard error of the mean over the test images, in bits per
dimension as the mean; ``mc_se`` that of the noise, over all of them.

Sets: ``colour``, the tiles as they are; ``tiles``, their grey mean, rounded; ``mnist``. Tiles of test images are from
other photographs than those of training; the last 500 tiles of training validate.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "image_flows.json"
SETS = ("tiles", "colour", "mnist")

# What each family is given, beside its defaults.
SETTINGS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "glow": ({"layers": 12, "hidden": 64}, {}),
    "realnvp": ({"layers": 12, "hidden": 64}, {}),
    "tarflow": ({}, {}),
    "image-gpt": ({}, {}),
}


def load(folder: Path, name: str):
    """Train, validation and test images of a set as one ``Data``."""
    import numpy as np
    import torch

    from pofx.data.parts import Data, Part
    from pofx.spaces import Image

    if name == "mnist":

        def images(file: str):
            return np.frombuffer(gzip.open(folder / "images" / "mnist" / file).read(), np.uint8, offset=16)

        train, test = (images(f"{part}-images-idx3-ubyte.gz").reshape(-1, 1, 28, 28) for part in ("train", "t10k"))
    else:
        file = np.load(folder / "images" / "bsds300" / "bsds300_color32_tiles.npz", allow_pickle=False)
        train, test = (np.moveaxis(file[part], 3, 1) for part in ("train", "test"))
        if name == "tiles":
            train, test = (x.mean(1, keepdims=True).round().astype(np.uint8) for x in (train, test))
    channels, height, width = train.shape[1:]
    parts = [Part(torch.from_numpy(np.ascontiguousarray(x))) for x in (train[:-500], train[-500:], test)]
    return Data(name, str(folder), Image(height, width, channels, 256), *parts, split="the set's own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/")
    parser.add_argument("--set", choices=SETS, default="tiles")
    parser.add_argument("--family", choices=SETTINGS)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--test", type=int, default=1000, help="test images, the first of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="two steps of all, nothing is kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    import torch

    from pofx.core.registry import families

    torch.set_num_threads(args.threads)
    if args.quick:
        for name in SETS:
            for family in SETTINGS:
                if family in families():
                    print(json.dumps(record(args, name, family, steps=2, test=4)), flush=True)
        return
    if args.family is None:
        parser.error("Name a --family.")
    one = record(args, args.set, args.family, seconds=args.minutes * 60, test=args.test)
    print(json.dumps(one))
    known = json.loads(args.out.read_text()) if args.out.exists() else []
    key = ("set", "family", "seed")
    known = [r for r in known if [r[k] for k in key] != [one[k] for k in key]]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([*known, one], indent=1) + "\n")


def record(args: argparse.Namespace, name: str, family: str, test: int, **limits: float) -> dict[str, object]:
    """One family on one set."""
    import torch

    from pofx.train.fit import fit

    options, recipe = SETTINGS[family]
    data = load(args.data, name)
    limits |= {"valid_rows": 4} if "steps" in limits else {}
    run = fit(data, family, seed=args.seed, options=options, recipe=recipe, **limits)
    start, x = time.perf_counter(), data.test.x[:test]
    with torch.no_grad():
        lik = run.model.log_prob(x, generator=torch.Generator().manual_seed(args.seed))
    unit = -1 / (data.space.dims * math.log(2))
    bits, noise = lik.nats.double() * unit, getattr(lik, "mc_se", None)
    return {
        "set": name,
        "family": family,
        "seed": args.seed,
        "bits_per_dim": round(bits.mean().item(), 4),
        "kind": type(lik).__name__,
        "se": round((bits.std() / len(bits) ** 0.5).item(), 4),
        "mc_se": None if noise is None else round(noise.double().square().sum().sqrt().item() * -unit / len(x), 5),
        "rows": len(x),
        "fit_seconds": round(run.seconds, 1),
        "log_prob_seconds": round(time.perf_counter() - start, 2),
        "steps": run.steps,
        "parameters": run.model.parameter_count(),
        "options": options,
        "recipe": recipe,
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": args.threads},
    }


if __name__ == "__main__":
    sys.exit(main())
