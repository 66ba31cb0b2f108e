"""Objectives: a prediction term and weighted regularisers of the stacked views z_VxBxD, by composition.

An objective returns (loss, metrics). The loss is a plain mean over global arrays, so that on any number of devices it
and its gradient are those of the whole batch; metrics hold every unweighted term and the statistics behind it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.dynamics.energies import Energy, Params
from hamjepa_jax.dynamics.predictors import Predictor, identity, split_state
from hamjepa_jax.prediction import prediction_error
from hamjepa_jax.stats import floors
from hamjepa_jax.stats.slicing import sigreg

Metrics = dict[str, jax.Array]

FORMS = ("sum", "convex")


class Objective(NamedTuple):
    """What is trained, as pure functions.

    Attributes:
        init: `init(key) -> params`, what the regularisers learn themselves, by name of the term.
        loss: `loss(params, z_VxBxD, *, key, step, taps=None) -> (loss, metrics)`, params those of the training state;
            for `taps` see `weighted_sum`.
        terms: names of the terms whose weights are not zero.
        coordinates: `coordinates(params, z, step) -> {name: x}`, the coordinates in which embeddings (..., D) are to
            be judged after so many steps, the headline first: q, p and qp of a state or the whole vector, and sqrt_h,
            H^{1/2}z, where a regulariser has an H.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[..., tuple[jax.Array, Metrics]]
    terms: tuple[str, ...]
    coordinates: Callable[[Params, jax.Array, jax.Array], dict[str, jax.Array]]


class Term(NamedTuple):
    """A weighted term of a loss.

    Attributes:
        weight: its weight; a term of weight zero is computed without gradient, to be watched.
        loss: `loss(z_VxBxD) -> (loss, statistics)`.
    """

    weight: float
    loss: Callable[[jax.Array], tuple[jax.Array, Metrics]]


@jax.custom_vjp
def _tap(z: jax.Array, slot: jax.Array) -> jax.Array:
    """The identity, through which the squared norm of z's gradient gets out as the gradient of `slot`."""
    del slot
    return z


def _tap_backward(slot: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    return cotangent, jnp.sum(jnp.square(cotangent)).astype(slot.dtype)


_tap.defvjp(lambda z, slot: (z, slot), _tap_backward)


def weighted_sum(
    z_VxBxD: jax.Array, terms: Mapping[str, Term], *, taps: Mapping[str, jax.Array] | None = None
) -> tuple[jax.Array, Metrics]:
    """The loss L = Σ weight·L_term, computed in float32 or wider.

    Args:
        z_VxBxD: embeddings of the views.
        terms: the terms by name.
        taps: a scalar for every term whose weight is not zero, of any value, or None. The gradient of the loss with
            respect to it is the squared norm of the gradient with respect to z that comes from this term, which costs
            no second backward pass.

    Returns:
        The loss, and metrics: every unweighted term by name, and all statistics.
    """
    chex.assert_rank(z_VxBxD, 3)
    z = z_VxBxD.astype(jnp.promote_types(z_VxBxD.dtype, jnp.float32))
    loss, losses, statistics = jnp.zeros((), z.dtype), {}, {}
    for name, term in terms.items():
        x = z if taps is None or term.weight == 0 else _tap(z, taps[name])
        losses[name], found = term.loss(x)
        statistics |= found
        if term.weight != 0:
            loss += term.weight * losses[name]
    return loss, losses | jax.lax.stop_gradient(statistics)


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
    taps: Mapping[str, jax.Array] | None = None,
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
        match: `q` or `qp`, see `prediction.matching_error`.
        p_weight: weight of the momenta for match `q`.
        bidirectional: `inverse`, `swap` or `none`, see `prediction.prediction_error`.
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
        taps: see `weighted_sum`.

    Returns:
        The loss, and metrics: the unweighted terms `prediction`, `budget`, `variance`, `logdet`, `mean`, and the
        statistics that the floors act on.

    Raises:
        ValueError: for an unknown option, an odd state size, or fewer than two views.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    if unknown := set(variance_on) - {"q", "p"}:
        raise ValueError(f"variance_on: {', '.join(sorted(unknown))} is unknown; known: q, p")

    def prediction(z: jax.Array) -> tuple[jax.Array, Metrics]:
        error = prediction_error(
            z,
            predictor_params,
            predictor=predictor,
            energy=energy,
            residual_scale=residual_scale,
            pairing="first_two",
            num_global_views=2,
            bidirectional=bidirectional,
            match=match,
            p_weight=p_weight,
            detach_target=detach_target,
            energy_weight=energy_weight,
        )
        return error, {}

    def variance(z: jax.Array) -> tuple[jax.Array, Metrics]:
        floor = {
            half: floors.variance_floor(x, std_floor=std_floor) for half, x in zip("qp", split_state(z), strict=True)
        }
        statistics = {f"{half}_{name}": value for half in "qp" for name, value in floor[half][1].items()}
        return sum((floor[half][0] for half in variance_on), start=jnp.zeros((), z.dtype)), statistics

    def logdet(z: jax.Array) -> tuple[jax.Array, Metrics]:
        q, p = split_state(z)
        on_q, q_statistics = floors.covariance_floor(q, projection_q, **covariance_floor_q._asdict())
        on_p, p_statistics = floors.covariance_floor(p, projection_p, **covariance_floor_p._asdict())
        statistics = {f"q_{name}": value for name, value in q_statistics.items()}
        return on_q + on_p, statistics | {f"p_{name}": value for name, value in p_statistics.items()}

    terms = {
        "prediction": Term(1.0, prediction),
        "budget": Term(budget_weight, lambda z: floors.energy_budget(z, q_target=q_target, p_target=p_target)),
        "variance": Term(variance_weight, variance),
        "logdet": Term(logdet_weight, logdet),
        "mean": Term(mean_weight, floors.zero_mean),
    }
    return weighted_sum(z_VxBxD, terms, taps=taps)


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
    taps: Mapping[str, jax.Array] | None = None,
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
        taps: see `weighted_sum`.

    Returns:
        The loss, and metrics: the terms `prediction` (with the factor ½ in the form `sum`) and `sigreg`.

    Raises:
        ValueError: for an unknown form.

    References:
        Balestriero & LeCun, "LeJEPA", arXiv 2511.08544.
    """
    chex.assert_rank(directions_DxK, 2)
    if form not in FORMS:
        raise ValueError(f"form: {form!r} is unknown; known: {', '.join(FORMS)}")

    def prediction(z: jax.Array) -> tuple[jax.Array, Metrics]:
        error = prediction_error(
            z,
            {"layers": []},
            predictor=identity(),
            energy=None,
            residual_scale=1.0,
            pairing="center",
            num_global_views=num_global_views,
            bidirectional="none",
            match="z",
            p_weight=1.0,
            detach_target=False,
            energy_weight=0.0,
        )
        return (error if form == "convex" else 0.5 * error), {}

    terms = {
        "prediction": Term(1.0 - sigreg_weight if form == "convex" else 1.0, prediction),
        "sigreg": Term(
            sigreg_weight,
            lambda z: (sigreg(z, directions_DxK, t_max=t_max, num_points=num_points, weight=weight), {}),
        ),
    }
    return weighted_sum(z_VxBxD, terms, taps=taps)
