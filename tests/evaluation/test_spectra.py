import numpy as np
import pytest

from hamjepa_jax.evaluation import spectra


def test_spectrum_by_hand():
    cross = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 7.0
    found = spectra.spectrum(cross)
    np.testing.assert_allclose(found["eigenvalues"], [8 / 3, 2 / 3])
    shares = np.array([0.8, 0.2])
    assert found["effective_rank"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))
    assert found["participation_ratio"] == pytest.approx(1 / np.sum(shares**2))


def test_spectrum_of_fewer_samples_than_dimensions_is_padded_with_zeros():
    x = np.random.default_rng(0).normal(size=(5, 9))
    eigenvalues = spectra.spectrum(x)["eigenvalues"]
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(np.cov(x.T))[::-1], atol=1e-12)
    assert len(eigenvalues) == 9


def test_cosines_and_norms():
    x = np.array([[3.0, 0.0], [0.0, 4.0]])
    np.testing.assert_allclose(spectra.norms(x), [3, 4])
    np.testing.assert_allclose(spectra.random_pair_cosines(x, num_pairs=20, seed=0), 0)
    aligned = spectra.random_pair_cosines(np.array([[1.0, 1.0], [2.0, 2.0]]), num_pairs=20, seed=0)
    np.testing.assert_allclose(aligned, 1)


def test_alignment_is_between_equal_and_opposite():
    x = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert spectra.alignment(x, 2 * x) == pytest.approx(0)
    assert spectra.alignment(x, -x) == pytest.approx(4)
    assert spectra.alignment(x, x[::-1]) == pytest.approx(2)
