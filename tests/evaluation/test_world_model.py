import io
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from hamjepa_jax import build
from hamjepa_jax.data import pendulum
from hamjepa_jax.dynamics import energies, predictors
from hamjepa_jax.evaluation import world_model, world_model_run
from hamjepa_jax.evaluation.diagnostics import Flow, Trained
from hamjepa_jax.evaluation.world_model import Embedded, SmoothMap

ENERGY = energies.pendulum()
STEPS = {"step_size": pendulum.VIEW_GAP / 8, "num_steps": 8, "scheme": "yoshida4"}


def trained(predictor=None, params=None):
    """A predictor that knows the pendulum, or another."""
    if predictor is not None:
        return Trained(predictor, params, residual_scale=1.0, invertible=False, flow=None)
    flow = predictors.hamiltonian_flow(ENERGY, **STEPS)
    return Trained(flow, {"layers": []}, residual_scale=1.0, invertible=True, flow=Flow(ENERGY, *STEPS.values()))


def films(encode=lambda states: states, seed=0, count=600):
    """Films with their states as features, or what an encoder makes of them."""
    states = pendulum.draw_states(np.random.default_rng(seed), count, num_pendula=1)
    return Embedded(np.asarray(encode(states), np.float32), states)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    monkeypatch.setattr(world_model, "NUM_APPLICATIONS", 100)
    monkeypatch.setattr(world_model, "NUM_STARTS", 16)


def long_runs(of, encode=lambda states: states):
    train, test = films(encode), films(encode, seed=1, count=64)
    z = world_model.roll_out(of, test.z[:16])
    return world_model.long_runs(of, z, train, test)


def test_a_smooth_map_is_found_and_ends_at_its_border():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (2000, 2))
    y = np.stack([np.sin(x[:, 0]) * x[:, 1], x[:, 0] ** 2], axis=1)
    found = SmoothMap(x, y)
    inside = rng.uniform(-1.8, 1.8, (5, 50, 2))
    expected = np.stack([np.sin(inside[..., 0]) * inside[..., 1], inside[..., 0] ** 2], axis=-1)
    np.testing.assert_allclose(found(inside), expected, atol=0.02)
    np.testing.assert_allclose(found(np.array([[9.0, 0.0]])), found(np.array([[x[:, 0].max(), 0.0]])))
    lost = np.array([[np.nan, 0.0], [0.0, np.inf], [0.5, 0.5]])
    assert np.isnan(found(lost)).all(axis=1).tolist() == [True, True, False]


def test_explained_variance_by_hand():
    true = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    assert world_model.explained(true, true) == 1.0
    assert world_model.explained(np.broadcast_to(true.mean(axis=0), true.shape), true) == pytest.approx(0.0)
    # Of the first coordinate 1 − 3/8, of the second all.
    assert world_model.explained(true + np.array([1.0, 0.0]), true) == pytest.approx((5 / 8 + 1) / 2)


def test_states_themselves_are_read_perfectly_whatever_smooth_map_hides_them():
    found = world_model.readings(*(films(lambda s: np.sinh(s) - 1.0, seed) for seed in (0, 1)))
    for key in ("angle_from_q", "velocity_from_p", "q_from_angle", "p_from_velocity"):
        assert found[key] > 0.999, key
    assert abs(found["angle_from_p"]) < 0.1
    assert abs(found["velocity_from_q"]) < 0.1
    assert found["time_shift"] == pytest.approx(0.0, abs=1e-9)


def test_exchanged_halves_are_told():
    found = world_model.readings(*(films(lambda s: s[:, ::-1], seed) for seed in (0, 1)))
    assert min(found["angle_from_p"], found["velocity_from_q"]) > 0.999
    assert max(found["angle_from_q"], found["velocity_from_p"]) < 0.1


def test_an_encoder_that_is_ahead_in_time_is_found_out():
    ahead = partial(lambda states, time: pendulum.swing(states, np.array([time]))[0], time=0.5)
    found = world_model.readings(*(films(ahead, seed) for seed in (0, 1)))
    assert found["time_shift"] == pytest.approx(0.5)
    assert found["shifted_angle_from_q"] > 0.999
    assert found["shifted_velocity_from_p"] > 0.999
    assert found["angle_from_q"] < 0.95


def test_a_quantity_that_is_folded_can_be_read_but_does_not_give_the_state_back():
    found = world_model.readings(*(films(np.abs, seed) for seed in (0, 1)))
    assert found["q_from_angle"] > 0.99
    assert found["angle_from_q"] < 0.1


def test_maps_are_fitted_to_training_films_and_judged_by_test_films():
    noise = films(lambda states: np.random.default_rng(0).normal(size=states.shape))
    assert world_model.readings(noise, films(seed=1))["angle_from_q"] < 0.1


@pytest.mark.parametrize("start", [-0.3, 0.2])
def test_mean_periods_of_sines(start):
    time = 0.8 * np.arange(500)
    angles = np.stack([np.sin(2 * np.pi * (time / period + start)) for period in (6.3, 9.1)], axis=1)
    np.testing.assert_allclose(world_model.mean_periods(angles, 0.8), [6.3, 9.1], rtol=1e-3)
    still = np.stack([np.full(500, 0.3), np.linspace(-1, 1, 500)], axis=1)
    assert np.isnan(world_model.mean_periods(still, 0.8)).all()


