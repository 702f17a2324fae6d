"""``pofx fit`` and ``pofx resume``."""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from pofx.commands.shared import (
    Output,
    Source,
    load_source,
    out,
    parse,
    positional,
    print_json,
    progress,
    tell_notes,
)

if TYPE_CHECKING:
    from pofx.data.base import Data
    from pofx.train.run import Run


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
    processes: int | None = None
    """Processes of data-parallel training; any number computes the same steps [default: 1, or those of torchrun]."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the networks."""
    compile: Literal["never", "auto"] = "never"
    """auto: try torch.compile where four minutes or more are left, and keep its steps if they are faster."""


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
    from pofx.train.processes import is_first

    named = [a for a in argv if not a.startswith("-")]
    kind: Any = Fit
    if len(named) >= 2:
        # The family's own options are known only once it is named.
        cls = family(positional(argv, 1))
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
    args = parse(kind, argv, "fit")
    args.quiet = args.quiet or not is_first()
    data = load_source(args)
    tell_notes(data.notes, args)
    where = args.out or Path("runs") / f"{data.name}-{args.family}"
    with progress(args, f"{args.family} on {data.name}") as report:
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
            compile=args.compile,
            progress=report,
        )
    _finish_fit(run, data, args)
    return 0


@dataclass(kw_only=True)
class Resume(Output):
    """Continue an interrupted fit from its last checkpoint, as if nothing had happened, or a comparison."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder, or that of a comparison: its finished families stay, the others follow."""


def resume(argv: list[str]) -> int:
    args = parse(Resume, argv, "resume")
    if (args.run / "comparison.json").exists():
        return _resume_comparison(args)
    from pofx.train.fit import resume as go_on
    from pofx.train.processes import is_first
    from pofx.train.run import read_data, read_info

    args.quiet = args.quiet or not is_first()

    info = read_info(args.run)
    data, unsure = read_data(info, str(args.run))
    tell_notes([] if unsure is None else [unsure], args)
    with progress(args, f"{info['family']} on {data.name}") as report:
        run = go_on(args.run, data=data, progress=report)
    _finish_fit(run, data, args)
    return 0


def _resume_comparison(args: Resume) -> int:
    from pofx.commands.compare import interrupted, show
    from pofx.evaluate.compare import resume_comparison
    from pofx.report.build import build

    with progress(args, f"comparing in {args.run.name}") as report, interrupted(args.run):
        result = resume_comparison(args.run, progress=report)
    show(result, build(args.run), args)
    return 0


def _finish_fit(run: Run, data: Data, args: Output) -> None:
    """Score the test part and say what came out."""
    from pofx.evaluate.likelihood import score
    from pofx.train.compiling import told
    from pofx.train.processes import is_first

    if not is_first():
        return
    tell_notes(run.model.remarks, args)
    result = score(run.model, data.test)
    assert run.path is not None
    if args.json:
        print_json({"run": str(run.path), "status": run.status, "seconds": run.seconds, "steps": run.steps,
                     "parameters": run.model.parameter_count(), "compile": told(run.log) or None,
                     "test": result.to_json(rows=False)})  # fmt: skip
        return
    out.print(
        f"{run.model.name}: {run.status} after {run.steps} steps, {run.seconds:.1f} s, "
        f"{run.model.parameter_count():,} fitted numbers"
    )
    if compiling := told(run.log):
        out.print(f"torch.compile: {compiling}")
    out.print(f"log p(x) on {len(data.test)} test rows: {result.text} per row, {result.bits_text}")
    out.print(f"run folder: {run.path}")
