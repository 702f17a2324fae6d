"""Every check of the suite, over every registered family and every case that it serves."""

import pytest

from pofx.core.registry import BUILT_IN, family
from pofx.testing.conformance import Subject, checks_of, run_check, served
from pofx.testing.oracles import cases

PAIRS = [(name, case.name) for name in BUILT_IN for case in served(family(name))]


@pytest.mark.parametrize(("name", "case_name"), PAIRS, ids=[f"{n} · {c}" for n, c in PAIRS])
def test_conformance(name, case_name):
    s = Subject(family(name), next(c for c in cases() if c.name == case_name))
    results = [run_check(s, check) for check in checks_of(s.case)]
    failed = [f"{r.check}: {r.message}" for r in results if r.outcome == "failed"]
    assert not failed, "\n" + "\n".join(failed)
    assert sum(r.outcome == "passed" for r in results) >= (6 if s.case.given is None else 3)


def test_every_family_serves_a_case_with_and_without_context():
    """A family that the suite never sees is not checked."""
    for name in BUILT_IN:
        contexts = {next(c for c in cases() if c.name == case).context is None for n, case in PAIRS if n == name}
        assert contexts == ({False} if name == "classifier" else {True, False}), name
