"""Regularisers by name: what keeps embeddings from collapsing, and where each may act.

To add one, write a function of the samples x (N, D), such as those of `stats.floors`,

    def norm_ceiling(x_NxD, *, ceiling): ...  # returns (loss, statistics)

and give it a line in `REGULARIZERS`; docs/extending.md shows it. Its keyword-only arguments are the fields that a
config sets. A function that draws random numbers has a keyword `key` besides, which is a new one in every step.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Params
from hamjepa_jax.stats import envelope, floors, multivariate, redundancy, spectral
from hamjepa_jax.stats.slicing import random_directions, sliced
from hamjepa_jax.stats.univariate import TESTS

Statistics = dict[str, jax.Array]


class Context(NamedTuple):
    """Where a regulariser acts.

    Attributes:
        dim: size of the coordinates it sees.
        halves: 2 if these are a whole state [q ; p], else 1.
        token_grid: rows and columns of the tokens that they consist of, or None.
        weight: weight of its loss.
    """

    dim: int
    halves: int
    token_grid: tuple[int, int] | None
    weight: float


class Regularizer(NamedTuple):
    """A regulariser as pure functions.

    Attributes:
        init: `init(key) -> params`, what it learns itself.
        loss: `loss(params, x_GxNxD, *, key, epoch) -> (loss, statistics)`: the mean over G groups of N samples, which
            are the views, or all samples as one group; `epoch` counts from 1.
        sqrt_h: `sqrt_h(params, x, epoch) -> H^{1/2}x`, the coordinates in which it asks for isotropy, or None.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[..., tuple[jax.Array, Statistics]]
    sqrt_h: Callable[[Params, jax.Array, jax.Array], jax.Array] | None = None


Make = Callable[..., Regularizer]


def _no_parameters(key: jax.Array) -> Params:
    del key
    return {}


def of_samples(function: Callable[..., tuple[jax.Array, Statistics]]) -> Make:
    """A regulariser of one group of samples after the other.

    Args:
        function: `function(x_NxD, **settings) -> (loss, statistics)`, with a keyword `key` if it draws.

    Returns:
        `make(context, **settings) -> Regularizer`.
    """
    draws = "key" in inspect.signature(function).parameters

    def make(context: Context, **settings: Any) -> Regularizer:
        del context
        _check_settings(function, settings)

        def loss(params: Params, x_GxNxD: jax.Array, *, key: jax.Array, epoch: jax.Array) -> Any:
            del params, epoch
            of_group = partial(function, **settings, **({"key": key} if draws else {}))
            if x_GxNxD.shape[0] == 1:
                return of_group(x_GxNxD[0])
            return jax.tree.map(lambda found: jnp.mean(found, axis=0), jax.vmap(of_group)(x_GxNxD))

        return Regularizer(_no_parameters, loss)

    return make


def of_views(function: Callable[..., tuple[jax.Array, Statistics]]) -> Make:
    """A regulariser that compares the views with each other.

    Args:
        function: `function(views_VxNxD, **settings) -> (loss, statistics)`.

    Returns:
        `make(context, **settings) -> Regularizer`.
    """

    def make(context: Context, **settings: Any) -> Regularizer:
        del context
        _check_settings(function, settings)

        def loss(params: Params, x_GxNxD: jax.Array, *, key: jax.Array, epoch: jax.Array) -> Any:
            del params, key, epoch
            if x_GxNxD.shape[0] == 1:
                raise ValueError("pooled: must be false, because the views are compared with each other")
            return function(x_GxNxD, **settings)

        return Regularizer(_no_parameters, loss)

    return make


def _check_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    known = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "key"]
    names = ", ".join(p.name for p in known) or "none"
    for name in settings:
        if name not in {p.name for p in known}:
            raise ValueError(f"{name}: unknown setting; known: {names}")
    for parameter in known:
        if parameter.default is inspect.Parameter.empty and parameter.name not in settings:
            raise ValueError(f"{parameter.name}: missing; the settings are: {names}")


def _named(registry: Mapping[str, Any], settings: Mapping[str, Any], field: str) -> tuple[Any, dict[str, Any]]:
    """What {"name": …, **settings} names in a registry, and the settings."""
    settings = dict(settings)
    name = settings.pop("name", None)
    if name not in registry:
        raise ValueError(f"{field}.name: {name!r} is unknown; known: {', '.join(sorted(registry))}")
    return registry[name], settings


