"""Labels and ticks of logarithmic axes."""

import pytest

from hamjepa_jax.report import drawing


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "10⁻⁴"),
        (-5e-15, "−5·10⁻¹⁵"),
        (0, "0"),
        (0.001, "0.001"),
        (0.02, "0.02"),
        (1, "1"),
        (2000, "2000"),
        (1e5, "10⁵"),
    ],
)
def test_labels_of_logarithmic_axes(value, text):
    assert drawing.power_text(value) == text


@pytest.mark.parametrize(("low", "high"), [(1e-18, 1e3), (1e-3, 1.0), (0.2, 0.9), (3.1, 3.2), (1.0, 1.0)])
def test_ticks_of_logarithmic_axes_are_few(low, high):
    ticks = drawing.log_ticks(low, high, 6)
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert min(ticks) >= low / 1.5
    assert max(ticks) <= high * 1.5
