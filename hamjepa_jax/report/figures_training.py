"""Curves of training: every term and statistic against the step, and the shares of the terms in the gradient."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hamjepa_jax.report import drawing
from hamjepa_jax.report.curves import thin
from hamjepa_jax.report.elements import Key, Panel
from hamjepa_jax.report.reading import Run, at, numbers

SHARE = "gradient_share_"
OPTIMISATION = ("learning_rate", "gradient_norm", "residual_force_ratio", "views_per_second", "input_wait", "skipped")
# What is no curve.
POSITIONS = ("step", "epoch", "warnings")
EXPLANATIONS = {
    "loss": "What is minimised: all terms with their weights.",
    "prediction": "How far predicted views are from those that were seen, before the weight.",
    "learning_rate": "Step size of the optimizer: the warm-up, then the decay.",
    "gradient_norm": "Norm of the gradient before it is clipped.",
    "views_per_second": "Speed since the start, without compilation and pauses.",
    "input_wait": "Share of the time in which the device waited for images.",
    "skipped": "Steps left out because something was not finite, so far.",
    "residual_force_ratio": "Force of the learned part of the energy, relative to that of the fixed part.",
    "online_knn20": "Top-1 of 20 nearest neighbours on a small part of the data.",
    "online_ridge": "Top-1 of a ridge regression on a small part of the data.",
}
STATISTICS = {
    "eigmax": "Largest eigenvalue's share of the variance of {on}; 1 is one direction alone.",
    "logdet": "Log-determinant of the covariance of {on} per dimension; it falls without bound in a collapse.",
    "participation": "Participation ratio of {on} as a share of the dimensions; 1 is isotropic.",
    "min_std": "Smallest standard deviation of a coordinate of {on}.",
    "mean_square": "Mean square of the coordinates of {on}.",
}
# A curve that spans more than this is drawn on a logarithmic axis.
LOGARITHMIC_SPAN = 50
MARKED_POINTS = 20


def training_groups(runs: Sequence[Run]) -> dict[str, list[Panel]]:
    """Small figures of everything that was logged, runs over each other.

    Args:
        runs: the runs.

    Returns:
        The figures by the name of their group; groups without any are left out.
    """
    names = dict.fromkeys(name for run in runs for record in run.log for name in record if name not in POSITIONS)
    names = [name for name in names if not name.startswith(SHARE) and _is_worth_drawing(runs, name)]
    terms = set(share_terms(runs))
    terms |= {name for run in runs for name in at(run.config, "objective", "regularizers") or {}}
    first = ["loss", "prediction", *sorted(terms - {"prediction"})]
    groups = {
        "Loss and its terms": [name for name in first if name in names],
        "Online probe": [name for name in names if name.startswith("online_")],
        "Optimisation and speed": [name for name in OPTIMISATION if name in names],
    }
    known = {name for group in groups.values() for name in group}
    groups["Statistics of the embeddings"] = sorted(set(names) - known)
    return {title: [_curve(runs, name) for name in group] for title, group in groups.items() if group}


def gradient_shares(run: Run, terms: Sequence[str], *, title: str) -> Panel | None:
    """The shares of the terms in the gradient, stacked.

    Args:
        run: the run.
        terms: the terms of all runs, which decide the colours.
        title: stands above the figure.

    Returns:
        The figure, or None if the shares were not logged.
    """
    own = [term for term in terms if any(SHARE + term in record for record in run.log)]
    if not own or len(run.log) < 2:
        return None
    steps = numbers([record["step"] for record in run.log])
    shares = [numbers([record.get(SHARE + term) for record in run.log]) for term in own]
    colors = [drawing.color_of(terms.index(term)) for term in own]

    def paint(axes: Any) -> None:
        axes.stackplot(steps, np.nan_to_num(shares), colors=colors, alpha=0.8, linewidth=0)
        axes.set(xlabel="step", ylabel="share of the gradient", ylim=(0, 1), xlim=(steps[0], steps[-1]))

    caption = "Norm of each term's gradient as a share of their sum: a band that vanishes is a term that acts no more."
    legend = tuple(Key(term, drawing.PAGE_COLORS[color], "area") for term, color in zip(own, colors, strict=True))
    svg = drawing.draw(paint, title=f"{title}: shares of the terms")
    return Panel(title, svg, caption, legend, size="large")


def share_terms(runs: Sequence[Run]) -> list[str]:
    """The terms whose share in the gradient was logged by any run."""
    names = dict.fromkeys(name for run in runs for record in run.log for name in record if name.startswith(SHARE))
    return [name.removeprefix(SHARE) for name in names]


def _is_worth_drawing(runs: Sequence[Run], name: str) -> bool:
    values = numbers([record.get(name) for run in runs for record in run.log])
    return bool(np.isfinite(values).any() and (name != "skipped" or np.nanmax(values) > 0))


def _curve(runs: Sequence[Run], name: str) -> Panel:
    curves = {}
    for number, run in enumerate(runs):
        records = [record for record in run.log if name in record]
        steps, values = (numbers([record[key] for record in records]) for key in ("step", name))
        if np.isfinite(values).any():
            curves[number] = thin(steps, values)
    everything = np.concatenate([values for _, values in curves.values()])
    everything = everything[np.isfinite(everything)]

    def paint(axes: Any) -> None:
        for number, (steps, values) in curves.items():
            marker = "o" if len(steps) <= MARKED_POINTS else None
            axes.plot(steps, values, color=drawing.color_of(number), linewidth=1.4, marker=marker, markersize=2.5)
        if everything.min() > 0 and everything.max() > LOGARITHMIC_SPAN * everything.min():
            drawing.log_axis(axes.yaxis, everything, most=4)
        else:
            axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("step")

    svg = drawing.draw(paint, title=f"{name} against the step", size=drawing.SMALL)
    return Panel(name, svg, _explanation(runs, name))


def _explanation(runs: Sequence[Run], name: str) -> str:
    if name in EXPLANATIONS:
        return EXPLANATIONS[name]
    for run in runs:
        if settings := at(run.config, "objective", "regularizers", name):
            weight, on = at(settings, "weight"), at(settings, "on")
            return f"The term {at(settings, 'name')} on {on}, before its weight of {weight}."
    on, _, statistic = name.partition("_")
    if statistic in STATISTICS:
        return STATISTICS[statistic].format(on=on)
    return "A statistic of the objective."
