"""Is what was learned from films a model of the motion: are q and p angle and velocity, and where does the map lead?

The encoder and the predictor are compared with states that training has never seen. What is read from features is read
by smooth maps, cubic splines, which are fitted to the training films.

A flow that follows the motion leaves one thing open: an encoder that is s ahead in time, Φₛ∘encoder, is predicted just
as well. So q is compared with the angle at the time of the image, and at the time that it fits best.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from hamjepa_jax.data import pendulum
from hamjepa_jax.dynamics import geometry
from hamjepa_jax.environment import jit_quickly
from hamjepa_jax.evaluation.diagnostics import Trained, band

NUM_APPLICATIONS, OBSERVED_EVERY = 1000, 10
NUM_STARTS = 256
TIME_SHIFTS = np.linspace(-1.6, 1.6, 33)
SPLINE_DEGREE = 3
# Splines along each axis of one, two, three and four dimensions; with their products there are some hundreds.
NUM_SPLINES = {1: 12, 2: 12, 3: 7, 4: 5}
RIDGE_PENALTY = 1e-4


class Embedded(NamedTuple):
    """Films as the encoder sees them.

    Attributes:
        z: features of the first view, float32 (N, 2d).
        states: angles and angular velocities [θ ; θ̇] at that time, (N, 2d).
    """

    z: np.ndarray
    states: np.ndarray


class SmoothMap:
    """A smooth map that is fitted to pairs: products of cubic B-splines along each axis, by ridge regression."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        """Fits y as a function of x.

        Args:
            x: arguments (N, n), at most four dimensions.
            y: values (N, m).
        """
        from sklearn.linear_model import Ridge
        from sklearn.preprocessing import SplineTransformer

        knots = NUM_SPLINES[x.shape[1]] - SPLINE_DEGREE + 1
        settings = {"degree": SPLINE_DEGREE, "knots": "quantile", "extrapolation": "constant"}
        self._low, self._high = x.min(axis=0), x.max(axis=0)
        self._axes = [SplineTransformer(knots, **settings).fit(x[:, i : i + 1]) for i in range(x.shape[1])]
        self._ridge = Ridge(RIDGE_PENALTY).fit(self._products(x), y)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Values (..., m) at x (..., n); those at the border outside of what it was fitted to, NaN where x is lost."""
        rows = x.reshape(-1, x.shape[-1])
        known = np.isfinite(rows).all(axis=1)
        inside = np.clip(np.where(known[:, None], rows, self._low), self._low, self._high)
        values = self._ridge.predict(self._products(inside)).reshape(len(rows), -1)
        return np.where(known[:, None], values, np.nan).reshape(*x.shape[:-1], -1)

    def _products(self, rows: np.ndarray) -> np.ndarray:
        product = np.ones((len(rows), 1))
        for i, splines in enumerate(self._axes):
            product = (product[:, :, None] * splines.transform(rows[:, i : i + 1])[:, None, :]).reshape(len(rows), -1)
        return product


def explained(found: np.ndarray, true: np.ndarray) -> float:
    """The share of the variance that is explained, R² = 1 − Σ(found − true)²/Σ(true − mean)².

    Args:
        found: values (N, m).
        true: values (N, m).

    Returns:
        R², the mean over the m dimensions; 1 is perfect, 0 as good as the mean.
    """
    residual = np.sum((found - true) ** 2, axis=0)
    return float(np.mean(1.0 - residual / np.sum((true - true.mean(axis=0)) ** 2, axis=0)))


def readings(train: Embedded, test: Embedded) -> dict[str, Any]:
    """What can be read from q and what from p, as R² on test films.

    Args:
        train: what the smooth maps are fitted to.
        test: what they are judged by.

    Returns:
        {"angle_from_q", "velocity_from_p", "angle_from_p", "velocity_from_q", "q_from_angle", "p_from_velocity",
        "time_shift": the s at which angle and velocity at the time t + s are read best, "shifted_angle_from_q",
        "shifted_velocity_from_p"}.
    """

    def read(x: tuple[np.ndarray, np.ndarray], y: tuple[np.ndarray, np.ndarray]) -> float:
        return explained(SmoothMap(x[0], y[0])(x[1]), y[1])

    (q, p), (angle, velocity) = (
        list(zip(*(np.split(getattr(films, name), 2, axis=1) for films in (train, test)), strict=True))
        for name in ("z", "states")
    )
    found = {
        "angle_from_q": read(q, angle),
        "velocity_from_p": read(p, velocity),
        "angle_from_p": read(p, angle),
        "velocity_from_q": read(q, velocity),
        "q_from_angle": read(angle, q),
        "p_from_velocity": read(velocity, p),
    }
    shifted = []
    for shift in TIME_SHIFTS:
        later = [pendulum.swing(films.states.astype(float), np.array([shift]))[0] for films in (train, test)]
        (train_angle, train_velocity), (test_angle, test_velocity) = (np.split(states, 2, axis=1) for states in later)
        shifted.append((read(q, (train_angle, test_angle)), read(p, (train_velocity, test_velocity))))
    best = int(np.argmax(np.sum(shifted, axis=1)))
    return found | {
        "time_shift": float(TIME_SHIFTS[best]),
        "shifted_angle_from_q": shifted[best][0],
        "shifted_velocity_from_p": shifted[best][1],
    }


