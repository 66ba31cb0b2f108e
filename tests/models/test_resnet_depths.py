import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from hamjepa_jax.models.resnet import BLOCKS, BottleneckBlock, ResNetEncoder

ARCHITECTURES = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
SETTINGS = {
    "widths": (64, 128, 256, 512),
    "stem": "imagenet",
    "mode": "global",
    "token_layer": 3,
    "token_hw": 8,
    "token_d_f": 32,
    "split_qp": True,
    "out_dim": 1000,
}


def abstract(name, image_size=224, **changes):
    block, depths = ARCHITECTURES[name]
    encoder = ResNetEncoder(**SETTINGS | {"block": block, "depths": depths} | changes)
    images = jnp.zeros((2, image_size, image_size, 3))
    return jax.eval_shape(partial(encoder.init_with_output, train=False), jax.random.key(0), images)


@pytest.mark.parametrize(
    ("name", "total"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_parameters_are_as_many_as_published(name, total):
    embedding, variables = abstract(name)
    assert embedding.shape == (2, 1000)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == total


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 256), ("resnet34", 256), ("resnet50", 1024)])
def test_tokens_of_every_depth(name, channels):
    sizes = [abstract(name, image_size, mode="tokens") for image_size in (224, 96)]
    assert [embedding.shape for embedding, _ in sizes] == [(2, 2048), (2, 2048)]
    assert sizes[0][1] == sizes[1][1]
    assert sizes[0][1]["params"]["token_conv"]["kernel"].shape == (1, 1, channels, 32)


def test_blocks_are_basic_unless_said_otherwise():
    assert tuple(BLOCKS) == ("basic", "bottleneck")
    encoder = ResNetEncoder(**SETTINGS, depths=(2, 2, 2, 2))
    init = partial(encoder.init, jax.random.key(0), train=False)
    assert jax.eval_shape(init, jnp.zeros((2, 32, 32, 3))) == abstract("resnet18")[1]


def normalise(x, params, stats):
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def convolve(x, kernel, stride):
    """A convolution of every window of the zero-padded image, the centres a stride apart."""
    reach = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    rows, columns = (range(0, length, stride) for length in x.shape[1:3])
    windows = [[padded[:, i : i + 2 * reach + 1, j : j + 2 * reach + 1] for j in columns] for i in rows]
    return np.einsum("ijnabc,abcd->nijd", np.array(windows), kernel)


@pytest.mark.parametrize(("channels", "stride", "image_size"), [(8, 1, 4), (3, 1, 4), (8, 2, 4), (3, 2, 5), (8, 2, 1)])
def test_bottleneck_by_hand(float64, channels, stride, image_size):
    block = BottleneckBlock(2, stride, jnp.float64)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, image_size, image_size, channels))
    shapes = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: np.abs(rng.standard_normal(leaf.shape)) - 0.3, shapes)
    variables["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + 0.5, variables["batch_stats"])
    params, stats = variables["params"], variables["batch_stats"]

    y = x
    for number, step in ((1, 1), (2, stride), (3, 1)):
        y = convolve(y if number == 1 else np.maximum(y, 0), params[f"conv{number}"]["kernel"], step)
        y = normalise(y, params[f"bn{number}"], stats[f"bn{number}"])
    shortcut = x
    if channels != 8 or stride == 2:
        shortcut = convolve(x, params["shortcut_conv"]["kernel"], stride)
        shortcut = normalise(shortcut, params["shortcut_bn"], stats["shortcut_bn"])
    else:
        assert set(params) == {f"{kind}{number}" for kind in ("conv", "bn") for number in (1, 2, 3)}
    found = jax.jit(partial(block.apply, train=False))(variables, x)
    assert found.shape == (2, math.ceil(image_size / stride), math.ceil(image_size / stride), 8)
    np.testing.assert_allclose(found, np.maximum(y + shortcut, 0), rtol=1e-10, atol=1e-10)


def test_the_bottleneck_is_normalised_by_the_batch_in_training():
    block = BottleneckBlock(2, 1, jnp.float32)
    x = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    variables = jax.jit(partial(block.init, train=False))(jax.random.key(0), x)
    _, updated = jax.jit(partial(block.apply, train=True, mutable=["batch_stats"]))(variables, x)
    for name, statistics in updated["batch_stats"].items():
        assert np.all(statistics["mean"] != 0), name
    assert set(updated["batch_stats"]) == {"bn1", "bn2", "bn3", "shortcut_bn"}


def test_the_bottleneck_is_initialised_as_published():
    block = BottleneckBlock(64, 2, jnp.float32)
    params = jax.jit(partial(block.init, train=False))(jax.random.key(0), jnp.zeros((1, 2, 2, 128)))["params"]
    fans_out = {"conv1": 64, "conv2": 9 * 64, "conv3": 256, "shortcut_conv": 256}
    for name, fan_out in fans_out.items():
        assert np.std(params[name]["kernel"]) == pytest.approx(np.sqrt(2 / fan_out), rel=0.05)
    for path, values in traverse_util.flatten_dict(params).items():
        if path[0] not in fans_out:
            np.testing.assert_array_equal(values, 1.0 if path[-1] == "scale" else 0.0)


def test_bottlenecks_compute_in_bfloat16(equations):
    block = BottleneckBlock(2, 2, jnp.bfloat16)
    x = jnp.zeros((2, 4, 4, 3))
    variables = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), x)
    traced = equations(jax.make_jaxpr(partial(block.apply, train=False))(variables, x).jaxpr)
    convolutions = [equation for equation in traced if equation.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == 4
    assert all(operand.aval.dtype == jnp.bfloat16 for equation in convolutions for operand in equation.invars)
