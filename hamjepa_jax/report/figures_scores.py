"""What is compared in figures of an evaluation, and how accurate it is: neighbours and linear probes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hamjepa_jax.report import drawing
from hamjepa_jax.report.elements import Key, Panel
from hamjepa_jax.report.reading import Run, at, numbers

BASELINES = {"pixels": "raw pixels", "random_encoder": "untrained encoder"}
MOST_LABELS = 7


class Series(NamedTuple):
    """Features that are compared with others.

    Attributes:
        label: what they are called.
        scores: what metrics.json holds about them.
        color: the colour they are drawn in.
        look: "solid", "dashed" or "dotted".
    """

    label: str
    scores: dict[str, Any]
    color: str
    look: str


def compared(runs: Sequence[Run], *, pixels: bool = True) -> list[Series]:
    """The features that figures compare: all coordinates of one run, or the headline coordinates of several.

    Args:
        runs: the runs.
        pixels: whether raw pixels belong to it.

    Returns:
        The features of the runs, then the baselines.
    """
    series, untrained = [], []
    for number, run in enumerate(runs):
        features = at(run.metrics, "features") or {}
        if len(runs) == 1:
            series += [
                Series(name, scores, drawing.color_of(i), "solid") for i, (name, scores) in enumerate(features.items())
            ]
        elif features:
            label = f"{run.label}: {run.headline}"
            series.append(Series(label, features[run.headline], drawing.color_of(number), "solid"))
        if scores := at(run.metrics, "baselines", "random_encoder"):
            color = drawing.NEUTRAL if len(runs) == 1 else drawing.color_of(number)
            label = BASELINES["random_encoder"] + ("" if len(runs) == 1 else f" of {run.label}")
            untrained.append(Series(label, scores, color, "dotted"))
    raw = {at(run.config, "data", "name"): at(run.metrics, "baselines", "pixels") for run in reversed(runs)}
    raw = {name: scores for name, scores in raw.items() if scores and pixels}
    for name, scores in raw.items():
        label = BASELINES["pixels"] + ("" if len(raw) == 1 else f" of {name}")
        untrained.append(Series(label, scores, drawing.NEUTRAL, "dashed"))
    return series + untrained


def keys(series: Sequence[Series], *, dots: bool = False) -> tuple[Key, ...]:
    """The legend of a figure; the untrained encoders of several runs, in the runs' colours, share an entry.

    Args:
        series: what the figure shows.
        dots: whether the figure has dots, rings for baselines, instead of lines.

    Returns:
        The entries.
    """
    found = {}
    for s in series:
        shared = s.look == "dotted" and s.color != drawing.NEUTRAL
        label, color = (f"{BASELINES['random_encoder']}s", drawing.NEUTRAL) if shared else (s.label, s.color)
        look = ("dot" if s.look == "solid" else "ring") if dots else s.look
        found[label] = Key(label, drawing.PAGE_COLORS[color], look)
    return tuple(found.values())


def neighbour_accuracy(series: Sequence[Series], *, weighted: bool) -> Panel | None:
    """Accuracy of nearest neighbours against the number of neighbours.

    Args:
        series: the features.
        weighted: whether neighbours vote with weights exp(cos/T) instead of one each.

    Returns:
        The figure, or None if there are no such scores.
    """
    name = "weighted_top1" if weighted else "top1"
    shown = [s for s in series if 0 < len(at(s.scores, "knn", "k") or ()) == len(at(s.scores, "knn", name) or ())]
    if not shown:
        return None
    ks = sorted({k for s in shown for k in s.scores["knn"]["k"]})

    def paint(axes: Any) -> None:
        for s in shown:
            knn = s.scores["knn"]
            _curve(axes, s, knn["k"], knn[name], at(knn, f"{name}_interval"))
        drawing.log_axis(axes.xaxis, numbers(ks))
        axes.set_xticks(ks[:: -(-len(ks) // MOST_LABELS)], [str(k) for k in ks[:: -(-len(ks) // MOST_LABELS)]])
        axes.set(xlabel="neighbours k", ylabel="top-1 accuracy, %")

    title = f"{'Weighted nearest' if weighted else 'Nearest'} neighbours"
    vote = "Neighbours vote with weight exp(cos/T)." if weighted else "Every neighbour has one vote."
    caption = f"Test accuracy of k nearest neighbours by cosine. {vote}"
    if any(at(s.scores, "knn", f"{name}_interval") for s in shown):
        caption += " Bands are 95 % intervals over test images."
    return Panel(title, drawing.draw(paint, title=f"{title}: accuracy against k"), caption, keys(shown))


def probe_sweep(series: Sequence[Series]) -> Panel | None:
    """Accuracy of the linear probe against its learning rate.

    Args:
        series: the features.

    Returns:
        The figure, or None if no learning rates were swept.
    """
    shown = [s for s in series if at(s.scores, "linear_probe", "sweep", "learning_rate")]
    if not shown:
        return None
    rates = sorted({rate for s in shown for rate in s.scores["linear_probe"]["sweep"]["learning_rate"]})

    def paint(axes: Any) -> None:
        for s in shown:
            sweep = s.scores["linear_probe"]["sweep"]
            _curve(axes, s, sweep["learning_rate"], sweep["top1"], None)
            if best := at(sweep, "best"):
                axes.plot([best["learning_rate"]], [100 * best["top1"]], marker="*", markersize=11, color=s.color)
        drawing.log_axis(axes.xaxis, numbers(rates))
        few = rates[:: -(-len(rates) // MOST_LABELS)]
        axes.set_xticks(few, [drawing.power_text(rate) for rate in few])
        axes.set(xlabel="learning rate of the probe", ylabel="top-1 accuracy, %")

    caption = (
        "Test accuracy of a linear probe. The star is the rate that training images held out for the choice prefer: "
        "a curve that is flat about it does not owe its height to the choice."
    )
    svg = drawing.draw(paint, title="Linear probe: accuracy against the learning rate")
    return Panel("Linear probe", svg, caption, keys(shown))


def _curve(axes: Any, series: Series, x: Any, accuracies: Any, intervals: Any) -> None:
    style = {"color": series.color, "linestyle": drawing.DASHES[series.look]}
    axes.plot(x, 100 * numbers(accuracies), marker="o", **style)
    bounds = 100 * numbers(intervals)
    if bounds.ndim == 2:
        alpha = 0.13 if series.look == "solid" else 0.05
        axes.fill_between(x, *bounds.T, color=series.color, alpha=alpha, linewidth=0)
