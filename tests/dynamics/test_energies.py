import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.dynamics import energies

pytestmark = pytest.mark.usefixtures("float64")


def test_quadratic_energy_by_hand():
    value = energies.quadratic().value({"layers": []}, jnp.array([3.0, 0.0]), jnp.array([1.0, 2.0]))
    assert value == pytest.approx(0.5 * 9 + 0.5 * 5)


def test_pendulum_energy_by_hand():
    q, p = jnp.array([jnp.pi, 0.0]), jnp.array([2.0, 1.0])
    assert energies.pendulum().value({"layers": []}, q, p) == pytest.approx(0.5 * 5 + 2.0)


def test_separable_energy_by_hand():
    energy = energies.separable_mlp(hidden_dim=1, depth=1, base_coeff=0.1)
    params = {
        "layers": [
            {"kernel": jnp.array([[2.0], [0.0]]), "bias": jnp.array([1.0])},
            {"kernel": jnp.array([[3.0]]), "bias": jnp.array([-0.5])},
        ]
    }
    q, p = jnp.array([0.0, 4.0]), jnp.array([1.0, 1.0])
    gelu_of_one = 0.5 * (1.0 + 0.6826894921370859)
    expected = 0.5 * 2 + 0.5 * 0.1 * 16 + 0.02 * (3.0 * gelu_of_one - 0.5)
    assert energy.value(params, q, p, residual_scale=0.02) == pytest.approx(expected, rel=1e-12)


def test_coupled_energy_is_quadratic_plus_residual():
    energy = energies.coupled_mlp(hidden_dim=5, depth=2)
    params = energy.init(jax.random.key(0), 3)
    q, p = jnp.arange(3.0), jnp.ones(3)
    base = energy.value(params, q, p, residual_scale=0.0)
    assert base == pytest.approx(0.5 * 5 + 0.5 * 3)
    residual = energies.apply_mlp(params, jnp.concatenate([q, p]))[0]
    assert energy.value(params, q, p, residual_scale=0.3) == pytest.approx(base + 0.3 * residual)
    assert energy.potential is None


def test_initial_weights_fill_the_fan_in_interval():
    params = energies.init_mlp(jax.random.key(1), (16, 400, 1))
    first, last = params["layers"]
    assert first["kernel"].shape == (16, 400)
    assert last["kernel"].shape == (400, 1)
    for values, bound in ((first["kernel"], 0.25), (first["bias"], 0.25), (last["kernel"], 0.05)):
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.95 * bound
        assert np.std(values) == pytest.approx(bound / np.sqrt(3), rel=0.1)


def test_leading_axes_are_batch_axes():
    energy = energies.separable_mlp(hidden_dim=4, depth=2, base_coeff=1.0)
    params = energy.init(jax.random.key(0), 3)
    q, p = jax.random.normal(jax.random.key(1), (2, 5, 6, 3))
    values = energy.value(params, q, p)
    assert values.shape == (5, 6)
    assert values[2, 3] == pytest.approx(energy.value(params, q[2, 3], p[2, 3]))


@pytest.mark.parametrize("make", [energies.quadratic, lambda: energies.coupled_mlp(hidden_dim=4, depth=1)])
def test_masses_divide_the_kinetic_energy_and_are_one_at_first(make):
    plain, q, p = make(), jnp.array([0.3, -1.0]), jnp.array([2.0, 3.0])
    energy = energies.with_diagonal_mass(plain)
    params = energy.init(jax.random.key(0), 2)
    np.testing.assert_array_equal(params["log_mass"], np.zeros(2))
    assert energy.value(params, q, p) == plain.value(params, q, p)
    heavy = params | {"log_mass": jnp.log(jnp.array([4.0, 0.5]))}
    assert energy.value(heavy, q, p) - plain.value(params, q, p) == pytest.approx(0.5 * (4 / 4 + 9 / 0.5 - 4 - 9))
    np.testing.assert_allclose(energy.inverse_mass(heavy), [0.25, 2.0])
    assert energy.potential is plain.potential


def test_masses_are_given_once():
    with pytest.raises(ValueError, match="has masses already"):
        energies.with_diagonal_mass(energies.with_diagonal_mass(energies.quadratic()))
