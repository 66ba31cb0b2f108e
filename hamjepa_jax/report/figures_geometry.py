"""How embeddings lie in space: spectra, cosines, norms, tests of normality, and q against p."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hamjepa_jax.report import curves, drawing
from hamjepa_jax.report.elements import Key, Panel
from hamjepa_jax.report.figures_scores import Series, keys
from hamjepa_jax.report.reading import Run, at, numbers

# Smaller shares of the variance are rounding.
SMALLEST_SHARE = 1e-12
# A baseline may be this much higher than what is compared with it; beyond that its peak is cut off.
HIGHEST_BASELINE = 1.6
BASELINE_POINTS = 400
NEUTRAL = drawing.PAGE_COLORS[drawing.NEUTRAL]


def spectrum(series: Sequence[Series]) -> Panel | None:
    """Shares of the variance against the index.

    Args:
        series: the features.

    Returns:
        The figure, or None if there is no spectrum.
    """
    shares = {}
    for number, s in enumerate(series):
        eigenvalues = numbers(at(s.scores, "spectrum", "eigenvalues"))
        if eigenvalues.size and np.nansum(eigenvalues) > 0:
            shares[number] = eigenvalues / np.nansum(eigenvalues)
    if not shares:
        return None
    dim = len(next(iter(shares.values())))

    def paint(axes: Any) -> None:
        drawn = []
        for number, values in shares.items():
            index = np.arange(1, len(values) + 1)
            above = values > SMALLEST_SHARE
            # Evenly on the logarithmic axis.
            few = np.unique(np.geomspace(1, above.sum(), curves.MOST_POINTS // 2).round().astype(int)) - 1
            style = {"color": series[number].color, "linestyle": drawing.DASHES[series[number].look]}
            axes.plot(index[above][few], values[above][few], **style)
            drawn.append(values[above])
        axes.axhline(1 / dim, color=drawing.INK, linewidth=1, linestyle=drawing.DASHES["dotted"])
        drawing.log_axis(axes.xaxis, np.array([1.0, max(map(len, shares.values()))]))
        drawing.log_axis(axes.yaxis, np.concatenate(drawn))
        axes.set(xlabel="index of the eigenvalue", ylabel="share of the variance")

    caption = (
        f"Eigenvalues of the covariance, descending. An isotropic cloud in {dim} dimensions is the dotted level; "
        "a cliff is a collapse to fewer dimensions."
    )
    legend = (*keys([series[number] for number in shares]), Key(f"isotropic, D = {dim}", "currentColor", "dotted"))
    return Panel("Covariance spectrum", drawing.draw(paint, title="Covariance spectrum"), caption, legend)


def cosines(series: Sequence[Series]) -> Panel | None:
    """Cosines of random pairs, beside those of random directions.

    Args:
        series: the features.

    Returns:
        The figure, or None if there are no cosines.
    """
    caption = (
        "Cosines of random pairs of training images, not centred. Independent directions have the dotted density; mass "
        "on the right is a mean that all images share."
    )
    return _against_isotropy(
        series, "cosines", curves.isotropic_cosine_density, (-0.999, 0.999), "cosine of a random pair", caption
    )


def norms(series: Sequence[Series]) -> Panel | None:
    """Norms, beside those of an isotropic Gaussian.

    Args:
        series: the features.

    Returns:
        The figure, or None if there are no norms.
    """
    caption = (
        "Norms of the training embeddings over √D. A standard normal cloud has the dotted density, close about 1; a "
        "wider histogram has heavier tails or clusters."
    )
    return _against_isotropy(series, "norms", curves.isotropic_norm_density, (1e-3, 3.0), "norm / √D", caption)


def _against_isotropy(
    series: Sequence[Series], name: str, density: Any, domain: tuple[float, float], label: str, caption: str
) -> Panel | None:
    shown = [s for s in series if at(s.scores, "geometry", name)]
    if not shown:
        return None
    dim = at(shown[0].scores, "dim")
    has_baseline = isinstance(dim, int) and dim >= 2

    def paint(axes: Any) -> None:
        ranges = [stairs(axes, s.scores["geometry"][name], s) for s in shown]
        highest = max(np.nanmax(numbers(s.scores["geometry"][name]["density"])) for s in shown)
        if has_baseline:
            x = np.linspace(*domain, 20 * BASELINE_POINTS)
            baseline = density(x, dim)
            visible = x[baseline > baseline.max() / 200]
            ranges.append((visible[0], visible[-1]))
            x = np.linspace(visible[0], visible[-1], BASELINE_POINTS)
            axes.plot(x, density(x, dim), color=drawing.INK, linewidth=1.2, linestyle=drawing.DASHES["dotted"])
            highest = max(highest, min(baseline.max(), HIGHEST_BASELINE * highest))
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        margin = 0.03 * (high - low)
        axes.set(xlabel=label, ylabel="density", xlim=(low - margin, high + margin), ylim=(0, 1.05 * highest))

    title = {"cosines": "Cosines of pairs", "norms": "Norms"}[name]
    legend = keys(shown)
    legend += (Key(f"isotropic, D = {dim}", "currentColor", "dotted"),) if has_baseline else ()
    return Panel(title, drawing.draw(paint, title=title), caption, legend)


def stairs(axes: Any, histogram: Any, series: Series, *, filled: bool = True) -> tuple[float, float]:
    """Draws a histogram, and tells between which edges it is not empty."""
    edges, density = numbers(histogram["edges"]), np.nan_to_num(numbers(histogram["density"]))
    occupied = np.flatnonzero(density)
    first, last = (occupied[0], occupied[-1] + 1) if occupied.size else (0, len(density))
    steps, levels = edges[first : last + 1], density[first:last]
    if filled and series.look == "solid":
        axes.stairs(levels, steps, fill=True, color=series.color, alpha=0.22, linewidth=0)
    axes.stairs(levels, steps, color=series.color, linestyle=drawing.DASHES[series.look], linewidth=1.2)
    return steps[0], steps[-1]


def p_values(series: Sequence[Series], *, standardized: bool) -> Panel | None:
    """p-values of normality along random directions.

    Args:
        series: the features.
        standardized: whether projections were shifted and scaled to mean 0 and variance 1.

    Returns:
        The figure, or None if there was no such test.
    """
    kind = "standardized" if standardized else "plain"
    shown = [s for s in series if at(s.scores, "geometry", "gaussianity", kind, "p_values")]
    if not shown:
        return None

    def paint(axes: Any) -> None:
        for s in shown:
            stairs(axes, s.scores["geometry"]["gaussianity"][kind]["p_values"], s, filled=False)
        axes.axhline(1.0, color=drawing.INK, linewidth=1.2, linestyle=drawing.DASHES["dotted"])
        axes.set(xlabel="p-value", ylabel="density", xlim=(0, 1), ylim=(0, None))

    title = "Gaussian in shape?" if standardized else "Standard normal?"
    of = "shifted and scaled to mean 0 and variance 1" if standardized else "as they are, against N(0, 1)"
    caption = (
        f"p-values of an Epps–Pulley test on random projections, {of}. A Gaussian cloud has the dotted, uniform "
        "density; mass near 0 is what the test rejects."
    )
    legend = (*keys(shown), Key("Gaussian", "currentColor", "dotted"))
    return Panel(title, drawing.draw(paint, title=f"{title} p-values"), caption, legend)


def statistic(series: Sequence[Series], *, standardized: bool) -> Panel | None:
    """Quantiles of the statistic of normality beside those of Gaussian samples.

    Args:
        series: the features.
        standardized: see `p_values`.

    Returns:
        The figure, or None if there was no such test.
    """
    kind = "standardized" if standardized else "plain"
    shown = [
        s for s in series if len(numbers(at(s.scores, "geometry", "gaussianity", kind, "statistic", "values"))) == 5
    ]
    if not shown:
        return None
    tests = [s.scores["geometry"]["gaussianity"][kind] for s in shown]
    rows = [(s.color, s.look, numbers(test["statistic"]["values"])) for s, test in zip(shown, tests, strict=True)]
    null = numbers(at(tests[0], "null", "values"))
    rows += [(drawing.INK, "solid", null)] if len(null) == 5 else []

    def paint(axes: Any) -> None:
        for row, (color, look, (lowest, lower, median, upper, highest)) in enumerate(rows):
            axes.plot([lowest, highest], [row, row], color=color, linewidth=1.4, solid_capstyle="butt")
            axes.plot([lower, upper], [row, row], color=color, linewidth=6, solid_capstyle="butt", alpha=0.55)
            face = color if look == "solid" else drawing.SURFACE
            axes.plot([median], [row], "o", color=color, markerfacecolor=face, markersize=5)
        drawing.log_axis(axes.xaxis, np.concatenate([values for _, _, values in rows]))
        axes.set(xlabel="Epps–Pulley statistic", yticks=[], ylim=(len(rows) - 0.5, -0.5))
        axes.spines["left"].set_visible(False)

    title = f"Distance from {'a Gaussian shape' if standardized else 'N(0, 1)'}"
    caption = (
        "The statistic over random directions: median, middle half and 5–95 % range. The last row is what Gaussian "
        "samples of the same size give."
    )
    legend = (*keys(shown, dots=True), Key("Gaussian samples", "currentColor", "dot"))
    return Panel(title, drawing.draw(paint, title=title), caption, legend)


def canonical_correlations(runs: Sequence[Run]) -> Panel | None:
    """How much q and p say about each other.

    Args:
        runs: the runs.

    Returns:
        The figure, or None if no run has q and p.
    """
    shown = {i: run for i, run in enumerate(runs) if at(run.metrics, "state", "canonical_correlations")}
    if not shown:
        return None

    def paint(axes: Any) -> None:
        for number, run in shown.items():
            for name, look in (("canonical_correlations", "solid"), ("shuffled", "dotted")):
                values = numbers(at(run.metrics, "state", name))
                index = np.arange(1, len(values) + 1)
                style = {"color": drawing.color_of(number), "linestyle": drawing.DASHES[look]}
                axes.plot(*curves.thin(index, values), **style)
        axes.set(xlabel="index", ylabel="correlation", ylim=(0, 1.03), xlim=(0, None))

    caption = (
        "Canonical correlations of q and p. Near 1, q and p repeat each other in so many directions; dotted is what "
        "shuffled pairs give, which is due to the finite number of images."
    )
    legend = [Key(run.label, drawing.PAGE_COLORS[drawing.color_of(i)]) for i, run in shown.items()]
    if any(at(run.metrics, "state", "shuffled") for run in shown.values()):
        legend.append(Key("shuffled", NEUTRAL, "dotted"))
    return Panel("q against p", drawing.draw(paint, title="Canonical correlations of q and p"), caption, tuple(legend))


def energy(runs: Sequence[Run]) -> Panel | None:
    """The energy of the states.

    Args:
        runs: the runs.

    Returns:
        The figure, or None if no run has q and p.
    """
    shown = {i: run for i, run in enumerate(runs) if at(run.metrics, "state", "energy")}
    if not shown:
        return None

    def paint(axes: Any) -> None:
        for number, run in shown.items():
            stairs(axes, run.metrics["state"]["energy"], Series(run.label, {}, drawing.color_of(number), "solid"))
        axes.axvline(1.0, color=drawing.INK, linewidth=1.2, linestyle=drawing.DASHES["dotted"])
        axes.set(xlabel="energy per degree of freedom, ‖z‖²/D", ylabel="density", ylim=(0, None))

    halves = [
        f"{run.label}: q {potential:.3f}, p {kinetic:.3f}"
        for run in shown.values()
        if (potential := at(run.metrics, "state", "potential")) is not None
        and (kinetic := at(run.metrics, "state", "kinetic")) is not None
    ]
    caption = "Energy ½‖z‖² of the states z = (q, p) over D/2; a standard normal cloud lies about the dotted 1."
    caption += f" Mean parts: {'; '.join(halves)}." if halves else ""
    legend = tuple(Key(run.label, drawing.PAGE_COLORS[drawing.color_of(i)], "area") for i, run in shown.items())
    return Panel("Energy of the states", drawing.draw(paint, title="Energy of the states"), caption, legend)
