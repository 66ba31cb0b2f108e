import math
from fractions import Fraction
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from hamjepa_jax.stats import envelope, spectral
from hamjepa_jax.stats.envelope import EnvelopeConfig
from hamjepa_jax.stats.slicing import random_directions, sigreg

# A row of four tokens: radii 0, ¼, ½, ¼. With two bins the edge is ¼, and δ = (0, 0, g₁, 0).
ROW = EnvelopeConfig(h=1, w=4, d_f=1, bins=2, curvature_weight=0.0, loglambda_l2_weight=0.0)
# A rectangle, small bins, everything on: every step of the definition acts.
BUSY = EnvelopeConfig(
    h=4,
    w=5,
    d_f=2,
    bins=5,
    base="laplacian",
    base_ridge=0.5,
    base_strength=2.0,
    span_max=3.0,
    log_lambda_clip=0.6,
    eps_ridge=0.2,
    delta_clip=2.5,
)


def params_of(weights, span, span_max):
    """Parameters with these weights, up to a factor, and this span."""
    share = span / span_max
    return {"raw_shape": jnp.log(jnp.expm1(jnp.asarray(weights))), "raw_span": jnp.log(share / (1 - share))}


def random_params(config, seed=0, dtype=float):
    rng = np.random.default_rng(seed)
    return {"raw_shape": jnp.asarray(rng.normal(size=config.bins - 1), dtype), "raw_span": jnp.asarray(0.4, dtype)}


def mean_of(gauge):
    return np.mean if gauge == "trace" else lambda x: np.exp(np.mean(np.log(x)))


def written_out(params, config, alpha, beta):
    """The eigenvalues by the definition, and before they are bounded their logarithms."""
    w = np.log1p(np.exp(np.asarray(params["raw_shape"])))
    span = config.span_max / (1 + np.exp(-params["raw_span"]))
    g = np.array([span * np.sum(w[:b]) / np.sum(w) for b in range(config.bins)])
    delta = (config.delta_clip * np.tanh(g / config.delta_clip))[envelope.bin_of_frequency(config)]
    nu = {"identity": lambda h, w: 0, "r2": spectral.squared_radius, "laplacian": spectral.torus_laplacian}
    base = config.base_ridge + config.base_strength * nu[config.base](config.h, config.w)
    mean = mean_of(config.gauge)
    eigenvalues = ((1 - beta) + beta * base / np.mean(base)) * np.exp(alpha * delta)
    eigenvalues = eigenvalues / mean(eigenvalues)
    bounded = np.exp(np.clip(np.log(eigenvalues), -config.log_lambda_clip, config.log_lambda_clip))
    return (bounded + config.eps_ridge) / mean(bounded + config.eps_ridge), np.log(eigenvalues)


@pytest.mark.parametrize("gauge", envelope.GAUGES)
@pytest.mark.parametrize("base", list(envelope.BASES))
def test_eigenvalues_are_those_of_the_definition_with_every_step_at_work(float64, base, gauge):
    config = BUSY._replace(base=base, gauge=gauge)
    params = random_params(config)
    expected, before = written_out(params, config, 0.8, 0.7)
    assert np.any(before > config.log_lambda_clip) or np.any(before < -config.log_lambda_clip)
    np.testing.assert_allclose(envelope.eigenvalues(params, config, 0.8, 0.7), expected, rtol=1e-12)
    assert mean_of(gauge)(expected) == pytest.approx(1)
    health = envelope.health(params, config, 0.8, 0.7)
    assert health["clipped"] == pytest.approx(np.mean(np.abs(before) > config.log_lambda_clip))
    assert health["condition_number"] == pytest.approx(np.max(expected) / np.min(expected))


