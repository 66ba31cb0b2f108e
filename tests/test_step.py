import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import build, sharding
from hamjepa_jax.step import make_train_step


def build_step(config, mesh=None, objective=None):
    """The jitted train step of a config, its initial state, and the images."""
    experiment = build.experiment(config)
    step = make_train_step(
        encoder=experiment.encoder,
        views=experiment.views,
        objective=objective or experiment.objective,
        optimizer=experiment.optimizer,
    )
    images = experiment.train_source.images
    if mesh is None:
        return jax.jit(step), experiment.initial_state(jax.random.key(0)), jnp.asarray(images)
    shardings = sharding.state_sharding(mesh, jax.eval_shape(experiment.initial_state, jax.random.key(0)))
    state = jax.jit(experiment.initial_state, out_shardings=shardings)(jax.random.key(0))
    images = sharding.place(images, sharding.replicated(mesh))
    return jax.jit(step, out_shardings=(shardings, sharding.replicated(mesh))), state, images


@pytest.mark.parametrize("variant", ["hamjepa", "sigreg"])
def test_a_step_is_the_same_on_one_device_and_on_eight(digits_config, variant, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)
    config = digits_config(variant)
    ids = np.arange(32, dtype=np.int32)
    step, state, images = build_step(config)
    state, metrics = step(state, jax.random.key(1), 0, images, ids)

    mesh = sharding.make_mesh(data=2, fsdp=4)
    step, sharded, images = build_step(config, mesh)
    kernel = sharded.params["encoder"]["stage2_block1"]["conv2"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    sharded, sharded_metrics = step(
        sharded, jax.random.key(1), 0, images, sharding.place(ids, sharding.batch_sharding(mesh))
    )
    for name, value in metrics.items():
        np.testing.assert_allclose(sharded_metrics[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
    for one, eight in zip(jax.tree.leaves(state.batch_stats), jax.tree.leaves(sharded.batch_stats), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)


def test_a_step_can_be_replayed_and_depends_on_its_number(digits_config):
    step, state, images = build_step(digits_config())
    ids = np.arange(32)
    first, again = (step(state, jax.random.key(1), 0, images, ids)[1] for _ in range(2))
    assert first == again
    other_seed = step(state, jax.random.key(2), 0, images, ids)[1]
    assert other_seed["prediction"] != first["prediction"]
    later = step(state._replace(step=jnp.int32(1)), jax.random.key(1), 1, images, ids)[1]
    assert later["prediction"] != first["prediction"]


def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(digits_config):
    def breaks_at_step_1(predictor_params, z, *, key, step):
        loss = jnp.sum(jnp.square(z)) * jnp.where(step == 1, jnp.nan, 1.0)
        return loss, {"term": loss}

    step, state, images = build_step(digits_config(), objective=breaks_at_step_1)
    key, ids = jax.random.key(1), np.arange(32)
    good, metrics = step(state, key, 0, images, ids)
    assert metrics["finite"]
    assert good.step == 1
    broken, metrics = step(good, key, 1, images, ids)
    assert not metrics["finite"]
    # What is dispatched before the host has noticed must not move the state either.
    after, metrics = step(broken, key, 2, images, ids)
    assert metrics["finite"]
    for kept in (broken, after):
        jax.tree.map(np.testing.assert_array_equal, kept, good)


def test_nothing_is_recompiled_between_steps(digits_config):
    step, state, images = build_step(digits_config())
    for number in range(3):
        state, _ = step(state, jax.random.key(1), np.int32(number), images, np.arange(number, number + 32))
    assert step._cache_size() == 1
