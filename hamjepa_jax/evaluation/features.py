"""Features: the frozen encoder's embeddings of a whole data set, in the coordinates in which they are judged."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from hamjepa_jax.data.loading import EvaluationBlock


class Features(NamedTuple):
    """What is known of the images of a data set.

    Attributes:
        coordinates: float32 (N, d) by name of the encoder and of the coordinates.
        pixels: the images themselves in [0, 1], float32 (N, P).
        labels: int32 (N,).
    """

    coordinates: dict[str, dict[str, np.ndarray]]
    pixels: np.ndarray
    labels: np.ndarray


def extract_features(
    encoders: Mapping[str, Callable[[jax.Array], dict[str, jax.Array]]],
    blocks: Iterable[EvaluationBlock],
    *,
    block_size: int,
) -> Features:
    """Embeds all images, each read once, in blocks of one size, so that one compilation serves them all.

    Args:
        encoders: jitted functions by name, uint8 images (B, H, W, C) → {coordinates: features (B, d)}.
        blocks: the images.
        block_size: images in a full block.

    Returns:
        The features, on the host.
    """
    parts = {name: [] for name in encoders}
    pixels, labels = [], []
    for block in blocks:
        count = len(block.labels)
        padding = np.zeros((block_size - count, *block.images.shape[1:]), np.uint8)
        images = np.concatenate([block.images, padding])
        for name, embed in encoders.items():
            parts[name].append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], embed(images)))
        pixels.append(block.pixels.reshape(count, -1) / np.float32(255.0))
        labels.append(block.labels.copy())
    return Features(
        {
            name: {on: np.concatenate([block[on] for block in found]) for on in found[0]}
            for name, found in parts.items()
        },
        np.concatenate(pixels),
        np.concatenate(labels),
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Names of coordinates, the headline first: q, p and qp of a state or the whole vector, then all others."""
    known = ("q", "p", "qp", "whole")
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))