def roll_out(trained: Trained, z_RxD: np.ndarray) -> np.ndarray:
    """States after 0, 1, …, 1,000 applications of the predictor, computed as it was trained.

    Args:
        trained: the predictor.
        z_RxD: states (R, D).

    Returns:
        States (1001, R, D).
    """
    run = jit_quickly(
        lambda params, z: geometry.rollout(
            lambda z: trained.apply(params, z), z, lambda z: z, num_applications=NUM_APPLICATIONS, every=1
        )
    )
    return np.asarray(jax.device_get(run(trained.params, z_RxD)))


def mean_periods(angles_TxR: np.ndarray, time_step: float) -> np.ndarray:
    """The mean time between two passages of zero from below, each found by linear interpolation.

    Args:
        angles_TxR: angles at equal intervals, of R motions.
        time_step: the interval.

    Returns:
        Mean periods (R,), NaN where there are fewer than two passages.
    """
    periods = []
    for angles in angles_TxR.T:
        before = np.flatnonzero((angles[:-1] < 0.0) & (angles[1:] >= 0.0))
        passages = before + angles[before] / (angles[before] - angles[before + 1])
        periods.append(time_step * (passages[-1] - passages[0]) / (len(passages) - 1) if len(before) > 1 else np.nan)
    return np.array(periods)


def long_runs(trained: Trained, z_TxRxD: np.ndarray, train: Embedded, test: Embedded) -> dict[str, Any]:
    """Where the map leads in 1,000 applications, beside the true motion from the same states.

    Angles and velocities are read from the whole state z, which is fair to a map without positions and momenta.

    Args:
        trained: the predictor.
        z_TxRxD: roll-outs from the first test films, see `roll_out`.
        train: what the smooth map from z is fitted to.
        test: the test films.

    Returns:
        {"time": (T,), of 0, 10, …, 1,000 applications; "angle_error": band of |θ̂ − θ|, rad; "energy_error": band of the
        error of the energy of the state that is read, in standard deviations of the energy; "learned_energy_drift":
        band of |H(zₙ) − H(z₀)| in standard deviations of H, or None; "energy_rank_correlation": of H with the energy,
        or None; "period": {"true", "found"} (R·d,), "period_error": median of |found/true − 1|, None where most motions
        have stopped, "still_swinging": the share that passes zero in the last tenth}. Bands are {"median", "lower",
        "upper"} (T,).
    """
    from scipy.stats import spearmanr

    dim, time = test.z.shape[1] // 2, pendulum.VIEW_GAP * np.arange(len(z_TxRxD))
    starts = test.states[: z_TxRxD.shape[1]].astype(float)
    true_TxRxD = pendulum.swing(starts, time)
    read = SmoothMap(train.z, train.states)
    found_TxRxD = np.stack([read(z_RxD) for z_RxD in z_TxRxD])
    angles, true_angles = (states[..., :dim].reshape(len(time), -1) for states in (found_TxRxD, true_TxRxD))
    energies = pendulum.energies(test.states)
    periods, true_periods = mean_periods(angles, pendulum.VIEW_GAP), mean_periods(true_angles, pendulum.VIEW_GAP)
    last = angles[-(len(time) // 10) :]
    known = np.isfinite(true_periods)
    errors = np.where(np.isfinite(periods), np.abs(periods / true_periods - 1.0), np.inf)[known]
    drift = rank_correlation = None
    if trained.flow is not None:
        learned = np.asarray(trained.energy_of(trained.params, test.z))
        along_TxR = np.asarray(trained.energy_of(trained.params, z_TxRxD))
        drift = band((np.abs(along_TxR - along_TxR[0]) / learned.std())[::OBSERVED_EVERY])
        rank_correlation = float(spearmanr(learned, energies).statistic)
    energy_errors = np.abs(pendulum.energies(found_TxRxD) - pendulum.energies(starts)) / energies.std()
    return {
        "time": time[::OBSERVED_EVERY],
        "angle_error": band(np.abs(angles - true_angles)[::OBSERVED_EVERY]),
        "energy_error": band(energy_errors[::OBSERVED_EVERY]),
        "learned_energy_drift": drift,
        "energy_rank_correlation": rank_correlation,
        "period": {"true": true_periods[known], "found": periods[known]},
        "period_error": float(np.median(errors)),
        "still_swinging": float(np.mean((last.min(axis=0) < 0.0) & (last.max(axis=0) > 0.0))),
    }
