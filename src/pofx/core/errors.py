"""Every error a user can cause, by name. A message gives the value, the limit and the remedy.

PofxError
├── UsageError          exit 2   an argument that cannot work (unknown family, impossible budget)
├── DataError           exit 3   a source that cannot be read or does not fit its space
│   ├── MissingSource · EmptyData · RaggedTable · CorruptFile
│   ├── UnknownFormat   a file of a kind that no reader is for
│   ├── BadValue        NaN, infinity, out of range, unknown category or label
│   ├── WrongShape      shape or dtype of another space
│   └── DataChanged     a run's own data, read again, are not what they were
├── Unsupported         exit 4   a family that does not serve this space, context or operation
├── RunError            exit 5   run folders and checkpoints
│   ├── RunExists · RunBusy · NoRun · CorruptCheckpoint · OlderFormat · NewerFormat · CannotSave
├── TrainingError       exit 6   training that cannot go on
│   ├── Diverged · OutOfMemory
│   ├── NotANumber      a model whose answer is NaN or infinite
│   └── NotInverted     an inverse that does not lead back to where it began
└── Incomparable        exit 7   numbers of different measures

Stopped (exit 128 + the signal) is no PofxError but a KeyboardInterrupt: nothing that catches errors holds it up.
"""

from __future__ import annotations


class PofxError(Exception):
    """What went wrong (with the value and the limit), then what to do about it."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem} {remedy}".strip())

    def __reduce__(self) -> tuple[object, ...]:  # between processes both stay what they are
        return type(self), (self.problem, self.remedy)


class UsageError(PofxError):
    exit_code = 2


class DataError(PofxError):
    exit_code = 3


class MissingSource(DataError):
    pass


class EmptyData(DataError):
    pass


class RaggedTable(DataError):
    pass


class CorruptFile(DataError):
    pass


class UnknownFormat(DataError):
    pass


class BadValue(DataError):
    pass


class WrongShape(DataError):
    pass


class DataChanged(DataError):
    pass


class Unsupported(PofxError):
    exit_code = 4


class RunError(PofxError):
    exit_code = 5


class RunExists(RunError):
    pass


class RunBusy(RunError):
    pass


class NoRun(RunError):
    pass


class CorruptCheckpoint(RunError):
    pass


class OlderFormat(RunError):
    pass


class NewerFormat(RunError):
    pass


class CannotSave(RunError):
    pass


class TrainingError(PofxError):
    exit_code = 6


class Diverged(TrainingError):
    pass


class OutOfMemory(TrainingError):
    pass


class NotANumber(TrainingError):
    pass


class NotInverted(TrainingError):
    pass


class Incomparable(PofxError):
    exit_code = 7


class Stopped(KeyboardInterrupt):
    """A signal ended a fit: when, and how to go on."""

    def __init__(self, number: int, problem: str, remedy: str = "") -> None:
        self.number, self.problem, self.remedy = number, problem, remedy
        self.exit_code = 128 + number
        super().__init__(f"{problem} {remedy}".strip())
