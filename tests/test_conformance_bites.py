"""The suite passes right models and catches each deliberately wrong one by the checks meant for it."""

import pytest

import pofx
from pofx.core.errors import UsageError
from pofx.testing.conformance import CHECKS, Subject, check_family, run_check, served
from pofx.testing.wrong import RIGHT, WRONG
from pofx.testing.wrong_latent import Autoencoder
from pofx.testing.wrong_sequence import Bigrams, Translator


@pytest.mark.parametrize("cls", [*RIGHT, Autoencoder, Bigrams, Translator], ids=lambda c: c.name)
def test_right_models_pass(cls):
    results = check_family(cls)
    assert any(r.outcome == "passed" for r in results)


@pytest.mark.parametrize("cls", WRONG, ids=lambda c: c.name)
def test_wrong_models_are_caught(cls):
    subjects = [Subject(cls, case) for case in served(cls)]
    caught = {name for s in subjects for name in WRONG[cls] if run_check(s, name).outcome == "failed"}
    assert caught == WRONG[cls], f"missed by {WRONG[cls] - caught}"


def test_every_check_of_the_suite_catches_something_or_is_named():
    """A check that no wrong model trips could not fail; the few about interfaces are listed."""
    tripped = set().union(*WRONG.values())
    interface = {"samples resemble the data", "encoding has its shape", "bad input is named"}
    assert set(CHECKS) - tripped == interface


def test_a_case_that_there_is_not_is_named():
    with pytest.raises(UsageError, match="There is no case 'gray image'"):
        check_family(pofx.family("independent"), ["gray image"])
