"""Integrators of Hamilton's equations q̇ = ∂H/∂p, ṗ = −∂H/∂q: coefficient rows and one `lax.scan`.

The explicit schemes compose kick–drift–kick substeps of signed size τ:

    p ← p − first·τ·H_q(q, p);   q ← q + τ·H_p(q, p);   p ← p − last·τ·H_q(q, p).

For a separable energy the force after a drift is the force before the next kick, so it is carried along:
K leapfrog steps evaluate K + 1 forces.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Energy, Params

MIDPOINT_ITERATIONS = 32
"""Fixed-point iterations of implicit midpoint; the error shrinks by about τ‖∇²H‖/2 in each."""

Gradient = Callable[[jax.Array, jax.Array], jax.Array]


class Composition(NamedTuple):
    """One step of an explicit scheme: kick–drift–kick substeps.

    Attributes:
        first: fraction of the substep in the kick before the drift.
        last: fraction of the substep in the kick after it; zero means that there is none.
        substeps: sizes of the substeps as fractions of the step; they sum to one.
    """

    first: float
    last: float
    substeps: tuple[float, ...]


_YOSHIDA_OUTER = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
COMPOSITIONS = {
    "leapfrog": Composition(0.5, 0.5, (1.0,)),
    "symplectic_euler": Composition(1.0, 0.0, (1.0,)),
    "yoshida4": Composition(0.5, 0.5, (_YOSHIDA_OUTER, 1.0 - 2.0 * _YOSHIDA_OUTER, _YOSHIDA_OUTER)),
    "published_leapfrog": Composition(0.5, 0.5, (1.0,)),
}
SCHEMES = (*COMPOSITIONS, "implicit_midpoint", "explicit_euler")


def integrate(
    energy: Energy,
    params: Params,
    q: jax.Array,
    p: jax.Array,
    *,
    step_size: chex.Numeric,
    num_steps: int,
    scheme: str = "leapfrog",
    direction: int = 1,
    residual_scale: chex.Numeric = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Follows Hamilton's equations for `num_steps` steps of size τ.

    Leapfrog (Störmer–Verlet): p½ = p − τ/2·∇V(q); q' = q + τ·M⁻¹p½; p' = p½ − τ/2·∇V(q').
    `direction=-1` integrates with −τ; for leapfrog, Yoshida-4 and implicit midpoint that is the inverse map.

    Args:
        energy: the Hamiltonian H.
        params: its parameters.
        q: positions (..., d).
        p: momenta (..., d).
        step_size: step τ, in units of time.
        num_steps: number of steps K.
        scheme: one of `SCHEMES`. `yoshida4` is of order 4, `leapfrog` and `implicit_midpoint` are of order 2,
            `symplectic_euler` of order 1; `explicit_euler` is not symplectic (a control). `published_leapfrog` is
            leapfrog for a separable energy, and for a coupled one what the published PyTorch code computes, see
            `_published_leapfrog`.
        direction: +1 forwards or −1 backwards in time.
        residual_scale: factor s of the learned part of the energy.

    Returns:
        The positions and momenta (..., d) at time direction·K·τ.

    Raises:
        ValueError: for an unknown scheme, a negative number of steps, or a direction other than ±1.

    Warns:
        UserWarning: for an explicit symplectic scheme on a coupled energy, for which it is not symplectic.

    References:
        Hairer, Lubich & Wanner, "Geometric Numerical Integration"; Yoshida, Phys. Lett. A 150 (1990).
    """
    chex.assert_equal_shape([q, p])
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: {scheme!r} is unknown; known schemes: {', '.join(SCHEMES)}")
    if num_steps < 0:
        raise ValueError(f"num_steps: must be at least 0, got {num_steps}")
    if direction not in (1, -1):
        raise ValueError(f"direction: must be 1 or -1, got {direction!r}")
    if energy.potential is None and scheme in COMPOSITIONS:
        warnings.warn(f"{scheme} is not symplectic for a coupled energy; implicit_midpoint is", stacklevel=2)

    time_step = direction * step_size
    force, velocity = gradients(energy, params, residual_scale)
    if scheme == "published_leapfrog" and energy.potential is None:
        return _published_leapfrog(force, velocity, q, p, time_step, num_steps)
    if scheme in COMPOSITIONS:
        return _integrate_explicitly(
            COMPOSITIONS[scheme],
            force,
            velocity,
            q,
            p,
            time_step,
            num_steps,
            cache_force=energy.potential is not None,
        )
    step = {"implicit_midpoint": _midpoint_step, "explicit_euler": _euler_step}[scheme]

    def body(carry, _):
        return step(force, velocity, *carry, time_step), None

    return jax.lax.scan(body, (q, p), length=num_steps)[0]


