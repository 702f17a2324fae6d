"""``pofx log-prob`` and ``pofx encode``: rows under a fitted model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from pofx.commands.requests import Estimating, request_of
from pofx.commands.shared import GIVEN_ALONE, Given, Output, err, out, parse, print_json, tell_notes, tell_standing
from pofx.commands.surprise import legend, show
from pofx.core.errors import Unsupported, UsageError

if TYPE_CHECKING:
    import torch

    from pofx.core.likelihood import Available
    from pofx.core.requests import Request
    from pofx.data.parts import Part
    from pofx.evaluate.likelihood import Mean
    from pofx.evaluate.text import Mark, Rates
    from pofx.train.run import Run


SANDWICH = "sandwich"  # an estimator of two sides, which no single request is
ANNEALED = 200  # rows of that, unless told
SHOWN = 4000  # symbols of one text that are shown


@dataclass(kw_only=True)
class Rows(Output):
    """Rows to be evaluated or encoded by a run."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE")] = None
    """New rows, read with the run's own types [default: the test part of the run's data]."""
    out: Path | None = None
    """CSV or Parquet file, one line per input row, in the input's order."""
    seed: int = 0
    """Seed of Monte Carlo draws."""


@dataclass(kw_only=True)
class LogProb(Rows, Given, Estimating):  # type: ignore[misc]
    """log p(x) of rows in nats per row, with its kind (exact, bound or estimate) and errors.

    Of texts also the rates per character, byte, symbol and word, and where the model is surprised (--show). Parquet
    files of a table, of any number and size ('folder/*.parquet', or the folder), are read block by block; --out may
    then be a folder, which gets a file for each. Of models with latents or an energy --estimator sandwich gives both
    sides by annealing: from below and, the other way, from above, of 200 rows unless --max-rows says otherwise.
    """

    part: Literal["a", "b", "a-given-b", "b-given-a"] | None = None
    """Of a run of pairs: evaluate one part alone, or given the other [default: both together]."""
    show: int = 0
    """Print so many texts (1 unless a number follows), each symbol coloured by its surprise."""
    say: Annotated[str | None, arg(metavar="TEXT")] = None
    """Evaluate and show this text, in place of a SOURCE."""
    simulate: int | None = None
    """Rows that the model draws for --estimator sandwich, of which both sides are bounds; 0: none [default: 100]."""
    max_rows: int | None = None
    """Rows, drawn by the seed, that --estimator sandwich takes: each is annealed twice, by chains [default: 200]."""
    cluster: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Work on files of a table on all cores of a Ray cluster: its address, or 'local'. The same numbers."""


def log_prob(argv: list[str]) -> int:
    args = parse(LogProb, _with_number(argv, "--show", "1"), "log-prob")
    import torch

    from pofx.commands.model import part_name, read_model
    from pofx.core.abilities import Decodes, can
    from pofx.data.joint import apart
    from pofx.data.pieces import is_streamed
    from pofx.data.write import write_columns
    from pofx.evaluate.likelihood import mean_log_prob
    from pofx.evaluate.text import Counts, rates

    run = read_model(args.run)
    model = run.model
    if args.part is not None:
        if args.estimator == SANDWICH or args.cluster is not None:
            raise UsageError("--part goes without --estimator sandwich and --cluster.", "Leave one out.")
        model = run.model.part_model(part_name(args.part), given="given" in args.part)
    texts = can(model, Decodes)  # symbol by symbol
    if (args.show or args.say is not None) and not texts:
        what = f"a {model.name} of texts" if model.space.alphabet is not None else model.space
        raise UsageError(f"--show and --say go with texts symbol by symbol, not with {what}.", "Leave them out.")
    found: dict[str, Any] = {"run": str(args.run), **tell_standing(run.info, run.log, args.run)}
    if args.estimator == SANDWICH:
        return _sandwich(run, args, found)
    for name, value in (("--simulate", args.simulate), ("--max-rows", args.max_rows)):
        if value is not None:
            raise UsageError(f"{name} goes with --estimator sandwich.", "Leave it out, or name that.")
    request, notes = request_of(args, model), list[str]()
    whole = args.source is not None and args.given is None
    if whole and is_streamed(run.model.space, model.context, args.source, args.cluster):
        result, found["files"] = _streamed(run, args, request, notes)
        return _tell(args, found, result, tell_notes(notes, args), model.space.values)
    if args.cluster is not None:
        raise UsageError(
            f"--cluster works on files of a table; {args.source or 'what there is without a SOURCE'} is none.",
            "Leave it out, or name Parquet or CSV files.",
        )
    part = part_of(run, args, notes) if args.say is None else _said(run, args)
    if args.part is not None:
        part = apart(run.model.space, part, part_name(args.part), given="given" in args.part)
    notes = tell_notes(notes, args)
    generator = torch.Generator().manual_seed(args.seed)
    counts = Counts(model) if texts else None
    result = mean_log_prob(
        model, part, request=request, generator=generator, watch=None if counts is None else counts.add
    )
    rows = result.rows
    if rows is None:
        raise Unsupported(f"{model.name} has no likelihood: {result.note}")
    if args.out is not None:
        assert part.rows is not None
        columns = _columns(part.rows, rows)
        if counts is not None:  # bytes of each text, and its bits per byte
            size = torch.cat(counts.bytes)
            columns |= {"bytes": size.long(), "bits_per_byte": -rows.nats.double() / math.log(2) / size}
        write_columns(args.out, columns)
    of_text = None if counts is None else rates(model, counts, result, request)
    shown = _marks(run, part, args, request) if args.show or args.say is not None else []
    return _tell(args, found, result, notes, model.space.values, of_text, shown)


def _tell(
    args: LogProb, about: dict[str, Any], result: Mean, notes: list[str], labels: Any,
    of_text: Rates | None = None, shown: Sequence[list[Mark]] = (),
) -> int:  # fmt: skip
    """What came out: the mean over all rows, and of texts their rates and the surprise of those that are shown."""
    from pofx.core.likelihood import effective_draws
    from pofx.evaluate.likelihood import weights_text

    if args.json:
        about |= {"rows": result.n, "out": args.out and str(args.out), "notes": notes} | result.to_json(rows=False)
        if of_text is not None:
            about["text_rates"] = of_text.to_json()
        if shown:
            about["shown"] = [[[m.text, m.bits, m.symbols] for m in marks] for marks in shown]
        if result.rows is not None and (worth := effective_draws(result.rows)) is not None:
            about["effective_draws"] = {"median": float(worth.median()), "least": float(worth.min())}
        print_json(about)
        return 0
    if labels:
        out.print(f"log-loss on {result.n} rows: {result.loss_text}")
    elif of_text is None or result.n > 1:
        out.print(f"log p(x) on {result.n} rows: {result.text} per row, {result.bits_text}")
    else:
        out.print(f"log p(x) {result.text}")
    if result.rows is not None and (hint := weights_text(result.rows)):
        out.print(hint)
    if of_text is not None:
        out.print(of_text.text)
        out.print(of_text.window_text)
    for marks in shown:
        out.rule()
        show(out, marks)
    if shown and out.color_system is not None:
        out.print(legend())
    if args.out is not None:
        each = ", in a file for each" if "files" in about and not args.out.suffix else ""
        err.print(f"one line per row, in the input's order{each}: {args.out}")
    return 0


def _columns(row: torch.Tensor, rows: Available) -> dict[str, Any]:
    """What is written of each row: its number, its log p, what that is, and its errors where it has some."""
    import pyarrow as pa

    from pofx.core.likelihood import Exact, number

    columns = {"row": row, "log_prob": rows.nats, "kind": pa.repeat(type(rows).__name__, len(row))}
    if isinstance(rows, Exact):
        return columns
    columns |= {"mc_se": rows.mc_se}
    columns |= {} if rows.ess is None else {"effective_draws": rows.ess}
    return columns | {"shared_se": number(rows).shared_se} if rows.shared else columns


def _sandwich(run: Run, args: LogProb, found: dict[str, Any]) -> int:
    """Both sides of the rows, and of rows that the model draws."""
    import torch

    from pofx.data.write import write_columns
    from pofx.evaluate.sandwich import SIMULATED, sandwich, sides_of

    if args.cluster is not None or args.show or args.say is not None:
        raise UsageError("--estimator sandwich goes without --cluster, --show and --say.", "Leave them out.")
    if args.simulate is not None and args.simulate < 0:
        raise UsageError(f"Cannot simulate {args.simulate} rows.", "Give 0 or more.")
    if args.max_rows is not None and args.max_rows < 1:
        raise UsageError(f"{args.max_rows} rows have no likelihood.", "Give 1 or more.")
    notes, model = list[str](), run.model
    args.estimator = sides_of(model)[0].name  # whose numbers both sides take
    request: Any = request_of(args, model)
    part = part_of(run, args, notes)
    if (most := args.max_rows or ANNEALED) < len(part):
        if args.max_rows is None:
            notes.append(
                f"Chains for each row take long: these are {most} of the {len(part):,} rows, drawn by seed "
                f"{args.seed}. Give --max-rows for more."
            )
        drawn = torch.randperm(len(part), generator=torch.Generator().manual_seed(args.seed))[:most]
        part = part[drawn.sort().values]
    notes = tell_notes(notes, args)
    simulate = SIMULATED if args.simulate is None else args.simulate
    both = sandwich(model, part, request=request, simulate=simulate, seed=args.seed)
    lower, upper = both.lower.rows, both.upper.rows
    assert lower is not None
    assert upper is not None
    if args.out is not None:
        assert part.rows is not None
        sides = {"lower": lower, "upper": upper}
        each = {
            name: {k: v for k, v in _columns(part.rows, side).items() if k != "row"} for name, side in sides.items()
        }
        told = {f"{name}_{column}": v for name, columns in each.items() for column, v in columns.items()}
        write_columns(args.out, {"row": part.rows} | told)
    if args.json:
        print_json(
            found | {"rows": both.lower.n, "out": args.out and str(args.out), "notes": notes} | both.to_json(rows=False)
        )
        return 0
    out.print(f"log p(x) on {both.lower.n} rows, from below: {both.lower.text} per row, {both.lower.bits_text}")
    out.print(f"from above: {both.upper.text} per row, {both.upper.bits_text}")
    if both.upper.note:
        out.print(f"where {both.upper.note}")
    out.print(f"between them: {both.gap.told()} per row")
    if both.simulated is not None:
        out.print(f"on {both.simulated.lower.n} simulated rows, both sides bounds: {both.simulated.gap.told()} per row")
    if args.out is not None:
        err.print(f"one line per row, in the input's order: {args.out}")
    return 0


def _streamed(run: Run, args: LogProb, request: Request, notes: list[str]) -> tuple[Mean, int]:
    """The mean over files of a table and their number: block by block, in memory that does not grow with them."""
    import torch

    from pofx.data.pieces import pieces_of, tables_at
    from pofx.data.write import write_columns, write_parts
    from pofx.evaluate.stream import Evaluation, Stream

    model, about = run.model, run.info["data"]
    files = tables_at(str(args.source), notes)
    pieces = pieces_of(files, model.space, model.context)
    evaluation = Evaluation(model, request, args.seed, about.get("labels"), about.get("options", {}))
    stream = Stream(evaluation, pieces, args.cluster, notes)

    parts = args.out is not None and not args.out.suffix

    def columns() -> Generator[tuple[int, dict[str, Any]], None, None]:
        """The number of the file, and columns; rows are numbered through all files, or in each part."""
        before = 0
        for piece, rows in stream:
            first = piece.first if parts else before
            yield piece.number, _columns(torch.arange(first, first + len(rows.nats)), rows)
            before += len(rows.nats)

    with closing(columns()) as blocks:
        if args.out is None:
            deque(blocks, maxlen=0)  # only their mean
        elif parts:
            write_parts(args.out, files, blocks)
        else:
            write_columns(args.out, (block for _, block in blocks))
    return stream.mean(), len(files)


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

    from pofx.data.parts import Part

    if args.source is not None:
        raise UsageError("--say takes the place of a SOURCE; both were given.", "Leave out one.")
    if not args.say:
        raise UsageError("--say got an empty text.", "Give at least one character.")
    if run.model.context is not None:
        raise UsageError("--say has no context, which this run takes.", "Name a SOURCE that has it.")
    return Part(run.model.space.parse([args.say]), rows=torch.arange(1))


def _marks(run: Run, part: Part, args: LogProb, request: Request) -> list[list[Mark]]:
    """The first texts of the part symbol by symbol, as far as a terminal takes them."""
    from pofx.evaluate.text import marks

    if args.show < 0:
        raise UsageError(f"Cannot show {args.show} texts.", "Give 1 or more.")
    found = []
    for i in range(min(max(1, args.show), len(part))):
        row = part[i : i + 1].read()
        x = row.x[0][row.x[0] >= 0]
        c, before = (None if v is None else v[0] for v in (row.c, row.before))
        each = marks(run.model, x[:SHOWN], c, before, request)
        if len(x) > SHOWN:  # the end is not there
            err.print(f"text {i + 1}: its first {SHOWN} of {len(x)} symbols are shown")
            each = [mark for mark in each if mark.text]
        found.append(each)
    return found


@dataclass(kw_only=True)
class Encode(Rows, Given):
    """Latents of rows, one line per input row: the mean of q(z | x), or the noise that gives x most nearly.

    The latter is searched for where a family has no encoder but a map from noise (GANs); how far what it gives is from
    each row stands beside it as ``distance``.
    """


def encode(argv: list[str]) -> int:
    args = parse(Encode, argv, "encode")
    import torch

    from pofx.commands.model import read_model
    from pofx.core.abilities import Inverts, can
    from pofx.data.write import write_columns

    run = read_model(args.run)
    stands, notes = tell_standing(run.info, run.log, args.run), list[str]()
    part = part_of(run, args, notes)
    notes = tell_notes(notes, args)
    with torch.no_grad():
        size = run.model.rows_per_pass()
        parts = (part[i : i + size].read() for i in range(0, len(part), size))
        if can(run.model, Inverts):
            noise = torch.Generator(run.model.device).manual_seed(args.seed)
            found = [run.model.given(rows.c).invert(rows.x, generator=noise) for rows in parts]
            z, distance = (torch.cat(t) for t in zip(*found, strict=True))
        else:
            z, distance = torch.cat([run.model.given(rows.c).encode(rows.x).mean for rows in parts]), None
    where = args.out or args.run / "latents.parquet"
    columns: dict[str, Any] = {"row": part.rows} | {f"z{k}": z[:, k] for k in range(z.shape[1])}
    columns |= {} if distance is None else {"distance": distance}
    write_columns(where, columns)
    if args.json:
        about = {"rows": len(part), "latents": z.shape[1], "out": str(where), "notes": notes}
        about |= {} if distance is None else {"distance": float(distance.mean())}
        print_json({"run": str(args.run), **stands, **about})
    else:
        off = "" if distance is None else f", {float(distance.mean()):.3g} from the row on average"
        out.print(f"{len(part)} rows, {z.shape[1]} latents each{off}: {where}")
    return 0


def part_of(run: Run, args: Any, notes: list[str]) -> Part:
    """The rows to work on, new ones or the run's own; ``notes`` gets what reading them has to tell."""
    from pofx.commands.model import new_rows, own_rows

    if args.source is not None:
        return new_rows(run, args.source, run.model.context, notes, args.given)
    if args.given is not None:
        raise UsageError(GIVEN_ALONE, "Name the rows, too.")
    return own_rows(run, args.run, notes)
