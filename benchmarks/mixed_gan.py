"""A table of numbers and categories by ``gan``, its parts for tables switched on one by one, in two-sample tests.

    python benchmarks/mixed_gan.py DATA [--minutes 3] [--quick]

DATA is the folder of the data sets (tabular/mixed/adult_train.csv.gz in it); writes results/mixed_gan.json. Each fit is
of the same rows, by the clock, one thread. ``accuracy`` is that of a boosted classifier that tells samples from as many
held-out rows (0.5 is best), ``mmd2`` and ``precision`` to ``coverage`` are of pofx.evaluate.two_sample; "train" are
training rows in the place of samples. ``rare``: total variation between the shares of values below 5% in samples and in
held-out rows, over all categories.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pofx
from pofx.evaluate import two_sample
from pofx.spaces import Category
from timing import Results

FITS: dict[str, dict[str, Any]] = {
    "plain": {"modes": 1},
    "modes": {},
    "modes, packed": {"pack": 8},
    "modes, asks": {"asks": True},
    "modes, packed, asks": {"pack": 8, "asks": True},
    "the same by wgan": {"pack": 8, "asks": True, "loss": "wgan"},
}


def rare(columns: tuple[Any, ...], real: Tensor, fake: Tensor) -> float:
    off = 0.0
    for j, column in enumerate(columns):
        if isinstance(column, Category):
            a, b = (
                x[:, j].nan_to_num(len(column.values)).long().bincount(minlength=len(column.values) + 1) / len(x)
                for x in (real, fake)
            )
            off += 0.5 * float((a - b).abs()[a < 0.05].sum())
    return off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="of the fits; nothing is kept")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds = 3.0 if args.quick else 60 * args.minutes
    results = Results(args.quick or args.only is not None, threads=1, torch=torch.__version__, seconds=seconds)
    data = pofx.load(args.data / "tabular" / "mixed" / "adult_train.csv.gz", max_rows=3000 if args.quick else None)
    held_out = data.test.x[:3000]
    see = two_sample.Features(data.space, data.train)
    real = see(held_out)

    def judged(x: Tensor) -> dict[str, Any]:
        fake = see(x)
        told, found = two_sample.c2st(real, fake), asdict(two_sample.prdc(real, fake))
        return {
            "accuracy": told.accuracy, "se": told.se, "mmd2": two_sample.mmd(real[:1000], fake[:1000]).mmd2,
            **{k: found[k] for k in ("precision", "recall", "density", "coverage")},
            "rare": rare(data.space.columns, held_out, x),
        }  # fmt: skip

    results.emit(what="train", **judged(data.train.draw(len(held_out), 0).read().x))
    for name, options in FITS.items():
        if args.only is None or name in args.only:
            run = pofx.fit(data, "gan", seconds=seconds, options=options)
            x = run.model.sample(len(held_out), generator=torch.Generator().manual_seed(0))
            results.emit(what=name, steps=run.log[-1]["step"], **judged(x))
    results.save()


if __name__ == "__main__":
    main()
