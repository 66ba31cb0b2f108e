from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hamjepa_jax.models import heads


class Tokens(nn.Module):
    token_hw: int | None = None
    split_qp: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        settings = {"token_hw": self.token_hw, "split_qp": self.split_qp, "token_d_f": 4, "dtype": x.dtype}
        return heads.token_embedding(x, **settings, train=train)


class Global(nn.Module):
    @nn.compact
    def __call__(self, x):
        return heads.global_embedding(x, out_dim=500, dtype=x.dtype)


def feature_maps(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("length", "means"), [(5, [1, 3]), (4, [0.5, 1.5, 2.5]), (2, [0, 0.5, 1])])
def test_adaptive_pool_bins_overlap(length, means):
    # 5 rows into 2 bins: rows 0–2 and rows 2–4. 4 rows into 3 bins: rows 0–1, 1–2 and 2–3. 2 rows into 3: 0, 0–1 and 1.
    rows = jnp.arange(float(length))[None, :, None, None] * jnp.ones((1, length, length, 1))
    pooled = heads.adaptive_average_pool(rows, len(means))[0, :, :, 0]
    np.testing.assert_allclose(pooled, np.array(means)[:, None] * np.ones(len(means)), rtol=1e-6)


def test_rows_and_columns_are_pooled_each_by_its_own_length():
    x = feature_maps(2, 4, 6, 3)
    pooled = heads.adaptive_average_pool(x, 2)
    np.testing.assert_allclose(pooled, x.reshape(2, 2, 2, 2, 3, 3).mean(axis=(2, 4)), atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("split_qp", [True, False])
def test_tokens_by_hand(train, split_qp):
    x = feature_maps(5, 2, 3, 6)
    encoder = Tokens(split_qp=split_qp)
    variables = jax.jit(partial(encoder.init, train=False))(jax.random.key(0), x)
    assert {name: set(values) for name, values in variables["params"].items()} == {
        "token_conv": {"kernel"},
        "token_bn": {"scale", "bias"},
    }
    z, _ = encoder.apply(variables, x, train=train, mutable=["batch_stats"])

    tokens = x @ variables["params"]["token_conv"]["kernel"][0, 0]
    if train:
        tokens = tokens - tokens.mean(axis=(0, 1, 2))
        tokens = tokens / np.sqrt((tokens**2).mean(axis=(0, 1, 2)) + 1e-5)
    expected = np.asarray(tokens).reshape(5, -1)
    if split_qp:
        q = [token[channel] for image in tokens for row in image for token in row for channel in (0, 1)]
        p = [token[channel] for image in tokens for row in image for token in row for channel in (2, 3)]
        expected = np.concatenate([np.reshape(q, (5, -1)), np.reshape(p, (5, -1))], axis=1)
    np.testing.assert_allclose(z, expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (5, 3), (2, 2)])
def test_maps_with_another_number_of_tokens_are_pooled(shape):
    x = feature_maps(2, *shape, 6)
    variables = jax.jit(partial(Tokens().init, train=False))(jax.random.key(0), x)
    pooled = x if shape == (3, 3) else heads.adaptive_average_pool(x, 3)
    expected = Tokens().apply(variables, pooled, train=False)
    np.testing.assert_array_equal(Tokens(token_hw=3).apply(variables, x, train=False), expected)


def test_the_global_embedding_is_a_dense_layer_of_the_average():
    x = feature_maps(5, 2, 3, 16)
    variables = jax.jit(Global().init)(jax.random.key(0), x)
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {"head"}
    head = variables["params"]["head"]
    expected = x.mean(axis=(1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(Global().apply(variables, x), expected, atol=1e-5)
    for values in head.values():
        assert 0.95 / 4 < np.abs(values).max() <= 1 / 4
        assert abs(values.mean()) < 0.02
