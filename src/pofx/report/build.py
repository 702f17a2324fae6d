"""Write what a comparison (or one fit) found as one self-contained HTML file.

``build`` reads folders only: comparison.json, data_sample.npz and runs/<family>/ as ``evaluate.compare``
leaves them, or the run folder of one fit. It measures nothing; it chooses what to show of what was
measured, draws it (plots, exhibits, leaderboard) and leaves the page to ``report.html.jinja``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pofx.core.errors import NoRun
from pofx.core.files import write_atomic
from pofx.core.space import Space, from_json
from pofx.core.verdict import ESS, RHAT
from pofx.evaluate.compare import Comparison, read_comparison, unreached
from pofx.evaluate.likelihood import decode
from pofx.evaluate.recommend import amount, get
from pofx.report import exhibits, latents, leaderboard, pairs, paths, plots
from pofx.report.leaderboard import Cell, Column, duration, minus
from pofx.train.compiling import told
from pofx.train.run import read_evaluation, read_info, read_log

Page = dict[str, Any]


def build(folder: str | Path, out: str | Path | None = None, notes: Sequence[str] = ()) -> Path:
    """Write the report of a comparison or of one run.

    Args:
        folder: what ``compare`` or ``fit`` left.
        out: the HTML file; ``report.html`` in the folder where none is given.
        notes: what else is to be said of the data, as that they have changed since.

    Returns:
        Where the report stands.

    Raises:
        NoRun, CorruptCheckpoint or NewerFormat (the folder cannot be read); CannotSave.
    """
    folder = Path(folder)
    if (folder / "comparison.json").exists():
        page = _comparison(folder)
    elif (folder / "config.json").exists():
        page = _run(folder)
    else:
        raise NoRun(
            f"{folder} holds neither a comparison nor a run.", "Give the folder that 'pofx compare' or 'pofx fit' made."
        )
    page["notes"] = [*page["notes"], *notes]
    path = folder / "report.html" if out is None else Path(out)
    write_atomic(path, _render(page).encode())
    return path


def _render(page: Page) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pofx.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"minus": minus}
    return environment.get_template("report.html.jinja").render(page)


# -- a comparison --------------------------------------------------------------------------------------------


def _comparison(folder: Path) -> Page:
    record = read_comparison(folder).record
    data, settings = record["data"], record["settings"]
    rows = [r for r in record["rows"] if r["status"] == "ok"]
    logs = {r["family"]: read_log(folder / "runs" / r["family"]) for r in rows}
    of, verdicts = settings["test_rows"], record["verdicts"]
    names, matrix = leaderboard.verdict_matrix(rows, verdicts)
    context = f" given {data['context_text']}" if data["context_text"] else ""
    beside = folder / "data_sample.npz"
    samples = {r["family"]: folder / "runs" / r["family"] / "samples" / "samples.npz" for r in rows}
    return _parts(data["space"], data["context"], beside, samples, rows, record) | {
        "name": data["name"],
        "eyebrow": "Comparison of generative models",
        "lead": f"{len(rows)} of {len(settings['families'])} families fitted to {data['rows']['train']:,} rows "
        f"({data['space_text']}{context}). Each had {_budget(record)}; all are judged on the same "
        f"{of:,} held-out rows.{_not_reached(record, folder)}",
        "advice": _advice(record["recommendation"]),
        "board": _board(rows, record, of),
        "matrix": (names, matrix) if len(names) > 1 else None,
        "plots": _plots(rows, logs),
        "terms": None,
        "games": [],
        "absent": [r for r in record["rows"] if r["status"] != "ok"],
        "silent": [(r["family"], r["likelihood"]["note"]) for r in rows if r["likelihood"]["kind"] not in plots.KINDS],
        "facts": _facts(record),
        "notes": data["notes"],
        "columns": data["columns"],
        "options": [(r["family"], get(r, "summary") or "", _options(r["config"])) for r in rows],
        "version": record["pofx"],
    }


def _parts(
    space: dict[str, Any],
    context: dict[str, Any] | None,
    data: Path,
    samples: Mapping[str, Path],
    rows: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
) -> Page:
    """What the page of a comparison and that of a run have in common; samples stand beside held-out ``data``."""
    of, given = from_json(space), None if context is None else from_json(context)
    found = {name: exhibits.load_rows(path) for name, path in samples.items()}
    shown: Page = {"sheets": [], "table": None, "texts": [], "sounds": []}
    beside = exhibits.load_rows(data)
    return {
        "pairs": pairs.parts(of, given, rows, samples, beside, max((r["likelihood"]["n"] for r in rows), default=0)),
        "exhibits": shown | exhibits.exhibit(of, beside, found, given),
        "way": paths.parts(of, given, rows, samples, beside),
        "speeds": _speeds(of, rows),
        "surprise": _shades(rows),
        "shades": exhibits.BITS,
        "quality": _quality(rows, record),
        "latents": latents.parts(of, rows, samples),
        "chains": _chains(rows),
        "outliers": _outliers(rows),
    }


def _not_reached(record: Mapping[str, Any], folder: Path) -> str:
    """Of a comparison that was interrupted, the families that it still owes."""
    names = unreached(record)
    return f" Not reached: {', '.join(names)}; 'pofx resume {folder}' goes on." if names else ""


def _advice(found: Mapping[str, Any]) -> Page:
    """The recommendation: its first sentence large, the indented ones as points, the others below."""
    sentences = [minus(s) for s in found["sentences"]]
    first, rest = (sentences[0] if sentences else ""), sentences[1:]
    points = [s.strip() for s in rest if s.startswith("  ")]
    split = [p.partition(": ") for p in points]
    return {
        "needs": found["needs"],
        "headline": first.rstrip(":"),
        "points": [(head, text) if text else ("", head) for head, _, text in split],
        "after": [s for s in rest if not s.startswith("  ")],
    }


def _board(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any], of: int) -> Page:
    columns = leaderboard.columns(rows, of)
    cells = leaderboard.table(rows, columns)
    best = leaderboard.guaranteed_best(rows, record["verdicts"])
    for row, line in zip(rows, cells, strict=True):
        line[0].best = row["family"] in best
    return {
        "columns": columns,
        "rows": list(zip(rows, cells, strict=True)),
        "baselines": [
            (name, [_baseline(c, {"likelihood": lik}, of) for c in columns], lik["note"])
            for name, lik in record["baselines"].items()
        ],
        "measure": leaderboard.superscript(get(record, "data", "measure") or ""),
        "draws": any(r["likelihood"]["draws"] for r in rows),
        "shared": any(r["likelihood"]["shared"] for r in rows),
    }


def _baseline(column: Column, row: Mapping[str, Any], of: int) -> Cell:
    """A compressor has a likelihood and nothing else."""
    if column.head == "log p(x)":
        return leaderboard.likelihood(row, of)
    return leaderboard.bits(row) if column.head.startswith(leaderboard.PER) else Cell()


def _plots(rows: Sequence[Mapping[str, Any]], logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Page:
    def points(*path: str) -> list[plots.Point]:
        return [
            plots.Point(
                r["family"], r["likelihood"]["kind"], decode(r["likelihood"]["nats"]), decode(r["likelihood"]["error"]),
                decode(get(r, *path)),
            )
            for r in rows
            if r["likelihood"]["kind"] in plots.KINDS and (path[0] != "sampling" or not get(r, "sampling", "cut"))
        ]  # fmt: skip

    wanted = [
        ("samples per second", ("sampling", "rows_per_second"), False),
        ("densities per second", ("likelihood", "rows_per_second"), False),
        ("seconds to fit", ("fit", "seconds"), True),
        ("parameters", ("fit", "parameters"), True),
    ]
    drawn = (plots.frontier(points(*path), x, less=less, title=f"Likelihood against {x}") for x, path, less in wanted)
    valid = {
        name: [(e["seconds"], decode(e["valid"])) for e in log if e.get("valid") is not None]
        for name, log in logs.items()
    }
    return {
        "frontier": [svg for svg in drawn if svg],
        "curves": plots.curves(valid, "validation nats per datum", title="Validation likelihood during training"),
        "without_curve": [name for name, v in valid.items() if not v],
    }


def _speeds(space: Space, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """Steps drawn per second over length: of one run, a line per batch; of several, a plot per batch and its name."""
    if space.fill is None:
        return []
    lines: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for r in rows:
        for s in get(r, "sampling", "speed") or []:
            line = lines.setdefault(s["rows"], {}).setdefault(r["family"], [])
            line.append((s["length"], s["steps_per_second"]))
    if len(rows) == 1:
        lines = {0: {f"{n} at a time": line for n, of in lines.items() for line in of.values()}}
    what = {"text": "symbols", "audio": "samples of sound"}.get(space.name, "steps")
    drawn = [
        (f"{n} at a time" if n else "", plots.speeds(of, what, title="Speed of sampling over length"))
        for n, of in lines.items()
    ]
    return [(name, svg) for name, svg in drawn if svg]


def _shades(rows: Sequence[Mapping[str, Any]]) -> list[Page]:
    """Held-out texts in shades of each family's surprise."""
    found = [(r["family"], get(r, "surprise", "texts") or []) for r in rows]
    return [{"name": name, "texts": [exhibits.shades(t) for t in texts]} for name, texts in found if texts]


