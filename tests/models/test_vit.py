from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from hamjepa_jax import sharding
from hamjepa_jax.benchmarks import hlo
from hamjepa_jax.models import vit
from hamjepa_jax.models.heads import adaptive_average_pool
from hamjepa_jax.models.vit import ViTEncoder, position_embedding
from hamjepa_jax.recipes.encoders import ENCODERS

SMALL = {
    "patch_size": 4,
    "hidden_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "num_registers": 2,
    "mode": "tokens",
    "token_hw": None,
    "token_d_f": 4,
    "split_qp": True,
    "out_dim": 10,
}
DENSE = [("attention", name) for name in ("query", "key", "value", "out")] + [("mlp", "hidden"), ("mlp", "out")]

# XLA drops the barriers on the CPU alone, and then merges what is computed again with what was computed before.
WITH_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def abstract(encoder, shape):
    return jax.eval_shape(partial(encoder.init_with_output, train=False), jax.random.key(0), jnp.zeros(shape))


def build(shape=(3, 8, 12, 3), **changes):
    """An encoder, variables of which none is zero or one, and images."""
    encoder = ViTEncoder(**SMALL | changes)
    rng = np.random.default_rng(0)
    images = rng.standard_normal(shape).astype(np.float32)
    variables = jax.tree.map(
        lambda leaf: (0.3 + 0.4 * rng.standard_normal(leaf.shape)).astype(np.float32), abstract(encoder, shape)[1]
    )
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(lambda leaf: 0.5 + np.abs(leaf), variables["batch_stats"])
    return encoder, variables, images


def embed(encoder, variables, images, *, train=False):
    return jax.jit(partial(encoder.apply, train=train, mutable=["batch_stats"]))(variables, images)[0]


@pytest.mark.parametrize(
    ("changes", "image_size", "dim"),
    [
        ({}, (8, 8), 2 * 2 * 4),
        ({}, (8, 12), 2 * 3 * 4),
        ({"patch_size": 2}, (8, 8), 4 * 4 * 4),
        ({"num_registers": 0}, (8, 8), 2 * 2 * 4),
        ({"token_hw": 3}, (8, 8), 3 * 3 * 4),
        ({"token_hw": 3}, (24, 20), 3 * 3 * 4),
        ({"mode": "global"}, (8, 8), 10),
        ({"mode": "global"}, (12, 8), 10),
    ],
)
def test_embedding_sizes(changes, image_size, dim):
    embedding, _ = abstract(ViTEncoder(**SMALL | changes), (3, *image_size, 1))
    assert embedding.shape == (3, dim)


def test_variables_do_not_depend_on_the_size_of_the_images():
    encoder = ViTEncoder(**SMALL)
    assert abstract(encoder, (2, 8, 8, 3))[1] == abstract(encoder, (2, 16, 12, 3))[1]


def test_tokens_are_pooled_before_they_are_projected():
    encoder, variables, images = build(token_hw=2, split_qp=False)
    whole = ViTEncoder(**SMALL | {"split_qp": False})
    tokens = embed(whole, variables, images).reshape(3, 2, 3, 4)
    # Without a mean and a bias the projection is linear, and so is the order of both.
    np.testing.assert_allclose(
        embed(encoder, variables, images), adaptive_average_pool(tokens, 2).reshape(3, -1), atol=1e-4
    )


def test_split_gathers_the_first_half_of_every_tokens_channels_into_q():
    split, variables, images = build()
    q, p = np.split(np.asarray(embed(split, variables, images)), 2, axis=-1)
    whole = ViTEncoder(**SMALL | {"split_qp": False})
    tokens = np.asarray(embed(whole, variables, images)).reshape(3, 2 * 3, 4)
    np.testing.assert_array_equal(q, tokens[..., :2].reshape(3, -1))
    np.testing.assert_array_equal(p, tokens[..., 2:].reshape(3, -1))


