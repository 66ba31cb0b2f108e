"""Figures of roll-outs: orbits, energy, the area of a loop and the covariance of a cloud."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hamjepa_jax.physics.gallery import STEPS, SYSTEMS
from hamjepa_jax.physics.rollouts import Observed
from hamjepa_jax.physics.style import COLORS, NAMES, add_legend
from hamjepa_jax.plotting import picture

Summaries = Mapping[str, Mapping[str, Mapping[str, Any]]]

# Below this there is nothing but rounding, and a logarithm of zero is to be seen.
ROUNDING = 1e-16


def times(name: str, num_observations: int, every: int) -> np.ndarray:
    """The times of the observations of a system, in its units."""
    return SYSTEMS[name].step_size * every * np.arange(num_observations)


def draw_orbits(observed: Mapping[str, Mapping[str, Observed]], path: Path) -> None:
    """Draws phase portraits: a row per system, a column per step.

    Args:
        observed: what was seen of each system under each step, on the host.
        path: where the PNG goes.

    Raises:
        StorageError: if it cannot be written.
    """
    with picture(path, rows=len(observed), columns=len(STEPS), size=(16, 11.5)) as (figure, axes):
        figure.suptitle("Explicit Euler leaves its orbits, a learned step strays from some; symplectic steps stay")
        for panel, step in zip(axes[0], STEPS, strict=True):
            panel.set_title(NAMES[step])
        for row, (name, system) in zip(axes, SYSTEMS.items(), strict=True):
            x, y = system.portrait
            for panel, step in zip(row, STEPS, strict=True):
                for orbit in np.moveaxis(observed[name][step].orbits, 1, 0):
                    panel.plot(*orbit.T, ".", color=COLORS[step], markersize=2.5, alpha=0.5)
                panel.set(xlim=(x.low, x.high), ylim=(y.low, y.high), xlabel=x.label)
                panel.grid(False)
                panel.tick_params(labelleft=panel is row[0])
            row[0].set_ylabel(f"{system.title}\n{y.label}")


def draw_energy_errors(summaries: Summaries, path: Path, *, every: int) -> None:
    """Draws median and quartiles of the energy error against time, a panel per system.

    Args:
        summaries: see `numbers.summary`.
        path: where the PNG goes.
        every: steps between two observations.

    Raises:
        StorageError: if it cannot be written.
    """
    with picture(path, rows=2, columns=2, size=(13, 9)) as (figure, axes):
        figure.suptitle("Symplectic steps keep the energy within a band; explicit Euler and the learned step do not")
        for panel, (name, of_system) in zip(axes.flat, summaries.items(), strict=True):
            for step in STEPS:
                error = of_system[step]["energy_error"]
                # At the start there is no error, and it has no logarithm.
                t = times(name, len(error["median"]), every)[1:]
                lower, median, upper = (error[quantile][1:] for quantile in ("lower", "median", "upper"))
                panel.plot(t, median, color=COLORS[step])
                panel.fill_between(t, lower, upper, color=COLORS[step], alpha=0.2, linewidth=0)
            panel.set(yscale="log", ylim=(1e-8, 1e2), xlabel="time", ylabel="|H − H₀| / |H₀|")
            panel.set_title(SYSTEMS[name].title)
        add_legend(figure)


def draw_areas(summaries: Summaries, path: Path, *, every: int) -> None:
    """Draws how the Poincaré invariant of a loop changes with time, a panel per system.

    Args:
        summaries: see `numbers.summary`.
        path: where the PNG goes.
        every: steps between two observations.

    Raises:
        StorageError: if it cannot be written.
    """
    with picture(path, rows=2, columns=2, size=(13, 9)) as (figure, axes):
        figure.suptitle("Symplectic steps keep the area Σ∮p dq of a carried loop to rounding, and only they do")
        for panel, (name, of_system) in zip(axes.flat, summaries.items(), strict=True):
            for step in STEPS:
                change = of_system[step]["area_change"]
                t = times(name, len(change), every)[1:]
                panel.plot(t, np.maximum(change[1:], ROUNDING), color=COLORS[step])
            panel.set(yscale="log", ylim=(ROUNDING, 1e3), xlabel="time", ylabel="|A / A₀ − 1|")
            panel.set_title(SYSTEMS[name].title)
        add_legend(figure)


def draw_covariances(summaries: Summaries, path: Path, *, every: int) -> None:
    """Draws how the log-determinant of a Gaussian cloud's covariance changes with time, a panel per system.

    Args:
        summaries: see `numbers.summary`.
        path: where the PNG goes.
        every: steps between two observations.

    Raises:
        StorageError: if it cannot be written.
    """
    with picture(path, rows=2, columns=2, size=(13, 9)) as (figure, axes):
        figure.suptitle("No symplectic step shrinks a Gaussian cloud, and all of them spread it alike")
        for panel, (name, of_system) in zip(axes.flat, summaries.items(), strict=True):
            highest = max(np.max(of_system[step]["log_det_change"]) for step in STEPS[2:])
            for step in STEPS:
                change = of_system[step]["log_det_change"]
                dashes = "--" if step in ("yoshida4", "implicit_midpoint") else "-"
                panel.plot(times(name, len(change), every), change, dashes, color=COLORS[step])
            panel.axhline(0.0, color=COLORS["learned"], linewidth=1, linestyle=":")
            panel.set(ylim=(-0.15 * highest, 1.6 * highest), xlabel="time", ylabel="log det Σ − log det Σ₀ (nats)")
            panel.set_title(SYSTEMS[name].title)
        add_legend(figure)
