from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.dynamics import energies, predictors
from hamjepa_jax.evaluation import diagnostics
from hamjepa_jax.evaluation.diagnostics import Flow, Trained
from hamjepa_jax.prediction import matching_error

DIM, COUNT = 8, 24
MATCHING = {"match": "q", "p_weight": 0.2}


def states(seed=0):
    return jax.random.normal(jax.random.key(seed), (COUNT, DIM))


def trained(predictor, *, invertible=False, flow=None):
    return Trained(predictor, predictor.init(jax.random.key(7), DIM), 0.5, invertible, flow)


def a_flow(scheme="leapfrog", *, energy=None, step_size=0.1, num_steps=2):
    energy = energies.separable_mlp(hidden_dim=6, depth=2, base_coeff=0.5) if energy is None else energy
    predictor = predictors.hamiltonian_flow(energy, step_size=step_size, num_steps=num_steps, scheme=scheme)
    return trained(predictor, invertible=True, flow=Flow(energy, step_size, num_steps, scheme))


def an_mlp():
    return trained(predictors.mlp(hidden_dim=16, depth=1))


def a_linear_map(matrix):
    return trained(predictors.linear())._replace(
        params={"layers": [{"kernel": jnp.asarray(matrix, jnp.float32).T, "bias": jnp.zeros(DIM)}]}
    )


def test_a_flow_keeps_volume_and_is_symplectic_up_to_the_rounding_of_either_precision():
    found = diagnostics.jacobians(a_flow(), states()[:3])
    for name in ("log_abs_det", "symplectic_defect"):
        wide, narrow = (np.abs(found[name][dtype]) for dtype in ("float64", "float32"))
        assert wide.shape == narrow.shape == (3,)
        assert np.all(wide < 1e-13), name
        assert np.all((narrow > 1e-9) & (narrow < 1e-5)), name
    # Singular values of a symplectic matrix come in pairs of product one.
    largest, smallest = (np.array(found["singular_values"][name]) for name in ("largest", "smallest"))
    assert np.all(largest > 1.01)
    np.testing.assert_allclose(largest * smallest, np.ones(3))


def test_double_precision_ends_with_the_diagnosis():
    z = states()
    diagnostics.jacobians(a_flow(), z[:1])
    assert not jax.config.jax_enable_x64
    assert (z + 1.0).dtype == jnp.float32


def test_a_linear_map_has_the_determinant_and_the_singular_values_of_its_matrix():
    matrix = np.random.default_rng(0).normal(size=(DIM, DIM)).astype(np.float32).astype(np.float64)
    found = diagnostics.jacobians(a_linear_map(matrix), states()[:2])
    singular_values = np.linalg.svd(matrix, compute_uv=False)
    expected = np.log(np.abs(np.linalg.det(matrix)))
    np.testing.assert_allclose(found["log_abs_det"]["float64"], [expected] * 2, rtol=1e-12)
    np.testing.assert_allclose(found["log_abs_det"]["float32"], [expected] * 2, rtol=1e-5)
    np.testing.assert_allclose(found["singular_values"]["largest"], [singular_values[0]] * 2, rtol=1e-12)
    np.testing.assert_allclose(found["singular_values"]["smallest"], [singular_values[-1]] * 2, rtol=1e-12)


def test_a_jacobian_that_is_not_finite_is_no_crash():
    found = diagnostics.jacobians(a_linear_map(np.full((DIM, DIM), np.inf)), states()[:1])
    assert not np.isfinite(found["log_abs_det"]["float64"]).any()
    assert not np.isfinite(found["singular_values"]["largest"]).any()


def test_an_mlp_fails_every_symplectic_check():
    found = diagnostics.jacobians(an_mlp(), states()[:3]) | diagnostics.round_trips(an_mlp(), states())
    for dtype in ("float64", "float32"):
        assert np.all(np.abs(found["log_abs_det"][dtype]) > 1)
        assert np.all(np.array(found["symplectic_defect"][dtype]) > 0.1)
        assert np.all(found["reversibility"][dtype] > 0.1)
    assert found["inverse"] is None


@pytest.mark.parametrize(
    ("make", "reversible"),
    [
        (a_flow, True),
        (lambda: trained(predictors.identity(), invertible=True), True),
        (lambda: _turned(trained(predictors.rotation(rank=2), invertible=True)), False),
    ],
    ids=["flow", "identity", "rotation"],
)
def test_maps_with_an_inverse_are_undone_by_it(make, reversible):
    found = diagnostics.round_trips(make(), states())
    for dtype, rounding in (("float64", 1e-13), ("float32", 1e-5)):
        assert found["inverse"][dtype].shape == (COUNT,)
        assert np.all(found["inverse"][dtype] < rounding)
        assert np.all(found["reversibility"][dtype] < rounding) == reversible


