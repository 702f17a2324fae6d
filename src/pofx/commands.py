"""The commands behind ``pofx``: one dataclass of options and one function each."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from tyro.conf import Positional, UseAppendAction, arg

from pofx.core.errors import DataError, Unsupported, UsageError

if TYPE_CHECKING:
    import torch

    from pofx.core.model import Model
    from pofx.data.base import Data
    from pofx.train.run import Run

out = Console()
err = Console(stderr=True)


@dataclass(kw_only=True)
class Source:
    """Where data come from and how they are read."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """CSV/TSV, Parquet, Arrow, .npy/.npz, text, JSON lines, a folder of images or texts, IDX, or a built-in name."""
    given: str | None = None
    """Condition on this: 'label', or columns 'a,b'. The model is then p(x | given)."""
    label: str | None = None
    """The column that holds the class (for probes and colours; it stays part of x)."""
    target: str | None = None
    """Model this column (or 'label') given all the rest: a classifier's task."""
    types: Annotated[list[str], arg(metavar="COLUMN=TYPE")] = dataclasses.field(default_factory=list)
    """Column types to use instead of the inferred: real, real:0.01 (a grid), integer, category, nullable, drop."""
    drop: list[str] = dataclasses.field(default_factory=list)
    """Columns to leave out."""
    split_seed: int = 0
    """Seed of the split into training, validation and test rows."""
    max_rows: int | None = None
    """Use only so many rows, drawn at random."""
    shape: tuple[int, ...] | None = None
    """Of one image, where an array holds them flat or bit-packed: --shape 28 28."""
    resize: int | None = None
    """Crop the middle square of each image of a folder and scale it to so many pixels."""
    kind: Literal["table", "text"] | None = None
    """Read the source as this [default: by its content]."""
    text: str | None = None
    """The column of a table, or the key of JSON lines, that holds texts."""
    separator: str | None = None
    """What stands between the documents of a text file: --separator '\\n' where each line is one."""
    symbols: Literal["auto", "characters", "bytes"] = "auto"
    """What texts are made of."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares that train, validate and test; long texts are split by place, in this order."""


@dataclass(kw_only=True)
class Output:
    """How results are shown."""

    json: bool = False
    """Print one JSON object on standard output."""
    quiet: bool = False
    """No progress on standard error."""


def _load(args: Source) -> Data:
    from pofx.data.base import load

    types = {}
    for entry in args.types:
        column, equals, kind = entry.partition("=")
        if not (column and equals and kind):
            raise UsageError(f"--types takes COLUMN=TYPE; {entry!r} is not.", "For example: --types age=integer.")
        types[column] = kind
    return load(
        args.source,
        given=args.given,
        label=args.label,
        target=args.target,
        types=types or None,
        drop=tuple(args.drop),
        seed=args.split_seed,
        max_rows=args.max_rows,
        shape=args.shape,
        resize=args.resize,
        kind=args.kind,
        text=args.text,
        separator=args.separator,
        symbols=args.symbols,
        split=args.split,
    )


# -- fit and resume ---------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Fit(Source, Output):
    """Fit one family to data and leave a run folder.

    A family's own options follow as --options.NAME, its training's as --recipe.NAME.
    """

    family: Annotated[Positional[str], arg(metavar="FAMILY")]
    """The family's name (see 'pofx families')."""
    seconds: float | None = None
    """Budget in wall-clock seconds, validation included."""
    steps: int | None = None
    """Budget in steps (sweeps, for EM)."""
    epochs: int | None = None
    """Budget in passes over the training rows."""
    out: Path | None = None
    """Run folder [default: runs/<data>-<family>]."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    seed: int = 0
    """Seed of initial weights, shuffles and noise."""
    checks: int = 20
    """Validations over the whole budget."""
    patience: int | None = None
    """Stop after so many validations without improvement."""
    save_every: float = 60.0
    """Seconds between checkpoints."""
    device: str = "cpu"
    """cpu, cuda, mps, ..."""
    processes: int = 1
    """Processes of data-parallel training; any number computes the same steps."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the networks."""


@functools.cache
def _overrides(cls: type) -> type:
    """A dataclass like ``cls`` whose every field may be left out (None): what the user chose to change."""
    hints = typing.get_type_hints(cls)
    fields = []
    for f in dataclasses.fields(cls):
        text = f"{f.metadata['help']} [default: the family's own; generally {f.default}]"
        fields.append((f.name, Annotated[hints[f.name] | None, arg(help=text)], dataclasses.field(default=None)))
    made = dataclasses.make_dataclass("Training", fields)
    made.__doc__ = "How it is trained by gradients."
    return made