def test_the_map_is_the_positive_square_root_of_the_matrix_with_these_eigenvalues(float64):
    params = random_params(BUSY)
    eigenvalues = np.asarray(envelope.eigenvalues(params, BUSY))
    waves = [np.exp(-2j * np.pi * np.outer(range(n), range(n)) / n) / np.sqrt(n) for n in (BUSY.h, BUSY.w)]
    transform = np.kron(np.kron(*waves), np.eye(BUSY.d_f))
    h = transform.conj().T @ np.diag(np.repeat(eigenvalues.ravel(), BUSY.d_f)) @ transform
    np.testing.assert_allclose(h.imag, 0, atol=1e-14)
    root = partial(envelope.sqrt_h, params, BUSY)
    root_matrix = np.asarray(root(jnp.eye(len(h)))).T
    np.testing.assert_allclose(root_matrix @ root_matrix, h.real, atol=1e-13)
    np.testing.assert_allclose(root_matrix, root_matrix.T, atol=1e-14)
    assert np.min(np.linalg.eigvalsh(root_matrix)) > 0

    z = jax.random.normal(jax.random.key(0), (2, 20, len(h)))
    np.testing.assert_allclose(root(z), z @ root_matrix, atol=1e-13)
    directions = random_directions(jax.random.key(1), len(h), 6)
    np.testing.assert_allclose(sigreg(root(z), directions), sigreg(z, root(directions.T).T), rtol=1e-12)


@pytest.mark.parametrize("gauge", envelope.GAUGES)
def test_without_an_envelope_the_laplacian_base_is_the_fixed_geometry_of_the_grid(float64, gauge):
    config = EnvelopeConfig(4, 3, 2, base="laplacian", base_ridge=0.3, base_strength=0.8, gauge=gauge)
    z = jax.random.normal(jax.random.key(0), (5, 24))
    expected = spectral.grid(4, 3, 2, kappa=0.8, eps=0.3, normalize=gauge)(z)
    np.testing.assert_allclose(envelope.sqrt_h(random_params(config), config, z, alpha=0.0), expected, atol=1e-12)
    # β = 0 leaves the base out; only the ratio of its two numbers counts.
    np.testing.assert_allclose(envelope.sqrt_h(random_params(config), config, z, 0.0, 0.0), z, atol=1e-12)
    doubled = config._replace(base_ridge=0.6, base_strength=1.6)
    np.testing.assert_allclose(envelope.sqrt_h(random_params(config), doubled, z, alpha=0.0), expected, atol=1e-12)


def exact_bin(squares, square, binning, bins):
    """The number of inner edges below a radius, by rational arithmetic with the squares of all radii."""
    squares, largest, above = sorted(squares), max(squares), 0
    for k in range(1, bins):
        if binning == "linear_radius":
            above += square > largest * Fraction(k, bins) ** 2
        elif binning == "linear_radius_sq":
            above += square > largest * Fraction(k, bins)
        else:
            # The quantile lies at a radius, or strictly between two, unless these are the same.
            place = Fraction(k * (len(squares) - 1), bins)
            lower, upper = squares[math.floor(place)], squares[math.ceil(place)]
            above += square >= upper if upper > lower else square > lower
    return above


@pytest.mark.parametrize("binning", list(envelope.BINNINGS))
@pytest.mark.parametrize(
    ("h", "w", "bins"), [(8, 8, 8), (8, 8, 7), (8, 8, 6), (7, 7, 6), (5, 6, 4), (1, 4, 2), (1, 1, 3)]
)
def test_bins_are_exact_and_a_radius_on_an_edge_is_in_the_lower_bin(binning, h, w, bins):
    along_y, along_x = ([Fraction(min(i, n - i), n) ** 2 for i in range(n)] for n in (h, w))
    squares = [[y + x for x in along_x] for y in along_y]
    everything = [square for row in squares for square in row]
    expected = [[exact_bin(everything, square, binning, bins) for square in row] for row in squares]
    found = envelope.bin_of_frequency(EnvelopeConfig(h, w, 1, bins=bins, binning=binning))
    np.testing.assert_array_equal(found, expected)


def test_bins_by_hand():
    row = EnvelopeConfig(h=1, w=8, d_f=1, bins=4)  # radii 0, 1, 2, 3, 4, 3, 2, 1 eighths
    expected = {
        "linear_radius": [0, 0, 1, 2, 3, 2, 1, 0],  # edges 1, 2, 3
        "linear_radius_sq": [0, 0, 0, 2, 3, 2, 0, 0],  # edges 2, 2.83, 3.46
        "quantile_radius": [0, 0, 1, 2, 3, 2, 1, 0],  # edges 1, 2, 3: a quarter of the seven steps is 1.75
    }
    assert list(expected) == list(envelope.BINNINGS)
    for binning, bins in expected.items():
        np.testing.assert_array_equal(envelope.bin_of_frequency(row._replace(binning=binning)), [bins], binning)


