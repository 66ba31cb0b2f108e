"""What a symplectic map preserves, measured: area, volume, reversibility, and a nearby energy.

With Ω = [[0, I], [−I, 0]] a map of states z = [q ; p] with Jacobian J is symplectic if JᵀΩJ = Ω; then |det J| = 1.
Every function maps over leading axes and computes in the dtype of its input: float64 states show the map itself,
float32 states the rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Energy, Params
from hamjepa_jax.dynamics.integrators import gradients, integrate
from hamjepa_jax.dynamics.predictors import split_state

Map = Callable[[jax.Array], jax.Array]


def jacobian(map_fn: Map, z: jax.Array) -> jax.Array:
    """The Jacobian J = ∂map(z)/∂z, by forward differentiation.

    Args:
        map_fn: a map of single states (D,) → (D,).
        z: states (..., D).

    Returns:
        Jacobians (..., D, D), outputs along the first of the two axes.
    """
    dim = z.shape[-1]
    jacobians = jax.vmap(jax.jacfwd(map_fn))(z.reshape(-1, dim))
    chex.assert_shape(jacobians, (None, dim, dim))
    return jacobians.reshape(*z.shape, dim)


def symplectic_defect(map_fn: Map, z: jax.Array) -> jax.Array:
    """How far a map is from symplectic, the largest entry of |JᵀΩJ − Ω|.

    Args:
        map_fn: a map of single states (2d,) → (2d,).
        z: states [q ; p] (..., 2d).

    Returns:
        Defects (...,), zero for a symplectic map.

    Raises:
        ValueError: if the states have an odd size.

    References:
        Hairer, Lubich & Wanner, "Geometric Numerical Integration", chapter VI.
    """
    return defect_of_jacobian(jacobian(map_fn, z))


def defect_of_jacobian(jacobians: jax.Array) -> jax.Array:
    """How far Jacobians that are known already are from symplectic, see `symplectic_defect`.

    Args:
        jacobians: Jacobians (..., 2d, 2d), see `jacobian`.

    Returns:
        Defects (...,).

    Raises:
        ValueError: if the states have an odd size.
    """
    gradients_of_q, gradients_of_p = split_state(jnp.swapaxes(jacobians, -1, -2))
    half_form = gradients_of_q @ jnp.swapaxes(gradients_of_p, -1, -2)
    form = half_form - jnp.swapaxes(half_form, -1, -2)
    dim = jacobians.shape[-1]
    omega = jnp.eye(dim, k=dim // 2, dtype=form.dtype) - jnp.eye(dim, k=-dim // 2, dtype=form.dtype)
    return jnp.max(jnp.abs(form - omega), axis=(-2, -1))


def log_abs_det_jacobian(map_fn: Map, z: jax.Array) -> jax.Array:
    """The logarithm of the factor by which a map changes volume, log|det J|.

    Args:
        map_fn: a map of single states (D,) → (D,).
        z: states (..., D).

    Returns:
        Logarithms (...,) in nats, zero for a symplectic map.
    """
    return jnp.linalg.slogdet(jacobian(map_fn, z))[1]


def inverse_error(map_fn: Map, inverse_fn: Map, z: jax.Array) -> jax.Array:
    """How far one map is from undoing another, the largest entry of |Φ⁻¹(Φ(z)) − z|.

    Args:
        map_fn: a map Φ of states (..., D).
        inverse_fn: what should be its inverse.
        z: states (..., D).

    Returns:
        Errors (...,), zero for an exact inverse.
    """
    return jnp.max(jnp.abs(inverse_fn(map_fn(z)) - z), axis=-1)


def reversal_error(map_fn: Map, z: jax.Array) -> jax.Array:
    """How far a map is from reversible, the largest entry of |R∘Φ∘R∘Φ(z) − z| with R(q, p) = (q, −p).

    Args:
        map_fn: a map Φ of states (..., 2d).
        z: states [q ; p] (..., 2d).

    Returns:
        Errors (...,), zero for a reversible map.

    Raises:
        ValueError: if the states have an odd size.

    References:
        Hairer, Lubich & Wanner, "Geometric Numerical Integration", section V.1.
    """

    def reverse(z: jax.Array) -> jax.Array:
        q, p = split_state(z)
        return jnp.concatenate([q, -p], axis=-1)

    return inverse_error(map_fn, lambda z: reverse(map_fn(reverse(z))), z)


def reversibility_error(
    energy: Energy,
    params: Params,
    q: jax.Array,
    p: jax.Array,
    *,
    step_size: chex.Numeric,
    num_steps: int,
    scheme: str = "leapfrog",
    residual_scale: chex.Numeric = 1.0,
) -> jax.Array:
    """How far the flow is from reversible, the largest entry of |R∘Φ∘R∘Φ(z) − z| with R(q, p) = (q, −p).

    Args:
        energy: the Hamiltonian H.
        params: its parameters.
        q: positions (..., d).
        p: momenta (..., d).
        step_size: step τ.
        num_steps: number of steps.
        scheme: name of an integrator.
        residual_scale: factor s of the learned part of the energy.

    Returns:
        Errors (...,), zero for a reversible flow.
    """
    flow = partial(
        integrate,
        energy,
        params,
        step_size=step_size,
        num_steps=num_steps,
        scheme=scheme,
        residual_scale=residual_scale,
    )

    def map_fn(z: jax.Array) -> jax.Array:
        return jnp.concatenate(flow(*split_state(z)), axis=-1)

    return reversal_error(map_fn, jnp.concatenate([q, p], axis=-1))


def rollout(
    map_fn: Map, z: jax.Array, observe: Callable[[jax.Array], Any], *, num_applications: int, every: int
) -> Any:
    """What is observed of z, Φ(z), Φ(Φ(z)), …, of which only one state is kept at a time.

    Args:
        map_fn: a map Φ of states (..., D).
        z: states (..., D).
        observe: a function from states (..., D) to a pytree of arrays, such as their energies (...,).
        num_applications: how often the map is applied, a multiple of `every`.
        every: applications between two observations.

    Returns:
        The observations after 0, every, 2·every, …, num_applications applications, along a new axis in front.

    Raises:
        ValueError: if `num_applications` is no multiple of `every`.
    """
    if num_applications % every:
        raise ValueError(f"num_applications: must be a multiple of {every}, got {num_applications}")

    def observe_and_advance(z: jax.Array, _: None) -> tuple[jax.Array, Any]:
        return jax.lax.fori_loop(0, every, lambda _, z: map_fn(z), z), observe(z)

    # What follows the last observation is thrown away, so that all is traced only once.
    return jax.lax.scan(observe_and_advance, z, length=num_applications // every + 1)[1]


def relative_drift(energies: jax.Array) -> jax.Array:
    """The drift of energies along a roll-out, (Hₙ − H₀)/|H₀|.

    Args:
        energies: energies Hₙ (N, ...), see `rollout`.

    Returns:
        Drifts (N, ...), the first ones zero.
    """
    return (energies - energies[0]) / jnp.abs(energies[0])


def modified_energy(
    energy: Energy,
    params: Params,
    q: jax.Array,
    p: jax.Array,
    *,
    step_size: chex.Numeric,
    residual_scale: chex.Numeric = 1.0,
) -> jax.Array:
    """The energy that leapfrog conserves to order τ⁴, H̃ = H + τ²·(vᵀ∇²V(q)v/12 − ∇VᵀM⁻¹∇V/24), v = M⁻¹p.

    Args:
        energy: a separable Hamiltonian H = ½pᵀM⁻¹p + V(q).
        params: its parameters.
        q: positions (..., d).
        p: momenta (..., d).
        step_size: step τ.
        residual_scale: factor s of the learned part of the energy.

    Returns:
        Modified energies (...,).

    Raises:
        ValueError: for a coupled energy.

    References:
        Hairer, Lubich & Wanner, "Geometric Numerical Integration", section IX.3.
    """
    if energy.potential is None:
        raise ValueError("energy: the modified energy of leapfrog is known for separable energies only")

    def total_potential(q):
        return jnp.sum(energy.potential(params, q, residual_scale=residual_scale))

    inverse_mass = 1.0 if energy.inverse_mass is None else energy.inverse_mass(params)
    velocity = inverse_mass * p
    gradient, hessian_velocity = jax.jvp(jax.grad(total_potential), (q,), (velocity,))
    stretching = jnp.sum(velocity * hessian_velocity, axis=-1)
    bending = jnp.sum(inverse_mass * jnp.square(gradient), axis=-1)
    correction = stretching / 12.0 - bending / 24.0
    return energy.value(params, q, p, residual_scale=residual_scale) + step_size**2 * correction


def residual_force_ratio(
    energy: Energy, params: Params, q: jax.Array, p: jax.Array, *, residual_scale: chex.Numeric = 1.0
) -> jax.Array:
    """How much the learned part of an energy has to say, ‖∂(H − H₀)/∂q‖ / ‖∂H₀/∂q‖ with H₀ the energy at s = 0.

    Args:
        energy: the Hamiltonian H.
        params: its parameters.
        q: positions (..., d).
        p: momenta (..., d).
        residual_scale: factor s of the learned part of the energy.

    Returns:
        A scalar, the norms being those over all states; 0 where nothing is learned.
    """
    base_force = gradients(energy, params, 0.0)[0](q, p)
    residual_force = gradients(energy, params, residual_scale)[0](q, p) - base_force
    return jnp.linalg.norm(residual_force) / jnp.maximum(jnp.linalg.norm(base_force), 1e-12)
