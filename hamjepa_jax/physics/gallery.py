"""What hangs in the gallery: four systems, six steps, and from where each system starts."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics import energies, systems
from hamjepa_jax.dynamics.energies import Energy, Params
from hamjepa_jax.dynamics.geometry import Map
from hamjepa_jax.dynamics.integrators import integrate
from hamjepa_jax.dynamics.predictors import residual_mlp, split_state

NO_PARAMETERS: Params = {"layers": []}
LEARNED = "learned"
STEPS = ("explicit_euler", LEARNED, "symplectic_euler", "leapfrog", "yoshida4", "implicit_midpoint")
SYMPLECTIC = STEPS[2:]
# The learned step: large enough to be accurate, and small enough to be trained in seconds.
STEP_MLP = residual_mlp(hidden_dim=64, depth=2)


class Axis(NamedTuple):
    """An axis of a picture: what it shows, with its unit, and from where to where."""

    label: str
    low: float
    high: float


class System(NamedTuple):
    """A mechanical system and what is watched of it.

    Attributes:
        title: its name in pictures.
        energy: the Hamiltonian, without parameters.
        step_size: step τ, at which explicit Euler fails within the roll-out and leapfrog does not.
        starts: `starts(key, num) -> (num, 2d)`, random states [q ; p] where the motion is bounded.
        centre: the state (2d,) around which loop and cloud lie.
        loop_radius: radius of the loop in the plane of q₁ and p₁.
        cloud_spread: standard deviation of every coordinate of the Gaussian cloud.
        plane: the two axes of the map of starts.
        start_at: `start_at(x, y) -> (..., 2d)`, the start at a place of that map.
        portrait: the two axes of the phase portrait.
        project: `project(z) -> (..., 2)`, where a state is in the portrait.
    """

    title: str
    energy: Energy
    step_size: float
    starts: Callable[[jax.Array, int], jax.Array]
    centre: tuple[float, ...]
    loop_radius: float
    cloud_spread: float
    plane: tuple[Axis, Axis]
    start_at: Callable[[jax.Array, jax.Array], jax.Array]
    portrait: tuple[Axis, Axis]
    project: Callable[[jax.Array], jax.Array]


def energy_of(system: System, z: jax.Array) -> jax.Array:
    """The energies H(q, p) (...,) of states z = [q ; p] (..., 2d)."""
    return system.energy.value(NO_PARAMETERS, *split_state(z))


def flow(system: System, *, scheme: str, num_steps: int = 1, substeps: int = 1) -> Map:
    """The map of states by which a scheme follows a system for num_steps·τ.

    Args:
        system: the system, whose step is τ.
        scheme: name of an integrator.
        num_steps: how many steps.
        substeps: into how many equal parts each of them is cut.

    Returns:
        A map of states (..., 2d).
    """
    follow = partial(
        integrate,
        system.energy,
        NO_PARAMETERS,
        step_size=system.step_size / substeps,
        num_steps=num_steps * substeps,
        scheme=scheme,
    )
    return lambda z: jnp.concatenate(follow(*split_state(z)), axis=-1)


def step_map(system: System, step: str, learned: Params) -> Map:
    """One step of size τ as a map of states.

    Args:
        system: the system.
        step: one of `STEPS`.
        learned: parameters of the learned step of this system.

    Returns:
        A map of states (..., 2d).
    """
    return partial(STEP_MLP.apply, learned) if step == LEARNED else flow(system, scheme=step)


def _ball(key: jax.Array, num: int, dim: int, least: float, greatest: float) -> jax.Array:
    """States whose direction is uniform on the sphere, and whose norm is uniform in an interval."""
    direction_key, radius_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, (num, dim))
    radius = jax.random.uniform(radius_key, (num, 1), minval=least, maxval=greatest)
    return radius * direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)


def _ellipse_at_perihelion(eccentricity: jax.Array, angle: jax.Array, semi_major_axis: jax.Array | float = 1.0):
    """The state of a planet at the perihelion of an ellipse, which lies at an angle to x."""
    distance = semi_major_axis * (1.0 - eccentricity)
    speed = jnp.sqrt((1.0 + eccentricity) / distance)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([distance * cos, distance * sin, -speed * sin, speed * cos], axis=-1)


def _planets(key: jax.Array, num: int) -> jax.Array:
    eccentricity, angle, size = jax.random.uniform(key, (3, num))
    # Of one size, all of them would have the same energy, and a learned step would know nothing else.
    return _ellipse_at_perihelion(0.4 * eccentricity, 2.0 * jnp.pi * angle, 0.9 + 0.2 * size)


def _modes_at_rest(x: jax.Array, y: jax.Array) -> jax.Array:
    """A chain of four masses at rest, displaced along its first two modes by x and by y."""
    first, second = systems.normal_modes(4)[1][:2]
    q = x[..., None] * first + y[..., None] * second
    return jnp.concatenate([q, jnp.zeros_like(q)], axis=-1)


def _first_mode(z: jax.Array) -> jax.Array:
    """Position and momentum (..., 2) of a chain's first mode."""
    q, p = split_state(z)
    mode = systems.normal_modes(q.shape[-1])[1][0]
    return jnp.stack([q @ mode, p @ mode], axis=-1)


