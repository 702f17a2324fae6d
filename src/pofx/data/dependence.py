"""Real columns that others determine (a2 = a, total = a + b): there a density can grow without limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pofx.data.blocks import BLOCK
from pofx.spaces import Integer, Real, Table

NDArray = np.ndarray[Any, Any]

ROWS = 4000  # drawn to look for relations; each that is found is verified on all rows
WIDEST = 1000  # numeric columns; of more, or where rows are few, only pairs are compared
TOLERANCE = 1e-4  # of what a relation leaves open, in units of the column's middle half
NEGLIGIBLE = 1e-6  # a coefficient between standardised columns


@dataclass(frozen=True)
class Relation:
    """``column`` is determined by the columns ``by``; ``words`` say how."""

    column: str
    by: tuple[str, ...]
    words: str


def relations(table: Table, x: Any) -> list[Relation]:
    """Which real columns with a density follow linearly from columns of numbers, within rounding; x [N, D].

    A later column follows from earlier ones, and columns that are counted come first. Found by the QR decomposition of
    the standardised columns, where a column that others determine leaves nothing on the diagonal.
    """
    density = [j for j, c in enumerate(table.columns) if isinstance(c, Real) and c.step is None]
    counted = [j for j, c in enumerate(table.columns) if isinstance(c, Integer) or (isinstance(c, Real) and c.step)]
    if not density or len(density) + len(counted) < 2:
        return []
    rows = np.sort(np.random.default_rng(0).choice(len(x), ROWS, replace=False)) if len(x) > ROWS else np.arange(len(x))
    order = np.array([*counted, *density])
    drawn = np.asarray(x[rows])
    values = drawn[:, order]
    whole = ~np.isnan(values).any(1)
    if whole.sum() < 2 * len(order) + 10:  # too few rows without a missing value: columns without one
        order, whole = order[~np.isnan(values).any(0)], np.ones(len(rows), bool)
    values = drawn[whole][:, order]
    varies = values.std(0) > 0 if len(values) >= 8 else np.zeros(len(order), bool)
    order, values = order[varies], values[:, varies]
    if not len(order):
        return []
    z = (values - values.mean(0)) / values.std(0)
    pairs = len(order) > WIDEST or len(z) < 2 * len(order) + 10
    found = _pairs(z) if pairs else _combinations(z)
    verified = (_relation(table, x, drawn, order[k], [order[i] for i in by]) for k, by in found if order[k] in density)
    return [r for r in verified if r is not None]


def _combinations(z: NDArray) -> list[tuple[int, list[int]]]:
    """Columns of z [N, D] that are sums of multiples of earlier ones, and of which."""
    left = np.abs(np.diag(np.linalg.qr(z, mode="r"))) / np.sqrt(len(z))
    free = np.flatnonzero(left > TOLERANCE)
    found = []
    for k in np.flatnonzero(left <= TOLERANCE):
        before = free[free < k]
        weights = np.linalg.lstsq(z[:, before], z[:, k], rcond=None)[0]
        found.append((int(k), before[np.abs(weights) > NEGLIGIBLE].tolist()))
    return found


def _pairs(z: NDArray) -> list[tuple[int, list[int]]]:
    """Columns of z [N, D] that equal an earlier one up to sign."""
    rounded = np.rint(1e3 * z[:20] * np.where(z[np.abs(z).argmax(0), np.arange(z.shape[1])] < 0, -1, 1)) + 0.0
    first: dict[bytes, int] = {}
    keys = [column.tobytes() for column in np.ascontiguousarray(rounded.T)]
    return [(k, [i]) for k, key in enumerate(keys) if (i := first.setdefault(key, k)) != k]


def _relation(table: Table, x: Any, drawn: NDArray, column: int, by: list[int]) -> Relation | None:
    """The relation in the columns' own units, if it holds in all rows that have all values."""
    rows = drawn[~np.isnan(drawn[:, [column, *by]]).any(1)]
    y, scale = rows[:, column], rows[:, by].std(0)
    middle = rows[:, by].mean(0)
    if not by or not (scale > 0).all():
        return None
    weights = np.linalg.lstsq((rows[:, by] - middle) / scale, y - y.mean(), rcond=None)[0] / scale
    constant = float(y.mean() - weights @ middle)
    unit = float(np.subtract(*np.quantile(y, [0.75, 0.25])))
    for i in range(0, len(x), BLOCK):
        block = np.asarray(x[i : i + BLOCK])
        left = np.abs(block[:, column] - block[:, by] @ weights - constant)
        if np.nanmax(left, initial=0.0) > TOLERANCE * unit:
            return None
    name, names = table.columns[column].name, tuple(table.columns[j].name for j in by)
    return Relation(
        name, names, _words(name, names, weights.tolist(), 0.0 if abs(constant) < TOLERANCE * unit else constant)
    )


def _words(name: str, by: tuple[str, ...], weights: list[float], constant: float) -> str:
    if len(by) > 4:
        return f"{name} follows from {len(by)} others ({', '.join(by[:3])}, …)"
    terms = [(f"{abs(w):.4g} " if abs(abs(w) - 1) > TOLERANCE else "") + n for w, n in zip(weights, by, strict=True)]
    terms += [f"{abs(constant):.4g}"] * (constant != 0)
    signs = ["-" if w < 0 else "+" for w in (*weights, constant)]
    if terms == [*by] and len(by) == 1 and signs[0] == "+":
        return f"{name} equals {by[0]}"
    head = ("-" if signs[0] == "-" else "") + terms[0]
    return f"{name} = " + " ".join([head, *(f"{s} {t}" for s, t in zip(signs[1:], terms[1:], strict=False))])
