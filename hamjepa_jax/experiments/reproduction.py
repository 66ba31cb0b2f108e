"""What comes of a reproduction: records of its runs, tables, a plot, and a section of the page on reproductions."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hamjepa_jax import atomic_files
from hamjepa_jax.experiments import report
from hamjepa_jax.experiments.claims import gains
from hamjepa_jax.experiments.collect import Table, collect
from hamjepa_jax.experiments.grids import GRIDS
from hamjepa_jax.experiments.records import Records, keep
from hamjepa_jax.experiments.reproduction_page import replace_section, section
from hamjepa_jax.experiments.reproductions import Reproduction
from hamjepa_jax.experiments.runs import Run

DIAGNOSED = "hamjepa"


def write(
    name: str, reproduction: Reproduction, runs: Sequence[Run], *, reference: str, results: Path, page: Path
) -> tuple[Table, list[Path]]:
    """Keeps what runs have measured, and says of each claim whether it holds.

    Of a run whose directory is gone an earlier record counts; a run that was made anew replaces its record.

    Args:
        name: name of the reproduction.
        reproduction: the reproduction.
        runs: its runs.
        reference: label of the row that others are compared with.
        results: directory of ROW_seedN.json, gains.json, the diagnoses of HamJEPA's first seed, tables and plot.
        page: the page, of which the section of this reproduction is written anew.

    Returns:
        The table and the files.

    Raises:
        StorageError: if a file cannot be written.
    """
    records = keep(runs, results)
    table = collect(GRIDS[reproduction.grid], runs, records, reference=reference)
    if not table.metrics:
        return table, []
    diagnoses = _keep_diagnoses(runs, results)
    atomic_files.write_json(results / "gains.json", _numbers(reproduction, records))
    directory = Path(os.path.relpath(results, page.parent)).as_posix()
    with atomic_files.replacing(page) as replacement:
        before = page.read_text() if page.exists() else ""
        text = section(reproduction, records, table.missing, diagnoses, directory)
        replacement.write_text(replace_section(before, name, text))
    files = report.write(table, runs, results, title=reproduction.title)
    return table, [*files, results / "gains.json", page]


def _keep_diagnoses(runs: Sequence[Run], results: Path) -> dict[str, Any]:
    """What the trained maps of HamJEPA do, of the first seed of each of its rows."""
    diagnoses = {}
    for run in runs:
        if run.seed == 0 and run.cell.variant.startswith(DIAGNOSED):
            file = results / f"{run.cell.label}_seed0_diagnostics.json"
            made = run.workdir / "evaluation" / "diagnostics.json"
            if made.exists():
                atomic_files.write_json(file, json.loads(made.read_text()))
            if file.exists():
                diagnoses[run.name] = json.loads(file.read_text())
    return diagnoses


def _numbers(reproduction: Reproduction, records: Records) -> dict[str, Any]:
    """All gains, with the differences of every seed."""
    readings = {
        "claims": gains(reproduction.claims, records),
        **{f"claims, {names}": gains(reproduction.claims, records, names) for names in ("p", "qp")},
        "controls": gains(reproduction.controls, records),
        "corrected": gains(reproduction.corrected, records),
    }
    return {
        reading: [
            {
                **gain.claim._asdict(),
                "coordinates": gain.coordinates,
                "differences": {str(seed): value for seed, value in gain.differences.items()},
                **gain.summary._asdict(),
                "t_test": gain.t_test,
                "wilcoxon": gain.wilcoxon,
                "verdict": gain.verdict,
            }
            for gain in found
        ]
        for reading, found in readings.items()
    }
