import json
import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from hamjepa_jax.evaluation import spectra

SCALARS = ("effective_rank", "participation_ratio", "rank_me", "anisotropy")


def random_rotation(generator, dim):
    return np.linalg.qr(generator.normal(size=(dim, dim)))[0]


def with_covariance(generator, num_rows, eigenvalues):
    """Features whose sample covariance has exactly these eigenvalues, up to rounding, in a random basis."""
    whitened = generator.normal(size=(num_rows, len(eigenvalues)))
    whitened = np.linalg.qr(whitened - whitened.mean(axis=0))[0] * np.sqrt(num_rows - 1)
    return (whitened * np.sqrt(eigenvalues)) @ random_rotation(generator, len(eigenvalues))


def test_spectrum_by_hand():
    cross = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 7.0
    found = spectra.spectrum(cross)
    np.testing.assert_allclose(found["eigenvalues"], [8 / 3, 2 / 3])
    shares = np.array([0.8, 0.2])
    assert found["effective_rank"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))
    assert found["participation_ratio"] == pytest.approx(1 / np.sum(shares**2))
    assert found["anisotropy"] == pytest.approx(0.8)


def test_rank_me_is_of_the_singular_values_without_centring():
    x = np.random.default_rng(0).normal(size=(30, 4)) * [3, 2, 1, 1] + 5
    singular_values = np.linalg.svd(x, compute_uv=False)
    shares = singular_values / singular_values.sum() + 1e-7
    expected = np.exp(-np.sum(shares * np.log(shares)))
    assert spectra.spectrum(x)["rank_me"] == pytest.approx(expected, rel=1e-12)
    # Of fewer rows than dimensions there are as many values as rows.
    singular_values = np.linalg.svd(x[:3], compute_uv=False)
    shares = singular_values / singular_values.sum() + 1e-7
    expected = np.exp(-np.sum(shares * np.log(shares)))
    assert spectra.spectrum(x[:3])["rank_me"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_rows", [2, 5, 8, 9, 10, 60])
def test_eigenvalues_are_those_of_the_covariance_for_any_number_of_rows_and_blocks(num_rows, monkeypatch):
    monkeypatch.setattr(spectra, "BLOCK_ROWS", 7)
    x = np.random.default_rng(0).normal(size=(num_rows, 9)).astype(np.float32)
    eigenvalues = spectra.spectrum(x)["eigenvalues"]
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))[::-1], atol=1e-12)
    assert len(eigenvalues) == 9
    assert np.sum(np.array(eigenvalues) > 1e-12) == min(num_rows - 1, 9)


def test_a_mean_far_away_costs_no_digits():
    x = with_covariance(np.random.default_rng(0), 500, np.array([1.0, 0.1, 0.01]))
    far = spectra.spectrum(x + 2.0**20)
    np.testing.assert_allclose(far["eigenvalues"], [1.0, 0.1, 0.01], rtol=1e-8)
    assert far["rank_me"] < 1.001 < spectra.spectrum(x)["rank_me"]


@hypothesis.given(
    num_rows=st.integers(2, 40),
    dim=st.integers(1, 20),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=30)
def test_spectrum_does_not_depend_on_rotation_scale_or_order(num_rows, dim, scale, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(num_rows, dim)) * generator.uniform(0.5, 2, size=dim) + 0.3
    moved = spectra.spectrum(scale * generator.permutation(x) @ random_rotation(generator, dim))
    found = spectra.spectrum(x)
    largest = found["eigenvalues"][0]
    np.testing.assert_allclose(np.array(moved["eigenvalues"]) / scale**2, found["eigenvalues"], atol=1e-12 * largest)
    for name in SCALARS:
        assert moved[name] == pytest.approx(found[name], rel=1e-6)


def test_isotropic_gaussian_features_use_all_dimensions():
    num_rows, dim = 20_000, 200
    found = spectra.spectrum(np.random.default_rng(0).normal(size=(num_rows, dim)))
    gamma = dim / num_rows
    # Of the sample covariance, by Marchenko and Pastur: E λ log λ = γ/2, E λ² = 1 + γ, var √λ ≈ γ/4, λ₁ = (1 + √γ)².
    assert found["effective_rank"] == pytest.approx(dim * np.exp(-gamma / 2), rel=1e-4)
    assert found["participation_ratio"] == pytest.approx(dim / (1 + gamma), rel=1e-4)
    assert found["rank_me"] == pytest.approx(dim * (1 - gamma / 8), rel=3e-4)
    assert found["anisotropy"] == pytest.approx((1 + np.sqrt(gamma)) ** 2 / dim, rel=0.02)
    assert 0 < found["alpha"]["exponent"] < 0.1


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_exponent_of_a_power_law(exponent):
    eigenvalues = np.arange(1.0, 151.0) ** -exponent
    # Those left out do not count.
    eigenvalues[:3] *= 50
    eigenvalues[100:] *= 1e-3
    found = spectra.spectrum(with_covariance(np.random.default_rng(0), 400, eigenvalues))["alpha"]
    assert (found["first"], found["last"]) == (4, 100)
    assert found["exponent"] == pytest.approx(exponent, abs=1e-9)
    if exponent:
        assert found["r_squared"] == pytest.approx(1)


