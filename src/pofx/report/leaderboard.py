"""The tables of a report: every figure of every family as text, with its error, and the best ones marked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from pofx.core.likelihood import SYMBOL, Unavailable, with_error
from pofx.evaluate.likelihood import decode
from pofx.evaluate.recommend import amount, detections, get, mean_auroc
from pofx.report import plots

Row = Mapping[str, Any]
GUARANTEES = ("Exact", "LowerBound")
NONE = SYMBOL[Unavailable]
PER = "bits / "


@dataclass
class Cell:
    """What stands in one place: the figure, what qualifies it in small print, why, and whether none is better."""

    text: str = ""
    small: str = ""
    why: str = ""
    best: bool = False
    svg: Markup | None = None


@dataclass(frozen=True)
class Column:
    """One figure: its head, what it is, and how a row shows it.

    ``value`` gives (number, standard error); ``less`` says whether less is better (None: neither is). Two
    numbers are told apart beyond two standard errors of their difference, or beyond ``factor``.
    """

    head: str
    about: str
    cell: Callable[[Row], Cell]
    value: Callable[[Row], tuple[float, float]] | None = None
    less: bool | None = None
    factor: float | None = None
    of_samples: bool = False  # what they are like: not compared where some were cut at another length


def minus(text: str) -> str:
    """The sign, not the hyphen, before digits."""
    return "".join(
        "−" if c == "-" and text[i + 1 : i + 2].isdigit() and not text[i - 1 : i].isalnum() else c
        for i, c in enumerate(text)
    )


def duration(seconds: float) -> str:
    """12 µs, 3.4 ms, 56 s, 2.5 min."""
    for unit, scale, below in (("µs", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 100.0), ("min", 60.0, 6000.0)):
        if seconds < below:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


share, two = "{:.1%}".format, "{:.2f}".format


def likelihood(row: Row, of: int) -> Cell:
    """Symbol, mean and error of log p(x), with what the number rests on."""
    lik = row["likelihood"]
    if lik["kind"] == "Unavailable":
        return Cell(NONE, why=lik["note"])
    number, _, about = lik["text"].partition(" nats")
    shares = [(d["column"], decode(d["nats"])) for d in row.get("dependent") or [] if "nats" in d]
    notes = [about.strip(" ()").replace("; ", " · "), *(f"{name} adds {minus(amount(nats))}" for name, nats in shares)]
    why = [f"{lik['draws']} Monte Carlo draws per row."] if lik["draws"] else []
    why += [f"All rows share the error of {' and of '.join(lik['shared'])}."] if lik["shared"] else []
    if lik["n"] < of:
        notes.append(f"n {lik['n']:,}")
        why.append(f"Of the first {lik['n']:,} of {of:,} rows.")
    why += [f"Other columns determine {name}, which given them adds {nats:.3g} nats." for name, nats in shares]
    why += row.get("fit", {}).get("remarks", [])
    return Cell(minus(number), " · ".join(filter(None, notes)), " ".join([*why, lik["note"]]).strip())


def bits(row: Row) -> Cell:
    text, _, _ = row["likelihood"]["bits_text"].partition(" bits/")
    number = decode(row["likelihood"]["bits_per_dim"])
    if math.isfinite(number) and abs(number) >= 1e5:
        text = f"{text[:1]} {amount(number)}"
    value, _, error = text.partition(" ± ")
    return Cell(minus(value), f"±{error}" if error else "")


def figure(
    head: str,
    about: str,
    path: str,
    text: Callable[[float], str],
    *,
    se: str | None = None,
    less: bool | None = None,
    factor: float | None = None,
) -> Column:
    """The column of the entry at ``path`` ("fit.seconds"); its error stands beside it at ``se`` ("se", "se.0")."""
    steps = path.split(".")

    def error(row: Row) -> Any:
        return get(row, *steps[:-1], *se.split(".")) if se else None

    def cell(row: Row) -> Cell:
        found = get(row, *steps)
        if found is None:
            why = get(row, *steps[:-1], "unavailable") or get(row, steps[0], "unavailable")
            return Cell(NONE, why=str(why or ""))
        return Cell(minus(text(decode(found))), f"±{text(decode(error(row)))}" if error(row) is not None else "")

    def value(row: Row) -> tuple[float, float]:
        return decode(get(row, *steps)), decode(error(row) or 0.0)

    return Column(head, about, cell, value, less, factor, steps[0] == "quality")


def whole(column: Column) -> Column:
    """A figure of samples: where these were cut short it says so, and is none to compare."""

    def cell(row: Row) -> Cell:
        found, cut = column.cell(row), get(row, "sampling", "cut")
        if cut is None:
            return found
        why = f"There was time for the first {cut:,} steps of each sample."
        return replace(found, small=f"cut at {cut:,}", why=why)

    def value(row: Row) -> tuple[float, float]:
        assert column.value is not None
        return column.value(row) if get(row, "sampling", "cut") is None else (math.nan, 0.0)

    return replace(column, cell=cell, value=value)


def outliers(row: Row) -> Cell:
    """The mean AUROC over the kinds of outliers."""
    if detections(row):
        mean, se = mean_auroc(row)
        return Cell(f"{mean:.3f}", f"±{se:.3f}")
    return Cell(NONE, why=next((d["unavailable"] for d in row.get("outliers") or [] if "unavailable" in d), ""))


def outlier_value(row: Row) -> tuple[float, float]:
    return mean_auroc(row) if detections(row) else (math.nan, 0.0)


def columns(rows: Sequence[Row], of: int) -> list[Column]:
    """The columns of the main table; those that no family has a figure for are left out."""
    found = [decode(r["likelihood"]["nats"]) for r in rows if r["likelihood"]["kind"] in plots.KINDS]
    low, top = plots.floor(found), max(filter(math.isfinite, found), default=0.0)
    unit = rows[0]["likelihood"]["unit"] if rows else "dim"
    what = "dimension" if unit == "dim" else unit
    low -= 0.04 * max(top - low, 1e-9)

    def scale(row: Row) -> Cell:
        lik = row["likelihood"]
        if lik["kind"] not in plots.KINDS:
            return Cell()
        return Cell(svg=plots.interval(lik["kind"], decode(lik["nats"]), decode(lik["error"]), low, top, lik["text"]))

    out = [
        Column("log p(x)", "Mean over held-out rows, nats per datum. More is better.", lambda r: likelihood(r, of)),
        *([Column("", "The same on one scale, with two standard errors.", scale)] if len(rows) > 1 else []),
        Column(f"{PER}{unit}", f"Mean surprise per {what}: less is better. Lower bounds turn into upper ones.", bits),
        *COSTS,
        _C2ST,
        _COVERAGE,
        _COPYING,
        _PROBE,
        Column("outliers", "AUROC of −log p for outliers, mean over their kinds.", outliers, outlier_value, False),
    ]
    return [c for c in out if c.value is None or any(c.cell(r).text != NONE for r in rows)]


COSTS = [
    figure("accuracy", "How often the most probable class is right.", "accuracy.accuracy", share, se="se", less=False),
    figure("fit", "Wall-clock time of training, validation included.", "fit.seconds", duration),
    figure("parameters", "Fitted numbers.", "fit.parameters", amount, less=True, factor=1.1),
    figure("memory, MiB", "Peak resident memory of the process while fitting.", "fit.memory.bytes",
           lambda v: f"{v / 2**20:,.0f}"),
    figure(
        "densities / s", "Rows evaluated per second, in large batches.", "likelihood.rows_per_second", amount,
        less=False, factor=1.5,
    ),
    whole(figure("one sample", "Time to draw a single one.", "sampling.latency", duration, less=True, factor=1.5)),
    whole(
        figure(
            "samples / s", "Drawn per second, in large batches.", "sampling.rows_per_second", amount,
            less=False, factor=1.5,
        )
    ),
]  # fmt: skip
_C2ST = figure(
    "C2ST", "Accuracy of a classifier trained to tell samples from held-out data: 0.5 is best.",
    "quality.c2st.accuracy", two, se="se", less=True,
)  # fmt: skip
_COVERAGE = figure(
    "coverage", "Share of neighbourhoods of held-out rows that hold a sample.",
    "quality.prdc.coverage", two, se="se.3", less=False,
)  # fmt: skip
_COPYING = figure(
    "copying", "AUROC of samples lying nearer to training rows than held-out rows do: above 0.5 tells of copies.",
    "quality.memorisation.auroc", two, se="se",
)  # fmt: skip
_PROBE = figure(
    "probe", "Held-out accuracy of logistic regression from the latents to the classes.",
    "latents.probe.accuracy", share, se="se", less=False,
)  # fmt: skip
QUALITY = [
    _C2ST,
    figure(
        "MMD² × 1000", "Squared kernel mean discrepancy; 0 is best. Beside it: its spread where nothing differs.",
        "quality.mmd.mmd2", lambda v: f"{1000 * v:.2f}", se="null_se",
    ),
    figure(
        "Fréchet", "Distance of the Gaussians that fit the features of samples and of held-out rows (FID of these).",
        "quality.frechet.distance", lambda v: f"{v:.3g}", se="se", less=True,
    ),
    figure("precision", "Share of samples near a held-out row.", "quality.prdc.precision", two, se="se.0", less=False),
    figure("recall", "Share of held-out rows near some sample.", "quality.prdc.recall", two, se="se.1", less=False),
    figure("density", "Held-out neighbourhoods per sample, over k.", "quality.prdc.density", two, se="se.2"),
    _COVERAGE,
    _COPYING,
    figure(
        "distance ratio", "Median distance to the nearest training row, samples over held-out rows: below 1, copies.",
        "quality.memorisation.ratio", two,
    ),
    figure("exact copies", "Share of samples that equal a training row.", "quality.memorisation.copies", share),
]  # fmt: skip


def table(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[Cell]]:
    """The cells of all rows, with the best marked where two numbers can be told apart."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    for j, column in enumerate(columns):
        if column.value is None or column.less is None or len(rows) < 2:
            continue
        if column.of_samples and len({get(row, "sampling", "cut") for row in rows}) > 1:
            continue
        values = [column.value(row) for row in rows]
        sign = -1 if column.less else 1
        finite = [sign * v for v, _ in values if not math.isnan(v)]
        if not finite or min(finite) == max(finite):
            continue
        best, error = max(((sign * v, e) for v, e in values if not math.isnan(v)), key=lambda p: p[0])
        for i, (v, e) in enumerate(values):
            if column.factor is not None:
                near = max(abs(v), abs(best)) <= column.factor * min(abs(v), abs(best))
            else:
                near = best - sign * v <= 2 * math.hypot(e, error)
            cells[i][j].best = not math.isnan(v) and near
    return cells


