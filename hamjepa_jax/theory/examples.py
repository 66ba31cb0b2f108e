"""Random examples on which the statements are checked."""

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from hamjepa_jax.stats.power_means import ORDERS
from hamjepa_jax.stats.theory_search import SOFT_MINIMUM, search_optimum

SEARCH_ORDERS = ORDERS | {"worst_direction": SOFT_MINIMUM}
# Of the random covariances, whatever the geometry is.
CONDITION_NUMBER_OF_SIGMA = 50.0


@dataclass(frozen=True, eq=False)
class Example:
    """What a statement is checked on.

    Attributes:
        H: a geometry (d, d).
        condition_number: that of H.
        sigma: a covariance (d, d) that shares nothing with H but the budget.
        c: the budget tr(HΣ).
        rotation: U, orthogonal (d, d).
        wrong_rotation: U', orthogonal (d, d).
        rho: correlation of the coupling.
        key: a typed PRNG key, for searches.
    """

    H: np.ndarray
    condition_number: float
    sigma: np.ndarray
    c: float
    rotation: np.ndarray
    wrong_rotation: np.ndarray
    rho: float
    key: jax.Array

    @cached_property
    def optima(self) -> dict[str, np.ndarray]:
        """The covariance of this budget that a search found to have the least price, by price."""
        return {
            price: np.asarray(search_optimum(self.key, self.H, self.c, order=order)[0])
            for price, order in SEARCH_ORDERS.items()
        }

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Views (z, z') made as the coupling is defined, from z and ε of exactly uncorrelated unit second moments."""
        dim = len(self.sigma)
        rows = math.sqrt(4 * dim) * np.linalg.qr(np.random.default_rng(dim).normal(size=(4 * dim, 2 * dim)))[0]
        whitened_NxD, noise_NxD = rows[:, :dim], rows[:, dim:]
        target_NxD = self.rho * whitened_NxD @ self.rotation.T + math.sqrt(1.0 - self.rho**2) * noise_NxD
        root = symmetric_square_root(self.sigma)
        return whitened_NxD @ root, target_NxD @ root

    @cached_property
    def least_squares(self) -> tuple[np.ndarray, float]:
        """The best linear map (d, d) from z to z', by the normal equations, and its mean squared error."""
        z_NxD, target_NxD = self.pairs
        transposed = np.linalg.solve(z_NxD.T @ z_NxD, z_NxD.T @ target_NxD)
        return transposed.T, float(np.mean(np.sum((target_NxD - z_NxD @ transposed) ** 2, axis=-1)))


def random_positive_definite(rng: np.random.Generator, dim: int, condition_number: float) -> np.ndarray:
    """A random matrix of exactly this condition number: Haar eigenvectors, log-uniform eigenvalues, and a random scale.

    Args:
        rng: source of randomness.
        dim: dimension d, at least 2.
        condition_number: λmax/λmin.

    Returns:
        A symmetric positive definite matrix (d, d).
    """
    exponents = rng.uniform(size=dim)
    exponents = (exponents - exponents.min()) / np.ptp(exponents)
    eigenvectors = random_rotation(rng, dim)
    scale = 10.0 ** rng.uniform(-2.0, 2.0)
    return scale * (eigenvectors * condition_number**exponents) @ eigenvectors.T


def random_rotation(rng: np.random.Generator, dim: int) -> np.ndarray:
    """A random orthogonal matrix (d, d) of Haar's law."""
    q, r = np.linalg.qr(rng.normal(size=(dim, dim)))
    return q * np.sign(np.diag(r))


def draw_example(seed: int, dim: int, condition_number: float) -> Example:
    """Draws an example.

    Args:
        seed: its seed.
        dim: dimension d, at least 2.
        condition_number: that of H.

    Returns:
        The example.
    """
    rng = np.random.default_rng([seed, dim, int(condition_number)])
    H = random_positive_definite(rng, dim, condition_number)
    sigma = random_positive_definite(rng, dim, CONDITION_NUMBER_OF_SIGMA)
    c = float(np.vdot(H, sigma))
    key = jax.random.key(int(rng.integers(2**31)))
    rotations = random_rotation(rng, dim), random_rotation(rng, dim)
    return Example(H, condition_number, sigma, c, *rotations, rng.uniform(0.5, 0.95), key)


def symmetric_square_root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive definite matrix (d, d), by NumPy."""
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)
    return (eigenvectors * np.sqrt(eigenvalues)) @ eigenvectors.T
