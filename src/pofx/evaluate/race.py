"""The families of one comparison on their way to their rows: who runs, what is kept, who is dropped."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from pofx.evaluate.conclude import conclude, losers
from pofx.evaluate.engine import Engine
from pofx.evaluate.entrant import DUE, Entrant, Progress, Result, Tell, told
from pofx.evaluate.plan import duration
from pofx.evaluate.study import Study
from pofx.train.checkpoint import write_sealed
from pofx.train.run import ENDS

SHARES = (0.25, 0.5)  # of the budget, after which clear losers are dropped where that is asked for


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
        lost = losers(valid, running, self.study.valid.weight)
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
