"""Which covariance suits a quadratic geometry H, what any other one costs, and what no marginal can tell.

States z with covariance Σ have the budget E[zᵀHz] = tr(HΣ) = c. In the coordinates H^{1/2}z their covariance is
Y = H^{1/2}ΣH^{1/2}, and its eigenvalues y tell all: with the power means M_r = (mean yʳ)^{1/r} the budget is d·M₁, and
every price below compares M₁ with an M_r of lower order r. By the power-mean inequality M_r ≤ M₁ with equality only for
Y ∝ I, that is Σ = (c/d)H⁻¹: one proof for all prices.

References: Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107; Hardy, Littlewood & Pólya, "Inequalities".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hamjepa_jax.stats.positive_definite import (
    orthogonal,
    positive_definite,
    require_within,
    spectral_function,
    square_root,
)
from hamjepa_jax.stats.power_means import ORDERS, price_of_spectrum


class Coupling(NamedTuple):
    """How z' depends on z: z' = predictor·z + noise, the noise Gaussian and independent of z.

    Attributes:
        predictor: the best predictor E[z' | z] of z' (D, D), which acts on columns.
        noise_covariance: covariance (D, D) of what no predictor can know.
    """

    predictor: jax.Array
    noise_covariance: jax.Array


def optimal_covariance(H: jax.Array, c: float) -> jax.Array:
    """The covariance of the law with the most entropy among all of the budget E[zᵀHz] = c, Σ* = (c/d)H⁻¹.

    The law itself is N(0, Σ*). No other covariance of this budget has so large a smallest variance, nor so small a mean
    inverse variance, in the coordinates H^{1/2}z.

    Args:
        H: the geometry, symmetric positive definite (d, d).
        c: budget, positive.

    Returns:
        A covariance (d, d).

    Raises:
        ValueError: if an argument is not as described.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107; Cover & Thomas, "Elements of Information
        Theory", section 12.1.
    """
    H = positive_definite("H", H)
    require_within("c", c, above=0)
    inverse = jnp.linalg.inv(H)
    return 0.5 * c / H.shape[0] * (inverse + inverse.T)


def isotropic_covariance(H: jax.Array, c: float) -> jax.Array:
    """The isotropic covariance of the budget tr(HΣ) = c, Σ = (c/tr H)·I.

    Args:
        H: the geometry, symmetric positive definite (d, d).
        c: budget, positive.

    Returns:
        A covariance (d, d).

    Raises:
        ValueError: if an argument is not as described.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    H = positive_definite("H", H)
    require_within("c", c, above=0)
    return c / jnp.trace(H) * jnp.eye(H.shape[0], dtype=H.dtype)


def prices(sigma: jax.Array, H: jax.Array) -> dict[str, jax.Array]:
    """What a covariance Σ costs under the geometry H, against the optimum (c/d)H⁻¹ of the same budget c = tr(HΣ).

    With the eigenvalues y of H^{1/2}ΣH^{1/2} and their power means M_r:

    - entropy: (d/2)·log(M₁/M₀), entropy in nats that N(0, Σ) lacks; free is 0;
    - worst_direction: M₁/M₋∞, the largest uᵀΣ*u/uᵀΣu over directions u; free is 1;
    - inverse_variance: M₁/M₋₁, the mean of 1/y as a multiple of that of the optimum; free is 1.

    None depends on the scales of Σ and H, and each is free only for Σ ∝ H⁻¹.

    Args:
        sigma: covariance Σ, symmetric positive definite (d, d).
        H: the geometry, symmetric positive definite (d, d).

    Returns:
        {"entropy", "worst_direction", "inverse_variance"}, scalars.

    Raises:
        ValueError: if an argument is not as described.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    sigma = positive_definite("sigma", sigma)
    H = positive_definite("H", H, dim=sigma.shape[0])
    # Of any factors H = AAᵀ and Σ = BBᵀ the squared singular values of AᵀB are y, with twice as many digits as ΣH has.
    factors = jnp.linalg.cholesky(H).T @ jnp.linalg.cholesky(sigma)
    log_y = 2.0 * jnp.log(jnp.linalg.svd(factors, compute_uv=False))
    return {name: price_of_spectrum(log_y, name) for name in ORDERS}


def price_of_isotropy(H: jax.Array) -> dict[str, jax.Array]:
    """What an isotropic covariance costs under the geometry H, the `prices` of I.

    (d/2)·log(AM/GM) with the arithmetic and geometric means of H's eigenvalues; tr H/(d·λmin); tr H·tr H⁻¹/d².

    Args:
        H: the geometry, symmetric positive definite (d, d).

    Returns:
        {"entropy", "worst_direction", "inverse_variance"}, scalars: in nats, and twice a factor.

    Raises:
        ValueError: if H is not as described.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    log_eigenvalues = jnp.log(jnp.linalg.eigvalsh(positive_definite("H", H)))
    return {name: price_of_spectrum(log_eigenvalues, name) for name in ORDERS}


def least_price_of_isotropy(dim: int, condition_number: float) -> dict[str, jax.Array]:
    """The smallest price of isotropy that any geometry of a condition number κ has.

    log((1 + κ)/(2√κ)); (d − 1 + κ)/d; ((d − 2 + √κ + 1/√κ)/d)². All are above their free values 0, 1, 1 for κ > 1:
    isotropy is free only for H ∝ I. For H with the eigenvalues 1 and κ they are attained where all others equal
    (1 + κ)/2, 1 and √κ.

    Args:
        dim: dimension d, at least 2.
        condition_number: κ = λmax/λmin, at least 1.

    Returns:
        {"entropy", "worst_direction", "inverse_variance"}, scalars: in nats, and twice a factor.

    Raises:
        ValueError: if an argument is not as described.
    """
    if dim < 2:
        raise ValueError(f"dim: must be at least 2, got {dim}")
    require_within("condition_number", condition_number, least=1)
    kappa = jnp.asarray(condition_number, float)
    return {
        "entropy": jnp.log1p(kappa) - jnp.log(2.0) - 0.5 * jnp.log(kappa),
        "worst_direction": (dim - 1 + kappa) / dim,
        "inverse_variance": jnp.square((dim - 2 + jnp.sqrt(kappa) + 1 / jnp.sqrt(kappa)) / dim),
    }


def worst_geometry(sigma: jax.Array, condition_number: float, *, price: str = "entropy") -> jax.Array:
    """The geometry under which a fixed covariance Σ costs most, among all of condition number at most κ.

    H = V diag(κ, …, κ, 1, …, 1) Vᵀ with V the eigenvectors of Σ, and κ on the m directions of largest variance: the
    optimum for this H has its variances in the reversed order. For `worst_direction` m is d − 1; for the other prices
    it is the best of 1, …, d − 1.

    Every price is a symmetric convex function of log y, and so Schur-convex. For given eigenvalues h of H and s of Σ,
    log y is majorised by log h↓ + log s↓, so sharing eigenvectors in the same order costs most; and in log h a convex
    function has its maximum over the cube [0, log κ]ᵈ at a corner.

    Args:
        sigma: covariance Σ, symmetric positive definite (d, d).
        condition_number: κ, at least 1.
        price: which of `prices` is to be largest.

    Returns:
        The geometry H (d, d), scaled to tr H = d.

    Raises:
        ValueError: if an argument is not as described.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107; Marshall, Olkin & Arnold, "Inequalities: Theory
        of Majorization and Its Applications", section 9.H (Gel'fand & Naimark).
    """
    sigma = positive_definite("sigma", sigma)
    require_within("condition_number", condition_number, least=1)
    log_kappa = jnp.log(jnp.asarray(condition_number, sigma.dtype))
    dim = sigma.shape[0]
    variances, eigenvectors = jnp.linalg.eigh(sigma)
    # Row m has m large eigenvalues, at the end as the variances are in ascending order. In one dimension all is free.
    num_large = jnp.arange(1, max(dim, 2))
    log_h_MxD = jnp.where(jnp.arange(dim) >= dim - num_large[:, None], log_kappa, 0.0)
    worst = jnp.argmax(price_of_spectrum(log_h_MxD + jnp.log(variances), price))
    eigenvalues = jnp.exp(log_h_MxD[worst])
    return (eigenvectors * (eigenvalues / jnp.mean(eigenvalues))) @ eigenvectors.T


def coupling(sigma: jax.Array, rotation: jax.Array, rho: float) -> Coupling:
    """A coupling that every orthogonal U gives, z' = ρΣ^{1/2}UΣ^{-1/2}z + √(1 − ρ²)·Σ^{1/2}ε with ε ~ N(0, I).

    If z has the covariance Σ then so has z', as AΣAᵀ + (1 − ρ²)Σ = Σ for the predictor A = ρΣ^{1/2}UΣ^{-1/2}: the
    marginals do not tell which U it was.

    Args:
        sigma: covariance Σ of both marginals, symmetric positive definite (D, D).
        rotation: U, orthogonal (D, D).
        rho: correlation ρ in [−1, 1]; at 1 z' is a function of z.

    Returns:
        The predictor A and the covariance of the noise, both (D, D).

    Raises:
        ValueError: if an argument is not as described.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    sigma = positive_definite("sigma", sigma)
    rotation = orthogonal("rotation", rotation, dim=sigma.shape[0])
    require_within("rho", rho, least=-1, most=1)
    predictor = rho * square_root(sigma) @ rotation @ spectral_function(sigma, jax.lax.rsqrt)
    return Coupling(predictor, (1.0 - rho**2) * sigma)


def sample_pairs(
    key: jax.Array, sigma: jax.Array, rotation: jax.Array, rho: float, num: int
) -> tuple[jax.Array, jax.Array]:
    """Draws pairs (z, z') of a coupling of Gaussian marginals N(0, Σ), see `coupling`.

    Args:
        key: a typed PRNG key.
        sigma: covariance Σ, symmetric positive definite (D, D).
        rotation: U, orthogonal (D, D).
        rho: correlation ρ in [−1, 1].
        num: number N of pairs.

    Returns:
        z and z', both (N, D).

    Raises:
        ValueError: if an argument is not as described.
    """
    predictor = coupling(sigma, rotation, rho).predictor
    z_NxD, noise_NxD = jax.random.normal(key, (2, num, predictor.shape[0]), predictor.dtype) @ square_root(
        positive_definite("sigma", sigma)
    )
    return z_NxD, z_NxD @ predictor.T + jnp.sqrt(1.0 - jnp.square(rho)) * noise_NxD


def irreducible_risk(sigma: jax.Array, rho: float) -> jax.Array:
    """What the best predictor of a coupling leaves, E‖z' − Az‖² = (1 − ρ²)·tr Σ.

    Args:
        sigma: covariance Σ, symmetric positive definite (D, D).
        rho: correlation ρ in [−1, 1].

    Returns:
        A scalar.

    Raises:
        ValueError: if an argument is not as described.
    """
    require_within("rho", rho, least=-1, most=1)
    return (1.0 - rho**2) * jnp.trace(positive_definite("sigma", sigma))


def excess_risk(sigma: jax.Array, rotation: jax.Array, wrong_rotation: jax.Array, rho: float) -> jax.Array:
    """What it costs to predict with another rotation U' than the coupling's U, E‖A'z − Az‖² = ρ²·‖Σ^{1/2}(U' − U)‖².

    The norm is Frobenius's. It equals 2ρ²·(tr Σ − tr(ΣU'Uᵀ)): for U'Uᵀ a rotation by the angle φ in the plane of two
    coordinates i and j, 2ρ²·(1 − cos φ)·(Σᵢᵢ + Σⱼⱼ).

    Args:
        sigma: covariance Σ, symmetric positive definite (D, D).
        rotation: U, orthogonal (D, D).
        wrong_rotation: U', orthogonal (D, D).
        rho: correlation ρ in [−1, 1].

    Returns:
        A scalar, which adds to the `irreducible_risk`.

    Raises:
        ValueError: if an argument is not as described.
    """
    sigma = positive_definite("sigma", sigma)
    rotation = orthogonal("rotation", rotation, dim=sigma.shape[0])
    wrong_rotation = orthogonal("wrong_rotation", wrong_rotation, dim=sigma.shape[0])
    require_within("rho", rho, least=-1, most=1)
    return rho**2 * jnp.sum(jnp.square(square_root(sigma) @ (wrong_rotation - rotation)))


def gibbs_covariance(H: jax.Array, c: float) -> jax.Array:
    """The covariance of the Gibbs law exp(−E/T) of the lift E(q, p) = ½qᵀHq + ½‖p‖² at the temperature T = c/d.

    Positions and momenta are independent, q ~ N(0, (c/d)H⁻¹) and p ~ N(0, (c/d)I): the `optimal_covariance` is that of
    thermal equilibrium.

    Args:
        H: the geometry, symmetric positive definite (d, d).
        c: budget of q under H, positive.

    Returns:
        The covariance (2d, 2d) of [q ; p].

    Raises:
        ValueError: if an argument is not as described.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    sigma_q = optimal_covariance(H, c)
    dim = sigma_q.shape[0]
    return jax.scipy.linalg.block_diag(sigma_q, c / dim * jnp.eye(dim, dtype=sigma_q.dtype))


