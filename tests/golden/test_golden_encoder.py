from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.interop.torch_checkpoint import encoder_from_state_dict
from hamjepa_jax.models.resnet import ResNetEncoder

TOKEN_CASES = ("cifar_layer2", "cifar_layer3", "cifar_layer3_nosplit", "cifar_layer4", "imagenet_layer3_hw8")
# Both stems and both strides; what is left out are stages like these with more channels.
ON_ONE_CPU = ("cifar_layer2", "imagenet_layer3_hw8")
RESNET18 = {"widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2)}
STAGE_CHANNELS = {"layer2": 128, "layer3": 256, "layer4": 512}


def shapes_of(shapes, settings):
    """The shapes of the state dict of a case; the file has those of `cifar_layer3`."""
    changed = {"token_proj.0.weight": [settings["token_d_f"], STAGE_CHANNELS[settings["token_layer"]], 1, 1]}
    changed |= {f"token_proj.1.{name}": [settings["token_d_f"]] for name in ("weight", "bias")}
    changed |= {f"token_proj.1.running_{name}": [settings["token_d_f"]] for name in ("mean", "var")}
    if settings["stem"] == "imagenet":
        changed["stem.0.weight"] = [64, 3, 7, 7]
    return shapes | changed


def seeded_images(seed, stream, shape):
    """Seeded images, drawn as (N, C, H, W) and returned as (N, H, W, C)."""
    return np.random.default_rng([seed, stream]).standard_normal(shape).transpose(0, 2, 3, 1)


def norms_by_torch_name(gradient, arrays):
    """The norm of every gradient of ours under the PyTorch name of its parameter."""
    names = list(arrays)
    numbered = encoder_from_state_dict({name: np.full(arrays[name].shape, i) for i, name in enumerate(names)})
    norms = jax.tree.map(
        lambda leaf, number: (names[number.flat[0]], jnp.linalg.norm(leaf)), gradient, numbered["params"]
    )
    return dict(jax.tree.leaves(norms, is_leaf=lambda node: isinstance(node, tuple)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "spatial_first"), [*((case, False) for case in TOKEN_CASES), *((case, True) for case in ON_ONE_CPU)]
)
def test_token_encoder(golden, seeded_state_dict, precisions, rectifiers, case, spatial_first):
    numbers = golden("encoder")
    arrays = seeded_state_dict(int(numbers["seed"]), shapes_of(numbers["state_dict_shapes"], numbers[f"{case}_kwargs"]))
    switches = None
    for precision in precisions:
        with precision.context():
            switches = check_token_encoder(precision, numbers, case, arrays, spatial_first, rectifiers, switches)


def check_token_encoder(precision, numbers, case, arrays, spatial_first, rectifiers, switches):
    """Compares embeddings, statistics and gradients; returns what the rectifiers let pass in training."""
    seed, settings = int(numbers["seed"]), numbers[f"{case}_kwargs"]
    variables = precision.arrays(encoder_from_state_dict(arrays))
    encoder = ResNetEncoder(
        **RESNET18,
        stem=settings["stem"],
        mode="tokens",
        token_layer=int(settings["token_layer"].removeprefix("layer")),
        token_hw=settings.get("token_hw"),
        token_d_f=settings["token_d_f"],
        split_qp=settings["split_qp"],
        out_dim=settings["out_dim"],
        dtype=jnp.dtype(precision.dtype),
        spatial_first=spatial_first,
    )
    images = precision.arrays(seeded_images(seed, 999, numbers[f"{case}_input_shape"]))
    rectifiers.begin()
    evaluated = jax.jit(lambda variables: encoder.apply(variables, images, train=False))(variables)
    precision.assert_close(evaluated, numbers[f"{case}_eval"], "evaluation")

    cotangent = precision.arrays(np.random.default_rng([seed, 998]).standard_normal(evaluated.shape))

    @jax.jit
    def train_pass(params, switches):
        def loss(params):
            rectifiers.begin(switches)
            variables_in_training = {"params": params, "batch_stats": variables["batch_stats"]}
            z, updated = encoder.apply(variables_in_training, images, train=True, mutable=["batch_stats"])
            return jnp.sum(z * cotangent), (z, updated["batch_stats"], rectifiers.switches)

        return jax.grad(loss, has_aux=True)(params)

    gradient, (z, batch_stats, switches) = train_pass(variables["params"], switches)
    precision.assert_close(z, numbers[f"{case}_train"], "training")
    for module, name in (("stem.1", "stem_bn"), ("token_proj.1", "token_bn")):
        for statistic in ("mean", "var"):
            precision.assert_close(
                batch_stats[name][statistic], numbers[f"{case}_after_{module}.running_{statistic}"], module
            )
    expected = dict(zip(numbers[f"{case}_grad_names"], numbers[f"{case}_grad_norms"], strict=True))
    for name, gradient_norm in norms_by_torch_name(gradient, arrays).items():
        precision.assert_close(gradient_norm, expected.pop(name), name)
    assert not expected
    return switches


@pytest.mark.slow
def test_global_encoder(golden, seeded_state_dict, precision):
    numbers = golden("encoder")
    seed = int(numbers["seed"])
    variables = encoder_from_state_dict(seeded_state_dict(seed, numbers["global_state_dict_shapes"]))
    encoder = ResNetEncoder(
        **RESNET18,
        stem="cifar",
        mode="global",
        token_layer=4,
        token_hw=None,
        token_d_f=32,
        split_qp=False,
        out_dim=64,
        dtype=jnp.dtype(precision.dtype),
    )
    variables, images = precision.arrays((variables, seeded_images(seed, 999, (4, 3, 32, 32))))
    for mode in ("eval", "train"):
        embed = partial(encoder.apply, train=mode == "train", mutable=["batch_stats"])
        z, _ = jax.jit(embed)(variables, images)
        precision.assert_close(z, numbers[f"global_{mode}"], mode)
