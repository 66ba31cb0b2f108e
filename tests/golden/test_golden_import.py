import jax.numpy as jnp
import numpy as np
import pytest
import torch_writer

from hamjepa_jax import pretrained
from hamjepa_jax.interop import torch_file
from hamjepa_jax.interop.imported_run import main
from hamjepa_jax.interop.torch_checkpoint import predictor_from_state_dict

ENERGY_SHAPES = {
    f"H.residual_V.{layer}.{kind}": shape
    for layer, (inputs, outputs) in {0: (1024, 256), 2: (256, 256), 4: (256, 1)}.items()
    for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))
}


@pytest.mark.slow
def test_a_published_checkpoint_becomes_a_run_that_embeds_as_published(
    golden, seeded_state_dict, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch_file, "has_torch", lambda: False)
    numbers = golden("encoder")
    seed = int(numbers["seed"])
    energy = seeded_state_dict(seed + 1, ENERGY_SHAPES)
    saved = {
        "config": {"epochs": 30},
        "epoch": 30,
        "encoder": seeded_state_dict(seed, numbers["state_dict_shapes"]),
        "projector": {},
        "regularizer": None,
        "predictor": energy | {"dt": np.array(0.1, "f4")},
    }
    torch_writer.write(tmp_path / "published.pth", saved)
    assert main([str(tmp_path / "published.pth"), f"--workdir={tmp_path}/run"]) == 0
    said = capsys.readouterr().out
    assert "cifar100_imported hamjepa: basic blocks (2, 2, 2, 2) of widths (64, 128, 256, 512), tokens" in said
    assert "trained for 30 epochs there; here it counts from step 0" in said

    model = pretrained.load(tmp_path / "run")
    assert (model.step, model.state_dim, model.config.predictor.step_size) == (0, 2048, pytest.approx(0.1))
    # From the first step on the learned part of the energy acts in full.
    assert model.residual_scale == 0.02
    shape = numbers["cifar_layer3_input_shape"]
    images = np.random.default_rng([seed, 999]).standard_normal(shape).transpose(0, 2, 3, 1)
    encoder = model.encoder.clone(dtype=jnp.float32)
    z = encoder.apply(model.variables, jnp.asarray(images, jnp.float32), train=False)
    expected = numbers["cifar_layer3_eval"]
    np.testing.assert_allclose(z, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    layers = predictor_from_state_dict(energy)["layers"]
    for found, wanted in zip(model.predictor_params["layers"], layers, strict=True):
        np.testing.assert_array_equal(found["kernel"], wanted["kernel"].astype("f4"))
        np.testing.assert_array_equal(found["bias"], wanted["bias"].astype("f4"))
