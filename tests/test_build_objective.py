"""The objective that a config describes: which terms, on what, with which draws; and what every option changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import build, build_objective, objectives, regularizers
from hamjepa_jax.dynamics import energies, geometry, predictors
from hamjepa_jax.errors import UserError
from hamjepa_jax.stats import floors, slicing, spectral

DIM, BATCH = 64, 32
KEY = jax.random.key(7)


def views(num_views=2):
    # Off centre, of different scales, and some of it common to the views.
    own, common = jax.random.normal(jax.random.key(0), (2, num_views, BATCH, DIM))
    return 0.3 + jnp.linspace(0.5, 1.5, DIM) * (0.5 * own + common[:1])


def built(config):
    """The objective of a config, and parameters for it."""
    experiment = build.experiment(config)
    shapes = jax.eval_shape(experiment.initial_state, jax.random.key(0)).params
    params = {
        "predictor": experiment.predictor.init(jax.random.key(1), DIM),
        "regularizers": experiment.objective.init(jax.random.key(2)),
    }
    assert jax.tree.structure(shapes["predictor"]) == jax.tree.structure(params["predictor"])
    return experiment, params


def evaluate(config, step=0, z=None):
    experiment, params = built(config)
    loss, metrics = jax.jit(experiment.objective.loss)(params, views() if z is None else z, key=KEY, step=step)
    return {"loss": float(loss)} | {name: float(value) for name, value in metrics.items()}


def key_of(term, draw=0):
    return jax.random.fold_in(build_objective._key_of(term, KEY), draw)


def test_the_variant_hamjepa_is_the_objective_of_the_paper(digits_config):
    config = digits_config("hamjepa")
    experiment, params = built(config)
    floor_q, floor_p = (config.objective.regularizers[f"logdet_{half}"] for half in "qp")
    z = views()
    loss, expected = objectives.hamjepa(
        z,
        params["predictor"],
        predictor=experiment.predictor,
        projection_q=floors.random_projection(key_of("logdet_q"), DIM // 2, DIM // 2, jnp.float32),
        projection_p=floors.random_projection(key_of("logdet_p"), DIM // 2, DIM // 2, jnp.float32),
        residual_scale=0.02 / 10,
        match="q",
        p_weight=0.2,
        bidirectional="inverse",
        detach_target=True,
        energy_weight=0.0,
        budget_weight=0.2,
        q_target=1.0,
        p_target=1.0,
        variance_weight=0.5,
        variance_on=("q", "p"),
        std_floor=0.2,
        logdet_weight=0.5,
        covariance_floor_q=objectives.CovarianceFloor(-1.5, floor_q.participation_floor, floor_q.eigmax_ceiling),
        covariance_floor_p=objectives.CovarianceFloor(-1.5, floor_p.participation_floor, floor_p.eigmax_ceiling),
        mean_weight=0.05,
    )
    found = evaluate(config)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert (floor_q.participation_floor, floor_p.participation_floor) == (0.12, 0.16)
    for name, value in expected.items():
        if name in found:
            assert found[name] == pytest.approx(float(value), rel=1e-4, abs=1e-7), name
        else:
            assert sum(found[f"{name}_{half}"] for half in "qp") == pytest.approx(float(value), rel=1e-4, abs=1e-7), (
                name
            )


@pytest.mark.parametrize(("variant", "form"), [("sigreg", "sum"), ("lejepa", "convex")])
def test_both_published_forms_of_lejepa(digits_config, variant, form):
    z = views(num_views=4)
    config = digits_config(variant)
    assert config.objective.form == form
    directions = slicing.random_directions(key_of("sigreg", 5), DIM, 1024, jnp.float32)
    settings = {"num_global_views": 2, "sigreg_weight": 0.02, "form": form}
    expected, terms = objectives.lejepa(z, directions, **settings)
    found = evaluate(config, step=5, z=z)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert found["sigreg"] == pytest.approx(float(terms["sigreg"]), rel=1e-5)


class Spy:
    """A regulariser that keeps what it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, context, **settings):
        def loss(params, x, *, key, epoch):
            if not isinstance(x, jax.core.Tracer):
                self.seen.append((x, key, int(epoch)))
            return jnp.mean(x), {"average": jnp.mean(x)}

        self.context = context
        return regularizers.Regularizer(lambda key: {}, loss)


