import runpy
from pathlib import Path

import jax
import pytest

from hamjepa_jax import build, build_model
from hamjepa_jax.errors import UserError
from hamjepa_jax.recipes import encoders, forms, terms, variants
from hamjepa_jax.stats.univariate import TESTS
from hamjepa_jax.workdir import flatten

CONFIGS = Path(__file__).parents[1] / "configs"
PAIRS = [f"{predictor}-{regularizer}" for predictor in variants.PREDICTORS for regularizer in variants.REGULARIZERS]


def config_of(name, variant):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)


def differing(one, other):
    one, other = (flatten(config.to_dict()) for config in (one, other))
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.mark.parametrize("form", forms.FORMS)
def test_hamjepa_and_its_baseline_are_as_published(published_hamjepa, form):
    expected = published_hamjepa[form]
    made = variants.recipe("hamjepa", form=form)
    terms, prediction = made.objective["regularizers"], made.objective["prediction"]
    for name in ("match", "p_weight", "bidirectional", "detach_target", "energy_weight"):
        assert prediction[name] == expected[name], name
    assert prediction["pairing"] == "first_two"
    for half in "qp":
        budget, floor = terms[f"budget_{half}"], terms[f"logdet_{half}"]
        assert (budget["weight"], budget["target"]) == (expected["budget_weight"], expected[f"{half}_target"])
        thresholds = tuple(floor[name] for name in ("logdet_floor", "participation_floor", "eigmax_ceiling"))
        assert (floor["weight"], thresholds) == (expected["logdet_weight"], expected[f"covariance_floor_{half}"])
        assert (floor["max_rank"], floor["redraw_every"]) == (128, 16)
    variances = {name.removeprefix("variance_"): term for name, term in terms.items() if name.startswith("variance_")}
    assert tuple(variances) == expected["variance_on"]
    for term in variances.values():
        assert (term["weight"], term["std_floor"]) == (expected["variance_weight"], expected["std_floor"])
    assert terms["mean"]["weight"] == expected["mean_weight"]
    assert all(term["pooled"] for term in terms.values())
    assert len(terms) == 5 + len(variances)

    baseline = variants.recipe("sigreg", form=form)
    sigreg = baseline.objective["regularizers"]["sigreg"]
    assert (sigreg["weight"], sigreg["num_directions"], sigreg["test"]["num_points"]) == (0.02, 64, 9)
    assert not sigreg["pooled"]
    assert baseline.objective["prediction"]["weight"] == 0.5
    assert baseline.split_qp == (form == "imagenet100")
    assert baseline.optimizer["clip_over"] == "none"


def test_the_published_predictor_and_optimizer():
    cifar100, imagenet100 = (variants.recipe("hamjepa", form=form) for form in ("cifar100", "imagenet100"))
    for made in (cifar100, imagenet100):
        flow, optimizer = made.predictor, made.optimizer
        assert (flow["name"], flow["scheme"], flow["mass"]) == ("hamiltonian_flow", "leapfrog", "unit")
        assert (flow["step_size"], flow["num_steps"], flow["base_coeff"]) == (0.05, 2, 0.1)
        assert (flow["hidden_dim"], flow["depth"], flow["residual_scale"]) == (256, 2, 0.02)
        assert (optimizer["learning_rate"], optimizer["weight_decay"], optimizer["decay_of"]) == (5e-4, 5e-4, "all")
        assert (optimizer["b1"], optimizer["b2"], optimizer["clip_norm"]) == (0.9, 0.999, 1.0)
        assert (optimizer["warmup_epochs"], optimizer["warmup_factor"], optimizer["end_factor"]) == (10, 0.01, 1e-3)
        assert optimizer["shared_end_value"]
        assert optimizer["regularizers"]["every_steps"] == 10
    assert [made.predictor["residual_ramp_epochs"] for made in (cifar100, imagenet100)] == [10, 0]
    assert [made.optimizer["clip_over"] for made in (cifar100, imagenet100)] == ["all", "encoder"]
    assert imagenet100.optimizer["predictor_learning_rate"] == 5e-5


