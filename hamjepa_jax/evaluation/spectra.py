"""Geometry of a cloud of features: covariance spectrum, effective rank, cosines and norms."""

import numpy as np


def spectrum(x: np.ndarray) -> dict[str, object]:
    """The exact spectrum of the centred covariance, and what it says about the number of dimensions in use.

    effective rank exp(−Σ pᵢ log pᵢ) with pᵢ = λᵢ/Σλ; participation ratio (Σλ)²/Σλ².

    Args:
        x: features (N, D).

    Returns:
        {"eigenvalues": descending, "effective_rank", "participation_ratio"}.
    """
    x = np.asarray(x, np.float64)
    centered = x - x.mean(axis=0)
    singular_values = np.linalg.svd(centered, compute_uv=False)
    eigenvalues = np.zeros(x.shape[1])
    eigenvalues[: len(singular_values)] = singular_values**2 / (len(x) - 1)
    shares = eigenvalues / max(eigenvalues.sum(), np.finfo(np.float64).tiny)
    positive = shares[shares > 0]
    return {
        "eigenvalues": eigenvalues.tolist(),
        "effective_rank": float(np.exp(-np.sum(positive * np.log(positive)))),
        "participation_ratio": float(1.0 / max(np.sum(shares**2), np.finfo(np.float64).tiny)),
    }


def alignment(x: np.ndarray, y: np.ndarray) -> float:
    """The mean squared distance of paired features on the unit sphere, mean ‖x/‖x‖ − y/‖y‖‖².

    Args:
        x: features (N, D).
        y: features (N, D), row i the partner of row i of x.

    Returns:
        The alignment, from 0 (equal directions) to 4 (opposite ones).

    References:
        Wang & Isola, "Understanding Contrastive Representation Learning", 2020.
    """
    return float(np.mean(np.sum(np.square(_unit_rows(x) - _unit_rows(y)), axis=1)))


def random_pair_cosines(x: np.ndarray, *, num_pairs: int, seed: int) -> np.ndarray:
    """Cosines of random pairs of different features, not centred.

    Args:
        x: features (N, D), at least two.
        num_pairs: number of pairs.
        seed: seed of the draw.

    Returns:
        Cosines (num_pairs,).
    """
    generator = np.random.default_rng(seed)
    first = generator.integers(len(x), size=num_pairs)
    second = (first + generator.integers(1, len(x), size=num_pairs)) % len(x)
    unit = _unit_rows(x)
    return np.sum(unit[first] * unit[second], axis=1)


def norms(x: np.ndarray) -> np.ndarray:
    """Euclidean norms of features (N, D), as (N,)."""
    return np.linalg.norm(np.asarray(x, np.float64), axis=1)


def _unit_rows(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