@pytest.fixture
def spied(digits_config, monkeypatch):
    """A function from a term's settings and steps to what a regulariser gets to see, and the metrics."""

    def look(steps=(0,), split_qp=True, **settings):
        spy = Spy()
        monkeypatch.setitem(regularizers.REGULARIZERS, "spy", spy)
        config = digits_config("identity")
        config.model.split_qp = split_qp
        config.objective.prediction.match = "z"
        term = {"name": "spy", "weight": 0.5, "on": "z", "pooled": False} | settings
        config.objective.regularizers = {"spy": term}
        experiment, params = built(config)
        spy.seen.clear()
        found = [experiment.objective.loss(params, views(), key=KEY, step=step) for step in steps]
        return spy, found

    return look


def test_a_regularizer_sees_the_coordinates_it_is_put_on(spied):
    z = views()
    for on, expected in (("q", z[..., :32]), ("p", z[..., 32:]), ("qp", z), ("z", z)):
        spy, [(loss, metrics)] = spied(on=on)
        np.testing.assert_array_equal(spy.seen[0][0], expected)
        assert (spy.context.dim, spy.context.halves) == (expected.shape[-1], 2 if on in ("qp", "z") else 1)
        assert spy.context.token_grid == (4, 4)
        assert loss == pytest.approx(metrics["prediction"] + 0.5 * metrics["spy"])
        assert metrics[f"{on}_average"] == metrics["spy"]
    assert spied(split_qp=False)[0].context.halves == 1


def test_pooled_views_are_one_group_of_samples(spied):
    spy, _ = spied(pooled=True)
    (pooled,) = spy.seen[0][0]
    assert pooled.shape == (2 * BATCH, DIM)
    np.testing.assert_array_equal(np.sort(pooled, axis=0), np.sort(views().reshape(-1, DIM), axis=0))


def test_draws_are_new_in_every_step_or_every_so_many(spied):
    for every, draws in ((1, [0, 1, 2, 3]), (2, [0, 0, 1, 1])):
        spy, _ = spied(steps=range(4), redraw_every=every)
        assert [key for _, key, _ in spy.seen] == [key_of("spy", draw) for draw in draws]


def test_epochs_are_counted_from_one(spied):
    per_epoch = 1347 // 32
    spy, _ = spied(steps=(0, per_epoch - 1, per_epoch))
    assert [epoch for *_, epoch in spy.seen] == [1, 1, 2]


def test_a_terms_draws_do_not_depend_on_the_other_terms(digits_config):
    alone = digits_config("hamjepa")
    alone.objective.regularizers = {"logdet_q": alone.objective.regularizers.logdet_q.to_dict()}
    assert evaluate(alone)["logdet_q"] == pytest.approx(evaluate(digits_config("hamjepa"))["logdet_q"], rel=1e-6)


def test_what_no_floor_computes_is_watched_in_a_projection_of_its_own(digits_config):
    metrics = evaluate(digits_config("sigreg"))
    z = views()
    projection = floors.random_projection(key_of("watched"), DIM, BATCH - 1, jnp.float32)
    expected = floors.covariance_statistics(z, projection) | floors.variance_floor(z, std_floor=0.0)[1]
    for name, value in expected.items():
        assert metrics[f"z_{name}"] == pytest.approx(float(value), rel=1e-4), name
    config = digits_config("hamjepa")
    config.objective.regularizers = {}
    assert {"q_logdet", "p_logdet", "q_min_std", "p_eigmax"} <= evaluate(config).keys()


def test_watching_costs_no_gradient(digits_config):
    config = digits_config("sigreg")
    config.objective.prediction.weight = config.objective.regularizers.sigreg.weight = 0.0
    experiment, params = built(config)
    assert experiment.objective.terms == ()
    gradient = jax.grad(lambda z: experiment.objective.loss(params, z, key=KEY, step=0)[0])(views())
    np.testing.assert_array_equal(gradient, 0)


def test_the_force_of_the_learned_part_is_told(digits_config):
    config = digits_config("hamjepa")
    config.predictor.residual_ramp_epochs = 0
    _, params = built(config)
    energy = energies.separable_mlp(hidden_dim=8, depth=2, base_coeff=0.1)
    q, p = predictors.split_state(views()[0])
    expected = geometry.residual_force_ratio(energy, params["predictor"], q, p, residual_scale=0.02)
    assert evaluate(config)["residual_force_ratio"] == pytest.approx(float(expected), rel=1e-4)
    config.predictor.energy = "quadratic"
    assert "residual_force_ratio" not in evaluate(config)


