"""Masked diffusion on Tiny Shakespeare: its bound in T steps, its exact orders on short strings, and gpt beside it.

    python benchmarks/masked_diffusion.py --data DATA [--quick] [--minutes 10] [--threads 2]

writes results/masked_diffusion.json. Both families are trained for as many minutes, one after the other, on the same
89% of the text, at the same sizes. Bits are per byte of the last 10%: in its excerpts of up to 2048 characters, read in
windows of 256 (of gpt also given what is before each excerpt, as it may be), and in strings of 64 characters, each for
itself. ``model`` says of which sampler a number is.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from timing import Results

STEPS = (1, 4, 16, 64, 256, None)  # None: one symbol at a time, in continuous time
SHORT = 64  # symbols of a short string
OPTIONS = {"block": 256}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds text/tinyshakespeare.txt")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import torch

    import pofx
    from pofx.core.requests import AnyOrder, InOrder, VariationalBound

    torch.set_num_threads(args.threads)
    results = Results(args.quick, threads=args.threads, torch=torch.__version__, minutes=args.minutes, seed=args.seed)
    data = pofx.load(args.data / "text" / "tinyshakespeare.txt", split=(0.89, 0.01, 0.1))
    minutes, rows, draws = (0.5, 2, 4) if args.quick else (args.minutes, len(data.test), 16)
    excerpts, stream = data.test[:rows], data.test.x[:]
    stream = stream[stream >= 0]
    short = stream[: len(stream) // SHORT * SHORT].view(-1, SHORT)
    short = short[:: max(1, len(short) // (8 if args.quick else 256))]

    def told(name: str, x: torch.Tensor, part: str, model: str, lik, **numbers: object) -> None:
        size = float(data.space.units(x).sum())
        bits = 1 / math.log(2) / size
        se = 0.0 if not hasattr(lik, "mc_se") else float(lik.mc_se.square().sum().sqrt()) * bits
        nats = float(lik.nats.double().mean())
        results.emit(
            family=name, part=part, model=model, kind=type(lik).__name__, bits_per_byte=-nats * len(x) * bits,
            mc_se_bits=se, rows=len(x), bytes=size, **numbers,
        )  # fmt: skip

    fitted = {}
    for name in ("masked-diffusion", "gpt"):
        run = pofx.fit(data, name, seconds=60 * minutes, seed=args.seed, options=OPTIONS)
        fitted[name] = run.model
        results.emit(family=name, parameters=run.model.parameter_count(), steps=run.steps)

    with torch.no_grad():
        net, gpt, x = fitted["masked-diffusion"], fitted["gpt"], excerpts.x[:]
        for steps in STEPS:
            model = "any order, one by one" if steps is None else f"ancestral, {steps} steps a window"
            lik = net.log_prob(x, request=VariationalBound(draws=draws, steps=steps))
            told("masked-diffusion", x, "excerpts", model, lik, steps=steps)
        told("gpt", x, "excerpts", "left to right", gpt.log_prob(x))
        told(
            "gpt",
            x,
            "excerpts",
            "left to right, given what is before",
            gpt.given(before=excerpts.before[:]).log_prob(x),
        )

        lik = net.log_prob(short, request=VariationalBound(draws=4 * draws))
        told("masked-diffusion", short, "strings", "any order, one by one", lik)
        for k in (2, 8) if args.quick else (2, 8, 32):
            lik = net.log_prob(short, request=AnyOrder(draws=k))
            told("masked-diffusion", short, "strings", "any order, one by one", lik, orders=k)
        for order in ("raster", "reverse"):
            lik = net.log_prob(short, request=InOrder(order))
            told("masked-diffusion", short, "strings", f"{order} order, one by one", lik)
        told("gpt", short, "strings", "left to right", gpt.log_prob(short))
    results.save()


if __name__ == "__main__":
    main()