def test_the_true_flow_keeps_energy_period_and_angle():
    found = long_runs(trained())
    assert len(found["time"]) == 11
    assert found["time"][1] == pytest.approx(10 * pendulum.VIEW_GAP)
    assert found["learned_energy_drift"]["median"][-1] < 1e-3
    assert found["energy_rank_correlation"] > 0.9999
    assert found["energy_error"]["median"][-1] < 0.02
    assert found["angle_error"]["median"][-1] < 0.05
    assert found["period_error"] < 1e-3
    assert found["still_swinging"] == 1.0
    np.testing.assert_allclose(found["period"]["found"], found["period"]["true"], rtol=5e-3)


def test_the_drift_of_the_energy_is_in_standard_deviations():
    shrink = predictors.Predictor(None, lambda params, z, direction=1, residual_scale=1.0: 0.99 * z)
    found = long_runs(trained()._replace(predictor=shrink))
    states = films(seed=1, count=64).states
    energies_then, energies_now = pendulum.energies(0.99**10 * states[:16]), pendulum.energies(states)
    drift = np.quantile(np.abs(energies_then - energies_now[:16]), 0.5, method="nearest") / energies_now.std()
    assert found["learned_energy_drift"]["median"][1] == pytest.approx(drift, rel=1e-3)
    assert found["energy_error"]["median"][1] == pytest.approx(drift, rel=0.2)


def test_a_flow_of_another_frequency_has_the_wrong_period_and_angle():
    flow = predictors.hamiltonian_flow(ENERGY, step_size=1.1 * STEPS["step_size"], num_steps=8)
    found = long_runs(trained()._replace(predictor=flow))
    assert found["period_error"] == pytest.approx(1 - 1 / 1.1, rel=0.02)
    assert found["angle_error"]["median"][-1] > 0.3
    assert found["energy_error"]["median"][-1] < 0.02


def test_a_map_that_contracts_or_stands_still_or_explodes_does_not_swing():
    shrink = predictors.Predictor(None, lambda params, z, direction=1, residual_scale=1.0: 0.8 * z)
    for predictor in (predictors.identity(), shrink):
        found = long_runs(trained(predictor, {"layers": []}))
        assert found["learned_energy_drift"] is None
        assert found["energy_rank_correlation"] is None
        assert found["still_swinging"] == 0.0
        assert np.isinf(found["period_error"])
    assert found["energy_error"]["median"][-1] > 0.3
    explode = predictors.Predictor(None, lambda params, z, direction=1, residual_scale=1.0: jnp.square(9 * z) - 9)
    found = long_runs(trained(explode, {}))
    for error in ("energy_error", "angle_error"):
        assert found[error]["median"][0] < 0.1
        assert np.isinf(found[error]["median"][-1])
    assert found["still_swinging"] == 0.0
    assert np.isinf(found["period_error"])


@pytest.mark.usefixtures("few_films")
@pytest.mark.parametrize("variant", ["hamjepa", "mlp"])
def test_a_run_is_judged_written_and_shown(film_config, tmp_path, variant):
    config = film_config(variant)
    config.predictor.width = 8
    experiment = build.experiment(config)
    state = experiment.initial_state(jax.random.key(0))
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    assert world_model_run.can_judge(config, experiment)
    world_model_run.judge(config, experiment, state, directory=tmp_path, console=console)
    written = json.loads((tmp_path / "world_model.json").read_text())
    assert (written["variant"], written["data"], written["num_starts"]) == (variant, "pendulum", 16)
    assert (written["long_runs"]["learned_energy_drift"] is None) == (variant == "mlp")
    assert len(written["long_runs"]["angle_error"]["median"]) == 11
    assert Image.open(tmp_path / "world_model.png").size == (1920, 1140)
    assert f"{variant}, step 0, seed 42: world model of pendulum" in shown.getvalue()
    assert f"{written['readings']['angle_from_q']:.3f}" in shown.getvalue()


@pytest.mark.usefixtures("few_films")
def test_films_are_embedded_at_their_first_view(film_config):
    experiment = build.experiment(film_config())
    state = experiment.initial_state(jax.random.key(0))
    source = experiment.test_source
    found = world_model_run._embed(experiment, state, source)
    np.testing.assert_array_equal(found.states, source.states[:, 0])
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    first = experiment.preprocess(jnp.asarray(source.images[:, :, : pendulum.IMAGE_SIZE]))
    np.testing.assert_allclose(found.z, experiment.encoder.apply(variables, first, train=False), atol=1e-5)


def test_only_states_of_films_are_judged(digits_config, film_config, monkeypatch):
    config = digits_config()
    assert not world_model_run.can_judge(config, build.experiment(config))
    monkeypatch.setattr(pendulum, "NUM_IMAGES", {"train": 64, "test": 64})
    config = film_config()
    config.model.out_dim = 8
    assert not world_model_run.can_judge(config, build.experiment(config))
