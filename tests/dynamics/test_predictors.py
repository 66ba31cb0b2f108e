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


def test_residual_mlp_is_the_identity_at_first_and_adds_an_mlp():
    predictor = predictors.residual_mlp(hidden_dim=7, depth=2)
    params = predictor.init(jax.random.key(0), 4)
    z = jax.random.normal(jax.random.key(1), (5, 4))
    np.testing.assert_array_equal(predictor.apply(params, z), z)
    # It can leave the identity: the last layer has a gradient.
    gradient = jax.grad(lambda params: jnp.sum(predictor.apply(params, z) ** 2))(params)
    assert jnp.abs(gradient["layers"][-1]["kernel"]).max() > 0.1
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    np.testing.assert_allclose(predictor.apply(moved, z), z + energies.apply_mlp(moved, z), rtol=1e-6)


def rotation_and_params(dim=7, rank=2):
    predictor = predictors.rotation(rank=rank)
    left, right = jax.random.normal(jax.random.key(0), (2, dim, rank))
    return predictor, {"left": left, "right": right}


@pytest.mark.usefixtures("float64")
def test_rotation_is_the_cayley_transform_of_a_skew_matrix():
    predictor, params = rotation_and_params()
    skew = params["left"] @ params["right"].T - params["right"] @ params["left"].T
    expected = np.linalg.solve(np.eye(7) - skew, np.eye(7) + skew)
    found = predictor.apply(params, jnp.eye(7)).T
    np.testing.assert_allclose(found, expected, atol=1e-13)
    np.testing.assert_allclose(found @ found.T, np.eye(7), atol=1e-13)
    assert np.linalg.det(found) == pytest.approx(1.0)


@pytest.mark.usefixtures("float64")
def test_rotation_has_an_inverse_and_keeps_a_subspace():
    predictor, params = rotation_and_params()
    z = jax.random.normal(jax.random.key(1), (3, 5, 7))
    back = predictor.apply(params, predictor.apply(params, z), direction=-1)
    np.testing.assert_allclose(back, z, atol=1e-13)
    # Seven dimensions, of which a rotation of rank 2 turns four.
    eigenvalues = np.linalg.eigvals(predictor.apply(params, jnp.eye(7)))
    assert np.sum(np.abs(eigenvalues - 1) < 1e-10) == 3


def test_rotation_is_the_identity_at_first_and_can_leave_it():
    predictor = predictors.rotation(rank=2)
    params = predictor.init(jax.random.key(0), 6)
    z = jax.random.normal(jax.random.key(1), (4, 6))
    np.testing.assert_array_equal(predictor.apply(params, z), z)
    gradient = jax.grad(lambda params: jnp.sum(predictor.apply(params, z)[:, 0]))(params)
    assert jnp.abs(gradient["right"]).max() > 0.01


@pytest.mark.parametrize("dim", [2048, 512])
@pytest.mark.parametrize(
    "make",
    [
        lambda width: predictors.mlp(hidden_dim=width, depth=2),
        lambda width: predictors.residual_mlp(hidden_dim=width, depth=2),
        lambda width: predictors.rotation(rank=width),
    ],
    ids=["mlp", "residual_mlp", "rotation"],
)
def test_a_matched_predictor_has_the_energys_parameters_within_a_percent(dim, make):
    energy = energies.separable_mlp(hidden_dim=256, depth=2, base_coeff=0.1)
    reference = predictors.hamiltonian_flow(energy, step_size=0.05, num_steps=2)
    wanted = predictors.num_parameters(reference, dim)
    # d -> 256 -> 256 -> 1, with biases.
    assert wanted == dim // 2 * 256 + 256 + 256 * 256 + 256 + 256 + 1
    width = predictors.matched_width(make, dim, to=reference)
    errors = [abs(predictors.num_parameters(make(w), dim) - wanted) for w in (width - 1, width, width + 1)]
    assert min(errors) == errors[1] <= 0.01 * wanted


def test_a_width_that_does_not_match_is_refused():
    with pytest.raises(ValueError, match=r"no width comes within 1 % of 59 parameters; 4 has 64"):
        predictors.matched_width(lambda w: predictors.rotation(rank=w), 8, to=_with_parameters(59))
    assert predictors.matched_width(lambda w: predictors.rotation(rank=w), 8, to=_with_parameters(64)) == 4
    assert predictors.matched_width(lambda w: predictors.rotation(rank=w), 8, to=_with_parameters(16)) == 1


def _with_parameters(count):
    return predictors.identity()._replace(init=lambda key, state_dim: jnp.zeros(count))
