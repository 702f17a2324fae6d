"""Every family that serves the data, at equal budget, on the same rows, in comparable numbers.

A comparison leaves a folder

    comparison.json                     everything below; written at the start and after each family
    data_sample.npz                     x, c, label of some test rows; train_x of some training rows
    runs/<family>/                      the run folder of each fit (see train.run), and in it
        evaluation.json                 its row, with the likelihood of every test row that was evaluated
        samples/*.npz                   x (and c) that the model drew: samples, pairs, guided, trajectories

A comparison that was killed goes on, by the same call or by ``resume_comparison``: families that have a row keep it,
the fit that was interrupted is resumed. comparison.json holds

    plan         what was asked for: the arguments of ``compare``; families without a row were not reached yet
    data         name, source, space, context, columns, dependent, notes, split, rows, labels, measure, dims,
                 and the options and digest by which they are read again
    settings     seconds or steps and cores of each fit, seed, needs, limits, machine, versions
    rounds       where losers are dropped: how many rounds have been decided
    times        seconds of all families together: fitting, evaluating, else; preparing what they share; wall
    rows         one per family, each with family, status (ok, dropped, refused, failed), reason, fit, likelihood,
                 sampling, quality, pairs, latents, outliers, accuracy, abilities, times. Given a context, "pairs" holds
                 "metrics" of the task (``pairs.Judged``), of how many "rows", "how" x was drawn, and how many "draws"
                 for each row of data_sample.npz are in samples/pairs.npz. Sampling of data of free length holds
                 "speed", draws of growing length (``cost.Speed``), and "cut", the length after which all samples were
                 cut for lack of time, or null; of families that draw by Markov chains it holds "chains", what these say
                 of the samples (``core.verdict.Verdict``); where columns determine others there is "dependent", what
                 each of those adds to the likelihood given all others (``dependent.Share``). Of families that have them
                 (``evaluate.paths``): "terms" of a bound, with "request", "n", "nats" and "se" of their sum, and nats,
                 se, mc_se of each; "steps", the accuracy of a classifier over the steps of the "sampler" up to the
                 "default" ("points"), and with training rows in place of draws ("floor"); "guided" (``guided``),
                 of samples/guided.npz, the true images and then those of each scale; "trajectories", the "n" of those
                 in samples/trajectories.npz, x [n, K, 2] from noise to draw
    baselines    gzip and PNG as likelihoods (``likelihood.Mean`` as JSON)
    reference    the quality measures with training rows in place of samples: the best one can expect
    verdicts     [a][b]: is a better than b, by how many nats, and why one may say so
    frontier     per family: nats against densities/s and samples/s, and whether anything is better in both
    recommendation   needs, family, tied, excluded, sentences, text

Where something could not be measured there is {"unavailable": reason} in its place. NaN is null.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import pofx
from pofx.core.errors import EmptyData, UsageError
from pofx.data.digest import digest
from pofx.data.load import load
from pofx.data.parts import Data, Part
from pofx.data.raw import IN_MEMORY
from pofx.evaluate.baselines import compression
from pofx.evaluate.engine import engine
from pofx.evaluate.entrant import DUE, Progress, Result, assess, opened
from pofx.evaluate.plan import FORMAT, asked, begun, kept, names_of, same_plan, shared, unreached
from pofx.evaluate.race import Race
from pofx.evaluate.recommend import amount, detections, get
from pofx.evaluate.study import Settings, Study, plain, save_shown
from pofx.train.checkpoint import read_sealed
from pofx.train.device import choose
from pofx.train.processes import torchrun
from pofx.train.run import Run, about, claimed, clear, read_data, remove, tuples

__all__ = ["Comparison", "assess", "compare", "read_comparison", "resume_comparison", "unreached"]


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

    @property
    def times(self) -> str:
        """Where the time went, in words."""
        t = self.record["times"]
        share = f" ({t['evaluating'] / t['fitting']:.0%})" if t["fitting"] else ""
        spent = f"fitting {t['fitting']:.3g} s, evaluating {t['evaluating']:.3g} s{share}"
        return f"{spent}, else {t['else'] + t['preparing']:.3g} s; {t['wall']:.3g} s by the clock"

    def table(self) -> list[list[str]]:
        """The comparison as text: a header, then one list of cells per family and baseline.

        Given a context, the metrics of the task (``pairs.judged``) are the last columns.
        """
        tasks = list(dict.fromkeys(name for row in self.rows for name in get(row, "pairs", "metrics") or {}))
        header = [*HEADER, *(name for name in tasks if name not in HEADER)]
        baselines = [[name, lik["text"], lik["bits_text"]] for name, lik in self.record["baselines"].items()]
        rows = [_cells(row) + [_metric(row, name) for name in header[len(HEADER) :]] for row in self.rows]
        return [header, *rows, *(row + [""] * (len(header) - 3) for row in baselines)]

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
    seconds: float | None = None,
    minutes: float | None = None,
    steps: int | None = None,
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
    cores: int | None = None,
    cluster: str | None = None,
    halving: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Fit and evaluate families on one data set.

    Args:
        data: a ``Data``, or anything that ``pofx.load`` takes.
        families: registered names; None for all. The baselines ``independent`` and ``gaussian`` always run.
        seconds, minutes, steps: the budget, in one unit (default: 30 seconds). ``seconds``: wall-clock time of every
            fit; the evaluation of a family takes a quarter as long at most (at least 5 s). ``minutes``: of all fits
            and evaluations together. ``steps``: of every fit, sweeps for EM (counting ends by itself); the same on
            the same cores is then the same to the bit, and all test rows are evaluated, however long that takes.
        seed: of every fit, draw and split within the evaluation.
        out: the folder of the comparison; None keeps everything in memory. One that was interrupted there goes on,
            where all that follows and the data are the same.
        overwrite: replace the comparison that ``out`` holds.
        needs: what the recommendation is for: names in ``recommend.NEEDS``.
        samples: draws per family; two-sample tests use up to 1000 of them.
        max_test: test rows per family at most, drawn by ``seed``, the same ones in the same random order for all. A
            slow family evaluates the first of them; its row says how many, and differences are taken on the rows that
            both have evaluated.
        outliers: rows that are none of the data's (anything that ``load`` takes, of the same space).
        anomaly: the class whose test rows are outliers; the others are then the inliers.
        options: family -> options of its Config.
        device: where to fit and evaluate: "auto" (cuda where there is one, else cpu), "cpu", "cuda" or "mps".
        cores: threads of each family (default: those that torch has; on a cluster, 1). One that goes on keeps its own.
        cluster: run each family as a task of the Ray cluster at this address, "local" for the cores of this machine
            (see ``pofx.cluster.connected``), as many at a time as there are cores; with a GPU each where ``device``
            is "cuda" or "auto" and the cluster has any.
        halving: drop clear losers early. After a quarter and after half of the budget, families still in training
            that are clearly worse than half of the field, by their likelihood on validation rows, are not trained to
            the end nor judged; their rows say so.
        progress: called with what is happening.

    Returns:
        The Comparison. A family that refuses the data or fails is a row with the reason.

    Raises:
        UsageError (unknown family, need or class, impossible budget, no cluster), DataError, RunExists, RunBusy,
        CannotSave.
    """
    if torchrun() is not None:
        raise UsageError(
            "torchrun starts the processes of one fit, not of a comparison.", "Give --cluster, an address or local."
        )
    where = choose(device) if cluster is None else device  # raises where there is none such
    own = dict(options or {})
    names = names_of(families, own)
    budget = {"seconds": seconds, "minutes": minutes, "steps": steps}
    asking: dict[str, Any] = {"seed": seed, "samples": samples, "max_test": max_test, "device": device, "cores": cores}
    plan = asked(names, own, outliers, budget, anomaly=anomaly, halving=halving, needs=needs, **asking)
    settings = Settings(seconds=plan["seconds"], steps=steps, needs=tuple(needs), **asking)
    if not isinstance(data, Data):
        data = load(data)
    if halving and len(data.valid) == 0:
        raise EmptyData("The validation part has no rows, by which losers are found.", "Choose another split.")
    path = None if out is None else Path(out)
    torso = None if path is None or overwrite else begun(path, plan, data)
    if torso is not None:  # its budgets stay equal
        settings = dataclasses.replace(settings, **{k: torso["settings"][k] for k in ("seconds", "cores")})
    with ExitStack() as stack:
        crew = stack.enter_context(engine(cluster, settings.cores, device))
        started = time.perf_counter()
        entrants = {name: opened(data, name, own.get(name, {})) for name in names}
        due = [name for name, entrant in entrants.items() if entrant.row["status"] == DUE]
        settings = dataclasses.replace(settings, cores=crew.cores)
        if minutes is not None and torso is None:
            settings = dataclasses.replace(settings, seconds=shared(minutes, len(due), crew.workers))
        study = Study.prepare(data, settings, outliers, anomaly)
        plan["outlier_rows"] = [digest(rows) for _, rows in study.outliers]
        results = {name: Result(dict(e.row)) for name, e in entrants.items() if name not in due}
        if path is not None:
            stack.enter_context(claimed(path))
        if path is not None and torso is not None:
            same_plan(torso["plan"], plan, path)
            record, results = torso, results | kept(torso, path)
        else:
            record = {
                "format": FORMAT,
                "pofx": pofx.__version__,
                "plan": plan,
                "data": _about_data(data),
                "settings": _about_settings(study, names) | {"device": where},
                "rounds": 0,
                "rows": [],
                "baselines": {k: s.to_json(rows=False) for k, s in compression(data.space, study.test).items()},
                "reference": study.reference(),
            }
        runs = None if path is None else path / "runs"
        if runs is None and (cluster is not None or halving):  # where fits are handed over
            runs = Path(stack.enter_context(TemporaryDirectory(prefix="pofx-")))
        race = Race(record, study, crew, entrants, results, path, runs, progress)
        if path is not None:
            if torso is None:
                remove(path / "comparison.json")
                for name in names:  # a run that is there would be taken for one that was begun here
                    clear(path / "runs" / name)
            save_shown(path / "data_sample.npz", study)
        race.run(time.perf_counter() - started)
    fits = {name: result.run for name, result in race.results.items() if result.run is not None}
    if path is None:  # the folders by which they were handed over are gone
        fits = {name: dataclasses.replace(run, path=None) for name, run in fits.items()}
    return Comparison(record, path, fits)


