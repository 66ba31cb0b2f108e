import json
import warnings

import numpy as np
import pytest
from scipy.special import hyp0f1

from hamjepa_jax.evaluation import geometry, spectra


def gaussian(num_rows, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(num_rows, dim))


def random_rotation(dim, seed):
    return np.linalg.qr(gaussian(dim, dim, seed))[0]


def test_uniformity_by_hand():
    # Features do not pair with themselves: a pair of orthogonal ones is at ‖·‖² = 2, of opposite ones at 4.
    assert geometry.uniformity(np.array([[3.0, 0.0], [0.0, 0.1]]), seed=0) == pytest.approx(-4)
    assert geometry.uniformity(np.array([[3.0, 0.0], [-0.1, 0.0]]), seed=0) == pytest.approx(-8)
    three = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert geometry.uniformity(three, seed=0) == pytest.approx(np.log((2 * np.exp(-4) + np.exp(-8)) / 3))


def test_uniformity_of_all_pairs_does_not_depend_on_blocks(monkeypatch):
    x = gaussian(45, 3)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    squares = np.sum((unit[:, None] - unit) ** 2, axis=-1)
    expected = np.log(np.mean(np.exp(-2 * squares[~np.eye(45, dtype=bool)])))
    for block in (7, 45, 512):
        monkeypatch.setattr(geometry, "PAIR_BLOCK", block)
        assert geometry.uniformity(x, seed=0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 5, 100])
def test_uniformity_of_isotropic_features(dim):
    # E exp(4·u·v) of independent uniform directions is ₀F₁(D/2; 4).
    x = gaussian(6000, dim, seed=dim) * np.linspace(0.1, 3, 6000)[:, None]
    assert geometry.uniformity(x, seed=0) == pytest.approx(np.log(hyp0f1(dim / 2, 4.0)) - 4, abs=0.005)


def test_uniformity_of_coinciding_features_is_zero():
    for x in (np.ones((5, 3)), np.zeros((5, 3))):
        assert geometry.uniformity(x, seed=0) == pytest.approx(0, abs=1e-12)


def test_uniformity_of_many_features_is_that_of_a_seeded_choice(monkeypatch):
    x = gaussian(100, 3)
    whole = geometry.uniformity(x, seed=0)
    monkeypatch.setattr(geometry, "UNIFORMITY_POINTS", 60)
    assert geometry.uniformity(x, seed=0) == geometry.uniformity(x, seed=0)
    assert geometry.uniformity(x, seed=0) != geometry.uniformity(x, seed=1)
    assert geometry.uniformity(x, seed=0) != whole


def test_uniformity_and_norms_do_not_depend_on_rotation():
    x = gaussian(50, 6)
    turned = x @ random_rotation(6, 1)
    assert geometry.uniformity(turned, seed=0) == pytest.approx(geometry.uniformity(x, seed=0))
    found, expected = geometry.geometry(turned, seed=0)["norms"], geometry.geometry(x, seed=0)["norms"]
    np.testing.assert_allclose(found["edges"], expected["edges"])


def test_histogram_by_hand():
    found = geometry.histogram(np.array([0.0, 1.0, 1.5, 4.0]), bins=4)
    assert found["edges"] == [0, 1, 2, 3, 4]
    assert found["density"] == [0.25, 0.5, 0, 0.25]
    assert found["mean"] == pytest.approx(1.625)
    assert found["std"] == pytest.approx(np.std([0, 1, 1.5, 4]))
    assert geometry.histogram(np.array([0.1]), bins=2, between=(0.0, 1.0))["edges"] == [0, 0.5, 1]


@pytest.mark.parametrize("values", [[0.0], [3.0], [1.0, 1 + 1e-15], [-2.0, -2.0 - 1e-9], [1e-30, 1.1e-30]])
def test_histogram_of_coinciding_values_has_a_width_and_holds_them_all(values):
    values = np.array(values)
    found = geometry.histogram(values, bins=60)
    widths = np.diff(found["edges"])
    assert np.all(widths > 0)
    assert np.sum(widths * found["density"]) == pytest.approx(1)
    assert found["edges"][0] <= values.min() <= values.max() <= found["edges"][-1]


def test_cosines_and_norms_of_isotropic_features():
    dim = 100
    found = geometry.geometry(gaussian(3000, dim), seed=0)
    assert found["cosines"]["mean"] == pytest.approx(0, abs=0.003)
    assert found["cosines"]["std"] == pytest.approx(dim**-0.5, rel=0.03)
    assert found["norms"]["mean"] == pytest.approx(1 - 1 / (4 * dim), abs=0.003)
    assert found["norms"]["std"] == pytest.approx((2 * dim) ** -0.5, rel=0.05)


def test_normality_of_gaussian_and_of_other_features():
    gauss, cube = gaussian(2000, 4), np.random.default_rng(0).choice([-1.0, 1.0], size=(2000, 4))
    found = geometry.geometry(gauss, seed=0)["gaussianity"]
    assert {test["num_samples"] for test in found.values()} == {2000}
    assert found["standardized"]["num_directions"] == 256
    assert found["standardized"]["share_rejected"] < 0.2
    assert found["plain"]["share_rejected"] < 0.2
    # A shift and a scale are not N(0, 1), and are Gaussian.
    moved = geometry.geometry(3 * gauss + 1, seed=0)["gaussianity"]
    assert moved["plain"]["share_rejected"] == 1
    assert moved["standardized"]["share_rejected"] == found["standardized"]["share_rejected"]
    np.testing.assert_allclose(
        moved["standardized"]["statistic"]["values"], found["standardized"]["statistic"]["values"], rtol=1e-3
    )
    corners = geometry.geometry(cube, seed=0)["gaussianity"]["standardized"]
    assert corners["share_rejected"] > 0.9
    assert corners["p_values"]["mean"] < 0.05 < found["standardized"]["p_values"]["mean"]
    assert corners["statistic"]["values"] > corners["null"]["values"]
    assert corners["null"] == found["standardized"]["null"] != found["plain"]["null"]


