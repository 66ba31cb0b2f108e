"""From the config's groups `predictor` and `objective` to the predictor, the energy and the composed objective."""

import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hamjepa_jax import sharding
from hamjepa_jax.dynamics import energies, geometry, predictors
from hamjepa_jax.dynamics.energies import Energy
from hamjepa_jax.dynamics.integrators import SCHEMES
from hamjepa_jax.dynamics.predictors import Predictor
from hamjepa_jax.errors import UserError, require, require_known
from hamjepa_jax.objectives import FORMS, Metrics, Objective, Term, weighted_sum
from hamjepa_jax.prediction import MATCHES, PAIRINGS, WAYS_BACK, prediction_error
from hamjepa_jax.regularizers import REGULARIZERS, Context, Regularizer
from hamjepa_jax.stats import floors

ENERGIES = {
    "quadratic": lambda config: energies.quadratic(),
    "pendulum": lambda config: energies.pendulum(),
    "separable_mlp": lambda config: energies.separable_mlp(
        hidden_dim=config.hidden_dim, depth=config.depth, base_coeff=config.base_coeff
    ),
    "coupled_mlp": lambda config: energies.coupled_mlp(hidden_dim=config.hidden_dim, depth=config.depth),
}
LEARNED_ENERGIES = ("separable_mlp", "coupled_mlp")
MASSES = ("unit", "diagonal")
FLOW = "hamiltonian_flow"
# Predictors that have a width, which may be left to be matched.
WITH_WIDTH: dict[str, Callable[[ConfigDict, int], Predictor]] = {
    "mlp": lambda config, width: predictors.mlp(hidden_dim=width, depth=config.depth),
    "residual_mlp": lambda config, width: predictors.residual_mlp(hidden_dim=width, depth=config.depth),
    "rotation": lambda config, width: predictors.rotation(rank=width),
}
WITHOUT_WIDTH: dict[str, Callable[[ConfigDict], Predictor]] = {
    FLOW: lambda config: predictors.hamiltonian_flow(
        energy(config), step_size=config.step_size, num_steps=config.num_steps, scheme=config.scheme
    ),
    "linear": lambda config: predictors.linear(),
    "identity": lambda config: predictors.identity(),
}
COORDINATES = ("q", "p", "qp", "z")
# Steps for which the covariance of what no covariance floor acts on is watched in the same projection.
WATCHED_STEPS = 16


def energy(config: ConfigDict) -> Energy:
    """The energy of a flow.

    Args:
        config: the group `predictor`.

    Returns:
        The energy.

    Raises:
        UserError: naming the config key, if a name is unknown.
    """
    require_known(config.energy, ENERGIES, "predictor.energy")
    require_known(config.mass, MASSES, "predictor.mass")
    plain = ENERGIES[config.energy](config)
    return energies.with_diagonal_mass(plain) if config.mass == "diagonal" else plain


def predictor(config: ConfigDict, state_dim: int) -> Predictor:
    """The predictor; without a width it gets as many parameters as the energy of the flow has.

    Args:
        config: the group `predictor`.
        state_dim: size D of the state.

    Returns:
        The predictor.

    Raises:
        UserError: naming the config key, if a name is unknown or no width matches.
    """
    require_known(config.name, WITH_WIDTH | WITHOUT_WIDTH, "predictor.name")
    require_known(config.scheme, SCHEMES, "predictor.scheme")
    if config.name in WITHOUT_WIDTH:
        return WITHOUT_WIDTH[config.name](config)
    make = partial(WITH_WIDTH[config.name], config)
    if config.width is not None:
        return make(config.width)
    require(state_dim % 2 == 0, "predictor.width", "must be given, because the size of the state is odd")
    try:
        return make(predictors.matched_width(make, state_dim, to=WITHOUT_WIDTH[FLOW](config)))
    except ValueError as error:
        raise UserError(f"config.predictor.width: {error}; give a width") from None


class _Placed(NamedTuple):
    """A regulariser and where it acts.

    Attributes:
        weight: its weight.
        on: the coordinates.
        pooled: whether all views are one group of samples.
        redraw_every: steps between two draws of its random numbers.
        regularizer: the regulariser.
    """

    weight: float
    on: str
    pooled: bool
    redraw_every: int
    regularizer: Regularizer

    def __call__(self, params: Any, z_VxBxD: jax.Array, **settings: Any) -> tuple[jax.Array, Metrics]:
        """The loss, and statistics whose names begin with the coordinates."""
        loss, statistics = self.regularizer.loss(params, _groups(z_VxBxD, self.on, pooled=self.pooled), **settings)
        return loss, {f"{self.on}_{name}": value for name, value in statistics.items()}