@partial(jax.jit, static_argnums=1)
def shape_of(params, config):
    return envelope.log_envelope(params, config), envelope.eigenvalues(params, config)


@hypothesis.given(
    raw_shape=st.lists(st.floats(-50.0, 50.0), min_size=5, max_size=5),
    raw_span=st.floats(-50.0, 50.0),
    delta_clip=st.sampled_from([None, 0.5]),
    gauge=st.sampled_from(envelope.GAUGES),
)
def test_the_envelope_grows_with_the_radius_within_its_bounds(raw_shape, raw_span, delta_clip, gauge):
    config = EnvelopeConfig(4, 4, 1, bins=6, span_max=2.0, delta_clip=delta_clip, gauge=gauge, log_lambda_clip=0.6)
    with jax.enable_x64(True):
        params = {"raw_shape": jnp.array(raw_shape), "raw_span": jnp.array(raw_span)}
        g, eigenvalues = map(np.asarray, shape_of(params, config))
    bound = delta_clip or config.span_max
    assert g[0] == 0
    assert np.all(np.diff(g) >= 0)
    assert g[-1] <= bound * (1 + 1e-12)
    rising = np.ravel(eigenvalues)[np.argsort(np.ravel(spectral.squared_radius(4, 4)), kind="stable")]
    assert np.all(np.diff(rising) >= -1e-12)
    assert rising[-1] / rising[0] <= np.exp(min(bound, 2 * config.log_lambda_clip)) * (1 + 1e-12)
    assert mean_of(gauge)(rising) == pytest.approx(1)


@partial(jax.jit, static_argnums=1)
def computed(params, config):
    """Everything that options act on, at a fixed α and β."""
    value, gradient = jax.value_and_grad(envelope.penalty)(params, config, 0.9, 0.8)
    return {
        "g": envelope.log_envelope(params, config),
        "eigenvalues": envelope.eigenvalues(params, config, 0.9, 0.8),
        "penalty": value,
        "penalty_gradient": jnp.append(gradient["raw_shape"], gradient["raw_span"]),
        "init": envelope.init(config)["raw_span"],
        "ramp": jnp.stack(envelope.ramp(config, 1, 4)),
    }


PLAIN = EnvelopeConfig(h=4, w=6, d_f=1, bins=5, span_max=2.0, init_loglambda_span=0.5)
ENVELOPE, PENALTY = {"g", "eigenvalues", "penalty", "penalty_gradient"}, {"penalty", "penalty_gradient"}
CONDITION = {"cond_max": 1.5, "cond_weight": 0.2}
ACTING = {"cond_detached": False}


@pytest.mark.parametrize(
    ("before", "change", "changed"),
    [
        ({}, {"base": "r2"}, {"eigenvalues"}),
        ({}, {"base": "laplacian"}, {"eigenvalues"}),
        ({}, {"base_ridge": 2.0}, set()),
        ({}, {"base_strength": 2.0}, set()),
        ({"base": "r2"}, {"base_ridge": 2.0}, {"eigenvalues"}),
        ({"base": "r2"}, {"base_strength": 2.0}, {"eigenvalues"}),
        ({"base": "r2"}, {"base": "laplacian"}, {"eigenvalues"}),
        ({}, {"init_loglambda_span": 1.0}, {"init"}),
        ({}, {"span_max": 1.0}, ENVELOPE | {"init"}),
        ({}, {"gauge": "trace"}, {"eigenvalues"}),
        (CONDITION, {"gauge": "trace"}, {"eigenvalues"}),
        ({}, {"binning": "linear_radius_sq"}, ENVELOPE - {"g"}),
        ({}, {"binning": "quantile_radius"}, ENVELOPE - {"g"}),
        ({}, {"center_delta": True}, PENALTY),
        ({}, {"delta_clip": 1.0}, ENVELOPE),
        ({}, {"log_lambda_clip": 0.3}, {"eigenvalues"}),
        (CONDITION, {"log_lambda_clip": 0.3}, {"eigenvalues", "penalty"}),
        ({}, {"eps_ridge": 0.1}, {"eigenvalues"}),
        (CONDITION, {"eps_ridge": 0.1}, {"eigenvalues"}),
        ({}, {"curvature_weight": 0.5}, PENALTY),
        ({}, {"loglambda_l2_weight": 0.5}, PENALTY),
        ({}, {"cond_max": 1.5}, set()),
        ({}, {"cond_weight": 0.2}, set()),
        ({}, CONDITION, {"penalty"}),
        (CONDITION, {"cond_max": 1.2}, {"penalty"}),
        (CONDITION, {"cond_max": 1e9}, {"penalty"}),
        (CONDITION, {"cond_weight": 0.1}, {"penalty"}),
        (CONDITION, {"base": "r2"}, {"eigenvalues", "penalty"}),
        (CONDITION, ACTING, {"penalty_gradient"}),
        (CONDITION | ACTING, {"cond_max": 1.2}, PENALTY),
        ({}, ACTING, set()),
        ({}, {"alpha_init": 0.5}, {"ramp"}),
        ({}, {"beta_init": 0.5}, {"ramp"}),
    ],
)
def test_an_option_changes_what_it_should_and_nothing_else(float64, before, change, changed):
    config, params = PLAIN._replace(**before), random_params(PLAIN)
    old, new = computed(params, config), computed(params, config._replace(**change))
    # Differences that are rounding errors are none.
    assert {name for name in old if not np.allclose(old[name], new[name], rtol=1e-11, atol=1e-15)} == changed