@pytest.mark.parametrize(
    "x",
    [
        gaussian(2, 6),
        gaussian(5, 1),
        gaussian(5, 9),
        np.zeros((6, 3)),
        np.full((6, 3), 0.1),
        gaussian(30, 4).astype(np.float32),
    ],
    ids=["two rows", "one dimension", "few rows", "zeros", "constant", "float32"],
)
def test_numbers_are_finite_plain_json_without_warnings(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = geometry.geometry(x, seed=0)
        state = geometry.state_geometry(x, x[::-1], seed=0)
    for numbers in (found, state):
        assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert set(found) == {"uniformity", "cosines", "norms", "gaussianity"}
    assert set(found["gaussianity"]["plain"]) == {
        "num_directions",
        "num_samples",
        "share_rejected",
        "p_values",
        "statistic",
        "null",
    }


def test_constant_features_are_not_gaussian():
    found = geometry.geometry(np.full((50, 3), 0.1, np.float32), seed=0)["gaussianity"]
    assert found["standardized"]["share_rejected"] == found["plain"]["share_rejected"] == 1


def test_canonical_correlations_of_a_linear_function_are_one():
    q = gaussian(2000, 6) * [10, 3, 1, 1, 0.3, 0.1]
    p = q @ gaussian(6, 6, seed=1) + 3
    found = geometry.canonical_correlations(q, p, seed=0)
    np.testing.assert_allclose(found["canonical_correlations"], np.ones(6), atol=1e-6)
    assert max(found["shuffled"]) < 0.2


def test_canonical_correlations_are_those_of_the_coupling():
    correlations = np.array([0.9, 0.5, 0.2, 0.0])
    q, noise = gaussian(100_000, 4), gaussian(100_000, 4, seed=1)
    p = correlations * q + np.sqrt(1 - correlations**2) * noise
    # They see neither an invertible map of q nor one of p.
    found = geometry.canonical_correlations(q @ gaussian(4, 4, seed=2) - 5, p @ gaussian(4, 4, seed=3), seed=0)
    np.testing.assert_allclose(found["canonical_correlations"], correlations, atol=0.02)


def test_canonical_correlations_of_independent_halves_are_those_of_the_shuffle():
    num_rows, dim = 4000, 100
    found = geometry.canonical_correlations(gaussian(num_rows, dim), gaussian(num_rows, dim, seed=1), seed=0)
    np.testing.assert_allclose(found["canonical_correlations"], found["shuffled"], atol=0.02)
    # By Wachter's law.
    share = dim / num_rows
    assert found["shuffled"][0] == pytest.approx(2 * np.sqrt(share * (1 - share)), abs=0.02)


def test_canonical_correlations_do_not_depend_on_blocks(monkeypatch):
    q, p = gaussian(50, 3).astype(np.float32), gaussian(50, 5, seed=1).astype(np.float32)
    p[:, 0] += q[:, 1]
    whole = geometry.canonical_correlations(q, p, seed=0)
    monkeypatch.setattr(spectra, "BLOCK_ROWS", 7)
    found = geometry.canonical_correlations(q, p, seed=0)
    for name, shuffle in (
        ("canonical_correlations", np.arange(50)),
        ("shuffled", np.random.default_rng(0).permutation(50)),
    ):
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-9)
        # Cosines of the principal angles between the spans of the columns.
        spans = [np.linalg.qr(x - x.mean(axis=0))[0] for x in (q.astype(np.float64), p[shuffle].astype(np.float64))]
        np.testing.assert_allclose(found[name], np.linalg.svd(spans[0].T @ spans[1], compute_uv=False), rtol=1e-5)


def test_directions_without_variance_have_no_canonical_correlation():
    # Two directions in all, up to the rounding of float32.
    q = (gaussian(500, 2) @ gaussian(2, 8, seed=2)).astype(np.float32)
    found = geometry.canonical_correlations(q, gaussian(500, 5, seed=1), seed=0)
    assert len(found["canonical_correlations"]) == len(found["shuffled"]) == 2
    assert geometry.canonical_correlations(np.ones((9, 2)), gaussian(9, 2), seed=0)["canonical_correlations"] == []


@pytest.mark.parametrize("seed", range(5))
def test_canonical_correlations_are_at_most_one(seed):
    q = gaussian(200, 5, seed)
    assert max(geometry.canonical_correlations(q, 7 * q + 1, seed=0)["canonical_correlations"]) <= 1


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 6])
def test_all_cosines_of_equal_directions_are_in_the_last_bin(dim):
    # Rounding makes some of them larger than one.
    cosines = geometry.geometry(np.ones((4, dim)), seed=0)["cosines"]
    assert cosines["edges"][-1] == 1
    assert cosines["density"][-1] == pytest.approx(100)
    assert cosines["mean"] == pytest.approx(1)


def test_energy_by_hand():
    q, p = np.array([[1.0, 1.0], [3.0, 1.0]]), np.array([[0.0, 2.0], [2.0, 0.0]])
    found = geometry.state_geometry(q, p, seed=0)
    assert found["potential"] == pytest.approx((0.5 + 2.5) / 2)
    assert found["kinetic"] == pytest.approx(1)
    assert found["energy"]["mean"] == pytest.approx(2.5)
    assert found["energy"]["std"] == pytest.approx(1)
    assert found["energy"]["edges"][0] == pytest.approx(1.5)
    assert found["energy"]["edges"][-1] == pytest.approx(3.5)
