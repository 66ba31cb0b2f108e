from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hamjepa_jax import environment
from hamjepa_jax.models.convolution import Conv
from hamjepa_jax.models.resnet import ResNetEncoder

SETTINGS = {
    "widths": (16, 20),
    "depths": (1, 1),
    "stem": "cifar",
    "mode": "tokens",
    "token_layer": 2,
    "token_hw": None,
    "token_d_f": 4,
    "split_qp": True,
    "out_dim": 10,
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"stem": "imagenet"}, {"block": "bottleneck", "mode": "global"}],
    ids=["tokens", "imagenet stem", "bottleneck"],
)
def test_one_cpu_computes_what_an_accelerator_does(float64, changes):
    images = jax.random.normal(jax.random.key(0), (3, 18, 18, 3))
    encoders = [
        ResNetEncoder(**SETTINGS | changes, dtype=jnp.float64, spatial_first=spatial_first)
        for spatial_first in (False, True)
    ]
    shapes = [jax.eval_shape(partial(encoder.init, train=False), jax.random.key(1), images) for encoder in encoders]
    assert shapes[0] == shapes[1]
    variables = encoders[0].init(jax.random.key(1), images, train=False)

    def passes(encoder, params, images):
        def loss(params, images):
            z, updated = encoder.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(z**3), (z, updated)

        trained = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)
        return trained, encoder.apply(variables | {"params": params}, images, train=False)

    outcomes = [jax.jit(partial(passes, encoder))(variables["params"], images) for encoder in encoders]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), *outcomes)


@pytest.mark.parametrize("one_cpu", [False, True])
def test_the_layout_is_that_of_the_devices(monkeypatch, one_cpu):
    monkeypatch.setattr(environment, "on_one_cpu", lambda: one_cpu)
    images = jax.ShapeDtypeStruct((3, 8, 8, 3), jnp.float32)
    initialize = partial(ResNetEncoder(**SETTINGS).init, jax.random.key(1), train=False)
    traced = str(jax.make_jaxpr(initialize)(images))
    assert ("optimization_barrier" in traced) == one_cpu


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("spatial_first", [False, True])
def test_products_in_bfloat16_are_added_in_float32_and_rounded_once(spatial_first, kernel_size):
    conv = partial(Conv, 8, kernel_size, 1, kernel_init=nn.initializers.lecun_normal(), spatial_first=spatial_first)
    narrow = conv(dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (6, 6, 6, 64), jnp.bfloat16)
    variables = narrow.init(jax.random.key(1), x)
    kernel = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), variables)
    exact = np.asarray(conv(dtype=jnp.float32).apply(kernel, x.astype(jnp.float32)))
    y = narrow.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    # Half of the last of eight bits.
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)
