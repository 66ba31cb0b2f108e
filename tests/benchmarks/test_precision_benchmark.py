import jax
import pytest

from hamjepa_jax.benchmarks import precision


@pytest.fixture(scope="module")
def measured():
    """Measurements of a small flow in every precision."""
    with jax.enable_x64(True):
        return {name: precision.measure(0, 4, 2, name) for name in precision.PRECISIONS}


def test_a_wider_type_is_more_accurate(measured):
    for name in ("symplectic_defect", "log_abs_det", "p_displacement_error"):
        double, single, half = (measured[dtype][name] for dtype in ("float64", "float32", "bfloat16"))
        assert double < 1e-14
        assert double < single < 1e-4 < half, name


def test_rounding_the_result_costs_more_than_computing_it_in_float32(measured):
    exact, single = measured["float64"], measured["float32"]
    assert 0.1 < single["p_displacement_error_after_cast"] < 0.3
    assert single["p_displacement_error_after_cast"] == pytest.approx(
        exact["p_displacement_error_after_cast"], rel=1e-3
    )


def test_the_table_has_a_row_for_every_case():
    names = {name: 1e-7 for _, name in precision.COLUMNS.values()}
    runs = [
        {"seed": seed, "dim": dim, "num_steps": 2, "precision": dtype} | names | {"log_abs_det": 2e-7 * (1 + seed)}
        for seed in range(2)
        for dim in (64, 8)
        for dtype in precision.PRECISIONS
    ]
    header, _, first, second = precision.markdown_table(runs).splitlines()
    assert header.startswith("| d | steps | defect, float64 | defect, float32 |")
    assert first.startswith("| 8 | 2 | 1.0e-07 ± 0e+00 |")
    assert "| 3.0e-07 ± 1e-07 |" in second
    assert second.startswith("| 64 | 2 |")
