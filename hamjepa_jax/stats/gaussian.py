"""Entropy and divergence of centred Gaussian laws."""

import math

import jax
import jax.numpy as jnp

from hamjepa_jax.stats.positive_definite import positive_definite


def gaussian_entropy(sigma: jax.Array) -> jax.Array:
    """The differential entropy of N(0, Σ) in nats, ½·log det(2πe·Σ).

    Args:
        sigma: covariance Σ, symmetric positive definite (d, d).

    Returns:
        A scalar.

    Raises:
        ValueError: if Σ is not as described.
    """
    sigma = positive_definite("sigma", sigma)
    return 0.5 * (sigma.shape[0] * math.log(2 * math.pi * math.e) + jnp.linalg.slogdet(sigma)[1])


def gaussian_divergence(sigma: jax.Array, reference: jax.Array) -> jax.Array:
    """The Kullback–Leibler divergence KL(N(0, Σ) ‖ N(0, R)) in nats, ½·[tr(R⁻¹Σ) − d − log det(R⁻¹Σ)].

    For R = (c/d)H⁻¹ and any law of the budget c, Gaussian or not, the divergence is the entropy that the law lacks: it
    is zero for N(0, R) only, which is why the maximum of entropy is unique.

    Args:
        sigma: covariance Σ, symmetric positive definite (d, d).
        reference: covariance R, symmetric positive definite (d, d).

    Returns:
        A scalar.

    Raises:
        ValueError: if an argument is not as described.
    """
    sigma = positive_definite("sigma", sigma)
    reference = positive_definite("reference", reference, dim=sigma.shape[0])
    ratio = jnp.linalg.solve(reference, sigma)
    return 0.5 * (jnp.trace(ratio) - sigma.shape[0] - jnp.linalg.slogdet(ratio)[1])
