"""What the prior of a VAE is worth: bounds on held-out data under N(0, I), a mixture and flows, at one budget of steps.

    python benchmarks/vae_prior.py [--quick] [--seeds N]

An MLP VAE of 8 latents on the handwritten digits of scikit-learn (8x8, 17 levels). A flow is trained with the rest, or
after it in the last quarter of the steps. ``nats`` is the IWAE-64 bound on the test part, the mean over seeds, and
``gain`` what it is above the standard normal's of the same seed, with its standard error over seeds. The gain of the
second stage is what the prior that is fitted after adds to the validation bound of its own autoencoder under N(0, I).
Prints one JSON object a line and writes all to benchmarks/results/vae_prior.json.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="one seed of a tenth of the steps, results not kept")
parser.add_argument("--seeds", type=int, default=3)
ARGS = parser.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import pofx
from pofx.core.requests import Iwae
from timing import Results

torch.set_num_threads(1)
SEEDS, STEPS = (1, 100) if ARGS.quick else (ARGS.seeds, 1000)
FLOW = "nsf:layers=2,hidden=64,blocks=1,kind=coupling"
PRIORS: dict[str, dict[str, object]] = {
    "normal": {},
    "mixture": {"prior": "mixture"},
    "flow": {"prior": FLOW},
    "flow, after": {"prior": FLOW, "prior_share": 0.25},
}


def bound(run: pofx.Run, data: pofx.Data) -> float:
    with torch.no_grad():
        lik = run.model.log_prob(data.test.x, request=Iwae(draws=64))
    return float(lik.nats.mean())  # type: ignore[union-attr]


def spread(numbers: list[float]) -> dict[str, float]:
    se = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else math.nan
    return {"gain": statistics.mean(numbers), "gain_se": se}


def main() -> None:
    results = Results(ARGS.quick, torch=torch.__version__, seeds=SEEDS, steps=STEPS)
    data = pofx.load("digits")
    found: dict[str, list[float]] = {name: [] for name in PRIORS}
    second: list[float] = []
    for seed in range(SEEDS):
        for name, options in PRIORS.items():
            run = pofx.fit(
                data,
                "vae",
                steps=STEPS,
                seed=seed,
                options={"latent": 8, "hidden": 128} | options,
                recipe={"ema": 0.99},
            )
            found[name].append(bound(run, data))
            if "prior_share" in options:
                second.append(run.log[-1]["valid"] - max(e["valid"] for e in run.log if e["stage"] == "autoencoder"))
    for name, numbers in found.items():
        gains = [a - b for a, b in zip(numbers, found["normal"], strict=True)]
        results.emit(what="IWAE-64 bound, nats", prior=name, nats=statistics.mean(numbers), **spread(gains))
    results.emit(what="second stage", **spread(second))
    results.save()


if __name__ == "__main__":
    main()
