"""Size and shape of a cloud of features: covariance spectrum, effective ranks, norms, and cosines of pairs.

Features may be files mapped into memory: they are read in blocks of rows, and only a block at a time is widened to
float64 (all of them where there are fewer rows than dimensions).
"""

from collections.abc import Iterator

import numpy as np

BLOCK_ROWS = 4096
RANK_ME_EPSILON = 1e-7
# Indices, from 1, of the eigenvalues that a power law is fitted to.
POWER_LAW_RANGE = (4, 100)
NORM_EPSILON = 1e-12


def spectrum(x: np.ndarray) -> dict[str, object]:
    """The exact spectrum of the centred covariance, and what it says about the number of dimensions in use.

    With descending eigenvalues λᵢ, shares pᵢ = λᵢ/Σλ, and singular values σᵢ of the features themselves, not centred:
    effective rank exp(−Σ pᵢ log pᵢ); participation ratio (Σλ)²/Σλ²; RankMe exp(−Σ rᵢ log rᵢ) over the min(N, D) values
    rᵢ = σᵢ/Σσ + 10⁻⁷; anisotropy λ₁/Σλ; and the exponent α of the power law λᵢ ∝ i^−α, see `power_law`.

    Eigenvalues are right to about 10⁻¹⁵·λ₁; those that rounding makes negative are 0.

    Args:
        x: features (N, D), at least two.

    Returns:
        {"eigenvalues": descending (D), "effective_rank", "participation_ratio", "rank_me", "anisotropy", "alpha":
        {"exponent", "r_squared", "first", "last"}}; None for what features without any variance do not define.

    Raises:
        ValueError: for fewer than two rows.

    References:
        Roy & Vetterli, "The Effective Rank", 2007; Garrido et al., "RankMe", 2023; Razzhigaev et al., "The Shape of
        Learning: Anisotropy and Intrinsic Dimensions in Transformer-Based Models", 2024.
    """
    num_rows, dim = x.shape
    if num_rows < 2:
        raise ValueError(f"a spectrum needs at least two rows of features, got {num_rows}")
    centred, uncentred = _second_moments(x) if num_rows >= dim else _gram_matrices(x)
    eigenvalues = np.zeros(dim)
    eigenvalues[: len(centred)] = _descending_eigenvalues(centred) / (num_rows - 1)
    singular_values = np.sqrt(_descending_eigenvalues(uncentred))
    total, length = eigenvalues.sum(), singular_values.sum()
    shares = eigenvalues / total if total > 0 else None
    return {
        "eigenvalues": eigenvalues.tolist(),
        "effective_rank": None if shares is None else _exponential_entropy(shares),
        "participation_ratio": None if shares is None else float(1.0 / np.sum(shares**2)),
        "rank_me": _exponential_entropy(singular_values / length + RANK_ME_EPSILON) if length > 0 else None,
        "anisotropy": None if shares is None else float(shares[0]),
        "alpha": power_law(eigenvalues),
    }


def power_law(eigenvalues: np.ndarray) -> dict[str, float | int | None]:
    """The exponent α of λᵢ ∝ i^−α, by least squares of log λᵢ on log i, weighted by 1/i.

    The weights make every octave of indices count alike. The first three eigenvalues are left out, and those beyond the
    hundredth, as well as those that are not above rounding.

    Args:
        eigenvalues: descending (D).

    Returns:
        {"exponent", "r_squared": the share of the weighted variance of log λᵢ that is explained, "first", "last": the
        range of indices, from 1}; all None where fewer than three eigenvalues are left, and r_squared where they are
        equal.

    References:
        Stringer et al., "High-Dimensional Geometry of Population Responses in Visual Cortex", 2019; Agrawal et al.,
        "α-ReQ: Assessing Representation Quality in Self-Supervised Learning by Measuring Eigenspectrum Decay", 2022.
    """
    rounding = len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[0]
    first, last = POWER_LAW_RANGE[0], min(POWER_LAW_RANGE[1], int(np.sum(eigenvalues > rounding)))
    if last - first < 2:
        return {"exponent": None, "r_squared": None, "first": None, "last": None}
    index = np.arange(first, last + 1)
    weights = 1.0 / index
    log_index, log_eigenvalues = np.log(index), np.log(eigenvalues[first - 1 : last])
    log_index = log_index - np.average(log_index, weights=weights)
    log_eigenvalues = log_eigenvalues - np.average(log_eigenvalues, weights=weights)
    slope = np.sum(weights * log_index * log_eigenvalues) / np.sum(weights * log_index**2)
    variation = np.sum(weights * log_eigenvalues**2)
    unexplained = np.sum(weights * (log_eigenvalues - slope * log_index) ** 2)
    return {
        "exponent": float(-slope),
        "r_squared": float(1.0 - unexplained / variation) if variation > 0 else None,
        "first": first,
        "last": last,
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
    total = sum(np.sum(np.square(unit_rows(x[rows]) - unit_rows(y[rows]))) for rows in row_blocks(len(x)))
    return float(total / len(x))


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
    return np.concatenate(
        [np.sum(unit_rows(x[first[pairs]]) * unit_rows(x[second[pairs]]), axis=1) for pairs in row_blocks(num_pairs)]
    )


def norms(x: np.ndarray) -> np.ndarray:
    """Euclidean norms of features (N, D), as (N,)."""
    return np.concatenate([np.linalg.norm(np.asarray(x[rows], np.float64), axis=1) for rows in row_blocks(len(x))])


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Features (N, D) scaled to norm 1, in float64; those that vanish stay 0."""
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), NORM_EPSILON)


def random_rows(x: np.ndarray, *, most: int, generator: np.random.Generator) -> np.ndarray:
    """A random choice of rows without replacement, in float64; all of them if there are no more than `most`."""
    if len(x) <= most:
        return np.asarray(x, np.float64)
    # In their order in the file.
    return np.asarray(x[np.sort(generator.choice(len(x), most, replace=False))], np.float64)


def row_blocks(num_rows: int) -> Iterator[slice]:
    """Slices of at most 4,096 rows that together are all of them."""
    return (slice(start, min(start + BLOCK_ROWS, num_rows)) for start in range(0, num_rows, BLOCK_ROWS))


def _second_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ(x − μ)(x − μ)ᵀ and Σ xxᵀ over the rows, (D, D) each, in one pass."""
    # Sums about a row instead of the origin: a mean far from it costs no digits, and constant features have none left.
    origin = np.asarray(x[0], np.float64)
    total, products = np.zeros(len(origin)), np.zeros((len(origin), len(origin)))
    for rows in row_blocks(len(x)):
        shifted = x[rows] - origin
        total += shifted.sum(axis=0)
        products += shifted.T @ shifted
    mean = origin + total / len(x)
    centred = products - np.outer(total, total) / len(x)
    return centred, centred + len(x) * np.outer(mean, mean)


def _gram_matrices(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inner products (N, N) of the centred rows, and of the rows themselves."""
    x = np.asarray(x, np.float64)
    shifted = x - x[0]
    centred = shifted - shifted.mean(axis=0)
    return centred @ centred.T, x @ x.T


def _descending_eigenvalues(matrix: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.eigvalsh(matrix)[::-1], 0.0)


def _exponential_entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(np.exp(-np.sum(positive * np.log(positive))))