class Geometry(NamedTuple):
    """The quadratic form H in whose coordinates y = H^{1/2}x a sliced test is made.

    Attributes:
        init: `init(key) -> params`.
        sqrt_h: `sqrt_h(params, x, epoch) -> H^{1/2}x`.
        penalty: `penalty(params, epoch) -> scalar`, what the geometry pays for being what it is.
        health: `health(params, epoch) -> statistics`.
        sign: 1 if the geometry lowers the statistic, −1 if it raises it.
    """

    init: Callable[[jax.Array], Params]
    sqrt_h: Callable[[Params, jax.Array, jax.Array], jax.Array]
    penalty: Callable[[Params, jax.Array], jax.Array] = lambda params, epoch: 0.0
    health: Callable[[Params, jax.Array], Statistics] = lambda params, epoch: {}
    sign: float = 1.0


def _on_halves(function: Callable[[jax.Array], jax.Array], context: Context, x: jax.Array) -> jax.Array:
    """Applies a map to positions and momenta, each a grid of tokens of its own."""
    halves = x.reshape(*x.shape[:-1], context.halves, context.dim // context.halves)
    return function(halves).reshape(x.shape)


def _grid_of(context: Context) -> dict[str, int]:
    if context.token_grid is None:
        raise ValueError("geometry.name: needs a grid of tokens; take --config.model.mode=tokens")
    height, width = context.token_grid
    return {"h": height, "w": width, "d_f": context.dim // (context.halves * height * width)}


def _fixed(make_sqrt_h: Callable[..., Callable[[jax.Array], jax.Array]]) -> Callable[..., Geometry]:
    """A geometry that does not learn; `make_sqrt_h(context, **settings)` returns z → H^{1/2}z."""

    def make(context: Context, **settings: Any) -> Geometry:
        _check_settings(make_sqrt_h, settings)
        function = make_sqrt_h(context, **settings)
        return Geometry(_no_parameters, lambda params, x, epoch: _on_halves(function, context, x))

    return make


def _learnable(context: Context, *, game: str, ramp_epochs: float, **settings: Any) -> Geometry:
    """The radial envelope of `stats.envelope`, which plays `min` or `max` against the statistic."""
    if game not in GAMES:
        raise ValueError(f"game: {game!r} is unknown; known: {', '.join(GAMES)}")
    unknown = settings.keys() - set(envelope.EnvelopeConfig._fields)
    if unknown:
        raise ValueError(f"{min(unknown)}: unknown setting; known: game, ramp_epochs, {', '.join(ENVELOPE_SETTINGS)}")
    config = envelope.EnvelopeConfig(**_grid_of(context), **settings)
    envelope.validate(config)

    def ramped(epoch: jax.Array) -> dict[str, jax.Array]:
        alpha, beta = envelope.ramp(config, epoch - 1, ramp_epochs)
        return {"alpha": alpha, "beta": beta}

    return Geometry(
        init=lambda key: envelope.init(config),
        sqrt_h=lambda params, x, epoch: _on_halves(
            lambda half: envelope.sqrt_h(params, config, half, **ramped(epoch)), context, x
        ),
        penalty=lambda params, epoch: envelope.penalty(params, config, **ramped(epoch)),
        health=lambda params, epoch: envelope.health(params, config, **ramped(epoch)),
        sign=GAMES[game],
    )


GAMES = {"min": 1.0, "max": -1.0}
ENVELOPE_SETTINGS = tuple(field for field in envelope.EnvelopeConfig._fields if field not in ("h", "w", "d_f"))
GEOMETRIES: dict[str, Callable[..., Geometry]] = {
    "identity": _fixed(lambda context: spectral.identity()),
    "diag": _fixed(lambda context: spectral.diag(context.dim // context.halves)),
    "chain": _fixed(
        lambda context, *, kappa, eps, beta, normalize: spectral.chain(
            context.dim // context.halves, kappa=kappa, eps=eps, beta=beta, normalize=normalize
        )
    ),
    "grid": _fixed(
        lambda context, *, kappa, eps, beta, normalize: spectral.grid(
            **_grid_of(context), kappa=kappa, eps=eps, beta=beta, normalize=normalize
        )
    ),
    "learnable": _learnable,
}


def _with_gradient_times(factor: float, params: Params) -> Params:
    """The parameters themselves, whose gradient is multiplied by a factor."""

    def scaled(leaf: jax.Array) -> jax.Array:
        constant = jax.lax.stop_gradient(leaf)
        return constant + factor * (leaf - constant)

    return jax.tree.map(scaled, params)


def sliced_test(
    context: Context, *, test: Mapping[str, Any], num_directions: int, geometry: Mapping[str, Any]
) -> Regularizer:
    """SIGReg and its relatives: a one-dimensional test of H^{1/2}x along random directions, mean T(⟨H^{1/2}x, a⟩).

    H^{1/2} is symmetric, so that it is applied to the few directions and not to the samples. A learnable H has a loss
    of its own, ±statistic + penalty, whatever the weight of the regulariser is; its gradient is that of this loss.

    Args:
        context: where it acts.
        test: {"name": a test of `stats.univariate.TESTS`, and its settings}.
        num_directions: number K of directions, drawn anew in every step.
        geometry: {"name": a geometry of `GEOMETRIES`, and its settings}.

    Returns:
        The regulariser.

    Raises:
        ValueError: for an unknown name or setting, or a value that is not allowed.

    References:
        Balestriero & LeCun, "LeJEPA", arXiv 2511.08544; Jenkinson Alvarez, "Beyond Isotropy in JEPAs",
        arXiv 2605.20107.
    """
    function, test_settings = _named(TESTS, test, "test")
    make_geometry, geometry_settings = _named(GEOMETRIES, geometry, "geometry")
    if num_directions < 1:
        raise ValueError(f"num_directions: must be at least 1, got {num_directions}")
    try:
        _check_settings(function, test_settings)
        statistic = partial(function, **test_settings)
        jax.eval_shape(statistic, jax.ShapeDtypeStruct((4, 1), jnp.float32))
    except ValueError as error:
        raise ValueError(f"test.{error}") from None
    try:
        shape = make_geometry(context, **geometry_settings)
    except ValueError as error:
        raise ValueError(f"geometry.{error}".replace("geometry.geometry.", "geometry.")) from None
    learns = bool(jax.eval_shape(shape.init, jax.random.key(0)))
    if learns and context.weight <= 0:
        raise ValueError(f"weight: must be positive for a geometry that learns, got {context.weight}")

    def loss(params: Params, x_GxNxD: jax.Array, *, key: jax.Array, epoch: jax.Array) -> Any:
        directions = random_directions(key, context.dim, num_directions, x_GxNxD.dtype)
        playing = _with_gradient_times(shape.sign / context.weight, params) if learns else params
        shaped = shape.sqrt_h(playing, directions.T, epoch).T
        value = sliced(x_GxNxD, shaped, statistic)
        if learns:
            penalty = shape.penalty(params, epoch) / context.weight
            value += penalty - jax.lax.stop_gradient(penalty)
        return value, shape.health(params, epoch)

    return Regularizer(shape.init, loss, None if geometry["name"] == "identity" else shape.sqrt_h)


def _covariance_floor(
    x_NxD: jax.Array,
    *,
    key: jax.Array,
    max_rank: int,
    logdet_floor: float,
    participation_floor: float | None,
    eigmax_ceiling: float | None,
) -> tuple[jax.Array, Statistics]:
    """The covariance floor in a random projection."""
    if max_rank < 1:
        raise ValueError(f"max_rank: must be at least 1, got {max_rank}")
    num_rows, dim = x_NxD.shape
    rank = floors.projection_rank(dim, num_rows, max_rank)
    return floors.covariance_floor(
        x_NxD,
        floors.random_projection(key, dim, rank, x_NxD.dtype),
        logdet_floor=logdet_floor,
        participation_floor=participation_floor,
        eigmax_ceiling=eigmax_ceiling,
    )


REGULARIZERS: dict[str, Make] = {
    "mean_square": of_samples(floors.mean_square),
    "variance_floor": of_samples(floors.variance_floor),
    "covariance_floor": of_samples(_covariance_floor),
    "zero_mean": of_samples(floors.zero_mean),
    "sliced_test": sliced_test,
    "bhep": of_samples(lambda x_NxD, *, bandwidth: (multivariate.bhep(x_NxD, bandwidth=bandwidth), {})),
    "vicreg": of_samples(redundancy.vicreg),
    "barlow_twins": of_views(redundancy.barlow_twins),
}
