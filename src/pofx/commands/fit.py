"""``pofx fit`` and ``pofx resume``."""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from pofx.commands.arguments import HELP, arrange
from pofx.commands.shared import (
    Output,
    Source,
    load_source,
    out,
    parse,
    print_json,
    progress,
    tell_notes,
)
from pofx.commands.usage import Group
from pofx.core.errors import UsageError

if TYPE_CHECKING:
    from pofx.core.model import Model
    from pofx.data.parts import Data
    from pofx.train.run import Run


@dataclass(kw_only=True)
class Budget(Group):
    """budget, in one unit"""

    seconds: float | None = None
    """Wall-clock seconds, validation included."""
    steps: int | None = None
    """Steps (sweeps, for EM)."""
    epochs: int | None = None
    """Passes over the training rows [default: as many as the family's recipe says]."""


@dataclass(kw_only=True)
class Training(Group):
    """training"""

    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu, cuda, or mps, which lacks the float64 that some families need."""
    checks: int = 20
    """Validations over the whole budget."""
    patience: int | None = None
    """Stop after so many validations without improvement."""
    save_every: float = 60.0
    """Seconds between checkpoints."""
    processes: int | None = None
    """Processes of data-parallel training; any number computes the same steps [default: 1, or those of torchrun]."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the networks."""
    compile: Literal["never", "auto"] = "never"
    """auto: try torch.compile where four minutes or more are left, and keep its steps if they are faster."""


