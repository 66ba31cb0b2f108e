"""HamSIGReg's learnable geometry: H is diagonal in the frequencies of the token grid and grows with their radius.

The envelope g is a monotone function of the radius in a fixed number of bins, g₀ = 0 and g_b = span·(w₁ + … + w_b).
The weights w and the span are learned; the span has a bound. δ is the envelope at each frequency, and the eigenvalues
are those of a fixed base spectrum times exp(αδ). What depends on the config alone is computed in numpy at trace time.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hamjepa_jax.stats.spectral import NORMALIZATIONS, scale_frequencies, squared_radius, torus_laplacian

Params = dict[str, jax.Array]

GAUGES = NORMALIZATIONS
# The spectrum ν of the base a + b·ν on an h×w grid.
BASES = {"identity": lambda h, w: np.zeros((h, w)), "r2": squared_radius, "laplacian": torus_laplacian}


def _linear_edges(values: np.ndarray, bins: int) -> np.ndarray:
    return np.linspace(np.min(values), np.max(values), bins + 1)[1:-1]


def _quantile_edges(values: np.ndarray, bins: int) -> np.ndarray:
    return np.quantile(values, np.linspace(0.0, 1.0, bins + 1)[1:-1])


# The power of the radius that is divided into bins, and where their inner edges lie.
BINNINGS = {
    "linear_radius": (1, _linear_edges),
    "linear_radius_sq": (2, _linear_edges),
    "quantile_radius": (1, _quantile_edges),
}

# Radii that lie on an edge belong to the lower bin; many do, and rounding must not decide.
EDGE_TOLERANCE = 1e-12
# How far an initial span stays from its bounds, as a share of the largest: there the sigmoid has no gradient.
SPAN_MARGIN = 1e-4


class EnvelopeConfig(NamedTuple):
    """What is fixed about the envelope; hashable, so that it can be static under `jax.jit`.

    Attributes:
        h: number of rows of tokens.
        w: number of columns of tokens.
        d_f: number of channels; tokens are laid out (h, w, d_f).
        bins: number of bins of the radius, at least 2.
        base: λ₀ times its mean, `identity` (1), `r2` (a + b·r²) or `laplacian` (a + b·(4 sin²πf_y + 4 sin²πf_x)).
        base_ridge: a > 0.
        base_strength: b ≥ 0. Only b/a has an effect.
        init_loglambda_span: initial span of the envelope, in [0, span_max], in units of log λ.
        span_max: its bound, which it approaches and never reaches.
        gauge: whether the eigenvalues have the mean (`trace`) or the geometric mean (`logdet`) 1.
        binning: equal widths in r (`linear_radius`) or r² (`linear_radius_sq`), or r quantiles (`quantile_radius`).
        center_delta: whether δ has its mean subtracted; the gauge undoes that for λ, so only the penalty on δ changes.
        delta_clip: trust region c of the envelope, g ← c·tanh(g/c), or None.
        log_lambda_clip: bound of |log λ|.
        eps_ridge: added to the eigenvalues after the bound, before the gauge is restored.
        curvature_weight: weight of the penalty on the squared second differences of g.
        loglambda_l2_weight: weight of the penalty on the mean of δ².
        cond_max: condition number above which a penalty sets in; 0 for none.
        cond_weight: weight of that penalty; 0 for none.
        cond_detached: whether that penalty is without gradient, as in the published code: a number to watch.
        alpha_init: α at the start of the ramp, in [0, 1], see `ramp`.
        beta_init: β at the start of the ramp, in [0, 1].
    """

    h: int
    w: int
    d_f: int
    bins: int = 16
    base: str = "identity"
    base_ridge: float = 1.0
    base_strength: float = 4.0
    init_loglambda_span: float = 0.0
    span_max: float = 0.1
    gauge: str = "logdet"
    binning: str = "linear_radius"
    center_delta: bool = False
    delta_clip: float | None = None
    log_lambda_clip: float = 3.0
    eps_ridge: float = 0.0
    curvature_weight: float = 1e-3
    loglambda_l2_weight: float = 1e-4
    cond_max: float = 0.0
    cond_weight: float = 0.0
    cond_detached: bool = True
    alpha_init: float = 1.0
    beta_init: float = 1.0


def validate(config: EnvelopeConfig) -> None:
    """Raises a ValueError that names the first field that is unknown or out of range, and what it may be.

    Args:
        config: the config. Every function of this module begins with this.

    Raises:
        ValueError: if anything is wrong with it.
    """
    for name, known in (("base", BASES), ("gauge", GAUGES), ("binning", BINNINGS)):
        if getattr(config, name) not in known:
            raise ValueError(f"{name}: {getattr(config, name)!r} is unknown; known: {', '.join(known)}")
    for name, least in (("h", 1), ("w", 1), ("d_f", 1), ("bins", 2)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}: must be at least {least}, got {getattr(config, name)}")
    for name in ("base_ridge", "span_max", "delta_clip", "log_lambda_clip"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name}: must be positive, got {value}")
    for name in ("base_strength", "eps_ridge", "curvature_weight", "loglambda_l2_weight", "cond_max", "cond_weight"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}: must not be negative, got {getattr(config, name)}")
    for name, most in (("init_loglambda_span", config.span_max), ("alpha_init", 1.0), ("beta_init", 1.0)):
        if not 0 <= getattr(config, name) <= most:
            raise ValueError(f"{name}: must be in [0, {most}], got {getattr(config, name)}")


def init(config: EnvelopeConfig, raw_span: chex.Numeric | None = None) -> Params:
    """An envelope that rises equally in every bin, up to the initial span.

    Args:
        config: the config.
        raw_span: start of span = span_max·sigmoid(raw_span); None takes `init_loglambda_span`, 10⁻⁴·span_max or more
            away from 0 and `span_max`, so that raw_span is finite and can still learn.

    Returns:
        {"raw_shape": (bins − 1,), "raw_span": ()}.

    Raises:
        ValueError: see `validate`.
    """
    validate(config)
    if raw_span is None:
        share = np.clip(config.init_loglambda_span / config.span_max, SPAN_MARGIN, 1.0 - SPAN_MARGIN)
        raw_span = np.log(share / (1.0 - share))
    return {"raw_shape": jnp.zeros(config.bins - 1), "raw_span": jnp.asarray(raw_span, float)}


def ramp(config: EnvelopeConfig, epoch: chex.Numeric, ramp_epochs: float) -> tuple[jax.Array, jax.Array]:
    """The factors α of δ and β of the base spectrum, linear in time from their initial values to 1.

    α(e) = α₀ + (1 − α₀)·min(e/E, 1), and the same for β. Without a ramp, E = 0, they stay at α₀ and β₀.

    Args:
        config: the config, for α₀ = `alpha_init` and β₀ = `beta_init`.
        epoch: epochs e that have passed since the start of the training; fractions count.
        ramp_epochs: length E of the ramp, in epochs.

    Returns:
        (α, β).

    Raises:
        ValueError: for a negative length, and see `validate`.
    """
    validate(config)
    if ramp_epochs < 0:
        raise ValueError(f"ramp_epochs: must not be negative, got {ramp_epochs}")
    progress = jnp.clip(epoch / ramp_epochs, 0.0, 1.0) if ramp_epochs else jnp.zeros(())
    return tuple(start + (1.0 - start) * progress for start in (config.alpha_init, config.beta_init))


def _weights(params: Params) -> jax.Array:
    """The shares w (bins − 1,) of the bins in the span, softplus(raw_shape) normalised."""
    raw_shape = jnp.asarray(params["raw_shape"])
    weights = jax.nn.softplus(raw_shape.astype(jnp.promote_types(raw_shape.dtype, jnp.float32))) + 1e-12
    return weights / jnp.sum(weights)


def _span(params: Params, config: EnvelopeConfig) -> jax.Array:
    raw_span = jnp.asarray(params["raw_span"])
    return config.span_max * jax.nn.sigmoid(raw_span.astype(jnp.promote_types(raw_span.dtype, jnp.float32)))


def log_envelope(params: Params, config: EnvelopeConfig) -> jax.Array:
    """The envelope g in every bin of the radius, g₀ = 0 and g_b = span·(w₁ + … + w_b), within its trust region.

    Args:
        params: what `init` returns.
        config: the config.

    Returns:
        g (bins,), which does not fall, in units of log λ.

    Raises:
        ValueError: see `validate`.
    """
    validate(config)
    chex.assert_shape(params["raw_shape"], (config.bins - 1,))
    g = _span(params, config) * jnp.pad(jnp.cumsum(_weights(params)), (1, 0))
    return g if config.delta_clip is None else config.delta_clip * jnp.tanh(g / config.delta_clip)


def bin_of_frequency(config: EnvelopeConfig) -> np.ndarray:
    """The bin of the radius that each frequency belongs to; one on an edge belongs to the lower bin.

    Args:
        config: the config.

    Returns:
        Indices (h, w) below `bins`, in the order of `fft2`. On a small grid some bins may be empty.

    Raises:
        ValueError: see `validate`.
    """
    validate(config)
    power, edges = BINNINGS[config.binning]
    values = np.sqrt(squared_radius(config.h, config.w)) ** power
    return np.digitize(values - EDGE_TOLERANCE, edges(values, config.bins))


def _delta(params: Params, config: EnvelopeConfig) -> jax.Array:
    """The envelope δ (h, w) at each frequency."""
    delta = log_envelope(params, config)[bin_of_frequency(config)]
    return delta - jnp.mean(delta) if config.center_delta else delta


def _gauged(log_eigenvalues: jax.Array, gauge: str) -> jax.Array:
    """Shifts log λ such that λ has the mean or the geometric mean 1."""
    if gauge == "trace":
        return log_eigenvalues - jax.nn.logsumexp(log_eigenvalues) + np.log(log_eigenvalues.size).item()
    return log_eigenvalues - jnp.mean(log_eigenvalues)


def _log_eigenvalues(params: Params, config: EnvelopeConfig, alpha: chex.Numeric, beta: chex.Numeric) -> jax.Array:
    """The logarithm of λ (h, w) in its gauge, before it is bounded."""
    delta = _delta(params, config)
    base = config.base_ridge + config.base_strength * BASES[config.base](config.h, config.w)
    base = jnp.asarray(base / np.mean(base), delta.dtype)
    alpha, beta = jnp.asarray(alpha, delta.dtype), jnp.asarray(beta, delta.dtype)
    return _gauged(jnp.log((1.0 - beta) + beta * base) + alpha * delta, config.gauge)


def _bounded(log_eigenvalues: jax.Array, config: EnvelopeConfig) -> jax.Array:
    return jnp.clip(log_eigenvalues, -config.log_lambda_clip, config.log_lambda_clip)


def eigenvalues(
    params: Params, config: EnvelopeConfig, alpha: chex.Numeric = 1.0, beta: chex.Numeric = 1.0
) -> jax.Array:
    """The spectrum of H, λ ∝ ((1 − β) + βλ₀)·exp(αδ), gauged, bounded, with its ridge, and gauged again.

    Args:
        params: what `init` returns.
        config: the config.
        alpha: factor α of δ, see `ramp`.
        beta: share β of the base spectrum λ₀, see `ramp`.

    Returns:
        Eigenvalues (h, w) in the order of `fft2`, each of d_f channels; of mean or geometric mean 1.

    Raises:
        ValueError: see `validate`.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    bounded = jnp.exp(_bounded(_log_eigenvalues(params, config, alpha, beta), config))
    return jnp.exp(_gauged(jnp.log(bounded + config.eps_ridge), config.gauge))


