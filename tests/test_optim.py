import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hamjepa_jax.optim import adamw, every_so_many_steps, warmup_cosine

PARAMS = {"encoder": jnp.array([1.0]), "predictor": jnp.array([1.0])}


def update(gradients, **changes):
    """The first update and the optimizer's state after it."""
    settings = {"b1": 0.9, "b2": 0.999, "weight_decay": 0.0, "clip_norm": 1.0, "clip_over": "none"} | changes
    optimizer = adamw({"encoder": lambda step: 0.1, "predictor": lambda step: 0.01}, **settings)
    return optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)


def gradients_seen(clip_over):
    """The gradients that Adam saw of (3, 4): with b2 = 0 its second moment is their square."""
    gradients = {"encoder": jnp.array([3.0]), "predictor": jnp.array([4.0])}
    _, state = update(gradients, b2=0.0, clip_over=clip_over)
    moments = optax.tree.get_all_with_path(state, "nu")
    return [float(jnp.sqrt(leaf[0])) for _, moment in moments for leaf in jax.tree.leaves(moment)]


def test_schedule_by_hand():
    schedule = warmup_cosine(peak=5e-4, end_value=5e-7, warmup_steps=4, total_steps=12, warmup_factor=0.01)
    expected = {0: 5e-6, 1: 1.2875e-4, 4: 5e-4, 8: 2.5025e-4, 12: 5e-7}
    for step, rate in expected.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-5)


def test_each_group_has_its_own_learning_rate():
    updates, _ = update({"encoder": jnp.array([2.0]), "predictor": jnp.array([-3.0])})
    np.testing.assert_allclose(updates["encoder"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["predictor"], 0.01, rtol=1e-5)


def test_weight_decay_is_decoupled_and_scaled_by_the_learning_rate():
    updates, _ = update({"encoder": jnp.zeros(1), "predictor": jnp.zeros(1)}, weight_decay=0.5)
    np.testing.assert_allclose(updates["encoder"], -0.1 * 0.5)
    np.testing.assert_allclose(updates["predictor"], -0.01 * 0.5)


@pytest.mark.parametrize(
    ("clip_over", "seen"), [("none", (3.0, 4.0)), ("all", (0.6, 0.8)), ("encoder", (1.0, 4.0)), ("each", (1.0, 1.0))]
)
def test_the_norm_is_clipped_over_the_chosen_groups(clip_over, seen):
    np.testing.assert_allclose(gradients_seen(clip_over), seen, rtol=1e-5)


def test_kernels_alone_decay_where_that_is_asked_for():
    params = {
        "encoder": {"conv": {"kernel": jnp.ones((2, 2))}, "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)}},
        "predictor": {"layers": [{"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}], "log_mass": jnp.ones(2)},
    }
    rates = dict.fromkeys(("encoder", "predictor"), lambda step: 0.1)
    settings = {"b1": 0.9, "b2": 0.999, "weight_decay": 0.5, "clip_norm": 1.0, "clip_over": "none"}
    for decay_of, decays in (("all", lambda path: True), ("kernels", lambda path: path[-1].key == "kernel")):
        optimizer = adamw(rates, decay_of=decay_of, **settings)
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
            np.testing.assert_allclose(leaf, -0.05 if decays(path) else 0.0, err_msg=str(path), rtol=1e-6)


def test_what_regularizers_learn_has_an_optimizer_of_its_own():
    params = PARAMS | {"regularizers": {"sigreg": jnp.array([1.0])}}
    gradients = {
        "encoder": jnp.array([3.0]),
        "predictor": jnp.array([4.0]),
        "regularizers": {"sigreg": jnp.array([99.0])},
    }
    settings = {"b1": 0.9, "b2": 0.0, "weight_decay": 0.5, "clip_norm": 1.0, "clip_over": "all"}
    optimizer = adamw(
        {"encoder": lambda step: 0.1, "predictor": lambda step: 0.01},
        regularizers=every_so_many_steps(3, learning_rate=0.5, clip_norm=2.0),
        **settings,
    )
    state, moved = optimizer.init(params), []
    for _ in range(7):
        updates, state = optimizer.update(gradients, state, params)
        moved.append(float(updates["regularizers"]["sigreg"][0]))
    # A constant gradient moves Adam by its learning rate, without decay; the clipped gradient is what it has seen.
    np.testing.assert_allclose(moved, [-0.5, 0, 0, -0.5, 0, 0, -0.5], rtol=1e-4)
    moments = jax.tree.leaves([moment for _, moment in optax.tree.get_all_with_path(state, "mu")])
    own, others = float(moments[-1][0]), [float(moment[0]) for moment in moments[:-1]]
    assert own == pytest.approx(2.0 * (1 - 0.9**3))
    # The norm that the others are clipped by is 5, whatever this gradient is.
    np.testing.assert_allclose(np.array(others) / (1 - 0.9**7), [0.6, 0.8], rtol=1e-5)
