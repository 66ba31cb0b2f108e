import argparse

import pytest

from hamjepa_jax.benchmarks import flow
from hamjepa_jax.dynamics.integrators import SCHEMES

OPTIONS = argparse.Namespace(repeats=2)
RATES = {"operations": 1e9, "bytes": 1e9}
SMALL = flow.Case(dim=8, num_steps=2, batch_size=4)


def test_value_and_gradient_are_measured():
    measured = flow.measure(SMALL, OPTIONS, RATES)
    assert len(measured["seconds"]) == 2
    assert min(measured["seconds"]) > 0
    assert measured["floor"] == measured["operations"] / 1e9
    # Twice as many steps need one more force for each, and that is most of the work.
    longer = flow.measure(SMALL._replace(num_steps=4), OPTIONS, RATES)
    assert longer["operations"] == pytest.approx(5 / 3 * measured["operations"], rel=0.05)


def test_what_is_large_is_as_long_as_its_bytes_take():
    measured = flow.measure(SMALL, OPTIONS, RATES | {"bytes": 1.0})
    assert measured["floor"] == 2 * 4 * 2 * 4 * 16


def test_cases_are_known():
    assert {case.scheme for case in flow.CASES} <= set(SCHEMES)
    assert len(set(flow.CASES)) == len(flow.CASES)


def test_table():
    row = SMALL._asdict() | {"seconds": [0.001, 0.002, 0.003], "floor": 0.0005, "temporary_bytes": 1_500_000}
    assert flow.markdown_table([row]).splitlines()[2] == "| leapfrog | 8 | 2 | 8 | 2.00 | 0.50 | 4.0 | 1.5 |"
