"""Trajectories as models of actions see them: the columns of a step apart, whole or in chunks.

given_steps     p(the other columns | these), sequence by sequence: a world model given actions (``rssm``)
action_chunks   p(the next k actions | the other columns now, or of the last steps), at every step: a policy (``act``)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Several
from typing import Literal

import torch
from torch import Tensor

from pofx.core.errors import EmptyData, UsageError
from pofx.core.spelling import meant
from pofx.data.parts import Data, Part
from pofx.spaces import Category, Column, Reals, Sequence, Table


def given_steps(data: Data, columns: Several[str]) -> Data:
    """The same sequences as p(the other columns of every step | these): both are sequences of the same length.

    Raises UsageError for data that are no sequences without a context, and for columns that they have not.
    """
    space, given, rest = _apart(data, columns)

    def part(p: Part) -> Part:
        return steps_apart(p, rest, given)

    named = [tuple(space.step.columns[j] for j in places) for places in (rest, given)]
    own, other = (dataclasses.replace(space, step=Table(some)) for some in named)
    return _made(data, own, other, part)


def action_chunks(
    data: Data,
    actions: Several[str],
    length: int,
    history: int = 1,
    *,
    hold: int = 0,
    kind: Literal["reals", "sequence"] = "reals",
) -> Data:
    """Every step that at least ``length`` steps are left from, as p(its next actions | its other columns).

    A datum is the columns ``actions`` of the step and of those after it, float64 [length, A], its context a row of the
    others. The chunks of a sequence overlap and are of the part that it is of, and have its number;
    shorter sequences are left out, and a note counts them.

    Args:
        history: how many steps are seen, this one and those before it. The context is then one row of the columns of
            all of them, this step's by their own names, the earlier ones' as ``NAME.t-1``, ``NAME.t-2``. Before its
            beginning a sequence stood as it began: its first step is repeated.
        hold: how many steps beyond its end a training sequence stays at its last action, so that its last steps have
            chunks, too (as Chi et al. 2023 pad it). Validation and test data have actions that were taken alone.
        kind: a chunk is "reals" [length, A], all at once (``diffusion-policy``, ``act``), or a "sequence" of steps, one
            after the other (``gpt``).

    Raises UsageError as ``given_steps`` and for actions that are not real numbers, EmptyData where a part has no
    sequence of that length.
    """
    space, given, rest = _apart(data, actions)
    if length < 1:
        raise UsageError(f"A chunk of {length} steps holds no action.", "Give 1 or more.")
    if history < 1:
        raise UsageError(f"A history of {history} steps shows nothing.", "Give 1 or more.")
    if not 0 <= hold < length:
        raise UsageError(f"A chunk of {length} steps holds its last action for none to {length - 1}.", "Give as many.")
    for j in given.tolist() if kind == "reals" else ():
        _check_real(space.step.columns[j])
    shorter = 0

    def part(p: Part) -> Part:
        nonlocal shorter
        p = _held(space, p.read(), hold) if p is data.train else p.read()
        shorter += int((space.lengths(p.x) < length).sum())
        return chunks(space, p, given, rest, length, history)

    columns = [space.step.columns[j] for j in rest]
    earlier = [dataclasses.replace(c, name=f"{c.name}.t-{k}") for k in range(1, history) for c in columns]
    own = Sequence(Table(tuple(space.step.columns[j] for j in given)), length=length)
    chunk = own if kind == "sequence" else Reals((length, len(given)))
    made = _made(data, chunk, Table((*columns, *earlier)), part)
    return dataclasses.replace(made, notes=(*made.notes, *_left_out(shorter, length)))


def steps_apart(p: Part, own: Tensor, given: Tensor) -> Part:
    """The same sequences with some columns of each step as x and others as context."""
    x = p.read().x
    return dataclasses.replace(p, x=x[..., own], c=x[..., given], before=None)


def chunks(space: Sequence, p: Part, acts: Tensor, rest: Tensor, length: int, history: int) -> Part:
    """Those of a part; ``acts``, ``rest``: places of columns in a step. Raises EmptyData where there are none."""
    x = p.read().x
    lengths = space.lengths(x)
    steps = [row[:n] for row, n in zip(x, lengths.tolist(), strict=True) if n >= length]
    if not steps:
        problem = f"No sequence of a part has {length} steps; its longest has {int(lengths.max())}."
        raise EmptyData(problem, "Give shorter chunks, or more data.")
    actions = torch.cat([s[:, acts].unfold(0, length, 1).mT for s in steps])
    c = torch.cat([_seen(s[:, rest], history)[: len(s) - length + 1] for s in steps])
    number = None if p.rows is None else p.rows.repeat_interleave((lengths - length + 1).clamp(min=0))
    return Part(actions, c, rows=number)


def _check_real(column: Column) -> None:
    """Raises UsageError for an action that a chunk of real numbers does not hold."""
    name = f"The action {column.name!r}"
    if isinstance(column, Category):
        raise UsageError(
            f"{name} is one of {len(column.values)} categories, and no number.", "Cut chunks as sequences: chunk_as."
        )
    if column.nullable:
        raise UsageError(f"{name} is missing in some steps.", "Fill it in there, or leave those episodes out.")
    if column.step is not None:
        raise UsageError(
            f"{name} is counted in steps of {column.step:g}; a density of real numbers has no bound there.",
            f"If it is no action, --drop {column.name}; if its steps are fine enough to be none, declare it: "
            f"--types {column.name}=real; or cut chunks as sequences: chunk_as.",
        )


def _held(space: Sequence, p: Part, hold: int) -> Part:
    """The same sequences, each with its last step ``hold`` times more."""
    lengths = space.lengths(p.x)[:, None]
    place = torch.arange(p.x.shape[1] + hold).expand(len(p), -1)
    longer = p.x[torch.arange(len(p))[:, None], place.minimum(lengths - 1).clamp(min=0)]
    return dataclasses.replace(p, x=longer.masked_fill((place >= lengths + hold)[..., None], space.fill))


def long_enough(index: Tensor, lengths: Tensor, chunk: int, notes: list[str]) -> Tensor:
    """The sequences [n] that a chunk fits into, of these; a note counts the others. Raises EmptyData where none is."""
    kept = index[lengths[index] >= chunk]
    if not len(kept):
        problem = f"No sequence has {chunk} steps; the longest has {int(lengths[index].max())}."
        raise EmptyData(problem, "Give shorter chunks, or more data.")
    notes += _left_out(len(index) - len(kept), chunk)
    return kept


def _left_out(count: int, chunk: int) -> list[str]:
    several = "sequences are" if count > 1 else "sequence is"
    return [f"{count} {several} shorter than a chunk of {chunk} steps, and so left out."] * (count > 0)


def _seen(steps: Tensor, history: int) -> Tensor:
    """Each step of a sequence [L, D] beside those before it [L, history D], the latest first."""
    now = torch.arange(len(steps))
    return torch.cat([steps[(now - k).clamp(min=0)] for k in range(history)], 1)


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