def _turned(rotation):
    """A rotation that is not the identity, as it is before training."""
    return rotation._replace(params=rotation.params | {"right": jnp.flip(rotation.params["left"])})


def test_a_flow_keeps_its_energy_over_a_thousand_applications_and_the_modified_one_better():
    found = diagnostics.rollouts(a_flow(), states())
    np.testing.assert_array_equal(found["applications"], np.arange(0, 1001, 10))
    energy, modified, norm = ([found[name][part] for part in ("lower", "median", "upper")] for name in list(found)[1:])
    assert np.all(np.diff(energy, axis=0) >= 0)
    assert np.all(np.diff(norm, axis=0) >= 0)
    assert 1e-7 < np.abs(energy).max() < 0.01
    assert np.abs(modified).max() < 0.01 * np.abs(energy).max()
    assert np.array(energy).shape == (3, 101)
    np.testing.assert_array_equal(np.array(energy)[:, 0], np.zeros(3))
    np.testing.assert_array_equal(np.array(norm)[:, 0], np.ones(3))


@pytest.mark.parametrize(
    ("scheme", "energy", "known"),
    [
        ("published_leapfrog", energies.quadratic(), True),
        ("yoshida4", energies.quadratic(), False),
        ("implicit_midpoint", energies.coupled_mlp(hidden_dim=2, depth=1), False),
    ],
)
def test_a_modified_energy_is_given_for_leapfrog_of_a_separable_energy_only(scheme, energy, known, monkeypatch):
    monkeypatch.setattr(diagnostics, "NUM_APPLICATIONS", 20)
    found = diagnostics.rollouts(a_flow(scheme, energy=energy), states())
    assert found["energy"] is not None
    assert (found["modified_energy"] is not None) == known


def test_norms_over_a_rollout_are_known_for_a_scaling_and_may_overflow():
    found = diagnostics.rollouts(a_linear_map(1.0625 * np.eye(DIM)), states())
    assert found["energy"] is None
    assert found["modified_energy"] is None
    for part in ("lower", "median", "upper"):
        np.testing.assert_allclose(found["norm"][part], 1.0625 ** np.arange(0.0, 1001.0, 10.0), rtol=1e-10)
    found = diagnostics.rollouts(a_linear_map(4 * np.eye(DIM)), states())
    assert np.all(np.isfinite(found["norm"]["median"][:20]))
    assert not np.isfinite(found["norm"]["median"][-1])


def test_what_overflows_in_a_few_states_leaves_the_other_quartiles():
    x = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, np.inf, np.nan]])
    band = diagnostics.band(x)
    np.testing.assert_array_equal(band["median"], [3.0, 3.0])
    np.testing.assert_array_equal(band["lower"], [2.0, 2.0])
    assert band["upper"][0] == 4.0
    assert not np.isfinite(band["upper"][1])


