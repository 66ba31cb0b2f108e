from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from hamjepa_jax import sharding
from hamjepa_jax.benchmarks import hlo
from hamjepa_jax.stats.multivariate import bhep
from hamjepa_jax.stats.univariate import epps_pulley


@partial(jax.jit, static_argnums=1)
def value_and_gradient(x, bandwidth):
    value, vjp = jax.vjp(partial(bhep, bandwidth=bandwidth), x)
    return value, vjp(jnp.ones_like(value))[0]


@pytest.fixture(scope="module")
def samples():
    """A cloud in the plane, too wide, and one that is also off the origin."""
    x = 1.5 * np.random.default_rng(0).normal(size=(2, 15, 2))
    return x + np.array([0.0, 1.0])[:, None, None]


@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
def test_statistic_is_the_distance_between_characteristic_functions(float64, samples, bandwidth):
    # Gauss–Hermite quadrature over the frequencies t ~ N(0, β²I).
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    t = bandwidth * np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / np.sum(weights) ** 2
    empirical = np.mean(np.exp(1j * samples @ t.T), axis=1)
    distance = np.abs(empirical - np.exp(-np.sum(t**2, axis=1) / 2)) ** 2
    np.testing.assert_allclose(bhep(samples, bandwidth=bandwidth), 15 * distance @ weights, rtol=1e-9)


def test_in_one_dimension_it_is_epps_pulley(float64):
    # The weight exp(−t²/2) of Epps–Pulley is √(2π) times the density of the frequencies for β = 1.
    x = np.random.default_rng(1).normal(size=(20, 1)) + 0.5
    expected = epps_pulley(x, t_max=9.0, num_points=200)[0]
    np.testing.assert_allclose(np.sqrt(2 * np.pi) * bhep(x, bandwidth=1.0), expected, rtol=1e-9)


def test_gradient_is_that_of_finite_differences(float64, samples):
    check_grads(partial(bhep, bandwidth=0.7), (jnp.asarray(samples),), order=1, modes=["rev"], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("num_samples", "dim", "bandwidth"), [(2, 3, 1.0), (20, 3, 0.5), (20, 32, 32**-0.5)])
def test_mean_under_the_null_is_what_theory_gives_for_every_number_of_samples(num_samples, dim, bandwidth):
    x = jax.random.normal(jax.random.key(0), (5000, num_samples, dim))
    values = np.asarray(value_and_gradient(x, bandwidth)[0])
    expected = 1 - (1 + 2 * bandwidth**2) ** (-dim / 2)
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(values.size))


def test_rotations_and_the_order_of_the_samples_have_no_influence(float64, samples):
    cos, sin = np.cos(0.4), np.sin(0.4)
    turned = samples[:, ::-1] @ np.array([[cos, sin], [-sin, cos]])
    np.testing.assert_allclose(bhep(turned, bandwidth=0.7), bhep(samples, bandwidth=0.7), rtol=1e-10)
    assert np.all(np.abs(bhep(samples + 0.5, bandwidth=0.7) / bhep(samples, bandwidth=0.7) - 1) > 0.05)


def sphere(key, shape):
    x = jax.random.normal(key, shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True) * np.sqrt(shape[-1])


@pytest.mark.parametrize(
    "draw",
    [
        lambda key, shape: jax.random.normal(key, shape) + 0.2,
        lambda key, shape: 1.2 * jax.random.normal(key, shape),
        lambda key, shape: jax.random.normal(key, shape) * jnp.linspace(0.5, 1.32, shape[-1]),
        lambda key, shape: jax.random.normal(key, shape) @ (jnp.eye(shape[-1]) + 0.5 * jnp.eye(shape[-1], k=1)),
        sphere,
        lambda key, shape: (
            jax.random.normal(key, shape) * jnp.sqrt(3 / jax.random.chisquare(key, 5, shape=shape[:-1]))[..., None]
        ),
    ],
    ids=["shifted", "wide", "stretched", "correlated", "sphere", "heavy tails"],
)
def test_statistic_grows_like_the_number_of_samples_that_are_not_gaussian(draw):
    x = draw(jax.random.key(0), (4, 1600, 4))
    few, many = (jnp.mean(value_and_gradient(x[:, :n], 0.5)[0]) for n in (400, 1600))
    expected = 1 - (1 + 2 * 0.5**2) ** -2
    assert many > 3 * expected
    assert many > 2 * few


