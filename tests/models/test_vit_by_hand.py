"""The vision transformer against numpy, one image, one head and one query at a time."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.models import vit
from hamjepa_jax.models.vit import SelfAttention, ViTEncoder, position_embedding


def build(**changes):
    """An encoder, variables of which none is zero or one, and images of 2 × 3 patches."""
    settings = {"patch_size": 4, "hidden_dim": 8, "depth": 2, "num_heads": 2, "num_registers": 2}
    head = {"mode": "global", "token_hw": None, "token_d_f": 4, "split_qp": False, "out_dim": 10}
    encoder = ViTEncoder(**settings | head | changes)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 8, 12, 3))
    shapes = jax.eval_shape(partial(encoder.init, train=False), jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: 0.3 + 0.4 * rng.standard_normal(leaf.shape), shapes)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(lambda leaf: 0.5 + np.abs(leaf), variables["batch_stats"])
    return encoder, variables, images


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def layer_norm(x, params):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def attend(x, params, num_heads):
    """Self-attention of tokens (T, C), one head and one query at a time."""
    query, key, value = (dense(x, params[name]) for name in ("query", "key", "value"))
    size = x.shape[-1] // num_heads
    heads = []
    for head in range(num_heads):
        channels = slice(head * size, (head + 1) * size)
        outputs = []
        for position in range(len(x)):
            weights = np.exp(key[:, channels] @ query[position, channels] / np.sqrt(size))
            outputs.append(weights @ value[:, channels] / weights.sum())
        heads.append(np.array(outputs))
    return dense(np.concatenate(heads, axis=-1), params["out"])


def sines_and_cosines(i, j, dim):
    angles = [[place / 10000 ** (4 * k / dim) for k in range(dim // 4)] for place in (i, j)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)])


def embed_by_hand(params, image, *, side, num_heads, depth):
    """The map of the patches (h, w, C) of one image."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    tokens = list(params["registers"])
    for i in range(rows):
        for j in range(columns):
            pixels = image[i * side : (i + 1) * side, j * side : (j + 1) * side]
            patch = np.tensordot(pixels, params["patch_embedding"]["kernel"], 3) + params["patch_embedding"]["bias"]
            tokens.append(patch + sines_and_cosines(i, j, len(patch)))
    x = np.array(tokens)
    for number in range(1, depth + 1):
        block = params[f"block{number}"]
        x = x + attend(layer_norm(x, block["attention_norm"]), block["attention"], num_heads)
        hidden = dense(layer_norm(x, block["mlp_norm"]), block["mlp"]["hidden"])
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + dense(hidden, block["mlp"]["out"])
    return layer_norm(x, params["final_norm"])[len(params["registers"]) :].reshape(rows, columns, -1)


@pytest.mark.parametrize("mode", ["tokens", "global"])
def test_the_encoder_by_hand(float64, mode):
    encoder, variables, images = build(mode=mode, dtype=jnp.float64)
    params = variables["params"]
    maps = np.array([embed_by_hand(params, image, side=4, num_heads=2, depth=2) for image in images])
    if mode == "global":
        expected = dense(maps.mean(axis=(1, 2)), params["head"])
    else:
        stats = variables["batch_stats"]["token_bn"]
        tokens = (maps @ params["token_conv"]["kernel"][0, 0] - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        expected = (tokens * params["token_bn"]["scale"] + params["token_bn"]["bias"]).reshape(3, -1)
    found = jax.jit(partial(encoder.apply, train=False))(variables, images)
    # The softmax and the positions are float32 here too.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_attention_by_hand():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, 6))
    attention = SelfAttention(num_heads=3, dtype=jnp.float32)
    shapes = jax.eval_shape(attention.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)
    expected = [attend(tokens, variables["params"], 3) for tokens in x]
    np.testing.assert_allclose(jax.jit(attention.apply)(variables, x), expected, atol=1e-4)


def test_positions_are_sines_and_cosines_of_row_and_column():
    found = position_embedding(3, 5, 12)
    expected = [[sines_and_cosines(i, j, 12) for j in range(5)] for i in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(position_embedding(2, 3, 12), found[:2, :3])
    assert len(np.unique(np.asarray(found).reshape(15, 12), axis=0)) == 15


def test_channels_that_hardly_vary_are_not_blown_up(monkeypatch):
    monkeypatch.setattr(vit, "position_embedding", lambda *shape: jnp.zeros(shape))
    encoder, variables, images = build(patch_size=1, num_registers=0, depth=0)
    params = variables["params"]
    params["patch_embedding"]["bias"] = np.zeros(8)
    patches = 1e-3 * images @ params["patch_embedding"]["kernel"][0, 0]
    expected = dense(layer_norm(patches, params["final_norm"]).mean(axis=(1, 2)), params["head"])
    found = jax.jit(partial(encoder.apply, train=False))(variables, 1e-3 * images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
