from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st
from jax.test_util import check_grads

from hamjepa_jax.stats.univariate import TESTS

# The tests that location and scale have no influence on have an ε, which is zero where they are compared with theory.
INVARIANT = {"shapiro_francia", "jarque_bera"}
EXACT = {name: jax.jit(partial(test, eps=0.0) if name in INVARIANT else test) for name, test in TESTS.items()}
normal = scipy.stats.norm


def middles(num_samples):
    return (np.arange(num_samples) + 0.5) / num_samples


def written_out(name, x):
    """The statistic of one column as the literature writes it."""
    num_samples, ordered, ranks = len(x), np.sort(x), np.arange(1, len(x) + 1)
    match name:
        case "cramer_von_mises":
            return scipy.stats.cramervonmises(x, "norm").statistic
        case "watson":
            return written_out("cramer_von_mises", x) - num_samples * (np.mean(normal.cdf(x)) - 0.5) ** 2
        case "anderson_darling":
            logs = normal.logcdf(ordered) + np.log(1 - normal.cdf(ordered[::-1]))
            return -num_samples - np.sum((2 * ranks - 1) * logs) / num_samples
        case "shapiro_francia":
            return num_samples * (
                1 - np.corrcoef(ordered, normal.ppf((ranks - 3 / 8) / (num_samples + 1 / 4)))[0, 1] ** 2
            )
        case "jarque_bera":
            return scipy.stats.jarque_bera(x).statistic
        case "moments":
            return num_samples * np.mean(x) ** 2 + num_samples / 2 * (np.var(x) - 1) ** 2
        case "wasserstein":
            return np.sum((ordered - normal.ppf(middles(num_samples))) ** 2)


OTHERS = [name for name in TESTS if name != "epps_pulley"]


@partial(jax.jit, static_argnums=0)
def value_and_gradient(name, x):
    value, vjp = jax.vjp(TESTS[name], x)
    return value, vjp(jnp.ones_like(value))[0]


@pytest.fixture(scope="module")
def samples():
    """Columns close to N(0, 1) and far from it, for two leading indices."""
    x = np.random.default_rng(0).normal(size=(2, 31, 4))
    return x * np.array([1.0, 0.5, 2.0, 1.0]) + np.array([0.0, 0.0, 0.5, -1.5])


@pytest.mark.parametrize("name", OTHERS)
def test_value_is_that_of_the_literature(float64, samples, name):
    expected = [[written_out(name, samples[v, :, k]) for k in range(4)] for v in range(2)]
    np.testing.assert_allclose(EXACT[name](samples), expected, rtol=1e-9)


