import jax
import jax.numpy as jnp
import pytest

from hamjepa_jax.stats import envelope, spectral

# The published chain, and the base spectra of the published envelope, are rounded to float32.
ROUNDED = {"float64": 1e-6}
ROUNDED_BASE = {0: {}, 1: ROUNDED, 2: ROUNDED}


def test_diag(golden, precision):
    numbers = golden("spectral")
    x = precision.arrays(numbers["x"])
    precision.assert_close(spectral.diag(x.shape[-1])(x), numbers["diag_out"])


@pytest.mark.parametrize("case", ["chain1d_trace", "chain1d_logdet_half"])
def test_chain(golden, precision, case):
    numbers = golden("spectral")
    x, settings = precision.arrays(numbers["x"]), numbers[f"{case}_kwargs"]
    assert settings.pop("mode") == "1d"
    precision.assert_close(spectral.chain(x.shape[-1], **settings)(x), numbers[f"{case}_out"], **ROUNDED)


@pytest.mark.parametrize("case", ["grid_trace", "grid_logdet"])
def test_grid(golden, precision, case):
    numbers = golden("spectral")
    x, settings = precision.arrays(numbers["x"]), numbers[f"{case}_kwargs"]
    assert settings.pop("mode") == "grid"
    precision.assert_close(spectral.grid(**settings)(x), numbers[f"{case}_out"])


@pytest.mark.parametrize("case", range(3))
def test_learnable_envelope(golden, precision, case):
    numbers, tolerance = golden("spectral"), ROUNDED_BASE[case]
    expected = {name: numbers[f"learnable_{case}_{name}"] for name in ("g_bins", "lambda", "out", "regularizer")}
    h, w, d_f = numbers["grid"].tolist()
    config = envelope.EnvelopeConfig(h=h, w=w, d_f=d_f, **numbers[f"learnable_{case}_kwargs"])
    factors = (config.alpha_init, config.beta_init)
    z, params = precision.arrays(
        (numbers["x"], {name: numbers[f"learnable_{case}_{name}"] for name in ("raw_shape", "raw_span")})
    )
    precision.assert_close(envelope.init(config)["raw_span"], params["raw_span"], float64=1e-6, float32=1e-6)

    def loss(params):
        out = envelope.sqrt_h(params, config, z, *factors)
        charge = envelope.penalty(params, config, *factors)
        return jnp.mean(jnp.square(out)) + charge, (out, charge)

    (_, (out, charge)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    precision.assert_close(envelope.log_envelope(params, config), expected["g_bins"])
    precision.assert_close(envelope.eigenvalues(params, config, *factors), expected["lambda"], **tolerance)
    precision.assert_close(out, expected["out"], **tolerance)
    precision.assert_close(charge, expected["regularizer"], **tolerance)
    for name in params:
        precision.assert_close(gradient[name], numbers[f"learnable_{case}_grad_{name}"], name, **tolerance)
