import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from hamjepa_jax import sharding
from hamjepa_jax.benchmarks import hlo
from hamjepa_jax.stats.slicing import random_directions, sigreg, sliced
from hamjepa_jax.stats.univariate import TESTS, epps_pulley

# The tests that sort.
RANK_TESTS = {"cramer_von_mises", "anderson_darling", "watson", "shapiro_francia", "wasserstein"}


def test_directions_are_unit_and_uniform():
    directions = random_directions(jax.random.key(0), 3, 30_000)
    np.testing.assert_allclose(jnp.linalg.norm(directions, axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(directions @ directions.T / 30_000, np.eye(3) / 3, atol=0.01)


def test_sigreg_is_the_mean_over_views_and_directions():
    z = jax.random.normal(jax.random.key(0), (2, 40, 5)) + jnp.array([0.0, 2.0])[:, None, None]
    directions = random_directions(jax.random.key(1), 5, 7)
    each = [epps_pulley(z[view] @ directions, num_points=9)[k] for view in range(2) for k in range(7)]
    np.testing.assert_allclose(sigreg(z, directions, num_points=9), np.mean(each), rtol=1e-5)


def test_a_sliced_test_is_the_mean_over_views_and_directions():
    z = jax.random.normal(jax.random.key(0), (2, 40, 5)) + jnp.array([0.0, 2.0])[:, None, None]
    directions = random_directions(jax.random.key(1), 5, 7)
    for name in ("watson", "wasserstein"):
        each = [TESTS[name](z[view] @ directions)[k] for view in range(2) for k in range(7)]
        np.testing.assert_allclose(sliced(z, directions, TESTS[name]), np.mean(each), rtol=1e-5)


def test_sigreg_passes_its_settings_on():
    z = jax.random.normal(jax.random.key(0), (40, 5))
    directions = random_directions(jax.random.key(1), 5, 7)
    settings = {"t_max": 2.0, "num_points": 5, "weight": "uniform"}
    expected = sliced(z, directions, partial(epps_pulley, **settings))
    np.testing.assert_array_equal(sigreg(z, directions, **settings), expected)


def test_sliced_wasserstein_moves_a_cloud_to_a_gaussian():
    # In d dimensions the squared distance between N(0, σ²I) and N(0, I) along every direction is (σ − 1)².
    z = 3 * jax.random.normal(jax.random.key(0), (4000, 6))
    directions = random_directions(jax.random.key(1), 6, 50)
    np.testing.assert_allclose(sliced(z, directions, TESTS["wasserstein"]) / 4000, 4.0, rtol=0.05)


def test_half_precision_is_projected_in_float32():
    z = jax.random.normal(jax.random.key(0), (40, 5)).astype(jnp.bfloat16)
    directions = random_directions(jax.random.key(1), 5, 7, jnp.bfloat16)
    expected = sliced(z.astype(jnp.float32), directions.astype(jnp.float32), TESTS["watson"])
    assert expected.dtype == jnp.float32
    np.testing.assert_array_equal(sliced(z, directions, TESTS["watson"]), expected)


@pytest.mark.parametrize("name", TESTS)
def test_embeddings_that_coincide_are_pushed_apart_along_a_single_line_or_not_at_all(float64, name):
    z = jnp.full((12, 5), 0.3)
    directions = random_directions(jax.random.key(0), 5, 64)
    gradient = np.asarray(jax.jit(jax.grad(partial(sliced, test=TESTS[name])))(z, directions))
    spread = gradient - np.mean(gradient, axis=0)
    # One line for all of them: every direction ranks them alike.
    rank = np.linalg.matrix_rank(spread, tol=1e-12)
    assert rank == (1 if name in RANK_TESTS - {"shapiro_francia"} else 0)


@pytest.mark.parametrize("name", TESTS)
def test_on_eight_devices_the_rank_tests_gather_projections_and_the_others_only_add(name):
    num_views, batch, dim, num_directions = 2, 64, 24, 10
    mesh = sharding.make_mesh(data=8, fsdp=1)
    by_batch, copies = NamedSharding(mesh, PartitionSpec(None, "data")), NamedSharding(mesh, PartitionSpec())
    z = jax.random.normal(jax.random.key(0), (num_views, batch, dim))
    directions = random_directions(jax.random.key(1), dim, num_directions)
    value_and_gradient = jax.value_and_grad(partial(sliced, test=TESTS[name]))
    expected = jax.jit(value_and_gradient)(z, directions)

    split = jax.device_put((z, directions), (by_batch, copies))
    compiled = jax.jit(value_and_gradient, out_shardings=(copies, by_batch)).lower(*split).compile()
    found = compiled(*split)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5 * jnp.max(jnp.abs(expected[1])))

    travelling = [(c.kind, array.shape) for c in hlo.collectives(compiled.as_text()) for array in c.results]
    of_all_samples = [(kind, shape) for kind, shape in travelling if batch in shape]
    assert {shape for _, shape in of_all_samples} <= {(num_views, batch, num_directions)}
    assert {kind for kind, _ in of_all_samples} == ({"all-gather", "all-reduce"} if name in RANK_TESTS else set())
    assert {kind for kind, shape in travelling if batch not in shape} <= {"all-reduce"}


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
