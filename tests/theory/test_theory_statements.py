"""The table of statements: all hold, none can pass when its closed form is wrong; and the pictures."""

import io
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from hamjepa_jax.errors import DisprovedError
from hamjepa_jax.stats import theory
from hamjepa_jax.theory import checks, curves, figures
from hamjepa_jax.theory.examples import Example, draw_example, random_rotation
from hamjepa_jax.theory.statements import CLAIMS, Statement, check_statements, print_table, require_all

pytestmark = pytest.mark.usefixtures("float64")

ERROR = 1e-6
PRICES = ("entropy", "worst_direction", "inverse_variance")
# Which checks, named without the price, must notice an error of one part in a million in each closed form.
NOTICED_BY = {
    "optimal_covariance": ["optimum_deviation", "gaussian_gap_deviation", "other_laws_gap_deviation"],
    "isotropic_covariance": ["entropy_price_deviation", "worst_direction_price_deviation"]
    + ["inverse_variance_price_deviation"],
    "price_of_isotropy": ["entropy_price_deviation", "worst_direction_price_deviation"]
    + ["inverse_variance_price_deviation"],
    "least_price_of_isotropy": ["least_price_deviation"],
    "prices": ["gaussian_gap_deviation", "other_laws_gap_deviation"],
    "worst_geometry": ["worst_geometry_deviation"],
    "coupling": ["marginal_deviation", "predictor_deviation", "irreducible_risk_deviation"]
    + ["excess_risk_deviation", "flow_coupling_deviation"],
    "irreducible_risk": ["irreducible_risk_deviation"],
    "excess_risk": ["excess_risk_deviation"],
    "gibbs_covariance": ["gibbs_quadrature_deviation", "langevin_deviation"],
    "lift_flow": ["flow_deviation", "symplectic_deviation", "invariance_deviation", "flow_coupling_deviation"],
}


def name_of(claim):
    return getattr(claim.deviation, "func", claim.deviation).__name__


def printed(statements):
    console = Console(file=io.StringIO(), width=150)
    print_table(statements, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def examples():
    with jax.enable_x64(True):
        yield {dim: draw_example(3, dim, 100.0) for dim in (2, 4)}


def test_every_statement_holds_and_is_in_the_table():
    statements = check_statements(seed=1, dims=(4,), condition_numbers=(1.0, 1e6))
    require_all(statements)
    assert len(statements) == len(CLAIMS) == 24
    assert max(statement.tolerance for statement in statements) <= 1e-8
    # Two ways of computing hardly ever agree in every digit.
    assert sum(statement.largest_deviation > 0 for statement in statements) == len(statements)
    table = printed(statements)
    assert "24 of 24 statements hold" in table
    for statement in statements:
        assert statement.statement in table
        assert f"{statement.largest_deviation:.1e}" in table


def test_a_statement_that_does_not_hold_is_marked():
    good, bad, lost = (
        Statement(name, "x", "y", found, 1e-8) for name, found in (("good", 1e-9), ("bad", 1e-3), ("lost", np.nan))
    )
    require_all([good])
    with pytest.raises(DisprovedError, match="^2 of 3 statements do not hold: bad; lost$"):
        require_all([good, bad, lost])
    table = printed([good, bad, lost])
    assert "1 of 3 statements hold" in table
    assert "> 1e-08: 1.0e-03" in table
    assert "> 1e-08: nan" in table
    assert "> 1e-08: 1.0e-09" not in table


def test_what_is_not_a_number_in_one_example_is_not_lost(monkeypatch):
    right = theory.excess_risk
    monkeypatch.setattr(theory, "excess_risk", lambda sigma, *rest: np.nan if len(sigma) == 2 else right(sigma, *rest))
    claims = [claim for claim in CLAIMS if name_of(claim) == "excess_risk_deviation"]
    monkeypatch.setattr("hamjepa_jax.theory.statements.CLAIMS", claims)
    (statement,) = check_statements(seed=0, dims=(2, 3), condition_numbers=(1.0,))
    assert not statement.holds


@pytest.mark.parametrize("closed_form", NOTICED_BY)
def test_an_error_of_a_millionth_in_a_closed_form_is_noticed(monkeypatch, examples, closed_form):
    right = getattr(theory, closed_form)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        if closed_form == "worst_geometry":
            # A scale is of no importance; another condition number is.
            return result + ERROR * np.linalg.eigvalsh(result)[-1] * np.eye(len(result))
        # An entropy of zero has no relative error.
        return jax.tree.map(lambda x: np.asarray(x) * (1 + ERROR) + ERROR * (np.ndim(x) == 0), result)

    watching = [claim for claim in CLAIMS if name_of(claim) in NOTICED_BY[closed_form]]
    assert {name_of(claim) for claim in watching} == set(NOTICED_BY[closed_form])
    monkeypatch.setattr(theory, closed_form, wrong)
    for claim in watching:
        assert claim.deviation(examples[claim.dim or 4]) > 0.1 * ERROR, claim


def test_every_claim_is_watched():
    assert {name for names in NOTICED_BY.values() for name in names} == {name_of(claim) for claim in CLAIMS}


@pytest.mark.parametrize("price", PRICES)
def test_a_search_that_goes_elsewhere_is_noticed(examples, price):
    example = examples[4]
    elsewhere = dict.fromkeys(PRICES, (1 + ERROR) * example.optima[price])
    other = Example(**{name: getattr(example, name) for name in Example.__dataclass_fields__})
    other.__dict__["optima"] = elsewhere
    assert checks.optimum_deviation(other, price=price) == pytest.approx(ERROR, rel=1e-2)


def test_examples_have_their_condition_number_and_share_nothing(examples):
    example = examples[4]
    assert np.linalg.cond(example.H) == pytest.approx(100.0)
    assert np.linalg.cond(example.sigma) == pytest.approx(50.0)
    assert np.vdot(example.H, example.sigma) == pytest.approx(example.c)
    assert (
        np.abs(example.H @ example.sigma - example.sigma @ example.H).max()
        > 0.01 * np.abs(example.H @ example.sigma).max()
    )
    again, other = draw_example(3, 4, 100.0), draw_example(4, 4, 100.0)
    assert np.array_equal(again.H, example.H)
    assert not np.array_equal(other.H, example.H)
    # Haar's law has no preferred sign.
    rng = np.random.default_rng(0)
    traces = [np.trace(random_rotation(rng, 3)) for _ in range(2000)]
    assert abs(np.mean(traces)) < 5 * np.std(traces) / np.sqrt(2000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": (1,)}, "dims: must be finite and at least 2, got 1"),
        ({"condition_numbers": (0.5,)}, "condition_numbers: must be finite and at least 1, got 0.5"),
        ({"dims": ()}, "dims: must not be empty"),
    ],
)
def test_bad_input_gets_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_statements(seed=0, **arguments)


