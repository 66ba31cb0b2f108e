"""What a trained predictor does to held-out states: volume, symplecticity, long roll-outs, prediction."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hamjepa_jax.report import drawing
from hamjepa_jax.report.curves import thin
from hamjepa_jax.report.elements import Key, Panel
from hamjepa_jax.report.reading import Run, at, numbers

DTYPES = ("float64", "float32")
# What is drawn for an exact zero on a logarithmic axis.
ZERO = 1e-18
SMALLEST_STRETCH = 1e-3
# Ratios of extremes above this are drawn on logarithmic axes.
LOGARITHMIC_SPAN = 20


def panels(runs: Sequence[Run]) -> list[Panel]:
    """All figures of the diagnostics, runs over each other.

    Args:
        runs: the runs.

    Returns:
        The figures that there are numbers for.
    """
    found = [
        _strips(
            runs,
            "Change of volume",
            "|log |det J|| / D",
            lambda d, dtype: np.abs(numbers(at(d, "log_abs_det", dtype))) / (at(d, "state_dim") or 1),
            "Log-determinant of the Jacobian J per dimension, in size; 0 is a map that preserves volume.",
        ),
        _strips(
            runs,
            "Symplectic defect",
            "defect",
            lambda d, dtype: numbers(at(d, "symplectic_defect", dtype)),
            "How far JᵀΩJ is from Ω; a symplectic map has rounding errors alone.",
        ),
        _strips(
            runs,
            "Reversibility",
            "max |RΦRΦz − z|",
            lambda d, dtype: numbers(at(d, "reversibility", dtype)),
            "How far a state is from where it began, after the map, a turn of the momenta, and both once more.",
        ),
        _strips(
            runs,
            "Inverse",
            "max |Φ⁻¹Φz − z|",
            lambda d, dtype: numbers(at(d, "inverse", dtype)),
            "How far the inverse map misses the state that the map came from.",
        ),
        _singular_values(runs),
        _rollout(runs, "energy", "Energy over a roll-out", "(Hₙ − H₀) / |H₀|"),
        _rollout(runs, "modified_energy", "Modified energy over a roll-out", "(H̃ₙ − H̃₀) / |H̃₀|"),
        _rollout(runs, "norm", "Norm over a roll-out", "‖zₙ‖ / ‖z₀‖"),
        _prediction(runs),
        *(sensitivity(run, title=f"Step size and number of steps{_of(run, runs)}") for run in runs),
        _neighbourhood(runs),
    ]
    return [panel for panel in found if panel is not None]


def _of(run: Run, runs: Sequence[Run]) -> str:
    return "" if len(runs) == 1 else f": {run.label}"


def _keys(runs: Sequence[Run], shown: Sequence[int], look: str = "solid") -> tuple[Key, ...]:
    colors = {number: drawing.PAGE_COLORS[drawing.color_of(number)] for number in shown}
    return tuple(Key(runs[number].label, color, look) for number, color in colors.items()) if len(runs) > 1 else ()


def _strips(
    runs: Sequence[Run], title: str, label: str, values_of: Callable[[dict, str], np.ndarray], caption: str
) -> Panel | None:
    """One dot for each state on a logarithmic axis, by precision and run, with the medians."""
    values = {(i, dtype): values_of(run.diagnostics, dtype) for i, run in enumerate(runs) for dtype in DTYPES}
    values = {key: found[np.isfinite(found)] for key, found in values.items()}
    values = {key: np.maximum(found, ZERO) for key, found in values.items() if found.size}
    if not values:
        return None
    shown = sorted({number for number, _ in values})

    def paint(axes: Any) -> None:
        spacing = 0.8 / len(shown)
        for (number, dtype), found in values.items():
            row = DTYPES.index(dtype) - 0.4 + spacing * (shown.index(number) + 0.5)
            # In a fixed pattern, so that dots of equal values lie beside each other.
            heights = row + spacing * 0.6 * (np.arange(len(found)) * 0.618 % 1 - 0.5)
            color = drawing.color_of(number)
            axes.plot(found, heights, "o", color=color, markersize=3.5, alpha=0.45, markeredgewidth=0)
            axes.plot([np.median(found)] * 2, [row - 0.42 * spacing, row + 0.42 * spacing], color=color, linewidth=2.2)
        drawing.log_axis(axes.xaxis, np.concatenate(list(values.values())))
        axes.set(xlabel=label, yticks=range(len(DTYPES)), yticklabels=DTYPES, ylim=(len(DTYPES) - 0.45, -0.55))
        axes.grid(visible=False, axis="y")

    if min(found.min() for found in values.values()) <= ZERO:
        caption += " Exact zeros are drawn at 10⁻¹⁸."
    caption += " A dot is a state, the bar the median."
    return Panel(title, drawing.draw(paint, title=title), caption, _keys(runs, shown, "dot"))


def _singular_values(runs: Sequence[Run]) -> Panel | None:
    pairs = {}
    for number, run in enumerate(runs):
        smallest, largest = (numbers(at(run.diagnostics, "singular_values", name)) for name in ("smallest", "largest"))
        if largest.size and len(smallest) == len(largest):
            pairs[number] = (np.maximum(smallest, SMALLEST_STRETCH), largest)
    if not pairs:
        return None
    smallest, largest = (np.concatenate([pair[i] for pair in pairs.values()]) for i in range(2))

    def paint(axes: Any) -> None:
        for number, pair in pairs.items():
            axes.plot(*pair, "o", color=drawing.color_of(number), markersize=4, alpha=0.6, markeredgewidth=0)
        limits = {"xlim": (0.95 * smallest.min(), 1.05 * smallest.max())}
        limits["ylim"] = (0.95 * largest.min(), 1.05 * largest.max())
        x = np.geomspace(*limits["xlim"], 300)
        axes.plot(x, 1 / x, color=drawing.INK, linewidth=1.2, linestyle=drawing.DASHES["dotted"])
        if largest.max() > LOGARITHMIC_SPAN * smallest.min():
            drawing.log_axis(axes.xaxis, smallest)
            drawing.log_axis(axes.yaxis, largest)
        else:
            axes.locator_params(nbins=5)
        axes.set(xlabel="smallest singular value", ylabel="largest singular value", **limits)

    caption = (
        "How strongly the map shrinks and stretches near a state. Singular values of a symplectic map come in pairs of "
        "product 1, on the dotted line."
    )
    if smallest.min() <= SMALLEST_STRETCH:
        caption += " Whatever shrinks more than a thousandfold is drawn at the left edge."
    keys = (*_keys(runs, list(pairs), "dot"), Key("product 1", "currentColor", "dotted"))
    return Panel("Stretching", drawing.draw(paint, title="Singular values of the Jacobian"), caption, keys)


def _rollout(runs: Sequence[Run], name: str, title: str, label: str) -> Panel | None:
    bands = {}
    for number, run in enumerate(runs):
        x = numbers(at(run.diagnostics, "rollout", "applications"))
        band = [numbers(at(run.diagnostics, "rollout", name, part)) for part in ("lower", "median", "upper")]
        if x.size and all(len(part) == len(x) for part in band) and np.isfinite(band[1]).any():
            bands[number] = (x, *band)
    if not bands:
        return None
    medians = np.concatenate([band[2] for band in bands.values()])
    wide = name == "norm" and np.nanmin(medians) > 0 and np.nanmax(medians) > LOGARITHMIC_SPAN * np.nanmin(medians)

    def paint(axes: Any) -> None:
        for number, (x, lower, median, upper) in bands.items():
            color = drawing.color_of(number)
            axes.fill_between(x, lower, upper, color=color, alpha=0.16, linewidth=0)
            axes.plot(*thin(x, median), color=color)
        axes.axhline(float(name == "norm"), color=drawing.INK, linewidth=1, linestyle=drawing.DASHES["dotted"])
        if wide:
            drawing.log_axis(axes.yaxis, medians)
        axes.set(xlabel="applications of the map", ylabel=label)

    meaning = {
        "energy": "A symplectic map keeps the energy in a band that does not grow.",
        "modified_energy": "Leapfrog keeps it far better than H, from which it differs by a term in τ².",
        "norm": "A map that is no flow may let states explode or shrink to a point.",
    }[name]
    caption = f"Median over states and the middle half. {meaning}"
    return Panel(title, drawing.draw(paint, title=title), caption, _keys(runs, list(bands)))


def _prediction(runs: Sequence[Run]) -> Panel | None:
    names = {"error": "predictor", "identity": "no change", "mean": "mean"}
    errors = {
        number: [
            found.item() if (found := numbers([at(run.diagnostics, "prediction", name)])).size else np.nan
            for name in names
        ]
        for number, run in enumerate(runs)
        if at(run.diagnostics, "prediction", "error") is not None
    }
    if not errors:
        return None

    def paint(axes: Any) -> None:
        height = 0.8 / len(errors)
        for place, (number, values) in enumerate(errors.items()):
            rows = np.arange(3) - 0.4 + height * (place + 0.5)
            axes.barh(rows, np.nan_to_num(values), height * 0.86, color=drawing.color_of(number), alpha=0.8)
            for row, value in zip(rows, values, strict=True):
                if np.isfinite(value):
                    axes.annotate(
                        f"{value:.3g}", (value, row), (3, 0), textcoords="offset points", va="center", fontsize=9
                    )
        axes.margins(x=0.16)
        axes.set(xlabel="mean squared error per coordinate", yticks=range(3), yticklabels=names.values())
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()

    caption = (
        "Error with which the state of one view is predicted from that of another: by the predictor, by leaving it "
        "unchanged, and by the mean over images."
    )
    return Panel(
        "Prediction", drawing.draw(paint, title="Prediction errors"), caption, _keys(runs, list(errors), "area")
    )


def sensitivity(run: Run, *, title: str) -> Panel | None:
    """The prediction error against step size and number of steps.

    Args:
        run: the run.
        title: stands above the figure.

    Returns:
        The figure, or None for a predictor without steps.
    """
    found = at(run.diagnostics, "sensitivity")
    errors, step_sizes, steps = (numbers(at(found, name)) for name in ("error", "step_size", "num_steps"))
    if errors.ndim != 2 or errors.shape != (len(steps), len(step_sizes)):
        return None
    baselines = {name: at(run.diagnostics, "prediction", name) for name in ("identity", "mean")}
    baselines = {name: value for name, value in baselines.items() if isinstance(value, (int, float)) and value > 0}
    trained = [at(found, "trained", name) for name in ("step_size", "num_steps")]
    places = np.arange(len(step_sizes))

    def paint(axes: Any) -> None:
        for number, row in enumerate(errors):
            axes.plot(places, row, marker="o", color=drawing.color_of(number))
        for name, look in (("identity", "dotted"), ("mean", "dashed")):
            if name in baselines:
                axes.axhline(baselines[name], color=drawing.INK, linewidth=1.1, linestyle=drawing.DASHES[look])
        if trained[0] in step_sizes and trained[1] in steps:
            row, place = list(steps).index(trained[1]), list(step_sizes).index(trained[0])
            axes.plot([place], [errors[row, place]], marker="*", markersize=15, color=drawing.INK, zorder=5)
        shown = np.concatenate([errors.ravel(), list(baselines.values())])
        shown = shown[shown > 0]
        if shown.size and shown.max() > 5 * shown.min():
            drawing.log_axis(axes.yaxis, shown)
        axes.set_xticks(places, [f"{step_size:.3g}" for step_size in step_sizes])
        axes.set(xlabel="step size τ", ylabel="prediction error")

    keys = [Key(f"K = {int(k)}", drawing.PAGE_COLORS[drawing.color_of(i)]) for i, k in enumerate(steps)]
    keys += [Key(name, "currentColor", look) for name, look in (("no change", "dotted"), ("mean", "dashed"))]
    caption = (
        "Prediction error with other step sizes τ and numbers of steps K, without training again; the star is how the "
        "predictor was trained."
    )
    return Panel(title, drawing.draw(paint, title=title), caption, tuple(keys))


def _neighbourhood(runs: Sequence[Run]) -> Panel | None:
    shown = {i: found for i, run in enumerate(runs) if at(found := at(run.diagnostics, "neighbourhood"), "overlap")}
    if not shown:
        return None
    ks = sorted({k for found in shown.values() for k in found["k"]})

    def paint(axes: Any) -> None:
        for number, found in shown.items():
            axes.plot(found["k"], 100 * numbers(found["overlap"]), marker="o", color=drawing.color_of(number))
        first = next(iter(shown.values()))
        chance = 100 * numbers(at(first, "chance"))
        if len(chance) == len(first["k"]):
            axes.plot(first["k"], chance, color=drawing.INK, linestyle=drawing.DASHES["dotted"])
        drawing.log_axis(axes.xaxis, numbers(ks))
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.set(xlabel="neighbours k", ylabel="neighbours kept, %", ylim=(0, 103))

    caption = "Share of the k nearest held-out states of z that are still among the k nearest of Φ(z)."
    keys = (*_keys(runs, list(shown)), Key("chance", "currentColor", "dotted"))
    return Panel("Neighbours kept", drawing.draw(paint, title="Neighbours kept by the map"), caption, keys)
