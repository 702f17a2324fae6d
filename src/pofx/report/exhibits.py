"""Samples beside data: images as sheets; texts; sounds that play; table rows, marginals and pairs of columns."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from pofx.core.space import Space
from pofx.core.spelling import shown, visible
from pofx.data.audio import pcm, wav
from pofx.data.tabular import show
from pofx.report import plots
from pofx.report.leaderboard import duration
from pofx.spaces import Audio, Category, Column, Image
from pofx.train.checkpoint import read_arrays

Array = np.ndarray[Any, np.dtype[Any]]
Rows = Mapping[str, Array]  # x [N, *E], and c, label, train_x where there are any

MOST_COLUMNS = 24  # whose marginals are drawn
BINS = 24


def load_rows(path: Path) -> Rows:
    """The arrays of an .npz file; empty where there is none. Raises CorruptCheckpoint."""
    return read_arrays(path) if path.exists() else {}


def beside(samples: Mapping[str, Path], name: str) -> dict[str, Rows]:
    """What every family drew besides its ``samples``, under that name; of those that have it."""
    found = {family: load_rows(path.with_name(f"{name}.npz")) for family, path in samples.items()}
    return {family: arrays for family, arrays in found.items() if "x" in arrays}


@singledispatch
def exhibit(space: Space, data: Rows, samples: Mapping[str, Rows], context: Space | None) -> dict[str, Any]:
    """What the page shows of held-out data and of every family's samples, under the name of a part of the page.

    The parts: "table" (a ``Tabular``), "texts" (``Written``), "sounds" (``Heard``), "sheets" (``Sheet``, a PNG or any
    drawing). An open function: a space that is seen otherwise adds its own case. By default columns are compared, and
    what has none is spelt.
    """
    if space.columns:
        return {"table": tabular(space, data, samples, context)} if "x" in data else {}
    return {"texts": texts(space, data, samples)}


@exhibit.register
def _(space: Image, data: Rows, samples: Mapping[str, Rows], context: Space | None) -> dict[str, Any]:
    return {"sheets": sheets(space, data, samples, context)}


@exhibit.register
def _(space: Audio, data: Rows, samples: Mapping[str, Rows], context: Space | None) -> dict[str, Any]:
    return {"sounds": sounds(space, data, samples, context)}


def _each(
    make: Callable[[str, Rows, str, bool], Any], data: Rows, samples: Mapping[str, Rows], of_data: str, of_samples: str
) -> list[Any]:
    """Of the data first, then of the samples of every family; with the words for either."""
    every = [("data", data, of_data, True), *((name, found, of_samples, False) for name, found in samples.items())]
    return [make(*one) for one in every if "x" in one[1]]


# -- images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """Images of one origin: the PNG as a data URI, or a drawing in its place, and what it shows."""

    name: str
    png: str
    caption: str
    data: bool = False
    svg: Markup | None = None


def sheets(space: Image, data: Rows, samples: Mapping[str, Rows], context: Space | None) -> list[Sheet]:
    """Held-out images first, then as many samples of every family."""
    columns = max(2, min(10, 330 // (space.width + 1)))
    rows = max(2, min(8, 270 // (space.height + 1)))

    def sheet(name: str, found: Rows, caption: str, is_data: bool) -> Sheet:
        count = rows * columns
        x = found["x"][:count]
        if context is not None and context.values and "c" in found:  # by class, so that rows can be compared
            x = x[np.argsort(found["c"][: len(x)], kind="stable")]
        few = f"{len(x)} {caption}" if len(x) < count else caption
        return Sheet(name, plots.montage(x, space.levels, rows, columns), few, is_data)

    return _each(sheet, data, samples, "held-out images", "samples")


# -- texts -------------------------------------------------------------------------------------------------

SHOWN_TEXTS, SHOWN_CHARACTERS = 4, 700
BITS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0)  # between shades of surprise


@dataclass(frozen=True)
class Written:
    """Texts of one origin."""

    name: str
    caption: str
    texts: list[str]
    data: bool = False


@dataclass(frozen=True)
class Stretch:
    """A stretch of a text: as it is shown, what is told of it, and its shade (0 .. len(BITS))."""

    text: str
    about: str
    shade: int


def texts(space: Space, data: Rows, samples: Mapping[str, Rows]) -> list[Written]:
    """Held-out texts first, then as many samples of every family, each as far as it can be read at a glance."""

    def some(name: str, found: Rows, caption: str, is_data: bool) -> Written:
        spelt = [visible(space.spell(torch.from_numpy(row))) for row in found["x"][:SHOWN_TEXTS]]
        short = [t if len(t) <= SHOWN_CHARACTERS else f"{t[:SHOWN_CHARACTERS]} …" for t in spelt]
        return Written(name, caption, short, is_data)

    return _each(some, data, samples, "held-out texts", "samples")


def shades(text: Sequence[tuple[str, float]]) -> list[Stretch]:
    """Stretches of a text with their surprise in bits."""
    return [
        Stretch(shown(t), f"{shown(t).strip() or 'space'}: {bits:.2f} bits", sum(bits >= b for b in BITS))
        for t, bits in text
    ]


# -- sounds ------------------------------------------------------------------------------------------------

SHOWN_SOUNDS, SHOWN_SECONDS = 4, 3.0


@dataclass(frozen=True)
class Clip:
    """A sound that plays: the WAV file as a data URI, its waveform, and what is told of it."""

    wav: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Heard:
    """Sounds of one origin."""

    name: str
    clips: list[Clip]
    data: bool = False


def sounds(space: Audio, data: Rows, samples: Mapping[str, Rows], context: Space | None) -> list[Heard]:
    """Held-out sounds first, then as many samples of every family, each for ``SHOWN_SECONDS`` at most."""

    def some(name: str, found: Rows, caption: str, is_data: bool) -> Heard:
        clips = []
        for i, row in enumerate(found["x"][:SHOWN_SOUNDS]):
            given = "".join(f", {value}" for value in _given(context, found, i))
            clips.append(clip(space, row, name, f"{caption} {i + 1}{given}, "))
        return Heard(name, clips, is_data)

    return _each(some, data, samples, "held-out sound", "sample")


def clip(space: Audio, row: Array, name: str, caption: str) -> Clip:
    """The first ``SHOWN_SECONDS`` of a sound [L]; how long it is, is added to what is told of it."""
    whole = pcm(space, torch.from_numpy(row))
    short = whole[: math.ceil(SHOWN_SECONDS * space.rate)]
    first = "the first " if len(short) < len(whole) else ""
    about = f"{caption}{first}{duration(len(short) / space.rate)}"
    uri = "data:audio/wav;base64," + base64.b64encode(wav(short, space.rate)).decode()
    return Clip(uri, plots.waveform(short, f"Waveform of {name}: {about}"), about)


# -- tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marginal:
    """One column of one family: the drawing, and the total variation distance between the histograms."""

    column: str
    svg: Markup
    distance: float
    low: str
    high: str


@dataclass(frozen=True)
class Pair:
    columns: tuple[str, str]
    data: Markup
    model: Markup


@dataclass(frozen=True)
class Exhibit:
    """What a family's samples look like beside the data."""

    name: str
    few: int | None  # how many samples there are, where the data has more rows
    rows: list[list[str]]
    marginals: list[Marginal]
    pairs: list[Pair]
    distances: list[float]  # of every column that is drawn


