"""Tests of z ~ N(0, I) in all dimensions at once, without projections."""

import chex
import jax
import jax.numpy as jnp


def _squared_distances(x: jax.Array) -> jax.Array:
    """‖xᵢ − xⱼ‖² of the rows of x (..., N, d), as (..., N, N), from their inner products."""
    # Distances do not depend on the origin, but what is lost to rounding does.
    centred = x - jnp.mean(x, axis=-2, keepdims=True)
    # Of a device's faster products of fewer digits nothing would be left where two rows are close.
    products = jnp.matmul(centred, centred.mT, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(centred), axis=-1)
    distances = jnp.maximum(squares[..., :, None] + squares[..., None, :] - 2.0 * products, 0.0)
    # Rounding leaves a row at some distance from itself.
    return jnp.where(jnp.eye(x.shape[-2], dtype=bool), 0.0, distances)


def bhep(x: jax.Array, *, bandwidth: float) -> jax.Array:
    """The statistic of Baringhaus, Henze, Epps and Pulley: Epps–Pulley in d dimensions, in closed form.

    N·[1/N²·Σᵢⱼ exp(−β²/2·‖xᵢ − xⱼ‖²) − 2(1 + β²)^(−d/2)·1/N·Σᵢ exp(−β²‖xᵢ‖²/(2(1 + β²))) + (1 + 2β²)^(−d/2)], which
    is N·E|ψ(t) − exp(−‖t‖²/2)|² over frequencies t ~ N(0, β²I), ψ the empirical characteristic function. Mean and
    covariance are those of N(0, I), not estimated.

    The pairs cost N²·d operations and N² numbers of memory.

    Args:
        x: samples (..., N, d); computed in float32 or wider.
        bandwidth: smoothing parameter β, in units of 1/x: the standard deviation, in each dimension, of the frequencies
            that are compared, and one over the width of the kernel between pairs. In high dimension it should be about
            1/√d. With more, no pair is within the kernel's reach: the statistic is then about 1 for whatever samples
            that lie apart, and its gradient vanishes.

    Returns:
        The statistics (...). Under N(0, I) their mean is exactly 1 − (1 + 2β²)^(−d/2) for every N.

    Raises:
        ValueError: for a bandwidth that is not positive.

    References:
        Epps & Pulley, Biometrika 70 (1983); Baringhaus & Henze, Metrika 35 (1988); Henze & Zirkler, Communications in
        Statistics: Theory and Methods 19 (1990).
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth: must be positive, got {bandwidth}")
    chex.assert_axis_dimension_gt(x, -2, 0)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    num_samples, dim = x.shape[-2:]
    square = bandwidth**2
    pairs = jnp.mean(jnp.exp(-0.5 * square * _squared_distances(x)), axis=(-2, -1))
    norms = jnp.sum(jnp.square(x), axis=-1)
    points = (1.0 + square) ** (-dim / 2) * jnp.mean(jnp.exp(-0.5 * square / (1.0 + square) * norms), axis=-1)
    return num_samples * (pairs - 2.0 * points + (1.0 + 2.0 * square) ** (-dim / 2))
