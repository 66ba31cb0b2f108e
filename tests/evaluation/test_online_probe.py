import json
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import FORKSERVER, free_port
from rich.console import Console
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from hamjepa_jax import build, build_monitoring, distributed, sharding
from hamjepa_jax.data.loading import EvaluationLoader
from hamjepa_jax.data.pipeline import SkippedRecords
from hamjepa_jax.data.sources import ArraySource
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation.knn import knn_accuracy
from hamjepa_jax.evaluation.online_probe import LabelledImages, OnlineProbe, ridge_accuracy, subsample

QUIET = Console(quiet=True)
NUM_CLASSES = 3


def labelled_images(seed, count, *, noise):
    """Images of 2×2 pixels, of which one is bright, which the class tells."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(NUM_CLASSES, size=count)
    images = 100 * np.eye(4)[labels] + noise * rng.standard_normal((count, 4))
    return LabelledImages(np.clip(images + 50, 0, 255).astype(np.uint8).reshape(-1, 2, 2, 1), labels.astype(np.int32))


def pixels(state, images):
    return {"q": state["scale"] * images.reshape(len(images), -1).astype(jnp.float32)}


def probe_of(train, test, *, devices=1, batch_size=16, feature_step=pixels, k=5):
    settings = {"num_classes": NUM_CLASSES, "every_steps": 4, "batch_size": batch_size, "ridge_penalty": 1e-3, "k": k}
    mesh = sharding.make_mesh(data=devices, fsdp=1, devices=jax.devices()[:devices])
    state = sharding.place({"scale": np.ones((), np.float32)}, sharding.replicated(mesh))
    return partial(OnlineProbe(feature_step, mesh, train, test, **settings), state)


def test_classes_that_lie_apart_are_told_and_labels_that_mean_nothing_are_not():
    train, test = labelled_images(0, 60, noise=5), labelled_images(1, 40, noise=5)
    assert probe_of(train, test)() == {"online_knn5": 1.0, "online_ridge": 1.0}
    meaningless = np.random.default_rng(2).integers(NUM_CLASSES, size=60).astype(np.int32)
    found = probe_of(train._replace(labels=meaningless), test)()
    assert max(found.values()) < 0.7


def test_the_results_are_those_of_the_features_on_any_number_of_devices_and_in_any_blocks():
    train, test = labelled_images(0, 61, noise=60), labelled_images(1, 43, noise=60)
    data = tuple(x for part in (train, test) for x in (part.images.reshape(-1, 4).astype(np.float32), part.labels))
    expected = {
        "online_knn5": knn_accuracy(*data, ks=(5,), num_classes=NUM_CLASSES)["top1"][0],
        "online_ridge": ridge_accuracy(*data, num_classes=NUM_CLASSES, penalty=1e-3),
    }
    assert 0.4 < min(expected.values()) <= max(expected.values()) < 0.9
    for devices, batch_size in ((1, 16), (1, 100), (8, 5)):
        assert probe_of(train, test, devices=devices, batch_size=batch_size)() == expected


def test_the_headline_coordinate_is_judged():
    def with_others(state, images):
        return {"p": jnp.zeros((len(images), 2)), "whole": jnp.zeros((len(images), 2)), **pixels(state, images)}

    train, test = labelled_images(0, 60, noise=5), labelled_images(1, 40, noise=5)
    assert set(probe_of(train, test, feature_step=with_others)().values()) == {1.0}


def test_a_small_gallery_votes_whole():
    train, test = labelled_images(0, 10, noise=5), labelled_images(1, 40, noise=5)
    majority = np.bincount(train.labels).argmax()
    assert probe_of(train, test, k=20)()["online_knn20"] == np.mean(test.labels == majority)


def test_features_that_are_not_finite_are_not_judged():
    def broken(state, images):
        return {"q": pixels(state, images)["q"].at[3, 1].set(jnp.inf)}

    found = probe_of(labelled_images(0, 60, noise=5), labelled_images(1, 40, noise=5), feature_step=broken)()
    assert list(found) == ["online_knn5", "online_ridge"]
    assert np.isnan(list(found.values())).all()


def test_it_is_due_every_so_many_steps():
    train = labelled_images(0, 10, noise=5)
    assert [step for step in range(13) if probe_of(train, train).func.due(step)] == [4, 8, 12]


def test_ridge_regression_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=700)
    x = 0.5 * np.eye(5)[labels] @ rng.standard_normal((5, 40)) + rng.standard_normal((700, 40))
    # Of many scales, some nearly the same, one constant.
    x = np.concatenate([x, x[:, :10] * (1 + 1e-2 * rng.standard_normal((700, 10)))], axis=1)
    x = np.concatenate([x * 10.0 ** rng.integers(-3, 3, 50), np.full((700, 1), 0.1)], axis=1).astype(np.float32)
    train_x, test_x, train_y, test_y = x[:80], x[80:], labels[:80], labels[80:]
    scaler, accuracies = StandardScaler().fit(train_x.astype(np.float64)), []
    train_s, test_s = (scaler.transform(part.astype(np.float64)) for part in (train_x, test_x))
    for penalty in (1e-6, 1e-3, 1e-1, 10.0):
        predicted = Ridge(alpha=80 * penalty).fit(train_s, np.eye(5)[train_y]).predict(test_s).argmax(axis=1)
        accuracies.append(ridge_accuracy(train_x, train_y, test_x, test_y, num_classes=5, penalty=penalty))
        assert accuracies[-1] == np.mean(predicted == test_y)
    assert len(set(accuracies)) == 4


def source_of(count):
    images = np.random.default_rng(0).integers(256, size=(count, 4, 4, 1), dtype=np.uint8)
    return ArraySource(images, np.arange(count, dtype=np.int32), tuple(map(str, range(count))))


def draw(source, count, *, seed=0, num_workers=0, size=4):
    skipped = SkippedRecords(0, report=print)
    settings = {"size": size, "resize": size, "skipped": skipped, "num_workers": num_workers, "console": QUIET}
    return subsample(source, count=count, seed=seed, **settings)


def test_the_subsample_is_drawn_once_and_for_all():
    source = source_of(600)
    found = draw(source, 300)
    assert len(set(found.labels)) == 300
    np.testing.assert_array_equal(found.images, source.images[found.labels])
    # From the whole of the source.
    assert found.labels.min() < 20
    assert found.labels.max() > 580
    np.testing.assert_array_equal(draw(source, 300).labels, found.labels)
    assert set(draw(source, 300, seed=1).labels) != set(found.labels)
    np.testing.assert_array_equal(draw(source, 1000).labels, np.arange(600))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_in_files_are_read_as_the_evaluation_reads_them(photo_config, num_workers):
    source = build.experiment(photo_config()).train_source
    found = draw(source, 90, num_workers=num_workers, size=16)
    chosen = np.sort(np.random.default_rng(0).choice(len(source), 90, replace=False))
    block, skipped = EvaluationLoader(source, size=16, resize=16)(0, chosen)
    assert not skipped
    np.testing.assert_array_equal(found.images, block.images)
    np.testing.assert_array_equal(found.labels, block.labels)


def test_images_of_which_none_can_be_read_are_one_line(photo_config, monkeypatch):
    config = photo_config()
    experiment = build.experiment(config)
    monkeypatch.setattr(type(experiment.train_source), "record", lambda self, index: (b"broken", 0))
    config.data.max_corrupt = 1000
    config.evaluation.online_probe.every_epochs = 1
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    with pytest.raises(UserError, match="none of the 96 images of the online probe can be read"):
        build_monitoring.online_probe(config, experiment, mesh, QUIET)


def test_a_run_without_a_step_for_it_reads_no_images(digits_config, monkeypatch):
    config = digits_config()
    monkeypatch.setattr(build_monitoring, "subsample", None)
    experiment = build.experiment(config)
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    for every_epochs, total_steps in ((0, 1000), (1, 41)):
        config.evaluation.online_probe.every_epochs = every_epochs
        part = experiment._replace(total_steps=total_steps)
        assert build_monitoring.online_probe(config, part, mesh, QUIET) is None


def test_a_penalty_of_nothing_is_refused(digits_config):
    config = digits_config()
    config.evaluation.online_probe.ridge_penalty = 0.0
    with pytest.raises(UserError, match="config.evaluation.online_probe.ridge_penalty: must be positive, got 0.0"):
        build_monitoring.check(config)


def judge_in_one_of_two_processes(address, number, path):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    distributed.start(coordinator_address=address, num_processes=2, process_id=number)
    found = probe_of(labelled_images(0, 61, noise=60), labelled_images(1, 43, noise=60), devices=4)()
    path.with_suffix(f".{number}").write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_judge_together(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    processes = [
        FORKSERVER.Process(target=judge_in_one_of_two_processes, args=(address, number, tmp_path / "found"))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    expected = probe_of(labelled_images(0, 61, noise=60), labelled_images(1, 43, noise=60))()
    assert [json.loads((tmp_path / f"found.{number}").read_text()) for number in range(2)] == [expected] * 2