@dataclass(frozen=True)
class Tabular:
    """Table samples: the heads, rows of the data, one exhibit per family, and what training rows would reach."""

    columns: list[str]
    drawn: list[str]
    data_rows: list[list[str]]
    exhibits: list[Exhibit]
    reference: list[float] | None


def tabular(
    space: Space, data: Rows, samples: Mapping[str, Rows], context: Space | None, show_rows: int = 6
) -> Tabular:
    """Compare the samples of every family with held-out rows, column by column and pair by pair."""
    drawn = list(space.columns[:MOST_COLUMNS])
    x = _flat(data, "x")
    bins = [_bins(column, x[:, j]) for j, column in enumerate(drawn)]
    truth = [_frequencies(b, x[:, j]) for j, b in enumerate(bins)]
    pairs = _pairs(space, x)

    def spelled(found: Rows) -> list[list[str]]:
        return [_given(context, found, i) + _spell(space, row) for i, row in enumerate(_flat(found, "x")[:show_rows])]

    exhibits = []
    for name, found in samples.items():
        if "x" not in found:
            continue
        y = _flat(found, "x")
        model = [_frequencies(b, y[:, j]) for j, b in enumerate(bins)]
        distances = [_distance(p, q) for p, q in zip(truth, model, strict=True)]
        marginals = [
            Marginal(c.name, plots.marginal(p, q, f"{c.name}: data and {name}"), d, *_ends(c, x[:, j]))
            for j, (c, p, q, d) in enumerate(zip(drawn, truth, model, distances, strict=True))
        ]
        few = len(y) if len(y) < len(x) else None
        exhibits.append(Exhibit(name, few, spelled(found), marginals, _draw_pairs(space, pairs, x, y, name), distances))
    reference = None
    if "train_x" in data:
        t = _flat(data, "train_x")
        reference = [_distance(p, _frequencies(b, t[:, j])) for j, (p, b) in enumerate(zip(truth, bins, strict=True))]
    heads = _given_heads(context) + [c.name for c in space.columns]
    return Tabular(heads, [c.name for c in drawn], spelled(data), exhibits, reference)


