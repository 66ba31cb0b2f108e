"""What a symplectic flow keeps of a set of states that it carries: the area of a loop, and the volume of a cloud."""

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.predictors import split_state


def poincare_invariant(z_Nx2d: jax.Array) -> jax.Array:
    """The area that a closed loop of states encloses, Σᵢ ∮ pᵢ dqᵢ, which every symplectic map keeps.

    The loop is z(s), s in [0, 1), at N equidistant s. Its derivative is that of the trigonometric interpolant, so that
    the error of the sum falls faster than any power of 1/N as long as the loop is smooth between its states.

    Args:
        z_Nx2d: states [q ; p] (..., N, 2d) in their order along the loop.

    Returns:
        Areas (...,), in units of action; positive where p leads q by a quarter of a turn.

    Raises:
        ValueError: if the states have an odd size.

    References:
        Arnold, "Mathematical Methods of Classical Mechanics", section 44.
    """
    q, p = split_state(z_Nx2d)
    num_states = q.shape[-2]
    wave_number = jnp.fft.rfftfreq(num_states, 1.0 / num_states)[:, None]
    spectrum = jnp.fft.rfft(q, axis=-2)
    velocity = jnp.fft.irfft(2j * jnp.pi * wave_number * spectrum, num_states, axis=-2)
    return jnp.sum(jnp.mean(p * velocity, axis=-2), axis=-1)


def log_det_covariance(z_NxD: jax.Array) -> jax.Array:
    """The logarithm of the generalised variance of a cloud of states, log det Cov(z).

    Args:
        z_NxD: states (..., N, D), N > D.

    Returns:
        Logarithms (...,) in nats.

    Raises:
        ValueError: if there are too few states for a covariance of full rank.
    """
    num_states, dim = z_NxD.shape[-2:]
    if num_states <= dim:
        raise ValueError(f"z_NxD: must have more states than the {dim} coordinates of each, got {num_states}")
    centred = z_NxD - jnp.mean(z_NxD, axis=-2, keepdims=True)
    covariance = jnp.swapaxes(centred, -1, -2) @ centred / (num_states - 1)
    chex.assert_shape(covariance, (..., dim, dim))
    return jnp.linalg.slogdet(covariance)[1]


def circle(centre: jax.Array, radius: float, num_states: int) -> jax.Array:
    """A loop of states, the circle around a state in the plane of q₁ and p₁.

    Args:
        centre: the state (2d,) in the middle.
        radius: its radius.
        num_states: number N of states on it.

    Returns:
        States (N, 2d), whose Poincaré invariant is π·radius².
    """
    angle = 2.0 * jnp.pi * jnp.arange(num_states) / num_states
    loop = jnp.tile(centre, (num_states, 1))
    return loop.at[:, 0].add(-radius * jnp.cos(angle)).at[:, centre.size // 2].add(radius * jnp.sin(angle))
