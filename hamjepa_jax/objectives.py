"""Training objectives: HamJEPA and LeJEPA, each a sum of weighted terms of the stacked views z_VxBxD.

An objective returns (loss, metrics). The loss is a plain mean over global arrays, so that on any number of devices it
and its gradient are those of the whole batch; metrics hold every unweighted term and the statistics behind it.
"""

from collections.abc import Collection
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Energy, Params
from hamjepa_jax.dynamics.predictors import Predictor, split_state
from hamjepa_jax.stats import floors
from hamjepa_jax.stats.slicing import sigreg

Metrics = dict[str, jax.Array]

# Which view is predicted from which, and in which direction of time: (source, target, direction).
PREDICTIONS = {
    "none": ((0, 1, 1),),
    "inverse": ((0, 1, 1), (1, 0, -1)),
    "swap": ((0, 1, 1), (1, 0, 1)),
}
MATCHES = ("q", "qp")
SIGREG_FORMS = ("sum", "convex")


class CovarianceFloor(NamedTuple):
    """Thresholds of `stats.floors.covariance_floor` for one half of the state.

    Attributes:
        logdet_floor: floor of the log-determinant per dimension, in nats.
        participation_floor: floor of the participation ratio per dimension, in [0, 1], or None.
        eigmax_ceiling: ceiling of the largest eigenvalue's share, in [0, 1], or None.
    """

    logdet_floor: float
    participation_floor: float | None
    eigmax_ceiling: float | None


def matching_error(prediction: jax.Array, target: jax.Array, *, match: str, p_weight: float) -> jax.Array:
    """The distance of a predicted state from its target, mse(q) + p_weight·mse(p) or mse(z).

    Args:
        prediction: states (..., 2d).
        target: states (..., 2d).
        match: `q` (positions, and momenta with `p_weight`) or `qp` (the whole state).
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
    if match == "qp":
        return jnp.mean(squared_error)
    q_error, p_error = split_state(squared_error)
    return jnp.mean(q_error) + p_weight * jnp.mean(p_error)


def hamiltonian_prediction(
    z_VxBxD: jax.Array,
    predictor_params: Params,
    *,
    predictor: Predictor,
    energy: Energy | None,
    residual_scale: chex.Numeric,
    match: str,
    p_weight: float,
    bidirectional: str,
    detach_target: bool,
    energy_weight: float,
) -> jax.Array:
    """The prediction term of HamJEPA: views 0 and 1 predicted from each other by the flow Φ.

    `inverse`: ½[Φ(z₀) → z₁] + ½[Φ⁻¹(z₁) → z₀]; `swap`: ½[Φ(z₀) → z₁] + ½[Φ(z₁) → z₀]; `none`: Φ(z₀) → z₁ alone;
    each plus energy_weight·mse(H(Φ(z)), sg H(z)).

    Args:
        z_VxBxD: states of the views, at least two.
        predictor_params: parameters of the predictor, and of the energy.
        predictor: the map Φ.
        energy: the energy H, needed where `energy_weight` is not zero.
        residual_scale: factor s of the learned part of the energy.
        match: see `matching_error`.
        p_weight: see `matching_error`.
        bidirectional: `inverse`, `swap` or `none`.
        detach_target: whether the gradient stops at the targets.
        energy_weight: weight of the energy consistency.

    Returns:
        A scalar.

    Raises:
        ValueError: for an unknown `bidirectional`, fewer than two views, or an energy weight without an energy.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    if bidirectional not in PREDICTIONS:
        raise ValueError(f"bidirectional: {bidirectional!r} is unknown; known: {', '.join(PREDICTIONS)}")
    if z_VxBxD.shape[0] < 2:
        raise ValueError(f"HamJEPA predicts one view from another: at least 2 views, got {z_VxBxD.shape[0]}")
    if energy_weight and energy is None:
        raise ValueError("energy_weight: the predictor has no energy to conserve")
    errors = []
    for source, target, direction in PREDICTIONS[bidirectional]:
        z, z_target = z_VxBxD[source], z_VxBxD[target]
        prediction = predictor.apply(predictor_params, z, direction=direction, residual_scale=residual_scale)
        if detach_target:
            z_target = jax.lax.stop_gradient(z_target)
        error = matching_error(prediction, z_target, match=match, p_weight=p_weight)
        if energy_weight:
            before = energy.value(predictor_params, *split_state(z), residual_scale=residual_scale)
            after = energy.value(predictor_params, *split_state(prediction), residual_scale=residual_scale)
            error += energy_weight * jnp.mean(jnp.square(after - jax.lax.stop_gradient(before)))
        errors.append(error)
    return sum(errors) / len(errors)


