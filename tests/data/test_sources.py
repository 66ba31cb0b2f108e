import numpy as np
import pytest

from hamjepa_jax.data.sources import ArraySource, digits


def test_digits_are_complete_and_split_without_overlap():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1347, 450)
    assert train.images.dtype == np.uint8
    assert train.images.shape[1:] == (8, 8, 1)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert train.class_names == tuple("0123456789")
    images = np.concatenate([train.images, test.images]).reshape(1797, -1)
    assert len(np.unique(images, axis=0)) == 1797
    np.testing.assert_allclose(np.bincount(test.labels) / 450, np.bincount(train.labels) / 1347, atol=0.002)


def test_the_split_is_always_the_same():
    np.testing.assert_array_equal(digits("test").images, digits("test").images)
    example = digits("test")[7]
    assert example["image"].shape == (8, 8, 1)
    assert example["label"] == digits("test").labels[7]


def test_bad_splits_and_lengths_are_named():
    with pytest.raises(ValueError, match="split: 'validation' is unknown; known splits: train, test"):
        digits("validation")
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        ArraySource(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(3, np.int32), ("a",))