def fit(argv: list[str]) -> int:
    from pofx.core.learner import Recipe
    from pofx.core.registry import family
    from pofx.train.fit import fit as train

    named = [a for a in argv if not a.startswith("-")]
    kind: Any = Fit
    if len(named) >= 2:
        # The family's own options are known only once it is named.
        cls = family(_positional(argv, 1))
        kind = dataclasses.make_dataclass(
            "Fit",
            [
                ("options", cls.Config, dataclasses.field(default_factory=cls.Config)),
                ("recipe", _overrides(Recipe), dataclasses.field(default_factory=_overrides(Recipe))),
            ],
            bases=(Fit,),
            kw_only=True,
        )
        kind.__doc__ = f"Fit {cls.name}: {cls.summary}\n\nPaper: {cls.paper}"
    args = _parse(kind, argv, "fit")
    data = _load(args)
    _notes(data, args)
    where = args.out or Path("runs") / f"{data.name}-{args.family}"
    with _progress(args, f"{args.family} on {data.name}") as report:
        run = train(
            data,
            args.family,
            seconds=args.seconds,
            steps=args.steps,
            epochs=args.epochs,
            out=where,
            overwrite=args.overwrite,
            seed=args.seed,
            options=dataclasses.asdict(args.options),
            recipe={k: v for k, v in vars(args.recipe).items() if v is not None},
            checks=args.checks,
            patience=args.patience,
            save_every=args.save_every,
            device=args.device,
            processes=args.processes,
            precision=args.precision,
            progress=report,
        )
    _finish_fit(run, data, args)
    return 0


@dataclass(kw_only=True)
class Resume(Output):
    """Continue an interrupted fit from its last checkpoint, as if nothing had happened."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""


def resume(argv: list[str]) -> int:
    args = _parse(Resume, argv, "resume")
    from pofx.data.base import load
    from pofx.train.fit import resume as go_on
    from pofx.train.run import read_info

    info = read_info(args.run)
    data = load(info["data"]["source"], **info["data"]["options"])
    with _progress(args, f"{info['family']} on {data.name}") as report:
        run = go_on(args.run, data=data, progress=report)
    _finish_fit(run, data, args)
    return 0


def _finish_fit(run: Run, data: Data, args: Output) -> None:
    """Score the test part and say what came out."""
    from pofx.evaluate.likelihood import score

    result = score(run.model, data.test)
    assert run.path is not None
    if args.json:
        _print_json({"run": str(run.path), "status": run.status, "seconds": run.seconds, "steps": run.steps,
                     "parameters": run.model.parameter_count(), "test": result.to_json(rows=False)})  # fmt: skip
        return
    out.print(
        f"{run.model.name}: {run.status} after {run.steps} steps, {run.seconds:.1f} s, "
        f"{run.model.parameter_count():,} fitted numbers"
    )
    out.print(f"log p(x) on {len(data.test)} test rows: {result.text} per row, {result.bits_text}", highlight=False)
    out.print(f"run folder: {run.path}", highlight=False)


# -- sample, log-prob, encode -----------------------------------------------------------------------


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
    args = _parse(Sample, argv, "sample")
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
        _print_json({"run": str(args.run), "samples": len(x), "seconds": seconds, "out": str(args.out)})
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
    args = _parse(LogProb, argv, "log-prob")
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
        _print_json(
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
    args = _parse(Encode, argv, "encode")
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
        _print_json({"run": str(args.run), "rows": len(part), "latents": z.shape[1], "out": str(where)})
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


# -- compare and report -------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Compare(Source, Output):
    """Fit every family that serves the data, each with the same wall-clock budget and split, and compare them."""

    families: UseAppendAction[list[str]] = dataclasses.field(default_factory=list)
    """Only these families, one --families NAME each [default: all that fit]."""
    seconds: float = 30.0
    """Wall-clock budget of each fit."""
    need: UseAppendAction[list[str]] = dataclasses.field(default_factory=list)
    """What you need, one --need each: exact-likelihood, fast-sampling, latents, outliers, ..."""
    out: Path | None = None
    """Folder for the runs and the report [default: runs/compare-<data>]."""
    overwrite: bool = False
    """Replace the comparison that the folder holds."""
    seed: int = 0
    """Seed of every fit."""
    samples: int = 2000
    """Samples per family for the quality measures."""
    max_test: int = 2000
    """Test rows that every family scores, at most."""
    outliers: str | None = None
    """Rows that are none of these data (a file like SOURCE): how well does each family tell them apart?"""
    anomaly: str | None = None
    """Or the class whose test rows are the outliers."""
    option: Annotated[UseAppendAction[list[str]], arg(metavar="FAMILY.NAME=VALUE")] = dataclasses.field(
        default_factory=list
    )
    """A family's own option, one --option each: --option gmm.components=50."""
    device: str = "cpu"
    """cpu, cuda, mps, ..."""


