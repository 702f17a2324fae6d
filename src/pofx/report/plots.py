"""Figures as inline SVG and PNG. All colours are roles, which the page's style sheet fills for light and dark.

Plots with axes are drawn by matplotlib (its object interface: no global state but the backend's fonts);
small multiples are a path or two, written directly, so that hundreds of them stay light.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from pofx.evaluate.recommend import amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]

# Role -> the stand-in that matplotlib draws with, replaced by var(--role) in the SVG.
ROLES = {
    "ink": "#010101", "soft": "#020202", "line": "#030303", "paper": "#040404", "accent": "#050505",
    "exact": "#060606", "lower": "#070707", "upper": "#080808", "estimate": "#090909",
}  # fmt: skip
ROLES |= {f"series{k}": f"#0a0a{k:02x}" for k in range(1, 9)}

KINDS = {  # kind -> (role, matplotlib marker): which side of the mark the truth may lie on
    "Exact": ("exact", "o"),
    "LowerBound": ("lower", "^"),
    "UpperBound": ("upper", "v"),
    "Estimate": ("estimate", "D"),
}
DASHES = ["-", (0, (4, 2)), (0, (1, 1.5))]


# -- plots with axes ---------------------------------------------------------------------------------------


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "pofx", "text.parse_math": False, "font.size": 9,
        "font.family": "DejaVu Sans", "axes.unicode_minus": True,
        "text.color": ROLES["ink"], "axes.labelcolor": ROLES["soft"], "axes.edgecolor": ROLES["line"],
        "xtick.color": ROLES["soft"], "ytick.color": ROLES["soft"], "grid.color": ROLES["line"], "grid.linewidth": 0.6,
        "axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 0, "ytick.major.size": 0,
        "xtick.minor.size": 0, "ytick.minor.size": 0, "axes.grid": True, "axes.axisbelow": True,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        yield figure, axes


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an <svg> element that scales with its place and takes the page's fonts and colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"font: ([\d.]+)px 'DejaVu Sans'[^;\"]*", r"font-size: \1px", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" class="plot" ', 1)
    for role, stand_in in ROLES.items():
        text = text.replace(stand_in, f"var(--{role})")
    return Markup(text)  # matplotlib escapes what it writes


@dataclass(frozen=True)
class Point:
    """A family on the frontier: mean nats per datum (of a kind, with its error) against a cost or speed."""

    name: str
    kind: str
    nats: float
    se: float
    at: float


def floor(values: Sequence[float]) -> float:
    """Where an axis of likelihoods may start: a few families far below the others must not flatten them."""
    found = np.array([v for v in values if math.isfinite(v)])
    if len(found) == 0:
        return -1.0
    top, middle = found.max(), np.median(found)
    return float(max(found.min(), top - 3 * (top - middle) - 1e-9 * abs(top)))


def frontier(points: Sequence[Point], label: str, *, less: bool, title: str) -> Markup | None:
    """Nats per datum against ``label`` on a log axis; a line joins the points that nothing beats in both.

    ``less``: less of the abscissa is better. Points far below the others stand at the bottom with their value.
    """
    points = [p for p in points if math.isfinite(p.at) and p.at > 0 and not math.isnan(p.nats)]
    if len(points) < 2 or not any(math.isfinite(p.nats) for p in points):
        return None
    low = floor([p.nats for p in points])
    top = max(p.nats for p in points if math.isfinite(p.nats))
    room = max(top - low, 1e-3 * abs(top), 1e-6)
    bottom = low - 0.12 * room
    with _figure(5.0, 3.7) as (figure, ax):
        ax.set_xscale("log")
        ats = [p.at for p in points]
        wide = max(math.log10(max(ats) / min(ats)), 0.5)
        ax.set_xlim(min(ats) * 10 ** (-0.08 * wide), max(ats) * 10 ** (0.16 * wide))
        ax.set_ylim(bottom - 0.04 * room, top + 0.12 * room)
        best = [p for p in points if not any(_beats(q, p, less) for q in points)]
        best.sort(key=lambda p: p.at)
        ax.plot(
            [p.at for p in best], [max(p.nats, bottom) for p in best], color=ROLES["accent"], lw=1.2, alpha=0.45,
            drawstyle="steps-post" if less else "steps-pre", zorder=1,
        )  # fmt: skip
        for p in points:
            role, marker = KINDS[p.kind]
            y, inside = max(p.nats, bottom), p.nats >= bottom
            if inside and math.isfinite(p.se):
                ax.plot([p.at] * 2, [max(bottom, y - 2 * p.se), y + 2 * p.se], color=ROLES[role], lw=1, alpha=0.6)
            ax.plot(
                [p.at], [y], marker=marker, ms=6.5, color=ROLES[role], mew=1.3, ls="",
                mfc=ROLES[role] if p in best else ROLES["paper"], zorder=3,
            )  # fmt: skip
        _log_ticks(ax.xaxis, wide)
        ax.set_xlabel(label)
        ax.set_ylabel("log p(x), nats per datum")
        names = [p.name if p.nats >= bottom else f"{p.name} (−{amount(-p.nats)})" for p in points]
        figure.draw_without_rendering()
        _place_labels(ax, [(p.at, max(p.nats, bottom)) for p in points], names)
        return _svg(figure, title)


def _log_ticks(axis: Axis, decades: float, told: Callable[[float], str] = amount) -> None:
    """Ticks as 300, 1k, 30k: every power of ten, and steps between where few powers are in sight."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: told(v)))
    axis.set_minor_formatter(NullFormatter())


