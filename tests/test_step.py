import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hamjepa_jax import build, feed
from hamjepa_jax.build_views import Dataset
from hamjepa_jax.models.batch_norm import BatchNorm
from hamjepa_jax.objectives import Objective
from hamjepa_jax.step import embed_views, make_loss, make_train_step


def build_step(config, objective=None):
    """The jitted train step of a config, its initial state, and the data set."""
    experiment = build.experiment(config)
    objective = objective or experiment.objective
    loss = make_loss(
        encoder=experiment.encoder,
        views=experiment.views,
        objective=objective,
        microbatches=config.train.microbatches,
    )
    step = jax.jit(
        make_train_step(
            loss=loss,
            optimizer=experiment.optimizer,
            terms=objective.terms,
            max_skipped_steps=config.train.max_skipped_steps,
        )
    )
    dataset = jax.tree.map(jnp.asarray, feed.whole(experiment.train_source))
    return step, experiment.initial_state(jax.random.key(0)), dataset


def test_a_step_can_be_replayed_and_depends_on_its_number(digits_config):
    step, state, dataset = build_step(digits_config())
    ids = np.arange(32)
    first, again = (step(state, jax.random.key(1), 0, dataset, ids)[1] for _ in range(2))
    assert first == again
    other_seed = step(state, jax.random.key(2), 0, dataset, ids)[1]
    assert other_seed["prediction"] != first["prediction"]
    later = step(state._replace(step=jnp.int32(1)), jax.random.key(1), 1, dataset, ids)[1]
    assert later["prediction"] != first["prediction"]


