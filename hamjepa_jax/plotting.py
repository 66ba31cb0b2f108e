"""Pictures for talks: one style, colours that everybody can tell apart, and files that are always whole."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hamjepa_jax.atomic_files import replacing

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
YELLOW, BLUE, VERMILION, PURPLE = "#f0e442", "#0072b2", "#d55e00", "#cc79a7"
GRAY = "#8c8c8c"

# Readable at half size.
STYLE = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "figure.titlesize": 16,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "lines.linewidth": 2.2,
    "image.cmap": "viridis",
}
DOTS_PER_INCH = 120


@contextlib.contextmanager
def picture(
    path: Path, *, rows: int = 1, columns: int = 1, size: tuple[float, float] = (8.0, 5.0), **subplots: Any
) -> Iterator[tuple[Any, Any]]:
    """Has a picture drawn, and writes it when all of it is drawn.

    Args:
        path: where the PNG goes; its directory is made if need be.
        rows: rows of axes.
        columns: columns of axes.
        size: width and height in inches.
        **subplots: see `matplotlib.figure.Figure.subplots`, such as `sharex=True`.

    Yields:
        The figure, and its axes (rows, columns).

    Raises:
        StorageError: if it cannot be written; an older one is intact then.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **subplots)
        with replacing(path) as replacement:
            figure.savefig(replacement, dpi=DOTS_PER_INCH, format="png")
