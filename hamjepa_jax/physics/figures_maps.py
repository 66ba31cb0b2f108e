"""Figures of maps: where a step loses the energy, where it can be reversed, and how symplectic it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hamjepa_jax.physics.gallery import STEPS, SYSTEMS
from hamjepa_jax.physics.maps import StartMaps
from hamjepa_jax.physics.style import COLORS, NAMES, add_legend
from hamjepa_jax.plotting import picture

ROUNDING = 1e-18
# The steps whose maps differ in kind; those of the other two look like leapfrog's.
MAPPED = STEPS[:4]


def draw_energy_maps(maps: Mapping[str, Mapping[str, StartMaps]], path: Path, *, num_steps: int) -> None:
    """Draws the largest energy error over the plane of starts: a row per system, a column per step.

    Args:
        maps: maps of each system under each step, on the host.
        path: where the PNG goes.
        num_steps: over how many steps the largest error was taken.

    Raises:
        StorageError: if it cannot be written.
    """
    title = f"{num_steps:,} steps: explicit Euler loses the energy everywhere, the learned step in places"
    energy = {name: {step: one.energy for step, one in of_system.items()} for name, of_system in maps.items()}
    _draw(energy, path, title=title, limits=(-4, 1), label="log₁₀ of the largest |H − H₀| / |H₀|")


def draw_reversal_maps(maps: Mapping[str, Mapping[str, StartMaps]], path: Path, *, num_reversed: int) -> None:
    """Draws how far a step is from reversible over the plane of starts: a row per system, a column per step.

    Args:
        maps: maps of each system under each step, on the host.
        path: where the PNG goes.
        num_reversed: the number n of steps made forwards and then back.

    Raises:
        StorageError: if it cannot be written.
    """
    title = f"{num_reversed} steps forwards and {num_reversed} back: of these steps only leapfrog finds home"
    reversal = {name: {step: one.reversal for step, one in of_system.items()} for name, of_system in maps.items()}
    _draw(reversal, path, title=title, limits=(-16, 0), label="log₁₀ of |RΦⁿRΦⁿz − z|")


def _draw(
    errors: Mapping[str, Mapping[str, np.ndarray]], path: Path, *, title: str, limits: tuple[float, float], label: str
) -> None:
    with picture(path, rows=len(errors), columns=len(MAPPED), size=(13.5, 13)) as (figure, axes):
        figure.suptitle(title)
        for panel, step in zip(axes[0], MAPPED, strict=True):
            panel.set_title(NAMES[step])
        for row, (name, system) in zip(axes, SYSTEMS.items(), strict=True):
            x, y = system.plane
            for panel, step in zip(row, MAPPED, strict=True):
                image = panel.imshow(
                    # What is infinite would be left blank.
                    np.clip(np.log10(np.maximum(errors[name][step], ROUNDING)), *limits),
                    origin="lower",
                    extent=(x.low, x.high, y.low, y.high),
                    aspect="auto",
                    vmin=limits[0],
                    vmax=limits[1],
                )
                panel.set_xlabel(x.label)
                panel.grid(False)
                panel.tick_params(labelleft=panel is row[0])
            row[0].set_ylabel(f"{system.title}\n{y.label}")
        figure.colorbar(image, ax=axes, label=label, extend="both", shrink=0.6)


def draw_defects(defects: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws histograms of the symplectic defect of one step over the starts, a panel per system.

    Args:
        defects: defects (N,) of each system under each step, on the host.
        path: where the PNG goes.

    Raises:
        StorageError: if it cannot be written.
    """
    edges = np.linspace(-18, 1, 77)
    with picture(path, rows=2, columns=2, size=(13, 9)) as (figure, axes):
        figure.suptitle("A step is symplectic to rounding, or it is not: nothing lies between")
        for panel, (name, system) in zip(axes.flat, SYSTEMS.items(), strict=True):
            for step in STEPS:
                exponents = np.log10(np.maximum(defects[name][step], ROUNDING))
                panel.hist(exponents, edges, color=COLORS[step], alpha=0.3)
                panel.hist(exponents, edges, color=COLORS[step], histtype="step", linewidth=2)
            panel.axvspan(-18, -14, color="#e3e3e3", zorder=0)
            panel.text(-13.8, 0.95, "◂ rounding", transform=panel.get_xaxis_transform(), va="top")
            panel.set(xlim=(-18, 1), xlabel="log₁₀ max|JᵀΩJ − Ω|", ylabel="starts", title=system.title)
        add_legend(figure)
