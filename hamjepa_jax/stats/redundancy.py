"""Redundancy reduction: coordinates that vary, each of them on its own. VICReg's two regularisers, and Barlow Twins.

Every function returns (loss, statistics), the statistics being the parts of the loss without their weights and what
warns of a collapse.
"""

from itertools import combinations

import chex
import jax
import jax.numpy as jnp

Statistics = dict[str, jax.Array]


def _wide(x: jax.Array, *, rank: int) -> jax.Array:
    """Samples of at least two rows along the axis N, in float32 or wider."""
    chex.assert_rank(x, rank)
    chex.assert_axis_dimension_gt(x, -2, 1)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _without_diagonal(matrix: jax.Array) -> jax.Array:
    """A square matrix with zeros on its diagonal."""
    return jnp.where(jnp.eye(matrix.shape[-1], dtype=bool), 0.0, matrix)


def vicreg(
    x: jax.Array,
    *,
    std_target: float = 1.0,
    variance_weight: float,
    covariance_weight: float,
    eps: float = 1e-4,
) -> tuple[jax.Array, Statistics]:
    """VICReg's variance and covariance terms: every coordinate varies, and no two vary together.

    μ·meanᵢ relu(σ₀ − √(Cᵢᵢ + ε)) + ν·1/d·Σᵢ≠ⱼ Cᵢⱼ², C the covariance with divisor N − 1. The invariance term of the
    paper is a prediction term, and its sum over views is left to the caller.

    Args:
        x: embeddings (N, d) of one view.
        std_target: target σ₀ of every coordinate's standard deviation.
        variance_weight: weight μ.
        covariance_weight: weight ν.
        eps: ε, which keeps the gradient finite at zero variance.

    Returns:
        The loss, and {"variance", "covariance", "min_std"}: both terms without their weights, and the smallest
        √(Cᵢᵢ + ε).

    References:
        Bardes, Ponce & LeCun, "VICReg", ICLR 2022.
    """
    x = _wide(x, rank=2)
    num_rows, dim = x.shape
    centred = x - jnp.mean(x, axis=0)
    std = jnp.sqrt(jnp.sum(jnp.square(centred), axis=0) / (num_rows - 1) + eps)
    covariance = centred.T @ centred / (num_rows - 1)
    statistics = {
        "variance": jnp.mean(jax.nn.relu(std_target - std)),
        "covariance": jnp.sum(jnp.square(_without_diagonal(covariance))) / dim,
        "min_std": jnp.min(std),
    }
    return variance_weight * statistics["variance"] + covariance_weight * statistics["covariance"], statistics


def barlow_twins(views: jax.Array, *, off_diagonal_weight: float, eps: float = 1e-5) -> tuple[jax.Array, Statistics]:
    """Barlow Twins: the cross-correlation between two views of the same images is held at the identity.

    Σᵢ (1 − Cᵢᵢ)² + λ·Σᵢ≠ⱼ Cᵢⱼ², averaged over all pairs of views. Cᵢⱼ = 1/N·Σₙ aₙᵢ·bₙⱼ, where a and b are the two views
    normalised over the batch, (x − mean)/√(var + ε) with the biased variance, each view and coordinate on its own.

    Args:
        views: embeddings (V, N, d); row n of every view is of the same image.
        off_diagonal_weight: weight λ.
        eps: ε, which keeps the gradient finite at zero variance.

    Returns:
        The loss, and {"diagonal", "off_diagonal", "min_std"}: both sums without their weight, averaged over the pairs,
        and the smallest √(var + ε) of a coordinate in a view.

    Raises:
        ValueError: for fewer than two views.

    References:
        Zbontar, Jing, Misra, LeCun & Deny, "Barlow Twins", ICML 2021.
    """
    views = _wide(views, rank=3)
    num_views, num_rows, _ = views.shape
    if num_views < 2:
        raise ValueError(f"views: must be at least 2, got {num_views}")
    centred = views - jnp.mean(views, axis=1, keepdims=True)
    std = jnp.sqrt(jnp.mean(jnp.square(centred), axis=1, keepdims=True) + eps)
    normalised = centred / std
    correlations = jnp.stack([a.T @ b / num_rows for a, b in combinations(normalised, 2)])
    diagonal = jnp.diagonal(correlations, axis1=-2, axis2=-1)
    statistics = {
        "diagonal": jnp.mean(jnp.sum(jnp.square(1.0 - diagonal), axis=-1)),
        "off_diagonal": jnp.mean(jnp.sum(jnp.square(_without_diagonal(correlations)), axis=(-2, -1))),
        "min_std": jnp.min(std),
    }
    return statistics["diagonal"] + off_diagonal_weight * statistics["off_diagonal"], statistics