@pytest.mark.parametrize("name", OTHERS)
def test_gradient_is_that_of_finite_differences(float64, samples, name):
    check_grads(jax.jit(TESTS[name]), (jnp.asarray(samples),), order=1, modes=["rev"], atol=1e-7, rtol=1e-6, eps=1e-6)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("cramer_von_mises", 1 / 96),
        ("watson", 1 / 96),
        ("anderson_darling", -8 - 4 * np.sum(middles(8) * np.log(middles(8)))),
        ("wasserstein", 0.0),
    ],
)
def test_the_least_value_is_that_of_the_quantiles(float64, name, least):
    quantiles = normal.ppf(middles(8))[:, None]
    value, gradient = value_and_gradient(name, quantiles)
    np.testing.assert_allclose(value, least, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_one_sample_is_enough_for_what_does_not_need_a_scale(float64):
    one, phi = np.array([[0.3]]), normal.cdf(0.3)
    np.testing.assert_allclose(TESTS["cramer_von_mises"](one), 1 / 12 + (phi - 0.5) ** 2, rtol=1e-12)
    np.testing.assert_allclose(TESTS["watson"](one), 1 / 12, rtol=1e-12)
    for name in ("anderson_darling", "moments", "wasserstein"):
        np.testing.assert_allclose(TESTS[name](one), written_out(name, one[:, 0]), rtol=1e-12)
    with pytest.raises(AssertionError):
        TESTS["shapiro_francia"](one)
    for test in TESTS.values():
        with pytest.raises(AssertionError):
            test(np.zeros((0, 1)))


def test_eps_by_hand(float64):
    # Two points ±a are on a straight line, and W = a²/(a² + ε); their kurtosis would be 1.
    points, eps = np.array([[0.2], [-0.2]]), 0.01
    np.testing.assert_allclose(TESTS["shapiro_francia"](points, eps=eps), 2 * (1 - 0.04 / 0.05), rtol=1e-12)
    np.testing.assert_allclose(TESTS["jarque_bera"](points, eps=eps), 2 / 24 * (0.8**2 - 3) ** 2, rtol=1e-12)
    # ε is 10⁻⁶ unless said otherwise: as large as the variance of points ±10⁻³.
    near = np.array([[1e-3], [-1e-3]])
    np.testing.assert_allclose(TESTS["shapiro_francia"](near), 2 * (1 - 1 / 2), rtol=1e-12)
    np.testing.assert_allclose(TESTS["jarque_bera"](near), 2 / 24 * ((1 / 2) ** 2 - 3) ** 2, rtol=1e-12)


def expected_order_statistics(num_samples):
    """E x₍ᵢ₎ under N(0, 1): Φ(x₍ᵢ₎) has the distribution Beta(i, N + 1 − i)."""
    grid = np.linspace(-12, 12, 20_001)
    ranks = np.arange(1, num_samples + 1)[:, None]
    density = scipy.stats.beta.pdf(normal.cdf(grid), ranks, num_samples + 1 - ranks) * normal.pdf(grid)
    return np.trapezoid(grid * density, grid, axis=1)


def wasserstein_mean(num_samples):
    quantiles = normal.ppf(middles(num_samples))
    return num_samples + np.sum(quantiles**2) - 2 * quantiles @ expected_order_statistics(num_samples)


def jarque_bera_mean(num_samples):
    """From the moments of skewness and kurtosis for every N (R. A. Fisher, 1930)."""
    n = num_samples
    skewness_square = 6 * (n - 2) / ((n + 1) * (n + 3))
    kurtosis_variance = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    kurtosis_mean = 3 * (n - 1) / (n + 1)
    return n / 6 * (skewness_square + (kurtosis_variance + (kurtosis_mean - 3) ** 2) / 4)


NULL_MEANS = {
    "cramer_von_mises": lambda n: 1 / 6,
    "anderson_darling": lambda n: 1.0,
    "watson": lambda n: 1 / 12,
    "moments": lambda n: 2 - 1 / (2 * n),
    "jarque_bera": jarque_bera_mean,
    "wasserstein": wasserstein_mean,
}


@pytest.mark.parametrize("num_samples", [3, 40])
@pytest.mark.parametrize("name", NULL_MEANS)
def test_mean_under_the_null_is_what_theory_gives_for_every_number_of_samples(name, num_samples):
    values = np.asarray(EXACT[name](jax.random.normal(jax.random.key(num_samples), (num_samples, 20_000))))
    standard_error = np.std(values) / np.sqrt(values.size)
    assert np.mean(values) == pytest.approx(NULL_MEANS[name](num_samples), abs=4 * standard_error)


def test_mean_of_shapiro_francia_under_the_null_for_three_samples():
    # W does not depend on mean and variance, so E[W] is the ratio of expectations: for scores (−a, 0, a) it is
    # E[a²·range²]/(2a²·2), and E[range²] = 2 + 3√3/π.
    values = np.asarray(EXACT["shapiro_francia"](jax.random.normal(jax.random.key(0), (3, 20_000))))
    expected = 3 * (1 - (2 + 3 * np.sqrt(3) / np.pi) / 4)
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(values.size))


# Means under the null for N = 10, 100 and 1000.
SLOW_GROWTH = {"shapiro_francia": (0.70, 1.26, 1.64), "wasserstein": (2.11, 2.75, 3.16)}


@pytest.mark.parametrize("name", SLOW_GROWTH)
def test_mean_under_the_null_grows_slowly_where_it_is_not_constant(name):
    test = jax.jit(TESTS[name])
    means = [np.mean(test(jax.random.normal(jax.random.key(n), (n, 2000)))) for n in (10, 100, 1000)]
    np.testing.assert_allclose(means, SLOW_GROWTH[name], atol=0.15)


