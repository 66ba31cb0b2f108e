from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from hamjepa_jax import environment, sharding
from hamjepa_jax.benchmarks import hlo
from hamjepa_jax.stats import univariate
from hamjepa_jax.stats.univariate import WEIGHTS, epps_pulley, knots

CASES = [(3.0, 17, "gaussian"), (9.0, 200, "gaussian"), (3.0, 9, "gaussian"), (5.0, 21, "uniform"), (1.0, 2, "uniform")]


def written_out(x, t_max, num_points, weight):
    """The definition, with all N·K·T cosines and sines."""
    t, w, phi = knots(t_max, num_points, weight)
    cos = jnp.mean(jnp.cos(t[:, None, None] * x), axis=1)
    sin = jnp.mean(jnp.sin(t[:, None, None] * x), axis=1)
    return x.shape[0] * jnp.sum(w[:, None] * ((cos - phi[:, None]) ** 2 + sin**2), axis=0)


@partial(jax.jit, static_argnums=1)
def gradient_of_sum(samples, weight):
    return jax.grad(lambda x: jnp.sum(epps_pulley(x, weight=weight)))(samples)


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


def mean_and_standard_error(samples_NxK):
    statistics = np.asarray(epps_pulley(samples_NxK))
    return np.mean(statistics), np.std(statistics) / np.sqrt(statistics.size)


@pytest.mark.parametrize("num_samples", [2, 10, 200])
def test_mean_under_the_null_is_what_theory_gives_for_every_number_of_samples(num_samples):
    # C and S are means of N independent terms of expectation φ and 0, so E[(C − φ)² + S²] is 1/N times the variance of
    # one term, E[cos² + sin²] − φ² = 1 − φ². The factor N of the statistic cancels: its mean is Σ w(1 − φ²).
    _, w, phi = knots(3.0, 17, "gaussian")
    samples = jax.random.normal(jax.random.key(num_samples), (num_samples, 20_000))
    mean, standard_error = mean_and_standard_error(samples)
    assert mean == pytest.approx(np.sum(w * (1 - phi**2)), abs=4 * standard_error)


@pytest.mark.parametrize("num_samples", [100, 1000])
def test_statistic_grows_linearly_with_the_number_of_samples_that_are_not_gaussian(num_samples):
    # As above with the characteristic function ψ of the samples, Σ w(1 − ψ²) + N·Σ w(ψ − φ)²; ψ = sin t/t in ±1.
    t, w, phi = knots(3.0, 17, "gaussian")
    psi = np.sinc(t / np.pi)
    constant, slope = np.sum(w * (1 - psi**2)), np.sum(w * (psi - phi) ** 2)
    samples = jax.random.uniform(jax.random.key(num_samples), (num_samples, 4000), minval=-1, maxval=1)
    mean, standard_error = mean_and_standard_error(samples)
    assert mean == pytest.approx(constant + num_samples * slope, abs=4 * standard_error)
    assert num_samples * slope > 5 * constant


@hypothesis.given(
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-10.0, 10.0),
    weight=st.sampled_from(WEIGHTS),
    seed=st.integers(0, 2**31),
)
def test_gradient_is_bounded_whatever_the_samples(scale, shift, weight, seed):
    samples = shift + scale * np.random.default_rng(seed).standard_cauchy((20, 3))
    with jax.enable_x64(True):
        gradient = gradient_of_sum(samples, weight)
        t, w, phi = knots(3.0, 17, weight)
        angles = t[:, None, None] * samples
        cos_errors, sin_means = np.cos(angles).mean(axis=1) - phi[:, None], np.sin(angles).mean(axis=1)
        bound = 2 * np.einsum("t,tk->k", w * t, np.abs(cos_errors) + np.abs(sin_means))
        assert np.all(np.abs(gradient) <= bound * (1 + 1e-9))
        # Anything is within 2·Σ w·t·(2 + 1).
        assert np.all(bound <= 6 * np.sum(w * t))


def set_block(monkeypatch, on_one_cpu, block):
    monkeypatch.setattr(environment, "on_one_cpu", lambda: on_one_cpu)
    for name in ("LEAST_BLOCK_ON_ONE_CPU", "MOST_BLOCK_ON_ONE_CPU") if on_one_cpu else ("BLOCK",):
        monkeypatch.setattr(univariate, name, block)


# One projection at a time, two, which do not divide seven, and all of them.
@pytest.mark.parametrize("block", [12, 24, 84])
@pytest.mark.parametrize("on_one_cpu", [True, False])
def test_blocks_of_projections_change_nothing(float64, monkeypatch, on_one_cpu, block):
    x = jax.random.normal(jax.random.key(0), (2, 6, 7), jnp.float64)

    def value_and_gradient(x):
        statistics, pull_back = jax.vjp(epps_pulley, x)
        return statistics, *pull_back(jnp.cos(statistics))

    set_block(monkeypatch, False, x.size)
    whole = jax.jit(value_and_gradient)(x)
    set_block(monkeypatch, on_one_cpu, block)
    # Another function, so that it is traced anew.
    in_blocks = jax.jit(lambda x: value_and_gradient(x))(x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), in_blocks, whole)


# On one CPU blocks are chosen by the size of the whole.
@pytest.mark.parametrize(("on_one_cpu", "num_columns"), [(True, 256), (True, 4096), (False, 1024)])
def test_no_cosine_of_every_sample_and_knot_is_held(monkeypatch, on_one_cpu, num_columns):
    monkeypatch.setattr(environment, "on_one_cpu", lambda: on_one_cpu)
    monkeypatch.setattr(univariate, "BLOCK", 2**14)
    x = jax.ShapeDtypeStruct((256, num_columns), jnp.float32)
    gradient = jax.jit(jax.value_and_grad(lambda x: jnp.mean(epps_pulley(x, num_points=17))))
    assert gradient.lower(x).compile().memory_analysis().temp_size_in_bytes < 3 * 4 * x.size


def test_devices_that_share_the_samples_exchange_means_once():
    rows = sharding.batch_sharding(sharding.make_mesh(data=4, fsdp=2))
    x = jax.ShapeDtypeStruct((256, 32), jnp.float32, sharding=rows)
    program = jax.jit(epps_pulley).lower(x).compile().as_text()
    assert [(found.kind, found.times) for found in hlo.collectives(program)] == [("all-reduce", 1)]


def test_half_precision_is_computed_in_float32():
    x = jax.random.normal(jax.random.key(0), (64, 3)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(epps_pulley(x), epps_pulley(x.astype(jnp.float32)))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_points: must be at least 2"):
        epps_pulley(jnp.zeros((2, 1)), num_points=1)
    with pytest.raises(ValueError, match="weight: 'box' is unknown; known weights: gaussian, uniform"):
        epps_pulley(jnp.zeros((2, 1)), weight="box")
