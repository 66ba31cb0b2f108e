"""Mechanical systems that everybody knows, as energies without parameters; the pendulum is in `energies`.

Masses are one, and so are the constants of nature. Each energy is separable, H(q, p) = ½‖p‖² + V(q), so that every
scheme of `integrators` applies, and whatever is known of its motion can be measured against it.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Energy, Params


def henon_heiles() -> Energy:
    """A star in a galaxy, H(q, p) = ½‖p‖² + ½‖q‖² + q₁²q₂ − ⅓q₂³: the smallest smooth system with order and chaos.

    Below H = 1/6 the motion stays inside a triangle around the origin. There it is regular for nearly all starts of
    low energy, and the larger the energy, the more of them are chaotic.

    Returns:
        A separable energy without parameters, for q and p of shape (..., 2).

    Raises:
        ValueError: when it is evaluated, unless q has two coordinates.

    References:
        Hénon & Heiles, "The Applicability of the Third Integral of Motion", Astronomical Journal 69, 1964.
    """

    def potential(q: jax.Array) -> jax.Array:
        _require_plane(q)
        x, y = q[..., 0], q[..., 1]
        return 0.5 * (x**2 + y**2) + x**2 * y - y**3 / 3.0

    return _without_parameters(potential)


def kepler() -> Energy:
    """A planet around a fixed sun, H(q, p) = ½‖p‖² − 1/‖q‖, in the plane of its orbit.

    For H < 0 the orbit is an ellipse with the sun in one focus, the semi-major axis a = −1/(2H) and the period
    2π·a^{3/2}. The angular momentum q₁p₂ − q₂p₁ is conserved, and so is the direction of the perihelion.

    Returns:
        A separable energy without parameters, for q and p of shape (..., 2); it is not finite at q = 0.

    Raises:
        ValueError: when it is evaluated, unless q has two coordinates.

    References:
        Hairer, Lubich & Wanner, "Geometric Numerical Integration", section I.2.
    """

    def potential(q: jax.Array) -> jax.Array:
        _require_plane(q)
        return -1.0 / jnp.linalg.norm(q, axis=-1)

    return _without_parameters(potential)


def oscillator_chain(*, quartic: float) -> Energy:
    """Masses in a row between two walls, H(q, p) = ½‖p‖² + Σᵢ(½rᵢ² + ¼βrᵢ⁴), rᵢ = qᵢ₊₁ − qᵢ and q₀ = q_{d+1} = 0.

    For β = 0 the springs are linear, and the energy of each normal mode is conserved; for β > 0 it is the FPUT-β chain,
    whose modes exchange energy.

    Args:
        quartic: coefficient β ≥ 0 of the quartic part of a spring.

    Returns:
        A separable energy without parameters, for q and p of shape (..., d), displacements of d masses.

    Raises:
        ValueError: for a negative β, with which the masses could escape.

    References:
        Fermi, Pasta & Ulam, "Studies of Nonlinear Problems" (computed with Tsingou), Los Alamos report LA-1940, 1955.
    """
    if quartic < 0:
        raise ValueError(f"quartic: must be at least 0, got {quartic}")

    def potential(q: jax.Array) -> jax.Array:
        stretch = jnp.diff(q, axis=-1, prepend=0.0, append=0.0)
        return jnp.sum(0.5 * stretch**2 + 0.25 * quartic * stretch**4, axis=-1)

    return _without_parameters(potential)


def normal_modes(num_masses: int) -> tuple[jax.Array, jax.Array]:
    """How a chain with linear springs oscillates, ω_k = 2 sin(πk/(2(d + 1))) and e_kj ∝ sin(πjk/(d + 1)), k, j = 1 … d.

    Args:
        num_masses: number d of masses.

    Returns:
        The angular frequencies (d,), ascending, and the modes (d, d), orthonormal rows of displacements.
    """
    index = jnp.arange(1, num_masses + 1)
    angle = jnp.pi * index / (num_masses + 1)
    modes = jnp.sqrt(2.0 / (num_masses + 1)) * jnp.sin(angle[:, None] * index)
    return 2.0 * jnp.sin(0.5 * angle), modes


def _without_parameters(potential: Callable[[jax.Array], jax.Array]) -> Energy:
    """The energy ½‖p‖² + V(q), whose parameters are empty and whose `residual_scale` has no effect."""

    def init(key: jax.Array, dim: int) -> Params:
        del key, dim
        return {"layers": []}

    def value(params: Params, q: jax.Array, p: jax.Array, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        del params, residual_scale
        chex.assert_equal_shape([q, p])
        return 0.5 * jnp.sum(jnp.square(p), axis=-1) + potential(q)

    def potential_without_parameters(params: Params, q: jax.Array, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        del params, residual_scale
        return potential(q)

    return Energy(init, value, potential_without_parameters)


def _require_plane(q: jax.Array) -> None:
    if q.shape[-1] != 2:
        raise ValueError(f"q: must have 2 coordinates, got {q.shape[-1]}")
