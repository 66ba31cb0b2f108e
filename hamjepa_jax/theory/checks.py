"""How far each closed form is from a computation that does not know it, on one random example."""

import math

import jax
import numpy as np
import scipy.linalg
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from hamjepa_jax.stats import theory
from hamjepa_jax.stats.gaussian import gaussian_divergence, gaussian_entropy
from hamjepa_jax.stats.power_means import ORDERS
from hamjepa_jax.stats.theory_search import search_worst_geometry
from hamjepa_jax.theory.examples import Example, symmetric_square_root


def optimum_deviation(example: Example, *, price: str) -> float:
    """The covariance that a search found, against (c/d)H⁻¹."""
    return _distance(example.optima[price], theory.optimal_covariance(example.H, example.c))


def entropy_price_deviation(example: Example) -> float:
    """Entropy of what the search found less that of the isotropic covariance, against (d/2)·log(AM/GM)."""
    found = _entropy(example.optima["entropy"]) - _entropy(theory.isotropic_covariance(example.H, example.c))
    return abs(found - float(theory.price_of_isotropy(example.H)["entropy"]))


def worst_direction_price_deviation(example: Example) -> float:
    """The largest uᵀΣ*u/uᵀΣu, a generalised eigenvalue, against tr H/(d·λmin)."""
    isotropic = np.asarray(theory.isotropic_covariance(example.H, example.c))
    found = scipy.linalg.eigh(example.optima["worst_direction"], isotropic, eigvals_only=True)[-1]
    return _relative(found, theory.price_of_isotropy(example.H)["worst_direction"])


def inverse_variance_price_deviation(example: Example) -> float:
    """The ratio of the mean inverse variances tr(HΣ)⁻¹ of the two covariances, against tr H·tr H⁻¹/d²."""
    isotropic = theory.isotropic_covariance(example.H, example.c)
    inverse = np.linalg.inv(example.H)
    of_isotropic, of_optimum = (
        np.trace(np.linalg.solve(sigma, inverse)) for sigma in (isotropic, example.optima["inverse_variance"])
    )
    return _relative(of_isotropic / of_optimum, theory.price_of_isotropy(example.H)["inverse_variance"])


