"""One budget for all stages of a fit: when each of them is over, and how far the fit is in all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Stage
from pofx.core.model import Model
from pofx.core.options import POSITIVE, Options


@dataclass
class State:
    """The counters of training; with weights and learner state, all that a resume needs."""

    step: int = 0
    seconds: float = 0.0
    checks: int = 0  # validations done
    stage: int = 0  # the number of the present one; what follows is its own
    begun: int = 0  # the step at which it began
    begun_at: float = 0.0  # the second
    best: float | None = None  # best validation number so far, nats
    best_step: int = 0
    stale: int = 0  # validations since it improved
    valid_rows: int = 0  # of every validation; 0 until the first

    def next_stage(self) -> State:
        """At the beginning of the next stage."""
        return State(self.step, self.seconds, self.checks, self.stage + 1, self.step, self.seconds)


@dataclass(frozen=True)
class Limit(Options):
    """The budget of a fit, in exactly one unit."""

    seconds: float | None = None
    steps: int | None = None
    epochs: int | None = None

    ranges = {"seconds": POSITIVE}

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            raise UsageError(f"A budget has one unit; given: {given or 'none'}.", "Give seconds, steps or epochs.")

    def progress(self, state: State, stages: Sequence[Stage], per_epoch: int) -> float:
        """How much of the present stage's share is used, from 0 to 1 (or beyond)."""
        end = self._end(state, stages, per_epoch)
        now, begun = (state.step, state.begun) if self.seconds is None else (state.seconds, state.begun_at)
        return (now - begun) / (end - begun) if end > begun else 1.0

    def left(self, state: State, stages: Sequence[Stage], per_epoch: int, each: float) -> float:
        """How many seconds are left of the present stage, at ``each`` seconds per step."""
        end = self._end(state, stages, per_epoch)
        return each * (end - state.step) if self.seconds is None else end - state.seconds

    def _end(self, state: State, stages: Sequence[Stage], per_epoch: int) -> float:
        """The step, or the second, at which the present stage is over: what one leaves of its share, the next has.

        Epochs are the stage's own, of as many steps as its batches need. A stage has one step at least.
        """
        stage, later = stages[state.stage], stages[state.stage + 1 :]
        if self.epochs is not None:
            return state.begun + max(1, round(self.epochs * stage.share * per_epoch))
        share = 1 - sum(s.share for s in later)
        if self.seconds is not None:
            return self.seconds * share
        assert self.steps is not None
        return max(state.begun + 1, min(round(self.steps * share), self.steps - len(later)))


def overall(state: State, stages: Sequence[Stage], done: float) -> float:
    """How much of the whole budget is used where ``done`` of the present stage's share is."""
    return sum(s.share for s in stages[: state.stage]) + stages[state.stage].share * done


def check_stages(model: Model, stages: Sequence[Stage], limit: Limit, target: Model | None) -> None:
    """Raises UsageError where these stages cannot share the budget, Unsupported where they cannot share a target."""
    names, shares = [s.name for s in stages], [s.share for s in stages]
    if len(set(names)) < len(names) or min(shares) <= 0 or not math.isclose(sum(shares), 1):
        told = ", ".join(f"{s.name} {s.share:g}" for s in stages)
        raise UsageError(
            f"The stages of {model.name} are {told}.", "Each has its own name, and positive shares add up to 1."
        )
    if limit.steps is not None and limit.steps < len(stages):
        raise UsageError(
            f"{limit.steps} step cannot be shared by the stages {' and '.join(names)}.", "Give each one at least."
        )
    if target is not None and len(stages) > 1:
        raise Unsupported(
            f"A target distribution is joined to one loss; this {model.name} is fitted in the stages "
            f"{' and '.join(names)}.",
            "Leave out the target distribution.",
        )