def test_float32_is_close_to_float64_far_from_the_origin():
    # So far out only the pairs count, and their distances are a thousandth of the norms.
    x = (20 + 0.3 * np.random.default_rng(2).normal(size=(40, 64))).astype(np.float32)
    value, gradient = value_and_gradient(x, 0.5)
    assert value.dtype == gradient.dtype == jnp.float32
    with jax.enable_x64(True):
        expected, expected_gradient = value_and_gradient(x.astype(np.float64), 0.5)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * np.max(np.abs(expected_gradient)))


def test_rows_that_are_equal_are_not_nearer_than_that():
    # Without clipping, rounding makes some of their squared distances negative, which a narrow kernel makes huge.
    x = jnp.repeat(10 * jax.random.normal(jax.random.key(0), (8, 64)), 8, axis=0)
    value, gradient = value_and_gradient(x, 300.0)
    assert value <= 8 * (1 + 1e-5)
    assert np.all(np.isfinite(gradient))


def test_half_precision_is_computed_in_float32():
    x = jax.random.normal(jax.random.key(0), (16, 3)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(bhep(x, bandwidth=1.0), bhep(x.astype(jnp.float32), bandwidth=1.0))


def test_the_program_is_of_single_precision_full_products_and_no_more_numbers_than_pairs(
    float64, equations, double_precision
):
    num_samples, dim = 24, 8
    jaxpr = jax.make_jaxpr(lambda x: value_and_gradient(x, 0.5))(jnp.zeros((num_samples, dim), jnp.float32)).jaxpr
    assert not double_precision(jaxpr)
    assert max(out.aval.size for e in equations(jaxpr) for out in e.outvars) == num_samples**2
    products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) == 3
    for product in products:
        assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize("place", [0.0, 0.7])
def test_samples_that_coincide_are_pushed_alike_and_those_that_nearly_do_apart(float64, place):
    value, gradient = value_and_gradient(np.full((12, 3), place), 0.6)
    np.testing.assert_allclose(gradient, np.broadcast_to(gradient[0], gradient.shape), atol=1e-14)
    assert value > 1
    assert jnp.all(gradient[0] == 0 if place == 0 else gradient[0] > 0.01)
    gradient_32 = value_and_gradient(np.full((12, 3), place, np.float32), 0.6)[1]
    np.testing.assert_allclose(gradient_32, gradient, atol=1e-6)

    deviations = np.random.default_rng(3).normal(size=(12, 3))
    deviations -= np.mean(deviations, axis=0)
    assert jnp.sum(value_and_gradient(place + 1e-4 * deviations, 0.6)[1] * deviations) < 0


def test_in_high_dimension_a_large_bandwidth_sees_nothing():
    gaussian = jax.random.normal(jax.random.key(0), (64, 256))
    for x in (gaussian, 3 * gaussian, gaussian + 1):
        value, gradient = value_and_gradient(x, 1.0)
        assert value == pytest.approx(1, abs=1e-5)
        assert jnp.max(jnp.abs(gradient)) < 1e-5
    values = [value_and_gradient(x, 1 / 16)[0] for x in (gaussian, 3 * gaussian, gaussian + 1)]
    np.testing.assert_allclose(values, [0.597, 23.75, 18.94], rtol=2e-3)


def test_a_bandwidth_that_is_not_positive_is_named_and_no_samples_are_refused():
    for bandwidth in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"bandwidth: must be positive, got {bandwidth}"):
            bhep(jnp.zeros((2, 1)), bandwidth=bandwidth)
    with pytest.raises(AssertionError):
        bhep(jnp.zeros((0, 1)), bandwidth=1.0)


def test_on_eight_devices_the_samples_are_gathered_once():
    num_samples, dim = 64, 24
    mesh = sharding.make_mesh(data=8, fsdp=1)
    by_rows, copies = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    x = jax.random.normal(jax.random.key(0), (num_samples, dim))
    expected, expected_gradient = value_and_gradient(x, 0.2)
    split = jax.device_put(x, by_rows)
    step = jax.jit(lambda x: value_and_gradient(x, 0.2), out_shardings=(copies, by_rows))
    compiled = step.lower(split).compile()
    value, gradient = compiled(split)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * jnp.max(jnp.abs(expected_gradient)))
    gathered = [
        array.shape
        for collective in hlo.collectives(compiled.as_text())
        if collective.kind == "all-gather"
        for array in collective.results
    ]
    assert sorted(sorted(shape) for shape in gathered) == [[dim, num_samples], [num_samples]]
