"""Trajectories as models of actions see them: the columns of a step apart, whole or in chunks.

given_steps     p(the other columns | these), sequence by sequence: a world model given actions (``rssm``)
action_chunks   p(the next k actions | the other columns now), at every step: a policy (``act``)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Several

import torch
from torch import Tensor

from pofx.core.errors import EmptyData, UsageError
from pofx.core.spelling import meant
from pofx.data.parts import Data, Part
from pofx.spaces import Real, Reals, Sequence, Table


def given_steps(data: Data, columns: Several[str]) -> Data:
    """The same sequences as p(the other columns of every step | these): both are sequences of the same length.

    Raises UsageError for data that are no sequences without a context, and for columns that they have not.
    """
    space, given, rest = _apart(data, columns)

    def part(p: Part) -> Part:
        x = p.read().x
        return dataclasses.replace(p, x=x[..., rest], c=x[..., given], before=None)

    named = [tuple(space.step.columns[j] for j in places) for places in (rest, given)]
    own, other = (dataclasses.replace(space, step=Table(some)) for some in named)
    return _made(data, own, other, part)


def action_chunks(data: Data, actions: Several[str], length: int) -> Data:
    """Every step that at least ``length`` steps are left from, as p(its next actions | its other columns).

    A datum is the columns ``actions`` of the step and of those after it, float64 [length, A], its context a row of the
    others. The chunks of a sequence overlap and are of the part that it is of.

    Raises UsageError as ``given_steps`` and for actions that are not real numbers, EmptyData where a part has no
    sequence of that length.
    """
    space, given, rest = _apart(data, actions)
    for j in given.tolist():
        column = space.step.columns[j]
        if not isinstance(column, Real) or column.step is not None or column.nullable:
            raise UsageError(f"{column} is no column of real numbers.", f"Declare it: types {column.name}=real.")
    if length < 1:
        raise UsageError(f"A chunk of {length} steps holds no action.", "Give 1 or more.")

    def part(p: Part) -> Part:
        rows = p.read().x
        steps = [row[:n] for row, n in zip(rows, space.lengths(rows).tolist(), strict=True) if n >= length]
        if not steps:
            raise EmptyData(f"No sequence of a part has {length} steps.", "Give shorter chunks, or more data.")
        x = torch.cat([s[:, given].unfold(0, length, 1).mT for s in steps])
        return Part(x, torch.cat([s[: len(s) - length + 1, rest] for s in steps]))

    seen = Table(tuple(space.step.columns[j] for j in rest))
    return _made(data, Reals((length, len(given))), seen, part)


def _apart(data: Data, columns: Several[str]) -> tuple[Sequence, Tensor, Tensor]:
    """The space, and the places in a step of these columns and of the others."""
    space = data.space
    if not isinstance(space, Sequence) or data.context is not None:
        raise UsageError(f"{data.name} holds no sequences of rows without a context.", "Load trajectories.")
    names = [c.name for c in space.step.columns]
    for name in columns:
        if name not in names:
            raise UsageError(f"A step has no column {name!r}.", meant(name, names, f"Columns: {', '.join(names)}."))
    given, rest = ([j for j, name in enumerate(names) if (name in columns) == own] for own in (True, False))
    if not given or not rest:
        raise UsageError(f"{len(given)} of {len(names)} columns are named.", "Name some, and leave some.")
    return space, torch.tensor(given), torch.tensor(rest)


def _made(data: Data, space: Sequence | Reals, context: Sequence | Table, part: object) -> Data:
    assert callable(part)
    parts = {name: part(getattr(data, name)) for name in ("train", "valid", "test")}
    return dataclasses.replace(data, space=space, context=context, labels=None, dependent=(), **parts)