def _plane_at_rest(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.stack([x, y, jnp.zeros_like(x), jnp.zeros_like(x)], axis=-1)


SYSTEMS = {
    "pendulum": System(
        title="Pendulum",
        energy=energies.pendulum(),
        step_size=0.1,
        starts=lambda key, num: _ball(key, num, 2, 0.4, 1.8),
        centre=(1.0, 0.0),
        loop_radius=0.4,
        cloud_spread=0.4,
        plane=(Axis("angle q at the start (rad)", -2.0, 2.0), Axis("momentum p", -1.0, 1.0)),
        start_at=lambda x, y: jnp.stack([x, y], axis=-1),
        portrait=(Axis("angle q (rad)", -2.6, 2.6), Axis("momentum p", -2.4, 2.4)),
        project=lambda z: z,
    ),
    "henon_heiles": System(
        title="Hénon–Heiles",
        energy=systems.henon_heiles(),
        step_size=0.1,
        starts=lambda key, num: _ball(key, num, 4, 0.2, 0.45),
        centre=(0.2, 0.0, 0.0, 0.1),
        loop_radius=0.08,
        cloud_spread=0.06,
        plane=(Axis("position q₁ at the start", -0.32, 0.32), Axis("position q₂", -0.32, 0.32)),
        start_at=_plane_at_rest,
        portrait=(Axis("position q₁", -0.7, 0.7), Axis("position q₂", -0.7, 0.7)),
        project=lambda z: z[..., :2],
    ),
    "kepler": System(
        title="Kepler",
        energy=systems.kepler(),
        step_size=0.05,
        starts=_planets,
        centre=(1.0, 0.0, 0.0, 1.0),
        loop_radius=0.05,
        cloud_spread=0.03,
        plane=(Axis("eccentricity", 0.0, 0.4), Axis("direction of perihelion (rad)", -3.14, 3.14)),
        start_at=_ellipse_at_perihelion,
        portrait=(Axis("position q₁", -1.8, 1.8), Axis("position q₂", -1.8, 1.8)),
        project=lambda z: z[..., :2],
    ),
    "oscillators": System(
        title="Coupled oscillators",
        energy=systems.oscillator_chain(quartic=0.25),
        step_size=0.1,
        starts=lambda key, num: _ball(key, num, 8, 0.5, 1.5),
        centre=(0.0,) * 8,
        loop_radius=0.5,
        cloud_spread=0.4,
        plane=(Axis("mode 1 at the start", -1.0, 1.0), Axis("mode 2", -1.0, 1.0)),
        start_at=_modes_at_rest,
        portrait=(Axis("mode 1, position", -2.0, 2.0), Axis("mode 1, momentum", -1.6, 1.6)),
        project=_first_mode,
    ),
}