def lift_flow(H: jax.Array, time: float) -> jax.Array:
    """The exact flow of the lift ½qᵀHq + ½‖p‖², S = [[cos ωt, ω⁻¹ sin ωt], [−ω sin ωt, cos ωt]] with ω = H^{1/2}.

    S is symplectic and leaves the Gibbs law unchanged, SΣSᵀ = Σ. So U = Σ^{-1/2}SΣ^{1/2} is orthogonal, and the flow is
    the predictor of a `coupling` with ρ = 1.

    Args:
        H: the geometry, symmetric positive definite (d, d).
        time: time t, in units of 1/ω.

    Returns:
        S (2d, 2d), which acts on columns [q ; p].

    Raises:
        ValueError: if H is not as described, or the time is not finite.

    References:
        Hairer, Lubich & Wanner, "Geometric Numerical Integration", section I.1.
    """
    require_within("time", time)
    eigenvalues, eigenvectors = jnp.linalg.eigh(positive_definite("H", H))
    omega = jnp.sqrt(eigenvalues)
    cos, sin = jnp.cos(omega * time), jnp.sin(omega * time)
    blocks = ((cos, sin / omega), (-omega * sin, cos))
    return jnp.block([[(eigenvectors * block) @ eigenvectors.T for block in row] for row in blocks])
