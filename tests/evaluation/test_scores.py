import jax
import numpy as np
import pytest

from hamjepa_jax import sharding
from hamjepa_jax.evaluation import bootstrap, scores
from hamjepa_jax.evaluation.knn import knn_accuracy
from hamjepa_jax.evaluation.probe import Outcome, Sweep, few_label_probe, linear_probe
from hamjepa_jax.evaluation.scores import Labelled

PROBE = {"weight_decay": 1e-6, "epochs": 3, "batch_size": 32}
FEW_LABELS = {"draws": 3, "learning_rate": 1e-2, "weight_decay": 1e-6, "steps": 5, "epochs": 1, "batch_size": 256}


@pytest.fixture(scope="module")
def data():
    """Three overlapping classes, of 10, 20 and 70 training examples."""
    generator = np.random.default_rng(0)
    train_y, test_y = np.repeat(np.arange(3), (10, 20, 70)), np.arange(150) % 3
    train_x, test_x = (
        (np.eye(3, 6)[y] + 0.6 * generator.normal(size=(len(y), 6))).astype(np.float32) for y in (train_y, test_y)
    )
    return Labelled(train_x, train_y, test_x, test_y)


def mesh():
    return sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])


def test_neighbours_vote_twice_with_and_without_weights(data):
    found = scores.knn(data, num_classes=3, ks=(1, 7, 500), temperature=0.2, seed=0, mesh=mesh())
    plain, weighted = (
        knn_accuracy(*data[:4], ks=(1, 7), num_classes=3, temperature=temperature) for temperature in (None, 0.2)
    )
    assert (found["k"], found["temperature"]) == ([1, 7], 0.2)
    assert (found["top1"], found["top5"]) == (plain["top1"], plain["top5"])
    assert (found["weighted_top1"], found["weighted_top5"]) == (weighted["top1"], weighted["top5"])
    assert plain["top1"][1] != weighted["top1"][1]
    for prefix in ("", "weighted_"):
        for (low, high), accuracy in zip(found[f"{prefix}top1_interval"], found[f"{prefix}top1"], strict=True):
            assert low < accuracy < high
        assert found[f"{prefix}top5_interval"] == [[1.0, 1.0], [1.0, 1.0]]


def test_the_protocol_keeps_its_learning_rate_whatever_the_sweep_says(data, monkeypatch):
    alone = linear_probe(*data[:4], num_classes=3, learning_rate=1e-3, seed=0, **PROBE)
    settings = {"num_classes": 3, "learning_rate": 1e-3, "seed": 0, **PROBE}
    found = scores.linear(data, learning_rates=(1e-1, 1e-4, 1e-3), **settings)
    assert found["learning_rate"] == 1e-3
    assert (found["top1"], found["top5"]) == pytest.approx((alone["top1"], alone["top5"]))
    assert found["sweep"]["learning_rate"] == [1e-4, 1e-3, 1e-1]
    assert found["sweep"]["top1"][1] == found["top1"] < found["sweep"]["top1"][2]
    assert found["sweep"]["best"]["learning_rate"] == 1e-1

    # The rate is chosen by the validation images, even where test images would prefer another.
    hits = np.arange(150) < np.array([[140], [10]])
    sweep = Sweep(Outcome(hits, hits), np.array([0.2, 0.9]), np.zeros((2, 150), np.int32))
    monkeypatch.setattr(scores, "learning_rate_sweep", lambda *a, **k: sweep)
    best = scores.linear(data, learning_rates=(1e-1,), **settings)["sweep"]["best"]
    assert (best["learning_rate"], best["top1"]) == (1e-1, 10 / 150)
    assert best["top1_interval"] == bootstrap.interval(hits[1], seed=0).tolist()


def test_few_labels_by_number_and_by_fraction(data):
    found = scores.few(data, num_classes=3, labels_per_class=(2, 15), fractions=(0.02, 0.1), seed=0, **FEW_LABELS)
    assert list(found) == ["2", "15", "2%", "10%"]
    for name, told, labels in (
        ("2", {"labels_per_class": 2}, 2),
        # All of a class that has fewer.
        ("15", {"labels_per_class": 15}, [10, 15, 15]),
        # At least one example of each class.
        ("2%", {"fraction": 0.02}, [1, 1, 1]),
        ("10%", {"fraction": 0.1}, [1, 2, 7]),
    ):
        outcome = few_label_probe(*data[:4], num_classes=3, labels_per_class=labels, seed=0, **FEW_LABELS)
        of_draws = outcome.top1.mean(axis=1)
        assert found[name] == told | {
            "draws": 3,
            "top1": pytest.approx(of_draws.mean()),
            "top1_std": pytest.approx(of_draws.std(ddof=1)),
            "top1_interval": bootstrap.interval(outcome.top1.mean(axis=0), seed=0).tolist(),
            "top5": 1.0,
        }


def test_a_class_without_examples_needs_none(data):
    without = data._replace(train_x=data.train_x[10:], train_y=data.train_y[10:])
    found = scores.few(without, num_classes=3, labels_per_class=(), fractions=(0.1,), seed=0, **FEW_LABELS)
    assert found["10%"]["draws"] == 3


def test_every_part_is_asked_for_once(data):
    asked = []
    found = scores.score(
        data._replace(alignment=0.5),
        lambda name, compute: asked.append(name) or {"is": name},
        num_classes=3,
        ks=(1,),
        temperature=0.1,
        probe={},
        few_labels={},
        seed=0,
        mesh=mesh(),
    )
    assert found.pop("dim") == 6
    assert [part["is"] for part in found.values()] == asked
    assert list(found) == ["knn", "linear_probe", "few_label_probe", "spectrum", "geometry"]
    assert found["geometry"]["alignment"] == 0.5
