from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from hamjepa_jax.stats import floors

pytestmark = pytest.mark.usefixtures("float64")

# A centred cloud in the plane whose covariance (N − 1 = 3) is diag(8/3, 2/3).
CROSS = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
NO_FLOOR = {"logdet_floor": -1e9}


def test_energy_budget_by_hand():
    z = jnp.array([[1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 2.0]])
    loss, statistics = floors.energy_budget(z, q_target=0.5, p_target=1.0)
    assert statistics == {"q_mean_square": 1.0, "p_mean_square": 2.0}
    assert loss == pytest.approx(0.5**2 + 1.0**2)


def test_variance_floor_by_hand():
    # Biased variances 2 and 0.5; only the second is below the floor of 1.
    loss, statistics = floors.variance_floor(CROSS, std_floor=1.0, eps=0.0)
    assert statistics["min_std"] == pytest.approx(np.sqrt(0.5))
    assert loss == pytest.approx((1 - np.sqrt(0.5)) ** 2 / 2)


def test_variance_floor_pushes_a_collapsed_coordinate_out():
    x = jnp.concatenate([CROSS, 1e-3 * CROSS[:, :1]], axis=1)
    gradient = jax.grad(lambda x: floors.variance_floor(x, std_floor=0.2)[0])(x)
    np.testing.assert_array_equal(gradient[:, :2], 0)
    assert jnp.sum(gradient[:, 2] * x[:, 2]) < 0


def test_covariance_floor_by_hand():
    large, small = 8 / 3, 2 / 3
    expected = {
        "logdet": np.log(large * small) / 2,
        "participation": (large + small) ** 2 / (large**2 + small**2) / 2,
        "eigmax": large / (large + small),
    }
    loss, statistics = floors.covariance_floor(
        CROSS, jnp.eye(2), logdet_floor=1.0, participation_floor=0.9, eigmax_ceiling=0.5, eps=0.0
    )
    for name, value in expected.items():
        assert statistics[name] == pytest.approx(value, rel=1e-9), name
    squares = (1.0 - expected["logdet"], 0.9 - expected["participation"], expected["eigmax"] - 0.5)
    assert loss == pytest.approx(sum(square**2 for square in squares))


def test_each_threshold_acts_alone():
    def loss(**thresholds):
        return floors.covariance_floor(CROSS, jnp.eye(2), **NO_FLOOR | thresholds)[0]

    assert loss() == 0
    assert loss(logdet_floor=1.0) > 0
    assert loss(participation_floor=0.9) > 0
    assert loss(eigmax_ceiling=0.5) > 0


def test_covariance_is_of_all_rows_pooled_and_centred():
    x = jax.random.normal(jax.random.key(0), (3, 10, 6)) + jnp.arange(3.0)[:, None, None]
    projection = floors.random_projection(jax.random.key(1), 6, 4)
    pooled = floors.covariance_floor(x, projection, **NO_FLOOR)[1]
    covariance = np.cov((x.reshape(30, 6) @ projection).T) + 1e-4 * np.eye(4)
    assert pooled["logdet"] == pytest.approx(np.linalg.slogdet(covariance)[1] / 4)
    shifted = floors.covariance_floor(x + 5.0, projection, **NO_FLOOR)[1]
    assert shifted["logdet"] == pytest.approx(pooled["logdet"])


def test_a_rank_one_cloud_passes_the_variance_floor_and_fails_the_covariance_floor():
    line = jnp.linspace(-1, 1, 50)[:, None] * jnp.array([1.0, -1.0, 2.0])
    assert floors.variance_floor(line, std_floor=0.2)[0] == 0
    assert floors.covariance_floor(line, jnp.eye(3), logdet_floor=-1.5)[0] > 1


# Not tall, and tall.
@pytest.mark.parametrize(("dim", "rank"), [(9, 4), (4, 4), (64, 16)])
def test_random_projection_is_orthonormal(dim, rank):
    projection = floors.random_projection(jax.random.key(0), dim, rank)
    assert projection.shape == (dim, rank)
    np.testing.assert_allclose(projection.T @ projection, np.eye(rank), atol=1e-12)


