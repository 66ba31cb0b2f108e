from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from hamjepa_jax.models.batch_norm import BatchNorm
from hamjepa_jax.models.resnet import ResNetEncoder
from hamjepa_jax.step import embed_views

SMALL = {
    "widths": (4, 6, 8),
    "depths": (1, 2, 1),
    "stem": "cifar",
    "mode": "tokens",
    "token_layer": 2,
    "token_hw": None,
    "token_d_f": 4,
    "split_qp": True,
    "out_dim": 10,
}

# XLA drops the barriers on the CPU alone, and then merges what is computed again with what was computed before.
WITH_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def build(image_size=8, **changes):
    encoder = ResNetEncoder(**SMALL | changes)
    images = jax.random.normal(jax.random.key(0), (3, image_size, image_size, 1))
    return encoder, jax.jit(partial(encoder.init, train=False))(jax.random.key(1), images), images


@pytest.mark.parametrize(
    ("changes", "image_size", "dim"),
    [
        ({}, 8, 4 * 4 * 4),
        ({"token_layer": 3}, 8, 2 * 2 * 4),
        ({"token_hw": 3}, 8, 3 * 3 * 4),
        ({"stem": "imagenet"}, 32, 4 * 4 * 4),
        ({"mode": "global"}, 8, 10),
    ],
)
def test_embedding_sizes(changes, image_size, dim):
    encoder, variables, images = build(image_size, **changes)
    assert encoder.apply(variables, images, train=False).shape == (3, dim)


def test_stages_after_the_token_layer_are_not_built():
    _, variables, _ = build(token_layer=2)
    names = {name for name in variables["params"] if name.startswith("stage")}
    assert names == {"stage1_block1", "stage2_block1", "stage2_block2"}
    shortcuts = {name for name in names if "shortcut_conv" in variables["params"][name]}
    assert shortcuts == {"stage2_block1"}


def test_split_gathers_the_first_half_of_every_tokens_channels_into_q():
    split, variables, images = build()
    z = split.apply(variables, images, train=False)
    whole, _, _ = build(split_qp=False)
    tokens = whole.apply(variables, images, train=False).reshape(3, 4 * 4, 4)
    q, p = jnp.split(z, 2, axis=-1)
    np.testing.assert_array_equal(q, tokens[..., :2].reshape(3, -1))
    np.testing.assert_array_equal(p, tokens[..., 2:].reshape(3, -1))


def test_initialisation_is_the_published_one():
    _, variables, _ = build(image_size=32, widths=(64, 128, 128), token_d_f=64)
    params = variables["params"]
    uniform = {"stem_conv": 1 / 3, "token_conv": 1 / np.sqrt(128)}
    for name, bound in uniform.items():
        kernel = np.abs(params[name]["kernel"])
        assert 0.98 * bound < kernel.max() <= bound
    normal = params["stage2_block1"]["conv1"]["kernel"]
    assert np.std(normal) == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.03)
    assert np.abs(normal).max() > 3 * np.sqrt(2 / (9 * 128))
    shortcut = params["stage2_block1"]["shortcut_conv"]["kernel"]
    assert np.std(shortcut) == pytest.approx(np.sqrt(2 / 128), rel=0.05)
    for path, values in traverse_util.flatten_dict(params).items():
        if path[-2].endswith(("bn", "bn1", "bn2")):
            np.testing.assert_array_equal(values, 1.0 if path[-1] == "scale" else 0.0)


def test_batch_norm_by_hand(float64):
    x = jnp.array([[1.0], [3.0]])
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=False)
    y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    # Batch mean 2 and biased variance 1; the running variance moves towards the unbiased 2.
    np.testing.assert_allclose(y, [[-1 / np.sqrt(1 + 1e-5)], [1 / np.sqrt(1 + 1e-5)]])
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.2])
    np.testing.assert_allclose(updated["batch_stats"]["var"], [0.9 + 0.1 * 2])
    y = norm.apply({**variables, **updated}, x, train=False)
    np.testing.assert_allclose(y, (x - 0.2) / np.sqrt(1.1 + 1e-5))


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    encoder, variables, images = build(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    z = encoder.apply(variables, images, train=False)
    assert z.dtype == jnp.bfloat16
    exact = build()[0].apply(variables, images, train=False)
    assert 0 < np.abs(z.astype(np.float32) - exact).max() < 0.1 * np.abs(exact).max()


def test_remat_leaves_the_variables_and_the_evaluation_as_they_are():
    outcomes = []
    for remat in (True, False):
        encoder, variables, images = build(widths=(4, 6), depths=(1, 2), remat=remat)
        outcomes.append((variables, jax.jit(partial(encoder.apply, train=False))(variables, images)))
    jax.tree.map(np.testing.assert_array_equal, *outcomes)


@pytest.mark.parametrize(
    ("mode", "microbatches", "dtype", "tolerance"),
    [("tokens", 1, "float32", 1e-5), ("global", 2, "float32", 1e-5), ("tokens", 2, "bfloat16", 3e-2)],
)
def test_remat_changes_no_value_no_gradient_and_no_statistics(mode, microbatches, dtype, tolerance):
    changes = {"widths": (4, 6), "depths": (1, 2), "mode": mode, "dtype": jnp.dtype(dtype)}
    _, variables, _ = build(**changes)
    views = jax.random.normal(jax.random.key(2), (2, 4, 8, 8, 1))

    def step(remat, variables):
        encoder = ResNetEncoder(**SMALL | changes | {"remat": remat})

        def loss(params):
            z, statistics = embed_views(encoder, params, variables["batch_stats"], (views,), microbatches=microbatches)
            return jnp.sum(jnp.sin(z.astype(jnp.float32))), (z.astype(jnp.float32), statistics)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    step = jax.jit(step, static_argnums=0, compiler_options=WITH_BARRIERS)

    def assert_close(found, expected):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1e-3, np.abs(expected).max()))

    jax.tree.map(assert_close, step(True, variables), step(False, variables))


def memory(image_size, **changes):
    """Bytes that are kept for the backward pass, and the program that computes the gradient."""
    encoder = ResNetEncoder(**SMALL | {"widths": (8, 8), "depths": (2, 2), "token_hw": 2} | changes)
    images = jnp.ones((4, image_size, image_size, 1))
    variables = jax.eval_shape(partial(encoder.init, train=False), jax.random.key(0), images)

    def embed(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        return encoder.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    arguments = variables["params"], variables["batch_stats"]
    kept = jax.eval_shape(lambda *arguments: jax.tree.leaves(jax.vjp(embed, *arguments)[1]), *arguments)
    gradient = jax.jit(jax.grad(lambda *arguments: jnp.sum(embed(*arguments) ** 2)), compiler_options=WITH_BARRIERS)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept), gradient.lower(*arguments)


@pytest.mark.parametrize("changes", [{}, {"mode": "global"}, {"stem": "imagenet"}, {"dtype": jnp.bfloat16}])
def test_remat_keeps_an_eighth_for_the_backward_pass(changes):
    whole, _ = memory(64, **changes)
    inputs_of_stages, _ = memory(64, remat=True, **changes)
    assert inputs_of_stages < whole / 8


def test_remat_survives_the_compiler():
    _, whole = memory(32)
    _, recomputing = memory(32, remat=True)
    peaks = [program.compile().memory_analysis().temp_size_in_bytes for program in (recomputing, whole)]
    assert peaks[0] < 0.9 * peaks[1]
