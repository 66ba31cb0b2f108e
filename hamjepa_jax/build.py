"""From the config to functions: the one place where names become data, models, predictors, objectives, optimizers."""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from hamjepa_jax import build_data, build_model, build_objective, build_views, optim, sharding
from hamjepa_jax.data.sources import Source
from hamjepa_jax.data.views import ViewGroup
from hamjepa_jax.dynamics.predictors import Predictor
from hamjepa_jax.errors import UserError, require, require_known, require_numbers
from hamjepa_jax.objectives import Objective
from hamjepa_jax.state import TrainState, init_state
from hamjepa_jax.step import Views

LOWER_BOUNDS = {
    "train.epochs": 1,
    "train.max_steps": 1,
    "train.microbatches": 1,
    "train.max_skipped_steps": 0,
    "train.seed": 0,
    "data.view_size": 1,
    "data.local_view_size": 1,
    # A view is predicted from another.
    "data.num_global_views": 2,
    "data.num_local_views": 0,
    "data.canvas_size": 1,
    "data.resident_bytes": 0,
    "data.num_workers": 0,
    "data.max_corrupt": 0,
    "model.token_hw": 1,
    "model.token_d_f": 1,
    "model.out_dim": 1,
    "predictor.width": 1,
    "predictor.num_steps": 0,
    "predictor.hidden_dim": 1,
    "predictor.depth": 0,
    "predictor.residual_ramp_epochs": 0,
    "optimizer.warmup_epochs": 0,
    "checkpoint.every_steps": 1,
    "checkpoint.every_minutes": 0,
    "checkpoint.keep": 1,
    "checkpoint.grace_seconds": 0,
    "log.every_steps": 1,
    "evaluation.batch_size": 1,
    "evaluation.online_probe.every_epochs": 0,
    "evaluation.online_probe.train_images": 1,
    "evaluation.online_probe.test_images": 1,
    "evaluation.online_probe.k": 1,
    "evaluation.probe.epochs": 1,
    "evaluation.probe.batch_size": 1,
    "evaluation.few_label_probe.draws": 1,
    "evaluation.few_label_probe.steps": 1,
    "evaluation.few_label_probe.epochs": 0,
    "evaluation.few_label_probe.batch_size": 1,
}


class Model(NamedTuple):
    """What a config describes without its data.

    Attributes:
        encoder: the encoder.
        predictor: the predictor.
        preprocess: uint8 images → what the encoder takes in evaluation.
        objective: the loss of the embeddings.
        optimizer: the optimizer.
        learning_rate: the encoder's schedule, for the logs.
        initial_state: PRNG key → the state before the first step.
        state_dim: size of an embedding.
    """

    encoder: nn.Module
    predictor: Predictor
    preprocess: Callable[[jax.Array], jax.Array]
    objective: Objective
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    initial_state: Callable[[jax.Array], TrainState]
    state_dim: int


class Experiment(NamedTuple):
    """What a config describes, as objects and pure functions.

    Attributes:
        train_source: the training images.
        test_source: the test images.
        encoder: the encoder.
        predictor: the predictor.
        view_groups: how views are drawn and rendered.
        views: draws the normalised views of a batch, see `step.Views`.
        preprocess: uint8 images → what the encoder takes in evaluation.
        objective: the loss of the embeddings.
        optimizer: the optimizer.
        learning_rate: the encoder's schedule, for the logs.
        initial_state: PRNG key → the state before the first step.
        steps_per_epoch: updates in an epoch.
        total_steps: updates in the whole run.
    """

    train_source: Source
    test_source: Source
    encoder: nn.Module
    predictor: Predictor
    view_groups: tuple[ViewGroup, ...]
    views: Views
    preprocess: Callable[[jax.Array], jax.Array]
    objective: Objective
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    initial_state: Callable[[jax.Array], TrainState]
    steps_per_epoch: int
    total_steps: int


def experiment(config: ConfigDict) -> Experiment:
    """Builds everything that a config describes; nothing is written and nothing is computed yet.

    Args:
        config: the whole config.

    Returns:
        The experiment.

    Raises:
        UserError: naming the config key, if a value is not allowed.
    """
    _check(config)
    groups = build_views.view_groups(config.data)
    train_source, test_source = build_data.sources(config.data)
    batch_size = config.data.batch_size
    require(
        2 <= batch_size <= len(train_source),
        "data.batch_size",
        f"must be between 2 and the {len(train_source)} training images, got {batch_size}",
    )
    steps_per_epoch = len(train_source) // batch_size
    made = _model(config, steps_per_epoch)
    total_steps = config.train.epochs * steps_per_epoch
    if config.train.max_steps is not None:
        total_steps = min(total_steps, config.train.max_steps)
    return Experiment(
        train_source=train_source,
        test_source=test_source,
        view_groups=groups,
        views=build_views.make_views(config.data, groups),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        **{name: part for name, part in made._asdict().items() if name != "state_dim"},
    )


