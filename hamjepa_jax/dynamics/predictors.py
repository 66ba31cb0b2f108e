"""Predictors: maps of a state z = [q ; p] of shape (..., D) that predict one view's state from the other's."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Energy, Params, apply_mlp, init_mlp
from hamjepa_jax.dynamics.integrators import integrate


class Predictor(NamedTuple):
    """A predictor as pure functions.

    Attributes:
        init: `init(key, state_dim) -> params`, state_dim the size D of the state.
        apply: `apply(params, z, direction=1, residual_scale=1.0) -> z`. A map without an inverse is the same in
            both directions.
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]


def split_state(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits a state z = [q ; p] of shape (..., 2d) into q and p of shape (..., d).

    Raises:
        ValueError: if the last axis is odd.
    """
    if z.shape[-1] % 2:
        raise ValueError(f"a state [q ; p] has an even number of coordinates, got {z.shape[-1]}")
    return tuple(jnp.split(z, 2, axis=-1))


def hamiltonian_flow(energy: Energy, *, step_size: chex.Numeric, num_steps: int, scheme: str = "leapfrog") -> Predictor:
    """The flow map Φ of a Hamiltonian, Φ(z) = the state that z = [q ; p] reaches after K steps of size τ.

    With a symplectic scheme JᵀΩJ = Ω and det J = 1: the map can neither collapse nor spread a cloud of states.
    It is computed in float32 or wider, whatever the dtype of z, and returned in that dtype.

    Args:
        energy: the Hamiltonian, see `energies`.
        step_size: step τ.
        num_steps: number of steps K.
        scheme: name of an integrator, see `integrators.integrate`.

    Returns:
        A predictor for states of even size.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """

    def init(key: jax.Array, state_dim: int) -> Params:
        if state_dim % 2:
            raise ValueError(f"a state [q ; p] has an even number of coordinates, got {state_dim}")
        return energy.init(key, state_dim // 2)

    def apply(params: Params, z: jax.Array, direction: int = 1, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        q, p = split_state(z.astype(jnp.promote_types(z.dtype, jnp.float32)))
        q, p = integrate(
            energy,
            params,
            q,
            p,
            step_size=step_size,
            num_steps=num_steps,
            scheme=scheme,
            direction=direction,
            residual_scale=residual_scale,
        )
        return jnp.concatenate([q, p], axis=-1)

    return Predictor(init, apply)


def mlp(*, hidden_dim: int, depth: int) -> Predictor:
    """An unconstrained MLP D → h → … → h → D with exact-erf GELU: the ablation of the Hamiltonian structure.

    Args:
        hidden_dim: width h of the hidden layers.
        depth: number of hidden layers.

    Returns:
        A predictor that ignores `direction` and `residual_scale`.
    """

    def init(key: jax.Array, state_dim: int) -> Params:
        return init_mlp(key, (state_dim, *[hidden_dim] * depth, state_dim))

    def apply(params: Params, z: jax.Array, direction: int = 1, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        del direction, residual_scale
        return apply_mlp(params, z)

    return Predictor(init, apply)


def linear() -> Predictor:
    """An affine map z ↦ zW + b.

    Returns:
        A predictor that ignores `direction` and `residual_scale`.
    """
    return mlp(hidden_dim=0, depth=0)


def identity() -> Predictor:
    """The map z ↦ z: prediction without a predictor.

    Returns:
        A predictor without parameters.
    """

    def init(key: jax.Array, state_dim: int) -> Params:
        del key, state_dim
        return {"layers": []}

    def apply(params: Params, z: jax.Array, direction: int = 1, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        del params, direction, residual_scale
        return z

    return Predictor(init, apply)
