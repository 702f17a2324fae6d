"""Every family that serves the data, at equal wall-clock budget, on the same rows, in comparable numbers.

A comparison leaves a folder

    comparison.json                     everything below; written at the start and after each family
    data_sample.npz                     x, c, label of some test rows; train_x of some training rows
    runs/<family>/                      the run folder of each fit (see train.run), and in it
        scores.json                     its row, with the likelihood of every test row that was scored
        samples/samples.npz             x (and c) that the model drew

A comparison that was killed goes on, by the same call or by ``resume_comparison``: families that have a row keep it,
the fit that was interrupted is resumed. comparison.json holds

    plan         what was asked for: the arguments of ``compare``; families without a row were not reached yet
    data         name, source, space, context, columns, dependent, notes, split, rows, labels, measure, dims,
                 and the options and digest by which they are read again
    settings     seconds, seed, needs, limits, machine, versions
    rows         one per family, each with family, status (ok, refused, failed), reason, fit, likelihood,
                 sampling, quality, latents, outliers, accuracy, abilities. Sampling of data of free length
                 holds "speed", draws of growing length (``cost.Speed``), and "cut", the length after which all
                 samples were cut for lack of time, or null; where columns determine others there is "dependent",
                 what each of those adds to the likelihood given all others (``dependent.Share``)
    baselines    gzip and PNG as likelihoods (``likelihood.Score`` as JSON)
    reference    the quality measures with training rows in place of samples: the best one can expect
    verdicts     [a][b]: is a better than b, by how many nats, and why one may say so
    frontier     per family: nats against densities/s and samples/s, and whether anything is better in both
    recommendation   needs, family, tied, excluded, sentences, text

Where something could not be measured there is {"unavailable": reason} in its place. NaN is null.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pofx
from pofx.core.errors import RunError, RunExists, UsageError
from pofx.core.likelihood import UpperBound
from pofx.core.model import Model
from pofx.core.registry import families as known_families
from pofx.core.registry import family as find_family
from pofx.core.space import Label, Table
from pofx.data.base import Data, Part, load
from pofx.data.digest import differences, digest
from pofx.data.raw import IN_MEMORY
from pofx.evaluate.baselines import MODELS, compression
from pofx.evaluate.cost import peak_memory
from pofx.evaluate.likelihood import Score, decode, verdicts
from pofx.evaluate.recommend import amount, recommend
from pofx.evaluate.study import Settings, Study, evaluate, plain, reason, shown
from pofx.train.checkpoint import read_sealed, write_arrays, write_sealed
from pofx.train.device import choose
from pofx.train.fit import fit, resume
from pofx.train.run import Run, clear, ended, read_data, read_run, remove, tuples

FORMAT = 2  # of comparison.json
Progress = Callable[[dict[str, Any]], None]
"""Called at each stage and with the fit's own entries; every call has family, stage and title."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """A finished comparison: ``record`` is what comparison.json holds, ``runs`` the fits of this process."""

    record: dict[str, Any]
    path: Path | None = None
    runs: Mapping[str, Run] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One per family, best likelihood first, those that did not run last."""
        return list(self.record["rows"])

    @property
    def verdicts(self) -> dict[str, dict[str, dict[str, Any]]]:
        return dict(self.record["verdicts"])

    @property
    def recommendation(self) -> str:
        """The recommendation in words."""
        return str(self.record["recommendation"]["text"])

    def table(self) -> list[list[str]]:
        """The comparison as text: a header, then one list of cells per family and baseline."""
        return [HEADER, *map(_cells, self.rows), *(_baseline_cells(*item) for item in self.record["baselines"].items())]

    def __repr__(self) -> str:
        """The first columns of ``table()``, and the recommendation."""
        rows = [row[:4] for row in self.table()]
        figures = [row for row in rows if row[2] not in ("", "—")]  # the others have a sentence
        widths = [max(map(len, column)) for column in zip(*figures, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in figures]
        lines += [f"{name}: {why}" for name, why, *_ in rows if [name, why, *_] not in figures]
        return "\n".join([*lines, "", self.recommendation])

    def to_json(self) -> dict[str, Any]:
        return self.record


def compare(
    data: Data | Any,
    families: Sequence[str] | None = None,
    *,
    seconds: float = 30.0,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    needs: Sequence[str] = (),
    samples: int = 2000,
    max_test: int = 2000,
    outliers: Data | Part | Any = None,
    anomaly: str | None = None,
    options: Mapping[str, dict[str, Any]] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Comparison:
    """Fit and evaluate families on one data set.

    Args:
        data: a ``Data``, or anything that ``pofx.load`` takes.
        families: registered names; None for all. The baselines ``independent`` and ``gaussian`` always run.
        seconds: wall-clock budget of every fit; the evaluation of a family takes about as long at most
            (at least 5 s).
        seed: of every fit, draw and split within the evaluation.
        out: the folder of the comparison; None keeps everything in memory. One that was interrupted there goes on,
            where all that follows and the data are the same.
        overwrite: replace the comparison that ``out`` holds.
        needs: what the recommendation is for: names in ``recommend.NEEDS``.
        samples: draws per family; two-sample tests use up to 1000 of them.
        max_test: test rows per family at most, drawn by ``seed``, the same ones in the same random order for all. A
            slow family scores the first of them; its row says how many, and differences are taken on the rows that
            both have scored.
        outliers: rows that are none of the data's (anything that ``load`` takes, of the same space).
        anomaly: the class whose test rows are outliers; the others are then the inliers.
        options: family -> options of its Config.
        device: where to fit and evaluate: "auto" (cuda where there is one, else cpu), "cpu", "cuda" or "mps".
        progress: called with what is happening.

    Returns:
        The Comparison. A family that refuses the data or fails is a row with the reason.

    Raises:
        UsageError (unknown family, need or class, impossible budget), DataError, RunExists, CannotSave.
    """
    settings = Settings(seconds, seed, tuple(needs), samples, max_test, device)
    choose(device)  # raises where there is none such
    names = _names(families)
    if unknown := sorted(set(options or {}) - set(names)):
        raise UsageError(f"Options for {unknown[0]!r}, which is not compared.", f"Compared: {', '.join(names)}.")
    if not isinstance(data, Data):
        data = load(data)
    path = None if out is None else Path(out)
    plan = _plan(settings, names, options, outliers, anomaly)
    begun = None if path is None or overwrite else _begun(path, plan, data)
    study = Study.prepare(data, settings, outliers, anomaly)
    plan["outlier_rows"] = [digest(rows) for _, rows in study.outliers]
    if path is not None and begun is not None:
        _same_plan(begun["plan"], plan, path)
        record, results = begun, _kept(begun, path)
    else:
        results = {}
        record = {
            "format": FORMAT,
            "pofx": pofx.__version__,
            "plan": plan,
            "data": _about_data(data),
            "settings": _about_settings(study, names),
            "rows": [],
            "baselines": {k: s.to_json(rows=False) for k, s in compression(data.space, study.test).items()},
            "reference": study.reference(),
        }
        _conclude(record, study, results)
        if path is not None:
            remove(path / "comparison.json")
            for name in names:  # a run that is there would be taken for one that was begun here
                clear(path / "runs" / name)
            write_sealed(path / "comparison.json", record)
    if path is not None:
        _save_shown(path / "data_sample.npz", study)
    for k, name in enumerate(names):
        tell = partial(_tell, progress, name, f"[{k + 1}/{len(names)}] {name}")
        if name in results:
            tell("kept")
            continue
        place = None if path is None else path / "runs" / name
        results[name] = _result(study, name, dict((options or {}).get(name, {})), place, tell)
        _conclude(record, study, results)
        if path is not None:
            write_sealed(path / "comparison.json", record)
    return Comparison(record, path, {k: r.run for k, r in results.items() if r.run is not None})


def resume_comparison(
    path: str | Path,
    data: Data | None = None,
    *,
    outliers: Any = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Go on with a comparison that was interrupted; one that is complete is read and left as it is.

    Args:
        path: the folder of the comparison.
        data, outliers: needed where these were given in memory; else their sources are read again.
        device: where to go on; None as it was asked for at first.
        progress: called with what is happening.

    Raises NoRun, CorruptCheckpoint, NewerFormat, OlderFormat, DataChanged, or the source's own errors.
    """
    found = read_comparison(path)
    record = found.record
    if not unreached(record):
        return found
    plan = dict(record["plan"])
    data, _ = read_data(record, str(path), data)
    if outliers is None and plan["outliers"] is not None:
        outliers = plan["outliers"]
        if outliers == IN_MEMORY:
            raise UsageError(f"The outliers of {path} were given in memory.", "Give them again: outliers=ROWS.")
    options = {name: tuples(values) for name, values in plan["options"].items()}
    asked = {key: plan[key] for key in ("seconds", "seed", "needs", "samples", "max_test", "anomaly", "device")}
    asked["device"] = asked["device"] if device is None else device
    return compare(data, plan["families"], out=path, outliers=outliers, options=options, progress=progress, **asked)


