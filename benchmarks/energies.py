"""Energies of the plane: KL(source || model) on a grid, of every objective of ``ebm``, beside a flow's.

    python benchmarks/energies.py [--quick] [--seeds N] [--steps N]

Two moons (noise 0.2), 10,000 draws, by default 2,000 steps of 128 rows. log Z is a sum over a grid of 401 x 401 points
on [-8, 8]^2, so ``kl`` in nats has no error but that of 20,000 draws of the source; ``log_z`` compares annealing (100
temperatures, 64 chains) with the grid, in its stated errors. Denoising learns the density of data with noise, whose own
KL is part of its number. Prints one JSON object a line and writes all to benchmarks/results/energies.json.
"""

from __future__ import annotations

import argparse
import math
import os
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="one seed of 30 steps, results not kept")
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--steps", type=int, default=2000)
ARGS = parser.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import pofx
from pofx.core.likelihood import number
from pofx.core.requests import PartitionAis
from pofx.data.parts import Data, Part
from pofx.data.synthetic import two_moons
from pofx.testing.oracles import plane
from timing import Results

torch.set_num_threads(1)
SEEDS, STEPS = (1, 30) if ARGS.quick else (ARGS.seeds, ARGS.steps)
FIELD: dict[str, tuple[str, dict[str, object]]] = {
    name: ("ebm", {"objective": name, "hidden": 128})
    for name in ("pcd", "cd", "nce", "score-matching", "sliced", "denoising")
}
FIELD["nsf"] = ("nsf", {"hidden": 64, "layers": 3})


def main() -> None:
    results = Results(ARGS.quick, torch=torch.__version__, seeds=SEEDS, steps=STEPS)
    source = two_moons(0.2)
    parts = [Part(source.sample(n, torch.Generator().manual_seed(k))) for k, n in enumerate((10_000, 1000, 20_000))]
    data = Data("two moons", "memory", source.space, *parts)
    test, (grid, cell) = data.test.x, plane(8.0, 401)
    truth = source.log_prob(test)
    for name, (family, options) in FIELD.items():
        for seed in range(SEEDS):
            started = time.perf_counter()
            run = pofx.fit(data, family, seed=seed, steps=STEPS, options=options)
            entry = {"what": "KL(source || model), nats", "name": name, "seed": seed}
            seconds = time.perf_counter() - started
            with torch.no_grad():
                if family != "ebm":
                    nats = run.model.log_prob(test).nats  # type: ignore[union-attr]
                else:
                    model = run.model
                    log_z = float((-model.given().energy(grid)).double().logsumexp(0) + math.log(cell))
                    nats = -model.given().energy(test).double() - log_z
                    lik = number(model.log_prob(test[:1], request=PartitionAis(temperatures=100, chains=64)))
                    told = float(-(lik.nats + model.given().energy(test[:1])))
                    _, verdict = model.given().sample_with_verdict(1000)
                    entry |= {"log_z": log_z, "log_z_ais": told, "log_z_se": float(lik.shared_se[0])}
                    entry |= {"verdict": str(verdict)}
            gap = truth - nats
            se = float(gap.std()) / math.sqrt(len(gap))
            results.emit(**entry, kl=float(gap.mean()), kl_se=se, seconds=seconds)
    results.save()


if __name__ == "__main__":
    main()