@pytest.mark.parametrize("variant", [*variants.NAMED, *PAIRS])
def test_every_variant_of_digits_can_be_built(variant):
    config = config_of("digits", variant)
    experiment = build.experiment(config)
    params = jax.eval_shape(experiment.initial_state, jax.random.key(0)).params
    assert bool(jax.tree.leaves(params["regularizers"])) == ("learnable" in variant)
    assert experiment.objective.terms[0] == "prediction" or variant == "barlow_twins"


@pytest.mark.usefixtures("few_films")
@pytest.mark.parametrize("name", ["pendulum", "coupled_pendula"])
def test_variants_of_films_can_be_built(name):
    for variant in ("hamjepa", *variants.PREDICTORS[1:], "sigreg", "vicreg", "mlp-sigreg", "hamjepa_corrected"):
        config = config_of(name, variant)
        config.data.batch_size = 64
        build.experiment(config)
    with pytest.raises(ValueError, match="films have one encoder"):
        config_of(name, "hamjepa_resnet34")
    config = config_of(name, "hamsigreg_grid")
    config.data.batch_size = 64
    with pytest.raises(UserError, match="needs a grid of tokens"):
        build.experiment(config)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet100", "imagenet100"])
def test_every_data_set_has_every_variant_encoder_and_suffix(name):
    for variant in (*variants.NAMED, "mlp-sigreg"):
        for suffix in ("", "_multicrop", "_corrected", *(f"_{encoder}" for encoder in encoders.ENCODERS)):
            config = config_of(name, variant + suffix)
            assert config.variant == variant + suffix
            local_views = 6 if suffix == "_multicrop" or variant == "lejepa" else 0
            assert config.data.num_local_views == local_views


@pytest.mark.parametrize(
    "variant", ["hamjepa_resnet34", "hamjepa_resnet50", "hamjepa_vit_ti", "hamjepa_vit_b_multicrop", "lejepa_vit_s"]
)
def test_every_encoder_can_be_built(photo_config, variant):
    config = photo_config(variant)
    experiment = build.experiment(config)
    params = jax.eval_shape(experiment.initial_state, jax.random.key(0)).params
    assert bool(jax.tree.leaves(params["encoder"]))


def test_lejepas_own_defaults():
    config = config_of("imagenet100", "lejepa_vit_s")
    assert (config.data.num_global_views, config.data.num_local_views) == (2, 6)
    assert (config.model.name, config.model.hidden_dim, config.model.depth) == ("vit", 384, 12)
    assert config.optimizer.weight_decay == 5e-2
    sigreg = config.objective.regularizers.sigreg
    assert (sigreg.num_directions, sigreg.test.num_points, config.objective.form) == (1024, 17, "convex")
    assert config.objective.prediction.weight == 1.0


@pytest.mark.parametrize("name", ["cifar100", "imagenet100"])
def test_what_is_corrected_and_nothing_else(name):
    as_published, corrected = (config_of(name, variant) for variant in ("hamjepa", "hamjepa_corrected"))
    expected = {
        "variant",
        "objective.prediction.pairing",
        "optimizer.shared_end_value",
        "optimizer.warmup_limit",
        "optimizer.decay_of",
        "optimizer.clip_over",
    }
    own = {"cifar100": {"predictor.residual_ramp_epochs"}, "imagenet100": {"optimizer.predictor_learning_rate"}}
    assert differing(as_published, corrected) == expected | own[name]


def test_two_pairs_differ_in_the_named_parts_alone():
    base = config_of("cifar100", "hamiltonian_flow-floors")
    assert differing(base, config_of("cifar100", "hamjepa")) == {"variant"}
    assert differing(base, config_of("cifar100", "mlp-floors")) == {"variant", "predictor.name"}
    for regularizer in variants.REGULARIZERS:
        other = config_of("cifar100", f"hamiltonian_flow-{regularizer}")
        changed = {key for key in differing(base, other) if not key.startswith("objective.regularizers")}
        assert changed <= {"variant"}, regularizer


