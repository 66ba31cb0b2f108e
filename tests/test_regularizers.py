from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import regularizers
from hamjepa_jax.regularizers import REGULARIZERS, Context
from hamjepa_jax.stats import envelope, floors, spectral, univariate
from hamjepa_jax.stats.slicing import random_directions, sliced

pytestmark = pytest.mark.usefixtures("float64")

EPPS_PULLEY = {"name": "epps_pulley", "num_points": 5}
SMOOTHNESS = {"kappa": 1.0, "eps": 0.1, "beta": 0.7, "normalize": "trace"}
# An unsplit embedding of 3 × 3 tokens with 4 channels, and a state of two halves with 2 channels each.
WHOLE = Context(dim=36, halves=1, token_grid=(3, 3), weight=0.5)
STATE = WHOLE._replace(halves=2)
KEY = jax.random.key(3)


def samples(groups=2, count=10, dim=36):
    return jax.random.normal(jax.random.key(0), (groups, count, dim))


def loss_of(regularizer, x, *, params=None, epoch=1):
    return regularizer.loss(params or {}, x, key=KEY, epoch=epoch)


def test_groups_of_samples_are_averaged():
    x = samples()
    regularizer = REGULARIZERS["variance_floor"](WHOLE, std_floor=1.5)
    loss, statistics = loss_of(regularizer, x)
    single = [floors.variance_floor(group, std_floor=1.5) for group in x]
    assert loss == pytest.approx(np.mean([value for value, _ in single]))
    assert statistics["min_std"] == pytest.approx(np.mean([found["min_std"] for _, found in single]))
    assert loss_of(regularizer, x[:1])[0] == pytest.approx(single[0][0])


def test_functions_that_draw_get_the_key_and_others_do_not():
    seen = []

    def drawing(x_NxD, *, key, scale):
        seen.append(key)
        return scale * jnp.sum(x_NxD), {}

    regularizer = regularizers.of_samples(drawing)(WHOLE, scale=2.0)
    assert loss_of(regularizer, samples(groups=1))[0] == pytest.approx(2 * jnp.sum(samples(groups=1)))
    assert seen == [KEY]


def test_barlow_twins_sees_all_views():
    settings = {"off_diagonal_weight": 0.1}
    x = samples()
    alike = jnp.stack([x[0], x[0]])
    regularizer = REGULARIZERS["barlow_twins"](WHOLE, **settings)
    assert loss_of(regularizer, alike)[0] < loss_of(regularizer, x)[0]
    with pytest.raises(ValueError, match="pooled: must be false"):
        loss_of(regularizer, x[:1])


@pytest.mark.parametrize("test", univariate.TESTS)
def test_a_sliced_test_is_that_test_along_random_directions(test):
    x = samples()
    made = REGULARIZERS["sliced_test"](WHOLE, test={"name": test}, num_directions=7, geometry={"name": "identity"})
    directions = random_directions(KEY, 36, 7)
    assert loss_of(made, x)[0] == pytest.approx(sliced(x, directions, univariate.TESTS[test]))
    assert made.sqrt_h is None


GEOMETRIES = {
    "diag": ({}, lambda dim, d_f: spectral.diag(dim)),
    "chain": (SMOOTHNESS, lambda dim, d_f: spectral.chain(dim, **SMOOTHNESS)),
    "grid": (SMOOTHNESS, lambda dim, d_f: spectral.grid(3, 3, d_f, **SMOOTHNESS)),
}


