"""What a trained predictor does to held-out states, in numbers: volume, symplecticity, long roll-outs, errors.

"In float64" means on the CPU, whatever the run computes on, with parameters and states that are widened; "in float32"
means as trained, on the device on which the parameters lie.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from hamjepa_jax.dynamics import geometry
from hamjepa_jax.dynamics.energies import Energy, Params
from hamjepa_jax.dynamics.predictors import Predictor, hamiltonian_flow, split_state
from hamjepa_jax.environment import jit_quickly
from hamjepa_jax.prediction import matching_error

METHOD = (
    "exact: dense Jacobian by forward differentiation, log|det J| by LU factorization in float64; for float32 the "
    "Jacobian itself is computed in float32, as trained"
)
# Schemes that conserve the modified energy of leapfrog.
LEAPFROGS = ("leapfrog", "published_leapfrog")
NUM_APPLICATIONS, OBSERVED_EVERY = 1000, 10
STEP_SIZE_FACTORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
NUMBERS_OF_STEPS = (0, 1, 2, 4, 8, 16)
NEIGHBOURS = (1, 5, 10, 20, 50)


class Flow(NamedTuple):
    """What a Hamiltonian flow is made of.

    Attributes:
        energy: the energy H.
        step_size: step τ.
        num_steps: number of steps K.
        scheme: name of the integrator.
    """

    energy: Energy
    step_size: float
    num_steps: int
    scheme: str


class Trained(NamedTuple):
    """A trained predictor, and what is known of it.

    Attributes:
        predictor: the predictor Φ.
        params: its parameters, float32.
        residual_scale: factor s of the learned part of the energy.
        invertible: whether `direction=-1` is meant to be Φ⁻¹.
        flow: what a Hamiltonian flow is made of, or None for another predictor.
    """

    predictor: Predictor
    params: Params
    residual_scale: float
    invertible: bool
    flow: Flow | None

    def apply(self, params: Params, z: jax.Array, direction: int = 1) -> jax.Array:
        """Φ(z), or Φ⁻¹(z), with the parameters given."""
        return self.predictor.apply(params, z, direction, self.residual_scale)

    def energy_of(self, params: Params, z: jax.Array) -> jax.Array:
        """H(z) of a flow, (...,)."""
        return self.flow.energy.value(params, *split_state(z), residual_scale=self.residual_scale)

    def modified_energy_of(self, params: Params, z: jax.Array) -> jax.Array | None:
        """The energy that the trained leapfrog conserves to order τ⁴, (...,); None where that is not known."""
        if self.flow.energy.potential is None or self.flow.scheme not in LEAPFROGS:
            return None
        settings = {"step_size": self.flow.step_size, "residual_scale": self.residual_scale}
        return geometry.modified_energy(self.flow.energy, params, *split_state(z), **settings)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Double precision on the CPU, within a run that computes in single precision on whatever there is."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


def _widened(tree: Any) -> Any:
    """A copy in float64 on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(tree))


def jacobians(trained: Trained, z_NxD: np.ndarray) -> dict[str, Any]:
    """Volume, symplecticity and stretching of the map near each state, one state at a time.

    Args:
        trained: the predictor.
        z_NxD: states, float32 (N, D).

    Returns:
        {"log_abs_det": {"float64", "float32", "method"}, "symplectic_defect": {"float64", "float32"},
        "singular_values": {"largest", "smallest"}}, N numbers each.
    """

    def jacobian(params: Params, z_D: jax.Array) -> jax.Array:
        return geometry.jacobian(lambda z: trained.apply(params, z), z_D)

    as_trained, widened, defect = map(jit_quickly, (jacobian, jacobian, geometry.defect_of_jacobian))
    params = _widened(trained.params)
    log_abs_dets, defects, singular_values = {}, {}, []
    for z_D in np.asarray(z_NxD):
        rounded_DxD = _widened(as_trained(trained.params, z_D))
        with in_float64(), np.errstate(invalid="ignore"):
            exact_DxD = np.asarray(widened(params, np.float64(z_D)))
            for dtype, jacobian_DxD in (("float64", exact_DxD), ("float32", rounded_DxD)):
                log_abs_dets.setdefault(dtype, []).append(np.linalg.slogdet(jacobian_DxD)[1])
                defects.setdefault(dtype, []).append(float(defect(jacobian_DxD)))
        # LAPACK refuses what is not finite.
        finite = np.isfinite(exact_DxD).all()
        singular_values.append(np.linalg.svd(exact_DxD, compute_uv=False) if finite else [np.nan])
    return {
        "log_abs_det": log_abs_dets | {"method": METHOD},
        "symplectic_defect": defects,
        "singular_values": {
            "largest": [values[0] for values in singular_values],
            "smallest": [values[-1] for values in singular_values],
        },
    }


