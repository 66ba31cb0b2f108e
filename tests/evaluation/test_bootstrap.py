import numpy as np
import pytest
from scipy import stats

from hamjepa_jax.evaluation.bootstrap import interval


def test_the_interval_of_an_accuracy_is_that_of_the_binomial_law():
    # A share of N images that are drawn with replacement is binomial.
    for size, share in ((400, 0.8), (2000, 0.5), (50, 0.1)):
        hits = np.arange(size) < share * size
        expected = stats.binom.ppf([0.025, 0.975], size, share) / size
        # 1,000 draws know the quantiles to about a seventh of the standard deviation.
        deviation = np.sqrt(share * (1 - share) / size)
        np.testing.assert_allclose(interval(hits, seed=0), expected, atol=0.25 * deviation + 1 / size)


def test_values_need_not_be_hits():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    low, high = interval(values, seed=0)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(1000), rel=0.1)


def test_methods_meet_the_same_draws_whatever_their_number():
    generator = np.random.default_rng(0)
    hits = generator.random((2, 3, 500)) < 0.7
    together = interval(hits, seed=1)
    assert together.shape == (2, 3, 2)
    np.testing.assert_array_equal(together[1, 2], interval(hits[1, 2], seed=1))
    assert np.any(together != interval(hits, seed=2))


def test_draws_in_blocks_are_the_same_draws(monkeypatch):
    hits = np.random.default_rng(0).random(300) < 0.7
    whole = interval(hits, seed=0)
    monkeypatch.setattr("hamjepa_jax.evaluation.bootstrap.BLOCK_ELEMENTS", 300 * 7)
    np.testing.assert_array_equal(interval(hits, seed=0), whole)


def test_what_is_always_right_has_no_spread():
    np.testing.assert_array_equal(interval(np.ones(10, bool), seed=0), [1.0, 1.0])
