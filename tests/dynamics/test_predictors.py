import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.dynamics import energies, integrators, predictors


def flow(**settings):
    energy = energies.separable_mlp(hidden_dim=8, depth=2, base_coeff=0.1)
    return predictors.hamiltonian_flow(energy, **{"step_size": 0.05, "num_steps": 2} | settings)


def test_flow_integrates_the_halves_of_the_state():
    predictor = flow()
    z = jax.random.normal(jax.random.key(0), (5, 6))
    params = predictor.init(jax.random.key(1), 6)
    energy = energies.separable_mlp(hidden_dim=8, depth=2, base_coeff=0.1)
    q, p = integrators.integrate(energy, params, z[:, :3], z[:, 3:], step_size=0.05, num_steps=2, residual_scale=0.02)
    np.testing.assert_allclose(predictor.apply(params, z, residual_scale=0.02), jnp.concatenate([q, p], -1))


def test_flow_stays_in_float32_for_a_bfloat16_state():
    predictor = flow()
    params = predictor.init(jax.random.key(1), 6)
    z = jax.random.normal(jax.random.key(0), (5, 6)).astype(jnp.bfloat16)
    moved = predictor.apply(params, z)
    assert moved.dtype == jnp.float32
    np.testing.assert_array_equal(moved, predictor.apply(params, z.astype(jnp.float32)))


def test_odd_states_are_refused():
    with pytest.raises(ValueError, match="even number of coordinates, got 5"):
        flow().init(jax.random.key(0), 5)
    with pytest.raises(ValueError, match="even number of coordinates, got 5"):
        predictors.split_state(jnp.zeros((2, 5)))


def test_linear_is_affine_and_identity_does_nothing():
    z = jax.random.normal(jax.random.key(0), (4, 3))
    linear = predictors.linear()
    (layer,) = linear.init(jax.random.key(1), 3)["layers"]
    np.testing.assert_allclose(linear.apply({"layers": [layer]}, z), z @ layer["kernel"] + layer["bias"], rtol=1e-6)
    np.testing.assert_array_equal(predictors.identity().apply({"layers": []}, z, direction=-1), z)


def test_mlp_maps_states_to_states():
    predictor = predictors.mlp(hidden_dim=7, depth=2)
    params = predictor.init(jax.random.key(0), 4)
    assert [layer["kernel"].shape for layer in params["layers"]] == [(4, 7), (7, 7), (7, 4)]
    assert predictor.apply(params, jnp.ones((2, 5, 4))).shape == (2, 5, 4)
