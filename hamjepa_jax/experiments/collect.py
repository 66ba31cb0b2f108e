"""What the runs of a grid have measured, gathered into one table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hamjepa_jax.experiments.grids import Grid
from hamjepa_jax.experiments.runs import Run
from hamjepa_jax.experiments.significance import Comparison, Summary, compare, summarize

NEIGHBOURS = 20
FEW_LABELS = "5"
BASELINES = {"pixels": "raw pixels", "random_encoder": "untrained encoder"}


class Table(NamedTuple):
    """Scores of all rows.

    Attributes:
        metrics: names of the scores; accuracies are in %.
        rows: label → metric → seed → score.
        baselines: name → metric → seed → score, of raw pixels and of the reference's untrained encoder.
        headlines: label → the coordinates that were judged.
        reference: label of the row that others are compared with.
        missing: names of the runs that are not done.
    """

    metrics: tuple[str, ...]
    rows: dict[str, dict[str, dict[int, float]]]
    baselines: dict[str, dict[str, dict[int, float]]]
    headlines: dict[str, str]
    reference: str
    missing: tuple[str, ...]

    def summaries(self, metric: str) -> dict[str, Summary]:
        """The summary of a metric for every row that has any seed, and for the baselines."""
        return {
            label: summarize(list(scores[metric].values()))
            for label, scores in {**self.rows, **self.baselines}.items()
            if scores[metric]
        }

    def comparisons(self, metric: str) -> dict[str, Comparison]:
        """Every row against the reference."""
        return compare({label: scores[metric] for label, scores in self.rows.items()}, self.reference)


def measured(runs: Sequence[Run]) -> dict[str, dict[int, dict[str, Any]]]:
    """What the runs that are done have written.

    Args:
        runs: the runs.

    Returns:
        Label → seed → what metrics.json holds.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        if run.is_done():
            found.setdefault(run.cell.label, {})[run.seed] = json.loads(run.metrics_file.read_text())
    return found


def collect(
    grid: Grid, runs: Sequence[Run], written: Mapping[str, Mapping[int, Mapping[str, Any]]], *, reference: str
) -> Table:
    """Gathers scores.

    Args:
        grid: the grid.
        runs: its runs.
        written: what is known of them, see `measured`.
        reference: label of the row that others are compared with.

    Returns:
        The table.
    """
    metrics: tuple[str, ...] = ()
    rows, headlines = {}, {}
    for cell in grid.cells:
        of_seeds = written.get(cell.label, {})
        scores = {seed: _scores(next(iter(found["features"].values()))) for seed, found in of_seeds.items()}
        metrics = metrics or next(iter(scores.values()), ()) and tuple(next(iter(scores.values())))
        rows[cell.label] = scores
        headlines[cell.label] = next((next(iter(found["features"])) for found in of_seeds.values()), "")
    of_reference = written.get(reference) or next((seeds for seeds in written.values() if seeds), {})
    baselines = {
        shown: {seed: _scores(found["baselines"][name]) for seed, found in of_reference.items()}
        for name, shown in BASELINES.items()
    }
    return Table(
        metrics=metrics,
        rows={label: _by_metric(metrics, scores) for label, scores in rows.items()},
        baselines={name: _by_metric(metrics, scores) for name, scores in baselines.items()},
        headlines=headlines,
        reference=reference,
        missing=tuple(run.name for run in runs if run.seed not in written.get(run.cell.label, {})),
    )


def _scores(written: Mapping[str, Any]) -> dict[str, float]:
    """The scores of one set of features."""
    knn, few = written["knn"], written["few_label_probe"]
    few_label = {f"{name}-label probe, %": 100 * few[name]["top1"] for name in (FEW_LABELS, *few) if name in few}
    nearest = min(range(len(knn["k"])), key=lambda i: abs(knn["k"][i] - NEIGHBOURS))
    return {
        f"kNN@{knn['k'][nearest]}, %": 100 * knn["top1"][nearest],
        "linear probe, %": 100 * written["linear_probe"]["top1"],
        # One of them is enough for a table.
        **dict(list(few_label.items())[:1]),
        # Features without any variance have none.
        "effective rank": written["spectrum"]["effective_rank"] or 0.0,
    }


def _by_metric(metrics: Sequence[str], scores: Mapping[int, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    return {metric: {seed: values[metric] for seed, values in scores.items()} for metric in metrics}
