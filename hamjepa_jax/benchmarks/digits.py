"""How do HamJEPA, SIGReg, raw pixels and an untrained encoder compare on digits, over seeds?

    python -m hamjepa_jax.benchmarks.digits --seeds=5 --json=results/digits.json

Each run is the README's command in a process of its own, timed with everything that it does, which is to compile
everything too.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hamjepa_jax.benchmarks import command_line

VARIANTS = ("hamjepa", "sigreg")
HEADLINE_NEIGHBOURS = 20
# Row of the table → the variant whose runs hold the scores, and where in their metrics.json.
ROWS = {
    "HamJEPA q": ("hamjepa", "features", "q"),
    "HamJEPA p": ("hamjepa", "features", "p"),
    "HamJEPA qp": ("hamjepa", "features", "qp"),
    "SIGReg whole": ("sigreg", "features", "whole"),
    "raw pixels": ("hamjepa", "baselines", "pixels"),
    "untrained encoder q": ("hamjepa", "baselines", "random_encoder"),
    "untrained encoder whole": ("sigreg", "baselines", "random_encoder"),
}


def measure(variant: str, seed: int, workdir: Path) -> dict[str, Any]:
    """Runs the digits experiment once.

    Args:
        variant: a variant of configs/digits.py.
        seed: seed of the run.
        workdir: a directory that does not exist yet.

    Returns:
        {"variant", "seed", "seconds", "peak_memory_gib", "metrics"}, the metrics without spectra and histograms.

    Raises:
        RuntimeError: if the run fails.
    """
    command = [sys.executable, "-m", "hamjepa_jax.main", f"--config=configs/digits.py:{variant}"]
    arguments = [f"--config.train.seed={seed}", f"--workdir={workdir}"]
    start = time.monotonic()
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        raise RuntimeError(f"{variant}, seed {seed}: exit status {os.waitstatus_to_exitcode(status)}")
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    for scores in (*metrics["features"].values(), *metrics["baselines"].values()):
        del scores["spectrum"]["eigenvalues"]
        scores["geometry"] = {name: scores["geometry"][name] for name in ("alignment", "uniformity")}
    del metrics["state"]
    # Linux counts the resident set in KiB.
    memory = usage.ru_maxrss / 2**20
    return {
        "variant": variant,
        "seed": seed,
        "seconds": round(seconds, 2),
        "peak_memory_gib": round(memory, 3),
        "metrics": metrics,
    }


def headline_scores(runs: Sequence[Mapping[str, Any]], row: str) -> np.ndarray:
    """kNN@20, probe and few-label accuracy of one row of the table.

    Args:
        runs: what `measure` returned.
        row: a name in `ROWS`.

    Returns:
        Accuracies in percent, (seeds, 3), ordered by seed.
    """
    variant, group, name = ROWS[row]
    scores = [
        run["metrics"][group][name] for run in sorted(runs, key=lambda run: run["seed"]) if run["variant"] == variant
    ]
    return 100.0 * np.array(
        [
            (
                s["knn"]["top1"][s["knn"]["k"].index(HEADLINE_NEIGHBOURS)],
                s["linear_probe"]["top1"],
                s["few_label_probe"]["5"]["top1"],
            )
            for s in scores
        ]
    )


def markdown_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as a Markdown table, mean ± standard deviation over the seeds in percent.

    Args:
        runs: what `measure` returned, at least two seeds of every variant.

    Returns:
        The table.
    """

    def cells(scores: np.ndarray) -> str:
        means, deviations = scores.mean(axis=0), scores.std(axis=0, ddof=1)
        return " | ".join(f"{m:.1f} ± {s:.1f}" for m, s in zip(means, deviations, strict=True))

    lines = ["| features | kNN@20 | linear probe | 5-label probe |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {row} | {cells(headline_scores(runs, row))} |" for row in ROWS]
    difference = headline_scores(runs, "HamJEPA q") - headline_scores(runs, "SIGReg whole")
    lines.append(f"| HamJEPA q − SIGReg, per seed | {cells(difference)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every variant and seed, prints the table and writes the JSON."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on (default: 5)")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: must be at least 2, for a standard deviation")

    runs = []
    with tempfile.TemporaryDirectory() as directory:
        jobs = [(variant, seed) for seed in range(options.seeds) for variant in VARIANTS]
        for variant, seed in track(jobs, description="runs"):
            runs.append(measure(variant, seed, Path(directory) / f"{variant}-{seed}"))
    print(markdown_table(runs))
    for variant in VARIANTS:
        seconds = [run["seconds"] for run in runs if run["variant"] == variant]
        memory = max(run["peak_memory_gib"] for run in runs if run["variant"] == variant)
        print(f"{variant}: {np.mean(seconds):.0f} s a run, at most {max(seconds):.0f} s and {memory:.2f} GiB")
    command_line.write_json(options.json, {"runs": runs})


if __name__ == "__main__":
    main()