def test_microbatches_keep_every_example_in_its_place():
    class Flatten(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return images.reshape(len(images), -1)

    views = jnp.arange(2 * 6 * 2 * 2.0).reshape(2, 6, 2, 2, 1)
    for microbatches in (1, 2, 3, 6):
        z, _ = embed_views(Flatten(), {}, {}, (views,), microbatches=microbatches)
        np.testing.assert_array_equal(z, views.reshape(2, 6, 4))


def test_running_statistics_see_the_views_of_every_resolution_in_turn():
    class Normalize(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return jnp.mean(BatchNorm()(images, train=train), axis=(1, 2))

    groups = (jnp.full((2, 4, 3, 3, 1), 1.0), jnp.full((5, 4, 2, 2, 1), 3.0))
    variables = Normalize().init(jax.random.key(0), groups[0][0], train=False)
    for microbatches in (1, 2):
        z, statistics = embed_views(
            Normalize(), variables["params"], variables["batch_stats"], groups, microbatches=microbatches
        )
        assert z.shape == (7, 4, 1)
        (mean,) = jax.tree.leaves({name: values["mean"] for name, values in statistics.items()})
        np.testing.assert_allclose(mean, 0.9 * 0.1 * 1.0 + 0.1 * 3.0, rtol=1e-6)


def test_the_shares_of_the_gradient_are_those_of_each_term_alone(digits_config):
    config = digits_config()
    step, state, dataset = build_step(config)
    metrics = step(state, jax.random.key(1), 0, dataset, np.arange(32))[1]
    shares = {name: float(value) for name, value in metrics.items() if name.startswith("gradient_share_")}
    assert len(shares) == 8
    assert sum(shares.values()) == pytest.approx(1.0, rel=1e-5)

    experiment = build.experiment(config)
    weights = {name: term.weight for name, term in config.objective.regularizers.items()} | {"prediction": 1.0}

    @jax.jit
    def norms_of_gradients(key):
        view_key, objective_key = jax.random.split(key)
        views = experiment.views(jax.random.fold_in(view_key, 0), dataset, np.arange(32))
        z, _ = embed_views(experiment.encoder, state.params["encoder"], state.batch_stats, views)

        def weighted_terms(z):
            _, terms = experiment.objective.loss(state.params, z, key=objective_key, step=0)
            return {name: weights[name] * terms[name] for name in experiment.objective.terms}

        return jax.tree.map(jnp.linalg.norm, jax.jacrev(weighted_terms)(z))

    norms = norms_of_gradients(jax.random.key(1))
    for name, norm in norms.items():
        assert shares[f"gradient_share_{name}"] == pytest.approx(float(norm / sum(norms.values())), rel=1e-3, abs=1e-6)


def broken_in(*steps):
    """An objective that is not finite in some steps."""

    def loss(params, z, *, key, step, taps):
        value = jnp.sum(jnp.square(z)) * jnp.where(jnp.isin(step, jnp.array(steps)), jnp.nan, 1.0)
        return value, {"term": value}

    return Objective(init=lambda key: {}, loss=loss, terms=(), coordinates=None)


def assert_same(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(digits_config):
    step, state, dataset = build_step(digits_config(), objective=broken_in(1))
    key, ids = jax.random.key(1), np.arange(32)
    good, metrics = step(state, key, 0, dataset, ids)
    assert metrics["finite"]
    assert not metrics["halted"]
    assert good.step == 1
    broken, metrics = step(good, key, 1, dataset, ids)
    assert not metrics["finite"]
    assert metrics["halted"]
    # What is dispatched before the host has noticed must not move the state either.
    after, metrics = step(broken, key, 2, dataset, ids)
    assert metrics["finite"]
    for kept in (broken, after):
        assert_same(kept, good)


def test_steps_that_are_not_finite_are_skipped_up_to_so_many_in_a_row(digits_config):
    config = digits_config()
    config.train.max_skipped_steps = 2
    step, state, dataset = build_step(config, objective=broken_in(1, 3, 4, 6, 7, 8))
    states, told = [state], []
    for number in range(10):
        state, metrics = step(state, jax.random.key(1), number, dataset, np.arange(32))
        states.append(state)
        told.append([int(metrics[name]) for name in ("finite", "halted", "skipped")])
    assert told[:9] == [
        [1, 0, 0],
        [0, 0, 1],
        [1, 0, 1],
        [0, 0, 2],
        [0, 0, 3],
        [1, 0, 3],
        [0, 0, 4],
        [0, 0, 5],
        [0, 1, 5],
    ]
    for number in (1, 3, 4, 6, 7, 8):
        for part in ("params", "batch_stats", "opt_state"):
            assert_same(getattr(states[number + 1], part), getattr(states[number], part))
    # A skipped step counts as a step, and the one that halts the run does not.
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    assert [int(state.skipped_in_a_row) for state in states[:9]] == [0, 0, 1, 0, 1, 2, 0, 1, 2]
    for kept in states[9:]:
        assert_same(kept, states[8])


def test_an_update_whose_result_is_not_finite_is_not_made(digits_config):
    config = digits_config()
    config.optimizer.learning_rate, config.optimizer.weight_decay = 3.4e38, 1.0
    step, state, dataset = build_step(config)
    kept, metrics = step(state, jax.random.key(1), 0, dataset, np.arange(32))
    assert np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all()
    assert metrics["halted"]
    assert_same(kept, state)


@pytest.mark.parametrize("variant", ["hamjepa", "hamsigreg_learnable"])
def test_nothing_is_recompiled_or_transferred_between_steps(digits_config, variant):
    step, state, dataset = build_step(digits_config(variant))
    keys = jax.random.split(jax.random.key(1), 3)
    numbers, ids = jnp.arange(3, dtype=jnp.int32), jnp.arange(96, dtype=jnp.int32).reshape(3, 32)
    batches = [(keys[i], numbers[i], dataset, ids[i]) for i in range(3)]
    state, _ = step(state, *batches[0])
    with jax.transfer_guard("disallow"):
        for batch in batches[1:]:
            state, metrics = step(state, *batch)
        with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
            step(state, keys[0], np.int32(3), dataset, ids[0])
    assert step._cache_size() == 1
    assert metrics["finite"]


@pytest.mark.parametrize(
    ("variant", "microbatches"),
    [("hamjepa", 1), ("hamjepa", 2), ("sigreg", 1), ("hamsigreg_learnable", 1), ("rotation", 1), ("vicreg", 1)],
)
def test_the_step_has_no_double_precision_and_does_not_call_the_host(
    digits_config, equations, double_precision, variant, microbatches
):
    config = digits_config(variant)
    config.train.microbatches, config.predictor.width = microbatches, 2
    shapes = (
        jax.eval_shape(build.experiment(config).initial_state, jax.random.key(0)),
        jax.eval_shape(jax.random.key, 0),
        jax.ShapeDtypeStruct((), jnp.int32),
        Dataset(jax.ShapeDtypeStruct((100, 8, 8, 1), jnp.uint8), jax.ShapeDtypeStruct((100, 2), jnp.int32)),
        jax.ShapeDtypeStruct((32,), jnp.int32),
    )
    # Where double precision is allowed, whatever is not of a stated or inherited type becomes double.
    with jax.enable_x64(True):
        step, _, _ = build_step(config)
        jaxpr = jax.make_jaxpr(step)(*shapes).jaxpr
    found = equations(jaxpr)
    assert len(found) > 500
    assert not double_precision(jaxpr)
    assert not [e for e in found if "callback" in e.primitive.name or "infeed" in e.primitive.name]