def test_tall_random_projection_is_orthonormal_to_rounding():
    projection = floors.random_projection(jax.random.key(0), 512, 128, jnp.float32)
    np.testing.assert_allclose(projection.T @ projection, np.eye(128), atol=3e-6)


def test_random_projection_leans_to_no_direction():
    projections = jax.vmap(lambda key: floors.random_projection(key, 8, 2))(jax.random.split(jax.random.key(0), 4000))
    # The mean of a unit vector is zero and its second moments are 1/d, whatever its entry.
    np.testing.assert_allclose(np.mean(projections[:, 1:], axis=0), 0.0, atol=0.03)
    np.testing.assert_allclose(np.mean(np.square(projections), axis=0), 1 / 8, atol=0.015)


def test_projections_are_of_the_largest_useful_rank():
    assert floors.projection_rank(256, 512) == 128
    assert floors.projection_rank(64, 512) == 64
    assert floors.projection_rank(256, 50) == 49


# What each term bounds, from below (+1) or from above (−1), and the loss with its threshold alone.
BOUNDS = {
    "min_std": (1, lambda x, bound: floors.variance_floor(x, std_floor=bound)),
    "logdet": (1, lambda x, bound: floors.covariance_floor(x, jnp.eye(4), logdet_floor=bound)),
    "participation": (
        1,
        lambda x, bound: floors.covariance_floor(x, jnp.eye(4), logdet_floor=-1e9, participation_floor=bound),
    ),
    "eigmax": (-1, lambda x, bound: floors.covariance_floor(x, jnp.eye(4), logdet_floor=-1e9, eigmax_ceiling=bound)),
}


@partial(jax.jit, static_argnums=0)
def at_a_distance(statistic, x, distance):
    """Loss, its largest gradient, and how a step downhill changes a statistic that is this far inside its bound."""
    sign, floor = BOUNDS[statistic]
    before = floor(x, 0.0)[1][statistic]
    bound = before - sign * distance
    loss, gradient = jax.value_and_grad(lambda x: floor(x, bound)[0])(x)
    after = floor(x - 1e-5 * gradient / (jnp.linalg.norm(gradient) + 1e-30), bound)[1][statistic]
    return loss, jnp.max(jnp.abs(gradient)), sign * (after - before)


@hypothesis.given(
    statistic=st.sampled_from(sorted(BOUNDS)),
    seed=st.integers(0, 2**31),
    scales=st.lists(st.floats(0.1, 3.0), min_size=4, max_size=4),
    distance=st.floats(1e-3, 0.5),
)
def test_every_floor_is_zero_where_it_is_satisfied_and_pushes_where_it_is_not(statistic, seed, scales, distance):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=(30, 4)) * scales)
        loss, gradient, _ = at_a_distance(statistic, x, distance)
        assert (loss, gradient) == (0, 0)
        loss, gradient, improvement = at_a_distance(statistic, x, -distance)
        assert loss > 0
        assert gradient > 0
        assert improvement > 0


@hypothesis.given(scale=st.floats(0.1, 10.0), target=st.floats(0.1, 10.0), half=st.sampled_from([0, 1]))
def test_the_budget_is_zero_at_its_targets_and_pulls_towards_them(scale, target, half):
    half_of_ones = jnp.ones((5, 2))
    z = jnp.concatenate([scale * half_of_ones if i == half else half_of_ones for i in range(2)], axis=1)
    own, one = scale**2, 1.0
    assert floors.energy_budget(z, q_target=own if half == 0 else one, p_target=own if half == 1 else one)[0] < 1e-24
    targets = {"q_target": target if half == 0 else one, "p_target": target if half == 1 else one}
    gradient = jax.grad(lambda z: floors.energy_budget(z, **targets)[0])(z)
    np.testing.assert_array_equal(np.sign(gradient[:, 2 * half : 2 * half + 2]), np.sign(own - target))
    np.testing.assert_allclose(gradient[:, 2 - 2 * half : 4 - 2 * half], 0, atol=1e-12)