def test_masses_are_an_option_of_the_flow(digits_config):
    config = digits_config("hamjepa")
    plain = evaluate(config)
    config.predictor.mass = "diagonal"
    _, params = built(config)
    assert params["predictor"]["log_mass"].shape == (DIM // 2,)
    # All masses are one at first.
    assert evaluate(config) == pytest.approx(plain, rel=1e-6)


def test_coordinates_in_which_an_embedding_is_judged(digits_config):
    z = views()[0]

    def coordinates(config):
        experiment, params = built(config)
        return experiment.objective.coordinates(params, z, 0)

    state = coordinates(digits_config("hamjepa"))
    assert list(state) == ["q", "p", "qp", "pooled"]
    np.testing.assert_array_equal(state["p"], z[:, 32:])
    # Sixteen tokens of four numbers, the first two of which are in q, and the others in p.
    means = [half.reshape(len(z), 16, 2).mean(axis=1) for half in (z[:, :32], z[:, 32:])]
    np.testing.assert_allclose(state["pooled"], np.concatenate(means, axis=1), rtol=1e-5, atol=1e-6)
    whole = coordinates(digits_config("sigreg"))
    assert list(whole) == ["whole", "pooled"]
    np.testing.assert_allclose(whole["pooled"], z.reshape(len(z), 16, 4).mean(axis=1), rtol=1e-5, atol=1e-6)
    shaped = coordinates(digits_config("hamsigreg_diag"))
    np.testing.assert_allclose(shaped["sqrt_h"], spectral.diag(DIM)(z), rtol=1e-6)
    np.testing.assert_array_equal(shaped["whole"], z)
    learned = coordinates(digits_config("hamiltonian_flow-hamsigreg_learnable"))
    assert list(learned) == ["q", "p", "qp", "pooled", "sqrt_h"]


def test_a_predictor_without_a_width_is_matched_to_the_energy(digits_config):
    config = digits_config("mlp")
    config.predictor.hidden_dim = 256
    _, params = built(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(params["predictor"]))
    assert count == pytest.approx(32 * 256 + 256 + 256 * 256 + 256 + 256 + 1, rel=0.01)
    config.predictor.width = 5
    assert built(config)[1]["predictor"]["layers"][0]["kernel"].shape == (DIM, 5)


MISTAKES = [
    ("sigreg", "regularizers.sigreg.test.name", "kolmogorov", "unknown; known: anderson_darling, cramer_von_mises"),
    ("sigreg", "regularizers.sigreg.geometry.name", "torus", "unknown; known: chain, diag, grid, identity, learnable"),
    ("sigreg", "regularizers.sigreg.test.num_points", 1, "must be at least 2, got 1"),
    ("barlow_twins", "regularizers.barlow_twins.pooled", True, "must be false, because the views are compared"),
    ("hamsigreg_learnable", "regularizers.hamsigreg.geometry.binning", "log", "unknown; known"),
]


@pytest.mark.parametrize(("variant", "key", "value", "message"), MISTAKES, ids=[key for _, key, *_ in MISTAKES])
def test_a_mistake_in_a_regularizer_is_named(digits_config, variant, key, value, message):
    config = digits_config(variant)
    config.objective.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        build.experiment(config)
    assert str(error.value).startswith(f"config.objective.{key}: ")
    assert message in str(error.value)


def test_what_needs_a_state_says_so(digits_config):
    config = digits_config("sigreg")
    config.objective.regularizers.sigreg.on = "q"
    with pytest.raises(
        UserError, match=r"config.model.split_qp: must be true, because .*regularizers.sigreg.on is 'q'"
    ):
        build.experiment(config)
    config = digits_config("sigreg")
    config.predictor.name = "hamiltonian_flow"
    with pytest.raises(
        UserError, match=r"config.model.split_qp: must be true, because the predictor 'hamiltonian_flow'"
    ):
        build.experiment(config)
    config = digits_config("identity")
    config.objective.prediction.energy_weight = 0.1
    with pytest.raises(UserError, match=r"config.objective.prediction.energy_weight: must be 0, because .* no energy"):
        build.experiment(config)


def test_what_a_config_leaves_out_is_named(digits_config):
    config = digits_config("hamjepa")
    del config.objective.regularizers.variance_q.std_floor
    with pytest.raises(
        UserError, match="config.objective.regularizers.variance_q.std_floor: missing; the settings are"
    ):
        build.experiment(config)
    config = digits_config("hamjepa")
    del config.objective.regularizers.variance_q.on
    with pytest.raises(UserError, match="config.objective.regularizers.variance_q.on: missing"):
        build.experiment(config)


def test_weights_that_do_not_fit_a_convex_sum_and_widths_that_do_not_match(digits_config):
    config = digits_config("lejepa")
    config.objective.regularizers.sigreg.weight = 1.5
    with pytest.raises(UserError, match="config.objective.form: 'convex' needs weights .* at most 1, got 1.5"):
        build.experiment(config)
    with pytest.raises(UserError, match="config.predictor.width: no width comes within 1 % of 345 parameters"):
        build.experiment(digits_config("mlp"))
