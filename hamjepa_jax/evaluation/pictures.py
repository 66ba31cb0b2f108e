"""What people look at rather than read: images beside their nearest neighbours, and maps of the embedding."""

import importlib.util
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from hamjepa_jax.data import images
from hamjepa_jax.data.loading import EvaluationLoader
from hamjepa_jax.evaluation.knn import nearest_neighbours

NUM_QUERIES = 12
NUM_NEIGHBOURS = 8
# Of both sides of a picture.
MAX_SIZE = 96
MAP_POINTS = 1000
# t-SNE and UMAP begin with these principal components.
MAP_COMPONENTS = 50


class LabelledFeatures(NamedTuple):
    """Features of some images, and where the images are.

    Attributes:
        x: features (N, D).
        labels: labels (N,).
        example_ids: indices of the images in their data set, (N,).
        load: reads them.
    """

    x: np.ndarray
    labels: np.ndarray
    example_ids: np.ndarray
    load: EvaluationLoader


def neighbour_sheet(gallery: LabelledFeatures, queries: LabelledFeatures, *, seed: int) -> dict[str, np.ndarray]:
    """Some test images, drawn at random, and the training images that are most similar to them.

    Args:
        gallery: the training images.
        queries: the test images.
        seed: seed of the draw.

    Returns:
        {"query_images" uint8 (n, h, w, c), "query_labels" (n,), "neighbour_images" (n, 8, h, w, c), "neighbour_labels"
        (n, 8), "neighbour_similarities" (n, 8)}, pictures of at most 96 × 96 pixels.
    """
    count, k = min(NUM_QUERIES, len(queries.x)), min(NUM_NEIGHBOURS, len(gallery.x))
    chosen = np.sort(np.random.default_rng(seed).choice(len(queries.x), count, replace=False))
    found = nearest_neighbours(gallery.x, queries.x[chosen], k=k)
    neighbour_images = _pictures(gallery, found.indices.ravel())
    return {
        "query_images": _pictures(queries, chosen),
        "query_labels": queries.labels[chosen],
        "neighbour_images": neighbour_images.reshape(count, k, *neighbour_images.shape[1:]),
        "neighbour_labels": gallery.labels[found.indices],
        "neighbour_similarities": found.similarities,
    }


def _pictures(features: LabelledFeatures, chosen: np.ndarray) -> np.ndarray:
    block, _ = features.load(0, features.example_ids[chosen])
    side = min(MAX_SIZE, block.images.shape[1])
    return np.array([images.resize_to(image, side, side) for image in block.images])


def embedding_map(x: np.ndarray, labels: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Maps of at most 1,000 features to the plane: principal components, and UMAP where it is installed or else t-SNE.

    Args:
        x: features (N, D).
        labels: labels (N,).
        seed: seed of the choice and of the map.

    Returns:
        {"map_labels" (n,), "map_pca" (n, 2), "map_pca_share" (2,) shares of the variance, "map_method", "map_points"
        (n, 2)}.

    References:
        van der Maaten & Hinton, "Visualizing Data using t-SNE", 2008; McInnes et al., "UMAP", 2018.
    """
    chosen = np.sort(np.random.default_rng(seed).choice(len(x), min(MAP_POINTS, len(x)), replace=False))
    some = np.asarray(x[chosen], np.float64)
    left, singular_values, _ = np.linalg.svd(some - some.mean(axis=0), full_matrices=False)
    components = (left * singular_values)[:, :MAP_COMPONENTS]
    components = np.pad(components, ((0, 0), (0, max(0, 2 - components.shape[1]))))
    variances = np.pad(np.square(singular_values), (0, 2))
    found = {
        "map_labels": labels[chosen],
        "map_pca": components[:, :2].astype(np.float32),
        "map_pca_share": variances[:2] / max(variances.sum(), np.finfo(np.float64).tiny),
    }
    method, points = _neighbourhood_map(components, seed)
    return found | {"map_method": np.array(method), "map_points": points.astype(np.float32)}


def _neighbourhood_map(x: np.ndarray, seed: int) -> tuple[str, np.ndarray]:
    if importlib.util.find_spec("umap") is not None and len(x) > 15:
        from umap import UMAP

        return "umap", UMAP(random_state=seed, n_jobs=1).fit_transform(x)
    if len(x) < 4:
        return "", np.zeros((0, 2))
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    # Its threads wait for each other in a loop, for ever so long where they share the cores with other programs.
    with threadpool_limits(1, user_api="openmp"):
        return "t-SNE", TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
