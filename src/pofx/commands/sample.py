"""``pofx sample``."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from pofx.commands.requests import Sampling, sampler_of
from pofx.commands.shared import Output, err, parse, print_json, tell_notes, tell_standing
from pofx.core.errors import BadValue, EmptyData, MissingSource, PofxError, Unsupported, UsageError
from pofx.core.spelling import listed, visible

if TYPE_CHECKING:
    import torch

    from pofx.core.conditional import Conditional
    from pofx.core.requests import Sampler
    from pofx.core.space import Space
    from pofx.core.verdict import Verdict
    from pofx.data.parts import Part
    from pofx.train.run import Run


@dataclass(kw_only=True)
class Sample(Sampling, Output):  # type: ignore[misc]
    """Draw samples from a run: CSV or Parquet (tables), PNG files or .npz (images), text or JSON lines (texts).

    A single text appears as it is drawn. With --complete the rest of given images or rows is drawn.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder, or one of a Hugging Face checkpoint or of diffusers."""
    n: Annotated[Positional[int], arg(metavar="N")] = 16
    """How many (for each context, for each prompt, for each image that is completed)."""
    out: Path | None = None
    """File (.csv, .parquet, .npz, .txt, .jsonl, .wav) or folder (PNG, WAV); without it, all but images and sounds is
    printed."""
    given: Annotated[UseAppendAction[list[str]], arg(metavar="VALUE")] = dataclasses.field(default_factory=list)
    """The context: a label ('3'), column values 'income=>50K,sex=Male', a text, or a file (PNG, WAV, a text a line, a
    table) or folder of contexts; several times for several, with N draws for each."""
    part: Literal["a", "b"] | None = None
    """Of a run of pairs: draw a (what was modelled) or b (what was given), alone or with --given given the other
    [default: both; with --given, the one that VALUE is not]."""
    seed: int = 0
    """Seed of the draws."""
    cluster: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Draw on all cores of a Ray cluster: its address, or 'local'. The same draws."""
    complete: Annotated[str | None, arg(metavar="SOURCE")] = None
    """Images, or rows of a table: a part of each is kept (--known) and the rest is drawn, each value given all before
    it in the model's order (the first of several). From p(rest | known) where the kept come first in that order; by
    diffusion and flow matching approximately, wherever they are."""
    known: float | None = None
    """The share of each image's upper rows (or of a row's first columns) that is kept [default: 0.5]."""
    rows: int | None = None
    """How many of the images or rows are completed, from the first on [default: all]."""
    prompt: UseAppendAction[list[str]] = dataclasses.field(default_factory=list)
    """A beginning that each text goes on from; several times for several."""
    prompts: Path | None = None
    """A file with one beginning a line."""


def sample(argv: list[str]) -> int:
    args = parse(Sample, argv, "sample")
    from pofx.commands.model import read_model
    from pofx.core.verdict import Verdict, worst
    from pofx.data.write import check_place, write_rows
    from pofx.evaluate.stream import Drawing, draw
    from pofx.spaces import Sequence

    run = _of_part(read_model(args.run), args)
    stands = tell_standing(run.info, run.log, args.run)
    space, options = run.model.space, run.info["data"].get("options", {})
    prompts, sampler = _prompts(args), sampler_of(args, run.model)
    told = _contexts(run, args)
    check_place(space, args.n * max(1, len(told.names)), args.out)
    if args.complete is not None:
        given, part = _to_complete(run, args, sampler, told)
    else:
        if args.known is not None or args.rows is not None:
            raise UsageError("--known and --rows say what is completed.", "Name it: --complete SOURCE.")
        given, part = _given(run, told, prompts), None
    if args.cluster is not None and (part is not None or space.alphabet is not None):
        raise UsageError("--cluster draws whole data, not texts or what completes given ones.", "Leave it out.")
    if space.alphabet is not None:
        return _texts(run, args, prompts, given, sampler, stands, told)
    if args.json and args.out is None:
        raise UsageError("--json tells of samples in a file.", "Name one, --out FILE, or leave --json out.")
    started, count, empty, verdicts = time.perf_counter(), 0, 0, list[Verdict]()
    if part is None:
        blocks = draw(Drawing(given, sampler, args.seed), args.n, args.cluster)
        blocks = _by_context(space, blocks, len(told.names)) if len(told.names) > 1 else blocks
    else:
        blocks = ((_completed(given, p.x, args), None) for p in [part])

    def counted() -> Iterator[torch.Tensor]:
        nonlocal count, empty
        for x, verdict in blocks:
            verdicts.extend([] if verdict is None else [verdict])
            count += len(x)
            empty += int((space.lengths(x) == 0).sum()) if isinstance(space, Sequence) else 0
            yield x

    shown = sys.stdout.isatty() and args.out is None
    page = io.StringIO()
    beside = told.beside(args.n, options) if part is None and (args.out or len(told.names) > 1) else {}
    with closing(blocks):
        more: Any = {"beside": beside} if beside else {}
        write_rows(space, counted(), args.out or (page if shown else sys.stdout), options=options, **more)
    if shown:
        sys.stdout.write(visible(page.getvalue()))
    if empty:
        err.print(f"{empty} of {count} sequences have no step, and so no row in a table")
    chains = _told(worst(verdicts) if verdicts else None)
    if args.out is None:
        return 0
    seconds = time.perf_counter() - started
    if args.json:
        print_json(
            {"run": str(args.run), **stands, "samples": count, "seconds": seconds, "out": str(args.out)} | chains
        )
    else:
        err.print(f"{count} samples in {seconds:.2f} s: {args.out}")
    return 0