def least_price_deviation(example: Example, *, price: str) -> float:
    """The least price of isotropy found over spectra 1 ≤ … ≤ κ, against `least_price_of_isotropy`."""
    dim, largest = len(example.H), math.log(example.condition_number)

    order = ORDERS[price]

    def log_price(log_h: np.ndarray) -> tuple[float, np.ndarray]:
        # All spectra have the smallest eigenvalue 1, as the first.
        lowest = np.eye(dim)[0]
        lower, slope = (0.0, lowest) if order == -math.inf else (_log_mean(log_h, order), softmax(order * log_h))
        return _log_mean(log_h, 1.0) - lower, softmax(log_h) - slope

    start = largest * np.random.default_rng(dim).uniform(size=dim)
    bounds = [(0.0, 0.0), (largest, largest), *[(0.0, largest)] * (dim - 2)]
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(log_price, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun
    least = float(theory.least_price_of_isotropy(dim, example.condition_number)[price])
    return abs(0.5 * dim * found - least) if price == "entropy" else _relative(math.exp(found), least)


def gaussian_gap_deviation(example: Example) -> float:
    """The entropy that N(0, Σ) lacks, as a difference, against its divergence from the optimum and its price."""
    optimum = theory.optimal_covariance(example.H, example.c)
    gap = _entropy(optimum) - _entropy(example.sigma)
    by_functions = gaussian_entropy(optimum) - gaussian_entropy(example.sigma)
    closed = (
        gaussian_divergence(example.sigma, optimum),
        theory.prices(example.sigma, example.H)["entropy"],
        by_functions,
    )
    return float(np.max(np.abs(np.asarray(closed) - gap)))


def other_laws_gap_deviation(example: Example) -> float:
    """By quadrature, KL(law ‖ N(0, Σ*)) and the entropy that the law lacks, for two laws that are not Gaussian.

    Their coordinates x are independent and of unit variance, uniform or Laplace's, and z = Σ^{1/2}x. They lack
    ½·log(πe/6) or ½·log(π/e) nats a coordinate against N(0, Σ), beside what that lacks.
    """
    dim = len(example.H)
    root = symmetric_square_root(example.sigma)
    optimum = np.asarray(theory.optimal_covariance(example.H, example.c))
    price = float(theory.prices(example.sigma, example.H)["entropy"])
    deviations = []
    for negentropy, nodes, weights, log_density in _unit_laws():
        x_NxD = np.stack(np.meshgrid(*[nodes] * dim), axis=-1).reshape(-1, dim)
        weight_N = np.prod(np.stack(np.meshgrid(*[weights] * dim), axis=-1), axis=-1).ravel()
        log_law_N = np.sum(log_density(x_NxD), axis=-1) - np.linalg.slogdet(root)[1]
        z_NxD = x_NxD @ root
        squares_N = np.sum(z_NxD * np.linalg.solve(optimum, z_NxD.T).T, axis=-1)
        log_optimum_N = -0.5 * (squares_N + np.linalg.slogdet(2 * math.pi * optimum)[1])
        divergence = weight_N @ (log_law_N - log_optimum_N)
        gap = _entropy(2.0 * math.pi * math.e * optimum) + weight_N @ log_law_N
        deviations += [abs(found - price - dim * negentropy) for found in (divergence, gap)]
    return max(deviations)


def _unit_laws():
    """Negentropy, quadrature nodes and weights, and log-density of the uniform and Laplace laws of unit variance."""
    bound, scale = math.sqrt(3.0), math.sqrt(0.5)
    nodes, weights = np.polynomial.legendre.leggauss(4)
    yield (
        0.5 * math.log(math.pi * math.e / 6),
        bound * nodes,
        weights / 2,
        lambda x: np.full_like(x, -math.log(2 * bound)),
    )
    nodes, weights = np.polynomial.laguerre.laggauss(4)
    nodes, weights = scale * np.concatenate([-nodes, nodes]), np.concatenate([weights, weights]) / 2
    yield 0.5 * math.log(math.pi / math.e), nodes, weights, lambda x: -np.abs(x) / scale - math.log(2 * scale)


def worst_geometry_deviation(example: Example, *, price: str) -> float:
    """The price of Σ under the worst geometry that a search found, against that under `worst_geometry`."""
    searched = search_worst_geometry(example.key, example.sigma, example.condition_number, price=price)
    worst = theory.worst_geometry(example.sigma, example.condition_number, price=price)
    found, wanted = (float(theory.prices(example.sigma, H)[price]) for H in (searched, worst))
    return abs(found - wanted) if price == "entropy" else _relative(found, wanted)


def marginal_deviation(example: Example) -> float:
    """The covariance of z' against Σ, and AΣAᵀ and the noise together against Σ."""
    _, target_NxD = example.pairs
    predictor, noise = (np.asarray(x) for x in theory.coupling(example.sigma, example.rotation, example.rho))
    total = predictor @ example.sigma @ predictor.T + noise
    return max(_distance(total, example.sigma), _distance(target_NxD.T @ target_NxD / len(target_NxD), example.sigma))


def predictor_deviation(example: Example) -> float:
    """The map that least squares finds, against the predictor of `coupling`, both in whitened coordinates."""
    predictor = np.asarray(theory.coupling(example.sigma, example.rotation, example.rho).predictor)
    root = symmetric_square_root(example.sigma)
    return float(np.max(np.abs(np.linalg.solve(root, (example.least_squares[0] - predictor) @ root))))


def irreducible_risk_deviation(example: Example) -> float:
    """The mean squared residual of least squares, against `irreducible_risk` and the trace of the coupling's noise."""
    _, risk = example.least_squares
    noise = theory.coupling(example.sigma, example.rotation, example.rho).noise_covariance
    closed = theory.irreducible_risk(example.sigma, example.rho), np.trace(noise)
    return max(_relative(risk, value) for value in closed)


def excess_risk_deviation(example: Example) -> float:
    """The mean squared error of the predictor of another rotation less that of the best, against `excess_risk`."""
    wrong = np.asarray(theory.coupling(example.sigma, example.wrong_rotation, example.rho).predictor)
    z_NxD, target_NxD = example.pairs
    excess = np.mean(np.sum((target_NxD - z_NxD @ wrong.T) ** 2, axis=-1)) - example.least_squares[1]
    return _relative(excess, theory.excess_risk(example.sigma, example.rotation, example.wrong_rotation, example.rho))


def gibbs_quadrature_deviation(example: Example) -> float:
    """Second moments of exp(−E/T) by the trapezoidal rule on a lattice of phase space, against `gibbs_covariance`."""
    dim, temperature = len(example.H), example.c / len(example.H)
    line = np.arange(-8.0, 8.1, 0.8)
    lattice = np.stack(np.meshgrid(*[line] * (2 * dim)), axis=-1).reshape(-1, 2 * dim)
    # Any lattice integrates the same; this one is as long and as narrow as the law.
    q_NxD = math.sqrt(temperature) * np.linalg.solve(np.linalg.cholesky(example.H).T, lattice[:, :dim].T).T
    p_NxD = math.sqrt(temperature) * lattice[:, dim:]
    energy_N = 0.5 * (np.sum(q_NxD @ example.H * q_NxD, axis=-1) + np.sum(p_NxD**2, axis=-1))
    weight_N = np.exp(-energy_N / temperature)
    z_NxD = np.concatenate([q_NxD, p_NxD], axis=-1)
    moments = (z_NxD * (weight_N / np.sum(weight_N))[:, None]).T @ z_NxD
    return _distance(moments, theory.gibbs_covariance(example.H, example.c))


def langevin_deviation(example: Example) -> float:
    """The stationary covariance of dq = p dt, dp = −Hq dt − Γp dt + √(2ΓT) dW, against `gibbs_covariance`.

    The law is the same for all frictions Γ. Critical damping, Γ = 2H^{1/2}, leaves the equation well conditioned.
    """
    temperature = example.c / len(example.H)
    friction = np.kron([[0.0, 0.0], [0.0, 1.0]], 2.0 * symmetric_square_root(example.H))
    drift, noise = _lift_field(example.H) - friction, 2.0 * temperature * friction
    stationary = scipy.linalg.solve_continuous_lyapunov(drift, -noise)
    return _distance(stationary, theory.gibbs_covariance(example.H, example.c))


def flow_deviation(example: Example) -> float:
    """The exponential of the lift's linear vector field, against `lift_flow`, in whitened coordinates."""
    flow, sigma, time = _flow(example)
    root = symmetric_square_root(sigma)
    difference = scipy.linalg.expm(time * _lift_field(example.H)) - flow
    return float(np.max(np.abs(np.linalg.solve(root, difference @ root))))


def symplectic_deviation(example: Example) -> float:
    """SᵀΩS against Ω, relative to the largest entry of S."""
    flow, _, _ = _flow(example)
    omega = np.kron([[0.0, 1.0], [-1.0, 0.0]], np.eye(len(example.H)))
    return float(np.max(np.abs(flow.T @ omega @ flow - omega)) / np.max(np.abs(flow)))


def invariance_deviation(example: Example) -> float:
    """SΣSᵀ against Σ."""
    flow, sigma, _ = _flow(example)
    return _distance(flow @ sigma @ flow.T, sigma)


def flow_coupling_deviation(example: Example) -> float:
    """UᵀU against I for U = Σ^{-1/2}SΣ^{1/2}, and the predictor of the coupling of U against S, whitened."""
    flow, sigma, _ = _flow(example)
    root = symmetric_square_root(sigma)
    rotation = np.linalg.solve(root, flow @ root)
    orthogonality = np.max(np.abs(rotation.T @ rotation - np.eye(len(rotation))))
    # Rounding may leave U less orthogonal than `coupling` asks of a rotation, so it gets the nearest that is.
    predictor = np.asarray(theory.coupling(sigma, scipy.linalg.polar(rotation)[0], 1.0).predictor)
    return float(max(orthogonality, np.max(np.abs(np.linalg.solve(root, (predictor - flow) @ root)))))


def _flow(example: Example) -> tuple[np.ndarray, np.ndarray, float]:
    """S, its Gibbs covariance, and the time, that of a typical frequency."""
    time = float(np.exp(-0.5 * np.linalg.slogdet(example.H)[1] / len(example.H)))
    flow = np.asarray(theory.lift_flow(example.H, time))
    return flow, np.asarray(theory.gibbs_covariance(example.H, example.c)), time


def _lift_field(H: np.ndarray) -> np.ndarray:
    """The matrix of q̇ = p, ṗ = −Hq."""
    zero = np.zeros_like(H)
    return np.block([[zero, np.eye(len(H))], [-H, zero]])


def _log_mean(log_values: np.ndarray, order: float) -> float:
    """The logarithm of the power mean."""
    return np.mean(log_values) if order == 0 else (logsumexp(order * log_values) - math.log(len(log_values))) / order


def _entropy(sigma: jax.Array) -> float:
    """The entropy of N(0, Σ), but for a constant."""
    return 0.5 * np.linalg.slogdet(np.asarray(sigma))[1]


def _distance(found: jax.Array, wanted: jax.Array) -> float:
    """The largest entry of B⁻¹(found)B⁻ᵀ − I with wanted = BBᵀ: a deviation relative to each direction's variance."""
    factor = np.linalg.cholesky(np.asarray(wanted))
    half = scipy.linalg.solve_triangular(factor, np.asarray(found), lower=True)
    whitened = scipy.linalg.solve_triangular(factor, half.T, lower=True)
    return float(np.max(np.abs(whitened - np.eye(len(whitened)))))


def _relative(found: float, wanted: float) -> float:
    return float(abs(found - wanted) / abs(wanted))
