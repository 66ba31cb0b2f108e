import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from hamjepa_jax.evaluation import probe
from hamjepa_jax.evaluation.probe import few_label_probe, learning_rate_sweep, linear_probe


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
    few, many = (few_label_probe(*data, labels_per_class=n, **settings).top1.mean(axis=1) for n in (1, 20))
    assert few.shape == many.shape == (8,)
    assert many.mean() > few.mean() + 0.1
    assert few.std() > many.std() > 0


def test_a_few_label_probe_sees_the_labels_that_it_may_see_and_no_others():
    train_x, train_y = clusters(6, 0)
    test_x, test_y = clusters(20, 1)
    seen = []
    fit = probe._fit

    def spy(x, y, orders_SxGxB, **settings):
        seen.append(orders_SxGxB)
        return fit(x, y, orders_SxGxB, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "_fit", spy)
        data = (train_x, train_y, test_x, test_y)
        settings = {"num_classes": 3, "labels_per_class": [1, 2, 3], "draws": 4, "batch_size": 4}
        few_label_probe(*data, **settings, steps=30, epochs=1)
        few_label_probe(*data, **settings, steps=1, epochs=7)
        few_label_probe(*data, **settings | {"batch_size": 8}, steps=5, epochs=1)
    # A batch of four of the six examples is an epoch.
    assert [orders.shape for orders in seen] == [(30, 4, 4), (7, 4, 4), (5, 4, 8)]
    orders_SxGxB, _, with_empty_places = seen
    assert np.all(np.sum(with_empty_places == probe.NO_EXAMPLE, axis=2) == 2)
    drawn = [np.unique(orders_SxGxB[:, draw]) for draw in range(4)]
    assert all(np.bincount(train_y[examples]).tolist() == [1, 2, 3] for examples in drawn)
    assert len({tuple(examples) for examples in drawn}) == 4


def test_empty_places_in_a_batch_change_nothing():
    data = (*clusters(10, 0, spread=0.6), *clusters(200, 1, spread=0.6))
    settings = {"num_classes": 3, "draws": 4, "learning_rate": 1e-2, "steps": 30, "labels_per_class": 3}
    full, with_empty_places = (few_label_probe(*data, **settings, batch_size=size).top1 for size in (9, 20))
    np.testing.assert_array_equal(full, with_empty_places)


SWEEP = {"num_classes": 3, "epochs": 4, "batch_size": 32, "seed": 3}


def test_a_sweep_is_the_same_probes_one_by_one():
    data = (*clusters(40, 0, spread=0.6), *clusters(60, 1, spread=0.6))
    rates = (1e-4, 1e-3, 1e-2)
    sweep = learning_rate_sweep(*data, learning_rates=rates, **SWEEP)
    alone = [linear_probe(*data, learning_rate=rate, **SWEEP)["top1"] for rate in rates]
    assert sweep.test.top1.mean(axis=1) == pytest.approx(alone)
    assert len(set(alone)) == 3
    assert np.argmax(sweep.validation_top1) == np.argmax(alone) == 2


def test_a_learning_rate_is_chosen_by_examples_that_the_probe_has_not_seen():
    # Labels by chance, in so many dimensions that a probe learns them by heart: what it has not seen stays at chance.
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(200, 300)).astype(np.float32), generator.integers(3, size=200)
    sweep = learning_rate_sweep(x, y, x, y, learning_rates=(1e-2,), num_classes=3, epochs=30, batch_size=50)
    assert sweep.test.top1.mean() == 1.0
    # Of the 20 that were held out.
    assert sweep.validation_top1[0] < 0.7


def test_chunks_change_nothing(monkeypatch):
    data = (*clusters(40, 0, spread=0.6), *clusters(60, 1, spread=0.6))
    fitted, score = [], probe._score
    monkeypatch.setattr(probe, "_score", lambda params, x, y: fitted.append(params) or score(params, x, y))
    copied, table = [], probe._table
    monkeypatch.setattr(probe, "_table", lambda x, y, used, rows: copied.append(len(rows)) or table(x, y, used, rows))
    whole = learning_rate_sweep(*data, learning_rates=(1e-3, 1e-2), **SWEEP)
    # All examples, and the place of none.
    assert copied == [121]
    # Two and a half of the twelve steps at a time, and a part of the test images.
    monkeypatch.setattr(probe, "CHUNK_BYTES", 5 * 16 * 6 * 4)
    parts = learning_rate_sweep(*data, learning_rates=(1e-3, 1e-2), **SWEEP)
    assert copied[1:] == [2 * 32] * 6
    np.testing.assert_array_equal(whole.test.top1, parts.test.top1)
    np.testing.assert_array_equal(whole.validation_top1, parts.validation_top1)
    for name in fitted[0]:
        np.testing.assert_allclose(fitted[0][name], fitted[2][name], rtol=1e-5, atol=1e-7)


def test_one_chunk_is_waited_for_before_the_next_is_dispatched(monkeypatch):
    events, wait, train = [], jax.block_until_ready, probe._train
    monkeypatch.setattr(jax, "block_until_ready", lambda carry: events.append("wait") or wait(carry))
    monkeypatch.setattr(probe, "_train", lambda *arguments: events.append("train") or train(*arguments))
    monkeypatch.setattr(probe, "CHUNK_BYTES", 5 * 16 * 6 * 4)
    learning_rate_sweep(*clusters(40, 0), *clusters(60, 1), learning_rates=(1e-3,), **SWEEP)
    assert events == ["wait", "train"] * 6


def test_a_probe_is_layer_norm_and_adamw_with_a_cosine(monkeypatch):
    """Against the same probe written with the libraries' own parts."""
    train_x, train_y = clusters(16, 0)
    fitted = []
    monkeypatch.setattr(probe, "_score", lambda params, x, y: fitted.append(params) or probe.Outcome(y > -1, y > -1))
    settings = {"learning_rate": 3e-2, "weight_decay": 0.1, "epochs": 3, "batch_size": 16, "seed": 1}
    linear_probe(train_x, train_y, train_x, train_y, num_classes=3, **settings)

    class Probe(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.LayerNorm(epsilon=1e-5)(x))

    initial, _ = probe._initial(jax.random.key(1), 6, 3, (1, 1))
    as_linen = {
        "LayerNorm_0": {"scale": initial["scale"][0, 0], "bias": initial["offset"][0, 0]},
        "Dense_0": {"kernel": initial["kernel"][0, 0], "bias": initial["bias"][0, 0]},
    }
    order = probe._epoch_orders(48, 3, 16, np.random.default_rng(1))
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-2, len(order)), weight_decay=0.1)
    params, opt_state = as_linen, optimizer.init(as_linen)
    for batch in order:

        def loss(params, batch=batch):
            logits = Probe().apply({"params": params}, train_x[batch])
            return optax.softmax_cross_entropy_with_integer_labels(logits, train_y[batch]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
    for name, expected in (
        ("scale", params["LayerNorm_0"]["scale"]),
        ("offset", params["LayerNorm_0"]["bias"]),
        ("kernel", params["Dense_0"]["kernel"]),
        ("bias", params["Dense_0"]["bias"]),
    ):
        np.testing.assert_allclose(fitted[0][name][0, 0], expected, rtol=2e-4, atol=2e-5)


def test_too_few_labels_are_named():
    with pytest.raises(ValueError, match="labels_per_class: class 0 has only 4 examples"):
        few_label_probe(*clusters(4, 0), *clusters(4, 1), num_classes=3, labels_per_class=5, draws=1)
