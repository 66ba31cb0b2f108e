"""How an evaluation is shown: an aligned table on the console and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

BASELINES = {"pixels": "raw pixels", "random_encoder": "untrained encoder"}
# Of the few-label probes, what the table has room for.
FEW_LABELS = ("5",)


def print_table(metrics: Mapping[str, Any], console: Console) -> None:
    """Prints the scores as one aligned table, accuracies in percent.

    Args:
        metrics: what metrics.json holds.
        console: where to print.
    """
    rows = _named_scores(metrics)
    first = next(iter(rows.values()))
    ks, few = first["knn"]["k"], [name for name in FEW_LABELS if name in first["few_label_probe"]]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", title_justify="left", title_style="italic")
    table.title = (
        f"{metrics['variant']}, step {metrics['step']}, seed {metrics['seed']}: test accuracy of kNN(k) and probes, %"
    )
    table.add_column("features", no_wrap=True)
    for column in ("dim", *(f"k={k}" for k in ks), "probe", *(f"{name}-label" for name in few), "rank"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, scores in rows.items():
        accuracies = [*scores["knn"]["top1"], scores["linear_probe"]["top1"]]
        accuracies += [scores["few_label_probe"][labels]["top1"] for labels in few]
        table.add_row(
            # The title has the variant.
            name.removeprefix(f"{metrics['variant']} "),
            str(scores["dim"]),
            *(f"{100 * accuracy:.1f}" for accuracy in accuracies),
            # Features without any variance have none.
            "–" if (rank := scores["spectrum"]["effective_rank"]) is None else f"{rank:.1f}",
        )
    console.print(table)
    widest = max(high - low for low, high in (scores["linear_probe"]["top1_interval"] for scores in rows.values()))
    console.print(
        "probe: linear, all labels; 5-label: linear, 5 labels a class; rank: effective rank\n"
        f"95 % intervals of the probe over {metrics['num_test']:,} test images: ± {50 * widest:.1f} or less"
    )


def draw_summary(metrics: Mapping[str, Any], path: Path) -> None:
    """Draws kNN curves, covariance spectra, and histograms of cosines and norms, with the untrained encoder beside.

    Args:
        metrics: what metrics.json holds.
        path: where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((knn_axes, spectrum_axes), (cosine_axes, norm_axes)) = pyplot.subplots(
        2, 2, figsize=(11, 8), layout="constrained"
    )
    figure.suptitle(f"{metrics['variant']}, step {metrics['step']}, seed {metrics['seed']}")
    _draw_knn_curves(knn_axes, metrics)
    _draw_spectra(spectrum_axes, metrics)
    _draw_histograms(cosine_axes, metrics, "cosines")
    cosine_axes.set(xlabel="cosine of a random pair", ylabel="density", title="Cosines (not centred)")
    _draw_histograms(norm_axes, metrics, "norms")
    norm_axes.axvline(1.0, color="k", linewidth=1, linestyle=":", label="isotropic Gaussian")
    norm_axes.set(xlabel="norm / √dimension", ylabel="density", title="Norms")

    for axes in figure.axes:
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)


def _draw_histograms(axes: Any, metrics: Mapping[str, Any], name: str) -> None:
    for shown, (scores, color) in _headline_and_untrained(metrics).items():
        histogram = scores["geometry"][name]
        axes.stairs(histogram["density"], histogram["edges"], fill=True, alpha=0.6, color=color, label=shown)


def _headline_and_untrained(metrics: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, Any], str]]:
    """Scores and the colour in which they are drawn, by the name that is shown."""
    headline = next(iter(metrics["features"]))
    return {
        f"{metrics['variant']} {headline}": (metrics["features"][headline], "C0"),
        BASELINES["random_encoder"]: (metrics["baselines"]["random_encoder"], "0.5"),
    }


def _draw_knn_curves(axes: Any, metrics: Mapping[str, Any]) -> None:
    for index, (name, scores) in enumerate(_named_scores(metrics).items()):
        baseline = name in BASELINES.values()
        style = {"color": "k" if name == BASELINES["pixels"] else "0.5", "linestyle": "--"} if baseline else {}
        top1 = 100 * np.array(scores["knn"]["top1"])
        axes.plot(scores["knn"]["k"], top1, marker="o", markersize=4, label=name, **style, zorder=-index)
    axes.set(xscale="log", xlabel="neighbours k", ylabel="top-1 accuracy, %", title="Nearest neighbours")
    ks = scores["knn"]["k"]
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()


def _draw_spectra(axes: Any, metrics: Mapping[str, Any]) -> None:
    for name, (scores, color) in _headline_and_untrained(metrics).items():
        eigenvalues = np.array(scores["spectrum"]["eigenvalues"])
        shares = eigenvalues / eigenvalues.sum()
        positive = shares > 1e-12
        axes.plot(np.flatnonzero(positive) + 1, shares[positive], color=color, label=name)
    dim = len(eigenvalues)
    axes.axhline(1.0 / dim, color="k", linewidth=1, linestyle=":", label="isotropic")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="index",
        ylabel="share of the variance",
        title="Covariance spectrum",
    )


def _named_scores(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Scores by the name that is shown."""
    features = {f"{metrics['variant']} {name}": scores for name, scores in metrics["features"].items()}
    return features | {BASELINES[name]: scores for name, scores in metrics["baselines"].items()}
