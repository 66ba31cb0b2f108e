"""The numbers of a diagnosis that tables of several runs have: one for each run, medians over its states."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

NEIGHBOURS = 10


def _median(*keys: str) -> Callable[[Mapping[str, Any]], float | None]:
    def find(found: Any) -> float | None:
        for key in keys:
            found = found[key]
        known = [value for value in found if value is not None]
        return float(np.median(known)) if known else None

    return find


def _kept(found: Mapping[str, Any]) -> float:
    return found["neighbourhood"]["overlap"][found["neighbourhood"]["k"].index(NEIGHBOURS)]


# Name of the number → what it is, of what diagnostics.json holds; None where there is none.
NUMBERS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "log abs det J, float64": _median("log_abs_det", "float64"),
    "defect, float64": _median("symplectic_defect", "float64"),
    "defect, float32": _median("symplectic_defect", "float32"),
    "smallest singular value of J": _median("singular_values", "smallest"),
    "largest singular value of J": _median("singular_values", "largest"),
    "reversibility, float64": _median("reversibility", "float64"),
    "drift of the energy after 1,000 applications": lambda found: (
        found["rollout"]["energy"] and found["rollout"]["energy"]["median"][-1]
    ),
    "‖z‖/‖z₀‖ after 1,000 applications": lambda found: found["rollout"]["norm"]["median"][-1],
    "residual force ratio": lambda found: found["residual_force_ratio"],
    "prediction error": lambda found: found["prediction"]["error"],
    "… of the identity": lambda found: found["prediction"]["identity"],
    "… of the mean": lambda found: found["prediction"]["mean"],
    f"{NEIGHBOURS} nearest neighbours kept": _kept,
}


def written(value: float | None) -> str:
    """A number with three digits, in powers of ten where it is small or large; empty where there is none."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.3g}" if value == 0.0 or 0.01 <= abs(value) < 1e5 else f"{value:.0e}"