def test_eigenvalues_and_health_by_hand(float64):
    config, log16 = ROW._replace(span_max=4.0), np.log(16)
    params = params_of([1.0], log16, config.span_max)
    np.testing.assert_allclose(envelope.eigenvalues(params, config), [[1 / 2, 1 / 2, 8, 1 / 2]])
    expected = {
        "condition_number": 16,
        "smallest_eigenvalue": 0.5,
        "largest_eigenvalue": 8,
        "span": log16,
        "largest_delta": log16,
        "clipped": 0,
        "effective_bins": 1,
    }
    assert envelope.health(params, config) == pytest.approx(expected)
    # With α = ½ the last is 4 before the gauge, which divides by √2.
    assert envelope.health(params, config, alpha=0.5)["largest_eigenvalue"] == pytest.approx(4 / np.sqrt(2))
    # Bounded by 4: (½, ½, 4, ½) of geometric mean 2^(−¼).
    bounded = envelope.health(params, config._replace(log_lambda_clip=float(np.log(4))))
    assert bounded["clipped"] == 1 / 4
    assert bounded["largest_eigenvalue"] == pytest.approx(4 * 2**0.25)
    # The trust region acts on the envelope, not on the span; centred, δ is (−¼, −¼, ¾, −¼) of it.
    within = envelope.health(params, config._replace(delta_clip=1.0, center_delta=True))
    assert within["span"] == pytest.approx(log16)
    assert within["largest_delta"] == pytest.approx(0.75 * np.tanh(log16))
    # All of the rise in the first of three bins: δ = (0, 1, 1, 1), whose largest deviation from its mean is below it.
    step = params_of([1.0, 1e-12], 1.0, 4.0)
    below = envelope.health(step, config._replace(bins=3, center_delta=True))
    assert below["largest_delta"] == pytest.approx(0.75)
    # Weights ¼ and ¾; at the start all are equal.
    weights = params_of([0.5, 1.5], 1.0, 4.0)
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert envelope.health(weights, config._replace(bins=3))["effective_bins"] == pytest.approx(np.exp(entropy))
    assert envelope.health(envelope.init(PLAIN), PLAIN)["effective_bins"] == pytest.approx(PLAIN.bins - 1)


def test_penalty_by_hand(float64):
    # g = (0, 0.1, 0.3, 0.8), second differences 0.1 and 0.3; edges at ⅛, ¼, ⅜, so δ = (0, 0.1, 0.8, 0.1), mean ¼.
    config, params = ROW._replace(bins=4, span_max=1.0), params_of([1.0, 2.0, 5.0], 0.8, 1.0)
    np.testing.assert_allclose(envelope.log_envelope(params, config), [0, 0.1, 0.3, 0.8], atol=1e-12)
    assert envelope.penalty(params, config) == 0
    assert envelope.penalty(params, config._replace(curvature_weight=2.0)) == pytest.approx(2 * 0.1)
    uncentred = config._replace(loglambda_l2_weight=3.0)
    assert envelope.penalty(params, uncentred) == pytest.approx(3 * 0.66 / 4)
    assert envelope.penalty(params, uncentred._replace(center_delta=True)) == pytest.approx(3 * 0.41 / 4)