def _coordinates(z: jax.Array, on: str) -> jax.Array:
    if on in ("qp", "z"):
        return z
    q, p = predictors.split_state(z)
    return {"q": q, "p": p}[on]


def _groups(z_VxBxD: jax.Array, on: str, *, pooled: bool) -> jax.Array:
    x_VxBxD = _coordinates(z_VxBxD, on)
    if not pooled:
        return x_VxBxD
    # The examples, which devices share, come first: merged behind the views they would be gathered.
    return jnp.moveaxis(x_VxBxD, 1, 0).reshape(1, -1, x_VxBxD.shape[-1])


def objective(
    config: ConfigDict, flow: Predictor, *, state_dim: int, token_grid: tuple[int, int] | None, steps_per_epoch: int
) -> Objective:
    """Composes the prediction term and the regularisers that a config asks for.

    Args:
        config: the whole config.
        flow: the predictor.
        state_dim: size D of the embedding.
        token_grid: rows and columns of its tokens, or None.
        steps_per_epoch: updates in an epoch.

    Returns:
        The objective.

    Raises:
        UserError: naming the config key, if a value is not allowed.
    """
    settings = config.objective
    _check(config, state_dim)
    placed = {name: _place(name, config, state_dim=state_dim, token_grid=token_grid) for name in settings.regularizers}
    prediction = settings.prediction.to_dict()
    prediction_weight = prediction.pop("weight")
    if settings.form == "convex":
        prediction_weight *= 1.0 - sum(term.weight for term in placed.values())
    has_energy = config.predictor.name == FLOW
    hamiltonian = sharding.on_whole_parameters(energy(config.predictor)) if has_energy else None
    predict = partial(
        prediction_error,
        predictor=flow,
        energy=hamiltonian,
        num_global_views=config.data.num_global_views,
        **prediction,
    )
    scale, ramp_epochs = config.predictor.residual_scale, config.predictor.residual_ramp_epochs
    learns = has_energy and config.predictor.energy in LEARNED_ENERGIES

    def epoch_of(step: jax.Array) -> jax.Array:
        return step // steps_per_epoch + 1

    def loss(params, z_VxBxD, *, key, step, taps=None):
        residual_scale = scale * jnp.minimum(1.0, epoch_of(step) / max(ramp_epochs, 1))

        def prediction_term(z):
            return predict(z, params["predictor"], residual_scale=residual_scale), {}

        terms = {"prediction": Term(prediction_weight, prediction_term)}
        for name, term in placed.items():
            own_key = jax.random.fold_in(_key_of(name, key), step // term.redraw_every)
            own_params = params["regularizers"].get(name, {})
            terms[name] = Term(term.weight, partial(term, own_params, key=own_key, epoch=epoch_of(step)))
        value, metrics = weighted_sum(z_VxBxD, terms, taps=taps)

        constant = jax.lax.stop_gradient(z_VxBxD).astype(value.dtype)
        watch_key = jax.random.fold_in(_key_of("watched", key), step // WATCHED_STEPS)
        for on in ("q", "p") if config.model.split_qp else ("z",):
            metrics = _covariance_of(_coordinates(constant, on), on, metrics, watch_key) | metrics
        if learns:
            metrics["residual_force_ratio"] = geometry.residual_force_ratio(
                hamiltonian,
                params["predictor"],
                *predictors.split_state(constant[0]),
                residual_scale=residual_scale,
            )
        return value, metrics

    weights = {"prediction": prediction_weight} | {name: term.weight for name, term in placed.items()}
    return Objective(
        init=partial(_init, placed),
        loss=loss,
        terms=tuple(name for name, weight in weights.items() if weight),
        coordinates=lambda params, z, step: _judged(
            placed, params, z, split_qp=config.model.split_qp, token_grid=token_grid, epoch=epoch_of(step)
        ),
    )


def _init(placed: Mapping[str, _Placed], key: jax.Array) -> dict[str, Any]:
    """What the regularisers learn, of those that do."""
    learned = {name: term.regularizer.init(_key_of(name, key)) for name, term in placed.items()}
    return {name: params for name, params in learned.items() if params}


def _judged(
    placed: Mapping[str, _Placed],
    params: Any,
    z: jax.Array,
    *,
    split_qp: bool,
    token_grid: tuple[int, int] | None,
    epoch: jax.Array,
) -> dict[str, jax.Array]:
    """The coordinates in which an embedding is judged."""
    found = {on: _coordinates(z, on) for on in ("q", "p", "qp")} if split_qp else {"whole": z}
    num_tokens = 1 if token_grid is None else token_grid[0] * token_grid[1]
    if num_tokens > 1:
        tokens_BxSxTxC = z.reshape(len(z), 2 if split_qp else 1, num_tokens, -1)
        found["pooled"] = jnp.mean(tokens_BxSxTxC, axis=2).reshape(len(z), -1)
    for name, term in placed.items():
        if term.regularizer.sqrt_h is not None:
            x = term.regularizer.sqrt_h(params["regularizers"].get(name, {}), _coordinates(z, term.on), epoch)
            found["sqrt_h" if term.on in ("qp", "z") else f"sqrt_h_{term.on}"] = x
    return found


def _covariance_of(x_VxBxD: jax.Array, on: str, known: Metrics, key: jax.Array) -> Metrics:
    """What tells of a collapse, unless a floor computes it anyway."""
    found = {}
    if f"{on}_participation" not in known:
        num_views, batch_size, dim = x_VxBxD.shape
        # Half as many dimensions as samples have a covariance that is well conditioned.
        rank = floors.projection_rank(dim, num_views * batch_size // 2)
        projection = floors.random_projection(key, dim, rank, x_VxBxD.dtype)
        found |= floors.covariance_statistics(x_VxBxD, projection)
    if f"{on}_min_std" not in known:
        found |= floors.variance_floor(x_VxBxD, std_floor=0.0)[1]
    return {f"{on}_{name}": value for name, value in found.items()}


def _key_of(name: str, key: jax.Array) -> jax.Array:
    """A term's own key, which does not depend on the other terms."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def _place(name: str, config: ConfigDict, *, state_dim: int, token_grid: tuple[int, int] | None) -> _Placed:
    key = f"objective.regularizers.{name}"
    require(name != "prediction", key, "is the name of the prediction term; take another")
    settings = config.objective.regularizers[name].to_dict()
    for field in ("name", "weight", "on", "pooled"):
        require(field in settings, f"{key}.{field}", "missing")
    kind, weight, on, pooled = (settings.pop(field) for field in ("name", "weight", "on", "pooled"))
    redraw_every = settings.pop("redraw_every", 1)
    require_known(kind, REGULARIZERS, f"{key}.name")
    require_known(on, COORDINATES, f"{key}.on")
    require(weight >= 0, f"{key}.weight", f"must not be negative, got {weight}")
    require(redraw_every >= 1, f"{key}.redraw_every", f"must be at least 1, got {redraw_every}")
    _require_state(config, on, f"{key}.on")
    dim = state_dim if on in ("qp", "z") else state_dim // 2
    halves = 2 if config.model.split_qp and on in ("qp", "z") else 1
    num_views = config.data.num_global_views + config.data.num_local_views
    try:
        regularizer = REGULARIZERS[kind](Context(dim, halves, token_grid, weight), **settings)
        placed = _Placed(weight, on, pooled, redraw_every, regularizer)
        jax.eval_shape(
            lambda z, key: placed(regularizer.init(key), z, key=key, epoch=1),
            jax.ShapeDtypeStruct((num_views, config.data.batch_size, state_dim), jnp.float32),
            jax.random.key(0),
        )
    except (ValueError, TypeError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"config.{key}{'.' if re.match(r'[a-z_.]+: ', problem) else ': '}{problem}") from None
    return placed


def _require_state(config: ConfigDict, on: str, key: str) -> None:
    require(
        config.model.split_qp or on == "z",
        "model.split_qp",
        f"must be true, because config.{key} is {on!r}: the embedding is then split into q and p",
    )


def _check(config: ConfigDict, state_dim: int) -> None:
    settings, model = config.objective, config.model
    require_known(settings.form, FORMS, "objective.form")
    for field, known in (("pairing", PAIRINGS), ("bidirectional", WAYS_BACK), ("match", MATCHES)):
        require_known(settings.prediction[field], known, f"objective.prediction.{field}")
    _require_state(config, settings.prediction.match, "objective.prediction.match")
    has_energy = config.predictor.name == FLOW
    require(
        model.split_qp or not has_energy,
        "model.split_qp",
        f"must be true, because the predictor {FLOW!r} moves states [q ; p]",
    )
    require(
        state_dim % 2 == 0 or not model.split_qp,
        "model.out_dim",
        f"must be even for a state [q ; p], got {state_dim}",
    )
    require(
        has_energy or settings.prediction.energy_weight == 0,
        "objective.prediction.energy_weight",
        f"must be 0, because the predictor {config.predictor.name!r} has no energy",
    )
    weights = sum(term.weight for term in settings.regularizers.values())
    require(
        settings.form == "sum" or weights <= 1,
        "objective.form",
        f"'convex' needs weights of the regularisers that sum to at most 1, got {weights:g}",
    )