def compare(argv: list[str]) -> int:
    args = _parse(Compare, argv, "compare")
    from pofx.evaluate.compare import compare as run_all
    from pofx.report.build import build

    options = _family_options(args.option)
    data = _load(args)
    _notes(data, args)
    where = args.out or Path("runs") / f"compare-{data.name}"
    with _progress(args, f"comparing on {data.name}") as report:
        result = run_all(
            data,
            args.families or None,
            seconds=args.seconds,
            seed=args.seed,
            out=where,
            overwrite=args.overwrite,
            needs=tuple(args.need),
            samples=args.samples,
            max_test=args.max_test,
            outliers=args.outliers,
            anomaly=args.anomaly,
            options=options,
            device=args.device,
            progress=report,
        )
    page = build(where)
    if args.json:
        _print_json(result.to_json())
        return 0
    out.print(_comparison_table(result))
    for row in result.rows:
        if row["status"] != "ok":
            out.print(escape(f"{row['family']} {row['status']}: {row['reason']}"), highlight=False)
    out.print(escape(result.recommendation), highlight=False)
    out.print(f"report: {page}", highlight=False)
    return 0


def _family_options(entries: list[str]) -> dict[str, dict[str, Any]]:
    """gmm.components=50 -> {"gmm": its options}, each value read as the family's Config types it."""
    from pofx.core.registry import family

    found: dict[str, list[str]] = {}
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
        found.setdefault(name, []).append(f"--{field}={value}")
    return {name: dataclasses.asdict(_parse(family(name).Config, args, name)) for name, args in found.items()}


_SHOWN = {
    "family": "family", "log p(x) per datum": "log p(x), nats", "per dimension": "bits/dim", "fit": "fit",
    "one sample": "one sample", "samples/s": "samples/s", "C2ST": "C2ST", "outliers": "outliers",
}  # fmt: skip


def _comparison_table(result: Any) -> RichTable:
    """The columns that fit a terminal, their units in the header; the report has them all."""
    header, *rows = result.table()
    table = RichTable(box=None, header_style="bold", pad_edge=False)
    for head in _SHOWN.values():
        table.add_column(head, justify="left" if head == "family" else "right", no_wrap=head == "family")
    silent = {r["family"] for r in result.rows if r["status"] != "ok"}
    noisy = {r["family"] for r in result.rows if r["status"] == "ok" and _noise_matters(r["likelihood"])}
    for row in rows:
        if row[0] not in silent:
            cells = [row[header.index(name)] for name in _SHOWN]
            cells[1] = (cells[1] if row[0] in noisy else cells[1].split(" (")[0]).replace(" nats", "")
            cells[2] = cells[2].removesuffix(" bits/dim").split(" ±")[0]  # its error is that of the nats
            table.add_row(*map(escape, cells))
    return table


def _noise_matters(likelihood: dict[str, Any]) -> bool:
    """Is the Monte Carlo error a third of the data's or more? A smaller one hardly widens it."""
    return isinstance(likelihood["mc_se"], float) and likelihood["mc_se"] > likelihood["se"] / 3


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
    args = _parse(Report, argv, "report")
    from pofx.report.build import build

    if (args.folder / "config.json").exists() and not (args.folder / "scores.json").exists():
        from pofx.evaluate.compare import assess

        try:
            with _progress(args, f"evaluating {args.folder.name}") as tell:
                assess(args.folder, progress=tell)
        except DataError as error:
            err.print(f"· not evaluated: {escape(str(error))}", highlight=False)
    page = build(args.folder, out=args.out)
    if args.json:
        _print_json({"report": str(page)})
    else:
        out.print(f"report: {page}", highlight=False)
    return 0


# -- families and data ----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Families(Output):
    """The families: their place in the taxonomy, what each claims, what it can do."""


def families(argv: list[str]) -> int:
    args = _parse(Families, argv, "families")
    from pofx.core.likelihood import SYMBOL
    from pofx.core.registry import families as known
    from pofx.core.registry import family

    classes = [family(name) for name in known()]
    if args.json:
        _print_json([_about(cls) for cls in classes])
        return 0
    table = RichTable(box=None, header_style="bold", pad_edge=False)
    for column in ("family", "log p(x)", "latents", "score", "taxonomy", "how it models p(x)"):
        table.add_column(column, overflow="fold")
    for cls in sorted(classes, key=lambda c: c.taxonomy):
        symbols = " ".join(SYMBOL[k] for k in SYMBOL if k in cls.claims)
        yes = ["yes" if flag else "" for flag in (cls.latent, cls.has_score)]
        table.add_row(cls.name, symbols, *yes, cls.taxonomy, cls.summary)
    out.print(table)
    legend = {"=": "exact", "≥": "lower bound", "≤": "upper bound", "≈": "estimate", "—": "no likelihood"}
    out.print("  ".join(f"{symbol} {word}" for symbol, word in legend.items()), highlight=False)
    out.print("'pofx fit SOURCE FAMILY --help' shows a family's options.", highlight=False)
    return 0