def _beats(a: Point, b: Point, less: bool) -> bool:
    """At least as good in both, better in one; an upper bound promises nothing from below."""
    if a.kind == "UpperBound":
        return False
    x, y = (-a.at, -b.at) if less else (a.at, b.at)
    return x >= y and a.nats >= b.nats and (x, a.nats) != (y, b.nats)


def _place_labels(ax: Axes, at: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Names beside their points, each at the first place around that covers nothing (or the least)."""
    spots = ax.transData.transform(at)
    frame = ax.get_window_extent()
    height, taken = 12.0, [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    around = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1), (1, 2), (1, -2), (-1, 2), (-1, -2)]
    for (x, y), (px, py), name in zip(at, spots, names, strict=True):
        width = 5.6 * len(name) + 2

        def box(
            dx: int, dy: int, px: float = px, py: float = py, width: float = width
        ) -> tuple[float, float, float, float]:
            left = px + (8 if dx > 0 else -8 - width if dx < 0 else -width / 2)
            low = py + 11 * dy - height / 2
            return left, low, left + width, low + height

        def cost(place: tuple[int, int]) -> float:
            b = box(*place)
            covered = sum(
                max(0.0, min(b[2], t[2]) - max(b[0], t[0])) * max(0.0, min(b[3], t[3]) - max(b[1], t[1])) for t in taken
            )
            outside = max(0.0, frame.x0 - b[0]) + max(0.0, b[2] - frame.x1 - 20) + max(0.0, b[3] - frame.y1 - 8)
            return covered + 20 * outside + 40 * max(0.0, frame.y0 - b[1])

        dx, dy = min(around, key=cost)
        taken.append(box(dx, dy))
        ax.annotate(
            name, (x, y), (8 * dx, 11 * dy), textcoords="offset points", va="center", fontsize=8.5,
            ha=("center", "left", "right")[dx], annotation_clip=False,
        )  # fmt: skip


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], label: str, *, title: str) -> Markup | None:
    """Validation nats per datum over the seconds of training, named at their ends."""
    lines = {k: [p for p in v if math.isfinite(p[1])] for k, v in lines.items()}
    lines = {k: v for k, v in lines.items() if v}
    if not lines:
        return None
    ends = {k: v[-1][1] for k, v in lines.items()}
    low, top = floor(list(ends.values())), max(max(y for _, y in v) for v in lines.values())
    room = max(top - low, 1e-3 * abs(top), 1e-6)
    low, top = low - 0.35 * room, top + 0.06 * room
    with _figure(7.6, 3.9) as (figure, ax):
        ax.set_xlim(0, max(v[-1][0] for v in lines.values()) * 1.02)
        ax.set_ylim(low, top)
        _named(ax, {k: v for k, v in lines.items() if ends[k] >= low})
        ax.set_xlabel("seconds of training")
        ax.set_ylabel(label)
        return _svg(figure, title)


def figures(lines: Mapping[str, Sequence[tuple[float, float]]], label: str, *, title: str) -> Markup | None:
    """Several logged figures over the steps of training on one axis, named at their ends."""
    lines = {k: [p for p in v if math.isfinite(p[1])] for k, v in lines.items()}
    lines = {k: v for k, v in lines.items() if len(v) > 1}
    if not lines:
        return None
    with _figure(5.0, 3.4) as (figure, ax):
        low, top = (end(y for v in lines.values() for _, y in v) for end in (min, max))
        room = max(top - low, 1e-3 * abs(top), 1e-6)
        ax.set_xlim(0, max(v[-1][0] for v in lines.values()) * 1.02)
        ax.set_ylim(low - 0.06 * room, top + 0.06 * room)
        _named(ax, lines)
        ax.set_xlabel("steps of training")
        ax.set_ylabel(label)
        return _svg(figure, title)


def speeds(lines: Mapping[str, Sequence[tuple[float, float]]], what: str, *, title: str) -> Markup | None:
    """``what`` (steps, by the name of the data) per second over how many a draw has, named at their ends."""
    lines = {k: v for k, v in lines.items() if len(v) > 1}
    if not lines:
        return None
    xs, ys = ([math.log10(p[i]) for v in lines.values() for p in v] for i in (0, 1))
    room = max(0.0, 1 - (max(ys) - min(ys))) / 2 + 0.1  # a decade at least: noise must not fill the axis
    with _figure(5.0, 3.4) as (figure, ax):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(10 ** (min(xs) - 0.05), 10 ** (max(xs) + 0.05))
        ax.set_ylim(10 ** (min(ys) - room), 10 ** (max(ys) + room))
        _named(ax, lines)
        _log_ticks(ax.xaxis, max(xs) - min(xs))
        _log_ticks(ax.yaxis, max(ys) - min(ys) + 2 * room)
        ax.set_xlabel(f"{what} in one draw")
        ax.set_ylabel(f"{what} per second")
        return _svg(figure, title)


def descents(
    lines: Mapping[str, Sequence[tuple[float, float, float]]],
    real: tuple[float, float],
    labels: tuple[str, str],
    told: Callable[[float], str] = amount,
    *,
    title: str,
) -> Markup | None:
    """How well samples are told from data (with its error) over what they cost (log axis, ``told``), named at the ends.

    ``real``: the same of data against data, a line in a band of two standard errors.
    """
    lines = {k: v for k, v in lines.items() if len(v) > 1}
    if not lines:
        return None
    xs = [p[0] for v in lines.values() for p in v]
    wide = max(math.log10(max(xs) / min(xs)), 0.3)
    level, around = real[0], 2 * real[1]
    with _figure(5.0, 3.7) as (figure, ax):
        ax.set_xscale("log")
        ax.set_xlim(min(xs) * 10 ** (-0.04 * wide), max(xs) * 10 ** (0.04 * wide))
        ax.set_ylim(min(0.4, level - around), 1.02)
        ax.axhspan(level - around, level + around, color=ROLES["line"], alpha=0.5, lw=0)
        ax.axhline(level, color=ROLES["soft"], lw=1.2, ls=(0, (4, 2)))
        ax.annotate(
            "data against data", (0, level), (4, -3), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="top", fontsize=8.5, color=ROLES["soft"],
        )  # fmt: skip
        for x, y, se in (p for v in lines.values() for p in v):
            ax.plot([x, x], [y - 2 * se, y + 2 * se], color=ROLES["soft"], lw=0.8, alpha=0.5)
        _named(ax, {k: [p[:2] for p in v] for k, v in lines.items()}, marker="o")
        _log_ticks(ax.xaxis, wide, told)
        ax.set_xlabel(labels[0])
        ax.set_ylabel(labels[1])
        return _svg(figure, title)


def _named(ax: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], marker: str = "") -> None:
    """Lines in the colours of the series, the highest end first, each named at the right of the axes."""
    place = ax.transScale + ax.transLimits  # to fractions of the axes
    ends = {k: float(place.transform(v[-1])[1]) for k, v in lines.items()}
    shown = sorted(lines, key=lambda k: -ends[k])
    for i, (name, at) in enumerate(zip(shown, _spread([ends[k] for k in shown], 0.048, 0.0, 1.0), strict=True)):
        x, y = zip(*lines[name], strict=True)
        colour = ROLES[f"series{i % 8 + 1}"]
        dot = "o" if len(x) == 1 else marker
        ax.plot(x, y, color=colour, lw=1.7, ls=DASHES[i // 8 % 3], marker=dot, ms=4)
        ax.annotate(
            name, (x[-1], y[-1]), (1.03, at), textcoords="axes fraction", va="center", color=colour,
            annotation_clip=False, fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkB": 2},
        )  # fmt: skip


def _spread(values: Sequence[float], gap: float, low: float, top: float) -> list[float]:
    """Falling ``values`` moved apart until they are ``gap`` from each other, within the axis where that can be."""
    out = list(values)
    for i in range(1, len(out)):
        out[i] = min(out[i], out[i - 1] - gap)
    if out and out[-1] < low:
        out[-1] = low
        for i in range(len(out) - 2, -1, -1):
            out[i] = max(out[i], out[i + 1] + gap)
    return out


# -- small multiples -----------------------------------------------------------------------------------------


def interval(kind: str, value: float, se: float, low: float, top: float, title: str) -> Markup:
    """A likelihood on the common scale of a table: a mark with ±2 se, and an arrow to where a bound's truth may lie."""
    width, height, room = 150.0, 18.0, max(top - low, 1e-12)

    def x(v: float) -> float:
        return 8 + (width - 22) * min(max((v - low) / room, 0.0), 1.0)

    role = KINDS[kind][0]
    at, parts = x(value), []
    if value < low:  # off the scale
        parts.append(f'<path class="s-{role}" d="M8 4l-5 5l5 5" fill="none" stroke-width="1.6"/>')
    else:
        if math.isfinite(se):
            parts.append(f'<path class="s-{role}" d="M{x(value - 2 * se):.1f} 9H{x(value + 2 * se):.1f}"/>')
        if kind in ("LowerBound", "UpperBound"):
            d = 1 if kind == "LowerBound" else -1
            parts.append(
                f'<path class="s-{role} faint" d="M{at:.1f} 9h{9 * d}m{-3 * d} -3l{3 * d} 3l{-3 * d} 3" fill="none"/>'
            )
        circle = f'<circle class="f-{role}" cx="{at:.1f}" cy="9" r="4"/>'
        diamond = f'<path class="f-{role}" d="M{at - 4:.1f} 9l4 -4l4 4l-4 4z"/>'
        parts.append(diamond if kind == "Estimate" else circle)
    return _small("interval", width, height, "".join(parts), title)


def marginal(data: Array, model: Array, title: str) -> Markup:
    """Two histograms over the same bins: the data filled, the model as a line."""
    top = max(float(data.max()), float(model.max()), 1e-12)
    step = 100 / len(data)

    def steps(h: Array, close: bool) -> str:
        d = "".join(f"V{40 - 38 * v / top:.1f}H{(i + 1) * step:.2f}" for i, v in enumerate(h))
        return f"M0 40{d}{'V40z' if close else ''}"

    body = f'<path class="data" d="{steps(data, True)}"/><path class="model" d="{steps(model, False)}"/>'
    return _small("marginal", 100, 40, body, title, stretch=True)


def scatter(xy: Array, limits: tuple[float, float, float, float], role: str, title: str) -> Markup:
    """Points [N, 2] within (x low, x high, y low, y high)."""
    x0, x1, y0, y1 = limits
    x = 100 * (xy[:, 0] - x0) / max(x1 - x0, 1e-300)
    y = 100 - 100 * (xy[:, 1] - y0) / max(y1 - y0, 1e-300)
    inside = (x >= 0) & (x <= 100) & (y >= 0) & (y <= 100)
    d = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x[inside], y[inside], strict=True))
    return _small("scatter", 100, 100, f'<path class="{role}" d="{d}"/>', title)