def test_power_law_is_the_weighted_least_squares_line():
    generator = np.random.default_rng(0)
    eigenvalues = np.sort(generator.exponential(size=60))[::-1]
    found = spectra.power_law(eigenvalues)
    index = np.arange(4, 61)
    # polyfit squares its weights.
    slope, intercept = np.polyfit(np.log(index), np.log(eigenvalues[3:]), 1, w=index**-0.5)
    assert found["exponent"] == pytest.approx(-slope)
    logs = np.log(eigenvalues[3:])
    residuals = logs - slope * np.log(index) - intercept
    variation = np.sum((logs - np.average(logs, weights=1 / index)) ** 2 / index)
    assert found["r_squared"] == pytest.approx(1 - np.sum(residuals**2 / index) / variation)
    assert 0 < found["r_squared"] < 1
    assert found["last"] == 60


def test_power_law_needs_three_eigenvalues_above_rounding():
    nothing = {"exponent": None, "r_squared": None, "first": None, "last": None}
    assert spectra.power_law(np.array([1, 0.5, 0.3, 0.2, 0.1])) == nothing
    assert spectra.power_law(np.array([1, 0.5, 0.3, 0.2, 0.1, 1e-17, 1e-18, 0])) == nothing
    assert spectra.power_law(np.array([1, 0.5, 0.3, 0.2, 0.1, 0.05, 1e-18]))["last"] == 6
    assert spectra.power_law(np.ones(6))["r_squared"] is None


@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (7, 9), (30, 1), (30, 7)])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_features_without_variance_have_no_ranks(shape, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = spectra.spectrum(np.full(shape, value))
    assert found["eigenvalues"] == [0.0] * shape[1]
    assert found["effective_rank"] is found["participation_ratio"] is found["anisotropy"] is None
    if value:
        assert found["rank_me"] == pytest.approx(1, abs=1e-4)
    else:
        assert found["rank_me"] is None


def test_spectrum_of_two_rows_is_one_dimension_and_plain_json():
    found = spectra.spectrum(np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32))
    assert found["effective_rank"] == pytest.approx(1)
    assert found["participation_ratio"] == pytest.approx(1)
    assert found["anisotropy"] == pytest.approx(1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_spectrum_of_one_row_is_refused():
    with pytest.raises(ValueError, match="at least two rows of features, got 1"):
        spectra.spectrum(np.ones((1, 4)))


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


def test_numbers_do_not_depend_on_blocks(monkeypatch):
    x, y = np.random.default_rng(0).normal(size=(2, 50, 6)).astype(np.float32)

    def numbers():
        return (
            spectra.norms(x),
            spectra.random_pair_cosines(x, num_pairs=40, seed=3),
            spectra.alignment(x, y),
            spectra.spectrum(x)["rank_me"],
            spectra.spectrum(x)["eigenvalues"],
        )

    whole = numbers()
    monkeypatch.setattr(spectra, "BLOCK_ROWS", 7)
    for found, expected in zip(numbers(), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(whole[0], np.linalg.norm(x.astype(np.float64), axis=1))


def test_random_rows_are_different_and_in_order():
    x = np.arange(100)[:, None]
    found = spectra.random_rows(x, most=20, generator=np.random.default_rng(0))[:, 0]
    assert len(found) == 20
    assert np.all(np.diff(found) > 0)
    np.testing.assert_array_equal(spectra.random_rows(x, most=100, generator=np.random.default_rng(0)), x)


def test_features_mapped_into_memory_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(spectra, "BLOCK_ROWS", 16)
    largest = []

    class Watched(np.ndarray):
        def __getitem__(self, key):
            rows = super().__getitem__(key)
            largest.append(rows.size)
            return np.asarray(rows)

    x = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32).view(Watched)
    spectra.spectrum(x)
    spectra.norms(x)
    spectra.alignment(x, x)
    spectra.random_pair_cosines(x, num_pairs=50, seed=0)
    assert max(largest) == 16 * 5
