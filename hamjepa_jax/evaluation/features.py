"""Features: the frozen encoder's embeddings of a whole data set, in the coordinates in which they are judged."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from hamjepa_jax import sharding
from hamjepa_jax.data.loading import EvaluationBlock
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation.progress import Rows

Embed = Callable[[jax.Array], dict[str, jax.Array]]


class Features(NamedTuple):
    """What is known of the images of a data set.

    Attributes:
        coordinates: float32 (N, d) by name of the encoder and of the coordinates.
        pixels: the images themselves in [0, 1], float32 (N, P).
        labels: int32 (N,).
        example_ids: indices in the data set, int32 (N,).
    """

    coordinates: dict[str, dict[str, np.ndarray]]
    pixels: np.ndarray
    labels: np.ndarray
    example_ids: np.ndarray


def extract_features(
    encoders: Mapping[str, Embed],
    blocks: Iterable[EvaluationBlock],
    *,
    block_size: int,
    mesh: Mesh,
    kept: Rows,
) -> None:
    """Embeds images, each read once, on all devices of a mesh, and appends what comes out to files.

    Blocks have one size, so that one compilation serves them all, and the host holds two of them at a time: while the
    devices embed one, the one before is written.

    Args:
        encoders: jitted functions by name, uint8 images (B, H, W, C) split over the mesh → {coordinates: features
            (B, d)}.
        blocks: the images.
        block_size: images in a full block.
        mesh: devices that share a block.
        kept: where the features go, see `read_features`.

    Raises:
        StorageError: if they cannot be written.
        UserError: if they are not finite.
    """
    padded_size = -(-block_size // mesh.size) * mesh.size
    embedded: tuple[EvaluationBlock, dict[str, dict[str, jax.Array]]] | None = None
    for block in blocks:
        following = _embedded(encoders, block.images, padded_size, mesh) if len(block.labels) else {}
        if embedded is not None:
            kept.append(_on_host(*embedded))
        # What a worker shares does not outlive its turn.
        embedded = EvaluationBlock(block.images[:0], *(np.array(part) for part in block[1:])), following
    if embedded is not None:
        kept.append(_on_host(*embedded))


def read_features(parts: Iterable[Rows]) -> Features:
    """The features that were kept.

    Args:
        parts: what `extract_features` wrote, in order; parts after the first are read into memory.

    Returns:
        The features, of one part mapped into memory.
    """
    arrays = [part.arrays() for part in parts]
    merged = {
        name: arrays[0][name] if len(arrays) == 1 else np.concatenate([part[name] for part in arrays])
        for name in arrays[0]
    }
    plain = {name: merged.pop(name) for name in ("pixels", "labels", "example_ids")}
    coordinates: dict[str, dict[str, np.ndarray]] = {}
    for name, features in merged.items():
        encoder, on = name.split(".")
        coordinates.setdefault(encoder, {})[on] = features
        if on == "qp":
            dim = features.shape[1] // 2
            coordinates[encoder] |= {"q": features[:, :dim], "p": features[:, dim:]}
    return Features(coordinates, **plain)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of coordinates, the headline first: q, p and qp of a state or the whole vector, then all others."""
    known = ("q", "p", "qp", "whole")
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def _embedded(encoders: Mapping[str, Embed], images: np.ndarray, size: int, mesh: Mesh) -> dict[str, dict]:
    padding = np.zeros((size - len(images), *images.shape[1:]), np.uint8)
    placed = sharding.place(np.concatenate([images, padding]), sharding.batch_sharding(mesh))
    return {name: _without_halves(embed(placed)) for name, embed in encoders.items()}


def _without_halves(features: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Without q and p where they are the halves of qp."""
    return {name: x for name, x in features.items() if name not in ("q", "p") or "qp" not in features}


def _on_host(block: EvaluationBlock, embedded: Mapping[str, Mapping[str, jax.Array]]) -> dict[str, np.ndarray]:
    count = len(block.labels)
    if not count:
        # Not one image of the block can be read, and not even their shape is known.
        return {}
    features = {
        f"{name}.{on}": np.asarray(x, np.float32)[:count] for name, found in embedded.items() for on, x in found.items()
    }
    for name, x in features.items():
        if not np.all(np.isfinite(x)):
            example_id = block.example_ids[np.argmin(np.all(np.isfinite(x), axis=1))]
            raise UserError(
                f"image {example_id}: its features ({name}) are not finite, and cannot be judged; train with a lower "
                "config.optimizer.learning_rate, or take another checkpoint"
            )
    pixels = block.pixels.reshape(count, -1) / np.float32(255.0)
    return features | {"pixels": pixels, "labels": block.labels, "example_ids": block.example_ids}