def _about(cls: type[Model]) -> dict[str, Any]:
    return {
        "name": cls.name,
        "summary": cls.summary,
        "taxonomy": cls.taxonomy,
        "paper": cls.paper,
        "claims": sorted(k.__name__ for k in cls.claims),
        "estimators": list(cls.estimators),
        "samplers": list(cls.samplers),
        "latent": cls.latent,
        "score": cls.has_score,
        "options": {k: v for k, v in dataclasses.asdict(cls.Config()).items()},
    }


@dataclass(kw_only=True)
class ShowData(Source, Output):
    """What a source holds: column types, ranges, missing values, splits, and what pofx decided about them."""


def data(argv: list[str]) -> int:
    args = _parse(ShowData, argv, "data")
    loaded = _load(args)
    rows = loaded.describe()
    counts = {part: len(getattr(loaded, part)) for part in ("train", "valid", "test")}
    if args.json:
        about = {"name": loaded.name, "space": loaded.space.to_json(), "rows": counts, "split": loaded.split}
        _print_json(about | {"notes": list(loaded.notes), "columns": rows})
        return 0
    out.print(f"{loaded.name}: {loaded.space}", highlight=False)
    given = "" if loaded.context is None else f", given {loaded.context}"
    out.print(f"measure: {loaded.space.measure}{given}", highlight=False)
    out.print(", ".join(f"{n} {part}" for part, n in counts.items()) + f" rows; {loaded.split}", highlight=False)
    if rows:
        table = RichTable(box=None, header_style="bold", pad_edge=False)
        for column in rows[0]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(v)) for v in row.values()))
        out.print(table)
    for note in loaded.notes:
        out.print(f"· {escape(note)}", highlight=False)
    return 0


# -- shared -------------------------------------------------------------------------------------------------


RUN = {
    "fit": fit,
    "sample": sample,
    "log-prob": log_prob,
    "encode": encode,
    "compare": compare,
    "report": report,
    "families": families,
    "data": data,
    "resume": resume,
}


def run(command: str, argv: list[str]) -> int:
    return RUN[command](argv)


def _parse(kind: Any, argv: list[str], command: str) -> Any:
    return tyro.cli(kind, args=argv, prog=f"pofx {command}", config=(tyro.conf.FlagCreatePairsOff,))


def _positional(argv: list[str], index: int) -> str:
    """The ``index``-th argument that is neither an option nor an option's value."""
    flags = {"--overwrite", "--json", "--quiet", "--help", "-h"}
    found, skip = [], False
    for a in argv:
        if skip:
            skip = False
        elif a.startswith("-"):
            skip = "=" not in a and a not in flags
        else:
            found.append(a)
    if index >= len(found):
        raise UsageError("Which family? Usage: pofx fit SOURCE FAMILY.", "See 'pofx families'.")
    return found[index]


def _print_json(value: Any) -> None:
    """One JSON object; numbers that are not finite become null, since JSON has none."""

    def clean(v: Any) -> Any:
        if isinstance(v, dict):
            return {str(k): clean(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [clean(x) for x in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    print(json.dumps(clean(value)))


def _notes(data: Data, args: Output) -> None:
    if not args.quiet and not args.json:
        for note in data.notes:
            err.print(f"· {escape(note)}", highlight=False)


@contextmanager
def _progress(args: Output, title: str) -> Iterator[Any]:
    """A bar on standard error with the step, the loss and the current validation number and its kind."""
    if args.quiet or args.json:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[status]}"))
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task: TaskID = bar.add_task(escape(title), total=1.0, status="")
        valid = ""

        def report(entry: dict[str, Any]) -> None:
            nonlocal valid
            if entry.get("valid") is not None:
                valid = f"valid {entry['symbol']} {entry['valid']:.3f} nats ({entry['kind']})"
            if "title" in entry:
                bar.update(task, description=escape(entry["title"]))
            done = 1.0 if "status" in entry else entry.get("progress")
            loss = f"step {entry['step']}" if "step" in entry else ""
            bar.update(task, completed=done, status=f"{loss} {valid}".strip())

        yield report
