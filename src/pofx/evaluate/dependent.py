"""How much of a likelihood comes from columns that others determine, along which a density can grow without limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.core.likelihood import Exact, Unavailable
from pofx.core.model import Model
from pofx.data.parts import Part
from pofx.evaluate.cost import grow

ROWS = 32  # test rows over which a share is averaged
FINEST, WIDEST = -12, 2  # powers of ten: how near to a value and how far off, in standard deviations of its column
POINTS = 16  # per power of ten


@dataclass(frozen=True)
class Share:
    """Mean of log p(column | all other columns) over ``n`` rows, in nats, with its standard error."""

    column: str
    nats: float
    se: float | None
    n: int


def share(
    model: Model, part: Part, column: str, spread: float, generator: torch.Generator, seconds: float | None = None
) -> Share | Unavailable:
    """What one real column adds to the likelihood of a row whose other columns are known.

    log p(x) - log of the integral of p over the column, by the trapezoid rule on points at both sides of the row's own
    value, whose distances grow in equal ratios: the density may be a ridge of any width there.

    Args:
        model: of a table, with an exact likelihood.
        part: test rows in random order, of which the first are taken where the column is not missing.
        column: its name. spread: its standard deviation.
        generator: of the likelihood. seconds: about as long it takes at most.
    """
    space = model.space
    j = [c.name for c in space.columns].index(column)
    part = part[~part.x[:, j].isnan()][:ROWS]
    if len(part) == 0:
        return Unavailable(f"{column!r} is missing in all test rows.")
    exponents = torch.arange(FINEST * POINTS, WIDEST * POINTS + 1, dtype=torch.float64) / POINTS
    away = spread * 10.0**exponents
    offsets = torch.cat([-away.flip(0), torch.zeros(1, dtype=torch.float64), away])

    def block(start: int, size: int) -> Tensor | Unavailable:
        rows = part[start : start + size]
        x = rows.x[:, None].repeat(1, len(offsets), 1)
        x[..., j] += offsets
        c = None if rows.c is None else rows.c.repeat_interleave(len(offsets), 0)
        with torch.no_grad():
            lik = model.given(c).log_prob(x.flatten(0, 1), generator=generator)
        if not isinstance(lik, Exact):
            return Unavailable("Its likelihood is no exact number, so it cannot be integrated over a column.")
        nats = lik.nats.double().cpu().reshape(len(x), -1)
        width = x[..., j].diff(dim=1) / 2
        weight = torch.nn.functional.pad(width, (1, 0)) + torch.nn.functional.pad(width, (0, 1))
        return nats[:, len(away)] - (nats + weight.log()).logsumexp(1)

    found = grow(block, len(part), seconds).parts
    if any(isinstance(f, Unavailable) for f in found):
        return next(f for f in found if isinstance(f, Unavailable))
    nats = torch.cat([f for f in found if isinstance(f, Tensor)])
    n = len(nats)
    return Share(column, float(nats.mean()), float(nats.std() / math.sqrt(n)) if n > 1 else None, n)
