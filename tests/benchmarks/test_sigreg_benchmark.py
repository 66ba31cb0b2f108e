import argparse

import jax
import numpy as np
import pytest

from hamjepa_jax.benchmarks import sigreg
from hamjepa_jax.stats.univariate import TESTS

OPTIONS = argparse.Namespace(against=None, repeats=2, cores=2)
RATES = {"operations": 1e9, "bytes": 1e9}


def small(case):
    return case._replace(samples=8, dim=16, directions=min(case.directions, 4))


def test_every_statistic_has_its_case():
    names = {case.statistic for case in sigreg.OTHER_CASES}
    assert set(TESTS) - {"epps_pulley"} < names


@pytest.mark.parametrize("case", [sigreg.SIGREG, *sigreg.OTHER_CASES], ids=lambda case: case.statistic)
def test_value_and_gradient_are_measured(case):
    case = small(case)
    z = jax.random.normal(jax.random.key(0), (2, case.samples, case.dim))
    directions = np.eye(case.dim, case.directions, dtype=np.float32) if case.directions else None
    value, gradient = jax.jit(jax.value_and_grad(sigreg.statistic(case)))(z, directions)
    assert value.shape == ()
    assert np.any(gradient != 0)
    measured = sigreg.measure(case, OPTIONS, RATES)
    assert len(measured["seconds"]) == 2
    # Embeddings are read, and as large a gradient is written.
    assert measured["floor"] >= 2 * z.nbytes / 1e9


def test_table():
    row = small(sigreg.SIGREG)._asdict() | {
        "seconds": [0.001, 0.002, 0.003],
        "torch_seconds": [0.008],
        "floor": 0.0005,
        "temporary_bytes": 4 * 2 * 8 * 4 * 3,
    }
    table = sigreg.markdown_table([row, row | {"torch_seconds": None, "directions": 0}]).splitlines()
    assert table[2] == "| sigreg | 8 | 16 | 4 | 17 | 2.0 | 0.50 | 4.0 | 8.0 | 0.25 | 3.0 |"
    assert table[3] == "| sigreg | 8 | 16 |  | 17 | 2.0 | 0.50 | 4.0 | | |  |"
