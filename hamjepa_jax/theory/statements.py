"""The statements of the theory as a table: each closed form beside a computation that does not know it.

The closed forms are those of `stats.theory`. The computations are searches, quadratures, and linear algebra of NumPy
and SciPy, over random geometries.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from hamjepa_jax.errors import DisprovedError
from hamjepa_jax.stats.positive_definite import require_within
from hamjepa_jax.theory import checks
from hamjepa_jax.theory.examples import Example, draw_example

TOLERANCE = 1e-8
# Searches over geometries and lattices of quadrature soon become large.
SEARCH_DIM, QUADRATURE_DIM = 4, 2


class Statement(NamedTuple):
    """A statement, and how far its closed form is from what was computed.

    Attributes:
        statement: in words.
        closed_form: the equation.
        numerical_check: what was computed instead.
        largest_deviation: over all examples; relative, but for entropies, which are in nats.
        tolerance: the largest that is accepted.
    """

    statement: str
    closed_form: str
    numerical_check: str
    largest_deviation: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the tolerance; one that is not a number is not."""
        return self.largest_deviation <= self.tolerance


class Claim(NamedTuple):
    """A statement that is still to be checked.

    Attributes:
        statement: in words.
        closed_form: the equation.
        numerical_check: what is computed instead.
        deviation: from an example to the deviation between the two.
        dim: the one dimension in which that is quick, or None where it is so in all.
    """

    statement: str
    closed_form: str
    numerical_check: str
    deviation: Callable[[Example], float]
    dim: int | None = None


CLAIMS = (
    Claim(
        "the most entropy",
        "Σ* = (c/d)H⁻¹",
        "ascent of the geometric mean of y",
        partial(checks.optimum_deviation, price="entropy"),
    ),
    Claim(
        "the largest smallest variance",
        "Σ* = (c/d)H⁻¹",
        "ascent of the mean of order −8",
        partial(checks.optimum_deviation, price="worst_direction"),
    ),
    Claim(
        "the least inverse variance",
        "Σ* = (c/d)H⁻¹",
        "ascent of the harmonic mean of y",
        partial(checks.optimum_deviation, price="inverse_variance"),
    ),
    Claim(
        "isotropy: entropy lost",
        "(d/2)·log(AM/GM)",
        "entropy found − that of (c/tr H)I",
        checks.entropy_price_deviation,
    ),
    Claim(
        "isotropy: worst direction",
        "tr H/(d·λmin)",
        "generalised eigenvalue of what was found",
        checks.worst_direction_price_deviation,
    ),
    Claim(
        "isotropy: inverse variance",
        "tr H·tr H⁻¹/d²",
        "its inverse variance / that of the found",
        checks.inverse_variance_price_deviation,
    ),
    Claim(
        "isotropy is free for H ∝ I only: entropy",
        "≥ log((1 + κ)/(2√κ))",
        "descent over spectra",
        partial(checks.least_price_deviation, price="entropy"),
    ),
    Claim(
        "… worst direction",
        "≥ (d − 1 + κ)/d",
        "descent over spectra",
        partial(checks.least_price_deviation, price="worst_direction"),
    ),
    Claim(
        "… inverse variance",
        "≥ ((d − 2 + √κ + 1/√κ)/d)²",
        "descent over spectra",
        partial(checks.least_price_deviation, price="inverse_variance"),
    ),
    Claim(
        "entropy that any N(0, Σ) lacks",
        "KL(Σ ‖ Σ*) = (d/2)·log(M₁/M₀)",
        "difference of the entropies",
        checks.gaussian_gap_deviation,
    ),
    Claim(
        "… and any other law: the optimum is unique",
        "KL = (d/2)·log(M₁/M₀) + negentropy",
        "quadrature: uniform, Laplace; d = 2",
        checks.other_laws_gap_deviation,
        dim=QUADRATURE_DIM,
    ),
    Claim(
        "the worst geometry of Σ: entropy",
        "κ on the m largest variances of Σ",
        "L-BFGS over geometries, d = 4",
        partial(checks.worst_geometry_deviation, price="entropy"),
        dim=SEARCH_DIM,
    ),
    Claim(
        "… worst direction",
        "the same with m = d − 1",
        "L-BFGS over geometries, d = 4",
        partial(checks.worst_geometry_deviation, price="worst_direction"),
        dim=SEARCH_DIM,
    ),
    Claim(
        "… inverse variance",
        "κ on the m largest variances of Σ",
        "L-BFGS over geometries, d = 4",
        partial(checks.worst_geometry_deviation, price="inverse_variance"),
        dim=SEARCH_DIM,
    ),
    Claim(
        "every coupling keeps the marginal",
        "AΣAᵀ + (1 − ρ²)Σ = Σ",
        "covariance of z' in pairs",
        checks.marginal_deviation,
    ),
    Claim(
        "its best predictor",
        "A = ρΣ^{1/2}UΣ^{-1/2}",
        "least squares from z to z'",
        checks.predictor_deviation,
    ),
    Claim(
        "what no predictor can know",
        "(1 − ρ²)·tr Σ",
        "the residual of least squares",
        checks.irreducible_risk_deviation,
    ),
    Claim(
        "what a wrong rotation U' costs",
        "2ρ²(tr Σ − tr(ΣU'Uᵀ))",
        "mean ‖A'z − z'‖² − that residual",
        checks.excess_risk_deviation,
    ),
    Claim(
        "Gibbs law of ½qᵀHq + ½‖p‖²",
        "N(0, (c/d)·diag(H⁻¹, I))",
        "quadrature of exp(−E/T), d = 2",
        checks.gibbs_quadrature_deviation,
        dim=QUADRATURE_DIM,
    ),
    Claim(
        "… is what Langevin dynamics tends to",
        "N(0, (c/d)·diag(H⁻¹, I))",
        "Lyapunov equation, d = 4",
        checks.langevin_deviation,
        dim=SEARCH_DIM,
    ),
    Claim(
        "the flow of the lift",
        "cos and sin of H^{1/2}t",
        "exponential of the vector field",
        checks.flow_deviation,
    ),
    Claim(
        "… is symplectic",
        "SᵀΩS = Ω",
        "the product",
        checks.symplectic_deviation,
    ),
    Claim(
        "… leaves the Gibbs law unchanged",
        "SΣSᵀ = Σ",
        "the product",
        checks.invariance_deviation,
    ),
    Claim(
        "… is a coupling with ρ = 1",
        "U = Σ^{-1/2}SΣ^{1/2} is orthogonal",
        "UᵀU, and the predictor for U",
        checks.flow_coupling_deviation,
    ),
)


