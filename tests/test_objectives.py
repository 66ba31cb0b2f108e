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
    directions = jnp.ones((1, 1))
    settings = {"num_global_views": 2, "sigreg_weight": 0.02, "num_points": 9}
    sigreg = slicing.sigreg(z, directions, num_points=9)
    # Distances 1, 1 and 3 from the mean of the first two.
    assert objectives.lejepa(z, directions, **settings)[0] == pytest.approx(0.5 * 11 / 3 + 0.02 * sigreg)
    convex, metrics = objectives.lejepa(z, directions, form="convex", **settings)
    assert convex == pytest.approx(0.98 * 11 / 3 + 0.02 * sigreg)
    assert metrics["prediction"] == pytest.approx(11 / 3)


def test_hamjepa_predicts_the_first_two_views_of_any_number():
    z = views(num_views=3)
    ahead, back = FLOW.apply(PARAMS, z[0]), FLOW.apply(PARAMS, z[1], direction=-1)
    expected = 0.5 * jnp.mean((ahead - z[1]) ** 2) + 0.5 * jnp.mean((back - z[0]) ** 2)
    loss, metrics = hamjepa(z)
    assert loss == metrics["prediction"] == pytest.approx(expected)


def test_terms_add_up_and_those_of_weight_zero_are_only_watched():
    z = views()
    terms = {
        "square": objectives.Term(2.0, lambda z: (jnp.sum(z**2), {"largest": jnp.max(z)})),
        "fourth": objectives.Term(0.0, lambda z: (jnp.sum(z**4), {})),
    }
    (loss, metrics), gradient = jax.value_and_grad(objectives.weighted_sum, has_aux=True)(z, terms)
    assert loss == pytest.approx(2 * jnp.sum(z**2))
    assert metrics["fourth"] == pytest.approx(jnp.sum(z**4))
    assert metrics["largest"] == jnp.max(z)
    np.testing.assert_allclose(gradient, 4 * z)


def test_taps_let_out_the_norm_of_each_terms_gradient():
    z = views()
    terms = {
        "square": objectives.Term(2.0, lambda z: (jnp.sum(z**2), {})),
        "fourth": objectives.Term(0.1, lambda z: (jnp.sum(z**4), {})),
    }
    taps = dict.fromkeys(terms, jnp.zeros(()))

    def loss(z, taps):
        return objectives.weighted_sum(z, terms, taps=taps)[0]

    gradient, squared_norms = jax.grad(loss, argnums=(0, 1))(z, taps)
    np.testing.assert_allclose(gradient, 4 * z + 0.4 * z**3)
    assert squared_norms["square"] == pytest.approx(jnp.sum((4 * z) ** 2))
    assert squared_norms["fourth"] == pytest.approx(jnp.sum((0.4 * z**3) ** 2))


def test_a_loss_of_bfloat16_embeddings_is_float32():
    terms = {"square": objectives.Term(1.0, lambda z: (jnp.mean(z**2), {}))}
    assert objectives.weighted_sum(views().astype(jnp.bfloat16), terms)[0].dtype == jnp.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"match": "p"}, "match: 'p' is unknown; known: q, qp, z"),
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
