import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from event_files import shown
from PIL import Image
from rich.console import Console

from hamjepa_jax import build, train
from hamjepa_jax.checkpoint import Checkpointer
from hamjepa_jax.data.sources import ArraySource
from hamjepa_jax.errors import Interrupted, NonFiniteError, UserError
from hamjepa_jax.evaluation.online_probe import OnlineProbe
from hamjepa_jax.evaluation.run import evaluate
from hamjepa_jax.event_logs import tagged
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
        restored = checkpointer.restore(setup.abstract_state, setup.shardings, config=config.to_dict(), step=step)
        assert int(restored.state.step) == restored.step == step
        assert restored.data == {"next_step": step, "num_examples": 1347}
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

    def record_and_interrupt(self, step, metrics):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return record(self, step, metrics)

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
def test_a_signal_before_the_first_step_or_in_the_last_one(tiny_run, tmp_path, monkeypatch):
    config, expected = tiny_run
    (tmp_path / "stopped").mkdir()
    open_feed, record = train.open_feed, Telemetry.record

    def open_and_interrupt(*arguments, **settings):
        signal.raise_signal(signal.SIGTERM)
        return open_feed(*arguments, **settings)

    def record_and_interrupt(self, step, metrics):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return record(self, step, metrics)

    for owner, name, replacement, step in (
        (train, "open_feed", open_and_interrupt, 0),
        (Telemetry, "record", record_and_interrupt, 4),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {step}"):
                run(config, tmp_path / "stopped")
        assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ([str(step)] if step else [])
    assert_identical(run(config, tmp_path / "stopped"), expected)


@pytest.mark.slow
def test_a_checkpoint_is_saved_when_so_many_minutes_are_over(tiny_run, tmp_path):
    config, _ = tiny_run
    (tmp_path / "saving").mkdir()
    config.checkpoint.every_minutes, config.checkpoint.keep = 0.0, 10
    run(config, tmp_path / "saving")
    saved = {int(path.name) for path in (tmp_path / "saving" / "checkpoints").iterdir()}
    assert saved == {1, 2, 3, 4}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(tiny_run, tmp_path):
    config, _ = tiny_run
    (tmp_path / "broken").mkdir()
    config.optimizer.learning_rate = 1e30
    with pytest.raises(NonFiniteError, match="not finite: ") as error:
        run(config, tmp_path / "broken")
    experiment = build.experiment(config)
    state = train.restore(config, train.set_up(config, experiment), Workdir(tmp_path / "broken"), QUIET)
    assert int(state.step) == error.value.step > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def broken_in(experiment, *steps):
    """The experiment with a loss that is not finite in some steps."""
    objective = experiment.objective

    def broken(params, z, *, key, step, taps):
        loss, metrics = objective.loss(params, z, key=key, step=step, taps=taps)
        return loss * jnp.where(jnp.isin(step, jnp.array(steps)), jnp.nan, 1.0), metrics

    return experiment._replace(objective=objective._replace(loss=broken))


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_and_counted_also_when_the_run_goes_on(digits_config, tmp_path):
    config = digits_config()
    config.train.max_skipped_steps, config.train.max_steps = 2, 6
    experiment = broken_in(build.experiment(config), 1, 3, 4)
    states = []
    for name, stops in (("whole", (6,)), ("in_parts", (4, 6))):
        (tmp_path / name).mkdir()
        for stop in stops:
            part = experiment._replace(total_steps=stop)
            state = train.train(config, part, train.set_up(config, part), Workdir(tmp_path / name), QUIET)
        states.append(state)
        assert [record["skipped"] for record in records(tmp_path / name)] == [0, 1, 1, 2, 3, 3]
    assert_identical(*states)
    assert int(states[0].skipped) == 3
    assert int(states[0].step) == 6
    # The schedule goes by the updates that were made.
    rates = np.asarray(jax.vmap(experiment.learning_rate)(np.array([0, 1, 1, 2, 2, 2])))
    np.testing.assert_allclose([record["learning_rate"] for record in records(tmp_path / "whole")], rates, rtol=1e-6)


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_evaluated(digits_config, tmp_path):
    config = digits_config()
    config.checkpoint.every_steps, config.checkpoint.keep = 1, 1
    config.checkpoint.best_metric, config.checkpoint.best_mode = "gradient_norm", "max"
    run(config, tmp_path)
    norms = [record["gradient_norm"] for record in records(tmp_path)]
    best = int(np.argmax(norms)) + 1
    assert best < 4, "the best is not the newest, which is kept anyway"
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {str(best), "4"}
    setup = train.set_up(config, build.experiment(config))
    for wanted, step in (("best", best), ("newest", 4)):
        config.evaluation.checkpoint = wanted
        assert int(train.restore(config, setup, Workdir(tmp_path), QUIET).step) == step


def probed_every_second_step(config, path, total_steps, **settings):
    """Trains with the online probe after every second step, and returns the final state."""
    config.evaluation.online_probe.update({"every_epochs": 1, "train_images": 100, "test_images": 50} | settings)
    experiment = build.experiment(config)._replace(steps_per_epoch=2, total_steps=total_steps)
    path.mkdir(exist_ok=True)
    return train.train(config, experiment, train.set_up(config, experiment), Workdir(path), QUIET)


@pytest.fixture
def probes_made(monkeypatch):
    """The numbers of steps after which the online probe was called."""
    made, probe = [], OnlineProbe.__call__
    monkeypatch.setattr(OnlineProbe, "__call__", lambda self, state: made.append(int(state.step)) or probe(self, state))
    return made


@pytest.mark.slow
def test_training_does_not_depend_on_the_online_probe_nor_what_this_finds_on_a_break(
    digits_config, tmp_path, monkeypatch, probes_made
):
    config, record, states = digits_config(), Telemetry.record, []
    config.log.every_steps = 4
    states.append(probed_every_second_step(config, tmp_path / "without", 7, every_epochs=0))
    states.append(probed_every_second_step(config, tmp_path / "whole", 7))
    config.checkpoint.every_steps = 3

    def record_until_killed(self, step, metrics):
        if step == 4:
            raise KeyboardInterrupt
        return record(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "record", record_until_killed)
        with pytest.raises(KeyboardInterrupt):
            probed_every_second_step(config, tmp_path / "killed", 7)
    states.append(probed_every_second_step(config, tmp_path / "killed", 7))
    assert probes_made == [2, 4, 6] + [2, 4] + [4, 6]
    for state in states[1:]:
        assert_identical(state, states[0])
    without, whole, killed = (records(tmp_path / name) for name in ("without", "whole", "killed"))
    assert killed == whole
    assert [record["step"] for record in whole if "online_knn20" in record and "online_ridge" in record] == [1, 3, 5]
    assert min(record["online_ridge"] for record in whole if "online_ridge" in record) > 0.3
    # With more records there is more to warn of.
    others = ("online_knn20", "online_ridge", "warnings")
    trained = [[{k: v for k, v in r.items() if k not in others} for r in run] for run in (whole, without)]
    assert [record for record in trained[0] if record["step"] in (3, 6)] == trained[1]


@pytest.mark.slow
def test_event_files_show_what_is_logged_also_when_the_run_goes_on(digits_config, tmp_path):
    config = digits_config()
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(tmp_path / "views.png")
    config.checkpoint.every_steps = 1
    probed_every_second_step(config, tmp_path, 4)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    probed_every_second_step(config, tmp_path, 5)
    found = shown(tmp_path / "tensorboard")
    # The config, of the first step of each part.
    assert [step for step, _ in found.pop("text/config/text_summary")] == [0, 3]
    assert [step for step, _ in found.pop("views")] == [0]
    expected = {}
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for tag, value in tagged(record).items():
            expected.setdefault(tag, []).append((record["step"], np.float32(value)))
    assert found == expected
    assert [step for step, _ in expected["probe/ridge"]] == [1, 3]
    assert [step for step, _ in expected["train/loss"]] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_the_best_checkpoint_by_the_online_probe_holds_the_state_that_it_judged(digits_config, tmp_path, monkeypatch):
    config = digits_config()
    config.checkpoint.keep, config.checkpoint.best_metric, config.checkpoint.best_mode = 1, "online_knn20", "max"
    scores = {2: 0.5, 4: 0.75, 6: 0.25}
    monkeypatch.setattr(
        OnlineProbe,
        "__call__",
        lambda self, state: {"online_knn20": scores[int(state.step)], "online_ridge": 0.0},
    )
    setup = train.set_up(config, build.experiment(config))
    # A save at another step, such as that at a break, has no score.
    for total_steps, best, newest in ((3, 2, 3), (7, 4, 7)):
        probed_every_second_step(config, tmp_path, total_steps)
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {str(best), str(newest)}
        config.evaluation.checkpoint = "best"
        assert int(train.restore(config, setup, Workdir(tmp_path), QUIET).step) == best
        config.evaluation.checkpoint = "newest"
    # Without the probe there is no such metric.
    config.evaluation.online_probe.every_epochs = 0
    with pytest.raises(UserError, match="config.checkpoint.best_metric: 'online_knn20' is unknown; known: "):
        probed_every_second_step(config, tmp_path, 9, every_epochs=0)


@pytest.mark.slow
def test_what_does_not_fit_the_run_is_one_line(tiny_run, tmp_path):
    config, _ = tiny_run
    workdir = tmp_path / "undisturbed"
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    config.train.max_steps = 5
    experiment = build.experiment(config)
    whole = experiment.train_source
    fewer = ArraySource(whole.images[:1000], whole.labels[:1000], whole.class_names)
    setup = train.set_up(config, experiment)
    with pytest.raises(
        UserError, match=r"config.data.data_dir: has 1000 training images, and had 1347 when the run was"
    ):
        train.train(config, experiment._replace(train_source=fewer), setup, Workdir(workdir), QUIET)
    config.evaluation.checkpoint = "best"
    with pytest.raises(UserError, match="config.evaluation.checkpoint: there is no best checkpoint"):
        train.restore(config, setup, Workdir(workdir), QUIET)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    config.checkpoint.best_metric = "beauty"
    with pytest.raises(UserError, match=r"config.checkpoint.best_metric: 'beauty' is unknown; known: .*gradient_norm"):
        run(config, workdir)


def test_restoring_from_nothing_is_one_line(digits_config, tmp_path):
    config = digits_config()
    setup = train.set_up(config, build.experiment(config))
    with pytest.raises(UserError, match="no checkpoint here"):
        train.restore(config, setup, Workdir(tmp_path), QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("mesh", {"data": 3}, r"config.mesh: data=3 and fsdp=1 do not multiply to the 8 devices"),
        ("checkpoint", {"best_mode": "most"}, r"config.checkpoint.best_mode: 'most' is unknown; known: max, min"),
        ("data", {"batch_size": 30}, r"config.data.batch_size: must be a multiple of 8, 8 devices times 1 .*, got 30"),
    ],
)
def test_what_does_not_fit_the_devices_or_is_unknown_is_named(digits_config, group, values, message):
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
    assert trained_scores["few_label_probe"]["5"]["top1"] > untrained_scores["few_label_probe"]["5"]["top1"] + 0.03
    assert trained_scores["knn"]["top1"][3] > untrained_scores["knn"]["top1"][3]
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text()) == metrics
    assert (tmp_path / "evaluation" / "summary.png").read_bytes().startswith(b"\x89PNG")
