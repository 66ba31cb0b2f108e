"""Features: the frozen encoder's embeddings of a whole data set, and the coordinates in which they are judged."""

from collections.abc import Callable

import jax
import numpy as np


def extract_features(embed: Callable[[jax.Array], jax.Array], images: np.ndarray, *, batch_size: int) -> np.ndarray:
    """Embeds all images, each once, in blocks of one size, so that one compilation serves them all.

    Args:
        embed: jitted, uint8 images (B, H, W, C) → embeddings (B, D).
        images: uint8 images (N, H, W, C).
        batch_size: images in a block.

    Returns:
        Embeddings float32 (N, D), on the host.
    """
    batch_size = min(batch_size, len(images))
    blocks = []
    for start in range(0, len(images), batch_size):
        block = images[start : start + batch_size]
        padding = np.zeros((batch_size - len(block), *images.shape[1:]), images.dtype)
        blocks.append(np.asarray(embed(np.concatenate([block, padding])))[: len(block)])
    return np.concatenate(blocks)


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
