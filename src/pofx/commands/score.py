"""``pofx log-prob`` and ``pofx encode``: rows under a fitted model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from pofx.commands.shared import Output, err, out, parse, print_json, tell_notes, tell_standing
from pofx.commands.surprise import legend, show
from pofx.core.errors import Unsupported, UsageError

if TYPE_CHECKING:
    import torch

    from pofx.data.base import Part
    from pofx.evaluate.text import Mark
    from pofx.train.run import Run


SHOWN = 4000  # symbols of one text that are shown


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
    """log p(x) of rows in nats per row, with its kind (exact, bound or estimate) and errors.

    Of texts also the rates per character, byte, symbol and word, and where the model is surprised (--show).
    """

    estimator: str | None = None
    """One of the family's likelihood estimators."""
    draws: int | None = None
    """Monte Carlo draws per row."""
    steps: int | None = None
    """Solver steps."""
    stride: int | None = None
    """Symbols by which the window over a long text moves: fewer are dearer and see more [default: half the block]."""
    show: int = 0
    """Print so many texts (1 unless a number follows), each symbol coloured by its surprise."""
    say: str | None = None
    """Score and show this text, in place of a SOURCE."""


def log_prob(argv: list[str]) -> int:
    args = parse(LogProb, _with_number(argv, "--show", "1"), "log-prob")
    import torch

    from pofx.commands.model import read_model
    from pofx.core.likelihood import Exact
    from pofx.core.model import Budget
    from pofx.core.space import Text
    from pofx.data.write import write_scores
    from pofx.evaluate.likelihood import score
    from pofx.evaluate.text import rates

    run = read_model(args.run)
    model, texts = run.model, isinstance(run.model.space, Text)
    if (args.show or args.say is not None) and not texts:
        raise UsageError(f"--show and --say go with texts, not with {model.space}.", "Leave them out.")
    stands, notes = tell_standing(run.info, run.log, args.run), list[str]()
    part = _part(run, args, notes) if args.say is None else _said(run, args)
    notes = tell_notes(notes, args)
    budget = Budget(args.estimator, args.draws, args.steps, args.stride)
    generator = torch.Generator().manual_seed(args.seed)
    result = score(model, part, budget=budget, generator=generator)
    rows = result.rows
    if rows is None:
        raise Unsupported(f"{model.name} has no likelihood: {result.note}")
    of_text = rates(model, part, result, args.stride) if texts else None
    if args.out is not None:
        columns: dict[str, Any] = {"row": part.rows, "log_prob": rows.nats, "kind": [type(rows).__name__] * len(part)}
        if not isinstance(rows, Exact):
            columns["mc_se"] = rows.mc_se
        if texts:
            columns |= _per_byte(run, part, rows.nats)
        write_scores(args.out, columns)
    shown = _marks(run, part, args) if args.show or args.say is not None else []
    if args.json:
        found = {"run": str(args.run), **stands, "rows": len(part), "out": args.out and str(args.out), "notes": notes}
        found |= result.to_json(rows=False)
        if of_text is not None:
            found["text_rates"] = of_text.to_json()
        if shown:
            found["shown"] = [[[m.text, m.bits, m.symbols] for m in marks] for marks in shown]
        print_json(found)
        return 0
    if of_text is None or len(part) > 1:
        line = f"log p(x) on {len(part)} rows: {result.text} per row, {result.bits_text}"
        out.print(line, soft_wrap=True)
    else:
        out.print(f"log p(x) {result.text}")
    if of_text is not None:
        out.print(of_text.text)
        out.print(of_text.window_text, soft_wrap=True)
    for marks in shown:
        out.rule()
        show(out, marks)
    if shown and out.color_system is not None:
        out.print(legend())
    if args.out is not None:
        err.print(f"one line per row, in the input's order: {args.out}")
    return 0


