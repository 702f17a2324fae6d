"""Models that go from noise to data: quality over steps, the terms of bounds, draws by guidance, ways in the plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pofx.core.likelihood import KINDS, SYMBOL, with_error
from pofx.core.space import Space
from pofx.evaluate.likelihood import decode
from pofx.evaluate.recommend import amount, get
from pofx.report import plots
from pofx.report.exhibits import Rows, beside
from pofx.report.leaderboard import duration

FRAMES = 30  # of a way, at most
BEHIND = 400  # held-out rows behind the ways

Row = Mapping[str, Any]
TERMS = {"prior": "prior", "path": "path", "reconstruction": "reconstruction", "codes": "categories, gaps, atoms"}


def parts(
    space: Space, context: Space | None, rows: Sequence[Row], samples: Mapping[str, Path], data: Rows
) -> dict[str, Any]:
    """What the page shows, by the name of the part; empty where no family has it, or an older folder has not."""

    figures = {r["family"]: r for r in rows}
    grids = beside(samples, "guided")
    return {
        "steps": over_steps(rows),
        "bounds": bounds(rows),
        "guided": [
            grid(space, context, name, figures[name]["guided"], found)
            for name, found in grids.items()
            if get(figures.get(name, {}), "guided", "names") is not None
        ],
        "ways": [
            (name, way(name, found["x"], data))
            for name, found in beside(samples, "trajectories").items()
            if "x" in data
        ],
    }


# -- quality over steps --------------------------------------------------------------------------------------


def over_steps(rows: Sequence[Row]) -> dict[str, Any] | None:
    """How well draws are told from data, over the steps of the sampler and over the seconds of a draw."""
    found = {r["family"]: r["steps"] for r in rows if get(r, "steps", "points")}
    if not found:
        return None
    floor = next(iter(found.values()))["floor"]  # of the same rows in all families
    drawn = [
        plots.descents(
            {name: [(p[at], p["accuracy"], p["se"]) for p in f["points"]] for name, f in found.items()},
            (floor["accuracy"], floor["se"]),
            (label, "C2ST: share told from data"),
            told,
            title=f"Told from data over {label}",
        )
        for at, label, told in (
            ("steps", "steps of the sampler", amount), ("seconds", "time of a draw, many at once", duration),
        )
    ]  # fmt: skip
    about = [f"{name}: {f['sampler']}, {f['points'][0]['n']} draws" for name, f in found.items()]
    svgs = [svg for svg in drawn if svg]
    return {"plots": svgs, "about": "; ".join(about)} if svgs else None


# -- terms of bounds -----------------------------------------------------------------------------------------


def bounds(rows: Sequence[Row]) -> dict[str, Any] | None:
    """A line per family: every term of its bound in nats per datum, and in bits per unit of it."""
    found = {r["family"]: r for r in rows if get(r, "terms", "terms")}
    if not found:
        return None
    named = dict.fromkeys(name for r in found.values() for name in r["terms"]["terms"])
    names = [*(n for n in TERMS if n in named), *(n for n in named if n not in TERMS)]

    def cell(row: Row, term: Row | None) -> tuple[str, str]:
        if term is None:
            return "—", ""
        nats = decode(term["nats"])
        bits = -nats / math.log(2) / row["likelihood"]["dims"]
        return with_error(nats, term["se"]), f"{bits:.3g} bits/{row['likelihood']['unit']}"

    lines = [
        (name, r["terms"]["request"], r["terms"]["n"], [
            *(cell(r, r["terms"]["terms"].get(term)) for term in names), cell(r, r["terms"]),
        ])
        for name, r in found.items()
    ]  # fmt: skip
    return {"heads": [*(TERMS.get(n, n) for n in names), "the bound"], "rows": lines}


# -- draws by guidance ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """One draw of each context (columns) at each scale: the scale in words, and a strip of images as a data URI.

    Attributes:
        contexts: in words; none where they are images, which are then the first of the strips.
        nats: of each true image, given its context and given none, in words.
    """

    name: str
    contexts: list[str]
    strips: list[tuple[str, str]]
    nats: list[tuple[str, str]]


def grid(space: Space, context: Space | None, name: str, about: Row, found: Rows) -> Grid:
    assert context is not None
    x = found["x"].reshape(1 + len(about["scales"]), -1, *found["x"].shape[1:])
    words = {0.0: "any", 1.0: "as trained"}
    rows = ["truth", *(words.get(s, f"scale {s:g}") for s in about["scales"])]
    strips = [
        (row, plots.montage(strip, space.symbols or 2, 1, x.shape[1])) for row, strip in zip(rows, x, strict=True)
    ]
    if context.pixels:
        strips.insert(0, ("given", plots.montage(found["c"][: x.shape[1]], context.symbols or 2, 1, x.shape[1])))
    sign = SYMBOL[KINDS[about["kind"]]]
    nats = [
        (f"{sign} {decode(a):.0f}", f"{sign} {decode(b):.0f}")
        for a, b in zip(about["given"], about["none"], strict=True)
    ]
    return Grid(name, about["names"], strips, nats)


# -- ways in the plane ---------------------------------------------------------------------------------------


def way(name: str, paths: Any, data: Rows) -> Markup:
    """Ways [n, K, 2], of whose K some are drawn, the first and the last among them."""
    some = np.unique(np.linspace(0, paths.shape[1] - 1, FRAMES).round().astype(int))
    return plots.ways(paths[:, some], data["x"][:BEHIND], f"Ways from noise to draws of {name}")
