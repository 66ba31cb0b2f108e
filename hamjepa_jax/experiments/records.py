"""The record of a run: what is kept of it when its directory is gone, in one small JSON file."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hamjepa_jax import atomic_files, environment
from hamjepa_jax.experiments.runs import Run

# What an evaluation has measured of features, without curves, histograms and spectra.
KEPT = {"knn": ("k", "top1", "top5"), "linear_probe": ("learning_rate", "top1", "top5"), "few_label_probe": None}
SPECTRUM = ("effective_rank", "participation_ratio", "rank_me", "anisotropy")

Records = dict[str, dict[int, dict[str, Any]]]


def record(run: Run) -> dict[str, Any]:
    """What is kept of a run that is done.

    Args:
        run: the run.

    Returns:
        {"row", "seed", "command", "step", "views_per_second", "wall_seconds", "warnings", "last_step", "environment",
        "features", "baselines"}. The speed is that of training alone, since the run was last started; the wall time is
        that of all its processes, with compilation and evaluation, None if it is not known. The last step has all that
        was logged of it: losses, shares of the gradient, statistics of the states.
    """
    metrics = json.loads(run.metrics_file.read_text())
    steps = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        "row": run.cell.label,
        "seed": run.seed,
        "command": " ".join(run.command),
        "step": metrics["step"],
        "views_per_second": steps[-1]["views_per_second"],
        "wall_seconds": run.wall_seconds(),
        "warnings": [re.sub(r"\s+", " ", warning) for step in steps for warning in step.get("warnings", ())],
        "last_step": {name: value for name, value in steps[-1].items() if name != "warnings"},
        "environment": environment.describe(),
        "features": {name: _scores(scores) for name, scores in metrics["features"].items()},
        "baselines": {name: _scores(scores) for name, scores in metrics["baselines"].items()},
    }


def _scores(written: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: _some(written[name], fields) for name, fields in KEPT.items()}
    return {"dim": written["dim"], **kept, "spectrum": _some(written["spectrum"], SPECTRUM)}


def _some(values: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if fields is None or name in fields}


def keep(runs: Sequence[Run], directory: Path) -> Records:
    """Writes the record of every run that is done, and reads those of runs whose directories are gone.

    Args:
        runs: the runs of a grid.
        directory: where the records lie, ROW_seedN.json.

    Returns:
        Label → seed → record.
    """
    records: Records = {}
    for run in runs:
        file = directory / f"{run.cell.label}_seed{run.seed}.json"
        if run.is_done() and not _is_of(run, file):
            atomic_files.write_json(file, record(run))
        if file.exists():
            records.setdefault(run.cell.label, {})[run.seed] = json.loads(file.read_text())
    return records


def _is_of(run: Run, file: Path) -> bool:
    """Whether a record is younger than what it was made of: it also tells on which machine that was."""
    return file.exists() and file.stat().st_mtime >= run.metrics_file.stat().st_mtime