@pytest.mark.parametrize(("name", "published"), [("ti", 5_717_416), ("s", 22_050_664), ("b", 86_567_656)])
def test_parameters_are_as_many_as_published(name, published):
    settings = {key: value for key, value in ENCODERS[f"vit_{name}"].items() if key != "name"}
    dim, depth, num_heads = (settings[key] for key in ("hidden_dim", "depth", "num_heads"))
    encoder = ViTEncoder(**SMALL | settings | {"mode": "global", "num_registers": 0, "out_dim": 1000})
    _, variables = abstract(encoder, (2, 224, 224, 3))
    found = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    # Attention and MLP have 4 + 2·4 square kernels and 4 + 5 biases in units of the channels, the two norms 4 vectors.
    backbone = (16 * 16 * 3 + 1) * dim + depth * (12 * dim**2 + 13 * dim) + 2 * dim
    assert found == backbone + 1000 * dim + 1000
    # The published ones have a class token and learned positions for it and for 14 × 14 patches.
    assert found == published - (1 + 1 + 14 * 14) * dim
    assert dim // num_heads == 64


def in_patches(images):
    """Images of 8 × 12 pixels as rows of patches (N, 6, 4, 4, C)."""
    return images.reshape(-1, 2, 4, 3, 4, 3).swapaxes(2, 3).reshape(-1, 6, 4, 4, 3)


def out_of_patches(patches):
    return patches.reshape(-1, 2, 3, 4, 4, 3).swapaxes(2, 3).reshape(-1, 8, 12, 3)


ORDER = np.array([3, 0, 5, 1, 4, 2])


def test_patches_that_take_their_places_with_them_change_nothing(monkeypatch):
    encoder, variables, images = build(mode="global")
    shuffled = out_of_patches(in_patches(images)[:, ORDER])
    expected = embed(encoder, variables, images)
    assert np.abs(embed(encoder, variables, shuffled) - expected).max() > 1e-3

    def shuffled_positions(*shape):
        return position_embedding(*shape).reshape(6, -1)[ORDER].reshape(shape)

    monkeypatch.setattr(vit, "position_embedding", shuffled_positions)
    np.testing.assert_allclose(embed(encoder, variables, shuffled), expected, atol=1e-5)


def test_without_places_the_tokens_follow_their_patches(monkeypatch):
    monkeypatch.setattr(vit, "position_embedding", lambda *shape: jnp.zeros(shape))
    encoder, variables, images = build(split_qp=False)
    tokens = embed(encoder, variables, images).reshape(3, 6, 4)
    shuffled = embed(encoder, variables, out_of_patches(in_patches(images)[:, ORDER])).reshape(3, 6, 4)
    np.testing.assert_allclose(shuffled, tokens[:, ORDER], atol=1e-4)


def test_registers_take_part_and_are_left_out_of_the_output():
    encoder, variables, images = build()
    assert variables["params"]["registers"].shape == (2, 8)
    with_registers = embed(encoder, variables, images)
    variables["params"]["registers"] = variables["params"]["registers"] * [[1.0], [-1.0]]
    changed = embed(encoder, variables, images)
    assert np.abs(changed - with_registers).max() > 1e-3
    del variables["params"]["registers"]
    without = embed(ViTEncoder(**SMALL | {"num_registers": 0}), variables, images)
    assert without.shape == with_registers.shape
    assert np.abs(without - with_registers).max() > 1e-3


