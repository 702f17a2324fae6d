"""A likelihood says what it is: its kind, its unit, its measure and its Monte Carlo error.

``nats`` is always log p(x) in nats per datum in raw data space, one entry per datum. The kinds are
final frozen dataclasses, deliberately not tensors: they have no ``float()`` and no ``<``, so no
bound can slip into a table of exact numbers. Kind and noise are separate axes: an ELBO from few
draws is a *noisy lower bound*; its bound holds in expectation over the draws.

Errors are of two kinds. ``mc_se`` is of each row alone: a mean over n rows has 1/sqrt(n) of it. ``shared`` is of what
rows have in common, such as one estimate of a log-partition function: by the name of each source, the nats by which
one standard error of it moves each row, with their sign. A mean keeps all of it. In a difference one source cancels;
several sources add up in quadrature. So a name must tell an estimate from all others: of other weights and other draws.

Sums, differences and means of likelihoods are a ``Number``, and so are the measures of ``pofx.information``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from pofx.core.errors import Incomparable, UsageError
from pofx.core.measure import Measure


class _Printed:
    """Prints as what it is: the mean over its rows, such as "= -3.210 ± 0.040 nats (30 rows)", or "— (reason)"."""

    def __repr__(self) -> str:
        rows = number(self)  # type: ignore[arg-type]
        whole = mean(rows)
        if whole.n == 1:  # of one datum it is that datum's number, whose error is that of its draws
            whole = dataclasses.replace(whole, se=whole.mc_se)
        return repr(whole if whole.n else dataclasses.replace(whole, note="no rows"))


@dataclass(frozen=True, eq=False, repr=False)
class Exact(_Printed):
    """log p(x) in closed form, to rounding.

    Example:
        >>> import torch
        >>> from pofx.core.measure import Measure
        >>> half = Exact(torch.tensor([0.5, 0.5]).log(), Measure.counting())
        >>> half.nats.exp()
        tensor([0.5000, 0.5000])
    """

    nats: Tensor
    measure: Measure


@dataclass(frozen=True, eq=False, repr=False)
class _Uncertain(_Printed):
    """``draws=0`` is deterministic; else ``mc_se`` is the error per datum. ``shared`` is as said above.

    ``ess``, of importance weights, says how many equal ones the draws of each datum are worth: near 1 of many, the
    number hangs on one draw, and more of them may move it by more than its error.
    """

    nats: Tensor
    measure: Measure
    mc_se: Tensor
    draws: int
    shared: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    ess: Tensor | None = field(default=None, kw_only=True)


class LowerBound(_Uncertain):
    """E[nats] <= log p(x)."""


class UpperBound(_Uncertain):
    """E[nats] >= log p(x)."""


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(_Uncertain):
    """nats is near log p(x), with no one-sided guarantee; ``caveat`` names what limits it."""

    caveat: str


@dataclass(frozen=True, repr=False)
class Unavailable(_Printed):
    """There is no number; ``reason`` says why, and what to do instead."""

    reason: str


Likelihood: TypeAlias = Exact | LowerBound | UpperBound | Estimate | Unavailable
Available: TypeAlias = Exact | LowerBound | UpperBound | Estimate
Kind: TypeAlias = type[Exact] | type[LowerBound] | type[UpperBound] | type[Estimate] | type[Unavailable]
A = TypeVar("A", bound=Available)
V = TypeVar("V", float, Tensor)

SYMBOL: dict[Kind, str] = {Exact: "=", LowerBound: "≥", UpperBound: "≤", Estimate: "≈", Unavailable: "—"}
KINDS: dict[str, Kind] = {k.__name__: k for k in SYMBOL}


def make(
    kind: Kind,
    nats: Tensor,
    measure: Measure,
    mc_se: Tensor | None = None,
    draws: int = 0,
    caveat: str = "",
    shared: Mapping[str, Tensor | float] | None = None,
    ess: Tensor | None = None,
) -> Available:
    """A likelihood of ``kind``; an ``Exact`` takes no errors. One number of ``shared`` stands for all rows.

    Example:
        >>> import torch
        >>> from pofx.core.measure import Measure
        >>> elbo = make(LowerBound, torch.tensor([-3.2]), Measure.lebesgue(2), torch.tensor([0.1]), draws=16)
        >>> type(elbo).__name__, elbo.draws
        ('LowerBound', 16)
    """
    if kind is Exact:
        if draws or shared:
            raise UsageError("An exact likelihood has no Monte Carlo draws.", "Return a bound or an estimate.")
        return Exact(nats, measure)
    se = torch.zeros_like(nats) if mc_se is None else mc_se
    moves = {k: torch.as_tensor(v).to(nats).detach().expand(nats.shape) for k, v in (shared or {}).items()}
    if kind is LowerBound or kind is UpperBound:
        return kind(nats, measure, se, draws, shared=moves, ess=ess)
    if kind is Estimate:
        return Estimate(nats, measure, se, draws, caveat, shared=moves, ess=ess)
    raise UsageError(f"{kind.__name__} carries no number.", "Construct Unavailable(reason) directly.")


def mc_se(lik: Available) -> Tensor:
    """Monte Carlo standard error per datum (zero for an exact one), shaped like ``nats``."""
    return torch.zeros_like(lik.nats).detach() if isinstance(lik, Exact) else lik.mc_se


def effective_draws(lik: Likelihood) -> Tensor | None:
    """``ess`` of a likelihood by importance weights, shaped like ``nats``; None of others."""
    return lik.ess if isinstance(lik, _Uncertain) else None


def join(a: Kind, b: Kind) -> Kind:
    """The kind of a sum of log-terms of kinds ``a`` and ``b``: Exact+Lower=Lower, Lower+Upper=Estimate.

    Example:
        >>> join(Exact, LowerBound).__name__
        'LowerBound'
        >>> join(LowerBound, UpperBound).__name__
        'Estimate'
    """
    if Unavailable in (a, b):
        return Unavailable
    if a is b or b is Exact:
        return a
    return b if a is Exact else Estimate


def flip(kind: Kind) -> Kind:
    """The kind of -v, where v is of ``kind``."""
    flipped: dict[Kind, Kind] = {LowerBound: UpperBound, UpperBound: LowerBound}
    return flipped.get(kind, kind)


def per_row(f: Callable[[Tensor], Tensor], lik: A) -> A:
    """Apply a shape change (reshape, index, ...) to every per-datum tensor."""
    if isinstance(lik, Exact):
        return dataclasses.replace(lik, nats=f(lik.nats))
    shared = {source: f(move) for source, move in lik.shared.items()}
    ess = None if lik.ess is None else f(lik.ess)
    return dataclasses.replace(lik, nats=f(lik.nats), mc_se=f(lik.mc_se), shared=shared, ess=ess)


def cat(parts: Sequence[Likelihood], dim: int = 0) -> Likelihood:
    """Concatenate the rows of likelihoods of one kind and measure; where some have none, all have none."""
    for p in parts:
        if isinstance(p, Unavailable):
            return p
    first: Any = parts[0]
    for p in parts:
        if type(p) is not type(first) or p.measure != first.measure:  # type: ignore[union-attr]
            raise Incomparable("Rows of different kinds or measures cannot be joined.")
    rows = [number(p) for p in parts]
    nats = torch.cat([r.nats for r in rows], dim)
    se = torch.cat([mc_se(p) for p in parts], dim).detach()  # type: ignore[arg-type]
    shared = {
        source: torch.cat([r.shared.get(source, torch.zeros_like(r.nats)) for r in rows], dim)
        for source in dict.fromkeys(source for r in rows for source in r.shared)
    }
    worth = [e for p in parts if (e := effective_draws(p)) is not None]
    ess = torch.cat(worth, dim) if len(worth) == len(parts) else None
    note = "; ".join(dict.fromkeys(r.note for r in rows if r.note))
    return make(type(first), nats, first.measure, se, rows[0].draws, note, shared, ess)


def stack(parts: Sequence[Likelihood]) -> Likelihood:
    """Likelihoods of one kind and measure side by side: nats [..., K] of K parts."""
    return cat([p if isinstance(p, Unavailable) else per_row(lambda t: t[..., None], p) for p in parts], dim=-1)


# -- numbers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Number(Generic[V]):
    """Nats that say what they are: a likelihood row by row, its mean over data, a measure of information.

    Arithmetic joins kinds: the negative of a lower bound is an upper one, a difference of two lower bounds an estimate.
    Errors of data and draws are taken for independent (so what is paired is subtracted row by row, before the mean);
    shared errors add up source by source, with their signs.

    Attributes:
        nats: a float of a mean, a tensor of rows and of batches. -inf where a datum is held impossible; NaN where there
            is no number.
        se: standard error of all but what is shared; None where the data do not tell it (one row, an infinite mean).
        mc_se: the Monte Carlo part of it alone: what other draws on the same data would change.
        shared: of each source, how far one standard error of it moves the number.
        n: data that it is a mean over; impossible: those of them of which the number is -inf.
        draws: Monte Carlo draws (of a mean over data, for each).
        note: an estimate's caveat, how it was computed, or why there is no number.

    Example:
        >>> a, b = Number(LowerBound, -3.0, 0.3, shared={"log Z": 0.5}), Number(Exact, -5.0, 0.4)
        >>> print(a - b, a - a * 0.5)
        ≥ 2.00 ± 0.71 nats (shared 0.5) ≈ -1.50 ± 0.42 nats (shared 0.25)
    """

    kind: Kind
    nats: V
    se: V | None = None
    mc_se: V | None = None
    shared: Mapping[str, V] = field(default_factory=dict)
    n: int = 0
    draws: int = 0
    impossible: int = 0
    note: str = ""

    def __add__(self, other: Number[V]) -> Number[V]:
        both = {k: v + other.shared[k] for k, v in self.shared.items() if k in other.shared}
        return Number(
            join(self.kind, other.kind), self.nats + other.nats,
            _quadrature(self.se, other.se), _quadrature(self.mc_se, other.mc_se),
            {**self.shared, **other.shared, **both},
            max(self.n, other.n), max(self.draws, other.draws), max(self.impossible, other.impossible),
            "; ".join(dict.fromkeys(note for note in (self.note, other.note) if note)),
        )  # fmt: skip

    def __mul__(self, factor: float) -> Number[V]:
        se, mc_se = (None if v is None else v * abs(factor) for v in (self.se, self.mc_se))
        kind, shared = self.kind if factor > 0 else flip(self.kind), {k: v * factor for k, v in self.shared.items()}
        return dataclasses.replace(self, kind=kind, nats=self.nats * factor, se=se, mc_se=mc_se, shared=shared)

    def __neg__(self) -> Number[V]:
        return self * -1.0

    def __sub__(self, other: Number[V]) -> Number[V]:
        return self + -other

    def __repr__(self) -> str:
        of = f"{self.n:,} rows" if self.n > 1 and not self.impossible else ""
        return self._told([of, *self._about, self.note])

    @property
    def shared_se(self) -> Any:
        """Standard error of what is shared, of all its sources together: a float or a tensor, as ``nats``."""
        return sum(move**2 for move in self.shared.values()) ** 0.5

    @property
    def error(self) -> V | None:
        """Standard error of the number: of data, of draws, and of what is shared."""
        return _quadrature(self.se, self.shared_se)

    @property
    def available(self) -> bool:
        return self.kind is not Unavailable

    @property
    def symbol(self) -> str:
        return SYMBOL[self.kind]

    @property
    def bits(self) -> V:
        """The number in bits."""
        return self.nats / math.log(2)

    @property
    def text(self) -> str:
        """Such as "≥ -85.32 ± 0.21 nats (mc 0.08)", "= −∞ nats (2 of 500 rows impossible)", or "— (reason)"."""
        return self._told(self._about if self.available else [self.note])

    @property
    def lost(self) -> str:
        """Of how many rows the number is -inf, and what that means of its kind."""
        meaning: dict[Kind, str] = {LowerBound: "without a bound", Estimate: "estimated as impossible"}
        what = meaning.get(self.kind, "impossible")
        return f"{self.impossible:,} of {self.n:,} row{'s' * (self.n > 1)} {what}"

    def told(self, unit: str = "nats", size: float = 1.0) -> str:
        """The number and its error in a unit of so many nats, without what qualifies it."""
        value: Any = self.nats / size
        error: Any = None if self.error is None else self.error / size
        if isinstance(value, Tensor):
            value, error = value.tolist(), None if error is None else error.tolist()
        if isinstance(value, list):
            return f"{self.symbol} {value} {unit}"
        if math.isnan(value):
            return self.symbol
        unknown = " ± unknown" if self.n == 1 and error is None and math.isfinite(value) else ""
        written = f"{value:.6g}" if error == 0 and math.isfinite(value) else with_error(value, error)
        return f"{self.symbol} {written}{unknown} {unit}"

    def _told(self, brackets: Sequence[str]) -> str:
        inside = "; ".join(note for note in brackets if note)
        return f"{self.told()} ({inside})" if inside else self.told()

    @property
    def _about(self) -> list[str]:
        """What widens or undoes the number; of a batch there is one of each for every entry."""
        found = [self.lost] if self.impossible else []
        if torch.as_tensor(self.nats).ndim == 0 and math.isfinite(self.nats):
            noise = self.mc_se is not None and self.mc_se != self.se and self.mc_se > (self.se or 0.0) / 3
            found += [f"mc {self.mc_se:.2g}"] if noise else []  # a smaller one hardly widens the error
            found += [f"shared {self.shared_se:.2g}"] if self.shared_se else []
        return found


def number(lik: Likelihood) -> Number[Tensor]:
    """A likelihood row by row, as what can be added up."""
    if isinstance(lik, Unavailable):
        return Number(Unavailable, torch.tensor(math.nan), note=lik.reason)
    se, note = mc_se(lik), lik.caveat if isinstance(lik, Estimate) else ""
    shared, draws = ({}, 0) if isinstance(lik, Exact) else (lik.shared, lik.draws)
    return Number(type(lik), lik.nats, se, se, shared, draws=draws, note=note)


def mean(
    rows: Number[Tensor], weight: Tensor | None = None, size: Tensor | None = None, group: Tensor | None = None
) -> Number[float]:
    """The mean over all rows, by ``weight`` [N] where given, and per unit where ``size`` [N] counts the units of each.

    Its ``se`` is that of the choice of rows, which contains the Monte Carlo spread between them; of rows that depend on
    each other where they have the same number in ``group`` [N], that of the choice of groups. What rows share is
    averaged with its sign: a mean over ever more rows keeps it.

    Example:
        >>> import torch
        >>> from pofx.core.measure import Measure
        >>> nats = torch.tensor([-1.0, -2.0, -3.0, -4.0])
        >>> energy = make(UpperBound, nats, Measure.lebesgue(2), shared={"log Z of 4 chains": 0.3})
        >>> mean(number(energy))
        ≤ -2.50 ± 0.71 nats (4 rows; shared 0.3)
    """
    nats = rows.nats.detach().double().flatten()
    w = torch.ones_like(nats) if weight is None else weight.to(nats)
    w, n = w / w.sum(), len(nats)
    units = torch.ones_like(nats) if size is None else size.to(nats)
    whole = float((w * units).sum())
    impossible = int(((nats == -math.inf) & (w > 0)).sum())
    value = -math.inf if impossible else float(torch.where(w > 0, w * nats, 0.0).sum() / whole) if n else math.nan
    finite = math.isfinite(value)

    def independent(each: Tensor, of: Tensor | None = None) -> float:
        moved = torch.where(w > 0, w * each.detach().to(w).flatten(), 0.0)
        return float(_summed(moved, of).square().sum().sqrt() / whole)

    # linearisation of the ratio; k / (k - 1) makes it the usual error where weights are equal
    k = n if group is None else len(torch.unique(group))
    se = independent(nats - value * units, group) * math.sqrt(k / (k - 1)) if finite and k > 1 else None
    mc_se = independent(rows.mc_se) if finite and rows.mc_se is not None else None
    shared = {source: shared_mean(move.to(w).flatten(), w) / whole for source, move in rows.shared.items()}
    return Number(rows.kind, value, se, mc_se, shared, n, rows.draws, impossible, rows.note)


def _summed(each: Tensor, group: Tensor | None) -> Tensor:
    """Numbers [N], those of one group added up [G]."""
    if group is None:
        return each
    _, place = torch.unique(group.to(each.device), return_inverse=True)
    return torch.zeros(int(place.max()) + 1, dtype=each.dtype, device=each.device).index_add_(0, place, each)


def shared_mean(move: Tensor, weight: Tensor) -> float:
    """How far one standard error of a source moves the mean over rows [N], by how far it moves each of them."""
    return float((weight * move).sum())


def _quadrature(a: V | None, b: V | None) -> V | None:
    """The standard error of a sum of what is independent; None where one is not known."""
    return None if a is None or b is None else (a**2 + b**2) ** 0.5  # type: ignore[no-any-return]


def with_error(value: float, se: float | None) -> str:
    """``value ± se`` with two significant digits of the error: 85.3 ± 1.2, 0.1570 ± 0.0042; in powers of ten from 1e6.

    Without the error where that is not known, and infinity as its sign.

    Example:
        >>> with_error(85.3214, 1.234), with_error(0.157, 0.0042)
        ('85.3 ± 1.2', '0.1570 ± 0.0042')
    """
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "∞" if value > 0 else "−∞"
    known = se is not None and math.isfinite(se)
    if abs(value) >= 1e6:
        return f"{value:.3g}" + (f" ± {se:.2g}" if known else "")
    if se is None or not known:
        return f"{value:.2f}"
    places = 2 if se == 0 else min(6, max(0, 1 - math.floor(math.log10(se))))
    return f"{value:.{places}f} ± {se:.{places}f}"