def guaranteed_best(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> set[str]:
    """Families with an exact number or a lower bound above which no other guarantees more, beyond the errors."""
    promises = [r for r in rows if r["likelihood"]["kind"] in GUARANTEES]
    names = [r["family"] for r in promises if decode(get(r, "likelihood", "nats")) != -math.inf]

    def beaten(name: str) -> bool:
        return any((get(verdicts, other, name, "sign") or 0) > 0 for other in names if other != name)

    return {name for name in names if not beaten(name)} if len(names) > 1 else set()


def superscript(text: str) -> str:
    """counting^15 -> counting¹⁵."""
    return re.sub(r"\^(\d+)", lambda m: m[1].translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")), text)


def verdict_matrix(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> tuple[list[str], list[list[dict[str, str]]]]:
    """Names, and for each row family against each column family: verdict, difference in nats, why."""
    names = [r["family"] for r in rows if r["family"] in verdicts]

    def cell(a: str, b: str) -> dict[str, str]:
        found = get(verdicts, a, b)
        if found is None:
            return {"verdict": "self", "text": "", "why": ""}
        nats, se = decode(found["nats"]), decode(found["se"])
        text = "" if math.isnan(nats) else minus(f"{'+' if nats > 0 else ''}{amount(nats)}")
        size = f"{a} − {b}: {minus(with_error(nats, se))} nats over {found['n']:,} rows. " if text else ""
        why = found["why"][:1].upper() + found["why"][1:]
        return {"verdict": found["verdict"], "text": text, "why": f"{size}{why}."}

    return names, [[cell(a, b) for b in names] for a in names]