def model(config: ConfigDict) -> Model:
    """Builds what can be used without the data: encoder, predictor and the states of a training.

    Args:
        config: the whole config.

    Returns:
        The model; its schedules are those of one step an epoch.

    Raises:
        UserError: naming the config key, if a value is not allowed.
    """
    _check(config)
    return _model(config, steps_per_epoch=1)


def _check(config: ConfigDict) -> None:
    """Makes sure that no number is out of bounds."""
    for key, bound in LOWER_BOUNDS.items():
        try:
            value = reduce(ConfigDict.__getitem__, key.split("."), config)
        except KeyError:
            raise UserError(
                f"config.{key}: missing; configs/digits.py has every field. A run of an older version is judged with "
                "--config=configs/NAME.py:VARIANT beside --workdir"
            ) from None
        require(value is None or value >= bound, key, f"must be at least {bound}, got {value}")
    require(config.train.seed < 2**32, "train.seed", f"must be below 2**32, got {config.train.seed}")
    for key in ("mean", "std"):
        require_numbers(config.data[key], float, f"data.{key}")
    require(
        config.evaluation.resize >= config.data.view_size,
        "evaluation.resize",
        f"must be at least the {config.data.view_size} of config.data.view_size, got {config.evaluation.resize}",
    )


def _model(config: ConfigDict, steps_per_epoch: int) -> Model:
    optimizer, learning_rate = _optimizer(config, steps_per_epoch, config.train.epochs * steps_per_epoch)
    image_shape = (config.data.view_size, config.data.view_size, len(config.data.mean))
    network = build_model.encoder(config.model)
    state_dim = build_model.state_dim(config, network)
    flow = sharding.on_each_device(build_objective.predictor(config.predictor, state_dim))
    objective = build_objective.objective(
        config,
        flow,
        state_dim=state_dim,
        token_grid=build_model.token_grid(config.model, state_dim),
        steps_per_epoch=steps_per_epoch,
    )
    return Model(
        encoder=network,
        predictor=flow,
        preprocess=build_views.preprocess(config.data),
        objective=objective,
        optimizer=optimizer,
        learning_rate=learning_rate,
        initial_state=partial(
            init_state,
            encoder=network,
            predictor=flow,
            init_regularizers=objective.init,
            optimizer=optimizer,
            image_shape=image_shape,
        ),
        state_dim=state_dim,
    )


def _optimizer(
    config: ConfigDict, steps_per_epoch: int, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    settings = config.optimizer
    require_known(settings.clip_over, optim.CLIP_OVER, "optimizer.clip_over")
    require_known(settings.decay_of, optim.DECAY_OF, "optimizer.decay_of")
    peak = settings.learning_rate
    require(peak > 0, "optimizer.learning_rate", f"must be positive, got {peak}")
    predictor_peak = peak if settings.predictor_learning_rate is None else settings.predictor_learning_rate
    schedules = {
        group: optim.warmup_cosine(
            peak=group_peak,
            end_value=settings.end_factor * (peak if settings.shared_end_value else group_peak),
            warmup_steps=round(_warmup_epochs(config) * steps_per_epoch),
            total_steps=total_steps,
            warmup_factor=settings.warmup_factor,
        )
        for group, group_peak in (("encoder", peak), ("predictor", predictor_peak))
    }
    of_regularizers = settings.regularizers
    require(
        of_regularizers.every_steps >= 1,
        "optimizer.regularizers.every_steps",
        f"must be at least 1, got {of_regularizers.every_steps}",
    )
    optimizer = optim.adamw(
        schedules,
        b1=settings.b1,
        b2=settings.b2,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        clip_over=settings.clip_over,
        decay_of=settings.decay_of,
        regularizers=optim.every_so_many_steps(**of_regularizers),
    )
    return optimizer, schedules["encoder"]


def _warmup_epochs(config: ConfigDict) -> float:
    """Epochs of warm-up, no more than the share of the run that the config leaves to them."""
    warmup, limit, epochs = config.optimizer.warmup_epochs, config.optimizer.warmup_limit, config.train.epochs
    if limit is None:
        problem = f"must be below the {epochs} epochs of config.train.epochs, got {warmup}"
        require(warmup < epochs, "optimizer.warmup_epochs", f"{problem}; or give config.optimizer.warmup_limit")
        return warmup
    require(0 <= limit < 1, "optimizer.warmup_limit", f"must be in [0, 1), got {limit}")
    return min(warmup, limit * epochs)
