"""``pofx sample``."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from pofx.commands.shared import Output, err, parse, print_json
from pofx.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from pofx.train.run import Run



@dataclass(kw_only=True)
class Sample(Output):
    """Draw samples from a run, written as CSV or Parquet (tables), PNG files or .npz (images)."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    n: Annotated[Positional[int], arg(metavar="N")] = 16
    """How many (for each context)."""
    out: Path | None = None
    """File (.csv, .parquet, .npz) or folder for PNG files; without it, a table's rows are printed."""
    given: str | None = None
    """The context: a label ('3'), or column values 'income=>50K,sex=Male'."""
    sampler: str | None = None
    """One of the family's samplers."""
    steps: int | None = None
    """Solver steps, for families that sample in steps."""
    seed: int = 0
    """Seed of the draws."""


def sample(argv: list[str]) -> int:
    args = parse(Sample, argv, "sample")
    import torch

    from pofx.core.model import Sampler
    from pofx.core.space import Table, Text
    from pofx.data.write import write_rows
    from pofx.train.run import read_run

    run = read_run(args.run)
    c = _context(run, args.given)
    started = time.perf_counter()
    x = run.model.given(c).sample(
        args.n, generator=torch.Generator().manual_seed(args.seed), sampler=Sampler(args.sampler, args.steps)
    )
    seconds = time.perf_counter() - started
    if args.out is None:
        if not isinstance(run.model.space, Table | Text):
            raise UsageError("Images need a place to be written.", "Say --out folder/ or --out samples.npz.")
        write_rows(run.model.space, x, sys.stdout)
        return 0
    write_rows(run.model.space, x, args.out)
    if args.json:
        print_json({"run": str(args.run), "samples": len(x), "seconds": seconds, "out": str(args.out)})
    else:
        err.print(f"{len(x)} samples in {seconds:.2f} s: {args.out}", highlight=False)
    return 0


def _context(run: Run, given: str | None) -> torch.Tensor | None:
    """One context from its spelling on the command line."""
    import torch

    from pofx.core.space import Label, Table
    from pofx.data.base import encode_row

    context = run.model.context
    if context is None:
        if given is not None:
            raise UsageError("This run models p(x) and takes no --given.", "Fit it with --given first.")
        return None
    if given is None:
        raise UsageError(f"This run models p(x | c) with c a {context}.", "Say which: --given VALUE.")
    if isinstance(context, Label):
        if given not in context.values:
            raise UsageError(f"There is no class {given!r}.", f"Classes: {', '.join(context.values)}.")
        return torch.tensor(context.values.index(given))
    if isinstance(context, Table):
        values = dict(pair.partition("=")[::2] for pair in given.split(","))
        return encode_row(context, values)
    raise UsageError("An image as context cannot be spelt on the command line.", "Use Python: model.given(image).")
