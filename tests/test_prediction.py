import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import prediction
from hamjepa_jax.dynamics import energies, predictors

pytestmark = pytest.mark.usefixtures("float64")

ENERGY = energies.quadratic()
FLOW = predictors.hamiltonian_flow(ENERGY, step_size=0.3, num_steps=2)
PARAMS = {"layers": []}
DIRECTIONS = {"none": None, "inverse": -1, "swap": 1}


def error_of(z, **changes):
    settings = {
        "predictor": FLOW,
        "energy": ENERGY,
        "residual_scale": 1.0,
        "pairing": "first_two",
        "num_global_views": 2,
        "bidirectional": "none",
        "match": "qp",
        "p_weight": 0.2,
        "detach_target": True,
        "energy_weight": 0.0,
    }
    return prediction.prediction_error(z, PARAMS, **settings | changes)


def views(num_views=4, batch=20, dim=6):
    return jax.random.normal(jax.random.key(0), (num_views, batch, dim))


def mse(x, y):
    return jnp.mean(jnp.square(x - y))


def flow(z, direction=1):
    return FLOW.apply(PARAMS, z, direction=direction)


def test_matching_error_by_hand():
    found, target = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])
    assert prediction.matching_error(found, target, match="q", p_weight=0.2) == pytest.approx(1 + 0.2 * 4)
    for match in ("qp", "z"):
        assert prediction.matching_error(found, target, match=match, p_weight=0.2) == pytest.approx(2.5)


@pytest.mark.parametrize(("bidirectional", "way_back"), DIRECTIONS.items())
def test_the_first_two_views_are_predicted_from_each_other(bidirectional, way_back):
    z = views()
    expected = mse(flow(z[0]), z[1])
    if way_back is not None:
        expected = 0.5 * (expected + mse(flow(z[1], way_back), z[0]))
    assert error_of(z, bidirectional=bidirectional) == pytest.approx(expected)


@pytest.mark.parametrize(("bidirectional", "way_back"), DIRECTIONS.items())
def test_all_pairs_of_a_global_view_and_a_later_one(bidirectional, way_back):
    z = views()
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    errors = [mse(flow(z[i]), z[j]) for i, j in pairs]
    if way_back is not None:
        errors += [mse(flow(z[j], way_back), z[i]) for i, j in pairs]
    assert error_of(z, pairing="all", bidirectional=bidirectional) == pytest.approx(np.mean(errors))


@pytest.mark.parametrize(("bidirectional", "way_back"), DIRECTIONS.items())
def test_every_view_and_the_mean_of_the_global_ones(bidirectional, way_back):
    z = views()
    center = (z[0] + z[1]) / 2
    errors = [mse(flow(z[i]), center) for i in range(4)]
    if way_back is not None:
        errors += [mse(flow(center, way_back), z[i]) for i in range(4)]
    assert error_of(z, pairing="center", bidirectional=bidirectional) == pytest.approx(np.mean(errors))


def test_with_two_views_all_pairs_are_the_first_two():
    z = views(num_views=2)
    assert error_of(z, pairing="all", bidirectional="inverse") == error_of(z, bidirectional="inverse")


def test_every_view_has_a_gradient_where_all_are_predicted():
    def norms(pairing):
        gradient = jax.grad(lambda z: error_of(z, pairing=pairing, bidirectional="inverse"))(views())
        return jnp.linalg.norm(gradient, axis=(1, 2))

    assert np.all(norms("all") > 1e-3)
    np.testing.assert_array_equal(norms("first_two") > 1e-3, [True, True, False, False])


def test_the_map_is_computed_once_for_every_source_and_direction():
    calls = []

    def apply(params, z, direction=1, residual_scale=1.0):
        calls.append((direction, z.shape[0]))
        return z

    counting = predictors.Predictor(FLOW.init, apply)
    error_of(views(), predictor=counting, pairing="all", bidirectional="inverse")
    # Views 0 and 1 are sent ahead, views 1, 2 and 3 back.
    assert calls == [(1, 2), (-1, 3)]


def test_inverse_prediction_vanishes_when_the_flow_explains_the_views():
    z0 = views()[0]
    z = jnp.stack([z0, flow(z0)])
    assert error_of(z, bidirectional="inverse") == pytest.approx(0, abs=1e-24)
    assert error_of(z, bidirectional="swap") > 0.1


@pytest.mark.parametrize("pairing", ["first_two", "center"])
def test_gradient_stops_at_detached_targets(pairing):
    def gradient(detach_target):
        # Of the centre, view 1 is a source as well: all that reaches it through the target is cut.
        return jax.grad(lambda z: error_of(z, pairing=pairing, detach_target=detach_target))(views(num_views=2))

    detached, attached = gradient(True), gradient(False)
    assert jnp.abs(attached - detached).max() > 1e-3
    if pairing == "first_two":
        np.testing.assert_array_equal(detached[1], 0)
        np.testing.assert_allclose(detached[0], attached[0])


def test_energy_consistency_compares_before_and_after():
    coarse = predictors.hamiltonian_flow(ENERGY, step_size=0.9, num_steps=1, scheme="explicit_euler")
    z = views()
    without, with_energy = (error_of(z, predictor=coarse, energy_weight=weight) for weight in (0.0, 0.7))
    # One explicit Euler step multiplies the oscillator's energy by 1 + τ².
    energy = ENERGY.value(PARAMS, *predictors.split_state(z[0]))
    assert with_energy - without == pytest.approx(0.7 * jnp.mean((0.81 * energy) ** 2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pairing": "random"}, "pairing: 'random' is unknown; known: first_two, all, center"),
        ({"match": "p"}, "match: 'p' is unknown; known: q, qp, z"),
        ({"bidirectional": "both"}, "bidirectional: 'both' is unknown; known: none, inverse, swap"),
        ({"energy": None, "energy_weight": 1.0}, "energy_weight: the predictor has no energy"),
    ],
)
def test_bad_options_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        error_of(views(), **wrong)
