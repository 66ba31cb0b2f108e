"""The mechanical systems against forces by hand, and against what is known of their motion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.dynamics import energies, systems
from hamjepa_jax.dynamics.integrators import integrate, trajectory

pytestmark = pytest.mark.usefixtures("float64")

NO_PARAMETERS = {"layers": []}


def henon_heiles_force(q):
    x, y = q
    return np.array([-x - 2 * x * y, -y - x**2 + y**2])


def kepler_force(q):
    return -q / np.hypot(*q) ** 3


def chain_force(q, quartic):
    left, right = q - np.array([0.0, *q[:-1]]), np.array([*q[1:], 0.0]) - q
    return right - left + quartic * (right**3 - left**3)


CASES = {
    "henon_heiles": (systems.henon_heiles(), henon_heiles_force, 2),
    "kepler": (systems.kepler(), kepler_force, 2),
    "chain": (systems.oscillator_chain(quartic=0.0), partial(chain_force, quartic=0.0), 5),
    "quartic chain": (systems.oscillator_chain(quartic=0.7), partial(chain_force, quartic=0.7), 5),
    "chain of one mass": (systems.oscillator_chain(quartic=0.7), partial(chain_force, quartic=0.7), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_forces_and_energy_by_hand(name):
    energy, force, dim = CASES[name]
    q, p = np.random.default_rng(0).normal(size=(2, 3, dim))
    found = -jax.grad(lambda q: jnp.sum(energy.potential(NO_PARAMETERS, q)))(jnp.asarray(q))
    np.testing.assert_allclose(found, [force(one) for one in q], rtol=1e-12)
    # All that a potential has besides its force is its zero: the work along the way from one place to another.
    knots, weights = np.polynomial.legendre.leggauss(40)
    on_the_way = q[0] + 0.5 * (1 + knots[:, None]) * (q[1] - q[0])
    work = 0.5 * weights @ [force(one) @ (q[1] - q[0]) for one in on_the_way]
    potential = energy.value(NO_PARAMETERS, q, p) - 0.5 * np.sum(p**2, axis=-1)
    np.testing.assert_allclose(energy.potential(NO_PARAMETERS, q), potential, rtol=1e-12)
    assert potential[0] - potential[1] == pytest.approx(work, rel=1e-6)
    assert energy.init(jax.random.key(0), dim) == NO_PARAMETERS
    assert energy.inverse_mass is None


@pytest.mark.parametrize(
    ("energy", "q", "expected"),
    [
        (systems.henon_heiles(), [0.0, 1.0], 1 / 6),
        (systems.kepler(), [3.0, 4.0], -1 / 5),
        (systems.oscillator_chain(quartic=2.0), [1.0, 1.0], 0.5 + 0.5 + 2 * 0.5),
    ],
)
def test_zero_of_the_potential(energy, q, expected):
    assert energy.potential(NO_PARAMETERS, jnp.array(q)) == pytest.approx(expected, rel=1e-14)


def perihelion(eccentricity, semi_major_axis):
    """The state at the perihelion of a Kepler ellipse, which lies on the positive x axis."""
    distance = semi_major_axis * (1 - eccentricity)
    return jnp.array([distance, 0.0]), jnp.array([0.0, np.sqrt((1 + eccentricity) / distance)])


@pytest.mark.parametrize(("eccentricity", "semi_major_axis"), [(0.0, 1.0), (0.5, 1.0), (0.3, 1.7)])
def test_a_kepler_orbit_is_an_ellipse_with_the_period_of_keplers_third_law(eccentricity, semi_major_axis):
    q, p = perihelion(eccentricity, semi_major_axis)
    num_steps = 4000
    period = 2 * np.pi * semi_major_axis**1.5
    settings = {"step_size": period / num_steps, "scheme": "yoshida4"}
    qs, ps = trajectory(systems.kepler(), NO_PARAMETERS, q, p, num_steps=num_steps, **settings)
    np.testing.assert_allclose(qs[-1], q, atol=1e-7)
    np.testing.assert_allclose(ps[-1], p, atol=1e-7)
    distances = np.linalg.norm(qs, axis=-1)
    assert distances[num_steps // 2 - 1] == pytest.approx(semi_major_axis * (1 + eccentricity), rel=1e-7)
    # The second focus is at −2ae on the axis: the distances from both add up to 2a all the way.
    others = np.linalg.norm(qs + jnp.array([2 * semi_major_axis * eccentricity, 0.0]), axis=-1)
    np.testing.assert_allclose(distances + others, 2 * semi_major_axis, rtol=1e-7)
    assert systems.kepler().value(NO_PARAMETERS, q, p) == pytest.approx(-0.5 / semi_major_axis)


@pytest.mark.parametrize("scheme", ["leapfrog", "symplectic_euler", "yoshida4", "implicit_midpoint"])
def test_symplectic_schemes_keep_the_angular_momentum_of_a_planet(scheme):
    def momentum(q, p):
        return q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]

    q, p = perihelion(0.5, 1.0)
    settings = {"step_size": 0.05, "num_steps": 300}
    kept = momentum(*trajectory(systems.kepler(), NO_PARAMETERS, q, p, scheme=scheme, **settings))
    np.testing.assert_allclose(kept, momentum(q, p), rtol=1e-12)
    lost = momentum(*trajectory(systems.kepler(), NO_PARAMETERS, q, p, scheme="explicit_euler", **settings))
    assert abs(lost[-1] / momentum(q, p) - 1) > 0.1


def test_normal_modes_are_those_of_the_matrix_of_the_springs():
    springs = 2 * np.eye(6) - np.eye(6, k=1) - np.eye(6, k=-1)
    frequencies, modes = systems.normal_modes(6)
    np.testing.assert_allclose(modes @ springs @ modes.T, np.diag(frequencies**2), atol=1e-14)
    np.testing.assert_allclose(modes @ modes.T, np.eye(6), atol=1e-14)
    assert np.all(np.diff(frequencies) > 0)


def mode_energies(q, p):
    frequencies, modes = systems.normal_modes(q.shape[-1])
    return 0.5 * (p @ modes.T) ** 2 + 0.5 * (frequencies * (q @ modes.T)) ** 2


def test_a_linear_chain_keeps_the_energy_of_every_mode_and_a_quartic_one_does_not():
    q, p = jax.random.normal(jax.random.key(0), (2, 4))
    settings = {"step_size": 0.01, "num_steps": 500, "scheme": "yoshida4"}
    first = mode_energies(q, p)
    linear = mode_energies(*integrate(systems.oscillator_chain(quartic=0.0), NO_PARAMETERS, q, p, **settings))
    np.testing.assert_allclose(linear, first, rtol=1e-7)
    quartic = mode_energies(*integrate(systems.oscillator_chain(quartic=0.5), NO_PARAMETERS, q, p, **settings))
    assert np.max(np.abs(quartic / first - 1)) > 0.1


def test_a_linear_chain_moves_as_its_modes_do():
    frequencies, modes = systems.normal_modes(3)
    amplitudes = jnp.array([1.0, -0.5, 0.3])
    q, p = integrate(
        systems.oscillator_chain(quartic=0.0),
        NO_PARAMETERS,
        amplitudes @ modes,
        jnp.zeros(3),
        step_size=0.005,
        num_steps=1400,
        scheme="yoshida4",
    )
    np.testing.assert_allclose(q, amplitudes * np.cos(7.0 * frequencies) @ modes, atol=1e-8)
    np.testing.assert_allclose(p, -amplitudes * frequencies * np.sin(7.0 * frequencies) @ modes, atol=1e-8)


def test_henon_heiles_has_the_symmetry_of_a_triangle():
    q = jax.random.normal(jax.random.key(0), (20, 2))
    third = 2 * np.pi / 3
    turn = jnp.array([[np.cos(third), -np.sin(third)], [np.sin(third), np.cos(third)]])
    potential = partial(systems.henon_heiles().potential, NO_PARAMETERS)
    np.testing.assert_allclose(potential(q @ turn), potential(q), rtol=1e-12)
    assert np.max(np.abs(potential(q @ turn) - energies.quadratic().potential(NO_PARAMETERS, q))) > 0.1


@pytest.mark.parametrize("make", [systems.henon_heiles, systems.kepler])
def test_systems_in_the_plane_say_so(make):
    with pytest.raises(ValueError, match=r"^q: must have 2 coordinates, got 3$"):
        make().potential(NO_PARAMETERS, jnp.ones(3))


def test_a_chain_whose_masses_could_escape_is_refused():
    with pytest.raises(ValueError, match=r"^quartic: must be at least 0, got -0.1$"):
        systems.oscillator_chain(quartic=-0.1)
