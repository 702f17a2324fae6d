"""As many threads as pay: a budget in seconds is spent on one thread or on all that torch has, whichever is faster.

Threads that wait for each other spin, so on a machine with busy cores two can be a hundred times slower than one; on a
quiet one a small net gains little from the second. What else a machine does changes, so both are timed again now and
then, by steps of the training itself. Budgets in steps and epochs keep their threads, and with them every bit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

COUNT = 3  # steps of each number that are timed; the first, on cold caches, is not compared
HOPELESS = 8.0  # a step on all threads that takes so many times one on a single thread ends the trial
PAUSE = 15  # from one trial to the next, in times of what it took


class Threads:
    """Runs steps on the number of threads, one or ``most``, that is faster just now."""

    def __init__(self, most: int) -> None:
        self.most = self.kept = most
        self.due = 0.0  # when the next trial begins
        self.times: dict[int, list[float]] = {}  # of a trial

    def run(self, step: Callable[[], T]) -> T:
        """One step."""
        started = time.perf_counter()
        if started < self.due:
            return step()
        number = 1 if len(self.times.get(1, ())) < COUNT else self.most
        torch.set_num_threads(number)
        result = step()
        self.times.setdefault(number, []).append(time.perf_counter() - started)
        if number > 1:
            self._judge(self.times[1], self.times[number])
        return result

    def _judge(self, one: list[float], all_: list[float]) -> None:
        """End the trial once it can be decided."""
        single = statistics.median(one[1:])
        hopeless = all_[-1] > HOPELESS * single
        if hopeless or len(all_) == COUNT:
            self.kept = 1 if hopeless or statistics.median(all_[1:]) > single else self.most
            torch.set_num_threads(self.kept)
            self.due = time.perf_counter() + PAUSE * (sum(one) + sum(all_))
            self.times = {}
