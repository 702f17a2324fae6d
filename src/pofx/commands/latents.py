"""``pofx latents``: what can be done in the latent space of a run."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from pofx.commands.log_prob import part_of
from pofx.commands.shared import Given, Output, err, out, parse, print_json, tell_notes, tell_standing
from pofx.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from pofx.core.model import Model
    from pofx.data.parts import Part

MOST = 2000  # rows that directions, spreads and groups are found from
SHOWN = 20  # rows that are reconstructed, or get an attribute


@dataclass(kw_only=True)
class Latents(Given, Output):
    """Work in the latent space of a run: ways between rows, one latent moved at a time, what a class has added to rows,
    rows in groups, rows from their latents.

    Images are written as one PNG, a row of it for each way; of other data all that is made, one datum below the other.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    what: Annotated[
        Positional[Literal["interpolate", "traverse", "attribute", "group", "reconstruct"]], arg(metavar="WHAT")
    ]
    """interpolate: from one row to another (--between, --steps, --way); traverse: move one latent after the other, the
    most used first (--at, --dims, --reach, --steps); attribute: add what the rows of a class have to rows of others
    (--label, --amount); group: k-means on the latents (--groups); reconstruct: rows from their latents."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE")] = None
    """Rows, read with the run's own types [default: the test part of the run's data]."""
    out: Path | None = None
    """A PNG file of images, else CSV or Parquet [default: WHAT.png or WHAT.csv in the run folder]."""
    seed: int = 0
    """Of the rows that are drawn where there are many."""
    between: str | None = None
    """The numbers of two rows, counted from 0 [default: 0,1]."""
    at: int | None = None
    """The number of the row whose latents are moved [default: 0]."""
    steps: int | None = None
    """Data on each way [default: 9]."""
    way: Literal["spherical", "linear"] | None = None
    """On the sphere, as fits draws of N(0, I), or straight [default: spherical]."""
    dims: int | None = None
    """How many latents are moved [default: 8, or all]."""
    reach: float | None = None
    """How far, in standard deviations of that latent over the rows [default: 3]."""
    label: str | None = None
    """The class."""
    amount: float | None = None
    """How much of the difference between that class and the others is added; less than 0 takes it away [default: 1]."""
    groups: int | None = None
    """How many [default: as many as there are classes, or 10]."""


def latents(argv: list[str]) -> int:
    args = parse(Latents, argv, "latents")
    make, own = WHAT[args.what]
    for option in sorted({name for _, names in WHAT.values() for name in names} - {*own}):
        if getattr(args, option) is not None:
            raise UsageError(f"--{option} does not go with {args.what}.", "Leave it out.")
    from pofx.commands.model import read_model

    run = read_model(args.run)
    about, notes = {"run": str(args.run), **tell_standing(run.info, run.log, args.run)}, list[str]()
    part = part_of(run, args, notes)
    part = part.draw(MOST, args.seed).read() if args.what in ("attribute", "group") else part
    found, said = make(run.model, part, args, run.info["data"].get("labels"))
    about |= {"what": args.what, "notes": tell_notes(notes, args)} | found
    if args.json:
        print_json(about)
    else:
        out.print(said)
    return 0


Answer = tuple[dict[str, Any], str]  # as JSON, and in a sentence


def _interpolate(model: Model, part: Part, args: Latents, labels: Any) -> Answer:
    from pofx.evaluate.latent_space import interpolate

    ends = _numbers(args.between or "0,1", len(part))
    one, other = (part[i : i + 1].read() for i in ends)
    x = interpolate(model, one.x, other.x, args.steps or 9, args.way or "spherical", one.c)
    return _written(model, x[:, 0], len(x), args, f"from row {ends[0]} to row {ends[1]}")


def _traverse(model: Model, part: Part, args: Latents, labels: Any) -> Answer:
    from pofx.evaluate.latent_space import by_use, codes, traverse

    at = 0 if args.at is None else args.at
    if not 0 <= at < len(part):
        raise UsageError(f"There is no row {at}.", f"Rows are 0 to {len(part) - 1}.")
    z, row = codes(model, part.draw(MOST, args.seed)), part[at : at + 1].read()
    dims = by_use(z)[: 8 if args.dims is None else args.dims]
    if not len(dims):
        raise UsageError(f"--dims {args.dims} moves nothing.", "Give 1 or more.")
    c = None if row.c is None else row.c[0]
    reach = 3.0 if args.reach is None else args.reach
    x = traverse(model, codes(model, row)[0], z.std(0), dims, args.steps or 9, reach, c)
    said = f"row {at}, latents {', '.join(map(str, dims.tolist()))} moved by up to {reach:g} deviations"
    answer = _written(model, x.flatten(0, 1), x.shape[1], args, said)
    return answer[0] | {"latents": dims.tolist()}, answer[1]


def _attribute(model: Model, part: Part, args: Latents, labels: Any) -> Answer:
    from pofx.evaluate.latent_space import codes, direction

    if part.label is None or labels is None:
        raise UsageError("The rows have no classes.", "Name their column when you fit: label=COLUMN.")
    if args.label not in labels:
        problem = f"There is no class {args.label!r}." if args.label else "attribute needs a class."
        raise UsageError(problem, f"Give --label, one of {', '.join(labels[:20])}.")
    z, has = codes(model, part), part.label == labels.index(args.label)
    amount = 1.0 if args.amount is None else args.amount
    moved = z + amount * direction(z, has)
    some = (~has).nonzero()[:SHOWN, 0]
    before = model.given(None if part.c is None else part.c[some]).from_latents(z[some])
    after = model.given(None if part.c is None else part.c[some]).from_latents(moved[some])
    said = f"rows of other classes, and with {amount:g} times what {args.label!r} has more"
    return _pairs(model, before, after, args, said)


def _reconstruct(model: Model, part: Part, args: Latents, labels: Any) -> Answer:
    from pofx.evaluate.latent_space import reconstruct

    part = part.draw(MOST, args.seed).read()
    found = reconstruct(model, part)
    about = {"rows": len(part), "rms": found.rms, "differing": found.differing}
    rms = "" if found.rms is None else f"off by {found.rms:.4g} (root mean square), "
    said = f"{len(part)} rows from their latents: {rms}{found.differing:.1%} of all values differ; rows"
    pairs, told = _pairs(model, part.x[:SHOWN], found.x[:SHOWN], args, f"{said} and what comes back")
    return pairs | about, told


def _group(model: Model, part: Part, args: Latents, labels: Any) -> Answer:
    from pofx.data.write import write_columns
    from pofx.evaluate.latent_space import codes, groups

    k = args.groups if args.groups is not None else len(labels) if labels else 10
    found = groups(codes(model, part), k, part.label, seed=args.seed)
    where = args.out or args.run / "group.csv"
    write_columns(where, {"row": part.rows, "group": found.index})
    agreement = "" if found.agreement is None else f", adjusted Rand index with the classes {found.agreement:.3f}"
    sizes = found.index.bincount().tolist()
    about = {"groups": sizes, "silhouette": found.silhouette, "agreement": found.agreement, "out": str(where)}
    return about, f"{k} groups of {len(part)} rows, silhouette {found.silhouette:.3f}{agreement}: {where}"


WHAT: dict[str, tuple[Callable[[Model, Part, Latents, Any], Answer], tuple[str, ...]]] = {  # with their options
    "interpolate": (_interpolate, ("between", "steps", "way")),
    "traverse": (_traverse, ("at", "steps", "dims", "reach")),
    "attribute": (_attribute, ("label", "amount")),
    "group": (_group, ("groups",)),
    "reconstruct": (_reconstruct, ()),
}


def _numbers(text: str, rows: int) -> list[int]:
    """Two row numbers, spelt "3,7"."""
    found = text.replace(" ", "").split(",")
    if len(found) != 2 or not all(n.isdigit() and int(n) < rows for n in found):
        raise UsageError(f"--between {text!r} does not name two rows.", f"Give two of 0 to {rows - 1}, such as 0,1.")
    return [int(n) for n in found]


def _pairs(model: Model, before: torch.Tensor, after: torch.Tensor, args: Latents, said: str) -> Answer:
    """Images in two rows, one below the other; other data in turns."""
    import torch

    both = torch.stack([before.cpu(), after.cpu()], 0 if model.space.pixels else 1)
    return _written(model, both.flatten(0, 1), len(before), args, said)


def _written(model: Model, x: torch.Tensor, columns: int, args: Latents, said: str) -> Answer:
    """Write what was made: a PNG with so many images a row, or rows."""
    from pofx.core.files import write_atomic
    from pofx.data.write import write_rows

    space = model.space
    where = args.out or args.run / f"{args.what}.{'png' if space.pixels else 'csv'}"
    if space.pixels:
        from pofx.report.plots import montage

        if where.suffix != ".png":
            raise UsageError(f"{where} is no PNG file, as which images are written.", "Name one.")
        sheet = montage(x.cpu().numpy(), space.symbols or 2, -(-len(x) // columns), columns)
        write_atomic(where, base64.b64decode(sheet.partition(",")[2]))
    else:
        write_rows(space, x.cpu(), where)
    err.print(f"{len(x)} {'images' if space.pixels else 'rows'}: {where}")
    return {"made": len(x), "out": str(where)}, said
