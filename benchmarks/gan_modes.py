"""How many modes of a grid of 25 and of a ring of 8 narrow Gaussians a GAN finds, by each of its games.

    python benchmarks/gan_modes.py [--quick] [--seeds 5] [--seconds 60] [--loss r1 r3gan hinge wgan] [--modes 10]

writes results/gan_modes.json. Ring: deviation 0.02 on a circle of radius 2 (Metz et al. 2017); grid: deviation 0.05,
distance 2 (Srivastava et al. 2017). Of 2,500 samples, one within three deviations of a mode's centre is of high
quality, and a mode with one of these is found (Lin et al. 2018, section 4.1). ``kl`` is that of the modes' shares of
these from uniform ones. Each fit is of 20,000 rows, the defaults but for the game, and ``--modes 1``
for numbers that are standardised only. All seeds have to find all: ``complete`` equals ``seeds``.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

import pofx
from pofx.data.parts import Data, Part
from pofx.spaces import Real, Table
from timing import Results

ROWS, DRAWN = 20_000, 2_500
SETS = {
    "grid": (torch.cartesian_prod(torch.arange(-4.0, 5, 2), torch.arange(-4.0, 5, 2)).double(), 0.05),
    "ring": (torch.tensor([[2 * math.cos(k * math.pi / 4), 2 * math.sin(k * math.pi / 4)] for k in range(8)]).double(),
             0.02),
}  # fmt: skip


def rows(centres: Tensor, scale: float, n: int, seed: int) -> Part:
    g = torch.Generator().manual_seed(seed)
    which = torch.randint(len(centres), (n,), generator=g)
    return Part(centres[which] + scale * torch.randn(n, 2, generator=g, dtype=torch.float64))


def found(x: Tensor, centres: Tensor, scale: float) -> dict[str, float]:
    """Modes that samples x [N, 2] find, the share of x of high quality, KL of the modes' shares from uniform ones."""
    distance, mode = torch.cdist(x, centres).min(1)
    counts = mode[distance < 3 * scale].bincount(minlength=len(centres)).double()
    share = counts / counts.sum().clamp(min=1)
    kl = float((share * (share * len(centres)).clamp(min=1e-300).log()).sum())
    return {"modes": int((counts > 0).sum()), "high_quality": float(counts.sum() / len(x)), "kl": kl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--loss", nargs="*", default=["r1", "r3gan", "hinge", "wgan"])
    parser.add_argument("--modes", type=int, default=10)
    args = parser.parse_args()
    seeds, seconds = (1, 2.0) if args.quick else (args.seeds, args.seconds)
    torch.set_num_threads(1)
    results = Results(args.quick, threads=1, torch=torch.__version__, seconds=seconds, modes=args.modes)
    space = Table((Real("x"), Real("y")))
    for name, (centres, scale) in SETS.items():
        parts = [rows(centres, scale, n, 0) for n in (ROWS, 100, 100)]
        data = Data(name, name, space, *parts)
        for loss in args.loss:
            complete = 0
            for seed in range(seeds):
                run = pofx.fit(data, "gan", seconds=seconds, seed=seed, options={"loss": loss, "modes": args.modes})
                x = run.model.sample(DRAWN, generator=torch.Generator().manual_seed(seed))
                figures = found(x, centres, scale)
                complete += figures["modes"] == len(centres)
                results.emit(what="fit", set=name, loss=loss, seed=seed, steps=run.log[-1]["step"], **figures)
            results.emit(what="complete", set=name, loss=loss, seeds=seeds, complete=complete)
    results.save()


if __name__ == "__main__":
    main()
