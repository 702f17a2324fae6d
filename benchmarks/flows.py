"""Speed of the flows against zuko in one run: train step, log_prob and sampling at batch 512.

Both sides have the same shape: T autoregressive layers with two hidden layers of H units, 8 bins, the order
reversed between layers. Ratios are zuko's time over ours (above 1: ours is faster), medians of interleaved
rounds.

    python benchmarks/flows.py [--quick] [--threads 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from timing import Results, middle, race

BATCH = 512


def ours(family: str, d: int, layers: int, hidden: int):
    """Our chain at zuko's size, without the whitening layer."""
    import torch

    from pofx.transforms.base import Affine, Chain
    from pofx.transforms.masked import MaskedAutoregressive
    from pofx.transforms.spline import Spline

    scalar = Affine() if family == "maf" else Spline(8)
    size = {"context": 0, "hidden": hidden, "blocks": 2}
    flow = Chain([MaskedAutoregressive(d, scalar, reverse=i % 2 == 1, **size) for i in range(layers)])

    def log_prob(x):
        step = flow(x)
        return step.log_term - 0.5 * step.z.square().sum(1) - 0.5 * d * 1.8378770664093453

    return flow, log_prob, lambda n: flow.inverse(torch.randn(n, d))


def zukos(family: str, d: int, layers: int, hidden: int):
    import zuko

    cls = zuko.flows.MAF if family == "maf" else zuko.flows.NSF
    flow = cls(d, 0, transforms=layers, hidden_features=(hidden, hidden))
    return flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="d = 21 only, results not kept")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    results = Results(args.quick, torch=torch.__version__, threads=args.threads, batch=BATCH)
    for d, layers, hidden in [(21, 5, 128)] if args.quick else [(21, 5, 128), (63, 10, 256)]:
        for family in ("maf", "nsf"):
            x = 0.8 * torch.randn(BATCH, d, generator=torch.Generator().manual_seed(0))
            tasks: dict[str, dict[str, Callable[[], object]]] = {"train step": {}, "log_prob": {}, "sample": {}}
            for who, build in (("pofx", ours), ("zuko", zukos)):
                flow, log_prob, sample = build(family, d, layers, hidden)
                optimizer = torch.optim.Adam(flow.parameters(), 1e-4, fused=True)

                def step(log_prob=log_prob, optimizer=optimizer, x=x):
                    optimizer.zero_grad(set_to_none=True)
                    (-log_prob(x).mean()).backward()
                    optimizer.step()

                tasks["train step"][who] = step
                tasks["log_prob"][who] = torch.no_grad()(lambda log_prob=log_prob, x=x: log_prob(x))
                tasks["sample"][who] = torch.no_grad()(lambda sample=sample: sample(BATCH))
            for task, contestants in tasks.items():
                slow = task == "sample" and family == "nsf" and d > 21  # zuko takes ten seconds a call
                times = race(contestants, 3 if slow else 7)
                ms = {f"{who}_ms": middle(t)[0] * 1e3 for who, t in times.items()}
                ratio = ms["zuko_ms"] / ms["pofx_ms"]
                results.emit(family=family, d=d, layers=layers, hidden=hidden, task=task, **ms, ratio=ratio)
    results.save()


if __name__ == "__main__":
    main()
