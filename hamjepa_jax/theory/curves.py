"""The numbers that the figures show."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hamjepa_jax.stats import theory
from hamjepa_jax.stats.gaussian import gaussian_divergence, gaussian_entropy
from hamjepa_jax.stats.positive_definite import spectral_function
from hamjepa_jax.stats.power_means import ORDERS
from hamjepa_jax.stats.slicing import random_directions, sigreg
from hamjepa_jax.stats.theory_search import SOFT_MINIMUM, search_optimum
from hamjepa_jax.stats.univariate import knots
from hamjepa_jax.theory.examples import random_positive_definite, random_rotation


def geometry_with_spectrum(rng: np.random.Generator, eigenvalues: np.ndarray) -> np.ndarray:
    """A matrix (d, d) of these eigenvalues (d,) and random eigenvectors."""
    eigenvectors = random_rotation(rng, len(eigenvalues))
    return (eigenvectors * eigenvalues) @ eigenvectors.T


def price_of_isotropy(*, seed: int, dim: int = 16) -> dict[str, Any]:
    """The three prices of isotropy for log-uniform spectra, in closed form and by search.

    The entropy is given as exp(2/d·nats) = M₁/M₀, so that all three are factors.

    Args:
        seed: seed of eigenvectors and searches.
        dim: dimension d.

    Returns:
        `dim`; `condition_numbers` and, by price, `closed_form`; `searched_at` and, by price, `searched`.
    """
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    condition_numbers, searched_at = np.geomspace(1.0, 1e6, 121), np.geomspace(1.0, 1e6, 7)

    def factors(prices: Mapping[str, jax.Array]) -> dict[str, float]:
        factor = {name: float(price) for name, price in prices.items()}
        return factor | {"entropy": float(np.exp(2.0 / dim * factor["entropy"]))}

    closed = [factors(theory.price_of_isotropy(np.diag(np.geomspace(1.0, k, dim)))) for k in condition_numbers]
    searched = []
    for condition_number in searched_at:
        H = geometry_with_spectrum(rng, np.geomspace(1.0, condition_number, dim))
        budget = float(np.trace(H))
        found = {
            name: search_optimum(key, H, budget, order=max(order, SOFT_MINIMUM))[0] for name, order in ORDERS.items()
        }
        # The isotropic covariance of this budget is I.
        identity, inverse = np.eye(dim), np.linalg.inv(H)
        entropy = gaussian_entropy(found["entropy"]) - gaussian_entropy(identity)
        ratio = np.linalg.eigvalsh(found["worst_direction"])[-1]
        inverse_variance = np.trace(inverse) / np.trace(np.linalg.solve(found["inverse_variance"], inverse))
        searched.append(factors({"entropy": entropy, "worst_direction": ratio, "inverse_variance": inverse_variance}))
    return {
        "dim": dim,
        "condition_numbers": condition_numbers,
        "closed_form": {name: [factor[name] for factor in closed] for name in ORDERS},
        "searched_at": searched_at,
        "searched": {name: [factor[name] for factor in searched] for name in ORDERS},
    }


def worst_geometry(*, seed: int, dim: int = 16, guessed: float = 100.0) -> dict[str, Any]:
    """The entropy that fixed marginals lack under their worst geometry, per dimension.

    Args:
        seed: seed of the guessed geometry.
        dim: dimension d.
        guessed: condition number of a guess H₀, to which one marginal is matched.

    Returns:
        `dim`, `condition_numbers`, and `prices` by name, in nats per dimension.
    """
    guess = geometry_with_spectrum(np.random.default_rng(seed), np.geomspace(1.0, guessed, dim))
    matched = theory.optimal_covariance(guess, 1.0)
    condition_numbers = np.geomspace(1.0, 1e6, 61)
    wrong, right = f"matched to a guess\n($\\kappa$ = {guessed:g})", "matched to $H$"
    prices = {wrong: [], "isotropic": [], right: []}
    for condition_number in condition_numbers:
        for name, sigma in ((wrong, matched), ("isotropic", np.eye(dim))):
            worst = theory.worst_geometry(sigma, condition_number)
            prices[name].append(float(theory.prices(sigma, worst)["entropy"]) / dim)
        known = theory.prices(theory.optimal_covariance(worst, 1.0), worst)["entropy"]
        prices[right].append(float(known) / dim)
    return {"dim": dim, "condition_numbers": condition_numbers, "prices": prices}


def entropy_gap(*, seed: int, dim: int = 8, condition_number: float = 100.0) -> dict[str, Any]:
    """What N(0, Σ) with Σ ∝ H^{-a} lacks in entropy, and its divergence from N(0, (c/d)H⁻¹), both at one budget c.

    Args:
        seed: seed of H.
        dim: dimension d.
        condition_number: that of H.

    Returns:
        `exponents` a, `gaps` and `divergences` in nats, and `dim` and `condition_number`.
    """
    H = random_positive_definite(np.random.default_rng(seed), dim, condition_number)
    optimum = theory.optimal_covariance(H, 1.0)
    gaps, divergences = [], []
    exponents = np.linspace(-0.5, 2.5, 61)
    for exponent in exponents:
        sigma = spectral_function(jnp.asarray(H), lambda eigenvalues, a=exponent: eigenvalues**-a)
        sigma = sigma / jnp.vdot(H, sigma)
        gaps.append(float(gaussian_entropy(optimum) - gaussian_entropy(sigma)))
        divergences.append(float(gaussian_divergence(sigma, optimum)))
    return {
        "exponents": exponents,
        "gaps": gaps,
        "divergences": divergences,
        "dim": dim,
        "condition_number": condition_number,
    }


def coupling_risk(
    *, seed: int, dim: int = 4, rho: float = 0.9, num_pairs: int = 2000, num_seeds: int = 20
) -> dict[str, Any]:
    """What predicting without a rotation costs when the coupling has one, and how Gaussian the second view is.

    Σ is random. The coupling rotates by an angle in the plane of the first two coordinates, of the next two, and so on.
    The predictor takes the angle for zero.

    Args:
        seed: seed of Σ and of the pairs.
        dim: dimension D, even.
        rho: correlation ρ.
        num_pairs: pairs in a sample.
        num_seeds: samples at each angle.

    Returns:
        `angles` in degrees and `closed_form`; `sampled_at` in degrees, and for each of these angles and samples
        `sampled` and `statistics`, the excess risk and SIGReg of whitened z'; `expected_statistic`; `num_pairs`. Risks
        are multiples of the irreducible risk.
    """
    rng = np.random.default_rng(seed)
    sigma = jnp.asarray(random_positive_definite(rng, dim, 10.0))
    identity, irreducible = jnp.eye(dim), float(theory.irreducible_risk(sigma, rho))
    whitening = spectral_function(sigma, jax.lax.rsqrt)
    unrotated = theory.coupling(sigma, identity, rho).predictor

    def rotation(degrees: float) -> np.ndarray:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        return np.kron(np.eye(dim // 2), [[cos, -sin], [sin, cos]])

    @jax.jit
    def measure(key: jax.Array, turned: jax.Array) -> tuple[jax.Array, jax.Array]:
        pairs_key, directions_key = jax.random.split(key)
        z_NxD, target_NxD = theory.sample_pairs(pairs_key, sigma, turned, rho, num_pairs)
        best = theory.coupling(sigma, turned, rho).predictor
        risks = [jnp.mean(jnp.sum((target_NxD - z_NxD @ map_DxD.T) ** 2, axis=-1)) for map_DxD in (unrotated, best)]
        directions = random_directions(directions_key, dim, 64, sigma.dtype)
        return (risks[0] - risks[1]) / irreducible, sigreg(target_NxD @ whitening, directions)

    angles, sampled_at = np.linspace(0.0, 180.0, 91), np.linspace(0.0, 180.0, 13)
    keys = jax.random.split(jax.random.key(seed), (len(sampled_at), num_seeds))
    rotations = jnp.asarray([rotation(degrees) for degrees in sampled_at])
    measured = [[measure(key, turned) for key in row] for row, turned in zip(keys, rotations, strict=True)]
    sampled, statistics = np.moveaxis(np.asarray(measured), -1, 0)
    _, weights, phi = knots(3.0, 17, "gaussian")
    return {
        "angles": angles,
        "closed_form": [float(theory.excess_risk(sigma, rotation(a), identity, rho)) / irreducible for a in angles],
        "sampled_at": sampled_at,
        "sampled": sampled,
        "statistics": statistics,
        "expected_statistic": float(np.sum(weights * (1.0 - phi**2))),
        "num_pairs": num_pairs,
    }
