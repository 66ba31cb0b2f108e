"""How learned couplings are shown: excess risk against the number of pairs, recovered matrices, and a table."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hamjepa_jax.plotting import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILION, picture
from hamjepa_jax.stats.univariate import knots

Results = Mapping[str, Any]

LINES = {
    "SIGReg alone": (VERMILION, "s"),
    "MLP": (ORANGE, "^"),
    "linear": (BLUE, "o"),
    "Hamiltonian flow": (GREEN, "D"),
}
LEVELS = {"identity": PURPLE, "flow with H = I": SKY}
TABLE = {"sigreg": ("SIGReg", 1.0), "coupling_error": ("coupling", 100.0)}
# Deviations below this part of the mean are left out of the table.
NEGLIGIBLE = 1e-3


def draw_all(results: Results, directory: Path) -> list[Path]:
    """Draws both pictures, see `draw_sample_efficiency` and `draw_recovered`.

    Args:
        results: what `identifiability.learn_couplings` returns.
        directory: where the PNG files go.

    Returns:
        Their paths.

    Raises:
        StorageError: if one cannot be written.
    """
    drawings = {
        "theory_identifiability_pairs.png": draw_sample_efficiency,
        "theory_identifiability_coupling.png": draw_recovered,
    }
    for name, draw in drawings.items():
        draw(results, directory / name)
    return [directory / name for name in drawings]


def draw_sample_efficiency(results: Results, path: Path) -> None:
    """Draws the excess risk against the number of pairs: the mean over seeds, and one standard deviation about it.

    Args:
        results: what `identifiability.learn_couplings` returns.
        path: where the PNG goes.

    Raises:
        StorageError: if it cannot be written; an older one is intact then.
    """
    pairs, rho = results["num_pairs"], results["rho"]
    with picture(path, size=(9.0, 5.8)) as (_, axes):
        axes = axes[0, 0]
        ends = {}
        for name, color in LEVELS.items():
            level = _over_seeds(results, name, "excess_risk")[0]
            axes.plot(pairs, level, color=color, linestyle=":")
            ends[name] = (level[-1], color)
        for name, (color, marker) in LINES.items():
            mean, std = _over_seeds(results, name, "excess_risk")
            axes.plot(pairs, mean, color=color, marker=marker)
            # A logarithmic axis has no room for what is not positive.
            lower = np.maximum(mean - std, 0.1 * mean)
            axes.fill_between(pairs, lower, mean + std, color=color, alpha=0.2, linewidth=0)
            ends[name] = (mean[-1], color)
        # S_t instead of ρS_t costs (1 − ρ)²·tr Σ of (1 − ρ²)·tr Σ.
        exact = (1.0 - rho) / (1.0 + rho)
        axes.plot(pairs, np.full(len(pairs), exact), color=BLACK, linestyle="--")
        _name_lines(axes, pairs[-1], ends | {"exact flow $S_t$": (exact, BLACK)})
        axes.set(
            xscale="log",
            yscale="log",
            xlabel=f"training pairs $n$ (bands: ± 1 standard deviation over {len(results['seeds'])} seeds)",
            ylabel="excess risk / irreducible risk",
            title="A few pairs tell the coupling; marginals never do",
        )
        axes.set_xticks(pairs, [f"{number:,}" for number in pairs])
        axes.minorticks_off()
        axes.grid(axis="x", visible=False)


def draw_recovered(results: Results, path: Path) -> None:
    """Draws the best predictor ρS_t of the first seed, and beside it what was learned from the most pairs.

    Args:
        results: what `identifiability.learn_couplings` returns.
        path: where the PNG goes.

    Raises:
        StorageError: if it cannot be written; an older one is intact then.
    """
    shown = {r"best predictor $\rho S_t$": results["best_predictor"]}
    shown |= {name: results["recovered"][name] for name in ("SIGReg alone", "identity", *list(LINES)[1:])}
    _, weights, phi = knots(3.0, 17, "gaussian")
    exact = f"SIGReg of $N(0, \\Sigma)$: {np.sum(weights * (1.0 - phi**2)):.1f}\nfrom $z$ to $z'$"
    limit = np.max(np.abs(results["best_predictor"]))
    with picture(path, rows=2, columns=3, size=(10.5, 8.0)) as (figure, axes):
        for panel, (name, matrix) in zip(axes.flat, shown.items(), strict=True):
            image = panel.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
            half = len(matrix) / 2
            panel.axhline(half - 0.5, color=GRAY, linewidth=1)
            panel.axvline(half - 0.5, color=GRAY, linewidth=1)
            centres = [half / 2 - 0.5, 1.5 * half - 0.5]
            panel.set_xticks(centres, ["$q$", "$p$"])
            panel.set_yticks(centres, ["$q'$", "$p'$"])
            panel.tick_params(length=0)
            panel.grid(visible=False)
            panel.spines[:].set_visible(True)
            panel.set_title(name)
            panel.set_xlabel(_errors(results, name) if name in results["learners"] else exact)
        figure.suptitle(f"The same marginals, another coupling: learned from {results['num_pairs'][-1]:,} pairs")
        figure.colorbar(image, ax=axes, shrink=0.6, label="entry of the mean Jacobian")


def print_table(results: Results, console: Console) -> None:
    """Prints the excess risk for a few numbers of pairs, and what was recovered from the most, mean ± std over seeds.

    Args:
        results: what `identifiability.learn_couplings` returns.
        console: where to print.
    """
    pairs = results["num_pairs"]
    columns = sorted({0, len(pairs) // 3, len(pairs) - 1})
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", title_justify="left", title_style="italic")
    table.title = f"Learning a coupling of correlation {results['rho']}: mean ± std of {len(results['seeds'])} seeds"
    table.add_column("learner", no_wrap=True)
    for heading in (
        *(f"n={pairs[column]}" for column in columns),
        *(heading for heading, _ in TABLE.values()),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in results["learners"]:
        cells = [_cell(results, name, "excess_risk", column) for column in columns]
        cells += [_cell(results, name, measure, -1, factor) for measure, (_, factor) in TABLE.items()]
        table.add_row(name, *cells)
    console.print(table)
    console.print(
        "n pairs: risk beyond the best predictor's, over the irreducible risk; that of the exact flow is "
        f"{(1 - results['rho']) / (1 + results['rho']):.3f}\n"
        f"SIGReg of the predictions, and the error of the coupling in %: with n={pairs[-1]}"
    )


def _over_seeds(results: Results, name: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over seeds for every number of pairs."""
    values = np.asarray(results["learners"][name][measure])
    return np.mean(values, axis=1), np.std(values, axis=1, ddof=1)


def _cell(results: Results, name: str, measure: str, column: int, factor: float = 1.0) -> str:
    """Mean ± standard deviation, both to the deviation's first digit."""
    mean, std = (factor * values[column] for values in _over_seeds(results, name, measure))
    if std <= NEGLIGIBLE * abs(mean):
        return f"{mean:.3g}"
    decimals = max(0, -math.floor(math.log10(std)))
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"


def _name_lines(axes: Any, x: float, ends: Mapping[str, tuple[float, str]], apart: float = 0.16) -> None:
    """Writes names beside the right ends of lines, no two closer than so many decades."""
    lowest = -np.inf
    for name, (y, color) in sorted(ends.items(), key=lambda end: end[1]):
        lowest = max(np.log10(y), lowest + apart)
        style = {"textcoords": "offset points", "va": "center", "color": color, "annotation_clip": False}
        axes.annotate(name, (x, 10.0**lowest), (10, 0), **style)


def _errors(results: Results, name: str) -> str:
    statistic, coupling_error = (_over_seeds(results, name, m)[0][-1] for m in ("sigreg", "coupling_error"))
    return f"SIGReg {statistic:.1f}\ncoupling error {100 * coupling_error:.0f} %"
