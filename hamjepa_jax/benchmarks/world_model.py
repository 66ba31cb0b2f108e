"""What do a Hamiltonian flow and an MLP learn from films of pendula, over seeds?

    python -m hamjepa_jax.benchmarks.world_model --data=pendulum --seeds=5 --json=results/world_model_pendulum.json
    python -m hamjepa_jax.benchmarks.world_model --data=coupled_pendula --json=results/world_model_coupled_pendula.json

Each run is trained and judged in processes of its own.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hamjepa_jax import plotting
from hamjepa_jax.benchmarks import command_line
from hamjepa_jax.data.pendulum import PENDULA
from hamjepa_jax.evaluation.world_model import OBSERVED_EVERY

VARIANTS = ("hamjepa", "mlp")
COLORS = {"hamjepa": plotting.BLUE, "mlp": plotting.VERMILION}


def _reading(name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda found: found["readings"][name]


def _after(name: str, application: int) -> Callable[[Mapping[str, Any]], float | None]:
    number = application // OBSERVED_EVERY
    return lambda found: found["long_runs"][name] and found["long_runs"][name]["median"][number]


# Row of the table → the number, of what world_model.json holds; None where there is none.
ROWS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "angle from q, R²": _reading("angle_from_q"),
    "angle from q at the time that fits best, R²": _reading("shifted_angle_from_q"),
    "angular velocity from p, R²": _reading("velocity_from_p"),
    "angular velocity from p at that time, R²": _reading("shifted_velocity_from_p"),
    "that time, √(l/g)": _reading("time_shift"),
    "rank correlation of H and energy": lambda found: found["long_runs"]["energy_rank_correlation"],
    "drift of H after 1,000, std": _after("learned_energy_drift", 1000),
    "error of the energy at once, std": _after("energy_error", 0),
    "error of the energy after 1,000, std": _after("energy_error", 1000),
    "error of the angle at once, rad": _after("angle_error", 0),
    "error of the angle after 10, rad": _after("angle_error", 10),
    "error of the angle after 100, rad": _after("angle_error", 100),
    "error of the period, %": lambda found: (
        None if found["long_runs"]["period_error"] is None else 100 * found["long_runs"]["period_error"]
    ),
    "still swinging after 1,000, %": lambda found: 100 * found["long_runs"]["still_swinging"],
}


def measure(data: str, variant: str, seed: int, workdir: Path) -> dict[str, Any]:
    """Trains once, and compares what was learned with the true motion.

    Args:
        data: `pendulum` or `coupled_pendula`.
        variant: a variant of its config.
        seed: seed of the run.
        workdir: a directory that does not exist yet.

    Returns:
        {"variant", "seed", "training_seconds", "prediction": the loss term at the end, "world_model"}.

    Raises:
        RuntimeError: if a run fails.
    """
    config = [f"--config=configs/{data}.py:{variant}", f"--config.train.seed={seed}"]
    seconds = []
    for arguments in (["--mode=train", *config], ["--mode=diagnose"]):
        command = [sys.executable, "-m", "hamjepa_jax.main", f"--workdir={workdir}", *arguments]
        begun_at = time.monotonic()
        status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        seconds.append(time.monotonic() - begun_at)
        if status:
            raise RuntimeError(f"{data} {variant}, seed {seed}, {arguments[0]}: exit status {status}")
    *_, last = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    found = json.loads((workdir / "evaluation" / "world_model.json").read_text())
    return {
        "variant": variant,
        "seed": seed,
        "training_seconds": seconds[0],
        "prediction": last["prediction"],
        "world_model": found,
    }


def markdown_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The numbers as a Markdown table, mean ± standard deviation over the seeds.

    Args:
        runs: what `measure` returned, at least two seeds of every variant.

    Returns:
        The table.
    """
    lines = [f"| | {' | '.join(VARIANTS)} |", f"| --- |{' ---: |' * len(VARIANTS)}"]
    for name, find in ROWS.items():
        of_variants = ([find(run["world_model"]) for run in runs if run["variant"] == v] for v in VARIANTS)
        lines.append(f"| {name} | {' | '.join(map(_cell, of_variants))} |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    shown = f"{np.mean(known):.3g}" + (f" ± {np.std(known, ddof=1):.2g}" if len(known) > 1 else "")
    return shown if len(known) == len(values) else f"{shown} ({len(known)} of {len(values)})"


def draw(data: str, runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the error of the energy and of the angle against time, a line for every run.

    Args:
        data: name of the data.
        runs: what `measure` returned.
        path: where the PNG goes.

    Raises:
        StorageError: if it cannot be written.
    """
    with plotting.picture(path, columns=2, size=(13.0, 5.2)) as (figure, axes):
        figure.suptitle(
            f"{data.replace('_', ' ').capitalize()} from pixels: a thousand predictions, one after the other"
        )
        panels = (
            ("energy_error", "error of the energy / its standard deviation"),
            ("angle_error", "error of the angle, rad"),
        )
        for panel, (name, label) in zip(axes[0], panels, strict=True):
            for run in runs:
                found = run["world_model"]["long_runs"]
                times, median = (np.array(values, float) for values in (found["time"], found[name]["median"]))
                first = run["seed"] == min(other["seed"] for other in runs)
                shown = {"color": COLORS[run["variant"]], "label": run["variant"] if first else None}
                panel.plot(times, median, linewidth=1.0, alpha=0.8, **shown)
            panel.set(xlabel="time, √(l/g)", ylabel=label, yscale="log")
        axes[0, 0].legend(loc="center right")


def main() -> None:
    """Measures every variant and seed, prints the table and writes the JSON and the picture."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--data", choices=PENDULA, default="pendulum", help="what is filmed (default: pendulum)")
    parser.add_argument(
        "--seeds", type=command_line.positive, default=5, help="number of seeds, from 0 on (default: 5)"
    )
    parser.add_argument("--picture", type=Path, help="where the picture is written")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as directory:
        jobs = [(variant, seed) for seed in range(options.seeds) for variant in VARIANTS]
        for variant, seed in track(jobs, description="runs"):
            runs.append(measure(options.data, variant, seed, Path(directory) / f"{variant}-{seed}"))
            # What is measured is kept, even if a later run fails.
            command_line.write_json(options.json, {"data": options.data, "runs": runs})
    print(markdown_table(runs))
    for variant in VARIANTS:
        seconds = [run["training_seconds"] for run in runs if run["variant"] == variant]
        print(f"{variant}: trained in {np.mean(seconds):.0f} s, at most {max(seconds):.0f} s")
    if options.picture is not None:
        draw(options.data, runs, options.picture)


if __name__ == "__main__":
    main()