def hamjepa(
    z_VxBxD: jax.Array,
    predictor_params: Params,
    *,
    predictor: Predictor,
    energy: Energy | None = None,
    projection_q: jax.Array,
    projection_p: jax.Array,
    residual_scale: chex.Numeric,
    match: str,
    p_weight: float,
    bidirectional: str,
    detach_target: bool,
    energy_weight: float,
    budget_weight: float,
    q_target: float,
    p_target: float,
    variance_weight: float,
    variance_on: Collection[str],
    std_floor: float,
    logdet_weight: float,
    covariance_floor_q: CovarianceFloor,
    covariance_floor_p: CovarianceFloor,
    mean_weight: float,
) -> tuple[jax.Array, Metrics]:
    """The HamJEPA objective: predict along a Hamiltonian flow, and keep scale and spectrum above floors.

    L = L_pred + λ_budget·L_budget + λ_var·L_var + λ_logdet·(L_cov(q) + L_cov(p)) + λ_mean·‖mean z‖²/D.

    Args:
        z_VxBxD: states z = [q ; p] of the views. Views 0 and 1 are predicted from each other; all views enter the
            other terms, pooled to V·B rows.
        predictor_params: parameters of the predictor, and of the energy.
        predictor: the map Φ.
        energy: the energy H, needed where `energy_weight` is not zero.
        projection_q: orthonormal columns (d, k) for L_cov(q), see `stats.floors.random_projection`.
        projection_p: the same for L_cov(p).
        residual_scale: factor s of the learned part of the energy.
        match: `q` or `qp`, see `matching_error`.
        p_weight: weight of the momenta for match `q`.
        bidirectional: `inverse`, `swap` or `none`, see `hamiltonian_prediction`.
        detach_target: whether the gradient stops at the targets.
        energy_weight: weight of the energy consistency.
        budget_weight: λ_budget.
        q_target: target of the mean square of q.
        p_target: target of the mean square of p.
        variance_weight: λ_var.
        variance_on: halves of the state with a variance floor, of `q` and `p`.
        std_floor: that floor.
        logdet_weight: λ_logdet.
        covariance_floor_q: thresholds of L_cov(q).
        covariance_floor_p: thresholds of L_cov(p).
        mean_weight: λ_mean.

    Returns:
        The loss, and metrics: the unweighted terms `prediction`, `budget`, `variance`, `logdet`, `mean`, and the
        statistics that the floors act on.

    Raises:
        ValueError: for an unknown option, an odd state size, or fewer than two views.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    chex.assert_rank(z_VxBxD, 3)
    z = z_VxBxD.astype(jnp.promote_types(z_VxBxD.dtype, jnp.float32))
    q, p = split_state(z)
    halves = {"q": q, "p": p}
    if unknown := set(variance_on) - set(halves):
        raise ValueError(f"variance_on: {', '.join(sorted(unknown))} is unknown; known: q, p")

    terms = {
        "prediction": hamiltonian_prediction(
            z,
            predictor_params,
            predictor=predictor,
            energy=energy,
            residual_scale=residual_scale,
            match=match,
            p_weight=p_weight,
            bidirectional=bidirectional,
            detach_target=detach_target,
            energy_weight=energy_weight,
        )
    }
    terms["budget"], statistics = floors.energy_budget(z, q_target=q_target, p_target=p_target)
    terms["variance"] = jnp.zeros((), z.dtype)
    for half, x in halves.items():
        variance, half_statistics = floors.variance_floor(x, std_floor=std_floor)
        terms["variance"] += variance if half in variance_on else 0.0
        statistics |= {f"{half}_{name}": value for name, value in half_statistics.items()}
    terms["logdet"] = jnp.zeros((), z.dtype)
    thresholds = {"q": covariance_floor_q, "p": covariance_floor_p}
    for half, projection in (("q", projection_q), ("p", projection_p)):
        covariance, half_statistics = floors.covariance_floor(halves[half], projection, **thresholds[half]._asdict())
        terms["logdet"] += covariance
        statistics |= {f"{half}_{name}": value for name, value in half_statistics.items()}
    terms["mean"] = jnp.mean(jnp.square(jnp.mean(z, axis=(0, 1))))

    loss = (
        terms["prediction"]
        + budget_weight * terms["budget"]
        + variance_weight * terms["variance"]
        + logdet_weight * terms["logdet"]
        + mean_weight * terms["mean"]
    )
    return loss, terms | statistics


def lejepa_prediction(z_VxBxD: jax.Array, *, num_global_views: int) -> jax.Array:
    """The prediction term of LeJEPA: the mean squared distance of all views from the mean of the global ones.

    Args:
        z_VxBxD: embeddings of the views, the global ones first.
        num_global_views: number of global views.

    Returns:
        A scalar, without the factor ½ of the form published with HamJEPA.

    References:
        Balestriero & LeCun, "LeJEPA", arXiv 2511.08544.
    """
    center_BxD = jnp.mean(z_VxBxD[:num_global_views], axis=0)
    return jnp.mean(jnp.square(center_BxD - z_VxBxD))


def lejepa(
    z_VxBxD: jax.Array,
    directions_DxK: jax.Array,
    *,
    num_global_views: int,
    sigreg_weight: float,
    form: str = "sum",
    t_max: float = 3.0,
    num_points: int = 17,
    weight: str = "gaussian",
) -> tuple[jax.Array, Metrics]:
    """The LeJEPA objective: views agree, and embeddings are pushed to an isotropic Gaussian by SIGReg.

    `sum`: ½·pred + λ·SIGReg, as published with HamJEPA; `convex`: (1 − λ)·pred + λ·SIGReg, LeJEPA's own.

    Args:
        z_VxBxD: embeddings of the views, the global ones first.
        directions_DxK: unit columns, see `stats.slicing.random_directions`.
        num_global_views: number of global views, whose mean is the target.
        sigreg_weight: λ.
        form: `sum` or `convex`.
        t_max: largest knot of the Epps–Pulley statistic.
        num_points: number of its knots.
        weight: its weight, `gaussian` or `uniform`.

    Returns:
        The loss, and metrics: the terms `prediction` (with the factor ½ in the form `sum`) and `sigreg`.

    Raises:
        ValueError: for an unknown form.

    References:
        Balestriero & LeCun, "LeJEPA", arXiv 2511.08544.
    """
    chex.assert_rank([z_VxBxD, directions_DxK], [3, 2])
    if form not in SIGREG_FORMS:
        raise ValueError(f"form: {form!r} is unknown; known: {', '.join(SIGREG_FORMS)}")
    z = z_VxBxD.astype(jnp.promote_types(z_VxBxD.dtype, jnp.float32))
    prediction = lejepa_prediction(z, num_global_views=num_global_views)
    terms = {
        "prediction": prediction if form == "convex" else 0.5 * prediction,
        "sigreg": sigreg(z, directions_DxK, t_max=t_max, num_points=num_points, weight=weight),
    }
    prediction_weight = 1.0 - sigreg_weight if form == "convex" else 1.0
    return prediction_weight * terms["prediction"] + sigreg_weight * terms["sigreg"], terms
