"""log Z of an RBM on binarized MNIST by annealing, beside its sum over all hidden states.

    python benchmarks/rbm.py --data DIR [--quick] [--minutes M]

20 hidden units, so that Z is a sum over 2^20 states; trained by PCD on fixed binarized MNIST. Annealing from the
machine of the data's frequencies (Salakhutdinov & Murray 2008), 100 chains, in 100 to 10,000 temperatures, over seeds:
``gap`` is its log Z less the exact one in nats, ``z`` the same in stated errors; and back from draws of Gibbs chains,
where these have mixed. Then an RBM of 500 hidden units, of which there are bounds alone. Prints one JSON object a line
and writes all to benchmarks/results/rbm.json.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/")
parser.add_argument("--quick", action="store_true", help="12 hidden units, seconds of training, results not kept")
parser.add_argument("--minutes", type=float, default=5.0, help="of training, of each machine")
ARGS = parser.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import pofx
from pofx.core.likelihood import Unavailable, mean, number
from pofx.core.requests import ExactLikelihood, PartitionAis, ReversePartitionAis
from timing import Results

torch.set_num_threads(1)
MNIST = ARGS.data / "images/binarized-mnist/binarized_mnist_fixed.npz"
SECONDS = 5 if ARGS.quick else 60 * ARGS.minutes
SMALL, LARGE = (12, 24) if ARGS.quick else (20, 500)
TEMPERATURES, SEEDS, CHAINS = ((20, 50), 2, 10) if ARGS.quick else ((100, 1000, 10_000), 5, 100)


def main() -> None:
    results = Results(ARGS.quick, torch=torch.__version__, seconds=SECONDS)
    data = pofx.load(MNIST, shape=(28, 28))
    for hidden in (SMALL, LARGE):
        run = pofx.fit(data, "rbm", seconds=SECONDS, seed=0, options={"hidden": hidden})
        model, test = run.model, data.test.read().x
        base = {"hidden": hidden, "steps": run.log[-1]["step"]}
        exact = None
        if ExactLikelihood in model.own_estimators:
            started = time.perf_counter()
            lik = model.log_prob(test, request=ExactLikelihood())
            exact = float(-(lik.nats[0] + model.given().energy(test[:1])[0]))  # type: ignore[union-attr]
            told = mean(number(lik))
            seconds = time.perf_counter() - started
            results.emit(what="exact", **base, log_z=exact, kind="Exact", nats=told.nats, se=told.se, seconds=seconds)
        for kind in (PartitionAis, ReversePartitionAis):
            for temperatures in TEMPERATURES:
                for seed in range(SEEDS if exact is not None else 1):
                    started = time.perf_counter()
                    lik = model.log_prob(
                        test, request=kind(temperatures=temperatures, chains=CHAINS),
                        generator=torch.Generator().manual_seed(seed),
                    )  # fmt: skip
                    seconds = time.perf_counter() - started
                    entry = {"what": kind.name, **base, "temperatures": temperatures, "seed": seed, "seconds": seconds}
                    if isinstance(lik, Unavailable):
                        results.emit(**entry, reason=lik.reason)
                        break
                    told = mean(number(lik))
                    entry |= {"kind": kind.kind, "nats": told.nats, "se": told.se, "shared_se": told.shared_se}
                    if exact is not None:
                        gap = float(-(lik.nats[0] + model.given().energy(test[:1])[0])) - exact
                        entry |= {"gap": gap, "z": gap / told.shared_se}
                    results.emit(**entry)
    results.save()


if __name__ == "__main__":
    main()
