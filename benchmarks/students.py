"""Students of few steps on MNIST or another source: samples of 1, 2 and 4 steps beside their teacher's.

    python benchmarks/students.py SOURCE [--quick] [--minutes 15] [--family vdm] [--threads 2]

One JSON line per figure: the distance of means and covariances (Heusel et al. 2017, eq. 6) of principal components of
the data, of samples against test rows, and of training rows against them (the floor). Each student is one fit of that
many minutes, teacher included.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import pofx
from pofx.core.requests import Ddim, DpmSolver, FewStep
from timing import Results

COMPONENTS = 64


def distance(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of rows a, b [N, D]."""
    first, second = a.T.cov(), b.T.cov()
    roots = torch.linalg.eigvals(first @ second).real.clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * roots)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--quick", action="store_true", help="ten seconds each, results not kept")
    parser.add_argument("--minutes", type=float, default=15.0, help="of each fit")
    parser.add_argument("--family", default="vdm")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results, data = Results(args.quick, torch=torch.__version__, threads=args.threads), pofx.load(args.source)
    n = min(len(data.test), 200 if args.quick else 10_000)
    train, test = (part[:n].read().x.flatten(1).double() for part in (data.train, data.test))
    axes = torch.pca_lowrank(train, min(COMPONENTS, train.shape[1]), niter=4)[2]
    results.emit(what="distance", who="training rows", distance=distance(train @ axes, test @ axes), n=n)
    for student in ("consistency", "reflow"):
        seconds = 10.0 if args.quick else 60 * args.minutes
        model = pofx.fit(data, args.family, seconds=seconds, options={"student": student}).model
        samplers = [FewStep(steps=k) for k in (1, 2, 4)] + [Ddim(steps=2), DpmSolver(steps=10), DpmSolver(steps=20)]
        for sampler in samplers:
            x = model.sample(n, sampler=sampler, generator=torch.Generator().manual_seed(0)).flatten(1).double()
            found = distance(x @ axes, test @ axes)
            results.emit(what="distance", who=sampler.name, student=student, steps=sampler.steps, distance=found, n=n)
    results.save()


if __name__ == "__main__":
    main()
