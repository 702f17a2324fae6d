"""``pofx log-prob`` and ``pofx encode``: rows under a fitted model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from pofx.commands.shared import Output, err, out, parse, print_json
from pofx.core.errors import Unsupported

if TYPE_CHECKING:
    from pofx.train.run import Run



@dataclass(kw_only=True)
class Rows(Output):
    """Rows to be scored or encoded by a run."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE")] = None
    """New rows, read with the run's own types [default: the test part of the run's data]."""
    out: Path | None = None
    """CSV or Parquet file, one line per input row, in the input's order."""
    seed: int = 0
    """Seed of Monte Carlo draws."""


@dataclass(kw_only=True)
class LogProb(Rows):
    """log p(x) of rows in nats per row, with its kind (exact, bound or estimate) and errors."""

    estimator: str | None = None
    """One of the family's likelihood estimators."""
    draws: int | None = None
    """Monte Carlo draws per row."""
    steps: int | None = None
    """Solver steps."""


def log_prob(argv: list[str]) -> int:
    args = parse(LogProb, argv, "log-prob")
    import torch

    from pofx.core.likelihood import Exact
    from pofx.core.model import Budget
    from pofx.data.write import write_scores
    from pofx.evaluate.likelihood import score
    from pofx.train.run import read_run

    run = read_run(args.run)
    part = _part(run, args)
    budget = Budget(args.estimator, args.draws, args.steps)
    generator = torch.Generator().manual_seed(args.seed)
    result = score(run.model, part, budget=budget, generator=generator)
    rows = result.rows
    if rows is None:
        raise Unsupported(f"{run.model.name} has no likelihood: {result.note}")
    if args.out is not None:
        columns: dict[str, Any] = {"row": part.rows, "log_prob": rows.nats, "kind": [type(rows).__name__] * len(part)}
        if not isinstance(rows, Exact):
            columns["mc_se"] = rows.mc_se
        write_scores(args.out, columns)
    if args.json:
        print_json(
            {"run": str(args.run), "rows": len(part), "out": args.out and str(args.out)} | result.to_json(rows=False)
        )
    else:
        out.print(f"log p(x) on {len(part)} rows: {result.text} per row, {result.bits_text}", highlight=False)
        if args.out is not None:
            err.print(f"one line per row, in the input's order: {args.out}", highlight=False)
    return 0


@dataclass(kw_only=True)
class Encode(Rows):
    """Latents of rows: the mean of q(z | x), one line per input row."""


def encode(argv: list[str]) -> int:
    args = parse(Encode, argv, "encode")
    import torch

    from pofx.data.write import write_scores
    from pofx.train.run import read_run

    run = read_run(args.run)
    part = _part(run, args)
    with torch.no_grad():
        z = run.model.given(part.c).encode(part.x).mean
    where = args.out or args.run / "latents.parquet"
    write_scores(where, {"row": part.rows} | {f"z{k}": z[:, k] for k in range(z.shape[1])})
    if args.json:
        print_json({"run": str(args.run), "rows": len(part), "latents": z.shape[1], "out": str(where)})
    else:
        out.print(f"{len(part)} rows, {z.shape[1]} latents each: {where}", highlight=False)
    return 0


def _part(run: Run, args: Rows) -> Any:
    """The rows to work on: a new source read by the run's types, or the test part of its own data."""
    from pofx.data.base import load, read_rows

    about = run.info["data"]
    if args.source is None:
        return load(about["source"], **about["options"]).test
    return read_rows(run.model.space, run.model.context, args.source, labels=about["labels"], options=about["options"])
