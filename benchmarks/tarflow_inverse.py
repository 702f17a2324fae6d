"""Inverses of tarflow: one token at a time with a cache against rounds over all tokens at once; seconds per batch.

    python benchmarks/tarflow_inverse.py DATA [--quick] [--minutes 3] [--threads 2]

DATA is the folder that holds images/. The nets are trained first, since what is solved in few rounds depends on the
weights: on 32x32 colour tiles of BSDS300 with patches of 2 and of 4 pixels (256 and 64 tokens), and on 28x28 binarised
digits with patches of 2 (196 tokens). Rounds of the race interleave. ``ratio`` is sequential over parallel seconds
within this run, ``apart`` the largest difference of the two results (in units of standardised data), ``passes`` how
many passes of a net the rounds of one layer took on average. Writes results/tarflow_inverse.json.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("--quick", action="store_true", help="a few steps of training, results not kept")
parser.add_argument("--minutes", type=float, default=3.0, help="of training, each net")
parser.add_argument("--threads", type=int, default=os.cpu_count())
ARGS = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGS.threads)

import torch
from torch import Tensor

import pofx
from pofx.nn.transformer import TransformerCache
from pofx.transforms.tokens import CausalAffine
from timing import Results, middle, race

torch.set_num_threads(ARGS.threads)
NETS = [
    ("tiles", "images/bsds300/bsds300_color32_tiles.npz", (), {"patch": 2}),
    ("tiles", "images/bsds300/bsds300_color32_tiles.npz", (), {"patch": 4}),
    ("digits", "images/binarized-mnist/binarized_mnist_fixed.npz", (28, 28), {"patch": 2}),
]


def inverse(layers: list[CausalAffine], z: Tensor, window: int | None) -> Tensor:
    with torch.inference_mode():
        for layer in reversed(layers):
            z = layer.inverse(z, window=window or layer.count)
    return z


def passes(layers: list[CausalAffine], z: Tensor) -> float:
    """Rounds a layer, counted where they call the net."""
    calls, extend = [0], TransformerCache.extend

    def counted(self: TransformerCache, x: Tensor) -> Tensor:
        calls[0] += 1
        return extend(self, x)

    TransformerCache.extend = counted  # type: ignore[method-assign]
    inverse(layers, z, None)
    TransformerCache.extend = extend  # type: ignore[method-assign]
    return calls[0] / len(layers)


def main() -> None:
    results = Results(ARGS.quick, threads=ARGS.threads, torch=torch.__version__, minutes=ARGS.minutes)
    for name, path, shape, options in NETS:
        data = pofx.load(ARGS.data / path, **({"shape": shape} if shape else {}))
        budget = {"steps": 20} if ARGS.quick else {"seconds": 60 * ARGS.minutes}
        model = pofx.fit(data, "tarflow", seed=0, options=options, **budget).model.eval()
        layers = [t for t in model.flow.transforms if isinstance(t, CausalAffine)]
        for n in (1, 2, 4, 16, 64):
            z = model.base.sample(n, None, torch.Generator().manual_seed(0))
            ways = {"sequential": partial(inverse, layers, z, 1), "parallel": partial(inverse, layers, z, None)}
            times = race(ways, rounds=9, seconds=60)
            one, many = (middle(times[k])[0] for k in ("sequential", "parallel"))
            apart = (inverse(layers, z, 1) - inverse(layers, z, None)).abs().max()
            results.emit(
                what=name, **options, tokens=layers[0].count, samples=n, sequential=one, parallel=many,
                ratio=one / many, passes=passes(layers, z), apart=float(apart),
            )  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