def test_prediction_errors_by_hand():
    z0, z1 = states(0), states(1)
    found = diagnostics.prediction_errors(a_linear_map(2 * np.eye(DIM)), z0, z1, **MATCHING)

    def expected(prediction):
        squares = np.square(np.asarray(prediction) - np.asarray(z1))
        return squares[:, : DIM // 2].mean() + 0.2 * squares[:, DIM // 2 :].mean()

    assert found["error"] == pytest.approx(expected(2 * z0), rel=1e-5)
    assert found["identity"] == pytest.approx(expected(z0), rel=1e-5)
    assert found["mean"] == pytest.approx(expected(np.mean(z1, axis=0)), rel=1e-5)
    whole = diagnostics.prediction_errors(an_mlp(), z0, z1, match="qp", p_weight=0.2)
    assert whole["identity"] == pytest.approx(np.square(z0 - z1).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("scheme", "energy"),
    [
        ("leapfrog", energies.separable_mlp(hidden_dim=6, depth=2, base_coeff=0.5)),
        # Its steps are not independent of each other.
        pytest.param(
            "published_leapfrog",
            energies.coupled_mlp(hidden_dim=4, depth=1),
            marks=pytest.mark.filterwarnings("ignore:published_leapfrog is not symplectic"),
        ),
    ],
)
def test_sensitivity_is_the_error_of_a_flow_with_other_steps(scheme, energy):
    flow, z0, z1 = a_flow(scheme, energy=energy, num_steps=3), states(0), states(1)
    found = diagnostics.sensitivity(flow, z0, z1, **MATCHING)
    np.testing.assert_allclose(found["step_size"], [0.0, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8])
    assert found["num_steps"] == [0, 1, 2, 3, 4, 8, 16]
    assert found["trained"] == {"step_size": 0.1, "num_steps": 3}
    error = found["error"]
    assert error.shape == (7, 7)
    known = diagnostics.prediction_errors(flow, z0, z1, **MATCHING)
    np.testing.assert_allclose(error[0], np.full(7, known["identity"]), rtol=1e-6)
    np.testing.assert_allclose(error[:, 0], np.full(7, known["identity"]), rtol=1e-6)
    assert error[3, 3] == pytest.approx(known["error"], rel=1e-5)
    other = a_flow(scheme, energy=energy, num_steps=8, step_size=0.4)
    assert error[5, 5] == pytest.approx(diagnostics.prediction_errors(other, z0, z1, **MATCHING)["error"], rel=1e-5)
    assert len(np.unique(error[1:, 1:].round(7))) == 36


def test_the_error_vanishes_at_the_steps_that_made_the_target():
    z0, target = states(), a_flow(step_size=0.2, num_steps=4)
    z1 = target.apply(target.params, z0)
    found = diagnostics.sensitivity(a_flow(), z0, z1, **MATCHING)
    at = found["num_steps"].index(4), found["step_size"].index(0.2)
    assert found["error"][at] < 1e-10
    # As long a time in other steps comes close, to the order of the integrator.
    found["error"][at] = np.inf
    assert found["error"].min() > 1e-7


def test_other_predictors_have_no_steps_and_no_forces():
    assert diagnostics.sensitivity(an_mlp(), states(), states(1), **MATCHING) is None
    assert diagnostics.residual_force_ratio(an_mlp(), states()) is None


def test_residual_force_ratio_grows_with_the_residual_scale():
    flow = a_flow()
    whole, tenth = (
        diagnostics.residual_force_ratio(flow._replace(residual_scale=scale), states()) for scale in (0.5, 0.05)
    )
    assert whole > 0.01
    assert tenth == pytest.approx(0.1 * whole, rel=1e-4)


def test_neighbours_are_kept_by_a_scaling_and_by_chance_alone_in_noise():
    key_x, key_y = jax.random.split(jax.random.key(3))
    x = jax.random.normal(key_x, (400, DIM))
    kept = diagnostics.neighbourhood(x, 3.0 * x)
    assert kept["k"] == [1, 5, 10, 20, 50]
    assert kept["overlap"] == [1.0] * 5
    lost = diagnostics.neighbourhood(x, jax.random.normal(key_y, (400, DIM)))
    np.testing.assert_allclose(lost["chance"], np.array([1, 5, 10, 20, 50]) / 399)
    np.testing.assert_allclose(lost["overlap"], lost["chance"], atol=0.01)


def test_neighbours_kept_by_hand():
    angles = np.radians([0.0, 10.0, 25.0, 180.0])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # From the nearest on: 0 has 1, 2, 3; 1 has 0, 2, 3; 2 has 1, 0, 3; 3 has 2, 1, 0.
    y = x[[0, 3, 1, 2]]
    # Now 0 has 2, 3, 1; 1 has 3, 2, 0; 2 has 0, 3, 1; 3 has 2, 0, 1.
    found = diagnostics.neighbourhood(x, y, ks=(1, 2, 3, 4))
    assert found["k"] == [1, 2, 3]
    assert found["overlap"] == pytest.approx([1 / 4, 4 / 8, 1.0])
    assert found["chance"] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert diagnostics.neighbourhood(x[:1], y[:1])["k"] == []


def test_all_numbers_together():
    found = diagnostics.diagnostics(a_flow(), states(0), states(1), **MATCHING, num_jacobians=2, num_rollouts=3)
    assert [len(values) for values in found["symplectic_defect"].values()] == [2, 2]
    assert [len(values) for values in found["reversibility"].values()] == [3, 3]
    assert found["neighbourhood"]["k"] == [1, 5, 10, 20]
    assert found["neighbourhood"]["overlap"][1] > 0.5
    flow = a_flow()
    expected = partial(matching_error, match="q", p_weight=0.2)(flow.apply(flow.params, states(0)), states(1))
    assert found["prediction"]["error"] == pytest.approx(float(expected), rel=1e-5)