def unreached(record: Mapping[str, Any]) -> list[str]:
    """The families that a comparison still owes: it was interrupted before or while it fitted them."""
    done = {row["family"] for row in record["rows"]}
    return [name for name in record["settings"]["families"] if name not in done]


def read_comparison(path: str | Path) -> Comparison:
    """Read what ``compare`` left. Raises NoRun, CorruptCheckpoint, OlderFormat or NewerFormat."""
    path = Path(path)
    record = read_sealed(path / "comparison.json", FORMAT)
    return Comparison(record, path)


# -- going on ----------------------------------------------------------------------------------------------


def _plan(
    settings: Settings,
    names: Sequence[str],
    options: Mapping[str, dict[str, Any]] | None,
    outliers: Any,
    anomaly: str | None,
) -> dict[str, Any]:
    """What was asked for, as JSON gives it back."""
    source = None if outliers is None else IN_MEMORY
    if isinstance(outliers, str | os.PathLike):
        source = os.path.abspath(outliers) if os.path.exists(outliers) else str(outliers)
    asked = {"families": list(names), "options": dict(options or {}), "outliers": source, "anomaly": anomaly}
    plan: dict[str, Any] = plain(dataclasses.asdict(settings) | asked)
    return plan


def _begun(path: Path, plan: Mapping[str, Any], data: Data) -> dict[str, Any] | None:
    """The record of a comparison that was interrupted and can go on; None where the folder holds none.

    Raises RunExists where it is complete, or where something else was asked for.
    """
    if not (path / "comparison.json").exists():
        return None
    try:
        record = read_comparison(path).record
    except RunError as error:  # damaged, or of another version
        raise RunExists(
            f"{path} already holds a comparison, which cannot go on: {error.problem}", _ELSEWHERE
        ) from error
    _same_plan(record["plan"], plan, path)
    if found := differences(record["data"]["digest"], data):
        raise RunExists(f"{path} already holds a comparison, of data that were others ({found}).", _ELSEWHERE)
    if not unreached(record):
        raise RunExists(
            f"{path} already holds this comparison, and all of its {len(record['rows'])} families.",
            f"See it: pofx report {path}. {_ELSEWHERE}",
        )
    return record


