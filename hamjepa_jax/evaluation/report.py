"""How an evaluation is shown: an aligned table on the console and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hamjepa_jax.evaluation.spectra import norms, random_pair_cosines

BASELINES = {"pixels": "raw pixels", "random_encoder": "untrained encoder"}
COSINE_PAIRS = 20_000


def print_table(metrics: Mapping[str, Any], console: Console) -> None:
    """Prints the scores as one aligned table, accuracies in percent.

    Args:
        metrics: what metrics.json holds.
        console: where to print.
    """
    rows = _named_scores(metrics)
    first = next(iter(rows.values()))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", title_justify="left", title_style="italic")
    table.title = (
        f"{metrics['variant']}, step {metrics['step']}, seed {metrics['seed']}: test accuracy of kNN(k) and probes, %"
    )
    table.add_column("features", no_wrap=True)
    columns = [f"k={k}" for k in first["knn"]["k"]]
    labels = first["few_label_probe"]["labels_per_class"]
    for column in ("dim", *columns, "probe", f"{labels}-label", "rank"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, scores in rows.items():
        accuracies = [*scores["knn"]["top1"], scores["linear_probe"]["top1"], scores["few_label_probe"]["top1"]]
        table.add_row(
            # The title has the variant.
            name.removeprefix(f"{metrics['variant']} "),
            str(scores["dim"]),
            *(f"{100 * accuracy:.1f}" for accuracy in accuracies),
            f"{scores['spectrum']['effective_rank']:.1f}",
        )
    console.print(table)
    console.print(f"probe: linear, all labels; {labels}-label: linear, {labels} labels a class; rank: effective rank")


def draw_summary(metrics: Mapping[str, Any], clouds: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws kNN curves, covariance spectra, and histograms of cosines and norms, with the untrained encoder beside.

    Args:
        metrics: what metrics.json holds.
        clouds: test features (N, D) by name: the headline coordinate, and that of the untrained encoder.
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
    trained, untrained = clouds
    colors = {trained: "C0", untrained: "0.5"}

    for name, cloud in clouds.items():
        cosines = random_pair_cosines(cloud, num_pairs=COSINE_PAIRS, seed=0)
        cosine_axes.hist(cosines, bins=np.linspace(-1, 1, 81), density=True, alpha=0.6, color=colors[name], label=name)
    cosine_axes.set(xlabel="cosine of a random pair", ylabel="density", title="Cosines (not centred)")
    cosine_axes.legend(frameon=False)

    for name, cloud in clouds.items():
        relative = norms(cloud) / np.sqrt(cloud.shape[1])
        norm_axes.hist(relative, bins=40, density=True, alpha=0.6, color=colors[name], label=name)
    norm_axes.axvline(1.0, color="k", linewidth=1, linestyle=":", label="isotropic Gaussian")
    norm_axes.set(xlabel="norm / √dimension", ylabel="density", title="Norms")
    norm_axes.legend(frameon=False)

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


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
    axes.legend(frameon=False)


def _draw_spectra(axes: Any, metrics: Mapping[str, Any]) -> None:
    headline = next(iter(metrics["features"]))
    drawn = {
        f"{metrics['variant']} {headline}": (metrics["features"][headline], "C0"),
        BASELINES["random_encoder"]: (metrics["baselines"]["random_encoder"], "0.5"),
    }
    for name, (scores, color) in drawn.items():
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
    axes.legend(frameon=False)


def _named_scores(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Scores by the name that is shown."""
    features = {f"{metrics['variant']} {name}": scores for name, scores in metrics["features"].items()}
    return features | {BASELINES[name]: scores for name, scores in metrics["baselines"].items()}