def _with_number(argv: list[str], flag: str, default: str) -> list[str]:
    """The arguments with this number after a flag that none follows."""
    if flag not in argv:
        return argv
    after = argv.index(flag) + 1
    follows = after < len(argv) and argv[after].lstrip("-").isdigit()
    return argv if follows else [*argv[:after], default, *argv[after:]]


def _said(run: Run, args: LogProb) -> Part:
    """The text of --say as the only row."""
    import torch

    from pofx.core.space import Text
    from pofx.data.base import Part

    if args.source is not None:
        raise UsageError("--say takes the place of a SOURCE; both were given.", "Leave out one.")
    if not args.say:
        raise UsageError("--say got an empty text.", "Give at least one character.")
    assert isinstance(run.model.space, Text)
    if run.model.context is not None:
        raise UsageError("--say has no context, which this run takes.", "Score a SOURCE that has it.")
    return Part(run.model.space.read([args.say]), rows=torch.arange(1))


def _per_byte(run: Run, part: Part, nats: torch.Tensor) -> dict[str, Any]:
    """Bytes of each text, and its bits per byte."""
    import math

    import torch

    from pofx.core.space import units

    size = torch.cat([units(run.model.space, part[i : i + 256].read().x) for i in range(0, len(part), 256)])
    return {"bytes": size.long(), "bits_per_byte": -nats.double() / math.log(2) / size}


def _marks(run: Run, part: Part, args: LogProb) -> list[list[Mark]]:
    """The first texts of the part symbol by symbol, as far as a terminal takes them."""
    from pofx.evaluate.text import marks

    if args.show < 0:
        raise UsageError(f"Cannot show {args.show} texts.", "Give 1 or more.")
    found = []
    for i in range(min(max(1, args.show), len(part))):
        row = part[i : i + 1].read()
        x = row.x[0][row.x[0] >= 0]
        each = marks(
            run.model,
            x[:SHOWN],
            None if row.c is None else row.c[0],
            None if row.before is None else row.before[0],
            args.stride,
        )
        if len(x) > SHOWN:  # the end is not there
            err.print(f"text {i + 1}: its first {SHOWN} of {len(x)} symbols are shown")
            each = [mark for mark in each if mark.text]
        found.append(each)
    return found


@dataclass(kw_only=True)
class Encode(Rows):
    """Latents of rows: the mean of q(z | x), one line per input row."""


def encode(argv: list[str]) -> int:
    args = parse(Encode, argv, "encode")
    import torch

    from pofx.commands.model import read_model
    from pofx.data.write import write_scores

    run = read_model(args.run)
    stands, notes = tell_standing(run.info, run.log, args.run), list[str]()
    part = _part(run, args, notes)
    notes = tell_notes(notes, args)
    with torch.no_grad():
        size = run.model.rows_per_pass()
        parts = (part[i : i + size].read() for i in range(0, len(part), size))
        z = torch.cat([run.model.given(rows.c).encode(rows.x).mean for rows in parts])
    where = args.out or args.run / "latents.parquet"
    columns: dict[str, Any] = {"row": part.rows} | {f"z{k}": z[:, k] for k in range(z.shape[1])}
    write_scores(where, columns)
    if args.json:
        about = {"rows": len(part), "latents": z.shape[1], "out": str(where), "notes": notes}
        print_json({"run": str(args.run), **stands, **about})
    else:
        out.print(f"{len(part)} rows, {z.shape[1]} latents each: {where}")
    return 0


def _part(run: Run, args: Rows, notes: list[str]) -> Part:
    """The rows to work on: a new source read by the run's types, or the test part of its own, unchanged data.

    ``notes`` gets what reading them has to tell.
    """
    from pofx.commands.model import new_rows
    from pofx.train.run import read_data

    if args.source is not None:
        return new_rows(run, args.source, run.model.context, notes)
    if run.info["data"]["source"] is None:
        raise UsageError(f"{args.run} has no data of its own.", "Name a SOURCE to score.")
    data, unsure = read_data(run.info, str(args.run))
    notes += data.notes if unsure is None else [*data.notes, unsure]
    return data.test
