"""``torch.compile`` where it pays: both kinds of step are timed within the fit itself, and the faster one is kept.

Every timed step is a step of the training, so nothing is thrown away but the time that the compiler takes. What is
compiled is the objective of a ``GradientLearner``: neither the model nor its state dict knows of it, so checkpoints
keep their names, and validation, likelihoods and sampling stay as they are.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from pofx.core.learner import Batch, GradientLearner, Learner

FIRST = 3  # steps of each kind that are not compared: caches are cold, and shapes that change are compiled twice
COUNT = 10  # steps of each kind whose median is compared
Kind = Literal["eager", "compiled"]  # of steps
LEAST = 240.0  # seconds of the budget that must be left: compiling cannot be interrupted, and may take a quarter of it


@dataclass(frozen=True)
class Outcome:
    """What came of it; times of a step in milliseconds, None where they were not measured."""

    kept: Kind
    eager: float | None = None
    compiled: float | None = None
    seconds: float | None = None  # that compiling took
    why: str = ""  # it was not tried, or given up

    @property
    def text(self) -> str:
        measured = [
            f"{kind} {ms:,.2f} ms/step" for kind, ms in (("eager", self.eager), ("compiled", self.compiled)) if ms
        ]
        if self.seconds is not None:
            measured.append(f"{self.seconds:.1f} s spent compiling")
        return f"{self.kept} steps kept" + "".join(f"; {part}" for part in (self.why, ", ".join(measured)) if part)


def told(log: Iterable[Mapping[str, Any]]) -> str:
    """What the log of a run says about compiling; empty where it was not asked for, or is not yet decided."""
    found = [entry["compile"] for entry in log if "compile" in entry]
    return Outcome(**found[-1]).text if found else ""


class Trial:
    """Takes a learner's steps: eager ones, then compiled ones, then the faster.

    Args:
        learner: whose objective may be compiled.
        processes: of the fit; with more than one nothing is tried, for a failure in one would leave the others waiting.
    """

    def __init__(self, learner: Learner, processes: int) -> None:
        self.learner = learner
        self.outcome: Outcome | None = None
        self.untold: Outcome | None = None  # the outcome until it is in the log
        self.times: list[float] = []  # seconds of the steps of the present kind
        self.eager: float | None = None  # seconds of an eager step, once measured
        if not isinstance(learner, GradientLearner):
            self._keep("eager", "only families with one objective can be compiled")
        elif processes > 1:
            self._keep("eager", "only fits in one process can be compiled")
        else:
            self.objective = learner.objective

    def step(self, batch: Batch, noise: Generator, left: Callable[[float], float]) -> dict[str, Tensor]:
        """One step of the learner; ``left`` says how many seconds of the budget are left at so many per step."""
        started = perf_counter()
        try:
            if self.outcome is None and self.eager is not None and not self.times:
                self._use(torch.compile(self.objective))
            terms = self.learner.step(batch, noise)
        except Exception as error:
            if self.eager is None or (self.outcome is not None and self.outcome.kept == "eager"):
                raise
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".strip(": ")
            self._keep("eager", f"compiling failed ({reason})", seconds=perf_counter() - started + sum(self.times))
        else:
            if self.outcome is None:
                self.times.append(perf_counter() - started)
                if len(self.times) == FIRST + COUNT:
                    self._judge(statistics.median(self.times[FIRST:]), left)
            return terms
        # No weight has moved yet, so the step can be taken as it is; an error of its own comes again.
        return self.learner.step(batch, noise.manual_seed(noise.initial_seed()))

    def _judge(self, each: float, left: Callable[[float], float]) -> None:
        """All steps of one kind are timed, at ``each`` seconds."""
        if self.eager is None:
            self.eager, self.times = each, []
            if left(each) < LEAST:
                self._keep("eager", f"{left(each):.0f} s were left, and compiling is tried with {LEAST:.0f} s or more")
        else:
            extra = max(0.0, sum(self.times) - len(self.times) * each)
            self._keep("compiled" if each < self.eager else "eager", compiled=each, seconds=extra)

    def _keep(self, kept: Kind, why: str = "", compiled: float | None = None, seconds: float | None = None) -> None:
        if kept == "eager" and self.eager is not None:
            self._use(self.objective)
        eager, compiled = (None if t is None else round(1000 * t, 3) for t in (self.eager, compiled))
        self.outcome = Outcome(kept, eager, compiled, None if seconds is None else round(seconds, 1), why)
        self.untold = self.outcome

    def _use(self, objective: Any) -> None:
        assert isinstance(self.learner, GradientLearner)
        self.learner.objective = objective

    def news(self, over: bool) -> dict[str, Any]:
        """The outcome for the log, once: when it is decided, or when the fit is over; empty before and after."""
        if over and self.outcome is None:
            self._keep("eager", "the fit ended before both kinds of steps were timed")
        outcome, self.untold = self.untold, None
        return {} if outcome is None else {"compile": dataclasses.asdict(outcome)}
