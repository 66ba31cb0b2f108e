import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.dynamics import energies
from hamjepa_jax.dynamics.integrators import SCHEMES, integrate, trajectory

pytestmark = pytest.mark.usefixtures("float64")

# One step of size 0.1 of the unit oscillator from q = 1, p = 0, worked by hand.
OSCILLATOR_STEP = {
    "leapfrog": (0.995, -0.09975),
    "symplectic_euler": (0.99, -0.1),
    "explicit_euler": (1.0, -0.1),
    "implicit_midpoint": (0.9975 / 1.0025, -0.1 / 1.0025),
}
ORDER = {
    "leapfrog": 2,
    "published_leapfrog": 2,
    "symplectic_euler": 1,
    "yoshida4": 4,
    "implicit_midpoint": 2,
    "explicit_euler": 1,
}


def learned_energy(dim=3):
    energy = energies.separable_mlp(hidden_dim=6, depth=2, base_coeff=0.7)
    return energy, energy.init(jax.random.key(0), dim)


def random_state(dim=3, batch=4):
    return jax.random.normal(jax.random.key(1), (2, batch, dim))


@pytest.mark.parametrize("scheme", OSCILLATOR_STEP)
def test_one_step_of_the_oscillator_by_hand(scheme):
    q, p = integrate(
        energies.quadratic(), {}, jnp.array([1.0]), jnp.array([0.0]), step_size=0.1, num_steps=1, scheme=scheme
    )
    np.testing.assert_allclose([q[0], p[0]], OSCILLATOR_STEP[scheme], rtol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_order_of_convergence(scheme):
    def error(num_steps):
        q, p = integrate(
            energies.pendulum(),
            {},
            jnp.array([1.0]),
            jnp.array([0.5]),
            step_size=1.0 / num_steps,
            num_steps=num_steps,
            scheme=scheme,
        )
        return np.hypot(q[0] - exact_q[0], p[0] - exact_p[0])

    exact_q, exact_p = integrate(
        energies.pendulum(),
        {},
        jnp.array([1.0]),
        jnp.array([0.5]),
        step_size=1e-3,
        num_steps=1000,
        scheme="yoshida4",
    )
    assert np.log2(error(20) / error(40)) == pytest.approx(ORDER[scheme], abs=0.15)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_force_is_evaluated_once_more_than_there_are_steps(num_steps):
    evaluations = []

    def count(q):
        evaluations.append(1)
        return q

    @jax.custom_jvp
    def counted_potential(q):
        return 0.5 * jnp.sum(jnp.square(q), axis=-1)

    @counted_potential.defjvp
    def counted_potential_jvp(primals, tangents):
        (q,), (dq,) = primals, tangents
        force = jax.pure_callback(count, jax.ShapeDtypeStruct(q.shape, q.dtype), q)
        return counted_potential(q), jnp.sum(force * dq, axis=-1)

    energy = energies.Energy(
        init=lambda key, dim: {},
        value=lambda params, q, p, residual_scale=1.0: counted_potential(q) + 0.5 * jnp.sum(p**2, -1),
        potential=lambda params, q, residual_scale=1.0: counted_potential(q),
    )
    q, _ = integrate(energy, {}, jnp.ones(2), jnp.zeros(2), step_size=0.1, num_steps=num_steps)
    jax.block_until_ready(q)
    assert len(evaluations) == num_steps + 1


def test_trajectory_holds_the_state_after_every_step():
    energy, params = learned_energy()
    q, p = random_state()
    settings = {"step_size": 0.2, "scheme": "yoshida4", "direction": -1, "residual_scale": 0.5}
    states = trajectory(energy, params, q, p, num_steps=3, **settings)
    for k in range(3):
        expected = integrate(energy, params, q, p, num_steps=k + 1, **settings)
        np.testing.assert_allclose([x[k] for x in states], expected, rtol=1e-12)


def test_no_steps_is_the_identity():
    energy, params = learned_energy()
    q, p = random_state()
    for scheme in SCHEMES:
        end = integrate(energy, params, q, p, step_size=0.1, num_steps=0, scheme=scheme)
        np.testing.assert_array_equal(end, (q, p))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scheme": "verlet"}, "scheme: 'verlet' is unknown; known schemes: leapfrog"),
        ({"num_steps": -1}, "num_steps: must be at least 0"),
        ({"direction": 2}, "direction: must be 1 or -1"),
    ],
)
def test_bad_arguments_are_named(wrong, message):
    settings = {"step_size": 0.1, "num_steps": 1} | wrong
    with pytest.raises(ValueError, match=message):
        integrate(energies.quadratic(), {}, jnp.ones(2), jnp.ones(2), **settings)