def _told(verdict: Verdict | None) -> dict[str, Any]:
    """Say on standard error, whatever else is quiet, whether the chains that drew have mixed; the same for --json."""
    if verdict is None:
        return {}
    err.print(f"chains: {verdict}")
    return {"chains": verdict.to_json()}


# -- completions -------------------------------------------------------------------------------------------


def _to_complete(run: Run, args: Sample, sampler: Sampler, told: Contexts) -> tuple[Conditional, Part]:
    """p(x | c), and the rows of --complete, with their own contexts unless --given says another."""
    from pofx.commands.model import new_rows
    from pofx.core.abilities import Completes, can

    space, own = run.model.space, not args.given
    if not (space.pixels or space.columns) or space.values:
        raise UsageError(f"--complete goes with images and tables, not with {space}.", "Give texts a --prompt.")
    if _prompts(args) or sampler != run.model.default_sampler():
        raise UsageError("--complete draws from the model itself.", "Leave out options of samplers and texts.")
    if args.n < 1 or (args.rows is not None and args.rows < 1):
        rows = "all" if args.rows is None else args.rows
        raise UsageError(f"Cannot complete {rows} images or rows {args.n} times.", "Give 1 or more.")
    if not 0 <= (args.known or 0) <= 1:
        raise UsageError(f"--known {args.known} is no share.", "Give 0 (nothing) to 1 (everything).")
    notes = [run.model.approximation] if can(run.model, Completes) and run.model.approximation else []
    part = new_rows(run, str(args.complete), run.model.context if own else None, notes)[: args.rows]
    tell_notes(notes, args)
    if len(told.names) > 1:
        raise UsageError(f"--complete takes one context for all; there are {len(told.names)}.", "Give one.")
    return run.model.given(part.read().c if own else told.batch), part


def _completed(given: Conditional, x: torch.Tensor, args: Sample) -> torch.Tensor:
    """N completions of each of x [M, *E], those of one together [M N, *E]."""
    import torch

    axis = 2 if given.model.space.pixels else 1  # rows of an image, columns of a table
    size = x.shape[axis]
    known = torch.zeros_like(x, dtype=torch.bool)
    known.narrow(axis, 0, round(size * (0.5 if args.known is None else args.known))).fill_(True)
    every = (args.n, *x.shape)
    generator = torch.Generator().manual_seed(args.seed)
    drawn = given.complete(x.expand(every), known.expand(every), generator=generator)
    return drawn.transpose(0, 1).flatten(0, 1)


# -- texts -----------------------------------------------------------------------------------------------


