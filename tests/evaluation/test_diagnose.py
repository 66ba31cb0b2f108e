import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from hamjepa_jax import build
from hamjepa_jax.dynamics import geometry
from hamjepa_jax.dynamics.predictors import split_state
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation import diagnose, pairs

QUIET = Console(quiet=True)


@pytest.fixture
def diagnosed(digits_config, tmp_path, monkeypatch):
    """A function from a variant to what is returned, written and shown of its untrained predictor."""
    monkeypatch.setattr(pairs, "NUM_EXAMPLES", 64)
    monkeypatch.setattr(pairs, "BLOCK_SIZE", 64)

    def run(variant):
        config = digits_config(variant)
        config.predictor.width = 4
        experiment = build.experiment(config)
        state = experiment.initial_state(jax.random.key(0))
        output = io.StringIO()
        console = Console(file=output, width=80)
        result = diagnose.diagnose(config, experiment, state, directory=tmp_path / "new", console=console)
        return result, (tmp_path / "new" / "diagnostics.json").read_text(), output.getvalue()

    return run


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_a_flow_is_diagnosed(diagnosed):
    result, written, shown = diagnosed("hamjepa")
    assert json.loads(written, parse_constant=refuse) == result
    about = {name: result[name] for name in list(result)[:14]}
    assert about == {
        "step": 0,
        "seed": 42,
        "variant": "hamjepa",
        "predictor": "hamiltonian_flow",
        "energy": "separable_mlp",
        "scheme": "leapfrog",
        "step_size": 0.05,
        "num_steps": 2,
        # The first of ten epochs in which it comes in.
        "residual_scale": 0.002,
        "state_dim": 64,
        "num_states": 4,
        "num_rollouts": 32,
        "num_examples": 64,
        "data": "test",
    }
    assert set(result) - set(about) == {
        "log_abs_det",
        "symplectic_defect",
        "reversibility",
        "inverse",
        "singular_values",
        "rollout",
        "residual_force_ratio",
        "prediction",
        "sensitivity",
        "neighbourhood",
    }
    assert np.abs(result["log_abs_det"]["float64"]).max() < 1e-12
    assert len(result["reversibility"]["float32"]) == diagnose.NUM_ROLLOUTS
    assert len(result["rollout"]["applications"]) == len(result["rollout"]["energy"]["median"]) == 101
    assert 0 < result["residual_force_ratio"] < 0.1
    assert "flow of separable_mlp, leapfrog, τ = 0.05, K = 2, s = 0.002" in shown
    assert f"{result['prediction']['error']:.3g}" in shown
    for line in ("log|det J|", "max|JᵀΩJ − Ω|", "max|Φ⁻¹Φz − z|", "relative energy drift", "residual / base force"):
        assert line in shown
    assert "…" not in shown


def test_an_mlp_is_diagnosed_and_fails(diagnosed):
    result, written, shown = diagnosed("mlp")
    assert json.loads(written, parse_constant=refuse) == result
    for name in ("energy", "scheme", "step_size", "num_steps", "residual_scale", "inverse", "sensitivity"):
        assert result[name] is None, name
    assert result["residual_force_ratio"] is None
    assert result["rollout"]["energy"] is None
    assert min(result["symplectic_defect"]["float64"]) > 0.1
    assert max(result["log_abs_det"]["float64"]) < -1
    # Narrower than the state, it has a Jacobian that is not invertible.
    assert "J is singular" in shown
    assert "energy" not in shown
    assert "Φ⁻¹" not in shown


def test_only_states_are_diagnosed(digits_config, tmp_path):
    config = digits_config("sigreg")
    assert not diagnose.can_diagnose(config)
    assert diagnose.can_diagnose(digits_config("identity"))
    with pytest.raises(UserError, match=r"config.model.split_qp: must be true .* no state"):
        diagnose.diagnose(config, None, None, directory=tmp_path, console=QUIET)
    assert not list(tmp_path.iterdir())


def test_double_precision_needs_a_cpu(digits_config, tmp_path, monkeypatch):
    def unknown(*, backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(diagnose.jax, "local_devices", unknown)
    assert not diagnose.can_diagnose(digits_config("hamjepa"))
    with pytest.raises(UserError, match="JAX_PLATFORMS: must name cpu besides, such as tpu,cpu"):
        diagnose.diagnose(digits_config("hamjepa"), None, None, directory=tmp_path, console=QUIET)


@pytest.mark.parametrize("step", [1, 84, 85, 5000])
def test_the_residual_scale_is_that_of_the_last_step(digits_config, step):
    config = digits_config()
    experiment = build.experiment(config)
    assert experiment.steps_per_epoch == 42
    params = experiment.initial_state(jax.random.key(0)).params
    z_VxBxD = jax.random.normal(jax.random.key(1), (2, 32, 64))
    _, metrics = experiment.objective.loss(params, z_VxBxD, key=jax.random.key(0), step=step - 1)
    flow = diagnose.trained_predictor(
        config, experiment, experiment.initial_state(jax.random.key(0))._replace(step=step)
    )
    found = geometry.residual_force_ratio(
        flow.flow.energy, params["predictor"], *split_state(z_VxBxD[0]), residual_scale=flow.residual_scale
    )
    assert found == pytest.approx(float(metrics["residual_force_ratio"]), rel=1e-4)
