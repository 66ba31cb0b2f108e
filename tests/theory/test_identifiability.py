"""What learners of a coupling see, keep and are measured by."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from hamjepa_jax.dynamics import geometry, predictors
from hamjepa_jax.theory import identifiability, identifiability_figures

pytestmark = pytest.mark.usefixtures("float64")

RHO, NUM_TRAINING, NUM_STEPS = 0.9, 200, 300
LEARNERS = identifiability.make_learners(time=1.0)


@cache
def problem():
    """One problem for all tests."""
    settings = {"dim": 4, "condition_number": 10.0, "time": 1.0, "rho": RHO, "num_training": NUM_TRAINING}
    return jax.jit(partial(identifiability.draw_problem, **settings))(jax.random.key(3))


@partial(jax.jit, static_argnames="name")
def fitted(problem, num_pairs, *, name="linear"):
    return identifiability.fit(jax.random.key(0), LEARNERS[name], problem, num_pairs, num_steps=NUM_STEPS)


def assessed(matrix, offset=0.0):
    """How the map z ↦ Mz + b does."""
    return assess_affine(problem(), {"layers": [{"kernel": matrix.T, "bias": jnp.full(8, offset)}]})


@jax.jit
def assess_affine(problem, params):
    return identifiability.assess(jax.random.key(0), predictors.linear(), params, problem)


def exact_flow():
    return problem().coupling.predictor / RHO


def same(first, second):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), first, second)))


def test_the_stiffness_has_the_condition_number():
    H = identifiability.random_stiffness(jax.random.key(0), 5, 10.0)
    np.testing.assert_allclose(np.linalg.eigvalsh(H)[[0, -1]], [10.0**-0.5, 10.0**0.5], rtol=1e-12)
    assert np.max(np.abs(H - np.diag(np.diagonal(H)))) > 0.1
    assert not same(H, identifiability.random_stiffness(jax.random.key(1), 5, 10.0))


def test_the_coupling_is_a_symplectic_flow_that_keeps_the_marginal():
    flow, sigma = exact_flow(), problem().sigma
    assert geometry.defect_of_jacobian(flow) < 1e-12
    assert jnp.max(jnp.abs(flow - jnp.eye(8))) > 0.3
    np.testing.assert_allclose(flow @ sigma @ flow.T, sigma, atol=1e-12)
    np.testing.assert_allclose(problem().whitening @ sigma @ problem().whitening, jnp.eye(8), atol=1e-12)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_pairs_are_those_of_the_coupling(part):
    z, target = getattr(problem(), part)
    noise = (target - z @ problem().coupling.predictor.T) @ problem().whitening / np.sqrt(1 - RHO**2)
    for standard in (z @ problem().whitening, noise):
        squares = np.sum(np.square(standard))
        assert abs(squares - standard.size) < 4 * np.sqrt(2 * standard.size)
    # The noise is independent of z.
    assert np.max(np.abs(noise.T @ z @ problem().whitening)) < 4.5 * np.sqrt(len(z))


def test_no_view_is_used_twice():
    problem_ = problem()
    views = jnp.concatenate([problem_.training[0], problem_.validation[0]])
    assert len(np.unique(np.asarray(views), axis=0)) == NUM_TRAINING + identifiability.NUM_VALIDATION
    # Moving held-out views to exact moments keeps them near where they were drawn.
    distances = jnp.linalg.norm(problem_.held_out[:, None, 0] - views[None, :, 0], axis=0)
    assert problem_.held_out.shape == (identifiability.NUM_HELD_OUT, 8)
    assert jnp.min(distances) > 1.0


@pytest.mark.parametrize("num_pairs", [12, NUM_TRAINING - 1])
def test_a_learner_sees_the_first_pairs_and_no_others(num_pairs):
    def with_changed(row):
        z, target = problem().training
        return problem()._replace(training=(z, target.at[row].add(1.0)))

    found = fitted(problem(), num_pairs)
    assert same(found, fitted(with_changed(num_pairs), num_pairs))
    assert not same(found, fitted(with_changed(num_pairs - 1), num_pairs))


def test_sigreg_sees_views_and_no_pairs():
    z, target = problem().training
    validation_z, validation_target = problem().validation
    without_pairs = problem()._replace(training=(z, 5 * target[::-1]), validation=(validation_z, -validation_target))
    other_views = problem()._replace(training=(2 * z, target))
    found = fitted(problem(), 64, name="SIGReg alone")
    assert same(found, fitted(without_pairs, 64, name="SIGReg alone"))
    assert not same(found, fitted(other_views, 64, name="SIGReg alone"))
    assert not same(fitted(problem(), 64), fitted(without_pairs, 64))


def test_what_is_kept_did_best_in_validation():
    num_pairs = 8
    predictor, (z, target) = LEARNERS["linear"].predictor, problem().training
    optimizer = optax.adam(optax.cosine_decay_schedule(identifiability.LEARNING_RATE, NUM_STEPS))

    @jax.jit
    def step(params, state):
        def risk(params, z, target):
            return jnp.mean(jnp.sum((predictor.apply(params, z) - target) ** 2, axis=-1))

        rows = jnp.arange(identifiability.BATCH_SIZE) % num_pairs
        updates, state = optimizer.update(jax.grad(risk)(params, z[rows], target[rows]), state)
        params = optax.apply_updates(params, updates)
        return params, state, risk(params, *problem().validation)

    params = predictor.init(jax.random.split(jax.random.key(0), 3)[0], 8)
    state, losses, all_params = optimizer.init(params), [], []
    for _ in range(NUM_STEPS):
        params, state, loss = step(params, state)
        losses.append(float(loss))
        all_params.append(params)
    best = int(np.argmin(losses))
    found, lowest = fitted(problem(), num_pairs)
    assert losses[best] < losses[-1] - 1e-3
    assert lowest == pytest.approx(losses[best], rel=1e-9)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-7), found, all_params[best])


def test_moments_are_matched_exactly():
    z = 1.0 + jax.random.normal(jax.random.key(0), (20, 8)) * jnp.arange(1, 9)
    matched = identifiability.match_moments(z, problem().sigma)
    np.testing.assert_allclose(jnp.mean(matched, axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(jnp.cov(matched, rowvar=False, bias=True), problem().sigma, atol=1e-12)


def test_the_excess_risk_of_an_affine_map_is_exact_and_that_of_fresh_pairs():
    sigma, best = problem().sigma, problem().coupling.predictor
    irreducible = (1 - RHO**2) * jnp.trace(sigma)
    matrix, offset = best + 0.2 * jax.random.normal(jax.random.key(5), (8, 8)), 0.3
    found = assessed(matrix, offset)
    closed_form = jnp.trace((matrix - best) @ sigma @ (matrix - best).T) + 8 * offset**2
    np.testing.assert_allclose(found["excess_risk"], closed_form / irreducible, rtol=1e-10)
    error = matrix @ sigma @ matrix.T - sigma
    np.testing.assert_allclose(found["covariance_error"], jnp.linalg.norm(error) / jnp.linalg.norm(sigma), rtol=1e-10)

    z, noise = np.random.default_rng(0).normal(size=(2, 100_000, 8)) @ np.linalg.inv(problem().whitening)
    target = z @ np.asarray(best).T + np.sqrt(1 - RHO**2) * noise
    losses = np.sum((z @ np.asarray(matrix).T + offset - target) ** 2, axis=-1)
    standard_error = np.std(losses) / np.sqrt(len(losses))
    assert abs(np.mean(losses) - irreducible * (1 + found["excess_risk"])) < 4 * standard_error
    assert standard_error < 0.02 * irreducible * found["excess_risk"]


def test_the_oracles():
    best = assessed(problem().coupling.predictor)
    for measure in ("excess_risk", "coupling_error"):
        assert best[measure] < 1e-10
    assert best["covariance_error"] == pytest.approx(1 - RHO**2)

    exact = assessed(exact_flow())
    assert exact["excess_risk"] == pytest.approx((1 - RHO) / (1 + RHO))
    assert exact["coupling_error"] == pytest.approx((1 - RHO) / RHO)
    assert exact["covariance_error"] < 1e-10
    assert exact["symplectic_defect"] < 1e-10 < 0.05 < best["symplectic_defect"]
    np.testing.assert_allclose(exact["jacobian"], exact_flow(), atol=1e-12)


def test_another_coupling_of_the_same_marginals_has_the_risk_that_it_should():
    root = np.linalg.inv(problem().whitening)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0]
    other = root @ rotation @ problem().whitening
    found = assessed(other)
    # SIGReg of exact marginals is 1.05 on average, and that of shrunk ones far above.
    assert found["sigreg"] < 3.0 < 10.0 < assessed(0.6 * other)["sigreg"]
    assert found["covariance_error"] < 1e-10
    trace = jnp.trace(problem().sigma)
    overlap = jnp.trace(other @ problem().sigma @ exact_flow().T)
    expected = ((1 + RHO**2) * trace - 2 * RHO * overlap) / ((1 - RHO**2) * trace)
    np.testing.assert_allclose(found["excess_risk"], expected, rtol=1e-10)
    assert found["coupling_error"] > 1.0


def test_the_measures_of_a_nonlinear_map_are_averages():
    bent = predictors.Predictor(lambda key, state_dim: (), lambda params, z: z + 0.1 * z**2)
    found = jax.jit(lambda problem: identifiability.assess(jax.random.key(0), bent, (), problem))(problem())
    stretching = 1.0 + 0.2 * problem().held_out[: identifiability.NUM_JACOBIANS]
    np.testing.assert_allclose(found["jacobian"], jnp.diag(jnp.mean(stretching, axis=0)), atol=1e-12)
    # JᵀΩJ − Ω of J = diag(a, b) has the entries ±(aᵢbᵢ − 1).
    areas = stretching[:, :4] * stretching[:, 4:]
    np.testing.assert_allclose(found["symplectic_defect"], jnp.mean(jnp.max(jnp.abs(areas - 1.0), axis=1)), rtol=1e-10)


def test_the_mlp_has_as_many_parameters_as_the_flow():
    flow, mlp = (predictors.num_parameters(LEARNERS[name].predictor, 8) for name in ("Hamiltonian flow", "MLP"))
    assert flow == mlp == 229


def test_pairs_tell_the_coupling_and_marginals_do_not():
    few, many = (assess_affine(problem(), fitted(problem(), num_pairs)[0]) for num_pairs in (16, 128))
    assert many["excess_risk"] < 0.3 * few["excess_risk"]
    assert many["coupling_error"] < 0.15
    assert many["symplectic_defect"] > 0.1

    params, _ = fitted(problem(), 128, name="SIGReg alone")
    marginals_alone = assess_affine(problem(), params)
    start = LEARNERS["SIGReg alone"].predictor.init(jax.random.key(0), 8)
    assert marginals_alone["sigreg"] < 0.2 * assess_affine(problem(), start)["sigreg"]
    assert marginals_alone["coupling_error"] > 1.0
    assert marginals_alone["excess_risk"] > 20 * many["excess_risk"]


@pytest.fixture(scope="module")
def learned():
    """What the flow recovers in 150 steps, in single precision, and the problems that it was set."""
    name, original, problems = "Hamiltonian flow", identifiability.fit_and_assess, []

    def fit_and_assess(keys, learner, problems_, num_pairs, **settings):
        problems.append(problems_)
        return original(keys, learner, problems_, num_pairs, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identifiability, "make_learners", lambda *, time: {name: LEARNERS[name]})
        patch.setattr(identifiability, "fit_and_assess", fit_and_assess)
        return identifiability.learn_couplings(seeds=(4, 7), num_pairs=(16, 256), num_steps=150), problems[0]


@pytest.fixture(scope="module")
def results(learned):
    return learned[0]


def test_each_seed_has_its_own_coupling_and_views(learned):
    results, problems = learned
    for arrays in (problems.coupling.predictor, problems.training[0], problems.validation[1], problems.held_out):
        assert np.mean(np.abs(np.diff(arrays, axis=0))) > 0.1
    np.testing.assert_array_equal(np.float32(results["best_predictor"]), problems.coupling.predictor[0])


def test_the_flow_learns_from_few_pairs_and_stays_symplectic(results):
    found = {measure: np.array(values) for measure, values in results["learners"]["Hamiltonian flow"].items()}
    assert np.all(found["symplectic_defect"] < 1e-5)
    assert np.all(found["excess_risk"][0] < 0.7)
    assert np.all(found["excess_risk"][1] < 0.5 * found["excess_risk"][0])
    assert np.all(found["coupling_error"][1] < 0.1)


def test_results_are_plain_and_each_seed_has_its_own(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert (results["num_pairs"], results["seeds"], results["rho"]) == ([16, 256], [4, 7], 0.95)
    for learner in results["learners"].values():
        for values in learner.values():
            assert np.shape(values) == (2, 2)
        assert len(np.unique(learner["coupling_error"])) == 4
    best = np.array(results["best_predictor"])
    for name, matrix in results["recovered"].items():
        error = np.linalg.norm(np.array(matrix) - best) / np.linalg.norm(best)
        assert error == pytest.approx(results["learners"][name]["coupling_error"][-1][0], rel=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": [1]}, r"seeds: must be at least two, got \[1\]"),
        ({"num_pairs": []}, r"num_pairs: must be positive and ascending, got \[\]"),
        ({"num_pairs": [32, 16]}, r"num_pairs: must be positive and ascending, got \[32, 16\]"),
        ({"num_pairs": [0, 16]}, r"num_pairs: must be positive and ascending, got \[0, 16\]"),
        ({"rho": 1.0}, "rho: must be at least 0 and below 1, got 1.0"),
        ({"condition_number": 0.5}, "condition_number: must be finite and at least 1, got 0.5"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        identifiability.learn_couplings(**wrong)


@pytest.fixture
def drawable():
    """Results by hand: of three numbers of pairs and two seeds."""
    values = {"excess_risk": [[4.0, 6.0], [1.25, 1.25], [0.1, 0.3]], "sigreg": [[9.0, 9.0], [3.0, 3.0], [1.0, 2.0]]}
    values |= {measure: [[0.5, 0.5], [0.5, 0.5], [0.25, 0.35]] for measure in ("covariance_error", "coupling_error")}
    values["symplectic_defect"] = values["coupling_error"]
    names = list(LEARNERS)
    recovered = {name: np.eye(8).tolist() for name in names}
    return {"num_pairs": [16, 32, 64], "seeds": [0, 1], "rho": 0.95, "best_predictor": np.eye(8).tolist()} | {
        "learners": dict.fromkeys(names, values),
        "recovered": recovered,
    }


def test_both_pictures_are_drawn(drawable, tmp_path):
    paths = identifiability_figures.draw_all(drawable, tmp_path / "images")
    assert [path.name for path in paths] == [
        "theory_identifiability_pairs.png",
        "theory_identifiability_coupling.png",
    ]
    for path in paths:
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_names_beside_lines_keep_apart():
    axes = Figure().subplots()
    identifiability_figures._name_lines(axes, 1, {"b": (0.11, "k"), "a": (0.1, "k"), "c": (5.0, "k")}, apart=0.2)
    heights = {text.get_text(): np.log10(text.xy[1]) for text in axes.texts}
    assert heights == pytest.approx({"a": -1.0, "b": -0.8, "c": np.log10(5.0)})


def test_the_table_has_means_and_deviations_of_every_learner(drawable):
    console = Console(width=80, record=True)
    identifiability_figures.print_table(drawable, console)
    text = console.export_text()
    lines = text.splitlines()
    for name in LEARNERS:
        (line,) = [line for line in lines if line.startswith(name + " ")]
        assert " ".join(line.split()) == f"{name} 5 ± 1 1.25 0.2 ± 0.1 1.5 ± 0.7 30 ± 7"
    assert "the exact flow is 0.026" in text
