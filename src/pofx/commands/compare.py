"""``pofx compare`` and ``pofx report``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from pofx.commands import elsewhere
from pofx.commands.arguments import read
from pofx.commands.shared import (
    Column,
    Output,
    Source,
    err,
    load_source,
    out,
    parse,
    print_json,
    progress,
    tell_notes,
    tell_standing,
)
from pofx.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from pofx.evaluate.compare import Comparison


@dataclass(kw_only=True)
class Compare(Source, Output):
    """Fit every family that serves the data, each with the same budget and split, and compare them."""

    families: Annotated[list[str], arg(metavar="FAMILY,...")] = dataclasses.field(default_factory=list)
    """Only these families [default: all that fit]."""
    seconds: float | None = None
    """Wall-clock budget of each fit [default: 30, unless --minutes or --steps is given]."""
    minutes: float | None = None
    """Or that of everything, divided among the families, with their evaluation."""
    steps: int | None = None
    """Or the steps of each fit: on the same --cores the same numbers to the bit."""
    halving: bool = False
    """Drop families that are clearly worse than half of the others after a quarter, and after half, of the budget."""
    cluster: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Run the families as tasks on a Ray cluster: its address, or 'local' for all cores of this machine."""
    cores: int | None = None
    """Cores of each family [default: 1 on a cluster, else all of this machine]."""
    need: list[str] = dataclasses.field(default_factory=list)
    """What you need: exact-likelihood, fast-sampling, latents, outliers, ..."""
    out: Path | None = None
    """Folder for the runs and the report [default: runs/compare-<data>]."""
    overwrite: bool = False
    """Replace the comparison that the folder holds."""
    seed: int = 0
    """Seed of every fit."""
    samples: int = 2000
    """Samples per family for the quality measures."""
    max_test: int = 2000
    """Test rows that every family evaluates, at most."""
    outliers: Annotated[str | None, arg(metavar="SOURCE")] = None
    """Rows that are none of these data (a file like SOURCE): how well does each family tell them apart?"""
    anomaly: Annotated[str | None, arg(metavar="CLASS")] = None
    """Or the class whose test rows are the outliers."""
    option: Annotated[list[str], arg(metavar="FAMILY.NAME=VALUE,...")] = dataclasses.field(default_factory=list)
    """A family's own options: --option gmm.components=50,nsf.bins=4."""
    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu, cuda, or mps, which lacks the float64 that some families need."""


_AS_TYPED = (  # options that the call takes as they are
    "seconds", "minutes", "steps", "halving", "cluster", "cores", "overwrite", "seed", "samples", "max_test",
    "outliers", "anomaly", "device",
)  # fmt: skip


def compare(argv: list[str]) -> int:
    args = parse(Compare, argv, "compare")
    from pofx.evaluate.compare import compare as run_all
    from pofx.report.build import build

    options = _family_options(args.option)
    how = {name: value for name, value in vars(args).items() if name in _AS_TYPED}
    data = load_source(args)
    tell_notes(data.notes, args)
    where = args.out or Path("runs") / f"compare-{data.name}"
    with progress(args, f"comparing on {data.name}") as report, interrupted(where):
        result = run_all(
            data, args.families or None, out=where, needs=tuple(args.need), options=options, progress=report, **how
        )
    show(result, build(where), args)
    return 0


@contextmanager
def interrupted(where: Path) -> Iterator[None]:
    """A comparison that is interrupted says how all of it goes on, not only the fit of the moment."""
    try:
        yield
    except KeyboardInterrupt:
        if (where / "comparison.json").exists():
            err.print(
                f"· the comparison goes on with the same command, here or on a cluster, or: pofx resume {where!s}"
            )
        raise


def show(result: Comparison, page: Path, args: Output) -> None:
    """A comparison as a table, with what could not be done and what is recommended."""
    if args.json:
        print_json(result.to_json())
        return
    from pofx.evaluate.recommend import get

    out.table(*_comparison_table(result), "the report and --json have them")
    silent: dict[str, list[str]] = {}  # families that said the same, together
    for name, text in _without_number(result).items():
        silent.setdefault(f": {text}", []).append(name)
    for row in result.rows:
        if row["status"] != "ok":
            silent.setdefault(f" {row['status']}: {row['reason']}", []).append(row["family"])
    for reason, names in silent.items():
        out.print(elsewhere(f"{', '.join(names)}{reason}", "compare"))
    for row in result.rows:
        if said := get(row, "sampling", "chains", "text"):
            out.print(f"{row['family']} draws by chains: {said}")
    out.print(result.recommendation)
    if result.times:
        out.print(result.times)
    out.print(f"report: {page}")


def _family_options(entries: list[str]) -> dict[str, dict[str, Any]]:
    """gmm.components=50 -> {"gmm": its options}, each value read as the family's Config types it."""
    from pofx.core.registry import family

    found: dict[str, list[tuple[str, str]]] = {}
    for entry in entries:
        option, equals, value = entry.partition("=")
        name, dot, field = option.partition(".")
        if not (equals and dot):
            raise UsageError(
                f"--option takes FAMILY.NAME=VALUE; {entry!r} is not.", "For example: --option gmm.components=50."
            )
        known = [f.name for f in dataclasses.fields(family(name).Config)]
        if field.replace("-", "_") not in known:
            raise UsageError(f"{name} has no option {field!r}.", f"It has: {', '.join(known)}.")
        found.setdefault(name, []).append((field, value))
    return {name: dataclasses.asdict(read(family(name).Config, values, name)) for name, values in found.items()}


