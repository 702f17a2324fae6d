"""One family of a comparison: opened, fitted and evaluated. Whatever goes wrong becomes a row with its reason."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pofx.core.abilities import ABILITIES, why_not
from pofx.core.model import Model
from pofx.core.registry import family as find_family
from pofx.data.parts import Data
from pofx.evaluate.baselines import MODELS
from pofx.evaluate.cost import peak_memory
from pofx.evaluate.likelihood import Mean, mean_log_prob, unavailable
from pofx.evaluate.study import EVALUATION, Settings, Study, evaluate, plain, reason, save_rows, save_shown
from pofx.spaces import Label, Table
from pofx.train.checkpoint import write_sealed
from pofx.train.device import choose
from pofx.train.fit import fit, resume
from pofx.train.run import Run, clear, ended, read_data, read_log, read_run

Progress = Callable[[dict[str, Any]], None]
"""Called at each stage and with the fit's own entries; every call has family, stage and title."""

Tell = Callable[..., None]
"""Called with a stage and, of a fit, its entry."""

DUE = "due"  # the status of a row whose family is yet to be fitted


@dataclass(frozen=True)
class Result:
    """The row of one family; its likelihood per test row, that of validation rows, and its run, where it got there."""

    row: dict[str, Any]
    test: Mean | None = None
    valid: Mean | None = None
    run: Run | None = None


@dataclass(frozen=True)
class Entrant:
    """A family with its options, and the row of what is known of it so far."""

    name: str
    options: Mapping[str, Any]
    row: Mapping[str, Any]

    def run(self, study: Study, place: Path | None, tell: Tell, until: float = 1.0) -> Result:
        """Fit, or go on, as far as this share of the budget. Then, at its end, evaluate on test rows; before it, which
        needs a ``place``, validation rows."""
        started, row = time.perf_counter(), dict(self.row)
        log = [] if place is None or not _begun(place) else read_log(place)
        before = float(log[-1]["seconds"]) if log else 0.0  # for how long the run there has been trained
        tell("fitting")
        try:
            run, row["fit"] = _fit(study, self, place, tell, until)
        except Exception as error:  # the failure of a family is a result: the comparison goes on
            row["times"] = self._times(started, 0.0, 0.0)
            return Result(row | {"status": "failed", "reason": reason(error)})
        spent = run.seconds - before
        if until < 1:
            tell("validation")
            judging = time.perf_counter()
            valid = _valid(study, run)
            row["times"] = self._times(started, spent, time.perf_counter() - judging)
            return Result(row, valid=valid)
        row["run"] = None if place is None else f"runs/{self.name}"
        found = _judge(study, run, row, place, tell)
        row["times"] = self._times(started, spent, row["evaluation_seconds"])
        return Result(row, found, run=run)

    def _times(self, started: float, fitting: float, evaluating: float) -> dict[str, float]:
        """Where the time since ``started`` went, with what earlier rounds took."""
        rest = max(0.0, time.perf_counter() - started - fitting - evaluating)  # the parts are rounded
        now = {"fitting": fitting, "evaluating": evaluating, "else": rest}
        return {k: round(v + self.row.get("times", {}).get(k, 0.0), 3) for k, v in now.items()}


def opened(data: Data, name: str, options: Mapping[str, Any]) -> Entrant:
    """A family before its fit: its row is due, refused with the reason, or failed (it cannot be loaded)."""
    row: dict[str, Any] = {"family": name, "baseline": name in MODELS, "status": DUE, "reason": None}
    try:
        cls = find_family(name)
        row |= {"summary": cls.summary, "taxonomy": cls.taxonomy, "claims": sorted(k.__name__ for k in cls.claims())}
        row["abilities"] = _abilities(cls, data, options)
        if refusal := cls.refuses(data.space, data.context, cls.Config(**options)):
            row |= {"status": "refused", "reason": refusal}
    except Exception as error:
        row |= {"status": "failed", "reason": reason(error)}
    return Entrant(name, options, row)


