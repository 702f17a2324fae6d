"""One suite that every family must pass, ours or a third party's: ``check_family(MyFamily)``.

A check takes a ``Subject``, a tiny model of the family trained on a source whose density is known, and raises
AssertionError (or any error) where the family breaks the contract. ``NotApplicable`` says that it has nothing to
say about this family on this case.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pofx.core.errors import UsageError
from pofx.core.family import idle
from pofx.core.model import Model
from pofx.testing import checks, checks_context, checks_latent, checks_sequence  # noqa: F401, which fill CHECKS
from pofx.testing.oracles import Case, cases
from pofx.testing.subject import CHECKS, NotApplicable, Subject


@dataclass(frozen=True)
class Result:
    """What one check found: passed, skipped, failed, or known (a declared failure that still fails)."""

    family: str
    case: str
    check: str
    outcome: str
    message: str = ""


def run_check(subject: Subject, name: str) -> Result:
    """One check on one subject, with declared failures taken strictly: they must fail."""
    reasons = subject.cls.known_failures
    declared = reasons.get(name) or reasons.get(f"{name}:{subject.case.name}")

    def result(outcome: str, message: str = "") -> Result:
        case = f"{subject.case.name}, {subject.variant}" if subject.variant else subject.case.name
        return Result(subject.cls.name, case, name, outcome, message)

    try:
        CHECKS[name](subject)
    except NotApplicable:
        return result("skipped")
    except Exception as error:  # a check fails by whatever the family raises
        if declared:
            return result("known", declared)
        last = traceback.extract_tb(error.__traceback__)[-1]
        return result("failed", f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})")
    if declared:
        return result("failed", f"declared to fail ({declared}), but passes: remove the declaration")
    return result("passed")


CONTEXT_CHECKS = (
    "rows are independent", "contexts do not leak", "no context is null", "context matters", "samples are of the space",
    "run folder round trip",
)  # fmt: skip
SPACE_CHECKS = (
    "kind is promised", "rows are independent", "sums to one", "never beats the truth", "score is the gradient",
    "energy is the density",
    "samples are of the space", "run folder round trip", "bad input is named",
)  # fmt: skip


def checks_of(case: Case) -> Iterable[str]:
    """The names of the checks on a case."""
    return CONTEXT_CHECKS if case.given is not None else SPACE_CHECKS if case.brief else CHECKS


def served(cls: type[Model], more: Iterable[Case] = ()) -> list[Case]:
    """The cases, and ``more`` of one's own, that a family does not refuse."""
    return [c for c in [*cases(), *more] if cls.refuses(c.space, c.context, cls.tiny(c.space)) is None]


def subjects(cls: type[Model], seed: int = 0, more: Sequence[Case] = ()) -> list[Subject]:
    """The family on every case that it serves, and its variants there that serve it, too."""
    return [
        Subject(cls, case, seed, variant)
        for case in served(cls, more)
        for variant, config in {"": cls.tiny(case.space), **cls.variants(case.space)}.items()
        if cls.refuses(case.space, case.context, config) is None
        and not (variant and idle(cls, case.space, case.context, config))
    ]


def check_family(
    cls: type[Model], names: Iterable[str] | None = None, *, seed: int = 0, more: Sequence[Case] = ()
) -> list[Result]:
    """Every check on every case that the family serves.

    Raises AssertionError listing what failed, UsageError for a case that there is not.

    Args:
        cls: the family; it is registered under its name, so that its runs can be read back.
        names: of cases, to run only those.
        more: cases of one's own, over a space of one's own.

    Example:
        >>> import pofx
        >>> results = check_family(pofx.family("independent"), ["categories"])
        >>> sorted({r.outcome for r in results})
        ['passed', 'skipped']
    """
    wanted = None if names is None else set(names)
    if unknown := sorted((wanted or set()) - {c.name for c in [*cases(), *more]}):
        raise UsageError(f"There is no case {unknown[0]!r}.", f"Cases: {', '.join(c.name for c in cases())}.")
    looked_at = [s for s in subjects(cls, seed, more) if wanted is None or s.case.name in wanted]
    results = [run_check(subject, name) for subject in looked_at for name in checks_of(subject.case)]
    failed = [r for r in results if r.outcome == "failed"]
    assert not failed, "\n".join(f"{r.family} · {r.case} · {r.check}: {r.message}" for r in failed)
    return results