_ELSEWHERE = "Choose another --out, or say --overwrite to begin anew."


def _same_plan(there: Mapping[str, Any], plan: Mapping[str, Any], path: Path) -> None:
    """Raises RunExists, naming what is not the same. A comparison may go on on another device."""
    for key, value in plan.items():
        if key != "device" and there[key] != value:
            what = "other rows" if key == "outlier_rows" else f"{there[key]}, not {value}"
            raise RunExists(
                f"{path} already holds a comparison, with {key.replace('_', ' ')} {what}.",
                f"Ask for the same to go on with it. {_ELSEWHERE}",
            )


def _kept(record: Mapping[str, Any], path: Path) -> dict[str, _Result]:
    """What is there of each family that has its row: verdicts need the likelihood of every test row."""
    kept = {}
    for row in record["rows"]:
        scores = path / "runs" / row["family"] / "scores.json"
        if row["status"] != "ok":
            kept[row["family"]] = _Result(row)
        elif scores.exists():
            kept[row["family"]] = _Result(row, Score.from_json(read_sealed(scores)["likelihood"]))
    return kept


def _names(families: Sequence[str] | None) -> list[str]:
    names = list(known_families() if families is None else families)
    for name in names:
        if name not in known_families():
            find_family(name)  # raises the error that knows the nearest names
    return list(dict.fromkeys([*MODELS, *names]))


