"""Learning a coupling that marginals do not identify: the quadratic lift, its exact flow, and six learners.

Two views z and z' = ρS_t z + √(1 − ρ²)·Σ^{½}ε have the same Gibbs law N(0, Σ) of H(q, p) = ½qᵀHq + ½‖p‖², and S_t is
the exact flow of that energy. Many couplings have these marginals. Learners see a few pairs, and are asked how close
they come to the best predictor z ↦ ρS_t z.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hamjepa_jax.dynamics import energies, geometry, predictors
from hamjepa_jax.stats.floors import random_projection
from hamjepa_jax.stats.positive_definite import require_within, spectral_function, square_root
from hamjepa_jax.stats.slicing import random_directions, sigreg
from hamjepa_jax.stats.theory import Coupling, coupling, gibbs_covariance, lift_flow, sample_pairs

# Positions; and the width of the learned potential, for which some MLP of states has just as many parameters.
DIM, POTENTIAL_WIDTH = 4, 38
NUM_PAIRS = (16, 32, 64, 128, 256, 512, 1024)
NUM_VALIDATION, NUM_HELD_OUT = 256, 4096
# Of the held-out views, those that SIGReg and the Jacobian are evaluated on.
NUM_SIGREG, NUM_JACOBIANS = 1024, 256
NUM_DIRECTIONS = 16
BATCH_SIZE = 128
LEARNING_RATE = 0.03

Loss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


class Problem(NamedTuple):
    """A coupling, and the pairs that a learner may see.

    Attributes:
        sigma: covariance Σ (D, D) of either view.
        whitening: Σ^{-½} (D, D).
        coupling: the best predictor ρS_t (D, D), and the covariance of the noise.
        training: views z and z' (n, D) to learn from.
        validation: views z and z' for early stopping.
        held_out: further views z, of exactly the covariance Σ, see `match_moments`.
    """

    sigma: jax.Array
    whitening: jax.Array
    coupling: Coupling
    training: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]
    held_out: jax.Array


class Learner(NamedTuple):
    """What is fitted, and to what.

    Attributes:
        predictor: the family of maps.
        loss: `loss(key, prediction, target, whitening)`, a scalar.
    """

    predictor: predictors.Predictor
    loss: Loss


def prediction_risk(key: jax.Array, prediction: jax.Array, target: jax.Array, whitening: jax.Array) -> jax.Array:
    """The mean squared error of predictions, mean ‖ẑ' − z'‖²: what pairs are for."""
    del key, whitening
    chex.assert_equal_shape([prediction, target])
    return jnp.mean(jnp.sum(jnp.square(prediction - target), axis=-1))


def marginal_misfit(key: jax.Array, prediction: jax.Array, target: jax.Array, whitening: jax.Array) -> jax.Array:
    """SIGReg of whitened predictions Σ^{-½}ẑ' along random directions, which never sees what they should predict."""
    del target
    directions = random_directions(key, prediction.shape[-1], NUM_DIRECTIONS, prediction.dtype)
    return sigreg(prediction @ whitening, directions)


def make_learners(*, time: float, leapfrog_steps: int = 4) -> dict[str, Learner]:
    """The six learners by name.

    The Hamiltonian flow is leapfrog for ½‖p‖² + ½‖q‖² + f(q), with f an MLP of one hidden layer. Its base, for which H
    would be I, is also there on its own, so that what it brings along is known. The other MLP has one hidden layer too,
    and as many parameters.

    Args:
        time: time t of the flow.
        leapfrog_steps: number K of steps of size t/K.

    Returns:
        Learners of maps of states of size 2·`DIM`.
    """
    energy = energies.separable_mlp(hidden_dim=POTENTIAL_WIDTH, depth=1, base_coeff=1.0)
    leapfrog = partial(predictors.hamiltonian_flow, step_size=time / leapfrog_steps, num_steps=leapfrog_steps)
    flow = leapfrog(energy)

    def mlp(width: int) -> predictors.Predictor:
        return predictors.mlp(hidden_dim=width, depth=1)

    return {
        "SIGReg alone": Learner(predictors.linear(), marginal_misfit),
        "identity": Learner(predictors.identity(), prediction_risk),
        "flow with H = I": Learner(leapfrog(energies.quadratic()), prediction_risk),
        "MLP": Learner(mlp(predictors.matched_width(mlp, 2 * DIM, to=flow)), prediction_risk),
        "linear": Learner(predictors.linear(), prediction_risk),
        "Hamiltonian flow": Learner(flow, prediction_risk),
    }


def random_stiffness(key: jax.Array, dim: int, condition_number: float) -> jax.Array:
    """A random H with eigenvalues from 1/√κ to √κ, spaced evenly in their logarithms.

    Args:
        key: a typed PRNG key.
        dim: number d of positions.
        condition_number: κ.

    Returns:
        H (d, d), symmetric and positive definite.
    """
    eigenvectors = random_projection(key, dim, dim)
    eigenvalues = jnp.geomspace(condition_number**-0.5, condition_number**0.5, dim)
    return (eigenvectors * eigenvalues) @ eigenvectors.T


