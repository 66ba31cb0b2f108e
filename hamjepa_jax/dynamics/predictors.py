"""Predictors: maps of a state z = [q ; p] of shape (..., D) that predict one view's state from the other's."""

import bisect
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


def residual_mlp(*, hidden_dim: int, depth: int) -> Predictor:
    """An unconstrained MLP beside the identity, z ↦ z + f(z), which is the identity at first.

    Args:
        hidden_dim: width h of the hidden layers of f: D → h → … → h → D.
        depth: number of hidden layers of f.

    Returns:
        A predictor that ignores `direction` and `residual_scale`.
    """
    residual = mlp(hidden_dim=hidden_dim, depth=depth)

    def init(key: jax.Array, state_dim: int) -> Params:
        *hidden_layers, output_layer = residual.init(key, state_dim)["layers"]
        return {"layers": [*hidden_layers, jax.tree.map(jnp.zeros_like, output_layer)]}

    def apply(params: Params, z: jax.Array, direction: int = 1, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        return z + residual.apply(params, z, direction, residual_scale)

    return Predictor(init, apply)


def rotation(*, rank: int) -> Predictor:
    """A rotation z ↦ Qz, learned as the Cayley transform Q = (I − A)⁻¹(I + A) of a skew A = UVᵀ − VUᵀ.

    With L = [U, −V] and R = [V, U], so that A = LRᵀ, it is Q = I + 2L(I − RᵀL)⁻¹Rᵀ: only a system of size 2r is solved.
    Q is orthogonal with determinant one, turns a subspace of at most 2r dimensions, and is the identity at first. It
    keeps norms and angles like no flow but the harmonic one, and learns no nonlinearity.

    Args:
        rank: number r of columns of U and of V.

    Returns:
        A predictor whose inverse is `direction=-1`; it ignores `residual_scale`.

    References:
        Golub & Van Loan, "Matrix Computations", sections 2.1.4 and 5.1 (Woodbury formula, Cayley transform).
    """

    def init(key: jax.Array, state_dim: int) -> Params:
        left = jax.random.normal(key, (state_dim, rank)) * state_dim**-0.5
        return {"left": left, "right": jnp.zeros_like(left)}

    def apply(params: Params, z: jax.Array, direction: int = 1, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        del residual_scale
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        left, right = params["left"], direction * params["right"]
        outer, inner = jnp.concatenate([left, -right], axis=1), jnp.concatenate([right, left], axis=1)
        # States are rows, so that Qᵀ is applied from the right.
        system = jnp.eye(2 * rank, dtype=outer.dtype) - outer.T @ inner
        return z + 2.0 * (z @ inner) @ jnp.linalg.solve(system, outer.T)

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


def num_parameters(predictor: Predictor, state_dim: int) -> int:
    """The number of parameters of a predictor of states of size D."""
    shapes = jax.eval_shape(lambda key: predictor.init(key, state_dim), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def matched_width(make: Callable[[int], Predictor], state_dim: int, *, to: Predictor) -> int:
    """The width at which a predictor has as many parameters as another, so that only their structure differs.

    Args:
        make: a function from a width to a predictor whose number of parameters grows with it.
        state_dim: size D of the state.
        to: the predictor whose number of parameters is to be met.

    Returns:
        The width that comes closest.

    Raises:
        ValueError: if no width comes within 1 %.
    """
    wanted = num_parameters(to, state_dim)

    def count(width: int) -> int:
        return num_parameters(make(width), state_dim)

    above = 1
    while count(above) < wanted:
        above *= 2
    above = bisect.bisect_left(range(above + 1), wanted, lo=above // 2, key=count)
    width = min((w for w in (above - 1, above) if w >= 1), key=lambda w: abs(count(w) - wanted))
    if abs(count(width) - wanted) > 0.01 * wanted:
        raise ValueError(f"no width comes within 1 % of {wanted} parameters; {width} has {count(width)}")
    return width
