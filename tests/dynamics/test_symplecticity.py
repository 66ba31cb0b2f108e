"""The claims that HamJEPA rests on, under `jit` and over random energies, sizes, steps and states."""

import warnings
from functools import cache, partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from hamjepa_jax.dynamics import energies, geometry
from hamjepa_jax.dynamics.integrators import integrate, trajectory
from hamjepa_jax.dynamics.predictors import split_state

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-11
SYMPLECTIC = ("leapfrog", "yoshida4", "implicit_midpoint", "symplectic_euler")
SELF_ADJOINT = ("leapfrog", "yoshida4", "implicit_midpoint")

sizes = {
    "dim": st.sampled_from([1, 2, 7]),
    "hidden_dim": st.sampled_from([3, 16]),
    "num_steps": st.sampled_from([1, 2, 5]),
    "direction": st.sampled_from([1, -1]),
}


def several_numbers(largest_step_size):
    """What is traced; one compilation serves several of them."""
    numbers = {
        "step_size": st.floats(0.01, largest_step_size),
        "residual_scale": st.floats(0.0, 2.0),
        "state_scale": st.floats(0.1, 3.0),
        "seed": st.integers(0, 2**31 - 1),
    }
    return st.lists(st.fixed_dictionaries(numbers), min_size=5, max_size=5)


def joined(state):
    return jnp.concatenate(state, axis=-1)


@cache
def observed(kind, scheme, dim, hidden_dim, num_steps, direction):
    """A jitted function from the numbers of an example to what its flow does, each zero in theory."""
    energy = {
        "separable": energies.separable_mlp(hidden_dim=hidden_dim, depth=2, base_coeff=0.5),
        "coupled": energies.coupled_mlp(hidden_dim=hidden_dim, depth=2),
    }[kind]

    @jax.jit
    def observe(step_size, residual_scale, state_scale, seed):
        params_key, state_key = jax.random.split(jax.random.key(seed))
        params = energy.init(params_key, dim)
        z = state_scale * jax.random.normal(state_key, (2 * dim,))
        settings = {"step_size": step_size, "num_steps": num_steps, "scheme": scheme, "residual_scale": residual_scale}
        flow = partial(integrate, energy, params, **settings)

        def ahead(z):
            return joined(flow(*split_state(z), direction=direction))

        def back(z):
            return joined(flow(*split_state(z), direction=-direction))

        def reversal(z):
            q, p = split_state(z)
            return joined((q, -p))

        jacobian = geometry.jacobian(ahead, z)
        return {
            "symplectic defect": geometry.defect_of_jacobian(jacobian),
            "log|det J|": jnp.linalg.slogdet(jacobian)[1],
            "inverse": jnp.max(jnp.abs(back(ahead(z)) - z)),
            "reversal": jnp.max(jnp.abs(reversal(ahead(reversal(z))) - back(z))),
            "reversibility": geometry.reversibility_error(energy, params, *split_state(z), **settings),
            "displacement": jnp.max(jnp.abs(ahead(z) - z)),
        }

    return observe


def assert_moved_but_for(found, names):
    """The state has moved, and what should be zero is."""
    assert found["displacement"] > 0
    for name in names:
        assert abs(found[name]) < TOLERANCE, name


@hypothesis.settings(max_examples=14)
@hypothesis.given(
    scheme=st.sampled_from(SYMPLECTIC), sizes=st.fixed_dictionaries(sizes), several_numbers=several_numbers(0.4)
)
def test_a_separable_flow_is_symplectic_keeps_volume_and_is_reversible(scheme, sizes, several_numbers):
    zero = ["symplectic defect", "log|det J|"]
    if scheme in SELF_ADJOINT:
        zero += ["inverse", "reversal", "reversibility"]
    for numbers in several_numbers:
        found = observed("separable", scheme, **sizes)(**numbers)
        assert_moved_but_for(found, zero)


@hypothesis.settings(max_examples=6)
@hypothesis.given(sizes=st.fixed_dictionaries(sizes), several_numbers=several_numbers(0.2))
def test_implicit_midpoint_is_symplectic_for_a_coupled_energy_too(sizes, several_numbers):
    # It is not reversible by p → −p: a coupled energy changes with the sign of p.
    for numbers in several_numbers:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = observed("coupled", "implicit_midpoint", **sizes)(**numbers)
        assert_moved_but_for(found, ["symplectic defect", "log|det J|", "inverse"])


@pytest.mark.parametrize("scheme", ["leapfrog", "symplectic_euler", "yoshida4", "published_leapfrog"])
def test_explicit_schemes_on_a_coupled_energy_are_warned_about_and_not_symplectic(scheme):
    sizes = {"dim": 7, "hidden_dim": 16, "num_steps": 5, "direction": 1}
    with pytest.warns(UserWarning, match=f"{scheme} is not symplectic for a coupled energy; implicit_midpoint is"):
        found = observed("coupled", scheme, **sizes)(step_size=0.4, residual_scale=2.0, state_scale=1.0, seed=0)
    assert found["symplectic defect"] > 1e-3


def test_explicit_euler_is_the_control_that_fails():
    sizes = {"dim": 7, "hidden_dim": 16, "num_steps": 5, "direction": 1}
    found = observed("separable", "explicit_euler", **sizes)(step_size=0.1, residual_scale=1.0, state_scale=1.0, seed=0)
    assert found["symplectic defect"] > 1e-3
    assert found["log|det J|"] > 1e-3
    assert found["inverse"] > 1e-3


def learned_system(dim=3):
    """A separable energy with a strong learned part, its parameters, and a state."""
    energy = energies.separable_mlp(hidden_dim=8, depth=2, base_coeff=1.0)
    q, p = jax.random.normal(jax.random.key(1), (2, dim))
    return energy, energy.init(jax.random.key(0), dim), q, p


@partial(jax.jit, static_argnames=("scheme", "num_steps", "modified"))
def drift(*, scheme, step_size, num_steps, modified=False):
    """The change of the energy, or of leapfrog's modified energy, after each step."""
    energy, params, q, p = learned_system()
    value = partial(geometry.modified_energy, energy, step_size=step_size) if modified else energy.value
    states = trajectory(energy, params, q, p, step_size=step_size, num_steps=num_steps, scheme=scheme)
    return value(params, *states) - value(params, q, p)


@pytest.mark.parametrize(
    ("scheme", "modified", "order"),
    [
        ("symplectic_euler", False, 1),
        ("leapfrog", False, 2),
        ("implicit_midpoint", False, 2),
        ("yoshida4", False, 4),
        ("leapfrog", True, 4),
    ],
)
def test_order_at_which_the_energy_is_conserved(scheme, modified, order):
    # Over the time 1.5; more steps are made of the larger sizes, so that one compilation serves all.
    steps = np.array([10, 20, 40, 80])
    drifts = [drift(scheme=scheme, step_size=1.5 / n, num_steps=80, modified=modified)[:n] for n in steps]
    errors = [np.max(np.abs(over_time)) for over_time in drifts]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2)


def test_energy_error_stays_bounded_over_a_hundred_thousand_steps():
    settings = {"step_size": 0.1, "num_steps": 100_000}
    error = np.abs(drift(scheme="leapfrog", **settings))
    assert error[:1000].max() < 0.01
    assert error.max() < 2 * error[:1000].max()
    euler = np.abs(drift(scheme="explicit_euler", **settings))
    assert not np.all(euler < 1e9)
