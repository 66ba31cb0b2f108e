import io
import json
import operator
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from hamjepa_jax import build, environment, train
from hamjepa_jax.errors import Interrupted, UserError
from hamjepa_jax.telemetry import Telemetry
from hamjepa_jax.workdir import Workdir

QUIET = Console(quiet=True)
TOTAL_STEPS = 8


def run(config, path, console=QUIET):
    path.mkdir(exist_ok=True)
    experiment = build.experiment(config)
    return train.train(config, experiment, train.set_up(config, experiment), Workdir(path), console)


def losses(path):
    records = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records]


@pytest.fixture
def config(digits_config):
    config = digits_config()
    config.train.max_steps = TOTAL_STEPS
    return config


@pytest.fixture
def dispatched(monkeypatch):
    """How many steps every dispatch has made since."""
    counts, jit_train_step = [], train.jit_train_step
    monkeypatch.setattr(environment, "loops_are_slow", lambda: False)

    def jit_counting(*arguments, several=False):
        step = jit_train_step(*arguments, several=several)

        def dispatch(state, key, first_step, requests, dataset, batch):
            counts.append(len(batch) if several else 1)
            return step(state, key, first_step, requests, dataset, batch)

        return dispatch

    monkeypatch.setattr(train, "jit_train_step", jit_counting)
    return counts


@pytest.mark.slow
def test_several_steps_at_once_are_the_same_steps(config, dispatched, tmp_path):
    run(config, tmp_path / "one")
    assert dispatched == [1] * TOTAL_STEPS
    dispatched.clear()
    config.train.steps_per_dispatch, config.checkpoint.every_steps = 3, 4
    state = run(config, tmp_path / "several")
    # Not over the checkpoint after four steps, and not beyond the last.
    assert dispatched == [3, 1, 3, 1]
    assert int(state.step) == TOTAL_STEPS
    (steps, found), (expected_steps, expected) = (
        zip(*losses(tmp_path / name), strict=True) for name in ("several", "one")
    )
    assert steps == expected_steps == tuple(range(TOTAL_STEPS))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert np.ptp(expected) > 0.01 * np.mean(expected)
    assert {path.name for path in (tmp_path / "several" / "checkpoints").iterdir()} >= {"4", "8"}


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on(config, dispatched, tmp_path, monkeypatch):
    config.train.steps_per_dispatch = 3
    expected = run(config, tmp_path / "undisturbed")
    record = Telemetry.record

    def record_and_interrupt(self, step, metrics):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return record(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "record", record_and_interrupt)
        with pytest.raises(Interrupted) as interrupted:
            run(config, tmp_path / "stopped")
    # The steps that were dispatched before are made.
    assert interrupted.value.step == 6
    jax.tree.map(np.testing.assert_array_equal, run(config, tmp_path / "stopped"), expected)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "undisturbed")


@pytest.mark.parametrize("resident_bytes", [0, 2**30])
def test_batches_are_taken_in_the_order_of_the_steps(config, resident_bytes):
    config.data.resident_bytes = resident_bytes
    experiment = train.with_data_in_memory(config, build.experiment(config), QUIET)
    setup = train.set_up(config, experiment)
    feeds = [train.open_feed(config, experiment, setup, QUIET, first_step=1) for _ in range(2)]
    taken = feeds[0].take(3)
    for step in range(3):
        of_step = jax.tree.map(operator.itemgetter(step), taken)
        jax.tree.map(np.testing.assert_array_equal, of_step, next(feeds[1]))
    for leaf in jax.tree.leaves(taken):
        assert leaf.sharding.shard_shape(leaf.shape)[:2] == (3, config.data.batch_size // jax.device_count())
    for feed in feeds:
        feed.close()


@pytest.mark.slow
def test_a_cpu_makes_one_step_at_a_time_and_says_so(config, tmp_path, monkeypatch):
    jit_train_step = train.jit_train_step

    def jit_one(*arguments, several=False):
        return pytest.fail if several else jit_train_step(*arguments)

    monkeypatch.setattr(train, "jit_train_step", jit_one)
    config.train.steps_per_dispatch, config.train.max_steps = 3, 3
    console = Console(file=io.StringIO())
    state = run(config, tmp_path, console)
    assert int(state.step) == 3
    assert "config.train.steps_per_dispatch: 1 and not 3" in console.file.getvalue()


@pytest.mark.parametrize("count", [0, -2])
def test_less_than_one_step_is_refused(config, count):
    config.train.steps_per_dispatch = count
    with pytest.raises(UserError, match=f"config.train.steps_per_dispatch: must be at least 1, got {count}"):
        train.set_up(config, build.experiment(config))