def sqrt_h(
    params: Params, config: EnvelopeConfig, z: jax.Array, alpha: chex.Numeric = 1.0, beta: chex.Numeric = 1.0
) -> jax.Array:
    """The geometry, H^{1/2} z with the eigenvalues of `eigenvalues`; self-adjoint.

    Args:
        params: what `init` returns.
        config: the config.
        z: tokens (..., h·w·d_f), laid out (h, w, d_f).
        alpha: see `eigenvalues`.
        beta: see `eigenvalues`.

    Returns:
        An array like z, in float32 or wider.

    Raises:
        ValueError: for a z of another size, and see `validate`.

    """
    return scale_frequencies(z, jnp.sqrt(eigenvalues(params, config, alpha, beta)), config.d_f)


def penalty(params: Params, config: EnvelopeConfig, alpha: chex.Numeric = 1.0, beta: chex.Numeric = 1.0) -> jax.Array:
    """What the envelope is charged for its shape, its size and the condition number of H.

    curvature_weight·Σ_b (g_{b+1} − 2g_b + g_{b−1})² + loglambda_l2_weight·mean δ² + cond_weight·relu(λmax/λmin −
    cond_max)², the last only where `cond_weight` and `cond_max` are positive, of λ before its ridge.

    Args:
        params: what `init` returns.
        config: the config.
        alpha: see `eigenvalues`; acts on the condition number only.
        beta: see `eigenvalues`; acts on the condition number only.

    Returns:
        A scalar.

    Raises:
        ValueError: see `validate`.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    curvature = jnp.sum(jnp.square(jnp.diff(log_envelope(params, config), 2)))
    total = config.curvature_weight * curvature
    total += config.loglambda_l2_weight * jnp.mean(jnp.square(_delta(params, config)))
    if config.cond_weight > 0 and config.cond_max > 0:
        bounded = _bounded(_log_eigenvalues(params, config, alpha, beta), config)
        excess = jax.nn.relu(jnp.exp(jnp.max(bounded) - jnp.min(bounded)) - config.cond_max)
        total += config.cond_weight * jnp.square(jax.lax.stop_gradient(excess) if config.cond_detached else excess)
    return total


def health(
    params: Params, config: EnvelopeConfig, alpha: chex.Numeric = 1.0, beta: chex.Numeric = 1.0
) -> dict[str, jax.Array]:
    """What to watch while the envelope learns.

    Args:
        params: what `init` returns.
        config: the config.
        alpha: see `eigenvalues`.
        beta: see `eigenvalues`.

    Returns:
        Scalars: `condition_number`, `smallest_eigenvalue` and `largest_eigenvalue` of H; `span`, before the trust
        region; `largest_delta`, the largest |δ|; `clipped`, the share of frequencies whose log λ is at its bound; and
        `effective_bins`, exp of the entropy of w: from 1, a step in a single bin, to bins − 1, a straight line.

    Raises:
        ValueError: see `validate`.
    """
    spectrum = eigenvalues(params, config, alpha, beta)
    clipped = jnp.abs(_log_eigenvalues(params, config, alpha, beta)) > config.log_lambda_clip
    smallest, largest = jnp.min(spectrum), jnp.max(spectrum)
    return {
        "condition_number": largest / smallest,
        "smallest_eigenvalue": smallest,
        "largest_eigenvalue": largest,
        "span": _span(params, config),
        "largest_delta": jnp.max(jnp.abs(_delta(params, config))),
        "clipped": jnp.mean(clipped),
        "effective_bins": jnp.exp(jnp.sum(jax.scipy.special.entr(_weights(params)))),
    }
