import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_random_projection_is_orthonormal_and_of_the_largest_useful_rank():
    projection = floors.random_projection(jax.random.key(0), 9, 4)
    np.testing.assert_allclose(projection.T @ projection, np.eye(4), atol=1e-12)
    assert floors.projection_rank(256, 512) == 128
    assert floors.projection_rank(64, 512) == 64
    assert floors.projection_rank(256, 50) == 49
