"""The checks of pofx's own numbers pass, and catch each mistake planted in it."""

import pytest

from pofx.testing.checks_numbers import NUMBERS
from pofx.testing.wrong_numbers import PLANTED


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_are_right(name):
    NUMBERS[name]()


@pytest.mark.parametrize("mistake", PLANTED, ids=lambda m: m.name)
def test_planted_mistakes_are_caught(mistake):
    caught = set()
    with mistake.planted():
        for name, check in NUMBERS.items():
            try:
                check()
            except (AssertionError, ValueError, IndexError):  # one that breaks the decoder is caught, too
                caught.add(name)
    assert caught == mistake.caught_by


def test_every_check_catches_something():
    assert frozenset(NUMBERS) == frozenset().union(*(m.caught_by for m in PLANTED))
