"""How far samples are from MNIST, by sampler and number of steps, and whether a guided sample is read as its label.

    python benchmarks/sample_quality.py DATA OUT [--minutes 30] [--n 10000] [--costly 10000] [--only NAME ...]

DATA is the folder of the data sets (images/mnist in it); OUT keeps the runs and the figures of each entry, which are
read again where they are there, and a sheet of its samples. All families are of p(image | label) with the same U-Net,
and draw one image for the label of each test image. ``distance`` is that of two Gaussians (Heusel et al. 2017), with
the means and covariances of what a pofx classifier's ConvNet makes of the images, 128 numbers; "real" is that of as
many training images. ``read`` is the share of images that another classifier (of another seed) reads as their label. Of
1000 steps, and guided, only ``--costly`` images are drawn; ``of_first`` is the distance of so many, ``times_reference``
that over ddpm's of 1000 steps. One JSON object a line, all of them in results/sample_quality.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pofx
from pofx.core.requests import Ancestral, DpmSolver, FewStep, KarrasSolver, Sampler, SdeSolver
from pofx.evaluate.two_sample import frechet
from pofx.report.plots import montage
from timing import Results

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--minutes", type=float, default=30.0, help="of each training")
parser.add_argument("--n", type=int, default=10_000, help="images on either side of a distance")
parser.add_argument("--costly", type=int, default=10_000, help="images of 1000 steps, or guided: the first of them")
parser.add_argument("--only", nargs="*", metavar="NAME", help="families: others are left out, and nothing is kept")
ARGS = parser.parse_args()
KEPT = ARGS.out / f"{ARGS.minutes:g}-minutes"

NET: dict[str, Any] = {"channels": 16, "context_dropout": 0.1}
FITS: dict[str, tuple[str, dict[str, Any], float]] = {  # family, options, share of the minutes
    "ddpm": ("ddpm", NET, 1.0),
    "edm": ("edm", NET, 1.0),
    "flow-matching": ("flow-matching", NET, 1.0),
    "flow-matching and its student": ("flow-matching", NET | {"student": "consistency"}, 1.2),
}
DRAWS: dict[str, list[Sampler]] = {
    "ddpm": [
        Ancestral(1000),
        DpmSolver(10),
        DpmSolver(20),
        SdeSolver(20),
        DpmSolver(20, guidance=2.0),
        SdeSolver(20, guidance=2.0),
    ],
    "edm": [KarrasSolver(18), KarrasSolver(18, guidance=2.0)],
    "flow-matching": [DpmSolver(20), DpmSolver(20, guidance=2.0)],
    "flow-matching and its student": [FewStep(2), FewStep(1), DpmSolver(20)],
}


def fitted(name: str, data: pofx.Data, family: str, minutes: float, **how: Any) -> Any:
    place = KEPT / name.replace(" ", "-")
    if not (place / "config.json").exists():
        return pofx.fit(data, family, seconds=60 * minutes, out=place, **how).model
    return pofx.read_run(place).model


class Judges:
    """One classifier whose ConvNet gives features, and one that reads labels."""

    def __init__(self, data: pofx.Data) -> None:
        self.seer, self.reader = (
            fitted(f"classifier-{seed}", data, "classifier", min(3.0, ARGS.minutes), seed=seed) for seed in (0, 1)
        )

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return torch.cat([self.seer.encode_context(some).vector for some in x.split(1000)]).double()

    @torch.no_grad()
    def read(self, x: Tensor, labels: Tensor) -> float:
        found = torch.cat([self.reader.logits(self.reader.encode_context(some)).argmax(1) for some in x.split(1000)])
        return float((found == labels).double().mean())


def main() -> None:
    results = Results(
        ARGS.n < 10_000 or ARGS.only is not None,
        minutes=ARGS.minutes,
        n=ARGS.n,
        costly=ARGS.costly,
        net=NET,
        seed=0,
        threads=torch.get_num_threads(),
    )
    place = ARGS.data / "images" / "mnist"
    data = pofx.load(place, given="label")
    judges = Judges(pofx.load(place, target="label"))
    x, labels = data.test.x[: ARGS.n], data.test.c[: ARGS.n]
    real, train = judges.features(x), judges.features(data.train.x[: ARGS.n])
    results.emit(who="real", distance=frechet(train, real).distance, read=judges.read(x, labels), n=len(x))
    reference = None
    for name, (family, options, share) in FITS.items():
        if ARGS.only is not None and name not in ARGS.only:
            continue
        model = fitted(name, data, family, share * ARGS.minutes, options=options, seed=0)
        for sampler in DRAWS[name]:
            guidance = getattr(sampler, "guidance", None)
            n = min(ARGS.n, ARGS.costly) if sampler.steps == 1000 or guidance is not None else ARGS.n
            entry = KEPT / f"{name}-{sampler.name}-{sampler.steps}-{guidance}-{n}-{ARGS.costly}.json"
            if not entry.exists():
                generator = torch.Generator().manual_seed(0)
                (drawn,) = model.given(labels[:n]).sample(1, generator=generator, sampler=sampler)
                found = judges.features(drawn)
                told = {
                    "n": n,
                    "distance": frechet(found, real).distance,
                    "of_first": frechet(found[: ARGS.costly], real[: ARGS.costly]).distance,
                    "read": judges.read(drawn, labels[:n]),
                }
                entry.write_text(json.dumps(told))
                order = labels[:100].argsort()
                image = montage(drawn[:100][order].numpy(), 256, 10, 10)
                entry.with_suffix(".html").write_text(f'<img width="560" src="{image}">')
            told = json.loads(entry.read_text())
            reference = reference or told["of_first"]
            results.emit(
                who=name, sampler=sampler.name, steps=sampler.steps, guidance=guidance,
                **told, times_reference=told["of_first"] / reference,
            )  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