def test_a_constant_in_all_channels_changes_nothing():
    """It is as large as activations come in trained transformers; a variance by squares would not survive it."""
    encoder, variables, images = build()
    expected = embed(encoder, variables, images)
    params = dict(variables["params"])
    params["registers"] = params["registers"] + 1000
    params["patch_embedding"] = params["patch_embedding"] | {"bias": params["patch_embedding"]["bias"] + 1000}
    shifted = embed(encoder, variables | {"params": params}, images)
    np.testing.assert_allclose(shifted, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("mode", ["tokens", "global"])
def test_bfloat16_is_close_to_float32(mode):
    encoder, variables, images = build(mode=mode, dtype=jnp.bfloat16)
    z = embed(encoder, variables, images)
    assert z.dtype == jnp.bfloat16
    exact = embed(ViTEncoder(**SMALL | {"mode": mode}), variables, images)
    assert 0 < np.abs(z.astype(np.float32) - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("mode", ["tokens", "global"])
def test_bfloat16_multiplies_in_bfloat16_and_takes_exponentials_and_statistics_in_float32(equations, mode):
    encoder, variables, images = build(mode=mode, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract(encoder, images.shape)[1])} == {jnp.dtype("float32")}
    traced = equations(jax.make_jaxpr(partial(encoder.apply, train=False))(variables, images).jaxpr)

    def operands(*names):
        return [e.invars[0].aval.dtype for e in traced if e.primitive.name in names and e.invars[0].aval.ndim]

    # Patches, then in each of 2 blocks 4 + 2 dense layers and 2 products with the weights, then the head.
    products = operands("dot_general", "conv_general_dilated")
    assert len(products) == 1 + 2 * 8 + 1
    assert set(products) == {jnp.dtype("bfloat16")}
    assert len(operands("exp")) == 2
    assert len(operands("rsqrt")) >= 2 * 2 + 1
    assert set(operands("exp", "rsqrt", "reduce_max")) == {jnp.dtype("float32")}

    embed_and_tell = partial(encoder.apply, train=False, capture_intermediates=True, mutable=["intermediates"])
    outputs = jax.tree.leaves(jax.eval_shape(embed_and_tell, variables, images)[1])
    assert {leaf.dtype for leaf in outputs} == {jnp.dtype("bfloat16")}


def test_an_image_is_embedded_by_itself():
    encoder, variables, images = build(mode="global")
    others = images.copy()
    others[1:] = 1 - 2 * others[1:]
    expected, found = (embed(encoder, variables, batch, train=True) for batch in (images, others))
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.all(np.abs(found[1:] - expected[1:]).max(axis=1) > 1e-3)


def test_running_statistics_are_those_of_the_tokens_alone():
    encoder, variables, images = build()
    z, updated = jax.jit(partial(encoder.apply, train=True, mutable=["batch_stats"]))(variables, images)
    assert jax.tree.map(np.shape, updated) == {"batch_stats": {"token_bn": {"mean": (4,), "var": (4,)}}}
    q = np.asarray(z)[:, : 6 * 2].reshape(18, 2)
    np.testing.assert_allclose(q.mean(axis=0), variables["params"]["token_bn"]["bias"][:2], atol=1e-5)
    _, variables, _ = build(mode="global")
    assert set(variables) == {"params"}


def test_initialisation():
    encoder = ViTEncoder(**SMALL | {"hidden_dim": 64, "num_registers": 64, "depth": 1})
    init = jax.jit(partial(encoder.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert np.std(params["registers"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["patch_embedding"]["kernel"]) == pytest.approx(1 / np.sqrt(4 * 4 * 3), rel=0.05)
    for module, name in DENSE:
        kernel = np.abs(params["block1"][module][name]["kernel"])
        bound = np.sqrt(6 / sum(kernel.shape))
        assert 0.98 * bound < kernel.max() <= bound
        assert kernel.mean() == pytest.approx(bound / 2, rel=0.05)
    kernel = np.abs(params["token_conv"]["kernel"])
    assert 0.95 / 8 < kernel.max() <= 1 / 8
    for path, values in traverse_util.flatten_dict(params).items():
        if path[-1] in ("scale", "bias"):
            np.testing.assert_array_equal(values, 1.0 if path[-1] == "scale" else 0.0)


def value_and_gradient(encoder, variables, images):
    """The embeddings in training and the gradient of a number made of them, compiled with barriers."""

    def loss(params):
        z, _ = encoder.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(z.astype(jnp.float32))), z.astype(jnp.float32)

    return jax.jit(jax.grad(loss, has_aux=True), compiler_options=WITH_BARRIERS)(variables["params"])


@pytest.mark.parametrize(("mode", "dtype", "tolerance"), [("global", "float32", 1e-5), ("tokens", "bfloat16", 3e-2)])
def test_remat_changes_no_variable_no_value_and_no_gradient(mode, dtype, tolerance):
    changes = {"mode": mode, "dtype": jnp.dtype(dtype)}
    encoder, variables, images = build(**changes)
    recomputing = ViTEncoder(**SMALL | changes | {"remat": True})
    assert abstract(recomputing, images.shape)[1] == abstract(encoder, images.shape)[1]

    def assert_close(found, expected):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1e-2, np.abs(expected).max()))

    jax.tree.map(assert_close, *(value_and_gradient(e, variables, images) for e in (recomputing, encoder)))


def memory(remat):
    """Bytes that are kept for the backward pass, and the peak of the program that computes the gradient."""
    encoder, variables, images = build((4, 64, 64, 1), mode="global", depth=4, remat=remat)

    def apply(params):
        return encoder.apply({"params": params}, images, train=True)

    kept = jax.eval_shape(lambda params: jax.tree.leaves(jax.vjp(apply, params)[1]), variables["params"])
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(apply(params) ** 2)), compiler_options=WITH_BARRIERS)
    program = gradient.lower(variables["params"]).compile()
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept), program.memory_analysis().temp_size_in_bytes


