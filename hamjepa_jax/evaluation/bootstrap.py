"""How far a score would move with other test images: percentile intervals of the bootstrap."""

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000
# Of the numbers that are drawn at a time.
BLOCK_ELEMENTS = 2**24


def interval(values: np.ndarray, *, seed: int) -> np.ndarray:
    """The 95 % interval of a mean over test images, when the images are drawn again with replacement.

    The draws depend on the seed and the number of images only, so that two methods meet the same ones.

    Args:
        values: a value of each image, such as whether it is classified correctly, (..., N).
        seed: seed of the draws.

    Returns:
        The 2.5 % and the 97.5 % quantiles of the means of 1,000 draws, (..., 2).

    References:
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    size = values.shape[-1]
    rows = np.asarray(values, np.float64).reshape(-1, size)
    generator = np.random.default_rng([seed, size])
    per_block = max(1, min(RESAMPLES, BLOCK_ELEMENTS // size))
    means = []
    for start in range(0, RESAMPLES, per_block):
        count = min(per_block, RESAMPLES - start)
        drawn = generator.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
        times_drawn = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        means.append(rows @ times_drawn.T.astype(np.float64) / size)
    quantiles = np.quantile(np.concatenate(means, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return quantiles.T.reshape(*values.shape[:-1], 2)
