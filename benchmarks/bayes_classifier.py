"""MNIST's classes by Bayes' rule of generative models, p(y | x) = p(x | y) p(y) / p(x), beside a classifier.

    python benchmarks/bayes_classifier.py DATA OUT [--seconds 900] [--seed 0] [--threads 1] [--only NAME ...] [--quick]

DATA is the folder of the data sets (images/mnist and images/fashion-mnist in it); OUT keeps the runs. All have the same
seconds and default options but those of SPEC. Each line says on how many test images, the first of a draw by seed that
is the same for all (fewer for a likelihood that takes long); of which kind p(x | y) is; accuracy and log loss; ``ece``,
the expected calibration error in ten bins. Fashion-MNIST, which no training image is like: ``sure``, the mean
probability of the most likely class (0.1 would say that it is none), and ``auroc``, how well each of two numbers tells
it from MNIST: that probability, and log p(x) = log sum of p(x | y) p(y), which a classifier has not.
Prints one JSON object a line and writes all to results/bayes_classifier.json.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import pofx
from fitted import arguments, fitted, generator, parsed
from pofx.core.requests import Iwae, VariationalBound
from pofx.evaluate.predict import Prediction, predict
from timing import Results

# family, options, how its likelihood is asked for, test images of each set
SPEC: dict[str, tuple[str, dict[str, Any], Any, int]] = {
    "classifier": ("classifier", {}, None, 10_000),
    "vae": ("vae", {}, Iwae(16), 1000),
    "image-gpt": ("image-gpt", {}, None, 300),
    "vdm": ("vdm", {}, VariationalBound(64), 300),
}
OTHER = "fashion-mnist"


def auroc(usual: Tensor, strange: Tensor) -> float:
    """How often a usual row has the larger number."""
    told = torch.cat([usual, strange]).nan_to_num(nan=-1e30, neginf=-1e30)
    return float(roc_auc_score([1] * len(usual) + [0] * len(strange), told.numpy()))


def sure(found: Prediction) -> Tensor:
    return found.probabilities.nan_to_num(0.1).amax(1)


def main() -> None:
    args = parsed(arguments(__doc__, 900.0))
    results = Results(args.quick, seconds=args.seconds, seed=args.seed, threads=args.threads)
    folder = args.data / "images"
    given, target = (pofx.load(folder / "mnist", **{how: "label"}) for how in ("given", "target"))
    test, other = (d.test.draw(10_000, args.seed).read() for d in (given, pofx.load(folder / OTHER, given="label")))
    for name, (family, options, request, rows) in SPEC.items():
        if args.only is not None and name not in args.only:
            continue
        n = min(rows, 20) if args.quick else rows
        data = target if family == "classifier" else given
        run = fitted(args.out / name, data, family, args.seconds, args.seed, options=options, valid_rows=500)
        started = time.perf_counter()
        mine, strange = (
            predict(run, some.x[:n], request=request, generator=generator(args.seed)) for some in (test, other)
        )
        took, label = (time.perf_counter() - started) / (2 * n), test.c[:n]
        loss, accuracy = mine.log_loss(label), mine.accuracy(label)
        results.emit(
            model=name, of="p(y | x)", kind=mine.kind.__name__, caveat=mine.caveat, n=n, accuracy=accuracy.accuracy,
            se=accuracy.se, log_loss=-loss.nats, ece=mine.calibration(label).error, sure=float(sure(mine).mean()),
            sure_of_fashion=float(sure(strange).mean()), auroc=auroc(sure(mine), sure(strange)),
            seconds_each=took, parameters=run.model.parameter_count(),
        )  # fmt: skip
        if mine.evidence is not None and strange.evidence is not None:
            nats, others = mine.evidence.nats, strange.evidence.nats
            results.emit(
                model=name, of="p(x)", kind=type(mine.evidence).__name__, caveat=getattr(mine.evidence, "caveat", ""),
                n=n, nats=float(nats.mean()), nats_of_fashion=float(others.mean()), auroc=auroc(nats, others),
            )  # fmt: skip
    results.keep("model")
    results.save()


if __name__ == "__main__":
    main()
