from functools import partial

import jax
import pytest

from hamjepa_jax import objectives
from hamjepa_jax.dynamics import energies, predictors
from hamjepa_jax.prediction import prediction_error

ENERGY = energies.separable_mlp(hidden_dim=20, depth=2, base_coeff=0.1)
FLOW = predictors.hamiltonian_flow(ENERGY, step_size=0.05, num_steps=2)


def params_of(numbers, prefix):
    return {
        "layers": [{"kernel": numbers[f"{prefix}_w{i}"], "bias": numbers[f"{prefix}_b{i}"]} for i in range(3)],
    }


@pytest.mark.parametrize("form", ["cifar100", "imagenet100"])
def test_hamjepa(golden, precision, published_hamjepa, form):
    numbers = golden("objectives")
    z, params, projection_q, projection_p = precision.arrays(
        (numbers["z_views"], params_of(numbers, "param"), numbers["projection_q"], numbers["projection_p"])
    )

    def objective(z, params):
        return objectives.hamjepa(
            z,
            params,
            predictor=FLOW,
            projection_q=projection_q,
            projection_p=projection_p,
            residual_scale=0.02,
            **published_hamjepa[form],
        )

    (loss, metrics), gradients = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))(z, params)
    precision.assert_close(loss, numbers[f"{form}_total"], "total")
    for term in ("prediction", "budget", "variance", "logdet", "mean"):
        precision.assert_close(metrics[term], numbers[f"{form}_{term}"], term)
    precision.assert_close(gradients[0], numbers[f"{form}_grad_z"], "gradient of the views")
    jax.tree.map(precision.assert_close, gradients[1], params_of(numbers, f"{form}_grad"))


def test_lejepa_prediction(golden, precision):
    numbers = golden("objectives")
    directions = precision.arrays(jax.numpy.eye(numbers["z_views"].shape[-1]))
    value, gradient = jax.value_and_grad(
        lambda z: objectives.lejepa(
            z, directions, num_global_views=int(numbers["lejepa_num_global"]), sigreg_weight=0.0
        )[0]
    )(precision.arrays(numbers["z_views"]))
    precision.assert_close(value, numbers["lejepa_prediction"])
    precision.assert_close(gradient, numbers["lejepa_grad_z"])


def test_energy_consistency(golden, precision):
    numbers = golden("objectives")
    z, params = precision.arrays((numbers["z_views"], params_of(numbers, "param")))
    prediction = partial(
        prediction_error,
        predictor=FLOW,
        energy=ENERGY,
        residual_scale=0.02,
        pairing="first_two",
        num_global_views=2,
        match="qp",
        p_weight=0.2,
        bidirectional="inverse",
        detach_target=False,
        energy_weight=0.7,
    )
    value, gradient = jax.jit(jax.value_and_grad(prediction))(z, params)
    precision.assert_close(value, numbers["energy_match_value"])
    precision.assert_close(gradient, numbers["energy_match_grad_z"])
