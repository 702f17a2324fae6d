"""A likelihood says what it is: its kind, its unit, its measure and its Monte Carlo error.

``nats`` is always log p(x) in nats per datum in raw data space, one entry per datum. The kinds are
final frozen dataclasses, deliberately not tensors: they have no ``float()`` and no ``<``, so no
bound can slip into a table of exact numbers. Kind and noise are separate axes: an ELBO from few
draws is a *noisy lower bound*; its bound holds in expectation over the draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from pofx.core.errors import Incomparable, UsageError
from pofx.core.measure import Measure


class _Printed:
    """Prints as what it is (``text``), in a notebook, too."""

    def __repr__(self) -> str:
        return text(self)  # type: ignore[arg-type]


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
class LowerBound(_Printed):
    """E[nats] <= log p(x). ``draws=0`` is deterministic; else ``mc_se`` is the error per datum."""

    nats: Tensor
    measure: Measure
    mc_se: Tensor
    draws: int


@dataclass(frozen=True, eq=False, repr=False)
class UpperBound(_Printed):
    """E[nats] >= log p(x)."""

    nats: Tensor
    measure: Measure
    mc_se: Tensor
    draws: int


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(_Printed):
    """nats is near log p(x), with no one-sided guarantee; ``caveat`` names what limits it."""

    nats: Tensor
    measure: Measure
    mc_se: Tensor
    draws: int
    caveat: str


@dataclass(frozen=True, repr=False)
class Unavailable(_Printed):
    """There is no number; ``reason`` says why, and what to do instead."""

    reason: str


Likelihood: TypeAlias = Exact | LowerBound | UpperBound | Estimate | Unavailable
Available: TypeAlias = Exact | LowerBound | UpperBound | Estimate
Kind: TypeAlias = type[Exact] | type[LowerBound] | type[UpperBound] | type[Estimate] | type[Unavailable]
A = TypeVar("A", bound=Available)

SYMBOL: dict[Kind, str] = {Exact: "=", LowerBound: "≥", UpperBound: "≤", Estimate: "≈", Unavailable: "—"}
KINDS: dict[str, Kind] = {k.__name__: k for k in SYMBOL}


def make(
    kind: Kind, nats: Tensor, measure: Measure, mc_se: Tensor | None = None, draws: int = 0, caveat: str = ""
) -> Available:
    """A likelihood of ``kind``; an ``Exact`` takes no Monte Carlo error.

    Example:
        >>> import torch
        >>> from pofx.core.measure import Measure
        >>> elbo = make(LowerBound, torch.tensor([-3.2]), Measure.lebesgue(2), torch.tensor([0.1]), draws=16)
        >>> type(elbo).__name__, elbo.draws
        ('LowerBound', 16)
    """
    if kind is Exact:
        if draws:
            raise UsageError("An exact likelihood has no Monte Carlo draws.", "Return a bound or an estimate.")
        return Exact(nats, measure)
    se = torch.zeros_like(nats) if mc_se is None else mc_se
    if kind is LowerBound:
        return LowerBound(nats, measure, se, draws)
    if kind is UpperBound:
        return UpperBound(nats, measure, se, draws)
    if kind is Estimate:
        return Estimate(nats, measure, se, draws, caveat)
    raise UsageError(f"{kind.__name__} carries no number.", "Construct Unavailable(reason) directly.")


def mc_se(lik: Available) -> Tensor:
    """Monte Carlo standard error per datum (zero for an exact one), shaped like ``nats``."""
    return torch.zeros_like(lik.nats) if isinstance(lik, Exact) else lik.mc_se


def draws(lik: Available) -> int:
    return 0 if isinstance(lik, Exact) else lik.draws


def noise_of_mean(mc_se: Tensor, weight: Tensor | None = None) -> float:
    """Monte Carlo standard error of the mean over data of errors [N], weighted where there are weights."""
    noise = mc_se.double().flatten()
    each = noise / len(noise) if weight is None else noise * weight / weight.sum()
    return each.square().sum().sqrt().item()


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


def per_row(f: Callable[[Tensor], Tensor], lik: A) -> A:
    """Apply a shape change (reshape, index, ...) to every per-datum tensor."""
    if isinstance(lik, Exact):
        return dataclasses.replace(lik, nats=f(lik.nats))
    return dataclasses.replace(lik, nats=f(lik.nats), mc_se=f(lik.mc_se))


def cat(parts: Sequence[Likelihood], dim: int = 0) -> Likelihood:
    """Concatenate the rows of likelihoods of one kind and measure."""
    first = parts[0]
    if isinstance(first, Unavailable):
        return first
    for p in parts:
        if type(p) is not type(first) or p.measure != first.measure:  # type: ignore[union-attr]
            raise Incomparable("Rows of different kinds or measures cannot be joined.")
    nats = torch.cat([p.nats for p in parts], dim)  # type: ignore[union-attr]
    se = None if isinstance(first, Exact) else torch.cat([mc_se(p) for p in parts], dim).detach()  # type: ignore[arg-type]
    caveat = first.caveat if isinstance(first, Estimate) else ""
    return make(type(first), nats, first.measure, se, draws(first), caveat)


def stack(parts: Sequence[Likelihood]) -> Likelihood:
    """Likelihoods of one kind and measure side by side: nats [..., K] of K parts."""
    return cat([p if isinstance(p, Unavailable) else per_row(lambda t: t[..., None], p) for p in parts], dim=-1)


# -- as text -----------------------------------------------------------------------------------------------


def text(lik: Likelihood) -> str:
    """Such as "= -3.210 ± 0.040 nats (30 rows)", "≥ -85.32 nats (mc 0.02)" of one row, or "— (reason)".

    It is the mean over all rows with their standard error; where the Monte Carlo error is not small beside that one,
    where rows are impossible and what limits an estimate stand in brackets.
    """
    if isinstance(lik, Unavailable):
        return f"{SYMBOL[Unavailable]} ({lik.reason})"
    nats = lik.nats.detach().double().flatten()
    n, impossible = len(nats), int((nats == -math.inf).sum())
    if n == 0:
        return f"{SYMBOL[type(lik)]} (no rows)"
    mean = nats.mean().item()
    se = (nats.std() / math.sqrt(n)).item() if n > 1 and math.isfinite(mean) else None
    about = [f"{n:,} rows"] if n > 1 and not impossible else []
    about += [lost(type(lik), impossible, n)] if impossible else []
    if draws(lik) and math.isfinite(mean) and ((noise := noise_of_mean(mc_se(lik))) > (se or 0.0) / 3):
        about.append(f"mc {noise:.2g}")  # a smaller one hardly widens the error
    about += [lik.caveat] if isinstance(lik, Estimate) and lik.caveat else []
    brackets = f" ({'; '.join(about)})" if about else ""
    return f"{SYMBOL[type(lik)]} {with_error(mean, se)} nats{brackets}"


def lost(kind: Kind, impossible: int, n: int) -> str:
    """Of how many of n rows the number is -inf, and what that means of its kind."""
    meaning: dict[Kind, str] = {LowerBound: "without a bound", Estimate: "estimated as impossible"}
    return f"{impossible:,} of {n:,} row{'s' * (n > 1)} {meaning.get(kind, 'impossible')}"


def with_error(value: float, se: float | None) -> str:
    """``value ± se`` with two significant digits of the error: 85.3 ± 1.2, 0.1570 ± 0.0042; in powers of ten from 1e9.

    Without the error where that is not known, and infinity as its sign.

    Example:
        >>> with_error(85.3214, 1.234), with_error(0.157, 0.0042)
        ('85.3 ± 1.2', '0.1570 ± 0.0042')
    """
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "∞" if value > 0 else "−∞"
    known = se is not None and math.isfinite(se)
    if abs(value) >= 1e9:
        return f"{value:.3g}" + (f" ± {se:.2g}" if known else "")
    if se is None or not known:
        return f"{value:.2f}"
    places = 2 if se == 0 else min(6, max(0, 1 - math.floor(math.log10(se))))
    return f"{value:.{places}f} ± {se:.{places}f}"


# -- comparison ----------------------------------------------------------------------------------------------

Verdict: TypeAlias = Literal["better", "worse", "undecided"]


FEWEST = 3  # rows of which a mean difference has an error worth the name


@dataclass(frozen=True)
class Comparison:
    """Mean paired difference of two likelihoods on the same data, and what it allows one to say.

    Attributes:
        verdict: of a against b.
        nats: mean of a - b per datum; infinite where one of them holds a datum impossible, NaN where there is none.
        se: its standard error, data and Monte Carlo together; None where the data do not tell it (one datum, an
            infinite mean).
        sign: 1 or -1 where the difference is beyond its error (see ``compare``), else 0; of the numbers as they
            stand, whatever their kinds allow one to conclude.
        why: in words.
    """

    verdict: Verdict
    nats: float
    se: float | None
    sign: int
    why: str


def compare(a: Likelihood, b: Likelihood, *, z: float = 2.0, weight: Tensor | None = None) -> Comparison:
    """Is ``a`` better than ``b`` on these data (same rows, in the same order; ``weight`` [N] weighs them)?

    ``better`` only where a lower limit of a (exact or lower bound) beats an upper limit of b (exact or upper bound)
    and the mean paired difference is beyond its error. An estimate decides nothing. Beyond its error is

    - an infinite difference: b holds impossible (log p = -inf) what a does not, on one datum or more;
    - of three rows or more, a mean of more than t standard errors: the quantile of Student's t (a degree of freedom
      less than there are rows) that is exceeded as rarely as ``z`` by a normal one;
    - of three rows or more that all agree, a smallest difference of more than the same t times (1 nat + the standard
      deviation of the scores of the steadier model): however far the other one's scores spread, which is what makes
      the error of the mean large, no row comes near to changing the sign.

    Of one or two rows there is no error to compare with. Raises Incomparable when the measures differ.

    Example:
        >>> import torch
        >>> from pofx.core.measure import Measure
        >>> rows = torch.linspace(-1, 1, 100)
        >>> flow = Exact(rows - 3.2, Measure.lebesgue(2))
        >>> elbo = LowerBound(rows - 3.5, Measure.lebesgue(2), torch.zeros(100), draws=0)
        >>> compare(flow, elbo).verdict  # what the bound hides may be more than 0.3 nats
        'undecided'
        >>> compare(flow, Exact(rows - 3.5, Measure.lebesgue(2))).verdict
        'better'
    """
    if isinstance(a, Unavailable) or isinstance(b, Unavailable):
        return Comparison("undecided", math.nan, None, 0, "there is no likelihood to compare")
    if a.measure != b.measure:
        raise Incomparable(
            f"Measures differ: {a.measure} against {b.measure}.",
            "Fit both models on one loaded data set, so that both score the same space.",
        )
    if a.nats.shape != b.nats.shape:
        raise Incomparable(f"{tuple(a.nats.shape)} data against {tuple(b.nats.shape)}.", "Score the same rows.")
    mean, se, sign, why = _difference(a.nats.double().flatten(), b.nats.double().flatten(), z, weight)
    if isinstance(a, Estimate) or isinstance(b, Estimate):
        return Comparison("undecided", mean, se, sign, "an estimate bounds nothing on either side")
    a_lower, a_upper = isinstance(a, Exact | LowerBound), isinstance(a, Exact | UpperBound)
    b_lower, b_upper = isinstance(b, Exact | LowerBound), isinstance(b, Exact | UpperBound)
    if a_lower and b_upper and sign > 0:
        return Comparison("better", mean, se, sign, f"lower limit above upper limit: {why}")
    if b_lower and a_upper and sign < 0:
        return Comparison("worse", mean, se, sign, f"upper limit below lower limit: {why}")
    if not (a_lower and b_upper) and not (b_lower and a_upper):
        return Comparison("undecided", mean, se, sign, "two bounds on the same side do not order the likelihoods")
    if sign == 0:
        return Comparison("undecided", mean, se, sign, why)
    return Comparison("undecided", mean, se, sign, "the gap of the bound may explain the difference")


def _difference(x: Tensor, y: Tensor, z: float, weight: Tensor | None) -> tuple[float, float | None, int, str]:
    """Mean of x - y [N], its standard error, its sign where it is beyond that error (else 0), and why."""
    w = torch.ones_like(x) if weight is None else weight.to(x)
    x, y, w = x[w > 0], y[w > 0], w[w > 0] / w.sum()
    lost = [int((v == -math.inf).sum()) for v in (x, y)]
    if all(lost):
        return math.nan, None, 0, f"both hold rows impossible, {lost[0]} and {lost[1]} of {len(w)}"
    if any(lost):
        sign = -1 if lost[0] else 1
        return sign * math.inf, None, sign, f"{max(lost)} of {len(w)} rows impossible under the other"
    diff = x - y
    mean = (w * diff).sum().item()
    if not math.isfinite(mean):
        return math.nan, None, 0, "a density that is infinite orders nothing"
    if len(w) == 1:
        return mean, None, 0, "the error of a difference on one row is unknown"
    # mc_se is noise of the scores on top of the spread between data, which already contains it: the
    # sample variance of the differences counts both once.
    scale = len(w) / (len(w) - 1)
    se = math.sqrt(scale * (w * (diff - mean)).square().sum().item())
    if len(w) < FEWEST:
        return mean, se, 0, f"{len(w)} rows are too few to tell the error of their difference"
    counting = 1 / w.square().sum().item()  # rows: as many as there are, where all weigh the same (Kish, 1965)
    sign, limit = (mean > 0) - (mean < 0), student(z, max(1.0, counting - 1))
    if abs(mean) > limit * se:
        return mean, se, sign, f"the difference is more than {limit:.3g} standard errors"
    steadier = min(x.std().item(), y.std().item())
    if (sign * diff).min().item() > limit * (1 + steadier):
        return mean, se, sign, f"all {len(w)} rows agree, by more than {limit:.3g} times the steadier one's spread"
    return mean, se, 0, f"difference within {limit:.3g} standard errors"


def student(z: float, freedom: float) -> float:
    """The quantile of Student's t, of so many degrees of freedom, that is exceeded as rarely as z by a normal one."""
    from scipy.special import ndtr, stdtrit

    return -float(stdtrit(freedom, ndtr(-z)))