def _tell(
    progress: Progress | None, family: str, title: str, stage: str, entry: Mapping[str, Any] | None = None
) -> None:
    if progress is not None:
        progress({**(entry or {}), "family": family, "stage": stage, "title": f"{title}: {stage}"})


# -- one family --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Result:
    """The row of one family; its likelihood per row and its run, where it ran."""

    row: dict[str, Any]
    score: Score | None = None
    run: Run | None = None


def _result(study: Study, name: str, options: dict[str, Any], place: Path | None, tell: Callable[..., None]) -> _Result:
    """Fit and evaluate one family; whatever goes wrong becomes a row with its reason."""
    row: dict[str, Any] = {"family": name, "baseline": name in MODELS, "status": "failed", "reason": None}
    tell("fitting")
    try:
        cls = find_family(name)
        row |= {"summary": cls.summary, "taxonomy": cls.taxonomy, "claims": sorted(k.__name__ for k in cls.claims)}
        row["abilities"] = _abilities(cls, study.data, options)
        if refusal := cls.refuses(study.data.space, study.data.context, cls.Config(**options)):
            return _Result(row | {"status": "refused", "reason": refusal})
        run, row["fit"] = _fit(study, name, options, place, tell)
    except Exception as error:  # the failure of a family is a result: the comparison goes on
        return _Result(row | {"reason": reason(error)})
    row["run"] = None if place is None else f"runs/{name}"
    score = _judge(study, run, row, place, tell)
    tell("done")
    return _Result(row, score, run)


def _judge(study: Study, run: Run, row: dict[str, Any], place: Path | None, tell: Callable[..., None]) -> Score:
    """Evaluate a fitted run: its figures go into ``row`` and, with samples, into its folder."""
    before = time.perf_counter()
    figures, score, samples = evaluate(study, run.model, tell)
    row |= {"status": "ok", "config": plain(run.model.config)} | figures
    row["evaluation_seconds"] = round(time.perf_counter() - before, 2)
    if place is not None:
        write_sealed(place / "scores.json", row | {"likelihood": score.to_json()})
        if samples is not None:
            _save_rows(place / "samples" / "samples.npz", shown(samples, study.data.space))
    return score


