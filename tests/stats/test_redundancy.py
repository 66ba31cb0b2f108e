from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from hamjepa_jax import sharding
from hamjepa_jax.benchmarks import hlo
from hamjepa_jax.stats.redundancy import barlow_twins, vicreg

pytestmark = pytest.mark.usefixtures("float64")

VICREG = {"std_target": 1.0, "variance_weight": 25.0, "covariance_weight": 2.0}
LOSSES = {
    "vicreg": lambda x: vicreg(x[0], **VICREG)[0],
    "barlow_twins": lambda views: barlow_twins(views, off_diagonal_weight=0.1)[0],
}
WHITE = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


@partial(jax.jit, static_argnums=0)
def value_and_gradient(name, views):
    return jax.value_and_grad(LOSSES[name])(views)


@pytest.fixture(scope="module")
def views():
    """Three views whose coordinates are correlated, of many scales, and off the origin."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(20, 4)) @ rng.normal(size=(4, 4))
    return (shared + 0.5 * rng.normal(size=(3, 20, 4))) * np.array([0.1, 0.3, 0.6, 2.0]) + 3.0


def test_vicreg_is_what_the_paper_says(views):
    loss, statistics = vicreg(views[0], std_target=0.7, variance_weight=3.0, covariance_weight=5.0, eps=1e-2)
    covariance = np.cov(views[0].T)
    std = np.sqrt(np.diag(covariance) + 1e-2)
    variance_term = np.mean(np.maximum(0.7 - std, 0))
    covariance_term = (np.sum(covariance**2) - np.sum(np.diag(covariance) ** 2)) / 4
    assert statistics == pytest.approx(
        {"variance": variance_term, "covariance": covariance_term, "min_std": np.min(std)}, rel=1e-10
    )
    assert 0 < np.sum(std < 0.7) < 4
    assert loss == pytest.approx(3 * variance_term + 5 * covariance_term, rel=1e-10)


def test_barlow_twins_is_what_the_paper_says(views):
    loss, statistics = barlow_twins(views, off_diagonal_weight=0.3, eps=0.0)
    diagonal = off_diagonal = 0.0
    for a, b in ((0, 1), (0, 2), (1, 2)):
        correlation = np.corrcoef(views[a].T, views[b].T)[:4, 4:]
        diagonal += np.sum((1 - np.diag(correlation)) ** 2) / 3
        off_diagonal += np.sum((correlation - np.diag(np.diag(correlation))) ** 2) / 3
    expected = {"diagonal": diagonal, "off_diagonal": off_diagonal, "min_std": np.min(np.std(views, axis=1))}
    assert statistics == pytest.approx(expected, rel=1e-10)
    assert loss == pytest.approx(diagonal + 0.3 * off_diagonal, rel=1e-10)


def test_eps_by_hand():
    # Variances 1, so that every correlation with itself is 1/(1 + ε).
    views = np.stack([WHITE, WHITE])
    _, statistics = barlow_twins(views, off_diagonal_weight=1.0, eps=0.25)
    assert statistics["diagonal"] == pytest.approx(2 * 0.2**2)
    assert statistics["min_std"] == pytest.approx(np.sqrt(1.25))
    assert statistics["off_diagonal"] == pytest.approx(0)


def test_defaults_of_eps_and_the_target():
    still = np.zeros((2, 3, 2))
    assert vicreg(still[0], variance_weight=1.0, covariance_weight=1.0)[0] == pytest.approx(1.0 - 1e-2)
    assert barlow_twins(still, off_diagonal_weight=1.0)[1]["min_std"] == pytest.approx(np.sqrt(1e-5))


def test_uncorrelated_coordinates_that_vary_enough_cost_nothing():
    # The covariance of these rows, divisor N − 1, is 4/3·I.
    loss, _ = vicreg(WHITE, **VICREG)
    gradient = jax.grad(lambda x: vicreg(x, **VICREG)[0])(WHITE)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
    assert vicreg(0.8 * WHITE, **VICREG)[0] > 0
    loss, gradient = jax.value_and_grad(partial(LOSSES["barlow_twins"]))(np.stack([WHITE, WHITE]))
    assert loss < 1e-9
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(views, name):
    check_grads(LOSSES[name], (jnp.asarray(views),), order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_shifts_and_the_order_of_the_rows_have_no_influence(views, name):
    expected, _ = value_and_gradient(name, views)
    assert value_and_gradient(name, views + 5.0)[0] == pytest.approx(float(expected), rel=1e-9)
    assert value_and_gradient(name, views[:, ::-1])[0] == pytest.approx(float(expected), rel=1e-9)


def test_scales_and_the_order_of_the_views_have_no_influence_on_barlow_twins(views):
    loss = partial(barlow_twins, off_diagonal_weight=0.1, eps=0.0)
    expected = loss(views)[0]
    scales = np.random.default_rng(1).uniform(0.1, 10.0, size=(3, 1, 4))
    assert loss(views * scales)[0] == pytest.approx(float(expected), rel=1e-9)
    assert loss(views[::-1])[0] == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("place", [0.0, 0.7])
@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_coincide_are_left_there_and_those_that_nearly_do_are_pushed_apart(name, place):
    value, gradient = value_and_gradient(name, np.full((3, 12, 4), place))
    assert value > 1
    np.testing.assert_allclose(gradient, 0, atol=1e-9)
    deviations = np.random.default_rng(2).normal(size=(3, 12, 4))
    deviations -= np.mean(deviations, axis=1, keepdims=True)
    deviations[1:] = deviations[0]
    _, gradient = value_and_gradient(name, place + 1e-4 * deviations)
    assert jnp.sum(gradient * deviations) < 0


def test_barlow_twins_pushes_a_collapsed_view_apart_along_one_that_is_not(views):
    views = views[:2] / np.std(views[:2], axis=1, keepdims=True)
    views[0] = 0.7
    _, gradient = value_and_gradient("barlow_twins", views)
    assert jnp.sum(gradient[0] * (views[1] - np.mean(views[1], axis=0))) < -1
    np.testing.assert_allclose(gradient[1], 0, atol=1e-9)


def test_fewer_than_two_views_and_rows_are_refused():
    with pytest.raises(ValueError, match="views: must be at least 2, got 1"):
        barlow_twins(np.zeros((1, 3, 2)), off_diagonal_weight=1.0)
    with pytest.raises(AssertionError):
        vicreg(np.zeros((1, 2)), **VICREG)
    with pytest.raises(AssertionError):
        vicreg(np.zeros((2, 3, 2)), **VICREG)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_is_close_to_float64_and_half_precision_is_computed_in_float32(double_precision, views, name):
    expected, expected_gradient = value_and_gradient(name, views)
    value, gradient = value_and_gradient(name, views.astype(np.float32))
    assert value.dtype == gradient.dtype == jnp.float32
    assert value == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5 * np.max(np.abs(expected_gradient)))
    assert not double_precision(jax.make_jaxpr(partial(value_and_gradient, name))(views.astype(np.float32)).jaxpr)
    half = jnp.asarray(views, jnp.bfloat16)
    assert LOSSES[name](half) == LOSSES[name](half.astype(jnp.float32))


@pytest.mark.parametrize("name", LOSSES)
def test_on_eight_devices_only_sums_travel(name):
    batch, dim = 64, 24
    mesh = sharding.make_mesh(data=8, fsdp=1)
    by_batch, copies = NamedSharding(mesh, PartitionSpec(None, "data")), NamedSharding(mesh, PartitionSpec())
    views = jax.random.normal(jax.random.key(0), (2, batch, dim), jnp.float32)
    expected, expected_gradient = value_and_gradient(name, views)
    split = jax.device_put(views, by_batch)
    step = jax.jit(partial(value_and_gradient, name), out_shardings=(copies, by_batch))
    compiled = step.lower(split).compile()
    value, gradient = compiled(split)
    assert value == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * np.max(np.abs(expected_gradient)))
    collectives = hlo.collectives(compiled.as_text())
    assert {collective.kind for collective in collectives} == {"all-reduce"}
    assert all(batch not in array.shape for collective in collectives for array in collective.results)
