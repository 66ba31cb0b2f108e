"""How frozen features lie in space, in numbers and histograms: directions, norms, normality, and q against p."""

import numpy as np

from hamjepa_jax.evaluation import gaussianity
from hamjepa_jax.evaluation.spectra import norms, random_pair_cosines, random_rows, row_blocks, unit_rows

UNIFORMITY_POINTS = 4096
PAIR_BLOCK = 512
COSINE_PAIRS = 20_000
COSINE_BINS = 200
BINS = 60
P_VALUE_BINS = 20
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SIGNIFICANCE = 0.05
# The least width of a histogram, as a share of its values: what differs by rounding alone is drawn as one number.
NARROWEST = 1e-3
# Directions with less than this share of the largest variance are left out of canonical correlations.
VARIANCE_CUTOFF = 1e-10


def geometry(x: np.ndarray, *, seed: int) -> dict[str, object]:
    """How features lie in space.

    Args:
        x: features (N, D), at least two.
        seed: seed of the choice of pairs, points and directions.

    Returns:
        {"uniformity"; "cosines": histogram of random pairs; "norms": histogram
        of ‖x‖/√D; "gaussianity": {"standardized", "plain"}: each {"num_directions", "num_samples", "share_rejected":
        share of directions with p < 0.05, "p_values": histogram, "statistic", "null": {"quantiles", "values"}}}.
    """
    projections = gaussianity.random_projections(x, seed=seed)
    cosines = np.clip(random_pair_cosines(x, num_pairs=COSINE_PAIRS, seed=seed), -1.0, 1.0)
    return {
        "uniformity": uniformity(x, seed=seed),
        "cosines": histogram(cosines, bins=COSINE_BINS, between=(-1.0, 1.0)),
        "norms": histogram(norms(x) / np.sqrt(x.shape[1]), bins=BINS),
        "gaussianity": {
            "standardized": _normality(projections, standardized=True),
            "plain": _normality(projections, standardized=False),
        },
    }


def state_geometry(q: np.ndarray, p: np.ndarray, *, seed: int) -> dict[str, object]:
    """How the two halves of states lie to each other.

    Args:
        q: positions (N, d), at least two.
        p: momenta (N, d).
        seed: seed of the shuffle.

    Returns:
        {"canonical_correlations", "shuffled": see `canonical_correlations`; "energy": histogram of the energy per
        dimension (‖q‖² + ‖p‖²)/(2d); "potential", "kinetic": means of ‖q‖²/(2d) and ‖p‖²/(2d)}.
    """
    potential, kinetic = (np.square(norms(x)) / (2 * x.shape[1]) for x in (q, p))
    return canonical_correlations(q, p, seed=seed) | {
        "energy": histogram(potential + kinetic, bins=BINS),
        "potential": float(potential.mean()),
        "kinetic": float(kinetic.mean()),
    }


def histogram(values: np.ndarray, *, bins: int, between: tuple[float, float] | None = None) -> dict[str, object]:
    """The distribution of numbers.

    Args:
        values: any number of them, at least one.
        bins: number of bins of equal width.
        between: the outer edges, or None for the smallest and the largest value, or a thousandth of the values around
            them where they are closer than that.

    Returns:
        {"edges": (bins + 1), "density": (bins), of integral 1, "mean", "std"}.
    """
    low, high = (values.min(), values.max()) if between is None else between
    margin = max(0.0, (NARROWEST * max(abs(low), abs(high)) - (high - low)) / 2)
    density, edges = np.histogram(values, bins=bins, range=(low - margin, high + margin), density=True)
    return {
        "edges": edges.tolist(),
        "density": density.tolist(),
        "mean": float(values.mean()),
        "std": float(values.std()),
    }


