"""What follows from the families that have run: rows in order, verdicts, frontier, recommendation; who is dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pofx.core.likelihood import UpperBound, with_error
from pofx.evaluate.entrant import Result
from pofx.evaluate.likelihood import Mean, decode, verdicts
from pofx.evaluate.recommend import recommend
from pofx.evaluate.study import Study, plain

STATUS = ("ok", "dropped", "failed", "refused")  # of rows, in this order


def conclude(record: dict[str, Any], study: Study, results: Mapping[str, Result]) -> None:
    """Rows in order, verdicts, frontier and recommendation of what has run so far."""

    def order(row: Mapping[str, Any]) -> tuple[int, float]:
        nats = decode(row["likelihood"]["nats"]) if "likelihood" in row else math.nan
        return STATUS.index(row["status"]), math.inf if math.isnan(nats) else -nats

    settings = study.settings
    rows = sorted((r.row for r in results.values()), key=order)
    pairs = verdicts({k: r.test for k, r in results.items() if r.test and r.test.available}, study.test.weight)
    advice = recommend(rows, pairs, settings.needs, settings.budget, study.data.dependent).to_json()
    record |= {"rows": rows, "verdicts": pairs, "frontier": _frontier(rows), "recommendation": plain(advice)}


def _frontier(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Expressiveness against tractability: per family the mean nats (with kind) and what they cost.

    ``best_for`` lists the speeds for which no other family is at least as good in both and better in one.
    Bounds stand at their value: a family whose bound is loose may be better than its point, and an upper bound, which
    promises nothing from below, is better than nobody. A family that holds a test row impossible is best for nothing.
    """
    points = [
        {
            "family": r["family"],
            "nats": r["likelihood"]["nats"],
            "se": r["likelihood"]["error"],
            "kind": r["likelihood"]["kind"],
            "densities_per_second": r["likelihood"]["rows_per_second"],
            "samples_per_second": None if r["sampling"].get("cut") else r["sampling"].get("rows_per_second"),
            "c2st": r["quality"].get("c2st", {}).get("accuracy"),
            "parameters": r["fit"]["parameters"],
        }
        for r in rows
        if r["status"] == "ok"
    ]

    def beats(a: Mapping[str, Any], b: Mapping[str, Any], speed: str) -> bool:
        ours, theirs = ((decode(p["nats"]), decode(p[speed])) for p in (a, b))
        if a["kind"] == UpperBound.__name__:
            return False
        return all(x >= y for x, y in zip(ours, theirs, strict=True)) and ours != theirs

    for p in points:
        p["best_for"] = [
            speed
            for speed in ("densities_per_second", "samples_per_second")
            if math.isfinite(decode(p["nats"])) and p[speed] is not None and not any(beats(q, p, speed) for q in points)
        ]
    return points


def losers(means: Mapping[str, Mean], running: Sequence[str], weight: Tensor | None) -> dict[str, str]:
    """Of the families that are ``running``, those that are clearly worse than half of all, and why.

    Args:
        means: of validation rows, of all families that are still in the comparison.
        weight: of these rows.

    A family without a likelihood is neither dropped nor a reason to drop another; nor is one whose bound allows it
    to be better than its number (see ``core.likelihood.compare``).
    """
    pairs = verdicts({name: s for name, s in means.items() if s.available}, weight)
    found = {}
    for name in running:
        better = {other: p for other, p in pairs.get(name, {}).items() if p["verdict"] == "worse"}
        if 2 * len(better) >= max(2, len(pairs)):
            other, pair = min(better.items(), key=lambda item: decode(item[1]["nats"]))
            by = with_error(-decode(pair["nats"]), pair["se"])
            found[name] = (
                f"clearly worse on {pair['n']:,} validation rows than {len(better)} of {len(pairs) - 1} other families "
                f"(than {other} by {by} nats)"
            )
    return found
