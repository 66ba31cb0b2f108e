import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.dynamics import energies, geometry, predictors
from hamjepa_jax.dynamics.integrators import integrate

pytestmark = pytest.mark.usefixtures("float64")


def states(dim=3, batch=(2, 5)):
    return jax.random.normal(jax.random.key(0), (*batch, 2 * dim))


def test_jacobian_has_outputs_before_inputs():
    matrix = jnp.arange(16.0).reshape(4, 4)
    found = geometry.jacobian(lambda z: matrix @ z, states(dim=2))
    np.testing.assert_allclose(found, jnp.broadcast_to(matrix, (2, 5, 4, 4)))


def test_a_shear_of_the_momenta_is_symplectic_and_a_scaling_is_not():
    def kick(z):
        q, p = jnp.split(z, 2)
        return jnp.concatenate([q, p - 0.3 * q**3])

    np.testing.assert_allclose(geometry.symplectic_defect(kick, states()), np.zeros((2, 5)), atol=1e-15)
    np.testing.assert_allclose(geometry.symplectic_defect(lambda z: 2 * z, states()), np.full((2, 5), 3.0))


def test_keeping_volume_is_not_enough_to_be_symplectic():
    # q₁ is stretched and q₂ shrunk, but their momenta stay as they are.
    squeeze = jnp.diag(jnp.array([2.0, 0.5, 1.0, 1.0]))
    z = states(dim=2)
    np.testing.assert_allclose(geometry.log_abs_det_jacobian(lambda z: squeeze @ z, z), np.zeros((2, 5)), atol=1e-15)
    np.testing.assert_allclose(geometry.symplectic_defect(lambda z: squeeze @ z, z), np.full((2, 5), 1.0))


def test_log_det_of_a_scaling():
    found = geometry.log_abs_det_jacobian(lambda z: -2 * z, states())
    np.testing.assert_allclose(found, np.full((2, 5), 6 * np.log(2)))


def test_the_defect_of_a_known_jacobian_is_that_of_its_map():
    matrix = jax.random.normal(jax.random.key(1), (6, 6))
    z = states()
    found = geometry.symplectic_defect(lambda z: matrix @ z, z)
    # The definition, with the whole of Ω.
    omega = np.block([[np.zeros((3, 3)), np.eye(3)], [-np.eye(3), np.zeros((3, 3))]])
    expected = np.abs(matrix.T @ omega @ matrix - omega).max()
    np.testing.assert_allclose(found, np.full((2, 5), expected))
    assert geometry.defect_of_jacobian(matrix) == pytest.approx(expected)


def test_log_det_of_a_linear_map():
    matrix = jax.random.normal(jax.random.key(1), (6, 6))
    found = geometry.log_abs_det_jacobian(lambda z: matrix @ z + 1.0, states())
    np.testing.assert_allclose(found, np.full((2, 5), np.log(np.abs(np.linalg.det(matrix)))))


def test_an_mlp_is_neither_symplectic_nor_reversible():
    mlp = predictors.mlp(hidden_dim=16, depth=2)
    params = mlp.init(jax.random.key(0), 6)

    def predict(z):
        return mlp.apply(params, z)

    assert np.all(geometry.symplectic_defect(predict, states()) > 0.5)
    assert np.all(geometry.log_abs_det_jacobian(predict, states()) < -1)
    assert np.all(geometry.reversal_error(predict, states()) > 0.1)


def test_inverse_error_by_hand():
    z = jnp.array([[1.0, -3.0], [2.0, 0.5]])
    np.testing.assert_array_equal(geometry.inverse_error(lambda z: 2 * z, lambda z: z / 2, z), [0.0, 0.0])
    np.testing.assert_array_equal(geometry.inverse_error(lambda z: 2 * z, lambda z: z, z), [3.0, 2.0])
    np.testing.assert_array_equal(geometry.inverse_error(lambda z: z + 1, lambda z: z - 3, z), [2.0, 2.0])


