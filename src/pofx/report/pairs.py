"""What went with a context beside what a model draws given it: to be seen, read and heard, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from pofx.core.space import Space
from pofx.core.spelling import visible
from pofx.data.tabular import show
from pofx.evaluate.likelihood import decode
from pofx.evaluate.recommend import get
from pofx.report import plots
from pofx.report.exhibits import SHOWN_CHARACTERS, Array, Rows, beside, clip
from pofx.report.leaderboard import Cell, Column, likelihood, table
from pofx.spaces import Audio, Image
from pofx.spaces import Sequence as Steps

Row = Mapping[str, Any]
MOST_NUMBERS = 8  # of a row that are spelt
MOST_LINES = 8  # columns of a sequence that are drawn, each over its own range
MOST_BYTES = 2**21  # of the draws that are shown of one family, as they are held
Z95 = 1.96


@dataclass(frozen=True)
class Piece:
    """One datum as a page shows it: as words, an image, a drawing, a sound, or several of these."""

    text: str = ""
    png: str = ""
    svg: Markup | None = None
    wav: str = ""


@singledispatch
def pieces(space: Space, x: Array) -> list[Piece]:
    """Data [m, *E] of one pair, to be looked at side by side, so on one scale.

    An open function: a space that is seen otherwise adds its own case. By default columns are spelt by name, and what
    has none as its space spells it.
    """
    if space.columns and not space.values:
        rows = x.reshape(len(x), -1).astype(float)
        return [Piece(_named(space, row)) for row in rows]
    spelt = (visible(space.spell(torch.from_numpy(np.asarray(row)))) for row in x)
    return [Piece(t if len(t) <= SHOWN_CHARACTERS else f"{t[:SHOWN_CHARACTERS]} …") for t in spelt]


def _named(space: Space, row: Array) -> str:
    first = zip(space.columns[:MOST_NUMBERS], row, strict=False)
    told = [f"{c.name}: {show(c, float(v)) or '–'}" for c, v in first]
    return "\n".join([*told, *(["…"] if len(row) > MOST_NUMBERS else [])])


@pieces.register
def _(space: Image, x: Array) -> list[Piece]:
    return [Piece(png=plots.montage(one[None], space.levels, 1, 1)) for one in x]


@pieces.register
def _(space: Audio, x: Array) -> list[Piece]:
    clips = [clip(space, row, "sound", "") for row in x]
    return [Piece(one.caption, svg=one.svg, wav=one.wav) for one in clips]


@pieces.register
def _(space: Steps, x: Array) -> list[Piece]:
    x, there = x[..., :MOST_LINES], x[..., 0] != space.fill
    numbers = x[there].T
    ends = [(v.min(), v.max()) if len(v := column[np.isfinite(column)]) else (0.0, 1.0) for column in numbers]
    low, high = np.array(ends).T
    names = ", ".join(c.name for c in space.step.columns[:MOST_LINES])
    longest = int(there.sum(1).max())
    return [Piece(svg=plots.lines(one[ok], low, high, longest, names)) for one, ok in zip(x, there, strict=True)]


def parts(
    space: Space, context: Space | None, rows: Sequence[Row], samples: Mapping[str, Path], data: Rows, of: int
) -> dict[str, Any]:
    """What the page shows: "families", each with pairs and draws, and a "table" of the metrics of every family.

    Rows of a table given columns stand among its exhibits already.
    """
    found: list[dict[str, Any]] = []
    if context is not None and {"x", "c"} <= data.keys() and not (space.columns and context.columns):
        for name, drawn in beside(samples, "pairs").items():
            row = next((r for r in rows if r["family"] == name), {})
            k = get(row, "pairs", "draws") or 1
            fit = max(2, MOST_BYTES // (drawn["x"][:k].nbytes or 1))
            many = min(len(drawn["x"]) // k, len(data["x"]), fit)
            lines = [
                {"given": pieces(context, data["c"][i : i + 1])[0], "drawn": _together(space, data["x"][i], draws)}
                for i, draws in enumerate(drawn["x"].reshape(-1, k, *drawn["x"].shape[1:])[:many])
            ]
            found.append({"name": name, "how": get(row, "pairs", "how") or "", "draws": k, "rows": lines})
    return {"families": found, "table": _table(rows, of)}


def _together(space: Space, truth: Array, drawn: Array) -> list[Piece]:
    """The truth [*E] first, then its draws [k, *E]; of free length, filled up alike."""
    if space.fill is None:
        return pieces(space, np.concatenate([truth[None], drawn]))
    longest = max(len(truth), drawn.shape[1])
    whole = np.full((len(drawn) + 1, longest, *truth.shape[1:]), space.fill, dtype=truth.dtype)
    whole[0, : len(truth)], whole[1:, : drawn.shape[1]] = truth, drawn
    return pieces(space, whole)


def _table(rows: Sequence[Row], of: int) -> dict[str, Any] | None:
    """log p(x | c) and the metrics of the families that have some, and what each metric is."""
    able = [r for r in rows if get(r, "pairs", "metrics")]
    metrics = {name: told for r in able for name, told in r["pairs"]["metrics"].items()}
    notes = dict.fromkeys(note for r in rows for note in get(r, "pairs", "notes") or [])
    if not able:
        return {"rows": [], "columns": [], "words": [], "notes": list(notes)} if notes else None
    columns = [Column("log p(x | c)", "Mean over held-out rows, nats per datum.", lambda r: likelihood(r, of))]
    columns += [_column(name, told) for name, told in metrics.items()]
    about = [(f"{r['pairs']['rows']:,} pairs, {r['pairs']['how']}") for r in able]
    lines = list(zip(able, about, table(able, columns), strict=True))
    return {
        "rows": lines,
        "columns": columns,
        "words": [(name, told["words"]) for name, told in metrics.items()],
        "notes": list(notes),
    }


def _column(name: str, told: Mapping[str, Any]) -> Column:
    def cell(row: Row) -> Cell:
        one = get(row, "pairs", "metrics", name)
        if one is None:
            return Cell("—")
        value, _, interval = one["text"].partition(" (")
        return Cell(value, interval.rstrip(")"), one["words"])

    def value(row: Row) -> tuple[float, float]:
        one = get(row, "pairs", "metrics", name) or {}
        low, high = decode(one.get("low")), decode(one.get("high"))
        return decode(one.get("value")), (high - low) / (2 * Z95) if low < high else 0.0

    less = {"less": True, "more": False}.get(told["better"])
    return Column(name, told["words"], cell, value, less)
