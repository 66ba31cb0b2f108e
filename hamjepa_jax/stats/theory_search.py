"""The optima of `theory` found without being told: by descent over covariances and over geometries."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import OptimizeResult, minimize

from hamjepa_jax.stats.positive_definite import positive_definite, require_within, square_root
from hamjepa_jax.stats.power_means import ORDERS, log_power_mean

SOFT_MINIMUM = -8.0
"""An order at which the power mean is nearly the minimum, yet differentiable."""
# The steps converge quadratically: one more after this is exact to rounding.
CONVERGED = 1e-9


def search_optimum(
    key: jax.Array, H: jax.Array, c: float, *, order: float, max_steps: int = 5000
) -> tuple[jax.Array, jax.Array]:
    """The covariance Σ of the budget tr(HΣ) = c with the largest power mean M_r of eig(H^{1/2}ΣH^{1/2}).

    Descends f(Σ) = log M₁ − log M_r along geodesics of the affine-invariant geometry of covariances,
    Σ ← Σ^{1/2}exp(−t·G)Σ^{1/2} with G = Σ^{1/2}∇f(Σ)Σ^{1/2}, from a random start. f is geodesically convex and does not
    depend on the scale, so that every start leads to the optimum whatever the condition numbers. The step t = d/(1 − r)
    is Newton's at the optimum; far from it no logarithm of an eigenvalue changes by more than 1/(1 − r).

    Args:
        key: a typed PRNG key, of the start.
        H: the geometry, symmetric positive definite (d, d).
        c: budget, positive.
        order: order r < 1 of the power mean: 0 for the entropy, −1 for the inverse variance, `SOFT_MINIMUM` for the
            worst direction.
        max_steps: where to stop in any case.

    Returns:
        Σ (d, d), and the number of steps.

    Raises:
        ValueError: if an argument is not as described.

    References:
        Bhatia, "Positive Definite Matrices", chapter 6; Absil, Mahony & Sepulchre, "Optimization Algorithms on Matrix
        Manifolds", chapter 4.
    """
    H = positive_definite("H", H)
    require_within("c", c, above=0)
    if not -math.inf < order < 1:
        raise ValueError(f"order: must be finite and below 1, got {order}")
    factor, num_steps = _descend(key, H, order, max_steps)
    sigma = factor @ factor.T
    return c / jnp.vdot(H, sigma) * sigma, num_steps


@jax.jit
def _descend(key: jax.Array, H: jax.Array, order: float, max_steps: int) -> tuple[jax.Array, jax.Array]:
    """A factor A of the optimum Σ = AAᵀ up to scale, and the number of steps."""
    dim = H.shape[0]
    root = square_root(H)

    def step(carry):
        factor, _, count = carry
        # AᵀHA = V diag(y) Vᵀ, and G = V diag(∂f/∂log y) Vᵀ for this factor in the place of Σ^{1/2}.
        _, singular_values, v_transposed = jnp.linalg.svd(root @ factor)
        log_y = 2.0 * jnp.log(singular_values)
        slope = jax.nn.softmax(log_y) - jax.nn.softmax(order * log_y)
        steepest = jnp.max(jnp.abs(slope))
        step_size = jnp.minimum(dim, 1.0 / steepest) / (1.0 - order)
        factor = factor @ (v_transposed.T * jnp.exp(-0.5 * step_size * slope)) @ v_transposed
        return factor, dim / (1.0 - order) * steepest, count + 1

    def unfinished(carry):
        return (carry[1] > CONVERGED) & (carry[2] < max_steps)

    start = jax.random.normal(key, H.shape, H.dtype), jnp.asarray(jnp.inf, H.dtype), 0
    factor, _, num_steps = jax.lax.while_loop(unfinished, step, start)
    return factor, num_steps


def search_worst_geometry(
    key: jax.Array, sigma: jax.Array, condition_number: float, *, price: str = "entropy", num_starts: int | None = None
) -> jax.Array:
    """The geometry of condition number at most κ under which Σ costs most, the best of several local searches.

    H = R diag(h) Rᵀ with Cayley's rotation R = (I − S)⁻¹(I + S) of a skew-symmetric S: L-BFGS ascends log(M₁/M_r)
    over S and log h in [0, log κ], from random S and h near √κ. Up to the signs of eigenvectors, which are free, every
    rotation has an S with entries in [−1, 1]. For small dimensions.

    Args:
        key: a typed PRNG key, of the starts.
        sigma: covariance Σ, symmetric positive definite (d, d).
        condition_number: κ, at least 1.
        price: which of `theory.prices` is to be largest.
        num_starts: number of starts; 2·d if None.

    Returns:
        The geometry H (d, d), scaled to tr H = d.

    Raises:
        ValueError: if an argument is not as described.

    References:
        O'Dorney, "Minimizing the Cayley Transform of an Orthogonal Matrix by Multiplying by Signature Matrices", Linear
        Algebra and its Applications 448, 2014.
    """
    sigma = positive_definite("sigma", sigma)
    require_within("condition_number", condition_number, least=1)
    if price not in ORDERS:
        raise ValueError(f"price: {price!r} is unknown; known prices: {', '.join(ORDERS)}")
    dim, log_kappa = sigma.shape[0], math.log(condition_number)
    num_angles, num_starts = dim * (dim - 1) // 2, num_starts or 2 * dim
    root, which = jnp.linalg.cholesky(sigma), list(ORDERS).index(price)
    draws = np.asarray(jax.random.uniform(key, (num_starts, num_angles + dim), sigma.dtype, -1.0, 1.0))

    def local_search(draw: np.ndarray) -> OptimizeResult:
        return minimize(
            lambda x: jax.tree.map(np.float64, _negative_log_price(x, root, which)),
            np.concatenate([draw[:num_angles], log_kappa * (0.5 + 0.05 * draw[num_angles:])]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, None)] * num_angles + [(0.0, log_kappa)] * dim,
            options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10},
        )

    best = min(map(local_search, draws), key=lambda search: search.fun)
    factor = _geometry_factor(best.x, dim)
    H = factor @ factor.T
    return dim / jnp.trace(H) * H


@partial(jax.jit, static_argnums=1)
def _geometry_factor(x: jax.Array, dim: int) -> jax.Array:
    """A factor A of H = AAᵀ from the entries of S above the diagonal and log h."""
    num_angles = dim * (dim - 1) // 2
    upper = jnp.zeros((dim, dim), x.dtype).at[jnp.triu_indices(dim, 1)].set(x[:num_angles])
    skew, identity = upper - upper.T, jnp.eye(dim, dtype=x.dtype)
    return jnp.linalg.solve(identity - skew, identity + skew) * jnp.exp(0.5 * x[num_angles:])


@jax.jit
@jax.value_and_grad
def _negative_log_price(x: jax.Array, root: jax.Array, which: int) -> jax.Array:
    """The log M_r − log M₁ of one price; all prices share a program."""
    singular_values = jnp.linalg.svd(_geometry_factor(x, root.shape[0]).T @ root, compute_uv=False)
    log_y = 2.0 * jnp.log(singular_values)
    return jnp.stack([log_power_mean(log_y, order) for order in ORDERS.values()])[which] - log_power_mean(log_y, 1.0)
