"""Whether features are Gaussian along random directions: the Epps–Pulley test with p-values."""

from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np

from hamjepa_jax.evaluation.spectra import random_rows, unit_rows
from hamjepa_jax.stats.univariate import epps_pulley, knots

T_MAX, NUM_POINTS, WEIGHT = 3.0, 17, "gaussian"
NUM_DIRECTIONS = 256
MOST_ROWS = 10_000
NULL_DRAWS = 1_000_000
# A spread below this share of the values themselves is their rounding.
ROUNDING = 1e-12


_epps_pulley = jax.jit(partial(epps_pulley, t_max=T_MAX, num_points=NUM_POINTS, weight=WEIGHT))


class DirectionalTest(NamedTuple):
    """The outcome of a test along several directions.

    Attributes:
        statistics: Epps–Pulley statistics (K,).
        p_values: their p-values (K,).
    """

    statistics: np.ndarray
    p_values: np.ndarray


def random_projections(x: np.ndarray, *, seed: int) -> np.ndarray:
    """Features projected on 256 random unit vectors; of more than 10,000 features, a random choice.

    Args:
        x: features (N, D).
        seed: seed of the directions and of the choice.

    Returns:
        Projections (min(N, 10,000), 256).
    """
    # A stream of its own: normal features that were drawn with the same seed would be the directions themselves.
    generator = np.random.default_rng([seed, NUM_DIRECTIONS])
    directions_KxD = unit_rows(generator.normal(size=(NUM_DIRECTIONS, x.shape[1])))
    return random_rows(x, most=MOST_ROWS, generator=generator) @ directions_KxD.T


def directional_test(projections: np.ndarray, *, standardized: bool) -> DirectionalTest:
    """Tests every direction's projections for normality.

    The statistic is that of SIGReg, N·Σⱼ wⱼ·|1/N·Σₙ exp(i·tⱼ·yₙ) − exp(−tⱼ²/2)|² with 17 knots tⱼ in [0, 3]. The
    projections yₙ are compared with N(0, 1) as they are, or standardised by their own mean and (biased) standard
    deviation, and so with a Gaussian of any mean and variance. Projections that all coincide are standardised to 0, and
    rejected.

    Args:
        projections: (N, K), N samples of each of K directions.
        standardized: whether they are standardised.

    Returns:
        Statistics and p-values of the directions.

    References:
        Epps & Pulley, "A Test for Normality Based on the Empirical Characteristic Function", 1983; Baringhaus & Henze,
        "A Consistent Test for Multivariate Normality Based on the Empirical Characteristic Function", 1988.
    """
    if standardized:
        mean, deviation = projections.mean(axis=0), projections.std(axis=0)
        projections = (projections - mean) / np.where(deviation > ROUNDING * np.abs(mean), deviation, np.inf)
    statistics = np.asarray(_epps_pulley(projections), np.float64)
    return DirectionalTest(statistics, p_values(statistics, standardized=standardized))


def p_values(statistics: np.ndarray, *, standardized: bool) -> np.ndarray:
    """How likely a Gaussian sample is to have such a statistic or a larger one.

    (1 + number of draws of the null distribution that are at least as large) / (1 + number of draws), so that the
    smallest is about 10⁻⁶.

    Args:
        statistics: Epps–Pulley statistics (K,).
        standardized: whether the samples were standardised by their own mean and standard deviation.

    Returns:
        The p-values (K,).
    """
    null = null_distribution(standardized)
    at_least = len(null) - np.searchsorted(null, statistics, side="left")
    return (1 + at_least) / (1 + len(null))


@cache
def null_distribution(standardized: bool) -> np.ndarray:
    """A million draws, with a fixed seed, of the statistic's law for many Gaussian samples, Σₖ λₖχ²₁.

    The errors √N·(Cⱼ − φⱼ) and √N·Sⱼ of the empirical characteristic function at the knots become jointly Gaussian, and
    λₖ are the eigenvalues of their covariance, weighted by √(wⱼwₖ) (see `null_weights`).

    Args:
        standardized: whether the samples are standardised by their own mean and standard deviation.

    Returns:
        Draws, ascending (M,).
    """
    generator = np.random.default_rng(0)
    draws = np.zeros(NULL_DRAWS)
    for weight in null_weights(standardized):
        draws += weight * np.square(generator.standard_normal(NULL_DRAWS))
    draws.sort()
    draws.flags.writeable = False
    return draws


def null_weights(standardized: bool) -> np.ndarray:
    """The eigenvalues λₖ of the limit law Σₖ λₖχ²₁ of the statistic of Gaussian samples.

    For X ~ N(0, 1) with characteristic function φ, cosines and sines are uncorrelated, and
    Cov(cos sX, cos tX) = ½[φ(s − t) + φ(s + t)] − φ(s)φ(t), Cov(sin sX, sin tX) = ½[φ(s − t) − φ(s + t)]. An estimated
    variance takes ½s²t²φ(s)φ(t) from the first, and an estimated mean s·t·φ(s)φ(t) from the second.

    Args:
        standardized: whether the samples are standardised by their own mean and standard deviation.

    Returns:
        Eigenvalues, descending (2T).
    """
    t, w, phi = knots(T_MAX, NUM_POINTS, WEIGHT)
    s = t[:, None]
    difference, total, product = np.exp(-((s - t) ** 2) / 2), np.exp(-((s + t) ** 2) / 2), np.outer(phi, phi)
    cosines = (difference + total) / 2 - product
    sines = (difference - total) / 2
    if standardized:
        cosines -= (s * t) ** 2 / 2 * product
        sines -= s * t * product
    weights = np.sqrt(np.outer(w, w))
    eigenvalues = np.concatenate([np.linalg.eigvalsh(weights * block) for block in (cosines, sines)])
    return np.sort(np.maximum(eigenvalues, 0.0))[::-1]
