"""The picture of a world model: what q and p are, and where the map leads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hamjepa_jax import plotting
from hamjepa_jax.data import pendulum
from hamjepa_jax.evaluation.world_model import Embedded

SHOWN_STATES = 1500
# Of the motions, how many are drawn in the plane of q and p.
SHOWN_ORBITS, ORBIT_APPLICATIONS = 8, 120


def draw(found: Mapping[str, Any], test: Embedded, z_TxRxD: np.ndarray, path: Path) -> None:
    """Draws what is read from q and p, the latent plane with some roll-outs, and errors over 1,000 applications.

    Args:
        found: what world_model.json holds.
        test: the test films.
        z_TxRxD: roll-outs from the first of them.
        path: where the PNG goes.

    Raises:
        StorageError: if it cannot be written.
    """
    with plotting.picture(path, rows=2, columns=3, size=(16.0, 9.5)) as (figure, axes):
        figure.suptitle(f"{found['data']}, {found['variant']}, step {found['step']}, seed {found['seed']}")
        dim = test.z.shape[1] // 2
        energies = pendulum.energies(test.states)
        for half, (name, key) in enumerate((("q", "angle_from_q"), ("p", "velocity_from_p"))):
            labels = ("angle θ, rad", "angular velocity θ̇, rad √(g/l)")
            x, y = test.z[:SHOWN_STATES, half * dim], test.states[:SHOWN_STATES, half * dim]
            axes[0, half].scatter(x, y, s=8, c=energies[:SHOWN_STATES], rasterized=True)
            subscript = "₁" if dim > 1 else ""
            title = f"{labels[half].split(',')[0]} read from {name}: R² = {found['readings'][key]:.3f}"
            axes[0, half].set(xlabel=f"{name}{subscript}", ylabel=labels[half], title=title)
        _draw_plane(figure, axes[0, 2], test, energies, z_TxRxD)
        _draw_errors(axes[1], found["long_runs"])


def _draw_plane(figure: Any, axes: Any, test: Embedded, energies: np.ndarray, z_TxRxD: np.ndarray) -> None:
    dim = test.z.shape[1] // 2
    points = axes.scatter(test.z[:SHOWN_STATES, 0], test.z[:SHOWN_STATES, dim], s=8, c=energies[:SHOWN_STATES])
    bar = figure.colorbar(points, ax=axes, label="true energy, m·g·l")
    bar.outline.set_visible(False)
    orbits = np.where(np.isfinite(z_TxRxD), z_TxRxD, np.nan)[:ORBIT_APPLICATIONS, :SHOWN_ORBITS]
    for orbit in np.moveaxis(orbits, 1, 0):
        axes.plot(orbit[:, 0], orbit[:, dim], ".", markersize=2.5, color=plotting.VERMILION)
    low, high = test.z[:, [0, dim]].min(axis=0), test.z[:, [0, dim]].max(axis=0)
    margin = 0.15 * (high - low)
    axes.set(
        xlim=(low[0] - margin[0], high[0] + margin[0]),
        ylim=(low[1] - margin[1], high[1] + margin[1]),
        xlabel="q" if dim == 1 else "q₁",
        ylabel="p" if dim == 1 else "p₁",
        title=f"Roll-outs (red) of {ORBIT_APPLICATIONS} applications",
    )


def _draw_errors(axes: Any, runs: Mapping[str, Any]) -> None:
    time = np.asarray(runs["time"])
    shown = (("energy_error", plotting.BLUE, "true energy, as read"), ("learned_energy_drift", plotting.ORANGE, "H"))
    for name, color, label in shown:
        if runs[name] is not None:
            _draw_band(axes[0], time, runs[name], color, label)
    axes[0].set(xlabel="time, √(l/g)", ylabel="error / standard deviation", yscale="log", title="Is the energy kept?")
    axes[0].legend(loc="lower right")
    _draw_band(axes[1], time, runs["angle_error"], plotting.BLUE, "")
    axes[1].set(xlabel="time, √(l/g)", ylabel="error of the angle, rad", yscale="log", title="Is the angle right?")
    true, periods = (np.asarray(runs["period"][name], float) for name in ("true", "found"))
    if np.isfinite(periods).any():
        axes[2].scatter(true, periods, s=10, color=plotting.BLUE)
    limits = [0.98 * true.min(), 1.02 * true.max()]
    axes[2].plot(limits, limits, color=plotting.GRAY, linewidth=1.2, zorder=0)
    axes[2].set(xlabel="true period, √(l/g)", ylabel="period of the roll-out, √(l/g)", title="Is the period right?")


def _draw_band(axes: Any, time: np.ndarray, band: Mapping[str, Any], color: str, label: str) -> None:
    median, lower, upper = (np.asarray(band[name], float) for name in ("median", "lower", "upper"))
    # Nothing is wrong yet at the start, which has no logarithm.
    axes.plot(time[1:], median[1:], color=color, label=label, linewidth=1.2)
    axes.fill_between(time[1:], lower[1:], upper[1:], color=color, alpha=0.25, linewidth=0)