@dataclass(kw_only=True)
class Fit(Budget, Training, Source, Output):
    """Fit one family to data and leave a run folder.

    'pofx fit SOURCE FAMILY --help' also tells the family's own options (--options.NAME) and those of its training by
    gradients (--recipe.NAME).
    """

    family: Annotated[Positional[str], arg(metavar="FAMILY")]
    """The family's name (see 'pofx families')."""
    out: Path | None = None
    """Run folder [default: runs/<data>-<family>]."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    seed: int = 0
    """Seed of initial weights, shuffles and noise."""


def _generally(default: Any) -> str:
    return "" if default is None else f"; generally {default}"


@functools.cache
def _overrides(cls: type) -> type:
    """A dataclass like ``cls`` whose every field may be left out (None): what the user chose to change."""
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    made = dataclasses.make_dataclass(
        "Training", [(f.name, hints[f.name] | None, dataclasses.field(default=None)) for f in fields]
    )
    made.__doc__ = "\n".join(
        ["What the family's recipe says, unless it is given.", "", "Attributes:"]
        + [f"    {f.name}: {f.metadata['help']} [default: the family's{_generally(f.default)}]" for f in fields]
    )
    return made


def _kind(argv: list[str]) -> Any:
    """The options of fit with those of the family, which are known only once it is named."""
    from pofx.core.registry import families, family

    named = [a for a in dict.fromkeys(argv) if a in families()]
    if any(h in argv for h in HELP):
        return _of_family(family(named[0])) if named else Fit
    for name in named:  # a source, or the value of an option, may be called like a family
        kind = _of_family(family(name))
        _, places, _ = arrange(kind, argv)
        if places[1:2] == [name]:
            return kind
    _, places, _ = arrange(Fit, argv)
    if not named and len(places) < 2:
        raise UsageError("Which family? Usage: pofx fit SOURCE FAMILY.", "See 'pofx families'.")
    return _of_family(family(named[-1] if named else places[1]))


def _of_family(cls: type[Model]) -> type:
    from pofx.core.learner import Recipe

    more = (("options", cls.Config, f"{cls.name}'s own"), ("recipe", _overrides(Recipe), "training by gradients"))
    fields = [(n, k, dataclasses.field(default_factory=k, metadata={"title": title})) for n, k, title in more]
    kind = dataclasses.make_dataclass("Fit", fields, bases=(Fit,), kw_only=True)
    kind.__doc__ = f"Fit {cls.name}: {cls.summary}\n\nPaper: {cls.paper}"
    return kind


def fit(argv: list[str]) -> int:
    from pofx.train.fit import fit as train
    from pofx.train.processes import is_first

    args = parse(_kind(argv), argv, "fit")
    args.quiet = args.quiet or not is_first()
    data = load_source(args)
    tell_notes(data.notes, args)
    where = args.out or Path("runs") / f"{data.name}-{args.family}"
    with progress(args, f"{args.family} on {data.name}") as report:
        run = train(
            data,
            args.family,
            out=where,
            overwrite=args.overwrite,
            seed=args.seed,
            options=dataclasses.asdict(args.options),
            recipe={k: v for k, v in vars(args.recipe).items() if v is not None},
            progress=report,
            **{f.name: getattr(args, f.name) for group in (Budget, Training) for f in dataclasses.fields(group)},
        )
    _finish_fit(run, data, args)
    return 0


@dataclass(kw_only=True)
class Resume(Output):
    """Continue an interrupted fit from its last checkpoint, as if nothing had happened, or a comparison."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder, or that of a comparison: its finished families stay, the others follow."""
    device: str | None = None
    """Where to go on: auto, cpu, cuda or mps [default: as it was asked for at first]."""
    cluster: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Of a comparison: go on on a Ray cluster, by its address, or 'local'."""


def resume(argv: list[str]) -> int:
    args = parse(Resume, argv, "resume")
    if (args.run / "comparison.json").exists():
        return _resume_comparison(args)
    if args.cluster is not None:
        raise UsageError(f"{args.run} is a fit, which goes on in one process.", "Leave out --cluster.")
    from pofx.train.fit import resume as go_on
    from pofx.train.processes import is_first
    from pofx.train.run import read_data, read_info

    args.quiet = args.quiet or not is_first()

    info = read_info(args.run)
    data = read_data(info, str(args.run))
    with progress(args, f"{info['family']} on {data.name}") as report:
        run = go_on(args.run, data=data, device=args.device, progress=report)
    _finish_fit(run, data, args)
    return 0


def _resume_comparison(args: Resume) -> int:
    from pofx.commands.compare import interrupted, show
    from pofx.evaluate.compare import resume_comparison
    from pofx.report.build import build

    with progress(args, f"comparing in {args.run.name}") as report, interrupted(args.run):
        result = resume_comparison(args.run, device=args.device, cluster=args.cluster, progress=report)
    show(result, build(args.run), args)
    return 0


def _finish_fit(run: Run, data: Data, args: Output) -> None:
    """Evaluate on the test part and say what came out."""
    from pofx.evaluate.likelihood import mean_log_prob
    from pofx.evaluate.predict import predict
    from pofx.train.compiling import told
    from pofx.train.processes import is_first

    if not is_first():
        return
    tell_notes(run.model.remarks, args)
    result, accuracy = mean_log_prob(run.model, data.test), None
    if data.space.values:
        accuracy = predict(run, data.test.c).accuracy(data.test.x)
    assert run.path is not None
    if args.json:
        print_json({"run": str(run.path), "status": run.status, "seconds": run.seconds, "steps": run.steps,
                     "parameters": run.model.parameter_count(), "compile": told(run.log) or None,
                     "test": result.to_json(rows=False), "accuracy": accuracy and accuracy.to_json()})  # fmt: skip
        return
    out.print(
        f"{run.model.name}: {run.status} after {run.steps} steps, {run.seconds:.1f} s, "
        f"{run.model.parameter_count():,} fitted numbers"
    )
    if compiling := told(run.log):
        out.print(f"torch.compile: {compiling}")
    if accuracy is not None:
        out.print(f"accuracy on {len(data.test)} test rows: {accuracy.text}")
        out.print(f"log-loss: {result.loss_text}")
    else:
        out.print(f"log p(x) on {len(data.test)} test rows: {result.text} per row, {result.bits_text}")
    out.print(f"run folder: {run.path}")
