import jax
import numpy as np
import pytest

from hamjepa_jax import sharding
from hamjepa_jax.evaluation import knn
from hamjepa_jax.evaluation.knn import Neighbours, knn_accuracy, nearest_neighbours, vote


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
    accuracy = knn_accuracy(gallery, labels, queries, query_labels, ks=(5, 10, 20), num_classes=10)
    for i, k in enumerate((5, 10, 20)):
        neighbours = labels[exact(gallery, queries, k)[0]]
        votes = np.stack([np.bincount(row, minlength=10) for row in neighbours])
        ranking = np.argsort(-votes, axis=1, kind="stable")
        assert accuracy["top1"][i] == pytest.approx(np.mean(ranking[:, 0] == query_labels))
        assert accuracy["top5"][i] == pytest.approx(np.mean(np.any(ranking[:, :5] == query_labels[:, None], axis=1)))


def test_neighbours_beyond_the_gallery_are_left_out():
    gallery, labels = angles(0, 90), np.array([0, 1])
    assert knn_accuracy(gallery, labels, gallery, labels, ks=(1, 5), num_classes=2)["k"] == [1]
    with pytest.raises(ValueError, match="at most the gallery's 2 examples"):
        knn_accuracy(gallery, labels, gallery, labels, ks=(5,), num_classes=2)


def test_near_neighbours_weigh_more():
    # One neighbour of class 1 close by, two of class 0 further away.
    neighbours = Neighbours(np.array([[0, 1, 2]]), np.array([[0.9, 0.8, 0.8]]))
    labels = np.array([1, 0, 0])

    def hits(temperature):
        return vote(neighbours, labels, np.array([1]), ks=(3,), num_classes=6, temperature=temperature).top1[0, 0]

    # exp(0.1 / T) > 2 where T < 0.1 / log 2 = 0.144.
    assert [bool(hits(t)) for t in (None, 0.15, 0.14, 1e-3)] == [False, False, True, True]


def exact(gallery, queries, k):
    unit = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    cosines = unit[0] @ unit[1].T
    indices = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return indices, np.take_along_axis(cosines, indices, axis=1)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_blocks_and_devices_change_nothing(monkeypatch, num_devices):
    # Neither the gallery nor the queries are a multiple of their blocks or of the devices.
    monkeypatch.setattr(knn, "GALLERY_BLOCK", 40)
    monkeypatch.setattr(knn, "QUERY_BLOCK", 7)
    generator = np.random.default_rng(0)
    gallery, queries = (generator.normal(size=(n, 6)).astype(np.float32) for n in (90, 61))
    mesh = sharding.make_mesh(data=num_devices, fsdp=1, devices=jax.devices()[:num_devices])
    # So many that some are at more than a right angle, where the filling of the last block would be nearer.
    found = nearest_neighbours(gallery, queries, k=60, mesh=mesh)
    indices, cosines = exact(gallery, queries, 60)
    assert np.mean(cosines[:, -1] < 0) > 0.5
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-6)


def test_of_equals_the_first_comes_first_across_blocks(monkeypatch):
    monkeypatch.setattr(knn, "GALLERY_BLOCK", 2)
    found = nearest_neighbours(angles(20, 10, 40, 10, 10), angles(10), k=4)
    assert found.indices.tolist() == [[1, 3, 4, 0]]


def test_a_gallery_can_be_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(knn, "GALLERY_BLOCK", 16)
    gallery = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")[:, :4]
    indices, _ = exact(gallery[:, :4], gallery[:3, :4], 5)
    np.testing.assert_array_equal(nearest_neighbours(mapped, gallery[:3, :4], k=5).indices, indices)


def test_votes_do_not_depend_on_their_blocks(monkeypatch):
    generator = np.random.default_rng(0)
    neighbours = Neighbours(generator.integers(40, size=(30, 9)), np.sort(generator.random((30, 9)))[:, ::-1])
    labels, own = generator.integers(7, size=40), generator.integers(7, size=30)
    settings = {"ks": (1, 4, 9), "num_classes": 7, "temperature": 0.1}
    whole = vote(neighbours, labels, own, **settings)
    monkeypatch.setattr(knn, "VOTE_BLOCK", 4)
    for one, other in zip(whole, vote(neighbours, labels, own, **settings), strict=True):
        np.testing.assert_array_equal(one, other)