def test_penalty_on_the_condition_number_by_hand(float64):
    # Eigenvalues (½, ½, 8, ½), bounded (½, ½, 4, ½); the ridge comes after.
    config = ROW._replace(span_max=4.0, cond_max=6.0, cond_weight=0.5, eps_ridge=1.0)
    params = params_of([1.0], np.log(16), config.span_max)
    assert envelope.penalty(params, config) == pytest.approx(0.5 * (16 - 6) ** 2)
    assert envelope.penalty(params, config, alpha=0.75) == pytest.approx(0.5 * (8 - 6) ** 2)
    assert envelope.penalty(params, config, alpha=0.5) == 0
    assert envelope.penalty(params, config._replace(log_lambda_clip=float(np.log(4)))) == pytest.approx(0.5 * 2**2)
    # The base is (a, a + 2b, a + 4b, a + 2b): with β = ½ its extremes are in the ratio (1 + 9/5)/(1 + 1/5).
    laplacian = config._replace(base="laplacian", base_ridge=1.0, base_strength=2.0, cond_max=1.0)
    assert envelope.penalty(params, laplacian, alpha=0.0, beta=0.5) == pytest.approx(0.5 * (2.8 / 1.2 - 1) ** 2)


def test_the_span_starts_where_it_is_told_to(float64):
    init = envelope.init(PLAIN)
    assert init["raw_shape"].shape == (PLAIN.bins - 1,)
    np.testing.assert_allclose(envelope.log_envelope(init, PLAIN), np.linspace(0, 0.5, PLAIN.bins), atol=1e-12)
    assert envelope.init(PLAIN, raw_span=-1.5)["raw_span"] == -1.5
    for start in (0.0, PLAIN.span_max):
        config = PLAIN._replace(init_loglambda_span=start)
        span = envelope.health(envelope.init(config), config)["span"]
        assert abs(span - start) == pytest.approx(1e-4 * PLAIN.span_max)


@pytest.mark.parametrize("base", list(envelope.BASES))
def test_an_envelope_without_span_has_a_gradient_and_can_grow(base):
    config = EnvelopeConfig(4, 4, 2, base=base, delta_clip=0.5, cond_max=1.0, cond_weight=0.1, cond_detached=False)
    z = jax.random.normal(jax.random.key(0), (30, 32)) * jnp.linspace(0.5, 2.0, 32)
    directions = random_directions(jax.random.key(1), 32, 8)

    @jax.jit
    def loss(params):
        return sigreg(envelope.sqrt_h(params, config, z), directions) + envelope.penalty(params, config)

    params = envelope.init(config)
    value, gradient = jax.value_and_grad(loss)(params)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    assert loss(jax.tree.map(lambda x, g: x - 2 * g / (jnp.linalg.norm(g) + 1e-30), params, gradient)) < value


def test_the_ramps_by_hand():
    config = EnvelopeConfig(2, 2, 1, alpha_init=0.5, beta_init=0.2)
    for epoch, alpha, beta in ((0, 0.5, 0.2), (1, 0.625, 0.4), (2.5, 0.8125, 0.7), (4, 1, 1), (9, 1, 1)):
        np.testing.assert_allclose(envelope.ramp(config, epoch, 4), (alpha, beta), rtol=1e-6)
        np.testing.assert_allclose(jax.jit(lambda e: envelope.ramp(config, e, 4))(epoch), (alpha, beta), rtol=1e-6)
    # Without a ramp they stay where they start.
    np.testing.assert_allclose(envelope.ramp(config, 7, 0), (0.5, 0.2), rtol=1e-6)
    np.testing.assert_array_equal(envelope.ramp(EnvelopeConfig(2, 2, 1), 7, 0), (1, 1))


