"""Maps of starts: what becomes of each place in a plane of initial conditions, and how symplectic a step is there."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Params
from hamjepa_jax.dynamics.geometry import Map, reversal_error, symplectic_defect
from hamjepa_jax.environment import jit_quickly
from hamjepa_jax.physics.gallery import STEPS, SYSTEMS, System, energy_of, step_map


class StartMaps(NamedTuple):
    """What becomes of starts in a plane.

    Attributes:
        energy: the largest |Hₜ − H₀|/|H₀| after any step; infinite where a state left all bounds.
        reversal: the largest entry of |RΦⁿRΦⁿz − z|, likewise.
    """

    energy: jax.Array
    reversal: jax.Array


def grid_of_starts(system: System, size: int) -> jax.Array:
    """The starts at the centres of the cells of a square grid over the system's plane.

    Args:
        system: the system.
        size: number of cells along each axis.

    Returns:
        States (size, size, 2d), y along the first axis and x along the second.
    """
    x, y = (low + (high - low) * (jnp.arange(size) + 0.5) / size for _, low, high in system.plane)
    return system.start_at(*jnp.meshgrid(x, y))


def largest_energy_error(system: System, map_fn: Map, z: jax.Array, *, num_steps: int) -> jax.Array:
    """The largest relative energy error |Hₜ − H₀|/|H₀| after any of `num_steps` applications of a map.

    Args:
        system: the system, whose energy H is.
        map_fn: a map of states (..., 2d).
        z: starts (..., 2d).
        num_steps: how often the map is applied.

    Returns:
        Errors (...,), infinite where a state is no longer finite.
    """
    first = energy_of(system, z)

    def advance(_, carry):
        z, largest = carry
        z = map_fn(z)
        return z, jnp.maximum(largest, jnp.abs(energy_of(system, z) - first))

    _, largest = jax.lax.fori_loop(0, num_steps, advance, (z, jnp.zeros_like(first)))
    return _infinite_where_lost(largest / jnp.abs(first))


def repeated(map_fn: Map, num_steps: int) -> Map:
    """The map Φⁿ that applies a map n times."""
    return lambda z: jax.lax.fori_loop(0, num_steps, lambda _, z: map_fn(z), z)


@partial(jit_quickly, static_argnames=("size", "num_steps", "num_reversed"))
def map_starts(
    learned: Mapping[str, Params], *, size: int, num_steps: int, num_reversed: int
) -> dict[str, dict[str, StartMaps]]:
    """Both maps of every system under every step.

    Args:
        learned: parameters of the learned step of each system.
        size: number of starts along each axis.
        num_steps: steps over which the largest energy error is taken.
        num_reversed: steps n that are made forwards and then back.

    Returns:
        Maps (size, size) of each system under each step.
    """

    def mapped(system: System, map_fn: Map) -> StartMaps:
        starts = grid_of_starts(system, size)
        return StartMaps(
            largest_energy_error(system, map_fn, starts, num_steps=num_steps),
            _infinite_where_lost(reversal_error(repeated(map_fn, num_reversed), starts)),
        )

    return {
        name: {step: mapped(system, step_map(system, step, learned[name])) for step in STEPS}
        for name, system in SYSTEMS.items()
    }


@jit_quickly
def defects(starts: Mapping[str, jax.Array], learned: Mapping[str, Params]) -> dict[str, dict[str, jax.Array]]:
    """The symplectic defect max|JᵀΩJ − Ω| of one step at every start.

    Args:
        starts: states (N, 2d) of each system.
        learned: parameters of the learned step of each system.

    Returns:
        Defects (N,) of each system under each step.
    """
    return {
        name: {step: symplectic_defect(step_map(SYSTEMS[name], step, learned[name]), z) for step in STEPS}
        for name, z in starts.items()
    }


def _infinite_where_lost(error: jax.Array) -> jax.Array:
    # A maximum that begins at −∞ may ignore what is not a number, so that isnan is not enough.
    return jnp.where(error >= 0, error, jnp.inf)
