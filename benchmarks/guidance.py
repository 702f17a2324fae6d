"""Guided samples: are they of the label that they were guided to, and what do completions of a mixture get wrong?

    python benchmarks/guidance.py [--quick] [--only PART] [--source SOURCE] [--minutes M] [--draws N]

Labels: a vdm given the label, with context dropout, a vdm without, a smaller one of a quarter of the time, a classifier
of noised images and a second one of clean images that judges (``read as`` the label: the share of N draws, as many of
each label). Of the M minutes the two models have 40% each, the weaker one 10%, the classifiers 5% each.

Completions: left halves of test images kept. ``read as``: the label of the image that was completed.

Mixture: three clusters in the plane in closed form, so that no net has a part in it; the first coordinate is known. At
each of its values, how far apart the distribution functions of the second one are, among draws and in truth.
Prints one JSON object a line and writes all to benchmarks/results/guidance.json.
"""

from __future__ import annotations

import argparse
import math
import os
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="half a minute, results not kept")
parser.add_argument("--only", choices=("mixture", "labels"), help="one part, results not kept")
parser.add_argument("--source", default="digits", help="labelled images")
parser.add_argument("--minutes", type=float, default=30.0)
parser.add_argument("--draws", type=int, default=1000)
ARGS = parser.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from torch import Tensor

import pofx
from pofx.core.requests import DpmSolver, SdeSolver
from pofx.families.diffusion import Vdm
from pofx.families.path import PathConfig
from pofx.paths.guidance import Autoguidance, ByClassifier, ClassifierFree, Guidance, Inpainting
from pofx.spaces import Real, Table
from timing import Results

STEPS, SCALES = 20, (1.0, 1.5, 2.0, 3.0)
MINUTES, DRAWS = (0.5, 100) if ARGS.quick else (ARGS.minutes, ARGS.draws)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2]).double()
MEANS = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]]).double()
WIDTH = 0.4  # of every cluster
METHODS = ("gaussian", "jacobian", "replacement")


class Clusters(Vdm):
    """The mixture in closed form."""

    def denoiser(self, h: object) -> object:
        def denoise(z: Tensor, t: Tensor) -> Tensor:
            p = self.schedule(t.double())
            wide = (p.alpha * WIDTH) ** 2 + p.sigma**2
            off = z.double()[:, None] - p.alpha * MEANS
            share = (WEIGHTS.log() - off.square().sum(-1) / (2 * wide)).softmax(1)
            each = MEANS + p.alpha * WIDTH**2 / wide * off
            return (share[..., None] * each).sum(1).to(z.dtype)

        return denoise


def clusters() -> Clusters:
    model = Clusters(PathConfig(hidden=8, blocks=1), Table((Real("a"), Real("b"))))
    mean = WEIGHTS @ MEANS
    cov = (MEANS - mean).T @ (WEIGHTS[:, None] * (MEANS - mean)) + WIDTH**2 * torch.eye(2)
    variance, basis = torch.linalg.eigh(cov)
    model.gaussian.mean.copy_(mean)
    model.gaussian.variance.copy_(variance)
    model.gaussian.factors[0].copy_(basis)
    return model


def mixture(results: Results) -> None:
    model, known = clusters(), torch.tensor([True, False])
    for method in METHODS:
        for sampler in (DpmSolver, SdeSolver):
            off = {}
            for at in (-1.0, -0.5, 0.0, 0.5, 1.0):
                share = (WEIGHTS.log() - (at - MEANS[:, 0]) ** 2 / (2 * WIDTH**2)).softmax(0)
                guidance = Inpainting(torch.tensor([at, 0.0]), known, method)
                x = model.sample(DRAWS, sampler=sampler(100, guidance), generator=generator())[:, 1].sort().values
                truth = torch.special.ndtr((x[:, None] - MEANS[:, 1]) / WIDTH) @ share
                off[f"at {at:g}"] = float((truth - (torch.arange(DRAWS) + 0.5) / DRAWS).abs().max())
            results.emit(what="mixture", method=method, sampler=sampler.name, **off)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def labels(results: Results) -> None:
    given = pofx.load(ARGS.source, given="label")
    target = pofx.load(ARGS.source, target="label")
    plain, seconds = pofx.load(ARGS.source), 60 * MINUTES
    model = pofx.fit(given, "vdm", seconds=0.4 * seconds, options={"context_dropout": 0.1}).model
    without = pofx.fit(plain, "vdm", seconds=0.4 * seconds).model
    weaker_of = {"context_dropout": 0.1, "channels": 16, "blocks": 1}
    weaker = pofx.fit(given, "vdm", seconds=0.1 * seconds, options=weaker_of).model
    guide = pofx.fit(target, "classifier", seconds=0.05 * seconds, options={"noised": True}).model
    judge = pofx.fit(target, "classifier", seconds=0.05 * seconds, seed=1).model
    test = given.test[:DRAWS].read()
    assert test.c is not None

    def read_as(x: Tensor, label: Tensor) -> tuple[float, float]:
        right = (judge.given(x).classes().nats.argmax(-1) == label).double()
        return float(right.mean()), float(right.std() / math.sqrt(len(right)))

    def row(what: str, x: Tensor, label: Tensor, started: float, **about: object) -> None:
        share, se = read_as(x, label)
        results.emit(what=what, **about, read_as=share, read_as_se=se, seconds=time.perf_counter() - started)

    row("test images", test.x, test.c, time.perf_counter())
    label = torch.arange(DRAWS) % len(given.labels)

    def guided(what: str, p: object, guidance: Guidance | None, **about: object) -> None:
        started, step = time.perf_counter(), 100  # rows that are drawn at once, with labels of their own
        parts = []
        for rows in torch.split(label, step):
            one = guidance(rows) if callable(guidance) else guidance
            sampler = DpmSolver(STEPS, guidance=one)
            if p is model:
                parts.append(model.given(rows).sample(1, sampler=sampler, generator=generator())[0])
            else:
                parts += [without.sample(len(rows), sampler=sampler, generator=generator())]
        row(what, torch.cat(parts), label, started, **about)

    for scale in SCALES:
        guided("classifier-free", model, ClassifierFree(scale), scale=scale)
    guided("classifier-free", model, ClassifierFree(2.0, 0.2, 5.0), scale=2.0, interval="0.2 to 5")
    for scale in SCALES:
        guided("autoguidance", model, Autoguidance(weaker, scale), scale=scale)
    for scale in SCALES:
        guided("by a classifier", without, lambda rows, s=scale: ByClassifier(guide, rows, s), scale=scale)
    known = torch.zeros_like(test.x, dtype=torch.bool)
    known[..., : known.shape[-1] // 2] = True
    for method in METHODS:
        started, parts = time.perf_counter(), []
        for x, mask in zip(torch.split(test.x, 100), torch.split(known, 100), strict=True):
            sampler = DpmSolver(STEPS, guidance=Inpainting(x, mask, method))
            parts.append(without.sample(len(x), sampler=sampler, generator=generator()))
        row("right halves", torch.cat(parts), test.c, started, method=method)


def main() -> None:
    results = Results(ARGS.quick or ARGS.only is not None, source=ARGS.source, minutes=MINUTES, draws=DRAWS)
    for part in (mixture, labels):
        if ARGS.only in (None, part.__name__):
            part(results)
    results.save()


if __name__ == "__main__":
    main()
