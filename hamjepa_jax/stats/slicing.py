"""Sliced tests: random directions, one-dimensional projections, and SIGReg."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from hamjepa_jax.stats.univariate import epps_pulley


def random_directions(key: jax.Array, dim: int, num_directions: int, dtype: jax.typing.DTypeLike = float) -> jax.Array:
    """Directions drawn uniformly from the unit sphere: the normalised columns of a Gaussian matrix.

    Args:
        key: a typed PRNG key; the same key gives the same directions on every device.
        dim: dimension D.
        num_directions: number K of directions.
        dtype: their type; `float` is jax's default.

    Returns:
        Unit columns (D, K).
    """
    gaussian = jax.random.normal(key, (dim, num_directions), dtype)
    return gaussian / jnp.linalg.norm(gaussian, axis=0, keepdims=True)


def sliced(z: jax.Array, directions: jax.Array, test: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The mean of a one-dimensional test over views and directions.

    1/(V·K)·Σᵥₖ test(zᵥ·wₖ) for the directions wₖ; the projections are computed in float32 or wider.

    Args:
        z: embeddings (..., B, D); the test is over the B samples, for each leading index on its own.
        directions: unit columns (D, K), see `random_directions`.
        test: takes projections (..., B, K) to statistics (..., K), such as those of `univariate.TESTS`.

    Returns:
        A scalar.

    References:
        Balestriero & LeCun, "LeJEPA", arXiv 2511.08544.
    """
    return jnp.mean(test(z.astype(jnp.promote_types(z.dtype, jnp.float32)) @ directions))


def sigreg(
    z: jax.Array,
    directions: jax.Array,
    *,
    t_max: float = 3.0,
    num_points: int = 17,
    weight: str = "gaussian",
) -> jax.Array:
    """SIGReg, sketched isotropic Gaussian regularisation: the mean Epps–Pulley statistic over views and directions.

    Args:
        z: embeddings (..., B, D); the test is over the B samples, for each leading index on its own.
        directions: unit columns (D, K), see `random_directions`.
        t_max: largest knot of `univariate.epps_pulley`.
        num_points: number of its knots.
        weight: its weight, `gaussian` or `uniform`.

    Returns:
        A scalar, zero only if every projection has the characteristic function of N(0, 1) at the knots.

    References:
        Balestriero & LeCun, "LeJEPA", arXiv 2511.08544.
    """
    return sliced(z, directions, partial(epps_pulley, t_max=t_max, num_points=num_points, weight=weight))