def _quality(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> Page | None:
    """All two-sample figures, above what training rows in place of samples reach."""
    able = [r for r in rows if any(get(r, "quality", k, f) is not None for k, f in _QUALITY_FIGURES)]
    if not able:
        return None
    reference = {"family": "training rows", "quality": record["reference"]}
    cells = leaderboard.table(able, leaderboard.QUALITY)
    return {
        "columns": leaderboard.QUALITY,
        "rows": list(zip(able, cells, strict=True)),
        "reference": leaderboard.table([reference], leaderboard.QUALITY)[0],
        "features": record["settings"]["features"],
        "n": max((get(r, "quality", "n") or 0) for r in able),
    }


def _chains(rows: Sequence[Mapping[str, Any]]) -> Page | None:
    """What the Markov chains that drew the samples say of them, and the limits of a verdict."""
    found = [(r["family"], said) for r in rows if (said := get(r, "sampling", "chains"))]

    def line(said: Mapping[str, Any]) -> list[str]:
        accepted = said["acceptance"]
        return [
            "mixed" if said["mixed"] else "not mixed",
            f"{decode(said['rhat']):.3f}",
            *(amount(decode(said[k])) for k in ("ess_bulk", "ess_tail")),
            f"{said['chains']:,} × {said['draws']:,}",
            "—" if accepted is None else f"{accepted:.0%}",
            f"{said['divergent']:,}",
        ]

    return {"rows": [(name, line(said)) for name, said in found], "rhat": RHAT, "ess": ESS} if found else None


_QUALITY_FIGURES = (("c2st", "accuracy"), ("prdc", "coverage"), ("memorisation", "auroc"))


def _outliers(rows: Sequence[Mapping[str, Any]]) -> Page | None:
    kinds = list(dict.fromkeys(d["outliers"] for r in rows for d in r.get("outliers") or []))
    lines = []
    for r in rows:
        found = {d["outliers"]: d for d in r.get("outliers") or [] if "auroc" in d}
        if found:
            lines.append((r["family"], [_detection(found.get(k)) for k in kinds]))
    for j in range(len(kinds)):
        values = [float(cells[j].text) for _, cells in lines if cells[j].text != "—"]
        for _, cells in lines:
            cells[j].best = len(values) > 1 and cells[j].text != "—" and float(cells[j].text) == max(values)
    return {"kinds": kinds, "rows": lines} if lines else None


def _detection(found: Mapping[str, Any] | None) -> Cell:
    if found is None:
        return Cell("—")
    inside, outside = decode(found["bits_in"]), decode(found["bits_out"])
    why = f"Median surprise {inside:.4g} bits of held-out rows, {outside:.4g} bits of outliers."
    return Cell(f"{found['auroc']:.3f}", f"±{found['se']:.3f}", why)


def _budget(record: Mapping[str, Any]) -> str:
    """What each fit had, and who had less."""
    settings = record["settings"]
    each = f"{settings['steps']:,} steps" if settings.get("steps") else duration(settings["seconds"])
    early = [f"{r['family']} {duration(r['fit']['seconds'])}" for r in record["rows"] if r["status"] == "dropped"]
    return f"{each} ({', '.join(early)}, and was dropped)" if early else each


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, s = record["data"], record["settings"]
    rows = data["rows"]
    return [
        ("Source", data["source"]),
        ("One x is", data["space_text"]),
        ("Given", data["context_text"] or "nothing: p(x)"),
        ("Base measure", leaderboard.superscript(data["measure"])),
        ("Split", f"{data['split']}: {rows['train']:,} training, {rows['valid']:,} validation, {rows['test']:,} test"),
        ("Evaluated", f"{s['test_rows']:,} test rows; {s['quality_rows']:,} of each side in two-sample tests"),
        ("Budget", f"{_budget(record)} to fit, {duration(s['evaluation_limit'])} to evaluate, per family"),
        *([("Cores", f"{s['cores']} per family")] if s.get("cores") else []),
        *([("Time", spent)] if (spent := Comparison(dict(record)).times) else []),
        ("Seeds", f"data {data['seed']}, fits and draws {s['seed']}"),
        ("Machine", f"{s['machine']}, device {s['device']}"),
        ("Versions", f"pofx {record['pofx']}, torch {s['torch']}, Python {s['python']}, {s['system']}"),
        ("Started", s["started"].replace("T", " ").replace("Z", " UTC")),
    ]


def _options(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {_plain(v)}" for k, v in config.items())


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "×".join(map(str, value)) or "()"
    return {"True": "yes", "False": "no", "None": "none"}.get(str(value), str(value))


# -- one run -------------------------------------------------------------------------------------------------


def _run(folder: Path) -> Page:
    info, log = read_info(folder), read_log(folder)
    evaluation = read_evaluation(folder, log)
    space = from_json(info["space"])
    context = None if info["context"] is None else from_json(info["context"])
    last = log[-1] if log else {}
    rows = [evaluation] if evaluation else []
    record = {
        "data": {"measure": str(space.measure)},
        "verdicts": {},
        "baselines": {},
        "reference": {},
        "settings": {"features": get(evaluation, "quality", "features")},
    }
    beside = folder / "data_sample.npz"  # of one fit; a comparison keeps one for all its runs
    if not beside.exists() and folder.parent.name == "runs":
        beside = folder.parent.parent / "data_sample.npz"
    samples = {info["family"]: folder / "samples" / "samples.npz"}
    name = info["data"].get("name", "data")
    return _parts(info["space"], info["context"], beside, samples, rows, record) | {
        "name": f"{info['family']} on {name}",
        "eyebrow": "Report of one fit",
        "lead": f"{info['family']} models p(x{' | c' if context else ''}) of {space}"
        f"{f' given {context}' if context else ''}. Training {_ending(last)}.",
        "advice": None,
        "board": _board(rows, record, rows[0]["likelihood"]["n"]) if rows else None,
        "matrix": None,
        "plots": {"frontier": [], "curves": None, "without_curve": []},
        "terms": _terms(log),
        "games": _games(log),
        "absent": [],
        "silent": [],
        "facts": _run_facts(info, log),
        "notes": info["data"].get("notes", []),
        "columns": [],
        "options": [
            (info["family"], "options of the family", _options(info["options"])),
            ("recipe", "how it was trained", _options(info["recipe"])),
            ("training", "", _options(info["training"])),
        ],
        "version": info["pofx"],
    }


def _ending(last: Mapping[str, Any]) -> str:
    if "step" not in last:
        return "has not begun"
    told = f"{last.get('status', 'is unfinished')} after {last['step']:,} steps in {duration(last['seconds'])}"
    if last.get("valid") is not None:
        told += f"; the last validation gave {last['symbol']} {last['valid']:.4g} nats per datum"
    return minus(told)


def _terms(log: Sequence[Mapping[str, Any]]) -> list[Page]:
    """Every logged figure over the steps, validation first."""
    names = dict.fromkeys(
        k for e in log for k, v in e.items() if isinstance(v, int | float) and k not in ("step", "seconds")
    )
    out = []
    for name in sorted(names, key=lambda k: (k != "valid", k != "loss")):
        xy = [(e["step"], decode(e[name])) for e in log if e.get(name) is not None]
        if svg := plots.line(xy, f"{name} over the steps"):
            unit = "validation nats" if name == "valid" else name
            out.append({"name": unit, "svg": svg, "first": _short(xy[0][1]), "last": _short(xy[-1][1])})
    return out


def _short(value: float) -> str:
    return minus(f"{value:.4g}") if math.isfinite(value) else "—"


GAMES = {  # logged figures that say something beside each other: the name of each, and of their axis
    "the critic's mean": {"on_real": "real", "on_fake": "generated"},
    "norm of the gradient": {"critic_norm": "critic", "generator_norm": "generator"},
    "distance of two rows": {"spread_real": "real", "spread_fake": "generated"},
}


def _games(log: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """How a game between two nets went."""
    drawn = []
    for label, names in GAMES.items():
        lines = {told: [(e["step"], e[key]) for e in log if e.get(key) is not None] for key, told in names.items()}
        drawn.append(plots.figures(lines, label, title=f"{label[0].upper()}{label[1:]} during training"))
    return [svg for svg in drawn if svg]


def _run_facts(info: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    last = log[-1] if log else {}
    data, budget, training = info["data"], info["budget"], info["training"]
    given = ", ".join(f"{amount(v)} {k}" for k, v in budget.items() if v is not None)
    rows = data.get("rows", {})
    split = f"{data.get('split', '')}: {', '.join(f'{n:,} {part}' for part, n in rows.items())}"
    facts = [
        ("Source", data.get("source", "")),
        ("Split", split if rows else ""),
        ("Budget", given),
        ("Trained", f"{last['step']:,} steps in {duration(last['seconds'])}" if "step" in last else "not yet"),
        ("Seed", str(info["seed"])),
        ("Device", f"{info['device']}, processes: {training['processes']}, {training['precision']}"),
        ("torch.compile", told(log)),
        ("Versions", f"pofx {info['pofx']}, torch {info['torch']}, Python {info['python']}"),
    ]
    return [(k, v) for k, v in facts if v]
