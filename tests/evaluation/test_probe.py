import numpy as np
import pytest

from hamjepa_jax.evaluation.probe import few_label_probe, linear_probe


def clusters(num_per_class, seed, spread=0.3):
    """Three classes around the unit vectors of a 6-dimensional space."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), num_per_class)
    centers = np.eye(3, 6)
    return (centers[labels] + spread * generator.normal(size=(len(labels), 6))).astype(np.float32), labels


def test_probe_separates_what_is_linearly_separable():
    data = (*clusters(100, 0), *clusters(100, 1))
    scores = linear_probe(*data, num_classes=3, learning_rate=1e-2, batch_size=50)
    assert scores["top1"] > 0.9
    assert scores["top5"] == 1.0


def test_probe_learns_nothing_from_shuffled_labels():
    train_x, train_y = clusters(100, 0)
    shuffled = np.random.default_rng(0).permutation(train_y)
    scores = linear_probe(train_x, shuffled, *clusters(100, 1), num_classes=3, batch_size=50)
    assert scores["top1"] < 0.6


def test_more_labels_help_the_few_label_probe():
    data = (*clusters(50, 0, spread=0.6), *clusters(200, 1, spread=0.6))
    settings = {"num_classes": 3, "draws": 8, "learning_rate": 1e-2, "steps": 200}
    few, many = (few_label_probe(*data, labels_per_class=n, **settings) for n in (1, 20))
    assert many["top1"] > few["top1"] + 0.1
    assert few["top1_std"] > many["top1_std"] > 0
    assert few["labels_per_class"] == 1


def test_too_few_labels_are_named():
    with pytest.raises(ValueError, match="labels_per_class: class 0 has only 4 examples"):
        few_label_probe(*clusters(4, 0), *clusters(4, 1), num_classes=3, labels_per_class=5, draws=1)
