"""``pofx predict``: probabilities of the classes of rows."""

from __future__ import annotations

import dataclasses
import io
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pofx.commands.log_prob import Rows
from pofx.commands.requests import Estimating, request_of
from pofx.commands.shared import err, out, parse, print_json, tell_notes, tell_standing
from pofx.core.errors import UsageError
from pofx.core.spelling import visible

if TYPE_CHECKING:
    import torch

    from pofx.train.run import Run


@dataclass(kw_only=True)
class Predict(Rows, Estimating):  # type: ignore[misc]
    """The most likely class of rows and the probability of every class, by a run that knows of classes.

    A classifier (fit --target) says them itself; of a model given labels (fit --given label) Bayes' rule does, with the
    frequencies of the training rows. Without --out they go to standard output as CSV. Where the rows have their
    classes, too, the accuracy and the log-loss are told.
    """


def predict(argv: list[str]) -> int:
    args = parse(Predict, argv, "predict")
    import torch

    from pofx.commands.model import read_model
    from pofx.data.write import check_place, write_columns
    from pofx.evaluate.predict import classes_of
    from pofx.evaluate.predict import predict as probabilities
    from pofx.spaces import Label

    run = read_model(args.run)
    check_place(Label(classes_of(run.model)), 0, args.out)
    stands, notes = tell_standing(run.info, run.log, args.run), list[str]()
    x, label, rows = _rows(run, args, notes)
    found = probabilities(
        run, x, request=request_of(args, run.model), generator=torch.Generator().manual_seed(args.seed)
    )
    if lost := int((found.label < 0).sum()):
        notes.append(f"{lost:,} of {len(rows):,} rows are impossible under every class: they have no probabilities.")
    if found.caveat:
        notes.append(f"The probabilities are estimates, {found.caveat}.")
    notes = tell_notes(notes, args)
    columns: dict[str, Any] = {"row": rows} | found.columns()
    about: dict[str, Any] = {"run": str(args.run), **stands, "rows": len(rows), "notes": notes}
    told = []
    if label is not None:
        accuracy, loss, calibration = found.accuracy(label), found.log_loss(label), found.calibration(label)
        about |= {"accuracy": accuracy.to_json(), "log_loss": loss.to_json(rows=False)}
        about |= {"calibration": dataclasses.asdict(calibration)}
        told = [f"accuracy on {len(rows)} rows: {accuracy.text}", f"log-loss: {loss.loss_text}"]
        told.append(f"probability of the likeliest class and share right: {calibration.error:.1%} apart in the mean")
    if args.out is not None:
        write_columns(args.out, columns)
        told.append(f"one line per row, in the input's order: {args.out}")
    if args.json:
        about |= {"kind": found.kind.__name__, "classes": list(found.classes), "out": args.out and str(args.out)}
        if args.out is None:
            about |= {"predicted": found.names, "probabilities": found.probabilities.tolist()}
        print_json(about)
        return 0
    if args.out is None:
        page = io.StringIO()
        write_columns(page, columns)
        sys.stdout.write(visible(page.getvalue()) if sys.stdout.isatty() else page.getvalue())
    for line in told:
        (err if args.out is None else out).print(line)
    return 0


def _rows(run: Run, args: Predict, notes: list[str]) -> tuple[Any, torch.Tensor | None, Any]:
    """What classes are told from, the classes where the rows have them, and the rows' numbers."""
    from pofx.commands.model import own_rows
    from pofx.data.rows import read_rows
    from pofx.evaluate.predict import classes_of, told_from

    model, options = run.model, run.info["data"].get("options", {})
    classes, space = classes_of(model), told_from(model)
    if args.source is not None:
        if space is None:
            raise UsageError(
                f"This {model.name} tells the classes from nothing; no SOURCE changes them.", "Leave it out."
            )
        part = read_rows(space, None, args.source, labels=classes, options=options, notes=notes).read()
        return part.x, part.label, part.rows
    part = own_rows(run, args.run, notes).read()
    return (part.c, part.x, part.rows) if model.space.values else (part.x, part.c, part.rows)
