"""The numbers behind the figures, and the table that they make."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from hamjepa_jax.physics.gallery import STEPS, SYSTEMS
from hamjepa_jax.physics.maps import StartMaps
from hamjepa_jax.physics.rollouts import Observed
from hamjepa_jax.physics.style import NAMES


def infinite_where_lost(error: np.ndarray) -> np.ndarray:
    """The same errors, infinite where they are not a number because a state left all bounds."""
    return np.where(np.isnan(error), np.inf, error)


def quartiles(values: np.ndarray, axis: int | None = None) -> dict[str, np.ndarray]:
    """Quartiles that are values themselves, so that none is made of two of which one is infinite.

    Args:
        values: numbers, also infinite ones.
        axis: the axis over which they are taken; None takes all values together.

    Returns:
        {"lower", "median", "upper"}.
    """
    found = np.quantile(values, (0.25, 0.5, 0.75), axis=axis, method="inverted_cdf")
    return dict(zip(("lower", "median", "upper"), found, strict=True))


def summary(observed: Observed, maps: StartMaps, defects: np.ndarray) -> dict[str, Any]:
    """The numbers of one system under one step.

    Args:
        observed: what was seen along the roll-out, on the host.
        maps: what became of the starts in the plane.
        defects: the symplectic defects (N,) of one step.

    Returns:
        {"energy_error": quartiles over the starts at T times, "area_change": |A/A₀ − 1| (T,), "log_det_change": (T,),
        "largest_energy_error", "reversal": quartiles over the map, "defect": quartiles and "largest"}.
    """
    return {
        "energy_error": quartiles(infinite_where_lost(observed.energy_error), axis=1),
        "area_change": infinite_where_lost(np.abs(observed.area / observed.area[0] - 1.0)),
        "log_det_change": infinite_where_lost(observed.log_det - observed.log_det[0]),
        "largest_energy_error": quartiles(maps.energy),
        "reversal": quartiles(maps.reversal),
        "defect": quartiles(defects) | {"largest": np.max(defects)},
    }


def table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """The main numbers of every system under every step.

    Args:
        summaries: what `summary` returns, of each system under each step.

    Returns:
        A table to print.
    """
    made = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", title_justify="left", title_style="italic")
    made.title = "What a step keeps: errors of energy, of area, of JᵀΩJ = Ω, and of the way back"
    made.add_column("system", no_wrap=True)
    made.add_column("step", no_wrap=True)
    for column in ("energy", "area", "defect", "reversal"):
        made.add_column(column, justify="right", no_wrap=True)
    for name, of_system in summaries.items():
        for step in STEPS:
            found = of_system[step]
            made.add_row(
                SYSTEMS[name].title if step == STEPS[0] else "",
                NAMES[step],
                shown(found["energy_error"]["median"][-1]),
                shown(np.max(found["area_change"])),
                shown(found["defect"]["largest"]),
                shown(found["reversal"]["median"]),
                end_section=step == STEPS[-1],
            )
    return made


def shown(value: float) -> str:
    """A number in two digits."""
    return f"{value:.1e}" if math.isfinite(value) else "∞"
