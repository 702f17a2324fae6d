"""JEM beside the classifier: accuracy, outliers, and whether it diverges, over ten seeds.

    python benchmarks/jem.py --data DIR [--quick] [--seeds N] [--steps N] [--minutes M]

First on scikit-learn's handwritten digits (8x8): each seed a fit, of which ``diverged`` says how it ended; accuracy of
``jem``, of the same net without its generative part, and of ``classifier``. Then on MNIST (28x28, a fit of M minutes
each): accuracy, and how well Fashion-MNIST is told from MNIST (AUROC with its error) by -log p(x) of jem but for a
constant, and by the largest class probability of each model. Prints one JSON object a line and writes all to
benchmarks/results/jem.json.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/")
parser.add_argument("--quick", action="store_true", help="one seed of few steps, results not kept")
parser.add_argument("--seeds", type=int, default=10)
parser.add_argument("--steps", type=int, default=1500, help="on the digits")
parser.add_argument("--minutes", type=float, default=8.0, help="on MNIST, of each model")
ARGS = parser.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import pofx
from pofx.core.errors import Diverged
from pofx.evaluate.ranking import auroc
from timing import Results

torch.set_num_threads(1)
SEEDS, STEPS = (1, 20) if ARGS.quick else (ARGS.seeds, ARGS.steps)
SECONDS, ROWS = (5, 200) if ARGS.quick else (60 * ARGS.minutes, 2000)
PLAIN = {"generative": 0.0}


def accuracy(run: pofx.Run, data: pofx.Data, labels: bool) -> float:
    """Of a classifier the images are the context."""
    x, y = (data.test.c, data.test.x) if labels else (data.test.x, data.test.c)
    return pofx.predict(run, x).accuracy(y).accuracy


def digits(results: Results) -> None:
    given, target = pofx.load("digits", given="label"), pofx.load("digits", target="label")
    for seed in range(SEEDS):
        for name, family, options in (("jem", "jem", {}), ("its net", "jem", PLAIN), ("classifier", "classifier", {})):
            started, data = time.perf_counter(), target if family == "classifier" else given
            entry: dict[str, Any] = {"what": "digits", "name": name, "seed": seed}
            try:
                run = pofx.fit(data, family, seed=seed, steps=STEPS, options=options)
            except Diverged as error:
                results.emit(**entry, diverged=str(error))
                continue
            right = accuracy(run, data, family == "classifier")
            results.emit(**entry, diverged=False, accuracy=right, seconds=time.perf_counter() - started)


def outliers(results: Results) -> None:
    """MNIST against Fashion-MNIST."""
    place = ARGS.data / "images"
    given, target = (pofx.load(place / "mnist", **{how: "label"}) for how in ("given", "target"))
    odd = pofx.load(place / "fashion-mnist", given="label").test[:ROWS].read().x
    normal = given.test[:ROWS].read().x
    for name, family, options in (("jem", "jem", {}), ("its net", "jem", PLAIN), ("classifier", "classifier", {})):
        data = target if family == "classifier" else given
        run = pofx.fit(data, family, seed=0, seconds=SECONDS, options=options)
        areas = {}
        sure = [-pofx.predict(run, x).nats.max(1).values for x in (normal, odd)]
        areas["largest class probability"] = auroc(*sure)
        if name == "jem":
            p = run.model.given(null=True)
            areas["-log p(x)"] = auroc(*(p.energy(x).double() for x in (normal, odd)))
        for by, area in areas.items():
            results.emit(
                what="Fashion-MNIST among MNIST", name=name, by=by, auroc=area.auroc, se=area.se,
                accuracy=accuracy(run, data, family == "classifier"), steps=run.log[-1]["step"],
            )  # fmt: skip


def main() -> None:
    results = Results(ARGS.quick, torch=torch.__version__, seeds=SEEDS, steps=STEPS, seconds=SECONDS)
    digits(results)
    outliers(results)
    results.save()


if __name__ == "__main__":
    main()
