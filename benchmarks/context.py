"""How often a context is encoded while it is sampled, and what that takes: ``given(c).sample(64)`` of images by image.

    python benchmarks/context.py [--quick]

writes results/context.json. The families are untrained, of their own sizes; the contexts are 4 images of 32x32x3. For
each, the rows that its encoder sees, and the time beside that of sampling where contexts are encoded row by row.
"""

from __future__ import annotations

import argparse
import statistics

from timing import Results, race


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()

    import torch

    import pofx
    from pofx.spaces import Image, Real, Table

    torch.set_num_threads(1)
    results = Results(args.quick, threads=1, torch=torch.__version__)
    space, context = Table(tuple(Real(f"x{i}") for i in range(8))), Image(32, 32, 3, 256)
    c = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for name in ("made", "realnvp", "vae", "gan"):
        cls = pofx.family(name)
        model, rows = cls(cls.Config(), space, context).requires_grad_(False).eval(), []
        encode = model.encode_context
        model.encode_context = lambda c, encode=encode, rows=rows: (rows.append(len(c)), encode(c))[1]
        times = race({
            "once": lambda model=model: model.given(c).sample(64),
            "each": lambda model=model: model.rows_sample(
                256, model.encode_context(c.repeat(64, 1, 1, 1)), model.default_sampler(),
                torch.Generator().manual_seed(0),
            ),
        }, 3 if args.quick else 9)  # fmt: skip
        once, each = (statistics.median(times[k]) for k in ("once", "each"))
        results.emit(
            what="sample(64)", family=name, rows_once=min(rows), rows_each=max(rows), calls=rows.count(min(rows)),
            rounds=rows.count(max(rows)), seconds_once=once, seconds_each=each, ratio=each / once,
        )  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