def uniformity(x: np.ndarray, *, seed: int) -> float:
    """How evenly features cover the unit sphere, log mean exp(−2‖x̂ᵢ − x̂ⱼ‖²) over pairs i ≠ j of x̂ = x/‖x‖.

    All pairs count, of a random choice of 4,096 features where there are more.

    Args:
        x: features (N, D), at least two.
        seed: seed of the choice.

    Returns:
        The uniformity: 0 where all directions are equal, log ₀F₁(D/2; 4) − 4 where they are independent and uniform.

    References:
        Wang & Isola, "Understanding Contrastive Representation Learning", 2020.
    """
    unit = unit_rows(random_rows(x, most=UNIFORMITY_POINTS, generator=np.random.default_rng(seed)))
    count = len(unit)
    # Not 1 for features that vanish.
    squares = np.sum(np.square(unit), axis=1)
    total = 0.0
    for start in range(0, count, PAIR_BLOCK):
        block = slice(start, start + PAIR_BLOCK)
        distances = squares[block, None] + squares[start:] - 2.0 * unit[block] @ unit[start:].T
        # Each pair once, and no feature with itself.
        total += np.triu(np.exp(-2.0 * distances), k=1).sum()
    return float(np.log(total / (count * (count - 1) / 2)))


def canonical_correlations(q: np.ndarray, p: np.ndarray, *, seed: int) -> dict[str, list[float]]:
    """The canonical correlations of q and p, and those that are left when the rows of p are shuffled.

    They are the singular values of Σ_qq^(−½)·Σ_qp·Σ_pp^(−½), over the directions with at least 10⁻¹⁰ of the largest
    variance. What is left after the shuffle is due to the finite number of rows alone.

    Args:
        q: features (N, d).
        p: features (N, e).
        seed: seed of the shuffle.

    Returns:
        {"canonical_correlations", "shuffled"}: descending, as many as the smaller rank, in [0, 1].

    References:
        Hotelling, "Relations Between Two Sets of Variates", 1936.
    """
    shuffled_rows = np.random.default_rng(seed).permutation(len(q))
    split = q.shape[1]
    origin_q, origin_p = np.asarray(q[0], np.float64), np.asarray(p[0], np.float64)
    total, products, shuffled_products = 0.0, 0.0, 0.0
    for rows in row_blocks(len(q)):
        joint = np.concatenate([q[rows] - origin_q, p[rows] - origin_p], axis=1)
        total += joint.sum(axis=0)
        products += joint.T @ joint
        shuffled_products += joint[:, :split].T @ (p[shuffled_rows[rows]] - origin_p)
    covariance = products - np.outer(total, total) / len(q)
    shuffled = shuffled_products - np.outer(total[:split], total[split:]) / len(q)
    whiten_q, whiten_p = _whitening(covariance[:split, :split]), _whitening(covariance[split:, split:])
    found = {"canonical_correlations": covariance[:split, split:], "shuffled": shuffled}
    return {name: _singular_values(whiten_q.T @ cross @ whiten_p) for name, cross in found.items()}


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """W (d, rank) with Wᵀ·covariance·W = I."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    kept = eigenvalues > VARIANCE_CUTOFF * max(eigenvalues[-1], 0.0)
    return vectors[:, kept] / np.sqrt(eigenvalues[kept])


def _singular_values(matrix: np.ndarray) -> list[float]:
    return np.minimum(np.linalg.svd(matrix, compute_uv=False), 1.0).tolist()


def _normality(projections: np.ndarray, *, standardized: bool) -> dict[str, object]:
    statistics, p_values = gaussianity.directional_test(projections, standardized=standardized)
    null = gaussianity.null_distribution(standardized)
    return {
        "num_directions": len(statistics),
        "num_samples": len(projections),
        "share_rejected": float(np.mean(p_values < SIGNIFICANCE)),
        "p_values": histogram(p_values, bins=P_VALUE_BINS, between=(0.0, 1.0)),
        "statistic": {"quantiles": list(QUANTILES), "values": np.quantile(statistics, QUANTILES).tolist()},
        "null": {"quantiles": list(QUANTILES), "values": np.quantile(null, QUANTILES).tolist()},
    }
