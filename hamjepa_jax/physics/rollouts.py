"""Every system under every step from every start, advanced together by one scan."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Params
from hamjepa_jax.dynamics.geometry import relative_drift, rollout
from hamjepa_jax.environment import jit_quickly
from hamjepa_jax.physics.gallery import STEPS, SYSTEMS, System, energy_of, step_map
from hamjepa_jax.physics.invariants import circle, log_det_covariance, poincare_invariant

# So many starts are drawn in a phase portrait.
NUM_ORBITS = 6


class Carried(NamedTuple):
    """What a step carries along of one system.

    Attributes:
        starts: random states (N, 2d).
        loop: states (L, 2d) in their order along a closed loop.
        cloud: Gaussian states (C, 2d).
    """

    starts: jax.Array
    loop: jax.Array
    cloud: jax.Array


class Observed(NamedTuple):
    """What is seen of one system under one step, at T times.

    Attributes:
        energy_error: |Hₜ − H₀|/|H₀| of the starts (T, N).
        orbits: where the first starts are in the phase portrait (T, NUM_ORBITS, 2).
        area: the Poincaré invariant of the loop (T,).
        log_det: log det of the cloud's covariance (T,).
    """

    energy_error: jax.Array
    orbits: jax.Array
    area: jax.Array
    log_det: jax.Array


def carried_at_first(system: System, key: jax.Array, *, num_starts: int, loop_size: int, cloud_size: int) -> Carried:
    """The random starts, the loop and the cloud of a system.

    Args:
        system: the system.
        key: a typed PRNG key.
        num_starts: number N of random starts.
        loop_size: number L of states along the loop.
        cloud_size: number C of states in the cloud.

    Returns:
        The states.
    """
    starts_key, cloud_key = jax.random.split(key)
    centre = jnp.array(system.centre)
    noise = jax.random.normal(cloud_key, (cloud_size, centre.size))
    return Carried(
        system.starts(starts_key, num_starts),
        circle(centre, system.loop_radius, loop_size),
        centre + system.cloud_spread * noise,
    )


@partial(jit_quickly, static_argnames=("num_steps", "every"))
def roll_out(
    carried: Mapping[str, Carried], learned: Mapping[str, Params], *, num_steps: int, every: int
) -> dict[str, dict[str, Observed]]:
    """Advances everything by `num_steps` steps.

    Args:
        carried: what is carried along of each system.
        learned: parameters of the learned step of each system.
        num_steps: number of steps, a multiple of `every`.
        every: steps between two observations.

    Returns:
        Observations of each system under each step, at T = num_steps/every + 1 times.

    Raises:
        ValueError: if `num_steps` is no multiple of `every`.
    """
    maps = {name: {step: step_map(SYSTEMS[name], step, learned[name]) for step in STEPS} for name in carried}

    def advance(states):
        return {
            name: {step: maps[name][step](z) for step, z in of_system.items()} for name, of_system in states.items()
        }

    def observe(states):
        return {
            name: {step: _observe(SYSTEMS[name], carried[name], z) for step, z in of_system.items()}
            for name, of_system in states.items()
        }

    # As one array: the fewer operations there are in a step, the less it costs to start them.
    states = {name: dict.fromkeys(STEPS, jnp.concatenate(parts)) for name, parts in carried.items()}
    seen = rollout(advance, states, observe, num_applications=num_steps, every=every)
    return jax.tree.map(
        lambda one: one._replace(energy_error=jnp.abs(relative_drift(one.energy_error))),
        seen,
        is_leaf=lambda one: isinstance(one, Observed),
    )


def _observe(system: System, sizes: Carried, z: jax.Array) -> Observed:
    """What is seen of states that lie behind each other as those of `sizes` do; energies instead of their errors."""
    end_of_starts = len(sizes.starts)
    starts, loop, cloud = jnp.split(z, [end_of_starts, end_of_starts + len(sizes.loop)])
    return Observed(
        energy_of(system, starts),
        system.project(starts[:NUM_ORBITS]),
        poincare_invariant(loop),
        log_det_covariance(cloud),
    )
