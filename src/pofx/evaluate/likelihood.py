"""Held-out likelihood of a model, with its kind and both of its errors, and paired differences between models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from pofx.core.abilities import beginnings
from pofx.core.comparison import Comparison, compare
from pofx.core.errors import EmptyData
from pofx.core.likelihood import (
    KINDS,
    Available,
    Estimate,
    Exact,
    Likelihood,
    Number,
    Unavailable,
    cat,
    effective_draws,
    make,
    mean,
    number,
    per_row,
)
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.noise import Copies, given_or_fresh
from pofx.core.requests import AnyRequest
from pofx.core.space import Space
from pofx.data.parts import Part
from pofx.evaluate.cost import grow

FEW, FEW_ROWS = 3.0, 0.05  # effective draws of importance weights that are few, and the share of rows that is told


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Mean(Number[float]):
    """Mean log-likelihood of held-out rows, in nats per datum in raw data space, and per unit of it.

    Attributes:
        measure: of the space; dims: the mean size of a datum in units, where a unit is a "dim" (or a byte of text, a
            sample of sound, a step of a sequence); rate_se: the standard error of nats per unit, None as ``se``.
        seconds: it took; rows_per_second: throughput of the density evaluation.
        rows: the likelihood per row, in the part's order (None where only the mean is known).
    """

    measure: Measure
    dims: float
    unit: str = "dim"
    rate_se: float | None = None
    seconds: float = 0.0
    rows_per_second: float = math.nan
    rows: Available | None = None

    def __repr__(self) -> str:
        return f"{self.text}, {self.bits_text}" if self.available else self.text

    @property
    def surprise(self) -> Number[float]:
        """Mean surprise in nats per unit: lower is better. A lower bound on log p is an upper bound on it."""
        return dataclasses.replace(self * (-1 / self.dims), se=self.rate_se)

    @property
    def bits_per_dim(self) -> float:
        """Mean surprise in bits per unit, negative for a sharp density."""
        return self.surprise.bits

    @property
    def bits_text(self) -> str:
        """Such as "≤ 0.1570 ± 0.0004 bits/dim"."""
        return self.surprise.told(f"bits/{self.unit}", math.log(2))

    @property
    def loss_text(self) -> str:
        """Of labels their log-loss, such as "= 0.112 ± 0.041 nats/label, = 0.161 ± 0.059 bits/label"."""
        if not self.available:
            return self.text
        lost = f" ({self.lost})" if self.impossible else ""
        return f"{self.surprise.told(f'nats/{self.unit}')}, {self.bits_text}{lost}"

    def to_json(self, *, rows: bool = True) -> dict[str, Any]:
        """Plain data with the printed forms beside the numbers; ``rows`` adds the likelihood per row."""
        plain = {k: encode(v) for k, v in vars(self).items() if k not in ("rows", "measure", "kind")}
        out = plain | {
            "kind": self.kind.__name__,
            "shared_se": self.shared_se,
            "error": encode(self.error),
            "measure": str(self.measure),
            "measure_parts": [list(p) for p in self.measure.parts],
            "symbol": self.symbol,
            "text": self.text,
            "bits_per_dim": encode(self.bits_per_dim),
            "bits_text": self.bits_text,
        }
        if self.unit == "label":
            out |= {"log_loss": encode(-self.nats), "loss_text": self.loss_text}
        if rows and self.rows is not None:
            each = number(self.rows)
            out["rows"] = {
                "nats": _digits(each.nats, 9),  # float32 digits: a likelihood carries no more
                "mc_se": _digits(each.mc_se, 3) if each.draws and each.mc_se is not None else None,
                "shared": {source: _digits(move, 6) for source, move in each.shared.items()},
            }
        return out

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Mean:
        """The inverse of ``to_json``, with or without rows."""
        measure = Measure(tuple((name, count) for name, count in data["measure_parts"]))
        kind, rows = KINDS[data["kind"]], None
        if data.get("rows"):
            nats, se, *moves = (
                None if v is None else torch.tensor([decode(e) for e in v], dtype=torch.float64)
                for v in (data["rows"]["nats"], data["rows"]["mc_se"], *data["rows"]["shared"].values())
            )
            assert nats is not None
            shared: Any = dict(zip(data["rows"]["shared"], moves, strict=True))
            rows = make(kind, nats, measure, se, data["draws"], data["note"] if kind is Estimate else "", shared)
        fields: dict[str, Any] = {k: data[k] for k in ("shared", "n", "draws", "impossible", "dims", "unit", "note")}
        fields |= {k: decode(data[k]) for k in ("nats", "seconds", "rows_per_second")}
        fields |= {k: None if data[k] is None else decode(data[k]) for k in ("se", "mc_se", "rate_se")}
        return Mean(kind=kind, **fields, measure=measure, rows=rows)


def _digits(values: Tensor, places: int) -> list[Any]:
    return [encode(float(f"{v:.{places}g}")) for v in values.tolist()]


def mean_log_prob(
    model: Model,
    part: Part,
    *,
    request: AnyRequest = None,
    generator: torch.Generator | None = None,
    seconds: float | None = None,
    watch: Callable[[Tensor], object] | None = None,
) -> Mean:
    """Mean held-out log-likelihood of the rows of ``part`` (weighted where the part has weights).

    The error of chunks of one sequence, which depend on each other, is that of the choice of sequences.

    Args:
        model: any family; its context, where it has one, is ``part.c``.
        part: rows x [N, *E].
        request: how it is estimated (default: the model's own).
        generator: gives the seed of Monte Carlo draws (default: seed 0), one for all rows.
        seconds: stop near this time, after the first rows only, so give them in random order (``Part.draw``);
            ``n`` says how many.
        watch: is told the data [m, *E] of each block, once, before they are evaluated.

    Raises:
        EmptyData where there are no rows; the model's own errors.

    Example:
        >>> import pofx
        >>> data = pofx.load("two-moons", max_rows=600)
        >>> found = mean_log_prob(pofx.fit(data, "gaussian", steps=1).model, data.test)
        >>> found.symbol, found.n
        ('=', 60)
    """
    if len(part) == 0:
        raise EmptyData("There are no held-out rows.", "Choose a split with a test part.")
    gen = given_or_fresh(generator, model.device)
    state = gen.get_state()
    counted: list[Tensor] = []
    copies = Copies()

    def block(start: int, size: int) -> Likelihood:
        rows = part[start : start + size].read()
        counted.append(model.space.units(rows.x))
        if watch is not None:
            watch(rows.x)
        given = model.given(rows.c, before=beginnings(model, rows.before))
        gen.set_state(state)  # the same seed for every block: where one ends changes no number
        with torch.no_grad():
            lik = given.log_prob(rows.x, request=request, generator=gen, copies=copies)
        return lik if isinstance(lik, Unavailable) else per_row(lambda t: t.detach().cpu(), lik)

    grown = grow(block, len(part), seconds)
    weight, group = (None if v is None else v[: grown.rows] for v in (part.weight, part.groups))
    size = torch.cat(counted)
    cost = {"seconds": grown.seconds, "rows_per_second": grown.rows_per_second}
    return summarise(cat(grown.parts), model.space, size, weight, group, **cost)


def summarise(
    lik: Likelihood,
    space: Space,
    counted: Tensor,
    weight: Tensor | None = None,
    group: Tensor | None = None,
    **cost: float,
) -> Mean:
    """The Mean of a likelihood with nats [N] of data of ``counted`` units each [N]; ``weight`` [N] weighs the mean.

    ``group`` [N] is the same for rows that depend on each other.

    ``cost``: ``seconds`` and ``rows_per_second``.
    """
    if isinstance(lik, Unavailable):
        return unavailable(lik.reason, space)
    rows, w = number(lik), torch.ones(len(counted)) if weight is None else weight.double()
    # long data are less likely than short ones: the error of the rate is what is left after that
    rate_se, dims = mean(rows, weight, counted, group).se, ((w * counted).sum() / w.sum()).item()
    return _told(mean(rows, weight, group=group), space, dims=round(dims, 6), rate_se=rate_se, rows=lik, **cost)


def unavailable(reason: str, space: Space) -> Mean:
    """No number, and why."""
    return _told(Number(Unavailable, math.nan, note=reason), space, dims=space.dims)


def _told(number: Number[float], space: Space, **more: Any) -> Mean:
    return Mean(**vars(number), measure=space.measure, unit=space.unit, **more)


class Tally:
    """The Mean of rows that come in blocks, of a space whose data have one size: to rounding, that of all at once."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.whole: Number[float] | None = None

    def add(self, lik: Available) -> None:
        """The next rows [m]."""
        block = mean(number(lik))
        self.whole = block if self.whole is None else _pooled(self.whole, block)

    def mean(self, seconds: float = 0.0) -> Mean:
        """Of the rows so far, of which there is at least one."""
        assert self.whole is not None
        dims, se = self.space.units(torch.zeros(1)).item(), self.whole.se
        rate_se, rate = None if se is None else se / dims, self.whole.n / seconds if seconds else math.nan
        more = {"rate_se": rate_se, "seconds": seconds, "rows_per_second": rate}
        return _told(self.whole, self.space, dims=round(dims, 6), **more)


def _pooled(a: Number[float], b: Number[float]) -> Number[float]:
    """The mean over the rows of both. Squared deviations merge by Chan, Golub & LeVeque 1983, which loses no digits."""
    n, impossible = a.n + b.n, a.impossible + b.impossible
    se = None
    if not impossible:
        squares = sum(0.0 if v.se is None else v.se**2 * v.n * (v.n - 1) for v in (a, b))
        se = math.sqrt((squares + (a.nats - b.nats) ** 2 * a.n * b.n / n) / n / (n - 1))
    return dataclasses.replace(a * (a.n / n) + b * (b.n / n), se=se, n=n, impossible=impossible)


def weights_text(rows: Available) -> str:
    """How many of the draws of importance weights count, in a line; nothing where there are no weights, or all do.

    The bound of a row that hangs on one draw may rise by much with more of them.
    """
    worth = effective_draws(rows)
    if worth is None or isinstance(rows, Exact) or float((worth < FEW).double().mean()) < FEW_ROWS:
        return ""
    few = float((worth < FEW).double().mean())
    return (
        f"effective draws of {rows.draws}: {float(worth.median()):.1f} in the median; {few:.0%} of the rows have "
        f"less than {FEW:g}, so more draws, or annealing, may raise their bounds"
    )


def verdicts(
    means: Mapping[str, Mean], weight: Tensor | None = None, group: Tensor | None = None, *, z: float = 2.0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Paired differences of every two models on the rows that both have.

    Args:
        means: per name, of the same part in the same order.
        weight: [N] of that part's rows; group: [N], the same for those that depend on each other.
        z: standard errors that a difference must exceed.

    Returns:
        [a][b] -> verdict of a against b ("better", "worse", "undecided"), nats (mean of a - b), se (None where it is
        not known), sign (of a difference beyond its error, else 0), n, why.
    """
    return {a: {b: _verdict(ma, mb, weight, group, z) for b, mb in means.items() if b != a} for a, ma in means.items()}


def _verdict(a: Mean, b: Mean, weight: Tensor | None, group: Tensor | None, z: float) -> dict[str, Any]:
    n, reason = min(a.n, b.n), a.note if a.rows is None else b.note
    found = Comparison("undecided", math.nan, None, 0, reason or "the likelihood per row is not known")
    if a.rows is None or b.rows is None:
        n = 0
    else:
        ours, theirs = (per_row(lambda t: t[:n], rows) for rows in (a.rows, b.rows))
        of, some = (None if v is None else v[:n] for v in (weight, group))
        found = compare(ours, theirs, z=z, weight=of, group=some)
    return {k: encode(v) for k, v in vars(found).items()} | {"n": n}


# -- numbers as JSON -------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """JSON has no NaN (null here) and no infinities (the strings "inf" and "-inf")."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def decode(value: Any) -> float:
    return math.nan if value is None else float(value)