def _flat(rows: Rows, name: str) -> Array:
    """Rows [N, *E] with a number per column [N, D]."""
    return rows[name].reshape(len(rows[name]), -1).astype(float)


def _spell(space: Space, row: Array) -> list[str]:
    return [show(c, float(v)) or "–" for c, v in zip(space.columns, row, strict=True)]


def _given_heads(context: Space | None) -> list[str]:
    if context is None:
        return []
    return ["given class"] if context.values else [f"given {c.name}" for c in context.columns]


def _given(context: Space | None, found: Rows, i: int) -> list[str]:
    return [] if context is None or "c" not in found or not context.columns else _spell(context, _flat(found, "c")[i])


def _bins(column: Column, values: Array) -> Callable[[Array], Array]:
    """A map of values to bin numbers, laid by the data; a missing value has a bin of its own, the last."""
    present = values[~np.isnan(values)]
    if isinstance(column, Category):
        counts = np.bincount(present.astype(int), minlength=len(column.values))
        order = np.argsort(-counts, kind="stable")[: BINS - 1]
        place = np.full(len(column.values), len(order))  # the rare ones share a bin
        place[order] = np.arange(len(order))
        return lambda v: np.where(np.isnan(v), BINS, place[np.nan_to_num(v).astype(int)])
    low, high = (0.0, 1.0) if len(present) == 0 else np.quantile(present, [0.005, 0.995])
    if column.step is not None:
        # whole grid points in every bin: else integers beat against the bins
        points = max(1, math.ceil(((high - low) / column.step + 1) / BINS))
        low, width = low - column.step / 2, points * column.step
    else:
        width = max(high - low, 1e-12) / BINS
    return lambda v: np.where(np.isnan(v), BINS, np.clip(np.floor((v - low) / width), 0, BINS - 1)).astype(int)


def _frequencies(bins: Callable[[Array], Array], values: Array) -> Array:
    return np.bincount(bins(values), minlength=BINS + 1) / max(1, len(values))


def _distance(p: Array, q: Array) -> float:
    """Total variation: the largest difference of probability over all sets of bins."""
    return float(np.abs(p - q).sum() / 2)


def _ends(column: Column, values: Array) -> tuple[str, str]:
    present = values[~np.isnan(values)]
    if isinstance(column, Category):
        return f"{len(column.values)} values", ""
    if len(present) == 0:
        return "", ""
    low, high = np.quantile(present, [0.005, 0.995], method="nearest")
    return show(column, float(low)), show(column, float(high))


def _pairs(space: Space, x: Array, most: int = 3) -> list[tuple[int, int]]:
    """The most dependent pairs of numeric columns, by Spearman's rank correlation."""
    numeric = [
        j
        for j, c in enumerate(space.columns)
        if not isinstance(c, Category) and len(np.unique(x[~np.isnan(x[:, j]), j])) > 4
    ][:30]
    if len(numeric) < 2:
        return []
    found = []
    for a, j in enumerate(numeric):
        for k in numeric[a + 1 :]:
            both = ~np.isnan(x[:, j]) & ~np.isnan(x[:, k])
            ranks = [_ranks(x[both, i]) for i in (j, k)]
            varied = both.sum() > 2 and all(np.ptp(r) > 0 for r in ranks)
            found.append((abs(float(np.corrcoef(np.stack(ranks))[0, 1])) if varied else 0.0, j, k))
    return [(j, k) for _, j, k in sorted(found, key=lambda f: -f[0])[:most]]


def _ranks(values: Array) -> Array:
    """Ranks, ties at their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - counts / 2)[place]


def _draw_pairs(space: Space, pairs: Sequence[tuple[int, int]], x: Array, y: Array, name: str) -> list[Pair]:
    out = []
    for j, k in pairs:
        limits = []
        for i in (j, k):
            low, high = np.quantile(x[~np.isnan(x[:, i]), i], [0.005, 0.995])
            pad = 0.08 * max(high - low, 1e-12)
            limits += [low - pad, high + pad]
        both = (space.columns[j].name, space.columns[k].name)
        n = min(len(x), len(y), 600)
        drawn = [
            plots.scatter(v[:n][:, [j, k]], tuple(limits), role, f"{both[1]} against {both[0]}: {what}")
            for v, role, what in ((x, "data", "data"), (y, "model", name))
        ]
        out.append(Pair(both, drawn[0], drawn[1]))
    return out
