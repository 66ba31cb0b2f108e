"""How a grid is shown: tables in Markdown, CSV, JSON and on the console, and a picture with every seed."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as ConsoleTable

from hamjepa_jax import environment
from hamjepa_jax.experiments.collect import Table
from hamjepa_jax.experiments.runs import Run
from hamjepa_jax.experiments.significance import Summary

# The fewest seeds with which Wilcoxon's test can fall below 5 %.
WILCOXON_SEEDS = 6


def write(table: Table, runs: Sequence[Run], directory: Path, *, title: str) -> list[Path]:
    """Writes table.md, table.csv, results.json and plot.png.

    Args:
        table: the table.
        runs: the runs of the grid.
        directory: where the files go.
        title: what the table is called.

    Returns:
        The files.
    """
    files = [directory / name for name in ("table.md", "table.csv", "results.json", "plot.png")]
    files[0].write_text(markdown(table, title))
    with files[1].open("w", newline="") as file:
        csv.writer(file).writerows(_csv_rows(table))
    files[2].write_text(json.dumps(_results(table, runs), indent=1) + "\n")
    draw(table, files[3], title=title)
    return files


def markdown(table: Table, title: str) -> str:
    """The table in Markdown: mean ± standard deviation and 95 % interval of every row, then the comparisons."""
    seeds = {summary.n for metric in table.metrics for summary in table.summaries(metric).values()}
    lines = [f"# {title}", "", f"Mean ± standard deviation over seeds, [95 % interval of the mean]; {_seeds(seeds)}."]
    lines += ["", f"| | n | {' | '.join(table.metrics)} |", f"| --- | ---: |{' ---: |' * len(table.metrics)}"]
    summaries = {metric: table.summaries(metric) for metric in table.metrics}
    for label in _labels(table):
        cells = [_written(summaries[metric][label]) for metric in table.metrics]
        count = summaries[table.metrics[0]][label].n
        lines.append(f"| {_shown(table, label)} | {count} | {' | '.join(cells)} |")
    comparisons = {metric: table.comparisons(metric) for metric in table.metrics}
    if any(comparisons.values()):
        lines += ["", f"## Against {table.reference}", "", _reading(comparisons), ""]
        lines += [f"| | {' | '.join(table.metrics)} |", f"| --- |{' ---: |' * len(table.metrics)}"]
        for label in next(iter(comparisons.values())):
            cells = [
                f"{c.difference:+.2f} (t {_p(c.t_test)}, W {_p(c.wilcoxon)})"
                for c in (comparisons[metric][label] for metric in table.metrics)
            ]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    if table.missing:
        lines += ["", f"Missing: {len(table.missing)} runs: {'; '.join(table.missing)}."]
    return "\n".join(lines) + "\n"


def _seeds(counts: set[int]) -> str:
    return f"{min(counts)} to {max(counts)} seeds" if len(counts) > 1 else f"{max(counts, default=0)} seeds"


def _reading(comparisons: dict[str, dict[str, Any]]) -> str:
    n = max(comparison.n for of_metric in comparisons.values() for comparison in of_metric.values())
    reading = (
        "Mean difference, paired by seed; p-values of the t-test (t) and of Wilcoxon's signed-rank test (W), "
        "two-sided, each corrected by Holm over all rows of the column."
    )
    if n < WILCOXON_SEEDS:
        reading += (
            f" With {n} seeds Wilcoxon's test cannot fall below {2 ** (1 - n):.2g} before the correction: it needs "
            f"{WILCOXON_SEEDS} seeds to reach 5 % for one comparison."
        )
    return reading


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _written(summary: Summary) -> str:
    if summary.n < 2:
        return f"{summary.mean:.1f}"
    return f"{summary.mean:.1f} ± {summary.std:.1f} [{summary.low:.1f}, {summary.high:.1f}]"


def _labels(table: Table) -> list[str]:
    """Rows and baselines that have any seed."""
    return list(table.summaries(table.metrics[0])) if table.metrics else []


def _shown(table: Table, label: str) -> str:
    headline = table.headlines.get(label)
    return f"{label} ({headline})" if headline else label


def _csv_rows(table: Table) -> list[list[Any]]:
    header = ["row", "metric", "n", "mean", "std", "low", "high", "difference", "p_t_test", "p_wilcoxon"]
    lines: list[list[Any]] = [header]
    for metric in table.metrics:
        comparisons = table.comparisons(metric)
        for label, s in table.summaries(metric).items():
            c = comparisons.get(label)
            compared = [c.difference, c.t_test, c.wilcoxon] if c else ["", "", ""]
            lines.append([label, metric, s.n, s.mean, s.std, s.low, s.high, *compared])
    return lines


def _results(table: Table, runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "environment": environment.describe(),
        "reference": table.reference,
        "headlines": table.headlines,
        "commands": {run.name: " ".join(run.command) for run in runs},
        "missing": table.missing,
        "scores": {
            label: {metric: {str(seed): score for seed, score in of_seed.items()} for metric, of_seed in scores.items()}
            for label, scores in {**table.rows, **table.baselines}.items()
        },
        "comparisons": {
            metric: {label: c._asdict() for label, c in table.comparisons(metric).items()} for metric in table.metrics
        },
    }


def print_table(table: Table, console: Console, *, title: str) -> None:
    """Prints means and standard deviations.

    Args:
        table: the table.
        console: where to print.
        title: what the table is called.
    """
    shown = ConsoleTable(box=None, padding=(0, 1, 0, 0), header_style="bold", title_justify="left", title=title)
    shown.add_column("", no_wrap=True)
    for column in ("n", *table.metrics):
        shown.add_column(column, justify="right")
    summaries = {metric: table.summaries(metric) for metric in table.metrics}
    for label in _labels(table):
        of_row = [summaries[metric][label] for metric in table.metrics]
        written = [f"{s.mean:.1f}" + (f" ± {s.std:.1f}" if s.n > 1 else "") for s in of_row]
        shown.add_row(label, str(of_row[0].n), *written)
    console.print(shown)
    if table.missing:
        console.print(f"missing: {len(table.missing)} runs")


def draw(table: Table, path: Path, *, title: str) -> None:
    """Draws a panel for each metric and a line for each row: every seed, their mean and its 95 % interval.

    Args:
        table: the table.
        path: where the PNG goes.
        title: what the table is called.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [label for label in _labels(table) if label in table.rows]
    height = 1.4 + 0.28 * max(len(labels), 4)
    figure, panels = pyplot.subplots(
        1, max(len(table.metrics), 1), figsize=(13, height), sharey=True, layout="constrained", squeeze=False
    )
    figure.suptitle(title)
    for axes, metric in zip(panels[0], table.metrics, strict=False):
        summaries = table.summaries(metric)
        for place, label in enumerate(labels):
            summary, scores = summaries[label], list(table.rows[label][metric].values())
            color = "C1" if label == table.reference else "C0"
            axes.plot(scores, [place] * len(scores), "o", color=color, markersize=4, alpha=0.5, linestyle="none")
            if summary.n > 1:
                axes.plot([summary.low, summary.high], [place, place], color=color, linewidth=1.5)
            axes.plot(summary.mean, place, "|", color=color, markersize=10, markeredgewidth=2)
        for index, (name, of_baseline) in enumerate(table.baselines.items()):
            if of_baseline[metric]:
                mean = float(np.mean(list(of_baseline[metric].values())))
                axes.axvline(mean, color="0.4", linestyle=("--", ":")[index % 2], linewidth=1, label=name)
        axes.set_xlabel(metric)
        axes.set_yticks(range(len(labels)), [_shown(table, label) for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if labels:
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
