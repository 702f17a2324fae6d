"""The families of one comparison on their way to their rows: who runs, what is kept, who is dropped, what follows."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from pofx.core.likelihood import UpperBound, with_error
from pofx.data.parts import Part
from pofx.evaluate.engine import Engine
from pofx.evaluate.entrant import DUE, Entrant, Progress, Result, Tell, told
from pofx.evaluate.likelihood import Mean, decode, verdicts
from pofx.evaluate.plan import duration
from pofx.evaluate.recommend import recommend
from pofx.evaluate.study import Study, plain
from pofx.train.checkpoint import write_sealed
from pofx.train.run import ENDS

SHARES = (0.25, 0.5)  # of the budget, after which clear losers are dropped where that is asked for
STATUS = ("ok", "dropped", "failed", "refused")  # of rows, in this order


@dataclasses.dataclass
class Race:
    """The families of one comparison on their way to their rows."""

    record: dict[str, Any]
    study: Study
    crew: Engine
    entrants: dict[str, Entrant]
    results: dict[str, Result]
    path: Path | None
    runs: Path | None
    progress: Progress | None

    def run(self, preparing: float) -> None:
        """Let those without a row run, in rounds where losers are dropped; ``preparing``: seconds that this took."""
        self.started = time.perf_counter()
        before = self.record.get("times", {})  # it was interrupted
        self.before = {key: before.get(key, 0.0) + preparing for key in ("preparing", "wall")}
        self._settle({})
        left = [name for name in self.entrants if name not in self.results]
        for name in self.entrants:
            if name in self.results and self.results[name].row["status"] in ("ok", "dropped"):
                self._tell(name)("kept")
        if self.progress is not None:
            words = duration(self.study.settings, len(left), self.crew.workers)
            self.progress({"family": "", "stage": "planned", "title": words, "note": words})
        shares = (*SHARES, 1.0) if self.record["plan"]["halving"] else (1.0,)
        for until in shares[self.record["rounds"] :]:
            self._round(until)

    def _round(self, until: float) -> None:
        going = [entrant for name, entrant in self.entrants.items() if name not in self.results]
        reached: dict[str, Result] = {}
        with closing(self.crew.run(self.study, going, self._place, self._tell, until)) as ended:
            for name, result in ended:
                if result.row["status"] == DUE:
                    reached[name] = result
                    self.entrants[name] = dataclasses.replace(self.entrants[name], row=result.row)
                else:
                    self._settle({name: result})
        if until < 1:
            self.record["rounds"] += 1
            self._settle({name: Result(row) for name, row in self._dropped(reached).items()})

    def _dropped(self, reached: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
        """The rows of those that lost this round; one that has ended its fit is not stopped."""
        running = [name for name, r in reached.items() if r.row["fit"]["status"] not in ENDS]
        valid = {name: r.valid for name, r in reached.items() if r.valid is not None}
        lost = losers(valid, running, self.study.valid)
        rows = {name: reached[name].row for name in lost}
        why = {name: f"after {rows[name]['fit']['seconds']:.3g} s, {lost[name]}" for name in lost}
        return {name: row | {"status": "dropped", "reason": why[name]} for name, row in rows.items()}

    def _settle(self, results: Mapping[str, Result]) -> None:
        """These have their rows: conclude anew, save, and say for each a line and how many have theirs."""
        self.results |= results
        known = {name: self.results[name] for name in self.entrants if name in self.results}
        conclude(self.record, self.study, known)
        spent = [row["times"] for row in self.record["rows"] if "times" in row]
        times = {key: round(sum(t[key] for t in spent), 3) for key in ("fitting", "evaluating", "else")}
        wall = self.before["wall"] + time.perf_counter() - self.started
        self.record["times"] = times | {"preparing": round(self.before["preparing"], 3), "wall": round(wall, 3)}
        if self.path is not None:
            write_sealed(self.path / "comparison.json", self.record)
        for name, result in results.items():
            row, done, of = result.row, len(self.results), len(self.entrants)
            words = row["likelihood"]["text"] if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
            self._tell(name)("done", {"note": f"{name}: {words}"})
            if self.progress is not None:
                self.progress(
                    {"family": "", "stage": "waiting", "title": f"{done} of {of} done", "progress": done / of}
                )

    def _place(self, name: str) -> Path | None:
        return None if self.runs is None else self.runs / name

    def _tell(self, name: str) -> Tell:
        place = list(self.entrants).index(name) + 1
        return partial(told, self.progress, name, f"[{place}/{len(self.entrants)}] {name}")


# -- what follows from the families that have run ------------------------------------------------------


def conclude(record: dict[str, Any], study: Study, results: Mapping[str, Result]) -> None:
    """Rows in order, verdicts, frontier and recommendation of what has run so far."""

    def order(row: Mapping[str, Any]) -> tuple[int, float]:
        nats = decode(row["likelihood"]["nats"]) if "likelihood" in row else math.nan
        return STATUS.index(row["status"]), math.inf if math.isnan(nats) else -nats

    settings = study.settings
    rows = sorted((r.row for r in results.values()), key=order)
    tested = {k: r.test for k, r in results.items() if r.test and r.test.available}
    pairs = verdicts(tested, study.test.weight, study.test.groups)
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


def losers(means: Mapping[str, Mean], running: Sequence[str], part: Part | None = None) -> dict[str, str]:
    """Of the families that are ``running``, those that are clearly worse than half of all, and why.

    Args:
        means: of validation rows, of all families that are still in the comparison.
        part: these rows, where they have weights or depend on each other.

    A family without a likelihood is neither dropped nor a reason to drop another; nor is one whose bound allows it
    to be better than its number (see ``core.likelihood.compare``).
    """
    weight, group = (None, None) if part is None else (part.weight, part.groups)
    pairs = verdicts({name: s for name, s in means.items() if s.available}, weight, group)
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