def resume_comparison(
    path: str | Path,
    data: Data | None = None,
    *,
    outliers: Any = None,
    device: str | None = None,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Go on with a comparison that was interrupted; one that is complete is read and left as it is.

    Args:
        path: the folder of the comparison.
        data, outliers: needed where these were given in memory; else their sources are read again.
        device: where to go on; None as it was asked for at first.
        cluster: as of ``compare``; it need not be as before.
        progress: called with what is happening.

    Raises NoRun, CorruptCheckpoint, NewerFormat, OlderFormat, DataChanged, or the source's own errors.
    """
    found = read_comparison(path)
    record = found.record
    if not unreached(record):
        return found
    plan = dict(record["plan"])
    data = read_data(record, str(path), data)
    if outliers is None and plan["outliers"] is not None:
        outliers = plan["outliers"]
        if outliers == IN_MEMORY:
            raise UsageError(f"The outliers of {path} were given in memory.", "Give them again: outliers=ROWS.")
    options = {name: tuples(values) for name, values in plan["options"].items()}
    plan["device"] = device or plan["device"]
    del plan["outlier_rows"]
    again = {"out": path, "outliers": outliers, "options": options, "cluster": cluster, "progress": progress}
    return compare(data, **plan | again)


def read_comparison(path: str | Path) -> Comparison:
    """Read what ``compare`` left. Raises NoRun, CorruptCheckpoint, OlderFormat or NewerFormat."""
    return Comparison(read_sealed(Path(path) / "comparison.json", FORMAT), Path(path))


# -- text --------------------------------------------------------------------------------------------------

HEADER = [
    "family", "log p(x) per datum", "per dimension", "fit", "parameters", "memory", "densities/s", "one sample",
    "samples/s", "C2ST", "coverage", "copying", "probe", "outliers", "accuracy",
]  # fmt: skip


def _cells(row: Mapping[str, Any]) -> list[str]:
    if row["status"] != "ok":
        return [row["family"], f"{row['status']}: {row['reason']}", *[""] * (len(HEADER) - 2)]
    lik, cost, cut = row["likelihood"], row["fit"], get(row, "sampling", "cut")
    short = f" (cut at {cut:,})" if cut else ""

    def cell(text: Callable[[Any], str], *path: str) -> str:
        value = get(row, *path)
        return "—" if value is None else text(value)

    areas = [f"{d['auroc']:.2f}" for d in detections(row)]
    return [
        row["family"],
        lik["text"],
        lik["bits_text"],
        f"{cost['seconds']:.3g} s",
        amount(cost["parameters"]),
        cell(lambda b: f"{b / 2**20:.0f} MiB", "fit", "memory", "bytes"),
        cell(amount, "likelihood", "rows_per_second"),
        cell(lambda s: f"{1000 * s:.3g} ms{short}", "sampling", "latency"),
        cell(lambda v: f"{amount(v)}{short}", "sampling", "rows_per_second"),
        cell("{:.2f}".format, "quality", "c2st", "accuracy"),
        cell("{:.2f}".format, "quality", "prdc", "coverage"),
        cell("{:.2f}".format, "quality", "memorisation", "auroc"),
        cell("{:.1%}".format, "latents", "probe", "accuracy"),
        " ".join(areas) or "—",
        cell("{:.1%}".format, "accuracy", "accuracy"),
    ]


def _metric(row: Mapping[str, Any], name: str) -> str:
    """Of a task, without its interval."""
    if row["status"] != "ok":
        return ""
    found = get(row, "pairs", "metrics", name)
    return "—" if found is None else str(found["text"].partition(" (")[0])


# -- plain data ----------------------------------------------------------------------------------------------


def _about_data(data: Data) -> dict[str, Any]:
    label, notes = data.options.get("label"), []
    if not data.space.values and label in [c.name for c in data.space.columns]:
        notes.append(f"The class {label!r} is itself a column of x: a probe of the latents may read it off.")
    return about(data) | {
        "space": data.space.to_json(),
        "space_text": str(data.space),
        "context": None if data.context is None else data.context.to_json(),
        "context_text": None if data.context is None else str(data.context),
        "measure": str(data.space.measure),
        "dims": data.space.dims,
        "columns": data.describe(),
        "dependent": list(data.dependent),
        "notes": [*data.notes, *notes],
    }


def _about_settings(study: Study, names: Sequence[str]) -> dict[str, Any]:
    return plain(study.settings) | {
        "families": list(names),
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
