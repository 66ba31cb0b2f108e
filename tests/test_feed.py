import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from hamjepa_jax import build, train
from hamjepa_jax.errors import UserError
from hamjepa_jax.workdir import Workdir

QUIET = Console(quiet=True)
# How images travel → the fields of the group `data` that choose it.
WAYS = {
    "on the device": {},
    "whole": {"resident_bytes": 0},
    "cut out": {"canvas_size": None},
}


def configure(config, way):
    config.data.batch_size = 8
    with config.unlocked():
        config.data.update(WAYS[way])
    return config


def views_of_steps(config, first_step, last_step):
    """The views of some steps, as the training step would draw them."""
    experiment = train.with_data_in_memory(config, build.experiment(config), QUIET)
    feed = train.open_feed(config, experiment, train.set_up(config, experiment), QUIET, first_step=first_step)
    draw = jax.jit(experiment.views)
    drawn = []
    for step in range(first_step, last_step):
        drawn.append(jax.device_get(draw(jax.random.fold_in(jax.random.key(0), step), feed.dataset, next(feed))))
    feed.close()
    return feed, drawn


@pytest.mark.parametrize("way", WAYS)
def test_a_feed_that_starts_later_gives_the_views_that_would_have_come(photo_config, way):
    config = configure(photo_config("hamjepa_multicrop"), way)
    feed, whole = views_of_steps(config, 0, 3)
    assert (feed.dataset is None) == (way != "on the device")
    assert [views.shape for views in whole[0]] == [(2, 8, 16, 16, 3), (6, 8, 8, 8, 3)]
    config.data.num_workers = 1
    _, later = views_of_steps(config, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, later, whole[2:])
    assert np.abs(whole[0][0] - whole[1][0]).max() > 0.5


def test_it_makes_no_difference_whether_the_data_set_lies_on_the_device(photo_config):
    _, on_the_device = views_of_steps(configure(photo_config(), "on the device"), 0, 2)
    _, whole = views_of_steps(configure(photo_config(), "whole"), 0, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, on_the_device)


def test_only_small_data_sets_are_read_into_memory(photo_config):
    config = photo_config()
    output = io.StringIO()
    train_bytes, test_bytes = 96 * 24 * 24 * 3, 24 * 24 * 24 * 3
    config.data.resident_bytes = train_bytes - 1
    experiment = build.experiment(config)
    loaded = train.with_data_in_memory(config, experiment, Console(file=output, width=200))
    assert loaded.train_source is experiment.train_source
    assert loaded.test_source.nbytes == test_bytes
    assert output.getvalue().split("\n").count("tiny_imagenet100 val: 24 images of 2 classes, kept on the device") == 1
    assert "tiny_imagenet100 train" not in output.getvalue()
    config.data.resident_bytes = train_bytes
    assert train.with_data_in_memory(config, experiment, QUIET).train_source.nbytes == train_bytes


def test_images_that_are_smaller_than_a_view_are_mentioned(photo_config):
    config = photo_config()
    output = io.StringIO()
    experiment = train.with_data_in_memory(config, build.experiment(config), Console(file=output, width=200))
    small = int(np.sum(experiment.train_source.sizes.min(axis=1) < 16))
    assert 0 < small < 96
    message = f"{small} images are smaller than a view, 16 pixels, and are enlarged; --config.data.view_size sets it"
    assert message in output.getvalue()


def with_broken_files(image_folder, directory, names):
    """A copy of the folder with some of the files cut short."""
    for path in sorted(image_folder.rglob("*.jpg")):
        copy = directory / path.relative_to(image_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        encoded = path.read_bytes()
        copy.write_bytes(encoded[: len(encoded) // 2] if copy.relative_to(directory).as_posix() in names else encoded)


@pytest.mark.slow
def test_corrupt_files_are_skipped_up_to_the_limit_and_then_named(photo_config, image_folder, tmp_path):
    broken = ("train/blue/3.jpg", "train/red/40.jpg")
    with_broken_files(image_folder, tmp_path / "data", broken)
    config = configure(photo_config("sigreg"), "cut out")
    config.data.data_dir = str(tmp_path / "data")
    config.data.max_corrupt = 1
    # An epoch has twelve steps, so that both files come up.
    config.train.max_steps = 12
    output = io.StringIO()
    console = Console(file=output, width=200)
    experiment = build.experiment(config)
    setup = train.set_up(config, experiment)
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"(3|40).jpg: cannot be read .* there are 2 .*max_corrupt allows 1") as error:
        train.train(config, experiment, setup, Workdir(tmp_path / "run"), console)
    assert "\n" not in str(error.value)
    # What was learnt until then is kept.
    records = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records == list(range(len(records)))
    assert (tmp_path / "run" / "checkpoints" / str(len(records))).is_dir()
    config.data.max_corrupt = 2
    train.train(config, experiment, setup, Workdir(tmp_path / "run"), console)
    skipped = {line.split()[1] for line in output.getvalue().splitlines() if line.startswith("skipped ")}
    assert skipped == {f"{name}:" for name in broken}

    config.data.canvas_size = 24
    config.data.max_corrupt = 1
    with pytest.raises(UserError, match="max_corrupt allows 1"):
        train.with_data_in_memory(config, experiment, QUIET)
    config.data.max_corrupt = 2
    assert len(train.with_data_in_memory(config, experiment, QUIET).train_source) == 94


@pytest.mark.slow
def test_a_streamed_run_that_was_stopped_is_the_undisturbed_run(photo_config, tmp_path):
    config = configure(photo_config("sigreg_multicrop"), "cut out")

    def run(name):
        (tmp_path / name).mkdir(exist_ok=True)
        experiment = build.experiment(config)
        return train.train(config, experiment, train.set_up(config, experiment), Workdir(tmp_path / name), QUIET)

    expected = run("undisturbed")
    config.train.max_steps, config.data.num_workers = 1, 1
    run("stopped")
    config.train.max_steps, config.data.num_workers = 4, 0
    jax.tree.map(np.testing.assert_array_equal, run("stopped"), expected)
