"""Which family to take for stated needs, in words, with the reasons in figures.

Works on the plain rows of a comparison (see ``compare``). Some needs exclude (a family without latents
cannot serve ``latents``), some rank. Two families are ranked apart on a need only where their figures
differ by more than the errors allow; the family that fewest others clearly beat, summed over the needs,
is recommended. Where that does not single one out, the answer says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pofx.core.errors import UsageError
from pofx.core.likelihood import Estimate, Exact, LowerBound, Unavailable, UpperBound
from pofx.core.spelling import listed
from pofx.evaluate.likelihood import decode

Row = Mapping[str, Any]
Verdicts = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Need:
    """One thing a user may need of a model.

    Attributes:
        lacks: why a family cannot serve it, or None.
        figure: the number that says how well a family serves it.
        beats: whether the first row is clearly better than the second; never where the need does not rank.
    """

    lacks: Callable[[Row], str | None]
    figure: Callable[[Row], str]
    beats: Callable[[Row, Row, Verdicts], bool] = lambda a, b, verdicts: False


@dataclass(frozen=True)
class Recommendation:
    """The family for the needs, or None with those between which the figures do not decide.

    Attributes:
        needs: as stated. family: the recommended one; tied: all that are equally good, where it is None.
        excluded: family -> the need that it cannot serve, and why.
        beaten: family -> by how many others it is clearly beaten, summed over the needs.
        sentences: the recommendation in words.
    """

    needs: tuple[str, ...]
    family: str | None
    tied: tuple[str, ...]
    excluded: dict[str, str]
    beaten: dict[str, int]
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.sentences)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"text": self.text}


def check(needs: Sequence[str]) -> None:
    """Raise UsageError unless every need is one of ``NEEDS``."""
    for need in needs:
        if need not in NEEDS:
            raise UsageError(f"There is no need {need!r}.", f"Known needs: {', '.join(NEEDS)}.")


def recommend(
    rows: Sequence[Row],
    verdicts: Verdicts,
    needs: Sequence[str] = (),
    budget: str = "",
    dependent: Sequence[str] = (),
) -> Recommendation:
    """The family for ``needs`` among the rows of a comparison; without needs, one sentence per common need.

    Args:
        rows: of every family, fitted or not.
        verdicts: paired differences of held-out likelihood (``likelihood.verdicts``).
        needs: names in ``NEEDS``.
        budget: of every fit, in words; those that were dropped had less.
        dependent: real columns that others determine (``Data.dependent``): a density can grow along them without limit,
            so no family is recommended for its likelihood.
    """
    check(needs)
    fitted = [r for r in rows if r["status"] == "ok"]
    # the floor of every comparison is nobody's recommendation while anything else could be fitted
    field = [r for r in fitted if r["family"] != "independent"] or fitted
    if dependent and LIKELIHOODS.intersection(needs):
        return _without_limit(field, tuple(needs), tuple(dependent))
    if needs:
        advice = _decide(field, verdicts, tuple(needs), budget)
        return replace(advice, sentences=(*advice.sentences, *_far_below(fitted), *_dropped(rows)))
    sentences = ["No need was stated; one family per common need:"]
    for need in ("likelihood", "sample-quality", "fast-sampling", "latents", "outliers"):
        if dependent and need in LIKELIHOODS:
            without = _without_limit(field, (need,), tuple(dependent))
            sentences += [f"  {need}: {without.sentences[0]}", *without.sentences[1:]]
            continue
        answer = _decide(field, verdicts, (need,), budget)
        names = [answer.family] if answer.family else list(answer.tied)
        by_name = {r["family"]: r for r in field}
        figures = [f"{name} ({NEEDS[need].figure(by_name[name])})" for name in names[:3]]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        tie = " (undecided)" if len(names) > 1 else ""
        sentences.append(f"  {need}: {' or '.join(figures)}{more}{tie}." if names else f"  {need}: none can.")
    sentences += [*_far_below(fitted), *_dropped(rows)]
    sentences.append("State needs (--need) for one recommendation with its reasons.")
    return Recommendation((), None, (), {}, {}, tuple(sentences))


def _decide(field: Sequence[Row], verdicts: Verdicts, needs: tuple[str, ...], budget: str) -> Recommendation:
    excluded: dict[str, str] = {}
    for row in field:
        lacks = [f"{need}: {why}" for need in needs if (why := NEEDS[need].lacks(row))]
        if lacks:
            excluded[row["family"]] = "; ".join(lacks)
    able = [r for r in field if r["family"] not in excluded]
    if not able:
        return Recommendation(needs, None, (), excluded, {}, tuple(_nobody(needs, excluded)))

    def beats(a: Row, b: Row) -> list[str]:
        """The needs for which a clearly beats b."""
        return [need for need in needs if NEEDS[need].beats(a, b, verdicts)]

    def figures(row: Row, some: Sequence[str]) -> str:
        return "; ".join(f"{need} {NEEDS[need].figure(row)}" for need in some)

    beaten = {r["family"]: sum(len(beats(other, r)) for other in able if other is not r) for r in able}
    fewest = min(beaten.values())
    best = [r for r in able if beaten[r["family"]] == fewest]
    names = tuple(r["family"] for r in best)
    family, tied = (names[0], ()) if len(best) == 1 else (None, names)
    # in words: reasons, the next best, who was left out, and what the figures do not show
    if family is not None:
        out = [f"Take {family} for {_and(needs)}."]
    else:
        out = [f"Undecided for {_and(needs)}: the figures do not tell {_and(names)} apart."]
    out += [f"  {row['family']}: {figures(row, needs)}." for row in best[:4]]
    for row in sorted((r for r in able if r not in best), key=lambda r: beaten[r["family"]])[:2]:
        won = {need for b in best for need in beats(b, row)}
        lost = figures(row, [need for need in needs if need in won])
        out.append(f"  Next, {row['family']}: {lost or 'beaten by others'}.")
    out += [f"  Left out, {name}: {why}." for name, why in excluded.items()]
    if "likelihood" in needs:
        out += _estimates_above(best, able)
    if budget:
        out.append(f"All had {budget} to fit; a longer budget can change the order.")
    return Recommendation(needs, family, tied, excluded, beaten, tuple(out))


def _without_limit(field: Sequence[Row], needs: tuple[str, ...], columns: tuple[str, ...]) -> Recommendation:
    """No family, and why: a higher likelihood may only tell of a density collapsed further onto what is determined."""
    some = _and([repr(c) for c in columns[:6]]) + (f" and {len(columns) - 6} more" if len(columns) > 6 else "")
    them = "them" if len(columns) > 1 else "it"
    sentences = [
        f"No family can be recommended for {_and(needs)}: other columns determine {some}, and along {them} a density "
        "can grow without limit, the more the longer a family is fitted.",
        f"Leave {them} out and compare again: --drop {listed(columns)}",
    ]
    for row in field:
        parts = [
            f"{d['column']!r} given all other columns gives {decode(d['nats']):.3g}"
            for d in row.get("dependent") or []
            if "nats" in d
        ]
        figure = NEEDS["likelihood"].figure(row)
        sentences.append(f"  {row['family']}: likelihood {figure}{', of which ' * bool(parts)}{'; '.join(parts)}.")
    names = tuple(r["family"] for r in field)
    return Recommendation(needs, None, names, {}, {}, tuple(sentences))


def _far_below(fitted: Sequence[Row]) -> list[str]:
    """A family that is far worse than columns taken one by one has learned what does not hold for other rows."""
    floor = next((_nats(r) for r in fitted if r["family"] == "independent"), math.nan)
    below = [f"{r['family']} by {floor - _nats(r):.3g}" for r in fitted if FAR < floor - _nats(r) < math.inf]
    if not below:
        return []
    return [
        f"Of held-out rows the likelihood is far below that of independent columns: {_and(below)} nats per datum. "
        "What was fitted is noise of the training rows; give more rows or fewer columns."
    ]


def _nobody(needs: tuple[str, ...], excluded: Mapping[str, str]) -> list[str]:
    if not excluded:
        return ["Nothing could be fitted, so there is nothing to recommend."]
    fewest = min(len(why.split("; ")) for why in excluded.values())
    near = [f"{name} ({why})" for name, why in excluded.items() if len(why.split("; ")) == fewest]
    return [f"No family serves {_and(needs)}.", f"Nearest: {'; '.join(near[:4])}."]


def _dropped(rows: Sequence[Row]) -> list[str]:
    """Who had a shorter budget than all others."""
    early = [f"{r['family']} after {r['fit']['seconds']:.3g} s" for r in rows if r["status"] == "dropped"]
    return [f"Dropped before the budget was spent, and not judged: {', '.join(early)}."] if early else []


def _estimates_above(best: Sequence[Row], able: Sequence[Row]) -> list[str]:
    """Estimates guarantee nothing, so they lose to guarantees: say where one would be higher."""
    top = max(_nats(r) for r in best)
    higher = [r for r in able if _kind(r) == Estimate.__name__ and _nats(r) > top]
    return [
        f"  {r['family']} may be better: {r['likelihood']['text']}, but an estimate guarantees nothing." for r in higher
    ]


def _and(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else ", ".join(words[:-1]) + " and " + words[-1]


# -- figures of a row --------------------------------------------------------------------------------------


def get(node: Any, *path: str) -> Any:
    """A nested entry (of lists, by number), or None where a step is missing or was not available."""
    for key in path:
        if isinstance(node, list):
            node = node[int(key)] if int(key) < len(node) else None
        else:
            node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _nats(row: Row) -> float:
    return decode(get(row, "likelihood", "nats"))


def _kind(row: Row) -> str:
    return str(get(row, "likelihood", "kind") or Unavailable.__name__)


def _needs_number(row: Row) -> str | None:
    return f"no likelihood ({get(row, 'likelihood', 'note')})" if _kind(row) == Unavailable.__name__ else None


def _needs_finite(row: Row) -> str | None:
    """A number whose mean is minus infinity ranks nothing: on unseen data the family has failed."""
    lost = f"it loses on unseen data ({row['likelihood']['text']})" if _nats(row) == -math.inf else None
    return _needs_number(row) or lost


def _needs_exact(row: Row) -> str | None:
    exact = _kind(row) == Exact.__name__
    return _needs_finite(row) or (None if exact else f"its likelihood is no exact number ({row['likelihood']['text']})")


def _guarantees_more(a: Row, b: Row, verdicts: Verdicts) -> bool:
    """a promises more than b: its exact number or lower bound is above b's beyond the error of their difference.

    This ranks promises, not truths: a loose bound loses although its model may be better. An estimate
    promises nothing and an upper bound nothing from below, so they lose to exact numbers and lower bounds. Of two upper
    bounds the smaller says more, of two estimates the higher is preferred, and of one of each neither.
    """
    kinds = _kind(a), _kind(b)
    promises = [k in (Exact.__name__, LowerBound.__name__) for k in kinds]
    if promises[0] != promises[1]:
        return promises[0]
    if (kinds[0] == UpperBound.__name__) != (kinds[1] == UpperBound.__name__):
        return False
    sign = get(verdicts, a["family"], b["family"], "sign") or 0  # of a difference beyond its error
    return sign < 0 if kinds[0] == UpperBound.__name__ else sign > 0


def _cut(row: Row) -> str | None:
    """Samples cut short say nothing of how fast whole ones are drawn."""
    cut = get(row, "sampling", "cut")
    return None if cut is None else f"in its time only the first {cut:,} steps of each could be drawn"


def _cut_alike(beats: Callable[[Row, Row, Verdicts], bool]) -> Callable[[Row, Row, Verdicts], bool]:
    """Only among samples of which all were whole, or cut at one length."""
    return lambda a, b, found: get(a, "sampling", "cut") == get(b, "sampling", "cut") and beats(a, b, found)


def _measured(row: Row, *path: str) -> str | None:
    return None if get(row, *path) is not None else "not measured"


def _sized(
    figure: Callable[[Row], str],
    factor: float,
    *path: str,
    less: bool = False,
    lacks: Callable[[Row], str | None] = lambda row: None,
) -> Need:
    """More (or less) of one figure by more than ``factor``: what timings of one run on a shared machine can tell."""

    def beats(a: Row, b: Row, _: Verdicts) -> bool:
        x, y = float(get(a, *path)), float(get(b, *path))
        return x * factor < y if less else x > y * factor

    return Need(lambda row: lacks(row) or _measured(row, *path), figure, beats)


def _by_error(figure: Callable[[Row], tuple[float, float]], less: bool = False) -> Callable[[Row, Row, Verdicts], bool]:
    """Higher (or lower) by more than 2 standard errors of the difference."""

    def beats(a: Row, b: Row, _: Verdicts) -> bool:
        (x, sx), (y, sy) = figure(a), figure(b)
        return ((y - x) if less else (x - y)) > 2 * math.hypot(sx, sy)

    return beats


def _c2st(row: Row) -> tuple[float, float]:
    found = row["quality"]["c2st"]
    return found["accuracy"], found["se"]


def _copying(row: Row) -> tuple[float, float]:
    found = row["quality"]["memorisation"]
    return max(0.5, found["auroc"]), found["se"]


def _probe(row: Row) -> tuple[float, float]:
    found = get(row, "latents", "probe", "accuracy")
    return (math.nan, math.nan) if found is None else (found, row["latents"]["probe"]["se"])


def detections(row: Row) -> list[Row]:
    return [d for d in row.get("outliers") or [] if "auroc" in d]


def mean_auroc(row: Row) -> tuple[float, float]:
    """Mean AUROC over the kinds of outliers."""
    found = detections(row)
    n = len(found)
    return sum(d["auroc"] for d in found) / n, math.sqrt(sum(d["se"] ** 2 for d in found)) / n


def _latents_figure(row: Row) -> str:
    probe, active = get(row, "latents", "probe"), get(row, "latents", "usage", "active")
    used = f", {active} of {row['latents']['usage']['dims']} dimensions active" if active is not None else ""
    if get(probe, "accuracy") is None:
        return f"has latents{used}"
    return f"probe {probe['accuracy']:.1%} ± {probe['se']:.1%} (raw features {probe['raw_accuracy']:.1%}){used}"


def _plus(value: tuple[float, float]) -> str:
    return f"{value[0]:.3f} ± {value[1]:.3f}"


def amount(value: float) -> str:
    """A size or rate to three digits: 0.314, 12, 1.23k, 3.4M; ∞.

    Example:
        >>> amount(0.314), amount(1234), amount(3.4e6)
        ('0.314', '1.23k', '3.4M')
    """
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def _ability(name: str, why: str) -> Callable[[Row], str | None]:
    return lambda row: None if row["abilities"][name] else why


FAR = 1000.0  # nats per datum
LIKELIHOODS = frozenset({"exact-likelihood", "likelihood"})  # needs that rank families by it

NEEDS: dict[str, Need] = {
    "exact-likelihood": Need(_needs_exact, lambda r: str(r["likelihood"]["text"]), _guarantees_more),
    "likelihood": Need(_needs_finite, lambda r: str(r["likelihood"]["text"]), _guarantees_more),
    "fast-density": _sized(
        lambda r: f"{amount(r['likelihood']['rows_per_second'])} densities/s",
        1.5, "likelihood", "rows_per_second", lacks=_needs_number,
    ),
    "fast-sampling": _sized(
        lambda r: (
            f"{amount(r['sampling']['rows_per_second'])} samples/s, {1000 * r['sampling']['latency']:.3g} ms for one"
        ),
        1.5, "sampling", "rows_per_second", lacks=_cut,
    ),
    "sample-quality": Need(
        lambda r: _measured(r, "quality", "c2st", "accuracy"),
        lambda r: f"told from data in {_plus(_c2st(r))} of cases (0.5 is best)",
        _cut_alike(_by_error(_c2st, less=True)),
    ),
    "no-copying": Need(
        lambda r: _measured(r, "quality", "memorisation", "auroc"),
        lambda r: f"copying AUROC {r['quality']['memorisation']['auroc']:.3f} (0.5 or less is none)",
        _cut_alike(_by_error(_copying, less=True)),
    ),
    "latents": Need(_ability("latents", "it has no latent variable"), _latents_figure, _by_error(_probe)),
    "outliers": Need(
        lambda r: _needs_number(r) or (None if detections(r) else "not measured"),
        lambda r: f"AUROC {_plus(mean_auroc(r))}",
        _by_error(mean_auroc),
    ),
    "small": _sized(lambda r: f"{amount(r['fit']['parameters'])} parameters", 1.1, "fit", "parameters", less=True),
    "fast-fit": _sized(lambda r: f"fitted in {r['fit']['seconds']:.3g} s", 1.25, "fit", "seconds", less=True),
    "missing-values": Need(
        _ability("missing_values", "it takes no missing values"), lambda r: "takes missing values"
    ),
    "conditional": Need(_ability("conditional", "it takes no context"), lambda r: "can be conditioned"),
}  # fmt: skip
