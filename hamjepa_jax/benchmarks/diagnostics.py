"""What do trained predictors do to states of digits: which are symplectic, and which predict?

    python -m hamjepa_jax.benchmarks.diagnostics --seeds=3 --json=results/diagnostics_digits.json

Each run is trained and diagnosed in processes of its own.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hamjepa_jax.benchmarks import command_line
from hamjepa_jax.evaluation.diagnosis_numbers import NUMBERS

VARIANTS = ("hamjepa", "residual_mlp", "mlp")
# What is below or above these is told in powers of ten.
SMALL, LARGE = 0.01, 1e5


def measure(variant: str, seed: int, workdir: Path) -> dict[str, Any]:
    """Trains and diagnoses once.

    Args:
        variant: a variant of configs/digits.py.
        seed: seed of the run.
        workdir: a directory that does not exist yet.

    Returns:
        {"variant", "seed", "diagnostics"}.

    Raises:
        RuntimeError: if training or diagnosis fails.
    """
    config = [f"--config=configs/digits.py:{variant}", f"--config.train.seed={seed}"]
    for arguments in (["--mode=train", *config], ["--mode=diagnose"]):
        command = [sys.executable, "-m", "hamjepa_jax.main", f"--workdir={workdir}", *arguments]
        status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if status:
            raise RuntimeError(f"{variant}, seed {seed}, {arguments[0]}: exit status {status}")
    written = json.loads((workdir / "evaluation" / "diagnostics.json").read_text())
    return {"variant": variant, "seed": seed, "diagnostics": written}


def markdown_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The numbers as a Markdown table, mean ± standard deviation over the seeds.

    Args:
        runs: what `measure` returned, at least two seeds of every variant.

    Returns:
        The table.
    """
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    lines = [f"| | {' | '.join(variants)} |", f"| --- |{' ---: |' * len(variants)}"]
    for name, find in NUMBERS.items():
        of_variants = [[find(run["diagnostics"]) for run in runs if run["variant"] == v] for v in variants]
        lines.append(f"| {name} | {' | '.join(map(_cell, of_variants))} |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values):
        return ""
    mean, deviation = np.mean(known), np.std(known, ddof=1)
    if not SMALL <= abs(mean) < LARGE:
        return f"{mean:.0e} ± {deviation:.0e}"
    digits = max(0, 2 - math.floor(math.log10(abs(mean))))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    """Measures every variant and seed, prints the table and writes the JSON."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on (default: 3)")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: must be at least 2, for a standard deviation")
    runs = []
    with tempfile.TemporaryDirectory() as directory:
        jobs = [(variant, seed) for variant in VARIANTS for seed in range(options.seeds)]
        for variant, seed in track(jobs, description="runs"):
            runs.append(measure(variant, seed, Path(directory) / f"{variant}-{seed}"))
    print(markdown_table(runs))
    command_line.write_json(options.json, {"runs": runs})


if __name__ == "__main__":
    main()