def ways(paths: Array, data: Array, title: str) -> Markup:
    """Ways [n, K, 2] from noise (a dot in grey) to a draw (one in colour), over the data [M, 2]."""
    low, high = (f(np.concatenate([paths.reshape(-1, 2), data]), axis=0) for f in (np.min, np.max))
    room = np.maximum(high - low, 1e-300)

    def place(xy: Array) -> Array:
        return np.array([3, 97]) + np.array([94, -94]) * (xy - low) / room

    def dots(xy: Array) -> str:
        return "".join(f"M{a:.1f} {b:.1f}h0" for a, b in place(xy))

    lines = "".join("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in place(way)) for way in paths)
    body = "".join(
        f'<path class="{kind}" d="{d}"/>'
        for kind, d in (
            ("data", dots(data)), ("way", lines), ("from", dots(paths[:, 0])), ("model", dots(paths[:, -1])),
        )
    )  # fmt: skip
    return _small("scatter", 100, 100, body, title)


def line(xy: Sequence[tuple[float, float]], title: str) -> Markup:
    """One curve over its own range, the y axis clipped to where most of it lies."""
    points = np.array([p for p in xy if math.isfinite(p[1])])
    if len(points) < 2:
        return Markup("")
    x, y = points.T
    low, top = np.quantile(y, [0.0, 1.0]) if len(y) < 8 else np.quantile(y, [0.02, 0.98])
    px = 100 * (x - x[0]) / max(x[-1] - x[0], 1e-300)
    py = 38 - 36 * np.clip((y - low) / max(top - low, 1e-300), 0, 1)
    d = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px, py, strict=True))
    return _small("curve", 100, 40, f'<path class="model" d="{d}"/>', title, stretch=True)


