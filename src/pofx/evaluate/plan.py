"""What a comparison was asked for, and going on with one that was interrupted."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pofx.core.errors import RunError, RunExists, UsageError
from pofx.core.options import POSITIVE, check
from pofx.core.registry import families as known_families
from pofx.core.registry import family as find_family
from pofx.data.digest import differences
from pofx.data.parts import Data
from pofx.data.raw import IN_MEMORY
from pofx.evaluate.baselines import MODELS
from pofx.evaluate.entrant import Result
from pofx.evaluate.likelihood import Mean
from pofx.evaluate.study import EVALUATION, SHORTEST, USUAL, Settings, plain
from pofx.train.checkpoint import read_sealed

FORMAT = 3  # of comparison.json
LEAST = 1.0  # seconds of a fit, where the time of all is divided
UNITS = ("seconds", "minutes", "steps")  # of the budget, of which one is given
_ELSEWHERE = "Choose another --out, or say --overwrite to begin anew."


def names_of(families: Sequence[str] | None, options: Mapping[str, Any]) -> list[str]:
    """The families to compare, the baselines first. Raises UsageError for one that is not known or not compared."""
    names = list(known_families() if families is None else families)
    for name in names:
        if name not in known_families():
            find_family(name)  # raises the error that knows the nearest names
    names = list(dict.fromkeys([*MODELS, *names]))
    if unknown := sorted(set(options) - set(names)):
        raise UsageError(f"Options for {unknown[0]!r}, which is not compared.", f"Compared: {', '.join(names)}.")
    return names


def asked(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    outliers: Any,
    budget: Mapping[str, float | None],
    **others: Any,
) -> dict[str, Any]:
    """What was asked for, as JSON gives it back; ``budget`` in all its ``UNITS``, of which one may be given."""
    given = {unit: value for unit, value in budget.items() if value is not None}
    if len(given) > 1:
        words = " and ".join(f"{unit}={value:g}" for unit, value in given.items())
        raise UsageError(f"A budget has one unit; given: {words}.", f"Give one of {', '.join(UNITS)}.")
    check("minutes", budget["minutes"], float | None, POSITIVE)
    source = None if outliers is None else IN_MEMORY
    if isinstance(outliers, str | os.PathLike):
        source = os.path.abspath(outliers) if os.path.exists(outliers) else str(outliers)
    plan: dict[str, Any] = {**budget, **others, "families": names, "options": options, "outliers": source}
    if not given:
        plan["seconds"] = USUAL
    return dict(plain(plan))


def shared(minutes: float, fits: int, workers: int) -> float:
    """Seconds of each fit, where ``fits`` and their evaluations are to end within ``minutes``."""
    waves = math.ceil(fits / workers)
    each = 60 * minutes / max(1, waves)  # of which evaluation takes its share, or SHORTEST
    seconds = min(each / (1 + EVALUATION), each - SHORTEST)
    if seconds < LEAST:
        least = math.ceil(waves * (LEAST + SHORTEST) / 6) / 10
        raise UsageError(
            f"{minutes:g} minutes are too short for {fits} families, {workers} at a time: evaluating one may take "
            f"{SHORTEST:g} s.",
            f"Give {least:g} or more, or fewer families.",
        )
    return round(seconds, 2)


def duration(settings: Settings, fits: int, workers: int) -> str:
    """How long a comparison will take, in a sentence."""
    these = f"{fits} {'family serves' if fits == 1 else 'families serve'} these data, {workers} at a time"
    each = f"{settings.budget} to fit and up to {settings.limit:g} s to evaluate"
    if settings.seconds is None:
        return f"{these}: each has {settings.steps:,} steps to fit; how long that takes is known only then"
    total = math.ceil(fits / workers) * (settings.seconds + settings.limit)
    words = f"{total:.0f} s" if total < 120 else f"{total / 60:.0f} minutes"
    return f"{these}: each has {each}, so all take {words} at most"


def begun(path: Path, plan: Mapping[str, Any], data: Data) -> dict[str, Any] | None:
    """The record of a comparison that was interrupted and can go on; None where the folder holds none.

    Raises RunExists where it is complete, or where something else was asked for.
    """
    if not (path / "comparison.json").exists():
        return None
    try:
        record = read_sealed(path / "comparison.json", FORMAT)
    except RunError as error:  # damaged, or of another version
        raise RunExists(
            f"{path} already holds a comparison, which cannot go on: {error.problem}", _ELSEWHERE
        ) from error
    same_plan(record["plan"], plan, path)
    if found := differences(record["data"]["digest"], data):
        raise RunExists(f"{path} already holds a comparison, of data that were others ({found}).", _ELSEWHERE)
    if not unreached(record):
        raise RunExists(
            f"{path} already holds this comparison, and all of its {len(record['rows'])} families.",
            f"See it: pofx report {path}. {_ELSEWHERE}",
        )
    return record


def same_plan(there: Mapping[str, Any], plan: Mapping[str, Any], path: Path) -> None:
    """Raises RunExists, naming what is not the same, of which the device may be another."""
    for key, value in plan.items():
        if (before := there.get(key)) != value and key != "device":
            what = "other rows" if key == "outlier_rows" else f"{before}, not {value}"
            raise RunExists(
                f"{path} already holds a comparison, with {key.replace('_', ' ')} {what}.",
                f"Ask for the same to go on with it. {_ELSEWHERE}",
            )


def kept(record: Mapping[str, Any], path: Path) -> dict[str, Result]:
    """What is there of each family that has its row: verdicts need the likelihood of every test row."""
    found = {}
    for row in record["rows"]:
        evaluation = path / "runs" / row["family"] / "evaluation.json"
        if row["status"] != "ok":
            found[row["family"]] = Result(row)
        elif evaluation.exists():
            found[row["family"]] = Result(row, Mean.from_json(read_sealed(evaluation)["likelihood"]))
    return found


def unreached(record: Mapping[str, Any]) -> list[str]:
    """The families that a comparison still owes: it was interrupted before or while it fitted them."""
    done = {row["family"] for row in record["rows"]}
    return [name for name in record["settings"]["families"] if name not in done]
