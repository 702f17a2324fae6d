"""How many of the 1,000 modes of three stacked MNIST digits a GAN finds, and how evenly.

    python benchmarks/stacked_mnist.py DATA OUT [--minutes 40] [--family gan] [--loss r3gan] [--seed 0] [--quick]

DATA is the folder of the data sets (images/mnist in it); OUT keeps the runs, which are read again where they are there.
An image is three random digits, one a channel, 60,000 of them of MNIST's training part. Of 26,000 samples a
``classifier`` fitted to MNIST reads the digit of each channel: ``modes`` are the numbers from 000 to 999 that are drawn
at all, ``kl`` that of their shares from uniform ones (Metz et al. 2017; Srivastava et al. 2017). ``real`` are as many
stacks of test digits: of finitely many samples no KL is zero. Bounds: 990 modes and a KL of 0.15 in 40 minutes on two
cores. One JSON object a line, all of them in results/stacked_mnist.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pofx
from pofx.data.parts import Data, Part
from pofx.spaces import Image
from timing import Results

OPTIONS: dict[str, Any] = {"noise": 64}
RECIPE: dict[str, Any] = {"batch": 64, "lr": 5e-4}
MODES, DRAWN, ROWS = 1000, 26_000, 60_000


def stacks(digits: Tensor, n: int, seed: int) -> Tensor:
    """n images [n, 3, 28, 28] of three random ones of digits [N, 1, 28, 28]."""
    which = torch.randint(len(digits), (n, 3), generator=torch.Generator().manual_seed(seed))
    return digits[which][:, :, 0]


@torch.no_grad()
def read(reader: Any, x: Tensor) -> Tensor:
    """The mode [N] of stacks x [N, 3, 28, 28]."""
    of_channels = [
        torch.cat([reader.given(some).classes().nats.argmax(-1) for some in channel.split(1000)])
        for channel in x.split(1, 1)
    ]
    return (torch.stack(of_channels, 1) * torch.tensor([100, 10, 1])).sum(1)


def covered(modes: Tensor) -> dict[str, float]:
    """How many modes there are, and the KL of their shares from uniform ones."""
    counts = modes.bincount(minlength=MODES).double()
    share = counts[counts > 0] / counts.sum()
    return {"modes": int((counts > 0).sum()), "kl": float((share * (share * MODES).log()).sum())}


def fitted(place: Path, data: Data, family: str, minutes: float, **how: Any) -> Any:
    if not (place / "config.json").exists():
        pofx.fit(data, family, seconds=60 * minutes, out=place, **how)
    return pofx.read_run(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=40.0, help="of the training")
    parser.add_argument("--family", default="gan")
    parser.add_argument("--loss", default="r3gan")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    minutes, reading, drawn = (0.05, 0.1, 1000) if args.quick else (args.minutes, 3.0, DRAWN)

    results = Results(args.quick, torch=torch.__version__, threads=torch.get_num_threads(), minutes=minutes)
    digits = pofx.load(args.data / "images" / "mnist", target="label")
    reader = fitted(args.out / "reader", digits, "classifier", reading, seed=0).model
    images, labels = digits.test.c, digits.test.x
    right = torch.cat([reader.given(some).classes().nats.argmax(-1) for some in images.split(1000)]) == labels
    results.emit(what="reader", accuracy=float(right.float().mean()), n=len(images))
    results.emit(what="real", **covered(read(reader, stacks(images, drawn, 1))), n=drawn)

    parts = [Part(stacks(of.c, n, seed)) for seed, (of, n) in enumerate(
        [(digits.train, 1000 if args.quick else ROWS), (digits.valid, 100), (digits.test, 100)])]  # fmt: skip
    data = Data("stacked MNIST", "stacked MNIST", Image(28, 28, 3, 256), *parts)
    place = args.out / f"{args.family}-{args.loss}-{minutes:g}-minutes-seed-{args.seed}"
    how = {"options": OPTIONS | {"loss": args.loss}, "recipe": RECIPE, "seed": args.seed}
    run = fitted(place, data, args.family, minutes, **how)
    x = run.model.sample(drawn, generator=torch.Generator().manual_seed(args.seed))
    results.emit(
        what=args.family, loss=args.loss, seed=args.seed, steps=run.log[-1]["step"],
        parameters=run.model.parameter_count(), **covered(read(reader, x)), n=drawn,
    )  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
