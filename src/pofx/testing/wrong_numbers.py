"""Mistakes planted in pofx itself, which the checks of ``testing.checks_numbers`` must catch.

Each stood in pofx once, or in others: a function, what it was, and the checks that notice it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from pofx.core.comparison import Comparison
from pofx.core.likelihood import Exact
from pofx.data.parts import Part
from pofx.spaces import Category, Table, Text


@dataclass(frozen=True)
class Planted:
    """A mistake in place of a function.

    Attributes:
        name: of the mistake.
        target: the function, as ``unittest.mock.patch`` takes it.
        wrong: what stands in its place.
        caught_by: names in ``checks_numbers.NUMBERS``.
    """

    name: str
    target: str
    wrong: Callable[..., Any]
    caught_by: frozenset[str]

    @contextmanager
    def planted(self) -> Iterator[None]:
        with patch(self.target, self.wrong):
            yield


def sorted_head(part: Part, most: int, seed: int) -> Part:
    """The first rows of a part, which may be sorted."""
    return part[:most]


def undecided_by_infinity(
    a: Exact, b: Exact, *, z: float = 2.0, weight: Tensor | None = None, group: Tensor | None = None
) -> Comparison:
    """The mean difference and its error, as if log p = -inf were a number like others."""
    diff = (a.nats - b.nats).double()
    mean, se = diff.mean().item(), (diff.var() / len(diff)).sqrt().item()
    verdict: Any = "better" if mean > z * se else "worse" if mean < -z * se else "undecided"
    return Comparison(verdict, mean, se, 0, "")


def averaged_over_rows(move: Tensor, weight: Tensor) -> float:
    """What rows share, as if it were independent from row to row."""
    return float((weight * move).square().sum().sqrt())


def without_lengths(space: Text, x: Tensor) -> bytes:
    """Texts one after the other: nobody can tell where one ends."""
    return "".join(space.spell(row) for row in x).encode(errors="replace")


def without_quotes(space: Table, x: Tensor) -> str:
    """Cells of twelve digits with commas between, whatever they hold."""

    def cell(j: int, value: float) -> str:
        column = space.columns[j]
        if math.isnan(value):
            return ""
        return column.values[int(value)] if isinstance(column, Category) else f"{value:.12g}"

    return "".join(",".join(cell(j, v) for j, v in enumerate(row)) + "\n" for row in x.tolist())


@dataclass(frozen=True)
class Twisted(Planted):
    """A mistake around a function: ``wrong`` is called with the right one before its arguments."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        right = resolve_name(self.target)
        with patch(self.target, lambda *args, **how: self.wrong(right, *args, **how)):
            yield


def summed_over_probes(right: Any, field: Any, t: Tensor, z: Tensor, probe: Any, graph: bool) -> Any:
    """Hutchinson's estimate, as the sum over probes that should be their mean."""
    v, parts = right(field, t, z, probe, graph)
    return v, parts * len(parts)


def redrawn_probes(right: Any, field: Any, t: Tensor, z: Tensor, probe: Any, graph: bool) -> Any:
    """Other probes at every place: the solution of no one equation."""
    return right(field, t, z, None if probe is None else probe[..., torch.randperm(probe.shape[-1])], graph)


def opposite_sign(right: Any, *how: Any) -> Any:
    """The divergence of the flow that leads the other way: the same where volumes stay as they are."""
    v, parts = right(*how)
    return v, -parts


def without_prior(right: Any, *how: Any) -> Tensor:
    """The ends of a bound, without the divergence of the noisiest latent from its prior."""
    prior, last = right(*how)
    return torch.stack([0 * prior, last])


def mean_bytes(space: Text, x: Tensor) -> Tensor:
    """As many bytes as symbols have on average over the alphabet, whichever a text is of."""
    return space.lengths(x) * (len(space.alphabet.encode()) / len(space.alphabet) if space.alphabet else 1.0)


PLANTED = [
    Planted(
        "wrong: validation on a sorted head", "pofx.data.parts.Part.draw", sorted_head,
        frozenset({"validation sees every class"}),
    ),
    Planted(
        "wrong: impossible row undecided", "pofx.evaluate.likelihood.compare", undecided_by_infinity,
        frozenset({"impossible rows lose"}),
    ),
    Planted(
        "wrong: a shared error that is averaged over rows", "pofx.core.likelihood.shared_mean", averaged_over_rows,
        frozenset({"shared errors are not averaged"}),
    ),
    Planted(
        "wrong: texts without their boundaries called a bound", "pofx.evaluate.baselines.text_bytes", without_lengths,
        frozenset({"codes give their rows back"}),
    ),
    Planted(
        "wrong: cells without quotes called a bound", "pofx.evaluate.baselines.csv_text", without_quotes,
        frozenset({"codes give their rows back"}),
    ),
    Twisted(
        "wrong: a sum over probes for their mean", "pofx.transforms.ode.divergence", summed_over_probes,
        frozenset({"densities of a flow are covered"}),
    ),
    Twisted(
        "wrong: probes redrawn inside a solution", "pofx.transforms.ode.divergence", redrawn_probes,
        frozenset({"densities of a flow are covered"}),
    ),
    Twisted(
        "wrong: the sign of a log-determinant", "pofx.transforms.ode.divergence", opposite_sign,
        frozenset({"densities of a flow are covered"}),
    ),
    Twisted(
        "wrong: a bound without its prior's term", "pofx.paths.gaussian.Gaussian.ends", without_prior,
        frozenset({"a bound has all of its terms"}),
    ),
    Planted(
        "wrong: a masked bound that counts approximate bytes", "pofx.spaces.text.Text.units", mean_bytes,
        frozenset({"bytes are counted"}),
    ),
]  # fmt: skip
