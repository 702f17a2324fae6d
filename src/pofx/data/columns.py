"""The columns of a table that was read: which stay, of which type each is, and all rows as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pofx.core.errors import EmptyData
from pofx.core.spelling import abridged
from pofx.data.blocks import BlockRows, ColumnFile
from pofx.data.raw import RawTable
from pofx.data.roles import no_column
from pofx.data.tabular import Spec, encode, infer
from pofx.spaces import Category, Column, Integer, Real, Table


def typed(
    raw: RawTable, types: Mapping[str, str], drop: Sequence[str], notes: list[str], in_file: bool = False
) -> tuple[Table, Any]:
    """The types of all columns that stay, and all rows [N, D]: a tensor, or BlockRows where they go into a file."""
    for what, named in (("types", types), ("drop", drop)):
        for name in named:
            if name not in raw.columns:
                raise no_column(name, raw.columns, what)
    specs = {c: Spec.parse(c, t) for c, t in types.items()}
    wanted = [c for c in raw.columns if c not in drop and not (c in specs and specs[c].kind == "drop")]
    file = ColumnFile(raw.n) if in_file else None
    x = torch.empty(0 if in_file else raw.n, len(wanted), dtype=torch.float64)
    columns: list[Column] = []
    rounded: dict[str, int] = {}
    codes: list[str] = []
    for name in wanted:
        array = raw.columns[name]()
        if name in raw.types and name not in specs:
            column = raw.types[name]
            values = encode(column, array)
        else:
            found = infer(name, array, specs.get(name))
            if found.note:
                notes.append(found.note)
            if found.code:
                codes.append(f"{name} ({found.code!r})")
            if found.column is None or found.values is None:
                continue
            column, values = found.column, found.values
            if found.rounded:
                rounded[name] = found.rounded
        if file is not None:
            file.append(values)
        else:
            x.numpy()[:, len(columns)] = values
        if isinstance(column, Integer) and column.date and raw.n > 2 and (np.diff(values) >= 0).all():
            notes.append(f"Rows are in order of {name!r}, yet split at random: test rows have neighbours in training.")
        columns.append(column)
    if not columns:
        raise EmptyData("No column is left.", "Drop fewer columns, or declare types for those that were left out.")
    grids = [c for c in columns if isinstance(c, Real) and c.step is not None and c.name not in {*specs, *raw.types}]
    for title, items in (
        ("Constant", [f"{c.name} ({c.values[0]})" for c in columns if isinstance(c, Category) and len(c.values) == 1]),
        (
            "Values repeat, so these are counted at their stored resolution, not given a density",
            [f"{c.name} ({c.step:.6g})" for c in grids],
        ),
        (
            "On no common grid, so values were rounded to a resolution (change it with --types COLUMN=real:STEP)",
            [f"{count} of {name}" for name, count in rounded.items()],
        ),
        ("Codes by their spelling, so not taken for numbers (they are with --types COLUMN=integer or real)", codes),
    ):
        if items:
            notes.append(f"{title}: {abridged(items, 12)}.")
    return Table(tuple(columns)), x[:, : len(columns)] if file is None else BlockRows(file, tuple(range(len(columns))))
