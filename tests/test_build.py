import jax
import jax.numpy as jnp
import pytest

from hamjepa_jax import build
from hamjepa_jax.errors import UserError
from hamjepa_jax.stats import floors

MISTAKES = [
    ("data.train_split", "validation", "'validation' is not a split of digits; its splits: train, test"),
    ("data.num_local_views", 1, "must be 0, because digits are never cropped"),
    ("evaluation.resize", 7, "must be at least the 8 of config.data.view_size, got 7"),
    ("data.max_corrupt", -1, "must be at least 0, got -1"),
    ("data.batch_size", 5000, "must be between 2 and the 1347 training images, got 5000"),
    ("data.num_global_views", 1, "must be at least 2, got 1"),
    ("data.mean", (), "must be positive numbers"),
    ("data.augmentation.name", "flip", "'flip' is unknown; known: digit, film, multi_crop"),
    ("model.stem", "big", "'big' is unknown; known: cifar, imagenet"),
    ("model.depths", (1, 1, 1), "must have one number of blocks for each of the 2 widths"),
    ("model.token_layer", 3, "must be a stage between 1 and 2, got 3"),
    ("model.token_d_f", 5, "must be even"),
    ("model.split_qp", False, "must be true, because config.objective.prediction.match is 'q'"),
    ("model.dtype", "float16", "known: bfloat16, float32"),
    ("model.name", "mlp_mixer", "known: resnet, vit"),
    ("model.block", "wide", "known: basic, bottleneck"),
    ("predictor.name", "transformer", "known: hamiltonian_flow, identity, linear, mlp, residual_mlp, rotation"),
    ("predictor.mass", "light", "known: diagonal, unit"),
    ("predictor.energy", "kepler", "known: coupled_mlp, pendulum, quadratic, separable_mlp"),
    ("predictor.scheme", "verlet", "'verlet' is unknown"),
    ("predictor.num_steps", -1, "must be at least 0, got -1"),
    ("objective.form", "product", "known: convex, sum"),
    ("objective.prediction.match", "p", "known: q, qp, z"),
    ("objective.prediction.bidirectional", "both", "known: inverse, none, swap"),
    ("objective.prediction.pairing", "random", "known: all, center, first_two"),
    (
        "objective.regularizers.mean.name",
        "byol",
        "known: barlow_twins, bhep, covariance_floor, mean_square, sliced_test",
    ),
    ("objective.regularizers.mean.on", "r", "known: p, q, qp, z"),
    ("objective.regularizers.mean.weight", -1.0, "must not be negative, got -1.0"),
    ("objective.regularizers.logdet_q.redraw_every", 0, "must be at least 1, got 0"),
    ("objective.regularizers.logdet_q.max_rank", 0, "must be at least 1, got 0"),
    ("optimizer.learning_rate", 0.0, "must be positive"),
    ("optimizer.warmup_epochs", 1, "must be below the 1 epochs"),
    ("optimizer.warmup_limit", 1.0, "must be in [0, 1), got 1.0"),
    ("optimizer.clip_over", "some", "known: all, each, encoder, none"),
    ("optimizer.decay_of", "biases", "known: all, kernels"),
    ("optimizer.regularizers.every_steps", 0, "must be at least 1, got 0"),
    ("train.epochs", 0, "must be at least 1, got 0"),
    ("train.seed", 2**32, "must be below 2**32, got 4294967296"),
    ("log.every_steps", 0, "must be at least 1, got 0"),
]


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_a_mistake_is_answered_with_its_key_and_what_is_allowed(digits_config, key, value, message):
    config = digits_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        build.experiment(config)
    assert str(error.value).startswith(f"config.{key}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_field_that_is_missing_is_named(digits_config):
    config = digits_config()
    del config.evaluation.probe.epochs
    with pytest.raises(UserError, match="config.evaluation.probe.epochs: missing"):
        build.experiment(config)


def test_steps_are_counted_in_whole_batches_and_cut_by_max_steps(digits_config):
    config = digits_config()
    config.train.max_steps, config.train.epochs = None, 3
    experiment = build.experiment(config)
    assert experiment.steps_per_epoch == 1347 // 32
    assert experiment.total_steps == 3 * (1347 // 32)
    config.train.max_steps = 5
    stopped_early = build.experiment(config)
    assert stopped_early.total_steps == 5
    # Stopping early does not bend the schedule.
    assert stopped_early.learning_rate(50) == experiment.learning_rate(50)


def test_the_residual_scale_is_ramped_by_epoch(digits_config):
    config = digits_config()
    config.objective.prediction.bidirectional = "none"
    config.predictor.residual_ramp_epochs, config.predictor.residual_scale = 4, 2000.0
    ramped = build.experiment(config)
    per_epoch = ramped.steps_per_epoch
    z = jax.random.normal(jax.random.key(1), (2, 32, 64))
    params = {"predictor": ramped.predictor.init(jax.random.key(0), 64), "regularizers": {}}

    def prediction(objective, step):
        return float(objective.loss(params, z, key=jax.random.key(2), step=jnp.int32(step))[1]["prediction"])

    def prediction_at_constant_scale(scale):
        constant = digits_config()
        constant.objective.prediction.bidirectional = "none"
        constant.predictor.residual_ramp_epochs, constant.predictor.residual_scale = 0, scale
        return prediction(build.experiment(constant).objective, 0)

    for step, scale in ((0, 500.0), (per_epoch - 1, 500.0), (per_epoch, 1000.0), (10 * per_epoch, 2000.0)):
        assert prediction(ramped.objective, step) == pytest.approx(prediction_at_constant_scale(scale), rel=1e-5)
    assert prediction_at_constant_scale(1000.0) != pytest.approx(prediction_at_constant_scale(500.0), rel=1e-3)


def test_the_covariance_floor_counts_the_states_of_all_views(photo_config, monkeypatch):
    asked = []
    monkeypatch.setattr(floors, "projection_rank", lambda *arguments: asked.append(arguments) or 1)
    config = photo_config("hamjepa_multicrop")
    config.data.batch_size = 3
    build.experiment(config)
    assert set(asked) == {(32, (2 + 6) * 3, 128)}
