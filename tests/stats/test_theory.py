"""The closed forms: bad input, transformations, and what each must satisfy on random geometries."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.stats import theory
from hamjepa_jax.stats.gaussian import gaussian_divergence, gaussian_entropy
from hamjepa_jax.stats.positive_definite import orthogonal, positive_definite, square_root
from hamjepa_jax.stats.power_means import ORDERS, log_power_mean, price_of_spectrum
from hamjepa_jax.stats.theory_search import search_optimum, search_worst_geometry
from hamjepa_jax.theory.examples import random_positive_definite, random_rotation

pytestmark = pytest.mark.usefixtures("float64")

DIM = 3
FREE = {"entropy": 0.0, "worst_direction": 1.0, "inverse_variance": 1.0}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def H(rng):
    return random_positive_definite(rng, DIM, 30.0)


@pytest.fixture
def sigma(rng):
    return random_positive_definite(rng, DIM, 10.0)


def assert_prices(found, wanted):
    assert set(found) == set(wanted)
    for name, price in wanted.items():
        assert found[name] == pytest.approx(float(price), rel=1e-12, abs=1e-12), name


def test_covariances_have_the_budget_and_the_shape_that_the_equations_say(H):
    optimal, isotropic = theory.optimal_covariance(H, 5.0), theory.isotropic_covariance(H, 5.0)
    np.testing.assert_allclose(H @ optimal, 5.0 / DIM * np.eye(DIM), atol=1e-13)
    np.testing.assert_allclose(isotropic, isotropic[0, 0] * np.eye(DIM), atol=1e-15)
    assert np.vdot(H, optimal) == pytest.approx(5.0, rel=1e-12)
    assert np.vdot(H, isotropic) == pytest.approx(5.0, rel=1e-12)


def test_prices_of_isotropy_by_hand():
    wanted = {"entropy": math.log(5 / 4), "worst_direction": 5 / 2, "inverse_variance": 25 / 16}
    assert_prices(theory.price_of_isotropy(np.diag([2.0, 8.0])), wanted)
    assert_prices(theory.price_of_isotropy([[2, 0], [0, 8]]), wanted)
    assert_prices(theory.prices(np.eye(2), np.diag([2.0, 8.0])), wanted)


def test_prices_are_what_they_are_said_to_mean(H, sigma):
    found = theory.prices(sigma, H)
    optimum = np.asarray(theory.optimal_covariance(H, np.vdot(H, sigma)))
    entropy = 0.5 * (np.linalg.slogdet(optimum)[1] - np.linalg.slogdet(sigma)[1])
    ratios = np.linalg.eigvals(np.linalg.solve(sigma, optimum)).real
    inverse_variances = [np.trace(np.linalg.inv(H @ covariance)) for covariance in (sigma, optimum)]
    wanted = {
        "entropy": entropy,
        "worst_direction": ratios.max(),
        "inverse_variance": inverse_variances[0] / inverse_variances[1],
    }
    assert_prices(found, wanted)


def test_prices_do_not_depend_on_scales_and_only_the_optimum_is_free(H, sigma):
    assert_prices(theory.prices(7.0 * sigma, 0.1 * H), theory.prices(sigma, H))
    assert_prices(theory.prices(theory.optimal_covariance(H, 2.0), H), FREE)
    assert_prices(theory.price_of_isotropy(4.0 * np.eye(DIM)), FREE)
    assert_prices(theory.least_price_of_isotropy(DIM, 1.0), FREE)
    for name, price in theory.prices(sigma, H).items():
        assert price > FREE[name] + 0.01


@pytest.mark.parametrize("price", ORDERS)
def test_least_price_of_isotropy_is_attained_and_no_spectrum_is_below(rng, price):
    kappa, dim = 100.0, 4
    least = theory.least_price_of_isotropy(dim, kappa)[price]
    inner = {"entropy": (1 + kappa) / 2, "worst_direction": 1.0, "inverse_variance": math.sqrt(kappa)}[price]
    assert theory.price_of_isotropy(np.diag([1.0, inner, inner, kappa]))[price] == pytest.approx(
        float(least), rel=1e-12
    )
    log_h = np.log(kappa) * np.sort(rng.uniform(size=(500, dim)), axis=-1)
    log_h[:, 0], log_h[:, -1] = 0.0, np.log(kappa)
    assert np.all(price_of_spectrum(log_h, price) > least)


@pytest.mark.parametrize("price", ORDERS)
def test_the_worst_geometry_shares_eigenvectors_and_no_other_costs_more(rng, sigma, price):
    kappa = 20.0
    worst = np.asarray(theory.worst_geometry(sigma, kappa, price=price))
    assert np.linalg.cond(worst) == pytest.approx(kappa)
    assert np.trace(worst) == pytest.approx(DIM)
    np.testing.assert_allclose(worst @ sigma, sigma @ worst, atol=1e-11 * np.abs(sigma).max())
    # The optimum for it has the variances in the reversed order.
    variances, eigenvectors = np.linalg.eigh(sigma)
    assert np.all(np.diff(np.diag(eigenvectors.T @ worst @ eigenvectors)) > -1e-12)
    most = theory.prices(sigma, worst)[price]
    found = theory.prices(sigma, search_worst_geometry(jax.random.key(0), sigma, kappa, price=price, num_starts=4))
    assert found[price] == pytest.approx(float(most), rel=1e-10)
    for _ in range(20):
        other = random_positive_definite(rng, DIM, kappa)
        assert theory.prices(sigma, other)[price] < most


@pytest.mark.parametrize(
    ("variances", "num_large"),
    [
        ((1, 1, 1, 1e4), {"entropy": 1, "inverse_variance": 1, "worst_direction": 3}),
        ((1, 1, 1e4, 1e4), {"entropy": 2, "inverse_variance": 2, "worst_direction": 3}),
        ((1e-4, 1, 1, 1), {"entropy": 1, "inverse_variance": 3, "worst_direction": 3}),
    ],
)
def test_how_many_eigenvalues_of_the_worst_geometry_are_large_is_found(variances, num_large):
    for price, num in num_large.items():
        worst = np.diag(theory.worst_geometry(np.diag(variances), 9.0, price=price))
        np.testing.assert_allclose(worst / worst.min(), [1.0] * (4 - num) + [9.0] * num, rtol=1e-12)


def test_isotropy_is_the_fixed_covariance_whose_worst_case_is_mildest(rng):
    for price in ORDERS:
        isotropic = theory.price_of_isotropy(theory.worst_geometry(np.eye(DIM), 50.0, price=price))[price]
        for condition_number in (1.5, 10.0, 1000.0):
            sigma = random_positive_definite(rng, DIM, condition_number)
            assert theory.prices(sigma, theory.worst_geometry(sigma, 50.0, price=price))[price] > isotropic


def test_a_coupling_keeps_the_marginal_and_its_rotation_can_be_read_off(rng, sigma):
    rotation = random_rotation(rng, DIM)
    predictor, noise = theory.coupling(sigma, rotation, 0.7)
    np.testing.assert_allclose(predictor @ sigma @ predictor.T + noise, sigma, atol=1e-13 * np.abs(sigma).max())
    np.testing.assert_allclose(noise, 0.51 * sigma, rtol=1e-12)
    root = square_root(jnp.asarray(sigma))
    np.testing.assert_allclose(jnp.linalg.solve(root, predictor @ root), 0.7 * rotation, atol=1e-12)
    deterministic = theory.coupling(sigma, rotation, -1)
    assert np.all(deterministic.noise_covariance == 0.0)


def test_sampled_pairs_have_the_joint_covariance_of_the_coupling(rng, sigma):
    rotation, num = random_rotation(rng, DIM), 200_000
    z_NxD, target_NxD = theory.sample_pairs(jax.random.key(0), sigma, rotation, -0.6, num)
    predictor = theory.coupling(sigma, rotation, -0.6).predictor
    inverse = np.linalg.inv(square_root(jnp.asarray(sigma)))
    # Five standard errors of a correlation.
    tolerance = {"atol": 5 * math.sqrt(2 / num), "rtol": 0}
    for left, right, wanted in (
        (z_NxD, z_NxD, sigma),
        (target_NxD, target_NxD, sigma),
        (target_NxD, z_NxD, predictor @ sigma),
    ):
        np.testing.assert_allclose(
            inverse @ (left.T @ right / num - wanted) @ inverse, np.zeros(2 * (DIM,)), **tolerance
        )


def test_risks_are_traces_and_a_plane_rotation_costs_one_minus_its_cosine(rng, sigma):
    rotation, wrong, rho = random_rotation(rng, DIM), random_rotation(rng, DIM), 0.8
    right, other = (theory.coupling(sigma, u, rho) for u in (rotation, wrong))
    difference = other.predictor - right.predictor
    excess = theory.excess_risk(sigma, rotation, wrong, rho)
    assert excess == pytest.approx(np.trace(difference @ sigma @ difference.T), rel=1e-12)
    assert excess == pytest.approx(2 * rho**2 * (np.trace(sigma) - np.trace(sigma @ wrong @ rotation.T)), rel=1e-12)
    assert theory.irreducible_risk(sigma, rho) == pytest.approx(np.trace(right.noise_covariance), rel=1e-12)
    angle = 0.3
    plane = np.eye(DIM)
    plane[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    wanted = 2 * rho**2 * (1 - math.cos(angle)) * (sigma[0, 0] + sigma[1, 1])
    assert theory.excess_risk(sigma, rotation, plane @ rotation, rho) == pytest.approx(wanted, rel=1e-12)


def test_the_flow_of_the_lift_is_symplectic_stationary_and_a_flow(H):
    S, covariance = theory.lift_flow(H, 0.4), theory.gibbs_covariance(H, 6.0)
    omega = np.kron([[0.0, 1.0], [-1.0, 0.0]], np.eye(DIM))
    np.testing.assert_allclose(S.T @ omega @ S, omega, atol=1e-12)
    np.testing.assert_allclose(S @ covariance @ S.T, covariance, rtol=0, atol=1e-12 * np.abs(covariance).max())
    np.testing.assert_allclose(S @ S, theory.lift_flow(H, 0.8), atol=1e-10)
    np.testing.assert_allclose(theory.lift_flow(H, 0.0), np.eye(2 * DIM), atol=1e-13)
    velocity = jax.jacfwd(lambda time: theory.lift_flow(H, time))(0.0)
    np.testing.assert_allclose(velocity[:DIM, DIM:], np.eye(DIM), atol=1e-12)
    np.testing.assert_allclose(velocity[DIM:, :DIM], -H, atol=1e-10)
    np.testing.assert_allclose(covariance[:DIM, :DIM], theory.optimal_covariance(H, 6.0), rtol=1e-12)
    np.testing.assert_allclose(covariance[DIM:, DIM:], 2.0 * np.eye(DIM), rtol=1e-12)
    assert np.all(covariance[:DIM, DIM:] == 0.0)


def test_entropy_and_divergence_of_gaussians(H, sigma):
    assert gaussian_entropy(np.eye(1)) == pytest.approx(0.5 * math.log(2 * math.pi * math.e), rel=1e-14)
    assert gaussian_divergence(np.diag([2.0, 1.0]), np.eye(2)) == pytest.approx(0.5 * (1 - math.log(2)), rel=1e-13)
    assert gaussian_divergence(sigma, sigma) == pytest.approx(0.0, abs=1e-13)
    optimum = theory.optimal_covariance(H, np.vdot(H, sigma))
    gap = gaussian_entropy(optimum) - gaussian_entropy(sigma)
    assert gaussian_divergence(sigma, optimum) == pytest.approx(float(gap), rel=1e-12)
    assert gaussian_divergence(optimum, sigma) != pytest.approx(float(gap), rel=1e-2)


def test_power_means_rise_with_the_order_and_have_their_classical_values():
    log_y = np.log([1.0, 4.0, 4.0])
    wanted = {-math.inf: 1.0, -1.0: 2.0, 0.0: 16 ** (1 / 3), 1.0: 3.0, 2.0: math.sqrt(11.0)}
    found = [float(jnp.exp(log_power_mean(log_y, order))) for order in wanted]
    np.testing.assert_allclose(found, list(wanted.values()), rtol=1e-14)
    assert np.all(np.diff(found) > 0)


@pytest.mark.parametrize("order", [0.0, -1.0, -16.0, 0.5])
def test_search_finds_the_optimum_of_every_power_mean(rng, order):
    H = random_positive_definite(rng, DIM, 1e4)
    found, num_steps = search_optimum(jax.random.key(1), H, 2.0, order=order)
    root = square_root(jnp.asarray(H))
    np.testing.assert_allclose(root @ found @ root, 2.0 / DIM * np.eye(DIM), atol=1e-10)
    assert int(num_steps) in range(2, 300)
    stopped, num_steps = search_optimum(jax.random.key(1), H, 2.0, order=order, max_steps=1)
    assert num_steps == 1
    assert np.vdot(H, stopped) == pytest.approx(2.0, rel=1e-12)
    assert np.abs(root @ stopped @ root - 2.0 / DIM * np.eye(DIM)).max() > 1e-3


def test_functions_work_under_jit_vmap_and_grad_and_with_known_arrays_inside(rng, H, sigma):
    rotation = random_rotation(rng, DIM)
    known = jnp.asarray(sigma)

    def total(H):
        flow = theory.lift_flow(H, 0.1) @ theory.gibbs_covariance(H, 1.0)
        pairs = theory.sample_pairs(jax.random.key(0), known, rotation, 0.5, 2)
        risks = theory.irreducible_risk(H, 0.5) + theory.excess_risk(known, rotation, jnp.asarray(rotation).T, 0.5)
        prices = sum(theory.prices(known, H).values()) + sum(theory.price_of_isotropy(H).values())
        covariances = theory.optimal_covariance(H, 1.0) + theory.isotropic_covariance(H, 1.0)
        worst = theory.worst_geometry(H, 9.0)
        return prices + risks + sum(map(jnp.sum, (flow, *pairs, covariances, worst))) + gaussian_divergence(H, known)

    batch = jnp.stack([jnp.asarray(H), 2.0 * H + known])
    np.testing.assert_allclose(jax.jit(jax.vmap(total))(batch), [total(batch[0]), total(batch[1])], rtol=1e-10)

    def entropy_price(H):
        return theory.price_of_isotropy(H)["entropy"]

    # (d/2)·log tr H − ½·log det H.
    slope = DIM / 2 / np.trace(H) * np.eye(DIM) - 0.5 * np.linalg.inv(H)
    np.testing.assert_allclose(jax.grad(entropy_price)(jnp.asarray(H)), slope, rtol=1e-10)


def test_the_dtype_is_that_of_the_input(H):
    assert theory.optimal_covariance(H.astype(np.float32), 1.0).dtype == jnp.float32
    assert theory.optimal_covariance(H, 1.0).dtype == jnp.float64
    assert positive_definite("H", [[2, 0], [0, 1]]).dtype == jnp.float64
    assert positive_definite("H", jnp.eye(2, dtype=jnp.bfloat16)).dtype == jnp.float32


I2 = np.eye(2)
BAD_INPUT = {
    "not square": (lambda: theory.optimal_covariance(np.ones((2, 3)), 1.0), r"H: must be a square matrix .* \(2, 3\)"),
    "a vector": (lambda: theory.price_of_isotropy(np.ones(3)), r"H: must be a square matrix .* \(3,\)"),
    "not finite": (
        lambda: theory.price_of_isotropy([[1.0, np.nan], [0.0, 1.0]]),
        r"H: must be finite, and H\[0, 1\] = nan",
    ),
    "not symmetric": (
        lambda: theory.price_of_isotropy([[1.0, 0.5], [0.25, 1.0]]),
        r"H: must be symmetric, and H\[0, 1\] = 0.5 differs from H\[1, 0\] = 0.25",
    ),
    "singular": (
        lambda: theory.prices(np.ones((2, 2)), I2),
        r"sigma: must be positive definite, and its eigenvalues range from .* to 2",
    ),
    "negative": (lambda: theory.gibbs_covariance(-I2, 1.0), "H: must be positive definite"),
    "other dimension": (lambda: theory.prices(I2, np.eye(3)), r"H: must have the shape \(2, 2\), got \(3, 3\)"),
    "no budget": (lambda: theory.optimal_covariance(I2, 0.0), r"c: must be finite and above 0, got 0.0"),
    "infinite budget": (lambda: theory.isotropic_covariance(I2, np.inf), "c: must be finite and above 0, got inf"),
    "condition number": (
        lambda: theory.worst_geometry(I2, 0.5),
        "condition_number: must be finite and at least 1, got 0.5",
    ),
    "condition number of a bound": (
        lambda: theory.least_price_of_isotropy(2, 0.5),
        "condition_number: must be finite and at least 1",
    ),
    "dimension of a bound": (lambda: theory.least_price_of_isotropy(1, 2.0), "dim: must be at least 2, got 1"),
    "correlation": (
        lambda: theory.coupling(I2, I2, -1.5),
        "rho: must be finite and at least -1 and at most 1, got -1.5",
    ),
    "correlation of a risk": (lambda: theory.irreducible_risk(I2, 1.5), "rho: must be finite"),
    "correlation of an excess": (lambda: theory.excess_risk(I2, I2, I2, 1.5), "rho: must be finite"),
    "rotation": (
        lambda: theory.coupling(I2, [[1.0, 0.1], [0.0, 1.0]], 0.5),
        "rotation: must be orthogonal, and an entry of UᵀU − I is as large as 0.1",
    ),
    "not quite symmetric": (lambda: theory.price_of_isotropy([[1.0, 1e-9], [0.0, 1.0]]), "H: must be symmetric"),
    "not quite a rotation": (lambda: theory.coupling(I2, (1.0 + 1e-9) * I2, 0.5), "rotation: must be orthogonal"),
    "wrong rotation": (lambda: theory.excess_risk(I2, I2, 2 * I2, 0.5), "wrong_rotation: must be orthogonal"),
    "rotation of other dimension": (
        lambda: theory.sample_pairs(jax.random.key(0), I2, np.eye(3), 0.5, 1),
        r"rotation: must have the shape \(2, 2\), got \(3, 3\)",
    ),
    "time": (lambda: theory.lift_flow(I2, np.nan), "time: must be finite, got nan"),
    "price": (
        lambda: theory.worst_geometry(I2, 2.0, price="trace"),
        "price: 'trace' is unknown; known prices: entropy, worst_direction, inverse_variance",
    ),
    "price of a search": (
        lambda: search_worst_geometry(jax.random.key(0), I2, 2.0, price="trace"),
        "price: 'trace' is unknown",
    ),
    "order": (
        lambda: search_optimum(jax.random.key(0), I2, 1.0, order=1.0),
        "order: must be finite and below 1, got 1.0",
    ),
    "entropy": (lambda: gaussian_entropy(np.zeros((2, 2))), "sigma: must be positive definite"),
    "divergence": (lambda: gaussian_divergence(I2, np.eye(3)), "reference: must have the shape"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_line(case):
    call, message = BAD_INPUT[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_rounding_is_no_bad_input_and_shapes_are_checked_under_jit(rng):
    for dim in (2, 64):
        H = random_positive_definite(rng, dim, 1e6)
        rotation = random_rotation(rng, dim)
        assert positive_definite("H", rotation @ H @ rotation.T).shape == (dim, dim)
        assert orthogonal("U", rotation @ rotation @ rotation, dim=dim).shape == (dim, dim)
    with pytest.raises(ValueError, match="H: must be a square matrix"):
        jax.eval_shape(theory.price_of_isotropy, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="rotation: must have the shape"):
        jax.eval_shape(partial(theory.coupling, rho=0.5), jnp.eye(2), jnp.eye(3))
