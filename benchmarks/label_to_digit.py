"""MNIST digits drawn by their label: does an independent classifier read them so, and do they cover the real ones?

    python benchmarks/label_to_digit.py DATA OUT [--seconds 2400] [--seed 0] [--threads 1] [--draws 2000] [--quick]

DATA is the folder of the data sets (images/mnist in it); OUT keeps the runs. ``flow-matching`` given the label, a tenth
of the labels left out in training, for the seconds; two classifiers of real digits for a tenth of them each, one that
reads (``read_as``: the share of draws, as many of each label, read as their label; of as many test images beside it),
one whose features (128 numbers) are compared: Fréchet distance, precision, recall, density and coverage of balls of 5
neighbours around test images (as many as draws), and of training images in place of draws. Guidance 1 is the model as
trained. Prints one JSON object a line and writes all to results/label_to_digit.json, and docs/_static/digits.png: ten
draws of each label, at guidance 1 above and at the largest below.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pofx
from fitted import arguments, fitted, generator, parsed, picture
from pofx.core.likelihood import mean, number
from pofx.core.requests import DpmSolver, VariationalBound
from pofx.evaluate.two_sample import frechet, prdc
from timing import Results

SCALES, STEPS, AT_ONCE = (1.0, 1.5, 2.0, 3.0), 20, 200


def main() -> None:
    parser = arguments(__doc__, 2400.0)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--family", default="flow-matching")
    args = parsed(parser)
    n = 40 if args.quick else args.draws
    results = Results(args.quick, seconds=args.seconds, seed=args.seed, threads=args.threads, draws=n)
    folder = args.data / "images" / "mnist"
    given, target = (pofx.load(folder, **{how: "label"}) for how in ("given", "target"))
    each = max(2.0, args.seconds / 10)
    reader, seer = (
        fitted(args.out / f"classifier-{k}", target, "classifier", each, args.seed + k).model for k in (0, 1)
    )
    run = fitted(
        args.out / args.family, given, args.family, args.seconds, args.seed,
        options={"context_dropout": 0.1}, recipe={"batch": 32}, valid_rows=300,
    )  # fmt: skip

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        return torch.cat([seer.encode_context(some).vector for some in x.split(500)]).double()

    @torch.no_grad()
    def told(x: Tensor, label: Tensor, against: Tensor) -> dict[str, Any]:
        right = (reader.given(x).classes().nats.argmax(-1) == label).double()
        seen = features(x)
        found = prdc(against, seen)
        names = ("precision", "recall", "density", "coverage")
        share = float(right.mean())
        about = {"read_as": share, "read_as_se": math.sqrt(share * (1 - share) / len(right))}
        about["distance"] = frechet(against, seen).distance
        return about | {name: getattr(found, name) for name in names} | {"coverage_se": found.se[3]}

    test, train = given.test.draw(n, args.seed).read(), given.train.draw(n, args.seed).read()
    assert test.c is not None
    assert train.c is not None
    real = features(test.x)
    results.emit(what="training images", n=n, **told(train.x, train.c, real))
    share = (reader.given(given.test.x).classes().nats.argmax(-1) == given.test.c).double().mean()
    results.emit(what="the reader on test images", n=len(given.test), read_as=float(share))
    label, strips = torch.arange(n) % 10, []
    for scale in SCALES[::3] if args.quick else SCALES:
        started, drawn, noise = time.perf_counter(), [], generator(args.seed)
        sampler = DpmSolver(STEPS, guidance=None if scale == 1 else scale)
        for rows in label.split(AT_ONCE):
            drawn.append(run.model.given(rows).sample(1, sampler=sampler, generator=noise)[0])
        x = torch.cat(drawn)
        took = (time.perf_counter() - started) / n
        results.emit(what="draws", family=args.family, guidance=scale, n=n, **told(x, label, real), seconds_each=took)
        if scale in (SCALES[0], SCALES[-1]):
            strips.append(x[:100].unflatten(0, (-1, 10)))
    some = test[:200]
    for what, p in (("its label", run.model.given(some.c)), ("nothing", run.model.given(null=True))):
        with torch.no_grad():
            lik = mean(number(p.log_prob(some.x, request=VariationalBound(32), generator=generator(args.seed))))
        bits = -lik.nats / math.log(2) / given.space.dims
        results.emit(
            what="likelihood of test images", given=what, kind=lik.kind.__name__, nats=lik.nats, se=lik.se,
            bits_per_dim=bits, rows=len(some), parameters=run.model.parameter_count(),
        )  # fmt: skip
    place = args.out if args.quick else Path(__file__).parent.parent / "docs" / "_static"
    picture(torch.cat(strips), place / "digits.png", 1)
    results.save()


if __name__ == "__main__":
    main()