def lines(values: Array, low: Array, high: Array, longest: int, title: str) -> Markup:
    """Columns of values [L, D] over the steps, each within its own range, of at most ``longest`` steps."""
    px = 100 * np.arange(len(values)) / max(longest - 1, 1)
    body = ""
    for k, (column, least, most) in enumerate(zip(values.T, low, high, strict=True)):
        py = 38 - 36 * (np.nan_to_num(column, nan=least) - least) / max(most - least, 1e-300)
        d = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px, py, strict=True))
        if len(values):
            body += f'<path class="model column{k % 8 + 1}" d="{d}"/>'
    return _small("curve", 100, 40, body, title, stretch=True)


def waveform(samples: Array, title: str, columns: int = 200) -> Markup:
    """The least and the greatest of 16-bit samples [L] in each of at most ``columns`` stretches of time."""
    parts = np.array_split(samples / 32768, max(1, min(columns, len(samples))))
    x, ends = 200 / len(parts), [(part.min(initial=1.0), part.max(initial=-1.0)) for part in parts if len(part)]
    points = [f"{(i + 0.5) * x:.4g} {20 - 19 * high:.1f}" for i, (_, high) in enumerate(ends)]
    points += [f"{(i + 0.5) * x:.4g} {20 - 19 * low:.1f}" for i, (low, _) in reversed([*enumerate(ends)])]
    return _small("waveform", 200, 40, f'<path d="M{"L".join(points)}z"/>' if points else "", title, stretch=True)