def assess(
    path: str | Path, data: Data | None = None, *, seconds: float = 30.0, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate one run as ``compare`` would: evaluation.json, samples and held-out rows go into its folder.

    Args:
        path: the run folder.
        data: needed where the run was fitted on data in memory; else the source is read again.
        seconds: about as long the evaluation takes at most.
        progress: called with what is happening.

    Returns:
        The figures. Raises NoRun, CorruptCheckpoint, NewerFormat, DataChanged, or the source's own errors.
    """
    path = Path(path)
    run = read_run(path)
    info, model = run.info, run.model
    data = read_data(info, str(path), data)
    study = Study.prepare(data, Settings(seconds / EVALUATION, seed=info["seed"]))
    row: dict[str, Any] = {"family": model.name, "baseline": False, "fit": _fitted(run)}
    save_shown(path / "data_sample.npz", study)
    _judge(study, run, row, path, partial(told, progress, model.name, model.name))
    return row


def told(
    progress: Progress | None, family: str, title: str, stage: str, entry: Mapping[str, Any] | None = None
) -> None:
    """Tell ``progress`` of a stage, and of the entry of a fit."""
    if progress is not None:
        progress({**(entry or {}), "family": family, "stage": stage, "title": f"{title}: {stage}"})


def _judge(study: Study, run: Run, row: dict[str, Any], place: Path | None, tell: Tell) -> Mean:
    """Evaluate a fitted run: its figures go into ``row`` and, with samples, into its folder."""
    before = time.perf_counter()
    figures, found, drawn = evaluate(study, run.model, tell)
    row |= {"status": "ok", "config": plain(run.model.config)} | figures
    row["evaluation_seconds"] = round(time.perf_counter() - before, 2)
    if place is not None:
        write_sealed(place / "evaluation.json", row | {"likelihood": found.to_json()})
        for name, rows in drawn.items():
            save_rows(place / "samples" / f"{name}.npz", rows)
    return found


def _valid(study: Study, run: Run) -> Mean:
    """The likelihood of the validation rows on which clear losers are found, the same ones for all."""
    settings, model = study.settings, run.model
    try:
        generator = settings.generator(11, model.device)
        return mean_log_prob(model, study.valid, generator=generator, seconds=settings.within(0.1))
    except Exception as error:
        return unavailable(reason(error), model.space)


def _fit(study: Study, entrant: Entrant, place: Path | None, tell: Tell, until: float) -> tuple[Run, dict[str, Any]]:
    """The fit as far as ``until``, and what is said of it: new, or going on where ``place`` holds one."""
    settings, started = study.settings, time.perf_counter()
    earlier = entrant.row.get("fit")  # of an earlier round
    how: dict[str, Any] = {"device": settings.device, "until": until, "progress": partial(tell, "fitting")}
    begun = place is not None and _begun(place)
    if place is not None and begun and ended(place):
        run = read_run(place)
        unknown = {"unavailable": "The fit was over before the comparison was interrupted."}
        return run, earlier or _fitted(run) | {"wall_seconds": None, "memory": unknown}
    with peak_memory(choose(settings.device)) as memory:
        if place is not None and begun:
            run = resume(place, data=study.data, **how)
        else:
            if place is not None:
                clear(place)  # what a killed writer left
            asked = {key: getattr(settings, key) for key in ("seconds", "steps", "seed")}
            run = fit(study.data, entrant.name, out=place, options=dict(entrant.options), **asked, **how)
    wall = round(time.perf_counter() - started, 3)  # with preparation and saving
    fitted = _fitted(run) | {"wall_seconds": None if begun else wall, "memory": plain(memory)}
    if earlier is not None and earlier["wall_seconds"] is not None:
        fitted["wall_seconds"] = round(earlier["wall_seconds"] + wall, 3)
    if earlier is not None:
        fitted["memory"] = max(fitted["memory"], earlier["memory"], key=lambda peak: peak["bytes"])
    return run, fitted


def _fitted(run: Run) -> dict[str, Any]:
    return {
        "seconds": run.seconds,
        "steps": run.steps,
        "status": run.status,
        "device": run.info["device"],
        "parameters": run.model.parameter_count(),
        "remarks": run.model.remarks,
    }


def _abilities(cls: type[Model], data: Data, options: Mapping[str, Any]) -> dict[str, bool]:
    """What the family can do over this space beyond what was asked of it here."""
    config, space = cls.Config(**options), data.space
    missing = False
    if isinstance(space, Table):
        holes = Table(tuple(dataclasses.replace(c, nullable=True) for c in space.columns))
        missing = cls.refuses(holes, data.context, config) is None
    return {a.title: why_not(cls, a, space) is None for a in ABILITIES} | {
        "conditional": cls.refuses(space, data.context or Label(("a", "b")), config) is None,
        "missing_values": missing,
    }


def _begun(place: Path) -> bool:
    """Is there a run? What has no config.json is none."""
    return (place / "config.json").exists()
