import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import objectives
from hamjepa_jax.dynamics import energies, predictors
from hamjepa_jax.stats import floors, slicing

pytestmark = pytest.mark.usefixtures("float64")

ENERGY = energies.quadratic()
FLOW = predictors.hamiltonian_flow(ENERGY, step_size=0.3, num_steps=2)
PARAMS = {"layers": []}
OFF = objectives.CovarianceFloor(-1e9, None, None)


def hamjepa(z, **changes):
    """The objective with every weight zero but those given."""
    d = z.shape[-1] // 2
    settings = {
        "predictor": FLOW,
        "energy": ENERGY,
        "projection_q": jnp.eye(d),
        "projection_p": jnp.eye(d),
        "residual_scale": 1.0,
        "match": "qp",
        "p_weight": 0.2,
        "bidirectional": "inverse",
        "detach_target": True,
        "energy_weight": 0.0,
        "budget_weight": 0.0,
        "q_target": 1.0,
        "p_target": 1.0,
        "variance_weight": 0.0,
        "variance_on": ("q", "p"),
        "std_floor": 0.2,
        "logdet_weight": 0.0,
        "covariance_floor_q": OFF,
        "covariance_floor_p": OFF,
        "mean_weight": 0.0,
    }
    return objectives.hamjepa(z, PARAMS, **settings | changes)


def views(num_views=3, batch=20, dim=6):
    return jax.random.normal(jax.random.key(0), (num_views, batch, dim))


def mse(x, y):
    return jnp.mean(jnp.square(x - y))


def test_matching_error_by_hand():
    prediction, target = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])
    assert objectives.matching_error(prediction, target, match="q", p_weight=0.2) == pytest.approx(1 + 0.2 * 4)
    assert objectives.matching_error(prediction, target, match="qp", p_weight=0.2) == pytest.approx(2.5)


@pytest.mark.parametrize("bidirectional", objectives.PREDICTIONS)
def test_prediction_pairs_the_first_two_views(bidirectional):
    z = views()
    ahead = FLOW.apply(PARAMS, z[0])
    other = {
        "inverse": FLOW.apply(PARAMS, z[1], direction=-1),
        "swap": FLOW.apply(PARAMS, z[1]),
    }.get(bidirectional)
    expected = mse(ahead, z[1]) if other is None else 0.5 * (mse(ahead, z[1]) + mse(other, z[0]))
    loss, metrics = hamjepa(z, bidirectional=bidirectional)
    assert loss == metrics["prediction"] == pytest.approx(expected)


def test_inverse_prediction_vanishes_when_the_flow_explains_the_views():
    z0 = views()[0]
    z = jnp.stack([z0, FLOW.apply(PARAMS, z0)])
    assert hamjepa(z, bidirectional="inverse")[0] == pytest.approx(0, abs=1e-24)
    assert hamjepa(z, bidirectional="swap")[0] > 0.1


def test_gradient_stops_at_detached_targets():
    def loss(z, detach_target):
        return hamjepa(z, bidirectional="none", detach_target=detach_target)[0]

    detached, attached = (jax.grad(loss)(views(), flag) for flag in (True, False))
    np.testing.assert_array_equal(detached[1], 0)
    np.testing.assert_allclose(detached[0], attached[0])
    assert jnp.abs(attached[1]).max() > 1e-3


def test_energy_consistency_compares_before_and_after():
    coarse = predictors.hamiltonian_flow(ENERGY, step_size=0.9, num_steps=1, scheme="explicit_euler")
    z = views()
    without, _ = hamjepa(z, predictor=coarse, bidirectional="none")
    with_energy, _ = hamjepa(z, predictor=coarse, bidirectional="none", energy_weight=0.7)
    # One explicit Euler step multiplies the oscillator's energy by 1 + τ².
    energy = ENERGY.value(PARAMS, *predictors.split_state(z[0]))
    assert with_energy - without == pytest.approx(0.7 * jnp.mean((0.81 * energy) ** 2))


@pytest.mark.parametrize(
    ("weight", "term"),
    [
        ("budget_weight", lambda z: floors.energy_budget(z)[0]),
        ("mean_weight", lambda z: jnp.mean(jnp.mean(z, axis=(0, 1)) ** 2)),
        ("variance_weight", lambda z: sum(floors.variance_floor(x, std_floor=1.5)[0] for x in jnp.split(z, 2, -1))),
        (
            "logdet_weight",
            lambda z: sum(floors.covariance_floor(x, jnp.eye(3), logdet_floor=0.5)[0] for x in jnp.split(z, 2, -1)),
        ),
    ],
)
def test_each_term_enters_with_its_weight_over_all_views(weight, term):
    z = views() * jnp.array([1.0, 1.0, 2.0])[:, None, None] + 0.1
    floor = objectives.CovarianceFloor(0.5, None, None)
    settings = {"std_floor": 1.5, "covariance_floor_q": floor, "covariance_floor_p": floor}
    assert term(z) > 1e-4
    added = hamjepa(z, **settings | {weight: 0.3})[0] - hamjepa(z, **settings)[0]
    assert added == pytest.approx(0.3 * term(z))


def test_variance_floor_acts_only_where_it_is_asked_to():
    z = views().at[..., 3:].multiply(1e-3)
    assert hamjepa(z, variance_on=("q",))[1]["variance"] == pytest.approx(0)
    assert hamjepa(z, variance_on=("q", "p"))[1]["variance"] > 0.01


def test_lejepa_by_hand():
    z = jnp.array([[[0.0]], [[2.0]], [[4.0]]])
    assert objectives.lejepa_prediction(z, num_global_views=2) == pytest.approx((1 + 1 + 9) / 3)
    directions = jnp.ones((1, 1))
    settings = {"num_global_views": 2, "sigreg_weight": 0.02, "num_points": 9}
    sigreg = slicing.sigreg(z, directions, num_points=9)
    assert objectives.lejepa(z, directions, **settings)[0] == pytest.approx(0.5 * 11 / 3 + 0.02 * sigreg)
    convex = objectives.lejepa(z, directions, form="convex", **settings)[0]
    assert convex == pytest.approx(0.98 * 11 / 3 + 0.02 * sigreg)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"match": "p"}, "match: 'p' is unknown; known: q, qp"),
        ({"bidirectional": "both"}, "bidirectional: 'both' is unknown; known: none, inverse, swap"),
        ({"variance_on": ("z",)}, "variance_on: z is unknown; known: q, p"),
        ({"energy": None, "energy_weight": 1.0}, "energy_weight: the predictor has no energy"),
    ],
)
def test_bad_options_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        hamjepa(views(), **wrong)


def test_bad_views_and_forms_are_named():
    with pytest.raises(ValueError, match="at least 2 views, got 1"):
        hamjepa(views(num_views=1))
    with pytest.raises(ValueError, match="even number of coordinates, got 5"):
        hamjepa(views(dim=5), projection_q=jnp.eye(2), projection_p=jnp.eye(2))
    with pytest.raises(ValueError, match="form: 'product' is unknown; known: sum, convex"):
        objectives.lejepa(views(), jnp.eye(6), num_global_views=2, sigreg_weight=0.1, form="product")
