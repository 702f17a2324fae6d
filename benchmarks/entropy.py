"""No family beats a source of known entropy: every family, every source that it serves, ten seeds of training.

    python benchmarks/entropy.py [--seeds 10] [--families made,vae]

Sources and models are those of the conformance suite. One JSON line per family and source: the mean over the
seeds of log p(x) - log p*(x) on held-out rows in nats (``excess``, negative where the model is worse than the
truth), and the largest excess of a seed in standard errors (``worst_z``; the suite allows 3, and to estimates,
which are no bounds, 0.05 nats besides).
"""

from __future__ import annotations

import argparse
import statistics

import torch

from pofx.core.registry import families, family
from pofx.testing.checks import above_the_truth
from pofx.testing.conformance import served
from pofx.testing.subject import NotApplicable, Subject
from timing import Results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--families", default="", help="comma list [default: all]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [n for n in args.families.split(",") if n]
    results = Results(bool(names) or args.seeds < 10, torch=torch.__version__, seeds=args.seeds)
    beaten = 0
    for name in names or families():
        cls = family(name)
        for case in served(cls):
            try:
                found = [above_the_truth(Subject(cls, case, seed)) for seed in range(args.seeds)]
            except NotApplicable:  # no likelihood, or an upper bound
                continue
            worst = max(above.nats / above.error if above.error else 0.0 for above, _ in found)
            beaten += worst > 3
            results.emit(family=name, source=case.name, kind=found[0][1].__name__,
                         excess=statistics.mean(above.nats for above, _ in found),
                         se=max(above.error or 0.0 for above, _ in found), worst_z=worst)  # fmt: skip
    results.emit(what="families and sources with a seed beyond 3 standard errors", count=beaten)
    results.save()


if __name__ == "__main__":
    main()
