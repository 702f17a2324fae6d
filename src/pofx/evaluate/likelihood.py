"""Held-out likelihood of a model, with its kind and both of its errors, and paired differences between models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pofx.core.errors import EmptyData
from pofx.core.likelihood import (
    KINDS,
    SYMBOL,
    Available,
    Comparison,
    Estimate,
    Kind,
    Likelihood,
    LowerBound,
    Unavailable,
    UpperBound,
    cat,
    compare,
    draws,
    lost,
    make,
    mc_se,
    noise_of_mean,
    per_row,
    with_error,
)
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.noise import Copies
from pofx.core.requests import AnyRequest
from pofx.core.space import Space
from pofx.data.parts import Part
from pofx.evaluate.cost import grow


@dataclass(frozen=True, eq=False, repr=False)
class Score:
    """Mean log-likelihood of held-out rows.

    Attributes:
        kind: what the number is (a name of ``core.likelihood.KINDS``).
        nats: mean over rows in nats per datum, in raw data space; NaN where unavailable, -inf where a row is held
            impossible.
        se: standard error from the choice of rows (it contains the Monte Carlo spread between rows); None where the
            rows do not tell it (one row, an infinite mean, code lengths of all rows together).
        mc_se: the Monte Carlo part alone: what other draws on the same rows would change; None of an infinite mean.
        n: rows scored; draws: Monte Carlo draws per row; impossible: rows of which the number is -inf.
        measure: of the space; dims: the mean size of a datum in units, where a unit is a "dim" (or a byte of text, a
            sample of sound, a step of a sequence); rate_se: the standard error of nats per unit, None as ``se``.
        note: an estimate's caveat, or why there is no number.
        seconds: it took; rows_per_second: throughput of the density evaluation.
        rows: the likelihood per row, in the part's order (None where only the mean is known).
    """

    kind: str
    nats: float
    se: float | None
    mc_se: float | None
    n: int
    draws: int
    measure: Measure
    dims: float
    unit: str = "dim"
    rate_se: float | None = None
    impossible: int = 0
    note: str = ""
    seconds: float = 0.0
    rows_per_second: float = math.nan
    rows: Available | None = None

    def __repr__(self) -> str:
        return f"{self.text}, {self.bits_text}" if self.available else self.text

    @property
    def available(self) -> bool:
        return self.kind != Unavailable.__name__

    @property
    def symbol(self) -> str:
        return SYMBOL[KINDS[self.kind]]

    @property
    def bits_per_dim(self) -> float:
        """Mean surprise in bits per unit: lower is better, and negative for a sharp density."""
        return -self.nats / math.log(2) / self.dims

    @property
    def text(self) -> str:
        """Such as "≥ -85.32 ± 0.21 nats (mc 0.02)", "= −∞ nats (2 of 500 rows impossible)", or "— (reason)"."""
        if not self.available:
            return f"{self.symbol} ({self.note})"
        noise = f" (mc {self.mc_se:.2g})" if self.draws and self.mc_se is not None else ""
        impossible = f" ({self.lost})" if self.impossible else ""
        return f"{self.symbol} {with_error(self.nats, self.se)}{self._alone} nats{noise}{impossible}"

    @property
    def lost(self) -> str:
        """Of how many rows the number is -inf, and what that means of its kind."""
        return lost(KINDS[self.kind], self.impossible, self.n)

    @property
    def _alone(self) -> str:
        """Of one row there is no error of the mean."""
        return " ± unknown" if self.n == 1 and math.isfinite(self.nats) else ""

    @property
    def bits_text(self) -> str:
        """Such as "≤ 0.1570 ± 0.0004 bits/dim": a lower bound on log p is an upper bound on bits."""
        if not self.available:
            return self.symbol
        return self._surprise(math.log(2), "bits")

    @property
    def loss_text(self) -> str:
        """Of labels their log-loss, such as "= 0.112 ± 0.041 nats/label, = 0.161 ± 0.059 bits/label"."""
        if not self.available:
            return self.text
        lost = f" ({self.lost})" if self.impossible else ""
        return f"{self._surprise(1.0, 'nats')}, {self._surprise(math.log(2), 'bits')}{lost}"

    def _surprise(self, size: float, name: str) -> str:
        """The mean surprise per unit in what has ``size`` nats."""
        flip: dict[str, Kind] = {"LowerBound": UpperBound, "UpperBound": LowerBound}
        symbol = SYMBOL[flip.get(self.kind, KINDS[self.kind])]
        error = None if self.rate_se is None else self.rate_se / size
        return f"{symbol} {with_error(-self.nats / self.dims / size, error)}{self._alone} {name}/{self.unit}"

    def to_json(self, *, rows: bool = True) -> dict[str, Any]:
        """Plain data with the printed forms beside the numbers; ``rows`` adds the likelihood per row."""
        plain = {k: encode(v) for k, v in vars(self).items() if k not in ("rows", "measure")}
        out = plain | {
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
            # float32 digits: a likelihood carries no more
            out["rows"] = {
                "nats": [encode(float(f"{v:.9g}")) for v in self.rows.nats.tolist()],
                "mc_se": [encode(float(f"{v:.3g}")) for v in mc_se(self.rows).tolist()] if self.draws else None,
            }
        return out

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Score:
        """The inverse of ``to_json``, with or without rows."""
        measure = Measure(tuple((name, count) for name, count in data["measure_parts"]))
        rows: Available | None = None
        if data.get("rows"):
            nats = torch.tensor([decode(v) for v in data["rows"]["nats"]], dtype=torch.float64)
            se = data["rows"]["mc_se"]
            errors = None if se is None else torch.tensor([decode(v) for v in se], dtype=torch.float64)
            kind = KINDS[data["kind"]]
            rows = make(kind, nats, measure, errors, data["draws"], data["note"] if kind is Estimate else "")
        fields: dict[str, Any] = {k: data[k] for k in ("kind", "n", "draws", "dims", "unit", "note")}
        fields |= {k: decode(data[k]) for k in ("nats", "seconds", "rows_per_second")}
        fields |= {k: None if data[k] is None else decode(data[k]) for k in ("se", "mc_se", "rate_se")}
        impossible = data.get("impossible", 0)  # which older files do not say
        return Score(**fields, impossible=impossible, measure=measure, rows=rows)


def score(
    model: Model,
    part: Part,
    *,
    request: AnyRequest = None,
    generator: torch.Generator | None = None,
    seconds: float | None = None,
) -> Score:
    """Mean held-out log-likelihood of the rows of ``part`` (weighted where the part has weights).

    Args:
        model: any family; its context, where it has one, is ``part.c``.
        part: rows x [N, *E].
        request: how it is estimated (default: the model's own).
        generator: gives the seed of Monte Carlo draws (default: seed 0), one for all rows.
        seconds: stop near this time and score the first rows only, so give them in random order (``Part.draw``);
            ``n`` says how many.

    Raises:
        EmptyData where there are no rows; the model's own errors.

    Example:
        >>> import pofx
        >>> data = pofx.load("two-moons", max_rows=600)
        >>> found = score(pofx.fit(data, "gaussian", steps=1).model, data.test)
        >>> found.symbol, found.n
        ('=', 60)
    """
    if len(part) == 0:
        raise EmptyData("There are no held-out rows to score.", "Choose a split with a test part.")
    gen = torch.Generator(model.device).manual_seed(0) if generator is None else generator
    state = gen.get_state()
    counted: list[Tensor] = []
    copies = Copies()

    def block(start: int, size: int) -> Likelihood:
        rows = part[start : start + size].read()
        counted.append(model.space.units(rows.x))
        given = model.given(rows.c, before=rows.before)
        gen.set_state(state)  # the same seed for every block: where one ends changes no number
        with torch.no_grad():
            return _on_cpu(given.log_prob(rows.x, request=request, generator=gen, copies=copies))

    grown = grow(block, len(part), seconds)
    weight = None if part.weight is None else part.weight[: grown.rows]
    size = torch.cat(counted)
    return summarise(cat(grown.parts), model.space, size, weight, grown.seconds, grown.rows_per_second)


def summarise(
    lik: Likelihood,
    space: Space,
    counted: Tensor,
    weight: Tensor | None = None,
    seconds: float = 0.0,
    rows_per_second: float = math.nan,
) -> Score:
    """The Score of a likelihood with nats [N] of data of ``counted`` units each [N]; ``weight`` [N] weighs the mean."""
    if isinstance(lik, Unavailable):
        return unavailable(lik.reason, space)
    nats = lik.nats.double()
    w = torch.ones_like(nats) if weight is None else weight.double()
    w = w / w.sum()
    impossible = (nats == -math.inf) & (w > 0)
    n, each = len(nats), (w * counted).sum()
    mean = -math.inf if impossible.any() else torch.where(w > 0, w * nats, 0.0).sum().item()

    def error(residual: Tensor) -> float | None:
        # linearisation of the weighted mean; n / (n - 1) makes it the usual one where weights are equal
        if n == 1 or not math.isfinite(mean):
            return None
        return torch.where(w > 0, w * residual, 0.0).square().sum().mul(n / (n - 1)).sqrt().item()

    rate_se = error(nats - mean / each * counted)
    return Score(
        kind=type(lik).__name__,
        nats=mean,
        se=error(nats - mean),
        mc_se=noise_of_mean(mc_se(lik), w) if math.isfinite(mean) else None,
        n=n,
        draws=draws(lik),
        measure=space.measure,
        dims=round(each.item(), 6),
        unit=space.unit,
        # long data are less likely than short ones: what is left after their rate
        rate_se=None if rate_se is None else rate_se / each.item(),
        impossible=int(impossible.sum()),
        note=lik.caveat if isinstance(lik, Estimate) else "",
        seconds=seconds,
        rows_per_second=rows_per_second,
        rows=lik,
    )


class Tally:
    """The Score of rows that come in blocks, of a space whose data all have one size: to rounding that of all at once.

    Means and squared deviations of blocks are merged by Chan, Golub & LeVeque 1983, which loses no digits.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.n = self.impossible = 0
        self.mean = self.squares = self.noise = 0.0
        self.last: Available | None = None

    def add(self, lik: Available) -> None:
        """The next rows [m]."""
        self.last = per_row(lambda t: t[:0], lik)
        self.impossible += int((lik.nats == -math.inf).sum())
        if self.impossible:  # minus infinity is the mean, whatever else there is
            self.n += len(lik.nats)
            return
        nats = lik.nats.double()
        m, mean = len(nats), nats.mean().item()
        apart, n = mean - self.mean, self.n + m
        self.squares += (nats - mean).square().sum().item() + apart**2 * self.n * m / n
        self.mean += apart * m / n
        self.noise += mc_se(lik).double().square().sum().item()
        self.n = n

    def score(self, seconds: float = 0.0) -> Score:
        """Of the rows so far, of which there is at least one."""
        assert self.last is not None
        n, dims = self.n, self.space.units(self.last.nats.new_zeros(1)).item()
        known = n > 1 and not self.impossible
        se = math.sqrt(self.squares / n / (n - 1)) if known else None
        return Score(
            kind=type(self.last).__name__,
            nats=-math.inf if self.impossible else self.mean,
            se=se,
            mc_se=None if self.impossible else math.sqrt(self.noise) / n,
            n=n,
            draws=draws(self.last),
            measure=self.space.measure,
            dims=round(dims, 6),
            unit=self.space.unit,
            rate_se=None if se is None else se / dims,
            impossible=self.impossible,
            note=self.last.caveat if isinstance(self.last, Estimate) else "",
            seconds=seconds,
            rows_per_second=n / seconds if seconds else math.nan,
        )


def unavailable(reason: str, space: Space) -> Score:
    """No number, and why."""
    return Score(Unavailable.__name__, math.nan, None, None, 0, 0, space.measure, space.dims, space.unit, note=reason)


def verdicts(
    scores: Mapping[str, Score], weight: Tensor | None = None, *, z: float = 2.0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Paired differences of every two models on the rows that both have scored.

    Args:
        scores: per name, of the same part in the same order.
        weight: [N] of that part's rows.
        z: standard errors that a difference must exceed.

    Returns:
        [a][b] -> verdict of a against b ("better", "worse", "undecided"), nats (mean of a - b), se (None where it is
        not known), sign (of a difference beyond its error, else 0), n, why.
    """
    return {a: {b: _verdict(sa, sb, weight, z) for b, sb in scores.items() if b != a} for a, sa in scores.items()}


def _verdict(a: Score, b: Score, weight: Tensor | None, z: float) -> dict[str, Any]:
    if a.rows is None or b.rows is None:
        reason = a.note if a.rows is None else b.note
        return _plain(Comparison("undecided", math.nan, None, 0, reason or "the likelihood per row is not known"), 0)
    n = min(a.n, b.n)
    ours, theirs = per_row(lambda t: t[:n], a.rows), per_row(lambda t: t[:n], b.rows)
    return _plain(compare(ours, theirs, z=z, weight=None if weight is None else weight[:n]), n)


def _plain(c: Comparison, n: int) -> dict[str, Any]:
    found = {"verdict": c.verdict, "nats": encode(c.nats), "se": None if c.se is None else encode(c.se)}
    return found | {"sign": c.sign, "n": n, "why": c.why}


def beyond(pair: Mapping[str, Any] | None) -> int:
    """The sign of a paired difference that is beyond its error, else 0 (of older files: two standard errors)."""
    if pair is None or "sign" in pair:
        return 0 if pair is None else int(pair["sign"])
    nats = decode(pair.get("nats"))
    return (nats > 0) - (nats < 0) if abs(nats) > 2 * decode(pair.get("se")) else 0


def _on_cpu(lik: Likelihood) -> Likelihood:
    return lik if isinstance(lik, Unavailable) else per_row(lambda t: t.detach().cpu(), lik)


# -- numbers as JSON -------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """JSON has no NaN (null here) and no infinities (the strings "inf" and "-inf")."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def decode(value: Any) -> float:
    return math.nan if value is None else float(value)
