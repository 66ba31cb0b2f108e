"""The prediction term of an objective: which view is predicted from what, in which direction, and how it is compared.

Predictor, pairing, direction, matching and the stopping of gradients are independent choices. HamJEPA predicts views 0
and 1 from each other by a flow; LeJEPA compares every view with the mean of the global ones, without a predictor.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Energy, Params
from hamjepa_jax.dynamics.predictors import Predictor, split_state

# Number of views and of global views, which come first → (source, target) of every prediction. The number of a state
# beyond the last view is that of the centre, the mean of the global views.
PAIRINGS: dict[str, Callable[[int, int], list[tuple[int, int]]]] = {
    "first_two": lambda views, global_views: [(0, 1)],
    "all": lambda views, global_views: [(i, j) for i in range(global_views) for j in range(i + 1, views)],
    "center": lambda views, global_views: [(i, views) for i in range(views)],
}
# Direction of time in which the source is predicted from the target in turn.
WAYS_BACK = {"none": None, "inverse": -1, "swap": 1}
MATCHES = ("q", "qp", "z")


def matching_error(prediction: jax.Array, target: jax.Array, *, match: str, p_weight: float) -> jax.Array:
    """The distance of a predicted state from its target, mse(q) + p_weight·mse(p) or mse(z).

    Args:
        prediction: states (..., D).
        target: states (..., D).
        match: `q` (positions, and momenta with `p_weight`), `qp` (the whole state) or `z` (the embedding, which need
            not be a state).
        p_weight: weight of the momenta for match `q`.

    Returns:
        A scalar.

    Raises:
        ValueError: for an unknown match.
    """
    chex.assert_equal_shape([prediction, target])
    if match not in MATCHES:
        raise ValueError(f"match: {match!r} is unknown; known: {', '.join(MATCHES)}")
    squared_error = jnp.square(prediction - target)
    if match != "q":
        return jnp.mean(squared_error)
    q_error, p_error = split_state(squared_error)
    return jnp.mean(q_error) + p_weight * jnp.mean(p_error)


def prediction_error(
    z_VxBxD: jax.Array,
    predictor_params: Params,
    *,
    predictor: Predictor,
    energy: Energy | None,
    residual_scale: chex.Numeric,
    pairing: str,
    num_global_views: int,
    bidirectional: str,
    match: str,
    p_weight: float,
    detach_target: bool,
    energy_weight: float,
) -> jax.Array:
    """The mean error of all predictions Φ(z_source) → z_target, and of those back from the target to the source.

    `none`: Φ(z_s) → z_t alone; `inverse`: ½[Φ(z_s) → z_t] + ½[Φ⁻¹(z_t) → z_s]; `swap`: ½[Φ(z_s) → z_t] +
    ½[Φ(z_t) → z_s]; each plus energy_weight·mse(H(Φ(z)), sg H(z)).

    Args:
        z_VxBxD: embeddings of the views, the global ones first.
        predictor_params: parameters of the predictor, and of the energy.
        predictor: the map Φ.
        energy: the energy H, needed where `energy_weight` is not zero.
        residual_scale: factor s of the learned part of the energy.
        pairing: `first_two` (views 0 and 1), `all` (every global view with every view after it) or `center` (every
            view with the mean of the global ones).
        num_global_views: number of global views.
        bidirectional: `none`, `inverse` or `swap`.
        match: see `matching_error`.
        p_weight: see `matching_error`.
        detach_target: whether the gradient stops at the targets.
        energy_weight: weight of the energy consistency.

    Returns:
        A scalar.

    Raises:
        ValueError: for an unknown option, fewer than two views, or an energy weight without an energy.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107; Balestriero & LeCun, "LeJEPA",
        arXiv 2511.08544.
    """
    for name, value, known in (("pairing", pairing, PAIRINGS), ("bidirectional", bidirectional, WAYS_BACK)):
        if value not in known:
            raise ValueError(f"{name}: {value!r} is unknown; known: {', '.join(known)}")
    num_views = z_VxBxD.shape[0]
    if num_views < 2:
        raise ValueError(f"one view is predicted from another: at least 2 views, got {num_views}")
    if energy_weight and energy is None:
        raise ValueError("energy_weight: the predictor has no energy to conserve")

    states = z_VxBxD
    if pairing == "center":
        states = jnp.concatenate([states, jnp.mean(z_VxBxD[:num_global_views], axis=0, keepdims=True)])
    predictions = [(source, target, 1) for source, target in PAIRINGS[pairing](num_views, num_global_views)]
    if (way_back := WAYS_BACK[bidirectional]) is not None:
        predictions += [(target, source, way_back) for source, target, _ in predictions]

    # Every state is sent through the map once for each direction of time, however many targets it has.
    predicted = {}
    for direction in (1, -1):
        sources = sorted({source for source, _, way in predictions if way == direction})
        if sources:
            ahead = predictor.apply(
                predictor_params, states[jnp.array(sources)], direction=direction, residual_scale=residual_scale
            )
            predicted |= {(source, direction): ahead[i] for i, source in enumerate(sources)}

    errors = []
    for source, target, direction in predictions:
        prediction, z, z_target = predicted[source, direction], states[source], states[target]
        if detach_target:
            z_target = jax.lax.stop_gradient(z_target)
        error = matching_error(prediction, z_target, match=match, p_weight=p_weight)
        if energy_weight:
            before = energy.value(predictor_params, *split_state(z), residual_scale=residual_scale)
            after = energy.value(predictor_params, *split_state(prediction), residual_scale=residual_scale)
            error += energy_weight * jnp.mean(jnp.square(after - jax.lax.stop_gradient(before)))
        errors.append(error)
    return sum(errors) / len(errors)
