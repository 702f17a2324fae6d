"""A family of a third party, in one file and known by its name alone, passes the suite that ours pass."""

import pytest

from pofx.testing.conformance import check_family, served
from third_party_laplace import Laplace


@pytest.mark.parametrize("case", [case.name for case in served(Laplace)])
def test_a_family_of_one_file_passes_the_suite(case):
    results = check_family(Laplace, names=[case])
    assert sum(result.outcome == "passed" for result in results) > 15
