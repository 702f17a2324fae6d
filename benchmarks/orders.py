"""What an order costs: the same net, trained for as many steps on images in several orders, and on reversed text.

    python benchmarks/orders.py DATA [--steps 200] [--seeds 0 1] [--threads 1] [--only images]

writes results/orders.json. Images are binarized MNIST, by ``image-gpt`` over 4 x 4 patches, whose order is that of the
patches; texts are Tiny Shakespeare, by ``gpt`` over characters, read from left to right and from right to left. The
chain rule holds for every order; what differs is how much a net can learn of it in so many steps.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import get_args

from timing import Results

MUON = {"optimizer": "muon", "lr": 5e-3, "schedule": "linear"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["images", "text"])
    args = parser.parse_args()

    import torch

    import pofx
    from pofx.codecs.steps import PatchOrder

    torch.set_num_threads(args.threads)
    results = Results(threads=args.threads, steps=args.steps)
    budget = {"steps": args.steps}
    if args.only != "text":
        images = pofx.load(args.data / "images/binarized-mnist/binarized_mnist_fixed.npz", shape=(28, 28))
        options = {"width": 96, "layers": 4, "n_heads": 4, "patch": 4}
        for seed in args.seeds:
            for order in get_args(PatchOrder):
                measure(results, images, "image-gpt", options | {"order": order}, budget, seed, "images", order)
    if args.only != "images":
        source = args.data / "text" / "tinyshakespeare.txt"
        options = {"width": 128, "layers": 4, "n_heads": 4, "block": 128}
        with tempfile.TemporaryDirectory() as place:
            mirrored = Path(place) / "mirrored.txt"
            text = source.read_text()
            # each part is mirrored by itself, so that both directions learn from and are tested on the same text
            first, second = round(0.8 * len(text)), round(0.9 * len(text))
            mirrored.write_text("".join(p[::-1] for p in (text[:first], text[first:second], text[second:])))
            for seed in args.seeds:
                for order, path in (("left to right", source), ("right to left", mirrored)):
                    data = pofx.load(path)
                    measure(results, data, "gpt", options, budget, seed, "text", order)
    results.save()


def measure(results, data, family, options, budget, seed, what, order) -> None:
    """Fit and score one order; nats per datum, exact, on the test part."""
    import pofx
    from pofx.evaluate.likelihood import mean_log_prob

    run = pofx.fit(data, family, seed=seed, options=options, recipe=MUON | {"batch": 32}, **budget)
    found = mean_log_prob(run.model, data.test)
    results.emit(
        what=what, order=order, seed=seed, nats=found.nats, se=found.se, kind=found.kind.__name__, unit=found.unit,
        bits_per_unit=found.bits_per_dim, rate_se=found.rate_se, rows=found.n, steps=run.steps,
    )  # fmt: skip


if __name__ == "__main__":
    main()