def assess(
    path: str | Path, data: Data | None = None, *, seconds: float = 30.0, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate one run as ``compare`` would: scores.json, samples and held-out rows go into its folder.

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
    data, _ = read_data(info, str(path), data)
    study = Study.prepare(data, Settings(seconds, info["seed"]))
    row: dict[str, Any] = {"family": model.name, "baseline": False, "fit": _fitted(run)}
    _save_shown(path / "data_sample.npz", study)
    _judge(study, run, row, path, partial(_tell, progress, model.name, model.name))
    return row


def _fit(
    study: Study, name: str, options: dict[str, Any], place: Path | None, tell: Callable[..., None]
) -> tuple[Run, dict[str, Any]]:
    settings, before = study.settings, time.perf_counter()

    def progress(entry: dict[str, Any]) -> None:
        tell("fitting", entry)

    if place is not None and ended(place):  # before the comparison was interrupted
        run = read_run(place)
        unknown = {"unavailable": "The fit was over before the comparison was interrupted."}
        return run, _fitted(run) | {"wall_seconds": None, "memory": unknown}
    begun = place is not None and (place / "config.json").exists()
    with peak_memory(choose(settings.device)) as memory:
        if place is not None and begun:
            run = resume(place, data=study.data, device=settings.device, progress=progress)
        else:
            run = fit(
                study.data,
                name,
                seconds=settings.seconds,
                seed=settings.seed,
                out=place,
                options=options,
                device=settings.device,
                progress=progress,
            )
    wall = None if begun else round(time.perf_counter() - before, 3)  # with preparation and saving
    return run, _fitted(run) | {"wall_seconds": wall, "memory": plain(memory)}


def _fitted(run: Run) -> dict[str, Any]:
    return {
        "seconds": run.seconds,
        "steps": run.steps,
        "status": run.status,
        "device": run.info["device"],
        "parameters": run.model.parameter_count(),
        "remarks": run.model.remarks,
    }


def _abilities(cls: type[Model], data: Data, options: dict[str, Any]) -> dict[str, bool]:
    """What the family can do over this space beyond what was asked of it here."""
    config, space = cls.Config(**options), data.space
    missing = False
    if isinstance(space, Table):
        holes = Table(tuple(dataclasses.replace(c, nullable=True) for c in space.columns))
        missing = cls.refuses(holes, data.context, config) is None
    return {
        "latents": cls.latent,
        "score": cls.has_score,
        "conditional": cls.refuses(space, data.context or Label(("a", "b")), config) is None,
        "missing_values": missing,
    }


# -- conclusions -------------------------------------------------------------------------------------------


def _conclude(record: dict[str, Any], study: Study, results: Mapping[str, _Result]) -> None:
    """Rows in order, verdicts, frontier and recommendation of what has run so far."""

    def order(row: Mapping[str, Any]) -> tuple[int, float]:
        nats = decode(row["likelihood"]["nats"]) if "likelihood" in row else math.nan
        return ("ok", "failed", "refused").index(row["status"]), math.inf if math.isnan(nats) else -nats

    settings = study.settings
    rows = sorted((r.row for r in results.values()), key=order)
    pairs = verdicts({k: r.score for k, r in results.items() if r.score and r.score.available}, study.test.weight)
    advice = recommend(rows, pairs, settings.needs, settings.seconds, study.data.dependent).to_json()
    record |= {"rows": rows, "verdicts": pairs, "frontier": _frontier(rows), "recommendation": plain(advice)}


def _frontier(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Expressiveness against tractability: per family the mean nats (with kind) and what they cost.

    ``best_for`` lists the speeds for which no other family is at least as good in both and better in one.
    Bounds stand at their value: a family whose bound is loose may be better than its point, and an upper bound, which
    promises nothing from below, is better than nobody. A family that holds a test row impossible is best for nothing.
    """
    points = [
        {
            "family": r["family"],
            "nats": r["likelihood"]["nats"],
            "se": r["likelihood"]["se"],
            "kind": r["likelihood"]["kind"],
            "densities_per_second": r["likelihood"]["rows_per_second"],
            "samples_per_second": None if r["sampling"].get("cut") else r["sampling"].get("rows_per_second"),
            "c2st": r["quality"].get("c2st", {}).get("accuracy"),
            "parameters": r["fit"]["parameters"],
        }
        for r in rows
        if r["status"] == "ok"
    ]

    def beats(a: Mapping[str, Any], b: Mapping[str, Any], speed: str) -> bool:
        ours, theirs = ((decode(p["nats"]), decode(p[speed])) for p in (a, b))
        if a["kind"] == UpperBound.__name__:
            return False
        return all(x >= y for x, y in zip(ours, theirs, strict=True)) and ours != theirs

    for p in points:
        p["best_for"] = [
            speed
            for speed in ("densities_per_second", "samples_per_second")
            if math.isfinite(decode(p["nats"])) and p[speed] is not None and not any(beats(q, p, speed) for q in points)
        ]
    return points


# -- text --------------------------------------------------------------------------------------------------

HEADER = [
    "family", "log p(x) per datum", "per dimension", "fit", "parameters", "memory", "densities/s", "one sample",
    "samples/s", "C2ST", "coverage", "copying", "probe", "outliers", "accuracy",
]  # fmt: skip


def _cells(row: Mapping[str, Any]) -> list[str]:
    if row["status"] != "ok":
        return [row["family"], f"{row['status']}: {row['reason']}", *[""] * (len(HEADER) - 2)]
    lik, cost, drawn, quality = row["likelihood"], row["fit"], row["sampling"], row["quality"]

    def cell(node: Any, key: str, text: Callable[[Any], str]) -> str:
        value = node.get(key) if isinstance(node, Mapping) else None
        return "—" if value is None else text(value)

    cut = f" (cut at {drawn['cut']:,})" if drawn.get("cut") else ""
    areas = [f"{d['auroc']:.2f}" for d in row["outliers"] if "auroc" in d]
    return [
        row["family"],
        lik["text"],
        lik["bits_text"],
        f"{cost['seconds']:.3g} s",
        amount(cost["parameters"]),
        cell(cost["memory"], "bytes", lambda b: f"{b / 2**20:.0f} MiB"),
        cell(lik, "rows_per_second", amount),
        cell(drawn, "latency", lambda s: f"{1000 * s:.3g} ms{cut}"),
        cell(drawn, "rows_per_second", lambda v: f"{amount(v)}{cut}"),
        cell(quality.get("c2st"), "accuracy", lambda a: f"{a:.2f}"),
        cell(quality.get("prdc"), "coverage", lambda a: f"{a:.2f}"),
        cell(quality.get("memorisation"), "auroc", lambda a: f"{a:.2f}"),
        cell(row["latents"].get("probe"), "accuracy", lambda a: f"{a:.1%}"),
        " ".join(areas) or "—",
        cell(row.get("accuracy"), "accuracy", lambda a: f"{a:.1%}"),
    ]


def _baseline_cells(name: str, lik: Mapping[str, Any]) -> list[str]:
    return [name, lik["text"], lik["bits_text"], *[""] * (len(HEADER) - 3)]


# -- plain data ----------------------------------------------------------------------------------------------


def _about_data(data: Data) -> dict[str, Any]:
    label, notes = data.options.get("label"), []
    if isinstance(data.space, Table) and label in [c.name for c in data.space.columns]:
        notes.append(f"The class {label!r} is itself a column of x: a probe of the latents may read it off.")
    return {
        "name": data.name,
        "source": data.source,
        "space": data.space.to_json(),
        "space_text": str(data.space),
        "context": None if data.context is None else data.context.to_json(),
        "context_text": None if data.context is None else str(data.context),
        "measure": str(data.space.measure),
        "dims": data.space.dims,
        "columns": data.describe(),
        "dependent": list(data.dependent),
        "notes": [*data.notes, *notes],
        "split": data.split,
        "rows": {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)},
        "labels": None if data.labels is None else list(data.labels),
        "seed": data.seed,
        "options": data.options,
        "digest": data.digest,
    }


def _about_settings(study: Study, names: Sequence[str]) -> dict[str, Any]:
    return plain(study.settings) | {
        "families": list(names),
        "device": choose(study.settings.device),
        "test_rows": len(study.test),
        "evaluation_limit": study.settings.limit,
        "quality_rows": study.settings.quality_rows,
        "features": None if study.features is None else study.features.description,
        "outliers": [words for words, _ in study.outliers],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _save_shown(path: Path, study: Study) -> None:
    space = study.data.space
    _save_rows(path, shown(study.test, space), train_x=shown(study.train, space).x)


def _save_rows(path: Path, part: Part, **more: Tensor) -> None:
    """x, c and label of a part, and more arrays, in one .npz file."""
    arrays = {"x": part.x, "c": part.c, "label": part.label, **more}
    write_arrays(path, {k: v.numpy() for k, v in arrays.items() if v is not None})