_RANKS = {  # of the columns of Comparison.table: the higher, the earlier it is left out
    "family": 0, "log p(x) per datum": 0, "per dimension": 5, "fit": 4, "parameters": 9, "memory": 10,
    "densities/s": 8, "one sample": 7, "samples/s": 2, "C2ST": 3, "coverage": 11, "copying": 13, "probe": 12,
    "outliers": 6, "accuracy": 0,
}  # fmt: skip
_OF_THE_TASK = 1


def _column(name: str, unit: str = "dim") -> Column:
    """How a column of Comparison.table is shown: with the unit in its heading, not in its cells."""
    heading = {"log p(x) per datum": "log p(x), nats", "per dimension": f"bits/{unit}"}.get(name, name)
    return Column(heading, _RANKS.get(name, _OF_THE_TASK), right=name != "family", wraps=name == "family")


def _without_number(result: Any) -> dict[str, str]:
    """What families and baselines without a likelihood say of it: too long for a cell."""
    from pofx.core.likelihood import Unavailable

    found = {row["family"]: row["likelihood"] for row in result.rows if row["status"] == "ok"}
    found |= result.record["baselines"]
    return {name: told["text"] for name, told in found.items() if told["kind"] == Unavailable.__name__}


def _comparison_table(result: Any) -> tuple[list[Column], list[list[str]]]:
    """Its columns, and the cells of the families that have a likelihood and of the baselines."""
    header, *rows = result.table()
    shown = [k for k in header if k != "accuracy" or any(r.get("accuracy") for r in result.rows)]
    unit = next((r["likelihood"]["unit"] for r in result.rows if r["status"] == "ok"), "dim")
    silent = {r["family"] for r in result.rows if r["status"] != "ok"}
    without = _without_number(result)
    found = []
    for row in rows:
        if row[0] not in silent:
            cells = [row[header.index(name)] for name in shown]
            cells[1] = cells[2] if row[0] in without else cells[1].replace(" nats", "")  # cells[2] is then "—"
            cells[2] = cells[2].removesuffix(f" bits/{unit}").split(" ±")[0]  # its error is that of the nats
            found.append(cells)
    return [_column(name, unit) for name in shown], found


@dataclass(kw_only=True)
class Report(Output):
    """Write the report of a run or a comparison as one self-contained HTML file.

    A run of 'pofx fit' is evaluated first, as a comparison would: likelihood, speed, samples, latents, outliers.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """What 'pofx fit' or 'pofx compare' left."""
    out: Path | None = None
    """The HTML file [default: report.html in the folder]."""


def report(argv: list[str]) -> int:
    args = parse(Report, argv, "report")
    from pofx.evaluate.compare import read_comparison, unreached
    from pofx.report.build import build

    notes: list[str] = []
    stands: dict[str, Any] = {}
    if (args.folder / "config.json").exists():
        stands = _evaluate(args, notes)
    if (args.folder / "comparison.json").exists():
        stands = {"not_reached": unreached(read_comparison(args.folder).record)}
        if names := stands["not_reached"]:
            err.print(f"· not reached: {', '.join(names)}; 'pofx resume {args.folder!s}' goes on")
    notes = tell_notes(notes, args)
    page = build(args.folder, out=args.out, notes=notes)
    if args.json:
        print_json({"report": str(page), **stands, "notes": notes})
    else:
        out.print(f"report: {page}")
    return 0


def _evaluate(args: Report, notes: list[str]) -> dict[str, Any]:
    """Evaluate a run that is not evaluated as it stands; ``notes`` gets why that could not be. How it stands."""
    from pofx.evaluate.compare import assess
    from pofx.train.run import read_data, read_evaluation, read_info, read_log

    info, log = read_info(args.folder), read_log(args.folder)
    stands = tell_standing(info, log, args.folder)
    if read_evaluation(args.folder, log) is None:
        try:
            data = read_data(info, str(args.folder))
            with progress(args, f"evaluating {args.folder.name}") as tell:
                assess(args.folder, data, progress=tell)
        except DataError as error:
            notes.append(f"The run was not evaluated: {error}")
    return stands