@pytest.mark.parametrize("name", TESTS)
def test_statistic_grows_like_the_number_of_samples_that_are_not_gaussian(name):
    samples = 1.5 * jax.random.exponential(jax.random.key(0), (4000, 32)) - 1
    few, many = (np.mean(jax.jit(TESTS[name])(part)) for part in (samples[:1000], samples))
    assert 3.5 < many / few < 4.5


# How often, in hundredths, a test at the level of 5 % rejects 100 samples of each of these distributions; all but the
# first three have mean 0 and variance 1.
ALTERNATIVES = {
    "shifted": lambda rng, shape: rng.normal(size=shape) + 0.25,
    "wide": lambda rng, shape: 1.2 * rng.normal(size=shape),
    "narrow": lambda rng, shape: 0.8 * rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(5, size=shape) * np.sqrt(3 / 5),
    "uniform": lambda rng, shape: rng.uniform(-np.sqrt(3), np.sqrt(3), size=shape),
    "two clusters": lambda rng, shape: 0.9 * rng.choice([-1, 1], size=shape) + np.sqrt(0.19) * rng.normal(size=shape),
    "skewed": lambda rng, shape: (rng.gamma(10, size=shape) - 10) / np.sqrt(10),
}
POWER = {
    "epps_pulley": (59, 42, 49, 17, 38, 67, 20),
    "cramer_von_mises": (66, 15, 14, 8, 21, 72, 12),
    "anderson_darling": (68, 35, 24, 10, 30, 76, 12),
    "watson": (32, 40, 60, 29, 59, 99, 21),
    "shapiro_francia": (5, 5, 5, 63, 97, 100, 57),
    "jarque_bera": (5, 5, 5, 65, 76, 95, 53),
    "moments": (61, 72, 70, 17, 2, 2, 8),
    "wasserstein": (67, 57, 44, 39, 40, 75, 26),
}


@pytest.mark.parametrize("name", TESTS)
def test_power(name):
    rng, test = np.random.default_rng(5), jax.jit(TESTS[name])
    level = np.quantile(test(rng.normal(size=(100, 8000)).astype(np.float32)), 0.95)
    statistics = [test(draw(rng, (100, 4000)).astype(np.float32)) for draw in ALTERNATIVES.values()]
    rejected = [100 * np.mean(statistic > level) for statistic in statistics]
    np.testing.assert_allclose(rejected, POWER[name], atol=4)


def rotated(x):
    """Samples whose Φ(x) are turned by 0.3 on the circle."""
    return normal.ppf((normal.cdf(x) + 0.3) % 1)


# What leaves which statistic as it is; everything else changes by at least a twentieth.
INVARIANCES = {
    "sign": (lambda x: -x, set(TESTS)),
    "shift": (lambda x: x + 0.7, INVARIANT),
    "scale": (lambda x: 3 * x, INVARIANT),
    "turn": (rotated, {"watson"}),
}


@pytest.mark.parametrize("change", INVARIANCES)
@pytest.mark.parametrize("name", TESTS)
def test_invariance(float64, name, change):
    changed, invariant = INVARIANCES[change]
    x = np.random.default_rng(1).normal(size=(50, 1))
    before, after = EXACT[name](x), EXACT[name](changed(x))
    if name in invariant:
        np.testing.assert_allclose(after, before, rtol=1e-9)
    else:
        assert abs(after - before) > 0.05


@hypothesis.given(name=st.sampled_from(sorted(TESTS)), order=st.permutations(range(15)), seed=st.integers(0, 2**31))
def test_order_of_the_samples_has_no_influence(name, order, seed):
    with jax.enable_x64(True):
        x = np.random.default_rng(seed).normal(size=(15, 2))
        value, gradient = value_and_gradient(name, x)
        value_in_order, gradient_in_order = value_and_gradient(name, x[np.array(order)])
        np.testing.assert_allclose(value_in_order, value, rtol=1e-9)
        np.testing.assert_allclose(gradient_in_order, gradient[np.array(order)], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TESTS)
def test_float32_is_close_to_float64(name):
    # As many samples as make N times the spacing of float32 a hundredth.
    x = np.random.default_rng(2).normal(size=(80_000, 3)) * np.array([1.0, 1.2, 1.0]) + np.array([0.0, 0.0, 0.2])
    x = x.astype(np.float32)
    value, gradient = value_and_gradient(name, x)
    assert value.dtype == gradient.dtype == jnp.float32
    with jax.enable_x64(True):
        expected, expected_gradient = value_and_gradient(name, x.astype(np.float64))
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-4)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4 * np.max(np.abs(expected_gradient)))


