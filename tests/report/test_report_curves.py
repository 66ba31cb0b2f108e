"""Baselines are the right densities, and thinned curves look the same."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from hamjepa_jax.report.curves import isotropic_cosine_density, isotropic_norm_density, thin


@pytest.mark.parametrize("dim", [2, 3, 8, 512])
def test_cosine_density_is_that_of_the_beta_distribution(dim):
    cosines = np.linspace(-0.99, 0.99, 41)
    # (1 + c)/2 is Beta((D − 1)/2, (D − 1)/2).
    expected = scipy.stats.beta.pdf((1 + cosines) / 2, (dim - 1) / 2, (dim - 1) / 2) / 2
    np.testing.assert_allclose(isotropic_cosine_density(cosines, dim), expected, rtol=1e-9, atol=1e-300)


def test_cosine_density_in_three_dimensions_is_uniform():
    np.testing.assert_allclose(isotropic_cosine_density(np.linspace(-0.9, 0.9, 5), 3), 0.5)


def test_cosine_density_is_that_of_sampled_directions():
    z = np.random.default_rng(0).normal(size=(2, 200_000, 5))
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    density, edges = np.histogram(np.sum(unit[0] * unit[1], axis=-1), bins=20, range=(-1, 1), density=True)
    middles = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose(isotropic_cosine_density(middles, 5), density, atol=0.02)


@pytest.mark.parametrize("dim", [1, 2, 16, 2048])
def test_norm_density_is_that_of_the_scaled_chi_distribution(dim):
    norms = np.linspace(0.05, 2.0, 40)
    expected = scipy.stats.chi.pdf(norms * np.sqrt(dim), dim) * np.sqrt(dim)
    np.testing.assert_allclose(isotropic_norm_density(norms, dim), expected, rtol=1e-7, atol=1e-200)


def test_norm_density_integrates_to_one():
    integral, _ = scipy.integrate.quad(lambda r: isotropic_norm_density(np.array(r), 64), 1e-6, 3, points=[1.0])
    assert integral == pytest.approx(1.0)


def test_thinning_keeps_the_ends_and_the_extremes():
    x = np.arange(10_000)
    y = np.random.default_rng(0).normal(size=x.size)
    y[4321], y[8765] = 50.0, -50.0
    few_x, few_y = thin(x, y, 500)
    assert len(few_x) <= 500
    assert (few_x[0], few_x[-1]) == (0, 9999)
    assert (few_y.max(), few_y.min()) == (50.0, -50.0)
    assert (np.diff(few_x) > 0).all()
    np.testing.assert_array_equal(y[few_x], few_y)


def test_thinning_keeps_the_envelope():
    x = np.arange(5_000)
    y = np.sin(x / 3)
    few_x, few_y = thin(x, y, 400)
    for start in range(0, 5_000, 500):
        stretch = (few_x >= start) & (few_x < start + 500)
        assert few_y[stretch].max() == pytest.approx(1.0, abs=0.02)
        assert few_y[stretch].min() == pytest.approx(-1.0, abs=0.02)


def test_thinning_leaves_short_curves_and_gaps():
    x = np.arange(300.0)
    assert thin(x, x, 500)[0] is x
    y = np.where(np.arange(3000) < 1500, np.nan, 1.0)
    few_x, few_y = thin(np.arange(3000), y, 100)
    assert len(few_x) <= 100
    assert np.isnan(few_y[few_x < 1500]).all()
    assert few_y[few_x >= 1500].min() == 1.0