def _texts(
    run: Run, args: Sample, prompts: list[str], given: Conditional, sampler: Sampler, stands: dict[str, Any],
    told: Contexts,
) -> int:  # fmt: skip
    """Draw texts, each after its prompt, and show or write them whole; ``stands`` is how the run stands."""
    import torch

    from pofx.core.abilities import Decodes, can
    from pofx.core.likelihood import Unavailable
    from pofx.data.write import write_texts
    from pofx.evaluate.stream import drawn

    started, options = time.perf_counter(), run.info["data"].get("options", {})
    space: Any = run.model.space  # one that reads what it spells
    generator = torch.Generator().manual_seed(args.seed)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    several = len(told.names) > 1
    shown = args.out is None and not args.json and can(run.model, Decodes)
    if args.n == 1 and len(prompts) < 2 and not several and args.beams is None and shown:
        clean = visible if sys.stdout.isatty() else str  # a model may draw what a terminal obeys
        print(clean("".join(prompts)), end="", flush=True)
        for piece in given.stream(generator=generator, sampler=sampler):
            print(clean(piece), end="", flush=True)
        print()
        return 0
    x, verdict = drawn(given, args.n, generator, sampler)  # [n, L], or [n, prompts, L]
    every = x.transpose(0, 1) if prompts or several else x[None]
    befores = (prompts or [""]) * (len(every) // len(prompts or [""]))
    texts = [before + space.spell(row) for before, rows in zip(befores, every, strict=True) for row in rows]
    beside = told.beside(len(texts) // max(1, len(told.names)), options)
    seconds = time.perf_counter() - started
    about: dict[str, Any] = {"run": str(args.run), **stands, "samples": len(texts), "seconds": seconds}
    about |= _told(verdict)
    if args.beams is not None:  # a search says how likely what it found is
        with torch.no_grad():
            found = given.log_prob(x)
        assert not isinstance(found, Unavailable)
        about["log_prob"] = found.nats.movedim(0, -1).flatten().tolist()
    if args.out is not None:
        write_texts(texts, args.out, options, beside)
        about["out"] = str(args.out)
        rows = every.flatten(0, 1)
        if broken := sum(space.parse([space.spell(row)])[0].tolist() != row[row >= 0].tolist() for row in rows):
            err.print(f"{broken} of {len(texts)} texts hold bytes that are no UTF-8, written as �")
    if args.json:
        print_json(about if args.out is not None else about | {"texts": texts})
        return 0
    if args.out is None:
        write_texts([visible(t) for t in texts] if sys.stdout.isatty() else texts, sys.stdout)
    else:
        err.print(f"{len(texts)} samples in {seconds:.2f} s: {args.out}")
    for i, value in enumerate(about.get("log_prob", ()), 1):
        err.print(f"text {i}: log p = {value:.2f} nats")
    return 0


def _prompts(args: Sample) -> list[str]:
    """The beginnings of --prompt and --prompts."""
    if args.prompts is None:
        return args.prompt
    try:
        lines = args.prompts.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingSource(f"{args.prompts} cannot be read: {error}.", "Give a text file.") from error
    found = [*args.prompt, *(line for line in lines if line)]
    if not found:
        raise EmptyData(f"{args.prompts} holds no beginning.", "Write one a line.")
    return found


def _given(run: Run, told: Contexts, prompts: list[str]) -> Conditional:
    """p(x | c), after the prompts."""
    c = told.batch
    if not prompts:
        return run.model.given(c)
    if run.model.space.alphabet is None:
        raise Unsupported(f"{run.model.space} have no beginning that can be spelt.", "Leave out --prompt.")
    if len(told.names) > 1:
        if len(prompts) > 1:
            raise UsageError(
                f"{len(told.names)} contexts and {len(prompts)} prompts are given.", "Give several of one."
            )
        prompts = prompts * len(told.names)
    elif c is not None:
        c = c.expand(len(prompts), *c.shape)
    return run.model.given(c, before=run.model.space.parse(prompts))


# -- contexts ----------------------------------------------------------------------------------------------


def _of_part(run: Run, args: Sample) -> Run:
    """The run with its model of one part of a pair in the place of that of both, where a part or its other is named."""
    from pofx.core.abilities import HasParts, can

    if args.part is None and (not args.given or not can(run.model, HasParts)):
        return run
    views: dict[str, Run] = {}
    problems = []
    for name in ("a", "b") if args.part is None else (args.part,):
        view = dataclasses.replace(run, model=run.model.part_model(name, given=bool(args.given)))
        try:
            _contexts(view, args)
            views[name] = view
        except PofxError as error:
            if args.part is not None:
                raise
            problems.append(error.problem)
    given = listed(args.given)
    if not views:
        raise UsageError(f"{given} is neither part of a pair. {' '.join(problems)}", "Give what one of both may be.")
    if len(views) > 1:
        raise UsageError(f"{given} may be either part of a pair.", "Say which one is drawn: --part a, or --part b.")
    return next(iter(views.values()))


@dataclass(frozen=True)
class Contexts:
    """What is given: contexts c [M, *Ec] of a space, and of each [M] where it came from; none of a model of p(x)."""

    space: Space | None
    c: torch.Tensor | None
    names: list[str]

    @property
    def batch(self) -> torch.Tensor | None:
        """c, or the only context [*Ec] as such."""
        return self.c[0] if self.c is not None and len(self.names) == 1 else self.c

    def beside(self, n: int, options: dict[str, Any]) -> dict[str, Any]:
        """Columns that say of each of n draws for each context, in turn, which it is of."""
        import torch

        from pofx.data.write import contexts_beside

        if self.space is None or self.c is None:
            return {}
        each = torch.arange(len(self.names)).repeat_interleave(n)
        return contexts_beside(self.space, self.c[each], [self.names[i] for i in each.tolist()], options)


def _by_context(space: Space, blocks: Any, count: int) -> Generator[tuple[torch.Tensor, Any], None, None]:
    """All draws [n, M, *E] as rows, those of one context together."""
    from pofx.core.space import join

    parts, verdicts = zip(*blocks, strict=True)
    rows = join(space, [x.flatten(0, 1) for x in parts])
    yield rows.unflatten(0, (-1, count)).transpose(0, 1).flatten(0, 1), verdicts[0]
    yield from ((rows[:0], verdict) for verdict in verdicts[1:])


def _contexts(run: Run, args: Sample) -> Contexts:
    """The contexts of every --given, spelled or in files."""
    from pofx.core.space import join

    space = run.model.context
    if space is None:
        if args.given:
            raise UsageError("This run models p(x) and takes no --given.", "Fit it with --given first.")
        return Contexts(None, None, [])
    if not args.given:
        if args.complete is not None:
            return Contexts(space, None, [])
        raise UsageError(f"This run models p(x | c) with c a {space}.", "Say which: --given VALUE.")
    parts, names, notes = list[Any](), list[str](), list[str]()
    for value in args.given:
        spelled = _spelled(space, value)
        if spelled is not None and space.alphabet is not None and _like_a_file(value):
            notes.append(f"There is no file {value!r}: it is taken as a text.")
        c, where = _in_file(run, space, value, notes) if spelled is None else (spelled[None], [value])
        parts.append(c)
        names += where
    tell_notes(notes, args)
    return Contexts(space, join(space, parts), names)


def _spelled(space: Space, value: str) -> torch.Tensor | None:
    """One context [*Ec] from its spelling; None where it is a file, or has to be one. Raises UsageError."""
    from pofx.data.pairs import is_source
    from pofx.data.rows import check_lengths, encode_row

    there = is_source(value)
    if space.alphabet is not None and not value:
        raise UsageError("--given got an empty text.", "Give at least one character.")
    if space.columns and not space.values and not there:
        # 'a=1,b=2', where quotes stand around what holds a comma itself; a single column needs none
        names = [c.name for c in space.columns]
        alone = value.partition("=")[0] in names and len(names) == 1
        pairs = [value] if alone else next(csv.reader([value], skipinitialspace=True))
        try:
            return encode_row(space, dict(_pair(pair, names) for pair in pairs))
        except BadValue as error:  # of an argument, which is no row
            raise UsageError(
                f"--given {value}: {error.problem}", f"Give {','.join(f'{name}=VALUE' for name in names)}."
            ) from error
    if there and not space.values:
        return None
    try:
        parsed = space.parse([value])
        if parsed is not None:
            check_lengths(space, parsed)
            return parsed[0]
    except BadValue as error:  # of an argument, not of data
        if there:
            return None
        lost = f"There is no file {value!r}, and as what is given it is wrong: " * _like_a_file(value)
        raise UsageError(lost + error.problem, error.remedy) from error
    raise UsageError(
        f"Contexts of {space} are read from a file, and there is no {value!r}.", "Give a file or a folder."
    )


def _like_a_file(value: str) -> bool:
    """Is it spelled as the name of one?"""
    return bool(re.fullmatch(r"\S+\.[A-Za-z]\w{1,4}", value))


def _in_file(run: Run, space: Space, value: str, notes: list[str]) -> tuple[torch.Tensor, list[str]]:
    """All contexts of a file or folder, and the name of each."""
    from pofx.data.rows import read_contexts

    rows, raw = read_contexts(space, value, run.info["data"].get("options", {}), notes)
    c = rows[:]
    if space.alphabet is not None:
        notes.append(f"{value} is a file: what is given are its {len(c)} texts.")
    if raw.files is not None:
        within = [value] if os.path.isfile(value) else [f"{value.rstrip(os.sep)}/{file}" for file in raw.files]
        return c, within
    return c, [value] if len(c) == 1 else [f"{value}, row {i}" for i in range(len(c))]


def _pair(pair: str, names: list[str]) -> tuple[str, str]:
    """A column, whose name may hold '=' itself, and its value."""
    name = next((n for n in sorted(names, key=len, reverse=True) if pair.startswith(f"{n}=")), None)
    return (name, pair[len(name) + 1 :]) if name is not None else (pair.partition("=")[0], pair.partition("=")[2])
