import jax
import numpy as np
import pytest
from scipy import stats

from hamjepa_jax.evaluation import gaussianity
from hamjepa_jax.stats.univariate import epps_pulley, knots

# Draws from distributions of mean 0 and variance 1, so that only their shape is at fault.
OTHERS = {
    "laplace": lambda generator, shape: generator.laplace(size=shape) / np.sqrt(2),
    "uniform": lambda generator, shape: generator.uniform(-np.sqrt(3), np.sqrt(3), size=shape),
    "student": lambda generator, shape: generator.standard_t(4, size=shape) / np.sqrt(2),
    "clusters": lambda generator, shape: (
        0.9 * generator.choice([-1.0, 1.0], size=shape) + np.sqrt(0.19) * generator.normal(size=shape)
    ),
}


def kolmogorov_smirnov(p_values):
    return stats.kstest(p_values, "uniform").pvalue


@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("num_samples", [100, 1000])
def test_p_values_of_gaussian_samples_are_uniform(num_samples, standardized):
    generator = np.random.default_rng(num_samples)
    samples = generator.normal(size=(num_samples, 4000))
    if standardized:
        samples = samples * generator.uniform(0.1, 10, size=4000) + generator.normal(size=4000)
    statistics, p_values = gaussianity.directional_test(samples, standardized=standardized)
    assert kolmogorov_smirnov(p_values) > 0.05
    assert np.mean(p_values < 0.05) == pytest.approx(0.05, abs=0.01)
    # The other null distribution would not do.
    assert kolmogorov_smirnov(gaussianity.p_values(statistics, standardized=not standardized)) < 1e-6


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("standardized", [False, True])
def test_other_shapes_are_rejected(name, standardized):
    samples = OTHERS[name](np.random.default_rng(0), (2000, 50))
    assert np.all(gaussianity.directional_test(samples, standardized=standardized).p_values < 0.001)
    # Shifted and scaled they are as far from a Gaussian, and farther from N(0, 1).
    moved = gaussianity.directional_test(5 * samples + 2, standardized=standardized).p_values
    assert np.all(moved < 0.001)


def test_standardised_statistics_do_not_depend_on_shift_and_scale():
    samples = np.random.default_rng(0).normal(size=(500, 20))
    found = gaussianity.directional_test(-7 * samples + 100, standardized=True)
    expected = gaussianity.directional_test(samples, standardized=True)
    np.testing.assert_allclose(found.statistics, expected.statistics, rtol=1e-3)


def test_float32_is_accurate_enough():
    samples = np.random.default_rng(0).normal(size=(10_000, 100))
    found = gaussianity.directional_test(samples, standardized=False)
    with jax.enable_x64(True):
        expected = np.asarray(epps_pulley(samples))
        assert expected.dtype == np.float64
    np.testing.assert_allclose(found.statistics, expected, rtol=1e-4)
    np.testing.assert_allclose(found.p_values, gaussianity.p_values(expected, standardized=False), rtol=1e-3)


def test_null_distribution_has_the_moments_of_the_limit():
    t, w, phi = knots(3.0, 17, "gaussian")
    weights = gaussianity.null_weights(False)
    # The statistic of N(0, 1) has this mean for every number of samples.
    assert weights.sum() == pytest.approx(np.sum(w * (1 - phi**2)))
    # An estimated mean and variance take their share from it.
    taken = np.sum(w * phi**2 * (t**2 + t**4 / 2))
    assert gaussianity.null_weights(True).sum() == pytest.approx(weights.sum() - taken)
    for standardized in (False, True):
        weights, draws = gaussianity.null_weights(standardized), gaussianity.null_distribution(standardized)
        assert np.all(np.diff(draws) >= 0)
        assert draws.mean() == pytest.approx(weights.sum(), rel=0.005)
        assert draws.var() == pytest.approx(2 * np.sum(weights**2), rel=0.01)


@pytest.mark.parametrize("standardized", [False, True])
def test_null_distribution_is_that_of_simulated_samples(standardized):
    samples = np.random.default_rng(0).normal(size=(200, 10_000))
    statistics = gaussianity.directional_test(samples, standardized=standardized).statistics
    shares = [0.1, 0.5, 0.9, 0.99]
    null = gaussianity.null_distribution(standardized)
    np.testing.assert_allclose(np.quantile(statistics, shares), np.quantile(null, shares), rtol=0.07)


def test_p_value_is_the_share_of_draws_that_are_as_large():
    null = gaussianity.null_distribution(False)
    largest, median = null[-1], null[len(null) // 2]
    found = gaussianity.p_values(np.array([0.0, median, largest, largest + 1]), standardized=False)
    count = len(null)
    np.testing.assert_allclose(found, np.array([count + 1, count // 2 + 1, 2, 1]) / (count + 1), rtol=1e-12)


def test_null_distribution_cannot_be_changed_by_those_who_share_it():
    assert gaussianity.null_distribution(True) is gaussianity.null_distribution(True)
    with pytest.raises(ValueError, match="read-only"):
        gaussianity.null_distribution(True)[0] = 1.0


def test_projections_are_on_unit_vectors_and_of_a_seeded_choice_of_rows(monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 5))
    directions = np.linalg.lstsq(x, gaussianity.random_projections(x, seed=1), rcond=None)[0]
    assert directions.shape == (5, 256)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1)
    monkeypatch.setattr(gaussianity, "MOST_ROWS", 100)
    few = gaussianity.random_projections(x, seed=1)
    assert few.shape == (100, 256)
    # The same directions of some of the same rows.
    distances = np.linalg.norm(few[:, None] - (x @ directions)[None], axis=-1)
    assert np.all(distances.min(axis=1) < 1e-9)
    assert not np.allclose(few, gaussianity.random_projections(x, seed=2))


def test_directions_are_not_among_features_of_the_same_seed():
    # Every direction would have one projection far from all others.
    x = np.random.default_rng(0).normal(size=(400, 100))
    assert np.abs(gaussianity.random_projections(x, seed=0)).max() < 6


def test_samples_that_coincide_up_to_rounding_are_rejected():
    rounding = 1 + 1e-15 * np.random.default_rng(0).normal(size=(50, 1))
    found = gaussianity.directional_test(rounding * [0.0, 0.1, 1e9], standardized=True)
    assert np.all(np.isfinite(found.statistics))
    assert np.all(found.p_values < 1e-5)
