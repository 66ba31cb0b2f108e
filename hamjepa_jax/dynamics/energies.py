"""Energies H(q, p): what the Hamiltonian flow conserves, and what HamJEPA learns.

An energy is a NamedTuple of pure functions on explicit parameters. Positions q and momenta p have shape (..., d);
every leading axis is a batch axis. An energy that has a `potential` is separable, H(q, p) = ½pᵀM⁻¹p + V(q), with unit
masses unless `with_diagonal_mass` gives it others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

Params = Any


class Energy(NamedTuple):
    """A Hamiltonian as pure functions.

    Attributes:
        init: `init(key, dim) -> params`, dim the number of positions d.
        value: `value(params, q, p, residual_scale=1.0) -> (...,)`, the energy H(q, p).
        potential: `potential(params, q, residual_scale=1.0) -> (...,)`, the potential V(q) of a separable energy,
            or None where H does not separate.
        inverse_mass: `inverse_mass(params) -> (d,)`, the diagonal of M⁻¹, or None for unit masses.
    """

    init: Callable[..., Params]
    value: Callable[..., jax.Array]
    potential: Callable[..., jax.Array] | None
    inverse_mass: Callable[[Params], jax.Array] | None = None


def _squared_norm(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x), axis=-1)


def _separable(init: Callable[..., Params], potential: Callable[..., jax.Array]) -> Energy:
    def value(params: Params, q: jax.Array, p: jax.Array, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        chex.assert_equal_shape([q, p])
        return 0.5 * _squared_norm(p) + potential(params, q, residual_scale=residual_scale)

    return Energy(init, value, potential)


def _no_parameters(key: jax.Array, dim: int) -> Params:
    del key, dim
    return {"layers": []}


def init_mlp(key: jax.Array, widths: tuple[int, ...]) -> Params:
    """Dense layers of the given widths, every kernel and bias uniform in ±1/√fan_in.

    Args:
        key: a typed PRNG key.
        widths: input width, hidden widths, output width.

    Returns:
        {"layers": [{"kernel": (n_in, n_out), "bias": (n_out,)}, ...]}.
    """
    layers = []
    for layer_key, (n_in, n_out) in zip(
        jax.random.split(key, len(widths) - 1), zip(widths, widths[1:], strict=False), strict=True
    ):
        kernel_key, bias_key = jax.random.split(layer_key)
        bound = n_in**-0.5
        layers.append(
            {
                "kernel": jax.random.uniform(kernel_key, (n_in, n_out), minval=-bound, maxval=bound),
                "bias": jax.random.uniform(bias_key, (n_out,), minval=-bound, maxval=bound),
            }
        )
    return {"layers": layers}


def apply_mlp(params: Params, x: jax.Array) -> jax.Array:
    """A multi-layer perceptron with exact-erf GELU after every layer but the last.

    Args:
        params: what `init_mlp` returns.
        x: inputs (..., n_in).

    Returns:
        Outputs (..., n_out).
    """
    *hidden_layers, output_layer = params["layers"]
    for layer in hidden_layers:
        x = jax.nn.gelu(x @ layer["kernel"] + layer["bias"], approximate=False)
    return x @ output_layer["kernel"] + output_layer["bias"]


def quadratic() -> Energy:
    """The harmonic oscillator, H(q, p) = ½‖q‖² + ½‖p‖².

    Returns:
        A separable energy without parameters; `residual_scale` has no effect.
    """

    def potential(params: Params, q: jax.Array, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        del params, residual_scale
        return 0.5 * _squared_norm(q)

    return _separable(_no_parameters, potential)


def pendulum() -> Energy:
    """D independent pendula of unit mass, length and gravity, H(q, p) = ½‖p‖² + Σᵢ (1 − cos qᵢ).

    Returns:
        A separable energy without parameters; `residual_scale` has no effect.
    """

    def potential(params: Params, q: jax.Array, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        del params, residual_scale
        return jnp.sum(1.0 - jnp.cos(q), axis=-1)

    return _separable(_no_parameters, potential)


def separable_mlp(*, hidden_dim: int, depth: int, base_coeff: float) -> Energy:
    """HamJEPA's learned energy, H(q, p) = ½‖p‖² + V(q) with V(q) = ½·a·‖q‖² + s·f(q).

    Args:
        hidden_dim: width h of the hidden layers of the MLP f: d → h → … → h → 1.
        depth: number of hidden layers of f.
        base_coeff: stiffness a of the quadratic base.

    Returns:
        A separable energy; `residual_scale` is the factor s of f.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """

    def init(key: jax.Array, dim: int) -> Params:
        return init_mlp(key, (dim, *[hidden_dim] * depth, 1))

    def potential(params: Params, q: jax.Array, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        return 0.5 * base_coeff * _squared_norm(q) + residual_scale * apply_mlp(params, q)[..., 0]

    return _separable(init, potential)


def coupled_mlp(*, hidden_dim: int, depth: int) -> Energy:
    """A learned energy that does not separate, H(q, p) = ½(‖q‖² + ‖p‖²) + s·f([q ; p]).

    No explicit scheme of `integrators` is symplectic for it; implicit midpoint is.

    Args:
        hidden_dim: width h of the hidden layers of the MLP f: 2d → h → … → h → 1.
        depth: number of hidden layers of f.

    Returns:
        An energy without a potential; `residual_scale` is the factor s of f.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """

    def init(key: jax.Array, dim: int) -> Params:
        return init_mlp(key, (2 * dim, *[hidden_dim] * depth, 1))

    def value(params: Params, q: jax.Array, p: jax.Array, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        chex.assert_equal_shape([q, p])
        residual = apply_mlp(params, jnp.concatenate([q, p], axis=-1))[..., 0]
        return 0.5 * (_squared_norm(q) + _squared_norm(p)) + residual_scale * residual

    return Energy(init, value, None)


def with_diagonal_mass(energy: Energy) -> Energy:
    """An energy with learned positive masses, H(q, p) + ½pᵀ(M⁻¹ − I)p with M = diag(exp(log m)).

    For a separable energy this is ½pᵀM⁻¹p + V(q). All masses are one at first.

    Args:
        energy: an energy with unit masses.

    Returns:
        The energy whose parameters hold `log_mass` (d,) besides those of `energy`.

    Raises:
        ValueError: if the energy has masses already.
    """
    if energy.inverse_mass is not None:
        raise ValueError("energy: has masses already")

    def init(key: jax.Array, dim: int) -> Params:
        return energy.init(key, dim) | {"log_mass": jnp.zeros(dim)}

    def inverse_mass(params: Params) -> jax.Array:
        return jnp.exp(-params["log_mass"])

    def value(params: Params, q: jax.Array, p: jax.Array, residual_scale: chex.Numeric = 1.0) -> jax.Array:
        correction = 0.5 * jnp.sum((inverse_mass(params) - 1.0) * jnp.square(p), axis=-1)
        return energy.value(params, q, p, residual_scale=residual_scale) + correction

    return Energy(init, value, energy.potential, inverse_mass)