def round_trips(trained: Trained, z_NxD: np.ndarray) -> dict[str, Any]:
    """How far the predictor is from reversible, and from being undone by its inverse.

    Args:
        trained: the predictor.
        z_NxD: states, float32 (N, D).

    Returns:
        {"reversibility": {"float64", "float32"}, "inverse": the same, or None for a map without an inverse}, N numbers
        each; see `geometry.reversal_error` and `geometry.inverse_error`.
    """

    @jit_quickly
    def errors(params: Params, z: jax.Array) -> dict[str, jax.Array]:
        def ahead(z: jax.Array) -> jax.Array:
            return trained.apply(params, z)

        found = {"reversibility": geometry.reversal_error(ahead, z)}
        if trained.invertible:
            found["inverse"] = geometry.inverse_error(ahead, lambda z: trained.apply(params, z, direction=-1), z)
        return found

    as_trained = jax.device_get(errors(trained.params, z_NxD))
    with in_float64():
        widened = jax.device_get(errors(*_widened((trained.params, z_NxD))))
    both = {name: {"float64": widened[name], "float32": as_trained[name]} for name in widened}
    return {"inverse": None} | both


def rollouts(trained: Trained, z_NxD: np.ndarray) -> dict[str, Any]:
    """What 1,000 applications of the predictor do to energies and norms, in float64.

    Args:
        trained: the predictor.
        z_NxD: states (N, D).

    Returns:
        {"applications": numbers of applications (A,), "energy": band of (Hₙ − H₀)/|H₀|, "modified_energy": the same of
        the modified energy, "norm": band of ‖zₙ‖/‖z₀‖}. A band is {"median", "lower", "upper"}, median and quartiles
        over the states (A,), or None where there is no such energy.
    """

    @jit_quickly
    def run(params: Params, z: jax.Array) -> dict[str, jax.Array]:
        def observe(z: jax.Array) -> dict[str, jax.Array]:
            norm = {"norm": jnp.linalg.norm(z, axis=-1)}
            if trained.flow is None:
                return norm
            energies = {
                "energy": trained.energy_of(params, z),
                "modified_energy": trained.modified_energy_of(params, z),
            }
            return norm | {name: energy for name, energy in energies.items() if energy is not None}

        counts = {"num_applications": NUM_APPLICATIONS, "every": OBSERVED_EVERY}
        observed = geometry.rollout(lambda z: trained.apply(params, z), z, observe, **counts)
        norm = observed.pop("norm")
        return jax.tree.map(geometry.relative_drift, observed) | {"norm": norm / norm[0]}

    with in_float64():
        found = jax.device_get(run(*_widened((trained.params, z_NxD))))
    applications = np.arange(0, NUM_APPLICATIONS + 1, OBSERVED_EVERY)
    bands = {name: band(values) for name, values in found.items()}
    return {"applications": applications, "energy": None, "modified_energy": None} | bands


def band(x_AxN: np.ndarray) -> dict[str, np.ndarray]:
    """Median and quartiles over N states.

    Args:
        x_AxN: values; what is not a number counts as infinite.

    Returns:
        {"median", "lower", "upper"}, each (A,).
    """
    # What has overflowed is infinite from then on; an interpolated quantile would not be a number beside it.
    x_AxN = np.where(np.isnan(x_AxN), np.inf, x_AxN)
    lower, median, upper = np.quantile(x_AxN, (0.25, 0.5, 0.75), axis=1, method="nearest")
    return {"median": median, "lower": lower, "upper": upper}


def residual_force_ratio(trained: Trained, z_NxD: jax.Array) -> jax.Array | None:
    """How much the learned part of the energy has to say, see `geometry.residual_force_ratio`.

    Args:
        trained: the predictor.
        z_NxD: states (N, D).

    Returns:
        The ratio, or None for a predictor without an energy.
    """
    if trained.flow is None:
        return None
    ratio = partial(geometry.residual_force_ratio, trained.flow.energy, residual_scale=trained.residual_scale)
    return jax.device_get(jit_quickly(ratio)(trained.params, *split_state(z_NxD)))


def prediction_errors(
    trained: Trained, z0_NxD: jax.Array, z1_NxD: jax.Array, *, match: str, p_weight: float
) -> dict[str, jax.Array]:
    """The error with which one view's state is predicted from the other's, beside those of no prediction at all.

    Args:
        trained: the predictor.
        z0_NxD: states of one view of each image (N, D).
        z1_NxD: states of another view (N, D).
        match: what is compared, see `prediction.matching_error`.
        p_weight: weight of the momenta for match `q`.

    Returns:
        {"error": of Φ(z0), "identity": of z0, "mean": of the mean of z1}, mean squared errors per coordinate.
    """

    @jit_quickly
    def errors(params: Params, z0: jax.Array, z1: jax.Array) -> dict[str, jax.Array]:
        mean = jnp.broadcast_to(jnp.mean(z1, axis=0), z1.shape)
        predictions = {"error": trained.apply(params, z0), "identity": z0, "mean": mean}
        return {name: matching_error(z, z1, match=match, p_weight=p_weight) for name, z in predictions.items()}

    return jax.device_get(errors(trained.params, z0_NxD, z1_NxD))


