"""Features: the frozen encoder's embeddings of a whole data set, and the coordinates in which they are judged."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from hamjepa_jax.data.loading import EvaluationBlock


class Features(NamedTuple):
    """What is known of the images of a data set.

    Attributes:
        embeddings: float32 (N, D) by name of the encoder.
        pixels: the images themselves in [0, 1], float32 (N, P).
        labels: int32 (N,).
    """

    embeddings: dict[str, np.ndarray]
    pixels: np.ndarray
    labels: np.ndarray


def extract_features(
    encoders: Mapping[str, Callable[[jax.Array], jax.Array]], blocks: Iterable[EvaluationBlock], *, block_size: int
) -> Features:
    """Embeds all images, each read once, in blocks of one size, so that one compilation serves them all.

    Args:
        encoders: jitted functions by name, uint8 images (B, H, W, C) → embeddings (B, D).
        blocks: the images.
        block_size: images in a full block.

    Returns:
        The features, on the host.
    """
    embeddings = {name: [] for name in encoders}
    pixels, labels = [], []
    for block in blocks:
        count = len(block.labels)
        padding = np.zeros((block_size - count, *block.images.shape[1:]), np.uint8)
        images = np.concatenate([block.images, padding])
        for name, embed in encoders.items():
            embeddings[name].append(np.asarray(embed(images))[:count])
        pixels.append(block.pixels.reshape(count, -1) / np.float32(255.0))
        labels.append(block.labels.copy())
    return Features(
        {name: np.concatenate(parts) for name, parts in embeddings.items()},
        np.concatenate(pixels),
        np.concatenate(labels),
    )


def coordinates(z: np.ndarray, *, split_qp: bool) -> dict[str, np.ndarray]:
    """The coordinates of an embedding, headline first: q, p and qp of a state, or the whole vector.

    Args:
        z: embeddings (N, D).
        split_qp: whether z = [q ; p].

    Returns:
        {"q": (N, d), "p": (N, d), "qp": (N, 2d)} or {"whole": (N, D)}.
    """
    if not split_qp:
        return {"whole": z}
    q, p = np.split(z, 2, axis=1)
    return {"q": q, "p": p, "qp": z}
