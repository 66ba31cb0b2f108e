import json
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from hamjepa_jax import build, train
from hamjepa_jax.checkpoint import Checkpointer
from hamjepa_jax.errors import Interrupted, NonFiniteError, UserError
from hamjepa_jax.evaluation.run import evaluate
from hamjepa_jax.telemetry import Telemetry
from hamjepa_jax.workdir import Workdir

QUIET = Console(quiet=True)


def run(config, path):
    """Trains into a directory and returns the final state."""
    experiment = build.experiment(config)
    return train.train(config, experiment, train.set_up(config, experiment), Workdir(path), QUIET)


def records(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | dict.fromkeys(("views_per_second", "input_wait")) for line in lines]


def assert_identical(state, expected):
    jax.tree.map(np.testing.assert_array_equal, state, expected)


@pytest.fixture
def tiny_run(digits_config, tmp_path):
    """A tiny config, and the final state of the run that nothing disturbed."""
    config = digits_config()
    (tmp_path / "undisturbed").mkdir()
    return config, run(config, tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_resumed_run_is_the_undisturbed_run(tiny_run, tmp_path):
    config, expected = tiny_run
    (tmp_path / "resumed").mkdir()
    config.train.max_steps = 2
    run(config, tmp_path / "resumed")
    config.train.max_steps = 4
    assert_identical(run(config, tmp_path / "resumed"), expected)
    assert records(tmp_path / "resumed") == records(tmp_path / "undisturbed")
    # A finished run is given back as it is.
    assert_identical(run(config, tmp_path / "resumed"), expected)


@pytest.mark.slow
def test_checkpoints_on_the_way_hold_the_state_of_their_step(tiny_run, tmp_path, digits_config):
    config, expected = tiny_run
    (tmp_path / "saving").mkdir()
    config.checkpoint.every_steps, config.checkpoint.keep = 1, 10
    assert_identical(run(config, tmp_path / "saving"), expected)
    experiment = build.experiment(config)
    setup = train.set_up(config, experiment)
    checkpointer = Checkpointer(tmp_path / "saving" / "checkpoints", keep=10)
    for step in (1, 2, 3):
        assert int(checkpointer.restore(step, setup.abstract_state, setup.shardings).step) == step
    checkpointer.close()
    # Going on from the middle arrives at the same end, so what was saved there was whole.
    for step in (3, 4):
        (tmp_path / "saving" / "checkpoints" / str(step)).rename(tmp_path / f"gone{step}")
    assert_identical(run(config, tmp_path / "saving"), expected)


@pytest.mark.slow
def test_a_signal_stops_after_the_step_and_the_run_goes_on(tiny_run, tmp_path, monkeypatch):
    config, expected = tiny_run
    (tmp_path / "stopped").mkdir()
    record, handler = Telemetry.record, signal.getsignal(signal.SIGINT)

    def record_and_interrupt(self, step, *arguments):
        record(self, step, *arguments)
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "record", record_and_interrupt)
        with pytest.raises(Interrupted) as interrupted:
            run(config, tmp_path / "stopped")
    assert interrupted.value.step == 3
    assert interrupted.value.signal_number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is handler
    assert [record["step"] for record in records(tmp_path / "stopped")] == [0, 1, 2]
    assert_identical(run(config, tmp_path / "stopped"), expected)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(tiny_run, tmp_path):
    config, _ = tiny_run
    (tmp_path / "broken").mkdir()
    config.optimizer.learning_rate = 1e30
    with pytest.raises(NonFiniteError, match="not finite: ") as error:
        run(config, tmp_path / "broken")
    experiment = build.experiment(config)
    state = train.restore(config, train.set_up(config, experiment), Workdir(tmp_path / "broken"))
    assert int(state.step) == error.value.step > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_restoring_from_nothing_is_one_line(digits_config, tmp_path):
    config = digits_config()
    setup = train.set_up(config, build.experiment(config))
    with pytest.raises(UserError, match="no checkpoint here"):
        train.restore(config, setup, Workdir(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("mesh", {"data": 3}, r"config.mesh: data=3 and fsdp=1 do not multiply to the 8 devices"),
        ("data", {"batch_size": 30}, r"config.data.batch_size: must be a multiple of 8, 8 devices times 1 .*, got 30"),
    ],
)
def test_what_does_not_fit_the_devices_is_named(digits_config, group, values, message):
    config = digits_config()
    config[group].update(values)
    with pytest.raises(UserError, match=message):
        train.set_up(config, build.experiment(config))


@pytest.mark.slow
def test_the_loop_learns(digits_config, tmp_path):
    config = digits_config()
    config.data.batch_size = 128
    config.model.widths, config.model.token_d_f = (16, 32), 16
    config.predictor.hidden_dim = 64
    config.train.epochs, config.train.max_steps = 8, None
    config.optimizer.warmup_epochs = 1
    experiment = build.experiment(config)
    setup = train.set_up(config, experiment, devices=jax.devices()[:1])
    state = train.train(config, experiment, setup, Workdir(tmp_path), QUIET)
    losses = [record["loss"] for record in records(tmp_path)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])

    config.evaluation.probe.epochs = 20
    untrained = setup.initialize(setup.key)
    metrics = evaluate(config, experiment, state, untrained, directory=tmp_path / "evaluation", console=QUIET)
    trained_scores, untrained_scores = metrics["features"]["q"], metrics["baselines"]["random_encoder"]
    assert trained_scores["few_label_probe"]["top1"] > untrained_scores["few_label_probe"]["top1"] + 0.03
    assert trained_scores["knn"]["top1"][3] > untrained_scores["knn"]["top1"][3]
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text()) == metrics
    assert (tmp_path / "evaluation" / "summary.png").read_bytes().startswith(b"\x89PNG")
