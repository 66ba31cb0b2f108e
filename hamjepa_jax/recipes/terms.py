"""The regularisers of the recipes: floors, SIGReg and HamSIGReg, and the known baselines.

References: Jenkinson Alvarez, arXiv 2605.20107; Balestriero & LeCun, arXiv 2511.08544; Bardes, Ponce & LeCun, "VICReg",
2022; Zbontar et al., "Barlow Twins", 2021.
"""

from typing import NamedTuple

from hamjepa_jax.recipes.forms import Form, Group


class Slices(NamedTuple):
    """How finely a sliced test is made.

    Attributes:
        num_directions: random directions in every step.
        num_points: knots of the Epps–Pulley test.
    """

    num_directions: int
    num_points: int


# Those of `stats.univariate.TESTS` beside Epps–Pulley; a config is read before jax is imported.
TESTS = (
    "cramer_von_mises",
    "anderson_darling",
    "watson",
    "shapiro_francia",
    "jarque_bera",
    "moments",
    "wasserstein",
)
SMOOTHNESS = {"kappa": 1.0, "eps": 1e-3, "beta": 1.0, "normalize": "trace"}
GEOMETRIES = {
    "sigreg": {"name": "identity"},
    "hamsigreg_diag": {"name": "diag"},
    "hamsigreg_chain": {"name": "chain"} | SMOOTHNESS,
    "hamsigreg_grid": {"name": "grid"} | SMOOTHNESS,
    "hamsigreg_learnable": {
        "name": "learnable",
        "game": "max",
        "ramp_epochs": 0,
        "alpha_init": 1.0,
        "beta_init": 1.0,
        "bins": 16,
        "base": "identity",
        "span_max": 0.1,
        # The published 0 is far out on the sigmoid, from where Adam's steps would need thousands of updates.
        "init_loglambda_span": 0.05,
        "binning": "linear_radius",
        "gauge": "logdet",
        "log_lambda_clip": 3.0,
        "curvature_weight": 1e-3,
        "loglambda_l2_weight": 1e-4,
    },
}
SIGREG_WEIGHT = 0.02
# The gradient of HamJEPA's prediction term over all coordinates, without a flow, is four times that of ½·pred with two
# views; this weight keeps the published balance between prediction and SIGReg.
SIGREG_WEIGHT_IN_PAIRS = 4 * SIGREG_WEIGHT


def floors(form: Form) -> Group:
    """HamJEPA's floors on scale and spectrum.

    Args:
        form: the published form.

    Returns:
        The group `objective.regularizers`.
    """
    terms = {}
    for half in "qp":
        terms[f"budget_{half}"] = {"name": "mean_square", "weight": 0.2, "on": half, "pooled": True, "target": 1.0}
    for half in form.variance_on:
        terms[f"variance_{half}"] = {
            "name": "variance_floor",
            "weight": form.variance_weight,
            "on": half,
            "pooled": True,
            "std_floor": 0.2,
        }
    for half, participation, eigmax in zip("qp", form.participation_floors, form.eigmax_ceilings, strict=True):
        terms[f"logdet_{half}"] = {
            "name": "covariance_floor",
            "weight": form.logdet_weight,
            "on": half,
            "pooled": True,
            "redraw_every": 16,
            "max_rank": 128,
            "logdet_floor": form.logdet_floor,
            "participation_floor": participation,
            "eigmax_ceiling": eigmax,
        }
    return terms | {"mean": {"name": "zero_mean", "weight": 0.05, "on": "qp", "pooled": True}}


def sliced(test: str, slices: Slices, *, weight: float, geometry: Group) -> Group:
    """A one-dimensional test along random directions, of each view on its own.

    Args:
        test: name of the test.
        slices: how finely it is made.
        weight: its weight.
        geometry: an H of `GEOMETRIES`.

    Returns:
        One entry of the group `objective.regularizers`.
    """
    knots = {"t_max": 3.0, "num_points": slices.num_points, "weight": "gaussian"}
    return {
        "name": "sliced_test",
        "weight": weight,
        "on": "z",
        "pooled": False,
        "num_directions": slices.num_directions,
        "test": {"name": test} | (knots if test == "epps_pulley" else {}),
        "geometry": geometry,
    }


def sigreg(name: str, slices: Slices, weight: float) -> Group:
    """SIGReg, or HamSIGReg.

    Args:
        name: a name of `GEOMETRIES`.
        slices: how finely the test is made.
        weight: its weight.

    Returns:
        The group `objective.regularizers`.
    """
    return {name.partition("_")[0]: sliced("epps_pulley", slices, weight=weight, geometry=GEOMETRIES[name])}


def vicreg(weight: float) -> Group:
    """VICReg's variance and covariance parts, to be put beside 25·mse between the views.

    Args:
        weight: what both are multiplied by.

    Returns:
        The group `objective.regularizers`.
    """
    # The covariance part is published as a sum over both views, and is a mean over them here.
    settings = {"std_target": 1.0, "variance_weight": 25.0, "covariance_weight": 2.0}
    return {"vicreg": {"name": "vicreg", "weight": weight, "on": "z", "pooled": False} | settings}


def barlow_twins() -> Group:
    """Barlow Twins, whose diagonal is the prediction of one view from the other.

    Returns:
        The group `objective.regularizers`.
    """
    settings = {"weight": 1.0, "on": "z", "pooled": False, "off_diagonal_weight": 5e-3}
    return {"barlow_twins": {"name": "barlow_twins"} | settings}


def bhep(weight: float) -> Group:
    """The multivariate test, at a bandwidth for about 500 to 2,000 dimensions.

    Args:
        weight: its weight.

    Returns:
        The group `objective.regularizers`.
    """
    return {"bhep": {"name": "bhep", "weight": weight, "on": "z", "pooled": False, "bandwidth": 0.05}}
