from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import environment
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


@pytest.fixture(params=[False, True], ids=["accelerator", "one CPU"])
def on_one_cpu(request, monkeypatch):
    monkeypatch.setattr(environment, "on_one_cpu", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    "changes",
    [{}, {"stem": "imagenet"}, {"block": "bottleneck", "mode": "global"}],
    ids=["tokens", "imagenet stem", "bottleneck"],
)
def test_one_cpu_computes_what_an_accelerator_does(monkeypatch, float64, changes):
    encoder = ResNetEncoder(**SETTINGS | changes, dtype=jnp.float64)
    images = jax.random.normal(jax.random.key(0), (3, 18, 18, 3))
    variables = encoder.init(jax.random.key(1), images, train=False)

    def passes(params, images):
        def loss(params, images):
            z, updated = encoder.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(z**3), (z, updated)

        trained = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)
        return trained, encoder.apply(variables | {"params": params}, images, train=False)

    outcomes, shapes = [], []
    for one_cpu in (False, True):
        monkeypatch.setattr(environment, "on_one_cpu", lambda one_cpu=one_cpu: one_cpu)
        shapes.append(jax.eval_shape(partial(encoder.init, train=False), jax.random.key(1), images))
        # The function is another each time, so that it is traced anew.
        outcomes.append(jax.jit(lambda *arguments: passes(*arguments))(variables["params"], images))
    assert shapes[0] == shapes[1]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), *outcomes)


def test_products_in_bfloat16_are_added_in_float32(on_one_cpu):
    """With thousands of taps, sums in bfloat16 would be off by much more than the rounding of what comes out."""
    encoder = ResNetEncoder(**SETTINGS | {"widths": (64, 64)}, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = encoder.init(jax.random.key(1), images, train=False)
    exact = ResNetEncoder(**SETTINGS | {"widths": (64, 64)}).apply(variables, images, train=False)
    z = encoder.apply(variables, images, train=False)
    assert z.dtype == jnp.bfloat16
    assert np.std(z.astype(jnp.float32) - exact) < 0.02 * np.std(exact)