@pytest.mark.parametrize("context", [WHOLE, STATE], ids=["whole", "state"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_hamsigreg_is_sigreg_of_the_shaped_samples(name, context):
    settings, make = GEOMETRIES[name]
    sqrt_h = make(36 // context.halves, 4 // context.halves)
    x = samples()
    # Positions and momenta are grids of their own.
    halves = x.reshape(2, 10, context.halves, -1)
    shaped = sqrt_h(halves).reshape(x.shape)
    geometry = {"name": name, **settings}
    made = REGULARIZERS["sliced_test"](context, test=EPPS_PULLEY, num_directions=7, geometry=geometry)
    statistic = partial(univariate.epps_pulley, num_points=5)
    assert loss_of(made, x)[0] == pytest.approx(sliced(shaped, random_directions(KEY, 36, 7), statistic))
    np.testing.assert_allclose(made.sqrt_h({}, x, 1), shaped)


LEARNABLE = {"bins": 4, "span_max": 2.0, "init_loglambda_span": 0.8, "alpha_init": 0.2}


def learnable(*, game="min", weight=0.5, ramp_epochs=4, context=WHOLE):
    made = REGULARIZERS["sliced_test"](
        context._replace(weight=weight),
        test=EPPS_PULLEY,
        num_directions=7,
        geometry={"name": "learnable", "game": game, "ramp_epochs": ramp_epochs, **LEARNABLE},
    )
    return made, jax.tree.map(lambda leaf: leaf + 0.3 * jnp.arange(leaf.size).reshape(leaf.shape), made.init(KEY))


@pytest.mark.parametrize("game", ["min", "max"])
@pytest.mark.parametrize("weight", [0.02, 3.0])
def test_a_learnable_geometry_plays_its_own_game_whatever_the_weight(game, weight):
    made, params = learnable(game=game, weight=weight)
    config = envelope.EnvelopeConfig(h=3, w=3, d_f=4, **LEARNABLE)
    x, directions = samples(), random_directions(KEY, 36, 7)
    # One of four epochs of the ramp has passed.
    ramped = {"alpha": 0.2 + 0.8 / 4, "beta": 1.0}

    def statistic(params, x):
        shaped = envelope.sqrt_h(params, config, x, **ramped)
        return sliced(shaped, directions, partial(univariate.epps_pulley, num_points=5))

    def own_loss(params):
        return {"min": 1, "max": -1}[game] * statistic(params, x) + envelope.penalty(params, config, **ramped)

    def weighted(params, x):
        return weight * loss_of(made, x, params=params, epoch=2)[0]

    assert weighted(params, x) == pytest.approx(weight * statistic(params, x))
    of_params, of_x = jax.grad(weighted, argnums=(0, 1))(params, x)
    expected = jax.grad(own_loss)(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-7), of_params, expected)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3
    np.testing.assert_allclose(of_x, weight * jax.grad(statistic, argnums=1)(params, x), atol=1e-12)


def test_a_learnable_geometry_tells_of_its_health_and_its_coordinates():
    made, params = learnable(context=STATE)
    config = envelope.EnvelopeConfig(h=3, w=3, d_f=2, **LEARNABLE)
    x = samples()
    _, statistics = loss_of(made, x, params=params, epoch=5)
    expected = envelope.health(params, config)
    assert statistics.keys() == expected.keys()
    assert statistics["condition_number"] == pytest.approx(expected["condition_number"])
    halves = envelope.sqrt_h(params, config, x.reshape(2, 10, 2, 18))
    np.testing.assert_allclose(made.sqrt_h(params, x, 5), halves.reshape(x.shape))


SLICED = {"test": EPPS_PULLEY, "num_directions": 4, "geometry": {"name": "identity"}}
MISTAKES = [
    ("variance_floor", {}, "std_floor: missing; the settings are: std_floor, eps"),
    ("variance_floor", {"std_floor": 1.0, "floor": 2}, "floor: unknown setting; known: std_floor, eps"),
    ("sliced_test", SLICED | {"test": {"name": "kolmogorov"}}, "test.name: 'kolmogorov' is unknown; known: anderson_"),
    ("sliced_test", SLICED | {"test": EPPS_PULLEY | {"num_points": 1}}, "test.num_points: must be at least 2, got 1"),
    ("sliced_test", SLICED | {"test": {"name": "watson", "num_points": 3}}, "test.num_points: unknown setting; known"),
    ("sliced_test", SLICED | {"num_directions": 0}, "num_directions: must be at least 1, got 0"),
    ("sliced_test", SLICED | {"geometry": {"name": "torus"}}, "geometry.name: 'torus' is unknown; known: chain, diag,"),
    ("sliced_test", SLICED | {"geometry": {"name": "chain"}}, "geometry.kappa: missing; the settings are: kappa, eps"),
    (
        "sliced_test",
        SLICED | {"geometry": {"name": "learnable", "game": "draw", "ramp_epochs": 0}},
        "geometry.game: 'draw' is unknown; known: min, max",
    ),
    (
        "sliced_test",
        SLICED | {"geometry": {"name": "learnable", "game": "max", "ramp_epochs": 0, "span": 1}},
        "geometry.span: unknown setting; known: game, ramp_epochs, bins",
    ),
]


@pytest.mark.parametrize(("name", "settings", "message"), MISTAKES, ids=[message[:30] for *_, message in MISTAKES])
def test_mistakes_are_named_with_what_is_known(name, settings, message):
    with pytest.raises(ValueError, match=r"^\w") as error:
        REGULARIZERS[name](WHOLE, **settings)
    assert str(error.value).startswith(message)


def test_a_grid_needs_tokens_and_a_geometry_that_learns_a_weight():
    grid = SLICED | {"geometry": {"name": "grid", **SMOOTHNESS}}
    with pytest.raises(ValueError, match="geometry.name: needs a grid of tokens; take --config.model.mode=tokens"):
        REGULARIZERS["sliced_test"](WHOLE._replace(token_grid=None), **grid)
    with pytest.raises(ValueError, match="weight: must be positive for a geometry that learns"):
        learnable(weight=0.0)
