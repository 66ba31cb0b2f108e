import jax
import jax.numpy as jnp
import numpy as np

from hamjepa_jax.stats.slicing import random_directions, sigreg
from hamjepa_jax.stats.univariate import epps_pulley


def test_directions_are_unit_and_uniform():
    directions = random_directions(jax.random.key(0), 3, 30_000)
    np.testing.assert_allclose(jnp.linalg.norm(directions, axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(directions @ directions.T / 30_000, np.eye(3) / 3, atol=0.01)


def test_sigreg_is_the_mean_over_views_and_directions():
    z = jax.random.normal(jax.random.key(0), (2, 40, 5)) + jnp.array([0.0, 2.0])[:, None, None]
    directions = random_directions(jax.random.key(1), 5, 7)
    each = [epps_pulley(z[view] @ directions, num_points=9)[k] for view in range(2) for k in range(7)]
    np.testing.assert_allclose(sigreg(z, directions, num_points=9), np.mean(each), rtol=1e-5)


def test_sigreg_prefers_an_isotropic_gaussian():
    directions = random_directions(jax.random.key(1), 8, 256)
    gaussian = jax.random.normal(jax.random.key(0), (1024, 8))
    stretched = gaussian * jnp.array([2.0, *[1.0] * 7])
    assert sigreg(gaussian, directions) < 2 < sigreg(stretched, directions) < sigreg(0 * gaussian, directions)
