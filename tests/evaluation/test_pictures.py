import numpy as np
import pytest

from hamjepa_jax.data.loading import EvaluationLoader
from hamjepa_jax.data.sources import ArraySource
from hamjepa_jax.evaluation.pictures import LabelledFeatures, embedding_map, neighbour_sheet


def labelled(count, *, size, seed, kept=None):
    """Features along a circle, and images that show their number."""
    angle = np.random.default_rng(seed).permutation(np.linspace(0, 2 * np.pi, count, endpoint=False))
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, size, size, 1))
    labels = (angle > np.pi).astype(np.int32)
    source = ArraySource(images, labels, ("upper", "lower"))
    kept = np.arange(count) if kept is None else kept
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)[kept]
    return LabelledFeatures(x, labels[kept], kept, EvaluationLoader(source, size=size, resize=size)), angle


@pytest.mark.parametrize(("size", "shown"), [(8, 8), (128, 96)])
def test_a_sheet_has_the_images_of_the_nearest_features(size, shown):
    # An image that could not be read is missing among the features.
    gallery, gallery_angle = labelled(40, size=size, seed=0, kept=np.delete(np.arange(40), 3))
    queries, query_angle = labelled(20, size=size, seed=1)
    sheet = neighbour_sheet(gallery, queries, seed=0)
    assert sheet["query_images"].shape == (12, shown, shown, 1)
    assert sheet["neighbour_images"].shape == (12, 8, shown, shown, 1)
    which, neighbours = sheet["query_images"][:, 0, 0, 0], sheet["neighbour_images"][:, :, 0, 0, 0]
    assert len(set(which)) == 12
    assert 3 not in neighbours
    np.testing.assert_array_equal(sheet["query_labels"], queries.labels[which])
    cosines = np.cos(query_angle[which][:, None] - gallery_angle[neighbours])
    np.testing.assert_allclose(sheet["neighbour_similarities"], cosines, atol=1e-5)
    np.testing.assert_array_equal(sheet["neighbour_labels"], gallery_angle[neighbours] > np.pi)
    best = np.sort(np.cos(query_angle[which][:, None] - np.delete(gallery_angle, 3)))[:, ::-1][:, :8]
    np.testing.assert_allclose(cosines, best, atol=1e-5)


def test_a_map_keeps_apart_what_is_far_apart():
    labels = np.repeat(np.arange(3), 30)
    x = 10 * np.eye(3, 20)[labels] + np.random.default_rng(0).normal(size=(90, 20))
    found = embedding_map(x, labels, seed=0)
    for points in (found["map_pca"], found["map_points"]):
        centers = np.stack([points[found["map_labels"] == label].mean(axis=0) for label in range(3)])
        nearest = np.argmin(np.linalg.norm(points[:, None] - centers, axis=2), axis=1)
        np.testing.assert_array_equal(nearest, found["map_labels"])
    centered = x - x.mean(axis=0)
    shares = np.linalg.svd(centered, compute_uv=False) ** 2 / np.sum(centered**2)
    np.testing.assert_allclose(found["map_pca_share"], shares[:2])


def test_a_map_of_very_little_is_drawn_without_a_method():
    found = embedding_map(np.ones((2, 1)), np.arange(2), seed=0)
    assert str(found["map_method"]) == ""
    assert found["map_pca"].shape == (2, 2)
    assert found["map_pca_share"].tolist() == [0.0, 0.0]
