"""HamJEPA's scale and spectral floors: they stop collapse without asking for isotropy.

Every function takes the rows of the global batch and returns (loss, statistics), the statistics being what the loss
compares with its floors.
"""

import chex
import jax
import jax.numpy as jnp

Statistics = dict[str, jax.Array]


def _rows(x: jax.Array) -> jax.Array:
    """All leading axes as one axis of samples, whose order is of no importance, in float32 or wider."""
    # The axis that devices may share comes first. Merged behind another it would be gathered.
    shared_first = jnp.moveaxis(x, -2, 0)
    return shared_first.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(-1, x.shape[-1])


def mean_square(x: jax.Array, *, target: float = 1.0) -> tuple[jax.Array, Statistics]:
    """Holds the mean square of all coordinates at a target, (mean x² − c)²: half of the energy budget.

    Args:
        x: samples (..., d).
        target: target c.

    Returns:
        The loss, and {"mean_square"}.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    found = jnp.mean(jnp.square(_rows(x)))
    return jnp.square(found - target), {"mean_square": found}


def energy_budget(z: jax.Array, *, q_target: float = 1.0, p_target: float = 1.0) -> tuple[jax.Array, Statistics]:
    """Holds the mean squares of positions and momenta at their targets, (mean q² − c_q)² + (mean p² − c_p)².

    Args:
        z: states (..., 2d).
        q_target: target c_q of the mean square of q.
        p_target: target c_p of the mean square of p.

    Returns:
        The loss, and {"q_mean_square", "p_mean_square"}.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    q, p = jnp.split(z, 2, axis=-1)
    q_loss, q_found = mean_square(q, target=q_target)
    p_loss, p_found = mean_square(p, target=p_target)
    return q_loss + p_loss, {"q_mean_square": q_found["mean_square"], "p_mean_square": p_found["mean_square"]}


def zero_mean(x: jax.Array) -> tuple[jax.Array, Statistics]:
    """Holds the mean of the samples at zero, ‖mean x‖²/d.

    Args:
        x: samples (..., d).

    Returns:
        The loss, and no statistics.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    return jnp.mean(jnp.square(jnp.mean(_rows(x), axis=0))), {}


def variance_floor(x: jax.Array, *, std_floor: float, eps: float = 1e-4) -> tuple[jax.Array, Statistics]:
    """Holds every coordinate's standard deviation above a floor, meanᵢ relu(σ₀ − √(varᵢ + ε))².

    Args:
        x: samples (..., d); the biased variance is over all N rows.
        std_floor: floor σ₀.
        eps: ε, which keeps the gradient finite at zero variance.

    Returns:
        The loss, and {"min_std"}, the smallest standard deviation.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    std = jnp.sqrt(jnp.var(_rows(x), axis=0) + eps)
    return jnp.mean(jnp.square(jax.nn.relu(std_floor - std))), {"min_std": jnp.min(std)}


def random_projection(key: jax.Array, dim: int, rank: int, dtype: jax.typing.DTypeLike = float) -> jax.Array:
    """A random orthonormal projection: the Q factor of a Gaussian matrix G.

    A tall G is so well conditioned that Q = G L⁻ᵀ, with L the Cholesky factor of GᵀG, is orthonormal to rounding, and
    takes a tenth of the time of Householder reflections.

    Args:
        key: a typed PRNG key.
        dim: dimension d.
        rank: number k ≤ d of columns.
        dtype: their type; `float` is jax's default.

    Returns:
        Orthonormal columns (d, k).
    """
    gaussian = jax.random.normal(key, (dim, rank), dtype)
    if dim < 4 * rank:
        return jnp.linalg.qr(gaussian)[0]
    lower = jnp.linalg.cholesky(gaussian.T @ gaussian)
    return jax.scipy.linalg.solve_triangular(lower, gaussian.T, lower=True).T


def projection_rank(dim: int, num_rows: int, max_rank: int = 128) -> int:
    """The rank k = min(max_rank, d, N − 1) in which a covariance of N rows can be of full rank."""
    return min(max_rank, dim, num_rows - 1)


def covariance_statistics(x: jax.Array, projection: jax.Array, *, eps: float = 1e-4) -> Statistics:
    """How far a projected covariance C = cov(xR) + ε·I (divisor N − 1) is from collapse onto few directions.

    Args:
        x: samples (..., d), all rows pooled.
        projection: R, orthonormal columns (d, k).
        eps: ridge ε.

    Returns:
        {"logdet", "participation", "eigmax"}: logdet C/k in nats, the participation ratio (tr C)²/(‖C‖²_F + 1e-12)
        per dimension, and λmax/tr C.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    x = _rows(x)
    chex.assert_axis_dimension(projection, 0, x.shape[-1])
    rank = projection.shape[1]
    projected = (x - jnp.mean(x, axis=0)) @ projection
    covariance = projected.T @ projected / (x.shape[0] - 1)
    covariance = 0.5 * (covariance + covariance.T) + eps * jnp.eye(rank, dtype=x.dtype)
    trace = jnp.trace(covariance)
    eigenvalues = jnp.linalg.eigvalsh(covariance)
    return {
        "logdet": jnp.linalg.slogdet(covariance)[1] / rank,
        "participation": trace**2 / (jnp.sum(jnp.square(covariance)) + 1e-12) / rank,
        "eigmax": eigenvalues[-1] / trace,
    }


def covariance_floor(
    x: jax.Array,
    projection: jax.Array,
    *,
    logdet_floor: float,
    participation_floor: float | None = None,
    eigmax_ceiling: float | None = None,
    eps: float = 1e-4,
) -> tuple[jax.Array, Statistics]:
    """Keeps a projected covariance away from collapse onto few directions.

    relu(ℓ₀ − logdet C/k)² + relu(r₀ − PR/k)² + relu(λmax/tr C − m₀)², C and the participation ratio PR being those
    of `covariance_statistics`.

    Args:
        x: samples (..., d), all rows pooled.
        projection: R, orthonormal columns (d, k).
        logdet_floor: floor ℓ₀ of the log-determinant per dimension, in nats.
        participation_floor: floor r₀ of PR/k, in [0, 1]; None leaves the term out.
        eigmax_ceiling: ceiling m₀ of the largest eigenvalue's share, in [0, 1]; None leaves the term out.
        eps: ridge ε.

    Returns:
        The loss, and what `covariance_statistics` returns.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    statistics = covariance_statistics(x, projection, eps=eps)
    loss = jnp.square(jax.nn.relu(logdet_floor - statistics["logdet"]))
    if participation_floor is not None:
        loss += jnp.square(jax.nn.relu(participation_floor - statistics["participation"]))
    if eigmax_ceiling is not None:
        loss += jnp.square(jax.nn.relu(statistics["eigmax"] - eigmax_ceiling))
    return loss, statistics