def bars(values: Sequence[float], title: str) -> Markup:
    """A bar per value from zero, in the order given."""
    top, step = max([*values, 1e-12]), 100 / max(1, len(values))
    body = "".join(
        f'<rect class="bar" x="{i * step + 0.1 * step:.2f}" width="{0.8 * step:.2f}"'
        f' y="{40 - 38 * v / top:.1f}" height="{38 * v / top:.1f}"/>'
        for i, v in enumerate(values)
    )
    return _small("marginal", 100, 40, body, title, stretch=True)


def _small(kind: str, width: float, height: float, body: str, title: str, stretch: bool = False) -> Markup:
    """An <svg> of the style sheet's class ``kind``; ``body`` holds numbers and our own class names only."""
    aspect = ' preserveAspectRatio="none"' if stretch else ""
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}"{aspect} role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


# -- images --------------------------------------------------------------------------------------------------


def montage(images: Array, levels: int, rows: int, columns: int) -> str:
    """The first images [N, C, H, W] of 0 .. levels-1 as one PNG, one pixel apart: a data URI."""
    from PIL import Image as Pillow

    n, c, h, w = images.shape
    n = min(n, rows * columns)
    rows = -(-n // columns)
    grey = (images[:n].astype(np.uint16) * 255 // max(levels - 1, 1)).astype(np.uint8)
    colour = grey[:, :3] if c >= 3 else np.repeat(grey[:, :1], 3, axis=1)
    sheet = np.zeros((rows * (h + 1) - 1, columns * (w + 1) - 1, 4), dtype=np.uint8)  # transparent between
    for k in range(n):
        top, left = k // columns * (h + 1), k % columns * (w + 1)
        sheet[top : top + h, left : left + w, :3] = colour[k].transpose(1, 2, 0)
        sheet[top : top + h, left : left + w, 3] = 255
    file = io.BytesIO()
    Pillow.fromarray(sheet, "RGBA").save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
