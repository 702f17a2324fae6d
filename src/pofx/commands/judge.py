"""``pofx judge``: draws of p(x | given) beside the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from pofx.commands.requests import Sampling, sampler_of
from pofx.commands.shared import (
    GIVEN_ALONE,
    Column,
    Given,
    Output,
    out,
    parse,
    print_json,
    tell_notes,
    tell_standing,
)  # fmt: skip
from pofx.core.errors import UsageError


@dataclass(kw_only=True)
class Judge(Given, Sampling, Output):  # type: ignore[misc]
    """Judge a run of p(x | given) on pairs: draws beside the x that went with each context.

    By the metrics of the task, each with a 95% interval. Texts: exact match, word and character error, BLEU and chrF;
    images: PSNR and SSIM; labels: accuracy and calibration; numbers: RMSE and CRPS; sounds: spectral distance.
    Beside them stands the likelihood of the same pairs, with its kind. Metrics of more than a formula are those of
    sacrebleu, jiwer and scikit-image: pip install 'pofx[metrics]'.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE")] = None
    """New pairs, read with the run's own types [default: the test part of the run's data]."""
    part: Literal["a-given-b", "b-given-a"] | None = None
    """Of a run of pairs: which part is judged, given the other."""
    pairs: int | None = None
    """How many pairs, drawn by the seed [default: 200]."""
    draws: int | None = None
    """Draws of each [default: 8; 1 of texts, the best that a search with 4 beams finds]."""
    recall: int | None = None
    """Also: how often the right context is among so many best by likelihood, and the right x; of all pairs by each."""
    seed: int = 0
    """Seed of pairs and draws."""


def judge(argv: list[str]) -> int:
    args = parse(Judge, argv, "judge")
    from pofx.commands.model import new_rows, own_data, part_name, read_model
    from pofx.data.joint import apart, given_the_other
    from pofx.evaluate.judge import PAIRS, judging
    from pofx.evaluate.judge import judge as judged

    run, notes = read_model(args.run), list[str]()
    stands = tell_standing(run.info, run.log, args.run)
    model, name = run.model, part_name(args.part or "a")
    if args.part is not None:
        model = run.model.part_model(name, given=True)
    elif run.model.space.parts is not None and run.model.context is None:
        raise UsageError(
            "This run models pairs: which part is judged, given the other?", "Say it: --part a-given-b or b-given-a."
        )
    data: Any = None
    if model.context is not None:  # else the call says what is missing
        if args.source is not None:
            data = new_rows(run, args.source, run.model.context, notes, args.given)
            data = data if args.part is None else apart(run.model.space, data, name, given=True)
        elif args.given is not None:
            raise UsageError(GIVEN_ALONE, "Name the rows, too.")
        else:
            data = own_data(run, args.run, notes)
            data = data if args.part is None else given_the_other(data, name)
    asked = sampler_of(args, model)
    sampler = judging(model) if asked == model.default_sampler() and args.sampler is None else asked
    n = PAIRS if args.pairs is None else args.pairs
    if n < 1:
        raise UsageError(f"{n} pairs tell nothing.", "Give --pairs of 1 or more.")
    how: dict[str, Any] = {"draws": args.draws, "sampler": sampler, "recall": args.recall, "seed": args.seed}
    found = judged(run if args.part is None else model, data, n=n, **how)
    notes = tell_notes([*notes, *found.notes], args)
    if args.json:
        print_json({"run": str(args.run), **stands} | found.to_json() | {"notes": notes})
        return 0
    out.print(f"{found.n:,} pairs, {found.how}; 95% intervals")
    lines = [[name, of.text, of.words] for name, of in found.metrics.items()]
    lines.append(["log p(x | c)", found.likelihood.text, found.likelihood.bits_text * found.likelihood.available])
    out.table([Column("metric"), Column("value"), Column("what it is", wraps=True)], lines, "--json has it all")
    return 0
