import numpy as np
import pytest

from hamjepa_jax.evaluation.knn import knn_accuracy


def angles(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_votes_by_hand():
    # The query at 0°: nearest is class 1, then two of class 0, then class 2.
    gallery, labels = angles(5, 10, 15, 40), np.array([1, 0, 0, 2])
    for label, top1 in ((0, [0, 1, 1]), (1, [1, 0, 0])):
        accuracy = knn_accuracy(gallery, labels, angles(0), np.array([label]), ks=(1, 3, 4), num_classes=3)
        assert accuracy["k"] == [1, 3, 4]
        assert accuracy["top1"] == top1


def test_ties_go_to_the_lowest_class():
    gallery, labels = angles(5, 10), np.array([2, 1])
    accuracy = knn_accuracy(gallery, labels, angles(0, 0), np.array([1, 2]), ks=(2,), num_classes=3)
    assert accuracy["top1"] == [0.5]
    only_class_1 = knn_accuracy(gallery, labels, angles(0), np.array([1]), ks=(2,), num_classes=3)
    assert only_class_1["top1"] == [1.0]


def test_similarity_is_the_cosine():
    gallery, labels = angles(0, 30) * np.array([[0.1], [100.0]], np.float32), np.array([0, 1])
    accuracy = knn_accuracy(gallery, labels, 7 * angles(10), np.array([0]), ks=(1,), num_classes=2)
    assert accuracy["top1"] == [1.0]


def test_top5_counts_the_five_classes_with_most_votes():
    generator = np.random.default_rng(0)
    gallery, labels = generator.normal(size=(300, 4)).astype(np.float32), generator.integers(10, size=300)
    queries, query_labels = generator.normal(size=(700, 4)).astype(np.float32), generator.integers(10, size=700)
    accuracy = knn_accuracy(gallery, labels, queries, query_labels, ks=(20,), num_classes=10)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    neighbours = labels[np.argsort(-(unit[0] @ unit[1].T), axis=1)[:, :20]]
    votes = np.stack([np.bincount(row, minlength=10) for row in neighbours])
    ranking = np.argsort(-votes, axis=1, kind="stable")
    assert accuracy["top1"] == pytest.approx([np.mean(ranking[:, 0] == query_labels)])
    assert accuracy["top5"] == pytest.approx([np.mean(np.any(ranking[:, :5] == query_labels[:, None], axis=1))])


def test_neighbours_beyond_the_gallery_are_left_out():
    gallery, labels = angles(0, 90), np.array([0, 1])
    assert knn_accuracy(gallery, labels, gallery, labels, ks=(1, 5), num_classes=2)["k"] == [1]
    with pytest.raises(ValueError, match="at most the gallery's 2 examples"):
        knn_accuracy(gallery, labels, gallery, labels, ks=(5,), num_classes=2)
