"""Real photographs for the scripts, without a download."""

import numpy as np

from hamjepa_jax.data import images


def cuts(count: int, image_size: tuple[int, int], *, seed: int = 0) -> list[np.ndarray]:
    """Random cuts out of scikit-learn's two sample photographs, shrunk to one size.

    Args:
        count: how many.
        image_size: rows and columns, no more than those of the photographs, 427×640.
        seed: seed of the cuts.

    Returns:
        uint8 images (rows, columns, 3).
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photos = load_sample_images().images
    made = []
    for i in range(count):
        photo = photos[i % len(photos)]
        enlargement = rng.uniform(1.0, min(whole / side for whole, side in zip(photo.shape, image_size, strict=False)))
        height, width = (int(side * enlargement) for side in image_size)
        top, left = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
        made.append(images.resize_to(photo[top : top + height, left : left + width], *image_size))
    return made
