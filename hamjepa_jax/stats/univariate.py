"""One-dimensional tests of x ~ N(0, 1), one statistic per column, the smaller the better the fit.

All of them take samples (..., N, K) to statistics (..., K), grow like N for samples of another distribution, and are
differentiable. `TESTS` has them by name.
"""

import math
from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hamjepa_jax import environment
from hamjepa_jax.stats.moment_tests import jarque_bera, moments
from hamjepa_jax.stats.rank_tests import anderson_darling, cramer_von_mises, shapiro_francia, wasserstein, watson

WEIGHTS = ("gaussian", "uniform")

Angle = tuple[jax.Array, jax.Array]  # its cosine and its sine

# Samples, of all projections that are worked on at a time. On one CPU a quarter of all, so that what is computed on the
# way needs little memory, but not so few that starting the work takes longer than the work, nor more than the caches
# hold; elsewhere so many that there is work for every device.
LEAST_BLOCK_ON_ONE_CPU, MOST_BLOCK_ON_ONE_CPU, BLOCK = 2**14, 2**16, 2**26


def epps_pulley(x: jax.Array, *, t_max: float = 3.0, num_points: int = 17, weight: str = "gaussian") -> jax.Array:
    """The Epps–Pulley statistic: the weighted distance of the empirical characteristic function from that of N(0, 1).

    N·Σⱼ wⱼ·[(Cⱼ − φⱼ)² + Sⱼ²] with knots tⱼ = j·t_max/(T−1), φⱼ = exp(−tⱼ²/2), Cⱼ and Sⱼ the means over the N
    samples of cos(tⱼx) and sin(tⱼx), and wⱼ the trapezoid weights of ∫₋ₜᵗ, times φⱼ for the weight `gaussian`.

    cos(tⱼx) and sin(tⱼx) follow from cos(t₁x) and sin(t₁x) by the angle addition theorem, and the gradient needs C, S
    and x only, so no array of N·K·T numbers is ever made: K projections are worked on in blocks.

    Args:
        x: samples (..., N, K), N samples of each of K projections; computed in float32 or wider.
        t_max: largest knot, in units of 1/x.
        num_points: number T of knots in [0, t_max], at least 2.
        weight: `gaussian` or `uniform`.

    Returns:
        The statistics (..., K). Under N(0, 1) their mean is Σⱼ wⱼ(1 − φⱼ²) for every N.

    Raises:
        ValueError: for fewer than two knots or an unknown weight.

    References:
        Epps & Pulley, Biometrika 70 (1983); Balestriero & LeCun, "LeJEPA", arXiv 2511.08544.
    """
    if num_points < 2:
        raise ValueError(f"num_points: must be at least 2, got {num_points}")
    if weight not in WEIGHTS:
        raise ValueError(f"weight: {weight!r} is unknown; known weights: {', '.join(WEIGHTS)}")
    chex.assert_axis_dimension_gt(x, -2, 0)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _epps_pulley(x, t_max, num_points, weight)


def knots(t_max: float, num_points: int, weight: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Knots t, quadrature weights w and the characteristic function φ(t) of N(0, 1), each (T,)."""
    t = np.linspace(0.0, t_max, num_points)
    phi = np.exp(-(t**2) / 2.0)
    w = np.full(num_points, 2.0 * t_max / (num_points - 1))
    w[[0, -1]] /= 2.0
    return t, (w * phi if weight == "gaussian" else w), phi


def _in_blocks(function: Callable[..., jax.Array], x: jax.Array, *arrays: jax.Array) -> jax.Array:
    """A function of columns, (..., K) → (..., K), block by block of columns."""
    num_columns = x.shape[-1]
    block = BLOCK
    if environment.on_one_cpu():
        block = min(max(x.size // 4, LEAST_BLOCK_ON_ONE_CPU), MOST_BLOCK_ON_ONE_CPU)
    size = max(1, block * num_columns // x.size)
    if size >= num_columns:
        return function(x, *arrays)
    whole = num_columns // size * size

    def of_block(start: jax.Array) -> jax.Array:
        return function(*(jax.lax.dynamic_slice_in_dim(array, start, size, axis=-1) for array in (x, *arrays)))

    blocks = jnp.moveaxis(jax.lax.map(of_block, jnp.arange(0, whole, size)), 0, -2)
    joined = blocks.reshape(*blocks.shape[:-2], whole)
    if whole == num_columns:
        return joined
    return jnp.concatenate([joined, function(*(array[..., whole:] for array in (x, *arrays)))], axis=-1)


def _characteristic_errors(x: jax.Array, t_max: float, num_points: int) -> jax.Array:
    """Cⱼ − φⱼ and Sⱼ for j = 1 … T−1, (2, T−1, ..., K); both vanish at j = 0."""
    t, _, phi = knots(t_max, num_points, "uniform")
    # The means are taken over the samples of one device inside the loop, and exchanged once after it.
    groups = math.gcd(x.shape[-2], jax.device_count())

    def of_columns(x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-2], groups, -1, x.shape[-1])
        first = jnp.cos(t[1].item() * x), jnp.sin(t[1].item() * x)

        def next_knot(angle: Angle, _) -> tuple[Angle, jax.Array]:
            return _add_angles(angle, first), jnp.stack([jnp.mean(part, axis=-2) for part in angle])

        _, means = jax.lax.scan(next_knot, first, length=num_points - 1)
        cos, sin = jnp.moveaxis(jnp.mean(means, axis=-2), 1, 0)
        return jnp.stack([cos - phi[1:].astype(x.dtype).reshape(-1, *[1] * (cos.ndim - 1)), sin])

    return _in_blocks(of_columns, x)


def _add_angles(a: Angle, b: Angle) -> Angle:
    (cos_a, sin_a), (cos_b, sin_b) = a, b
    return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _epps_pulley(x: jax.Array, t_max: float, num_points: int, weight: str) -> jax.Array:
    return _epps_pulley_forward(x, t_max, num_points, weight)[0]


def _epps_pulley_forward(x, t_max, num_points, weight):
    _, w, _ = knots(t_max, num_points, weight)
    errors = _characteristic_errors(x, t_max, num_points)
    statistic = x.shape[-2] * jnp.tensordot(jnp.asarray(w[1:], x.dtype), jnp.sum(jnp.square(errors), axis=0), axes=1)
    return statistic, (x, errors)


def _epps_pulley_backward(t_max, num_points, weight, residuals, cotangent):
    x, errors = residuals
    t, w, _ = knots(t_max, num_points, weight)
    scales = (2.0 * w * t)[1:].tolist()

    def of_columns(x: jax.Array, errors: jax.Array, cotangent: jax.Array) -> jax.Array:
        first = angle = jnp.cos(t[1].item() * x), jnp.sin(t[1].item() * x)
        gradient = jnp.zeros_like(x)
        for j, scale in enumerate(scales):
            (cos, sin), (cos_error, sin_mean) = angle, scale * errors[:, j, ..., None, :] * cotangent[..., None, :]
            gradient += sin_mean * cos - cos_error * sin
            angle = _add_angles(angle, first)
        return gradient

    return (_in_blocks(of_columns, x, errors, cotangent),)


_epps_pulley.defvjp(_epps_pulley_forward, _epps_pulley_backward)

TESTS: dict[str, Callable[..., jax.Array]] = {
    "epps_pulley": epps_pulley,
    "cramer_von_mises": cramer_von_mises,
    "anderson_darling": anderson_darling,
    "watson": watson,
    "shapiro_francia": shapiro_francia,
    "jarque_bera": jarque_bera,
    "moments": moments,
    "wasserstein": wasserstein,
}
