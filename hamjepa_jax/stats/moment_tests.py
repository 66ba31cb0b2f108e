"""Tests of x ~ N(0, 1) that compare moments. `stats.univariate` collects these tests with the others."""

import chex
import jax
import jax.numpy as jnp


def _mean_and_deviations(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The means (..., K) of samples (..., N, K) and the deviations (..., N, K) from them, in float32 or wider."""
    chex.assert_axis_dimension_gt(x, -2, 0)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(x, axis=-2)
    return mean, x - mean[..., None, :]


def moments(x: jax.Array) -> jax.Array:
    """Mean and variance against those of N(0, 1), which is all that this test sees.

    N·mean² + N/2·(var − 1)², var the biased variance.

    Args:
        x: samples (..., N, K), N samples of each of K projections; computed in float32 or wider.

    Returns:
        The statistics (..., K), zero for mean 0 and variance 1. Under N(0, 1) their mean is 2 − 1/(2N).
    """
    mean, deviations = _mean_and_deviations(x)
    variance = jnp.mean(jnp.square(deviations), axis=-2)
    return deviations.shape[-2] * (jnp.square(mean) + 0.5 * jnp.square(variance - 1.0))


def jarque_bera(x: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """The Jarque–Bera statistic: skewness and kurtosis against those of a Gaussian.

    N/6·(S² + (κ − 3)²/4), S and κ the means of the third and fourth powers of (x − mean)/√(var + ε), var the biased
    variance: for ε = 0 location and scale have no influence.

    Args:
        x: samples (..., N, K), N samples of each of K projections; computed in float32 or wider.
        eps: ε, in units of x². Samples whose variance is far below it count as collapsed, S and κ as zero.

    Returns:
        The statistics (..., K), 3N/8 where all samples coincide. Under N(μ, σ²) their mean is, for ε = 0,
        N(N−2)/((N+1)(N+3)) + N²(N−2)(N−3)/((N+1)²(N+3)(N+5)) + 3N/(2(N+1)²), which tends to 2.

    References:
        Jarque & Bera, International Statistical Review 55 (1987).
    """
    _, deviations = _mean_and_deviations(x)
    # Standardised before they are raised to powers, which would leave the range of float32.
    standardised = deviations / jnp.sqrt(jnp.mean(jnp.square(deviations), axis=-2, keepdims=True) + eps)
    skewness = jnp.mean(standardised**3, axis=-2)
    kurtosis = jnp.mean(standardised**4, axis=-2)
    return deviations.shape[-2] / 6.0 * (jnp.square(skewness) + 0.25 * jnp.square(kurtosis - 3.0))