def sensitivity(
    trained: Trained, z0_NxD: jax.Array, z1_NxD: jax.Array, *, match: str, p_weight: float
) -> dict[str, Any] | None:
    """The prediction error against step size and number of steps, without training again.

    Args:
        trained: the predictor.
        z0_NxD: states of one view of each image (N, D).
        z1_NxD: states of another view (N, D).
        match: see `prediction_errors`.
        p_weight: see `prediction_errors`.

    Returns:
        {"step_size": (T,), "num_steps": (K,), "error": (K, T), "trained": {"step_size", "num_steps"}}, or None for a
        predictor that is no flow.
    """
    flow = trained.flow
    if flow is None:
        return None
    step_sizes = np.array(STEP_SIZE_FACTORS, np.float32) * np.float32(flow.step_size)
    numbers = sorted({*NUMBERS_OF_STEPS, flow.num_steps})

    @jit_quickly
    def errors(params: Params, z0: jax.Array, z1: jax.Array) -> list[jax.Array]:
        def error(step_size: jax.Array, num_steps: int) -> jax.Array:
            predictor = hamiltonian_flow(flow.energy, step_size=step_size, num_steps=num_steps, scheme=flow.scheme)
            z = predictor.apply(params, z0, residual_scale=trained.residual_scale)
            return matching_error(z, z1, match=match, p_weight=p_weight)

        return [jax.vmap(lambda step_size, k=k: error(step_size, k))(step_sizes) for k in numbers]

    return {
        "step_size": [factor * flow.step_size for factor in STEP_SIZE_FACTORS],
        "num_steps": numbers,
        "error": np.array(jax.device_get(errors(trained.params, z0_NxD, z1_NxD))),
        "trained": {"step_size": flow.step_size, "num_steps": flow.num_steps},
    }


def neighbourhood(x_NxD: jax.Array, y_NxD: jax.Array, *, ks: Sequence[int] = NEIGHBOURS) -> dict[str, Any]:
    """The share of every state's nearest states that are still its nearest after a map.

    Args:
        x_NxD: states before (N, D).
        y_NxD: the same states after (N, D).
        ks: numbers k of neighbours by cosine; those that are not fewer than the states are left out.

    Returns:
        {"k": (K,), "overlap": mean shares (K,), "chance": those of a map to random places, k/(N − 1)}.
    """
    count = len(x_NxD)
    ks = [k for k in ks if k < count]
    if not ks:
        return {"k": [], "overlap": [], "chance": []}
    nearest_x, nearest_y = (np.asarray(_nearest_others(z, k=max(ks))) for z in (x_NxD, y_NxD))
    same = nearest_x[:, :, None] == nearest_y[:, None, :]
    overlap = [same[:, :k, :k].sum() / (count * k) for k in ks]
    return {"k": ks, "overlap": overlap, "chance": [k / (count - 1) for k in ks]}


@partial(jit_quickly, static_argnames="k")
def _nearest_others(z_NxD: jax.Array, k: int) -> jax.Array:
    """Numbers of the k other states with the largest cosine (N, k)."""
    unit = z_NxD / jnp.maximum(jnp.linalg.norm(z_NxD, axis=1, keepdims=True), 1e-12)
    cosines = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(jnp.where(jnp.eye(len(z_NxD), dtype=bool), -jnp.inf, cosines), k)[1]


def diagnostics(
    trained: Trained,
    z0_NxD: jax.Array,
    z1_NxD: jax.Array,
    *,
    match: str,
    p_weight: float,
    num_jacobians: int,
    num_rollouts: int,
) -> dict[str, Any]:
    """All numbers about a trained predictor.

    Args:
        trained: the predictor.
        z0_NxD: states of one view of each held-out image, float32 (N, D), on the device of the parameters.
        z1_NxD: states of another view (N, D).
        match: what is compared, see `prediction.matching_error`.
        p_weight: weight of the momenta for match `q`.
        num_jacobians: of how many states there are Jacobians, D×D each; at most N are taken.
        num_rollouts: how many states are sent there and back, and through a thousand applications; at most N.

    Returns:
        What the functions above return, with "residual_force_ratio", "prediction", "sensitivity", "neighbourhood".
    """
    matching = {"match": match, "p_weight": p_weight}
    # The threads of LAPACK would spin against XLA's own.
    with threadpool_limits(1, user_api="blas"):
        moved = jit_quickly(trained.apply)(trained.params, z0_NxD)
        return {
            **jacobians(trained, z0_NxD[:num_jacobians]),
            **round_trips(trained, z0_NxD[:num_rollouts]),
            "rollout": rollouts(trained, z0_NxD[:num_rollouts]),
            "residual_force_ratio": residual_force_ratio(trained, z0_NxD),
            "prediction": prediction_errors(trained, z0_NxD, z1_NxD, **matching),
            "sensitivity": sensitivity(trained, z0_NxD, z1_NxD, **matching),
            "neighbourhood": neighbourhood(z0_NxD, moved),
        }
