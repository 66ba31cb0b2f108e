import numpy as np
import pytest

from hamjepa_jax.interop.torch_checkpoint import encoder_from_state_dict, predictor_from_state_dict


def block(prefix, channels):
    return {
        f"{prefix}.conv2.weight": np.zeros((channels, channels, 3, 3)),
        f"{prefix}.bn2.weight": np.ones(channels),
        f"{prefix}.bn2.running_var": np.full(channels, 2.0),
        f"{prefix}.bn2.num_batches_tracked": np.array(7),
    }


def test_convolutions_go_from_out_in_height_width_to_height_width_in_out():
    kernel = np.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    variables = encoder_from_state_dict({"stem.0.weight": kernel})
    assert variables["params"]["stem_conv"]["kernel"][4, 6, 2, 1] == kernel[1, 2, 4, 6]


def test_statistics_are_told_from_parameters():
    variables = encoder_from_state_dict(block("layer2.1", 4))
    assert set(variables["params"]["stage2_block2"]) == {"conv2", "bn2"}
    np.testing.assert_array_equal(variables["params"]["stage2_block2"]["bn2"]["scale"], 1)
    assert variables["batch_stats"]["stage2_block2"].keys() == {"bn2"}
    np.testing.assert_array_equal(variables["batch_stats"]["stage2_block2"]["bn2"]["var"], 2)


def test_stages_behind_the_tokens_are_left_out():
    arrays = block("layer1.0", 4) | block("layer2.0", 8) | block("layer3.0", 16)
    projection = {"token_proj.0.weight": np.zeros((6, 8, 1, 1))}
    assert set(encoder_from_state_dict(arrays)["params"]) == {"stage1_block1", "stage2_block1", "stage3_block1"}
    tokens = encoder_from_state_dict(arrays | projection)
    assert set(tokens["params"]) == {"stage1_block1", "stage2_block1", "token_conv"}
    assert set(tokens["batch_stats"]) == {"stage1_block1", "stage2_block1"}


def test_a_backbone_is_the_stem_and_the_stages():
    arrays = {"backbone.1.bias": np.zeros(4), "fc.weight": np.arange(6.0).reshape(2, 3)} | block("backbone.7.1", 4)
    params = encoder_from_state_dict(arrays)["params"]
    assert set(params) == {"stem_bn", "head", "stage4_block2"}
    np.testing.assert_array_equal(params["head"]["kernel"], arrays["fc.weight"].T)


@pytest.mark.parametrize("prefix", ["", "H."])
def test_an_energy_mlp_in_the_order_of_its_entries(prefix):
    arrays = {"dt": np.array(0.05)}
    for entry, shape in ((10, (1, 3)), (0, (3, 2)), (2, (3, 3))):
        arrays[f"{prefix}residual_V.{entry}.weight"] = np.arange(float(np.prod(shape))).reshape(shape)
        arrays[f"{prefix}residual_V.{entry}.bias"] = np.zeros(shape[0])
    layers = predictor_from_state_dict(arrays)["layers"]
    assert [layer["kernel"].shape for layer in layers] == [(2, 3), (3, 3), (3, 1)]
    np.testing.assert_array_equal(layers[0]["kernel"], [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize(
    "name", ["projector.0.weight", "layer1.0.conv9.weight", "layer1.0.bn1.scale", "layer5.0.conv1.weight", "fc"]
)
def test_an_unknown_entry_of_an_encoder_is_named(name):
    with pytest.raises(ValueError, match=f"{name}: not an entry of a ResNet encoder"):
        encoder_from_state_dict({name: np.zeros(3)})


def test_an_unknown_entry_of_an_energy_is_named():
    with pytest.raises(ValueError, match="residual_T.0.weight: not an entry of an energy MLP"):
        predictor_from_state_dict({"residual_T.0.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="residual_V.2: has only its bias"):
        predictor_from_state_dict({"residual_V.2.bias": np.zeros(2)})


def test_a_token_projection_of_no_stage_is_named():
    with pytest.raises(ValueError, match="token_proj.0.weight: takes 9 channels, which no stage gives"):
        encoder_from_state_dict(block("layer1.0", 4) | {"token_proj.0.weight": np.zeros((6, 9, 1, 1))})
