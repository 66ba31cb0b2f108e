"""Nearest-neighbour classification with cosine similarity, by a plain and by a weighted vote."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from hamjepa_jax import sharding

# Rows of the gallery that are on a device at a time, and queries that are compared with them at a time: the matrix of
# their similarities, 16 MiB, stays in the caches of a CPU.
GALLERY_BLOCK = 16_384
QUERY_BLOCK = 256
# Queries whose votes are counted at a time.
VOTE_BLOCK = 1024


class Neighbours(NamedTuple):
    """The nearest examples of a gallery, the most similar first.

    Attributes:
        indices: their numbers in the gallery, int32 (M, k).
        similarities: cosines with the query, (M, k).
    """

    indices: np.ndarray
    similarities: np.ndarray


class Hits(NamedTuple):
    """Which queries are classified correctly.

    Attributes:
        top1: whether the true class has the most votes, bool (K, M) for K numbers of neighbours.
        top5: whether it is among the five with most votes, bool (K, M).
    """

    top1: np.ndarray
    top5: np.ndarray


def knn_accuracy(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    ks: Sequence[int],
    num_classes: int,
    temperature: float | None = None,
    mesh: Mesh | None = None,
) -> dict[str, list]:
    """Accuracy of the vote of the k most similar training examples, for several k.

    Similarity is the cosine; a tie of votes goes to the lowest class.

    Args:
        train_x: gallery features (N, D).
        train_y: gallery labels (N,).
        test_x: query features (M, D).
        test_y: query labels (M,).
        ks: numbers k of neighbours; those larger than N are left out.
        num_classes: number of classes.
        temperature: None for a vote of equals; else neighbours are weighted, see `vote`.
        mesh: devices that share the queries, or None for one device.

    Returns:
        {"k": [...], "top1": [...], "top5": [...]}, accuracies as fractions.

    Raises:
        ValueError: if every k is larger than the gallery.
    """
    ks = fitting(ks, len(train_x))
    neighbours = nearest_neighbours(train_x, test_x, k=ks[-1], mesh=mesh)
    hits = vote(neighbours, train_y, test_y, ks=ks, num_classes=num_classes, temperature=temperature)
    return {"k": ks, "top1": hits.top1.mean(axis=1).tolist(), "top5": hits.top5.mean(axis=1).tolist()}


def fitting(ks: Sequence[int], gallery_size: int) -> list[int]:
    """Those numbers of neighbours that a gallery has, ascending.

    Raises:
        ValueError: if every k is larger than the gallery.
    """
    found = sorted(k for k in ks if k <= gallery_size)
    if not found:
        raise ValueError(f"ks: at least one k must be at most the gallery's {gallery_size} examples")
    return found


def nearest_neighbours(gallery: np.ndarray, queries: np.ndarray, *, k: int, mesh: Mesh | None = None) -> Neighbours:
    """The k examples of a gallery with the largest cosine, by blocked matrix products and a running top-k.

    Every device has its share of the queries, and sees the gallery block by block: what it holds does not grow with the
    gallery, which may be a file that is mapped into memory. Of two equally similar examples the first comes first.

    Args:
        gallery: features (N, D).
        queries: features (M, D).
        k: number of neighbours, at most N.
        mesh: devices that share the queries, or None for one device.

    Returns:
        The neighbours, on the host.
    """
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    dtype = jnp.promote_types(jax.dtypes.canonicalize_dtype(queries.dtype), jnp.float32)
    count, dim = queries.shape
    # A few queries are not made many by padding.
    block = min(QUERY_BLOCK, -(-count // mesh.size))
    share = -(-count // (mesh.size * block)) * block
    padded = np.zeros((mesh.size * share, dim), dtype)
    padded[:count] = queries
    nothing = (np.full((len(padded), k), -np.inf, dtype), np.zeros((len(padded), k), np.int32))
    placed, similarities, indices = sharding.place((padded, *nothing), sharding.batch_sharding(mesh))
    rows = min(GALLERY_BLOCK, len(gallery))
    for start in range(0, len(gallery), rows):
        part = np.zeros((rows, dim), dtype)
        size = len(gallery[start : start + rows])
        part[:size] = gallery[start : start + rows]
        more = sharding.place((part, np.int32(start), np.int32(size)), sharding.replicated(mesh))
        similarities, indices = _compare(placed, similarities, indices, *more, mesh=mesh, block=block)
    similarities, indices = sharding.whole_on_one_device((similarities, indices), mesh)
    return Neighbours(np.asarray(indices)[:count], np.asarray(similarities)[:count])


@partial(jax.jit, static_argnames=("mesh", "block"))
def _compare(queries, similarities, indices, gallery, start, size, *, mesh, block):
    """The nearest of those found so far and of another block of the gallery, of which `size` rows count."""

    def of_one_device(queries, similarities, indices, gallery, start, size):
        unit_gallery, row = _unit_rows(gallery), jnp.arange(len(gallery), dtype=jnp.int32)

        def of_some(found):
            some, their_similarities, their_indices = found
            cosines = jnp.matmul(_unit_rows(some), unit_gallery.T, precision=jax.lax.Precision.HIGHEST)
            candidates = jnp.concatenate([their_similarities, jnp.where(row < size, cosines, -jnp.inf)], axis=1)
            numbers = jnp.concatenate([their_indices, jnp.broadcast_to(start + row, cosines.shape)], axis=1)
            best, which = jax.lax.top_k(candidates, their_indices.shape[1])
            return best, jnp.take_along_axis(numbers, which, axis=1)

        parts = jax.tree.map(lambda x: x.reshape(-1, block, x.shape[1]), (queries, similarities, indices))
        return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), jax.lax.map(of_some, parts))

    split, everywhere = PartitionSpec(sharding.MESH_AXES), PartitionSpec()
    specs = {"in_specs": (split,) * 3 + (everywhere,) * 3, "out_specs": (split, split)}
    return jax.shard_map(of_one_device, mesh=mesh, **specs)(queries, similarities, indices, gallery, start, size)


def _unit_rows(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def vote(
    neighbours: Neighbours,
    labels: np.ndarray,
    own_labels: np.ndarray,
    *,
    ks: Sequence[int],
    num_classes: int,
    temperature: float | None = None,
) -> Hits:
    """The classes that the k nearest neighbours vote for, for several k.

    Every neighbour has one vote or, with a temperature T, exp(cosine / T) votes; a tie goes to the lowest class.

    Args:
        neighbours: of every query, at least as many as the largest k.
        labels: labels of the gallery (N,).
        own_labels: labels of the queries (M,).
        ks: numbers of neighbours, ascending.
        num_classes: number of classes.
        temperature: temperature T of a weighted vote, such as 0.07, or None.

    Returns:
        Which queries are classified correctly, for every k.

    References:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018.
    """
    ranks = np.concatenate(
        [
            _ranks(
                labels[neighbours.indices[start : start + VOTE_BLOCK]],
                neighbours.similarities[start : start + VOTE_BLOCK],
                own_labels[start : start + VOTE_BLOCK],
                ks,
                num_classes,
                temperature,
            )
            for start in range(0, len(own_labels), VOTE_BLOCK)
        ],
        axis=1,
    )
    return Hits(ranks < 1, ranks < 5)


def _ranks(neighbour_labels, similarities, own_labels, ks, num_classes, temperature) -> np.ndarray:
    """How many classes come before the true one in the vote, (K, M)."""
    if temperature is None:
        weights = np.ones(similarities.shape)
    else:
        # The nearest has one vote, whatever the temperature: none overflows.
        weights = np.exp((similarities - similarities[:, :1]).astype(np.float64) / temperature)
    votes_MxC, ranks, counted = np.zeros((len(own_labels), num_classes)), [], 0
    cells = np.arange(len(own_labels))[:, None] * num_classes + neighbour_labels
    for k in ks:
        new = slice(counted, k)
        cast = np.bincount(cells[:, new].ravel(), weights[:, new].ravel(), votes_MxC.size)
        votes_MxC, counted = votes_MxC + cast.reshape(votes_MxC.shape), k
        own = np.take_along_axis(votes_MxC, own_labels[:, None], axis=1)
        tied_and_lower = (votes_MxC == own) & (np.arange(num_classes) < own_labels[:, None])
        ranks.append(np.sum((votes_MxC > own) | tied_and_lower, axis=1))
    return np.stack(ranks)
