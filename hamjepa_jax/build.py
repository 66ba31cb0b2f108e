"""From the config to functions: the one place where names become data, models, predictors, objectives, optimizers."""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from hamjepa_jax import build_data, build_views, objectives, optim, sharding
from hamjepa_jax.data.sources import Source
from hamjepa_jax.data.views import ViewGroup
from hamjepa_jax.dynamics import energies, predictors
from hamjepa_jax.dynamics.energies import Energy
from hamjepa_jax.dynamics.integrators import SCHEMES
from hamjepa_jax.dynamics.predictors import Predictor
from hamjepa_jax.errors import UserError, require, require_known
from hamjepa_jax.models.resnet import MODES, STEMS, ResNetEncoder
from hamjepa_jax.state import TrainState, init_state
from hamjepa_jax.stats import floors, slicing
from hamjepa_jax.stats.univariate import WEIGHTS
from hamjepa_jax.step import Objective, Views

ENERGIES = {
    "quadratic": lambda config: energies.quadratic(),
    "pendulum": lambda config: energies.pendulum(),
    "separable_mlp": lambda config: energies.separable_mlp(
        hidden_dim=config.hidden_dim, depth=config.depth, base_coeff=config.base_coeff
    ),
    "coupled_mlp": lambda config: energies.coupled_mlp(hidden_dim=config.hidden_dim, depth=config.depth),
}
PREDICTORS = {
    "hamiltonian_flow": lambda config: predictors.hamiltonian_flow(
        _energy(config), step_size=config.step_size, num_steps=config.num_steps, scheme=config.scheme
    ),
    "mlp": lambda config: predictors.mlp(hidden_dim=config.hidden_dim, depth=config.depth),
    "linear": lambda config: predictors.linear(),
    "identity": lambda config: predictors.identity(),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
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
    "evaluation.probe.epochs": 1,
    "evaluation.probe.batch_size": 1,
    "evaluation.few_label_probe.draws": 1,
    "evaluation.few_label_probe.steps": 1,
}


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
        objective: the loss of the embeddings, see `step.Objective`.
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
    for key, bound in LOWER_BOUNDS.items():
        try:
            value = reduce(ConfigDict.__getitem__, key.split("."), config)
        except KeyError:
            raise UserError(f"config.{key}: missing; configs/digits.py has every field") from None
        require(value is None or value >= bound, key, f"must be at least {bound}, got {value}")
    require(config.train.seed < 2**32, "train.seed", f"must be below 2**32, got {config.train.seed}")
    for key in ("mean", "std"):
        _require_numbers(config.data[key], float, f"data.{key}")
    require(
        config.evaluation.resize >= config.data.view_size,
        "evaluation.resize",
        f"must be at least the {config.data.view_size} of config.data.view_size, got {config.evaluation.resize}",
    )
    groups = build_views.view_groups(config.data)
    train_source, test_source = build_data.sources(config.data)
    batch_size = config.data.batch_size
    require(
        2 <= batch_size <= len(train_source),
        "data.batch_size",
        f"must be between 2 and the {len(train_source)} training images, got {batch_size}",
    )
    steps_per_epoch = len(train_source) // batch_size
    total_steps = config.train.epochs * steps_per_epoch
    optimizer, learning_rate = _optimizer(config, steps_per_epoch, total_steps)
    if config.train.max_steps is not None:
        total_steps = min(total_steps, config.train.max_steps)

    image_shape = (config.data.view_size, config.data.view_size, len(config.data.mean))
    network, flow = _encoder(config.model), sharding.on_each_device(_predictor(config.predictor))
    return Experiment(
        train_source=train_source,
        test_source=test_source,
        encoder=network,
        predictor=flow,
        view_groups=groups,
        views=build_views.make_views(config.data, groups),
        preprocess=build_views.preprocess(config.data),
        objective=_objective(config, network, flow, steps_per_epoch),
        optimizer=optimizer,
        learning_rate=learning_rate,
        initial_state=partial(
            init_state, encoder=network, predictor=flow, optimizer=optimizer, image_shape=image_shape
        ),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def _encoder(config: ConfigDict) -> nn.Module:
    require_known(config.stem, STEMS, "model.stem")
    require_known(config.mode, MODES, "model.mode")
    require_known(config.dtype, DTYPES, "model.dtype")
    for key in ("widths", "depths"):
        _require_numbers(config[key], int, f"model.{key}")
    stages = len(config.widths)
    require(
        len(config.depths) == stages and stages > 0,
        "model.depths",
        f"must have one number of blocks for each of the {stages} widths, got {config.depths}",
    )
    require(
        1 <= config.token_layer <= stages,
        "model.token_layer",
        f"must be a stage between 1 and {stages}, got {config.token_layer}",
    )
    require(
        config.token_d_f % 2 == 0 or not config.split_qp,
        "model.token_d_f",
        f"must be even, because the channels of a token are split into q and p, got {config.token_d_f}; "
        "take an even number or --config.model.split_qp=false",
    )
    settings = config.to_dict() | {"dtype": DTYPES[config.dtype]}
    return ResNetEncoder(**settings | {key: tuple(settings[key]) for key in ("widths", "depths")})


def _energy(config: ConfigDict) -> Energy:
    require_known(config.energy, ENERGIES, "predictor.energy")
    return ENERGIES[config.energy](config)


def _predictor(config: ConfigDict) -> Predictor:
    require_known(config.name, PREDICTORS, "predictor.name")
    require_known(config.scheme, SCHEMES, "predictor.scheme")
    return PREDICTORS[config.name](config)


def _require_numbers(values: object, kind: type, key: str) -> None:
    numbers = isinstance(values, (tuple, list)) and all(isinstance(v, kind) and v > 0 for v in values or [None])
    require(numbers, key, f"must be positive numbers of type {kind.__name__}, such as (2, 3), got {values!r}")


def _optimizer(
    config: ConfigDict, steps_per_epoch: int, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    settings = config.optimizer
    require_known(settings.clip_over, optim.CLIP_OVER, "optimizer.clip_over")
    rate = settings.learning_rate
    require(rate > 0, "optimizer.learning_rate", f"must be positive, got {rate}")
    require(
        settings.warmup_epochs < config.train.epochs,
        "optimizer.warmup_epochs",
        f"must be below the {config.train.epochs} epochs of config.train.epochs, got {settings.warmup_epochs}",
    )
    predictor_learning_rate = settings.predictor_learning_rate
    peaks = {
        "encoder": settings.learning_rate,
        "predictor": settings.learning_rate if predictor_learning_rate is None else predictor_learning_rate,
    }
    schedules = {
        group: optim.warmup_cosine(
            peak=peak,
            end_value=settings.end_factor * settings.learning_rate,
            warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
            total_steps=total_steps,
            warmup_factor=settings.warmup_factor,
        )
        for group, peak in peaks.items()
    }
    optimizer = optim.adamw(
        schedules,
        b1=settings.b1,
        b2=settings.b2,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        clip_over=settings.clip_over,
    )
    return optimizer, schedules["encoder"]


def _objective(config: ConfigDict, network: nn.Module, flow: Predictor, steps_per_epoch: int) -> Objective:
    require_known(config.objective.name, OBJECTIVES, "objective.name")
    sizes = {config.data.view_size}
    if config.data.num_local_views:
        sizes.add(config.data.local_view_size)
    state_dims = {size: _state_dim(network, (size, size, len(config.data.mean))) for size in sorted(sizes)}
    require(
        len(set(state_dims.values())) == 1,
        "model.token_hw",
        "must be given, such as 8, so that views of every size have embeddings of one size; they are of "
        + " and ".join(f"{dim} at {size} pixels" for size, dim in state_dims.items()),
    )
    return OBJECTIVES[config.objective.name](config, flow, state_dims[config.data.view_size], steps_per_epoch)


def _state_dim(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    embeddings, _ = jax.eval_shape(partial(network.init_with_output, train=False), jax.random.key(0), images)
    return embeddings.shape[-1]


def _hamjepa(config: ConfigDict, flow: Predictor, state_dim: int, steps_per_epoch: int) -> Objective:
    settings = config.objective.to_dict()
    require_known(settings["match"], objectives.MATCHES, "objective.match")
    require_known(settings["bidirectional"], objectives.PREDICTIONS, "objective.bidirectional")
    for half in settings["variance_on"]:
        require_known(half, ("q", "p"), "objective.variance_on")
    require(
        config.model.mode == "global" or config.model.split_qp,
        "model.split_qp",
        "must be true, because HamJEPA splits the state into q and p",
    )
    require(state_dim % 2 == 0, "model.out_dim", f"must be even for a state [q ; p], got {state_dim}")
    has_energy = config.predictor.name == "hamiltonian_flow"
    require(
        has_energy or settings["energy_weight"] == 0,
        "objective.energy_weight",
        f"must be 0, because the predictor {config.predictor.name!r} has no energy",
    )
    del settings["name"]
    max_rank, every = settings.pop("projection_rank"), settings.pop("projection_every")
    require(max_rank >= 1, "objective.projection_rank", f"must be at least 1, got {max_rank}")
    require(every >= 1, "objective.projection_every", f"must be at least 1, got {every}")
    logdet_floor = settings.pop("logdet_floor")
    thresholds = {
        f"covariance_floor_{half}": objectives.CovarianceFloor(
            logdet_floor, settings.pop(f"participation_floor_{half}"), settings.pop(f"eigmax_ceiling_{half}")
        )
        for half in ("q", "p")
    }
    loss = partial(
        objectives.hamjepa,
        predictor=flow,
        energy=sharding.on_whole_parameters(_energy(config.predictor)) if has_energy else None,
        **settings,
        **thresholds,
    )
    num_states = (config.data.num_global_views + config.data.num_local_views) * config.data.batch_size
    rank = floors.projection_rank(state_dim // 2, num_states, max_rank)
    scale, ramp_epochs = config.predictor.residual_scale, config.predictor.residual_ramp_epochs

    def objective(predictor_params, z_VxBxD, *, key, step):
        q_key, p_key = jax.random.split(jax.random.fold_in(key, step // every))
        epoch = step // steps_per_epoch + 1
        return loss(
            z_VxBxD,
            predictor_params,
            projection_q=floors.random_projection(q_key, state_dim // 2, rank, jnp.float32),
            projection_p=floors.random_projection(p_key, state_dim // 2, rank, jnp.float32),
            residual_scale=scale * jnp.minimum(1.0, epoch / max(ramp_epochs, 1)),
        )

    return objective


def _lejepa(config: ConfigDict, flow: Predictor, state_dim: int, steps_per_epoch: int) -> Objective:
    del flow, steps_per_epoch
    settings = config.objective.to_dict()
    require_known(settings["form"], objectives.SIGREG_FORMS, "objective.form")
    require_known(settings["weight"], WEIGHTS, "objective.weight")
    num_points = settings["num_points"]
    require(num_points >= 2, "objective.num_points", f"must be at least 2, got {num_points}")
    del settings["name"]
    num_directions = settings.pop("num_directions")
    require(num_directions >= 1, "objective.num_directions", f"must be at least 1, got {num_directions}")
    loss = partial(objectives.lejepa, num_global_views=config.data.num_global_views, **settings)

    def objective(predictor_params, z_VxBxD, *, key, step):
        del predictor_params
        step_key = jax.random.fold_in(key, step)
        return loss(z_VxBxD, slicing.random_directions(step_key, state_dim, num_directions, jnp.float32))

    return objective


OBJECTIVES = {"hamjepa": _hamjepa, "lejepa": _lejepa}
