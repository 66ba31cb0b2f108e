"""Power means of a spectrum, and the prices that compare them."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

ORDERS = {"entropy": 0.0, "worst_direction": -math.inf, "inverse_variance": -1.0}
"""The order r of the power mean that each price compares with M₁: geometric mean, minimum, harmonic mean."""


def log_power_mean(log_values: jax.Array, order: float) -> jax.Array:
    """The logarithm of a power mean of positive numbers, log (mean yʳ)^{1/r}.

    It is convex in log y for r ≥ 0 and concave for r ≤ 0, by Hölder's inequality.

    Args:
        log_values: logarithms log y (..., d).
        order: order r; 0 is the geometric mean and −∞ the minimum.

    Returns:
        Logarithms (...,).
    """
    if order == 0:
        return jnp.mean(log_values, axis=-1)
    if order == -math.inf:
        return jnp.min(log_values, axis=-1)
    return (logsumexp(order * log_values, axis=-1) - math.log(log_values.shape[-1])) / order


def price_of_spectrum(log_y: jax.Array, price: str) -> jax.Array:
    """A price from the eigenvalues y of H^{1/2}ΣH^{1/2}, (d/2)·log(M₁/M₀) for `entropy` and M₁/M_r for the others.

    As a function of log y every price is symmetric and convex, and free only where all y are equal.

    Args:
        log_y: logarithms log y (..., d).
        price: one of `ORDERS`.

    Returns:
        Prices (...,): in nats for `entropy`, else factors.

    Raises:
        ValueError: for an unknown price.
    """
    if price not in ORDERS:
        raise ValueError(f"price: {price!r} is unknown; known prices: {', '.join(ORDERS)}")
    excess = log_power_mean(log_y, 1.0) - log_power_mean(log_y, ORDERS[price])
    return 0.5 * log_y.shape[-1] * excess if price == "entropy" else jnp.exp(excess)