@pytest.mark.parametrize("name", TESTS)
def test_half_precision_is_computed_in_float32(name):
    x = jax.random.normal(jax.random.key(0), (64, 3)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(TESTS[name](x), TESTS[name](x.astype(jnp.float32)))


@pytest.mark.parametrize("name", TESTS)
def test_float32_is_not_widened_where_double_is_allowed(float64, double_precision, name):
    x = jnp.zeros((6, 2), jnp.float32)
    assert not double_precision(jax.make_jaxpr(partial(value_and_gradient, name))(x).jaxpr)


# The pull on a sample at 30 among the quantiles of N(0, 1), and the factor by which it grows from 30 to 60.
PULLS = {
    "epps_pulley": (-0.0014, None),
    "cramer_von_mises": (0.0, None),
    "watson": (0.0, None),
    "anderson_darling": (30 / 50, 2),
    "wasserstein": (2 * (30 - 2.326), 2),
    "moments": (1036, 8),
    "shapiro_francia": (0.332, 1 / 5),
    "jarque_bera": (52.9, 1 / 7),
}


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("name", TESTS)
def test_pull_on_a_sample_far_away(name, side):
    def samples(distance, dtype):
        return side * np.append(normal.ppf(middles(49)), distance)[:, None].astype(dtype)

    value, gradient = value_and_gradient(name, samples(30, np.float32))
    with jax.enable_x64(True):
        expected, expected_gradient = value_and_gradient(name, samples(30, np.float64))
        farther = value_and_gradient(name, samples(60, np.float64))[1][-1, 0]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-3)
    pull, growth = PULLS[name]
    assert side * gradient[-1, 0] == pytest.approx(pull, rel=0.01, abs=1e-4)
    if growth is not None:
        assert farther / expected_gradient[-1, 0] == pytest.approx(growth, rel=0.2)


# Whether samples that coincide are pushed apart. The smooth tests treat them all alike; those that sort rank them in
# the order of the batch. Shapiro–Francia sorts too, but the square of a correlation has no slope where it vanishes.
SPREADS = {
    "epps_pulley": False,
    "cramer_von_mises": True,
    "anderson_darling": True,
    "watson": True,
    "shapiro_francia": False,
    "jarque_bera": False,
    "moments": False,
    "wasserstein": True,
}


@pytest.mark.parametrize("place", [0.0, 0.7])
@pytest.mark.parametrize("name", TESTS)
def test_whether_samples_that_coincide_are_pushed_apart(float64, name, place):
    _, gradient = value_and_gradient(name, np.full((12, 1), place))
    step = -(gradient - jnp.mean(gradient))[:, 0]
    if SPREADS[name]:
        assert np.all(np.diff(step) > 0.05)
    else:
        np.testing.assert_allclose(step, 0, atol=1e-14)
    # In float32 the same, to rounding.
    gradient_32 = value_and_gradient(name, np.full((12, 1), place, np.float32))[1]
    np.testing.assert_allclose(gradient_32, gradient, atol=1e-6)


@pytest.mark.parametrize("place", [0.0, 0.7])
@pytest.mark.parametrize("name", TESTS)
def test_samples_that_nearly_coincide_are_pushed_apart(float64, name, place):
    deviations = np.random.default_rng(3).normal(size=(12, 1))
    deviations -= np.mean(deviations)
    _, gradient = value_and_gradient(name, place + 1e-4 * deviations)
    assert jnp.sum(gradient * deviations) < 0


@pytest.mark.parametrize(("name", "collapsed"), [("shapiro_francia", 12.0), ("jarque_bera", 3 * 12 / 8)])
def test_where_there_is_no_scale_a_collapse_is_a_bad_fit(name, collapsed):
    value, _ = value_and_gradient(name, np.full((12, 1), 0.7, np.float32))
    np.testing.assert_allclose(value, collapsed, rtol=1e-6)
    assert TESTS[name](np.random.default_rng(4).normal(size=(12, 1)))[0] < collapsed
