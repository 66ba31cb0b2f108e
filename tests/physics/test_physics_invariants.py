"""What symplectic flows keep of a loop and of a cloud, against areas and determinants by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.physics.invariants import circle, log_det_covariance, poincare_invariant

pytestmark = pytest.mark.usefixtures("float64")


def test_the_area_of_a_circle_and_of_its_images():
    loop = circle(jnp.array([0.3, -1.0, 2.0, 0.5]), 0.7, 64)
    area = np.pi * 0.7**2
    assert poincare_invariant(loop) == pytest.approx(area, rel=1e-12)
    assert poincare_invariant(loop[::-1]) == pytest.approx(-area, rel=1e-12)
    # A shear keeps it, and a stretch multiplies it.
    shear = jnp.eye(4).at[2, 0].set(3.0)
    assert poincare_invariant(loop @ shear.T) == pytest.approx(area, rel=1e-12)
    assert poincare_invariant(loop * jnp.array([2.0, 1.0, 3.0, 1.0])) == pytest.approx(6.0 * area, rel=1e-12)


def test_areas_in_all_planes_add_up():
    angle = 2 * jnp.pi * jnp.arange(48) / 48
    first, second = 0.5, 2.0
    loop = jnp.stack(
        [-first * jnp.cos(angle), -second * jnp.cos(angle), first * jnp.sin(angle), second * jnp.sin(angle)], axis=1
    )
    assert poincare_invariant(loop) == pytest.approx(np.pi * (first**2 + second**2), rel=1e-12)
    stacked = jnp.stack([loop, 2.0 * loop])
    np.testing.assert_allclose(poincare_invariant(stacked)[1], 4.0 * poincare_invariant(loop), rtol=1e-12)


def test_log_det_of_a_cloud_is_that_of_its_covariance_and_of_a_map():
    cloud = jax.random.normal(jax.random.key(0), (200, 4)) + 5.0
    covariance = np.cov(np.asarray(cloud), rowvar=False)
    assert log_det_covariance(cloud) == pytest.approx(np.linalg.slogdet(covariance)[1], rel=1e-12)
    matrix = jax.random.normal(jax.random.key(1), (4, 4))
    expected = float(log_det_covariance(cloud)) + 2 * np.linalg.slogdet(np.asarray(matrix))[1]
    assert log_det_covariance(cloud @ matrix.T) == pytest.approx(expected, rel=1e-12)


def test_a_cloud_of_too_few_states_is_refused():
    with pytest.raises(ValueError, match=r"^z_NxD: must have more states than the 4 coordinates of each, got 4$"):
        log_det_covariance(jnp.ones((4, 4)))
