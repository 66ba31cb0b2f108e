import jax
import numpy as np
import pytest

from hamjepa_jax.dynamics import energies, predictors

pytestmark = pytest.mark.filterwarnings("ignore:.*not symplectic for a coupled energy")

PUBLISHED_SCHEMES = {"leapfrog": "published_leapfrog", "symplectic_euler": "symplectic_euler"}


def energy_of(case, numbers, index):
    """The energy of a case and its parameters."""
    layers = [
        {"kernel": numbers[f"param_w{layer}_{index}"], "bias": numbers[f"param_b{layer}_{index}"]} for layer in range(3)
    ]
    hidden_dim = layers[0]["bias"].size
    if case["energy"] == "general":
        return energies.coupled_mlp(hidden_dim=hidden_dim, depth=2), {"layers": layers}
    energy = energies.separable_mlp(hidden_dim=hidden_dim, depth=2, base_coeff=case["base_coeff"])
    return energy, {"layers": layers}


def flow_of(case, energy, scheme):
    """The map (params, z) → z of a case."""
    predictor = predictors.hamiltonian_flow(energy, step_size=case["dt"], num_steps=case["steps"], scheme=scheme)

    def flow(params, z):
        return predictor.apply(params, z, direction=case["direction"], residual_scale=case["residual_scale"])

    return flow


@pytest.mark.parametrize("index", range(5))
def test_flow(golden, precision, index):
    numbers = golden("flow")
    case = numbers["cases"][index]
    energy, params = energy_of(case, numbers, index)
    params, z, cotangent = precision.arrays((params, numbers["z0"], numbers["cotangent"]))
    flow = jax.jit(flow_of(case, energy, PUBLISHED_SCHEMES[case["method"]]))

    value = energy.value(params, *predictors.split_state(z), residual_scale=case["residual_scale"])
    precision.assert_close(value, numbers[f"energy_{index}"], "energy")
    out, pull_back = jax.vjp(flow, params, z)
    precision.assert_close(out, numbers[f"out_{index}"], "out")
    params_gradient, z_gradient = pull_back(cotangent)
    precision.assert_close(z_gradient, numbers[f"grad_z0_{index}"], "gradient of z")
    for layer, gradient in enumerate(params_gradient["layers"]):
        precision.assert_close(gradient["kernel"], numbers[f"grad_w{layer}_{index}"], f"kernel {layer}")
        precision.assert_close(gradient["bias"], numbers[f"grad_b{layer}_{index}"], f"bias {layer}")
    jacobian = jax.jacfwd(lambda z: flow(params, z))(z[0])
    precision.assert_close(jacobian, numbers[f"jacobian_{index}"], "Jacobian")


def test_published_leapfrog_is_leapfrog_but_for_a_coupled_energy(golden, float64):
    numbers = golden("flow")
    difference, volume = {}, {}
    for index, case in enumerate(numbers["cases"]):
        if case["method"] == "leapfrog":
            energy, params = energy_of(case, numbers, index)
            published, true = (
                flow_of(case, energy, scheme)(params, numbers["z0"]) for scheme in ("published_leapfrog", "leapfrog")
            )
            difference[case["energy"]] = np.abs(published - true).max()
            volume[case["energy"]] = np.linalg.det(numbers[f"jacobian_{index}"])
    assert difference["separable"] == 0
    assert difference["general"] > 0.01
    # Two of the three steps have the extra force, each in 12 dimensions with τ = 0.1.
    assert volume["separable"] == pytest.approx(1, abs=1e-12)
    assert volume["general"] == pytest.approx(np.exp(2 * 12 * 0.1**2 / 4), rel=1e-3)