def test_single_precision_stays_single_where_double_is_allowed(double_precision):
    z, half = jnp.ones((3, BUSY.h * BUSY.w * BUSY.d_f), jnp.float32), random_params(BUSY, dtype=jnp.bfloat16)
    assert envelope.sqrt_h(half, BUSY, z.astype(jnp.bfloat16)).dtype == jnp.float32
    for computed_in_float32 in (envelope.eigenvalues, envelope.penalty, envelope.log_envelope):
        widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
        np.testing.assert_array_equal(computed_in_float32(half, BUSY), computed_in_float32(widened, BUSY))
        assert computed_in_float32(half, BUSY).dtype == jnp.float32
    with jax.enable_x64(True):

        def everything(params, z, alpha, beta):
            config = BUSY._replace(**CONDITION)
            out = envelope.sqrt_h(params, config, z, alpha, beta)
            loss = jnp.mean(out**2) + envelope.penalty(params, config, alpha, beta)
            return loss, envelope.health(params, config, alpha, beta)

        ramp = (jnp.asarray(0.5, jnp.float64), jnp.asarray(0.5, jnp.float64))
        params = random_params(BUSY, dtype=jnp.float32)
        jaxpr = jax.make_jaxpr(jax.value_and_grad(everything, has_aux=True))(params, z, *ramp)
        assert not double_precision(jaxpr.jaxpr)
        assert {out.aval.dtype for out in jaxpr.jaxpr.outvars} == {np.dtype("float32")}
        assert envelope.sqrt_h(random_params(BUSY), BUSY, z.astype(float)).dtype == jnp.float64


POSITIVE = ("base_ridge", "span_max", "delta_clip", "log_lambda_clip")
NOT_NEGATIVE = ("base_strength", "eps_ridge", "curvature_weight", "loglambda_l2_weight", "cond_max", "cond_weight")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base": "r3"}, "base: 'r3' is unknown; known: identity, r2, laplacian"),
        ({"gauge": "max"}, "gauge: 'max' is unknown; known: trace, logdet"),
        ({"binning": "log"}, "binning: 'log' is unknown; known: linear_radius, linear_radius_sq, quantile_radius"),
        *(({name: 0}, f"{name}: must be at least 1, got 0") for name in ("h", "w", "d_f")),
        ({"bins": 1}, "bins: must be at least 2, got 1"),
        *(({name: 0.0}, f"{name}: must be positive, got 0.0") for name in POSITIVE),
        ({"log_lambda_clip": float("nan")}, "log_lambda_clip: must be positive, got nan"),
        *(({name: -1.0}, f"{name}: must not be negative, got -1.0") for name in NOT_NEGATIVE),
        ({"init_loglambda_span": 0.2}, r"init_loglambda_span: must be in \[0, 0.1\], got 0.2"),
        ({"init_loglambda_span": -0.1}, r"init_loglambda_span: must be in \[0, 0.1\], got -0.1"),
        ({"alpha_init": 1.5}, r"alpha_init: must be in \[0, 1.0\], got 1.5"),
        ({"beta_init": -0.5}, r"beta_init: must be in \[0, 1.0\], got -0.5"),
    ],
)
def test_every_function_refuses_a_bad_config(fields, message):
    config = EnvelopeConfig(**{"h": 2, "w": 2, "d_f": 1} | fields)
    params = {"raw_shape": jnp.zeros(15), "raw_span": jnp.zeros(())}
    calls = [
        partial(envelope.validate, config),
        partial(envelope.init, config),
        partial(envelope.ramp, config, 0, 1),
        partial(envelope.bin_of_frequency, config),
        *(partial(f, params, config) for f in (envelope.log_envelope, envelope.eigenvalues, envelope.penalty)),
        partial(envelope.health, params, config),
        partial(envelope.sqrt_h, params, config, jnp.zeros(4)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_arguments_are_named():
    config = EnvelopeConfig(h=2, w=3, d_f=4)
    with pytest.raises(ValueError, match=r"h·w·d_f = 2·3·4 = 24 entries, got the shape \(5, 12\)"):
        envelope.sqrt_h(envelope.init(config), config, jnp.zeros((5, 12)))
    with pytest.raises(AssertionError, match="shape"):
        envelope.eigenvalues(envelope.init(config), config._replace(bins=8))
    with pytest.raises(ValueError, match="ramp_epochs: must not be negative, got -1"):
        envelope.ramp(config, 0, -1)
    # A config is hashable, so that it can be static.
    assert jax.jit(envelope.penalty, static_argnums=1)(envelope.init(config), config) >= 0