def test_reversal_error_by_hand():
    z = jnp.array([[1.0, -3.0], [2.0, 0.5]])
    drift, kick = jnp.array([[1.0, 0.0], [0.3, 1.0]]), jnp.array([[1.0, -0.3], [0.0, 1.0]])
    for shear in (drift, kick):
        np.testing.assert_allclose(geometry.reversal_error(lambda z, shear=shear: z @ shear, z), [0, 0], atol=1e-15)
    # A shift of q goes on in the same direction when p is reversed, a shift of p comes back.
    np.testing.assert_array_equal(geometry.reversal_error(lambda z: z + jnp.array([0.5, 0.0]), z), [1.0, 1.0])
    np.testing.assert_array_equal(geometry.reversal_error(lambda z: z + jnp.array([0.0, 0.5]), z), [0.0, 0.0])
    np.testing.assert_array_equal(geometry.reversal_error(lambda z: 2 * z, z), [9.0, 6.0])


def test_reversibility_of_the_schemes():
    energy = energies.separable_mlp(hidden_dim=6, depth=2, base_coeff=0.7)
    params = energy.init(jax.random.key(0), 3)
    q, p = jnp.split(states(), 2, axis=-1)
    for scheme, reversible in (("leapfrog", True), ("symplectic_euler", False), ("explicit_euler", False)):
        error = geometry.reversibility_error(energy, params, q, p, step_size=0.2, num_steps=3, scheme=scheme)
        assert error.shape == (2, 5)
        assert np.all(error < 1e-13) if reversible else np.all(error > 1e-4), scheme


def test_modified_energy_of_the_oscillator_by_hand():
    q, p = jnp.array([1.0, 0.0]), jnp.array([3.0, 2.0])
    found = geometry.modified_energy(energies.quadratic(), {}, q, p, step_size=0.5)
    assert found == pytest.approx(0.5 * (1 + 13) + 0.25 * (13 / 12 - 1 / 24))


def test_modified_energy_needs_a_separable_energy():
    energy = energies.coupled_mlp(hidden_dim=2, depth=1)
    with pytest.raises(ValueError, match="for separable energies only"):
        geometry.modified_energy(energy, energy.init(jax.random.key(0), 2), *jnp.ones((2, 2)), step_size=0.1)


def heavy_energy():
    energy = energies.with_diagonal_mass(energies.separable_mlp(hidden_dim=6, depth=2, base_coeff=0.7))
    return energy, energy.init(jax.random.key(0), 3) | {"log_mass": jnp.array([0.5, -0.3, 1.0])}


@pytest.mark.parametrize("scheme", ["leapfrog", "yoshida4", "implicit_midpoint", "symplectic_euler"])
def test_flows_with_masses_are_symplectic(scheme):
    energy, params = heavy_energy()

    def flow(z):
        q, p = integrate(energy, params, *jnp.split(z, 2), step_size=0.2, num_steps=3, scheme=scheme)
        return jnp.concatenate([q, p])

    np.testing.assert_allclose(geometry.symplectic_defect(flow, states()), np.zeros((2, 5)), atol=1e-12)