def test_remat_keeps_a_twentieth_for_the_backward_pass_and_survives_the_compiler():
    recomputing, whole = memory(True), memory(False)
    assert recomputing[0] < whole[0] / 20
    assert recomputing[1] < 0.7 * whole[1]


def test_every_parameter_has_a_gradient():
    encoder, variables, images = build(mode="global")
    gradient, _ = value_and_gradient(encoder, variables, images)
    for path, values in traverse_util.flatten_dict(gradient, sep="/").items():
        assert np.isfinite(values).all(), path
        # A bias of the keys adds the same to all logits of a query.
        if not path.endswith("key/bias"):
            assert np.abs(values).max() > 1e-6, path


def test_no_device_is_sent_an_image_of_another():
    """The gradient of a batch on eight devices takes sums of parameters and statistics, of a size without the batch."""
    mesh = sharding.make_mesh(data=8, fsdp=1)
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    encoder = ViTEncoder(**SMALL | {"depth": 1, "dtype": jnp.bfloat16})
    images = jax.ShapeDtypeStruct((24, 8, 12, 3), jnp.float32)
    variables = abstract(encoder, images.shape)[1]

    def loss(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        z, _ = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.sin(z.astype(jnp.float32)))

    gradient = jax.jit(jax.grad(loss), in_shardings=(everywhere, everywhere, split), out_shardings=everywhere)
    program = gradient.lower(variables["params"], variables["batch_stats"], images).compile()
    found = hlo.collectives(program.as_text())
    assert {collective.kind for collective in found} == {"all-reduce"}
    shapes = {tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves(variables)}
    assert {tuple(sorted(array.shape)) for collective in found for array in collective.results} <= shapes


@pytest.mark.parametrize(
    ("changes", "image_size", "problem"),
    [
        ({}, (8, 10), "8 × 10 pixels are not whole patches of patch_size 4"),
        ({}, (6, 8), "6 × 8 pixels are not whole patches of patch_size 4"),
        ({"patch_size": 16}, (8, 8), "8 × 8 pixels are not whole patches of patch_size 16"),
        ({"num_heads": 3}, (8, 8), "hidden_dim 8 is not a multiple of num_heads 3"),
        ({"hidden_dim": 6}, (8, 8), "hidden_dim 6 is not a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, image_size, problem):
    with pytest.raises(ValueError, match=f"^{problem}") as error:
        abstract(ViTEncoder(**SMALL | changes), (2, *image_size, 3))
    assert "\n" not in str(error.value)