def trajectory(
    energy: Energy, params: Params, q: jax.Array, p: jax.Array, *, num_steps: int, **settings: object
) -> tuple[jax.Array, jax.Array]:
    """The states after each of `num_steps` steps.

    Args:
        energy: the Hamiltonian H.
        params: its parameters.
        q: positions (..., d).
        p: momenta (..., d).
        num_steps: number of steps K.
        **settings: `step_size` and the other keyword arguments of `integrate`.

    Returns:
        Positions and momenta (K, ..., d) at times τ, 2τ, …, Kτ.
    """

    def body(state, _):
        state = integrate(energy, params, *state, num_steps=1, **settings)
        return state, state

    return jax.lax.scan(body, (q, p), length=num_steps)[1]


def gradients(energy: Energy, params: Params, residual_scale: chex.Numeric) -> tuple[Gradient, Gradient]:
    """The right-hand side of Hamilton's equations, ∂H/∂q and ∂H/∂p as functions of (q, p).

    Args:
        energy: the Hamiltonian H.
        params: its parameters.
        residual_scale: factor s of the learned part of the energy.

    Returns:
        Both gradients.
    """
    if energy.potential is not None:

        def total_potential(q):
            return jnp.sum(energy.potential(params, q, residual_scale=residual_scale))

        inverse_mass = 1.0 if energy.inverse_mass is None else energy.inverse_mass(params)
        return lambda q, p: jax.grad(total_potential)(q), lambda q, p: inverse_mass * p

    def total_energy(q, p):
        return jnp.sum(energy.value(params, q, p, residual_scale=residual_scale))

    return jax.grad(total_energy, argnums=0), jax.grad(total_energy, argnums=1)


def _integrate_explicitly(
    composition: Composition,
    force: Gradient,
    velocity: Gradient,
    q: jax.Array,
    p: jax.Array,
    time_step: chex.Numeric,
    num_steps: int,
    *,
    cache_force: bool,
) -> tuple[jax.Array, jax.Array]:
    def kick_drift_kick(carry, substep):
        q, p, gradient = carry
        if not cache_force:
            gradient = force(q, p)
        p = p - composition.first * substep * gradient
        q = q + substep * velocity(q, p)
        if cache_force or composition.last:
            gradient = force(q, p)
            p = p - composition.last * substep * gradient
        return (q, p, gradient), None

    if num_steps == 0:
        return q, p
    substeps = time_step * jnp.tile(jnp.asarray(composition.substeps, q.dtype), num_steps)
    (q, p, _), _ = jax.lax.scan(kick_drift_kick, (q, p, force(q, p)), substeps)
    return q, p


def _published_leapfrog(
    force: Gradient, velocity: Gradient, q: jax.Array, p: jax.Array, time_step: chex.Numeric, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Leapfrog as the published code computes it for a coupled energy.

    From the second step on, the force of the first kick is the total derivative dH(q, p(q))/dq = H_q + (∂p/∂q)ᵀH_p,
    because p = p½ − τ/2·H_q(q, p½) there still depends on q for automatic differentiation. Every step after the first
    therefore grows volume by a factor of about exp(d·τ²/4).
    """

    def drift(q, p_half):
        return q + time_step * velocity(q, p_half), p_half

    def body(carry, _):
        q, p_half = carry
        p, pull_back = jax.vjp(lambda q: p_half - 0.5 * time_step * force(q, p_half), q)
        total_force = force(q, p) + pull_back(velocity(q, p))[0]
        return drift(q, p - 0.5 * time_step * total_force), None

    if num_steps == 0:
        return q, p
    first = drift(q, p - 0.5 * time_step * force(q, p))
    (q, p_half), _ = jax.lax.scan(body, first, length=num_steps - 1)
    return q, p_half - 0.5 * time_step * force(q, p_half)


def _midpoint_step(force, velocity, q, p, time_step):
    """Z' = z + τ·J∇H((z + z')/2), solved by fixed-point iteration."""

    def iterate(_, end):
        q_mid, p_mid = 0.5 * (q + end[0]), 0.5 * (p + end[1])
        return q + time_step * velocity(q_mid, p_mid), p - time_step * force(q_mid, p_mid)

    return jax.lax.fori_loop(0, MIDPOINT_ITERATIONS, iterate, (q, p))


def _euler_step(force, velocity, q, p, time_step):
    return q + time_step * velocity(q, p), p - time_step * force(q, p)
