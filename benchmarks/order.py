"""Order of convergence of every sampler of a path, on every schedule, against the stated one.

    python benchmarks/order.py [--quick]

The truth is known: without noise, quantiles of a mixture that the flow keeps; with noise, the variance of a normal, of
which the noisy sampler's own is computed without chance (pofx.paths.orders). One JSON line per case, and a table.
"""

from __future__ import annotations

import argparse

from pofx.paths.orders import COUNTS, STATED, order_of
from pofx.paths.schedule import SCHEDULES, Chain
from timing import Results

WITHIN = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one schedule; results not kept")
    args = parser.parse_args()
    paths = {name: cls() for name, cls in SCHEDULES.items()} | {"ddpm": Chain(1000)}
    paths = {"linear": paths["linear"]} if args.quick else paths
    results, table = Results(args.quick), []
    for sampler, (stated, _) in STATED.items():
        cells = []
        for name, schedule in paths.items():
            for grid in ("log-snr", "schedule"):
                order, errors = order_of(sampler, schedule, grid)
                case = {"sampler": sampler, "schedule": name, "grid": grid, "stated": stated, "order": order}
                results.emit(what="order", **case, **{f"error_{steps}": errors[steps] for steps in COUNTS})
                cells.append(order)
        table.append(f"{sampler:<20}{stated:>7}" + "".join(f"{order:>8.2f}" for order in cells))
        results.emit(what="sampler", sampler=sampler, stated=stated, farthest=max(abs(c - stated) for c in cells))
    print(f"{'steps even in the log SNR | in time':<27}" + "".join(f"{name:>16}" for name in paths))
    print("\n".join(table))
    farthest = max(entry["farthest"] for entry in results.entries if entry["what"] == "sampler")
    print(f"farthest from what is stated: {farthest:.3f} (at most {WITHIN})")
    results.save()
    if farthest > WITHIN:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
