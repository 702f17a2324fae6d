"""What of a source is modelled and what is given: spaces, and how to take rows of each."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.space import Space
from pofx.core.spelling import abridged, meant
from pofx.data.blocks import BlockRows
from pofx.data.ragged import RawRagged
from pofx.data.raw import Raw, RawTable
from pofx.data.tabular import spell
from pofx.spaces import Category, Column, Label, Real, Table

MOST_CLASSES = 1000

Take: TypeAlias = Callable[[Tensor], Any]  # row numbers [n] -> those rows [n, *E]


@dataclass(frozen=True)
class Roles:
    """What is modelled and what is given: spaces, and how to take rows of each."""

    space: Space
    context: Space | None
    take_x: Take
    take_c: Take | None
    labels: tuple[str, ...] | None
    code: Tensor | None  # [N] the class of each row


def roles_of(space: Space, x: Any, raw: Raw, label: str | None, target: str | None, given: list[str] | None) -> Roles:
    names = [c.name for c in space.columns] if isinstance(raw, RawTable) else []
    if isinstance(raw, RawRagged) and raw.classes is not None:  # an array of classes by its own name
        label = None if label == raw.classes else label
        given = ["label"] if given == [raw.classes] else given
    column = target if target not in (None, "label") else label  # the column that holds the classes
    if column is None and raw.label is None and target == "label" and "label" in names:
        column = "label"
    labels: tuple[str, ...] | None = None
    code: Tensor | None = None
    if column is not None:
        if column not in names:
            raise no_column(column, [*names, *raw.beside], "label" if column == label else "target")
        labels, code = _classes(space.columns[names.index(column)], x[:, names.index(column)])
    elif raw.label is not None:
        labels, code = _factor(raw.label)
    if labels is None and (target == "label" or (given == ["label"] and "label" not in names)):
        raise UsageError(
            "The source has no labels.",
            "Name the column that holds them (--label COLUMN), or keep the files of each class in a folder of its own.",
        )

    take = x.__getitem__ if isinstance(x, Tensor) else x.take

    def rest(without: Container[str | None]) -> tuple[Space, Take]:
        if not names:
            return space, take
        return _columns(space, x, [n for n in names if n not in without])

    if target is not None:
        assert labels is not None
        assert code is not None
        context, take_c = rest([column])
        return Roles(Label(labels), context, code.__getitem__, take_c, labels, code)
    if given == ["label"] and labels is not None and code is not None:
        kept, take_x = rest([column])
        return Roles(kept, Label(labels), take_x, code.__getitem__, labels, code)
    if given is not None:
        if not names:
            raise UsageError(f"Only tables have columns to be given ({', '.join(given)}).", "Give 'label'.")
        for name in given:
            if name not in names:
                raise no_column(name, names, "given")
        context, take_c = _columns(space, x, given)
        kept, take_x = rest(given)
        return Roles(kept, context, take_x, take_c, labels, code)
    return Roles(space, None, take, None, labels, code)


def _columns(space: Space, x: Any, names: list[str]) -> tuple[Table, Take]:
    """The sub-table of ``names``, and how to take its rows."""
    if not names:
        raise UsageError("No column is left to model.", "Give fewer columns.")
    by_name = {c.name: j for j, c in enumerate(space.columns)}
    places = [by_name[n] for n in names]
    sub, index = Table(tuple(space.columns[j] for j in places)), torch.tensor(places)
    return sub, x.of(places).take if isinstance(x, BlockRows) else lambda i: x[i[:, None], index]


def _classes(column: Column, values: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """The classes that a column holds and each row's class [N]; missing is a class of its own."""
    if isinstance(column, Category):
        labels, code = list(column.values), values.nan_to_num(len(column.values)).long()
    else:
        distinct = values[~values.isnan()].unique()
        if (isinstance(column, Real) and column.step is None) or len(distinct) > MOST_CLASSES:
            raise UsageError(
                f"Column {column.name!r} holds numbers ({len(distinct)} distinct), not classes.",
                f"Choose another column, or declare it: --types {column.name}=category.",
            )
        labels = [spell(float(v)) for v in distinct]
        code = torch.where(values.isnan(), len(labels), torch.searchsorted(distinct, values.contiguous()))
    if values.isnan().any():
        labels.append("(missing)")
    return tuple(labels), code


def _factor(label: Any) -> tuple[tuple[str, ...], Tensor]:
    """Class names (or numbers) [N] as sorted spellings and codes."""
    distinct, code = np.unique(label, return_inverse=True)
    return tuple(str(v) for v in distinct.tolist()), torch.from_numpy(code.reshape(-1).astype(np.int64))


def no_column(name: str, known: Iterable[str], what: str) -> UsageError:
    known = list(known)
    otherwise = f"Columns: {abridged(known, 20)}." if known else "The source has no columns: leave it out."
    return UsageError(f"There is no column {name!r} ({what}).", meant(name, known, otherwise))
