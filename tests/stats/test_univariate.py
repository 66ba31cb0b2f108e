import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.stats.univariate import epps_pulley, knots

CASES = [(3.0, 17, "gaussian"), (3.0, 9, "gaussian"), (5.0, 21, "uniform"), (1.0, 2, "uniform")]


def written_out(x, t_max, num_points, weight):
    """The definition, with all N·K·T cosines and sines."""
    t, w, phi = knots(t_max, num_points, weight)
    cos = jnp.mean(jnp.cos(t[:, None, None] * x), axis=1)
    sin = jnp.mean(jnp.sin(t[:, None, None] * x), axis=1)
    return x.shape[0] * jnp.sum(w[:, None] * ((cos - phi[:, None]) ** 2 + sin**2), axis=0)


def test_knots_by_hand():
    t, w, phi = knots(2.0, 3, "uniform")
    np.testing.assert_allclose(t, [0, 1, 2])
    np.testing.assert_allclose(w, [1, 2, 1])
    np.testing.assert_allclose(phi, np.exp([0, -0.5, -2]))
    np.testing.assert_allclose(knots(2.0, 3, "gaussian")[1], w * phi)


def test_two_knots_by_hand(float64):
    # Samples ±π: cos(x) = −1 and sin(x) = 0 in the mean; one knot t = 1 of weight 1 counts.
    x = jnp.array([[np.pi], [-np.pi]])
    statistic = epps_pulley(x, t_max=1.0, num_points=2, weight="uniform")
    np.testing.assert_allclose(statistic, [2 * (-1 - np.exp(-0.5)) ** 2], rtol=1e-12)


@pytest.mark.parametrize(("t_max", "num_points", "weight"), CASES)
def test_value_and_gradient_are_those_of_the_definition(float64, t_max, num_points, weight):
    x = jax.random.normal(jax.random.key(0), (50, 4)) * jnp.array([0.5, 1.0, 3.0, 0.0]) + 0.3
    cotangent = jnp.array([1.0, -2.0, 0.5, 3.0])
    expected, expected_vjp = jax.vjp(lambda x: written_out(x, t_max, num_points, weight), x)
    value, vjp = jax.vjp(lambda x: epps_pulley(x, t_max=t_max, num_points=num_points, weight=weight), x)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(vjp(cotangent)[0], expected_vjp(cotangent)[0], rtol=1e-10, atol=1e-13)


def test_mean_under_the_null_is_what_theory_gives():
    # E[(C − φ)² + S²] = (1 − φ²)/N for N(0, 1), so the mean is Σ w(1 − φ²) for every N.
    _, w, phi = knots(3.0, 17, "gaussian")
    expected = np.sum(w * (1 - phi**2))
    for num_samples in (10, 200):
        statistics = epps_pulley(jax.random.normal(jax.random.key(num_samples), (num_samples, 20_000)))
        standard_error = np.std(statistics) / np.sqrt(statistics.size)
        assert abs(np.mean(statistics) - expected) < 4 * standard_error


def test_statistic_grows_with_the_number_of_non_gaussian_samples():
    uniform = jax.random.uniform(jax.random.key(0), (4000, 200), minval=-1, maxval=1)
    small, large = (np.mean(epps_pulley(uniform[:n])) for n in (400, 4000))
    assert large / small == pytest.approx(10, rel=0.15)


def test_half_precision_is_computed_in_float32():
    x = jax.random.normal(jax.random.key(0), (64, 3)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(epps_pulley(x), epps_pulley(x.astype(jnp.float32)))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_points: must be at least 2"):
        epps_pulley(jnp.zeros((2, 1)), num_points=1)
    with pytest.raises(ValueError, match="weight: 'box' is unknown; known weights: gaussian, uniform"):
        epps_pulley(jnp.zeros((2, 1)), weight="box")
