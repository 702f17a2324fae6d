"""Ctrl-C, SIGTERM and SIGHUP while a fit runs: the step in progress is finished and saved before it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pofx.core.errors import Stopped

USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
AGAIN = 0.3  # seconds after which a second Ctrl-C is meant: one may reach a process twice


class Watch:
    """What has been asked of a fit by signals.

    Args:
        path: the run folder. Without one there is nothing to save, and signals do what they always do.
        child: of a process that fits: every signal asks for an orderly end, however often it comes.
    """

    def __init__(self, path: Path | None, child: bool = False) -> None:
        self.path, self.child = path, child
        self.asked: signal.Signals | None = None  # to stop after the step in progress
        self.since = 0.0
        self.hasty = False  # asked again, to stop at once
        self.patient = False  # is a step in progress, or a save?
        self.place = "before its first step"  # where a signal that does not wait ends the fit
        self.processes = False  # do processes of ours train, which are to be told?

    @contextmanager
    def installed(self) -> Iterator[Watch]:
        """Inside, signals are watched: in the main thread, and those that nobody else handles or ignores.

        A signal that comes when all is done and saved still ends what the caller was about to do next.
        """
        mine = {}
        if self.path is not None and threading.current_thread() is threading.main_thread():
            mine = {number: usual for number, usual in USUAL.items() if signal.getsignal(number) == usual}
        try:
            for number in mine:
                signal.signal(number, self._handle)
            yield self
        finally:
            for number, usual in mine.items():
                signal.signal(number, usual)
        if self.asked is not None and not self.child:
            raise self.stopped("when the fit had ended; all is saved")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal does not wait: nothing is in progress that would be lost or left half done."""
        self.patient, self.place = False, "in a validation"
        try:
            if self.asked is not None:
                raise self.stopped(self.place)
            yield
        finally:
            self.patient = True

    def stopped(self, when: str) -> Stopped:
        assert self.asked is not None
        return Stopped(self.asked, f"Stopped by {self.asked.name} {when}.", f"Go on with it: pofx resume {self.path}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, now = self.asked is None, time.monotonic()
        if first:
            self.asked, self.since = signal.Signals(number), now
            for process in multiprocessing.active_children() if self.processes else []:
                process.terminate()  # SIGTERM: each saves and ends by itself
        self.hasty = not self.child and number == signal.SIGINT and now - self.since > AGAIN
        if self.hasty:
            raise self.stopped("in the middle of a step; what was saved before it stands")
        if first and not self.patient and not self.child:
            raise self.stopped(self.place)
        if first and not self.child:
            os.write(2, b"\npofx: finishing the step and saving; Ctrl-C again stops at once\n")
