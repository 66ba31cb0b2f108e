"""Maps of the embedding to the plane, coloured by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hamjepa_jax.report import drawing
from hamjepa_jax.report.elements import Panel
from hamjepa_jax.report.reading import Run, at

# With more classes than this, colours are those of a scale, and classes are not named.
MOST_CLASSES = 20
# More points are drawn as an image, which is smaller then.
MOST_VECTORS = 2000
# Of medium lightness, for both light and dark backgrounds.
SCALE = ("#2f7fd6", "#7d6fd0", "#b05fb8", "#e0554f", "#d98a00")
LONGEST_NAME = 14


def maps(run: Run) -> list[Panel]:
    """The principal components, and UMAP or t-SNE.

    Args:
        run: the run.

    Returns:
        The figures that there are.
    """
    labels, pca, share = (run.pictures.get(name) for name in ("map_labels", "map_pca", "map_pca_share"))
    found = []
    if labels is not None and pca is not None:
        names = [f"component {i + 1}" for i in range(2)]
        if share is not None:
            names = [f"{name}, {100 * part:.1f} % of the variance" for name, part in zip(names, share, strict=True)]
        caption = "The two directions of largest variance of the test embeddings. True distances are at least as large."
        found.append(_map(run, pca, labels, f"Principal components, {run.headline}", names, caption))
    method, points = str(run.pictures.get("map_method", "")), run.pictures.get("map_points")
    if labels is not None and method and points is not None and len(points):
        method = method.replace("umap", "UMAP")
        caption = f"{method} keeps neighbours together; sizes of clusters and distances between them mean little."
        found.append(_map(run, points, labels, f"{method}, {run.headline}", ["", ""], caption))
    return found


def class_name(run: Run, label: int) -> str:
    """The name of a class, or its number where names are not known.

    Args:
        run: the run.
        label: the number of the class.

    Returns:
        The name.
    """
    names: Sequence[str] = at(run.metrics, "class_names") or ()
    return str(names[label]) if 0 <= label < len(names) else f"class {label}"


def _map(run: Run, points: np.ndarray, labels: np.ndarray, title: str, axis_names: list[str], caption: str) -> Panel:
    classes = np.unique(labels)
    few = len(classes) <= MOST_CLASSES
    caption += " One colour is one class." if few else f" Colour runs over the {len(classes)} classes in their order."

    def paint(axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        style = {"s": 12, "linewidths": 0.6, "rasterized": len(points) > MOST_VECTORS}
        if few:
            for number, label in enumerate(classes):
                color = drawing.color_of(number)
                # The second ten are rings.
                face = color if number < len(drawing.SERIES) else "none"
                of_class = points[labels == label]
                axes.scatter(*of_class.T, edgecolors=color, facecolors=face, alpha=0.75, **style)
            for label in classes:
                _name(axes, np.median(points[labels == label], axis=0), class_name(run, int(label)))
        else:
            scale = LinearSegmentedColormap.from_list("classes", SCALE)
            axes.scatter(*points.T, c=labels, cmap=scale, alpha=0.8, **style)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
        if not any(axis_names):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)

    size = (4.6, 3.9)
    return Panel(title, drawing.draw(paint, title=f"{title}: map of {run.label}", size=size), caption)


def _name(axes: Any, position: np.ndarray, name: str) -> None:
    shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    box = {"boxstyle": "round,pad=0.15", "facecolor": drawing.SURFACE, "edgecolor": "none", "alpha": 0.75}
    axes.text(*position, shown, ha="center", va="center", fontsize=9.5, fontweight="bold", bbox=box)