def test_searched_prices_lie_on_the_closed_forms():
    data = curves.price_of_isotropy(seed=0, dim=4)
    h = np.geomspace(1.0, data["condition_numbers"][-1], 4)
    assert data["closed_form"]["entropy"][-1] == pytest.approx(np.mean(h) / np.exp(np.mean(np.log(h))))
    at = np.searchsorted(data["condition_numbers"], 0.999 * data["searched_at"])
    for price in PRICES:
        np.testing.assert_allclose(data["searched"][price], np.asarray(data["closed_form"][price])[at], rtol=1e-8)
        assert np.all(np.diff(data["closed_form"][price]) > 0)
        assert data["closed_form"][price][0] == pytest.approx(1.0)


def test_only_the_marginal_that_knows_the_geometry_is_free_in_the_worst_case():
    prices = curves.worst_geometry(seed=0, dim=4)["prices"]
    guess, isotropic, known = (np.asarray(price) for price in prices.values())
    assert np.all(np.abs(known) < 1e-9)
    assert np.all(guess > isotropic)
    assert np.all(isotropic[1:] > 1e-4)


def test_the_entropy_gap_is_the_divergence_and_vanishes_at_the_optimum_only():
    data = curves.entropy_gap(seed=0, dim=4)
    np.testing.assert_allclose(data["gaps"], data["divergences"], atol=1e-11)
    assert data["exponents"][np.argmin(data["gaps"])] == pytest.approx(1.0)
    assert np.sum(np.abs(data["gaps"]) < 1e-9) == 1


def test_the_risk_depends_on_the_angle_and_the_marginal_does_not():
    data = curves.coupling_risk(seed=0, num_seeds=4, num_pairs=1000)
    at = np.searchsorted(data["angles"], data["sampled_at"] - 1e-9)
    error = data["sampled"].std(1, ddof=1) / 2
    expected = np.asarray(data["closed_form"])[at]
    assert np.all(np.abs(data["sampled"].mean(1) - expected) < 0.03 * expected + 6 * error + 1e-9)
    assert expected[-1] == pytest.approx(4 * 0.81 / 0.19)
    assert data["statistics"].mean() == pytest.approx(data["expected_statistic"], rel=0.3)
    assert np.all(data["statistics"].mean(1) < 3 * data["expected_statistic"])


def test_pictures_are_drawn_from_their_numbers(monkeypatch, tmp_path):
    line = np.linspace(1.0, 10.0, 5)
    prices = dict.fromkeys(PRICES, line)
    numbers = {
        "price_of_isotropy": {
            "dim": 2,
            "condition_numbers": line,
            "closed_form": prices,
            "searched_at": line,
            "searched": prices,
        },
        "worst_geometry": {"dim": 2, "condition_numbers": line, "prices": prices},
        "entropy_gap": {"exponents": line, "gaps": line, "divergences": line, "dim": 2, "condition_number": 4.0},
        "coupling_risk": {
            "angles": line,
            "closed_form": line,
            "sampled_at": line,
            "sampled": np.ones((5, 3)),
            "statistics": np.ones((5, 3)),
            "expected_statistic": 1.0,
            "num_pairs": 10,
        },
    }
    for name, data in numbers.items():
        monkeypatch.setattr(curves, name, lambda *, seed, data=data: data)
    paths = figures.draw_all(tmp_path / "pictures")
    names = [f"theory_{name}.png" for name in ("price_of_isotropy", "worst_geometry", "entropy_gap", "coupling_risk")]
    assert [path.name for path in paths] == names
    for path in paths:
        assert path.parent == Path(tmp_path / "pictures")
        image = matplotlib.image.imread(path)
        assert min(image.shape[:2]) > 500
        # Axes, ticks and lines on white.
        assert 0.005 < np.mean(np.any(image[..., :3] < 0.9, axis=-1)) < 0.5
