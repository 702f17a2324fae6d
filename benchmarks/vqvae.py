"""Fashion-MNIST by ``vqvae``: how many codes are used, and bits per dimension with the prior.

    python benchmarks/vqvae.py DATA [--minutes 3] [--seeds 5] [--threads N] [--quick]

DATA is the folder of the data sets (images/fashion-mnist in it). Each fit, with the family's defaults, has so many
minutes for the autoencoder and its prior together. ``used`` is the share of codes that occur in those of the 10,000
test images; ``bits`` is the bound on them in bits per dimension, with its terms: the prior's and the decoder's. One
JSON object a line, all of them in results/vqvae.json.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

import pofx
from pofx.evaluate.likelihood import mean_log_prob
from timing import Results

CONFIGS: dict[str, dict[str, Any]] = {"codebook": {}, "levels": {"levels": (8, 6, 5)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=3.0, help="of each fit")
    parser.add_argument("--seeds", type=int, default=5, help="fits with a codebook; levels are fitted once")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="a few seconds, one seed; nothing is kept")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    minutes = 0.1 if args.quick else args.minutes
    data = pofx.load(args.data / "images" / "fashion-mnist")
    results = Results(args.quick, minutes=minutes, threads=torch.get_num_threads())
    test = data.test[: 500 if args.quick else len(data.test)]
    bits = data.space.dims * math.log(2)
    for name, options in CONFIGS.items():
        for seed in range(1 if args.quick or name == "levels" else args.seeds):
            run = pofx.fit(data, "vqvae", seconds=60 * minutes, seed=seed, options=options)
            model, found = run.model, mean_log_prob(run.model, test)
            terms = model.given().bound_terms(test.x[:2000])
            usage = model.usage(test.x)
            results.emit(
                codes=name, seed=seed, size=len(usage), used=float((usage > 0).double().mean()),
                perplexity=float(usage[usage > 0].mul(-usage[usage > 0].log()).sum().exp()),
                kind=found.kind.__name__, bits=-found.nats / bits, se=found.se / bits,
                **{term: float(-v.nats.mean()) / bits for term, v in terms.items()},
                steps=run.steps, seconds=run.seconds, parameters=model.parameter_count(),
            )  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
