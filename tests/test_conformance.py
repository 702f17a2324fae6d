"""Every check of the suite, over every registered family and every case that it serves."""

import pytest

from pofx.core.registry import BUILT_IN, family
from pofx.testing.conformance import Subject, checks_of, run_check, subjects
from pofx.testing.oracles import cases

ALL = [(name, s.case.name, s.variant) for name in BUILT_IN for s in subjects(family(name))]


@pytest.mark.parametrize(("name", "case_name", "variant"), ALL, ids=[" · ".join(filter(None, one)) for one in ALL])
def test_conformance(name, case_name, variant):
    s = Subject(family(name), next(c for c in cases() if c.name == case_name), variant=variant)
    results = [run_check(s, check) for check in checks_of(s.case)]
    failed = [f"{r.check}: {r.message}" for r in results if r.outcome == "failed"]
    assert not failed, "\n" + "\n".join(failed)
    assert sum(r.outcome == "passed" for r in results) >= (6 if s.case.given is None else 3)


def test_every_family_serves_a_case_with_and_without_context():
    """A family that the suite never sees is not checked."""
    for name in BUILT_IN:
        contexts = {next(c for c in cases() if c.name == case).context is None for n, case, _ in ALL if n == name}
        assert contexts == ({False} if name == "classifier" else {True, False}), name
