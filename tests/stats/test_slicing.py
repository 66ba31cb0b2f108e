import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

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


def test_sigreg_is_invariant_under_rotations_in_distribution():
    # Stretched along an axis, and rotated onto the diagonal: what a direction sees of them is distributed alike.
    stretched = jax.random.normal(jax.random.key(0), (200, 4)) * jnp.array([3.0, 1.0, 1.0, 1.0])
    reflector = jnp.array([1.0, 0.0, 0.0, 0.0]) - 0.5 * jnp.ones(4)
    rotation = jnp.eye(4) - 2 * jnp.outer(reflector, reflector) / jnp.sum(reflector**2)
    np.testing.assert_allclose(rotation[0], 0.5 * jnp.ones(4), atol=1e-6)

    def values(z, seed):
        return epps_pulley(z @ random_directions(jax.random.key(seed), 4, 4000))

    assert scipy.stats.ks_2samp(values(stretched, 1), values(stretched @ rotation, 2)).pvalue > 0.01
    # The test can tell: without normalisation, or from a cube, directions are not uniform.
    cube = jax.random.uniform(jax.random.key(2), (4, 4000), minval=-1, maxval=1)
    cube = cube / jnp.linalg.norm(cube, axis=0)
    along_axis, along_diagonal = (epps_pulley(z @ cube) for z in (stretched, stretched @ rotation))
    assert scipy.stats.ks_2samp(along_axis, along_diagonal).pvalue < 1e-6


def test_sigreg_tells_apart_what_is_not_gaussian_the_easier_the_farther():
    keys = jax.random.split(jax.random.key(0), 6)
    shape, degrees = (2000, 4), 5
    gaussian = jax.random.normal(keys[0], shape)
    uniform = jax.random.uniform(keys[1], shape, minval=-np.sqrt(3), maxval=np.sqrt(3))
    radius = jnp.sqrt((degrees - 2) / jax.random.chisquare(keys[2], degrees, shape=(2000, 1)))
    student_t = radius * jax.random.normal(keys[3], shape)
    centers = 0.9 * jnp.where(jax.random.bernoulli(keys[4], shape=(2000, 1)), 1.0, -1.0)
    mixture = centers + np.sqrt(1 - 0.9**2) * jax.random.normal(keys[5], shape)
    collapsed = jnp.zeros(shape)
    for cloud in (gaussian, uniform, student_t, mixture):
        np.testing.assert_allclose(jnp.mean(cloud**2), 1.0, rtol=0.1)

    directions = random_directions(jax.random.key(1), 4, 512)
    values = [float(sigreg(cloud, directions)) for cloud in (gaussian, uniform, student_t, mixture, collapsed)]
    assert values[0] < 2
    assert all(farther > 2 * nearer for nearer, farther in itertools.pairwise(values)), values
