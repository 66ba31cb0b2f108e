"""Tests of x ~ N(0, 1) that compare the sorted samples, one by one, with what N(0, 1) expects at their ranks.

Sorting takes all N samples of a projection to one place, and samples that coincide are ranked in the order in which
they come. `stats.univariate` collects these tests with the others.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, ndtr, ndtri


def _sorted(x: jax.Array) -> jax.Array:
    """The samples x₍₁₎ ≤ … ≤ x₍N₎ of every projection (..., N, K), in float32 or wider."""
    chex.assert_axis_dimension_gt(x, -2, 0)
    return jnp.sort(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=-2)


def _positions(num_samples: int, offset: float = 0.5) -> np.ndarray:
    """The probabilities (i − a)/(N + 1 − 2a) that belong to the ranks i = 1 … N, as a column (N, 1)."""
    return ((np.arange(1, num_samples + 1) - offset) / (num_samples + 1 - 2 * offset))[:, None]


def _normal_quantiles(positions: np.ndarray, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Φ⁻¹ of the positions."""
    # Both tails from the lower one: close to 1 a probability has no digits left that tell it from 1.
    tail = jnp.asarray(np.minimum(positions, 1.0 - positions), dtype)
    return jnp.asarray(np.sign(0.5 - positions), dtype) * ndtri(tail)


def cramer_von_mises(x: jax.Array) -> jax.Array:
    """The Cramér–von Mises statistic: the squared distance of the empirical distribution function from Φ.

    W² = 1/(12N) + Σᵢ (Φ(x₍ᵢ₎) − uᵢ)², uᵢ = (2i − 1)/(2N).

    Args:
        x: samples (..., N, K), N samples of each of K projections; computed in float32 or wider.

    Returns:
        The statistics (..., K), at least 1/(12N). Under N(0, 1) their mean is 1/6 for every N.

    References:
        Anderson & Darling, Annals of Mathematical Statistics 23 (1952).
    """
    ordered = _sorted(x)
    positions = _positions(ordered.shape[-2])
    errors = ndtr(ordered) - jnp.asarray(positions, ordered.dtype)
    return 1.0 / (12 * len(positions)) + jnp.sum(jnp.square(errors), axis=-2)


def watson(x: jax.Array) -> jax.Array:
    """Watson's statistic: that of Cramér and von Mises, less what a shift of all Φ(x) accounts for.

    U² = W² − N·(mean Φ(x) − ½)². It does not change if all Φ(x) are turned by one angle on the circle [0, 1).

    Args:
        x: samples (..., N, K), N samples of each of K projections; computed in float32 or wider.

    Returns:
        The statistics (..., K), at least 1/(12N). Under N(0, 1) their mean is 1/12 for every N.

    References:
        Watson, Biometrika 48 (1961).
    """
    ordered = _sorted(x)
    positions = _positions(ordered.shape[-2])
    errors = ndtr(ordered) - jnp.asarray(positions, ordered.dtype)
    # The mean of the errors is that of Φ(x) − ½.
    centred = errors - jnp.mean(errors, axis=-2, keepdims=True)
    return 1.0 / (12 * len(positions)) + jnp.sum(jnp.square(centred), axis=-2)


def anderson_darling(x: jax.Array) -> jax.Array:
    """The Anderson–Darling statistic: that of Cramér and von Mises with weight 1/(Φ(1 − Φ)), which favours the tails.

    A² = −N − 1/N·Σᵢ (2i − 1)·[log Φ(x₍ᵢ₎) + log(1 − Φ(x₍N₊₁₋ᵢ₎))].

    With uᵢ = (2i − 1)/(2N) that is 2·Σᵢ KL(uᵢ ‖ Φ(x₍ᵢ₎)), the divergence between two coins, plus what depends on N
    alone.

    Args:
        x: samples (..., N, K), N samples of each of K projections; computed in float32 or wider.

    Returns:
        The statistics (..., K). Under N(0, 1) their mean is 1 for every N.

    References:
        Anderson & Darling, Journal of the American Statistical Association 49 (1954).
    """
    ordered = _sorted(x)
    below = _positions(ordered.shape[-2])
    above = 1.0 - below
    # For a good fit every term is small. Written as above they would have to cancel −N, which costs float32 its digits.
    below_ratio = jnp.asarray(np.log(below), ordered.dtype) - log_ndtr(ordered)
    above_ratio = jnp.asarray(np.log(above), ordered.dtype) - log_ndtr(-ordered)
    divergences = jnp.asarray(below, ordered.dtype) * below_ratio + jnp.asarray(above, ordered.dtype) * above_ratio
    constant = -len(below) - 4.0 * np.sum(below * np.log(below))
    return float(constant) + 2.0 * jnp.sum(divergences, axis=-2)


def shapiro_francia(x: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """The Shapiro–Francia test: how far the sorted samples are from a straight line over the normal scores.

    N·(1 − W) with W = (Σᵢ mᵢ·x₍ᵢ₎)²/(Σᵢ mᵢ²·N·(var + ε)), mᵢ = Φ⁻¹((i − ⅜)/(N + ¼)) Blom's scores and the biased
    variance: for ε = 0, W is the squared correlation between x₍ᵢ₎ and mᵢ, and location and scale have no influence.

    Args:
        x: samples (..., N, K), N > 1 samples of each of K projections; computed in float32 or wider.
        eps: ε, in units of x². Samples whose variance is far below it count as collapsed, and W as zero.

    Returns:
        The statistics (..., K), from 0 on a straight line to N where all samples coincide. Under N(μ, σ²) their mean
        grows slowly with N.

    References:
        Shapiro & Francia, Journal of the American Statistical Association 67 (1972); Blom, "Statistical Estimates and
        Transformed Beta-Variables" (1958).
    """
    chex.assert_axis_dimension_gt(x, -2, 1)
    ordered = _sorted(x)
    num_samples = ordered.shape[-2]
    scores = _normal_quantiles(_positions(num_samples, offset=0.375), ordered.dtype)
    deviations = ordered - jnp.mean(ordered, axis=-2, keepdims=True)
    slope = jnp.sum(scores * deviations, axis=-2, keepdims=True) / jnp.sum(jnp.square(scores))
    # 1 − W from the residuals of the regression on the scores: in float32 a difference from 1 has few digits.
    residual = jnp.mean(jnp.square(deviations - slope * scores), axis=-2)
    variance = jnp.mean(jnp.square(deviations), axis=-2)
    return num_samples * (residual + eps) / (variance + eps)


def wasserstein(x: jax.Array) -> jax.Array:
    """N times the squared 2-Wasserstein distance between the samples and as many quantiles of N(0, 1).

    Σᵢ (x₍ᵢ₎ − Φ⁻¹((i − ½)/N))². Sliced, it is the sliced-Wasserstein distance.

    Args:
        x: samples (..., N, K), N samples of each of K projections; computed in float32 or wider.

    Returns:
        The statistics (..., K), zero for the quantiles themselves. Under N(0, 1) their mean grows slowly with N.

    References:
        del Barrio, Cuesta-Albertos, Matrán & Rodríguez-Rodríguez, Annals of Statistics 27 (1999); Bonneel, Rabin, Peyré
        & Pfister, Journal of Mathematical Imaging and Vision 51 (2015).
    """
    ordered = _sorted(x)
    quantiles = _normal_quantiles(_positions(ordered.shape[-2]), ordered.dtype)
    return jnp.sum(jnp.square(ordered - quantiles), axis=-2)