def test_hamsigreg_differs_from_sigreg_in_its_geometry_alone():
    for name in terms.GEOMETRIES:
        made, plain = (variants.recipe(variant, form="cifar100") for variant in (name, "sigreg"))
        (term,), (sigreg,) = (recipe.objective["regularizers"].values() for recipe in (made, plain))
        assert {key for key in term if term[key] != sigreg[key]} == ({"geometry"} if name != "sigreg" else set())


@pytest.mark.parametrize("variant", ["byol", "mlp-byol", "byol-floors", "hamjepa_vit_s_resnet18", "hamjepa_vit_l", ""])
def test_an_unknown_variant_is_answered_with_the_known_ones(variant):
    with pytest.raises(
        ValueError, match=r"is unknown; known: hamjepa, .*PREDICTOR-REGULARIZER of .*_ENCODER of resnet18"
    ):
        variants.recipe(variant, form="cifar100")


def test_digits_have_one_encoder_and_no_local_views():
    for variant in ("hamjepa_vit_s", "hamjepa_multicrop"):
        with pytest.raises(ValueError, match="digits have one encoder, and no local views"):
            config_of("digits", variant)
    assert config_of("digits", "lejepa").data.num_local_views == 0


def test_a_short_run_shortens_its_warm_up_where_that_is_allowed(digits_config):
    def rates(variant, **changes):
        config = digits_config(variant)
        config.train.epochs, config.train.max_steps = 20, None
        config.optimizer.update(changes)
        experiment = build.experiment(config)
        return [float(experiment.learning_rate(step)) for step in range(experiment.total_steps)]

    per_epoch = 1347 // 32
    published = rates("hamjepa", warmup_epochs=10)
    corrected = rates("hamjepa_corrected", warmup_epochs=10)
    assert published.index(max(published)) == 10 * per_epoch
    assert corrected.index(max(corrected)) == 2 * per_epoch
    unlimited = rates("hamjepa_corrected", warmup_epochs=1)
    assert unlimited.index(max(unlimited)) == per_epoch


def test_the_predictor_ends_at_the_encoders_rate_or_at_its_own_fraction(digits_config, monkeypatch):
    ends = {}
    schedule = build.optim.warmup_cosine
    monkeypatch.setattr(
        build.optim,
        "warmup_cosine",
        lambda **settings: ends.update({settings["peak"]: settings}) or schedule(**settings),
    )
    config = digits_config("hamjepa")
    config.optimizer.learning_rate, config.optimizer.predictor_learning_rate = 5e-4, 5e-5
    for shared, end in ((True, 5e-7), (False, 5e-8)):
        config.optimizer.shared_end_value = shared
        build.experiment(config)
        assert ends[5e-4]["end_value"] == pytest.approx(5e-7)
        assert ends[5e-5]["end_value"] == pytest.approx(end)


def test_every_test_of_univariate_has_a_variant():
    assert {*terms.TESTS, "epps_pulley"} == set(TESTS)


@pytest.mark.parametrize("name", ["cifar100", "cifar10", "tiny_imagenet100"])
@pytest.mark.parametrize("variant", ["sigreg", "hamjepa", "mlp", "identity"])
def test_scaling_down_leaves_the_objective_as_published(name, variant):
    published, scaled = config_of(name, variant), config_of(f"{name}_scaled_down", variant)
    changed = differing(published, scaled)
    assert not [key for key in changed if key.startswith("objective.")]
    assert {key for key in changed if key.startswith(("data.augmentation.", "predictor.", "optimizer."))} <= {
        "data.augmentation.blur_kernel_size",
        "predictor.residual_ramp_epochs",
        "optimizer.learning_rate",
        "optimizer.predictor_learning_rate",
        "optimizer.warmup_epochs",
    }
    assert build_model.state_dim(scaled, build_model.encoder(scaled.model)) == 2048
