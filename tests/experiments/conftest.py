"""Stands in for hamjepa_jax.main: runs that take no time, fail, or wait for a signal."""

import json

import pytest

from hamjepa_jax.experiments import __main__ as command_line
from hamjepa_jax.experiments import runs
from hamjepa_jax.experiments.grids import GRIDS, Cell, Grid

# What a diagnosis writes, of as much as a table of several runs has.
DIAGNOSED = {
    "log_abs_det": {"float64": [1e-15, None]},
    "symplectic_defect": {"float64": [2e-15], "float32": [3e-7]},
    "singular_values": {"smallest": [0.95], "largest": [1.05]},
    "reversibility": {"float64": [4e-16]},
    "rollout": {"energy": None, "norm": {"median": [1.0, 1.25]}},
    "residual_force_ratio": 1.5,
    "prediction": {"error": 0.5, "identity": 0.6, "mean": 0.7},
    "neighbourhood": {"k": [10], "overlap": [0.9]},
    "sensitivity": {
        "step_size": [0.0, 0.05],
        "num_steps": [0, 2],
        "error": [[0.6, 0.6], [0.6, 0.123]],
        "trained": {"step_size": 0.05, "num_steps": 2},
    },
}
STAND_IN = (
    f"DIAGNOSED = {json.dumps(DIAGNOSED)!r}"
    + """
import json, os, pathlib, signal, sys, time
flags = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
workdir, seed = pathlib.Path(flags["workdir"]), int(flags["config.train.seed"])
variant = flags["config"].partition(":")[2]
workdir.mkdir(parents=True, exist_ok=True)
with open(workdir / "tried", "a") as file:
    file.write(f"{time.monotonic()} {sorted(os.sched_getaffinity(0))}\\n")
(workdir / "leads_a_session").write_text(str(os.getsid(0) == os.getpid()))
print("cache", os.environ["JAX_COMPILATION_CACHE_DIR"])
if variant == "broken":
    sys.exit("something broke")
if variant == "refused":
    print("error: config.data: refused", file=sys.stderr)
    sys.exit(2)
if variant == "waiting" and not (workdir / "saved").exists():
    def save(number, frame):
        (workdir / "saved").touch()
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGINT, save)
    (workdir / "ready").touch()
    time.sleep(60)
def scores(top1):
    return {
        "dim": 8,
        "knn": {"k": [1, 20], "top1": [0.1, top1]},
        "linear_probe": {"top1": top1 / 2, "sweep": {"best": {}}},
        "few_label_probe": {"1": {"top1": 0.0}, "5": {"top1": top1 / 4}},
        "spectrum": {"effective_rank": 10 * top1},
    }
base = {"good": 0.8, "better": 0.9}.get(variant, 0.5)
(workdir / "metrics.jsonl").write_text(json.dumps({"views_per_second": 100.0}) + chr(10) + json.dumps(
    {"views_per_second": 200.0, "warnings": ["step 7: warning: q is collapsing to a point: no more, for 3 steps"]}
) + chr(10))
(workdir / "evaluation").mkdir()
(workdir / "evaluation" / "diagnostics.json").write_text(DIAGNOSED)
(workdir / "evaluation" / "metrics.json").write_text(json.dumps({
    "step": 10,
    "features": {"q": scores(base + 0.01 * seed**2), "p": scores(0.0)},
    "baselines": {"pixels": scores(0.3), "random_encoder": scores(0.4)},
}))
"""
)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function from the variants of a grid and flags to the exit code of the command line, made of stand-ins."""
    script, config = tmp_path / "stand_in.py", tmp_path / "config.py"
    script.write_text(STAND_IN)
    config.touch()
    monkeypatch.setattr(runs.Run, "command", property(lambda run: ["python", str(script), *run.arguments]))
    monkeypatch.setattr(command_line, "number_at_once", lambda environment: 1)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def run(*variants, arguments=(), reference=None):
        cells = tuple(Cell(variant, variant) for variant in variants)
        monkeypatch.setitem(GRIDS, "tried", Grid(cells, reference or variants[0]))
        output = f"--output={tmp_path / 'out'}"
        return command_line.main(["experiments", "--grid=tried", f"--config={config}", output, *arguments])

    return run