def check_statements(
    seed: int, dims: Sequence[int] = (2, 8, 64), condition_numbers: Sequence[float] = (1.0, 1e2, 1e4, 1e6)
) -> list[Statement]:
    """Checks every statement in float64, on a random example for each dimension and condition number.

    Some searches and quadratures are made in one small dimension instead, which `CLAIMS` tells.

    Args:
        seed: seed of the examples.
        dims: dimensions d, each at least 2.
        condition_numbers: condition numbers κ of H, each at least 1.

    Returns:
        The statements, in the order of `CLAIMS`.

    Raises:
        ValueError: if an argument is not as described.
    """
    for name, values, least in (("dims", dims, 2), ("condition_numbers", condition_numbers, 1)):
        if not len(values):
            raise ValueError(f"{name}: must not be empty")
        for value in values:
            require_within(name, value, least=least)
    draw = cache(partial(draw_example, seed))
    # Threads would spin, which takes far longer than these small decompositions.
    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        return [
            _check(claim, [draw(*size) for size in product((claim.dim,) if claim.dim else dims, condition_numbers)])
            for claim in CLAIMS
        ]


def _check(claim: Claim, examples: Sequence[Example]) -> Statement:
    # NumPy's maximum keeps what is not a number.
    largest = float(np.max([claim.deviation(example) for example in examples]))
    return Statement(claim.statement, claim.closed_form, claim.numerical_check, largest, TOLERANCE)


def require_all(statements: Sequence[Statement]) -> None:
    """Makes sure that every deviation is within its tolerance.

    Args:
        statements: what `check_statements` returns.

    Raises:
        DisprovedError: naming those that do not hold.
    """
    wrong = [statement.statement for statement in statements if not statement.holds]
    if wrong:
        raise DisprovedError(f"{len(wrong)} of {len(statements)} statements do not hold: {'; '.join(wrong)}")


def print_table(statements: Sequence[Statement], console: Console) -> None:
    """Prints the statements as one aligned table, and marks those that do not hold.

    Args:
        statements: what `check_statements` returns.
        console: where to print.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left", title_style="italic")
    table.title = f"{sum(statement.holds for statement in statements)} of {len(statements)} statements hold"
    for column in ("statement", "closed form", "numerical check"):
        table.add_column(column)
    table.add_column("largest deviation", justify="right", no_wrap=True)
    for statement in statements:
        deviation = f"{statement.largest_deviation:.1e}"
        if not statement.holds:
            deviation = f"> {statement.tolerance:.0e}: {deviation}"
        table.add_row(*statement[:3], deviation, style=None if statement.holds else "bold red")
    console.print(table)
    console.print("deviations: the largest over all examples, relative; of entropies, in nats")