def draw_problem(
    key: jax.Array, *, dim: int, condition_number: float, time: float, rho: float, num_training: int
) -> Problem:
    """A random quadratic lift ½qᵀHq + ½‖p‖² at unit temperature, and pairs of its views.

    Σ = diag(H⁻¹, I), S_t is the exact flow, and z' = ρS_t z + √(1 − ρ²)·Σ^{½}ε.

    Args:
        key: a typed PRNG key.
        dim: number d of positions.
        condition_number: that of H.
        time: t.
        rho: correlation ρ of the two views, in [0, 1).
        num_training: number of training pairs.

    Returns:
        The problem.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    stiffness_key, sample_key = jax.random.split(key)
    stiffness = random_stiffness(stiffness_key, dim, condition_number)
    sigma = gibbs_covariance(stiffness, dim)
    whitening = spectral_function(sigma, jax.lax.rsqrt)
    rotation = whitening @ lift_flow(stiffness, time) @ square_root(sigma)
    ends = (num_training, num_training + NUM_VALIDATION)
    z, target = sample_pairs(sample_key, sigma, rotation, rho, ends[-1] + NUM_HELD_OUT)
    (*seen, held_out), targets = jnp.split(z, ends), jnp.split(target, ends)
    training, validation = zip(seen, targets[:2], strict=True)
    return Problem(
        sigma, whitening, coupling(sigma, rotation, rho), training, validation, match_moments(held_out, sigma)
    )


def fit(
    key: jax.Array, learner: Learner, problem: Problem, num_pairs: chex.Numeric, *, num_steps: int
) -> tuple[predictors.Params, jax.Array]:
    """Trains with Adam on the first pairs, and keeps what did best on the validation pairs.

    The learning rate falls to zero along a cosine. A batch takes the next `BATCH_SIZE` of the pairs, again and again
    in the same order; where there are fewer pairs, all of them are in every batch.

    Args:
        key: a typed PRNG key.
        learner: what is trained.
        problem: the pairs.
        num_pairs: how many of the training pairs are seen, which may be traced.
        num_steps: steps of Adam.

    Returns:
        The parameters after the step with the lowest validation loss, and that loss.
    """
    init_key, batch_key, validation_key = jax.random.split(key, 3)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))

    def loss(params: predictors.Params, key: jax.Array, pairs: tuple[jax.Array, jax.Array]) -> jax.Array:
        z, target = pairs
        return learner.loss(key, learner.predictor.apply(params, z), target, problem.whitening)

    def advance(carry: tuple, step: jax.Array) -> tuple[tuple, None]:
        params, state, best, lowest = carry
        rows = (step * BATCH_SIZE + jnp.arange(BATCH_SIZE)) % num_pairs
        batch = jax.tree.map(lambda views: views[rows], problem.training)
        updates, state = optimizer.update(jax.grad(loss)(params, jax.random.fold_in(batch_key, step), batch), state)
        params = optax.apply_updates(params, updates)
        found = loss(params, validation_key, problem.validation)
        best = jax.tree.map(lambda new, old: jnp.where(found < lowest, new, old), params, best)
        return (params, state, best, jnp.minimum(found, lowest)), None

    params = learner.predictor.init(init_key, problem.sigma.shape[0])
    start = (params, optimizer.init(params), params, jnp.asarray(jnp.inf, problem.sigma.dtype))
    return jax.lax.scan(advance, start, jnp.arange(num_steps))[0][2:]


def match_moments(z: jax.Array, sigma: jax.Array) -> jax.Array:
    """Moves a sample to exactly mean zero and covariance Σ, so that quadratic errors of affine maps are exact.

    Args:
        z: sample (N, D), N > D.
        sigma: Σ (D, D).

    Returns:
        A sample (N, D).
    """
    z = z - jnp.mean(z, axis=0)
    found, wanted = jnp.linalg.cholesky(z.T @ z / len(z)), jnp.linalg.cholesky(sigma)
    return jax.scipy.linalg.solve_triangular(found, z.T, lower=True).T @ wanted.T


def assess(key: jax.Array, predictor: predictors.Predictor, params: predictors.Params, problem: Problem) -> dict:
    """How good a learned map f is, and what it recovered.

    Args:
        key: a typed PRNG key, for the directions of SIGReg.
        predictor: the family of maps.
        params: the learned parameters.
        problem: what was to be learned.

    Returns:
        excess_risk: E‖f(z) − ρS_t z‖² over the irreducible risk (1 − ρ²)·tr Σ. Exact for affine maps.
        covariance_error: ‖cov f(z) − Σ‖/‖Σ‖ in Frobenius norms. Exact for affine maps.
        sigreg: SIGReg of Σ^{-½}f(z) for fresh z.
        coupling_error: ‖J − ρS_t‖/‖ρS_t‖ of the mean Jacobian J.
        symplectic_defect: mean over z of the largest entry of |JᵀΩJ − Ω|.
        jacobian: J (D, D).
    """

    def predict(z: jax.Array) -> jax.Array:
        return predictor.apply(params, z)

    best = problem.coupling.predictor
    z = problem.held_out
    prediction = predict(z)
    excess_risk = jnp.mean(jnp.sum(jnp.square(prediction - z @ best.T), axis=-1))
    jacobians = geometry.jacobian(predict, z[:NUM_JACOBIANS])
    jacobian = jnp.mean(jacobians, axis=0)
    return {
        "excess_risk": excess_risk / jnp.trace(problem.coupling.noise_covariance),
        "covariance_error": _relative_error(jnp.cov(prediction, rowvar=False, bias=True), problem.sigma),
        "sigreg": marginal_misfit(key, prediction[:NUM_SIGREG], None, problem.whitening),
        "coupling_error": _relative_error(jacobian, best),
        "symplectic_defect": jnp.mean(geometry.defect_of_jacobian(jacobians)),
        "jacobian": jacobian,
    }


def _relative_error(found: jax.Array, wanted: jax.Array) -> jax.Array:
    return jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted)


@partial(jax.jit, static_argnames=("learner", "num_steps"))
def fit_and_assess(
    keys: jax.Array, learner: Learner, problems: Problem, num_pairs: jax.Array, *, num_steps: int
) -> dict[str, jax.Array]:
    """Fits a learner to every problem from every number of pairs, all in one program, see `fit` and `assess`.

    Args:
        keys: a typed PRNG key for each problem (S,).
        learner: what is trained.
        problems: problems, stacked along a new first axis.
        num_pairs: numbers of pairs (N,).
        num_steps: steps of Adam.

    Returns:
        What `assess` returns, and the lowest `validation_loss`, along two new first axes (S, N).
    """

    def of_problem(key: jax.Array, problem: Problem) -> dict[str, jax.Array]:
        fit_key, directions_key = jax.random.split(key)

        def of_number(number: jax.Array) -> dict[str, jax.Array]:
            params, validation_loss = fit(fit_key, learner, problem, number, num_steps=num_steps)
            found = assess(directions_key, learner.predictor, params, problem)
            return found | {"validation_loss": validation_loss}

        return jax.vmap(of_number)(num_pairs)

    return jax.vmap(of_problem)(keys, problems)


def learn_couplings(
    *,
    seeds: Sequence[int] = range(5),
    num_pairs: Sequence[int] = NUM_PAIRS,
    num_steps: int = 400,
    condition_number: float = 10.0,
    time: float = 1.0,
    rho: float = 0.95,
) -> dict[str, Any]:
    """What every learner recovers of the coupling, from every number of pairs and for every seed.

    A seed draws H, the views, the initial parameters and the directions of SIGReg; fewer pairs are the first of more.

    Args:
        seeds: two seeds or more.
        num_pairs: numbers n of training pairs, ascending.
        num_steps: steps of Adam.
        condition_number: that of H.
        time: time t of the flow.
        rho: correlation ρ of the two views, in [0, 1).

    Returns:
        What JSON can hold: `num_pairs`, `seeds`, `rho`; `learners`, by name, with what `fit_and_assess` returns but
        for the Jacobian, as lists [n][seed]; and of the first seed `best_predictor`, and `recovered`, by name, the mean
        Jacobians learned from the most pairs.

    Raises:
        ValueError: if an argument is not as described.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    num_pairs, seeds = list(num_pairs), list(seeds)
    if len(seeds) < 2:
        raise ValueError(f"seeds: must be at least two, got {seeds}")
    if not num_pairs or num_pairs != sorted(set(num_pairs)) or num_pairs[0] < 1:
        raise ValueError(f"num_pairs: must be positive and ascending, got {num_pairs}")
    require_within("condition_number", condition_number, least=1)
    if not 0 <= rho < 1:
        raise ValueError(f"rho: must be at least 0 and below 1, got {rho}")
    settings = {"dim": DIM, "condition_number": condition_number, "time": time, "rho": rho}
    keys_Sx2 = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(jnp.asarray(seeds))
    problems = jax.jit(jax.vmap(partial(draw_problem, num_training=num_pairs[-1], **settings)))(keys_Sx2[:, 0])
    results = {"num_pairs": num_pairs, "seeds": seeds, "rho": rho, "learners": {}, "recovered": {}}
    results["best_predictor"] = problems.coupling.predictor[0].tolist()
    for name, learner in make_learners(time=time).items():
        found = fit_and_assess(keys_Sx2[:, 1], learner, problems, jnp.asarray(num_pairs), num_steps=num_steps)
        results["recovered"][name] = found.pop("jacobian")[0, -1].tolist()
        results["learners"][name] = {measure: np.asarray(values).T.tolist() for measure, values in found.items()}
    return results
