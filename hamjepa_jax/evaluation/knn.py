"""Nearest-neighbour classification with cosine similarity and an unweighted vote."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

QUERY_BLOCK = 512


def knn_accuracy(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    ks: Sequence[int],
    num_classes: int,
) -> dict[str, list]:
    """Accuracy of the majority vote of the k most similar training examples, for several k.

    Similarity is the cosine; a tie of votes goes to the lowest class.

    Args:
        train_x: gallery features (N, D).
        train_y: gallery labels (N,).
        test_x: query features (M, D).
        test_y: query labels (M,).
        ks: numbers k of neighbours; those larger than N are left out.
        num_classes: number of classes.

    Returns:
        {"k": [...], "top1": [...], "top5": [...]}, accuracies as fractions.

    Raises:
        ValueError: if every k is larger than the gallery.
    """
    ks = sorted(k for k in ks if k <= len(train_x))
    if not ks:
        raise ValueError(f"ks: at least one k must be at most the gallery's {len(train_x)} examples")
    gallery = _unit_rows(train_x)
    labels = jnp.asarray(train_y)
    hits = np.zeros((2, len(ks)))
    for start in range(0, len(test_x), QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        ranks = _rank_of_true_class(
            gallery, labels, _unit_rows(test_x[block]), jnp.asarray(test_y[block]), tuple(ks), num_classes
        )
        hits += np.stack([np.sum(ranks < 1, axis=1), np.sum(ranks < 5, axis=1)])
    top1, top5 = hits / len(test_x)
    return {"k": list(ks), "top1": top1.tolist(), "top5": top5.tolist()}


def _unit_rows(x: np.ndarray) -> jax.Array:
    x = jnp.asarray(x)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnums=(4, 5))
def _rank_of_true_class(gallery, labels, queries, query_labels, ks, num_classes):
    """How many classes come before the true one in the vote, (len(ks), M)."""
    _, neighbours = jax.lax.top_k(queries @ gallery.T, ks[-1])
    votes = jnp.cumsum(jax.nn.one_hot(labels[neighbours], num_classes, dtype=jnp.int32), axis=1)
    votes_kxMxC = jnp.moveaxis(votes[:, jnp.asarray(ks) - 1], 1, 0)
    own_votes = jnp.take_along_axis(votes_kxMxC, query_labels[None, :, None], axis=-1)
    ahead = votes_kxMxC > own_votes
    tied_and_lower = (votes_kxMxC == own_votes) & (jnp.arange(num_classes) < query_labels[:, None])
    return jnp.sum(ahead | tied_and_lower, axis=-1)