def test_leapfrog_with_masses_follows_hamiltons_equations():
    energy, params = heavy_energy()
    q, p = jnp.split(states(), 2, axis=-1)
    small = 1e-6
    q_ahead, p_ahead = integrate(energy, params, q, p, step_size=small, num_steps=1)
    h_q, h_p = jax.grad(lambda q, p: jnp.sum(energy.value(params, q, p)), argnums=(0, 1))(q, p)
    np.testing.assert_allclose((q_ahead - q) / small, h_p, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((p_ahead - p) / small, -h_q, rtol=1e-4, atol=1e-5)


def test_leapfrog_with_masses_conserves_the_modified_energy_to_fourth_order():
    energy, params = heavy_energy()
    q, p = jnp.split(states(), 2, axis=-1)
    drifts = []
    for step_size in (0.1, 0.05):
        ahead = integrate(energy, params, q, p, step_size=step_size, num_steps=round(2 / step_size))
        before, after = (
            geometry.modified_energy(energy, params, *state, step_size=step_size) for state in ((q, p), ahead)
        )
        drifts.append(np.abs(after - before).max())
    assert drifts[0] / drifts[1] == pytest.approx(16, rel=0.15)


def test_a_rollout_observes_what_comes_after_so_many_applications():
    angle = 0.1
    rotation = jnp.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    found = geometry.rollout(
        lambda z: z @ rotation.T,
        jnp.array([[1.0, 0.0], [2.0, 0.0]]),
        lambda z: {"q": z[:, 0], "norm": jnp.linalg.norm(z, axis=1)},
        num_applications=12,
        every=3,
    )
    exact = np.cos(angle * np.array([0, 3, 6, 9, 12]))
    np.testing.assert_allclose(found["q"], np.stack([exact, 2 * exact], axis=1), atol=1e-14)
    np.testing.assert_allclose(found["norm"], [[1.0, 2.0]] * 5)
    with pytest.raises(ValueError, match="num_applications: must be a multiple of 5, got 12"):
        geometry.rollout(lambda z: z, jnp.ones(2), lambda z: z, num_applications=12, every=5)


def test_relative_drift_by_hand():
    found = geometry.relative_drift(jnp.array([[2.0, -2.0], [3.0, -1.0], [2.0, -4.0]]))
    np.testing.assert_allclose(found, [[0.0, 0.0], [0.5, 0.5], [0.0, -1.0]])


def oscillator_drifts(scheme, step_size, num_steps=1000):
    """The drift of H and of the modified energy, in every step of a harmonic oscillator."""
    energy = energies.quadratic()

    def step(z):
        state = integrate(energy, {}, *jnp.split(z, 2, axis=-1), step_size=step_size, num_steps=1, scheme=scheme)
        return jnp.concatenate(state, axis=-1)

    def observe(z):
        state = jnp.split(z, 2, axis=-1)
        return energy.value({}, *state), geometry.modified_energy(energy, {}, *state, step_size=step_size)

    observed = geometry.rollout(step, states(), observe, num_applications=num_steps, every=1)
    return jax.tree.map(geometry.relative_drift, observed)


def test_explicit_euler_multiplies_the_energy_of_an_oscillator_by_a_known_factor():
    drift, _ = oscillator_drifts("explicit_euler", 0.1)
    expected = (1 + 0.1**2) ** np.arange(1001) - 1
    np.testing.assert_allclose(drift, np.broadcast_to(expected[:, None, None], drift.shape), rtol=1e-11)


def test_leapfrog_keeps_the_energies_of_an_oscillator_in_bands_of_order_two_and_four():
    widest = [
        [float(jnp.abs(drift).max()) for drift in oscillator_drifts("leapfrog", step_size)] for step_size in (0.2, 0.1)
    ]
    ratios = np.divide(*widest)
    assert ratios == pytest.approx([4, 16], rel=0.1)
    assert widest[1][1] < 0.01 * widest[1][0]


def test_residual_force_ratio_by_hand():
    energy = energies.separable_mlp(hidden_dim=6, depth=1, base_coeff=0.5)
    params = energy.init(jax.random.key(0), 3)
    q, p = jnp.split(states(), 2, axis=-1)
    learned = jax.grad(lambda q: jnp.sum(energies.apply_mlp(params, q)))(q)
    expected = 0.02 * jnp.linalg.norm(learned) / (0.5 * jnp.linalg.norm(q))
    assert geometry.residual_force_ratio(energy, params, q, p, residual_scale=0.02) == pytest.approx(expected)
    assert geometry.residual_force_ratio(energies.quadratic(), {}, q, p) == 0
